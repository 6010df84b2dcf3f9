"""What a relay and its Nodes tell each other about WebSockets: tables of good and of hostile bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentx.errors import RemoteProtocolError
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

OPENED = Opened("front", True, True, "chat", ("a", "b c", "ü"), 7, b'{"n":1}', b"front 1 / 0:}0:,")


@pytest.mark.parametrize(
    "opened",
    [
        OPENED,
        OPENED._replace(subprotocol=None, groups=(), state=b"", done=0),
        OPENED._replace(decided=False, adopted=False, request=b""),
        OPENED._replace(groups=("",), state=b"{}", request=b"\x00\xff" * 100),
    ],
)
def test_what_begins_is_read_back(opened: Opened) -> None:
    """Facts, state and request."""
    assert parse_open(opened.build()) == opened


@pytest.mark.parametrize(
    "cast",
    [
        Cast(None, frozenset(), b""),
        Cast("a group", frozenset({("front", "1"), ("front", "2")}), b"\x00text"),
        Cast("", frozenset({("", "")}), b"1:,"),
    ],
)
def test_a_broadcast_is_read_back(cast: Cast) -> None:
    """The message is the rest, whatever it is."""
    assert parse_cast(cast.build()) == cast


@pytest.mark.parametrize("accepted", [(None, []), ("chat", [("a", "b"), ("a", "c")]), ("", [("", "")])])
def test_what_is_agreed_on_is_read_back(accepted: tuple[str | None, list[tuple[str, str]]]) -> None:
    """A field may come twice."""
    assert parse_accept(build_accept(*accepted)) == accepted


def cuts(payload: bytes) -> list[bytes]:
    """Everything that is a start of it."""
    return [payload[:end] for end in range(len(payload))]


def with_facts(**changed: Any) -> bytes:
    """What begins, with other facts; ``...`` leaves one out."""
    text = OPENED.build().split(b":", 1)[1]
    facts = json.loads(text[: text.index(b"},") + 1]) | changed
    facts = {name: value for name, value in facts.items() if value is not ...}
    text = json.dumps(facts).encode()
    return b"%d:%b,0:," % (len(text), text)


HOSTILE: list[tuple[Callable[[bytes], Any], list[bytes]]] = [
    (
        parse_open,
        [
            b"",
            b":,",
            b"1:{",
            b"2:{}",
            b"2:{},",
            b"999999999:{},",
            b"9999999999:{},",
            b"-1:{},",
            b"4:null,0:,",
            b"2:[],0:,",
            b"%d:%b,0:," % (100000, b"[" * 100000),
            *[with_facts(**{name: ...}) for name in ("server", "decided", "adopted", "subprotocol", "groups", "done")],
            with_facts(server=1),
            with_facts(decided="yes"),
            with_facts(subprotocol=1),
            with_facts(groups="abc"),
            with_facts(groups=[1]),
            with_facts(done="1"),
            OPENED._replace(state=b"[]").build(),
            OPENED._replace(state=b"{").build(),
            *cuts(OPENED._replace(request=b"").build()),
        ],
    ),
    (
        parse_cast,
        [
            b"",
            b"2:{},",
            b'14:{"group":null},',
            *[
                b"%d:%b," % (len(text), text)
                for text in (
                    b'{"group":1,"exclude":[]}',
                    b'{"group":null,"exclude":{}}',
                    b'{"group":null,"exclude":["ab"]}',
                    b'{"group":null,"exclude":[["a"]]}',
                    b'{"group":null,"exclude":[["a","b","c"]]}',
                    b'{"group":null,"exclude":[["a",1]]}',
                    b'{"group":null,"exclude":[[["a"],["b"]]]}',
                )
            ],
            *cuts(Cast("a", frozenset({("b", "1")}), b"").build()),
        ],
    ),
    (
        parse_accept,
        [
            b"",
            b"[]",
            b"{}",
            b'{"subprotocol":1,"fields":[]}',
            b'{"subprotocol":null,"fields":{}}',
            b'{"subprotocol":null,"fields":["ab"]}',
            b'{"subprotocol":null,"fields":[["a"]]}',
            b'{"subprotocol":null,"fields":[["a",1]]}',
            b'{"subprotocol":null,"fields":[["a","b","c"]]}',
            *cuts(build_accept("chat", [("a", "b")])),
        ],
    ),
    (parse_state, [b"", b"[]", b"1", b"{", b"\xff", b"[" * 100000]),
    (parse_group, [b"\xff", b"x" * 65537]),
    (parse_reason, [b"\xff", b"\xed\xa0\x80"]),
]


@pytest.mark.parametrize(
    ("parse", "payload"), [(parse, payload) for parse, payloads in HOSTILE for payload in payloads]
)
def test_hostile_payloads_are_refused(parse: Callable[[bytes], Any], payload: bytes) -> None:
    """With the one error that ends a message and nothing else."""
    with pytest.raises(RemoteProtocolError):
        parse(payload)


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (parse_number, []),
        (parse_number, [b"1", b"2"]),
        (parse_number, [b""]),
        (parse_number, [b"-1"]),
        (parse_number, [b"1.0"]),
        (parse_number, [b"0x1"]),
        (parse_number, [b"1_0"]),
        (parse_number, ["१".encode()]),
        (parse_number, [b"1" * 19]),
        (lambda words: parse_numbers(words, 3), [b"1", b"2"]),
        (lambda words: parse_numbers(words, 3), [b"1", b"2", b"x"]),
        (parse_done, []),
        (parse_done, [b"1"]),
        (parse_done, [b"1", b"2", b"3"]),
        (parse_done, [b"1", b"x"]),
    ],
)
def test_words_that_are_not_numbers_are_refused(parse: Callable[[list[bytes]], Any], words: list[bytes]) -> None:
    """Signs, other scripts' digits and thousands of digits included."""
    with pytest.raises(RemoteProtocolError):
        parse(words)


def test_numbers_are_read() -> None:
    """Up to eighteen digits."""
    assert parse_number([b"0"]) == 0
    assert parse_numbers([b"1", b"9" * 18], 2) == [1, 10**18 - 1]
    assert parse_done([b"1", b"2", b"3", b"4"]) == [(1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("flags", "split"), [(1, (1, 0, False)), (0x81, (1, 0, True)), (0x42, (2, 4, False)), (0xFF, (15, 7, True))]
)
def test_flags_are_split(flags: int, split: tuple[int, int, bool]) -> None:
    """Opcode, reserved bits, redelivered."""
    assert split_flags(flags) == split


def test_more_than_eight_bits_are_not_flags() -> None:
    """Nothing says what they would mean."""
    with pytest.raises(RemoteProtocolError):
        split_flags(256)


@pytest.mark.parametrize("group", ["", "a", "ü" * 100, "two words\n", "\ud800"])
def test_any_text_is_the_name_of_a_group(group: str) -> None:
    """Also text that UTF-8 has not: applications use what they like."""
    assert parse_group(group.encode(errors="surrogatepass")) == group


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    """Nothing else is raised."""
    for parse, _ in HOSTILE:
        try:
            parse(payload)
        except RemoteProtocolError:
            continue
    for words in (payload.split(b" "), [payload]):
        for parse_words in (parse_number, parse_done):
            try:
                parse_words(words)
            except RemoteProtocolError:
                continue
