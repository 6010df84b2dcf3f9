"""What all scenarios share: a real mongrel2, a handler process, browsers whose every answer is checked, and the count.

Each request has a token of its own, and what it must be answered with follows from the token (``chaos_handler.py``). So
an answer is right, or somebody else's, or damaged; and a request that got none is lost. A scenario says for which
moments it expects losses, and by which fact (:class:`Excuse`); any other loss is a failure.

The browsers are those of the integration tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import gevent.subprocess
from chaos_handler import body_for
from gevent.event import Event

from greentx.edge import EdgeProcess, Handler, Mongrel2
from greentx.errors import ControlError, RemoteProtocolError
from greentx.protocol.http1_parser import ResponseParser, parse_head
from greentx.protocol.websocket.deflate import DeflateConfig, PerMessageDeflate, accept, offer
from greentx.protocol.websocket.frames import Opcode
from greentx.standin.connector import Connector

__all__ = [
    "CHAOS",
    "HANDLER_DIED",
    "SCENARIOS",
    "SENDER",
    "SERVER_DIED",
    "Broken",
    "Browser",
    "RawClient",
    "ReadyWatch",
    "Rig",
    "Run",
    "Scenario",
    "memory_of",
    "pid_of_mongrel2",
    "scenario",
]

CHAOS = Path(__file__).parent
sys.path += [str(CHAOS.parent), str(CHAOS.parent / "integration")]

from http_rig import Browser  # noqa: E402 - found by the path set above
from websocket_rig import RawClient  # noqa: E402 - found by the path set above

SENDER = "chaos"
START_SECONDS = 30.0

#: Facts by which something may be lost; each is said with the count of what it explains.
SERVER_DIED = "mongrel2 was killed: its browser connections ended with it"
HANDLER_DIED = "the handler ended: what mongrel2 had pushed to it is lost, PUSH has no acknowledgement (probed)"

_TOKEN = re.compile(rb"[cuw](\d+)-\d+")
_numbers = itertools.count(1)


class Broken(AssertionError):
    """Something does not hold; the text says what."""


# -- the count ---------------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """One request, or one WebSocket message, of a browser.

    Attributes:
        token: What tells it from all others; begins with c, with u where it has a body, with w for a WebSocket's.
        expected: The whole content of the right answer.
        data: What is sent.
        sent: When, on the monotonic clock.
    """

    token: str
    expected: bytes
    data: bytes
    sent: float = 0.0


@dataclass
class Lost:
    """A request that got no answer, or a part of one; *code* is that of the close frame that came in its place."""

    token: str
    sent: float
    ended: float
    why: str
    code: int | None = None


@dataclass
class Excuse:
    """From *start* to *end* a request that is under way may be lost, by *fact*; only those whose tokens begin so."""

    start: float
    end: float
    fact: str
    kinds: str = "cuw"

    def explains(self, lost: Lost) -> bool:
        """Whether that request was under way then."""
        return lost.sent <= self.end and lost.ended >= self.start and lost.token[0] in self.kinds


@dataclass
class Tally:
    """What became of all that was sent.

    Attributes:
        sent: Requests and WebSocket messages.
        right: Those whose answer was right to the last byte.
        refused: Those that were answered with another status, by status.
        lost: Those that were not answered.
        strangers: Answers that were another browser's, in words.
        wrong: Answers that were damaged, or another request's of the same browser, in words.
        ended: WebSockets that were ended by the other side, by close code; 1006 without a close frame.
        latencies: Seconds, of the right ones.
        answered: When the last right answer came.
        excuses: What may be lost.
    """

    sent: int = 0
    right: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    lost: list[Lost] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ended: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    answered: float = 0.0
    excuses: list[Excuse] = field(default_factory=list)

    def add_right(self, request: Request) -> None:
        """Count a right answer."""
        self.answered = time.monotonic()
        self.right += 1
        self.latencies.append(self.answered - request.sent)

    def lose(self, request: Request, why: str, code: int | None = None) -> None:
        """Count a request that gets no answer any more."""
        self.lost.append(Lost(request.token, request.sent, time.monotonic(), why, code))

    def judge(self, number: int, request: Request, got: bytes) -> None:
        """Count an answer that is not what *request* of browser *number* must get."""
        tokens = {int(found) for found in _TOKEN.findall(got)}
        kind = self.strangers if tokens - {number} else self.wrong
        kind.append(f"{request.token} got {len(got)} bytes {got[:60]!r} instead of {request.expected[:40]!r}")

    def unexplained(self) -> list[Lost]:
        """Return the losses that no excuse covers."""
        return [one for one in self.lost if not any(excuse.explains(one) for excuse in self.excuses)]

    def explained(self) -> Counter[str]:
        """Return how many losses each fact explains."""
        facts = (next((excuse.fact for excuse in self.excuses if excuse.explains(one)), None) for one in self.lost)
        return Counter(fact for fact in facts if fact is not None)

    def percentile(self, part: float, *, since: int = 0) -> float:
        """Return the latency, in seconds, below which *part* of the right answers from the *since*-th on stayed."""
        ordered = sorted(self.latencies[since:])
        if not ordered:
            raise Broken("nothing was answered, so there is no latency to look at")
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def __str__(self) -> str:
        parts = [f"sent {self.sent}", f"right {self.right}", f"lost {len(self.lost)}"]
        if self.refused:
            parts.append("refused " + ", ".join(f"{count} with {status}" for status, count in self.refused.items()))
        return ", ".join([*parts, f"strangers' {len(self.strangers)}"])


# -- browsers ----------------------------------------------------------------------------------------------------------


class Caller:
    """A browser that asks over keep-alive connections, one after the other, until it is told to end.

    Args:
        server: Whom it asks.
        tally: Where it counts.
        size: Bytes of each answer, at least.
        depth: Requests that are sent at once (pipelined).
        upload: Bytes of a body; 0 asks without one.
        pause: Seconds between two batches.
        query: More of the query string.
        patience: Seconds that an answer may take.
        count: Ends after so many requests.
    """

    def __init__(
        self,
        server: Mongrel2,
        tally: Tally,
        *,
        size: int = 0,
        depth: int = 1,
        upload: int = 0,
        pause: float = 0.0,
        query: str = "",
        patience: float = 10.0,
        count: int | None = None,
    ) -> None:
        self._server = server
        self._tally = tally
        self._size = size
        self._depth = depth
        self._upload = os.urandom(upload)
        self._pause = pause
        self._query = query
        self._patience = patience
        self._left = count
        self._ending = Event()
        self._number = 0
        self._sequence = 0
        #: Whether it has ended.
        self.finished = False

    def end(self) -> None:
        """Have it end when its present requests are answered."""
        self._ending.set()

    def run(self) -> None:
        """Ask until :meth:`end`, or to the count."""
        while not self._done():
            try:
                browser = Browser(self._server, timeout=self._patience)
            except OSError:
                self._ending.wait(0.02)  # between two attempts while the server is away
                continue
            self._number = next(_numbers)
            self._sequence = 0
            with browser:
                while not self._done() and self._talk(browser):
                    self._ending.wait(self._pause)
        self.finished = True

    def _done(self) -> bool:
        return self._ending.is_set() or self._left == 0

    def _talk(self, browser: Browser) -> bool:
        """Send a batch and read its answers; return whether the connection goes on."""
        depth = self._depth if self._left is None else min(self._depth, self._left)
        batch = [self._request() for _ in range(depth)]
        if self._left is not None:
            self._left -= depth
        self._tally.sent += depth
        now = time.monotonic()
        for request in batch:
            request.sent = now
        try:
            browser.send(*(request.data for request in batch))
        except OSError as error:
            return self._lose(batch, _reason(error))
        while batch:
            why, closes = self._read(browser, batch[0])
            if why:
                return self._lose(batch, why)
            del batch[0]
            if closes:
                return self._lose(batch, "the answer before it closed the connection")
        if browser.buffer:
            self._tally.judge(self._number, Request(f"c{self._number}", b"nothing", b""), browser.buffer)
            return False
        return True

    def _lose(self, batch: list[Request], why: str) -> bool:
        for request in batch:
            self._tally.lose(request, why)
        return False

    def _request(self) -> Request:
        self._sequence += 1
        token = f"{'u' if self._upload else 'c'}{self._number}-{self._sequence}"
        said = token
        if self._upload:
            said = f"{token} {hashlib.sha1(self._upload, usedforsecurity=False).hexdigest()}"
        head = (
            f"{'POST' if self._upload else 'GET'} /echo/{token}?size={self._size}{self._query} HTTP/1.1\r\n"
            f"Host: localhost\r\nCookie: {token}\r\n"
        )
        if self._upload:
            head += f"Content-Length: {len(self._upload)}\r\n"
        return Request(token, body_for(said, self._size), f"{head}\r\n".encode() + self._upload)

    def _read(self, browser: Browser, request: Request) -> tuple[str, bool]:
        """Read one answer; return why there is none, ``""`` where there is, and whether it closes the connection."""
        parser = ResponseParser()
        try:
            browser.receive(parser=parser)
        except OSError as error:
            return self._partial(request, parser, _reason(error)), True
        except RemoteProtocolError as error:
            # Not HTTP, or not whole.
            return self._partial(request, parser, str(error) if parser.status else "closed without an answer"), True
        if parser.status != 200:
            self._tally.refused[parser.status] += 1
        elif parser.body == request.expected:
            self._tally.add_right(request)
        else:
            self._tally.judge(self._number, request, parser.body)
        return "", "close" in parser.headers.get_all("connection")

    def _partial(self, request: Request, parser: ResponseParser, why: str) -> str:
        if parser.status in (0, 200) and not request.expected.startswith(parser.body):
            self._tally.judge(self._number, request, parser.body)
        return why


class Talker:
    """A browser with a WebSocket that says something, waits for its echo, and says the next, until it is told to end.

    Args:
        server: Whom it asks.
        tally: Where it counts.
        size: Bytes of each message, at least.
        pause: Seconds between two messages.
        deflate: Agrees on permessage-deflate.
        path: What it asks for.
        patience: Seconds that an echo may take.
    """

    def __init__(
        self,
        server: Mongrel2,
        tally: Tally,
        *,
        size: int = 40,
        pause: float = 0.05,
        deflate: bool = False,
        path: str = "/",
        patience: float = 10.0,
    ) -> None:
        self._server = server
        self._tally = tally
        self._size = size
        self._pause = pause
        self._config = DeflateConfig() if deflate else None
        self._path = path
        self._patience = patience
        self._ending = Event()
        self._code: int | None = None
        #: Broadcasts that came: what does not begin as an echo does.
        self.heard: list[str] = []
        self.opened = 0
        self.pings = 0
        #: Whether it has ended.
        self.finished = False
        self._connects_again = True

    def end_with_connection(self) -> None:
        """Have it go on to the end of its present connection, and no further."""
        self._connects_again = False

    def end(self) -> None:
        """Have it end after its next echo."""
        self._ending.set()

    def run(self) -> None:
        """Talk until :meth:`end`."""
        while not self._ending.is_set() and (self._connects_again or not self.opened):
            number = next(_numbers)
            try:
                client, deflate = self._connect()
            except (OSError, AssertionError, RemoteProtocolError):
                self._ending.wait(0.05)  # between two attempts while nobody accepts
                continue
            self.opened += 1
            with client:
                try:
                    self._talk(client, deflate, number)
                except OSError:
                    self._tally.ended[1006] += 1
        self.finished = True

    def _connect(self) -> tuple[RawClient, PerMessageDeflate | None]:
        headers = {"Sec-WebSocket-Extensions": offer(self._config)} if self._config is not None else None
        host = getattr(self._server, "host", "127.0.0.1")
        client = RawClient(self._server.port, host=host, headers=headers, path=self._path)
        try:
            if client.ended:
                raise RemoteProtocolError("refused")
            client.sock.settimeout(self._patience)
            if self._config is None:
                return client, None
            fields = {name.lower(): value for name, value in parse_head(client.answer + b"\r\n\r\n")[3]}
            return client, accept(fields["sec-websocket-extensions"], self._config)
        except BaseException:  # raised again
            client.close()
            raise

    def _talk(self, client: RawClient, deflate: PerMessageDeflate | None, number: int) -> None:
        for sequence in itertools.count(1):
            token = f"w{number}-{sequence}"
            message = body_for(token, self._size)
            request = Request(token, message, message, time.monotonic())
            self._tally.sent += 1
            try:
                _say(client, message, deflate)
                got = self._hear(client, deflate, request)
            except OSError as error:
                self._tally.lose(request, _reason(error))
                raise
            if got is None:
                return
            if got != message:
                self._tally.judge(number, request, got)
                return
            self._tally.add_right(request)
            # Between two messages it goes on answering pings.
            if not self._listen(client, deflate, number):
                return
            if self._ending.is_set():
                client.send_close()
                client.recv_close()
                return

    def _hear(self, client: RawClient, deflate: PerMessageDeflate | None, request: Request) -> bytes | None:
        while True:
            got = self._next(client, deflate)
            if got is None:
                self._tally.lose(request, f"the WebSocket ended with {self._code}", self._code)
            if got is None or got.startswith(b"w"):
                return got
            self.heard.append(got.decode(errors="replace"))

    def _listen(self, client: RawClient, deflate: PerMessageDeflate | None, number: int) -> bool:
        """Wait for the pause; nothing but broadcasts may come. Return whether the WebSocket goes on."""
        until = time.monotonic() + self._pause
        while (left := until - time.monotonic()) > 0 and not self._ending.is_set():
            client.sock.settimeout(left)
            try:
                got = self._next(client, deflate)
            except TimeoutError:
                break
            if got is None:
                return False
            if got.startswith(b"w"):
                self._tally.judge(number, Request(f"w{number}", b"nothing", b""), got)
                return False
            self.heard.append(got.decode(errors="replace"))
        client.sock.settimeout(self._patience)
        return True

    def _next(self, client: RawClient, deflate: PerMessageDeflate | None) -> bytes | None:
        """Return the next data message, ``None`` at the end."""
        while True:
            frame = client.recv()
            if frame is None:
                self._code = 1006
                self._tally.ended[1006] += 1
                return None
            if frame.opcode == Opcode.PING:
                self.pings += 1
                client.send(bytes(frame.payload), Opcode.PONG)
            elif frame.opcode == Opcode.CLOSE:
                self._code = int.from_bytes(frame.payload[:2], "big")
                self._tally.ended[self._code] += 1
                with contextlib.suppress(OSError):
                    client.send(bytes(frame.payload), Opcode.CLOSE)
                return None
            elif frame.opcode != Opcode.PONG:
                payload = bytes(frame.payload)
                return deflate.decode(payload, None) if deflate is not None and frame.rsvd & 4 else payload


def _say(client: RawClient, message: bytes, deflate: PerMessageDeflate | None) -> None:
    payload, compressed = deflate.encode(message) if deflate is not None else (message, False)
    client.send(payload, Opcode.TEXT, 4 if compressed else 0)


def _reason(error: OSError) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else f"closed without an answer ({error.strerror})"


# -- the handler -------------------------------------------------------------------------------------------------------


class HandlerProcess:
    """A running ``chaos_handler.py``.

    Attributes:
        pid: Its process.
        port: Of its control socket; of its mongrel2 where it has one of its own.
    """

    def __init__(self, server: Mongrel2, said: dict[str, Any], log: Any) -> None:
        entry = server.handlers[0]
        self._owns_front_end = said["mode"] == "own"
        said = {"sender": entry.sender, "pub": entry.recv_spec, **said, "pull": said["pull"] or entry.send_spec}
        self._popen = gevent.subprocess.Popen(
            [sys.executable, str(CHAOS / "chaos_handler.py"), json.dumps(said)],
            env={**os.environ, "PYTHONPATH": str(CHAOS.parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.pid: int = self._popen.pid
        try:
            with gevent.Timeout(START_SECONDS, Broken(f"the handler did not start within {START_SECONDS:g} s")):
                line = self._popen.stdout.readline()
            if not line:
                raise Broken(f"the handler ended with {self._popen.wait()} while it started")
            self.port = int(line)
        except BaseException:  # raised again
            self.kill()
            raise

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def wait(self, timeout: float) -> int | None:
        """Wait for its end; return its status, ``None`` where it goes on."""
        with contextlib.suppress(gevent.subprocess.TimeoutExpired):
            return int(self._popen.wait(timeout))
        return None

    @property
    def status(self) -> int | None:
        """Its exit status; ``None`` while it runs."""
        found: int | None = self._popen.poll()
        return found

    def kill(self) -> None:
        """End it with SIGKILL; one that has a front end of its own may remove what is of that, first."""
        if self._owns_front_end:
            self._popen.terminate()
            self.wait(5)
        self._popen.kill()
        self._popen.wait()
        self._popen.stdout.close()

    def memory(self) -> int:
        """Bytes of it that are in memory."""
        return memory_of(self.pid)

    def address_space(self) -> int:
        """Bytes of its address space."""
        return _status_field(self.pid, "VmSize")

    def descriptors(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def pid_of_mongrel2(parent: int) -> int:
    """Return which child of a process is a mongrel2. Raises ``Broken`` where none is."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        for pid in file.read().split():
            with open(f"/proc/{pid}/comm") as name:
                if name.read().strip() == "mongrel2":
                    return int(pid)
    raise Broken(f"process {parent} has no mongrel2")


def memory_of(pid: int | None) -> int:
    """Return how many bytes of a process are in memory."""
    return _status_field(pid, "VmRSS")


def _status_field(pid: int | None, name: str) -> int:
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise Broken(f"process {pid} has no {name}: it has ended")


# -- the rig -----------------------------------------------------------------------------------------------------------


class Rig:
    """A mongrel2, a handler process behind it, and browsers in front; a context manager that ends all of them.

    Args:
        front: What is in front of it: ``mongrel2``, or ``edge`` for the embedded front end, in a process of its own.
        mode: How the handler is written: ``serve``, ``recv`` or ``wsgi``; ``own`` has a mongrel2 of its own.
        pool: How many requests it handles at once.
        settings: Mongrel2's, whosever it is.
        transport: ``tcp`` or ``ipc``, between the two.
        patience: Seconds that an answer may take.
        handshake_seconds: So long the application thinks about each opening handshake.
        park_seconds: So long a greenlet waits for the next request of its connection; 0 for as long as usual.
        pull: Where the handler pulls from instead of the server's endpoint.
        asks_server: The handler knows the server's control port.
        options: The Transceiver's.

    Attributes:
        tally: What became of all that the browsers sent.
        last_words: The last lines that its handlers logged, once it is closed.
    """

    def __init__(
        self,
        *,
        front: str = "mongrel2",
        mode: str = "serve",
        pool: int = 1000,
        settings: dict[str, int | str] | None = None,
        transport: str = "tcp",
        patience: float = 10.0,
        handshake_seconds: float = 0.0,
        park_seconds: float = 0.0,
        pull: str | None = None,
        asks_server: bool = False,
        **options: Any,
    ) -> None:
        kind: type[Mongrel2 | EdgeProcess] = EdgeProcess if front == "edge" else Mongrel2
        self.server: Any = kind({"/": Handler(SENDER)}, settings=settings, transport=transport)
        self.tally = Tally()
        self.last_words: list[str] = []
        self.patience = patience
        if asks_server:
            options["server_control"] = self.server.control_spec
        self._said = {
            "mode": mode,
            "pool": pool,
            "handshake_seconds": handshake_seconds,
            "park_seconds": park_seconds,
            "pull": pull,
            "settings": settings or {},
            "options": {"ping_timeout": None, **options},
        }
        self._handler: HandlerProcess | None = None
        self._browsers: list[tuple[Any, Any]] = []
        self._stack = contextlib.ExitStack()
        self._log: Any = None

    def __enter__(self) -> Rig:
        try:
            self._log = self._stack.enter_context(tempfile.TemporaryFile("w+"))
            self._stack.callback(self.server.stop, 0)
            if self._said["mode"] != "own":
                self.server.start()
            self.start_handler()
        except BaseException:  # raised again
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that is left, at once."""
        if self._log is not None:
            self._log.seek(0)
            self.last_words = self._log.read().splitlines()[-20:]
        gevent.killall([greenlet for _, greenlet in self._browsers])
        if self._handler is not None:
            self._handler.kill()
            self._handler = None
        self._stack.close()

    @property
    def handler(self) -> HandlerProcess:
        """The handler process."""
        assert self._handler is not None
        return self._handler

    @property
    def front(self) -> Any:
        """What browsers connect to: it has a ``port``."""
        return self.handler if self._said["mode"] == "own" else self.server

    def start_handler(self) -> None:
        """Start it, or the next one, with the same arguments."""
        self._handler = HandlerProcess(self.server, self._said, self._log)

    def callers(self, number: int, **options: Any) -> list[Caller]:
        """Start so many browsers that ask."""
        options.setdefault("patience", self.patience)
        tally = options.pop("tally", self.tally)
        return [self._add(Caller(self.front, tally, **options)) for _ in range(number)]

    def talkers(self, number: int, **options: Any) -> list[Talker]:
        """Start so many browsers with a WebSocket."""
        options.setdefault("patience", self.patience)
        return [self._add(Talker(self.front, self.tally, **options)) for _ in range(number)]

    def _add(self, browser: Any) -> Any:
        greenlet = gevent.spawn(browser.run)
        self._browsers.append((browser, greenlet))
        return browser

    def finish(self, timeout: float | None = None) -> None:
        """Have all browsers end when what they asked is answered. Raises ``Broken`` where one hangs, or has failed."""
        for browser, _ in self._browsers:
            browser.end()
        self.join(self.patience + 5 if timeout is None else timeout)

    def join(self, timeout: float) -> None:
        """Wait for all browsers to end."""
        greenlets = [greenlet for _, greenlet in self._browsers]
        gevent.joinall(greenlets, timeout=timeout)
        self._browsers.clear()
        hanging = [greenlet for greenlet in greenlets if not greenlet.ready()]
        gevent.killall(hanging)
        for greenlet in greenlets:
            if greenlet.exception is not None:
                raise Broken(f"a browser failed: {greenlet.exception!r}") from greenlet.exception
        if hanging:
            raise Broken(f"{len(hanging)} of {len(greenlets)} browsers did not end")

    @contextlib.contextmanager
    def fault(self, fact: str, kinds: str = "cuw") -> Iterator[None]:
        """While the block runs, what is under way may be lost, by *fact*."""
        excuse = Excuse(time.monotonic(), float("inf"), fact, kinds)
        self.tally.excuses.append(excuse)
        yield
        excuse.end = time.monotonic()

    def restart_server(self) -> None:
        """Kill mongrel2 and start it again."""
        with self.fault(SERVER_DIED):
            self.server.kill()
            self.server.start()

    def stop_server(self) -> None:
        """Have the system stop mongrel2, until :meth:`continue_server`."""
        os.kill(self._server_pid(), signal.SIGSTOP)

    def continue_server(self) -> None:
        """Have it go on."""
        os.kill(self._server_pid(), signal.SIGCONT)

    def _server_pid(self) -> int:
        pid: int | None = self.server.pid
        if pid is None:
            raise Broken("mongrel2 has ended")
        return pid

    def ask(self, path: str) -> bytes:
        """Ask for *path* with a browser of its own; return what is answered. Raises ``Broken`` for no answer."""
        try:
            with Browser(self.front, timeout=self.patience) as browser:
                return browser.get(path).body
        except (OSError, RemoteProtocolError) as error:
            raise Broken(f"{path} was not answered: {error}") from error

    def status(self, timeout: float = 1.0) -> dict[str, Any] | None:
        """Return what the handler says of itself; ``None`` where it says nothing."""
        try:
            return Connector(("127.0.0.1", self.handler.port), timeout=round(timeout * 1000)).status()
        except ControlError:
            return None

    def ready(self) -> bool:
        """Whether the handler says of all connection sets that they are ready."""
        status = self.status()
        return status is not None and all(one["ready"] for one in status["connections"])

    def progress(self, more: int, timeout: float | None = None) -> None:
        """Wait until *more* right answers have come. Raises ``Broken`` where they do not."""
        wanted = self.tally.right + more
        timeout = self.patience if timeout is None else timeout
        self.until(lambda: self.tally.right >= wanted, f"{more} right answers", timeout)

    def until(self, condition: Callable[[], object], what: str, timeout: float | None = None) -> None:
        """Let browsers run until *condition* holds. Raises ``Broken`` where it does not."""
        deadline = time.monotonic() + (self.patience if timeout is None else timeout)
        while not condition():
            if time.monotonic() > deadline:
                raise Broken(f"in vain waited for {what}{self._state()}")
            gevent.sleep(0.01)  # between two looks

    def _state(self) -> str:
        status = self._handler.status if self._handler is not None else None
        if status is not None:
            return f": the handler ended with {status}"
        found = self.status()
        return f"; STATUS says {found}" if found is not None else "; STATUS is not answered"

    def check(self, *, refused: tuple[int, ...] = (), ended: tuple[int, ...] = ()) -> None:
        """Raise ``Broken`` for what must not be in the count.

        Args:
            refused: Statuses that browsers may get instead of an answer.
            ended: Close codes by which WebSockets may end, and a message that was under way with them.
        """
        tally = self.tally
        found = [f"{len(tally.strangers)} answers to strangers: {tally.strangers[0]}"] if tally.strangers else []
        if tally.wrong:
            found.append(f"{len(tally.wrong)} wrong answers: {tally.wrong[0]}")
        # A message goes with its WebSocket: 1012 tells that the handler of old is gone, whenever that was.
        unexplained = [one for one in tally.unexplained() if one.code not in ended or one.code == 1006]
        if unexplained:
            found.append(f"{len(unexplained)} lost without a reason: {dict(Counter(one.why for one in unexplained))}")
        found += [f"{count} answered {status}" for status, count in tally.refused.items() if status not in refused]
        found += [f"{count} WebSockets ended by {code}" for code, count in tally.ended.items() if code not in ended]
        answers = tally.right + len(tally.lost) + sum(tally.refused.values())
        answers += len(tally.strangers) + len(tally.wrong)
        if answers < tally.sent:
            found.append(f"{tally.sent - answers} of {tally.sent} not accounted for")
        if tally.right == 0:
            found.append("nothing was answered")
        if found:
            raise Broken("; ".join(found))


class ReadyWatch:
    """Asks for STATUS while the block runs, and raises ``Broken`` where it said ready while nothing was received.

    Args:
        rig: With browsers that ask all the time.
        seconds: So long a silence under load says that nothing is received.
    """

    def __init__(self, rig: Rig, seconds: float = 2.0) -> None:
        self._rig = rig
        self._seconds = seconds
        self._ready_since: float | None = None
        self._lies: list[float] = []
        self._greenlet = gevent.spawn(self._watch)

    def __enter__(self) -> ReadyWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._greenlet.kill()
        if self._lies and kind is None:
            raise Broken(f"STATUS said ready for {max(self._lies):.1f} s in which nothing was answered")

    def _watch(self) -> None:
        while True:
            ready = self._rig.ready()
            now = time.monotonic()
            if not ready:
                self._ready_since = None
            elif self._ready_since is None:
                self._ready_since = now
            silent = now - max(self._ready_since or now, self._rig.tally.answered)
            if silent > self._seconds:
                self._lies.append(silent)
            gevent.sleep(0.1)  # a look ten times a second


# -- scenarios ---------------------------------------------------------------------------------------------------------


class Run:
    """One run of a scenario, which it makes its rigs with.

    Attributes:
        rigs: All of them.
        notes: Figures that it wants in its line.
    """

    def __init__(self) -> None:
        self.rigs: list[Rig] = []
        self.notes: list[str] = []

    def rig(self, **options: Any) -> Rig:
        """Return a rig to enter."""
        rig = Rig(**options)
        self.rigs.append(rig)
        return rig

    def note(self, text: str) -> None:
        """Have *text* in the line."""
        self.notes.append(text)


@dataclass(frozen=True)
class Scenario:
    """A fault, or several of one kind.

    Attributes:
        name: As it is called on the command line.
        function: Does it; its keyword arguments are its figures. Raises ``Broken`` where something does not hold.
        short: Figures for a run within a few seconds.
        own_mounts: It mounts something, so it needs a mount namespace of its own.
    """

    name: str
    function: Callable[..., None]
    short: dict[str, Any]
    own_mounts: bool

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of a full run."""
        found = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY}


#: All of them by name, as soon as their modules are imported.
SCENARIOS: dict[str, Scenario] = {}


def scenario(*, own_mounts: bool = False, **short: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a scenario of its name; *short* are its figures for a run within a few seconds."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, function, short, own_mounts)
        return function

    return register
