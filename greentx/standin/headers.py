"""What Mongrel2 makes of a browser's request before it hands it on: the path, and the headers."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import LocalProtocolError
from ..protocol.headers import SERVER_NAMES

__all__ = ["RequestHeaders", "build_headers", "lower_names"]

# Whose requests say a Content-Length of 0 where there is no body, as browsers do.
_WITH_LENGTH = frozenset({"PATCH", "POST", "PUT"})

#: What a Client may be given; ``None`` leaves a name out.
RequestHeaders = Mapping[str, "str | list[str] | None"]


def build_headers(
    path: str, headers: RequestHeaders | None, body: bytes, method: str | None
) -> tuple[str, dict[str, str | list[str]]]:
    """Return the path without its query, and the headers that Mongrel2 would make of a request.

    Args:
        path: As in the request line: with ``?query`` and ``#fragment`` if there are any.
        headers: See :meth:`greentx.standin.client.Mongrel2Client.send`.
        body: Its length becomes ``content-length``, where the method or the body asks for one.
        method: ``None`` is ``GET``, or ``POST`` with a body.

    Raises:
        LocalProtocolError: *path* is not text, or *headers* not a mapping.
    """
    if not isinstance(path, str):
        raise LocalProtocolError(f"a path is str, not {type(path).__name__}")
    given = lower_names(headers)
    uri, _, fragment = path.partition("#")
    target, mark, query = uri.partition("?")
    made: dict[str, str | list[str] | None] = {
        "PATH": target,
        "x-forwarded-for": "127.0.0.1",
        "host": "localhost",
        "METHOD": method or ("POST" if body else "GET"),
        "VERSION": "HTTP/1.1",
        "URI": uri,
        "PATTERN": "/",
        "URL_SCHEME": "http",
        "REMOTE_ADDR": "127.0.0.1",
    }
    # An empty query is one, too; without a question mark there is none.
    if mark:
        made["QUERY"] = query
    if fragment:
        made["FRAGMENT"] = fragment
    # Over ours: a test may want any header otherwise than Mongrel2 writes it.
    made.update(given)
    if body or made["METHOD"] in _WITH_LENGTH:
        made.setdefault("content-length", str(len(body)))
    return target, {name: value for name, value in made.items() if value is not None}


def lower_names(headers: RequestHeaders | None) -> dict[str, str | list[str] | None]:
    """Lower the case of names as Mongrel2 does, so that no browser can set one of the server's names by accident."""
    if headers is not None and not isinstance(headers, Mapping):
        raise LocalProtocolError(f"headers are a mapping of names to values, not {type(headers).__name__}")
    return {name if name in SERVER_NAMES else name.lower(): value for name, value in (headers or {}).items()}
