"""One green ZeroMQ context and its sockets, which always go away."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, TypeVar

import gevent
import gevent.monkey
import zmq
import zmq.green
from gevent import getcurrent
from gevent.event import Event
from gevent.hub import get_hub
from zmq.backend import zmq_poll

from ..errors import BindError, ForkError, ThreadError, TransportError
from . import teardown
from .descriptors import Descriptors
from .names import Names

__all__ = ["MAX_MESSAGE_SIZE", "Context", "SocketClosed", "SocketKind", "native_thread_id"]

log = logging.getLogger("greentx.transport")

T = TypeVar("T")

# How often a thread that handed its call over looks whether the hub that it waits for is still there.
HUB_CHECK_SECONDS = 0.5

#: Seconds after which a WARNING says that a call which was handed over has not begun.
BLOCKED_WARNING_SECONDS = 5.0

# After an error in what the hub does with a socket, such as a lack of memory.
LOOK_AGAIN_SECONDS = 0.1

# A connection set has up to six sockets, and libzmq allows 1,023 by default.
_MAX_SOCKETS = 8192

_inprocs = itertools.count(1)

# A server whose machine has gone says no goodbye, and PULL never sends anything that would find out: the system's
# keep-alive does, after 90 s; and after 10 s where the machine is back, which knows nothing of the connection. ZeroMQ's
# own heartbeats would mistake a server that is only stopped for a dead one.
_TCP_KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 10),
    (zmq.TCP_KEEPALIVE_INTVL, 10),
    (zmq.TCP_KEEPALIVE_CNT, 8),
)

#: Bytes of a message that comes in by ZeroMQ, unless something else was said. Mongrel2 bounds a WebSocket message by
#: the 2 GiB of a frame only (probed), and passes each on in one message, behind its headers. To refuse one is to end
#: the connection to the server, with all that came by it: any client could do that where less is allowed.
MAX_MESSAGE_SIZE = 2**31 + 2**20

#: ZeroMQ's socket types, for modules that do not import ``zmq`` themselves.
SocketKind = zmq.SocketType

_allocate_lock = gevent.monkey.get_original("_thread", "allocate_lock")
start_native_thread = gevent.monkey.get_original("_thread", "start_new_thread")
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
        max_message: Bytes of a message that comes in, for all sockets that are not told otherwise.
        on_fork: Called in a forked child, which has to let go of descriptors that are not of this context. It must not
            use ZeroMQ.
    """

    def __init__(
        self,
        owner: str,
        on_teardown: Callable[[], None],
        *,
        linger: float = 1.0,
        max_message: int = MAX_MESSAGE_SIZE,
        on_fork: Callable[[], None] | None = None,
    ) -> None:
        self.owner = owner
        self.linger = linger
        self.max_message = max_message
        self._on_teardown = on_teardown
        self._on_fork = on_fork
        # What close() has to close, whatever its owners forgot.
        self._sockets: list[zmq.Socket[bytes]] = []
        # Of calls that other native threads handed over: the greenlets that run them, and those that wait for them.
        self._callers: dict[Any, Any] = {}
        self._watchers: list[Any] = []
        self.names = Names()
        """What resolves the names of endpoints."""
        self.open = True
        """False once it was closed, and in a forked child."""
        self.forked = False
        """True in a forked child."""
        # Fixed for good: sockets are not thread-safe, and watchers belong to one loop.
        self.hub = get_hub()
        self.thread_id = native_thread_id()
        self._context = zmq.green.Context()
        self._descriptors = Descriptors()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self.authority: Any = None
        """Who answers ZeroMQ's questions about peers; :mod:`greentx.transport.security` makes it."""
        teardown.register(self)

    @property
    def terminated(self) -> bool:
        """True once ZeroMQ's own context has gone, with its threads."""
        return bool(self._context.closed)

    def socket(self, kind: int, *, max_message: int | None = None) -> zmq.Socket[bytes]:
        """Make a socket, whose owner watches its descriptor (see :meth:`watch`) and never blocks in it.

        *max_message* is how many bytes a message may have that comes in; ``None`` is the context's. ZeroMQ reserves no
        memory for a larger one, and ends the connection that it came by.

        Not a green one: that asks for its events after every single message, which costs more than the message, and
        its own watcher would go on in a forked child.

        Raises:
            SocketClosed: The context has been closed.
            ForkError: This is a forked child; the context is its parent's.
        """
        self.check()
        make = partial(self._context.socket, kind, socket_class=zmq.Socket)
        # One that were made and not noted would hold up the end forever.
        with teardown.uninterrupted():
            socket: zmq.Socket[bytes] = self._descriptors.make(make)
            self._sockets.append(socket)
        # ZeroMQ's default is to linger forever: a server that has gone would hold up the end of the process.
        socket.setsockopt(zmq.LINGER, int(self.linger * 1000))
        socket.setsockopt(zmq.MAXMSGSIZE, self.max_message if max_message is None else max_message)
        return socket

    def bind(self, socket: zmq.Socket[bytes], endpoint: str) -> str:
        """Bind *socket* and return the endpoint that it got, with the real port where *endpoint* ends in ``:*``.

        Raises:
            BindError: The address is in use, not ours, not permitted or malformed; the socket is closed.
        """
        if _is_ipv6(endpoint):
            socket.setsockopt(zmq.IPV6, 1)
        try:
            self._descriptors.bind(partial(socket.bind, endpoint))
        except zmq.ZMQError as error:
            self.close_socket(socket, linger=0)
            raise BindError(
                f"{self.owner} cannot bind {endpoint}: {error.strerror}", address=endpoint, errno=error.errno
            ) from error
        # The port is asked of the socket that has it: one that was free a moment before may not be any more.
        last = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(last, bytes)
        return last.rstrip(b"\0").decode()

    def connect(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        """Connect *socket*, which does not wait for the other side to be there.

        Args:
            endpoint: With a numeric address; a name has to be resolved before (:attr:`names`).

        Raises:
            TransportError: *endpoint* is malformed; the socket is closed.
        """
        if endpoint.startswith("tcp:"):
            for option, value in _TCP_KEEPALIVE:
                socket.setsockopt(option, value)
        if _is_ipv6(endpoint):
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close_socket(socket, linger=0)
            raise TransportError(
                f"{self.owner} cannot connect to {endpoint}: {error.strerror}", address=endpoint, errno=error.errno
            ) from error

    def new_inproc(self) -> str:
        """Return an endpoint inside this context, never used before: those of closed sockets stay bound for a while."""
        return f"inproc://{next(_inprocs)}"

    def watch(self, socket: zmq.Socket[bytes], callback: Callable[[], None]) -> Any:
        """Return a running watcher that calls *callback* in the hub when *socket* may have changed state.

        ZeroMQ's descriptor tells of a change once: *callback* has to receive until EAGAIN, or the next change is
        missed (ZeroMQ manual, ``ZMQ_FD``). So where it raises it is logged, and called again after a moment. Stop it
        with :meth:`unwatch`, before the socket is closed.
        """
        watcher = self.hub.loop.io(socket.getsockopt(zmq.FD), 1)
        watcher.start(self._look, watcher, callback)
        self._watchers.append(watcher)
        # A pipe that was never read tells nobody of its first message: have each looked at once.
        self.hub.loop.run_callback(self._look, watcher, callback)
        return watcher

    def _look(self, watcher: Any, callback: Callable[[], None]) -> None:
        # It may have been let go of since the event.
        if not self.open or not watcher.active:
            return
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - it is logged, and the socket is looked at again
            # Its descriptor would call again in every round of the loop.
            watcher.stop()
            with contextlib.suppress(Exception):  # where there is no memory for a line in the log
                log.error("%s: %r; its socket is looked at again in %.1f s", self.owner, error, LOOK_AGAIN_SECONDS)
            again = self.timer(LOOK_AGAIN_SECONDS)
            again.start(self._look_again, again, watcher, callback)

    def _look_again(self, timer: Any, watcher: Any, callback: Callable[[], None]) -> None:
        self.unwatch(timer)
        if watcher in self._watchers:
            watcher.start(self._look, watcher, callback)
            self._look(watcher, callback)

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

    @staticmethod
    def message_check(socket: zmq.Socket[bytes]) -> Callable[[], bool]:
        """Return a function that says whether *socket* has a message to receive; it must not be closed.

        Asking uses up what its descriptor had to tell.
        """
        # pyzmq makes objects of its own of ZMQ_EVENTS, and an error of each EAGAIN: both cost more than this.
        sockets = [(socket, int(zmq.POLLIN))]
        return lambda: bool(zmq_poll(sockets, 0))

    def close_socket(self, socket: zmq.Socket[bytes], *, linger: float | None = None) -> None:
        """Close one socket; what it has not sent yet is kept for *linger* seconds (default: the context's).

        Unwatch it before: its descriptor's number may be another's a moment later.
        """
        # Forgotten last: a signal may strike in between.
        if not self.forked and not socket.closed:
            socket.close(int((self.linger if linger is None else linger) * 1000))
        if socket in self._sockets:
            self._sockets.remove(socket)

    def check(self) -> None:
        """Raise :class:`ForkError` in a forked child, :class:`SocketClosed` after :meth:`close`."""
        if self.forked:
            raise ForkError(f"{self.owner} belongs to the parent process: make a new one after the fork")
        if not self.open:
            raise SocketClosed(f"{self.owner} is closed")

    def in_hub_thread(self) -> bool:
        """True in the native thread whose hub the sockets live on; another one has to :meth:`hand_over` its call."""
        return native_thread_id() == self.thread_id

    def check_thread(self) -> None:
        """Raise :class:`~greentx.errors.ThreadError` in another native thread than the hub's; as :meth:`check` too."""
        self.check()
        if not self.in_hub_thread():
            raise ThreadError(
                f"{self.owner} belongs to the native thread that started it: call it there, or start one in this thread"
            )

    def caller(self) -> Any:
        """Return the greenlet that called: this one, or that of another native thread for which it runs."""
        current = getcurrent()
        return self._callers.get(current, current)

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
        began: list[bool] = []
        returned = _allocate_lock()
        returned.acquire()
        caller = getcurrent()

        def call() -> None:
            began.append(True)
            here = getcurrent()
            self._callers[here] = caller
            try:
                results.append(function(*arguments))
            except BaseException as error:  # noqa: BLE001 - raised again, in the thread that waits
                failure.append(error)
            finally:
                del self._callers[here]
                returned.release()

        # In a greenlet of its own, since the call may block, which a callback of the hub must not.
        self.hub.loop.run_callback_threadsafe(gevent.spawn, call)
        warn_at = time.monotonic() + BLOCKED_WARNING_SECONDS
        while not returned.acquire(timeout=HUB_CHECK_SECONDS):
            if not began and time.monotonic() >= warn_at:
                warn_at = inf
                what = f"{self.owner}: a call of another thread waits for the thread that started it"
                log.warning("%s, whose greenlets do not run: is it in a call that blocks them all?", what)
            # Its callbacks are never run then; nothing else tells a thread that waits without a hub of its own.
            if self.hub.dead or self.hub.loop is None:
                raise SocketClosed(f"{self.owner} is closed, its hub was destroyed")
        if failure:
            # Out of the list: an error whose traceback leads back to it is freed only when Python looks for cycles.
            raise failure.pop()
        return results[0]

    def close(self, *, linger: float | None = None) -> None:
        """Close every socket and terminate the context; safe to call twice.

        Blocks this greenlet, not the hub, until what was sent is out, for *linger* seconds at the most (default: the
        context's). Belongs to the hub's thread.
        """
        # In a forked child it is not open, but there is something to let go of; twice does no harm there.
        if not self.open and not self.forked:
            return
        started = time.monotonic()
        wait: Callable[[], None] | None = None
        try:
            # What a signal left half-way nobody would close.
            with teardown.uninterrupted():
                # Before anything blocks: a second call returns, and what is woken by the end finds it closed.
                self.open = False
                teardown.unregister(self)
                # Watchers first: a closed socket's descriptor may be another one's a moment later.
                for watcher in self._watchers[:]:
                    self.unwatch(watcher)
                self.names.close()
                for socket in self._sockets[:]:
                    self.close_socket(socket, linger=linger)
                # In a forked child the memory is a copy, the threads are the parent's: nothing may be terminated.
                if not self.forked:
                    wait = self._terminate()
        finally:
            try:
                if wait is not None:
                    wait()
            finally:
                teardown.forget(self)
        log.debug("%s: context gone after %.1f ms", self.owner, (time.monotonic() - started) * 1000)

    def _terminate(self) -> Callable[[], None] | None:
        """Terminate ZeroMQ's context; return what waits for the end of that, ``None`` where it has ended."""
        # Termination waits for the lingering sockets in C, which would stop every greenlet: it waits in a thread of its
        # own. In the hub itself nobody can wait, so the (bounded) wait happens there.
        if getcurrent() is self.hub or self.hub.dead or self.hub.loop is None or get_hub() is not self.hub:
            self._context.term()
            return None
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

        def wait() -> None:
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

        try:
            start_native_thread(terminate, ())
        except RuntimeError:  # the interpreter is ending, or the system has no more threads
            gone.close()
            self._context.term()
            return None
        return wait

    def teardown(self) -> None:
        """Run the owner's teardown; the hooks of :mod:`greentx.transport.teardown` call it."""
        try:
            self._on_teardown()
        finally:
            self.close(linger=0)  # an owner that failed half-way must not keep the context

    def before_fork(self) -> None:
        """A child is about to be forked; it gets copies of all descriptors."""
        self._descriptors.note()

    def after_fork(self) -> None:
        """Cut a forked child off: its copies of the watchers must not read the parent's descriptors.

        Those of ZeroMQ's threads are closed: else its connections would outlive the parent, with nobody who reads them.
        """
        self.forked = True
        self.open = False
        # Only stopped: closing them would use ZeroMQ.
        for watcher in self._watchers:
            watcher.stop()
        self._descriptors.close_inherited()
        if self._on_fork is not None:
            self._on_fork()

    def __repr__(self) -> str:
        state = "closed" if not self.open else f"{len(self._sockets)} sockets"
        return f"<Context of {self.owner}: {state}>"


def _is_ipv6(endpoint: str) -> bool:
    # ZeroMQ's sockets know IPv4 only, unless they are told.
    return endpoint.startswith("tcp://") and "[" in endpoint
