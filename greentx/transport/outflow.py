"""Carries out what :mod:`greentx.protocol.flow` decides for one server: sends, asks for receipts, keeps the clock.

    written -> Flow -+- may go: a message ------------------> Pipe --> ZeroMQ
                     +- may not: the connection's outbox        +- full: a turn in the line
                          ^ a receipt, credits, the clock, its turn in the line: what may go then, joined

All methods belong to the hub's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from ..protocol.fields import MAX_CONN_IDS
from ..protocol.flow import OUTBOX_LIMIT, Flow, Hearing, Line, Listening, Outbox, Turn
from .context import Context
from .laggards import Laggards
from .pipe import Pipe
from .receipts import FLUSH_SECONDS, Receipts
from .waiting import Waiting

__all__ = ["Outflow", "Placed"]


class Placed:
    """What one call wrote to many, in its places; nothing more is sent for it by whoever waits.

    Args:
        waiting: Where callers wait.
        line: What waits for room.
        refund: Called with connections and bytes that were counted, and are not sent after all.

    Attributes:
        slow: Those that did not get it, and are to be ended: they were slow for too long.
        reached: How many others get it; not those that are being closed, nor those that are left out.
        spent: What the accounts counted for its messages: connections, and the bytes that each was to get.
        places: What it put into outboxes: the outbox, and the place there.
    """

    __slots__ = ("_line", "_messages", "_refund", "_turns", "_waiting", "places", "reached", "slow", "spent")

    def __init__(self, waiting: Waiting, line: Line, refund: Callable[[Sequence[str], int], None]) -> None:
        self.slow: list[str] = []
        self.reached = 0
        self.spent: list[tuple[Sequence[str], int]] = []
        self.places: list[tuple[Outbox, int]] = []
        self._waiting = waiting
        self._line = line
        self._refund = refund
        self._messages = 0
        self._turns: list[Turn] = []

    def add(self, turn: Turn | None) -> None:
        """A message was sent, or waits for its *turn*."""
        self._messages += 1
        if turn is not None:
            self._turns.append(turn)

    def wait(self, *, to_all: bool = False) -> None:
        """Block this greenlet, unless it must not, while the pipe is full.

        Args:
            to_all: As for :meth:`Waiting.for_turn`.

        Raises:
            SendTimeout: It stayed full. ``queued`` is true where some was sent, so that all keeps its place.
        """
        if self._turns and self._waiting.possible():
            size = sum(len(turn.message or b"") for turn in self._turns)
            self._waiting.for_turn(self._turns[-1], self._withdraw, size, to_all=to_all)

    def _withdraw(self) -> bool:
        # All of it or nothing: callers are told one word for all. A message without a turn was sent, or is in a batch
        # that will be.
        whole = len(self._turns) == self._messages and not any(turn.done for turn in self._turns)
        if not whole or not all(outbox.holds(place) for outbox, place in self.places):
            return False
        for outbox, place in self.places:
            outbox.withdraw(place)
        for turn in self._turns:
            self._line.remove(turn)
        for conn_ids, size in self.spent:
            self._refund(conn_ids, size)
        return True


class Outflow:
    """What goes out to one server.

    Args:
        context: Owner of the socket and the timers.
        flow: Decides.
        listening: Says what a message to nobody begins with.
        waiting: Where callers wait.
        on_message, on_drop: As for :class:`greentx.transport.pipe.Pipe`.
        receipts: Returns whether receipts come in at present; ``None`` for never.
        on_slow: Called with a connection whose browser is to be ended, and why; must not block.
        name: For logs.

    Attributes:
        pipe: The socket.
        receipts: What is asked for.
        sent_to_nobody: How many of the messages sent were for no browser.
    """

    def __init__(
        self,
        context: Context,
        flow: Flow,
        listening: Listening,
        waiting: Waiting,
        *,
        on_message: Callable[[bytes], None],
        on_drop: Callable[[bytes], None],
        receipts: Callable[[], bool] | None,
        on_slow: Callable[[str, str], None],
        name: str,
    ) -> None:
        self.sent_to_nobody = 0
        self._context = context
        self._flow = flow
        self._listening = listening
        self._waiting = waiting
        self.pipe = Pipe(context, on_message=on_message, on_drop=on_drop, dequeue=self._dequeue, on_room=self._on_room)
        waiting.watch(self.pipe.line)
        self.receipts = Receipts(
            context,
            flow.control.pacer,
            send=self.send_to_nobody,
            on_confirmed=self._on_confirmed,
            can_come=receipts,
            pipe_full=lambda: bool(self.pipe.line.turns),
            name=name,
        )
        self._timer: Any = context.timer(FLUSH_SECONDS, FLUSH_SECONDS)
        self._on_slow = on_slow
        self._laggards = Laggards(
            context,
            flow,
            waiting,
            ask=self._ask,
            is_fair=lambda: not self.pipe.line.turns and (receipts is None or receipts()),
            on_slow=on_slow,
        )

    # -- what is written -------------------------------------------------------------------------------------------

    def put(self, prefix: bytes, conn_id: str, data: bytes, *, wait: bool) -> None:
        """Send *data* behind what waits for a connection; see :meth:`greentx.transport.Writer.write`."""
        outbox = self._flow.outbox(prefix, conn_id)
        if outbox.closing:
            return  # after our own close nothing more is delivered
        # The place first, the wait last: calls of other greenlets meanwhile come behind it.
        place = outbox.put(data)
        turn = self._go_on(conn_id)
        self.ask_if_due()
        may_wait = wait and self._waiting.possible()
        if may_wait and turn is not None:
            self._waiting.for_turn(turn, lambda: outbox.withdraw(place), len(data))
        # Though the pipe has room: the browser does not read, or a receipt is missing.
        if outbox.size > OUTBOX_LIMIT:
            if outbox.accounts.by_reports:
                self._laggards.watch()
            if may_wait and self._waiting.for_outbox(conn_id, outbox):
                return
            # This one not counted: a single large answer makes nobody slow.
            bound = self._flow.bounds.max_outbox
            if outbox.size - len(data) > bound and not outbox.dropped:
                self._on_slow(conn_id, f"more than {bound} bytes wait for it (max_outbox)")

    def place_many(self, prefix: bytes, frames: Iterable[tuple[bytes, Sequence[str]]], policy: str) -> Placed:
        """Send data to many, each piece to its own; see :meth:`greentx.transport.Writer.place_many`."""
        # All of it gets its places before anybody waits, once, for the last of them. A wait in between would send the
        # rest to whatever server is there by then, and behind what others wrote meanwhile.
        placed = Placed(self._waiting, self.pipe.line, self._refund)
        now = monotonic()
        for data, conn_ids in frames:
            allowed, refused = self._flow.control.split(conn_ids, len(data))
            placed.reached += len(allowed)
            if allowed:
                placed.spent.append((allowed, len(data)))
            for start in range(0, len(allowed), MAX_CONN_IDS):
                ids = " ".join(allowed[start : start + MAX_CONN_IDS]).encode()
                placed.add(self.pipe.send(b"%b %d:%b, %b" % (prefix, len(ids), ids, data)))
            # Where the server has gone meanwhile nothing of it may come out in the next life.
            if not self.pipe.live:
                placed.reached = 0
                break
            for conn_id in refused:
                put = self._flow.put_unthrottled(prefix, conn_id, data, now, policy)
                if put.slow:
                    placed.slow.append(conn_id)
                elif put.place is not None:
                    placed.reached += 1
                    placed.places.append((put.outbox, put.place))
                    self._go_on(conn_id)
            if refused and self._flow.control.on:
                self._laggards.watch()
        self.ask_if_due()
        return placed

    def send(self, message: bytes, *, wait: bool = True) -> None:
        """Send a message that no account counts. Blocks this greenlet while the pipe is full, unless it must not."""
        turn = self.pipe.send(message)
        if turn is not None and wait:
            self.wait_for(turn, size=len(message))

    def wait_for(self, turn: Turn, conn_ids: Sequence[str] = (), size: int = 0) -> None:
        """Block this greenlet, unless it must not, until a message of its own was sent; see :meth:`Waiting.for_turn`.

        Args:
            conn_ids, size: Which of the flow's accounts it was counted in, to be refunded where it is withdrawn.
        """

        def withdraw() -> bool:
            self.pipe.line.remove(turn)
            self._refund(conn_ids, size)
            return True

        if self._waiting.possible():
            self._waiting.for_turn(turn, withdraw, size)

    def _refund(self, conn_ids: Sequence[str], size: int) -> None:
        self._flow.control.refund(conn_ids, size)
        # What waited behind the window may fit now.
        for conn_id in conn_ids:
            if conn_id in self._flow.outboxes:
                self._go_on(conn_id)

    def close(self, prefix: bytes, conn_ids: Sequence[str], *, wait: bool) -> None:
        """Close connections behind what waits for them; see :meth:`greentx.transport.Writer.close`."""
        at_once, behind = self._flow.close(prefix, conn_ids)
        for conn_id in behind:
            self._waiting.wake(conn_id)  # nothing can be written to it any more
            self._go_on(conn_id)
        # Behind what waits for others a close may go at once: it concerns no other connection.
        self.ask_if_due()
        turn: Turn | None = None
        for start in range(0, len(at_once), MAX_CONN_IDS):
            ids = " ".join(at_once[start : start + MAX_CONN_IDS]).encode()
            turn = self.pipe.send(b"%b %d:%b, " % (prefix, len(ids), ids))
        for conn_id in at_once:
            self._waiting.wake(conn_id)
        if turn is not None and wait and self._waiting.possible():
            # It stays in any case: nothing else would end the connections, which are forgotten here already.
            self._waiting.for_turn(turn, bool, 0)

    def send_to_nobody(self, conn_id: str) -> None:
        """Have the server give notice of a connection that is not there; see :meth:`Writer.send_to_nobody`."""
        # Not counted as dropped without a server: nobody loses anything.
        if self.pipe.live:
            self.sent_to_nobody += 1
            self.pipe.send(b"%b %d:%b, " % (self._listening.prefix_to_nobody(), len(conn_id), conn_id.encode()))

    # -- what may go -----------------------------------------------------------------------------------------------

    def _go_on(self, conn_id: str) -> Turn | None:
        """Send what may go to a connection now; where the pipe is full, return its turn in the line."""
        # What is in an outbox can be withdrawn, what stands in line as a message is joined and counted: it waits in the
        # outbox, which gets a turn.
        if self.pipe.line.turns:
            return self.pipe.line.turn_of(conn_id)
        for message in self._dequeue(conn_id):
            self.pipe.send(message)
        return None

    def _dequeue(self, conn_id: str) -> list[bytes]:
        flow = self._flow
        messages = flow.dequeue(conn_id, monotonic())
        # Half, so that callers that wait do not go on and wait again with each message.
        if flow.waiting(conn_id) <= OUTBOX_LIMIT // 2:
            self._waiting.wake(conn_id)
        if conn_id in flow.outboxes:
            self._keep_time()
        return messages

    def _keep_time(self) -> None:
        # Only while something needs it: an idle set costs no CPU.
        if self._flow.control.timed and not self._timer.active:
            self._timer.again(self._tick, update=True)

    def _on_room(self) -> None:
        self._waiting.unwaited = 0
        self._send_what_may_go()

    def _send_what_may_go(self) -> None:
        # A list: what goes out whole is no longer in the flow's.
        for conn_id in self._flow.waiting_ids():
            self._go_on(conn_id)

    def _tick(self) -> None:
        """Send what large messages may be on their way now; forget connections that have nothing to wait for."""
        if self.pipe.line.turns:
            return  # an outbox that has a turn may not be forgotten
        for conn_id in self._flow.tick(monotonic()):
            self._go_on(conn_id)
        self.ask_if_due()
        if not self._flow.control.timed:
            self._timer.stop()

    def credit(self, conn_id: str, count: int) -> None:
        """The server reports that it wrote *count* bytes to this connection."""
        outbox = self._flow.control.credit(conn_id, count)
        # With nothing to send there is still something to forget, unless the outbox has a turn.
        if outbox is not None and (outbox.size or not self.pipe.line.has_turn(conn_id)):
            if outbox.size:
                self._go_on(conn_id)
            else:
                self._dequeue(conn_id)

    def ask_if_due(self) -> None:
        """Ask for a receipt, where one is due and no other is awaited."""
        if self._flow.control.pacer.due and not self.receipts.awaited:
            if self.pipe.live:
                self.receipts.ask()
            else:  # what is written now is dropped
                self._flow.control.pacer.clear()

    def _ask(self) -> None:
        if self.pipe.live and not self.receipts.awaited:
            self.receipts.ask()

    def _on_confirmed(self) -> None:
        self._laggards.confirmed()
        if self._flow.outboxes:
            self._send_what_may_go()
        self.ask_if_due()

    def hear(self, hearing: Hearing) -> None:
        """Other notices come from now on; see :meth:`FlowControl.hear`."""
        self._flow.control.hear(hearing)
        if hearing is not Hearing.ALL:
            self.receipts.share()
            # What waited for notices goes on by the clock, or is forgotten.
            self._send_what_may_go()
            self._keep_time()

    def stop_pacing(self) -> None:
        """What waits goes out now, and nothing waits from now on; see :meth:`FlowControl.stop_pacing`."""
        self._flow.control.stop_pacing()
        self.receipts.give_up()
        self._send_what_may_go()

    # -- ends ------------------------------------------------------------------------------------------------------

    def lose(self) -> int:
        """The server has gone: drop all that it did not get. Returns how many replies that were."""
        # What is awaited would confirm messages of the next life.
        self.receipts.forget()
        self._timer.stop()
        self._laggards.stop()
        return self.drop()

    def drop(self) -> int:
        """Drop all that waits, and wake all that wait for it; return how many replies that were."""
        # The flow first: a turn that ends wakes its waiter, which looks at what became of its outbox.
        dropped = self._flow.lose() + self.pipe.clear()
        self._waiting.unwaited = 0
        self._waiting.wake_all()
        return dropped

    def busy(self) -> bool:
        """Return whether something waits to be sent."""
        pipe = self.pipe
        return bool(pipe.line.turns or pipe.batch or self._flow.busy())

    def stop(self) -> None:
        """Hand the last messages to ZeroMQ; nothing is sent, asked for or watched after it."""
        self.pipe.stop()
        self.receipts.close()
        self._laggards.stop()
        self._context.unwatch(self._timer)
