"""What does a request cost the handler process, next to a pyzmq loop that parses nothing and sends a fixed answer?

No Mongrel2: this process pushes request messages over loopback TCP and counts the replies, with 1, 64 and 512 of them
in flight; each handler is a process of its own that reports its CPU time, user and system, of all threads. The handlers
take turns, round by round, so that what else the machine does hits all of them alike. Of each round's ratio the median
counts: the best rounds of two handlers may be from different minutes of a shared machine.

``python benchmarks/bench_throughput.py [--count 20000] [--rounds 9] [--protocol json|tnetstring]``

It does not show latency, nor what a busy application, pipelining clients or large bodies add.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time

import zmq

from greentx import Transceiver
from greentx.protocol.replies import parse_reply
from greentx.protocol.requests import build_disconnect_notice, build_request

SENDER = "bench-throughput"
WINDOWS = (1, 64, 512)
#: Browser connections that the requests come from in turn. One alone would be a client that pipelines.
CONNECTIONS = 1000
GOAL = 2.5
HEADERS = {
    "PATH": "/hello/world",
    "x-forwarded-for": "127.0.0.1",
    "accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "accept-encoding": "gzip, deflate, br",
    "accept-language": "en-US,en;q=0.5",
    "cookie": "session=0123456789abcdef0123456789abcdef; theme=dark",
    "host": "www.example.org",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "METHOD": "GET",
    "VERSION": "HTTP/1.1",
    "URI": "/hello/world?name=value",
    "QUERY": "name=value",
    "PATTERN": "/",
    "URL_SCHEME": "http",
    "REMOTE_ADDR": "127.0.0.1",
}
#: In the head of a reply whose one id has ten digits, more than those of our connections.
TO_NOBODY = b" 10:"
#: A request shorter than any other: the handler answers with the microseconds of CPU that it has used so far.
USAGE = "/usage"


def cpu_us() -> bytes:
    """Microseconds of CPU, user and system, of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return b"%d" % round((usage.ru_utime + usage.ru_stime) * 1e6)


def run_floor(push: str, sub: str) -> None:
    """The least that any handler has to do."""
    context = zmq.Context()
    xpub = context.socket(zmq.XPUB)
    xpub.sndhwm = 0  # ZeroMQ learns late what was read: with a limit it would drop replies
    xpub.connect(sub)
    xpub.recv()
    pull = context.socket(zmq.PULL)
    pull.connect(push)
    head = b"%b 1:1, HTTP/1.1 200 OK\r\nContent-Length: " % SENDER.encode()
    answer = head + b"13\r\n\r\nHello, world!"
    while True:
        if len(pull.recv()) < 100:
            usage = cpu_us()
            xpub.send(b"%b%d\r\n\r\n%b" % (head, len(usage), usage))
        else:
            xpub.send(answer)


def run_greentx(push: str, sub: str) -> None:
    """The ``recv()`` loop with a full parse and ``reply_http``."""
    with Transceiver(SENDER, push, sub, rep_port=False) as trans:
        for _sid, conn, req in trans.recv():
            if req.path == USAGE:
                conn.reply_http(req, cpu_us())
            else:
                conn.reply_http(req, "Hello, world!")


HANDLERS = {"floor": run_floor, "greentx": run_greentx}


class Bench:
    """One handler process and the sockets that it is loaded through.

    Args:
        name: One of :data:`HANDLERS`.
        protocol: How the headers are written.
    """

    def __init__(self, name: str, protocol: str) -> None:
        self.name = name
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._sub = self._context.socket(zmq.SUB)
        self._sub.subscribe(b"")
        for socket in (self._push, self._sub):
            socket.linger = 0
            socket.sndtimeo = socket.rcvtimeo = 30000
            socket.rcvhwm = 0
            socket.bind("tcp://127.0.0.1:*")
        endpoints = [socket.get_string(zmq.LAST_ENDPOINT) for socket in (self._push, self._sub)]
        self._requests = [
            build_request(SENDER, number, "/hello/world", HEADERS, protocol=protocol)
            for number in range(1, CONNECTIONS + 1)
        ]
        self._usage = build_request(SENDER, 0, USAGE, {"METHOD": "GET", "VERSION": "HTTP/1.1"}, protocol=protocol)
        assert len(self._usage) < 100 < len(self._requests[0])
        self._process = subprocess.Popen([sys.executable, __file__, "--handler", name, *endpoints])
        deadline = time.monotonic() + 30
        while not self._push.poll(10, zmq.POLLOUT):
            self._sub.poll(10)  # ZeroMQ subscribes when it is asked for messages
            if time.monotonic() > deadline:
                raise TimeoutError(f"the handler {name!r} did not connect to {endpoints[0]}")

    def cpu(self) -> int:
        """Microseconds of CPU that the handler has used."""
        self._push.send(self._usage)
        return int(parse_reply(self._receive()).body.rpartition(b"\r\n\r\n")[2])

    def _receive(self) -> bytes:
        """The next reply; what goes to nobody is answered with a notice, as Mongrel2 does."""
        while TO_NOBODY in (message := self._sub.recv())[:40]:
            self._push.send(build_disconnect_notice(SENDER, parse_reply(message).conn_ids[0]))
        return message

    def run(self, count: int, window: int) -> tuple[float, float]:
        """Have *count* requests answered, *window* at a time; microseconds of CPU and of time for each."""
        push, receive, requests = self._push.send, self._receive, self._requests
        before = self.cpu()
        start = time.perf_counter()
        for number in range(window):
            push(requests[number % CONNECTIONS])
        for number in range(window, count):
            receive()
            push(requests[number % CONNECTIONS])
        for _ in range(window):
            receive()
        elapsed = time.perf_counter() - start
        return (self.cpu() - before) / count, elapsed / count * 1e6

    def close(self) -> None:
        """End the handler and close the sockets."""
        self._process.kill()
        self._process.wait()
        self._context.destroy(0)


def commit() -> str:
    """The commit that was measured, empty outside of a checkout."""
    git = shutil.which("git")
    return subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() if git else ""


def measure(count: int, rounds: int, protocol: str) -> list[dict[str, object]]:
    """Run it all, print a line for each window, and return the results."""
    benches = [Bench(name, protocol) for name in HANDLERS]
    results: list[dict[str, object]] = []
    try:
        for bench in benches:
            bench.run(2000, 64)  # the first requests pay for what is built once
        for window in WINDOWS:
            cpu: dict[str, list[float]] = {name: [] for name in HANDLERS}
            wall: dict[str, list[float]] = {name: [] for name in HANDLERS}
            # One at a time is slow by the clock.
            requests = max(window * 4, count // 4 if window == 1 else count)
            for _ in range(rounds):
                for bench in benches:
                    used, elapsed = bench.run(requests, window)
                    cpu[bench.name].append(used)
                    wall[bench.name].append(elapsed)
            ratios = sorted(ours / floor for ours, floor in zip(cpu["greentx"], cpu["floor"], strict=True))
            ratio = statistics.median(ratios)
            median = {name: statistics.median(figures) for name, figures in cpu.items()}
            results.append(
                {
                    "window": window,
                    "cpu_us": {name: round(figure, 2) for name, figure in median.items()},
                    "rounds_us": {name: [round(figure, 2) for figure in figures] for name, figures in cpu.items()},
                    "ratio": round(ratio, 2),
                    "ratios": [round(one, 2) for one in ratios],
                    "per_second": {name: round(1e6 / min(figures)) for name, figures in wall.items()},
                }
            )
            verdict = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            if ratio > GOAL:
                verdict += f", above the goal of {GOAL}"
            figures = ", ".join(f"{name} {figure:6.2f} us" for name, figure in median.items())
            print(f"{window:4} in flight: {figures}, ratio {ratio:.2f}{verdict}", flush=True)
    finally:
        for bench in benches:
            bench.close()
    return results


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--count", type=int, default=20000, help="requests in a round, a quarter with 1 in flight")
    arguments.add_argument("--rounds", type=int, default=9, help="rounds, of whose ratios the median counts")
    arguments.add_argument("--protocol", choices=("json", "tnetstring"), default="tnetstring")
    arguments.add_argument("--handler", nargs=3, metavar=("NAME", "PUSH", "SUB"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.handler:
        name, push, sub = options.handler
        HANDLERS[name](push, sub)
        return
    results = measure(options.count, options.rounds, options.protocol)
    about = {
        "benchmark": "throughput",
        "commit": commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("gevent", "pyzmq", "tnetstring3")},
        "libzmq": zmq.zmq_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "protocol": options.protocol,
        "count": options.count,
    }
    print(json.dumps({**about, "results": results}))


if __name__ == "__main__":
    main()
