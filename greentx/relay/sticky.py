"""Which Node a browser connection belongs to: the one that got its first message. No I/O.

Mongrel2 does not tell of every connection that ends: it says nothing of those that it ends itself. Where a client has
asked for that, the connection is forgotten behind the answer; a Node may also end one by itself. So the table has a
bound: beyond it the oldest are forgotten for which nothing is open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .written import Written

if TYPE_CHECKING:
    from .forwarded import Forwarded
    from .nodes import NodeSession

__all__ = ["MAX_BOUND", "Bound", "Sticky"]

#: Browser connections of one connection set whose Nodes are remembered.
MAX_BOUND = 1_000_000

# How many are looked at, when the table is full, for one for which nothing is open.
_LOOKED_AT = 100


class Bound:
    """One browser connection.

    Attributes:
        session: Of the Node that has it.
        open: Its requests that this Node has, in their order.
        held: Those that wait until nothing is open, since their Node leaves or has gone; in their order.
        written: What the server wrote of its answers.
        done_at: When its Node last said that one was complete (``time.monotonic()``).
    """

    __slots__ = ("done_at", "held", "open", "session", "written")

    def __init__(self, session: NodeSession) -> None:
        self.session = session
        # Tuples: there may be a million of these, and of nearly all nothing is open; an empty tuple takes no memory.
        self.open: tuple[Forwarded, ...] = ()
        self.held: tuple[Forwarded, ...] = ()
        self.written = Written()
        self.done_at = 0.0


class Sticky:
    """All of one relay, by connection set and ``conn_id``.

    Args:
        limit: How many of each connection set are remembered.
    """

    def __init__(self, limit: int = MAX_BOUND) -> None:
        self._limit = limit
        # Not a dict: to find its first it walks over all places of what was taken out in front.
        self._of: dict[object, OrderedDict[str, Bound]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[Bound]:
        """All that are known; a copy."""
        return iter([bound for table in self._of.values() for bound in table.values()])

    def of(self, connection: object) -> dict[str, Bound]:
        """Return those of one connection set, to look up; :meth:`bind` and :meth:`forget` change it."""
        return self._ordered(connection)

    def _ordered(self, connection: object) -> OrderedDict[str, Bound]:
        found = self._of.get(connection)
        if found is None:
            found = self._of[connection] = OrderedDict()
        return found

    def owner(self, connection: object, conn_id: str) -> NodeSession | None:
        """Return the session that a browser connection belongs to; ``None`` where there is none, or it is over."""
        found = self._of.get(connection)
        bound = None if found is None else found.get(conn_id)
        return None if bound is None or bound.session.over else bound.session

    def bind(self, connection: object, conn_id: str, session: NodeSession) -> Bound:
        """From now on a browser connection belongs to *session*."""
        table = self._ordered(connection)
        bound = table.get(conn_id)
        if bound is not None:
            bound.session = session
            return bound
        if len(table) >= self._limit:
            self._make_room(table)
        bound = table[conn_id] = Bound(session)
        return bound

    def forget(self, connection: object, conn_id: str) -> Bound | None:
        """The browser connection has ended. Returns what was known of it."""
        found = self._of.get(connection)
        return None if found is None else found.pop(conn_id, None)

    def forget_closed(self, bound: Bound, last: Forwarded) -> bool:
        """A request was answered; where it was the last of its connection, that has ended. Returns whether it has."""
        # Most were not decoded: then it is known that they are not the last.
        if bound.open or bound.held or bound.written.answers or not last.decoded or not last.request.should_close():
            return False
        found = self._of.get(last.connection)
        if found is None or found.get(last.conn_id) is not bound:
            return False
        del found[last.conn_id]
        return True

    def forget_all(self, connection: object) -> None:
        """The server of a connection set has gone, with all its ids."""
        self._of.pop(connection, None)

    def clear(self) -> None:
        """Forget all."""
        self._of.clear()

    @staticmethod
    def _make_room(table: OrderedDict[str, Bound]) -> None:
        # The oldest is the first; those that are kept go to the end, so that they are not looked at each time.
        for _ in range(min(_LOOKED_AT, len(table))):
            conn_id = next(iter(table))
            bound = table[conn_id]
            if not bound.open and not bound.held and not bound.written.answers:
                del table[conn_id]
                return
            table.move_to_end(conn_id)
