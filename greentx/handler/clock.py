"""What says the time in answers, built once a second."""

from __future__ import annotations

from time import time

from ..protocol.http1 import TEXT_TYPE, format_date, plain_start

__all__ = ["Clock", "clock", "current_date"]


class Clock:
    """The bytes that belong to one second. Who reads them looks first whether that second still is.

    Attributes:
        since, until: The second, as ``time.time()`` has it; a clock that was set back is outside of it, too.
        date: The value of a ``Date`` header.
        plain_start: What a plain answer begins with, see :func:`greentx.protocol.http1.plain_start`.
        text_start: The same for one whose body was text.
    """

    __slots__ = ("date", "plain_start", "since", "text_start", "until")

    def __init__(self) -> None:
        self.since = self.until = 0.0
        self.date = self.plain_start = self.text_start = b""

    def tick(self, now: float) -> None:
        """Go on to the second that *now* is in."""
        self.date = format_date(now).encode()
        self.plain_start = plain_start(self.date)
        self.text_start = plain_start(self.date, TEXT_TYPE)
        # Last: another thread may look in between.
        self.since = now // 1
        self.until = self.since + 1


#: The one that all answers are given by.
clock = Clock()


def current_date() -> bytes:
    """Return the value of a ``Date`` header for now."""
    now = time()
    if not clock.since <= now < clock.until:
        clock.tick(now)
    return clock.date
