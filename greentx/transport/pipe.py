"""The XPUB socket to one server: batches, the line before a full pipe, and what the server says of itself.

* **Nothing is dropped.** ``ZMQ_XPUB_NODROP`` makes a full pipe an EAGAIN: then what is sent stands in a line.
* **One life at a time.** With ``ZMQ_IMMEDIATE`` the pipe goes with the TCP connection, so what the old server did not
  get never reaches a new one, whose connection ids mean other browsers; and the socket is told by an unsubscription.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Any

import zmq

from ..protocol.flow import Line, Turn
from .connecting import Connecting
from .context import Context
from .security import Dial
from .subscriptions import LOOK_SECONDS, Subscriptions

__all__ = ["GATED_BATCH_SECONDS", "LAST_OF_BATCH", "Pipe"]

# Messages that go to ZeroMQ together where many are sent in one round of the hub. Each first one wakes ZeroMQ's I/O
# thread, which costs more than all the rest of a reply.
_BATCH = 64

#: So many messages may be kept for others; the next one sends them all.
LAST_OF_BATCH = _BATCH - 1

# So long a message is kept for others that are sent in the same round of the hub. Where the hub does not run for
# longer, since a greenlet computes, it stays until then: so the first one of a round is only kept where many come, and
# no greenlet has computed lately.
BATCH_SECONDS = 0.0005

#: The same where somebody is asked before a batch goes out, which costs as much as the batch.
GATED_BATCH_SECONDS = 0.001

#: A greenlet has computed where a round lasts so long,
COMPUTED_SECONDS = 0.002

#: and lately is so long ago.
CALM_SECONDS = 1.0

_NOBLOCK = int(zmq.NOBLOCK)

# Bytes of what a server subscribes to: its recv_ident, if it has one.
_MAX_SUBSCRIPTION = 65536

# While a pipe is full: how often to look without being told. libzmq's descriptor tells; pyzmq does not rely on it.
_BLOCKED_POLL_SECONDS = 0.1


class _Round:
    """The round of the hub in which something is sent: from the first message until all ran that were ready then.

    Args:
        loop: The hub's.

    Attributes:
        began: When it did (``time.monotonic()``); 0 outside of one.
    """

    __slots__ = ("_computed_at", "_keeps_first", "_loop", "_sent", "began")

    def __init__(self, loop: Any) -> None:
        self.began = 0.0
        self._loop = loop
        self._sent = 0
        self._computed_at = float("-inf")
        self._keeps_first = False

    def begin(self, now: float) -> bool:
        """The first message is sent. Returns whether it may be kept for others."""
        self.began = now
        # The loop's time is that of its last look at the descriptors. (libuv's is another clock: nothing is kept then.)
        return self._keeps_first and time() - self._loop.now() < BATCH_SECONDS

    def end(self, now: float, sent: int) -> None:
        """All ran.

        Args:
            sent: How many messages were sent by now, in all rounds.
        """
        took = now - self.began
        if took >= COMPUTED_SECONDS:
            self._computed_at = now
        # As this round was, the next one will be. A message that is alone has nothing to wait for.
        is_short = took < BATCH_SECONDS and sent - self._sent > 1
        self._keeps_first = is_short and now - self._computed_at > CALM_SECONDS
        self._sent = sent
        self.began = 0.0


class Pipe:
    """Sends messages, in their order.

    Args:
        context: Owner of the socket.
        on_message: Called in the hub with what the server says: 1 or 0 and a topic. Must not block.
        on_drop: Called with a message that is sent while nobody is there.
        dequeue: Returns the messages that may go now to one connection, when its turn in the line comes.
        on_room: Called in the hub when the line is empty. Must not block.

    Attributes:
        live: The server is there. Without one nothing is sent.
        line: What waits for room.
        batch: What was sent lately and is not with ZeroMQ yet; not empty only where the line is empty.
        since: When the round began, or the last batch went (``time.monotonic()``): what comes within *batch_seconds*
            from then is kept.
        batch_seconds: See *since*.
        sent: How many messages ZeroMQ accepted.
        connecting: What is known of its connection.
        gate: Asked with the messages that go out next, before they do; where it returns False they wait in line as at a
            full pipe, until :meth:`check`. ``None`` for nearly everybody.
        send_now: ``send_now(message, flags)`` hands one message to ZeroMQ; raises ``zmq.Again`` where it has no room.
    """

    def __init__(
        self,
        context: Context,
        *,
        on_message: Callable[[bytes], None],
        on_drop: Callable[[bytes], None],
        dequeue: Callable[[str], Sequence[bytes]],
        on_room: Callable[[], None],
    ) -> None:
        self.live = False
        self.line = Line()
        self.batch: list[bytes] = []
        self.sent = 0
        self.since = float("-inf")
        self.batch_seconds = BATCH_SECONDS
        self.gate: Callable[[Sequence[bytes]], bool] | None = None
        self._context = context
        self._on_drop = on_drop
        self._dequeue = dequeue
        self._on_room = on_room
        self._round = _Round(context.hub.loop)
        socket = context.socket(zmq.XPUB, max_message=_MAX_SUBSCRIPTION)
        # A subscription to what is subscribed already is reported too: another server has taken over.
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket = socket
        self._subscriptions = Subscriptions(context, socket, on_message, self.check)
        # Without pyzmq's Python layer, which serves socket types that this is not.
        self.send_now = super(zmq.Socket, socket).send
        self.connecting = Connecting(context, socket, self.check)
        self._poll_timer: Any = context.timer(_BLOCKED_POLL_SECONDS, _BLOCKED_POLL_SECONDS)

    def connect(self, endpoint: str, dial: Dial | None = None) -> None:
        """Connect, now and whenever the connection is lost. Raises ``TransportError`` for a bad endpoint."""
        if dial is not None:
            dial.apply(self._context, self._socket)
        self.connecting.start(endpoint)

    def send(self, message: bytes) -> Turn | None:
        """Send one message; never blocks. Returns its turn where it has to wait for room, else ``None``.

        Raises:
            SocketClosed: The context has been closed.
        """
        # The attribute first: the call is for the error only.
        if not self._context.open:
            self._context.check()
        if not self.live:
            self._on_drop(message)
            return None
        if self.line.turns:
            return self.line.append(message)
        # From here on the line is empty, so nothing is overtaken by going into the batch.
        batch = self.batch
        batch.append(message)
        now = monotonic()
        if not self._round.began:
            self.since = now
            self._context.hub.loop.run_callback(self._end_round)
            if self._round.begin(now):
                return None
        elif len(batch) < _BATCH and now - self.since < self.batch_seconds:
            return None
        self._look_and_send(now)
        # The message was the last of the batch, so its turn is the last one.
        turns = self.line.turns
        return turns[-1] if turns else None

    def send_batch(self) -> None:
        """Hand what was sent lately to ZeroMQ; what finds the pipe full waits in the line, in its order."""
        batch, send = self.batch, self.send_now
        if self.gate is not None and not self.gate(batch):
            for message in batch:
                self.line.append(message)
            batch.clear()
            self._poll_timer.again(self.check)
            self.line.moved_at = monotonic()
            return
        sent = 0
        try:
            for message in batch:
                sent += 1  # before: a signal strikes when the call returns
                send(message, _NOBLOCK)
        except zmq.Again:
            sent -= 1
            for message in batch[sent:]:
                self.line.append(message)
            del batch[sent:]
            # What was in the batch is not withdrawn by anybody: its callers have gone on already.
            self._poll_timer.again(self.check)
            self.line.moved_at = monotonic()
        finally:
            # Also where a signal strikes: nothing is sent twice, and what was not sent is not forgotten.
            del batch[:sent]
            self.sent += sent
            self.since = monotonic()
            self._subscriptions.look_soon()

    def _look_and_send(self, now: float) -> None:
        # Where the server has gone its life ends here: what was to be sent is dropped.
        if now - self._subscriptions.looked_at > LOOK_SECONDS and self._subscriptions.have_come():
            self._subscriptions.read()
        self.send_batch()

    def _end_round(self) -> None:
        """In the hub, when all ran that were ready as the first message was sent."""
        if not self._context.open or self._socket.closed:
            return
        now = monotonic()
        self._round.end(now, self.sent + len(self.batch))
        if self.batch:
            self._look_and_send(now)

    def check(self) -> None:
        """Read what the server has said by now, then send what waits for room. Never blocks; the hub calls it, too."""
        if self._socket.closed or not self._context.open:
            return
        self._subscriptions.read()
        # After the subscriptions: what stands in line for a server that has gone is not sent to the next one.
        line = self.line
        if not line.turns:
            self._poll_timer.stop()
            return
        while (message := line.first(self._dequeue)) is not None:
            if self.gate is not None and not self.gate((message,)):
                return
            try:
                # Straight to the socket: a batch would be in the way of its own rest.
                self._socket.send(message, zmq.NOBLOCK)
            except zmq.Again:
                return  # what was joined stays the first in line
            self.sent += 1
            line.moved_at = monotonic()
            line.sent()
        # Stopped before what follows, which may fill the pipe again.
        self._poll_timer.stop()
        self._on_room()

    def clear(self) -> int:
        """The server has gone: drop what it did not get. Returns how many messages that were."""
        # First: those that are woken may write, and that is dropped too.
        self.live = False
        dropped = len(self.batch)
        self.batch.clear()
        return dropped + self.line.clear()

    def stop(self) -> None:
        """Watch no more, and send no more; :meth:`close` is to follow."""
        if self.batch and self._context.open:
            self.send_batch()
        self.connecting.stop()
        self._subscriptions.stop()
        self._context.unwatch(self._poll_timer)

    def close(self, linger: float) -> None:
        """Close the socket; what ZeroMQ accepted goes out in the background, within *linger* seconds."""
        self._context.close_socket(self._socket, linger=linger)
