"""What a WSGI application is offered as ``environ['wsgi.websocket']``, with the interface of gevent-websocket's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..errors import ConnectionClosed, SendTimeout
from ..protocol.websocket.frames import CloseCode, Opcode, parse_close

if TYPE_CHECKING:
    from ..handler.state import State
    from .handler import WSGIHandler
    from .upgrade import Upgrade

__all__ = ["MSG_ALREADY_CLOSED", "MSG_CLOSED", "MSG_SOCKET_DEAD", "Client", "Stream", "WebSocket", "WebSocketError"]

log = logging.getLogger("greentx.wsgi.websocket")

MSG_SOCKET_DEAD = "Socket is dead"
MSG_ALREADY_CLOSED = "Connection is already closed"
MSG_CLOSED = "Connection closed"


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
    def adopted(self) -> bool:
        """True on a Node where another Node's application had it before; the same as ``environ['greentx.adopted']``."""
        return self._upgrade.adopted

    @property
    def moved(self) -> bool:
        """True on a Node where it has ended here, and goes on at another Node: its browser sees nothing of that."""
        return self._upgrade.moved

    @property
    def redelivered(self) -> bool:
        """True on a Node where the message that :meth:`receive` returned last may have been handled at another Node."""
        socket = self._upgrade.socket
        return socket is not None and socket.redelivered

    @property
    def state(self) -> State:
        """What the application keeps of it: a mapping of JSON, of 64 KiB at the most; the same as
        ``environ['greentx.state']``. On a Node the next Node has it as it was; each item is written through as it is
        set. Setting what is not JSON, or too much, raises ``LocalProtocolError`` (a ``ValueError``).
        """
        return self._upgrade.state

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
