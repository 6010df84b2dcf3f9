"""What waits to be written to one browser's connection, and when it may go.

Mongrel2 queues 16 messages for a connection; the 17th kills it, undelivered data included (probed: a burst of 17 small
ones gave the client nothing). How much is queued there cannot be seen, and no pace is slow enough for a server that is
busy or stopped for a moment. What can be had is a receipt: a message to a connection that nobody has is answered with a
notice, after everything sent before was taken in (probed: 44 us; 500 times 12 messages and a receipt arrived whole).
So a connection may have :data:`BURST` messages that no receipt covers; what is written meanwhile is joined into one
message, of any size.

A receipt does not say that a message was written to the browser. Small ones are, as fast as they come; large ones take
their time, and the 16 fill up. So for large ones a reckoning is kept of how long a browser that reads at a fair pace
takes for them, and :data:`QUEUED` of them are under way at most; a browser that is slower all the time is lost, since
nobody tells of it.

With ``download.flow_control`` the limit is 102400 bytes not yet written by the server, however many messages they are,
and the server reports each message that it wrote (probed): then those reports, the credits, decide. Most answers are
smaller than that and nothing waits: for them the :class:`Ledger` is enough, without an outbox for each.

No I/O here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Iterator

__all__ = [
    "BURST",
    "CREDITS",
    "EAGER",
    "LARGE",
    "NOBODY",
    "QUEUED",
    "READ_RATE",
    "SHARED_BURST",
    "Ledger",
    "Outbox",
    "Pacer",
]

#: Messages to one connection that no receipt covers, at most.
BURST = 10

#: The same where other processes write to the same connection, and count for themselves.
SHARED_BURST = 4

#: As many of them make a receipt due, so that it is there before the burst is used up.
EAGER = 6

#: Bytes that may be under way to one connection with ``download.flow_control``; one more kills it (probed).
CREDITS = 102400

#: Receipts are notices about connections with numbers from here to 2**31 - 1, which a server's counter, at one for each
#: browser from 1 on, does not reach. Greater ones come back negative (probed).
NOBODY = 2_000_000_000

#: A message is large from so many bytes on.
LARGE = 16384

#: Bytes a second that a browser is taken to read, where the server does not tell what it wrote.
READ_RATE = 16 * 1024 * 1024

#: Large messages that by this reckoning may wait for a browser in the server. Ten small ones may be on their way, too.
QUEUED = 4

# As many connections written to make a receipt due, so that they can be forgotten.
_KEEP = 4096


class Pacer:
    """Says whether a connection may be sent one more message now.

    It counts the messages to each connection since the last receipt was asked for, and, until that one is there, those
    before it.

    Args:
        burst: Messages to one connection that no receipt covers, at most.

    Attributes:
        due: A receipt should be asked for.
    """

    __slots__ = ("_before", "_burst", "_eager", "_since", "due")

    def __init__(self, burst: int = BURST) -> None:
        self._burst = burst
        self._eager = min(EAGER, burst)
        self._since: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self.due = False

    def allows(self, conn_id: str) -> bool:
        """Return whether *conn_id* may be sent a message now, and count that message if so."""
        since = self._since
        if conn_id not in since and not self._before and len(since) <= _KEEP:
            since[conn_id] = 1  # nearly always
            return True
        count = total = since.get(conn_id, 0) + 1
        if self._before:
            total += self._before.get(conn_id, 0)
        if total >= self._eager or len(since) > _KEEP:
            self.due = True
            if total > self._burst:
                return False
        since[conn_id] = count
        return True

    def split(self, conn_ids: Collection[str], busy: Container[str]) -> tuple[list[str], list[str]]:
        """Return which of many may be sent a message now, counting it, and which may not.

        Args:
            busy: Ids for which something is waiting already, so that nothing may overtake it.
        """
        allowed: list[str] = []
        refused: list[str] = []
        allows = self.allows
        for conn_id in conn_ids:
            if conn_id in busy or not allows(conn_id):
                refused.append(conn_id)
            else:
                allowed.append(conn_id)
        return allowed, refused

    def asked(self) -> None:
        """A receipt was asked for, behind everything counted so far. The one before it is there."""
        self._before, self._since = self._since, {}
        self.due = False

    def confirmed(self) -> None:
        """The receipt is there: what was counted before it was asked for has been taken in."""
        self._before = {}

    def share(self) -> None:
        """Others send to the same connections, and count for themselves."""
        self._burst = min(self._burst, SHARED_BURST)
        self._eager = min(self._eager, SHARED_BURST)

    def forget(self) -> None:
        """Forget all: the server's ids have a new meaning."""
        self._since = {}
        self._before = {}
        self.due = False


class Ledger:
    """With flow control, how much is under way to the connections for which nothing waits.

    A connection is in it from the first byte that it is sent until all was reported, or until :meth:`close`.
    """

    __slots__ = ("_reported", "_sent")

    def __init__(self) -> None:
        # Since the connection got in. Nearly every answer is reported in one piece: then the second one stays empty.
        self._sent: dict[str, int] = {}
        self._reported: dict[str, int] = {}

    def spend(self, conn_id: str, size: int) -> bool:
        """Return whether *size* more bytes may be sent now, and count them if so."""
        sent = self._sent
        total = sent.get(conn_id, 0) + size
        if total > CREDITS and total - self._reported.get(conn_id, 0) > CREDITS:
            return False
        sent[conn_id] = total
        return True

    def credit(self, conn_id: str, count: int) -> bool:
        """The server wrote *count* bytes. Returns whether the connection was in the ledger."""
        sent = self._sent.get(conn_id)
        if sent is None:
            return False
        reported = self._reported
        if reported:
            count += reported.get(conn_id, 0)
        if count < sent:
            reported[conn_id] = count
        else:
            del self._sent[conn_id]
            reported.pop(conn_id, None)
        return True

    def close(self, conn_id: str) -> tuple[int, int]:
        """Take a connection out; return how many bytes more it may be sent, and how many it was reported to have."""
        sent, reported = self._sent.pop(conn_id, 0), self._reported.pop(conn_id, 0)
        return CREDITS - (sent - reported), reported

    def confirmed(self, conn_id: str) -> int | None:
        """Return how many bytes were reported since the connection got in; ``None`` where it is not in."""
        return self._reported.get(conn_id, 0) if conn_id in self._sent else None

    def clear(self) -> None:
        """Forget all: the server's ids have a new meaning."""
        self._sent.clear()
        self._reported.clear()

    def __contains__(self, conn_id: object) -> bool:
        return conn_id in self._sent

    def __iter__(self) -> Iterator[str]:
        return iter(self._sent)


class Outbox:
    """What waits for one connection, in order.

    Attributes:
        head: What a message to this connection begins with; alone it closes the connection.
        size: Bytes that wait.
        closing: The connection is to be closed behind them.
        closed: The server was told to close it, though not all that it has to write before may be written.
        window: Bytes that may still be sent before credits come; ``None`` without ``download.flow_control``.
        confirmed: Bytes that the server reported as written.
        unasked: How many bytes were put by those who do not wait, since nothing waited here.
    """

    __slots__ = ("_parts", "_reckoned", "closed", "closing", "confirmed", "head", "size", "unasked", "window")

    def __init__(self, head: bytes, window: int | None = None, confirmed: int = 0) -> None:
        self.head = head
        self._parts: deque[bytes | memoryview] = deque()
        self.size = 0
        self.closing = False
        self.closed = False
        self.window = window
        self.confirmed = confirmed
        self.unasked = 0
        # When each of the large messages that were sent is reckoned to be read.
        self._reckoned: deque[float] = deque()

    def reckon(self, size: int, now: float) -> None:
        """A message of *size* bytes was sent, without flow control: if it is a large one, keep account of it."""
        if size >= LARGE:
            begins = max(now, self._reckoned[-1]) if self._reckoned else now
            self._reckoned.append(begins + size / READ_RATE)

    def under_way(self, now: float) -> int:
        """Return how many large messages the browser is reckoned not to have read."""
        reckoned = self._reckoned
        while reckoned and reckoned[0] <= now:
            reckoned.popleft()
        return len(reckoned)

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
        return not self._parts and (self.closed or not self.closing)
