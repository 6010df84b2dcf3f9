"""The only caches, on the path of every message: two policies, and no third one. No I/O here.

Both are bounded, since clients choose most of the keys: nothing that they send may fill the memory, nor keep what is
useful out. What is dropped when one is full is not what was used longest ago: to note when each entry was used would
cost more, on every hit, than to learn some entries again costs now and then.

* :class:`Memo` keeps what was seen twice, within so many bytes. It is for large keys, many of which come once only: the
  headers that all messages of a WebSocket repeat. When it is full it drops a quarter.
* :class:`SmallMap` keeps everything at once. It is for small keys that come again nearly always: header names, status
  lines, addresses. :class:`SmallSet` is the same, for keys that have no value. When they are full they start anew.
"""

from __future__ import annotations

from collections.abc import Collection
from random import random
from typing import Generic, TypeVar

__all__ = ["MAX_KEY_SIZE", "Memo", "SmallMap", "SmallSet", "rough_size"]

K = TypeVar("K")
V = TypeVar("V")

#: Longer keys are not kept: one would need the memory of many.
MAX_KEY_SIZE = 2048

# So many are remembered to have come once.
_MAX_SEEN = 16384
# Of those that come while there is no room for all.
_SHARE = 1 / 8


class Memo(Generic[V]):
    """What headers were decoded to, of those that came twice: keeping what is always different cost 3 us each.

    Args:
        limit: How many bytes all of them may take, about; see :func:`rough_size`.

    Attributes:
        known: The values, by the encoded headers. They are shared: nobody may change them.
    """

    __slots__ = ("_held", "_limit", "_seen", "_was_full", "known")

    # A hit is one lookup in `known` by the caller and no call of ours: it is on the path of every message.

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._was_full = False
        self._seen: set[int] = set()
        self.known: dict[bytes, V] = {}

    def keep(self, key: bytes, value: V) -> None:
        """Keep *value* if *key*, which is not known, came before; once it was full, only now and then."""
        # Where more come in turn than there is room for, to take each in and drop another one costs more than it saves.
        # Which one comes often is taken in soon.
        if len(key) > MAX_KEY_SIZE or (self._was_full and random() > _SHARE):
            return
        # The hash is enough: two keys that share one are kept a message too early, and nothing is mistaken.
        mark = hash(key)
        if mark in self._seen:
            size = rough_size(key)
            if self._held + size > self._limit:
                self._drop_some()
            self._held += size
            self.known[key] = value
        else:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen.add(mark)

    def _drop_some(self) -> None:
        self._was_full = True
        # One in four, whatever its age: of those that come in turn the oldest is the very one that comes next.
        for key in list(self.known)[::4]:
            # Another native thread may do the same just now.
            if self.known.pop(key, None) is not None:
                self._held -= rough_size(key)


def rough_size(key: bytes) -> int:
    """Return about how many bytes encoded headers take together with the map that they were decoded to.

    Both hold the text, and each name and value is an object: behind each stands a comma, or a colon in JSON.
    """
    return 300 + 2 * len(key) + 45 * (key.count(b",") + key.count(b'":"'))


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
        # All go: the oldest ones, which stand first in a dict, are often the most useful ones.
        if len(self) >= self._limit:
            self.clear()
        self[key] = value
        return value


class SmallSet(set[K]):
    """A ``set`` of at most *limit* members, which starts anew when it is full; put in with :meth:`keep` only.

    Args:
        limit: How many members there may be, those that stay among them.
        always: Members that stay.
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
        # Taken out by name and not all at once: those that stay are there at every moment.
        self.intersection_update(self._always)
