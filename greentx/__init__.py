"""A gevent greenlet-based toolkit for servers that live behind Mongrel2."""

from __future__ import annotations

from .client import Client
from .connection import Connection
from .connector import Connector
from .errors import GreentxError
from .server import Server
from .transceiver import Transceiver
from .version import __version__
from .websocket import WebSocket
from .wire import Request, Response

__all__ = [
    "Client",
    "Connection",
    "Connector",
    "GreentxError",
    "Request",
    "Response",
    "Server",
    "Transceiver",
    "WebSocket",
    "__version__",
]
