"""Everything that touches ZeroMQ: contexts, the receiving and the sending half of a connection set, teardown.

The only part of greentx that imports ``zmq``; its errors become :class:`~greentx.errors.TransportError` here.
"""

from __future__ import annotations

from .context import Context, SocketClosed, SocketKind, native_thread_id
from .outbox import BURST, NOBODY, SHARED_BURST
from .publisher import Publisher
from .receipts import NUMBERS, first_number
from .receiver import Receiver
from .replier import Replier
from .writer import Writer

__all__ = [
    "BURST",
    "NOBODY",
    "NUMBERS",
    "SHARED_BURST",
    "Context",
    "Publisher",
    "Receiver",
    "Replier",
    "SocketClosed",
    "SocketKind",
    "Writer",
    "first_number",
    "native_thread_id",
]
