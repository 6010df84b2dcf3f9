"""An application that says which process it runs in, and what the programs of one gunicorn are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
from http_rig import Browser

from greentx.protocol.http1_parser import ResponseParser

APP = """
import os, sys, time
print(f"imported in {os.getpid()}", flush=True)
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/ws":
        ws = environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            ws.send(message if message != "pid" else str(os.getpid()))
        return []
    if path == "/slow":
        print("slow has begun", flush=True)
        time.sleep(0.4)  # the handler's work takes a while
    if path == "/spin":
        print("spins", flush=True)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            pass
    if path == "/upload":
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", "7")])
        return [b"%07d" % len(body)]
    if path.startswith("/size/"):
        size = int(path.split("/")[2])
        start_response("200 OK", [("Content-Length", str(size)), ("X-Pid", str(os.getpid()))])
        return [b"x" * size]
    if path.startswith("/exit/"):
        sys.exit(int(path.split("/")[2]))
    if path == "/fails":
        raise RuntimeError("a fault of the application")
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Many", str(environ["wsgi.multiprocess"]))])
    return [b"pid %d" % os.getpid()]
"""


def children_of(pid: int) -> list[int]:
    """Return the processes that process *pid* has started, and that have not been reaped."""
    with contextlib.suppress(FileNotFoundError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def words_of(pid: int) -> list[str]:
    """Return the command line of process *pid*; nothing where it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def relay_of(arbiter: int) -> int:
    """Return the relay's process that process *arbiter* has started."""
    (found,) = (pid for pid in children_of(arbiter) if "relay" in words_of(pid))
    return found


def workers_of(arbiter: int) -> list[int]:
    """Return the workers of process *arbiter* that run."""
    return [pid for pid in children_of(arbiter) if runs(pid) and "relay" not in words_of(pid)]


def all_of(pid: int) -> set[int]:
    """Return process *pid*, and all that it and its have started."""
    return {pid}.union(*(all_of(one) for one in children_of(pid)))


def runs(pid: int) -> bool:
    """Return whether it is there, and not dead and waiting for its parent to look."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def none_runs(pids: Iterable[int]) -> bool:
    """Return whether none of them is there."""
    return not any(runs(pid) for pid in pids)


def wait_until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Let others run until *condition* holds."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        gevent.sleep(0.01)


class Load:
    """Browsers that ask, one request after the other, on kept connections; each answer has to be right.

    Args:
        server: What they ask.
        browsers: How many.
        size: What answers differ by: the first one's have so many bytes or fewer, the second one's twice as many.

    Attributes:
        answered: How many answers came.
        pids: Which workers gave them.
    """

    def __init__(self, server: Any, browsers: int = 8, size: int = 1000) -> None:
        self.answered = 0
        self.pids: set[int] = set()
        self._over = False
        self._server = server
        self._size = size
        self._browsers = [gevent.spawn(self._browse, number) for number in range(browsers)]

    def _browse(self, number: int) -> None:
        count = 0
        with Browser(self._server, timeout=40) as browser:
            while not self._over:
                count += 1
                self._ask(browser, number * self._size + count % self._size)

    def _ask(self, browser: Browser, size: int) -> None:
        answer = ResponseParser()
        browser.ask(f"/size/{size}")
        browser.receive(parser=answer)
        assert (answer.status, len(answer.body)) == (200, size), (size, answer.status)
        self.answered += 1
        self.pids.add(int(str(answer.headers["x-pid"])))

    def more(self, count: int = 100) -> None:
        """Wait for so many more answers; a browser that failed fails here."""
        wanted = self.answered + count
        wait_until(lambda: self.answered >= wanted or any(one.ready() for one in self._browsers), 40)
        for one in self._browsers:
            if one.ready():
                one.get(block=False)

    def end(self) -> None:
        """Let each finish its request; raises what any of them has raised."""
        self._over = True
        gevent.joinall(self._browsers, timeout=50, raise_error=True)
        assert all(one.ready() for one in self._browsers)

    def kill(self) -> None:
        """End them all at once."""
        gevent.killall(self._browsers)


@contextlib.contextmanager
def load(server: Any, **options: Any) -> Iterator[Load]:
    """Run one while the block runs."""
    made = Load(server, **options)
    try:
        yield made
        made.end()
    finally:
        made.kill()
