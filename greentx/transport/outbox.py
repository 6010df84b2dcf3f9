"""What waits to be written to one browser's connection, and when it may go.

Mongrel2 queues 16 messages for a connection; the 17th kills it, undelivered data included (probed: a burst of 17 small
ones gave the client nothing, one every 0.5 ms arrived 400 times). How much is queued there cannot be seen. So a
connection may have a short burst of messages, then one for each :data:`INTERVAL`; what is written in between is joined
into one message, of any size.

With ``download.flow_control`` the limit is 102400 bytes not yet written by the server, however many messages they are,
and the server reports each message that it wrote (probed): then those reports, the credits, decide.

No I/O here; the time is passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

__all__ = ["BURST", "CREDITS", "INTERVAL", "Outbox", "Pacer"]

#: Messages that one connection may be sent at once.
BURST = 8

#: Seconds between two messages to one connection, once the burst is used up.
INTERVAL = 0.0005

#: Bytes that may be under way to one connection with ``download.flow_control``; one more kills it (probed).
CREDITS = 102400

# Below this, forgetting who was written to lately costs more than remembering.
_KEEP = 4096


class Pacer:
    """Says whether a connection may be sent one more message now.

    It keeps, for each connection that was written to lately, the time at which the messages sent so far would be due at
    one for each :data:`INTERVAL` (the "generic cell rate algorithm"): a float each, forgotten once it has passed.
    """

    __slots__ = ("_due", "_purge_at")

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._purge_at = _KEEP

    def allows(self, conn_id: str, now: float) -> bool:
        """Return whether *conn_id* may be sent a message now, and count that message if so."""
        due = self._due.get(conn_id, now)
        if due > now + (BURST - 1) * INTERVAL:
            return False
        self._due[conn_id] = (due if due > now else now) + INTERVAL
        if len(self._due) > self._purge_at:
            self._purge(now)
        return True

    def split(self, conn_ids: Collection[str], now: float, busy: Collection[str]) -> tuple[list[str], list[str]]:
        """Return which of many may be sent a message now, counting it, and which may not.

        Args:
            busy: Ids for which something is waiting already, so that nothing may overtake it.
        """
        due_times = self._due
        latest = now + (BURST - 1) * INTERVAL
        first = now + INTERVAL
        allowed: list[str] = []
        refused: list[str] = []
        for conn_id in conn_ids:
            due = due_times.get(conn_id, 0.0)
            if due > latest or conn_id in busy:
                refused.append(conn_id)
            else:
                due_times[conn_id] = due + INTERVAL if due > now else first
                allowed.append(conn_id)
        if len(due_times) > self._purge_at:
            self._purge(now)
        return allowed, refused

    def forget(self) -> None:
        """Forget all: the server's ids have a new meaning."""
        self._due.clear()

    def _purge(self, now: float) -> None:
        self._due = {conn_id: due for conn_id, due in self._due.items() if due > now}
        self._purge_at = max(_KEEP, 2 * len(self._due))


class Outbox:
    """What waits for one connection, in order.

    Attributes:
        head: What a message to this connection begins with; alone it closes the connection.
        size: Bytes that wait.
        closing: The connection is to be closed behind them.
        window: Bytes that may still be sent before credits come; ``None`` without ``download.flow_control``.
        confirmed: Bytes that the server reported as written.
        unasked: How many bytes were put by those who do not wait, since nothing waited here.
    """

    __slots__ = ("_parts", "closing", "confirmed", "head", "size", "unasked", "window")

    def __init__(self, head: bytes, window: int | None = None) -> None:
        self.head = head
        self._parts: deque[bytes | memoryview] = deque()
        self.size = 0
        self.closing = False
        self.window = window
        self.confirmed = 0
        self.unasked = 0

    def spend(self, size: int) -> bool:
        """Return whether *size* bytes may be sent right now, in a message of the caller's, and count them if so."""
        if self._parts or self.closing or self.window is None or size > self.window:
            return False
        self.window -= size
        return True

    def put(self, data: bytes) -> None:
        """Add bytes behind what waits."""
        self._parts.append(data)
        self.size += len(data)

    def take(self) -> bytes:
        """Return, as one message, all that may be sent now; ``b""`` when nothing may."""
        parts = self._parts
        if self.window is None or self.size <= self.window:
            first = parts[0] if len(parts) == 1 else None
            data = first if isinstance(first, bytes) else b"".join(parts)
            parts.clear()
            self.unasked = 0
        else:
            if not self.window:
                return b""
            taken: list[bytes | memoryview] = []
            left = self.window
            while left:
                part = parts.popleft()
                if len(part) > left:
                    part = memoryview(part)  # so that cutting a large one up copies it once in all
                    parts.appendleft(part[left:])
                    part = part[:left]
                taken.append(part)
                left -= len(part)
            data = b"".join(taken)
        self.size -= len(data)
        if self.window is not None:
            self.window -= len(data)
        return data

    def credit(self, count: int) -> None:
        """The server wrote *count* bytes: as many more may be sent, never more than :data:`CREDITS`."""
        if self.window is not None:
            self.window = min(CREDITS, self.window + count)
            self.confirmed += count

    @property
    def idle(self) -> bool:
        """True when nothing waits."""
        return not self._parts and not self.closing
