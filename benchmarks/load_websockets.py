"""How many WebSockets does a running handler carry, and how fast does it answer, alone or behind a real Mongrel2?

The handler is found by its control socket: this process then stands in for Mongrel2. Or by a ws:// URL, over plain
sockets. All WebSockets are opened first, then messages go, or nothing but pings does (``--idle``), then all are closed.
Each opens with a query, cookie and headers of its own and sends texts of its own, unless ``--traffic same``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter, deque
from typing import Any

import _load
import _traffic
import gevent
from _load import Failed, Load, Target
from gevent.event import Event

from greentx import Server
from greentx.errors import ConnectionClosed, ConnectTimeout, RemoteProtocolError, SendTimeout
from greentx.protocol.http1_parser import ResponseParser
from greentx.protocol.websocket.frames import (
    Frame,
    FrameParser,
    MessageAssembler,
    Opcode,
    build_close,
    build_frame,
    parse_close,
)
from greentx.protocol.websocket.handshake import check_answer, new_key, request_headers

EXAMPLES = """\
examples:
  python benchmarks/load_websockets.py 127.0.0.1:9997 -n 1000                  echo, closed loop, 10 s
  python benchmarks/load_websockets.py 127.0.0.1:9997 -n 10000 --idle -d 60    held open, pings answered
  python benchmarks/load_websockets.py ws://127.0.0.1:8000/ -n 1000 -r 5000    behind Mongrel2, 5000 messages a second
"""


class Seen:
    """What all the WebSockets of a load saw in addition to answers.

    Attributes:
        pings: How many pings came.
        other: Data messages that no step waited for.
        dropped: WebSockets that ended before we closed them, by close code; 1006 without a close frame.
        unclosed: Those whose closing handshake was not finished within the timeout.
    """

    def __init__(self) -> None:
        self.pings = 0
        self.other = 0
        self.dropped: Counter[str] = Counter()
        self.unclosed = 0


#: What one browser opens its WebSocket with: path and query, and headers.
Browser = tuple[str, dict[str, str | list[str]]]


def make_browsers(options: argparse.Namespace) -> list[Browser]:
    """Return what the WebSockets are opened with, in turn."""
    if options.traffic == "same":
        return [(options.path, {})]
    found = _traffic.requests(count=min(options.greenlets, _traffic.DISTINCT))
    mark = "&" if "?" in options.path else "?"
    return [(f"{options.path}{mark}{one.target.partition('?')[2]}", one.handshake_headers()) for one in found]


class Talker:
    """One WebSocket, whichever way it travels."""

    def __init__(self, options: argparse.Namespace, seen: Seen, number: int) -> None:
        self._options = options
        browsers: list[Browser] = options.browsers
        self._target_path, self._headers = browsers[number % len(browsers)]
        self._seen = seen
        self._number = number
        self._sent = 0
        self._is_open = False

    def open(self) -> None:
        self._connect()
        self._is_open = True

    def step(self) -> None:
        options = self._options
        if options.idle:
            self._receive(options.hold_until)
            return
        self._sent += 1
        # What makes it the message that is waited for.
        mark = f"{self._number} {self._sent} "
        text = options.texts[(self._number + self._sent) % len(options.texts)]
        message = (mark + text)[: max(len(text), len(mark))].encode()
        self._send(message)
        deadline = time.monotonic() + options.timeout
        while options.answer != "none":
            answer = self._receive(deadline)
            if answer is None:
                raise Failed("timeout")
            if options.answer == "any" or answer == message:
                return
            self._seen.other += 1

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            if not self._close():
                self._seen.unclosed += 1

    def _ended(self, code: int | None) -> Failed:
        self._is_open = False
        self._seen.dropped[str(code or 1006)] += 1
        return Failed(f"ended with {code or 1006}")

    def _connect(self) -> None:
        raise NotImplementedError

    def _send(self, message: bytes) -> None:
        raise NotImplementedError

    def _receive(self, deadline: float) -> bytes | None:
        """Return the next data message, ``None`` when *deadline* has come."""
        raise NotImplementedError

    def _close(self) -> bool:
        """Close; return whether the other side took part."""
        raise NotImplementedError


class ControlTalker(Talker):
    """A Client of our own Server."""

    def __init__(self, server: Server, options: argparse.Namespace, seen: Seen, number: int) -> None:
        super().__init__(options, seen, number)
        self._server = server
        self._client: Any = None

    def _connect(self) -> None:
        self._client = self._server.client("websocket")
        options = self._options
        try:
            self._client.handshake(
                self._target_path, self._headers, deflate=options.deflate, timeout=round(options.timeout * 1000)
            )
        except (ConnectTimeout, SendTimeout) as error:
            raise Failed("timeout") from error
        except RemoteProtocolError as error:
            raise Failed(f"refused: {error.status}") from error
        except ConnectionClosed as error:
            raise Failed("refused") from error

    def _send(self, message: bytes) -> None:
        try:
            self._client.send(message.decode(), timeout=round(self._options.timeout * 1000))
        except SendTimeout as error:
            raise Failed("no handler took the message") from error
        except ConnectionClosed as error:
            raise self._ended(self._client.close_code) from error

    def _receive(self, deadline: float) -> bytes | None:
        client = self._client
        try:
            while True:
                frame = client.recv(max(1, round((deadline - time.monotonic()) * 1000)))
                if frame is None:
                    return None
                if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                    payload: bytes = frame.payload
                    return payload
        except ConnectionClosed as error:
            raise self._ended(client.close_code) from error
        except RemoteProtocolError as error:
            raise Failed(f"bad frame: {error}") from error

    def _close(self) -> bool:
        client = self._client
        self._seen.pings += client.pings
        try:
            done: bool = client.close(timeout=round(self._options.timeout * 1000))
        except (ConnectionClosed, SendTimeout):
            done = client.closed
        client.__exit__(None, None, None)
        return done


class UrlTalker(Talker):
    """A connection over a plain socket, read by a greenlet of its own so that pings are answered at any time."""

    def __init__(self, target: Target, options: argparse.Namespace, seen: Seen, number: int) -> None:
        super().__init__(options, seen, number)
        self._target = target
        self._socket: Any = None
        self._reader: Any = None
        self._messages: deque[bytes] = deque()
        self._arrived = Event()
        self._over: int | None = None
        self._bad = ""

    def _connect(self) -> None:
        self._messages.clear()
        self._over, self._bad = None, ""
        sock = self._socket = self._target.connect(self._options.timeout)
        key = new_key()
        lines = [f"GET {self._target_path} HTTP/1.1", f"Host: {self._target.host_header}"]
        lines += [f"{name}: {value}" for name, value in request_headers(key).items()]
        for name, values in self._headers.items():
            lines += [f"{name}: {value}" for value in ([values] if isinstance(values, str) else values)]
        answer = ResponseParser()
        try:
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            while not answer.complete:
                data = sock.recv(65536)
                if not data:
                    raise Failed("refused")
                answer.feed(data)
            check_answer(answer.status, answer.headers, key)
        except OSError as error:
            self._drop()
            raise Failed(_load.reason(error)) from error
        except RemoteProtocolError as error:
            self._drop()
            raise Failed(f"refused: {error.status}") from error
        except Failed:
            self._drop()
            raise
        sock.settimeout(None)
        self._reader = gevent.spawn(self._read, sock, answer.trailing)

    def _read(self, sock: Any, data: bytes) -> None:
        parser, assembler = FrameParser(require_mask=False), MessageAssembler()
        code = 1006
        try:
            while True:
                for frame in parser.feed(data):
                    message = assembler.add(frame)
                    if message is not None:
                        code = self._take(sock, message) or code
                data = sock.recv(65536)
                if not data:
                    break
        except OSError:
            pass  # the connection is over, which is what it is reported as
        except RemoteProtocolError as error:
            self._bad = f"bad frame: {error}"
        self._over = code
        self._arrived.set()

    def _take(self, sock: Any, message: Frame) -> int | None:
        payload = bytes(message.payload)
        if message.opcode == Opcode.PING:
            self._seen.pings += 1
            sock.sendall(masked(payload, Opcode.PONG))
        elif message.opcode == Opcode.CLOSE:
            if self._is_open:
                sock.sendall(masked(payload, Opcode.CLOSE))
            return parse_close(payload)[0]
        elif message.opcode != Opcode.PONG:
            self._messages.append(payload)
            self._arrived.set()
        return None

    def _send(self, message: bytes) -> None:
        try:
            if self._over is None:
                self._socket.sendall(masked(message, Opcode.TEXT))
                return
        except OSError:
            self._reader.join(self._options.timeout)
        raise self._end()

    def _receive(self, deadline: float) -> bytes | None:
        while not self._messages:
            if self._over is not None:
                raise self._end()
            self._arrived.clear()
            if not self._arrived.wait(max(0.0, deadline - time.monotonic())):
                return None
        return self._messages.popleft()

    def _end(self) -> Failed:
        self._drop()
        failed = self._ended(self._over)
        return Failed(self._bad) if self._bad else failed

    def _close(self) -> bool:
        """Send a close frame and wait until the other side has hung up."""
        try:
            if self._over is None:
                self._socket.sendall(masked(build_close(1000), Opcode.CLOSE))
                self._reader.join(self._options.timeout)
        except OSError:
            return False
        finally:
            self._drop()
        return self._over is not None

    def _drop(self) -> None:
        if self._reader is not None:
            self._reader.kill()
            self._reader = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def masked(payload: bytes, opcode: int) -> bytes:
    """Return a frame as a client sends it."""
    return build_frame(payload, opcode, mask=os.urandom(4))


class Idle(Load):
    """Holds the WebSockets open for the duration; only those that end count."""

    reopens = False

    @property
    def did_something(self) -> bool:
        return self.opened > 0

    def _next_due(self) -> float | None:
        now = time.monotonic()
        self.options.hold_until = self._start + self.options.duration
        return None if self.interrupted or now >= self.options.hold_until else now


def arguments() -> tuple[argparse.Namespace, Target]:
    """Read the command line."""
    found = _load.parser(__doc__.partition("\n\n")[0], EXAMPLES, ["ws"])
    talk = found.add_argument_group("the WebSockets")
    talk.add_argument("--path", help="what is asked for: / by default, or what the URL says")
    talk.add_argument(
        "--size", type=int, default=64, metavar="BYTES", help="of a message on average, 16 to 1000000 (64)"
    )
    talk.add_argument(
        "--answer",
        choices=("echo", "any", "none"),
        default="echo",
        help="what a message is answered with: itself (echo), any message, or nothing that is waited for",
    )
    talk.add_argument("--idle", action="store_true", help="send nothing, answer pings, count those that are dropped")
    talk.add_argument("--deflate", action="store_true", help="offer permessage-deflate (control socket only)")
    options = found.parse_args()
    target = Target(options, ["ws"], found)
    _load.check_plot(found, options)
    if not 16 <= options.size <= 1_000_000:
        found.error("--size is from 16 to 1000000")
    if options.deflate and target.url is not None:
        found.error("--deflate goes with a control socket only")
    options.path = options.path or target.path or "/"
    options.hold_until = 0.0
    options.browsers = make_browsers(options)
    options.texts = _traffic.texts(options.traffic, options.size)
    return options, target


def held(before: Any, opened: Any, connections: int) -> dict[str, Any]:
    """Return what the handler needed for the open WebSockets."""
    if not before or not opened or not before["rss"] or not opened["rss"] or not connections:
        return {}
    return {"bytes_per_connection": round((opened["rss"] - before["rss"]) / connections)}


def summary(seen: Seen, options: argparse.Namespace) -> dict[str, Any]:
    """Return what is reported in addition to the latencies."""
    return {
        "path": options.path,
        "size": options.size,
        "answer": "idle" if options.idle else options.answer,
        "pings": seen.pings,
        "other_messages": seen.other,
        "dropped": dict(seen.dropped),
        "unclosed": seen.unclosed,
    }


def run() -> int:
    """Run the load and return the exit status."""
    options, target = arguments()
    seen = Seen()
    kind = Idle if options.idle else Load
    if target.url is not None:
        _load.allow_files(options.greenlets)
        load = kind(options, lambda number: UrlTalker(target, options, seen, number))
        load.run()
        return finish(target, load, summary(seen, options))
    with _load.connected_server(target, options) as server:
        status: list[Any] = [_load.handler_status(server)]

        def all_open() -> None:
            gevent.sleep(0.1)
            status.append(_load.handler_status(server))

        load = kind(options, lambda number: ControlTalker(server, options, seen, number))
        load.run(all_open)
        handler = {"before": status[0], "open": status[-1], "after": _load.handler_status(server)}
        more = {"unclaimed": server.unclaimed, "bad_replies": server.bad_replies, "handler": handler}
        return finish(target, load, {**summary(seen, options), **held(status[0], status[-1], load.opened), **more})


def finish(target: Target, load: Load, more: dict[str, Any]) -> int:
    """Print the report; with ``--idle`` steps that ended by the clock do not count as requests."""
    if load.options.idle:
        del load.latencies[:], load.ended[:]
    return _load.report("load_websockets", target, load, more)


if __name__ == "__main__":
    _load.main(run)
