"""How long a Node may answer: its relay gives what it had to others when it cannot be reached. No I/O.

Each lease says what the relay's clock showed when it was sent: one that lay in a queue while this process stood still
is as old as it is. Two clocks are compared by questions: what the relay's clock showed was read after we asked.
"""

from __future__ import annotations

from collections import deque

from .messages import LEASE_SECONDS

__all__ = ["Lease"]

# Answers of the relay that count: clocks drift apart, by less than a millisecond in so many seconds.
_COMPARISONS = 8


class Lease:
    """The lease of one session."""

    __slots__ = ("_at", "_offsets", "_until")

    def __init__(self) -> None:
        self._offsets: deque[float] = deque(maxlen=_COMPARISONS)
        self._at = 0
        self._until = float("-inf")

    def compared(self, asked: float, at: int) -> None:
        """The relay's clock showed *at* (milliseconds) at some time after *asked* here (``time.monotonic()``)."""
        self._offsets.append(asked - at / 1000)
        self.renewed(at)

    def renewed(self, at: int) -> None:
        """The relay sent a lease when its clock showed *at*."""
        self._at = max(self._at, at)
        if self._offsets:
            # The latest that is sure: the question that was answered fastest.
            self._until = max(self._offsets) + self._at / 1000 + LEASE_SECONDS

    def holds(self, now: float) -> bool:
        """Whether answers may go out now."""
        return now < self._until
