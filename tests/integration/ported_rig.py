"""Handlers written as those of Mongrel2's own Python library are: a Connection, and a loop around ``recv()``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from front_ends import FrontEnd
from http_rig import Browser, routes, serving, transceiver

from greentx import Connection, Request

Handle = Callable[[Connection, Request], object]


@contextlib.contextmanager
def both_protocols(front_end: FrontEnd) -> Iterator[dict[str, Any]]:
    """A server for each encoding of headers; half a second passes before a new Mongrel2 hands on its first reply."""
    with front_end.started(routes("tnetstring")) as tnetstring, front_end.started(routes("json")) as json_headers:
        yield {"tnetstring": tnetstring, "json": json_headers}


@contextlib.contextmanager
def standalone(server: Any, handle: Handle, *, receive: str = "recv", **options: Any) -> Iterator[Connection]:
    """A Connection of its own and its loop, in a greenlet. What *handle* raises ends the loop, and fails the test.

    Args:
        receive: ``recv`` or ``recv_json``, which the loop calls.
    """
    entry = server.handlers[0]
    conn = Connection(entry.sender, entry.send_spec, entry.recv_spec, **options)

    def loop() -> None:
        while True:
            req = getattr(conn, receive)()
            if req is None:  # what Mongrel2's own never returns: it was shut down
                return
            handle(conn, req)

    greenlet = gevent.spawn(loop)
    try:
        assert conn.wait_ready(5)
        yield conn
    finally:
        conn.shutdown()
        _finish(greenlet)


@contextlib.contextmanager
def received(server: Any, handle: Handle, **options: Any) -> Iterator[Any]:
    """The same with a Transceiver and its ``recv()``."""
    with transceiver(server, **options) as trans:

        def loop() -> None:
            for _sid, conn, req in trans.recv():
                handle(conn, req)

        greenlet = gevent.spawn(loop)
        gevent.sleep(0)  # or it would begin after the end
        try:
            yield trans
        finally:
            trans.stop(5)
            _finish(greenlet)


@contextlib.contextmanager
def served(server: Any, handle: Handle, **options: Any) -> Iterator[Any]:
    """The same with a Transceiver and its ``serve()``, which answers 500 where *handle* raises."""
    with transceiver(server, **options) as trans, serving(trans, handle):
        yield trans


#: All ways to run a handler: each takes the server and a function of conn and req.
RUNNERS: dict[str, Callable[..., contextlib.AbstractContextManager[Any]]] = {
    "Connection.recv": standalone,
    "Transceiver.recv": received,
    "Transceiver.serve": served,
}


def _finish(greenlet: gevent.Greenlet) -> None:
    greenlet.join(5)
    ended = greenlet.dead
    greenlet.kill()
    assert ended, "recv() did not return when its Connection was shut down"
    greenlet.get()


class JSONSocket:
    """A client that speaks JSON over plain TCP, as Mongrel2's chat does."""

    def __init__(self, server: Any, path: str = "@chat") -> None:
        self.browser = Browser(server)
        self.path = path
        self._text = ""

    def __enter__(self) -> JSONSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.socket.close()

    def say(self, data: Any) -> None:
        """Send one message."""
        self.say_raw(json.dumps(data).encode())

    def say_raw(self, body: bytes) -> None:
        """Send one message that may be no JSON."""
        self.browser.send(self.path, " ", body, "\0")

    def hear(self) -> Any:
        """Return the next value that came; several may have come at once, with nothing between them."""
        while True:
            with contextlib.suppress(ValueError):
                value, end = json.JSONDecoder().raw_decode(self._text)
                self._text = self._text[end:]
                return value
            data = self.browser.socket.recv(65536)
            assert data, f"closed behind {self._text!r}"
            self._text += data.decode()

    def at_end(self) -> bool:
        """True when the server closes, and nothing comes before."""
        return not self._text and self.browser.at_end()
