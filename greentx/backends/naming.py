"""How processes that pull from one handler entry agree on a name for a life of its server.

Mongrel2 knows no name of a life, so they show each other that they are connected to the same Mongrel2, now: one sends
it empty messages to numbers that no connection has, and says so; Mongrel2 gives notice of them to the processes in
turn, and whoever gets such an *echo* says so, with the name by which it knows the life. Two that do not know one yet
choose the smaller of the names that they thought of. Where nobody speaks up within :data:`ASK_SECONDS`, the life has
the name that this process thought of. Two groups that did not find each other (Redis was away from one) do so by the
echoes of their leaders; the one whose name is the greater one moves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..protocol.flow import first_number
from .changes import Changes
from .records import life_name
from .setting import Setting

if TYPE_CHECKING:
    from ..handler.connection import Connection

__all__ = ["ASK_SECONDS", "Naming"]

#: How long a process asks others for the name of a life.
ASK_SECONDS = 1.0

# So many numbers at a time, so often.
_ASK_NUMBERS = 8
_ASK_AGAIN_SECONDS = 0.25

# Echoes and askers that are remembered, as either may be heard of first.
_MAX_REMEMBERED = 256


class Naming:
    """What one process knows of that.

    Args:
        setting: Of the process.
        connection: The connection set.
        changes: To speak to the others.
        join: Called with the name of the life of the present server.
    """

    def __init__(self, setting: Setting, connection: Connection, changes: Changes, join: Callable[[str], None]) -> None:
        self._setting = setting
        self._connection = connection
        self._changes = changes
        self._join = join
        self._candidate = ""
        self._until = self._again_at = 0.0
        self._number = first_number()
        # What came here, and who asked for it: the two are put together, whichever comes first.
        self._echoes: OrderedDict[str, None] = OrderedDict()
        self._askers: OrderedDict[str, tuple[range, str]] = OrderedDict()

    # -- this process asks --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Find out; *join* is called, unless :meth:`stop` is before."""
        self._candidate = life_name()
        self._until = monotonic() + ASK_SECONDS
        self._ask()

    def stop(self) -> None:
        """It is known, or there is nobody to ask."""
        self._candidate = ""

    def _ask(self) -> None:
        self._again_at = monotonic() + _ASK_AGAIN_SECONDS
        candidate, first = self._candidate, self._number
        self._number += _ASK_NUMBERS

        def is_out(receivers: Any) -> None:
            if self._candidate != candidate or not self._connection.link.subscribed:
                return
            if receivers <= 1:
                self._found(candidate)  # nobody else is there
                return
            # Only now, so that others know whose they are.
            for number in range(first, first + _ASK_NUMBERS):
                self._connection.link.writer.receipts.nudge(str(number))

        self._changes.publish(candidate, [["ask", first, _ASK_NUMBERS]], then=is_out)

    def _found(self, life: str) -> None:
        self._candidate = ""
        self._join(life)

    def tick(self, now: float) -> None:
        """Ask again, or do without an answer."""
        if self._candidate:
            if now >= self._until:
                self._found(self._candidate)
            elif now >= self._again_at:
                self._ask()

    def seen_by(self, life: str, known: bool) -> None:
        """Somebody is connected to the same server: it got an echo of ours, or we one of its.

        Args:
            life: How it calls the life.
            known: It does not ask itself.
        """
        present = self._changes.records
        if self._candidate:
            self._found(life if known else min(life, self._candidate))
        elif known and present is not None and life < present.life:
            # So do the others in our life, by themselves; until then they take over what is ours.
            self._join(life)

    # -- others ask ---------------------------------------------------------------------------------------------------

    def asked(self, name: str, first: int, count: int, life: str = "") -> None:
        """Process *name*, which is not in our life, has echoes made with these numbers; it is in *life*, if in any."""
        numbers = range(first, first + count)
        self._askers[name] = (numbers, life)
        self._askers.move_to_end(name)
        if len(self._askers) > _MAX_REMEMBERED:
            self._askers.popitem(last=False)
        if self.take(numbers):
            self._seen(name, life)

    def echo(self, number: str) -> None:
        """An echo has come here that the leader of our life did not ask for."""
        for name, (numbers, life) in self._askers.items():
            if int(number) in numbers:
                self._seen(name, life)
                return
        self._echoes[number] = None
        if len(self._echoes) > _MAX_REMEMBERED:
            self._echoes.popitem(last=False)

    def take(self, numbers: range) -> list[str]:
        """Return the echoes with these numbers that came before anybody was known to have asked for them, once."""
        found = [number for number in self._echoes if int(number) in numbers]
        for number in found:
            del self._echoes[number]
        return found

    def _seen(self, name: str, life: str) -> None:
        """Process *name* is connected to the same server."""
        present = self._changes.records
        ours = self._candidate or (present.life if present is not None else "")
        if ours:
            self._changes.publish(ours, [["saw", name, not self._candidate]])
        if life:
            self.seen_by(life, True)
