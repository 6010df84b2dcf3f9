"""What programs written for mongrel2-transceiver find under the names that they know."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import gevent
import pytest
import tnetstring
from plain_handler import PlainHandler
from stand_in import HTTP
from stand_in import Server as StandIn
from websocket_peer import KEY

from greentx import Client, Connection, Connector, Request, Server, Transceiver
from greentx.errors import ControlError, LocalProtocolError
from greentx.protocol.requests import build_disconnect_notice, build_request
from greentx.protocol.websocket.handshake import accept_key
from greentx.standin.client import HTTPClient, Mongrel2Client, WebSocketClient

LOCAL = "127.0.0.1"
NOBODY = (LOCAL, 1)


@pytest.fixture
def server() -> Iterator[Server]:
    """A started server without handlers."""
    with Server("python_server", ip=LOCAL, push_port=0, sub_port=0) as one:
        yield one


@pytest.fixture
def trans() -> Iterator[Transceiver]:
    """A Transceiver whose own server is not there, and which answers each request with its path."""
    with Transceiver("rune", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL) as one:
        serving = gevent.spawn(one.serve, lambda conn, req: conn.reply_http(req, req.path))
        yield one
        one.stop(5)
        serving.get(timeout=5)


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """An address that is bound, and where nobody listens."""
    with socket.socket() as one:
        one.bind((LOCAL, 0))
        yield one.getsockname()


# -- Client ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [((), Mongrel2Client), (("mongrel2",), Mongrel2Client), (("http",), HTTPClient), (("websocket",), WebSocketClient)],
)
def test_a_client_is_made_of_a_server_and_a_protocol(server, protocol, kind):
    """Of the same kind as the server's own, with the next number, and as a Client."""
    first, second = Client(server, *protocol), server.client(*protocol)
    assert type(first) is type(second) is kind
    assert isinstance(first, Client)
    assert first.server is server
    assert [first.conn_id, second.conn_id] == ["1", "2"]
    assert server.clients == 2


def test_a_client_is_refused_a_protocol_that_there_is_not(server):
    """The error names those that there are."""
    with pytest.raises(LocalProtocolError, match="'mongrel2', 'http', 'websocket'"):
        Client(server, "gopher")
    assert server.clients == 0


def test_a_client_of_its_own_connects_no_handlers(dead):
    """``server.client`` does; it fails where they are not there."""
    with Server("s", connect=[dead], ip=LOCAL, push_port=0, sub_port=0, connect_timeout=100) as server:
        with Client(server, "http") as client:
            assert not client.closed
            assert server.handlers == ()
        with pytest.raises(ControlError):
            server.client("http")


@pytest.mark.parametrize("protocol", ["mongrel2", "http", "websocket"])
def test_a_client_of_its_own_talks_to_handlers_that_are_connected(server, protocol):
    """As one of ``server.client`` does."""
    with Transceiver("rune", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL) as trans:
        serving = gevent.spawn(trans.serve, lambda conn, req: conn.reply_http(req, req.path), websocket=echo)
        assert server.connect((LOCAL, trans.rep_port)) is True
        with Client(server, protocol) as client:
            if protocol == "websocket":
                client.handshake("/x")
                client.send("/x")
                assert client.recv(5000).payload == b"/x"
            else:
                client.send("/x", timeout=5000)
                assert client.recv(5000).body.endswith(b"/x")
        server.stop()
        trans.stop(5)
        serving.get(timeout=5)


def echo(ws: object) -> None:
    for message in ws:
        ws.send(message)


# -- Connector ---------------------------------------------------------------------------------------------------------


def test_a_connector_without_a_server_asks_a_running_handler(trans):
    """Whether it is there, and how it is; in a with block or without one."""
    address = (LOCAL, trans.rep_port)
    with Connector(address) as connector:
        assert connector.ping() is True
        assert connector.ping() is True
        assert connector.status()["sender"] == "rune"
    connector = Connector(address)
    assert connector.ping() is True
    assert connector.status()["sender"] == "rune"


def test_a_connector_says_within_its_timeout_that_nobody_is_there(dead, server):
    """False, with a server and without; not an exception."""
    for connector in (Connector(dead, timeout=100), Connector(dead, server, timeout=100)):
        with connector:
            began = time.monotonic()
            assert connector.ping() is False
            assert 0.05 < time.monotonic() - began < 5
            assert connector.ping(timeout=20) is False
            with pytest.raises(ControlError):
                connector.status()


def test_a_connector_without_a_server_cannot_connect(trans):
    """It says what is missing, and nothing is asked of the handler."""
    with Connector((LOCAL, trans.rep_port)) as connector:
        for method in ("connect", "verify_connect", "disconnect", "verify_disconnect"):
            with pytest.raises(LocalProtocolError, match="server"):
                getattr(connector, method)()
        assert list(trans.connections) == ["rune"]
        assert connector.ping() is True


def test_a_connector_with_a_server_connects_and_disconnects(trans, server):
    """Each method says True when it is done."""
    with Connector((LOCAL, trans.rep_port), server) as connector:
        assert connector.ping() is True
        assert connector.connect() is True
        assert connector.verify_connect() is True
        assert list(trans.connections) == ["rune", "python_server"]
        client = Client(server, "http")
        client.send("/through", timeout=5000)
        assert client.recv(5000).body == b"/through"
        assert connector.disconnect() is True
        assert connector.verify_disconnect() is True
        assert list(trans.connections) == ["rune"]


def test_an_old_handler_is_asked_the_same_way(server):
    """It answers in small letters."""
    with PlainHandler() as old, Connector(old.addr) as connector:
        assert connector.ping() is True
        assert old.commands == ["PING"]


# -- Server ------------------------------------------------------------------------------------------------------------


def test_a_server_has_the_old_ports_where_none_are_named():
    """9999 and 9998, known before it is started; 0 takes free ones, others are as given."""
    assert (Server().push_port, Server().sub_port) == (9999, 9998)
    assert (Server.PUSH_PORT, Server.SUB_PORT) == (9999, 9998)
    server = Server(ip=LOCAL, push_port=2000)
    assert (server.push_port, server.sub_port) == (2000, 9998)
    assert (server.push_addr, server.sub_addr) == ((LOCAL, 2000), (LOCAL, 9998))
    with Server(ip=LOCAL, push_port=0, sub_port=0) as server:
        ports = {server.push_port, server.sub_port}
        assert len(ports) == 2
        assert not ports & {0, 9998, 9999}


def test_a_server_tells_its_addresses(server):
    """Of both sockets, as pairs that others can connect to."""
    assert server.push_addr == (server.ip, server.push_port)
    assert server.sub_addr == (server.ip, server.sub_port)
    for address in (server.push_addr, server.sub_addr):
        socket.create_connection(address, 5).close()


def test_a_server_connects_and_disconnects_a_handler(trans, server):
    """Both say True when they are done; a second connect is done already."""
    address = (LOCAL, trans.rep_port)
    assert server.connect(address) is True
    assert server.connect(address) is True
    assert server.disconnect(address) is True
    assert list(trans.connections) == ["rune"]


# -- Transceiver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pull_addr", [NOBODY, "tcp://127.0.0.1:1", "127.0.0.1:1"])
def test_a_transceiver_keeps_the_addresses_that_it_was_given(pull_addr):
    """As they were given, before it is started too."""
    trans = Transceiver(sender="rune", pull_addr=pull_addr, pub_addr=(LOCAL, 2), rep_port=False)
    assert (trans.pull_addr, trans.pub_addr) == (pull_addr, (LOCAL, 2))
    with trans:
        assert (trans.pull_addr, trans.pub_addr) == (pull_addr, (LOCAL, 2))


def test_a_transceiver_s_conn_is_the_one_of_its_own_sender(trans, server):
    """Whatever others were added."""
    assert isinstance(trans.conn, Connection)
    assert trans.conn.sender == "rune"
    server.connect((LOCAL, trans.rep_port))
    assert len(trans.connections) == 2
    assert trans.conn is trans.connections["rune"]


# -- Request -----------------------------------------------------------------------------------------------------------

FIELDS = ("sender", "conn_id", "path", "headers", "body", "method")


def fields(req: Request) -> dict[str, object]:
    return {name: getattr(req, name) for name in FIELDS}


RECEIVED = {
    "get": ("/", {**HTTP, "QUERY": "a=b&c=%20", "URI": "/?a=b&c=%20"}, b""),
    "post": ("/a%20b", {**HTTP, "METHOD": "POST", "content-length": "3", "x-twice": ["1", "2"]}, b"\x00\xff\n"),
    "latin-1": ("/", {**HTTP, "x-name": "grüße"}, b""),
    "json": ("@chat", {"METHOD": "JSON", "PATH": "@chat"}, b'{"type":"msg"}'),
    "xml": ("<chat", {"METHOD": "XML", "PATH": "<chat"}, b"<chat>x</chat>"),
    "unusual": ("/", {"METHOD": "PROPFIND", "VERSION": "HTTP/1.1", "quote": 'a"b\\c'}, b"x"),
}


@pytest.fixture(params=["tnetstring", "json"])
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", RECEIVED)
def test_a_request_has_its_message(protocol, name):
    """Byte for byte what was received; read again, it is an equal request."""
    path, headers, body = RECEIVED[name]
    message = build_request("u", 7, path, headers, body, protocol=protocol)
    stand_in = StandIn()
    try:
        with Connection("u", *stand_in.endpoints) as conn:
            for again in range(3):  # what is received again and again may be parsed in another way
                stand_in.push.send(message)
                req = conn.recv(5)
                if again == 1:
                    assert req.headers
                assert req.msg == message
                assert isinstance(req.msg, bytes)
                assert fields(Request.parse(req.msg)) == fields(req)
    finally:
        stand_in.close()


def test_a_message_that_was_written_in_another_order_is_the_same(protocol):
    """As a Mongrel2 of another version may; no header is moved."""
    if protocol == "json":
        text = json.dumps({"VERSION": "HTTP/1.1", "zzz": "1", "METHOD": "GET", "aaa": "2"}, separators=(",", ":"))
        head = b"%d:%s," % (len(text), text.encode())
    else:
        head = tnetstring.dumps({b"VERSION": b"HTTP/1.1", b"zzz": b"1", b"METHOD": b"GET", b"aaa": b"2"})
    message = b"u 7 / %s3:abc," % head
    assert Request.parse(message).msg == message


def test_a_request_of_one_s_own_has_a_message():
    """Which reads back as it is."""
    for headers in (HTTP, {"METHOD": "POST", "x": ["a", "b"]}, {b"METHOD": b"GET", b"x": b"\xff"}):
        req = Request("u", "7", "/own", headers, b"body")
        assert fields(Request.parse(req.msg)) == fields(req)


def test_events_have_a_message(protocol):
    """Also those that greentx makes of a message: it reads back as the event, or as what Mongrel2 says."""
    headers = {**HTTP, "PATH": "/", "host": "x", "upgrade": "websocket", "connection": "upgrade"}
    headers |= {"sec-websocket-version": "13", "sec-websocket-key": KEY}
    messages = [
        build_request("u", 7, "/", {**headers, "METHOD": "WEBSOCKET_HANDSHAKE"}, accept_key(KEY), protocol=protocol),
        build_request("u", 7, "/", {**headers, "METHOD": "WEBSOCKET", "FLAGS": "0x81"}, b"hi", protocol=protocol),
        build_request("u", 7, "/", {**headers, "METHOD": "WEBSOCKET", "FLAGS": "0x88"}, b"", protocol=protocol),
        build_request("u", 8, "/", HTTP, protocol=protocol),
        build_disconnect_notice("u", 8, protocol=protocol),
    ]
    stand_in = StandIn()
    with contextlib.closing(stand_in), Connection("u", *stand_in.endpoints, handshake_events=False) as conn:
        for message in messages:
            stand_in.push.send(message)
        events = [conn.recv(5) for _ in messages]
        assert [event.method for event in events] == [
            *("WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET_CLOSE", "GET", "DISCONNECT")
        ]
        for event in events[:4]:
            assert fields(Request.parse(event.msg)) == fields(event)
        end = Request.parse(events[4].msg)
        assert end.is_disconnect()
        assert end.sid == events[4].sid
        assert [event.msg for event in events[3:]] == messages[3:]
        assert events[1].msg == messages[1]
