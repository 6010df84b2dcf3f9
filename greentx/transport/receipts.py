"""Receipts: how a writer gets to know that Mongrel2 has taken in what it was sent.

A message to a connection that nobody has is answered with a notice, behind everything sent before (probed). Where a
server gives none, or a writer cannot see them, time takes their place. What a receipt means for what may be sent is the
business of :mod:`greentx.transport.outbox`.

All methods belong to the hub's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import randrange
from typing import Any

from gevent.event import Event

from .context import Context
from .outbox import NOBODY, Pacer

__all__ = ["FLUSH_SECONDS", "NUMBERS", "RECEIPT_SECONDS", "RECEIPT_TRIES", "Receipts", "first_number"]

log = logging.getLogger("greentx.transport")

#: After so long a receipt is asked for again.
RECEIPT_SECONDS = 0.25

#: A server that did not give its first one after so many of them is taken for one that does not know them.
RECEIPT_TRIES = 4

#: Where there are no receipts, so long counts as one: 10 messages in 5 ms (one every 0.5 ms arrived 400 times, one
#: every 0.1 ms killed the connection: probed).
FLUSH_SECONDS = 0.005

_DIGITS = len(str(NOBODY))

#: Whoever asks for receipts has so many numbers of its own: an old one, or another process's, is none.
NUMBERS = 1000
_RANGES = 140_000

# In the place of a connection's number: not a receipt is waited for, but FLUSH_SECONDS.
_TIME = "time"


def first_number() -> int:
    """Return the first of :data:`NUMBERS` numbers that nobody else uses."""
    return NOBODY + NUMBERS * randrange(_RANGES)


class Receipts:
    """Asks for receipts, one at a time.

    Args:
        context: Owner of the timers.
        pacer: Told of what was asked for, and of what is there.
        send: Sends an empty message to a connection's number; must not block.
        on_confirmed: Called when the pacer has been told that what was asked for is there; must not block.
        come: Returns whether receipts can come in at present; ``None`` where they never do.
        pipe_full: Returns whether what was sent waits on our side still.
        name: Of the writer, for the log.

    Attributes:
        awaited: What is waited for; empty where nothing is.
        asked: How many messages were sent to ask.
        known: The server gives receipts; ``None`` until that is known.
    """

    def __init__(
        self,
        context: Context,
        pacer: Pacer,
        *,
        send: Callable[[str], None],
        on_confirmed: Callable[[], None],
        come: Callable[[], bool] | None,
        pipe_full: Callable[[], bool],
        name: str,
    ) -> None:
        self.awaited = ""
        self.asked = 0
        self.known: bool | None = None if come is not None else False
        self._context = context
        self._pacer = pacer
        self._send = send
        self._on_confirmed = on_confirmed
        self._come = come
        self._pipe_full = pipe_full
        self._name = name
        self._first = first_number()
        self._tries = 0
        self._others_seen = False
        self._missed: list[str] = []
        self._there = Event()
        self._overdue_timer: Any = context.timer(RECEIPT_SECONDS, RECEIPT_SECONDS)
        self._pace_timer: Any = context.timer(FLUSH_SECONDS, FLUSH_SECONDS)

    def ask(self) -> None:
        """Ask for one, behind all that was sent so far; nothing is waited for at present, and the server is there."""
        self._pacer.asked()
        if self.known is False:
            self._wait_for_time()
        else:
            self._overdue_timer.again(self._overdue, update=True)
            self._tries = 0
            self._others_seen = False
            self._send_one()

    def arrived(self, conn_id: str) -> bool:
        """The server gave notice of a connection that is not there. Returns whether it is the receipt waited for.

        It says that the server has taken in all that was sent before the receipt was asked for.
        """
        if conn_id != self.awaited:
            if self._is_others(conn_id):
                self._others_seen = True
            elif not self.known and self._come is not None and conn_id in self._missed:
                self.known = True  # it stood still when it was asked, and was taken for one without
            return False
        if self._come is not None:
            self.known = True
        self._there.set()
        self._overdue_timer.stop()
        self._confirmed()
        return True

    def forget(self) -> None:
        """The server has gone; the next one may be of another kind."""
        self.awaited = ""
        self._missed.clear()
        self._overdue_timer.stop()
        self._pace_timer.stop()
        if self._come is not None:
            self.known = None

    def end(self, timeout: float) -> None:
        """Ask for no more receipts, as the receiver is about to end. Blocks until the one that is under way is there.

        It waits *timeout* seconds at the most. One that comes after the receiver has gone would wait in the server for
        the next one, and keep the server busy in the moment in which it should see that this one has gone.
        """
        self.known = False
        self._come = None
        if self.awaited and self.awaited != _TIME:
            self._there.clear()
            self._there.wait(timeout)

    def give_up(self) -> None:
        """As :meth:`end`, without waiting: from now on time paces."""
        self.end(0)
        if self.awaited and self.awaited != _TIME:
            self._overdue_timer.stop()
            self._wait_for_time()

    def close(self) -> None:
        """Let go of the timers."""
        for timer in (self._overdue_timer, self._pace_timer):
            self._context.unwatch(timer)

    def _is_others(self, conn_id: str) -> bool:
        """Whether it is a receipt that another handler asked for."""
        if len(conn_id) != _DIGITS:
            return False
        number = int(conn_id)
        return number >= NOBODY and not 0 <= number - self._first < NUMBERS

    def _send_one(self) -> None:
        self.asked += 1
        if not self.known and self.awaited:
            self._missed.append(self.awaited)
        self.awaited = str(self._first + self.asked % NUMBERS)
        self._send(self.awaited)

    def _wait_for_time(self) -> None:
        self.awaited = _TIME
        self._pace_timer.again(self._paced, update=True)

    def _paced(self) -> None:
        self._pace_timer.stop()
        self._confirmed()

    def _confirmed(self) -> None:
        self.awaited = ""
        self._pacer.confirmed()
        self._on_confirmed()

    def _overdue(self) -> None:
        if self._come is None or not self._come():
            self._overdue_timer.stop()
            self._confirmed()  # nobody would see it
        elif self._others_seen:
            # Others pull from the same endpoint. The server hands its notices out in turns: they get ours, we get
            # theirs, for ever where all wait. Each counts for itself, and so has to send less at once.
            self._overdue_timer.stop()
            self.known = False
            self._missed.clear()
            self._pacer.share()
            log.info("%s: others pull from the same endpoint, and get our receipts", self._name)
            self._confirmed()
        elif not self._pipe_full():
            self._tries += 1
            if self.known is None and self._tries >= RECEIPT_TRIES:
                self._overdue_timer.stop()
                self.known = False
                self._missed.append(self.awaited)
                log.info("%s: the server gives no receipts", self._name)
                self._confirmed()
            else:
                self._send_one()
