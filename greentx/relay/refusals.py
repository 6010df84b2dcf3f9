"""Nodes that a relay does not let in: the relay says so now and then, the Node tries more seldom."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..transport import Context

__all__ = ["MAX_REASON", "Complaints", "Refused", "reason_of"]

#: Bytes of a reason that is told.
MAX_REASON = 500

# How often the log names one peer, and how many peers in that time.
_AGAIN_SECONDS = 60.0
_MAX_NAMES = 1000

# A Node that was refused connects again after so long, doubled each time up to so much: both sides pay for each.
_FIRST_SECONDS = 0.1
_LAST_SECONDS = 5.0


def reason_of(payload: bytes) -> str:
    """Return what a relay gives for a reason, as text for one line of the log."""
    text = payload[:MAX_REASON].decode(errors="backslashreplace")
    return "".join(character if character.isprintable() else "?" for character in text)


class Complaints:
    """Messages of peers that meant nothing. Each counts.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count = 0
        # When each was named, the latest last.
        self._named: OrderedDict[str, float] = OrderedDict()

    def is_due(self, name: str, now: float) -> bool:
        """Return whether the log is to name a peer that no session knows; it does so once a minute."""
        named = self._named
        while named and next(iter(named.values())) <= now - _AGAIN_SECONDS:
            named.popitem(last=False)
        if name in named or len(named) >= _MAX_NAMES:
            return False
        named[name] = now
        return True


class Refused:
    """What a Node does that its relay does not let in: it says why, and waits longer each time.

    All methods belong to the hub's thread.

    Args:
        context: Owner of the timer.
        connect: Connects again.

    Attributes:
        why: What the relay said last; ``""`` where it lets the Node in.
    """

    def __init__(self, context: Context, connect: Callable[[], object]) -> None:
        self.why = ""
        self._context = context
        self._connect = connect
        self._seconds = _FIRST_SECONDS
        self._timer: Any = context.timer(_FIRST_SECONDS)
        self._stopped = False

    def refused(self, reason: bytes) -> bool:
        """The relay has refused us; connect again later. Returns whether it was not known why."""
        before, self.why = self.why, reason_of(reason) or "it does not say why"
        if self._stopped:
            return False
        self._context.unwatch(self._timer)
        self._timer = self._context.timer(self._seconds)
        self._timer.start(self._connect)
        self._seconds = min(2 * self._seconds, _LAST_SECONDS)
        return before != self.why

    def let_in(self) -> None:
        """A session has begun."""
        self.why = ""
        self._seconds = _FIRST_SECONDS

    def stop(self) -> None:
        """Connect no more. Safe to call twice."""
        self._stopped = True
        self._context.unwatch(self._timer)
