"""The Nodes of a relay: who is there, how much each has to do, and the way to each.

One connection of a Node is one session: what a Node was given in one session is over with it, on both sides.

::

    connected --hello--> session --leave--> leaving --the connection ends--> gone --the lease has run out--> fenced
                            +-----------------------the same---------------->

A session is gone when ZeroMQ knows no such peer any more. What it had may be another's only once it is fenced: a Node
that cannot be reached may be alive, and answers for as long as its last lease says.

Where it was heard shortly before, its process, or its connection, ended: what it said until then has come. Else it
stood still, or could not be reached, and what it said last, such as that an answer had begun, may be lost.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from ..errors import RemoteProtocolError
from ..protocol.fields import shown
from ..transport import Context, PeerGone, Router
from ..transport.security import Access
from .forwarded import Forwarded
from .messages import LEASE_SECONDS, Hello, join, numbers, parse_hello, parts, split
from .window import Lane

__all__ = ["WRITE_SECONDS", "NodeSession", "Nodes"]

log = logging.getLogger("greentx.relay")

#: A Node says that an answer is done once ZeroMQ has it, whose thread needs a moment to write it. Where the Node ends
#: within that moment, it may not have been written.
WRITE_SECONDS = 0.02

# Leases, and looks at who is there.
_LEASE_INTERVAL = 0.25

# ZeroMQ tells of the end of a connection first, and forgets the peer within some milliseconds then.
_LOOK_SECONDS = 0.01

# By then everything that a Node said before its end has been read here.
_LAST_WORDS_SECONDS = 0.05

# For what differs between two clocks within a second, and timers that are late.
_FENCE_MARGIN = 0.1

# A Node asks for the clock more often than this.
_SILENT_SECONDS = 0.75

# Messages that go together, and bytes of one that does not.
_BATCH_MESSAGES = 64
_BATCH_BYTES = 16384
_RETRY_SECONDS = 0.01

# Each costs some kilobytes.
_MAX_NODES = 10_000


class NodeSession:
    """One connection of one Node.

    Attributes:
        identity: Its routing id: what it is called in messages.
        name: The Node's.
        what: What it says that it is.
        capacity: How many requests it may be given at once, compared to others.
        open: The requests that it has, by number.
        websockets: How many WebSockets it has.
        leaving: It gets nothing new.
        over: It has ended, here.
        ready: The words of the servers' lives that it can answer in.
        lane: What waits for it, and what it was sent.
        written: Its last answers: when it said so, the last number given then, and the request.
        ended: When it did.
        sure: All that it said before its end has come.
        finished: It has said that it goes, and that nothing of it is under way.
        heard: When it last said something (``time.monotonic()``).
        leased: When it was last sent a lease.
        chosen: When it was last given a new connection: a number that only grows.
    """

    __slots__ = (
        "capacity",
        "chosen",
        "ended",
        "finished",
        "heard",
        "identity",
        "lane",
        "leased",
        "leaving",
        "name",
        "open",
        "over",
        "ready",
        "sure",
        "websockets",
        "what",
        "written",
    )

    def __init__(self, identity: bytes, hello: Hello, now: float) -> None:
        self.identity = identity
        self.name = hello.name
        self.what = hello.what
        self.capacity = hello.capacity
        self.open: dict[int, Forwarded] = {}
        self.websockets = 0
        self.leaving = False
        self.over = False
        self.ready: set[str] = set()
        self.lane: Lane[Forwarded] = Lane()
        self.written: deque[tuple[float, int, Forwarded]] = deque()
        self.ended = inf
        self.sure = True
        self.finished = False
        self.heard = now
        self.leased = now
        self.chosen = 0

    @property
    def word(self) -> str:
        """What it is called, other than any other session."""
        return self.identity.decode("latin-1")

    def forget_written(self, now: float) -> None:
        """What was done some time ago has been written."""
        written = self.written
        while written and written[0][0] < now - WRITE_SECONDS:
            written.popleft()

    def status(self, now: float) -> dict[str, Any]:
        """Return what ``STATUS`` shows."""
        return {
            "name": self.name,
            "session": self.word,
            "what": self.what,
            "capacity": self.capacity,
            "open": len(self.open),
            "websockets": self.websockets,
            "queued_bytes": self.lane.queued,
            "unreceived": self.lane.unreceived,
            "ready": bool(self.ready),
            "leaving": self.leaving,
            "last_heard_s": round(now - self.heard, 3),
        }

    def __repr__(self) -> str:
        state = "over" if self.over else "leaving" if self.leaving else "there"
        return f"<NodeSession {self.word}: {state}, {len(self.open)} open>"


Upstream = Callable[[NodeSession, list[bytes], bytes], object]


class Nodes:
    """Knows the sessions, and sends to them.

    All methods belong to the hub's thread.

    Args:
        context: Owner of the socket.
        endpoint: Where to bind ROUTER.
        welcome: Returns the words and the bytes of what a new session is told, at that time in milliseconds.
        access: Who may connect.

    Raises:
        BindError: The address cannot be bound.

    Attributes:
        endpoint: Where it was bound, with the real port.
        came, leaving, gone, fenced: Called with a session each time that it gets there; they must not block. Those in
            *fenced* may give what it had to others.
        room: Called with a session that has room again.
        bad_messages: How many messages of Nodes meant nothing.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        welcome: Callable[[int], tuple[bytes, bytes]],
        access: Access | None = None,
    ) -> None:
        self.came: list[Callable[[NodeSession], object]] = []
        self.leaving: list[Callable[[NodeSession], object]] = []
        self.gone: list[Callable[[NodeSession], object]] = []
        self.fenced: list[Callable[[NodeSession], object]] = []
        self.room: list[Callable[[NodeSession], object]] = []
        self.bad_messages = 0
        self._context = context
        self._welcome = welcome
        self._sessions: dict[bytes, NodeSession] = {}
        # Those that are gone and not fenced: what they said last may be read only now.
        self._ending: dict[bytes, tuple[NodeSession, Any]] = {}
        self._choices = 0
        self._upstream: dict[bytes, Upstream] = {
            b"leave": self._on_leave,
            b"bye": self._on_bye,
            b"received": self._on_received,
            b"clock": self._on_clock,
            b"ready": lambda session, words, payload: session.ready.add(_text(words)),
            b"unready": lambda session, words, payload: session.ready.discard(_text(words)),
        }
        self._router = Router(context, endpoint, self._on_message, self._look_soon, access)
        self._batches = _Batches(context, self._router, self._gone)
        self.endpoint = self._router.endpoint
        # The end of a connection is the end of a process there: nobody can answer after it.
        self._fences = not endpoint.startswith("ipc:")
        self._timer = context.timer(_LEASE_INTERVAL, _LEASE_INTERVAL)
        self._timer.start(self._lease)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[NodeSession]:
        """The sessions that are there; a copy."""
        return iter(list(self._sessions.values()))

    @property
    def names(self) -> frozenset[str]:
        """What they are called."""
        return frozenset(session.name for session in self._sessions.values())

    @property
    def ending(self) -> list[NodeSession]:
        """Those that are gone and not fenced."""
        return [session for session, _ in self._ending.values()]

    def on(self, kind: bytes, call: Upstream) -> None:
        """Have ``call(session, words, payload)`` called, in the hub, with what Nodes say that begins with *kind*.

        What it raises, ``RemoteProtocolError`` above all, ends that message.
        """
        assert kind not in self._upstream, kind
        self._upstream[kind] = call

    # -- who gets what is new ----------------------------------------------------------------------------------------

    def choose(self, word: str = "") -> NodeSession | None:
        """Return the session for a new connection: with the fewest open requests, compared to its capacity.

        Of several the one with fewest WebSockets, compared to its capacity, then the one that was chosen least
        recently. ``None`` where nobody has room.

        Args:
            word: For the life of the server that it has to be able to answer in; ``""`` for any.
        """
        best: NodeSession | None = None
        least: tuple[float, float, int] = (0.0, 0.0, 0)
        for session in self._sessions.values():
            if session.leaving or session.lane.full or (word and word not in session.ready):
                continue
            load = (len(session.open) / session.capacity, session.websockets / session.capacity, session.chosen)
            if best is None or load < least:
                best, least = session, load
        if best is not None:
            self._choices += 1
            best.chosen = self._choices
        return best

    # -- what goes out -----------------------------------------------------------------------------------------------

    def send(self, session: NodeSession, head: bytes, payload: bytes = b"", item: Forwarded | None = None) -> None:
        """Send one message, behind all that were sent before; never blocks. Nothing is sent to one that is over.

        Args:
            head: Its kind and words.
            item: What is known to be received with it.
        """
        if session.over:
            return
        message = b"%b\n%b" % (head, payload)
        lane = session.lane
        if not lane.queue and not lane.full:
            lane.sent(len(message), item)
            self._batches.add(session, message)
        elif not lane.put(message, item):
            self._let_go(session, f"more than {lane.queued} bytes wait for it")

    def send_all(self, head: bytes, payload: bytes = b"") -> None:
        """Send one message to all sessions."""
        for session in self:
            self.send(session, head, payload)

    def _gone(self, session: NodeSession) -> None:
        # Not from in here: whoever sends is in the middle of something.
        self._context.hub.loop.run_callback(self._end, session)

    def _go_on(self, session: NodeSession) -> None:
        lane = session.lane
        while (waiting := lane.next()) is not None:
            self._batches.add(session, waiting.message)
            lane.went()
        if not lane.full and not session.over:
            for call in self.room:
                call(session)

    # -- what Nodes say ----------------------------------------------------------------------------------------------

    def _on_message(self, identity: bytes, message: bytes) -> None:
        session = self._sessions.get(identity)
        if session is None and identity in self._ending:
            session = self._ending[identity][0]
        try:
            found = parts(message)
        except RemoteProtocolError as error:
            self._bad(identity, session, error)
            return
        if session is not None:
            session.heard = monotonic()
        for one in found:
            try:
                self._on_one(identity, session, one)
            except RemoteProtocolError as error:
                self._bad(identity, session, error)

    def _on_one(self, identity: bytes, session: NodeSession | None, message: bytes) -> None:
        kind, words, payload = split(message)
        if session is not None:
            call = self._upstream.get(kind)
            if call is None:
                raise RemoteProtocolError(f"{shown(kind)} means nothing here")
            call(session, words, payload)
        elif kind == b"hello":
            self._on_hello(identity, parse_hello(words, payload))
        else:
            # It was let go of, and does not know.
            self._refuse(identity)

    def _bad(self, identity: bytes, session: NodeSession | None, error: RemoteProtocolError) -> None:
        self.bad_messages += 1
        name = shown(identity) if session is None else session.name
        log.warning("%s: bad message number %d, of %s: %s", self.endpoint, self.bad_messages, name, error)
        if session is None:
            self._refuse(identity)

    def _refuse(self, identity: bytes) -> None:
        with suppress(PeerGone):  # so it knows
            self._router.send(identity, b"over\n")

    def _on_hello(self, identity: bytes, hello: Hello) -> None:
        if len(self._sessions) >= _MAX_NODES:
            raise RemoteProtocolError(f"there are {_MAX_NODES} Nodes already")
        now = monotonic()
        session = NodeSession(identity, hello, now)
        head, payload = self._welcome(_milliseconds(now))
        try:
            # Not counted: it is what a session begins with.
            if not self._router.send(identity, b"%b\n%b" % (head, payload)):
                return
        except PeerGone:
            return
        self._sessions[identity] = session
        log.info("%s: node %s came", self.endpoint, session.word)
        for call in self.came:
            call(session)

    def _on_leave(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        if not session.leaving:
            session.leaving = True
            for call in self.leaving:
                call(session)
            # Behind all that it was sent: it has all then.
            self.send(session, b"left")

    def _on_bye(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        session.finished = True

    def _on_received(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        found = numbers(words)
        if len(found) != 2:
            raise RemoteProtocolError(f"two numbers say what was received, not {len(found)}")
        for item in session.lane.acknowledge(*found):
            item.received = True
            # It goes to no other Node from now on.
            if not item.safe:
                item.message = b""
        self._go_on(session)

    def _on_clock(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        """A Node asks what the time is here; it says what it is there."""
        [asked] = numbers(words[:1]) or [0]
        now = monotonic()
        with suppress(PeerGone):  # which is found out soon enough
            if self._router.send(session.identity, b"clock %d %d\n" % (asked, _milliseconds(now))):
                session.leased = now

    # -- who is there ------------------------------------------------------------------------------------------------

    def _lease(self) -> None:
        now = monotonic()
        message = b"lease %d\n" % _milliseconds(now)
        for session in self:
            session.forget_written(now)
            try:
                if self._router.send(session.identity, message):
                    session.leased = now
            except PeerGone:
                self._end(session)

    def _look_soon(self) -> None:
        """Some connection has ended: whose is found out by sending to all."""
        self._lease()
        timer = self._context.timer(_LOOK_SECONDS)
        timer.start(self._look_again, timer)

    def _look_again(self, timer: Any) -> None:
        self._context.unwatch(timer)
        self._lease()

    def _let_go(self, session: NodeSession, why: str) -> None:
        log.warning("%s: node %s is let go of: %s", self.endpoint, session.word, why)
        session.sure = False
        self._refuse(session.identity)
        self._context.hub.loop.run_callback(self._end, session)

    def _end(self, session: NodeSession) -> None:
        if session.over or self._sessions.get(session.identity) is not session:
            return
        # ZeroMQ knows of its end before we have read all that it said.
        self._router.drain()
        if session.over or self._sessions.get(session.identity) is not session:
            return
        session.over = True
        session.ended = monotonic()
        if self._fences and session.ended - session.heard > _SILENT_SECONDS:
            session.sure = False
        del self._sessions[session.identity]
        log.info("%s: node %s has gone", self.endpoint, session.word)
        for call in self.gone:
            call(session)
        left = session.leased + LEASE_SECONDS + _FENCE_MARGIN - session.ended if self._fences else 0.0
        timer = self._context.timer(max(left, _LAST_WORDS_SECONDS))
        self._ending[session.identity] = session, timer
        timer.start(self._fence, session)

    def _fence(self, session: NodeSession) -> None:
        self._context.unwatch(self._ending.pop(session.identity)[1])
        for call in self.fenced:
            call(session)

    def close(self, *, linger: float) -> None:
        """Let go of all of them; their sessions are over. Safe to call twice."""
        self._context.unwatch(self._timer)
        self._batches.stop()
        for _, timer in self._ending.values():
            self._context.unwatch(timer)
        self._ending.clear()
        for session in self:
            session.over = True
            if self._context.open:
                self._refuse(session.identity)
        self._router.close(linger=linger)
        self._sessions.clear()


class _Batches:
    """Sends each Node what one round of the hub has for it in one message.

    Args:
        context: Owner of the timer.
        router: Sends.
        gone: Called with a session that is not connected any more.
    """

    def __init__(self, context: Context, router: Router, gone: Callable[[NodeSession], object]) -> None:
        self._context = context
        self._router = router
        self._gone = gone
        self._pending: dict[NodeSession, list[bytes]] = {}
        self._scheduled = False
        # While ZeroMQ has no room for one.
        self._timer: Any = context.timer(_RETRY_SECONDS, _RETRY_SECONDS)

    def add(self, session: NodeSession, message: bytes) -> None:
        """Send a message, behind those before it."""
        pending = self._pending.get(session)
        if pending is None:
            self._pending[session] = [message]
            if not self._scheduled:
                self._scheduled = True
                self._context.hub.loop.run_callback(self._flush)
        else:
            pending.append(message)
            # Copied once more for the batch: not so many bytes of it.
            if len(pending) >= _BATCH_MESSAGES or len(message) >= _BATCH_BYTES:
                self._send(session)

    def _flush(self) -> None:
        self._scheduled = False
        self._timer.stop()
        for session in list(self._pending):
            self._send(session)

    def _send(self, session: NodeSession) -> None:
        if not self._context.open:
            return
        messages = self._pending.pop(session)
        large = len(messages[-1]) >= _BATCH_BYTES
        batches = [messages[:-1], messages[-1:]] if large else [messages]
        for index, batch in enumerate(batches):
            try:
                if not batch or self._router.send(session.identity, join(batch)):
                    continue
            except PeerGone:
                self._gone(session)
                return
            self._pending[session] = [message for left in batches[index:] for message in left]
            self._timer.again(self._flush, update=True)
            return

    def stop(self) -> None:
        """Send what there is."""
        self._flush()
        self._pending.clear()
        self._context.unwatch(self._timer)


def _text(words: list[bytes]) -> str:
    if len(words) != 1:
        raise RemoteProtocolError(f"one word says which server, not {len(words)}")
    return words[0].decode("latin-1")


def _milliseconds(now: float) -> int:
    return int(now * 1000)
