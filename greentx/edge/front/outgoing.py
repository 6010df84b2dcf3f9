"""What goes out to one browser: a bounded queue, which whoever has something to write writes to, and never waits."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

import gevent
from gevent import socket

__all__ = ["MAX_WAITING", "Outgoing"]

#: Messages that may wait behind the one that is being written, of any size; one more ends the connection, as Mongrel2
#: does it (probed).
MAX_WAITING = 16


class Outgoing:
    """The writing half of a connection.

    Args:
        sock: Read and closed by others.
        on_idle: Called without arguments whenever all is written that had to wait, and once it is over. Must not block.

    Attributes:
        ending: No message is taken any more.
        over: Nothing more is written: all was, and the client was told so, or it cannot be.
        written: Bytes that the kernel took.
    """

    __slots__ = ("_greenlet", "_on_idle", "_sock", "_waiting", "ending", "over", "written")

    def __init__(self, sock: socket.socket, on_idle: Callable[[], None]) -> None:
        self._sock = sock
        self._on_idle = on_idle
        self._waiting: deque[bytes | memoryview] = deque()
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self.ending = False
        self.over = False
        self.written = 0

    @property
    def idle(self) -> bool:
        """True while nothing waits to be written."""
        return self._greenlet is None

    def write(self, data: bytes) -> bool:
        """Write, now or as soon as the client reads; what comes behind the end is dropped, as Mongrel2 does it.

        Returns:
            False where too much waits: *data* is dropped.
        """
        if self.ending:
            return True
        rest: bytes | memoryview = data
        if self._greenlet is None:
            try:
                sent = self._sock.send(data, 0, 0.0)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._finish()
                return True
            self.written += sent
            if sent == len(data):
                return True
            rest = memoryview(data)[sent:]
            self._greenlet = gevent.spawn(self._flush)
        elif len(self._waiting) > MAX_WAITING:
            return False
        self._waiting.append(rest)
        return True

    def end(self) -> None:
        """Write what waits, and then tell the client that nothing follows."""
        if not self.ending:
            self.ending = True
            if self._greenlet is None:
                self._finish()

    def drop(self) -> None:
        """Write nothing more, not even what waits. Does not block."""
        self.ending = True
        self._waiting.clear()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self._finish()

    def _flush(self) -> None:
        waiting = self._waiting
        try:
            while waiting:
                rest = waiting[0]
                sent = self._sock.send(rest)
                self.written += sent
                # While it waited all may have been dropped.
                if not waiting:
                    return
                if sent == len(rest):
                    waiting.popleft()
                else:
                    waiting[0] = memoryview(rest)[sent:]
        except OSError:
            waiting.clear()
            self._finish()
        finally:
            self._greenlet = None
        if self.ending:
            self._finish()
        else:
            self._on_idle()

    def _finish(self) -> None:
        self.ending = True
        if not self.over:
            self.over = True
            # The half that reads stays: a close with unread bytes would reset what the client has not read yet.
            with contextlib.suppress(OSError):  # it has gone
                self._sock.shutdown(socket.SHUT_WR)
            self._on_idle()
