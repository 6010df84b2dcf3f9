"""Addresses become ZeroMQ endpoint strings, or an error that says what to write."""

from __future__ import annotations

import netifaces
import pytest

from greentx.errors import LocalProtocolError, TransportError
from greentx.transport.endpoints import (
    bind_endpoint,
    connect_endpoint,
    default_address,
    endpoint_address,
    interface_address,
)

BOTH = [
    (("127.0.0.1", 9999), "tcp://127.0.0.1:9999"),
    (["127.0.0.1", 9999], "tcp://127.0.0.1:9999"),
    (("localhost", 1), "tcp://localhost:1"),
    (("my-host.example.org", 65535), "tcp://my-host.example.org:65535"),
    (("eth0", 80), "tcp://eth0:80"),
    (("::1", 80), "tcp://[::1]:80"),
    (("[::1]", 80), "tcp://[::1]:80"),
    (("fe80::1%eth0", 80), "tcp://[fe80::1%eth0]:80"),
    ("127.0.0.1:80", "tcp://127.0.0.1:80"),
    ("[::1]:80", "tcp://[::1]:80"),
    ("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"),
    ("tcp://[::1]:80", "tcp://[::1]:80"),
    ("ipc:///tmp/some.sock", "ipc:///tmp/some.sock"),
    ("ipc://@abstract", "ipc://@abstract"),
    ("ipc://" + "p" * 107, "ipc://" + "p" * 107),
    ("ws://127.0.0.1:80/", "ws://127.0.0.1:80/"),
]

BIND_ONLY = [
    (("*", 80), "tcp://*:80"),
    (("*", 0), "tcp://*:*"),
    (("127.0.0.1", 0), "tcp://127.0.0.1:*"),
    (("::1", 0), "tcp://[::1]:*"),
    ("tcp://*:*", "tcp://*:*"),
    ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
    ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"),
    ("*:80", "tcp://*:80"),
    ("ipc://*", "ipc://*"),
]

BAD = [
    (("127.0.0.1", 65536), "65536"),
    (("127.0.0.1", -1), "-1"),
    (("127.0.0.1", "80"), "'80'"),
    (("127.0.0.1", True), "True"),
    (("127.0.0.1", None), "None"),
    (("127.0.0.1", 1.5), r"1\.5"),
    (("", 80), "no host"),
    ((None, 80), "write \\(host, port\\)"),
    (("a", 1, 2), "write \\(host, port\\)"),
    (("a b", 80), "'a b'"),
    (("a/b", 80), "'a/b'"),
    (("-a", 80), "'-a'"),
    (("h\xf6st", 80), "neither a host name"),
    (("::zz", 80), "'::zz'"),
    (8080, "write \\(host, port\\)"),
    (None, "write \\(host, port\\)"),
    (b"tcp://a:1", "write \\(host, port\\)"),
    ("", "has no port"),
    ("host", "has no port"),
    ("host:", "is not a number"),
    ("host:http", "'http'"),
    ("host:80x", "'80x'"),
    ("host:123456", "'123456'"),
    ("host:65536", "65536"),
    (":80", "no host"),
    ("a:b:80", "write \\(host, port\\)"),
    ("[::1", "write \\(host, port\\)"),
    ("[::1]80", "write \\(host, port\\)"),
    ("tcp://", "has no port"),
    ("tcp://host", "write 'tcp://host:port'"),
    ("tcp://:80", "no host"),
    ("tcp://host:80/path", "'80/path'"),
    ("tcp://;host:80", "';'"),
    ("ipc://", "names no file"),
    ("ipc://a\0b", "names no file"),
    ("ipc://" + "p" * 108, "108 bytes, limit 107"),
    ("inproc://name", "joins sockets of one context"),
    ("http://host:80", "write 'tcp://...' or 'ipc://...'"),
    ("TCP://host:80", "write 'tcp://...' or 'ipc://...'"),
]

CONNECT_BAD = [
    (("127.0.0.1", 0), "from 1 to 65535"),
    (("*", 80), "is for binding"),
    ("*:80", "is for binding"),
    ("host:0", "from 1 to 65535"),
    ("tcp://host:*", r"'\*'"),
    ("ipc://*", "names no file"),
]


@pytest.mark.parametrize("build", [connect_endpoint, bind_endpoint])
@pytest.mark.parametrize(("addr", "endpoint"), BOTH)
def test_an_address_becomes_its_endpoint(build, addr, endpoint):
    """Pairs, endpoints and text all end as one form."""
    assert build(addr) == endpoint


@pytest.mark.parametrize(("addr", "endpoint"), BOTH + BIND_ONLY)
def test_an_endpoint_is_read_back_as_itself(addr, endpoint):
    """What came out can go in again, so an address may be normalised more than once."""
    assert bind_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(("addr", "endpoint"), BIND_ONLY)
def test_a_bind_may_leave_host_and_port_open(addr, endpoint):
    """Port 0 is any free port, host * is every interface."""
    assert bind_endpoint(addr) == endpoint


@pytest.mark.parametrize(
    ("addr", "endpoint"),
    [
        ("host", "tcp://host:9997"),
        ("host:80", "tcp://host:80"),
        ("::1", "tcp://[::1]:9997"),
        ("[::1]", "tcp://[::1]:9997"),
        ("[::1]:80", "tcp://[::1]:80"),
        (("host", 80), "tcp://host:80"),
        ("ipc://path", "ipc://path"),
    ],
)
def test_a_default_port_stands_in_for_a_missing_one(addr, endpoint):
    """Text without a port takes the default; a port that is there wins."""
    assert connect_endpoint(addr, 9997) == endpoint


def test_a_default_port_is_checked_too():
    """A default out of range is not a port either."""
    with pytest.raises(LocalProtocolError, match="70000"):
        connect_endpoint("host", 70000)


@pytest.mark.parametrize("build", [connect_endpoint, bind_endpoint])
@pytest.mark.parametrize(("addr", "message"), BAD)
def test_a_bad_address_is_refused_by_value(build, addr, message):
    """The error names what was wrong."""
    with pytest.raises(LocalProtocolError, match=message):
        build(addr)


@pytest.mark.parametrize(("addr", "message"), CONNECT_BAD)
def test_a_connect_needs_a_host_and_a_port(addr, message):
    """What only a bind can leave open is refused."""
    with pytest.raises(LocalProtocolError, match=message):
        connect_endpoint(addr)


def test_a_source_address_is_for_connecting_only():
    """ZeroMQ's source;destination form is passed on to connect, and refused for bind."""
    assert connect_endpoint("tcp://127.0.0.1:0;10.0.0.1:80") == "tcp://127.0.0.1:0;10.0.0.1:80"
    with pytest.raises(LocalProtocolError, match="to connect only"):
        bind_endpoint("tcp://127.0.0.1:0;10.0.0.1:80")


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        (b"tcp://127.0.0.1:4711", ("127.0.0.1", 4711)),
        (b"tcp://127.0.0.1:4711\0", ("127.0.0.1", 4711)),
        ("tcp://0.0.0.0:1", ("0.0.0.0", 1)),
        ("tcp://[::1]:2", ("::1", 2)),
        ("tcp://[::]:2", ("::", 2)),
        ("tcp://[::ffff:127.0.0.1]:3", ("127.0.0.1", 3)),
        ("tcp://host:3", ("host", 3)),
    ],
)
def test_a_bound_endpoint_tells_host_and_port(endpoint, address):
    """LAST_ENDPOINT is read back, bytes or text."""
    assert endpoint_address(endpoint) == address


@pytest.mark.parametrize("endpoint", ["ipc://path", "tcp://host", "tcp://host:*", "host:80", "inproc://x"])
def test_an_endpoint_without_a_port_has_no_address(endpoint):
    """Only tcp:// with a number has one."""
    with pytest.raises(LocalProtocolError):
        endpoint_address(endpoint)


@pytest.fixture
def interfaces(monkeypatch):
    """Return a dict of name to addresses, and a list for the default route, that netifaces then reports."""
    found: dict[str, list[str] | None] = {}
    route: list[str] = []

    def ifaddresses(name):
        if found[name] is None:
            raise ValueError("You must specify a valid interface name.")
        return {netifaces.AF_INET: [{"addr": addr} for addr in found[name]]} if found[name] else {}

    def gateways():
        return {"default": {netifaces.AF_INET: ("10.0.0.254", route[0])} if route else {}}

    monkeypatch.setattr(netifaces, "interfaces", lambda: list(found))
    monkeypatch.setattr(netifaces, "ifaddresses", ifaddresses)
    monkeypatch.setattr(netifaces, "gateways", gateways)
    return found, route


def test_the_loopback_interface_has_its_address():
    """A real interface is asked."""
    assert interface_address("lo") == "127.0.0.1"


def test_an_interface_gives_its_first_address(interfaces):
    """The first of several IPv4 addresses is taken."""
    interfaces[0]["eth7"] = ["10.0.0.1", "10.0.0.2"]
    assert interface_address("eth7") == "10.0.0.1"


def test_an_unknown_interface_is_told_beside_those_there_are(interfaces):
    """The error lists names and addresses, and skips what vanished meanwhile."""
    interfaces[0].update({"lo": ["127.0.0.1"], "tun0": [], "gone": None})
    with pytest.raises(
        LocalProtocolError, match=r"'eth0' does not exist; there are: lo \(127.0.0.1\), tun0 \(no IPv4\)"
    ):
        interface_address("eth0")
    with pytest.raises(LocalProtocolError, match="'tun0' has no IPv4 address"):
        interface_address("tun0")


def test_the_preferred_interface_comes_first(interfaces):
    """The address of eth0 is taken even where the default route leads elsewhere."""
    interfaces[0].update({"wlan0": ["10.0.0.2"], "eth0": ["10.0.0.1"]})
    interfaces[1].append("wlan0")
    assert default_address() == "10.0.0.1"
    assert default_address("wlan0") == "10.0.0.2"


def test_the_default_route_stands_in_for_the_preferred_interface(interfaces):
    """Without eth0, or where it has no IPv4, the default route decides."""
    interfaces[0].update({"wlan0": ["10.0.0.2"]})
    interfaces[1].append("wlan0")
    assert default_address() == "10.0.0.2"
    interfaces[0]["eth0"] = []
    assert default_address() == "10.0.0.2"


def test_no_address_at_all_lists_what_there_is(interfaces):
    """With neither, the error names the interfaces, and says so when there are none."""
    with pytest.raises(TransportError, match="there are: none"):
        default_address()
    interfaces[0].update({"lo": ["127.0.0.1"]})
    with pytest.raises(TransportError, match=r"no IPv4 address on 'eth0'.*lo \(127.0.0.1\).*ip="):
        default_address()
