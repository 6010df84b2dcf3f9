"""What a ``mongrel2`` process writes: which of it is logged at which level, and what it says of a failed start.

Facts that are marked "probed" were seen on Debian's 1.12.2.
"""

from __future__ import annotations

import errno
import logging
import os
import re

from ..errors import BindError, Mongrel2Error
from .output import Output

__all__ = ["Mongrel2Output"]

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


class Mongrel2Output(Output):
    """The lines of a ``mongrel2``."""

    def __init__(self) -> None:
        super().__init__("mongrel2", logging.getLogger("greentx.edge.mongrel2"))

    def read(self, line: str) -> tuple[int, str]:
        """Return the level of a line, and what it says."""
        match = _LINE.fullmatch(line)
        if match is None:
            # Not of its log: an assertion of a library, or an error of the loader.
            return logging.WARNING, line
        place = match[2].removesuffix(": errno: None")
        level = logging.DEBUG if match[3].startswith(_ORDINARY) else _LEVELS.get(match[1], logging.WARNING)
        return level, f"{match[3]} ({place})"

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
