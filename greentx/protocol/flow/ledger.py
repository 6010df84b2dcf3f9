"""With ``download.flow_control``: how many bytes are under way to each connection."""

from __future__ import annotations

from collections.abc import Container, Iterator

from .accounts import Accounts
from .limits import ROOM

__all__ = ["Ledger"]


class Ledger(Accounts):
    """Counts what is under way, in bytes. All reports come here.

    A connection is in it from the first byte that it is sent until all was reported, and nothing waits for it.

    Args:
        busy: Connections for which something waits; somebody else's.
    """

    __slots__ = ("_busy", "_reported", "_sent")

    by_reports = True
    by_clock = False

    def __init__(self, busy: Container[str] = ()) -> None:
        super().__init__()
        self._busy = busy
        # Since the connection got in. Nearly every answer is reported in one piece: then the second one stays empty.
        self._sent: dict[str, int] = {}
        self._reported: dict[str, int] = {}

    def allows(self, conn_id: str, size: int) -> bool:
        """See :meth:`Accounts.allows`: up to :data:`~greentx.protocol.flow.ROOM` bytes may be under way."""
        sent = self._sent
        total = sent.get(conn_id, 0) + size
        # Two comparisons, of which nearly always the first one decides, without a look at the reports.
        if total > ROOM and total - self._reported.get(conn_id, 0) > ROOM:
            return False
        sent[conn_id] = total
        return True

    def take(self, conn_id: str, waiting: int, now: float) -> int:
        """See :meth:`Accounts.take`: as many as there is room for."""
        # Cut, rather than held back whole: the server would wait for the rest of what it can write already.
        size = min(waiting, ROOM - self.unconfirmed(conn_id))
        if size:
            self._sent[conn_id] = self._sent.get(conn_id, 0) + size
        return size

    def refund(self, conn_id: str, size: int) -> None:
        """See :meth:`Accounts.refund`."""
        sent = self._sent.get(conn_id)
        if sent is not None:
            self._sent[conn_id] = sent - size
            # What is left may have been reported whole: then the connection has nothing under way any more.
            self.credit(conn_id, 0)

    def credit(self, conn_id: str, count: int) -> None:
        """See :meth:`Accounts.credit`."""
        sent = self._sent.get(conn_id)
        if sent is None:
            return
        reported = self._reported
        if reported:
            count += reported.get(conn_id, 0)
        if count < sent:
            reported[conn_id] = count
        elif conn_id in self._busy:
            # Kept, so that what is confirmed only grows. Never more than was sent: reports for what was sent before
            # this account began would add up to more than the server has room for.
            reported[conn_id] = sent
        else:
            del self._sent[conn_id]
            reported.pop(conn_id, None)

    def confirmed(self, conn_id: str) -> int | None:
        """See :meth:`Accounts.confirmed`: counted since the connection got in."""
        return self._reported.get(conn_id, 0) if conn_id in self._sent or conn_id in self._busy else None

    def unconfirmed(self, conn_id: str) -> int:
        """See :meth:`Accounts.unconfirmed`."""
        return self._sent.get(conn_id, 0) - self._reported.get(conn_id, 0)

    def drained(self, conn_id: str, now: float) -> bool:
        """See :meth:`Accounts.drained`: it always may."""
        if not self.unconfirmed(conn_id):
            self.forget(conn_id)
        return True

    def closed(self, conn_id: str) -> bool:
        """See :meth:`Accounts.closed`."""
        self.drained(conn_id, 0.0)
        return conn_id not in self._sent

    def forget(self, conn_id: str) -> None:
        """See :meth:`Accounts.forget`."""
        self._sent.pop(conn_id, None)
        self._reported.pop(conn_id, None)

    def clear(self) -> None:
        """See :meth:`Accounts.clear`."""
        self._sent.clear()
        self._reported.clear()

    def __contains__(self, conn_id: object) -> bool:
        return conn_id in self._sent

    def __iter__(self) -> Iterator[str]:
        return iter(self._sent)
