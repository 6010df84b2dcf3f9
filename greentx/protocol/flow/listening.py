"""What the server listens to, by its subscriptions: whether it is there, and how replies have to begin.

    away --first subscription--> there --last unsubscription--> away
                                       --the same again-------> away, and there again: another server took over

Replies begin with the request's sender; where the server subscribed to a name of its own (``recv_ident``) they begin
with that, since it would not receive them otherwise (probed).
"""

from __future__ import annotations

from enum import Enum

from ..fields import check_sender, encode_sender

__all__ = ["Heard", "Listening"]

# An empty subscription matches every message; ours to nobody begin with this then.
_OWN_NAME = b"greentx"


class Heard(Enum):
    """What a subscription tells."""

    CAME = "the server is there"
    WENT = "the server has gone"


class Listening:
    """The subscriptions of one server.

    Attributes:
        paced: It is a Mongrel2, which has rules for names; False for a stand-in.
        topics: What it subscribed to. It is there as long as there are any.
        prefixes: How replies begin, by the sender of the request; filled by :meth:`prefix`, emptied in place.
    """

    __slots__ = ("paced", "prefixes", "topics")

    def __init__(self, *, paced: bool) -> None:
        self.paced = paced
        self.topics: set[bytes] = set()
        self.prefixes: dict[str, bytes] = {}

    def feed(self, message: bytes) -> list[Heard]:
        """One message of the server's: 1 or 0 and a topic. Returns what it says, in order.

        Raises:
            LocalProtocolError: No reply may begin with this topic; it is ignored.
        """
        kind, topic = message[:1], message[1:]
        heard: list[Heard] = []
        if kind == b"\x01":
            if topic in self.topics:  # again, without an end in between
                self.clear()
                heard.append(Heard.WENT)
            # An empty one takes every message; any other begins each reply, so Mongrel2 has to be able to parse it.
            elif topic:
                check_sender(topic, mongrel2=self.paced)
            if not self.topics:
                heard.append(Heard.CAME)
            self.topics.add(topic)
            self.prefixes.clear()
        elif kind == b"\x00" and topic in self.topics:
            self.topics.discard(topic)
            # The last one of several: a server that subscribes to more than one is there until then.
            if not self.topics:
                self.clear()
                heard.append(Heard.WENT)
        return heard

    def prefix(self, sender: str) -> bytes:
        """Return what a reply to *sender* begins with. Raises ``LocalProtocolError`` where it could not be parsed."""
        prefix = encode_sender(check_sender(sender, mongrel2=self.paced))
        # The smallest, so that all replies begin alike: it makes no difference which of several names it is.
        if self.topics and not any(prefix.startswith(topic) for topic in self.topics):
            prefix = min(self.topics)
        self.prefixes[sender] = prefix
        return prefix

    def prefix_to_nobody(self) -> bytes:
        """Return what a message begins with that answers no request."""
        return min(self.topics) or _OWN_NAME

    def clear(self) -> None:
        """The server has gone."""
        # In place: others hold them.
        self.topics.clear()
        self.prefixes.clear()
