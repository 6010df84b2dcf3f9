"""One WebSocket as an object that a greenlet receives from and sends to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from os import urandom
from sys import getsizeof
from time import monotonic
from typing import TYPE_CHECKING

from gevent.event import Event

from ..errors import ConnectionClosed, LocalProtocolError
from ..protocol.bounds import MESSAGE_BYTES
from ..protocol.kinds import Kind
from ..protocol.packed import PackedHeaders
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode, Opcode
from ..protocol.websocket.registry import CLOSED, OPEN, Entry, Registry
from .pings import Pings
from .state import State
from .waiter import Waiter

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["WebSocket", "encode_message"]


def encode_message(message: str | bytes) -> tuple[bytes, Opcode]:
    """Return the payload and the opcode of a message: ``str`` is text, bytes are binary.

    Raises:
        LocalProtocolError: It holds lone surrogates, so it is not text.
        TypeError: It is neither.
    """
    if isinstance(message, str):
        try:
            return message.encode(), Opcode.TEXT
        except UnicodeEncodeError as error:
            raise LocalProtocolError(f"message is not text: {error}") from error
    if isinstance(message, (bytes, bytearray, memoryview)):
        return bytes(message), Opcode.BINARY
    raise TypeError(f"a message is str or bytes, not {type(message).__name__}")


def _as_payload(payload: object) -> bytes:
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise TypeError(f"the payload of a ping is str or bytes, not {type(payload).__name__}")


class WebSocket:
    """A live WebSocket; ``Transceiver.serve(websocket=handler)`` makes one for each and calls ``handler(ws)``.

    One greenlet receives; any may send, ping and close.

    Attributes:
        request: The opening handshake: headers, path, query.
        conn: The connection set that it came in by.
        sid: ``(sender, conn_id)``.
        path: What the handshake asked for.
        subprotocol: What was agreed on, ``None`` for none.
        redelivered: Behind a relay: the message that :meth:`receive` returned last was given to a Node before that
            ended, and may have been handled there.
    """

    def __init__(self, conn: Connection, entry: Entry, request: Request, registry: Registry) -> None:
        self.conn = conn
        self.request = request
        # It lives as long as this, and its headers would be most of it. Where the application has looked at them, they
        # may be changed.
        if request.sent_headers is request.raw:
            request.replace_headers(PackedHeaders(request.raw))
        self.sid = entry.sid
        self.path = entry.path
        self.subprotocol = entry.subprotocol
        # Its state is asked for each time and never copied: it is CLOSED before the event of its end comes here.
        self._entry = entry
        self._registry = registry
        self.redelivered = False
        self._state: State | None = None
        self._share = conn.sessions.queued.share()
        # Of many WebSockets nearly all are idle, so what one needs then only is there: a gevent Queue, a deque or an
        # Event each cost more than all the rest. What is received is a plain popleft(), which needs no lock for another
        # native thread either.
        self._messages: deque[str | bytes] | None = None
        self._receivers: tuple[Waiter, ...] = ()
        # Apart from the state: the entry is CLOSED when the end comes, the application may still have messages to read.
        self._has_ended = False
        self._end: Event | None = None
        self._pings: Pings | None = None
        if entry.carrier is not None:
            entry.carrier.receives = True

    @property
    def closed(self) -> bool:
        """True once nothing can be sent any more: a close frame was sent or came, or the connection is gone."""
        return self._entry.state != OPEN

    @property
    def close_code(self) -> int | None:
        """After the end, RFC 6455's code: the peer's; what we ended it with for the peer's fault; or 1006 where no
        close frame came. ``None`` before.
        """
        return self._entry.ending[0] if self._entry.state == CLOSED else None

    @property
    def close_reason(self) -> str:
        """After the end, the text that goes with :attr:`close_code`; ``""`` before."""
        return self._entry.ending[1] if self._entry.state == CLOSED else ""

    @property
    def adopted(self) -> bool:
        """Behind a relay, True where another Node's application had it before: this is not its beginning."""
        carrier = self._entry.carrier
        return carrier is not None and carrier.adopted

    @property
    def moved(self) -> bool:
        """Behind a relay, True where :attr:`closed` means that it is another Node's: that goes on, or tells its end.

        True, too, where this Node has lost its relay, of which is not known whether it still runs: where it has died
        the browser's connection was closed, and nobody goes on.
        """
        carrier = self._entry.carrier
        return carrier is not None and carrier.moved

    @property
    def state(self) -> State:
        """What the application keeps of it: a mapping that is JSON of at most 64 KiB; ``dict(ws.state)`` is a copy.

        Behind a relay the Node that goes on with it has it as it was: each item is written through as it is set, which
        never blocks. Setting what is not JSON, or too much, raises ``LocalProtocolError`` and changes nothing.
        """
        if self._state is None:
            carrier = self._entry.carrier
            self._state = State() if carrier is None else State(carrier.state, carrier.write_state)
        return self._state

    @property
    def pending(self) -> int:
        """How many messages wait to be received."""
        return len(self._messages or ())

    def on_end(self, callback: Callable[[], object]) -> None:
        """Have *callback* called, in the hub, when the connection has ended; it must not block."""
        event = self._end
        if event is None:
            event = self._end = Event()
            if self._has_ended:
                event.set()
        event.rawlink(lambda _: callback())

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message: ``str`` for text, ``bytes`` for binary; ``None`` once the connection has ended.

        Messages that came before the end are returned first. Blocks this greenlet. Behind a relay, what was returned
        before counts as handled from this call on.

        Raises:
            TimeoutError: Nothing came for *timeout* seconds.
        """
        carrier = self._entry.carrier
        if carrier is not None:
            if not self.conn.answers.in_hub_thread():
                return self.conn.answers.hand_over(self.receive, timeout)
            carrier.ask()
        while not (messages := self._messages):
            if self._has_ended:
                return None
            # Greenlets are woken in their own hub only: another native thread has one of these wait for it.
            if not self.conn.answers.in_hub_thread():
                return self.conn.answers.hand_over(self.receive, timeout)
            self._messages = None
            del messages  # else an empty one stays in this frame
            waiter = Waiter()
            self._receivers += (waiter,)
            try:
                waiter.sleep(timeout)
            except BaseException:  # raised again
                self._pass_on(waiter)
                raise
            message: str | bytes = waiter.value
            if message is not None:
                if carrier is not None:
                    if carrier.moved:
                        return None  # the other process has it
                    self.redelivered = carrier.give()
                return message
            # What came together with the timeout is not waited for any more.
            if not waiter.woken:
                self._pass_on(waiter)
                if not self._messages and not self._has_ended:
                    raise TimeoutError(f"no message for {timeout} s")
        if carrier is not None and carrier.moved:
            return None  # behind its end, which comes there, too
        message = messages.popleft()
        self._share.remove(getsizeof(message) + MESSAGE_BYTES)
        if carrier is not None:
            self.redelivered = carrier.give()
        return message

    def _pass_on(self, waiter: Waiter) -> None:
        """This receiver waits no more; the message that it was woken with has to go to another one."""
        self._receivers = tuple(one for one in self._receivers if one is not waiter)
        if waiter.value is not None:
            if self._receivers:
                self._wake(waiter.value)
            else:
                self._share.add(getsizeof(waiter.value) + MESSAGE_BYTES)
                self._messages = self._messages or deque()
                self._messages.appendleft(waiter.value)

    def _wake(self, message: str | bytes | None = None) -> None:
        first, self._receivers = self._receivers[0], self._receivers[1:]
        first.wake(message)

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until the connection ends."""
        while (message := self.receive()) is not None:
            yield message

    def send(self, message: str | bytes) -> None:
        """Send a text message (``str``) or a binary one (bytes).

        Blocks this greenlet while the peer does not read or the pipe to the server is full.

        Raises:
            ConnectionClosed: It has ended, also while this greenlet was blocked; with code and reason.
            LocalProtocolError: *message* holds lone surrogates, so it is not text.
            SendTimeout: No progress for the Transceiver's ``send_timeout``. Where ``error.queued`` is true the peer
                did not read, and the message waits behind the others and goes out when it does: do not send it again.
                Where it is false the pipe to the server was full, and nothing of the message was sent.
            TypeError: *message* is neither.
        """
        payload, opcode = encode_message(message)
        self._check_open()  # where its connection set was removed nothing more is called
        self.conn.answers.run(self._send, payload, opcode)

    def _send(self, payload: bytes, opcode: int) -> None:
        self._check_open()
        try:
            self.conn.sessions.send_to(self._entry, payload, opcode)
        except ConnectionClosed:
            self._check_open()  # it knows code and reason
            raise

    def ping(self, payload: bytes | str | None = None, timeout: float | None = None) -> float:
        """Send a ping, wait for its pong and return the seconds in between. Blocks this greenlet.

        The pong of a later ping counts, too: a peer need not answer each (RFC 6455, section 5.5.3).

        Args:
            payload: At most 125 bytes, not those of a ping that is out already; ``None`` makes eight random ones.

        Raises:
            ConnectionClosed: It ended before the pong came.
            TimeoutError: No pong for *timeout* seconds; ``None`` waits until the connection ends.
            LocalProtocolError: *payload* is too long, or under way.
        """
        if not self.conn.answers.in_hub_thread():
            return self.conn.answers.hand_over(self.ping, payload, timeout)
        self._check_open()
        data = urandom(8) if payload is None else _as_payload(payload)
        pings = self._pings
        if pings is None:
            pings = self._pings = Pings()
        answer = pings.add(data)
        started = monotonic()
        try:
            self.conn.answers.run(self.conn.sessions.ping_one, self._entry, data, pings.on_pong)
            # Not get(timeout): its gevent.Timeout could not be told from one that the caller has set around this.
            answer.wait(timeout)
            if not answer.ready():
                raise TimeoutError(f"no pong for {timeout} s")
        finally:
            # Also where it was not answered: its payload may be used again.
            pings.forget(data)
        arrived: float | None = answer.get()
        if arrived is None:
            raise ConnectionClosed(*self._entry.ending)
        return arrived - started

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close with a closing handshake; a closed one stays as it is.

        Blocks this greenlet until the peer has answered, or ``close_timeout`` has passed and it was dropped.

        Raises:
            LocalProtocolError: The code may not be sent, or the reason is longer than 123 bytes.
        """
        if not self.conn.answers.in_hub_thread():
            self.conn.answers.hand_over(self.close, code, reason)
            return
        # The end comes in any case, by the peer's answer or when close_timeout has passed: nothing else bounds this.
        self.begin_close(code, reason)
        ended = Event()
        self.on_end(ended.set)
        ended.wait()

    def begin_close(self, code: int, reason: str = "") -> None:
        """As :meth:`close`, without waiting for the peer."""
        self.conn.answers.run(self.conn.sessions.close, self._entry, code, reason)

    def finish(self, code: int, *, killed: bool = False) -> None:
        """Its handler has ended: close it, if that was not done; never waits for the peer.

        Args:
            killed: The handler was. Behind a relay another Node's goes on with it then, where this Node leaves.
        """
        carrier = self._entry.carrier
        if carrier is not None:
            carrier.finish(killed)
        if not self.closed:
            self.begin_close(code)

    def join(self, group: str) -> None:
        """Join a group for ``Transceiver.broadcast``; raises ``ConnectionClosed`` after the end."""
        if self._entry.state == CLOSED:  # its number may be another's by now
            raise ConnectionClosed(*self._entry.ending)
        self._registry.join(self.sid, group)

    def leave(self, group: str) -> None:
        """Leave a group; nothing happens when it is not in it, or closed."""
        if self._entry.state != CLOSED:
            self._registry.leave(self.sid, group)

    def _check_open(self) -> None:
        entry = self._entry
        if entry.state != OPEN:
            raise ConnectionClosed(*entry.ending)

    # -- what comes in, from the connection set or by the Dispatcher -------------------------------------------------

    def feed(self, request: Request) -> None:
        """An event of this connection has come; never blocks."""
        if request.method == Kind.WEBSOCKET_CLOSE:
            if request.moved:
                # These come there: nobody has seen them here.
                self._messages = None
                self._share.remove(self._share.held)
            self.end()
        else:
            # Text was decoded when it was checked, and is not decoded again.
            text = request.text
            message = request.body if text is None else text
            if self._receivers:
                self._wake(message)
                return
            # The inbox counts none of these: this is the bound of one handler that is slower than its client. The
            # message on top is dropped, and the client told so: a gap would be worse than an end.
            why = self._share.add(getsizeof(message) + MESSAGE_BYTES)
            if why:
                self.conn.sessions.fail(self._entry, CloseCode.TRY_AGAIN_LATER, why)
                return
            if self._messages is None:
                self._messages = deque()
            self._messages.append(message)

    def end(self) -> None:
        """Nothing more comes: wake the greenlets that wait."""
        self._has_ended = True
        if self._end is not None:
            self._end.set()
        while self._receivers:
            self._wake()
        if self._pings is not None:
            self._pings.end()

    def __repr__(self) -> str:
        state = self._entry.state if self.close_code is None else f"{self._entry.state} {self.close_code}"
        return f"<WebSocket {self.sid[0]} {self.sid[1]} {self.path}: {state}, {self.pending} messages wait>"
