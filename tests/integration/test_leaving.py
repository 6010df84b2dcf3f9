"""Every way in which a program can leave its Transceiver, each in a process of its own, with an open WebSocket.

The WebSocket gets close 1001 and the end of its connection, within linger + 1 s, whatever handlers do.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import gevent
import pytest
from front_ends import ONE_FRONT_END
from gevent import socket, subprocess
from websocket_rig import RawClient, until

from greentx.edge import Handler

LINGER = 0.5

HEAD = """\
import sys
if sys.argv[3] == "patched":
    import gevent.monkey
    gevent.monkey.patch_all()
import gc, os, signal, threading, time
import gevent
from greentx import Transceiver

trans = Transceiver("one", sys.argv[1], sys.argv[2], rep_port=0, ping_timeout=None, linger=0.5)

def say(*words):
    print(*words, flush=True)

def watch(req):
    if req.method == "WEBSOCKET_CONNECT":
        say("connected")
    elif req.method == "WEBSOCKET_CLOSE":
        say("closed", req.close_code)

def left():
    gc.collect()
    gevent.sleep(0.01)  # threads end when they get round to it
    threads = len(os.listdir("/proc/self/task"))
    say("left", trans.started, [one for one in gc.get_objects() if isinstance(one, gevent.Greenlet) and not one.dead])
"""

#: name: (program, what is done to it, how it ends, what it says at the end)
WAYS = {
    "return": (
        "with trans:\n    for sid, conn, req in trans.recv():\n        watch(req)\n        break\nleft()",
        None,
        0,
        "left False []",
    ),
    "exception": (
        "with trans:\n    for sid, conn, req in trans.recv():\n        watch(req)\n        1 / 0",
        None,
        1,
        None,
    ),
    "GreenletExit": (
        """
def run():
    with trans:
        for sid, conn, req in trans.recv():
            watch(req)
running = gevent.spawn(run)
while not len(trans.websockets):
    gevent.sleep(0.01)
running.kill()
left()
""",
        None,
        0,
        "left False []",
    ),
    "GreenletExit in main": (
        "with trans:\n    for sid, conn, req in trans.recv():\n        watch(req)\n        raise gevent.GreenletExit",
        None,
        1,
        None,
    ),
    "SIGINT in recv": (
        "with trans:\n    for sid, conn, req in trans.recv():\n        watch(req)",
        signal.SIGINT,
        130,
        None,
    ),
    "SIGTERM in recv": (
        "with trans:\n    for sid, conn, req in trans.recv():\n        watch(req)",
        signal.SIGTERM,
        143,
        None,
    ),
    "SIGHUP in recv": (
        "with trans:\n    for sid, conn, req in trans.recv():\n        watch(req)",
        signal.SIGHUP,
        129,
        None,
    ),
    "SIGHUP in serve": ("with trans:\n    trans.serve(lambda conn, req: watch(req))", signal.SIGHUP, 129, None),
    "SIGTERM after a SIGHUP that is ignored": (
        """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with trans:
    for sid, conn, req in trans.recv():
        os.kill(os.getpid(), signal.SIGHUP)
        watch(req)
""",
        signal.SIGTERM,
        143,
        None,
    ),
    "SIGTERM in serve": ("with trans:\n    trans.serve(lambda conn, req: watch(req))", signal.SIGTERM, 143, None),
    "SIGTERM in serve of WebSockets": (
        """
def chat(ws):
    say("connected")
    for message in ws:
        ws.send(message)
with trans:
    trans.serve(websocket=chat)
""",
        signal.SIGTERM,
        143,
        None,
    ),
    "SIGTERM in a handler that computes": (
        """
def handler(conn, req):
    watch(req)
    while req.method == "WEBSOCKET_CONNECT":
        pass
with trans:
    trans.serve(handler)
""",
        signal.SIGTERM,
        143,
        None,
    ),
    "SIGTERM with a handler that refuses to die": (
        """
def handler(conn, req):
    watch(req)
    while req.method == "WEBSOCKET_CONNECT":
        try:
            gevent.sleep(100)  # never ends by itself: it is ended
        except gevent.GreenletExit:
            pass
with trans:
    trans.serve(handler)
""",
        signal.SIGTERM,
        143,
        None,
    ),
    "SIGTERM while another greenlet has it": (
        """
def run():
    with trans:
        for sid, conn, req in trans.recv():
            watch(req)
gevent.spawn(run).join()
""",
        signal.SIGTERM,
        143,
        None,
    ),
    "SIGTERM with the application's own handler": (
        """
signal.signal(signal.SIGTERM, lambda *args: (say("own handler"), sys.exit(7)))
with trans:
    for sid, conn, req in trans.recv():
        watch(req)
""",
        signal.SIGTERM,
        7,
        "own handler",
    ),
    "SIGTERM with gevent's own handler before": (
        """
gevent.signal_handler(signal.SIGTERM, lambda: (say("own handler"), trans.stop()))
with trans:
    for sid, conn, req in trans.recv():
        watch(req)
left()
""",
        signal.SIGTERM,
        0,
        "left False []",
    ),
    "SIGTERM with gevent's own handler after": (
        """
with trans:
    gevent.signal_handler(signal.SIGTERM, lambda: (say("own handler"), trans.stop()))
    for sid, conn, req in trans.recv():
        watch(req)
left()
""",
        signal.SIGTERM,
        0,
        "left False []",
    ),
    "closed generator": (
        """
def events():
    with trans:
        for sid, conn, req in trans.recv():
            watch(req)
            yield req
generator = events()
next(generator)
generator.close()
left()
""",
        None,
        0,
        "left False []",
    ),
    "collected generator": (
        """
def events():
    with trans:
        for sid, conn, req in trans.recv():
            watch(req)
            yield req
next(events())
left()
""",
        None,
        0,
        "left False []",
    ),
    "destroyed hub": (
        """
trans.start()
for sid, conn, req in trans.recv():
    watch(req)
    break
gevent.get_hub().destroy()
say("left", trans.started)
""",
        None,
        0,
        "left False",
    ),
    "exit without leaving": (
        "trans.start()\nfor sid, conn, req in trans.recv():\n    watch(req)\n    break",
        None,
        0,
        None,
    ),
    "sys.exit in a greenlet": (
        """
def handler(conn, req):
    watch(req)
    sys.exit(3)
with trans:
    trans.serve(handler)
""",
        None,
        3,
        None,
    ),
    "stop by another greenlet": (
        """
with trans:
    def stop():
        while not len(trans.websockets):
            gevent.sleep(0.01)
        trans.stop()
    gevent.spawn(stop)
    trans.serve(lambda conn, req: watch(req))
    say("served")
left()
""",
        None,
        0,
        "left False []",
    ),
    "stop in the loop": (
        """
with trans:
    for sid, conn, req in trans.recv():
        watch(req)
        trans.stop()
left()
""",
        None,
        0,
        "left False []",
    ),
    "stop in handlers, twice": (
        """
def handler(conn, req):
    watch(req)
    gevent.spawn(trans.stop)
    trans.stop()
    trans.stop()
with trans:
    trans.serve(handler)
left()
""",
        None,
        0,
        "left False []",
    ),
    "stop in the hub": (
        """
with trans:
    def handler(conn, req):
        watch(req)
        gevent.get_hub().loop.run_callback(trans.stop)
    trans.serve(handler)
gevent.sleep(0.1)  # what still ends may end
left()
""",
        None,
        0,
        "left False []",
    ),
    "left while stop waits for a handler": (
        """
def handler(conn, req):
    watch(req)
    if req.method == "WEBSOCKET_CONNECT":
        gevent.spawn_later(0.05, gevent.kill, main, KeyboardInterrupt)
        gevent.spawn(trans.stop)
        gevent.sleep(100)  # never ends by itself: it is ended
main = gevent.getcurrent()
try:
    with trans:
        trans.serve(handler)
except KeyboardInterrupt:
    left()
""",
        None,
        0,
        "left False []",
    ),
    "os._exit in a forked child": (
        """
with trans:
    for sid, conn, req in trans.recv():
        watch(req)
        break
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
left()
""",
        None,
        0,
        "left False []",
    ),
}


@pytest.fixture(scope="module")
def server(front_end):
    """One for all: it takes its first request half a second after its start."""
    with front_end.started({"/": Handler("one")}) as one:
        yield one


class Program:
    """A process that runs a handler program."""

    def __init__(self, server, program, patched=False):
        entry = server.handlers[0]
        args = [entry.send_spec, entry.recv_spec, "patched" if patched else "plain"]
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", HEAD + program, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors = ""
        self._readers = [gevent.spawn(self._read), gevent.spawn(self._read_errors)]

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def _read_errors(self):
        self.errors = self.process.stderr.read()

    def wait_for(self, line, seconds=10):
        until(lambda: line in self.lines or self.process.poll() is not None, seconds)
        assert line in self.lines, (self.lines, self.errors)

    def end(self):
        # Three programs at once take their time on a busy machine.
        code = self.process.wait(40)
        gevent.joinall(self._readers, timeout=5)
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.end()


@ONE_FRONT_END
@pytest.mark.parametrize(
    ("way", "patched"),
    [(way, False) for way in WAYS]
    + [(way, True) for way in WAYS if way.startswith(("return", "SIG", "stop", "destroyed", "exit"))],
    ids=lambda value: value if isinstance(value, str) else "patched" if value else "plain",
)
def test_whatever_way_a_program_leaves_its_websockets_are_told(server, way, patched):
    """Close 1001, then the end of the connection, in time; nothing is left, the exit status is what it should be."""
    program, number, status, last = WAYS[way]
    with Program(server, program, patched) as running:
        client = RawClient(server.port)
        running.wait_for("connected")
        started = time.monotonic()
        if number is not None:
            os.kill(running.process.pid, number)
        assert client.recv_close() == 1001
        # Signals that come while the hub sleeps are looked for three times a second.
        assert time.monotonic() - started < LINGER + 5
        code = running.end()
        assert time.monotonic() - started < LINGER + 6
        assert code == status, running.errors
        if last is not None:
            assert running.lines[-1] == last
        assert "ResourceWarning" not in running.errors
        client.close()


@ONE_FRONT_END
@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("fork", ["os.fork()", "gevent.os.fork()", "multiprocessing"])
def test_a_forked_child_gets_errors_and_the_parent_goes_on(server, fork, patched):
    """recv, reply, add_connection and the rest of the parent's loop; leaving in the child touches nothing."""
    program = """
import gevent.os, multiprocessing
from greentx.errors import ForkError
from greentx.transport.teardown import guarded

def child(conn, req, events):
    signal.alarm(5)
    failed = 0
    for call in (
        lambda: next(trans.recv()),
        lambda: next(events),
        lambda: conn.reply_http(req, "child"),
        lambda: conn.deliver("one", ["1"], "child"),
        lambda: trans.add_connection("two", "ipc:///a", "ipc:///b"),
        lambda: trans.broadcast("child"),
    ):
        try:
            call()
        except ForkError as error:
            failed += 1
    used = time.process_time()
    gevent.sleep(0.3)  # the processor time of this while is what is measured
    assert time.process_time() - used < 0.1
    trans.__exit__(None, None, None)
    assert not trans.started
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with Transceiver("two", "ipc:///nowhere/a", "ipc:///nowhere/b", rep_port=0) as fresh:
        assert fresh.started
        assert len(guarded) == 1
    say("child", failed)

with trans:
    events = trans.recv()
    sid, conn, req = next(events)
    gevent.sleep(0.05)  # until it waits in there, which nobody is told
    if "FORK" == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child, args=(conn, req, events))
        process.start()
        while process.is_alive():
            gevent.sleep(0.02)
        process.join()
        status = process.exitcode
        process.close()
    else:
        pid = FORK
        if pid == 0:
            status = 1
            try:
                child(conn, req, events)
                status = 0
            except BaseException as error:
                say(repr(error))
            finally:
                os._exit(status)
        waitpid = gevent.os.waitpid if "gevent" in "FORK" else os.waitpid
        while (waited := waitpid(pid, os.WNOHANG)) == (0, 0):
            gevent.sleep(0.02)
        status = waited[1]
    say("status", status)
    conn.reply_http(req, "parent")
    for number in range(2):
        sid, conn, req = next(events)
        conn.reply_http(req, "parent")
    gevent.sleep(0.05)  # what still ends may end
left()
""".replace("FORK", fork)
    with Program(server, program, patched) as running:
        answers = gevent.spawn(ask_pipelined, server.port, 3)
        assert running.end() == 0, (running.lines, running.errors)
        assert running.lines == ["child 6", "status 0", "left False []"], running.errors
        answers.join(5)
        assert answers.value.count(b"parent") == 3


def ask_pipelined(port, count):
    """Send some requests at once and return what comes until all are answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * count)
        got = b""
        while got.count(b"parent") < count:
            part = sock.recv(65536)
            if not part:
                break
            got += part
        return got


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("stopped", ["server", "handler"])
def test_leaving_is_bounded_whatever_stands_still(front_end, stopped, patched):
    """The server is stopped with a full pipe and handlers are blocked in it, or they never end."""
    program = """
def handler(conn, req):
    watch(req)
    try:
        if req.path == "/fill":
            say("filling")
            for number in range(1000, 100_000):
                conn.deliver("one", [number], bytes(20_000))
        while True:
            gevent.sleep(10)
    except gevent.GreenletExit:
        say("killed")
        raise
main = gevent.getcurrent()
started = []
def leave():
    started.append(time.monotonic())
    gevent.kill(main, KeyboardInterrupt)
gevent.signal_handler(signal.SIGUSR1, leave)
try:
    with trans:
        trans.serve(handler)
except KeyboardInterrupt:
    say("took", time.monotonic() - started[0])
left()
"""
    with front_end.started({"/": Handler("one")}) as server, Program(server, program, patched) as running:
        with RawClient(server.port) as client, socket.create_connection(("127.0.0.1", server.port)) as sock:
            running.wait_for("connected")
            try:
                if stopped == "server":
                    sock.sendall(b"GET /fill HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    running.wait_for("filling")
                    os.kill(server.pid, signal.SIGSTOP)
                    gevent.sleep(0.5)  # what fills the pipe backs up, which nobody is told
                os.kill(running.process.pid, signal.SIGUSR1)
                assert running.end() == 0, running.errors
            finally:
                os.kill(server.pid, signal.SIGCONT)
            took = float(next(line for line in running.lines if line.startswith("took")).split()[1])
            assert took < LINGER + 5
            assert running.lines[-1] == "left False []"
            assert "killed" in running.lines
            if stopped == "handler":
                assert client.recv_close() == 1001


@pytest.mark.parametrize("server", ["transceiver", "wsgi"])
def test_an_exit_in_a_handler_ends_the_program_whatever_stands_still(front_end, server):
    """The pipe is full, so that nobody can be answered: neither its own client, nor those whose answer has begun or who
    wait for a handler."""
    program = """
full, exiting = gevent.event.Event(), []
def fill(conn):
    for number in range(1000, 100_000):
        if exiting:
            return
        conn.deliver("one", [number], bytes(20_000))
def came(path):
    if path == "/fill":
        say("filling")
    full.wait()
    say("exiting")
    exiting.append(time.monotonic())
    sys.exit(3)
def handler(conn, req):
    if req.method == "GET" and req.path == "/begun":
        conn.reply(req, "HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nbegun")
        full.wait()
        gevent.sleep(100)  # it is killed
    if req.method == "GET":
        gevent.spawn(fill, conn)
        came(req.path)
def application(environ, start_response):
    if environ["PATH_INFO"] == "/begun":
        start_response("200 OK", [("Content-Length", "9")])(b"begun")
        full.wait()
        gevent.sleep(100)  # it is killed
    gevent.spawn(fill, server.transceiver.conn)
    came(environ["PATH_INFO"])
gevent.signal_handler(signal.SIGUSR1, full.set)
try:
    if "SERVER" == "wsgi":
        from greentx.wsgi import WSGIServer
        server = WSGIServer(("one", sys.argv[1], sys.argv[2]), application, spawn=2, log=None)
        server.serve_forever()
    else:
        with trans:
            trans.serve(handler, pool=2)
finally:
    say("took", time.monotonic() - exiting[0])
""".replace("SERVER", server)
    with (
        front_end.started({"/": Handler("one")}) as front,
        Program(front, "import gevent.event\n" + program, True) as running,
    ):
        socks = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(5)]
        try:
            socks[0].sendall(b"GET /begun HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"begun" in socks[0].recv(1000)
            socks[1].sendall(b"GET /fill HTTP/1.1\r\nHost: localhost\r\n\r\n")
            running.wait_for("filling")
            for sock in socks[2:]:
                sock.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
            gevent.sleep(0.2)  # until they wait there, which nobody is told
            os.kill(front.pid, signal.SIGSTOP)
            gevent.sleep(0.5)  # what fills the pipe backs up, which nobody is told
            os.kill(running.process.pid, signal.SIGUSR1)
            assert running.end() == 3, running.errors
        finally:
            os.kill(front.pid, signal.SIGCONT)
            for sock in socks:
                sock.close()
        took = float(next(line for line in running.lines if line.startswith("took")).split()[1])
        # The server's own linger is 1 s, which the WSGI server gives twice: to what runs, and to what was sent.
        assert took < (LINGER + 5 if server == "transceiver" else 7)


def test_a_second_interrupt_ends_at_once(front_end):
    """Ctrl-C while it waits for handlers: the graceful end is cut short, and still nothing is left."""
    program = """
main = gevent.getcurrent()
def handler(conn, req):
    watch(req)
    if req.method == "WEBSOCKET_CONNECT":
        gevent.spawn_later(0.1, gevent.kill, main, KeyboardInterrupt)
        gevent.sleep(100)  # never ends by itself: it is ended
try:
    with trans:
        serving = gevent.spawn(trans.serve, handler)
        while not len(trans.websockets):
            gevent.sleep(0.01)
        trans.stop()
except KeyboardInterrupt:
    say("interrupted")
serving.join(1)
left()
"""
    with front_end.started({"/": Handler("one")}) as server, Program(server, program) as running:
        with RawClient(server.port) as client:
            running.wait_for("connected")
            started = time.monotonic()
            assert running.end() == 0, running.errors
            assert time.monotonic() - started < LINGER + 10
            assert running.lines[-2:] == ["interrupted", "left False []"], running.errors
            assert client.recv_close() == 1001


def test_it_can_be_started_again_after_each_end(server):
    """The same object, in the same process."""
    program = """
for number in range(5):
    with trans:
        trans.wait_ready(5)
        assert trans.rep_port
    trans.start()
    trans.stop()
left()
"""
    with Program(server, program) as running:
        assert running.end() == 0, running.errors
        assert running.lines == ["left False []"]


def test_a_transceiver_in_a_second_thread_lives_on_its_own_hub(server):
    """It works there, and goes with that thread's hub."""
    program = """
from greentx.transport.teardown import guarded
def other():
    trans.start()
    for sid, conn, req in trans.recv():
        watch(req)
        break
    gevent.get_hub().destroy(destroy_loop=True)
thread = threading.Thread(target=other)
thread.start()
thread.join()
say("ended", trans.started, len(guarded))
"""
    with Program(server, program) as running, RawClient(server.port) as client:
        assert client.recv_close() == 1001
        assert running.end() == 0, running.errors
        assert running.lines == ["connected", "ended False 0"]


def test_importing_changes_nothing():
    """No sockets, threads, signal handlers, log handlers, patches, not even a hub."""
    program = """
import logging, os, signal, socket, sys, threading

def state():
    return [
        len(os.listdir("/proc/self/fd")),
        os.listdir("/proc/self/task"),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
        logging.getLogger().handlers,
        socket.socket,
        threading.Thread.start,
    ]

before = state()
import greentx, greentx.edge, greentx.transport
assert before == state(), (before, state())
from gevent import monkey
from gevent._hub_local import get_hub_if_exists
assert get_hub_if_exists() is None
assert not monkey.saved
assert not logging.getLogger("greentx").handlers
assert logging.getLogger("greentx").level == logging.NOTSET
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
