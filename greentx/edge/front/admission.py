"""Who may connect, without I/O: so many connections in all, and so many of one address."""

from __future__ import annotations

from collections import Counter

__all__ = ["Admission"]


class Admission:
    """Counts the connections that are there.

    Args:
        most: In all.
        most_per_address: Of one client address; ``None`` is as many as there may be in all.
    """

    def __init__(self, most: int, most_per_address: int | None = None) -> None:
        self._most = most
        self._most_per_address = most if most_per_address is None else most_per_address
        self._count = 0
        self._by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def enter(self, address: str) -> bool:
        """Count one more; False where it may not be, which then is not counted."""
        if self._count >= self._most or self._by_address[address] >= self._most_per_address:
            return False
        self._count += 1
        self._by_address[address] += 1
        return True

    def leave(self, address: str) -> None:
        """One that was let in has gone."""
        self._count -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
