"""Programs that bring the embedded front end along: ``WSGIServer``, ``greentx serve`` and ``greentx relay``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gevent import socket
from spoken_program import SpokenProgram
from websocket_peer import HEAD, Peer
from workers_rig import APP, all_of, none_runs, wait_until

import greentx
from greentx.edge.output import Phase
from greentx.wsgi import WSGIServer
from greentx.wsgi.listeners import TcpListener


def application(environ, start_response):
    """Answer with the path, who asks, and how much was sent."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['PATH_INFO']} {environ['REMOTE_ADDR']} {len(body)}".encode()]


def ask(port: int, head: str, body: bytes = b"") -> bytes:
    """Return the whole answer to one request."""
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_a_wsgi_server_serves_without_mongrel2(monkeypatch, tmp_path):
    """By itself, where that is missing; bodies are streamed, braces pass, a proxy is believed as behind Mongrel2."""
    monkeypatch.setenv("PATH", str(tmp_path))
    server = WSGIServer(("127.0.0.1", 0), application, log=None, trusted_proxies="127.0.0.1")
    assert server.front_end == "edge"
    assert isinstance(server.listener, TcpListener)
    front_end = server.listener.process
    server.start()
    try:
        port = server.server_port
        assert port is not None
        assert ask(port, "GET /{a} HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1").endswith(b"/{a} 192.0.2.1 0")
        assert ask(port, "POST /b HTTP/1.1", b"x" * 1_000_000).endswith(b"/b 127.0.0.1 1000000")
        # Started again, as Mongrel2 would be.
        pid = front_end.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: front_end.pid != pid and front_end.output.phase is Phase.RUNNING)
        assert ask(port, "GET /c HTTP/1.1").endswith(b"/c 127.0.0.1 0")
    finally:
        server.stop()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., SpokenProgram]]:
    """Starts the command in a folder with an application; it is ended after the test."""
    (tmp_path / "cli_app.py").write_text(APP)
    environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parents[1]), "GREENTX_FRONT_END": "edge"}
    with ExitStack() as stack:

        def start(*arguments: str) -> SpokenProgram:
            program = SpokenProgram([sys.executable, "-m", "greentx", *arguments], tmp_path, environ)
            stack.callback(program.close)
            stack.callback(lambda: sys.stdout.write("".join(program.lines)))  # shown where the test fails
            return program

        yield start


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), r"serving cli_app:app on http://127.0.0.1:(\d+)/ \(embedded front end\)$"),
        (("--reload",), r"listening on http://127.0.0.1:(\d+)/ \(embedded front end\)$"),
        (("--workers", "2"), r"serving cli_app:app on http://127.0.0.1:(\d+)/ \(embedded front end\)$"),
    ],
    ids=["alone", "reload", "workers"],
)
def test_the_command_serves_without_mongrel2_and_says_so(run, options, said):
    """Pages and WebSockets, in one process and in several; nothing is left behind."""
    program = run("serve", "cli_app:app", "--bind", "127.0.0.1:0", *options)
    port = int(program.wait_for(said).group(1))
    if options == ("--reload",):
        program.wait_for("serving cli_app:app")
    assert ask(port, "GET / HTTP/1.1").startswith(b"HTTP/1.1 200 OK\r\n")
    assert ask(port, "POST /upload HTTP/1.1", b"x" * 500_000).endswith(b"0500000")
    peer = Peer(port)
    assert peer.head() == HEAD
    peer.sock.settimeout(40)
    # Larger than what it lets pass by itself.
    peer.send(b"x" * 2_000_000)
    assert peer.message() == b"x" * 2_000_000
    peer.close()
    peer.sock.close()
    processes = all_of(program.process.pid)
    program.process.send_signal(signal.SIGTERM)
    assert program.finish() == 0
    wait_until(lambda: none_runs(processes))


def test_a_relay_has_it_too(run):
    """Its Nodes answer what comes in there."""
    relay = run("relay", "--bind", "127.0.0.1:0", "--listen", "127.0.0.1:0")
    found = relay.wait_for(
        r"relay of http://127.0.0.1:(\d+)/ \(embedded front end\), for Nodes at tcp://(127.0.0.1:\d+)"
    )
    node = run("node", "cli_app:app", "--relay", found.group(2))
    node.wait_for("serving")
    assert ask(int(found.group(1)), "GET / HTTP/1.1").startswith(b"HTTP/1.1 200 OK\r\n")
    for program in (node, relay):
        program.process.send_signal(signal.SIGTERM)
        assert program.finish() == 0
