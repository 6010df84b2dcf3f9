"""The end of a server whose front end goes on: the hand-over to the next process.

Mongrel2 pushes requests to any process that is connected, so a process that leaves must first stop pulling, and may do
that only when nothing is still to come for it. What it has begun depends on messages that come the way of requests:

* the credits that say that a browser read its answer (``download.flow_control``), without which no more is sent to it;
* the next pieces of an upload that is being read;
* close frames of peers, which end their WebSockets.

So the end has these steps, and each waits for news (:meth:`Drain.tell`), within bounds::

    WebSockets are closed
    in flight   what was there at the end is answered and read, by browsers that read at all; new requests are served
    quiet       a moment is waited for in which nothing that came since needs further messages: for 5 s at the most
                where it would be lost without them, else for 0.5 s
    last        only where nobody else pulls, and there were answers that depended on credits, as large ones do: what
                is under way is finished, and new requests get a 503, so that there is an end of it
    leave       no more is pulled; what was pulled is handled, then the Transceiver is stopped

An own front end goes with its server, so there is no successor: the first step and the last are all there is, and new
requests are refused meanwhile.

On a Node all of this is simpler, since its relay knows what is whose:

    leave       the relay gives us nothing new, and all that it gave us has come; what follows to that still comes
    WebSockets  are let go, each between two messages, and go on at other Nodes
    in flight   what came is answered, and read by browsers that read at all
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from ..handler.shared import Extension
from ..relay import Node
from .quiet_leave import QuietLeave

if TYPE_CHECKING:
    from ..handler.connection import Connection
    from ..handler.transceiver import Transceiver
    from ..protocol.request import Request
    from .exchange import Exchange
    from .intake import Intake

__all__ = ["Drain"]

# How long one that leaves waits for a moment without messages that it needs, and for a browser that reads nothing.
_QUIET_SECONDS = 5.0

# How long it waits for a moment in which no answer is under way: under load there may be none. Where others go on to
# pull, one that is larger than a window goes out at the pace of a fast browser then.
_CREDITS_SECONDS = 0.5

# How long connections may take to close whose handlers were killed.
_CLOSE_SECONDS = 0.5

# Of the time to stop, so much is kept at the most for the requests that come last.
_LAST_SECONDS = 2.0

# How long handlers that are killed may take to end.
_KILL_SECONDS = 1.0

# How long a relay may take to say that a Node has got all.
_LEAVE_SECONDS = 5.0

# News that come within this time are looked at together: under load each answer is one.
_GATHER_SECONDS = 0.005

# How often to look whether the events that were pulled have been read: one number, while they are.
_PENDING_SECONDS = 0.002


class _News(Extension):
    """Tells when the server says anything of what it wrote, or of connections that ended."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain

    def notice(self, connection: Connection, request: Request) -> bool:
        self._drain.tell()
        return False

    def wrote(self, connection: Connection, conn_id: str, count: int) -> None:
        self._drain.tell()

    def lost(self, connection: Connection) -> None:
        self._drain.tell()


class Drain:
    """Waits for what a server has begun, and lets go of its Transceiver.

    Args:
        intake: The server's.
        upgrades: Its WebSockets, which it still adds to and removes from.
        transceiver: What requests come from.
        goodbye_code: What WebSockets are closed with.
        owned: The Transceiver is stopped as well; else it goes on without us.
        successor: Another process may serve what is not pulled; else the front end ends with us.
        ended: Called when all exchanges have ended.
    """

    def __init__(
        self,
        intake: Intake,
        upgrades: set[Any],
        transceiver: Transceiver,
        goodbye_code: int,
        *,
        owned: bool,
        successor: bool,
        ended: Callable[[], None],
    ) -> None:
        self._transceiver = transceiver
        self._owned = owned
        self._ended = ended
        self._intake = intake
        self._schedule = intake.schedule
        self._upgrades = upgrades
        self._goodbye_code = goodbye_code
        self._successor = successor
        self._news = self._schedule.watch()
        # Until when it may wait for old requests, and accept new ones.
        self._leave_by = math.inf
        # When what still runs is killed.
        self._deadline = math.inf
        self._greenlet = gevent.Greenlet(self._run)

    def tell(self) -> None:
        """Something has changed that it may wait for; never blocks."""
        self._news.set()

    def start(self) -> None:
        """Carry it out, in a greenlet of its own: whoever waits for it may be killed."""
        self._greenlet.start()

    def join(self) -> None:
        """Block this greenlet until it is done."""
        self._greenlet.join()

    def finish_within(self, seconds: float) -> None:
        """Block this greenlet until it is done; what still runs after *seconds* is killed."""
        self._deadline = monotonic() + seconds
        self._leave_by = self._deadline - min(_LAST_SECONDS, seconds / 2)
        self.tell()
        self._greenlet.join(seconds)
        if not self._greenlet.dead:
            # Bounded by itself: what it waits for has been killed.
            self._intake.kill(_KILL_SECONDS)
            self._greenlet.join()

    def _run(self) -> None:
        try:
            self._let_go()
        finally:
            self._ended()

    def _let_go(self) -> None:
        transceiver = self._transceiver
        node = transceiver if isinstance(transceiver, Node) else None
        # First: peers need time to answer, and applications to return.
        if node is None or not self._owned:
            for upgrade in list(self._upgrades):
                upgrade.go_away(self._goodbye_code)
        if not self._owned:
            # The Transceiver goes on: what comes from now on is for its owner, as before us.
            self._intake.give_back()
            self._intake.stop_reading()
            self._intake.join()
            transceiver.detach(self._intake)
            return
        news = _News(self)
        # One that was stopped by somebody else is on its way out already.
        shared = transceiver.shared() if transceiver.started else None
        extensions = [] if shared is None else shared.extensions
        extensions.append(news)
        try:
            connections = list(transceiver.connections.values())
            if node is not None:
                self._leave_relay(node, connections)
            elif self._successor and shared is not None:
                extensions.append(QuietLeave())
                # Several processes take it that there are others to get the credits, until they find out.
                self._drain_for_successor(transceiver, connections, alone=not shared.options.shared)
            self._intake.join()
            self._say_goodbye(transceiver, connections)
        finally:
            extensions.remove(news)
        # Detached first: its own end would wait for us, and all is done. What was sent still goes out, by its linger.
        transceiver.detach(self._intake)
        transceiver.stop(0)

    def _wait(self, until: float) -> None:
        """Block until there is news, or that time."""
        seconds = until - monotonic()
        if seconds > 0:
            self._news.clear()
            if self._news.wait(None if seconds == math.inf else seconds):
                gevent.sleep(_GATHER_SECONDS)

    def _drain_for_successor(self, transceiver: Transceiver, connections: list[Connection], *, alone: bool) -> None:
        """Leave what was not pulled yet to the next process that serves.

        Args:
            alone: No other process pulls from the handler entry meanwhile.
        """
        began = monotonic()
        flow_control = any(connection.link.writer.flow.control.on for connection in connections)
        self._finish_in_flight(flow_control)
        finished = monotonic()
        while self._expects_messages(connections, flow_control):
            # Computed each time: it may be told to hurry. Even so WebSockets get the time that a close may take, and
            # handlers that are killed at the deadline have their connections closed, for which Mongrel2 needs somebody
            # who pulls (probed, with flow control).
            closing = min(began + _QUIET_SECONDS, self._deadline + _CLOSE_SECONDS)
            until = max(closing, min(finished + _QUIET_SECONDS, self._leave_by))
            # The last one can finish large answers all the same.
            if not self._depends_on_messages(connections, large=not (alone and _gives_credits(connections))):
                until = min(finished + _CREDITS_SECONDS, self._leave_by)
            if monotonic() >= until:
                break
            self._wait(until)
        # Where answers were larger than a window, the next one may be, of a request that comes behind the last look.
        if alone and _gives_credits(connections) and any(one.link.writer.flow.waited for one in connections):
            self._finish_as_last(connections)
        for connection in connections:
            connection.intake.stop_receiving(transceiver.linger)
        while transceiver.pending:  # what was pulled is still for us
            gevent.sleep(_PENDING_SECONDS)

    def _leave_relay(self, node: Node, connections: list[Connection]) -> None:
        """Leave what is new to other Nodes, and finish the rest."""
        if node.link is not None:
            node.link.leave(max(0.0, min(_LEAVE_SECONDS, self._leave_by - monotonic())))
        for connection in connections:
            connection.sessions.relayed.leave()
        while node.pending:  # what it gave us is still for us
            gevent.sleep(_PENDING_SECONDS)
        self._finish_under_way(connections)

    def _expects_messages(self, connections: list[Connection], flow_control: bool) -> bool:
        """True while something needs messages that are still to come, or goes on better with them."""
        return bool(
            self._depends_on_messages(connections, large=True)
            # An answer of any size may need credits before its end goes out.
            or (flow_control and len(self._schedule.lines))
            or any(connection.link.writer.flow.control.unconfirmed() for connection in connections)
        )

    def _depends_on_messages(self, connections: list[Connection], *, large: bool) -> bool:
        """True while something would never end, or be cut off, without messages that are still to come.

        Args:
            large: Answers that wait in outboxes count.
        """
        return bool(
            self._upgrades
            or any(one.receiving and not one.disconnected.is_set() for one in self._schedule.lines)
            or (large and any(connection.link.writer.flow.waiting_ids() for connection in connections))
        )

    def _finish_as_last(self, connections: list[Connection]) -> None:
        """Refuse what comes, and wait for the answers under way: the credits for them come to us or to nobody.

        What is pulled last is refused, too. A browser that reads nothing is not waited for. At the deadline handlers
        are killed and their connections close, for which Mongrel2 needs somebody who pulls.
        """
        self._intake.close_to(lambda request: True, front_end_ends=False)
        self._finish_under_way(connections)

    def _finish_under_way(self, connections: list[Connection]) -> None:
        """Wait until what runs has ended, and is read by browsers that read at all; for so long as there is time."""
        seen: dict[tuple[Connection, str], int] = {}
        now = since = monotonic()
        # Computed each time: it may be told to hurry.
        while now < (until := min(self._deadline + _CLOSE_SECONDS, since + _QUIET_SECONDS)):
            waiting = {
                (connection, conn_id): connection.link.writer.flow.waiting(conn_id)
                for connection in connections
                for conn_id in connection.link.writer.flow.waiting_ids()
            }
            running = [(one.connection, one.request.conn_id) for one in self._schedule.lines]
            if not waiting and not running:
                return
            # Progress: a handler may take its time, but not one that waits for its browser.
            if waiting != seen or any(one not in waiting for one in running):
                since, seen = now, waiting
            self._wait(until)
            now = monotonic()

    def _finish_in_flight(self, flow_control: bool) -> None:
        """Wait for the requests that were there at the end, and until their browsers have read the answers.

        With flow control a large answer waits for notices of what was written, which come the way of requests; else
        only what is being received does. A browser that reads nothing is not waited for.
        """
        owed = list(self._schedule.lines)
        seen = (0, 0)
        now = since = monotonic()
        while owed:
            # Without flow control only a body depends on messages; a handler that computes may go on without them.
            running = {one for one in owed if (flow_control or one.receiving) and one in self._schedule.lines}
            unread = {one: _read_by_browser(one) for one in owed if one not in running}
            reading = [one for one, count in unread.items() if count is not None]
            state = len(reading), sum(count or 0 for count in unread.values())
            # Progress: a handler may take its time, a browser may not read forever.
            if running or state != seen:
                since, seen = now, state
            owed = [*running, *reading]
            if not owed or now >= self._leave_by or now - since >= _QUIET_SECONDS:
                return
            self._wait(min(self._leave_by, since + _QUIET_SECONDS))
            now = monotonic()

    def _say_goodbye(self, transceiver: Transceiver, connections: list[Connection]) -> None:
        """End the WebSockets, and see that the front end wrote what it was given, as far as it tells."""
        for connection in connections:
            connection.sessions.close_all(self._goodbye_code)
        until = min(monotonic(), self._deadline) + transceiver.linger
        while (
            any(connection.link.writer.flow.control.unconfirmed() for connection in connections) and monotonic() < until
        ):
            self._wait(until)


def _gives_credits(connections: list[Connection]) -> bool:
    """Whether a server has said what it wrote, as it does with ``download.flow_control``."""
    return any(connection.link.writer.flow.control.announced for connection in connections)


def _read_by_browser(exchange: Exchange) -> int | None:
    """Return a number that grows while the browser reads what it was sent; ``None`` where that is all, or not known."""
    return exchange.connection.link.writer.flow.control.confirmed(exchange.request.conn_id)
