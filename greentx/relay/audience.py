"""Who listens to a relay: its Nodes, and the topics that somebody is subscribed to."""

from __future__ import annotations

__all__ = ["Audience"]


class Audience:
    """Read off the subscriptions at the relay's XPUB socket.

    Attributes:
        nodes: The names of the Nodes that are connected.
        topics: The topics that somebody is subscribed to.
    """

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.topics: set[bytes] = set()

    def subscription(self, topic: bytes, *, begins: bool) -> str:
        """A subscription began or ended. Returns the name of the Node that came or left thereby, else ``""``."""
        # A Node is there while it is subscribed to its own name: ZeroMQ tells of its end, however it ends.
        if topic[:1] == b"@":
            name = topic[1:-1].decode("latin-1")
            (self.nodes.add if begins else self.nodes.discard)(name)
            return name
        if topic[:1] == b"T":
            # A netstring, so that no topic is the beginning of another one (subscriptions are prefixes).
            name_bytes = topic[topic.find(b":") + 1 : -1]
            (self.topics.add if begins else self.topics.discard)(name_bytes)
        return ""
