"""What all connections together may keep of bodies and messages that are not whole, without I/O."""

from __future__ import annotations

__all__ = ["FREE_BYTES", "Budget"]

#: What each connection may keep whatever the others do: so that ordinary requests pass where some clients send much.
FREE_BYTES = 65536


class Budget:
    """Counts bytes that are kept in memory.

    Args:
        most: Of all connections, beyond the first :data:`FREE_BYTES` of each.
    """

    __slots__ = ("_most", "used")

    def __init__(self, most: int) -> None:
        self._most = most
        self.used = 0

    def change(self, before: int, now: int) -> bool:
        """One that has kept *before* bytes keeps *now*; False where that is too much, and then it still has *before*.

        Less than before is never too much.
        """
        used = self.used + max(0, now - FREE_BYTES) - max(0, before - FREE_BYTES)
        if now > before and used > self._most:
            return False
        self.used = used
        return True
