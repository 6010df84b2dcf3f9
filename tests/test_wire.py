"""Mongrel2's messages, both directions: what is built, what is read, what is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import tnetstring
from hypothesis import given
from hypothesis import strategies as st

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.protocol import message as wire
from greentx.protocol.cache import Memo
from greentx.protocol.fields import CONTROL_ID, MAX_CONN_IDS, batch_conn_ids, check_sender
from greentx.protocol.headers import Headers
from greentx.protocol.replies import (
    CANCEL,
    KEEP_ALIVE,
    Response,
    build_control_reply,
    build_extended_reply,
    build_reply,
    credits_body,
    parse_plain_reply,
    parse_reply,
)
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_credits_notice, build_disconnect_notice, build_request

DATA = Path(__file__).parent / "data"
VALID = sorted(path.stem for path in (DATA / "valid").glob("*.msg"))
INVALID = sorted(path.stem for path in (DATA / "invalid").glob("*.msg"))
PROTOCOLS = ["tnetstring", "json"]


@pytest.fixture(params=["msgspec", "standard library"])
def decoder(request, monkeypatch):
    """Run a test with the extra "speed" and without it."""
    if request.param == "msgspec":
        pytest.importorskip("msgspec", reason='part of the extra "tests"')
        assert wire.decode_json is not None
    else:
        monkeypatch.setattr(wire, "decode_json", None)
    return request.param


def captured(name: str, folder: str = "valid") -> bytes:
    return (DATA / folder / f"{name}.msg").read_bytes()


def json_message(headers: bytes, body: bytes = b"") -> bytes:
    return b"U 1 / %d:%s,%d:%s," % (len(headers), headers, len(body), body)


def tnetstring_message(headers: object) -> bytes:
    return b"U 1 / %s0:," % tnetstring.dumps(headers)


# -- requests: what a real Mongrel2 sent ----------------------------------------------------------------------------


def test_there_are_captured_messages_of_every_kind():
    """Both header encodings of each kind of message are among the data."""
    kinds = {name.partition("-")[2] for name in VALID}
    assert {name.partition("-")[0] for name in VALID} == {"json", "tnetstring"}
    assert len(VALID) == 2 * len(kinds) >= 22
    assert INVALID


@pytest.mark.parametrize("name", VALID)
def test_a_captured_message_is_read_as_it_was_meant(name, decoder):
    """Every field of what Mongrel2 1.12.2 sent is as written beside it."""
    expected = json.loads((DATA / "valid" / f"{name}.json").read_text())
    request = parse_request(captured(name))
    assert request.body == expected["body"].encode("latin-1")
    for field in ("sender", "conn_id", "path", "method", "headers"):
        assert getattr(request, field) == expected[field], field
    for question in ("is_notice", "is_disconnect", "credits", "should_close"):
        assert getattr(request, question)() == expected[question], question
    assert request.sid == (expected["sender"], expected["conn_id"])


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("touched", [False, True])
def test_a_captured_message_survives_being_built_again(name, protocol, touched):
    """Forwarding keeps every field, whichever protocol goes out and whether the headers were read or not."""
    request = parse_request(captured(name))
    if touched:
        assert request.headers
    again = parse_request(request.encode(protocol))
    assert (again.sender, again.conn_id, again.path, again.method) == (
        request.sender,
        request.conn_id,
        request.path,
        request.method,
    )
    assert again.body == request.body
    assert again.headers == request.headers


@pytest.mark.parametrize("name", [name for name in VALID if name.startswith("json")])
def test_json_is_built_byte_for_byte_as_mongrel2_writes_it(name):
    """Order, escapes and raw bytes come out as they went in."""
    assert parse_request(captured(name)).encode("json") == captured(name)


@pytest.mark.parametrize("name", INVALID)
def test_a_broken_message_is_refused_with_what_is_wrong(name, decoder):
    """The error says which field, and that is written beside each message."""
    expected = (DATA / "invalid" / f"{name}.txt").read_text().strip()
    with pytest.raises(RemoteProtocolError) as raised:
        parse_request(captured(name, "invalid"))
    assert expected in str(raised.value)


@pytest.mark.parametrize("name", VALID)
def test_a_message_cut_at_any_byte_is_refused(name, decoder):
    """No part of a message passes for a whole one."""
    message = captured(name)
    for cut in range(len(message)):
        with pytest.raises(RemoteProtocolError):
            parse_request(message[:cut])


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("extra", [b",", b" ", b"\n", b"\0", b"0:,"])
def test_bytes_after_the_body_are_refused(name, extra):
    """A message ends with its body."""
    with pytest.raises(RemoteProtocolError, match="and the end"):
        parse_request(captured(name) + extra)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("field", ["headers", "body"])
def test_a_length_that_is_off_by_one_is_refused(protocol, off, field, decoder):
    """Each of the two lengths has to agree with its data."""
    message = build_request("U", 1, "/", {"METHOD": "GET", "x": "y"}, b"body bytes", protocol=protocol)
    start = 6 if field == "headers" else message.rindex(b"10:body")
    length = message[start : message.index(b":", start)]
    wrong = message[:start] + b"%d" % (int(length) + off) + message[start + len(length) :]
    with pytest.raises(RemoteProtocolError, match=f"{field} at byte {start}"):
        parse_request(wrong)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "no 'sender conn_id path '"),
        (b"U", "no 'sender conn_id path '"),
        (b" 1 / 13:6:METHOD,1:X,}0:,", "no 'sender conn_id path '"),
        (b"U 1  13:6:METHOD,1:X,}0:,", "no 'sender conn_id path '"),
        (b"U  / 13:6:METHOD,1:X,}0:,", "conn_id ''"),
        (b"U -2 / 13:6:METHOD,1:X,}0:,", "conn_id '-2'"),
        (b"U 1x / 13:6:METHOD,1:X,}0:,", "conn_id '1x'"),
        (b"U \xb2 / 13:6:METHOD,1:X,}0:,", "conn_id"),
        (b"U 1 / 6:METHOD", "should end"),
        (b"U 1 / :6:METHOD,1:X,}0:,", "no length before the headers, at byte 6"),
        (b"U 1 / -1:,0:,", "no length before the headers"),
        (b"U 1 / +2:{},0:,", "no length before the headers"),
        (b"U 1 / 12345678901:{},0:,", "no length before the headers"),
        (b"U 1 / 9999999999:{},0:,", "should end after 9999999999 bytes"),
        (b"U 1 / 2:{}]0:,", "with '}' or ','"),
        (b"U 1 / 13:6:METHOD,1:X,}x:,", "no length before the body, at byte 23"),
        (b"U 1 / 13:6:METHOD,1:X,}", "no length before the body"),
        (b"U 1 / 13:6:METHOD,1:X,}9999999999:,", "should be 9999999999 bytes"),
        (b"U 1 / 13:6:METHOD,1:X,}12345678901:,", "no length before the body"),
        (b"U 1 / 13:6:METHOD,1:X,}0:}", "a ',' and the end"),
        (b"U 1 / 0:}0:,", "no METHOD"),
        (b"U 1 / 9:6:METHOD,}0:,", "are not a tnetstring"),
        (tnetstring_message({b"METHOD": 1}), "no METHOD"),
        (tnetstring_message({b"METHOD": [b"GET"]}), "no METHOD"),
        (tnetstring_message({b"method": b"GET"}), "no METHOD"),
        (json_message(b"{}"), "no METHOD"),
        (json_message(b'{"METHOD":1}'), "no METHOD"),
        (json_message(b'{"METHOD":["GET"]}'), "no METHOD"),
        (json_message(b'["METHOD"]'), "not a JSON object"),
        (json_message(b"null"), "not a JSON object"),
        (json_message(b'{"METHOD":"GET"'), "are not JSON"),
        (json_message(b'{"METHOD":"GET"}}'), "are not JSON"),
        (json_message(b'{"METHOD":"GET","n":' + b"1" * 5000 + b"}"), "are not JSON"),
        (json_message(b"[" * 200_000), "are not JSON"),
    ],
)
def test_a_malformed_request_is_refused(message, why, decoder):
    """Every field is checked, and the error says what and where."""
    with pytest.raises(RemoteProtocolError) as raised:
        parse_request(message)
    assert why in str(raised.value)


def nested(depth: int) -> bytes:
    value = b"0:~"
    for _ in range(depth):
        value = b"%d:%s]" % (len(value), value)
    return value


def test_deep_nesting_ends_the_message_only():
    """A tower of lists is a protocol error, not a RecursionError in the reader."""
    headers = b"6:METHOD,3:GET,1:a," + nested(20_000)
    with pytest.raises(RemoteProtocolError, match="not a tnetstring"):
        parse_request(b"U 1 / %d:%s}0:," % (len(headers), headers))
    with pytest.raises(RemoteProtocolError, match="not a tnetstring"):
        parse_reply(b"U 3:X 1, " + nested(20_000))
    value: list[object] = []
    for _ in range(20_000):
        value = [value]
    with pytest.raises(LocalProtocolError, match="cannot be written"):
        build_extended_reply("U", 1, "x", value)
    disconnect = parse_request(build_request("U", 1, "@*", {"METHOD": "JSON"}, b"[" * 200_000))
    assert not disconnect.is_disconnect()
    with pytest.raises(RemoteProtocolError, match="is not JSON"):
        _ = disconnect.data


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        (b'{"METHOD":"GET","a":"\t"}', "\t"),
        (b'{"METHOD":"GET","a":"\x01\x1f"}', "\x01\x1f"),
        (b'{"METHOD":"GET","a":"\xff\xfe"}', "\xff\xfe"),
        (b'{"METHOD":"GET","a":"\xc3\xa9"}', "\xc3\xa9"),
        (b'{"METHOD":"GET","a":"\\"\\\\"}', '"\\'),
        (b'{"METHOD":"GET","a":"\\u20ac"}', "\u20ac"),
        (b'{"METHOD":"GET","a":["1","\t"]}', ["1", "\t"]),
        (b'{"METHOD":"GET","a":[]}', []),
        (b'{"METHOD":"GET","a":1}', "1"),
        (b'{"METHOD":"GET","a":null}', None),
        (b'{"METHOD":"GET","a":[1]}', ["1"]),
    ],
)
def test_json_headers_are_read_leniently(headers, value, decoder):
    """Mongrel2 escapes quote and backslash only, so raw control bytes and invalid UTF-8 occur (probed)."""
    request = parse_request(json_message(headers))
    assert request.method == "GET"
    assert request.header("a") == value
    assert request.headers["a"] == (value if value is not None else "None")


def test_a_header_value_of_another_type_does_not_break_the_map():
    """tnetstrings may hold numbers, nothing, and dicts; the map shows them as text."""
    request = parse_request(tnetstring_message({b"METHOD": b"GET", b"n": 1, b"l": [b"x", 2], 3: b"y"}))
    assert request.headers == {"METHOD": "GET", "n": "1", "l": ["x", "2"], "3": "y"}
    assert request.header("n") == "1"
    assert request.header("l") == ["x", "2"]
    assert sorted(request.headers.client()) == [("3", "y"), ("l", "2"), ("l", "x"), ("n", "1")]
    assert parse_request(request.encode()).headers == request.headers


NOT_TEXT = [1, 2.5, True, None, {b"a": b"b"}, {}, [], [1], [[b"close"]], [{b"close": b""}], [b"close", {}], b""]


@pytest.mark.parametrize("value", NOT_TEXT)
@pytest.mark.parametrize("name", [b"connection", b"VERSION", b"REMOTE_ADDR", b"URI", b"QUERY", b"cookie", b"host"])
def test_a_header_that_is_not_text_harms_nobody(name, value):
    """A number, dict or nested list where Mongrel2 writes text is shown as text, however often the message comes."""
    headers = {b"METHOD": b"GET", b"VERSION": b"HTTP/1.1", b"PATH": b"/", name: value}
    for message in [tnetstring_message(headers)] * 3 + [tnetstring_message(headers)[:-3] + b"4:body,"] * 3:
        request = parse_request(message)
        assert request.persistence() in ((True, False), (False, False))
        assert isinstance(request.headers, Headers)
        assert all(isinstance(one, str) for _, one in request.headers.client())
        with contextlib.suppress(LocalProtocolError):  # a dict has no place in a request that is built
            assert parse_request(request.encode()).method == "GET"


def test_a_header_of_a_hostile_depth_is_abridged():
    """What nests, as no header does, is shown by its outermost levels: its depth is its sender's to choose."""
    value: object = b"x"
    for _ in range(300):
        value = [value]
    request = parse_request(tnetstring_message({b"METHOD": b"GET", b"a": value}))
    assert len(str(request.header("a"))) < 300
    assert request.headers["a"] == request.header("a")


@pytest.mark.parametrize("digit", [b"\xff", b"\xb2", "\u0661".encode(), b"\x80"])
def test_a_number_with_other_digits_ends_the_message_only(digit):
    """The library's OverflowError for a digit that is not ASCII is a protocol error."""
    number = b"%d:%s#" % (len(digit), digit)
    headers = b"6:METHOD,3:GET,1:n," + number
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match="not a tnetstring"):
            parse_request(b"U 1 / %d:%s}0:," % (len(headers), headers))
    with pytest.raises(RemoteProtocolError, match="not a tnetstring"):
        parse_reply(b"U 3:X 1, " + number)


def test_an_unusual_method_is_kept():
    """What is not in the table of common methods is decoded all the same."""
    assert parse_request(tnetstring_message({b"METHOD": b"PURGE\xff"})).method == "PURGE\xff"


def test_the_extra_speed_is_not_needed(monkeypatch):
    """Without msgspec the module loads and reads JSON headers with the standard library."""
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.setitem(sys.modules, "msgspec.json", None)
    spec = importlib.util.spec_from_file_location("greentx.protocol.message_without_msgspec", wire.__file__)
    assert spec is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert plain.decode_json is None
    assert plain.read_message(captured("json-get")) == wire.read_message(captured("json-get"))


# -- requests: what is built -----------------------------------------------------------------------------------------

HEADERS = {
    "METHOD": "GET",
    "PATH": "/",
    "a": "b",
    "cookie": ["a=b", "c=d"],
    "odd": 'tab\tquote"back\\slash\x01\xff',
}

BUILT = [
    (
        ("U", 1, "/", {"METHOD": "GET"}, b""),
        b"U 1 / 15:6:METHOD,3:GET,}0:,",
        b'U 1 / 16:{"METHOD":"GET"},0:,',
    ),
    (
        ("U", "12", "/a", {b"METHOD": b"POST"}, b"\0,:}"),
        b"U 12 /a 16:6:METHOD,4:POST,}4:\0,:},",
        b'U 12 /a 17:{"METHOD":"POST"},4:\0,:},',
    ),
    (
        ("a-B-9", -1, "/__ping__", {"METHOD": "X"}, b"body"),
        b"a-B-9 -1 /__ping__ 13:6:METHOD,1:X,}4:body,",
        b'a-B-9 -1 /__ping__ 14:{"METHOD":"X"},4:body,',
    ),
    (
        ("U", 1, "/", {"METHOD": ["a", b"b"]}, b""),
        b"U 1 / 20:6:METHOD,8:1:a,1:b,]}0:,",
        b'U 1 / 20:{"METHOD":["a","b"]},0:,',
    ),
    (
        ("U", 1, "/\xe9", {"n": 5}, b""),
        b"U 1 /\xe9 8:1:n,1:5,}0:,",
        b'U 1 /\xe9 9:{"n":"5"},0:,',
    ),
    (
        ("U", 1, "/", {"x": "\u20ac"}, b""),
        b"U 1 / 10:1:x,3:\xe2\x82\xac,}0:,",
        b'U 1 / 11:{"x":"\xe2\x82\xac"},0:,',
    ),
    (
        ("U", 1, "/", {"QUERY": {"a": "1"}, "QUERY_STR": "a=1"}, b""),
        b"U 1 / 14:5:QUERY,3:a=1,}0:,",
        b'U 1 / 15:{"QUERY":"a=1"},0:,',
    ),
    (("U", 1, "/", {"QUERY": {}, "QUERY_STR": ""}, b""), b"U 1 / 0:}0:,", b"U 1 / 2:{},0:,"),
]


@pytest.mark.parametrize(("fields", "as_tnetstring", "as_json"), BUILT)
def test_a_request_is_built_byte_for_byte(fields, as_tnetstring, as_json):
    """The table has the bytes of both protocols."""
    assert build_request(*fields) == as_tnetstring
    assert build_request(*fields, protocol="json") == as_json


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_built_request_is_read_back(protocol, decoder):
    """Both ends of the codec agree, lists and odd bytes included."""
    body = bytes(range(256))
    request = parse_request(build_request("U", 7, "/p", HEADERS, body, protocol=protocol))
    assert {name: request.header(name) for name in HEADERS} == HEADERS
    assert request.header("absent") is None
    assert (request.sender, request.conn_id, request.path, request.body) == ("U", "7", "/p", body)
    assert Request.parse(request.encode()).headers == request.headers


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sender": "a b"}, "sender 'a b'"),
        ({"sender": ""}, "sender ''"),
        ({"conn_id": "x"}, "conn_id 'x'"),
        ({"conn_id": -2}, "conn_id -2"),
        ({"conn_id": ""}, "conn_id ''"),
        ({"path": "/a b"}, "percent-encode"),
        ({"path": ""}, "percent-encode"),
        ({"headers": {"x": None}}, "header 'x' has a NoneType"),
        ({"headers": {"x": {"a": "b"}}}, "header 'x' has a dict"),
        ({"headers": {"QUERY": {"a": "b"}}}, "'QUERY_STR' next to it"),
        ({"headers": {"x": "\ud800"}}, "cannot be written as UTF-8"),
        ({"body": "text"}, "a body is bytes, not str"),
        ({"protocol": "xml"}, "not 'xml'"),
    ],
)
def test_a_request_that_nobody_could_read_is_not_built(change, why):
    """The caller is told which field."""
    fields = {"sender": "U", "conn_id": 1, "path": "/", "headers": {"METHOD": "GET"}, "body": b""} | change
    with pytest.raises(LocalProtocolError) as raised:
        build_request(**fields)
    assert why in str(raised.value)


class Recorder:
    """Remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)


def test_forward_sends_the_message_as_one_part():
    """A plain socket gets the encoded request, changed headers included."""
    request = parse_request(captured("tnetstring-get"))
    socket = Recorder()
    request.forward(socket)
    request.headers["x-seen-by"] = "api"
    request.forward(socket)
    assert "x-seen-by" not in parse_request(socket.sent[0]).headers
    assert parse_request(socket.sent[1]).headers["x-seen-by"] == "api"


# -- requests: what is asked of them ---------------------------------------------------------------------------------


def test_a_request_made_by_hand_takes_its_method_from_the_headers():
    """Text, bytes or nothing: METHOD is found, unless it is given."""
    assert Request("U", "1", "/", {"METHOD": "PUT"}).method == "PUT"
    assert Request("U", "1", "/", {b"METHOD": b"PUT"}).method == "PUT"
    assert Request("U", "1", "/", {}).method == ""
    assert Request("U", "1", "/", {"METHOD": "PUT"}, method="WEBSOCKET_CONNECT").method == "WEBSOCKET_CONNECT"


def test_a_new_request_has_no_websocket_fields():
    """opcode and close code are set by the events only."""
    request = Request("U", "1", "/", {"METHOD": "GET"})
    assert (request.opcode, request.close_code, request.close_reason) == (None, None, "")
    assert repr(request) == "<Request GET / sender=U conn_id=1 body=0 bytes>"


def test_the_query_keeps_repeated_and_empty_values():
    """As parse_qs makes it."""
    assert parse_request(captured("tnetstring-get")).query == {"x": ["1", "2"], "y": [""]}
    assert parse_request(captured("tnetstring-disconnect")).query == {}


@pytest.mark.parametrize(
    ("method", "body", "data"),
    [
        ("JSON", b'{"a":1}', {"a": 1}),
        ("DISCONNECT", b'{"type":"disconnect"}', {"type": "disconnect"}),
        ("GET", b'{"a":1}', {}),
    ],
)
def test_data_is_the_decoded_json_of_a_json_message(method, body, data):
    """Other methods have none."""
    assert Request("U", "1", "/", {"METHOD": method}, body).data == data


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 200_000])
def test_a_json_message_without_json_raises_when_asked(body):
    """Mongrel2 does not validate it (probed)."""
    with pytest.raises(RemoteProtocolError, match="is not JSON"):
        _ = Request("U", "1", "@chat", {"METHOD": "JSON"}, body).data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_notices_have_the_bytes_that_mongrel2_sends(protocol):
    """Built notices equal captured ones."""
    sender = parse_request(captured(f"{protocol}-disconnect")).sender
    assert build_disconnect_notice(sender, 1, protocol=protocol) == captured(f"{protocol}-disconnect")
    credits_notice = parse_request(build_credits_notice(sender, 1, 40, protocol=protocol))
    genuine = parse_request(captured(f"{protocol}-credits"))
    assert credits_notice.headers == genuine.headers
    assert credits_notice.body == genuine.body
    assert credits_notice.credits() == genuine.credits() == 40


@pytest.mark.parametrize(
    ("headers", "body", "notice", "disconnect", "written"),
    [
        ({"METHOD": "JSON"}, b'{"type":"disconnect"}', True, True, None),
        ({"METHOD": "JSON"}, b'{"type":"other"}', True, False, None),
        ({"METHOD": "JSON"}, b'["disconnect"]', True, False, None),
        ({"METHOD": "JSON"}, b"\xff", True, False, None),
        ({"METHOD": "GET"}, b'{"type":"disconnect"}', False, False, None),
        ({"METHOD": "JSON", "PATH": "@*"}, b'{"type":"disconnect"}', False, False, None),
        ({"METHOD": "JSON", "PATH": "@*", "x": "y"}, b'{"type":"disconnect"}', False, False, None),
        ({"METHOD": "JSON", "DOWNLOAD_CREDITS": "7"}, b'{"type":"credits"}', True, False, 7),
        ({"METHOD": "JSON", "DOWNLOAD_CREDITS": "7"}, b'{"type":"disconnect"}', True, False, 7),
        ({"METHOD": "JSON", "DOWNLOAD_CREDITS": "-7"}, b'{"type":"credits"}', True, False, None),
        ({"METHOD": "JSON", "DOWNLOAD_CREDITS": "9" * 5000}, b'{"type":"credits"}', True, False, None),
        ({"METHOD": "JSON", "DOWNLOAD_CREDITS": ["1", "2"]}, b'{"type":"credits"}', True, False, None),
        ({"METHOD": "JSON", "download_credits": "7"}, b'{"type":"credits"}', False, False, None),
        ({"METHOD": "GET", "DOWNLOAD_CREDITS": "7"}, b'{"type":"credits"}', False, False, None),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_a_notice_without_other_headers_is_genuine(headers, body, notice, disconnect, written, protocol):
    """A client of a JSON socket can send path and body of a notice, but not without PATH among the headers (probed)."""
    request = parse_request(build_request("U", 1, "@*", headers, body, protocol=protocol))
    assert request.is_notice() is notice
    assert request.is_disconnect() is disconnect
    assert request.credits() == written


@pytest.mark.parametrize("method", ["DISCONNECT", "WEBSOCKET_CLOSE"])
def test_the_events_of_an_end_are_disconnects(method):
    """What recv() makes of a notice says the same as the notice."""
    assert Request("U", "1", "/", {"METHOD": "GET", "PATH": "/"}, method=method).is_disconnect()


@pytest.mark.parametrize(
    ("version", "connection", "close"),
    [
        ("HTTP/1.1", None, False),
        ("HTTP/1.1", "close", True),
        ("HTTP/1.1", "Close", True),
        ("HTTP/1.1", "keep-alive", False),
        ("HTTP/1.1", "x, close ,y", True),
        ("HTTP/1.1", ["upgrade", "close"], True),
        ("HTTP/1.1", ["upgrade", "x"], False),
        ("HTTP/1.1", "closed", False),
        ("HTTP/1.0", None, True),
        ("HTTP/1.0", "keep-alive", False),
        ("HTTP/1.0", "Keep-Alive, x", False),
        ("HTTP/1.0", "keep-alive, close", True),
        ("HTTP/1.0", "x", True),
    ],
)
def test_the_handler_knows_when_to_close(version, connection, close):
    """Mongrel2 keeps every connection open (probed), so RFC 9112, section 9.3, is the handler's to obey."""
    headers = {"METHOD": "GET", "VERSION": version}
    if connection is not None:
        headers["connection"] = connection
    assert parse_request(build_request("U", 1, "/", headers)).should_close() is close


def test_a_message_without_version_stays_open():
    """JSON sockets have no VERSION."""
    assert not parse_request(captured("json-jsonsocket")).should_close()


# -- replies ---------------------------------------------------------------------------------------------------------

REPLIES = [
    (("U", 1, b"x"), b"U 1:1, x"),
    (("U", "1", b"HTTP/1.1 200 OK\r\n\r\n"), b"U 1:1, HTTP/1.1 200 OK\r\n\r\n"),
    (("U", 1, b""), b"U 1:1, "),
    (("U-1-z", [1, "22", 333], b"\0\xff, 1:1,"), b"U-1-z 8:1 22 333, \0\xff, 1:1,"),
    (("U", ["7"], bytearray(b"x")), b"U 1:7, x"),
    (("U", (7, 7), memoryview(b"x")), b"U 3:7 7, x"),
]


@pytest.mark.parametrize(("fields", "message"), REPLIES)
def test_a_reply_is_built_and_read_back(fields, message):
    """The table has the bytes; parsing and building again gives them back."""
    assert build_reply(*fields) == message
    response = parse_reply(message)
    ids = [fields[1]] if isinstance(fields[1], (int, str)) else fields[1]
    assert response.conn_ids == [str(one) for one in ids]
    assert (response.sender, response.body, response.extended) == (fields[0], bytes(fields[2]), None)
    assert response.is_close is (not fields[2])
    assert response.encode() == message
    assert Response.parse(message).encode() == message


#: The exact bytes that Mongrel2 was seen to obey.
EXTENDED = [
    ({b"keep-alive": b""}, KEEP_ALIVE, b"U 3:X 1, 27:3:ctl,17:10:keep-alive,0:,}]"),
    ({b"credits": 1000}, credits_body(1000), b"U 3:X 1, 27:3:ctl,17:7:credits,4:1000#}]"),
    ({b"cancel": b""}, CANCEL, b"U 3:X 1, 22:3:ctl,12:6:cancel,0:,}]"),
]


@pytest.mark.parametrize(("value", "body", "message"), EXTENDED)
def test_an_extended_reply_has_the_bytes_that_mongrel2_obeys(value, body, message):
    """LEN counts the X; the prepared bodies are the same bytes."""
    assert build_extended_reply("U", 1, "ctl", value) == message
    assert message.endswith(b", " + body)
    response = parse_reply(message)
    assert response.extended == (b"ctl", value)
    assert response.conn_ids == ["1"]
    assert not response.is_close
    assert response.encode() == message


def test_an_extended_reply_names_another_module():
    """Keys other than ctl take any value that a tnetstring holds."""
    message = build_extended_reply("U", [1, 2], "sendfile", b"/tmp/x")
    assert message == b"U 5:X 1 2, 20:8:sendfile,6:/tmp/x,]"
    assert parse_reply(message).extended == (b"sendfile", b"/tmp/x")


def test_an_extended_reply_that_would_kill_the_connection_is_refused():
    """ctl without a dict does that; a value that is no tnetstring cannot be written at all."""
    with pytest.raises(LocalProtocolError, match="'ctl' is a dict"):
        build_extended_reply("U", 1, "ctl", b"cancel")
    with pytest.raises(LocalProtocolError, match="cannot be written"):
        build_extended_reply("U", 1, "x", object())
    with pytest.raises(LocalProtocolError, match="-1"):
        credits_body(-1)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (("", 1, b"x"), "sender ''"),
        (("a_b", 1, b"x"), "sender 'a_b'"),
        (("a.b", 1, b"x"), "send_ident"),
        (("a b", 1, b"x"), "sender 'a b'"),
        (("\xe9", 1, b"x"), "sender"),
        (("U\n", 1, b"x"), "sender"),
        ((None, 1, b"x"), "sender None"),
        (("U", [], b"x"), "not 0"),
        (("U", range(129), b"x"), "1 to 128 ids, not 129"),
        (("U", "", b"x"), "conn_id ''"),
        (("U", -1, b"x"), "conn_id '-1'"),
        (("U", "1 2", b"x"), "conn_id '1 2'"),
        (("U", "x", b"x"), "conn_id 'x'"),
        (("U", "\u0663", b"x"), "not a decimal number"),
        (("U", 1, "x"), "a body is bytes, not str"),
        (("U", 1, None), "a body is bytes, not NoneType"),
    ],
)
def test_a_reply_that_mongrel2_would_reject_is_not_built(fields, why):
    """Each would stall the server's replies for half a second (probed), so the caller is told instead."""
    with pytest.raises(LocalProtocolError) as raised:
        build_reply(*fields)
    assert why in str(raised.value)
    assert isinstance(raised.value, ValueError)


def test_a_sender_is_letters_digits_and_hyphens():
    """Text or bytes; the text comes back."""
    assert check_sender("54c6755b-9628-40a4-9a2d-cc82a816345e") == "54c6755b-9628-40a4-9a2d-cc82a816345e"
    assert check_sender(b"Az-09") == "Az-09"
    with pytest.raises(LocalProtocolError):
        check_sender(b"\xff")


def test_128_ids_fit_and_one_more_does_not():
    """The server drops a message with 129 ids for all of them (probed)."""
    assert len(parse_reply(build_reply("U", range(MAX_CONN_IDS), b"x")).conn_ids) == MAX_CONN_IDS
    ids = b" ".join(b"%d" % number for number in range(129))
    with pytest.raises(RemoteProtocolError, match="129 ids, limit 128"):
        parse_reply(b"U %d:%s, x" % (len(ids), ids))


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 256, 257])
def test_ids_are_batched_by_128(count):
    """None is lost, none doubled, and no batch is empty."""
    batches = list(batch_conn_ids(iter(range(count))))
    assert [one for batch in batches for one in batch] == [str(number) for number in range(count)]
    assert [len(batch) for batch in batches] == [128] * (count // 128) + ([count % 128] if count % 128 else [])
    assert list(batch_conn_ids(["7", 8])) == [["7", "8"]]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "no 'sender LEN:'"),
        (b"garbage", "no 'sender LEN:'"),
        (b"U  1:1, x", "no 'sender LEN:'"),
        (b"U_ 1:1, x", "no 'sender LEN:'"),
        (b"U :1, x", "no 'sender LEN:'"),
        (b"U 1234567890:1, x", "no 'sender LEN:'"),
        (b"U 0:, x", "no 0 bytes of ids"),
        (b"U 2:1, x", "no 2 bytes of ids"),
        (b"U 1:12, x", "no 1 bytes of ids"),
        (b"U 1:1,x", "no 1 bytes of ids"),
        (b"U 1:1,", "no 1 bytes of ids"),
        (b"U 1:1 x", "no 1 bytes of ids"),
        (b"U 1:x, x", "no 1 bytes of ids"),
        (b"U 2: 1, x", "no 2 bytes of ids"),
        (b"U 4:1  2, x", "no 4 bytes of ids"),
        (b"U 3:1\n2, x", "no 3 bytes of ids"),
        (b"U 2:-2, x", "no 2 bytes of ids"),
        (b"U 4:1 -1, x", "no 4 bytes of ids"),
        (b"U 1:X 1, 0:]", "no 1 bytes of ids"),
        (b"U 2:X , 0:]", "no 2 bytes of ids"),
        (b"U 3:Y 1, 0:]", "no 3 bytes of ids"),
        (b"U 3:X 1, text", "not a tnetstring"),
        (b"U 3:X 1, ", "not a tnetstring"),
        (b"U 3:X 1, 0:]", "not a list of a key and a value"),
        (b"U 3:X 1, 3:ctl,", "not a list of a key and a value"),
        (b"U 3:X 1, 8:1:1#1:1#]", "not a list of a key and a value"),
    ],
)
def test_a_reply_that_mongrel2_would_reject_is_refused_when_read(message, why):
    """A Server is as strict as what it stands in for."""
    with pytest.raises(RemoteProtocolError) as raised:
        parse_reply(message)
    assert why in str(raised.value)


@pytest.mark.parametrize(("_fields", "message"), REPLIES)
def test_a_reply_cut_in_its_head_is_refused(_fields, message):
    """Only the body may be of any length."""
    for cut in range(message.index(b", ") + 2):
        with pytest.raises(RemoteProtocolError):
            parse_reply(message[:cut])


@pytest.mark.parametrize(("_value", "_body", "message"), EXTENDED)
def test_an_extended_reply_cut_anywhere_is_refused(_value, _body, message):
    """Its body is counted too."""
    for cut in range(len(message)):
        with pytest.raises(RemoteProtocolError):
            parse_reply(message[:cut])


def test_a_space_after_the_last_id_is_tolerated():
    """As Mongrel2 does (probed)."""
    assert parse_reply(b"U 2:1 , x").conn_ids == ["1"]
    assert parse_reply(b"U 4:X 1 , 27:3:ctl,17:10:keep-alive,0:,}]").conn_ids == ["1"]


def test_a_control_reply_goes_to_no_browser():
    """The answer to a ping of the control socket has the id that the asking message had."""
    message = build_control_reply("U", b"some-guid")
    assert message == b"U 2:-1, some-guid"
    response = parse_reply(message)
    assert (response.conn_ids, response.body) == ([CONTROL_ID], b"some-guid")
    assert response.encode() == message
    with pytest.raises(LocalProtocolError, match="sender"):
        build_control_reply("a b", b"")


def test_a_response_tells_what_it_is():
    """Its repr has the ids, and the size or the extension."""
    assert repr(parse_reply(b"U 3:1 2, xyz")) == "<Response sender=U conn_ids=['1', '2'] body=3 bytes>"
    assert "extended=(b'ctl'" in repr(parse_reply(EXTENDED[0][2]))


# -- both directions, any bytes --------------------------------------------------------------------------------------

SENDERS = st.from_regex(r"[A-Za-z0-9-]+", fullmatch=True)
CONN_IDS = st.integers(0, 2**32 - 2)
PATHS = st.text(st.characters(max_codepoint=255, exclude_characters=" "), min_size=1)
LATIN_1 = st.text(st.characters(max_codepoint=255))
HEADER_MAPS = st.dictionaries(LATIN_1, LATIN_1 | st.lists(LATIN_1))


@given(SENDERS, CONN_IDS, PATHS, LATIN_1, HEADER_MAPS, st.binary(), st.sampled_from(PROTOCOLS))
def test_every_request_makes_the_round_trip(sender, conn_id, path, method, headers, body, protocol):
    """Whatever fits a field comes back from it."""
    headers = {name: value for name, value in headers.items() if name not in ("QUERY", "QUERY_STR")}
    headers["METHOD"] = method
    message = build_request(sender, conn_id, path, headers, body, protocol=protocol)
    request = parse_request(message)
    assert (request.sender, request.conn_id, request.path) == (sender, str(conn_id), path)
    assert (request.method, request.body) == (method, body)
    assert {name: request.header(name) for name in headers} == headers
    assert parse_request(request.encode(protocol)).body == body
    assert isinstance(request.headers, Headers)


@given(SENDERS, st.lists(CONN_IDS, min_size=1, max_size=128), st.binary())
def test_every_reply_makes_the_round_trip(sender, conn_ids, body):
    """Whatever can be built can be read."""
    message = build_reply(sender, conn_ids, body)
    response = parse_reply(message)
    assert (response.sender, response.conn_ids, response.body) == (sender, [str(one) for one in conn_ids], body)
    assert response.encode() == message


@given(st.binary() | st.builds(lambda head, tail: b"U 1 / " + head + tail, st.binary(), st.binary()))
def test_no_bytes_raise_anything_but_a_protocol_error(message):
    """Noise ends its message, never the reader."""
    for parse in (parse_request, parse_reply):
        with contextlib.suppress(RemoteProtocolError):
            parse(message)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_piece_of_an_upload_has_no_method(protocol):
    """With upload.stream only the first message has one; the others say where they stand."""
    headers = {"UPLOAD_STREAM": "1000"}
    message = build_request("U", 1, "/", {**headers, "METHOD": "x"}, b"data", protocol=protocol)
    for name in (b"6:METHOD,1:x,", b',"METHOD":"x"'):
        if name in message:
            at = message.index(b" / ") + 3
            size = message[at : message.index(b":", at)]
            message = message.replace(name, b"").replace(size + b":", b"%d:" % (int(size) - len(name)), 1)
    request = parse_request(message)
    assert (request.method, request.header("UPLOAD_STREAM"), request.body) == ("UPLOAD_STREAM", "1000", b"data")


def test_json_is_decoded_once_and_when_asked():
    """``data`` is for METHOD JSON; ``json()`` decodes any body."""
    request = Request("U", "1", "@chat", {"METHOD": "JSON"}, b'{"a": 1}')
    assert request.data is request.data
    assert request.data == {"a": 1}
    post = Request("U", "1", "/", {"METHOD": "POST"}, b"[1]")
    assert post.data == {}
    assert post.json() == [1]
    with pytest.raises(RemoteProtocolError, match="body of POST '/' is not JSON"):
        Request("U", "1", "/", {"METHOD": "POST"}, b"[").json()


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        ("HTTP/1.1", None, (False, False)),
        ("HTTP/1.1", "keep-alive", (False, False)),
        ("HTTP/1.1", "close", (True, False)),
        ("HTTP/1.1", ["keep-alive", "Close"], (True, False)),
        ("HTTP/1.0", None, (True, False)),
        ("HTTP/1.0", "Keep-Alive", (False, True)),
        ("HTTP/1.0", ["x", "keep-alive"], (False, True)),
        ("HTTP/1.0", "keep-alive, close", (True, False)),
        (None, "close", (False, False)),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_client_says_how_long_the_connection_lasts(protocol, version, connection, expected):
    """Whether to close, and whether to say keep-alive, which only HTTP/1.0 waits for."""
    headers = {"METHOD": "GET", "VERSION": version, "connection": connection}
    headers = {name: value for name, value in headers.items() if value is not None}
    request = parse_request(build_request("U", 1, "/", headers, protocol=protocol))
    assert request.persistence() == expected
    assert request.should_close() is expected[0]


@pytest.fixture
def nothing_known(monkeypatch):
    """The parser has seen nothing so far."""
    forget(monkeypatch)


def forget(monkeypatch):
    monkeypatch.setattr(wire, "known_starts", Memo(1 << 19))


def of_a_websocket(number=0, **headers):
    """The headers that each message of a WebSocket repeats."""
    return {"METHOD": "WEBSOCKET", "FLAGS": "0x81", "x-number": str(number), **headers}


@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_came_before_is_parsed_as_it_was_the_first_time(protocol):
    """Sender, connection, path and body are each message's own."""
    for sender, conn_id, path, body in [
        ("a", 1, "/p", b"x"),
        ("b", 22, "/p", b"y"),
        ("c", 3, "/other", b"0:,"),
        ("d", 4, "/p", b""),
        ("e", 5, "/p", b"y0:"),
        ("f", 6, "/p", b"z" * 5000),
    ]:
        for more in (b"", b"more", b"and more", b"0:,"):
            message = build_request(sender, conn_id, path, of_a_websocket(), body + more, protocol=protocol)
            request = parse_request(message)
            assert (request.sender, request.conn_id, request.path) == (sender, str(conn_id), path)
            assert request.body == body + more
            assert request.method == request.headers["METHOD"] == "WEBSOCKET"
    assert len(wire.known_starts.known) == 6


@pytest.mark.parametrize(
    ("headers", "persistence"),
    [
        ({"VERSION": "HTTP/1.1"}, (False, False)),
        ({"VERSION": "HTTP/1.1", "connection": "close"}, (True, False)),
        ({"VERSION": "HTTP/1.0"}, (True, False)),
        ({"VERSION": "HTTP/1.0", "connection": "keep-alive"}, (False, True)),
        ({"VERSION": "HTTP/1.1", "METHOD": "WEBSOCKET_HANDSHAKE"}, (True, False)),
    ],
)
def test_what_came_before_ends_its_connection_as_it_did(headers, persistence):
    """Each request has what few requests have, a close code say, for itself."""
    message = build_request("s", 1, "/", {"METHOD": "GET", **headers})
    for _ in range(4):
        request = parse_request(message)
        assert (request.persistence(), request.should_close()) == (persistence, persistence[0])
        assert (request.opcode, request.close_code, request.close_reason) == (None, None, "")
        request.opcode, request.close_code, request.close_reason = 8, 1000, "bye"


@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("start", [b" 1", b"s x", b"s ", b"s 123456789012345678901", b"1"])
def test_known_headers_do_not_hide_a_bad_start(start):
    """The fields before the path are looked at each time."""
    tail = build_request("s", 1, "/p", of_a_websocket(), b"x").split(b" ", 2)[2]
    for _ in range(3):
        parse_request(b"s 1 " + tail)
    assert wire.known_starts.known
    with pytest.raises(RemoteProtocolError):
        parse_request(start + b" " + tail)
    assert parse_request(b"s -1 " + tail).conn_id == "-1"


@pytest.mark.usefixtures("nothing_known")
def test_only_what_websockets_repeat_is_kept():
    """What came twice, up to a bound; requests are as good as always different."""
    for number in range(1500):
        for _ in range(1 + (number < 1200)):
            parse_request(build_request("s", 1, f"/{number}", of_a_websocket(number), b"x"))
            parse_request(build_request("s", 1, f"/{number}", {"METHOD": "POST", "x": "y"}, b"x" * (number % 2 * 5000)))
            parse_request(build_request("s", 1, f"/{number}", {"METHOD": "GET", "x": "y"}))
    assert 0 < len(wire.known_starts.known) < 1200
    assert all(b"WEBSOCKET" in block for block in wire.known_starts.known)


@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("path", ["/p", "/room:5", "/1:2:3", "/:", "/" + "long" * 200, "/:" + "long" * 200])
def test_what_a_websocket_repeats_is_found_again_whatever_its_path(path, protocol):
    """Found, the headers are the very ones of before; a colon in the path does not count as the headers' own."""
    message = build_request("s", 1, path, of_a_websocket(), b"x", protocol=protocol)
    first, second, third, fourth = (parse_request(message) for _ in range(4))
    assert first.raw is not second.raw
    assert second.raw is third.raw is fourth.raw
    assert (fourth.sender, fourth.path, fourth.body) == ("s", path, b"x")


@pytest.mark.usefixtures("nothing_known")
def test_large_headers_are_not_kept():
    """They would take the memory of many small ones."""
    for body in (b"", b"x"):
        for _ in range(3):
            parse_request(build_request("s", 1, "/", of_a_websocket(cookie="x" * 3000), body))
    assert not wire.known_starts.known


def message_of(items, body=b""):
    """A message with its headers in this order."""
    payload = b"".join(tnetstring.dumps(one) for item in items for one in item)
    return b"s 1 /p %d:%b}%d:%b," % (len(payload), payload, len(body), body)


def parsed(message):
    """All that is read of a message, or the error."""
    try:
        return wire.read_message(message)
    except RemoteProtocolError as error:
        return str(error)


# Three ways to write a number that Mongrel2 does not use.
ODD_LENGTHS = [b"s 1 / 021:6:METHOD,3:GET,4:host,0:,}0:,", b'u 1 / 016:{"METHOD":"GET"},0:,', b"s 1 / 0:}00:,"]


def both_ways(message):
    """What the short way makes of a message, or leaves to the other one, and what that makes of it alone."""
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        short = parsed(message)
        patch.setattr(wire, "MAX_SMALL", -1)
        return short, parsed(message)


@pytest.mark.parametrize("decodes_json", [wire.decode_json, None])
def test_small_messages_are_read_as_large_ones_are(decodes_json, monkeypatch):
    """The short way gives what the other one gives, also of what somebody cut, changed or added to."""
    monkeypatch.setattr(wire, "decode_json", decodes_json)
    messages = [captured(name) for name in VALID] + [captured(name, "invalid") for name in INVALID] + ODD_LENGTHS
    for message in messages:
        size = len(message)
        changed = [
            message[:at] + new + message[at + 1 :] for at in range(0, size, 3) for new in (b"", b"0", b"]", b"\xff")
        ]
        for one in (message, *changed, *(message[:at] for at in range(0, size, 7)), message + b"0:,", message + b","):
            short, by_lengths = both_ways(one)
            assert short == by_lengths


@pytest.mark.parametrize("items", [b"1:x,2:1:,]1:y,", b"6:1:a,,]1:b,"])
def test_names_that_are_no_text_are_an_error_of_the_message(items):
    """Not of the parser's."""
    with pytest.raises(RemoteProtocolError):
        parse_request(b"s 1 /p %d:%b}0:," % (len(items), items))


BLOCKS = st.lists(
    st.tuples(
        st.sampled_from([b"METHOD", b"METHOD", b"QUERY", b"URI", b"PATH", b"PATH", b"a", b"host", b"x-y"]),
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(
                [b"WEBSOCKET", b"/p", b",4:PATH,2:/p,", b"3:a,b", b"x,4:PATH,2:/p,1:a,1:b,", b",4:PATH,2:/p,1:a,9:"]
            ),
            st.sampled_from([b",4:PATH,", [b"1", b"2"], []]),
        ),
    ),
    max_size=8,
)


@given(st.lists(st.tuples(BLOCKS, st.sampled_from([b"", b"x"])), min_size=1, max_size=4))
def test_messages_are_parsed_alike_whatever_came_before(blocks):
    """Headers of any content, in any order, some of them twice, read in either way."""
    messages = [message_of(items, body) for items, body in blocks]
    with pytest.MonkeyPatch.context() as patch:
        alone = []
        for message in messages:
            short, by_lengths = both_ways(message)
            assert short == by_lengths
            alone.append(short)
        forget(patch)
        for _ in range(4):
            assert [parsed(message) for message in messages] == alone


def test_a_piece_of_an_upload_has_no_method_of_its_own():
    """With ``upload.stream`` only the first message of a body has the headers; the others say where they begin."""
    for head in (b"21:13:UPLOAD_STREAM,1:5,}", b'21:{"UPLOAD_STREAM":"5"},'):
        assert parse_request(b"s 1 /up " + head + b"3:abc,").method == "UPLOAD_STREAM"


def test_the_connection_header_is_read_right_however_many_there_were():
    """What was read before is kept, of short values and with a bound; the answer is the same."""
    for _ in range(2):
        for number in range(1000):
            for value, closes in ((b"close, x%d" % number, True), (b"x%d" % number, False), (b"close, " * 20, True)):
                request = Request("s", "1", "/", {b"VERSION": b"HTTP/1.1", b"connection": value}, b"", "GET")
                assert request.should_close() is closes
    several = Request("s", "1", "/", {b"VERSION": b"HTTP/1.0", b"connection": [b"keep-alive", b"x"]}, b"", "GET")
    assert several.persistence() == (False, True)


@pytest.mark.parametrize(
    "message",
    [
        b"U 1:7, body",
        b"U 1:7, ",
        b"a-B-9 10:4294967296, x",
        b"U 2:7, body",
        b"U 3:7 8, both",
        b"U 2:7 , blank",
        b"U 3:X 7, 27:3:ctl,17:10:keep-alive,0:,}]",
        b"U 1:7,no blank",
        b"U_ 1:7, body",
        b"U 1:-, body",
        b"U 0:, body",
        b"",
    ],
)
def test_a_reply_to_one_browser_is_read_the_short_way_as_by_the_long_one(message):
    """Where the short way leads on at all."""
    plain = parse_plain_reply(message)
    try:
        reply = parse_reply(message)
    except RemoteProtocolError:
        assert plain is None
    else:
        if len(reply.conn_ids) == 1 and reply.extended is None and not message.startswith(b"U 2:7 ,"):
            assert plain == (int(reply.conn_ids[0]), reply.body)
        else:
            assert plain is None
