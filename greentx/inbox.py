"""What has come in and waits for the application."""

from __future__ import annotations

from collections import deque
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
        items: ``(connection, request)`` pairs; consumers take them from the left.
        ended: Nothing more will be put in.
    """

    def __init__(self, limit: int) -> None:
        self.items: deque[tuple[Connection, Request]] = deque()
        self.limit = limit
        self.ended = False
        self.receivers_wait = False
        self._filled = Event()
        self._space = Event()

    def put(self, connection: Connection, request: Request) -> None:
        """Add one event; never blocks, so the hub may call it."""
        self.items.append((connection, request))
        if not self._filled.is_set():
            self._filled.set()

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
        if self.items or self.ended:
            return True
        self._filled.clear()
        return bool(self._filled.wait(timeout)) or bool(self.items) or self.ended

    def end(self) -> None:
        """Nothing more comes: consumers finish what is there and leave."""
        self.ended = True
        self._filled.set()
        self._space.set()

    def __len__(self) -> int:
        return len(self.items)
