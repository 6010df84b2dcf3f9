"""The servers that bench_websocket.py measures, each in a process of its own: echo servers, and chats.

``python _websocket_servers.py echo|chat NAME`` prints the port and serves until its standard input ends. None of them
sends pings, so nothing but the messages is measured.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from _common import end_with_parent

LOCAL = "127.0.0.1"

#: What Mongrel2 ends idle connections by; nobody pings here.
_NEVER_IDLE = {"limits.min_ping": 0, "limits.min_read_rate": 0, "limits.min_write_rate": 0}


def started(port: int) -> None:
    """Say that it listens."""
    print(port, flush=True)


# -- greentx -----------------------------------------------------------------------------------------------------------


@contextmanager
def behind_mongrel2() -> Iterator[Any]:
    """A Transceiver behind a mongrel2 that is this process's child."""
    from greentx import Transceiver
    from greentx.edge import Handler, Mongrel2

    with Mongrel2({"/": Handler("bench")}, settings=_NEVER_IDLE) as mongrel2:
        handler = mongrel2.handlers[0]
        assert handler.send_spec is not None and handler.recv_spec is not None
        with Transceiver("bench", handler.send_spec, handler.recv_spec, rep_port=False, ping_timeout=None) as trans:
            trans.wait_ready(10)
            started(mongrel2.port)
            yield trans


def echo_recv() -> None:
    with behind_mongrel2() as trans:
        for _, conn, req in trans.recv():
            if req.method == "WEBSOCKET":
                conn.reply_websocket(req, req.body, req.opcode)


def echo_serve() -> None:
    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    with behind_mongrel2() as trans:
        trans.serve(websocket=echo)


def chat_greentx() -> None:
    with behind_mongrel2() as trans:
        for _, _, req in trans.recv():
            if req.method == "WEBSOCKET":
                trans.broadcast(req.body.decode())


# -- gevent-websocket --------------------------------------------------------------------------------------------------


def _gevent_websocket(talk: Callable[[Any], None]) -> None:
    from gevent.pywsgi import WSGIServer
    from geventwebsocket.handler import WebSocketHandler

    class Server(WSGIServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            WebSocketHandler(sock, address, self).handle()

    def application(environ: dict[str, Any], start_response: object) -> list[bytes]:
        talk(environ["wsgi.websocket"])
        return []

    server = Server((LOCAL, 0), application, log=None, backlog=4096)
    # The handler of gevent-websocket looks for a logger there, as its own server class has one.
    server.logger = _Silent()
    server.start()
    started(server.server_port)
    server.serve_forever()


class _Silent:
    """A logger that logs nothing."""

    def debug(self, *arguments: object) -> None:
        """Not even this."""

    info = debug


def echo_gevent_websocket() -> None:
    def echo(ws: Any) -> None:
        while (message := ws.receive()) is not None:
            ws.send(message)

    _gevent_websocket(echo)


def chat_gevent_websocket() -> None:
    members: list[Any] = []

    def chat(ws: Any) -> None:
        members.append(ws)
        while (message := ws.receive()) is not None:
            for member in members:
                member.send(message)

    _gevent_websocket(chat)


# -- websockets --------------------------------------------------------------------------------------------------------


def _websockets(talk: Callable[[Any], Any]) -> None:
    from websockets.asyncio.server import serve

    async def run() -> None:
        async with serve(talk, LOCAL, 0, ping_interval=None, backlog=4096) as server:
            started(next(iter(server.sockets)).getsockname()[1])
            await asyncio.Event().wait()

    asyncio.run(run())


def echo_websockets() -> None:
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    _websockets(echo)


def chat_websockets() -> None:
    from websockets.asyncio.server import broadcast

    members: list[Any] = []

    async def chat(ws: Any) -> None:
        members.append(ws)
        async for message in ws:
            broadcast(members, message)

    _websockets(chat)


def echo_websockets_sync() -> None:
    from websockets.sync.server import serve

    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    listening = socket.create_server((LOCAL, 0), backlog=4096)
    with serve(echo, sock=listening, ping_interval=None) as server:
        started(listening.getsockname()[1])
        server.serve_forever()


#: By the names that the command line knows.
SERVERS = {
    "echo": {
        "recv": echo_recv,
        "serve": echo_serve,
        "gevent-websocket": echo_gevent_websocket,
        "websockets": echo_websockets,
        "websockets-sync": echo_websockets_sync,
    },
    "chat": {"greentx": chat_greentx, "gevent-websocket": chat_gevent_websocket, "websockets": chat_websockets},
}

if __name__ == "__main__":
    # Clients that do not wait for the end of their closing handshakes are errors to one of them.
    logging.disable(logging.CRITICAL)
    end_with_parent()
    SERVERS[sys.argv[1]][sys.argv[2]]()
