"""Replies: what handlers send, in both directions.

A reply travels from a handler to the server as one ZeroMQ message::

    SENDER SP LEN:IDS, SP body

*IDS* are decimal connection ids, one space between two of them, 128 at most. An empty body closes the connections. An
extended reply has ``X `` before the ids, counted by LEN, and a tnetstring list of a key and a value as its body.

Source: Mongrel2's manual, "Writing A Handler"; src/handler.c and src/handler_parser.rl; probed on 1.12.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import tnetstring

from ..errors import LocalProtocolError, RemoteProtocolError
from .fields import CONTROL_ID, MAX_CONN_IDS, NOT_DECODED, check_sender, checked_body, encode_sender, shown

__all__ = [
    "CANCEL",
    "KEEP_ALIVE",
    "Response",
    "build_control_reply",
    "build_extended_reply",
    "build_reply",
    "credits_body",
    "parse_extended_body",
    "parse_plain_reply",
    "parse_reply",
]

# Nine digits hold any length that a message can have, and keep int() away from digits by the thousand. The space behind
# the last id is what some handlers write, and Mongrel2 accepts.
_REPLY = re.compile(rb"([A-Za-z0-9-]+) ([0-9]{1,9}):")
# To one browser, as nearly all are.
_PLAIN_REPLY = re.compile(rb"[A-Za-z0-9-]+ ([0-9]{1,2}):([0-9]{1,10}), ")
_STAND_IN_REPLY = re.compile(rb"([^\x00-\x20\x7f]+) ([0-9]{1,9}):")
_IDS = re.compile(rb"(X )?[0-9]+(?: [0-9]+)* ?|-1")


def build_reply(sender: str, conn_ids: str | int | Iterable[str | int], body: bytes, *, mongrel2: bool = True) -> bytes:
    """Build one reply: *body* goes to the browsers as it is; an empty one closes their connections.

    Args:
        sender: The request's sender, or what the server subscribed to.
        conn_ids: One id, or up to 128 of them (see :func:`batch_conn_ids` for more).
        body: Bytes.
        mongrel2: As for :func:`check_sender`.

    Raises:
        LocalProtocolError: Mongrel2 would reject it: a sender it cannot parse, no id, more than 128, one that is no
            decimal number, a body that is not bytes.
    """
    return _head(sender, conn_ids, "", mongrel2) + checked_body(body)


def build_extended_reply(sender: str, conn_ids: str | int | Iterable[str | int], key: str, value: object) -> bytes:
    """Build an extended reply, for what only the server can do: *key* ``ctl`` or the name of a loaded request module.

    Args:
        value: What tnetstrings hold: bytes, int, lists, dicts of bytes. For ``ctl`` a dict.

    Raises:
        LocalProtocolError: As for :func:`build_reply`; or ``ctl`` without a dict, which would kill the connection.
    """
    if key == "ctl" and not isinstance(value, dict):
        raise LocalProtocolError(
            f"the value of 'ctl' is a dict, not {value!r}: Mongrel2 kills the connection otherwise"
        )
    try:
        body: bytes = tnetstring.dumps([key.encode(), value])
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"the value of {key!r} cannot be written as a tnetstring: {error}") from error
    return _head(sender, conn_ids, "X ") + body


def build_control_reply(sender: str, body: bytes) -> bytes:
    """Build the proof that a handler's replies arrive: *body* to :data:`CONTROL_ID`.

    Only a :class:`~greentx.Server` reads it. Mongrel2 would reject it as invalid, so it goes only to a server that
    asked for it on the control socket.
    """
    # The stand-in's rule: no Mongrel2 is ever sent this.
    word = encode_sender(check_sender(sender, mongrel2=False))
    return b"%s %d:%s, %s" % (word, len(CONTROL_ID), CONTROL_ID.encode(), checked_body(body))


# Made once: they go to every open connection, again and again.
#: Bodies of extended replies (``X``): reset the idle timer; close at once and drop what is queued.
KEEP_ALIVE: bytes = tnetstring.dumps([b"ctl", {b"keep-alive": b""}])
CANCEL: bytes = tnetstring.dumps([b"ctl", {b"cancel": b""}])


def credits_body(count: int) -> bytes:
    """Return the body of an extended reply that lets the server read *count* more bytes of an upload."""
    if count < 0:
        raise LocalProtocolError(f"credits are a number of bytes, not {count}")
    return bytes(tnetstring.dumps([b"ctl", {b"credits": count}]))


def _head(sender: str, conn_ids: str | int | Iterable[str | int], kind: str, mongrel2: bool = True) -> bytes:
    ids = [str(conn_ids)] if isinstance(conn_ids, (str, int)) else [str(conn_id) for conn_id in conn_ids]
    if not ids or len(ids) > MAX_CONN_IDS:
        raise LocalProtocolError(f"a reply goes to 1 to {MAX_CONN_IDS} ids, not {len(ids)}")
    # Checked one by one: Mongrel2 rejects the whole message for one bad id, and stalls (probed).
    for one in ids:
        # isdecimal() alone is true of other scripts' digits.
        if not (one.isascii() and one.isdecimal()):
            raise LocalProtocolError(f"conn_id {one!r} is not a decimal number")
    text = (kind + " ".join(ids)).encode()
    return b"%b %d:%b, " % (encode_sender(check_sender(sender, mongrel2=mongrel2)), len(text), text)


class Response:
    """One reply as the server receives it.

    Attributes:
        sender: The first token.
        conn_ids: The ids it is for, decimal strings, in their order.
        body: What the browsers get; ``b""`` closes them.
        extended: ``(key, value)`` of an extended reply, else ``None``; *body* is then the raw tnetstring.
    """

    __slots__ = ("body", "conn_ids", "extended", "sender")

    def __init__(
        self, sender: str, conn_ids: list[str], body: bytes, extended: tuple[bytes, object] | None = None
    ) -> None:
        self.sender = sender
        self.conn_ids = conn_ids
        self.body = body
        self.extended = extended

    @classmethod
    def parse(cls, message: bytes) -> Response:
        """Parse one message; the same as :func:`parse_reply`."""
        return parse_reply(message)

    @property
    def is_close(self) -> bool:
        """True when it closes the connections it is for."""
        return not self.body and self.extended is None

    def encode(self) -> bytes:
        """Build the message again."""
        # _head() would not accept -1 as an id.
        if self.conn_ids == [CONTROL_ID]:
            return build_control_reply(self.sender, self.body)
        kind = "" if self.extended is None else "X "
        return _head(self.sender, self.conn_ids, kind, mongrel2=False) + self.body

    def __repr__(self) -> str:
        what = f"extended={self.extended!r}" if self.extended else f"body={len(self.body)} bytes"
        return f"<Response sender={self.sender} conn_ids={self.conn_ids} {what}>"


def parse_reply(message: bytes, *, mongrel2: bool = True, max_ids: int = MAX_CONN_IDS) -> Response:
    """Parse one reply as Mongrel2 does, with the same limits; or what :func:`build_control_reply` builds.

    Args:
        mongrel2: False accepts any sender that :func:`check_sender` accepts for a stand-in.
        max_ids: As ``limits.handler_targets`` says.

    Raises:
        RemoteProtocolError: Mongrel2 would reject it, and stall this handler's replies for 0.5 s (probed).

    Source: src/handler_parser.rl; probed.
    """
    match = (_REPLY if mongrel2 else _STAND_IN_REPLY).match(message)
    if not match:
        raise RemoteProtocolError(f"no 'sender LEN:' at the start of {shown(message)}")
    # By its length and not by a search: ids of a broken handler may hold anything.
    start = match.end()
    end = start + int(match[2])
    ids = message[start:end]
    # Before they are taken apart: of a million ids the pattern alone would take a hundred megabytes. A list of 128 has
    # a blank between two, and may have an X in front, and a blank behind.
    if ids.count(b" ") > max_ids + 1:
        raise RemoteProtocolError(f"{ids.count(b' ')} ids or more, limit {max_ids}")
    if message[end : end + 2] != b", " or not _IDS.fullmatch(ids):
        raise RemoteProtocolError(f"no {int(match[2])} bytes of ids and ', ' at byte {start} of {shown(message)}")
    body = message[end + 2 :]
    extended = ids.startswith(b"X ")
    conn_ids = ids[2 if extended else 0 :].decode().split()
    if len(conn_ids) > max_ids:
        raise RemoteProtocolError(f"{len(conn_ids)} ids, limit {max_ids}")
    # The body of an ordinary reply is the browser's, and is not looked at.
    pair = parse_extended_body(body) if extended else None
    return Response(match[1].decode("latin-1"), conn_ids, body, pair)


def parse_plain_reply(message: bytes) -> tuple[int, bytes] | None:
    """Return the id and the body of a reply to one browser, in a third of the time of :func:`parse_reply`.

    ``None`` where that has to look at it: a reply to several, an extended one, one that is invalid.
    """
    found = _PLAIN_REPLY.match(message)
    if found is None:
        return None
    size, conn_id = found.groups()
    return (int(conn_id), message[found.end() :]) if int(size) == len(conn_id) else None


def parse_extended_body(body: bytes) -> tuple[bytes, object]:
    """Return the key and the value of an extended reply's body, a tnetstring list.

    Raises:
        RemoteProtocolError: It is not one. Mongrel2 ignores such a message, or ends the connection (probed).
    """
    try:
        value, rest = tnetstring.pop(body)
    except NOT_DECODED as error:
        raise RemoteProtocolError(f"the body of an extended reply is not a tnetstring: {error}") from error
    # Refused and not ignored: a handler that wrote more meant something by it.
    if rest:
        raise RemoteProtocolError(f"{len(rest)} bytes follow the body of an extended reply: {shown(rest)}")
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], bytes)):
        raise RemoteProtocolError("the body of an extended reply is not a list of a key and a value")
    return value[0], value[1]
