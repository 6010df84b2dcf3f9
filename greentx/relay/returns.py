"""What becomes of requests whose Node has gone, or gave them back; see :mod:`greentx.relay.forwarding`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from ..transport import Context
from .forwarded import Forwarded
from .messages import numbers
from .nodes import Nodes
from .session import WRITE_SECONDS, NodeSession
from .sticky import Bound

__all__ = ["Returns"]

log = logging.getLogger("greentx.relay")

# What a browser that has got an answer may ask for next has come by then.
_NEXT_SECONDS = 0.25

# A request that so many Nodes gave back is not given to another one.
_MAX_TRIES = 3


class Returns:
    """Gives them to others, or ends their connections.

    Args:
        context: Owner of the timers.
        nodes: Whose they were.
        cut: Closes the connection of a request, for a reason.
        release: Hands on what is held of a browser connection of which nothing is open.
        go_on: Sees to what waits.
    """

    def __init__(
        self,
        context: Context,
        nodes: Nodes,
        *,
        cut: Callable[[Forwarded, str], object],
        release: Callable[[Bound], object],
        go_on: Callable[[], object],
    ) -> None:
        self._context = context
        self._cut = cut
        self._release = release
        self._go_on = go_on
        nodes.on(b"back", self._on_back)
        nodes.on(b"lost", self._on_lost)
        nodes.fenced.append(self._on_fenced)

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

    def _on_fenced(self, session: NodeSession) -> None:
        # What was never handed to ZeroMQ was seen by nobody.
        unsent = {waiting.item.number for waiting in session.lane.queue if waiting.item is not None}
        for number, entry in session.open.items():
            if number in unsent:
                entry.tries -= 1
            elif not session.sure:
                entry.begun = True
        if session.written and not session.finished:
            timer = self._context.timer(_NEXT_SECONDS)
            timer.start(self._close_unwritten, timer, session)
        taken = list(session.open)
        if taken:
            log.warning("node %s has gone with %d requests", session.word, len(taken))
        self._take_back(session, taken, unsent)
        self._go_on()

    def _close_unwritten(self, timer: Any, session: NodeSession) -> None:
        """Close the connections whose last answers may not have been written, where nothing has come since then."""
        self._context.unwatch(timer)
        for done_at, last, entry in session.written:
            if done_at < session.ended - WRITE_SECONDS or entry.over:
                continue
            bound = entry.bound
            # What came since then came in answer to it.
            if bound is not None and all(0 < one.number <= last for one in (*bound.open, *bound.held)):
                self._cut(entry, "its Node has gone, and may not have written the answer")
        session.written.clear()

    def _take_back(self, session: NodeSession, taken: list[int], unsent: Collection[int] = ()) -> None:
        """Give what a Node had to others, or answer it, as the module says."""
        bounds: dict[int, tuple[Bound, list[Forwarded]]] = {}
        for number in taken:
            entry = session.open.pop(number, None)
            if entry is None or entry.bound is None:
                continue
            bounds.setdefault(id(entry.bound), (entry.bound, []))[1].append(entry)
            if number not in unsent:
                entry.redelivered = True
        for bound, entries in bounds.values():
            bound.open = [entry for entry in bound.open if entry not in entries]
            # In front of what came later.
            bound.held[:0] = entries
            for entry in entries:
                if not entry.begun and ((entry.received and not entry.safe) or entry.tries >= _MAX_TRIES):
                    entry.refused = 502
            if not bound.open:
                self._answer_begun(bound)
                self._release(bound)

    def _answer_begun(self, bound: Bound) -> None:
        """Close the connection where the answer to its first request has begun, which nobody can end."""
        for entry in bound.held:
            if entry.over:
                continue
            if entry.begun:
                self._cut(entry, "its Node went in the middle of the answer")
            return
