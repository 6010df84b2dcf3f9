"""Bodies of which a handler says how much it reads (``upload.stream``), without I/O.

As Mongrel2 does it (src/upload.c, Upload_stream; probed): what has come with the head goes to the handler at once, and
the rest as far as it has granted it. Credits begin at 0 with each body. A chunked body goes out as it comes, so that
they may get below 0 by a piece; its end is a piece of its own without bytes.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["BodyStream", "Piece"]


class Piece(NamedTuple):
    """What the next message brings.

    Attributes:
        offset: So many bytes of the body came before.
        last: The body is whole with it.
    """

    offset: int
    data: bytes
    last: bool


class BodyStream:
    """One body on its way to a handler.

    Args:
        length: As announced; ``None`` for a chunked one.

    Attributes:
        credits: Bytes that the handler would read.
        offset: Bytes that were handed on.
        complete: The last piece was, too.
    """

    __slots__ = ("_ended", "_kept", "_length", "complete", "credits", "offset")

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._kept: deque[bytes] = deque()
        self._ended = False
        self.credits = 0
        self.offset = 0
        self.complete = False

    @property
    def waiting(self) -> bool:
        """True while only credits are missing for the next piece."""
        return self.credits <= 0 and bool(self._kept or self._ended) and not self.complete

    def add(self, data: bytes) -> None:
        """So much more of it has come."""
        self._kept.append(data)

    def end(self) -> None:
        """All of it has come."""
        self._ended = True

    def first(self, max_size: int) -> bytes:
        """Return what goes with the head: of a body with a length *max_size* bytes at the most of what has come."""
        if self._length is None or not self._kept:
            return b""
        return self._cut(max_size)

    def next(self) -> Piece | None:
        """Return the next piece behind the first one; ``None`` where more bytes or credits have to come before."""
        if self.credits <= 0 or self.complete:
            return None
        offset = self.offset
        if self._kept:
            data = self._kept.popleft() if self._length is None else self._cut(self.credits)
        elif self._ended and self._length is None:
            data = b""
            self.complete = True
        else:
            return None
        self.credits -= len(data)
        if self._length is None:
            self.offset += len(data)
        else:
            self.complete = self.offset == self._length
        return Piece(offset, data, self.complete)

    def _cut(self, size: int) -> bytes:
        data = self._kept.popleft()
        if len(data) > size:
            self._kept.appendleft(data[size:])
            data = data[:size]
        self.offset += len(data)
        return data
