"""The server: takes requests from a Transceiver and runs a handler in a greenlet for each."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from gevent.pool import Pool
from gevent.pywsgi import WSGISecureEnviron

from ..errors import GreentxError
from ..frames import CloseCode
from ..pipeline import GONE
from ..version import __version__
from .accesslog import make_log
from .exchange import Exchange
from .handler import WSGIHandler
from .listeners import MAX_MESSAGE_SIZE, BoundAddress, Listener, make_listener
from .response import FileWrapper
from .runners import Runners
from .uploads import UploadStore

if TYPE_CHECKING:
    from ..connection import Connection
    from ..registry import Sid
    from ..transceiver import Transceiver
    from ..wire import Request
    from .upgrade import Client, Upgrade

__all__ = ["WSGIServer"]

log = logging.getLogger("greentx.wsgi")

#: Requests that may wait for a place in the pool; more are answered 503.
MAX_WAITING = 10000

# How long handlers that are killed may take to end.
_KILL_SECONDS = 1.0

_POLL_SECONDS = 0.002

# How long the end of a server waits for what keeps it from leaving further requests to another process.
_QUIET_SECONDS = 5.0

# Where requests are taken so long, what comes last has that much of the time to stop in to be answered, at the most.
_LAST_SECONDS = 2.0

_WEBSOCKET_EVENTS = frozenset({"WEBSOCKET", "WEBSOCKET_CONNECT", "WEBSOCKET_CLOSE"})
# What is no HTTP request. As the method of one they do not get here.
_EVENTS = _WEBSOCKET_EVENTS | {"UPLOAD_STREAM", "DISCONNECT", "JSON", "XML"}

# What browsers' addresses are called, as handlers are given them. Those of few proxies, or of very many browsers.
_MAX_ADDRESSES = 1024
_addresses: dict[Any, tuple[str, int]] = {}


class WSGIServer:
    """Serves a WSGI application behind Mongrel2, in the place of ``gevent.pywsgi.WSGIServer``.

    Each request is handled in a greenlet; those of one browser connection one after the other, in order.

    Args:
        listener: An address to listen on as gevent takes it; or ``(sender, pull_addr, pub_addr)``, a URL
            ``mongrel2://sender@host?pull=9999&pub=9998`` or a ``Transceiver``: see :mod:`greentx.wsgi.listeners`.
        application: The WSGI application; may be replaced while the server runs.
        backlog: Taken for gevent's sake; the queue of new connections is the front end's.
        spawn: How handlers run: ``'default'`` in greenlets without a limit; a ``Pool``, or a number for a new one: more
            requests than that wait; a callable such as ``gevent.spawn_raw``; ``None``: one after the other.
        log: Where the access log goes: ``'default'`` is stderr, ``None`` nowhere; an object with ``write()``; or a
            logger, at INFO.
        error_log: The same for errors, and for ``wsgi.errors``; a logger at ERROR.
        handler_class: In the place of :class:`~greentx.wsgi.WSGIHandler`.
        environ: Added to every request's environ. ``SCRIPT_NAME`` is the path that the application is mounted at.
        upload_store: The ``upload.temp_store`` setting of the front end, where it has one: an absolute path that ends
            in ``XXXXXX``. Stored bodies are read from there, and deleted with the end of their request.
        mongrel2_settings: Of our own front end, by name, over :data:`greentx.wsgi.listeners.SETTINGS`.
        max_message_size: Bytes of a WebSocket message; larger ones end their connection (1009), ``None`` is no limit.
            The default, 16 MiB, is more than a Transceiver's own, because gevent's WebSockets know none: but a message
            is held in memory whole, here and in Mongrel2. A ``Transceiver`` as the listener has a limit of its own.
        ssl_args: ``certfile`` and ``keyfile`` (PEM), where the front end is our own.

    Raises:
        ValueError: The listener is malformed; a TLS option that the front end does not have.
        TypeError: The listener is nothing that could be listened on.

    Attributes:
        address: ``(host, port)``, with the real port once started; for a Mongrel2 that is not ours a text.
        family, backlog, loop, min_delay, max_delay, delay, max_accept: As gevent has them.
        pool: The ``Pool`` that handlers run in, or ``None``.
        environ, base_env, environ_class: What each request's environ is made of.
        stop_timeout: Seconds that :meth:`stop` waits where it is not told.
        clients: A :class:`~greentx.wsgi.upgrade.Client` for each ``environ['wsgi.websocket']`` in use, by
            ``(sender, conn_id)``.
        upgrades: The :class:`~greentx.wsgi.upgrade.Upgrade` of each WebSocket in use.
        websockets_refused: Where not empty, why who asks for a WebSocket gets a 503.
        goodbye_code: What WebSockets are closed with when the server ends.
        logger: What WebSockets have as their ``logger``.
    """

    handler_class: Any = WSGIHandler
    application: Any = None
    environ_class: Any = dict
    secure_environ_class: Any = WSGISecureEnviron

    base_env: Mapping[str, Any] = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": f"greentx/{'.'.join(__version__.split('.')[:2])}",
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
    }

    min_delay = 0.01
    max_delay = 1
    max_accept = 100
    stop_timeout: float = 1
    debug = False
    pre_start_hook: Any = None
    websockets_refused = ""
    goodbye_code: int = CloseCode.GOING_AWAY
    logger: Any = logging.getLogger("greentx.wsgi")
    backlog = 128
    pool: Any = None

    def __init__(
        self,
        listener: Any,
        application: Any = None,
        backlog: int | None = None,
        spawn: Any = "default",
        log: Any = "default",
        error_log: Any = "default",
        handler_class: Any = None,
        environ: dict[str, Any] | None = None,
        *,
        upload_store: str | None = None,
        mongrel2_settings: Mapping[str, int | str] | None = None,
        max_message_size: int | None = MAX_MESSAGE_SIZE,
        **ssl_args: Any,
    ) -> None:
        self._stop_event = Event()
        self._stop_event.set()
        self._ssl_args = ssl_args
        self._settings = mongrel2_settings
        self._max_message_size = max_message_size
        self._store = None if upload_store is None else UploadStore(upload_store)
        self._bound: BoundAddress | None = None
        self._transceiver: Transceiver | None = None
        self._intake: gevent.Greenlet[..., None] | None = None
        self._closer: gevent.Greenlet[..., None] | None = None
        self._feeder: gevent.Greenlet[..., None] | None = None
        self._accepting = False
        self._closing = False
        # Until when a server that stops may wait for its old requests, and take new ones.
        self._leave_by = math.inf
        # Requests by the connection they came over, in their order; the first one is being handled, or waits for that.
        self._lines: dict[Sid, list[Exchange]] = {}
        # First ones that wait for a place in the pool.
        self._waiting: deque[Exchange] = deque()
        self._idle: Event | None = None
        self.clients: dict[Sid, Client] = {}
        self.upgrades: set[Upgrade] = set()
        self._handshake_events = False
        self._runners = Runners(self._answer, self._end, self._lines.__contains__)
        self.loop = get_hub().loop
        self.delay = self.min_delay
        if backlog is not None:
            self.backlog = backlog
        self.set_listener(listener)
        self.set_spawn(spawn)
        if application is not None:
            self.application = application
        if handler_class is not None:
            self.handler_class = handler_class
        self.set_handle(None)
        self.log = make_log(log)
        self.error_log = make_log(error_log, logging.ERROR)
        self.set_environ(environ)
        self.set_max_accept()
        if self.max_accept < 1:
            raise ValueError(f"max_accept must be a positive number, not {self.max_accept!r}")

    # -- what it is made of ----------------------------------------------------------------------------------------

    def set_listener(self, listener: Any) -> None:
        """Take another listener; see the class."""
        self._listener: Listener = make_listener(listener, self._ssl_args, self._settings, self._max_message_size)

    def set_spawn(self, spawn: Any) -> None:
        """Take another way to run handlers; see the class."""
        self.pool = None
        if isinstance(spawn, str) and spawn == "default":
            self._spawn: Any = self._spawn_runner
        elif isinstance(spawn, int) or (type(spawn) is Pool and spawn.greenlet_class is gevent.Greenlet):
            self.pool = Pool(spawn) if isinstance(spawn, int) else spawn
            self._spawn = self._spawn_runner
        elif hasattr(spawn, "spawn"):
            self.pool = spawn
            self._spawn = spawn.spawn
        else:
            self._spawn = spawn

    def set_handle(self, handle: Any) -> None:
        """Have *handle*, called with an exchange and the browser's address, answer requests; ``None`` keeps it."""
        if handle is not None:
            self.handle = handle  # type: ignore[method-assign]  # as gevent's servers do: people assign it
        self._handle = self.handle

    def set_environ(self, environ: dict[str, Any] | None = None) -> None:
        """Make :attr:`environ` anew, out of :attr:`base_env` and *environ* (or what was given before)."""
        given = environ if environ is not None else getattr(self, "environ", None)
        self.environ: Any = self.environ_class(self.base_env)
        self.environ["wsgi.url_scheme"] = "https" if self.ssl_enabled else "http"
        # What requests do not always say, and Mongrel2 never does.
        self.environ.update({"QUERY_STRING": "", "REMOTE_PORT": "", "wsgi.input_terminated": True})
        if given is not None:
            self.environ.update(given)
        if self.environ.get("wsgi.errors") is None:
            self.environ["wsgi.errors"] = self.error_log

    def get_environ(self) -> Any:
        """Return what the environ of a request begins with, a copy."""
        return self.environ_class(self.environ)

    def update_environ(self) -> None:
        """Fill in ``SERVER_NAME`` and ``SERVER_PORT``, for requests that do not say them by a ``Host`` header."""
        address = self.address
        host, port = (str(address[0]), str(address[1])) if isinstance(address, tuple) else ("", "")
        self.environ.setdefault("SERVER_NAME", host)
        self.environ.setdefault("SERVER_PORT", port)

    def set_max_accept(self) -> None:
        """Set :attr:`max_accept` to 1 where several processes serve; of no effect behind a front end."""
        if self.environ.get("wsgi.multiprocess"):
            self.max_accept = 1

    @property
    def address(self) -> Any:
        """Where browsers connect to."""
        return self._listener.address

    @property
    def family(self) -> Any:
        """The address family; ``None`` where the front end is not ours."""
        return self._listener.family

    @property
    def server_host(self) -> str | None:
        """The host of :attr:`address`; ``None`` where the front end is not ours."""
        return self.address[0] if isinstance(self.address, tuple) else None

    @property
    def server_port(self) -> int | None:
        """The port of :attr:`address`; ``None`` where the front end is not ours."""
        return self.address[1] if isinstance(self.address, tuple) else None

    @property
    def ssl_enabled(self) -> bool:
        """Browsers talk TLS to our own front end."""
        return self._listener.ssl_enabled

    @property
    def transceiver(self) -> Transceiver | None:
        """What requests come from while the server runs, else ``None``."""
        return self._transceiver

    # -- life ------------------------------------------------------------------------------------------------------

    @property
    def socket(self) -> BoundAddress:
        """Stands for the listening socket; missing (``AttributeError``) while nothing listens, as in gevent."""
        if self._bound is None:
            raise AttributeError("socket")
        return self._bound

    @property
    def started(self) -> bool:
        """True from :meth:`start` to :meth:`close`."""
        return not self._stop_event.is_set()

    @property
    def closed(self) -> bool:
        """True while nothing listens for this server."""
        return self._bound is None

    def init_socket(self) -> None:
        """Have the front end listen; requests wait there until :meth:`start`.

        Raises:
            BindError: The address is in use, not of this machine, or not permitted; the message names it.
            Mongrel2NotFound: There is no ``mongrel2``; the message says what to install.
        """
        if self._bound is None:
            self._listener.bind()
            self._bound = BoundAddress(self._listener)
        self.update_environ()

    def start(self) -> None:
        """Serve. Returns when requests are answered; with a Mongrel2 that is not ours, when it is being connected to.

        Raises as :meth:`init_socket`; ``ConnectTimeout`` where our own front end does not come up.
        """
        if self._closer is not None:
            self._closer.join()
        if self._transceiver is None:
            try:
                self.init_socket()
                self._transceiver = transceiver = self._listener.open()
                transceiver.attach(self)
                self._handshake_events = transceiver.handshake_events
                transceiver.handshake_events = True
            except BaseException:
                self.close()
                raise
            self._intake = gevent.spawn(self._take_events, transceiver)
        self._stop_event.clear()
        self.start_accepting()

    def start_accepting(self) -> None:
        """Handle requests; those that came since :meth:`stop_accepting` first."""
        self._accepting = True
        self._feed()

    def stop_accepting(self) -> None:
        """Have new requests wait, until :meth:`start_accepting`. Those being handled go on."""
        self._accepting = False

    def close(self) -> None:
        """Take no more requests. What runs goes on; after the last answer the front end ends. Does not block."""
        self._stop_event.set()
        if self._transceiver is None:
            self._listener.close()
            self._bound = None
        elif not self._closing:
            self._closing = True
            self._accepting = True  # what has come waits no longer
            self._closer = gevent.spawn(self._release, self._transceiver)

    def stop(self, timeout: float | None = None) -> None:
        """:meth:`close`, wait for what runs, kill what is left after *timeout* seconds, wait until all is gone.

        Called by a handler of this server, or in the hub, it does not wait: nothing could end then.

        Args:
            timeout: ``None`` is :attr:`stop_timeout`.
        """
        self.close()
        closer = self._closer
        current = gevent.getcurrent()
        if closer is None or current is get_hub() or any(line[0].greenlet is current for line in self._lines.values()):
            return
        seconds = self.stop_timeout if timeout is None else timeout
        self._leave_by = time.monotonic() + seconds - min(_LAST_SECONDS, seconds / 2)
        closer.join(seconds)
        if not closer.dead:
            self.kill(_KILL_SECONDS)
            closer.join()

    def serve_forever(self, stop_timeout: float | None = None) -> None:
        """Start, if that was not done, and block until the server is stopped; then :meth:`stop` with *stop_timeout*."""
        if not self.started:
            self.start()
        try:
            self._stop_event.wait()
        finally:
            gevent.spawn(self.stop, timeout=stop_timeout).join()

    def __enter__(self) -> WSGIServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _release(self, transceiver: Transceiver) -> None:
        """Wait for the last answer, then let go of everything; in a greenlet of its own."""
        if not self._listener.owned:
            transceiver.handshake_events = self._handshake_events
        for upgrade in list(self.upgrades):
            upgrade.go_away(self.goodbye_code)
        try:
            if self._listener.owned:
                if not self._listener.goes_with_us:
                    self._leave_the_rest(transceiver)
                self.join()
                self._say_goodbye(transceiver)
                transceiver.detach(self)
                transceiver.stop(0)
            else:
                gevent.kill(self._intake)
                self.join()
                transceiver.detach(self)
        finally:
            if self._feeder is not None:
                self._feeder.kill()
            self._runners.end_parked()
            self._intake = self._closer = self._feeder = self._transceiver = None
            self._closing = self._accepting = False
            self._leave_by = math.inf
            self._listener.close()
            self._bound = None

    def _leave_the_rest(self, transceiver: Transceiver) -> None:
        """Leave what was not pulled yet to the next process that serves.

        What runs may depend on what is still to come: peers answer close frames, browsers take what they were sent and
        send what was granted. That is waited for, for a while, in which new requests are served.
        """
        connections = list(transceiver.connections.values())
        begun = time.monotonic()
        flow_control = any(connection.flow_control for connection in connections)
        self._answer_the_old(flow_control)
        deadline = max(begun + _QUIET_SECONDS, min(time.monotonic() + _QUIET_SECONDS, self._leave_by))
        while time.monotonic() < deadline and (
            self.upgrades
            or (flow_control and self._lines)
            or any(connection.unconfirmed for connection in connections)
            or any(one.streams for line in self._lines.values() for one in line if not one.disconnected.is_set())
        ):
            gevent.sleep(_POLL_SECONDS)
        for connection in connections:
            connection.stop_intake(transceiver.linger)
        while transceiver.pending:  # what was taken in is still for us
            gevent.sleep(_POLL_SECONDS)

    def _answer_the_old(self, flow_control: bool) -> None:
        """Wait for the requests that were there at the end, and until their browsers have taken the answers.

        With flow control a large answer waits for notices of what was written, which come the way of requests; else
        only what streams to us does. A browser that takes nothing is not waited for.
        """
        owed = [one for line in self._lines.values() for one in line]
        seen = (0, 0)
        now = since = time.monotonic()
        while owed and now < self._leave_by and now - since < _QUIET_SECONDS:
            gevent.sleep(_POLL_SECONDS)
            now = time.monotonic()
            running = {one for one in owed if (flow_control or one.streams) and one in self._lines.get(one.sid, ())}
            taken = {one: one.connection.confirmed(one.request) for one in owed if one not in running}
            taking = [one for one, count in taken.items() if count is not None]
            state = len(taking), sum(count or 0 for count in taken.values())
            if running or state != seen:
                since, seen = now, state
            owed = [*running, *taking]

    def _say_goodbye(self, transceiver: Transceiver) -> None:
        """End the WebSockets, and see that the front end wrote what it was given, as far as it tells."""
        connections = list(transceiver.connections.values())
        for connection in connections:
            connection.sessions.close_all(self.goodbye_code)
        deadline = time.monotonic() + transceiver.linger
        while any(connection.unconfirmed for connection in connections) and time.monotonic() < deadline:
            gevent.sleep(_POLL_SECONDS)

    # -- requests --------------------------------------------------------------------------------------------------

    def _take_events(self, transceiver: Transceiver) -> None:
        for sid, connection, request in transceiver.recv():
            assert sid is not None and connection is not None and request is not None
            try:
                if request.method in _EVENTS:
                    self._take_event(sid, connection, request)
                else:
                    self._take_request(sid, connection, request)
            except GreentxError as error:
                log.warning("%r: %s", request, error)
            except Exception:  # noqa: BLE001 - one request ends, not the server
                self.loop.handle_error((request, self), *sys.exc_info())
        # The Transceiver was stopped, by whoever owns it.
        self.close()

    def _take_event(self, sid: Sid, connection: Connection, request: Request) -> None:
        method = request.method
        if method == "UPLOAD_STREAM":
            line = self._lines.get(sid)
            if line is not None:
                line[-1].feed(request)
        elif method == "DISCONNECT":
            self._lose(sid)
        elif method in _WEBSOCKET_EVENTS:
            self.do_websocket(connection, request)
        else:
            connection.close(request)  # a socket of Mongrel2's own, no HTTP

    def do_websocket(self, connection: Connection, request: Request) -> None:
        """Handle an event of a WebSocket that the Transceiver let in; called in the intake, must not block."""
        if request.method == "WEBSOCKET_CONNECT":
            connection.close(request)

    def _take_request(self, sid: Sid, connection: Connection, request: Request) -> None:
        if request._books is GONE:
            return  # its connection was closed by the answer to the one before
        exchange = Exchange(connection, request, sid)
        if self._store is not None and self._take_upload(self._store, exchange):
            return
        if (self._closing and self._takes_no_more(request)) or len(self._waiting) >= MAX_WAITING:
            self._refuse(exchange)
            return
        line = self._lines.get(sid)
        if line is None:
            self._lines[sid] = [exchange]
            self._begin(exchange)
        else:
            line.append(exchange)

    def _takes_no_more(self, request: Request) -> bool:
        """Whether a server that stops refuses *request*, which came while it waited for the old ones."""
        return self._listener.goes_with_us or request.method == "WEBSOCKET_HANDSHAKE"

    def _take_upload(self, store: UploadStore, exchange: Exchange) -> bool:
        """Where the request announces a stored body, or its end, see to that; return whether that is all for now."""
        line = self._lines.get(exchange.sid)
        if line is not None and line[-1].held:
            # Until the body has come nothing else can come from this connection.
            held = line[-1]
            assert held.upload is not None
            held.connection.release(exchange.request)
            held.held = False
            if not store.is_done(exchange.request, held.upload):
                log.warning("%r: %r is not the end of its upload", held, exchange.request)
                held.upload = None
            if line[0] is held:
                self._begin(held)
            return True
        if self._closing:
            return False
        exchange.upload = store.start_of(exchange.request)
        if exchange.upload is None:
            return False
        exchange.held = True
        self._lines.setdefault(exchange.sid, []).append(exchange)
        return True

    def _begin(self, exchange: Exchange) -> None:
        if exchange.held:
            return
        if self._waiting or not self._accepting or self._spawn is None or (self.pool is not None and self.full()):
            self._waiting.append(exchange)
            self._feed()
        else:
            self._handle_in_greenlet(exchange)

    def _handle_in_greenlet(self, exchange: Exchange) -> None:
        request = exchange.request
        try:
            self.do_handle(exchange, _address_of(request))
        except Exception:  # noqa: BLE001 - of the application's spawn; it must not end the intake
            self.loop.handle_error((request, self), *sys.exc_info())
            self._refuse(exchange)
            self._done(exchange)

    def _refuse(self, exchange: Exchange) -> None:
        """There is no place for this request, nor will there be."""
        try:
            exchange.connection.reply_http(
                exchange.request,
                "Service Unavailable\n",
                503,
                headers={"Content-Type": "text/plain", "Connection": "close"},
            )
            exchange.grant_rest()
        except GreentxError as error:
            log.warning("%r could not be refused: %s", exchange, error)

    def _feed(self) -> None:
        """Handle requests that wait, in a greenlet that waits for places in the pool."""
        if self._waiting and self._accepting and (self._feeder is None or self._feeder.dead):
            self._feeder = gevent.spawn(self._feed_pool)

    def _feed_pool(self) -> None:
        while self._waiting and self._accepting:
            if self.full():
                self.pool.wait_available()
                continue
            exchange = self._waiting.popleft()
            if exchange.disconnected.is_set():
                self._done(exchange)
            elif self._spawn is None:
                self._run(exchange, _address_of(exchange.request))
            else:
                self._handle_in_greenlet(exchange)

    def full(self) -> bool:
        """True when the pool has no place: requests wait."""
        return self.pool is not None and hasattr(self.pool, "full") and self.pool.full()

    def do_handle(self, *args: Any) -> None:
        """Run :meth:`handle` with *args* the way that *spawn* says."""
        args[0].greenlet = self._spawn(self._run, *args)

    def _run(self, exchange: Exchange, address: Any) -> None:
        exchange.greenlet = gevent.getcurrent()
        try:
            self._answer(exchange, address)
        finally:
            self._end(exchange)

    def _answer(self, exchange: Exchange, address: Any) -> None:
        try:
            self._handle(exchange, address)
        finally:
            self.do_close(exchange, address)

    def _spawn_runner(self, _run: Any, exchange: Exchange, address: Any) -> Any:
        return self._runners.spawn(exchange, address, self.pool)

    def handle(self, sock: Any, address: Any) -> None:
        """Make a :attr:`handler_class` and have it answer; called in the request's greenlet.

        Args:
            sock: The :class:`~greentx.wsgi.exchange.Exchange`, in the place of gevent's socket.
            address: ``(host, 0)`` of the browser.
        """
        self.handler_class(sock, address, self).handle()

    def do_close(self, *args: Any) -> None:
        """Called with the arguments of :meth:`handle` after it: a request that got no whole answer is ended."""
        exchange = args[0]
        if not exchange.ended:
            try:
                exchange.close()
            except GreentxError as error:
                log.warning("%r could not be closed: %s", exchange, error)

    def _end(self, exchange: Exchange) -> None:
        """The handler returned: the next request of its connection may begin, once the body of this one has ended."""
        if not exchange.lingers:
            self._done(exchange)
        elif exchange.sid in self._lines:
            exchange.greenlet = gevent.spawn(self._linger, exchange)
        else:  # the server was killed
            self._finish(exchange, exchange.let_go)

    def _linger(self, exchange: Exchange) -> None:
        """Wait for the end of a body that nobody reads; it takes no place in the pool."""
        try:
            self._finish(exchange, exchange.linger)
        finally:
            self._done(exchange)

    def _finish(self, exchange: Exchange, end: Callable[[], None]) -> None:
        try:
            end()
        except GreentxError as error:
            log.warning("%r could not be ended: %s", exchange, error)

    def _done(self, exchange: Exchange) -> None:
        sid = exchange.sid
        if exchange.upload is not None:
            self._delete_upload(exchange)
        line = self._lines.get(sid)
        if line is None or line[0] is not exchange:
            return  # the server was killed meanwhile
        del line[0]
        while line and line[0].request._books is GONE:
            line.pop(0).lose()
        if line:
            self._begin(line[0])
        else:
            del self._lines[sid]
            if self._idle is not None and not self._lines:
                self._idle.set()
                self._idle = None

    def _delete_upload(self, exchange: Exchange) -> None:
        """The body's file is ours to delete, but where its end was not announced: then Mongrel2 does."""
        if exchange.upload is not None and not exchange.held and self._store is not None:
            try:
                self._store.delete(exchange.upload)
            except OSError as error:
                log.warning("%r: its body could not be deleted: %s", exchange, error)

    def _lose(self, sid: Sid) -> None:
        """The client has gone: whoever handles its request finds out, what is behind that is forgotten."""
        line = self._lines.get(sid)
        if line is None:
            return
        while len(line) > 1:
            line.pop().lose()
        first = line[0]
        first.lose()
        if first.greenlet is None and first not in self._waiting:
            self._done(first)

    # -- what the Transceiver asks of its workers ------------------------------------------------------------------

    def join(self) -> None:
        """Block until every request that was taken has been handled."""
        while self._lines:
            if self._idle is None:
                self._idle = Event()
            self._idle.wait()

    def kill(self, timeout: float) -> int:
        """End all handlers but this greenlet within *timeout* seconds; requests that wait get a 503.

        Returns:
            How many there were, running or waiting.
        """
        exchanges = [exchange for line in self._lines.values() for exchange in line]
        self._lines.clear()
        self._waiting.clear()
        current = gevent.getcurrent()
        running = [one.greenlet for one in exchanges if one.greenlet is not None and one.greenlet is not current]
        gevent.killall(running, block=False)
        gevent.joinall(running, timeout=timeout)
        for exchange in exchanges:
            if exchange.greenlet is None and not exchange.ended and not exchange.disconnected.is_set():
                self._refuse(exchange)
            self._finish(exchange, exchange.let_go)  # where its greenlet was killed before it began
            self._delete_upload(exchange)
        if self._idle is not None:
            self._idle.set()
            self._idle = None
        return len(exchanges)

    def __repr__(self) -> str:
        state = "started" if self.started else "stopped"
        return f"<{type(self).__name__} at {id(self):#x} {state} {self._shown_address()} requests={len(self._lines)}>"

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self._shown_address()}>"

    def _shown_address(self) -> str:
        address = self.address
        return f"address={address[0]}:{address[1]}" if isinstance(address, tuple) else f"address={address}"


def _address_of(request: Request) -> tuple[str, int]:
    """Return what handlers are given as the browser's address; Mongrel2 tells no port."""
    raw = request._raw
    host = raw.get(b"REMOTE_ADDR") or raw.get("REMOTE_ADDR")
    address = _addresses.get(host)
    if address is None:
        text = request.header("REMOTE_ADDR")
        address = (text if isinstance(text, str) else "", 0)
        if len(_addresses) >= _MAX_ADDRESSES:
            _addresses.clear()
        _addresses[host] = address
    return address
