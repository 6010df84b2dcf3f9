"""API -> Node: requests are forwarded, answered directly and in order; ends, restarts and deaths are noticed."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import gevent
import pytest
import zmq.green as zmq
from free_ports import Server
from gevent.event import Event
from relay_chain import LOCAL, SENDER, BareNode, Chain, delayed, say, wait_until

from greentx import GreentxError
from greentx.errors import (
    BindError,
    ConnectTimeout,
    LocalProtocolError,
    RemoteProtocolError,
    SendTimeout,
    TransportError,
)
from greentx.protocol.flow import NOBODY, NUMBERS
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_disconnect_notice, build_request
from greentx.relay import Node, Relay
from greentx.relay import proofs as proofs_module
from greentx.relay.messages import MAX_BATCH, MAX_SERVERS, join
from greentx.relay.topics import Topics
from greentx.standin.headers import build_headers
from greentx.transport.endpoints import endpoint_address


@pytest.fixture
def chain():
    """A chain without Nodes."""
    with contextlib.ExitStack() as stack:
        yield Chain(stack)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_node_answers_the_server_directly(chain):
    """What the API hands on unchanged, the client gets from the Node."""
    chain.forward_all()
    chain.node(say("node"))
    client = chain.client()
    client.send("/a?x=1", {"Cookie": ["a=b", "c=d"]}, b"body")
    assert client.recv(5000).body == b"node: POST /a body"
    wait_until(lambda: chain.relay.open == 0)
    assert chain.relay.status()["forwarded"] == 1
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


@pytest.mark.parametrize("name", ["user_id", "User", "X-USER", "1A", "", "METHOD", "REMOTE_ADDR", "QUERY", 7])
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


def test_a_request_waits_for_a_node_to_come(chain):
    """The order of starting does not matter."""
    chain.forward_all()
    client = chain.client()
    client.send("/")
    wait_until(lambda: chain.relay.forwarding.waiting == 1)
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


def test_what_has_begun_to_be_answered_cannot_be_handed_on(chain):
    """Whether its turn has come or not; it can be ended here."""
    chain.node(say("node"))
    client = chain.client()
    client.send("/1")
    client.send("/2")
    events = chain.api.recv()
    requests = [next(events)[2], next(events)[2]]
    connection = chain.api.connections[SENDER]
    for request in requests:
        connection.reply(request, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        with pytest.raises(LocalProtocolError, match=r"has begun here.*end it here, or forward"):
            chain.relay.forward(request)
    for request in requests:
        connection.reply(request, b"whole")
    assert [client.recv(5000).body for _ in range(2)] == [b"whole"] * 2


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
    asked = []
    connection.link.writer.send_to_nobody = asked.append
    chain.relay.forward(request)
    wait_until(lambda: asked)
    chain.relay.close()
    assert client.recv(5000).body == b"first"
    with pytest.raises(RemoteProtocolError, match="closed the connection"):
        client.recv(5000)
    assert len(connection.link.life.requests) == 0


@pytest.mark.parametrize("how", ["killed unbegun", "has its turn later"])
def test_what_has_its_turn_as_the_relay_is_closed_has_an_end(chain, how):
    """Its connection is closed: what was answered before it may be under way."""
    client = chain.client()
    client.send("/a")
    client.send("/b")
    events = chain.api.recv()
    first, second = next(events)[2], next(events)[2]
    connection = chain.api.connections[SENDER]
    chain.relay.forward(second)
    ends = [lambda: connection.reply_http(first, "first"), chain.relay.close]
    for end in ends if how == "killed unbegun" else reversed(ends):
        end()
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
        relay.proofs.ask(connection, lambda: ended.append(True))
        wait_until(lambda: not relay.proofs)
    assert (len(ended), len(numbers), relay.proofs.unproved) == (20, proofs_module.MAX_UNPROVED // 2, {connection: 8})
    connection.intake.message(build_disconnect_notice(SENDER, numbers[0]))
    assert not relay.proofs.unproved and not connection.link.writer.receipts.rules.others_seen


def test_more_proofs_than_there_are_numbers_all_end(chain):
    """Those for which there is none at once."""
    connection, _, _ = pipelined(chain)
    ended = []
    for number in range(1500):
        chain.relay.proofs.ask(connection, lambda number=number: ended.append(number))
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
    wait_until(lambda: not len(chain.relay.nodes))
    assert (chain.relay.open, chain.relay.status()["closed"], client.closed) == (0, 0, False)


def stale(node):
    """How many requests came to a node too late, out of an older life of its server."""
    return sum(one["stale_requests"] for one in node.status()["connections"])


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
    """A test that attaches to the API sees the whole chain; the Node hears from the relay where to answer."""
    chain.forward_all()
    node = chain.node(say("node"))
    with answered_by_the_node(chain, "other"):
        assert set(node.connections) == {SENDER, "other"}
    wait_until(lambda: set(node.connections) == {SENDER})
    client = chain.client()
    client.send("/y")
    assert client.recv(5000).body == b"node: GET /y "


def answers_of(server, count):
    """Ask a server by so many new clients, one after the other, and return what was answered, sorted."""
    bodies = []
    for _ in range(count):
        client = server.client("http")
        client.send("/")
        bodies.append(client.recv(5000).body)
    return sorted(bodies)


def node_that_says_which_way(chain):
    """Start a Node that can be attached to, and that answers which way a request came."""
    chain.forward_all({"VIA": "api"})
    return chain.node(
        lambda conn, req: conn.reply_http(req, req.headers.get("VIA", "direct")), rep_port=0, rep_ip=LOCAL
    )


def test_a_server_can_attach_to_api_and_node(chain):
    """Both pull from it; what it hands to the API goes on to the Node, which answers either way."""
    node = node_that_says_which_way(chain)
    handlers = [f"{LOCAL}:{one.rep_port}" for one in (node, chain.api)]
    with Server("test", ip=LOCAL, connect=handlers) as server:
        assert answers_of(server, 6) == [b"api"] * 3 + [b"direct"] * 3


def test_a_server_that_the_relay_has_told_of_can_attach_to_the_node(chain):
    """The Node only answered it until then, and pulls from it as well from now on; what the relay gives it goes on."""
    node = node_that_says_which_way(chain)
    with Server("test", ip=LOCAL, connect=(LOCAL, chain.api.rep_port)) as server:
        assert answers_of(server, 1) == [b"api"]
        wait_until(lambda: not chain.relay.forwarding.open)
        server.connect((LOCAL, node.rep_port))
        assert answers_of(server, 6) == [b"api"] * 3 + [b"direct"] * 3


def test_a_connection_set_of_the_application_stays(chain):
    """Where the API has had a server of that name, and has it no more, the Node removes only what it made itself."""
    chain.forward_all()
    node = chain.node(say("node"))
    own = node.add_connection("other", None, (LOCAL, 1))
    with Server("other", ip=LOCAL, connect=(LOCAL, chain.api.rep_port)) as server:
        server.client("http")
        assert "other" in chain.api.connections
    with answered_by_the_node(chain, "another"):
        pass
    wait_until(lambda: "another" not in node.connections)
    assert node.connections["other"] is own


# -- JSON sockets, credits ---------------------------------------------------------------------------------------------


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
    wait_until(lambda: not len(chain.relay.nodes))


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


def test_a_port_in_use_is_named_and_nothing_is_left_open(chain):
    """Any of the three."""
    taken = endpoint_address(chain.relay.node_endpoint)
    free = (LOCAL, 0)
    for addresses in ((taken, free, free), (free, taken, free), (free, free, taken)):
        with pytest.raises(BindError, match=str(taken[1])):
            Relay(chain.api, *addresses[:2], node_addr=addresses[2])
    assert chain.api.shared().extensions == [chain.relay, chain.relay.sockets]


def test_a_relay_needs_a_running_transceiver(chain):
    """And ends with it."""
    api = chain.make_api()
    with pytest.raises(TransportError, match="not running"):
        Relay(api, pub_addr=(LOCAL, 0))
    with api:
        relay = Relay(api, pub_addr=(LOCAL, 0))
    assert "closed" in repr(relay)
    with pytest.raises(TransportError, match="closed"):
        relay.publish("t", "x")
    relay.close()


def test_a_relay_forgets_connection_sets_that_were_removed(chain):
    """Neither it nor a Node holds what has gone."""
    chain.forward_all()
    node = chain.node(say("node"))
    with answered_by_the_node(chain, "other"):
        gone = [weakref.ref(one.connections["other"]) for one in (chain.api, node)]
    wait_until(lambda: "other" not in chain.api.connections and "other" not in node.connections)
    client = chain.client()
    client.send("/y")  # loops over events hold the last one
    assert client.recv(5000).body == b"node: GET /y "
    wait_until(lambda: gc.collect() is not None and not any(one() for one in gone))
    assert not chain.relay.proofs.unproved
    wait_until(lambda: not chain.relay.open)


def test_names_and_capacities_are_checked():
    """A Node's name travels in messages."""
    for name in ("a b", "", "a,b"):
        with pytest.raises(LocalProtocolError):
            Node((LOCAL, 1), name=name)
    for capacity in (0, -1, 10_000_000):
        with pytest.raises(LocalProtocolError, match=r"capacity is 1 to 1000000"):
            Node((LOCAL, 1), capacity=capacity)
    node = Node((LOCAL, 1), name="n-1")
    assert repr(node) == "<Transceiver n-1: stopped, 0 connections, 0 WebSockets, node n-1>"


def test_nodes_come_and_go_without_leaving_anything(chain):
    """Also while the relay is not there."""
    for _ in range(5):
        with chain.make_node():
            pass
    chain.relay.close()
    with chain.make_node(connect_timeout=None):
        gevent.sleep(0.01)  # it tries to connect for a while
    with Node((LOCAL, 1), rep_port=False) as node:
        assert "is the API running" in node.status()["why"][0]
        with pytest.raises(ConnectTimeout, match="no relay at"):
            node.wait_ready(0.01)


# -- a process that is nothing but a relay -----------------------------------------------------------------------------


def test_a_relay_forwards_all_that_comes(chain):
    """Unchanged; nothing of it is open at the API, and the Node answers the server directly."""
    seen = []
    chain.relay_all()
    chain.node(lambda conn, req: (seen.append(req), conn.reply_http(req, req.body)))
    client = chain.client()
    for number in range(3):
        client.send("/a?x=1", {"Cookie": ["a=b", "c=d"]}, b"%d" % number)
        assert client.recv(5000).body == b"%d" % number
    _, headers = build_headers("/a?x=1", {"Cookie": ["a=b", "c=d"]}, b"0", None)
    assert seen[0].headers["cookie"] == headers["cookie"] and not seen[0].redelivered
    assert len(chain.api.connections[SENDER].link.life.requests) == 0
    wait_until(lambda: chain.relay.open == 0)


def test_pipelined_requests_go_to_one_node_which_orders_them(chain):
    """The relay does not wait for an answer in between."""
    chain.relay_all()
    nodes = []

    def answer(name):
        def handler(conn, req):
            nodes.append(name)
            conn.reply_http(req, req.body)

        return handler

    for name in ("one", "two"):
        chain.node(answer(name))
    client = chain.client()
    for number in range(30):
        client.send("/", body=b"%d" % number)
    assert [client.recv(5000).body for _ in range(30)] == [b"%d" % number for number in range(30)]
    assert len(set(nodes)) == 1


def test_a_browser_connection_stays_with_its_node(chain):
    """And a new one goes to the Node with the fewest open requests for its capacity."""
    chain.relay_all()
    release = Event()
    for name, capacity in (("small", 10), ("large", 30)):
        chain.node(
            lambda conn, req, name=name: (req.path == "/wait" and release.wait(10), conn.reply_http(req, name)),
            capacity=capacity,
            name=name,
        )
    clients = [chain.client() for _ in range(8)]
    for client in clients:
        client.send("/wait")
        wait_until(lambda: not chain.relay.forwarding.waiting)
    wait_until(lambda: chain.relay.open == 8)
    assert {session.name: len(session.open) for session in chain.relay.nodes} == {"small": 2, "large": 6}
    release.set()
    first = [client.recv(5000).body for client in clients]
    for client in clients:
        client.send("/")
    assert [client.recv(5000).body for client in clients] == first


def test_without_a_node_a_request_is_answered_503(chain):
    """After send_timeout; by forward() the API decides."""
    chain.relay.close()
    relay = Relay(chain.api, send_timeout=0.1)
    serving = gevent.spawn(relay.serve)
    client = chain.client()
    client.send("/")
    assert client.recv(5000).status == 503
    assert relay.status()["unavailable"] == 1
    chain.api.stop(1)
    serving.get(timeout=5)
    relay.close()


def test_without_a_node_forward_times_out_and_the_api_can_answer(chain):
    """It blocks its greenlet only, and says that nobody was there."""
    relay = Relay(chain.api, send_timeout=0.1)
    others_ran = Event()

    def handler(conn, req):
        gevent.spawn(others_ran.set)
        try:
            relay.forward(req)
        except SendTimeout as error:
            assert others_ran.is_set()
            conn.reply_http(req, str(error), 503)

    chain.serve(chain.api, handler)
    client = chain.client()
    client.send("/")
    response = client.recv(10_000)
    assert (response.status, "within 0.1 s" in response.body.decode()) == (503, True)
    relay.close()


def test_plain_handlers_get_what_comes_while_no_node_is_there(chain):
    """Mongrel2's own message; once a Node is there, that gets it."""
    relay = Relay(chain.api, (LOCAL, 0), send_timeout=5)
    serving = gevent.spawn(relay.serve)
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.connect(relay.push_endpoint)
    try:
        client = chain.client()
        client.send("/a", {"Cookie": "x=y"}, b"x")
        got = parse_request(pull.recv())
        assert (got.conn_id, got.path, got.body, got.headers["cookie"]) == (client.conn_id, "/a", b"x", "x=y")
        chain.api.conn.send(SENDER, client.conn_id, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny")
        assert client.recv(5000).body == b"y"
        assert relay.open == 0
        with Node(relay.node_endpoint, rep_port=False, connect_timeout=5) as node:
            answering = gevent.spawn(node.serve, say("node"))
            wait_until(lambda: any(session.ready for session in relay.nodes))
            client.send("/b")
            assert client.recv(5000).body == b"node: GET /b "
            node.stop(2)
            answering.get(timeout=5)
    finally:
        context.destroy(0)
        chain.api.stop(2)
        serving.get(timeout=5)


def test_plain_handlers_get_what_no_node_can_answer(chain):
    """A Node that is there without having reached the server is none; one that has no room is. All kinds alike."""
    chain.relay.close()
    chain.relay = Relay(chain.api, (LOCAL, 0), send_timeout=5)
    chain.relay_all()
    context = zmq.Context()
    chain.stack.callback(context.destroy, 0)
    pull = context.socket(zmq.PULL)
    pull.connect(chain.relay.push_endpoint)
    bare = BareNode(chain)
    [session] = chain.relay.nodes
    json = {"METHOD": "JSON", "VERSION": None, "URI": None, "host": None}

    def send_http():
        chain.client().send("/", body=b"http")

    def send_json():
        chain.client("mongrel2").send("@chat", json, b'{"x": 1}')

    bare.say(b"unready %b\n" % bare.word)
    wait_until(lambda: not session.ready)
    # One after the other: a request waits for whoever pulls, and may be overtaken by what does not.
    for send, body in ((send_http, b"http"), (send_json, b'{"x": 1}')):
        send()
        assert pull.poll(10_000)
        assert parse_request(pull.recv()).body == body
    bare.say(b"ready %b\n" % bare.word)
    wait_until(lambda: session.ready)
    session.leaving = True
    send_http()
    send_json()
    wait_until(lambda: chain.relay.status()["waiting"] == 1)
    assert not pull.poll(200)


def test_more_than_may_wait_is_answered_503_at_once(chain, monkeypatch):
    """The others wait on, and are answered."""
    monkeypatch.setattr("greentx.relay.waiting.MAX_WAITING", 2)
    chain.relay_all()
    clients = [chain.client() for _ in range(4)]
    for client in clients:
        client.send("/")
    assert [client.recv(5000).status for client in clients[2:]] == [503, 503]
    chain.node(say("node"))
    assert [client.recv(5000).status for client in clients[:2]] == [200, 200]
    assert chain.relay.status()["unavailable"] == 2


def test_status_tells_of_each_node(chain):
    """Its name, its load, whether it leaves; the same comes with the Transceiver's, and so with STATUS."""
    chain.relay_all()
    release = Event()
    node = chain.node(lambda conn, req: (release.wait(5), conn.reply_http(req, "x")), name="n", capacity=7, what="test")
    client = chain.client()
    client.send("/")
    wait_until(lambda: node.status()["node"]["open"] == 1)
    wait_until(lambda: chain.relay.status()["nodes"][0]["unreceived"] == 0)
    told = chain.api.status()["relay"]
    [one] = told["nodes"]
    session = next(iter(chain.relay.nodes))
    assert {name: one[name] for name in ("name", "session", "what", "capacity", "open", "leaving", "ready")} == {
        "name": "n",
        "session": session.word,
        "what": "test",
        "capacity": 7,
        "open": 1,
        "leaving": False,
        "ready": True,
    }
    assert (one["queued_bytes"], one["websockets"]) == (0, 0) and 0 <= one["last_heard_s"] < 5
    assert (told["open"], told["waiting"], told["forwarded"], told["connections"]) == (1, 0, 1, 1)
    mine = node.status()["node"]
    assert (mine["name"], mine["capacity"], mine["connected"], mine["relay"]) == (
        "n",
        7,
        True,
        chain.relay.node_endpoint,
    )
    release.set()
    assert client.recv(5000).body == b"x"


# -- ends of sessions, of servers, of relays ---------------------------------------------------------------------------


def unplug(chain, node):
    """End the connection of a Node as a broken network does; it connects again by itself."""
    session = next(one for one in chain.relay.nodes if one.name == node.name)
    chain.relay.nodes.send(session, b"over")
    wait_until(lambda: session.over)


def test_with_a_session_all_ends_that_it_was_given(chain):
    """The Node's answer goes nowhere; the relay gives the request to another, which is told."""
    chain.relay_all()
    began, release = Event(), Event()
    first = chain.node(lambda conn, req: (began.set(), release.wait(10), conn.reply_http(req, "first")), name="first")
    client = chain.client()
    client.send("/")
    assert began.wait(5)
    seen = []
    chain.node(lambda conn, req: (seen.append(req.redelivered), conn.reply_http(req, "second")), name="second")
    unplug(chain, first)
    release.set()
    assert client.recv(10_000).body == b"second"
    assert seen == [True]
    assert client.recv(50) is None
    wait_until(lambda: {session.name for session in chain.relay.nodes if session.ready} == {"first", "second"})
    assert chain.relay.status()["retried"] == 1


def test_a_post_whose_node_has_gone_is_answered_502(chain):
    """Nobody knows what the Node did; the connection is closed behind that."""
    chain.relay_all()
    began, release = Event(), Event()
    node = chain.node(lambda conn, req: (began.set(), release.wait(10), conn.reply_http(req, "late")))
    client = chain.client()
    client.send("/", body=b"x")
    assert began.wait(5)
    wait_until(lambda: chain.relay.status()["nodes"][0]["unreceived"] == 0)
    unplug(chain, node)
    assert client.recv(10_000).status == 502
    release.set()
    wait_until(lambda: client.closed)
    assert chain.relay.status()["bad_gateway"] == 1


def test_what_a_node_gives_back_goes_on_whole(chain):
    """Also a POST that the Node says afterwards to have received, with all that came in that round."""
    chain.relay_all()
    bare = BareNode(chain)
    client = chain.client()
    client.send("/", body=b"whole")
    number = bare.request()
    bare.say(b"unready %b\n" % bare.word)
    bare.say(b"back %b\n" % number)
    bare.say(b"received 1000 1000\n")
    wait_until(lambda: not any(session.lane.unreceived for session in chain.relay.nodes))
    chain.node(say("node"))
    assert client.recv(5000).body == b"node: POST / whole"


@pytest.mark.parametrize("report", [b"begun %b 9\n", b"done %b 9\n"])
def test_what_a_node_has_begun_it_has_received(chain, report):
    """Whether it says so or not: a POST goes to no other one then."""
    chain.relay_all()
    bare = BareNode(chain)
    chain.api.connections[SENDER].link.writer.flow.control.announce(True)
    client = chain.client()
    client.send("/", body=b"x")
    bare.say(report % bare.request())
    bare.say(b"clock 7\n")
    bare.next(b"clock")
    [bound] = chain.relay.sticky
    entries = [*bound.open, *(entry for entry, _, _ in bound.written.answers)]
    assert [(entry.received, entry.message) for entry in entries] == [(True, b"")]


def test_other_methods_can_be_called_safe(chain):
    """As the application knows them to be."""
    relay = Relay(chain.api, send_timeout=5, retry=("PUT", "POST"))
    assert [relay.forwarding.is_safe(method) for method in ("GET", "POST")] == [False, True]
    relay.close()


def test_a_relay_that_is_closed_closes_the_connections_of_what_is_open(chain):
    """It answers none: the Nodes live, and what they answer yet would be taken for the next answer."""
    release = Event()

    def handler(conn, req):
        if req.path == "/half":
            conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        release.wait(10)

    chain.forward_all()
    chain.node(handler)
    clients = [chain.client() for _ in range(2)]
    clients[0].send("/none")
    clients[1].send("/half")
    wait_until(lambda: sum(entry.begun for one in chain.relay.nodes for entry in one.open.values()) == 1)
    wait_until(lambda: chain.relay.open == 2)
    chain.relay.close()
    for client in clients:
        with pytest.raises(RemoteProtocolError):
            client.recv(5000)
    assert chain.relay.status()["bad_gateway"] == 0
    release.set()
    with pytest.raises(TransportError, match="closed"):
        chain.relay.forward(Request(SENDER, "1", "/", {"METHOD": "GET"}))


@pytest.mark.parametrize("push_addr", [None, (LOCAL, 0)])
def test_a_relay_that_is_closed_serves_no_more(chain, push_addr):
    """serve() ends; what comes is answered 503 at once, until somebody else reads it."""
    relay = Relay(chain.api, push_addr, send_timeout=None)
    serving = gevent.spawn(relay.serve)
    gevent.sleep(0)  # it begins
    waits = chain.client()
    if push_addr is None:
        waits.send("/")
        wait_until(lambda: relay.status()["waiting"] == 1)
    relay.close()
    serving.get(timeout=5)
    if push_addr is None:
        assert waits.recv(5000).status == 503
    for body in (b"", b"x", b"", b"x"):
        client = chain.client()
        client.send("/", body=body)
        assert client.recv(5000).status == 503
    assert relay.status()["waiting"] == 0
    chain.serve(chain.api, say("api"))
    gevent.sleep(0)  # it begins
    for body in (b"", b"x"):
        client = chain.client()
        client.send("/", body=body)
        assert client.recv(5000).body.startswith(b"api: ")


def test_a_relay_that_is_closed_lets_no_websocket_in(chain):
    """Nobody would read it, until somebody else does."""
    serving = gevent.spawn(chain.relay.serve)
    gevent.sleep(0)  # it begins
    chain.relay.close()
    serving.get(timeout=5)
    for _ in range(2):
        with pytest.raises(GreentxError, match="503"):
            chain.client("websocket").handshake("/")
    assert not len(chain.api.websockets)
    chain.serve(chain.api, say("api"), websocket=lambda ws: ws.send("here"))
    gevent.sleep(0)  # it begins
    client = chain.client("websocket")
    client.handshake("/")
    assert client.recv(5000).payload == b"here"


def test_a_relay_may_follow_one_that_was_closed(chain):
    """On the same Transceiver: the end of the first one takes nothing from the second."""
    serving = gevent.spawn(chain.relay.serve)
    gevent.sleep(0)  # it begins
    chain.relay.close()
    chain.relay = Relay(chain.api, send_timeout=5)
    chain.relay_all()
    chain.node(say("node"))
    serving.get(timeout=5)
    client = chain.client()
    client.send("/")
    assert client.recv(5000).body == b"node: GET / "


def is_bound(chain, endpoint):
    """Try to give the chain a new relay there; return whether that was possible."""
    try:
        chain.relay = Relay(chain.api, node_addr=endpoint, send_timeout=5)
    except BindError:
        return False
    return True


def test_a_node_finds_a_relay_that_was_started_anew(chain):
    """It connects again by itself; what it had of the former one is over."""
    chain.forward_all()
    node = chain.node(say("node"))
    endpoint = chain.relay.node_endpoint
    chain.relay.close()
    wait_until(lambda: not node.status()["node"]["connected"])
    # The former one's socket closes in the background.
    wait_until(lambda: is_bound(chain, endpoint))
    relay = chain.relay
    wait_until(lambda: any(session.ready for session in relay.nodes))
    client = chain.client()
    client.send("/")
    assert client.recv(5000).body == b"node: GET / "


def test_a_restarted_server_never_gets_an_answer_of_its_former_life(chain):
    """What a Node works on is dropped; new requests are served."""
    chain.relay_all()
    seen, release = [], Event()

    def handler(conn, req):
        seen.append(req.path)
        if req.path == "/old":
            release.wait(10)
        conn.reply_http(req, req.path)

    node = chain.node(handler)
    chain.client()
    old = chain.client()
    old.send("/old")
    wait_until(lambda: seen)
    ports = (chain.server.push_port, chain.server.sub_port)
    chain.server.stop()
    connection = node.connections[SENDER]
    # Not ready is not enough: what the next server sends before its former life is known to be over goes with that.
    wait_until(lambda: not connection.link.subscribed and not chain.api.connections[SENDER].link.subscribed)
    with Server(SENDER, ip=LOCAL, push_port=ports[0], sub_port=ports[1]) as server:
        wait_until(lambda: connection.ready and chain.api.connections[SENDER].ready)
        client = server.client("http")
        assert client.conn_id == "1"
        client.send("/new")
        assert client.recv(10_000).body == b"/new"
        release.set()
        client.send("/new")
        assert client.recv(5000).body == b"/new"
        assert server.unclaimed == server.bad_replies == 0
        wait_until(lambda: chain.relay.open == 0)
        assert client.recv(20) is None
        node.stop(1)
        chain.api.stop(1)


def test_a_node_that_lost_the_server_for_a_moment_goes_on(chain):
    """The API says that the life it knew is the present one; what it had meanwhile is given again."""
    chain.relay_all()
    node = chain.node(say("node"))
    client = chain.client()
    client.send("/1")
    assert client.recv(5000).status == 200
    node.connections[SENDER].link.begin_anew()
    client.send("/2")
    assert client.recv(5000).body == b"node: GET /2 "


# -- what neither side expects -----------------------------------------------------------------------------------------

HOSTILE_DOWN = [
    b"",
    b"\n",
    b"no newline",
    b"nonsense\n",
    b"request\n",
    b"request 1\n",
    b"request x r.1\nmessage",
    b"request 1 r.1\nno message",
    b"request 1 unknown\n" + build_request(SENDER, 1, "/", {"METHOD": "GET"}),
    b"event r.1\n" + build_request(SENDER, 1, "@a", {"METHOD": "JSON", "PATH": "@a"}, b"[" * 100_000),
    b"notice r.1\ngarbage",
    b"servers x\n[]",
    b"servers 1\n{}",
    b"prove a\n",
    b"prove front -1\n",
    b"lease\n",
    b"clock 1\n",
    b"batch 1 1\nx",
    b"welcome\n",
]


def test_a_hostile_relay_ends_its_own_messages_only(chain, caplog):
    """Whatever it sends is counted, without a traceback; the next message is served."""
    chain.relay_all()
    node = chain.node(say("node"))
    session = next(iter(chain.relay.nodes))
    for message in HOSTILE_DOWN:
        chain.relay.nodes.send(session, *message.partition(b"\n")[::2])
    client = chain.client()
    client.send("/")
    assert client.recv(5000).body == b"node: GET / "
    assert node.status()["node"]["bad_messages"] >= 12
    assert not [record for record in caplog.records if record.exc_info]
    assert max(len(record.getMessage()) for record in caplog.records if "bad message" in record.msg) < 1200


HOSTILE_UP = [
    b"",
    b"nonsense\n",
    b"begun x\n",
    b"done -1\n",
    b"done 999999\n",
    b"begun " + b"9" * 5000 + b"\n",
    b"received 1\n",
    b"received 99999999 99999999\n",
    b"back 1 2 3\n",
    b"lost 17\n",
    b"ready\n",
    b"numbers x\n",
    b"clock x\n",
    b"batch 5\nx",
    b"hello 1\n{}",
]


def test_a_hostile_node_ends_its_own_messages_only(chain, caplog):
    """Before its hello and after it; the other Nodes' requests are answered."""
    chain.relay_all()
    chain.node(say("node"))
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(chain.relay.node_endpoint)
        for message in HOSTILE_UP:
            dealer.send(message)
        wait_until(lambda: chain.relay.status()["bad_messages"] >= 2)
        dealer.send(b'hello 1\n{"name": "spy", "capacity": 1, "what": ""}')
        wait_until(lambda: "spy" in chain.relay.nodes.names)
        for message in HOSTILE_UP:
            dealer.send(message)
        dealer.send_multipart([b"a", b"b"])
        wait_until(lambda: "a message of 2 parts" in caplog.text)
    finally:
        context.destroy(0)
    client = chain.client()
    client.send("/")
    assert client.recv(5000).body == b"node: GET / "
    assert not [record for record in caplog.records if record.exc_info]
    wait_until(lambda: len(chain.relay.nodes) == 1)


def test_a_stranger_says_nothing_in_a_batch(chain):
    """Who has not said hello is told once, whatever it sent."""
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(chain.relay.node_endpoint)
        dealer.send(b"batch " + b" ".join([b"0"] * 500_000) + b"\n")
        assert dealer.poll(5000)
        assert dealer.recv().startswith(b"over\n")
        dealer.send(b"\n")
        assert dealer.poll(5000)
        assert dealer.recv().startswith(b"over\n")
        assert chain.relay.status()["bad_messages"] == 1
    finally:
        context.destroy(0)


def test_bad_messages_that_come_together_are_one(chain, caplog):
    """One line in the log for them; the good ones among them count."""
    bare = BareNode(chain)
    bare.say(join([b"nonsense\n"] * 1000 + [b"unready %b\n" % bare.word] + [b"clock 7\n"]))
    bare.next(b"clock")
    assert chain.relay.status()["bad_messages"] == 1
    assert len([record for record in caplog.records if "bad message" in record.msg]) == 1
    assert not any(session.ready for session in chain.relay.nodes)


def test_a_node_may_say_any_number_of_things_at_once(chain):
    """In as many messages as that needs, in their order."""
    node = chain.node(say("node"))
    session = next(iter(chain.relay.nodes))
    heard = []
    chain.relay.nodes.on(b"test", lambda session, words, payload: heard.append(payload))
    said = [b"%d" % number for number in range(2 * MAX_BATCH + 3)]
    for one in said:
        node.link.tell(b"test", one)
    wait_until(lambda: len(heard) == len(said))
    assert heard == said and not session.over
    assert chain.relay.status()["bad_messages"] == 0


def test_the_numbers_of_a_node_are_bounded(chain):
    """Those that no process has are refused; of the others the relay knows the newest."""
    bare = BareNode(chain)
    session = next(iter(chain.relay.nodes))
    known = [NOBODY + NUMBERS * number for number in range(MAX_SERVERS + 1)]
    bare.say(b"numbers %b\n" % b" ".join(b"%d" % one for one in known))
    bare.say(b"numbers %d\n" % (known[-1] + NUMBERS + 1))
    bare.say(b"ready " + b"x" * 256 + b"\n")
    bare.say(b"clock 7\n")
    bare.next(b"clock")
    assert chain.relay.status()["bad_messages"] == 2
    servers = chain.relay.servers
    assert [servers.receipt_of(str(known[at])) for at in (0, 1, -1)] == [None, session, session]
    assert list(session.ready) == [bare.word.decode()]
    bare.end()
    wait_until(lambda: session.over)
    assert servers.receipt_of(str(known[-1])) is None
