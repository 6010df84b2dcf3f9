"""What a server says to the XPUB socket that sends to it: that it subscribes, and that it has gone."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import zmq

from .context import Context

__all__ = ["Subscriptions"]


class Subscriptions:
    """Reads them; what they mean is up to whoever is told.

    Args:
        context: Owner of the socket.
        socket: Where they come in.
        on_message: Called with each: 1 or 0 and a topic. Must not block.

    Attributes:
        looked_at: When it was last seen that there are no more (``time.monotonic()``).
    """

    def __init__(self, context: Context, socket: zmq.Socket[bytes], on_message: Callable[[bytes], None]) -> None:
        self.looked_at = float("-inf")
        self._socket = socket
        self._has_message = context.asks(socket)
        self._on_message = on_message

    def have_come(self) -> bool:
        """Return whether there are any to read. Asking uses up what the socket's descriptor had to tell."""
        self.looked_at = monotonic()
        return self._has_message()

    def read(self) -> None:
        """Read all that there are."""
        try:
            while True:
                self._on_message(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            self.looked_at = monotonic()
