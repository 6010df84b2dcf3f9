"""A gevent greenlet-based toolkit for servers that live behind Mongrel2."""

from __future__ import annotations

from .connection import Connection
from .errors import GreentxError
from .transceiver import Transceiver
from .version import __version__
from .websocket import WebSocket
from .wire import Request, Response

__all__ = ["Connection", "GreentxError", "Request", "Response", "Transceiver", "WebSocket", "__version__"]
