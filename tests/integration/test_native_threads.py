"""What waits, called in another native thread than the one that started it: it works, or says where to call it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import get_ident

import gevent
import gevent.monkey
import pytest
from gevent import subprocess
from plain_server import PlainServer, until

from greentx import Connection, Connector, Server, Transceiver
from greentx.edge import Handler
from greentx.errors import ThreadError
from greentx.protocol.requests import build_request
from greentx.wsgi import WSGIServer

start_thread = gevent.monkey.get_original("_thread", "start_new_thread")

NOWHERE = ("ipc:///nowhere/push", "ipc:///nowhere/sub")


class Thread:
    """A native thread that makes one call.

    Attributes:
        results: What came of it: the value, or the error.
    """

    def __init__(self, call):
        self.results = []
        start_thread(self._run, (call,))

    def _run(self, call):
        try:
            self.results.append(call())
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.results.append(error)

    def result(self, seconds=10):
        until(lambda: self.results, seconds)
        return self.results[0]


def in_thread(call):
    """What *call* returns in another native thread, while greenlets run here; raises what it raises."""
    result = Thread(call).result()
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.fixture
def server():
    with PlainServer() as one:
        yield one


@pytest.fixture
def trans(server):
    """A ready one."""
    with Transceiver("plain", server.push_endpoint, server.sub_endpoint, rep_port=0, rep_ip="127.0.0.1") as one:
        one.wait_ready(5)
        yield one


def push(server, *numbers):
    for number in numbers:
        server.push.send(build_request("plain", number, "/", {"METHOD": "GET", "VERSION": "HTTP/1.1"}))


def answered(server, number):
    return server.bodies(b"%d" % number).endswith(b"served")


@pytest.mark.parametrize("timeout", [None, 0.05])
def test_recv_runs_in_a_thread_of_its_own(server, trans, timeout):
    """Until the end, which comes as in any greenlet; an application that blocks may do so there."""

    def loop():
        handled = 0
        for _sid, conn, req in trans.recv(timeout):
            if conn is not None and req is not None:
                conn.reply_http(req, "served")
                handled += 1
        return handled

    thread = Thread(loop)
    push(server, 1, 2)
    until(lambda: answered(server, 1) and answered(server, 2))
    push(server, 3)
    until(lambda: answered(server, 3))
    trans.stop()
    assert thread.result() == 3


def test_the_end_waits_for_the_request_that_a_thread_handles(server, trans):
    """As for one of a greenlet's: what it answers still goes out."""
    lock = gevent.monkey.get_original("_thread", "allocate_lock")()
    lock.acquire()

    def loop():
        for _sid, conn, req in trans.recv():
            handling.append(1)
            lock.acquire(timeout=5)
            conn.reply_http(req, "served")

    handling: list[int] = []
    thread = Thread(loop)
    push(server, 1)
    until(lambda: handling)
    stopping = gevent.spawn(trans.stop)
    gevent.sleep(0.05)  # what must not happen has no event
    assert not stopping.dead
    lock.release()
    stopping.join(5)
    assert stopping.successful()
    assert thread.result() is None
    assert answered(server, 1)


@pytest.mark.parametrize("leave", ["return", "stop", "break"])
def test_a_thread_may_leave_its_loop(server, trans, leave):
    """By stopping the Transceiver too, which then does not wait for it."""

    def loop():
        for _sid, conn, req in trans.recv():
            conn.reply_http(req, "served")
            if leave == "stop":
                trans.stop()
            elif leave == "break":
                break
            else:
                return

    thread = Thread(loop)
    push(server, 1)
    assert thread.result() is None
    if leave == "stop":
        until(lambda: not trans.started)
    trans.stop(5)
    assert not trans.started


def test_serve_may_be_called_in_a_thread(server, trans):
    """Its handlers run in greenlets of the thread that started the Transceiver."""
    home = gevent.get_hub()
    hubs = []

    def handler(conn, req):
        hubs.append(gevent.get_hub())
        conn.reply_http(req, "served")

    thread = Thread(lambda: trans.serve(handler))
    push(server, 1)
    until(lambda: answered(server, 1))
    trans.stop()
    assert thread.result() is None
    assert hubs == [home]


def test_a_connection_set_of_its_own_can_be_read_in_a_thread(server):
    """Mongrel2's own class is used so."""
    conn = Connection("plain", server.push_endpoint, server.sub_endpoint)
    assert in_thread(lambda: conn.wait_ready(5))
    thread = Thread(conn.recv)
    push(server, 1)
    assert thread.result().conn_id == "1"
    assert in_thread(lambda: conn.recv_json(0.01)) is None
    waiting = Thread(conn.recv)
    in_thread(conn.shutdown)
    assert waiting.result() is None


#: What is called in another thread, of things that belong to one: the Server, its Client, a Connector, the Mongrel2.
CALLS = {
    "server.connect": lambda server, addr, client: server.connect(addr),
    "server.disconnect": lambda server, addr, client: server.disconnect(addr),
    "server.client": lambda server, addr, client: server.client(),
    "server.send": lambda server, addr, client: server.send(b"x"),
    "server.post": lambda server, addr, client: server.post(b"x"),
    "server.recv": lambda server, addr, client: server.recv(None),
    "server.stop": lambda server, addr, client: server.stop(),
    "client.send": lambda server, addr, client: client.send("/"),
    "client.recv": lambda server, addr, client: client.recv(None),
    "connector.ping": lambda server, addr, client: Connector(addr, server).ping(),
    "connector.verify_connect": lambda server, addr, client: Connector(addr, server).verify_connect(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_server_says_where_to_call_it(trans, name):
    """At once, and it goes on where it belongs."""
    addr = f"127.0.0.1:{trans.rep_port}"
    with Server("two", ip="127.0.0.1", push_port=0, sub_port=0) as one:
        client = one.client("http")
        with pytest.raises(ThreadError, match="Server two belongs to the native thread that started it: call it there"):
            in_thread(lambda: CALLS[name](one, addr, client))
        assert one.connect(addr)


def test_a_connector_without_a_server_works_in_any_thread(trans):
    """What it opens is the thread's own."""
    connector = Connector(f"127.0.0.1:{trans.rep_port}")

    def ask():
        try:
            return connector.ping(), connector.status()["ready"]
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    assert in_thread(ask) == (True, True)


@pytest.mark.mongrel2
@pytest.mark.parametrize("name", ["wait", "stop", "kill", "restart"])
def test_a_mongrel2_of_ours_says_where_to_call_it(start_mongrel2, name):
    """Its output is read by greenlets of the thread that started it."""
    one = start_mongrel2({"/": Handler("one")})
    with pytest.raises(ThreadError, match="belongs to the native thread that started it"):
        in_thread(getattr(one, name))
    assert one.started


@pytest.mark.mongrel2
def test_a_wsgi_server_may_be_stopped_in_a_thread():
    """And waited for, as the standard library's server is."""

    def application(environ, start_response):
        start_response("200 OK", [])
        return [b"x"]

    asked = []

    class Told(WSGIServer):
        """One that stopped before it was waited for would be started again."""

        @property
        def started(self):
            started = super().started
            asked.append(get_ident())
            return started

    one = Told(("127.0.0.1", 0), application, log=None)
    one.start()
    asked.clear()
    waiting = Thread(one.serve_forever)
    until(lambda: any(ident != get_ident() for ident in asked))
    in_thread(lambda: one.stop(5))
    assert waiting.result() is None
    assert one.closed


def test_a_thread_whose_hub_stands_still_says_so():
    """A program that joins its thread natively hears why nothing happens."""
    script = """
import logging, threading
from greentx import Transceiver
from greentx.transport import context
logging.basicConfig(format="%(message)s")
context.BLOCKED_WARNING_SECONDS = 0.1
trans = Transceiver("one", "ipc:///nowhere/a", "ipc:///nowhere/b", rep_port=False)
trans.start()
thread = threading.Thread(target=trans.wait_ready, daemon=True)
thread.start()
thread.join(2)
print("joined", flush=True)
"""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, env=environ)
    assert done.stdout == "joined\n"
    assert "a call of another thread waits for the thread that started it" in done.stderr
