"""What goes over a relay's sockets; the whole of it is in :mod:`greentx.relay`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.fields import CONN_ID, shown
from ..protocol.headers import SERVER_NAMES, without
from ..protocol.kinds import Kind
from ..protocol.request import Request, parse_request
from ..protocol.websocket.frames import Opcode, parse_flags

__all__ = [
    "HEADER",
    "MAX_HELD",
    "RECEIPT_SECONDS",
    "STAND_IN",
    "Handed",
    "Told",
    "check_annotation",
    "own_topic",
    "parse_end",
    "parse_handed",
    "parse_published",
    "parse_told",
    "topic_of",
]


#: The header that a relay adds. A Node takes it off again.
HEADER = "RELAY"

# Behind the address, where a stand-in for Mongrel2 subscribes there; then its public key, where it demands CURVE.
STAND_IN = "stand-in"

# Names that a client cannot send, since Mongrel2 lower-cases its letters.
_ANNOTATION = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)

# A published message: T, and the topic as a netstring. Nine digits hold any length, and keep int() from thousands.
_PUBLISHED = re.compile(rb"T([0-9]{1,9}):")

# What Mongrel2 says of a request, and what we make of it, is not the API's to change.
_TAKEN_NAMES = SERVER_NAMES | {"QUERY_STR", HEADER}


def topic_of(topic: str | bytes) -> bytes:
    name = topic.encode() if isinstance(topic, str) else bytes(topic)
    return b"T%d:%b," % (len(name), name)


def own_topic(name: str) -> bytes:
    return b"@%b " % name.encode("latin-1")


class Handed(NamedTuple):
    """What a relay hands on.

    Attributes:
        request: As the application is to see it: as behind Mongrel2, with what the API has added.
        life: The word for the life of its server, ``""`` for none.
        token: What it is called in receipts, ``""`` for none.
        endpoint: Where its server subscribes, ``""`` where that is not said.
        stand_in: That is not a Mongrel2.
        key: Its public key, where it demands CURVE, else ``""``.
    """

    request: Request
    life: str
    token: str
    endpoint: str
    stand_in: bool
    key: str


def parse_handed(message: bytes) -> Handed:
    """Read a request that a relay hands on.

    Raises:
        RemoteProtocolError: It is not a request message; it is a WebSocket's without ``FLAGS``, or has METHOD ``JSON``
            and a body that is not.
    """
    request = parse_request(message)
    mark = request.header(HEADER)
    words = mark.split(" ") if isinstance(mark, str) else []
    life, token, endpoint = words[:3] if len(words) >= 3 else ("", "", "")
    request.replace_headers(without(request.raw, (HEADER,)))
    # Here and not later: what is wrong ends this message, whatever else waits with it.
    if request.method == Kind.WEBSOCKET:
        flags = request.header("FLAGS")
        request.opcode = parse_flags(flags if isinstance(flags, str) else "")[0]
        if request.opcode == Opcode.TEXT:
            request.text = request.body.decode(errors="replace")
    elif request.method == Kind.JSON:
        request.decode_data()
    return Handed(request, life, token, endpoint, words[3:4] == [STAND_IN], "".join(words[4:5]))


def parse_published(message: bytes) -> tuple[bytes, bytes]:
    """Return the topic and the message of what was published, ``T`` and :func:`topic_of` in front.

    Raises:
        RemoteProtocolError: There is no netstring behind the ``T``.
    """
    found = _PUBLISHED.match(message)
    end = -1 if found is None else found.end() + int(found[1])
    if found is None or message[end : end + 1] != b",":
        raise RemoteProtocolError(f"no topic at the start of {shown(message)}")
    return message[found.end() : end], message[end + 1 :]


class Told(NamedTuple):
    """What a relay tells one Node.

    Attributes:
        relay: The relay's own word, another one after each start.
        lives: What the present life of each server is called, by sender.
        number: Of the question that this answers, ``""`` for none.
        prove: Instead of these: a sender, and the number that its server is to give notice of.
    """

    relay: str = ""
    lives: Mapping[str, str] = {}
    number: str = ""
    prove: tuple[str, str] | None = None


def parse_told(text: bytes) -> Told:
    """Read what a relay tells one Node.

    Raises:
        RemoteProtocolError: It is not JSON, or does not hold what :class:`Told` has.
    """
    told = _json(text)
    if isinstance(told, dict):
        if "prove" in told:
            match told["prove"]:
                case [str(sender), (str() | int()) as number] if CONN_ID.fullmatch(str(number)):
                    return Told(prove=(sender, str(number)))
        elif isinstance(told.get("relay"), str) and isinstance(lives := told.get("lives"), dict):
            known = {sender: life for sender, life in lives.items() if isinstance(life, str)}
            return Told(told["relay"], known, str(told.get("number", "")))
    raise RemoteProtocolError(f"{shown(text)} tells neither lives nor what to prove")


def parse_end(event: Request) -> tuple[int, str]:
    """Return the close code and the reason of a WebSocket that has ended at the API.

    Raises:
        RemoteProtocolError: The body has none.
    """
    ended = _json(event.body)
    if isinstance(ended, dict):
        code, reason = ended.get("code"), ended.get("reason")
        # What no close frame holds, such as 1006, is among them.
        if type(code) is int and 1000 <= code <= 4999 and isinstance(reason, str):
            return code, reason
    raise RemoteProtocolError(f"{shown(event.body)} is not the end of a WebSocket")


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"{shown(text)} is not JSON: {error}") from error


def check_annotation(headers: Mapping[str, Any] | None) -> Mapping[str, Any]:
    for name in headers or ():
        if not isinstance(name, str) or not _ANNOTATION.fullmatch(name):
            raise LocalProtocolError(f"header {name!r} could be a client's: annotate with upper case, as 'USER_ID'")
        if name in _TAKEN_NAMES:
            raise LocalProtocolError(f"header {name!r} is Mongrel2's, or the relay's: take another name")
    return headers or {}


#: A Node keeps so many requests while its own connection to Mongrel2 is broken, and messages of topics to be handled.
MAX_HELD = 1000

# While an answer waits to be written its receipt waits too, so long at a time.
RECEIPT_SECONDS = 0.002
