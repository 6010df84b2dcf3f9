"""How many HTTP requests a second does a running handler answer, and how fast, alone or behind a real Mongrel2?

The handler is found by its control socket: this process then stands in for Mongrel2. Or by a URL, over plain sockets.
Both ways send the same requests from the same number of greenlets, so that their difference is Mongrel2. What the
command line says of a request, all of them have; the rest differs from one to the next, unless ``--traffic same``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import _load
import _traffic
from _load import Failed, Load, Target
from _traffic import HttpRequest

from greentx import Server
from greentx.errors import ConnectionClosed, RemoteProtocolError, SendTimeout
from greentx.protocol.headers import Headers
from greentx.protocol.http1_parser import ResponseParser

EXAMPLES = """\
examples:
  python benchmarks/load_http.py 127.0.0.1:9997                      closed loop, 50 greenlets, 10 s
  python benchmarks/load_http.py 127.0.0.1:9997 -n 500 -r 2000 -d 30  2000 requests a second
  python benchmarks/load_http.py http://127.0.0.1:8000/              the same handler behind Mongrel2
"""


class ControlWorker:
    """A Client of our own Server."""

    def __init__(self, server: Server, options: argparse.Namespace, requests: Iterator[HttpRequest]) -> None:
        self._server = server
        self._options = options
        self._requests = requests
        self._milliseconds = round(options.timeout * 1000)
        self._client: Any = None

    def open(self) -> None:
        self._client = self._server.client("http")

    def step(self) -> None:
        client = self._client
        request = next(self._requests)
        headers = request.headers()
        try:
            client.send(request.target, headers, request.body, method=request.method, timeout=self._milliseconds)
            response = client.recv(self._milliseconds)
        except SendTimeout as error:
            raise Failed("no handler took the request") from error
        except ConnectionClosed as error:
            raise Failed("closed without an answer") from error
        except RemoteProtocolError as error:
            raise Failed(f"bad answer: {error}") from error
        if response is None:
            raise Failed("timeout")
        if closes(response.version, response.headers):
            with contextlib.suppress(ConnectionClosed):
                client.recv(self._milliseconds)  # until the handler has hung up
        if client.closed:
            self.open()
        check_status(response.status, self._options)

    def close(self) -> None:
        if self._client is not None:
            self._client.__exit__(None, None, None)


class UrlWorker:
    """A keep-alive connection to an HTTP server."""

    def __init__(self, target: Target, options: argparse.Namespace, requests: Iterator[HttpRequest]) -> None:
        self._target = target
        self._options = options
        self._requests = requests
        self._socket: Any = None

    def open(self) -> None:
        self._socket = self._target.connect(self._options.timeout)

    def step(self) -> None:
        if self._socket is None:
            self.open()
        sock = self._socket
        request = next(self._requests)
        parser = ResponseParser(request.method)
        try:
            sock.sendall(request.raw())
            while True:
                data = sock.recv(65536)
                if not data:
                    parser.close()
                    break
                if parser.feed(data):
                    break
        except OSError as error:
            raise Failed(_load.reason(error)) from error
        except RemoteProtocolError as error:
            raise Failed("closed without an answer" if not parser.status else f"bad answer: {error}") from error
        if not data or closes(parser.version, parser.headers):
            self.close()
        check_status(parser.status, self._options)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def closes(version: str, headers: Headers) -> bool:
    """Return whether the connection ends with this answer."""
    connection = ",".join(headers.get_all("connection")).lower()
    return "close" in connection or (version == "HTTP/1.0" and "keep-alive" not in connection)


def check_status(status: int, options: argparse.Namespace) -> None:
    """Raise ``Failed`` for another status than was wanted."""
    if status != options.status if options.status else status >= 400:
        raise Failed(f"status {status}")


def arguments() -> tuple[argparse.Namespace, Target]:
    """Read the command line."""
    found = _load.parser(__doc__.partition("\n\n")[0], EXAMPLES, ["http"])
    request = found.add_argument_group("the request")
    request.add_argument("--path", help="what is asked for; default: what the URL says, else varied (/)")
    request.add_argument("--method", help="default: varied (GET), POST with a body of --body-size")
    request.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="a header of all, in place of their own"
    )
    request.add_argument("--body-size", type=int, metavar="BYTES", help="of all; default: varied (0)")
    request.add_argument("--status", type=int, help="the status that is right; default: any below 400")
    options = found.parse_args()
    target = Target(options, ["http"], found)
    _load.check_plot(found, options)
    if options.body_size is not None and not 0 <= options.body_size <= 100_000_000:
        found.error("--body-size is from 0 to 100000000")
    if any(":" not in one for one in options.header):
        found.error("--header is NAME:VALUE")
    options.path = options.path or target.path
    options.method = options.method or ("POST" if options.body_size else None)
    return options, target


def make_requests(options: argparse.Namespace, target: Target) -> Iterator[HttpRequest]:
    """Yield what is sent in turn; made as it is sent, since to make all first would take a second or more."""
    found: Iterable[HttpRequest] = _traffic.made_up()
    if options.traffic == "same":
        found = [HttpRequest("GET", "/", (("Host", target.host_header or "localhost"),))]
    for one in found:
        yield as_told(one, options, target)


def as_told(request: HttpRequest, options: argparse.Namespace, target: Target) -> HttpRequest:
    """Return a request with what the command line says in place of its own."""
    asked, body = request.target, request.body
    if options.path is not None:
        query = asked.partition("?")[2]
        asked = options.path if "?" in options.path or not query else f"{options.path}?{query}"
    if options.body_size is not None:
        body = b"x" * options.body_size
    elif options.method in ("GET", "HEAD", "DELETE"):
        body = b""
    given = [(name.strip(), value.strip()) for name, _, value in (one.partition(":") for one in options.header)]
    if target.host_header:
        given = [("Host", target.host_header), *given]
    method = options.method or ("GET" if request.body and not body else request.method)
    if body or method in ("POST", "PUT", "PATCH"):
        given.append(("Content-Length", str(len(body))))
    replaced = {name.lower() for name, _ in given} | {"content-length"}
    fields = [*(one for one in request.fields if one[0].lower() not in replaced), *given]
    return dataclasses.replace(request, method=method, target=asked, fields=tuple(fields), body=body)


def run() -> int:
    """Run the load and return the exit status."""
    options, target = arguments()
    requests = itertools.cycle(make_requests(options, target))
    request = {"method": options.method, "path": options.path, "body_size": options.body_size}
    if target.url is not None:
        _load.allow_files(options.greenlets)
        load = Load(options, lambda number: UrlWorker(target, options, requests))
        load.run()
        return _load.report("load_http", target, load, {"request": request})
    with _load.connected_server(target, options) as server:
        before = _load.handler_status(server)
        load = Load(options, lambda number: ControlWorker(server, options, requests))
        load.run()
        handler = {"before": before, "after": _load.handler_status(server)}
        more = {
            "request": request,
            "unclaimed": server.unclaimed,
            "bad_replies": server.bad_replies,
            "handler": handler,
        }
        return _load.report("load_http", target, load, more)


if __name__ == "__main__":
    _load.main(run)
