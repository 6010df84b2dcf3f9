"""The WebSockets of one connection set: opening handshake, messages, pings, closing.

Mongrel2 joins fragments and unmasks; it checks nothing else and never sends a frame of its own (probed). What RFC 6455
asks of a server is done here, on entries of the registry::

    handshake -> CONNECTING -- 101 -> OPEN -- close() -> CLOSING -- peer's close, or close_timeout -> CLOSED
                     |                 +-- peer's close: echoed --------------------------------------^
                     +-- refused       +-- protocol error, no pong, notice, server gone --------------^

Whatever ends an OPEN or CLOSING one goes through :meth:`Sessions._finish`, the only place that reports it, once. State
changes come first and sending second, so that a full pipe cannot leave them half done.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic

from gevent.pool import Group

from .errors import GreentxError, RemoteProtocolError
from .frames import CloseCode, Opcode, build_close, build_frame, parse_close, parse_flags, validate_message
from .handshake import Handshake, Refused
from .registry import CLOSING, OPEN, Entry, Registry
from .transport import Context, Writer
from .wire import Request

__all__ = ["MAX_CLOSE_REASON", "Sessions", "WebSocketOptions"]

log = logging.getLogger("greentx.session")

#: Bytes of UTF-8 that fit beside the code into a close frame (RFC 6455, section 5.5).
MAX_CLOSE_REASON = 123

# Messages of one client that may arrive while a callable of the application decides about its handshake.
_MAX_EARLY = 64

# Above this many bytes waiting for a client, its pings are not answered: it does not read.
_MAX_UNREAD = 65536


@dataclass(frozen=True, kw_only=True)
class WebSocketOptions:
    """What an application may say about its WebSockets; see ``Transceiver`` for each."""

    handshake: Handshake = field(default_factory=Handshake)
    on_handshake: Callable[[Request], Refused | None] | None = None
    max_message_size: int | None = 1024 * 1024
    max_queue: int = 256
    close_timeout: float = 10.0
    shared: bool = False

    @property
    def may_block(self) -> bool:
        """True when a callable of the application takes part in the opening handshake."""
        handshake = self.handshake
        return self.on_handshake is not None or any(
            callable(one) for one in (handshake.origins, handshake.subprotocols, handshake.headers)
        )


class Sessions:
    """Runs the WebSocket protocol for one connection set.

    Args:
        context: For the timers.
        writer: Where frames go.
        registry: Where live WebSockets are kept, shared by all connection sets.
        options: The application's.
        emit: Called with each event for the application: a ``Request`` with METHOD ``WEBSOCKET_CONNECT``, ``WEBSOCKET``
            or ``WEBSOCKET_CLOSE``. Must not block.
        name: For logs.
    """

    def __init__(
        self,
        context: Context,
        writer: Writer,
        registry: Registry,
        options: WebSocketOptions,
        emit: Callable[[Request], None],
        *,
        name: str,
    ) -> None:
        self.name = name
        self.failures = 0
        self._writer = writer
        self._registry = registry
        self._options = options
        self._emit = emit
        self.senders: set[str] = set()
        self._connecting: dict[str, list[Request]] = {}
        self._decisions = Group()
        self._closing: deque[Entry] = deque()
        self._context = context
        self._closing_timer = context.timer(options.close_timeout)

    # -- what comes in ---------------------------------------------------------------------------------------------

    def handshake(self, request: Request) -> None:
        """A client asks to be let in (METHOD ``WEBSOCKET_HANDSHAKE``)."""
        stale = self._registry.get(request.sid)
        if stale is not None:  # the server gave the number away again without telling us of the end
            self._finish(stale, CloseCode.ABNORMAL_CLOSURE, "")
        if not self._options.may_block:
            self._decide(request)
            return
        self._connecting[request.conn_id] = []
        self._decisions.spawn(self._decide, request)

    def _decide(self, request: Request) -> None:
        conn_id = request.conn_id
        options = self._options
        try:
            refused = options.on_handshake(request) if options.on_handshake is not None else None
            answer = refused or options.handshake.check(request.headers, request.body)
        except Exception:
            log.exception("%s: the handshake of connection %s for %s failed", self.name, conn_id, request.path)
            answer = Refused(500, body="the server failed\n")
        early = self._connecting.pop(conn_id, None)
        if options.may_block and early is None:
            return  # the client, or the server, has gone in the meantime
        if isinstance(answer, Refused):
            log.info("%s: handshake of connection %s refused with %d", self.name, conn_id, answer.status)
            self._writer.write(request.sender, conn_id, answer.build(), wait=False)
            self._writer.close(request.sender, [conn_id], wait=False)
            return
        entry = Entry(request.sid, request.path)
        entry.state = OPEN
        entry.deflate = answer.deflate
        entry.subprotocol = answer.subprotocol
        self.senders.add(request.sender)
        self._registry.add(entry)
        request.method = "WEBSOCKET_CONNECT"
        request.body = b""
        request._entry = entry
        self._writer.write(request.sender, conn_id, answer.head, wait=False)
        self._emit(request)
        for message in early or ():
            self.message(message)

    def message(self, request: Request) -> None:
        """A frame, or a whole message that the server joined (METHOD ``WEBSOCKET`` with FLAGS)."""
        entry = self._registry.get(request.sid)
        if entry is None:
            self._message_of_unknown(request)
            return
        try:
            opcode, rsvd = parse_flags(_flags(request))
            data, text = validate_message(
                opcode, rsvd, request.body, max_size=self._options.max_message_size, deflate=entry.deflate
            )
            if opcode == Opcode.CLOSE:
                code, reason = parse_close(data)
        except RemoteProtocolError as error:
            self.fail(entry, error.close_code, str(error))
            return
        if opcode == Opcode.CLOSE:
            self._peer_closes(entry, code, reason)
        elif opcode == Opcode.PONG:
            entry.awaits_pong = False
            if entry.on_pong is not None:
                entry.on_pong(data)
        elif entry.state != OPEN:
            pass  # our close frame is out: what the peer sent before it saw that has no reader any more
        elif opcode == Opcode.PING:
            if self._writer.waiting(entry.conn_id) < _MAX_UNREAD:
                self._writer.write(entry.sender, entry.conn_id, build_frame(data, Opcode.PONG), wait=False)
        else:
            request.body = data
            request.opcode = opcode
            request._text = text
            self._emit(request)

    def _message_of_unknown(self, request: Request) -> None:
        early = self._connecting.get(request.conn_id)
        if early is not None:
            if len(early) < _MAX_EARLY:
                early.append(request)
            else:
                del self._connecting[request.conn_id]
                self._writer.close(request.sender, [request.conn_id], wait=False)
                log.warning("%s: connection %s sent too much before its 101", self.name, request.conn_id)
            return
        if self._options.shared:
            self._message_of_another_process(request)
            return
        # It was let in by a process that has gone, or its end crossed this frame: the client has to connect again.
        log.info("%s: frame of unknown WebSocket %s, closing it", self.name, request.conn_id)
        frame = build_frame(build_close(CloseCode.SERVICE_RESTART), Opcode.CLOSE)
        self._writer.write(request.sender, request.conn_id, frame, wait=False)
        self._writer.close(request.sender, [request.conn_id], wait=False)

    def _message_of_another_process(self, request: Request) -> None:
        """Several handlers share the endpoint: the handshake was another's, this message is ours."""
        entry = Entry(request.sid, request.path)
        entry.state = OPEN
        self.senders.add(request.sender)
        self._registry.add(entry)
        request._entry = entry
        self.message(request)

    def _peer_closes(self, entry: Entry, code: int, reason: str) -> None:
        answer = entry.state == OPEN
        self._finish(entry, code, reason)
        if answer:
            payload = build_close(None if code == CloseCode.NO_STATUS_RECEIVED else code)
            self._writer.write(entry.sender, entry.conn_id, build_frame(payload, Opcode.CLOSE), wait=False)
        self._writer.close(entry.sender, [entry.conn_id], wait=False)

    def gone(self, request: Request) -> bool:
        """The server's notice: this client has disconnected. Returns whether it was a WebSocket of ours."""
        if self._connecting.pop(request.conn_id, None) is not None:
            return True
        entry = self._registry.get(request.sid)
        if entry is None:
            return False
        self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "")
        return True

    def lost(self) -> None:
        """The server has gone, and all its connections with it."""
        self._connecting.clear()
        for entry in self._entries():
            self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "the server restarted")

    # -- what goes out ---------------------------------------------------------------------------------------------

    def send(self, entries: list[Entry], payload: bytes, opcode: int, rsvd: int = 0) -> None:
        """Send one frame to some WebSockets of one sender; those that are not OPEN are passed over.

        Text and binary messages (with *rsvd* 0) are compressed where that was agreed on: once for all connections with
        the same parameters. Raises ``LocalProtocolError`` for a frame that RFC 6455 does not allow.
        """
        plain: list[str] = []
        compressed: dict[object, tuple[bytes, list[str]]] = {}
        sender = ""
        is_data = opcode in (Opcode.TEXT, Opcode.BINARY) and not rsvd
        alone = len(entries) == 1
        for entry in entries:
            if entry.state != OPEN:
                continue
            sender = entry.sid[0]
            deflate = entry.deflate
            if deflate is None or not is_data:
                plain.append(entry.sid[1])
            elif alone:
                data, is_compressed = deflate.encode(payload)
                frame = build_frame(data, opcode, 4 if is_compressed else 0)
                try:
                    self._writer.write(sender, entry.sid[1], frame)
                except BaseException:
                    deflate.reset_encoder()  # the peer did not get what the context now refers to
                    raise
            else:
                key = deflate.broadcast_key
                known = compressed.get(key)
                if known is None:
                    data, is_compressed = deflate.encode_alone(payload)
                    known = compressed[key] = (build_frame(data, opcode, 4 if is_compressed else 0), [])
                known[1].append(entry.sid[1])
                if known[0][0] & 0x40:
                    deflate.reset_encoder()
        if plain:
            frame = build_frame(payload, opcode, rsvd)
            if len(plain) == 1:
                self._writer.write(sender, plain[0], frame)
            else:
                self._writer.write_many(sender, plain, frame)
        for frame, conn_ids in compressed.values():
            self._writer.write_many(sender, conn_ids, frame)

    def close(self, entry: Entry, code: int | None = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Begin the closing handshake; the peer's answer, or ``close_timeout``, ends it. Twice is once.

        Raises ``LocalProtocolError`` for a code or reason that may not travel.
        """
        frame = build_frame(build_close(code, reason), Opcode.CLOSE)
        if entry.state != OPEN:
            return
        entry.state = CLOSING
        entry.deadline = monotonic() + self._options.close_timeout
        self._closing.append(entry)
        if len(self._closing) == 1:
            self._watch_closing(self._options.close_timeout)
        self._writer.write(entry.sender, entry.conn_id, frame)

    def fail(self, entry: Entry, code: int, reason: str) -> None:
        """End a connection whose peer broke the protocol, or a bound of ours, with a close frame that says so."""
        self.failures += 1
        log.info("%s: WebSocket %s failed with %d: %s", self.name, entry.conn_id, code, reason)
        was_open = entry.state == OPEN
        self._finish(entry, code, reason)
        if was_open:
            self._send_close(entry, code, reason)
        self._writer.close(entry.sender, [entry.conn_id], wait=False)

    def drop(self, entry: Entry) -> None:
        """End a connection at once, without a closing handshake."""
        self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "")
        self._writer.close(entry.sender, [entry.conn_id], wait=False)

    def ping(self, entries: Iterable[Entry], frame: bytes, sender: str) -> None:
        """One batch of a round of pings: end those that did not answer the last one, send *frame* to the others."""
        awaited: list[str] = []
        silent: list[Entry] = []
        for entry in entries:
            if entry.state != OPEN:
                continue
            if entry.awaits_pong:
                silent.append(entry)
            else:
                entry.awaits_pong = True
                awaited.append(entry.sid[1])
        if awaited:
            self._writer.write_many(sender, awaited, frame)
        for entry in silent:
            self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "ping timeout")
            self._send_close(entry, CloseCode.INTERNAL_ERROR, "ping timeout")
            self._writer.close(entry.sender, [entry.conn_id], wait=False)

    def close_all(self, code: int, reason: str = "") -> None:
        """Send every client a close frame and have the server close behind it; report each end with that code."""
        frame = build_frame(build_close(code, reason), Opcode.CLOSE)
        for sender in self.senders:
            for batch in self._registry.batches(sender):
                entries = batch[:]
                conn_ids = [entry.conn_id for entry in entries if entry.state == OPEN]
                for entry in entries:
                    self._finish(entry, code, reason)
                try:
                    self._writer.write_many(sender, conn_ids, frame)
                    self._writer.close(sender, [entry.conn_id for entry in entries])
                except GreentxError as error:
                    log.warning("%s: %d WebSockets got no close frame: %s", self.name, len(entries), error)

    def stop(self) -> None:
        """End the greenlets and timers; the connections themselves were ended by :meth:`close_all`."""
        self._decisions.kill()
        self._context.unwatch(self._closing_timer)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _entries(self) -> list[Entry]:
        return [entry for sender in self.senders for entry in self._registry.of_sender(sender)]

    def _send_close(self, entry: Entry, code: int, reason: str) -> None:
        short = reason.encode()[:MAX_CLOSE_REASON].decode(errors="ignore")
        frame = build_frame(build_close(code, short), Opcode.CLOSE)
        self._writer.write(entry.sender, entry.conn_id, frame, wait=False)

    def _finish(self, entry: Entry, code: int, reason: str) -> None:
        if self._registry.remove(entry.sid) is None:
            return
        sender, conn_id = entry.sid
        raw = {"METHOD": "WEBSOCKET_CLOSE", "PATH": entry.path}
        event = Request(sender, conn_id, entry.path, raw, b"", "WEBSOCKET_CLOSE")
        event.opcode = Opcode.CLOSE
        event.close_code = int(code)
        event.close_reason = reason
        self._emit(event)

    def _close_overdue(self) -> None:
        """In the hub: give up on peers that did not answer our close frame; one timeout for all keeps them in order."""
        now = monotonic()
        while self._closing and (self._closing[0].state != CLOSING or self._closing[0].deadline <= now):
            entry = self._closing.popleft()
            if entry.state == CLOSING:
                log.info("%s: WebSocket %s did not answer our close frame", self.name, entry.conn_id)
                self.drop(entry)
        if self._closing:
            self._watch_closing(self._closing[0].deadline - now)

    def _watch_closing(self, seconds: float) -> None:
        self._context.unwatch(self._closing_timer)
        self._closing_timer = self._context.timer(max(0.0, seconds))
        self._closing_timer.start(self._close_overdue)

    @property
    def connecting(self) -> int:
        """How many handshakes wait for a callable of the application."""
        return len(self._connecting)


def _flags(request: Request) -> str:
    value = request.header("FLAGS")
    return value if isinstance(value, str) else ""
