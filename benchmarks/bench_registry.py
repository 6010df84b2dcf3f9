"""What do a million idle WebSockets cost: bytes for each, CPU of a round of pings, how long the hub is blocked?

``python benchmarks/bench_registry.py [--traffic varied|same] [--entries 1000000] [--interval 10] [--json]``. A stand-in
for Mongrel2 in a process of its own subscribes and discards what arrives; no client answers, and between rounds the
entries are marked as answered. Each WebSocket has a path of its own, with ``--traffic same`` all share one. The memory
is what tracemalloc counts, of what the registry itself keeps: no compression state, no handlers' greenlets. The CPU
is that of all threads over one round; the longest block is measured in a second round, by a timer of one millisecond.
It does not show what a million pongs cost: they are messages, see ``bench_throughput``.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
import tracemalloc
from typing import Any

import _traffic
import gevent
import zmq
from _common import about

from greentx import Transceiver
from greentx.handler.pinger import Pinger
from greentx.protocol.websocket.registry import OPEN, Entry, Registry

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


def fill(registry: Registry, count: int, traffic: str) -> None:
    """Add entries as handshakes do: the number is each one's own, the sender is shared."""
    for number in range(1, count + 1):
        entry = Entry((SENDER, str(number)), f"/rooms/{number:08x}" if traffic == "varied" else "/")
        entry.state = OPEN
        registry.add(entry)


def memory(count: int, traffic: str) -> float:
    """Bytes for each entry."""
    tracemalloc.start()
    registry = Registry()
    before = tracemalloc.get_traced_memory()[0]
    fill(registry, count, traffic)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / len(registry)


def ping_round(trans: Transceiver, interval: float, *, watch: bool) -> tuple[float, float]:
    """Seconds of CPU of one round, and with *watch* the longest time in which the hub ran nothing else."""
    registry = trans.websockets
    for batch in registry.batches(SENDER):
        batch.due = None
        for entry in batch:
            entry.awaits_pong = False
    writer = trans.connections[SENDER].link.writer
    due = writer.messages_sent + len(registry.batches(SENDER))
    pinger = Pinger(registry, lambda: trans.connections.values(), interval)
    longest = 0.0
    last = time.perf_counter()

    def seen() -> None:
        nonlocal longest, last
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now

    timer = gevent.get_hub().loop.timer(0.001, 0.001)
    start = time.process_time()
    if watch:
        last = time.perf_counter()
        timer.start(seen)
    pinger.start()
    while writer.messages_sent < due:
        gevent.sleep(interval / 100)
    spent = time.process_time() - start
    timer.stop()
    timer.close()
    pinger.stop()
    return spent, longest


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--entries", type=int, default=1_000_000)
    arguments.add_argument("--interval", type=float, default=10.0, help="seconds over which a round is spread")
    arguments.add_argument("--json", action="store_true", help="one JSON line instead of the table")
    options = arguments.parse_args()
    logging.disable(logging.CRITICAL)
    size = memory(options.entries, options.traffic)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=server, args=(there,), daemon=True)
    process.start()
    push, sub = here.recv()
    try:
        with Transceiver(SENDER, push, sub, rep_port=False, ping_timeout=None) as trans:
            trans.wait_ready(10)
            trans.connections[SENDER].sessions.senders[SENDER] = SENDER
            fill(trans.websockets, options.entries, options.traffic)
            cpu, _ = ping_round(trans, options.interval, watch=False)
            _, longest = ping_round(trans, options.interval, watch=True)
            for sid in trans.websockets:
                trans.websockets.remove(sid)
    finally:
        process.terminate()
        process.join()
    if options.json:
        settings = {name: getattr(options, name) for name in ("traffic", "entries", "interval")}
        figures = {"bytes": round(size), "round_cpu_s": round(cpu, 3), "longest_block_ms": round(longest * 1e3, 2)}
        print(json.dumps({"benchmark": "registry", **about("gevent", "pyzmq"), **settings, **figures}))
        return
    print(f"{size:>10.0f} bytes for an entry")
    print(f"{cpu:>10.2f} s of CPU for a round of pings to {options.entries}, spread over {options.interval:g} s")
    print(f"{longest * 1e3:>10.2f} ms was the longest time in which the hub ran nothing else")
    if size > 600 or cpu > 2.0 or longest > 0.010:
        print("beyond the goals of 600 bytes, 2 s and 10 ms", file=sys.stderr)


if __name__ == "__main__":
    main()
