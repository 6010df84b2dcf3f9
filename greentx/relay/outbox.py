"""What a Node has to send to its relay, and what waits for room there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from gevent.event import Event

from ..transport import Context
from .messages import MAX_BATCH, join

__all__ = ["MAX_WAITING", "Outbox"]

#: Bytes that may wait for room in the connection to the relay.
MAX_WAITING = 64 * 1024 * 1024

# With so many what an application sends waits where it can: all that goes at once is copied once more.
_MAX_AT_ONCE = 16 * 1024 * 1024

# How often what waits for room is tried again.
_RETRY_SECONDS = 0.01


class Outbox:
    """All that one round of the hub has for the relay goes in one message.

    All methods belong to the hub's thread.

    Args:
        context: Owner of the timer.
        send: Sends one message; returns whether there was room for it.
    """

    def __init__(self, context: Context, send: Callable[[bytes], bool]) -> None:
        self._messages: list[bytes] = []
        self._bytes = 0
        # Those of it that nobody has asked for room for.
        self._told = 0
        self._waiting: deque[_Turn] = deque()
        # Bytes of those whose turn it is, and that have not run yet.
        self._granted = 0
        # How often something went.
        self._sends = 0
        self._send = send
        self._scheduled = False
        self._context = context
        # While there is no room.
        self._timer: Any = context.timer(_RETRY_SECONDS, _RETRY_SECONDS)

    def put(self, message: bytes) -> bool:
        """Never blocks. Returns whether all that was put so is within :data:`MAX_WAITING`."""
        self._told += len(message)
        self._add(message)
        return self._told <= MAX_WAITING

    def offer(self, head: bytes, payload: bytes, *, wait: bool) -> bool:
        """Put a message where there is room for it, and return whether there is. One goes whatever its size.

        Args:
            wait: There is none while others wait.
        """
        size = len(head) + len(payload)
        if not self._fits(size, _MAX_AT_ONCE if wait else MAX_WAITING) or (wait and self._waiting):
            return False
        self._add(b"%b\n%b" % (head, payload))
        return True

    def send(self, head: bytes, payload: bytes, seconds: float | None) -> bool:
        """Wait in turn for room; as :meth:`greentx.relay.link.Link.send`."""
        if self.offer(head, payload, wait=True):
            return True
        turn = _Turn(len(head) + len(payload))
        self._waiting.append(turn)
        try:
            before = self._sends
            while not turn.came.wait(seconds):
                if self._sends == before:
                    return False
                before = self._sends
            if not turn.over:
                self._add(b"%b\n%b" % (head, payload))
            return True
        finally:
            if turn.granted:
                self._granted -= turn.size
            elif not turn.over:
                self._waiting.remove(turn)
            # Where this one was killed, or gave up.
            self._grant()

    def _fits(self, size: int, bound: int) -> bool:
        busy = self._bytes + self._granted
        return not busy or busy + size <= bound

    def _grant(self) -> None:
        waiting = self._waiting
        while waiting and self._fits(waiting[0].size, _MAX_AT_ONCE):
            turn = waiting.popleft()
            turn.granted = True
            self._granted += turn.size
            turn.came.set()

    def _add(self, message: bytes) -> None:
        self._messages.append(message)
        self._bytes += len(message)
        if not self._scheduled:
            self._scheduled = True
            self._context.hub.loop.run_callback(self._end_round)

    def _end_round(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> bool:
        """Send it now. Returns whether all of it went; else it waits for room."""
        if not self._messages:
            return True
        if not self._context.open:
            return False
        while self._send(join(self._messages[:MAX_BATCH])):
            self._sends += 1
            sent, self._messages = self._messages[:MAX_BATCH], self._messages[MAX_BATCH:]
            if not self._messages:
                self._clear()
                self._grant()
                return True
            self._bytes -= sum(map(len, sent))
            self._told = min(self._told, self._bytes)
        if not self._timer.active:
            # Not start(): it goes on with what was left of the timer's last run.
            self._timer.again(self.flush, update=True)
        return False

    def _clear(self) -> None:
        self._messages.clear()
        self._bytes = self._told = 0
        self._timer.stop()

    def over(self) -> None:
        """Drop all of it, and what waits."""
        self._clear()
        while self._waiting:
            turn = self._waiting.popleft()
            turn.over = True
            turn.came.set()

    def stop(self) -> None:
        """Safe to call twice."""
        self.over()
        self._context.unwatch(self._timer)


class _Turn:
    """Somebody waits for room.

    Attributes:
        size: Bytes of the message.
        came: Set when the wait is over: there is room (*granted*), or nothing to send it to (*over*).
    """

    __slots__ = ("came", "granted", "over", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.came = Event()
        self.granted = False
        self.over = False
