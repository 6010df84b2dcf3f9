"""The only caches, on the path of every message: two policies, and no third one. No I/O here.

Both are bounded, since clients choose most of the keys: nothing that they send may fill the memory, nor keep what is
useful out. Eviction is by starting anew when full, not by age: to note when each entry was used last would cost more,
on every hit, than to learn a thousand entries again costs now and then.

* :class:`Memo` keeps what was seen twice. It is for large keys, many of which come once only: the headers that all
  messages of a WebSocket repeat.
* :class:`SmallMap` keeps everything at once. It is for small keys that come again nearly always: header names, status
  lines, addresses. :class:`SmallSet` is the same, for keys that have no value.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

__all__ = ["MAX_KEY_SIZE", "Memo", "SmallMap", "SmallSet"]

K = TypeVar("K")
V = TypeVar("V")

#: Longer keys are not kept: one would need the memory of many.
MAX_KEY_SIZE = 2048


class Memo(Generic[V]):
    """What bytes were decoded to, of those that came twice: keeping what is always different cost 3 us each.

    Args:
        limit: How many are kept, and how many are remembered to have come once.

    Attributes:
        known: The values, by the bytes. They are shared: nobody may change them.
    """

    __slots__ = ("_limit", "_seen", "known")

    # A hit is one lookup in `known` by the caller and no call of ours: it is on the path of every message.

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[int] = set()
        self.known: dict[bytes, V] = {}

    def seen_before(self, key: bytes) -> bool:
        """Return whether *key*, which is not known, came before: then the caller keeps it, for which there is room."""
        if len(key) > MAX_KEY_SIZE:
            return False
        # The hash is enough: two keys that share one are kept a message too early, and nothing is mistaken.
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= self._limit:
                self._seen.clear()
            self._seen.add(mark)
            return False
        if len(self.known) >= self._limit:
            self.known.clear()
        return True


class SmallMap(dict[K, V]):
    """A ``dict`` of at most *limit* entries, which starts anew when it is full.

    Read it with ``get``, which is the one of ``dict``; put in with :meth:`keep` only.

    Args:
        limit: How many entries there may be.
    """

    __slots__ = ("_limit",)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def keep(self, key: K, value: V) -> V:
        """Put one in and return *value*. Of keys from outside the caller leaves out those that are large."""
        # All of it: dict order is the order of keeping, and the oldest key is often the most useful one.
        if len(self) >= self._limit:
            self.clear()
        self[key] = value
        return value


class SmallSet(set[K]):
    """A ``set`` of at most *limit* members, which starts anew when it is full; put in with :meth:`keep` only.

    Args:
        limit: How many members there may be, those for ever among them.
        always: Members for ever.
    """

    __slots__ = ("_always", "_limit")

    def __init__(self, limit: int, always: Collection[K] = ()) -> None:
        super().__init__(always)
        self._limit = limit
        self._always = always

    def keep(self, key: K) -> None:
        """Put one in. Of keys from outside the caller leaves out those that are large."""
        if len(self) >= self._limit:
            self.clear()
        self.add(key)

    def clear(self) -> None:
        """Start anew."""
        # Taken out by name and not all at once: those for ever are there at every moment.
        self.intersection_update(self._always)
