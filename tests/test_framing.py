"""Where a request ends: what is read in one way only, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from greentx.errors import RemoteProtocolError
from greentx.protocol.framing import FramingError, check_framing
from greentx.protocol.headers import LateHeaders, plain_names
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request

OWN = {"PATH": "/", "METHOD": "POST", "VERSION": "HTTP/1.1", "URI": "/"}


def request(headers: dict[str, Any], body: bytes = b"", protocol: str = "tnetstring", **own: str) -> Request:
    """One request as Mongrel2 would send it."""
    return parse_request(build_request("abc", 1, "/", {**OWN, **own, **headers}, body, protocol=protocol))


def refused(one: Request, apart: bool = False) -> str:
    with pytest.raises(FramingError) as caught:
        check_framing(one, apart=apart)
    assert isinstance(caught.value, RemoteProtocolError) and caught.value.status == 400
    assert len(str(caught.value)) < 200
    return str(caught.value)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize(
    ("headers", "body", "apart", "why"),
    [
        ({"transfer-encoding": "chunked", "content-length": "5"}, b"hello", False, "next to Content-Length"),
        ({"transfer-encoding": "chunked", "content-length": "5"}, b"", True, "next to Content-Length"),
        ({"transfer-encoding": "chunked"}, b"", False, "cannot be read"),
        ({"transfer-encoding": "Chunked"}, b"", True, "cannot be read"),
        ({"transfer-encoding": "chunked "}, b"", True, "cannot be read"),
        ({"transfer-encoding": "gzip, chunked"}, b"", True, "cannot be read"),
        ({"transfer-encoding": ["chunked", "gzip"]}, b"", True, "cannot be read"),
        ({"content-length": "5"}, b"", False, "Content-Length '5' of a body of 0"),
        ({"content-length": "4"}, b"hello", True, "Content-Length '4' of a body of 5"),
        ({"content-length": "x"}, b"", False, "Content-Length 'x'"),
        ({"content-length": ""}, b"", False, "Content-Length ''"),
        ({"content-length": "0x23"}, b"", False, "'0x23'"),
        ({"content-length": "-1"}, b"", False, "'-1'"),
        ({"content-length": "+5"}, b"hello", False, "'+5'"),
        ({"content-length": "\x0b5"}, b"hello", False, "5"),
        ({"content-length": "5, 5"}, b"hello", False, "'5, 5'"),
        ({"content-length": "\xb2"}, b"", False, "Content-Length"),
        ({"content-length": "4294967301"}, b"hello", False, "'4294967301'"),
        ({"content-length": "2147483648"}, b"", True, "'2147483648'"),
        ({"content-length": "1" * 4300}, b"", True, "Content-Length '1111"),
        ({"content-length": "0" * 5000}, b"", False, "Content-Length '0000"),
        ({"content-length": ["5", "6"]}, b"hello", False, "5 and 6"),
        ({"content-length": ["5", "5", "5", "6" * 4000]}, b"hello", False, "5 and 5"),
        ({"content-length": []}, b"hello", False, "''"),
    ],
)
def test_a_body_whose_end_is_in_doubt_is_refused(
    protocol: str, headers: dict[str, Any], body: bytes, apart: bool, why: str
) -> None:
    """Mongrel2 reads what it does not understand as the next request."""
    assert why in refused(request(headers, body, protocol), apart)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize(
    ("headers", "body", "apart"),
    [
        ({}, b"", False),
        ({"content-length": "0"}, b"", False),
        ({"content-length": "5"}, b"hello", False),
        ({"content-length": "005 \t"}, b"hello", False),
        ({"content-length": ["5", "5"]}, b"hello", False),
        ({"content-length": "2147483647"}, b"", True),
        ({"content-length": "9000"}, b"begin", True),
        ({"transfer-encoding": "chunked"}, b"", True),
    ],
)
def test_a_body_with_one_end_is_let_through(protocol: str, headers: dict[str, Any], body: bytes, apart: bool) -> None:
    """RFC 9112, section 6.3; a length said twice alike is one."""
    check_framing(request(headers, body, protocol), apart=apart)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize(
    "name", ["content-length", "connection", "upgrade", "cookie", "x-forwarded-for", "x-forwarded-proto", "x-any"]
)
def test_a_header_whose_last_lines_may_be_missing_is_refused(protocol: str, name: str) -> None:
    """Mongrel2 hands on the first five: a sixth one could be another length, or what a proxy has added."""
    for number in range(4):  # decoded, and then remembered
        for times, is_right in ((4, True), (5, False), (6, False)):
            one = request({"host": "a", name: ["0"] * times}, protocol=protocol, REMOTE_ADDR="10.0.0.1")
            if is_right:
                check_framing(one, apart=False)
            else:
                assert f"{name!r} comes 5 times or more" in refused(one), number
        plain = request({"host": "a", name: "0"}, protocol=protocol, REMOTE_ADDR="10.0.0.1")
        check_framing(plain, apart=False)
        assert plain.plain or not number


def test_a_bracket_in_a_value_is_not_a_list() -> None:
    """Values are looked at only where there is one."""
    for protocol in ("tnetstring", "json"):
        for number in range(4):
            one = request({"host": "[::1]", "x-json": '["a","b"]', "x-other": str(number)}, protocol=protocol)
            check_framing(one, apart=False)
            assert one.plain or not number


def test_a_handshake_has_no_body_of_its_clients() -> None:
    """The 28 bytes that come with it are Mongrel2's, and do not count."""
    accept = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    check_framing(request({"content-length": "0"}, accept, METHOD="WEBSOCKET_HANDSHAKE"), apart=False)
    for length in ("abc", "28", "5"):
        assert length in refused(request({"content-length": length}, accept, METHOD="WEBSOCKET_HANDSHAKE"))


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize("code", [*range(32), 127])
def test_a_control_character_in_a_name_is_refused(protocol: str, code: int) -> None:
    """Mongrel2 lets nearly all of them through, line ends among them: a length in such a name is one to nobody."""
    for name in (f"x{chr(code)}y", f"{chr(code)}", f"foo\r{chr(code)}content-length"):
        for _ in range(3):  # what came before is remembered, but not as if it were right
            one = request({name: "5"}, b"", protocol)
            assert not one.plain
            assert "control character" in refused(one)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_only_names_that_were_looked_at_are_plain(protocol: str) -> None:
    """A request of such names has nothing to be looked at; one with a name that means something never is."""
    plain_names.clear()
    headers = {"host": "a", "x-one": "1"}
    one = request(headers, protocol=protocol)
    assert not one.plain
    check_framing(one, apart=False)
    for _ in range(4):  # decoded, and then remembered
        assert request(headers, protocol=protocol).plain
        twice = request({**headers, "x-one": ["1", "2"]}, protocol=protocol)
        check_framing(twice, apart=False)
        assert not twice.plain
        for name in ("transfer-encoding", "x-mongrel2-upload-start", "x-mongrel2-upload-done"):
            also = request({**headers, name: "0"}, protocol=protocol)
            assert not also.plain
            if name != "transfer-encoding":
                check_framing(also, apart=False)
        asked = request(headers, protocol=protocol, DOWNLOAD_CREDITS="102400")
        check_framing(asked, apart=False)
        assert not asked.plain


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_the_messages_of_a_websocket_are_as_plain_as_its_handshake(protocol: str) -> None:
    """They have names of the server's on top, which need not be looked at; also when what was known is forgotten."""
    plain_names.clear()
    check_framing(request({"host": "a", "x-one": "1"}, METHOD="WEBSOCKET_HANDSHAKE", protocol=protocol), apart=False)
    for path in ("/", "/room:5"):
        for _ in range(4):  # decoded, and then remembered
            headers = {**OWN, "METHOD": "WEBSOCKET", "FLAGS": "0x81", "host": "a", "x-one": "1"}
            one = parse_request(build_request("abc", 1, path, headers, b"x", protocol=protocol))
            assert one.plain and isinstance(one.headers, LateHeaders)
    plain_names.clear()
    assert not request({"host": "a", "x-one": "1"}, FLAGS="0x81", protocol=protocol).plain
    check_framing(request({"host": "a"}, protocol=protocol), apart=False)
    assert request({"host": "a"}, FLAGS="0x81", protocol=protocol).plain


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize("name", ["DOWNLOAD_CREDITS", "UPLOAD_STREAM", "UPLOAD_STREAM_DONE"])
def test_what_the_server_says_to_the_handler_is_never_plain(protocol: str, name: str) -> None:
    """The intake looks for these names among those of requests that are not plain alone."""
    for _ in range(3):
        one = request({"host": "a", name: "1"}, protocol=protocol)
        check_framing(one, apart=False)
        assert not one.plain


def test_names_that_clients_make_up_fill_no_memory() -> None:
    """There is a bound in number and in size."""
    for number in range(1100):
        check_framing(request({f"x-junk-{number}": "1"}), apart=False)
    long = "x-" + "a" * 1000
    check_framing(request({long: "1"}), apart=False)
    assert len(plain_names) <= 1024 and long.encode() not in plain_names


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize(
    ("version", "host", "why"),
    [
        ("HTTP/1.1", ["a", "b"], "2 Host fields"),
        ("HTTP/1.1", ["a", "a"], "2 Host fields"),
        ("HTTP/1.0", ["a", "b"], "2 Host fields"),
        ("HTTP/1.1", [], "0 Host fields"),
        ("HTTP/1.1", None, "without Host"),
        ("HTTP/1.1", "a", ""),
        ("HTTP/1.1", "", ""),
        ("HTTP/1.1", ["a"], ""),
        ("HTTP/1.0", None, ""),
    ],
)
def test_a_request_is_for_one_host(protocol: str, version: str, host: Any, why: str) -> None:
    """RFC 9112, section 3.2. It is looked at each time, also where the same headers came before."""
    headers = {} if host is None else {"host": host}
    for number in range(5):
        one = request({"x-number": str(number), **headers}, protocol=protocol, VERSION=version, REMOTE_ADDR="10.0.0.1")
        same = request(headers, protocol=protocol, VERSION=version, REMOTE_ADDR="10.0.0.1")
        for asked in (one, same):
            if why:
                assert not asked.plain and why in refused(asked)
            else:
                check_framing(asked, apart=False)


def test_clients_of_a_stand_in_need_no_host() -> None:
    """mongrel2-transceiver's Server says HTTP/1.1 and nothing of hosts, nor who its client is."""
    check_framing(request({}), apart=False)


def test_a_coding_of_http_1_0_is_refused() -> None:
    """RFC 9112, section 6.1: who passed it on may have had another idea of where the body ends."""
    assert "cannot be read" in refused(request({"transfer-encoding": "chunked"}, VERSION="HTTP/1.0"), apart=True)


@pytest.mark.parametrize("order", ["Mongrel2's", "another"])
def test_what_is_known_of_a_clients_headers_is_not_mixed_up(order: str) -> None:
    """Most requests repeat them behind a path of their own: what was found out once holds for these headers alone."""
    own = {"REMOTE_ADDR": "10.0.0.1", "METHOD": "GET", "URL_SCHEME": "http", "PATTERN": "/", "URI": "/"}
    own |= {"VERSION": "HTTP/1.1", "PATH": "/"}
    if order == "another":
        own = dict(reversed(own.items()))
    for number in range(6):
        for headers, is_right in (({"host": "a", "x-a": "1"}, True), ({"host": ["a", "b"], "x-a": "1"}, False)):
            path = f"/{number}"
            one = parse_request(build_request("abc", 1, path, {**own, "URI": path, "PATH": path, **headers}))
            if is_right:
                check_framing(one, apart=False)
                assert one.plain or not number
            else:
                assert "2 Host" in refused(one) and not one.plain
