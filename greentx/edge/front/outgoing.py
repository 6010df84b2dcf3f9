"""What goes out to one browser: a bounded queue, which whoever has something to write writes to, and never waits.

Mongrel2 takes all messages that have come for a connection before it writes any of them, so its bounds are about those
that come at once, too: the 17th of a burst kills the connection however fast its client reads (probed). What is written
in one turn of the loop counts here as if it waited, so that a handler which works here works there. With
``download.flow_control`` what was written counts until the handler is told of it, which is then free to send more.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

import gevent
from gevent import socket

from .sockets import BrowserSocket

__all__ = ["MAX_BYTES", "MAX_MESSAGES", "Outgoing"]

#: Messages, of any size, that may wait, the one that is being written among them; one more ends the connection, as in
#: Mongrel2 (probed).
MAX_MESSAGES = 17

#: The same in bytes, with ``download.flow_control``.
MAX_BYTES = 102400


class Outgoing:
    """The writing half of a connection.

    Args:
        sock: Read and closed by others.
        on_idle: Called without arguments whenever all is written that had to wait, and once it is over. Must not block.
        on_written: With ``download.flow_control``: called with the size of each message, soon after the kernel took all
            of it. Must not block.

    Attributes:
        ending: No message is taken any more.
        over: Nothing more is written: all was, and the client was told so, or it cannot be.
        written: Bytes that the kernel took.
    """

    __slots__ = (
        "_at_once",
        "_greenlet",
        "_now",
        "_on_idle",
        "_on_written",
        "_sock",
        "_turn",
        "_untold",
        "_waiting",
        "_waiting_bytes",
        "ending",
        "over",
        "written",
    )

    def __init__(
        self, sock: BrowserSocket, on_idle: Callable[[], None], on_written: Callable[[int], None] | None = None
    ) -> None:
        self._sock = sock
        self._on_idle = on_idle
        self._on_written = on_written
        # Each with the bytes that it counts for.
        self._waiting: deque[tuple[memoryview, int]] = deque()
        self._waiting_bytes = 0
        self._greenlet: gevent.Greenlet[..., None] | None = None
        # The turn of the loop in which something was written at once, and how much.
        self._now: Callable[[], float] = gevent.get_hub().loop.now
        self._turn = 0.0
        self._at_once = 0
        # Sizes of messages that were written at once, of which the handler is told in the next turn.
        self._untold: list[int] = []
        self.ending = False
        self.over = False
        self.written = 0

    @property
    def idle(self) -> bool:
        """True while nothing waits to be written."""
        return self._greenlet is None

    @property
    def flow_control(self) -> bool:
        """Whether bytes are counted in place of messages, and handlers are told what was written."""
        return self._on_written is not None

    def write(self, data: bytes) -> bool:
        """Write a handler's message, now or as soon as the client reads; what comes behind the end is dropped, as
        Mongrel2 does it.

        Returns:
            False where too much waits: *data* is dropped.
        """
        if self.ending:
            return True
        if self._on_written is None:
            # The loop reads the clock once in a turn.
            turn = self._now()
            if turn != self._turn:
                self._turn = turn
                self._at_once = 0
            size, limit, waiting = 1, MAX_MESSAGES, len(self._waiting)
        else:
            size, limit, waiting = len(data), MAX_BYTES, self._waiting_bytes
        if self._at_once + waiting + size > limit:
            return False
        if self._put(data, len(data)):
            self._at_once += size
            if self._on_written is not None:
                if not self._untold:
                    gevent.get_hub().loop.run_callback(self._tell)
                self._untold.append(size)
        return True

    def add(self, data: bytes) -> None:
        """Write a few bytes of the front end's own in the same way; they are not counted."""
        if not self.ending:
            self._put(data, 0)

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
        # Nobody is told anything of a connection behind its end.
        self._untold.clear()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self._finish()

    def _tell(self) -> None:
        untold, self._untold = self._untold, []
        self._at_once = 0
        for size in untold:
            if self._on_written is not None:
                self._on_written(size)

    def let_go(self) -> None:
        """Call nobody any more; behind :meth:`drop`."""
        self._on_idle = _nobody
        self._on_written = None

    def forget(self) -> None:
        """Write nothing more, and touch nothing; for a forked child."""
        self.ending = self.over = True
        self._waiting.clear()

    def _put(self, data: bytes, size: int) -> bool:
        """Write *data*, or let it wait, as *size* bytes; return whether the kernel took all of it."""
        sent = 0
        if self._greenlet is None:
            try:
                sent = self._sock.send(data, 0, 0.0)
            except BlockingIOError:
                pass
            except OSError:
                self._finish()
                return False
            self.written += sent
            if sent == len(data):
                return True
            self._greenlet = gevent.spawn(self._flush)
        self._waiting.append((memoryview(data)[sent:], size))
        self._waiting_bytes += size
        return False

    def _flush(self) -> None:
        waiting = self._waiting
        try:
            while waiting:
                rest, size = waiting[0]
                sent = self._sock.send(rest)
                self.written += sent
                # While it waited all may have been dropped.
                if not waiting:
                    return
                if sent < len(rest):
                    waiting[0] = (rest[sent:], size)
                    continue
                waiting.popleft()
                self._waiting_bytes -= size
                if size and self._on_written is not None:
                    self._on_written(size)
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


def _nobody() -> None:
    """Called in place of who has gone."""
