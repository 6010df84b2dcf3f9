"""Which Node leaves when: new ones first, then the old ones, one by one.

A deploy replaces all Nodes at once: the new ones start, and the old ones are told to go. An old one that went before a
new one is there would leave requests and WebSockets waiting; if all went at the same moment, all WebSockets would move
in that moment. So a Node asks, and goes on to serve until it is told that it may leave. Its own patience bounds that.

::

    serves --asks--> waits --may leave--> leaves --gone
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["GATHER_SECONDS", "PACE_SECONDS", "Departures"]

#: So long after one has asked the others that are replaced with it have asked, too: until then they look as if they
#: could stand in for it.
GATHER_SECONDS = 0.5

#: The next one may leave when the one before has gone, and after so long in any case: it may have a long request.
PACE_SECONDS = 1.0

Who = TypeVar("Who")


class Departures(Generic[Who]):
    """Decides it. No I/O; time is what the caller says.

    Attributes:
        ending: All may leave, since the relay ends.
    """

    def __init__(self) -> None:
        self.ending = False
        self._staying: set[Who] = set()
        # In the order in which they asked, with the time from which they may leave where others are there; None for
        # those that need nobody.
        self._waiting: dict[Who, float | None] = {}
        self._leaving: set[Who] = set()
        # How many were let go since nobody waited, each of which a new one has to stand in for.
        self._let_go = 0
        self._last = float("-inf")

    def came(self, who: Who) -> None:
        """It is there, and serves."""
        self._staying.add(who)

    def asks(self, who: Who, now: float, *, replaced: bool) -> None:
        """It would like to leave.

        Args:
            replaced: Somebody comes in its place, who has to be there first; else others may be there or not.
        """
        if who in self._staying:
            self._staying.discard(who)
            self._waiting[who] = now + GATHER_SECONDS if replaced else None

    def leaves(self, who: Who) -> None:
        """It leaves, whether it asked or not."""
        self._staying.discard(who)
        self._waiting.pop(who, None)
        self._leaving.add(who)

    def gone(self, who: Who) -> None:
        """It has gone, in whatever way."""
        self._staying.discard(who)
        self._waiting.pop(who, None)
        self._leaving.discard(who)

    def may_leave(self, now: float) -> list[Who]:
        """Return those that may leave now, each once."""
        told = []
        while self._waiting:
            who = next((who for who, earliest in self._waiting.items() if self._may(earliest, now)), None)
            if who is None:
                break
            del self._waiting[who]
            self._leaving.add(who)
            self._let_go += 1
            self._last = now
            told.append(who)
        if not self._waiting:
            self._let_go = 0
        return told

    @property
    def waits_for_time(self) -> bool:
        """Whether time alone may let the next one go."""
        return bool(self._waiting)

    def _may(self, earliest: float | None, now: float) -> bool:
        if self.ending:
            return True
        if self._leaving and now < self._last + PACE_SECONDS:
            return False
        # As many as there were, as long as new ones come.
        return earliest is None or (now >= earliest and len(self._staying) > self._let_go)
