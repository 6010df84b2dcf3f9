"""The access log: one line for each request, in the combined format that web servers have, with the seconds behind it.

::

    192.0.2.1 - - [01/Dec/2026:09:30:00 +0100] "GET /a HTTP/1.1" 200 143 "-" "curl/8.5" 0.000812

The bytes are those of the whole answer, and the seconds those from the moment in which the request was handed to its
handler; ``-`` is what there is none of. A request has its line when its answer is whole, or its connection has ended; a
WebSocket when it was let in, or not. Messages of JSON and XML sockets have none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .events import Head

__all__ = ["AccessLog", "format_line"]

log = logging.getLogger("greentx.edge.front")

# English in any locale.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# As Apache writes what a client could break a line with, or a terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0x100))} | {0x22: '\\"', 0x5C: "\\\\"}

# Bytes of what a client sent, each; beyond them it is cut.
_MAX_TARGET, _MAX_FIELD = 2048, 512


def format_line(
    client: str, when: time.struct_time, head: Head | None, status: int, size: int, seconds: float | None
) -> str:
    """Return the line of one request, without its end; only printable ASCII.

    Args:
        client: Its address.
        when: In local time.
        head: ``None`` where it could not be read.
        status: Of the answer; 0 where there is none.
        size: Its bytes.
        seconds: ``None`` where no handler had it.
    """
    line = referer = agent = "-"
    if head is not None:
        target = _shown(head.target, _MAX_TARGET)
        line = f"{_shown(head.method, _MAX_FIELD)} {target} {_shown(head.version, _MAX_FIELD)}"
        referer, agent = _field(head, b"referer"), _field(head, b"user-agent")
    month = _MONTHS[when.tm_mon - 1]
    zone = time.strftime("%z", when)
    moment = f"{when.tm_mday:02}/{month}/{when.tm_year}:{when.tm_hour:02}:{when.tm_min:02}:{when.tm_sec:02} {zone}"
    took = "-" if seconds is None else f"{seconds:.6f}"
    return f'{client} - - [{moment}] "{line}" {status or "-"} {size or "-"} "{referer}" "{agent}" {took}'


class AccessLog:
    """Writes the lines.

    Args:
        write: Called with each one, without its end; must not block for long. While it fails lines are lost, which is
            logged once.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._failed = False

    def add(self, client: str, head: Head | None, status: int, size: int, seconds: float | None) -> None:
        """Write the line of one request; see :func:`format_line`."""
        try:
            self._write(format_line(client, time.localtime(), head, status, size, seconds))
        except Exception as error:  # noqa: BLE001 - it is logged, and the answers go on
            if not self._failed:
                log.error("lines of the access log are lost: %r", error)
            self._failed = True
        else:
            self._failed = False


def _field(head: Head, name: bytes) -> str:
    return next((_shown(value, _MAX_FIELD) for found, value in head.headers if found == name), "-")


def _shown(data: bytes, most: int) -> str:
    text = data[:most].decode("latin-1").translate(_ESCAPES)
    return text if len(data) <= most else f"{text}..."
