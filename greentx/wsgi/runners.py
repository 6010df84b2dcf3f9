"""The greenlets that handle requests: one for each browser connection, as under gevent's server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import get_hub

if TYPE_CHECKING:
    from ..registry import Sid
    from .exchange import Exchange

__all__ = ["MAX_PARKED", "PARK_SECONDS", "Runners"]

#: A greenlet that handled a request waits so long for the next one of its connection, and so many do.
PARK_SECONDS = 5.0
MAX_PARKED = 1000


class _Runner:
    """One of them. A new greenlet for each request would cost more: CPython maps memory for its stack and unmaps it."""

    __slots__ = ("generation", "greenlet", "job", "pool")

    def __init__(self) -> None:
        self.greenlet: Any = None
        # Where it has a place, while it handles a request.
        self.pool: Any = None
        self.job: tuple[Exchange, Any] | None = None
        self.generation = 0


class Runners:
    """Runs jobs, those of one connection in one greenlet, which stays for a while after the last one.

    Args:
        run: Handles an exchange, with the browser's address, in the greenlet.
        end: Called with the exchange behind that, whatever happened; the next job of its connection may come from it.
        known: Whether the greenlet of a connection is kept for further jobs.
    """

    def __init__(
        self, run: Callable[[Exchange, Any], None], end: Callable[[Exchange], None], known: Callable[[Sid], bool]
    ) -> None:
        self._run = run
        self._end = end
        self._known = known
        self._parked: dict[Sid, _Runner] = {}
        self._generation = 0
        self._timer: Any = None
        self._loop = get_hub().loop

    def spawn(self, exchange: Exchange, address: Any, pool: Any = None) -> Any:
        """Have a job run soon; return its greenlet, which has a place in *pool* meanwhile."""
        runner = self._parked.pop(exchange.sid, None)
        if runner is None:
            runner = _Runner()
            runner.job = (exchange, address)
            runner.greenlet = gevent.spawn(self._run_jobs, runner, exchange.sid)
        else:
            runner.job = (exchange, address)
            self._loop.run_callback(runner.greenlet.switch)
        if pool is not None:
            runner.pool = pool
            pool.add(runner.greenlet)
        return runner.greenlet

    def _run_jobs(self, runner: _Runner, sid: Sid) -> None:
        parked, hub = self._parked, get_hub()
        try:
            while runner.job is not None:
                exchange, address = runner.job
                runner.job = None
                try:
                    self._run(exchange, address)
                finally:
                    if runner.pool is not None:
                        runner.pool.discard(runner.greenlet)
                        runner.pool = None
                    # Where its connection is not known any more, the server was killed, and waits for this greenlet.
                    if len(parked) < MAX_PARKED and self._known(sid) and not exchange.disconnected.is_set():
                        runner.generation = self._generation
                        parked[sid] = runner
                    self._end(exchange)
                if parked.get(sid) is runner:
                    if self._timer is None:
                        self._start_timer()
                    hub.switch()
                elif runner.job is not None:
                    hub.switch()  # the switch that was asked for with the job
        finally:
            if parked.get(sid) is runner:
                del parked[sid]
            if runner.job is not None:  # killed before it could begin
                pool = runner.pool
                if pool is not None:
                    pool.discard(runner.greenlet)
                self.spawn(*runner.job, pool)

    def _start_timer(self) -> None:
        self._timer = self._loop.timer(PARK_SECONDS, PARK_SECONDS)
        self._timer.start(self._end_idle, 1)

    def end_parked(self) -> None:
        """Let all go that wait for a job. Blocks until they have ended."""
        gevent.joinall(self._end_idle(0))

    def _end_idle(self, older_than: int) -> list[Any]:
        """Let those go whose connection was idle for so many turns of the timer; return them."""
        self._generation += 1
        limit = self._generation - older_than
        ended = [(sid, runner) for sid, runner in self._parked.items() if runner.generation < limit]
        for sid, runner in ended:
            del self._parked[sid]
            self._loop.run_callback(runner.greenlet.switch)
        if not self._parked and self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        return [runner.greenlet for _, runner in ended]
