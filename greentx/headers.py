"""Header maps of Mongrel2 requests.

Mongrel2 lower-cases every name that a client sent and writes its own names (``METHOD``, ``PATH``, ``URL_SCHEME``, ...)
in upper case, so the two cannot be confused and a client cannot forge the server's (manual, rule 5; probed). A name
that was sent more than once has a list of values, in the order of arrival; the server keeps the first five (probed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import parse_qs, parse_qsl

__all__ = ["SERVER_NAMES", "Headers", "RawHeaders", "text_headers"]

#: The names that Mongrel2 writes itself, in upper case.
SERVER_NAMES = frozenset(
    {
        "DOWNLOAD_CREDITS",
        "FLAGS",
        "FRAGMENT",
        "METHOD",
        "PATH",
        "PATTERN",
        "PEER_CERT_SHA1",
        "QUERY",
        "REMOTE_ADDR",
        "UPLOAD_STREAM",
        "UPLOAD_STREAM_DONE",
        "URI",
        "URL_SCHEME",
        "VERSION",
    }
)

#: What the two encodings decode to: tnetstrings give bytes, JSON gives text.
RawHeaders = Mapping[bytes, "bytes | list[bytes]"] | Mapping[str, "str | list[str]"]


class Headers(dict[str, "str | list[str] | dict[str, str]"]):
    """The headers of one request: a plain ``dict`` from name to value.

    A value is a ``str``, or a ``list[str]`` where the client repeated the name. Bytes became text as latin-1, as in
    PEP 3333, so nothing is lost and ``value.encode("latin-1")`` gives the bytes back.

    Two names are added to what the server sent, for the users of ``mongrel2-transceiver``: ``QUERY`` is a ``dict`` with
    the last value of each key (``{}`` without a query), ``QUERY_STR`` the raw query string (``""`` without one). A
    message without a ``PATH`` (a notice) gets neither.
    """

    __slots__ = ()

    def first(self, name: str, default: str | None = None) -> str | None:
        """Return the value of *name*, the first one where the client repeated it, else *default*."""
        value = self.get(name)
        if value is None or isinstance(value, dict):
            return default
        if isinstance(value, list):
            return value[0] if value else default
        return value

    def get_all(self, name: str) -> list[str]:
        """Return every value of *name* in the order of arrival; an empty list where there is none."""
        value = self.get(name)
        if value is None or isinstance(value, dict):
            return []
        return list(value) if isinstance(value, list) else [value]

    def client(self) -> Iterator[tuple[str, str]]:
        """Yield what the client sent as (name, value) pairs, one for each value, names in lower case."""
        for name, value in self.items():
            if name == name.lower() and not isinstance(value, dict):
                if isinstance(value, list):
                    for one in value:
                        yield name, one
                else:
                    yield name, value

    @property
    def query(self) -> dict[str, list[str]]:
        """The query string as :func:`urllib.parse.parse_qs` reads it, empty values kept."""
        raw = self.get("QUERY_STR", "")
        return parse_qs(raw, keep_blank_values=True) if isinstance(raw, str) and raw else {}


def text_headers(raw: RawHeaders) -> Headers:
    """Build the map that applications see from what the codec decoded.

    Args:
        raw: The decoded headers; not changed. What is no string (no Mongrel2 sends that) appears as its ``str``.
    """
    headers = Headers()
    for name, value in raw.items():
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        elif isinstance(value, list):
            value = [_text(one) for one in value]
        elif not isinstance(value, str):
            value = str(value)
        headers[_text(name)] = value
    if "PATH" in headers or "QUERY" in headers:
        query = headers.get("QUERY", "")
        query_str = query if isinstance(query, str) else ""
        headers["QUERY_STR"] = query_str
        headers["QUERY"] = dict(parse_qsl(query_str, keep_blank_values=True)) if query_str else {}
    return headers


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
