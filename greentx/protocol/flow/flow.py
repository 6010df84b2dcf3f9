"""What waits for the connections of one server, and when it goes: outboxes, closing behind what waits, forgetting.

Effects come out as messages to send. Waiting is an answer: what may not go now stays in its outbox, and goes with a
receipt (:attr:`Pacer.due` says when one is due), with credits (:meth:`FlowControl.credit`), or as the clock goes on
(:attr:`FlowControl.timed`, :meth:`Flow.tick`). How much may go is known by :class:`FlowControl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .accounts import Accounts
from .control import FlowControl
from .limits import BURST, DEFAULT_BOUNDS, OUTBOX_LIMIT, Bounds
from .outbox import Outbox
from .scattered import Hearing

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


class Flow:
    """Decides for the connections of one server, in one of its lives after the other.

    Args:
        burst, paced, hearing: See :class:`~greentx.protocol.flow.FlowControl`.
        bounds: What one browser may hold up.

    Attributes:
        bounds: As given.
        outboxes: What waits, and what has to be remembered of connections for which nothing does, by connection.
        control: Who knows what may go.
        life: How many lives of the server are over.
        waited: In this one something was held back until the server reported what it wrote.
    """

    def __init__(
        self,
        burst: int = BURST,
        *,
        paced: bool = True,
        bounds: Bounds = DEFAULT_BOUNDS,
        hearing: Hearing = Hearing.ALL,
    ) -> None:
        self.bounds = bounds
        self.outboxes: dict[str, Outbox] = {}
        self.control = FlowControl(self.outboxes, burst, paced=paced, hearing=hearing)
        self.life = 0
        self.waited = False

    # -- what is written -------------------------------------------------------------------------------------------

    def outbox(self, prefix: bytes, conn_id: str) -> Outbox:
        """Return the outbox of a connection, to put into what may not go now."""
        outbox = self.outboxes.get(conn_id)
        if outbox is None:
            head = b"%b %d:%b, " % (prefix, len(conn_id), conn_id.encode())
            outbox = self.outboxes[conn_id] = Outbox(head, self.control.accounts)
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
            if outbox is not None and outbox.size:
                outbox.closing = True
                behind.append(conn_id)
            elif outbox is None or not outbox.closed:  # once is enough
                at_once.append(conn_id)
                if not self.control.of(conn_id).closed(conn_id):
                    outbox = self.outbox(prefix, conn_id)
                    outbox.closing = outbox.closed = True
                elif outbox is not None:
                    self.forget(conn_id)
        return at_once, behind

    # -- what may go -----------------------------------------------------------------------------------------------

    def dequeue(self, conn_id: str, now: float) -> list[bytes]:
        """Remove and return the messages that may go now to one connection: what waits, joined; its close behind it.

        Where nothing waits any more its outbox is forgotten, unless it has to be remembered.

        Args:
            now: A clock's seconds, for messages that are large.
        """
        outbox = self.outboxes.get(conn_id)
        messages: list[bytes] = []
        if outbox is None:
            return messages
        accounts = outbox.accounts
        while outbox.size:
            size = accounts.take(conn_id, outbox.size, now)
            if not size:
                self.waited = self.waited or accounts.by_reports
                return messages
            messages.append(outbox.head + outbox.dequeue(size))
        if not outbox.closing:
            done = accounts.drained(conn_id, now)
        else:
            # A message of its own: Mongrel2 closes where the body is empty.
            if not outbox.closed:
                outbox.closed = True
                messages.append(outbox.head)
            done = accounts.closed(conn_id)
        if done:
            self._drop(conn_id, accounts)
        return messages

    def _drop(self, conn_id: str, accounts: Accounts) -> None:
        del self.outboxes[conn_id]
        # Nobody asks them about it any more.
        if accounts is not self.control.accounts:
            accounts.forget(conn_id)

    def waiting_ids(self) -> list[str]:
        """Return the connections whose outboxes hold something, for :meth:`dequeue` to say whether it may go."""
        return [conn_id for conn_id, outbox in self.outboxes.items() if outbox.size]

    def tick(self, now: float) -> list[str]:
        """Forget what need not be remembered by now.

        Returns:
            Those for which something waits that the clock may have let go.
        """
        left: list[str] = []
        self.control.tick(now)
        for conn_id, outbox in list(self.outboxes.items()):
            accounts = outbox.accounts
            if not accounts.by_clock:
                continue
            if not outbox.idle:
                # Those that wait for a receipt only, too: it cannot be told what a message waits for first.
                left.append(conn_id)
                accounts.timed = True
            elif accounts.closed(conn_id) if outbox.closed else accounts.drained(conn_id, now):
                self._drop(conn_id, accounts)
        return left

    # -- who is slow -----------------------------------------------------------------------------------------------

    def too_slow(self, now: float, seconds: float) -> list[str]:
        """Return the connections for which bytes have waited for *seconds*, and that read less than ``min_rate``.

        Only with flow control, where the server tells what they read.
        """
        slow: list[str] = []
        for conn_id, outbox in self.outboxes.items():
            accounts = outbox.accounts
            confirmed = accounts.confirmed(conn_id)
            if confirmed is None or not outbox.size:
                outbox.judged = None
                continue
            if outbox.judged is None:
                outbox.judged = now, confirmed
            since, before = outbox.judged
            if now - since < seconds:
                continue
            read = confirmed - before
            # Reports come for whole messages: nearly all that is under way may have been read.
            if read and read + accounts.unconfirmed(conn_id) >= self.bounds.min_rate * (now - since):
                outbox.judged = now, confirmed
            else:
                slow.append(conn_id)
        return slow

    def judge_anew(self) -> None:
        """Whatever waited, it was not for the browsers: their time begins again."""
        for outbox in self.outboxes.values():
            outbox.judged = None

    # -- ends ------------------------------------------------------------------------------------------------------

    def forget(self, conn_id: str, why: str = "the browser went away") -> bool:
        """The connection is gone, or ended for *why*: drop what waits for it. Returns whether it had an outbox."""
        self.control.of(conn_id).forget(conn_id)
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
        self.control.clear()
        # Waits compare it: readiness alone does not tell one life from the next.
        self.life += 1
        self.waited = False
        return lost

    # -- what waits ------------------------------------------------------------------------------------------------

    def waiting(self, conn_id: str) -> int:
        """Return how many bytes wait for one connection."""
        outbox = self.outboxes.get(conn_id)
        return 0 if outbox is None else outbox.size

    def busy(self) -> int:
        """Return how many outboxes have something to send, a close included."""
        return sum(not outbox.idle for outbox in self.outboxes.values())
