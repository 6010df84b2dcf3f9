"""Which accounts decide what may go to a connection, by what the server says and who hears it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .accounts import Accounts
from .ledger import Ledger
from .limits import BURST
from .outbox import Outbox
from .pacer import Pacer, Unpaced
from .scattered import Hearing, Scattered

__all__ = ["FlowControl"]


class FlowControl:
    """The accounts of one server's connections: how much each may be sent now, was sent, and has read.

    A connection has an account in one of them: in that of its outbox, or in :attr:`accounts` where it has none.

    Args:
        outboxes: What waits, by connection; somebody else's.
        burst: See :class:`~greentx.protocol.flow.Pacer`.
        paced: False where a stand-in for Mongrel2 listens, which has no limits.
        hearing: See :meth:`hear`.

    Attributes:
        paced: As above; see :meth:`stop_pacing`.
        on: Credits decide: the server announced them, or may have done so to other processes.
        announced: It is known to give credits; see :meth:`announce`.
        shared: Some of its notices go to others, or all.
        pacer: The count of messages.
        accounts: Those of connections without an outbox.
        allows: Their :meth:`Accounts.allows`.
    """

    accounts: Accounts
    allows: Callable[[str, int], bool]

    def __init__(
        self,
        outboxes: Mapping[str, Outbox],
        burst: int = BURST,
        *,
        paced: bool = True,
        hearing: Hearing = Hearing.ALL,
    ) -> None:
        self.paced = paced
        self.announced = False
        self.shared = paced and hearing is not Hearing.ALL
        # What announces them may be told to others.
        self.on = self.shared
        self.pacer: Pacer = Pacer(burst) if paced else Unpaced()
        self._outboxes = outboxes
        self._ledger = Ledger(outboxes)
        self._scattered = Scattered(outboxes)
        self._scattered.hearing = hearing
        self._choose()

    # -- which decide ----------------------------------------------------------------------------------------------

    def announce(self, announced: bool) -> None:
        """Say whether the server grants credits (``download.flow_control``), which then decide."""
        self.on = self.announced = announced
        self._choose()

    def hear(self, hearing: Hearing) -> None:
        """Say which notices come from now on. :attr:`Hearing.NONE` is for good.

        With :attr:`Hearing.NONE` a browser that reads more slowly than
        :data:`~greentx.protocol.flow.UNHEARD_RATE` may lose its connection.
        """
        if not self.paced or self._scattered.hearing is Hearing.NONE:
            return
        self._scattered.hearing = hearing
        if hearing is Hearing.ALL:
            # Of what is under way some was told to others, who do not tell us.
            self.on, self.shared = self.announced, False
            self._scattered.forget_idle()
        elif not self.shared:
            self.shared = True
            for conn_id in self._ledger:
                confirmed = self._ledger.confirmed(conn_id) or 0
                self._scattered.open(conn_id, self._ledger.unconfirmed(conn_id), confirmed)
            self._ledger.clear()
            self._move(self._ledger, self._scattered)
            # Announced or not: others may have been told.
            self.on = self.on or hearing is Hearing.SOME
            self._scattered.timed = True
        self._choose()

    def stop_pacing(self) -> None:
        """The server is not a Mongrel2: everything may go."""
        self.paced = self.shared = False
        before, self.pacer = self.pacer, Unpaced()
        self._move(before, self.pacer)
        self.on = self.announced
        self._choose()

    def _choose(self) -> None:
        self._scattered.count = None if self.announced else self.pacer.allows
        if not self.on:
            self.accounts = self.pacer
        else:
            self.accounts = self._scattered if self.shared else self._ledger
        # Bound here, not for each answer.
        self.allows = self.accounts.allows

    def _move(self, before: Accounts, after: Accounts) -> None:
        for outbox in self._outboxes.values():
            if outbox.accounts is before:
                outbox.accounts = after

    def of(self, conn_id: str) -> Accounts:
        """Return who has the account of a connection. An outbox may be from a time when others decided."""
        outbox = self._outboxes.get(conn_id)
        return self.accounts if outbox is None else outbox.accounts

    # -- what the server says --------------------------------------------------------------------------------------

    def credit(self, conn_id: str, count: int) -> Outbox | None:
        """The server wrote *count* bytes. Returns the connection's outbox, if any, out of which more may go now."""
        # The announcement was for another process.
        if not self.announced and self.paced:
            self.announce(True)
        outbox = self._outboxes.get(conn_id)
        (self.accounts if outbox is None else outbox.accounts).credit(conn_id, count)
        return outbox

    def unconfirmed(self) -> list[str]:
        """Return the connections that were sent bytes which the server, with flow control, did not report yet."""
        waiting = [conn_id for conn_id, outbox in self._outboxes.items() if outbox.accounts.by_reports]
        return [*waiting, *(conn_id for conn_id in self._ledger if conn_id not in self._outboxes)]

    def confirmed(self, conn_id: str) -> int | None:
        """Return a number that grows while this browser reads what it was sent; ``None`` when it has read all.

        Only known with flow control; without it ``None``, too.
        """
        return self.of(conn_id).confirmed(conn_id)

    def renew(self, conn_id: str) -> None:
        """A connection asks anew: what it was sent before, by whomever, is written, unless it pipelines."""
        if conn_id not in self._outboxes:
            self._scattered.forget(conn_id)

    # -- what becomes of it ----------------------------------------------------------------------------------------

    def split(self, conn_ids: Sequence[str], size: int) -> tuple[list[str], list[str]]:
        """Return which of many may be sent *size* bytes at once, which are counted, and which may not."""
        return self.accounts.split(conn_ids, size, self._outboxes)

    def refund(self, conn_ids: Sequence[str], size: int) -> None:
        """A message of *size* bytes that was allowed is not sent after all: its bytes may be spent again."""
        for conn_id in conn_ids:
            self.of(conn_id).refund(conn_id, size)

    @property
    def timed(self) -> bool:
        """True while something waits for the clock: call :meth:`Flow.tick` every few milliseconds."""
        return self.pacer.timed or self._scattered.timed

    def tick(self, now: float) -> None:
        """Let time do what nobody tells."""
        if not self._scattered.tick(now):
            # Nobody spoke of credits here, and none came: there is no flow control.
            self.on = False
            self._scattered.clear()
            self._move(self._scattered, self.pacer)
            self._choose()
        self.pacer.timed = self._scattered.timed = False

    def clear(self) -> None:
        """The server has gone, and its ids mean nothing any more; nor is it known what the next one announces."""
        for accounts in (self.pacer, self._ledger, self._scattered):
            accounts.clear()
        self.announced = False
        self.on = self.shared
        self._choose()
