"""What does a request cost behind the real mongrel2, when every request differs?

``wrk`` loads each server in turn over keep-alive connections with one request in flight each. In front of ``plain``,
``recv-method``, ``recv-headers``, ``serve`` and ``wsgi`` is a ``mongrel2`` of their own; ``pywsgi``, ``gunicorn`` and
``granian`` run the application of ``wsgi`` without one. ``plain`` is a pyzmq loop that reads only who asked and sends a
fixed answer: the least that a handler has to do. ``edge`` is ``plain``, and ``edge-wsgi`` is ``wsgi``, behind the
embedded front end, as a process of its own. The servers take turns, round by round, so that what else the machine
does hits all of them alike. Each figure is the median of the rounds; each ratio is the median of the ratios of the
rounds.

``python benchmarks/bench_behind_mongrel2.py [--traffic varied|same] [--connections 1,64,256] [--rounds 5]
[--seconds 1] [--rows plain,recv-method,...] [--flow-control off|on|both] [--protocol tnetstring|json]``

CPU is user and system time of all threads, read from outside: of the server's processes, of what is in front of it
(mongrel2 or the embedded front end), and of both.
Times are those that wrk reports. A goal that is missed is said, and is no error, nor is it that wrk is not there: the
exit status is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator

import _traffic
import gevent
import zmq
from _behind_servers import BEHIND, PACKAGES, ROWS, Served
from _common import about, installed, names_of, numbers_to, ratios
from _wrk import Wrk, find_wrk

#: Seconds of load that each server gets before anything counts: the first requests pay for what is built once.
WARM_UP = 0.5
#: The number of connections that the goals are for.
GOAL_CONNECTIONS = 64


@dataclasses.dataclass(frozen=True)
class Run:
    """What one server did in one round.

    Attributes:
        cpu_us: Microseconds of CPU of the server for each request.
        front_us: The same of mongrel2, or the embedded front end; 0 where there is none.
        sleeps: How often the threads of the server waited, for each request: seldom where they find several at once.
        per_second: Requests that were answered in a second.
        p50_ms, p99_ms: So many of a hundred were answered within that time.
        bad_status: Answers with a status of 400 or more.
        errors: Connections that could not be opened, read or written, and requests without an answer.
    """

    cpu_us: float
    front_us: float
    sleeps: float
    per_second: float
    p50_ms: float
    p99_ms: float
    bad_status: int
    errors: int

    @property
    def both_us(self) -> float:
        """Microseconds of CPU of the server and of what is in front of it for each request."""
        return self.cpu_us + self.front_us

    @property
    def to_browsers_us(self) -> float:
        """Microseconds of CPU, for each request, of the process that browsers are connected to."""
        return self.front_us or self.cpu_us


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        row: Which server.
        flow_control: Whether its front end has ``download.flow_control``; ``None`` where it has none.
        connections: How many.
    """

    row: str
    flow_control: bool | None
    connections: int


Results = dict[Case, list[Run]]
Measure = Callable[[Run], float]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A ratio, and what it is to be.

    Attributes:
        row, other: The ratio is of the former to the latter; where that is empty, of two figures of the former.
        what: For people.
        measure: Of which figure.
        least, most: The limits, of which one counts.
    """

    row: str
    other: str
    what: str
    measure: Measure
    least: float | None = None
    most: float | None = None

    def met(self, ratio: float) -> bool:
        """Whether a ratio is as it is to be."""
        return (self.least is None or ratio >= self.least) and (self.most is None or ratio <= self.most)


def _cpu(run: Run) -> float:
    return run.cpu_us


def _both(run: Run) -> float:
    return run.both_us


def _to_browsers(run: Run) -> float:
    return run.to_browsers_us


def _rate(run: Run) -> float:
    return run.per_second


def _tail(run: Run) -> float:
    return run.p99_ms / run.p50_ms


GOALS = [
    Goal("recv-method", "plain", "CPU", _cpu, most=1.8),
    Goal("recv-headers", "plain", "CPU", _cpu, most=2.0),
    Goal("serve", "plain", "CPU", _cpu, most=2.8),
    Goal("wsgi", "plain", "CPU", _cpu, most=3.0),
    Goal("recv-method", "plain", "requests a second", _rate, least=0.9),
    Goal("recv-headers", "plain", "requests a second", _rate, least=0.9),
    Goal("serve", "plain", "requests a second", _rate, least=0.75),
    Goal("wsgi", "plain", "requests a second", _rate, least=0.75),
    *(Goal(row, "", "p99 / p50", _tail, most=3.0) for row in ("recv-method", "recv-headers", "serve", "wsgi")),
    Goal("wsgi", "pywsgi", "CPU", _cpu, most=0.25),
    Goal("wsgi", "granian", "CPU with mongrel2", _both, most=1.0),
    Goal("edge", "pywsgi", "CPU of who serves browsers", _to_browsers, most=0.81),
    Goal("edge-wsgi", "pywsgi", "requests a second", _rate, least=1.0),
]


def measure(options: argparse.Namespace, wrk: Wrk, requests: list[_traffic.HttpRequest]) -> Results:
    """Run it all."""
    results: Results = {}
    flows = {"off": [False], "on": [True], "both": [False, True]}[options.flow_control]
    with contextlib.ExitStack() as stack:
        servers = []
        for row, flow in _wanted(options.rows, flows):
            server = Served(row, flow, options.protocol)
            stack.callback(server.close)
            servers.append(server)
            # Each kind of request: the first with a body is the eighth.
            for request in requests[:8]:
                server.check(request.raw())
            print(f"{row} runs, and answers as it should", file=sys.stderr, flush=True)
            _run(server, wrk, GOAL_CONNECTIONS, min(WARM_UP, options.seconds))
        gc.collect()
        for connections in options.connections:
            for _ in range(options.rounds):
                for server in servers:
                    case = Case(server.row, server.flow_control, connections)
                    results.setdefault(case, []).append(_run(server, wrk, connections, options.seconds))
            _print_table({case: runs for case, runs in results.items() if case.connections == connections})
    return results


def _wanted(rows: Iterable[str], flows: list[bool]) -> Iterator[tuple[str, bool]]:
    for row in installed(rows, {name: name for name in PACKAGES}):
        for flow in flows if row in BEHIND else flows[:1]:
            yield row, flow


def _run(server: Served, wrk: Wrk, connections: int, seconds: float) -> Run:
    before = server.used()
    report = wrk.run(server.port, connections, seconds, server.played)
    after = server.used()
    count = report["requests"]
    server.played += count
    if not count:
        raise RuntimeError(f"{server.row} answered nothing: {report}")
    return Run(
        cpu_us=(after.cpu_us - before.cpu_us) / count,
        front_us=(after.front_us - before.front_us) / count,
        sleeps=(after.sleeps - before.sleeps) / count,
        per_second=count / report["elapsed_us"] * 1e6,
        p50_ms=report["p50_us"] / 1e3,
        p99_ms=report["p99_us"] / 1e3,
        bad_status=report["bad_status"],
        errors=sum(report[name] for name in ("connect_errors", "read_errors", "write_errors", "timeouts")),
    )


# -- what comes out of it ----------------------------------------------------------------------------------------------


def _median(runs: list[Run], figure: Measure) -> float:
    return statistics.median(map(figure, runs))


def ratios_to(other: str, results: Results, case: Case, figure: Measure) -> list[float]:
    """Return the ratios of a case's rounds to those of another row with as many connections, the smallest first.

    That row has the same flow control. Where one of both has no front end, any will do, first that without flow
    control. Empty where it was not measured.
    """
    flows = (case.flow_control, None) if case.flow_control is not None else (None, False, True)
    for flow in flows:
        found = results.get(Case(other, flow, case.connections))
        if found:
            return ratios(list(map(figure, results[case])), list(map(figure, found)))
    return []


def _print_table(results: Results) -> None:
    connections = next(iter(results)).connections
    print(f"\n{connections} connection{'s'[: connections != 1]}: microseconds of CPU a request, requests, milliseconds")
    print(
        f"{'':<14}{'flow':>5}{'server':>9}{'in front':>9}{'both':>9}{'sleeps':>8}{'a second':>10}{'p50':>9}{'p99':>9}"
        f"{'>= 400':>8}{'errors':>8}{'CPU/plain':>11}{'rate/plain':>11}"
    )
    for case, runs in results.items():
        flow = {None: "-", False: "off", True: "on"}[case.flow_control]
        line = f"{case.row:<14}{flow:>5}{_median(runs, _cpu):>9.1f}{_median(runs, lambda run: run.front_us):>9.1f}"
        line += (
            f"{_median(runs, _both):>9.1f}{_median(runs, lambda run: run.sleeps):>8.2f}{_median(runs, _rate):>10.0f}"
        )
        line += f"{_median(runs, lambda run: run.p50_ms):>9.2f}"
        line += f"{_median(runs, lambda run: run.p99_ms):>9.2f}{sum(run.bad_status for run in runs):>8}"
        line += f"{sum(run.errors for run in runs):>8}"
        for figure, width in ((_cpu, 11), (_rate, 11)):
            found = ratios_to("plain", results, case, figure)
            line += f"{statistics.median(found):>{width}.2f}" if found else " " * width
        print(line, flush=True)


def check_goals(results: Results) -> list[dict[str, object]]:
    """Print each goal whose rows were measured, and whether it is met; return the same."""
    checked: list[dict[str, object]] = []
    print(f"\nGoals, at {GOAL_CONNECTIONS} connections (median, least and most of the rounds):")
    for goal in GOALS:
        for flow in (False, True):
            case = Case(goal.row, flow, GOAL_CONNECTIONS)
            if case not in results:
                continue
            found = (
                ratios_to(goal.other, results, case, goal.measure)
                if goal.other
                else sorted(map(goal.measure, results[case]))
            )
            if not found:
                continue
            ratio = statistics.median(found)
            limit = f"<= {goal.most}" if goal.most is not None else f">= {goal.least}"
            name = f"{goal.row}{' / ' if goal.other else ''}{goal.other}, {goal.what}"
            met = goal.met(ratio)
            print(
                f"  {name:<40} flow control {'on' if flow else 'off':<4} {ratio:6.2f} ({found[0]:.2f} to "
                f"{found[-1]:.2f})  {limit:<8} {'met' if met else 'missed'}"
            )
            checked.append({"goal": f"{name} {limit}", "flow_control": flow, "ratio": round(ratio, 3), "met": met})
    return checked


def as_json(results: Results) -> list[dict[str, object]]:
    """Return medians, ratios and rounds of each case."""
    found: list[dict[str, object]] = []
    for case, runs in results.items():
        figures = [dataclasses.asdict(run) | {"both_us": run.both_us} for run in runs]
        medians = {name: round(statistics.median(one[name] for one in figures), 3) for name in figures[0]}
        medians |= {name: sum(one[name] for one in figures) for name in ("bad_status", "errors")}
        to_plain = {
            f"{name}_to_plain": ratios_to("plain", results, case, figure)
            for name, figure in (("cpu", _cpu), ("both", _both), ("rate", _rate))
        }
        rounds = {
            name: [round(one[name], 2) for one in figures] for name in ("cpu_us", "front_us", "sleeps", "per_second")
        }
        found.append({**dataclasses.asdict(case), **medians, **to_plain, "rounds": rounds})
    return found


def versions() -> dict[str, str]:
    """Return the versions of what is no Python package; empty where it is not known."""
    found = {"libzmq": zmq.zmq_version()}
    for name, command in (("mongrel2", ["dpkg-query", "-W", "-f=${Version}", "mongrel2-core"]), ("wrk", ["wrk", "-v"])):
        try:
            said = subprocess.run(command, capture_output=True, text=True).stdout
        except OSError:
            said = ""
        found[name] = said.partition(" [")[0].removeprefix("wrk ")
    return found


# -- the command line --------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """Return the options. Raises ``SystemExit`` for a mistake in them."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(found)
    found.add_argument(
        "--connections", type=numbers_to(1000), default=[1, 64, 256], help="with one request in flight each"
    )
    found.add_argument("--rounds", type=int, default=5, help="rounds, of whose ratios the median counts")
    found.add_argument("--seconds", type=float, default=1.0, help="how long each server is loaded in a round")
    found.add_argument("--rows", type=names_of(ROWS), default=list(ROWS), help=f"which, with commas: {','.join(ROWS)}")
    found.add_argument("--flow-control", choices=("off", "on", "both"), default="both", help="of front ends")
    found.add_argument("--protocol", choices=("tnetstring", "json"), default="tnetstring", help="of the headers")
    options = found.parse_args()
    if options.rounds < 1 or not 0.05 <= options.seconds <= 600:
        found.error("--rounds is at least 1, --seconds 0.05 to 600")
    return options


def main() -> None:
    options = arguments()
    program = find_wrk()
    if program is None:
        print("nothing was measured: wrk is missing (Debian, Ubuntu: apt-get install wrk)", file=sys.stderr)
    elif options.seconds * options.rounds < 3:
        print("warning: too short for figures to be trusted", file=sys.stderr)
    # Raised in this greenlet, where it waits, so that all is ended. KeyboardInterrupt comes up wherever Python is, also
    # where it is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, sys.exit, 128 + number)
    results: Results = {}
    if program is not None:
        requests = _traffic.requests(options.traffic)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            results = measure(options, Wrk(program, requests, folder), requests)
    goals = check_goals(results) if results else []
    told = {
        "benchmark": "behind_mongrel2",
        "traffic": options.traffic,
        "protocol": options.protocol,
        "rounds": options.rounds,
        "seconds": options.seconds,
        **about("gevent", "pyzmq", "tnetstring3", "msgspec", *PACKAGES),
        **versions(),
    }
    print(json.dumps({**told, "goals": goals, "results": as_json(results)}))


if __name__ == "__main__":
    main()
