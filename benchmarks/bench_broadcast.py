"""What does a broadcast cost for each recipient, in microseconds of CPU of the handler process?

``python benchmarks/bench_broadcast.py [--traffic varied|same] [--recipients 10000] [--size 100] [--repeat 20]
[--json]``. A stand-in for Mongrel2 in a process of its own subscribes and counts; the WebSockets are entries of the
registry. Each broadcast is another text, of about ``--size`` bytes. It is compared with a plain loop of single sends,
and with the broadcast of the ``websockets`` package to as many connections whose transports discard the bytes. A figure
is the best of the repeats, in user and system time of all threads. It does not show what Mongrel2 and the network do
with it: there a broadcast of greentx is one message for 128 recipients.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import _traffic
import gevent
import zmq
from _common import about

from greentx import Transceiver
from greentx.protocol.websocket.deflate import DeflateConfig, negotiate, offer
from greentx.protocol.websocket.registry import OPEN, Entry

SENDER = "bench"


def server(pipe: Any) -> None:
    """Bind what Mongrel2 binds, and discard what arrives."""
    context = zmq.Context()
    push, sub = context.socket(zmq.PUSH), context.socket(zmq.SUB)
    push.bind("tcp://127.0.0.1:*")
    sub.bind("tcp://127.0.0.1:*")
    sub.subscribe(b"")
    pipe.send((push.get_string(zmq.LAST_ENDPOINT), sub.get_string(zmq.LAST_ENDPOINT)))
    while True:
        sub.recv()


def measure(work: Callable[[], object], settle: Callable[[], object], count: int, repeat: int) -> float:
    """Microseconds of CPU for one of *count* recipients, the best of *repeat* runs of *work*."""
    best = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
        settle()
    return best / count * 1e6


def of_greentx(recipients: int, payloads: Sequence[str], repeat: int) -> dict[str, float]:
    """Broadcast, and a loop of single sends, over a Transceiver."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=server, args=(there,), daemon=True)
    process.start()
    push, sub = here.recv()
    found = {}
    following = itertools.cycle(payloads).__next__
    try:
        with Transceiver(SENDER, push, sub, rep_port=False, ping_timeout=None) as trans:
            trans.wait_ready(10)
            sessions = trans.connections[SENDER].sessions
            sessions.senders[SENDER] = SENDER
            for kind in ("plain", "compressed"):
                entries = []
                for number in range(recipients):
                    entry = Entry((SENDER, str(number + 1)))
                    entry.state = OPEN
                    if kind == "compressed":
                        agreed = negotiate(offer(DeflateConfig()), DeflateConfig(threshold=0))
                        assert agreed is not None
                        entry.deflate = agreed[0]
                    trans.websockets.add(entry)
                    entries.append(entry)

                def loop(entries: list[Entry] = entries) -> None:
                    data = following().encode()
                    for entry in entries:
                        sessions.send([entry], data, 1)

                def settle() -> None:
                    gevent.sleep(0.02)

                def broadcast() -> None:
                    trans.broadcast(following())

                def broadcast_but(sid: tuple[str, str] = entries[0].sid) -> None:
                    trans.broadcast(following(), exclude=[sid])

                found[f"broadcast, {kind}"] = measure(broadcast, settle, recipients, repeat)
                found[f"broadcast but to one, {kind}"] = measure(broadcast_but, settle, recipients, repeat)
                found[f"loop of single sends, {kind}"] = measure(loop, settle, recipients, min(repeat, 5))
                for entry in entries:
                    trans.websockets.remove(entry.sid)
    finally:
        process.terminate()
        process.join()
    return found


def of_websockets(recipients: int, payloads: Sequence[str], repeat: int) -> dict[str, float]:
    """The broadcast of ``websockets``, to server connections that are open."""
    from websockets.asyncio.server import ServerConnection, broadcast
    from websockets.protocol import State
    from websockets.server import ServerProtocol

    class Transport(asyncio.Transport):
        def write(self, data: Any) -> None:
            """Discard the bytes."""

        def is_closing(self) -> bool:
            return False

    class Server:
        """What a connection asks of the server that it belongs to."""

        def start_connection_handler(self, connection: Any) -> None:
            """No handler is needed: nothing is received."""

    async def run() -> float:
        connections = []
        for _ in range(recipients):
            protocol = ServerProtocol()
            protocol.state = State.OPEN
            connection = ServerConnection(protocol, cast("Any", Server()), ping_interval=None)
            connection.transport = Transport()
            connections.append(connection)
        following = itertools.cycle(payloads).__next__
        return measure(lambda: broadcast(connections, following()), lambda: None, recipients, repeat)

    return {"websockets' broadcast, plain": asyncio.run(run())}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--recipients", type=int, default=10000)
    arguments.add_argument("--size", type=int, default=100, help="bytes of a message, on average")
    arguments.add_argument("--repeat", type=int, default=20)
    arguments.add_argument("--json", action="store_true", help="one JSON line instead of the table")
    options = arguments.parse_args()
    logging.disable(logging.CRITICAL)
    payloads = _traffic.texts(options.traffic, options.size)
    results = of_greentx(options.recipients, payloads, options.repeat)
    results.update(of_websockets(options.recipients, payloads, options.repeat))
    if options.json:
        settings = {name: getattr(options, name) for name in ("traffic", "recipients", "size")}
        figures = {"us_per_recipient": {name: round(us, 3) for name, us in results.items()}}
        print(json.dumps({"benchmark": "broadcast", **about("gevent", "pyzmq", "websockets"), **settings, **figures}))
        return
    for name, microseconds in results.items():
        print(f"{name:<50} {microseconds:>8.3f} us a recipient")
    if results["broadcast, plain"] > 1.0:
        print("above the goal of 1 us a recipient", file=sys.stderr)


if __name__ == "__main__":
    main()
