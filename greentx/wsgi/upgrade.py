"""A WSGI request that asks for a WebSocket: what its application is offered, and what becomes of it.

Whether the client is let in is the application's decision, which it makes by what it uses:

* ``environ['wsgi.websocket']``, a :class:`~greentx.wsgi.offered.WebSocket`; the 101 goes out when it is first used;
* ``environ['werkzeug.socket']``, a socket for libraries that write the 101 and the frames themselves; see
  :mod:`greentx.wsgi.bridge`;
* neither, but ``start_response()``: an ordinary answer, behind which the connection is closed.

Once a WebSocket was used, what the application returns, and what it gives to ``start_response()``, goes nowhere. How
the application ends decides what the client is told, where the WebSocket is still open then:

========================================================  ============================================================
the application                                           close code
========================================================  ============================================================
returns                                                   1000
raises anything                                           1011; ``handle_error()`` logs it
calls ``start_response()`` with a status from 400 on      1011: a framework has caught, and logged, what a route raised
is killed, as by the end of the server                    1001
raises ``StopIteration`` after it used the raw socket     1000: so applications leave gunicorn
========================================================  ============================================================

On a Node of a relay a WebSocket may come from another Node, whose application had it before, and may go on at another
one: ``environ['greentx.adopted']`` says the first, and the WebSocket's ``moved`` the second, where it has ended here.
``environ['greentx.state']`` is what the application keeps of it (JSON), as the former one left it; in one process, too.
``environ['greentx.websocket']`` is what it joins groups by, with each of the two ways; see :mod:`greentx.wsgi.groups`.
An application that is killed by the end of its server has its WebSocket go on elsewhere: no close frame is sent; else
it is closed with 1001, as in one process. Of
Engine.IO's WebSockets none goes on, since its sessions are in the memory of the process that ended: they are closed
with 1012 (service restart), and their clients connect again.

Where it has ended before, an error that only says so is not logged: ``WebSocketError``, or Python's ``ConnectionError``
of the raw socket. The application has to catch what a library raises of its own, as simple-websocket its
``ConnectionClosed`` (flask-sock does so): it is logged as any other error.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import TYPE_CHECKING

from gevent import GreenletExit

from ..errors import ConnectionClosed, GreentxError
from ..handler.clock import current_date
from ..handler.state import State
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.handshake import Accepted, Handshake, Refused
from ..protocol.websocket.registry import CLOSED
from .bridge import Bridge, BridgeSocket
from .groups import Member
from .offered import MSG_SOCKET_DEAD, Client, WebSocket, WebSocketError
from .sessions import is_of_a_session

if TYPE_CHECKING:
    from ..handler.websocket import WebSocket as CoreWebSocket
    from ..protocol.websocket.registry import Entry, Registry
    from .handler import WSGIHandler

__all__ = [
    "SCATTERED",
    "Upgrade",
]

log = logging.getLogger("greentx.wsgi.websocket")

_OFFERED = ("wsgi.websocket", "wsgi.websocket_version", "werkzeug.socket")
_TOLD = ("greentx.adopted", "greentx.state", "greentx.websocket")

#: Why there are no WebSockets where several processes share a handler entry.
SCATTERED = (
    "several processes share one handler entry of Mongrel2, and the messages of one WebSocket would scatter over them; "
    "WebSockets need one worker"
)


class Upgrade:
    """One opening handshake on its way through a WSGI application.

    Args:
        handler: Whose ``environ`` is filled in.

    Attributes:
        used: The application has used a WebSocket: the connection speaks frames.
        carrier: Where another process runs the protocol, what stands for that; else ``None``.
        adopted: Another Node's application had it before.
        state: What the application keeps of it.
        websocket: What it is offered as ``environ['wsgi.websocket']``.
        socket: The WebSocket itself, once that was used; ``None`` before, and where the raw socket is used.
    """

    def __init__(self, handler: WSGIHandler) -> None:
        self.used = False
        self._returned = False
        self._failed = False
        self._handler = handler
        self._exchange = handler.socket
        self._answer: Accepted | None = None
        self._refused: Refused | None = None
        self.socket: CoreWebSocket | None = None
        self._entry: Entry | None = None
        self._bridge: Bridge | None = None
        environ = handler.environ
        self.websocket = WebSocket(self, environ, handler)
        request = self._exchange.request
        carrier = self.carrier = request.carrier
        self.adopted = carrier is not None and carrier.adopted
        self.state = State() if carrier is None else State(carrier.state, carrier.write_state)
        environ["greentx.adopted"] = self.adopted
        environ["greentx.state"] = self.state
        # Checked before the application runs: it could not let in a client whose handshake is malformed.
        answer = self._check()
        if isinstance(answer, Refused):
            self._refused = answer
            return
        self._answer = answer
        environ["wsgi.websocket"] = self.websocket
        environ["wsgi.websocket_version"] = self.websocket.version
        environ["greentx.websocket"] = Member(self, request.sid)
        if carrier is not None:
            # Who runs the protocol compresses: a library here has nothing to agree on.
            environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
        environ["werkzeug.socket"] = BridgeSocket(self._open_bridge, self._use)

    def _check(self) -> Accepted | Refused:
        handler = self._handler
        server = handler.server
        connection = self._exchange.connection
        why = SCATTERED if connection.sessions.options.shared else ""
        if server.websockets_refused is not None:
            # Asked each time: it may depend on how many workers run now.
            why = why or server.websockets_refused()
        if why:
            log.warning("a WebSocket at %r is refused: %s", self.websocket.path, why)
            return Refused(503, body=f"{why}\n")
        # None: as the Transceiver was told.
        handshake: Handshake | None = None
        app_protocol = getattr(handler.application, "app_protocol", None)
        if app_protocol is not None:
            # gevent-websocket's way to choose a subprotocol, by the path; it has one, or none.
            name = app_protocol(self.websocket.path)
            agreed = connection.sessions.options.handshake
            handshake = dataclasses.replace(agreed, subprotocols=(name,) if name else ())
        return connection.sessions.check(self._exchange.request, handshake)

    def withdraw(self) -> None:
        """Offer nothing: this is a request as any other."""
        for name in (*_OFFERED, *_TOLD):
            self._handler.environ.pop(name, None)
        self._answer = None

    def run(self) -> None:
        """Have the handler run its application, and end the WebSocket behind it.

        A handshake that has to be refused, whatever the application thinks of it, is answered without asking it. Raises
        what the application raises, but where that only says that the WebSocket has ended.
        """
        handler = self._handler
        if self._refused is not None:
            self._refuse(self._refused)
            return
        if self.adopted and is_of_a_session(handler.environ.get("QUERY_STRING", "")):
            self._end_session()
            return
        try:
            handler.run_application()
            if not self.used and handler.status is None and self._answer is not None:
                self.accept()  # neither used nor answered: closed at once, as by gevent-websocket
        except BaseException as error:  # raised again, or reported
            # Not a WebSocket yet: the handler answers for it, by a 500.
            if not self.used:
                leaving = self._exchange.connection.sessions.relayed.leaving
                if self.carrier is not None and leaving and isinstance(error, GreenletExit):
                    # Another Node's application may let it in.
                    self._exchange.ended = True
                    self._exchange.connection.answers.fail(self._exchange.request, 503)
                raise
            # The peer is to know whether it may come again at once (1001), or met a fault (1011).
            if isinstance(error, GreenletExit):
                self._end(CloseCode.GOING_AWAY, killed=True)
                raise
            if self.socket is None and isinstance(error, StopIteration):
                self._end(CloseCode.NORMAL_CLOSURE)
            # While it is open, such an error is about another connection: a database's, another client's.
            elif not self._end(CloseCode.INTERNAL_ERROR) and isinstance(
                error, ConnectionError if self.socket is None else WebSocketError
            ):
                log.debug("%r: %r", self, error)
            else:
                # Not raised: the handler takes some of them for the end of its own client.
                handler.handle_error(*sys.exc_info())
        else:
            if self.used:
                self._end(CloseCode.INTERNAL_ERROR if self._failed else CloseCode.NORMAL_CLOSURE)
        finally:
            self._returned = True
            if self._bridge is not None:  # which may have been looked at only
                self._bridge.finish(CloseCode.NORMAL_CLOSURE)

    def _refuse(self, refused: Refused) -> None:
        data = refused.build(date=current_date())
        self._handler.note_answer(data[len(b"HTTP/1.1 ") : data.index(b"\r\n")], len(data))
        self._exchange.send(data, last=True, close=True)

    def _end_session(self) -> None:
        """Close a WebSocket of Engine.IO: its session was in the memory of the Node that ended.

        Its client would go on with a server that knows nothing of it; told of a restart, it begins a new session.
        """
        self.accept().finish(CloseCode.SERVICE_RESTART)
        self._end(CloseCode.SERVICE_RESTART)

    @property
    def moved(self) -> bool:
        """It has ended here, and goes on at another Node."""
        return self.carrier is not None and self.carrier.moved

    def note_status(self, status: str) -> None:
        """The application answers, though it has used the WebSocket: nobody gets that, but an error is told."""
        self._failed = str(status)[:1] in ("4", "5")

    def accept(self) -> CoreWebSocket:
        """Let the client in, if that was not done, and return its WebSocket.

        Raises ``WebSocketError`` where it has gone, or was answered in another way.
        """
        if self.socket is None:
            if self.used or self._answer is None or self._handler.headers_sent:
                raise WebSocketError(MSG_SOCKET_DEAD)
            try:
                socket = self._exchange.connection.accept_websocket(self._exchange.request, self._answer)
            except ConnectionClosed as error:
                raise WebSocketError(MSG_SOCKET_DEAD) from error
            self.socket = socket
            registry = self.registry
            self._entry = None if registry is None else registry.get(socket.sid)
            # Mongrel2's notice goes to the WebSocket now, not to the exchange.
            socket.on_end(self._exchange.lose)
            server = self._handler.server
            server.clients[self._exchange.request.sid] = Client(self._handler.client_address, self.websocket)
            self._switch(len(self._answer.head))
        return self.socket

    @property
    def registry(self) -> Registry | None:
        """Where it is while it is live; ``None`` once the server has ended."""
        transceiver = self._handler.server.transceiver
        return None if transceiver is None else transceiver.websockets

    @property
    def entry(self) -> Entry | None:
        """What is known of it once the client was let in, by either way; ``None`` before."""
        return self._entry or (None if self._bridge is None else self._bridge.entry)

    def let_in(self) -> Entry:
        """Return what is known of it, once the client is let in: here, or by a library that has begun to.

        Blocks this greenlet until what the library wrote has been read.

        Raises:
            WebSocketError: The client has gone, or was answered in another way.
            ConnectionResetError: The same where a library has its socket.
        """
        if self._bridge is not None and self.used and self.socket is None:
            entry = self._bridge.wait_for_entry()
        else:
            self.accept()
            entry = self._entry
        if entry is None or entry.state == CLOSED:
            if self.socket is None:
                raise ConnectionResetError(MSG_SOCKET_DEAD)
            raise WebSocketError(MSG_SOCKET_DEAD)
        return entry

    def _open_bridge(self) -> Bridge:
        if self._bridge is None:
            if self.used or self._handler.headers_sent:
                # An OSError, which libraries that write to sockets expect.
                raise ConnectionResetError("the request was answered already, its socket cannot be used")
            self._bridge = Bridge(self._exchange, self._switch)
        return self._bridge

    def _use(self) -> None:
        """From here on nothing else is answered."""
        # A greenlet of the application may outlive it: nobody would take out what it puts in so late.
        if not self.used and not self._returned:
            # The exchange has ended as an HTTP request: nothing that the application returns may go out as one.
            self.used = self._exchange.ended = True
            self._handler.server.upgrades.add(self)

    def _switch(self, length: int, status: bytes = b"101 Switching Protocols") -> None:
        self._use()
        self._handler.note_answer(status, length)
        self._handler.connection_upgraded = True

    def go_away(self, code: int) -> None:
        """Begin to close what is open, with *code*: the server ends. Does not block."""
        try:
            if self.socket is not None:
                self.socket.begin_close(code)
            elif self._bridge is not None:
                self._bridge.begin_close(code)
        except GreentxError as error:
            log.warning("%r could not be closed: %s", self, error)

    def _end(self, code: int, *, killed: bool = False) -> bool:
        """Close with *code*, where it is open, and return whether it was; *killed*: another Node may go on."""
        try:
            # Of what was used: the other one may have been looked at.
            if self.socket is None:
                return self._bridge is not None and self._bridge.finish(code, killed=killed)
            was_open = not self.socket.closed
            try:
                self.socket.finish(code, killed=killed)
            except GreentxError as error:
                log.warning("%r could not be closed: %s", self, error)
            return was_open
        finally:
            # In any case: the end of the server waits until both are empty.
            server = self._handler.server
            server.upgrades.discard(self)
            server.clients.pop(self._exchange.request.sid, None)

    def __repr__(self) -> str:
        state = repr(self.socket or self._bridge) if self.used else "not used"
        return f"<Upgrade of connection {self._exchange.request.conn_id}: {state}>"
