"""What has come in and waits for the application."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from gevent.event import Event

from .wire import Request

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Inbox"]


class Inbox:
    """Events in the order of their arrival, between the receivers and whoever calls ``recv()``.

    Args:
        limit: From this many on the receivers wait, and the server keeps what comes.

    Attributes:
        items: ``(connection, request)`` pairs; receivers add them at the right (and :meth:`wake`), consumers take them
            from the left.
        consumers_wait: Somebody has to be woken when an event comes.
        receivers_wait: Somebody has to be told when an event was taken (:meth:`taken`).
        ended: Nothing more will be put in.
    """

    def __init__(self, limit: int) -> None:
        self.items: deque[tuple[Connection, Request]] = deque()
        self.limit = limit
        self.ended = False
        self.consumers_wait: deque[Event] = deque()
        self.receivers_wait = False
        self._space = Event()

    def put(self, connection: Connection, request: Request) -> None:
        """Add one event; never blocks, so the hub may call it."""
        self.items.append((connection, request))
        if self.consumers_wait:
            self.wake()

    def wake(self) -> None:
        """Let one of those run who wait for an event: one event is for one of them."""
        self.consumers_wait.popleft().set()

    def wait_for_space(self) -> None:
        """Block this greenlet while the inbox is full."""
        while len(self.items) >= self.limit and not self.ended:
            self.receivers_wait = True
            self._space.clear()
            self._space.wait()

    def taken(self) -> None:
        """A consumer took something while :attr:`receivers_wait`: let them go on once half of it is free."""
        if len(self.items) <= self.limit // 2:
            self.receivers_wait = False
            self._space.set()

    def wait(self, timeout: float | None) -> bool:
        """Block this greenlet until something is there or the inbox has ended; False after *timeout* seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        while not self.items and not self.ended:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            woken = Event()
            self.consumers_wait.append(woken)
            try:
                woken.wait(left)
            except BaseException:
                if woken.is_set() and self.consumers_wait:
                    self.wake()  # killed with the news in hand: somebody else has to have it
                raise
            finally:
                if not woken.is_set():
                    self.consumers_wait.remove(woken)
            if left is not None and not woken.is_set():
                break
        return bool(self.items) or self.ended

    def move(self, connection: Connection, other: Inbox) -> None:
        """Put the events of one connection set into another inbox, in their order."""
        mine = [item for item in self.items if item[0] is connection]
        rest = [item for item in self.items if item[0] is not connection]
        self.items.clear()
        self.items.extend(rest)
        for item in mine:
            other.put(*item)
        if self.receivers_wait:
            self.taken()

    def end(self) -> None:
        """Nothing more comes: consumers finish what is there and leave."""
        self.ended = True
        while self.consumers_wait:
            self.wake()
        self._space.set()

    def __len__(self) -> int:
        return len(self.items)
