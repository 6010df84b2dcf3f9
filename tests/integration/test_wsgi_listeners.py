"""What the WSGI server may be told to listen on, beside gevent's own server; and the options of its Transceiver."""

from __future__ import annotations

import errno
import io
import pathlib
import re
from contextlib import ExitStack
from typing import Any

import gevent.pywsgi
import pytest
from front_ends import FRONT_ENDS
from gevent import socket
from websocket_peer import Peer
from wsgi_rig import SERVERS

from greentx import Transceiver
from greentx.edge.addresses import every_host
from greentx.protocol.bounds import MAX_PENDING_BYTES, MAX_QUEUE_BYTES
from greentx.wsgi import WSGIServer
from greentx.wsgi.websocket import WebSocketServer

LISTENERS: list[Any] = [("", 0), 0, "0", ("::", 0), ":0", "*:0", ("0.0.0.0", 0), ("localhost", 0), "[::1]:0"]


def who(environ, start_response):
    """Say who asked."""
    start_response("200 OK", [("Content-Length", str(len(environ["REMOTE_ADDR"])))])
    return [environ["REMOTE_ADDR"].encode()]


def ask(host: str, port: int, lines: str = "") -> str:
    """Return who the server says that we are, or why it cannot be reached."""
    try:
        with socket.create_connection((host, port), 10) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode())
            data = b""
            while more := sock.recv(65536):
                data += more
            return data.rpartition(b"\r\n\r\n")[2].decode()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def seen(server: Any) -> dict[str, Any]:
    """What is to be seen of a server that listens, but for its port."""
    port = server.server_port
    address = server.address
    shown = re.search(r"address=(.*?)[ >]", str(server))
    assert shown is not None and str(port) in str(server)
    return {
        "address": (address[0], address[1] == port, *address[2:]),
        "socket": server.socket.getsockname() == address,
        "family": server.family,
        "host": server.server_host,
        "IPv4": ask("127.0.0.1", port),
        "IPv6": ask("::1", port),
    }


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_an_address_is_listened_on_as_gevent_does(kind):
    """An empty host and a port are IPv6 and IPv4; the client's address is what gevent shows."""
    with ExitStack() as stack:
        servers = []
        for listener in LISTENERS:
            for cls in (SERVERS["gevent"], SERVERS[kind]):
                server = cls(listener, who, log=None)
                server.start()
                stack.callback(server.stop, 0)
                servers.append(server)
        for listener, theirs, ours in zip(LISTENERS, servers[::2], servers[1::2], strict=True):
            assert seen(ours) == seen(theirs), listener
        dual = seen(servers[1])
        assert (dual["IPv4"], dual["IPv6"], dual["host"]) == ("::ffff:127.0.0.1", "::1", "::")


@pytest.mark.mongrel2
def test_a_trusted_proxy_is_known_by_its_ipv4_address_on_either_kind_of_listener():
    """Where IPv6 and IPv4 are listened on, its address begins with ::ffff:."""
    for listener in (("", 0), ("127.0.0.1", 0)):
        server = WSGIServer(listener, who, log=None, trusted_proxies=["127.0.0.1"])
        server.start()
        assert server.server_port is not None
        assert ask("127.0.0.1", server.server_port, "X-Forwarded-For: 1.2.3.4\r\n") == "1.2.3.4"
        server.stop()


@pytest.mark.mongrel2
@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_socket_is_listened_on_as_gevent_does(host):
    """The address of a bound one is kept over a restart, the listening one makes room."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        sock.listen()
        address = sock.getsockname()
        server = WSGIServer(sock, who, log=None)
        assert server.address == address
        for _ in range(2):
            server.start()
            assert server.address == address == server.socket.getsockname()
            assert ask("127.0.0.1", address[1]) == ("127.0.0.1" if host == "127.0.0.1" else "::ffff:127.0.0.1")
            server.stop()
        with pytest.raises(TypeError, match="backlog must be None when a socket instance is passed"):
            WSGIServer(sock, who, backlog=5)
    assert WSGIServer(("127.0.0.1", 0), who, backlog=5).backlog == 5


@pytest.mark.parametrize("refused", ["socket", "bind", "only"])
def test_where_there_is_no_ipv6_an_empty_host_is_every_ipv4_address(monkeypatch, refused):
    """Not built in, switched off, or kept apart from IPv4 by the kernel's settings."""

    class Socket(socket.socket):
        def __init__(self, *args, **options):
            if refused == "socket" and args[0] == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(*args, **options)

        def bind(self, address):
            if refused == "bind" and ":" in address[0]:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super().bind(address)

        def getsockopt(self, *args):
            return int(refused == "only") or super().getsockopt(*args)

    assert every_host() == "::"
    monkeypatch.setattr("greentx.edge.addresses.socket.socket", Socket)
    assert every_host() == "0.0.0.0"


@pytest.mark.parametrize(
    "listener",
    ["unix:/run/app.sock", "unix:app.sock", "unix:///run/app.sock", "/run/app.sock", pathlib.Path("app.sock")],
)
def test_a_unix_socket_is_refused_with_what_to_do(listener):
    """Mongrel2 has no such listener."""
    with pytest.raises(ValueError, match=r"not a TCP address, and Mongrel2 .*('127.0.0.1', 8000).* the proxy in front"):
        WSGIServer(listener, who, front_end="mongrel2")


def test_a_bound_unix_socket_is_refused_with_what_to_do(tmp_path):
    """It cannot be handed on either."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "app.sock"))
        with pytest.raises(ValueError, match=r"not a TCP address, and Mongrel2 listens on no other.* front_end='edge'"):
            WSGIServer(sock, who, front_end="mongrel2")


@pytest.mark.parametrize("kind", ["path", "text", "socket"])
def test_the_embedded_front_end_serves_a_unix_socket_as_gevent_does(kind, tmp_path):
    """The address is its path, there is no port, and the access log has no name for its clients."""
    path = tmp_path / "app.sock"

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return []

    def serve(cls: Any, log: Any) -> Any:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        with sock:
            given = sock if cls is gevent.pywsgi.WSGIServer or kind == "socket" else path
            if given is path:
                path.unlink()
            server = cls(f"unix:{path}" if given is path and kind == "text" else given, application, log=log)
            server.start()
            try:
                with gevent.Timeout(20), socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    while client.recv(65536):
                        pass
                return server.address, server.family, server.server_port, server.server_host
            finally:
                server.stop()
                # What was bound by somebody else is theirs to remove.
                assert path.exists() == (given is sock)
                path.unlink(missing_ok=True)

    logs = io.StringIO(), io.StringIO()
    assert serve(WSGIServer, logs[0]) == serve(gevent.pywsgi.WSGIServer, logs[1])
    first, second = (log.getvalue().split("[")[0] for log in logs)
    assert first == second


def test_connections_that_wait_at_a_bound_socket_are_served():
    """The embedded front end listens on the socket itself, and a later start binds its address."""
    with socket.socket() as sock:
        # As gevent's own: a connection that lingers keeps nobody from binding the address again.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        address = sock.getsockname()
        server = WSGIServer(sock, who, front_end="edge")
        with gevent.Timeout(20), socket.create_connection(address) as waits:
            waits.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with server:
                server.start()
                assert server.address == address
                assert b"127.0.0.1" in b"".join(iter(lambda: waits.recv(65536), b""))
    with server:
        server.start()
        assert ask(*address) == "127.0.0.1"


def test_the_repr_shows_what_stands_in_for_the_handle():
    """A method of the server does not show the server in it once more."""

    def handle(sock, address):
        """Answer nothing."""

    server = WSGIServer(("127.0.0.1", 0), who)
    assert "handle=" not in repr(server)
    server.set_handle(server.handle)
    assert "handle=<bound method WSGIServer.handle of self>" in repr(server)
    server.set_handle(handle)
    assert "handle=<function " in repr(server) and "handle=<function " in str(server)
    server.set_handle(gevent.pywsgi.WSGIHandler)
    assert "handle=<class 'gevent.pywsgi.WSGIHandler'>" in repr(server)


OPTIONS: dict[str, Any] = {
    "max_message_size": 1000,
    "max_queue_bytes": 2000,
    "max_pending_bytes": 3000,
    "ping_timeout": 4.0,
    "upload_store": "/tmp/XXXXXX",
    "origins": "same",
    "control": {"rep_port": 0},
}


@pytest.mark.parametrize("cls", [WSGIServer, WebSocketServer])
def test_the_options_of_a_transceiver_are_arguments_of_the_server(cls):
    """By their names there; a Transceiver that is given as the listener has its own."""
    transceiver = Transceiver("abc", ("127.0.0.1", 1), ("127.0.0.1", 2), rep_port=False)
    for name, value in OPTIONS.items():
        cls(("127.0.0.1", 0), who, **{name: value})
        cls("mongrel2://abc@127.0.0.1", who, **{name: value})
        with pytest.raises(ValueError, match=f"{name} belongs to"):
            cls(transceiver, who, **{name: value})
    cls(transceiver, who)


@pytest.mark.parametrize("listener", [("127.0.0.1", 0), "mongrel2://abc@127.0.0.1"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_queue_bytes", 0),
        ("max_pending_bytes", -1),
        ("ping_timeout", 0),
        ("ping_timeout", float("nan")),
        ("upload_store", "relative/XXXXXX"),
        ("origins", ["not an origin"]),
        ("control", {"port": 1}),
    ],
)
def test_an_option_that_cannot_be_is_told_when_the_server_is_made(listener, name, value):
    """Not when it starts, and with its name."""
    with pytest.raises(ValueError, match=name if name != "origins" else "not an origin"):
        WSGIServer(listener, who, **{name: value})


@pytest.mark.mongrel2
def test_the_options_reach_the_transceiver(caplog):
    """The ping interval is at most half of what the front end ends silent connections after."""

    def deaf(environ, start_response):
        environ["wsgi.websocket"].send("open")
        environ["greentx.disconnected"].wait(10)
        return []

    for given, settings, expected in (
        (4.0, {}, 4.0),
        (4.0, {"limits.min_ping": 6}, 3.0),
        (None, {"limits.min_ping": 0}, None),
    ):
        server = WSGIServer(
            ("127.0.0.1", 0), deaf, log=None, ping_timeout=given, mongrel2_settings=settings, max_queue_bytes=100_000
        )
        server.start()
        assert server.transceiver is not None and server.transceiver.ping_timeout == expected
        queued = server.transceiver.shared().queued
        assert (queued.per_connection, queued.in_all) == (100_000, MAX_PENDING_BYTES)
        if given is None:
            assert server.server_port is not None
            peer = Peer(server.server_port)
            peer.head()
            for _ in range(3):
                peer.send(b"x" * 50_000)
            assert peer.closed()[0] == 1013
            peer.sock.close()
        server.stop()
    assert [
        record.getMessage().count("max_queue_bytes is 100000")
        for record in caplog.records
        if "1013" in record.getMessage()
    ] == [1]
    assert MAX_QUEUE_BYTES == 16 * 1024 * 1024
