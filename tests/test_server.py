"""The stand-in for Mongrel2: its life, its handlers, and whom a reply goes to."""

from __future__ import annotations

import contextlib
import logging
import socket
import time

import gevent
import netifaces
import pytest
from free_ports import Server
from gevent.event import Event
from plain_handler import PlainHandler

from greentx.errors import (
    BindError,
    ConnectionClosed,
    ConnectTimeout,
    ControlError,
    LocalProtocolError,
    SendTimeout,
    TransportError,
)
from greentx.protocol.replies import build_reply
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request
from greentx.standin.client import HTTPClient, Mongrel2Client, WebSocketClient

LOCAL = "127.0.0.1"


@contextlib.contextmanager
def handlers(count, answer=None, **options):
    """That many plain handlers."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(PlainHandler(answer, **options)) for _ in range(count)]


class BusyHandler(PlainHandler):
    """Does what it is ``asked`` once it is ``free``."""

    def __enter__(self):
        self.asked = Event()
        self.free = Event()
        return super().__enter__()

    def _obey(self, message):
        self.asked.set()
        self.free.wait()
        return super()._obey(message)


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind((LOCAL, 0))
        return one.getsockname()[1]


def wait_until(fact, timeout=5.0):
    """Return once *fact* is true."""
    with gevent.Timeout(timeout):
        while not fact():
            gevent.sleep(0.002)


# -- life ------------------------------------------------------------------------------------------------------------


def test_a_started_server_tells_its_ports():
    """0 becomes a real one, and both are bound."""
    server = Server(ip=LOCAL)
    assert (server.started, server.push_port, server.sub_port) == (False, 0, 0)
    with server:
        assert server.started
        for port in (server.push_port, server.sub_port):
            socket.create_connection((LOCAL, port)).close()
        assert repr(server.push_port) in repr(server)
    assert not server.started
    assert "not started" in repr(server)
    server.stop()


def test_a_server_may_start_again():
    """Ports that were asked for are the same, others are new; ids go on."""
    port = closed_port()
    server = Server(ip=LOCAL, push_port=port)
    for _ in range(3):
        with server:
            server.start()
            assert server.push_port == port
            assert server.sub_port not in (0, port)


def test_the_sender_is_a_uuid_unless_given():
    """It can be parsed back either way."""
    assert len(Server(ip=LOCAL).sender) == 36
    assert Server("my-server", ip=LOCAL).sender == "my-server"
    assert Server(ip=LOCAL).sender != Server(ip=LOCAL).sender


@pytest.mark.parametrize(
    "options",
    [
        {"sender": "a b"},
        {"sender": "a\n"},
        {"sender": ""},
        {"ip": "*"},
        {"ip": "0.0.0.0"},
        {"ip": "::"},
        {"ip": "a b"},
        {"push_port": 65536},
        {"sub_port": -1},
        {"encoding": "xml"},
        {"connect": "a:b:c"},
        {"connect": ["localhost", ("localhost", 0)]},
        {"connect": 17},
        {"connect": b"localhost"},
        {"connect": ("localhost", "9997")},
        {"connect_timeout": 0},
        {"connect_timeout": -1},
        {"connect_timeout": "5"},
    ],
)
def test_a_bad_argument_is_refused_at_once(options):
    """Not when starting, and not when the first client is made."""
    with pytest.raises(LocalProtocolError):
        Server(**options)


@pytest.mark.parametrize("name", ["push_port", "sub_port"])
def test_a_port_in_use_is_named(name):
    """The error has the address, and nothing stays open."""
    with socket.socket() as one:
        one.bind((LOCAL, 0))
        one.listen()
        port = one.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port}"):
            Server(ip=LOCAL, **{name: port}).start()


def test_the_default_address_is_bound(monkeypatch):
    """Without ip, the machine's own address is asked for when starting."""
    monkeypatch.setattr(netifaces, "interfaces", lambda: ["eth0"])
    monkeypatch.setattr(netifaces, "ifaddresses", lambda name: {netifaces.AF_INET: [{"addr": LOCAL}]})
    with Server() as server:
        assert server.ip == LOCAL
    monkeypatch.setattr(netifaces, "interfaces", list)
    with pytest.raises(TransportError, match="there are: none"):
        Server().start()


def test_a_server_that_is_not_started_says_so():
    """Each method that needs the sockets."""
    server = Server(ip=LOCAL)
    for use in (
        server.client,
        server.recv,
        lambda: server.send(b"x"),
        lambda: server.connect("localhost"),
        lambda: server.disconnect("localhost"),
    ):
        with pytest.raises(TransportError, match="is not started"):
            use()


def test_the_log_level_lowers_that_of_the_package_only():
    """The default leaves the application's logging alone."""
    logger = logging.getLogger("greentx")
    level = logger.level
    try:
        Server(ip=LOCAL)
        assert logger.level == level
        Server(ip=LOCAL, log_level=logging.DEBUG)
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(level)


def test_fifty_servers_leave_nothing_behind():
    """The file descriptors are counted after the test."""
    for _ in range(50):
        with Server(ip=LOCAL):
            pass


# -- handlers --------------------------------------------------------------------------------------------------------


def test_a_client_s_first_request_is_answered():
    """When client() returns, the connection works in both directions."""
    for _ in range(5):
        with PlainHandler() as handler, Server(ip=LOCAL, connect=handler.addr) as server:
            client = server.client()
            assert server.handlers == (f"tcp://{handler.addr}",)
            client.send("/", body=b"hello")
            assert client.recv().body == b"hello"


def test_lost_proofs_are_asked_for_again():
    """A PUB socket that is not connected yet loses what it publishes."""
    with PlainHandler(lost_proofs=3) as handler, Server(ip=LOCAL, connect=handler.addr) as server:
        server.client()
        assert handler.commands.count("/__ping__") >= 4
        assert handler.commands.count("/__add_connection__") == 1


def test_all_addresses_of_connect_are_connected():
    """Text, pairs, endpoints; one or several."""
    with handlers(3) as (one, two, three):
        addresses = [one.addr, (LOCAL, two.port), f"tcp://127.0.0.1:{three.port}"]
        with Server(ip=LOCAL, connect=addresses) as server:
            server.client()
            assert len(server.handlers) == 3
        with Server(ip=LOCAL, connect=(LOCAL, one.port)) as server:
            server.client()
            assert server.handlers == (f"tcp://127.0.0.1:{one.port}",)


def test_requests_go_to_the_handlers_in_turn():
    """As Mongrel2's PUSH hands them out; all of them were connected when client() returned."""
    with handlers(3) as all_of_them:
        with Server(ip=LOCAL, connect=[one.addr for one in all_of_them]) as server:
            client = server.client()
            for number in range(9):
                client.send("/", body=b"%d" % number)
            assert sorted(client.recv().body for _ in range(9)) == [b"%d" % number for number in range(9)]
            assert [len(one.requests) for one in all_of_them] == [3, 3, 3]


def test_handlers_are_connected_side_by_side():
    """Twenty that each prove themselves late take hardly longer than one."""
    with handlers(20, lost_proofs=20) as all_of_them:
        with Server(ip=LOCAL, connect=[one.addr for one in all_of_them], connect_timeout=20_000) as server:
            started = time.monotonic()
            server.client()
            took = time.monotonic() - started
            assert len(server.handlers) == 20
    assert took < 20 * 20 * 0.05 / 2


def test_fifty_handlers_are_connected_soon():
    """Each is proven."""
    with handlers(50) as all_of_them, Server(ip=LOCAL, connect=[one.addr for one in all_of_them]) as server:
        started = time.monotonic()
        server.client()
        assert time.monotonic() - started < 10
        assert len(server.handlers) == 50


def test_a_handler_that_is_not_there_is_named_with_the_time():
    """The others are connected, and the next client tries again."""
    port = closed_port()
    with PlainHandler() as handler:
        with Server(ip=LOCAL, connect=[handler.addr, f"127.0.0.1:{port}"], connect_timeout=1000) as server:
            with pytest.raises(ControlError, match=f"127.0.0.1:{port} did not answer within 1000 ms"):
                server.client()
            assert server.handlers == (f"tcp://{handler.addr}",)
            with pytest.raises(ControlError, match="1000 ms"):
                server.client()
            assert handler.commands.count("/__add_connection__") == 1


def test_several_missing_handlers_are_all_named():
    """One error for them together."""
    ports = [closed_port(), closed_port()]
    with Server(ip=LOCAL, connect=[(LOCAL, port) for port in ports], connect_timeout=100) as server:
        with pytest.raises(ControlError, match="2 of 2 handlers") as raised:
            server.client()
    assert all(str(port) in str(raised.value) for port in ports)


def test_a_handler_that_starts_late_is_waited_for():
    """Within the timeout the order of starting does not matter."""
    port = closed_port()
    with Server(ip=LOCAL, connect=(LOCAL, port)) as server:
        making = gevent.spawn(server.client)
        gevent.sleep(0.15)  # what must not happen has no event
        assert not making.ready()
        with PlainHandler(port=port):
            client = making.get(timeout=5)
            client.send("/", body=b"x")
            assert client.recv().body == b"x"
            server.stop()


def test_a_handler_that_proves_nothing_is_given_up():
    """It answers, but its proof does not come; it is told to let go again."""
    with PlainHandler(lost_proofs=10**6) as handler, Server(ip=LOCAL) as server:
        with pytest.raises(ConnectTimeout, match=f"{handler.addr} is not connected after [0-9]+ ms"):
            server.connect(handler.addr, timeout=1500)
        assert server.handlers == ()
        assert handler.commands[-1] == "/__remove_connection__"


def connect_in_vain(server, handler):
    """The handler is told, and does not answer in time."""
    with pytest.raises(ControlError, match="did not answer within 100 ms"):
        server.connect(handler.addr, timeout=100)


def test_a_handler_that_obeys_too_late_lets_go_again():
    """It gets no requests that nobody knows of."""
    with BusyHandler(pull=False) as handler, Server(ip=LOCAL) as server:
        connect_in_vain(server, handler)
        handler.free.set()
        wait_until(lambda: handler.commands == ["/__add_connection__", "/__remove_connection__"])
        assert server.handlers == ()
        assert not handler.pubs


def test_leaving_waits_for_a_handler_that_obeys_too_late():
    """Else it would keep the server for good."""
    with BusyHandler(pull=False) as handler:
        with Server(ip=LOCAL) as server:
            connect_in_vain(server, handler)
            gevent.spawn_later(0.1, handler.free.set)
        assert handler.commands == ["/__add_connection__", "/__remove_connection__"]


def interrupt(use, fact, error):
    """Raise *error* in a greenlet that calls *use* as soon as *fact* is true."""

    def run():
        with pytest.raises(error):
            use()

    running = gevent.spawn(run)
    wait_until(fact)
    running.kill(error)
    running.get()


# What ends the waiting of a caller that is killed, and of one that has a ``with gevent.Timeout(...)`` around it.
INTERRUPTS = pytest.mark.parametrize("error", [gevent.GreenletExit, gevent.Timeout])


@INTERRUPTS
def test_a_handler_lets_go_where_its_caller_did_not_wait_for_its_answer(error):
    """It was told to connect, obeys later on, and is waited for when the server leaves."""
    with BusyHandler(pull=False) as handler:
        with Server(ip=LOCAL, connect=handler.addr) as server:
            interrupt(server.client, handler.asked.is_set, error)
            handler.free.set()
        assert handler.commands == ["/__add_connection__", "/__remove_connection__"]
        assert not handler.pubs


@INTERRUPTS
def test_a_handler_lets_go_where_its_caller_did_not_wait_for_its_proof(error):
    """It answered that it connects, and does."""
    with PlainHandler(lost_proofs=10**6) as handler:
        with Server(ip=LOCAL, connect=handler.addr) as server:
            interrupt(server.client, lambda: "/__ping__" in handler.commands, error)
        assert handler.commands[-1] == "/__remove_connection__"
        assert not handler.pubs


def test_a_handler_in_doubt_stays_so_where_its_next_caller_does_not_wait():
    """What it was told the first time is still to be taken back, and leaving waits for that."""
    with BusyHandler(pull=False) as handler:
        with Server(ip=LOCAL) as server:
            connect_in_vain(server, handler)
            with gevent.Timeout(0.1, False):
                server.connect(handler.addr)
            gevent.spawn_later(0.1, handler.free.set)
        assert handler.commands[0] == "/__add_connection__"
        assert set(handler.commands[1:]) == {"/__remove_connection__"}
        assert not handler.pubs


def test_leaving_does_not_wait_for_who_was_never_told():
    """The question did not go out, so nothing has to be taken back."""
    took = []
    for _ in range(3):
        with Server(ip=LOCAL) as server:
            with pytest.raises(ControlError):
                server.connect((LOCAL, closed_port()), timeout=100)
            started = time.monotonic()
        took.append(time.monotonic() - started)
    assert min(took) < 1


def test_a_handler_that_does_not_pull_is_given_up():
    """Replies would arrive, requests would not."""
    with PlainHandler(pull=False) as handler, Server(ip=LOCAL) as server:
        with pytest.raises(ConnectTimeout, match=r"did not pull from tcp://127.0.0.1:\d+ after 1500 ms"):
            server.connect(handler.addr, timeout=1500)
        assert handler.commands[-1] == "/__remove_connection__"
        with PlainHandler() as other:
            server.connect(other.addr)
            assert len(server.handlers) == 1
            server.stop()


def test_a_refusal_is_passed_on():
    """In the handler's own words."""
    with PlainHandler(refuse=b"ERROR not today") as handler, Server(ip=LOCAL) as server:
        with pytest.raises(ControlError, match="'ERROR not today'"):
            server.connect(handler.addr)


def test_handlers_come_and_go_while_running():
    """A handler that was disconnected gets no further request."""
    with handlers(2) as (one, two), Server(ip=LOCAL) as server:
        server.connect(one.addr)
        server.connect(two.addr)
        server.connect(two.addr)
        assert two.commands.count("/__add_connection__") == 1
        server.disconnect(one.addr)
        assert server.handlers == (f"tcp://{two.addr}",)
        client = server.client()
        for _ in range(4):
            client.send("/", body=b"x")
            assert client.recv().body == b"x"
        assert (len(one.requests), len(two.requests)) == (0, 4)
        assert one.commands[-2:] == ["/__remove_connection__", "/__disconnect_ping__"]
        server.connect(one.addr)
        assert len(server.handlers) == 2


def test_only_a_connected_handler_can_be_disconnected():
    """Others are a slip of the caller's."""
    with Server(ip=LOCAL) as server, pytest.raises(LocalProtocolError, match="connected are"):
        server.disconnect("127.0.0.1:1")


def test_a_handler_that_was_never_there_can_be_given_up():
    """Clients are made without it from then on; a second time it is a slip."""
    port = closed_port()
    with PlainHandler() as handler:
        with Server(ip=LOCAL, connect=[handler.addr, (LOCAL, port)], connect_timeout=1000) as server:
            with pytest.raises(ControlError):
                server.client()
            server.disconnect((LOCAL, port))
            client = server.client()
            client.send("/", body=b"x")
            assert client.recv().body == b"x"
            with pytest.raises(LocalProtocolError, match="is not connected"):
                server.disconnect((LOCAL, port))


def test_a_disconnected_handler_is_not_connected_again_by_a_client():
    """It was meant."""
    with PlainHandler() as handler, Server(ip=LOCAL, connect=handler.addr) as server:
        server.client()
        server.disconnect(handler.addr)
        server.client()
        assert server.handlers == ()


def test_leaving_tells_every_handler():
    """Each lets go before the sockets close."""
    with handlers(3) as all_of_them:
        with Server(ip=LOCAL, connect=[one.addr for one in all_of_them]) as server:
            server.client()
        for one in all_of_them:
            assert one.commands[-1] == "/__remove_connection__"
            assert not one.pubs


def test_who_stops_a_stopping_server_waits_for_its_end():
    """The handlers are told once, and have the time for it."""
    with PlainHandler() as handler:
        server = Server(ip=LOCAL, connect=handler.addr)
        server.start()
        server.client()

        def stop():
            server.stop()
            assert not server.started

        gevent.joinall([gevent.spawn(stop) for _ in range(3)], raise_error=True)
        assert handler.commands.count("/__remove_connection__") == 1


def test_leaving_waits_once_for_all_handlers_that_are_dead(caplog):
    """They are asked side by side, and for two seconds only; each is named in the log."""
    with handlers(5) as all_of_them:
        server = Server(ip=LOCAL, connect=[one.addr for one in all_of_them])
        server.start()
        server.client()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "greentx.server"):
        server.stop()
    assert time.monotonic() - started < 8  # one after the other it is ten
    assert all(f"{one.addr} was not told" in caplog.text for one in all_of_them)


def test_a_handler_that_keeps_pulling_is_named_in_the_log(caplog):
    """It said that it let go, but goes on to take requests."""
    with PlainHandler(keep_pull=True) as handler, Server("S", ip=LOCAL) as server:
        with caplog.at_level(logging.WARNING, "greentx.server"):
            server.connect(handler.addr)
            server.disconnect(handler.addr)
            assert f"{handler.addr} let go of tcp://{LOCAL}:{server.push_port}, but no PULL" in caplog.text
            with PlainHandler(keep_pull=True) as other:
                server.connect(other.addr)
                server.stop()
                assert "S ends with 2 PULL sockets connected" in caplog.text


def test_a_handler_that_cannot_be_taken_back_is_named_in_the_log(caplog):
    """It did not prove itself, and then did not answer any more: it may connect later."""
    with PlainHandler(lost_proofs=10**6) as handler, Server(ip=LOCAL) as server:

        def connect():
            with pytest.raises(ConnectTimeout):
                server.connect(handler.addr, timeout=1500)

        connecting = gevent.spawn(connect)
        wait_until(lambda: "/__ping__" in handler.commands)
        handler.mute = 10**6
        with caplog.at_level(logging.WARNING, "greentx.server"):
            connecting.get()
        assert f"{handler.addr} may go on to connect" in caplog.text


def test_stopping_wakes_those_who_wait_to_send_and_to_receive():
    """With an error that says why."""

    def raises(use):
        with pytest.raises(TransportError):
            use()

    server = Server(ip=LOCAL)
    server.start()
    waiting = [gevent.spawn(raises, use) for use in (lambda: server.send(b"x", None), lambda: server.recv(None))]
    waiting.append(gevent.spawn(raises, lambda: server.connect(("127.0.0.1", 1))))
    server.post(b"y")
    gevent.sleep(0.01)  # what must not happen has no event
    server.stop()
    gevent.joinall(waiting, timeout=1, raise_error=True)
    assert all(one.successful() for one in waiting)


def test_a_killed_sender_takes_its_message_back():
    """It does not go out later."""
    with PlainHandler() as handler, Server("S", ip=LOCAL) as server:
        sending = [gevent.spawn(server.send, build_request("S", n, "/", {"METHOD": "GET"}), None) for n in (1, 2)]
        gevent.sleep(0.01)  # until it waits in there, which nobody is told
        sending[0].kill()
        server.connect(handler.addr)
        sending[1].get()
        wait_until(lambda: handler.requests)
        assert [request.conn_id for request in handler.requests] == ["2"]


def test_a_block_that_ends_with_an_error_passes_it_on():
    """And closes all the same."""
    with pytest.raises(KeyError), Server(ip=LOCAL) as server:
        raise KeyError
    assert not server.started


def test_a_killed_greenlet_closes_its_server():
    """Also while a handler is being waited for."""
    server = Server(ip=LOCAL, connect=(LOCAL, closed_port()))

    def run():
        with server:
            server.client()

    running = gevent.spawn(run)
    wait_until(lambda: server.started)
    gevent.sleep(0.01)  # until it waits in there, which nobody is told
    running.kill()
    assert not server.started


# -- messages --------------------------------------------------------------------------------------------------------


def test_send_without_a_handler_times_out_and_says_why():
    """The message is not sent later, either; other greenlets go on meanwhile."""
    with Server(ip=LOCAL) as server:
        ticks = []
        # A tick at each turn of the hub: a hub that is blocked has fewer.
        ticking = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.01)) for _ in range(100)])
        with pytest.raises(SendTimeout, match="within 200 ms: no handler is connected"):
            server.send(build_request(server.sender, 1, "/", {"METHOD": "GET"}), timeout=200)
        assert len(ticks) > 5
        ticking.kill()
        with PlainHandler() as handler:
            server.connect(handler.addr)
            client = server.client()
            client.send("/", body=b"x")
            assert client.recv().body == b"x"
            assert len(handler.requests) == 1
            server.stop()


def test_send_takes_messages_only():
    """Text has no bytes until somebody says which."""
    with Server(ip=LOCAL) as server, pytest.raises(LocalProtocolError, match="bytes or a Request, not str"):
        server.send("x")


def test_what_does_not_speak_zeromq_is_no_handler():
    """A port scanner, say; handlers are counted beside it, and nothing else is."""
    with PlainHandler() as handler, Server(ip=LOCAL) as server, contextlib.ExitStack() as stack:
        where = (LOCAL, server.push_port)
        strangers = [stack.enter_context(socket.create_connection(where)) for _ in range(3)]
        with pytest.raises(SendTimeout, match="no handler is connected"):
            server.send(build_request(server.sender, 1, "/", {"METHOD": "GET"}), timeout=100)
        server.connect(handler.addr)
        assert server.peers == 1
        for one in strangers:
            one.close()
        client = server.client()
        client.send("/", body=b"x")
        assert client.recv().body == b"x"
        assert server.peers == 1
        server.disconnect(handler.addr)
        assert server.peers == 0


def test_send_to_full_handlers_times_out_and_says_why():
    """A handler that reads nothing fills up."""
    # The sleep never ends by itself: the handler is ended.
    with PlainHandler(lambda request: gevent.sleep(60)) as handler, Server(ip=LOCAL) as server:
        server.connect(handler.addr)
        message = build_request(server.sender, 1, "/", {"METHOD": "GET"}, b"x" * 100_000)

        def fill():
            while True:
                server.send(message, timeout=50)

        with pytest.raises(SendTimeout, match="all 1 connected handlers have their fill"):
            fill()


def test_a_message_that_waits_goes_when_a_handler_comes():
    """In the order of the calls, from any number of greenlets."""
    with PlainHandler() as handler, Server(ip=LOCAL) as server:
        clients = [server.client() for _ in range(20)]
        sending = [gevent.spawn(one.send, "/", None, b"x", timeout=5000) for one in clients]
        gevent.sleep(0.05)  # until it waits in there, which nobody is told
        server.connect(handler.addr)
        gevent.joinall(sending, raise_error=True)
        for one in clients:
            assert one.recv().body == b"x"
        assert [request.conn_id for request in handler.requests] == [one.conn_id for one in clients]


def test_raw_messages_and_replies_pass_through_send_and_recv():
    """A reply to a connection that no Client has is what recv returns; no notice follows, ids are the caller's."""
    with PlainHandler() as handler, Server("raw", ip=LOCAL) as server:
        server.connect(handler.addr)
        server.send(build_request("raw", 77, "/", {"METHOD": "GET"}, b"one"))
        assert server.recv() == b"raw 2:77, one"
        server.send(Request("raw", "78", "/", {"METHOD": "GET"}, b"two"))
        assert server.recv() == b"raw 2:78, two"
        assert server.recv(timeout=20) is None
        assert server.unclaimed == 2
        assert len(handler.requests) == 2


def test_a_late_reply_is_counted_and_answered_by_a_notice():
    """As Mongrel2 does for a connection that has gone."""
    with PlainHandler(lambda request: None) as handler, Server("late", ip=LOCAL) as server:
        server.connect(handler.addr)
        client = server.client()
        client.send("/")
        client.disconnect()
        wait_until(lambda: len(handler.requests) == 2)
        handler.publish("late", client.conn_id, b"too late")
        wait_until(lambda: len(handler.requests) == 3)
        assert server.unclaimed == 1
        for request in handler.requests[1:]:
            assert request.is_disconnect()
            assert request.conn_id == client.conn_id


def test_a_reply_to_several_connections_goes_to_each_of_them():
    """Those that nobody has are counted; the others are not kept waiting by them."""
    with PlainHandler(lambda request: None) as handler, Server("many", ip=LOCAL) as server:
        server.connect(handler.addr)
        clients = [server.client() for _ in range(50)]
        handler.publish("many", [*(one.conn_id for one in clients), 999], b"to all")
        for one in clients:
            assert one.recv().body == b"to all"
        assert server.unclaimed == 1
        handler.publish("many", [clients[0].conn_id] * 2, b"twice")
        assert [clients[0].recv().body for _ in range(2)] == [b"twice"] * 2


def test_a_reply_that_mongrel2_would_refuse_is_counted(caplog):
    """It is logged, and the next one is delivered."""
    with PlainHandler(lambda request: None) as handler, Server("bad", ip=LOCAL) as server:
        server.connect(handler.addr)
        client = server.client()
        with caplog.at_level(logging.WARNING, "greentx.server"):
            handler.publish_raw("bad", b"garbage")
            handler.publish_raw("bad", b"bad 1:12, x")
            handler.publish("bad", client.conn_id, b"good")
            assert client.recv().body == b"good"
        assert server.bad_replies == 2
        assert caplog.text.count("stall") == 2


@pytest.mark.parametrize("digits", [20, 21, 5000])
def test_no_connection_id_is_too_long(digits, caplog):
    """A handler may write any: it is a reply to nobody, and the next one is delivered."""
    with PlainHandler(lambda request: None) as handler, Server("long", ip=LOCAL) as server:
        server.connect(handler.addr)
        client = server.client()
        ids = b"9" * digits
        for body in (b"", b"x"):
            handler.publish_raw("long", b"long %d:%s, %s" % (len(ids), ids, body))
        handler.publish("long", client.conn_id, b"good")
        assert client.recv().body == b"good"
        # An empty one to a number of 20 digits asks for a notice, as a receipt does.
        assert server.unclaimed == (1 if digits == 20 else 2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_clients_have_numbers_of_their_own():
    """One counter for all, whatever they read."""
    with Server(ip=LOCAL) as server:
        clients = [server.client("mongrel2"), server.client("http"), server.client("websocket"), server.client()]
        assert [type(one) for one in clients] == [Mongrel2Client, HTTPClient, WebSocketClient, Mongrel2Client]
        assert [one.conn_id for one in clients] == ["1", "2", "3", "4"]
        assert server.clients == 4
        clients[1].disconnect()
        assert server.clients == 3
        with pytest.raises(LocalProtocolError, match="'mongrel2', 'http', 'websocket'"):
            server.client("ftp")


def test_two_hundred_clients_get_their_own_answers():
    """None is lost, none doubled."""
    rounds = 50
    with handlers(2, lambda request: b"%s for %s" % (request.body, request.conn_id.encode())) as all_of_them:
        with Server(ip=LOCAL, connect=[one.addr for one in all_of_them]) as server:

            def browse():
                client = server.client()
                for number in range(rounds):
                    client.send("/", body=b"%d" % number)
                    assert client.recv(timeout=20_000).body == b"%d for %s" % (number, client.conn_id.encode())
                assert client.recv(timeout=1) is None
                client.disconnect()

            browsing = [gevent.spawn(browse) for _ in range(200)]
            gevent.joinall(browsing, raise_error=True)
            assert server.unclaimed == 0
        answered = [request for one in all_of_them for request in one.requests if not request.is_disconnect()]
        assert len(answered) == 200 * rounds
        assert len({(request.conn_id, request.body) for request in answered}) == 200 * rounds


def test_clients_of_a_stopped_server_are_closed():
    """Whoever waits wakes up."""

    def wait_for(client):
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60_000)

    with Server(ip=LOCAL) as server:
        clients = [server.client("mongrel2"), server.client("http"), server.client("websocket")]
        waiting = [gevent.spawn(wait_for, one) for one in clients]
        gevent.sleep(0.01)  # until it waits in there, which nobody is told
    gevent.joinall(waiting, timeout=1, raise_error=True)
    assert all(one.closed for one in clients)


def test_json_headers_can_be_chosen():
    """The handler sees which; the answer is the same."""
    for encoding in ("tnetstring", "json"):
        with PlainHandler() as handler, Server(ip=LOCAL, connect=handler.addr, encoding=encoding) as server:
            client = server.client()
            client.send("/a?x=1", {"Cookie": ["a=b", "c=d"]}, b"body")
            assert client.recv().body == b"body"
            kind = bytes if encoding == "tnetstring" else str
            assert {type(name) for name in handler.requests[0].raw} == {kind}
            assert handler.requests[0].headers["cookie"] == ["a=b", "c=d"]
            assert parse_request(handler.requests[0].encode()).query == {"x": ["1"]}


def test_a_reply_that_comes_while_it_stops_is_no_error(caplog):
    """Nobody is there any more to be told that its browser has gone."""
    with PlainHandler() as handler, Server("late", ip=LOCAL) as server:
        server.connect(handler.addr)
        conn_id = server.client().conn_id
    server.router.route(build_reply("late", conn_id, b"late"))
    assert server.unclaimed == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
