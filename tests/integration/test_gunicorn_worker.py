"""gunicorn with our worker class, behind a real mongrel2."""

from __future__ import annotations

import os
import re
import signal
import sys
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
import os, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/ws":
        ws = environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            ws.send(message)
        return []
    if path == "/slow":
        print("slow has begun", flush=True)
        time.sleep(0.4)
    if path == "/fails":
        raise RuntimeError("a fault of the application")
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Many", str(environ["wsgi.multiprocess"]))])
    return [b"pid %d" % os.getpid()]
"""


class Gunicorn:
    """A running gunicorn; what it says is kept."""

    def __init__(self, folder: Path, url: str | None, *arguments: str) -> None:
        # gunicorn puts its control socket into the home folder.
        environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent), "HOME": str(folder)}
        if url is not None:
            environ["GREENTX_CONNECT"] = url
        options = ["-k", "greentx.gunicorn.Worker", "--bind", "127.0.0.1:0", *arguments, "gunicorn_app:app"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
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

    def finish(self) -> int:
        """Wait for its end and return its exit code."""
        self.lines += self.process.communicate(timeout=20)[0].splitlines(keepends=True)
        return self.process.returncode


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., Gunicorn]]:
    """Starts gunicorn in a folder with an application; it is ended after the test."""
    (tmp_path / "gunicorn_app.py").write_text(APP)
    with ExitStack() as stack:

        def start(url: str | None, *arguments: str) -> Gunicorn:
            gunicorn = Gunicorn(tmp_path, url, *arguments)
            stack.callback(gunicorn.process.wait)
            stack.callback(gunicorn.process.stdout.close)
            stack.callback(gunicorn.process.kill)
            return gunicorn

        yield start


def url_of(mongrel2) -> str:
    """Return what gunicorn has to be told."""
    (handler,) = mongrel2.handlers
    return f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"


def ask(port: int, path: str = "/") -> bytes:
    """Ask for a page over a new connection and return the whole answer."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: me\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_it_serves_logs_and_quits_gracefully(run, start_mongrel2):
    """gunicorn's own access log; SIGTERM lets what runs finish and tells the WebSockets."""
    mongrel2 = start_mongrel2()
    gunicorn = run(
        url_of(mongrel2), "--access-logfile", "-", "--access-logformat", '%(m)s %(U)s %(s)s "%(a)s" %({x-many}o)s'
    )
    gunicorn.wait_for("greentx .* serves mongrel2://")
    assert ask(mongrel2.port).startswith(b"HTTP/1.1 200 OK\r\n")
    assert ask(mongrel2.port, "/fails").startswith(b"HTTP/1.1 500 ")
    peer = Peer(mongrel2.port)
    assert peer.head() == HEAD
    peer.send("x")
    assert peer.message() == "x"
    slow = gevent.spawn(ask, mongrel2.port, "/slow")
    gunicorn.wait_for("slow has begun")
    gunicorn.process.send_signal(signal.SIGTERM)
    assert peer.closed() == (1001, "")
    peer.close(1001)
    assert slow.get(timeout=10).startswith(b"HTTP/1.1 200 OK\r\n")
    assert gunicorn.finish() == 0
    peer.sock.close()
    said = "".join(gunicorn.lines)
    assert re.search(r'^GET / 200 "me" False$', said, re.MULTILINE)
    assert re.search(r'^GET /slow 200 "me" False$', said, re.MULTILINE)
    assert re.search(r'^GET /ws 101 "-" -$', said, re.MULTILINE)
    assert "RuntimeError: a fault of the application" in said


def with_a_websocket(run, start_mongrel2, *options):
    """Run gunicorn behind a mongrel2; return it and the peer of a WebSocket."""
    mongrel2 = start_mongrel2()
    gunicorn = run(url_of(mongrel2), *options)
    gunicorn.wait_for("greentx .* serves")
    peer = Peer(mongrel2.port)
    assert peer.head() == HEAD
    return gunicorn, peer


def test_it_quits_at_once(run, start_mongrel2):
    """SIGQUIT does not wait for what runs."""
    gunicorn, peer = with_a_websocket(run, start_mongrel2, "--graceful-timeout", "15")
    with gevent.Timeout(10):
        gunicorn.process.send_signal(signal.SIGQUIT)
        assert peer.closed() == (1001, "")
        assert gunicorn.finish() == 0
    peer.sock.close()


def test_workers_are_replaced(run, start_mongrel2):
    """After max_requests, and on SIGHUP, another process serves."""
    mongrel2 = start_mongrel2()
    gunicorn = run(url_of(mongrel2), "--max-requests", "2")
    gunicorn.wait_for("greentx .* serves")
    first = [ask(mongrel2.port).split()[-1] for _ in range(2)]
    assert first[0] == first[1]
    gunicorn.wait_for("greentx .* serves")
    second = ask(mongrel2.port).split()[-1]
    assert second != first[0]
    gunicorn.process.send_signal(signal.SIGHUP)
    for _ in range(2):  # in whichever order
        gunicorn.wait_for(rf"greentx .* serves|Worker exiting \(pid: {second.decode()}\)")
    third = ask(mongrel2.port).split()[-1]
    assert third not in (first[0], second)
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


def test_several_workers_refuse_websockets(run, start_mongrel2, tmp_path):
    """Over one endpoint their messages would scatter; the address may stand in the configuration file."""
    mongrel2 = start_mongrel2()
    config = tmp_path / "settings.py"
    config.write_text(f"raw_env = ['GREENTX_CONNECT={url_of(mongrel2)}']\nworkers = 2\n")
    gunicorn = run(None, "--config", str(config))
    gunicorn.wait_for("greentx .* serves")
    gunicorn.wait_for("greentx .* serves")
    pids = set()
    with gevent.Timeout(20):
        while len(pids) < 2:
            answer = ask(mongrel2.port)
            assert b"X-Many: True" in answer
            pids.add(answer.split()[-1])
    peer = Peer(mongrel2.port)
    assert peer.head().startswith(b"HTTP/1.1 503 ")
    assert b"several workers share one endpoint" in peer.rest()
    peer.sock.close()
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


def test_workers_that_were_added_count(run, start_mongrel2):
    """gunicorn was told of one, and then of more, by a signal; when they have gone WebSockets are served again."""
    mongrel2 = start_mongrel2()

    def asks_for_websocket() -> bytes:
        peer = Peer(mongrel2.port)
        head = peer.head()
        peer.sock.close()
        return head

    gunicorn = run(url_of(mongrel2))
    gunicorn.wait_for("greentx .* serves")
    assert asks_for_websocket() == HEAD
    gunicorn.process.send_signal(signal.SIGTTIN)
    gunicorn.wait_for("greentx .* serves")
    for _ in range(2):  # whichever it gets to
        assert asks_for_websocket().startswith(b"HTTP/1.1 503 ")
    gunicorn.process.send_signal(signal.SIGTTOU)
    gunicorn.wait_for("Worker exiting")
    assert asks_for_websocket() == HEAD
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


def test_the_largest_message_can_be_said(run, start_mongrel2):
    """In the environment, as the address."""
    gunicorn, peer = with_a_websocket(run, start_mongrel2, "--env", "GREENTX_MAX_MESSAGE_SIZE=2000000")
    peer.send("x" * 2000000)
    assert peer.message() == "x" * 2000000
    peer.send("x" * 2000001)
    assert peer.closed()[0] == 1009
    peer.sock.close()
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [(None, "GREENTX_CONNECT is not set"), ("tcp://x", "listener 'tcp://x' is not of the form mongrel2://")],
)
def test_without_an_address_gunicorn_ends(run, url, said):
    """It says why, in a line, and does not start workers for ever."""
    gunicorn = run(url)
    assert gunicorn.finish() == 3
    output = "".join(gunicorn.lines)
    assert said in output
    assert "Traceback" not in output
