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
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic

from ..errors import RemoteProtocolError
from ..transport import Context, PeerGone, Router
from ..transport.security import Access
from .batches import Batches
from .fencing import Fencing, milliseconds
from .forwarded import Forwarded
from .messages import MAX_WORD, Hello, numbers
from .refusals import MAX_REASON
from .session import NodeSession
from .upstream import Heard, Upstream

__all__ = ["NodeSession", "Nodes"]

log = logging.getLogger("greentx.relay")

# Each costs some kilobytes.
_MAX_NODES = 10_000


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
        came, leaving, gone, fenced: Called with a session each time that it gets there; they must not block. Those in
            *fenced* may give what it had to others.
        room: Called with a session that has room again.
        complaints: How many messages of Nodes meant nothing.
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
        self._context = context
        self._welcome = welcome
        self._sessions: dict[bytes, NodeSession] = {}
        self._choices = 0
        self._upstream = Upstream(self._find, self._on_hello, self._refuse)
        self.complaints = self._upstream.complaints
        for kind, call in (
            (b"leave", self._on_leave),
            (b"bye", self._on_bye),
            (b"received", self._on_received),
            (b"clock", self._on_clock),
            (b"ready", lambda session, words, payload: session.is_ready(_text(words))),
            (b"unready", lambda session, words, payload: session.ready.pop(_text(words), None)),
        ):
            self._upstream.on(kind, call)
        self._router = Router(context, endpoint, self._upstream.read, lambda: self._fencing.look_soon(), access)
        self._upstream.endpoint = self._router.endpoint
        self._batches = Batches(context, self._router, self._gone)
        self._fencing = Fencing(context, self._router, lambda: self, gone=self._end, fenced=self._fence)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[NodeSession]:
        """The sessions that are there; a copy."""
        return iter(list(self._sessions.values()))

    @property
    def endpoint(self) -> str:
        """Where it was bound, with the real port."""
        return self._router.endpoint

    @property
    def names(self) -> frozenset[str]:
        """What they are called."""
        return frozenset(session.name for session in self._sessions.values())

    @property
    def ending(self) -> list[NodeSession]:
        """Those that are gone and not fenced."""
        return list(self._fencing.ending.values())

    def on(self, kind: bytes, call: Heard) -> None:
        """Have *call* hear what Nodes say; see :meth:`greentx.relay.upstream.Upstream.on`."""
        self._upstream.on(kind, call)

    def _find(self, identity: bytes) -> NodeSession | None:
        # What those said last that are gone may be read only now.
        return self._sessions.get(identity) or self._fencing.ending.get(identity)

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

    def wrote(self, session: NodeSession, server: str, conn_id: str, count: int) -> None:
        """Say that a server wrote *count* bytes to a browser connection; never blocks.

        In front of what is sent in this round of the hub, and beyond the window: a Node has no less room for it.

        Args:
            server: The word for its life.
        """
        if not session.over:
            self._batches.wrote(session, server, conn_id, count)

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

    def _refuse(self, identity: bytes, why: str = "") -> None:
        with suppress(PeerGone):  # so it knows
            self._router.send(identity, b"over\n%b" % why.encode(errors="backslashreplace")[:MAX_REASON])

    def _on_hello(self, identity: bytes, hello: Hello) -> None:
        if len(self._sessions) >= _MAX_NODES:
            raise RemoteProtocolError(f"there are {_MAX_NODES} Nodes already")
        now = monotonic()
        session = NodeSession(identity, hello, now)
        head, payload = self._welcome(milliseconds(now))
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
            # Else it was given back before this was said, and is another one's.
            if session.open.get(item.number) is item:
                item.seen()
        self._go_on(session)

    def _on_clock(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        """A Node asks what the time is here; it says what it is there."""
        [asked] = numbers(words[:1]) or [0]
        session.written.clock(asked)
        now = monotonic()
        with suppress(PeerGone):  # which is found out soon enough
            if self._router.send(session.identity, b"clock %d %d\n" % (asked, milliseconds(now))):
                session.leased = now

    # -- who is there ------------------------------------------------------------------------------------------------

    def _let_go(self, session: NodeSession, why: str) -> None:
        log.warning("%s: node %s is let go of: %s", self.endpoint, session.word, why)
        session.sure = False
        self._refuse(session.identity, why)
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
        del self._sessions[session.identity]
        log.info("%s: node %s has gone", self.endpoint, session.word)
        for call in self.gone:
            call(session)
        self._fencing.wait_for(session)

    def _fence(self, session: NodeSession) -> None:
        for call in self.fenced:
            call(session)
        # Others have it by now. The session itself is known for as long as a browser connection that it had.
        session.lane.clear()

    def close(self, *, linger: float) -> None:
        """Let go of all of them; their sessions are over. Safe to call twice."""
        self._fencing.stop()
        self._batches.stop()
        for session in self:
            session.over = True
            if self._context.open:
                self._refuse(session.identity)
        self._router.close(linger=linger)
        self._sessions.clear()


def _text(words: list[bytes]) -> str:
    if len(words) != 1:
        raise RemoteProtocolError(f"one word says which server, not {len(words)}")
    if len(words[0]) > MAX_WORD:
        raise RemoteProtocolError(f"a server's word has {len(words[0])} bytes, limit {MAX_WORD}")
    return words[0].decode("latin-1")
