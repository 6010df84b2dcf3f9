"""Which Node gets a request, and what becomes of it until it is answered.

::

    waiting (nobody has room) --> sent --> received --> begun --> done
       |                            \\________ the Node is gone ___/
       +-- too long: 503                 |
                                         +-- nothing of the answer may have gone out, and the method is safe,
                                         |   or the Node never received it: another Node
                                         +-- nothing may have gone out, the method is not safe: 502
                                         +-- something may have gone out: the connection is closed

Something may have gone out where the Node has said so, or may have said so and could not be heard. With
``download.flow_control`` the server tells what it wrote (:mod:`greentx.relay.written`): then only that counts, and what
a Node said to be done goes to another one, too, where nothing of it was written.

Everything of one browser connection goes to one Node, which puts its answers in order. Where that Node goes while
something is open, what comes meanwhile is held here until the rest is settled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from enum import Enum
from functools import partial
from math import inf
from typing import Any

from ..handler.connection import Connection
from ..protocol.kinds import NO_ANSWER
from ..protocol.pipeline import MAX_PIPELINED
from ..protocol.request import Request, parse_request
from ..protocol.requests import build_disconnect_notice
from ..transport import Context
from .claiming import Claiming
from .claims import StickyNames
from .counts import Counts
from .events import Events
from .forwarded import Forwarded
from .messages import REDELIVERED
from .nodes import Nodes, NodeSession
from .progress import Progress
from .proofs import Proofs
from .returns import Returns
from .sticky import Bound, Sticky
from .waiting import Waiting

__all__ = ["Forwarding", "New"]

log = logging.getLogger("greentx.relay")


class New(Enum):
    """What becomes of new requests."""

    GO_OUT = "they are given to whoever has room"
    WAIT = "they wait"
    ARE_REFUSED = "they are answered 503"


class Forwarding:
    """The requests of one relay.

    All methods belong to the hub's thread; none blocks.

    Args:
        context: Owner of the timer.
        nodes: Who may get them.
        sticky: Whose browser connections they are.
        word: Returns what the present life of a connection set's server is called.
        push: Offers a message to plain handlers; returns whether one had room. ``None`` where there are none.
        retry: The methods that are safe.
        send_timeout: Seconds that a request waits for somebody who has room; ``None`` waits forever.
        answered: Called with requests that an application forwarded, once they are answered, and whose Node did that.
        proofs: Tell when a server has received what was sent.
        sessions: By which parameters requests say whose session they are of.

    Attributes:
        counts: What became of them.
        events: What comes with no answer due to it.
        progress: Which of them are answered.
        queue: Those that wait for somebody who has room.
        claiming: Which Nodes have which sessions, and those that wait for a claim.
        ended: Nothing is forwarded any more: what comes is answered 503.
    """

    def __init__(
        self,
        context: Context,
        nodes: Nodes,
        sticky: Sticky,
        *,
        word: Callable[[Connection], str],
        push: Callable[[bytes], bool] | None,
        retry: Collection[str],
        send_timeout: float | None,
        answered: Callable[[NodeSession, list[Forwarded]], object],
        proofs: Proofs,
        sessions: StickyNames,
    ) -> None:
        self.counts = Counts()
        self.ended = False
        self._nodes = nodes
        self._sticky = sticky
        self._word = word
        self._push = push
        self._retry = frozenset(retry)
        self._proofs = proofs
        self._new = New.GO_OUT
        self._last = 0
        self.events = Events(nodes, sticky, self.counts, word=word, offer=self._offer)
        self.claiming = Claiming(context, nodes, sessions, go_on=self.submit, refuse=self._refuse)
        self.progress = Progress(
            nodes,
            sticky,
            self.counts,
            last=lambda: self._last,
            answered=answered,
            settle=self._settle,
            release=self._release,
        )
        self.queue = Waiting(context, nodes, send_timeout, hand=self.hand, refuse=self._refuse)
        self._returns = Returns(
            context,
            nodes,
            proofs,
            self.progress.unwritten,
            cut=self._cut,
            release=self._release,
            go_on=self.queue.go_on,
        )
        nodes.leaving.append(lambda session: self.queue.go_on())
        nodes.room.append(lambda session: self.queue.go_on())

    @property
    def open(self) -> int:
        """How many requests Nodes have."""
        return sum(len(session.open) for session in self._sessions)

    @property
    def _sessions(self) -> tuple[NodeSession, ...]:
        return (*self._nodes, *self._nodes.ending, *self._returns.settling)

    @property
    def waiting(self) -> int:
        """How many requests wait for somebody who has room, or for a claim of their session."""
        return len(self.queue) + len(self.claiming)

    # -- what comes in -----------------------------------------------------------------------------------------------

    def take(self, connection: Connection, request: Request, message: bytes) -> None:
        """Forward what came in, as it came; it is not among the open requests here."""
        method = request.method
        if method in NO_ANSWER:
            self.events.send(connection, request, message)
            return
        self.submit(Forwarded(connection, request.conn_id, message, safe=method in self._retry, request=request))

    def is_safe(self, method: str) -> bool:
        """Whether a request may be given to another Node after one had it."""
        return method in self._retry

    def submit(self, entry: Forwarded) -> None:
        """Give a request to a Node, now or when one has room; where none has in time it is answered 503."""
        if not self.ended and self.claiming.hold(entry):
            return
        # Behind those that wait already, of the same connection above all.
        if (len(self.queue) and self._is_behind(entry)) or not self.hand(entry):
            self.queue.put(entry)

    def _is_behind(self, entry: Forwarded) -> bool:
        if not self.queue.has(entry.connection):
            return False
        bound = self._sticky.of(entry.connection).get(entry.conn_id)
        return bound is None or not (bound.open or bound.held)

    def treat_new(self, what: New) -> None:
        """From now on *what* becomes of new requests, and of those that wait; a relay that ends says so."""
        self._new = what
        self.queue.go_on()

    def notice(self, connection: Connection, conn_id: str, message: bytes) -> None:
        """Send a notice of the server's to whom it concerns."""
        session = self._sticky.owner(connection, conn_id)
        if session is not None:
            self._nodes.send(session, b"notice %b" % self._word(connection).encode(), message)

    def wrote(self, connection: Connection, conn_id: str, count: int) -> None:
        """The server says that it wrote *count* bytes to a browser connection; it was not told to anybody else yet."""
        bound = self._sticky.of(connection).get(conn_id)
        if bound is None:
            return
        self._nodes.wrote(bound.session, self._word(connection), conn_id, count)
        # Behind it: it may be the end of what is known of the connection.
        self.progress.credit(connection, conn_id, bound, count)

    def hand(self, entry: Forwarded) -> bool:
        """Give a request to whoever is to have it; False where nobody can have it now."""
        bound = self._sticky.of(entry.connection).get(entry.conn_id)
        word = self._word(entry.connection)
        # What is behind an open one of its connection goes where that is.
        if self._new is not New.GO_OUT and not entry.refused and not (bound and (bound.open or bound.held)):
            if self._new is New.WAIT:
                return False
            self._refuse(entry, 503)
            return True
        # Whoever has its session has it, whatever connection it comes by: proxies mix those of many browsers.
        claimed = self.claiming.owner(entry.keys) if entry.keys else None
        if claimed is not None and word not in claimed.ready:
            claimed = None
        if bound is not None:
            session = bound.session
            elsewhere = claimed is not None and claimed is not session
            if bound.open or bound.held or (session.over and not session.finished and bound.written.answers):
                if len(bound.open) + len(bound.held) >= MAX_PIPELINED:
                    self._cut(entry, f"{MAX_PIPELINED} of its requests wait for an answer")
                elif bound.held or entry.refused or session.over or session.leaving or elsewhere:
                    bound.held += (entry,)
                else:
                    self._give(entry, bound, word)
                return True
            if not entry.refused and not elsewhere and session.serves(word) and not session.lane.full:
                self._give(entry, bound, word)
                return True
            # What it answered last may not have arrived, and another one's answer would overtake it.
            if not entry.refused and not session.over and bound.done_at > session.cut.get(word, inf):
                self._give(entry, bound, word)
                return True
        if entry.refused:
            self._refuse(entry, entry.refused)
            return True
        chosen = claimed or self._nodes.choose(word)
        if chosen is not None:
            self._give(entry, self._sticky.bind(entry.connection, entry.conn_id, chosen), word)
            return True
        return self._push_now(entry, word)

    def _give(self, entry: Forwarded, bound: Bound, word: str) -> None:
        session = bound.session
        self._last += 1
        entry.number = self._last
        entry.session = session
        entry.bound = bound
        entry.received = entry.begun = False
        entry.size = 0
        entry.tries += 1
        if not bound.open:
            bound.written.sync()
        bound.open += (entry,)
        session.open[entry.number] = entry
        self.counts.forwarded += 1
        head = b"request %d %b" % (entry.number, word.encode())
        if entry.redelivered:
            self.counts.retried += 1
            head = b"%b %b" % (head, REDELIVERED)
        self._nodes.send(session, head, entry.message, entry)

    def _offer(self, word: str, message: bytes) -> bool:
        """Give a message to a plain handler, where no Node can answer its server; returns whether one has it."""
        # A Node that has no room, or leaves, is one that can: then it waits.
        return self._push is not None and not any(word in one.ready for one in self._nodes) and self._push(message)

    def _push_now(self, entry: Forwarded, word: str) -> bool:
        if not self._offer(word, entry.message):
            return False
        # Whoever has it answers, deletes its file, and tells nobody.
        self.counts.forwarded += 1
        if entry.stored is not None:
            entry.stored.give_away()
        if entry.delegated:
            entry.connection.answers.release(entry.request)
        return True

    # -- what becomes of them ----------------------------------------------------------------------------------------

    def _settle(self, entry: Forwarded) -> None:
        """Its Node does not have it any more."""
        bound = entry.bound
        if bound is not None and entry in bound.open:
            # Nearly always it is the first.
            is_first = bound.open[0] is entry
            bound.open = bound.open[1:] if is_first else tuple(one for one in bound.open if one is not entry)
            if bound.held and not bound.open:
                # They may be another Node's, whose answer must not overtake this one.
                self._proofs.ask(entry.connection, partial(self._release, bound), bound.session)

    def _release(self, bound: Bound) -> None:
        """Nothing of a browser connection is open: hand on what was held, in its order."""
        # What is open by now, as it was sent on meanwhile, settles the rest.
        if bound.open:
            return
        held, bound.held = bound.held, ()
        for entry in held:
            if not entry.over:
                self.submit(entry)

    def _cut(self, entry: Forwarded, why: str) -> None:
        """Close the connection of a request."""
        self.counts.closed += 1
        log.warning("connection %s is closed: %s", entry.conn_id, why)
        answers = entry.connection.answers
        if entry.delegated:
            answers.close(entry.request)
        else:
            answers.abandon(entry.request)
        self._forget(entry.connection, entry.conn_id)

    def close_connection(self, connection: Connection, conn_id: str, why: str) -> None:
        """Close a browser connection, whatever is open on it."""
        bound = self._sticky.of(connection).get(conn_id)
        if bound is not None and bound.open:
            self._cut(bound.open[0], why)
            return
        self.counts.closed += 1
        log.warning("connection %s is closed: %s", conn_id, why)
        request = parse_request(build_disconnect_notice(connection.sender, conn_id))
        request.life = connection.link.life
        connection.answers.abandon(request)
        self._forget(connection, conn_id)

    def _refuse(self, entry: Forwarded, code: int) -> None:
        """Answer a request that nobody else does; the connection is closed behind that."""
        if code == 502:
            self.counts.bad_gateway += 1
        else:
            self.counts.unavailable += 1
        log.warning("%s %s is answered %d", entry.request.method, entry.request.path, code)
        answers = entry.connection.answers
        self._forget(entry.connection, entry.conn_id)
        if entry.delegated:
            answers.fail(entry.request, code)
        else:
            answers.at_once(entry.request, code)

    # -- ends --------------------------------------------------------------------------------------------------------

    def connection_ended(self, connection: Connection, conn_id: str) -> None:
        """The browser has gone: nobody waits for its answers."""
        self._forget(connection, conn_id, gone=True)
        self.events.forget(connection, conn_id)
        self.claiming.connection_ended(connection, conn_id)
        self.queue.connection_ended(connection, conn_id)

    def _forget(self, connection: Connection, conn_id: str, *, gone: bool = False) -> None:
        bound = self._sticky.forget(connection, conn_id)
        if bound is None:
            return
        for entry in (*bound.open, *bound.held):
            if entry.session is not None:
                entry.session.open.pop(entry.number, None)
            entry.bound = None
            if gone:
                entry.end()
        self.progress.forget(bound)
        bound.open = bound.held = ()

    def lost(self, connection: Connection) -> None:
        """The server of a connection set has gone, and all its browsers with it."""
        self._sticky.forget_all(connection)
        self.events.lost(connection)
        self.progress.lost(connection)
        for session in self._sessions:
            for number, entry in list(session.open.items()):
                if entry.connection is connection:
                    del session.open[number]
        self.claiming.lost(connection)
        self.queue.lost(connection)

    def stop(self) -> None:
        """Nothing is forwarded any more: the connections of what is open are closed, what waits is refused."""
        sessions = self._sessions
        self._new = New.ARE_REFUSED
        self.ended = self.events.ended = True
        self.claiming.stop()
        self._returns.stop()
        self.queue.stop()
        for session in sessions:
            for entry in list(session.open.values()):
                # Not answered: its Node may live, and be about to answer. The browser would take the second answer for
                # that to its next request.
                if not entry.over and entry.number in session.open:
                    self._cut(entry, "the relay ends, and a Node may answer")
            session.open.clear()
        for entry in self.progress.unwritten:
            if entry.session is not None and entry.session.over and not entry.session.finished and not entry.over:
                self._cut(entry, "its Node has gone, and may not have written the answer")
        for bound in self._sticky:
            for entry in bound.held[:1]:
                self._cut(entry, "the relay ends, and the answer before it may be under way")
        self._sticky.clear()

    def status(self) -> dict[str, Any]:
        """Return what ``STATUS`` shows."""
        return {"open": self.open, "waiting": self.waiting, **self.counts.status(), **self.claiming.status()}
