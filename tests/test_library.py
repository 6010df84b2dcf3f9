"""The peer of a library that speaks the WebSocket protocol itself."""

from __future__ import annotations

import pytest

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.protocol.websocket.frames import Frame, FrameParser, Opcode, build_close, build_frame, parse_close
from greentx.protocol.websocket.library import (
    MAX_ANSWER_HEAD,
    Library,
    LibraryState,
    Switched,
    client_close,
    client_frame,
)

HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
CHAT = HEAD[:-2] + b"Sec-WebSocket-Protocol: chat\r\n\r\n"
DEFLATE = HEAD[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
TEAPOT = b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 5\r\n\r\n"


def read(library, *parts):
    """All that comes of these bytes; an error as its text, last."""
    seen = []
    try:
        for part in parts:
            seen.extend(library.read(part))
    except RemoteProtocolError as error:
        seen.append(str(error))
    return seen


WRITTEN = [
    pytest.param(HEAD, [Switched(HEAD, None)], LibraryState.FRAMES, id="a 101"),
    pytest.param(CHAT, [Switched(CHAT, "chat")], LibraryState.FRAMES, id="a subprotocol"),
    pytest.param(
        HEAD + build_frame(b"a") + build_frame(b"b", Opcode.BINARY),
        [Switched(HEAD, None), Frame(b"a", 1), Frame(b"b", 2)],
        LibraryState.FRAMES,
        id="messages",
    ),
    pytest.param(
        HEAD
        + build_frame("h\xe9".encode()[:2], fin=False)
        + build_frame(b"?", Opcode.PING)
        + build_frame("h\xe9".encode()[2:], Opcode.CONT),
        [Switched(HEAD, None), Frame(b"?", 9), Frame("h\xe9".encode(), 1)],
        LibraryState.FRAMES,
        id="fragments, which divide a character, and a ping between them",
    ),
    pytest.param(
        HEAD + build_frame(b"!", Opcode.PONG) + build_frame(build_close(4000, "why"), Opcode.CLOSE),
        [Switched(HEAD, None), Frame(b"!", 10), Frame(build_close(4000, "why"), 8)],
        LibraryState.FRAMES,
        id="a pong and a close frame",
    ),
    pytest.param(
        HEAD + build_frame(b"x" * 70000, Opcode.BINARY),
        [Switched(HEAD, None), Frame(b"x" * 70000, 2)],
        LibraryState.FRAMES,
        id="a long one",
    ),
    pytest.param(b"", [], LibraryState.HEAD, id="nothing"),
    pytest.param(b"HTTP/1.1 101 Switching", [], LibraryState.HEAD, id="a part of a head"),
]

REFUSED = [
    pytest.param(HEAD + build_frame(b"x", mask=b"abcd"), "masked", id="a masked frame"),
    pytest.param(HEAD + b"\x83\x00", "reserved opcode", id="a reserved opcode"),
    pytest.param(HEAD + build_frame(b"\x00", Opcode.CLOSE), "half a close code", id="a broken close frame"),
    pytest.param(HEAD + build_frame(b"\x03\xed", Opcode.CLOSE), "1005", id="a close code that may not travel"),
    pytest.param(HEAD + build_frame(b"x", Opcode.CONT), "continuation of nothing", id="a stray continuation"),
    pytest.param(
        HEAD + build_frame(b"x", fin=False) + build_frame(b"y"), "inside a fragmented", id="a message in a message"
    ),
    pytest.param(b"garbage\r\n\r\n", "is not an answer", id="another head"),
    pytest.param(b"HTTP/1.1 abc\r\n\r\n", "is not an answer", id="a status that is no number"),
    pytest.param(b"x" * (MAX_ANSWER_HEAD + 1), "limit 65536", id="no head at all"),
]

PLAIN_REFUSED = [
    pytest.param(HEAD + build_frame(b"x", rsvd=4), "reserved bits", id="a compressed message"),
    pytest.param(HEAD + build_frame(b"\xff"), "not UTF-8", id="text that is not UTF-8"),
    pytest.param(HEAD + build_frame(b"x", Opcode.PING, rsvd=1), "reserved bits", id="a ping with reserved bits"),
    pytest.param(DEFLATE, "none was offered", id="an extension"),
    pytest.param(b"HTTP/1.1 101 \r\nno field\r\n\r\n", "", id="a head that is none"),
]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("written", "expected", "state"), WRITTEN)
def test_what_a_library_writes_is_read(written, expected, state, plain):
    """As a whole, with and without extensions."""
    library = Library(plain=plain)
    assert read(library, written) == expected
    assert library.state is state


@pytest.mark.parametrize(("written", "expected", "state"), WRITTEN)
def test_bytes_may_be_cut_anywhere(written, expected, state):
    """In two at each byte, and in single bytes."""
    # Inside a long payload one byte is like another.
    places = [place for place in range(len(written)) if place < 300 or place > len(written) - 20]
    for place in places:
        library = Library(plain=True)
        assert read(library, written[:place], written[place:]) == expected
        assert library.state is state
    library = Library()
    assert read(library, *(written[place : place + 1] for place in range(len(written)))) == expected


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("written", "why"), REFUSED)
def test_what_no_server_may_write_is_an_error(written, why, plain):
    """Which stays: nothing more is read."""
    library = Library(plain=plain)
    assert why in read(library, written)[-1]
    assert library.state is LibraryState.FAILED
    assert why in read(library, build_frame(b"more"))[-1]


@pytest.mark.parametrize(("written", "why"), PLAIN_REFUSED)
def test_where_no_extension_was_offered_messages_are_plain(written, why):
    """Reserved bits and extensions are errors then; where they were offered, such bytes pass."""
    error = read(Library(plain=True), written)[-1]
    assert isinstance(error, str) and why in error
    assert not any(isinstance(one, str) for one in read(Library(), written))


@pytest.mark.parametrize("cut", [None, 1])
def test_an_error_hides_nothing_before_it(cut):
    """Good frames come out first, in one piece with the fault or not."""
    good = HEAD + build_frame(b"a") + build_frame(b"b")
    parts = [good + b"\x83\x00"] if cut is None else [good[:-cut], good[-cut:] + b"\x83\x00"]
    seen = read(Library(), *parts)
    assert seen[:-1] == [Switched(HEAD, None), Frame(b"a", 1), Frame(b"b", 1)]
    assert "reserved opcode" in seen[-1]


def test_another_answer_is_passed_on():
    """Once its head is whole, and then as it comes."""
    library = Library(plain=True)
    assert read(library, TEAPOT[:20], TEAPOT[20:] + b"ab") == [TEAPOT + b"ab"]
    assert library.state is LibraryState.ANSWER
    assert read(library, b"cde", b"") == [b"cde"]


@pytest.mark.parametrize("written", [b"", HEAD, TEAPOT, HEAD + build_frame(b"whole")])
def test_a_library_may_end(written):
    """Behind any answer, and without one."""
    library = Library()
    read(library, written)
    library.end()


def test_a_part_of_a_head_is_not_an_answer():
    """As the end of the library tells."""
    library = Library()
    assert read(library, HEAD[:-1]) == []
    with pytest.raises(RemoteProtocolError, match=f"{len(HEAD) - 1} bytes are not an answer"):
        library.end()


FRAMES = [
    pytest.param(b"", Opcode.TEXT, 0, id="empty"),
    pytest.param(b"a", Opcode.TEXT, 0, id="short"),
    pytest.param(b"x" * 126, Opcode.BINARY, 0, id="two bytes of length"),
    pytest.param(b"x" * 65536, Opcode.BINARY, 4, id="eight bytes of length, compressed"),
    pytest.param(b"?", Opcode.PING, 0, id="ping"),
    pytest.param(b"!" * 125, Opcode.PONG, 0, id="pong"),
]


@pytest.mark.parametrize(("payload", "opcode", "rsvd"), FRAMES)
def test_what_a_library_reads_is_a_clients_frame(payload, opcode, rsvd):
    """Whole and masked, so that any library of servers reads it."""
    assert FrameParser(require_mask=True).feed(client_frame(payload, opcode, rsvd)) == [Frame(payload, opcode, rsvd)]


def test_a_message_that_no_frame_can_hold_is_refused():
    """As build_frame() refuses it."""
    with pytest.raises(LocalProtocolError, match="limit 125"):
        client_frame(b"x" * 126, Opcode.PONG)


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (1000, "", (1000, "")),
        (4000, "b\xe9", (4000, "b\xe9")),
        (1005, "ignored", (1005, "")),
        (1001, "\xe9" * 100, (1001, "\xe9" * 61)),
        (1001, "\ud800", (1001, "?")),
    ],
)
def test_an_end_is_a_close_frame(code, reason, expected):
    """With its code, and as much of the reason as there is room for."""
    (frame,) = FrameParser(require_mask=True).feed(client_close(code, reason))
    assert frame.opcode == Opcode.CLOSE
    assert parse_close(frame.payload) == expected


@pytest.mark.parametrize("code", [1004, 1006, 1015, 0, 999, 5000])
def test_an_end_without_a_close_frame_is_none(code):
    """Codes that never travel."""
    assert client_close(code, "lost") == b""
