"""What a relay and its Nodes do not let grow, and what they say instead."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import OrderedDict
from typing import Any, cast

import gevent
import pytest
from relay_chain import LOCAL, SENDER, BareNode, Chain, say, wait_until

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.protocol.request import parse_request
from greentx.protocol.requests import build_credits_notice
from greentx.relay import Node, Relay
from greentx.relay.link import Link
from greentx.relay.messages import Server, Welcome, build_welcome
from greentx.relay.refusals import Complaints
from greentx.relay.session import WRITE_SECONDS, LastAnswers
from greentx.relay.sticky import Sticky
from greentx.relay.window import WINDOW_MESSAGES
from greentx.transport.keys import make_key_files


@pytest.fixture
def chain():
    """A chain without Nodes."""
    with contextlib.ExitStack() as stack:
        yield Chain(stack)


# -- Nodes that are not let in -----------------------------------------------------------------------------------------


def test_a_node_that_is_refused_says_why_and_waits(chain, caplog, monkeypatch):
    """It asks more seldom each time, and the relay's log names it once."""
    hello = b'hello 2\n{"name": "new", "capacity": 1, "what": ""}'
    monkeypatch.setattr("greentx.relay.link.build_hello", lambda _: hello)
    with caplog.at_level(logging.WARNING, logger="greentx.relay"):
        node = chain.make_node(name="new", connect_timeout=None)
        chain.stack.callback(node.stop, 0)
        node.start()
        wait_until(lambda: chain.relay.status()["bad_messages"] >= 3)
        assert node.link is not None and "does not let this Node in" in node.link.why
        assert "speaks version b'2' of the relay's messages, not 1" in node.link.why
    named = [record.getMessage() for record in caplog.records if "speaks version" in record.getMessage()]
    assert len(named) == 2
    assert sum("bad message number" in line for line in named) == 1
    monkeypatch.setattr("greentx.relay.link.build_hello", lambda _: hello.replace(b"hello 2", b"hello 1"))
    wait_until(lambda: "new" in chain.relay.nodes.names)
    wait_until(lambda: node.link.why == "")


def test_a_node_sets_nothing_up_for_a_welcome_that_is_none(chain, monkeypatch):
    """It says what is wrong, and connects again until there is a good one."""
    good = chain.relay.servers.welcome
    bad = build_welcome(Welcome("r", 1, "", [Server(SENDER, "r.\N{SNOWMAN}", "tcp://127.0.0.1:1")]))
    attempts: list[int] = []

    def welcome(at, topics):
        attempts.append(at)
        return bad

    monkeypatch.setattr(chain.relay.servers, "welcome", welcome)
    node = chain.make_node(name="new", connect_timeout=None)
    chain.stack.callback(node.stop, 0)
    node.start()
    wait_until(lambda: len(attempts) >= 3)
    assert node.link is not None and not node.connections
    wait_until(lambda: "does not let this Node in: its welcome means nothing here" in node.link.why)
    monkeypatch.setattr(chain.relay.servers, "welcome", good)
    wait_until(lambda: any(session.ready for session in chain.relay.nodes), 20)
    assert node.link.why == ""


def test_a_peer_is_named_once_a_minute_and_only_so_many_are():
    """Whatever names they make up."""
    complaints = Complaints()
    assert [complaints.is_due("a", 0.0), complaints.is_due("a", 1.0), complaints.is_due("b", 1.0)] == [
        True,
        False,
        True,
    ]
    assert complaints.is_due("a", 60.0)
    assert sum(complaints.is_due(str(number), 61.0) for number in range(5000)) < 1001


@pytest.mark.parametrize("options", [{"capacity": 1.5}, {"capacity": "5"}, {"capacity": True}, {"what": 5}])
def test_what_a_node_says_of_itself_is_checked_where_it_is_made(options):
    """A relay would refuse it, again and again."""
    with pytest.raises(LocalProtocolError, match=r"capacity is|what is"):
        Node((LOCAL, 1), **cast(Any, options))


# -- who has which browser connection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", ["relay_all", "forward_all"])
@pytest.mark.parametrize("headers", [{"connection": "close"}, {"connection": "Close"}, {"VERSION": "HTTP/1.0"}])
@pytest.mark.parametrize("tells", [False, True])
def test_a_connection_that_the_server_closes_is_forgotten(chain, forward, headers, tells):
    """It tells nobody that it has."""
    flow = chain.api.connections[SENDER].link.writer.flow.control
    flow.announce(tells)
    getattr(chain, forward)()
    chain.node(say("node"))
    for number in range(5):
        client = chain.client()
        client.send("/", headers)
        answer = client.recv(5000)
        assert answer.body == b"node: GET / "
        wait_until(lambda: not chain.relay.open)
        if tells:
            assert chain.relay.status()["connections"] == number + 1
    if tells:
        for client in range(1, 100):
            chain.server.send(build_credits_notice(SENDER, str(client), 100_000))
    wait_until(lambda: chain.relay.status()["connections"] == 0)


def test_a_connection_that_goes_on_is_remembered(chain):
    """Also one that says so in the way of HTTP/1.0."""
    chain.relay_all()
    chain.node(say("node"))
    for headers in ({}, {"VERSION": "HTTP/1.0", "connection": "keep-alive"}, {"x-close": "close"}):
        client = chain.client()
        client.send("/", headers)
        assert client.recv(5000).body == b"node: GET / "
    wait_until(lambda: not chain.relay.open)
    assert chain.relay.status()["connections"] == 3


def test_the_order_of_a_full_table_takes_no_time_to_find():
    """A dict walks over all places of what was taken out in front."""
    sticky = Sticky(limit=2)
    session: Any = object()
    for conn_id in "abc":
        sticky.bind("set", conn_id, session)
    assert isinstance(sticky.of("set"), OrderedDict) and list(sticky.of("set")) == ["b", "c"]


# -- a relay that stood still ------------------------------------------------------------------------------------------


def test_a_relay_that_stood_still_does_not_take_that_for_the_end_of_its_nodes(chain):
    """What a Node said long before its end is read with it: its clock tells that the answer has had its time."""
    chain.relay_all()
    bare = BareNode(chain)
    client = chain.client()
    client.send("/")
    bare.say(b"done %b 10\n" % bare.request())
    for at in (1000, 1250):
        bare.say(b"clock %d\n" % at)
    bare.linger_and_die()
    time.sleep(0.1)  # all of it, before this process goes on
    wait_until(lambda: not chain.relay.nodes.names and not chain.relay.nodes.ending)
    chain.node(say("second"))
    gevent.sleep(0.5)  # nothing must happen
    client.send("/next")
    assert client.recv(10_000).body == b"second: GET /next "
    assert chain.relay.status()["closed"] == 0


def test_the_end_of_a_node_may_be_noticed_long_after_it(chain):
    """What it said last may not have been written, however much later than that the relay hears of its end."""
    chain.relay_all()
    bare = BareNode(chain)
    client = chain.client()
    client.send("/")
    number = bare.request()
    bare.say(b"received 1 1\n")
    bare.say(b"done %b 10\n" % number)
    wait_until(lambda: not chain.relay.open)
    for _ in range(3):
        bare.next(b"lease")
    bare.die()
    with pytest.raises(RemoteProtocolError, match="closed the connection"):
        client.recv(10_000)
    assert chain.relay.status()["closed"] == 1


def test_a_request_over_which_two_nodes_died_goes_to_no_third_one(chain):
    """It may be what they died of."""
    chain.relay_all()
    client = chain.client()
    client.send("/")
    for _ in range(2):
        bare = BareNode(chain)
        assert bare.request()
        bare.end()
    assert client.recv(10_000).status == 502
    status = chain.relay.status()
    assert (status["forwarded"], status["retried"], status["bad_gateway"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ("done1", "1"),
        ("done1 clock1000", "1"),
        ("done1 clock1000 clock1001", "1"),
        ("done1 clock1000 clock1250", ""),
        ("done1 clock1000 clock1001 clock1250", ""),
        ("done1 clock1000 done2 clock1250", "2"),
        ("clock1000 done1 clock1250", "1"),
        ("done1 clock1000 done2 heard100 clock1250", ""),
        ("done1 done2 clock1000 heard1.5 clock1250", ""),
        ("done1 done2 clock1000 heard1.5 done3 clock1250", "3"),
    ],
)
def test_what_a_node_said_before_its_clock_went_on_has_been_written(steps, left):
    """Or what it said some time before it was last heard."""
    answers = LastAnswers()
    for step in steps.split():
        if step.startswith("done"):
            answers.items.append((float(step[4:]), 0, cast(Any, step[4:])))
        elif step.startswith("clock"):
            answers.clock(int(step[5:]))
        else:
            answers.forget(float(step[5:]) + WRITE_SECONDS)
    assert "".join(cast(Any, entry) for _, _, entry in answers.items) == left


# -- messages that no answer is due to ---------------------------------------------------------------------------------


def json_client(chain):
    """Return a client of a JSON socket, and what sends a message of it."""
    client = chain.client("mongrel2")
    headers = {"METHOD": "JSON", "VERSION": None, "URI": None, "host": None}
    return client, lambda number: client.send("@chat", headers, b'{"n":%d}' % number)


def data_of(message):
    """Return the number in a message."""
    return parse_request(message).data["n"]


@pytest.mark.parametrize("forward", ["relay_all", "forward_all"])
def test_messages_of_one_connection_stay_with_one_node_in_order(chain, forward):
    """Also where that accepts no more at present."""
    getattr(chain, forward)()
    bare = BareNode(chain)
    _, send = json_client(chain)
    send(0)
    assert data_of(bare.event()) == 0
    BareNode(chain)
    count = WINDOW_MESSAGES + 50
    for number in range(1, count):
        send(number)
    wait_until(lambda: any(session.lane.queued for session in chain.relay.nodes))
    got = [data_of(bare.event()) for _ in range(WINDOW_MESSAGES - 2)]
    wait_until(lambda: chain.relay.status()["forwarded"] == count)
    bare.say(b"received 1000 1000\n")
    got += [data_of(bare.event()) for _ in range(count - 1 - len(got))]
    assert got == list(range(1, count))


def test_connections_whose_messages_a_dead_node_had_are_closed(chain):
    """Nobody knows which of them were handled; what comes then is not given to others as if nothing was missing."""
    chain.relay_all()
    bare = BareNode(chain)
    client, send = json_client(chain)
    for number in range(3):
        send(number)
        assert data_of(bare.event()) == number
    idle = chain.client()
    bare.end()
    wait_until(lambda: client.closed)
    assert (chain.relay.status()["closed"], idle.closed) == (1, False)
    assert chain.relay.status()["connections"] == 0


def test_connections_whose_messages_a_node_had_that_left_in_order_go_on(chain):
    """It has handled them."""
    chain.relay_all()
    first = chain.node(lambda conn, req: conn.reply_json(req, {"first": req.data}))
    client, send = json_client(chain)
    send(1)
    assert client.recv(5000).body == b'{"first": {"n": 1}}'
    chain.node(lambda conn, req: conn.reply_json(req, {"second": req.data}), name="second")
    first.stop(5)
    wait_until(lambda: chain.relay.nodes.names == {"second"})
    send(2)
    assert client.recv(5000).body == b'{"second": {"n": 2}}'
    assert chain.relay.status()["closed"] == 0


# -- what waits --------------------------------------------------------------------------------------------------------


def test_requests_of_browsers_that_gave_up_wait_no_more(chain, monkeypatch):
    """Their places are free at once, also behind one that waits on."""
    monkeypatch.setattr("greentx.relay.waiting.MAX_WAITING", 3)
    chain.relay_all()
    patient = chain.client()
    patient.send("/patient")
    for _ in range(10):
        gone = chain.client()
        gone.send("/gone")
        gone.send("/gone")
        wait_until(lambda: chain.relay.status()["waiting"] == 3)
        gone.disconnect()
        wait_until(lambda: chain.relay.status()["waiting"] == 1)
    assert chain.relay.status()["unavailable"] == 0
    chain.node(say("node"))
    assert patient.recv(5000).body == b"node: GET /patient "
    assert chain.relay.status()["waiting"] == 0


def test_nothing_is_kept_of_what_waited_for_a_node_that_has_gone(chain):
    """However long one of its browser connections is remembered."""
    chain.relay_all()
    bare = BareNode(chain)
    idle = chain.client()
    idle.send("/")
    bare.say(b"done %b 0\n" % bare.request())
    wait_until(lambda: not chain.relay.open)
    (session,) = chain.relay.nodes
    _, send = json_client(chain)
    for number in range(WINDOW_MESSAGES + 50):
        send(number)
    wait_until(lambda: session.lane.queued > 4000)
    bare.die()
    wait_until(lambda: session.over)
    wait_until(lambda: not session.lane.queued)
    assert (len(session.lane.queue), session.lane.unreceived) == (0, 0)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"retry": "GET"}, "retry is a str"),
        ({"send_timeout": -1}, "send_timeout is"),
        ({"send_timeout": math.nan}, "send_timeout is"),
        ({"send_timeout": "5"}, "send_timeout is"),
        ({"sticky": "sid"}, "sticky is a str"),
        ({"sticky": [""]}, "name"),
    ],
)
def test_options_of_a_relay_are_checked(chain, options, match, tmp_path):
    """Before anything is opened."""
    with pytest.raises(LocalProtocolError, match=match):
        Relay(chain.api, f"ipc://{tmp_path}/push", node_addr=f"ipc://{tmp_path}/node", **options)
    assert not list(tmp_path.iterdir())


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_node_whose_keys_do_not_fit_names_the_options(tmp_path):
    """A handshake that fails is all that it sees of it."""
    for name in ("api", "node", "stranger"):
        make_key_files(tmp_path, name)
    secret = {name: tmp_path / f"{name}.key_secret" for name in ("api", "node", "stranger")}
    public = {name: tmp_path / f"{name}.key" for name in ("api", "node", "stranger")}
    with contextlib.ExitStack() as stack:
        chain = Chain(stack, curve_secret=secret["api"], curve_allow=public["node"])
        for options in (
            {},
            {"curve_secret": secret["stranger"], "curve_relay": public["api"]},
            {"curve_secret": secret["node"], "curve_relay": public["stranger"]},
        ):
            node = chain.make_node(connect_timeout=None, **options)
            node.start()
            try:
                link = cast(Link, node.link)
                wait_until(lambda link=link: "handshake failed" in link.why)
                why = link.why
            finally:
                node.stop(0)
            assert all(name in why for name in ("curve_relay=", "curve_secret=", "curve_allow="))
            assert "swapped" not in why
