"""The questions of whoever pings: does the server move, and was all that it sent seen, and told? No I/O, no timers.

Of several processes on one handler entry each gets some of the pongs. Who did not answer a ping can only be told when
each of them has said what came to it. A *census* finds that out: Mongrel2 is sent some empty messages to numbers that
no connection has, behind the pings. For each it gives a notice to one of the processes, in turn (probed): an *echo*.
Whoever gets one tells the leader so, with the pongs that came to it before. When all echoes are back, some from each
process that is known,

* the server moves, and has received the pings;
* each process has told of every pong that Mongrel2 gave it before its echo: messages to one process keep their order;
* nobody pulls who is not known here, or tells nothing, as its echoes would be missing.

While an echo is missing nobody may be judged. One that went to a process which was killed a moment ago does not come at
all, so after a while others are sent, all of them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from math import inf
from typing import NamedTuple

__all__ = ["Census", "Pace"]


class Pace(NamedTuple):
    """Seconds of a :class:`Census`.

    Attributes:
        spacing: Between two, at the least: a process tells the leader once for each.
        patience: Without an end, after which it is not known whether it will come.
        retry: After which echoes are sent anew.
    """

    spacing: float
    patience: float
    retry: float


class Census:
    """One census at a time; see the module. All times are seconds on one clock.

    Args:
        numbers: For echoes.
        send_echo: Has an echo made with a number.
        members: Returns the names of all processes that are known, this one included.
        pace: How long things take.

    Attributes:
        questions, over, covered: How many were begun; the last that is over; the last that ended as it should.
        known: The last one has ended in time; ``None`` before the first, and ``False`` while one does not.
    """

    def __init__(
        self,
        numbers: range,
        *,
        send_echo: Callable[[str], None],
        members: Callable[[], Iterable[str]],
        pace: Pace,
    ) -> None:
        self.questions = self.over = self.covered = 0
        self.known: bool | None = None
        self._numbers = numbers
        self._next_number = cycle(numbers).__next__
        self._send_echo = send_echo
        self._members = members
        self._pace = pace
        self._wanted = False
        self._running = False
        self._missing: set[str] = set()
        self._told: set[str] = set()
        self._began = self._sent_at = -inf

    @property
    def rules(self) -> Census:
        """Where the counts are; see :class:`greentx.handler.sharing.Proofs`."""
        return self

    @property
    def waits_for(self) -> str:
        """What is missing, in words."""
        if self._missing:
            return f"{len(self._missing)} echoes are missing"
        return f"no echo comes from {', '.join(sorted(set(self._members()) - self._told))}"

    def ask_behind(self) -> int:
        """Have one begun behind all that was sent so far; return its number. One that is under way ends first."""
        self._wanted = True
        return self.questions + 1

    def probe(self) -> None:
        """Nothing: one that does not end is tried again by :meth:`tick`."""

    def _send_echoes(self, now: float) -> None:
        # Each process gets its turn twice, and so would one that is not known here.
        numbers = [str(self._next_number()) for _ in range(2 * (len(set(self._members())) + 1))]
        # All are known before the first is sent: sending may find that the server has gone.
        self._missing = set(numbers)
        self._told.clear()
        self._sent_at = now
        for number in numbers:
            self._send_echo(number)

    def is_ours(self, number: str) -> bool:
        """Whether an echo is one of these, maybe an old one."""
        return int(number) in self._numbers

    def echo(self, number: str, name: str) -> None:
        """An echo has come to process *name*, and all pongs that came to it before are known here."""
        if number in self._missing:
            self._missing.remove(number)
            self._told.add(name)
            self.look()

    def look(self) -> None:
        """See whether it has ended: one that was waited for may have gone."""
        if self._running and not self._missing and self._told.issuperset(self._members()):
            self._running = False
            self.known = True
            self.over = self.covered = self.questions

    def tick(self, now: float) -> bool:
        """Time has passed: begin what is wanted. Returns True where it became unknown just now whether it will end."""
        if not self._running:
            if self._wanted and now - self._began >= self._pace.spacing:
                self._wanted = False
                self._running = True
                self._began = now
                self.questions += 1
                self._send_echoes(now)
            return False
        if now - self._sent_at >= self._pace.retry:
            self._send_echoes(now)
        if self.known is not False and now - self._began >= self._pace.patience:
            self.known = False
            return True
        return False

    def forget(self) -> None:
        """Nobody is asked any more: somebody else asks, or nobody can."""
        self._missing.clear()
        self._wanted = self._running = False
        self._began = -inf
        self.known = None
        self.over = self.questions
