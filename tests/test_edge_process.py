"""The embedded front end in a process of its own: what holds for it next to what holds for any front end."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket, ssl
from gevent.event import Event

from greentx import Transceiver
from greentx.edge import EdgeProcess, Handler, Keeper, addresses, lines
from greentx.edge.embedded_output import EmbeddedOutput
from greentx.edge.front.log_pipe import LogPipe
from greentx.edge.output import Phase
from greentx.errors import BindError, FrontEndError, FrontEndNotFound, LocalProtocolError

SECONDS = 20.0
CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"


@pytest.fixture(scope="module")
def server() -> Iterator[EdgeProcess]:
    """A running one with two routes; the tests serve the first."""
    with EdgeProcess({"/": Handler("one"), "/two": Handler("two")}) as one:
        yield one
        one.kill()


@contextlib.contextmanager
def answering(server: EdgeProcess, answer: Callable[..., Any]) -> Iterator[None]:
    """Answer requests to its first route."""
    handler = server.handlers[0]
    assert handler.send_spec is not None and handler.recv_spec is not None
    with Transceiver(
        handler.sender, handler.send_spec, handler.recv_spec, rep_port=False, connect_timeout=SECONDS
    ) as transceiver:
        gevent.spawn(transceiver.serve, answer)
        yield


def hello(conn, req):
    """Answer with a word."""
    conn.reply_http(req, "hello")


def ask(server: EdgeProcess, path: str = "/", connect: Any = socket.create_connection) -> bytes:
    """Return the whole answer to one request."""
    with connect(("127.0.0.1", server.port), SECONDS) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def ends(pid: int) -> bool:
    """Return whether process *pid* ends soon."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], SECONDS)[0])
    finally:
        os.close(descriptor)


def until(done: Callable[[], object]) -> None:
    """Wait for it."""
    with gevent.Timeout(SECONDS):
        while not done():
            gevent.sleep(0.005)


def test_a_request_travels_to_a_handler_and_its_answer_back(server):
    """To a handler it is a Mongrel2."""
    with answering(server, hello):
        assert ask(server).endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_port_and_endpoints_stay_over_a_restart(transport):
    """Whoever is connected finds it again; its process is another one."""
    with EdgeProcess(transport=transport) as server:
        before = (server.port, server.routes, server.pid)
        assert server.handlers[0].send_spec is not None
        server.restart()
        assert (server.port, server.routes) == before[:2]
        assert server.pid != before[2]
        with answering(server, hello):
            assert ask(server).endswith(b"\r\n\r\nhello")
        server.kill()
        assert server.returncode == -signal.SIGKILL


def test_an_application_that_computes_does_not_stop_it(server):
    """It answers what it can by itself, here a request without a Host, while our hub stands still."""
    answers: list[bytes] = []

    def browser() -> None:
        from gevent.monkey import get_original

        with get_original("socket", "create_connection")(("127.0.0.1", server.port), SECONDS) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            answers.append(sock.recv(4096))

    thread = threading.Thread(target=browser)
    thread.start()
    thread.join(SECONDS)  # blocks the hub
    assert answers[0].startswith(b"HTTP/1.1 400 ")


def test_what_is_due_is_answered_before_it_stops():
    """SIGTERM lets requests that handlers have be finished."""
    asked, stopping = Event(), Event()

    def slow(conn, req):
        asked.set()
        stopping.wait(SECONDS)
        conn.reply_http(req, "hello")

    with EdgeProcess() as server, answering(server, slow):
        answer = gevent.spawn(ask, server)
        assert asked.wait(SECONDS)
        ending = gevent.spawn(server.stop, SECONDS)
        gevent.sleep(0)
        stopping.set()
        ending.get(timeout=SECONDS)
        assert answer.get(timeout=SECONDS).endswith(b"\r\n\r\nhello")
        assert server.returncode == 0


def test_tls_is_spoken_with_a_certificate(tmp_path):
    """The url says so; a file that is missing is named at the start, and one that is none then, too."""
    with EdgeProcess(certfile=CERTIFICATE) as server, answering(server, hello):
        assert server.url == f"https://127.0.0.1:{server.port}/"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(CERTIFICATE)

        def connect(address: tuple[str, int], timeout: float) -> Any:
            return context.wrap_socket(socket.create_connection(address, timeout), server_hostname="localhost")

        assert ask(server, connect=connect).endswith(b"\r\n\r\nhello")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        EdgeProcess(certfile=tmp_path / "nowhere.pem").start()
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(FrontEndError, match=r"the embedded front end cannot start: .*empty\.pem"):
        EdgeProcess(certfile=tmp_path / "empty.pem").start()


def test_what_it_logs_comes_to_our_log_at_its_level(caplog):
    """Here that a connection is one too many; its options are those of an Edge."""
    with EdgeProcess(max_connections=1) as server, socket.create_connection(("127.0.0.1", server.port), SECONDS):
        assert ask(server).startswith(b"HTTP/1.1 503 ")
        until(lambda: caplog.records)
    (said,) = caplog.records
    assert (said.name, said.levelname) == ("greentx.edge.front", "WARNING")
    assert "refused" in said.getMessage()


def test_a_line_goes_to_the_logger_that_it_names(caplog):
    """Other loggers than its own are none of its business; what is no line of its log is an error."""
    caplog.set_level(logging.DEBUG)
    output = EmbeddedOutput()
    output.phase = Phase.RUNNING
    output.line(lines.log(logging.INFO, "greentx.edge.front.entry", "one"))
    output.line(lines.log(logging.WARNING, "somebody.else", "two\nlines"))
    output.line("Traceback (most recent call last):")
    output.line('["log", "no level"]')
    assert [(one.name, one.levelname, one.getMessage()) for one in caplog.records] == [
        ("greentx.edge.front.entry", "INFO", "one"),
        ("greentx.edge.front", "WARNING", "two\nlines"),
        ("greentx.edge.front", "ERROR", "Traceback (most recent call last):"),
        ("greentx.edge.front", "ERROR", '["log", "no level"]'),
    ]


@pytest.mark.parametrize("line", ["", "text", "[", "[1]", '["ready", 1]', '["log", 1, 2, "x"]', '["other"]', "[]"])
def test_what_is_no_line_of_its_protocol_is_none(line):
    """A library may write anything."""
    assert lines.parse(line) is None


def test_a_log_that_nobody_reads_stops_nobody():
    """What has no room is dropped, and counted, and the lines that come are whole and in order."""
    reader, writer = os.pipe()
    log = LogPipe(writer)
    count, data = 0, b""
    while data.partition(b"dropped")[2].count(b"\n") < 2 and count < 10_000:
        log.write(lines.log(logging.INFO, "greentx.edge.front", f"{count:<1000}"))
        count += 1
        if count > 3000:
            data += os.read(reader, 1 << 16)
    os.close(reader)
    log.write(lines.ready())  # into a pipe that is broken
    os.close(writer)
    texts = [json.loads(line)[3] for line in data.split(b"\n")[:-1]]
    (said,) = [text for text in texts if text.endswith(" lines were dropped, since nobody read them")]
    before = texts.index(said)
    assert [int(text) for text in texts[:before]] == list(range(before))
    assert int(texts[before + 1]) == before + int(said.split()[0])


OWNER = """
import gevent
from greentx.edge import EdgeProcess
server = EdgeProcess()
server.start()
print(server.pid, server.folder, flush=True)
"""


def test_it_dies_with_us_when_we_are_killed():
    """kill -9 leaves no server behind, and its folder goes with the next start of one."""
    # Never ends by itself: it is ended.
    with subprocess.Popen(
        [sys.executable, "-c", OWNER + "gevent.sleep(60)"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        process.kill()
    assert ends(int(pid))
    with EdgeProcess() as server:
        server.kill()
        assert not os.path.exists(folder)


def test_a_keeper_starts_it_again(caplog):
    """On the same port."""
    with EdgeProcess() as server, Keeper(server):
        before = server.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        until(lambda: server.pid != before and "started again" in caplog.text)
        with answering(server, hello):
            assert ask(server).endswith(b"\r\n\r\nhello")
        assert f"the embedded front end (pid {before}) ended by itself with status -9" in caplog.messages


def test_a_taken_port_is_named():
    """Nothing is left where it cannot start, and it may be started later."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = EdgeProcess(bind_addr="localhost", port=port)
        with pytest.raises(BindError, match=f"^localhost:{port} cannot be bound: Address already in use$") as info:
            server.start()
        assert info.value.errno == errno.EADDRINUSE
        assert not os.path.exists(server.folder)
    with server:
        assert server.started
        server.kill()


def test_a_free_port_that_was_taken_in_between_is_replaced(monkeypatch):
    """Another process may be quicker."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1]]
        real = addresses.free_port
        monkeypatch.setattr(addresses, "free_port", lambda host: ports.pop() if ports else real(host))
        with EdgeProcess() as server:
            assert server.port != taken.getsockname()[1]
            server.kill()


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (
            lines.failed("no", "127.0.0.1:81", errno.EACCES),
            BindError,
            "name:81 cannot be bound: a port below 1024 needs",
        ),
        (lines.failed("ipc://x: no", "ipc://x", 1), BindError, "ipc://x: no"),
        (lines.failed("no", None, None), FrontEndError, "the embedded front end cannot start: no"),
        ("KeyError: 'x'", FrontEndError, "the embedded front end ended with status 3 while it started; it said: Key"),
    ],
)
def test_why_it_could_not_start_is_an_error(said, kind, message):
    """As it says itself, with the address as it was given."""
    output = EmbeddedOutput()
    output.place = "127.0.0.1:81"
    output.line(said)
    error = output.start_failure("name:81", 3)
    assert type(error) is kind
    assert str(error).startswith(message)


def test_without_httptools_the_error_says_what_to_install(monkeypatch):
    """Before anything is started."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    server = EdgeProcess()
    with pytest.raises(FrontEndNotFound, match=r"pip install greentx\[edge\]"):
        server.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routes": {}}, "routes is empty"),
        ({"routes": {"x": Handler("x")}}, "route 'x' is unknown"),
        ({"routes": {"/(": Handler("x")}}, "cannot be read"),
        ({"settings": {"limits.content_length": "x"}}, "not a whole number"),
        ({"settings": {"server.daemonize": 1}}, "has to stay 0"),
        ({"transport": "inproc"}, "transport 'inproc' is unknown"),
        ({"keyfile": "x"}, "needs a certfile"),
        ({"port": 65536}, "65536"),
    ],
)
def test_a_value_that_it_cannot_use_is_refused_at_once(options, message):
    """As the process would do it later."""
    with pytest.raises(LocalProtocolError, match=message):
        EdgeProcess(**options)


def test_modules_are_found_where_we_find_them(tmp_path):
    """A relative path means the folder that we were started in, whatever its own is."""
    (tmp_path / "here").symlink_to(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = "import sys; sys.path.insert(0, 'here')\n" + OWNER + "server.stop(0)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True
    )
    assert len(done.stdout.split()) == 2


def test_it_is_small():
    """Whoever has it start with each program pays for it; measured are 37 MB."""
    with EdgeProcess() as server:
        with open(f"/proc/{server.pid}/status") as file:
            (size,) = [int(line.split()[1]) for line in file if line.startswith("VmRSS")]
        server.kill()
    assert size < 80_000
