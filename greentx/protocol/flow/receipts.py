"""The rules of receipts: which number is asked for, what a notice means, when none come, how often to ask.

    nothing awaited --ask--> a number awaited --its notice--> confirmed: nothing awaited
                        |                     --overdue--> another number, or time from now on
                        +--> time awaited ----it is over--> confirmed: nothing awaited

A message to a connection that nobody has is answered with a notice, behind everything sent before (probed). Where a
server gives none, or its notices go to others, time takes their place.
"""

from __future__ import annotations

from enum import Enum
from random import randrange

from .limits import NOBODY, NUMBERS, RECEIPT_TRIES
from .pacer import Pacer

__all__ = ["TIME", "Overdue", "ReceiptRules", "first_number", "range_of"]

#: In the place of a number: it is not a receipt that is waited for, but time.
TIME = "time"

_DIGITS = len(str(NOBODY))
# 140 million of the 147 million numbers from NOBODY to 2**31 - 1: two processes meet once in 140,000.
_RANGES = 140_000


def first_number() -> int:
    """Return the first of :data:`NUMBERS` numbers that nobody else uses."""
    return NOBODY + NUMBERS * randrange(_RANGES)


def range_of(conn_id: str) -> int | None:
    """Return the first of the numbers of one process that *conn_id* is among; ``None`` where no process asks by it."""
    if len(conn_id) != _DIGITS or int(conn_id) < NOBODY:
        return None
    number = int(conn_id)
    return number - (number - NOBODY) % NUMBERS


class Overdue(Enum):
    """What to do where a receipt did not come in time."""

    WAIT = "what asks for it is still on our side"
    ASK_AGAIN = "send a message to the number that is awaited now"
    UNSEEN = "it could not be seen; go on as if it had come"
    OTHERS = "others pull from the same endpoint, and get our receipts; time paces from now on"
    NONE_COME = "the server gives no receipts; time paces from now on"


class ReceiptRules:
    """Decides for one writer, which asks for one receipt at a time.

    Args:
        pacer: Told of what was asked for, and of what is there.
        possible: Receipts can come in here.

    Attributes:
        awaited: The number that is waited for; :data:`TIME`; or empty where nothing is.
        asked: How many messages were sent to ask.
        questions: How many receipts were asked for, whatever number of messages each took.
        over: Which of these questions is over, the first being 1: its receipt came, or is not waited for any more.
        covered: The last one that was answered: by its receipt or, where time takes their place, by that.
        known: The server gives receipts; ``None`` until that is known.
        first: The first of the numbers that are ours.
        missed: Numbers that were asked for before the server was known, and did not come in time.
        others_seen: A receipt that somebody else asked for came while we wait for ours.
    """

    __slots__ = (
        "_pacer",
        "_possible",
        "_tries",
        "asked",
        "awaited",
        "covered",
        "first",
        "known",
        "missed",
        "others_seen",
        "over",
        "questions",
    )

    def __init__(self, pacer: Pacer, *, possible: bool) -> None:
        self.awaited = ""
        self.asked = 0
        self.questions = self.over = self.covered = 0
        self.known: bool | None = None if possible else False
        self.first = first_number()
        self.missed: list[str] = []
        self.others_seen = False
        self._pacer = pacer
        self._possible = possible
        self._tries = 0

    def ask(self) -> str:
        """Begin to wait for one, behind all that was sent so far, while nothing is awaited.

        Returns:
            The number to which a message is to be sent, or :data:`TIME`.
        """
        self._pacer.receipt_asked()
        self.questions += 1
        if self.known is False:
            self.awaited = TIME
        else:
            self._tries = 0
            self.others_seen = False
            self._next_number()
        return self.awaited

    def ask_next(self) -> int:
        """While one is awaited: have another one asked for behind it; return which question that will be."""
        self._pacer.due = True
        return self.questions + 1

    def _next_number(self) -> None:
        # A new number each time: a late answer to the last question would confirm what was sent after it.
        self.asked += 1
        if not self.known and self.awaited:
            self.missed.append(self.awaited)
        self.awaited = str(self.first + self.asked % NUMBERS)

    def probe(self) -> str:
        """Where none came: return a number whose notice shows that they do come, by now; empty where they never can.

        The processes that got ours may have gone: one that ends and its successor are two for a moment.
        """
        if self.known is not False or not self._possible:
            return ""
        self.asked += 1
        number = str(self.first + self.asked % NUMBERS)
        self.missed = [*self.missed[-RECEIPT_TRIES:], number]
        return number

    def notice(self, conn_id: str) -> bool:
        """The server gave notice of a connection that is not there. Returns whether it is the receipt waited for.

        It says that the server has received all that was sent before the receipt was asked for.
        """
        if conn_id != self.awaited:
            if self._is_others(conn_id):
                self.others_seen = True
            elif not self.known and self._possible and conn_id in self.missed:
                # It stood still when it was asked, and was held for one without.
                self.known = True
            return False
        # After end() one that is under way still counts, but says nothing of what is to come.
        if self._possible:
            self.known = True
        self.confirm()
        return True

    def _is_others(self, conn_id: str) -> bool:
        # An old one of ours is not: what was asked for twice comes twice.
        if len(conn_id) != _DIGITS:
            return False
        number = int(conn_id)
        return number >= NOBODY and not 0 <= number - self.first < NUMBERS

    def confirm(self) -> None:
        """What was waited for is there."""
        self.covered = self.questions
        self._go_on()

    def _go_on(self) -> None:
        """What was waited for counts as if it were there."""
        self.awaited = ""
        self.over = self.questions
        self._pacer.receipt_came()

    def overdue(self, *, can_come: bool, pipe_full: bool) -> Overdue:
        """The receipt did not come in time: say what that means.

        Args:
            can_come: Notices are read at present.
            pipe_full: What was sent waits on our side still.
        """
        # Nobody would see it: waiting for it would stop the connection, and the application, for each other.
        if not self._possible or not can_come:
            self._go_on()
            return Overdue.UNSEEN
        if self.others_seen:
            self.share()
            return Overdue.OTHERS
        # The question has not left: it says nothing of the server.
        if pipe_full:
            return Overdue.WAIT
        self._tries += 1
        # One that has given receipts before stands still, however long: it is asked until it answers or goes.
        if self.known is None and self._tries >= RECEIPT_TRIES:
            self.known = False
            self.missed.append(self.awaited)
            self._go_on()
            return Overdue.NONE_COME
        self._next_number()
        return Overdue.ASK_AGAIN

    def share(self) -> bool:
        """Others pull from the same endpoint. Returns whether a receipt was awaited, which is over now."""
        # The server hands its notices out in turns: others get ours, we get theirs, forever where all wait. Each counts
        # for itself, and so has to send less at once.
        awaited = self.awaited not in ("", TIME)
        self.known = False
        self.missed.clear()
        self._pacer.share()
        if awaited:
            self._go_on()
        return awaited

    def come(self) -> None:
        """Receipts can come in from now on."""
        self._possible = True
        self.known = None

    def end(self) -> bool:
        """Ask for no more. Returns whether one is awaited still."""
        self.known = False
        self._possible = False
        return self.awaited not in ("", TIME)

    def await_time(self) -> None:
        """What is awaited does not come any more: wait for time in its place."""
        self.awaited = TIME

    def forget(self) -> None:
        """The server has gone; the next one may be of another kind."""
        self.awaited = ""
        self.missed.clear()
        if self._possible:
            self.known = None
