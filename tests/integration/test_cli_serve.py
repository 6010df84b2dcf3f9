"""``greentx serve`` with a real mongrel2: it serves, ends gracefully, and starts anew when a file changes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from gevent import socket, subprocess
from websocket_peer import HEAD, Peer

import greentx

pytestmark = pytest.mark.mongrel2

APP = """
import os, threading, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/ws":
        ws = environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            ws.send("VERSION " + message)
        return []
    if path == "/slow":
        print("slow has begun", flush=True)
        time.sleep(0.5)
    if path == "/stuck":
        print("stuck has begun", flush=True)
        threading.Event().wait()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"VERSION {os.getpid()}".encode()]
"""


class Program:
    """A running ``greentx serve``; what it says is kept."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent)}
        command = [sys.executable, "-W", "error", "-m", "greentx", "serve", "cli_app:app", *arguments]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read what it says until a line has *pattern*."""
        with gevent.Timeout(20):
            for line in self.process.stdout:
                self.lines.append(line)
                found = re.search(pattern, line)
                if found:
                    return found
        raise AssertionError(f"{pattern!r} was not said: {''.join(self.lines)}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, wait for its end and return its exit code."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        """Wait for its end and return its exit code."""
        self.lines += self.process.communicate(timeout=20)[0].splitlines(keepends=True)
        return self.process.returncode


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., Program]]:
    """Starts the command in a folder with an application; it is ended after the test."""
    write(tmp_path, "one")
    with ExitStack() as stack:

        def start(*arguments: str) -> Program:
            program = Program(tmp_path, *arguments)
            stack.callback(program.process.wait)
            stack.callback(program.process.stdout.close)
            stack.callback(program.process.kill)
            return program

        yield start


def write(folder: Path, version: str) -> None:
    """Write the application."""
    (folder / "cli_app.py").write_text(APP.replace("VERSION", version))


def ask(port: int, path: str = "/") -> bytes:
    """Ask for a page over a new connection and return the whole answer."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def wait_for_end(pid: int) -> None:
    """Return when there is no such process."""
    with gevent.Timeout(10):
        while os.path.exists(f"/proc/{pid}"):
            gevent.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends_gracefully(run, tmp_path, number):
    """What runs is finished, WebSockets are told, the access log is written; monkey-patched, so it sleeps for one."""
    program = run("--bind", "127.0.0.1:0", "--access-log", "log", "--pool", "10", "--log-level", "info")
    port = int(program.wait_for(r"serving cli_app:app on http://127.0.0.1:(\d+)/").group(1))
    peer = Peer(port)
    assert peer.head() == HEAD
    peer.send("x")
    assert peer.message() == "one x"
    slow = gevent.spawn(ask, port, "/slow")
    program.wait_for("slow has begun")
    assert ask(port).startswith(b"HTTP/1.1 200 OK\r\n")
    program.process.send_signal(number)
    assert peer.closed() == (1001, "")
    peer.close(1001)
    assert slow.get(timeout=10).startswith(b"HTTP/1.1 200 OK\r\n")
    assert program.finish() == 0
    assert "Traceback" not in "".join(program.lines)
    log = (tmp_path / "log").read_text().splitlines()
    assert sorted(re.findall(r'"GET (\S+) HTTP/1.1" (\d+)', "\n".join(log))) == [
        ("/", "200"),
        ("/slow", "200"),
        ("/ws", "101"),
    ]
    peer.sock.close()


@pytest.mark.parametrize("timeout", ["0.1", "60"])
def test_what_does_not_end_is_killed(run, timeout):
    """After --graceful-timeout, or at a second signal."""
    program = run("--bind", "127.0.0.1:0", "--graceful-timeout", timeout)
    port = int(program.wait_for(r"http://127.0.0.1:(\d+)/").group(1))
    stuck = gevent.spawn(ask, port, "/stuck")
    program.wait_for("stuck has begun")
    program.process.send_signal(signal.SIGTERM)
    program.wait_for("ending")
    if timeout == "60":
        program.process.send_signal(signal.SIGTERM)
    assert program.finish() == 0
    stuck.join(10)
    assert stuck.dead


def test_several_front_ends(run, start_mongrel2):
    """--connect may be repeated: one process serves several Mongrel2s."""
    from greentx.edge import Handler

    servers = [start_mongrel2({"/": Handler(name)}) for name in ("one", "two")]
    urls = []
    for server in servers:
        (handler,) = server.handlers
        urls += ["--connect", f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"]
    program = run(*urls)
    program.wait_for("serving cli_app:app over ipc://.*, ipc://")
    answers = [ask(server.port) for server in servers]
    assert len({answer.partition(b"\r\n\r\n")[2] for answer in answers}) == 1
    assert program.end() == 0


@pytest.mark.parametrize("reload", [(), ("--reload",)])
def test_the_largest_message_can_be_said(run, reload):
    """What is larger ends its WebSocket, in the process that runs the application."""
    program = run("--bind", "127.0.0.1:0", "--max-message-size", "2000000", *reload)
    port = int(program.wait_for(r" on http://127.0.0.1:(\d+)/").group(1))
    peer = Peer(port)
    assert peer.head() == HEAD
    peer.send("x" * 2000000)
    assert len(peer.message()) == 2000000 + len("one ")
    peer.send("x" * 2000001)
    assert peer.closed()[0] == 1009
    peer.sock.close()
    assert program.end() == 0


def test_reload(run, tmp_path):
    """A changed file starts the application anew: WebSockets get 1012, requests wait in the front end meanwhile."""
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app")
    first = ask(port)
    assert b"\r\n\r\none " in first
    peer = Peer(port)
    assert peer.head() == HEAD
    write(tmp_path, "second")
    assert peer.closed() == (1012, "")
    peer.close(1012)
    assert peer.rest() == b""
    wait_for_end(int(first.split()[-1]))
    assert b"\r\n\r\nsecond " in ask(port)
    program.wait_for("cli_app.py has changed")
    program.wait_for("serving cli_app:app")
    (tmp_path / "cli_app.py").write_text("this is no Python")
    program.wait_for("could not be imported; waiting for a change")
    write(tmp_path, "third one")
    program.wait_for("serving cli_app:app")
    assert b"\r\n\r\nthird one " in ask(port)
    assert program.end() == 0
    peer.sock.close()


@pytest.mark.parametrize("kind", ["module", "package", "folder"])
def test_a_module_that_is_not_there_yet_is_waited_for(run, tmp_path, kind):
    """Be it the application's own, or one that it imports; what has come is served."""
    os.rename(tmp_path / "cli_app.py", tmp_path / "later.py")
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("there is no module 'cli_app', in .*; waiting for a change")
    (tmp_path / "cli_app.py").write_text("from cli_lacking.inner import app\n")
    program.wait_for("could not be imported; waiting for a change")
    package = tmp_path / "cli_lacking"
    if kind == "module":
        (tmp_path / "new.py").write_text("import sys, later\nsys.modules[__name__ + '.inner'] = later\n")
        os.rename(tmp_path / "new.py", tmp_path / "cli_lacking.py")
    else:
        package.mkdir()
        if kind == "package":
            (package / "__init__.py").write_text("")
        program.wait_for("could not be imported; waiting for a change")
        os.rename(tmp_path / "later.py", package / "inner.py")
    program.wait_for("serving cli_app:app")
    assert b"\r\n\r\none " in ask(port)
    assert program.end() == 0


def test_the_worker_goes_when_its_parent_is_killed(run):
    """The application's process does not stay behind, nor the front end; of that a folder does."""
    before = set(os.listdir(tempfile.gettempdir()))
    program = run("--bind", "127.0.0.1:0", "--reload")
    port = int(program.wait_for(r"listening on http://127.0.0.1:(\d+)/").group(1))
    program.wait_for("serving cli_app:app")
    worker = int(ask(port).split()[-1])
    program.end(signal.SIGKILL)
    wait_for_end(worker)
    with gevent.Timeout(10):
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                socket.create_connection(("127.0.0.1", port)).close()
    for name in set(os.listdir(tempfile.gettempdir())) - before:
        shutil.rmtree(os.path.join(tempfile.gettempdir(), name))
