"""A Node's subscriptions to what its relay publishes, as an extension of the Node's Transceiver."""

from __future__ import annotations

import logging

from ..errors import RemoteProtocolError
from ..handler.shared import Extension, Shared
from ..transport import Receiver, SocketKind, Supervised
from ..transport.security import Dial
from .link import Link
from .messages import Welcome, parse_published, topic_of
from .reach import reachable
from .topics import Topics

__all__ = ["Subscriber"]

log = logging.getLogger("greentx.relay")


class Subscriber(Extension):
    """Subscribes where the relay says that it publishes.

    Args:
        shared: The Node's.
        link: Says where.
        topics: What the application wants to hear.
        dial: How to connect.
        name: Of the Node.

    Attributes:
        bad_messages: How many messages meant nothing, or could not be kept.
    """

    def __init__(self, shared: Shared, link: Link, topics: Topics, dial: Dial, name: str) -> None:
        self.bad_messages = 0
        self._shared = shared
        self._link = link
        self._topics = topics
        self._name = name
        self._endpoint = ""
        self._sub = Receiver(
            shared.context, SocketKind.SUB, self._on_published, security=dial, name=f"subscriber {name}"
        )
        for topic in topics.names:
            self.subscribe(topic)
        self._subscribers = Supervised(f"subscribers of {name}", topics.run)
        self._subscribers.start()
        link.welcome.append(self._on_welcome)

    def subscribe(self, topic: bytes) -> None:
        """Receive what is published to *topic*."""
        self._sub.subscribe(topic_of(topic))

    def _on_welcome(self, welcome: Welcome) -> None:
        endpoint = reachable(welcome.topics, self._link.endpoint) if welcome.topics else ""
        if endpoint == self._endpoint:
            return
        if self._endpoint:
            self._sub.drop()
        self._endpoint = endpoint
        if endpoint:
            self._sub.connect(endpoint)

    def _on_published(self, message: bytes) -> None:
        try:
            if self._topics.put(*parse_published(message)):
                return
            why = "too many published messages wait to be handled, this one is dropped"
        except RemoteProtocolError as error:
            why = str(error)
        self.bad_messages += 1
        log.warning("%s: bad published message number %d: %s", self._name, self.bad_messages, why)

    @property
    def why(self) -> str:
        """What does not work; ``""`` where all does."""
        if self._subscribers.trouble:
            return self._subscribers.trouble
        if not self._endpoint or not self._link.in_session or not self._sub.why:
            return ""
        return f"what the relay publishes cannot be received from {self._endpoint} ({self._sub.why})"

    def stop(self, linger: float) -> None:
        """Hear no more."""
        if self in self._shared.extensions:
            self._shared.extensions.remove(self)
        # A subscriber may be what stops the Node: it does not end itself in the middle of that.
        self._subscribers.kill()
        self._sub.stop(0)
        # Last: until here something may have come.
        self._topics.stop()
