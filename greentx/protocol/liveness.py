"""A clock that stands still while a server does, for what is given its clients to answer in.

Nothing tells of a server that was stopped, or had no processor, and goes on later. What tells that it moves is that it
answers: as long as it does, every now and then, time counts; a longer silence counts as little as one that is usual.
"""

from __future__ import annotations

__all__ = ["ServerClock"]


class ServerClock:
    """Counts the seconds in which a server was moving. All times are seconds on one clock that never goes back.

    Args:
        step: The longest time between two signs of life of a server that moves.

    Attributes:
        stood: For how long it stood still, in all.
    """

    __slots__ = ("_moved_at", "_step", "stood")

    def __init__(self, step: float) -> None:
        self.stood = 0.0
        self._step = step
        self._moved_at: float | None = None

    def moves(self, now: float) -> None:
        """It gave a sign of life."""
        if self._moved_at is not None:
            self.stood += max(0.0, now - self._moved_at - self._step)
        self._moved_at = now

    def time(self, now: float) -> float:
        """Return what this clock shows: it runs with *now*, for a step at the most without a sign of life."""
        if self._moved_at is not None:
            now = min(now, self._moved_at + self._step)
        return now - self.stood
