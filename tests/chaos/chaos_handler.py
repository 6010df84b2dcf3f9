"""The handler process that faults happen to: ``python chaos_handler.py JSON``.

Its answers can be checked to the last byte: each has the request's token, repeated up to the size that was asked for.
``JSON`` has ``sender``, ``pull``, ``pub``, ``mode`` (``serve``, ``recv`` or ``wsgi``), ``pool``, ``handshake_seconds``,
``park_seconds`` and ``options`` for the Transceiver. The first line of output is the port of the control socket. In the
mode ``own`` it is a WSGI server with a mongrel2 of its own, and the line has the port of that.

============================= ==========================================================================================
``/echo/TOKEN?size=N&wait=S`` the token, repeated up to N bytes, after S seconds; the loop of ``recv`` never waits
``...&held=1``                the same, some time after the next SIGUSR2
``/echo/TOKEN`` with a body   the token, and the SHA-1 of the body
``/gauge``                    JSON: how many greenlets and WebSockets there are
``/block?seconds=S``          blocks the hub
``/fork?seconds=S``           forks a child that lives for S seconds; answers its pid
``/broadcast?size=N``         sends N bytes to every WebSocket; answers to how many
``/flood?count=N&held=1``     sends N messages to ids that nobody has
a WebSocket                   echoes, with ``/slow`` after a second each
============================= ==========================================================================================
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs

import gevent
import greenlet
from gevent.event import Event

from greentx import Transceiver
from greentx.handler import runners
from greentx.wsgi import WSGIServer

_READ = 65536
#: The first of ids that no browser gets.
NOBODY = 1_500_000_000


def body_for(token: str, size: int) -> bytes:
    """Return what a request with this token must be answered with."""
    unit = token.encode() + b";"
    return (unit * (size // len(unit) + 1))[: max(size, len(unit))]


def digest(file: BinaryIO) -> str:
    """Return the SHA-1 of all that is left in *file*."""
    found = hashlib.sha1(usedforsecurity=False)
    while data := file.read(_READ):
        found.update(data)
    return found.hexdigest()


class Answers:
    """What is answered, however the request came in."""

    def __init__(self, trans: Transceiver | None, *, may_wait: bool) -> None:
        self._known = trans
        self._gate = Event()
        # What is held goes on in the order of what comes first after the signal: a flood, then answers.
        gevent.signal_handler(signal.SIGUSR2, self._release)
        self._may_wait = may_wait

    def _release(self) -> None:
        gate, self._gate = self._gate, Event()
        gate.set()

    @property
    def _trans(self) -> Transceiver:
        assert self._known is not None, "a WSGI server with a mongrel2 of its own shows no Transceiver"
        return self._known

    def __call__(self, path: str, query: str, body: BinaryIO | None) -> bytes:
        values = {name: found[-1] for name, found in parse_qs(query).items()}
        seconds = float(values.get("seconds", 0))
        _, word, token = (*path.split("/", 2), "")[:3]
        if word == "gauge":
            return self._gauge()
        if word == "block":
            time.sleep(seconds)
            return b"blocked"
        if word == "fork":
            return b"%d" % _fork(seconds)
        if "held" in values:
            self._gate.wait()
        if word == "flood":
            return self._flood(int(values["count"]))
        if word == "broadcast":
            return b"%d" % self._trans.broadcast(bytes(int(values["size"])))
        if self._may_wait and "wait" in values:
            gevent.sleep(float(values["wait"]))  # an application that takes its time
        if body is not None:
            token = f"{token} {digest(body)}"
        return body_for(token, int(values.get("size", 0)))

    def _flood(self, count: int) -> bytes:
        conn = self._trans.conn
        for number in range(count):
            if not conn.ready:
                break  # the next life of the server has nothing to do with it
            conn.send(self._trans.sender, str(NOBODY + number), bytes(4000))
        return b"flooded"

    def _gauge(self) -> bytes:
        greenlets = sum(isinstance(one, greenlet.greenlet) and not one.dead for one in gc.get_objects())
        return json.dumps({"greenlets": greenlets, "websockets": len(self._trans.websockets)}).encode()


def _fork(seconds: float) -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)
        os._exit(0)
    return pid


def talk(ws: Any) -> None:
    """Echo."""
    for message in ws:
        if ws.path.startswith("/slow"):
            gevent.sleep(1)  # an application that takes its time
        ws.send(message)


def serve(trans: Transceiver, pool: int) -> None:
    """A greenlet for each request."""
    answers = Answers(trans, may_wait=True)

    def handle(conn: Any, req: Any) -> None:
        if not req.is_disconnect():
            conn.reply_http(req, answers(req.path, query_of(req), body_of(req)))

    trans.serve(handle, websocket=talk, pool=pool)


def receive(trans: Transceiver, pool: int) -> None:
    """README's loop."""
    answers = Answers(trans, may_wait=False)
    for _sid, conn, req in trans.recv():
        if req.method == "WEBSOCKET":
            conn.reply_websocket(req, req.body, req.opcode)
        elif req.method in ("GET", "POST"):
            try:
                conn.reply_http(req, answers(req.path, query_of(req), body_of(req)))
            except OSError as error:  # the file of an upload cannot be opened
                conn.reply_http(req, str(error), 500)


def query_of(req: Any) -> str:
    """Return the query string as it was sent."""
    return str(req.headers.get("QUERY_STR", ""))


def body_of(req: Any) -> BinaryIO | None:
    """Return the body that is to be summed up, if it is."""
    return cast("BinaryIO", req.body_file) if req.method == "POST" else None


def wsgi(trans: Transceiver, pool: int) -> None:
    """An application."""
    WSGIServer(trans, make_application(trans), spawn=pool, log=None).serve_forever()


def own(pool: int, settings: dict[str, int | str]) -> None:
    """An application behind a mongrel2 of its own."""
    server = WSGIServer(("127.0.0.1", 0), make_application(None), spawn=pool, log=None, mongrel2_settings=settings)
    server.start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


def make_application(trans: Transceiver | None) -> Callable[[Any, Any], Iterable[bytes]]:
    """Return a WSGI application."""
    answers = Answers(trans, may_wait=True)

    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        ws = environ.get("wsgi.websocket")
        if ws is not None:
            while (message := ws.receive()) is not None:
                ws.send(message)
            return []
        body = environ["wsgi.input"] if environ["REQUEST_METHOD"] == "POST" else None
        content = answers(environ["PATH_INFO"], environ.get("QUERY_STRING", ""), body)
        start_response("200 OK", [("Content-Length", str(len(content)))])
        return [content]

    return application


MODES: dict[str, Callable[[Transceiver, int], None]] = {"serve": serve, "recv": receive, "wsgi": wsgi}


def main() -> None:
    """Serve until a signal, or whoever started us, ends us."""
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(levelname)s %(name)s: %(message)s")
    # A signal that means nothing interrupts system calls all the same.
    signal.signal(signal.SIGUSR1, lambda *_: None)
    said = json.loads(sys.argv[1])
    if said["park_seconds"]:
        runners.PARK_SECONDS = said["park_seconds"]
    if said["mode"] == "own":
        own(said["pool"], said["settings"])
        return
    if said["handshake_seconds"]:
        said["options"]["on_handshake"] = lambda _request: gevent.sleep(
            said["handshake_seconds"]
        )  # whether to let it in
    options = {"rep_port": 0, "rep_ip": "127.0.0.1", **said["options"]}
    with Transceiver(said["sender"], said["pull"], said["pub"], **options) as trans:
        sys.stdout.write(f"{trans.rep_port}\n")
        sys.stdout.flush()
        MODES[said["mode"]](trans, said["pool"])


if __name__ == "__main__":
    main()
