"""Runs the application for one request: the class whose methods people override."""

from __future__ import annotations

import errno
import io
import sys
from http.client import HTTPMessage
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit

from ..clock import current_date
from ..errors import GreentxError, RemoteProtocolError
from .accesslog import NoLog, format_line
from .environ import FramingError, add_request
from .input import open_stored, open_streamed
from .response import JOIN_BYTES, PieceWriter, build_head, encode_headers, parse_status
from .upgrade import Upgrade

if TYPE_CHECKING:
    from .exchange import Exchange
    from .server import WSGIServer

__all__ = ["WSGIHandler"]

_CHUNKED = (b"Transfer-Encoding", b"chunked")
_CLOSE = (b"Connection", b"close")

# Codes whose responses end with their head, among those that an application may answer with.
_WITHOUT_BODY = frozenset({204, 304})

_ERROR_BODIES = {400: b"Bad Request", 500: b"Internal Server Error"}


class WSGIHandler:
    """Handles one request. The interface is that of ``gevent.pywsgi.WSGIHandler``, which lives as long as a connection.

    Hooks to override: :meth:`get_environ`, :meth:`run_application`, :meth:`start_response`, :meth:`finalize_headers`,
    :meth:`process_result`, :meth:`write`, :meth:`handle_error`, :meth:`log_error`, :meth:`log_request`,
    :meth:`format_request`.

    Args:
        sock: The :class:`~greentx.wsgi.exchange.Exchange`, in the place of gevent's socket.
        address: ``(host, port)`` of the browser; the port is 0, Mongrel2 does not tell it.
        server: The :class:`~greentx.wsgi.WSGIServer`.

    Attributes:
        environ: What the application is called with.
        application: What the server's ``application`` was when the request came.
        result: What it returned, while that is iterated over.
        status: The status as bytes, ``b'200 OK'``; ``None`` before ``start_response``.
        code: The status as a number.
        response_headers: Pairs of bytes; :meth:`finalize_headers` may change them.
        headers_sent: The head was sent, or is on its way.
        response_length: Bytes sent, head included.
        close_connection: The connection ends with this response.
        wsgi_input: ``environ['wsgi.input']``.
        upgrade: The :class:`~greentx.wsgi.upgrade.Upgrade` of a request that asks for a WebSocket, else ``None``.
        time_start, time_finish: ``time.time()``; *time_finish* is 0 until the response was sent.
        command, path, request_version, requestline, headers: Of the request, as the client sent them.
    """

    protocol_version = "HTTP/1.1"

    #: Raised for applications that break PEP 3333.
    ApplicationError = AssertionError

    #: These say that the client has gone; they are not logged.
    ignored_socket_errors = (errno.EPIPE, errno.ECONNRESET)

    environ: Any = None
    application: Any = None
    result: Any = None
    status: bytes | None = None
    code = 0
    response_headers: Any = None
    headers_sent = False
    response_length = 0
    response_use_chunked = False
    connection_upgraded = False
    upgrade: Upgrade | None = None
    close_connection = False
    provided_date: str | None = None
    provided_content_length: str | None = None
    wsgi_input: Any = None
    content_length: int | None = None
    time_start = 0.0
    time_finish = 0.0
    command = ""
    path = ""
    request_version = "HTTP/1.1"

    _orig_status: str | None = None
    _headers: HTTPMessage | None = None
    _says_keep_alive = False
    _pieces: PieceWriter | None = None
    _body_left: int | None = None
    _without_body = False

    def __init__(self, sock: Exchange, address: Any, server: WSGIServer, rfile: Any = None) -> None:
        self.socket = sock
        self.client_address = address
        self.server = server

    # -- the request -----------------------------------------------------------------------------------------------

    def handle(self) -> None:
        """Answer the request. Called by the server, in the greenlet of this request, once."""
        self.time_start = time()
        request = self.socket.request
        is_handshake = request.method == "WEBSOCKET_HANDSHAKE"
        self.command = "GET" if is_handshake else request.method
        self.close_connection, self._says_keep_alive = request._persistence or request.persistence()
        try:
            self.environ = self.get_environ()
        except FramingError as error:
            self._refuse(error)
            return
        except Exception:  # noqa: BLE001 - of an override, or of a stored body that cannot be read
            self.environ = {}
            self.handle_error(*sys.exc_info())
            self.log_request()
            return
        self.application = self.server.application
        if is_handshake:
            self.upgrade = Upgrade(self)
        self.handle_one_response()

    def get_environ(self) -> Any:
        """Return the environ for this request.

        Raises:
            FramingError: (a ``ValueError``) The request cannot be told from the next one; it is answered 400.
        """
        exchange = self.socket
        environ = self.server.get_environ()
        streamed = exchange.streams
        add_request(environ, exchange.request, body_apart=streamed or exchange.upload is not None)
        self.path = environ["RAW_URI"]
        self.request_version = environ["SERVER_PROTOCOL"]
        length = environ.get("CONTENT_LENGTH")
        if length is not None:
            self.content_length = int(length)
        if streamed:
            self.wsgi_input = open_streamed(exchange, self.content_length)
        elif exchange.upload is not None:
            self.wsgi_input = open_stored(exchange.upload, self.content_length)
        elif exchange.request.method == "WEBSOCKET_HANDSHAKE":
            self.wsgi_input = io.BytesIO()
            environ["wsgi.input_terminated"] = False
        else:
            self.wsgi_input = io.BytesIO(exchange.request.body)
        environ["wsgi.input"] = self.wsgi_input
        environ["greentx.disconnected"] = exchange.disconnected
        return environ

    @property
    def headers(self) -> HTTPMessage:
        """What the client sent, one field for each value; names are in lower case, and looked up in any."""
        if self._headers is None:
            self._headers = HTTPMessage()
            for name, value in self.socket.request.headers.client():
                self._headers[name] = value
        return self._headers

    @property
    def requestline(self) -> str:
        """The first line of the request, without its end."""
        request = self.socket.request
        return f"{self.command} {self.path or request.path} {self.request_version}"

    def _refuse(self, error: Exception) -> None:
        request = self.socket.request
        self.log_error("Invalid request (from %s): %s", self.client_address, error)
        self.path = self.path or str(request.header("URI") or request.path)
        self.close_connection = True
        self._send_error(400)
        self.time_finish = time()
        self.log_request()

    # -- the application -------------------------------------------------------------------------------------------

    def handle_one_response(self) -> None:
        """Run the application, see to what fails, and log the request."""
        try:
            try:
                if self.upgrade is None:
                    self.run_application()
                else:
                    self.upgrade.run()
                self._end_response()
            finally:
                if self.wsgi_input is not None:
                    self.wsgi_input.close()
        except OSError as error:
            if error.errno in self.ignored_socket_errors:
                self._abandon()
            else:
                self.handle_error(*sys.exc_info())
        except RemoteProtocolError as error:
            self.log_error("Invalid request (from %s): %s", self.client_address, error)
            self.close_connection = True
            self._send_error(400)
        except GreenletExit:
            self.handle_error(*sys.exc_info())
            raise
        except BaseException:  # noqa: BLE001 - the hub is told, which sees to SystemExit and the like
            self.handle_error(*sys.exc_info())
        finally:
            self.time_finish = time()
            self.log_request()

    def run_application(self) -> None:
        """Call the application and send what it returns; its ``close()`` is called whatever happens."""
        self.result = self.application(self.environ, self.start_response)
        try:
            self.process_result()
        finally:
            result, self.result = self.result, None
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def process_result(self) -> None:
        """Send the blocks of the result, and what is still due."""
        result = self.result
        if self.upgrade is not None and self.upgrade.used:
            for _ in result or ():  # a generator does its work here; what it yields goes nowhere
                pass
            return
        if (result.__class__ is list or result.__class__ is tuple) and not self.headers_sent and self.status:
            body = result[0] if len(result) == 1 else b"".join(result)
            self._send_whole(body)
            return
        for data in result:
            if data:
                self.write(data)
            else:  # nothing is sent that would find out
                self.socket.check()
        if self.status and not self.headers_sent:
            self.write(b"")

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | None = None,
    ) -> Any:
        """Take the status and the headers, as PEP 3333 says.

        Args:
            status: ``"200 OK"``.
            headers: Pairs of native strings.
            exc_info: From ``sys.exc_info()``: replaces what was given before, unless that was sent; then it is raised.

        Returns:
            :meth:`write`.

        Raises:
            ValueError: A CR or LF in the status or a header.
            UnicodeError: One is no native string of latin-1 characters.
            AssertionError: (:attr:`ApplicationError`) Called twice without *exc_info*; a header that only the server
                may set; a 204 or 304 with a length.
        """
        if self.upgrade is not None and self.upgrade.used:
            return self.write
        if exc_info:
            try:
                if self.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status is not None:
            raise self.ApplicationError("start_response() was called twice, the second time without exc_info")
        encoded_status, code = parse_status(status)
        response_headers, special = encode_headers(headers)
        self.provided_date = special.get("date")
        length = self.provided_content_length = special.get("content-length")
        connection = special.get("connection")
        if "transfer-encoding" in special:
            raise self.ApplicationError("Transfer-Encoding is for the server to set: PEP 3333")
        if length is not None:
            if not (length.isascii() and length.isdecimal()):
                raise ValueError(f"Content-Length {length!r} is no number")
            if code in _WITHOUT_BODY and length != "0":
                raise self.ApplicationError(
                    f"Content-Length {length!r} in a {code} response: it must be absent or zero"
                )
        self.status = encoded_status
        self._orig_status = status
        self.code = code
        self.response_headers = response_headers
        if connection is not None:
            if "close" in connection.lower():
                self.close_connection = True
        elif self.close_connection:
            response_headers.append(_CLOSE)
        elif self._says_keep_alive:
            response_headers.append((b"Connection", b"keep-alive"))
        return self.write

    def finalize_headers(self) -> None:
        """Add what the response still needs to :attr:`response_headers`: ``Date``, and how its end is found."""
        if self.provided_date is None:
            self.response_headers.append((b"Date", current_date()))
        self.connection_upgraded = self.code == 101
        if self.provided_content_length is None and self.code not in _WITHOUT_BODY and not self.connection_upgraded:
            if hasattr(self.result, "__len__"):
                length = sum([len(data) for data in self.result])
                if length or self.command != "HEAD":
                    self.response_headers.append((b"Content-Length", b"%d" % length))
                    self.provided_content_length = str(length)
            elif self.request_version == "HTTP/1.0":
                self._close_behind()
            elif self.command != "HEAD":
                self.response_use_chunked = True
                self.response_headers.append(_CHUNKED)

    # -- the way out -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send *data*, behind the head where that was not sent; what ``start_response`` returns.

        Blocks this greenlet while the browser does not read what was sent before.

        Raises:
            AssertionError: (:attr:`ApplicationError`) ``start_response`` was not called; a body in a 204 or 304.
            ConnectionResetError: The client has gone.
        """
        if self.upgrade is not None and self.upgrade.used:
            return
        if data and self.code in _WITHOUT_BODY:
            raise self.ApplicationError(f"the {self.code} response must have no body")
        if not self.headers_sent:
            if self.status is None:
                raise self.ApplicationError("the application did not call start_response()")
            self._pieces = PieceWriter(self.socket)
            self._put(self._take_head() + self._framed(data))
        elif data:
            self._put(self._framed(data))

    def _send_whole(self, body: bytes) -> None:
        """Send the head and all of the body, as one message."""
        if body and self.code in _WITHOUT_BODY:
            raise self.ApplicationError(f"the {self.code} response must have no body")
        data = self._take_head()
        if body and not self._without_body:
            if self._body_left == len(body):
                self._body_left = 0
            else:
                body = self._cut(body)
            if len(body) <= JOIN_BYTES:
                data += body
            else:  # rather two messages than two copies
                self._send(data)
                data = body
        if self._body_left or self.wsgi_input.__class__ is not io.BytesIO:
            self._send(data)  # _end_response() says that it is complete
        else:
            self._send(data, last=True, close=self.close_connection)

    def _send(self, data: bytes, *, last: bool = False, close: bool = False) -> None:
        self.socket.send(data, last=last, close=close)
        self.response_length += len(data)

    def _take_head(self) -> bytes:
        self.headers_sent = True
        self.finalize_headers()
        length = self.provided_content_length
        self._without_body = self.command == "HEAD" or self.code in _WITHOUT_BODY
        if length is not None and not self._without_body:
            self._body_left = int(length)
        assert self.status is not None
        return build_head(self.status, self.response_headers)

    def _close_behind(self) -> None:
        """The end of the connection is the end of this response."""
        if not self.close_connection:
            self.close_connection = True
            if (b"Connection", b"keep-alive") in self.response_headers:
                self.response_headers.remove((b"Connection", b"keep-alive"))
                self.response_headers.append(_CLOSE)

    def _framed(self, data: bytes) -> bytes:
        if not data or self._without_body:
            return b""
        if self.response_use_chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        return self._cut(data)

    def _cut(self, data: bytes) -> bytes:
        """Cut a body off where Content-Length says that it ends: the client takes the rest for its next response."""
        left = self._body_left
        if left is None:
            return data
        if len(data) > left:
            self.log_error("%s: the body is longer than its Content-Length, the rest is not sent", self.requestline)
            data = data[:left]
        self._body_left = left - len(data)
        return data

    def _put(self, data: bytes) -> None:
        if data:
            assert self._pieces is not None
            self._pieces.put(data)
            self.response_length += len(data)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _end_response(self) -> None:
        """Send what ends the response. What is unread of the request's body the exchange sees to."""
        exchange = self.socket
        if not self.headers_sent or exchange.ended:
            return
        tail = b"0\r\n\r\n" if self.response_use_chunked else b""
        self.response_length += len(tail)
        if self._body_left:
            self.log_error(
                "%s: %d bytes of the body are missing, the connection is closed", self.requestline, self._body_left
            )
            self.close_connection = True
        pieces = self._pieces or PieceWriter(exchange)
        pieces.end(tail, close=self.close_connection)

    def _abandon(self) -> None:
        """The client has gone, or has to go, with what it was sent."""
        self.close_connection = True
        exchange = self.socket
        try:
            if self._pieces is not None and not exchange.ended:
                self._pieces.end(last=False, close=True)
            else:
                exchange.close()
        except ConnectionResetError:
            return  # it has gone
        except (OSError, GreentxError) as error:
            self.log_error("%s: the connection could not be closed: %s", self.requestline, error)

    def handle_error(self, kind: Any, value: Any, tb: Any) -> None:
        """Report an exception of the application, and answer 500 where nothing was sent; else close."""
        if not issubclass(kind, GreenletExit):
            context = self.environ
            if not isinstance(context, self.server.secure_environ_class):
                context = self.server.secure_environ_class(context)
            self.server.loop.handle_error(context, kind, value, tb)
        self._send_error(500)

    def _send_error(self, code: int) -> None:
        if self.headers_sent or self.socket.ended:
            self._abandon()
            return
        body = _ERROR_BODIES[code]
        self.close_connection = self.headers_sent = True
        self._orig_status = f"{code} {body.decode()}"
        self.status = self._orig_status.encode()
        self.code = code
        self.response_headers = [
            (b"Content-Type", b"text/plain"),
            _CLOSE,
            (b"Content-Length", b"%d" % len(body)),
            (b"Date", current_date()),
        ]
        data = build_head(self.status, self.response_headers)
        if self.command != "HEAD":
            data += body
        try:
            self._send(data, last=True, close=True)
        except (OSError, GreentxError) as error:
            if getattr(error, "errno", None) not in self.ignored_socket_errors:
                self.log_error("%s: the failure could not be answered: %s", self.requestline, error)

    # -- logs ------------------------------------------------------------------------------------------------------

    def log_error(self, msg: str, *args: object) -> None:
        """Write a line to the server's ``error_log``: *msg* % *args*, or *msg* alone."""
        self.server.error_log.write(f"{self.socket}: {msg % args if args else msg}\n")

    def log_request(self) -> None:
        """Write the line of :meth:`format_request` to the server's ``log``."""
        log = self.server.log
        if log.__class__ is not NoLog:
            log.write(self.format_request() + "\n")

    def format_request(self) -> str:
        """Return the line of the access log for this request, without its end."""
        address = self.client_address
        return format_line(
            address[0] if isinstance(address, tuple) else address,
            self.requestline,
            self._orig_status or "000",
            self.response_length,
            self.time_finish - self.time_start if self.time_finish else None,
        )
