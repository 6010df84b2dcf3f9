"""Whether the Nodes reach the servers: one that its relay reaches may be cut off from a server, and not know it.

ZeroMQ takes what such a Node answers, and the system tries to send it for a quarter of an hour. So about once a second
each Node is asked to have each server give notice of a connection that is not there, behind all that it has answered,
and so does the relay itself (as in :mod:`greentx.relay.proofs`)::

    proved --its notice is missing in 3 rounds--> cut off --in 10, 20, ...--> what is in doubt is closed
       ^                                            |
       +-----------------its notice-----------------+

A round counts where the server gave the notice that the relay asked for itself, so that it is there and reads, and
where the Node has received the question: neither a server nor a Node that stands still is cut off. One that is gets no
new connections of that server. In doubt is what it answered since the question that was proved last.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from ..handler.connection import Connection
from ..protocol.fields import encode_sender
from ..protocol.flow import NUMBERS, first_number, range_of
from ..transport import Context
from .forwarded import Forwarded
from .nodes import Nodes, NodeSession
from .sticky import Bound, Sticky

__all__ = ["CLOSE_ROUNDS", "CUT_ROUNDS", "ROUND_SECONDS", "Way", "Ways"]

log = logging.getLogger("greentx.relay")

#: How long a round takes at the least.
ROUND_SECONDS = 1.0

#: A Node whose notices are missing in so many rounds is cut off.
CUT_ROUNDS = 3

#: And what it answered is closed after so many, and after so many again: what many large answers have in front of it
#: may need its time. Not in each round, as it is looked for among all browser connections.
CLOSE_ROUNDS = 10

# The relay's own question may be lost, too: then another one is asked.
_GIVE_UP_ROUNDS = 5

# Questions of one way that may be answered yet.
_MAX_ASKED = CLOSE_ROUNDS

# Connections that have ended with an answer, as far as is known here, and that are kept while it is in doubt.
_MAX_PARTED = 10_000


class Way:
    """The way of one Node to one server. No I/O.

    Attributes:
        proved: What the Node said until then to be answered has arrived (``time.monotonic()``); 0 before it is known
            of anything.
        parted: Connections that ended with an answer since then, as far as is known: when, and their ids.
    """

    __slots__ = ("_asked", "_closed", "_mark", "_missed", "parted", "proved")

    def __init__(self) -> None:
        self.proved = 0.0
        self.parted: deque[tuple[float, str]] = deque(maxlen=_MAX_PARTED)
        # When, by number, in their order.
        self._asked: dict[str, float] = {}
        self._missed = 0
        # What was in doubt was closed when so many were missed.
        self._closed = 0
        # The last question is among the first so many messages that the Node was sent.
        self._mark = 0

    def ask(self, number: str, now: float, mark: int) -> None:
        """The Node is asked for the notice of a connection; the question is the message of that count."""
        self._asked[number] = now
        self._mark = mark
        if len(self._asked) > _MAX_ASKED:
            del self._asked[next(iter(self._asked))]

    def arrived(self, number: str) -> bool:
        """A notice has come. Returns whether it is one that was asked for and not given up."""
        asked = self._asked.get(number)
        if asked is None:
            return False
        # The server reads them in their order: those before are not awaited any more.
        self._asked = {other: at for other, at in self._asked.items() if at > asked}
        self._missed = self._closed = 0
        self.proved = asked
        while self.parted and self.parted[0][0] <= asked:
            self.parted.popleft()
        return True

    def end_round(self, received: int) -> int:
        """A round is over. Returns in how many that count, up to this one, no notice came.

        Args:
            received: How many messages the Node has received.
        """
        if self._asked and received >= self._mark:
            self._missed += 1
        return self._missed

    def is_due(self) -> bool:
        """Whether what is in doubt is to be closed now: then it is not for :data:`CLOSE_ROUNDS` rounds that count."""
        if self._missed - self._closed < CLOSE_ROUNDS:
            return False
        self._closed = self._missed
        return True

    def doubts(self, bound: Bound, *, tells: bool) -> bool:
        """Return whether an answer on a browser connection may not have arrived.

        Args:
            tells: The server says what it writes.
        """
        is_begun = bool(bound.open) and bound.open[0].begun
        return is_begun or (bound.done_at > self.proved and (not tells or bool(bound.written.answers)))


class _Server:
    """One server.

    Attributes:
        ways: Of the Nodes that have said to be ready for it.
        awaited: The number that the relay itself asked for; empty where its notice has come.
        waited: For how many rounds.
        word: What its present life is called.
    """

    __slots__ = ("awaited", "waited", "ways", "word")

    def __init__(self, word: str) -> None:
        self.word = word
        self.ways: dict[NodeSession, Way] = {}
        self.awaited = ""
        self.waited = 0


class Ways:
    """All of one relay.

    Each pair of a Node and a server takes a number in each round, and there are 1,000 numbers. Where there are more
    pairs, the first servers lose theirs to the last ones, the relay's own number before those of the Nodes: then no
    round of them counts, and nobody is found to be cut off from them.

    Args:
        context: Owner of the timer.
        nodes: The Nodes.
        sticky: Whose browser connections are whose.
        connections: Returns the API's connection sets.
        word: Returns what the present life of a connection set's server is called.
        close: Closes a browser connection: its connection set, its id, and why.
    """

    def __init__(
        self,
        context: Context,
        nodes: Nodes,
        sticky: Sticky,
        *,
        connections: Callable[[], Iterable[Connection]],
        word: Callable[[Connection], str],
        close: Callable[[Connection, str, str], object],
    ) -> None:
        self._context = context
        self._nodes = nodes
        self._sticky = sticky
        self._connections = connections
        self._word = word
        self._close = close
        self._servers: dict[Connection, _Server] = {}
        self._first = first_number()
        self._count = 0
        # What was asked for with each number last; the relay itself is nobody.
        self._numbers: dict[str, tuple[Connection, NodeSession | None]] = {}
        self._timer: Any = context.timer(ROUND_SECONDS, ROUND_SECONDS)
        self._timer.start(self._end_round)
        nodes.gone.append(self._on_gone)

    def arrived(self, conn_id: str) -> bool:
        """A server gave notice of a connection. Returns whether that was asked for here."""
        if range_of(conn_id) != self._first:
            return False
        connection, session = self._numbers.pop(conn_id, (None, None))
        server = None if connection is None else self._servers.get(connection)
        if connection is None or server is None:
            return True
        if session is None:
            if server.awaited == conn_id:
                server.awaited = ""
            return True
        way = server.ways.get(session)
        if way is not None and way.arrived(conn_id) and session.cut.pop(server.word, None) is not None:
            log.warning("node %s reaches the server of %s again", session.word, connection.sender)
            session.is_ready(server.word)
        return True

    def parted(self, session: NodeSession, entry: Forwarded, now: float) -> None:
        """A connection ended with the answer to *entry*, as far as is known."""
        # Its last words: it is not asked any more.
        if session.over:
            return
        way = self._server(entry.connection).ways.setdefault(session, Way())
        way.parted.append((now, entry.conn_id))

    def lost(self, connection: Connection) -> None:
        """A server has gone, and all its browsers with it."""
        server = self._servers.pop(connection, None)
        if server is not None:
            for session in server.ways:
                session.cut.pop(server.word, None)

    def stop(self) -> None:
        """Ask no more. Safe to call twice."""
        self._context.unwatch(self._timer)
        self._servers.clear()

    # -- rounds ------------------------------------------------------------------------------------------------------

    def _end_round(self) -> None:
        if not self._context.open:
            return
        connections = list(self._connections())
        for connection in [one for one in self._servers if one not in connections]:
            self.lost(connection)
        for connection in connections:
            # Others get notices of ours.
            if connection.link.writer.flow.control.shared:
                continue
            server = self._server(connection)
            if server.awaited:
                server.waited += 1
                if server.waited < _GIVE_UP_ROUNDS:
                    continue
            else:
                self._judge(connection, server)
            self._begin_round(connection, server)

    def _server(self, connection: Connection) -> _Server:
        server = self._servers.get(connection)
        if server is None:
            server = self._servers[connection] = _Server(self._word(connection))
        return server

    def _judge(self, connection: Connection, server: _Server) -> None:
        word = server.word
        for session, way in list(server.ways.items()):
            # By a new connection: what it sent by the one before is lost.
            if word in session.ready and session.cut.pop(word, None) is not None:
                self._close_doubted(connection, session, server.ways.pop(session))
                continue
            missed = way.end_round(session.lane.received)
            if missed >= CUT_ROUNDS and word in session.ready:
                log.warning(
                    "node %s does not reach the server of %s: it gets no new connections of that",
                    session.word,
                    connection.sender,
                )
                del session.ready[word]
                session.cut[word] = way.proved
            if way.is_due():
                self._close_doubted(connection, session, way)

    def _begin_round(self, connection: Connection, server: _Server) -> None:
        word = server.word
        now = monotonic()
        ways = server.ways
        for session in self._nodes:
            if word in session.ready:
                ways.setdefault(session, Way())
        for session in list(ways):
            if session.over or (word not in session.ready and word not in session.cut):
                del ways[session]
        if not ways:
            server.awaited = ""
            return
        server.waited = 0
        server.awaited = self._number(connection, None)
        connection.link.writer.send_to_nobody(server.awaited)
        for session, way in ways.items():
            number = self._number(connection, session)
            self._nodes.send(session, b"prove %b %b" % (encode_sender(connection.sender), number.encode()))
            way.ask(number, now, session.lane.count)

    def _number(self, connection: Connection, session: NodeSession | None) -> str:
        self._count += 1
        number = str(self._first + self._count % NUMBERS)
        self._numbers[number] = connection, session
        return number

    # -- what is in doubt --------------------------------------------------------------------------------------------

    def _on_gone(self, session: NodeSession) -> None:
        # A copy: as something is closed, its server may be found to have gone.
        for connection, server in list(self._servers.items()):
            way = server.ways.pop(session, None)
            if way is not None and server.word in session.cut:
                self._close_doubted(connection, session, way)

    def _close_doubted(self, connection: Connection, session: NodeSession, way: Way) -> None:
        control = connection.link.writer.flow.control
        tells = control.announced and not control.shared
        found = [
            conn_id
            for conn_id, bound in self._sticky.of(connection).items()
            if bound.session is session and way.doubts(bound, tells=tells)
        ]
        found += [conn_id for _, conn_id in way.parted]
        way.parted.clear()
        for conn_id in found:
            self._close(connection, conn_id, "its Node does not reach the server, and may not have answered")
