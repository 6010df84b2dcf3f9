"""The worker: its process from gunicorn's first call to its end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import gevent
from gevent.event import Event
from gunicorn.arbiter import Arbiter
from gunicorn.workers.ggevent import GeventWorker

from ..errors import GreentxError
from ..handler.transceiver import SHARED_WARNING, Transceiver
from ..protocol.flow import Hearing
from ..version import __version__
from ..wsgi import TrustedProxies, WSGIHandler, WSGIServer
from ..wsgi.listeners import control_options, parse_url
from ..wsgi.standstill import Standstill
from ..wsgi.upgrade import SCATTERED
from .settings import ARGUMENTS, CONNECT_VARIABLE, find_settings, parse_settings
from .siblings import Siblings, Successor

__all__ = ["Handler", "Worker"]

_SHARED = (
    "greentx: %s share one handler entry of Mongrel2: WebSockets need one worker, and answers to pipelined "
    "requests may be out of order or mixed into each other, as Mongrel2 hands messages out in turn"
)

_NOTIFY_SECONDS = 1.0

# How often a worker that ends looks for the one that takes its place, and how much of graceful_timeout it keeps.
_SUCCESSOR_SECONDS = 0.02
_LAST_SECONDS = 5.0

# How long it may take from the fork of a worker until the worker has locked its byte.
_FORK_SECONDS = 1.0

# A new worker that has heard of no credits for so long takes it that there are none.
_UNSURE_SECONDS = 5.0

# Made in the arbiter, and inherited.
_siblings: Siblings | None = None


class _Response:
    """What gunicorn's access log reads."""

    def __init__(self, status: str, headers: list[tuple[str, str]], sent: int) -> None:
        self.status = status
        self.headers = headers
        self.sent = sent


class Handler(WSGIHandler):
    """Writes the access log through gunicorn's logger, in its format, and counts requests for ``max_requests``."""

    server: _Server

    def log_request(self) -> None:
        """Log the request, and have the worker end after its last one."""
        environ = self.environ
        if environ is not None:
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.response_headers or ()]
            status = (self.response_length and self._orig_status) or "000"  # nothing was sent
            response = _Response(status, headers, self.response_length)
            duration = timedelta(seconds=max(0.0, self.time_finish - self.time_start))
            # Not self.headers: to make a message of them would cost more than all the rest here.
            headers_in = list(self.socket.request.headers.client())
            self.server.log.access(response, headers_in, environ, duration)
        self.server.worker.count_request()


class _Server(WSGIServer):
    """A ``WSGIServer`` that knows its worker and keeps gunicorn's logger whole.

    Args:
        worker: The worker.
    """

    handler_class = Handler

    def __init__(self, worker: Worker, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.worker = worker
        self.log = worker.log
        self.websockets_refused = worker.why_no_websockets


class Worker(GeventWorker):
    """Serves what Mongrel2 hands out until gunicorn tells it to quit, or ``max_requests`` were answered."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._graceful_timeout = float(self.cfg.graceful_timeout)
        self._settings: dict[str, Any] = {}
        self._control: dict[str, Any] | None = None
        self._unsure_until = 0.0
        # In the arbiter, before the worker is there.
        _refuse_connections(self.sockets)
        self._number = 0 if _siblings is None else _siblings.next_number()

    @classmethod
    def setup(cls) -> None:
        """Prepare what all workers share; gunicorn calls it in the arbiter, before it starts the first one."""
        global _siblings
        # Before the fork, so that all workers have the same file.
        if _siblings is None:
            before = os.environ.get("GUNICORN_PID", "")
            _siblings = Siblings(int(before) if before.isdecimal() else None)

    def init_process(self) -> None:
        """Check what was set, so that gunicorn does not start workers forever; then go on as its own worker does."""
        # With reuse_port each worker has a socket of its own.
        _refuse_connections(self.sockets)
        if _siblings is not None:
            _siblings.start(self._number)
        try:
            self._settings = self._read_settings()
        except ValueError as error:
            self.log.error("greentx: %s", error)
            # With any other exit code gunicorn would start the next worker, which fails as well, forever.
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        # Signals are handled from there on, while the application is imported.
        self._woken = Event()
        super().init_process()

    def _read_settings(self) -> dict[str, Any]:
        """Return the settings; raises ``ValueError``, which names one, where it is wrong or missing."""
        settings = parse_settings(find_settings(self.cfg))
        if not settings.get("connect"):
            raise ValueError(f"{CONNECT_VARIABLE} is not set: mongrel2://SENDER@HOST?pull=9999&pub=9998")
        for url in settings["connect"]:
            parse_url(url)
        self._control = control_options(
            settings.get("control", ""),
            settings.get("control_allow", ()),
            settings.get("curve_secret", ""),
            settings.get("curve_allow", ()),
        )
        return settings

    def init_signals(self) -> None:
        """As gunicorn's own worker; and stand still for a moment where another worker asks for it."""
        super().init_signals()
        signal.signal(signal.SIGURG, _stand_still)
        signal.siginterrupt(signal.SIGURG, False)

    def run(self) -> None:
        """Connect, serve, and end gracefully; gunicorn calls it in the worker's process."""
        try:
            server = self._start()
        except (GreentxError, ValueError) as error:
            self.log.error("greentx: %s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        try:
            while self.alive:
                self.notify()
                self._listen_to_siblings(server.transceiver)
                # gunicorn kills a worker that does not notify it within its own timeout.
                self._woken.wait(_NOTIFY_SECONDS)
        finally:
            self._end(server)

    def count_request(self) -> None:
        """A request was answered."""
        self.nr += 1
        # Equal, not above: further ones that are answered meanwhile must not say it again.
        if self.nr == self.max_requests:
            self.log.info("Autorestarting worker after current request.")
            gevent.spawn(self._leave_in_turn)

    def why_no_websockets(self) -> str:
        """Return why requests for a WebSocket are refused; ``""`` where they are not, as now."""
        assert _siblings is not None
        # More may run than were configured: where one is replaced, or added by a signal.
        return SCATTERED if not self._behind_relay and (self._shared or _siblings.serve()) else ""

    @property
    def _behind_relay(self) -> bool:
        return bool(self._settings.get("relay"))

    @property
    def _shared(self) -> bool:
        """Others serve the same handler entry by configuration: workers of this gunicorn, or other programs."""
        return not self._behind_relay and (self.cfg.workers > 1 or bool(self._settings.get("shared")))

    def _leave_in_turn(self) -> None:
        """Leave where others go on to pull: what is answered last depends on notices that somebody pulls."""
        assert _siblings is not None
        until = time.monotonic() + self._graceful_timeout
        in_turn = self.cfg.workers > 1 and not self._behind_relay
        while self.alive and in_turn and not _siblings.may_leave() and time.monotonic() < until:
            gevent.sleep(_SUCCESSOR_SECONDS)
        self._leave()

    def _leave(self) -> None:
        self.alive = False
        self._woken.set()

    def _start(self) -> WSGIServer:
        """Return a server that serves, or that waits for Mongrel2."""
        assert _siblings is not None
        server = self._make_server()
        self._set_up_logging()
        _siblings.join(self._number)
        self._unsure_until = time.monotonic() + _UNSURE_SECONDS
        # Locked before the first request: a WebSocket may be the first.
        server.start()
        transceiver = server.transceiver
        assert transceiver is not None
        for url in self._settings["connect"][1:]:
            parse_url(url).add_to(transceiver)
        self._listen_to_siblings(transceiver)
        gevent.spawn(self._await_requests, transceiver)
        self._log_start(transceiver)
        return server

    def _make_server(self) -> _Server:
        arguments = {name: self._settings[name] for name in ARGUMENTS if name in self._settings}
        return _Server(
            self,
            self._settings["connect"][0],
            self.wsgi,
            spawn=self.worker_connections,
            # The access log is gunicorn's, written by Handler.log_request in its format.
            log=None,
            error_log=self.log.error_log,
            environ={"wsgi.multiprocess": self.cfg.workers > 1 or self._shared},
            control=self._control,
            trusted_proxies=TrustedProxies(self.cfg.forwarded_allow_ips, self.cfg.secure_scheme_headers),
            shared=self._shared,
            **arguments,
        )

    def _await_requests(self, transceiver: Transceiver) -> None:
        assert _siblings is not None
        with contextlib.suppress(GreentxError):  # it was stopped meanwhile
            transceiver.wait_ready()
            if self.alive:
                _siblings.ready(self._number)

    def _log_start(self, transceiver: Transceiver) -> None:
        # By the first worker, for all.
        if self._shared and self.age == 1:
            others = self._settings.get("shared")
            self.log.warning(_SHARED, "gunicorn and other programs" if others else f"{self.cfg.workers} workers")
        self.log.info("greentx %s serves %s", __version__, ", ".join(self._settings["connect"]))
        if transceiver.rep_port is not None:
            self.log.info("control socket on port %d", transceiver.rep_port)

    def _set_up_logging(self) -> None:
        """Have gunicorn's error log get what greentx says, unless the application has set up logging itself."""
        logger = logging.getLogger("greentx")
        if not logger.hasHandlers():
            for handler in self.log.error_log.handlers:
                logger.addHandler(handler)
        # Said by the first worker, in gunicorn's words.
        logging.getLogger("greentx.transceiver").addFilter(lambda record: record.msg is not SHARED_WARNING)

    def _listen_to_siblings(self, transceiver: Transceiver | None) -> None:
        """Where there is to be one worker there are two for a while, as when one is replaced: then notices scatter."""
        assert _siblings is not None
        if transceiver is None or self._shared or self._behind_relay:
            return
        alone = not _siblings.pull()
        for connection in transceiver.connections.values():
            writer = connection.link.writer
            if alone and not writer.flow.control.announced and time.monotonic() < self._unsure_until:
                # Connections that the worker before us has served do not say again that there are credits.
                writer.flow.control.hear(Hearing.SOME)
            else:
                writer.hear(Hearing.ALL if alone else Hearing.SOME)

    def _end(self, server: WSGIServer) -> None:
        """Accept no more, wait for what runs up to gunicorn's ``graceful_timeout``, then kill it."""
        assert _siblings is not None
        # The one that takes our place need not wait.
        _siblings.leave(self._number)
        deadline = time.monotonic() + self._graceful_timeout
        self._await_successor(deadline - _LAST_SECONDS)
        if server.transceiver is not None and not self._behind_relay:
            # In the place of the server's own, which knows nobody else.
            others = _siblings.others(self._number, shared=bool(self._settings.get("shared")))
            server.transceiver.shared().extensions.append(Standstill(others))
        # In a greenlet: the arbiter must be notified while it waits.
        ending = gevent.spawn(server.stop, max(0.0, deadline - time.monotonic()))
        while not ending.dead:
            self.notify()
            self._listen_to_siblings(server.transceiver)
            ending.join(_NOTIFY_SECONDS)
        ending.get()

    def _await_successor(self, until: float) -> None:
        """Wait for the worker that takes our place, if one starts. Nobody would pull before; what comes is served."""
        assert _siblings is not None
        until_forked = min(until, time.monotonic() + _FORK_SECONDS)
        while (successor := _siblings.successor()) is not Successor.NONE:
            if time.monotonic() >= (until if successor is Successor.STARTS else until_forked):
                return
            self.notify()
            gevent.sleep(_SUCCESSOR_SECONDS)

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM: end gracefully."""
        super().handle_exit(sig, frame)
        self._leave()

    def handle_quit(self, sig: int, frame: object) -> None:
        """SIGQUIT, SIGINT: end without waiting for what runs."""
        # gunicorn's own way to quit at once exits without a close frame to any WebSocket.
        self._graceful_timeout = 0.0
        super().handle_quit(sig, frame)


def _stand_still(sig: int, frame: object) -> None:
    if _siblings is not None:
        _siblings.pausing.stand_still()


def _refuse_connections(sockets: Iterable[Any]) -> None:
    """Have nobody wait at gunicorn's own sockets: the kernel would accept connections that no worker serves."""
    for sock in sockets:
        # Shut down, not closed: the arbiter goes on to use it. It listens no more, in all processes (Linux).
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
