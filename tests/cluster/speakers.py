"""Browsers that speak over a WebSocket: numbered messages, whose echoes are counted each, whatever happens to Nodes.

A speaker does not wait for an echo before it says the next thing, so messages are under way at any time. An echo may
come twice where a Node died with the message in its hands; then it is counted as doubled, and never as a loss.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event
from harness import RawClient

from greentx.protocol.websocket.frames import Opcode

__all__ = ["Speaker", "Spoken"]


@dataclass
class Spoken:
    """What became of all that a group of speakers said.

    Attributes:
        opened: WebSockets.
        sent: Messages.
        right: Those whose echo came.
        doubled: Those whose echo came again.
        disordered: Echoes that came for the first time behind a later one's, in words.
        strangers: What came and was never said there, in words.
        lost: Those without an echo: what was said, and when on the monotonic clock.
        ended: WebSockets that the other side ended, by close code; 1006 without a close frame.
        refused: Handshakes that were not accepted, or not answered, in words.
        slowest: Seconds that an echo took, the most.
    """

    opened: int = 0
    sent: int = 0
    right: int = 0
    doubled: int = 0
    disordered: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    lost: list[tuple[str, float]] = field(default_factory=list)
    ended: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


class Speaker:
    """One WebSocket after the other, until it is told to end; each begins where the one before it was ended.

    Args:
        front: Whom it asks: ``host`` and ``port``.
        spoken: Where it counts.
        pause: Seconds between two messages.
        patience: Seconds that it waits for missing echoes at its end.
    """

    _numbers = 0

    def __init__(self, front: Any, spoken: Spoken, *, pause: float = 0.1, patience: float = 15.0) -> None:
        self._front = front
        self._spoken = spoken
        self._pause = pause
        self._patience = patience
        self._ending = Event()
        #: What was said, and when, for which no echo has come.
        self._missing: dict[str, float] = {}

    def end(self) -> None:
        """Have it end when the last echo has come."""
        self._ending.set()

    def run(self) -> None:
        """Speak until :meth:`end`."""
        while not self._ending.is_set():
            try:
                client = RawClient(self._front.port, host=self._front.host)
            except OSError as error:
                self._spoken.refused[type(error).__name__] += 1
                self._ending.wait(0.1)  # between two attempts while nobody accepts
                continue
            with client:
                if client.ended:
                    self._spoken.refused[client.answer.split(b"\r\n", 1)[0].decode("latin-1")] += 1
                    self._ending.wait(0.1)  # as above
                    continue
                self._converse(client)

    def _converse(self, client: RawClient) -> None:
        Speaker._numbers += 1
        name = f"s{Speaker._numbers}"
        self._spoken.opened += 1
        self._missing = {}
        client.sock.settimeout(None)
        listening = gevent.spawn(self._listen, client, name)
        number = 0
        try:
            while not self._ending.is_set() and not listening.ready():
                number += 1
                said = f"{name}-{number}"
                self._missing[said] = time.monotonic()
                self._spoken.sent += 1
                try:
                    client.send(said.encode())
                except OSError:
                    break
                self._ending.wait(self._pause)
            deadline = time.monotonic() + self._patience
            while self._missing and not listening.ready() and time.monotonic() < deadline:
                gevent.sleep(0.01)  # between two looks, with a bound
        finally:
            listening.kill()
            self._spoken.lost += self._missing.items()
            self._missing = {}

    def _listen(self, client: RawClient, name: str) -> None:
        spoken, highest = self._spoken, 0
        seen: set[str] = set()
        code = 1006
        try:
            while (frame := client.recv()) is not None:
                text = bytes(frame.payload).decode("latin-1")
                if frame.opcode == Opcode.PING:
                    client.send(bytes(frame.payload), Opcode.PONG)
                elif frame.opcode == Opcode.CLOSE:
                    code = int.from_bytes(frame.payload[:2], "big") or 1005
                elif text in self._missing:
                    spoken.right += 1
                    spoken.slowest = max(spoken.slowest, time.monotonic() - self._missing.pop(text))
                    seen.add(text)
                    number = int(text.partition("-")[2])
                    if number < highest:
                        spoken.disordered.append(f"{text} behind {highest}")
                    highest = max(highest, number)
                elif text in seen:
                    spoken.doubled += 1
                elif not text.startswith("broadcast"):
                    spoken.strangers.append(f"{name} heard {text[:60]}")
        except OSError:
            pass
        spoken.ended[code] += 1
