"""How many bytes may wait in one process, counted as they are in memory. No I/O.

Two bounds, each a setting of the Transceiver with this name, which what is logged about it has as well:

=====================  =============================================================================================
setting                bounds
=====================  =============================================================================================
``max_queue_bytes``    what waits for one connection: WebSocket messages not received yet, also those that came before
                       the 101, and pipelined requests. Above it the connection is ended.
``max_pending_bytes``  what waits in all these queues; then the connection that adds to it is ended. Also, counted on
                       its own, what waits for ``recv()``, and what waits for the pool of ``serve()``: then nothing
                       more is received, and the server keeps what comes.
=====================  =============================================================================================

What is in the hands of the application does not wait any more, and is not counted.
"""

from __future__ import annotations

from sys import getsizeof
from typing import Final

from .request import Request

__all__ = [
    "MAX_PENDING_BYTES",
    "MAX_QUEUE_BYTES",
    "MESSAGE_BYTES",
    "TEXT_FACTOR",
    "WIRE_FACTOR",
    "Queued",
    "Share",
    "size_of",
]

#: The defaults.
MAX_QUEUE_BYTES: Final = 16 * 1024 * 1024
MAX_PENDING_BYTES: Final = 128 * 1024 * 1024

#: What a message costs next to its bytes: its object, and its place in a queue.
MESSAGE_BYTES: Final = 128

#: What a request may take in memory for each byte on the wire, at the most: one of many headers of some bytes each.
WIRE_FACTOR: Final = 64

#: What a byte of a WebSocket's message may take, at the most: itself, and a character of text as long as the longest.
TEXT_FACTOR: Final = 5

# Of a Request, and of each header in its dict.
_REQUEST_BYTES: Final = 512
_HEADER_BYTES: Final = 104

# What decoded JSON takes for each byte at the most, which lists of lists of nothing do (measured).
_JSON_FACTOR: Final = 32


def size_of(request: Request) -> int:
    """Return how many bytes a request takes while it waits; headers that others share are counted for each."""
    size = _REQUEST_BYTES + getsizeof(request.body)
    for name, value in request.raw.items():
        size += _HEADER_BYTES + getsizeof(name) + getsizeof(value)
        if value.__class__ is list:
            size += sum(map(getsizeof, value))
    if request.text is not None:
        size += getsizeof(request.text)
    if request.decoded:
        size += _JSON_FACTOR * len(request.body)
    return size


class Queued:
    """What waits in the queues of all connections of a process.

    Args:
        per_connection: ``max_queue_bytes``.
        in_all: ``max_pending_bytes``.

    Attributes:
        held: How many bytes wait.
    """

    __slots__ = ("held", "in_all", "per_connection")

    def __init__(self, per_connection: int = MAX_QUEUE_BYTES, in_all: int = MAX_PENDING_BYTES) -> None:
        self.per_connection = per_connection
        self.in_all = in_all
        self.held = 0

    def share(self) -> Share:
        """Return what counts the queue of one more connection."""
        return Share(self)


class Share:
    """What waits in the queue of one connection. It is given back with this object at the latest.

    Attributes:
        held: How many bytes wait.
    """

    __slots__ = ("_all", "held")

    def __init__(self, queued: Queued) -> None:
        self._all = queued
        self.held = 0

    def add(self, size: int) -> str:
        """Count *size* bytes more, where there is room. The first of all has room, whatever its size.

        Returns:
            ``""``; or why there is none, with the name of the setting: nothing was counted then.
        """
        queued = self._all
        held = self.held
        if held and held + size > queued.per_connection:
            return f"{held} bytes wait already, max_queue_bytes is {queued.per_connection}"
        if queued.held and queued.held + size > queued.in_all:
            return f"{queued.held} bytes wait for all, max_pending_bytes is {queued.in_all}"
        self.held = held + size
        queued.held += size
        return ""

    def remove(self, size: int) -> None:
        """*size* of what was added waits no more."""
        self.held -= size
        self._all.held -= size

    def __del__(self) -> None:
        # Whatever way a queue goes, with its connection, its life or its set, its bytes are not counted any more.
        self._all.held -= self.held
