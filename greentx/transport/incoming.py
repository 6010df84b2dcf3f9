"""One receiving socket, for one TCP connection: its messages, its descriptor, and the news of its end.

ZeroMQ's own reconnection would mix the messages of a server's two lives in one queue, and the connection ids of a
restarted Mongrel2 begin at 1 again. So a socket that connects does it once; its monitor tells when that is over.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from .context import Context
from .descriptors import socket_copy
from .monitor import Contact
from .router import beat
from .security import Access, Dial

__all__ = ["Incoming", "Leaving"]

# ZeroMQ would connect again by itself after this; we have closed the socket by then. -1, which forbids it, also throws
# away what has arrived and was not received yet (probed, libzmq 4.3.5).
_NO_RECONNECTION_MS = 3_600_000

# Messages that ZeroMQ holds for us while we do not receive: its bound is a number, and each may have a body. Half
# of ZeroMQ's own bound; a quarter costs 5 % of a request, as ZeroMQ tells the sender of room each time half was read.
_MAX_RECEIVED = 512

# How long the other side may need to see that we leave.
_LEAVE_SECONDS = 0.25


class Leaving(Protocol):
    """Asked when the other side is about to be told that a PULL socket which is connected to it goes.

    What it sends until it has noticed is lost. Both may hold up this whole thread for milliseconds.
    """

    def before_leave(self, busy: bool) -> bool:
        """Return True to be asked again; *busy* says that something has come since the last time."""

    def wait_for_end(self, descriptor: int) -> None:
        """It was told, but need not know yet: then it ends the connection, whose *descriptor* is hung up (POLLHUP)."""

    def after_leave(self) -> None:
        """It was told, and may know."""


class Incoming:
    """One socket.

    Args:
        context: Its owner.
        kind: ``zmq.PULL``, ``zmq.SUB``, ``zmq.XSUB``, or ``zmq.DEALER``.
        on_message: Called in the hub when there may be something to receive, or the connection was lost.
        on_contact: Called in the hub when :attr:`contact` has changed. Must not block.
        leaving: See :class:`Leaving`.
        security: Who may connect where it binds, or how it connects; see :mod:`greentx.transport.security`.
        opening: Of a DEALER: returns what a ROUTER knows it by, which no other may have, and its first message.

    Attributes:
        socket: To receive from.
        has_message: ``has_message()`` returns whether there is something to receive; asking uses up what the descriptor
            had to tell. Not to be called once it is closed.
        watching: *on_message* is called for messages, too; see :meth:`watch`.
        few: The last batch that was received from it was small.
        contact: What is known of its connection; ``None`` where it is bound.
    """

    def __init__(
        self,
        context: Context,
        kind: int,
        on_message: Callable[[], None],
        on_contact: Callable[[], None],
        leaving: Leaving | None = None,
        security: Access | Dial | None = None,
        opening: Callable[[], tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.watching = False
        self.few = True
        self.contact: Contact | None = None
        self._context = context
        self._kind = kind
        self._on_message = on_message
        self._on_contact = on_contact
        self._leaving = leaving
        self._watcher: Any = None
        # Set by the first question: leaving is said once.
        self._leave_by: float | None = None
        self._sent = False
        self.socket = context.socket(kind)
        self.has_message = context.message_check(self.socket)
        if kind == zmq.PULL:
            self.socket.setsockopt(zmq.RCVHWM, _MAX_RECEIVED)
        self._first = b""
        if opening is not None:
            routing_id, self._first = opening()
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        if security is not None:
            security.apply(context, self.socket)

    @property
    def lost(self) -> bool:
        """The connection has ended, or never was; what had arrived is to be received still."""
        return self.contact is not None and self.contact.over

    @property
    def connected(self) -> bool:
        """The other side is there; always so where it is bound."""
        return self.contact is None or self.contact.connected

    def bind(self, endpoint: str) -> str:
        """Bind and return the endpoint that it got. Raises ``BindError``; the socket is closed then."""
        bound = self._context.bind(self.socket, endpoint)
        self._watch()
        return bound

    def connect(self, endpoint: str) -> None:
        """Connect once, to a numeric address. It has to be closed after an error.

        Raises ``TransportError`` for a bad endpoint, ``zmq.ZMQError`` for a lack of descriptors.
        """
        socket = self.socket
        socket.setsockopt(zmq.RECONNECT_IVL, _NO_RECONNECTION_MS)
        if self._kind == zmq.DEALER:
            beat(socket, endpoint)
        self.contact = Contact(self._context, socket, self._contact_changed)
        self._context.connect(socket, endpoint)
        if self._first:
            self.send(self._first)
        self._watch()

    def _watch(self) -> None:
        self._watcher = self._context.watch(self.socket, self._on_message)
        self.watching = True

    def subscribe(self, topic: bytes) -> None:
        """Receive messages that begin with *topic* (SUB and XSUB only)."""
        if self._kind == zmq.XSUB:
            # An XSUB has no option for it: subscriptions are messages (zmq_socket(3)).
            self.socket.send(b"\x01" + topic, zmq.NOBLOCK)
        else:
            self.socket.setsockopt(zmq.SUBSCRIBE, topic)

    def send(self, message: bytes) -> bool:
        """Send on an XSUB or DEALER; never blocks. Returns False where there is no room."""
        try:
            self.socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._sent = True
        return True

    def watch(self) -> None:
        """Have *on_message* called again, after :meth:`unwatch`."""
        if not self.watching and self._watcher is not None:
            self.watching = True
            self._watcher.start(self._on_message)

    def unwatch(self) -> None:
        """Have *on_message* not called for messages: the descriptor would call in every round of the loop."""
        if self.watching and self._watcher is not None:
            self.watching = False
            self._watcher.stop()

    def leaves(self, drain: Callable[[], bool]) -> bool:
        """Tell the other side that we go, and return whether what it has sent may still be on its way.

        Args:
            drain: Receives some of what has come; returns True when nothing is left.

        ZeroMQ cannot: it closes the connection, and what the other side sends until it sees that is lost. A connection
        that is shut down for writing, which a PULL socket does not do, is seen as closed over there, and brings here
        all that was sent into it before.
        """
        if self._leave_by is None:
            self._leave_by = time.monotonic() + _LEAVE_SECONDS
            peer = None if self.contact is None else self.contact.peer
            if self._kind != zmq.PULL or peer is None:
                self._leave_by = 0.0
                return False
            while self._leaving is not None and self._leaving.before_leave(self.has_message()):
                while not drain():
                    pass
            if not self._shut_down(*peer):
                self._leave_by = 0.0
            if self._leaving is not None:
                self._leaving.after_leave()
        return time.monotonic() < self._leave_by

    def _shut_down(self, number: int, inode: int) -> bool:
        # The descriptor is ZeroMQ's: it may be another one's by now.
        try:
            with socket_copy(number) as peer:
                if os.fstat(peer.fileno()).st_ino != inode:
                    return False
                peer.shutdown(stdlib_socket.SHUT_WR)
                if self._leaving is not None:
                    self._leaving.wait_for_end(peer.fileno())
        except OSError:
            return False
        return True

    def close(self, linger: float) -> None:
        """Close it; safe to call twice. What was sent, if anything, may go out for *linger* seconds."""
        # Watchers first: a closed socket's descriptor may be another one's a moment later.
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            self._context.unwatch(watcher)
        if self.contact is not None:
            self.contact.close()
        if not self.socket.closed:
            self._context.close_socket(self.socket, linger=linger if self._sent else 0)

    def _contact_changed(self) -> None:
        # Also while nothing can be received: a greenlet that sleeps has to make the next socket.
        if self.lost:
            self._on_message()
        self._on_contact()
