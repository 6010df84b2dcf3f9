"""What becomes of requests whose Node has gone, or gave them back; see :mod:`greentx.relay.forwarding`.

::

    gone --> fenced --+-- the server does not tell what it writes --> by what the Node said
                      +-- it does: --> settling: all that it wrote for the Node is heard of --> by what it wrote
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any

from ..handler.connection import Connection
from ..transport import Context
from .forwarded import Forwarded
from .messages import numbers
from .nodes import Nodes
from .proofs import Proofs
from .session import WRITE_SECONDS, NodeSession
from .sticky import Bound
from .written import Unwritten, Verdict

__all__ = ["Returns"]

log = logging.getLogger("greentx.relay")

# What a browser that has got an answer may ask for next has come by then.
_NEXT_SECONDS = 0.25

# What a Node gave to the system before its end has been read by the server after so long, where the server answers us
# within that time, too. It is asked so often until it does.
_SETTLE_SECONDS = 0.1
_MAX_ASKED = 12

# A request that so many Nodes had, and did not answer, is not given to another one; nor is one that so many had as they
# went: they may have died of it.
_MAX_TRIES = 3
_MAX_DEATHS = 2

# Why a connection is closed.
_BEGUN = "its Node went in the middle of the answer"
_UNKNOWN = "nobody knows whether its Node, which has gone, had answered"


class Returns:
    """Gives them to others, or ends their connections.

    Args:
        context: Owner of the timers.
        nodes: Whose they were.
        proofs: Tell when a server has said all that it had to say.
        unwritten: Those that Nodes said to be done, and that are not written.
        cut: Closes the connection of a request, for a reason.
        release: Hands on what is held of a browser connection of which nothing is open.
        go_on: Sees to what waits.

    Attributes:
        settling: The sessions of which it is found out what was written, and for how many servers.
    """

    def __init__(
        self,
        context: Context,
        nodes: Nodes,
        proofs: Proofs,
        unwritten: Unwritten,
        *,
        cut: Callable[[Forwarded, str], object],
        release: Callable[[Bound], object],
        go_on: Callable[[], object],
    ) -> None:
        self.settling: dict[NodeSession, int] = {}
        self._context = context
        self._proofs = proofs
        self._unwritten = unwritten
        self._cut = cut
        self._release = release
        self._go_on = go_on
        self._timers: set[Any] = set()
        nodes.on(b"back", self._on_back)
        nodes.on(b"lost", self._on_lost)
        nodes.fenced.append(self._on_fenced)

    def stop(self) -> None:
        """Find out nothing any more."""
        for timer in self._timers:
            self._context.unwatch(timer)
        self._timers.clear()
        self.settling.clear()

    def _later(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        timer = self._context.timer(seconds)
        self._timers.add(timer)

        def run() -> None:
            self._context.unwatch(timer)
            self._timers.discard(timer)
            call(*args)

        timer.start(run)

    def _on_back(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        """A Node gives back what its application has not seen."""
        for number in numbers(words):
            entry = session.open.get(number)
            if entry is not None:
                # For an unsafe one the message is gone where it was received: then that is what it says.
                entry.received = not entry.message
                entry.begun = False
        self._take_back(session, numbers(words))

    def _on_lost(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        """A Node lost the connection to the server that it was to answer to."""
        self._take_back(session, numbers(words))

    # -- the end of a Node -------------------------------------------------------------------------------------------

    def _on_fenced(self, session: NodeSession) -> None:
        # What was never handed to ZeroMQ was seen by nobody.
        unsent = {waiting.item.number for waiting in session.lane.queue if waiting.item is not None}
        telling: set[Connection] = set()
        taken = []
        for number, entry in session.open.items():
            if number in unsent:
                entry.tries -= 1
            else:
                entry.deaths += 1
            if entry.tells:
                telling.add(entry.connection)
                continue
            taken.append(number)
            if number not in unsent and not session.sure:
                entry.begun = True
        if session.open:
            log.warning("node %s has gone with %d requests", session.word, len(session.open))
        for entry in self._unwritten:
            if entry.session is session and entry.bound is not None:
                if session.finished:
                    for known in entry.bound.written.untold():
                        self._unwritten.remove(known)
                else:
                    telling.add(entry.connection)
        if session.written.items and not session.finished:
            self._later(_NEXT_SECONDS, self._close_unwritten, session)
        self._take_back(session, taken, unsent)
        if telling:
            self.settling[session] = len(telling)
        for connection in telling:
            self._later(_SETTLE_SECONDS, self._ask, session, connection, unsent, 1)
        self._go_on()

    def _ask(self, session: NodeSession, connection: Connection, unsent: Collection[int], asked: int) -> None:
        """Ask a server to say something behind all that it has to say."""
        began = monotonic()

        def proved() -> None:
            if monotonic() - began < _SETTLE_SECONDS:
                self._settle(session, connection, unsent, is_told=True)
            else:
                missing()

        def missing() -> None:
            # Not at once: it is asked again, or the relay is being closed.
            if session not in self.settling:
                return
            if asked < _MAX_ASKED:
                self._later(_SETTLE_SECONDS, self._ask, session, connection, unsent, asked + 1)
            else:
                self._settle(session, connection, unsent, is_told=False)

        self._proofs.ask(connection, proved, missing=missing)

    def _settle(self, session: NodeSession, connection: Connection, unsent: Collection[int], *, is_told: bool) -> None:
        """It is known what a server wrote for a Node that has gone."""
        if session not in self.settling:
            return
        self.settling[session] -= 1
        if not self.settling[session]:
            del self.settling[session]
        entries = [entry for entry in self._unwritten if entry.session is session]
        entries += session.open.values()
        bounds = {entry.bound: None for entry in entries if entry.connection is connection}
        for bound in bounds:
            if bound is not None:
                self._settle_one(session, bound, unsent, is_told=is_told)
        self._go_on()

    def _settle_one(self, session: NodeSession, bound: Bound, unsent: Collection[int], *, is_told: bool) -> None:
        first = bound.open[0] if bound.open and bound.open[0].session is session else None
        verdict = bound.written.judge(first)
        if not is_told and (first is None or first.begun or not session.sure):
            verdict = Verdict.CUT
        if verdict is Verdict.CUT:
            entry = bound.written.answers[0][0] if bound.written.answers else first
            if entry is not None:
                self._cut(entry, _BEGUN if is_told and (entry.begun or bound.written.answers) else _UNKNOWN)
            return
        again = bound.written.take_back()
        for entry in again:
            self._unwritten.remove(entry)
            # Its Node deleted the file of its body: then it is not safe either.
            if entry.stored is not None:
                entry.message = b""
        for entry in bound.open:
            entry.begun = False
            session.open.pop(entry.number, None)
        self._give_back(bound, [*again, *bound.open], unsent)

    def _close_unwritten(self, session: NodeSession) -> None:
        """Close the connections whose last answers may not have been written, where nothing has come since then."""
        for done_at, last, entry in session.written.items:
            if done_at < session.heard - WRITE_SECONDS or entry.over:
                continue
            bound = entry.bound
            # What came since then came in answer to it.
            if bound is not None and all(0 < one.number <= last for one in (*bound.open, *bound.held)):
                self._cut(entry, "its Node has gone, and may not have written the answer")
        session.written.items.clear()

    # -- what is given to others -------------------------------------------------------------------------------------

    def _take_back(self, session: NodeSession, taken: list[int], unsent: Collection[int] = ()) -> None:
        """Give what a Node had to others, or answer it, as the module says."""
        bounds: dict[Bound, list[Forwarded]] = {}
        for number in taken:
            entry = session.open.pop(number, None)
            if entry is not None and entry.bound is not None:
                bounds.setdefault(entry.bound, []).append(entry)
        for bound, entries in bounds.items():
            self._give_back(bound, entries, unsent)

    def _give_back(self, bound: Bound, entries: list[Forwarded], unsent: Collection[int]) -> None:
        for entry in entries:
            if entry.number not in unsent:
                entry.redelivered = True
            is_unsafe = entry.received and not (entry.safe and entry.message)
            is_enough = entry.tries >= _MAX_TRIES or entry.deaths >= _MAX_DEATHS
            if not entry.begun and (is_unsafe or is_enough):
                entry.refused = 502
        bound.open = tuple(entry for entry in bound.open if entry not in entries)
        # In front of what came later.
        bound.held = (*entries, *bound.held)
        if not bound.open:
            self._answer_begun(bound)
            self._release(bound)

    def _answer_begun(self, bound: Bound) -> None:
        """Close the connection where the answer to its first request has begun, which nobody can end."""
        for entry in bound.held:
            if entry.over:
                continue
            if entry.begun:
                # Where not all has come that a Node said, each of its requests is taken for begun.
                is_known = entry.session is not None and entry.session.sure
                self._cut(entry, _BEGUN if is_known else _UNKNOWN)
            return
