"""Requests that wait while nobody has room for them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from ..handler.connection import Connection
from ..protocol.bounds import MESSAGE_BYTES
from ..transport import Context
from .forwarded import Forwarded
from .nodes import Nodes

__all__ = ["ALONE_WARNING_SECONDS", "MAX_WAITING", "MAX_WAITING_BYTES", "Waiting"]

log = logging.getLogger("greentx.relay")

#: How many may wait, and their bytes. Those beyond are answered 503 at once.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 128 * 1024 * 1024

#: Seconds after which a WARNING says that requests wait and no Node is connected; said again each minute.
ALONE_WARNING_SECONDS = 5.0
_WARNING_AGAIN_SECONDS = 60.0

# How often those that wait are looked at: for a plain handler, and for whether they have waited for too long.
_LOOK_SECONDS = 0.05


class Waiting:
    """A queue for each connection set; where one server's requests wait, another's go on.

    Args:
        context: Owner of the timer.
        nodes: Named in the log.
        send_timeout: Seconds that a request waits; ``None`` waits forever.
        hand: Gives a request to whoever is to have it; returns False where nobody can have it now.
        refuse: Answers a request with a status.
    """

    def __init__(
        self,
        context: Context,
        nodes: Nodes,
        send_timeout: float | None,
        *,
        hand: Callable[[Forwarded], bool],
        refuse: Callable[[Forwarded, int], object],
    ) -> None:
        self._nodes = nodes
        self._send_timeout = send_timeout
        self._hand = hand
        self._refuse = refuse
        self._queues: dict[Connection, _Queue] = {}
        self._count = 0
        self._bytes = 0
        self._warning_due = 0.0
        self._context = context
        self._timer: Any = context.timer(_LOOK_SECONDS, _LOOK_SECONDS)

    def __len__(self) -> int:
        return self._count

    def has(self, connection: Connection) -> bool:
        """Whether something of a connection set waits."""
        return connection in self._queues

    def put(self, entry: Forwarded) -> None:
        """Keep a request until somebody has room; where too many wait it is refused."""
        size = len(entry.message) + MESSAGE_BYTES
        if self._count >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES:
            self._refuse(entry, 503)
            return
        entry.deadline = inf if self._send_timeout is None else monotonic() + self._send_timeout
        self._count += 1
        self._bytes += size
        self._queues.setdefault(entry.connection, _Queue()).add(entry)
        if not self._timer.active:
            self._warning_due = monotonic() + ALONE_WARNING_SECONDS
            # Not start(): it goes on with what was left of the timer's last run.
            self._timer.again(self.go_on, update=True)

    def withdraw(self, entry: Forwarded) -> bool:
        """A request is not to wait any more. Returns whether it did."""
        queue = self._queues.get(entry.connection)
        if queue is None or not queue.remove(entry):
            return False
        self._left(entry)
        return True

    def _left(self, entry: Forwarded) -> None:
        self._count -= 1
        self._bytes -= len(entry.message) + MESSAGE_BYTES
        if entry.waiter is not None:
            entry.waiter.set()

    def go_on(self) -> None:
        """Somebody may have room, or time has passed: see to those that wait."""
        if not self._queues:
            self._timer.stop()
            return
        now = monotonic()
        for connection, queue in list(self._queues.items()):
            while (entry := queue.first) is not None:
                if not entry.over:
                    if entry.deadline <= now and entry.waiter is None:
                        self._refuse(entry, 503)
                    elif not self._hand(entry):
                        break
                # Its server may have gone meanwhile, and all that waited with it.
                if queue.remove(entry):
                    self._left(entry)
            if queue.first is None and self._queues.get(connection) is queue:
                del self._queues[connection]
        if self._count and not len(self._nodes) and now >= self._warning_due:
            self._warning_due = now + _WARNING_AGAIN_SECONDS
            what = f"no Node is connected to {self._nodes.endpoint}, and {self._count} requests wait"
            log.warning("%s: is one running, and is this its relay_addr?", what)

    def connection_ended(self, connection: Connection, conn_id: str) -> None:
        """A browser has gone: nobody waits for its answers."""
        queue = self._queues.get(connection)
        for entry in () if queue is None else queue.of(conn_id):
            entry.end()
            self.withdraw(entry)

    def lost(self, connection: Connection) -> None:
        """The server of a connection set has gone."""
        queue = self._queues.pop(connection, None)
        while queue is not None and (entry := queue.first) is not None:
            queue.remove(entry)
            self._left(entry)

    def stop(self) -> None:
        """Nobody gets anything any more: all that wait are refused."""
        self._context.unwatch(self._timer)
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            while (entry := queue.first) is not None:
                queue.remove(entry)
                self._left(entry)
                if not entry.over and entry.waiter is None:
                    self._refuse(entry, 503)


class _Queue:
    """Those of one connection set, in their order; any of them may be taken out."""

    def __init__(self) -> None:
        # Not a dict: to find its first it walks over all places of what was taken out in front.
        self._entries: OrderedDict[Forwarded, None] = OrderedDict()
        self._of: dict[str, dict[Forwarded, None]] = {}

    @property
    def first(self) -> Forwarded | None:
        return next(iter(self._entries), None)

    def of(self, conn_id: str) -> list[Forwarded]:
        """Return those of one browser connection."""
        return list(self._of.get(conn_id, ()))

    def add(self, entry: Forwarded) -> None:
        self._entries[entry] = None
        self._of.setdefault(entry.conn_id, {})[entry] = None

    def remove(self, entry: Forwarded) -> bool:
        """Return whether it was there."""
        if entry not in self._entries:
            return False
        del self._entries[entry]
        of_browser = self._of[entry.conn_id]
        del of_browser[entry]
        if not of_browser:
            del self._of[entry.conn_id]
        return True
