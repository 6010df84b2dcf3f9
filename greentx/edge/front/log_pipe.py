"""The log of a process that another one reads, as lines of :mod:`greentx.edge.lines`."""

from __future__ import annotations

import logging
import os

from .. import lines

__all__ = ["LogPipe"]

# What may wait for a reader that is busy; beyond it lines are dropped, and counted.
_MAX_WAITING_BYTES = 1 << 20


class LogPipe(logging.Handler):
    """Writes lines to a pipe, and never waits for who reads them: a program that computes must not stop us.

    Args:
        descriptor: Of the end to write to, which is ours alone: it is made non-blocking.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._waiting = b""
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.write(lines.log(record.levelno, record.name, self.format(record)))

    def write(self, line: str) -> None:
        """Write a line, behind those that wait."""
        if len(self._waiting) > _MAX_WAITING_BYTES:
            self._dropped += 1
        else:
            self._waiting += self._told_of_dropped() + line.encode() + b"\n"
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]
        except BlockingIOError:
            # They go out with the next one.
            pass
        except OSError:
            # Nobody reads any more.
            self._waiting = b""

    def _told_of_dropped(self) -> bytes:
        dropped, self._dropped = self._dropped, 0
        if not dropped:
            return b""
        text = f"{dropped} lines were dropped, since nobody read them"
        return lines.log(logging.WARNING, lines.LOGGER, text).encode() + b"\n"
