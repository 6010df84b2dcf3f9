"""The worker: its process from gunicorn's first call to its end."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import gevent
from gevent.event import Event
from gunicorn.arbiter import Arbiter as GunicornArbiter
from gunicorn.errors import AppImportError
from gunicorn.workers.ggevent import GeventWorker

from ..errors import GreentxError
from ..relay import Node
from ..relay.leaving import LeaveRequest
from ..version import __version__
from ..wsgi import WSGIHandler, WSGIServer
from ..wsgi.listeners import SEND_TIMEOUT
from .arbiter import Arbiter
from .back_off import SETTLED_SECONDS, BackOff, Life
from .plan import Plan, make_plan

__all__ = ["Handler", "Worker"]

_NOTIFY_SECONDS = 1.0

# Behind the first worker that fails the others wait so long for gunicorn to end, which has taken more than ten seconds
# on a busy machine.
_FAIL_SECONDS = 60.0

# How often a worker that does nothing yet looks whether it is told to quit.
_LOOK_SECONDS = 0.05

# Between two new relays. The first one that died is replaced at once.
_CLAIM_SECONDS = 5.0

# So much of graceful_timeout is kept for the end, however long nobody comes in our place.
_LAST_SECONDS = 5.0

# A worker that is made when we are told to leave comes in our place.
_MADE_SECONDS = 5.0

# With these exit codes a worker says to gunicorn that none can start.
_FAILED_TO_START = (GunicornArbiter.WORKER_BOOT_ERROR, GunicornArbiter.APP_LOAD_ERROR)

# In the arbiter, and inherited.
_arbiter: Arbiter | None = None
_back_off = BackOff()


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


class Worker(GeventWorker):
    """A Node of the relay, until gunicorn tells it to quit, or ``max_requests`` were answered."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # In the arbiter, before the worker is there.
        _refuse_connections(self.sockets)
        self._fault = ""
        self._failed = False
        self._number = 0
        self._graceful_timeout = 0.0
        self._life = Life()
        self._pause = 0.0 if self.cfg.reload else _back_off.on_new_worker(self, self._life)
        try:
            # The command `greentx serve` has made one.
            self._plan: Plan = getattr(self.app, "plan", None) or make_plan(self.cfg)
        except ValueError as error:
            self._fault = str(error)
            return
        if not self._plan.relay:
            self._number = _arbiter_for(self._plan, self.cfg).make_worker(self._plan, self.cfg, self.log)

    def init_process(self) -> None:
        """Check what was set, so that gunicorn does not start workers forever; then go on as its own worker does."""
        if _arbiter is not None:
            _arbiter.in_worker()
        # With reuse_port each worker has a socket of its own.
        _refuse_connections(self.sockets)
        self._woken = Event()
        if self._fault:
            self._fail(self._fault)
        self._graceful_timeout = self._plan.seconds_to_end(self.cfg)
        # Signals are handled from there on, while the application is imported.
        super().init_process()

    def load_wsgi(self) -> None:
        """Import the application. Where that fails the first worker says why, and the others just end.

        Not where workers have served before: gunicorn is to try again, as somebody may be about to correct it.
        """
        # By now signals are handled; this one came before, and is told once.
        if _arbiter is not None and _arbiter.told_to_end:
            self._leave()
            self._end_if_told()
        if self._pause:
            self._wait_to_start(self._pause)
        try:
            super().load_wsgi()
        except Exception as error:  # raised again, by whoever is the first
            if _arbiter is not None and _arbiter.folder.has_served():
                # Of what it says itself no traceback is needed.
                traceback = not isinstance(error, AppImportError)
                self.log.error("the new worker cannot import the application: %s", error, exc_info=traceback)
                sys.exit(1)
            self._let_first_fail()
            raise

    def _wait_to_start(self, seconds: float) -> None:
        """Those before it died soon; gunicorn may tell this one to quit meanwhile."""
        self.log.warning(
            "greentx: the last %d workers died before they had served for %g s; the next one starts in %g s. "
            "Look above for why",
            _back_off.early,
            SETTLED_SECONDS,
            seconds,
        )
        self._notify_for(seconds)
        self._end_if_told()

    def _notify_for(self, seconds: float) -> None:
        """Wait, or until gunicorn tells this worker to quit, or has gone."""
        until = time.monotonic() + seconds
        while self.alive and os.getppid() == self.ppid and time.monotonic() < until:
            self.notify()
            time.sleep(_LOOK_SECONDS)
            # It may have been told before signals were handled here.
            if _arbiter is not None and _arbiter.told_to_end:
                self._leave()

    def _fail(self, why: str) -> None:
        self._failed = True
        self._let_first_fail()
        self.log.error("greentx: %s", why)
        # With any other exit code gunicorn would start the next worker, which fails as well, forever.
        sys.exit(GunicornArbiter.WORKER_BOOT_ERROR)

    def _let_first_fail(self) -> None:
        """Return in the first worker that fails; end the others in order, once gunicorn ends for the first one's sake.

        gunicorn 27 does not bear a second one: its code ends gunicorn in the middle of its own end.
        """
        if _arbiter is None or _arbiter.folder.is_first_to_fail():
            return
        self._notify_for(_FAIL_SECONDS)
        self._end_if_told()

    def _end_if_told(self) -> None:
        """End in order before it has served, which does not count as an early death."""
        if not self.alive:
            self._life.settle()
            sys.exit(0)

    def run(self) -> None:
        """Serve, and end in order; gunicorn calls it in the worker's process."""
        try:
            server = self._start()
        except (GreentxError, ValueError) as error:
            self._fail(str(error))
        try:
            self._serve(server)
        except SystemExit as error:
            if error.code not in _FAILED_TO_START or self._failed:
                raise
            # The application's. gunicorn would take it for a worker that cannot start, and end everything.
            self.log.error("the application has ended its worker by sys.exit(%d)", error.code)
            sys.exit(1)

    def _serve(self, server: WSGIServer) -> None:
        settled = time.monotonic() + SETTLED_SECONDS
        try:
            while self.alive:
                if time.monotonic() >= settled:
                    self._life.settle()
                self.notify()
                self._look_for_relay()
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
            self._leave()

    def _leave(self) -> None:
        self.alive = False
        self._woken.set()

    def _start(self) -> WSGIServer:
        """Return a server that serves, or that waits for its relay."""
        plan = self._plan
        self._set_up_logging()
        address = plan.relay
        if not address:
            assert _arbiter is not None
            address = _arbiter.folder.endpoint
        self._node = Node(
            address,
            name=f"worker-{self._number}" if self._number else None,
            capacity=self.worker_connections,
            send_timeout=SEND_TIMEOUT,
            **plan.node,
        )
        server = _Server(
            self,
            self._node,
            self.wsgi,
            spawn=self.worker_connections,
            # The access log is gunicorn's, written by Handler.log_request in its format.
            log=None,
            error_log=self.log.error_log,
            environ={"wsgi.multiprocess": self.cfg.workers > 1 or bool(plan.relay)},
            **plan.server,
        )
        server.start()
        assert self._node.link is not None
        self._leave_request = LeaveRequest(self._node.link)
        gevent.spawn(self._await_relay)
        return server

    def _await_relay(self) -> None:
        with contextlib.suppress(GreentxError):  # it was stopped meanwhile
            self._node.wait_ready()
            if self.alive:
                if _arbiter is not None:
                    _arbiter.folder.note_served()
                self.log.info("greentx %s serves %s", __version__, self._plan.serves)
                if self._node.rep_port is not None:
                    self.log.info("control socket on port %d", self._node.rep_port)

    def _set_up_logging(self) -> None:
        """Have gunicorn's error log get what greentx says, unless the application has set up logging itself."""
        logger = logging.getLogger("greentx")
        if not logger.hasHandlers():
            for handler in self.log.error_log.handlers:
                logger.addHandler(handler)

    def _look_for_relay(self) -> None:
        """Where its process has gone, one of the workers ends, so that the arbiter, which makes the next, starts it."""
        if self._plan.relay:
            return
        assert _arbiter is not None
        folder = _arbiter.folder
        if folder.has_relay():
            return
        if not folder.was_ready():
            # It has said why.
            self._fail("the relay could not be started")
        if folder.claim(_CLAIM_SECONDS):
            self.log.error("greentx: the process of the relay has gone; this worker ends, the next one starts it")
            # What it works on could not be answered.
            self._graceful_timeout = 0.0
            self._leave()

    def _end(self, server: WSGIServer) -> None:
        """Leave when it is our turn, and wait for what runs up to gunicorn's ``graceful_timeout``, then kill it."""
        self._life.settle()
        deadline = time.monotonic() + self._graceful_timeout
        try:
            self._while_notifying(self._await_turn, max(0.0, self._graceful_timeout - _LAST_SECONDS))
            self._while_notifying(server.stop, max(0.0, deadline - time.monotonic()))
        except SystemExit:  # raised again: we are told to quit at once, or the arbiter has gone
            server.stop(0)
            raise

    def _await_turn(self, timeout: float) -> None:
        """Go on to serve until somebody else can."""
        replaced = False
        if not self._plan.relay:
            assert _arbiter is not None
            folder = _arbiter.folder
            # With SIGHUP the new ones are made just before the old ones are told. After SIGTTOU nobody comes, nor
            # before this one has gone where it leaves by itself.
            replaced = folder.newest_number() > self._number and folder.made_lately(_MADE_SECONDS)
        flows = [connection.link.writer.flow for connection in self._node.connections.values()]
        self._leave_request.wait(timeout, replaced=replaced, large=any(flow.waited for flow in flows))

    def _while_notifying(self, call: Callable[..., Any], *args: Any) -> None:
        # In a greenlet: the arbiter must be notified while it waits.
        running = gevent.spawn(call, *args)
        while not running.dead:
            self.notify()
            running.join(_NOTIFY_SECONDS)
        running.get()

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM: end gracefully."""
        super().handle_exit(sig, frame)
        self._leave()

    def handle_quit(self, sig: int, frame: object) -> None:
        """SIGQUIT, SIGINT: end without waiting for what runs."""
        # gunicorn's own way to quit at once exits without a close frame to any WebSocket.
        self._graceful_timeout = 0.0
        super().handle_quit(sig, frame)

    def handle_abort(self, sig: int, frame: object) -> None:
        """SIGABRT: gunicorn has not heard of us for its ``timeout``."""
        # Whatever blocks would be waited for.
        self._graceful_timeout = 0.0
        super().handle_abort(sig, frame)


def _arbiter_for(plan: Plan, cfg: Any) -> Arbiter:
    """Return this process's; made with the first worker."""
    global _arbiter
    if _arbiter is None:
        _arbiter = Arbiter(plan, cfg)
    return _arbiter


def _refuse_connections(sockets: Iterable[Any]) -> None:
    """Have nobody wait at gunicorn's own sockets: the kernel would accept connections that no worker serves."""
    for sock in sockets:
        # Shut down, not closed: the arbiter goes on to use it. It listens no more, in all processes (Linux).
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
