"""What the embedded front end in a process of its own listens on, where that is not a host and a port."""

from __future__ import annotations

import errno
import os

import gevent
import pytest
from gevent import socket

from greentx import Transceiver
from greentx.edge import EdgeProcess
from greentx.errors import BindError, LocalProtocolError

SECONDS = 20.0


def answered(server: EdgeProcess, family: int, address: object) -> bytes:
    """Return what a client of *address* gets from a handler that answers with a word."""
    handler = server.handlers[0]
    assert handler.send_spec is not None and handler.recv_spec is not None
    with (
        Transceiver(handler.sender, handler.send_spec, handler.recv_spec, rep_port=False) as transceiver,
        gevent.Timeout(SECONDS),
        socket.socket(family) as client,
    ):
        gevent.spawn(transceiver.serve, lambda conn, req: conn.reply_http(req, "hello"))
        client.connect(address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_path_relative_to_our_folder_means_the_same_file_to_the_process(tmp_path, monkeypatch):
    """It runs in another folder; the file has the mode that was asked for, and goes with the stop."""
    monkeypatch.chdir(tmp_path)
    with EdgeProcess(listeners=["unix:http,mode=600"]) as server:
        assert (server.url, server.port) == (f"unix:{tmp_path}/http", 0)
        assert os.stat("http").st_mode & 0o777 == 0o600
        assert b"hello" in answered(server, socket.AF_UNIX, "http")
    assert not os.path.exists("http")


@pytest.mark.parametrize("kind", ["socket", "number", "text"])
def test_a_bound_socket_of_ours_is_served_over_a_restart(kind):
    """Descriptors are passed on, and stay ours."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        given = {"socket": sock, "number": sock.fileno(), "text": f"fd://{sock.fileno()}"}[kind]
        with EdgeProcess(listeners=[given]) as server:
            assert b"hello" in answered(server, socket.AF_INET, sock.getsockname())
            server.kill()
            server.start()
            assert b"hello" in answered(server, socket.AF_INET, sock.getsockname())


def test_it_may_listen_on_a_port_as_well(tmp_path):
    """Listeners are next to a bind_addr that is given."""
    with EdgeProcess(bind_addr="127.0.0.1", listeners=[f"unix:{tmp_path}/http"]) as server:
        assert server.url == f"http://127.0.0.1:{server.port}/"
        assert b"hello" in answered(server, socket.AF_INET, ("127.0.0.1", server.port))
        assert b"hello" in answered(server, socket.AF_UNIX, f"{tmp_path}/http")


def test_a_listener_that_cannot_be_bound_is_named(tmp_path):
    """As it was given, and not as the port that there is none of."""
    with pytest.raises(BindError, match=f"unix:{tmp_path}/no/http cannot be bound: No such file") as caught:
        EdgeProcess(listeners=[f"unix:{tmp_path}/no/http"]).start()
    assert (caught.value.address, caught.value.errno) == (f"unix:{tmp_path}/no/http", errno.ENOENT)


def test_a_listener_that_cannot_be_is_told_at_once():
    """A port has to be known here; a closed socket has no descriptor."""
    with pytest.raises(LocalProtocolError, match="no port of its own"):
        EdgeProcess(listeners=["127.0.0.1:0"])
    sock = socket.socket()
    sock.close()
    with pytest.raises(LocalProtocolError, match="it is closed"):
        EdgeProcess(listeners=[sock])
