"""One WebSocket as an object that a greenlet receives from and sends to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from os import urandom
from time import monotonic
from typing import TYPE_CHECKING

from gevent.event import AsyncResult, Event
from gevent.timeout import Timeout

from .errors import ConnectionClosed, LocalProtocolError
from .frames import CloseCode, Opcode, build_frame
from .registry import CLOSED, OPEN, Entry, Registry
from .wire import Request

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["WebSocket"]


class WebSocket:
    """A live WebSocket; ``Transceiver.serve(websocket=handler)`` makes one for each and calls ``handler(ws)``.

    One greenlet receives; any may send, ping and close.

    Attributes:
        request: The opening handshake: headers, path, query.
        conn: The connection set that it came in by.
        sid: ``(sender, conn_id)``.
        path: What the handshake asked for.
        subprotocol: What was agreed on, ``None`` for none.
        close_code: After the end, RFC 6455's code as the application sees it: the peer's, or 1006 where no close frame
            came; ``None`` before.
        close_reason: The text beside it.
    """

    def __init__(self, conn: Connection, entry: Entry, request: Request, registry: Registry, max_queue: int) -> None:
        self.conn = conn
        self.request = request
        self.sid = entry.sid
        self.path = entry.path
        self.subprotocol = entry.subprotocol
        self.close_code: int | None = None
        self.close_reason = ""
        self._entry = entry
        self._registry = registry
        self._max_queue = max_queue
        self._messages: deque[str | bytes] = deque()
        self._arrived = Event()
        self._ended = Event()
        self._pings: dict[bytes, AsyncResult] = {}

    @property
    def closed(self) -> bool:
        """True once nothing can be sent any more: a close frame was sent or came, or the connection is gone."""
        return self._entry.state != OPEN

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message: ``str`` for text, ``bytes`` for binary; ``None`` once the connection has ended.

        Messages that came before the end are returned first. Blocks this greenlet.

        Raises:
            TimeoutError: Nothing came for *timeout* seconds.
        """
        while not self._messages:
            if self._ended.is_set():
                return None
            self._arrived.clear()
            if not self._arrived.wait(timeout) and not self._messages:
                raise TimeoutError(f"no message for {timeout} s")
        return self._messages.popleft()

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until the connection ends."""
        while (message := self.receive()) is not None:
            yield message

    def send(self, message: str | bytes) -> None:
        """Send a text message (``str``) or a binary one (bytes).

        Blocks this greenlet while the peer does not read or the pipe to the server is full.

        Raises:
            ConnectionClosed: It has ended, also while this greenlet was blocked; with code and reason.
            SendTimeout: No progress for the Transceiver's ``send_timeout``.
            TypeError: *message* is neither.
        """
        if isinstance(message, str):
            payload, opcode = message.encode(), Opcode.TEXT
        elif isinstance(message, (bytes, bytearray, memoryview)):
            payload, opcode = bytes(message), Opcode.BINARY
        else:
            raise TypeError(f"a message is str or bytes, not {type(message).__name__}")
        self._check_open()
        try:
            self.conn._run(self.conn.sessions.send, [self._entry], payload, opcode)
        except ConnectionClosed as error:
            self._check_open()
            raise ConnectionClosed(error.code, error.reason) from error

    def ping(self, payload: bytes | str | None = None, timeout: float | None = None) -> float:
        """Send a ping, wait for its pong and return the seconds in between. Blocks this greenlet.

        Args:
            payload: At most 125 bytes, not those of a ping that is out already; ``None`` makes eight random ones.

        Raises:
            ConnectionClosed: It ended before the pong came.
            TimeoutError: No pong for *timeout* seconds; ``None`` waits until the connection ends.
            LocalProtocolError: *payload* is too long, or under way.
        """
        data = urandom(8) if payload is None else payload.encode() if isinstance(payload, str) else bytes(payload)
        if data in self._pings:
            raise LocalProtocolError(f"a ping with the payload {data!r} is under way already")
        frame = build_frame(data, Opcode.PING)
        self._check_open()
        answer = self._pings[data] = AsyncResult()
        self._entry.on_pong = self._on_pong
        started = monotonic()
        try:
            self.conn._run(self.conn._writer.write, self.sid[0], self.sid[1], frame)
            try:
                arrived: float | None = answer.get(timeout=timeout)
            except Timeout:
                raise TimeoutError(f"no pong for {timeout} s") from None
        finally:
            self._pings.pop(data, None)
        if arrived is None:
            self._check_open()
            raise ConnectionClosed(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        return arrived - started

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close with a closing handshake; a closed one stays as it is.

        Blocks this greenlet until the peer has answered, or ``close_timeout`` has passed and it was dropped.

        Raises:
            LocalProtocolError: The code may not be sent, or the reason is longer than 123 bytes.
        """
        self._begin_close(code, reason)
        self._ended.wait()

    def _begin_close(self, code: int, reason: str = "") -> None:
        self.conn._run(self.conn.sessions.close, self._entry, code, reason)

    def join(self, group: str) -> None:
        """Join a group for ``Transceiver.broadcast``; raises ``ConnectionClosed`` after the end."""
        try:
            self._registry.join(self.sid, group)
        except KeyError:
            self._check_open()
            raise

    def leave(self, group: str) -> None:
        """Leave a group; nothing happens when it is not in it."""
        self._registry.leave(self.sid, group)

    def _check_open(self) -> None:
        if self._entry.state == OPEN:
            return
        if self.close_code is not None:
            raise ConnectionClosed(self.close_code, self.close_reason)
        if self._entry.state == CLOSED:
            raise ConnectionClosed()
        raise ConnectionClosed(self._entry.close_code, self._entry.close_reason)

    # -- called by the Transceiver -----------------------------------------------------------------------------------

    def _feed(self, request: Request) -> None:
        """Take an event of this connection; never blocks."""
        if request.method == "WEBSOCKET_CLOSE":
            self.close_code = request.close_code
            self.close_reason = request.close_reason
            self._ended.set()
            self._arrived.set()
            for answer in self._pings.values():
                answer.set(None)
        elif len(self._messages) >= self._max_queue:
            reason = f"{self._max_queue} messages wait to be received"
            self.conn.sessions.fail(self._entry, CloseCode.TRY_AGAIN_LATER, reason)
        else:
            text = request._text
            self._messages.append(request.body if text is None else text)
            if not self._arrived.is_set():
                self._arrived.set()

    def _on_pong(self, payload: bytes) -> None:
        answer = self._pings.get(payload)
        if answer is not None and not answer.ready():
            answer.set(monotonic())

    def __repr__(self) -> str:
        state = f"closed {self.close_code}" if self.close_code is not None else self._entry.state
        return f"<WebSocket {self.sid[0]} {self.sid[1]} {self.path}: {state}, {len(self._messages)} messages wait>"
