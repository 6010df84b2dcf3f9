"""The WSGI servers under test, gevent's and ours, and what a browser sees of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent.pywsgi
import pytest
from front_ends import FRONT_ENDS, FrontEnd
from gevent import socket
from http_rig import Browser

import greentx.wsgi


class _BehindMongrel2(greentx.wsgi.WSGIServer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"front_end": "mongrel2", **options})


class _BehindEdge(greentx.wsgi.WSGIServer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"front_end": "edge", **options})


SERVERS: dict[str, Any] = {
    "gevent": gevent.pywsgi.WSGIServer,
    "greentx": greentx.wsgi.WSGIServer,
    "mongrel2": _BehindMongrel2,
    "edge": _BehindEdge,
}
#: What tests of all kinds of servers are parametrized by.
KINDS = (pytest.param("gevent"), *FRONT_ENDS)

AGAIN = "/is-it-still-open"


@contextlib.contextmanager
def behind(front_end: FrontEnd) -> Iterator[None]:
    """Have the servers of kind ``greentx`` run behind that one."""
    before, SERVERS["greentx"] = SERVERS["greentx"], SERVERS[front_end.name]
    try:
        yield
    finally:
        SERVERS["greentx"] = before


class Server(SimpleNamespace):
    """A running server: ``port``, ``server``, what it logged (``log``, ``errors``); ``application`` may be replaced."""


@contextlib.contextmanager
def serving(kind: Any, application: Any, **options: Any) -> Iterator[Server]:
    """Run a server of that kind on a free port; it answers :data:`AGAIN` itself.

    A Mongrel2 answers its first request half a second after its start (probed): run several cases with one.
    """
    log, errors = io.StringIO(), io.StringIO()
    options = {"log": log, "error_log": errors, **options}

    def with_again(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == AGAIN:
            start_response("200 OK", [("Content-Length", "5")])
            return [b"again"]
        return running.application(environ, start_response)

    server = SERVERS.get(kind, kind)(("127.0.0.1", 0), with_again, **options)
    server.start()
    running = Server(port=server.server_port, server=server, log=log, errors=errors, application=application)
    try:
        yield running
    finally:
        server.stop(0.2)


def ask(
    path: str = "/", *lines: str, method: str = "GET", version: str = "HTTP/1.1", body: bytes | None = None
) -> tuple[str, bytes]:
    """Return a request as :func:`see` takes it: its method, and its bytes."""
    fields = [f"{method} {path} {version}", "Host: localhost", *lines]
    if body is not None and not any(line.lower().startswith("transfer-encoding") for line in lines):
        fields.append(f"Content-Length: {len(body)}")
    return method, "".join(f"{field}\r\n" for field in fields).encode("latin-1") + b"\r\n" + (body or b"")


def see(server: Server, *requests: tuple[str, bytes], pipelined: bool = False) -> list[Any]:
    """Send requests over one connection and return what came: the answers, and whether the connection stays open.

    An answer is (status, reason, sorted headers, body). ``Date`` is there or not; ``Connection: close`` is left out,
    since what counts is whether it does.
    """
    seen: list[Any] = []
    with Browser(server, timeout=5.0) as browser:
        if pipelined:
            browser.send(b"".join(data for _, data in requests))
        try:
            for method, data in requests:
                if not pipelined:
                    browser.send(data)
                seen.append(_answer(browser, method))
            browser.send(ask(AGAIN)[1])
            seen.append("open" if browser.receive().body == b"again" else "confused")
        except (OSError, greentx.GreentxError) as error:
            seen.append("closed" if isinstance(error, ConnectionError) or "closed" in str(error) else repr(error))
    return seen


def _answer(browser: Browser, method: str) -> tuple[int, str, list[tuple[str, Any]], bytes]:
    answer = browser.receive(method)
    while answer.status == 100:
        answer = browser.receive(method)
    headers = []
    for name, value in answer.headers.items():
        if name.lower() == "date":
            value = "now"
        if (name.lower(), value) != ("connection", "close"):
            headers.append((name.lower(), value))
    return answer.status, answer.reason, sorted(headers), answer.body


def talk(port: int, data: bytes, timeout: float = 5.0) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(data)
        received = b""
        while more := sock.recv(65536):
            received += more
        return received
