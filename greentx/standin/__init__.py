"""The stand-in for Mongrel2: what a handler cannot tell from one. The handler side is never imported here."""

from __future__ import annotations

# In the order of the building: headers, reading, router, client, sockets, questions, connector, handlers, server.
from .client import Client
from .connector import Connector
from .server import Server

__all__ = ["Client", "Connector", "Server"]
