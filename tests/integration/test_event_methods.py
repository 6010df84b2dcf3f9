"""METHOD in the headers is what ``req.method`` is, for every kind of event, whoever is in front."""

from __future__ import annotations

import gevent
import pytest
from http_rig import Browser, routes, transceiver, wait_until
from websocket_peer import HEAD, Peer

from greentx import Connection, Request
from greentx.protocol.websocket.frames import Opcode

SETTINGS = {"upload.stream": 1, "limits.content_length": 65536}
UPLOAD = bytes(range(256)) * 2000


class Handler:
    """Looks at METHOD among the headers, and nowhere else.

    Attributes:
        methods: What it saw, in order.
        others: The pairs of METHOD and ``req.method`` that differ.
        uploads: Bytes of each upload.
    """

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.others: list[tuple[str, str]] = []
        self.uploads: list[bytes] = []
        self.asked: Request | None = None

    def __call__(self, conn: Connection, req: Request) -> None:
        method = req.headers["METHOD"]
        self.methods.append(method)
        if method != req.method:
            self.others.append((method, req.method))
        if method == "UPLOAD_STREAM" or "UPLOAD_STREAM" in req.headers:
            self.upload(conn, req)
        elif method in ("GET", "POST", "HEAD"):
            if req.path != "/wait":
                conn.reply_http(req, method)
        elif method in ("JSON", "XML"):
            conn.reply(req, method)
        elif method == "WEBSOCKET":
            conn.reply_websocket(req, req.body)

    def upload(self, conn: Connection, req: Request) -> None:
        """Let the body come in pieces of 65536 bytes, and answer at its end."""
        if req.headers["METHOD"] == "POST":
            self.asked = req
            self.uploads.append(b"")
        self.uploads[-1] += req.body
        if "UPLOAD_STREAM_DONE" in req.headers:
            assert self.asked is not None
            conn.reply_http(self.asked, "POST")
        else:
            conn.grant(req, 65536)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_the_method_in_the_headers_is_the_method(start_front_end, protocol):
    """Whether Mongrel2 wrote it, or greentx made the event of something else, or there was none."""
    server = start_front_end(routes(protocol), settings=SETTINGS)
    handler = Handler()
    with transceiver(server) as trans:

        def loop() -> None:
            for _sid, conn, req in trans.recv():
                handler(conn, req)

        receiving = gevent.spawn(loop)
        with Browser(server) as browser:
            assert browser.get().body == b"GET"
            assert browser.get(method="POST", body=b"small").body == b"POST"
            assert browser.get(method="HEAD").status == 200
            assert handler.methods == ["GET", "POST", "HEAD"]

            handler.methods.clear()
            assert browser.get("/up", method="POST", body=UPLOAD).body == b"POST"
            assert handler.uploads == [UPLOAD]
            assert handler.methods[:2] == ["POST", "UPLOAD_STREAM"]
            assert set(handler.methods[1:]) == {"UPLOAD_STREAM"}

        handler.methods.clear()
        with Browser(server) as browser:
            browser.send("@chat {}\0")
            assert browser.read(4) == b"JSON"
            browser.send("<chat>x</chat>\0")
            assert browser.read(3) == b"XML"
        wait_until(lambda: "DISCONNECT" in handler.methods)
        assert handler.methods == ["JSON", "XML", "DISCONNECT"]

        handler.methods.clear()
        with Browser(server) as browser:
            browser.ask("/wait")
            wait_until(lambda: handler.methods)
        wait_until(lambda: len(handler.methods) == 2)
        assert handler.methods == ["GET", "DISCONNECT"]

        for leaves in ("with a close frame", "without one"):
            handler.methods.clear()
            peer = Peer(server.port)
            assert peer.head() == HEAD
            peer.send("text")
            assert peer.frame().payload == b"text"
            if leaves == "with a close frame":
                peer.close()
                assert peer.frame().opcode == Opcode.CLOSE
            peer.sock.close()
            wait_until(lambda: "WEBSOCKET_CLOSE" in handler.methods)
            assert handler.methods == ["WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET_CLOSE"]

        trans.stop(5)
        receiving.get(timeout=5)
    assert handler.others == []


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_the_method_of_a_handshake_is_in_its_headers(start_front_end, protocol):
    """Also where the application answers it; and for a client that leaves before it was answered."""
    server = start_front_end(routes(protocol))
    with transceiver(server, handshake_events=True) as trans:
        events = trans.recv(timeout=5)
        peer = Peer(server.port)
        _, _, request = next(events)
        peer.sock.close()
        _, _, end = next(events)
        assert [request.headers["METHOD"], end.headers["METHOD"]] == ["WEBSOCKET_HANDSHAKE", "DISCONNECT"]
        assert [request.method, end.method] == ["WEBSOCKET_HANDSHAKE", "DISCONNECT"]
        events.close()
