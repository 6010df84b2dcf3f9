"""What goes between a relay and its Nodes; the whole of it is in :mod:`greentx.relay`. No I/O.

Each message is one frame: ``KIND word word ...``, a newline, and bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.fields import CONN_ID, check_sender, encode_sender, shown
from ..protocol.headers import SERVER_NAMES
from ..transport.endpoints import connect_endpoint
from .payloads import netstring, parse_json, split_netstring

__all__ = [
    "LEASE_SECONDS",
    "MAX_BATCH",
    "MAX_CAPACITY",
    "MAX_HELD",
    "MAX_SERVERS",
    "MAX_WORD",
    "REDELIVERED",
    "VERSION",
    "Hello",
    "Server",
    "Welcome",
    "build_hello",
    "build_servers",
    "build_welcome",
    "build_wrote",
    "check_annotation",
    "check_number",
    "join",
    "number",
    "numbers",
    "pairs",
    "parse_hello",
    "parse_published",
    "parse_servers",
    "parse_welcome",
    "parse_wrote",
    "parts",
    "split",
    "topic_of",
]

#: Of what is described here; a relay lets in Nodes of its own version only.
VERSION = 1

#: How long a Node may answer after its relay has sent it a lease, and so how long the relay waits before it gives the
#: requests of a Node that it lost to others.
LEASE_SECONDS = 1.0

#: A Node keeps so many requests while its own connection to Mongrel2 is broken, and messages of topics to be handled.
MAX_HELD = 1000

#: Among the words of a request: a Node had it before, and did not answer it.
REDELIVERED = b"redelivered"

#: Bytes of the words in front of a message: the numbers of all requests that a Node answered at once.
_MAX_HEAD = 1024 * 1024
_MAX_DIGITS = 18
#: What a Node may say that its capacity is, at the most.
MAX_CAPACITY = 1_000_000
#: Messages that go together.
MAX_BATCH = 4096
#: Bytes of a server's word, or a sender, at the most.
MAX_WORD = 255
#: Of so many lives of servers a relay remembers what a Node said, those that it spoke of last.
MAX_SERVERS = 1024

# Names that a client cannot send, since Mongrel2 lower-cases its letters.
_ANNOTATION = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)


def split(message: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Return the kind, the words behind it, and the bytes behind the newline.

    Raises:
        RemoteProtocolError: There is no newline, or no kind.
    """
    end = message.find(b"\n", 0, _MAX_HEAD)
    if end < 1 or message[:1] == b" ":
        raise RemoteProtocolError(f"no kind of message at the start of {shown(message)}")
    words = message[:end].split(b" ")
    return words[0], words[1:], message[end + 1 :]


def join(messages: list[bytes]) -> bytes:
    """Return one message for several: each costs ZeroMQ and the system as much as all of them together."""
    if len(messages) == 1:
        return messages[0]
    return b"batch %b\n%b" % (b" ".join([b"%d" % len(message) for message in messages]), b"".join(messages))


def parts(message: bytes) -> Sequence[bytes]:
    """Return the messages that :func:`join` was given.

    Raises:
        RemoteProtocolError: The lengths are wrong, or they are more than :data:`MAX_BATCH`.
    """
    if not message.startswith(b"batch "):
        return (message,)
    # Counted before they are taken apart.
    count = message.count(b" ", 0, message.find(b"\n", 0, _MAX_HEAD) + 1)
    if count > MAX_BATCH:
        raise RemoteProtocolError(f"a batch of {count} messages, limit {MAX_BATCH}")
    _, words, payload = split(message)
    found = []
    end = 0
    for length in numbers(words):
        start, end = end, end + length
        found.append(payload[start:end])
    if end != len(payload):
        raise RemoteProtocolError(f"a batch of {end} bytes has {len(payload)}")
    return found


def number(word: bytes) -> int:
    """Read one number. Raises ``RemoteProtocolError`` where it is none."""
    if not word.isdigit() or len(word) > _MAX_DIGITS:
        raise RemoteProtocolError(f"{shown(word)} is not a number")
    return int(word)


def numbers(words: Sequence[bytes]) -> list[int]:
    """Read many; as :func:`number`."""
    # Asked of all at once, as there may be hundreds.
    if not words or (b"".join(words).isdigit() and max(map(len, words)) <= _MAX_DIGITS and b"" not in words):
        return [int(word) for word in words]
    return [number(word) for word in words]


def pairs(words: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Read numbers that go in twos; as :func:`number`."""
    found = numbers(words)
    if len(found) % 2:
        raise RemoteProtocolError(f"numbers are to come in twos, not {len(found)} of them")
    return zip(found[::2], found[1::2], strict=True)


# -- hello and welcome -------------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """What a Node says first.

    Attributes:
        name: As the application calls it.
        capacity: How many requests it may be given at once, compared to other Nodes.
        what: What it is, for people.
    """

    name: str
    capacity: int
    what: str = ""


def build_hello(hello: Hello) -> bytes:
    """Return the whole message."""
    said = {"name": hello.name, "capacity": hello.capacity, "what": hello.what}
    return b"hello %d\n%b" % (VERSION, json.dumps(said).encode())


def parse_hello(words: list[bytes], payload: bytes) -> Hello:
    """Read it. Raises ``RemoteProtocolError`` for what a Node of another version says, and for any other bytes."""
    if words != [b"%d" % VERSION]:
        raise RemoteProtocolError(
            f"a Node speaks version {shown(b' '.join(words))} of the relay's messages, not {VERSION}"
        )
    match parse_json(payload):
        case {"name": str(name), "capacity": int(capacity), "what": str(what)} if 0 < capacity <= MAX_CAPACITY:
            try:
                return Hello(check_sender(name), capacity, what[:MAX_WORD])
            except LocalProtocolError as error:
                raise RemoteProtocolError(str(error)) from error
    raise RemoteProtocolError(f"{shown(payload)} is not what a Node says of itself")


class Server(NamedTuple):
    """A server behind the API, as a Node reaches it.

    Attributes:
        sender: What its connection set is called.
        word: For its present life.
        endpoint: Of its SUB socket.
        stand_in: It is not a Mongrel2.
        credits: It says what it writes (``download.flow_control``).
        key: Its public key, where it demands CURVE, else ``""``.
    """

    sender: str
    word: str
    endpoint: str
    stand_in: bool = False
    credits: bool = False
    key: str = ""


def build_servers(servers: Iterable[Server]) -> bytes:
    """Return them as a message's bytes."""
    said = [
        {
            "sender": server.sender,
            "word": server.word,
            "endpoint": server.endpoint,
            "stand_in": server.stand_in,
            "credits": server.credits,
            "key": server.key,
        }
        for server in servers
    ]
    return json.dumps(said).encode()


def parse_servers(payload: bytes) -> list[Server]:
    """Read them. Raises ``RemoteProtocolError`` where they are not servers."""
    found = parse_json(payload)
    if not isinstance(found, list):
        raise RemoteProtocolError(f"{shown(payload)} is not a list of servers")
    return [_server(one) for one in found]


def _server(one: Any) -> Server:
    match one:
        case {
            "sender": str(sender),
            "word": str(word),
            "endpoint": str(endpoint),
            "stand_in": bool(stand_in),
            "credits": bool(has_credits),
            "key": str(key),
        } if 0 < len(word) <= MAX_WORD and _is_word(word) and endpoint.isprintable() and _is_word(key):
            try:
                encode_sender(check_sender(sender, mongrel2=False))
                return Server(sender, word, endpoint, stand_in, has_credits, key)
            except LocalProtocolError as error:
                raise RemoteProtocolError(str(error)) from error
    raise RemoteProtocolError(f"{shown(repr(one))} is not a server")


def _is_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


class Welcome(NamedTuple):
    """What a relay answers to a hello.

    Attributes:
        relay: The relay's own word, another one after each start.
        at: The relay's clock, in milliseconds.
        topics: Where topics are published, ``""`` for nowhere.
        servers: All that it has.
    """

    relay: str
    at: int
    topics: str
    servers: list[Server]


def build_welcome(welcome: Welcome) -> tuple[bytes, bytes]:
    """Return the words and the bytes."""
    words = f"welcome {welcome.relay} {welcome.at} {welcome.topics or '-'}"
    return words.encode(), build_servers(welcome.servers)


def parse_welcome(words: list[bytes], payload: bytes) -> Welcome:
    """Read it. Raises ``RemoteProtocolError`` where it is none."""
    if len(words) != 3:
        raise RemoteProtocolError(f"a welcome has three words, not {len(words)}")
    relay, at, topics = words
    text = "" if topics == b"-" else topics.decode(errors="backslashreplace")
    if not _is_word(relay.decode("latin-1")):
        raise RemoteProtocolError(f"{shown(relay)} is not a relay's word")
    try:
        # Here, since nothing may be set up for bytes that are not a welcome.
        if text and not text.isprintable():
            raise LocalProtocolError("it cannot be printed")
        if text:
            connect_endpoint(text)
    except LocalProtocolError as error:
        raise RemoteProtocolError(f"{shown(topics)} is not an endpoint to hear topics at: {error}") from error
    return Welcome(relay.decode("latin-1"), number(at), text, parse_servers(payload))


# -- what servers wrote ------------------------------------------------------------------------------------------------


def build_wrote(server: str, counts: Mapping[str, int]) -> bytes:
    """Return the message that says how many bytes a server wrote to each of some browser connections.

    Args:
        server: The word for its life.
    """
    return f"wrote {server} {' '.join([f'{conn_id} {count}' for conn_id, count in counts.items()])}\n".encode()


def parse_wrote(words: list[bytes]) -> tuple[bytes, Iterator[tuple[int, int]]]:
    """Return the server's word, and each connection with its count. Raises ``RemoteProtocolError`` for all else."""
    if not words:
        raise RemoteProtocolError("nothing says which server wrote")
    return words[0], pairs(words[1:])


# -- topics ------------------------------------------------------------------------------------------------------------


def topic_of(topic: str | bytes) -> bytes:
    """Return what a message that is published to *topic* begins with.

    A netstring, so that no topic is the beginning of another one: subscriptions are prefixes.
    """
    name = topic.encode() if isinstance(topic, str) else bytes(topic)
    return b"T" + netstring(name)


def parse_published(message: bytes) -> tuple[bytes, bytes]:
    """Return the topic and the message of what was published, :func:`topic_of` in front.

    Raises:
        RemoteProtocolError: There is no netstring behind the ``T``.
    """
    if message[:1] != b"T":
        raise RemoteProtocolError(f"no topic at the start of {shown(message)}")
    return split_netstring(message, 1)


# -- headers that an API adds ------------------------------------------------------------------------------------------


def check_annotation(headers: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return *headers*, an empty map for ``None``. Raises ``LocalProtocolError`` for a name that a client may have."""
    for name in headers or ():
        if not isinstance(name, str) or not _ANNOTATION.fullmatch(name):
            raise LocalProtocolError(f"header {name!r} could be a client's: annotate with upper case, as 'USER_ID'")
        # What Mongrel2 says of a request, and what we make of it, is not the API's to change.
        if name in SERVER_NAMES or name == "QUERY_STR":
            raise LocalProtocolError(f"header {name!r} is Mongrel2's: take another name")
    return headers or {}


def check_number(text: str) -> str:
    """Return *text* where it is the number of a connection. Raises ``RemoteProtocolError``."""
    if not CONN_ID.fullmatch(text):
        raise RemoteProtocolError(f"{shown(text)} is not a connection's number")
    return text
