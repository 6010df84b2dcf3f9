"""A Node's two sockets to its relay, as an extension of the Node's Transceiver."""

from __future__ import annotations

import logging
from typing import Any

from gevent.pool import Group

from ..errors import GreentxError, LocalProtocolError, RemoteProtocolError
from ..handler.connection import Connection
from ..handler.shared import Extension, Shared
from ..handler.transceiver import Transceiver
from ..protocol.fields import shown
from ..protocol.kinds import Kind
from ..protocol.request import Request, parse_request
from ..transport import Receiver, SocketKind, Supervised
from ..transport.security import Dial
from .handed import HandedOn
from .messages import Handed, Told, own_topic, parse_end, parse_handed, parse_published, parse_told, topic_of
from .reports import Reports
from .topics import Topics

__all__ = ["Link"]

log = logging.getLogger("greentx.relay")


class Link(Extension):
    """A Node's way to its relay.

    Args:
        transceiver: The Node's, started.
        shared: Its connection sets'.
        name: Of the Node.
        pull_endpoint, sub_endpoint: The relay's.
        topics: What the Node is subscribed to.
        dial: How to connect to the relay.

    Attributes:
        bad_messages: How many messages meant nothing.
        pull, sub: Its sockets.
    """

    def __init__(
        self,
        transceiver: Transceiver,
        shared: Shared,
        name: str,
        pull_endpoint: str,
        sub_endpoint: str,
        topics: Topics,
        dial: Dial,
    ) -> None:
        self.bad_messages = 0
        self._transceiver = transceiver
        self._shared = shared
        self._name = name
        self._endpoints = pull_endpoint, sub_endpoint
        self._topics = topics
        context = shared.context
        self.pull = Receiver(context, SocketKind.PULL, self._on_request, security=dial, name=f"relay of {name}")
        self.sub = Receiver(
            context,
            SocketKind.XSUB,
            self._on_published,
            linger=context.linger,
            security=dial,
            name=f"subscriber {name}",
        )
        # Upstream by XSUB, which is connected anyway: a socket of its own would be a third one for each Node.
        self._reports = Reports(context, name, self.sub.send)
        self._handed: dict[Connection, HandedOn] = {}
        self._relay = ""
        self._asked = 0
        # Those that were made here, and not by the application.
        self._own: set[Connection] = set()
        self._group = Group()
        self._subscribers = Supervised(f"subscribers of {name}", topics.run)

    def start(self) -> None:
        """Connect to the relay; requests are pulled once Mongrel2 has subscribed to the answers."""
        # Before anything comes: the servers' comings and goings are told from now on.
        self._shared.extensions.append(self)
        for topic in self._topics.names:
            self.subscribe(topic)
        self.sub.subscribe(b"N")
        self.sub.subscribe(own_topic(self._name))
        self.sub.connect(self._endpoints[1])
        self._subscribers.start()
        # Where it was there before we were, nobody will say so again.
        first = self._transceiver.connections.get(self._transceiver.sender)
        if first is not None and first.link.subscribed:
            self.pull.connect(self._endpoints[0])

    def subscribe(self, topic: bytes) -> None:
        """Receive what is published to *topic*."""
        self.sub.subscribe(topic_of(topic))

    # -- what the Transceiver says -----------------------------------------------------------------------------------

    def ready(self, connection: Connection) -> None:
        """The server is there: what was held for it may go on; pull, where it is the entry's own."""
        self.handed_to(connection).go_on()
        if connection.sender == self._transceiver.sender:
            self.pull.connect(self._endpoints[0])

    def missing(self, connection: Connection) -> None:
        """The server of a connection set has been away for some time."""
        if connection.sender == self._transceiver.sender:
            # Other Nodes may be able to answer what would come here.
            self.pull.drop()
        elif connection in self._own:
            # Made for a server that only the API knew, such as a test's: it has gone for good, most likely.
            self._own.discard(connection)
            self._group.spawn(self._let_go, connection)

    def lost(self, connection: Connection) -> None:
        """The server has gone."""
        self.handed_to(connection).lost()

    def removed(self, connection: Connection) -> None:
        """Nothing more comes from it."""
        self._handed.pop(connection, None)
        self._own.discard(connection)

    def notice(self, connection: Connection, request: Request) -> bool:
        """A connection has ended: the API knows already."""
        if request.is_disconnect():
            self.handed_to(connection).working.pop(request.conn_id, None)
        return False

    def settled(self, connection: Connection, request: Request) -> None:
        """Let the relay know once nothing of a connection is open here any more."""
        handed = self._handed.get(connection)
        # Called for each answer; where nothing of the relay's is open that is all.
        if handed is not None and handed.working:
            token = handed.settled(request)
            if token is not None:
                self._reports.answered(connection, request.conn_id, token)

    def _let_go(self, connection: Connection) -> None:
        # Meanwhile it may have been removed, and another one added under the same name.
        if self._transceiver.connections.get(connection.sender) is connection:
            self._transceiver.remove_connection(connection.sender)

    def handed_to(self, connection: Connection) -> HandedOn:
        """Return what was handed on for a connection set."""
        handed = self._handed.get(connection)
        if handed is None:
            handed = self._handed[connection] = HandedOn(connection, self._ask, self._reports.received)
        return handed

    def stale(self, sender: str) -> int:
        """How many requests of a sender came too late, out of an older life of the server."""
        return sum(one.stale for connection, one in self._handed.items() if connection.sender == sender)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _on_request(self, message: bytes) -> None:
        try:
            handed = parse_handed(message)
        except RemoteProtocolError as error:
            self._bad(str(error))
            return
        request = handed.request
        connections = self._transceiver.connections
        connection = connections.get(request.sender)
        if connection is None:
            connection = self._reach(request.sender, handed)
        if connection is not None:
            self.handed_to(connection).accept(request, handed.life, handed.token)
            # Then the relay keeps what comes, for this Node or another.
            connection.intake.inbox.wait_for_space()

    def _reach(self, sender: str, handed: Handed) -> Connection | None:
        """Connect to a server that only the API has heard of, such as one that a test attached to it."""
        try:
            if not handed.endpoint:
                raise LocalProtocolError("it does not say where its server subscribes")
            connection = self._transceiver.add_connection(
                sender,
                None,
                handed.endpoint,
                stand_in=handed.stand_in,
                curve_server=handed.key.encode() or None,
            )
        except GreentxError as error:
            self._bad(f"a request of sender {shown(sender)} cannot be answered: {error}")
            return None
        self._own.add(connection)
        return connection

    def _bad(self, why: str) -> None:
        self.bad_messages += 1
        log.warning("%s: bad message number %d: %s", self._name, self.bad_messages, why)

    def _ask(self) -> None:
        """Ask the relay which lives of the servers are the present ones."""
        self._asked += 1
        self.sub.send(b"?%b %d" % (self._name.encode(), self._asked))

    # -- what is published -------------------------------------------------------------------------------------------

    def _on_published(self, message: bytes) -> None:
        kind = message[:1]
        try:
            if kind == b"N":
                self._on_notice(parse_request(message[1:]))
            elif kind == b"@":
                self.on_told(parse_told(message.partition(b" ")[2]))
            elif kind == b"T" and not self._topics.put(*parse_published(message)):
                self._bad("too many published messages wait to be handled, this one is dropped")
        except RemoteProtocolError as error:
            self._bad(f"published: {error}")

    def _on_notice(self, request: Request) -> None:
        connection = self._transceiver.connections.get(request.sender)
        if connection is None:
            return
        if request.method == Kind.WEBSOCKET_CLOSE:
            connection.sessions.relayed.ended(request.sid, *parse_end(request))
        elif request.is_notice():
            connection.intake.notice(request)

    def on_told(self, told: Told) -> None:
        """The relay says what its servers' present lives are called, or asks for a proof."""
        connections = self._transceiver.connections
        if told.prove is not None:
            sender, number = told.prove
            # Behind whatever we have answered: the server reads one connection's messages in their order.
            asked = connections.get(sender)
            if asked is not None:
                asked.link.writer.send_to_nobody(number)
            return
        # The protocol of its WebSockets was run by the one that has gone.
        if self._relay not in ("", told.relay):
            log.info("%s: the relay was started anew", self._name)
            for connection in connections.values():
                connection.sessions.relayed.end_all(1006, "the API restarted")
        self._relay = told.relay
        # Only the answer to the latest question: an older one may name a life that is over by now.
        if told.number == str(self._asked):
            for connection in connections.values():
                life = told.lives.get(connection.sender)
                if life is not None:
                    self.handed_to(connection).confirm(life)

    # -- the end -----------------------------------------------------------------------------------------------------

    def stop_intake(self, timeout: float) -> None:
        """Hand on what has arrived, and pull no more."""
        self.pull.stop(timeout)

    def stop(self, linger: float) -> None:
        """Say what was answered, and let go of the relay."""
        if self not in self._shared.extensions:
            return
        self._shared.extensions.remove(self)
        self._reports.stop()
        # A subscriber may be what stops the Node: it does not end itself in the middle of that.
        self._subscribers.kill()
        self._group.kill()
        self.sub.stop(linger)
        # Last: until here something may have come.
        self._topics.stop()

    @property
    def why(self) -> list[str]:
        """What does not work of the way to the relay, and what to look at."""
        found = [self._subscribers.trouble] if self._subscribers.trouble else []
        for what, one, endpoint in (("requests", self.pull, 0), ("what the relay publishes", self.sub, 1)):
            # Until Mongrel2 is there nothing is pulled, which its connection set says.
            if one.why and (one is self.sub or self._own_set_is_ready):
                why = f"{what} cannot be received from {self._endpoints[endpoint]} ({one.why})"
                found.append(f"{why}: is the API running, and is this its relay's endpoint?")
        return found

    @property
    def _own_set_is_ready(self) -> bool:
        own = self._transceiver.connections.get(self._transceiver.sender)
        return own is not None and own.ready

    def status(self) -> dict[str, Any]:
        """Return what ``STATUS`` shows."""
        return {
            "name": self._name,
            "pull": self._endpoints[0],
            "sub": self._endpoints[1],
            "connected": self.pull.connected,
            "why": self.why,
            "bad_messages": self.bad_messages,
        }
