"""Without ``download.flow_control``: how many messages are under way to each connection, as far as can be known."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .accounts import Accounts
from .large import LargeMessages
from .limits import BURST, EAGER, KEEP, LARGE, QUEUED, SHARED_BURST

__all__ = ["Pacer", "Unpaced"]


class Pacer(Accounts):
    """Says whether a connection may be sent one more message now.

    It counts the messages to each connection since the last receipt was asked for, and, until that one is there, those
    before it. Large ones wait for the browser, too, by an estimate.

    Args:
        burst: Messages to one connection that no receipt covers, at most.
        keep: Connections in the count that make a receipt due.

    Attributes:
        due: A receipt should be asked for.
    """

    __slots__ = ("_before", "_burst", "_eager", "_keep", "_large", "_since", "due")

    by_reports = False
    by_clock = True

    def __init__(self, burst: int = BURST, *, keep: int = KEEP) -> None:
        super().__init__()
        self._burst = burst
        self._eager = min(EAGER, burst)
        self._keep = keep
        self._since: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._large = LargeMessages()
        self.due = False

    def allows(self, conn_id: str, size: int = 0) -> bool:
        """See :meth:`Accounts.allows`. A large message is refused: see :meth:`allows_large` and :meth:`take`."""
        # First, and not counted: it is counted when it goes.
        if size >= LARGE:
            return False
        since = self._since
        if conn_id not in since and not self._before and len(since) <= self._keep:
            # Nearly every message is the only one to its connection since the last receipt.
            since[conn_id] = 1
            return True
        count = total = since.get(conn_id, 0) + 1
        if self._before:
            total += self._before.get(conn_id, 0)
        if total >= self._eager or len(since) > self._keep:
            # Asked for before the burst is used up, so that under load no message has to wait for it.
            self.due = True
            if total > self._burst:
                return False
        since[conn_id] = count
        return True

    def allows_large(self, conn_id: str, size: int, now: float) -> bool:
        """See :meth:`Accounts.allows_large`: one at a time goes without an outbox, by our estimate."""
        if self._large.under_way(conn_id, now) or not self.allows(conn_id):
            return False
        self._large.sent(conn_id, size, now)
        return True

    def split(self, conn_ids: Sequence[str], size: int, busy: Collection[str]) -> tuple[list[str], list[str]]:
        """See :meth:`Accounts.split`."""
        since = self._since
        # As allows() says of each, where it is the same for all: nothing waits, no receipt is due, and all
        # differ: one that is named twice gets two messages. By far the most broadcasts are such.
        is_room = not busy and not self._before and len(since) + len(conn_ids) <= self._keep
        if is_room and len(set(conn_ids)) == len(conn_ids):
            counts = [since.get(conn_id, 0) + 1 for conn_id in conn_ids]
            if counts and max(counts) < self._eager:
                since.update(zip(conn_ids, counts, strict=True))
                return list(conn_ids), []
        # Without the size: a broadcast of large messages has the pace of small ones, and no estimate for each.
        return super().split(conn_ids, 0, busy)

    def take(self, conn_id: str, waiting: int, now: float) -> int:
        """See :meth:`Accounts.take`: all or nothing."""
        # The clock before the count: a message that the count allows is counted.
        if self._large.under_way(conn_id, now) >= QUEUED:
            self.timed = True
            return 0
        if not self.allows(conn_id):
            return 0
        if waiting >= LARGE:
            self._large.sent(conn_id, waiting, now)
        return waiting

    def refund(self, conn_id: str, size: int) -> None:
        """See :meth:`Accounts.refund`. The count stays: it is gone with the next receipt."""

    def credit(self, conn_id: str, count: int) -> None:
        """See :meth:`Accounts.credit`. Nothing here depends on it."""

    def confirmed(self, conn_id: str) -> int | None:
        """See :meth:`Accounts.confirmed`: nobody tells."""
        return None

    def unconfirmed(self, conn_id: str) -> int:
        """See :meth:`Accounts.unconfirmed`."""
        return 0

    def drained(self, conn_id: str, now: float) -> bool:
        """See :meth:`Accounts.drained`: not before it should have read the large ones."""
        if self._large.under_way(conn_id, now):
            self.timed = True
            return False
        self._large.forget(conn_id)
        return True

    def closed(self, conn_id: str) -> bool:
        """See :meth:`Accounts.closed`: it always may."""
        self.forget(conn_id)
        return True

    def forget(self, conn_id: str) -> None:
        """See :meth:`Accounts.forget`. The count stays: it is gone with the next receipt."""
        self._large.forget(conn_id)

    def receipt_asked(self) -> None:
        """A receipt was asked for, behind everything counted so far. The one before it is there."""
        # The receipt before covers what was in _before; it is there, or was given up.
        self._before, self._since = self._since, {}
        self.due = False

    def receipt_came(self) -> None:
        """The receipt is there: the server has received what was counted before it was asked for."""
        self._before = {}

    def share(self) -> None:
        """Others send to the same connections, and count for themselves."""
        # Never up again: they may be there still though none of their receipts comes.
        self._burst = min(self._burst, SHARED_BURST)
        self._eager = min(self._eager, SHARED_BURST)

    def clear(self) -> None:
        """See :meth:`Accounts.clear`."""
        self._since = {}
        self._before = {}
        self._large.clear()
        self.due = self.timed = False


class Unpaced(Pacer):
    """Allows everything: for a stand-in for Mongrel2, which has no limit and hands each message on as it is."""

    __slots__ = ()

    def allows(self, conn_id: str, size: int = 0) -> bool:
        """Return True."""
        return True

    def take(self, conn_id: str, waiting: int, now: float) -> int:
        """Return *waiting*."""
        return waiting
