"""The server: gevent's interface, and what it is made of and how it begins and ends.

What comes in is read by :mod:`greentx.wsgi.intake`, each request is begun by :mod:`greentx.handler.schedule` and
answered by :mod:`greentx.wsgi.handler`; what a server has begun when it ends is seen to by :mod:`greentx.wsgi.drain`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from gevent.pool import Pool
from gevent.pywsgi import WSGISecureEnviron

from ..errors import GreentxError
from ..handler.pinger import PING_SECONDS
from ..protocol.bounds import MAX_PENDING_BYTES, MAX_QUEUE_BYTES
from ..protocol.kinds import Kind
from ..protocol.proxies import TrustedProxies
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.origins import Allowed
from ..version import __version__
from .accesslog import make_log
from .drain import Drain
from .exchange import Exchange
from .groups import broadcasting
from .handler import WSGIHandler
from .hooks import check_handler_class
from .intake import Intake
from .listeners import MAX_MESSAGE_SIZE, BoundAddress, Listener, Listens, Options, make_listener
from .response import FileWrapper

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..handler.transceiver import Transceiver
    from ..protocol.request import Request
    from ..protocol.websocket.registry import Sid
    from .offered import Client
    from .upgrade import Upgrade

__all__ = ["WSGIServer"]

log = logging.getLogger("greentx.wsgi")


class WSGIServer:
    """Serves a WSGI application behind Mongrel2, in the place of ``gevent.pywsgi.WSGIServer``.

    Each request is handled in a greenlet; those of one browser connection one after the other, in order.

    Args:
        listener: An address to listen on, as gevent accepts it; or ``(sender, pull_addr, pub_addr)``, a URL
            ``mongrel2://sender@host?pull=9999&pub=9998`` or a ``Transceiver``: see :mod:`greentx.wsgi.listeners`.
        application: The WSGI application; may be replaced while the server runs.
        backlog: Accepted for gevent's sake; the queue of new connections is the front end's.
        spawn: How handlers run: ``'default'`` in greenlets without a limit; a ``Pool``, or a number for a new one: more
            requests than that wait; a callable such as ``gevent.spawn_raw``; ``None``: one after the other.
        log: Where the access log goes: ``'default'`` is stderr, ``None`` nowhere; an object with ``write()``; or a
            logger, at INFO.
        error_log: The same for errors, and for ``wsgi.errors``; a logger at ERROR.
        handler_class: In the place of :class:`~greentx.wsgi.WSGIHandler`, and derived from it; or a callable.
        environ: Added to every request's environ. ``SCRIPT_NAME`` is the path that the application is mounted at.
        upload_store: As for a :class:`~greentx.Transceiver`. Stored bodies are deleted with the end of their request.
        mongrel2_settings: Of our own front end, by name, over :data:`greentx.wsgi.listeners.SETTINGS`.
        front_end: Which one our own is: ``"mongrel2"``, ``"edge"`` (the embedded one), or ``"auto"``, the default: the
            first where it is installed.
        max_message_size: Bytes of a WebSocket message; larger ones end their connection (1009), ``None`` sets no limit.
            The default, 16 MiB, is more than a Transceiver's own, because gevent's WebSockets know none: but a message
            is held in memory whole, here and in Mongrel2. A ``Transceiver`` as the listener has a limit of its own, and
            so it has of the next three.
        max_queue_bytes, max_pending_bytes: How many bytes may wait for one connection, and for all; as for a
            :class:`~greentx.Transceiver`. A WebSocket beyond them is ended (1013), and a WARNING names which it was.
        ping_timeout: Seconds between two pings of a WebSocket; as for a ``Transceiver``. Our own front end has it at
            most half of its ``limits.min_ping``.
        control: Opens the control socket: a dict of a Transceiver's options for it, ``rep_port``, ``rep_ip``,
            ``control_allow``, ``curve_secret``, ``curve_allow``, ``max_connections``, ``allow_connections``. Whoever it
            answers may add servers. ``None``, the default, has none; a ``Transceiver`` as the listener has its own.
        origins: Which pages may open a WebSocket, ``"same"`` or a list, as for a :class:`~greentx.Transceiver`; others
            get 403, and the application is not asked. ``None`` lets in any page of the web.
        trusted_proxies: Whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` say who the client is, in ``REMOTE_ADDR``
            and ``wsgi.url_scheme``: addresses and networks, ``"*"`` for any, or a
            :class:`~greentx.wsgi.TrustedProxies` with other scheme headers. ``None``, the default, believes nobody.
        shared: Several processes serve the same handler entry of a Mongrel2 that is not ours, as for a
            :class:`~greentx.Transceiver`. Requests for a WebSocket get a 503, as its messages would scatter.
        ssl_args: ``certfile`` and ``keyfile`` (PEM), where the front end is our own.

    Raises:
        ValueError: The listener is malformed; a TLS option that the front end does not have.
        TypeError: The listener is nothing that could be listened on.
        FrontEndNotFound: A front end of our own is to be there, and neither is installed.

    Attributes:
        address: ``(host, port)``, with the real port once started; for a Mongrel2 that is not ours a text.
        family, backlog, loop, min_delay, max_delay, delay, max_accept: As gevent has them.
        pool: The ``Pool`` that handlers run in, or ``None``.
        environ, base_env, environ_class: What each request's environ is made of.
        stop_timeout: Seconds that :meth:`stop` waits where it is not told.
        clients: A :class:`~greentx.wsgi.offered.Client` for each ``environ['wsgi.websocket']`` in use, by
            ``(sender, conn_id)``.
        upgrades: The :class:`~greentx.wsgi.upgrade.Upgrade` of each WebSocket in use.
        websockets_refused: Called for each request for a WebSocket; where it returns a text, that is answered with a
            503. ``None`` lets all in.
        goodbye_code: What WebSockets are closed with when the server ends.
        logger: What WebSockets have as their ``logger``.
        listener: Where requests come from.
        intake: What reads them.
    """

    # More than 25 methods and 15 attributes, because gevent's own surface is that large. Its names: start, stop, close,
    # serve_forever, start_accepting, stop_accepting, init_socket, set_environ, get_environ, update_environ, set_spawn,
    # set_handle, set_listener, set_max_accept, full, handle, do_handle, do_close, started, closed, address, family,
    # server_host, server_port, socket, ssl_enabled, pool, max_accept, min_delay, max_delay, delay, backlog,
    # stop_timeout, loop, log, error_log, application, environ, base_env, environ_class, secure_environ_class,
    # handler_class, _stop_event; and of gevent-websocket: clients, logger, debug, pre_start_hook.

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
    websockets_refused: Callable[[], str] | None = None
    goodbye_code: int = CloseCode.GOING_AWAY
    logger: Any = logging.getLogger("greentx.wsgi")
    backlog = 128
    pool: Any = None

    def __init__(
        self,
        listener: Listens,
        application: WSGIApplication | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        log: Any = "default",
        error_log: Any = "default",
        handler_class: Any = None,
        environ: dict[str, Any] | None = None,
        *,
        upload_store: str | None = None,
        mongrel2_settings: Mapping[str, int | str] | None = None,
        front_end: str = "auto",
        max_message_size: int | None = MAX_MESSAGE_SIZE,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        ping_timeout: float | None = PING_SECONDS,
        control: Mapping[str, Any] | None = None,
        origins: Allowed = None,
        trusted_proxies: TrustedProxies | str | Iterable[str] | None = None,
        shared: bool = False,
        **ssl_args: Any,
    ) -> None:
        # Its name is gevent's: frameworks set it to end serve_forever().
        self._stop_event = Event()
        self._stop_event.set()
        self._make_listener = partial(
            make_listener,
            ssl_args=ssl_args,
            settings=mongrel2_settings,
            front_end=front_end,
            options=Options(
                max_message_size=max_message_size,
                max_queue_bytes=max_queue_bytes,
                max_pending_bytes=max_pending_bytes,
                ping_timeout=ping_timeout,
                upload_store=upload_store,
                control=control,
                origins=origins,
                shared=shared,
            ),
        )
        # While it is not None, something listens for us.
        self._bound: BoundAddress | None = None
        # From close() on, until all has gone.
        self._drain: Drain | None = None
        if not (trusted_proxies is None or isinstance(trusted_proxies, TrustedProxies)):
            trusted_proxies = TrustedProxies(trusted_proxies)
        self.intake = Intake(self._answer, self.close, trusted_proxies)
        self.clients: dict[Sid, Client] = {}
        self.upgrades: set[Upgrade] = set()
        self.loop = get_hub().loop
        self.delay = self.min_delay
        if backlog is not None:
            if hasattr(listener, "accept"):
                raise TypeError("backlog must be None when a socket instance is passed")
            self.backlog = backlog
        self.set_listener(listener)
        self.set_spawn(spawn)
        if application is not None:
            self.application = application
        if handler_class is not None:
            self.handler_class = handler_class
        check_handler_class(self.handler_class)
        self.set_handle(None)
        self.log = make_log(log)
        self.error_log = make_log(error_log, logging.ERROR)
        self.set_environ(environ)
        self.set_max_accept()
        # gevent checks it, and programs rely on the ValueError.
        if self.max_accept < 1:
            raise ValueError(f"max_accept must be a positive number, not {self.max_accept!r}")

    # -- what it is made of ----------------------------------------------------------------------------------------

    def set_listener(self, listener: Listens) -> None:
        """Use another listener, from the next :meth:`start` on; see the class."""
        self.listener: Listener = self._make_listener(listener)

    def set_spawn(self, spawn: Any) -> None:
        """Run handlers in another way; see the class."""
        self.pool = None
        # None: in a greenlet that the schedule keeps for each connection.
        self._spawn: Callable[..., Any] | None = None
        limit = float("inf")
        if spawn is None:
            limit = 1
        elif isinstance(spawn, int) or (type(spawn) is Pool and spawn.greenlet_class is gevent.Greenlet):
            self.pool = Pool(spawn) if isinstance(spawn, int) else spawn
        elif hasattr(spawn, "spawn"):
            self.pool = spawn
            self._spawn = spawn.spawn
        elif spawn != "default":
            self._spawn = spawn
        self.intake.schedule.jobs.use_pool(self.pool, limit=limit, launch=self._launch)

    def set_handle(self, handle: Any) -> None:
        """Have *handle*, called with an exchange and the browser's address, answer requests; ``None`` keeps it."""
        if handle is not None:
            self.handle = handle  # type: ignore[method-assign]  # as gevent's servers do: people assign it
        # Looked up once: gevent does so, and it saves each request an attribute of the class.
        self._handle = self.handle

    def set_environ(self, environ: dict[str, Any] | None = None) -> None:
        """Make :attr:`environ` anew, out of :attr:`base_env` and *environ* (or what was given before)."""
        # gevent keeps what was given before where it is called without.
        given = environ if environ is not None else getattr(self, "environ", None)
        self.environ: Any = self.environ_class(self.base_env)
        self.environ["wsgi.url_scheme"] = "https" if self.ssl_enabled else "http"
        # What requests do not always say, and Mongrel2 never does.
        self.environ.update({"QUERY_STRING": "", "REMOTE_PORT": "", "wsgi.input_terminated": True})
        if self.listener.multiprocess:
            self.environ["wsgi.multiprocess"] = True
        # Last, so that the application's word counts.
        if given is not None:
            self.environ.update(given)
        # Ours, where they were another server's.
        self.environ["greentx.broadcast"] = broadcasting(self.intake)
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
        # As gevent does it, though connections are accepted by the front end.
        if self.environ.get("wsgi.multiprocess"):
            self.max_accept = 1

    @property
    def address(self) -> Any:
        """Where browsers connect to."""
        return self.listener.address

    @property
    def family(self) -> Any:
        """The address family; ``None`` where the front end is not ours."""
        return self.listener.family

    @property
    def front_end(self) -> str | None:
        """Which front end of our own there is, ``"mongrel2"`` or ``"edge"``; ``None``: it is somebody else's."""
        return self.listener.front_end

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
        return self.listener.ssl_enabled

    @property
    def transceiver(self) -> Transceiver | None:
        """What requests come from while the server runs, else ``None``."""
        return self.intake.transceiver

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
            FrontEndNotFound: What was asked for is not installed; the message says what to install.
        """
        if self._bound is None:
            self.listener.bind()
            self._bound = BoundAddress(self.listener)
        self.update_environ()

    def start(self) -> None:
        """Serve. Returns when requests are answered; with a Mongrel2 that is not ours, when it is being connected to.

        Raises as :meth:`init_socket`; ``ConnectTimeout`` where our own front end does not come up.
        """
        # Stopped a moment ago: its address is not free yet.
        if self._drain is not None:
            self._drain.join()
        if self.transceiver is None:
            try:
                self.init_socket()
                self.intake.start(self.listener.open())
            except BaseException:  # raised again
                # Nothing is left behind by a start that failed.
                self.close()
                raise
        self._stop_event.clear()
        # Where nobody has changed it, by a subclass or an assignment, it need not be called for each request.
        is_ours = self._spawn is None and getattr(self.do_handle, "__func__", None) is WSGIServer.do_handle
        jobs = self.intake.schedule.jobs
        jobs.use_pool(self.pool, limit=jobs.limit, launch=None if is_ours else self._launch)
        self.start_accepting()

    def start_accepting(self) -> None:
        """Handle requests; those that came since :meth:`stop_accepting` first."""
        self.intake.schedule.resume()

    def stop_accepting(self) -> None:
        """Have new requests wait, until :meth:`start_accepting`. Those being handled go on."""
        self.intake.schedule.pause()

    def close(self) -> None:
        """Accept no more requests. What runs goes on; after the last answer the front end ends. Does not block."""
        if self.intake.handed_over(self.close):
            return
        self._stop_event.set()
        transceiver = self.transceiver
        if transceiver is None:
            self.listener.close()
            self._bound = None
        elif self._drain is None:
            if self.listener.owned:
                # First: handshakes that are refused from here on are for other Nodes.
                for connection in transceiver.connections.values():
                    connection.sessions.relayed.leaving = True
            self.intake.close_to(self._refuses, front_end_ends=self.listener.owns_front_end)
            self._drain = Drain(
                self.intake,
                self.upgrades,
                transceiver,
                self.goodbye_code,
                owned=self.listener.owned,
                successor=not self.listener.owns_front_end,
                ended=self._ended,
            )
            self.intake.schedule.resume()  # what has come waits no longer
            self._drain.start()

    def _refuses(self, request: Request) -> bool:
        """Whether a server that closes refuses *request*, which came while it waited for the old ones."""
        # A WebSocket would be closed at once. Where the front end goes on, others serve what they get; we do too.
        return self.listener.owns_front_end or request.method == Kind.WEBSOCKET_HANDSHAKE

    def _ended(self) -> None:
        """The last answer has gone out: let go of everything."""
        self.intake.end()
        self._drain = None
        self.listener.close()
        self._bound = None

    def stop(self, timeout: float | None = None) -> None:
        """:meth:`close`, wait for what runs, kill what is left after *timeout* seconds, wait until all is gone.

        Called by a handler of this server, or in the hub, it does not wait: nothing could end then.

        Args:
            timeout: ``None`` is :attr:`stop_timeout`.
        """
        if self.intake.handed_over(partial(self.stop, timeout)):
            return
        self.close()
        current = gevent.getcurrent()
        # A handler that waited for the end of all handlers would wait for itself.
        if self._drain is None or current is get_hub() or current in self.intake.greenlets():
            return
        self._drain.finish_within(self.stop_timeout if timeout is None else timeout)

    def join(self) -> None:
        """Block until every request that came has been handled, but for what this greenlet handles."""
        if not self.intake.handed_over(self.join):
            self.intake.join()

    def kill(self, timeout: float) -> int:
        """End all handlers but this greenlet within *timeout* seconds; requests that wait get a 503.

        Returns:
            How many there were, running or waiting.
        """
        return self.intake.kill(timeout)

    def serve_forever(self, stop_timeout: float | None = None) -> None:
        """Start, if that was not done, and block until the server is stopped; then :meth:`stop` with *stop_timeout*."""
        if not self.started:
            self.start()
        if self.intake.handed_over(partial(self.serve_forever, stop_timeout)):
            return
        try:
            self._stop_event.wait()
        finally:
            # In a greenlet of its own, as gevent does: this one may be dying of a KeyboardInterrupt.
            gevent.spawn(self.stop, timeout=stop_timeout).join()

    def __enter__(self) -> WSGIServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    # -- requests --------------------------------------------------------------------------------------------------

    def full(self) -> bool:
        """True when the pool has no place: requests wait."""
        return self.pool is not None and hasattr(self.pool, "full") and self.pool.full()

    def do_handle(self, *args: Any) -> None:
        """Run :meth:`handle` with *args* the way that *spawn* says."""
        exchange, exchange.address = args
        jobs = self.intake.schedule.jobs
        if self._spawn is None:
            jobs.spawn(exchange)
        else:
            jobs.spawn_by(self._spawn, exchange)

    def _launch(self, exchange: Exchange) -> None:
        self.do_handle(exchange, exchange.address)

    def _answer(self, exchange: Exchange) -> None:
        try:
            self._handle(exchange, exchange.address)
        finally:
            # Whatever happened: a request without an answer would keep its connection, and those behind it, waiting.
            self.do_close(exchange, exchange.address)
            if exchange.request.stored is not None:
                exchange.request.stored.delete()

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
        # Only for a handler that neither answered nor failed, such as one that a program made itself.
        if not exchange.ended:
            try:
                exchange.close()
            except GreentxError as error:
                log.warning("%r could not be closed: %s", exchange, error)

    def __repr__(self) -> str:
        state = "started" if self.started else "stopped"
        requests = len(self.intake.schedule.lines)
        return f"<{type(self).__name__} at {id(self):#x} {state} {self._shown()} requests={requests}>"

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self._shown()}>"

    def _shown(self) -> str:
        """The address, and what stands in for :meth:`handle`, as gevent shows them."""
        address, handle = self.address, self.__dict__.get("handle")
        if isinstance(address, tuple):
            address = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        if handle is None:
            return f"address={address}"
        # The method of a server shows the server.
        own = getattr(handle, "__self__", None) is self
        shown = f"<bound method {type(self).__name__}.{handle.__name__} of self>" if own else repr(handle)
        return f"address={address} handle={shown}"
