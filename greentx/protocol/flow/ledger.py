"""With ``download.flow_control``: how many bytes are under way to the connections for which nothing waits."""

from __future__ import annotations

from collections.abc import Iterator

from .limits import ROOM

__all__ = ["Ledger"]


class Ledger:
    """Counts what is under way, in bytes. Most answers are smaller than the limit, and need no outbox.

    A connection is in it from the first byte that it is sent until all was reported, or until :meth:`close`.
    """

    __slots__ = ("_reported", "_sent")

    def __init__(self) -> None:
        # Since the connection got in. Nearly every answer is reported in one piece: then the second one stays empty.
        self._sent: dict[str, int] = {}
        self._reported: dict[str, int] = {}

    def spend(self, conn_id: str, size: int) -> bool:
        """Return whether *size* more bytes may be sent now, and count them if so."""
        sent = self._sent
        total = sent.get(conn_id, 0) + size
        # Two comparisons, of which nearly always the first one decides, without a look at the reports.
        if total > ROOM and total - self._reported.get(conn_id, 0) > ROOM:
            return False
        sent[conn_id] = total
        return True

    def refund(self, conn_id: str, size: int) -> bool:
        """*size* bytes that were counted are not sent after all. Returns whether the connection was in the ledger."""
        sent = self._sent.get(conn_id)
        if sent is None:
            return False
        self._sent[conn_id] = sent - size
        # What is left may have been reported whole: then the connection has nothing under way any more.
        return self.credit(conn_id, 0)

    def credit(self, conn_id: str, count: int) -> bool:
        """The server wrote *count* bytes. Returns whether the connection was in the ledger."""
        sent = self._sent.get(conn_id)
        if sent is None:
            return False
        reported = self._reported
        if reported:
            count += reported.get(conn_id, 0)
        if count < sent:
            reported[conn_id] = count
        else:
            del self._sent[conn_id]
            reported.pop(conn_id, None)
        return True

    def close(self, conn_id: str) -> tuple[int, int]:
        """Remove a connection; return how many bytes more it may be sent, and how many it was reported to have."""
        # What it is called by may have no account: then all credits are there.
        sent, reported = self._sent.pop(conn_id, 0), self._reported.pop(conn_id, 0)
        return ROOM - (sent - reported), reported

    def confirmed(self, conn_id: str) -> int | None:
        """Return how many bytes were reported since the connection got in; ``None`` where it is not in."""
        return self._reported.get(conn_id, 0) if conn_id in self._sent else None

    def clear(self) -> None:
        """Forget all: the server's ids have a new meaning."""
        self._sent.clear()
        self._reported.clear()

    def __contains__(self, conn_id: object) -> bool:
        return conn_id in self._sent

    def __iter__(self) -> Iterator[str]:
        return iter(self._sent)
