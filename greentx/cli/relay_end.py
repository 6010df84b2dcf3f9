"""The end of a relay's process: nothing that Mongrel2 has handed out is lost.

::

    WebSockets are closed; their Nodes hear of it
    in flight   what Nodes had at that time is answered; new requests are served
    held        new requests wait, so that no more answers bring new ones
    leave       this thread stands still for a moment, and Mongrel2 is told that nobody pulls
    last        what was held is given out; the Nodes may leave, and are waited for

An answer that is larger than a window needs to be told of what its browser has read (``download.flow_control``), which
comes to whoever pulls. Where there were such answers, and where the front end is ours and ends with us, the last two
steps change places: new requests are answered 503, the Nodes finish and leave, and then Mongrel2 is told.
"""

from __future__ import annotations

from time import monotonic

import gevent

from ..handler.connection import Connection
from ..handler.transceiver import Transceiver
from ..protocol.websocket.frames import CloseCode
from ..relay import Relay
from ..relay.forwarding import New
from ..wsgi.quiet_leave import QuietLeave

__all__ = ["RelayEnd"]

# How long a moment without answers under way is waited for.
_QUIET_SECONDS = 5.0

# Of the time to end, so much is kept at the most for what comes last.
_LAST_SECONDS = 2.0

_LOOK_SECONDS = 0.01


class RelayEnd:
    """Carries it out, once.

    Args:
        relay: That ends.
        transceiver: Its own.
        seconds: How long that may take.
        last: The front end is ours, and ends behind us.
    """

    def __init__(self, relay: Relay, transceiver: Transceiver, seconds: float, *, last: bool) -> None:
        self._relay = relay
        self._transceiver = transceiver
        self._last = last
        self._deadline = monotonic() + seconds
        self._leave_by = self._deadline - min(_LAST_SECONDS, seconds / 2)

    def run(self) -> None:
        """Block until all is answered, or the time is over. The Transceiver is to be stopped behind it."""
        relay = self._relay
        connections = list(self._transceiver.connections.values())
        for connection in connections:
            connection.sessions.close_all(CloseCode.GOING_AWAY)
        self._wait_for(self._open())
        relay.forwarding.treat_new(New.WAIT)
        credited = any(connection.link.writer.flow.control.announced for connection in connections)
        # Of a Node that does not ask it is not known.
        large = credited and (len(relay.leaving.asked) < len(relay.nodes) or bool(relay.leaving.large))
        if self._last or large:
            self._finish(refuse=True)
            self._stop_pulling(connections)
        else:
            if credited:
                until = min(self._leave_by, monotonic() + _QUIET_SECONDS)
                while relay.open and monotonic() < until:
                    gevent.sleep(_LOOK_SECONDS)
            self._stop_pulling(connections)
            self._finish(refuse=False)

    def _stop_pulling(self, connections: list[Connection]) -> None:
        if not self._last:
            self._transceiver.shared().extensions.append(QuietLeave())
            for connection in connections:
                connection.intake.stop_receiving(self._transceiver.linger)
        while self._transceiver.pending:
            gevent.sleep(_LOOK_SECONDS)

    def _finish(self, *, refuse: bool) -> None:
        """Have the Nodes finish, and leave."""
        self._relay.forwarding.treat_new(New.ARE_REFUSED if refuse else New.GO_OUT)
        self._relay.leaving.let_all_leave()
        while self._is_busy() and monotonic() < self._deadline:
            gevent.sleep(_LOOK_SECONDS)

    def _is_busy(self) -> bool:
        """Whether somebody works for us still. Nodes that have asked leave when they have answered."""
        relay = self._relay
        return bool(relay.leaving.asked) or (bool(relay.open or relay.forwarding.waiting) and len(relay.nodes) > 0)

    def _open(self) -> frozenset[int]:
        return frozenset(number for session in self._relay.nodes for number in session.open)

    def _wait_for(self, numbers: frozenset[int]) -> None:
        """Wait until none of these requests is open any more."""
        while monotonic() < self._leave_by and not numbers.isdisjoint(self._open()):
            gevent.sleep(_LOOK_SECONDS)
