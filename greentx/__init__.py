"""A gevent greenlet-based toolkit for servers that live behind Mongrel2."""

from __future__ import annotations

from .errors import GreentxError
from .handler.connection import Connection
from .handler.transceiver import Transceiver
from .handler.websocket import WebSocket
from .protocol.replies import Response
from .protocol.request import Request
from .standin.client import Client
from .standin.connector import Connector
from .standin.server import Server
from .version import __version__

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
