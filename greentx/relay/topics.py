"""What a Node's application hears of what the API publishes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from gevent.event import Event

from ..protocol.bounds import MAX_QUEUE_BYTES, MESSAGE_BYTES
from .messages import MAX_HELD

__all__ = ["Topics"]

log = logging.getLogger("greentx.relay")


class Topics:
    """Calls the subscribers, one after the other, in the greenlet that runs :meth:`run`.

    Args:
        name: Of the Node, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # They may be there before the Node starts, and stay when it starts again.
        self._subscribers: dict[bytes, list[Callable[[str, bytes], object]]] = {}
        self._published: deque[tuple[bytes, bytes]] = deque()
        # Bytes of these.
        self._held = 0
        self._arrived = Event()
        self._run: object = None

    @property
    def names(self) -> list[bytes]:
        """The topics that somebody wants."""
        return list(self._subscribers)

    def add(self, topic: bytes, handler: Callable[[str, bytes], object]) -> bool:
        """Add a subscriber; return whether it is the topic's first."""
        handlers = self._subscribers.setdefault(topic, [])
        handlers.append(handler)
        return len(handlers) == 1

    def put(self, topic: bytes, message: bytes) -> bool:
        """One message was published; False where too many wait, so that it is dropped. Never blocks."""
        # The receiver must not wait for a subscriber: notices come the same way, and they are urgent.
        size = len(topic) + len(message) + MESSAGE_BYTES
        if len(self._published) >= MAX_HELD or (self._held and self._held + size > MAX_QUEUE_BYTES):
            return False
        self._held += size
        self._published.append((topic, message))
        self._arrived.set()
        return True

    def run(self) -> None:
        """Hand out messages until :meth:`stop`."""
        # Compared, and not a flag: a subscriber may stop its Node and start it again, which runs this anew.
        run = self._run = object()
        while self._run is run:
            while self._published and self._run is run:
                topic, message = self._published.popleft()
                self._held -= len(topic) + len(message) + MESSAGE_BYTES
                # A copy: a subscriber may subscribe.
                for handler in list(self._subscribers.get(topic, ())):
                    try:
                        handler(topic.decode(errors="backslashreplace"), message)
                    except Exception:
                        log.exception("%s: a subscriber to %r failed", self._name, topic)
            if self._run is run:
                self._arrived.clear()
                self._arrived.wait()

    def stop(self) -> None:
        """End :meth:`run`, behind the message that it hands out now, and forget all others. Never blocks."""
        self._run = None
        self._published.clear()
        self._held = 0
        self._arrived.set()
