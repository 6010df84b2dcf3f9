"""A bounded memory of what was decoded lately, on the path of every message. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

__all__ = ["MAX_KEY_SIZE", "MAX_MISSES", "Memo", "SharedHeaders"]

T = TypeVar("T")

#: Longer keys are not kept: one would take the memory of many.
MAX_KEY_SIZE = 2048

#: Where so many in a row were not known, only one in sixteen is looked up.
MAX_MISSES = 1024


class SharedHeaders:
    """Headers that several requests have in common, all of theirs or some, and what was made of them.

    Attributes:
        raw: As they were decoded; nobody may change them.
        environ: What :mod:`greentx.wsgi.environ` made of them; ``None`` until then.
    """

    __slots__ = ("environ", "raw")

    def __init__(self, raw: Mapping[Any, Any]) -> None:
        self.raw = raw
        self.environ: dict[str, str] | None = None


class Memo(Generic[T]):
    """What bytes were decoded to, of those that came twice: keeping what is always different cost 3 us each.

    Args:
        limit: How many are kept, and how many are remembered to have come once.

    Attributes:
        known: The values, by the bytes. They are shared: nobody may change them.
        misses: How many in a row were looked up in vain; kept by who looks.
    """

    __slots__ = ("_limit", "_seen", "known", "misses")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[int] = set()
        self.known: dict[bytes, T] = {}
        self.misses = 0

    def still_tried(self) -> bool:
        """Return whether to look, after :data:`MAX_MISSES` in vain."""
        self.misses += 1
        return not self.misses % 16

    def comes_again(self, key: bytes) -> bool:
        """Return whether *key*, which is not known, came before: then the caller keeps it, for which there is room."""
        if len(key) > MAX_KEY_SIZE:
            return False
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= self._limit:
                self._seen.clear()
            self._seen.add(mark)
            return False
        if len(self.known) >= self._limit:
            self.known.clear()
        return True
