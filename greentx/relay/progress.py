"""What Nodes say of their answers, and servers of what they wrote: which requests are answered."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from ..handler.connection import Connection
from .counts import Counts
from .forwarded import Forwarded
from .messages import pairs
from .nodes import Nodes, NodeSession
from .sticky import Bound, Sticky
from .written import Unwritten

__all__ = ["Progress"]


class Progress:
    """Follows the answers to one relay's requests.

    Args:
        nodes: Who answers.
        sticky: Whose browser connections they are.
        counts: For those that nobody waits for.
        last: Returns the number that was given to a request last.
        answered: Called with requests that an application forwarded, once they are answered, and whose Node did that.
        settle: Called with a request that its Node does not have any more.
        release: Hands on what is held of a browser connection of which nothing is open.

    Attributes:
        parted: Called with a session, a request, and when it said that the answer is complete with which its browser
            connection ends, where the server does not say what it writes.
        unwritten: Their Nodes said that they are done, and their servers have not told that they wrote it.
    """

    def __init__(
        self,
        nodes: Nodes,
        sticky: Sticky,
        counts: Counts,
        *,
        last: Callable[[], int],
        answered: Callable[[NodeSession, list[Forwarded]], object],
        settle: Callable[[Forwarded], object],
        release: Callable[[Bound], object],
    ) -> None:
        self.parted: Callable[[NodeSession, Forwarded, float], object] = lambda session, entry, now: None
        self.unwritten = Unwritten()
        self._sticky = sticky
        self._counts = counts
        self._last = last
        self._answered = answered
        self._settle = settle
        self._release = release
        nodes.on(b"begun", self._on_begun)
        nodes.on(b"done", self._on_done)

    # -- what Nodes say ----------------------------------------------------------------------------------------------

    def _on_begun(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        for number, size in pairs(words):
            entry = session.open.get(number)
            if entry is not None:
                entry.seen()
                entry.begun = True
                entry.size = size

    def _on_done(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        arrived: list[Forwarded] = []
        now = monotonic()
        session.written.forget(session.heard)
        for number, size in pairs(words):
            entry = session.open.pop(number, None)
            if entry is None:
                self._counts.stale += 1
                continue
            bound = entry.bound
            entry.seen()
            tells = entry.tells
            # What the rest does with nearly all, without the calls.
            is_alone = bound is not None and bound.open == (entry,) and not (bound.held or bound.written.answers)
            if bound is not None and is_alone and not (tells or entry.decoded):
                bound.done_at = now
                bound.written.told(size)
                session.written.items.append((now, self._last(), entry))
                bound.open = ()
                continue
            # The Node has deleted the file, or will.
            if entry.stored is not None:
                entry.stored.give_away()
            if bound is not None:
                bound.done_at = now
                arrived += self._done(entry, bound, size, tells=tells)
                if not tells:
                    session.written.items.append((now, self._last(), entry))
            self._settle(entry)
            if entry.bound is not None and self._sticky.forget_closed(entry.bound, entry) and not tells:
                self.parted(session, entry, now)
        self._say_answered(session, arrived)

    def _done(self, entry: Forwarded, bound: Bound, size: int, *, tells: bool) -> list[Forwarded]:
        written = bound.written
        if not tells:
            # Nobody will say more of them.
            return self._known([*written.done(entry, size), *written.untold()])
        oldest = self.unwritten.add(entry)
        found = written.done(entry, size)
        if oldest is not None and oldest.bound is not None:
            found += oldest.bound.written.untold()
        return self._known(found)

    # -- what servers say --------------------------------------------------------------------------------------------

    def credit(self, connection: Connection, conn_id: str, bound: Bound, count: int) -> None:
        """The server says that it wrote *count* bytes to a browser connection; it was not told to anybody else yet."""
        # Of what we answered ourselves, which was before what a Node answers.
        count -= connection.link.writer.flow.control.of(conn_id).unconfirmed(conn_id)
        if count <= 0:
            return
        found = bound.written.credit(count)
        if found:
            self._say_answered(bound.session, self._known(found))
            # They wait for that where their Node has gone.
            if bound.held and not bound.open and not bound.written.answers:
                self._release(bound)
            self._sticky.forget_closed(bound, found[-1])

    def _known(self, found: list[Forwarded]) -> list[Forwarded]:
        """They need not be kept any more."""
        for entry in found:
            self.unwritten.remove(entry)
        return found

    def _say_answered(self, session: NodeSession, arrived: list[Forwarded]) -> None:
        if arrived:
            delegated = [entry for entry in arrived if entry.delegated]
            if delegated:
                self._answered(session, delegated)

    # -- ends --------------------------------------------------------------------------------------------------------

    def forget(self, bound: Bound) -> None:
        """A browser connection has ended."""
        for entry in self._known(bound.written.untold()):
            entry.bound = None

    def lost(self, connection: Connection) -> None:
        """The server of a connection set has gone."""
        self._known([entry for entry in self.unwritten if entry.connection is connection])
