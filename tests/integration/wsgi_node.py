"""Applications that say which process answers; and a program that serves them on a Node.

It is ``python -m gevent.monkey wsgi_node.py RELAY NAME``, and SIGTERM ends it in order.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any
from wsgiref.util import shift_path_info

import gevent
import wsgi_applications

from greentx.relay import Node
from greentx.wsgi import WSGIServer

#: What the applications say who they are; the program has a name of its own.
NAME = str(os.getpid())


def counting(environ: Any, start_response: Any) -> Any:
    """Answer each message with who did it, whether the WebSocket was adopted, its number, and itself."""
    ws, state = environ["wsgi.websocket"], environ["greentx.state"]
    while (message := ws.receive()) is not None:
        state["count"] = state.get("count", 0) + 1
        ws.send(f"{NAME} {environ['greentx.adopted']} {state['count']} {message}")
    return []


def counting_with_flask_sock() -> Any:
    """The same, where a library speaks the protocol."""
    import flask
    import flask_sock

    application = flask.Flask("test")
    sock = flask_sock.Sock(application)

    @sock.route("/")
    def count(ws: Any) -> None:
        environ = flask.request.environ
        state = environ["greentx.state"]
        while True:
            message = ws.receive()
            state["count"] = state.get("count", 0) + 1
            ws.send(f"{NAME} {environ['greentx.adopted']} {state['count']} {message}")

    return application


def rooms() -> Any:
    """Socket.IO with rooms; a room is one Node's, as there is no client manager."""
    import socketio

    sio = socketio.Server(async_mode="gevent")

    @sio.event
    def enter(sid: str, room: str) -> str:
        sio.enter_room(sid, room)
        return NAME

    @sio.event
    def say(sid: str, room: str, text: str) -> str:
        sio.emit("said", text, room=room)
        return NAME

    return socketio.WSGIApp(sio)


def hearing(environ: Any, start_response: Any) -> Any:
    """Say who has the WebSocket, which hears what is posted here, at any process."""
    if "greentx.websocket" not in environ:
        reached = environ["greentx.broadcast"](environ["wsgi.input"].read().decode(), group="hearing")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{NAME} {reached}".encode()]
    ws = environ["wsgi.websocket"]
    environ["greentx.websocket"].join("hearing")
    ws.send(NAME)
    while (message := ws.receive()) is not None:
        environ["greentx.broadcast"](f"{NAME} {message}", group="hearing")
    return []


def hearing_with_flask_sock() -> Any:
    """The WebSockets of this one, where a library speaks the protocol."""
    import flask
    import flask_sock

    application = flask.Flask("test")
    sock = flask_sock.Sock(application)

    @sock.route("/")
    def hear(ws: Any) -> None:
        environ = flask.request.environ
        environ["greentx.websocket"].join("hearing")
        ws.send(NAME)
        while True:
            environ["greentx.broadcast"](f"{NAME} {ws.receive()}", group="hearing")

    return application


def who(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [NAME.encode()]


def by_name(applications: Any, otherwise: Any = None) -> Any:
    """Return an application that has each of them under ``/NAME``."""

    def application(environ: Any, start_response: Any) -> Any:
        found = applications.get(environ["PATH_INFO"].split("/")[1])
        if found is None:
            return otherwise(environ, start_response)
        shift_path_info(environ)
        return found(environ, start_response)

    return application


def libraries() -> Any:
    """Return those of Socket.IO and flask-sock, and ``who``."""
    hear = {"hearing": hearing, "flask-sock-hearing": hearing_with_flask_sock()}
    return by_name({"flask-sock-counting": counting_with_flask_sock(), "rooms": rooms(), "who": who, **hear})


def main() -> None:
    """Serve until SIGTERM."""
    own = {"counting": counting, "flask-sock-counting": counting_with_flask_sock(), "rooms": rooms(), "who": who}
    application = by_name(own, wsgi_applications.all_of_them())
    server = WSGIServer(Node(sys.argv[1], rep_port=False, name=NAME), application, log=None)
    server.start()
    gevent.signal_handler(signal.SIGTERM, lambda: gevent.spawn(server.stop, 20))
    sys.stdout.write("serves\n")
    sys.stdout.flush()
    server.serve_forever(20)


if __name__ == "__main__":
    NAME = sys.argv[2]
    main()
