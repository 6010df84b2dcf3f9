"""The WebSockets of one connection set: opening handshake, messages, pings, closing.

Mongrel2 joins fragments and unmasks; it checks nothing else and never sends a frame of its own (probed). What RFC 6455
asks of a server is done here, on entries of the registry::

    handshake -> CONNECTING -- 101 -> OPEN -- close() -> CLOSING -- peer's close, or close_timeout -> CLOSED
                     |                 +-- peer's close: echoed --------------------------------------^
                     +-- refused       +-- protocol error, no pong, notice, server gone --------------^

Whatever ends an OPEN or CLOSING one goes through :meth:`Sessions._finish`, the only place that reports it, once. State
changes come first and sending second, so that a full pipe cannot leave them half done.

A closed connection is not forgotten at once. The server sends what is queued for it first, for ever where the client
does not read, and frames that the client sent before it knew are still coming in. So for ``close_timeout`` seconds its
frames are ignored, and at the end the server is told to cut it off, which an id that has gone does not mind (probed).

An application may answer handshakes itself (``handshake_events``): :meth:`Sessions.hold` keeps what the client sends
meanwhile, :meth:`Sessions.accept` or :meth:`Sessions.accept_raw` lets it in. Of a *raw* one a library of the
application's reads and writes the frames: they pass unchecked but for their size, and it answers the client's pings.
Our own pings and their pongs stay here, and close frames are looked at in both directions, so that liveness and the end
are the same for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic

from gevent.hub import get_hub
from gevent.pool import Group

from .errors import ConnectionClosed, GreentxError, RemoteProtocolError
from .frames import CloseCode, Opcode, build_close, build_frame, parse_close, parse_flags, validate_message
from .handshake import Accepted, Handshake, Refused, accept_key
from .registry import CLOSED, CLOSING, OPEN, Entry, Registry, Sid
from .transport import Context, Writer
from .wire import CANCEL, Request, batch_conn_ids

__all__ = ["MAX_CLOSE_REASON", "PING_PAYLOAD", "Sessions", "WebSocketOptions"]

log = logging.getLogger("greentx.session")

#: Bytes of UTF-8 that fit beside the code into a close frame (RFC 6455, section 5.5).
MAX_CLOSE_REASON = 123

#: What the payloads of our own pings begin with; their pongs are no business of a raw WebSocket's library.
PING_PAYLOAD = b"greentx "

# Messages of one client that may arrive while a callable of the application decides about its handshake.
_MAX_EARLY = 64

# Above this many bytes waiting for a client, its pings are not answered: it does not read.
_MAX_UNREAD = 65536

# A peer's fault ends its connection so many seconds later: what it sent before may still be answered meanwhile.
_FAULT_DELAY = 0.02

# How long a callable of the application may take to die.
_KILL_SECONDS = 0.5

# WebSockets that are given up in one go: about a millisecond.
_ENDS_AT_ONCE = 128

# How many paths are kept once for all entries that have them.
_MAX_PATHS = 1024


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


class _Opening:
    """A handshake that is being decided about."""

    __slots__ = ("adopted", "early", "held", "request")

    def __init__(self, request: Request, adopted: bool, held: bool = False) -> None:
        self.request = request
        # The application decides, without being asked from here.
        self.held = held
        self.early: list[Request] = []
        # Another process that shares the endpoint got the handshake, and answers it; this one got a message.
        self.adopted = adopted


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

    Attributes:
        failures: How many connections were ended for what their peers did.
        senders: The senders of WebSockets seen so far.
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
        self.senders: dict[str, str] = {}
        self._writer = writer
        self._registry = registry
        self._options = options
        self._emit = emit
        self._paths: dict[str, str] = {}
        self._connecting: dict[Sid, _Opening] = {}
        self._decisions = Group()
        self._stopping = False
        # Each in the order of their times, as the delay is the same for all.
        self._faulty: dict[Sid, tuple[float, Entry, int, str]] = {}
        self._closing: dict[Sid, Entry] = {}
        self._closed: dict[Sid, float] = {}
        # What had been taken of what was sent, when a ping was last found unanswered.
        self._taken: dict[Sid, int] = {}
        self._context = context
        self._fault_timer = context.timer(_FAULT_DELAY, _FAULT_DELAY)
        self._fault_timer_runs = False
        seconds = max(options.close_timeout / 8, 0.01)
        self._timer = context.timer(seconds, seconds)
        self._timer_runs = False

    # -- what comes in ---------------------------------------------------------------------------------------------

    def handshake(self, request: Request) -> None:
        """A client asks to be let in (METHOD ``WEBSOCKET_HANDSHAKE``)."""
        self._forget_stale(request.sid)
        self._open(_Opening(request, adopted=False))

    def _forget_stale(self, sid: Sid) -> None:
        stale = self._registry.get(sid)
        if stale is not None:  # the server gave the number away again without telling us of the end
            self._finish(stale, CloseCode.ABNORMAL_CLOSURE, "")
        self._closed.pop(sid, None)

    def _open(self, opening: _Opening) -> None:
        self._connecting[opening.request.sid] = opening
        if self._options.may_block and not self._stopping:
            self._decisions.spawn(self._decide, opening)
        else:
            self._decide(opening)

    def _decide(self, opening: _Opening) -> None:
        request = opening.request
        sid = request.sid
        try:
            answer = self._judge(opening)
        except Exception:
            log.exception("%s: the handshake of connection %s for %s failed", self.name, sid[1], request.path)
            answer = Refused(500, body="the server failed\n")
        if self._connecting.get(sid) is not opening:
            return  # the client, or the server, has gone in the meantime
        del self._connecting[sid]
        if isinstance(answer, Refused):
            self._refuse(opening, answer)
            return
        entry = self._enter(request)
        entry.deflate = answer.deflate
        entry.subprotocol = answer.subprotocol
        request.method = "WEBSOCKET_CONNECT"
        request.body = b""
        request._entry = entry
        if not opening.adopted:
            self._writer.write(sid[0], sid[1], answer.head, wait=False)
        self._emit(request)
        for message in opening.early:
            self.message(message)

    def _enter(self, request: Request) -> Entry:
        sender, conn_id = request.sid
        sender = self.senders.setdefault(sender, sender)
        path = request.path
        paths = self._paths
        path = paths.setdefault(path, path) if len(paths) < _MAX_PATHS else paths.get(path, path)
        entry = Entry((sender, conn_id), path)
        entry.state = OPEN
        self._registry.add(entry)
        return entry

    def _judge(self, opening: _Opening, handshake: Handshake | None = None) -> Accepted | Refused:
        if self._stopping:
            return Refused(503, body="the server is going away\n")
        request = opening.request
        options = self._options
        accept = request.body
        if opening.adopted:
            key = request.header("sec-websocket-key")
            accept = accept_key(key) if isinstance(key, str) and key.isascii() else b""
        answer = (handshake or options.handshake).check(request.headers, accept)
        if isinstance(answer, Refused) or options.on_handshake is None:
            return answer
        refused = options.on_handshake(request)
        if refused is not None and not isinstance(refused, Refused):
            raise TypeError(f"on_handshake returned {refused!r}: it returns None, or a Refused")
        return refused or answer

    def _refuse(self, opening: _Opening, answer: Refused) -> None:
        sender, conn_id = opening.request.sid
        log.info("%s: handshake of connection %s refused with %d", self.name, conn_id, answer.status)
        if not opening.adopted:
            self._writer.write(sender, conn_id, answer.build(), wait=False)
        self._hang_up(opening.request.sid)

    # -- handshakes that the application answers -------------------------------------------------------------------

    def hold(self, request: Request) -> None:
        """Keep what this client sends until :meth:`accept`, :meth:`accept_raw` or :meth:`release`."""
        self._forget_stale(request.sid)
        self._connecting[request.sid] = _Opening(request, adopted=False, held=True)

    def check(self, request: Request, handshake: Handshake | None = None) -> Accepted | Refused:
        """Say what is to be answered to a held handshake; *handshake* stands in for the Transceiver's. Sends nothing.

        Blocks as the Transceiver's ``on_handshake`` does, and raises what that raises.
        """
        return self._judge(_Opening(request, adopted=False, held=True), handshake)

    def accept(
        self, request: Request, answer: Accepted, receiver: Callable[[Entry], Callable[[Request], None]]
    ) -> None:
        """Let a held client in: send the 101; its messages and its end go to what *receiver* returns. Never blocks.

        Raises ``ConnectionClosed`` when it has gone, or was answered otherwise, or the Transceiver stops.
        """
        opening = self._take(request)
        entry = self._enter(request)
        entry.deflate = answer.deflate
        entry.subprotocol = answer.subprotocol
        entry.on_event = receiver(entry)
        self._begin(opening, answer.head)

    def accept_raw(self, request: Request, head: bytes, receive: Callable[[Request], None]) -> Entry:
        """Let a held client in with the 101 that a library of the application's wrote; its frames are raw from now on.

        Args:
            head: The whole answer, up to the first frame.
            receive: Called with each message (FLAGS and body as they came) and with the end. Must not block.

        Raises ``ConnectionClosed`` as :meth:`accept` does.
        """
        opening = self._take(request)
        entry = self._enter(request)
        entry.raw = True
        entry.on_event = receive
        self._begin(opening, head)
        return entry

    def _take(self, request: Request) -> _Opening:
        if self._stopping:
            raise ConnectionClosed(CloseCode.GOING_AWAY, "the server is going away")
        opening = self._connecting.get(request.sid)
        if opening is None or opening.request is not request:
            raise ConnectionClosed(CloseCode.ABNORMAL_CLOSURE, "the client has gone, or was answered already")
        del self._connecting[request.sid]
        return opening

    def _begin(self, opening: _Opening, head: bytes) -> None:
        sender, conn_id = opening.request.sid
        self._writer.write(sender, conn_id, head, wait=False)
        for message in opening.early:
            self.message(message)

    def release(self, sid: Sid) -> None:
        """The application closes a held client's connection, without letting it in; others stay as they are."""
        if self._connecting.pop(sid, None) is not None:
            self._closed[sid] = monotonic() + self._options.close_timeout
            self._watch()

    # -- messages --------------------------------------------------------------------------------------------------

    def message(self, request: Request) -> None:
        """A frame, or a whole message that the server joined (METHOD ``WEBSOCKET`` with FLAGS)."""
        entry = self._registry.get(request.sid)
        if entry is None:
            self._message_of_unknown(request)
            return
        if entry.sid in self._faulty:
            return
        if entry.raw:
            self._raw_message(entry, request)
            return
        try:
            opcode, rsvd = parse_flags(_flags(request))
            if entry.state != OPEN and opcode not in (Opcode.CLOSE, Opcode.PONG):
                return  # our close frame is out: what the peer sent before it saw that has no reader any more
            data, text = validate_message(
                opcode, rsvd, request.body, max_size=self._options.max_message_size, deflate=entry.deflate
            )
            if opcode == Opcode.CLOSE:
                code, reason = parse_close(data)
        except RemoteProtocolError as error:
            self._fault(entry, error.close_code, str(error))
            return
        if opcode == Opcode.CLOSE:
            self._peer_closes(entry, code, reason)
        elif opcode == Opcode.PONG:
            entry.awaits_pong = False
            if entry.on_pong is not None:
                entry.on_pong(data)
        elif opcode == Opcode.PING:
            self._answer_ping(entry.sid, data)
        else:
            request.body = data
            request.opcode = opcode
            request._text = text
            (entry.on_event or self._emit)(request)

    def _raw_message(self, entry: Entry, request: Request) -> None:
        body = request.body
        limit = self._options.max_message_size
        try:
            opcode, rsvd = parse_flags(_flags(request))
            if opcode == Opcode.CLOSE:
                validate_message(opcode, rsvd, body, max_size=None)
                self._peer_closes(entry, *parse_close(body))
                return
            if limit is not None and len(body) > limit:
                raise RemoteProtocolError(
                    f"message is {len(body)} bytes, limit {limit}", close_code=CloseCode.MESSAGE_TOO_BIG
                )
        except RemoteProtocolError as error:
            self._fault(entry, error.close_code, str(error))
            return
        if opcode == Opcode.PONG:
            entry.awaits_pong = False
            if body.startswith(PING_PAYLOAD):
                return
        if entry.state == OPEN and entry.on_event is not None:
            request.opcode = opcode
            entry.on_event(request)

    def _answer_ping(self, sid: Sid, payload: bytes) -> None:
        if self._writer.waiting(sid[1]) < _MAX_UNREAD:
            self._writer.write(sid[0], sid[1], build_frame(payload, Opcode.PONG), wait=False)

    def _message_of_unknown(self, request: Request) -> None:
        sid = request.sid
        opening = self._connecting.get(sid)
        if opening is not None:
            if len(opening.early) < _MAX_EARLY:
                opening.early.append(request)
            else:
                del self._connecting[sid]
                log.warning("%s: connection %s sent too much before its 101", self.name, sid[1])
                self._hang_up(sid)
        elif sid in self._closed:
            pass  # sent before the client saw that it is over
        elif self._options.shared:
            self._message_of_another_process(request)
        else:
            # It was let in by a process that has gone: the client has to connect again.
            log.info("%s: frame of unknown WebSocket %s, closing it", self.name, sid[1])
            self._send_close(sid, CloseCode.SERVICE_RESTART, "")
            self._hang_up(sid)

    def _message_of_another_process(self, request: Request) -> None:
        """Several handlers share the endpoint: the handshake was another's, this message is ours.

        Every message repeats the headers of the handshake (probed), so it can be judged here, too: the other process
        may be about to refuse it.
        """
        try:
            opcode, rsvd = parse_flags(_flags(request))
        except RemoteProtocolError:
            opcode, rsvd = Opcode.CLOSE, 0
        if opcode == Opcode.PING and not rsvd:
            self._answer_ping(request.sid, request.body)
        elif opcode == Opcode.CLOSE:
            self._send_close(request.sid, None, "")
            self._hang_up(request.sid)
        elif opcode != Opcode.PONG:
            raw = {name: value for name, value in request._raw.items() if name not in ("FLAGS", b"FLAGS")}
            connect = Request(request.sender, request.conn_id, request.path, raw, b"", "WEBSOCKET_CONNECT")
            opening = _Opening(connect, adopted=True)
            opening.early.append(request)
            self._open(opening)

    def _peer_closes(self, entry: Entry, code: int, reason: str) -> None:
        answer = entry.state == OPEN
        self._finish(entry, code, reason)
        if answer:
            self._send_close(entry.sid, None if code == CloseCode.NO_STATUS_RECEIVED else code, "")
        self._hang_up(entry.sid)

    def gone(self, request: Request) -> bool:
        """The server's notice: this client has disconnected. Returns whether it was a WebSocket of ours."""
        sid = request.sid
        known = self._connecting.pop(sid, None) is not None or self._closed.pop(sid, None) is not None
        entry = self._registry.get(sid)
        if entry is None:
            return known
        fault = self._faulty.get(sid)
        if fault is not None:
            self._finish(entry, fault[2], fault[3])
        else:
            self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "")
        return True

    def lost(self) -> None:
        """The server has gone, and all its connections with it."""
        self._connecting.clear()
        self._closed.clear()
        for entry in self._entries():
            self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "the server restarted")

    # -- what goes out ---------------------------------------------------------------------------------------------

    def send(self, entries: list[Entry], payload: bytes, opcode: int, rsvd: int = 0) -> None:
        """Send one frame to some WebSockets of one sender; those that are not OPEN are passed over.

        Text and binary messages (with *rsvd* 0) are compressed where that was agreed on: once for all connections with
        the same parameters. To a single one this blocks while its peer does not read. Of several, one that left more
        than ``OUTBOX_LIMIT`` bytes unread is ended (1013), so that it holds up neither the others nor the memory.

        Raises ``LocalProtocolError`` for a frame that RFC 6455 does not allow.
        """
        if len(entries) == 1:
            self._send_to_one(entries[0], payload, opcode, rsvd)
        else:
            self.broadcast(entries, payload, opcode, rsvd)

    def broadcast(self, entries: list[Entry], payload: bytes, opcode: int, rsvd: int = 0) -> None:
        """As :meth:`send` to several, also where there is but one: nobody's reading is waited for."""
        is_data = opcode in (Opcode.TEXT, Opcode.BINARY) and not rsvd
        plain: list[str] = []
        compressed: dict[object, tuple[bytes, list[str]]] = {}
        sender = ""
        for entry in entries:
            if entry.state != OPEN:
                continue
            sender, conn_id = entry.sid
            deflate = entry.deflate
            if deflate is None or not is_data:
                plain.append(conn_id)
                continue
            key = deflate.broadcast_key
            known = compressed.get(key)
            if known is None:
                data, is_compressed = deflate.encode_alone(payload)
                known = compressed[key] = (build_frame(data, opcode, 4 if is_compressed else 0), [])
            known[1].append(conn_id)
            if known[0][0] & 0x40:
                deflate.reset_encoder()
        slow: list[str] = []
        if plain:
            slow += self._writer.write_many(sender, plain, build_frame(payload, opcode, rsvd))
        for frame, conn_ids in compressed.values():
            slow += self._writer.write_many(sender, conn_ids, frame)
        for conn_id in slow:
            lagging = self._registry.get((sender, conn_id))
            if lagging is not None:
                self.fail(lagging, CloseCode.TRY_AGAIN_LATER, "what was broadcast is not read")

    def _send_to_one(self, entry: Entry, payload: bytes, opcode: int, rsvd: int) -> None:
        if entry.state != OPEN:
            return
        is_data = opcode in (Opcode.TEXT, Opcode.BINARY) and not rsvd
        sender, conn_id = entry.sid
        deflate = entry.deflate
        if deflate is None or not is_data:
            self._writer.write(sender, conn_id, build_frame(payload, opcode, rsvd))
            return
        if self._writer.pipe_full:
            # What waits there may yet be taken back, when its greenlet is killed or tired: do not refer to it.
            deflate.reset_encoder()
        data, is_compressed = deflate.encode(payload)
        try:
            self._writer.write(sender, conn_id, build_frame(data, opcode, 4 if is_compressed else 0))
        except BaseException:
            deflate.reset_encoder()  # the peer did not get what the context now refers to
            raise

    def close(self, entry: Entry, code: int | None = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Begin the closing handshake; the peer's answer, or ``close_timeout``, ends it. Twice is once.

        Raises ``LocalProtocolError`` for a code or reason that may not travel.
        """
        frame = build_frame(build_close(code, reason), Opcode.CLOSE)
        if entry.state != OPEN:
            return
        entry.state = CLOSING
        entry.close_code = int(CloseCode.NO_STATUS_RECEIVED if code is None else code)
        entry.close_reason = reason
        entry.deadline = monotonic() + self._options.close_timeout
        self._closing[entry.sid] = entry
        self._watch()
        self._writer.write(entry.sid[0], entry.sid[1], frame, wait=False)

    def fail(self, entry: Entry, code: int, reason: str) -> None:
        """End a connection whose peer broke the protocol, or a bound of ours, with a close frame that says so."""
        if entry.state == CLOSED:
            return
        self.failures += 1
        log.info("%s: WebSocket %s failed with %d: %s", self.name, entry.conn_id, code, reason)
        was_open = entry.state == OPEN
        self._finish(entry, code, reason)
        if was_open:
            self._send_close(entry.sid, code, reason)
        self._hang_up(entry.sid)

    def _fault(self, entry: Entry, code: int, reason: str) -> None:
        """The peer broke the protocol: nothing of it counts any more; fail it when what came before was answered."""
        self._faulty[entry.sid] = (monotonic() + _FAULT_DELAY, entry, code, reason)
        if not self._fault_timer_runs:
            self._fault_timer_runs = True
            self._fault_timer.again(self._fail_faulty)

    def ping(self, entries: Iterable[Entry], frame: bytes, sender: str, *, judge: bool = True) -> int:
        """One batch of a round of pings: end those that did not answer the last one, send *frame* to the others.

        Returns how many were ended.

        With *judge* false, and where several processes share the endpoint, so that pongs scatter over them, nobody is
        ended. A peer that has not taken all it was sent, but goes on taking it, has not come to the ping yet: it lives.
        Raises what the writer raises; nobody is then held to have been pinged.
        """
        judge = judge and not self._options.shared
        pinged: list[Entry] = []
        again: list[str] = []
        silent: list[Entry] = []
        for entry in entries:
            if entry.state != OPEN:
                continue
            if not entry.awaits_pong:
                entry.awaits_pong = True
                pinged.append(entry)
            elif not judge or self._takes(entry):
                again.append(entry.sid[1])
            else:
                silent.append(entry)
        if pinged or again:
            try:
                self._writer.write_many(sender, [entry.sid[1] for entry in pinged] + again, frame)
            except GreentxError:
                for entry in pinged:
                    entry.awaits_pong = False
                raise
        for entry in silent:
            if entry.state == OPEN and entry.awaits_pong:
                self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "ping timeout")
                self._send_close(entry.sid, CloseCode.INTERNAL_ERROR, "ping timeout")
                self._hang_up(entry.sid)
        return len(silent)

    def _takes(self, entry: Entry) -> bool:
        taken = self._writer.confirmed(entry.sid[1])
        if taken is None:
            return False
        before = self._taken.get(entry.sid)
        self._taken[entry.sid] = taken
        return taken != before

    def close_all(self, code: int, reason: str = "") -> None:
        """Send every client a close frame and have the server close behind it; report each end with that code.

        From then on handshakes are refused, with 503. Blocks this greenlet while the pipe to the server is full.
        """
        self._stopping = True
        self._decisions.kill(block=False)
        for opening in list(self._connecting.values()):
            if not opening.held:
                self._decide(opening)
        frame = build_frame(build_close(code, reason), Opcode.CLOSE)
        for sender in list(self.senders):
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
        self._decisions.kill(timeout=_KILL_SECONDS)
        self._timer_runs = False
        for timer in (self._fault_timer, self._timer):
            self._context.unwatch(timer)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _entries(self) -> list[Entry]:
        return [entry for sender in self.senders for entry in self._registry.of_sender(sender)]

    def _send_close(self, sid: Sid, code: int | None, reason: str) -> None:
        short = reason.encode()[:MAX_CLOSE_REASON].decode(errors="ignore")
        self._writer.write(sid[0], sid[1], build_frame(build_close(code, short), Opcode.CLOSE), wait=False)

    def _hang_up(self, sid: Sid) -> None:
        """Have the server close a connection behind what waits for it, and see to it that it does."""
        self._writer.close(sid[0], [sid[1]], wait=False)
        self._closed[sid] = monotonic() + self._options.close_timeout
        self._watch()

    def _finish(self, entry: Entry, code: int, reason: str) -> None:
        sid = entry.sid
        if self._registry.remove(sid) is None:
            return
        self._closing.pop(sid, None)
        self._faulty.pop(sid, None)
        self._taken.pop(sid, None)
        entry.close_code = int(code)
        entry.close_reason = reason
        raw = {"METHOD": "WEBSOCKET_CLOSE", "PATH": entry.path}
        event = Request(sid[0], sid[1], entry.path, raw, b"", "WEBSOCKET_CLOSE")
        event.opcode = Opcode.CLOSE
        event.close_code = entry.close_code
        event.close_reason = reason
        (entry.on_event or self._emit)(event)

    # -- timers, in the hub ----------------------------------------------------------------------------------------

    def _fail_faulty(self) -> None:
        now = monotonic()
        for due, entry, code, reason in list(self._faulty.values()):
            if due > now:
                break
            self.fail(entry, code, reason)
        if not self._faulty:
            self._fault_timer_runs = False
            self._fault_timer.stop()

    def _watch(self) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            self._timer.again(self._close_overdue)

    def _go_on_closing(self) -> None:
        if self._timer_runs and self._context.open:
            self._close_overdue()

    def _close_overdue(self) -> None:
        """Give up on peers that did not answer our close frame, and on those that do not read what they are sent."""
        now = monotonic()
        overdue: list[Sid] = []
        for entry in list(islice(self._closing.values(), _ENDS_AT_ONCE)):
            if entry.deadline > now:
                break
            log.info("%s: WebSocket %s did not answer our close frame", self.name, entry.conn_id)
            self._finish(entry, CloseCode.ABNORMAL_CLOSURE, "")
            overdue.append(entry.sid)
        for sid, deadline in list(islice(self._closed.items(), _ENDS_AT_ONCE)):
            if deadline > now:
                break
            del self._closed[sid]
            overdue.append(sid)
        if len(overdue) >= _ENDS_AT_ONCE:  # there may be more: when others had their turn
            get_hub().loop.run_callback(self._go_on_closing)
        by_sender: dict[str, list[str]] = {}
        for sender, conn_id in overdue:
            self._writer.forget(conn_id)
            by_sender.setdefault(sender, []).append(conn_id)
        for sender, conn_ids in by_sender.items():
            for batch in batch_conn_ids(conn_ids):
                self._writer.control(sender, batch, CANCEL)
        if not self._closing and not self._closed:
            self._timer_runs = False
            self._timer.stop()

    @property
    def connecting(self) -> int:
        """How many handshakes wait for a callable of the application."""
        return len(self._connecting)


def _flags(request: Request) -> str:
    value = request.header("FLAGS")
    return value if isinstance(value, str) else ""
