"""The relay's side of :mod:`greentx.relay.lease`: until when a Node may answer.

A Node that cannot be reached may be alive, and answers for as long as its last lease says. What it had may be given to
others only behind that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from ..transport import Context, PeerGone, Router
from .messages import LEASE_SECONDS
from .session import NodeSession

__all__ = ["Fencing", "milliseconds"]

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


class Fencing:
    """Says to each Node that it may answer, and knows when one that has gone must have stopped.

    Args:
        context: Owner of the timers.
        router: Sends.
        sessions: Returns those that are there.
        gone: Called with a session that is not connected any more.
        fenced: Called with one that :meth:`wait_for` was told of, once it can answer no more.

    Attributes:
        ending: Those that have gone and may answer still, by their routing ids.
    """

    def __init__(
        self,
        context: Context,
        router: Router,
        sessions: Callable[[], Iterable[NodeSession]],
        gone: Callable[[NodeSession], object],
        fenced: Callable[[NodeSession], object],
    ) -> None:
        self.ending: dict[bytes, NodeSession] = {}
        self._context = context
        self._router = router
        self._sessions = sessions
        self._gone = gone
        self._fenced = fenced
        # The end of a connection is the end of a process there: nobody can answer after it.
        self._fences = not router.endpoint.startswith("ipc:")
        self._timer: Any = context.timer(_LEASE_INTERVAL, _LEASE_INTERVAL)
        self._timer.start(self.send)
        self._end_timers: dict[NodeSession, Any] = {}

    def send(self) -> None:
        """Send a lease to each; who is not there is found out."""
        now = monotonic()
        message = b"lease %d\n" % milliseconds(now)
        for session in self._sessions():
            session.written.forget(session.heard)
            try:
                if self._router.send(session.identity, message):
                    session.leased = now
            except PeerGone:
                self._gone(session)

    def look_soon(self) -> None:
        """Some connection has ended: whose is found out by sending to all."""
        self.send()
        timer = self._context.timer(_LOOK_SECONDS)
        timer.start(self._look_again, timer)

    def _look_again(self, timer: Any) -> None:
        self._context.unwatch(timer)
        self.send()

    def wait_for(self, session: NodeSession) -> None:
        """A session has ended: wait until its Node can answer no more."""
        self.ending[session.identity] = session
        timer = self._end_timers[session] = self._context.timer(self._seconds_left(session))
        timer.start(self._run_out, session)

    def _run_out(self, session: NodeSession) -> None:
        del self.ending[session.identity]
        self._context.unwatch(self._end_timers.pop(session))
        self._fenced(session)

    def _seconds_left(self, session: NodeSession) -> float:
        """Return how long a session that has ended may answer still."""
        if not self._fences:
            return _LAST_WORDS_SECONDS
        if session.ended - session.heard > _SILENT_SECONDS:
            session.sure = False
        return max(session.leased + LEASE_SECONDS + _FENCE_MARGIN - session.ended, _LAST_WORDS_SECONDS)

    def stop(self) -> None:
        """Send no more, and wait for nobody."""
        for timer in (self._timer, *self._end_timers.values()):
            self._context.unwatch(timer)
        self._end_timers.clear()
        self.ending.clear()


def milliseconds(now: float) -> int:
    """Return a time of ``time.monotonic()`` as it is told."""
    return int(now * 1000)
