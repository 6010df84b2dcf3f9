"""What the process of an embedded front end writes: which of it is logged where, and why a start failed."""

from __future__ import annotations

import errno
import logging

from ..errors import BindError, FrontEndError
from . import lines
from .output import Output, Phase

__all__ = ["EmbeddedOutput"]

_NAME = "the embedded front end"


class EmbeddedOutput(Output):
    """The lines of one process.

    Attributes:
        ready: It said of this start that it serves.
        place: The numeric address and port that it is to listen on, as its errors name it.
    """

    def __init__(self) -> None:
        super().__init__(_NAME, logging.getLogger(lines.LOGGER))
        self.ready = False
        self.place: str | None = None
        self._failure: lines.Line | None = None

    def begin(self) -> None:
        super().begin()
        self.ready = False
        self._failure = None

    def line(self, line: str) -> None:
        """Log one line, or remember what it says."""
        parts = lines.parse(line)
        if parts is None:
            super().line(line)
        elif parts[0] == "log":
            _, level, name, text = parts
            self._keep_and_log(int(level or 0), str(name), str(text))
        elif parts[0] == "ready":
            self.ready = True
        else:
            self._failure = parts

    def _keep_and_log(self, level: int, name: str, text: str) -> None:
        self.lines.append(text)
        # No other logger of ours is a program's to write to.
        logger = logging.getLogger(name if name.startswith(f"{lines.LOGGER}.") else lines.LOGGER)
        logger.log(level if self.phase is Phase.RUNNING else logging.DEBUG, "%s", text)

    def read(self, line: str) -> tuple[int, str]:
        """Return the level of a line that is not of its log: a traceback, or an error of the interpreter."""
        return logging.ERROR, line

    def start_failure(self, address: str, status: int | None) -> Exception:
        if self._failure is None:
            return FrontEndError(f"{_NAME} ended with status {status} while it started{self.said()}")
        _, text, where, number = self._failure
        if where is None:
            return FrontEndError(f"{_NAME} cannot start: {text}")
        if number == errno.EACCES and not str(where).startswith("unix:"):
            text = f"{where} cannot be bound: a port below 1024 needs root or CAP_NET_BIND_SERVICE"
        # Where it listens has a name here, and a number there.
        if where == self.place:
            text, where = str(text).replace(str(where), address, 1), address
        return BindError(str(text), address=str(where), errno=None if number is None else int(number))

    def said(self) -> str:
        # The last line of a traceback is what it is about.
        return f"; it said: {self.lines[-1]}" if self.lines else ""
