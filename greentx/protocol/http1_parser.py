"""HTTP/1.1 responses read back: by a client that wants them, and by a handler's outbox that only follows them.

One state machine reads a response in pieces of any size. Its states and what leads on::

    HEAD ──┬─ 1xx but 101 ──> HEAD
           ├─ HEAD request, 101, 204, 304, length 0 ──────────────────────────> COMPLETE
           ├─ Content-Length ──> LENGTH ── the last byte ─────────────────────> COMPLETE
           ├─ chunked ──> SIZE ──┬─ n ──> CHUNK ── n bytes ──> CRLF ──> SIZE
           │                     └─ 0 ──> TRAILER ── empty line ──────────────> COMPLETE
           └─ neither ──> UNTIL_CLOSE ── close() ─────────────────────────────> COMPLETE

    any state ── bytes that HTTP/1.1 does not allow ──> FAILED

:class:`ResponseParser` keeps what it reads and raises when it fails; :class:`ResponseTracker` keeps nothing and turns
opaque. Source: RFC 9112, sections 4 to 7.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from enum import Enum

from ..errors import RemoteProtocolError
from .fields import shown
from .headers import Headers
from .http1 import has_no_body

__all__ = ["ResponseParser", "ResponseTracker", "parse_head"]

# What a response begins with: told from its first byte on, so that a handler's garbage is not collected up to max_head.
_START = b"HTTP/1."
_STATUS_LINE = re.compile(rb"(HTTP/1\.[0-9]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r?\n")
# As many good field lines as there are, those included that go on with a value (obsolete folding, which a client has to
# read: RFC 9112, section 5.2). White space around a value is stripped afterwards: a second repetition over it here
# would make a long bad line cost the square of its length.
_FIELDS = re.compile(
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r?\n(?:[ \t][\t\x20-\x7e\x80-\xff]*\r?\n)*)*"
)
# Takes lines apart that were found to be good.
_FIELD = re.compile(r"([^:\n]+):([^\n]*(?:\n[ \t][^\n]*)*)\n")
_HEAD_END = re.compile(rb"\n\r?\n")
_LINE_END = re.compile(rb"\n")
# The tracker's, of which a match is all it needs; what they let pass that HTTP does not is the client's to judge.
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})[ \r\n]")
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding)[ \t]*:([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)", re.IGNORECASE)
# Nineteen digits hold any 63-bit length, and keep int() away from digits by the thousand.
_LENGTH = re.compile(r"[0-9]{1,19}")
# Unlike the lines of a head, these may not end with a bare LF: RFC 9112, section 2.2 speaks of start line and fields.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")


class _State(Enum):
    """Where in a response the next byte belongs; see the module's docstring."""

    HEAD = "in the head"
    LENGTH = "in the body"
    UNTIL_CLOSE = "in a body that ends with the connection"
    SIZE = "in a chunk size"
    CHUNK = "in a chunk"
    CRLF = "after a chunk"
    TRAILER = "in the trailers"
    COMPLETE = "after the end"
    FAILED = "after an error"


def parse_head(data: bytes) -> tuple[str, int, str, list[tuple[str, str]]]:
    """Parse the head of one response.

    Lines end with CRLF or LF; a value that goes on in the next line is joined with a space (RFC 9112, sections 2.2 and
    5.2, as for a client).

    Args:
        data: Everything up to the empty line, which may be there or not.

    Returns:
        The version (``"HTTP/1.1"``), the status, the reason phrase (``""`` where there is none) and the fields in their
        order: names as they were written, values as latin-1 text without white space around them.

    Raises:
        RemoteProtocolError: What is wrong, and the line it is in, counted from 1.
    """
    end = _HEAD_END.search(data)
    if end is not None and end.end() != len(data):
        raise RemoteProtocolError(f"{shown(data[end.end() :])} follows the empty line of the head")
    if end is None:
        # Its last line may have its end or not.
        return _parse_lines(data if data.endswith(b"\n") else data + b"\n")
    return _parse_lines(data[: end.start() + 1])


def _parse_lines(lines: bytes) -> tuple[str, int, str, list[tuple[str, str]]]:
    """Parse a head without its empty line."""
    # A bare LF ends a line as well (RFC 9112, section 2.2): Mongrel2 passes it on, and browsers read it.
    found = _STATUS_LINE.match(lines)
    if found is None:
        first = lines.partition(b"\n")[0]
        raise RemoteProtocolError(f"line 1 of the head: {shown(first)} is not an HTTP/1 status line")
    version, status, reason = found.groups(b"")
    return version.decode(), int(status), reason.decode("latin-1"), _parse_fields(lines, found.end(), "the head")


class _Reader(ABC):
    """The state machine. What becomes of a head, a body and its trailers is up to the subclass."""

    __slots__ = ("_buffer", "_fed", "_head_only", "_left", "_max_head", "_state")

    def __init__(self, method: str, max_head: int) -> None:
        self._head_only = method == "HEAD"
        self._max_head = max_head
        self._state = _State.HEAD
        # An unfinished head, size line or trailer part.
        self._buffer = bytearray()
        # Bytes still to come: of the body, of the chunk, of the CRLF after a chunk.
        self._left = 0
        # Bytes read before the piece in hand, for the error messages.
        self._fed = 0

    @property
    def complete(self) -> bool:
        """True once the whole response was read."""
        return self._state is _State.COMPLETE

    @property
    def until_close(self) -> bool:
        """True in a body that only the end of the connection ends."""
        return self._state is _State.UNTIL_CLOSE

    # Called for each head, body piece and trailer part: a subclass keeps them, or only what it needs of them.

    @abstractmethod
    def _on_head(self, head: bytes) -> tuple[int, list[str], list[str]]:
        """Read a whole head; return the status, the Content-Length values and the Transfer-Encoding values."""

    @abstractmethod
    def _on_body(self, data: bytes, start: int, end: int) -> None:
        """``data[start:end]`` belongs to the body."""

    @abstractmethod
    def _on_trailers(self, lines: bytes) -> None:
        """*lines* are those between the last chunk and the empty line, each with its end."""

    def _read(self, data: bytes) -> int:
        """Go through *data*; return how many of its bytes belong to this response, all of them unless it ended."""
        at = 0
        end = len(data)
        while at < end:
            state = self._state
            # The states of long bodies first: they are asked for most often.
            if state is _State.LENGTH or state is _State.CHUNK:
                stop = min(end, at + self._left)
                self._on_body(data, at, stop)
                self._left -= stop - at
                at = stop
                if not self._left:
                    if state is _State.LENGTH:
                        self._state = _State.COMPLETE
                    elif data.startswith(b"\r\n", at):
                        at += 2
                        self._state = _State.SIZE
                    else:
                        self._state = _State.CRLF
                        self._left = 2
            elif state is _State.UNTIL_CLOSE:
                self._on_body(data, at, end)
                at = end
            elif state is _State.HEAD:
                at = self._read_head(data, at)
            elif state is _State.SIZE:
                at = self._read_size(data, at)
            elif state is _State.CRLF:
                # Byte by byte, since the two may come in two pieces.
                if data[at] != (0x0D if self._left == 2 else 0x0A):
                    raise RemoteProtocolError(f"no CRLF after the chunk, at byte {self._fed + at}")
                at += 1
                self._left -= 1
                if not self._left:
                    self._state = _State.SIZE
            elif state is _State.TRAILER:
                at = self._read_trailers(data, at)
            else:
                break
        self._fed += at
        return at

    def _read_head(self, data: bytes, at: int) -> int:
        start = self._fed + at - len(self._buffer)
        # Looked at before the head is whole: what will never become one fails at its first wrong byte.
        begin = bytes(self._buffer[: len(_START)]) + data[at : at + len(_START)]
        if not _START.startswith(begin[: len(_START)]):
            raise RemoteProtocolError(f"{shown(begin)} does not begin an HTTP/1 response, at byte {start}")
        head, at = self._collect(data, at, _HEAD_END, "the head")
        if head:
            status, lengths, codings = self._on_head(head)
            # Interim answers end with their head and another one follows; 101 is final, and ends HTTP.
            if status >= 200 or status == 101:
                self._begin_body(status, lengths, codings)
        return at

    def _begin_body(self, status: int, lengths: list[str], codings: list[str]) -> None:
        """Decide how long the body is, by the rules of RFC 9112, section 6.3, in their order."""
        if self._head_only or has_no_body(status):
            self._state = _State.COMPLETE
        elif codings:
            # Where both are there somebody may be smuggling; another coding than chunked alone is not ours to undo.
            if lengths:
                raise RemoteProtocolError("the head has both Transfer-Encoding and Content-Length")
            if ",".join(codings).strip(" \t").lower() != "chunked":
                raise RemoteProtocolError(f"Transfer-Encoding {shown(codings)} is not 'chunked'")
            self._state = _State.SIZE
        elif lengths:
            # The same number more than once is one number (RFC 9110, section 8.6).
            numbers = {number.strip(" \t") for number in ",".join(lengths).split(",")}
            number = numbers.pop()
            if numbers or _LENGTH.fullmatch(number) is None:
                raise RemoteProtocolError(f"Content-Length {shown(lengths)} is not one number")
            self._left = int(number)
            self._state = _State.LENGTH if self._left else _State.COMPLETE
        else:
            self._state = _State.UNTIL_CLOSE

    def _read_size(self, data: bytes, at: int) -> int:
        # Most often all of it lies in one piece, and is right.
        found = None if self._buffer else _SIZE_LINE.match(data, at, at + self._max_head)
        if found is None:
            start = self._fed + at - len(self._buffer)
            line, at = self._collect(data, at, _LINE_END, "the chunk size line")
            if line:
                found = _SIZE_LINE.fullmatch(line)
                if found is None:
                    raise RemoteProtocolError(f"{shown(line)} is not a chunk size line, at byte {start}")
        else:
            at = found.end()
        if found is not None:
            # Fifteen hex digits at most, by the pattern: no length that Python could not hold cheaply.
            self._left = int(found[1], 16)
            if self._left:
                self._state = _State.CHUNK
            else:
                self._state = _State.TRAILER
                # With the line end before it, the empty line is found the same way after trailers and without them.
                self._buffer += b"\n"
        return at

    def _read_trailers(self, data: bytes, at: int) -> int:
        part, at = self._collect(data, at, _HEAD_END, "the trailer part")
        if part:
            self._on_trailers(part[1 : _lines_end(part)])
            self._state = _State.COMPLETE
        return at

    def _collect(self, data: bytes, at: int, terminator: re.Pattern[bytes], what: str) -> tuple[bytes, int]:
        """Read up to and with *terminator*: return what was read, ``b""`` if it has to go on, and where to go on."""
        buffer = self._buffer
        known = len(buffer)
        if not known:
            # Most often all of it lies in one piece: no detour through the buffer.
            found = terminator.search(data, at, at + self._max_head)
            if found is not None:
                return data[at : found.end()], found.end()
        buffer += data[at : at + self._max_head - known]
        if known:
            # No terminator is longer than three bytes.
            found = terminator.search(buffer, max(0, known - 2))
            if found is not None:
                whole = bytes(buffer[: found.end()])
                buffer.clear()
                return whole, at + len(whole) - known
        # Checked last: a head of exactly the limit is allowed, and nothing beyond it was put into the buffer.
        if known + len(data) - at > self._max_head:
            raise RemoteProtocolError(f"{what} is over {self._max_head} bytes")
        return b"", len(data)


class ResponseParser(_Reader):
    """Reads one response for a client, and keeps it.

    Args:
        method: What the request asked: the answer to ``"HEAD"`` has no body whatever its head says.
        max_head: Bytes that a head, a chunk size line or a trailer part may have.

    Attributes:
        version: ``"HTTP/1.1"``; ``""`` before the head.
        status: The code; ``0`` before the head. Interim answers (1xx) are skipped; 101 is final and ends HTTP.
        reason: The phrase, ``""`` where there is none.
        headers: Names in lower case; a repeated name has the list of its values.
        trailers: The fields after a chunked body, in the same form.
    """

    __slots__ = ("_error", "_pieces", "_trailing", "headers", "reason", "status", "trailers", "version")

    def __init__(self, method: str = "GET", *, max_head: int = 65536) -> None:
        super().__init__(method, max_head)
        self.version = ""
        self.status = 0
        self.reason = ""
        self.headers = Headers()
        self.trailers = Headers()
        self._pieces: list[bytes] = []
        self._trailing: list[bytes] = []
        self._error = ""

    def __repr__(self) -> str:
        return f"<ResponseParser {self._state.name} status={self.status}>"

    @property
    def body(self) -> bytes:
        """The content as far as it was read, without the framing of chunks."""
        # Joined when it is asked for, and once: joining at each piece would cost the square of their number.
        if len(self._pieces) > 1:
            self._pieces[:] = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    @property
    def trailing(self) -> bytes:
        """What came after the end: the next response on the connection, or after a 101 the new protocol."""
        return b"".join(self._trailing)

    def feed(self, data: bytes) -> bool:
        """Read the next piece, of any size.

        Returns:
            ``complete``. What is left of *data* then, and all that is fed later, goes to ``trailing``.

        Raises:
            RemoteProtocolError: What is wrong and where. The parser stays failed: each later call raises it again.
        """
        # A new exception each time: one that is raised twice collects tracebacks.
        if self._state is _State.FAILED:
            raise RemoteProtocolError(self._error)
        try:
            used = self._read(data)
        except RemoteProtocolError as error:
            self._fail(error)
            raise
        if used < len(data):
            self._trailing.append(data[used:])
        return self._state is _State.COMPLETE

    def close(self) -> None:
        """The connection has ended. That completes a body without a length; after the end it means nothing.

        Raises:
            RemoteProtocolError: The response was not whole; the message says what was being read. What was read of it
                stays readable.
        """
        state = self._state
        if state is _State.UNTIL_CLOSE or state is _State.COMPLETE:
            self._state = _State.COMPLETE
            return
        if state is not _State.FAILED:
            missing = f", {self._left} bytes before its end" if self._left else ""
            self._fail(RemoteProtocolError(f"the connection ended {state.value}{missing}, at byte {self._fed}"))
        raise RemoteProtocolError(self._error)

    def _fail(self, error: RemoteProtocolError) -> None:
        self._state = _State.FAILED
        self._error = str(error)

    def _on_head(self, head: bytes) -> tuple[int, list[str], list[str]]:
        version, status, reason, fields = _parse_lines(head[: _lines_end(head)])
        if status < 200 and status != 101:
            return status, [], []
        # Kept only now: an interim answer's would be seen in between.
        self.version = version
        self.status = status
        self.reason = reason
        self.headers = _collapse(fields)
        headers = self.headers
        return (
            status,
            headers.get_all("content-length") if "content-length" in headers else [],
            headers.get_all("transfer-encoding") if "transfer-encoding" in headers else [],
        )

    def _on_body(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _on_trailers(self, lines: bytes) -> None:
        self.trailers = _collapse(_parse_fields(lines, 0, "the trailer part"))


class ResponseTracker(_Reader):
    """Follows a response that a handler writes itself, to know when the next one may begin. Nothing of it is kept.

    It never raises: what it cannot follow makes it :attr:`opaque`. Of the head only the status line and the two fields
    that tell the length are looked at.

    Args:
        method: What the request asked: the answer to ``"HEAD"`` ends with its head.

    Attributes:
        status: The code of the last head read, ``0`` before it.
        excess: How many bytes came after the end of the response.
    """

    __slots__ = ("excess", "status")

    def __init__(self, method: str = "GET", *, max_head: int = 65536) -> None:
        super().__init__(method, max_head)
        self.status = 0
        self.excess = 0

    def __repr__(self) -> str:
        return f"<ResponseTracker {self._state.name} status={self.status}>"

    @property
    def opaque(self) -> bool:
        """True once what was written is not an HTTP/1 response, or one whose end cannot be known."""
        return self._state is _State.FAILED

    def feed(self, data: bytes) -> bool:
        """Follow the next piece, of any size.

        Returns:
            ``complete``. A response that is ``until_close`` or ``opaque`` never is: only closing the connection ends
            it.
        """
        if self._state is _State.FAILED:
            return False
        try:
            self.excess += len(data) - self._read(data)
        # A handler may write another protocol than HTTP, on purpose: that is not an error here.
        except RemoteProtocolError:
            self._state = _State.FAILED
        return self._state is _State.COMPLETE

    def _on_head(self, head: bytes) -> tuple[int, list[str], list[str]]:
        found = _STATUS.match(head)
        if found is None:
            raise RemoteProtocolError(f"{shown(head)} does not begin with an HTTP/1 status line")
        self.status = int(found[1])
        lengths: list[str] = []
        codings: list[str] = []
        # The length of the name tells which of the two it is, without making it lower-case.
        for name, value in _FRAMING.findall(head):
            # A value may go on in the next line.
            text = b" ".join(value.split()).decode("latin-1") if b"\n" in value else value.decode("latin-1")
            (lengths if len(name) == len("content-length") else codings).append(text)
        return self.status, lengths, codings

    def _on_body(self, data: bytes, start: int, end: int) -> None:
        """A body is only counted, which the state machine did."""

    def _on_trailers(self, lines: bytes) -> None:
        """Trailers mean nothing to the framing."""


def _lines_end(part: bytes) -> int:
    """Return where the empty line begins that ends *part*."""
    return len(part) - (2 if part.endswith(b"\r\n") else 1)


def _parse_fields(lines: bytes, at: int, where: str) -> list[tuple[str, str]]:
    """Parse the field lines from ``lines[at]`` on; *where* is for the error message."""
    # Checked in one pass and taken apart in another: half the time of doing both line by line.
    found = _FIELDS.match(lines, at)
    assert found is not None  # it may match nothing
    bad = found.end()
    if bad != len(lines):
        number = lines.count(b"\n", 0, bad) + 1
        line = lines[bad:].partition(b"\n")[0].removesuffix(b"\r")
        raise RemoteProtocolError(f"line {number} of {where}: {shown(line)} is not a header field")
    return [
        (name, _unfold(value) if "\n" in value else value.strip(" \t\r"))
        for name, value in _FIELD.findall(lines[at:].decode("latin-1"))
    ]


def _unfold(value: str) -> str:
    """Join the lines of a value that goes on."""
    return " ".join([part for part in (line.strip(" \t\r") for line in value.split("\n")) if part])


def _collapse(fields: list[tuple[str, str]]) -> Headers:
    """Make a map of fields: names in lower case, a list where a name is repeated."""
    headers = Headers([(name.lower(), value) for name, value in fields])
    if len(headers) == len(fields):
        return headers
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)
    return Headers({name: found if len(found) > 1 else found[0] for name, found in values.items()})
