"""The sockets of whoever stands in for Mongrel2: PUSH and SUB, both bound, and the questions to a control socket."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
import zmq
from gevent.event import Event

from ..errors import SendTimeout
from .context import Context
from .receiver import Receiver

__all__ = ["Pusher", "ask", "bind_subscriber"]

# The descriptor should tell when a full pipe has room again; this bounds what a lost wake-up costs.
_BLOCKED_POLL_SECONDS = 0.1

# From the word that a connection ended to the end of its pipe: microseconds, on a busy machine some milliseconds.
_PIPE_SECONDS = 0.01

_MONITOR_EVENT = struct.Struct("=HI")


class _Waiting:
    """A message that no pipe had room for; ``gone`` is set once one took it, ``None`` where nobody waits for that."""

    __slots__ = ("gone", "message")

    def __init__(self, message: bytes, gone: Event | None) -> None:
        self.message = message
        self.gone = gone


class Pusher:
    """A bound PUSH socket, which any number of greenlets send on at once; their messages keep the order of the calls.

    ZeroMQ hands the messages to the connected PULL sockets in turn. Where none is connected, or each has its fill, the
    messages wait here.
    """

    def __init__(self, context: Context, endpoint: str) -> None:
        """Bind. Raises :class:`~greentx.errors.BindError`."""
        self.arrivals = 0
        """How many connections were made to it in all its time."""
        self.messages_sent = 0
        self._context = context
        self._accepted: dict[int, None] = {}  # descriptors of connections without a handshake so far, the newest last
        self._peers: set[int] = set()  # of those with one
        self._peers_changed = Event()
        self._waiting: deque[_Waiting] = deque()
        self._poll_timer: Any = context.timer(_BLOCKED_POLL_SECONDS, _BLOCKED_POLL_SECONDS)
        self._socket = context.socket(zmq.PUSH)
        monitor_endpoint = context.new_inproc()
        self._socket.monitor(
            monitor_endpoint, zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.connect(monitor_endpoint)
        self.endpoint = context.bind(self._socket, endpoint)
        self._monitor_watcher = context.watch(self._monitor, self._monitor_changed)
        self._watcher = context.watch(self._socket, self._check)
        self._monitor_changed()  # a pipe that was never read from wakes nobody

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
        """Block this greenlet until fewer than *before* peers are connected, and nothing more goes to who left.

        Returns:
            False when *timeout* seconds did not bring it.
        """
        if not self.wait_peers(lambda: self.peers < before, timeout):
            return False
        # ZeroMQ tells of a connection's end and then takes its pipe away; until it has, messages go in there.
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
        waiting = _Waiting(message, Event())
        self._enqueue(waiting)
        try:
            assert waiting.gone is not None
            in_time = waiting.gone.wait(timeout)
            self._context.check()
        except BaseException:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise
        if not in_time:
            self._waiting.remove(waiting)
            why = f"all {self.peers} connected handlers have their fill" if self.peers else "no handler is connected"
            raise SendTimeout(
                f"nobody took the message within {round((timeout or 0) * 1000)} ms: {why} to {self.endpoint}",
                address=self.endpoint,
                errno=zmq.EAGAIN,
            )

    def post(self, message: bytes) -> None:
        """Send one message, now or as soon as a peer has room for it; never blocks, so the hub may call it."""
        if not self._send_now(message):
            self._enqueue(_Waiting(message, None))

    def close(self, *, linger: float = 0.0) -> None:
        """Close the socket; what no peer had room for is dropped. Safe to call twice.

        Does not block: what is in the pipes goes out in the background, within *linger* seconds.
        """
        for watcher in (self._poll_timer, self._watcher, self._monitor_watcher):
            self._context.unwatch(watcher)
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._context.close_socket(self._socket, linger=linger)
        self._context.close_socket(self._monitor, linger=0)
        while self._waiting:
            gone = self._waiting.popleft().gone
            if gone is not None:
                gone.set()

    def _send_now(self, message: bytes) -> bool:
        if self._waiting:
            return False  # it has to stay behind them
        self._context.check()
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self.messages_sent += 1
        return True

    def _enqueue(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            self._poll_timer.start(self._check)

    def _check(self) -> None:
        """Send what waits, in the hub. Asking for the events re-arms the descriptor where nothing does."""
        if not self._waiting:
            self._socket.getsockopt(zmq.EVENTS)
            return
        while self._waiting:
            first = self._waiting[0]
            try:
                self._socket.send(first.message, zmq.NOBLOCK)
            except zmq.Again:
                return
            self.messages_sent += 1
            self._waiting.popleft()
            if first.gone is not None:
                first.gone.set()
        self._poll_timer.stop()

    def _monitor_changed(self) -> None:
        try:
            while True:
                event, value = _MONITOR_EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
                if event == zmq.EVENT_ACCEPTED:
                    self._accepted[value] = None
                elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self.arrivals += 1
                    # Whose one is not told. Handshakes are quick, so what has had none for long is no PULL socket.
                    if self._accepted:
                        self._peers.add(self._accepted.popitem()[0])
                elif event == zmq.EVENT_DISCONNECTED:
                    self._accepted.pop(value, None)
                    self._peers.discard(value)
        except zmq.Again:
            pass
        self._peers_changed.set()

    def __repr__(self) -> str:
        return f"<Pusher {self.endpoint}: {self.peers} peers, {self.messages_sent} sent, {self.waiting} waiting>"


def bind_subscriber(context: Context, endpoint: str, on_message: Callable[[bytes], None]) -> tuple[Receiver, str]:
    """Bind a SUB socket that takes every message, as Mongrel2 does with an empty ``recv_ident``.

    Returns:
        The running receiver, which calls *on_message* in its own greenlet, and the endpoint that was bound.

    Raises:
        BindError: The address cannot be bound.
    """
    receiver = Receiver(context, zmq.SUB, on_message, name=f"SUB of {context.owner}")
    receiver.subscribe(b"")
    return receiver, receiver.bind(endpoint)


def ask(context: Context, endpoint: str, message: bytes, timeout: float, ended: Event) -> tuple[bytes | None, bool]:
    """Ask the REP socket at *endpoint*.

    Each question has a REQ socket of its own: one that waits for an answer that was lost could never ask again. Blocks
    this greenlet.

    Args:
        ended: Set when *context* is closed, so that nobody waits on.

    Returns:
        The answer, ``None`` when there was none within *timeout* seconds; and whether the question went out. One that
        did not never will; one that did may be obeyed later on.

    Raises:
        TransportError: The endpoint names no known host.
        SocketClosed: The context was closed meanwhile.
    """
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is sent before somebody is there
    answers: list[bytes] = []
    answered = Event()
    asked = False

    def check() -> None:
        nonlocal asked
        if answers:  # REQ takes one answer to a question; whatever else stirs the descriptor is only taken note of
            socket.getsockopt(zmq.EVENTS)
            return
        try:
            if not asked:
                socket.send(message, zmq.NOBLOCK)
                asked = True
            answers.append(b"".join(socket.recv_multipart(zmq.NOBLOCK)))
        except zmq.Again:
            return
        answered.set()

    context.connect(socket, endpoint)
    watcher = context.watch(socket, check)
    try:
        check()
        gevent.wait((answered, ended), timeout, count=1)
        context.check()
    finally:
        context.unwatch(watcher)
        context.close_socket(socket, linger=0)
    return (answers[0] if answers else None), asked
