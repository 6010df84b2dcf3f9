"""Large messages, where the server does not tell what browsers read."""

from __future__ import annotations

from .limits import READ_RATE

__all__ = ["LargeMessages"]

# Connections that were sent one, before those are forgotten that have read it.
_SWEEP = 1024


class LargeMessages:
    """Knows when each browser should have read the large messages that it was sent, by our estimate."""

    __slots__ = ("_read_at", "_sweep_at")

    def __init__(self) -> None:
        # Of each of the last few, in order.
        self._read_at: dict[str, list[float]] = {}
        self._sweep_at = _SWEEP

    def under_way(self, conn_id: str, now: float) -> int:
        """Return how many the browser should not have read yet.

        Args:
            now: A clock's seconds.
        """
        read_at = self._read_at.get(conn_id)
        if not read_at:
            return 0
        while read_at and read_at[0] <= now:
            del read_at[0]
        return len(read_at)

    def sent(self, conn_id: str, size: int, now: float) -> None:
        """One of *size* bytes was sent."""
        read_at = self._read_at.get(conn_id)
        if read_at is None:
            # What has passed says nothing any more.
            if len(self._read_at) >= self._sweep_at:
                self._read_at = {one: times for one, times in self._read_at.items() if times and times[-1] > now}
                self._sweep_at = max(_SWEEP, 2 * len(self._read_at))
            read_at = self._read_at[conn_id] = []
        # The browser reads one after the other; an idle one begins now.
        read_at.append((max(now, read_at[-1]) if read_at else now) + size / READ_RATE)

    def forget(self, conn_id: str) -> None:
        """Forget a connection."""
        self._read_at.pop(conn_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._read_at.clear()
