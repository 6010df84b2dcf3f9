"""What waits to be written to one browser's connection, each piece in the place that it got when it was written."""

from __future__ import annotations

from collections import deque

from .accounts import Accounts
from .limits import OUTBOX_LIMIT

__all__ = ["Outbox"]


class Outbox:
    """What waits for one connection, in order.

    Args:
        read_at: When the browser should have read the large message that it was sent before; ``None``: it has.

    Attributes:
        head: What a message to this connection begins with; alone it closes the connection.
        size: Bytes that wait.
        closing: The connection is to be closed behind them.
        closed: The server was told to close it, though not all that it has to write before may be written.
        dropped: Why what is left here is not sent any more: the connection or its server has gone. Empty before.
        accounts: Who knows how much of it may go now.
        unthrottled: How many of the bytes that wait were put by callers that do not wait, by :meth:`put_unthrottled`.
        behind_since: Since when these are more than :data:`OUTBOX_LIMIT`; ``None`` while they are not.
        judged: A clock's seconds, and the bytes confirmed, when it was last found to read fast enough; ``None`` before.
    """

    __slots__ = (
        "_cut",
        "_first",
        "_parts",
        "_unthrottled",
        "accounts",
        "behind_since",
        "closed",
        "closing",
        "dropped",
        "head",
        "judged",
        "size",
        "unthrottled",
    )

    def __init__(self, head: bytes, accounts: Accounts) -> None:
        self.head = head
        self.accounts = accounts
        self._parts: deque[bytes | memoryview] = deque()
        # The place of the first part; places are numbers that only grow, so that each stays with its part.
        self._first = 0
        # Some of the first part was sent already.
        self._cut = False
        self.size = 0
        self.closing = False
        self.closed = False
        self.dropped = ""
        self.unthrottled = 0
        self.behind_since: float | None = None
        self.judged: tuple[float, int] | None = None
        # Places and bytes of what makes up `unthrottled`, in order.
        self._unthrottled: deque[tuple[int, int]] = deque()

    def put(self, data: bytes) -> int:
        """Add bytes behind what waits; return their place, for :meth:`holds` and :meth:`withdraw`."""
        self._parts.append(data)
        self.size += len(data)
        return self._first + len(self._parts) - 1

    def put_unthrottled(self, data: bytes, now: float) -> int:
        """As :meth:`put`, for a caller that does not wait, and whose data may be dropped without harm to the rest."""
        place = self.put(data)
        self._unthrottled.append((place, len(data)))
        self._count(len(data))
        if self.unthrottled > OUTBOX_LIMIT and self.behind_since is None:
            self.behind_since = now
        return place

    def drop_oldest(self, limit: int) -> None:
        """Drop the oldest of what was put by :meth:`put_unthrottled`, while more than *limit* bytes of that wait."""
        for place, _ in list(self._unthrottled):
            if self.unthrottled <= limit:
                return
            self.withdraw(place)  # but for one of which some was sent already

    def _count(self, change: int) -> None:
        self.unthrottled += change
        if self.unthrottled <= OUTBOX_LIMIT:
            self.behind_since = None

    def holds(self, place: int) -> bool:
        """Return whether nothing of what was put in *place* was sent yet."""
        return place > self._first or (place == self._first and not self._cut)

    def withdraw(self, place: int) -> bool:
        """Remove what was put in *place*, once. Returns False where some of it was sent: then it stays."""
        if not self.holds(place):
            return False
        # What is left of a dropped outbox is withdrawn likewise: it will not be sent.
        index = place - self._first
        size = len(self._parts[index])
        self.size -= size
        # Its place stays, empty: the places of what is behind it are known to others.
        self._parts[index] = b""
        if (place, size) in self._unthrottled:
            self._unthrottled.remove((place, size))
            self._count(-size)
        if not self.size:
            self._clear()
        # Else each message that is dropped would leave one behind.
        while self._parts and not self._parts[0]:
            self._parts.popleft()
            self._first += 1
            self._cut = False
        return True

    def dequeue(self, limit: int) -> bytes:
        """Remove and return, as one message, the first *limit* bytes of what waits, at least 1, or all that does."""
        parts = self._parts
        if self.size <= limit:
            # A single part is not copied: it is the usual case, and may be large.
            first = parts[0] if len(parts) == 1 else None
            data = first if isinstance(first, bytes) else b"".join(parts)
            self._clear()
        else:
            pieces: list[bytes | memoryview] = []
            left = limit
            while left:
                part = parts.popleft()
                self._first += 1
                self._cut = False
                if len(part) > left:
                    part = memoryview(part)  # so that cutting a large one up copies it once in all
                    parts.appendleft(part[left:])
                    self._first -= 1
                    self._cut = True
                    part = part[:left]
                pieces.append(part)
                left -= len(part)
            data = b"".join(pieces)
            while self._unthrottled and self._unthrottled[0][0] < self._first:
                self._count(-self._unthrottled.popleft()[1])
        self.size -= len(data)
        return data

    def _clear(self) -> None:
        self._first += len(self._parts)
        self._cut = False
        self._parts.clear()
        if self.unthrottled:
            self._unthrottled.clear()
            self._count(-self.unthrottled)

    @property
    def idle(self) -> bool:
        """True when nothing waits."""
        return not self.size and (self.closed or not self.closing)
