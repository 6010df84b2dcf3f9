"""What a forked child keeps of its parent's connections: nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path

import gevent
import pytest
from gevent import socket, subprocess
from plain_server import until

from greentx import Server, Transceiver
from greentx.edge import Handler
from greentx.transport.descriptors import Descriptors

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

PARENT = """
import os, sys, time
if "patched" in sys.argv:
    import gevent.monkey
    gevent.monkey.patch_all()
import gevent, gevent.os, multiprocessing
from greentx import Transceiver

def child():
    time.sleep(60)

kept = open("/dev/null")  # another's descriptor
with Transceiver(sys.argv[1], sys.argv[2], sys.argv[3], rep_port=int(sys.argv[4]), rep_ip="127.0.0.1") as trans:
    trans.wait_ready(10)
    if sys.argv[5] == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        pid = process.pid
    else:
        pid = os.fork() if sys.argv[5] == "os" else gevent.os.fork()
        if pid == 0:
            try:
                os.fstat(kept.fileno())
                child()
            finally:
                os._exit(0)
    print(os.getpid(), pid, trans.rep_port, flush=True)
    trans.serve(lambda conn, req: conn.reply_http(req, "parent"))
"""


class Family:
    """A program with a Transceiver, and the child that it forked, which sleeps.

    Attributes:
        child: Its process id.
        rep_port: The parent's control socket.
    """

    def __init__(self, handler, *options):
        self.program = subprocess.Popen(
            [sys.executable, "-c", PARENT, handler.sender, handler.send_spec, handler.recv_spec, "0", *options],
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRON,
        )
        with gevent.Timeout(20):
            _pid, self.child, self.rep_port = map(int, self.program.stdout.readline().split())

    def kill_parent(self):
        self.program.kill()
        self.program.wait()

    def sockets(self):
        """The descriptors of the child that are sockets."""
        names = [f"/proc/{self.child}/fd/{number}" for number in os.listdir(f"/proc/{self.child}/fd")]
        return [name for name in names if os.readlink(name).startswith("socket:")]

    def close(self):
        self.kill_parent()
        self.program.stdout.close()
        os.kill(self.child, signal.SIGKILL)


def get(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return browser.makefile("rb").read().rpartition(b"\r\n")[2]


@pytest.fixture
def family(start_mongrel2, request):
    """A family behind a mongrel2 over TCP, or over ``ipc://``; it is killed after the test."""
    transport, *options = request.param.split()
    server = start_mongrel2({"/": Handler("one")}, transport=transport)
    one = Family(*server.handlers, *options)
    yield server, one
    one.close()


@pytest.mark.mongrel2
@pytest.mark.parametrize(
    "family", ["tcp os", "ipc os", "tcp gevent", "tcp multiprocessing", "tcp os patched"], indirect=True
)
def test_a_forked_child_does_not_swallow_the_requests_of_a_successor(family):
    """The parent is killed, the child sleeps on; each request is answered, and the control port is free again."""
    server, one = family
    assert get(server.port) == b"parent"  # the fork took nothing from it
    until(lambda: one.sockets() == [])
    one.kill_parent()
    (handler,) = server.handlers
    options = {"rep_port": one.rep_port, "rep_ip": "127.0.0.1"}
    with Transceiver(handler.sender, handler.send_spec, handler.recv_spec, **options) as trans:
        trans.wait_ready(10)
        serving = gevent.spawn(trans.serve, lambda conn, req: conn.reply_http(req, "successor"))
        asking = [gevent.spawn(get, server.port) for _ in range(20)]
        gevent.joinall(asking, timeout=20)
        assert [one.value for one in asking] == [b"successor"] * 20
    serving.join(5)


def test_a_child_whose_hub_goes_on_is_quiet_and_sends_nothing(start_mongrel2):
    """It has copies of the pinger, of a round that is under way, and of the timers of receipts."""
    script = """
import logging, os, sys, gevent
from greentx import Transceiver

logging.basicConfig(level=logging.WARNING)
with Transceiver(*sys.argv[1:4], rep_port=False, ping_timeout=0.2) as trans:
    trans.wait_ready(10)
    serving = gevent.spawn(trans.serve, lambda conn, req: conn.reply_http(req, "parent"))
    print("ready", flush=True)
    while not trans.websockets:
        gevent.sleep(0.01)
    gevent.sleep(0.5)
    pid = os.fork()
    if pid == 0:
        gevent.sleep(1)  # several rounds, and several times that after which a receipt is overdue
        os._exit(0)
    while not os.waitpid(pid, os.WNOHANG)[0]:
        gevent.sleep(0.05)
    os._exit(0)
"""
    server = start_mongrel2({"/": Handler("one")}, transport="tcp")
    (handler,) = server.handlers
    program = subprocess.Popen(
        [sys.executable, "-c", script, handler.sender, handler.send_spec, handler.recv_spec],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRON,
    )
    with gevent.Timeout(20), socket.socket() as browser:
        assert program.stdout.readline() == "ready\n"
        browser.connect(("127.0.0.1", server.port))
        browser.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert browser.recv(1000).startswith(b"HTTP/1.1 101 ")
        _out, said = program.communicate()
    lines = [line for line in said.splitlines() if "origins" not in line]
    assert [line for line in lines if "Error" in line or "Traceback" in line or "pings" in line] == []


def test_a_child_that_is_forked_while_its_parent_ends_keeps_nothing():
    """The threads live on while what was sent goes out; and what comes later gets the numbers."""
    script = """
import os, gevent
from greentx.transport import Context, SocketKind

context = Context("test", lambda: None, linger=1)
socket = context.socket(SocketKind.PUSH)
context.connect(socket, "tcp://127.0.0.1:PORT")
gevent.sleep(0.2)
socket.send(b"x" * 50_000_000)  # more than the other side reads
closing = gevent.spawn(context.close)
gevent.sleep(0.1)
pid = os.fork()
if pid == 0:
    names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    left = [os.readlink(name) for name in names if os.path.lexists(name)]
    os._exit(sum(one.startswith("socket:") or "eventpoll" in one for one in left) - 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), closing.dead)
closing.join()
"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        script = script.replace("PORT", str(listener.getsockname()[1]))
        # Python warns of a fork next to threads.
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=ENVIRON)
    assert (done.stdout, done.stderr) == ("0 False\n", "")


def test_a_server_that_forks_lets_go_of_its_ports():
    """The stand-in's too: its successor binds them while the child sleeps."""
    script = """
import os, sys, time
from greentx import Server
with Server("one", ip="127.0.0.1", push_port=0, sub_port=0) as server:
    pid = os.fork()
    if pid == 0:
        # Said by the child: until it has run it has the sockets.
        print(os.getpid(), server.push_port, server.sub_port, flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""
    program = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=ENVIRON)
    with gevent.Timeout(20):
        child, push_port, sub_port = map(int, program.stdout.readline().split())
    try:
        program.kill()
        program.wait()
        with Server("one", ip="127.0.0.1", push_port=push_port, sub_port=sub_port) as server:
            assert server.started
    finally:
        program.stdout.close()
        os.kill(child, signal.SIGKILL)


def test_a_fork_without_descriptors_is_a_fork_all_the_same(caplog):
    """What could not be listed is kept, which the log says; contexts are made, and bound, as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = Descriptors()
    bound: list[int] = []
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        assert descriptors.make(lambda: "made") == "made"
        descriptors.bind(lambda: bound.append(1))
        descriptors.note()
        descriptors.close_inherited()
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert bound
    assert "a forked child keeps ZeroMQ's connections, which could not be listed: " in caplog.text
