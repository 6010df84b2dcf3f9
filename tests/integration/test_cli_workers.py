"""``greentx serve --workers``, ``greentx relay`` and ``greentx node``, with a real mongrel2."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket
from spoken_program import SpokenProgram
from websocket_peer import HEAD, Peer
from workers_rig import APP, all_of, load, none_runs, relay_of, runs, wait_until, workers_of

import greentx
from greentx import Connector

pytestmark = pytest.mark.mongrel2


class Program(SpokenProgram):
    """A running ``greentx``; what it says is kept."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent)}
        super().__init__([sys.executable, "-m", "greentx", *arguments], folder, environ)

    def end(self, number: int = signal.SIGTERM) -> str:
        """Send it a signal, see that nothing of it is left, and return all that it said."""
        processes = all_of(self.process.pid)
        self.process.send_signal(number)
        assert self.finish() == 0, "".join(self.lines)
        wait_until(partial(none_runs, processes))
        return "".join(self.lines)


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., Program]]:
    """Starts the command in a folder with an application; it is ended after the test."""
    (tmp_path / "cli_app.py").write_text(APP)
    with ExitStack() as stack:

        def start(*arguments: str) -> Program:
            program = Program(tmp_path, *arguments)
            stack.callback(program.close)
            stack.callback(lambda: sys.stdout.write("".join(program.lines)))  # shown where the test fails
            return program

        yield start


def serve(run, *arguments: str) -> tuple[Program, SimpleNamespace]:
    """Run ``greentx serve`` on a free port; return it, and what has that as its ``port``, once it serves."""
    program = run("serve", "cli_app:app", "--bind", "127.0.0.1:0", *arguments)
    port = program.wait_for(r"serving cli_app:app on http://127.0.0.1:(\d+)/").group(1)
    return program, SimpleNamespace(port=int(port))


def ask(port: int, path: str = "/", method: str = "GET") -> bytes:
    """Ask for a page over a new connection and return the whole answer."""
    with socket.create_connection(("127.0.0.1", port), 40) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def pid_of(answer: bytes) -> int:
    """Return which worker has answered."""
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer
    return int(answer.split()[-1])


def open_websocket(front_end) -> Peer:
    """Return the peer of a new one, which echoes."""
    peer = Peer(front_end.port)
    assert peer.head() == HEAD
    peer.sock.settimeout(40)
    return peer


def say(peer: Peer, message: str) -> str | bytes:
    """Return what is answered to *message*."""
    peer.send(message)
    return peer.message()


def test_workers_serve_http_and_websockets_and_end_in_order(run):
    """One process more is the relay, which has not imported the application."""
    before = folders()
    program, front_end = serve(run, "--workers", "3", "--access-log")
    arbiter = program.process.pid
    wait_until(lambda: len(workers_of(arbiter)) == 3)
    pids: set[int] = set()
    with gevent.Timeout(40):
        while pids != set(workers_of(arbiter)):
            pids.add(pid_of(ask(front_end.port)))
    peer = open_websocket(front_end)
    assert int(say(peer, "pid")) in pids
    relay = relay_of(arbiter)
    slow = gevent.spawn(ask, front_end.port, "/slow")
    program.wait_for("slow has begun")
    processes = all_of(arbiter)
    program.process.send_signal(signal.SIGTERM)
    assert peer.closed() == (1001, "")
    assert pid_of(slow.get(timeout=30))
    assert program.finish() == 0
    wait_until(partial(none_runs, processes))
    # What a test before this one has killed may still be removing its own.
    wait_until(lambda: folders() <= before)
    said = "".join(program.lines)
    imported = {int(pid) for pid in re.findall(r"imported in (\d+)", said)}
    assert imported == pids
    assert relay not in imported
    assert re.search(r'^127.0.0.1 - - \[[^]]+\] "GET /slow HTTP/1.1" 200 \d+ 0\.\d{6}$', said, re.MULTILINE)
    assert "Traceback" not in said
    assert "Listening at" not in said
    peer.sock.close()


def test_the_application_decides_which_websockets_are_let_in(run):
    """The relay asks it, also where the relay runs the protocol."""
    program, front_end = serve(run, "--workers", "2")
    with socket.create_connection(("127.0.0.1", front_end.port), 40) as sock:
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        head = "GET /page HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        sock.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
    program.end()


def folders() -> set[str]:
    """Return those of ours."""
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("greentx-")}


def test_sighup_replaces_the_workers_and_nobody_notices(run, tmp_path):
    """New code, with no request that fails, and WebSockets that stay."""
    program, front_end = serve(run, "--workers", "2")
    peer = open_websocket(front_end)
    assert say(peer, "x") == "x"
    with load(front_end, browsers=4) as browsers:
        browsers.more()
        (tmp_path / "cli_app.py").write_text(APP.replace("ws.send(message if", "ws.send('new ' + message if"))
        old = workers_of(program.process.pid)
        program.process.send_signal(signal.SIGHUP)
        wait_until(partial(none_runs, old), 50)
        browsers.more()
    assert say(peer, "x") == "new x"
    peer.sock.close()
    program.end()


def test_a_worker_that_is_killed_is_replaced(run):
    """No GET fails; so is one that blocks, and the relay."""
    program, front_end = serve(run, "--workers", "2", "--worker-timeout", "2")
    arbiter = program.process.pid
    with load(front_end, browsers=4) as browsers:
        browsers.more()
        os.kill(workers_of(arbiter)[0], signal.SIGKILL)
        browsers.more()
        wait_until(lambda: len(workers_of(arbiter)) == 2)
    spins = gevent.spawn(ask, front_end.port, "/spin")
    program.wait_for("spins")
    blocked = program.wait_for(r"WORKER TIMEOUT \(pid:(\d+)\)").group(1)
    wait_until(lambda: not runs(int(blocked)))
    spins.kill()
    assert pid_of(ask(front_end.port))
    program.end()


def test_workers_that_die_at_once_are_made_ever_later(run, tmp_path):
    """A line says so; once the fault is gone they serve."""
    (tmp_path / "cli_app.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    program = run("serve", "cli_app:app", "--bind", "127.0.0.1:0", "--workers", "1")
    for count, seconds in ((2, "0.5"), (3, "1"), (4, "2")):
        program.wait_for(f"the last {count} workers died before .* the next one starts in {seconds} s")
    (tmp_path / "cli_app.py").write_text(APP)
    program.process.send_signal(signal.SIGHUP)
    program.wait_for("greentx .* serves")
    program.end()


def test_the_front_end_is_there_again_after_its_relay_was_killed(run):
    """On the same port, with a port of its own; a free one may be another."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = run("serve", "cli_app:app", "--bind", f"127.0.0.1:{port}", "--workers", "2")
    program.wait_for("serving cli_app:app on")
    relay = relay_of(program.process.pid)
    os.kill(relay, signal.SIGKILL)
    program.wait_for("serving cli_app:app on")
    assert pid_of(ask(port))
    program.end()


def test_ctrl_c_ends_it(run):
    """A terminal tells all of its processes."""
    program, _ = serve(run, "--workers", "2")
    arbiter = program.process.pid
    processes = all_of(arbiter)
    for pid in [arbiter, *workers_of(arbiter)]:
        os.kill(pid, signal.SIGINT)
    assert program.finish() == 0
    wait_until(partial(none_runs, processes))
    assert "Traceback" not in "".join(program.lines)


def test_the_application_may_be_imported_once(run, tmp_path):
    """--preload; it is monkey-patched there, too."""
    (tmp_path / "cli_app.py").write_text(
        "import os, socket, gevent.socket\n"
        "assert socket.socket is gevent.socket.socket\n"
        "print('imported by', os.getpid(), flush=True)\n" + APP
    )
    program, front_end = serve(run, "--workers", "2", "--preload")
    with load(front_end, browsers=4) as browsers:
        browsers.more()
        os.kill(workers_of(program.process.pid)[0], signal.SIGKILL)
        browsers.more()
        wait_until(lambda: len(workers_of(program.process.pid)) == 2)
    said = program.end()
    assert re.findall(r"imported by (\d+)", said) == [str(program.process.pid)]


def test_workers_are_replaced_after_so_many_requests(run):
    """Under load, and no request fails."""
    program, front_end = serve(run, "--workers", "2", "--max-requests", "50", "--max-requests-jitter", "10")
    with load(front_end) as browsers:
        wait_until(lambda: len(browsers.pids) >= 5, 50)
    program.end()


def test_the_process_to_signal_is_in_a_file(run, tmp_path):
    """And the file goes with it."""
    program, _ = serve(run, "--workers", "1", "--pid", "pid")
    assert int((tmp_path / "pid").read_text()) == program.process.pid
    program.end()
    assert not (tmp_path / "pid").exists()


def test_the_control_socket_is_the_relays(run):
    """It says its port."""
    program = run("serve", "cli_app:app", "--bind", "127.0.0.1:0", "--workers", "2", "--control", "127.0.0.1:0")
    port = int(program.wait_for(r"control socket on port (\d+)").group(1))
    assert Connector(("127.0.0.1", port)).ping(5000)
    program.wait_for("serving cli_app:app on")
    program.end()


def test_variables_of_a_file_are_read_again(run, tmp_path):
    """With each worker."""
    (tmp_path / "env").write_text("WORD=one\n")
    (tmp_path / "cli_app.py").write_text(APP + "print('the word is', os.environ['WORD'], flush=True)\n")
    program, _ = serve(run, "--workers", "1", "--env-file", "env")
    (tmp_path / "env").write_text("WORD=two\n")
    program.process.send_signal(signal.SIGHUP)
    program.wait_for("the word is two")
    program.wait_for("Worker exiting")
    program.end()


@pytest.mark.parametrize(
    ("application", "code", "said"),
    [
        ("cli_nowhere:app", 2, "greentx: there is no module 'cli_nowhere', in "),
        ("cli_app:no", 2, "greentx: module 'cli_app' has no 'no'"),
        ("cli_fails:app", 1, "ValueError: while importing"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_an_application_that_cannot_be_imported_ends_it(run, tmp_path, application, code, said, options):
    """It is said once, though there are two workers; the exit codes are those of one process."""
    (tmp_path / "cli_fails.py").write_text("raise ValueError('while importing')\n")
    program = run("serve", application, "--bind", "127.0.0.1:0", "--workers", "2", *options)
    assert program.finish() == code
    assert "".join(program.lines).count(said) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--bind", "192.0.2.1:8000"], 1, "greentx: 192.0.2.1:8000 cannot be bound: "),
        (["--bind", ":0", "--certfile", "/nowhere/cert"], 1, "greentx: /nowhere/cert: No such file or directory"),
        (["--bind", ":0", "--set", "limits.contentlength=5"], 2, "greentx: setting 'limits.contentlength' is not one"),
        (["--bind", ":0", "--upload-store", "here"], 2, "greentx: upload_store 'here' is not an absolute path"),
        (["--control", "127.0.0.1"], 2, "is not a port"),
        (["--control", "127.0.0.1:0", "--curve-secret", "/nowhere/x"], 2, "greentx: curve_secret='/nowhere/x'"),
        (["--connect", "mongrel2://x@127.0.0.1", "--connect", "mongrel2://x@127.0.0.2"], 2, "sender 'x' is in use for"),
        (["--connect", "mongrel2://x_y@127.0.0.1"], 2, "greentx: sender 'x_y' cannot be answered"),
        (["--connect", "mongrel2://x@127.0.0.1?control=nonsense"], 2, "greentx: port 'nonsense' of address"),
    ],
)
def test_what_the_relay_cannot_do_ends_it(run, arguments, code, said):
    """One line says what; the exit codes are those of one process."""
    program = run("serve", "cli_app:app", "--workers", "2", *arguments)
    assert program.finish() == code
    output = "".join(program.lines)
    assert output.count(said) == 1
    assert output.count("the relay could not be started") <= 1
    assert "Traceback" not in output


def test_a_relay_and_nodes_by_themselves(run, start_mongrel2):
    """As on several machines; a Node that leaves hands its WebSockets on."""
    mongrel2 = start_mongrel2()
    (handler,) = mongrel2.handlers
    url = f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"
    relay = run("relay", "--connect", url, "--listen", "127.0.0.1:0")
    endpoint = relay.wait_for(r"for Nodes at tcp://(127.0.0.1:\d+)").group(1)
    nodes = [run("node", "cli_app:app", "--relay", endpoint) for _ in range(2)]
    for node in nodes:
        node.wait_for(f"serving cli_app:app for the relay at {endpoint}")
    with gevent.Timeout(40):
        while {pid_of(ask(mongrel2.port)) for _ in range(4)} != {node.process.pid for node in nodes}:
            pass
    peer = open_websocket(mongrel2)
    first = int(say(peer, "pid"))
    left, other = nodes if nodes[0].process.pid == first else nodes[::-1]
    left.end()
    assert int(say(peer, "pid")) == other.process.pid
    relay.process.send_signal(signal.SIGTERM)
    assert peer.closed() == (1001, "")
    assert relay.finish() == 0
    peer.sock.close()
    other.end()


def test_a_relay_has_a_front_end_of_its_own(run):
    """Requests wait until a Node is there; without one they get a 503."""
    relay = run("relay", "--bind", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--send-timeout", "1")
    found = relay.wait_for(
        r"relay of http://127.0.0.1:(\d+)/ \((?:mongrel2|embedded front end)\), for Nodes at tcp://(127.0.0.1:\d+)"
    )
    port, endpoint = int(found[1]), found[2]
    assert ask(port).startswith(b"HTTP/1.1 503 ")
    node = run("node", "cli_app:app", "--relay", endpoint)
    node.wait_for("serving cli_app:app for the relay")
    wait_until(lambda: b" 200 OK" in ask(port))
    node.end()
    relay.end()


def test_a_relay_ends_when_its_stdin_does(run, tmp_path):
    """For whoever starts it, and may die."""
    relay = run("relay", "--bind", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--until-eof")
    # The test's own stdin is at its end.
    assert relay.finish() == 0
