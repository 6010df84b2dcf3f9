"""The bytes of a browser connection read as requests, without I/O.

Where the next byte belongs, and what leads on::

    HEAD ──┬─ upgrade ──> ASKED ──┬─ upgrade() ─────────────────────────────────────> OVER
           │                      └─ resume() ──────────────────────────> END
           ├─ no body, or length 0 ─────────────────────────────────────> END
           ├─ Content-Length ──> LENGTH ── the last byte ───────────────> END
           └─ chunked ──> CHUNKS ── the empty line behind the trailers ─> END

    END ──┬─ the client wants to close ──> OVER
          ├─ hold ──> HELD ── resume() ──> HEAD
          └─ else ──> HEAD

    any state ── bytes that HTTP/1.1 does not allow, or too many ──> OVER

The pieces in which the bytes come make no difference, but to where a body is cut: a head whose end is not there is
looked at in the same order as a whole one, and each byte of it once.
"""

from __future__ import annotations

import re
from enum import Enum

from ...errors import LocalProtocolError, RemoteProtocolError
from .chunks import ChunkReader
from .events import Body, End, Event, Head, Refused, Upgraded
from .heads import HeadParser, check_part_of_line, line_too_long, parse_line
from .limits import Limits
from .message_sockets import STARTS, MessageReader

__all__ = ["RequestReader"]

_BARE_LF = re.compile(rb"[^\r]\n")
# In front of a request line. RFC 9112, section 2.2, asks for one to be ignored, which some clients send behind a body.
_MAX_EMPTY_LINES = 8


class _State(Enum):
    """See the module's docstring."""

    HEAD = "in a head"
    ASKED = "behind a head that asks for an upgrade"
    LENGTH = "in a body"
    CHUNKS = "in a chunked body"
    HELD = "between two requests"
    OVER = "after the end"


_HEAD, _ASKED, _LENGTH, _CHUNKS, _HELD, _OVER = _State
_END = End()


class RequestReader:
    """Reads the requests of one connection.

    Args:
        limits: Bounds on each request; the default ones if there are none.
        hold: See below.

    Attributes:
        hold: Stop behind each request until :meth:`resume`, so that no call returns more than one :class:`End`. May be
            set at any time.
    """

    __slots__ = (
        "_chunks",
        "_data",
        "_empty_lines",
        "_ended",
        "_head_only",
        "_heads",
        "_keep_alive",
        "_left",
        "_limits",
        "_line_checked",
        "_messages",
        "_scanned",
        "_state",
        "hold",
    )

    def __init__(self, limits: Limits | None = None, *, hold: bool = False) -> None:
        self._limits = limits or Limits()
        self.hold = hold
        self._heads = HeadParser(self._limits)
        self._state = _HEAD
        # What came and is not consumed: an unfinished head or line of a chunk, or what comes behind a held request.
        self._data = bytearray()
        # Of an unfinished head: the bytes that have been looked at, and whether its first line has.
        self._scanned = 0
        self._line_checked = False
        # In front of it.
        self._empty_lines = 0
        # Of a body, still to come.
        self._left = 0
        self._chunks: ChunkReader | None = None
        # Once one began.
        self._messages: MessageReader | None = None
        # Of the request in hand.
        self._keep_alive = True
        self._head_only = False
        # The client sends nothing more.
        self._ended = False

    def __repr__(self) -> str:
        return f"<RequestReader {self._state.value}, {len(self._data)} bytes kept>"

    @property
    def held(self) -> bool:
        """True while it waits for :meth:`resume`, or behind a head that asks for an upgrade for :meth:`upgrade`."""
        return self._state is _HELD or self._state is _ASKED

    @property
    def over(self) -> bool:
        """True once nothing more is read: behind what was refused, an upgrade, or the last request."""
        return self._state is _OVER

    @property
    def idle(self) -> bool:
        """True between two requests, with nothing of the next one there, and once it is over."""
        return (self._state is _HEAD or self._state is _HELD or self._state is _OVER) and not self._data

    @property
    def full(self) -> bool:
        """True while it is held and keeps as much as a head may have: :meth:`feed` has to wait for :meth:`resume`."""
        return self.held and len(self._data) >= self._limits.buffer_size

    def feed(self, data: bytes) -> list[Event]:
        """Read the next bytes. While it is held they are kept, and once it is over they are dropped.

        Raises:
            LocalProtocolError: It is :attr:`full`.
        """
        state = self._state
        if state is _OVER:
            return []
        kept = self._data
        if state is _HELD or state is _ASKED:
            if self.full:
                raise LocalProtocolError(f"{len(kept)} bytes are kept while requests are held: call resume() first")
            kept += data
            return []
        if kept:
            kept += data
            return self._advance(kept)
        # Nearly always: a head, and nothing else.
        if (
            state is _HEAD
            and data.endswith(b"\r\n\r\n")
            and data.find(b"\r\n\r\n", 0, self._limits.buffer_size) == len(data) - 4
        ):
            try:
                head = self._heads.parse(data)
            except RemoteProtocolError:
                # It may be the last request of a connection, behind which that parser reads nothing.
                self._heads = HeadParser(self._limits)
                return self._advance(data)  # which says what is wrong, or that it is no head
            events: list[Event] = []
            self._empty_lines = 0
            self._begin(head, events)
            return events
        return self._advance(data)

    def eof(self) -> list[Event]:
        """The client has sent its last byte. It may still read answers, so requests that are whole are not affected."""
        self._ended = True
        return [] if self._state is _OVER or self.held else self._advance(self._data)

    def resume(self) -> list[Event]:
        """Go on behind a request that was held, or with one that is not upgraded, and read what was kept.

        Raises:
            LocalProtocolError: It is not :attr:`held`.
        """
        events: list[Event] = []
        if self._state is _ASKED:
            self._end(events)
        elif self._state is _HELD:
            self._state = _HEAD
        else:
            raise LocalProtocolError(f"there is nothing to resume {self._state.value}")
        return events + self._advance(self._data) if self._state is _HEAD else events

    def upgrade(self) -> list[Event]:
        """End HTTP behind a head that asks for it; the event has what came behind it.

        Raises:
            LocalProtocolError: There is no such head.
        """
        if self._state is not _ASKED:
            raise LocalProtocolError(f"there is nothing to upgrade {self._state.value}")
        rest = bytes(self._data)
        self._finish()
        return [Upgraded(rest)]

    def _advance(self, data: bytes | bytearray) -> list[Event]:
        """Read *data*, which is what was kept, or comes while nothing is; keep what is not consumed."""
        events: list[Event] = []
        try:
            at = self._read(data, events)
            if self._ended and not self.held and self._state is not _OVER:
                if self._state is not _HEAD or at < len(data):
                    raise RemoteProtocolError(f"the client sent its last byte {self._state.value}")
                self._finish()
        except RemoteProtocolError as error:
            self._finish()
            events.append(Refused(error.status, str(error), self._head_only))
            return events
        if self._state is _OVER:
            self._data.clear()
        elif data is self._data:
            del data[:at]
        elif at < len(data):
            self._data += data[at:]
        return events

    def _read(self, data: bytes | bytearray, events: list[Event]) -> int:
        """Go through *data*; return how much of it is consumed."""
        at = 0
        size = len(data)
        while at < size:
            state = self._state
            if state is _HEAD:
                at = self._read_head(data, at, events)
                # Behind it the next byte belongs to something else, unless it is not whole.
                if self._scanned:
                    break
            elif state is _LENGTH:
                stop = min(size, at + self._left)
                events.append(Body(bytes(data[at:stop])))
                self._left -= stop - at
                at = stop
                if not self._left:
                    self._end(events)
            elif state is _CHUNKS:
                at = self._read_chunks(data, at, events)
                if self._state is _CHUNKS:
                    break
            else:
                break
        return at

    def _read_head(self, data: bytes | bytearray, at: int, events: list[Event]) -> int:
        """Read a head; if it is not whole, return where it begins, and note how much of it was looked at."""
        while data.startswith(b"\r\n", at):
            at += 2
            self._scanned = 0
            self._empty_lines += 1
            if self._empty_lines > _MAX_EMPTY_LINES:
                raise RemoteProtocolError("empty lines come in place of a request")
        if data[at : at + 1] in STARTS:
            return self._read_message(data, at, events)
        end = data.find(b"\r\n\r\n", at + max(0, self._scanned - 3), at + self._limits.buffer_size)
        if end < 0:
            self._check_beginning(data, at)
            self._scanned = len(data) - at
            return at
        end += 4
        self._scanned = self._empty_lines = 0
        self._line_checked = False
        self._head_only = data.startswith(b"HEAD ", at)
        self._begin(self._heads.parse(bytes(data[at:end])), events)
        return end

    def _begin(self, head: Head, events: list[Event]) -> None:
        """Such a head was read."""
        events.append(head)
        self._keep_alive = head.keep_alive
        if head.upgrade:
            self._state = _ASKED
        elif head.content_length:
            self._head_only = head.method == b"HEAD"
            self._left = head.content_length
            self._state = _LENGTH
        elif head.chunked:
            self._head_only = head.method == b"HEAD"
            self._chunks = ChunkReader(self._limits)
            self._state = _CHUNKS
        else:
            self._end(events)

    def _read_message(self, data: bytes | bytearray, at: int, events: list[Event]) -> int:
        """Read what is not HTTP; return as :meth:`_read_head` does."""
        if self._messages is None:
            self._messages = MessageReader(self._limits.buffer_size)
        self._head_only = False
        at, message = self._messages.read(data, at)
        if message is None:
            self._scanned = len(data) - at
        else:
            self._scanned = self._empty_lines = 0
            events.append(message)
        return at

    def _check_beginning(self, data: bytes | bytearray, at: int) -> None:
        """Refuse a head that is not whole, if it never becomes a good one: nobody waits for its end."""
        limits = self._limits
        limit = at + limits.buffer_size
        self._head_only = data.startswith(b"HEAD ", at)
        # One byte again: whether an LF is bare is told by the byte before it.
        start = at + max(0, self._scanned - 1)
        if not self._line_checked:
            line_limit = min(limit, at + limits.line_size)
            start = data.find(b"\r\n", start, line_limit + 2)
            if start < 0:
                if len(data) >= line_limit + 2:
                    raise line_too_long(data[at:line_limit])
                check_part_of_line(data, at + max(0, self._scanned - 1), line_limit)
                return
            parse_line(bytes(data[at:start]), relaxed=limits.relaxed)
            self._line_checked = True
        if _BARE_LF.search(data, start, limit):
            raise RemoteProtocolError("a line of the head ends without CR")
        if len(data) >= limit:
            raise RemoteProtocolError(f"the head is over {limits.buffer_size} bytes", status=431)

    def _read_chunks(self, data: bytes | bytearray, at: int, events: list[Event]) -> int:
        chunks = self._chunks
        assert chunks is not None
        pieces: list[bytes] = []
        try:
            at, trailers = chunks.read(data, at, pieces)
        finally:
            if pieces:
                events.append(Body(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
        if chunks.complete:
            self._chunks = None
            if trailers:
                # Checked, and dropped: a handler's message has no place for them.
                self._heads.check_trailers(trailers + b"\r\n")
            self._end(events)
        return at

    def _end(self, events: list[Event]) -> None:
        events.append(_END)
        self._head_only = False
        if not self._keep_alive:
            self._state = _OVER
        else:
            self._state = _HELD if self.hold else _HEAD

    def _finish(self) -> None:
        self._state = _OVER
        self._chunks = None
        self._data.clear()
