"""Text that cannot become UTF-8, found before its message is whole."""

from __future__ import annotations

import pytest

from greentx.edge.front.text import TextCheck
from greentx.errors import RemoteProtocolError
from greentx.protocol.websocket.frames import FrameParser, MessageAssembler, Opcode, build_frame

MASK = b"\x01\x02\x03\x04"


def frame(payload: bytes, opcode: int = Opcode.TEXT, *, fin: bool = True, rsvd: int = 0) -> bytes:
    return build_frame(payload, opcode, rsvd, fin=fin, mask=MASK)


def refused_at(data: bytes, size: int) -> int | None:
    """Feed *data* in pieces of *size* bytes; return how many had been read when it was refused."""
    parser, assembler, text = FrameParser(require_mask=True), MessageAssembler(), TextCheck()
    for at in range(0, len(data), size):
        try:
            for one in parser.feed(data[at : at + size]):
                text.frame(one)
                assembler.add(one)
            if text.concerns(parser.begun):
                part = parser.beginning(text.seen)
                if part is not None:
                    text.part(part)
        except RemoteProtocolError as error:
            return at + size if error.close_code == 1007 else None
    return None


UNTIL_WHOLE = {
    "text": frame("aü€😀".encode() * 50),
    "text in fragments, cut inside a character": frame(b"\xce", fin=False)
    + frame(b"\xba\xe1\xbd", Opcode.CONT, fin=False)
    + frame(b"p", Opcode.PING)
    + frame(b"\xb9", Opcode.CONT),
    "binary": frame(b"\xff\xfe" * 50, Opcode.BINARY),
    "binary in fragments": frame(b"\xff", Opcode.BINARY, fin=False) + frame(b"\xff", Opcode.CONT, fin=False),
    "compressed text": frame(b"\xff\xfe" * 50, rsvd=4),
    "compressed text in fragments": frame(b"\xff", rsvd=4, fin=False) + frame(b"\xff" * 9, Opcode.CONT, fin=False),
    "text behind text in fragments": frame(b"\xce", fin=False)
    + frame(b"\xba", Opcode.CONT)
    + frame(b"\xff\xff", Opcode.BINARY),
    "a ping that is not text": frame(b"\xff\xff", Opcode.PING),
    "nothing": frame(b"", fin=False) + frame(b"", Opcode.CONT, fin=False),
}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("data", UNTIL_WHOLE.values(), ids=UNTIL_WHOLE)
def test_what_may_become_right_is_waited_for(data: bytes, size: int) -> None:
    """However it is cut; the handler looks at whole messages."""
    assert refused_at(data, size) is None


BAD = {
    "a byte that UTF-8 has not": (b"ab\xff", 3),
    "a code point above the last": (b"\xce\xba\xf4\x90\x80\x80", 4),
    "half of a surrogate pair": (b"\xed\xa0\x80", 3),
    "an overlong form": (b"abc\xc0\x80", 4),
    "a character that is not continued": (b"\xcex", 2),
}


@pytest.mark.parametrize(("payload", "bad"), BAD.values(), ids=BAD)
def test_what_cannot_become_right_is_refused_with_its_first_bad_byte(payload: bytes, bad: int) -> None:
    """In a frame that is not whole, in a fragment, and in one behind another."""
    assert refused_at(frame(payload + b"rest"), 1) == 6 + bad
    assert refused_at(frame(payload, fin=False), 1) == 6 + bad
    assert refused_at(frame(payload, fin=False), 1000) == 1000
    behind = frame("ü".encode()[:1], fin=False)
    assert refused_at(behind + frame("ü".encode()[1:] + payload + b"rest", Opcode.CONT), 1) == len(behind) + 7 + bad


def test_a_whole_message_is_the_handlers_to_judge() -> None:
    """Nothing is looked at twice for those who send what is right."""
    assert refused_at(frame(b"\xff"), 1000) is None
