"""What a relay tells its Nodes of the servers behind the API."""

from __future__ import annotations

import uuid
from itertools import count

from ..errors import RemoteProtocolError
from ..handler.connection import Connection
from ..handler.transceiver import Transceiver
from ..protocol.flow import range_of
from .messages import MAX_SERVERS, Server, Welcome, build_servers, build_welcome, numbers
from .nodes import Nodes, NodeSession

__all__ = ["Servers", "Words"]


class Words:
    """Makes words that no other relay makes, for lives of servers.

    Attributes:
        relay: The relay's own.
    """

    def __init__(self) -> None:
        # Random: after a restart of the API its Nodes must not take the new one's words for the old one's.
        self.relay = uuid.uuid4().hex[:12]
        self._numbers = count(1)

    def of(self, connection: Connection) -> str:
        """Return what the present life of a connection set's server is called."""
        life = connection.link.life
        # Made when it is first needed: most lives of most servers are never talked of.
        if not life.word:
            life.word = f"{self.relay}.{next(self._numbers)}"
        return life.word


class Servers:
    """Says where they are, and what their present lives are called; knows which receipts are whose.

    Args:
        transceiver: The API's.
        nodes: Those that are told.
        words: What lives are called.
    """

    def __init__(self, transceiver: Transceiver, nodes: Nodes, words: Words) -> None:
        self._transceiver = transceiver
        self._nodes = nodes
        self._words = words
        self._credited: set[Connection] = set()
        # By the first of the numbers that its receipts have.
        self._receipts: dict[int, NodeSession] = {}
        self._numbers: dict[NodeSession, dict[int, None]] = {}
        nodes.on(b"ask", self._on_ask)
        nodes.on(b"numbers", self._on_numbers)
        nodes.gone.append(self._on_gone)

    def welcome(self, at: int, topics: str | None) -> tuple[bytes, bytes]:
        """Return what a new session is told when our clock shows *at*, in milliseconds."""
        return build_welcome(Welcome(self._words.relay, at, topics or "", self._list()))

    def tell(self) -> None:
        """Tell all Nodes."""
        self._nodes.send_all(b"servers 0", build_servers(self._list()))

    def check_credits(self, connection: Connection) -> None:
        """Tell of a server that says what it writes, once that is known."""
        # Mongrel2 says it in the first request of a connection only (probed), which any Node may get.
        if connection.link.writer.flow.control.announced and connection not in self._credited:
            self._credited.add(connection)
            self.tell()

    def lost(self, connection: Connection) -> None:
        """A server has gone."""
        self._credited.discard(connection)
        self.tell()

    def receipt_of(self, conn_id: str) -> NodeSession | None:
        """Return whose receipt the notice of a connection is, ``None`` where it is none of a Node's."""
        first = range_of(conn_id)
        return None if first is None else self._receipts.get(first)

    def _list(self) -> list[Server]:
        found = []
        for connection in self._transceiver.connections.values():
            writer = connection.link.writer
            # Only stand-ins demand a key, which the Node cannot know otherwise.
            key = None if writer.dial is None or not connection.link.stand_in else writer.dial.server_key
            found.append(
                Server(
                    connection.sender,
                    self._words.of(connection),
                    connection.pub_endpoint,
                    connection.link.stand_in,
                    writer.flow.control.announced,
                    "" if key is None else key.decode(),
                )
            )
        return found

    def _on_ask(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        """A Node asks which lives are the present ones, since its own connection to a server broke."""
        for connection in self._transceiver.connections.values():
            # The server's end may be known to ZeroMQ and not to us.
            connection.link.writer.pipe.check()
        self._nodes.send(session, b"servers %b" % b"".join(words[:1]), build_servers(self._list()))

    def _on_numbers(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        mine = self._numbers.setdefault(session, {})
        for first in numbers(words):
            if range_of(str(first)) != first:
                raise RemoteProtocolError(f"{first} is not the first of the numbers of a process")
            mine[first] = None
            # It may have another session's until now: one that has not ended, of the same Node.
            self._receipts[first] = session
            if len(mine) > MAX_SERVERS:
                self._forget(session, next(iter(mine)))

    def _forget(self, session: NodeSession, first: int) -> None:
        self._numbers[session].pop(first)
        if self._receipts.get(first) is session:
            del self._receipts[first]

    def _on_gone(self, session: NodeSession) -> None:
        for first in list(self._numbers.get(session, ())):
            self._forget(session, first)
        self._numbers.pop(session, None)
