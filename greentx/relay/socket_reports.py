"""What a Node tells its relay about WebSockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..errors import SendTimeout
from ..handler.shared import Shared
from .link import Link
from .outbox import MAX_WAITING
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

    def send(self, head: bytes, payload: bytes) -> str:
        """Tell the relay what goes to browsers. Blocks this greenlet while there is no room.

        Returns:
            ``""``; or why nothing was sent: this greenlet must not wait, and too much waits for the relay.

        Raises:
            SendTimeout: Nothing went to the relay for ``send_timeout`` seconds; nothing of this was sent.
        """
        if not self._context.in_hub_thread():
            why: str = self._context.hand_over(self.send, head, payload) if self._context.open else ""
            return why
        if self._link.offer(head, payload):
            return ""
        waits = self.shared.for_browser()
        if waits is None or self._context.hub is self._context.caller():
            if self._link.offer(head, payload, wait=False):
                return ""
            return f"more than {MAX_WAITING} bytes wait for the relay at {self.endpoint}"
        seconds = self.shared.send_timeout
        with waits:
            if not self._link.send(head, payload, seconds):
                raise SendTimeout(
                    f"the relay at {self.endpoint} took nothing for {seconds} s", address=self.endpoint, queued=False
                )
        return ""

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
