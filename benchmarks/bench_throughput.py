"""What does a request cost the handler process, next to a pyzmq loop that parses nothing and sends a fixed answer?

No Mongrel2: this process pushes request messages over loopback TCP and counts the replies, with 1, 64 and 512 of them
in flight; each handler is a process of its own, whose CPU time counts, user and system, of all threads. The handlers
take turns, round by round, so that what else the machine does hits all of them alike. Of each round's ratio to the
plain loop the median counts: the best rounds of two handlers may be from different minutes of a shared machine.

``python benchmarks/bench_throughput.py [--traffic varied|same] [--count 20000] [--rounds 9]
[--protocol json|tnetstring] [--handlers recv-method,recv-headers,serve,wsgi]``

``floor`` is the plain loop; ``recv-method`` a ``recv()`` loop that reads ``req.method`` and ``req.conn_id``;
``recv-headers`` one that reads ``req.headers`` for METHOD and QUERY; ``serve`` a greenlet for each request; ``wsgi`` a
WSGI application. It does not show latency, nor what a busy application or pipelining clients add.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import _traffic
import zmq
from _common import ANSWER, BODY, about, cpu_us, end_with_parent, ratio_of, ratios

from greentx import Transceiver
from greentx.protocol.replies import parse_reply
from greentx.protocol.requests import build_disconnect_notice

SENDER = "bench-throughput"
WINDOWS = (1, 64, 512)
#: Browser connections that the requests come from in turn. One alone would be a client that pipelines.
CONNECTIONS = 1024
#: In the head of a reply whose one id has ten digits, more than those of our connections.
TO_NOBODY = b" 10:"
#: Under valgrind, on a busy machine, Python needs minutes to start.
START_SECONDS = 600.0
PACKAGES = ("gevent", "pyzmq", "tnetstring3", "msgspec")


def run_floor(push: str, sub: str) -> None:
    """The least that any handler has to do."""
    context = zmq.Context()
    xpub = context.socket(zmq.XPUB)
    xpub.sndhwm = 0  # ZeroMQ learns late what was read: with a limit it would drop replies
    xpub.connect(sub)
    xpub.recv()
    pull = context.socket(zmq.PULL)
    pull.connect(push)
    answer = b"%b 1:1, %b" % (SENDER.encode(), ANSWER)
    while True:
        pull.recv()
        xpub.send(answer)


def run_recv_method(push: str, sub: str) -> None:
    """The ``recv()`` loop that asks for what every request has."""
    with Transceiver(SENDER, push, sub, rep_port=False) as trans:
        for _sid, conn, req in trans.recv():
            if req.method and req.conn_id:
                conn.reply_http(req, BODY)


def run_recv_headers(push: str, sub: str) -> None:
    """The ``recv()`` loop as mongrel2-transceiver's README has it: METHOD and QUERY from the headers."""
    with Transceiver(SENDER, push, sub, rep_port=False) as trans:
        for _sid, conn, req in trans.recv():
            headers = req.headers
            if headers["METHOD"] and headers.get("QUERY", {}) is not None:
                conn.reply_http(req, BODY)


def run_serve(push: str, sub: str) -> None:
    """A greenlet for each request."""
    with Transceiver(SENDER, push, sub, rep_port=False) as trans:
        trans.serve(lambda conn, req: conn.reply_http(req, BODY))


def run_wsgi(push: str, sub: str) -> None:
    """A WSGI application, which also has a greenlet for each request."""
    from bench_wsgi import application

    from greentx.wsgi import WSGIServer

    with Transceiver(SENDER, push, sub, rep_port=False) as trans:
        WSGIServer(trans, application, log=None).serve_forever()


HANDLERS = {
    "floor": run_floor,
    "recv-method": run_recv_method,
    "recv-headers": run_recv_headers,
    "serve": run_serve,
    "wsgi": run_wsgi,
}


class Bench:
    """One handler process and the sockets that it is loaded through.

    Args:
        name: One of :data:`HANDLERS`.
        requests: The messages that it gets, in turn, from :data:`CONNECTIONS` connections.
        wrapper: A command that the handler runs under, as ``perf stat``.

    Attributes:
        process: What was started: the handler, or *wrapper*.
    """

    def __init__(self, name: str, requests: Sequence[bytes], wrapper: Sequence[str] = ()) -> None:
        self.name = name
        self._requests = requests
        self._sent = 0
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
        command = [*wrapper, sys.executable, __file__, "--handler", name, *endpoints]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE)
        deadline = time.monotonic() + START_SECONDS
        while not self._push.poll(10, zmq.POLLOUT):
            self._sub.poll(10)  # ZeroMQ subscribes when it is asked for messages
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.close()
                raise RuntimeError(f"the handler {name!r} did not connect to {endpoints[0]}")

    def _receive(self) -> None:
        """Wait for the next reply; what goes to nobody is answered with a notice, as Mongrel2 does."""
        while TO_NOBODY in (message := self._sub.recv())[:40]:
            self._push.send(build_disconnect_notice(SENDER, parse_reply(message).conn_ids[0]))

    def exchange(self, count: int, window: int) -> None:
        """Have *count* requests answered, *window* at a time."""
        push, receive, requests = self._push.send, self._receive, self._requests
        start, length = self._sent, len(requests)
        self._sent += count
        window = min(window, count)
        for number in range(start, start + window):
            push(requests[number % length])
        for number in range(start + window, start + count):
            receive()
            push(requests[number % length])
        for _ in range(window):
            receive()

    def run(self, count: int, window: int) -> tuple[float, float]:
        """Have *count* requests answered, *window* at a time; microseconds of CPU and of time for each."""
        before = cpu_us(self.process.pid)
        start = time.perf_counter()
        self.exchange(count, window)
        elapsed = time.perf_counter() - start
        return (cpu_us(self.process.pid) - before) / count, elapsed / count * 1e6

    def close(self) -> None:
        """End the handler and close the sockets."""
        self.process.kill()
        self.process.communicate()  # waits for it, and closes the pipe
        self._context.destroy(0)


def make_requests(traffic: str, protocol: str, most: int = _traffic.DISTINCT) -> list[bytes]:
    """Return the messages to send round and round: all there are, or somewhat more than *most*."""
    count = min(_traffic.DISTINCT, -(-most // CONNECTIONS) * CONNECTIONS)
    return _traffic.messages(traffic, SENDER, CONNECTIONS, protocol, count)


def measure(names: Sequence[str], requests: Sequence[bytes], count: int, rounds: int) -> list[dict[str, Any]]:
    """Run it all, print a line for each handler and window, and return the results."""
    benches: list[Bench] = []
    results: list[dict[str, Any]] = []
    try:
        for name in names:
            benches.append(Bench(name, requests))
            benches[-1].run(min(2000, count), 64)  # the first requests pay for what is built once
        for window in WINDOWS:
            # One at a time is slow by the clock.
            number = max(window * 4, count // 4 if window == 1 else count)
            runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for _ in range(rounds):
                for bench in benches:
                    runs[bench.name].append(bench.run(number, window))
            results.append({"window": window, "handlers": summary(runs)})
            show(window, results[-1]["handlers"])
    finally:
        for bench in benches:
            bench.close()
    return results


def summary(runs: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """Return the figures of each handler, from its rounds of CPU and time for a request."""
    floor_cpu, floor_time = zip(*runs["floor"], strict=True)
    found = {}
    for name, pairs in runs.items():
        cpu, elapsed = zip(*pairs, strict=True)
        every = ratios(cpu, floor_cpu)
        found[name] = {
            "cpu_us": round(statistics.median(cpu), 2),
            "rounds_us": [round(one, 2) for one in cpu],
            "ratio": ratio_of(every),
            "ratios": every,
            "per_second": round(1e6 / statistics.median(elapsed)),
            "throughput": ratio_of(ratios(floor_time, elapsed)),
        }
    return found


def show(window: int, handlers: dict[str, dict[str, Any]]) -> None:
    """Print a line for each handler."""
    for name, figures in handlers.items():
        text = (
            f"{window:4} in flight: {name:<12} {figures['cpu_us']:7.2f} us of CPU, {figures['per_second']:6} a second"
        )
        if name != "floor":
            least, most = figures["ratios"][0], figures["ratios"][-1]
            text += f"; {figures['ratio']:.2f} times the floor's CPU ({least:.2f} to {most:.2f})"
            text += f", {figures['throughput']:.2f} of its throughput"
        print(text, flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--count", type=int, default=20000, help="requests in a round, a quarter with 1 in flight")
    arguments.add_argument("--rounds", type=int, default=9, help="rounds, of whose ratios the median counts")
    arguments.add_argument("--protocol", choices=("json", "tnetstring"), default="tnetstring")
    arguments.add_argument("--handlers", default=",".join(HANDLERS), help="which, with commas; the floor always is one")
    arguments.add_argument("--handler", nargs=3, metavar=("NAME", "PUSH", "SUB"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.handler:
        name, push, sub = options.handler
        end_with_parent()
        HANDLERS[name](push, sub)
        return
    names = list(dict.fromkeys(["floor", *options.handlers.split(",")]))
    if not set(names) <= HANDLERS.keys():
        arguments.error(f"--handlers are of {', '.join(HANDLERS)}")
    requests = make_requests(options.traffic, options.protocol, options.count * options.rounds)
    results = measure(names, requests, options.count, options.rounds)
    result = {
        "benchmark": "throughput",
        **about(*PACKAGES),
        "libzmq": zmq.zmq_version(),
        "traffic": options.traffic,
        "distinct": len(requests) if options.traffic == "varied" else 1,
        "protocol": options.protocol,
        "count": options.count,
        "results": results,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
