"""Which bytes the embedded front end reads as messages of JSON and XML sockets, in whatever pieces they come."""

from __future__ import annotations

import pytest
from front_rig import WAYS, read, request, shown

from greentx.edge.front.events import Message
from greentx.edge.front.limits import Limits
from greentx.edge.front.message_sockets import asks_for_policy, is_ping
from greentx.edge.front.requests import RequestReader

CASES: dict[str, tuple[bytes, list[str]]] = {
    "JSON": (b'@chat {"a":1}\0', ['JSON @chat {"a":1}']),
    "a path with slashes": (b"@chat/a//b:c@d/ {}\0", ["JSON @chat/a//b:c@d/ {}"]),
    "a path of all characters": (
        b"@!$%20&'()*+,-.09;=@AZ_az~/: {}\0",
        ["JSON @!$%20&'()*+,-.09;=@AZ_az~/: {}"],
    ),
    "a path that is empty": (b"@ {}\0", ["JSON @ {}"]),
    "a path of one slash": (b"@/ {}\0", ["JSON @/ {}"]),
    "the path of notices": (b'@* {"type":"disconnect"}\0', ['JSON @* {"type":"disconnect"}']),
    "a NUL inside": (b'@a {"b":"\0"}\0', ['JSON @a {"b":"\0"}']),
    "the first NUL behind a brace": (b"@a {}}\0@b {}\0", ["JSON @a {}}", "JSON @b {}"]),
    "a NUL behind a brace inside": (b'@a {"}\0"}\0', ['JSON @a {"}', "400"]),
    "line ends inside": (b"@a {\r\n\r\n}\0", ["JSON @a {\r\n\r\n}"]),
    "what is not UTF-8": (b"@a {\xff}\0", ["JSON @a {\xff}"]),
    "no end": (b'@a {"b":1}\n\0', []),
    "two blanks": (b"@a  {}\0", ["400"]),
    "no blank": (b"@a{}\0", ["400"]),
    "a list": (b"@a [1]\0", ["400"]),
    "a query": (b"@a?b {}\0", ["400"]),
    "a fragment": (b"@a#b {}\0", ["400"]),
    "a colon before a slash": (b"@a:b {}\0", ["400"]),
    "a bad escape": (b"@a%2x {}\0", ["400"]),
    "a path that is not ASCII": (b"@\xff {}\0", ["400"]),
    "a NUL in the path": (b"@a\0{}\0", ["400"]),
    "a line": (b"@a\r\n\r\n", ["400"]),
    "XML": (b'<chat a="1">hi</chat>\0', ['XML <chat <chat a="1">hi</chat>']),
    "an XML tag that is closed": (b"<chat/>\0", ["XML <chat <chat/>"]),
    "an XML name of all characters": (b"<Az09.-\t>\0", ["XML <Az09.- <Az09.-\t>"]),
    "an XML tag with a line end": (b"<a\n>\0", ["XML <a <a\n>"]),
    "a NUL in XML": (b"<a>\0</a>\0", ["XML <a <a>\0</a>"]),
    # Its ">" ends the name.
    "a lonely tag": (b"<a>\0<b/>\0", ["XML <a <a>\0<b/>"]),
    "a tag without name": (b"</a>\0", ["400"]),
    "an XML declaration": (b"<?xml?>\0", ["400"]),
    "a NUL in the tag": (b"<a\0>\0", ["400"]),
    "a policy": (b"<policy-file-request/>\0", ["XML <policy-file-request <policy-file-request/>"]),
    "between requests": (
        request() + b"@a {}\0" + request(b"Content-Length: 2", body=b"@<") + b"<a/>\0\r\n@b {}\0" + request(),
        ["GET /", "end", "JSON @a {}", "GET /", "body @<", "end", "XML <a <a/>", "JSON @b {}", "GET /", "end"],
    ),
    "behind the last request": (request(b"Connection: close") + b"@a {}\0", ["GET /", "end"]),
}


@pytest.mark.parametrize("case", CASES)
def test_messages_end_at_the_first_nul_behind_their_last_character(case):
    """However they are cut: what was probed on Mongrel2."""
    data, expected = CASES[case]
    for way, cut in WAYS.items():
        assert shown(read(cut(data))) == expected, way


def test_a_message_has_as_many_bytes_as_a_head_with_its_nul():
    """One more is refused, wherever the message has got to then."""
    limits = Limits(buffer_size=16)
    for data, size in ((b"@abc {%b}\0", 8), (b"<abc>%b>\0", 9), (b"@%b {}\0", 11), (b"<%b/>\0", 12)):
        fits, over = data % (b"x" * size), data % (b"x" * (size + 1))
        assert len(fits) == 16
        for way, cut in WAYS.items():
            assert len(read(cut(fits * 2), limits)) == 2, way
            assert shown(read(cut(over), limits)) == ["400"], way
            assert read(cut(over), limits) == read([over], limits), way


def test_a_message_is_refused_at_the_first_byte_that_it_cannot_have():
    """Nobody waits for more."""
    for data in (b"@a:b ", b"@a?", b"@a [", b"@a\0", b"</", b"<a\0", b"@a%zz "):
        assert shown(read([data])) == ["400"], data
        assert not read([data[:-1]]), data


def test_a_reader_is_not_idle_within_a_message():
    """A client may not hold a place with a part of one, nor end in it."""
    reader = RequestReader()
    assert not reader.feed(b"@a {")
    assert not reader.idle
    assert shown(reader.feed(b"}\0")) == ["JSON @a {}"]
    assert reader.idle
    reader.feed(b"<a")
    assert shown(reader.eof()) == ["400"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (b"@chat", b'{"type":"ping"}', True),
        (b"@", b'{"type":"ping"}', True),
        (b"@a/b", b'{"type": \t\r\n"ping"}', True),
        (b"@*", b'{"type":"ping"}', False),
        (b"@A", b'{"type":"ping"}', False),
        (b"@a", b'{"type":"ping","a":1}', False),
        (b"@a", b'{ "type":"ping"}', False),
        (b"@a", b'{"type":"pong"}', False),
        (b"<a", b'<a {"type":"ping"}>', False),
    ],
)
def test_a_ping_is_what_mongrel2_sees_as_one(path, body, expected):
    """In any other form it is a message as others are."""
    assert is_ping(Message(b"JSON", path, body)) is expected


def test_a_policy_is_asked_for_by_the_name_of_the_tag():
    """Whatever else it has."""
    assert asks_for_policy(Message(b"XML", b"<policy-file-request", b"<policy-file-request a='b' />"))
    assert not asks_for_policy(Message(b"XML", b"<policy-file", b"<policy-file/>"))
