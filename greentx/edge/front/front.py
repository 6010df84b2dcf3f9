"""The embedded front end itself: what listens, who is connected, and what handlers say to them."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import gevent
from gevent import socket
from gevent.lock import RLock
from gevent.pool import Group
from gevent.server import StreamServer

from ...errors import BindError, LocalProtocolError
from ...protocol.fields import MAX_CONN_IDS
from ...transport import Context
from ..addresses import family, numeric_host
from ..config import DEFAULT_SETTINGS, SERVER_UUID, Handler, checked_settings
from .admission import Admission
from .answers import build_answer
from .connection import BrowserConnection
from .entry import Entry
from .http import HttpSide
from .limits import Limits
from .patience import Silence, Times
from .replies import Replies
from .routes import Routes
from .sockets import BrowserSocket
from .tls import TlsFiles, TlsSocket

__all__ = ["Edge"]

log = logging.getLogger("greentx.edge.front")

# Between two looks at the deadlines.
_TICK_SECONDS = 0.25
_BACKLOG = 1024

# The settings of Mongrel2 that mean something here.
_SETTINGS = frozenset(
    {
        "download.flow_control",
        "limits.buffer_size",
        "limits.content_length",
        "limits.handler_targets",
        "limits.header_count",
        "limits.kill_limit",
        "limits.min_ping",
        "limits.min_read_rate",
        "limits.min_write_rate",
        "limits.tick_timer",
        "no_clobber_xff",
        "request.relaxed",
        "ssl.ca_chain",
        "ssl.verify_optional",
        "ssl.verify_required",
        "upload.stream",
        "upload.temp_store",
        "upload.temp_store_mode",
    }
)


class Edge:
    """An HTTP server in this process that speaks Mongrel2's protocol to handlers; a context manager, too.

    To a handler it is a Mongrel2. It is stricter towards browsers, answers 503 itself where no handler is there, and
    sends its notices also where Mongrel2 leaves one out, when it ends a connection by itself.

    Args:
        routes: Paths and the handlers that answer them; ``None`` is ``"/"`` and a handler whose sender is ``greentx``.
            Several routes may lead to one handler. A handler without endpoints gets free ports of 127.0.0.1. Routes of
            JSON sockets begin with ``@``, those of XML sockets with ``<``.
        bind_addr: The address to listen on, or a name for one; ``""`` is every IPv4 address.
        port: 0 chooses a free one at the first start, and then keeps it.
        settings: By Mongrel2's names: bytes of a head (``limits.buffer_size``) and of a body
            (``limits.content_length``), header fields (``limits.header_count``), ids of a reply
            (``limits.handler_targets``); when silent connections end (``limits.min_ping`` and so on, of which all count
            that :class:`~.patience.Silence` has); ``download.flow_control``; what becomes of larger bodies
            (``upload.stream``, ``upload.temp_store``, ``upload.temp_store_mode``); braces in paths
            (``request.relaxed``) and what clients say that they are (``no_clobber_xff``); and certificates of clients,
            see :class:`~.tls.TlsFiles` (``ssl.ca_chain`` and so on).
        certfile: A PEM file with a certificate (chain): TLS 1.2 and 1.3 is spoken then, and nothing else. It is read at
            each start.
        keyfile: A PEM file with its key; ``None`` where *certfile* holds it.
        ssl_context: In place of both, used as it is.
        no_handler_timeout: Seconds that a request waits for a handler to be there; then the answer is 503.
        request_timeout: Seconds that a client has for the head of a request, and for the next piece of its body; then
            the answer is 408.
        half_close_timeout: Seconds that a client waits for the next byte of its answer once it has said that it sends
            nothing more. That may also mean that it has gone: so long the notice is late where an answer is due.
        max_connections: In all; one more is answered 503.
        max_per_address: Of one client address; ``None`` is as many as there may be in all.
        max_upload: Bytes of a body that is stored or streamed; beyond it the answer is 413. ``None`` is 2 GiB less one
            byte, since Mongrel2 and handlers know no larger ones.
        max_message_size: Bytes of a WebSocket message as it travels; a larger one ends its WebSocket (1009). It is what
            a Transceiver takes by default, inflated; ``None`` sets no limit, as in Mongrel2.

    Raises:
        LocalProtocolError: (a ``ValueError``) a value that cannot be used; the message names it.
    """

    def __init__(
        self,
        routes: Mapping[str, Handler] | None = None,
        *,
        bind_addr: str = "127.0.0.1",
        port: int = 0,
        settings: Mapping[str, int | str] | None = None,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        no_handler_timeout: float = 30.0,
        request_timeout: float = 30.0,
        half_close_timeout: float = 1.0,
        max_connections: int = 10_000,
        max_per_address: int | None = None,
        max_upload: int | None = None,
        max_message_size: int | None = 1024 * 1024,
    ) -> None:
        self._handlers = dict({"/": Handler(SERVER_UUID)} if routes is None else routes)
        if not self._handlers:
            raise LocalProtocolError("routes is empty: a server without a handler cannot answer")
        Routes(self._handlers)
        # It knows what was meant by a name that is mistyped.
        checked = checked_settings(settings)
        # Those that every server is started with say how Mongrel2 works, and what holds here in any case.
        for name in (settings or {}).keys() - _SETTINGS - DEFAULT_SETTINGS.keys():
            raise LocalProtocolError(f"setting {name!r} means nothing to the embedded front end")
        # Those that no limit or time is made of.
        self._flow_control = _number(checked, "download.flow_control", 0) != 0
        self._believes = _number(checked, "no_clobber_xff", 0) != 0
        self._max_ids = _number(checked, "limits.handler_targets", MAX_CONN_IDS)
        self._limits = Limits.of(checked, max_upload=max_upload, message_size=max_message_size)
        self._times = Times(
            no_handler=no_handler_timeout,
            head=request_timeout,
            half_close=half_close_timeout,
            silence=Silence.of(checked),
        )
        self._tls = TlsFiles(certfile, keyfile, ssl_context, checked)
        self.bind_addr = bind_addr
        self.port = port
        self._bounds = (max_connections, max_per_address)
        self._running: _Running | None = None
        self._changing = RLock()

    def __repr__(self) -> str:
        state = "stopped" if self._running is None else f"{len(self._running.connections)} connections"
        return f"<Edge {self.url} {state}>"

    def __enter__(self) -> Edge:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def routes(self) -> dict[str, Handler]:
        """The handlers by path, with their endpoints; ``None`` in them where those are not known yet."""
        return dict(self._handlers)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, each once, in the order of their first routes; endpoints as in :attr:`routes`."""
        return tuple(dict.fromkeys(self._handlers.values()))

    @property
    def url(self) -> str:
        """What to type into a browser on this machine; it ends with ``/``."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind_addr, self.bind_addr)
        scheme = "https" if self._tls else "http"
        return f"{scheme}://[{host}]:{self.port}/" if ":" in host else f"{scheme}://{host}:{self.port}/"

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return self._running is not None

    @property
    def connections(self) -> int:
        """How many browser connections there are."""
        return 0 if self._running is None else len(self._running.connections)

    def start(self) -> None:
        """Listen, and bind the endpoints; port and endpoints stay the same over every later start.

        Raises:
            BindError: An address is in use, not of this machine, or not permitted; the message names it. Nothing is
                left open.
            OSError: A file of TLS cannot be read.
            LocalProtocolError: One of them is not what it should be.
        """
        with self._changing:
            if self._running is not None:
                return
            running = _Running(
                self._handlers,
                self._limits,
                self._times,
                Admission(*self._bounds),
                Replies(self._max_ids),
                self._tls.load(),
                flow_control=self._flow_control,
                believes=self._believes,
            )
            try:
                running.listen(self.bind_addr, self.port)
            except BaseException:  # raised again
                running.close(0)
                raise
            self.port = running.port
            self._handlers = {path: running.entries[one].handler for path, one in self._handlers.items()}
            self._running = running

    def stop(self, timeout: float = 5.0) -> None:
        """Accept nothing more, wait for answers that are due for *timeout* seconds at the most, and close everything.

        It may be started again.
        """
        with self._changing:
            running, self._running = self._running, None
            if running is not None:
                running.close(timeout)


class _Running:
    """What is open from one start to its stop."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        limits: Limits,
        times: Times,
        admission: Admission,
        replies: Replies,
        tls: ssl.SSLContext | None,
        *,
        flow_control: bool,
        believes: bool,
    ) -> None:
        self.context = Context("Edge", lambda: self.close(0), linger=0)
        self.port = 0
        self.connections: set[BrowserConnection] = set()
        self.entries: dict[Handler, Entry] = {}
        self._limits = limits
        self._times = times
        self._admission = admission
        self._replies = replies
        self._tls = tls
        self._flow_control = flow_control
        self._greenlets = Group()
        self._server: StreamServer | None = None
        self._ticker: gevent.Greenlet[..., None] | None = None
        scheme = b"http" if tls is None else b"https"
        try:
            for handler in handlers.values():
                if handler not in self.entries:
                    self.entries[handler] = Entry(self.context, handler, self._replies.reply, scheme, believes=believes)
        except BaseException:  # raised again
            self.close(0)
            raise
        self._routes = Routes({path: self.entries[one] for path, one in handlers.items()})

    def listen(self, bind_addr: str, port: int) -> None:
        host = numeric_host(bind_addr)
        listener = socket.socket(family(host), socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise BindError(f"{where} cannot be bound: {error.strerror}", address=where, errno=error.errno) from error
        self.port = listener.getsockname()[1]
        self._server = StreamServer(listener, self._serve, spawn=self._greenlets.spawn)
        self._server.start()
        self._ticker = gevent.spawn(self._tick)

    def close(self, timeout: float) -> None:
        try:
            # To a forked child nothing belongs of it: the connections are the parent's.
            if self.context.forked:
                return
            if self._server is not None:
                self._server.close()
            # In a program's last moments the hub itself closes, which can wait for nothing.
            if gevent.getcurrent() is not self.context.hub:
                deadline = time.monotonic() + timeout
                for connection in list(self.connections):
                    if not connection.busy:
                        connection.abort()
                while any(one.busy for one in self.connections) and time.monotonic() < deadline:
                    gevent.sleep(_TICK_SECONDS / 10)
                for connection in list(self.connections):
                    connection.abort()
                self._greenlets.join(self._times.linger)
                self._greenlets.kill(timeout=self._times.linger)
                if self._ticker is not None:
                    self._ticker.kill()
                for entry in self.entries.values():
                    entry.close()
        finally:
            self.context.close(linger=0)

    def _serve(self, sock: socket.socket, peer: Any) -> None:
        address = str(peer[0])
        if not self._admission.enter(address):
            log.warning("a connection of %s was refused: there are %d", address, len(self._admission))
            self._turn_away(sock)
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream: BrowserSocket = sock if self._tls is None else TlsSocket(sock, self._tls, address)
        connection = BrowserConnection(stream, address, self._replies, self._times, flow_control=self._flow_control)
        connection.side = side = HttpSide(connection, self._routes, self._limits)
        if isinstance(stream, TlsSocket):
            stream.on_ready = side.identify
        self.connections.add(connection)
        try:
            connection.run()
        finally:
            self.connections.discard(connection)
            self._admission.leave(address)

    def _turn_away(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            if self._tls is None:
                sock.settimeout(self._times.linger)
                sock.sendall(build_answer(503, "there are too many connections", timestamp=time.time()))
            sock.shutdown(socket.SHUT_WR)

    def _tick(self) -> None:
        seconds = max(_TICK_SECONDS, self._times.silence.tick)
        next_look = time.monotonic() + seconds
        while True:
            gevent.sleep(_TICK_SECONDS)
            now = time.monotonic()
            for connection in [one for one in self.connections if one.deadline < now]:
                connection.expire()
            if now >= next_look and self._times.silence.kills:
                next_look = now + seconds
                for connection in list(self.connections):
                    connection.look(now)


def _number(settings: Mapping[str, int | str], name: str, default: int) -> int:
    value = str(settings.get(name, default))
    if not value.isdecimal():
        raise LocalProtocolError(f"setting {name} is {value!r}, which is not a whole number")
    return int(value)
