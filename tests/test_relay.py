"""API -> Node: requests are handed on, answered directly and in order; ends, restarts and deaths are noticed."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref

import gevent
import pytest
import zmq.green as zmq
from free_ports import Server
from gevent.event import Event

from greentx import GreentxError, Transceiver
from greentx.errors import (
    BindError,
    ConnectionClosed,
    LocalProtocolError,
    RemoteProtocolError,
    SendTimeout,
    TransportError,
)
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_disconnect_notice, build_request
from greentx.relay import Node, Relay
from greentx.relay import proofs as proofs_module
from greentx.relay.messages import MAX_HELD, RECEIPT_SECONDS, Told, own_topic
from greentx.relay.reports import Reports
from greentx.relay.topics import Topics
from greentx.standin.client import build_headers
from greentx.transport import Context
from greentx.transport.endpoints import endpoint_address

LOCAL = "127.0.0.1"
SENDER = "front"


def wait_until(condition, timeout=10.0):
    """Let other greenlets run until *condition* holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        gevent.sleep(0.002)  # between two looks


class Chain:
    """A server that stands in for Mongrel2, an API behind it and, on demand, Nodes behind that."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.server = stack.enter_context(Server(SENDER, ip=LOCAL))
        self.push = (LOCAL, self.server.push_port)
        self.sub = (LOCAL, self.server.sub_port)
        self.api = stack.enter_context(self.make_api())
        self.relay = Relay(self.api, (LOCAL, 0), (LOCAL, 0), send_timeout=5)
        self.nodes: list[Node] = []

    def make_api(self, **options) -> Transceiver:
        options = {"rep_port": 0, "rep_ip": LOCAL, "connect_timeout": 5, "ping_timeout": None, **options}
        return Transceiver(SENDER, self.push, self.sub, **options)

    def make_node(self, **options) -> Node:
        options = {"rep_port": False, "connect_timeout": 5, "ping_timeout": None, **options}
        return Node(SENDER, self.relay.push_endpoint, self.relay.pub_endpoint, self.sub, **options)

    def node(self, handler=None, *, websocket=None, **options) -> Node:
        """Start a Node that serves, and return once the relay knows it, both ways."""
        node = self.stack.enter_context(self.make_node(**options))
        self.nodes.append(node)
        if handler is not None or websocket is not None:
            self.serve(node, handler, websocket=websocket)
        wait_until(lambda: node.name in self.relay.nodes and self.relay.pusher.peers >= len(self.nodes))
        return node

    def serve(self, transceiver, handler, *, websocket=None):
        serving = gevent.spawn(transceiver.serve, handler, websocket=websocket)
        # Whoever enters last leaves first: before its transceiver.
        self.stack.callback(serving.join, 5)
        self.stack.callback(transceiver.stop, 2)

    def forward_all(self, headers=None):
        """Let the API hand on all that it gets."""
        self.serve(self.api, lambda conn, req: self.relay.forward(req, headers))

    def client(self, protocol="http"):
        return self.server.client(protocol)


@pytest.fixture
def chain():
    """A chain without Nodes."""
    with contextlib.ExitStack() as stack:
        yield Chain(stack)


def say(text):
    """Return a handler that answers *text*, and what it was asked."""
    return lambda conn, req: conn.reply_http(req, f"{text}: {req.method} {req.path} {req.body.decode()}")


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_node_answers_the_server_directly(chain):
    """What the API hands on unchanged, the client gets from the Node."""
    chain.forward_all()
    chain.node(say("node"))
    client = chain.client()
    client.send("/a?x=1", {"Cookie": ["a=b", "c=d"]}, b"body")
    assert client.recv(5000).body == b"node: POST /a body"
    wait_until(lambda: chain.relay.open == 0)
    assert chain.relay.forwarded == 1
    assert len(chain.api.connections[SENDER].link.life.requests) == 0


def test_a_node_sees_the_request_as_it_came(chain):
    """Headers, lists, body and query; of the relay's own header nothing is left."""
    seen = []
    chain.forward_all()
    chain.node(lambda conn, req: (seen.append(req), conn.reply_http(req, "ok")))
    client = chain.client()
    body = bytes(range(256))
    client.send("/a?x=1&x=2", {"Cookie": ["a=b", "c=d"], "X-Odd": "\xe9\t"}, body)
    assert client.recv(5000).status == 200
    [request] = seen
    target, headers = build_headers("/a?x=1&x=2", {"Cookie": ["a=b", "c=d"], "X-Odd": "\xe9\t"}, body, None)
    expected = Request(SENDER, client.conn_id, target, headers).headers
    assert (dict(request.headers), request.body, request.query) == (dict(expected), body, {"x": ["1", "2"]})


def test_an_annotation_cannot_be_a_clients(chain):
    """The API's names are in upper case; the client's of the same letters is another one."""
    seen = []
    chain.forward_all({"USER_ID": "17", "ROLES": ["a", "b"]})
    chain.node(lambda conn, req: (seen.append(req.headers), conn.reply_http(req, "ok")))
    client = chain.client()
    client.send("/", {"USER_ID": "1", "user-id": "2"})
    assert client.recv(5000).status == 200
    assert (seen[0]["USER_ID"], seen[0]["ROLES"], seen[0]["user_id"]) == ("17", ["a", "b"], "1")


@pytest.mark.parametrize("name", ["user_id", "User", "X-USER", "1A", "", "METHOD", "REMOTE_ADDR", "QUERY", "RELAY", 7])
def test_a_name_that_is_the_clients_or_the_servers_is_refused(chain, name):
    """Nothing was handed on; the request can still be answered here."""
    client = chain.client()
    client.send("/")
    for _, conn, req in chain.api.recv():
        with pytest.raises(LocalProtocolError, match=r"upper case|another name"):
            chain.relay.forward(req, {name: "x"})
        conn.reply_http(req, "here")
        break
    assert client.recv(5000).body == b"here"


def test_requests_go_to_the_nodes_in_turn(chain):
    """As Mongrel2 itself would hand them out."""
    chain.forward_all()
    chain.node(say("one"))
    chain.node(say("two"))
    answers = []
    for _ in range(10):
        client = chain.client()
        client.send("/")
        answers.append(client.recv(5000).body.partition(b":")[0])
    assert sorted(answers) == [b"one"] * 5 + [b"two"] * 5


def test_without_a_node_forward_times_out_and_the_api_can_answer(chain):
    """It blocks its greenlet only, and says that nobody was there."""
    relay = Relay(chain.api, (LOCAL, 0), (LOCAL, 0), send_timeout=0.1)

    def handler(conn, req):
        try:
            relay.forward(req)
        except SendTimeout as error:
            conn.reply_http(req, str(error), 503)

    chain.serve(chain.api, handler)
    ticks = []
    # A tick at each turn of the hub: a hub that is blocked has fewer.
    ticking = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.005)) for _ in range(100)])
    client = chain.client()
    client.send("/")
    response = client.recv(5000)
    ticking.kill()
    assert (response.status, "within 100 ms" in response.body.decode()) == (503, True)
    assert len(ticks) > 5
    relay.close()


def test_a_request_waits_for_a_node_to_come(chain):
    """The order of starting does not matter."""
    chain.forward_all()
    client = chain.client()
    client.send("/")
    gevent.sleep(0.05)  # what must not happen has no event
    chain.node(say("late"))
    assert client.recv(5000).body == b"late: GET / "


def test_what_was_handed_on_cannot_be_answered_here(chain):
    """Neither by the same handler nor by a second forward."""
    errors = []

    def handler(conn, req):
        chain.relay.forward(req)
        for again in (lambda: conn.reply_http(req, "me too"), lambda: chain.relay.forward(req)):
            with pytest.raises(LocalProtocolError, match="answered already") as raised:
                again()
            errors.append(raised.value)

    chain.serve(chain.api, handler)
    release = Event()
    chain.node(lambda conn, req: (release.wait(5), conn.reply_http(req, "node")))
    client = chain.client()
    client.send("/")
    wait_until(lambda: len(errors) == 2)
    release.set()
    assert client.recv(5000).body == b"node"
    with pytest.raises(LocalProtocolError, match="answered already"):
        chain.relay.forward(answered(chain))


def answered(chain):
    """Return a request that the API has answered."""
    api = chain.api
    chain.stack.enter_context(contextlib.suppress(GreentxError))
    request = Request(SENDER, "999", "/", {"METHOD": "GET", "PATH": "/", "VERSION": "HTTP/1.1"})
    connection = api.connections[SENDER]
    connection.link.life.requests.add(request)
    assert connection.link.life.requests.answer_whole(request)
    return request


def test_many_clients_get_their_own_answers(chain):
    """Over two Nodes, from many greenlets; none is lost, none doubled, and nothing stays open."""
    chain.forward_all()
    for _ in range(2):
        chain.node(lambda conn, req: conn.reply_http(req, req.body))

    def browse():
        client = chain.client()
        for number in range(20):
            client.send("/", body=b"%d" % number)
            assert client.recv(20_000).body == b"%d" % number
        client.disconnect()

    gevent.joinall([gevent.spawn(browse) for _ in range(50)], raise_error=True)
    wait_until(lambda: chain.relay.open == 0)
    assert chain.server.unclaimed == 0
    for transceiver in (chain.api, *chain.nodes):
        assert len(transceiver.connections[SENDER].link.life.requests) == 0


def test_a_native_thread_may_forward_and_publish(chain):
    """The call is handed to the hub."""
    heard = []
    node = chain.node(say("node"))
    node.subscribe("t", lambda topic, message: heard.append(message))
    wait_until(lambda: "t" in chain.relay.topics)
    client = chain.client()
    client.send("/")
    request = next(chain.api.recv())[2]
    calls = [lambda: chain.relay.forward(request), lambda: chain.relay.publish("t", "x")]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    assert client.recv(5000).body == b"node: GET / "
    wait_until(lambda: heard == [b"x"])
    for thread in threads:
        thread.join(5)


# -- order -------------------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order_wherever(chain):
    """Each third one by the API at once, the others by slower Nodes."""

    def handler(conn, req):
        if req.path == "/here":
            conn.reply_http(req, "here " + req.body.decode())
        else:
            chain.relay.forward(req)

    chain.serve(chain.api, handler)
    for delay in (0.003, 0.0):
        chain.node(lambda conn, req, delay=delay: (gevent.sleep(delay), conn.reply_http(req, b"node " + req.body)))
    client = chain.client()
    for number in range(30):
        client.send("/node" if number % 3 else "/here", body=b"%d" % number)
    expected = [b"%s %d" % (b"node" if number % 3 else b"here", number) for number in range(30)]
    assert [client.recv(5000).body for _ in range(30)] == expected
    wait_until(lambda: chain.relay.open == 0)


def delayed(transceiver, seconds):
    """Have all that a transceiver sends arrive later, in its order, as over a slow network or from a busy machine."""
    for connection in transceiver.connections.values():
        send = connection.link.writer.pipe.send_now
        connection.link.writer.pipe.send_now = lambda message, flags, send=send: gevent.spawn_later(
            seconds, send, message, flags
        )


@pytest.mark.parametrize("slow", ["api", "node"])
def test_pipelined_requests_are_answered_in_order_however_slow_the_way_from_one_side(chain, slow):
    """It is not time that says when an answer has arrived, but the server."""

    def handler(conn, req):
        if req.body == b"0":
            gevent.sleep(0.02)  # until all have come
        if req.path == "/here":
            conn.reply_http(req, b"here " + req.body)
        else:
            chain.relay.forward(req)

    node = chain.node(lambda conn, req: conn.reply_http(req, b"node " + req.body))
    chain.serve(chain.api, handler)
    client = chain.client()
    delayed(node if slow == "node" else chain.api, 0.05)
    for number in range(8):
        client.send("/node" if number % 2 else "/here", body=b"%d" % number)
    expected = [b"%s %d" % (b"node" if number % 2 else b"here", number) for number in range(8)]
    assert [client.recv(5000).body for _ in range(8)] == expected
    wait_until(lambda: chain.relay.open == 0)
    wait_until(lambda: not chain.relay.proofs)


def pipelined(chain):
    """Two requests of one client, of which the first was answered after the second had come; and the client."""
    client = chain.client()
    client.send("/a")
    client.send("/b")
    events = chain.api.recv()
    first, second = next(events)[2], next(events)[2]
    connection = chain.api.connections[SENDER]
    connection.reply_http(first, "first")
    return connection, second, client


def test_a_pipelined_request_that_was_handed_on_was_answered(chain):
    """At once, though the Node gets it only when the answer before it has arrived."""
    seen = []
    chain.node(lambda conn, req: (seen.append(req.path), conn.reply_http(req, "node")))
    connection, request, client = pipelined(chain)
    chain.relay.forward(request)
    for again in (chain.relay.forward, lambda req: connection.reply_http(req, "here")):
        with pytest.raises(LocalProtocolError, match="answered already"):
            again(request)
    assert [client.recv(5000).body, client.recv(5000).body] == [b"first", b"node"]
    wait_until(lambda: len(connection.link.life.requests) == 0)
    assert seen == ["/b"]


def test_a_relay_that_is_closed_leaves_no_pipelined_request_without_an_end(chain):
    """Whose turn was near: its connection is closed."""
    connection, request, client = pipelined(chain)
    connection.link.writer.send_to_nobody = lambda number: None
    chain.relay.forward(request)
    gevent.sleep(0.02)  # what must not happen has no event
    chain.relay.close()
    assert client.recv(5000).body == b"first"
    with pytest.raises(RemoteProtocolError, match="closed the connection"):
        client.recv(5000)
    assert len(connection.link.life.requests) == 0


def test_a_notice_that_comes_late_is_the_relays_still(chain, monkeypatch):
    """It is no other handler's receipt, and the server is asked again."""
    monkeypatch.setattr(proofs_module, "PROOF_SECONDS", 0.001)
    connection, _, _ = pipelined(chain)
    numbers = []
    monkeypatch.setattr(connection.link.writer, "send_to_nobody", numbers.append)
    relay, ended = chain.relay, []
    for _ in range(20):
        relay.proofs.ask(connection, SENDER, lambda: ended.append(True))
        wait_until(lambda: not relay.proofs)
    assert (len(ended), len(numbers), relay.proofs.unproved) == (20, proofs_module.MAX_UNPROVED // 2, {connection: 8})
    connection.intake.message(build_disconnect_notice(SENDER, numbers[0]))
    assert not relay.proofs.unproved and not connection.link.writer.receipts.rules.others_seen


def test_more_proofs_than_there_are_numbers_all_end(chain):
    """Those for which there is none at once."""
    connection, _, _ = pipelined(chain)
    ended = []
    for number in range(1500):
        chain.relay.proofs.ask(connection, SENDER, lambda number=number: ended.append(number))
    wait_until(lambda: len(ended) == 1500)
    assert sorted(ended) == list(range(1500))


def test_where_the_server_does_not_say_what_it_took_in_time_has_to_do(chain, monkeypatch):
    """And after some times it is not asked any more."""
    monkeypatch.setattr(proofs_module, "PROOF_SECONDS", 0.01)
    node = chain.node(lambda conn, req: conn.reply_http(req, b"node " + req.body))
    chain.forward_all()
    asked = []
    for transceiver in (chain.api, node):
        monkeypatch.setattr(transceiver.connections[SENDER].link.writer, "send_to_nobody", asked.append)
    client = chain.client()
    for number in range(8):
        client.send("/", body=b"%d" % number)
    assert [client.recv(5000).body for _ in range(8)] == [b"node %d" % number for number in range(8)]
    wait_until(lambda: chain.relay.open == 0)
    assert 0 < len(asked) <= proofs_module.MAX_UNPROVED


def test_an_answer_in_pieces_is_ended_before_the_next(chain):
    """The Node's receipt waits for the last piece, in its outbox too."""
    chain.serve(
        chain.api, lambda conn, req: conn.reply_http(req, "b") if req.path == "/b" else chain.relay.forward(req)
    )

    def pieces(conn, req):
        conn.reply(req, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(100):
            conn.reply(req, b"3\r\n%03d\r\n" % number)
        gevent.sleep(0.02)  # each part in a message of its own
        conn.reply(req, b"0\r\n\r\n")

    chain.node(pieces)
    client = chain.client()
    client.send("/a")
    client.send("/b")
    assert client.recv(5000).body == b"".join(b"%03d" % number for number in range(100))
    assert client.recv(5000).body == b"b"


def test_a_pipelined_request_that_no_node_takes_ends_its_connection(chain):
    """There is nobody left to answer its turn."""
    relay = Relay(chain.api, (LOCAL, 0), (LOCAL, 0), send_timeout=0.05)
    client = chain.client()
    client.send("/a")
    client.send("/b")
    events = chain.api.recv()
    requests = [next(events)[2], next(events)[2]]
    relay.forward(requests[1])
    assert client.recv(20) is None
    chain.api.connections[SENDER].reply_http(requests[0], "a")
    assert client.recv(5000).body == b"a"
    with pytest.raises(GreentxError):
        client.recv(5000)
    relay.close()


def test_handlers_that_are_no_nodes_can_pull(chain):
    """Without receipts the API does not wait for them."""
    relay = Relay(chain.api, (LOCAL, 0), (LOCAL, 0), receipts=False)
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.connect(relay.push_endpoint)
    try:
        client = chain.client()
        client.send("/", body=b"x")
        [_, conn, req] = next(chain.api.recv())
        relay.forward(req, {"WHO": "me"})
        got = parse_request(pull.recv())
        assert (got.sid, got.path, got.body, got.headers["WHO"]) == (req.sid, "/", b"x", "me")
        assert got.headers["RELAY"].endswith(f"  tcp://{LOCAL}:{chain.server.sub_port}")
        assert len(conn.link.life.requests) == relay.open == 0
        conn.send(SENDER, client.conn_id, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny")
        assert client.recv(5000).body == b"y"
    finally:
        context.destroy(0)
        relay.close()


def test_a_node_takes_what_a_plain_socket_pushed():
    """Request.forward over somebody else's PUSH: no receipts, no words for lives."""
    context = zmq.Context()
    push, pub = context.socket(zmq.PUSH), context.socket(zmq.XPUB)
    ports = [one.bind_to_random_port(f"tcp://{LOCAL}") for one in (push, pub)]
    try:
        with Server("plain", ip=LOCAL) as server:
            sub = (LOCAL, server.sub_port)
            with Node("plain", (LOCAL, ports[0]), (LOCAL, ports[1]), sub, rep_port=False, connect_timeout=5) as node:
                Request("plain", "5", "/", {"METHOD": "GET", "PATH": "/", "VERSION": "HTTP/1.1"}).forward(push)
                [_, conn, req] = next(node.recv())
                conn.reply_http(req, "x")
                assert server.recv(5000).startswith(b"plain 1:5, HTTP/1.1 200 OK\r\n")
    finally:
        context.destroy(0)


class Writing:
    """A connection set, as reports see it: its link and the writer of that in one."""

    def __init__(self) -> None:
        self.link = self.writer = self.flow = self
        self.left = set()

    def waiting(self, conn_id: str) -> int:
        return conn_id in self.left


@pytest.fixture
def context():
    """A context of its own."""
    context = Context("reports", lambda: context.close(linger=0))
    yield context
    context.close(linger=0)


def test_a_report_that_could_not_be_sent_is_sent_later(context):
    """What was received comes before what was answered, which the relay forgets."""
    sent, room = [], Event()

    def send(message):
        if room.is_set():
            sent.append(message)
        return room.is_set()

    reports = Reports(context, "n", send)
    connection = Writing()
    reports.received("a")
    reports.answered(connection, "1", "a")
    reports.flush()
    assert not sent
    reports.received("b")
    room.set()
    wait_until(lambda: len(sent) == 2)
    assert sent == [b"+n a b", b"-n a"]
    reports.stop()


def test_no_answer_is_reported_before_its_request_was(context):
    """Where there was room for the second of the two only."""
    sent = []

    def send(message):
        sent.append(message)
        return len(sent) > 1

    reports = Reports(context, "n", send)
    reports.received("a")
    reports.answered(Writing(), "1", "a")
    wait_until(lambda: len(sent) == 3)
    assert sent == [b"+n a", b"+n a", b"-n a"]
    reports.stop()


def test_what_waits_for_its_browser_is_reported_behind_the_rest_and_looked_at_now_and_then(context):
    """By a timer, not in each round of the loop."""
    sent, looks = [], []
    connection = Writing()
    connection.left.add("1")
    waiting = connection.waiting
    connection.waiting = lambda conn_id: (looks.append(conn_id), waiting(conn_id))[1]
    reports = Reports(context, "n", lambda message: not sent.append(message))
    for conn_id in ("1", "2", "1"):
        reports.answered(connection, conn_id, f"t{conn_id}")
    wait_until(lambda: sent == [b"-n t2"])
    looks.clear()
    gevent.sleep(10 * RECEIPT_SECONDS)  # time itself is what counts here
    assert 0 < len(looks) < 100  # two each time; each round of the loop would be thousands
    connection.left.clear()
    wait_until(lambda: len(sent) == 2)
    assert sent[1] == b"-n t1 t1"
    reports.stop()


def test_an_end_with_something_left_to_report_leaves_no_timer(context):
    """It is said once more, and then no more."""
    sent = []
    reports = Reports(context, "n", lambda message: bool(sent.append(message)))
    reports.received("a")
    reports.stop()
    reports.received("b")
    gevent.sleep(5 * RECEIPT_SECONDS)  # what must not happen has no event
    assert sent == [b"+n a"]


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_node_hears_that_its_client_has_gone(chain):
    """The notice reaches the API, and the Node that works on the request."""
    seen = []
    chain.forward_all()
    chain.node(lambda conn, req: seen.append(req))
    client = chain.client()
    client.send("/")
    wait_until(lambda: seen and chain.relay.open == 1)
    client.disconnect()
    wait_until(lambda: len(seen) == 2)
    assert (seen[1].method, seen[1].sid) == ("DISCONNECT", seen[0].sid)
    wait_until(lambda: chain.relay.open == 0)
    for transceiver in (chain.api, chain.nodes[0]):
        assert len(transceiver.connections[SENDER].link.life.requests) == 0


def test_a_node_that_dies_at_work_ends_the_connections_that_wait_for_it(chain):
    """Those of the other Node go on."""
    chain.forward_all()
    began, release = [], Event()
    node = chain.make_node(name="doomed")
    node.start()
    wait_until(lambda: "doomed" in chain.relay.nodes and chain.relay.pusher.peers == 1)
    client = chain.client()
    client.send("/")
    request = next(node.recv())[2]
    assert request.path == "/"
    wait_until(lambda: any(one.node == "doomed" for one in chain.relay.outstanding))
    chain.node(lambda conn, req: (began.append(req), release.wait(5), conn.reply_http(req, "alive")))
    others = [chain.client() for _ in range(4)]
    wait_until(lambda: chain.relay.pusher.peers == 2)
    for other in others:
        other.send("/")
    wait_until(lambda: len(began) == 2)
    for receiver in (node.relay_link.pull, node.relay_link.sub):
        receiver.drop()  # what a kill -9 is, seen from the relay
    with pytest.raises((ConnectionClosed, GreentxError)):
        client.recv(5000)
    wait_until(lambda: chain.relay.nodes == {chain.nodes[0].name})
    assert chain.relay.lost_requests == 3
    wait_until(lambda: sum(other.closed for other in others) == 2)
    release.set()
    assert [other.recv(5000).body for other in others if not other.closed] == [b"alive", b"alive"]
    node.stop(0)


def test_a_node_that_stops_finishes_its_work(chain):
    """Its answers get out, and are taken for answers."""
    chain.forward_all()
    began, release = Event(), Event()
    node = chain.node(lambda conn, req: (began.set(), release.wait(5), conn.reply_http(req, "done")))
    client = chain.client()
    client.send("/")
    assert began.wait(5)
    stopping = gevent.spawn(node.stop, 5)
    gevent.sleep(0.02)  # until it waits in there, which nobody is told
    release.set()
    assert client.recv(5000).body == b"done"
    stopping.join(5)
    wait_until(lambda: not chain.relay.nodes)
    assert (chain.relay.open, chain.relay.lost_requests, client.closed) == (0, 0, False)


def test_an_api_that_starts_anew_finds_its_nodes(chain):
    """They connect again, their ids are valid still; what they work on they answer."""
    release = Event()
    chain.forward_all()
    node = chain.node(lambda conn, req: (req.path == "/slow" and release.wait(5), conn.reply_http(req, "node")))
    client = chain.client()
    client.send("/slow")
    wait_until(lambda: node.connections[SENDER].link.life.requests.heads)
    push, pub = chain.relay.push_endpoint, chain.relay.pub_endpoint
    chain.api.stop(1)
    with chain.make_api() as api:
        relay = Relay(api, push, pub)
        serving = gevent.spawn(api.serve, lambda conn, req: relay.forward(req))
        wait_until(lambda: relay.nodes == {node.name} and relay.pusher.peers)
        other = chain.client()
        other.send("/")
        assert other.recv(5000).body == b"node"
        release.set()
        assert client.recv(5000).body == b"node"
        wait_until(lambda: relay.open == 0)
        api.stop(1)
        serving.join(5)


def test_a_restarted_server_never_gets_an_answer_of_its_former_life(chain, caplog):
    """What a Node works on, and what lies in its queue, is dropped; new requests are served."""
    chain.forward_all()
    seen, release = [], Event()

    def handler(conn, req):
        seen.append(req)
        if req.path == "/old":
            release.wait(10)
        conn.reply_http(req, req.path)

    node = chain.node(handler)
    chain.client()
    old = chain.client()
    old.send("/old")
    wait_until(lambda: seen)
    ports = (chain.server.push_port, chain.server.sub_port)
    held = parse_request(stale_message(chain))
    chain.server.stop()
    connection = node.connections[SENDER]
    wait_until(lambda: not connection.ready and not chain.api.connections[SENDER].ready)
    with Server(SENDER, ip=LOCAL, push_port=ports[0], sub_port=ports[1]) as server:
        wait_until(lambda: connection.ready and chain.api.connections[SENDER].ready)
        client = server.client("http")
        assert client.conn_id == "1"
        client.send("/new")
        assert client.recv(5000).body == b"/new"
        release.set()
        chain.relay.pusher.post(held.encode())
        wait_until(lambda: stale(node) == 1)
        client.send("/new")
        assert client.recv(5000).body == b"/new"
        assert server.unclaimed == server.bad_replies == 0
        assert client.recv(20) is None
        chain.api.stop(1)
        node.stop(1)
    assert "/queued" not in [request.path for request in seen]


def stale(node):
    """How many requests came to a node too late, out of an older life of its server."""
    return sum(one["stale_requests"] for one in node.status()["connections"])


def stale_message(chain):
    """Return a message of the relay's as it is now: for later, when its server has gone."""
    connection = chain.api.connections[SENDER]
    request = Request(SENDER, "1", "/queued", {"METHOD": "GET", "PATH": "/queued", "VERSION": "HTTP/1.1"})
    return chain.relay.message_of(connection, request, "", {})


def test_a_node_that_lost_the_server_for_a_moment_goes_on(chain):
    """The API says that the life it knew is the present one: nothing more is dropped."""
    chain.forward_all()
    node = chain.node(say("node"))
    client = chain.client()
    client.send("/1")
    assert client.recv(5000).status == 200
    connection = node.connections[SENDER]
    connection.link.on_lost()
    client.send("/2")
    assert client.recv(5000).body == b"node: GET /2 "
    assert stale(node) == 0


def test_a_node_holds_a_bounded_number_of_requests(chain, caplog):
    """While it cannot answer."""
    node = chain.node(say("node"))
    connection = node.connections[SENDER]
    connection.link.writer.ready.clear()
    handed = node.relay_link.handed_to(connection)
    for number in range(MAX_HELD + 3):
        handed.accept(Request(SENDER, str(number), "/", {"METHOD": "GET"}), "life", "")
    assert (len(handed.held), stale(node)) == (MAX_HELD, 3)
    handed.held.clear()
    connection.link.writer.ready.set()


# -- several servers ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answered_by_the_node(chain, sender):
    """A server that attaches to the API, and one of whose requests the Node has answered."""
    with Server(sender, ip=LOCAL, connect=(LOCAL, chain.api.rep_port)) as server:
        client = server.client("http")
        client.send("/x")
        assert client.recv(5000).body == b"node: GET /x "
        yield


def test_requests_of_another_server_of_the_api_are_answered_there(chain):
    """A test that attaches to the API sees the whole chain; the Node learns from the request where to answer."""
    chain.forward_all()
    node = chain.node(say("node"))
    with answered_by_the_node(chain, "other"):
        assert set(node.connections) == {SENDER, "other"}
    connection = node.connections["other"]
    wait_until(lambda: not connection.ready)
    connection.link.warn_not_ready()
    wait_until(lambda: set(node.connections) == {SENDER})
    client = chain.client()
    client.send("/y")
    assert client.recv(5000).body == b"node: GET /y "


def test_a_server_can_attach_to_api_and_node(chain):
    """Both pull from it; what it hands to the API goes on to the Node, which answers either way."""
    chain.forward_all({"VIA": "api"})
    node = chain.node(
        lambda conn, req: conn.reply_http(req, req.headers.get("VIA", "direct")), rep_port=0, rep_ip=LOCAL
    )
    handlers = [(LOCAL, chain.api.rep_port), f"{LOCAL}:{node.rep_port}"]
    with Server("test", ip=LOCAL, connect=[f"{LOCAL}:{handlers[0][1]}", handlers[1]]) as server:
        answers = []
        for _ in range(6):
            client = server.client("http")
            client.send("/")
            answers.append(client.recv(5000).body)
        assert sorted(answers) == [b"api"] * 3 + [b"direct"] * 3


def test_a_connection_set_of_the_application_is_not_taken_for_one_that_the_node_made(chain):
    """It has the same name as one that the Node made, and that was removed since: the Node does not remove it too."""
    chain.forward_all()
    node = chain.node(say("node"))
    with answered_by_the_node(chain, "other"):
        pass
    node.remove_connection("other")
    own = node.add_connection("other", None, (LOCAL, 1))
    own.link.warn_not_ready()
    # Another one that the Node made and whose server has gone is removed: then the first would have been, too.
    with answered_by_the_node(chain, "another"):
        pass
    made = node.connections["another"]
    wait_until(lambda: not made.ready)
    made.link.warn_not_ready()
    wait_until(lambda: "another" not in node.connections)
    assert node.connections["other"] is own


# -- WebSockets and JSON sockets ---------------------------------------------------------------------------------------


def test_websocket_events_are_handed_on_and_answered(chain):
    """The API runs the protocol, compression included; the Node gets messages and ends."""
    events = []

    def handler(conn, req):
        events.append((req.method, req.opcode, req.body, req.close_code))
        if req.method == "WEBSOCKET":
            conn.reply_websocket(req, b"echo " + req.body, req.opcode)

    chain.forward_all()
    node = chain.node(handler)
    client = chain.client("websocket")
    client.handshake("/chat", deflate=True)
    client.send("a" * 2000)
    assert client.recv(5000).payload == b"echo " + b"a" * 2000
    client.send(b"\xff")
    frame = client.recv(5000)
    assert (frame.opcode, frame.payload) == (2, b"echo \xff")
    assert list(node.websockets) == [(SENDER, client.conn_id)]
    assert node.broadcast("all") == 1
    assert client.recv(5000).payload == b"all"
    client.close(4000, "bye")
    wait_until(lambda: len(events) == 4)
    assert [event[0] for event in events] == ["WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET", "WEBSOCKET_CLOSE"]
    assert events[3][3] == 4000
    assert not len(node.websockets)


def test_all_nodes_hear_of_the_end_of_a_websocket(chain):
    """Its messages went to both, in turn; a browser that vanishes ends it on both."""
    ended = []

    def talk(ws):
        for message in ws:
            ws.send(f"{message}!")
        ended.append(ws.close_code)

    chain.forward_all()
    nodes = [chain.node(websocket=talk) for _ in range(2)]
    client = chain.client("websocket")
    client.handshake("/")
    for text in ("a", "b", "c"):
        client.send(text)
        assert client.recv(5000).payload == text.encode() + b"!"
    assert [len(node.websockets) for node in nodes] == [1, 1]
    client.disconnect()
    wait_until(lambda: ended == [1006, 1006])
    assert [len(node.websockets) for node in nodes] == [0, 0]


def test_a_node_can_close_a_websocket(chain):
    """The client answers its close frame; then the API hangs up and both forget it."""

    def talk(ws):
        ws.receive()
        ws.close(4001, "enough")

    chain.forward_all()
    node = chain.node(websocket=talk)
    client = chain.client("websocket")
    client.handshake("/")
    client.send("x")
    frame = client.recv(5000)
    assert (frame.opcode, client.close_code) == (8, 4001)
    wait_until(lambda: not len(node.websockets) and not len(chain.api.websockets) and client.closed)


def test_a_node_neither_pings_nor_ends_the_websockets_of_the_api(chain):
    """Its end is told to its application only."""
    events = []
    chain.forward_all()
    node = chain.node(lambda conn, req: events.append(req.method), ping_timeout=0.05)
    client = chain.client("websocket")
    client.handshake("/")
    client.send("x")
    wait_until(lambda: len(events) == 2)
    gevent.sleep(0.2)  # what must not happen has no event
    assert (client.pings, len(node.websockets)) == (0, 1)
    node.stop(1)
    assert client.recv(50) is None
    assert not client.closed
    assert events[-1] == "WEBSOCKET_CLOSE"


def test_websockets_of_an_api_that_started_anew_are_ended(chain):
    """Their protocol was run by the one that has gone."""
    ended = []
    chain.forward_all()
    node = chain.node(lambda conn, req: ended.append(req.close_reason) if req.method == "WEBSOCKET_CLOSE" else None)
    link = node.relay_link
    client = chain.client("websocket")
    client.handshake("/")
    wait_until(lambda: len(node.websockets) == 1)
    link.on_told(Told("another"))
    wait_until(lambda: ended == ["the API restarted"])


def test_json_sockets_are_handed_on(chain):
    """Their messages are answered as they are."""
    chain.forward_all()
    chain.node(lambda conn, req: conn.reply_json(req, {"got": req.data}))
    client = chain.client("mongrel2")
    headers = {"METHOD": "JSON", "VERSION": None, "URI": None, "host": None}
    client.send("@chat", headers, b'{"a":1}')
    assert client.recv(5000).body == b'{"got": {"a": 1}}'


def test_credits_reach_the_node(chain):
    """With flow control a long answer needs them; the server sends them to the API."""
    chain.forward_all()
    body = b"x" * 300_000
    chain.node(lambda conn, req: conn.reply_http(req, body))
    client = chain.client("mongrel2")
    client.send("/", {"DOWNLOAD_CREDITS": "102400"})
    size = 0
    while size < len(body):
        piece = client.recv(5000).body
        assert len(piece) <= 102400
        size += len(piece)
        notice = {"METHOD": "JSON", "DOWNLOAD_CREDITS": str(len(piece))}
        chain.server.send(build_request(SENDER, client.conn_id, "@*", notice, b'{"type":"credits"}'))


# -- topics ------------------------------------------------------------------------------------------------------------


def test_what_is_published_reaches_those_who_subscribed(chain):
    """To exactly that topic, in order; str and bytes."""
    heard = []
    nodes = [chain.node(), chain.node()]
    nodes[0].subscribe("news", lambda topic, message: heard.append((0, topic, message)))
    nodes[0].subscribe(b"\xff", lambda topic, message: heard.append((0, topic, message)))
    nodes[1].subscribe("newspaper", lambda topic, message: heard.append((1, topic, message)))
    wait_until(lambda: chain.relay.topics == {"news", "\\xff", "newspaper"})
    chain.relay.publish("news", "a")
    chain.relay.publish("newspaper", b"\x00:,")
    chain.relay.publish("new", "nobody")
    chain.relay.publish(b"\xff", "c")
    chain.relay.publish("news", b"")
    wait_until(lambda: len(heard) == 4)
    assert [item for item in heard if item[0] == 0] == [(0, "news", b"a"), (0, "\\xff", b"c"), (0, "news", b"")]
    assert [item for item in heard if item[0] == 1] == [(1, "newspaper", b"\x00:,")]


def test_a_subscriber_that_fails_is_logged(chain, caplog):
    """The next message is handled, by the others on the same topic too."""
    heard = []

    def fails(topic, message):
        raise ValueError("no")

    node = chain.node()
    node.subscribe("t", fails)
    node.subscribe("t", lambda topic, message: heard.append(message))
    wait_until(lambda: chain.relay.topics)
    chain.relay.publish("t", "1")
    chain.relay.publish("t", "2")
    wait_until(lambda: heard == [b"1", b"2"])
    assert caplog.text.count("a subscriber to b't' failed") == 2


def test_a_node_may_subscribe_before_it_starts(chain):
    """It subscribes each time it starts."""
    heard = []
    node = chain.make_node()
    node.subscribe("t", lambda topic, message: heard.append(message))
    for _ in range(2):
        with node:
            wait_until(lambda: "t" in chain.relay.topics)
            chain.relay.publish("t", "x")
            wait_until(lambda: heard.pop() if heard else False)
        wait_until(lambda: not chain.relay.topics)


def test_a_subscriber_may_stop_its_own_node(chain):
    """It is not killed in the middle of that, and the other subscribers hear of the message as well."""
    stopped, heard = Event(), Event()
    node = chain.node()
    node.subscribe("shutdown", lambda *_: (node.stop(1), stopped.set()))
    node.subscribe("shutdown", lambda *_: heard.set())
    wait_until(lambda: chain.relay.topics)
    chain.relay.publish("shutdown", "")
    assert stopped.wait(5) and heard.wait(5)
    assert not node.started
    wait_until(lambda: not chain.relay.nodes)


def test_a_subscriber_may_stop_its_own_node_and_start_it_again(chain):
    """Each message that is published then is heard, once."""
    heard = []

    def again(_topic, message):
        heard.append(message)
        if message == b"again":
            node.stop(1)
            node.start()

    node = chain.node()
    node.subscribe("t", again)
    wait_until(lambda: chain.relay.topics)
    chain.relay.publish("t", "again")
    wait_until(lambda: heard and node.started)
    wait_until(lambda: chain.relay.publish("t", "x") or heard[-1] == b"x")
    wait_until(lambda: chain.relay.publish("t", "y") or heard[-1] == b"y")
    assert heard[0] == b"again" and set(heard[1:]) == {b"x", b"y"}


def test_what_was_published_and_not_heard_is_forgotten_with_the_end():
    """A Node that starts again does not hand out the news of its former life."""
    heard = []
    topics = Topics("node")
    topics.add(b"t", lambda _topic, message: (heard.append(message), topics.stop()))
    for _ in range(2):
        assert topics.put(b"t", b"first") and topics.put(b"t", b"forgotten")
        running = gevent.spawn(topics.run)
        running.join(5)
        assert running.dead
    assert heard == [b"first", b"first"]


def test_what_was_published_waits_within_a_bound_in_bytes():
    """Large messages on top are dropped; when those before them were heard there is room again."""
    heard = []
    topics = Topics("node")
    topics.add(b"t", lambda _topic, message: (heard.append(len(message)), topics.stop()))
    kept = [topics.put(b"t", bytes(1024 * 1024)) for _ in range(100)]
    assert kept == [True] * 15 + [False] * 85
    running = gevent.spawn(topics.run)
    running.join(5)
    assert heard == [1024 * 1024]
    assert topics.put(b"t", bytes(1024 * 1024))


# -- bad input, life ---------------------------------------------------------------------------------------------------


def test_bad_messages_are_counted_and_the_next_one_is_served(chain, caplog):
    """On either socket."""
    chain.forward_all()
    node = chain.node(say("node"))
    chain.relay.pusher.post(b"garbage")
    chain.relay.pusher.post(build_request("stranger", 1, "/", {"METHOD": "GET"}))
    chain.relay.pusher.post(build_request("stranger", 1, "/", {"METHOD": "GET", "RELAY": "a b nowhere"}))
    for message in (b"Ngarbage", b"@%b not json" % node.name.encode(), b"@%b {}" % node.name.encode()):
        chain.relay.publisher.send(message)
    wait_until(lambda: node.relay_link.bad_messages == 6)
    assert node.status()["node"]["bad_messages"] == 6
    client = chain.client()
    client.send("/")
    assert client.recv(5000).body == b"node: GET / "


HOSTILE_WORDS = [
    b"[" * 100_000,
    b"1",
    b"null",
    b'["prove"]',
    b'{"prove": 1}',
    b'{"prove": ["front"]}',
    b'{"prove": [["front"], "1"]}',
    b'{"prove": ["front", []]}',
    b'{"prove": ["front", -1]}',
    b'{"prove": ["front", 1e999]}',
    b'{"prove": ["front", "1x"]}',
    b'{"prove": ["front", "' + b"9" * 5000 + b'"]}',
    b'{"relay": 1, "lives": {}, "number": ""}',
    b'{"relay": "r", "lives": [], "number": ""}',
]
HOSTILE_ENDS = [b"", b"[" * 100_000, b"[]", b"{}", b'{"code": 1e999, "reason": ""}', b'{"code": true, "reason": ""}']
HOSTILE_ENDS += [b'{"code": 1000}', b'{"code": 1000, "reason": 1}', b'{"code": 70000, "reason": ""}']
HOSTILE_TOPICS = [b"T", b"T:", b"Tx:t,", b"T-1:t,", b"T5:t,", b"T1:t;", b"T" + b"9" * 5000 + b":t,", b"T\xb2:t,"]


def test_a_hostile_relay_ends_its_own_messages_only(chain, caplog):
    """Whatever it sends is counted, without a traceback; the next message is served."""
    chain.forward_all()
    node = chain.node(say("node"))
    node.subscribe("t", lambda topic, message: None)
    own = own_topic(node.name)
    published = [own + word for word in HOSTILE_WORDS] + HOSTILE_TOPICS
    end = {"METHOD": "WEBSOCKET_CLOSE"}
    published += [b"N" + build_request(SENDER, 1, "/", end, body) for body in HOSTILE_ENDS]
    handed_on = [
        build_request(SENDER, 1, "/", {"METHOD": "WEBSOCKET", "RELAY": "a b c"}, b"text"),
        build_request(SENDER, 1, "/", {"METHOD": "WEBSOCKET", "FLAGS": "0x1", "RELAY": "a b c"}, b"text"),
        build_request(SENDER, 1, "@a", {"METHOD": "JSON", "PATH": "@a", "RELAY": "a b c"}, b"[" * 100_000),
        b"%b 1 / 34:6:METHOD,3:GET,5:RELAY,5:a b c,1:n,1:\xff#}0:," % SENDER.encode(),
    ]
    for message in published:
        chain.relay.publisher.send(message)
    for message in handed_on:
        chain.relay.pusher.post(message)
    # Not subscribed to, so it never comes: the socket compares what a message begins with.
    unheard = sum(not message.startswith((own, b"N", b"T1:t,")) for message in published)
    wait_until(lambda: node.relay_link.bad_messages >= len(published) + len(handed_on) - unheard)
    client = chain.client()
    client.send("/")
    assert client.recv(5000).body == b"node: GET / "
    assert not [record for record in caplog.records if record.exc_info]
    assert max(len(record.getMessage()) for record in caplog.records if "bad message" in record.msg) < 1200


def test_nonsense_from_a_subscriber_is_logged(chain, caplog):
    """The relay goes on."""
    chain.forward_all()
    chain.node(say("node"))
    context = zmq.Context()
    try:
        sub = context.socket(zmq.XSUB)
        sub.connect(chain.relay.pub_endpoint)
        for message in (b"nonsense", b"+", b"-x 1", b"+x nothing", b"\x01other"):
            sub.send(message)
        wait_until(lambda: "means nothing here" in caplog.text)
    finally:
        context.destroy(0)
    client = chain.client()
    client.send("/")
    assert client.recv(5000).body == b"node: GET / "


def test_a_port_in_use_is_named_and_nothing_is_left_open(chain):
    """Either of the two."""
    taken = endpoint_address(chain.relay.push_endpoint)
    for addresses in ((taken, (LOCAL, 0)), ((LOCAL, 0), taken)):
        with pytest.raises(BindError, match=str(taken[1])):
            Relay(chain.api, *addresses)
    assert chain.api.shared().extensions == [chain.relay]


def test_a_relay_needs_a_running_transceiver(chain):
    """And ends with it."""
    api = chain.make_api()
    with pytest.raises(TransportError, match="not running"):
        Relay(api, (LOCAL, 0), (LOCAL, 0))
    with api:
        relay = Relay(api, (LOCAL, 0), (LOCAL, 0))
    assert "closed" in repr(relay)
    with pytest.raises(TransportError, match="closed"):
        relay.publish("t", "x")
    relay.close()


def test_a_closed_relay_lets_the_api_go_on(chain):
    """What it handed on is the Nodes'; the next request is answered here."""
    release = Event()
    chain.node(lambda conn, req: (release.wait(5), conn.reply_http(req, "node")))
    with Relay(chain.api, (LOCAL, 0), (LOCAL, 0)):
        pass
    client = chain.client()
    client.send("/")
    events = chain.api.recv()
    chain.relay.forward(next(events)[2])
    wait_until(lambda: chain.nodes[0].connections[SENDER].link.life.requests.heads)
    chain.relay.close()
    with pytest.raises(TransportError, match="closed"):
        chain.relay.forward(Request(SENDER, "1", "/", {"METHOD": "GET"}))
    release.set()
    assert client.recv(5000).body == b"node"
    client.send("/")
    [_, conn, req] = next(events)
    conn.reply_http(req, "here")
    assert client.recv(5000).body == b"here"


def test_names_are_checked():
    """A Node's name travels in messages."""
    for name in ("a b", "", "a,b"):
        with pytest.raises(LocalProtocolError):
            Node("s", (LOCAL, 1), (LOCAL, 2), (LOCAL, 3), name=name)
    node = Node("s", (LOCAL, 1), (LOCAL, 2), (LOCAL, 3), name="n-1")
    assert repr(node) == "<Transceiver s: stopped, 0 connections, 0 WebSockets, node n-1>"


def test_nodes_come_and_go_without_leaving_anything(chain):
    """Also while the relay, or the server, is not there."""
    for _ in range(5):
        with chain.make_node():
            pass
    chain.relay.close()
    with chain.make_node(connect_timeout=None):
        gevent.sleep(0.01)  # it tries to connect for a while
    with Node("s", (LOCAL, 1), (LOCAL, 1), (LOCAL, 1), rep_port=False):
        gevent.sleep(0.01)  # it tries to connect for a while


def test_a_relay_forgets_connection_sets_that_were_removed(chain):
    """Neither it nor a Node holds what has gone."""
    chain.forward_all()
    node = chain.node(say("node"))
    with answered_by_the_node(chain, "other"):
        pass
    gone = weakref.ref(node.connections["other"])
    node.remove_connection("other")
    wait_until(lambda: "other" not in chain.api.connections)
    client = chain.client()
    client.send("/y")  # loops over events hold the last one
    assert client.recv(5000).body == b"node: GET /y "
    wait_until(lambda: gc.collect() is not None and gone() is None)
    assert not chain.relay.proofs.unproved
    wait_until(lambda: not chain.relay.open)
