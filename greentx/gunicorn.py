"""A worker class for gunicorn: ``gunicorn -k greentx.gunicorn.Worker MODULE:APP``.

Requests come from Mongrel2, whose address is a URL ``mongrel2://SENDER@HOST?pull=9999&pub=9998`` in the environment
variable :data:`CONNECT_VARIABLE`; several of them, with spaces in between, are served at once. It can be set by
``--env``, too, and in gunicorn's configuration file::

    worker_class = "greentx.gunicorn.Worker"
    raw_env = ["GREENTX_CONNECT=mongrel2://sender@127.0.0.1?pull=9999&pub=9998"]

gunicorn binds a socket of its own as well; nobody has to connect to it: say ``--bind 127.0.0.1:0``.

With several workers the messages of one WebSocket would scatter over them, since Mongrel2 hands them out in turn: who
asks for a WebSocket gets a 503 then, also while gunicorn runs more workers than it was configured for (SIGTTIN; those
that are open already are not kept together). ``GREENTX_RELAY=1`` says that a relay in front keeps each WebSocket with
one worker.

``GREENTX_MAX_MESSAGE_SIZE`` is the ``max_message_size`` of :class:`~greentx.wsgi.WSGIServer`, in bytes; 0 is no limit.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from datetime import timedelta
from typing import Any

import gevent
from gevent.event import Event
from gunicorn.arbiter import Arbiter
from gunicorn.workers.ggevent import GeventWorker

from .errors import GreentxError
from .version import __version__
from .wsgi import WSGIHandler, WSGIServer
from .wsgi.listeners import MAX_MESSAGE_SIZE, parse_url

__all__ = ["CONNECT_VARIABLE", "RELAY_VARIABLE", "SIZE_VARIABLE", "Handler", "Worker"]

#: Where the URLs are looked for.
CONNECT_VARIABLE = "GREENTX_CONNECT"

#: Set, and not to 0, where a relay hands out the requests.
RELAY_VARIABLE = "GREENTX_RELAY"

#: The largest message of a WebSocket, in bytes.
SIZE_VARIABLE = "GREENTX_MAX_MESSAGE_SIZE"

_SCATTERED = (
    "WebSockets are not served here: several workers share one endpoint, and the messages of one WebSocket would "
    "scatter over them. Run one worker, or put greentx's relay in front of them"
)

_NOTIFY_SECONDS = 1.0

# A file that all workers of an arbiter inherit from it; each one that serves has locked a byte of it. The arbiter knows
# how many there are and does not tell them; a lock goes with its process, however that ends.
_serving = -1
_FLOCK = "hhqqi"  # struct flock of fcntl(2)


def _others_serve() -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = struct.unpack(_FLOCK, fcntl.fcntl(_serving, fcntl.F_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


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
            response = _Response(self._orig_status or "000", headers, self.response_length)
            taken = timedelta(seconds=max(0.0, self.time_finish - self.time_start))
            self.server.log.access(response, list(self.headers.items()), environ, taken)
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

    @property
    def websockets_refused(self) -> str:  # type: ignore[override]  # an attribute there: here it is asked each time
        """Why who asks for a WebSocket gets a 503; ``""`` where nothing speaks against it."""
        return "" if self.worker.is_alone() else _SCATTERED


class Worker(GeventWorker):
    """Serves what Mongrel2 hands out until gunicorn tells it to quit, or ``max_requests`` were answered."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._graceful_timeout = float(self.cfg.graceful_timeout)
        self._urls: list[str] = []
        self._max_message_size: int | None = MAX_MESSAGE_SIZE
        self._behind_relay = False

    @classmethod
    def setup(cls) -> None:
        """Prepare what all workers share; gunicorn calls it in the arbiter, before it starts the first one."""
        global _serving
        if _serving < 0:
            _serving = os.memfd_create("greentx-workers")

    def init_process(self) -> None:
        """Check what was set, so that gunicorn does not start workers for ever; then go on as its own worker does."""
        try:
            self._urls = str(self._setting(CONNECT_VARIABLE)).split()
            if not self._urls:
                raise ValueError(f"{CONNECT_VARIABLE} is not set: mongrel2://SENDER@HOST?pull=9999&pub=9998")
            for url in self._urls:
                parse_url(url)
            size = self._setting(SIZE_VARIABLE)
            if size:
                if not (size.isascii() and size.isdecimal()):
                    raise ValueError(f"{SIZE_VARIABLE} is {size!r}, which is no number of bytes")
                self._max_message_size = int(size) or None
        except ValueError as error:
            self.log.error("greentx: %s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        super().init_process()

    def _setting(self, name: str) -> str:
        return str(self.cfg.env.get(name, os.environ.get(name, "")))

    def run(self) -> None:
        """Connect, serve, and end gracefully; gunicorn calls it in the worker's process."""
        self._woken = Event()
        try:
            server = self._start()
        except GreentxError as error:
            self.log.error("greentx: %s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        try:
            while self.alive:
                self.notify()
                self._woken.wait(_NOTIFY_SECONDS)
        finally:
            self._end(server)

    def count_request(self) -> None:
        """A request was answered."""
        self.nr += 1
        if self.nr == self.max_requests:
            self.log.info("Autorestarting worker after current request.")
            self._leave()

    def is_alone(self) -> bool:
        """True where the messages of a WebSocket cannot get to another worker."""
        return self._behind_relay or (self.cfg.workers == 1 and not _others_serve())

    def _leave(self) -> None:
        self.alive = False
        self._woken.set()

    def _start(self) -> WSGIServer:
        server = _Server(
            self,
            self._urls[0],
            self.wsgi,
            spawn=self.worker_connections,
            log=None,
            error_log=self.log.error_log,
            environ={"wsgi.multiprocess": self.cfg.workers > 1},
            max_message_size=self._max_message_size,
        )
        self._behind_relay = self._setting(RELAY_VARIABLE) not in ("", "0")
        fcntl.lockf(_serving, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.age)
        server.start()
        assert server.transceiver is not None
        for url in self._urls[1:]:
            server.transceiver.add_connection(*parse_url(url))
        self.log.info("greentx %s serves %s", __version__, ", ".join(self._urls))
        return server

    def _end(self, server: WSGIServer) -> None:
        """Take no more, wait for what runs up to gunicorn's ``graceful_timeout``, then kill it."""
        # The one that takes our place need not wait.
        fcntl.lockf(_serving, fcntl.LOCK_UN, 1, self.age)
        ending = gevent.spawn(server.stop, self._graceful_timeout)
        while not ending.dead:
            self.notify()
            ending.join(_NOTIFY_SECONDS)
        ending.get()

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM: end gracefully."""
        super().handle_exit(sig, frame)
        self._leave()

    def handle_quit(self, sig: int, frame: object) -> None:
        """SIGQUIT, SIGINT: end without waiting for what runs."""
        self._graceful_timeout = 0.0
        super().handle_quit(sig, frame)
