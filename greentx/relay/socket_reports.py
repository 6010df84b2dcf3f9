"""What a Node tells its relay about WebSockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..handler.shared import Shared
from .link import Link
from .socket_hand import Hand, Place
from .socket_messages import DONE
from .socket_receipts import Receipts

__all__ = ["Reported", "SocketReports"]


class Reported(Protocol):
    """One WebSocket of a Node."""

    number: int
    hand: Hand


class SocketReports:
    """Of one Node.

    Args:
        shared: The Node's.
        link: The connection to the relay.

    Attributes:
        shared: As given.
        sockets: The WebSockets that are here, by number.
        endpoint: The relay's.
        receipts: For events that no WebSocket object receives.
    """

    def __init__(self, shared: Shared, link: Link) -> None:
        self.shared = shared
        self.sockets: dict[int, Any] = {}
        self.endpoint = link.endpoint
        self.receipts = Receipts(shared)
        self._context = shared.context
        self._link = link
        self._leaving = False
        # Those of which something was handled in this round of the hub.
        self._news: dict[int, Reported] = {}

    def tell(self, head: bytes, payload: bytes = b"") -> None:
        """Tell the relay; from any native thread."""
        if self._context.in_hub_thread():
            self._link.tell(head, payload)
        elif self._context.open:
            self._context.hand_over(self._link.tell, head, payload)

    def soon(self, call: Callable[[], object]) -> None:
        """Call it in the hub."""
        self._context.hub.loop.run_callback_threadsafe(call)

    def leave(self) -> None:
        """Nothing is to begin here any more, what is let go above all."""
        if not self._leaving:
            self._leaving = True
            self.tell(b"leave")

    def handled(self, socket: Reported) -> None:
        """Say so, with what else is handled in this round of the hub."""
        if not self._news:
            self.soon(self._tell_handled)
        self._news[socket.number] = socket

    def _tell_handled(self) -> None:
        news, self._news = self._news, {}
        pairs = [b"%d %d" % (one.number, one.hand.handled) for one in news.values() if one.hand.place is not Place.GONE]
        if pairs:
            self._link.tell(b"%b %b" % (DONE, b" ".join(pairs)))

    def over(self) -> None:
        """The session is."""
        self._news.clear()
        self._leaving = False
