"""What the front end answers by itself, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from ...protocol.http1 import TEXT_TYPE, build_response, format_date

__all__ = ["CONTINUE", "RETRY", "build_answer"]

#: To a client that waits with its body (RFC 9110, section 15.2.1).
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: Fields of a 503: a restart of a handler lasts about as long, in seconds.
RETRY: Mapping[str, str] = {"Retry-After": "5"}


def build_answer(
    status: int,
    reason: str = "",
    *,
    timestamp: float | None = None,
    head_only: bool = False,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Build an answer behind which the connection is closed.

    Its body is a line of plain text: nothing of it is a browser to read as markup.

    Args:
        status: A code that HTTP defines.
        reason: A sentence behind the status in the body, for who looks into what went wrong.
        timestamp: Of the ``Date`` field, in seconds since 1970; ``None`` for an answer without.
        head_only: The request was HEAD: the body is left out, its length is said.
        headers: More fields: ``Retry-After`` of a 503.

    Raises:
        LocalProtocolError: A field or the timestamp cannot be sent.
    """
    phrase = HTTPStatus(status).phrase
    text = f"{status} {phrase}: {reason}\n" if reason else f"{status} {phrase}\n"
    return build_response(
        text.encode(),
        status,
        headers={"Content-Type": TEXT_TYPE, **(headers or {})},
        date=None if timestamp is None else format_date(timestamp).encode(),
        head_only=head_only,
        close=True,
    )
