"""Keeps connections alive and finds out which are dead.

Mongrel2 does not tell when it ends a connection by itself, and ends silent ones after about 120 s (probed). So every
WebSocket is pinged every ``ping_timeout`` seconds, and one that did not answer by the next ping is ended; connections
that wait for an HTTP answer, or speak JSON or XML, are kept alive by a control message, which brings a notice for those
that have gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from time import monotonic
from typing import TYPE_CHECKING

import gevent

from .errors import GreentxError
from .frames import Opcode, build_frame
from .registry import Registry
from .session import PING_PAYLOAD

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["PING_SECONDS", "Pinger"]

log = logging.getLogger("greentx.pinger")

#: Between two pings of a WebSocket, where nothing else is said.
PING_SECONDS = 30.0

# A round is cut into this many ticks, over which the batches are spread.
_TICKS = 32
_MIN_TICK_SECONDS = 0.005

# Batches of 128 after which the hub gets its turn: well below a millisecond; it gets it at once where some were ended.
# A sleep of 0 would not do: the hub goes on with such callbacks for 5 ms before it looks at sockets and timers.
_BATCHES_AT_ONCE = 8
_PAUSE_SECONDS = 0.0001

# Successive multiples of this, modulo 1, are spread evenly however many there are (the golden ratio).
_SPREAD = 0.6180339887498949


class Pinger:
    """Pings the WebSockets of all connection sets, from a greenlet of its own.

    Args:
        registry: The live WebSockets.
        connections: Returns the present connection sets.
        interval: Seconds between two pings, and how long a pong may take.
    """

    def __init__(self, registry: Registry, connections: Callable[[], Collection[Connection]], interval: float) -> None:
        if not interval > 0:
            raise ValueError(f"ping_timeout is a number of seconds above 0, or None; not {interval!r}")
        self.interval = interval
        self.rounds = 0
        self._registry = registry
        self._connections = connections
        self._phase = 0.0
        self._greenlet = gevent.Greenlet(self._run)
        self._greenlet.name = "pinger"

    def start(self) -> None:
        """Start the greenlet."""
        self._greenlet.start()

    def stop(self) -> None:
        """End the greenlet; safe to call twice."""
        self._greenlet.kill()

    def _run(self) -> None:
        tick = max(self.interval / _TICKS, _MIN_TICK_SECONDS)
        keep_alive_due = monotonic() + self.interval
        while True:
            gevent.sleep(tick)
            try:
                self._ping_those_due()
                if monotonic() >= keep_alive_due:
                    keep_alive_due = monotonic() + self.interval
                    self.rounds += 1
                    for connection in list(self._connections()):
                        if connection.ready:
                            connection.keep_alive()
            except GreentxError as error:
                log.warning("a round of pings was cut short: %s", error)
            except Exception:
                log.exception("a round of pings failed")

    def _ping_those_due(self) -> None:
        frame = build_frame(b"%b%d" % (PING_PAYLOAD, self.rounds), Opcode.PING)
        done = 0
        for connection in list(self._connections()):
            if not connection.ready:
                continue
            for sender in list(connection.sessions.senders):
                for batch in self._registry.batches(sender):
                    now = monotonic()
                    if batch.due is None:
                        self._phase = (self._phase + _SPREAD) % 1.0
                        batch.due = now + self.interval * self._phase
                        continue
                    if batch.due > now:
                        continue
                    seen = self._all_seen(connection, batch.due)
                    if not seen and now < batch.due + self.interval:
                        continue
                    ended = 0
                    try:
                        ended = connection.sessions.ping(batch[:], frame, sender, judge=seen)
                    finally:
                        # Counted from when they were sent: a full pipe may have held them up.
                        batch.due = monotonic() + self.interval
                    done += 1
                    if ended or done % _BATCHES_AT_ONCE == 0:
                        gevent.sleep(_PAUSE_SECONDS)

    def _all_seen(self, connection: Connection, due: float) -> bool:
        """Whether a pong that came in time has been seen: the process may have been busy with something else.

        While it has not, nobody is judged; after another interval of that, those who might go idle are pinged again.
        """
        return connection.drained_at >= due or connection.caught_up()

    def __repr__(self) -> str:
        return f"<Pinger every {self.interval} s, {self.rounds} rounds>"
