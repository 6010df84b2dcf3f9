"""Opening handshakes that the API holds, for applications on Nodes to decide about."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gevent
from gevent.pool import Group

from ..errors import ConnectionClosed, GreentxError
from ..handler.connection import Connection
from ..protocol.headers import text_headers
from ..protocol.kinds import Kind
from ..protocol.request import Request
from ..protocol.requests import build_request
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.handshake import Refused, accept_key
from ..protocol.websocket.registry import Entry
from .nodes import Nodes, NodeSession
from .socket_messages import ACCEPT, ANSWER, parse_accept, parse_number
from .socket_table import Socket, SocketTable

__all__ = ["SocketOpenings", "handshake_of"]

log = logging.getLogger("greentx.relay")

# Handshakes that wait for a Node.
_MAX_WAITING = 10_000

_NO_NODE = Refused(503, body="no process is there for this WebSocket\n")


class SocketOpenings:
    """Those of one relay.

    All methods belong to the hub's thread, and none blocks.

    Args:
        nodes: The Nodes.
        table: The WebSockets.
        send_timeout: Seconds that one waits for a Node; ``None``: as long as its client.
    """

    def __init__(self, nodes: Nodes, table: SocketTable, send_timeout: float | None) -> None:
        self._table = table
        self._send_timeout = send_timeout
        self._later = Group()
        table.held_waits = self._wait
        nodes.on(ACCEPT, self._on_accept)
        nodes.on(ANSWER, self._on_answer)

    def hold(self, connection: Connection, request: Request, extra: Mapping[str, Any]) -> None:
        """Have an application on a Node answer an opening handshake; 503 after ``send_timeout`` without a Node."""
        socket = self._table.add(connection, request.sid, handshake_of(request, extra))
        socket.held = request
        self._table.place(socket, request)

    def _wait(self, socket: Socket) -> None:
        """No Node is there for one; none had it, or that one has gone."""
        if len(self._table.waiting) > _MAX_WAITING:
            self._refuse(socket, _NO_NODE.build())
        elif self._send_timeout is not None:
            self._later.spawn(self._expire, socket, socket.waits, self._send_timeout)

    def _expire(self, socket: Socket, waits: int, seconds: float) -> None:
        # Where a Node has it the time is the Node's, or its application's.
        gevent.sleep(seconds)
        if socket.held is not None and socket.session is None and socket.waits == waits:
            self._refuse(socket, _NO_NODE.build())

    def _on_accept(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        socket = self._table.find(session, parse_number(words))
        subprotocol, fields = parse_accept(payload)
        if socket is None or socket.held is None:
            return
        request, connection = socket.held, socket.connection
        agreed = connection.sessions.options.handshake
        try:
            handshake = replace(
                agreed,
                # What may block has been asked where the Node decided.
                origins=None if callable(agreed.origins) else agreed.origins,
                subprotocols=() if subprotocol is None else (subprotocol,),
                headers=fields,
            )
            answer = handshake.check(text_headers(request.raw), request.body)
            if isinstance(answer, Refused):
                self._refuse(socket, answer.build(), accepted=True)
                return
            connection.answers.take_out(request)
            connection.sessions.accept(request, answer, partial(self._let_in, socket))
        except ConnectionClosed:
            socket.held = None
            self._table.ended(socket, CloseCode.ABNORMAL_CLOSURE, "")
        except GreentxError as error:
            log.warning("the answer of node %s to a handshake will not do: %s", session.name, error)
            self._refuse(socket, Refused(500, body="the server failed\n").build(), accepted=True)

    def _let_in(self, socket: Socket, entry: Entry) -> Callable[[Request], None]:
        socket.held = None
        socket.entry = entry
        return partial(self._table.feed, socket)

    def _on_answer(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        socket = self._table.find(session, parse_number(words))
        if socket is None:
            return
        if socket.held is not None:
            self._refuse(socket, payload)
        elif socket.entry is not None:
            socket.connection.sessions.close(socket.entry, CloseCode.POLICY_VIOLATION)

    def _refuse(self, socket: Socket, answer: bytes, *, accepted: bool = False) -> None:
        request, socket.held = socket.held, None
        if accepted:
            # Its Node has let it in, and is to be told.
            self._table.ended(socket, CloseCode.ABNORMAL_CLOSURE, "refused")
        else:
            self._table.forget(socket)
        if request is not None:
            self._later.spawn(_send, socket.connection, request, answer)

    def stop(self) -> None:
        """End the greenlets."""
        self._later.kill()


def handshake_of(request: Request, extra: Mapping[str, Any]) -> bytes:
    """Return the message of an opening handshake, of which every event of a WebSocket has the headers."""
    key = request.header("sec-websocket-key")
    accept = accept_key(key) if isinstance(key, str) and key.isascii() else b""
    dropped = {"METHOD", b"METHOD", "FLAGS", b"FLAGS"}
    headers = {name: value for name, value in request.sent_headers.items() if name not in dropped}
    headers = {"METHOD": Kind.WEBSOCKET_HANDSHAKE.value, **headers, **extra}
    return build_request(request.sender, request.conn_id, request.path, headers, accept)


def _send(connection: Connection, request: Request, answer: bytes) -> None:
    try:
        if answer:
            connection.reply(request, answer)
        connection.close(request)
    except GreentxError as error:
        log.warning("%s %s could not be refused: %s", request.method, request.path, error)
