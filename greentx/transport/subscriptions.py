"""What a server says to the XPUB socket that sends to it: that it subscribes, and that it has gone."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import zmq

from .context import Context

__all__ = ["LOOK_SECONDS", "Subscriptions"]

#: How old a look may be when something is sent, and how soon there is one afterwards: sending may use up what the
#: descriptor would have told. A server that is restarted is there again after 0.1 s, ZeroMQ's pause between two
#: connections.
LOOK_SECONDS = 0.005


class Subscriptions:
    """Reads them; what they mean is up to whoever is told.

    Args:
        context: Owner of the socket.
        socket: Where they come in.
        on_message: Called with each: 1 or 0 and a topic. Must not block.
        on_late: Called in the hub when there are some that the descriptor did not tell of. Must not block.

    Attributes:
        looked_at: When it was last seen that there are no more (``time.monotonic()``).
    """

    def __init__(
        self,
        context: Context,
        socket: zmq.Socket[bytes],
        on_message: Callable[[bytes], None],
        on_late: Callable[[], None],
    ) -> None:
        self.looked_at = float("-inf")
        self._context = context
        self._socket = socket
        self._has_message = context.message_check(socket)
        self._on_message = on_message
        self._on_late = on_late
        self._timer: Any = context.timer(LOOK_SECONDS, LOOK_SECONDS)

    def have_come(self) -> bool:
        """Return whether there are any to read. Asking uses up what the socket's descriptor had to tell."""
        self.looked_at = monotonic()
        return self._has_message()

    def look_soon(self) -> None:
        """Something was sent: look within :data:`LOOK_SECONDS`, once for all that is sent until then."""
        if not self._timer.active:
            self._timer.again(self._look)

    def _look(self) -> None:
        self._timer.stop()
        if self._context.open and not self._socket.closed and self.have_come():
            self._on_late()

    def stop(self) -> None:
        """Look no more."""
        self._context.unwatch(self._timer)

    def read(self) -> None:
        """Read all that there are."""
        try:
            while True:
                self._on_message(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            self.looked_at = monotonic()
