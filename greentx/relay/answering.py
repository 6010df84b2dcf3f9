"""How a Node answers what its relay gives it (:mod:`greentx.relay.downstream`), as an extension of its Transceiver."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from gevent.pool import Group

from ..errors import GreentxError
from ..handler.connection import Connection
from ..handler.shared import Extension, Shared
from ..handler.transceiver import Transceiver
from ..protocol.fields import shown
from ..protocol.request import Request
from ..protocol.websocket.sharing import Broadcast
from ..transport.pipe import GATED_BATCH_SECONDS
from .downstream import Downstream
from .handed import HandedOn
from .link import Link
from .messages import Server, Welcome, number, parse_servers
from .node_sockets import NodeSockets
from .reach import reachable
from .reports import Reports

__all__ = ["Answering"]

log = logging.getLogger("greentx.relay")


class Answering(Extension):
    """Connects to the servers behind the API, and says what became of what came for them.

    Args:
        transceiver: The Node's, started.
        shared: Its connection sets'.
        link: To the relay.

    Attributes:
        sockets: The WebSockets that are here.
    """

    def __init__(self, transceiver: Transceiver, shared: Shared, link: Link) -> None:
        # First: its end of a session comes before that of the requests.
        self.sockets = NodeSockets(transceiver, shared, link)
        self._transceiver = transceiver
        self._shared = shared
        self._link = link
        self._asked = 0
        self._handed: dict[Connection, HandedOn] = {}
        # By the word for the present life of its server, as the relay calls it; the same dict for good.
        self._of_word: dict[bytes, HandedOn] = {}
        # Those that were made here, and not by the application.
        self._own: set[Connection] = set()
        self._group = Group()
        self._reports = Reports(shared.context, shared.inbox, link.tell, self._sweep)
        link.counted = self._reports.received
        link.welcome.append(self._on_welcome)
        link.over.append(self._on_over)
        link.on(b"servers", self._on_servers)
        # Kept by the link, which it listens to.
        Downstream(transceiver, link, self._of_word)

    # -- the relay's servers -----------------------------------------------------------------------------------------

    def _on_welcome(self, welcome: Welcome) -> None:
        self._reports.begin()
        self._serve(welcome.servers, answers=False)

    def _on_over(self) -> None:
        for connection, handed in list(self._handed.items()):
            handed.session_over()
            # It came through the relay, all of it; and nothing that waits may go out any more.
            if connection in self._own:
                connection.link.begin_anew()
        self._of_word.clear()

    def _on_servers(self, words: list[bytes], payload: bytes) -> None:
        asked = number(words[0]) if words else 0
        # Only the answer to the latest question: an older one may name a life that is over by now.
        self._serve(parse_servers(payload), answers=asked == self._asked and asked > 0)

    def _serve(self, servers: Sequence[Server], *, answers: bool) -> None:
        self._of_word.clear()
        connections = self._transceiver.connections
        for server in servers:
            connection = connections.get(server.sender)
            if connection is None:
                connection = self._reach(server)
            if connection is None:
                continue
            handed = self._handed_to(connection)
            self._of_word[server.word.encode("latin-1")] = handed
            if server.credits:
                connection.link.writer.flow.control.announce(True)
            if connection in self._own and not answers:
                self._link.tell(b"numbers %d" % connection.link.writer.receipts.rules.first)
            handed.told(server.word, answers=answers)
        named = {server.sender for server in servers}
        for connection in [one for one in self._own if one.sender not in named]:
            self._own.discard(connection)
            self._group.spawn(self._let_go, connection)

    def _reach(self, server: Server) -> Connection | None:
        """Connect to a server of the API's."""
        try:
            connection = self._transceiver.add_connection(
                server.sender,
                None,
                reachable(server.endpoint, self._link.endpoint),
                stand_in=server.stand_in,
                curve_server=server.key.encode() or None,
            )
        except GreentxError as error:
            log.warning("requests of sender %s cannot be answered: %s", shown(server.sender), error)
            return None
        self._own.add(connection)
        connection.gives_way = True
        writer = connection.link.writer
        self._guard(connection)
        # The relay passes them on.
        if not server.stand_in:
            writer.receipts.come()
        return connection

    def _let_go(self, connection: Connection) -> None:
        # Meanwhile it may have been removed, and another one added under the same name.
        if self._transceiver.connections.get(connection.sender) is connection:
            self._transceiver.remove_connection(connection.sender)

    def _handed_to(self, connection: Connection) -> HandedOn:
        handed = self._handed.get(connection)
        if handed is None:
            handed = self._handed[connection] = HandedOn(connection, self._reports, self._link.tell, self._ask)
            if connection not in self._own:
                self._guard(connection)
        return handed

    def _guard(self, connection: Connection) -> None:
        pipe = connection.link.writer.pipe
        pipe.gate = partial(self._gate, connection)
        pipe.batch_seconds = GATED_BATCH_SECONDS

    def _ask(self) -> None:
        """Ask the relay which lives of the servers are the present ones."""
        self._asked += 1
        self._link.tell(b"ask %d" % self._asked)

    # -- what is answered --------------------------------------------------------------------------------------------

    def _gate(self, connection: Connection, messages: Sequence[bytes]) -> bool:
        """Whether messages may go out to a server now; the relay hears first whose answers begin with them."""
        if connection in self._own and not self._link.may_answer():
            return False
        handed = self._handed.get(connection)
        if handed is None or not self._link.in_session:
            return True
        begun = handed.begins(messages)
        if begun:
            self._link.tell(b"begun " + b" ".join(begun))
        self._reports.leaving(connection, len(messages))
        # Where it cannot be said at once it is said first all the same, and the messages wait.
        return self._link.flush()

    def _sweep(self) -> None:
        for handed in self._handed.values():
            handed.sweep()

    # -- what the Transceiver says -----------------------------------------------------------------------------------

    def ready(self, connection: Connection) -> None:
        """A server is there: what was held for it may go on."""
        handed = self._handed.get(connection)
        if handed is None:
            # Its server has added it, maybe in the place of ours.
            if self._link.in_session:
                self._ask()
        elif handed.word:
            handed.server_ready()

    def lost(self, connection: Connection) -> None:
        """A server has gone."""
        handed = self._handed.get(connection)
        if handed is not None:
            handed.server_lost()

    def removed(self, connection: Connection) -> None:
        """Nothing more goes to it."""
        self.lost(connection)
        handed = self._handed.pop(connection, None)
        self._reports.removed(connection)
        self._own.discard(connection)
        for word in [word for word, one in self._of_word.items() if one is handed]:
            del self._of_word[word]

    def notice(self, connection: Connection, request: Request) -> bool:
        """A connection has ended: the relay knows already."""
        handed = self._handed.get(connection)
        if handed is not None and request.is_disconnect():
            handed.connection_ended(request.conn_id)
        return False

    def broadcast(self, broadcast: Broadcast) -> int:
        """Have the API send a message to all that it has."""
        return self.sockets.broadcast(broadcast)

    def settled(self, connection: Connection, request: Request) -> None:
        """Something was answered."""
        handed = self._handed.get(connection)
        if handed is not None:
            handed.settled(request)

    # -- the end -----------------------------------------------------------------------------------------------------

    def stop_intake(self, timeout: float) -> None:
        """Have the relay give us nothing new."""
        self._link.leave(timeout)

    def stop(self, linger: float) -> None:
        """Say what was answered."""
        if self in self._shared.extensions:
            self._shared.extensions.remove(self)
        self._group.kill()
        self._reports.stop()
        self.sockets.stop()
        self._link.stop(linger)

    def stale(self, sender: str) -> int:
        """How many requests of a sender came too late, out of an older life of the server."""
        return sum(one.stale for connection, one in self._handed.items() if connection.sender == sender)

    def status(self) -> dict[str, Any]:
        """Return what ``STATUS`` shows."""
        return {"open": sum(one.working for one in self._handed.values()), "websockets": len(self.sockets)}
