"""Whom proxies name as the client, and which proxies are believed."""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

import pytest

from greentx.errors import LocalProtocolError
from greentx.protocol.framing import FramingError
from greentx.protocol.proxies import TrustedProxies
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request

PROXY = "10.0.0.1"
OWN = {"METHOD": "GET", "URL_SCHEME": "http", "PATTERN": "/", "URI": "/", "VERSION": "HTTP/1.1", "PATH": "/"}


def request(headers: dict[str, Any], peer: str = PROXY, protocol: str = "tnetstring") -> Request:
    """One request as Mongrel2 would send it, which came before."""
    made = {"REMOTE_ADDR": peer, **OWN, "host": "a", **headers}
    for _ in range(3):
        one = parse_request(build_request("abc", 1, "/", made, protocol=protocol))
    return one


def seen(one: Request) -> tuple[Any, Any]:
    return one.header("REMOTE_ADDR"), one.header("URL_SCHEME")


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        # Whoever is not trusted says nothing.
        ([], "1.2.3.4", PROXY),
        ("", "1.2.3.4", PROXY),
        ("10.0.0.2", "1.2.3.4", PROXY),
        ("11.0.0.0/8,::1", "1.2.3.4", PROXY),
        # Mongrel2's own, which says what REMOTE_ADDR does.
        (PROXY, PROXY, PROXY),
        # One proxy.
        (PROXY, "1.2.3.4", "1.2.3.4"),
        ("10.0.0.0/8", "1.2.3.4", "1.2.3.4"),
        (["::1", "10.0.0.0/30"], "1.2.3.4", "1.2.3.4"),
        ([ipaddress.ip_network("10.0.0.0/30")], "1.2.3.4", "1.2.3.4"),
        (" 127.0.0.1 , 10.0.0.1 ", " 1.2.3.4\t", "1.2.3.4"),
        # What the client itself had made up stands in front.
        (PROXY, "9.9.9.9, 1.2.3.4", "1.2.3.4"),
        (PROXY, ["9.9.9.9", "1.2.3.4"], "1.2.3.4"),
        (PROXY, ["8.8.8.8, 9.9.9.9", "7.7.7.7,1.2.3.4"], "1.2.3.4"),
        (PROXY, "127.0.0.1, 1.2.3.4", "1.2.3.4"),
        # Several proxies.
        ("10.0.0.0/8", "9.9.9.9, 1.2.3.4, 10.0.0.3, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.4, 10.0.0.3", "10.0.0.4"),
        ("*", "9.9.9.9, 1.2.3.4", "9.9.9.9"),
        (["*", "10.0.0.1"], "9.9.9.9", "9.9.9.9"),
        # Where all are proxies, the first one alone counts.
        ("*", ["9.9.9.9, unknown", "unknown"], "9.9.9.9"),
        ("*", ["unknown", "9.9.9.9"], PROXY),
        ("*", "::," * 20000, "::"),
        # There are not so many proxies one behind the other.
        ("10.0.0.0/8", "1.2.3.4" + ", 10.0.0.3" * 31, "1.2.3.4"),
        ("10.0.0.0/8", "1.2.3.4" + ", 10.0.0.3" * 32, "10.0.0.3"),
        ("10.0.0.0/8", "1.2.3.4" + ", 10.0.0.3" * 20000, "10.0.0.3"),
        ("10.0.0.0/8", ["1.2.3.4", "10.0.0.5" + ", 10.0.0.4" * 15, "10.0.0.3" + ", 10.0.0.3" * 14], "1.2.3.4"),
        ("10.0.0.0/8", ["1.2.3.4", "10.0.0.5" + ", 10.0.0.4" * 15, "10.0.0.3" + ", 10.0.0.3" * 15], "10.0.0.5"),
        # Forms.
        (PROXY, "1.2.3.4:5678", "1.2.3.4"),
        (PROXY, "[2001:db8::1]:5678", "2001:db8::1"),
        (PROXY, "[2001:DB8:0::1]", "2001:db8::1"),
        (PROXY, "2001:db8::1", "2001:db8::1"),
        (PROXY, "::ffff:1.2.3.4", "1.2.3.4"),
        # What is not an address names nobody, and ends the list.
        (PROXY, "", PROXY),
        (PROXY, "unknown", PROXY),
        (PROXY, "_hidden, unknown", PROXY),
        (PROXY, "1.2.3.4, unknown", PROXY),
        (PROXY, "1.2.3.4 9.9.9.9", PROXY),
        (PROXY, "1.2.3.4,", PROXY),
        ("10.0.0.0/8", "1.2.3.4, unknown, 10.0.0.3", "10.0.0.3"),
        (PROXY, "1.2.3.4<script>", PROXY),
        (PROXY, "1" * 5000, PROXY),
        (PROXY, None, PROXY),
        # Nor what only begins as one: it would be the text of a client.
        (PROXY, "fe80::1%eth0", PROXY),
        (PROXY, 'fe80::1%"><script>', PROXY),
        (PROXY, "[fe80::1%a - - x]:80", PROXY),
        (PROXY, "[2001:db8::1]garbage", PROXY),
        (PROXY, "[2001:db8::1]:", PROXY),
        (PROXY, "[2001:db8::1]:http", PROXY),
        (PROXY, "[2001:db8::1", PROXY),
        (PROXY, "2001:db8::1]", PROXY),
        (PROXY, "[1.2.3.4]", PROXY),
        (PROXY, "[1.2.3.4]garbage", PROXY),
        (PROXY, "1.2.3.4:evil", PROXY),
        (PROXY, "1.2.3.4:abc", PROXY),
        (PROXY, "1.2.3.4:", PROXY),
        (PROXY, "1.2.3.4:123456", PROXY),
        (PROXY, "1.2.3.4:\xb2", PROXY),
        (PROXY, "1.2.3.4\n", PROXY),
        (PROXY, "\x0b1.2.3.4", PROXY),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_trusted_proxy(
    trusted: Any, forwarded: Any, client: str, protocol: str
) -> None:
    """Twice: whom it knows it remembers."""
    proxies = TrustedProxies(trusted)
    for _ in range(2):
        one = request({} if forwarded is None else {"x-forwarded-for": forwarded}, protocol=protocol)
        proxies.apply(one)
        assert seen(one) == (client, "http")


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ({}, "http"),
        ({"x-forwarded-proto": "https"}, "https"),
        ({"x-forwarded-proto": " https\t"}, "https"),
        ({"x-forwarded-proto": "http"}, "http"),
        ({"x-forwarded-proto": "HTTPS"}, "http"),
        ({"x-forwarded-proto": "https, http"}, "http"),
        ({"x-forwarded-proto": ""}, "http"),
        ({"x-forwarded-proto": ["https", "https"]}, "https"),
        ({"x-forwarded-ssl": "on"}, "https"),
        ({"x-forwarded-ssl": "off"}, "http"),
        ({"x-forwarded-protocol": "ssl"}, "https"),
        ({"x-forwarded-proto": "https", "x-forwarded-ssl": "on", "x-forwarded-protocol": "ssl"}, "https"),
        ({"x-forwarded-proto": "http", "x-forwarded-ssl": "off"}, "http"),
        ({"x-forwarded-proto": "https", "x-forwarded-ssl": "off"}, None),
        ({"x-forwarded-proto": "http", "x-forwarded-ssl": "on"}, None),
        ({"x-forwarded-proto": ["https", "http"]}, None),
    ],
)
def test_the_scheme_is_what_a_trusted_proxy_says(headers: dict[str, Any], scheme: str | None, protocol: str) -> None:
    """As gunicorn reads it: to the letter, and 400 where two headers disagree. Of anybody else it is not read."""
    proxies = TrustedProxies(PROXY)
    one = request(headers, protocol=protocol)
    if scheme is None:
        with pytest.raises(FramingError, match="another header says"):
            proxies.apply(one)
    else:
        proxies.apply(one)
        assert seen(one) == (PROXY, scheme)
    stranger = request(headers, "10.0.0.2", protocol=protocol)
    proxies.apply(stranger)
    assert seen(stranger) == ("10.0.0.2", "http")


def test_a_proxy_may_say_http_of_what_came_over_tls() -> None:
    """It speaks for the client, not for itself."""
    one = request({"x-forwarded-proto": "http", "URL_SCHEME": "https"})
    TrustedProxies(PROXY).apply(one)
    assert seen(one) == (PROXY, "http")


def test_other_headers_may_say_the_scheme() -> None:
    """gunicorn's ``secure_scheme_headers``: names in any case."""
    proxies = TrustedProxies("*", {"X-Scheme": "Secure"})
    for headers, scheme in (({"x-scheme": "Secure"}, "https"), ({"x-forwarded-proto": "https"}, "http")):
        one = request(headers)
        proxies.apply(one)
        assert seen(one)[1] == scheme


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_requests_that_share_headers_do_not_share_a_client(protocol: str) -> None:
    """What is changed is a copy; the headers that applications have looked at are changed, too."""
    proxies = TrustedProxies("10.0.0.0/8")
    headers = {"x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "https"}
    first, second = request(headers, protocol=protocol), request(headers, protocol=protocol)
    assert first.headers["REMOTE_ADDR"] == PROXY
    proxies.apply(first)
    assert (first.headers["REMOTE_ADDR"], first.headers["URL_SCHEME"]) == ("1.2.3.4", "https")
    assert first.headers["x-forwarded-for"] == "1.2.3.4" and first.headers["METHOD"] == "GET"
    assert seen(second) == (PROXY, "http")


@pytest.mark.parametrize(
    ("trusted", "forwarded", "is_kept"), [(PROXY, "1.2.3.4" + " " * 200, False), (PROXY, "1.2.3.4 ", True)]
)
@pytest.mark.parametrize("kind", [str, str.encode])
def test_what_proxies_say_of_a_client_is_remembered(trusted: str, forwarded: str, is_kept: bool, kind: Any) -> None:
    """Each request of the client repeats it. Long texts would fill the memory; the reference count tells."""
    value = kind(forwarded)
    proxies = TrustedProxies(trusted)
    before = sys.getrefcount(value)
    for peer in (PROXY, "10.0.0.2"):
        raw = {kind(name): kind(text) for name, text in {"REMOTE_ADDR": peer, **OWN}.items()}
        for _ in range(2):
            one = Request("abc", "1", "/", {**raw, kind("x-forwarded-for"): value})
            proxies.apply(one)
            assert seen(one)[0] == ("1.2.3.4" if peer == PROXY else peer)
            del one
    assert (sys.getrefcount(value) > before) == is_kept


def test_what_strangers_say_is_not_remembered() -> None:
    """What the proxies say would be pushed out by it."""
    value = "1.2.3.4 "
    before = sys.getrefcount(value)
    one = Request("abc", "1", "/", {"REMOTE_ADDR": "10.0.0.2", **OWN, "x-forwarded-for": value})
    TrustedProxies(PROXY).apply(one)
    del one
    assert sys.getrefcount(value) == before


def test_what_is_remembered_has_a_bound() -> None:
    """A client behind a proxy may name one address after the other."""
    proxies = TrustedProxies(PROXY)
    values = [f"1.2.{number // 256}.{number % 256} " for number in range(3000)]
    held = sys.getrefcount(values[0])
    for value in values:
        one = Request("abc", "1", "/", {"REMOTE_ADDR": PROXY, **OWN, "x-forwarded-for": value})
        proxies.apply(one)
        assert seen(one)[0] == value.strip()
    del one, value
    assert 0 < sum(sys.getrefcount(values[number]) > held for number in range(3000)) <= 1024


def test_a_client_of_both_families_is_one_of_ipv4() -> None:
    """As a socket that listens for both calls it."""
    one = request({"x-forwarded-for": "1.2.3.4"}, "::ffff:10.0.0.1")
    TrustedProxies("10.0.0.0/8").apply(one)
    assert seen(one)[0] == "1.2.3.4"


@pytest.mark.parametrize("peer", ["", "@", "not an address", "::1%x", "10.0.0.1 "])
def test_a_peer_without_an_address_is_believed_only_where_all_are(peer: str) -> None:
    """A stand-in for Mongrel2 may send anything."""
    headers = {"x-forwarded-for": "1.2.3.4"}
    for trusted, believed in (("0.0.0.0/0,::/0", peer == "10.0.0.1 "), ("*", True)):
        one = request(headers, peer)
        TrustedProxies(trusted).apply(one)
        assert seen(one)[0] == ("1.2.3.4" if believed else peer)


def test_a_request_that_nobody_sent_is_left_alone() -> None:
    """Without a REMOTE_ADDR nobody is known who could be trusted."""
    one = Request("abc", "1", "/", {"METHOD": "GET", "x-forwarded-for": "1.2.3.4"})
    TrustedProxies("*").apply(one)
    assert one.header("REMOTE_ADDR") is None


@pytest.mark.parametrize("trusted", ["10.0.0.1/8", "10.0.0.0/33", "example.org", "10.0.0", "10.*", [5], [None]])
def test_what_is_not_an_address_cannot_be_trusted(trusted: Any) -> None:
    """The text says which one, and what to write."""
    with pytest.raises(LocalProtocolError, match=r"trusted proxy .* is not an address or a network, such as"):
        TrustedProxies(trusted)


def test_it_shows_whom_it_trusts() -> None:
    """For logs."""
    assert repr(TrustedProxies("10.0.0.1, ::/0")) == "<TrustedProxies 10.0.0.1/32, ::/0>"
    assert (repr(TrustedProxies("*")), repr(TrustedProxies([]))) == ("<TrustedProxies *>", "<TrustedProxies none>")
