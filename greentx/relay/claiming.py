"""Requests of sessions, at the relay: which Node they belong to, and how long they wait for its claim.

What is decided by tables is in :mod:`greentx.relay.claims`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from ..errors import RemoteProtocolError
from ..handler.connection import Connection
from ..protocol.request import Request
from ..transport import Context
from .claims import CLAIM_SECONDS, Claims, StickyNames, parse_key
from .forwarded import Forwarded
from .nodes import Nodes, NodeSession

__all__ = ["MAX_HELD", "Claiming"]

log = logging.getLogger("greentx.relay")

#: Browser connections whose requests may wait for claims; those of more go to any Node.
MAX_HELD = 1000

# How often those that wait are looked at.
_LOOK_SECONDS = 0.01

# An application that uses a name of ours for something else must not wait; this one claims by the name, and says so in
# each query (Engine.IO's protocol, "HTTP long-polling").
_ENGINE_IO = b"EIO="
_ENGINE_IO_NAME = b"sid="


class _Held:
    """The requests of one browser connection, of which the first waits for a claim.

    Attributes:
        keys: What it waits for.
        entries: In their order.
        deadline: Until when (``time.monotonic()``).
    """

    __slots__ = ("deadline", "entries", "keys")

    def __init__(self, keys: Sequence[bytes], entry: Forwarded, deadline: float) -> None:
        self.keys = keys
        self.entries = [entry]
        self.deadline = deadline


class _Awaited(NamedTuple):
    """What is called once a session is claimed."""

    keys: Sequence[bytes]
    deadline: float
    call: Callable[[NodeSession | None], object]


class Claiming:
    """The sessions of one relay.

    All methods belong to the hub's thread; none blocks.

    Args:
        context: Owner of the timer.
        nodes: Who may claim.
        names: By which parameters.
        go_on: Called with each request that has waited; the waiter of one that has a waiter is set instead.
        refuse: Answers a request with a status.
    """

    def __init__(
        self,
        context: Context,
        nodes: Nodes,
        names: StickyNames,
        *,
        go_on: Callable[[Forwarded], object],
        refuse: Callable[[Forwarded, int], object],
    ) -> None:
        self._nodes = nodes
        self._names = names
        self._go_on = go_on
        self._refuse = refuse
        self._claims: Claims[NodeSession] = Claims()
        # Somebody claims by these: a value that is unknown may be claimed in a moment.
        self._used: set[bytes] = set()
        # In the order of their deadlines, as all wait equally long.
        self._held: dict[tuple[Connection, str], _Held] = {}
        self._awaited: list[_Awaited] = []
        self._looked = 0.0
        self._context = context
        self._timer = context.timer(_LOOK_SECONDS, _LOOK_SECONDS)
        nodes.on(b"claims", self._on_claims)
        nodes.leaving.append(self._claims.forget)
        nodes.gone.append(self._claims.forget)

    def __len__(self) -> int:
        """How many requests wait."""
        return sum(len(held.entries) for held in self._held.values())

    def owner(self, keys: Sequence[bytes]) -> NodeSession | None:
        """Return the session of the Node that has claimed one of them, in their order."""
        for key in keys:
            owner = self._claims.owner(key)
            if owner is not None:
                return owner
        return None

    def hold(self, entry: Forwarded) -> bool:
        """Keep a request whose session may be claimed in a moment, and what comes behind it; once for each request.

        Returns:
            Whether it is kept: *go_on* is called with it then, unless it is over.
        """
        if self._held:
            held = self._held.get((entry.connection, entry.conn_id))
            if held is not None:
                held.entries.append(entry)
                return True
        if entry.keys is not None:
            return False
        # Of nearly all requests this is all: their headers need not be decoded for it.
        if not entry.decoded and not self._names.occur_in(entry.message):
            entry.keys = ()
            return False
        keys = entry.keys = self._keys(entry.request)
        if not keys or not self._may_come(entry.request, keys) or len(self._held) >= MAX_HELD:
            return False
        self._held[entry.connection, entry.conn_id] = _Held(keys, entry, monotonic() + CLAIM_SECONDS)
        self._start()
        return True

    def _start(self) -> None:
        if not self._timer.active:
            self._looked = monotonic()
            # Not start(): it goes on with what was left of the timer's last run.
            self._timer.again(self._look, update=True)

    def when_claimed(self, request: Request, call: Callable[[NodeSession | None], object]) -> None:
        """Call *call* with the session that has claimed what *request* belongs to, at once where that is known.

        ``None`` where nobody has, in a moment where somebody may.
        """
        keys = self._keys(request)
        if not keys or not self._may_come(request, keys) or len(self._awaited) >= MAX_HELD:
            call(self.owner(keys))
            return
        self._awaited.append(_Awaited(keys, monotonic() + CLAIM_SECONDS, call))
        self._start()

    def _may_come(self, request: Request, keys: Sequence[bytes]) -> bool:
        """Whether a claim of one of them may come in a moment: nobody has it, as far as is known."""
        if len(self._nodes) < 2 or self.owner(keys) is not None:
            return False
        for key in keys:
            name = key[: key.index(b"=") + 1]
            if name in self._used or (name == _ENGINE_IO_NAME and _ENGINE_IO in _query_of(request)):
                return True
        return False

    def _keys(self, request: Request) -> Sequence[bytes]:
        query = _query_of(request)
        return self._names.keys_of(query) if query else ()

    def _on_claims(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        if not words:
            raise RemoteProtocolError("a claim has one key or more, not none")
        # A Node claims what its applications need claimed, whatever names this relay goes by.
        keys = [key for key in map(parse_key, words) if self._names.has(key)]
        if session.leaving:
            return
        claimed = {key for key in keys if self._may_have(session, key)}
        if len(claimed) < len(set(keys)):
            log.warning("node %s claims what others have claimed: it is theirs", session.word)
        # In the order in which it claims them: of too many the first are dropped.
        for key in keys:
            if key in claimed:
                self._claims.add(key, session)
                self._used.add(key[: key.index(b"=") + 1])
        # Many of both: each key of what waits is looked for once.
        for place, held in list(self._held.items()):
            if not claimed.isdisjoint(held.keys):
                self._release(place)
        self._settle(lambda one: not claimed.isdisjoint(one.keys))

    def _may_have(self, session: NodeSession, key: bytes) -> bool:
        owner = self._claims.owner(key)
        # Of a Node that has connected anew the last session may not have ended yet.
        return owner is None or owner.over or owner.name == session.name

    def _look(self) -> None:
        now = monotonic()
        before, self._looked = self._looked, now
        # This process stood still: what Nodes claimed meanwhile is there, and is read before the next look.
        if now - before > CLAIM_SECONDS:
            return
        for place, held in list(self._held.items()):
            if held.deadline > now:
                break
            self._release(place)
        self._settle(lambda one: one.deadline <= now)
        if not self._held and not self._awaited:
            self._timer.stop()

    def _settle(self, is_settled: Callable[[_Awaited], bool]) -> None:
        awaited, self._awaited = self._awaited, []
        settled: list[_Awaited] = []
        for one in awaited:
            (settled if is_settled(one) else self._awaited).append(one)
        # Last: what is called may have something wait.
        for one in settled:
            one.call(self.owner(one.keys))

    def _release(self, place: tuple[Connection, str]) -> None:
        held = self._held.pop(place, None)
        for entry in () if held is None else held.entries:
            if entry.waiter is not None:
                entry.waiter.set()
            elif not entry.over:
                self._go_on(entry)

    def connection_ended(self, connection: Connection, conn_id: str) -> None:
        """A browser has gone: nobody waits for its answers."""
        held = self._held.get((connection, conn_id))
        for entry in () if held is None else held.entries:
            entry.end()
        self._release((connection, conn_id))

    def lost(self, connection: Connection) -> None:
        """The server of a connection set has gone: what came by it is over."""
        for place in [place for place in self._held if place[0] is connection]:
            self._release(place)

    def stop(self) -> None:
        """Nobody gets anything any more: all that wait are refused."""
        self._context.unwatch(self._timer)
        self._awaited = []
        held, self._held = self._held, {}
        for entry in [entry for one in held.values() for entry in one.entries]:
            if entry.waiter is not None:
                entry.waiter.set()
            elif not entry.over:
                self._refuse(entry, 503)

    def status(self) -> dict[str, int]:
        """Return what ``STATUS`` shows."""
        return {"claims": len(self._claims), "claims_dropped": self._claims.dropped}


def _query_of(request: Request) -> bytes:
    raw = request.raw
    query = raw.get(b"QUERY") or raw.get("QUERY")
    if isinstance(query, str):
        return query.encode(errors="replace")
    return query if isinstance(query, bytes) else b""
