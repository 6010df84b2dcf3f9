"""What the embedded front end listens on, and who is let in."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket as system_socket
import stat
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from http_rig import SENDER, Browser, serving, transceiver, wait_until

from greentx import Transceiver
from greentx.edge import Edge, Handler
from greentx.errors import BindError, LocalProtocolError


def say(conn: Any, req: Any) -> None:
    """Who asked."""
    conn.reply_http(req, f"{req.headers['REMOTE_ADDR']} {req.headers.get('x-forwarded-for')}")


@contextlib.contextmanager
def served(**options: Any) -> Iterator[Edge]:
    with Edge({"/": Handler(SENDER)}, **options) as edge, transceiver(edge) as trans, serving(trans, say):
        yield edge


class Caller(Browser):
    """A browser that connects to what a socket connects to."""

    def __init__(self, address: Any, timeout: float = 10.0) -> None:
        self.socket = socket.socket(
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.buffer = b""


def asked(address: Any, *fields: str) -> str:
    with Caller(address) as browser:
        return browser.get("/", *fields).body.decode()


@pytest.mark.parametrize(
    ("host", "url", "callers"),
    [
        ("127.0.0.1", "127.0.0.1", {"127.0.0.1": "127.0.0.1"}),
        ("localhost", "localhost", {"127.0.0.1": "127.0.0.1"}),
        ("", "127.0.0.1", {"127.0.0.1": "127.0.0.1", "127.0.0.2": "127.0.0.1"}),
        ("::1", "[::1]", {"::1": "::1"}),
        # As Mongrel2 writes them (probed).
        ("::", "[::1]", {"::1": "::1", "127.0.0.1": "::ffff:127.0.0.1"}),
    ],
)
def test_addresses_of_both_kinds_are_listened_on(host, url, callers):
    """And handlers are told who has asked."""
    with served(bind_addr=host) as edge:
        assert edge.url == f"http://{url}:{edge.port}/"
        for address, told in callers.items():
            said = asked((address, edge.port))
            # Who connects to another address of the loopback has that one, or its first.
            assert said.split()[0] in (told, address)


def test_several_are_listened_on_at_once(tmp_path):
    """Also at addresses of one kind, and without any that was not asked for."""
    path = str(tmp_path / "a.sock")
    with served(listeners=["127.0.0.1:0", "[::1]:0", f"unix:{path}"]) as edge:
        first, second, third = edge.addresses
        assert third == f"unix:{path}"
        assert edge.url == f"http://{first}/"
        assert first == f"127.0.0.1:{edge.port}"
        assert asked(("127.0.0.1", edge.port)) == "127.0.0.1 127.0.0.1"
        assert asked(("::1", int(second.removeprefix("[::1]:")))) == "::1 ::1"
        assert asked(path) == "127.0.0.1 None"
    with served(bind_addr="127.0.0.1", listeners=["[::1]:0"]) as edge:
        assert len(edge.addresses) == 2


def test_a_client_of_a_unix_socket_is_a_proxy(tmp_path):
    """What it says of its own client is handed on; no bound of one address holds for it."""
    path = str(tmp_path / "a.sock")
    with (
        served(listeners=[f"unix:{path}"], max_per_address=1) as edge,
        Caller(path) as first,
        Caller(path) as second,
    ):
        for one in (first, second):
            assert one.get("/", "X-Forwarded-For: 192.0.2.1").body == b"127.0.0.1 192.0.2.1"
        assert (edge.port, edge.url) == (0, f"unix:{path}")


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_the_file_of_a_unix_socket_has_its_mode_and_goes_with_the_stop(mode, tmp_path):
    """Start after start."""
    path = tmp_path / "a.sock"
    edge = Edge(listeners=[f"unix:{path},mode={mode:o}"])
    for _ in range(2):
        with edge:
            assert stat.S_IMODE(path.stat().st_mode) == mode
        assert not path.exists()


def test_a_file_that_nobody_listens_on_is_replaced(tmp_path):
    """As a process leaves it that was killed."""
    path = str(tmp_path / "a.sock")
    with system_socket.socket(system_socket.AF_UNIX) as left:
        left.bind(path)
    with served(listeners=[f"unix:{path}"]):
        assert asked(path) == "127.0.0.1 None"


def test_a_unix_socket_that_is_in_use_is_left_alone(tmp_path):
    """By another server, or another file."""
    path, other = tmp_path / "a.sock", tmp_path / "file"
    other.write_text("precious")
    with served(listeners=[f"unix:{path}"]):
        for one in (path, other):
            with pytest.raises(BindError, match=f"unix:{one} cannot be bound: Address already in use") as caught:
                Edge(listeners=[f"unix:{one}"]).start()
            assert (caught.value.address, caught.value.errno) == (f"unix:{one}", errno.EADDRINUSE)
        assert asked(str(path)) == "127.0.0.1 None"
    assert other.read_text() == "precious"


def test_the_file_of_a_successor_is_left_alone(tmp_path):
    """It may start before the one before it has stopped, once that one's file has gone."""
    path = tmp_path / "a.sock"
    with Edge(listeners=[f"unix:{path}"]):
        path.unlink()
        successor = Edge(listeners=[f"unix:{path}"])
        successor.start()
    assert path.exists()
    successor.stop()
    assert not path.exists()


def test_an_abstract_unix_socket_has_no_file():
    """Of Linux alone."""
    name = f"@greentx-{os.getpid()}"
    with served(listeners=[f"unix:{name}"]):
        assert asked(f"\0{name[1:]}") == "127.0.0.1 None"


@pytest.mark.parametrize("given", ["text", "number", "socket", "gevent's socket"])
def test_sockets_that_are_bound_are_listened_on_and_stay_their_owners(given):
    """As a manager of services hands them on; start after start."""
    kind: Any = socket.socket if given.startswith("gevent") else system_socket.socket
    with kind() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        number = sock.fileno()
        listener = {"text": f"fd://{number}", "number": number}.get(given, sock)
        edge = Edge({"/": Handler(SENDER)}, listeners=[listener])
        for _ in range(2):
            with edge, transceiver(edge) as trans, serving(trans, say):
                assert (edge.port, edge.addresses) == (port, (f"fd://{number}",))
                assert asked(("127.0.0.1", port)) == "127.0.0.1 127.0.0.1"
        # Who connects meanwhile waits.
        with Caller(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"listeners": ["nonsense"]}, "has no port"),
        ({"listeners": [None]}, "None cannot be listened on"),
        ({"listeners": [True]}, "True cannot be listened on"),
        ({"listeners": [-1]}, "no number of a descriptor"),
        ({"listeners": ["[::1]:0"], "port": 80}, "port 80 belongs to a bind_addr"),
        ({"port": 65536}, "65536"),
    ],
)
def test_what_cannot_be_listened_on_is_refused(options, why):
    """Before anything is opened."""
    with pytest.raises(LocalProtocolError, match=why):
        Edge(**options)


def test_a_socket_that_is_closed_is_refused():
    """It has no descriptor any more."""
    with system_socket.socket() as sock:
        pass
    with pytest.raises(LocalProtocolError, match="it is closed"):
        Edge(listeners=[sock])


def test_an_address_that_is_in_use_is_named_and_nothing_is_left_open(tmp_path):
    """What was opened before it is closed again."""
    path = tmp_path / "a.sock"
    with Edge() as edge:
        taken = edge.addresses[0]
        with pytest.raises(BindError, match=f"{taken} cannot be bound: Address already in use"):
            Edge(listeners=[f"unix:{path}", taken]).start()
    assert not path.exists()
    with pytest.raises(BindError, match="fd://1000 cannot be bound: Bad file descriptor"):
        Edge(listeners=[1000]).start()
    with pytest.raises(BindError, match=f"unix:{tmp_path}/no/b cannot be bound: No such file"):
        Edge(listeners=[f"unix:{tmp_path}/no/b"]).start()
    with open(os.devnull) as file, pytest.raises(BindError, match="cannot be bound: Socket operation on non-socket"):
        Edge(listeners=[file.fileno()]).start()


def test_the_ports_that_were_chosen_are_kept():
    """So that a restart serves at the same addresses."""
    edge = Edge(listeners=["127.0.0.1:0", "[::1]:0"])
    seen = set()
    for _ in range(3):
        with edge:
            seen.add(edge.addresses)
    assert seen == {edge.addresses}
    assert edge.port


def test_a_process_without_descriptors_accepts_later(caplog):
    """It says so once, and goes on as soon as there are some; meanwhile clients wait."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with served() as edge:
        with Caller(("127.0.0.1", edge.port)) as browser:
            # The connection is there, and accepted; the next one will not be.
            assert browser.get("/").status == 200
            second = socket.socket()
            second.settimeout(10)
            free = os.dup(0)
            os.close(free)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
                second.connect(("127.0.0.1", edge.port))
                wait_until(lambda: [one for one in caplog.records if "accepts nothing for now" in one.getMessage()])
                assert browser.get("/").status == 200
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with second:
                second.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert second.recv(100).startswith(b"HTTP/1.1 200 ")
    said = [one for one in caplog.records if one.levelno >= logging.WARNING and one.name == "greentx.edge.front"]
    assert [one.getMessage() for one in said] == [f"127.0.0.1:{edge.port} accepts nothing for now: Too many open files"]


def test_those_that_are_too_many_are_told_and_keep_nobody_waiting(caplog):
    """Also where none of them reads; one line of the log is about all of them."""
    with served(max_connections=1) as edge, Caller(("127.0.0.1", edge.port)) as browser:
        assert browser.get("/").status == 200
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(Caller(("127.0.0.1", edge.port))) for _ in range(100)]
            # Most of them are told; those that come while so many are being told see the end only.
            answers = [one.read(1000) for one in silent]
            assert answers[0].startswith(b"HTTP/1.1 503 ")
            assert set(answers) <= {answers[0], b""} or all(one[:13] in (b"HTTP/1.1 503 ", b"") for one in answers)
            assert browser.get("/").status == 200
    assert len([one for one in caplog.records if "refused" in one.getMessage()]) == 1


def test_hosts_have_routes_of_their_own():
    """Also in the absolute form, and in the opening handshake; all others have those of the default host."""
    first, second = Handler("first-1"), Handler("second-1")
    hosts = {"example.com": {"/": second, "/first": first}, "only.example.com": {"/only": second}}

    def tell(conn: Any, req: Any) -> None:
        conn.reply_http(req, f"{req.sender} {req.headers['PATTERN']}")

    with Edge({"/": first}, hosts=hosts) as edge, contextlib.ExitStack() as stack:
        assert [one.sender for one in edge.handlers] == ["first-1", "second-1"]
        assert edge.hosts["example.com"]["/"] == edge.handlers[1]
        for handler in edge.handlers:
            trans = stack.enter_context(
                Transceiver(handler.sender, handler.send_spec, handler.recv_spec, rep_port=False, connect_timeout=5)
            )
            stack.enter_context(serving(trans, tell))
        with Caller(("127.0.0.1", edge.port)) as browser:

            def said(target: str, host: str) -> tuple[int, bytes]:
                browser.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
                answer = browser.receive()
                return answer.status, answer.body

            # One connection may ask for all of them.
            assert said("/", "localhost") == (200, b"first-1 /")
            assert said("/", "WWW.Example.com:80") == (200, b"second-1 /")
            assert said("/first", "example.com") == (200, b"first-1 /first")
            assert said("http://example.com/", "localhost") == (200, b"second-1 /")
            assert said("/only", "only.example.com") == (200, b"second-1 /only")
            assert said("/", "only.example.com")[0] == 404


@pytest.mark.parametrize("first", ["the client", "what stops it"])
def test_a_client_that_comes_in_the_turn_of_the_stop_is_no_error(caplog, first):
    """The loop tells of both at once, and the listener is closed when it looks."""
    with caplog.at_level(logging.ERROR, "greentx"):
        for _ in range(3):
            edge = Edge()
            edge.start()
            ours, theirs = socket.socketpair()
            with ours, theirs, system_socket.socket() as client:

                def stop(waits: Any = ours, running: Edge = edge) -> None:
                    waits.recv(1)
                    running.stop(0)

                stopping = gevent.spawn(stop)
                gevent.sleep(0)  # it waits
                # Neither lets the loop run.
                if first == "the client":
                    client.connect(("127.0.0.1", edge.port))
                os.write(theirs.fileno(), b"x")
                if first == "what stops it":
                    client.connect(("127.0.0.1", edge.port))
                stopping.join(10)
                assert stopping.successful()
    assert not caplog.records
