"""CURVE: control sockets, Servers and relays that serve nobody but those whose keys they know."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import zmq.green as zmq
from free_ports import Server
from http_rig import wait_until

import greentx
from greentx import Connector, Transceiver
from greentx.errors import ControlError, LocalProtocolError
from greentx.relay import Node, Relay
from greentx.transport.keys import make_key_files, public_key
from greentx.transport.security import Access

LOCAL = "127.0.0.1"
NOBODY = (LOCAL, 1)


class Ring:
    """Keys of several parties; each is known to those that it was copied to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("handler", "server", "node", "stranger"):
            make_key_files(folder, name)

    def secret(self, name: str) -> Path:
        """The file of one's own keys."""
        return self.folder / f"{name}.key_secret"

    def public(self, *names: str) -> list[Path]:
        """Files of public keys."""
        return [self.folder / f"{name}.key" for name in names]

    def of(self, name: str, *allowed: str) -> dict[str, Any]:
        """The options of one that lets others in."""
        return {"curve_secret": self.secret(name), "curve_allow": self.public(*allowed)}

    def to(self, name: str, other: str) -> dict[str, Any]:
        """The options of one that connects to another one."""
        return {"curve_secret": self.secret(name), "curve_server": self.public(other)[0]}


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path)


@pytest.fixture
def handler(ring: Ring) -> Iterator[Transceiver]:
    """A Transceiver whose control socket answers the server and the node; it says which path it was asked for."""
    options = ring.of("handler", "server", "node")
    with Transceiver("main", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL, **options) as trans:
        serving = gevent.spawn(trans.serve, lambda conn, req: conn.reply_http(req, f"main: {req.path}"))
        yield trans
        trans.stop(5)
        serving.get(timeout=5)


def address(trans: Transceiver) -> tuple[str, int]:
    assert trans.rep_port
    return LOCAL, trans.rep_port


def page(server: greentx.Server, path: str) -> bytes:
    """What a new client gets."""
    client = server.client("http")
    client.send(path)
    answer = client.recv(5000)
    assert answer is not None
    return answer.body


def forward(api: Transceiver, relay: Relay) -> None:
    """The API's loop."""
    for _sid, _conn, req in api.recv():
        assert req is not None
        relay.forward(req)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()]


def ask_in_the_clear(port: int) -> bool:
    """Whether a REQ without a key is answered within a moment."""
    with zmq.Context() as context, context.socket(zmq.REQ) as req:
        req.linger = 0
        req.connect(f"tcp://{LOCAL}:{port}")
        req.send(b"PING")
        return bool(req.poll(300))


# -- the control socket ------------------------------------------------------------------------------------------------


def test_a_control_socket_with_keys_answers_those_it_knows_and_nobody_else(ring, handler, caplog):
    """Not in the clear, not by an unknown key, and not one that expects somebody else; the unknown key is logged."""
    assert Connector(address(handler), **ring.to("server", "handler")).ping(5000)
    assert Connector(address(handler), **ring.to("node", "handler")).status(5000)["sender"] == "main"
    assert not refusals(caplog)
    assert not ask_in_the_clear(handler.rep_port)
    assert not Connector(address(handler), **ring.to("server", "node")).ping(300)
    assert not refusals(caplog)
    assert not Connector(address(handler), **ring.to("stranger", "handler")).ping(300)
    (line,) = refusals(caplog)
    assert public_key(ring.public("stranger")[0]).decode() in line
    assert "curve_allow=" in line
    with Connector(address(handler), timeout=300) as plain, pytest.raises(ControlError, match="this key"):
        plain.status()


@pytest.mark.parametrize(
    "options",
    [{"curve_secret"}, {"curve_allow"}, {"curve_server"}],
    ids=lambda options: ",".join(options),
)
def test_half_of_the_keys_is_an_error(ring, options):
    """Nothing is left open by mistake: of a Transceiver, a Server, a Relay and a Node."""
    everything = {**ring.of("handler", "server"), "curve_server": ring.public("server")[0]}
    some = {name: value for name, value in everything.items() if name in options}
    with pytest.raises(LocalProtocolError, match="curve_secret"):
        Transceiver("main", NOBODY, NOBODY, **some)
    with pytest.raises(LocalProtocolError, match="curve_secret"):
        Server("main", ip=LOCAL, **some)
    if "curve_server" not in options:
        with Transceiver("main", NOBODY, NOBODY, rep_port=False) as trans:
            with pytest.raises(LocalProtocolError, match="curve_secret"):
                Relay(trans, (LOCAL, 0), (LOCAL, 0), **some)
    with pytest.raises(LocalProtocolError, match="curve_secret"):
        Node(NOBODY, rep_port=False, curve_relay=everything["curve_server"])


def test_a_peer_that_could_not_be_asked_about_is_refused_and_the_next_one_is_not(ring, handler, monkeypatch, caplog):
    """Whatever went wrong: nobody slips in, nobody is locked out."""
    asked = Access.callback

    def fail(self, domain, key):
        monkeypatch.setattr(Access, "callback", asked)
        raise ZeroDivisionError("of this test")

    monkeypatch.setattr(Access, "callback", fail)
    assert not Connector(address(handler), **ring.to("server", "handler")).ping(300)
    assert "could not be asked about" in caplog.text
    assert Connector(address(handler), **ring.to("server", "handler")).ping(5000)


def test_a_peer_in_the_middle_of_its_handshake_holds_up_no_end(ring):
    """Nobody answers ZeroMQ's question any more; the context goes all the same."""
    with contextlib.ExitStack() as stack:
        options = ring.of("handler", "server")
        with Transceiver("main", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL, linger=5, **options) as trans:
            asking = stack.enter_context(zmq.Context())
            for _ in range(20):
                req = stack.enter_context(asking.socket(zmq.REQ))
                req.linger = 0
                req.curve_serverkey = public_key(ring.public("handler")[0])
                req.curve_publickey, req.curve_secretkey = zmq.curve_keypair()
                req.connect(f"tcp://{LOCAL}:{trans.rep_port}")
            context = trans.shared().context
            # The hub does not run, so that ZeroMQ's questions wait.
            time.sleep(0.2)
        assert context.terminated


# -- Server and handler ------------------------------------------------------------------------------------------------


def test_a_server_and_its_handler_talk_with_keys_both_ways(ring, handler):
    """Control, requests and answers; the same server may be connected again, and lets go in the end."""
    with Server("one", address(handler), LOCAL, **ring.to("server", "handler")) as server:
        assert page(server, "/x") == b"main: /x"
        assert server.connect(address(handler))
        assert sorted(handler.connections) == ["main", "one"]
    wait_until(lambda: sorted(handler.connections) == ["main"])


def test_a_handler_with_another_key_is_connected_by_that(ring, handler):
    """Each may have its own; the server has to let it in."""
    options = {"curve_secret": ring.secret("server"), "curve_allow": ring.public("handler", "node")}
    with Server("one", ip=LOCAL, **options) as server:
        assert server.connect(address(handler), curve_server=ring.public("handler")[0])
        assert page(server, "/") == b"main: /"


def test_a_server_with_keys_gives_strangers_no_request_and_hears_no_answer_of_theirs(ring, handler, caplog):
    """In the clear, or by a key that it does not know."""
    with Server("one", address(handler), LOCAL, **ring.to("server", "handler")) as server, zmq.Context() as context:
        server.client()
        stranger = Transceiver(
            "one", server.push_addr, server.sub_addr, rep_port=False, **ring.to("stranger", "server")
        )
        with stranger, context.socket(zmq.PULL) as pull, context.socket(zmq.PUB) as pub:
            pull.linger = pub.linger = 0
            pull.connect(f"tcp://{LOCAL}:{server.push_port}")
            pub.connect(f"tcp://{LOCAL}:{server.sub_port}")
            wait_until(lambda: len(refusals(caplog)) >= 1)
            for number in range(10):
                assert page(server, f"/{number}") == f"main: /{number}".encode()
                pub.send(b"one 1:1, hello")
            assert not pull.poll(100)
            assert not stranger.conn.ready
            assert server.unclaimed == server.bad_replies == 0


def test_a_handler_without_keys_says_what_it_needs():
    """A server that demands them cannot be added to it: it could not answer."""
    with Transceiver("main", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL) as trans:
        with zmq.Context() as context, context.socket(zmq.REQ) as req:
            req.connect(f"tcp://{LOCAL}:{trans.rep_port}")
            body = b'{"push": ["127.0.0.1", 1], "sub": ["127.0.0.1", 1], "curve": "%s"}' % (b"0" * 40)
            req.send(b's -1 /__add_connection__ 17:{"METHOD":"JSON"},%d:%s,' % (len(body), body))
            with gevent.Timeout(5):
                answer = req.recv()
        assert answer.startswith(b"ERROR ") and b"curve_secret=" in answer
        assert sorted(trans.connections) == ["main"]


# -- relay and Node ----------------------------------------------------------------------------------------------------


def test_an_unknown_pull_at_a_relay_gets_nothing(ring, handler, caplog):
    """Nor a subscriber; the Nodes whose keys it knows get everything, and answer a Server with keys directly."""
    options = ring.to("server", "handler") | {"curve_allow": ring.public("handler", "node")}
    with Transceiver("api", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL, **ring.of("handler", "server")) as api:
        relay = Relay(api, (LOCAL, 0), (LOCAL, 0), **ring.of("handler", "node"))
        forwarding = gevent.spawn(forward, api, relay)
        with Server("one", address(api), LOCAL, **options) as server, zmq.Context() as context:
            node_options = {
                "curve_secret": ring.secret("node"),
                "curve_relay": ring.public("handler")[0],
                "rep_port": False,
            }
            node = Node(relay.node_endpoint, **node_options)
            spy = Node(relay.node_endpoint, **{**node_options, "curve_secret": ring.secret("stranger")})
            with spy, context.socket(zmq.PULL) as pull, context.socket(zmq.SUB) as sub:
                pull.linger = sub.linger = 0
                assert relay.push_endpoint is not None and relay.pub_endpoint is not None
                pull.connect(relay.push_endpoint)
                sub.connect(relay.pub_endpoint)
                sub.subscribe(b"")
                wait_until(lambda: refusals(caplog))
                with node:
                    answering = gevent.spawn(node.serve, lambda conn, req: conn.reply_http(req, f"node: {req.path}"))
                    wait_until(lambda: relay.nodes.names == {node.name})
                    for number in range(10):
                        assert page(server, f"/{number}") == f"node: /{number}".encode()
                    relay.publish("news", "hello")
                    assert not pull.poll(100)
                    assert not sub.poll(0)
                    assert relay.nodes.names == {node.name}
                    node.stop(5)
                    answering.get(timeout=5)
        api.stop(5)
        forwarding.get(timeout=5)


def test_a_node_answers_a_server_that_only_the_api_was_told_of(ring):
    """The relay tells it the server's key."""
    options = ring.to("server", "handler") | {"curve_allow": ring.public("handler", "node")}
    with Transceiver("api", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL, **ring.of("handler", "server")) as api:
        relay = Relay(api, (LOCAL, 0), (LOCAL, 0), **ring.of("handler", "node"))
        forwarding = gevent.spawn(forward, api, relay)
        with Server("one", address(api), LOCAL, **options) as server:
            node = Node(
                relay.node_endpoint,
                rep_port=False,
                curve_secret=ring.secret("node"),
                curve_relay=ring.public("handler")[0],
            )
            with node:
                answering = gevent.spawn(node.serve, lambda conn, req: conn.reply_http(req, f"node: {req.path}"))
                wait_until(lambda: relay.nodes.names == {node.name})
                assert page(server, "/x") == b"node: /x"
                node.stop(5)
                answering.get(timeout=5)
        api.stop(5)
        forwarding.get(timeout=5)
