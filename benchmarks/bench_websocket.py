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

With ``varied`` traffic, the default, each message is another one: 16,384 of 20 bytes, 400 of 20 KB. It does not show
binary messages, clients that do not read, nor TLS.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _common import about, child_of, cpu_us
from _websocket_clients import Clients, Failed, Frame, frames
from _websocket_servers import SERVERS

PROGRAM = Path(__file__).with_name("_websocket_servers.py")
START_SECONDS = 30.0

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


def missing(row: str) -> bool:
    """Whether the package of a row is not installed."""
    package = PACKAGES.get(row)
    if package is None:
        return False
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


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
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise Failed(f"{name} did not start")
        self.port = int(line)
        self.pid = self._process.pid
        self.front_end = child_of(self.pid) if name in BEHIND_MONGREL2 else None

    def cpu(self) -> tuple[float, float]:
        """Microseconds that the process has used, and its front end."""
        return cpu_us(self.pid), cpu_us(self.front_end) if self.front_end else 0.0

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.communicate()


class Echo:
    """The connections to one row.

    Args:
        row: The server.
        connections: How many.
        deflate: Compressed.
        messages: What is sent.
    """

    def __init__(self, row: Row, connections: int, deflate: bool, messages: list[Frame]) -> None:
        self.row = row
        self._connections = connections
        self._clients = Clients(row.port, connections, deflate=deflate)
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


def ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The median of the ratios of two rows' rounds."""
    pairs = zip(ours["rounds_us"], theirs["rounds_us"], strict=True)
    found: float = statistics.median([mine / other for mine, other in pairs])
    return round(found, 3)


def echoes(rows: list[Row], size: int, connections: int, deflate: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one combination for all rows; return what each got."""
    messages = frames(size, deflate=deflate, varied=options.traffic == "varied")
    # Large ones take as much time with fewer of them.
    count = options.count if size < 5000 else options.count // 10
    found: dict[str, list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        open_ones = []
        for row in rows:
            if deflate and row.name in NO_DEFLATE:
                continue
            try:
                echo = Echo(row, connections, deflate, messages)
            except Failed as error:
                print(f"{row.name} is left out: {error}", file=sys.stderr)
                continue
            stack.callback(echo.close)
            echo.run(max(count // 10, connections))  # what is built once is not counted
            open_ones.append(echo)
        for _ in range(options.rounds):
            for echo in open_ones:
                found.setdefault(echo.row.name, []).append(echo.run(count))
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


def idle(name: str, count: int) -> dict[str, float]:
    """Return the memory of one more WebSocket, in KB, of a new process with one row's server and its front end."""
    row = Row("echo", name)
    # Never more of them at once: what grows with a burst, as buffers do, is there before it is measured.
    at_once = max(count // 10, 10)
    messages = frames(20)
    with contextlib.ExitStack() as stack:
        stack.callback(row.stop)

        def some(first: int, number: int, rounds: int) -> None:
            clients = Clients(row.port, number, first=first)
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


def all_idle(names: list[str], count: int) -> dict[str, Any]:
    print(f"\n{count} idle WebSockets, KB of resident memory for each\n{'':>18} {'server':>9} {'mongrel2':>9}")
    found = {}
    for name in names:
        try:
            found[name] = idle(name, count)
        except Failed as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def tell(row: Row, clients: Clients, messages: list[Frame]) -> Figures:
    """Have each message told to all; return microseconds of CPU for each recipient."""
    cpu, front = row.cpu()
    for frame in messages:
        clients.told(frame)
    cpu_after, front_after = row.cpu()
    done = len(messages) * clients.count
    return {"cpu_us": (cpu_after - cpu) / done, "front_end_us": (front_after - front) / done}


def broadcasts(names: list[str], recipients: int, rounds: int) -> dict[str, Any]:
    """Measure chats; return what each paid for a recipient."""
    rows: list[tuple[Row, Clients]] = []
    found: dict[str, list[Figures]] = {name: [] for name in names}
    messages = frames(BROADCAST_SIZE)[:50]
    with contextlib.ExitStack() as stack:
        for name in names:
            row = Row("chat", name)
            stack.callback(row.stop)
            clients = Clients(row.port, recipients)
            stack.callback(clients.close)
            tell(row, clients, messages[:5])
            rows.append((row, clients))
        for _ in range(rounds):
            for row, clients in rows:
                found[row.name].append(tell(row, clients, messages))
    print(f"\ntold to {recipients}, us of CPU a recipient\n{'':>18} {'server':>9} {'mongrel2':>9}")
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
            value = ratio(found[name], found[other])
            goal(f"{name}, {size} bytes, CPU / {other}", value, most, f"{value} (goal {most})")
    for name, most in IDLE_GOALS.items():
        if name in memory_of:
            value = memory_of[name]["kb"]
            goal(f"{name}, KB of an idle WebSocket", value, most, f"{value} (goal {most})")
    if {"greentx", "gevent-websocket"} <= told.keys():
        value = ratio(told["greentx"], told["gevent-websocket"])
        times = f"{1 / max(value, 0.001):.0f} times cheaper (goal {1 / BROADCAST_GOAL:.0f})"
        goal("broadcast, CPU of a recipient / a loop of gevent-websocket", value, BROADCAST_GOAL, times)
    return goals


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all that was asked for; return the figures."""
    names = [name for name in options.rows if not missing(name)]
    for name in options.rows:
        if name not in names:
            print(f"{name} is left out: {PACKAGES[name]} is not installed", file=sys.stderr)
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        rows = []
        for name in names:
            rows.append(Row("echo", name))
            stack.callback(rows[-1].stop)
        for deflate in {"no": (False,), "yes": (True,), "both": (False, True)}[options.deflate]:
            for size in options.sizes:
                for connections in options.connections:
                    key = f"{size} bytes, {connections} connections{', compressed' if deflate else ''}"
                    results[key] = echoes(rows, size, connections, deflate, options)
    memory_of = all_idle(names, options.idle) if options.idle else {}
    chats = [name for name in SERVERS["chat"] if not missing(name)]
    told = broadcasts(chats, options.broadcast, options.rounds) if options.broadcast else {}
    goals = judge(results, memory_of, told)
    return {"results": results, "idle": memory_of, "broadcast": told, "goals": goals}


def numbers(text: str) -> list[int]:
    """Whole numbers above 0, with commas."""
    found = [int(one) for one in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: the minimum is 1")
    return found


def names_of_rows(text: str) -> list[str]:
    """Rows, with commas."""
    found = text.split(",")
    for name in found:
        if name not in SERVERS["echo"]:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(SERVERS['echo'])}")
    return found


def arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("--rows", type=names_of_rows, default=list(SERVERS["echo"]), help="which, with commas")
    found.add_argument("--sizes", type=numbers, default=[20, 20000], help="bytes of a message (20,20000)")
    found.add_argument("--connections", type=numbers, default=[1, 100, 1000], help="at once (1,100,1000)")
    found.add_argument("--deflate", choices=("no", "yes", "both"), default="both", help="compressed (%(default)s)")
    found.add_argument("--count", type=int, default=10000, help="messages in a round; a tenth of large ones")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--idle", type=int, default=2000, help="idle WebSockets; 0 leaves that out")
    found.add_argument("--broadcast", type=int, default=1000, help="recipients; 0 leaves that out")
    found.add_argument("--traffic", choices=("varied", "same"), default="varied", help="of messages (%(default)s)")
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
    try:
        main()
    except Failed as error:
        sys.exit(f"{os.path.basename(__file__)}: {error}")
