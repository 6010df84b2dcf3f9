"""The handler side: what lives behind a Mongrel2."""

from __future__ import annotations

from .connection import Connection
from .transceiver import Transceiver
from .websocket import WebSocket

__all__ = ["Connection", "Transceiver", "WebSocket"]
