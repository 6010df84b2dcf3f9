"""What may be sent to whom now, for one server: bursts, credits, outboxes, closing behind what waits, forgetting.

Effects come out as messages to send. Waiting is an answer: what may not go now stays in its outbox, and goes with a
receipt (:attr:`Flow.pacer` says when one is due), with credits (:meth:`Flow.credit`), or as the clock goes on
(:attr:`Flow.timed`, :meth:`Flow.tick`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .large import LargeMessages
from .ledger import Ledger
from .limits import BURST, DEFAULT_BOUNDS, OUTBOX_LIMIT, QUEUED, ROOM, Bounds
from .outbox import Outbox
from .pacer import Pacer, Unpaced
from .scattered import Hearing, Scattered

__all__ = ["Flow", "Put"]


class Put(NamedTuple):
    """What became of data for a connection that may not be sent it now.

    Attributes:
        outbox: The connection's.
        place: The data's place in it; ``None`` where it was not put there.
        slow: The connection is to be ended.
    """

    outbox: Outbox
    place: int | None
    slow: bool


def _refuse(conn_id: str, size: int, now: float) -> bool:
    """For credits: they said all."""
    return False


class Flow:
    """Decides for the connections of one server, in one of its lives after the other.

    Args:
        burst: See :class:`~greentx.protocol.flow.Pacer`.
        paced: False where a stand-in for Mongrel2 listens, which has no limits.
        bounds: What one browser may hold up.
        hearing: See :meth:`hear`.

    Attributes:
        bounds: As given.
        paced: As above; see :meth:`stop_pacing`.
        flow_control: Credits decide: the server announced them, or may have done so to other processes.
        announced: It is known to give credits; see :meth:`set_flow_control`.
        shared: Some of its notices go to others, or all.
        pacer: The count of messages.
        outboxes: What waits, and the accounts that are still needed, by connection.
        allows: ``allows(conn_id, size)`` returns whether a connection without an outbox may be sent so many bytes now,
            as one message, and counts them if so.
        allows_large: ``allows_large(conn_id, size, now)`` does so for a large message that was refused for its size.
        timed: Something waits for the clock: call :meth:`tick` every few milliseconds.
        life: How many lives of the server are over.
    """

    allows: Callable[[str, int], bool]
    allows_large: Callable[[str, int, float], bool]

    def __init__(
        self,
        burst: int = BURST,
        *,
        paced: bool = True,
        bounds: Bounds = DEFAULT_BOUNDS,
        hearing: Hearing = Hearing.ALL,
    ) -> None:
        self.bounds = bounds
        self.paced = paced
        self.announced = False
        self.shared = paced and hearing is not Hearing.ALL
        self.flow_control = self.shared
        self.outboxes: dict[str, Outbox] = {}
        self.pacer: Pacer = Pacer(burst) if paced else Unpaced()
        self.timed = False
        self.life = 0
        # A connection is in one of the two, ledger or outboxes, and takes its account along when it moves.
        self._ledger = Ledger()
        self._large = LargeMessages(self.pacer)
        # In its place where credits scatter. There an outbox leaves its account where it is.
        self._scattered = Scattered(self.outboxes)
        self._choose()

    def set_flow_control(self, announced: bool) -> None:
        """Say whether the server grants credits (``download.flow_control``), which then decide."""
        self.flow_control = self.announced = announced
        self._choose()

    def hear(self, hearing: Hearing) -> None:
        """Say which notices come from now on.

        With :attr:`Hearing.NONE` a browser that reads more slowly than
        :data:`~greentx.protocol.flow.UNHEARD_RATE` may lose its connection.
        """
        if not self.paced:
            return
        self._scattered.heard = hearing is not Hearing.NONE
        if hearing is Hearing.ALL:
            # Of what is under way some was told to others, who do not tell us.
            self.flow_control, self.shared = self.announced, False
            self._scattered.close_idle()
        elif not self.shared:
            self.shared = True
            for conn_id in list(self._ledger):
                window, _ = self._ledger.close(conn_id)
                self._scattered.open(conn_id, ROOM - window)
            for conn_id, outbox in self.outboxes.items():
                if outbox.window is not None:
                    self._scattered.open(conn_id, ROOM - outbox.window)
                    outbox.window = 0
            # Announced or not: others may have been told.
            self.flow_control = self.flow_control or hearing is Hearing.SOME
            self.timed = True
        self._choose()

    def renew(self, conn_id: str) -> None:
        """A connection asks anew: what it was sent before, by whomever, is written, unless it pipelines."""
        if conn_id not in self.outboxes:
            self._scattered.close(conn_id)

    def stop_pacing(self) -> None:
        """The server is not a Mongrel2: everything may go."""
        self.paced = self.shared = False
        self.pacer = Unpaced()
        self.flow_control = self.announced
        self._choose()

    def _choose(self) -> None:
        # An attribute, not a method that asks each time: it is on the way of every answer.
        self._scattered.count = None if self.announced else self.pacer.allows
        self.allows_large = _refuse if self.flow_control else self._large.allows
        if not self.flow_control:
            self.allows = self.pacer.allows
        else:
            self.allows = self._scattered.spend if self.shared else self._ledger.spend

    # -- what is written -------------------------------------------------------------------------------------------

    def split(self, conn_ids: Sequence[str], size: int) -> tuple[list[str], list[str]]:
        """Return which of many may be sent *size* bytes at once, which are counted, and which may not."""
        outboxes = self.outboxes
        if not self.flow_control:
            return self.pacer.split(conn_ids, outboxes)
        spend = self.allows
        allowed: list[str] = []
        refused: list[str] = []
        for conn_id in conn_ids:
            outbox = outboxes.get(conn_id)
            # An outbox that is empty and knows its window lets a message pass: nothing is overtaken.
            if spend(conn_id, size) if outbox is None else outbox.spend(size):
                allowed.append(conn_id)
            else:
                refused.append(conn_id)
        return allowed, refused

    def refund(self, conn_ids: Sequence[str], size: int) -> None:
        """A message of *size* bytes that was allowed is not sent after all: its bytes may be spent again.

        The pacer's count stays: it is gone with the next receipt.
        """
        if self.flow_control:
            for conn_id in conn_ids:
                if not self._ledger.refund(conn_id, size) and not self._scattered.refund(conn_id, size):
                    outbox = self.outboxes.get(conn_id)
                    if outbox is not None:
                        outbox.refund(size)

    def outbox(self, prefix: bytes, conn_id: str) -> Outbox:
        """Return the outbox of a connection, to put into what may not go now."""
        outbox = self.outboxes.get(conn_id)
        if outbox is None:
            head = b"%b %d:%b, " % (prefix, len(conn_id), conn_id.encode())
            window: int | None = None
            confirmed = 0
            if self.flow_control and self.shared:
                self._scattered.open(conn_id)
                window = 0
            elif self.flow_control:
                window, confirmed = self._ledger.close(conn_id)
            outbox = self.outboxes[conn_id] = Outbox(head, window, confirmed, self._large.forget(conn_id))
        return outbox

    def put_unthrottled(self, prefix: bytes, conn_id: str, data: bytes, now: float, policy: str) -> Put:
        """Put *data* into an outbox for a caller that does not wait where much waits, as far as *policy* has it.

        Args:
            policy: One of :data:`~greentx.protocol.flow.SLOW_POLICIES`, for a browser that has been slow for too long;
                or empty, for what may not be missing.
        """
        outbox = self.outbox(prefix, conn_id)
        # Nothing is delivered after our own close.
        if outbox.closing:
            return Put(outbox, None, False)
        if not policy:
            return Put(outbox, outbox.put(data), False)
        if self._is_slow(outbox, now):
            if policy != "drop-oldest":
                return Put(outbox, None, policy == "close")
            outbox.drop_oldest(max(0, OUTBOX_LIMIT - len(data)))
        return Put(outbox, outbox.put_unthrottled(data, now), False)

    def _is_slow(self, outbox: Outbox, now: float) -> bool:
        # A burst makes nobody slow: what counts is for how long much waits, unless it is too much for anybody.
        bounds, since = self.bounds, outbox.behind_since
        return (since is not None and now - since >= bounds.slow_timeout) or outbox.size > bounds.max_outbox

    def close(self, prefix: bytes, conn_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Close connections, each behind what waits for it; what is written later is dropped.

        Returns:
            Those that a message may close right now, which is to be sent; and those whose outboxes go on first.
        """
        at_once: list[str] = []
        behind: list[str] = []
        for conn_id in conn_ids:
            outbox = self.outboxes.get(conn_id)
            # Bytes are under way to it: it has to be known until the server has told what it wrote.
            if outbox is None and conn_id in self._ledger:
                outbox = self.outbox(prefix, conn_id)
            if outbox is not None and outbox.size:
                outbox.closing = True
                behind.append(conn_id)
            elif outbox is None or outbox.window is None or conn_id in self._scattered:
                self.forget(conn_id)
                at_once.append(conn_id)
            elif not outbox.closed:  # once is enough
                outbox.closing = outbox.closed = True
                at_once.append(conn_id)
        return at_once, behind

    # -- what may go -----------------------------------------------------------------------------------------------

    def dequeue(self, conn_id: str, now: float) -> list[bytes]:
        """Remove and return the messages that may go now to one connection: what waits, joined; its close behind it.

        Where nothing waits any more its outbox is forgotten, unless something of it is still under way.

        Args:
            now: A clock's seconds, for messages that are large.
        """
        outbox = self.outboxes.get(conn_id)
        if outbox is None:
            return []
        messages: list[bytes] = []
        if outbox.size:
            if outbox.window is None:
                # The clock before the count: a message that the pacer allows is counted.
                if self.paced and outbox.under_way(now) >= QUEUED:
                    self.timed = True
                    return messages
                if not self.pacer.allows(conn_id):
                    return messages
            elif conn_id in self._scattered:
                messages = self._scattered.cut(conn_id, outbox, now)
                # Maybe nobody tells when more may go: the clock does.
                self.timed = self.timed or bool(outbox.size)
            # With credits there may be data and no window: then nothing comes out.
            data = outbox.dequeue() if outbox.size else b""
            if data:
                messages.append(outbox.head + data)
                if outbox.window is None:
                    outbox.estimate(len(data), now)
            if outbox.size:
                return messages
        # A message of its own: Mongrel2 closes where the body is empty.
        if outbox.closing and not outbox.closed:
            outbox.closed = True
            messages.append(outbox.head)
        if self.paced and outbox.window is None and not outbox.closing and outbox.under_way(now):
            self.timed = True
        # A full window: all that was sent was reported. Else its account is needed.
        elif outbox.window is None or outbox.window == ROOM or conn_id in self._scattered:
            del self.outboxes[conn_id]
            if outbox.closed:
                self._scattered.close(conn_id)
        return messages

    def waiting_ids(self) -> list[str]:
        """Return the connections whose outboxes hold something, for :meth:`dequeue` to say whether it may go."""
        return [conn_id for conn_id, outbox in self.outboxes.items() if outbox.size]

    def tick(self, now: float) -> list[str]:
        """Forget what need not be remembered by now.

        Returns:
            Those for which something waits that the clock may have let go.
        """
        left: list[str] = []
        # Those that wait for a receipt only are left too: it cannot be told what a message waits for first.
        self.timed = False
        if not self._scattered.tick(now):
            self._without_credits()
        for conn_id, outbox in list(self.outboxes.items()):
            if conn_id in self._scattered and outbox.size:
                left.append(conn_id)
                self.timed = True
            if outbox.window is None:
                if outbox.size:
                    left.append(conn_id)
                elif not outbox.under_way(now):
                    del self.outboxes[conn_id]
                    continue
                self.timed = True
        return left

    def _without_credits(self) -> None:
        """Nobody spoke of credits here, and none came: there is no flow control."""
        self.flow_control = False
        self._scattered.clear()
        for outbox in self.outboxes.values():
            outbox.window = None
        self._choose()

    # -- what the server says --------------------------------------------------------------------------------------

    def credit(self, conn_id: str, count: int) -> Outbox | None:
        """The server wrote *count* bytes. Returns the connection's outbox, if any, out of which more may go now."""
        if self._ledger.credit(conn_id, count):
            return None
        # The announcement was for another process.
        if not self.announced and self.paced:
            self.set_flow_control(True)
        written = self._scattered.credit(conn_id, count)
        outbox = self.outboxes.get(conn_id)
        if outbox is not None:
            if written is None:
                outbox.credit(count)
            else:
                outbox.confirmed += written
        return outbox

    def unconfirmed(self) -> list[str]:
        """Return the connections that were sent bytes which the server, with flow control, did not report yet."""
        return [*self._ledger, *(conn_id for conn_id, outbox in self.outboxes.items() if outbox.window is not None)]

    def confirmed(self, conn_id: str) -> int | None:
        """Return a number that grows while this browser reads what it was sent; ``None`` when it has read all.

        Only known with flow control; without it ``None``, too.
        """
        outbox = self.outboxes.get(conn_id)
        if outbox is None:
            return self._ledger.confirmed(conn_id)
        return None if outbox.window is None else outbox.confirmed

    def too_slow(self, now: float, seconds: float) -> list[str]:
        """Return the connections for which bytes have waited for *seconds*, and that read less than ``min_rate``.

        Only with flow control, where the server tells what they read.
        """
        slow: list[str] = []
        for conn_id, outbox in self.outboxes.items():
            if outbox.window is None or not outbox.size:
                outbox.judged = None
                continue
            if outbox.judged is None:
                outbox.judged = now, outbox.confirmed
            since, before = outbox.judged
            if now - since < seconds:
                continue
            read = outbox.confirmed - before
            # Reports come for whole messages: nearly all that is under way may have been read.
            if read and read + ROOM - outbox.window >= self.bounds.min_rate * (now - since):
                outbox.judged = now, outbox.confirmed
            else:
                slow.append(conn_id)
        return slow

    def judge_anew(self) -> None:
        """Whatever waited, it was not for the browsers: their time begins again."""
        for outbox in self.outboxes.values():
            outbox.judged = None

    def forget(self, conn_id: str, why: str = "the browser went away") -> bool:
        """The connection is gone, or ended for *why*: drop what waits for it. Returns whether it had an outbox."""
        self._ledger.close(conn_id)
        self._scattered.close(conn_id)
        self._large.forget(conn_id)
        outbox = self.outboxes.pop(conn_id, None)
        if outbox is None:
            return False
        # Its parts stay in it: what waits there can be withdrawn by those that wait, to no effect.
        outbox.dropped = why
        return True

    def lose(self) -> int:
        """The server has gone, and its ids mean nothing any more. Returns how many outboxes held something."""
        lost = 0
        for outbox in self.outboxes.values():
            outbox.dropped = "the server has gone"
            lost += bool(outbox.size)
        self.outboxes.clear()
        self._ledger.clear()
        self._scattered.clear()
        self._large.clear()
        self.pacer.forget()
        self.timed = False
        # Waits compare it: readiness alone does not tell one life from the next.
        self.life += 1
        self.set_flow_control(False)
        return lost

    # -- what waits ------------------------------------------------------------------------------------------------

    def waiting(self, conn_id: str) -> int:
        """Return how many bytes wait for one connection."""
        outbox = self.outboxes.get(conn_id)
        return 0 if outbox is None else outbox.size

    def busy(self) -> int:
        """Return how many outboxes have something to send, a close included."""
        return sum(not outbox.idle for outbox in self.outboxes.values())
