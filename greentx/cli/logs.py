"""What ``greentx`` logs to stderr. The application's logging is its own: no other logger is touched."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import IO

__all__ = ["FORMAT", "LEVELS", "keep_logging", "log_to_stderr", "open_access_log"]

LEVELS = ("debug", "info", "warning", "error")

_NAME = "greentx"
#: As all lines are written.
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr(level: str) -> None:
    """Write what the package logs, from *level* on, once: also where the application sets up the root logger."""
    logger = logging.getLogger(_NAME)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def keep_logging() -> None:
    """Undo what ``logging.config`` did to our loggers by the way; what the application said of them stays.

    It switches off all loggers that it is not told of, and removes the handlers of those that it is. The server's lines
    would be gone without a word.
    """
    logger = logging.getLogger(_NAME)
    if not logger.handlers:
        logger.propagate = True
    for name in list(logging.root.manager.loggerDict):
        if name == _NAME or name.startswith(f"{_NAME}."):
            logging.getLogger(name).disabled = False


@contextlib.contextmanager
def open_access_log(name: str | None) -> Iterator[IO[str] | None]:
    """Open what ``--access-log`` names, to append to it: a file, or stderr where that is ``-``; ``None`` for none."""
    if name is None or name == "-":
        yield None if name is None else sys.stderr
        return
    # A line at a time, as people read access logs while they grow.
    with open(name, "a", buffering=1, encoding="utf-8") as file:
        yield file
