"""Servers, Connectors and Clients with Transceivers, in one process and in several."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gevent
import gevent.subprocess
import pytest
from free_ports import Server
from gevent.event import Event

import greentx
from greentx import Transceiver
from greentx.errors import ConnectionClosed, ConnectTimeout, ControlError, LocalProtocolError
from greentx.protocol.websocket.frames import Frame, Opcode
from greentx.standin.connector import Connector

LOCAL = "127.0.0.1"
ROOT = Path(greentx.__file__).parents[1]

#: A handler program: it says where its control socket is, and answers with its own pid.
HANDLER = """
import os, sys
from greentx import Transceiver
with Transceiver("unused", ("127.0.0.1", 1), ("127.0.0.1", 1), rep_port=0, rep_ip="127.0.0.1") as trans:
    print(trans.rep_port, flush=True)
    for sid, conn, req in trans.recv():
        if not req.is_disconnect():
            conn.reply_http(req, str(os.getpid()))
"""


@contextlib.contextmanager
def program(source):
    """Run Python source in a process of its own, which is killed at the end; yields it and its first line."""
    child = gevent.subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@contextlib.contextmanager
def transceivers(count, handler=None, **options):
    """That many running Transceivers, which know no server yet, and their control addresses."""
    options = {"rep_port": 0, "rep_ip": LOCAL, **options}
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            one = Transceiver(f"none-{number}", (LOCAL, 1), (LOCAL, 1), **options)
            found.append(stack.enter_context(one))
            if handler is not None:
                gevent.spawn(one.serve, handler)
        yield found, [(LOCAL, one.rep_port) for one in found]


def wait_until(fact, timeout=10.0):
    """Return once *fact* is true."""
    with gevent.Timeout(timeout):
        while not fact():
            gevent.sleep(0.002)


def say_path(conn, req):
    """Answer with path and connection."""
    if req.method != "DISCONNECT":
        conn.reply_http(req, f"{req.path} {req.conn_id}")


def echo(ws):
    """Answer messages with themselves."""
    for message in ws:
        ws.send(message)


def test_the_first_request_after_connecting_is_answered_every_time():
    """Connected means connected, both ways: twenty times a new server at a running handler."""
    with transceivers(1, say_path) as (_, addresses):
        for _ in range(20):
            with Server(ip=LOCAL, connect=addresses) as server:
                client = server.client("http")
                client.send("/first")
                assert client.recv().body == b"/first 1"


def test_fifty_handlers_are_connected_side_by_side():
    """Each verified, and soon; then each gets its share."""
    with transceivers(50, say_path) as (handlers, addresses), Server(ip=LOCAL, connect=addresses) as server:
        started = time.monotonic()
        client = server.client("http")
        assert time.monotonic() - started < 10
        assert all(server.sender in one.connections for one in handlers)
        for _ in range(100):
            client.send("/x")
        assert [client.recv().status for _ in range(100)] == [200] * 100


def test_clients_of_several_servers_get_their_own_answers():
    """100 Clients on each of two Servers, at two handlers at once."""
    with transceivers(2, say_path) as (_, addresses), contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(ip=LOCAL, connect=addresses)) for _ in range(2)]

        def browse(server):
            with server.client("http") as client:
                for number in range(20):
                    client.send(f"/{number}")
                    assert client.recv(timeout=20_000).body == f"/{number} {client.conn_id}".encode()
                assert client.recv(timeout=1) is None

        browsing = [gevent.spawn(browse, server) for server in servers for _ in range(100)]
        gevent.joinall(browsing, raise_error=True)
        assert [one.unclaimed for one in servers] == [0, 0]


def test_a_handler_is_pinged_and_tells_its_status():
    """By its control socket alone."""
    with transceivers(1) as (_, addresses), Server("asking", ip=LOCAL) as server:
        connector = Connector(addresses[0], server)
        connector.ping()
        assert "asking" not in json.dumps(connector.status())
        server.connect(addresses[0])
        assert "asking" in json.dumps(connector.status())


def test_handlers_are_added_and_removed_while_requests_run():
    """None of the requests is lost, whoever gets it."""
    with transceivers(3, say_path) as (handlers, addresses), Server(ip=LOCAL) as server:
        server.connect(addresses[0])
        going_on = True

        def browse():
            count = 0
            with server.client("http") as client:
                while going_on:
                    client.send("/x")
                    assert client.recv(timeout=5000) is not None
                    count += 1
            return count

        browsing = [gevent.spawn(browse) for _ in range(5)]
        for address in addresses[1:]:
            server.connect(address)
        assert len(server.handlers) == 3
        gevent.sleep(0.1)  # the load goes on for a while with all of them
        going_on = False
        gevent.joinall(browsing, raise_error=True)
        assert all(one.value > 0 for one in browsing)
        server.disconnect(addresses[0])
        assert server.sender not in handlers[0].connections
        with server.client("http") as client:
            for _ in range(4):
                client.send("/x")
                assert client.recv().status == 200


def test_leaving_a_server_takes_it_from_its_handlers():
    """They were told; nothing of it is left there."""
    with transceivers(2) as (handlers, addresses):
        with Server(ip=LOCAL, connect=addresses) as server:
            server.client()
        assert all(server.sender not in one.connections for one in handlers)


def test_a_web_request_cannot_rewire_a_handler():
    """The paths of the control socket are ordinary ones for a Client."""
    with transceivers(1, say_path) as (handlers, addresses), Server(ip=LOCAL, connect=addresses) as server:
        client = server.client("http")
        client.send("/__remove_connection__", {"METHOD": "JSON"}, b"{}")
        client.recv(timeout=50)
        client = server.client("http")
        client.send("/__add_connection__")
        assert client.recv().status == 200
        assert server.sender in handlers[0].connections


def test_a_refusal_of_a_transceiver_is_passed_on():
    """In its own words: it does not know the server that wants to leave."""
    with transceivers(1) as (_, addresses), Server("stranger", ip=LOCAL) as server:
        with pytest.raises(ControlError, match=r"no connection for sender .*stranger"):
            Connector(addresses[0], server).disconnect()
        with pytest.raises(LocalProtocolError):
            server.disconnect(addresses[0])


def test_a_killed_handler_does_not_stop_the_others():
    """kill -9: who waited for it times out, the rest goes on, and leaving stays short."""
    with program(HANDLER) as (one, first_port), program(HANDLER) as (two, second_port):
        server = Server(ip=LOCAL, connect=[f"127.0.0.1:{first_port}", f"127.0.0.1:{second_port}"])
        with server:
            clients = [server.client("http") for _ in range(4)]
            for client in clients:
                client.send("/")
            assert sorted(int(client.recv(timeout=5000).body) for client in clients) == sorted([one.pid, two.pid] * 2)
            peers = server.peers
            one.send_signal(signal.SIGSTOP)
            waiting = [server.client("http") for _ in range(2)]
            for client in waiting:
                client.send("/")
            one.kill()
            answered = []
            wait_until(lambda: answered.extend(one for one in waiting if one.recv(timeout=10)) or answered)
            [lost] = set(waiting) - set(answered)
            assert lost.recv(timeout=300) is None
            wait_until(lambda: server.peers < peers)
            for _ in range(10):
                client = server.client("http")
                client.send("/")
                assert int(client.recv(timeout=5000).body) == two.pid
            started = time.monotonic()
        assert time.monotonic() - started < 10


def test_a_handler_started_again_is_connected_again():
    """The dead one is let go of, with an error that names it, and counts as gone."""
    with Server(ip=LOCAL) as server:
        with program(HANDLER) as (_, port):
            server.connect((LOCAL, int(port)))
        with pytest.raises(ControlError, match=r"did not answer within (99|100) ms"):
            server.disconnect((LOCAL, int(port)), timeout=100)
        assert server.handlers == ()
        with program(HANDLER) as (again, port):
            server.connect((LOCAL, int(port)))
            client = server.client("http")
            client.send("/")
            assert int(client.recv(timeout=5000).body) == again.pid
            server.stop()


@pytest.mark.parametrize("others", [0, 1])
def test_a_handler_that_died_is_connected_anew(others):
    """On the same address; connect() of a handler that is listed does not take its word of before."""
    with transceivers(others, say_path) as (_, addresses), Server(ip=LOCAL, connect=addresses) as server:
        server.client()
        with program(HANDLER) as (_, port):
            address = (LOCAL, int(port))
            server.connect(address)
        wait_until(lambda: server.peers == others)
        with program(HANDLER.replace("rep_port=0", f"rep_port={port}")):
            server.connect(address)
            server.connect(address)
            assert server.peers == others + 1
            for _ in range(4):
                with server.client("http") as client:
                    client.send("/x")
                    assert client.recv(timeout=5000).status == 200
            server.stop()


def test_a_handler_by_another_name_stays_connected():
    """It connects once only; that the other name fails does it no harm."""
    with transceivers(1, say_path) as ((handler,), addresses), Server(ip=LOCAL, connect=addresses) as server:
        client = server.client("http")
        with pytest.raises(ConnectTimeout, match="a connected handler by another name"):
            server.connect(("localhost", handler.rep_port), timeout=200)
        assert server.handlers == (f"tcp://{LOCAL}:{handler.rep_port}",)
        client.send("/still")
        assert client.recv().body == b"/still 1"


def test_a_handler_by_another_name_stays_connected_where_its_caller_does_not_wait():
    """Nor is it told to let go where a timeout of the caller's ends the waiting."""
    with transceivers(1, say_path) as ((handler,), addresses), Server(ip=LOCAL, connect=addresses) as server:
        client = server.client("http")
        with gevent.Timeout(0.3, False):
            server.connect(("localhost", handler.rep_port))
        with gevent.Timeout(0.3, False):  # what must not happen has no event
            wait_until(lambda: not server.peers)
        assert server.peers == 1
        client.send("/still")
        assert client.recv().body == b"/still 1"


def test_a_handler_that_obeys_too_late_can_be_connected_again():
    """What it was told before is done with first."""
    free = Event()
    free.set()

    class Busy(Transceiver):
        def add_connection(self, *args, **options):
            free.wait()
            return super().add_connection(*args, **options)

    with Busy("none", (LOCAL, 1), (LOCAL, 1), rep_port=0, rep_ip=LOCAL) as handler, Server(ip=LOCAL) as server:
        gevent.spawn(handler.serve, say_path)
        free.clear()
        with pytest.raises(ControlError, match=r"did not answer within (99|100) ms"):
            server.connect((LOCAL, handler.rep_port), timeout=100)
        gevent.spawn_later(0.1, free.set)
        server.connect((LOCAL, handler.rep_port))
        with server.client("http") as client:
            for _ in range(4):
                client.send("/x")
                assert client.recv().status == 200
        server.stop()
        assert server.sender not in handler.connections


def test_websockets_are_pinged_broadcast_to_and_closed():
    """A thousand from one Server: three rounds of pings dropped none, one broadcast reaches each, all close cleanly."""
    count = 1000
    with transceivers(1, ping_timeout=1) as ((handler,), addresses), Server(ip=LOCAL, connect=addresses) as server:
        gevent.spawn(handler.serve, websocket=echo)
        clients = [server.client("websocket") for _ in range(count)]
        for client in clients:
            client.handshake("/", timeout=20_000)
        assert len(handler.websockets) == count
        wait_until(lambda: all(client.pings >= 3 for client in clients), 20)
        assert len(handler.websockets) == count
        assert handler.broadcast("to all") == count
        for client in clients:
            assert client.recv(timeout=20_000) == Frame(b"to all", Opcode.TEXT)
        for client in clients[: count // 2]:
            assert client.close(timeout=20_000)
            assert client.close_code == 1000
        for client in clients[count // 2 :]:
            client.disconnect(timeout=20_000)
        wait_until(lambda: not len(handler.websockets))


@pytest.mark.parametrize("deflate", [False, True])
def test_a_websocket_talks_to_a_transceiver(deflate):
    """Subprotocol, compression, large messages, pings, the handler's close."""

    def talk(ws):
        for message in ws:
            if message == "bye":
                ws.close(4000, "as you wish")
            else:
                ws.send(message)

    with transceivers(1, subprotocols=["b"]) as ((handler,), addresses), Server(ip=LOCAL, connect=addresses) as server:
        gevent.spawn(handler.serve, websocket=talk)
        client = server.client("websocket")
        client.handshake("/talk", subprotocols=["a", "b"], deflate=deflate)
        assert client.subprotocol == "b"
        assert (client.deflate is not None) is deflate
        for message in ("short", "long " * 50_000, b"\0\xff" * 50_000, ""):
            client.send(message)
            assert client.recv(timeout=5000).payload == (message if isinstance(message, bytes) else message.encode())
        client.ping(b"?")
        assert client.recv() == Frame(b"?", Opcode.PONG)
        client.send("bye")
        assert client.recv().opcode == Opcode.CLOSE
        with pytest.raises(ConnectionClosed) as raised:
            client.recv(timeout=5000)
        assert (raised.value.code, raised.value.reason) == (4000, "as you wish")


def test_a_browser_that_answers_no_ping_is_dropped():
    """The handler's pinger finds out."""
    with transceivers(1, ping_timeout=0.1) as ((handler,), addresses), Server(ip=LOCAL, connect=addresses) as server:
        gevent.spawn(handler.serve, websocket=echo)
        deaf, well = server.client("websocket"), server.client("websocket")
        deaf.auto_pong = False
        for client in (deaf, well):
            client.handshake("/")
        wait_until(lambda: deaf.closed)
        assert not well.closed
        assert len(handler.websockets) == 1


# -- ways of ending --------------------------------------------------------------------------------------------------

SERVER = """
import gevent, os, signal, sys
from greentx.standin.server import Server
server = Server(ip="127.0.0.1", connect={connect!r}, push_port=0, sub_port=0)
server.start()
server.client()
print("up", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        ("raise KeyError", 1),
        # The sleep is cut short by the signal.
        ("os.kill(os.getpid(), signal.SIGTERM); gevent.sleep(10)", 143),
        ("os.kill(os.getpid(), signal.SIGINT); gevent.sleep(10)", 130),
        ("gevent.get_hub().destroy(); os._exit(5)", 5),
    ],
)
def test_a_program_that_never_left_its_server_ends_at_once(end, code):
    """Whatever way it ends; where somebody can still wait, the handler is told."""
    with transceivers(1) as ((handler,), addresses):
        with program(SERVER.format(connect=addresses, end=end)) as (child, line):
            assert line == "up"
            assert child.wait(timeout=5) == code
            if code != 5:
                wait_until(lambda: len(handler.connections) == 1)


def test_a_server_works_in_a_patched_program():
    """As load tests often are; and it sleeps when nothing is to be done."""
    end = """
import time
from gevent import monkey
assert monkey.is_module_patched("socket")
client = server.client("http")
client.send("/patched")
assert client.recv().body == b"/patched 2"
before = time.process_time()
time.sleep(0.5)  # the processor time of this while is what is measured
print(time.process_time() - before, flush=True)
server.stop()
"""
    with transceivers(1, say_path) as (_, addresses):
        source = "from gevent import monkey; monkey.patch_all()" + SERVER.format(connect=addresses, end=end)
        with program(source) as (child, line):
            assert line == "up"
            assert float(child.stdout.readline()) < 0.1
            assert child.wait(timeout=5) == 0


def test_a_forked_child_does_not_touch_its_parent_s_sockets():
    """It gets an error that says what to do; the parent's go on working."""
    end = """
child = os.fork()
if not child:
    try:
        server.send(b"x")
    except Exception as error:
        assert "after the fork" in str(error), error
        server.stop()
        os._exit(7)
    os._exit(8)
assert os.waitpid(child, 0)[1] >> 8 == 7
client = server.client("http")
client.send("/still")
assert client.recv().body == b"/still 2"
server.stop()
print("well", flush=True)
"""
    with transceivers(1, say_path) as (_, addresses):
        with program(SERVER.format(connect=addresses, end=end)) as (child, line):
            assert line == "up"
            assert child.stdout.readline() == "well\n"
            assert child.wait(timeout=5) == 0
