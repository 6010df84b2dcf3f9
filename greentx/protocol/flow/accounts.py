"""Who knows how much each connection may still be sent: one interface, with three answers to it.

What the server tells decides which of them keeps the accounts:

* :class:`~greentx.protocol.flow.Pacer`: it tells nothing but receipts. Messages are counted.
* :class:`~greentx.protocol.flow.Ledger`: it tells how many bytes it wrote, and all of that comes here.
* :class:`~greentx.protocol.flow.scattered.Scattered`: the same, but other processes get some of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

__all__ = ["Accounts"]


class Accounts(ABC):
    """What the connections of one server were sent, have read, and may still be sent.

    Attributes:
        by_reports: The server tells what it wrote, and that decides.
        by_clock: Time alone may let more go.
        timed: Something waits for the clock: ask again every few milliseconds.
    """

    __slots__ = ("timed",)

    by_reports: ClassVar[bool]
    by_clock: ClassVar[bool]

    def __init__(self) -> None:
        self.timed = False

    @abstractmethod
    def allows(self, conn_id: str, size: int) -> bool:
        """Return whether a connection for which nothing waits may be sent *size* bytes now, as one message.

        They are counted if so.
        """

    def allows_large(self, conn_id: str, size: int, now: float) -> bool:
        """As :meth:`allows`, which said no, for a large message.

        Args:
            now: A clock's seconds.
        """
        return False

    def split(self, conn_ids: Sequence[str], size: int, busy: Collection[str]) -> tuple[list[str], list[str]]:
        """Return which of many may be sent *size* bytes now, which are counted, and which may not.

        Args:
            conn_ids: One that is named several times gets as many messages.
            busy: Connections for which something is waiting already, so that nothing may overtake it.
        """
        allowed: list[str] = []
        refused: list[str] = []
        allows = self.allows
        for conn_id in conn_ids:
            if conn_id in busy or not allows(conn_id, size):
                refused.append(conn_id)
            else:
                allowed.append(conn_id)
        return allowed, refused

    @abstractmethod
    def take(self, conn_id: str, waiting: int, now: float) -> int:
        """Return how many of *waiting* bytes may go now as one message, and count them; 0: none.

        Args:
            now: A clock's seconds.
        """

    @abstractmethod
    def refund(self, conn_id: str, size: int) -> None:
        """A message of *size* bytes that was counted by :meth:`allows` is not sent after all."""

    @abstractmethod
    def credit(self, conn_id: str, count: int) -> None:
        """The server wrote *count* bytes, as one message."""

    @abstractmethod
    def confirmed(self, conn_id: str) -> int | None:
        """Return a number that grows while this browser reads what it was sent; ``None`` when it has read all.

        It counts bytes. ``None``, too, where nobody tells.
        """

    @abstractmethod
    def unconfirmed(self, conn_id: str) -> int:
        """Return how many bytes may be under way that the server has not reported yet; 0 where it reports none."""

    @abstractmethod
    def drained(self, conn_id: str, now: float) -> bool:
        """Nothing waits for this connection any more. Returns whether its outbox may be forgotten.

        Where it may not, what is written next has to go out of it, so that :meth:`take` is asked.
        """

    @abstractmethod
    def closed(self, conn_id: str) -> bool:
        """The server was told to close this connection. Returns whether it may be forgotten.

        Where it may not, reports of what it was sent are still to come.
        """

    @abstractmethod
    def forget(self, conn_id: str) -> None:
        """The connection is gone."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all: the server's ids have a new meaning."""
