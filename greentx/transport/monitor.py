"""What ZeroMQ tells of a socket's connections, and what is known of one that connects."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any

import zmq

from .context import Context

__all__ = ["Contact", "ContactState", "Monitor"]

_EVENT = struct.Struct("=HI")


class Monitor:
    """Calls *on_event* in the hub with each event of a socket: its number and its value (zmq_socket_monitor(3)).

    Args:
        context: The socket's.
        socket: Not connected and not bound yet, so that no event is missed.
        events: Which ones.
        on_event: Must not block.

    Raises:
        zmq.ZMQError: There are no descriptors left.
    """

    def __init__(
        self, context: Context, socket: zmq.Socket[bytes], events: int, on_event: Callable[[int, int], None]
    ) -> None:
        self._context = context
        self._on_event = on_event
        self._watched = socket
        endpoint = context.new_inproc()
        socket.monitor(endpoint, events)
        self._pair: zmq.Socket[bytes] | None = context.socket(zmq.PAIR)
        self._pair.connect(endpoint)
        self._watcher: Any = context.watch(self._pair, self.read)

    def read(self) -> None:
        """Call *on_event* with what has come; the hub does that by itself."""
        while self._pair is not None:  # closed while its watcher's callback was on the way, or by the callback
            try:
                parts = self._pair.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_event(*_EVENT.unpack(parts[0]))

    def close(self) -> None:
        """Hear no more; safe to call twice, and to be called before the socket is closed."""
        pair, self._pair = self._pair, None
        if pair is not None:
            self._context.unwatch(self._watcher)
            if not self._watched.closed and not self._context.forked:
                self._watched.disable_monitor()
            self._context.close_socket(pair, linger=0)


class ContactState(Enum):
    """How far a connecting socket has got; the values are for people."""

    CONNECTING = "no answer yet"
    REFUSED = "nothing accepts connections there, or no descriptor is left"
    SILENT = "what accepts connections there has not spoken ZeroMQ yet"
    FOREIGN = "what accepts connections there is not the other end of this socket: are the two addresses swapped?"
    CONNECTED = "connected"
    LOST = "the connection has ended"


_ENDS = frozenset({ContactState.REFUSED, ContactState.FOREIGN, ContactState.LOST})


class Contact:
    """The connection of a socket that connects.

    ::

        CONNECTING --> SILENT --handshake--> CONNECTED --> LOST
             |            +--> FOREIGN                       |
             +--> REFUSED --> each of them may be followed by SILENT, where ZeroMQ connects again

    Args:
        context, socket: As for :class:`Monitor`.
        on_change: Called in the hub when :attr:`state` has changed. Must not block.

    Attributes:
        state: How far it has got.
        over: An attempt has failed, or the connection has ended.
        peer: The number of the connection's descriptor, which is ZeroMQ's, and its inode, by which it is known again;
            ``None`` before there is one.
    """

    def __init__(self, context: Context, socket: zmq.Socket[bytes], on_change: Callable[[], None]) -> None:
        self.state = ContactState.CONNECTING
        # An attribute, since the receiver asks with each batch.
        self.over = False
        self.peer: tuple[int, int] | None = None
        self._on_change = on_change
        self._monitor = Monitor(context, socket, _EVENTS, self._feed)

    @property
    def connected(self) -> bool:
        """The other side is the right kind of socket, and there."""
        return self.state is ContactState.CONNECTED

    def close(self) -> None:
        """Hear no more; safe to call twice."""
        self._monitor.close()

    def _feed(self, event: int, value: int) -> None:
        before = self.state
        if event == zmq.EVENT_CONNECTED:
            self.state = ContactState.SILENT
            with contextlib.suppress(OSError):  # it has gone already
                self.peer = value, os.fstat(value).st_ino
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.state = ContactState.CONNECTED
        elif event == zmq.EVENT_CLOSED:
            self.state = ContactState.REFUSED
        elif event == zmq.EVENT_CONNECT_RETRIED:
            # Alone where there is no descriptor for a connection (probed); else it follows what is known already.
            if before is ContactState.CONNECTING:
                self.state = ContactState.REFUSED
        elif before is ContactState.CONNECTED:
            self.state = ContactState.LOST
        else:
            self.state = ContactState.FOREIGN
        if self.state is not before:
            self.over = self.state in _ENDS
            self._on_change()


_EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_EVENTS |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_EVENTS |= zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
