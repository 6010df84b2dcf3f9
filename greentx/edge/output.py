"""What a ``mongrel2`` process writes: which of it is logged at which level, and what it says of a failed start.

Facts that are marked "probed" were seen on Debian's 1.12.2.
"""

from __future__ import annotations

import collections
import errno
import logging
import os
import re
from enum import Enum

from ..errors import BindError, Mongrel2Error

__all__ = ["Output", "Phase"]

# The module that the process belongs to, not this one: the name is a contract.
logger = logging.getLogger("greentx.edge.mongrel2")

_LINE = re.compile(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT \[(\w+)\] \((.*?)\) (.*)")
_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
# Logged as errors in the course of any day: the first start in a folder; a browser that opened a connection ahead
# and did not use it, or went away while it was written to, or while it uploaded; a WebSocket that went away within a
# frame, or whose frames break the protocol, which is a fault of its client.
_ORDINARY = (
    "Failed to open PID file",
    "No handler to notify",
    "Write error when sending all",
    "Error delivering to MSG listener",
    "Closed while reading from IOBuf",
    "Failed to upload file",
    "Socket closed during IOBuf_read_all",
    "Client closed the connection during websocket packet",
    "Error receiving websocket packet header",
    "Too long control packet",
    "Received unmasked WS packet",
    "Received fragmented control packet",
    "Received spurious continuation message",
    "Received websocket data packet in middle of fragmented message",
    # It has one certificate for all names.
    "Failed to find cert for",
    "ssl_close_notify failed",
)
_BIND_FAILED = "announce on TCP port"
_SPEC_BIND_FAILED = "Failed to bind send socket trying again for: "
# Mongrel2 without the right to a port asks this helper, then gives up.
_NOT_PERMITTED = "authbind"

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
    """The lines of one process.

    Attributes:
        phase: Set by the owner of the process.
        lines: The last hundred of this start.
    """

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.lines: collections.deque[str] = collections.deque(maxlen=_MAX_LINES)

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
        match = _LINE.fullmatch(line)
        if match is None:
            # Not of its log: an assertion of a library, or an error of the loader.
            level, text, place = logging.WARNING, line, ""
        else:
            level, text = _LEVELS.get(match[1], logging.WARNING), match[3]
            place = match[2].removesuffix(": errno: None")
            if text.startswith(_ORDINARY):
                level = logging.DEBUG
        if self.phase is not Phase.RUNNING:
            level = logging.DEBUG
        logger.log(level, "%s%s", text, f" ({place})" if place else "")

    def ended(self, pid: int | None, status: int | None) -> None:
        """The process has ended; that is an error where nobody asked for it."""
        if self.phase is Phase.RUNNING:
            logger.error("mongrel2 (pid %s) ended by itself with status %s%s", pid, status, self.said())

    def refused_spec(self) -> str | None:
        """Return the endpoint that it cannot bind; ``None`` where it said no such thing. It goes on trying (probed)."""
        for line in self.lines:
            if _SPEC_BIND_FAILED in line:
                return line.rpartition(_SPEC_BIND_FAILED)[2]
        return None

    def start_failure(self, address: str, status: int | None) -> Exception:
        """Return why it ended while it started.

        Args:
            address: Where it was to listen, for the message.
            status: Its exit status.
        """
        # Mongrel2 has one exit status for all failures, and says why in its log only (probed).
        text = "\n".join(self.lines)
        if _BIND_FAILED not in text:
            return Mongrel2Error(f"mongrel2 ended with status {status} while it started{self.said()}")
        for code in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            if os.strerror(code) in text:
                reason = os.strerror(code)
                break
        else:
            code, reason = errno.EACCES, "a port below 1024 needs root, CAP_NET_BIND_SERVICE or authbind"
            if _NOT_PERMITTED not in text:
                return BindError(f"{address} cannot be bound{self.said()}", address=address)
        return BindError(f"{address} cannot be bound: {reason}", address=address, errno=code)

    def said(self) -> str:
        """Its last errors, as the end of a message; those of any day would mislead."""
        found = [match for match in map(_LINE.fullmatch, self.lines) if match]
        errors = [match[3] for match in found if match[1] != "INFO" and not match[3].startswith(_ORDINARY)]
        return f"; it said: {'; '.join(errors[-5:])}" if errors else ""
