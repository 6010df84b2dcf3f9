"""WebSockets behind a relay: the API runs their protocol, a Node has the application, and Nodes come and go."""

from __future__ import annotations

import contextlib

import gevent
import pytest
from gevent.event import Event
from relay_chain import LOCAL, SENDER, Chain, wait_until

from greentx import WebSocket
from greentx.errors import ConnectionClosed, LocalProtocolError, RemoteProtocolError, SendTimeout, TransportError
from greentx.protocol.websocket.frames import build_frame
from greentx.protocol.websocket.handshake import Refused
from greentx.relay import Node


class Sockets(Chain):
    """A chain whose API is a relay for all that comes, and words for what browsers do."""

    def browser(self, path="/", **options):
        client = self.client("websocket")
        client.handshake(path, **options)
        return client

    def heard(self, client):
        """The next message's text."""
        frame = client.recv(10_000)
        assert frame is not None, "nothing came"
        return frame.payload.decode()

    def leave(self, node):
        """Have a Node leave in order; returns at once."""
        leaving = gevent.spawn(node.stop, 5)
        self.stack.callback(leaving.join, 10)
        return leaving

    def hear(self, node):
        """Wait until the API has heard all that a Node has to say by now."""
        heard = Event()
        self.relay.nodes.on(b"test", lambda *_: heard.set())
        gevent.sleep(0)  # what was handled is told with the next round
        node.link.tell(b"test")
        assert heard.wait(10)

    def cut(self, node):
        """End a Node's connection to the relay without a word, as the end of its process does."""
        node.link.stop(0)


@pytest.fixture
def sockets():
    """Such a chain, without Nodes."""
    with contextlib.ExitStack() as stack:
        chain = Sockets(stack)
        chain.relay_all()
        yield chain


class Talk:
    """A handler that says back what it hears, with the Node's name; and what became of its WebSockets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sockets: list[WebSocket] = []
        self.heard: list[tuple[str | bytes, bool]] = []
        self.ended: list[WebSocket] = []

    def __call__(self, ws: WebSocket) -> None:
        self.sockets.append(ws)
        try:
            for message in ws:
                self.heard.append((message, ws.redelivered))
                ws.send(f"{self.name} {message!s}")
        finally:
            self.ended.append(ws)


# -- one Node ----------------------------------------------------------------------------------------------------------


def test_a_node_has_the_websocket_and_the_api_its_protocol(sockets):
    """Compression included; what is public of a WebSocket is there."""
    talk = Talk("a")
    node = sockets.node(websocket=talk)
    client = sockets.browser("/chat?x=1", deflate=True)
    client.send("x" * 2000)
    assert sockets.heard(client) == "a " + "x" * 2000
    client.send(b"\xff")
    wait_until(lambda: len(talk.heard) == 2)
    [ws] = talk.sockets
    assert (ws.path, ws.sid, ws.request.query) == ("/chat", (SENDER, client.conn_id), {"x": ["1"]})
    assert (ws.adopted, ws.moved, ws.closed, ws.close_code) == (False, False, False, None)
    assert list(node.websockets) == list(sockets.api.websockets) == [ws.sid]
    assert sockets.relay.status()["websockets"] == {"open": 1, "waiting": 0, "adopted": 0, "redelivered": 0}
    assert [one["websockets"] for one in sockets.relay.status()["nodes"]] == [1]
    client.close(4000, "bye")
    wait_until(lambda: talk.ended)
    assert (ws.close_code, ws.close_reason, ws.moved) == (4000, "bye", False)
    assert not len(node.websockets) and not len(sockets.api.websockets)
    wait_until(lambda: sockets.relay.status()["websockets"]["open"] == 0)


def test_a_loop_over_events_has_websockets_too(sockets):
    """Connect, messages and the end; it answers by the same methods as anywhere."""
    events = []

    def handler(conn, req):
        events.append((req.method, req.headers["METHOD"], req.opcode, req.body, req.close_code))
        if req.method == "WEBSOCKET":
            assert req.headers["host"] and req.headers["FLAGS"]
            conn.reply_websocket(req, b"echo " + req.body, req.opcode)

    node = sockets.node(handler)
    client = sockets.browser("/")
    client.send("text")
    assert sockets.heard(client) == "echo text"
    client.send(b"\xff")
    frame = client.recv(5000)
    assert (frame.opcode, frame.payload) == (2, b"echo \xff")
    assert list(node.websockets) == [(SENDER, client.conn_id)]
    client.close(4000, "bye")
    wait_until(lambda: len(events) == 4)
    assert [event[0] for event in events] == ["WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET", "WEBSOCKET_CLOSE"]
    assert all(event[0] == event[1] for event in events) and events[3][4] == 4000
    assert not len(node.websockets)


def test_an_api_that_decides_hands_on_each_event(sockets_by_hand):
    """In order; the first one gives the WebSocket to a Node, with what the API says of it."""
    chain = sockets_by_hand
    talk = Talk("a")
    chain.forward_all({"USER_ID": "7"})
    chain.node(websocket=talk)
    client = chain.browser("/")
    for number in range(20):
        client.send(str(number))
    assert [chain.heard(client) for _ in range(20)] == [f"a {number}" for number in range(20)]
    assert talk.sockets[0].request.headers["USER_ID"] == "7"
    client.disconnect()
    wait_until(lambda: talk.ended)
    assert (talk.ended[0].close_code, talk.ended[0].moved) == (1006, False)


def test_an_end_that_the_api_keeps_for_itself_is_told_all_the_same(sockets_by_hand):
    """Behind the messages, once the API has dropped it."""
    chain = sockets_by_hand
    talk = Talk("a")
    chain.serve(chain.api, lambda conn, req: req.is_disconnect() or chain.relay.forward(req))
    chain.node(websocket=talk)
    client = chain.browser("/")
    client.send("x")
    client.close(4001)
    wait_until(lambda: talk.ended)
    assert (talk.heard, talk.ended[0].close_code) == ([("x", False)], 4001)


@pytest.fixture
def sockets_by_hand():
    """A chain whose API decides, without Nodes."""
    with contextlib.ExitStack() as stack:
        yield Sockets(stack)


def test_a_node_can_close_a_websocket(sockets):
    """It waits for the client's answer; then the API hangs up and both forget it."""
    closed = []

    def talk(ws):
        ws.receive()
        ws.close(4001, "enough")
        closed.append(ws.close_code)

    node = sockets.node(websocket=talk)
    client = sockets.browser()
    client.send("x")
    frame = client.recv(5000)
    assert (frame.opcode, client.close_code) == (8, 4001)
    wait_until(lambda: not len(node.websockets) and not len(sockets.api.websockets) and client.closed)
    wait_until(lambda: closed == [4001])


@pytest.mark.parametrize(("fails", "code"), [(False, 1000), (True, 1011)])
def test_the_end_of_its_handler_closes_it(sockets, fails, code):
    """As on one process: 1000 where it returns, 1011 where it raises."""

    def talk(ws):
        if fails:
            raise RuntimeError("on purpose")

    sockets.node(websocket=talk)
    client = sockets.browser()
    assert client.recv(5000).opcode == 8 and client.close_code == code


@pytest.mark.parametrize("end", [gevent.GreenletExit, gevent.Timeout], ids=["exit", "timeout"])
def test_a_handler_that_leaves_by_itself_is_not_begun_anew(sockets, end, greenlet_errors):
    """As on one process it is closed with 1001; it goes on elsewhere only where the Node leaves."""
    began = []

    def talk(ws):
        began.append(ws.adopted)
        ws.receive()
        raise end()

    sockets.node(websocket=talk)
    client = sockets.browser()
    client.send("x")
    assert client.recv(5000).opcode == 8 and client.close_code == 1001
    wait_until(lambda: sockets.relay.status()["websockets"]["open"] == 0)
    assert began == [False]
    greenlet_errors.clear()


def test_an_event_whose_handler_leaves_by_itself_is_handled(sockets):
    """It does not come again at the next Node."""
    got = []

    def handler(conn, req):
        got.append((req.method, req.redelivered))
        if req.method == "WEBSOCKET":
            raise gevent.GreenletExit

    node = sockets.node(handler)
    client = sockets.browser()
    client.send("x")
    wait_until(lambda: ("WEBSOCKET", False) in got)
    sockets.hear(node)
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.cut(node)
    wait_until(lambda: talk.sockets)
    client.send("y")
    assert sockets.heard(client) == "b y" and talk.heard == [("y", False)]


def test_pings_go_to_the_browser_and_back(sockets):
    """``ping()`` returns the seconds; pings of the API's own stay there."""
    took = []

    def talk(ws):
        took.append(ws.ping(b"from the node"))
        with pytest.raises(LocalProtocolError):
            ws.ping(b"x" * 126)
        ws.send("done")
        ws.receive()

    sockets.node(websocket=talk)
    client = sockets.browser()
    assert sockets.heard(client) == "done"
    assert 0 <= took[0] < 10 and client.pings == 1


def test_a_node_neither_pings_nor_ends_the_websockets_of_the_api(sockets):
    """Its end is told to its application only; the browser's connection stays, and waits for the next one."""
    events = []
    node = sockets.node(lambda conn, req: events.append((req.method, req.moved)), ping_timeout=0.05)
    client = sockets.browser()
    client.send("x")
    wait_until(lambda: len(events) == 2)
    gevent.sleep(0.2)  # what must not happen has no event
    assert (client.pings, len(node.websockets)) == (0, 1)
    node.stop(1)
    assert client.recv(50) is None and not client.closed
    assert events[-1] == ("WEBSOCKET_CLOSE", True)


# -- sending -----------------------------------------------------------------------------------------------------------


def test_groups_and_broadcasts_reach_all_of_the_api(sockets):
    """Whatever Node has them; the count is of all."""
    here, there = Talk("a"), Talk("b")
    first = sockets.node(websocket=here)
    sockets.node(websocket=there)
    clients = [sockets.browser() for _ in range(4)]
    wait_until(lambda: (len(here.sockets), len(there.sockets)) == (2, 2))
    for ws in (here.sockets[0], there.sockets[0]):
        ws.join("group")
    wait_until(lambda: len(sockets.api.websockets.members("group")) == 2)
    assert first.broadcast("all") == 4
    assert [sockets.heard(client) for client in clients] == ["all"] * 4
    assert first.broadcast("some", group="group") == 2
    members = [client for client in clients if (SENDER, client.conn_id) in (here.sockets[0].sid, there.sockets[0].sid)]
    assert [sockets.heard(client) for client in members] == ["some"] * 2
    assert first.broadcast(b"others", group="group", exclude=[here.sockets[0].sid]) == 1
    here.sockets[0].leave("group")
    wait_until(lambda: len(sockets.api.websockets.members("group")) == 1)
    assert first.broadcast("x", group="nobody") == 0
    assert sockets.api.broadcast("from the api") == 4


def test_raw_frames_go_through_the_api_too(sockets):
    """Compressed there, where that was agreed on; to one that has moved on they go nowhere."""
    last = []

    def handler(conn, req):
        if req.method == "WEBSOCKET":
            last.append(req)
            conn.reply(req, build_frame(b"reply", 1))
            conn.deliver(req.sender, [req.conn_id], build_frame(b"deliver", 1))
            conn.deliver_websocket(req.sender, [req.conn_id, "999"], "websocket")
            conn.deliver_json(req.sender, [req.conn_id], 7)
            conn.reply_http(req, "not this")
        elif req.moved:
            conn.reply(last[0], build_frame(b"late", 1))
            conn.reply_websocket(last[0], "late")
            last.append(req)

    node = sockets.node(handler)
    client = sockets.browser(deflate=True)
    client.send("x")
    assert [sockets.heard(client) for _ in range(4)] == ["reply", "deliver", "websocket", "7"]
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.leave(node)
    wait_until(lambda: talk.sockets)
    client.send("y")
    assert sockets.heard(client) == "b y" and len(last) == 2


def test_a_native_thread_may_use_it(sockets):
    """As on one process: its calls are handed over."""

    def talk(ws):
        def work():
            ws.send(f"{ws.receive()}!")
            ws.state["a"] = 1
            ws.join("group")
            ws.ping()
            ws.send(str(ws.receive()))

        gevent.get_hub().threadpool.apply(work)

    sockets.node(websocket=talk)
    client = sockets.browser()
    client.send("x")
    assert sockets.heard(client) == "x!"
    client.send("y")
    assert sockets.heard(client) == "y"
    assert client.recv(5000).opcode == 8


def test_a_broadcast_keeps_its_place_between_sends(sockets):
    """What one Node says arrives in its order."""

    def talk(ws):
        for number in range(50):
            ws.send(f"{number} sent")
            node.broadcast(f"{number} broadcast")
        ws.receive()

    node = sockets.node(websocket=talk)
    client = sockets.browser()
    expected = [f"{number} {how}" for number in range(50) for how in ("sent", "broadcast")]
    assert [sockets.heard(client) for _ in range(100)] == expected


def test_two_events_of_one_browser_do_not_hold_up_others(sockets):
    """A handler that blocks has its own messages wait, and nobody else's."""
    release = Event()

    def talk(ws):
        for message in ws:
            if message == "block":
                release.wait()
            ws.send(message)

    sockets.node(websocket=talk)
    blocked, other = sockets.browser(), sockets.browser()
    blocked.send("block")
    for number in range(200):
        blocked.send(str(number))
    other.send("x")
    assert sockets.heard(other) == "x"
    release.set()
    assert [sockets.heard(blocked) for _ in range(201)] == ["block", *map(str, range(200))]


# -- Nodes come and go -------------------------------------------------------------------------------------------------


def test_messages_wait_at_the_api_while_a_node_accepts_nothing(sockets):
    """Little waits on the way to it, whatever comes for its WebSockets; with room they go on in order, ends as well."""
    heard: dict[str, list[object]] = {}

    def listen(ws):
        mine = heard.setdefault(ws.sid[1], [])
        mine.extend(message.strip() for message in ws)
        mine.append(ws.close_code)

    node = sockets.node(websocket=listen)
    clients = [sockets.browser() for _ in range(20)]
    wait_until(lambda: len(heard) == 20)
    # As one whose hub something else keeps busy: it says nothing of what it has received.
    missed: list[None] = []
    counted, node.link.counted = node.link.counted, lambda: missed.append(None)
    for number in range(3):
        for client in clients:
            client.send(f"{number}" + " " * 100_000)
    for client in clients:
        client.close(4001)
    wait_until(lambda: not len(sockets.api.websockets))
    [status] = sockets.relay.status()["nodes"]
    assert status["queued_bytes"] < 300_000
    assert sum(len(mine) for mine in heard.values()) < 60
    node.link.counted = counted
    for _ in list(missed):
        counted()
    wait_until(lambda: all(len(mine) == 4 for mine in heard.values()))
    assert all(mine == ["0", "1", "2", 4001] for mine in heard.values())
    wait_for_nothing(sockets)


def test_messages_wait_for_the_first_node(sockets):
    """In order; it is not adopted, since nobody had it."""
    client = sockets.browser()
    for text in ("a", "b"):
        client.send(text)
    wait_until(lambda: sockets.relay.status()["websockets"]["waiting"] == 1)
    talk = Talk("n")
    sockets.node(websocket=talk)
    assert [sockets.heard(client) for _ in range(2)] == ["n a", "n b"]
    assert (talk.sockets[0].adopted, talk.heard) == (False, [("a", False), ("b", False)])


def test_more_than_the_bound_does_not_wait(sockets_by_hand):
    """Then the browser is told to come again later."""
    with contextlib.ExitStack() as stack:
        chain = Sockets(stack)
        chain.api.stop(1)
        chain.api = stack.enter_context(chain.make_api(max_queue_bytes=10_000))
        chain.relay = type(chain.relay)(chain.api, pub_addr=(LOCAL, 0))
        chain.relay_all()
        client = chain.browser()
        for _ in range(12):
            client.send("x" * 1000)
        assert client.recv(5000).opcode == 8 and client.close_code == 1013


def test_the_next_node_adopts_what_one_leaves(sockets):
    """Between two messages: nothing is lost, doubled or marked; with request, groups and state as they were."""
    first, second = Talk("a"), Talk("b")
    node = sockets.node(websocket=first)
    client = sockets.browser("/path", headers={"x-mine": "header"}, subprotocols=())
    client.send("1")
    assert sockets.heard(client) == "a 1"
    [ws] = first.sockets
    ws.join("group")
    ws.state["n"] = {"deep": [1]}
    sockets.node(websocket=second)
    sockets.leave(node)
    wait_until(lambda: second.sockets)
    assert (ws.moved, ws.closed, first.ended) == (True, True, [ws])
    client.send("2")
    assert sockets.heard(client) == "b 2"
    [next_one] = second.sockets
    assert (next_one.adopted, next_one.moved, dict(next_one.state)) == (True, False, {"n": {"deep": [1]}})
    assert next_one.request.headers["x-mine"] == "header" and next_one.path == "/path"
    assert sockets.api.websockets.groups(next_one.sid) == ("group",)
    assert second.heard == [("2", False)]
    assert sockets.relay.status()["websockets"]["adopted"] == 1
    with pytest.raises(ConnectionClosed):
        ws.send("late")


def test_a_node_that_leaves_finishes_the_message_in_hand(sockets):
    """What it had queued is given to the next one, as if it had never been here."""
    release, began = Event(), Event()
    seen = []

    def slow(ws):
        for message in ws:
            seen.append(message)
            began.set()
            release.wait()
            ws.send(f"a {message}")

    node = sockets.node(websocket=slow)
    client = sockets.browser()
    for number in range(5):
        client.send(str(number))
    assert began.wait(10)
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.leave(node)
    wait_until(lambda: any(session.leaving for session in sockets.relay.nodes))
    client.send("5")
    # Behind it comes what goes to the next one at once.
    other = sockets.browser()
    other.send("other")
    assert sockets.heard(other) == "b other"
    assert talk.heard == [("other", False)]
    release.set()
    assert [sockets.heard(client) for _ in range(6)] == ["a 0", *[f"b {number}" for number in range(1, 6)]]
    assert seen == ["0"] and not any(redelivered for _, redelivered in talk.heard)


def test_what_was_in_the_hands_of_a_lost_node_comes_again(sockets):
    """Marked; what was not given to it is not, and the state is as it was written."""
    held = Event()
    lost = []

    def handler(ws):
        for message in ws:
            ws.state["last"] = message
            lost.append(ws)
            if message == "2":
                held.wait()

    node = sockets.node(websocket=handler)
    client = sockets.browser()
    client.send("1")
    client.send("2")
    wait_until(lambda: len(lost) == 2)
    sockets.hear(node)
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.cut(node)
    wait_until(lambda: talk.sockets)
    client.send("3")
    assert [sockets.heard(client) for _ in range(2)] == ["b 2", "b 3"]
    assert talk.heard == [("2", True), ("3", False)]
    assert dict(talk.sockets[0].state) == {"last": "2"} and talk.sockets[0].adopted
    assert lost[0].moved
    held.set()


def test_a_killed_handler_of_a_node_that_leaves_hands_over_what_it_had(sockets):
    """It may have begun with it."""

    in_hand = Event()

    def forever(ws):
        ws.receive()
        in_hand.set()
        Event().wait()

    node = sockets.node(websocket=forever)
    client = sockets.browser()
    client.send("1")
    client.send("2")
    assert in_hand.wait(10)
    talk = Talk("b")
    sockets.node(websocket=talk)
    node.stop(0.1)
    assert [sockets.heard(client) for _ in range(2)] == ["b 1", "b 2"]
    assert talk.heard == [("1", True), ("2", False)] and not client.closed


def test_a_loop_over_events_lets_go_between_two_of_them(sockets):
    """What it was given counts as handled when it asks for the next one, though it still holds the last."""
    got = []

    def read(node):
        for _, conn, req in node.recv():
            got.append((req.method, req.body, req.moved, req.redelivered))
            if req.method == "WEBSOCKET":
                conn.reply_websocket(req, b"a " + req.body)

    node = sockets.node()
    reading = gevent.spawn(read, node)
    client = sockets.browser()
    client.send("1")
    assert sockets.heard(client) == "a 1"
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.leave(node)
    wait_until(lambda: talk.sockets)
    client.send("2")
    assert sockets.heard(client) == "b 2"
    assert talk.heard == [("2", False)] and talk.sockets[0].adopted
    reading.join(5)
    assert [one[0] for one in got] == ["WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET_CLOSE"] and got[-1][2]


def test_what_a_loop_handled_last_does_not_come_again(sockets):
    """Where it ends with its Node: it has asked for the next one, which does not come."""
    began, go_on = Event(), Event()
    got = []

    def read(node):
        for _, _, req in node.recv():
            got.append((req.method, req.moved))
            if req.method == "WEBSOCKET":
                began.set()
                go_on.wait()

    node = sockets.node()
    reading = gevent.spawn(read, node)
    client = sockets.browser()
    client.send("1")
    assert began.wait(10)
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.leave(node)
    wait_until(lambda: any(session.leaving for session in sockets.relay.nodes))
    gevent.sleep(0.05)  # until nothing more is to come
    go_on.set()
    client.send("2")
    assert sockets.heard(client) == "b 2" and talk.heard == [("2", False)]
    reading.join(5)
    assert got == [("WEBSOCKET_CONNECT", False), ("WEBSOCKET", False), ("WEBSOCKET_CLOSE", True)]


def test_all_go_on_where_one_node_is_left(sockets):
    """In every state that they may be in; new ones go there, too."""
    talks = [Talk("a"), Talk("b"), Talk("c")]
    nodes = [sockets.node(websocket=talk) for talk in talks]
    clients = [sockets.browser() for _ in range(9)]
    wait_until(lambda: [len(talk.sockets) for talk in talks] == [3, 3, 3])
    sockets.leave(nodes[0]).join(10)
    sockets.cut(nodes[1])
    wait_until(lambda: len(nodes[2].websockets) == 9)
    for client in clients:
        client.send("x")
    assert [sockets.heard(client) for client in clients] == ["c x"] * 9
    assert sum(ws.adopted for ws in talks[2].sockets) == 6


def test_the_next_node_is_told_of_an_end_between_two(sockets):
    """The first one's application took it for moved, so that nobody else could clean up behind it."""
    talk = Talk("a")
    node = sockets.node(websocket=talk)
    client = sockets.browser()
    client.send("x")
    assert sockets.heard(client) == "a x"
    sockets.leave(node).join(10)
    wait_until(lambda: sockets.relay.status()["websockets"]["waiting"] == 1)
    wait_until(lambda: not len(sockets.relay.nodes))
    client.send("y")
    client.close(4000, "bye")
    wait_until(lambda: sockets.relay.status()["websockets"]["open"] == 0)
    second = Talk("b")
    sockets.node(websocket=second)
    wait_until(lambda: second.ended)
    [ws] = second.ended
    assert (ws.adopted, ws.moved, ws.close_code, second.heard) == (True, False, 4000, [("y", False)])
    wait_until(lambda: sockets.relay.status()["websockets"]["waiting"] == 0)
    assert [one["websockets"] for one in sockets.relay.status()["nodes"]] == [0]


def test_one_that_nobody_has_seen_may_go_unseen(sockets):
    """It said nothing, so that there is nothing to tell."""
    client = sockets.browser()
    wait_until(lambda: sockets.relay.status()["websockets"]["waiting"] == 1)
    client.disconnect()
    wait_until(lambda: sockets.relay.status()["websockets"]["waiting"] == 0)


def leaving_with(sockets, handler):
    """Have a Node leave whose *handler* has a message in hand; returns the browser, the next Node's application and
    what lets the handler go on."""
    release, began = Event(), Event()

    def in_hand(ws):
        ws.receive()
        began.set()
        release.wait()
        handler(ws)

    node = sockets.node(websocket=in_hand)
    client = sockets.browser()
    client.send("x")
    assert began.wait(10)
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.leave(node)
    wait_until(lambda: any(session.leaving for session in sockets.relay.nodes))
    return client, talk, release


def test_a_node_that_leaves_is_told_of_an_end_that_meets_its_message_in_hand(sockets):
    """With what came before it, and nobody is told once more."""
    heard = []

    def handler(ws):
        heard.extend(ws)
        heard.append((ws.moved, ws.close_code))

    client, talk, release = leaving_with(sockets, handler)
    client.send("y")
    client.close(4001)
    wait_until(lambda: not len(sockets.nodes[0].websockets))  # the end has come there
    release.set()
    wait_until(lambda: len(heard) == 2)
    assert heard == ["y", (False, 4001)]
    wait_until(lambda: [one["websockets"] for one in sockets.relay.status()["nodes"]] == [0])
    assert talk.sockets == []


def test_a_node_that_leaves_can_close_a_websocket(sockets):
    """With the client's answer it is over: no other Node has anything to do with it."""
    closed = []

    def handler(ws):
        ws.close(4000, "bye")
        closed.append((ws.moved, ws.close_code))

    client, talk, release = leaving_with(sockets, handler)
    release.set()
    assert client.recv(5000).opcode == 8 and client.close_code == 4000
    wait_until(lambda: closed)
    assert closed == [(False, 4000)]
    wait_until(lambda: [one["websockets"] for one in sockets.relay.status()["nodes"]] == [0])
    assert talk.sockets == []


@pytest.mark.parametrize("what", ["ping", "send"])
def test_what_waits_for_a_browser_at_a_node_that_leaves_hears_of_its_end(sockets, what):
    """``ping()`` and ``send()`` raise, and the Node can go."""
    raised, begins = [], Event()

    def handler(ws):
        try:
            begins.set()
            while True:
                if what == "ping":
                    ws.ping()
                else:
                    ws.send(b"x" * 50_000)
        except ConnectionClosed as error:
            raised.append(error.code)

    client, talk, release = leaving_with(sockets, handler)
    # As a browser that answers nothing, and does not read.
    for connection in sockets.api.connections.values():
        connection.link.stand_in = False
        connection.link.writer.flow.control.announce(True)
    release.set()
    assert begins.wait(10)
    gevent.sleep(0.1)  # until it waits
    client.disconnect()
    wait_until(lambda: raised)
    assert raised == [1006]
    wait_until(lambda: [one["websockets"] for one in sockets.relay.status()["nodes"]] == [0])
    assert talk.sockets == []


@pytest.mark.parametrize("how", ["leave", "cut"])
def test_one_that_is_being_closed_is_open_for_nobody(sockets, monkeypatch, how):
    """Its Node goes before the browser has answered the close frame; of the end the next one is told."""
    kept: list[bytes] = []
    post = sockets.server.post
    monkeypatch.setattr(sockets.server, "post", kept.append)
    node = sockets.node(websocket=lambda ws: ws.close(4000, "bye"))
    client = sockets.browser()
    assert client.recv(5000).opcode == 8
    assert len(kept) == 1
    getattr(sockets, how)(node)
    # Not before: it would be there still, or not yet.
    wait_until(lambda: len(sockets.relay.nodes) == 0)
    talk = Talk("b")
    sockets.node(websocket=talk)
    other = sockets.browser()
    other.send("x")
    assert sockets.heard(other) == "b x"
    assert [ws.adopted for ws in talk.sockets] == [False]
    assert sockets.relay.status()["websockets"] == {"open": 2, "waiting": 0, "adopted": 0, "redelivered": 0}
    post(kept[0])
    wait_until(lambda: len(talk.ended) == 1)
    assert (talk.ended[0].adopted, talk.ended[0].close_code, talk.heard) == (True, 4000, [("x", False)])
    wait_until(lambda: sockets.relay.status()["websockets"]["open"] == 1)


def test_the_end_of_one_in_dead_hands_is_told_by_the_next_node(sockets):
    """With the message that was in them."""
    node = sockets.node(websocket=lambda ws: ws.receive() and Event().wait())
    client = sockets.browser()
    client.send("x")
    client.close(4002)
    wait_until(lambda: not len(node.websockets))
    talk = Talk("b")
    sockets.node(websocket=talk)
    sockets.cut(node)
    wait_until(lambda: talk.ended)
    assert (talk.heard, talk.ended[0].close_code) == ([("x", True)], 4002)


def test_an_end_that_is_in_lost_hands_is_told_by_one_node(sockets):
    """The first one's application works on a message, and sees neither the next one nor an end that is its own."""
    began, go_on = Event(), Event()
    seen = []

    def slow(ws):
        for message in ws:
            seen.append(message)
            began.set()
            go_on.wait()
        seen.append(ws.moved)

    node = sockets.node(websocket=slow)
    client = sockets.browser()
    client.send("x")
    assert began.wait(10)
    client.send("y")
    client.close(4003)
    wait_until(lambda: not len(node.websockets))
    there = []
    sockets.node(websocket=lambda ws: there.append((list(ws), ws.close_code, ws.moved)))
    sockets.cut(node)
    wait_until(lambda: there)
    go_on.set()
    wait_until(lambda: len(seen) == 2)
    assert seen == ["x", True] and there == [(["x", "y"], 4003, False)]


def test_the_end_of_the_relay_ends_all(sockets):
    """Browsers get a close frame with 1001, and applications hear of it."""
    talk = Talk("a")
    sockets.node(websocket=talk)
    client = sockets.browser()
    wait_until(lambda: talk.sockets)
    sockets.api.stop(5)
    assert client.recv(5000).opcode == 8 and client.close_code == 1001
    wait_until(lambda: talk.ended)
    assert (talk.ended[0].close_code, talk.ended[0].moved) == (1001, False)


def test_a_relay_that_closes_ends_all(sockets):
    """Its Transceiver goes on."""
    talk = Talk("a")
    sockets.node(websocket=talk)
    client = sockets.browser()
    wait_until(lambda: talk.sockets)
    sockets.relay.close()
    assert client.recv(5000).opcode == 8 and client.close_code == 1001
    wait_until(lambda: talk.ended)
    assert talk.ended[0].close_code == 1001


# -- browsers that do not read -----------------------------------------------------------------------------------------


def test_send_waits_while_the_browser_does_not_read(sockets_by_hand):
    """And gives up as on one process, with the message kept; others go on meanwhile."""
    chain = sockets_by_hand
    chain.relay_all()
    found = []

    def talk(ws):
        for message in ws:
            if message == "flood":
                try:
                    for _ in range(200):
                        ws.send(b"x" * 20_000)
                except SendTimeout as error:
                    found.append(error.queued)
            else:
                ws.send(message)

    chain.node(websocket=talk, send_timeout=2)
    for connection in chain.api.connections.values():
        # As Mongrel2 with a browser that does not read: nothing leaves.
        connection.link.stand_in = False
    writer = chain.api.conn.link.writer
    writer.flow.control.announce(True)
    client, other = chain.browser(), chain.browser()
    client.send("flood")
    gevent.sleep(0.1)  # until it waits
    other.send("x")
    assert chain.heard(other) == "x" and not found
    wait_until(lambda: found == [True])
    assert len(chain.api.websockets) == 2 and not client.closed


def test_what_a_node_sends_at_once_waits_for_room(sockets):
    """However much that is; its session goes on."""
    size = 5_000_000

    def talk(ws):
        for _ in ws:
            ws.send(b"x" * size)

    node = sockets.node(websocket=talk)
    clients = [sockets.browser() for _ in range(15)]
    session = node.link
    for client in clients:
        client.send("x")
    for client in clients:
        assert len(client.recv(20_000).payload) == size
    assert session.in_session and sockets.relay.status()["websockets"]["adopted"] == 0


def test_one_message_may_be_larger_than_what_waits(sockets):
    """It goes when nothing else does; that of somebody who must not wait, too."""
    size = 65 * 1024 * 1024

    def talk(ws):
        ws.receive()
        ws.send(b"x" * size)
        ws.receive()

    node = sockets.node(websocket=talk)
    client = sockets.browser()
    client.send("x")
    assert len(client.recv(20_000).payload) == size
    assert node.link.in_session and sockets.relay.status()["websockets"]["adopted"] == 0


# -- what nobody should say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "payload"),
    [
        (b"ws-send", b""),
        (b"ws-send x 1", b""),
        (b"ws-send 1", b""),
        (b"ws-send 1 256", b"x"),
        (b"ws-send 1 3", b"x"),
        (b"ws-send 1 9", b"x" * 126),
        (b"ws-ping 1", b"x" * 126),
        (b"ws-ping 1 2", b""),
        (b"ws-close 1 1005", b""),
        (b"ws-close 1 99999", b""),
        (b"ws-close 1 1000", b"x" * 124),
        (b"ws-close 1 1000", b"\xff"),
        (b"ws-fail 1 x", b""),
        (b"ws-join 1", b"\xff"),
        (b"ws-leave", b"group"),
        (b"ws-state 1", b"[]"),
        (b"ws-done 1", b""),
        (b"ws-done 1 2", b""),
        (b"ws-move 1 2 2", b""),
        (b"ws-move 1 0 2", b""),
        (b"ws-cast 1 8", b'27:{"group":null,"exclude":[]},'),
        (b"ws-cast 1 1", b"x"),
        (b"ws-accept 1", b"{}"),
        (b"ws-answer x", b""),
    ],
)
def test_what_a_node_says_that_means_nothing_ends_that_message(sockets, head, payload):
    """It is counted, and the WebSocket goes on."""
    talk = Talk("a")
    node = sockets.node(websocket=talk)
    client = sockets.browser()
    client.send("x")
    assert sockets.heard(client) == "a x"
    node.link.tell(head, payload)
    wait_until(lambda: sockets.relay.status()["bad_messages"] == 1)
    client.send("y")
    assert sockets.heard(client) == "a y" and not client.closed


@pytest.mark.parametrize(
    ("head", "payload"),
    [
        (b"ws-msg 1 3 1", b"a gap"),
        (b"ws-msg 1 1 1", b"once more"),
        (b"ws-msg 1 2", b""),
        (b"ws-end 1 2 x", b""),
        (b"ws-end 1 2 1000", b"\xff"),
        (b"ws-end 1 3 1000", b"a gap"),
        (b"ws-ack 1", b""),
        (b"ws-pong x", b""),
        (b"ws-count 1 x", b""),
        (b"ws-open 1", b"{}"),
    ],
)
def test_what_a_relay_says_that_means_nothing_ends_that_message(sockets, head, payload):
    """Likewise; a WebSocket of which a Node can make nothing is ended."""
    talk = Talk("a")
    node = sockets.node(websocket=talk)
    client = sockets.browser()
    client.send("x")
    assert sockets.heard(client) == "a x"
    [session] = sockets.relay.nodes
    sockets.relay.nodes.send(session, head, payload)
    wait_until(lambda: node.link.bad_messages == 1)
    if head.startswith(b"ws-open"):
        assert client.recv(5000).opcode == 8 and client.close_code == 1011
    else:
        client.send("y")
        assert sockets.heard(client) == "a y"


@pytest.mark.parametrize("words", [b"ws-msg 9 1 1", b"ws-end 9 1 1000", b"ws-ack 9 1", b"ws-pong 9", b"ws-count 9 1"])
def test_what_is_said_of_one_that_has_gone_is_ignored(sockets, words):
    """It was on its way when the other side heard of that."""
    node = sockets.node(websocket=Talk("a"))
    [session] = sockets.relay.nodes
    sockets.relay.nodes.send(session, words)
    for late in (b"ws-send 9 1", b"ws-done 9 1", b"ws-move 9 0 0", b"ws-close 9 1000", b"ws-state 9", b"ws-answer 9"):
        node.link.tell(late, b"{}" if b"state" in late else b"")
    client = sockets.browser()
    client.send("x")
    assert sockets.heard(client) == "a x"
    assert (sockets.relay.status()["bad_messages"], node.link.bad_messages) == (0, 0)


# -- opening handshakes that a Node decides about ----------------------------------------------------------------------


@pytest.fixture
def held():
    """A chain whose API leaves opening handshakes to Nodes."""
    with contextlib.ExitStack() as stack:
        chain = Sockets(stack)
        chain.api.handshake_events = True
        chain.relay_all()
        yield chain


def test_a_node_lets_in_with_its_own_options(held):
    """The subprotocol and the fields are the Node's; compression is the API's."""
    talk = Talk("a")
    held.node(websocket=talk, subprotocols=["chat"], response_headers={"X-Mine": "yes"})
    client = held.browser("/", subprotocols=("other", "chat"), deflate=True)
    client.send("x")
    assert held.heard(client) == "a x"
    assert client.subprotocol == "chat" and talk.sockets[0].subprotocol == "chat"
    assert held.api.websockets.get((SENDER, client.conn_id)).deflate is not None


def test_a_node_refuses_with_an_answer_of_its_own(held):
    """Whatever HTTP it is."""
    held.node(websocket=Talk("a"), on_handshake=lambda request: Refused(403, body="not you\n"))
    with pytest.raises(Exception, match="403"):
        held.browser()
    wait_until(lambda: held.relay.status()["websockets"]["open"] == 0)
    assert len(held.api.conn.link.life.requests) == 0


def test_an_application_on_a_node_accepts_or_answers(held):
    """``handshake_events`` there: as on one process."""
    asked = []

    def handler(conn, req):
        if req.method != "WEBSOCKET_HANDSHAKE":
            return
        asked.append(req)
        if req.path == "/no":
            conn.reply_http(req, "no", 404)
        else:
            ws = conn.accept_websocket(req)
            ws.send("hello")
            for message in ws:
                ws.send(message)

    held.node(handler, handshake_events=True)
    client = held.browser("/yes")
    assert held.heard(client) == "hello"
    client.send("x")
    assert held.heard(client) == "x"
    with pytest.raises(Exception, match="404"):
        held.browser("/no")
    assert [req.adopted for req in asked] == [False, False]


def test_what_is_adopted_is_accepted_once_more_by_the_application(held):
    """With ``handshake_events`` the next Node sees the handshake again, and sends nothing by accepting it."""
    taken = []

    def handler_of(name):
        def handler(conn, req):
            if req.method == "WEBSOCKET_HANDSHAKE":
                ws = conn.accept_websocket(req)
                taken.append((name, req.adopted, ws.adopted))
                for message in ws:
                    ws.send(f"{name} {message}")

        return handler

    node = held.node(handler_of("a"), handshake_events=True)
    client = held.browser("/")
    client.send("1")
    assert held.heard(client) == "a 1"
    held.node(handler_of("b"), handshake_events=True)
    held.leave(node)
    client.send("2")
    client.send("3")
    assert [held.heard(client) for _ in range(2)] == ["b 2", "b 3"]
    assert taken == [("a", False, False), ("b", True, True)]


def accepting(got):
    """Return a handler that accepts, and notes what it hears and how that ends."""

    def handler(conn, req):
        if req.method == "WEBSOCKET_HANDSHAKE":
            ws = conn.accept_websocket(req)
            got.extend(ws)
            got.append((ws.close_code, ws.moved))

    return handler


def wait_for_nothing(chain):
    """Until no WebSocket is left, at the API and at Nodes."""
    wait_until(lambda: chain.relay.status()["websockets"]["open"] == 0)
    wait_until(lambda: [one["websockets"] for one in chain.relay.status()["nodes"]] == [0])


def test_what_ended_before_its_application_accepts_is_read_first(sockets):
    """It was let in by the API: messages come, then the end."""
    client = sockets.browser()
    client.send("important")
    client.close(4001)
    wait_until(lambda: not len(sockets.api.websockets))
    got: list[object] = []
    sockets.node(accepting(got), handshake_events=True)
    wait_until(lambda: len(got) == 2)
    assert got == ["important", (4001, False)]
    wait_for_nothing(sockets)


def test_what_ended_between_two_applications_is_read_by_the_next(held):
    """With ``handshake_events``, too, it accepts what has ended."""
    first: list[object] = []
    second: list[object] = []
    node = held.node(accepting(first), handshake_events=True)
    client = held.browser()
    client.send("1")
    wait_until(lambda: first == ["1"])
    held.leave(node).join(10)
    client.send("important")
    client.close(4001)
    wait_until(lambda: not len(held.api.websockets))
    held.node(accepting(second), handshake_events=True)
    wait_until(lambda: len(second) == 2)
    assert (first, second) == (["1", (1012, True)], ["important", (4001, False)])
    wait_for_nothing(held)


def test_what_has_ended_and_is_refused_is_over(sockets):
    """What came before goes to nobody, and nothing of it is left."""
    client = sockets.browser()
    client.send("x")
    client.close(4001)
    wait_until(lambda: not len(sockets.api.websockets))
    asked = []

    def refuse(conn, req):
        asked.append(req.method)
        gevent.sleep(0.05)  # the end has come by then, or does not matter
        conn.reply_http(req, "no", 404)

    sockets.node(refuse, handshake_events=True)
    wait_until(lambda: asked)
    wait_for_nothing(sockets)
    assert asked == ["WEBSOCKET_HANDSHAKE"]


def test_an_adopted_one_that_is_refused_is_closed(held):
    """It is a WebSocket already: no HTTP goes there."""

    def accept(conn, req):
        if req.method == "WEBSOCKET_HANDSHAKE":
            for _ in conn.accept_websocket(req):
                pass

    node = held.node(accept, handshake_events=True)
    client = held.browser("/")
    wait_until(lambda: len(node.websockets) == 1)
    held.node(lambda conn, req: conn.reply_http(req, "no", 404), handshake_events=True)
    held.leave(node)
    assert client.recv(5000).opcode == 8 and client.close_code == 1008


def test_a_handshake_in_the_hands_of_a_lost_node_goes_to_another(held):
    """Nothing was answered yet."""
    asked = Event()

    def never(conn, req):
        asked.set()
        Event().wait()

    node = held.node(never, handshake_events=True)
    opening = gevent.spawn(held.browser)
    assert asked.wait(10)
    talk = Talk("b")
    held.node(websocket=talk)
    held.cut(node)
    client = opening.get(timeout=10)
    client.send("x")
    assert held.heard(client) == "b x" and not talk.sockets[0].adopted


def test_a_handler_that_leaves_a_handshake_by_itself_has_it_refused(held):
    """With 503, as on one process; its Node serves on."""
    asked = []

    def leave(conn, req):
        asked.append(req.method)
        raise gevent.GreenletExit

    held.node(leave, handshake_events=True)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="503"):
            held.browser()
    assert asked == ["WEBSOCKET_HANDSHAKE"] * 2 and not any(session.leaving for session in held.relay.nodes)


def test_a_handshake_for_which_no_node_comes_gets_503(sockets_by_hand):
    """After the relay's ``send_timeout``."""
    with contextlib.ExitStack() as stack:
        chain = Sockets(stack, send_timeout=0.1)
        chain.api.handshake_events = True
        chain.relay_all()
        with pytest.raises(Exception, match="503"):
            chain.browser()


@pytest.mark.parametrize("leaves", [False, True])
def test_a_handshake_whose_only_node_goes_gets_503(leaves):
    """``send_timeout`` after it began to wait for another one."""
    with contextlib.ExitStack() as stack:
        chain = Sockets(stack, send_timeout=0.1)
        chain.api.handshake_events = True
        chain.relay_all()
        asked = Event()

        def never(conn, req):
            asked.set()
            Event().wait()

        node = chain.node(never, handshake_events=True)

        def open_it():
            with pytest.raises(RemoteProtocolError, match="503"):
                chain.browser()

        opening = gevent.spawn(open_it)
        assert asked.wait(10)
        if leaves:
            node.stop(0.1)
        else:
            chain.cut(node)
        opening.get(timeout=10)
        assert chain.relay.status()["websockets"] == {"open": 0, "waiting": 0, "adopted": 0, "redelivered": 0}


@pytest.mark.parametrize("there", [False, True])
def test_the_end_of_the_relay_answers_held_handshakes(held, there):
    """Whether or not a Node has them."""
    asked = Event()

    def never(conn, req):
        asked.set()
        Event().wait()

    if there:
        held.node(never, handshake_events=True)

    def open_it():
        with pytest.raises(RemoteProtocolError, match="503"):
            held.browser()

    opening = gevent.spawn(open_it)
    wait_until(lambda: asked.is_set() if there else held.relay.status()["websockets"]["waiting"] == 1)
    held.api.stop(0.1)
    opening.get(timeout=10)


def test_a_client_that_goes_before_a_node_decides_is_nobodys(held):
    """Its application's answer goes nowhere."""
    asked, go_on = [], Event()
    results = []

    def late(conn, req):
        if req.method != "WEBSOCKET_HANDSHAKE":
            return
        asked.append(req.path)
        if req.path == "/gone":
            go_on.wait()
        try:
            conn.accept_websocket(req)
        except ConnectionClosed as error:
            results.append(error.code)

    held.node(late, handshake_events=True)
    client = held.client("websocket")

    def open_it():
        with pytest.raises(ConnectionClosed):
            client.handshake("/gone")

    opening = gevent.spawn(open_it)
    wait_until(lambda: asked)
    client.disconnect()
    other = held.client("websocket")
    other.handshake("/behind")  # which tells the Node of nothing before it has told of that end
    go_on.set()
    wait_until(lambda: results == [1006])
    opening.get(timeout=5)
    wait_until(lambda: len(held.api.websockets) == 1)


def test_a_node_without_a_relay_has_no_websockets():
    """It starts, and stops; a broadcast says that the relay is away, since 0 would mean that nobody is there."""
    with Node((LOCAL, 1), rep_port=False) as node:
        assert len(node.websockets) == 0
        with pytest.raises(TransportError, match=f"not sent: no relay at tcp://{LOCAL}:1 "):
            node.broadcast("x")


def test_a_broadcast_under_way_when_the_relay_goes_says_so(sockets, greenlet_errors):
    """Whom it reached is not known."""
    node = sockets.node()
    sending = gevent.spawn(node.broadcast, "x")
    gevent.sleep(0)  # it waits for the count
    sockets.cut(node)
    with pytest.raises(TransportError, match="is not known: no relay at "):
        sending.get(timeout=10)
    greenlet_errors.clear()
