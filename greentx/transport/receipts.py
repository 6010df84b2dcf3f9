"""Receipts: how a writer gets to know that Mongrel2 has received what it was sent.

What is asked for, and what a notice means, is decided by :mod:`greentx.protocol.flow.receipts`; here are the timers.
All methods belong to the hub's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent.event import Event

from ..protocol.flow import TIME, Overdue, Pacer, ReceiptRules
from .context import Context

__all__ = ["FLUSH_SECONDS", "RECEIPT_SECONDS", "Receipts"]

log = logging.getLogger("greentx.transport")

#: After so long a receipt is asked for again.
RECEIPT_SECONDS = 0.25

#: Where there are no receipts, so long counts as one: 10 messages in 5 ms (one every 0.5 ms arrived 400 times, one
#: every 0.1 ms killed the connection: probed).
FLUSH_SECONDS = 0.005

# What is said in the log, once per server: it changes how fast one connection can be written to.
_OTHERS = (
    "%s: others pull from the same endpoint, and get our receipts. Mongrel2 hands messages out in turn: answers to "
    "pipelined requests may be out of order or mixed into each other, and WebSockets scatter. Put a relay in front "
    "(greentx.relay), give each process a handler entry of its own, or tell each one (shared=True, --shared)"
)
_SAID = {
    Overdue.OTHERS: (logging.WARNING, _OTHERS),
    Overdue.NONE_COME: (logging.INFO, "%s: the server gives no receipts"),
}


class Receipts:
    """Asks for receipts, one at a time.

    Args:
        context: Owner of the timers.
        pacer: Told of what was asked for, and of what is there.
        send: Sends an empty message to a connection's number; must not block.
        on_confirmed: Called when the pacer has been told that what was asked for is there; must not block.
        can_come: Returns whether receipts can come in at present; ``None`` where they never do.
        pipe_full: Returns whether what was sent waits on our side still.
        name: Of the writer, for the log.

    Attributes:
        rules: What is decided, and the state of it.
        nudge_id: See :meth:`nudge`. One of our numbers, in a moment in which no number is awaited.
    """

    def __init__(
        self,
        context: Context,
        pacer: Pacer,
        *,
        send: Callable[[str], None],
        on_confirmed: Callable[[], None],
        can_come: Callable[[], bool] | None,
        pipe_full: Callable[[], bool],
        name: str,
    ) -> None:
        self.rules = ReceiptRules(pacer, possible=can_come is not None)
        self.nudge_id = str(self.rules.first)
        self._context = context
        self._send = send
        self._on_confirmed = on_confirmed
        self._can_come = can_come
        self._pipe_full = pipe_full
        self._name = name
        self._asked_at = 0.0
        self._said: set[Overdue] = set()
        self._there = Event()
        # Repeating ones: started with again(), which needs a repetition, and stopped by what ends the wait.
        self._overdue_timer: Any = context.timer(RECEIPT_SECONDS, RECEIPT_SECONDS)
        self._pace_timer: Any = context.timer(FLUSH_SECONDS, FLUSH_SECONDS)

    @property
    def awaited(self) -> str:
        """What is waited for; empty where nothing is."""
        return self.rules.awaited

    @property
    def asked(self) -> int:
        """How many messages were sent to ask."""
        return self.rules.asked

    @property
    def known(self) -> bool | None:
        """The server gives receipts; ``None`` until that is known."""
        return self.rules.known

    @property
    def late(self) -> float:
        """For how many seconds a server that gives receipts has given none, though one is awaited; 0 where it does."""
        rules = self.rules
        if not rules.known or rules.awaited in ("", TIME) or self._can_come is None or not self._can_come():
            return 0.0
        return monotonic() - self._asked_at

    @property
    def usable(self) -> bool:
        """False once the context was closed, and in a forked child: nothing can be asked for then."""
        return self._context.open

    def ask(self) -> None:
        """Ask for one, behind all that was sent so far; nothing is waited for at present, and the server is there."""
        # Before a timer is started: in a forked child those were stopped, and are to stay so.
        self._context.check()
        number = self.rules.ask()
        self._asked_at = monotonic()
        if number == TIME:
            self._pace_timer.again(self._paced, update=True)
        else:
            # The timer first: sending may find that the server has gone, which stops it.
            self._overdue_timer.again(self._overdue, update=True)
            self._send(number)

    def ask_behind(self) -> int:
        """Have a receipt asked for behind all that was sent so far, while the server is there.

        Returns:
            Which question that is, or will be, as :attr:`rules` count them.
        """
        if self.rules.awaited:
            return self.rules.ask_next()
        self.ask()
        return self.rules.questions

    def probe(self) -> None:
        """Where none came, see whether they do by now, while the server is there; nothing waits for it."""
        number = self.rules.probe()
        if number:
            self._send(number)

    def nudge(self, conn_id: str = "") -> None:
        """Have the server give one notice more, of connection :attr:`nudge_id`, while it is there.

        Args:
            conn_id: Another number that nobody has.
        """
        self._send(conn_id or self.nudge_id)

    def arrived(self, conn_id: str) -> bool:
        """The server gave notice of a connection that is not there. Returns whether it is the receipt waited for."""
        if not self.rules.notice(conn_id):
            return False
        self._there.set()
        self._overdue_timer.stop()
        self._on_confirmed()
        return True

    def come(self) -> None:
        """They come in from now on, another way than by the server's PUSH, as through a relay."""
        self._can_come = lambda: True
        self.rules.come()

    def forget(self) -> None:
        """The server has gone; the next one may be of another kind."""
        self.rules.forget()
        self._said.clear()
        self._overdue_timer.stop()
        self._pace_timer.stop()

    def end(self, timeout: float) -> None:
        """Ask for no more receipts, as the receiver is about to end. Blocks until the one that is under way is there.

        It waits *timeout* seconds at the most. One that comes after the receiver has gone would wait in the server for
        the next one, and keep the server busy in the moment in which it should see that this one has gone.
        """
        if self.rules.end():
            # Set by the receipt before, which is not the one that is under way.
            self._there.clear()
            self._there.wait(timeout)

    def share(self) -> None:
        """Others pull from the same endpoint, and get some of our receipts: time paces, until :meth:`probe` helps."""
        if self.rules.share():
            self._overdue_timer.stop()
            self._on_confirmed()

    def give_up(self) -> None:
        """As :meth:`end`, without waiting: from now on time paces."""
        if self.rules.end():
            self.rules.await_time()
            self._overdue_timer.stop()
            self._pace_timer.again(self._paced, update=True)

    def close(self) -> None:
        """Let go of the timers."""
        for timer in (self._overdue_timer, self._pace_timer):
            self._context.unwatch(timer)

    def _paced(self) -> None:
        self._pace_timer.stop()
        self.rules.confirm()
        self._on_confirmed()

    def _overdue(self) -> None:
        # An application that does not read events keeps the receiver from reading notices, too.
        can_come = self._can_come is not None and self._can_come()
        verdict = self.rules.overdue(can_come=can_come, pipe_full=self._pipe_full())
        if verdict is Overdue.ASK_AGAIN:
            self._send(self.rules.awaited)
        elif verdict is not Overdue.WAIT:
            self._overdue_timer.stop()
            if verdict in _SAID and verdict not in self._said:
                self._said.add(verdict)
                level, text = _SAID[verdict]
                log.log(level, text, self._name)
            self._on_confirmed()
