"""The pings that an application has sent to one WebSocket, and their pongs."""

from __future__ import annotations

from time import monotonic

from gevent.event import AsyncResult

from ..errors import LocalProtocolError

__all__ = ["Pings"]


class Pings:
    """Those that are out, in order."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[bytes, AsyncResult[float | None]] = {}

    def add(self, payload: bytes) -> AsyncResult[float | None]:
        """One is about to be sent. The result is when its pong came (``time.monotonic()``), ``None`` at the end.

        Raises:
            LocalProtocolError: One with this payload is out already.
        """
        if payload in self._waiting:
            raise LocalProtocolError(f"a ping with the payload {payload!r} is under way already")
        answer: AsyncResult[float | None] = AsyncResult()
        self._waiting[payload] = answer
        return answer

    def forget(self, payload: bytes) -> None:
        """Nobody waits for this one any more."""
        self._waiting.pop(payload, None)

    def on_pong(self, payload: bytes) -> None:
        """A pong has come; in the hub's thread."""
        if payload not in self._waiting:
            return
        # A peer that has several pings to answer may answer the last one alone (RFC 6455, section 5.5.3).
        now = monotonic()
        for sent, answer in list(self._waiting.items()):
            if not answer.ready():
                answer.set(now)
            if sent == payload:
                return

    def end(self) -> None:
        """No pong comes any more; one that was answered just before keeps its time."""
        for answer in self._waiting.values():
            if not answer.ready():
                answer.set(None)
