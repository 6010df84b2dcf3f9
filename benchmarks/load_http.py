"""How many HTTP requests a second does a running handler answer, and how fast, alone or behind a real Mongrel2?

The handler is found by its control socket: this process then stands in for Mongrel2. Or by a URL, over plain sockets.
Both ways send the same requests from the same number of greenlets, so that their difference is Mongrel2.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import _load
from _load import Failed, Load, Target

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

    def __init__(self, server: Server, options: argparse.Namespace, headers: dict[str, str], body: bytes) -> None:
        self._server = server
        self._options = options
        self._headers = headers
        self._body = body
        self._milliseconds = round(options.timeout * 1000)
        self._client: Any = None

    def open(self) -> None:
        self._client = self._server.client("http")

    def step(self) -> None:
        options = self._options
        client = self._client
        try:
            client.send(options.path, self._headers, self._body, method=options.method, timeout=self._milliseconds)
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
        check_status(response.status, options)

    def close(self) -> None:
        if self._client is not None:
            self._client.__exit__(None, None, None)


class UrlWorker:
    """A keep-alive connection to an HTTP server."""

    def __init__(self, target: Target, options: argparse.Namespace, headers: dict[str, str], body: bytes) -> None:
        self._target = target
        self._options = options
        fields = {"Host": target.host_header, **headers}
        if body:
            fields["Content-Length"] = str(len(body))
        lines = [f"{options.method} {options.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._request = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        self._socket: Any = None

    def open(self) -> None:
        self._socket = self._target.connect(self._options.timeout)

    def step(self) -> None:
        if self._socket is None:
            self.open()
        sock = self._socket
        parser = ResponseParser(self._options.method)
        try:
            sock.sendall(self._request)
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
    request.add_argument("--path", help="what is asked for: / by default, or what the URL says")
    request.add_argument("--method", help="GET by default, POST with a body")
    request.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="one more header")
    request.add_argument("--body-size", type=int, default=0, metavar="BYTES", help="send a body of this many bytes (0)")
    request.add_argument("--status", type=int, help="the status that is right; default: any below 400")
    options = found.parse_args()
    target = Target(options, ["http"], found)
    _load.check_plot(found, options)
    if not 0 <= options.body_size <= 100_000_000:
        found.error("--body-size is from 0 to 100000000")
    if any(":" not in one for one in options.header):
        found.error("--header is NAME:VALUE")
    options.path = options.path or target.path or "/"
    options.method = options.method or ("POST" if options.body_size else "GET")
    return options, target


def run() -> int:
    """Run the load and return the exit status."""
    options, target = arguments()
    headers = {name.strip(): value.strip() for name, _, value in (one.partition(":") for one in options.header)}
    body = b"x" * options.body_size
    request = {"method": options.method, "path": options.path, "body_size": options.body_size}
    if target.url is not None:
        _load.allow_files(options.greenlets)
        load = Load(options, lambda number: UrlWorker(target, options, headers, body))
        load.run()
        return _load.report("load_http", target, load, {"request": request})
    with _load.connected_server(target, options) as server:
        before = _load.handler_status(server)
        load = Load(options, lambda number: ControlWorker(server, options, headers, body))
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
