"""Who pings the WebSockets of an entry that several processes pull from, and who of these processes is there.

One holds the lease, pings and judges: the *leader*. It renews the lease with each beat; where it does not, another one
gets it, and begins anew: it expects a pong only from those that it has pinged itself. So does a leader whenever pongs
may have gone where they are not told of: a process joined or died, or a census did not end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..protocol.flow import first_number
from ..protocol.flow.limits import NUMBERS
from .census import Census, Pace
from .records import Records, sid_of
from .setting import Setting

if TYPE_CHECKING:
    from ..handler.connection import Connection

__all__ = ["Watch"]

log = logging.getLogger("greentx.redis")

# Of the time for which the lease is held, so much is used: clocks need not agree, but one may run faster.
_LEASE_USE = 0.8


class Watch:
    """One process's view of who pings.

    Args:
        setting: Of the process.
        connection: The connection set.
        owners: Returns which other processes own WebSockets.
        tell: Tells all processes something, a list of a word and its arguments, with the next batch.

    Attributes:
        members: The other processes in this life, and when each was last heard of.
        census: What is asked while this one leads.
        numbers: Of the leader's echoes; empty while these are not known.
    """

    def __init__(
        self,
        setting: Setting,
        connection: Connection,
        owners: Callable[[], set[str]],
        tell: Callable[[list[Any]], None],
    ) -> None:
        self.members: dict[str, float] = {}
        self.numbers = range(0)
        self._setting = setting
        self._connection = connection
        self._owners = owners
        self._tell = tell
        self._records: Records | None = None
        self._until = 0.0
        self._token = 0
        first = first_number()
        self._own_numbers = range(first, first + NUMBERS)
        self._warned = False
        self._beat_at = self._ask_at = 0.0
        interval = setting.times.interval
        self.census = Census(
            self._own_numbers,
            send_echo=lambda number: connection.link.writer.receipts.nudge(number),
            members=lambda: [setting.name, *self.members],
            pace=Pace(spacing=interval / 4, patience=max(interval, 2.0), retry=min(max(interval / 4, 0.1), 2.0)),
        )

    @property
    def leads(self) -> bool:
        """This process holds the lease."""
        return bool(self._token) and monotonic() < self._until

    @property
    def judges(self) -> bool:
        """All pongs are known here."""
        return self.census.known is True and self.leads

    def begin(self, records: Records) -> None:
        """This process is in a life of the server."""
        self._resign()  # from what it did in another one
        self._records = records
        self.members.clear()
        self.numbers = range(0)
        self._beat_at = 0.0

    def stop(self) -> None:
        """It is not any more, or Redis has gone."""
        self._resign()
        self._records = None
        self.members.clear()

    def tick(self, now: float) -> None:
        """Renew the lease, or try to get it; look after the others."""
        records = self._records
        if records is None:
            return
        if self.leads and self._connection.link.subscribed and self.census.tick(now):
            self._unknown()
        if now < self._beat_at:
            return
        times = self._setting.times
        self._beat_at = now + times.beat
        self._setting.redis.send(*records.lease(times.presence), then=partial(self._leased, records, now))
        if not self.leads:
            return
        self._tell_lead()
        # Also where nobody is pinged: others may be connected to this server, and not know of this life.
        if now >= self._ask_at:
            self._ask_at = now + times.interval
            self.census.ask_behind()
        for name, heard in list(self.members.items()):
            if now - heard > times.presence:
                self._setting.redis.send(*records.is_there(name), then=partial(self._is_there, records, name))

    def _unknown(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: nobody is judged by missing pongs for now: %s. Does Mongrel2 stand still, or does a process pull "
                "from this entry that does not share the registry at present?",
                self._connection.sender,
                self.census.waits_for,
            )

    # -- the lease ----------------------------------------------------------------------------------------------------

    def _leased(self, records: Records, asked_at: float, reply: Any) -> None:
        if records is not self._records:
            return
        held, token = bool(reply[0]), int(reply[1])
        if not held:
            self._resign()
            return
        self._until = asked_at + _LEASE_USE * self._setting.times.presence
        if token != self._token:
            self._token = token
            self._lead(records)

    def _lead(self, records: Records) -> None:
        log.info("%s: this process pings the WebSockets of all that share the entry", self._connection.sender)
        self._setting.redis.subscribe(records.leader_channel)
        self.numbers = self._own_numbers
        self._tell_lead()
        self._ask_at = 0.0
        # Whoever led before may have ended, and have taken over others.
        for name in self._owners() - self.members.keys():
            self._tell(["take", name])
        self.census.forget()
        self.spare_all()
        for sender in list(self._connection.sessions.senders):
            for batch in self._setting.registry.batches(sender):
                batch.due = None  # at some time of an interval from now, or all would be pinged at once

    def _tell_lead(self) -> None:
        self._tell(["lead", self._own_numbers.start, len(self._own_numbers)])

    def _resign(self) -> None:
        if self._token:
            self._token = 0
            self.census.forget()
            if self._records is not None:
                self._setting.redis.unsubscribe(self._records.leader_channel)

    def release(self) -> None:
        """Give the lease back, so that others need not wait for its end."""
        if self._token and self._records is not None:
            self._setting.redis.send(*self._records.release())

    def spare_all(self) -> None:
        """Nobody is expected to have answered: pongs may have gone where they are not told of."""
        for entry in self._setting.entries(self._connection):
            entry.awaits_pong = False

    # -- the others ---------------------------------------------------------------------------------------------------

    def heard(self, name: str) -> bool:
        """Another process says something; returns whether that is new."""
        new = name not in self.members
        self.members[name] = monotonic()
        if new and self.leads:
            self.spare_all()
        return new

    def gone(self, name: str, *, told_all: bool, stays: bool = False) -> None:
        """Another process has left this life.

        Args:
            told_all: It told of all pongs before.
            stays: It goes on with what it owns, in another life, where this process will follow.
        """
        self.members.pop(name, None)
        if self.leads:
            if not told_all:
                self.spare_all()
            self.census.look()
            if not stays:
                self._tell(["take", name])

    def _is_there(self, records: Records, name: str, reply: Any) -> None:
        if records is not self._records or reply or not self.leads or name not in self.members:
            return
        log.warning("%s: process %s is gone; its WebSockets go on here", self._connection.sender, name)
        self._setting.redis.send(*records.remove(name))
        self.gone(name, told_all=False)

    # -- what they tell -----------------------------------------------------------------------------------------------

    def echo(self, number: str) -> bool:
        """An echo has come here. Returns whether it is one of the leader's, who is to be told."""
        if self._token:
            if self.census.is_ours(number):
                self._note(number, self._setting.name)
            return False
        return int(number) in self.numbers

    def reported(self, name: str, pongs: list[str], echoes: list[str]) -> None:
        """A process tells the leader what came to it."""
        registry = self._setting.registry
        for text in pongs:
            entry = registry.get(sid_of(text))
            if entry is not None:
                entry.awaits_pong = False
        for number in echoes:
            self._note(number, name)

    def _note(self, number: str, name: str) -> None:
        was = self.census.known
        self.census.echo(number, name)
        if was is False and self.census.known:
            # What was pinged meanwhile may have been answered to anybody.
            self.spare_all()
            if self._warned:
                self._warned = False
                log.info("%s: WebSockets are judged by their pongs again", self._connection.sender)

    def __repr__(self) -> str:
        role = "leads" if self.leads else "follows"
        return f"<Watch {self._connection.sender}: {role}, {len(self.members)} others>"
