"""Sessions of Engine.IO over polling, which are claimed for their Node with the answer that opens them.

Such a session is in the memory of the application, and its requests come over many connections; see
:mod:`greentx.relay.claims`. Engine.IO makes its id in the application, and tells it to the client in the body of the
first answer: ``0{"sid":"...","upgrades":["websocket"],...}``. So that body is looked into before it goes out. One that
is opened by a WebSocket is that WebSocket's alone, and has no need of it.

Source: Engine.IO's protocol, version 4, sections "Handshake" and "HTTP long-polling"; python-engineio compresses an
answer from 1,024 bytes on, and wraps it for JSONP, where quotes are escaped.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from urllib.parse import parse_qs

__all__ = ["claim_opened", "is_of_a_session", "opened_session", "opens_session"]

# The parameter of the query that says whose a request is.
_NAME = "sid"

# The open packet is the first one, and its id the first of its fields; in front are JSONP's call, and the length that
# version 3 writes, as text or as bytes. An application that repeats what a client sent does not begin so.
_LOOKED_INTO = 1024
_ID = re.compile(
    rb'(?:___eio\[[0-9]{1,9}\]\(")?(?:[0-9]{1,9}:|\x00[\x00-\x09]{1,9}\xff)?'
    rb'0\{\s*\\?"sid\\?"\s*:\s*\\?"([A-Za-z0-9_-]{1,256})\\?"'
)


def opens_session(query: str) -> bool:
    """Return whether a request with that query asks for a new session, over polling."""
    # Nearly all requests have none of this.
    if "EIO=" not in query:
        return False
    # An empty id is one, too: it opens nothing.
    values = parse_qs(query, keep_blank_values=True)
    return "EIO" in values and _NAME not in values and values.get("transport", ["polling"])[0] == "polling"


def is_of_a_session(query: str) -> bool:
    """Return whether a request with that query is one of Engine.IO, whatever its transport."""
    return "EIO=" in query and "EIO" in parse_qs(query)


def opened_session(body: bytes, coding: str = "") -> str | None:
    """Return the id of the session that an answer opens, ``None`` where it opens none.

    Args:
        body: Of the answer, or how it begins.
        coding: Its ``Content-Encoding``.
    """
    start = body[:_LOOKED_INTO]
    if coding in ("gzip", "x-gzip", "deflate"):
        try:
            # 32: whichever of the two it is, by its head.
            start = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, _LOOKED_INTO)
        except zlib.error:
            return None
    found = _ID.match(start)
    return None if found is None else found[1].decode()


def claim_opened(claim: Callable[[str, str], object], headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """Claim the session that an answer opens, if any.

    Args:
        claim: A Node's.
        headers: Of the answer.
        body: As for :func:`opened_session`.
    """
    codings = [value for name, value in headers if name.lower() == b"content-encoding"]
    session = opened_session(body, codings[0].decode("latin-1") if codings else "")
    if session is not None:
        claim(_NAME, session)
