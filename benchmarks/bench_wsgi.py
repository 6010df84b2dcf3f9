"""What does a WSGI hello world cost the serving process, here, under gevent.pywsgi and under gunicorn's gevent worker?

Each server is a process of its own with the same application. This process keeps 64 keep-alive connections to it, each
with one request in flight, and reads the CPU time, user and system, of all threads of the process that runs the
application. That of the front end, ``mongrel2``, is shown next to it: it does what the others do in Python. The servers
take turns, round by round, so that what else the machine does hits all of them alike. Of each figure, and of the ratios
of the rounds, the median counts.

``python benchmarks/bench_wsgi.py [--traffic varied|same] [--count 20000] [--rounds 5] [--connections 64]
[--servers greentx,pywsgi,gunicorn]``

``greentx-pool`` is a further server: ours with ``spawn=1000``.

gevent.pywsgi gets TCP_NODELAY on its connections, without which it waits 40 ms for a delayed ACK at every request of a
keep-alive connection. All answer alike, but for two more headers of gunicorn's. It does not show what an application
costs, nor large bodies, nor more than one process.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import _traffic
from _common import about, child_of, cpu_us, end, end_with_parent, port_of, ratio_of, ratios

#: Of the ratio to gevent.pywsgi, at the most.
GOAL = 0.25


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """The application under all three: with ``Date``, which servers add, its answer is :data:`_common.ANSWER`."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "13")])
    return [b"Hello, world!"]


def serve_greentx(spawn: int | str = "default") -> None:
    from greentx.wsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), application, log=None, spawn=spawn)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()


def serve_greentx_pool() -> None:
    serve_greentx(1000)


def serve_pywsgi() -> None:
    from gevent.pywsgi import WSGIServer

    class Server(WSGIServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().handle(sock, address)

    server = Server(("127.0.0.1", 0), application, log=None)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()


SERVERS = {"greentx": serve_greentx, "greentx-pool": serve_greentx_pool, "pywsgi": serve_pywsgi}
GUNICORN = ["-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", "127.0.0.1:0", "--keep-alive", "600"]


class Bench:
    """One server process and the connections to it.

    Args:
        name: One of :data:`SERVERS`, or ``gunicorn``.
        connections: How many.
        requests: What is sent, in turn.
    """

    def __init__(self, name: str, connections: int, requests: Sequence[bytes]) -> None:
        self.name = name
        self._request = itertools.cycle(requests).__next__
        self.front_end: int | None = None
        if name == "gunicorn":
            folder = os.path.dirname(os.path.abspath(__file__))
            from greentx.edge.process import ChildProcess

            command = [sys.executable, *GUNICORN, "bench_wsgi:application"]
            said: list[str] = []
            # It does not look at its input: only the kernel can end it with us.
            gunicorn = ChildProcess(command, cwd=folder, on_line=said.append)
            self._end = functools.partial(end, gunicorn)
            try:
                port = port_of(gunicorn)
                self.worker = child_of(gunicorn.pid)
            except TimeoutError as error:
                end(gunicorn)
                raise RuntimeError(f"gunicorn did not start: {' / '.join(said)}") from error
        else:
            command = [sys.executable, __file__, "--serve", name]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            port = int(process.stdout.readline())
            self._end = functools.partial(_end_server, process)
            self.worker = process.pid
            if name.startswith("greentx"):
                self.front_end = child_of(self.worker)
        self._sockets = [self._connect(port) for _ in range(connections)]

    def _connect(self, port: int) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def run(self, count: int) -> dict[str, Any]:
        """Have *count* requests answered; microseconds of CPU for each, and what clients saw."""
        cpu, front = cpu_us(self.worker), cpu_us(self.front_end) if self.front_end else 0.0
        started = time.perf_counter()
        latencies = self._exchange(count)
        elapsed = time.perf_counter() - started
        latencies.sort()
        return {
            "cpu_us": (cpu_us(self.worker) - cpu) / count,
            "front_end_us": (cpu_us(self.front_end) - front) / count if self.front_end else None,
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
            "per_second": count / elapsed,
        }

    def _exchange(self, count: int) -> list[float]:
        selector = selectors.DefaultSelector()
        latencies: list[float] = []
        now = time.perf_counter
        sent_at: dict[int, float] = {}
        number = 0
        for sock in self._sockets:
            selector.register(sock, selectors.EVENT_READ)
            sent_at[sock.fileno()] = now()
            sock.sendall(self._request())
            number += 1
        while len(latencies) < count:
            ready = selector.select(30)
            if not ready:
                raise TimeoutError(f"{self.name} did not answer")
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                sock = key.fileobj
                data = sock.recv(65536)
                while not data.endswith(b"Hello, world!"):  # a head may come alone
                    more = sock.recv(65536)
                    if not more:
                        raise ConnectionError(f"{self.name} closed a connection after {data!r}")
                    data += more
                latencies.append(now() - sent_at[key.fd])
                if number < count:
                    sent_at[key.fd] = now()
                    sock.sendall(self._request())
                    number += 1
        selector.close()
        return latencies

    def close(self) -> None:
        """End the server."""
        for sock in self._sockets:
            sock.close()
        self._end()


def _end_server(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate()  # waits for it, and closes the pipes


def measure(
    names: list[str], count: int, rounds: int, connections: int, requests: Sequence[bytes]
) -> dict[str, dict[str, Any]]:
    """Run it all, print a line for each server, and return the median of each figure, and all rounds' CPU."""
    benches: list[Bench] = []
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for name in names:
            benches.append(Bench(name, connections, requests))
            benches[-1].run(min(2000, count))  # the first requests pay for what is built once
        for _ in range(rounds):
            for bench in benches:
                figures[bench.name].append(bench.run(count))
    finally:
        for bench in benches:
            bench.close()
    medians: dict[str, dict[str, Any]] = {}
    for name, runs in figures.items():
        shown = {
            key: None if runs[0][key] is None else round(statistics.median([run[key] for run in runs]), 2)
            for key in runs[0]
        }
        front = f" (mongrel2 {shown['front_end_us']} us)" if shown["front_end_us"] is not None else ""
        print(
            f"{name:>12}: {shown['cpu_us']} us of CPU a request{front}, p50 {shown['p50_ms']} ms, "
            f"p99 {shown['p99_ms']} ms, {shown['per_second']:.0f} a second",
            flush=True,
        )
        medians[name] = {**shown, "rounds_us": [round(run["cpu_us"], 2) for run in runs]}
    return medians


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--count", type=int, default=20000, help="requests in a round")
    arguments.add_argument("--rounds", type=int, default=5, help="rounds of which the best counts")
    arguments.add_argument("--connections", type=int, default=64, help="with one request in flight each")
    arguments.add_argument("--servers", default="greentx,pywsgi,gunicorn", help="which, with commas")
    arguments.add_argument("--serve", choices=sorted(SERVERS), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.serve:
        end_with_parent()
        SERVERS[options.serve]()
        return
    most = min(_traffic.DISTINCT, options.count * options.rounds)
    requests = [one.raw() for one in _traffic.requests(options.traffic, most)]
    results = measure(options.servers.split(","), options.count, options.rounds, options.connections, requests)
    ratio, found = None, []
    if "greentx" in results and "pywsgi" in results:
        found = ratios(results["greentx"]["rounds_us"], results["pywsgi"]["rounds_us"])
        ratio = ratio_of(found)
        print(
            f"ratio to gevent.pywsgi: {ratio} ({found[0]} to {found[-1]})"
            f"{'' if ratio <= GOAL else f', above the goal of {GOAL}'}"
        )
    if options.count < 5000:
        print("warning: too few requests for figures to be trusted", file=sys.stderr)
    result = {
        "benchmark": "wsgi",
        **about("gevent", "pyzmq", "tnetstring3", "msgspec", "gunicorn"),
        "traffic": options.traffic,
        "distinct": len(requests),
        "connections": options.connections,
        "count": options.count,
        "rounds": options.rounds,
        "ratio": ratio,
        "ratios": found,
        "results": results,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
