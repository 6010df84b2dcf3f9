"""A WSGI request that asks for a WebSocket: what its application is offered, and what becomes of it.

Whether the client is let in is the application's decision, which it makes by what it uses:

* ``environ['wsgi.websocket']``, a :class:`WebSocket`; the 101 goes out when it is first used;
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

Where it has ended before, an error that only says so is not logged: ``WebSocketError``, or Python's ``ConnectionError``
of the raw socket. The application has to catch what a library raises of its own, as simple-websocket its
``ConnectionClosed`` (flask-sock does so): it is logged as any other error.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit

from ..errors import ConnectionClosed, GreentxError, SendTimeout
from ..handler.clock import current_date
from ..protocol.websocket.frames import CloseCode, Opcode, parse_close
from ..protocol.websocket.handshake import Accepted, Handshake, Refused
from .bridge import Bridge, BridgeSocket

if TYPE_CHECKING:
    from ..handler.websocket import WebSocket as CoreWebSocket
    from .handler import WSGIHandler

__all__ = [
    "MSG_ALREADY_CLOSED",
    "MSG_CLOSED",
    "MSG_SOCKET_DEAD",
    "SCATTERED",
    "Client",
    "Stream",
    "Upgrade",
    "WebSocket",
    "WebSocketError",
]

log = logging.getLogger("greentx.wsgi.websocket")

MSG_SOCKET_DEAD = "Socket is dead"
MSG_ALREADY_CLOSED = "Connection is already closed"
MSG_CLOSED = "Connection closed"

#: Why there are no WebSockets where several processes share a handler entry.
SCATTERED = (
    "several processes share one handler entry of Mongrel2, and the messages of one WebSocket would scatter over them; "
    "WebSockets need one worker"
)


class WebSocketError(OSError):
    """The WebSocket has ended, or was answered with HTTP; the text is one of the ``MSG_`` constants."""


class Client:
    """What ``server.clients`` has for each WebSocket.

    Attributes:
        address: ``(host, port)`` of the browser, as far as it is known.
        ws: Its :class:`WebSocket`.
    """

    def __init__(self, address: Any, ws: WebSocket) -> None:
        self.address = address
        self.ws = ws


class Stream:
    """What a WebSocket has as its ``stream``: the way to its handler. The bytes themselves are Mongrel2's."""

    __slots__ = ("handler",)

    def __init__(self, handler: WSGIHandler) -> None:
        self.handler = handler


class _NoApplication:
    """Stands for a ``current_app`` that there is not."""

    def on_close(self, *args: object) -> None:
        """Do nothing."""


_NO_APPLICATION = _NoApplication()


class WebSocket:
    """``environ['wsgi.websocket']``, with the interface of gevent-websocket's.

    Attributes:
        environ: Of the request.
        handler: The :class:`~greentx.wsgi.WSGIHandler` that runs the application.
        stream: Leads to the handler, too.
    """

    OPCODE_CONTINUATION = int(Opcode.CONT)
    OPCODE_TEXT = int(Opcode.TEXT)
    OPCODE_BINARY = int(Opcode.BINARY)
    OPCODE_CLOSE = int(Opcode.CLOSE)
    OPCODE_PING = int(Opcode.PING)
    OPCODE_PONG = int(Opcode.PONG)

    def __init__(self, upgrade: Upgrade, environ: dict[str, Any], handler: WSGIHandler) -> None:
        self.environ = environ
        self.handler = handler
        self.stream = Stream(handler)
        self._upgrade = upgrade
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called, or the connection has ended and its last message was received."""
        if self._closed:
            return True
        socket = self._upgrade.accept()
        # Messages that came before the end can still be received, so it is not closed for the application.
        return socket.closed and not socket.pending

    @property
    def close_code(self) -> int | None:
        """After the end, RFC 6455's code: the peer's; what we ended it with for the peer's fault; or 1006 where no
        close frame came. ``None`` before, also while our own close frame has not been answered.
        """
        socket = self._upgrade.socket
        return None if socket is None else socket.close_code

    @property
    def close_reason(self) -> str:
        """After the end, the text that goes with :attr:`close_code`; ``""`` before."""
        socket = self._upgrade.socket
        return "" if socket is None else socket.close_reason

    @property
    def current_app(self) -> Any:
        """The server's application's ``current_app``, whose ``on_close`` is told why a call failed; or a stand-in."""
        return getattr(self.handler.server.application, "current_app", _NO_APPLICATION)

    @property
    def origin(self) -> str | None:
        """What the client gave as ``Origin``."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def protocol(self) -> str | None:
        """What the client gave as ``Sec-WebSocket-Protocol``: all that it would accept."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    @property
    def version(self) -> str | None:
        """The version of the protocol, ``"13"``."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def path(self) -> str | None:
        """``PATH_INFO`` of the request."""
        return self.environ.get("PATH_INFO")

    @property
    def logger(self) -> Any:
        """The server's logger."""
        return self.handler.server.logger

    def receive(self) -> str | bytearray | None:
        """Return the next message: ``str`` for text, ``bytearray`` for binary; ``None`` once the peer has closed.

        Blocks this greenlet.

        Raises:
            WebSocketError: It is closed: by :meth:`close`, or ``None`` was returned before.
        """
        if self._closed:
            self._fail(MSG_ALREADY_CLOSED)
        message = self._upgrade.accept().receive()
        if message is None:
            # None once, then errors: programs loop until they get it.
            self._closed = True
            self.current_app.on_close(MSG_CLOSED)
            return None
        # A bytearray, as from gevent-websocket: programs append to it.
        return message if isinstance(message, str) else bytearray(message)

    def send(self, message: str | bytes | bytearray | memoryview, binary: bool | None = None) -> None:
        """Send a message.

        Blocks this greenlet while the peer does not read.

        Args:
            binary: Send it as binary; ``None``: anything but ``str`` is.

        Raises:
            WebSocketError: It has ended.
            TypeError: It is neither ``str`` nor bytes.
        """
        if binary is None:
            binary = not isinstance(message, str)
        if self._closed:
            self._fail(MSG_SOCKET_DEAD)
        self._send(message, self.OPCODE_BINARY if binary else self.OPCODE_TEXT, MSG_SOCKET_DEAD)

    def send_frame(self, message: str | bytes | bytearray | memoryview, opcode: int) -> None:
        """Send one frame: text, binary, a ping, a pong, or a close frame (*message* is its payload).

        Raises as :meth:`send`; ``LocalProtocolError`` (a ``ValueError``) for what no frame may hold.
        """
        if self._closed:
            self._fail(MSG_ALREADY_CLOSED)
        self._send(message, opcode, MSG_ALREADY_CLOSED)

    def _send(self, message: str | bytes | bytearray | memoryview, opcode: int, text: str) -> None:
        # Not encode_message(): the opcode is the caller's here, and the TypeError gevent-websocket's.
        if isinstance(message, str):
            payload = message.encode()
        elif isinstance(message, (bytes, bytearray, memoryview)):
            payload = bytes(message)
        else:
            raise TypeError(f"a message is str or bytes, not {type(message).__name__}")
        socket = self._upgrade.accept()
        if socket.closed:
            self._fail(text)
        try:
            socket.conn.deliver_websocket(socket.sid[0], [socket.sid[1]], payload, opcode)
        except (ConnectionClosed, SendTimeout) as error:
            self._fail(MSG_SOCKET_DEAD, error)

    def close(self, code: int = 1000, message: str | bytes | None = b"") -> None:
        """Close with a close frame; does not wait for the peer's. A closed one stays as it is.

        Raises:
            LocalProtocolError: (a ``ValueError``) The code may not be sent, or the message is longer than 123 bytes.
        """
        if self._closed:
            self.current_app.on_close(MSG_ALREADY_CLOSED)
            return
        text = message or ""
        try:
            # begin_close() does not wait for the peer, as gevent-websocket does not.
            self._upgrade.accept().begin_close(code, text if isinstance(text, str) else bytes(text).decode())
        except WebSocketError:
            log.debug("%r has ended before it could be closed", self)
        self._closed = True

    def handle_ping(self, header: object, payload: bytes) -> None:
        """Send a pong with *payload*. There for programs that call it: the server answers pings by itself."""
        self.send_frame(payload, self.OPCODE_PONG)

    def handle_pong(self, header: object, payload: bytes) -> None:
        """Do nothing. The server looks after pongs by itself, and hands them to no application."""

    def handle_close(self, header: object, payload: bytes) -> None:
        """:meth:`close` as the payload of a close frame says. The server answers close frames by itself.

        Raises:
            RemoteProtocolError: *payload* is not that of a close frame.
        """
        code, reason = parse_close(payload)
        self.close(code if payload else CloseCode.NORMAL_CLOSURE, reason)

    def _fail(self, text: str, cause: BaseException | None = None) -> None:
        self.current_app.on_close(text)
        raise WebSocketError(text) from cause

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}: {self._upgrade!r}>"


class Upgrade:
    """One opening handshake on its way through a WSGI application.

    Args:
        handler: Whose ``environ`` is filled in.

    Attributes:
        used: The application has used a WebSocket: the connection speaks frames.
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
        self._bridge: Bridge | None = None
        environ = handler.environ
        self.websocket = WebSocket(self, environ, handler)
        # Checked before the application runs: it could not let in a client whose handshake is malformed.
        answer = self._check()
        if isinstance(answer, Refused):
            self._refused = answer
            return
        self._answer = answer
        environ["wsgi.websocket"] = self.websocket
        environ["wsgi.websocket_version"] = self.websocket.version
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
        for name in ("wsgi.websocket", "wsgi.websocket_version", "werkzeug.socket"):
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
        try:
            handler.run_application()
            if not self.used and handler.status is None and self._answer is not None:
                self.accept()  # neither used nor answered: closed at once, as by gevent-websocket
        except BaseException as error:  # raised again, or reported
            # Not a WebSocket yet: the handler answers for it, by a 500.
            if not self.used:
                raise
            # The peer is to know whether it may come again at once (1001), or met a fault (1011).
            if isinstance(error, GreenletExit):
                self._end(CloseCode.GOING_AWAY)
                raise
            if self._bridge is not None and isinstance(error, StopIteration):
                self._end(CloseCode.NORMAL_CLOSURE)
            # While it is open, such an error is about another connection: a database's, another client's.
            elif not self._end(CloseCode.INTERNAL_ERROR) and isinstance(
                error, WebSocketError if self._bridge is None else ConnectionError
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
            # Mongrel2's notice goes to the WebSocket now, not to the exchange.
            socket.on_end(self._exchange.lose)
            server = self._handler.server
            server.clients[self._exchange.request.sid] = Client(self._handler.client_address, self.websocket)
            self._switch(len(self._answer.head))
        return self.socket

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
            if self._bridge is not None:
                self._bridge.begin_close(code)
            elif self.socket is not None:
                self.socket.begin_close(code)
        except GreentxError as error:
            log.warning("%r could not be closed: %s", self, error)

    def _end(self, code: int) -> bool:
        """Close with *code*, where it is open, and return whether it was."""
        try:
            if self._bridge is not None:
                return self._bridge.finish(code)
            was_open = self.socket is not None and not self.socket.closed
            self.go_away(code)
            return was_open
        finally:
            # In any case: the end of the server waits until both are empty.
            server = self._handler.server
            server.upgrades.discard(self)
            server.clients.pop(self._exchange.request.sid, None)

    def __repr__(self) -> str:
        state = repr(self.socket or self._bridge) if self.used else "not used"
        return f"<Upgrade of connection {self._exchange.request.conn_id}: {state}>"
