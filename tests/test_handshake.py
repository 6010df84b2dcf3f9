"""The opening handshake: both roles, every refusal, and the websockets package as the peer of each."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory
from websockets.frames import Frame as PeerFrame
from websockets.http11 import Request as PeerRequest
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.protocol.http1_parser import ResponseParser
from greentx.protocol.websocket.deflate import DeflateConfig
from greentx.protocol.websocket.frames import FrameParser, Opcode, build_frame, parse_close, validate_message
from greentx.protocol.websocket.handshake import (
    Accepted,
    Handshake,
    Refused,
    accept_key,
    check_answer,
    new_key,
    request_headers,
)
from greentx.protocol.websocket.origins import parse_origins

# The example of RFC 6455, section 1.3.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def request(**changes: object) -> dict[str, object]:
    """Headers as Mongrel2 gives them; underscores in names become hyphens, None takes a header away."""
    headers: dict[str, object] = {
        "PATH": "/chat",
        "METHOD": "WEBSOCKET_HANDSHAKE",
        "VERSION": "HTTP/1.1",
        "host": "example.org",
        "upgrade": "websocket",
        "connection": "keep-alive, Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    headers.update({name.replace("_", "-"): value for name, value in changes.items()})
    return {name: value for name, value in headers.items() if value is not None}


def accepted(answer: Accepted | Refused) -> Accepted:
    assert isinstance(answer, Accepted), answer
    return answer


def refused(answer: Accepted | Refused) -> ResponseParser:
    """The refusal as a client reads it."""
    assert isinstance(answer, Refused), answer
    parser = ResponseParser()
    assert parser.feed(answer.build())
    assert "close" in str(parser.headers["connection"])
    assert parser.headers["content-length"] == str(len(parser.body))
    assert parser.trailing == b""
    return parser


# --- the server's role --------------------------------------------------------------------------------------------


def test_a_handshake_is_answered_as_the_rfc_says() -> None:
    """The smallest request gives the smallest answer, to the byte."""
    answer = accepted(Handshake().check(request(), ACCEPT))
    assert answer == Accepted(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        None,
        None,
    )


def test_a_request_without_the_servers_own_headers_is_taken() -> None:
    """A stand-in for Mongrel2 need not say VERSION."""
    accepted(Handshake().check(request(VERSION=None), ACCEPT))


@pytest.mark.parametrize(
    ("changes", "body", "status", "words"),
    [
        ({"VERSION": "HTTP/1.0"}, ACCEPT, 400, b"HTTP/1.1"),
        ({"VERSION": "HTTP/0.9"}, ACCEPT, 400, b"HTTP/1.1"),
        *[
            ({"sec_websocket_version": version}, ACCEPT, 426, b"version 13")
            for version in ("8", "0", "14", "", "013", "13, 8", ["13", "13"], ["8", "13"], None)
        ],
        *[
            ({"sec_websocket_key": key}, ACCEPT, 400, b"Sec-WebSocket-Key")
            for key in (
                None,
                "",
                "x",
                "dGhlIHNhbXBsZSBub25jZQ",
                "dGhlIHNhbXBsZSBub25jZQ= =",
                "dGhlIHNhbXBsZSBub25jZWQ=",
                "dGhlIHNhbXBsZSBub25j",
                "dGhlIHNhbXBsZSBub25jé===",
                [KEY, KEY],
            )
        ],
        ({}, b"", 400, b"accept value"),
        ({}, ACCEPT[:-1], 400, b"accept value"),
        ({}, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOO=", 400, b"accept value"),
        ({"sec_websocket_protocol": "a b"}, ACCEPT, 400, b"'a b'"),
        ({"sec_websocket_protocol": ["a", "b;c"]}, ACCEPT, 400, b"'b;c'"),
        ({"sec_websocket_extensions": "permessage-deflate;"}, ACCEPT, 400, b"Sec-WebSocket-Extensions"),
        ({"sec_websocket_extensions": ["a", "\udc80"]}, ACCEPT, 400, b"Sec-WebSocket-Extensions"),
    ],
)
def test_what_mongrel2_lets_through_unchecked_is_refused(
    changes: dict[str, Any], body: bytes, status: int, words: bytes
) -> None:
    """Each refusal is a whole answer which says why; compression or not does not matter."""
    for handshake in (Handshake(), Handshake(deflate=None)):
        response = refused(handshake.check(request(**changes), body))
        assert response.status == status
        assert words in response.body


def test_a_refused_version_is_told_the_right_one() -> None:
    """426 names the version, and the protocol to upgrade to, as RFC 6455 4.4 and RFC 9110 15.5.22 demand."""
    response = refused(Handshake().check(request(sec_websocket_version="8"), ACCEPT))
    assert response.headers["sec-websocket-version"] == "13"
    assert response.headers["upgrade"] == "websocket"
    assert response.headers["connection"] == "close, upgrade"


@pytest.mark.parametrize(
    ("origin", "host", "more", "let_in"),
    [
        ("http://a.example", "a.example", {}, True),
        ("http://a.example:80", "a.example", {}, True),
        ("http://A.example", "a.EXAMPLE:80", {}, True),
        ("http://a.example:8000", "a.example:8000", {}, True),
        ("http://a.example", "a.example:8000", {}, False),
        ("http://a.example:8000", "a.example", {}, False),
        ("http://a.example.evil.example", "a.example", {}, False),
        ("http://evil.example", "a.example", {}, False),
        ("https://a.example", "a.example", {}, False),
        ("https://a.example", "a.example", {"URL_SCHEME": "https"}, True),
        ("http://a.example", "a.example", {"URL_SCHEME": "https"}, False),
        ("https://a.example", "a.example", {"x-forwarded-proto": "https"}, True),
        ("https://a.example:443", "a.example:443", {"x-forwarded-proto": "https"}, True),
        ("https://a.example", "a.example", {"x-forwarded-proto": ["https", "http"]}, False),
        ("http://[::1]:8000", "[::1]:8000", {}, True),
        ("null", "null", {}, False),
        (None, "a.example", {}, False),
        ("http://", "", {}, False),
        ("http://a.example", ["a.example", "b.example"], {}, False),
        ("http://a.example", None, {}, False),
        ("http://a.example/b", "a.example/b", {}, False),
        ("http://other.example", "a.example", {}, True),
    ],
)
def test_a_page_of_the_same_host_is_told_by_the_host_that_is_asked(
    origin: str | None, host: object, more: dict[str, object], let_in: bool
) -> None:
    """Scheme, host and port have to be the same; alone, and in a list with others."""
    asked = {**request(origin=origin, host=host), **more}
    others: Any = ["https://b.example", "same", "http://other.example"]
    for origins in (others,) if origin == "http://other.example" else ("same", ["same"], others):
        answer = Handshake(origins=origins).check(asked, ACCEPT)
        if let_in:
            accepted(answer)
        else:
            assert refused(answer).status == 403
    answer = Handshake(origins=[*others, None, "null"]).check(asked, ACCEPT)
    assert isinstance(answer, Accepted) is (let_in or origin in (None, "null"))


def test_a_list_of_origins_is_read_out_of_one_option() -> None:
    """Blanks or commas stand between them, ``none`` for clients without the header."""
    assert parse_origins("same") == ["same"]
    assert parse_origins("same, none https://a.example:8443,null") == ["same", None, "https://a.example:8443", "null"]
    for text in ("", " ,", "a.example", "same,https://a.example/path"):
        with pytest.raises(LocalProtocolError, match="origin"):
            parse_origins(text)


@pytest.mark.parametrize(
    ("connection", "let_in"),
    [
        ("Upgrade", True),
        ("keep-alive,\tUPGRADE", True),
        (["keep-alive", "upgrade"], True),
        ("no-upgrade", False),
        ("upgraded", False),
        ("keep-alive", False),
        ("", False),
        (None, False),
    ],
)
def test_a_handshake_asks_for_an_upgrade(connection: object, let_in: bool) -> None:
    """By a word of its own: Mongrel2 finds it in other words, too."""
    answer = Handshake().check(request(connection=connection), ACCEPT)
    if let_in:
        accepted(answer)
    else:
        assert refused(answer).status == 400


@pytest.mark.parametrize(
    ("origins", "origin", "let_in"),
    [
        (None, None, True),
        (None, "https://evil.example", True),
        (None, ["https://a.example", "https://b.example"], True),
        (["https://a.example"], "https://a.example", True),
        (["https://a.example"], " https://a.example\t", True),
        (["https://a.example"], "https://a.example:8443", False),
        (["https://a.example"], "http://a.example", False),
        (["https://a.example"], "https://a.example.evil.example", False),
        (["https://a.example"], None, False),
        (["https://a.example", None], None, True),
        (["https://a.example", None], "", False),
        (["https://a.example"], "null", False),
        ({"null"}, "null", True),
        (["https://a.example"], ["https://a.example", "https://evil.example"], False),
        ([], "https://a.example", False),
        (["HTTPS://A.Example:443"], "https://a.example", True),
        (["https://a.example"], "https://a.example:443", True),
        (["https://a.example:0443"], "https://A.example", True),
        (["http://a.example"], "http://a.example:443", False),
        (["https://a.example"], "https://a.example/", False),
        (["https://a.example"], "https://user@a.example", False),
        (["https://a.example"], "https://a.example:99999999999", False),
        (["https://[::1]:8443"], "https://[::1]:8443", True),
        (["moz-extension://d1"], "moz-extension://d1", True),
        (["app://a"], "app://a:80", False),
        (["file://"], "file://", True),
        ("same", "https://a.example", False),
        (lambda origin: origin == "https://a.example", "https://a.example", True),
        (lambda origin: origin == "https://a.example", "https://b.example", False),
        (lambda origin: origin is None, None, True),
        (lambda origin: True, ["https://a.example", "https://b.example"], False),
    ],
)
def test_only_origins_on_the_list_are_let_in(origins: Any, origin: object, let_in: bool) -> None:
    """By scheme, host and port, None for clients without the header; two Origin headers are never let in."""
    answer = Handshake(origins=origins).check(request(origin=origin), ACCEPT)
    if let_in:
        accepted(answer)
    else:
        assert refused(answer).status == 403


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        ((), "a, b", None),
        (["a", "b"], None, None),
        (["a", "b"], "b, a", "a"),
        (["a", "b"], ["c", "b"], "b"),
        (["a", "b"], "A,,c ,", None),
        (lambda offered, headers: offered[-1], "a,\tb", "b"),
        (lambda offered, headers: None, "a, b", None),
        (lambda offered, headers: headers["PATH"][1:], "news, chat", "chat"),
    ],
)
def test_the_servers_order_chooses_the_subprotocol(ours: Any, theirs: object, chosen: str | None) -> None:
    """The answer names the one chosen, or has no such header."""
    answer = accepted(Handshake(subprotocols=ours).check(request(sec_websocket_protocol=theirs), ACCEPT))
    assert answer.subprotocol == chosen
    line = b"\r\nSec-WebSocket-Protocol: %b\r\n" % (chosen or "").encode()
    assert (line in answer.head) is (chosen is not None)
    assert answer.head.count(b"Sec-WebSocket-Protocol") == (chosen is not None)


def test_a_subprotocol_that_was_not_offered_is_the_callables_fault() -> None:
    """A browser would drop the connection, so it is told to the programmer."""
    handshake = Handshake(subprotocols=lambda offered, headers: "c")
    with pytest.raises(LocalProtocolError, match=r"subprotocol 'c' was chosen, the client offered \['a', 'b'\]"):
        handshake.check(request(sec_websocket_protocol="a, b"), ACCEPT)


def test_compression_is_negotiated_unless_it_is_turned_off() -> None:
    """By default yes; with None never; and an offer that cannot be kept leaves the connection uncompressed."""
    offered = request(sec_websocket_extensions="permessage-deflate; client_max_window_bits")
    answer = accepted(Handshake().check(offered, ACCEPT))
    assert answer.deflate is not None
    assert (
        b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12; client_max_window_bits=12\r\n"
        in answer.head
    )
    for handshake, headers in (
        (Handshake(deflate=None), offered),
        (Handshake(), request(sec_websocket_extensions="permessage-deflate; server_max_window_bits=8")),
        (Handshake(), request()),
    ):
        answer = accepted(handshake.check(headers, ACCEPT))
        assert answer.deflate is None
        assert b"Extensions" not in answer.head


def test_each_connection_has_its_own_compression() -> None:
    """One Handshake serves all connections, and no state is shared by them."""
    handshake = Handshake()
    headers = request(sec_websocket_extensions="permessage-deflate")
    one, other = (accepted(handshake.check(headers, ACCEPT)).deflate for _ in range(2))
    assert one is not other


@pytest.mark.parametrize(
    "headers",
    [
        {"Set-Cookie": ["a=1", "b=2"], "X-Number": 3},
        [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), (b"X-Number", b"3")],
        iter([("Set-Cookie", ["a=1", "b=2"]), ("X-Number", "3")]),
        lambda headers: {"Set-Cookie": ["a=1", "b=2"], "X-Number": len(headers["upgrade"]) - 6},
    ],
)
def test_headers_of_the_application_are_added(headers: Any) -> None:
    """Mapping, pairs or callable; repeated names become a line each, for every connection anew."""
    handshake = Handshake(headers=headers)
    for _ in range(2):
        answer = accepted(handshake.check(request(), ACCEPT))
        assert answer.head.endswith(b"xOo=\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Number: 3\r\n\r\n")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X": "a\r\nSet-Cookie: b"}, "'X' holds a control character"),
        ({"X": "a\nb"}, "'X' holds a control character"),
        ({"X\r\nY": "a"}, "not a token"),
        ({"connection": "close"}, "'connection' is written by the handshake"),
        ({"Sec-WebSocket-Accept": "x"}, "is written by the handshake"),
        ([(b"Content-Length", b"0")], "is written by the handshake"),
    ],
)
def test_headers_that_would_break_the_answer_are_refused(headers: Any, words: str) -> None:
    """At once where they are given, at the handshake where a callable gives them."""
    with pytest.raises(LocalProtocolError, match=words):
        Handshake(headers=headers)
    with pytest.raises(LocalProtocolError, match=words):
        Handshake(headers=lambda _: headers).check(request(), ACCEPT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"origins": "https://a.example"}, "origins is a str"),
        ({"origins": ["https://a.example/"]}, "'https://a.example/' is not what a browser sends"),
        ({"origins": ["a.example"]}, "'a.example' is not what a browser sends"),
        ({"origins": [1]}, "origin 1 is not what a browser sends"),
        ({"subprotocols": "chat"}, "subprotocols is a str"),
        ({"subprotocols": ["a b"]}, "subprotocol 'a b' is not a token"),
        ({"subprotocols": ["a\r\n"]}, "is not a token"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    """Long before the first connection."""
    with pytest.raises(LocalProtocolError, match=words):
        Handshake(**options)


header_values = st.none() | st.text(max_size=30) | st.lists(st.text(max_size=10), max_size=3)


@given(header_values, header_values, header_values, header_values, header_values, st.binary(max_size=30))
def test_any_request_gets_an_answer(
    version: object, key: object, origin: object, protocols: object, extensions: object, body: bytes
) -> None:
    """Nothing that a client can send raises, or gets past the key."""
    for changes in (
        {"sec_websocket_version": version},
        {"sec_websocket_key": key},
        {"origin": origin, "sec_websocket_protocol": protocols, "sec_websocket_extensions": extensions},
    ):
        refusal = Handshake(origins=["https://x.example"]).check(request(**changes), body)
        assert refused(refusal).status in (400, 403, 426)
    answer = Handshake().check(
        request(origin=origin, sec_websocket_protocol=protocols, sec_websocket_extensions=extensions), ACCEPT
    )
    assert isinstance(answer, Accepted) or refused(answer).status == 400


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_refusal_is_a_whole_answer() -> None:
    """To the byte: text gets a type and a length, and the connection closes."""
    assert Refused(403, body="nö").build(date=b"Sun, 06 Nov 1994 08:49:37 GMT") == (
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\nn\xc3\xb6"
    )


@pytest.mark.parametrize(
    ("refusal", "data"),
    [
        (Refused(401), b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        (
            Refused(302, "Elsewhere", {"Location": "/login", "Set-Cookie": ["a=1", "b=2"]}),
            (
                b"HTTP/1.1 302 Elsewhere\r\nLocation: /login\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            ),
        ),
        (
            Refused(503, headers={"content-type": "text/html"}, body="<p>"),
            (
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/html\r\nContent-Length: 3\r\n"
                b"Connection: close\r\n\r\n<p>"
            ),
        ),
        (
            Refused(200, headers=iter([(b"X", b"1")]), body=b"\xff"),
            b"HTTP/1.1 200 OK\r\nX: 1\r\nContent-Length: 1\r\nConnection: close\r\n\r\n\xff",
        ),
        (Refused(204), b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    ],
)
def test_any_http_answer_can_refuse(refusal: Refused, data: bytes) -> None:
    """Built twice it is the same."""
    assert refusal.build() == data
    assert refusal.build() == data


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"status": 101}, "status is 101"),
        ({"status": 199}, "status is 199"),
        ({"status": 600}, "status is 600"),
        ({"status": 403, "headers": {"X": "a\r\nb"}}, "control character"),
        ({"status": 403, "reason": "a\r\nb"}, "control character"),
        ({"status": 403, "headers": {"Content-Length": "5"}}, "Content-Length"),
        ({"status": 403, "body": "\ud800"}, "not text"),
    ],
)
def test_a_refusal_that_cannot_be_sent_cannot_be_made(options: dict[str, Any], words: str) -> None:
    """The error comes where the application makes it."""
    with pytest.raises(LocalProtocolError, match=words):
        Refused(**options)


# --- keys and the client's role -----------------------------------------------------------------------------------


def test_the_accept_value_is_the_rfcs() -> None:
    """The example of RFC 6455, section 1.3."""
    assert accept_key(KEY) == ACCEPT


def test_a_key_that_is_not_ascii_is_no_key() -> None:
    """An error of its own instead of a UnicodeEncodeError."""
    with pytest.raises(LocalProtocolError, match="is not base64"):
        accept_key("é")


def test_keys_are_fresh_and_of_the_right_size() -> None:
    """16 random bytes in base64, which our own server accepts."""
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        accepted(Handshake().check(request(sec_websocket_key=key), accept_key(key)))


def test_a_clients_headers_are_those_of_the_rfc() -> None:
    """The least, and everything."""
    least = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    assert request_headers(KEY) == least
    assert request_headers(KEY, subprotocols=["a", "b"], deflate=DeflateConfig(), origin="https://a.example") == {
        **least,
        "origin": "https://a.example",
        "sec-websocket-protocol": "a, b",
        "sec-websocket-extensions": "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
    }


@pytest.mark.parametrize("subprotocols", ["chat", ["a,b"], [""]])
def test_a_client_cannot_offer_what_is_no_subprotocol(subprotocols: Any) -> None:
    """A str is not a list of letters, and each has to be a token."""
    with pytest.raises(LocalProtocolError, match="subprotocol"):
        request_headers(KEY, subprotocols=subprotocols)


ANSWER = {"upgrade": "WebSocket", "connection": "keep-alive, upgrade", "sec-websocket-accept": ACCEPT.decode()}


def test_a_client_takes_the_least_answer() -> None:
    """Upper and lower case do not matter in Upgrade and Connection."""
    assert check_answer(101, ANSWER, KEY) == (None, None)
    assert check_answer(101, ANSWER, KEY, subprotocols=["a"], deflate=DeflateConfig()) == (None, None)


@pytest.mark.parametrize(
    ("status", "changes", "words"),
    [
        (200, {}, "answered 200, not 101"),
        (403, {}, "answered 403, not 101"),
        (101, {"upgrade": None}, "Upgrade: websocket"),
        (101, {"upgrade": "h2c"}, "Upgrade: websocket"),
        (101, {"upgrade": ["websocket", "h2c"]}, "Upgrade: websocket"),
        (101, {"connection": None}, "Connection: Upgrade"),
        (101, {"connection": ["close", "keep-alive"]}, "Connection: Upgrade"),
        (101, {"sec-websocket-accept": None}, "Sec-WebSocket-Accept"),
        (101, {"sec-websocket-accept": KEY}, "Sec-WebSocket-Accept"),
        (101, {"sec-websocket-accept": [ACCEPT.decode()] * 2}, "Sec-WebSocket-Accept"),
        (101, {"sec-websocket-protocol": "c"}, r"chose the subprotocol \['c'\]"),
        (101, {"sec-websocket-protocol": ["a", "b"]}, "chose the subprotocol"),
        (101, {"sec-websocket-extensions": "permessage-deflate"}, "none was offered"),
        (101, {"sec-websocket-extensions": ";"}, "malformed"),
    ],
)
def test_a_client_refuses_a_wrong_answer(status: int, changes: dict[str, Any], words: str) -> None:
    """RFC 6455, section 4.1, points 1 to 6 of the client's checks."""
    headers = {name: value for name, value in {**ANSWER, **changes}.items() if value is not None}
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        check_answer(status, headers, KEY, subprotocols=["a", "b"])
    assert caught.value.status == (400 if status == 101 else status)


def test_our_client_and_our_server_understand_each_other() -> None:
    """Subprotocol and compression come out the same on both sides."""
    key = new_key()
    wanted = request_headers(key, subprotocols=["b", "a"], deflate=DeflateConfig())
    answer = accepted(Handshake(subprotocols=["a", "b"]).check(wanted, accept_key(key)))
    parser = ResponseParser()
    parser.feed(answer.head)
    subprotocol, deflate = check_answer(
        parser.status or 0, parser.headers, key, subprotocols=["b", "a"], deflate=DeflateConfig()
    )
    assert subprotocol == answer.subprotocol == "a"
    assert deflate is not None
    assert answer.deflate is not None
    payload, compressed = deflate.encode(b"hello " * 100)
    assert compressed
    assert answer.deflate.decode(payload, None) == b"hello " * 100


# --- the websockets package at the other end ----------------------------------------------------------------------


def test_a_client_of_the_websockets_package_is_served() -> None:
    """Handshake, a compressed echo and a close, without a socket: what it sends we read, what we send it reads."""
    client = ClientProtocol(
        parse_uri("ws://example.org/chat"),
        origin="https://a.example",  # type: ignore[arg-type]
        extensions=[ClientPerMessageDeflateFactory(client_max_window_bits=True)],
        subprotocols=["chat", "news"],  # type: ignore[list-item]
    )
    asked = client.connect()
    client.send_request(asked)
    assert client.data_to_send()
    headers = {name.lower(): value for name, value in asked.headers.raw_items()}
    handshake = Handshake(origins=["https://a.example"], subprotocols=["news", "chat"])
    answer = accepted(handshake.check(headers, accept_key(headers["sec-websocket-key"])))
    client.receive_data(answer.head)
    assert client.state is State.OPEN
    assert client.subprotocol == answer.subprotocol == "news"
    client.events_received()

    assert answer.deflate is not None
    message = "hello κόσμε " * 100
    client.send_text(message.encode())
    (frame,) = FrameParser(require_mask=True).feed(b"".join(client.data_to_send()))
    assert frame.rsvd == 4
    data, text = validate_message(frame.opcode, frame.rsvd, frame.payload, max_size=None, deflate=answer.deflate)
    assert text == message
    payload, compressed = answer.deflate.encode(data)
    assert compressed
    client.receive_data(build_frame(payload, Opcode.TEXT, 4) + build_frame(b"\x03\xe8", Opcode.CLOSE))
    echo = client.events_received()[0]
    assert isinstance(echo, PeerFrame)
    assert bytes(echo.data) == data
    (close,) = FrameParser(require_mask=True).feed(b"".join(client.data_to_send()))
    assert close.opcode == Opcode.CLOSE
    assert parse_close(close.payload) == (1000, "")


def test_a_client_of_the_websockets_package_understands_a_refusal() -> None:
    """The answer is a whole one: status, headers and body arrive, and the connection counts as closed."""
    client = ClientProtocol(parse_uri("ws://example.org/chat"))
    asked = client.connect()
    client.send_request(asked)
    headers = {name.lower(): value for name, value in asked.headers.raw_items()}
    refusal = Handshake(origins=["https://a.example"]).check(headers, accept_key(headers["sec-websocket-key"]))
    assert isinstance(refusal, Refused)
    client.receive_data(refusal.build())
    client.receive_eof()
    assert client.state is State.CLOSED
    assert "403" in str(client.handshake_exc)


def test_a_server_of_the_websockets_package_serves_our_client() -> None:
    """It accepts our headers, and we accept its answer."""
    server = ServerProtocol(
        extensions=[ServerPerMessageDeflateFactory(server_max_window_bits=11, client_max_window_bits=11)],
        subprotocols=["news"],  # type: ignore[list-item]
    )
    key = new_key()
    headers = request_headers(key, subprotocols=["chat", "news"], deflate=DeflateConfig())
    lines = [f"{name}: {value}" for name, value in {"host": "example.org", **headers}.items()]
    server.receive_data("\r\n".join(["GET /chat HTTP/1.1", *lines, "", ""]).encode())
    (asked,) = server.events_received()
    assert isinstance(asked, PeerRequest)
    server.send_response(server.accept(asked))
    parser = ResponseParser()
    parser.feed(b"".join(server.data_to_send()))
    subprotocol, deflate = check_answer(
        parser.status or 0, parser.headers, key, subprotocols=["chat", "news"], deflate=DeflateConfig()
    )
    assert subprotocol == "news"
    assert deflate is not None
    assert (deflate.encoding_bits, deflate.decoding_bits) == (11, 11)


def test_any_sixteen_bytes_are_a_key() -> None:
    """All byte values, in the form that browsers write."""
    for first in range(256):
        key = b64encode(bytes([first] * 16)).decode()
        accepted(Handshake().check(request(sec_websocket_key=key), accept_key(key)))
