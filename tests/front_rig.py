"""Feeds the front end's reader in pieces, and says what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from greentx.edge.front.events import Body, End, Event, Head, Message, Refused, Upgraded
from greentx.edge.front.limits import Limits
from greentx.edge.front.requests import RequestReader

__all__ = ["WAYS", "read", "request", "shown"]


def _by_lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def _by_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def _in_sevens(data: bytes) -> list[bytes]:
    return [data[at : at + 7] for at in range(0, len(data), 7)]


#: In what pieces bytes may come.
WAYS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda data: [data],
    "by lines": _by_lines,
    "byte by byte": _by_bytes,
    "seven bytes at a time": _in_sevens,
}


def read(pieces: Iterable[bytes], limits: Limits | None = None, *, hold: bool = False) -> list[Event]:
    """Read the pieces, resumed wherever the reader is held; bodies are joined."""
    reader = RequestReader(limits, hold=hold)
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
        while reader.held:
            events += reader.resume()
    return _joined(events)


def _joined(events: Iterable[Event]) -> list[Event]:
    """Return the events with one Body in place of several that follow each other."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Body) and isinstance(last, Body):
            result[-1] = Body(last.data + event.data)
        else:
            result.append(event)
    return result


def shown(events: Iterable[Event]) -> list[str]:
    """Return the events as short texts: ``GET /a``, ``body abc``, ``end``, ``JSON @a {}``, ``400``."""
    texts = []
    for event in events:
        match event:
            case Head():
                texts.append(f"{event.method.decode()} {event.target.decode()}")
            case Body():
                texts.append(f"body {event.data.decode('latin-1')}")
            case End():
                texts.append("end")
            case Message():
                texts.append(f"{event.method.decode()} {event.path.decode()} {event.body.decode('latin-1')}")
            case Refused():
                texts.append(str(event.status))
            case Upgraded():
                texts.append(f"upgraded {event.rest.decode('latin-1')}")
    return texts


def request(*fields: bytes, line: bytes = b"GET / HTTP/1.1", body: bytes = b"") -> bytes:
    """Return a request with these fields behind a Host."""
    return b"\r\n".join([line, b"Host: a", *fields, b"", body])
