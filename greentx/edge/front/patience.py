"""How long a browser connection may take, without a clock of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Patience", "Times"]


@dataclass(frozen=True)
class Times:
    """Seconds that things may take.

    Attributes:
        no_handler: A request waits so long for a handler to be there; then the answer is 503.
        head: For a head, from its first byte on, and between two pieces of a body; then the answer is 408.
        idle: Nothing is heard or written, and no handler keeps the connection alive; ``None`` for any time.
        half_close: A client that has said that it sends nothing more waits so long for the next byte of its answer.
        linger: A client that was told the end has so long to end, too.
        min_rate: Bytes a second of a body, behind its first ``head`` seconds.
    """

    no_handler: float = 30.0
    head: float = 30.0
    idle: float | None = 120.0
    half_close: float = 1.0
    linger: float = 2.0
    min_rate: int = 300


class Patience:
    """The deadline of one connection.

    Args:
        now: As in all methods, what ``time.monotonic()`` says.

    Attributes:
        deadline: When something has to be done about it.
        times: As given.
    """

    __slots__ = ("_since", "_size", "_written", "deadline", "times")

    def __init__(self, times: Times, now: float) -> None:
        self.times = times
        self.deadline = now + (times.head if times.idle is None else min(times.head, times.idle))
        # When the first byte of the request in hand came, and how many have.
        self._since = now
        self._size = 0
        self._written = 0

    def begin(self, size: int, now: float) -> None:
        """The first bytes of a request have come."""
        self._since = now
        self._size = size
        self.deadline = now + self.times.head

    def more(self, size: int, now: float, *, is_body: bool) -> None:
        """So many more bytes of it have come; a head gets no more time by them."""
        self._size += size
        if is_body:
            self.deadline = min(now, self._since + self._size / self.times.min_rate) + self.times.head

    def rest(self, now: float) -> None:
        """Something has happened, and nothing has to happen soon."""
        idle = self.times.idle
        self.deadline = math.inf if idle is None else now + idle

    def forget(self) -> None:
        """Somebody else looks after the time."""
        self.deadline = math.inf

    def linger(self, now: float) -> None:
        """The client was told the end."""
        self.deadline = now + self.times.linger

    def moves(self, written: int, now: float) -> bool:
        """The deadline has passed; go on if more was written to the client than when this was asked before."""
        if written == self._written:
            return False
        self._written = written
        self.rest(now)
        return True
