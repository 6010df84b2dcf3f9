"""What does a relay cost, and what do Nodes bring?

``wrk`` loads three servers in turn, round by round, each behind a real mongrel2 of its own, over keep-alive connections
with one request in flight each: the application in one process; the same application in a Node behind a process that is
nothing but its relay; and, for an application that computes, one Node and two.

The application is a WSGI one, or a handler for ``serve()``, next to which the relay counts for more.

``python benchmarks/bench_relay.py [--traffic varied|same] [--connections 64] [--rounds 5] [--seconds 2] [--compute 2]
[--application wsgi|handler] [--flow-control] [--ipc]``

CPU is user and system time of all threads of the server's processes, without mongrel2, for each request. Each ratio is
the median of those of the rounds. A goal that is missed is said, and is no error; nor is it that wrk is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import _traffic
import gevent
from _behind_servers import exchange
from _common import BODY, about, cpu_us, end, processes
from _wrk import Wrk, find_wrk

from greentx import Transceiver
from greentx.edge import Handler, Mongrel2
from greentx.edge.process import ChildProcess
from greentx.relay import Node, Relay
from greentx.wsgi import WSGIServer

SENDER = "bench-relay"
LOCAL = "127.0.0.1"
#: Seconds of load that each server gets before anything counts.
WARM_UP = 0.5
_START_SECONDS = 20.0

#: What the ratios are to be.
CPU_GOAL, RATE_GOAL = 1.6, 1.7


# -- what runs in processes of their own -------------------------------------------------------------------------------


def compute(milliseconds: float) -> None:
    """Compute for so long."""
    if milliseconds:
        until = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < until:
            pass


def serve(transceiver: Transceiver, application: str, milliseconds: float) -> None:
    """Say that it is ready, and run the application: it computes for so long, and answers."""

    def handler(conn: Any, req: Any) -> None:
        if req.method != "DISCONNECT":
            compute(milliseconds)
            conn.reply_http(req, BODY)

    def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        compute(milliseconds)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(BODY)))])
        return [BODY.encode()]

    print("ready", flush=True)
    if application == "wsgi":
        WSGIServer(transceiver, wsgi, log=None).serve_forever()
    else:
        transceiver.serve(handler)


def run_alone(push: str, sub: str, application: str, milliseconds: str) -> None:
    """The application in one process."""
    with Transceiver(SENDER, push, sub, rep_port=False) as trans:
        serve(trans, application, float(milliseconds))


def run_relay(push: str, sub: str, address: str) -> None:
    """A process that is nothing but a relay."""
    with Transceiver(SENDER, push, sub, rep_port=False) as trans:
        relay = Relay(trans, node_addr=address)
        print(relay.node_endpoint, flush=True)
        relay.serve()


def run_node(endpoint: str, application: str, milliseconds: str) -> None:
    """The application in a Node."""
    with Node(endpoint, rep_port=False, connect_timeout=_START_SECONDS) as node:
        serve(node, application, float(milliseconds))


ROLES: dict[str, Any] = {"alone": run_alone, "relay": run_relay, "node": run_node}


# -- the side that starts them -----------------------------------------------------------------------------------------


class Served:
    """One server that runs, and the mongrel2 in front of it.

    Args:
        name: What it is called in the table.
        nodes: How many; 0 is the application alone.
        milliseconds: How long it computes for each request.
        address: Where the relay binds.
        options: Which application, and what its mongrel2 says.

    Attributes:
        name: As given.
        played: How many requests it was sent.
    """

    def __init__(self, name: str, nodes: int, milliseconds: float, address: str, options: argparse.Namespace) -> None:
        self.name = name
        self.played = 0
        self._processes: list[ChildProcess] = []
        with contextlib.ExitStack() as stack:
            settings = {"download.flow_control": int(options.flow_control)}
            front = stack.enter_context(Mongrel2({"/": Handler(SENDER)}, settings=settings))
            (entry,) = front.handlers
            specs = str(entry.send_spec), str(entry.recv_spec)
            application = options.application, str(milliseconds)
            if nodes:
                endpoint = self._start(stack, "relay", *specs, address)
                for _ in range(nodes):
                    self._start(stack, "node", endpoint, *application)
            else:
                self._start(stack, "alone", *specs, *application)
            self.port = front.port
            self._opened = stack.pop_all()

    def _start(self, stack: contextlib.ExitStack, *arguments: str) -> str:
        said: list[str] = []
        folder = os.path.dirname(os.path.abspath(__file__))
        command = [sys.executable, os.path.abspath(__file__), "--role", *arguments]
        process = ChildProcess(command, cwd=folder, on_line=said.append)
        stack.callback(end, process)
        self._processes.append(process)
        with gevent.Timeout(_START_SECONDS, RuntimeError(f"{arguments[0]} does not start: {said}")):
            while not said:
                gevent.sleep(0.01)
        return said[0]

    def check(self) -> None:
        """See that a request gets the right answer. Raises ``RuntimeError``."""
        head, body = exchange(self.port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        if head.split(b" ")[1:2] != [b"200"] or body != BODY.encode():
            raise RuntimeError(f"{self.name} answered {head!r} and {body!r}")

    def used(self) -> float:
        """Microseconds of CPU that its processes have used."""
        return sum(cpu_us(pid) for process in self._processes for pid in processes(process.pid))

    def close(self) -> None:
        """End all of it."""
        self._opened.close()


def load(server: Served, wrk: Wrk, connections: int, seconds: float) -> dict[str, float]:
    """Load one server; return what it did."""
    before = server.used()
    report = wrk.run(server.port, connections, seconds, server.played)
    count = report["requests"]
    server.played += count
    if not count:
        raise RuntimeError(f"{server.name} answered nothing: {report}")
    errors = sum(report[name] for name in ("connect_errors", "read_errors", "write_errors", "timeouts", "bad_status"))
    return {
        "cpu_us": (server.used() - before) / count,
        "per_second": count / report["elapsed_us"] * 1e6,
        "p50_ms": report["p50_us"] / 1e3,
        "p99_ms": report["p99_us"] / 1e3,
        "errors": errors,
    }


@contextlib.contextmanager
def started(options: argparse.Namespace, milliseconds: float, folder: str, counts: list[int]) -> Iterator[list[Served]]:
    """Start one server for each number of Nodes."""
    with contextlib.ExitStack() as stack:
        servers = []
        for nodes in counts:
            name = f"{nodes} node{'s'[: nodes != 1]}" if nodes else "alone"
            address = f"ipc://{folder}/{nodes}.{milliseconds:g}" if options.ipc else f"tcp://{LOCAL}:*"
            server = Served(name, nodes, milliseconds, address, options)
            stack.callback(server.close)
            server.check()
            servers.append(server)
        yield servers


def measure(options: argparse.Namespace, wrk: Wrk, folder: str, milliseconds: float, counts: list[int]) -> Any:
    """Load the servers in turns; return what each did in each round."""
    results: dict[str, list[dict[str, float]]] = {}
    with started(options, milliseconds, folder, counts) as servers:
        for server in servers:
            load(server, wrk, options.connections, min(WARM_UP, options.seconds))
        for _ in range(options.rounds):
            for server in servers:
                results.setdefault(server.name, []).append(load(server, wrk, options.connections, options.seconds))
    for name, rounds in results.items():
        line = f"{name:<10}{milliseconds:>5g} ms"
        for figure in ("cpu_us", "per_second", "p50_ms", "p99_ms"):
            line += f"{statistics.median(one[figure] for one in rounds):>12.2f}"
        print(f"{line}{sum(one['errors'] for one in rounds):>8}", flush=True)
    return results


def ratio(results: Any, one: str, other: str, figure: str) -> float:
    """Return the median of the rounds' ratios."""
    pairs = zip(results[one], results[other], strict=True)
    return float(statistics.median(first[figure] / second[figure] for first, second in pairs))


def arguments() -> argparse.Namespace:
    """Return the options. Raises ``SystemExit`` for a mistake in them."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(found)
    found.add_argument("--connections", type=int, default=64, help="with one request in flight each")
    found.add_argument("--rounds", type=int, default=5, help="rounds, of whose ratios the median counts")
    found.add_argument("--seconds", type=float, default=2.0, help="how long each server is loaded in a round")
    found.add_argument("--compute", type=float, default=2.0, help="milliseconds that the second application computes")
    found.add_argument("--application", choices=("wsgi", "handler"), default="wsgi", help="which (%(default)s)")
    found.add_argument("--flow-control", action="store_true", help="mongrel2 says what it writes (flow_control)")
    found.add_argument("--ipc", action="store_true", help="Nodes connect over ipc:// and not over TCP")
    options = found.parse_args()
    if options.rounds < 1 or not 0.05 <= options.seconds <= 600 or not 1 <= options.connections <= 1000:
        found.error("--rounds is at least 1, --seconds 0.05 to 600, --connections 1 to 1000")
    return options


def main() -> None:
    if sys.argv[1:2] == ["--role"]:
        ROLES[sys.argv[2]](*sys.argv[3:])
        return
    options = arguments()
    program = find_wrk()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, sys.exit, 128 + number)
    told: dict[str, Any] = {"benchmark": "relay", "traffic": options.traffic, "rounds": options.rounds}
    told |= {"seconds": options.seconds}
    told |= {"connections": options.connections, "ipc": options.ipc, "application": options.application}
    told |= {"flow_control": options.flow_control, **about("gevent", "pyzmq", "msgspec")}
    if program is None:
        print("nothing was measured: wrk is missing (Debian, Ubuntu: apt-get install wrk)", file=sys.stderr)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            wrk = Wrk(program, _traffic.requests(options.traffic), folder)
            print(f"{'':<18}{'CPU us':>12}{'a second':>12}{'p50 ms':>12}{'p99 ms':>12}{'errors':>8}")
            hello = measure(options, wrk, folder, 0.0, [0, 1])
            computed = measure(options, wrk, folder, options.compute, [1, 2])
        cost, gain = ratio(hello, "1 node", "alone", "cpu_us"), ratio(computed, "2 nodes", "1 node", "per_second")
        for what, found, met, goal in (
            ("CPU of relay and node / alone", cost, cost <= CPU_GOAL, f"<= {CPU_GOAL}"),
            ("requests a second of 2 nodes / 1", gain, gain >= RATE_GOAL, f">= {RATE_GOAL}"),
        ):
            print(f"{what:<36}{found:6.2f}  {goal:<8} {'met' if met else 'missed'}")
        told |= {"cpu_ratio": round(cost, 3), "rate_ratio": round(gain, 3), "hello": hello, "computed": computed}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
