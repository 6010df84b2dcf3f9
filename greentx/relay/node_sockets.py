"""A Node's WebSockets: the API runs their protocol, the application is here."""

from __future__ import annotations

import logging
from functools import partial
from itertools import count
from typing import Any

import gevent
from gevent.event import AsyncResult

from ..errors import GreentxError, RemoteProtocolError, SendTimeout, TransportError
from ..handler.shared import Shared
from ..handler.transceiver import Transceiver
from ..protocol.kinds import Kind
from ..protocol.request import Request, parse_request
from ..protocol.websocket.frames import CloseCode, Opcode, build_flags
from ..protocol.websocket.handshake import Refused
from ..protocol.websocket.sharing import Broadcast
from .link import Link
from .node_socket import NodeSocket
from .socket_messages import (
    ACK,
    ANSWER,
    CAST,
    COUNT,
    END,
    FAIL,
    MESSAGE,
    OPEN,
    PONG,
    Cast,
    parse_number,
    parse_numbers,
    parse_open,
    parse_reason,
    split_flags,
)
from .socket_reports import SocketReports

__all__ = ["NodeSockets"]

log = logging.getLogger("greentx.relay")

# Headers of messages whose receiver looks at none.
_HEADERS: dict[int, dict[str, str]] = {
    int(opcode): {"METHOD": Kind.WEBSOCKET.value, "FLAGS": build_flags(opcode)}
    for opcode in (Opcode.TEXT, Opcode.BINARY)
}


class NodeSockets:
    """All WebSockets of one Node.

    All methods belong to the hub's thread.

    Args:
        transceiver: The Node's.
        shared: Its.
        link: The connection to the relay.

    Attributes:
        reports: What is told of them.
    """

    def __init__(self, transceiver: Transceiver, shared: Shared, link: Link) -> None:
        self.reports = SocketReports(shared, link)
        self._transceiver = transceiver
        self._shared = shared
        self._context = shared.context
        self._link = link
        self._casts: dict[int, AsyncResult[int]] = {}
        self._numbers = count(1)
        for kind, call in (
            (OPEN, self._on_open),
            (MESSAGE, self._on_message),
            (PONG, self._on_pong),
            (ACK, self._on_ack),
            (END, self._on_end),
            (COUNT, self._on_count),
        ):
            link.on(kind, call)
        link.over.append(self._on_over)

    def __len__(self) -> int:
        return len(self.reports.sockets)

    # -- what the relay says -----------------------------------------------------------------------------------------

    def _on_open(self, words: list[bytes], payload: bytes) -> None:
        number = parse_number(words)
        try:
            opened = parse_open(payload)
            request = parse_request(opened.request)
            connection = self._transceiver.connections.get(opened.server)
            if connection is None or number in self.reports.sockets:
                raise RemoteProtocolError(f"WebSocket {number} of server {opened.server!r}, which is not known here")
        except RemoteProtocolError:
            # Nobody here would ever answer it: one of the two ends it, whatever it is.
            self._link.tell(b"%b %d %d" % (FAIL, number, CloseCode.INTERNAL_ERROR))
            self._link.tell(b"%b %d" % (ANSWER, number), Refused(500, body="the server failed\n").build())
            raise
        socket = NodeSocket(self.reports, number, opened, connection, request)
        self.reports.sockets[number] = socket
        request.carrier = socket
        request.adopted = opened.adopted
        request.life = connection.link.life
        if self._shared.handshake_events:
            connection.sessions.hold(request)
            connection.intake.accept(request, len(opened.request))
        elif opened.decided:
            socket.early = None
            connection.sessions.relayed.open(request, opened.subprotocol)
        else:
            connection.sessions.handshake(request)

    def _on_message(self, words: list[bytes], payload: bytes) -> None:
        number, which, flags = parse_numbers(words, 3)
        opcode, rsvd, redelivered = split_flags(flags)
        socket = self.reports.sockets.get(number)
        if socket is None:
            return  # let go meanwhile
        if not socket.hand.arrive(which, redelivered):
            raise RemoteProtocolError(f"message {which} of WebSocket {number} is not the next one")
        handshake = socket.request
        headers: Any = _HEADERS.get(opcode)
        if headers is None or not socket.receives:
            headers = {**handshake.raw, "METHOD": Kind.WEBSOCKET.value, "FLAGS": build_flags(opcode, rsvd)}
            headers.pop(b"METHOD", None)
        request = Request(handshake.sender, handshake.conn_id, handshake.path, headers, payload, Kind.WEBSOCKET.value)
        request.life = socket.connection.link.life
        request.carrier = socket
        request.opcode = opcode
        request.redelivered = redelivered
        if opcode == Opcode.TEXT:
            request.text = payload.decode(errors="replace")
        if socket.early is None:
            socket.deliver(request)
        else:
            socket.early.append(partial(socket.deliver, request))

    def _on_pong(self, words: list[bytes], payload: bytes) -> None:
        socket = self.reports.sockets.get(parse_number(words))
        entry = None if socket is None else socket.entry
        if entry is not None and entry.on_pong is not None:
            entry.on_pong(payload)

    def _on_ack(self, words: list[bytes], payload: bytes) -> None:
        number, size = parse_numbers(words, 2)
        socket = self.reports.sockets.get(number)
        if socket is not None:
            socket.window.left(size)

    def _on_end(self, words: list[bytes], payload: bytes) -> None:
        number, which, code = parse_numbers(words, 3)
        reason = parse_reason(payload)
        socket = self.reports.sockets.get(number)
        if socket is None:
            return  # let go meanwhile
        if not which:
            socket.end(code, reason)
            socket.forget()
        elif socket.hand.end(which):
            socket.end(code, reason)
        else:
            raise RemoteProtocolError(f"{which} is not the end of WebSocket {number}")

    def _on_count(self, words: list[bytes], payload: bytes) -> None:
        number, reached = parse_numbers(words, 2)
        waiting = self._casts.pop(number, None)
        if waiting is None:
            return
        if payload:
            waiting.set_exception(SendTimeout(parse_reason(payload), address=self.reports.endpoint, queued=True))
        else:
            waiting.set(reached)

    def _on_over(self) -> None:
        """The session is over: what it had is another Node's, or nobody's."""
        for socket in list(self.reports.sockets.values()):
            socket.gone()
        self.reports.over()
        casts, self._casts = self._casts, {}
        for waiting in casts.values():
            waiting.set_exception(self._away("whom a broadcast reached is not known"))

    # -- what the Transceiver says -----------------------------------------------------------------------------------

    def broadcast(self, broadcast: Broadcast) -> int:
        """Have the API send a message to all that it has. Blocks this greenlet until it has.

        Raises:
            TransportError: The relay is away, or went away meanwhile.
            SendTimeout: It did not say so in time.
        """
        if not self._link.in_session:
            raise self._away("a broadcast was not sent")
        number = next(self._numbers)
        excluded = broadcast.exclude
        sids = frozenset(sid for sid in excluded if len(sid) == 2 and all(isinstance(part, str) for part in sid))
        waiting: AsyncResult[int] = AsyncResult()
        self._casts[number] = waiting
        try:
            cast = Cast(broadcast.group, sids, broadcast.payload)
            why = self.reports.send(b"%b %d %d" % (CAST, number, broadcast.opcode), cast.build())
            if why:
                raise SendTimeout(why, address=self.reports.endpoint, queued=False)
            if gevent.getcurrent() is self._context.hub:
                return 0  # which must not wait
            waiting.wait(self._shared.send_timeout)
            if not waiting.ready():
                raise SendTimeout(
                    f"the relay at {self.reports.endpoint} did not say within {self._shared.send_timeout} s whom a "
                    f"broadcast reaches",
                    address=self.reports.endpoint,
                    queued=True,
                )
            reached: int = waiting.get()
            return reached
        finally:
            self._casts.pop(number, None)

    def _away(self, what: str) -> TransportError:
        return TransportError(f"{what}: {self._link.why}", address=self.reports.endpoint)

    def stop(self) -> None:
        """What is left goes on elsewhere."""
        for socket in list(self.reports.sockets.values()):
            try:
                socket.move()
            except GreentxError as error:
                log.warning("%r could not be let go: %s", socket, error)
