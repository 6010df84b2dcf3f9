"""Everything that touches ZeroMQ: contexts, the receiving and the sending half of a connection set, teardown.

The only part of greentx that imports ``zmq``; its errors become :class:`~greentx.errors.TransportError` here.
"""

from __future__ import annotations

from .context import Context, SocketClosed, SocketKind, native_thread_id
from .outflow import Placed
from .publisher import Publisher
from .receiver import Receiver
from .replier import Replier
from .router import PeerGone, Router
from .supervised import Supervised
from .writer import Writer

# What other folders use. The rest is how it is done, and may change.
__all__ = [
    "Context",
    "PeerGone",
    "Placed",
    "Publisher",
    "Receiver",
    "Replier",
    "Router",
    "SocketClosed",
    "SocketKind",
    "Supervised",
    "Writer",
    "native_thread_id",
]
