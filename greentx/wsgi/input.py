"""``wsgi.input`` for bodies that Mongrel2 streams (``upload.stream``).

All others are read by :attr:`greentx.Request.body_file`. A streamed one is a raw file, read through
``io.BufferedReader``, which has ``read``, ``readline``, ``readlines`` and iteration with all their sizes. One greenlet
at a time may read.
"""

from __future__ import annotations

import io
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import RemoteProtocolError

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["WINDOW", "BrokenBody", "StreamedBody", "open_streamed"]

#: Bytes of a streamed body that may be on their way to us. Mongrel2 sends one piece more than it was granted.
WINDOW = 524288

_BUFFER_SIZE = 65536


class BrokenBody(RemoteProtocolError):
    """A piece of a streamed body is missing: what follows of it means something else."""


class StreamedBody(io.RawIOBase):
    """A body that Mongrel2 sends on as it is read.

    Reading blocks this greenlet until something has come; Mongrel2 is granted as much as was read.

    Raises:
        ConnectionResetError: (while reading) The client went away.
    """

    def __init__(self, exchange: Exchange, length: int | None) -> None:
        super().__init__()
        self._exchange = exchange
        exchange.body = self
        exchange.streams = True
        # A view: what is read in small sizes would otherwise be copied from the front again and again.
        self._piece = memoryview(exchange.request.body)
        self._received = len(self._piece)
        self._length = length
        self._granted = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Return what is there; blocks until something is."""
        while not self._piece:
            if not self._exchange.streams:
                return 0
            self._receive()
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def readall(self) -> bytes:
        """Read what is left."""
        pieces = []
        while True:
            if self._piece:
                pieces.append(bytes(self._piece))
                self._piece = memoryview(b"")
            if not self._exchange.streams:
                return b"".join(pieces)
            self._receive()

    def _receive(self, timeout: float | None = None) -> None:
        wanted = self._received + WINDOW
        # Not with each piece: a grant is a message of its own.
        if wanted - self._granted >= WINDOW // 2:
            self._exchange.grant(wanted - self._granted)
            self._granted = wanted
        piece = self._exchange.next_piece(timeout)
        # Another process of the same entry may have pulled one in between.
        if piece.header("UPLOAD_STREAM") != str(self._received):
            raise BrokenBody(
                f"a piece of the body at {piece.header('UPLOAD_STREAM')} came, {self._received} bytes are here"
            )
        self._received += len(piece.body)
        self._piece = memoryview(piece.body)
        if piece.header("UPLOAD_STREAM_DONE") is not None:
            self._exchange.streams = False

    def discard(self, limit: int, seconds: float, idle_seconds: float) -> None:
        """Receive what is left of the body and drop it. Blocks this greenlet.

        It gives up behind *limit* bytes, after *seconds*, or where nothing came for *idle_seconds*.

        Raises:
            ConnectionResetError: The client went away.
            BrokenBody: A piece is missing.
        """
        self._piece = memoryview(b"")
        last = self._received + limit
        deadline = monotonic() + seconds
        try:
            while self._exchange.streams and self._received < last:
                # Both bounds: a client that sends a byte a second would keep a greenlet for days.
                left = deadline - monotonic()
                if left <= 0:
                    return
                self._receive(min(left, idle_seconds))
                self._piece = memoryview(b"")
        except TimeoutError:
            return

    @property
    def left(self) -> int | None:
        """How many bytes Mongrel2 has not been granted yet; ``None`` where that is not known."""
        return None if self._length is None else max(0, self._length - self._granted)


def open_streamed(exchange: Exchange, length: int | None) -> io.BufferedReader:
    """Return the ``wsgi.input`` of a streamed body."""
    return io.BufferedReader(StreamedBody(exchange, length), _BUFFER_SIZE)
