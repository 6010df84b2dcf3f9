"""A Transceiver is ready while both ways work and something is received; else it says why, and what to look at."""

from __future__ import annotations

import json

import gevent
import pytest
import zmq
import zmq.green
from gevent import socket
from plain_server import PlainServer, until

from greentx import Server, Transceiver
from greentx.edge import Handler
from greentx.errors import ConnectTimeout, ControlError
from greentx.handler import link as link_module
from greentx.protocol.requests import build_request
from greentx.relay import Node, Relay

NOWHERE = "tcp://127.0.0.1:1"


@pytest.fixture
def soon(monkeypatch):
    """Warnings come at once."""
    monkeypatch.setattr(link_module, "READY_WARNING_SECONDS", 0.1)
    monkeypatch.setattr("greentx.transport.pusher.ALONE_WARNING_SECONDS", 0.1)
    monkeypatch.setattr("greentx.relay.waiting.ALONE_WARNING_SECONDS", 0.1)
    monkeypatch.setattr("greentx.relay.link.ALONE_WARNING_SECONDS", 0.1)


@pytest.fixture
def entry(start_mongrel2):
    """The handler entry of a mongrel2 over TCP."""
    server = start_mongrel2({"/": Handler("one")}, transport="tcp")
    return server, *server.handlers


def status(trans):
    """What the control socket says."""
    context = zmq.green.Context()
    with context.socket(zmq.REQ) as asking, gevent.Timeout(5):
        asking.setsockopt(zmq.LINGER, 0)
        asking.connect(f"tcp://127.0.0.1:{trans.rep_port}")
        asking.send(b"STATUS")
        answer = json.loads(asking.recv())
    context.term()
    return answer


def get(port):
    """The body of one answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        data = b""
        while not data.endswith(b"served"):
            part = browser.recv(4096)
            assert part, data
            data += part


WRONG = [
    pytest.param(NOWHERE, None, "send_spec", "nothing accepts connections there", id="nobody at pull_addr"),
    pytest.param(None, NOWHERE, "recv_spec", "nothing accepts connections there", id="nobody at pub_addr"),
    pytest.param("recv_spec", None, "send_spec", "addresses swapped", id="both ways to recv_spec"),
    pytest.param(None, "send_spec", "recv_spec", "addresses swapped", id="both ways to send_spec"),
    pytest.param("recv_spec", "send_spec", "recv_spec", "addresses swapped", id="swapped"),
    pytest.param("http", None, "send_spec", "has not spoken ZeroMQ", id="the browsers' port"),
]


@pytest.mark.mongrel2
@pytest.mark.parametrize(("pull", "pub", "named", "why"), WRONG)
def test_the_way_that_does_not_connect_is_named(entry, soon, caplog, pull, pub, named, why):
    """In the log, in STATUS, and by the error of who waits; STATUS does not say ready meanwhile."""
    server, handler = entry
    words = {"send_spec": handler.send_spec, "recv_spec": handler.recv_spec, "http": f"tcp://127.0.0.1:{server.port}"}
    pull = words.get(pull, pull) or handler.send_spec
    pub = words.get(pub, pub) or handler.recv_spec
    with Transceiver("one", pull, pub, rep_port=0, rep_ip="127.0.0.1") as trans:
        until(lambda: why in caplog.text)
        address = pull if named == "send_spec" else pub
        line = next(record.getMessage() for record in caplog.records if why in record.getMessage())
        assert address in line
        assert f"{named} of its handler entry?" in line
        told = status(trans)
        assert told["ready"] is told["connections"][0]["ready"] is False
        assert address in told["connections"][0]["why"]
        assert told["why"] == [told["connections"][0]["why"]]
        with pytest.raises(ConnectTimeout, match=f"{named} of its handler entry") as caught:
            trans.wait_ready(0.05)
        assert caught.value.address == address


@pytest.mark.mongrel2
def test_with_both_ways_it_is_ready(entry):
    """And serves; STATUS has nothing to say."""
    server, handler = entry
    with Transceiver("one", handler.send_spec, handler.recv_spec, rep_port=0, rep_ip="127.0.0.1") as trans:
        trans.wait_ready(5)
        serving = gevent.spawn(trans.serve, lambda conn, req: conn.reply_http(req, "served"))
        get(server.port)
        told = status(trans)
        assert (told["ready"], told["why"], told["connections"][0]["why"]) == (True, [], "")
    serving.join(5)


@pytest.fixture
def fail_to_receive(monkeypatch):
    """A list; while an error is in it, it is raised by each PULL socket that receives."""
    receive = zmq.Socket.recv
    errors: list[Exception] = []

    def failing(one, *arguments, **options):
        if errors and one.getsockopt(zmq.TYPE) == zmq.PULL:
            raise errors[0]
        return receive(one, *arguments, **options)

    monkeypatch.setattr(zmq.Socket, "recv", failing)
    monkeypatch.setattr("greentx.transport.receiver.RETRY_SECONDS", 0.01)
    return errors


@pytest.mark.parametrize("error", [zmq.ZMQError(zmq.EFAULT), OSError(24, "Too many open files")], ids=repr)
def test_a_receiver_that_cannot_go_on_is_not_ready_until_it_can(fail_to_receive, caplog, error):
    """STATUS says why, a CRITICAL line names it, and afterwards requests are served as before."""
    with (
        PlainServer() as server,
        Transceiver("plain", server.push_endpoint, server.sub_endpoint, rep_port=0, rep_ip="127.0.0.1") as trans,
    ):
        trans.wait_ready(5)
        fail_to_receive.append(error)
        server.push.send(b"wakes it")
        until(lambda: any(record.levelname == "CRITICAL" for record in caplog.records))
        critical = next(record for record in caplog.records if record.levelname == "CRITICAL")
        assert "receiver of plain does not work" in critical.getMessage()
        told = status(trans)
        assert (told["ready"], told["connections"][0]["ready"]) == (False, False)
        assert repr(error) in told["why"][0]
        fail_to_receive.clear()
        trans.wait_ready(10)
        assert status(trans)["ready"] is True
        assert is_served(trans, server, 1)


def test_a_server_that_went_is_missed_at_once():
    """Not ready from the moment on in which it is known."""
    with Transceiver("plain", "tcp://127.0.0.1:1", "tcp://127.0.0.1:1", rep_port=False) as trans:
        assert not trans.status()["ready"]
        with PlainServer() as server:
            conn = trans.add_connection("two", server.push_endpoint, server.sub_endpoint)
            assert conn.wait_ready(5)
            assert conn.status()["ready"]
        until(lambda: not conn.ready)
        assert not conn.wait_ready(0.01)
        until(lambda: "no Mongrel2 has subscribed at" in conn.status()["why"])  # PULL may miss it first


def test_a_request_that_no_node_takes_is_told_of(soon, caplog):
    """Who looks for the cause of browsers that hang finds the relay's endpoint in the log."""
    with Server("one", ip="127.0.0.1", push_port=0, sub_port=0) as server:
        api = Transceiver("one", server.push_addr, server.sub_addr, rep_port=0, rep_ip="127.0.0.1")
        with api, Relay(api, send_timeout=20) as relay:
            server.connect(f"127.0.0.1:{api.rep_port}")
            server.client("http").send("/")
            forwarding = gevent.spawn(relay.forward, next(api.recv(timeout=5))[2])
            until(lambda: f"no Node is connected to {relay.node_endpoint}" in caplog.text)
            forwarding.kill()


def test_a_node_without_its_relay_is_not_ready():
    """It could answer, but nothing would come."""
    with Node(NOWHERE, rep_port=False) as node:
        told = node.status()
        assert told["ready"] is False
        assert [NOWHERE in why and "is the API running" in why for why in told["why"]] == [True]


def test_a_node_without_its_relay_says_so_in_the_log(soon, caplog):
    """Who looks for the cause finds the address."""
    with Node(NOWHERE, rep_port=False):
        until(lambda: f"no relay at {NOWHERE}" in caplog.text)


# -- names -------------------------------------------------------------------------------------------------------------


def is_served(trans, server, number):
    """Whether a request that *server* pushes has its answer arrive there; fails where it does not."""
    server.push.send(build_request("plain", number, "/", {"METHOD": "GET", "VERSION": "HTTP/1.1"}))
    _sid, conn, req = next(trans.recv(timeout=5))
    assert conn is not None
    conn.reply_http(req, "served")
    until(lambda: server.bodies(b"%d" % number).endswith(b"served"))
    return True


def test_a_name_that_nobody_resolves_stops_nobody_else(resolver, caplog):
    """Another connection set is served while the resolver has not answered; afterwards this one is."""
    resolver.answers.clear()
    resolver.known["server.test"] = "127.0.0.1"
    with (
        PlainServer() as server,
        PlainServer(sender=b"two") as two,
        Transceiver("plain", server.push_endpoint, server.sub_endpoint, rep_port=False) as trans,
    ):
        pull, pub = (endpoint.replace("127.0.0.1", "server.test") for endpoint in (two.push_endpoint, two.sub_endpoint))
        named = trans.add_connection("two", pull, pub)
        until(lambda: resolver.asked)
        trans.conn.wait_ready(5)
        for number in range(1, 21):
            assert is_served(trans, server, number)
        assert not named.ready
        resolver.answers.set()
        assert named.wait_ready(5)
        assert set(resolver.asked) == {"server.test"}


def test_a_server_that_moved_is_found_by_its_name(resolver, caplog, monkeypatch):
    """Both ways are connected to what its name means now; while it means nothing the name is told."""
    monkeypatch.setattr("greentx.transport.connecting.RESOLVE_SECONDS", 0.01)
    monkeypatch.setattr("greentx.transport.receiver.RETRY_SECONDS", 0.01)
    with PlainServer() as server:
        ends = server.push_endpoint, server.sub_endpoint
        pull, pub = (endpoint.replace("127.0.0.1", "server.test") for endpoint in ends)
        trans = Transceiver("plain", pull, pub, rep_port=False)
        with trans:
            until(lambda: "'server.test'" in trans.conn.status()["why"])
            assert f"the name 'server.test' of {pub} is not resolved: Name or service not known" in caplog.text
            resolver.known["server.test"] = "127.0.0.1"
            trans.wait_ready(5)
            server.close()
            until(lambda: not trans.conn.ready)
            resolver.known["server.test"] = "127.0.0.2"
            moved_push, moved_sub = (endpoint.replace("127.0.0.1", "127.0.0.2") for endpoint in ends)
            with PlainServer(endpoints=(moved_push, moved_sub)) as other:
                trans.wait_ready(10)
                assert is_served(trans, other, 1)


def test_a_handler_by_name_is_asked_where_the_name_leads(resolver):
    """Until then the question has no answer, and its error has the name."""
    trans = Transceiver("one", NOWHERE, NOWHERE, rep_port=0, rep_ip="127.0.0.1")
    with Server("two", ip="127.0.0.1", push_port=0, sub_port=0) as server, trans:
        with pytest.raises(ControlError, match=r"the name 'handler\.test' of tcp://handler\.test:.* is not resolved"):
            server.connect(f"handler.test:{trans.rep_port}", timeout=300)
        gevent.spawn_later(0.05, resolver.known.update, {"handler.test": "127.0.0.1"})
        assert server.connect(f"handler.test:{trans.rep_port}", timeout=5000)
