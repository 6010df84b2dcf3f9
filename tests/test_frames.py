"""Frames and messages: tables from RFC 6455, every cut, and the websockets package at the other end."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets import frames as peer
from websockets.streams import StreamReader

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.protocol.websocket.deflate import PerMessageDeflate
from greentx.protocol.websocket.frames import (
    MAX_CONTROL_PAYLOAD,
    CloseCode,
    Frame,
    FrameParser,
    MessageAssembler,
    Opcode,
    build_close,
    build_flags,
    build_frame,
    is_valid_close_code,
    parse_close,
    parse_flags,
    validate_message,
)

MASK = bytes.fromhex("37fa213d")

# (frame, mask, bytes): the examples of RFC 6455, section 5.7, and the edges of the three forms of a length.
FRAMES = [
    (Frame(b"Hello", Opcode.TEXT), None, bytes.fromhex("810548656c6c6f")),
    (Frame(b"Hello", Opcode.TEXT), MASK, bytes.fromhex("818537fa213d7f9f4d5158")),
    (Frame(b"Hel", Opcode.TEXT, fin=False), None, bytes.fromhex("010348656c")),
    (Frame(b"lo", Opcode.CONT), None, bytes.fromhex("80026c6f")),
    (Frame(b"Hello", Opcode.PING), None, bytes.fromhex("890548656c6c6f")),
    (Frame(b"Hello", Opcode.PONG), MASK, bytes.fromhex("8a8537fa213d7f9f4d5158")),
    (Frame(bytes(256), Opcode.BINARY), None, bytes.fromhex("827e0100") + bytes(256)),
    (Frame(bytes(65536), Opcode.BINARY), None, bytes.fromhex("827f0000000000010000") + bytes(65536)),
    (Frame(b"", Opcode.TEXT), None, b"\x81\x00"),
    (Frame(b"", Opcode.TEXT), MASK, b"\x81\x80" + MASK),
    (Frame(b"", Opcode.CLOSE), None, b"\x88\x00"),
    (Frame(b"x" * 125, Opcode.CLOSE), None, b"\x88\x7d" + b"x" * 125),
    (Frame(b"x" * 125, Opcode.TEXT), None, b"\x81\x7d" + b"x" * 125),
    (Frame(b"x" * 126, Opcode.TEXT), None, b"\x81\x7e\x00\x7e" + b"x" * 126),
    (Frame(b"x" * 65535, Opcode.TEXT), None, b"\x81\x7e\xff\xff" + b"x" * 65535),
    (Frame(b"x", Opcode.TEXT, 4), None, b"\xc1\x01x"),
    (Frame(b"x", Opcode.BINARY, 7), None, b"\xf2\x01x"),
    (Frame(b"x", Opcode.BINARY, 1, fin=False), None, b"\x12\x01x"),
]

# (bytes, words of the message, close code)
BAD_STREAMS = [
    (b"\x83\x00", "reserved opcode 3", 1002),
    (b"\x8b\x00", "reserved opcode 11", 1002),
    (b"\x89\x7e", "longer than 125", 1002),
    (b"\x88\x7f", "longer than 125", 1002),
    (b"\x09\x00", "is a fragment", 1002),
    (b"\x81\x7e\x00\x7d", "shortest form", 1002),
    (b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff", "shortest form", 1002),
    (b"\x81\x7f\x80\x00\x00\x00\x00\x00\x00\x00", "most significant bit", 1002),
    (b"\x81\x7f\x00\x00\x00\x00\x00\x10\x00\x01", "1048577 bytes, limit 1048576", 1009),
]

frames_of_any_kind = st.one_of(
    st.builds(
        Frame,
        st.binary(max_size=300),
        st.sampled_from([Opcode.CONT, Opcode.TEXT, Opcode.BINARY]),
        st.integers(0, 7),
        st.booleans(),
    ),
    st.builds(
        Frame, st.binary(max_size=125), st.sampled_from([Opcode.CLOSE, Opcode.PING, Opcode.PONG]), st.integers(0, 7)
    ),
)
masks = st.none() | st.binary(min_size=4, max_size=4)


def build(frame: Frame, mask: bytes | None = None) -> bytes:
    return build_frame(frame.payload, frame.opcode, frame.rsvd, fin=frame.fin, mask=mask)


@pytest.mark.parametrize(("frame", "mask", "data"), FRAMES)
def test_a_frame_has_exactly_the_bytes_of_the_rfc(frame: Frame, mask: bytes | None, data: bytes) -> None:
    """The builder writes what the table says."""
    assert build(frame, mask) == data


@pytest.mark.parametrize(("frame", "mask", "data"), FRAMES)
def test_the_bytes_of_the_rfc_are_exactly_one_frame(frame: Frame, mask: bytes | None, data: bytes) -> None:
    """The parser reads what the table says, and nothing before the last byte has come."""
    parser = FrameParser(require_mask=mask is not None)
    assert parser.feed(data[:-1]) == []
    assert parser.feed(data[-1:]) == [frame]
    assert parser.feed(b"") == []


@pytest.mark.parametrize(("frame", "mask", "data"), [row for row in FRAMES if len(row[2]) < 1000])
def test_a_frame_cut_at_any_byte_is_the_same_frame(frame: Frame, mask: bytes | None, data: bytes) -> None:
    """Where the network cuts does not matter, and a following frame is not touched."""
    for cut in range(len(data) + 1):
        parser = FrameParser(require_mask=None)
        assert parser.feed(data[:cut]) + parser.feed(data[cut:] + data) == [frame, frame]


@given(st.lists(st.tuples(frames_of_any_kind, masks), max_size=6), st.lists(st.integers(1, 700)), st.booleans())
def test_any_frames_survive_any_cuts(rows: list[tuple[Frame, bytes | None]], sizes: list[int], broken: bool) -> None:
    """Building, cutting anywhere and parsing gives the frames back, and a fault after them is told once they are."""
    data = b"".join(build(frame, mask) for frame, mask in rows) + (b"\x83\x00" if broken else b"")
    parser = FrameParser(require_mask=None)
    found: list[Frame] = []
    for size in [*sizes, len(data)]:
        if parser.error is None:
            piece, data = data[:size], data[size:]
            try:
                found += parser.feed(piece)
            except RemoteProtocolError:
                assert parser.error is not None
    assert found == [frame for frame, _ in rows]
    assert (parser.error is not None) is broken


@given(frames_of_any_kind, masks)
def test_the_websockets_package_reads_our_frames(frame: Frame, mask: bytes | None) -> None:
    """An independent peer finds the same opcode, bits and payload in what we build."""
    reader = StreamReader()
    reader.feed_data(build(frame, mask))
    reader.feed_eof()
    steps = peer.Frame.parse(reader.read_exact, mask=mask is not None, extensions=[KeepBits()])
    with pytest.raises(StopIteration) as end:
        next(steps)
    theirs = end.value.value
    assert (theirs.opcode, bytes(theirs.data), theirs.fin) == (frame.opcode, frame.payload, frame.fin)
    assert KeepBits.seen == frame.rsvd
    assert reader.buffer == b""


class KeepBits:
    """An extension for the websockets package: it notes the reserved bits and clears them before they are checked."""

    seen = -1

    def decode(self, frame: peer.Frame, *, max_size: int | None = None) -> peer.Frame:
        KeepBits.seen = frame.rsv1 << 2 | frame.rsv2 << 1 | frame.rsv3
        frame.rsv1 = frame.rsv2 = frame.rsv3 = False
        return frame


@given(frames_of_any_kind.filter(lambda frame: not frame.rsvd), st.booleans())
def test_we_read_the_frames_of_the_websockets_package(frame: Frame, masked: bool) -> None:
    """What an independent peer builds, masked and not, parses to what it meant."""
    theirs = peer.Frame(peer.Opcode(frame.opcode), frame.payload, frame.fin)
    assert FrameParser(require_mask=masked).feed(theirs.serialize(mask=masked)) == [frame]


def test_a_payload_may_be_any_bytes_like_object() -> None:
    """A bytearray or memoryview gives the same frame as bytes, short, long and masked."""
    for payload in (b"abc", b"abc" * 1000):
        for mask in (None, MASK):
            expected = build_frame(payload, mask=mask)
            assert build_frame(bytearray(payload), mask=mask) == expected
            assert build_frame(memoryview(payload), mask=mask) == expected
            assert type(build_frame(bytearray(payload), mask=mask)) is bytes


def test_a_payload_of_text_is_a_type_error() -> None:
    """A str is not quietly encoded: its length in characters is not the one in bytes."""
    for payload in ("x", "x" * 126):
        with pytest.raises(TypeError):
            build_frame(payload)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((b"", 3), {}, "opcode is 3"),
        ((b"", 16), {}, "opcode is 16"),
        ((b"", -1), {}, "opcode is -1"),
        ((b"", 1, 8), {}, "rsvd is 8"),
        ((b"", 1, -1), {}, "rsvd is -1"),
        ((bytes(126), Opcode.PING), {}, "control payload is 126 bytes, limit 125"),
        ((b"", Opcode.CLOSE), {"fin": False}, "cannot be a fragment"),
        ((b"", 1), {"mask": b"abc"}, "mask is 3 bytes"),
    ],
)
def test_a_frame_that_the_rfc_forbids_cannot_be_built(
    arguments: tuple[bytes, int], options: dict[str, object], words: str
) -> None:
    """The caller is told what is wrong, with the value and the limit."""
    with pytest.raises(LocalProtocolError, match=words):
        build_frame(*arguments, **options)  # type: ignore[arg-type]


def feed_in_two(parser: FrameParser, data: bytes, cut: int) -> None:
    assert parser.feed(data[:cut]) == []
    parser.feed(data[cut:])


@pytest.mark.parametrize(("data", "words", "close_code"), BAD_STREAMS)
def test_a_stream_that_breaks_the_rules_is_refused_wherever_it_is_cut(data: bytes, words: str, close_code: int) -> None:
    """The fault is raised as soon as the head shows it, with the close code that answers it, and raised again."""
    for cut in range(len(data) + 1):
        parser = FrameParser(require_mask=False, max_size=1 << 20)
        with pytest.raises(RemoteProtocolError, match=words) as caught:
            feed_in_two(parser, data, cut)
        assert caught.value.close_code == close_code
        assert str(parser.error) == str(caught.value) and parser.error.close_code == close_code
        with pytest.raises(RemoteProtocolError, match=words):
            parser.feed(b"\x81\x00")


def test_good_frames_before_a_fault_are_not_lost() -> None:
    """Frames and a fault in one piece of data: the frames come first, then the fault."""
    parser = FrameParser(require_mask=False)
    assert parser.feed(b"\x81\x01x\x83\x00") == [Frame(b"x", Opcode.TEXT)]
    assert parser.error is not None
    with pytest.raises(RemoteProtocolError, match="reserved opcode 3"):
        parser.feed(b"")


@pytest.mark.parametrize(
    ("require_mask", "data", "words"),
    [(True, b"\x81\x00", "is not masked"), (False, b"\x81\x80", "is masked")],
)
def test_masking_is_for_clients_alone(require_mask: bool, data: bytes, words: str) -> None:
    """A server's parser wants the mask, a client's refuses it (RFC 6455, section 5.1)."""
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        FrameParser(require_mask=require_mask).feed(data)
    assert caught.value.close_code == 1002


def test_a_frame_of_exactly_the_limit_is_taken() -> None:
    """max_size is the largest size allowed, not the first refused."""
    parser = FrameParser(require_mask=False, max_size=200)
    assert parser.feed(build_frame(bytes(200))) == [Frame(bytes(200), Opcode.TEXT)]
    with pytest.raises(RemoteProtocolError, match="frame is 201 bytes, limit 200"):
        parser.feed(build_frame(bytes(201)))


def test_a_frame_cannot_be_changed() -> None:
    """Frames are values: equal by content, without a dict each, and fixed."""
    frame = Frame(b"x")
    assert frame == Frame(b"x", 1, 0, True)
    assert not hasattr(frame, "__dict__")
    with pytest.raises(FrozenInstanceError):
        frame.payload = b"y"  # type: ignore[misc]


def test_fragments_are_joined_and_control_frames_pass_between_them() -> None:
    """The joined message is what Mongrel2 would hand over: the first fragment's opcode and bits, FIN set."""
    join = MessageAssembler(max_size=6)
    ping = Frame(b"p", Opcode.PING)
    assert join.add(Frame(b"ab", Opcode.TEXT, 4, fin=False)) is None
    assert join.add(ping) is ping
    assert join.add(Frame(b"", Opcode.CONT, fin=False)) is None
    assert join.add(Frame(b"cdef", Opcode.CONT)) == Frame(b"abcdef", Opcode.TEXT, 4)
    assert join.add(Frame(b"whole", Opcode.BINARY)) == Frame(b"whole", Opcode.BINARY)


@pytest.mark.parametrize(
    ("frames", "words", "close_code"),
    [
        ([Frame(b"", Opcode.CONT)], "continuation of nothing", 1002),
        ([Frame(b"", fin=False), Frame(b"")], "begins inside", 1002),
        ([Frame(b"", fin=False), Frame(b"", Opcode.CONT, 4)], "reserved bits", 1002),
        ([Frame(b"abc", fin=False), Frame(b"d", Opcode.CONT, fin=False)], "at least 4 bytes, limit 3", 1009),
        ([Frame(b"abcd")], "at least 4 bytes, limit 3", 1009),
    ],
)
def test_fragments_out_of_order_are_refused(frames: list[Frame], words: str, close_code: int) -> None:
    """Only the last frame of each row is at fault."""
    join = MessageAssembler(max_size=3)
    for frame in frames[:-1]:
        assert join.add(frame) is None
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        join.add(frames[-1])
    assert caught.value.close_code == close_code


@pytest.mark.parametrize(("max_size", "fragments"), [(3, 1024), (100_000, 3125)])
def test_a_message_cannot_have_any_number_of_empty_fragments(max_size: int, fragments: int) -> None:
    """Each of them takes memory."""
    join = MessageAssembler(max_size=max_size)
    join.add(Frame(b"", fin=False))
    for _ in range(fragments - 1):
        assert join.add(Frame(b"", Opcode.CONT, fin=False)) is None
    with pytest.raises(RemoteProtocolError, match=f"over {fragments} fragments") as caught:
        join.add(Frame(b"", Opcode.CONT, fin=False))
    assert caught.value.close_code == 1009


def test_an_assembler_without_a_limit_joins_any_size() -> None:
    """None is unlimited."""
    join = MessageAssembler()
    assert join.add(Frame(bytes(100_000), Opcode.BINARY, fin=False)) is None
    assert join.add(Frame(bytes(1), Opcode.CONT)) == Frame(bytes(100_001), Opcode.BINARY)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("0x81", (1, 0)),
        (b"0x82", (2, 0)),
        ("0x88", (8, 0)),
        ("0x8A", (10, 0)),
        (b"0x8a", (10, 0)),
        ("0xC1", (1, 4)),
        ("0xF2", (2, 7)),
        ("0x83", (3, 0)),
        ("0xFF", (15, 7)),
    ],
)
def test_flags_of_the_server_give_opcode_and_reserved_bits(flags: str | bytes, expected: tuple[int, int]) -> None:
    """As str from JSON headers, as bytes from tnetstrings; nothing is judged yet."""
    assert parse_flags(flags) == expected


@pytest.mark.parametrize(
    "flags", ["", "0x", "0x1", "0x01", "0x7F", "0x100", "81", "0X81", " 0x81", "0x81 ", "0x8G", b"\xff", None, ["0x81"]]
)
def test_flags_that_mongrel2_does_not_write_are_refused(flags: object) -> None:
    """FIN is always set on what Mongrel2 hands over, so a byte below 0x80 is malformed too."""
    with pytest.raises(RemoteProtocolError, match="FLAGS is"):
        parse_flags(flags)  # type: ignore[arg-type]


def test_flags_are_written_as_mongrel2_writes_them() -> None:
    """All 128 values survive the round trip, in upper case."""
    assert build_flags(Opcode.PONG) == "0x8A"
    for opcode in range(16):
        for rsvd in range(8):
            assert parse_flags(build_flags(opcode, rsvd)) == (opcode, rsvd)


@pytest.mark.parametrize(("opcode", "rsvd"), [(16, 0), (-1, 0), (1, 8), (1, -1)])
def test_flags_of_impossible_bits_cannot_be_built(opcode: int, rsvd: int) -> None:
    """Four bits of opcode, three reserved ones."""
    with pytest.raises(LocalProtocolError, match="do not fit"):
        build_flags(opcode, rsvd)


def test_close_codes_are_valid_where_the_rfc_and_iana_let_them_travel() -> None:
    """All values that two bytes can hold, and some that they cannot."""
    valid = [code for code in range(-1, 70_000) if is_valid_close_code(code)]
    assert valid == [1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)]
    assert {int(code) for code in CloseCode} == {*range(1000, 1004), *range(1005, 1016)}


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (None, "", b""),
        (1000, "", b"\x03\xe8"),
        (CloseCode.GOING_AWAY, "bye", b"\x03\xe9bye"),
        (4999, "é", b"\x13\x87\xc3\xa9"),
        (3000, "x" * 123, b"\x0b\xb8" + b"x" * 123),
    ],
)
def test_a_close_payload_is_code_then_reason(code: int | None, reason: str, payload: bytes) -> None:
    """Both directions agree; no code is seen as 1005."""
    assert build_close(code, reason) == payload
    assert parse_close(payload) == (1005 if code is None else code, reason)
    assert len(build_frame(payload, Opcode.CLOSE)) == 2 + len(payload)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (None, "why", "needs a close code"),
        *[(code, "", f"close code {code} ") for code in (-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 70_000)],
        (1000, "x" * 124, "124 bytes as UTF-8, limit 123"),
        (1000, "é" * 62, "124 bytes as UTF-8, limit 123"),
        (1000, "\ud800", "not text"),
    ],
)
def test_a_close_that_may_not_travel_cannot_be_built(code: int | None, reason: str, words: str) -> None:
    """A reason is never cut to fit."""
    with pytest.raises(LocalProtocolError, match=words):
        build_close(code, reason)


@pytest.mark.parametrize(
    ("payload", "close_code"),
    [
        (b"\x03", 1002),
        *[(code.to_bytes(2, "big"), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000)],
        (b"\xff\xff", 1002),
        (b"\x03\xe8\xff", 1007),
        (b"\x03\xe8\xed\xa0\x80", 1007),
    ],
)
def test_a_malformed_close_is_refused(payload: bytes, close_code: int) -> None:
    """Half a code, codes that may not travel, and reasons that are not UTF-8."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse_close(payload)
    assert caught.value.close_code == close_code


@given(st.integers(1000, 4999).filter(is_valid_close_code), st.text(max_size=30))
def test_the_websockets_package_agrees_on_closes(code: int, reason: str) -> None:
    """Payloads are the same bytes on both sides."""
    theirs = peer.Close(code, reason).serialize()
    assert build_close(code, reason) == theirs
    assert parse_close(theirs) == (code, reason)


@pytest.mark.parametrize(
    ("opcode", "payload", "text"),
    [
        (1, b"", ""),
        (1, "κόσμε".encode(), "κόσμε"),
        (1, b"\xf4\x8f\xbf\xbf", "\U0010ffff"),
        (2, b"\xff\x00", None),
        (8, b"\x03", None),
        (9, b"x" * MAX_CONTROL_PAYLOAD, None),
        (10, b"\xff", None),
    ],
)
def test_a_valid_message_comes_back_as_bytes_and_as_text(opcode: int, payload: bytes, text: str | None) -> None:
    """Text is decoded here for whoever wants it; a size limit binds data messages only."""
    limit = len(payload) if opcode < 8 else 0
    assert validate_message(opcode, 0, payload, max_size=limit) == (payload, text)
    assert validate_message(opcode, 0, payload, max_size=None) == (payload, text)


@pytest.mark.parametrize(
    ("opcode", "rsvd", "payload", "words", "close_code"),
    [
        (0, 0, b"", "opcode 0", 1002),
        *[(opcode, 0, b"", f"opcode {opcode}", 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
        (1, 4, b"", "reserved bits", 1002),
        (1, 2, b"", "reserved bits", 1002),
        (2, 7, b"", "reserved bits", 1002),
        (9, 4, b"", "reserved bits", 1002),
        (8, 0, bytes(126), "126 bytes, limit 125", 1002),
        (1, 0, b"\xff", "not UTF-8: invalid start byte at byte 0", 1007),
        (1, 0, b"ok \xce\xba\xe1\xbd", "not UTF-8: unexpected end of data at byte 5", 1007),
        (1, 0, b"\xed\xa0\x80", "not UTF-8", 1007),
        (1, 0, b"\xf4\x90\x80\x80", "not UTF-8", 1007),
        (1, 0, b"\xc0\xaf", "not UTF-8", 1007),
        (1, 0, bytes(11), "11 bytes, limit 10", 1009),
        (2, 0, bytes(11), "11 bytes, limit 10", 1009),
    ],
)
def test_a_message_that_mongrel2_let_through_unchecked_is_refused(
    opcode: int, rsvd: int, payload: bytes, words: str, close_code: int
) -> None:
    """Mongrel2 checks neither opcodes, reserved bits, sizes nor UTF-8; the close code says which of them it was."""
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        validate_message(opcode, rsvd, payload, max_size=10)
    assert caught.value.close_code == close_code


def deflate() -> PerMessageDeflate:
    return PerMessageDeflate(
        encodes_with_context=True, decodes_with_context=True, encoding_bits=15, decoding_bits=15, threshold=0
    )


def test_a_compressed_message_is_inflated_before_it_is_judged() -> None:
    """RSV1 is allowed once permessage-deflate was negotiated; size and UTF-8 are those of the inflated message."""
    ours, theirs = deflate(), deflate()
    text = "hello " * 1000
    data, compressed = theirs.encode(text.encode())
    assert compressed
    assert validate_message(1, 4, data, max_size=6000, deflate=ours) == (text.encode(), text)
    assert validate_message(1, 0, b"plain", max_size=6000, deflate=ours) == (b"plain", "plain")
    for payload, limit, close_code in ((b"\xff" * 100, 6000, 1007), (bytes(6001), 6000, 1009)):
        with pytest.raises(RemoteProtocolError) as caught:
            validate_message(1, 4, deflate().encode(payload)[0], max_size=limit, deflate=deflate())
        assert caught.value.close_code == close_code


@pytest.mark.parametrize(("opcode", "rsvd"), [(1, 2), (1, 5), (2, 6), (9, 4)])
def test_deflate_negotiates_no_bit_but_rsv1_on_data(opcode: int, rsvd: int) -> None:
    """Control frames are never compressed, RSV2 and RSV3 belong to nobody."""
    with pytest.raises(RemoteProtocolError, match="reserved bits") as caught:
        validate_message(opcode, rsvd, b"\x00", max_size=None, deflate=deflate())
    assert caught.value.close_code == 1002


@given(st.integers(0, 15), st.integers(0, 7), st.binary(max_size=200))
@example(1, 4, b"\x00")
def test_no_message_raises_anything_but_a_protocol_error(opcode: int, rsvd: int, payload: bytes) -> None:
    """Whatever a browser sends, the answer is a message or a close code that may travel."""
    try:
        data, text = validate_message(opcode, rsvd, payload, max_size=100, deflate=deflate())
        if opcode == Opcode.CLOSE:
            parse_close(data)
    except RemoteProtocolError as error:
        close_code = error.close_code
    else:
        close_code = None
        assert text is None or text.encode() == data
    assert close_code in (None, 1002, 1007, 1009)
