"""Where the body of a request goes: into its message, into a file, or to a handler in pieces.

A request whose body is not in its message is told of twice or more: first with its head, and its answer may come from
then on; and last when the body is whole. In between it may fail, and its handler is told as of any client that goes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Protocol, TypeAlias

import gevent

from .connection import BrowserConnection
from .events import DONE, START, Head
from .limits import Limits, UploadSettings
from .streams import BodyStream, Piece
from .uploads import UploadFile

__all__ = ["Exchange", "Sink", "StoredSink", "StreamedSink", "WholeSink", "sink_for"]

log = logging.getLogger("greentx.edge.front")

# As BrowserConnection.keep.
Keep: TypeAlias = Callable[[int], bool]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Exchange(Protocol):
    """The request whose body it is. Its methods block the connection's greenlet while no handler has room."""

    def hand_over(self, body: bytes) -> None:
        """Hand it on with its whole body."""

    def announce(self, body: bytes, *, streamed: bool) -> bool:
        """Hand on its head, and what there is of its body; False where no handler is there: then it has failed."""

    def hand_piece(self, piece: Piece) -> bool:
        """Hand on more of its body; returns as :meth:`announce`."""

    def conclude(self) -> bool:
        """Hand on its head again: the body is stored; returns as :meth:`announce`."""

    def fail(self, status: int, reason: str) -> None:
        """Answer this where no answer of a handler has begun, and end the connection."""


class Sink(Protocol):
    """Where the body of one request goes. Methods may block the connection's greenlet, if they do not say otherwise."""

    @property
    def announced(self) -> bool:
        """A handler was told of the request."""

    def add(self, data: bytes) -> None:
        """The next piece of the body, never empty; chunks are undone."""

    def pause(self) -> None:
        """Return when more may be read: all that has come was added."""

    def end(self) -> None:
        """It is whole."""

    def grant(self, count: int) -> None:
        """A handler reads so many bytes more. Does not block."""

    def drop(self) -> None:
        """It does not become whole. Does not block. May be called twice."""

    def close(self) -> None:
        """It does not become whole: return when nothing is left of it."""


class WholeSink:
    """The body comes in the request's message."""

    __slots__ = ("_exchange", "_keep", "_pieces", "_size")

    announced = False

    def __init__(self, exchange: Exchange, keep: Keep) -> None:
        self._exchange = exchange
        self._keep = keep
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Keep it."""
        self._size += len(data)
        if self._keep(self._size):
            self._pieces.append(data)
        else:
            self._exchange.fail(503, "too much is sent at once")

    def pause(self) -> None:
        """There is always room: a body has a bound."""

    def end(self) -> None:
        """Hand the request on."""
        body = b"".join(self._pieces)
        self.drop()
        self._exchange.hand_over(body)

    def grant(self, count: int) -> None:
        """Nothing is read by pieces."""

    def drop(self) -> None:
        """Forget it."""
        self._pieces.clear()
        self._keep(0)

    def close(self) -> None:
        """Forget it."""
        self.drop()


class StoredSink:
    """The body is stored in a file, if it is larger than *inline* bytes.

    As Mongrel2 does it (src/upload.c, Upload_file; probed), but for small chunked bodies: there each chunked one is
    stored.
    """

    __slots__ = (
        "_exchange",
        "_file",
        "_head",
        "_inline",
        "_is_dropped",
        "_keep",
        "_pieces",
        "_settings",
        "_size",
        "announced",
    )

    def __init__(self, exchange: Exchange, keep: Keep, head: Head, settings: UploadSettings, inline: int) -> None:
        self._exchange = exchange
        self._keep = keep
        self._head = head
        self._settings = settings
        self._inline = inline
        # Of a chunked body, until it is too large to be kept.
        self._pieces: list[bytes] = []
        self._size = 0
        self._file: UploadFile | None = None
        self._is_dropped = False
        self.announced = False

    def add(self, data: bytes) -> None:
        """Write it, or keep it."""
        self._size += len(data)
        if self._file is None:
            self._pieces.append(data)
            if max(self._size, self._head.content_length or 0) <= self._inline:
                if not self._keep(self._size):
                    self._exchange.fail(503, "too much is sent at once")
                return
            if not self._begin():
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._keep(0)
        if self._file is not None and not self._is_dropped:
            try:
                self._file.write(data)
            except OSError as error:
                self._fail(error)

    def pause(self) -> None:
        """Tell at once of a body that is announced to be large."""
        if self._file is None and (self._head.content_length or 0) > self._inline:
            self._begin()

    def end(self) -> None:
        """Hand the request on, for the second time where it is stored: the file is the handler's from now on."""
        file = self._file
        if file is None:
            body = b"".join(self._pieces)
            self._pieces.clear()
            self._keep(0)
            self._exchange.hand_over(body)
            return
        try:
            file.finish()
        except OSError as error:
            self._fail(error)
            return
        if not self._is_dropped:
            self._file = None
            self._head.headers.append((DONE, os.fsencode(file.name)))
            is_told = False
            try:
                is_told = self._exchange.conclude()
            finally:
                # Also where this greenlet is killed meanwhile: nobody else would delete it.
                if not is_told:
                    file.remove()

    def grant(self, count: int) -> None:
        """Nothing is read by pieces."""

    def drop(self) -> None:
        """Delete the file."""
        self._pieces.clear()
        self._keep(0)
        if not self._is_dropped:
            self._is_dropped = True
            if self._file is not None:
                gevent.spawn(self._file.remove)

    def close(self) -> None:
        """Delete the file."""
        self._is_dropped = True
        if self._file is not None:
            self._file.remove()

    def _begin(self) -> bool:
        head, settings = self._head, self._settings
        assert settings.store is not None
        try:
            self._file = file = UploadFile(settings.store, settings.mode)
        except OSError as error:
            self._fail(error)
            return False
        # Meanwhile the connection may have ended.
        if self._is_dropped:
            file.remove()
            return False
        if head.chunked:
            # In the case in which Mongrel2 knows it, and handlers with it.
            head.headers = [field for field in head.headers if field[0] != b"transfer-encoding"]
            head.headers.append((b"transfer-encoding", b"chunked"))
        head.headers.append((START, os.fsencode(file.name)))
        self.announced = True
        return self._exchange.announce(b"", streamed=False)

    def _fail(self, error: OSError) -> None:
        log.error("a body cannot be stored as %s: %s", self._settings.store, error.strerror)
        self._exchange.fail(507 if error.errno in _NO_SPACE else 500, "the body cannot be stored")


class StreamedSink:
    """The body goes to a handler in pieces, as far as it grants them; while it does not, its client is not read."""

    __slots__ = (
        "_connection",
        "_exchange",
        "_first_size",
        "_is_dropped",
        "_stream",
        "announced",
    )

    def __init__(self, exchange: Exchange, connection: BrowserConnection, head: Head, first_size: int) -> None:
        self._exchange = exchange
        self._connection = connection
        self._stream = BodyStream(None if head.chunked else head.content_length)
        # What Mongrel2 may have read with the head, so that there it is never all of the body.
        self._first_size = first_size
        self._is_dropped = False
        self.announced = False

    def add(self, data: bytes) -> None:
        """Hand on what came, as soon as it is granted."""
        self._stream.add(data)
        if self._announced():
            self._hand_on()

    def pause(self) -> None:
        """Wait for credits; tell of the request before."""
        if self._announced() and not self._stream.complete:
            self._wait_credits()

    def end(self) -> None:
        """Hand on the end."""
        self._stream.end()
        if self._announced():
            self._hand_on()

    def grant(self, count: int) -> None:
        """Count it, from the first message on."""
        if self.announced:
            self._stream.credits += count
            self._connection.moved()

    def drop(self) -> None:
        """Hand on nothing more."""
        self._is_dropped = True

    def close(self) -> None:
        """Hand on nothing more."""
        self._is_dropped = True

    def _announced(self) -> bool:
        if not self.announced:
            self.announced = True
            first = self._stream.first(self._first_size)
            return self._exchange.announce(first, streamed=True)
        return not self._is_dropped

    def _hand_on(self) -> None:
        stream = self._stream
        while not self._is_dropped:
            piece = stream.next()
            if piece is not None:
                if not self._exchange.hand_piece(piece):
                    return
            elif stream.waiting:
                self._wait_credits()
                if self._connection.outgoing.ending:
                    return
            else:
                return

    def _wait_credits(self) -> None:
        stream = self._stream
        self._connection.wait(lambda: stream.credits > 0 or self._is_dropped)


def sink_for(exchange: Exchange, connection: BrowserConnection, head: Head, limits: Limits) -> Sink | None:
    """Return where a large body goes, where large ones are served, and a chunked one, which may be; else ``None``."""
    if not head.chunked and (head.content_length or 0) <= limits.content_length:
        return None
    if limits.uploads.stream:
        return StreamedSink(exchange, connection, head, limits.buffer_size)
    return StoredSink(exchange, connection.keep, head, limits.uploads, limits.content_length)
