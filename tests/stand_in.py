"""A server written with plain sockets, with nothing of greentx's server side: PUSH and SUB, bound."""

from __future__ import annotations

import gevent
import zmq.green as zmq

from greentx.protocol.replies import Response, parse_reply
from greentx.protocol.requests import build_request

HTTP = {"METHOD": "GET", "VERSION": "HTTP/1.1"}


class Server:
    """PUSH and SUB, bound; counts as a Mongrel2 with the ident "u"."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.push = self.context.socket(zmq.PUSH)
        self.sub = self.context.socket(zmq.SUB)
        self.endpoints = [
            f"tcp://127.0.0.1:{one.bind_to_random_port('tcp://127.0.0.1')}" for one in (self.push, self.sub)
        ]
        self.sub.subscribe(b"")

    def request(self, conn_id: object = 1, path: str = "/", body: bytes = b"", **headers: str) -> None:
        self.push.send(build_request("u", conn_id, path, {**HTTP, **headers}, body))

    def receive(self) -> Response:
        with gevent.Timeout(5):
            return parse_reply(self.sub.recv())

    def receive_for(self, conn_id: int) -> bytes:
        """What the next reply to one connection brings; others are passed over."""
        while True:
            reply = self.receive()
            if str(conn_id) in reply.conn_ids:
                return reply.body

    def open_websocket(self, conn_id: int) -> None:
        """Send what Mongrel2 sends when a browser opens one."""
        headers = {"host": "x", "upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
        headers["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        self.request(conn_id, body=b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", METHOD="WEBSOCKET_HANDSHAKE", **headers)

    def frame(self, conn_id: int, payload: bytes, flags: str = "0x81") -> None:
        """Send a message of a WebSocket."""
        self.request(conn_id, body=payload, METHOD="WEBSOCKET", FLAGS=flags)

    def close(self) -> None:
        self.context.destroy(0)
