"""What has come in and waits for the application."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gevent.event import Event

from ..protocol.bounds import MAX_PENDING_BYTES, size_of
from ..protocol.request import Request
from ..protocol.websocket.registry import Sid
from ..transport import Context, SocketClosed
from .waiter import Waiter

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Inbox"]


log = logging.getLogger("greentx.transceiver")

# Between two warnings that it is full.
_WARN_SECONDS = 10.0


class Inbox:
    """Events in the order of their arrival, between the receivers and the greenlets that call ``recv()``.

    Args:
        limit: From this many on the receivers wait, and the server keeps what comes.
        byte_limit: The same in bytes, counted as they are in memory.

    Attributes:
        items: ``(sid, connection, request)``, as ``Transceiver.recv`` yields them; receivers add them at the right (and
            :meth:`wake`), consumers take them from the left, by :meth:`pop` while :attr:`by_pop`.
        by_pop: Somebody has to know of each event that is taken out: :attr:`receivers_wait`, or :attr:`watch` is set.
        watch: Where it is set, called by a consumer that asks for an event: with the one that it gets, or ``None``
            where it has to wait. Set it by :meth:`watch_consumers`.
        dispatching: Greenlets that hand on to handlers what they take out.
        consumers_wait: The greenlets that wait for an event, the longest first.
        receivers_wait: Receivers wait for space, so they have to be told when an event was taken out.
        held: No more bytes than this wait here. To count those that are taken out would cost each event something: so
            what comes is added as the most that it may take, begins anew where nothing waited, and is counted where it
            reaches the limit.
        ended: Nothing more will be put in.
    """

    def __init__(self, limit: int, byte_limit: int = MAX_PENDING_BYTES) -> None:
        self.items: deque[tuple[Sid, Connection, Request]] = deque()
        # Reached, not enforced: put() never blocks, since the hub calls it; receivers ask before they read on.
        self.limit = limit
        self.byte_limit = byte_limit
        self.held = 0
        self.ended = False
        self.dispatching: WeakSet[Any] = WeakSet()
        self.consumers_wait: deque[Waiter] = deque()
        self.receivers_wait = False
        self.by_pop = False
        self.watch: Callable[[Request | None], object] | None = None
        self._space = Event()
        self._warn_after = 0.0

    def put(self, connection: Connection, request: Request, size: int = 0) -> None:
        """Add one event; never blocks, so the hub may call it.

        Args:
            size: How many bytes it may take at most, where that is known; 0: it is counted here.
        """
        size = size or size_of(request)
        self.held = self.held + size if self.items else size
        self.items.append(((request.sender, request.conn_id), connection, request))
        if self.consumers_wait:
            self.wake()

    def wake(self) -> None:
        """Let one of the waiting consumers run: one event is for one of them."""
        self.consumers_wait.popleft().wake()

    def wait_for_space(self) -> None:
        """Block this greenlet while the inbox is full."""
        # A loop, as several receivers wake at once and the first of them may fill it again.
        while self._is_full() and not self.ended:
            self.receivers_wait = self.by_pop = True
            self._space.clear()
            self._space.wait()

    def _is_full(self) -> bool:
        if self.held >= self.byte_limit:
            self.held = sum(size_of(request) for _, _, request in self.items)
            if self.held >= self.byte_limit:
                self._warn()
                return True
        return len(self.items) >= self.limit

    def _warn(self) -> None:
        # Once in a while: an application that is behind for good fills it again and again.
        now = monotonic()
        if now >= self._warn_after:
            self._warn_after = now + _WARN_SECONDS
            log.warning(
                "%d events of %d bytes wait for the application, max_pending_bytes is %d: nothing more is received",
                len(self.items),
                self.held,
                self.byte_limit,
            )

    def pop(self) -> tuple[Sid, Connection, Request]:
        """Take out the oldest event, of which there is one."""
        item = self.items.popleft()
        if self.receivers_wait:
            self.held -= size_of(item[2])
            self.fetched()
        if self.watch is not None:
            self.watch(item[2])
        return item

    def watch_consumers(self, watch: Callable[[Request | None], object]) -> None:
        """Have *watch* called as the attribute says, from now on."""
        self.watch = watch
        self.by_pop = True

    def fetched(self) -> None:
        """A consumer popped an event while :attr:`receivers_wait`: let them go on once half of the inbox is free."""
        # Half and not one: a receiver that wakes for each single event would switch greenlets for each.
        if not self.items:
            self.held = 0
        if len(self.items) <= self.limit // 2 and self.held <= self.byte_limit // 2:
            self.receivers_wait = False
            self.by_pop = self.watch is not None
            self._space.set()

    def wait(self, timeout: float | None) -> bool:
        """Block this greenlet until something is there or the inbox has ended; False after *timeout* seconds."""
        if self.watch is not None:
            self.watch(None)
        deadline = None if timeout is None else monotonic() + timeout
        while not self.items and not self.ended:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            # One of its own for each wait: to wake all consumers for one event would be for nothing.
            consumer = Waiter()
            self.consumers_wait.append(consumer)
            try:
                consumer.sleep(left)
            except BaseException:  # raised again
                if consumer.woken and self.consumers_wait:
                    # Killed after it was woken and before it popped the event: another one has to have it.
                    self.wake()
                raise
            finally:
                if not consumer.woken:
                    self.consumers_wait.remove(consumer)
            if left is not None and not consumer.woken:
                break
        return bool(self.items) or self.ended

    def drained(self) -> bool:
        """Whether a consumer that has handled all it got is at the end: nothing is there, and nothing more comes."""
        # What it handled last may have waited for that: its end comes as an event.
        if self.ended and not self.items and self.watch is not None:
            self.watch(None)
        return self.ended and not self.items

    def events_for_thread(
        self, context: Context, timeout: float | None
    ) -> Iterator[tuple[Sid, Connection, Request] | tuple[None, None, None]]:
        """Yield events in another native thread than the hub's, until the end; ``(None, ...)`` as ``recv()`` does.

        An Event wakes greenlets of its own hub only, so a greenlet of the hub waits for the thread.
        """
        while True:
            try:
                item = context.hand_over(self._next, timeout)
            except SocketClosed:
                if self.ended:
                    return
                raise
            if item is None:
                return
            # As in recv(): no name of this frame holds the event until the next one comes.
            taken = [item]
            del item
            yield taken.pop()

    def _next(self, timeout: float | None) -> tuple[Sid, Connection, Request] | tuple[None, None, None] | None:
        while not self.items and not self.drained():
            if not self.ended and not self.wait(timeout):
                return None, None, None
        return self.pop() if self.items else None

    def move(self, connection: Connection, other: Inbox) -> None:
        """Put the events of one connection set into another inbox, in their order."""
        # A deque has no filter, so it is rebuilt; nothing here switches greenlets, so nobody sees it half done.
        mine = [item for item in self.items if item[1] is connection]
        rest = [item for item in self.items if item[1] is not connection]
        self.items.clear()
        self.items.extend(rest)
        for _, _, request in mine:
            other.put(connection, request)
        if self.receivers_wait:
            self.held = sum(size_of(request) for _, _, request in self.items)
            self.fetched()

    def end(self) -> None:
        """Nothing more comes: consumers finish what is there and leave."""
        # Set before they wake, as that is what they look at.
        self.ended = True
        while self.consumers_wait:
            self.wake()
        self._space.set()

    def __len__(self) -> int:
        return len(self.items)
