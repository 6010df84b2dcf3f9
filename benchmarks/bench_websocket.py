"""What does a WebSocket message cost the serving process, next to gevent-websocket and ``websockets``? And an idle one?

Each server is a process of its own, which echoes text: greentx behind a real mongrel2, in the style of ``recv()`` and
of ``serve()`` (a greenlet for each WebSocket), gevent-websocket, and the asyncio and threading servers of
``websockets``. This process plays the browsers: in lockstep, each sends a message, and when all echoes are there the
next one. It reads the CPU time, user and system, of all threads of the serving process; that of ``mongrel2`` is shown
next to it. The servers take turns, round by round, so that what else the machine does hits all alike. Of each figure,
and of the ratios of the rounds, the median counts.

Then each server is told to hold many idle WebSockets, after one echo each, and the growth of its resident memory is
shown; and a chat, where what one says is told to all, by ``broadcast()`` or a loop of sends.

``python benchmarks/bench_websocket.py [--rows recv,serve,...] [--sizes 20,20000] [--connections 1,100,1000]
[--deflate no|yes|both] [--count 10000] [--rounds 3] [--idle 2000] [--broadcast 1000] [--traffic varied|same]``

With ``varied`` traffic, the default, each message is another one: 16,384 of 20 bytes, 400 of 20 KB, and each browser
opens with a path, query, cookie and headers of its own. A row that fails is said and left out of that part; all else
goes on. It does not show binary messages, clients that do not read, nor TLS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _traffic
from _common import about, child_of, cpu_us, installed, left_out, names_of, numbers_to, ratio_of, ratios
from _websocket_clients import Clients, Failed, Frame, frames, handshakes
from _websocket_servers import SERVERS

PROGRAM = Path(__file__).with_name("_websocket_servers.py")
START_SECONDS = 30.0
STOP_SECONDS = 20.0

#: What each row needs, and what it has not got.
PACKAGES = {"gevent-websocket": "gevent-websocket", "websockets": "websockets", "websockets-sync": "websockets"}
BEHIND_MONGREL2 = {"recv", "serve", "greentx"}
NO_DEFLATE = {"gevent-websocket"}

#: At 100 connections, without compression: row, size, the row that it is measured against, ratio.
GOALS = (
    ("recv", 20, "gevent-websocket", 0.7),
    ("serve", 20, "gevent-websocket", 0.9),
    ("recv", 20000, "websockets", 1.2),
    ("serve", 20000, "websockets", 1.2),
)
GOAL_CONNECTIONS = 100
IDLE_GOALS = {"recv": 0.5, "serve": 8.0}
BROADCAST_GOAL = 1 / 20
BROADCAST_SIZE = 100

Figures = dict[str, float]


def memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Row:
    """One server process.

    Args:
        kind: ``echo`` or ``chat``.
        name: One of ``SERVERS[kind]``.

    Attributes:
        pid: The process that is measured.
        front_end: Its mongrel2, where it has one.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.name = name
        command = [sys.executable, str(PROGRAM), kind, name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        # The line is written at once.
        started, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if started else ""
        if not line:
            self.stop()
            raise Failed(f"{name} did not start within {START_SECONDS:g} s" if not started else f"{name} did not start")
        self.port = int(line)
        self.pid = self._process.pid
        self.front_end = child_of(self.pid) if name in BEHIND_MONGREL2 else None

    def cpu(self) -> tuple[float, float]:
        """Microseconds that the process has used, and its front end."""
        return cpu_us(self.pid), cpu_us(self.front_end) if self.front_end else 0.0

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._process.kill()
        self._process.communicate()


class Echo:
    """The connections to one row.

    Args:
        row: The server.
        opening: How they open.
        connections: How many.
        deflate: Compressed.
        messages: What is sent.
    """

    def __init__(
        self, row: Row, opening: list[list[str]], connections: int, deflate: bool, messages: list[Frame]
    ) -> None:
        self.row = row
        self._connections = connections
        self._clients = Clients(row.port, opening, connections, deflate=deflate)
        self._clients.use(messages)

    def run(self, count: int) -> Figures:
        """Have about *count* messages echoed; return the figures for each."""
        rounds = max(1, count // self._connections)
        own, (cpu, front), started = time.process_time(), self.row.cpu(), time.perf_counter()
        latencies = sorted(self._clients.lockstep(rounds))
        elapsed, (cpu_after, front_after) = time.perf_counter() - started, self.row.cpu()
        done = len(latencies)
        return {
            "cpu_us": (cpu_after - cpu) / done,
            "front_end_us": (front_after - front) / done,
            "p50_us": latencies[done // 2] * 1e6,
            "p99_us": latencies[done * 99 // 100] * 1e6,
            "per_second": done / elapsed,
            "client_us": (time.process_time() - own) / done * 1e6,
        }

    def close(self) -> None:
        self._clients.close()


def middle(rounds: list[Figures]) -> dict[str, Any]:
    """The median of each figure, and the CPU of every round."""
    found: dict[str, Any] = {name: round(statistics.median([one[name] for one in rounds]), 2) for name in rounds[0]}
    return {**found, "rounds_us": [round(one["cpu_us"], 2) for one in rounds]}


@contextlib.contextmanager
def attempt(found: dict[str, Any], name: str) -> Iterator[None]:
    """Have what fails of one row said, and dropped from *found*; all else goes on."""
    try:
        yield
    except (Failed, OSError) as error:  # a connection that broke, or a process that has gone
        left_out(name, error)
        found.pop(name, None)


def echoes(rows: list[Row], size: int, connections: int, deflate: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one combination for all rows; return what each got."""
    messages = frames(options.traffic, size, deflate=deflate)
    # Large ones take as much time with fewer of them.
    count = options.count if size < 5000 else options.count // 10
    found: dict[str, list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        open_ones = []
        for row in rows:
            if deflate and row.name in NO_DEFLATE:
                continue
            with attempt(found, row.name):
                echo = Echo(row, options.opening, connections, deflate, messages)
                stack.callback(echo.close)
                echo.run(max(count // 10, connections))  # what is built once is not counted
                found[row.name] = []
                open_ones.append(echo)
        for _ in range(options.rounds):
            for echo in open_ones:
                if echo.row.name in found:
                    with attempt(found, echo.row.name):
                        found[echo.row.name].append(echo.run(count))
    results = {name: middle(rounds) for name, rounds in found.items()}
    print(f"\n{size} bytes, {connections} connections{', compressed' if deflate else ''}")
    print(f"{'':>18} {'CPU us':>9} {'mongrel2':>9} {'p50 us':>9} {'p99 us':>9} {'a second':>9} {'client':>7}")
    for name, one in results.items():
        print(
            f"{name:>18} {one['cpu_us']:>9.1f} {one['front_end_us']:>9.1f} {one['p50_us']:>9.0f} {one['p99_us']:>9.0f} "
            f"{one['per_second']:>9.0f} {one['client_us']:>7.1f}",
            flush=True,
        )
    return results


def idle(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the memory of one more WebSocket, in KB, of a new process with one row's server and its front end."""
    count = options.idle
    # Never more of them at once: what grows with a burst, as buffers do, is there before it is measured.
    at_once = max(count // 10, 10)
    messages = frames(options.traffic, 20)
    with contextlib.ExitStack() as stack:
        row = Row("echo", name)
        stack.callback(row.stop)

        def some(first: int, number: int, rounds: int) -> None:
            clients = Clients(row.port, options.opening, number, first=first)
            stack.callback(clients.close)
            clients.use(messages)
            clients.lockstep(rounds)

        some(0, at_once, 20)
        time.sleep(0.5)
        before = memory(row.pid), memory(row.front_end) if row.front_end else 0
        for first in range(0, count, at_once):
            some(at_once + first, min(at_once, count - first), 1)
        time.sleep(1.0)
        after = memory(row.pid), memory(row.front_end) if row.front_end else 0
    kb, front = ((now - then) / count / 1024 for now, then in zip(after, before, strict=True))
    print(f"{name:>18} {kb:>9.2f} {front:>9.2f}", flush=True)
    return {"kb": round(kb, 2), "front_end_kb": round(front, 2)}


def all_idle(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure the memory of all rows; return what each needs."""
    print(f"\n{options.idle} idle WebSockets, KB of resident memory for each\n{'':>18} {'server':>9} {'mongrel2':>9}")
    found: dict[str, Any] = {}
    for name in names:
        with attempt(found, name):
            found[name] = idle(name, options)
    return found


def chats(names: list[str]) -> list[str]:
    """Return the chats of rows: both of ours have one and the same, some rows none."""
    wanted = {"greentx" if name in BEHIND_MONGREL2 else name for name in names}
    return [name for name in SERVERS["chat"] if name in wanted]


def tell(row: Row, clients: Clients, messages: list[Frame]) -> Figures:
    """Have each message told to all; return microseconds of CPU for each recipient."""
    cpu, front = row.cpu()
    for frame in messages:
        clients.told(frame)
    cpu_after, front_after = row.cpu()
    done = len(messages) * clients.count
    return {"cpu_us": (cpu_after - cpu) / done, "front_end_us": (front_after - front) / done}


def broadcasts(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure chats; return what each paid for a recipient."""
    rows: list[tuple[Row, Clients]] = []
    found: dict[str, list[Figures]] = {}
    messages = frames(options.traffic, BROADCAST_SIZE)[:50]
    with contextlib.ExitStack() as stack:
        for name in names:
            with attempt(found, name):
                row = Row("chat", name)
                stack.callback(row.stop)
                clients = Clients(row.port, options.opening, options.broadcast)
                stack.callback(clients.close)
                tell(row, clients, messages[:5])
                found[name] = []
                rows.append((row, clients))
        for _ in range(options.rounds):
            for row, clients in rows:
                if row.name in found:
                    with attempt(found, row.name):
                        found[row.name].append(tell(row, clients, messages))
    print(f"\ntold to {options.broadcast}, us of CPU a recipient\n{'':>18} {'server':>9} {'mongrel2':>9}")
    results = {name: middle(figures) for name, figures in found.items()}
    for name, one in results.items():
        print(f"{name:>18} {one['cpu_us']:>9.2f} {one['front_end_us']:>9.2f}", flush=True)
    return results


def judge(results: dict[str, Any], memory_of: dict[str, Any], told: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare with the goals what was measured of them, and say so."""
    goals = []

    def goal(what: str, value: float, most: float, shown: str) -> None:
        goals.append({"what": what, "value": value, "goal": most, "met": value <= most})
        print(f"{'met' if value <= most else 'missed':>7}: {what}: {shown}")

    print("\nGoals")
    for name, size, other, most in GOALS:
        found = results.get(f"{size} bytes, {GOAL_CONNECTIONS} connections", {})
        if name in found and other in found:
            value = ratio_of(ratios(found[name]["rounds_us"], found[other]["rounds_us"]))
            goal(f"{name}, {size} bytes, CPU / {other}", value, most, f"{value} (goal {most})")
    for name, most in IDLE_GOALS.items():
        if name in memory_of:
            value = memory_of[name]["kb"]
            goal(f"{name}, KB of an idle WebSocket", value, most, f"{value} (goal {most})")
    if {"greentx", "gevent-websocket"} <= told.keys():
        value = ratio_of(ratios(told["greentx"]["rounds_us"], told["gevent-websocket"]["rounds_us"]))
        times = f"{1 / max(value, 0.001):.0f} times cheaper (goal {1 / BROADCAST_GOAL:.0f})"
        goal("broadcast, CPU of a recipient / a loop of gevent-websocket", value, BROADCAST_GOAL, times)
    return goals


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all that was asked for; return the figures."""
    names = installed(options.rows, PACKAGES)
    most = max(*options.connections, options.idle + options.idle // 10 + 10, options.broadcast)
    options.opening = handshakes(options.traffic, min(most, _traffic.DISTINCT))
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        rows: dict[str, Row] = {}
        for name in names:
            with attempt(rows, name):
                rows[name] = Row("echo", name)
                stack.callback(rows[name].stop)
        for deflate in {"no": (False,), "yes": (True,), "both": (False, True)}[options.deflate]:
            for size in options.sizes:
                for connections in options.connections:
                    key = f"{size} bytes, {connections} connections{', compressed' if deflate else ''}"
                    results[key] = echoes(list(rows.values()), size, connections, deflate, options)
    memory_of = all_idle(names, options) if options.idle else {}
    told = broadcasts(chats(names), options) if options.broadcast else {}
    goals = judge(results, memory_of, told)
    return {"results": results, "idle": memory_of, "broadcast": told, "goals": goals}


def arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(found)
    found.add_argument(
        "--rows", type=names_of(SERVERS["echo"]), default=list(SERVERS["echo"]), help="which, with commas"
    )
    found.add_argument("--sizes", type=numbers_to(1_000_000), default=[20, 20000], help="bytes of a message (20,20000)")
    found.add_argument("--connections", type=numbers_to(100_000), default=[1, 100, 1000], help="at once (1,100,1000)")
    found.add_argument("--deflate", choices=("no", "yes", "both"), default="both", help="compressed (%(default)s)")
    found.add_argument("--count", type=int, default=10000, help="messages in a round; a tenth of large ones")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--idle", type=int, default=2000, help="idle WebSockets; 0 leaves that out")
    found.add_argument("--broadcast", type=int, default=1000, help="recipients; 0 leaves that out")
    return found.parse_args()


def main() -> None:
    options = arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    figures = measure(options)
    said = {
        "benchmark": "websocket",
        **{name: getattr(options, name) for name in ("count", "rounds", "traffic")},
        "idle_connections": options.idle,
        "recipients": options.broadcast,
        **about("gevent", "pyzmq", "gevent-websocket", "websockets"),
    }
    print(json.dumps({**said, **figures}))


if __name__ == "__main__":
    main()
