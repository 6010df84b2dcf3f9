"""HTTP/1.1 responses as bytes: heads, whole answers, chunks, dates, and when a connection ends.

Mongrel2 passes on what a handler writes and never adds or repairs anything: status line, Content-Length, Date, the
missing body of a HEAD answer and the closing of the connection are all decided here. Reading the same bytes back is in
:mod:`greentx.protocol.http1_parser`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import TypeAlias

from ..errors import LocalProtocolError
from .cache import SmallMap

__all__ = [
    "LAST_CHUNK",
    "TEXT_TYPE",
    "HeaderFields",
    "HeaderValue",
    "build_chunk",
    "build_field",
    "build_head",
    "build_response",
    "connection_options",
    "format_date",
    "has_no_body",
    "plain_start",
    "should_close",
    "with_content_type",
]

HeaderValue: TypeAlias = "str | bytes | int | list[str] | list[bytes] | tuple[str, ...]"
"""One value, or several which become a field each. An int is written in decimal."""

HeaderFields: TypeAlias = "Mapping[str, HeaderValue] | Iterable[tuple[str | bytes, HeaderValue]]"
"""What the builders accept as headers: a mapping, or pairs in the order they are to be written."""

LAST_CHUNK = b"0\r\n\r\n"
"""What ends a chunked body, without trailers (RFC 9112, section 7.1)."""

TEXT_TYPE = "text/plain; charset=utf-8"
"""The ``Content-Type`` of text that comes with none: browsers guess another charset otherwise."""

# RFC 9110, sections 5.6.2 (token) and 5.5 (a value: no control bytes but HTAB). The names of a head are checked in one
# go, each followed by LF: a name that holds an LF itself is told by their number.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_NAME = re.compile(_TOKEN)
_NAMES = re.compile(rf"(?:{_TOKEN}\n)*")
_UNSENDABLE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_LENGTH = re.compile(r"[0-9]{1,19}")

_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE = b"Connection: keep-alive\r\n"

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# By code, phrase and version: an application has few of them.
_MAX_KNOWN_SIZE = 256
_status_lines: SmallMap[tuple[int, str | None, str], bytes] = SmallMap(1024)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def build_head(code: int, reason: str | None, headers: HeaderFields, *, version: str = "HTTP/1.1") -> bytes:
    """Build a status line, the fields and the empty line after them. Nothing is added.

    Args:
        code: 100 to 999.
        reason: The phrase after the code; ``None`` is the standard one, ``""`` where the code is not registered.
        headers: A mapping or pairs, see :data:`HeaderFields`. Text is written as latin-1.
        version: ``"HTTP/1.1"`` or ``"HTTP/1.0"``.

    Raises:
        LocalProtocolError: A code out of range; a control byte (CR, LF, NUL and the others, HTAB apart) in the phrase
            or a value; a name that is not a token; text that latin-1 cannot hold. The message names the field.

    Source: RFC 9112, sections 4 and 5; RFC 9110, section 5.
    """
    names, values, _ = _flatten(headers)
    line = _status_lines.get((code, reason, version)) or _status_line(code, reason, version)
    return b"%b%b\r\n" % (line, _encode(names, values))


def build_field(name: bytes, value: bytes) -> bytes:
    """Build the line of one field, for callers that remember lines; :func:`build_head` checks in the same way.

    Raises:
        LocalProtocolError: As :func:`build_head`.
    """
    fault = _fault_in_field(name.decode("latin-1"), value.decode("latin-1"))
    if fault:
        raise LocalProtocolError(fault)
    return b"%b: %b\r\n" % (name, value)


def build_response(
    body: bytes,
    code: int = 200,
    reason: str | None = None,
    headers: HeaderFields | None = None,
    *,
    date: bytes | None = None,
    head_only: bool = False,
    close: bool = False,
    keep_alive: bool = False,
) -> bytes:
    """Build a whole answer whose length is known.

    ``Content-Length`` is added unless the caller gave it. The answers that may not have a body (HEAD, 1xx, 204, 304)
    are built without one: what was handed in as *body* is then not sent, since a client would take it for its next
    answer (RFC 9110, section 6.4.1). 1xx and 204 lose a ``Content-Length`` or ``Transfer-Encoding`` of the caller too
    (RFC 9110, section 8.6; RFC 9112, section 6.1); 304 keeps them and gets none added.

    Args:
        body: The content, as a GET would answer it.
        code, reason, headers: As in :func:`build_head`.
        date: The value of a ``Date`` field, made by :func:`format_date` and encoded; trusted, not checked again.
            ``None`` adds none, nor is one added next to the caller's.
        head_only: The request was HEAD. Where *body* is empty the caller's ``Content-Length`` may be any number, and
            ``Transfer-Encoding`` is allowed.
        close: Say ``Connection: close``. In the caller's own ``Connection`` field "keep-alive" gives way to it.
        keep_alive: Say ``Connection: keep-alive``, which an HTTP/1.0 client that asked for it waits for (RFC 9112,
            appendix C.2.2); not together with *close*, nor with a ``Connection`` field of the
            caller.

    Raises:
        LocalProtocolError: As :func:`build_head`; a ``Content-Length`` that disagrees with *body*; a
            ``Transfer-Encoding``, which only heads and chunks built apart can keep true.
    """
    start = _status_lines.get((code, reason, "HTTP/1.1")) or _status_line(code, reason, "HTTP/1.1")
    # Of the body as handed in: the answer to HEAD says the length that the one to GET would have.
    length = len(body)
    # True where no Content-Length is to be added: here by the code, below by the caller's own fields.
    framed = has_no_body(code)
    if framed or head_only:
        body = b""
    # An interim answer says nothing about the connection, and 101 needs its own "Connection: Upgrade".
    connection = b"" if code < 200 else _CLOSE if close else _KEEP_ALIVE if keep_alive else b""
    if headers:
        names, values, lookup = _flatten(headers)
        # One search in a joined text for each of the three names, and none of it for an answer without headers.
        if "\ncontent-length\n" in lookup or "\ntransfer-encoding\n" in lookup:
            _settle_framing(names, values, length, code, head_only)
            framed = True
        if "\ndate\n" in lookup:
            date = None
        if connection and "\nconnection\n" in lookup:
            connection = b""
            # The caller may say "Upgrade" or a field's name there, which stays; only "keep-alive" would be untrue.
            if close:
                others = connection_options(_pick(names, values, "connection"))
                _drop(names, values, "connection")
                names.append("Connection")
                values.append(", ".join(["close", *(name for name in others if name not in ("close", "keep-alive"))]))
        start += _encode(names, values)
    # bytes formatting, which copies the body once; a join of parts would build a list first.
    if date is not None:
        start = b"%bDate: %b\r\n" % (start, date)
    if framed:
        return b"%b%b\r\n%b" % (start, connection, body)
    return b"%bContent-Length: %d\r\n%b\r\n%b" % (start, length, connection, body)


def plain_start(date: bytes, content_type: str | None = None) -> bytes:
    """Return what :func:`build_response` begins an answer with that is 200 and has no headers but ``Content-Type``.

    The length of the body, in decimal, an empty line (two CRLFs) and the body are to follow.

    Args:
        date: As in :func:`build_response`.
        content_type: ``None`` for an answer without.
    """
    # Kept by the caller for as long as the date is true, so it may cost something to build.
    line = b"" if content_type is None else f"Content-Type: {content_type}\r\n".encode("latin-1")
    return b"HTTP/1.1 200 OK\r\n%bDate: %b\r\nContent-Length: " % (line, date)


def with_content_type(headers: HeaderFields | None, content_type: str) -> HeaderFields:
    """Return *headers*, and ``Content-Type`` behind them unless they have one."""
    if not headers:
        return {"Content-Type": content_type}
    fields = list(headers.items() if isinstance(headers, Mapping) else headers)
    for name, _ in fields:
        # By its length first: a comparison in lower case for each field would cost more than all the rest.
        if len(name) == 12 and name.lower() in ("content-type", b"content-type"):
            return fields
    return [*fields, ("Content-Type", content_type)]


def build_chunk(data: bytes) -> bytes:
    """Build one chunk of a chunked body.

    Raises:
        LocalProtocolError: *data* is empty. An empty chunk would end the body, and an empty message would make Mongrel2
            close the connection: skip empty pieces, end with :data:`LAST_CHUNK`.

    Source: RFC 9112, section 7.1.
    """
    if not data:
        raise LocalProtocolError("an empty chunk would end the body: skip empty pieces, end with LAST_CHUNK")
    return b"%x\r\n%b\r\n" % (len(data), data)


def has_no_body(code: int) -> bool:
    """True for the codes whose answers end with their head: 1xx, 204, 304 (RFC 9112, section 6.3)."""
    return code < 200 or code == 204 or code == 304


def should_close(version: str | bytes, connection: str | bytes | list[str] | list[bytes] | None = None) -> bool:
    """Tell whether the connection ends after this exchange.

    HTTP/1.1 and later go on unless ``close`` is said, HTTP/1.0 and earlier only where ``keep-alive`` is said and
    ``close`` is not.

    Args:
        version: As in the request: ``"HTTP/1.1"``; what does not look like a version counts as an early one.
        connection: The value of the ``Connection`` field, or a list of them; ``None`` where there is none.

    Source: RFC 9112, section 9.3.
    """
    # Nearly every request of a browser says nothing, and HTTP/1.1.
    if connection is None:
        return not _persists(version)
    # "close" wins over "keep-alive", in whatever order they were said.
    options = connection_options(connection)
    return "close" in options or (not _persists(version) and "keep-alive" not in options)


def connection_options(values: str | bytes | list[str] | list[bytes]) -> list[str]:
    """Split one or several ``Connection`` values into their options, in lower case (RFC 9110, section 7.6.1)."""
    # Several fields are one, joined by commas (RFC 9110, section 5.3).
    if isinstance(values, (str, bytes)):
        text = _text(values)
    else:
        text = ",".join([_text(value) for value in values])
    return [option for option in (part.strip(" \t").lower() for part in text.split(",")) if option]


def format_date(timestamp: float) -> str:
    """Write seconds since 1970 as an IMF-fixdate, ``Sun, 06 Nov 1994 08:49:37 GMT``, in any locale; fractions are cut.

    Raises:
        LocalProtocolError: Before the year 1, after 9999, or not a number at all.

    Source: RFC 9110, section 5.6.7.
    """
    # Not fromtimestamp(), which knows a smaller range, nor strftime(), whose names of days follow the locale.
    try:
        at = _EPOCH + timedelta(seconds=timestamp // 1)
    except (OverflowError, ValueError) as error:
        raise LocalProtocolError(f"no date for the timestamp {timestamp!r}: {error}") from error
    return (
        f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} "
        f"{at.hour:02}:{at.minute:02}:{at.second:02} GMT"
    )


def _status_line(code: int, reason: str | None, version: str) -> bytes:
    """Build the first line of a head, with its CRLF, and keep a short one in :data:`_status_lines`."""
    # Checked on the way into the cache only: what is in it was right.
    if not isinstance(code, int) or not 100 <= code <= 999:
        raise LocalProtocolError(f"status code {code!r} is not a number from 100 to 999")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise LocalProtocolError(f"version {version!r} is neither 'HTTP/1.1' nor 'HTTP/1.0'")
    phrase = _PHRASES.get(code, "") if reason is None else reason
    fault = _fault_in_text(f"the reason phrase of status {code}", phrase)
    if fault:
        raise LocalProtocolError(fault)
    # The space before an empty phrase belongs to the line (RFC 9112, section 4).
    line = f"{version} {code:d} {phrase}\r\n".encode("latin-1")
    # An application may hand on a phrase that is not its own.
    return _status_lines.keep((code, reason, version), line) if len(line) <= _MAX_KNOWN_SIZE else line


def _flatten(headers: HeaderFields) -> tuple[list[str], list[str], str]:
    """Bring headers into one form and check them: names, values, and all names in lower case, each between two LFs.

    Two regular expressions over the joined texts cost less than two for each field; only when they find something is
    the field to blame searched for.
    """
    names: list[str] = []
    values: list[str] = []
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        # Exactly str, the usual case, is not even called for; subclasses may come with surprises.
        if type(name) is not str:
            name = _as_text(name, name)
        if type(value) is str:
            names.append(name)
            values.append(value)
        else:
            for item in value if isinstance(value, (list, tuple)) else (value,):
                names.append(name)
                values.append(_as_text(name, item))
    lines = "\n".join([*names, ""])
    if _NAMES.fullmatch(lines) is None or lines.count("\n") != len(names) or _UNSENDABLE.search("".join(values)):
        raise LocalProtocolError(next(filter(None, map(_fault_in_field, names, values))))
    return names, values, "\n" + lines.lower()


def _as_text(name: object, part: object) -> str:
    """A name or value that is not plainly a ``str``, as one."""
    if isinstance(part, str):
        return part
    if isinstance(part, bytes):
        return part.decode("latin-1")
    if type(part) is int:
        return str(part)
    raise LocalProtocolError(f"header {name!r}: {part!r} is a {type(part).__name__}, not str or bytes")


def _fault_in_field(name: str, value: str) -> str:
    """What keeps this field from being sent, ``""`` if nothing does."""
    if _NAME.fullmatch(name) is None:
        return f"header name {name!r} is not a token (RFC 9110, section 5.6.2)"
    return _fault_in_text(f"the value of header {name!r}", value)


def _fault_in_text(what: str, text: str) -> str:
    """What keeps this text from being sent, ``""`` if nothing does."""
    found = _UNSENDABLE.search(text)
    if found is None:
        return ""
    # latin-1 has no gaps above the control characters, so these are the two ways to fail.
    kind = "a control character" if found[0] < "\x80" else "a character that latin-1 does not have"
    return f"{what} holds {kind}, {found[0]!r} at index {found.start()}: {text[:200]!r}"


def _encode(names: list[str], values: list[str]) -> bytes:
    """Checked fields as lines, without the empty line after them."""
    return "".join([f"{name}: {value}\r\n" for name, value in zip(names, values, strict=True)]).encode("latin-1")


def _pick(names: list[str], values: list[str], wanted: str) -> list[str]:
    """The values of the fields of this lower-case name."""
    return [value for name, value in zip(names, values, strict=True) if name.lower() == wanted]


def _drop(names: list[str], values: list[str], unwanted: str) -> None:
    """Remove the fields of this lower-case name from both lists."""
    kept = [(name, value) for name, value in zip(names, values, strict=True) if name.lower() != unwanted]
    names[:] = [name for name, _ in kept]
    values[:] = [value for _, value in kept]


def _settle_framing(names: list[str], values: list[str], length: int, code: int, head_only: bool) -> None:
    """Check the caller's own Content-Length and Transfer-Encoding against a body of *length* bytes."""
    # RFC 9110, section 8.6, and RFC 9112, section 6.1: neither may be sent.
    if code < 200 or code == 204:
        _drop(names, values, "content-length")
        _drop(names, values, "transfer-encoding")
        return
    codings = _pick(names, values, "transfer-encoding")
    declared = _pick(names, values, "content-length")
    if codings and (declared or not (head_only or code == 304)):
        raise LocalProtocolError(
            f"header 'Transfer-Encoding' ({codings[0]!r}) in a response of known length: leave it out, "
            "or write the response with build_head, build_chunk and LAST_CHUNK"
        )
    if not declared:
        return
    if len(declared) > 1 or _LENGTH.fullmatch(declared[0]) is None:
        raise LocalProtocolError(f"header 'Content-Length' must be given once, as digits, not {declared!r}")
    # Sent untrue, it would make the client read the next answer as part of this one, or wait forever.
    if int(declared[0]) != length and not (code == 304 or (head_only and not length)):
        raise LocalProtocolError(f"header 'Content-Length' says {declared[0]}, the body is {length} bytes")


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _persists(version: str | bytes) -> bool:
    """True for HTTP/1.1 and later."""
    # Compared as text: "HTTP/1.1" in nearly every request; what is not a version fails the prefix.
    text = _text(version)
    return text == "HTTP/1.1" or (text.startswith("HTTP/") and text > "HTTP/1.1")
