"""A bound ROUTER socket: each peer has a queue of its own, so that one which stands still delays nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import zmq

from ..errors import TransportError
from .context import Context
from .monitor import Monitor
from .security import Access

__all__ = ["HEARTBEAT_MS", "HEARTBEAT_TIMEOUT_MS", "PeerGone", "Router", "beat"]

log = logging.getLogger("greentx.transport")

#: A peer whose host has vanished, or whose process is stopped, is found out by these. ZeroMQ's I/O thread answers them,
#: so that one whose Python code computes is not taken for one of those.
HEARTBEAT_MS = 500
HEARTBEAT_TIMEOUT_MS = 1500

# Messages for one peer that ZeroMQ holds. Its owner has a bound of its own, in bytes, far below.
_HIGH_WATER_MARK = 8192

# Messages that are received before the hub runs others.
_BATCH = 256

_NOBLOCK = int(zmq.NOBLOCK)
_MORE_NOBLOCK = int(zmq.SNDMORE | zmq.NOBLOCK)


class PeerGone(TransportError):
    """No peer of that routing id is connected."""


def beat(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Have a connection of *socket* end when the other side's process stands still, or its host has vanished.

    Not over ``ipc://``: there the end of a connection is the end of a process.
    """
    if endpoint.startswith("ipc:"):
        return
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)


class Router:
    """Binds ROUTER; DEALER sockets connect to it, each with a routing id that no other has.

    Args:
        context: Owner of the socket.
        endpoint: Where to bind.
        on_message: Called in the hub with a peer's routing id and a message of it. Must not block.
        on_disconnect: Called in the hub when some connection has ended; whose is not told, but :meth:`send` raises for
            it from now on, or within some milliseconds.
        access: Who may connect; by default whoever can.

    Raises:
        BindError: The address cannot be bound.

    Attributes:
        endpoint: Where it was bound, with the real port.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        on_message: Callable[[bytes, bytes], None],
        on_disconnect: Callable[[], None],
        access: Access | None = None,
    ) -> None:
        self._context = context
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._checking = False
        socket = self._socket = context.socket(zmq.ROUTER)
        if access is not None:
            access.apply(context, socket)
        # Else what is sent to nobody would vanish without a word.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        beat(socket, endpoint)
        self._monitor = Monitor(context, socket, zmq.EVENT_DISCONNECTED, self._event)
        try:
            self.endpoint = context.bind(socket, endpoint)
        except BaseException:  # raised again; the socket is closed already
            self._monitor.close()
            raise
        # Without pyzmq's Python layer, which serves socket types that this is not.
        self._send = super(zmq.Socket, socket).send
        self._has_message = context.message_check(socket)
        self._watcher: Any = context.watch(socket, self._check)

    def send(self, peer: bytes, message: bytes) -> bool:
        """Send one message to *peer*; never blocks.

        Returns:
            False where there is no room for it: it was not sent.

        Raises:
            PeerGone: Its connection has ended.
            SocketClosed: The context has been closed.
        """
        if not self._context.open:
            self._context.check()
        try:
            self._send(peer, _MORE_NOBLOCK)
            self._send(message, _NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise PeerGone(f"{peer!r} is not connected", address=self.endpoint, errno=error.errno) from None
            raise
        finally:
            # Sending may consume what the descriptor would have told us: look once before the hub sleeps.
            if not self._checking:
                self._look_soon()
        return True

    def drain(self) -> None:
        """Hand on all that has come by now: what a peer said before its end can be read after it."""
        while self._read():
            pass

    def _look_soon(self) -> None:
        self._checking = True
        self._context.hub.loop.run_callback(self._check)

    def _event(self, event: int, value: int) -> None:
        self._on_disconnect()

    def _check(self) -> None:
        self._checking = False
        if self._read():
            self._look_soon()

    def _read(self) -> bool:
        """Hand on a batch; returns whether there may be more."""
        receive, has_message = self._socket.recv_multipart, self._has_message
        for _ in range(_BATCH):
            # In a forked child the socket is the parent's; the handler of a message may have closed it.
            if not self._context.open or self._socket.closed or not has_message():
                return False
            try:
                parts = receive(zmq.NOBLOCK)
            except zmq.Again:
                return False
            if len(parts) != 2:
                log.warning("a peer at %s sent a message of %d parts, which is ignored", self.endpoint, len(parts) - 1)
                continue
            try:
                # One bad message ends that message: the others of the same wake-up are still to be read.
                self._on_message(parts[0], parts[1])
            except Exception:
                log.exception("a message of %d bytes was not handled", len(parts[1]))
        return True

    def close(self, *, linger: float) -> None:
        """Close the socket; safe to call twice.

        Does not block: what was sent goes out in the background, within *linger* seconds.
        """
        if self._watcher is not None:
            # Before the socket is closed: the number of its descriptor may be another one's a moment later.
            self._context.unwatch(self._watcher)
            self._watcher = None
            self._monitor.close()
            self._context.close_socket(self._socket, linger=linger)

    def __repr__(self) -> str:
        return f"<Router {self.endpoint}>"
