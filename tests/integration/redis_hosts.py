"""Handler processes that share a registry, and crowds of clients that do, or do not, answer pings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent import subprocess
from gevent.event import Event
from gevent.queue import Queue
from websocket_rig import RawClient

import greentx
from greentx.edge import Mongrel2
from greentx.protocol.websocket.frames import Opcode

PROGRAM = Path(__file__).with_name("redis_program.py")


def wait_for(condition: Callable[[], object], seconds: float = 20.0, what: str = "it") -> None:
    """Let greenlets run until *condition* holds."""
    with gevent.Timeout(seconds, AssertionError(f"{what} did not happen within {seconds} s")):
        while not condition():
            gevent.sleep(0.01)


class Process:
    """One handler process.

    Attributes:
        events: What it told of WebSockets, in order.
        log: What it logged.
    """

    def __init__(self, url: str, mongrel2: Mongrel2, interval: float, mode: str = "shared") -> None:
        entry = mongrel2.handlers[0]
        command = [sys.executable, str(PROGRAM), url, entry.sender, entry.send_spec, entry.recv_spec, str(interval)]
        environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent)}
        self.events: list[dict[str, Any]] = []
        self.log: list[str] = []
        self._answers: Queue[Any] = Queue()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*command, mode], stdin=pipe, stdout=pipe, stderr=pipe, env=environ)
        self._readers = [gevent.spawn(self._read), gevent.spawn(self._read_log)]

    def _read(self) -> None:
        for line in self._process.stdout:
            told = json.loads(line)
            if "answer" in told:
                self._answers.put(told["answer"])
            else:
                self.events.append(told)

    def _read_log(self) -> None:
        for line in self._process.stderr:
            self.log.append(line.decode())

    def ready(self) -> None:
        """Block until it serves."""
        assert self._answers.get(timeout=30) == "ready"

    def ask(self, *command: Any) -> Any:
        """Have it do something, and return what it says."""
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        return self._answers.get(timeout=20)

    def joined(self, others: int) -> bool:
        """Whether it has joined, and knows of so many other processes."""
        return any(f"joined {others} other" in line for line in self.log)

    def said(self, text: str) -> int:
        """How often its log has *text*."""
        return sum(text in line for line in self.log)

    def stop(self) -> None:
        """Have it end in order."""
        self._process.stdin.write(b'["stop"]\n')
        self._process.stdin.flush()
        assert self._process.wait(20) == 0

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; safe to call twice."""
        self._process.kill()
        self._process.wait()
        gevent.joinall(self._readers, timeout=5)
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                file.close()


class Client:
    """A WebSocket that notes what it gets.

    Attributes:
        texts: The text messages, and how often each came.
        code: Of the close frame that it got.
        ended: When its connection had ended.
        pings: How many pings came.
    """

    def __init__(self, mongrel2: Mongrel2, *, answers: bool) -> None:
        self.texts: Counter[bytes] = Counter()
        self.code: int | None = None
        self.ended: float | None = None
        self.pings = 0
        self.answers = answers
        self._raw = RawClient(mongrel2.port)
        self._raw.sock.settimeout(None)
        self._over = Event()
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        while (frame := self._raw.recv()) is not None:
            if frame.opcode == Opcode.PING:
                self.pings += 1
                if self.answers:
                    self._raw.send(frame.payload, Opcode.PONG)
            elif frame.opcode == Opcode.CLOSE:
                self.code = int.from_bytes(frame.payload[:2], "big")
            elif frame.opcode == Opcode.TEXT:
                self.texts[frame.payload] += 1
        self.ended = time.monotonic()

    def send(self, text: bytes) -> None:
        self._raw.send(text)

    def close(self) -> None:
        """End it without a word."""
        self._reader.kill()
        self._raw.close()


@contextlib.contextmanager
def crowd(mongrel2: Mongrel2, count: int, silent: int = 0) -> Iterator[list[Client]]:
    """So many clients, of which so many do not answer pings."""
    clients: list[Client] = []
    try:
        for number in range(count):
            clients.append(Client(mongrel2, answers=number >= silent))
        yield clients
    finally:
        for client in clients:
            client.close()


@contextlib.contextmanager
def processes(url: str, *places: tuple[Mongrel2, str], interval: float = 1.0) -> Iterator[list[Process]]:
    """A process for each Mongrel2 and mode in *places*, which are ready, and know each other where they share one."""
    started: list[Process] = []
    try:
        for mongrel2, mode in places:
            started.append(Process(url, mongrel2, interval, mode))
            started[-1].ready()
        yield started
    finally:
        for one in started:
            one.kill()
