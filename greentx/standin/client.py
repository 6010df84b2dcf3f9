"""A pretend browser: what it does becomes the messages that Mongrel2 would make of it, and replies are read back.

Three ways of reading: :class:`Mongrel2Client` returns replies as they are, :class:`HTTPClient` reads HTTP responses out
of them, :class:`WebSocketClient` shakes hands and then speaks messages. All timeouts are milliseconds.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

from gevent.event import Event

from ..errors import ConnectionClosed, ConnectTimeout, LocalProtocolError, RemoteProtocolError
from ..protocol.headers import SERVER_NAMES, Headers
from ..protocol.http1_parser import ResponseParser
from ..protocol.kinds import Kind
from ..protocol.replies import Response
from ..protocol.requests import build_disconnect_notice, build_request
from ..protocol.websocket.deflate import DeflateConfig, PerMessageDeflate
from ..protocol.websocket.frames import (
    Frame,
    FrameParser,
    MessageAssembler,
    Opcode,
    build_close,
    build_flags,
    parse_close,
    validate_message,
)
from ..protocol.websocket.handshake import accept_key, check_answer, new_key, request_headers
from .router import Router

__all__ = [
    "Client",
    "HTTPClient",
    "HTTPResponse",
    "Mongrel2Client",
    "WebSocketClient",
    "build_headers",
    "client_class",
]

# Whose requests say a Content-Length of 0 where there is no body, as browsers do.
_WITH_LENGTH = frozenset({"PATCH", "POST", "PUT"})

RequestHeaders = Mapping[str, "str | list[str] | None"]


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
        self._wake()

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


class HTTPResponse:
    """One HTTP response, whole.

    Attributes:
        status: The code.
        reason: The phrase, ``""`` where there is none.
        headers: Names in lower case; a repeated name has the list of its values.
        body: Without the framing of chunks.
        trailers: The fields after a chunked body.
        version: ``"HTTP/1.1"``.
    """

    __slots__ = ("body", "headers", "reason", "status", "trailers", "version")

    def __init__(self, parser: ResponseParser) -> None:
        self.status = parser.status
        self.reason = parser.reason
        self.headers: Headers = parser.headers
        self.body = parser.body
        self.trailers: Headers = parser.trailers
        self.version = parser.version

    def json(self) -> Any:
        """Return the decoded body. Raises ``ValueError`` where it is not JSON."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<HTTPResponse {self.status} {self.reason} body={len(self.body)} bytes>"


class HTTPClient(Client):
    """Reads HTTP responses: protocol ``"http"``. Requests may be pipelined; responses come in their order."""

    __slots__ = ("_begun", "_parsers")

    def __init__(self, server: Host, protocol: str | None = None) -> None:
        super().__init__(server)
        # One for each request that waits for its response, as its method decides how that ends.
        self._parsers: deque[ResponseParser] = deque()
        # The first of them, once it was given something to read.
        self._begun: ResponseParser | None = None

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
        parser = ResponseParser(str(full.get("METHOD", "")))
        self._parsers.append(parser)
        try:
            self._push(target, full, body, timeout)
        except BaseException:  # also killed while it waited; raised again: it was not sent
            # Not there any more where a reply came meanwhile that nobody could read: that emptied the line.
            with suppress(ValueError):
                self._parsers.remove(parser)
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
                self._read(response.body)
            if self.closed:
                self._finish()
        # After an error nobody knows where the next response begins.
        except RemoteProtocolError as error:
            self._parsers.clear()
            self._begun = None
            self._fail(error)

    def _read(self, data: bytes) -> None:
        while data:
            # A browser would show it as the answer to its next request.
            if not self._parsers:
                raise RemoteProtocolError(f"{len(data)} bytes came that no request asked for: {data[:40]!r}")
            parser = self._begun = self._parsers[0]
            if not parser.feed(data):
                return
            data = parser.trailing
            self._complete(parser)

    def _finish(self) -> None:
        if not self._parsers:
            return
        parser = self._parsers[0]
        if parser is not self._begun:
            raise RemoteProtocolError("the handler closed the connection without a response")
        # For a body without a length the end of the connection is its end (RFC 9112, section 6.3).
        parser.close()
        self._complete(parser)

    def _complete(self, parser: ResponseParser) -> None:
        self._begun = None
        self._parsers.popleft()
        self._inbox.append(HTTPResponse(parser))


class WebSocketClient(Client):
    """Speaks WebSocket messages: protocol ``"websocket"``. Begin with :meth:`handshake`.

    Mongrel2 unmasks and joins what a browser sends, and repeats the headers of the handshake with each message; so does
    this.

    Attributes:
        response: The handler's answer to the handshake, also where it refused; ``None`` before.
        subprotocol: What was agreed on, ``None`` for none.
        deflate: The compression that was agreed on, ``None`` for none.
        pings: How many pings the handler sent.
        auto_pong: True answers them at once, as browsers do, and ``recv`` does not show them; False leaves them
            unanswered and shows them.
        close_code, close_reason: Of the handler's close frame; ``None`` and ``""`` before it.
    """

    __slots__ = (
        "_assembler",
        "_check",
        "_close_sent",
        "_headers",
        "_parser",
        "_path",
        "_unsettled",
        "auto_pong",
        "close_code",
        "close_reason",
        "deflate",
        "pings",
        "response",
        "subprotocol",
    )

    def __init__(self, server: Host, protocol: str | None = None) -> None:
        super().__init__(server)
        self.response: HTTPResponse | None = None
        self.subprotocol: str | None = None
        self.deflate: PerMessageDeflate | None = None
        self.pings = 0
        self.auto_pong = True
        self.close_code: int | None = None
        self.close_reason = ""
        self._parser: ResponseParser | FrameParser | None = None
        self._assembler = MessageAssembler()
        # What to check the answer with, known when the question is asked.
        self._check: Callable[..., tuple[str | None, PerMessageDeflate | None]] | None = None
        self._path = ""
        self._headers: dict[str, Any] = {}
        self._close_sent = False
        # Compressed messages that wait to be sent.
        self._unsettled = 0

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
        if self._parser is not None:
            raise LocalProtocolError(f"connection {self.conn_id} shook hands already: make another client")
        config = DeflateConfig() if deflate is True else deflate or None
        offered = request_headers(new_key(), subprotocols=subprotocols, deflate=config, origin=origin)
        target, full = build_headers(path, {**offered, **_lower(headers)}, b"", Kind.WEBSOCKET_HANDSHAKE)
        # The caller may send another key, or none, to see what a handler makes of it.
        sent = full.get("sec-websocket-key", "")
        key = sent if isinstance(sent, str) else sent[0]
        self._path, self._headers = target, {**full, "METHOD": Kind.WEBSOCKET}
        self._parser = ResponseParser()
        self._check = partial(check_answer, key=key, subprotocols=subprotocols, deflate=config)
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
        try:
            if response.extended is None and response.body:
                self._read(response.body)
            parser = self._parser
            if self.closed and isinstance(parser, ResponseParser) and parser.until_close:
                parser.close()
                self._answer(parser)
        except RemoteProtocolError as error:
            self._fail(error)

    def _read(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            raise RemoteProtocolError(f"{len(data)} bytes came before a handshake")
        if isinstance(parser, ResponseParser):
            if not parser.feed(data):
                return
            data = parser.trailing
            if not self._answer(parser):
                return
            # A server's frames are not masked (RFC 6455, section 5.1).
            parser = self._parser = FrameParser(require_mask=False)
        for frame in parser.feed(data):
            message = self._assembler.add(frame)
            if message is not None:
                self._on_message(message)
        # Behind the good ones.
        parser.check()

    def _answer(self, parser: ResponseParser) -> bool:
        """Read the answer to the handshake; return whether it opens the WebSocket.

        The handler may have written frames right behind it, so what was agreed on has to be known here already.
        """
        response = self.response = HTTPResponse(parser)
        if response.status == 101 and self._check is not None:
            self.subprotocol, self.deflate = self._check(response.status, response.headers)
        self._inbox.append(response)
        return response.status == 101

    def _on_message(self, message: Frame) -> None:
        payload, _ = validate_message(
            message.opcode, message.rsvd, message.payload, max_size=None, deflate=self.deflate
        )
        opcode = message.opcode
        if opcode == Opcode.PING:
            self.pings += 1
            if self.auto_pong:
                self._post(Opcode.PONG, payload)
                return
        elif opcode == Opcode.CLOSE:
            self.close_code, self.close_reason = parse_close(payload)
            # As browsers do, with the same code; its own close frame, where it sent one, needs no further answer.
            if not self._close_sent:
                self._close_sent = True
                self._post(Opcode.CLOSE, payload)
        self._inbox.append(Frame(payload, opcode))

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


def build_headers(
    path: str, headers: RequestHeaders | None, body: bytes, method: str | None
) -> tuple[str, dict[str, str | list[str]]]:
    """Return the path without its query, and the headers that Mongrel2 would make of a request.

    Args:
        path: As in the request line: with ``?query`` and ``#fragment`` if there are any.
        headers: See :meth:`Mongrel2Client.send`.
        body: Its length becomes ``content-length``, where the method or the body asks for one.
        method: ``None`` is ``GET``, or ``POST`` with a body.

    Raises:
        LocalProtocolError: *path* is not text, or *headers* not a mapping.
    """
    if not isinstance(path, str):
        raise LocalProtocolError(f"a path is str, not {type(path).__name__}")
    given = _lower(headers)
    uri, _, fragment = path.partition("#")
    target, mark, query = uri.partition("?")
    made: dict[str, str | list[str] | None] = {
        "PATH": target,
        "x-forwarded-for": "127.0.0.1",
        "host": "localhost",
        "METHOD": method or ("POST" if body else "GET"),
        "VERSION": "HTTP/1.1",
        "URI": uri,
        "PATTERN": "/",
        "URL_SCHEME": "http",
        "REMOTE_ADDR": "127.0.0.1",
    }
    # An empty query is one, too; without a question mark there is none.
    if mark:
        made["QUERY"] = query
    if fragment:
        made["FRAGMENT"] = fragment
    # Over ours: a test may want any header otherwise than Mongrel2 writes it.
    made.update(given)
    if body or made["METHOD"] in _WITH_LENGTH:
        made.setdefault("content-length", str(len(body)))
    return target, {name: value for name, value in made.items() if value is not None}


def _lower(headers: RequestHeaders | None) -> dict[str, str | list[str] | None]:
    """As Mongrel2 does, so that no browser can set one of the server's names by accident."""
    if headers is not None and not isinstance(headers, Mapping):
        raise LocalProtocolError(f"headers are a mapping of names to values, not {type(headers).__name__}")
    return {name if name in SERVER_NAMES else name.lower(): value for name, value in (headers or {}).items()}


def _kills(response: Response) -> bool:
    """Whether an extended reply ends the connection at once: ``cancel``, a ``ctl`` without a dict, an unknown key."""
    if response.extended is None:
        return False
    # What Mongrel2's handler.c does with each of them (probed).
    key, value = response.extended
    return key != b"ctl" or not isinstance(value, dict) or b"cancel" in value
