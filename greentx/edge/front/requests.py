"""The bytes of a browser connection read as requests, without I/O.

Where the next byte belongs, and what leads on::

    HEAD ──┬─ upgrade ──> ASKED ──┬─ upgrade() ─────────────────────────────────────> OVER
           │                      └─ resume() ──────────────────────────> END
           ├─ no body, length 0 ────────────────────────────────────────> END
           ├─ Content-Length ──> LENGTH ── the last byte ───────────────> END
           └─ chunked ──> CHUNKS ── the empty line behind the trailers ─> END

    END ──┬─ not keep_alive ──> OVER
          ├─ hold ──> HELD ── resume() ──> HEAD
          └─ else ──> HEAD

    any state ── what HTTP/1.1 does not allow, or a limit ──> OVER

The pieces in which the bytes come make no difference but to where a body is cut.
"""

from __future__ import annotations

import re
from enum import Enum

from ...errors import LocalProtocolError, RemoteProtocolError
from .chunks import ChunkReader
from .events import Body, End, Event, Refused, Upgraded
from .heads import HeadParser, parse_line
from .limits import Limits

__all__ = ["RequestReader"]

_BARE_LF = re.compile(rb"(?<!\r)\n")
# What no request line has in it.
_UNREADABLE = re.compile(rb"[^\x20-\x7e\r]|\r[^\n]")
# CRLFs in front of a request line. RFC 9112, section 2.2, asks for one to be ignored.
_MAX_EMPTY_LINES = 8


class _State(Enum):
    """See the module's docstring."""

    HEAD = "in a head"
    ASKED = "behind a head that asks for an upgrade"
    LENGTH = "in a body"
    CHUNKS = "in a chunked body"
    HELD = "between two requests"
    OVER = "after the end"


class RequestReader:
    """Reads the requests of one connection.

    Attributes:
        hold: Stop behind each request until :meth:`resume`: no call returns more than one :class:`End`. May be set at
            any time.
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
        "_scanned",
        "_state",
        "hold",
    )

    def __init__(self, limits: Limits | None = None, *, hold: bool = False) -> None:
        self._limits = limits or Limits()
        self.hold = hold
        self._heads = HeadParser(self._limits)
        self._state = _State.HEAD
        # What came and is not consumed.
        self._data = bytearray()
        # Of that, what was looked at for the end of a head.
        self._scanned = 0
        self._empty_lines = 0
        # Of a body, still to come.
        self._left = 0
        self._chunks: ChunkReader | None = None
        self._keep_alive = True
        self._head_only = False
        # The client sends nothing more.
        self._ended = False

    def __repr__(self) -> str:
        return f"<RequestReader {self._state.value}, {len(self._data)} bytes kept>"

    @property
    def held(self) -> bool:
        """True while it waits for :meth:`resume`, or for :meth:`upgrade`."""
        return self._state is _State.HELD or self._state is _State.ASKED

    @property
    def over(self) -> bool:
        """True once nothing more is read: refused, upgraded, or behind the last request of the connection."""
        return self._state is _State.OVER

    @property
    def idle(self) -> bool:
        """True between two requests, with no byte of the next one there."""
        return (self._state is _State.HEAD or self._state is _State.HELD) and not self._data

    @property
    def full(self) -> bool:
        """True while it is held and keeps as much as a head may have: do not feed it more before :meth:`resume`."""
        return self.held and len(self._data) >= self._limits.buffer_size

    def feed(self, data: bytes) -> list[Event]:
        """Read the next bytes.

        Raises:
            LocalProtocolError: It is :attr:`full`.
        """
        if self._state is _State.OVER:
            return []
        if self.held:
            if self.full:
                raise LocalProtocolError(f"{len(self._data)} bytes are kept while requests are held: resume() first")
            self._data += data
            return []
        if self._data:
            self._data += data
            data = bytes(self._data)
            self._data.clear()
        return self._advance(data)

    def eof(self) -> list[Event]:
        """The client has sent its last byte; answers may still be read by it."""
        self._ended = True
        if self.held:
            return []
        data = bytes(self._data)
        self._data.clear()
        return self._advance(data)

    def resume(self) -> list[Event]:
        """Go on behind a request that was held, or with one that asked for an upgrade in vain; read what is kept.

        Raises:
            LocalProtocolError: It is not :attr:`held`.
        """
        if not self.held:
            raise LocalProtocolError(f"nothing is held {self._state.value}")
        events: list[Event] = []
        if self._state is _State.ASKED:
            self._end(events)
        else:
            self._state = _State.HEAD
        if self.held or self._state is _State.OVER:
            return events
        data = bytes(self._data)
        self._data.clear()
        return events + self._advance(data)

    def upgrade(self) -> list[Event]:
        """End HTTP behind a head that asks for it: return what came behind it.

        Raises:
            LocalProtocolError: There is no such head.
        """
        if self._state is not _State.ASKED:
            raise LocalProtocolError(f"no head asks for an upgrade {self._state.value}")
        rest = bytes(self._data)
        self._data.clear()
        self._state = _State.OVER
        return [Upgraded(rest)]

    def _advance(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        try:
            at = self._read(data, events)
            if self._state is _State.OVER:
                return events
            if at < len(data):
                self._data += data[at:] if at else data
            if self._ended and not self.held:
                self._check_end()
        except RemoteProtocolError as error:
            self._state = _State.OVER
            self._data.clear()
            events.append(Refused(error.status, str(error), self._head_only))
        return events

    def _check_end(self) -> None:
        if self._state is not _State.HEAD or self._data:
            raise RemoteProtocolError(f"the connection was half-closed {self._state.value}")
        self._state = _State.OVER

    def _read(self, data: bytes, events: list[Event]) -> int:
        """Go through *data*; return how much of it is consumed."""
        at = 0
        size = len(data)
        while at < size:
            state = self._state
            if state is _State.HEAD:
                before = at
                at = self._read_head(data, at, events)
                if at == before or (self._state is _State.HEAD and self._scanned):
                    break
            elif state is _State.LENGTH:
                stop = min(size, at + self._left)
                events.append(Body(data[at:stop] if at or stop < size else data))
                self._left -= stop - at
                at = stop
                if not self._left:
                    self._end(events)
            elif state is _State.CHUNKS:
                at = self._read_chunks(data, at, events)
                if self._state is _State.CHUNKS:
                    break
            else:
                break
        return at

    def _read_head(self, data: bytes, at: int, events: list[Event]) -> int:
        while data.startswith(b"\r\n", at):
            at += 2
            self._scanned = 0
            self._empty_lines += 1
            if self._empty_lines > _MAX_EMPTY_LINES:
                raise RemoteProtocolError("empty lines come in place of a request")
        limit = at + self._limits.buffer_size
        end = data.find(b"\r\n\r\n", at + max(0, self._scanned - 3), limit)
        if end < 0:
            self._check_beginning(data[at:limit])
            self._scanned = len(data) - at
            return at
        self._scanned = self._empty_lines = 0
        end += 4
        self._head_only = data.startswith(b"HEAD ", at)
        head = self._heads.parse(data[at:end])
        events.append(head)
        self._keep_alive = head.keep_alive
        if head.upgrade:
            self._state = _State.ASKED
        elif head.content_length:
            self._left = head.content_length
            self._state = _State.LENGTH
        elif head.chunked:
            self._chunks = ChunkReader(self._limits)
            self._state = _State.CHUNKS
        else:
            self._end(events)
        return end

    def _check_beginning(self, head: bytes) -> None:
        """Refuse a head whose end is not there, if it cannot become a good one."""
        self._head_only = head.startswith(b"HEAD ")
        line_end = head.find(b"\r\n")
        line_size = self._limits.line_size
        line = head[:line_size] if line_end < 0 else head[: min(line_end, line_size)]
        if _UNREADABLE.search(line):
            raise RemoteProtocolError("the first line is not a request line")
        if line_end > line_size or (line_end < 0 and len(head) > line_size + 1):
            raise RemoteProtocolError(f"the first line is over {line_size} bytes", status=414)
        if line_end >= 0:
            parse_line(head[:line_end])
            if _BARE_LF.search(head, line_end):
                raise RemoteProtocolError("a line of the head ends without CR")
        if len(head) >= self._limits.buffer_size:
            raise RemoteProtocolError(f"the head is over {self._limits.buffer_size} bytes", status=431)

    def _read_chunks(self, data: bytes, at: int, events: list[Event]) -> int:
        chunks = self._chunks
        assert chunks is not None
        pieces: list[bytes] = []
        at, trailers = chunks.read(data, at, pieces)
        if pieces:
            events.append(Body(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
        if chunks.complete:
            self._chunks = None
            if trailers:
                # Checked, and dropped: a message to a handler has no place for them.
                self._heads.parse_fields(trailers + b"\r\n")
                self._heads.forget_fields()
            self._end(events)
        return at

    def _end(self, events: list[Event]) -> None:
        events.append(End())
        if not self._keep_alive:
            self._state = _State.OVER
        else:
            self._state = _State.HELD if self.hold else _State.HEAD
