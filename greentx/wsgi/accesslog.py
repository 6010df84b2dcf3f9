"""Where log lines go, and the line of one request."""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from typing import Any

from gevent.pywsgi import LoggingLogAdapter

__all__ = ["NoLog", "format_line", "make_log"]


class NoLog:
    """Drops the lines that are written to it; enough of a file for ``wsgi.errors``."""

    def write(self, *args: object) -> None:
        """Drop it."""

    def writelines(self, lines: object) -> None:
        """Drop them."""

    def flush(self) -> None:
        """There is nothing to flush."""


def make_log(log: Any, level: int = logging.INFO) -> Any:
    """Return the object with ``write()`` that *log* means.

    Args:
        log: ``'default'`` is what is ``sys.stderr`` now, ``None`` nothing; a logger, or anything with ``log()`` and no
            ``write()``, is written to at *level*; anything else is used as it is.
    """
    if isinstance(log, str) and log == "default":
        return sys.stderr
    if log is None:
        return NoLog()
    # gevent asks in this order: some loggers have a write() of their own.
    if not hasattr(log, "write") and hasattr(log, "log"):
        return LoggingLogAdapter(log, level)
    return log


def format_line(client: str, request_line: str, status: str, length: int, seconds: float | None) -> str:
    """Return the line for one request, without its end, as ``gevent.pywsgi`` writes it.

    Args:
        client: The browser's address, ``""`` where it is not known.
        request_line: As the client sent it.
        status: ``"200 OK"`` or ``"200"``.
        length: Bytes sent, head included.
        seconds: From the arrival of the request until its answer was sent; ``None`` where it was not.
    """
    # Local time, without a zone: gevent's format, which tools parse.
    now = datetime.now().replace(microsecond=0)
    duration = "-" if seconds is None else f"{seconds:.6f}"
    return f'{client or "-"} - - [{now}] "{request_line}" {status.split(" ", 1)[0]} {length or "-"} {duration}'
