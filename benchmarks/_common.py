"""What the benchmarks have in common: options, processes, what they have used, and what a result says of itself."""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib.metadata
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greentx.edge.process import ChildProcess

#: What every server of a comparison answers.
BODY = "Hello, world!"
#: What ``reply_http`` sends for :data:`BODY`, at a fixed time.
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    b"Content-Length: 13\r\n\r\nHello, world!"
)


def about(*packages: str) -> dict[str, Any]:
    """Return what a result says of where it was measured, with the versions of *packages*; ``None`` where missing."""
    from greentx import __version__  # here, as servers that are compared with greentx should not have it in memory

    return {
        "commit": commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "greentx": __version__,
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """Return the commit that is measured, empty outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "rev-parse", "HEAD"]
    folder = os.path.dirname(os.path.abspath(__file__))
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout.strip()


def cpu_us(pid: int) -> float:
    """Microseconds of CPU, user and system, of all threads of a process, also of those that have ended; no ticks."""
    # The clock that clock_getcpuclockid(3) returns on Linux.
    return time.clock_gettime_ns((~pid << 3) | 2) / 1000


def child_of(pid: int, timeout: float = 10.0) -> int:
    """Return the one child process of *pid*, once it is there."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = file.read().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} has no child")


def processes(pid: int) -> list[int]:
    """*pid*, its children and theirs."""
    found = [pid]
    for parent in found:
        for path in glob.glob(f"/proc/{parent}/task/*/children"):
            with contextlib.suppress(OSError), open(path) as file:
                found += map(int, file.read().split())
    return found


def listening_port(pids: Sequence[int]) -> int:
    """The TCP port that one of the processes listens on; 0 for none yet."""
    inodes = set()
    for pid in pids:
        for path in glob.glob(f"/proc/{pid}/fd/*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(path))
    with open("/proc/self/net/tcp") as file:
        for fields in map(str.split, file):
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:  # 0A is LISTEN
                return int(fields[1].partition(":")[2], 16)
    return 0


def port_of(process: ChildProcess, timeout: float = 20.0) -> int:
    """Return the TCP port that a server listens on, once it does. Raises ``TimeoutError``, also where it has ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        port = listening_port(processes(process.pid))
        if port:
            return port
        if process.wait(0.02):
            break
    raise TimeoutError("it does not listen")


def end(process: ChildProcess) -> None:
    """End a server: by SIGTERM, so that it ends what it has started, and where that takes too long at once."""
    try:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    finally:
        process.kill()


def end_with_parent() -> None:
    """Have this process end when its standard input does: with the benchmark that started it, if killed, too."""

    def wait() -> None:
        # Not by the file object: Python would end with an error while a thread has its lock.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def installed(rows: Iterable[str], packages: Mapping[str, str]) -> list[str]:
    """Return the rows whose package is there, or that need none by *packages*; say which are left out."""
    found = []
    for row in rows:
        if row in packages and _version(packages[row]) is None:
            left_out(row, f"{packages[row]} is not installed (pip install 'greentx[bench]')")
        else:
            found.append(row)
    return found


def left_out(row: str, why: object) -> None:
    """Say that a row is left out of the results."""
    print(f"{row} is left out: {why}", file=sys.stderr, flush=True)


def numbers_to(most: int) -> Callable[[str], list[int]]:
    """Return the type of an option: whole numbers, with commas between them."""

    def numbers(text: str) -> list[int]:
        found = [int(one) for one in text.split(",")]
        if not all(1 <= one <= most for one in found):
            raise argparse.ArgumentTypeError(f"numbers are 1 to {most}")
        return found

    return numbers


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return the type of an option: names that are known, with commas between them, each counted once."""

    def names(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        for one in found:
            if one not in known:
                raise argparse.ArgumentTypeError(f"{one!r} is not one of {', '.join(known)}")
        return found

    return names


def ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return each round's ratio, the smallest first: the median counts, the ends say how busy the machine was."""
    return sorted(round(one / other, 3) for one, other in zip(ours, others, strict=True))


def ratio_of(found: Sequence[float]) -> float:
    """Return the one that counts of :func:`ratios`."""
    return round(statistics.median(found), 3)
