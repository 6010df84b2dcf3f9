"""A pretend browser: what it does becomes the messages that Mongrel2 would make of it, and replies are read back.

Three ways of reading: :class:`Mongrel2Client` returns replies as they are, :class:`HTTPClient` reads HTTP responses out
of them, :class:`WebSocketClient` shakes hands and then speaks messages. All timeouts are milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

from gevent.event import Event

from ..errors import ConnectionClosed, ConnectTimeout, LocalProtocolError, RemoteProtocolError
from ..protocol.kinds import Kind
from ..protocol.replies import Response
from ..protocol.requests import build_disconnect_notice, build_request
from ..protocol.websocket.deflate import DeflateConfig, PerMessageDeflate
from ..protocol.websocket.frames import (
    Frame,
    Opcode,
    build_close,
    build_flags,
    parse_close,
)
from ..protocol.websocket.handshake import accept_key, check_answer, new_key, request_headers
from .headers import RequestHeaders, build_headers, lower_names
from .reading import HTTPReader, HTTPResponse, WebSocketReader
from .router import Router

__all__ = [
    "Client",
    "HTTPClient",
    "Mongrel2Client",
    "WebSocketClient",
    "client_class",
]


class Host(Protocol):
    """What a Client needs of its :class:`~greentx.Server`."""

    @property
    def sender(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def started(self) -> bool: ...
    @property
    def router(self) -> Router: ...
    def send(self, msg: bytes, timeout: int | None = 1000) -> None: ...
    def post(self, message: bytes) -> None: ...


class Client:
    """One browser's connection at a :class:`~greentx.Server`: ``server.client(protocol)`` connects handlers first.

    ``Client(server, protocol)`` makes the same without connecting any.

    In a ``with`` block, the browser goes away at its end. Any number of Clients may wait in :meth:`recv` at once; each
    gets the replies to its own ``conn_id``.

    Attributes:
        server: The server it belongs to.
        conn_id: Its number there, a decimal string.
        closed: The connection has ended, by the handler, by :meth:`disconnect` or with the server. What came before
            can still be received.
    """

    __slots__ = ("_arrived", "_inbox", "_known", "closed", "conn_id", "server")

    def __new__(cls, server: Host, protocol: str | None = None) -> Client:
        # mongrel2-transceiver's way of making one: Client(server, "http"). Its own class says how answers are read.
        if cls is Client:
            return object.__new__(client_class("mongrel2" if protocol is None else protocol))
        return object.__new__(cls)

    def __init__(self, server: Host, protocol: str | None = None) -> None:
        self.server = server
        self.conn_id = server.router.admit(self)
        self.closed = False
        self._inbox: deque[Any] = deque()
        # Made by _wait(): a load generator has ten thousand Clients, most of which never wait.
        self._arrived: Event | None = None
        # A handler has heard of it, so it is told of the end.
        self._known = False

    def disconnect(self, timeout: int | None = 1000) -> None:
        """The browser vanishes: the handler gets Mongrel2's notice. Nothing where the connection has ended already.

        Raises:
            SendTimeout: No handler had room for the notice within *timeout* milliseconds. The connection has ended
                all the same.
        """
        # Mongrel2 tells only handlers that it has sent something of the connection to.
        if self._end() and self._known:
            self.server.send(self._notice(), timeout)

    def deliver(self, response: Response) -> None:
        """Read one reply; the server's reader calls it, so it neither blocks nor raises."""
        # Closed before it is read: the body of a response without a length ends with the connection.
        if response.is_close or _kills(response):
            self._end()
        self._read_reply(response)
        self._wake()

    def server_gone(self) -> None:
        """The server has stopped: the connection has ended with it."""
        self._end()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Whether or not a handler is there to be told: the block may have ended because there is none.
        if self._end() and self._known and self.server.started:
            self.server.post(self._notice())

    def _read_reply(self, response: Response) -> None:
        raise NotImplementedError

    def _receive(self, timeout: int | None) -> Any:
        """Return what came next, ``None`` after *timeout* milliseconds without; raise what the reader left to raise."""
        deadline = None if timeout is None else monotonic() + timeout / 1000
        inbox = self._inbox
        while not inbox:
            # Asked only when nothing is left: what came before the end is received first.
            if self.closed:
                raise self._closed_error()
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return None
            self._wait(left)
        # It stands in line behind the good ones that came before it. Not by a name of this frame, to which its
        # traceback leads: a reference cycle.
        if isinstance(inbox[0], Exception):
            raise inbox.popleft()
        return inbox.popleft()

    def _closed_error(self) -> ConnectionClosed:
        return ConnectionClosed(1006, f"connection {self.conn_id} of {self.server.sender}")

    def _wait(self, seconds: float | None) -> None:
        """Block this greenlet until the next reply or the end, for *seconds* at the most; ``None`` is forever."""
        self.server.router.check()
        if self._arrived is None:
            self._arrived = Event()
        self._arrived.clear()
        self._arrived.wait(seconds)

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    def _end(self) -> bool:
        """Mark it closed; return False where it was."""
        if self.closed:
            return False
        # At once, so that its number is nobody's: later replies to it are answered by a notice, as Mongrel2 does.
        self.closed = True
        self.server.router.release(self)
        self._wake()
        return True

    def _fail(self, error: RemoteProtocolError) -> None:
        """Give up on a handler that broke the protocol, as a browser does: ``recv`` raises, the handler is told."""
        # Without the traceback, which leads back here.
        self._inbox.append(error.with_traceback(None))
        # By post(), which does not wait: this runs in the server's reader.
        if self._end():
            self.server.post(self._notice())

    def _notice(self) -> bytes:
        return build_disconnect_notice(self.server.sender, self.conn_id, protocol=self.server.encoding)

    def _request(self, path: str, headers: Mapping[str, Any], body: bytes) -> bytes:
        server = self.server
        return build_request(server.sender, self.conn_id, path, headers, body, protocol=server.encoding)

    def _push(self, path: str, headers: Mapping[str, Any], body: bytes, timeout: int | None) -> None:
        if self.closed:
            raise self._closed_error()
        self.server.send(self._request(path, headers, body), timeout)
        # Only now: of a request that was not sent, no handler knows.
        self._known = True

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self.conn_id} of {self.server.sender}: {state}, {len(self._inbox)} received>"


class Mongrel2Client(Client):
    """Reads replies as they are: protocol ``"mongrel2"``."""

    __slots__ = ()

    def send(
        self,
        path: str,
        headers: RequestHeaders | None = None,
        body: bytes = b"",
        *,
        method: str | None = None,
        timeout: int | None = 1000,
    ) -> None:
        """Send one request as Mongrel2 would hand it on.

        Args:
            path: As in the request line, with the query if there is one.
            headers: More than Mongrel2 makes itself; a name of its own (``METHOD``, ``REMOTE_ADDR``, ...) replaces what
                it would have made, other names are lower-cased, ``None`` leaves a name out.
            body: Bytes.
            method: ``None`` is ``GET``, or ``POST`` with a body.
            timeout: Milliseconds to wait while no handler has room for it.

        Raises:
            SendTimeout: None did. The request was not sent.
            ConnectionClosed: The connection has ended.
        """
        target, full = build_headers(path, headers, body, method)
        self._push(target, full, body, timeout)

    def recv(self, timeout: int | None = 1000) -> Response | None:
        """Return the next reply to this connection, ``None`` when *timeout* milliseconds brought none.

        A reply to several connections comes to each of them. The one that closes comes too, as ``is_close``.

        Raises:
            ConnectionClosed: The connection has ended, and all that came before was returned.
        """
        item: Response | None = self._receive(timeout)
        return item

    def _read_reply(self, response: Response) -> None:
        self._inbox.append(response)


class HTTPClient(Client):
    """Reads HTTP responses: protocol ``"http"``. Requests may be pipelined; responses come in their order."""

    __slots__ = ("_reader",)

    def __init__(self, server: Host, protocol: str | None = None) -> None:
        super().__init__(server)
        self._reader = HTTPReader()

    def send(
        self,
        path: str,
        headers: RequestHeaders | None = None,
        body: bytes = b"",
        *,
        method: str | None = None,
        timeout: int | None = 1000,
    ) -> None:
        """Send one request; arguments and errors are those of :meth:`Mongrel2Client.send`."""
        target, full = build_headers(path, headers, body, method)
        # In line before the sending, as the answer may be here when that returns.
        expected = self._reader.expect(str(full.get("METHOD", "")))
        try:
            self._push(target, full, body, timeout)
        except BaseException:  # also killed while it waited; raised again: it was not sent
            self._reader.withdraw(expected)
            raise

    def recv(self, timeout: int | None = 1000) -> HTTPResponse | None:
        """Return the next whole response, ``None`` when *timeout* milliseconds did not complete one.

        What came of an unfinished one is kept, so the next call may return it.

        Raises:
            RemoteProtocolError: The handler wrote something else than HTTP/1.1, or closed before a response was whole.
            ConnectionClosed: The connection has ended, and no request waits for a response.
        """
        item: HTTPResponse | None = self._receive(timeout)
        return item

    def _read_reply(self, response: Response) -> None:
        try:
            # Extended replies are for Mongrel2 itself; the browser sees nothing of them.
            if response.extended is None and response.body:
                self._inbox.extend(self._reader.feed(response.body))
            if self.closed:
                self._inbox.extend(self._reader.end())
        except RemoteProtocolError as error:
            self._fail(error)


class WebSocketClient(Client):
    """Speaks WebSocket messages: protocol ``"websocket"``. Begin with :meth:`handshake`.

    Mongrel2 unmasks and joins what a browser sends, and repeats the headers of the handshake with each message; so does
    this.

    Attributes:
        pings: How many pings the handler sent.
        auto_pong: True answers them at once, as browsers do, and ``recv`` does not show them; False leaves them
            unanswered and shows them.
        close_code, close_reason: Of the handler's close frame; ``None`` and ``""`` before it.
    """

    __slots__ = (
        "_close_sent",
        "_headers",
        "_path",
        "_reader",
        "_unsettled",
        "auto_pong",
        "close_code",
        "close_reason",
        "pings",
    )

    def __init__(self, server: Host, protocol: str | None = None) -> None:
        super().__init__(server)
        self.pings = 0
        self.auto_pong = True
        self.close_code: int | None = None
        self.close_reason = ""
        # From the handshake on.
        self._reader: WebSocketReader | None = None
        self._path = ""
        self._headers: dict[str, Any] = {}
        self._close_sent = False
        # Compressed messages that wait to be sent.
        self._unsettled = 0

    @property
    def response(self) -> HTTPResponse | None:
        """The handler's answer to the handshake, also where it refused; ``None`` before."""
        return None if self._reader is None else self._reader.response

    @property
    def subprotocol(self) -> str | None:
        """What was agreed on, ``None`` for none."""
        return None if self._reader is None else self._reader.subprotocol

    @property
    def deflate(self) -> PerMessageDeflate | None:
        """The compression that was agreed on, ``None`` for none."""
        return None if self._reader is None else self._reader.deflate

    def handshake(
        self,
        path: str,
        headers: RequestHeaders | None = None,
        subprotocols: Sequence[str] = (),
        *,
        deflate: DeflateConfig | bool | None = None,
        origin: str | None = None,
        timeout: int = 5000,
    ) -> HTTPResponse:
        """Open the WebSocket and return the handler's answer, a 101.

        Args:
            path: As in the request line.
            headers: More or other than a browser sends; ``None`` leaves a name out.
            subprotocols: To offer, in order of preference.
            deflate: The compression to offer; True is the default one.
            origin: The page's, as browsers send it.
            timeout: Milliseconds for the answer.

        Raises:
            RemoteProtocolError: The handler refused (``status`` is its own, ``response`` has the whole answer) or
                answered badly. The connection cannot be used any more.
            ConnectTimeout: No answer within *timeout*.
            ConnectionClosed: The handler closed without one.
        """
        if self._reader is not None:
            raise LocalProtocolError(f"connection {self.conn_id} shook hands already: make another client")
        config = DeflateConfig() if deflate is True else deflate or None
        offered = request_headers(new_key(), subprotocols=subprotocols, deflate=config, origin=origin)
        target, full = build_headers(path, {**offered, **lower_names(headers)}, b"", Kind.WEBSOCKET_HANDSHAKE)
        # The caller may send another key, or none, to see what a handler makes of it.
        sent = full.get("sec-websocket-key", "")
        key = sent if isinstance(sent, str) else sent[0]
        self._path, self._headers = target, {**full, "METHOD": Kind.WEBSOCKET}
        self._reader = WebSocketReader(partial(check_answer, key=key, subprotocols=subprotocols, deflate=config))
        # Mongrel2 computes the answer to the key and sends it as the body of the handshake (probed).
        self._push(target, full, accept_key(key), timeout)
        try:
            response: HTTPResponse | None = self._receive(timeout)
        except ConnectionClosed as error:
            raise ConnectionClosed(1006, f"no answer to the handshake of {path}") from error
        if response is None:
            raise ConnectTimeout(f"{path} did not answer the handshake within {timeout} ms")
        if response.status != 101:
            raise RemoteProtocolError(
                f"{path} answered the handshake with {response.status} {response.reason}", status=response.status
            )
        return response

    def send(
        self, message: str | bytes, opcode: int | None = None, rsvd: int = 0, *, timeout: int | None = 1000
    ) -> None:
        """Send one message: str as text, bytes as binary, unless *opcode* says otherwise; deflated where negotiated.

        Raises:
            ConnectionClosed: The connection has ended, or the closing handshake has begun.
            SendTimeout: No handler had room for it within *timeout* milliseconds. It was not sent, and later messages
                arrive as if it had not been there.
        """
        # A caller that says rsvd says all of it: then nothing is compressed here.
        payload = message.encode() if isinstance(message, str) else message
        if opcode is None:
            opcode = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
        if self._close_sent:
            raise ConnectionClosed(self.close_code or 1006, "the closing handshake has begun")
        if self.deflate is not None and opcode in (Opcode.TEXT, Opcode.BINARY) and not rsvd:
            self._send_deflated(self.deflate, payload, opcode, timeout)
        else:
            self._push(self._path, self._frame_headers(opcode, rsvd), payload, timeout)

    def _send_deflated(self, deflate: PerMessageDeflate, payload: bytes, opcode: int, timeout: int | None) -> None:
        # With context takeover a message refers to those encoded before it, so it must only refer to what goes out
        # for certain. Not certain are messages that other greenlets still wait to send, and one that timed out.
        if self._unsettled:
            deflate.reset_encoder()
        payload, compressed = deflate.encode(payload)
        self._unsettled += 1
        try:
            self._push(self._path, self._frame_headers(opcode, 4 if compressed else 0), payload, timeout)
        except BaseException:  # also killed while it waited; raised again: the window may have gone on without the peer
            deflate.reset_encoder()
            raise
        finally:
            self._unsettled -= 1

    def recv(self, timeout: int | None = 1000) -> Frame | None:
        """Return the next message as a frame, ``None`` when *timeout* milliseconds brought none.

        Payloads are inflated and fragments joined. Pongs and the handler's close frame come too, pings where
        ``auto_pong`` is False.

        Raises:
            RemoteProtocolError: The handler wrote something that no browser would accept; ``close_code`` says how it
                would close.
            ConnectionClosed: The connection has ended, and all that came before was returned.
        """
        item: Frame | None = self._receive(timeout)
        return item

    def ping(self, payload: bytes = b"", *, timeout: int | None = 1000) -> None:
        """Send a ping; the pong comes by :meth:`recv`."""
        self.send(payload, Opcode.PING, timeout=timeout)

    def close(self, code: int | None = 1000, reason: str = "", *, timeout: int = 1000) -> bool:
        """Begin the closing handshake, and wait until the handler has closed the connection.

        Returns:
            False when it did not within *timeout* milliseconds; :meth:`disconnect` then ends it alone. What came
            meanwhile can be received.
        """
        if not self.closed and not self._close_sent:
            # Marked after it went out: one that timed out may be tried again.
            self.send(build_close(code, reason), Opcode.CLOSE, timeout=timeout)
            self._close_sent = True
        deadline = monotonic() + timeout / 1000
        while not self.closed and (left := deadline - monotonic()) > 0:
            self._wait(left)
        return self.closed

    def _closed_error(self) -> ConnectionClosed:
        if self.close_code is None:
            return super()._closed_error()
        return ConnectionClosed(self.close_code, self.close_reason)

    def _frame_headers(self, opcode: int, rsvd: int = 0) -> dict[str, Any]:
        if self.response is None:
            raise LocalProtocolError(f"connection {self.conn_id} did not shake hands: call handshake() first")
        # Mongrel2 repeats the headers of the handshake with each message (probed).
        return {**self._headers, "FLAGS": build_flags(opcode, rsvd)}

    def _read_reply(self, response: Response) -> None:
        reader = self._reader
        try:
            if response.extended is None and response.body:
                if reader is None:
                    raise RemoteProtocolError(f"{len(response.body)} bytes came before a handshake")
                for item in reader.feed(response.body):
                    if isinstance(item, HTTPResponse):
                        self._inbox.append(item)
                    else:
                        self._on_message(item)
            if self.closed and reader is not None:
                self._inbox.extend(reader.end())
        except RemoteProtocolError as error:
            self._fail(error)

    def _on_message(self, message: Frame) -> None:
        if message.opcode == Opcode.PING:
            self.pings += 1
            if self.auto_pong:
                self._post(Opcode.PONG, message.payload)
                return
        elif message.opcode == Opcode.CLOSE:
            self.close_code, self.close_reason = parse_close(message.payload)
            # As browsers do, with the same code; its own close frame, where it sent one, needs no further answer.
            if not self._close_sent:
                self._close_sent = True
                self._post(Opcode.CLOSE, message.payload)
        self._inbox.append(message)

    def _post(self, opcode: int, payload: bytes) -> None:
        """Answer from the server's reader, which must not wait for a handler."""
        self.server.post(self._request(self._path, self._frame_headers(opcode), payload))


_CLASSES: dict[str, type[Client]] = {"mongrel2": Mongrel2Client, "http": HTTPClient, "websocket": WebSocketClient}


def client_class(protocol: str) -> type[Client]:
    """Return the class of Clients that speak *protocol*. Raises ``LocalProtocolError`` where there is none."""
    found = _CLASSES.get(protocol)
    if found is None:
        raise LocalProtocolError(f"protocol is one of {', '.join(map(repr, _CLASSES))}, not {protocol!r}")
    return found


def _kills(response: Response) -> bool:
    """Whether an extended reply ends the connection at once: ``cancel``, a ``ctl`` without a dict, an unknown key."""
    if response.extended is None:
        return False
    # What Mongrel2's handler.c does with each of them (probed).
    key, value = response.extended
    return key != b"ctl" or not isinstance(value, dict) or b"cancel" in value
