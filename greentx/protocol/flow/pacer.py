"""How many messages each connection was sent that no receipt covers yet: who may be sent one more?"""

from __future__ import annotations

from collections.abc import Collection

from .limits import BURST, EAGER, KEEP, LARGE, SHARED_BURST

__all__ = ["Pacer", "Unpaced"]


class Pacer:
    """Says whether a connection may be sent one more message now.

    It counts the messages to each connection since the last receipt was asked for, and, until that one is there, those
    before it.

    Args:
        burst: Messages to one connection that no receipt covers, at most.
        keep: Connections in the count that make a receipt due.

    Attributes:
        due: A receipt should be asked for.
    """

    __slots__ = ("_before", "_burst", "_eager", "_keep", "_since", "due")

    def __init__(self, burst: int = BURST, *, keep: int = KEEP) -> None:
        self._burst = burst
        self._eager = min(EAGER, burst)
        self._keep = keep
        self._since: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self.due = False

    def allows(self, conn_id: str, size: int = 0) -> bool:
        """Return whether *conn_id* may be sent a message now, and count that message if so.

        Args:
            size: Its bytes, where it has none of an outbox's accounts. A large one is refused: it needs them.
        """
        # First, and not counted: the outbox counts it when it goes.
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

    def split(self, conn_ids: Collection[str], busy: Collection[str]) -> tuple[list[str], list[str]]:
        """Return which of many may be sent a message now, counting it, and which may not.

        Args:
            busy: Ids for which something is waiting already, so that nothing may overtake it.
        """
        since = self._since
        # As allows() says of each, where it is the same for all: nothing waits, and no receipt is due. By far the most
        # broadcasts are such.
        if not busy and not self._before and len(since) + len(conn_ids) <= self._keep:
            counts = [since.get(conn_id, 0) + 1 for conn_id in conn_ids]
            if counts and max(counts) < self._eager:
                since.update(zip(conn_ids, counts, strict=True))
                return list(conn_ids), []
        allowed: list[str] = []
        refused: list[str] = []
        allows = self.allows
        for conn_id in conn_ids:
            # Without the size: a broadcast of large messages has the pace of small ones, and no account for each.
            if conn_id in busy or not allows(conn_id):
                refused.append(conn_id)
            else:
                allowed.append(conn_id)
        return allowed, refused

    def asked(self) -> None:
        """A receipt was asked for, behind everything counted so far. The one before it is there."""
        # The receipt before covers what was in _before; it is there, or was given up.
        self._before, self._since = self._since, {}
        self.due = False

    def confirmed(self) -> None:
        """The receipt is there: the server has received what was counted before it was asked for."""
        self._before = {}

    def share(self) -> None:
        """Others send to the same connections, and count for themselves."""
        # Never up again: they may be there still though none of their receipts comes.
        self._burst = min(self._burst, SHARED_BURST)
        self._eager = min(self._eager, SHARED_BURST)

    def forget(self) -> None:
        """Forget all: the server's ids have a new meaning."""
        self._since = {}
        self._before = {}
        self.due = False


class Unpaced(Pacer):
    """Allows everything: for a stand-in for Mongrel2, which has no limit and hands each message on as it is."""

    __slots__ = ()

    def allows(self, conn_id: str, size: int = 0) -> bool:
        """Return True."""
        return True

    def split(self, conn_ids: Collection[str], busy: Collection[str]) -> tuple[list[str], list[str]]:
        """Return all but those for whom something waits."""
        return [one for one in conn_ids if one not in busy], [one for one in conn_ids if one in busy]
