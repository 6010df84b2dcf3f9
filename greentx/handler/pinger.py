"""Keeps connections alive and finds out which are dead.

Mongrel2 does not tell when it ends a connection by itself, and ends silent ones after about 120 s (probed). So every
WebSocket is pinged every ``ping_timeout`` seconds, and one that did not answer by the next ping is ended; connections
that wait for an HTTP answer, or speak JSON or XML, are kept alive by a control message, which brings a notice for those
that have gone.

A pong is due ``ping_timeout`` seconds after its ping is known to have left, which a receipt behind it says, and only
seconds count in which the server was moving, which receipts say, too (:class:`~greentx.protocol.liveness.ServerClock`):
while a server is stopped no pong can come. Nobody is judged before a receipt has come that was asked for after that:
what the server has pushed before it was seen then. Where a server gives no receipts the time of sending counts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from math import ceil, inf
from time import monotonic
from typing import TYPE_CHECKING

import gevent

from ..errors import ForkError, GreentxError
from ..protocol.liveness import ServerClock
from ..protocol.websocket.frames import Opcode, build_frame
from ..protocol.websocket.machine import PING_PAYLOAD
from ..protocol.websocket.registry import Batch, Registry
from ..transport import Supervised
from ..transport.idle import idle_limit

if TYPE_CHECKING:
    from .connection import Connection
    from .sharing import Proofs

__all__ = ["PING_SECONDS", "Pinger", "warn_of_idle_limit"]

log = logging.getLogger("greentx.pinger")

#: Between two pings of a WebSocket, where nothing else is said.
PING_SECONDS = 30.0

# A round is cut into this many ticks, over which the batches are spread.
_TICKS = 32
_MIN_TICK_SECONDS = 0.005

# So often in an interval a server with WebSockets is asked for a sign of life; twice that time is a usual silence.
_QUESTIONS = 8
_USUAL_SILENCE = 2 / _QUESTIONS

# Of an interval, for which what the control port said of all connections serves other batches as well.
_ANSWER_AGE = 1 / 8

# Batches of 128 after which the hub gets its turn: well below a millisecond; it gets it at once where some were ended.
# A sleep of 0 is not enough: the hub goes on with such callbacks for 5 ms before it looks at sockets and timers.
_BATCHES_AT_ONCE = 8
_PAUSE_SECONDS = 0.0001

# Successive multiples of this, modulo 1, are spread evenly however many there are (the golden ratio).
_SPREAD = 0.6180339887498949


def warn_of_idle_limit(sender: str, endpoint: str, ping_timeout: float | None) -> None:
    """Log a WARNING where the server that subscribes at *endpoint* is known to end what is pinged so seldom."""
    idle = idle_limit(endpoint)
    if idle is not None and (ping_timeout is None or ping_timeout > idle / 2):
        log.warning(
            "%s: ping_timeout=%s is more than half of the limits.min_ping of %d s of its Mongrel2: long polls "
            "and WebSockets that only listen are ended after that time. Set ping_timeout to %g s at most, or "
            "limits.min_ping to %s",
            sender,
            ping_timeout,
            idle,
            idle / 2,
            0 if ping_timeout is None else f"{ceil(2 * ping_timeout)} s at least, or to 0",
        )


class Pinger:
    """Pings the WebSockets of all connection sets.

    A set whose pipe is full makes its sender wait, which is nothing to the other sets: each round of each set has a
    greenlet of its own, and a set whose last round still waits is skipped.

    Args:
        registry: The live WebSockets.
        connections: Returns the present connection sets.
        interval: Seconds above 0 between two pings, and how long a pong may take.

    Attributes:
        rounds: How many intervals have passed.
    """

    def __init__(self, registry: Registry, connections: Callable[[], Collection[Connection]], interval: float) -> None:
        self.interval = interval
        self.rounds = 0
        self._registry = registry
        self._connections = connections
        self._phase = 0.0
        self._sets: dict[Connection, _SetState] = {}
        self._keeper = Supervised("pinger", self._run)

    @property
    def trouble(self) -> str:
        """Why nobody is pinged at present; ``""`` where they are."""
        return self._keeper.trouble

    def start(self) -> None:
        """Start the greenlet."""
        self._keeper.start()

    def stop(self) -> None:
        """End all greenlets; safe to call twice."""
        self._keeper.kill()
        gevent.killall([one for state in self._sets.values() for one in (state.greenlet, state.looking)])
        for state in self._sets.values():
            state.release()
        self._sets.clear()

    def _run(self) -> None:
        tick = max(self.interval / _TICKS, _MIN_TICK_SECONDS)
        round_due = monotonic() + self.interval
        while True:
            gevent.sleep(tick)
            if monotonic() >= round_due:
                round_due = monotonic() + self.interval
                self.rounds += 1
            present = list(self._connections())
            # Closed, or a forked child: the connections are the parent's, which has a pinger of its own.
            if any(not connection.link.writer.receipts.usable for connection in present):
                return
            self._begin_rounds(present)
            self._keeper.works()

    def _begin_rounds(self, present: list[Connection]) -> None:
        # A set that was removed while it was stuck: its writer has been stopped, nothing would wake that greenlet.
        # Not waited for, as the others' time is running.
        for connection in self._sets.keys() - set(present):
            removed = self._sets.pop(connection)
            gevent.killall([removed.greenlet, removed.looking], block=False)
            removed.release()
        for connection in present:
            state = self._sets.get(connection)
            if state is None:
                state = self._sets[connection] = _SetState(self.rounds, self.interval)
            # Without its server nobody is there to be pinged, nor to be judged.
            if connection.ready and not state.greenlet:
                state.greenlet = gevent.spawn(self._serve, connection, state)

    def _serve(self, connection: Connection, state: _SetState) -> None:
        shares = connection.shares
        try:
            # Of several processes that share the entry one pings for all.
            if shares is None or shares.pings:
                self._ping_those_due(connection, state)
            if state.kept_alive != self.rounds:
                state.kept_alive = self.rounds
                if connection.sessions.senders:
                    _proofs(connection).probe()
                # In a greenlet of its own: a control port that does not answer holds nobody up.
                if connection.orphans is not None and not state.looking:
                    state.looking = gevent.spawn(connection.orphans.look)
                connection.intake.keep_alive()
        except ForkError as error:
            # This round was under way when its process forked; the pinger ends by itself.
            log.debug("a round of pings ends: %s", error)
        # What was not pinged is due again in an interval: nothing is tried at once, the pipe is full.
        except GreentxError as error:
            log.warning("a round of pings was cut short: %s", error)
        except Exception:
            log.exception("a round of pings failed")

    def _ping_those_due(self, connection: Connection, state: _SetState) -> None:
        frame = build_frame(b"%b%d" % (PING_PAYLOAD, self.rounds), Opcode.PING)
        done = 0
        for sender in list(connection.sessions.senders):
            batches = self._registry.batches(sender)
            if batches:
                state.look(connection)
                state.note_late(connection)
            for batch in batches:
                now = state.clock.time(monotonic())
                if batch.due is None:
                    # A new batch begins at some time of the interval, or all that came together would be pinged so.
                    self._phase = (self._phase + _SPREAD) % 1.0
                    batch.due = now + self.interval * self._phase
                    continue
                if batch.due > now:
                    continue
                seen = state.all_seen(connection, batch.due)
                if not seen and now < batch.due + self.interval:
                    continue
                ended = 0
                try:
                    sending = None
                    if connection.progress is not None:
                        sending = partial(connection.progress.sending, max_age=self.interval * _ANSWER_AGE)
                    judge = seen and (connection.shares is None or connection.shares.judges)
                    ended = connection.sessions.ping(batch[:], frame, sender, judge=judge, sending=sending)
                finally:
                    # Counted from when they have left: a full pipe, or a server that stands still, may hold them up.
                    state.pinged(connection, batch)
                done += 1
                if ended or done % _BATCHES_AT_ONCE == 0:
                    gevent.sleep(_PAUSE_SECONDS)
        if done:
            state.look(connection)

    def __repr__(self) -> str:
        return f"<Pinger every {self.interval} s, {self.rounds} rounds>"


def _proofs(connection: Connection) -> Proofs:
    return connection.link.writer.receipts if connection.shares is None else connection.shares.proofs


class _SetState:
    """What is known of one connection set.

    Args:
        kept_alive: As below.
        interval: Of the pinger.

    Attributes:
        greenlet: Runs its last round, or has; false when it has ended.
        kept_alive: The round in which its waiting connections were last asked about.
        looking: Looks for WebSockets that a former handler let in; false when it has ended.
        clock: Runs while the server moves. What is due is due on this clock.
    """

    __slots__ = (
        "_ask_at",
        "_asked",
        "_half_way",
        "_interval",
        "_leaving",
        "_over",
        "_seen_at",
        "clock",
        "greenlet",
        "kept_alive",
        "looking",
    )

    def __init__(self, kept_alive: int, interval: float) -> None:
        self.greenlet: gevent.Greenlet[..., None] = gevent.Greenlet()
        self.looking: gevent.Greenlet[..., None] = gevent.Greenlet()
        self.kept_alive = kept_alive
        self.clock = ServerClock(interval * _USUAL_SILENCE)
        self._interval = interval
        # When to ask for the next receipt; those asked for, with when; until when all was seen by the last that came.
        self._ask_at = -inf
        self._asked: deque[tuple[int, float]] = deque()
        self._seen_at = -inf
        # How far receipts were, and the batches whose pings may be on their way until one of them is there.
        self._over = 0
        self._leaving: deque[tuple[int, Batch]] = deque()
        # When half the time for their pongs is over.
        self._half_way: deque[tuple[float, Batch]] = deque()

    def look(self, connection: Connection) -> None:
        """See what the server has said by now, and ask again where it is time for that."""
        receipts = _proofs(connection)
        now = monotonic()
        if receipts.known is False:
            self.clock.moves(now)
            self.release()
            return
        if receipts.rules.over != self._over:
            self._over = receipts.rules.over
            self.clock.moves(now)
        while self._asked and self._asked[0][0] <= receipts.rules.over:
            question, asked_at = self._asked.popleft()
            if question <= receipts.rules.covered:
                self._seen_at = asked_at
        time = self.clock.time(now)
        while self._leaving and self._leaving[0][0] <= self._over:
            batch = self._leaving.popleft()[1]
            batch.due = time + self._interval
            if connection.progress is not None:
                self._half_way.append((time + self._interval / 2, batch))
        # The server may have gone during a round: nobody would answer.
        if now >= self._ask_at and connection.link.subscribed:
            self._ask_at = now + self._interval / _QUESTIONS
            self._asked.append((receipts.ask_behind(), now))

    def note_late(self, connection: Connection) -> None:
        """Have it noted what those have sent whose pongs are still missing when half the time is over."""
        late: list[str] = []
        time = self.clock.time(monotonic())
        while self._half_way and self._half_way[0][0] <= time:
            late += [entry.conn_id for entry in self._half_way.popleft()[1] if entry.awaits_pong]
        if late and connection.progress is not None:
            connection.progress.note(late, max_age=self._interval * _ANSWER_AGE)

    def pinged(self, connection: Connection, batch: Batch) -> None:
        """A ping was sent to a batch: its pongs are due an interval after it has left."""
        receipts = _proofs(connection)
        if receipts.known is False or not connection.ready:
            batch.due = self.clock.time(monotonic()) + self._interval
        else:
            batch.due = inf
            # Any question from now on is behind it; one for all that are pinged now.
            self._leaving.append((receipts.rules.questions + 1, batch))
            self._ask_at = -inf

    def all_seen(self, connection: Connection, due: float) -> bool:
        """Whether a pong that came in time has been seen: this process may have been busy with something else.

        While it has not, nobody is judged; after another interval of that, those that might go idle are pinged again.
        """
        due += self.clock.stood
        if _proofs(connection).known is False:
            return connection.link.drained_at >= due or connection.link.caught_up()
        return self._seen_at >= due

    def release(self) -> None:
        """No receipt is waited for: the batches that were are due at some time, as new ones are."""
        for _question, batch in self._leaving:
            batch.due = None
        self._leaving.clear()
        self._half_way.clear()
        self._asked.clear()
