"""A Node: a Transceiver whose requests come from a relay."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

from ..handler.transceiver import Transceiver
from ..protocol.fields import check_sender
from ..transport.endpoints import Address, connect_endpoint
from ..transport.keys import KeyFile
from ..transport.security import make_dial
from .link import Link
from .topics import Topics

__all__ = ["Node"]

log = logging.getLogger("greentx.relay")


class Node(Transceiver):
    """A transceiver that pulls requests from a :class:`Relay` and answers Mongrel2 directly.

    ``recv()``, ``serve()`` and all else are a Transceiver's. What the control socket adds is pulled from as ever.

    Args:
        sender: The ``send_ident`` of the Mongrel2 handler entry behind the API.
        pull_addr: The relay's ``push_endpoint``.
        sub_addr: The relay's ``pub_endpoint``.
        pub_addr: The entry's ``recv_spec``, to which answers are published. Requests of other servers of the API are
            answered where the API itself would answer them.
        rep_port, ping_timeout, log_level: As for a Transceiver.
        name: What the relay knows it by, other than all its other Nodes; letters, digits and ``-``. By default random.
        curve_relay: The relay's public key, where it demands CURVE: a file or bytes (Z85). Our own keys are
            *curve_secret*, as for a Transceiver.
        options: As for a Transceiver.

    Raises:
        LocalProtocolError: (a ``ValueError``) A malformed sender, name, address or key.
    """

    def __init__(
        self,
        sender: str,
        pull_addr: Address,
        sub_addr: Address,
        pub_addr: Address,
        rep_port: int | None = None,
        ping_timeout: float | None = 30,
        log_level: int = logging.ERROR,
        *,
        name: str | None = None,
        curve_relay: KeyFile | None = None,
        **options: Any,
    ) -> None:
        # Requests come from the relay: of the entry itself nothing is pulled.
        super().__init__(sender, None, pub_addr, rep_port, ping_timeout, log_level, **options)
        self.name = check_sender(f"node-{uuid.uuid4().hex[:12]}" if name is None else name)
        self._relay_dial = make_dial(self.dial.keys, curve_relay, "curve_relay")
        self._relay_endpoints = connect_endpoint(pull_addr), connect_endpoint(sub_addr)
        # Here and not with the link: one may subscribe before the Node starts.
        self._topics = Topics(self.name)
        self.relay_link: Link | None = None

    def start(self) -> None:
        """Open the sockets, as a Transceiver does. Does not wait for the relay."""
        super().start()
        try:
            # After the Transceiver: its connection sets have to be there when requests come.
            self.relay_link = Link(
                self, self.shared(), self.name, *self._relay_endpoints, self._topics, self._relay_dial
            )
            self.relay_link.start()
        except BaseException:  # raised again: a kill, too, must not leave it half-started
            self.stop(0)
            raise

    def subscribe(self, topic: str | bytes, handler: Callable[[str, bytes], object]) -> None:
        """Call ``handler(topic, message)`` with each message that the relay publishes to exactly *topic*, from now on.

        *message* is bytes. One after the other, in a greenlet of its own; 1,000 may wait, then some are lost. What a
        handler raises is logged.
        """
        # Bytes are compared as they are, so text has one form on the wire.
        name = topic.encode() if isinstance(topic, str) else bytes(topic)
        if self._topics.add(name, handler) and self.relay_link is not None and self.started:
            self.relay_link.subscribe(name)

    def status(self) -> dict[str, Any]:
        """Return what a Transceiver does, and ``node``: its name, the link to the relay.

        Each connection set also tells its ``stale_requests``: how many came too late, out of an older life of the
        server.
        """
        status = super().status()
        link = self.relay_link
        # Of each set, since one server's restart says nothing about the others.
        for one in status["connections"]:
            one["stale_requests"] = 0 if link is None else link.stale(one["sender"])
        if link is not None:
            status["why"] += link.why
            status["ready"] = self.started and not status["why"]
        return {**status, "node": None if link is None else link.status()}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, node {self.name}>"
