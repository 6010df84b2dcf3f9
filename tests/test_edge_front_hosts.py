"""Which host of the embedded front end a request is for."""

from __future__ import annotations

import pytest

from greentx.edge.front.hosts import Hosts
from greentx.errors import LocalProtocolError

HOSTS = Hosts(
    {"/": "default"},
    {
        "example.com": {"/": "example"},
        "Shop.example.com": {"/cart": "shop"},
        "localhost": {"/": "local"},
        "[::1]": {"/": "six"},
        "192.0.2.1": {"/": "four"},
        "xn--bcher-kva.example": {"/": "books"},
    },
)


@pytest.mark.parametrize(
    ("host", "target"),
    [
        (b"example.com", "example"),
        (b"example.com:8080", "example"),
        (b"EXAMPLE.Com", "example"),
        (b"example.com.", "example"),
        (b"example.com.:80", "example"),
        (b"www.example.com", "example"),
        (b"a.b.example.com", "example"),
        # The longest name decides, also where it has no such route.
        (b"shop.example.com", None),
        (b"a.shop.example.com:1", None),
        # Strangers' names.
        (b"myexample.com", "default"),
        (b"example.com.evil.org", "default"),
        (b"example.co", "default"),
        (b"com", "default"),
        (b"localhost:80", "local"),
        (b"[::1]:80", "six"),
        (b"[::1]", "six"),
        (b"[::2]", "default"),
        (b"[", "default"),
        (b"192.0.2.1:80", "four"),
        (b"xn--bcher-kva.example", "books"),
        (b"", "default"),
        (b":80", "default"),
        (b".", "default"),
        (b"..example.com", "example"),
        (b"a." * 10_000 + b"example.com", "default"),
        (None, "default"),
    ],
)
def test_a_request_goes_to_the_host_that_it_names(host, target):
    """An unknown one, and none, is the default host."""
    headers = [(b"accept", b"*/*"), *([] if host is None else [(b"host", host)])]
    found = HOSTS.find(headers).match(b"/")
    assert (found and found[1]) == target


def test_the_routes_of_a_host_are_its_own():
    """There is no other try."""
    routes = HOSTS.find([(b"host", b"shop.example.com")])
    assert routes.match(b"/cart/1") == (b"/cart", "shop")
    assert routes.match(b"/") is None
    assert HOSTS.named
    assert not Hosts({"/": 1}).named


@pytest.mark.parametrize(
    ("hosts", "why"),
    [
        ({"": {"/": 1}}, "is not a name"),
        ({"a:80": {"/": 1}}, "without a port"),
        ({"*.a": {"/": 1}}, "write 'a', which means all below it"),
        ({"ä": {"/": 1}}, "in ASCII"),
        ({"a..b": {"/": 1}}, "is not a name"),
        ({"a": {}}, "has no routes"),
        ({"a": {"": 1}}, "route ''"),
        ({"a": {"/": 1}, "A": {"/": 2}}, "is there twice"),
    ],
)
def test_what_is_not_a_host_is_refused(hosts, why):
    """And said why."""
    with pytest.raises(LocalProtocolError, match=why):
        Hosts({"/": 1}, hosts)
