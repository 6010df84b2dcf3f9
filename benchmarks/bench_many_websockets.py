"""Do 10,000 WebSockets of one Server stay at one handler process, and what memory does each need there?

No Mongrel2: this process plays the browsers, from one ``greentx.Server``; the handler is a process of its own. All are
opened, answer some rounds of the handler's pings, get one broadcast that an HTTP request asks for, and are closed. The
exit status is 1 where one was dropped or a message was missing.

``python benchmarks/bench_many_websockets.py [--traffic varied|same] [--count 10000] [--rounds 3] [--ping-timeout 5]
[--timeout 120]``

Each browser opens with a path, cookie and headers of its own, with ``--traffic same`` all alike and without a cookie.
It does not show what Mongrel2 and the network add, nor clients that send: see ``load_websockets.py`` for these.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import _traffic
import gevent
import gevent.subprocess
from _common import about, end_with_parent
from gevent.pool import Pool

from greentx import GreentxError, Server, Transceiver
from greentx.errors import ConnectionClosed
from greentx.protocol.websocket.frames import Opcode
from greentx.standin.client import WebSocketClient
from greentx.standin.connector import Connector

LOCAL = "127.0.0.1"
(MESSAGE,) = _traffic.texts("varied", 100, 1)
#: That shake hands, or close, at once: what a busy front end has in flight, not a stampede.
AT_ONCE = 200
START_SECONDS = 30.0


class Failed(Exception):
    """The scenario cannot go on; its text says why."""


def run_handler(ping_timeout: float) -> None:
    """Serve until standard input ends; the control socket's port is the only line of output."""
    end_with_parent()
    nowhere = (LOCAL, 1)
    with Transceiver("many", nowhere, nowhere, rep_port=0, rep_ip=LOCAL, ping_timeout=ping_timeout) as trans:

        def answer(conn: Any, req: Any) -> None:
            if req.path == "/broadcast":
                conn.reply_http(req, str(trans.broadcast(MESSAGE)))
            elif not req.is_disconnect():
                conn.reply_http(req, "", 204)

        def talk(ws: Any) -> None:
            for _ in ws:
                pass

        print(trans.rep_port, flush=True)
        trans.serve(answer, websocket=talk)


@contextlib.contextmanager
def handler_process(ping_timeout: float) -> Iterator[tuple[Any, int]]:
    """Start the handler; yield its process and the port of its control socket."""
    command = [sys.executable, __file__, "--handler", "--ping-timeout", str(ping_timeout)]
    process = gevent.subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        with gevent.Timeout(START_SECONDS, Failed(f"the handler did not start within {START_SECONDS:g} s")):
            line = process.stdout.readline()
        if not line:
            raise Failed("the handler did not start")
        yield process, int(line)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Scenario:
    """What is done, step by step, and how far it is; :func:`watch` looks on.

    Attributes:
        step: What is being done; ``""`` before the first.
        deadline: When it has to be done.
        open: The WebSockets that should be open.
        seconds: What each step took.
        received: How many have got the broadcast.
        closed: How many were closed by us, by the handler's code.
        per_connection: Bytes of the handler's memory.
    """

    def __init__(self, options: argparse.Namespace, server: Server, pid: int) -> None:
        self.step = ""
        self.deadline = 0.0
        self.open: set[WebSocketClient] = set()
        self.seconds: dict[str, float] = {}
        self.received = 0
        self.closed: Counter[str] = Counter()
        self.per_connection: int | None = None
        self._clients: list[WebSocketClient] = []
        self._options = options
        self._server = server
        self._pid = pid
        self._milliseconds = round(options.timeout * 1000)
        # Path and headers of the handshakes.
        self._browsers: list[tuple[str, dict[str, Any]]] = [("/", {})]

    @property
    def pings(self) -> int:
        """How many were answered."""
        return sum(client.pings for client in self._clients)

    def dropped(self) -> Counter[str]:
        """Return how many ended that should be open, by close code; 1006 without a close frame."""
        ended = [client for client in self.open if client.closed or client.close_code is not None]
        return Counter(str(client.close_code or 1006) for client in ended)

    def progress(self) -> str:
        """Return how far it is."""
        done = f"{self.pings} pings answered, {self.received} messages received, {self.closed.total()} closed"
        return f"{self.step}: {len(self._clients)} opened, {done}"

    def run(self) -> None:
        """Do it all. Raises ``Failed``."""
        if self._options.traffic == "varied":
            found = _traffic.requests(count=min(self._options.count, _traffic.DISTINCT))
            self._browsers = [(one.target, one.handshake_headers()) for one in found]
        with self._server.client("http") as browser:
            self._ask(browser, "/")  # the first request pays for what is made once
            before = memory(self._pid)
            with self._taking("opening"):
                self._side_by_side(self._open)
            self.per_connection = round((memory(self._pid) - before) / self._options.count)
            found = Connector(self._server.handlers[0], self._server, timeout=self._milliseconds).status()["websockets"]
            if found != self._options.count:
                raise Failed(f"the handler has {found} WebSockets, not {self._options.count}")
            # A round may be put off by an interval while the handler has not seen all pongs.
            with self._taking("pinging", 2 * self._options.rounds * self._options.ping_timeout):
                wanted = {client: client.pings + self._options.rounds for client in self._clients}
                while any(client.pings < pings for client, pings in wanted.items()):
                    gevent.sleep(0.1)
            with self._taking("broadcasting"):
                reached = int(self._ask(browser, "/broadcast"))
                if reached != self._options.count:
                    raise Failed(f"the broadcast went to {reached} WebSockets, not to {self._options.count}")
                for client in self._clients:
                    self._receive(client)
            with self._taking("closing"):
                self._side_by_side(self._close)

    @contextlib.contextmanager
    def _taking(self, step: str, more: float = 0.0) -> Iterator[None]:
        self.step = step
        began = time.monotonic()
        self.deadline = began + self._options.timeout + more
        yield
        self.seconds[step] = round(time.monotonic() - began, 2)

    def _side_by_side(self, do: Callable[[int], str]) -> None:
        """Call *do* with the number of each WebSocket; what it returns is why it failed."""
        pool = Pool(AT_ONCE)
        try:
            for number, why in enumerate(pool.imap_unordered(do, range(self._options.count))):
                if why:
                    raise Failed(f"{self.step} failed after {number}: {why}")
        finally:
            pool.kill()

    def _ask(self, browser: Any, path: str) -> bytes:
        browser.send(path, timeout=self._milliseconds)
        response = browser.recv(self._milliseconds)
        if response is None:
            raise Failed(f"the handler did not answer {path} within {self._options.timeout:g} s")
        body: bytes = response.body
        return body

    def _open(self, number: int) -> str:
        client = self._server.client("websocket")
        try:
            path, headers = self._browsers[number % len(self._browsers)]
            client.handshake(path, headers, timeout=self._milliseconds)
        except GreentxError as error:
            return str(error)
        self._clients.append(client)
        self.open.add(client)
        return ""

    def _receive(self, client: WebSocketClient) -> None:
        try:
            frame = client.recv(self._milliseconds)
        except ConnectionClosed as error:
            raise Failed(f"WebSocket {client.conn_id} ended before the broadcast came: {error}") from error
        if frame is None:
            raise Failed(f"the broadcast did not come to WebSocket {client.conn_id}")
        if (frame.opcode, bytes(frame.payload)) != (Opcode.TEXT, MESSAGE.encode()):
            raise Failed(f"WebSocket {client.conn_id} got {frame!r} instead of the broadcast")
        self.received += 1

    def _close(self, number: int) -> str:
        client = self._clients[number]
        if client.closed or client.close_code is not None:
            return f"WebSocket {client.conn_id} had ended with {client.close_code or 1006}"
        self.open.remove(client)
        try:
            if not client.close(timeout=self._milliseconds):
                return f"the handler did not close WebSocket {client.conn_id}"
        except GreentxError as error:
            return str(error)
        self.closed[str(client.close_code or 1006)] += 1
        return ""


def watch(scenario: Scenario, process: Any) -> str:
    """Run the scenario, with a line of progress a second; return why it failed, ``""`` where it did not.

    A run that cannot succeed any more ends: WebSockets were dropped, the handler died, a step lasts too long.
    """

    def run() -> str:
        try:
            scenario.run()
        except (Failed, GreentxError) as error:
            return str(error)
        return ""

    running = gevent.spawn(run)
    due = time.monotonic() + 1
    try:
        while not running.ready():
            running.join(0.1)
            now = time.monotonic()
            dropped = scenario.dropped()
            if dropped:
                return f"{scenario.step}: dropped {by_code(dropped)}"
            if process.poll() is not None:
                return f"{scenario.step}: the handler ended with status {process.returncode}"
            if scenario.step and now > scenario.deadline and not running.ready():
                return f"not done in time: {scenario.progress()}"
            if now >= due:
                due = now + 1
                print(scenario.progress(), file=sys.stderr, flush=True)
        why: str = running.get()
        return why
    finally:
        running.kill()


def by_code(counts: Counter[str]) -> str:
    """Return how many WebSockets ended with which code, in words."""
    return ", ".join(f"{number} with {code}" for code, number in counts.items()) or "none"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run it with a handler and return the figures; ``failed`` says why it was not done to the end."""
    with (
        handler_process(options.ping_timeout) as (process, port),
        Server(ip=LOCAL, push_port=0, sub_port=0, connect=(LOCAL, port)) as server,
    ):
        scenario = Scenario(options, server, process.pid)
        failed = watch(scenario, process)
        dropped = scenario.dropped()
    if not failed:
        print(
            f"{options.count} WebSockets opened in {scenario.seconds['opening']} s, {scenario.pings} pings answered, "
            f"{scenario.received} broadcast messages received, closed {by_code(scenario.closed)}, "
            f"dropped {by_code(dropped)}, {scenario.per_connection} bytes of the handler's memory for each",
            flush=True,
        )
    return {
        "failed": failed,
        "seconds": scenario.seconds,
        "pings": scenario.pings,
        "received": scenario.received,
        "closed": dict(scenario.closed),
        "dropped": dict(dropped),
        "bytes_per_connection": scenario.per_connection,
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--count", type=int, default=10000, help="WebSockets (%(default)s)")
    arguments.add_argument("--rounds", type=int, default=3, help="pings that each answers at least (%(default)s)")
    arguments.add_argument("--ping-timeout", type=float, default=5.0, help="seconds between two pings (%(default)g)")
    arguments.add_argument("--timeout", type=float, default=120.0, help="seconds for each step (%(default)g)")
    arguments.add_argument("--handler", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.count < 1 or options.rounds < 0 or not options.ping_timeout > 0 or not options.timeout > 0:
        arguments.error("--count is at least 1, --rounds at least 0, the others are above 0")
    if options.handler:
        run_handler(options.ping_timeout)
        return 0
    figures = measure(options)
    settings = {name: getattr(options, name) for name in ("traffic", "count", "rounds", "ping_timeout")}
    result = {"benchmark": "many_websockets", **about("gevent", "pyzmq"), **settings, **figures}
    print(json.dumps(result), flush=True)
    if figures["failed"]:
        print(f"failed: {figures['failed']}", file=sys.stderr)
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, GreentxError) as error:
        sys.exit(f"{os.path.basename(__file__)}: {error}")
