"""What comes in from one browser: never so much of it in a row that others wait for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import gevent

from .sockets import BrowserSocket

__all__ = ["Incoming", "next_size"]

T = TypeVar("T")

_READ = 1

# Of one call. A head of a browser fits into the first.
_FIRST_SIZE = 8192
_SMALLEST, _LARGEST = 512, 65536
# For what came with one call: thousands of frames, chunks or requests of a few bytes fit into the largest.
_SECONDS = 0.0005
# Bytes that may have thousands of pieces, so that the time which they take is looked at.
_MANY_BYTES = 1024
# Requests, or frames, of one connection that are handed on in a row.
_IN_A_ROW = 8


def next_size(size: int, received: int, seconds: float) -> int:
    """Return how many bytes to read at once, where *size* bytes were asked for, and what came was read in *seconds*."""
    if seconds > _SECONDS:
        return max(_SMALLEST, size // 2)
    return min(_LARGEST, size * 2) if received == size else size


class Incoming:
    """The reading half of a connection.

    gevent's own ``recv`` returns at once where more is there, for as long as the client sends faster than it is served.
    This one asks the loop first, which then has a look at all others, too; and where the client has sent nothing yet no
    system call fails.

    Args:
        sock: Closed by others, after :meth:`close`.

    Attributes:
        size: Bytes that the next call returns at the most.
    """

    __slots__ = ("_hub", "_pending", "_recv", "_watcher", "size")

    def __init__(self, sock: BrowserSocket) -> None:
        self.size = _FIRST_SIZE
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(sock.fileno(), _READ)
        self._recv: Callable[[int], bytes] = sock.recv
        # Of TLS: bytes that the socket has read already, of which the loop does not know.
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)

    def receive(self) -> bytes:
        """Return the next bytes, ``b""`` at the end; blocks this greenlet.

        Raises:
            OSError: The connection was reset.
        """
        if self._pending is None or not self._pending():
            self._hub.wait(self._watcher)
        return self._recv(self.size)

    def parsed(self, feed: Callable[[bytes], list[T]], data: bytes) -> list[T]:
        """Return what *feed* makes of *data*; where that takes long, less is read at once from then on."""
        size = len(data)
        if size < _MANY_BYTES:
            return feed(data)
        began = time.monotonic()
        made = feed(data)
        self.size = next_size(self.size, size, time.monotonic() - began)
        return made

    def give_way(self, handed_on: int = 0) -> bool:
        """Where so many requests, or frames, are enough in a row, block this greenlet until the loop has had a look at
        all others.

        Returns:
            Whether that was so: meanwhile everything may have changed.
        """
        if handed_on % _IN_A_ROW:
            return False
        self._hub.wait(self._hub.loop.timer(0))
        return True

    def forget(self) -> None:
        """Have the loop look no more; for a forked child."""
        self._watcher.stop()

    def close(self) -> None:
        """Let go of the loop; nobody may be in :meth:`receive`."""
        self._watcher.close()
