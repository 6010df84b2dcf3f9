"""Runs the application for one request: the class whose methods people override."""

from __future__ import annotations

import errno
import io
import socket
import sys
from collections.abc import Sequence
from functools import cached_property
from http.client import HTTPMessage
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import gevent
from gevent import GreenletExit

from ..errors import GreentxError
from ..handler.clock import current_date
from ..protocol.framing import FramingError
from ..protocol.http1 import LAST_CHUNK, connection_options
from .accesslog import NoLog, format_line
from .environ import add_request
from .input import BrokenBody, open_streamed
from .response import CLOSE, JOIN_BYTES, Body, build_head, encode_headers, parse_status, say_close
from .sessions import claim_opened, opens_session
from .upgrade import Upgrade

if TYPE_CHECKING:
    from ..relay import Node
    from .exchange import Exchange
    from .server import WSGIServer

__all__ = ["WSGIHandler"]

_CHUNKED = (b"Transfer-Encoding", b"chunked")
_KEEP_ALIVE = (b"Connection", b"keep-alive")

# Codes whose responses end with their head, among those that an application may answer with.
_WITHOUT_BODY = frozenset({204, 304})

# What the embedded front end says of a client of a Unix socket.
_OF_UNIX = "127.0.0.1"

_ERROR_BODIES = {400: b"Bad Request", 500: b"Internal Server Error"}


def _as_bytes(data: Any) -> bytes:
    """Return a copy of a block that is like bytes; raise ``TypeError`` for any other, before something is sent."""
    view = memoryview(data)
    # Its len() would be another number than that of its bytes.
    if view.itemsize != 1:
        raise TypeError(f"a block of the body is bytes, not {type(data).__name__} of {view.itemsize} bytes each")
    return bytes(view)


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

    # More than 25 methods and 15 attributes, because gevent's own surface is that large: handle, handle_one_response,
    # get_environ, run_application, process_result, start_response, finalize_headers, write, handle_error, log_error,
    # log_request, format_request, headers, requestline, protocol_version, ApplicationError, ignored_socket_errors,
    # environ, application, result, status, code, response_headers, headers_sent, response_length,
    # response_use_chunked, connection_upgraded, close_connection, provided_date, provided_content_length, wsgi_input,
    # content_length, time_start, time_finish, command, path, request_version, socket, client_address, server,
    # _orig_status (which gunicorn reads as well).

    protocol_version = "HTTP/1.1"

    #: Raised for applications that break PEP 3333.
    ApplicationError = AssertionError

    #: Where the client has gone these say so, and are not logged.
    ignored_socket_errors = (errno.EPIPE, errno.ECONNRESET)

    # In the class, so that a handler, which is made for each request, costs no more than the attributes it changes.
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
    _says_keep_alive = False
    # Of a response that does not go out whole.
    _body: Body | None = None
    # Where the response opens a session that is to be claimed for it.
    _node: Node | None = None

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
        self.close_connection, self._says_keep_alive = request.known_persistence or request.persistence()
        try:
            self.environ = self.get_environ()
        except FramingError as error:
            self._refuse(error)
            return
        except Exception:  # noqa: BLE001 - of an override, or of a stored body that cannot be read
            # handle_error() and log_request() of subclasses read it.
            self.environ = {}
            self.handle_error(*sys.exc_info())
            self.log_request()
            return
        # Looked up for each request: it may be replaced while the server runs, as in gevent.
        self.application = self.server.application
        if is_handshake:
            self.upgrade = Upgrade(self)
        elif self.server.intake.node is not None and opens_session(self.environ.get("QUERY_STRING", "")):
            self._node = self.server.intake.node
        self.handle_one_response()

    def get_environ(self) -> Any:
        """Return the environ for this request.

        Raises:
            FramingError: (a ``ValueError``) The request cannot be told from the next one; it is answered 400.
        """
        exchange = self.socket
        request = exchange.request
        environ = self.server.get_environ()
        add_request(environ, request)
        self.path = environ["RAW_URI"]
        self.request_version = environ["SERVER_PROTOCOL"]
        length = environ.get("CONTENT_LENGTH")
        if length is not None:
            self.content_length = int(length)
        if exchange.streams:
            self.wsgi_input = open_streamed(exchange, self.content_length)
        elif request.method == "WEBSOCKET_HANDSHAKE":
            # Mongrel2 puts the accept value into the body of a handshake; the client sent none.
            self.wsgi_input = io.BytesIO()
            environ["wsgi.input_terminated"] = False
        else:
            self.wsgi_input = io.BytesIO(request.body) if request.stored is None else request.body_file
        environ["wsgi.input"] = self.wsgi_input
        environ["greentx.disconnected"] = exchange.disconnected
        return environ

    @cached_property
    def headers(self) -> HTTPMessage:
        """What the client sent, one field for each value; names are in lower case, and looked up in any."""
        headers = HTTPMessage()
        for name, value in self.socket.request.headers.client():
            headers[name] = value
        return headers

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
        """Run the application, answer for it where it fails, and log the request."""
        try:
            try:
                if self.upgrade is None:
                    self.run_application()
                else:
                    self.upgrade.run()
                if not self.socket.ended:
                    self._end_response()
            finally:
                if self.wsgi_input is not None:
                    self.wsgi_input.close()
        except OSError as error:
            # Of another socket, such as a database's, while our client waits, it is an error like any other.
            if error.errno in self.ignored_socket_errors and self.socket.disconnected.is_set():
                self._abandon()
            else:
                self.handle_error(*sys.exc_info())
        # The application cannot know, and must not be blamed by a 500.
        except BrokenBody as error:
            self.log_error("Invalid request (from %s): %s", self.client_address, error)
            self.close_connection = True
            self._send_error(400)
        # Answered, since nobody else will, and raised: whoever killed the greenlet waits for its end.
        except GreenletExit:
            self.handle_error(*sys.exc_info())
            raise
        except BaseException:  # noqa: BLE001 - the hub is told, which acts on SystemExit and the like
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
            # Deleted first: a close() that fails must not be called again by somebody who looks at it.
            result, self.result = self.result, None
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def process_result(self) -> None:
        """Send the blocks of the result, and what is still due.

        Blocks are asked for while something of them may be sent. One more is asked for behind the last byte that
        ``Content-Length`` allows, so that a generator which yields no more gets to its own end.
        """
        result = self.result
        if self.upgrade is not None and self.upgrade.used:
            for _ in result or ():  # a generator does its work here; what it yields goes nowhere
                gevent.sleep(0)  # others run meanwhile
            return
        # Nearly all answers: head and body go out as one message, and nothing has to be joined later.
        if (result.__class__ is list or result.__class__ is tuple) and not self.headers_sent and self.status:
            self._send_whole(result[0] if len(result) == 1 else b"".join(result))
        else:
            for data in result:
                # A generator mostly uses its WebSocket while it is iterated over. That tells it of its end, not we.
                if self.upgrade is not None and self.upgrade.used:
                    gevent.sleep(0)
                elif data:
                    self.write(data)
                    if self._body is not None and self._body.dropped:
                        break
                else:
                    self.socket.pause()
                    if self.headers_sent:
                        if self._body is not None and self._body.left == 0:
                            break
                    # The one exception to the rule below; a 204 and a 304 have no body, either.
                    elif self.status and (self.code in _WITHOUT_BODY or self.provided_content_length == "0"):
                        break
            # No block had a byte: the head has still to go out (PEP 3333, "The start_response() Callable").
            if self.status and not self.headers_sent:
                self.write(b"")
        # Before the result is closed: what goes wrong there, or takes long, is not the client's business.
        if self.status and not self.socket.ended:
            self._end_response()

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | None = None,
    ) -> Any:
        """Accept the status and the headers, as PEP 3333 says.

        Args:
            status: ``"200 OK"``.
            headers: Pairs of native strings.
            exc_info: From ``sys.exc_info()``: replaces what was given before, unless that was sent; then it is raised.

        Returns:
            :meth:`write`.

        Raises:
            ValueError: As :func:`greentx.wsgi.response.parse_status` and ``encode_headers``: what would be read as
                something else than one head.
            UnicodeError: One is not a native string of latin-1 characters.
            AssertionError: (:attr:`ApplicationError`) Called twice without *exc_info*; a header that only the server
                may set; a 204 with a length.
        """
        if self.upgrade is not None and self.upgrade.used:
            self.upgrade.note_status(status)
            return self.write
        if exc_info:
            try:
                if self.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                # A reference cycle through the traceback would keep all of its frames alive.
                exc_info = None
            # Left by a first attempt that failed before anything was sent: this answer may have an end of another kind.
            self.response_use_chunked = False
        elif self.status is not None:
            raise self.ApplicationError("start_response() was called twice, the second time without exc_info")
        encoded_status, code = parse_status(status)
        response_headers, special = encode_headers(headers)
        self.provided_date = special.get("date")
        length = self.provided_content_length = special.get("content-length")
        connection = special.get("connection")
        # PEP 3333, "Other HTTP Features": hop-by-hop headers are the server's.
        if "transfer-encoding" in special:
            raise self.ApplicationError("Transfer-Encoding is for the server to set: PEP 3333")
        # RFC 9110, section 8.6: not in a 204, where gevent allows a zero. A 304 has that of a 200.
        if length is not None and code == 204 and length != "0":
            raise self.ApplicationError(f"Invalid Content-Length for 204 response: {length!r} (must be absent or zero)")
        self.status = encoded_status
        self._orig_status = status
        self.code = code
        self.response_headers = response_headers
        # What else an application says there is the server's to decide; it goes out as it is.
        if connection is not None and "close" in connection_options(connection):
            self.close_connection = True
        elif self.close_connection:
            say_close(response_headers)
        elif self._says_keep_alive and connection is None:
            response_headers.append(_KEEP_ALIVE)
        return self.write

    def finalize_headers(self) -> None:
        """Add what the response still needs to :attr:`response_headers`: ``Date``, and how its end is found."""
        if self.provided_date is None:
            self.response_headers.append((b"Date", current_date()))
        if self.provided_content_length is None and self.code not in _WITHOUT_BODY:
            # A sequence gives its blocks again when they are sent. What else has a length may give them once only.
            if isinstance(self.result, (list, tuple, Sequence)):
                length = sum([len(data) for data in self.result])
                # An empty body of a HEAD says nothing about the length that a GET would have.
                if length or self.command != "HEAD":
                    self.response_headers.append((b"Content-Length", b"%d" % length))
                    self.provided_content_length = str(length)
            # RFC 9112, section 6.1: no chunks to a client of HTTP/1.0.
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
            TypeError: *data* is not bytes.
            ConnectionResetError: The client has gone.
        """
        if self.upgrade is not None and self.upgrade.used:
            return
        if data and data.__class__ is not bytes:
            data = _as_bytes(data)
        if data and self.code in _WITHOUT_BODY:
            raise self.ApplicationError(f"The {self.code} response must have no body")
        if data and self._node is not None:
            # Before the client can know of it.
            claim_opened(self._node.claim, self.response_headers, data)
            self._node = None
        if self.headers_sent:
            self._put(b"", data)
        elif self.status is None:
            raise self.ApplicationError("The application did not call start_response()")
        else:
            self._put(self._finish_head(), data)

    def _send_whole(self, body: bytes) -> None:
        """Send the head and all of the body, as one message."""
        if body.__class__ is not bytes:
            body = _as_bytes(body) if body else b""
        if self.code in _WITHOUT_BODY and body:
            raise self.ApplicationError(f"The {self.code} response must have no body")
        if self._node is not None:
            claim_opened(self._node.claim, self.response_headers, body)
        head = self._finish_head()
        if self.command == "HEAD" or self.code in _WITHOUT_BODY:
            body, is_whole = b"", True
        else:
            length = self.provided_content_length
            is_whole = length is not None and int(length) == len(body)
        # The body of the request may still be coming, or that of the answer be too short: it is not complete yet.
        if not is_whole or self.wsgi_input.__class__ is not io.BytesIO:
            self._put(head, body)  # _end_response() says that it is complete
            return
        if len(body) > JOIN_BYTES:  # rather two messages than two copies
            self._send(head)
            head = b""
        self._send(head + body, last=True, close=self.close_connection)

    def _send(self, data: bytes, *, last: bool = False, close: bool = False) -> None:
        self.headers_sent = True  # before the call, in which this greenlet may be killed
        self.socket.send(data, last=last, close=close)
        self.response_length += len(data)

    def _finish_head(self) -> bytes:
        if self.socket.is_last and not self.close_connection:
            self._close_behind()
        self.finalize_headers()
        assert self.status is not None
        return build_head(self.status, self.response_headers)

    def _close_behind(self) -> None:
        """The end of the connection is the end of this response."""
        if not self.close_connection:
            self.close_connection = True
            say_close(self.response_headers)

    def _put(self, head: bytes, data: bytes) -> None:
        """Send a piece of the body, which may be empty, behind the *head* where that was not sent."""
        body = self._body
        if body is None:
            length = self.provided_content_length
            body = self._body = Body(
                self.socket,
                # Without a head all has gone out: nothing may follow.
                0 if not head else None if length is None else int(length),
                chunked=self.response_use_chunked,
                dropped=self.command == "HEAD" or self.code in _WITHOUT_BODY,
            )
        if body.is_too_long(data):
            self.log_error("%s: the body is longer than its Content-Length, the rest is not sent", self.requestline)
        data = head + body.framed(data)
        if data:
            self.headers_sent = True
            body.put(data)
            self.response_length += len(data)
        else:
            self.socket.pause()

    def note_answer(self, status: bytes, length: int) -> None:
        """The request was answered in another way, as by a WebSocket; for the log, and so that nothing else is sent.

        Args:
            status: ``b"101 Switching Protocols"``.
            length: Bytes of the answer's head.
        """
        self.status = status
        self._orig_status = status.decode("latin-1")
        self.code = int(status[:3])
        self.headers_sent = self.close_connection = True
        self.response_length = length

    # -- the end ---------------------------------------------------------------------------------------------------

    def _end_response(self) -> None:
        """Send what ends the response. The exchange reads, or drops, what is unread of the request's body."""
        if not self.headers_sent:
            raise self.ApplicationError("The application did not call start_response()")
        exchange = self.socket
        tail = LAST_CHUNK if self.response_use_chunked else b""
        self.response_length += len(tail)
        # The client waits for the rest: only the end of the connection tells it that there is none.
        body = self._body or Body(exchange)
        if body.left:
            self.log_error(
                "%s: %d bytes of the body are missing, the connection is closed", self.requestline, body.left
            )
            self.close_connection = True
        body.end(tail, close=self.close_connection)

    def _abandon(self) -> None:
        """The client has gone, or has to go, with what it was sent."""
        self.close_connection = True
        exchange = self.socket
        try:
            # What the application has written goes out before the connection is closed.
            if self._body is not None and not exchange.ended:
                self._body.end(last=False, close=True)
            else:
                exchange.close()
        except ConnectionResetError:
            return  # it has gone
        except (OSError, GreentxError) as error:
            self.log_error("%s: the connection could not be closed: %s", self.requestline, error)

    def handle_error(self, kind: Any, value: Any, tb: Any) -> None:
        """Report an exception of the application, and answer 500 where nothing was sent; else close."""
        # A kill is not an error of the application.
        if not issubclass(kind, GreenletExit):
            context = self.environ
            if not isinstance(context, self.server.secure_environ_class):
                context = self.server.secure_environ_class(context)
            self.server.loop.handle_error(context, kind, value, tb)
        self._send_error(500)

    def _send_error(self, code: int) -> None:
        # The client has its whole answer, and may have asked for the next one.
        if self.socket.ended and self.upgrade is None:
            return
        if self.headers_sent or self.socket.ended:
            self._abandon()
            return
        # No details: they are for the log, not for the browser.
        body = _ERROR_BODIES[code]
        self.close_connection = True
        self._orig_status = f"{code} {body.decode()}"
        self.status = self._orig_status.encode()
        self.code = code
        self.response_headers = [
            (b"Content-Type", b"text/plain"),
            CLOSE,
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
        client = address[0] if isinstance(address, tuple) else address
        if client == _OF_UNIX and self.server.family == socket.AF_UNIX:
            client = ""  # as gevent has it; what a trusted proxy says of its client stays
        return format_line(
            client,
            self.requestline,
            # What was not sent nobody got.
            (self.response_length and self._orig_status) or "000",
            self.response_length,
            self.time_finish - self.time_start if self.time_finish else None,
        )
