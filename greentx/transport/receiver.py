"""One receiving end, drained in batches by a greenlet of its own.

A ``zmq.green`` socket asks for its events after every message. Here the greenlet sleeps on the socket's descriptor,
receives until nothing is left, which also re-arms the descriptor, and lets the hub run after every :data:`BATCH`
messages.

A receiver that connects uses one socket for one TCP connection (:mod:`greentx.transport.incoming`):

    no socket --wanted--> receiving --nothing left--> asleep --the descriptor, or the end--> receiving
        ^                     |                                    |
        |  pause              +-- an error of ZeroMQ's             | the connection is lost, nothing left
        +---------------------+------------------------------------+

The greenlet ends with :meth:`Receiver.stop` and with its context, and never by an error: a message that cannot be
handled fails alone, and a socket that cannot be used is replaced, after a pause that grows
(:mod:`greentx.transport.supervised`). A host name is resolved again for each connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum
from functools import partial

import gevent
import zmq
from gevent.event import Event
from gevent.hub import get_hub

from ..errors import TransportError
from .context import Context
from .incoming import Incoming, Leaving
from .monitor import ContactState
from .security import Access, Dial
from .supervised import Supervised

__all__ = ["BATCH", "RETRY_SECONDS", "Receiver", "bind_subscriber"]

log = logging.getLogger("greentx.transport")

#: Messages received before other greenlets get their turn; 64 of them are about a millisecond.
BATCH = 64

#: Between two attempts to connect; ZeroMQ's own default.
RETRY_SECONDS = 0.1

# A name that does not resolve, a lack of descriptors: so many times as long, since we cannot make them better.
_FAILURE_RETRIES = 10

# What the pause after a batch needs: nothing, but it is a timer, whose turn comes with each round of the loop. A sleep
# of 0 would put the receiver behind all greenlets that are ready, and pongs would lie unread behind the work of many.
# (libev rounds waiting times to milliseconds, this one down to none.)
_TURN_SECONDS = 1e-9

# Where the last batch had so many messages or fewer, the next one is taken to be small, too: behind each of its first
# messages the socket is asked whether there is one more. To ask costs a third of an attempt that finds nothing, with
# its error.
_FEW = 3

# A killed greenlet may be busy in code of the application that does not let go of it.
_KILL_SECONDS = 0.5

# A server under load fills the socket faster than it is emptied: an end needs a bound.
_LAST_BATCHES = 64

# How often we look whether the other side has seen that we leave.
_LEAVE_POLL_SECONDS = 0.001

_NOBLOCK = int(zmq.NOBLOCK)


class _Wanted(Enum):
    MESSAGES = "they are received"
    CONNECTION = "the other side may send, nothing is received yet"
    NOTHING = "the life of the server is over; no new connection is made"


class _Retry:
    """When to connect again: after :data:`RETRY_SECONDS`; with a *limit* after up to so many, doubled each time.

    Attributes:
        why: What came of the last attempt, where it failed.
    """

    def __init__(self, limit: float | None) -> None:
        self.why = ""
        self._limit = RETRY_SECONDS if limit is None else limit
        self._seconds = RETRY_SECONDS
        self._now = Event()

    def failed(self, state: ContactState) -> None:
        """An attempt, or a connection, has ended that way."""
        self.why = state.value
        self._seconds = RETRY_SECONDS if state is ContactState.LOST else min(2 * self._seconds, self._limit)
        self._now.clear()

    def now(self) -> None:
        """Somebody knows that the other side is there, or wants an end."""
        self._seconds = RETRY_SECONDS
        self._now.set()

    def wait(self) -> None:
        """Block this greenlet until it is time."""
        self._now.wait(self._seconds)


class Receiver:
    """Calls *on_message* with each message, in the receiver's own greenlet.

    Args:
        context: Owner of the socket.
        kind: ``zmq.PULL`` or ``zmq.SUB``; ``zmq.XSUB`` or ``zmq.DEALER``, which can also :meth:`send`.
        on_message: Called with the bytes of one message. It may block (the receiver then waits) and should not raise:
            what it raises is logged with its traceback, and the next message is received.
        on_state: Called without arguments when :attr:`connected` or :attr:`why` may have changed. Must not block.
        leaving: Asked when it ends; see :class:`greentx.transport.incoming.Leaving`.
        linger: Seconds that what was sent may still go out after :meth:`stop`, where anything was.
        security: Who may connect where it binds, or how it connects; see :mod:`greentx.transport.security`.
        opening: Called for each new connection of a DEALER: returns the routing id that it has, no other ever has, and
            the first message, which is sent before any other. Must not block.
        name: For the greenlet and the logs.
    """

    def __init__(
        self,
        context: Context,
        kind: int,
        on_message: Callable[[bytes], None],
        *,
        on_state: Callable[[], None] = lambda: None,
        leaving: Leaving | None = None,
        linger: float = 0.0,
        security: Access | Dial | None = None,
        opening: Callable[[], tuple[bytes, bytes]] | None = None,
        name: str = "receiver",
    ) -> None:
        self.name = name
        self.drained_at = float("-inf")
        """``time.monotonic()`` when no message was left for the last time: all that came before has been seen."""
        self._context = context
        self._on_message = on_message
        self._on_state = on_state
        self._linger = linger
        self._endpoint: str | None = None
        self._topics: list[bytes] = []
        self._incoming: Incoming | None = None
        self._new_incoming = partial(Incoming, context, kind, self._wake, on_state, leaving, security, opening)
        self._retry = _Retry(security.retry_max if isinstance(security, Dial) else None)
        self._wanted = _Wanted.MESSAGES
        self._parked = False
        # What came of the last attempt to resolve its name, where it failed.
        self._unresolved = ""
        self._keeper = Supervised(
            name, self._run, on_change=on_state, on_failure=self._failed, retry=RETRY_SECONDS * _FAILURE_RETRIES
        )

    @property
    def connected(self) -> bool:
        """True while the other side is known to be there and messages are received; always so of one that is bound."""
        return self._incoming is not None and self._incoming.connected and not self._keeper.failures

    @property
    def lost(self) -> bool:
        """True while there is no connection, nor an attempt to make one: the last one has ended."""
        return self._incoming is None or self._incoming.lost

    @property
    def why(self) -> str:
        """Why it is not :attr:`connected`; ``""`` where it is."""
        if self.connected:
            return ""
        contact = None if self._incoming is None else self._incoming.contact
        state = ContactState.CONNECTING if contact is None else contact.state
        # It is told of longer than the next attempt lasts.
        is_tried_again = state is ContactState.CONNECTING and self._retry.why
        return self._keeper.trouble or self._unresolved or (self._retry.why if is_tried_again else state.value)

    def caught_up(self) -> bool:
        """True when everything that has come was handed on: the greenlet sleeps and the socket has nothing for it."""
        # In a forked child the socket is the parent's: it is not even asked.
        if not self._context.open or not self._parked or self._wanted is _Wanted.CONNECTION:
            return False
        if self._incoming is not None and self._incoming.has_message():
            self._wake_soon()  # asking may have used up what the descriptor had to tell
            return False
        return True

    def bind(self, endpoint: str) -> str:
        """Bind, start receiving and return the endpoint it got. Raises :class:`~greentx.errors.BindError`."""
        incoming = self._new_incoming()
        for topic in self._topics:
            incoming.subscribe(topic)
        bound = incoming.bind(endpoint)
        self._incoming = incoming
        self._keeper.start()
        return bound

    def connect(self, endpoint: str, *, hold: bool = False) -> None:
        """Connect, now and whenever the connection is lost, and start receiving; after :meth:`drop`, connect anew.

        Does not block, so the hub may call it: the receiver's greenlet makes the socket. An endpoint that ZeroMQ does
        not accept is logged, and tried again.

        Args:
            hold: Be there for the other side to send to, but receive nothing yet; a call without it goes on from there.
        """
        self._endpoint = endpoint
        self._wanted = _Wanted.CONNECTION if hold else _Wanted.MESSAGES
        if not hold:
            self._retry.now()
        self._keeper.start()
        self._wake_soon()

    def subscribe(self, topic: bytes) -> None:
        """Receive messages that begin with *topic* (SUB and XSUB only), also on the connections to come."""
        self._topics.append(topic)
        if self._incoming is not None:
            self._incoming.subscribe(topic)

    def send(self, message: bytes) -> bool:
        """Send *message* to the XPUB or ROUTER that this XSUB or DEALER is connected to; never blocks.

        To an XPUB, it begins with neither 0 nor 1.

        Returns:
            False where there is no connection, or no room in it: the message is not sent.
        """
        if self._incoming is None:
            return False
        try:
            return self._incoming.send(message)
        finally:
            # Sending may have used up what the descriptor had to tell: look before the hub sleeps.
            get_hub().loop.run_callback(self._look_once)

    def _look_once(self) -> None:
        if self._parked and self._context.open and self._incoming is not None and self._incoming.has_message():
            self._wake()

    def look(self) -> None:
        """Receive what has come, in the caller's greenlet, or in the hub.

        Only where *on_message* never blocks, and not from within it.
        """
        try:
            self._drain()
        finally:
            self._wake_soon()

    def drop(self) -> None:
        """Give up the present connection and what it still holds, until :meth:`connect` is called again.

        For what belongs to a life of the server that is over. Does not block.
        """
        dropped = 0
        self._wanted = _Wanted.NOTHING
        if self._incoming is not None:
            try:
                while True:
                    self._incoming.socket.recv(zmq.NOBLOCK)
                    dropped += 1
            except zmq.ZMQError:
                pass  # nothing left, or nothing that can be received: it is closed either way
            self._close()
        if dropped:
            log.warning("%s: %d messages of a server that has gone were dropped", self.name, dropped)

    def stop(self, timeout: float | None = None) -> None:
        """Receive what has arrived, then close the socket and end the greenlet; safe to call twice.

        Blocks until *on_message* returned for the last message, for *timeout* seconds at the most.
        """
        # Not a kill at once: what has arrived was pushed by the server to nobody else.
        keeper = self._keeper
        keeper.stopping.set()
        self._retry.now()
        self._wake_soon()
        keeper.join(timeout)
        keeper.kill(_KILL_SECONDS)
        self._close()

    def _close(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            contact = incoming.contact
            if contact is not None and contact.over:
                self._retry.failed(contact.state)
            incoming.close(self._linger if self._keeper.stopping.is_set() else 0)
            self._on_state()

    # -- sleeping and waking -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._parked:
            self._parked = False
            self._keeper.greenlet.switch()
        elif self._incoming is not None and self._incoming.watching:
            # It is busy, or waits for room: the descriptor would call again in every round of the loop until then.
            self._incoming.unwatch()

    def _wake_soon(self) -> None:
        get_hub().loop.run_callback(self._wake)

    def _park(self) -> None:
        if self._incoming is not None:
            if self._wanted is _Wanted.CONNECTION:
                self._incoming.unwatch()
            elif not self._incoming.watching:
                self._incoming.watch()
        self._parked = True
        try:
            get_hub().switch()
        finally:
            self._parked = False

    # -- the greenlet ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        batches_left = _LAST_BATCHES
        stopping = self._keeper.stopping
        while self._context.open:  # which it is not in a forked child
            # Asked before: what had arrived when the connection ended has been received then.
            incoming = self._incoming
            lost = incoming is not None and incoming.lost
            drained = self._drain()
            if stopping.is_set():
                batches_left -= not drained
                if not batches_left or (drained and (lost or not self._leaves())):
                    break
                gevent.sleep(_LEAVE_POLL_SECONDS if drained else _TURN_SECONDS)
            elif not drained:
                gevent.sleep(_TURN_SECONDS)
            elif self._incoming is not None and self._incoming.lost:
                self._close()
                self._retry.wait()
            elif self._incoming is not None or self._wanted is _Wanted.NOTHING:
                self._park()
            else:
                self._open()
        self._close()

    def _leaves(self) -> bool:
        # One that is held back did not read: the other side has to find out that nobody will.
        return (
            self._incoming is not None and self._wanted is not _Wanted.CONNECTION and self._incoming.leaves(self._drain)
        )

    def _open(self) -> None:
        assert self._endpoint is not None
        endpoint = self._endpoint
        try:
            numeric = self._context.names.resolve(endpoint, unless=self._keeper.stopping)
            self._unresolved = ""
            # Meanwhile it may have been told to end, to let go, or to connect elsewhere.
            if self._keeper.stopping.is_set() or self._wanted is _Wanted.NOTHING or self._endpoint != endpoint:
                return
            # Known from here on, so that it is closed whatever fails.
            self._incoming = incoming = self._new_incoming()
            for topic in self._topics:
                incoming.subscribe(topic)
            incoming.connect(numeric)
        except TransportError as error:  # a name that does not resolve, for now
            self._close()
            if self._keeper.stopping.is_set():
                return
            # Once, and not with each attempt; who waits for the connection says it again.
            if self._unresolved != str(error):
                self._unresolved = str(error)
                log.warning("%s: %s; it is tried again", self.name, error)
                self._on_state()
            self._keeper.stopping.wait(RETRY_SECONDS * _FAILURE_RETRIES)

    def _failed(self, error: BaseException) -> None:
        """An error came that no message is to blame for: a new socket is made after the pause."""
        if self._endpoint is not None:  # the address of a bound one is known to others: it keeps its socket
            self._close()

    def _drain(self) -> bool:
        """Receive until nothing is left, or a batch; return True when nothing was."""
        incoming = self._incoming
        if incoming is None or self._wanted is _Wanted.CONNECTION:
            return True
        receive, on_message = incoming.socket.recv, self._on_message
        asked = _FEW if incoming.few else 0
        for count in range(BATCH):
            try:
                if 0 < count <= asked and not incoming.has_message():
                    return self._drained(incoming, count)
                message = receive(_NOBLOCK)
            except zmq.Again:
                return self._drained(incoming, count)
            except zmq.ZMQError:
                if incoming.socket.closed:
                    return True
                raise
            except MemoryError:
                # ZeroMQ has given it away and Python had no room for it: the next one may be smaller.
                log.error("%s: no memory for a message, which is lost", self.name)
                continue
            try:
                on_message(message)
            except (Exception, gevent.Timeout):
                # A Timeout too: one that is still running was left behind by what it called, nobody else waits for it.
                log.exception("%s: a message of %d bytes was not handled", self.name, len(message))
            if not self._context.open:
                return False  # it forked, and this is the child, whose socket is the parent's; or it closed all
            if self._incoming is not incoming:
                return True  # it was closed
        incoming.few = False
        return False

    def _drained(self, incoming: Incoming, count: int) -> bool:
        incoming.few = count <= _FEW
        if self._keeper.failures and self._incoming is incoming:
            self._keeper.works()
        self.drained_at = time.monotonic()
        return True

    def __repr__(self) -> str:
        state = "stopped" if self._keeper.stopping.is_set() else "connected" if self.connected else "waiting"
        return f"<Receiver {self.name} {self._endpoint or 'bound'}: {state}>"


def bind_subscriber(
    context: Context,
    endpoint: str,
    on_message: Callable[[bytes], None],
    access: Access | None = None,
    *,
    topic: bytes = b"",
) -> tuple[Receiver, str]:
    """Bind a SUB socket, as Mongrel2 does.

    Args:
        access: Who may connect; by default whoever can.
        topic: What messages have to begin with: a ``recv_ident``.

    Returns:
        The running receiver, which calls *on_message* in its own greenlet, and the endpoint that was bound.

    Raises:
        BindError: The address cannot be bound.
    """
    receiver = Receiver(context, zmq.SUB, on_message, security=access, name=f"SUB of {context.owner}")
    receiver.subscribe(topic)
    return receiver, receiver.bind(endpoint)
