"""``wsgi.input`` for bodies that do not come with their request: a file that Mongrel2 wrote, or a stream.

A body that came inline is an ``io.BytesIO``. The two here are raw files, read through ``io.BufferedReader``, which has
``read``, ``readline``, ``readlines`` and iteration with all their sizes. One greenlet at a time may read.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from ..errors import RemoteProtocolError

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["WINDOW", "StoredBody", "StreamedBody", "open_stored", "open_streamed"]

#: Bytes of a streamed body that may be on their way to us. Mongrel2 sends one piece more than it was granted.
WINDOW = 524288

_BUFFER_SIZE = 65536


class StoredBody(io.RawIOBase):
    """The file of an upload, as far as it is this request's.

    Args:
        path: Where Mongrel2 stored it.
        length: The announced length; ``None`` for a chunked body. Mongrel2 appends the bytes of a pipelined next
            request to the file (probed), so it is not read beyond this.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str, length: int | None) -> None:
        super().__init__()
        self._file = -1
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        size = os.fstat(self._file).st_size
        self._left = size if length is None else min(size, length)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read from the file; blocks as files do."""
        view = memoryview(buffer)[: self._left]
        count = os.readv(self._file, [view]) if view else 0
        self._left -= count
        return count

    def readall(self) -> bytes:
        """Read what is left, at once; the default does so in pieces of 8 KiB."""
        data = bytearray(self._left)
        del data[self.readinto(data) :]
        return bytes(data)

    def close(self) -> None:
        if not self.closed and self._file >= 0:  # Python closes what could not be opened, too
            os.close(self._file)
        super().close()


class StreamedBody(io.RawIOBase):
    """A body that Mongrel2 sends on as it is read.

    Reading blocks this greenlet until something has come; Mongrel2 is granted as much as was read.

    Raises:
        ConnectionResetError: (while reading) The client went away.
    """

    def __init__(self, exchange: Exchange, length: int | None) -> None:
        super().__init__()
        self._exchange = exchange
        self._piece = memoryview(exchange.request.body)
        self._received = len(self._piece)
        self._length = length
        self._granted = 0
        self.ended = False
        """The last piece was received."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Return what is there; blocks until something is."""
        while not self._piece:
            if self.ended:
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
            if self.ended:
                return b"".join(pieces)
            self._receive()

    def _receive(self) -> None:
        wanted = self._received + WINDOW
        if wanted - self._granted >= WINDOW // 2:
            self._exchange.grant(wanted - self._granted)
            self._granted = wanted
        piece = self._exchange.next_piece()
        if piece.header("UPLOAD_STREAM") != str(self._received):
            raise RemoteProtocolError(
                f"a piece of the body at {piece.header('UPLOAD_STREAM')} came, {self._received} bytes are here"
            )
        self._received += len(piece.body)
        self._piece = memoryview(piece.body)
        self.ended = piece.header("UPLOAD_STREAM_DONE") is not None

    def discard(self, limit: int) -> bool:
        """Receive what is left of the body and drop it. Blocks this greenlet.

        Returns:
            False, and nothing more is received, where that would be more than *limit* bytes.

        Raises:
            ConnectionResetError: The client went away.
        """
        self._piece = memoryview(b"")
        last = self._received + limit
        while not self.ended:
            if (self._length or self._received) > last:
                return False
            self._receive()
        return True


def open_stored(path: str, length: int | None) -> io.BufferedReader:
    """Return the ``wsgi.input`` of a stored body; arguments and errors as :class:`StoredBody`."""
    return io.BufferedReader(StoredBody(path, length), _BUFFER_SIZE)


def open_streamed(exchange: Exchange, length: int | None) -> io.BufferedReader:
    """Return the ``wsgi.input`` of a streamed body."""
    return io.BufferedReader(StreamedBody(exchange, length), _BUFFER_SIZE)
