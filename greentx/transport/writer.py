"""The sending half of a connection set: one XPUB socket, connected to where Mongrel2 subscribes.

What it promises, and where that is kept:

* **Ready means ready**: nothing is sent before the server has subscribed (:mod:`greentx.transport.presence`).
* **One life at a time** (:mod:`greentx.transport.pipe`); nothing is dropped without a word
  (:mod:`greentx.transport.drops`).
* **It arrives where the server listens**: how replies begin (:mod:`greentx.protocol.flow.listening`).
* **No 17th message; what is written keeps its place** (:mod:`greentx.protocol.flow`, which decides, and
  :mod:`greentx.transport.outflow`, which carries it out). The place is given before a caller waits, and after its wait
  nothing is sent: what was lost with the server meanwhile is not written to the next one.

All methods belong to the hub's thread; :mod:`greentx.handler.connection` hands calls of other threads over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic

import gevent

from ..protocol.flow import BURST, DEFAULT_BOUNDS, LARGE, OUTBOX_LIMIT, Bounds, Flow, Hearing, Listening
from ..protocol.replies import build_control_reply
from .context import Context
from .drops import Drops
from .outflow import Outflow, Placed
from .pipe import LAST_OF_BATCH
from .presence import Presence
from .receipts import FLUSH_SECONDS
from .security import Dial
from .waiting import Waiting

__all__ = ["OUTBOX_LIMIT", "Writer"]


class Writer:
    """Sends replies for one sender.

    Args:
        context: Owner of the socket.
        on_ready: Called in the hub, without arguments, when the server's subscription was seen. Must not block.
        on_lost: Called in the hub when the server has gone; what was waiting for it has been dropped. Must not block.
        send_timeout: Seconds to wait on a full pipe before ``SendTimeout``, and over which it is judged whether a
            browser reads; ``None`` waits forever.
        bounds: What one browser that reads slowly may hold up.
        on_slow: Called with a connection whose browser is beyond them, and why: it is to be ended. Must not block.
            ``None`` only forgets what waits for it.
        for_browser: Called by a greenlet that has to wait for a browser: returns what is entered while it does;
            ``None`` where it must not wait.
        others: Returns whether this process has other servers, which must not be held up by this one.
        burst: Messages that one browser may be sent before a receipt; see :class:`greentx.protocol.flow.Pacer`.
        paced: False where a stand-in for Mongrel2 listens: each message goes out at once, as it is, nothing else does,
            and its name may be any that :func:`greentx.protocol.fields.check_sender` accepts for a stand-in.
        hearing: Which of the server's notices come; see :meth:`hear`.
        receipts: Returns whether receipts come in at present; ``None`` for never.
        dial: How to connect; ``None`` is in the clear.
        name: For logs and errors.

    Attributes:
        ready: Set while the server is there.
        receipts: What is known of receipts; see :class:`greentx.transport.receipts.Receipts`.
        flow: What is decided, and known of each browser; see :class:`greentx.protocol.flow.Flow`.
        pipe: The socket; see :class:`greentx.transport.pipe.Pipe`.
        waiting: Where callers wait, and for how long; see :class:`greentx.transport.waiting.Waiting`.
        endpoint: Where the server subscribes.
    """

    def __init__(
        self,
        context: Context,
        *,
        on_ready: Callable[[], None],
        on_lost: Callable[[], None],
        send_timeout: float | None = 30.0,
        receipts: Callable[[], bool] | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        on_slow: Callable[[str, str], None] | None = None,
        for_browser: Callable[[], AbstractContextManager[object] | None] = nullcontext,
        others: Callable[[], bool] = bool,
        burst: int = BURST,
        paced: bool = True,
        hearing: Hearing = Hearing.ALL,
        dial: Dial | None = None,
        name: str = "writer",
    ) -> None:
        self.endpoint = ""
        self.dial = dial
        self._stopped = False
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._drops = Drops(name)
        self.flow = Flow(burst, paced=paced, bounds=bounds, hearing=hearing)
        self._listening = Listening(paced=paced)
        self.waiting = Waiting(context, name, send_timeout, for_browser, others)
        self._presence = Presence(context, name, self._listening, on_ready=self._server_came, on_lost=self._server_went)
        self.ready = self._presence.ready
        self._outflow = Outflow(
            context,
            self.flow,
            self._listening,
            self.waiting,
            on_message=self._presence.feed,
            on_drop=self._drops.one,
            receipts=receipts if paced else None,
            on_slow=self.forget if on_slow is None else on_slow,
            name=name,
        )
        # Parts that others ask directly; what is written goes through the methods.
        self.receipts = self._outflow.receipts
        self.pipe = self._outflow.pipe
        # The same dict for good: looked up for every answer.
        self._prefixes = self._listening.prefixes

    @property
    def messages_dropped(self) -> int:
        """How many replies were dropped: no server was there, or it went before it got them."""
        return self._drops.count

    @property
    def messages_sent(self) -> int:
        """How many replies the pipe to the server accepted."""
        return self.pipe.sent - self._outflow.sent_to_nobody

    @property
    def pipe_full(self) -> bool:
        """True while messages wait for room in the pipe to the server."""
        return bool(self.pipe.line.turns)

    def stop_pacing(self) -> None:
        """The server turned out to be a stand-in for Mongrel2: what waits goes out now, what comes as *paced* says."""
        self._listening.paced = False
        self._outflow.stop_pacing()

    def hear(self, hearing: Hearing) -> None:
        """Say which of the server's notices come from now on: nothing waits for the others."""
        self._outflow.hear(hearing)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block this greenlet until the server has subscribed; False after *timeout* seconds, or when stopped."""
        return self._presence.wait(timeout)

    def connect(self, endpoint: str) -> None:
        """Connect, now and whenever the connection is lost. Does not wait.

        Raises ``TransportError`` for a bad endpoint. A host name is resolved again for each connection.
        """
        for part in (self, self._drops, self._presence, self.waiting):
            part.endpoint = endpoint
        self.pipe.connect(endpoint, self.dial)

    def write(self, sender: str, conn_id: str, data: bytes, *, head: bytes = b"", wait: bool = True) -> None:
        """Send *head* and *data* to one browser, or put them behind what waits for it. They are not both empty.

        It gets its place in the order of all calls at once. Then this greenlet is blocked while the pipe to the server
        is full, or while more than :data:`OUTBOX_LIMIT` bytes wait for this browser; with *wait* false it never blocks,
        and the caller has to see to the bounds. Where the server goes meanwhile *data* is dropped with it.

        Raises:
            LocalProtocolError: Mongrel2 could not parse *sender*.
            SendTimeout: No progress for ``send_timeout`` seconds. Its ``queued`` says whether *data* keeps its place.
                A greenlet that is killed at a full pipe withdraws *data* where nothing of it was sent, too.
            ConnectionClosed: The browser went away, or read too slowly, while this greenlet waited for it to read.
        """
        prefix = self._prefixes.get(sender) or self._listening.prefix(sender)
        flow = self.flow
        control = flow.control
        size = len(head) + len(data)
        if conn_id not in flow.outboxes and (
            control.allows(conn_id, size)
            # At a full pipe a large one waits where it is counted.
            or (
                size >= LARGE and not self.pipe.line.turns and control.accounts.allows_large(conn_id, size, monotonic())
            )
        ):
            # What build_reply() would build, checked already: nearly every answer comes this way. Built in one go, as
            # data may be large.
            message = b"%b %d:%b, %b%b" % (prefix, len(conn_id), conn_id.encode(), head, data)
            pipe = self.pipe
            batch = pipe.batch
            turn = None
            if 0 < len(batch) < LAST_OF_BATCH and monotonic() - pipe.since < pipe.batch_seconds:
                batch.append(message)  # what pipe.send() would do, without the call
            else:
                turn = pipe.send(message)
            # Before the wait: a receipt that is asked for later would cover no more than this one.
            if control.pacer.due:
                self._outflow.ask_if_due()
            if turn is not None and wait:
                self._outflow.wait_for(turn, (conn_id,), size)
        # Without a server no outbox is made: nothing of it may come out in the next life.
        elif self.pipe.live:
            self._outflow.put(prefix, conn_id, head + data if head else data, wait=wait)
        else:
            self._drops.one(data)

    def write_many(self, sender: str, conn_ids: Sequence[str], data: bytes) -> None:
        """As :meth:`place_many` with the same *data* for all, whatever waits for them already, and wait.

        Greenlets are blocked and ``SendTimeout`` raised as by :meth:`write`, at a full pipe only: for browsers it does
        not wait. ``queued`` is true where some were sent it.
        """
        self.place_many(sender, [(data, conn_ids)]).wait()

    def place_many(self, sender: str, frames: Sequence[tuple[bytes, Sequence[str]]], policy: str = "") -> Placed:
        """Send data to many browsers, in messages of 128 ids; for whom something waits, behind that. Never blocks.

        Args:
            frames: What to send, and to whom.
            policy: What is done where a browser did not read for too long, one of
                :data:`~greentx.protocol.flow.SLOW_POLICIES`; empty where nobody may miss it.

        Returns:
            Of which :meth:`Placed.wait` is to be called. The caller has to end those in its ``slow``.
        """
        if not self.pipe.live:
            for data, _ in frames:
                self._drops.one(data)
            frames = ()
        # Nobody's name is asked for where there is nobody.
        prefix = (self._prefixes.get(sender) or self._listening.prefix(sender)) if frames else b""
        return self._outflow.place_many(prefix, frames, policy)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written inside gets its places at once, though the pipe be full: nothing else comes in between.

        Nothing may block inside. At the end this greenlet is blocked while the pipe is full.

        Raises:
            SendTimeout: It stayed full. All that was written keeps its place, as ``queued`` says.
        """
        with self.waiting.postponed():
            yield
        turns = self.pipe.line.turns
        if turns and self.waiting.possible():
            self.waiting.for_turn(turns[-1], bool, 0)

    def close(self, sender: str, conn_ids: Sequence[str], *, wait: bool = True) -> None:
        """Have the server close connections, behind what waits for them; what is written later is dropped.

        Blocks this greenlet while the pipe is full, unless *wait* is false. It keeps its place in any case, also where
        this raises ``SendTimeout``.
        """
        self._outflow.close(self._prefixes.get(sender) or self._listening.prefix(sender), conn_ids, wait=wait)

    def control(self, sender: str, conn_ids: Sequence[str], body: bytes, *, wait: bool = True) -> None:
        """Send an extended reply, which the server consumes itself; at most 128 ids. It overtakes what waits.

        Blocks and raises as :meth:`write` at a full pipe, unless *wait* is false.
        """
        prefix = self._prefixes.get(sender) or self._listening.prefix(sender)
        ids = ("X " + " ".join(conn_ids)).encode()
        self._outflow.send(b"%b %d:%b, %b" % (prefix, len(ids), ids, body), wait=wait)

    def prove(self, sender: str, body: bytes) -> None:
        """Send *body* to no browser, as a message of its own, for a server that asked for it."""
        self._outflow.send(build_control_reply(sender, body))

    def send_to_nobody(self, conn_id: str) -> None:
        """Have the server give notice of a connection that is not there, once it has received all that was sent.

        Never blocks. Without a server nothing is sent.
        """
        self._outflow.send_to_nobody(conn_id)

    def credit(self, conn_id: str, count: int) -> None:
        """The server reports that it wrote *count* bytes to this connection."""
        flow = self.flow
        control = flow.control
        # Nearly every report: nothing waits for the room that it makes.
        if control.announced and conn_id not in flow.outboxes:
            control.accounts.credit(conn_id, count)
        else:
            self._outflow.credit(conn_id, count)

    def wait_empty(self, conn_id: str) -> bool:
        """Block this greenlet until nothing waits for one connection, for what may not overtake it.

        Returns:
            False where the server went meanwhile: what was to follow may not be sent, the id means another browser.

        Raises:
            SendTimeout: Something did for ``send_timeout`` seconds.
        """
        # Counted, not asked for readiness: the next server may be there before this greenlet runs again.
        life = self.flow.life
        self.waiting.until_empty(conn_id, lambda: self.flow.waiting(conn_id))
        return life == self.flow.life

    def forget(self, conn_id: str, why: str = "the browser went away") -> None:
        """The connection is gone: drop what waits for it; callers that wait for it get ``ConnectionClosed``."""
        # In this order: those that wake look at the outbox.
        if self.flow.forget(conn_id, why):
            self.waiting.wake(conn_id)

    def begin_anew(self) -> None:
        """Drop all that waits, and end the life of the server here, though it is there: a new one begins at once."""
        was_live = self.pipe.live
        dropped = self._outflow.lose()
        self._drops.many(dropped, f"{dropped} replies for {self.endpoint} belong to nobody any more and were dropped")
        if was_live:
            self.pipe.live = True

    def _server_came(self) -> None:
        # Before the callback, which may write.
        self.pipe.live = True
        self._drops.over()
        self._on_ready()

    def _server_went(self) -> None:
        # Before the callback too: what it writes is of no life.
        dropped = self._outflow.lose()
        self._drops.many(dropped, f"the server at {self.endpoint} has gone, {dropped} replies were dropped")
        self._on_lost()

    def stop(self, *, linger: float = 0.0) -> None:
        """Send what waits as far as the limits allow, then close the socket; safe to call twice.

        Blocks this greenlet for *linger* seconds at the most. What is in the pipe then goes out in what is left of
        them.
        """
        if self._stopped:
            return
        # The receiver may have ended before: no receipt would be seen.
        self.receipts.give_up()
        deadline = monotonic() + linger
        # Looked at again and again: what goes out by receipts, credits and time has no event in common.
        while self._outflow.busy() and monotonic() < deadline and self.ready.is_set() and self.waiting.possible():
            gevent.sleep(FLUSH_SECONDS)
        if self._stopped:
            return  # by somebody else, meanwhile
        self._stopped = True
        self._outflow.stop()
        self._presence.stop()
        self._drops.stopped = True
        left = self._outflow.drop()
        self._drops.many(left, f"closed with {left} replies that {self.endpoint} did not accept")
        self.pipe.close(max(0.0, deadline - monotonic()))

    def __repr__(self) -> str:
        state = "ready" if self.ready.is_set() else "waiting for the server"
        blocked = len(self.pipe.line.turns)
        return f"<Writer {self.waiting.name} {self.endpoint}: {state}, {self.messages_sent} sent, {blocked} blocked>"
