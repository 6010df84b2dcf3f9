"""A relay's sockets for those that are not Nodes: plain handlers pull from PUSH, subscribers of topics from XPUB."""

from __future__ import annotations

import logging

from ..errors import RemoteProtocolError, TransportError
from ..transport import Context, Publisher
from ..transport.pusher import Pusher
from ..transport.security import Access
from .messages import parse_published

__all__ = ["PlainSockets"]

log = logging.getLogger("greentx.relay")


class PlainSockets:
    """The sockets for those that are not Nodes: PUSH and XPUB.

    Args:
        context: Owner of the sockets.
        push_endpoint, pub_endpoint: Where to bind; ``None`` for nowhere.
        access: Who may connect.

    Raises:
        BindError: An endpoint cannot be bound. Nothing is left open.

    Attributes:
        push_endpoint, pub_endpoint: Where they were bound, with the real ports.
        pusher: For plain handlers; ``None`` where there are none.
        topics: What somebody is subscribed to.
    """

    def __init__(
        self, context: Context, push_endpoint: str | None, pub_endpoint: str | None, access: Access | None
    ) -> None:
        self.topics: set[bytes] = set()
        self.pusher = None if push_endpoint is None else Pusher(context, push_endpoint, access)
        self._publisher: Publisher | None = None
        try:
            if pub_endpoint is not None:
                self._publisher = Publisher(context, pub_endpoint, self._on_subscription, access)
        except BaseException:  # raised again: a kill, too, must not leave the first socket
            self.close(0)
            raise
        self.push_endpoint = None if self.pusher is None else self.pusher.endpoint
        self.pub_endpoint = None if self._publisher is None else self._publisher.endpoint

    def publish(self, message: bytes) -> None:
        """Send it to whoever is subscribed to what it begins with. Raises ``TransportError`` where nobody can be."""
        if self._publisher is None:
            raise TransportError("this relay publishes nothing: give it pub_addr=")
        self._publisher.send(message)

    def _on_subscription(self, message: bytes) -> None:
        kind, topic = message[:1], message[1:]
        change = {b"\x00": self.topics.discard, b"\x01": self.topics.add}.get(kind)
        try:
            name, _ = parse_published(topic)
        except RemoteProtocolError:
            change = None
        if change is None:
            log.warning("a subscriber sent %r, which means nothing here", message[:60])
        else:
            change(name)

    def close(self, linger: float) -> None:
        """Close both; what was sent goes out within *linger* seconds."""
        if self.pusher is not None:
            self.pusher.close(linger=linger)
        if self._publisher is not None:
            self._publisher.close(linger=linger)
