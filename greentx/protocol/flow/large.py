"""Large messages to connections without an outbox, where the server does not tell what browsers read."""

from __future__ import annotations

from .outbox import reading_seconds
from .pacer import Pacer

__all__ = ["LargeMessages"]

# Connections that were sent one, before those are forgotten that have read it.
_SWEEP = 1024


class LargeMessages:
    """Knows when each browser should have read the large message that it was sent, by our estimate.

    Args:
        pacer: Counts messages.
    """

    __slots__ = ("_pacer", "_read_at", "_sweep_at")

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._read_at: dict[str, float] = {}
        self._sweep_at = _SWEEP

    def allows(self, conn_id: str, size: int, now: float) -> bool:
        """Return whether a message may be sent now, and count it if so: one that the browser should have read by then.

        Args:
            size: Its bytes.
            now: A clock's seconds.
        """
        if self._read_at.get(conn_id, 0.0) > now or not self._pacer.allows(conn_id):
            return False
        # What has passed says nothing any more.
        if len(self._read_at) >= self._sweep_at:
            self._read_at = {one: due for one, due in self._read_at.items() if due > now}
            self._sweep_at = max(_SWEEP, 2 * len(self._read_at))
        self._read_at[conn_id] = now + reading_seconds(size)
        return True

    def forget(self, conn_id: str) -> float | None:
        """Forget a connection; return when it should have read the last one, ``None`` without any."""
        return self._read_at.pop(conn_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._read_at.clear()
