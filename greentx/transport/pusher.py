"""The sending socket of a stand-in for Mongrel2: PUSH, bound."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import zmq
from gevent.event import Event

from ..errors import SendTimeout
from .context import Context
from .monitor import Monitor
from .security import Access

__all__ = ["ALONE_WARNING_SECONDS", "Pusher"]

log = logging.getLogger("greentx.transport")

#: Seconds after which a WARNING says that messages wait and no handler is connected; said again each minute.
ALONE_WARNING_SECONDS = 5.0
_WARNING_AGAIN_SECONDS = 60.0

# The descriptor should tell when a full pipe has room again; this bounds what a lost wake-up costs.
_BLOCKED_POLL_SECONDS = 0.1

# From the notice that a connection ended to the end of its pipe: microseconds, on a busy machine some milliseconds.
_PIPE_SECONDS = 0.01
_NOBLOCK = int(zmq.NOBLOCK)
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class _Waiting:
    """A message that no pipe had room for; ``gone`` is set once it was sent, ``None`` where nobody waits for that."""

    __slots__ = ("gone", "message")

    def __init__(self, message: bytes, gone: Event | None) -> None:
        self.message = message
        self.gone = gone


class Pusher:
    """A bound PUSH socket, which any number of greenlets send on at once; their messages keep the order of the calls.

    ZeroMQ hands the messages to the connected PULL sockets in turn. Without a connected one, or while each has its
    fill, the messages wait here.
    """

    def __init__(self, context: Context, endpoint: str, access: Access | None = None) -> None:
        """Bind. Raises :class:`~greentx.errors.BindError`.

        Args:
            access: Who may connect; by default whoever can.
        """
        self.arrivals = 0
        """How many connections were made to it in all its time."""
        self.messages_sent = 0
        self._context = context
        # A PUSH socket does not tell how many peers it has; its monitor tells when they come and go, by descriptor.
        # Descriptors of connections without a handshake so far, the newest last.
        self._accepted: dict[int, None] = {}
        # Of those with one.
        self._peers: set[int] = set()
        self._peers_changed = Event()
        self._waiting: deque[_Waiting] = deque()
        self._warning_due = 0.0
        self._poll_timer: Any = context.timer(_BLOCKED_POLL_SECONDS, _BLOCKED_POLL_SECONDS)
        self._socket = context.socket(zmq.PUSH)
        # Without pyzmq's Python layer, which serves socket types that this is not.
        self._send = super(zmq.Socket, self._socket).send
        if access is not None:
            access.apply(context, self._socket)
        self._monitor = Monitor(context, self._socket, _EVENTS, self._peer_event)
        self.endpoint = context.bind(self._socket, endpoint)
        self._watcher = context.watch(self._socket, self._check)

    @property
    def peers(self) -> int:
        """How many PULL sockets are connected now."""
        return len(self._peers)

    @property
    def waiting(self) -> int:
        """How many messages found no room yet."""
        return len(self._waiting)

    def wait_peers(self, enough: Callable[[], bool], timeout: float) -> bool:
        """Block this greenlet until *enough* returns True, which is asked again whenever a peer comes or goes.

        Returns:
            False when *timeout* seconds did not bring it.
        """
        with gevent.Timeout(timeout, False):
            while not enough():
                self._peers_changed.clear()
                self._peers_changed.wait()
            return True
        return enough()

    def wait_departure(self, before: int, timeout: float) -> bool:
        """Block this greenlet until fewer than *before* peers are connected; nothing more goes to the one that left.

        Returns:
            False when *timeout* seconds did not bring it.
        """
        if not self.wait_peers(lambda: self.peers < before, timeout):
            return False
        # ZeroMQ tells of a connection's end first and removes its pipe then; in between, messages still go in there.
        gevent.sleep(_PIPE_SECONDS)
        self._socket.getsockopt(zmq.EVENTS)
        return True

    def send(self, message: bytes, timeout: float | None) -> None:
        """Send one message; blocks this greenlet while no peer has room for it.

        Raises:
            SendTimeout: That lasted for *timeout* seconds. The message was not sent, and will not be.
            SocketClosed: The context has been closed.
        """
        if self._send_now(message):
            return
        # No blocking send: it would block the hub. A message that waits here can still be withdrawn, one in a pipe not.
        waiting = _Waiting(message, Event())
        self._enqueue(waiting)
        try:
            assert waiting.gone is not None
            waiting.gone.wait(timeout)
            self._context.check()
        except BaseException:  # a kill or a Timeout of the caller's, raised again: not sent, so withdrawn
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise
        # Not what wait() returned: where room and timeout come in one turn of the loop, it says False of a message
        # that was sent, since the hub had seen the timer before it could tell of the event.
        if not waiting.gone.is_set():
            self._waiting.remove(waiting)
            milliseconds = round((timeout or 0) * 1000)
            why = f"all {self.peers} connected handlers have their fill" if self.peers else "no handler is connected"
            raise SendTimeout(
                f"no handler had room for the message within {milliseconds} ms: {why} to {self.endpoint}",
                address=self.endpoint,
                errno=zmq.EAGAIN,
            )

    def offer(self, message: bytes) -> bool:
        """Send one message if a peer has room for it now; never blocks. Returns whether it was sent."""
        return self._send_now(message)

    def post(self, message: bytes) -> None:
        """Send one message, now or as soon as a peer has room for it; never blocks, so the hub may call it."""
        if not self._send_now(message):
            self._enqueue(_Waiting(message, None))

    def close(self, *, linger: float = 0.0) -> None:
        """Close the socket; what no peer had room for is dropped. Safe to call twice.

        Does not block: what is in the pipes goes out in the background, within *linger* seconds.
        """
        for watcher in (self._poll_timer, self._watcher):
            self._context.unwatch(watcher)
        self._monitor.close()
        self._context.close_socket(self._socket, linger=linger)
        # Their senders wake, see that the context is closed, and raise.
        while self._waiting:
            gone = self._waiting.popleft().gone
            if gone is not None:
                gone.set()

    def _send_now(self, message: bytes) -> bool:
        if self._waiting:
            # It has to stay behind them: requests of one connection must not overtake each other.
            return False
        # The attribute first: the call is for the error only.
        if not self._context.open:
            self._context.check()
        try:
            self._send(message, _NOBLOCK)
        except zmq.Again:
            return False
        self.messages_sent += 1
        return True

    def _enqueue(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            self._warning_due = monotonic() + ALONE_WARNING_SECONDS
            self._poll_timer.start(self._check)

    def _check(self) -> None:
        """Send what waits, in the hub. Asking for the events re-arms the descriptor where nothing does."""
        # ZeroMQ's descriptor is edge-triggered: unless its events are asked for, it never wakes us again.
        if not self._waiting:
            self._socket.getsockopt(zmq.EVENTS)
            # What waited was withdrawn.
            self._poll_timer.stop()
            return
        while self._waiting:
            first = self._waiting[0]
            try:
                self._send(first.message, _NOBLOCK)
            except zmq.Again:
                if not self._peers and monotonic() >= self._warning_due:
                    self._warn_alone()
                return
            self.messages_sent += 1
            self._waiting.popleft()
            if first.gone is not None:
                first.gone.set()
        self._poll_timer.stop()

    def _warn_alone(self) -> None:
        self._warning_due = monotonic() + _WARNING_AGAIN_SECONDS
        what = f"no handler is connected to {self.endpoint}, and {len(self._waiting)} messages wait"
        log.warning("%s: is one running, and does it pull from there?", what)

    def _peer_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._accepted[value] = None
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.arrivals += 1
            # Whose one is not told. Handshakes are quick, so what has had none for long is not a PULL socket: a port
            # scanner, say. So it is the newest one's.
            if self._accepted:
                self._peers.add(self._accepted.popitem()[0])
        else:
            self._accepted.pop(value, None)
            self._peers.discard(value)
        self._peers_changed.set()

    def __repr__(self) -> str:
        return f"<Pusher {self.endpoint}: {self.peers} peers, {self.messages_sent} sent, {self.waiting} waiting>"
