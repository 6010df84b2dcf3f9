"""The control socket: its exact bytes, what it does, and what it does not fall for."""

from __future__ import annotations

import json
import os

import gevent
import pytest
import zmq.green as zmq
from http_rig import Browser, only_connection, routes, serving, transceiver, wait_until

from greentx import Transceiver
from greentx.protocol.replies import parse_reply
from greentx.protocol.requests import build_request

NOBODY = ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
ADDRESSES = {"push": ["127.0.0.1", 1], "sub": ["127.0.0.1", 2]}


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(0)


class Server:
    """A server that is added: PUSH and SUB, bound."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], topic: bytes | None = b"") -> None:
        self.push = context.socket(zmq.PUSH)
        self.sub = context.socket(zmq.SUB)
        self.ports = [one.bind_to_random_port("tcp://127.0.0.1") for one in (self.push, self.sub)]
        if topic is not None:
            self.sub.subscribe(topic)

    @property
    def body(self) -> bytes:
        push, sub = self.ports
        return json.dumps({"push": ["127.0.0.1", push], "sub": ["127.0.0.1", str(sub)]}).encode()

    def receive(self, timeout: float = 5.0) -> bytes:
        with gevent.Timeout(timeout):
            return self.sub.recv()

    def close(self) -> None:
        self.push.close(0)
        self.sub.close(0)


class Control:
    """A REQ to the control socket of a Transceiver."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], trans: Transceiver) -> None:
        self.req = context.socket(zmq.REQ)
        self.req.connect(f"tcp://127.0.0.1:{trans.rep_port}")

    def ask(self, *parts: bytes) -> bytes:
        self.req.send_multipart(parts)
        with gevent.Timeout(5):
            (answer,) = self.req.recv_multipart()
        return answer

    def command(self, sender: str, path: str, method: str = "JSON", body: bytes = b"", **headers: str) -> bytes:
        protocol = headers.pop("protocol", "json")
        return self.ask(build_request(sender, "-1", path, {"METHOD": method, **headers}, body, protocol=protocol))


@pytest.fixture
def trans():
    """A Transceiver whose own server is not there."""
    with Transceiver("main", *NOBODY, rep_port=0, rep_ip="127.0.0.1") as trans:
        yield trans


@pytest.fixture
def control(context, trans):
    return Control(context, trans)


def test_ping_is_answered_in_any_case(control):
    """PONG, in capitals."""
    for word in (b"PING", b"ping", b"Ping", b" PING\n"):
        assert control.ask(word) == b"PONG"


def test_the_exact_bytes_of_the_old_package_are_obeyed(context, trans, control):
    """What mongrel2-transceiver 0.3.0 sends and expects, byte for byte."""
    server = Server(context)
    body = server.body
    message = b'old -1 /__add_connection__ 17:{"METHOD":"JSON"},%d:%s,' % (len(body), body)
    assert control.ask(message) == b"RECEIVED"
    assert sorted(trans.connections) == ["main", "old"]
    ping = b'old -1 /__ping__ 47:{"METHOD":"MONGREL2","QUERY":"text=1234-abcd"},0:,'
    size = len(b'{"METHOD":"MONGREL2","QUERY":"text=1234-abcd"}')
    assert control.ask(ping.replace(b"47:", b"%d:" % size)) == b"RECEIVED"
    assert server.receive() == b"old 2:-1, 1234-abcd"
    assert control.ask(b'old -1 /__disconnect_ping__ 21:{"METHOD":"MONGREL2"},0:,') == b"RECEIVED"
    assert control.ask(b'old -1 /__remove_connection__ 17:{"METHOD":"JSON"},2:{},') == b"RECEIVED"
    assert sorted(trans.connections) == ["main"]
    gevent.sleep(0.05)  # what must not happen has no event
    assert server.sub.poll(0) == 0  # nothing came of the disconnect ping


@pytest.mark.parametrize("protocol", ["json", "tnetstring"])
def test_an_added_server_is_served(context, trans, control, protocol):
    """Its PUSH is pulled, its SUB published to."""
    server = Server(context)
    assert control.command("added", "/__add_connection__", body=server.body, protocol=protocol) == b"RECEIVED"
    with serving(trans, lambda conn, req: conn.reply_http(req, f"for {conn.sender}")):
        server.push.send(build_request("added", 7, "/x", {"METHOD": "GET", "VERSION": "HTTP/1.1"}, protocol=protocol))
        reply = parse_reply(server.receive())
        assert (reply.sender, reply.conn_ids) == ("added", ["7"])
        assert reply.body.endswith(b"for added")


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b""], b"no 'sender conn_id path '"),
        ([b"garbage"], b"no 'sender conn_id path '"),
        ([b"\x00\xff" * 100], b"no 'sender conn_id path '"),
        ([b"x" * 65536], b"no 'sender conn_id path '"),
        ([b"PING", b"PING"], b"one message part, not 2"),
        ([b'a -1 /x 17:{"METHOD":"JSON"},0:,'], b"no command '/x'"),
        ([b'a -1 /__add_connection__ 16:{"METHOD":"GET"},0:,'], b"METHOD JSON"),
        ([b'a 1 /__add_connection__ 17:{"METHOD":"JSON"},0:,'], b"conn_id -1"),
        ([b'a -1 /__add_connection__ 17:{"METHOD":"JSON"},0:,'], b"is not JSON"),
        ([b'a -1 /__add_connection__ 17:{"METHOD":"JSON"},4:null,'], b"no 'push'"),
        ([b'a -1 /__add_connection__ 17:{"METHOD":"JSON"},2:{},'], b"no 'push'"),
        ([b'a -1 /__ping__ 21:{"METHOD":"MONGREL2"},0:,'], b"QUERY text="),
        ([b'nobody -1 /__ping__ 38:{"METHOD":"MONGREL2","QUERY":"text=x"},0:,'], b"no connection for sender 'nobody'"),
        ([b'nobody -1 /__remove_connection__ 17:{"METHOD":"JSON"},2:{},'], b"no connection for sender 'nobody'"),
        ([b'a_b -1 /__disconnect_ping__ 17:{"METHOD":"JSON"},0:,'], b"METHOD MONGREL2"),
    ],
    ids=range(15),
)
def test_garbage_is_answered_with_an_error(trans, control, caplog, parts, why):
    """ERROR and why; the socket goes on, and nothing was changed."""
    answer = control.ask(*parts)
    assert answer.startswith(b"ERROR ")
    assert why in answer
    assert len(answer) < 500
    assert control.ask(b"PING") == b"PONG"
    assert list(trans.connections) == ["main"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"push": None}, b"no 'push'"),
        ({"sub": ["127.0.0.1"]}, b"no 'sub'"),
        ({"sub": "127.0.0.1:5"}, b"no 'sub'"),
        ({"sub": [5, 5]}, b"'sub' is [ip, port]"),
        ({"push": ["127.0.0.1", None]}, b"'push' is [ip, port]"),
        ({"push": ["127.0.0.1", True]}, b"'push' is [ip, port]"),
        ({"push": ["127.0.0.1", 1.5]}, b"'push' is [ip, port]"),
        ({"push": ["127.0.0.1", "x"]}, b"'push' is [ip, port]"),
        ({"push": ["127.0.0.1", 70000]}, b"70000"),
        ({"push": ["127.0.0.1", -1]}, b"-1"),
        ({"push": ["a b", 5]}, b"a b"),
    ],
)
def test_wrong_addresses_are_refused(trans, control, change, why):
    """The error names the field, and no connection set is left half made."""
    answer = control.command("a", "/__add_connection__", body=json.dumps({**ADDRESSES, **change}).encode())
    assert answer.startswith(b"ERROR ")
    assert why in answer
    assert list(trans.connections) == ["main"]


def test_a_sender_that_cannot_be_answered_is_refused(trans, control):
    """Mongrel2 could not parse it back, where one is meant."""
    message = b'a_b -1 /__add_connection__ 17:{"METHOD":"JSON"},%d:%s,'
    body = json.dumps({**ADDRESSES, "mongrel2": True}).encode()
    assert b"a_b" in control.ask(message % (len(body), body))
    assert list(trans.connections) == ["main"]


def test_status_tells_what_there_is(trans, control):
    """JSON: version, pid, counts, each connection set."""
    for word in (b"STATUS", b"status"):
        status = json.loads(control.ask(word))
        assert status["pid"] == os.getpid()
        assert status["sender"] == "main"
        assert (status["websockets"], status["pending"]) == (0, 0)
        (connection,) = status["connections"]
        assert (connection["sender"], connection["ready"], connection["requests"]) == ("main", False, 0)
        assert connection["pull"] == "tcp://127.0.0.1:1"


def test_the_same_server_may_be_added_again(context, trans, control):
    """With the same addresses nothing changes; once it has gone, new ones replace the old."""
    first, second = Server(context), Server(context)
    assert control.command("s", "/__add_connection__", body=first.body) == b"RECEIVED"
    connection = trans.connections["s"]
    assert control.command("s", "/__add_connection__", body=first.body) == b"RECEIVED"
    assert trans.connections["s"] is connection
    assert connection.wait_ready(5)
    first.close()
    wait_until(lambda: not connection.link.subscribed)
    assert control.command("s", "/__add_connection__", body=second.body) == b"RECEIVED"
    assert trans.connections["s"] is not connection
    assert control.command("s", "/__ping__", "MONGREL2", QUERY="text=second") == b"RECEIVED"
    assert second.receive() == b"s 2:-1, second"


def test_many_may_ask_at_once(context, trans):
    """The same sender from several REQ sockets, and others beside it: all RECEIVED, each there once."""
    server = Server(context)
    controls = [Control(context, trans) for _ in range(8)]
    jobs = [
        gevent.spawn(one.command, "same" if number % 2 else f"s{number}", "/__add_connection__", body=server.body)
        for number, one in enumerate(controls)
    ]
    gevent.joinall(jobs, timeout=5, raise_error=True)
    assert {job.value for job in jobs} == {b"RECEIVED"}
    assert sorted(trans.connections) == ["main", "s0", "s2", "s4", "s6", "same"]


def test_a_proof_waits_for_the_subscription(context, trans, control):
    """Asked for before the server subscribed, it arrives as soon as it did, and over that PUB only."""
    early, other = Server(context, topic=None), Server(context)
    assert control.command("early", "/__add_connection__", body=early.body) == b"RECEIVED"
    assert control.command("other", "/__add_connection__", body=other.body) == b"RECEIVED"
    for number in range(20):
        assert control.command("early", "/__ping__", "MONGREL2", QUERY=f"text=guid-{number}") == b"RECEIVED"
    assert not trans.connections["early"].ready
    early.sub.subscribe(b"early")
    proofs = {early.receive() for _ in range(20)}
    assert proofs == {b"early 2:-1, guid-%d" % number for number in range(20)}  # each a message of its own
    assert other.sub.poll(50) == 0


def test_the_last_text_of_a_query_is_the_guid(context, trans, control):
    """Percent-encoding is undone."""
    server = Server(context)
    control.command("s", "/__add_connection__", body=server.body)
    assert control.command("s", "/__ping__", "MONGREL2", QUERY="text=a&text=b%20c") == b"RECEIVED"
    assert server.receive() == b"s 2:-1, b c"


def test_a_removed_server_is_not_pulled_any_more(context, trans, control):
    """What it pushes stays with it; adding it again serves it."""
    server = Server(context)
    control.command("s", "/__add_connection__", body=server.body)
    with serving(trans, lambda conn, req: conn.reply_http(req, "x")):
        request = build_request("s", 1, "/", {"METHOD": "GET", "VERSION": "HTTP/1.1"})
        server.push.send(request)
        server.receive()
        assert control.command("s", "/__remove_connection__", body=b"{}") == b"RECEIVED"
        wait_until(lambda: not server.push.poll(0, zmq.POLLOUT))
        assert control.command("s", "/__add_connection__", body=server.body) == b"RECEIVED"
        server.push.send(request)
        assert parse_reply(server.receive()).conn_ids == ["1"]


@pytest.mark.mongrel2
def test_removing_says_goodbye_to_websockets(context, start_mongrel2):
    """They get close 1001, the application their end; the control socket cannot do that to the application's own."""
    server = start_mongrel2(routes())
    with transceiver(server, rep_port=0, rep_ip="127.0.0.1") as trans, Browser(server) as browser:
        events = trans.recv(timeout=5)
        browser.ask(
            "/",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        assert browser.receive().status == 101
        assert next(events)[2].method == "WEBSOCKET_CONNECT"
        sender = server.handlers[0].sender
        assert b"the application ends it" in Control(context, trans).command(
            sender, "/__remove_connection__", body=b"{}"
        )
        assert len(trans.websockets) == 1
        trans.remove_connection(sender)
        assert browser.read(4) == b"\x88\x02\x03\xe9"
        ended = next(events)[2]
        assert (ended.method, ended.close_code) == ("WEBSOCKET_CLOSE", 1001)
        assert len(trans.websockets) == 0
        events.close()


@pytest.mark.mongrel2
@pytest.mark.parametrize("path", ["/__add_connection__", "/__remove_connection__", "/__ping__?text=x"])
def test_on_the_web_the_commands_are_paths_like_any_other(start_mongrel2, path):
    """No browser rewires the handler: not over HTTP, not over a JSON socket."""
    server = start_mongrel2(routes())
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, f"page {req.path}")):
            before = only_connection(trans)
            answer = browser.get(path, method="POST", body=json.dumps(ADDRESSES).encode())
            assert answer.body == f"page {path.partition('?')[0]}".encode()
            browser.ask(path, method="JSON", body=json.dumps(ADDRESSES).encode())
            assert browser.receive().status == 501
            assert only_connection(trans) is before
