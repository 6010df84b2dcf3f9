"""What no answer is due to: messages of JSON and XML sockets, and pieces of bodies.

All of one browser connection go to one Node, in order, also where that is slow. Nobody says when one was handled, so
what a Node had when it died is in doubt, all of it: the connections are closed, and clients begin anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from ..handler.connection import Connection
from ..protocol.request import Request, parse_request
from ..protocol.requests import build_disconnect_notice
from .counts import Counts
from .nodes import Nodes, NodeSession
from .sticky import MAX_BOUND, Sticky

__all__ = ["Events"]

log = logging.getLogger("greentx.relay")


class Events:
    """Those of one relay.

    All methods belong to the hub's thread; none blocks.

    Args:
        nodes: Who gets them.
        sticky: Whose browser connections they are.
        counts: Of what became of them.
        word: Returns what the present life of a connection set's server is called.
        offer: Gives a message of a server, whose life has that word, to a plain handler; returns whether one has it.
        limit: How many connections are remembered; beyond it those are forgotten that said nothing for longest.

    Attributes:
        ended: Nobody is to get any more.
    """

    def __init__(
        self,
        nodes: Nodes,
        sticky: Sticky,
        counts: Counts,
        *,
        word: Callable[[Connection], str],
        offer: Callable[[str, bytes], bool],
        limit: int = MAX_BOUND,
    ) -> None:
        self.ended = False
        self._nodes = nodes
        self._sticky = sticky
        self._counts = counts
        self._word = word
        self._offer = offer
        self._limit = limit
        # What the server calls itself, and the Nodes that had messages of it: more than one, where one left.
        self._had: OrderedDict[tuple[Connection, str], tuple[str, list[NodeSession]]] = OrderedDict()
        self._of: dict[NodeSession, dict[tuple[Connection, str], None]] = {}
        nodes.gone.append(self._gone)

    def send(self, connection: Connection, request: Request, message: bytes) -> None:
        """Send one to the Node that has its connection."""
        if self.ended:
            connection.answers.abandon(request)
            return
        conn_id = request.conn_id
        # What the server had read of it before it heard of that.
        if connection.link.life.requests.is_closed(conn_id):
            return
        is_piece = request.method == "UPLOAD_STREAM"
        bound = self._sticky.of(connection).get(conn_id)
        word = self._word(connection)
        # One that has no room stays: what comes waits behind what it has.
        if bound is None or (not bound.open and not bound.session.serves(word)):
            # A piece of a body whose request is not known, or was refused, is of no use to anybody.
            session = None if is_piece else self._nodes.choose(word)
            if session is None:
                if not self._offer(word, message):
                    log.warning("%s %s was dropped: no Node has room", request.method, request.path)
                    connection.answers.abandon(request)
                return
            bound = self._sticky.bind(connection, conn_id, session)
        if not is_piece:
            self._remember((connection, conn_id), request.sender, bound.session)
        self._counts.forwarded += 1
        self._nodes.send(bound.session, b"event %b" % word.encode(), message)

    def _remember(self, key: tuple[Connection, str], sender: str, session: NodeSession) -> None:
        had = self._had.get(key)
        if had is None:
            if len(self._had) >= self._limit:
                self.forget(*next(iter(self._had)))
            had = self._had[key] = sender, []
        else:
            self._had.move_to_end(key)
        if session not in had[1]:
            had[1].append(session)
            self._of.setdefault(session, {})[key] = None

    def forget(self, connection: Connection, conn_id: str) -> None:
        """A browser connection has ended."""
        key = connection, conn_id
        for session in self._had.pop(key, ("", []))[1]:
            self._of[session].pop(key, None)

    def lost(self, connection: Connection) -> None:
        """The server of a connection set has gone, and all its browsers with it."""
        for key in [key for key in self._had if key[0] is connection]:
            self.forget(*key)

    def _gone(self, session: NodeSession) -> None:
        keys = self._of.pop(session, {})
        if keys and not session.finished:
            log.warning("node %s has gone; %d connections whose messages it had are closed", session.word, len(keys))
        for key in keys:
            sender, sessions = self._had[key]
            sessions.remove(session)
            if not session.finished:
                self._close(key, sender)
            elif not sessions:
                del self._had[key]

    def _close(self, key: tuple[Connection, str], sender: str) -> None:
        connection, conn_id = key
        self.forget(connection, conn_id)
        self._sticky.forget(connection, conn_id)
        self._counts.closed += 1
        request = parse_request(build_disconnect_notice(sender, conn_id))
        request.life = connection.link.life
        connection.answers.abandon(request)
