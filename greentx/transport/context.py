"""One green ZeroMQ context and its sockets, which always go away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
import gevent.monkey
import zmq
import zmq.green
from gevent import getcurrent
from gevent.event import Event
from gevent.hub import get_hub

from ..errors import BindError, ForkError, TransportError
from . import teardown

__all__ = ["Context", "SocketClosed", "SocketKind", "native_thread_id"]

log = logging.getLogger("greentx.transport")

T = TypeVar("T")

# How often a thread that handed its call over looks whether the hub that it waits for is still there.
_HUB_CHECK_SECONDS = 0.5

# A server whose machine has gone says no goodbye, and PULL never sends anything that would find out: the system's
# keep-alive does, after about 90 s. ZeroMQ's own heartbeats would take a server that is only stopped for a dead one.
_TCP_KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 60),
    (zmq.TCP_KEEPALIVE_INTVL, 10),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)

#: ZeroMQ's socket types, for those who do not import ``zmq`` themselves.
SocketKind = zmq.SocketType

_allocate_lock = gevent.monkey.get_original("_thread", "allocate_lock")
_start_native_thread = gevent.monkey.get_original("_thread", "start_new_thread")
#: The id of the operating system's thread, also where ``threading`` is monkey-patched.
native_thread_id: Callable[[], int] = gevent.monkey.get_original("_thread", "get_ident")


class SocketClosed(TransportError):
    """The socket, or its context, has been closed: this object can no longer be used."""


class Context:
    """A ZeroMQ context of one owner (a Transceiver, a Server), on the hub of the greenlet that made it.

    Args:
        owner: What error messages and logs call it.
        on_teardown: Called without arguments when the hub is destroyed, the interpreter exits or SIGTERM comes, and the
            context is still open. It has to end in :meth:`close`.
        linger: Seconds that messages not yet written to their connection may hold up :meth:`close`.
    """

    def __init__(self, owner: str, on_teardown: Callable[[], None], *, linger: float = 1.0) -> None:
        self.owner = owner
        self.linger = linger
        self._on_teardown = on_teardown
        self._sockets: list[zmq.Socket[bytes]] = []
        self._watchers: list[Any] = []
        self._closed = False
        self._inprocs = 0
        self.open = True
        """False once it was closed, and in a forked child."""
        self.cut_off = False
        """True in a forked child."""
        self.hub = get_hub()
        self.thread_id = native_thread_id()
        self._context = zmq.green.Context()
        teardown.register(self)

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """Make a socket, whose owner watches its descriptor (see :meth:`watch`) and never blocks in it.

        Not a green one: that asks for its events after every single message, which costs more than the message, and
        its own watcher would go on in a forked child.

        Raises:
            SocketClosed: The context has been closed.
            ForkError: This is a forked child; the context is its parent's.
        """
        self.check()
        socket: zmq.Socket[bytes] = self._context.socket(kind, socket_class=zmq.Socket)
        socket.setsockopt(zmq.LINGER, int(self.linger * 1000))
        self._sockets.append(socket)
        return socket

    def bind(self, socket: zmq.Socket[bytes], endpoint: str) -> str:
        """Bind *socket* and return the endpoint that it got, with the real port where *endpoint* ends in ``:*``.

        Raises:
            BindError: The address is in use, not ours, not permitted or malformed; the socket is closed.
        """
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close_socket(socket, linger=0)
            raise BindError(
                f"{self.owner} cannot bind {endpoint}: {error.strerror}", address=endpoint, errno=error.errno
            ) from error
        last = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(last, bytes)
        return last.rstrip(b"\0").decode()

    def connect(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        """Connect *socket*, which does not wait for the other side to be there.

        Raises:
            TransportError: *endpoint* is malformed or names no known host; the socket is closed.
        """
        if endpoint.startswith("tcp:"):
            for option, value in _TCP_KEEPALIVE:
                socket.setsockopt(option, value)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close_socket(socket, linger=0)
            raise TransportError(
                f"{self.owner} cannot connect to {endpoint}: {error.strerror}", address=endpoint, errno=error.errno
            ) from error

    def new_inproc(self) -> str:
        """Return an endpoint inside this context, never used before: those of closed sockets stay bound for a while."""
        self._inprocs += 1
        return f"inproc://{self._inprocs}"

    def watch(self, socket: zmq.Socket[bytes], callback: Callable[[], None]) -> Any:
        """Return a running watcher that calls *callback* in the hub when *socket* may have changed state.

        ZeroMQ's descriptor tells of a change once: whoever is called has to receive until EAGAIN, or the next change is
        missed (ZeroMQ manual, ``ZMQ_FD``). Stop it with :meth:`unwatch`, before the socket is closed.
        """
        watcher = self.hub.loop.io(socket.getsockopt(zmq.FD), 1)
        watcher.start(callback)
        self._watchers.append(watcher)
        # A pipe that was never read tells nobody of its first message: have each looked at once.
        self.hub.loop.run_callback(self._first_look, watcher, callback)
        return watcher

    def _first_look(self, watcher: Any, callback: Callable[[], None]) -> None:
        if watcher in self._watchers and self.open:
            callback()

    def timer(self, seconds: float, repeat: float = 0.0) -> Any:
        """Return a timer of the hub's loop, not started; let go of it with :meth:`unwatch`."""
        timer = self.hub.loop.timer(seconds, repeat)
        self._watchers.append(timer)
        return timer

    def unwatch(self, watcher: Any) -> None:
        """Stop a watcher or timer and let go of it."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
        watcher.stop()
        watcher.close()

    def has_message(self, socket: zmq.Socket[bytes]) -> bool:
        """Return whether *socket* has a message to receive. Asking uses up what its descriptor had to tell."""
        events = socket.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        return bool(events & zmq.POLLIN)

    def close_socket(self, socket: zmq.Socket[bytes], *, linger: float | None = None) -> None:
        """Close one socket; what it has not sent yet is kept for *linger* seconds (default: the context's).

        Unwatch it before: its descriptor's number may be another's a moment later.
        """
        if socket in self._sockets:
            self._sockets.remove(socket)
        if not self.cut_off and not socket.closed:
            socket.close(int((self.linger if linger is None else linger) * 1000))

    def check(self) -> None:
        """Raise :class:`ForkError` in a forked child, :class:`SocketClosed` after :meth:`close`."""
        if self.cut_off:
            raise ForkError(f"{self.owner} belongs to the parent process: make a new one after the fork")
        if not self.open:
            raise SocketClosed(f"{self.owner} is closed")

    def in_hub_thread(self) -> bool:
        """True in the native thread whose hub the sockets live on; another one has to :meth:`hand_over` its call."""
        return native_thread_id() == self.thread_id

    def hand_over(self, function: Callable[..., T], *arguments: object) -> T:
        """Call *function* in a greenlet of the context's hub, for another native thread, and return what it returns.

        Blocks the calling thread.

        Raises:
            SocketClosed: The context was closed before the call began, or the hub destroyed before it ended.
            ForkError: As :meth:`check`.
            BaseException: What *function* raised.
        """
        self.check()
        results: list[T] = []
        failure: list[BaseException] = []
        returned = _allocate_lock()
        returned.acquire()

        def call() -> None:
            try:
                results.append(function(*arguments))
            except BaseException as error:  # noqa: BLE001 - raised again, in the thread that waits
                failure.append(error)
            finally:
                returned.release()

        self.hub.loop.run_callback_threadsafe(gevent.spawn, call)
        while not returned.acquire(timeout=_HUB_CHECK_SECONDS):
            if self.hub.dead or self.hub.loop is None:
                raise SocketClosed(f"{self.owner} is closed, its hub was destroyed")
        if failure:
            raise failure[0]
        return results[0]

    def close(self, *, linger: float | None = None) -> None:
        """Close every socket and terminate the context; safe to call twice.

        Blocks this greenlet, not the hub, until what was sent is out, for *linger* seconds at the most (default: the
        context's). Belongs to the hub's thread.
        """
        if self._closed:
            return
        self._closed = True
        self.open = False
        teardown.unregister(self)
        for watcher in self._watchers[:]:
            self.unwatch(watcher)
        started = time.monotonic()
        for socket in self._sockets[:]:
            self.close_socket(socket, linger=linger)
        if self.cut_off:
            return  # the memory is a copy, the threads are the parent's: nothing here may be terminated
        self._terminate()
        log.debug("%s: context gone after %.1f ms", self.owner, (time.monotonic() - started) * 1000)

    def _terminate(self) -> None:
        # Termination waits for the lingering sockets in C, which would stop every greenlet: it waits in a thread of its
        # own. In the hub itself nobody can wait, so the (bounded) wait happens there.
        if getcurrent() is self.hub or self.hub.dead or self.hub.loop is None or get_hub() is not self.hub:
            self._context.term()
            return
        gone = self.hub.loop.async_()
        ended = Event()
        gone.start(ended.set)
        done = _allocate_lock()
        done.acquire()

        def terminate() -> None:
            try:
                self._context.term()
            finally:
                gone.send()
                done.release()

        try:
            _start_native_thread(terminate, ())
        except RuntimeError:  # the interpreter is ending, or the system has no more threads
            gone.close()
            self._context.term()
            return
        # Whatever strikes this greenlet meanwhile, a second Ctrl-C or somebody's Timeout, has to wait for its turn:
        # the wait is bounded, and the thread still has to tell of its end.
        struck: BaseException | None = None
        while not ended.is_set():
            try:
                ended.wait()
            except BaseException as error:  # noqa: BLE001 - raised again
                struck = error
        done.acquire()
        gone.close()
        if struck is not None:
            raise struck

    def teardown(self) -> None:
        """Run the owner's teardown; the hooks of :mod:`greentx.transport.teardown` call it."""
        try:
            self._on_teardown()
        finally:
            self.close(linger=0)  # an owner that failed half-way must not keep the context

    def forked(self) -> None:
        """Cut a forked child off: its copies of the watchers must not read the parent's descriptors."""
        self.cut_off = True
        self.open = False
        for watcher in self._watchers:
            watcher.stop()

    def __repr__(self) -> str:
        state = "closed" if not self.open else f"{len(self._sockets)} sockets"
        return f"<Context of {self.owner}: {state}>"
