"""One receiving ZeroMQ socket, drained in batches by a greenlet of its own.

A ``zmq.green`` socket asks for its events after every message. Here the greenlet sleeps on the socket's descriptor,
receives until EAGAIN, which also re-arms the descriptor, and lets the hub run after every :data:`BATCH` messages.

A receiver that connects uses one socket for one TCP connection: when that is gone, what it still holds is received,
then a new socket is made. ZeroMQ's own reconnection would mix the messages of a server's two lives in one queue, and
the connection ids of a restarted Mongrel2 begin at 1 again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as stdlib_socket
import struct
import time
from collections.abc import Callable
from typing import Any

import gevent
import zmq
from gevent.hub import get_hub

from ..errors import TransportError
from .context import Context

__all__ = ["BATCH", "RETRY_SECONDS", "Receiver"]

log = logging.getLogger("greentx.transport")

#: Messages taken before other greenlets get their turn; 64 of them are about a millisecond.
BATCH = 64

#: Between two attempts to connect; ZeroMQ's own default.
RETRY_SECONDS = 0.1

# What the pause after a batch takes: nothing, but it is a timer, whose turn comes with each round of the loop. A sleep
# of 0 would put the receiver behind all greenlets that are ready, and pongs would lie unread behind the work of many.
# (libev rounds waiting times to milliseconds, this one down to none.)
_TURN_SECONDS = 1e-9

# ZeroMQ would connect again by itself after this; we have closed the socket by then. -1, which forbids it, also throws
# away what has arrived and was not received yet (probed, libzmq 4.3.5).
_NO_RECONNECTION_MS = 3_600_000

# A killed greenlet may be busy in code of the application that does not let go of it.
_KILL_SECONDS = 0.5

# A server under load fills the socket faster than it is emptied: an end needs a bound.
_LAST_BATCHES = 64

# How long the other side may take to see that we leave, and how often we look.
_LEAVE_SECONDS = 0.25
_LEAVE_POLL_SECONDS = 0.001

_NOBLOCK = int(zmq.NOBLOCK)

_LOST = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_LOST |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Receiver:
    """Calls *on_message* with each message, in the receiver's own greenlet.

    Args:
        context: Owner of the socket.
        kind: ``zmq.PULL``, ``zmq.SUB``, or ``zmq.XSUB``, which can also :meth:`send`.
        on_message: Called with the bytes of one message. It may block (the receiver then waits) and should not raise:
            what it raises is logged with its traceback, and the next message is taken.
        on_drained: Called without arguments each time no message is left, before the greenlet sleeps.
        linger: Seconds that what was sent may still go out after :meth:`stop`, where anything was.
        name: For the greenlet and the logs.
    """

    def __init__(
        self,
        context: Context,
        kind: int,
        on_message: Callable[[bytes], None],
        *,
        on_drained: Callable[[], None] | None = None,
        linger: float = 0.0,
        name: str = "receiver",
    ) -> None:
        self.name = name
        self.drained_at = float("-inf")
        """``time.monotonic()`` when no message was left for the last time: all that came before has been seen."""
        self._context = context
        self._kind = kind
        self._on_message = on_message
        self._on_drained = on_drained
        self._linger = linger
        self._sent = False
        self._endpoint: str | None = None
        self._topics: list[bytes] = []
        self._socket: zmq.Socket[bytes] | None = None
        self._watcher: Any = None
        self._watching = False
        self._monitor: zmq.Socket[bytes] | None = None
        self._monitor_watcher: Any = None
        self._lost = False
        self._peer: tuple[int, int] | None = None
        self._leave_by: float | None = None
        self._dropped = False
        self._held = False
        self._parked = False
        self._stopping = False
        self._greenlet: gevent.Greenlet[..., None] | None = None

    @property
    def connected(self) -> bool:
        """True while it has a socket that did not lose its connection (which may still be coming up)."""
        return self._socket is not None and not self._lost

    def caught_up(self) -> bool:
        """True when everything that has come was handed on: the greenlet sleeps and the socket has nothing for it."""
        if not self._parked or self._held:
            return False
        if self._socket is not None and self._context.has_message(self._socket):
            self._wake_soon()  # asking may have used up what the descriptor had to tell
            return False
        return True

    def bind(self, endpoint: str) -> str:
        """Bind, start receiving and return the endpoint it got. Raises :class:`~greentx.errors.BindError`."""
        socket = self._context.socket(self._kind)
        for topic in self._topics:
            self._subscribe(socket, topic)
        bound = self._context.bind(socket, endpoint)
        self._adopt(socket)
        self._start()
        return bound

    def connect(self, endpoint: str, *, hold: bool = False) -> None:
        """Connect, now and whenever the connection is lost, and start receiving; after :meth:`drop`, connect anew.

        Does not block, so the hub may call it: the receiver's greenlet makes the socket. An endpoint that ZeroMQ does
        not take is logged, and tried again.

        Args:
            hold: Be there for the other side to send to, but take nothing yet; a call without it goes on from there.
        """
        self._endpoint = endpoint
        self._dropped = False
        self._held = hold
        self._start()
        self._wake_soon()

    def subscribe(self, topic: bytes) -> None:
        """Receive messages that begin with *topic* (SUB and XSUB only), also on the connections to come."""
        self._topics.append(topic)
        if self._socket is not None:
            self._subscribe(self._socket, topic)

    def _subscribe(self, socket: zmq.Socket[bytes], topic: bytes) -> None:
        if self._kind == zmq.XSUB:
            socket.send(b"\x01" + topic, zmq.NOBLOCK)
        else:
            socket.setsockopt(zmq.SUBSCRIBE, topic)

    def send(self, message: bytes) -> bool:
        """Send *message*, which begins with neither 0 nor 1, to the XPUB that this XSUB is connected to; never blocks.

        Returns:
            False where there is no connection, or no room in it: the message is not sent.
        """
        if self._socket is None:
            return False
        try:
            self._socket.send(message, zmq.NOBLOCK)
            self._sent = True
        except zmq.Again:
            return False
        finally:
            self._wake_soon()  # sending may have used up what the descriptor had to tell
        return True

    def drop(self) -> None:
        """Give up the present connection and what it still holds, until :meth:`connect` is called again.

        For what belongs to a life of the server that is over. Does not block.
        """
        dropped = 0
        self._dropped = True
        if self._socket is not None:
            try:
                while True:
                    self._socket.recv(zmq.NOBLOCK)
                    dropped += 1
            except zmq.Again:
                pass
            self._close()
        if dropped:
            log.warning("%s: %d messages of a server that has gone were dropped", self.name, dropped)

    def stop(self, timeout: float | None = None) -> None:
        """Take what has arrived, then close the socket and end the greenlet; safe to call twice.

        Blocks until *on_message* returned for the last message, for *timeout* seconds at the most.
        """
        self._stopping = True
        greenlet = self._greenlet
        if greenlet is not None and gevent.getcurrent() is not greenlet:
            self._wake_soon()
            greenlet.join(timeout)
            greenlet.kill(timeout=_KILL_SECONDS)
        self._close()

    def _start(self) -> None:
        if self._greenlet is None:
            self._greenlet = gevent.Greenlet(self._run)
            self._greenlet.name = self.name
            self._greenlet.start()

    def _open(self) -> None:
        assert self._endpoint is not None
        socket = self._context.socket(self._kind)
        socket.setsockopt(zmq.RECONNECT_IVL, _NO_RECONNECTION_MS)
        for topic in self._topics:
            self._subscribe(socket, topic)
        monitor_endpoint = self._context.new_inproc()
        socket.monitor(monitor_endpoint, _LOST | zmq.EVENT_CONNECTED)
        monitor = self._context.socket(zmq.PAIR)
        monitor.connect(monitor_endpoint)
        self._lost = False
        self._peer = None
        self._monitor = monitor
        self._monitor_watcher = self._context.watch(monitor, self._monitor_changed)
        self._context.connect(socket, self._endpoint)
        self._adopt(socket)

    def _adopt(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._watcher = self._context.watch(socket, self._wake)
        self._watching = True

    def _close(self) -> None:
        if self._watcher is not None:
            self._context.unwatch(self._watcher)
            self._watcher = None
        if self._monitor_watcher is not None:
            self._context.unwatch(self._monitor_watcher)
            self._monitor_watcher = None
        socket, self._socket = self._socket, None
        if socket is not None and not socket.closed:
            if self._monitor is not None:
                socket.disable_monitor()
            self._context.close_socket(socket, linger=self._linger if self._stopping and self._sent else 0)
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            self._context.close_socket(monitor, linger=0)

    def _monitor_changed(self) -> None:
        if self._monitor is None:
            return
        try:
            while True:
                event, value = struct.unpack("=HI", self._monitor.recv_multipart(zmq.NOBLOCK)[0])
                if event == zmq.EVENT_CONNECTED:
                    with contextlib.suppress(OSError):  # it has gone already
                        self._peer = value, os.fstat(value).st_ino
                else:
                    self._lost = True
        except zmq.Again:
            pass
        if self._lost:
            self._wake()

    def _wake(self) -> None:
        if self._parked:
            self._parked = False
            assert self._greenlet is not None
            self._greenlet.switch()
        elif self._watching and self._watcher is not None:
            # It is busy, or waits for room: the descriptor would call again in every round of the loop until then.
            self._watching = False
            self._watcher.stop()

    def _wake_soon(self) -> None:
        get_hub().loop.run_callback(self._wake)

    def _park(self) -> None:
        if self._held:
            if self._watching and self._watcher is not None:
                self._watching = False
                self._watcher.stop()
        elif not self._watching and self._watcher is not None:
            self._watching = True
            self._watcher.start(self._wake)
        self._parked = True
        try:
            get_hub().switch()
        finally:
            self._parked = False

    def _run(self) -> None:
        batches_left = _LAST_BATCHES
        try:
            while self._context.open:  # which it is not in a forked child
                lost = self._lost
                drained = self._drain()
                if self._stopping:
                    batches_left -= not drained
                    if not batches_left or (drained and (lost or not self._leaves())):
                        return
                    gevent.sleep(_LEAVE_POLL_SECONDS if drained else _TURN_SECONDS)
                elif not drained:
                    gevent.sleep(_TURN_SECONDS)
                elif self._lost:
                    self._close()
                    self._lost = False
                    gevent.sleep(RETRY_SECONDS)
                elif self._socket is None and not self._dropped:
                    self._reopen()
                else:
                    self._park()
        finally:
            self._close()

    def _leaves(self) -> bool:
        """Tell the other side that we go, and return whether what it has sent may still be on its way.

        ZeroMQ cannot: it closes the connection, and what the other side sends until it sees that is lost. A connection
        that is shut down for writing, which a PULL socket does not do, is seen as closed over there, and brings here
        all that was sent into it before.
        """
        if self._leave_by is None:
            self._leave_by = time.monotonic() + _LEAVE_SECONDS
            if self._kind != zmq.PULL or self._peer is None or self._held or not self._shut_down(*self._peer):
                self._leave_by = 0.0
        return time.monotonic() < self._leave_by

    def _shut_down(self, number: int, inode: int) -> bool:
        # The descriptor is ZeroMQ's: it may be another one's by now.
        try:
            with stdlib_socket.socket(fileno=os.dup(number)) as peer:
                if os.fstat(peer.fileno()).st_ino != inode:
                    return False
                peer.shutdown(stdlib_socket.SHUT_WR)
        except OSError:
            return False
        return True

    def _reopen(self) -> None:
        try:
            self._open()
        except TransportError as error:  # a name that does not resolve, for now
            self._close()
            if self._context.open:
                log.warning("%s: %s", self.name, error)
                gevent.sleep(RETRY_SECONDS * 10)

    def _drain(self) -> bool:
        """Receive until EAGAIN, or a batch; return True when nothing was left."""
        socket = self._socket
        if socket is None or self._held:
            return True
        receive, on_message = socket.recv, self._on_message
        for _ in range(BATCH):
            try:
                message = receive(_NOBLOCK)
            except zmq.Again:
                self.drained_at = time.monotonic()
                if self._on_drained is not None:
                    self._on_drained()
                return True
            except zmq.ZMQError:
                if socket.closed:
                    return True
                raise
            try:
                on_message(message)
            except Exception:
                log.exception("%s: a message of %d bytes was not handled", self.name, len(message))
        if self._on_drained is not None:
            self._on_drained()
        return False

    def __repr__(self) -> str:
        state = "stopped" if self._stopping else "connected" if self.connected else "waiting"
        return f"<Receiver {self.name} {self._endpoint or 'bound'}: {state}>"
