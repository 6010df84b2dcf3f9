"""What is fuzzed: everything that reads bytes of a peer. Each target is a function of some bytes.

It returns, or raises what :data:`ALLOWED` has, whatever the bytes are; anything else is a finding. What it checks
besides is in its docstring.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from greentx.edge.front.events import Body, End, Event, Head, Upgraded
from greentx.edge.front.events import Refused as RefusedRequest
from greentx.edge.front.limits import Limits
from greentx.edge.front.requests import RequestReader
from greentx.edge.front.text import TextCheck
from greentx.errors import ConnectionClosed, ConnectTimeout, GreentxError, RemoteProtocolError
from greentx.handler.control import ADD_CONNECTION, DISCONNECT_PING, PING, REMOVE_CONNECTION, Commands
from greentx.handler.uploads import DONE, START, UploadInterrupted, Uploads
from greentx.protocol.framing import FramingError, check_framing
from greentx.protocol.headers import Headers
from greentx.protocol.http1_parser import ResponseParser, ResponseTracker, parse_head
from greentx.protocol.replies import (
    CANCEL,
    KEEP_ALIVE,
    build_control_reply,
    build_extended_reply,
    build_reply,
    parse_reply,
)
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request
from greentx.protocol.websocket.deflate import DeflateConfig, PerMessageDeflate, accept, negotiate, parse_extensions
from greentx.protocol.websocket.frames import (
    CloseCode,
    Frame,
    FrameParser,
    MessageAssembler,
    Opcode,
    build_close,
    build_frame,
    parse_close,
    validate_message,
)
from greentx.protocol.websocket.handshake import Accepted, Handshake, Refused, accept_key, check_answer
from greentx.protocol.websocket.machine import Machine
from greentx.protocol.websocket.registry import CLOSED, OPEN, Entry
from greentx.relay.claims import StickyNames, parse_key
from greentx.relay.messages import (
    Hello,
    Welcome,
    build_hello,
    build_servers,
    build_welcome,
    numbers,
    parse_hello,
    parse_published,
    parse_servers,
    parse_welcome,
    split,
    topic_of,
)
from greentx.relay.messages import Server as RelayServer
from greentx.relay.socket_messages import (
    Cast,
    Opened,
    build_accept,
    parse_accept,
    parse_cast,
    parse_done,
    parse_group,
    parse_number,
    parse_numbers,
    parse_open,
    parse_reason,
    parse_state,
    split_flags,
)
from greentx.relay.window import Lane
from greentx.standin.client import HTTPClient, Mongrel2Client, WebSocketClient
from greentx.standin.router import Router
from greentx.transport.keys import public_key
from greentx.wsgi.environ import add_request

__all__ = ["ALLOWED", "CORPUS", "TARGETS", "Target"]

DATA = Path(__file__).parent.parent / "data"

#: Inputs that were findings once, in a folder for each target.
CORPUS = DATA / "fuzz"

#: What a parser may raise. The last two say that one request is to be refused.
ALLOWED = (GreentxError, FramingError, UploadInterrupted)

# What stands for a message size limit of an application.
MAX_SIZE = 65536


class Target(NamedTuple):
    """One of them.

    Attributes:
        name: Of its files.
        run: Reads some bytes.
        seeds: Inputs to begin with.
        grow: Ways to make an input of about so many bytes out of a repeated piece; by name.
        factor: How many times the size of its input it may take of memory, and ``extra`` bytes: more than 10 only where
            a bound of ours says how much.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    grow: dict[str, Callable[[bytes, int], bytes]]
    factor: float = 10
    extra: int = 65536


def times(piece: bytes, size: int) -> bytes:
    return (piece or b"x") * (size // max(1, len(piece)))


# -- requests ----------------------------------------------------------------------------------------------------------


def read_request(data: bytes) -> None:
    """Parsed twice, as the second one comes out of a cache, it is the same request; what is built is parsed again."""
    for _ in range(2):
        request = parse_request(data)
        use_request(request)
    with contextlib.suppress(GreentxError):
        for protocol in ("tnetstring", "json"):
            again = parse_request(request.encode(protocol))
            assert (again.sender, again.conn_id, again.path, again.body) == (
                request.sender,
                request.conn_id,
                request.path,
                request.body,
            )
    with contextlib.suppress(FramingError):
        check_framing(request, apart=request.has("UPLOAD_STREAM"))
        add_request({"SCRIPT_NAME": "/a", "wsgi.url_scheme": "http"}, request)
    with contextlib.suppress(GreentxError):
        _ = request.data
        request.json()


def use_request(request: Request) -> None:
    """Look at it as the intake and applications do."""
    assert isinstance(request.headers, Headers)
    for _, value in request.headers.client():
        assert isinstance(value, str)
    request.persistence()
    request.is_notice()
    request.is_disconnect()
    request.credits()
    _ = request.query
    for name in ("cookie", "FLAGS", "connection", "upgrade"):
        request.header(name)
        request.headers.first(name)
        request.headers.get_all(name)
    assert len(repr(request)) < 2000


def messages(folder: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / folder).glob("*.msg"))]


HEADERS = {"METHOD": "GET", "PATH": "/", "VERSION": "HTTP/1.1", "connection": "close", "cookie": ["a=b", "c=d"]}
BASE = b"6:METHOD,3:GET,4:PATH,1:/,"


def grown_request(headers: bytes, body: bytes = b"") -> bytes:
    return b"U 1 / %d:%b%b}%d:%b," % (len(BASE) + len(headers), BASE, headers, len(body), body)


def json_request(headers: bytes, body: bytes = b"") -> bytes:
    text = b'{"METHOD":"GET"' + headers + b"}"
    return b"U 1 / %d:%b,%d:%b," % (len(text), text, len(body), body)


def netstring(data: bytes, tag: bytes = b",") -> bytes:
    return b"%d:%b%b" % (len(data), data, tag)


def many_headers(piece: bytes, size: int) -> bytes:
    return b"".join(netstring(b"%d%b" % (n, piece[:20])) + netstring(piece) for n in range(size // (len(piece) + 16)))


def one_header(name: str) -> Callable[[bytes, int], bytes]:
    return lambda piece, size: grown_request(netstring(name.encode()) + netstring(times(piece, size)))


REQUESTS = Target(
    "requests",
    read_request,
    lambda: [
        *messages("valid"),
        *messages("invalid"),
        *(build_request("U", 1, "/", HEADERS, b"body", protocol=protocol) for protocol in ("tnetstring", "json")),
        b"U 1 / 37:6:METHOD,3:GET,1:a,15:1:b,1:1#1:c,0:~}}0:,",
    ],
    {
        "body": lambda piece, size: grown_request(b"", times(piece, size)),
        "value": one_header("a"),
        "connection": one_header("connection"),
        "cookie": one_header("cookie"),
        "query": one_header("QUERY"),
        "host": one_header("host"),
        "length": one_header("content-length"),
        "headers": lambda piece, size: grown_request(many_headers(piece, size)),
        "values": lambda piece, size: grown_request(
            b"1:a," + netstring(times(netstring(piece), size), b"]"),
        ),
        "raw headers": lambda piece, size: grown_request(times(piece, size)),
        "json value": lambda piece, size: json_request(b',"a":"%b"' % times(piece, size).replace(b'"', b"'")),
        "json raw": lambda piece, size: json_request(times(piece, size)),
        "path": lambda piece, size: b"U 1 /%b 16:6:METHOD,4:JSON,}0:," % times(piece.replace(b" ", b""), size),
        "sender": lambda piece, size: times(piece, size),
    },
    # A query of nothing but "%", while the standard library decodes it; next to it 80, of a hundred thousand headers
    # of a byte each. Bounded by the server's limits.buffer_size.
    factor=200,
)


# -- replies -----------------------------------------------------------------------------------------------------------


def read_reply(data: bytes) -> None:
    """A reply that was read is built again byte for byte, but for the blank that may end its ids."""
    for mongrel2 in (True, False):
        reply = parse_reply(data, mongrel2=mongrel2)
        assert len(repr(reply)) < 10 * len(data) + 2000
        again = parse_reply(reply.encode(), mongrel2=mongrel2)
        assert (again.sender, again.conn_ids, again.body) == (reply.sender, reply.conn_ids, reply.body)


REPLIES = Target(
    "replies",
    read_reply,
    lambda: [
        build_reply("U", 1, b"HTTP/1.1 200 OK\r\n\r\n"),
        build_reply("a-b", range(128), b""),
        build_reply("U", 1, KEEP_ALIVE),
        build_control_reply("U", b"guid"),
        build_extended_reply("U", [1, 2], "ctl", {b"credits": 5}),
        b"U 3:X 1, " + CANCEL,
        b"U 2:1 , body",
    ],
    {
        "body": lambda piece, size: build_reply("U", 1, times(piece, size)),
        "ids": lambda piece, size: b"U %d:%b, body" % (size // 2 * 2 - 1, b" ".join([b"1"] * (size // 2))),
        "extended": lambda piece, size: b"U 3:X 1, " + netstring(times(netstring(piece), size), b"]"),
        "sender": lambda piece, size: times(piece, size),
    },
    factor=40,  # a list of empty texts: only what Mongrel2 itself is told is read as a list
)


# -- frames ------------------------------------------------------------------------------------------------------------


def read_frames(data: bytes) -> None:
    """However the bytes are cut, the same frames come out, and the same fault."""
    for require_mask in (True, False, None):
        whole = FrameParser(require_mask=require_mask, max_size=MAX_SIZE)
        pieces = FrameParser(require_mask=require_mask, max_size=MAX_SIZE)
        cut = len(data) // 3
        assert _frames(whole, [data]) == _frames(pieces, [data[:cut], data[cut : 2 * cut], data[2 * cut :]])
        frames, _ = _frames(FrameParser(require_mask=require_mask, max_size=MAX_SIZE), [data])
        assembler = MessageAssembler(max_size=MAX_SIZE)
        with contextlib.suppress(RemoteProtocolError):
            for frame in frames:
                message = assembler.add(frame)
                if message is not None:
                    validate_message(message.opcode, message.rsvd, message.payload, max_size=MAX_SIZE)
                    if message.opcode == Opcode.CLOSE:
                        parse_close(message.payload)


def _frames(parser: FrameParser, pieces: Iterable[bytes]) -> tuple[list[Frame], str]:
    frames: list[Frame] = []
    try:
        for piece in pieces:
            frames += parser.feed(piece)
        parser.check()
    except RemoteProtocolError as error:
        return frames, str(error)
    return frames, ""


FRAMES = Target(
    "frames",
    read_frames,
    lambda: [
        build_frame(b"text", Opcode.TEXT),
        build_frame(b"text", Opcode.TEXT, mask=b"abcd"),
        build_frame(bytes(200), Opcode.BINARY),
        build_frame(bytes(70000), Opcode.BINARY, mask=b"\0\0\0\0"),
        build_frame(build_close(1000, "bye"), Opcode.CLOSE) + build_frame(b"", Opcode.PING),
        b"\x01\x01a\x00\x01b\x80\x01c",
        b"\x82\x7f" + struct.pack(">Q", 1 << 40),
    ],
    {
        "payload": lambda piece, size: build_frame(times(piece, min(size, MAX_SIZE)), Opcode.BINARY, mask=b"abcd"),
        "frames": lambda piece, size: times(build_frame(piece[:100], Opcode.BINARY), size),
        "fragments": lambda piece, size: b"\x01\x00" + times(b"\x00\x01a", size),
        "pings": lambda piece, size: times(b"\x89\x80abcd", size),
        "raw": times,
    },
    factor=150,  # a frame without payload is an object, for two bytes; Mongrel2 hands over one message at a time
)


# -- deflate -----------------------------------------------------------------------------------------------------------


def read_deflated(data: bytes) -> None:
    """What comes out is within the limit, and the state of a connection that failed is not used again."""
    for context in (True, False):
        deflate = PerMessageDeflate(
            encodes_with_context=context, decodes_with_context=context, encoding_bits=12, decoding_bits=12
        )
        for _ in range(2):
            assert len(deflate.decode(data, MAX_SIZE)) <= MAX_SIZE
        with contextlib.suppress(RemoteProtocolError):
            validate_message(Opcode.TEXT, 4, data, max_size=MAX_SIZE, deflate=deflate)


def deflated(data: bytes) -> bytes:
    deflate = PerMessageDeflate(
        encodes_with_context=False, decodes_with_context=False, encoding_bits=12, decoding_bits=12, threshold=0
    )
    return deflate.encode(data)[0]


DEFLATE = Target(
    "deflate",
    read_deflated,
    lambda: [
        deflated(b"hello " * 100),
        deflated(bytes(200_000)),
        b"\x00",
        b"",
        b"\x03\x00" * 10,
        b"\x01\x00\x00\xff\xff" * 20,
    ],
    {
        "text": lambda piece, size: deflated(times(piece, size)),
        "streams": lambda piece, size: times(b"\x03\x00", size),
        "empty blocks": lambda piece, size: times(b"\x00\x00\x00\xff\xff", size),
        "raw": times,
    },
    extra=20 * MAX_SIZE,  # max_message_size, as bytes, as text, and what zlib holds for it
)


# -- response heads ----------------------------------------------------------------------------------------------------


def read_response(data: bytes) -> None:
    """However the bytes are cut, the same response comes out; the follower agrees on where it ends."""
    for method in ("GET", "HEAD"):
        whole, pieces, tracker = ResponseParser(method), ResponseParser(method), ResponseTracker(method)
        cut = len(data) // 2
        results = [_response(whole, [data]), _response(pieces, [data[:cut], data[cut:]])]
        assert results[0] == results[1], results
        complete = tracker.feed(data)
        # The follower lets pass what browsers may judge; what the strict one read whole, it has to see end as well.
        if whole.complete and results[0][0]:
            assert complete and tracker.excess == len(whole.trailing)
    with contextlib.suppress(RemoteProtocolError):
        parse_head(data)


def _response(parser: ResponseParser, pieces: Iterable[bytes]) -> tuple[bool, int, bytes, bytes]:
    complete = False
    try:
        for piece in pieces:
            complete = parser.feed(piece)
        parser.close()
    except RemoteProtocolError:
        return False, 0, b"", b""
    return complete, parser.status, parser.body, parser.trailing


HEAD = b"HTTP/1.1 200 OK\r\n"

HEADS = Target(
    "heads",
    read_response,
    lambda: [
        HEAD + b"Content-Length: 2\r\n\r\nokHTTP/1.1",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
        HEAD + b"A: b\r\n c\r\n\td\r\n\r\nuntil close",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x00",
        b"HTTP/1.0 304 Not Modified\nA:\n\n",
    ],
    {
        "value": lambda piece, size: HEAD + b"A: " + times(piece, size) + b"\r\n\r\n",
        "fields": lambda piece, size: HEAD + times(b"A:" + piece + b"\r\n", size) + b"\r\n",
        "folded": lambda piece, size: HEAD + b"A: b\r\n" + times(b" " + piece + b"\r\n", size) + b"\r\n",
        "blanks": lambda piece, size: HEAD + b"Content-Length" + times(b" ", size) + b": 1\r\n\r\n",
        "lengths": lambda piece, size: HEAD + b"Content-Length: 1" + times(b", 1", size) + b"\r\n\r\na",
        "body": lambda piece, size: HEAD + b"Content-Length: %d\r\n\r\n" % size + times(piece, size),
        "chunks": lambda piece, size: HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + times(b"1\r\na\r\n", size),
        "interim": lambda piece, size: times(b"HTTP/1.1 100 C\r\n\r\n", size),
        "trailers": lambda piece, size: (
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + times(b"A:" + piece + b"\r\n", size) + b"\r\n"
        ),
        "raw": times,
    },
    factor=100,  # of chunks of one byte each, kept by a client; a head has max_head
)


# -- uploads -----------------------------------------------------------------------------------------------------------


def read_uploads(data: bytes) -> None:
    """Each line is the value of a header. Only a request that Mongrel2 itself could have announced is a stored body."""
    lines = data.split(b"\n")
    uploads = Uploads("/nowhere/upload.XXXXXX")
    for at in range(0, min(len(lines), 40), 4):
        start, done, length, coding = (lines[at : at + 4] + [b""] * 4)[:4]
        fields = {START: start, DONE: done, "content-length": length, "transfer-encoding": coding}
        headers: dict[str, Any] = {"METHOD": "POST", **{name: value for name, value in fields.items() if value}}
        request = parse_request(build_request("U", 1, "/", headers, b"x" * (at % 2)))
        if uploads.admit(request) and request.stored is not None:
            request.stored.give_away()
            assert request.stored.path.startswith("/nowhere/upload.")
            assert "/" not in request.stored.path.removeprefix("/nowhere/")


UPLOADS = Target(
    "uploads",
    read_uploads,
    lambda: [
        b"/tmp/upload.abcdef\n\n1000\n\n/tmp/upload.abcdef\n/tmp/upload.abcdef\n1000\n",
        b"../../etc/upload.abcdef\n\n\nchunked\n../../etc/upload.abcdef\n../../etc/upload.abcdef\n\nchunked",
        b"/tmp/upload.abcdef\n\n 1x\nChunked",
    ],
    {
        "name": lambda piece, size: times(piece, size).replace(b"\n", b"") + b"\n\n1000\n",
        "length": lambda piece, size: b"/tmp/upload.abcdef\n\n" + times(piece, size).replace(b"\n", b"") + b"1\n",
        "zeros": lambda piece, size: b"/tmp/upload.abcdef\n\n" + times(b"0", size) + b"x\n",
        "blanks": lambda piece, size: b"/tmp/upload.abcdef\n\n" + times(b" ", size) + b"x\n",
    },
    factor=30,
)


# -- handshakes --------------------------------------------------------------------------------------------------------

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def read_handshake(data: bytes) -> None:
    """Each line is ``name: value``. What is let in has a key, and an answer that a client of ours accepts."""
    headers: dict[str, Any] = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
    }
    for line in data.decode("latin-1").split("\n"):
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value)
        if name.isupper():
            headers[name.lower()] = [value, value]
    config = DeflateConfig()
    answer = Handshake(origins=["http://a"], subprotocols=("chat", "b"), deflate=config).check(headers, accept_key(KEY))
    assert isinstance(answer, (Accepted, Refused))
    extensions = headers.get("sec-websocket-extensions", "")
    for values in (extensions, [extensions] if isinstance(extensions, str) else extensions):
        with contextlib.suppress(RemoteProtocolError):
            parse_extensions(values)
            accept(values, config)
        with contextlib.suppress(RemoteProtocolError):
            negotiate(values, config)
    with contextlib.suppress(RemoteProtocolError):
        answered = {**headers, "sec-websocket-accept": accept_key(KEY).decode()}
        check_answer(101, answered, KEY, subprotocols=["chat"], deflate=config)


def header_of(name: bytes) -> Callable[[bytes, int], bytes]:
    return lambda piece, size: name + b": " + times(piece.replace(b"\n", b""), size)


HANDSHAKES = Target(
    "handshakes",
    read_handshake,
    lambda: [
        b"sec-websocket-extensions: permessage-deflate; client_max_window_bits\nsec-websocket-protocol: chat, b",
        b'sec-websocket-extensions: a; b="c\\"d", permessage-deflate; server_max_window_bits=10\norigin: http://a',
        b"connection: keep-alive, Upgrade\nsec-websocket-key: x\nupgrade: websocket, x",
        b"CONNECTION:upgrade\nSEC-WEBSOCKET-EXTENSIONS: permessage-deflate",
    ],
    {
        "extensions": header_of(b"sec-websocket-extensions"),
        "offers": lambda piece, size: b"sec-websocket-extensions: " + times(b"permessage-deflate,", size),
        "parameters": lambda piece, size: b"sec-websocket-extensions: permessage-deflate" + times(b"; a=b", size),
        "quoted": lambda piece, size: b'sec-websocket-extensions: a; b="' + times(b"\\x", size),
        "subprotocols": lambda piece, size: b"sec-websocket-protocol: " + times(b"a,", size),
        "connection": header_of(b"connection"),
        "key": header_of(b"sec-websocket-key"),
        "origin": header_of(b"origin"),
    },
    factor=150,  # of an offer of two letters each, which the server's limits.buffer_size bounds
)


# -- WebSocket messages as Mongrel2 hands them over --------------------------------------------------------------------


def read_messages(data: bytes) -> None:
    """A first byte, a length, a payload, again and again. An entry that was CLOSED stays so, and ends once."""
    for deflate in (False, True):
        entry = Entry(("U", "1"), "/")
        entry.state = OPEN
        if deflate:
            entry.deflate = PerMessageDeflate(
                encodes_with_context=True, decodes_with_context=True, encoding_bits=12, decoding_bits=12
            )
        machine = Machine(max_size=MAX_SIZE)
        ends = 0
        at = 0
        while at + 1 < len(data):
            first, size = data[at], data[at + 1]
            headers = {"METHOD": "WEBSOCKET", "FLAGS": f"0x{first:X}"}
            request = Request("U", "1", "/", headers, data[at + 2 : at + 2 + size], "WEBSOCKET")
            at += 2 + size
            for step in (machine.message(entry, request), machine.stray(request)):
                ends += step.event is not None
            if entry.fault is not None and at % 3 == 0:
                ends += machine.overdue(entry).event is not None
        assert ends <= 1
        assert ends == 0 or entry.state == CLOSED


MESSAGES = Target(
    "messages",
    read_messages,
    lambda: [
        b"\x81\x04text\x82\x01\xff\x89\x00\x8a\x00\x88\x02\x03\xe8",
        b"\xc1" + bytes([len(deflated(b"hello" * 50))]) + deflated(b"hello" * 50),
        b"\x88\x00\x81\x01a",
        b"\x80\x00",
    ],
    {"messages": lambda piece, size: times(b"\x81" + bytes([len(piece[:100])]) + piece[:100], size), "raw": times},
    factor=20,
    extra=40 * MAX_SIZE,
)


# -- control messages --------------------------------------------------------------------------------------------------


class _Controlled:
    """Accepts all commands."""

    def add(self, asker: str, sender: str, push: Any, sub: Any, *, mongrel2: bool, key: bytes | None) -> None:
        assert isinstance(push[1], int) and isinstance(sub[0], str)
        if key is not None:
            public_key(key)

    def remove(self, asker: str, sender: str) -> None:
        raise KeyError("no such connection")

    def prove(self, sender: str, text: str) -> None:
        assert len(text) <= 200

    def status(self) -> dict[str, Any]:
        return {}

    def stop(self) -> None:
        pass


def read_control(data: bytes) -> None:
    """Each message has one of the answers, and what is wrong is shown in part."""
    answer = Commands(_Controlled()).answer(data, "127.0.0.1")
    assert answer in (b"PONG", b"RECEIVED", b"{}") or answer.startswith(b"ERROR ")
    assert len(answer) < 1500, answer


def command(path: str, method: str, body: bytes = b"", **headers: str) -> bytes:
    return build_request("s", -1, path, {"METHOD": method, **headers}, body)


CONTROL = Target(
    "control",
    read_control,
    lambda: [
        b"PING",
        b"status",
        command(ADD_CONNECTION, "JSON", b'{"push": ["h", 1], "sub": ["h", "2"], "mongrel2": true}'),
        command(
            ADD_CONNECTION,
            "JSON",
            b'{"push": ["h", 1], "sub": ["h", 2], "curve": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"}',
        ),
        command(REMOVE_CONNECTION, "JSON", b"{}"),
        command(PING, "MONGREL2", QUERY="text=guid"),
        command(DISCONNECT_PING, "MONGREL2"),
    ],
    {
        "raw": times,
        "body": lambda piece, size: command(ADD_CONNECTION, "JSON", times(piece, size)),
        "list": lambda piece, size: command(ADD_CONNECTION, "JSON", b'{"push": [' + times(b"[],", size) + b"1]}"),
        "depth": lambda piece, size: command(ADD_CONNECTION, "JSON", times(b"[", size)),
        "query": lambda piece, size: command(PING, "MONGREL2", QUERY="&".join(["a=b"] * (size // 4))),
        "sender": lambda piece, size: times(b"s", size) + command(REMOVE_CONNECTION, "JSON", b"{}"),
    },
    factor=60,  # JSON of empty lists; a message has 64 KiB. CPython 3.13 takes a fifth more for nested ones
)


# -- relay messages ----------------------------------------------------------------------------------------------------


def read_relayed(data: bytes) -> None:
    """Both sides' messages, whatever kind it is meant to be."""
    with contextlib.suppress(RemoteProtocolError):
        parse_published(data)
    try:
        kind, words, payload = split(data)
    except RemoteProtocolError:
        return
    assert kind and b"\n" not in kind
    readers: list[Callable[[], object]] = [
        lambda: parse_hello(words, payload),
        lambda: parse_welcome(words, payload),
        lambda: parse_servers(payload),
        lambda: numbers(words),
        lambda: [parse_key(word) for word in words],
    ]
    for read in readers:
        with contextlib.suppress(RemoteProtocolError):
            read()
    # What a client writes into its query is a key that a Node could claim, or none.
    for key in StickyNames(["sid", "room"]).keys_of(payload):
        assert parse_key(key) == key
    # What numbers a Node makes up does no harm.
    with contextlib.suppress(RemoteProtocolError, ValueError):
        received, accepted = numbers(words)
        lane: Lane[int] = Lane()
        lane.sent(10, 1)
        assert lane.acknowledge(received, accepted) in ([], [1])


_SERVER = RelayServer("U", "r.1", "tcp://127.0.0.1:1", True, False, "")

RELAY = Target(
    "relay",
    read_relayed,
    lambda: [
        build_hello(Hello("node", 10, "what")),
        b"\n".join(build_welcome(Welcome("r", 1000, "tcp://127.0.0.1:2", [_SERVER]))),
        b"servers 1\n" + build_servers([_SERVER, _SERVER]),
        b"request 17 r.1 redelivered\n" + build_request("U", 1, "/", HEADERS),
        b"begun 1 2 3\n",
        b"received 1 1\n",
        b"claims sid=a sid=b%20c\nroom=d&sid=%41+b",
        topic_of("topic") + b"message",
    ],
    {
        "servers": lambda piece, size: b"servers 1\n[" + times(b'{"sender":"a"},', size) + b"{}]",
        "depth": lambda piece, size: b"hello 1\n" + times(b"[", size),
        "lists": lambda piece, size: b"hello 1\n[" + times(b"[],", size) + b"1]",
        "words": lambda piece, size: b"begun " + times(b"1 ", size) + b"1\n",
        "claims": lambda piece, size: b"claims " + times(b"sid=a ", size) + b"sid=b\n",
        "query": lambda piece, size: b"claims sid=a\n" + times(b"sid=&", size) + b"sid=b",
        "digits": lambda piece, size: b"received " + times(b"9", size) + b" 1\n",
        "published": lambda piece, size: topic_of("t") + times(piece, size),
        "topic": lambda piece, size: topic_of(times(piece, size)) + b"m",
        "raw": times,
    },
    factor=80,
)


def read_socket_message(data: bytes) -> None:
    """What a relay and its Nodes tell each other about WebSockets; what is read is written as it was."""
    head, _, payload = data.partition(b"\n")
    words = head.split(b" ")[1:]
    for read in (parse_number, parse_done, lambda words: parse_numbers(words, 3)):
        with contextlib.suppress(RemoteProtocolError):
            found = read(words)
            split_flags(found if isinstance(found, int) else 0)
    for parse in (parse_group, parse_reason, parse_state):
        with contextlib.suppress(RemoteProtocolError):
            parse(payload)
    with contextlib.suppress(RemoteProtocolError):
        opened = parse_open(payload)
        assert parse_open(opened.build()) == opened
    with contextlib.suppress(RemoteProtocolError):
        cast = parse_cast(payload)
        assert parse_cast(cast.build()) == cast
    with contextlib.suppress(RemoteProtocolError):
        accepted = parse_accept(payload)
        assert parse_accept(build_accept(*accepted)) == accepted


SOCKETS = Target(
    "sockets",
    read_socket_message,
    lambda: [
        b"ws-open 1\n"
        + Opened("U", True, True, "chat", ("a", "b"), 7, b'{"n":1}', build_request("U", 1, "/", {})).build(),
        b"ws-cast 1 1\n" + Cast("group", frozenset({("U", "1")}), b"message").build(),
        b"ws-accept 1\n" + build_accept("chat", [("name", "value")]),
        b"ws-msg 1 17 129\nmessage",
        b"ws-done 1 2 3 4\n",
        b'ws-state 1\n{"a":[1]}',
        b"ws-join 1\ngroup",
    ],
    {
        "words": lambda piece, size: b"ws-done " + times(b"1 ", size) + b"1\n",
        "digits": lambda piece, size: b"ws-done " + times(b"9", size) + b" 1\n",
        "depth": lambda piece, size: b"ws-state 1\n" + times(b"[", size),
        "list": lambda piece, size: b"ws-state 1\n[" + times(b"[],", size) + b"1]",
        "message": lambda piece, size: b"ws-cast 1 1\n" + Cast(None, frozenset(), times(piece, size)).build(),
        "length": lambda piece, size: b"ws-open 1\n" + times(b"9", size) + b":",
        "raw": times,
    },
    factor=80,
)

# -- what handlers write, as a stand-in for Mongrel2 and its clients read it -------------------------------------------


class _Host:
    """A Server without sockets."""

    sender, encoding, started = "U", "tnetstring", True

    def __init__(self) -> None:
        self.router = Router("U", "tnetstring", on_proof=lambda guid: None, check=lambda: None)
        self.router.start(self.post)

    def send(self, msg: bytes, timeout: int | None = 1000) -> None:
        parse_request(msg)

    def post(self, message: bytes) -> None:
        parse_request(message)


def read_answers(data: bytes) -> None:
    """Routing neither blocks nor raises; each client has messages and errors of ours to receive, and an end."""
    host = _Host()
    plain, http = Mongrel2Client(host), HTTPClient(host)
    plain.send("/")
    http.send("/")
    key = {"sec-websocket-key": KEY}
    sockets = WebSocketClient(host), WebSocketClient(host)
    for one in sockets:
        with contextlib.suppress(ConnectTimeout):
            one.handshake("/", key, ["chat"], deflate=True, timeout=0)
    host.router.route(build_reply("U", 4, SWITCHED))
    clients: list[Any] = [plain, http, *sockets]
    ids = [client.conn_id for client in clients]
    host.router.route(data)
    half = len(data) // 2
    for piece in (data[:half], data[half:], b""):
        host.router.route(build_reply("U", ids, piece))
    for client in clients:
        assert client.closed
        while True:
            try:
                client.recv(0)
            except RemoteProtocolError:
                continue
            except ConnectionClosed:
                break
    host.router.end()


SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12; client_max_window_bits=12\r\n\r\n"
) % accept_key(KEY)

ANSWERS = Target(
    "answers",
    read_answers,
    lambda: [*HEADS.seeds(), *FRAMES.seeds(), *REPLIES.seeds(), SWITCHED + b"\x81\x01a"],
    {**HEADS.grow, "pings": FRAMES.grow["pings"], "frames": FRAMES.grow["frames"]},
    factor=1000,  # the clients of a test keep all that came, and answer each ping with a request
)


# -- what browsers send to the embedded front end ----------------------------------------------------------------------

# Small enough to be reached.
FRONT_LIMITS = Limits(buffer_size=16384, line_size=8192, header_count=100, content_length=MAX_SIZE)


def read_front(data: bytes) -> None:
    """However the bytes are cut, held or not, the same requests come out; each one is read again as it was."""
    whole = _read_front([data])
    third = len(data) // 3
    assert whole == _read_front([data[:third], data[third : 2 * third], data[2 * third :]])
    # Pieces that are neither few nor large: what is looked at again with each of them takes the square of time.
    assert whole == _read_front([data[at : at + 61] for at in range(0, len(data), 61)], hold=True)
    events = iter(whole)
    for event in events:
        if isinstance(event, Head):
            _check_front(event, list(_until_end(events)))


def _read_front(pieces: Iterable[bytes], *, hold: bool = False) -> list[Event]:
    """Read the pieces; bodies are joined, and half the handshakes are accepted."""
    reader = RequestReader(FRONT_LIMITS, hold=hold)
    found: list[Event] = []
    for piece in pieces:
        found += reader.feed(piece)
        while reader.held:
            last = found[-1]
            accepted = isinstance(last, Head) and len(last.target) % 2 == 0
            found += reader.upgrade() if accepted else reader.resume()
    if not reader.over:
        found += reader.eof()
        assert reader.over
    events: list[Event] = []
    body: list[bytes] = []
    for event in found:
        if isinstance(event, Body):
            assert event.data
            body.append(event.data)
            continue
        if body:
            events.append(Body(b"".join(body)))
            body.clear()
        if isinstance(event, Upgraded):
            # Of what follows it, what had come.
            event.rest = b""
        elif isinstance(event, RefusedRequest):
            # Of several faults, the one that was seen first.
            event.reason = ""
        events.append(event)
    return events


def _until_end(events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        yield event
        if not isinstance(event, Body):
            return


def _check_front(head: Head, rest: list[Event]) -> None:
    """Nothing in a head can be read in another way, and what it is written as is read as itself."""
    fields = head.headers
    names = [name for name, _ in fields]
    assert all(name and name == name.lower() and b" " not in name for name in names)
    assert not any(byte in value for _, value in fields for byte in b"\0\r\n\x7f")
    assert names.count(b"host") == 1 or (head.version == b"HTTP/1.0" and b"host" not in names)
    assert head.target.startswith(b"/") or (head.target, head.method) == (b"*", b"OPTIONS")
    body = b"".join([event.data for event in rest if isinstance(event, Body)])
    if not rest or isinstance(rest[-1], RefusedRequest):
        return
    if isinstance(rest[-1], End):
        assert head.chunked or len(body) == (head.content_length or 0)
    if head.chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    again = b"%b %b %b\r\n%b\r\n%b" % (head.method, head.target, head.version, lines, body)
    if len(again) - len(body) <= FRONT_LIMITS.buffer_size:
        assert _read_front([again])[: 1 + len(rest)] == [head, *rest]


FRONT_HEAD = b"POST /a?b HTTP/1.1\r\nHost: a\r\n"
FRONT_CHUNKED = FRONT_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

FRONT_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: k\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)


def front_field(name: bytes) -> Callable[[bytes, int], bytes]:
    return lambda piece, size: FRONT_HEAD + name + times(piece, size) + b"\r\n\r\n"


FRONT = Target(
    "front",
    read_front,
    lambda: [
        FRONT_HEAD + b"\r\n" + FRONT_HEAD + b"Content-Length: 3\r\n\r\nabc\r\n" + FRONT_HEAD + b"\r\n",
        FRONT_CHUNKED + b'1;a="b\\"";c\r\na\r\n0a\r\n0123456789\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.0\r\n\r\n',
        b"GET http://[::1]:80/a?b HTTP/1.1\r\nHost: x\r\nConnection: close, a\r\nCookie: b\r\ncookie: c\r\n\r\n",
        FRONT_UPGRADE + b"\x81\x80abcd",
        FRONT_HEAD + b"Expect: 100-Continue\r\nContent-Length: 1\r\n\r\naOPTIONS * HTTP/1.9\r\nhost:\r\n\r\n",
        FRONT_HEAD + b"A: b\r\n c\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b'@a/b%20 {"c":1}\0<d e="f">}\0</d>\0\r\n@* {"type":"ping"}\0' + FRONT_HEAD + b"\r\n@a:b {}\0",
    ],
    {
        "line": times,
        "target": lambda piece, size: b"GET /" + times(piece, size) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "fields": lambda piece, size: FRONT_HEAD + times(b"A:" + piece + b"\r\n", size) + b"\r\n",
        "unfinished": lambda piece, size: FRONT_HEAD + times(b"A: b\r\n", size) + piece,
        "value": front_field(b"A: "),
        "host": lambda piece, size: b"GET / HTTP/1.1\r\nHost: " + times(piece, size) + b"\r\n\r\n",
        "connection": front_field(b"Connection: "),
        "expect": front_field(b"Expect: "),
        "coding": front_field(b"Transfer-Encoding: "),
        "length": front_field(b"Content-Length: 1"),
        "body": lambda piece, size: FRONT_HEAD + b"Content-Length: %d\r\n\r\n" % size + times(piece, size),
        "chunks": lambda piece, size: FRONT_CHUNKED + times(b"1\r\na\r\n", size),
        "extensions": lambda piece, size: FRONT_CHUNKED + times(b"1;" + piece + b"\r\na\r\n", size),
        "extension": lambda piece, size: FRONT_CHUNKED + b"1" + times(b";a=" + piece, size) + b"\r\n",
        "trailers": lambda piece, size: FRONT_CHUNKED + b"0\r\n" + times(b"A:" + piece + b"\r\n", size) + b"\r\n",
        "requests": lambda piece, size: times(b"GET /a HTTP/1.1\r\nHost:\r\n\r\n", size),
        "empty lines": lambda piece, size: times(b"\r\n", size),
        "path of JSON": lambda piece, size: b"@" + times(piece, size) + b" {}\0",
        "JSON": lambda piece, size: b"@a {" + times(b"}" + piece, size) + b"}\0",
        "XML": lambda piece, size: b"<a " + times(b">" + piece, size) + b">\0",
        "messages": lambda piece, size: times(b"@a {}\0", size),
    },
    factor=80,  # a request of 30 bytes is a head and some texts, three times; a server reads one after the other
)


def read_front_frames(data: bytes) -> None:
    """However the bytes are cut, the same messages come out; text that is not waited for would not have been text."""
    whole, _ = _front_messages([data], checked=False)
    for size in (7, 61, max(1, len(data))):
        found, refused = _front_messages([data[at : at + size] for at in range(0, len(data), size)], checked=True)
        assert whole[: len(found)] == found
        rest = [message for message in whole[len(found) :] if message.opcode < Opcode.CLOSE]
        if not refused:
            assert len(found) == len(whole)
        elif rest:
            assert (rest[0].opcode, rest[0].rsvd) == (Opcode.TEXT, 0)
            assert "\N{REPLACEMENT CHARACTER}" in rest[0].payload.decode(errors="replace")


def _front_messages(pieces: Iterable[bytes], *, checked: bool) -> tuple[list[Frame], bool]:
    """Read the pieces as the front end does; return the messages, and whether text was refused before it was whole."""
    parser, assembler = FrameParser(require_mask=True, max_size=MAX_SIZE), MessageAssembler(max_size=MAX_SIZE)
    text = TextCheck()
    messages: list[Frame] = []
    try:
        for piece in pieces:
            for frame in parser.feed(piece):
                if checked:
                    text.frame(frame)
                message = assembler.add(frame)
                if message is not None:
                    messages.append(message)
            parser.check()
            if checked and text.concerns(parser.begun):
                part = parser.beginning(text.seen)
                if part is not None:
                    text.part(part)
    except RemoteProtocolError as error:
        return messages, error.close_code == CloseCode.INVALID_DATA
    return messages, False


FRONT_FRAMES = Target(
    "front-frames",
    read_front_frames,
    lambda: [
        build_frame("tëxt€😀".encode(), Opcode.TEXT, mask=b"abcd"),
        build_frame(b"\xce", Opcode.TEXT, fin=False, mask=b"abcd")
        + build_frame(b"p", Opcode.PING, mask=b"abcd")
        + build_frame(b"\xba", Opcode.CONT, mask=b"\0\0\0\0"),
        build_frame(b"\xce\xba\xf4\x90\x80\x80edited", Opcode.TEXT, mask=b"abcd"),
        build_frame(b"\xff" * 200, Opcode.TEXT, 4, mask=b"abcd"),
        build_frame(b"\xff" * 200, Opcode.BINARY, mask=b"abcd") + build_frame(b"", Opcode.CONT, mask=b"abcd"),
    ],
    {
        "text": lambda piece, size: build_frame(times(b"\xc3\xa4", min(size, MAX_SIZE)), Opcode.TEXT, mask=b"abcd"),
        "unfinished": lambda piece, size: build_frame(bytes(size), Opcode.TEXT, mask=piece[:4].ljust(4))[:-1],
        "fragments": lambda piece, size: b"\x01\x80abcd" + times(b"\x00\x81abcda", size),
    },
    factor=250,  # as with frames, in four ways
)

TARGETS = {
    one.name: one
    for one in (
        ANSWERS,
        REQUESTS,
        REPLIES,
        FRAMES,
        DEFLATE,
        HEADS,
        UPLOADS,
        HANDSHAKES,
        MESSAGES,
        CONTROL,
        RELAY,
        SOCKETS,
        FRONT,
        FRONT_FRAMES,
    )
}
