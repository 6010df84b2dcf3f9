"""What connections of the embedded front end leave when they have ended: nothing that has to be looked for."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import pytest
from http_rig import SENDER, Browser, serving, transceiver, wait_until
from test_edge_tls import CERTIFICATE, TlsBrowser
from websocket_peer import Peer

from greentx.edge import Edge, Handler
from greentx.edge.front.connection import BrowserConnection


def get(edge: Edge) -> None:
    with Browser(edge) as browser:
        assert browser.get("/").body == b"1"


def get_by_tls(edge: Edge) -> None:
    with TlsBrowser(edge) as browser:
        assert browser.get("/").body == b"1"


def leave_in_a_body(edge: Edge) -> None:
    with Browser(edge) as browser:
        browser.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nxyz")


def send_nonsense(edge: Edge) -> None:
    with Browser(edge) as browser:
        browser.send(b"\0\0\0\0\r\n\r\n")
        assert browser.receive().status == 400


def read_nothing(edge: Edge) -> None:
    with Browser(edge, receive_buffer=4096) as browser:
        browser.ask("/?size=20000000")


def talk(edge: Edge) -> None:
    peer = Peer(edge.port)
    with contextlib.closing(peer.sock):
        assert peer.head().startswith(b"HTTP/1.1 101 ")
        peer.send("hi")
        assert peer.message() == "hi"


def break_a_rule(edge: Edge) -> None:
    peer = Peer(edge.port)
    with contextlib.closing(peer.sock):
        assert peer.head().startswith(b"HTTP/1.1 101 ")
        peer.sock.sendall(b"\x81\x01x")
        assert peer.closed()[0] == 1002


@contextlib.contextmanager
def served(*, tls: bool) -> Iterator[Edge]:
    with Edge({"/": Handler(SENDER)}, certfile=CERTIFICATE if tls else None) as edge, transceiver(edge) as trans:
        with serving(
            trans,
            lambda conn, req: conn.reply_http(req, "1" * int(req.query.get("size", ["1"])[0])),
            websocket=lambda ws: [ws.send(message) for message in ws],
        ):
            yield edge


@pytest.mark.parametrize(
    "visit",
    [get, get_by_tls, leave_in_a_body, send_nonsense, read_nothing, talk, break_a_rule],
    ids=lambda one: one.__name__,
)
def test_a_connection_that_has_ended_is_gone(visit: Callable[[Edge], None]) -> None:
    """Without the garbage collector, which stops the loop for as long as there are many others."""
    with served(tls=visit is get_by_tls) as edge:
        visit(edge)
        wait_until(lambda: edge.connections == 0)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                visit(edge)
            wait_until(lambda: edge.connections == 0)
            wait_until(lambda: not any(isinstance(one, BrowserConnection) for one in gc.get_objects()))
        finally:
            gc.enable()
