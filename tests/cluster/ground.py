"""Starts all processes of a cluster, so that a test may start some in the middle which outlive it.

As a program it obeys lines of JSON, and ends, with all that it has started, with its standard input. :class:`Ground` is
what others have of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
import gevent.subprocess
from gevent.fileobject import FileObject


class Child:
    """A process, its standard input and output.

    Attributes:
        pid: It.
    """

    def __init__(self, ground: Ground, pid: int, stdin: Any, stdout: Any) -> None:
        self.pid = pid
        self._ground = ground
        self._stdin = stdin
        self._stdout = stdout

    def write(self, line: str) -> None:
        """Write a line to its standard input."""
        self._stdin.write(f"{line}\n".encode())
        self._stdin.flush()

    def readline(self, timeout: float) -> str | None:
        """Return the next line of its output, ``""`` at its end, ``None`` after *timeout* seconds."""
        with gevent.Timeout(timeout, False):
            return str(self._stdout.readline().decode())
        return None

    def status(self) -> int | None:
        """Return its exit status; ``None`` while it runs."""
        status: int | None = self._ground.ask("status", pid=self.pid)
        return status

    def kill(self) -> None:
        """End it at once, and wait for that."""
        self._ground.ask("kill", pid=self.pid)
        for file in (self._stdin, self._stdout):
            file.close()


class Ground:
    """The process that starts the others.

    Args:
        folder: For its pipes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._popen = gevent.subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str, **options: Any) -> Any:
        """Have it obey; return its answer. Raises ``OSError`` with what it says."""
        self._popen.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self._popen.stdin.flush()
        with gevent.Timeout(10, OSError(f"{command} is not obeyed")):
            answer = json.loads(self._popen.stdout.readline())
        if "error" in answer:
            raise OSError(answer["error"])
        return answer["done"]

    def start(self, command: list[str], *, log: Path, env: dict[str, str] | None = None) -> Child:
        """Start a process, in a session of its own; *env* is added to what we have, *log* gets its standard error."""
        number = next(self._numbers)
        paths = [str(self._folder / f"{number}.{name}") for name in ("stdin", "stdout")]
        for path in paths:
            os.mkfifo(path)
        # Both at once, so that none waits for the other; nobody else writes, so it ends with us.
        stdin = os.open(paths[0], os.O_RDWR)
        stdout = os.open(paths[1], os.O_RDONLY | os.O_NONBLOCK)
        try:
            pid = self.ask("start", args=command, env=env or {}, paths=[*paths, str(log)])
        except BaseException:  # raised again
            os.close(stdin)
            os.close(stdout)
            raise
        finally:
            for path in paths:
                os.unlink(path)
        return Child(self, pid, FileObject(stdin, "wb", bufsize=0), FileObject(stdout, "rb"))

    def close(self) -> None:
        """End all."""
        self._popen.stdin.close()
        with contextlib.suppress(gevent.subprocess.TimeoutExpired):
            self._popen.wait(5)
        self._popen.kill()
        self._popen.wait()
        self._popen.stdout.close()


class _Starter:
    """What the program does."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, args: list[str], env: dict[str, str], paths: list[str]) -> int:
        with open(paths[0], "rb") as stdin, open(paths[1], "wb") as stdout, open(paths[2], "ab") as log:
            child = subprocess.Popen(
                args, stdin=stdin, stdout=stdout, stderr=log, env={**os.environ, **env}, start_new_session=True
            )
        self._children[child.pid] = child
        return child.pid

    def status(self, pid: int) -> int | None:
        return self._children[pid].poll()

    def kill(self, pid: int) -> None:
        child = self._children[pid]
        # The session: what it has started itself may be stopped, and would not see its end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        child.kill()
        child.wait()

    def end(self) -> None:
        for pid in self._children:
            self.kill(pid)


def main() -> None:
    """Obey."""
    starter = _Starter()
    try:
        for line in sys.stdin:
            options = json.loads(line)
            try:
                answer: dict[str, Any] = {"done": getattr(starter, options.pop("command"))(**options)}
            except OSError as error:
                answer = {"error": str(error)}
            sys.stdout.write(f"{json.dumps(answer)}\n")
            sys.stdout.flush()
    finally:
        starter.end()


if __name__ == "__main__":
    main()
