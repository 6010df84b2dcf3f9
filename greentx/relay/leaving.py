"""How Nodes ask whether they may leave, and are told; which one may is decided in :mod:`greentx.relay.departures`.

On the wire: a Node says ``may-leave REPLACED LARGE``, two numbers that are 0 or 1: somebody comes in its place; it has
sent an answer that had to wait for its browser. It is told ``may-leave``, once.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from gevent.event import Event

from ..errors import RemoteProtocolError
from ..transport import Context
from .departures import Departures
from .link import Link
from .messages import numbers
from .nodes import Nodes, NodeSession

__all__ = ["LeaveRequest", "Leaving"]

# While one leaves and others wait.
_LOOK_SECONDS = 0.1


class Leaving:
    """The relay's side.

    Args:
        context: Owner of the timer.
        nodes: Those that may ask.

    Attributes:
        large: The sessions that have sent an answer that had to wait for its browser, of those that have asked.
        asked: All that have asked, and are there.
    """

    def __init__(self, context: Context, nodes: Nodes) -> None:
        self.asked: set[NodeSession] = set()
        self.large: set[NodeSession] = set()
        self._departures: Departures[NodeSession] = Departures()
        self._nodes = nodes
        self._context = context
        self._timer: Any = context.timer(_LOOK_SECONDS, _LOOK_SECONDS)
        nodes.on(b"may-leave", self._on_may_leave)
        nodes.came.append(self._on_came)
        nodes.leaving.append(self._on_leaving)
        nodes.gone.append(self._on_gone)

    def let_all_leave(self) -> None:
        """The relay ends: nobody waits for anybody."""
        self._departures.ending = True
        self._tell()

    def stop(self) -> None:
        """Tell nobody any more. Safe to call twice."""
        self._context.unwatch(self._timer)

    def _on_may_leave(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        found = numbers(words)
        if len(found) != 2:
            raise RemoteProtocolError(f"two numbers say how a Node would leave, not {len(found)}")
        self.asked.add(session)
        if found[1]:
            self.large.add(session)
        self._departures.asks(session, monotonic(), replaced=bool(found[0]))
        self._tell()

    def _on_came(self, session: NodeSession) -> None:
        self._departures.came(session)
        self._tell()

    def _on_leaving(self, session: NodeSession) -> None:
        self._departures.leaves(session)
        self._tell()

    def _on_gone(self, session: NodeSession) -> None:
        self._departures.gone(session)
        self.asked.discard(session)
        self.large.discard(session)
        self._tell()

    def _tell(self) -> None:
        for session in self._departures.may_leave(monotonic()):
            self._nodes.send(session, b"may-leave")
        if not self._departures.waits_for_time:
            self._timer.stop()
        elif not self._timer.active:
            # Not start(): it goes on with what was left of the timer's last run.
            self._timer.again(self._tell, update=True)


class LeaveRequest:
    """A Node's side.

    Args:
        link: The Node's, which has been started.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._told = Event()
        link.on(b"may-leave", lambda words, payload: self._told.set())
        # The next session's relay does not know that we have asked.
        link.over.append(self._told.set)

    def wait(self, timeout: float, *, replaced: bool, large: bool) -> None:
        """Block until the relay says that we may leave, or is not there; *timeout* seconds at the most."""
        self._told.clear()
        if self._link.in_session:
            self._link.tell(b"may-leave %d %d" % (replaced, large))
            self._told.wait(timeout)
