"""Chunked request bodies: RFC 9112, section 7.1, with a bound on everything that is not body."""

from __future__ import annotations

import re

from ...errors import RemoteProtocolError
from .limits import Limits

__all__ = ["ChunkReader"]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Of digits, more than any limit needs, and few enough that int() is cheap. No white space behind the size where no
# extension follows: nobody sends it, and what reads it differently reads another body.
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|"
    rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"))?)*)' % (_TOKEN, _TOKEN)
)

# A size with the extensions of its chunk, which mean nothing to anybody known.
_MAX_SIZE_LINE = 1024


class ChunkReader:
    """Reads one chunked body.

    It keeps no bytes: those that it has not consumed have to come again, with more behind them.

    Attributes:
        complete: The empty line behind the trailers was read.
    """

    __slots__ = ("_extensions", "_in_trailers", "_left", "_limits", "_read", "_scanned", "complete")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.complete = False
        # Of the chunk and the CRLF behind it, still to come.
        self._left = 0
        # Of the body, and of what extensions took.
        self._read = 0
        self._extensions = 0
        self._in_trailers = False
        # Of what is not consumed, those that have been looked at for the end of the trailers.
        self._scanned = 0

    def read(self, data: bytes | bytearray, at: int, pieces: list[bytes]) -> tuple[int, bytes]:
        """Read from ``data[at]`` on, and add what belongs to the body to *pieces*.

        Returns:
            Up to where *data* is consumed, and the lines of the trailers, each with its CRLF, once they are there.

        Raises:
            RemoteProtocolError: With the status of the answer: 400, 413 or 431.
        """
        size = len(data)
        while not self._in_trailers:
            if self._left > 2:
                stop = min(size, at + self._left - 2)
                if stop > at:
                    pieces.append(bytes(data[at:stop]))
                    self._left -= stop - at
                    at = stop
                if self._left > 2:
                    return at, b""
            if self._left:
                if size - at < 2:
                    if size - at == 1 and data[at] != 0x0D:
                        raise RemoteProtocolError("no CRLF follows a chunk")
                    return at, b""
                if data[at : at + 2] != b"\r\n":
                    raise RemoteProtocolError("no CRLF follows a chunk")
                at += 2
                self._left = 0
            end = data.find(b"\r\n", at, at + _MAX_SIZE_LINE + 2)
            if end < 0:
                if size - at >= _MAX_SIZE_LINE + 2 or data.find(b"\n", at) >= 0:
                    raise RemoteProtocolError("a chunk begins with a line that is too long, or has no CRLF")
                return at, b""
            self._begin(bytes(data[at:end]))
            at = end + 2
        return self._read_trailers(data, at)

    def _begin(self, line: bytes) -> None:
        found = _SIZE_LINE.fullmatch(line)
        if found is None:
            raise RemoteProtocolError("a chunk begins with a line that is not a chunk size")
        length = int(found[1], 16)
        self._extensions += len(found[2])
        if self._extensions > self._limits.buffer_size:
            raise RemoteProtocolError(f"chunk extensions are over {self._limits.buffer_size} bytes")
        if not length:
            self._in_trailers = True
            return
        self._read += length
        if self._read > self._limits.body_size:
            raise RemoteProtocolError(f"the body is over {self._limits.body_size} bytes", status=413)
        self._left = length + 2

    def _read_trailers(self, data: bytes | bytearray, at: int) -> tuple[int, bytes]:
        if data.startswith(b"\r\n", at):
            self.complete = True
            return at + 2, b""
        limit = at + self._limits.buffer_size
        end = data.find(b"\r\n\r\n", at + max(0, self._scanned - 3), limit)
        if end >= 0:
            self.complete = True
            return end + 4, bytes(data[at : end + 2])
        if len(data) >= limit:
            raise RemoteProtocolError(f"the trailers are over {self._limits.buffer_size} bytes", status=431)
        self._scanned = len(data) - at
        return at, b""
