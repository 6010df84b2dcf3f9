"""With ``download.flow_control``, where several processes share a handler entry: credits of which only some come here.

Mongrel2 hands its notices out in turn, so each process gets some of the credits for what it sent, and some for what
others sent. But the messages to one connection are written in their order, and each credit says how many bytes its
message had (probed). So the credit of one message says that all before it were written, too, whoever got theirs.

Therefore a large answer goes out in pieces of different sizes, and less than the whole window is used. The more
processes there are, the more pieces a window needs, so that the credit of one comes here. How many there are is told by
the credits themselves: of n processes each gets every n-th. Where the window is full and no credit comes, either the
browser does not read, or others got all of them: then very small pieces follow, at longer and longer intervals, out of
what was kept back. The credit of any of them shows how far the browser is.

No I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from enum import Enum

from .accounts import Accounts
from .limits import CREDITS, ROOM, UNHEARD_RATE

__all__ = ["MAX_SCATTERED", "PIECE", "PROBE_SECONDS", "Account", "Hearing", "Scattered"]

#: A large answer goes out in pieces of this size, each a byte smaller than the one before it; and in smaller ones where
#: credits are rare.
PIECE = 16384
_MIN_PIECE = 1024

#: So long after the last piece the first probe goes out, and a few more, as many as bring a credit; each next one waits
#: twice as long, up to the maximum.
PROBE_SECONDS = 0.005
_MAX_EAGER = 32
_MAX_PROBE_SECONDS = 1.0

#: Accounts that are kept at most. What became of a connection may be told to others only, so the oldest are forgotten.
MAX_SCATTERED = 16384

# The gap between two credits falls by this fraction with each.
_FORGET = 32

# A server that announces credits may have done so to others only. One that is not known to, and that has written
# nothing of a full window after so many seconds, is held for one without flow control.
_ANNOUNCE_SECONDS = 0.25


class Hearing(Enum):
    """Which of a server's notices come to this process."""

    ALL = "nobody else pulls from the handler entry"
    SOME = "several processes do, and get them in turn"
    NONE = "it pulls no more"


class Account:
    """What is under way to one connection, as far as this process can know.

    Attributes:
        under_way: Bytes that were sent, and are not known to be written.
        confirmed: Bytes that are known to be written.
    """

    __slots__ = ("_before", "_due", "_pause", "_probes", "_sizes", "confirmed", "under_way")

    def __init__(self, under_way: int = 0, confirmed: int = 0) -> None:
        self.under_way = under_way
        self.confirmed = confirmed
        # What was sent before the account began, in messages whose sizes are not known; and those sent since, in order.
        self._before = under_way
        self._sizes: deque[int] = deque()
        self._probes = 0
        self._pause = PROBE_SECONDS
        self._due = 0.0

    def spend(self, size: int) -> bool:
        """Return whether a message of *size* bytes may be sent now, and count it if so."""
        if self.under_way + size > ROOM:
            return False
        self.sent(size)
        return True

    def sent(self, size: int) -> None:
        """A message of *size* bytes was sent."""
        self._sizes.append(size)
        self.under_way += size

    def refund(self, size: int) -> None:
        """The last message of *size* bytes was not sent after all."""
        for index in range(len(self._sizes) - 1, -1, -1):
            if self._sizes[index] == size:
                del self._sizes[index]
                self.under_way -= size
                return

    @property
    def messages(self) -> int:
        """How many messages are not known to be written."""
        return len(self._sizes)

    def next_size(self, now: float, gap: float = 1.0) -> int:
        """Return how many bytes the next message of a large answer may have; 0: none may be sent now.

        Args:
            now: A clock's seconds.
            gap: In how many messages one credit comes here.
        """
        room = ROOM - self.under_way
        if room > 0:
            # So small that two credits of each window come here.
            piece = max(_MIN_PIECE, min(PIECE, int(ROOM / (2 * gap))))
            return min(room, max(piece - len(self._sizes), piece // 2))
        if not self._due:
            self._due = now + self._pause
        if now < self._due:
            return 0
        size = self._probes + 1
        if self.under_way + size > CREDITS:
            return 0
        self._probes = size
        self._pause = min(2 * self._pause, _MAX_PROBE_SECONDS) if size > min(3 + gap, _MAX_EAGER) else self._pause
        self._due = now + self._pause
        return size

    def clear(self) -> None:
        """All that was sent counts as written."""
        self._sizes.clear()
        self.under_way = self._before = 0

    def credit(self, count: int) -> int:
        """A message of *count* bytes was written. Returns how many bytes more are known to be written, 0 for none."""
        # The oldest of that size: nothing is held for written that may not be.
        try:
            index = self._sizes.index(count)
        except ValueError:
            written = min(count, self._before)
            self._before -= written
        else:
            written = self._before + sum(self._sizes.popleft() for _ in range(index + 1))
            self._before = 0
        if not written:
            return 0
        self.under_way -= written
        self.confirmed += written
        self._probes, self._pause, self._due = 0, PROBE_SECONDS, 0.0
        return written


class Scattered(Accounts):
    """The accounts of the connections that were sent something.

    Args:
        busy: Connections for which something waits; somebody else's.

    Attributes:
        count: While the server is not known to give credits: counts a message to a connection, and returns whether it
            may be sent; the limit may be the number of messages.
        hearing: Which credits come here.
    """

    __slots__ = ("_accounts", "_busy", "_full_since", "_gap", "_written_at", "count", "hearing")

    by_reports = by_clock = True

    def __init__(self, busy: Container[str]) -> None:
        super().__init__()
        self._busy = busy
        # The oldest first.
        self._accounts: dict[str, Account] = {}
        self._full_since: float | None = None
        self._written_at: float | None = None
        # In how many messages of a large answer one credit comes here. Rises at once, and falls slowly.
        self._gap = 1.0
        self.count: Callable[[str], bool] | None = None
        self.hearing = Hearing.ALL

    def __contains__(self, conn_id: object) -> bool:
        return conn_id in self._accounts

    def open(self, conn_id: str, under_way: int = 0, confirmed: int = 0) -> Account:
        """Return the account of a connection, made where there is none, with so many bytes under way and confirmed."""
        account = self._accounts.get(conn_id)
        if account is None:
            if len(self._accounts) >= MAX_SCATTERED:
                self._accounts.pop(next((one for one in self._accounts if one not in self._busy), ""), None)
            account = self._accounts[conn_id] = Account(under_way, confirmed)
        return account

    def allows(self, conn_id: str, size: int) -> bool:
        """See :meth:`Accounts.allows`."""
        account = self.open(conn_id)
        if not account.spend(size):
            return False
        if self.count is None or self.count(conn_id):
            return True
        account.refund(size)
        return False

    def take(self, conn_id: str, waiting: int, now: float) -> int:
        """See :meth:`Accounts.take`: a piece at a time, of which the credit tells how far the browser is."""
        account = self.open(conn_id)
        if self.count is None or self.count(conn_id):
            size = min(waiting, account.next_size(now, self._gap))
            if size:
                account.sent(size)
                return size
        # Maybe nobody tells when more may go: the clock does.
        self.timed = True
        if self.count is not None and self._full_since is None:
            self._full_since = now
        return 0

    def refund(self, conn_id: str, size: int) -> None:
        """See :meth:`Accounts.refund`."""
        account = self._accounts.get(conn_id)
        if account is not None:
            account.refund(size)

    def credit(self, conn_id: str, count: int) -> None:
        """See :meth:`Accounts.credit`: all that was sent before is known to be written, too."""
        self._full_since = None
        account = self._accounts.get(conn_id)
        if account is None:
            return
        before, is_full = account.messages, 2 * account.under_way >= ROOM
        written = account.credit(count)
        # Of a small answer all messages but one may have been missed: that says nothing.
        if written and is_full:
            self._gap = max(before - account.messages, self._gap - self._gap / _FORGET)
        if not account.under_way and conn_id not in self._busy:
            del self._accounts[conn_id]

    def confirmed(self, conn_id: str) -> int | None:
        """See :meth:`Accounts.confirmed`: only known while something waits, since others may be told of the last."""
        if conn_id not in self._busy:
            return None
        account = self._accounts.get(conn_id)
        return 0 if account is None else account.confirmed

    def unconfirmed(self, conn_id: str) -> int:
        """See :meth:`Accounts.unconfirmed`: others may have been told of it."""
        return ROOM

    def drained(self, conn_id: str, now: float) -> bool:
        """See :meth:`Accounts.drained`: it may, unless what is under way will be reported here."""
        return not self._awaits_reports(conn_id)

    def closed(self, conn_id: str) -> bool:
        """See :meth:`Accounts.closed`: as with :meth:`drained`."""
        if self._awaits_reports(conn_id):
            return False
        self.forget(conn_id)
        return True

    def _awaits_reports(self, conn_id: str) -> bool:
        # Of some of it others may have been told before. But nothing is lost if all counts: it does until the next
        # report only.
        if self.hearing is not Hearing.ALL or self.count is not None:
            return False
        account = self._accounts.get(conn_id)
        return account is not None and account.under_way > 0

    def tick(self, now: float) -> bool:
        """Let time do what nobody tells. Returns False where the server turns out to give no credits."""
        unheard = self.hearing is Hearing.NONE
        if unheard and (self._written_at is None or now >= self._written_at):
            if self._written_at is not None:
                for account in self._accounts.values():
                    account.clear()
            self._written_at = now + ROOM / UNHEARD_RATE
        if unheard or self.count is None or self._full_since is None:
            return True
        return now - self._full_since <= _ANNOUNCE_SECONDS

    def forget(self, conn_id: str) -> None:
        """See :meth:`Accounts.forget`."""
        self._accounts.pop(conn_id, None)

    def forget_idle(self) -> None:
        """Forget those for which nothing waits."""
        for conn_id in [conn_id for conn_id in self._accounts if conn_id not in self._busy]:
            del self._accounts[conn_id]

    def clear(self) -> None:
        """See :meth:`Accounts.clear`."""
        self._accounts.clear()
        self._full_since = None
        self.timed = False
