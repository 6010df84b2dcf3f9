"""One green ZeroMQ context and its sockets, which always go away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.monkey
import zmq
import zmq.green
from gevent import getcurrent
from gevent.hub import get_hub

from ..errors import BindError, ForkError, TransportError
from . import teardown

__all__ = ["Context", "SocketClosed", "SocketKind", "native_thread_id"]

log = logging.getLogger("greentx.transport")

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
        self._cut_off = False
        self._closed = False
        self.open = True
        """False once it was closed, and in a forked child."""
        self.hub = get_hub()
        self.thread_id = native_thread_id()
        self._context = zmq.green.Context()
        teardown.register(self)

    def socket(self, kind: int, *, green: bool = False) -> zmq.Socket[bytes]:
        """Make a socket.

        Args:
            kind: ``zmq.PULL``, ``zmq.XPUB``, ...
            green: True for one whose ``send`` and ``recv`` block their greenlet only. The others are for owners that
                watch the descriptor themselves: a green socket asks for its events after every single message, which
                costs more than the message.

        Raises:
            SocketClosed: The context has been closed.
            ForkError: This is a forked child; the context is its parent's.
        """
        self.check()
        if green:
            socket: zmq.Socket[bytes] = self._context.socket(kind)
        else:
            socket = self._context.socket(kind, socket_class=zmq.Socket)
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
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close_socket(socket, linger=0)
            raise TransportError(
                f"{self.owner} cannot connect to {endpoint}: {error.strerror}", address=endpoint, errno=error.errno
            ) from error

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
        """Close one socket; what it has not sent yet is kept for *linger* seconds (default: the context's)."""
        if socket in self._sockets:
            self._sockets.remove(socket)
        if not self._cut_off and not socket.closed:
            socket.close(int((self.linger if linger is None else linger) * 1000))

    def check(self) -> None:
        """Raise :class:`ForkError` in a forked child, :class:`SocketClosed` after :meth:`close`."""
        if self._cut_off:
            raise ForkError(f"{self.owner} belongs to the parent process: make a new one after the fork")
        if not self.open:
            raise SocketClosed(f"{self.owner} is closed")

    def in_hub_thread(self) -> bool:
        """True in the native thread whose hub the sockets live on; another one has to :meth:`hand_over` its call."""
        return native_thread_id() == self.thread_id

    def hand_over(self, function: Callable[..., None], *arguments: object) -> None:
        """Call *function* in a greenlet of the context's hub, for another native thread, and wait for it to return.

        Blocks the calling thread. Raises what *function* raised.
        """
        self.check()
        failure: list[BaseException] = []
        returned = _allocate_lock()
        returned.acquire()

        def call() -> None:
            try:
                function(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised again, in the thread that waits
                failure.append(error)
            finally:
                returned.release()

        self.hub.loop.run_callback_threadsafe(gevent.spawn, call)
        returned.acquire()
        if failure:
            raise failure[0]

    def close(self, *, linger: float | None = None) -> None:
        """Close every socket and terminate the context; safe to call twice.

        Blocks this greenlet, not the hub, until what was sent is out, for *linger* seconds at the most (default: the
        context's).
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
        if self._cut_off:
            return  # the memory is a copy, the threads are the parent's: nothing here may be terminated
        self._terminate()
        log.debug("%s: context gone after %.1f ms", self.owner, (time.monotonic() - started) * 1000)

    def _terminate(self) -> None:
        # Termination waits for the lingering sockets in C, which would stop every greenlet: it waits in a thread of its
        # own. In the hub itself nobody can wait, so the (bounded) wait happens there.
        if getcurrent() is self.hub or self.hub.loop is None or get_hub() is not self.hub:
            self._context.term()
            return
        gone = self.hub.loop.async_()

        def terminate() -> None:
            try:
                self._context.term()
            finally:
                gone.send()

        try:
            _start_native_thread(terminate, ())
            self.hub.wait(gone)
        finally:
            gone.close()

    def teardown(self) -> None:
        """Run the owner's teardown; the hooks of :mod:`greentx.transport.teardown` call it."""
        self._on_teardown()
        self.close(linger=0)  # an owner that failed half-way must not keep the context

    def forked(self) -> None:
        """Cut a forked child off: its copies of the watchers must not read the parent's descriptors."""
        self._cut_off = True
        self.open = False
        for watcher in self._watchers:
            watcher.stop()

    def __repr__(self) -> str:
        state = "closed" if not self.open else f"{len(self._sockets)} sockets"
        return f"<Context of {self.owner}: {state}>"
