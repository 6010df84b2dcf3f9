"""A program that is a process of its own, and is followed by what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import gevent
from gevent import subprocess


class SpokenProgram:
    """One that runs; what it says is kept, stdout and stderr together.

    Args:
        command: Its words.
        folder: Where it runs.
        environ: Its environment.

    Attributes:
        process: It.
        lines: What was read of it so far.
    """

    def __init__(self, command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read what it says until a line has *pattern*."""
        with gevent.Timeout(60):
            for line in self.process.stdout:
                self.lines.append(line)
                found = re.search(pattern, line)
                if found:
                    return found
        raise AssertionError(f"{pattern!r} was not said: {''.join(self.lines)}")

    def finish(self) -> int:
        """Wait for its end and return its exit code."""
        self.lines += self.process.communicate(timeout=60)[0].splitlines(keepends=True)
        return int(self.process.returncode)

    def close(self) -> None:
        """Kill it, if it runs still."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
