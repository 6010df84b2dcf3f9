"""What load_http.py and load_websockets.py have in common: the command line, the greenlets, the clock, the report.

A load has three parts: every greenlet opens its connection, all wait for each other, then the clock runs until the
count or the duration is reached. Closed loop: each greenlet sends its next request when the last one was answered, so a
slow server is asked less. With a rate the n-th request is due n / rate seconds after the start, the next free greenlet
sends it, and its latency counts from when it was due: the stall of a server shows in every request that waited for it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import ipaddress
import json
import os
import resource
import signal
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import _traffic
import gevent
from _common import about
from gevent import socket
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from greentx import GreentxError, Server
from greentx.errors import ControlError
from greentx.standin.connector import Connector

# Bounds that no option goes beyond: a load tool with a slip in its command line should end by itself.
MAX_GREENLETS = 100_000
MAX_COUNT = 100_000_000
MAX_SECONDS = 24 * 3600.0

STATUSES = """\
exit status: 0 when all went well; 1 when anything failed: errors, WebSockets that were dropped or not closed properly,
nothing done at all; 2 for an invalid command line.
"""

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Failed(Exception):
    """A request that did not end as it should; errors are counted by its text. The connection is opened again."""


class Worker(Protocol):
    """One pretend browser."""

    def open(self) -> None:
        """Connect. Raises ``Failed``."""

    def step(self) -> None:
        """Do what is measured, once. Raises ``Failed``."""

    def close(self) -> None:
        """Close the connection, also one that failed."""


# -- the command line --------------------------------------------------------------------------------------------------


def parser(description: str, example: str, schemes: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the options that both loads have."""
    found = argparse.ArgumentParser(
        description=description, epilog=f"{example}\n{STATUSES}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("target", help=f"HOST:PORT of a handler's control socket, or {' or '.join(schemes)}://HOST...")
    load = found.add_argument_group("the load; it ends with the first bound that is reached")
    _traffic.add_option(found)
    load.add_argument("-n", "--greenlets", type=_whole(MAX_GREENLETS), default=50, help="connections at once (50)")
    load.add_argument("-r", "--rate", type=_positive(1e7), help="requests a second, all together; default: closed loop")
    load.add_argument("-c", "--count", type=_whole(MAX_COUNT), default=100_000, help="maximum of requests (100000)")
    load.add_argument("-d", "--duration", type=_positive(MAX_SECONDS), default=10.0, help="maximum of seconds (10)")
    load.add_argument("-t", "--timeout", type=_positive(3600), default=10.0, help="seconds for an answer (10)")
    load.add_argument(
        "--open-rate", type=_positive(1e6), help="connections opened a second; default: as fast as it goes"
    )
    load.add_argument("--remote", action="store_true", help="allow targets on other machines; be sure that you may")
    server = found.add_argument_group("a handler's control socket")
    server.add_argument("--ip", default="127.0.0.1", help="our address, which the handler connects to (127.0.0.1)")
    server.add_argument("--encoding", choices=("tnetstring", "json"), default="tnetstring", help="of headers")
    output = found.add_argument_group("output: one JSON line on stdout, progress on stderr")
    output.add_argument("-q", "--quiet", action="store_true", help="no progress")
    output.add_argument(
        "--plot", metavar="FILE", help="draw latencies and throughput (needs matplotlib, extra 'bench')"
    )
    return found


def _positive(most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {most:g}")
        return value

    return number


def _whole(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from 1 to {most}")
        return value

    return number


class Target:
    """Where the load goes.

    Attributes:
        url: The parts of a URL; ``None`` for a control socket.
        address: Host and port to connect to.
        path: For a URL what is asked for there, ``None`` where it names no path and for a control socket.
    """

    def __init__(self, options: argparse.Namespace, schemes: Sequence[str], found: argparse.ArgumentParser) -> None:
        text = options.target
        self.text = text
        self.path: str | None = None
        try:
            self.url = urlsplit(text) if "://" in text else None
            if self.url is not None:
                if self.url.scheme not in schemes:
                    found.error(f"{text!r}: the scheme is {' or '.join(schemes)} (no TLS: that would measure TLS)")
                host, port = self.url.hostname, self.url.port or 80
                if self.url.path or self.url.query:
                    self.path = (self.url.path or "/") + (f"?{self.url.query}" if self.url.query else "")
            else:
                host, _, digits = text.rpartition(":")
                port = int(digits)
        except ValueError:
            found.error(f"{text!r} is neither HOST:PORT nor a URL")
        if not host:
            found.error(f"{text!r} names no host")
        try:
            infos = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError as error:
            found.error(f"{host!r} is not known: {error}")
        self.family, _, _, _, self.address = infos[0]
        addresses = [str(info[4][0]) for info in infos]
        if not options.remote and not all(ipaddress.ip_address(one).is_loopback for one in addresses):
            found.error(f"{host!r} is {', '.join(addresses)}, another machine: add --remote if you may load it")
        if self.url is None and not options.remote and not ipaddress.ip_address(options.ip).is_loopback:
            found.error(f"--ip {options.ip} is not a loopback address: add --remote if that is meant")
        self.host_header = self.url.netloc if self.url is not None else ""

    def connect(self, timeout: float) -> Any:
        """Return a gevent socket connected to a URL's host. Raises ``Failed``."""
        sock = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self.address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            raise Failed(reason(error)) from error
        return sock


def reason(error: OSError) -> str:
    """Return why a socket failed, without what differs from one to the next."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return os.strerror(error.errno) if error.errno else str(error)


@contextlib.contextmanager
def connected_server(target: Target, options: argparse.Namespace) -> Iterator[Server]:
    """Yield a Server to which the handler at *target* is connected; nothing but it gets what is sent."""
    address = f"{target.address[0]}:{target.address[1]}" if ":" not in target.address[0] else target.address[:2]
    with Server(ip=options.ip, push_port=0, sub_port=0, encoding=options.encoding) as server:
        server.connect(address, timeout=round(options.timeout * 1000))
        yield server


def handler_status(server: Server) -> dict[str, Any] | None:
    """Return the connected handler's answer to STATUS, with its memory where it runs here; ``None`` if it has none."""
    try:
        status = Connector(server.handlers[0], server, timeout=1000).status()
    except (ControlError, IndexError):
        return None  # mongrel2-transceiver does not know STATUS
    mine = [one for one in status.get("connections", ()) if one.get("sender") == server.sender]
    kept = {name: status.get(name) for name in ("version", "pid", "websockets", "pending")}
    return {**kept, "rss": _memory(status.get("pid")), "connection": mine[0] if mine else None}


def _memory(pid: object) -> int | None:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError):
        return None


def allow_files(count: int) -> None:
    """Raise the limit of open files so that *count* sockets fit, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            sys.exit(f"{count} sockets need {wanted} open files, and the hard limit here is {hard} (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# -- the load ----------------------------------------------------------------------------------------------------------


class Load:
    """Runs workers in greenlets and measures what they do.

    Attributes:
        latencies: Seconds, of what succeeded, in the order in which it ended.
        ended: When each of these ended, seconds after the start.
        errors: How many failed, by why.
        opened: How many connections were opened at the beginning.
        opening: Seconds that took, for each.
        elapsed: Seconds from the start until the last greenlet was done, whether its last request succeeded or not.
        cpu: Seconds of our own processor time in these.
    """

    #: Whether a connection that failed is opened again.
    reopens = True

    @property
    def did_something(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.latencies)

    def __init__(self, options: argparse.Namespace, make: Callable[[int], Worker]) -> None:
        self.options = options
        self.latencies = array("d")
        self.ended = array("d")
        self.opening = array("d")
        self.errors: Counter[str] = Counter()
        self.opened = 0
        self.elapsed = 0.0
        self.interrupted = False
        self.cpu = 0.0
        self._make = make
        self._issued = 0
        self._start = 0.0
        self._ready = 0
        self._go = Event()
        self._all_ready = Event()
        self._openers = BoundedSemaphore(200)  # more at once overrun the listen queue of most servers
        self._open_from = 0.0
        self._cpu = 0.0

    def run(self, during: Callable[[], None] | None = None) -> None:
        """Run the load to its end, or to Ctrl-C. *during* is called when all connections are open."""
        options = self.options
        self._open_from = time.monotonic()
        greenlets = [gevent.spawn(self._work, number) for number in range(options.greenlets)]
        reporting = None if options.quiet else gevent.spawn(self._report)
        stop = gevent.signal_handler(signal.SIGINT, self._interrupt, greenlets)
        try:
            self._all_ready.wait()
            if during is not None:
                during()
            self._cpu = time.process_time()
            self._start = time.monotonic()
            self._go.set()
            gevent.joinall(greenlets, raise_error=True)
        finally:
            stop.cancel()
            gevent.killall(greenlets)
            if reporting is not None:
                reporting.kill()

    def _interrupt(self, greenlets: list[Any]) -> None:
        self.interrupted = True
        self._issued = self.options.count
        self._all_ready.set()
        gevent.spawn_later(1, gevent.killall, greenlets)

    def _work(self, number: int) -> None:
        worker = self._make(number)
        try:
            is_open = self._open_first(worker, number)
            self._ready += 1
            if self._ready == self.options.greenlets:
                self._all_ready.set()
            self._go.wait()
            try:
                self._steps(worker, is_open)
            finally:
                # Not when something succeeded for the last time: a target that stalls or dies is charged with the rest.
                self.elapsed = time.monotonic() - self._start
                self.cpu = time.process_time() - self._cpu
        except BaseException:  # also killed; raised again
            self._all_ready.set()  # whoever waits for us learns why from our greenlet
            raise
        finally:
            worker.close()

    def _steps(self, worker: Worker, is_open: bool) -> None:
        while (due := self._next_due()) is not None:
            wait = due - time.monotonic()
            if wait > 0:
                gevent.sleep(wait)
            try:
                with gevent.Timeout(self._left(), Failed("timeout")):
                    if not is_open:
                        worker.open()
                        is_open = True
                    worker.step()
            except Failed as error:
                self.errors[str(error)] += 1
                worker.close()
                is_open = False
                if not self.reopens:
                    break
                gevent.sleep(0.01)  # else a target that refuses at once would make us spin
            else:
                now = time.monotonic()
                self.latencies.append(now - due)
                self.ended.append(now - self._start)

    def _left(self) -> float:
        """Seconds until nothing is waited for any more. A step waits several times, each for the timeout."""
        end: float = self._start + self.options.duration + self.options.timeout
        return max(0.0, end - time.monotonic())

    def _open_first(self, worker: Worker, number: int) -> bool:
        if self.options.open_rate:
            gevent.sleep(max(0.0, self._open_from + number / self.options.open_rate - time.monotonic()))
        with self._openers:
            if self.interrupted:
                return False
            began = time.monotonic()
            try:
                worker.open()
            except Failed as error:
                self.errors[f"opening: {error}"] += 1
                worker.close()
                return False
            self.opening.append(time.monotonic() - began)
            self.opened += 1
            return True

    def _next_due(self) -> float | None:
        options = self.options
        now = time.monotonic()
        if self._issued >= options.count or now - self._start >= options.duration:
            return None
        after = self._issued / options.rate if options.rate else 0.0
        if after >= options.duration:
            return None
        self._issued += 1
        return self._start + after if options.rate else now

    def _report(self) -> None:
        seen, second = 0, 0
        while True:
            gevent.sleep(1)
            second += 1
            new = self.latencies[seen:]
            seen += len(new)
            line = f"{second:>4} s: {self.opened} open, {seen} done, {sum(self.errors.values())} errors, {len(new)}/s"
            if new:
                found = percentiles(new)
                line += f", p50 {found['p50']:.2f} ms, p99 {found['p99']:.2f} ms"
            print(line, file=sys.stderr, flush=True)


# -- the report --------------------------------------------------------------------------------------------------------


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """Return milliseconds: the percentiles, least, mean and most; empty where nothing was measured."""
    if not latencies:
        return {}
    ordered = sorted(latencies)
    found = {name: ordered[min(len(ordered) - 1, int(part * len(ordered)))] for name, part in PERCENTILES.items()}
    found |= {"min": ordered[0], "mean": sum(ordered) / len(ordered), "max": ordered[-1]}
    return {name: round(value * 1000, 3) for name, value in found.items()}


def report(name: str, target: Target, load: Load, more: dict[str, Any]) -> int:
    """Print the JSON line, draw the plot; return the exit status: 1 where anything failed, or nothing was done."""
    options = load.options
    done = len(load.latencies)
    result = {
        "benchmark": name,
        "target": target.text,
        "via": "control socket" if target.url is None else "url",
        "traffic": options.traffic,
        "greenlets": options.greenlets,
        "loop": "rate" if options.rate else "closed",
        "rate": options.rate,
        "interrupted": load.interrupted,
        "opened": load.opened,
        "open_ms": percentiles(load.opening),
        "done": done,
        "errors": dict(load.errors),
        "seconds": round(load.elapsed, 3),
        "per_second": round(done / load.elapsed, 1) if load.elapsed else 0.0,
        "latency_ms": percentiles(load.latencies),
        # Where this is near a second per second, the load generator is what was measured.
        "own_cpu_share": round(load.cpu / load.elapsed, 3) if load.elapsed else 0.0,
        **more,
        "about": about("gevent", "pyzmq"),
    }
    print(json.dumps(result), flush=True)
    if options.plot:
        plot(options.plot, f"{name} {target.text}", load)
    failed = load.errors or more.get("dropped") or more.get("unclosed")
    return 0 if load.did_something and not failed else 1


def check_plot(found: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error, before the load, where a plot is wanted and cannot be drawn."""
    if options.plot:
        try:
            importlib.metadata.version("matplotlib")
        except importlib.metadata.PackageNotFoundError:
            found.error("--plot needs matplotlib: pip install 'greentx[bench]'")


def plot(path: str, title: str, load: Load) -> None:
    """Draw throughput over time, and the latencies below which each share of the requests stayed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (over_time, shares) = pyplot.subplots(1, 2, figsize=(11, 4))
    figure.suptitle(title)
    bins = max(1, min(200, int(load.elapsed * 10)))
    counts = [0] * bins
    for ended in load.ended:
        counts[min(bins - 1, int(ended / load.elapsed * bins))] += 1
    width = load.elapsed / bins
    over_time.step([number * width for number in range(bins)], [count / width for count in counts], where="post")
    over_time.set(xlabel="seconds", ylabel="done per second", ylim=(0, None))
    ordered = sorted(load.latencies)
    step = max(1, len(ordered) // 2000)
    picked = [*range(0, len(ordered), step), len(ordered) - 1] if ordered else []
    shares.plot([100 * number / len(ordered) for number in picked], [ordered[number] * 1000 for number in picked])
    shares.set(xlabel="% of the requests", ylabel="latency in ms, maximum", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path)


def main(run: Callable[[], int]) -> None:
    """Run a load's program; what goes wrong with the target is one line."""
    try:
        sys.exit(run())
    except GreentxError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
