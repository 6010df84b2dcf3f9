"""How many instructions and allocations does a request cost the handler process?

Counts do not depend on what else the machine does, as times do, so that small changes show. The handlers and requests
are those of ``bench_throughput.py``. Each handler runs twice, for a few requests and for many, and what the second run
needed more is divided by how many more they were: start-up falls out.

``python benchmarks/bench_instructions.py [--traffic varied|same] [--handler recv-headers ...] [--count 3000]
[--window 64] [--protocol json|tnetstring] [--tool perf|callgrind] [--no-allocations]``

``perf stat`` counts instructions where the kernel lets it, else valgrind's callgrind does (Debian: ``valgrind``).
Allocations are all calls of ``malloc`` and the like by memcheck, with Python's own allocator off; objects that Python
takes from a free list need none. Both count all threads, user mode only. Instructions are not time: it does not show
cache misses, system calls, nor waiting. Under valgrind a handler is fifty times slower than its clock, so that timers
are due fifty times as often, and more requests wait when it looks for them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import _traffic
from _common import about, child_of
from bench_throughput import HANDLERS, PACKAGES, Bench, make_requests

#: The requests of the short run: what is built once, and what fills up, is there then.
FIRST = 1000
END_SECONDS = 60.0
FIGURES = ("instructions", "allocations", "allocated_bytes")


class Tool(NamedTuple):
    """A program that counts what the one does that it runs.

    Attributes:
        command: What stands in front of the handler's; the file that it writes is appended.
        read: Takes the text of that file; returns the counts.
        is_parent: The handler is its child, not itself.
        environment: Variables of the handler.
    """

    command: tuple[str, ...]
    read: Callable[[str], tuple[int, ...]]
    is_parent: bool = False
    environment: tuple[tuple[str, str], ...] = ()


def read_perf(text: str) -> tuple[int, ...]:
    """Instructions. Raises ``ValueError`` where the kernel does not let perf count them."""
    for line in text.splitlines():
        if "instructions" in line:
            return (int(line.split(",")[0]),)
    raise ValueError("perf did not count instructions")


def read_callgrind(text: str) -> tuple[int, ...]:
    """Instructions."""
    return _find(r"Collected : (\d+)", text)


def read_memcheck(text: str) -> tuple[int, ...]:
    """Allocations, and their bytes."""
    return _find(r"total heap usage: ([\d,]+) allocs, [\d,]+ frees, ([\d,]+) bytes", text)


def _find(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"valgrind did not say what it counted: {text[-1000:]}")
    return tuple(int(one.replace(",", "")) for one in found.groups())


def perf() -> Tool | None:
    """Return it where it is installed and may count, else ``None``."""
    program = shutil.which("perf")
    if program is None:
        return None
    command = (program, "stat", "-x,", "-e", "instructions:u", "-o")
    with tempfile.NamedTemporaryFile("r") as file:
        subprocess.run([*command, file.name, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            read_perf(file.read())
        except ValueError:
            return None
    return Tool(command, read_perf, is_parent=True)


def callgrind() -> Tool | None:
    """Return it where valgrind is installed, else ``None``."""
    program = shutil.which("valgrind")
    command = ("--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-file")
    return Tool((program, *command), read_callgrind) if program else None


def memcheck() -> Tool | None:
    """Return it, as a counter of allocations, where valgrind is installed, else ``None``."""
    program = shutil.which("valgrind")
    if program is None:
        return None
    command = (program, "--tool=memcheck", "--leak-check=no", "--undef-value-errors=no", "--log-file")
    # Python's own allocator asks for large pieces and divides them, unseen.
    return Tool(command, read_memcheck, environment=(("PYTHONMALLOC", "malloc"),))


TOOLS = {"perf": perf, "callgrind": callgrind}


def count_once(tool: Tool, name: str, requests: Sequence[bytes], count: int, window: int) -> tuple[int, ...]:
    """Run a handler for so many requests under a tool, and return what that counted, start and end included."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "counts")
        *command, option = tool.command
        wrapper = [*command, f"{option}={file}"] if option.startswith("--") else [*command, option, file]
        settings = [f"{variable}={value}" for variable, value in tool.environment]
        # Hashes that differ from run to run make dicts, and so counts, differ.
        bench = Bench(name, requests, ["env", "PYTHONHASHSEED=0", *settings, *wrapper])
        try:
            bench.exchange(count, window)
            os.kill(child_of(bench.process.pid) if tool.is_parent else bench.process.pid, signal.SIGTERM)
            bench.process.wait(END_SECONDS)
        finally:
            bench.close()
        with open(file) as text:
            return tool.read(text.read())


def pick(wanted: str | None) -> tuple[str | None, Tool | None]:
    """Return the counter of instructions that is wanted, or the first that works, by name."""
    for name in [wanted] if wanted else TOOLS:
        tool = TOOLS[name]()
        if tool is not None:
            return name, tool
    return None, None


def measure(options: argparse.Namespace, tool: Tool) -> dict[str, dict[str, Any]]:
    """Count for each handler, print a line for each, and return the results."""
    requests = make_requests(options.traffic, options.protocol, FIRST + options.count)
    counter = None if options.no_allocations else memcheck()
    tools = [tool] if counter is None else [tool, counter]
    results: dict[str, dict[str, Any]] = {}
    # Side by side on all processors: it does not change what is counted.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name in options.handler or HANDLERS:
            lengths = itertools.product(tools, (FIRST, FIRST + options.count))
            running = [pool.submit(count_once, one, name, requests, count, options.window) for one, count in lengths]
            counts = [one.result() for one in running]
            figures = [
                round((more - less) / options.count, 1)
                for first, last in zip(counts[::2], counts[1::2], strict=True)
                for less, more in zip(first, last, strict=True)
            ]
            results[name] = dict(zip(FIGURES, figures, strict=False))
            print(f"{name:<12}", *(f"{figure:>9.1f} {what}" for what, figure in results[name].items()), flush=True)
    return results


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _traffic.add_option(arguments)
    arguments.add_argument("--handler", action="append", choices=HANDLERS, help="which; may be given again (all)")
    arguments.add_argument("--count", type=int, default=3000, help="requests that are counted (%(default)s)")
    arguments.add_argument("--window", type=int, default=64, help="requests in flight (%(default)s)")
    arguments.add_argument("--protocol", choices=("json", "tnetstring"), default="tnetstring")
    arguments.add_argument("--tool", choices=TOOLS, help="of instructions; default: perf where it may, else callgrind")
    arguments.add_argument("--no-allocations", action="store_true", help="count instructions only")
    options = arguments.parse_args()
    name, tool = pick(options.tool)
    results = {}
    if tool is None:
        print("nothing was counted: neither perf nor valgrind works here (apt-get install valgrind)", file=sys.stderr)
    else:
        results = measure(options, tool)
    settings = {one: getattr(options, one) for one in ("traffic", "protocol", "count", "window")}
    print(json.dumps({"benchmark": "instructions", **about(*PACKAGES), "tool": name, **settings, "results": results}))


if __name__ == "__main__":
    main()
