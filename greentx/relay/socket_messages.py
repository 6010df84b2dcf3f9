"""What a relay and its Nodes tell each other about WebSockets. No I/O.

Each message is a head, which is a kind and words without spaces, and a payload. A WebSocket has a number, the same at
all Nodes. In what follows N is that number, SEQ counts a WebSocket's messages from 1 on, FLAGS is the opcode, plus 16
times the reserved bits, plus 128 where a message may have been given to an application before.

To a Node:

==================  =============================  =================================================================
head                payload                        meaning
==================  =============================  =================================================================
``ws-open N``       see :class:`Opened`            it begins here: let in, or a handshake to be decided about
``ws-msg N SEQ F``  the message                    from the browser
``ws-pong N``       the pong's                     likewise
``ws-ack N BYTES``                                 so many bytes of what was sent have left
``ws-end N SEQ C``  the reason                     it has ended with the code C; counted and handled as a message
``ws-count ID N``   empty, or why not              what a broadcast reached
==================  =============================  =================================================================

A handshake that ends before it was decided about has 0 for SEQ. From a Node:

==================  =============================  =================================================================
head                payload                        meaning
==================  =============================  =================================================================
``ws-accept N``     JSON: see :func:`parse_accept` let the client in
``ws-answer N``     an HTTP response               do not; where it was let in already: close it
``ws-send N F``     the message                    for the browser
``ws-ping N``       the ping's                     likewise
``ws-close N CODE`` the reason                     begin the closing handshake; CODE 0 for none
``ws-fail N CODE``  the reason                     end it, for a bound that was reached here
``ws-join N``       the group                      it joins a group
``ws-leave N``      the group                      it leaves one
``ws-state N``      JSON                           what the application keeps of it
``ws-done N SEQ``   (more pairs may follow)        handled up to this one
``ws-move N H S``                                  it is let go: handled up to H, given to the application up to S
``ws-cast ID F``    see :class:`Cast`              to all, or to a group
==================  =============================  =================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ..errors import RemoteProtocolError
from ..protocol.fields import shown
from ..protocol.websocket.registry import Sid
from .payloads import netstring, parse_json, split_netstring

__all__ = [
    "ACCEPT",
    "ACK",
    "ANSWER",
    "CAST",
    "CLOSE",
    "COUNT",
    "DONE",
    "END",
    "FAIL",
    "JOIN",
    "LEAVE",
    "MESSAGE",
    "MOVE",
    "OPEN",
    "PING",
    "PONG",
    "REDELIVERED",
    "SEND",
    "STATE",
    "Cast",
    "Opened",
    "build_accept",
    "parse_accept",
    "parse_cast",
    "parse_done",
    "parse_group",
    "parse_number",
    "parse_numbers",
    "parse_open",
    "parse_reason",
    "parse_state",
    "split_flags",
]

OPEN: Final = b"ws-open"
MESSAGE: Final = b"ws-msg"
PONG: Final = b"ws-pong"
ACK: Final = b"ws-ack"
END: Final = b"ws-end"
COUNT: Final = b"ws-count"

ACCEPT: Final = b"ws-accept"
ANSWER: Final = b"ws-answer"
SEND: Final = b"ws-send"
PING: Final = b"ws-ping"
CLOSE: Final = b"ws-close"
FAIL: Final = b"ws-fail"
JOIN: Final = b"ws-join"
LEAVE: Final = b"ws-leave"
STATE: Final = b"ws-state"
DONE: Final = b"ws-done"
MOVE: Final = b"ws-move"
CAST: Final = b"ws-cast"

#: In FLAGS: a message that may have been given to an application before.
REDELIVERED: Final = 0x80

# Eighteen hold any count, and keep int() from thousands.
_MAX_DIGITS = 18

# The name of a group; longer ones are a mistake, or worse.
_MAX_GROUP = 65536


class Opened(NamedTuple):
    """A WebSocket that begins at a Node.

    Layout: a netstring of JSON with all but the last two; the state as a netstring; the request.

    Attributes:
        server: The sender of the connection set that it came by.
        decided: It was let in; False: its opening handshake waits for an answer.
        adopted: Another Node's application had it.
        subprotocol: What was agreed on, ``None`` for none.
        groups: Those that it is in.
        done: Its messages are handled up to this one: the next is another.
        state: JSON, or empty.
        request: The message of its opening handshake, as Mongrel2 sent it.
    """

    server: str
    decided: bool
    adopted: bool
    subprotocol: str | None
    groups: tuple[str, ...]
    done: int
    state: bytes
    request: bytes

    def build(self) -> bytes:
        """Return it as a payload."""
        facts = {
            "server": self.server,
            "decided": self.decided,
            "adopted": self.adopted,
            "subprotocol": self.subprotocol,
            "groups": self.groups,
            "done": self.done,
        }
        return netstring(json.dumps(facts).encode()) + netstring(self.state) + self.request


class Cast(NamedTuple):
    """A broadcast by a Node's application.

    Layout: a netstring of JSON, and the message.

    Attributes:
        group: Of which group, ``None`` for all.
        exclude: Sids that do not get it.
        message: The payload of the frame.
    """

    group: str | None
    exclude: frozenset[Sid]
    message: bytes

    def build(self) -> bytes:
        """Return it as a payload."""
        return netstring(json.dumps({"group": self.group, "exclude": list(self.exclude)}).encode()) + self.message


# -- words -------------------------------------------------------------------------------------------------------------


def parse_number(words: Sequence[bytes]) -> int:
    """Return the one number that *words* are. Raises ``RemoteProtocolError`` where they are something else."""
    return parse_numbers(words, 1)[0]


def parse_numbers(words: Sequence[bytes], count: int) -> list[int]:
    """Return the *count* numbers that *words* are. Raises ``RemoteProtocolError`` where they are something else."""
    if len(words) != count:
        raise RemoteProtocolError(f"{len(words)} words instead of {count}")
    return [_number(word) for word in words]


def parse_done(words: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return pairs of a WebSocket's number, and up to which of its messages it is meant."""
    if not words or len(words) % 2:
        raise RemoteProtocolError(f"{len(words)} words are not pairs of numbers")
    numbers = [_number(word) for word in words]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _number(word: bytes) -> int:
    # Of bytes that is of ASCII alone.
    if not word.isdigit() or len(word) > _MAX_DIGITS:
        raise RemoteProtocolError(f"{shown(word)} is not a number")
    return int(word)


def split_flags(flags: int) -> tuple[int, int, bool]:
    """Return opcode, reserved bits and whether it is redelivered. Raises ``RemoteProtocolError`` for others."""
    if flags > 0xFF:
        raise RemoteProtocolError(f"{flags} are not flags")
    return flags & 15, flags >> 4 & 7, flags >= REDELIVERED


# -- payloads ----------------------------------------------------------------------------------------------------------


def parse_open(payload: bytes) -> Opened:
    """Read what begins at a Node. Raises ``RemoteProtocolError`` for anything else."""
    text, rest = split_netstring(payload)
    match parse_json(text):
        case {
            "server": str(server),
            "decided": bool(decided),
            "adopted": bool(adopted),
            "subprotocol": (None | str()) as subprotocol,
            "groups": list(groups),
            "done": int(done),
        } if all(isinstance(group, str) for group in groups):
            state, request = split_netstring(rest)
            if state:
                parse_state(state)
            return Opened(server, decided, adopted, subprotocol, tuple(groups), done, state, request)
    raise RemoteProtocolError(f"{shown(text)} does not say what begins")


def parse_cast(payload: bytes) -> Cast:
    """Read a broadcast. Raises ``RemoteProtocolError`` for anything else."""
    text, message = split_netstring(payload)
    match parse_json(text):
        case {"group": (None | str()) as group, "exclude": list(exclude)}:
            sids = [tuple(one) for one in exclude if isinstance(one, list)]
            if all(len(sid) == 2 and all(isinstance(part, str) for part in sid) for sid in sids) and len(sids) == len(
                exclude
            ):
                return Cast(group, frozenset(sids), message)
    raise RemoteProtocolError(f"{shown(text)} does not say to whom")


def build_accept(subprotocol: str | None, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return what is to be agreed on, and further fields of the answer, as a payload."""
    return json.dumps({"subprotocol": subprotocol, "fields": list(fields)}).encode()


def parse_accept(payload: bytes) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the subprotocol and further fields. Raises ``RemoteProtocolError`` for anything else."""
    match parse_json(payload):
        case {"subprotocol": (None | str()) as subprotocol, "fields": list(fields)}:
            pairs = [(one[0], one[1]) for one in fields if isinstance(one, list) and len(one) == 2]
            if len(pairs) == len(fields) and all(isinstance(part, str) for pair in pairs for part in pair):
                return subprotocol, pairs
    raise RemoteProtocolError(f"{shown(payload)} does not say what is agreed on")


def parse_group(payload: bytes) -> str:
    """Return the name of a group. Raises ``RemoteProtocolError`` where it is too long, or not UTF-8."""
    if len(payload) > _MAX_GROUP:
        raise RemoteProtocolError(f"the name of a group is {len(payload)} bytes, limit {_MAX_GROUP}")
    # Names of groups are whatever str an application uses; lone surrogates come back as they went.
    return _text(payload, "surrogatepass")


def parse_reason(payload: bytes) -> str:
    """Return the reason of an end. Raises ``RemoteProtocolError`` where it is not UTF-8."""
    return _text(payload, "strict")


def parse_state(payload: bytes) -> bytes:
    """Return it where it is a JSON object. Raises ``RemoteProtocolError`` where it is not."""
    if not isinstance(parse_json(payload), dict):
        raise RemoteProtocolError(f"{shown(payload)} is not an application's state")
    return payload


def _text(payload: bytes, errors: str) -> str:
    try:
        return payload.decode(errors=errors)
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"{shown(payload)} is not UTF-8: {error}") from error
