"""What the control socket refuses: peers by their network, and commands that would harm what others rely on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket

import gevent
import netifaces
import pytest
import zmq.green as zmq
from http_rig import Browser, routes, serving, transceiver, wait_until
from own_network import ADDRESS, PUBLIC_ADDRESS, own_network

from greentx import Connection, Transceiver
from greentx.errors import BindError, LocalProtocolError
from greentx.protocol.requests import build_request

LOCAL = "127.0.0.1"
NOBODY = (LOCAL, 1)


class Peer:
    """A server with PUSH and SUB, bound, and a REQ to one control socket; it may be at any loopback address."""

    def __init__(self, trans: Transceiver, sender: str, address: str = LOCAL) -> None:
        self.sender = sender
        self.context = zmq.Context()
        self.push, self.sub = self.context.socket(zmq.PUSH), self.context.socket(zmq.SUB)
        self.addresses = [[LOCAL, one.bind_to_random_port(f"tcp://{LOCAL}")] for one in (self.push, self.sub)]
        self.sub.subscribe(b"")
        self.req = self.context.socket(zmq.REQ)
        # "source;destination": ZeroMQ binds our end of the connection (zmq_tcp(7)).
        self.req.connect(f"tcp://{address}:0;{LOCAL}:{trans.rep_port}")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.destroy(0)

    def ask(self, message: bytes) -> bytes:
        """Ask, and return the answer."""
        self.req.send(message)
        with gevent.Timeout(5):
            return self.req.recv()

    def command(self, path: str, body: object = None, method: str = "JSON", **headers: str) -> bytes:
        """Send a command of the sender's."""
        data = b"" if body is None else json.dumps(body).encode()
        return self.ask(build_request(self.sender, "-1", path, {"METHOD": method, **headers}, data, protocol="json"))

    def add(self, addresses: list[list[object]] | None = None, **more: object) -> bytes:
        """Ask to be added, or have others added."""
        push, sub = addresses or self.addresses
        return self.command("/__add_connection__", {"push": push, "sub": sub, **more})

    def remove(self) -> bytes:
        """Ask to be removed."""
        return self.command("/__remove_connection__", {})

    def ping(self, text: str = "guid") -> bytes:
        """Ask for a proof."""
        return self.command("/__ping__", method="MONGREL2", QUERY=f"text={text}")

    def hear(self) -> bytes:
        """Return the next message over SUB."""
        with gevent.Timeout(5):
            return self.sub.recv()

    def asks_in_vain(self) -> bool:
        """True where no answer comes: the connection is refused before a question is read."""
        with contextlib.suppress(zmq.Again):  # there is no connection to send it on
            self.req.send(b"PING", zmq.NOBLOCK)
        return not self.req.poll(300)


@pytest.fixture
def trans():
    with Transceiver("main", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL) as trans:
        yield trans


def loaded(trans: Transceiver, sender: str) -> Connection:
    """The connection set, once its server is there."""
    connection = trans.connections[sender]
    assert connection.wait_ready(5)
    return connection


# -- who is answered ---------------------------------------------------------------------------------------------------


def test_a_peer_outside_the_networks_hears_nothing_and_is_named_in_the_log_once(caplog):
    """However often it comes back; others are answered."""
    with Transceiver("main", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL, control_allow="127.0.0.1") as trans:
        with (
            Peer(trans, "s", "127.0.0.7") as stranger,
            Peer(trans, "t", "127.0.0.7") as again,
            Peer(trans, "u") as ours,
        ):
            assert stranger.asks_in_vain()
            assert again.asks_in_vain()
            assert ours.ask(b"PING") == b"PONG"
    (line,) = (record.getMessage() for record in caplog.records if "refused" in record.getMessage())
    assert "control socket of main: 127.0.0.7 is refused" in line
    assert "control_allow= (127.0.0.1/32)" in line


def test_by_default_private_addresses_are_answered_and_no_others():
    """On all interfaces, at the well-known port."""
    program = (
        "import gevent, sys\n"
        "from greentx import Transceiver\n"
        f"with Transceiver('main', {NOBODY}, {NOBODY}):\n"
        "    print('ready', flush=True)\n"
        "    gevent.get_hub().threadpool.apply(sys.stdin.readline)\n"
    )
    # What is refused is not waited for: the next question goes out when the one before was answered, or closed.
    asking = (
        "import sys, zmq\n"
        "for source in sys.stdin:\n"
        "    with zmq.Context() as context, context.socket(zmq.REQ) as req:\n"
        "        req.linger = 0\n"
        "        ends = req.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_SUCCEEDED)\n"
        "        req.connect(f'tcp://{source.strip()}:0;127.0.0.1:9997')\n"
        "        if not ends.poll(10000):\n"
        "            print('nothing', flush=True)\n"
        "        elif int.from_bytes(ends.recv_multipart()[0][:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_FAILED_AUTH:\n"
        "            print('refused', flush=True)\n"
        "        else:\n"
        "            req.send(b'PING')\n"
        "            print(req.recv().decode(), flush=True)\n"
    )
    with own_network() as network:
        server, asker = network.start(program), network.start(asking)
        assert server.line() == "ready"
        expected = {"127.0.0.1": "PONG", "127.1.2.3": "PONG"}
        if network.address == ADDRESS:
            expected |= {ADDRESS: "PONG", PUBLIC_ADDRESS: "refused"}
        for source, answer in expected.items():
            asker.tell(source)
            assert (source, asker.line()) == (source, answer)
        server.tell("")
        assert server.end() == 0


@pytest.mark.parametrize("networks", ["nowhere", ["10.0.0.1/8"], 5, [None]])
@pytest.mark.parametrize("option", ["control_allow", "allow_connections"])
def test_what_is_no_network_is_told_at_once(option, networks):
    """By the name of the option."""
    with pytest.raises(LocalProtocolError, match=option):
        Transceiver("main", NOBODY, NOBODY, **{option: networks})


def test_a_port_in_use_is_told_with_the_option_that_chooses_another_one():
    """Nothing is left open."""
    with socket.socket() as other:
        other.bind((LOCAL, 0))
        port = other.getsockname()[1]
        with pytest.raises(BindError, match=rf"{port}.*rep_port="):
            Transceiver("main", NOBODY, NOBODY, rep_port=port, rep_ip=LOCAL).start()


# -- what is protected -------------------------------------------------------------------------------------------------


def test_a_set_whose_server_is_there_is_not_replaced(trans):
    """By nobody: it goes on, and the same addresses again are as good as ever."""
    with Peer(trans, "s") as ours, Peer(trans, "s") as intruder:
        assert ours.add() == b"RECEIVED"
        connection = loaded(trans, "s")
        answer = intruder.add()
        assert answer.startswith(b"ERROR sender 's' is served by ")
        assert ours.add() == b"RECEIVED"
        assert trans.connections["s"] is connection and connection.ready
        ours.ping()
        assert ours.hear() == b"s 2:-1, guid"


def test_a_set_whose_server_has_gone_may_be_replaced(trans):
    """As a server that was started again, on new ports, needs it."""
    with Peer(trans, "s") as ours:
        assert ours.add() == b"RECEIVED"
        connection = loaded(trans, "s")
    wait_until(lambda: not connection.ready)
    with Peer(trans, "s") as successor:
        assert successor.add() == b"RECEIVED"
        successor.ping()
        assert successor.hear() == b"s 2:-1, guid"


def test_a_server_is_removed_by_whoever_added_it_while_it_is_there(trans):
    """Not from another address; once it has gone anybody may."""
    with Peer(trans, "s") as ours, Peer(trans, "s", "127.0.0.7") as intruder:
        assert ours.add() == b"RECEIVED"
        connection = loaded(trans, "s")
        assert intruder.add(ours.addresses) == b"RECEIVED"  # which changes nothing
        assert (
            intruder.remove() == b"ERROR 's' was added by 127.0.0.1, and its server is there: 127.0.0.7 cannot end it"
        )
        assert trans.connections["s"] is connection
        assert ours.remove() == b"RECEIVED"
        assert ours.add() == b"RECEIVED"
        connection = loaded(trans, "s")
        ours.push.close(0)
        ours.sub.close(0)
        wait_until(lambda: not connection.ready)
        assert intruder.remove() == b"RECEIVED"


def test_what_the_application_has_added_it_ends_itself(trans):
    """While its server is there; the control socket can neither replace nor remove it."""
    with Peer(trans, "s") as ours, Peer(trans, "s") as intruder:
        push, sub = (tuple(one) for one in ours.addresses)
        trans.add_connection("s", push, sub)
        connection = loaded(trans, "s")
        assert intruder.add().startswith(b"ERROR ")
        assert intruder.remove().startswith(b"ERROR the application serves 's'")
        assert trans.connections["s"] is connection
        # A Server may be where a Mongrel2 was expected, and says so; it does not own the set for that.
        assert ours.add() == b"RECEIVED"
        assert connection.link.stand_in
        ours.ping()
        assert ours.hear() == b"s 2:-1, guid"
        assert ours.remove().startswith(b"ERROR the application serves 's'")
        assert trans.connections["s"] is connection
        trans.remove_connection("s")
        assert sorted(trans.connections) == ["main"]


@pytest.mark.mongrel2
def test_nobody_can_have_a_mongrel2_stand_still(start_mongrel2):
    """20 proofs that are asked for stall a Mongrel2 for 10 s, if they are sent: none is."""
    server = start_mongrel2(routes(), settings={"download.flow_control": 1})
    with transceiver(server, rep_port=0, rep_ip=LOCAL) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, "quick")), Peer(trans, trans.sender) as peer:
            assert browser.get("/").body == b"quick"
            sent = trans.connections[trans.sender].status()["replies"]
            for _ in range(20):
                assert b"was not added by a Server" in peer.ping()
            assert browser.get("/").body == b"quick"
            assert trans.connections[trans.sender].status()["replies"] == sent + 1


def test_a_mongrel2_that_was_added_gets_no_proof_under_any_name(trans):
    """Nor does a set to the same sockets, by another name of the machine, pass for a Server's."""
    with Peer(trans, "m") as mongrel2, Peer(trans, "other") as liar:
        assert mongrel2.add(mongrel2=True) == b"RECEIVED"
        connection = loaded(trans, "m")
        push, sub = mongrel2.addresses
        for host in (LOCAL, "localhost", "127.0.0.9"):
            answer = liar.add([[host, push[1]], [host, sub[1]]])
            assert b"is the Mongrel2 of 'm'" in answer
        assert mongrel2.add() == b"RECEIVED"  # the same addresses, as an old program asks
        assert not connection.link.stand_in
        assert b"was not added by a Server" in mongrel2.ping()
        assert not mongrel2.sub.poll(50)


def test_only_the_host_of_the_application_s_own_server_can_say_that_it_is_no_mongrel2(trans):
    """Said from elsewhere it changes nothing: messages stay paced, and no proof is sent. Nor does another name help."""
    with Peer(trans, "m") as server, Peer(trans, "m", "127.0.0.9") as liar, Peer(trans, "x", "127.0.0.9") as other:
        trans.add_connection("m", *(tuple(one) for one in server.addresses))
        connection = loaded(trans, "m")
        assert liar.add(server.addresses) == b"RECEIVED"  # the same again
        assert not connection.link.stand_in
        assert b"was not added by a Server" in liar.ping()
        assert b"is the Mongrel2 of 'm'" in other.add(server.addresses)
        assert not connection.link.stand_in
        assert server.add() == b"RECEIVED"
        assert connection.link.stand_in
        assert liar.ping() == b"RECEIVED"  # it is a Server now, whoever asks
        assert server.hear() == b"m 2:-1, guid"


def test_a_server_on_this_machine_may_ask_from_any_address_of_it():
    """It is known by the address of a network, and asks over loopback."""
    addresses = [
        one["addr"] for name in netifaces.interfaces() for one in netifaces.ifaddresses(name).get(netifaces.AF_INET, ())
    ]
    mine = next((one for one in addresses if not one.startswith("127.")), LOCAL)
    with Transceiver("m", (mine, 1), (mine, 2), rep_port=0, rep_ip=LOCAL) as trans, Peer(trans, "m") as server:
        assert server.add([[mine, 1], [mine, 2]]) == b"RECEIVED"
        assert trans.conn.link.stand_in


def test_a_bounded_number_of_proofs_waits_for_one_server(trans):
    """Those beyond are refused; another server still has its own."""
    with Peer(trans, "s") as first, Peer(trans, "t") as second:
        first.sub.unsubscribe(b"")
        first.add()
        answers = [first.ping(str(number)) for number in range(40)]
        assert answers[:32] == [b"RECEIVED"] * 32
        assert all(b"32 proofs wait for 's'" in answer for answer in answers[32:])
        second.add()
        assert second.ping() == b"RECEIVED"
        assert second.hear() == b"t 2:-1, guid"


# -- how much ----------------------------------------------------------------------------------------------------------


def test_there_are_at_most_max_connections_sets(trans):
    """100 by default, the application's own included; who is removed makes room."""
    with Peer(trans, "") as peer:
        for number in range(99):
            peer.sender = f"s{number}"
            assert peer.add([[LOCAL, 1], [LOCAL, 1]]) == b"RECEIVED"
        peer.sender = "one-more"
        assert peer.add() == (
            b"ERROR 'one-more' would be connection set 101, limit 100: remove another one, or set max_connections="
        )
        with pytest.raises(LocalProtocolError, match="limit 100"):
            trans.add_connection("one-more", NOBODY, NOBODY)
        peer.sender = "s5"
        assert peer.remove() == b"RECEIVED"
        peer.sender = "one-more"
        assert peer.add() == b"RECEIVED"
        assert peer.ping() == b"RECEIVED"
        assert peer.hear() == b"one-more 2:-1, guid"


def test_servers_that_are_added_may_be_kept_to_some_networks():
    """Both addresses; a name is none, as it may mean another one a moment later."""
    with Transceiver(
        "main", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL, allow_connections=["127.0.0.0/30", "10.0.0.0/8"]
    ) as trans:
        with Peer(trans, "s") as peer:
            push, sub = peer.addresses
            for bad in ("127.0.0.9", "192.0.2.1", "localhost", "::1"):
                assert b"allow_connections= (127.0.0.0/30, 10.0.0.0/8)" in peer.add([[bad, push[1]], sub])
                assert b"allow_connections= (127.0.0.0/30, 10.0.0.0/8)" in peer.add([push, [bad, sub[1]]])
            assert sorted(trans.connections) == ["main"]
            assert peer.add() == b"RECEIVED"
            loaded(trans, "s")


def test_600_servers_that_are_not_there_cost_little():
    """Nobody answers at their addresses, so they are tried more and more seldom."""

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    descriptors = len(os.listdir("/proc/self/fd"))
    with Transceiver("main", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL, max_connections=601) as trans:
        with Peer(trans, "") as peer:
            for number in range(600):
                peer.sender = f"s{number}"
                assert peer.add([[LOCAL, 1 + number], [LOCAL, 1 + number]]) == b"RECEIVED"
            # Until each has failed a few times; what is measured then is CPU, which other programs do not change.
            gevent.sleep(5)
            before = cpu()
            gevent.sleep(2)
            assert (cpu() - before) / 2 < 0.5
        logging.disable(logging.WARNING)  # 600 lines that say that they are not there
    logging.disable(logging.NOTSET)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 2)
