"""The managed mongrel2: requests travel, errors name their cause, and nothing outlives its owner."""

from __future__ import annotations

import errno
import logging
import os
import select
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gevent
import gevent.subprocess
import pytest
import zmq.green as zmq
from gevent import socket

from greentx.edge import Handler, Mongrel2, addresses
from greentx.edge.config import DEFAULT_SETTINGS
from greentx.edge.mongrel2_output import Mongrel2Output
from greentx.edge.output import Phase
from greentx.edge.process import ChildProcess
from greentx.errors import BindError, ConnectTimeout, ForkError, LocalProtocolError, Mongrel2Error, Mongrel2NotFound
from greentx.protocol.replies import build_reply
from greentx.protocol.request import Request

pytestmark = pytest.mark.mongrel2

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class RawHandler:
    """The least that answers requests: a PULL, an XPUB, and a greenlet that says ``ok``."""

    def __init__(self, handler: Handler) -> None:
        self.requests: list[Request] = []
        self._context = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        self._xpub = self._context.socket(zmq.XPUB)
        self._pull.connect(handler.send_spec)
        self._xpub.connect(handler.recv_spec)
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        self._xpub.recv()  # the server's subscription: from now on replies arrive
        while True:
            request = Request.parse(self._pull.recv())
            if not request.is_disconnect():
                self.requests.append(request)
                self._xpub.send(build_reply(request.sender, request.conn_id, ANSWER))

    def __enter__(self) -> RawHandler:
        return self

    def __exit__(self, *_: object) -> None:
        self._greenlet.kill()
        self._context.destroy(linger=0)


def ask(server: Mongrel2, request: bytes = GET) -> bytes:
    """Send *request* over a new connection and return what comes first."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(request)
        return sock.recv(1000)


def fake(folder: Path, name: str, script: str) -> None:
    """Put a shell script called *name* into *folder*."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run_python(script: str, *, patched: bool = False, **options: object) -> subprocess.Popen[str]:
    """Start Python on *script*, with monkey-patching where *patched*."""
    head = "import gevent.monkey; gevent.monkey.patch_all()\n" if patched else ""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ends(pid: int, timeout: float = 10) -> bool:
    """Return whether process *pid* ends within *timeout* seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)


def children() -> set[str]:
    """Return the ids of the processes that this one has."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_a_request_travels_to_a_handler_and_its_answer_back(start_mongrel2, transport, protocol):
    """Both kinds of made-up endpoints and both protocols carry a request."""
    server = start_mongrel2({"/": Handler("abc-1", protocol=protocol)}, transport=transport)
    assert all(
        spec.startswith(f"{transport}://") for spec in (server.handlers[0].send_spec, server.handlers[0].recv_spec)
    )
    with RawHandler(server.handlers[0]) as handler:
        assert ask(server) == ANSWER
    assert [(one.sender, one.path, one.method) for one in handler.requests] == [("abc-1", "/", "GET")]


def test_several_handlers_share_a_server(start_mongrel2):
    """Each route reaches its handler; equal handlers are one, and JSON sockets have routes of their own."""
    chat = Handler("chat")
    server = start_mongrel2({"/": Handler("web"), "/chat": chat, "@chat": Handler("chat"), "<chat": chat})
    assert [one.sender for one in server.handlers] == ["web", "chat"]
    assert server.routes["@chat"] == server.routes["/chat"] == server.handlers[1]
    with RawHandler(server.handlers[0]) as web, RawHandler(server.handlers[1]) as talk:
        assert ask(server) == ask(server, GET.replace(b"/ ", b"/chat ")) == ANSWER
        assert ask(server, b'@chat {"a":1}\0') == ask(server, b"<chat>hi</chat>\0") == ANSWER
    assert [one.path for one in web.requests] == ["/"]
    assert [(one.path, one.method) for one in talk.requests] == [("/chat", "GET"), ("@chat", "JSON"), ("<chat", "XML")]


def test_no_message_is_too_large_for_the_default_settings(start_mongrel2):
    """A head of 16 000 bytes and a body of a million bytes get through without settings."""
    server = start_mongrel2()
    body = b"x" * 1_000_000
    head = b"POST / HTTP/1.1\r\nCookie: " + b"c" * 15_800 + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    with RawHandler(server.handlers[0]) as handler:
        assert ask(server, head + body) == ANSWER
    assert handler.requests[0].body == body


def test_settings_override_the_defaults(start_mongrel2):
    """A limit that was set is the one that holds."""
    server = start_mongrel2(settings={"limits.buffer_size": 4096, "limits.content_length": 5000})
    request = b"POST / HTTP/1.1\r\nContent-Length: 5001\r\n\r\n"
    assert ask(server, request).startswith(b"HTTP/1.1 413 ")


def test_tls_is_spoken_with_a_certificate(start_mongrel2):
    """With certfile the port talks TLS, and the url says so."""
    server = start_mongrel2(certfile=CERTIFICATE)
    context = ssl.create_default_context(cafile=CERTIFICATE)
    assert server.url == f"https://127.0.0.1:{server.port}/"
    with (
        RawHandler(server.handlers[0]),
        gevent.Timeout(10),
        socket.create_connection(("127.0.0.1", server.port), 10) as plain,
    ):
        # The hub waits for the socket, the standard library's TLS does the rest.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

        def until_done(step):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    plain.sendall(outgoing.read())
                    incoming.write(plain.recv(65536))

        until_done(tls.do_handshake)
        tls.write(GET)
        assert until_done(lambda: tls.read(1000)) == ANSWER


def test_an_ipv6_address_can_be_served(start_mongrel2):
    """The url has brackets, and the port is open there."""
    server = start_mongrel2(bind_addr="::1")
    assert server.url == f"http://[::1]:{server.port}/"
    socket.create_connection(("::1", server.port), 5).close()


def test_every_endpoint_is_bound_when_start_returns(start_mongrel2):
    """The port and all sockets accept at once, start after start."""
    for _ in range(5):
        server = start_mongrel2({"/": Handler("a"), "/b": Handler("b")})
        specs = [spec for one in server.handlers for spec in (one.send_spec, one.recv_spec)]
        assert [addresses.accepts(spec) for spec in specs] == [True] * 4
        socket.create_connection(("127.0.0.1", server.port), 5).close()
        server.stop()


@pytest.mark.parametrize("again", ["kill and start", "restart", "stop and start"])
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_port_and_endpoints_stay_over_a_restart(start_mongrel2, transport, again):
    """A handler that was connected before is served after it, without being told."""
    server = start_mongrel2(transport=transport)
    port, handlers, pid = server.port, server.handlers, server.pid
    with RawHandler(server.handlers[0]):
        assert ask(server) == ANSWER
        if again == "restart":
            server.restart()
        else:
            getattr(server, again.split()[0])()
            assert not server.started
            server.start()
        assert ask(server) == ANSWER
    assert (server.port, server.handlers) == (port, handlers)
    assert server.pid != pid


def test_start_and_stop_can_be_called_again():
    """What is done already is not done twice."""
    server = Mongrel2()
    server.stop()
    with server:
        pid = server.pid
        server.start()
        assert server.pid == pid
    server.stop()
    assert server.returncode is not None


def test_greenlets_that_start_and_stop_it_at_once_do_so_one_after_the_other():
    """There is one process, which all who start it find ready, and none after the last stop."""
    server = Mongrel2()
    starting = [gevent.spawn(server.start) for _ in range(3)]
    gevent.joinall(starting, raise_error=True)
    with RawHandler(server.handlers[0]):
        assert ask(server) == ANSWER
    greenlets = [gevent.spawn(call) for call in (server.restart, server.start, server.stop)]
    gevent.joinall(greenlets, raise_error=True)
    assert not server.started


def test_its_representation_tells_its_state():
    """The address, the process and the number of handlers are in it."""
    server = Mongrel2(port=8123)
    assert repr(server) == "<Mongrel2 http://127.0.0.1:8123/ stopped handlers=1>"
    assert (server.pid, server.returncode, server.started) == (None, None, False)
    with Mongrel2() as server:
        assert repr(server) == f"<Mongrel2 http://127.0.0.1:{server.port}/ pid={server.pid} handlers=1>"
        assert (server.returncode, server.started) == (None, True)


def test_the_folder_is_private_and_goes_with_stop(start_mongrel2):
    """While it runs the folder is ours alone; afterwards it is gone."""
    server = start_mongrel2()
    folder = Path(server.control_spec.removeprefix("ipc://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    server.stop()
    assert not folder.exists()


def test_sockets_outside_the_folder_go_with_stop(start_mongrel2, tmp_path):
    """Mongrel2 leaves the files of its ipc sockets behind; stop does not."""
    short = Path(tempfile.mkdtemp())
    handler = Handler("a", f"ipc://{short}/s", f"ipc://{short}/r")
    server = start_mongrel2({"/": handler})
    assert sorted(one.name for one in short.iterdir()) == ["r", "s"]
    server.stop()
    short.rmdir()


def test_other_greenlets_run_while_it_starts_and_stops():
    """Waiting for it does not block the hub."""
    turns = 0

    def turn():
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0.001)  # a turn of the hub

    greenlet = gevent.spawn(turn)
    server = Mongrel2()
    server.start()
    while_starting, turns = turns, 0
    server.stop()
    greenlet.kill()
    assert while_starting > 5
    assert turns > 5


def test_a_taken_port_is_named():
    """Who gives a port that is in use reads which one it is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port} cannot be bound: Address already in use") as info:
            Mongrel2(port=port).start()
        assert (info.value.address, info.value.errno) == (f"127.0.0.1:{port}", errno.EADDRINUSE)


@pytest.mark.parametrize("side", ["send_spec", "recv_spec"])
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_taken_endpoint_is_named(transport, side):
    """Mongrel2 would wait for it, or take it away from its owner; we say whose address it is."""
    folder = Path(tempfile.mkdtemp())
    with socket.socket(socket.AF_UNIX if transport == "ipc" else socket.AF_INET) as taken:
        taken.bind(str(folder / "s") if transport == "ipc" else ("127.0.0.1", 0))
        taken.listen()
        spec = f"ipc://{folder}/s" if transport == "ipc" else f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BindError, match=f"{spec} cannot be bound: Address already in use"):
            Mongrel2({"/": Handler("a", **{side: spec})}).start()


def test_an_endpoint_lost_in_between_is_named(monkeypatch):
    """An endpoint that was free when we looked and is not when Mongrel2 binds it ends the start."""
    monkeypatch.setattr(addresses, "check_free", lambda spec: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        spec = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        # Nothing accepts on the other one, so that the start is still waiting when Mongrel2 complains.
        monkeypatch.setattr(addresses, "accepts", lambda spec: False)
        with pytest.raises(BindError, match=f"{spec} cannot be bound by mongrel2"):
            Mongrel2({"/": Handler("a", send_spec=spec)}).start()


@pytest.mark.parametrize("address", ["192.0.2.1", "name.invalid"])
@pytest.mark.parametrize("port", [0, 8123])
def test_an_address_that_is_not_ours_is_named(address, port):
    """An address of another machine, or a name that means nothing, cannot be listened on."""
    with pytest.raises(BindError, match=address):
        Mongrel2(bind_addr=address, port=port).start()


def test_a_free_port_that_was_taken_in_between_is_replaced(monkeypatch):
    """With port 0 the loss of a race for the port is not the caller's concern."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1]]
        real = addresses.free_port
        monkeypatch.setattr(addresses, "free_port", lambda host: ports.pop() if ports else real(host))
        with Mongrel2() as server:
            assert server.port != taken.getsockname()[1]
        assert not ports


LINE = "Mon, 23 Nov 2026 07:46:56 GMT [%s] (src/task/net.c:118: errno: %s) %s"
ANNOUNCE = LINE % ("ERROR", "None", "Can't announce on TCP port 81")


@pytest.mark.parametrize(
    ("lines", "kind", "text"),
    [
        (
            [LINE % ("ERROR", "x", "Failed to bind to address with /usr/lib/authbind/helper"), ANNOUNCE],
            BindError,
            "127.0.0.1:81 cannot be bound: a port below 1024 needs root, CAP_NET_BIND_SERVICE or authbind",
        ),
        ([ANNOUNCE], BindError, "127.0.0.1:81 cannot be bound; it said: Can't announce on TCP port 81"),
        (
            [LINE % ("INFO", "None", "hello"), LINE % ("ERROR", "None", "Bad thing.")],
            Mongrel2Error,
            "mongrel2 ended with status 3 while it started; it said: Bad thing.",
        ),
        ([], Mongrel2Error, "mongrel2 ended with status 3 while it started"),
    ],
)
def test_a_refusal_to_start_becomes_an_error_with_its_reason(tmp_path, monkeypatch, lines, kind, text):
    """What Mongrel2 writes before it gives up is in the exception."""
    fake(tmp_path, "mongrel2", "\n".join(f'echo "{line}"' for line in lines) + "\nexit 3")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kind) as info:
        Mongrel2(port=81).start()
    assert str(info.value) == text


def test_a_server_that_is_never_ready_is_given_up(tmp_path, monkeypatch):
    """After the timeout the process is gone and the endpoint it lacked is named."""
    fake(tmp_path, "mongrel2", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    server = Mongrel2()
    with pytest.raises(ConnectTimeout, match=r"did not bind ipc://.*/0.send, ipc://.*/0.recv within 0.3 s$"):
        server.start(timeout=0.3)
    assert server.returncode == -signal.SIGKILL


def test_a_server_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    """SIGTERM first, SIGKILL after the timeout."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake(tmp_path, "mongrel2", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    monkeypatch.setattr(addresses, "accepts", lambda spec: True)
    monkeypatch.setattr(addresses, "check_free", lambda spec: None)
    server = Mongrel2()
    server.start()
    while not server.output.lines:
        gevent.sleep(0.001)
    server.stop(timeout=0.1)
    assert server.returncode == -signal.SIGKILL


def test_without_mongrel2_the_error_says_what_to_install(tmp_path, monkeypatch):
    """A machine without the program gets the name of its package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Mongrel2NotFound, match="apt-get install mongrel2-core"):
        Mongrel2().start()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mongrel2({}), "routes is empty"),
        (lambda: Mongrel2({"chat": Handler("a")}), "route 'chat' is unknown"),
        (lambda: Mongrel2(transport="udp"), "transport 'udp' is unknown"),
        (lambda: Mongrel2(port=65536), "port 65536"),
        (lambda: Mongrel2(keyfile="key.pem"), "keyfile 'key.pem' needs a certfile"),
        (lambda: Mongrel2(settings={"server.daemonize": 1}), "'server.daemonize' has to stay 0"),
        (
            lambda: Mongrel2(settings={"limits.min_ping": "often"}),
            "limits.min_ping is 'often', which is not a whole num",
        ),
        (lambda: Mongrel2(settings={"limits.contentlength": 1}), "did you mean 'limits.content_length'"),
        (lambda: Mongrel2(settings={"limits.content_length": 4096}), "content_length 4096 is less than"),
        (lambda: Mongrel2({"/": Handler("a", "ipc:///x"), "/b": Handler("b", "ipc:///x")}), "endpoint in common"),
        (lambda: Mongrel2({"/\n": Handler("a")}).start(), "control characters"),
        (lambda: Mongrel2(settings={"a": "\0"}).start(), "control characters"),
        (lambda: Handler("a_b"), "sender 'a_b'"),
        (lambda: Handler("a", "udp://x:1"), "udp://x:1"),
        (lambda: Handler("a", "ipc://relative"), "ipc://relative"),
        (lambda: Handler("a", "tcp://127.0.0.1:*"), "port"),
        (lambda: Handler("a", "ipc:///x", "ipc:///x"), "are both 'ipc:///x'"),
        (lambda: Handler("a", recv_ident="a b"), "sender 'a b'"),
        (lambda: Handler("a", protocol="xml"), "protocol 'xml' is unknown"),
        (lambda: Handler("a", raw_payload=2), "raw_payload 2 is unknown"),
    ],
)
def test_a_value_that_mongrel2_cannot_use_is_refused(make, message):
    """The message names the value."""
    with pytest.raises(LocalProtocolError) as info:
        make()
    assert message in str(info.value)


def test_a_certificate_that_is_not_there_is_named(tmp_path):
    """The file that cannot be read is in the error."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Mongrel2(certfile=tmp_path / "nowhere.pem").start()


def test_the_defaults_are_consistent():
    """An upload would hang with a content_length below the buffer_size."""
    assert DEFAULT_SETTINGS["limits.content_length"] >= DEFAULT_SETTINGS["limits.buffer_size"] >= 65536
    assert DEFAULT_SETTINGS["limits.header_count"] * len("a:\n") > DEFAULT_SETTINGS["limits.buffer_size"]


def test_smaller_bodies_inline_are_smaller_heads_too():
    """Down to a size that browsers need, and not where the size of heads was said as well."""
    assert Mongrel2(settings={"limits.content_length": 20480}).settings["limits.buffer_size"] == 20480
    assert Mongrel2(settings={"limits.content_length": 1 << 20}).settings["limits.buffer_size"] == 65536
    with pytest.raises(LocalProtocolError, match=r"content_length 20480 is less than limits\.buffer_size 30000"):
        Mongrel2(settings={"limits.content_length": 20480, "limits.buffer_size": 30000})


def test_a_long_temporary_folder_is_not_used(monkeypatch):
    """The path of a unix socket has to fit into 107 bytes."""
    monkeypatch.setattr(tempfile, "tempdir", "/" + "long" * 30)
    assert Mongrel2().handlers[0].send_spec.startswith("ipc:///tmp/greentx-")


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (LINE % ("INFO", "None", "Hello there."), "INFO", "Hello there. (src/task/net.c:118)"),
        (LINE % ("WARN", "None", "Hm."), "WARNING", "Hm. (src/task/net.c:118)"),
        (LINE % ("ERROR", "Broken pipe", "No."), "ERROR", "No. (src/task/net.c:118: errno: Broken pipe)"),
        (LINE % ("ERROR", "None", "No handler to notify"), "DEBUG", "No handler to notify (src/task/net.c:118)"),
        ("Assertion failed: x", "WARNING", "Assertion failed: x"),
    ],
)
def test_a_log_line_keeps_its_level(caplog, line, level, text):
    """Levels are Mongrel2's; errors of everyday are no errors; what is no log line is a warning."""
    caplog.set_level(logging.DEBUG)
    output = Mongrel2Output()
    output.phase = Phase.RUNNING
    output.line(line)
    assert [(one.levelname, one.getMessage(), one.name) for one in caplog.records] == [
        (level, text, "greentx.edge.mongrel2")
    ]


def test_what_it_logs_comes_to_our_log(start_mongrel2, caplog):
    """A bad request is reported while it runs; starting and stopping say nothing aloud."""
    server = start_mongrel2()
    assert ask(server, b"rubbish\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    with gevent.Timeout(5):
        while not caplog.records:
            gevent.sleep(0.001)
    server.stop()
    assert [(one.levelname, one.message[:22]) for one in caplog.records if one.levelno >= logging.WARNING] == [
        ("ERROR", "Error parsing request.")
    ]


def test_its_death_is_reported(start_mongrel2, caplog):
    """A server that ends by itself is an error in the log, and can be started again."""
    server = start_mongrel2()
    os.kill(server.pid, signal.SIGKILL)
    with gevent.Timeout(5):
        while server.started or not caplog.records:
            gevent.sleep(0.001)
    assert caplog.messages[-1] == f"mongrel2 (pid {server.pid}) ended by itself with status -9"
    server.start()
    assert server.started


def test_it_stops_while_connections_are_open(start_mongrel2):
    """1.12.2 often aborts then; that is neither an error nor does it leave anything."""
    server = start_mongrel2()
    sockets = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(5)]
    with RawHandler(server.handlers[0]):
        for sock in sockets:
            sock.sendall(GET)
            assert sock.recv(1000) == ANSWER
        server.stop()
    assert server.returncode in (0, -signal.SIGABRT)
    for sock in sockets:
        sock.close()


def test_ctrl_c_is_ours_alone(start_mongrel2):
    """The terminal signals a whole session: the server is in another one, so that we can say goodbye first."""
    server = start_mongrel2()
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


OWNER = """
import os, sys, gevent
from greentx.edge import Mongrel2
server = Mongrel2()
server.start()
print(server.pid, os.path.dirname(server.control_spec.removeprefix("ipc://")), flush=True)
"""


@pytest.mark.parametrize("patched", [False, True])
def test_it_dies_with_us_when_we_are_killed(patched):
    """kill -9 leaves no server behind, and what is left in the file system goes with the next start of one."""
    # Never ends by itself: it is ended.
    process = run_python(OWNER + "gevent.sleep(60)", patched=patched)
    with process:
        pid, folder = process.stdout.readline().split()
        process.kill()
    assert ends(int(pid))
    with Mongrel2():
        assert not os.path.exists(folder)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(
    "ending", ["", "sys.exit(0)", "import signal; signal.signal(15, lambda *_: sys.exit(0)); os.kill(os.getpid(), 15)"]
)
def test_it_goes_when_the_program_ends_without_stop(ending, patched):
    """Neither process nor folder is left, and nothing is said about it."""
    process = run_python(OWNER + ending, patched=patched)
    out, err = process.communicate(timeout=30)
    pid, folder = out.split()
    assert (process.returncode, err) == (0, "")
    assert ends(int(pid))
    assert not os.path.exists(folder)


FORKER = (
    OWNER
    + """
from greentx.errors import ForkError
if os.fork() == 0:
    server.stop()
    for method in (server.start, server.kill, server.restart):
        try:
            method()
        except ForkError as error:
            print(error, flush=True)
    sys.exit(0)
os.wait()
print(server.started, flush=True)
server.stop()
"""
)


def test_a_forked_child_leaves_its_parents_server_alone():
    """In the child stop() does nothing, also at its end, and everything else is an error."""
    process = run_python("import warnings; warnings.simplefilter('ignore')\n" + FORKER)
    out, err = process.communicate(timeout=30)
    lines = out.splitlines()
    assert (process.returncode, err) == (0, "")
    assert [line.partition("> ")[2] for line in lines[1:4]] == [
        f"belongs to process {process.pid}; a forked child makes one of its own"
    ] * 3
    assert lines[4:] == ["True"]
    assert ForkError.__name__ not in err


def test_the_exit_status_is_known_where_gevent_reaps_all_children(tmp_path):
    """gevent's own subprocess installs a SIGCHLD handler that reaps every child of the process, also ours."""
    assert gevent.subprocess.call(["true"]) == 0
    child = ChildProcess([shutil.which("sh"), "-c", "echo up; exit 3"], cwd=str(tmp_path), on_line=lambda line: None)
    assert child.wait(10)
    assert child.returncode == 3


def start_child(folder: Path, script: str) -> tuple[ChildProcess, list[str], list[str]]:
    """Start ``sh`` on *script*; return it, its lines so far, and what is appended to at its end."""
    lines: list[str] = []
    ended: list[str] = []
    child = ChildProcess(
        [shutil.which("sh"), "-c", script], cwd=str(folder), on_line=lines.append, on_end=lambda: ended.append("ended")
    )
    return child, lines, ended


@pytest.mark.parametrize("attempt", range(8))
def test_no_child_stays_where_whoever_starts_it_is_killed_meanwhile(attempt):
    """It runs by then, though nobody has got hold of it."""
    before = children()
    starting = gevent.spawn(ChildProcess, ["/bin/sleep", "60"], cwd="/", on_line=print)
    while children() == before:
        gevent.sleep(0)  # a turn of the hub
    starting.kill()
    if isinstance(starting.value, ChildProcess):
        starting.value.kill()  # it was faster, this time
    deadline = time.monotonic() + 20
    while children() != before:
        assert time.monotonic() < deadline, f"attempt {attempt}: {children() - before} stayed"
        gevent.sleep(0.002)  # between two looks


def test_a_child_has_ended_though_a_grandchild_holds_its_output(tmp_path):
    """Its last lines are handed on, also one without an end, and its end is told once."""
    child, lines, ended = start_child(tmp_path, "sleep 60 & echo $!; printf unfinished; exit 3")
    try:
        with gevent.Timeout(10):
            assert child.wait()
            assert (child.returncode, lines[1:], ended) == (3, ["unfinished"], ["ended"])
            child.kill()
        assert ended == ["ended"]
    finally:
        os.kill(int(lines[0]), signal.SIGKILL)


def test_a_child_that_cannot_start_is_nobodys_fault_where_its_starter_was_killed(tmp_path):
    """Its folder may have gone with whoever was to start it; conftest sees that no greenlet fails for it."""
    open_before = len(os.listdir("/proc/self/fd"))
    starting = gevent.spawn(ChildProcess, ["/bin/sleep", "60"], cwd=str(tmp_path / "gone"), on_line=print)
    gevent.sleep(0)  # it has begun
    starting.kill()
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > open_before:
        assert time.monotonic() < deadline, "a descriptor stays open"
        gevent.sleep(0.002)  # between two looks


def test_a_child_that_cannot_start_is_an_error(tmp_path):
    """It says why, and no greenlet fails for it."""
    with pytest.raises(FileNotFoundError):
        ChildProcess(["/bin/sleep", "60"], cwd=str(tmp_path / "gone"), on_line=print)


def test_a_child_is_killed_though_a_grandchild_holds_its_output(tmp_path):
    """kill() returns when the child is gone, and the grandchild goes on."""
    child, lines, ended = start_child(tmp_path, "sleep 60 & printf '%s\\nunfinished' $!; wait")
    with gevent.Timeout(10):
        while not lines:
            child.wait(0.01)
    assert not ended
    try:
        with gevent.Timeout(10):
            child.kill()
        assert (child.returncode, lines[1:], ended) == (-signal.SIGKILL, ["unfinished"], ["ended"])
        assert not ends(int(lines[0]), 0)
    finally:
        os.kill(int(lines[0]), signal.SIGKILL)


def test_a_child_that_has_closed_its_output_still_runs(tmp_path):
    """The end is that of the process, not that of what it says."""
    child, lines, ended = start_child(
        tmp_path, "echo up; trap 'kill $!; exit 3' TERM; exec >&- 2>&-; touch ready; sleep 60 & wait"
    )
    with gevent.Timeout(10):
        while not (tmp_path / "ready").exists():
            child.wait(0.01)
    assert not child.wait(0.05)
    assert (lines, ended) == (["up"], [])
    child.send_signal(signal.SIGTERM)
    assert child.wait(10)
    assert (child.returncode, ended) == (3, ["ended"])


FORKED_CHILD = """
import os, gevent
from greentx.edge.process import ChildProcess
lines = []
child = ChildProcess(
    ["/bin/sh", "-c", "echo up; exec sleep 60"],
    cwd="/",
    on_line=lines.append,
    on_end=lambda: os.write(1, b"ended in %d\\n" % os.getpid()),
)
while not lines:
    child.wait(0.01)
owner = os.getpid()
if os.fork() == 0:
    gevent.reinit()
    while os.getppid() == owner:
        assert not child.wait(0.01)
    assert not child.wait(0.05)
    os.write(1, b"not told\\n")
    os._exit(0)
child.kill()
"""


def test_the_end_of_a_child_is_not_told_in_a_forked_copy_of_us():
    """Nor does the copy's wait() say that it has ended, which only its parent can know."""
    process = run_python("import warnings; warnings.simplefilter('ignore')\n" + FORKED_CHILD)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() == [f"ended in {process.pid}", "not told"]


FORKED_WITH_LAST_LINES = """
import os, signal, sys, gevent
from greentx.edge.process import ChildProcess
lines = []
child = ChildProcess(
    ["/bin/sh", "-c", "sleep 60 & echo $!; exit 3"],
    cwd="/",
    on_line=lines.append,
    on_end=lambda: os.write(1, b"ended in %d\\n" % os.getpid()),
)
while child.returncode is None or not lines:
    child.wait(0.001)
copy = os.fork()
if copy == 0:
    gevent.reinit()
assert child.wait(10) and child.returncode == 3
if copy == 0:
    os.write(1, b"not told\\n")
    os._exit(0)
os.kill(int(lines[0]), signal.SIGKILL)
"""


def test_the_end_of_a_child_is_told_by_its_parent_alone_though_a_fork_came_before_its_last_lines():
    """The process had ended by then, and a grandchild held its output."""
    process = run_python("import warnings; warnings.simplefilter('ignore')\n" + FORKED_WITH_LAST_LINES)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert sorted(out.splitlines()) == [f"ended in {process.pid}", "not told"]
