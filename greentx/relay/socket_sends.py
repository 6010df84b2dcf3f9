"""What Nodes send to WebSockets, and what is told of it.

All is written as it comes, without waiting, so that it keeps its order, with broadcasts as well. How much may wait for
a browser that does not read is bounded by its Node, whose ``send()`` waits until it is told that bytes have left. They
have where no more waits here than a handler of this process would leave there without waiting.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import gevent
from gevent.pool import Group

from ..errors import GreentxError, LocalProtocolError, RemoteProtocolError
from ..handler.broadcasts import place_broadcast, wait_for_all
from ..handler.shared import Shared
from ..handler.transceiver import Transceiver
from ..protocol.websocket.frames import MAX_CONTROL_PAYLOAD, Opcode
from ..protocol.websocket.registry import Registry
from ..protocol.websocket.sharing import Broadcast
from ..transport import Placed
from ..transport.writer import OUTBOX_LIMIT
from .nodes import Nodes, NodeSession
from .socket_messages import (
    ACK,
    CAST,
    CLOSE,
    COUNT,
    FAIL,
    JOIN,
    LEAVE,
    PING,
    PONG,
    SEND,
    parse_cast,
    parse_group,
    parse_number,
    parse_numbers,
    parse_reason,
    split_flags,
)
from .socket_table import Socket, SocketTable

__all__ = ["ACK_BYTES", "SENT_BYTES", "SocketSends"]

log = logging.getLogger("greentx.relay")

#: What a message counts next to its payload, and of how many bytes at once a Node is told that they have left.
SENT_BYTES = 128
ACK_BYTES = 64 * 1024

# While a browser does not read.
_LOOK_SECONDS = 0.02


class SocketSends:
    """Carries out what Nodes say for the browsers of WebSockets.

    All methods belong to the hub's thread, and none blocks.

    Args:
        transceiver: The API's.
        shared: Its.
        nodes: The Nodes.
        table: The WebSockets.
    """

    def __init__(self, transceiver: Transceiver, shared: Shared, nodes: Nodes, table: SocketTable) -> None:
        self._transceiver = transceiver
        self._registry: Registry = shared.registry
        self._nodes = nodes
        self._table = table
        self._group = Group()
        # Those of which something is to be told that has not left, and the greenlet that looks.
        self._slow: dict[int, Socket] = {}
        self._looking: Any = None
        for kind, call in (
            (SEND, self._on_send),
            (PING, self._on_ping),
            (CLOSE, self._on_close),
            (FAIL, self._on_fail),
            (JOIN, self._on_join),
            (LEAVE, self._on_leave),
            (CAST, self._on_cast),
        ):
            nodes.on(kind, call)

    def stop(self) -> None:
        """End the greenlets."""
        self._group.kill()

    def _find(self, session: NodeSession, number: int) -> Socket | None:
        socket = self._table.find(session, number)
        # It may have ended, and the Node not know yet.
        return None if socket is None or socket.entry is None else socket

    # -- to one browser ----------------------------------------------------------------------------------------------

    def _on_send(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        number, flags = parse_numbers(words, 2)
        opcode, rsvd, _ = split_flags(flags)
        socket = self._table.find(session, number)
        if socket is None:
            return
        if socket.entry is not None:
            try:
                socket.connection.sessions.send_to(socket.entry, payload, opcode, rsvd, wait=False)
            except LocalProtocolError as error:
                raise RemoteProtocolError(str(error)) from error
        socket.left += len(payload) + SENT_BYTES
        if socket.left >= ACK_BYTES and not self._tell_left(socket):
            self._slow[socket.number] = socket
            if not self._looking:
                self._looking = self._group.spawn(self._look)

    def _tell_left(self, socket: Socket) -> bool:
        """Tell its Node what has left, if it has; returns whether there is nothing more to tell."""
        session = socket.session
        if session is None:
            return True
        writer = socket.connection.link.writer
        # Of one that has ended nothing waits.
        if socket.entry is not None and (writer.pipe_full or writer.flow.waiting(socket.sid[1]) > OUTBOX_LIMIT):
            return False
        self._nodes.send(session, b"%b %d %d" % (ACK, socket.number, socket.left))
        socket.left = 0
        return True

    def _look(self) -> None:
        """While browsers do not read: see whether they have."""
        # One for all: of an outbox that has room again its waiters are told alone, which would be a greenlet each.
        try:
            while self._slow:
                gevent.sleep(_LOOK_SECONDS)
                for socket in list(self._slow.values()):
                    if self._tell_left(socket):
                        del self._slow[socket.number]
        finally:
            self._looking = None

    def _on_ping(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        socket = self._find(session, parse_number(words))
        if socket is None or socket.entry is None:
            return
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise RemoteProtocolError(f"the payload of a ping is {len(payload)} bytes, limit {MAX_CONTROL_PAYLOAD}")
        socket.entry.on_pong = partial(self._pong, socket)
        socket.connection.sessions.send_to(socket.entry, payload, Opcode.PING, wait=False)

    def _pong(self, socket: Socket, payload: bytes) -> None:
        if socket.session is not None:
            self._nodes.send(socket.session, b"%b %d" % (PONG, socket.number), payload)

    def _on_close(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        number, code = parse_numbers(words, 2)
        reason = parse_reason(payload)
        socket = self._find(session, number)
        if socket is None or socket.entry is None:
            return
        try:
            socket.connection.sessions.close(socket.entry, code or None, reason)
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error)) from error

    def _on_fail(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        number, code = parse_numbers(words, 2)
        reason = parse_reason(payload)
        socket = self._find(session, number)
        if socket is not None and socket.entry is not None:
            entry = socket.entry
            self._table.forget(socket)  # there it has ended already
            socket.connection.sessions.fail(entry, code, reason)

    # -- groups ------------------------------------------------------------------------------------------------------

    def _on_join(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        group = parse_group(payload)
        socket = self._find(session, parse_number(words))
        # Its number may be another's by now.
        if socket is not None and self._registry.get(socket.sid) is socket.entry:
            self._registry.join(socket.sid, group)

    def _on_leave(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        group = parse_group(payload)
        socket = self._find(session, parse_number(words))
        if socket is not None and self._registry.get(socket.sid) is socket.entry:
            self._registry.leave(socket.sid, group)

    def _on_cast(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        number, flags = parse_numbers(words, 2)
        opcode, rsvd, _ = split_flags(flags)
        if opcode not in (Opcode.TEXT, Opcode.BINARY) or rsvd:
            raise RemoteProtocolError(f"{flags} are not the flags of a broadcast")
        cast = parse_cast(payload)
        connections = self._transceiver.connections.values()
        broadcast = Broadcast(cast.message, opcode, cast.group, cast.exclude)
        reached = 0
        try:
            for extension in self._transceiver.shared().extensions:
                reached += extension.broadcast(broadcast)
            # Its places at once, and behind what this Node has sent before; the waits elsewhere.
            placed = place_broadcast(self._registry, connections, broadcast)
        except GreentxError as error:
            self._nodes.send(session, b"%b %d 0" % (COUNT, number), str(error).encode())
            return
        self._group.spawn(self._count, session, number, placed, reached)

    def _count(self, session: NodeSession, number: int, placed: list[Placed], reached: int) -> None:
        why = ""
        try:
            reached += wait_for_all(placed)
        except GreentxError as error:
            why = str(error)
        self._nodes.send(session, b"%b %d %d" % (COUNT, number, reached), why.encode())
