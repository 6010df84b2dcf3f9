"""The WebSockets of one connection set, as the rest of the handler side sees them.

What RFC 6455 asks of a server is decided in :mod:`greentx.protocol.websocket.machine`, where the table of states is.
Here it is carried out: :mod:`greentx.handler.openings` runs opening handshakes, :mod:`greentx.handler.established` what
comes after them, :mod:`greentx.handler.relayed` those of another process; this module puts them together, and sends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..errors import ConnectionClosed, GreentxError
from ..protocol.bounds import Queued
from ..protocol.flow import SLOW_POLICIES
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode, Opcode, build_close, build_frame, build_head
from ..protocol.websocket.handshake import Accepted, Handshake, Refused
from ..protocol.websocket.machine import DELIVER, MAX_CLOSE_REASON, NOTHING, PING_PAYLOAD, Machine, allowed_bits, pack
from ..protocol.websocket.registry import OPEN, Entry, Registry, Sid
from ..transport import Context, Placed, Writer
from .elsewhere import Elsewhere
from .established import Established
from .openings import Openings
from .relayed import Relayed

__all__ = ["MAX_CLOSE_REASON", "PING_PAYLOAD", "WebSocketOptions", "WebSockets"]

log = logging.getLogger("greentx.session")

# Plain numbers: a look into an enum class costs more than the comparison, for each message that is sent.
_TEXT = int(Opcode.TEXT)
_BINARY = int(Opcode.BINARY)


@dataclass(frozen=True, kw_only=True)
class WebSocketOptions:
    """What an application may say about its WebSockets; see ``Transceiver`` for each."""

    handshake: Handshake = field(default_factory=Handshake)
    on_handshake: Callable[[Request], Refused | None] | None = None
    max_message_size: int | None = 1024 * 1024
    close_timeout: float = 10.0
    handshake_timeout: float | None = 10.0
    shared: bool = False
    slow_policy: str = "close"

    def __post_init__(self) -> None:
        if self.slow_policy not in SLOW_POLICIES:
            raise ValueError(f"slow_policy is one of {', '.join(SLOW_POLICIES)}; not {self.slow_policy!r}")

    @property
    def may_block(self) -> bool:
        """True when the opening handshake calls something of the application's."""
        handshake = self.handshake
        return self.on_handshake is not None or any(
            callable(one) for one in (handshake.origins, handshake.subprotocols, handshake.headers)
        )


class WebSockets:
    """Runs the WebSocket protocol for one connection set.

    Args:
        context: For the timers.
        writer: Where frames go.
        registry: Where live WebSockets are kept, shared by all connection sets.
        options: The application's.
        queued: What bounds the messages that wait for one.
        emit: Called with each event for the application: a ``Request`` with METHOD ``WEBSOCKET_CONNECT``, ``WEBSOCKET``
            or ``WEBSOCKET_CLOSE``. Must not block.
        ended: Called with each ``WEBSOCKET_CLOSE`` before that, whoever receives it. Must not block.
        name: For logs.

    Attributes:
        options, queued: As given.
        relayed: Those whose protocol another process runs.
        elsewhere: Those that another process on the same handler entry let in.
        senders: The senders of WebSockets seen so far.
    """

    def __init__(
        self,
        context: Context,
        writer: Writer,
        registry: Registry,
        options: WebSocketOptions,
        queued: Queued,
        emit: Callable[[Request], None],
        *,
        ended: Callable[[Request], None],
        name: str,
    ) -> None:
        self.options = options
        self.queued = queued
        # What decides has no reference to what does I/O.
        # Its parts each call only those before them: rules, the established ones, the opening ones, the relayed ones.
        self._writer = writer
        self._registry = registry
        self._emit = emit
        self._machine = Machine(max_size=options.max_message_size, shared=options.shared)
        self._established = Established(
            context,
            writer,
            registry,
            self._machine,
            emit,
            ended=ended,
            close_timeout=options.close_timeout,
            name=name,
        )
        self._openings = Openings(
            self._established,
            self._machine,
            writer,
            handshake=options.handshake,
            on_handshake=options.on_handshake,
            may_block=options.may_block,
            timeout=options.handshake_timeout,
            queued=queued,
            emit=emit,
        )
        self.relayed = Relayed(self._established, emit)
        self.elsewhere = Elsewhere(context, self._established, self._openings, self._machine, registry, emit)
        # The same dict: the pinger walks through it for each round.
        self.senders = self._established.senders

    @property
    def failures(self) -> int:
        """How many connections were ended for what their peers did."""
        return self._established.failures

    @property
    def connecting(self) -> int:
        """How many handshakes wait for the application."""
        return len(self._openings)

    def __repr__(self) -> str:
        return f"<WebSockets: {self._openings!r}, {self._established!r}>"

    # -- opening handshakes ------------------------------------------------------------------------------------------

    def handshake(self, request: Request) -> None:
        """A client asks to be let in (METHOD ``WEBSOCKET_HANDSHAKE``)."""
        self._openings.begin(request)

    def hold(self, request: Request) -> None:
        """Keep what this client sends until it is accepted by one of the methods below, or :meth:`release`."""
        self._openings.hold(request)

    def check(self, request: Request, handshake: Handshake | None = None) -> Accepted | Refused:
        """Say what is to be answered to a held handshake; *handshake* stands in for the Transceiver's. Sends nothing.

        Blocks as the Transceiver's ``on_handshake`` does, and raises what that raises.
        """
        return self._openings.check(request, handshake)

    def accept(
        self, request: Request, answer: Accepted, receiver: Callable[[Entry], Callable[[Request], None]]
    ) -> None:
        """Let a held client in: send the 101; its messages and its end go to what *receiver* returns. Never blocks.

        Raises ``ConnectionClosed`` when it has gone, or was answered otherwise, and when the Transceiver stops: then
        the client has been answered with 503.
        """
        self._openings.let_in(
            request, answer.head, receiver, subprotocol=answer.subprotocol, deflate=answer.deflate, own=False
        )

    def accept_raw(
        self, request: Request, head: bytes, receive: Callable[[Request], None], *, subprotocol: str | None = None
    ) -> Entry:
        """Let a held client in with the 101 that a library of the application's wrote; its frames are raw from now on.

        Args:
            head: The whole answer, up to the first frame.
            receive: Called with each message (FLAGS and body as they came) and with the end. Must not block.
            subprotocol: What the head agrees on.

        Raises ``ConnectionClosed`` as :meth:`accept` does.
        """
        return self._openings.let_in(
            request, head, lambda entry: receive, subprotocol=subprotocol, raw_bits=allowed_bits(head)
        )

    def accept_own(
        self, request: Request, head: bytes, subprotocol: str | None, receive: Callable[[Request], None] | None
    ) -> None:
        """Let a held client in with the 101 that the application wrote itself; its events go where all events go.

        Args:
            head: As for :meth:`accept_raw`.
            subprotocol: What the head agrees on.
            receive: Given, the frames are raw and go there, as for :meth:`accept_raw`: the head agrees on extensions.

        Raises ``ConnectionClosed`` as :meth:`accept` does.
        """
        if receive is None:
            self._openings.let_in(request, head, None, subprotocol=subprotocol)
        else:
            self._openings.let_in(
                request, head, lambda entry: receive, subprotocol=subprotocol, raw_bits=allowed_bits(head)
            )

    def release(self, request: Request) -> None:
        """The application closes a held client's connection, without letting it in; others stay as they are."""
        if self._openings.forget(request.sid) and request.carrier is None:
            self._established.expect_end(request.sid)

    # -- what comes in -----------------------------------------------------------------------------------------------

    def message(self, request: Request) -> bool:
        """A frame, or a whole message that the server joined (METHOD ``WEBSOCKET`` with FLAGS).

        Returns whether the caller is to emit it as an event: the caller knows its size in bytes.
        """
        entry = self._registry.get((request.sender, request.conn_id))
        if entry is None:
            self._openings.message(request)
            return False
        step = self._machine.message(entry, request)
        # What carry_out() would do, without calling it: nearly every message comes this way.
        if step is DELIVER:
            if entry.on_event is None:
                return True
            entry.on_event(request)
        elif step is not NOTHING:
            self._established.carry_out(entry, step, request)
        return False

    def gone(self, request: Request) -> bool:
        """The server's notice: this client has disconnected. Returns whether it was a WebSocket of ours."""
        sid = request.sid
        if self.elsewhere.gone_before_news(sid):
            return True
        # Both are asked: a number that was given away again may be known from its last client, too.
        was_opening = self._openings.forget(sid)
        was_over = self._established.has_gone(sid)
        entry = self._registry.get(sid)
        if entry is None or entry.carrier is not None:
            return was_opening or was_over
        event = self._machine.gone(entry)
        if event is not None:
            self._established.report_end(entry, event)
        return True

    def cancelled(self, sid: Sid) -> None:
        """The application had the server end a connection at once, whatever it was."""
        # Mongrel2 gives no notice of an end that it was told to make (probed): this is all that is heard of it.
        self._openings.forget(sid)
        self._established.has_gone(sid)
        entry = self._registry.get(sid)
        if entry is not None:
            self._established.end(entry, CloseCode.ABNORMAL_CLOSURE, "cancelled")

    def end(self, conn_id: str, code: int, reason: str) -> None:
        """The server is told to end a connection at once: report that of a WebSocket, as ended with *code*."""
        for sender in self.senders:
            entry = self._registry.get((sender, conn_id))
            if entry is not None:
                self._established.end(entry, code, reason)

    def lost(self) -> None:
        """The server has gone, and all its connections with it."""
        self._openings.lost()
        self._established.lost()

    # -- what goes out -----------------------------------------------------------------------------------------------

    def send(self, entries: list[Entry], payload: bytes, opcode: int, rsvd: int = 0) -> None:
        """Send one frame to some WebSockets of one sender; those that are not OPEN are skipped.

        Text and binary messages (with *rsvd* 0) are compressed where that was agreed on: once for all connections with
        the same parameters. To a single one this blocks while its peer does not read. Of several, one that leaves too
        much unread for too long is treated as ``slow_policy`` says: it holds up neither the others nor the memory.

        Raises ``LocalProtocolError`` for a frame that RFC 6455 does not allow.
        """
        if len(entries) == 1:
            self.send_to(entries[0], payload, opcode, rsvd)
            return
        for entry in entries:
            if entry.carrier is not None:
                self.send_to(entry, payload, opcode, rsvd)
        self.broadcast(entries, payload, opcode, rsvd).wait()

    def send_to(self, entry: Entry, payload: bytes, opcode: int, rsvd: int = 0, *, wait: bool = True) -> None:
        """As :meth:`send` to a single one; with *wait* false it never blocks."""
        if entry.state != OPEN:
            return
        sender, conn_id = entry.sid
        if entry.carrier is not None:
            if rsvd or opcode not in (_TEXT, _BINARY):
                build_head(len(payload), opcode, rsvd)  # which says whether it can be sent
            entry.carrier.send(payload, opcode, rsvd)
            return
        deflate = entry.deflate
        if deflate is None or rsvd or opcode not in (_TEXT, _BINARY):
            self._writer.write(sender, conn_id, payload, head=build_head(len(payload), opcode, rsvd), wait=wait)
            return
        # See deflate.reset_encoder(): forgetting is allowed at any time, and costs some bytes only.
        if self._writer.pipe_full:
            # What waits there may yet be withdrawn, when its greenlet is killed or has waited too long: do not refer
            # to it.
            deflate.reset_encoder()
        # Compressed before this greenlet may wait, and written without a switch between: the order of the window.
        data, is_compressed = deflate.encode(payload)
        try:
            head = build_head(len(data), opcode, 4 if is_compressed else 0)
            self._writer.write(sender, conn_id, data, head=head, wait=wait)
        except BaseException:  # also killed while it waited; raised again
            deflate.reset_encoder()  # the peer may not have got what the context now refers to
            raise

    def broadcast(self, entries: list[Entry], payload: bytes, opcode: int, rsvd: int = 0) -> Placed:
        """As :meth:`send` to several, also where there is but one: it does not wait for anybody to read.

        Never blocks: the result is to be waited for, after all that has to go out together.
        """
        sender, frames = pack(entries, payload, opcode, rsvd)
        # Not waited for: each message to many would be as slow as the slowest of them. Mongrel2 itself ends whoever
        # lags behind, at the 17th message.
        placed = self._writer.place_many(sender, frames, self.options.slow_policy)
        for conn_id in placed.slow:
            lagging = self._registry.get((sender, conn_id))
            if lagging is not None:
                self.fail(
                    lagging,
                    CloseCode.TRY_AGAIN_LATER,
                    "what was broadcast is not read: slow_timeout or max_outbox is reached",
                )
        return placed

    def close(self, entry: Entry, code: int | None = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Begin the closing handshake; the peer's answer, or ``close_timeout``, ends it. Twice is once.

        Raises ``LocalProtocolError`` for a code or reason that may not travel.
        """
        step = self._machine.close(entry, code, reason)
        if entry.carrier is None:
            self._established.carry_out(entry, step)
        elif step is not NOTHING:  # the close frame, its deadline and the answer are the other process's
            entry.carrier.close(code, reason)

    def fail(self, entry: Entry, code: int, reason: str) -> None:
        """End a connection whose peer broke the protocol, or a bound of ours, with a close frame that says so."""
        if entry.carrier is None:
            self._established.carry_out(entry, self._machine.fail(entry, code, reason))
        else:
            entry.carrier.fail(code, reason)
            self._established.end(entry, code, reason)

    def ping(
        self,
        entries: Iterable[Entry],
        frame: bytes,
        sender: str,
        *,
        judge: bool = True,
        sending: Callable[[list[str]], list[str]] | None = None,
    ) -> int:
        """One batch of a round of pings: end those that did not answer the last one, send *frame* to the others.

        Blocks this greenlet while the pipe to the server is full. Returns how many were ended.

        *sending* is asked, where somebody was silent, which of them are sending something; they are not ended.

        With *judge* false, and where several processes share the endpoint, so that pongs scatter over them, nobody is
        ended. Raises what the writer raises; and no pong is then expected of anybody.
        """
        pinged, again, silent = self._machine.ping(entries, judge, self._writer.flow.control.confirmed)
        # It may block, and some answer meanwhile: those are not ended either.
        if silent and sending is not None:
            # Entries, not numbers: the server may restart meanwhile, and give the numbers to strangers.
            repeated = [self._registry.get((sender, conn_id)) for conn_id in again]
            spared = set(sending([entry.conn_id for entry in silent]))
            repeated += [entry for entry in silent if entry.conn_id in spared]
            silent = [entry for entry in silent if entry.conn_id not in spared]
            pinged = [entry for entry in pinged if entry.state == OPEN]
            again = [entry.conn_id for entry in repeated if entry is not None and entry.state == OPEN]
        if pinged or again:
            # One message for all of them. Nobody may be ended for a ping that was not sent.
            try:
                self._writer.write_many(sender, [entry.sid[1] for entry in pinged] + again, frame)
            except GreentxError:
                for entry in pinged:
                    entry.awaits_pong = False
                raise
        for entry in silent:
            self._established.carry_out(entry, self._machine.silent(entry))
        return len(silent)

    def ping_one(self, entry: Entry, payload: bytes, on_pong: Callable[[bytes], None]) -> None:
        """Send one a ping of the application's; *on_pong* gets the payload of each pong of it from now on.

        Blocks this greenlet while the pipe to the server is full. Raises ``ConnectionClosed`` where it is not OPEN.
        """
        frame = build_frame(payload, Opcode.PING)
        if entry.state != OPEN:
            raise ConnectionClosed(*entry.ending)
        # Not before the first ping: of an entry without it a pong costs nothing more than a flag.
        entry.on_pong = on_pong
        if entry.carrier is None:
            self._writer.write(entry.sid[0], entry.sid[1], frame)
        else:
            entry.carrier.ping(payload)

    # -- the end -----------------------------------------------------------------------------------------------------

    def close_all(self, code: int, reason: str = "") -> None:
        """Send every client a close frame and have the server close behind it; report each end with that code.

        Those whose protocol another process runs are let go, to go on elsewhere.

        From then on handshakes are refused, with 503. Blocks this greenlet while the pipe to the server is full.

        Where other processes go on with them nothing happens here; see :mod:`greentx.handler.elsewhere`.
        """
        if self.elsewhere.hand_over():
            return
        # First of all nobody new, or the walk below would miss those that come while the pipe is full.
        self._openings.refuse_all()
        self.relayed.leave()
        frame = build_frame(build_close(code, reason), Opcode.CLOSE)
        waits: list[tuple[Placed, int]] = []
        for sender in list(self.senders):
            for batch in self._registry.batches(sender):
                entries = [entry for entry in batch if entry.carrier is None]
                if not entries:
                    continue
                conn_ids = [entry.conn_id for entry in entries if entry.state == OPEN]
                # Reported before it is sent: a pipe that stays full must not keep the application from its end.
                for entry in entries:
                    self._established.end(entry, code, reason)
                try:
                    waits.append((self._writer.place_many(sender, [(frame, conn_ids)]), len(entries)))
                    self._writer.close(sender, [entry.conn_id for entry in entries], wait=False)
                except GreentxError as error:
                    _log_no_goodbye(self._established.name, len(entries), error)
        # Behind all of them: where the pipe stays full no wait returns, and in each one the server may restart, after
        # which the numbers are strangers'.
        for placed, count in waits:
            try:
                placed.wait()
            except GreentxError as error:
                _log_no_goodbye(self._established.name, count, error)

    def stop(self) -> None:
        """End the greenlets and timers; the connections themselves were ended by :meth:`close_all`."""
        self._openings.stop()
        self.elsewhere.stop()
        self._established.stop()


def _log_no_goodbye(name: str, count: int, error: GreentxError) -> None:
    log.warning("%s: %d WebSockets got no close frame: %s", name, count, error)
