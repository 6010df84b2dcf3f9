"""The whole chain with a real mongrel2: examples/chain.py served, attached to, hurt and ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import gevent
import pytest
from free_ports import Server
from gevent import subprocess

import greentx
from greentx import Transceiver
from greentx.edge import Handler
from greentx.relay import Node, Relay

pytestmark = pytest.mark.mongrel2

LOCAL = "127.0.0.1"
ROOT = Path(greentx.__file__).parents[1]


class Chain:
    """A running examples/chain.py."""

    def __init__(self, folder: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "chain.py")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with gevent.Timeout(20):
            self.port = int(self.process.stdout.readline().rpartition(":")[2].rstrip("/\n"))
            self.control = dict(self.process.stdout.readline().split() for _ in range(3))

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes]:
        """Send one request through mongrel2, from a native thread, and return status and body."""

        def run():
            connection = http.client.HTTPConnection(LOCAL, self.port, timeout=10)
            try:
                with contextlib.closing(connection):
                    connection.request(method, path, body, headers)
                    response = connection.getresponse()
                    return response.status, response.read()
            except (http.client.HTTPException, OSError) as error:
                return error  # raised in the thread it would count as a death there

        answer = gevent.get_hub().threadpool.apply(run)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def children(self) -> set[int]:
        """Return the ids of the processes that it started."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return {int(word) for word in file.read().split()}

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal to it alone; return the exit status and what it complained of."""
        self.process.send_signal(number)
        with gevent.Timeout(20):
            errors = self.process.stderr.read()
            return self.process.wait(), errors


@pytest.fixture
def chain():
    """One that runs, with two Nodes; killed after the test if it still does."""
    folder = tempfile.mkdtemp(prefix="chain-")
    one = Chain(folder)
    try:
        yield one
    finally:
        for pid in one.children() if one.process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()
        one.process.stderr.close()
        shutil.rmtree(folder)


def gone(pid: int) -> bool:
    """Return whether a process has ended; a zombie has."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_example_serves_is_attached_to_and_ends(chain):
    """Mongrel2's clients and a server that attached to the API and to a Node get answers of the same handlers."""
    assert chain.ask("GET", "/")[0] == 200
    assert chain.ask("POST", "/notes", "x")[0] == 401
    assert chain.ask("POST", "/notes", "first", **{"X-User": "ann"})[0] == 201
    assert chain.ask("POST", "/notes", "second", **{"X-User": "bob", "USER": "forged"})[0] == 201
    nodes = set()
    for _ in range(4):
        answer = json.loads(chain.ask("GET", "/notes")[1])
        nodes.add(answer["node"])
        assert answer["notes"] == [{"user": "bob", "text": "second"}, {"user": "ann", "text": "first"}]
    assert nodes == {"node-1", "node-2"}
    stop = gevent.event.Event()

    def browse():
        count = 0
        while not stop.is_set():
            status, body = chain.ask("GET", "/notes")
            assert (status, len(json.loads(body)["notes"])) == (200, 2)
            count += 1
        return count

    browsing = [gevent.spawn(browse) for _ in range(3)]
    with Server("attached", ip=LOCAL, connect=[chain.control["api"], chain.control["node-1"]]) as server:
        client = server.client("http")
        for _ in range(20):
            client.send("/notes")
            response = client.recv(5000)
            assert (response.status, len(response.json()["notes"])) == (200, 2)
        assert server.unclaimed == server.bad_replies == 0
    stop.set()
    gevent.joinall(browsing, raise_error=True)
    assert all(one.value > 0 for one in browsing)
    assert chain.ask("PUT", "/limit", "1")[0] == 204
    for _ in range(4):
        assert len(json.loads(chain.ask("GET", "/notes")[1])["notes"]) == 1
    children = chain.children()
    assert len(children) == 3
    status, errors = chain.end(signal.SIGINT)
    # node-2 has heard of the attached server from the API only, and sees it go.
    assert status == 0
    assert all(line.startswith("attached: Mongrel2 at ") for line in errors.splitlines()), errors
    assert all(gone(pid) for pid in children)


def test_a_limit_out_of_bounds_is_refused_and_told_to_no_node(chain):
    """SQLite takes 64 bits; after a greater number no Node could show a note."""
    for body in ("99999999999999999999999", "9" * 5000, "1001", "-1", "x", ""):
        status, text = chain.ask("PUT", "/limit", body)
        assert (status, text) == (400, b"a limit is a whole number from 0 to 1000\n"), body
    assert chain.ask("PUT", "/limit", "1000")[0] == 204
    assert [chain.ask("GET", "/notes")[0] for _ in range(4)] == [200] * 4
    assert chain.end() == (0, "")


def test_a_killed_node_is_done_without(chain):
    """The other one goes on. What was on its way to the dead one meanwhile is lost, as the relay says."""
    children = sorted(chain.children())
    with open(f"/proc/{children[-1]}/cmdline", "rb") as file:
        assert b"node-2" in file.read()
    os.kill(children[-1], signal.SIGKILL)
    with gevent.Timeout(10):
        while not gone(children[-1]):
            gevent.sleep(0.001)
    for _ in range(6):
        with contextlib.suppress(http.client.HTTPException, OSError):
            chain.ask("GET", "/notes")
    assert json.loads(chain.ask("GET", "/notes")[1])["node"] == "node-1"
    status, errors = chain.end()
    assert (status, errors) == (0, "")


def test_everything_ends_with_the_first_process(chain):
    """Killed, it cannot tell the others; they notice."""
    children = chain.children()
    chain.process.kill()
    chain.process.wait()
    with gevent.Timeout(10):
        while not all(gone(pid) for pid in children):
            gevent.sleep(0.01)


def test_pipelined_requests_of_one_client_are_answered_in_order_by_api_and_node(start_mongrel2):
    """Mongrel2 says when it has an answer, and so when the next one may be given."""
    front = start_mongrel2({"/": Handler("front")})
    handler = front.handlers[0]
    with Transceiver("front", handler.send_spec, handler.recv_spec, rep_port=False, connect_timeout=5) as api:
        relay = Relay(api)
        with Node(relay.node_endpoint, rep_port=False, connect_timeout=5) as node:
            gevent.spawn(node.serve, lambda conn, req: conn.reply_http(req, b"node" + req.path.encode()))
            gevent.spawn(
                api.serve,
                lambda conn, req: (
                    relay.forward(req) if req.path[-1] in "13579" else conn.reply_http(req, b"api" + req.path.encode())
                ),
            )
            with gevent.Timeout(10):
                while not any(session.ready for session in relay.nodes):
                    gevent.sleep(0.001)
            with contextlib.closing(gevent.socket.create_connection((LOCAL, front.port), 5)) as sock:
                sock.settimeout(10)
                sock.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(20)))
                data = b""
                while not data.endswith(b"/19"):
                    data += sock.recv(65536)
            found = re.findall(rb"(?:api|node)/\d+", data)
            assert found == [b"%b/%d" % (b"node" if number % 2 else b"api", number) for number in range(20)]
            assert not relay.proofs.unproved


def test_a_restart_of_mongrel2_is_survived_by_api_and_node(start_mongrel2):
    """Under load, with kill -9: both forget the ids, and serve again; nobody gets a stranger's answer."""
    front = start_mongrel2({"/": Handler("front")})
    handler = front.handlers[0]
    wrong: list[bytes] = []
    answers = [0]

    def ask(number):
        with (
            contextlib.suppress(OSError),
            contextlib.closing(gevent.socket.create_connection((LOCAL, front.port), 5)) as sock,
        ):
            sock.settimeout(5)
            path = b"/%d" % number
            sock.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path)
            data = b""
            while piece := sock.recv(65536):
                data += piece
            if data:
                answers[0] += 1
                if not data.endswith(b"\r\n\r\n" + path):
                    wrong.append(data)

    def answer(conn, req):
        if req.method != "DISCONNECT":
            gevent.sleep(0.01)  # the handler's work takes a while
            conn.reply_http(req, req.path)

    options = {"connect_timeout": 5, "rep_port": False}
    with Transceiver("front", handler.send_spec, handler.recv_spec, **options) as api:
        relay = Relay(api)
        with Node(relay.node_endpoint, **options) as node:
            serving = [gevent.spawn(api.serve, lambda conn, req: relay.forward(req)), gevent.spawn(node.serve, answer)]
            running = [True]

            def browse(first):
                number = first
                while running[0]:
                    ask(number)
                    number += 100
                    gevent.sleep(0.001)  # others run meanwhile

            browsing = [gevent.spawn(browse, first) for first in range(20)]
            for _ in range(2):
                gevent.sleep(0.3)  # the load runs on for a while before the next kill
                front.kill()
                front.start()
                before = answers[0]
                with gevent.Timeout(5):
                    while answers[0] < before + 40:
                        gevent.sleep(0.01)
            running[0] = False
            gevent.joinall(browsing, timeout=10, raise_error=True)
            node.stop(2)
            api.stop(2)
            gevent.joinall(serving, raise_error=True)
    assert not wrong


def test_keep_alive_clients_get_answers_of_api_and_node_in_turn(start_mongrel2):
    """One connection, also pipelined: in the order of the requests."""
    front = start_mongrel2({"/": Handler("front")})
    handler = front.handlers[0]
    options = {"connect_timeout": 5, "rep_port": False}
    with Transceiver("front", handler.send_spec, handler.recv_spec, **options) as api:
        relay = Relay(api)
        with Node(relay.node_endpoint, **options) as node:

            def decide(conn, req):
                if req.path.startswith("/api"):
                    conn.reply_http(req, req.path)
                else:
                    relay.forward(req)

            serving = [
                gevent.spawn(api.serve, decide),
                gevent.spawn(node.serve, lambda conn, req: conn.reply_http(req, req.path)),
            ]
            paths = [f"/{'api' if number % 2 else 'node'}/{number}" for number in range(40)]
            request = "".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths).encode()
            with contextlib.closing(gevent.socket.create_connection((LOCAL, front.port), 5)) as sock:
                sock.settimeout(5)
                sock.sendall(request)
                data = b""
                while data.count(b"HTTP/1.1 200") < 40 or not data.endswith(paths[-1].encode()):
                    piece = sock.recv(65536)
                    assert piece, "mongrel2 closed the connection"
                    data += piece
            bodies = [piece.partition(b"\r\n\r\n")[2].decode() for piece in data.split(b"HTTP/1.1 200 OK")[1:]]
            assert bodies == paths
            node.stop(2)
            api.stop(2)
            gevent.joinall(serving, raise_error=True)
