"""Runs Debian's ``wrk`` with ``varied.lua``: requests that differ, from a file."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _traffic import HttpRequest, write_raw
from gevent.event import Event

from greentx.edge.process import ChildProcess

SCRIPT = Path(__file__).with_name("varied.lua")
#: wrk ends by itself so many seconds late, where nobody was there to end it.
_GRACE = 20


def find_wrk() -> str | None:
    """The path of wrk; ``None`` where it is not installed."""
    found = shutil.which("wrk")
    return os.path.abspath(found) if found else None


class Wrk:
    """A load of the same requests for any server on 127.0.0.1.

    Args:
        program: The path of wrk.
        requests: What to send, none of it HEAD: wrk waits for the body that such an answer has not.
        folder: Where they are written to.
    """

    def __init__(self, program: str, requests: Iterable[HttpRequest], folder: str) -> None:
        self._program = program
        self._folder = folder
        self._requests = os.path.join(folder, "requests")
        write_raw(self._requests, requests)

    def run(self, port: int, connections: int, seconds: float, first: int = 0) -> dict[str, Any]:
        """Load the server for *seconds*, with one request in flight for each connection; blocks this greenlet.

        Args:
            port: Where it listens.
            connections: How many.
            seconds: From the first answer on. wrk ends up to 0.1 s late, and counts that time, too.
            first: Which request to begin with.

        Returns:
            The report of ``varied.lua``.

        Raises:
            RuntimeError: wrk failed; the message has what it said.
        """
        lines: list[str] = []
        answered = Event()

        def on_line(line: str) -> None:
            lines.append(line)
            if line == "answered":
                answered.set()

        duration = math.ceil(seconds) + _GRACE
        options = ["-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "10s", "-s", str(SCRIPT)]
        told = [self._requests, str(first), str(connections)]
        command = [self._program, *options, f"http://127.0.0.1:{port}/", "--", *told]
        process = ChildProcess(command, cwd=self._folder, on_line=on_line, on_end=answered.set)
        try:
            answered.wait(_GRACE)
            if not process.wait(seconds):
                # It then reports, as at the end of its time. That is in whole seconds.
                process.send_signal(signal.SIGINT)
                process.wait(_GRACE)
        finally:
            process.kill()
        if not lines or not lines[-1].startswith("{"):
            raise RuntimeError(f"wrk failed with status {process.returncode}: {' / '.join(lines)}")
        report: dict[str, Any] = json.loads(lines[-1])
        return report
