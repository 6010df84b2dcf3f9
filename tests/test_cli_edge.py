"""``greentx edge``: the embedded front end as a program, with handlers that come and go behind it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.subprocess
import pytest
from gevent import socket, ssl
from gevent.event import Event

from greentx import Transceiver
from greentx.cli import Failure, build_parser, main

SECONDS = 20.0
ROOT = Path(__file__).parents[1]


class Program:
    """One that runs.

    Attributes:
        port: Where it listens.
        said: Its line that says so.
    """

    def __init__(self, *options: str, **environ: str) -> None:
        self.process = gevent.subprocess.Popen(
            [sys.executable, "-m", "greentx", "edge", *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            stderr=gevent.subprocess.PIPE,
            text=True,
        )
        # Before it there may be a warning about the limits of the machine.
        self.said = next((line for line in self.process.stderr if "listening on" in line), "")
        found = re.search(r"listening on https?://[^/]*:(\d+)/", self.said)
        assert found is not None, self.said + self.process.communicate()[1]
        self.port = int(found.group(1))

    def ask(self, path: str = "/") -> bytes:
        """Return the whole answer to one request."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: sock.recv(4096), b""))

    def end(self, number: int = signal.SIGTERM) -> tuple[int, list[str]]:
        """Send it a signal; return its exit code, and what else it said, without dates."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=SECONDS)[1]
        return self.process.returncode, [line.partition(": ")[2] for line in said.splitlines()]


@pytest.fixture
def run() -> Iterator[Callable[..., Program]]:
    """Start the program with arguments; it is ended after the test."""
    with contextlib.ExitStack() as stack:

        def one(*options: str, **environ: str) -> Program:
            program = Program(*options, **environ)
            stack.callback(program.process.communicate)
            stack.callback(program.process.kill)
            return program

        yield one


def entry(folder: Path, name: str) -> tuple[str, str]:
    """Return the endpoints of a handler."""
    return f"ipc://{folder}/{name}.push", f"ipc://{folder}/{name}.sub"


@contextlib.contextmanager
def answering(folder: Path, name: str, answer: Callable[..., Any] | None = None) -> Iterator[None]:
    """Answer its requests, with its name where no other answer is given."""
    with Transceiver(name, *entry(folder, name), rep_port=False, connect_timeout=SECONDS) as transceiver:
        gevent.spawn(transceiver.serve, answer or (lambda conn, req: conn.reply_http(req, name)))
        yield


def test_handlers_come_and_go_behind_it(run, tmp_path):
    """A request waits for the next one; one line says where it listens, and for whom."""
    push, sub = entry(tmp_path, "echo")
    program = run("--bind", "127.0.0.1:0", "--handler", f"echo={push},{sub}")
    assert program.said.endswith(
        f"listening on http://127.0.0.1:{program.port}/ (embedded front end), for echo at {push} and {sub}\n"
    )
    for _ in range(2):
        waiting = gevent.spawn(program.ask)
        with answering(tmp_path, "echo"):
            assert waiting.get(timeout=SECONDS).endswith(b"\r\n\r\necho")
    assert program.end() == (0, ["ending"])


def test_routes_lead_to_handlers(run, tmp_path):
    """As the environment says them here, several with spaces in between."""
    handlers = [f"{name}={','.join(entry(tmp_path, name))}" for name in ("one", "two")]
    program = run(
        GREENTX_HANDLER=f"{handlers[0]} {handlers[1]},json", GREENTX_ROUTE="/=one /two=two", GREENTX_BIND="127.0.0.1:0"
    )
    with answering(tmp_path, "one"), answering(tmp_path, "two"):
        assert program.ask("/").endswith(b"\r\n\r\none")
        assert program.ask("/two/x").endswith(b"\r\n\r\ntwo")
    assert program.end(signal.SIGINT)[0] == 0


def test_requests_are_logged_where_that_is_asked_for(run, tmp_path):
    """To a file, each when its answer is whole."""
    push, sub = entry(tmp_path, "echo")
    log = tmp_path / "access.log"
    program = run("--bind", "127.0.0.1:0", "--handler", f"echo={push},{sub}", "--access-log", str(log))
    with answering(tmp_path, "echo"):
        program.ask("/a")
    assert program.end()[0] == 0
    assert re.fullmatch(r'127\.0\.0\.1 - - \[.*\] "GET /a HTTP/1\.1" 200 \d+ "-" "-" \d\.\d{6}\n', log.read_text())


def test_it_listens_at_several_addresses_and_knows_hosts(run, tmp_path):
    """A Unix socket among them; a host has routes of its own."""
    options = [f"--handler={name}={','.join(entry(tmp_path, name))}" for name in ("one", "two")]
    options += ["--route", "/=one", "--route", "x/=two", "--bind", "127.0.0.1:0", "--bind", f"unix:{tmp_path}/http"]
    program = run(*options)
    assert f"http://127.0.0.1:{program.port}/ and unix:{tmp_path}/http (embedded front end)" in program.said
    with answering(tmp_path, "one"), answering(tmp_path, "two"):
        assert program.ask().endswith(b"\r\n\r\ntwo")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{tmp_path}/http")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n")
            assert b"".join(iter(lambda: sock.recv(4096), b"")).endswith(b"\r\n\r\none")
    assert program.end()[0] == 0


def test_what_is_due_is_answered_before_it_ends_and_a_second_signal_ends_it_at_once(run, tmp_path):
    """Which one of both decides over a request that a handler has."""
    for second in (False, True):
        asked, answer = Event(), Event()

        def slow(conn, req, asked=asked, answer=answer):
            asked.set()
            answer.wait(SECONDS)
            conn.reply_http(req, "slow")

        program = run("--bind", "127.0.0.1:0", "--handler", f"slow={','.join(entry(tmp_path, 'slow'))}")
        with answering(tmp_path, "slow", slow):
            asking = gevent.spawn(program.ask)
            assert asked.wait(SECONDS)
            program.process.send_signal(signal.SIGTERM)
            assert program.process.stderr.readline().endswith("ending\n")
            if second:
                program.process.send_signal(signal.SIGTERM)
            else:
                answer.set()
            with contextlib.suppress(ConnectionError):
                assert asking.get(timeout=SECONDS).endswith(b"slow") is not second
            assert program.process.wait(SECONDS) == 0
            answer.set()


def test_its_bounds_can_be_said(run, tmp_path):
    """And settings by Mongrel2's names."""
    program = run(
        *("--bind", "127.0.0.1:0", "--handler", f"x={','.join(entry(tmp_path, 'x'))}"),
        *("--max-connections", "1", "--set", "limits.content_length=70000", "--no-handler-timeout", "0.1"),
    )
    assert program.ask().startswith(b"HTTP/1.1 503 ")
    with socket.create_connection(("127.0.0.1", program.port), SECONDS) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 70001\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", program.port), SECONDS):
        assert b"too many connections" in program.ask()


def test_https_is_served_with_a_certificate(run, tmp_path):
    """Its line says so."""
    certificate = str(ROOT / "tests" / "data" / "localhost.pem")
    program = run(
        *("--bind", "127.0.0.1:0", "--handler", f"x={','.join(entry(tmp_path, 'x'))}"), "--certfile", certificate
    )
    assert f"listening on https://127.0.0.1:{program.port}/" in program.said
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate)
    with answering(tmp_path, "x"), socket.create_connection(("127.0.0.1", program.port), SECONDS) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"".join(iter(lambda: sock.recv(4096), b"")).endswith(b"\r\n\r\nx")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "say where handlers connect: --handler NAME=PUSH,SUB"),
        ("--handler a=*:1,*:2 --handler a=*:3,*:4", "--handler: two have the same name"),
        (
            "--handler a=*:1,*:2 --handler b=*:3,*:4 --route /=a",
            "--handler b: no --route leads to it; say --route PATH=b",
        ),
        ("--handler a=*:1,*:2 --route /=b", "--route /=b: there is no --handler b=..."),
        ("--handler a=*:1,*:2 --route /=a --route /=a", "--route: two have the same path"),
        ("--handler a=*:1,*:2 --route x/=a", "say where requests of other hosts go: --route PATH=NAME"),
        ("--handler a=*:1,*:2 --keyfile x", "--keyfile needs --certfile"),
        ("--handler a=*:1,*:2 --set limits.content_lenght=1", "did you mean 'limits.content_length'"),
        ("--handler a=*:1,*:2 --set control_port=1", "'control_port' means nothing to the embedded front end"),
        ("--handler a=*:1,*:2 --route /(=a", "cannot be read"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(line, message, monkeypatch):
    """Before anything is opened."""
    monkeypatch.setattr("greentx.cli.edge.log_to_stderr", lambda level: None)
    arguments = build_parser().parse_args(["edge", *line.split()])
    with pytest.raises(Failure) as info:
        arguments.function(arguments)
    assert info.value.code == 2
    assert message in str(info.value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--handler", "a", "a is not NAME=PUSH,SUB, such as echo=127.0.0.1:9999,127.0.0.1:9998"),
        ("--handler", "a=*:1,*:2,*:3,*:4", "is not NAME=PUSH,SUB"),
        ("--handler", "a=*:1,*:2,xml", "protocol 'xml' is unknown"),
        ("--handler", "a b=*:1,*:2", "a b"),
        ("--handler", "a=*:1,*:1", "only one socket can bind it"),
        ("--handler", "a=inproc://x,*:1", "inproc://x"),
        ("--route", "chat=a", "chat=a is not PATH=NAME"),
        ("--route", "/chat", "/chat is not PATH=NAME"),
        ("--bind", "localhost", "has no port"),
    ],
)
def test_an_option_that_cannot_be_read_is_one_line(option, value, message, capsys):
    """With what it should be."""
    with pytest.raises(SystemExit) as info:
        main(["edge", option, value])
    assert info.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def test_an_address_in_use_is_one_line(tmp_path):
    """Of the machine, not of the arguments."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "greentx",
                "edge",
                "--bind",
                where,
                "--handler",
                f"a={','.join(entry(tmp_path, 'a'))}",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"greentx: {where} cannot be bound: Address already in use; another program listens")
    assert done.stderr.count("\n") == 1


def test_its_help_has_an_example(capsys):
    """With the handler's and the browser's side."""
    with pytest.raises(SystemExit) as info:
        main(["edge", "--help"])
    assert info.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "greentx edge --bind :8000 --handler echo=tcp://127.0.0.1:9999,tcp://127.0.0.1:9998" in said
