"""A Node: a Transceiver whose requests come from a relay."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent.event import Event

from ..errors import ConnectTimeout, LocalProtocolError
from ..handler.transceiver import Transceiver
from ..protocol.fields import check_sender
from ..transport.endpoints import Address, connect_endpoint
from ..transport.keys import KeyFile
from ..transport.security import make_dial
from .answering import Answering
from .claims import OwnClaims, make_key
from .link import Link
from .messages import MAX_CAPACITY, Hello
from .subscriber import Subscriber
from .topics import Topics

__all__ = ["Node"]

log = logging.getLogger("greentx.relay")


class Node(Transceiver):
    """A transceiver that gets requests from a :class:`Relay` and answers Mongrel2 directly.

    ``recv()``, ``serve()`` and all else are a Transceiver's. Its connection sets are made as the relay names its
    servers; ``sender`` is the Node's name. What the control socket adds is pulled from as ever.

    Args:
        relay_addr: The relay's ``node_endpoint``.
        rep_port, ping_timeout, log_level: As for a Transceiver.
        name: What it is called; letters, digits and ``-``. By default random.
        capacity: How many requests it may have at once, compared to other Nodes: the relay gives a new connection to
            the one with the fewest for its capacity.
        what: What it is, for whoever reads the relay's status.
        curve_relay: The relay's public key, where it demands CURVE: a file or bytes (Z85). Our own keys are
            *curve_secret*, as for a Transceiver.
        options: As for a Transceiver.

    Raises:
        LocalProtocolError: (a ``ValueError``) A malformed name, address or key; a capacity that is not above 0.

    Attributes:
        name: As given.
        link: The connection to the relay, while it runs; not for applications.
    """

    def __init__(
        self,
        relay_addr: Address,
        rep_port: int | None = None,
        ping_timeout: float | None = 30,
        log_level: int = logging.ERROR,
        *,
        name: str | None = None,
        capacity: int = 1000,
        what: str = "",
        curve_relay: KeyFile | None = None,
        connect_timeout: float | None = None,
        **options: Any,
    ) -> None:
        self.name = check_sender(f"node-{uuid.uuid4().hex[:12]}" if name is None else name)
        if not isinstance(capacity, int) or isinstance(capacity, bool) or not 0 < capacity <= MAX_CAPACITY:
            raise LocalProtocolError(f"capacity is 1 to {MAX_CAPACITY}, a whole number, not {capacity!r}")
        if not isinstance(what, str):
            raise LocalProtocolError(f"what is text, for people, not {what!r}")
        self._relay_endpoint = connect_endpoint(relay_addr)
        super().__init__(self.name, None, None, rep_port, ping_timeout, log_level, **options)
        self._relay_timeout = connect_timeout
        self._hello = Hello(self.name, capacity, what)
        self._relay_dial = make_dial(self.dial.keys, curve_relay, "curve_relay")
        # Here and not with the link: one may subscribe before the Node starts.
        self._topics = Topics(self.name)
        self._claims = OwnClaims()
        self.link: Link | None = None
        self._answering: Answering | None = None
        self._subscriber: Subscriber | None = None

    def start(self) -> None:
        """Open the sockets, as a Transceiver does. Does not wait for the relay, but for ``connect_timeout``."""
        super().start()
        try:
            shared = self.shared()
            self.link = Link(shared.context, self._hello, self._relay_endpoint, self._relay_dial)
            self._answering = Answering(self, shared, self.link)
            self._subscriber = Subscriber(shared, self.link, self._topics, self._relay_dial, self.name)
            shared.extensions += [self._answering, self._subscriber]
            self.link.welcome.append(self._claim_again)
            self.link.start()
            if self._relay_timeout is not None:
                self.wait_ready(self._relay_timeout)
        except BaseException:  # raised again: a kill, too, must not leave it half-started
            self.stop(0)
            raise

    def __enter__(self) -> Node:
        self.start()
        return self

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block this greenlet until the relay is there, and each of its servers; see ``Transceiver.wait_ready``."""
        shared = self.shared()
        if not shared.context.in_hub_thread():
            shared.context.hand_over(self.wait_ready, timeout)
            return
        link = self.link
        assert link is not None
        began = monotonic()
        if not link.in_session:
            there = Event()

            def welcome(_: object) -> None:
                there.set()

            link.welcome.append(welcome)
            try:
                if not there.wait(timeout):
                    raise ConnectTimeout(f"not ready within {timeout} s: {link.why}", address=link.endpoint)
            finally:
                link.welcome.remove(welcome)
        super().wait_ready(None if timeout is None else max(0.0, timeout - (monotonic() - began)))

    def subscribe(self, topic: str | bytes, handler: Callable[[str, bytes], object]) -> None:
        """Call ``handler(topic, message)`` with each message that the relay publishes to exactly *topic*, from now on.

        *message* is bytes. One after the other, in a greenlet of its own; 1,000 may wait, then some are lost. What a
        handler raises is logged.
        """
        # Bytes are compared as they are, so text has one form on the wire.
        name = topic.encode() if isinstance(topic, str) else bytes(topic)
        if self._topics.add(name, handler) and self._subscriber is not None and self.started:
            self._subscriber.subscribe(name)

    def claim(self, name: str, value: str | bytes) -> None:
        """Have requests whose query has *name* with *value* come to this Node, whatever connection they come by.

        For applications that keep sessions in memory, before they answer with what the client will send. One that
        another Node has claimed stays with that, while it is there: a client may have a hand in what is claimed. The
        name has to be one of the relay's ``sticky``. The relay keeps 100,000 claims of
        one Node, and drops those that were used longest ago. Never blocks; may be called from any native thread.

        Raises:
            LocalProtocolError: (a ``ValueError``) One of them is empty; together they are longer than 1,024 bytes.
        """
        key = make_key(name, value)
        shared = self.shared()
        if not shared.context.in_hub_thread():
            shared.context.hand_over(self._claim, key)
        else:
            self._claim(key)

    def _claim(self, key: bytes) -> None:
        self._claims.add(key)
        if self.link is not None:
            self.link.tell(b"claims " + key)

    def _claim_again(self, welcome: object) -> None:
        """A session has begun, of which the relay knows no claims."""
        assert self.link is not None
        for head in self._claims.heads():
            self.link.tell(head)

    def status(self) -> dict[str, Any]:
        """Return what a Transceiver does, and ``node``: its name, the link to the relay.

        Each connection set also tells its ``stale_requests``: how many came too late, out of an older life of the
        server.
        """
        status = super().status()
        link, answering = self.link, self._answering
        # Of each set, since one server's restart says nothing about the others.
        for one in status["connections"]:
            one["stale_requests"] = 0 if answering is None else answering.stale(one["sender"])
        if link is None or answering is None or self._subscriber is None:
            return {**status, "node": None}
        status["why"] += [why for why in (link.why, self._subscriber.why) if why]
        status["ready"] = self.started and not status["why"]
        node = {
            "name": self.name,
            "relay": link.endpoint,
            "connected": link.in_session,
            "capacity": self._hello.capacity,
            "bad_messages": link.bad_messages + self._subscriber.bad_messages,
            "why": link.why,
            **answering.status(),
        }
        return {**status, "node": node}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, node {self.name}>"
