"""The sending half of a connection set: one XPUB socket, connected to where Mongrel2 subscribes.

What it promises:

* **Ready means ready.** A PUB socket drops what nobody subscribed to: of 20 replies sent right after connecting, 13
  were lost (probed). An XPUB socket is told of the subscription; nothing is sent before.
* **One life at a time.** With ``ZMQ_IMMEDIATE`` the pipe goes with the TCP connection, so what the old server did not
  get never reaches a new one, whose connection ids mean other browsers; and the socket is told by an unsubscription.
* **Nothing is dropped.** ``ZMQ_XPUB_NODROP`` makes a full pipe an EAGAIN: whoever sends then waits, others go on.
* **It arrives where the server listens.** Replies begin with the request's sender; where the server subscribed to a
  name of its own (``recv_ident``), they begin with that, since it would not receive them otherwise (probed).
* **No 17th message.** See :mod:`greentx.transport.outbox`, and :mod:`greentx.transport.receipts`.

All methods belong to the hub's thread; :mod:`greentx.connection` hands calls of other threads over.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import gevent
import zmq
from gevent.event import Event

from ..errors import ConnectionClosed, LocalProtocolError, SendTimeout
from ..wire import MAX_CONN_IDS, build_control_reply, check_sender
from .context import Context
from .outbox import BURST, CREDITS, LARGE, QUEUED, Ledger, Outbox, Pacer
from .receipts import FLUSH_SECONDS, Receipts

__all__ = ["OUTBOX_LIMIT", "Writer"]

log = logging.getLogger("greentx.transport")

#: Bytes waiting for one connection above which whoever writes to it waits.
OUTBOX_LIMIT = 262144

#: Messages that go to ZeroMQ together where many are sent at once. Each first one wakes its I/O thread, which costs
#: more than all the rest of a reply.
BATCH = 64

_LAST_OF_BATCH = BATCH - 1

#: So long after the last ones a message is not kept for others, so that it does not wait for a greenlet that computes.
BATCH_SECONDS = 0.0005

_NOBLOCK = int(zmq.NOBLOCK)

# While a pipe is full: how often to look without being told. libzmq's descriptor tells; pyzmq does not rely on it.
_BLOCKED_POLL_SECONDS = 0.1


class _Blocked:
    """A message that met a full pipe; ``gone`` is set when it was sent, taken back, or dropped with the server."""

    __slots__ = ("gone", "message")

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.gone = Event()


class Writer:
    """Sends replies for one sender.

    Args:
        context: Owner of the socket.
        on_ready: Called in the hub, without arguments, when the server's subscription was seen. Must not block.
        on_lost: Called in the hub when the server has gone; what was waiting for it has been dropped. Must not block.
        send_timeout: Seconds to wait on a full pipe, or on a browser that reads nothing, before ``SendTimeout``;
            ``None`` waits for ever.
        burst: Messages that one browser may be sent before a receipt; see :class:`greentx.transport.outbox.Pacer`.
        receipts: Returns whether receipts come in at present; ``None`` for never.
        name: For logs and errors.
    """

    def __init__(
        self,
        context: Context,
        *,
        on_ready: Callable[[], None],
        on_lost: Callable[[], None],
        send_timeout: float | None = 30.0,
        receipts: Callable[[], bool] | None = None,
        burst: int = BURST,
        name: str = "writer",
    ) -> None:
        self.name = name
        self.ready = Event()
        self.flow_control = False
        """The server announced credits (``download.flow_control``): 102400 bytes may be under way to each browser."""
        self.messages_dropped = 0
        self.send_timeout = send_timeout
        self.endpoint = ""
        self._context = context
        self._prefixes: dict[str, bytes] = {}
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._sent = 0
        self._sent_to_nobody = 0
        self._unsaid_drops = 0
        self._settled = Event()
        self._topics: set[bytes] = set()
        self._pacer = Pacer(burst)
        self._outboxes: dict[str, Outbox] = {}
        self._ledger = Ledger()
        self._drained: dict[str, Event] = {}
        self._blocked: deque[_Blocked] = deque()
        self._batch: list[bytes] = []
        self._sent_at = float("-inf")
        self._checking = False
        self.receipts = Receipts(
            context,
            self._pacer,
            send=self.send_to_nobody,
            on_confirmed=self._on_confirmed,
            come=receipts,
            pipe_full=lambda: self.pipe_full,
            name=name,
        )
        self._reckon_timer: Any = context.timer(FLUSH_SECONDS, FLUSH_SECONDS)
        self._reckoning = False
        self._poll_timer: Any = context.timer(_BLOCKED_POLL_SECONDS, _BLOCKED_POLL_SECONDS)
        self._loop = context.hub.loop
        socket = context.socket(zmq.XPUB)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket = socket
        # Without pyzmq's Python layer, which serves socket types that this is not.
        self._send_now = super(zmq.Socket, socket).send
        self._watcher: Any = None

    @property
    def messages_sent(self) -> int:
        """How many messages the pipe to the server took."""
        return self._sent - self._sent_to_nobody

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block this greenlet until the server has subscribed; False after *timeout* seconds, or when stopped."""
        self._settled.wait(timeout)
        return bool(self.ready.is_set())

    def connect(self, endpoint: str) -> None:
        """Connect; ZeroMQ connects again by itself. Does not wait. Raises ``TransportError`` for a bad endpoint."""
        self._context.connect(self._socket, endpoint)
        self.endpoint = endpoint
        self._watcher = self._context.watch(self._socket, self._check)

    # -- what connections are written to ---------------------------------------------------------------------------

    def write(self, sender: str, conn_id: str, data: bytes, *, wait: bool = True) -> None:
        """Send *data* to one browser, or put it behind what waits for it. *data* is not empty.

        Blocks this greenlet while the pipe to the server is full, or while more than :data:`OUTBOX_LIMIT` bytes wait
        for this browser; with *wait* false it never blocks, and the caller has to see to the bounds.

        Raises:
            LocalProtocolError: Mongrel2 could not parse *sender*.
            SendTimeout: No progress for ``send_timeout`` seconds. With the pipe full nothing of *data* was sent.
            ConnectionClosed: The browser went away while this greenlet waited for it to read.
        """
        prefix = self._prefixes.get(sender) or self._find_prefix(sender)
        outboxes = self._outboxes
        if not (outboxes and conn_id in outboxes) and (
            not self._blocked and self._ledger.spend(conn_id, len(data))
            if self.flow_control
            else len(data) < LARGE and self._pacer.allows(conn_id)
        ):
            message = b"%b %d:%b, %b" % (prefix, len(conn_id), conn_id.encode(), data)
            batch = self._batch
            if 0 < len(batch) < _LAST_OF_BATCH and monotonic() - self._sent_at < BATCH_SECONDS:
                batch.append(message)  # what _send() would do
            else:
                # What was counted goes out: nobody who waits for that could take it back.
                self._send(message, wait and not self.flow_control)
            if self._pacer.due and not self.receipts.awaited:
                self._ask_receipt()
            return
        if self._blocked and wait and self._may_block():
            # What is joined to others' bytes could not be taken back: it has to have room first.
            self._wait_for_pipe(self._blocked[-1], mine=False)
        if not self._topics:
            self._drop(data)
            return
        outbox = self._outboxes.get(conn_id)
        if outbox is None:
            outbox = self._new_outbox(prefix, conn_id)
        if outbox.closing:
            return  # after our own close nothing more is delivered
        outbox.put(data)
        self._progress(conn_id, outbox)
        if outbox.size > OUTBOX_LIMIT and wait and self._may_block():
            self._wait_for_outbox(conn_id, outbox)

    def write_many(self, sender: str, conn_ids: Sequence[str], data: bytes) -> list[str]:
        """Send the same *data* to many browsers, in messages of 128 ids; for whom something waits, behind that.

        Blocks this greenlet while the pipe to the server is full; raises ``SendTimeout`` as :meth:`write` does. It does
        not wait for browsers: the caller has to see to the bounds.

        Returns:
            Those for which more than :data:`OUTBOX_LIMIT` bytes of such calls waited, *data* not counted.
        """
        prefix = self._prefixes.get(sender) or self._find_prefix(sender)
        if not self._topics:
            self._drop(data)
            return []
        if self.flow_control:
            if self._blocked and self._may_block():
                # What is counted goes out: it has to have room first.
                self._wait_for_pipe(self._blocked[-1], mine=False)
                if not self._topics:
                    self._drop(data)
                    return []
            allowed, refused = self._split_by_credits(conn_ids, len(data))
        else:
            allowed, refused = self._pacer.split(conn_ids, self._outboxes)
        for start in range(0, len(allowed), MAX_CONN_IDS):
            ids = " ".join(allowed[start : start + MAX_CONN_IDS]).encode()
            self._send(b"%b %d:%b, %b" % (prefix, len(ids), ids, data), not self.flow_control)
        if self._pacer.due and not self.receipts.awaited:
            self._ask_receipt()
        slow: list[str] = []
        for conn_id in refused:
            outbox = self._outboxes.get(conn_id) or self._new_outbox(prefix, conn_id)
            if not outbox.closing:
                if outbox.unasked > OUTBOX_LIMIT:
                    slow.append(conn_id)
                outbox.put(data)
                outbox.unasked += len(data)
                self._progress(conn_id, outbox)
        return slow

    def _split_by_credits(self, conn_ids: Sequence[str], size: int) -> tuple[list[str], list[str]]:
        """With flow control, who may be sent *size* bytes at once (they are counted), and who may not."""
        outboxes, spend = self._outboxes, self._ledger.spend
        allowed: list[str] = []
        refused: list[str] = []
        for conn_id in conn_ids:
            outbox = outboxes.get(conn_id)
            if spend(conn_id, size) if outbox is None else outbox.spend(size):
                allowed.append(conn_id)
            else:
                refused.append(conn_id)
        return allowed, refused

    def close(self, sender: str, conn_ids: Sequence[str], *, wait: bool = True) -> None:
        """Have the server close connections, behind what waits for them; what is written later is dropped."""
        prefix = self._prefixes.get(sender) or self._find_prefix(sender)
        at_once: list[str] = []
        for conn_id in conn_ids:
            outbox = self._outboxes.get(conn_id)
            if outbox is None and conn_id in self._ledger:
                outbox = self._new_outbox(prefix, conn_id)
            if outbox is not None and outbox.size:
                outbox.closing = True
                drained = self._drained.pop(conn_id, None)
                if drained is not None:
                    drained.set()  # who waits to write more waits in vain
                self._progress(conn_id, outbox)
            elif outbox is None or outbox.window is None:
                self.forget(conn_id)
                at_once.append(conn_id)
            elif not outbox.closed:  # it is known until the server has told what it wrote
                outbox.closing = outbox.closed = True
                at_once.append(conn_id)
        for start in range(0, len(at_once), MAX_CONN_IDS):
            ids = " ".join(at_once[start : start + MAX_CONN_IDS]).encode()
            self._send(b"%b %d:%b, " % (prefix, len(ids), ids), wait)

    def control(self, sender: str, conn_ids: Sequence[str], body: bytes) -> None:
        """Send an extended reply, which the server consumes itself; at most 128 ids. It overtakes what waits."""
        prefix = self._prefixes.get(sender) or self._find_prefix(sender)
        ids = ("X " + " ".join(conn_ids)).encode()
        self._send(b"%b %d:%b, %b" % (prefix, len(ids), ids, body))

    def prove(self, sender: str, body: bytes) -> None:
        """Send *body* to no browser, as a message of its own, for a server that asked for it."""
        self._send(build_control_reply(sender, body))

    def credit(self, conn_id: str, count: int) -> None:
        """The server reports that it wrote *count* bytes to this connection."""
        if not self._ledger.credit(conn_id, count):
            outbox = self._outboxes.get(conn_id)
            if outbox is not None:
                outbox.credit(count)
                self._flush_one(conn_id, outbox)

    def unconfirmed(self) -> list[str]:
        """Return the connections that were sent bytes which the server, with flow control, did not report yet."""
        return [*self._ledger, *(conn_id for conn_id, outbox in self._outboxes.items() if outbox.window is not None)]

    def confirmed(self, conn_id: str) -> int | None:
        """Return a number that grows while this browser takes what it was sent; ``None`` when all of it was taken.

        Only known with flow control; without it ``None``, too.
        """
        outbox = self._outboxes.get(conn_id)
        if outbox is None:
            return self._ledger.confirmed(conn_id)
        return None if outbox.window is None else outbox.confirmed

    @property
    def pipe_full(self) -> bool:
        """True while messages wait for room in the pipe to the server."""
        return bool(self._blocked)

    def waiting(self, conn_id: str) -> int:
        """Return how many bytes wait for one connection."""
        outbox = self._outboxes.get(conn_id)
        return outbox.size if outbox is not None else 0

    def forget(self, conn_id: str) -> None:
        """The connection is gone: drop what waits for it; who waits for it gets ``ConnectionClosed``."""
        self._ledger.close(conn_id)
        if self._outboxes.pop(conn_id, None) is not None:
            drained = self._drained.pop(conn_id, None)
            if drained is not None:
                drained.set()

    # -- outboxes --------------------------------------------------------------------------------------------------

    def _find_prefix(self, sender: str) -> bytes:
        """Return what a reply begins with so that the server, which may subscribe to its own name, receives it."""
        prefix = check_sender(sender).encode()
        if self._topics and not any(prefix.startswith(topic) for topic in self._topics):
            prefix = min(self._topics)
        self._prefixes[sender] = prefix
        return prefix

    def _new_outbox(self, prefix: bytes, conn_id: str) -> Outbox:
        head = b"%b %d:%b, " % (prefix, len(conn_id), conn_id.encode())
        window, confirmed = self._ledger.close(conn_id) if self.flow_control else (None, 0)
        outbox = self._outboxes[conn_id] = Outbox(head, window, confirmed)
        return outbox

    def _progress(self, conn_id: str, outbox: Outbox) -> None:
        if outbox.window is None:
            if outbox.under_way(monotonic()) >= QUEUED:
                self._reckon_later()
                return
            if self._pacer.allows(conn_id):
                self._flush_one(conn_id, outbox)
            if self._pacer.due and not self.receipts.awaited:
                self._ask_receipt()
        elif outbox.window:
            self._flush_one(conn_id, outbox)

    def _reckon_later(self) -> None:
        if not self._reckoning:
            self._reckoning = True
            self._reckon_timer.again(self._reckon, update=True)

    def _reckon(self) -> None:
        """Send what large messages may be on their way now; forget connections that have nothing to wait for."""
        if self._blocked:
            return
        now = monotonic()
        left = False
        for conn_id, outbox in list(self._outboxes.items()):
            if outbox.window is None:
                if outbox.size:
                    self._progress(conn_id, outbox)
                elif not outbox.under_way(now):
                    self._outboxes.pop(conn_id, None)
                    continue
                left = True
        if not left:
            self._reckoning = False
            self._reckon_timer.stop()

    def _flush(self) -> None:
        """Send, of what waits for a receipt, what need not wait any more."""
        now = monotonic()
        for conn_id, outbox in list(self._outboxes.items()):
            if self._blocked:
                return  # a full pipe: let the outboxes collect, they go when it has room
            if outbox.window is None and outbox.size and outbox.under_way(now) < QUEUED and self._pacer.allows(conn_id):
                self._flush_one(conn_id, outbox)

    def _flush_one(self, conn_id: str, outbox: Outbox) -> None:
        if outbox.size:
            data = outbox.take()
            if data:
                self._send(outbox.head + data, False)
                if outbox.window is None:
                    outbox.reckon(len(data), monotonic())
        if outbox.size <= OUTBOX_LIMIT // 2:
            drained = self._drained.pop(conn_id, None)
            if drained is not None:
                drained.set()
        if outbox.size:
            return
        if outbox.closing and not outbox.closed:
            outbox.closed = True
            self._send(outbox.head, False)
        if outbox.window is None and not outbox.closing and outbox.under_way(monotonic()):
            self._reckon_later()
        elif outbox.window is None or outbox.window == CREDITS:
            self._outboxes.pop(conn_id, None)

    def _wait_for_outbox(self, conn_id: str, outbox: Outbox) -> None:
        while outbox.size > OUTBOX_LIMIT:
            before = outbox.size
            drained = self._drained.get(conn_id)
            if drained is None:
                drained = self._drained[conn_id] = Event()
            in_time = drained.wait(self.send_timeout)
            self._context.check()
            if outbox.closing:
                raise ConnectionClosed(1006, "the connection is being closed")
            if self._outboxes.get(conn_id) is not outbox and outbox.size:
                raise ConnectionClosed(1006, "the browser went away")
            if not in_time and outbox.size >= before:
                raise SendTimeout(
                    f"connection {conn_id} took nothing for {self.send_timeout} s, {outbox.size} bytes wait for it",
                    address=self.endpoint,
                )

    def _ask_receipt(self) -> None:
        if self._topics:
            self.receipts.ask()
        else:  # what is written now is dropped
            self._pacer.forget()

    def send_to_nobody(self, conn_id: str) -> None:
        """Have the server give notice of a connection that is not there, once it has taken in all that was sent.

        Never blocks. Without a server nothing is sent.
        """
        if self._topics:
            self._sent_to_nobody += 1
            prefix = min(self._topics) or b"greentx"
            self._send(b"%b %d:%b, " % (prefix, len(conn_id), conn_id.encode()), False)

    def _on_confirmed(self) -> None:
        if self._outboxes:
            self._flush()
        if self._pacer.due and not self.receipts.awaited:
            self._ask_receipt()

    # -- the socket ------------------------------------------------------------------------------------------------

    def _send(self, message: bytes, wait: bool = True) -> None:
        if not self._context.open:
            self._context.check()
        if not self._topics:
            self._drop(message)
            return
        if self._blocked:
            blocked = _Blocked(message)
            self._blocked.append(blocked)
            if wait and self._may_block():
                self._wait_for_pipe(blocked)
            return
        batch = self._batch
        batch.append(message)
        if len(batch) < BATCH and monotonic() - self._sent_at < BATCH_SECONDS:
            self._look_after_send()
            return
        self._send_batch()
        if self._blocked and wait and self._may_block():
            self._wait_for_pipe(self._blocked[-1])

    def _send_batch(self) -> None:
        """Hand what was sent lately to ZeroMQ; what meets a full pipe is blocked, in its order."""
        batch, send = self._batch, self._send_now
        sent = 0
        try:
            for message in batch:
                sent += 1  # before: a signal strikes when the call returns
                send(message, _NOBLOCK)
        except zmq.Again:
            sent -= 1
            self._blocked.extend([_Blocked(message) for message in batch[sent:]])
            del batch[sent:]
            self._poll_timer.again(self._check)
        finally:
            # Also where a signal strikes: nothing is sent twice, and what was not sent is not forgotten.
            del batch[:sent]
            self._sent += sent
            self._sent_at = monotonic()
            self._look_after_send()

    def _look_after_send(self) -> None:
        """Before the hub sleeps: sending may consume what the descriptor would have told us."""
        if not self._checking:
            self._checking = True
            self._loop.run_callback(self._check_after_send)

    def _wait_for_pipe(self, blocked: _Blocked, mine: bool = True) -> None:
        try:
            in_time = blocked.gone.wait(self.send_timeout) or blocked.gone.is_set()
        except BaseException:
            if mine and not blocked.gone.is_set():  # killed while waiting: then the message does not go out, either
                self._take_back(blocked)
            raise
        self._context.check()
        if not in_time:
            if mine:
                self._take_back(blocked)
            raise SendTimeout(
                f"{self.name}: the pipe to {self.endpoint} stayed full for {self.send_timeout} s; is it stopped?",
                address=self.endpoint,
                errno=zmq.EAGAIN,
            )

    def _take_back(self, blocked: _Blocked) -> None:
        self._blocked.remove(blocked)
        blocked.gone.set()  # others may wait for it

    def _may_block(self) -> bool:
        return gevent.getcurrent() is not self._context.hub

    def _drop(self, message: bytes) -> None:
        self.messages_dropped += 1
        self._unsaid_drops += 1
        if self._unsaid_drops == 1:  # the first says it, and the number is told when the server is back
            why = "closed" if self._poll_timer is None else f"no server at {self.endpoint}"
            log.warning("%s: %s, a reply of %d bytes was dropped", self.name, why, len(message))

    def look(self) -> None:
        """See to what the server has said by now, without waiting for the hub to tell of it."""
        self._check()

    def _check_after_send(self) -> None:
        if not self._context.open or self._socket.closed:
            return
        self._checking = False
        if self._context.has_message(self._socket):
            self._check()  # first: the server may have gone, and what is sent to nobody is not counted as dropped
        if self._batch:
            self._send_batch()

    def _check(self) -> None:
        """Read subscriptions until there are no more, then send what met a full pipe; in the hub."""
        if self._socket.closed or not self._context.open:
            return
        try:
            while True:
                self._subscription(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass
        if not self._blocked:
            self._poll_timer.stop()
            return
        while self._blocked:
            first = self._blocked[0]
            try:
                self._socket.send(first.message, zmq.NOBLOCK)
            except zmq.Again:
                return
            self._sent += 1
            self._blocked.popleft()
            first.gone.set()
        self._poll_timer.stop()
        if self._outboxes:
            self._flush()

    def _subscription(self, message: bytes) -> None:
        kind, topic = message[:1], message[1:]
        if kind == b"\x01":
            if topic in self._topics:  # again, without an end in between: another server took over
                self._lose()
            if topic:
                try:
                    check_sender(topic)
                except LocalProtocolError as error:
                    log.error("%s: the server at %s subscribed to %r. %s", self.name, self.endpoint, topic, error)
                    return
            self._topics.add(topic)
            self._prefixes.clear()
            if not self.ready.is_set():
                if self._unsaid_drops:
                    log.warning("%s: %d replies were dropped while it was away", self.name, self._unsaid_drops)
                    self._unsaid_drops = 0
                self.ready.set()
                self._settled.set()
                self._on_ready()
        elif kind == b"\x00":
            self._topics.discard(topic)
            if not self._topics and self.ready.is_set():
                self._lose()

    def _lose(self) -> None:
        self._topics.clear()
        self._prefixes.clear()
        self.flow_control = False
        self.ready.clear()
        self._settled.clear()
        self._pacer.forget()
        self.receipts.forget()
        self._reckon_timer.stop()
        self._reckoning = False
        dropped = len(self._blocked) + len(self._batch) + sum(1 for outbox in self._outboxes.values() if outbox.size)
        self.messages_dropped += dropped
        if dropped:
            log.warning("%s: the server at %s has gone, %d replies were dropped", self.name, self.endpoint, dropped)
        self._batch.clear()
        while self._blocked:
            self._blocked.popleft().gone.set()
        self._ledger.clear()
        for conn_id in list(self._outboxes):
            self.forget(conn_id)
        self._on_lost()

    def stop(self, *, linger: float = 0.0) -> None:
        """Send what waits as far as the limits allow, then close the socket; safe to call twice.

        Blocks this greenlet for *linger* seconds at the most. What is in the pipe then goes out in what is left of
        them.
        """
        if self._poll_timer is None:
            return
        self.receipts.give_up()
        deadline = monotonic() + linger
        while self._outboxes_waiting() or self._blocked or self._batch:
            if monotonic() >= deadline or not self._may_block() or not self.ready.is_set():
                break
            gevent.sleep(FLUSH_SECONDS)
        if self._poll_timer is None:
            return  # stopped by somebody else, meanwhile
        if self._batch and self._context.open:
            self._send_batch()
        self.receipts.close()
        for watcher in (self._reckon_timer, self._poll_timer, self._watcher):
            if watcher is not None:
                self._context.unwatch(watcher)
        self._reckon_timer = self._poll_timer = self._watcher = None
        self._settled.set()
        self._topics.clear()
        self.ready.clear()
        left = len(self._blocked) + self._outboxes_waiting()
        if left:
            self.messages_dropped += left
            log.warning("%s: closed with %d replies that %s did not take", self.name, left, self.endpoint)
        while self._blocked:
            self._blocked.popleft().gone.set()
        self._ledger.clear()
        for conn_id in list(self._outboxes):
            self.forget(conn_id)
        self._context.close_socket(self._socket, linger=max(0.0, deadline - monotonic()))

    def _outboxes_waiting(self) -> int:
        return sum(1 for outbox in self._outboxes.values() if not outbox.idle)

    def __repr__(self) -> str:
        state = "ready" if self.ready.is_set() else "waiting for the server"
        return f"<Writer {self.name} {self.endpoint}: {state}, {self.messages_sent} sent, {len(self._blocked)} blocked>"
