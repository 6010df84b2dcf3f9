"""What a front end's process writes, whichever program it is: what is kept of it, and what is logged when."""

from __future__ import annotations

import collections
import logging
from enum import Enum

__all__ = ["Output", "Phase"]

# Enough for all lines of a start; what it says later is in the log.
_MAX_LINES = 100


class Phase(Enum):
    """What the process does, which decides whether its errors are news.

    STARTING: they go into the exception of the start. RUNNING: they are logged at their own levels. ENDING: its log is
    full of errors by nature. But for RUNNING, all is DEBUG.
    """

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"


class Output:
    """The lines of one process; each kind of front end reads them in its own way, see :meth:`read`.

    Args:
        name: The program, for messages.
        logger: Where its lines go.

    Attributes:
        phase: Set by the owner of the process.
        lines: The last hundred of this start.
    """

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self.phase = Phase.STARTING
        self.lines: collections.deque[str] = collections.deque(maxlen=_MAX_LINES)
        self._name = name
        self._logger = logger

    def begin(self) -> None:
        """A process is about to be started: forget the lines of the one before."""
        self.phase = Phase.STARTING
        self.lines.clear()

    def line(self, line: str) -> None:
        """Log one line."""
        if not line:
            return
        # Kept whatever its level: why a start failed may stand in a line that is not an error.
        self.lines.append(line)
        level, text = self.read(line)
        self._logger.log(level if self.phase is Phase.RUNNING else logging.DEBUG, "%s", text)

    def read(self, line: str) -> tuple[int, str]:
        """Return the level of a line, and what it says."""
        raise NotImplementedError

    def ended(self, pid: int | None, status: int | None) -> None:
        """The process has ended; that is an error where nobody asked for it."""
        if self.phase is Phase.RUNNING:
            self._logger.error("%s (pid %s) ended by itself with status %s%s", self._name, pid, status, self.said())

    def refused_spec(self) -> str | None:
        """Return the endpoint that it cannot bind, and goes on trying to; ``None`` where it said no such thing."""
        return None

    def start_failure(self, address: str, status: int | None) -> Exception:
        """Return why it ended while it started.

        Args:
            address: Where it was to listen, for the message.
            status: Its exit status.
        """
        raise NotImplementedError

    def said(self) -> str:
        """Its last errors, as the end of a message."""
        raise NotImplementedError
