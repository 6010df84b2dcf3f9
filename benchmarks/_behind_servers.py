"""The servers that ``bench_behind_mongrel2.py`` compares: what runs in each, and how it is started and ended.

``python _behind_servers.py NAME SENDER SEND_SPEC RECV_SPEC`` runs a handler, behind a front end that is there;
``python _behind_servers.py NAME`` a server that listens on a free port of 127.0.0.1 itself.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import zmq
from _common import ANSWER, BODY, cpu_us, end, port_of, processes
from bench_wsgi import GUNICORN, application
from bench_wsgi import serve_pywsgi as _serve_pywsgi

from greentx import Transceiver
from greentx.edge import EdgeProcess, Handler, Mongrel2
from greentx.edge.front_end import FrontEndProcess
from greentx.edge.process import ChildProcess

SENDER = "bench-behind"
_START_SECONDS = 20.0


# -- what runs in a process of its own ---------------------------------------------------------------------------------


def run_plain(sender: str, push: str, sub: str) -> None:
    """The least that any handler has to do: find out who asked, and send a fixed answer."""
    context = zmq.Context()
    xpub = context.socket(zmq.XPUB)
    xpub.sndhwm = 0  # ZeroMQ learns late what was read: with a limit it would drop replies
    xpub.connect(sub)
    xpub.recv()
    pull = context.socket(zmq.PULL)
    pull.connect(push)
    name = sender.encode()
    while True:
        _, conn_id, path, *_ = pull.recv()[:64].split(b" ", 3)
        if path != b"@*":  # a notice: a client has gone, or has read
            xpub.send(b"%b %d:%b, %b" % (name, len(conn_id), conn_id, ANSWER))


def run_recv_method(sender: str, push: str, sub: str) -> None:
    """A ``recv()`` loop that asks for the method."""
    with Transceiver(sender, push, sub, rep_port=False) as trans:
        for _sid, conn, req in trans.recv():
            if req.method != "DISCONNECT":
                conn.reply_http(req, BODY)


def run_recv_headers(sender: str, push: str, sub: str) -> None:
    """A ``recv()`` loop that asks the headers, as those of ``mongrel2-transceiver`` do."""
    with Transceiver(sender, push, sub, rep_port=False) as trans:
        for _sid, conn, req in trans.recv():
            headers = req.headers
            method = headers.get("METHOD")
            headers.get("QUERY", {})
            if method != "DISCONNECT":
                conn.reply_http(req, BODY)


def run_serve(sender: str, push: str, sub: str) -> None:
    """``serve()``, a greenlet for each request."""

    def answer(conn: Any, req: Any) -> None:
        if req.method != "DISCONNECT":
            conn.reply_http(req, BODY)

    with Transceiver(sender, push, sub, rep_port=False) as trans:
        trans.serve(answer)


def run_wsgi(sender: str, push: str, sub: str) -> None:
    """The WSGI server, with its defaults."""
    from greentx.wsgi import WSGIServer

    WSGIServer((sender, push, sub), application, log=None).serve_forever()


def run_pywsgi(nodelay: bool) -> None:
    """gevent's server."""
    if nodelay:
        _serve_pywsgi()
    else:
        from gevent.pywsgi import WSGIServer

        WSGIServer(("127.0.0.1", 0), application, log=None).serve_forever()


#: Handlers; each has a front end of its own.
HANDLERS: dict[str, Callable[[str, str, str], None]] = {
    "plain": run_plain,
    "recv-method": run_recv_method,
    "recv-headers": run_recv_headers,
    "serve": run_serve,
    "wsgi": run_wsgi,
}
#: Rows that have a mongrel2, and those that have the embedded front end; each with its handler.
BEHIND_MONGREL2 = {name: name for name in HANDLERS}
BEHIND_EDGE = {"edge": "plain", "edge-wsgi": "wsgi"}
BEHIND = {**BEHIND_MONGREL2, **BEHIND_EDGE}
#: Servers that need none, of ours.
ALONE: dict[str, Callable[[], None]] = {
    "pywsgi": functools.partial(run_pywsgi, True),
    "pywsgi-delay": functools.partial(run_pywsgi, False),
}
GRANIAN = ["-m", "granian", "--interface", "wsgi", "--workers", "1", "--port", "0"]
#: Those that are packages of the same name, with their commands; they find ``bench_wsgi`` in their working directory.
PACKAGES = {"gunicorn": GUNICORN, "granian": GRANIAN}
ROWS = (*BEHIND, *ALONE, *PACKAGES)


# -- the side that starts it -------------------------------------------------------------------------------------------


def sleeps(pid: int) -> int:
    """How often the threads of a process have waited for something so far."""
    total = 0
    for path in glob.glob(f"/proc/{pid}/task/*/status"):
        with contextlib.suppress(OSError), open(path) as file:
            total += int(file.read().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


def exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send a request over a connection of its own; return the head and the body of the answer."""
    with socket.create_connection(("127.0.0.1", port), _START_SECONDS) as sock:
        sock.sendall(request)
        data = b""
        while len(data.partition(b"\r\n\r\n")[2]) < len(BODY):
            more = sock.recv(65536)
            if not more:
                break
            data += more
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


class Used(NamedTuple):
    """What a server has used since it was started.

    Attributes:
        cpu_us: Microseconds of CPU of its processes.
        front_us: Microseconds of CPU of the front end.
        sleeps: How often threads of its processes waited.
    """

    cpu_us: float
    front_us: float
    sleeps: int


class Served:
    """One row's server, which runs, and the front end before it where there is one.

    Args:
        row: One of :data:`ROWS`.
        flow_control: Whether that mongrel2 says what clients have read.
        protocol: How it writes headers.

    Attributes:
        row: As given.
        flow_control: As given; ``None`` where there is no front end.
        played: How many requests it was sent.

    Raises:
        RuntimeError: It ended, or did not listen in time; the message has what it said.
    """

    def __init__(self, row: str, flow_control: bool, protocol: str) -> None:
        self.row = row
        self.flow_control = flow_control if row in BEHIND else None
        self.played = 0
        self._said: list[str] = []
        self._front: FrontEndProcess | None = None
        with contextlib.ExitStack() as stack:
            if row in BEHIND:
                settings = {"download.flow_control": 1} if flow_control else None
                kind: type[Mongrel2 | EdgeProcess] = EdgeProcess if row in BEHIND_EDGE else Mongrel2
                front = kind({"/": Handler(SENDER, protocol=protocol)}, settings=settings)
                self._front = stack.enter_context(front)
            folder = os.path.dirname(os.path.abspath(__file__))
            self._process = ChildProcess([sys.executable, *self._options()], cwd=folder, on_line=self._said.append)
            stack.callback(end, self._process)
            self.port = self._front.port if self._front else self._wait_for_port()
            self._opened = stack.pop_all()

    def _options(self) -> list[str]:
        if self.row in PACKAGES:
            return [*PACKAGES[self.row], "bench_wsgi:application"]
        specs: list[str] = []
        if self._front:
            (entry,) = self._front.handlers
            specs = [SENDER, str(entry.send_spec), str(entry.recv_spec)]
        return [os.path.abspath(__file__), BEHIND.get(self.row, self.row), *specs]

    def _wait_for_port(self) -> int:
        try:
            return port_of(self._process, _START_SECONDS)
        except TimeoutError as error:
            raise RuntimeError(f"{self.row} does not listen: {' / '.join(self._said)}") from error

    def check(self, request: bytes) -> None:
        """See that a request gets the right answer. Raises ``RuntimeError``."""
        head, body = exchange(self.port, request)
        if head.split(b" ")[1:2] != [b"200"] or body != BODY.encode():
            raise RuntimeError(f"{self.row} answered {head!r} and {body!r}; it said: {' / '.join(self._said)}")

    def used(self) -> Used:
        """Return what it has used so far."""
        pids = processes(self._process.pid)
        front = cpu_us(self._front.pid) if self._front and self._front.pid else 0.0
        return Used(sum(map(cpu_us, pids)), front, sum(map(sleeps, pids)))

    def close(self) -> None:
        """End both."""
        self._opened.close()


if __name__ == "__main__":
    name, *entry = sys.argv[1:]
    if entry:
        HANDLERS[name](*entry)
    else:
        ALONE[name]()
