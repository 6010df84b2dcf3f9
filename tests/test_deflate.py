"""permessage-deflate: the examples of RFC 7692, bombs, negotiation tables, and the websockets package as the peer."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions import permessage_deflate as peer
from websockets.frames import Frame as PeerFrame
from websockets.frames import Opcode as PeerOpcode
from websockets.headers import build_extension, parse_extension

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.protocol.websocket.deflate import (
    DeflateConfig,
    PerMessageDeflate,
    accept,
    negotiate,
    offer,
    parse_extensions,
)

FULL = DeflateConfig(server_max_window_bits=15, client_max_window_bits=15, mem_level=8, threshold=0)
TIGHT = DeflateConfig()


def state(**changes: object) -> PerMessageDeflate:
    options: dict[str, object] = {
        "encodes_with_context": True,
        "decodes_with_context": True,
        "encoding_bits": 15,
        "decoding_bits": 15,
        "threshold": 0,
    }
    return PerMessageDeflate(**{**options, **changes})  # type: ignore[arg-type]


# --- the header ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("", []),
        ([], []),
        (" , ,", []),
        ("a", [("a", [])]),
        ("a, b", [("a", []), ("b", [])]),
        (["a", "b;c"], [("a", []), ("b", [("c", None)])]),
        (' a ;\tb = c ; d="e" , f', [("a", [("b", "c"), ("d", "e")]), ("f", [])]),
        ('a; b="c\\d"', [("a", [("b", "cd")])]),
        ("a; b; b=1", [("a", [("b", None), ("b", "1")])]),
        ("a,,b,", [("a", []), ("b", [])]),
    ],
)
def test_extensions_are_read_as_the_grammar_says(values: str | list[str], expected: object) -> None:
    """Several headers are one list; quoted values mean what unquoted ones mean; empty elements are allowed."""
    assert parse_extensions(values) == expected


@pytest.mark.parametrize(
    "value",
    [
        ";",
        "a;",
        "a; =1",
        "a; b=",
        "a b",
        "a; b c",
        'a; b="',
        'a; b="c',
        'a; b=""',
        'a; b="c d"',
        'a; b="c,d"',
        "a=b",
        "é",
    ],
)
def test_a_malformed_header_fails_the_handshake(value: str) -> None:
    """What does not keep the grammar is an error of the whole header, answered with 400, in both roles."""
    for read in (parse_extensions, lambda text: negotiate(text, FULL), lambda text: accept(text, FULL)):
        with pytest.raises(RemoteProtocolError, match="malformed at index") as caught:
            read(value)  # type: ignore[operator]
        assert caught.value.status == 400


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z0-9._-]+", fullmatch=True),
            st.lists(
                st.tuples(
                    st.from_regex(r"[a-z_]+", fullmatch=True), st.none() | st.from_regex(r"[a-z0-9]+", fullmatch=True)
                ),
                max_size=4,
            ),
        ),
        max_size=4,
    )
)
def test_the_websockets_package_builds_headers_that_we_read(
    extensions: list[tuple[str, list[tuple[str, str | None]]]],
) -> None:
    """What an independent peer writes is read back."""
    assert parse_extensions(build_extension(extensions)) == extensions  # type: ignore[arg-type]


@given(st.text(alphabet='ab;=,"\\ \té\n', max_size=20))
def test_no_header_raises_anything_but_a_protocol_error(value: str) -> None:
    """Any text is a list of offers or malformed."""
    try:
        names = [name for name, _ in parse_extensions(value)]
    except RemoteProtocolError as error:
        names = [str(error)]
    assert all(names)


# --- negotiation --------------------------------------------------------------------------------------------------

# (the client's header, our config, the answer)
OFFERS = [
    ("permessage-deflate", FULL, "permessage-deflate"),
    ("permessage-deflate", TIGHT, "permessage-deflate; server_max_window_bits=12"),
    (
        "permessage-deflate; client_max_window_bits",
        TIGHT,
        "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
    ),
    ("permessage-deflate; client_max_window_bits", FULL, "permessage-deflate"),
    ("permessage-deflate; client_max_window_bits=10", FULL, "permessage-deflate; client_max_window_bits=10"),
    ("permessage-deflate; client_max_window_bits=8", FULL, "permessage-deflate; client_max_window_bits=8"),
    ('permessage-deflate; client_max_window_bits="10"', FULL, "permessage-deflate; client_max_window_bits=10"),
    ("permessage-deflate; server_max_window_bits=15", FULL, "permessage-deflate; server_max_window_bits=15"),
    ("permessage-deflate; server_max_window_bits=9", TIGHT, "permessage-deflate; server_max_window_bits=9"),
    ("permessage-deflate; server_no_context_takeover", FULL, "permessage-deflate; server_no_context_takeover"),
    ("permessage-deflate; client_no_context_takeover", FULL, "permessage-deflate; client_no_context_takeover"),
    (
        "permessage-deflate",
        DeflateConfig(
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            server_max_window_bits=15,
            client_max_window_bits=15,
        ),
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    ),
    # The second offer is accepted where the first cannot be kept.
    ("x-webkit-deflate-frame, permessage-deflate", FULL, "permessage-deflate"),
    ("permessage-deflate; server_max_window_bits=8, permessage-deflate", FULL, "permessage-deflate"),
    (["permessage-bzip2", "permessage-deflate; unknown", "permessage-deflate"], FULL, "permessage-deflate"),
    (
        "permessage-deflate; server_no_context_takeover, permessage-deflate",
        FULL,
        "permessage-deflate; server_no_context_takeover",
    ),
    # Nothing that can be kept.
    ("", FULL, None),
    ([], FULL, None),
    ("permessage-bzip2", FULL, None),
    *[
        (f"permessage-deflate; {parameter}", FULL, None)
        for parameter in (
            "server_max_window_bits=8",
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=09",
            "server_max_window_bits=+9",
            "server_max_window_bits=x",
            "client_max_window_bits=16",
            "client_max_window_bits=08",
            "server_no_context_takeover=1",
            "client_no_context_takeover=true",
            "unknown",
            "unknown=1",
            "client_max_window_bits; client_max_window_bits=10",
            "server_no_context_takeover; server_no_context_takeover",
        )
    ],
]


@pytest.mark.parametrize(("values", "config", "answer"), OFFERS)
def test_the_first_offer_that_can_be_kept_is_taken(
    values: str | list[str], config: DeflateConfig, answer: str | None
) -> None:
    """The answer repeats what it has to repeat, and adds only what RFC 7692 lets a server add."""
    agreed = negotiate(values, config)
    assert (agreed and agreed[1]) == answer


def test_what_was_agreed_on_is_what_the_state_does() -> None:
    """Each word of the answer shows in the object, on the side it belongs to."""
    agreed = negotiate(
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; client_max_window_bits=9", FULL
    )
    assert agreed is not None
    assert repr(agreed[0]) == "<PerMessageDeflate encodes with 10 bits, decodes with 9 bits and context>"
    agreed = negotiate("permessage-deflate; client_no_context_takeover", TIGHT)
    assert agreed is not None
    assert repr(agreed[0]) == "<PerMessageDeflate encodes with 12 bits and context, decodes with 15 bits>"


# (our config, our offer)
ASKED = [
    (FULL, "permessage-deflate; client_max_window_bits"),
    (TIGHT, "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"),
    (
        DeflateConfig(
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            server_max_window_bits=15,
            client_max_window_bits=15,
        ),
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits",
    ),
]


@pytest.mark.parametrize(("config", "value"), ASKED)
def test_a_client_offers_what_it_wants(config: DeflateConfig, value: str) -> None:
    """client_max_window_bits is always there: it only says that we understand it."""
    assert offer(config) == value


@pytest.mark.parametrize(
    ("values", "config", "expected"),
    [
        ([], FULL, None),
        ("", FULL, None),
        ("permessage-deflate", FULL, "encodes with 15 bits and context, decodes with 15 bits and context"),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            FULL,
            "encodes with 15 bits, decodes with 15 bits",
        ),
        (
            "permessage-deflate; server_max_window_bits=8; client_max_window_bits=9",
            FULL,
            "encodes with 9 bits and context, decodes with 9 bits and context",
        ),
        (
            ["permessage-deflate; server_max_window_bits=11"],
            TIGHT,
            "encodes with 12 bits and context, decodes with 11 bits and context",
        ),
        (
            "permessage-deflate; server_max_window_bits=12; server_no_context_takeover",
            DeflateConfig(server_no_context_takeover=True, client_no_context_takeover=True),
            "encodes with 12 bits, decodes with 12 bits",
        ),
    ],
)
def test_a_client_takes_an_answer_that_fits_its_offer(
    values: str | list[str], config: DeflateConfig, expected: str | None
) -> None:
    """The server may ask for less than was offered, and may decline."""
    agreed = accept(values, config)
    assert (agreed and repr(agreed)) == (expected and f"<PerMessageDeflate {expected}>")


@pytest.mark.parametrize(
    ("value", "config", "words"),
    [
        ("permessage-bzip2", FULL, "'permessage-bzip2'"),
        ("permessage-deflate, permessage-deflate", FULL, "2 extensions"),
        ("permessage-deflate; unknown", FULL, "wrong parameters"),
        ("permessage-deflate; client_max_window_bits", FULL, "wrong parameters"),
        ("permessage-deflate; server_max_window_bits=16", FULL, "wrong parameters"),
        ("permessage-deflate", DeflateConfig(server_no_context_takeover=True), "server_no_context_takeover"),
        ("permessage-deflate", TIGHT, "compresses with 15 window bits, 12 were offered"),
        ("permessage-deflate; server_max_window_bits=13", TIGHT, "compresses with 13"),
        ("permessage-deflate; client_max_window_bits=8", FULL, "wants 8 window bits of us, we can do 9 to 15"),
        ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=13", TIGHT, "wants 13 window bits"),
    ],
)
def test_a_client_refuses_an_answer_that_does_not_fit(value: str, config: DeflateConfig, words: str) -> None:
    """RFC 7692, section 5.1: the connection is failed."""
    with pytest.raises(RemoteProtocolError, match=words):
        accept(value, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"server_max_window_bits": 8},
        {"server_max_window_bits": 16},
        {"client_max_window_bits": 8},
        {"client_max_window_bits": 16},
        {"level": -2},
        {"level": 10},
        {"mem_level": 0},
        {"mem_level": 10},
        {"threshold": -1},
    ],
)
def test_options_that_zlib_cannot_keep_are_refused_at_once(changes: dict[str, int]) -> None:
    """The error names the option, before any connection exists."""
    with pytest.raises(LocalProtocolError, match=next(iter(changes))):
        DeflateConfig(**changes)  # type: ignore[arg-type]


CONFIGS = [
    DeflateConfig(
        server_no_context_takeover=server_forgets,
        client_no_context_takeover=client_forgets,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
        threshold=0,
    )
    for server_forgets, client_forgets, server_bits, client_bits in product(
        (False, True), (False, True), (9, 15), (9, 15)
    )
]


@pytest.mark.parametrize("server", CONFIGS)
def test_our_client_and_our_server_agree_whatever_they_want(server: DeflateConfig) -> None:
    """Both ends come to the same parameters, with each side's limits kept."""
    for client in CONFIGS:
        agreed = negotiate(offer(client), server)
        assert agreed is not None
        ours, answer = agreed
        theirs = accept(answer, client)
        assert theirs is not None
        assert (ours.encoding_bits, ours.encodes_with_context) == (theirs.decoding_bits, theirs.decodes_with_context)
        assert (theirs.encoding_bits, theirs.encodes_with_context) == (ours.decoding_bits, ours.decodes_with_context)
        assert ours.encoding_bits == min(server.server_max_window_bits, client.server_max_window_bits)
        assert ours.decoding_bits == min(server.client_max_window_bits, client.client_max_window_bits)


# --- the websockets package at the other end ----------------------------------------------------------------------

PEER_CLIENTS = [
    {
        "server_no_context_takeover": a,
        "client_no_context_takeover": b,
        "server_max_window_bits": c,
        "client_max_window_bits": d,
    }
    for a, b, c, d in product((False, True), (False, True), (None, 8, 9, 15), (None, True, 9, 15))
]
PEER_SERVERS = [
    {
        "server_no_context_takeover": a,
        "client_no_context_takeover": b,
        "server_max_window_bits": c,
        "client_max_window_bits": d,
    }
    for a, b, c, d in product((False, True), (False, True), (None, 9, 15), (None, 8, 9, 15))
]
MESSAGES = [b"hello " * 50, b"hello again " * 50, os.urandom(3000), b"", b"x", bytes(70_000), b"hello " * 50]


def talk(ours: PerMessageDeflate, theirs: peer.PerMessageDeflate) -> None:
    """Send all messages both ways, twice over."""
    for message in MESSAGES * 2:
        payload, compressed = ours.encode(message)
        frame = theirs.decode(PeerFrame(PeerOpcode.BINARY, payload, rsv1=compressed))
        assert bytes(frame.data) == message
        frame = theirs.encode(PeerFrame(PeerOpcode.BINARY, message))
        assert frame.rsv1
        assert ours.decode(bytes(frame.data), len(message)) == message


@pytest.mark.parametrize("config", [FULL, TIGHT, *CONFIGS])
def test_clients_of_the_websockets_package_talk_with_us(config: DeflateConfig) -> None:
    """Whatever they offer, they accept our answer, and each side reads what the other sends."""
    for options in PEER_CLIENTS:
        factory = peer.ClientPerMessageDeflateFactory(**options)  # type: ignore[arg-type]
        value = build_extension([(factory.name, list(factory.get_request_params()))])
        agreed = negotiate(value, config)
        if options["server_max_window_bits"] == 8:
            assert agreed is None
            continue
        assert agreed is not None
        ((_, parameters),) = parse_extension(agreed[1])
        talk(agreed[0], factory.process_response_params(parameters, []))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [FULL, TIGHT, *CONFIGS])
def test_servers_of_the_websockets_package_talk_with_us(config: DeflateConfig) -> None:
    """Whatever they answer to our offer either fits, or is the one number that zlib cannot do."""
    for options in PEER_SERVERS:
        factory = peer.ServerPerMessageDeflateFactory(**options)  # type: ignore[arg-type]
        ((_, parameters),) = parse_extension(offer(config))
        answer, theirs = factory.process_request_params(parameters, [])  # type: ignore[arg-type]
        value = build_extension([(factory.name, answer)])
        if options["client_max_window_bits"] == 8:
            with pytest.raises(RemoteProtocolError, match="wants 8 window bits"):
                accept(value, config)
            continue
        ours = accept(value, config)
        assert ours is not None
        talk(ours, theirs)


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("f248cdc9c90700", b"Hello"),  # 7.2.3.1
        ("000500faff48656c6c6f00", b"Hello"),  # 7.2.3.3
        ("f348cdc9c9070000", b"Hello"),  # 7.2.3.4
        ("f248050000 00ffff cac9c90700", b"Hello"),  # 7.2.3.5
        ("00", b""),  # 7.2.3.6
    ],
)
def test_the_examples_of_the_rfc_inflate(payload: str, message: bytes) -> None:
    """RFC 7692, section 7.2.3."""
    assert state().decode(bytes.fromhex(payload), len(message)) == message


def test_the_context_of_the_rfc_is_taken_over() -> None:
    """Section 7.2.3.2: the second "Hello" refers to the first, in both directions."""
    ours = state()
    assert ours.encode(b"Hello") == (bytes.fromhex("f248cdc9c90700"), True)
    assert ours.encode(b"Hello") == (bytes.fromhex("f200110000"), True)
    assert ours.decode(bytes.fromhex("f248cdc9c90700"), None) == b"Hello"
    assert ours.decode(bytes.fromhex("f200110000"), None) == b"Hello"


def test_without_takeover_no_message_refers_to_another() -> None:
    """The same message gives the same bytes, and a reference to the past does not inflate."""
    ours = state(encodes_with_context=False, decodes_with_context=False)
    assert ours.encode(b"Hello" * 9) == ours.encode(b"Hello" * 9)
    assert ours.decode(bytes.fromhex("f248cdc9c90700"), None) == b"Hello"
    with pytest.raises(RemoteProtocolError, match="does not inflate"):
        ours.decode(bytes.fromhex("f200110000"), None)


@settings(deadline=None)
@given(
    st.lists(
        st.binary(max_size=2000) | st.builds(bytes.__mul__, st.binary(max_size=5), st.integers(0, 3000)), max_size=5
    ),
    st.booleans(),
    st.integers(9, 15),
)
def test_any_messages_survive(messages: list[bytes], context: bool, bits: int) -> None:
    """What is encoded is decoded, at exactly its own size as the limit."""
    options = {
        "encodes_with_context": context,
        "decodes_with_context": context,
        "encoding_bits": bits,
        "decoding_bits": bits,
    }
    ours, theirs = state(**options), state(**options)
    for message in messages:
        payload, compressed = ours.encode(message)
        assert theirs.decode(payload, len(message)) == message if compressed else payload == message


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=3))
def test_no_payload_raises_anything_but_a_protocol_error(payloads: list[bytes]) -> None:
    """Garbage ends with 1007 or 1009, and never gives more than the limit."""
    ours = state()
    try:
        for payload in payloads:
            assert len(ours.decode(payload, 1000)) <= 1000
    except RemoteProtocolError as error:
        close_code = error.close_code
    else:
        close_code = None
    assert close_code in (None, 1007, 1009)


def test_small_messages_are_left_alone() -> None:
    """Below the threshold nothing is compressed, nor is an empty message ever; the context does not move."""
    for context in (False, True):
        ours = state(threshold=100, encodes_with_context=context)
        assert ours.encode(b"x" * 99) == (b"x" * 99, False)
        assert ours.encode(b"x" * 100)[1] is True
        assert state(encodes_with_context=context).encode(b"") == (b"", False)


def test_what_does_not_get_smaller_is_left_alone_where_no_context_would_suffer() -> None:
    """Random bytes go out as they are without a context; with one they are part of it already."""
    noise = os.urandom(1000)
    assert state(encodes_with_context=False).encode(noise) == (noise, False)
    ours, theirs = state(), state()
    payload, compressed = ours.encode(noise)
    assert compressed
    assert theirs.decode(payload, 1000) == noise


def test_a_bomb_stops_early() -> None:
    """A megabyte that would inflate to a gigabyte costs little more than the limit."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(1024)] + [packer.flush(zlib.Z_SYNC_FLUSH)])[:-4]
    assert len(bomb) > 1_000_000
    ours = state()
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="more than 1048576 bytes") as caught:
            ours.decode(bomb, 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.close_code == 1009
    assert peak < 6 << 20


def test_the_limit_is_the_largest_size_allowed() -> None:
    """Exactly max_size passes, one byte more does not; 0 allows the empty message alone."""
    payload, _ = state().encode(bytes(1000))
    assert state().decode(payload, 1000) == bytes(1000)
    assert state().decode(payload, None) == bytes(1000)
    assert state().decode(b"\x00", 0) == b""
    for limit in (999, 0):
        with pytest.raises(RemoteProtocolError, match=f"more than {limit} bytes"):
            state().decode(payload, limit)


@pytest.mark.parametrize("payload", [b"\xff", b"\x07", bytes.fromhex("000500faf048656c6c6f00")])
def test_a_broken_stream_ends_the_connection_with_1007(payload: bytes) -> None:
    """Reserved block types and wrong lengths are not a deflate stream."""
    with pytest.raises(RemoteProtocolError, match="does not inflate") as caught:
        state().decode(payload, None)
    assert caught.value.close_code == 1007


def finished(message: bytes) -> bytes:
    """A whole deflate stream, its last block marked as such."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(message) + packer.flush()


def test_a_sender_may_end_its_stream_with_every_message() -> None:
    """BFINAL inside messages, with and without the empty block after it, and several streams in one message."""
    ours = state()
    for payload, message in (
        (finished(b"one") + b"\x00", b"one"),
        (finished(b"two"), b"two"),
        (finished(b"three") + finished(b"four") + b"\x00", b"threefour"),
        (bytes.fromhex("f248cdc9c90700"), b"Hello"),
        (bytes.fromhex("f200110000"), b"Hello"),
    ):
        assert ours.decode(payload, len(message)) == message


def test_the_limit_counts_all_streams_of_a_message() -> None:
    """Two streams of 600 bytes are 1200 bytes."""
    payload = finished(bytes(600)) * 2 + b"\x00"
    assert state().decode(payload, 1200) == bytes(1200)
    with pytest.raises(RemoteProtocolError, match="more than 1199 bytes") as caught:
        state().decode(payload, 1199)
    assert caught.value.close_code == 1009


def test_a_message_of_nothing_but_ended_streams_is_refused() -> None:
    """Each costs a decompressor and a copy of the rest, so that half a million of them would take minutes."""
    with pytest.raises(RemoteProtocolError, match="more than 16 deflate streams") as caught:
        state().decode(b"\x03\x00" * 500_000, None)
    assert caught.value.close_code == 1007


# --- what broadcasts and memory need ------------------------------------------------------------------------------


def test_one_encoding_serves_all_connections_of_a_key() -> None:
    """Deflated once, read by every peer; those with a context reset theirs and go on."""
    pairs = [
        (state(encodes_with_context=context), state(decodes_with_context=context)) for context in (True, True, False)
    ]
    assert len({ours.broadcast_key for ours, _ in pairs}) == 1
    before = b"a message of one connection alone, " * 9
    for ours, theirs in pairs:
        assert theirs.decode(ours.encode(before)[0], None) == before
    for_all = b"a message for all connections, " * 9
    payload, compressed = pairs[0][0].encode_alone(for_all)
    assert compressed
    for ours, theirs in pairs:
        assert theirs.decode(payload, None) == for_all
        ours.reset_encoder()
        assert theirs.decode(ours.encode(before)[0], None) == before


def test_connections_with_other_windows_have_another_key() -> None:
    """A window that the peer did not agree to must not be used."""
    assert state(encoding_bits=15).broadcast_key != state(encoding_bits=9).broadcast_key
    assert state().broadcast_key == state(decoding_bits=9, decodes_with_context=False).broadcast_key


def test_encoding_alone_leaves_small_messages_and_noise_alone() -> None:
    """The rules are those of encode()."""
    noise = os.urandom(500)
    ours = state(threshold=100)
    assert ours.encode_alone(b"x" * 99) == (b"x" * 99, False)
    assert ours.encode_alone(noise) == (noise, False)


def traced(deflate: PerMessageDeflate, payload: bytes) -> list[int]:
    """Bytes held after making nothing, after decoding, and after encoding."""
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        held = []
        deflate.decode(payload, None)
        held.append(tracemalloc.get_traced_memory()[0] - start)
        deflate.encode(bytes(5000))
        held.append(tracemalloc.get_traced_memory()[0] - start)
    finally:
        tracemalloc.stop()
    return held


@pytest.mark.parametrize(("bits", "mem_level"), [(12, 5), (15, 8), (9, 1)])
def test_the_memory_of_a_connection_is_what_the_docstring_says(bits: int, mem_level: int) -> None:
    """zlib's formulas hold, builds of it differ a little, and come due only with the first message of a direction."""
    payload, _ = state(encoding_bits=bits).encode(bytes(5000))
    decoding, both = traced(state(encoding_bits=bits, decoding_bits=bits, mem_level=mem_level), payload)
    assert decoding == pytest.approx(2**bits + 7 * 1024, rel=0.25, abs=4096)
    assert both - decoding == pytest.approx(2 ** (bits + 2) + 2 ** (mem_level + 9) + 6 * 1024, rel=0.25, abs=4096)
    nothing_kept = state(
        encodes_with_context=False,
        decodes_with_context=False,
        encoding_bits=bits,
        decoding_bits=bits,
        mem_level=mem_level,
    )
    # Other threads of the process, the test runner's own, may allocate meanwhile.
    assert min(max(traced(nothing_kept, payload)) for _ in range(5)) < 1024
