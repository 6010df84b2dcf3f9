"""Header maps of Mongrel2 requests.

Mongrel2 lower-cases every name that a client sent and writes its own names (``METHOD``, ``PATH``, ``URL_SCHEME``, ...)
in upper case, so the two cannot be confused and a client cannot forge the server's (manual, rule 5; probed). A name
that was sent more than once has a list of values, in the order of arrival.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import starmap
from types import BuiltinMethodType
from typing import Any
from urllib.parse import parse_qs, unquote

from .cache import SmallSet
from .fields import shown

__all__ = [
    "MAX_LINES",
    "NEVER_PLAIN",
    "SERVER_NAMES",
    "Headers",
    "LateHeaders",
    "RawHeaders",
    "all_plain",
    "last_values",
    "plain_names",
    "text_headers",
    "text_lines",
    "text_value",
    "without",
]

#: So many lines of one name Mongrel2 hands on; those behind them it drops (probed).
MAX_LINES = 5

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

#: What the intake has to look at where it is there: these names are never plain.
NEVER_PLAIN = frozenset(
    {
        "DOWNLOAD_CREDITS",
        "UPLOAD_STREAM",
        "UPLOAD_STREAM_DONE",
        "transfer-encoding",
        "x-mongrel2-upload-done",
        "x-mongrel2-upload-start",
    }
)
_ALWAYS_PLAIN = SERVER_NAMES - NEVER_PLAIN

#: Names that mean nothing to the intake, but for ``content-length``, which says how long the body is. They are the
#: server's own, and those of clients that :mod:`greentx.protocol.framing` has looked at. One question tells whether all
#: names of a message are among these, for little more than it costs to look for one name.
plain_names: SmallSet[bytes | str] = SmallSet(1024, {*_ALWAYS_PLAIN, *(name.encode() for name in _ALWAYS_PLAIN)})
all_plain = plain_names.issuperset

#: What the two encodings decode to: tnetstrings give bytes, JSON gives text.
RawHeaders = Mapping[bytes, "bytes | list[bytes]"] | Mapping[str, "str | list[str]"]


# A plain dict, and case-sensitive: the two cases tell Mongrel2's own names from the client's.
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
        # A dict is the parsed QUERY, whose text is in QUERY_STR.
        if value is None or isinstance(value, dict):
            return default
        if isinstance(value, list):
            return value[0] if value else default
        return value

    def get_all(self, name: str) -> list[str]:
        """Return every value of *name* in the order of arrival; an empty list where there is none."""
        value = self.get(name)
        # A dict is the parsed QUERY.
        return [] if isinstance(value, dict) else text_lines(value)

    def client(self) -> Iterator[tuple[str, str]]:
        """Yield what the client sent as (name, value) pairs, one for each value, names in lower case."""
        for name, value in self.items():
            # What is not in lower case is Mongrel2's.
            if name == name.lower() and not isinstance(value, dict):
                for one in text_lines(value):
                    yield name, one

    @property
    def query(self) -> dict[str, list[str]]:
        """The query string as :func:`urllib.parse.parse_qs` reads it, empty values kept."""
        raw = self.get("QUERY_STR", "")
        return parse_qs(raw, keep_blank_values=True) if isinstance(raw, str) and raw else {}


def text_headers(raw: RawHeaders) -> Headers:
    """Build the map that applications see from what the codec decoded.

    Args:
        raw: The decoded headers; not changed. What is not a string (no Mongrel2 sends that) appears as
            :func:`text_value` says.
    """
    # latin-1 and not UTF-8: it never fails, and an application that knows better gets the bytes back.
    headers = Headers()
    for name, value in raw.items():
        if value.__class__ is bytes:
            value = value.decode("latin-1")
        elif value.__class__ is list:
            value = text_lines(value)
        elif value.__class__ is not str:
            value = text_value(value)
        headers[name.decode("latin-1") if name.__class__ is bytes else text_value(name)] = value
    # For the users of mongrel2-transceiver, whose QUERY was the parsed one.
    if "PATH" in headers or "QUERY" in headers:
        query = headers.get("QUERY", "")
        query_str = query if isinstance(query, str) else ""
        headers["QUERY_STR"] = query_str
        headers["QUERY"] = last_values(query_str)
    return headers


def last_values(query: str) -> dict[str, str]:
    """Return the last value of each key of a query string: ``dict(parse_qsl(query, keep_blank_values=True))``."""
    # By hand, as parse_qsl() takes five times as long for what has nothing to decode: most queries, by far.
    if "+" in query:
        query = query.replace("+", " ")
    values = {}
    for pair in query.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            if "%" in pair:
                name, value = unquote(name), unquote(value)
            values[name] = value
    return values


class _NotAll:
    """Stands among headers that were not all read yet, where only C code finds it that reads past their methods."""

    def __str__(self) -> str:
        raise TypeError("some headers were not read yet: use dict(req.headers)")


_NOT_ALL: Any = _NotAll()


class LateHeaders(Headers):
    """As :func:`text_headers` builds them, but each value is made when it is read, and all of them when it has to be.

    For headers of which each name is text and there once. It is a ``dict`` that holds what was read or set so far; as
    soon as somebody asks for more than one name, such as by iteration or ``==``, all is put in.

    Whoever reads a ``dict`` past its methods sees only what is there so far, and a name that is not text. The encoders
    of msgspec and orjson do so, and raise. ``OrderedDict(...) == headers``, ``defaultdict(...) == headers`` and
    ``dict.get(headers, name)`` do so, and find less, in silence. Give all of them ``dict(headers)``. What else was
    tried of CPython asks the methods, as ``json``, ``pickle``, ``copy``, ``**headers`` and ``dict(...) == headers`` do.

    Native threads may read the same headers.
    """

    __slots__ = ("_unread",)

    def __init__(self, raw: RawHeaders, method: str) -> None:
        # None: all has been put in.
        self._unread: RawHeaders | None = raw
        # The event's, whatever was decoded.
        self["METHOD"] = method
        # Better an error in who reads past our methods than headers that are missing in silence.
        dict.__setitem__(self, _NOT_ALL, "")

    def __missing__(self, name: str) -> Any:
        value = self._read(name)
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: Any, default: Any = None) -> Any:
        value = _get(self, name, _ABSENT)
        if value is _ABSENT:
            value = self._read(name)
            if value is None:
                return default
        return value

    def __contains__(self, name: object) -> bool:
        return _contains(self, name) or self._read(name) is not None

    def _read(self, name: object) -> Any:
        """Put in the value of *name*, which is not there yet, and return it; ``None`` where there is none."""
        raw: Any = self._unread
        if raw is None:
            # Another native thread may have put it in just now.
            return _get(self, name)
        if not isinstance(name, str):
            return None
        sent = "QUERY" if name == "QUERY_STR" else name
        try:
            value = raw.get(sent.encode("latin-1"), _ABSENT)
        except UnicodeEncodeError:
            value = _ABSENT
        if value.__class__ is bytes:
            value = value.decode("latin-1")
        else:
            if value is _ABSENT:
                value = raw.get(sent, _ABSENT)
            if value is not _ABSENT:
                value = text_value(value)
            elif sent == "QUERY" and (b"PATH" in raw or "PATH" in raw):
                value = ""
            else:
                return None
        if name == "QUERY":
            value = last_values(value)
        # Not over what another native thread may have set meanwhile.
        return _set_default(self, name, value)

    def _read_all(self) -> None:
        """Put in whatever was not read yet, in the order in which it came."""
        raw = self._unread
        if raw is not None:
            headers = text_headers(raw)
            # One call of C makes all of these, so that no other native thread has a turn in between: it would find
            # less. What was read or set so far counts.
            steps = (
                (headers.update, dict.items(self)),
                # True, so that none follows, where another thread was first and has put all in.
                (headers.pop, _NOT_ALL, True),
                (super().clear,),
                (self.update, headers),
            )
            any(starmap(_call, steps))
            # Last: from here on what is not there is absent.
            self._unread = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Headers, (dict(self),)

    # What it makes has read nothing.
    fromkeys = Headers.fromkeys


def _with_all(name: str) -> Callable[..., Any]:
    """Return a method of ``dict`` that works on all headers."""
    method = getattr(dict, name)

    @functools.wraps(method)
    def work(self: LateHeaders, *args: Any, **kwargs: Any) -> Any:
        self._read_all()
        return method(self, *args, **kwargs)

    return work


def _compared(name: str) -> Callable[..., Any]:
    """Return a comparison of ``dict`` that works on all headers of both: it reads the other one past its methods."""
    compare = getattr(dict, name)

    @functools.wraps(compare)
    def work(self: LateHeaders, other: object) -> Any:
        self._read_all()
        return compare(self, dict(other) if isinstance(other, LateHeaders) else other)

    return work


# All that look at more than one name, or take one out. Those that put in may do so before the others were read.
for _name in (
    *("__iter__", "__reversed__", "__len__", "__repr__", "__or__", "__ror__", "__delitem__"),
    *("clear", "copy", "items", "keys", "pop", "popitem", "setdefault", "values"),
):
    setattr(LateHeaders, _name, _with_all(_name))
for _name in ("__eq__", "__ne__"):
    setattr(LateHeaders, _name, _compared(_name))

_get: Callable[..., Any] = dict.get
_contains = dict.__contains__
_set_default: Callable[..., Any] = dict.setdefault
_call: Callable[..., Any] = BuiltinMethodType.__call__
_ABSENT = object()


def without(raw: RawHeaders, names: Collection[str]) -> dict[Any, Any]:
    """Return the decoded headers but those of these *names*, as a map of its own."""
    return {name: value for name, value in raw.items() if text_value(name) not in names}


def text_lines(value: object) -> list[str]:
    """Return the values of one name, as text: none for ``None``, several where the client repeated the name."""
    if value is None:
        return []
    return [text_value(one) for one in value] if isinstance(value, list) else [text_value(value)]


def text_value(value: object) -> str:
    """Return one name or value of decoded headers as text: bytes as latin-1, numbers and the like as their ``str``.

    A list or dict, which no header is, is abridged: how deep it nests is up to who sent it.
    """
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return shown(value) if isinstance(value, (list, dict)) else str(value)
