"""What waits for one Node, and what it was sent and has not accepted yet. No I/O.

Beyond the window a Node is sent nothing: what comes waits here, where it can be given to another Node still, and not in
ZeroMQ or the system.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["MAX_QUEUED", "WINDOW_BYTES", "WINDOW_MESSAGES", "Lane", "Waiting"]

#: What a Node may have been sent without having accepted it.
WINDOW_MESSAGES = 256
WINDOW_BYTES = 4 * 1024 * 1024

#: Bytes that may wait behind the window; a Node for which more waits is let go of.
MAX_QUEUED = 64 * 1024 * 1024

# What a message costs next to its bytes.
_MESSAGE_BYTES = 128

T = TypeVar("T")


class Waiting(Generic[T]):
    """A message that waits, and whose it is; ``None`` for nobody's."""

    __slots__ = ("item", "message")

    def __init__(self, message: bytes, item: T | None) -> None:
        self.message = message
        self.item = item


class Lane(Generic[T]):
    """The way to one Node: a window, and a queue behind it.

    Attributes:
        queued: Bytes that wait behind the window.
        queue: What they are, in order.
        received: How many messages of all that were sent the Node has received.
    """

    __slots__ = ("_accepted", "_bytes", "_sent", "_sizes", "_unreceived", "queue", "queued", "received")

    def __init__(self) -> None:
        self.queue: deque[Waiting[T]] = deque()
        self.queued = 0
        self.received = 0
        self._sent = 0
        self._accepted = 0
        # Of what is in the window.
        self._sizes: deque[int] = deque()
        self._bytes = 0
        # Whose the messages are that the Node has not said to have received.
        self._unreceived: deque[T | None] = deque()

    @property
    def full(self) -> bool:
        """Nothing may be sent at present."""
        return len(self._sizes) >= WINDOW_MESSAGES or self._bytes >= WINDOW_BYTES

    @property
    def count(self) -> int:
        """How many messages were put here so far: those that were sent, and those that wait."""
        return self._sent + len(self.queue)

    @property
    def unreceived(self) -> int:
        """How many messages were sent that the Node has not said to have received."""
        return len(self._unreceived)

    def sent(self, size: int, item: T | None) -> None:
        """A message was sent."""
        self._sent += 1
        self._sizes.append(size)
        self._bytes += size
        self._unreceived.append(item)

    def put(self, message: bytes, item: T | None) -> bool:
        """A message has to wait. Returns whether that is within the bound; it waits in any case."""
        self.queue.append(Waiting(message, item))
        self.queued += len(message) + _MESSAGE_BYTES
        return self.queued <= MAX_QUEUED

    def next(self) -> Waiting[T] | None:
        """Return what goes next, where something waits and the window has room; :meth:`went` is to follow."""
        return self.queue[0] if self.queue and not self.full else None

    def went(self) -> None:
        """What :meth:`next` returned was sent."""
        waiting = self.queue.popleft()
        self.queued -= len(waiting.message) + _MESSAGE_BYTES
        self.sent(len(waiting.message), waiting.item)

    def clear(self) -> None:
        """Nothing more goes there: keep nothing of what waits, nor whose it was."""
        self.queue.clear()
        self.queued = 0
        self._sizes.clear()
        self._bytes = 0
        self._unreceived.clear()
        self.received = self._accepted = self._sent

    def acknowledge(self, received: int, accepted: int) -> list[T]:
        """The Node says how many messages it has received so far, and for how many there is room again.

        Returns:
            Whose messages it has received, that were not known to be.
        """
        # What a Node makes up does no harm: nobody has received what was not sent.
        received, accepted = min(received, self._sent), min(accepted, self._sent)
        items: list[T] = []
        for _ in range(received - self.received):
            item = self._unreceived.popleft()
            if item is not None:
                items.append(item)
        self.received = max(self.received, received)
        for _ in range(accepted - self._accepted):
            self._bytes -= self._sizes.popleft()
        self._accepted = max(self._accepted, accepted)
        return items
