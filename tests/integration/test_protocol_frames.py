"""What a handler is told of the frames of a WebSocket's client, and what its end looks like: one table for both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from front_ends import Differs, FrontEnd
from wire_rig import SENDER, RawBrowser, RawHandler, raw_handler

from greentx.edge import Handler
from greentx.protocol.websocket.frames import FrameParser, Opcode, build_close, build_frame, parse_close

MASK = b"abcd"
ASK = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def frame(payload: bytes, opcode: int = Opcode.TEXT, rsvd: int = 0, *, fin: bool = True) -> bytes:
    """One of a client, also with an opcode that nobody knows."""
    made = bytearray(build_frame(payload, Opcode.TEXT, rsvd, fin=fin, mask=MASK))
    made[0] = made[0] & 0xF0 | opcode
    return bytes(made)


def ended(code: int | None = None) -> list[str]:
    """The front end ends the connection, with a close frame or without one."""
    return ["end" if code is None else f"end {code}"]


#: What is sent, and what the handler is told: FLAGS and payload of each message, or the end.
ROWS: dict[str, tuple[bytes, list[str] | Differs]] = {
    "text": (frame(b"hi"), ["0x81 b'hi'"]),
    "binary": (frame(b"\0\xff", Opcode.BINARY), ["0x82 b'\\x00\\xff'"]),
    "nothing": (frame(b""), ["0x81 b''"]),
    "a ping, a pong and a close": (
        frame(b"a", Opcode.PING) + frame(b"b", Opcode.PONG) + frame(build_close(1000), Opcode.CLOSE),
        ["0x89 b'a'", "0x8A b'b'", "0x88 b'\\x03\\xe8'"],
    ),
    "three fragments with a ping between them": (
        frame(b"1", fin=False)
        + frame(b"2", Opcode.CONT, fin=False)
        + frame(b"ping", Opcode.PING)
        + frame(b"3", Opcode.CONT),
        ["0x89 b'ping'", "0x81 b'123'"],
    ),
    "reserved bits": (frame(b"z", rsvd=4) + frame(b"y", Opcode.BINARY, 7), ["0xC1 b'z'", "0xF2 b'y'"]),
    "a reserved bit on the first fragment": (
        frame(b"1", rsvd=4, fin=False) + frame(b"2", Opcode.CONT),
        ["0xC1 b'12'"],
    ),
    "a frame behind a close": (
        frame(build_close(1000), Opcode.CLOSE) + frame(b"late"),
        ["0x88 b'\\x03\\xe8'", "0x81 b'late'"],
    ),
    "a close code that may not be sent": (frame(b"\x00\x01", Opcode.CLOSE), ["0x88 b'\\x00\\x01'"]),
    "a megabyte": (frame(bytes(1 << 20), Opcode.BINARY), ["0x82 1048576 bytes"]),
    "a length that is not in its shortest form": (
        b"\x81\xfe\x00\x02" + frame(b"hi")[2:],
        Differs("Frames that break the rules", ["0x81 b'hi'"], ended(1002)),
    ),
    "an opcode that nobody knows": (frame(b"x", 3), Differs("Frames that break the rules", ["0x83 b'x'"], ended(1002))),
    "a control opcode that nobody knows": (
        frame(b"x", 0xB),
        Differs("Frames that break the rules", ["0x8B b'x'"], ended(1002)),
    ),
    "a reserved bit on a continuation": (
        frame(b"1", fin=False) + frame(b"2", Opcode.CONT, 4),
        Differs("Frames that break the rules", ["0x81 b'12'"], ended(1002)),
    ),
    "text that is not UTF-8": (frame(b"\xff"), ["0x81 b'\\xff'"]),
    "the beginning of text that is not UTF-8": (
        frame(b"\xff", fin=False) + frame(b"x", Opcode.CONT),
        Differs("Frames that break the rules", ["0x81 b'\\xffx'"], ended(1007)),
    ),
    "a frame without a mask": (build_frame(b"x"), Differs("Frames that break the rules", ended(), ended(1002))),
    "a continuation of nothing": (
        frame(b"x", Opcode.CONT),
        Differs("Frames that break the rules", ended(), ended(1002)),
    ),
    "a message inside another one": (
        frame(b"1", fin=False) + frame(b"2"),
        Differs("Frames that break the rules", ended(), ended(1002)),
    ),
    "a control frame in fragments": (
        frame(b"x", Opcode.PING, fin=False),
        Differs("Frames that break the rules", ended(), ended(1002)),
    ),
    "a control frame that is too long": (
        b"\x89\xfe\x00\x7e" + MASK + bytes(126),
        Differs("Frames that break the rules", ended(), ended(1002)),
    ),
    "a length of 64 bits": (
        b"\x82\xff" + (1 << 63).to_bytes(8, "big") + MASK,
        Differs("Frames that break the rules", ended(), ended(1002)),
    ),
}


@pytest.fixture(scope="module")
def server(front_end: FrontEnd) -> Iterator[Any]:
    """One for all rows."""
    with front_end.started({"/": Handler(SENDER)}) as one:
        yield one


@pytest.fixture(scope="module")
def handler(server: Any) -> Iterator[RawHandler]:
    """One for all rows."""
    with raw_handler(server) as one:
        yield one


def shown(flags: object, body: bytes) -> str:
    return f"{flags} {body!r}" if len(body) < 100 else f"{flags} {len(body)} bytes"


@pytest.mark.parametrize(("sent", "outcome"), ROWS.values(), ids=ROWS)
def test_what_comes_of_frames(
    front_end: FrontEnd, server: Any, handler: RawHandler, sent: bytes, outcome: list[str] | Differs
) -> None:
    """All messages to the handler, in their order; and the notice, once the client has gone or was ended."""
    expected: list[str] = front_end.truth(outcome)
    with RawBrowser(server) as browser:
        browser.send(ASK)
        asked = handler.request()
        assert (asked.headers["METHOD"], len(asked.body)) == ("WEBSOCKET_HANDSHAKE", 28)
        handler.reply(asked.conn_id, HEAD)
        browser.read(HEAD)
        browser.send(sent)
        told: list[str] = []
        while len(told) < len(expected) and not expected[0].startswith("end"):
            message = handler.receive()
            assert (message.conn_id, message.path) == (asked.conn_id, "/ws")
            told.append(shown(message.headers["FLAGS"], message.body))
        if expected[0].startswith("end"):
            frames = FrameParser(require_mask=False).feed(browser.read_to_end()[len(HEAD) :])
            told = ["end" + "".join(f" {parse_close(one.payload)[0]}" for one in frames)]
        assert told == expected
    notice = handler.receive()
    assert (notice.conn_id, notice.path) == (asked.conn_id, "@*")
