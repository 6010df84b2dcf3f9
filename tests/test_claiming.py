"""Sessions that Nodes have claimed: their requests come to them, over whatever connection."""

from __future__ import annotations

import contextlib
import json
import time

import gevent
import pytest
from relay_chain import SENDER, BareNode, Chain, wait_until

from greentx.errors import LocalProtocolError
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_disconnect_notice
from greentx.relay import Node
from greentx.relay.claiming import MAX_HELD
from greentx.relay.nodes import NodeSession


class Sessions:
    """An application with sessions in its memory: ``/open?id=X`` makes one, ``?sid=X`` is of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.node: Node | None = None
        self.known: set[str] = set()

    def __call__(self, conn, req) -> None:
        query = req.query
        if req.path == "/open":
            assert self.node is not None
            session = query["id"][0]
            self.known.add(session)
            self.node.claim("sid", session)
            conn.reply_http(req, self.name)
        elif query.get("sid", [""])[0] in self.known:
            conn.reply_http(req, self.name)
        else:
            conn.reply_http(req, f"{self.name} does not know it", 400, "Bad Request")


@pytest.fixture
def chain():
    """A server, an API that forwards all, and no Node."""
    with contextlib.ExitStack() as stack:
        one = Chain(stack, node_addr=("127.0.0.1", 0))
        one.relay_all()
        yield one


def start(chain, *names: str) -> list[Sessions]:
    """Start Nodes with an application each."""
    applications = []
    for name in names:
        application = Sessions(name)
        application.node = chain.node(application, name=name)
        applications.append(application)
    return applications


def ask(client, path: str) -> tuple[int, str]:
    """Ask for *path*, and return status and body."""
    client.send(path)
    answer = client.recv(10000)
    assert answer is not None
    return answer.status, answer.body.decode()


@pytest.fixture
def patient(monkeypatch):
    """Claims are waited for as long as a test may take, on any machine."""
    monkeypatch.setattr("greentx.relay.claiming.CLAIM_SECONDS", 60.0)


def claims(chain) -> int:
    return int(chain.relay.status()["claims"])


def test_requests_of_a_session_go_to_the_node_that_claimed_it(chain):
    """Each over a connection of its own, and all over one that another Node had."""
    start(chain, "one", "two", "three")
    owners = {}
    for number in range(9):
        owners[number] = ask(chain.client(), f"/open?id=s{number}")[1]
    assert set(owners.values()) == {"one", "two", "three"}
    shared = chain.client()
    for number, owner in owners.items():
        for client in (chain.client(), shared, shared):
            assert ask(client, f"/?x=1&sid=s{number}") == (200, owner)
    assert claims(chain) == 9


def test_what_is_spelled_in_another_way_is_the_same_session(chain):
    """As clients encode it."""
    one, two = start(chain, "one", "two")
    for application in (one, two):
        application.known.add("a b/c")
    assert one.node is not None
    one.node.claim("sid", "a b/c")
    wait_until(lambda: claims(chain) == 1)
    for spelling in ("a%20b%2Fc", "a+b/c", "%61+b%2fc"):
        assert [ask(chain.client(), f"/?sid={spelling}") for _ in range(4)] == [(200, "one")] * 4


def test_an_unknown_session_is_waited_for(chain, patient):
    """The next request may overtake the claim; it goes to whoever claims meanwhile."""
    one, two = start(chain, "one", "two")
    assert one.node is not None and two.node is not None
    one.node.claim("sid", "first")  # somebody claims by this name
    wait_until(lambda: claims(chain) == 1)
    for application, session in ((one, "a"), (two, "b"), (one, "c"), (two, "d")):
        application.known.add(session)
        assert application.node is not None
        client = chain.client()
        client.send(f"/?sid={session}")
        client.send(f"/?sid={session}&behind=it")
        wait_until(lambda: chain.relay.status()["waiting"] == 2)
        application.node.claim("sid", session)
        for _ in range(2):
            answer = client.recv(10000)
            assert (answer.status, answer.body.decode()) == (200, application.name)


def test_a_session_that_nobody_claims_goes_to_anybody(chain):
    """After a moment; and at once where nobody claims by that name, or there is one Node alone."""
    start(chain, "one", "two")
    assert ask(chain.client(), "/?sid=unknown")[0] == 400
    assert ask(chain.client(), "/?EIO=4&sid=unknown")[0] == 400
    assert chain.relay.status()["waiting"] == 0


def test_a_browser_that_goes_while_its_request_waits_is_forgotten(chain, patient):
    """Nobody gets it."""
    start(chain, "one", "two")
    client = chain.client()
    client.send("/?EIO=4&sid=unknown")
    wait_until(lambda: chain.relay.status()["waiting"] == 1)
    forwarded = chain.relay.status()["forwarded"]
    client.disconnect()
    wait_until(lambda: chain.relay.status()["waiting"] == 0)
    assert ask(chain.client(), "/")[0] == 400
    assert chain.relay.status()["forwarded"] == forwarded + 1


def test_the_claims_of_a_node_go_with_it(chain):
    """What it had is anybody's, who then says that there is no such session."""
    one, two = start(chain, "one", "two")
    assert one.node is not None and two.node is not None
    one.node.claim("sid", "a")
    two.node.claim("sid", "b")
    wait_until(lambda: claims(chain) == 2)
    one.node.stop(2)
    wait_until(lambda: claims(chain) == 1)
    assert ask(chain.client(), "/?sid=a") == (400, "two does not know it")


def test_what_a_node_has_claimed_is_not_taken_from_it(chain, caplog):
    """While it is there; then it is whose is the next to claim it."""
    one, two = start(chain, "one", "two")
    assert one.node is not None and two.node is not None
    for application in (one, two):
        application.known |= {"a", "b"}
    one.node.claim("sid", "a")
    wait_until(lambda: claims(chain) == 1)
    two.node.claim("sid", "a")
    two.node.claim("sid", "b")
    wait_until(lambda: claims(chain) == 2)
    assert [ask(chain.client(), f"/?sid={session}") for session in "abab"] == [(200, "one"), (200, "two")] * 2
    assert "claims what others have claimed" in caplog.text
    one.node.stop(2)
    wait_until(lambda: claims(chain) == 1)
    two.node.claim("sid", "a")
    wait_until(lambda: claims(chain) == 2)


def test_a_relay_that_stood_still_reads_claims_before_it_gives_up(chain, monkeypatch):
    """The time in which it could not read them is not theirs."""
    monkeypatch.setattr("greentx.relay.claiming.CLAIM_SECONDS", 1.0)
    claimer = BareNode(chain)
    chain.client().send("/busy")
    claimer.request()
    claimer.say(b"claims sid=first\n")  # so that others are waited for
    wait_until(lambda: claims(chain) == 1)
    start(chain, "idle")
    chain.client().send("/?sid=x")
    wait_until(lambda: len(chain.relay.forwarding.claiming) == 1)
    claimer.say(b"claims sid=x\n")
    time.sleep(1.5)  # all of it, with this process
    _, message = claimer.next(b"request")
    assert parse_request(message).query == {"sid": ["x"]}


def test_many_claims_meet_many_that_wait(chain, patient):
    """In a time that grows with both, and not with their product."""
    one, _ = start(chain, "one", "two")
    node = one.node
    assert node is not None and node.link is not None
    node.claim("sid", "first")  # so that others are waited for
    wait_until(lambda: claims(chain) == 1)
    claiming = chain.relay.forwarding.claiming
    settled: list[object] = []
    for number in range(MAX_HELD):
        request = Request("front", "1", f"/{number}", {"METHOD": "GET", "QUERY": f"sid=w{number}"})
        claiming.when_claimed(request, settled.append)
    assert not settled
    keys = [b"sid=%d" % number for number in range(50_000)]
    began = time.process_time()
    node.link.tell(b"claims " + b" ".join(keys))
    wait_until(lambda: claims(chain) == 50_001, 60)
    node.link.tell(b"claims " + b" ".join(b"sid=w%d" % number for number in range(MAX_HELD)))
    wait_until(lambda: len(settled) == MAX_HELD, 60)
    assert time.process_time() - began < 7  # of computing; it took twice that, and takes a tenth
    assert {session.name for session in settled if isinstance(session, NodeSession)} == {"one"}


def test_claims_are_told_again_in_a_new_session(chain):
    """The sessions are still in the Node's memory."""
    one, _ = start(chain, "one", "two")
    assert one.node is not None and one.node.link is not None
    for session in ("a", "b", "c"):
        one.known.add(session)
        one.node.claim("sid", session)
    wait_until(lambda: claims(chain) == 3)
    (session,) = (session for session in chain.relay.nodes if session.name == "one")
    chain.relay.nodes.send(session, b"over")
    wait_until(lambda: session.over and claims(chain) == 3)
    wait_until(lambda: len([one for one in chain.relay.nodes if one.ready]) == 2)
    assert [ask(chain.client(), f"/?sid={name}") for name in "abc"] == [(200, "one")] * 3


def test_a_relay_may_be_told_other_names():
    """Then ``sid`` is a word as any other."""
    with contextlib.ExitStack() as stack:
        chain = Chain(stack, sticky=("room",))
        chain.relay_all()
        one, two = start(chain, "one", "two")
        assert one.node is not None and two.node is not None
        one.node.claim("sid", "red")
        two.node.claim("room", "red")
        wait_until(lambda: claims(chain) == 1)
        assert {ask(chain.client(), "/?room=red")[1].split()[0] for _ in range(6)} == {"two"}
        assert {ask(chain.client(), "/?sid=red")[1].split()[0] for _ in range(6)} == {"one", "two"}


def test_an_api_that_decides_forwards_to_the_same_node(patient):
    """Also what waits for its claim."""
    with contextlib.ExitStack() as stack:
        chain = Chain(stack)
        chain.forward_all({"USER": "42"})
        _, two = start(chain, "one", "two")
        assert two.node is not None
        two.known |= {"a", "b"}
        two.node.claim("sid", "a")
        wait_until(lambda: claims(chain) == 1)
        assert [ask(chain.client(), "/?sid=a") for _ in range(4)] == [(200, "two")] * 4
        client = chain.client()
        client.send("/?sid=b")
        wait_until(lambda: chain.relay.status()["waiting"] == 1)
        two.node.claim("sid", "b")
        answer = client.recv(10000)
        assert (answer.status, answer.body) == (200, b"two")


def test_what_an_api_forwards_goes_nowhere_where_its_browser_went_as_it_waited(patient):
    """No Node has work with it, and the browser's connection is not remembered."""
    with contextlib.ExitStack() as stack:
        chain = Chain(stack)
        chain.forward_all()
        one, _ = start(chain, "one", "two")
        assert one.node is not None
        one.known.add("a")
        one.node.claim("sid", "a")
        wait_until(lambda: claims(chain) == 1)
        client = chain.client()
        client.send("/?sid=b")
        wait_until(lambda: chain.relay.status()["waiting"] == 1)
        chain.server.send(build_disconnect_notice(SENDER, client.conn_id))
        wait_until(lambda: chain.relay.status()["waiting"] == 0)
        assert ask(chain.client(), "/?sid=a")[0] == 200
        status = chain.relay.status()
        assert (status["forwarded"], status["connections"], status["unavailable"]) == (1, 1, 0)
        wait_until(lambda: not len(chain.api.connections[SENDER].link.life.requests))


def test_what_names_no_session_cannot_be_claimed(chain):
    """The caller is told."""
    (one,) = start(chain, "one")
    assert one.node is not None
    for name, value in (("", "x"), ("sid", ""), ("sid", "x" * 2000)):
        with pytest.raises(LocalProtocolError):
            one.node.claim(name, value)


def test_a_bad_claim_ends_that_message_alone(chain):
    """Whatever a Node sends."""
    one, _ = start(chain, "one", "two")
    assert one.node is not None and one.node.link is not None
    for head in (b"claims", b"claims sid", b"claims sid=\xff", b"claims sid=1 sid"):
        one.node.link.tell(head)
        one.node.link.flush()  # those that come together are one
    wait_until(lambda: chain.relay.status()["bad_messages"] == 4)
    assert claims(chain) == 0
    assert ask(chain.client(), "/open?id=a")[0] == 200
    wait_until(lambda: claims(chain) == 1)
    assert json.dumps(chain.api.status())  # which has it all


def test_a_native_thread_may_claim(chain):
    """It is handed to the hub."""
    (one,) = start(chain, "one")
    assert one.node is not None
    gevent.get_hub().threadpool.apply(one.node.claim, ("sid", "from a thread"))
    wait_until(lambda: claims(chain) == 1)


def test_a_websocket_of_a_session_goes_to_its_node(chain, patient):
    """Let in by the API or not, and also where it is claimed in a moment only."""
    names = ("one", "two")
    nodes = {name: chain.node(websocket=lambda ws, name=name: ws.send(name), name=name) for name in names}
    seen: list[str] = []
    nodes["one"].claim("sid", "first")
    wait_until(lambda: claims(chain) == 1)

    def heard(client):
        frame = client.recv(10000)
        assert frame is not None
        return frame.payload.decode()

    for name, session in (("two", "a"), ("one", "b"), ("two", "c"), ("two", "d")):
        client = chain.client("websocket")
        seen.append(session)
        if session in "ab":
            nodes[name].claim("sid", session)
            wait_until(lambda: claims(chain) == 1 + len(seen))
        client.handshake(f"/?EIO=4&transport=websocket&sid={session}")
        if session in "cd":
            nodes[name].claim("sid", session)
        assert heard(client) == name
