"""A bound XPUB socket: what is published reaches the subscribers, and the publisher learns who they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import zmq

from .context import Context
from .security import Access

__all__ = ["HIGH_WATER_MARK", "Publisher"]

log = logging.getLogger("greentx.transport")

#: Messages that may wait for one subscriber; the next ones are not for it.
HIGH_WATER_MARK = 100_000


# Bytes of what a subscriber sends: a topic, or the tokens of all requests that a Node answered at once, 30 bytes each.
_MAX_UPSTREAM = 16 * 1024 * 1024


class Publisher:
    """Binds XPUB and publishes; a SUB or an XSUB socket connects to it.

    Args:
        context: Owner of the socket.
        endpoint: Where to bind.
        on_message: Called in the hub with what a subscriber sent: ``b"\\x01"`` or ``b"\\x00"`` and a topic that it
            subscribes to, or no longer does (the end of its connection included); else what an XSUB socket sent. A
            topic that several have is reported at each beginning, but at the last end only. Must not block.
        access: Who may connect; by default whoever can.

    Raises:
        BindError: The address cannot be bound.
    """

    def __init__(
        self, context: Context, endpoint: str, on_message: Callable[[bytes], None], access: Access | None = None
    ) -> None:
        self.messages_sent = 0
        self._context = context
        self._on_message = on_message
        self._checking = False
        self._socket = context.socket(zmq.XPUB, max_message=_MAX_UPSTREAM)
        if access is not None:
            access.apply(context, self._socket)
        # Each subscription is reported, not only the first to a topic: the second one may be a new process.
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        # Without XPUB_NODROP: one slow subscriber must not stop the others.
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        self.endpoint = context.bind(self._socket, endpoint)
        self._watcher: Any = context.watch(self._socket, self._check)

    def send(self, message: bytes) -> None:
        """Publish one message; it begins with its topic. Never blocks: what a subscriber has no room for is not for it.

        Raises:
            SocketClosed: The context has been closed.
        """
        self._context.check()
        self._socket.send(message, zmq.NOBLOCK)
        self.messages_sent += 1
        # Sending may consume what the descriptor would have told us: look once before the hub sleeps.
        if not self._checking:
            self._checking = True
            self._context.hub.loop.run_callback(self._check)

    def close(self, *, linger: float) -> None:
        """Close the socket; safe to call twice.

        Does not block: what was published goes out in the background, within *linger* seconds.
        """
        if self._watcher is not None:
            self._context.unwatch(self._watcher)
            # Before the socket is closed: the number of its descriptor may be another one's a moment later.
            self._watcher = None
            self._context.close_socket(self._socket, linger=linger)

    def _check(self) -> None:
        self._checking = False
        # In a forked child the socket is the parent's; the handler of a message may have forked, too.
        while self._context.open and not self._socket.closed:
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                # One bad message ends that message: the others of the same wake-up are still to be read.
                self._on_message(message)
            except Exception:
                log.exception("a subscriber's message of %d bytes was not handled", len(message))

    def __repr__(self) -> str:
        return f"<Publisher {self.endpoint}: {self.messages_sent} sent>"
