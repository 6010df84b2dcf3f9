"""Greenlets that are used again: one for each browser connection, which handles its requests one after the other.

A new greenlet costs more than a request: CPython maps memory for its stack, and unmaps it at its end (measured: 8 us of
30). So a greenlet stays for a while after its job, parked, and the next job of its connection runs in it. It serves no
other connection: what a handler leaves in ``gevent.local`` or a context variable is seen by the same browser at most,
as under ``gevent.pywsgi``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic

import gevent
from gevent.hub import get_hub

from ..protocol.websocket.registry import Sid
from .jobs import J

__all__ = ["MAX_PARKED", "PARK_SECONDS", "Runners"]

#: Seconds that a greenlet waits for the next job of its connection, and how many greenlets wait.
PARK_SECONDS = 5.0
MAX_PARKED = 1000


class _Runner(Generic[J]):
    """One of the greenlets, and the job that it was given and has not begun."""

    __slots__ = ("generation", "greenlet", "job")

    def __init__(self, job: J) -> None:
        self.job: J | None = job
        self.greenlet: Any = None
        self.generation = 0


class Runners(Generic[J]):
    """Runs jobs, those of one connection in one greenlet.

    Args:
        handle: Handles a job, in the greenlet; returns whether that may wait for further jobs of the connection.
        finish: Called with the job after that, in the same greenlet, whatever happened. It may spawn the next one.
        lost: Called in the hub with a job whose greenlet was killed before it began.
    """

    def __init__(self, handle: Callable[[J], bool], finish: Callable[[J], None], lost: Callable[[J], None]) -> None:
        self._handle = handle
        self._finish = finish
        self._lost = lost
        self._parked: dict[Sid, _Runner[J]] = {}
        self._generation = 0
        self._timer: Any = None
        self._loop = get_hub().loop

    def spawn(self, job: J) -> Any:
        """Have *job* handled soon, in ``job.greenlet``; return that. Does not block."""
        runner = self._parked.pop(job.sid, None)
        if runner is None:
            runner = _Runner(job)
            greenlet = job.greenlet = runner.greenlet = gevent.spawn(self._run, runner, job.sid)
            # A greenlet that is killed before its first switch runs no line of _run(), so nothing there could tell.
            greenlet.rawlink(partial(self._died, runner))
            return greenlet
        # In the next turn of the loop, as a new greenlet would begin: the caller goes on first.
        runner.job = job
        greenlet = job.greenlet = runner.greenlet
        self._loop.run_callback(greenlet.switch)
        return greenlet

    def _run(self, runner: _Runner[J], sid: Sid) -> None:
        parked, switch = self._parked, get_hub().switch
        try:
            while (job := runner.job) is not None:
                runner.job = None
                stays = False
                try:
                    stays = self._handle(job)
                finally:
                    # Parked before the job is finished, so that the next one of the connection finds this greenlet. One
                    # that is dying does not: its next job would die with it.
                    if stays and len(parked) < MAX_PARKED:
                        runner.generation = self._generation
                        parked[sid] = runner
                    self._finish(job)
                del job  # a parked greenlet must not hold a request, with its body, for seconds
                if parked.get(sid) is runner:
                    if self._timer is None:
                        self._start_timer()
                elif runner.job is None:
                    return
                switch()  # until there is another job, or the wait is over
        finally:
            if parked.get(sid) is runner:
                del parked[sid]

    def _died(self, runner: _Runner[J], _greenlet: object) -> None:
        job, runner.job = runner.job, None
        if job is not None:
            self._lost(job)

    def _start_timer(self) -> None:
        # No reference: what nobody waits for must not keep the loop, and so the program, alive.
        self._timer = self._loop.timer(PARK_SECONDS, PARK_SECONDS, ref=False)
        self._timer.start(self._end_idle, 1)

    def end_parked(self) -> None:
        """Let all go that wait for a job. Blocks until they have ended, which takes no longer than a switch to each."""
        gevent.joinall(self._end_idle(0))

    def _end_idle(self, older_than: int) -> list[Any]:
        """Let those go whose connection was idle for so many turns of the timer; return them."""
        self._generation += 1
        # Coarse, by turns of one timer: a timer for each greenlet would cost as much as it saves.
        limit = self._generation - older_than
        ended = [(sid, runner) for sid, runner in self._parked.items() if runner.generation < limit]
        for sid, runner in ended:
            del self._parked[sid]
            self._loop.run_callback(runner.greenlet.switch)
        # While nothing is parked there is nothing to wake up for.
        if not self._parked and self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        return [runner.greenlet for _, runner in ended]

    def __repr__(self) -> str:
        return f"<Runners: {len(self._parked)} greenlets wait for a job>"
