"""Jobs in greenlets: from a place in the pool to the end of what lingers.

The stages of a job, of which these are the second half (the first one is :mod:`greentx.handler.schedule`)::

    placed      it counts in the pool, and a greenlet was woken for it
    begun       a greenlet handles it
    aside       its handler waits for its browser to read: its place is free meanwhile
    lingering   handled, its place is free; something of it (an unread body) has yet to end

A greenlet that is killed before it began to handle its job does not begin it anew somewhere else: the kill was meant
for the job. It is refused, so its client gets a 503, never silence. One that is killed later answers for itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic

import gevent
from gevent.hub import get_hub
from gevent.pool import Pool

from .jobs import J
from .runners import Runners

__all__ = ["MAX_ASIDE", "MAX_LINGERING", "RunningJobs"]

#: Jobs that may be aside at once; those beyond keep their places while they wait.
MAX_ASIDE = 1000

#: Jobs that may linger at once. Each is a greenlet that holds no place in the pool, so the pool's limit does not bound
#: them; what is handled beyond this number does not linger.
MAX_LINGERING = 1000


class RunningJobs(Generic[J]):
    """The jobs that were begun.

    Args:
        handle: Handles a job, in its greenlet. What it raises ends the greenlet.
        refuse: Answers a job that will not be handled: the server is full or stopping. Must not raise.
        linger: Called with a job that has ``job.lingers`` and whether to wait, in the job's greenlet, until it has
            ended; if not, it is to end now. Must not raise.
        on_free: Called when a job has left its place in the pool.
        on_end: Called when a job has ended, after that.

    Attributes:
        running: Those that have a place in the pool.
        set_aside: Those that were begun and gave their places back, since they waited for their browsers.
        lingering: Those that have not ended all the same.
        keep_greenlets: Whether greenlets wait for further jobs of their connections.
    """

    def __init__(
        self,
        handle: Callable[[J], object],
        refuse: Callable[[J], object],
        linger: Callable[[J, bool], object] | None,
        on_free: Callable[[], object],
        on_end: Callable[[J], None],
    ) -> None:
        self.running: set[J] = set()
        self.set_aside: set[J] = set()
        self.lingering: set[J] = set()
        self.keep_greenlets = True
        self._handle = handle
        self._refuse = refuse
        self._linger = linger
        self._on_free = on_free
        self._on_end = on_end
        self._runners: Runners[J] = Runners(self._run_job, on_end, self._lost)
        self.use_pool()

    def use_pool(
        self, pool: Any = None, *, limit: float = float("inf"), launch: Callable[[J], object] | None = None
    ) -> None:
        """Say how many jobs may run at once, and in which greenlets.

        Args:
            pool: A ``gevent.pool.Pool`` or the like, in which each job needs a place; others may use it as well.
            limit: How many jobs may run. To count is cheaper than a pool.
            launch: Begins a job, by a greenlet in which it calls :meth:`run`, in the place of :meth:`spawn`; ``None``
                for that.
        """
        self.limit = limit
        # Only one that says that it is full is asked; a gevent.pool.Group never is.
        self.pool = pool if hasattr(pool, "full") else None
        if launch is None:
            # spawn() without a pool is no more than that.
            launch = self._runners.spawn if self.pool is None else self.spawn
        self._launch = launch

    def is_full(self) -> bool:
        """True when no further job can begin."""
        return len(self.running) >= self.limit or (self.pool is not None and self.pool.full())

    def begin(self, job: J) -> None:
        """Have *job* handled; there is a place for it. Does not block."""
        # Before it is launched: a way to spawn that runs the job at once finds it here.
        self.running.add(job)
        try:
            self._launch(job)
        except Exception:  # noqa: BLE001 - of the application's way to spawn; it must not end whoever calls us
            get_hub().loop.handle_error((job.request, self), *sys.exc_info())
            self._lost(job)

    def spawn(self, job: J) -> None:
        """Have *job* handled in a greenlet of ours; see :mod:`greentx.handler.runners`."""
        greenlet = self._runners.spawn(job)
        # The greenlet does not run before this one waits, so it cannot end before it has its place. There is one: add()
        # does not block.
        if self.pool is not None:
            self.pool.add(greenlet)

    def spawn_by(self, spawn: Callable[..., Any], job: J) -> None:
        """Have *job* handled in a greenlet of *spawn*'s, which is called as ``gevent.spawn`` is."""
        job.greenlet = greenlet = spawn(self.run, job)
        if hasattr(greenlet, "rawlink"):  # one of gevent.spawn_raw() has no way to tell of its end
            greenlet.rawlink(lambda _: self._lost(job))

    def run(self, job: J) -> None:
        """Handle *job* in this greenlet, which is not one of ours."""
        job.greenlet = gevent.getcurrent()
        try:
            self._work(job)
        finally:
            if job in self.lingering:
                # Not here: the greenlet may hold a place in somebody's pool until it ends.
                job.greenlet = gevent.spawn(self._end_lingering, job)
            else:
                self._on_end(job)

    def _run_job(self, job: J) -> bool:
        stays = self._work(job, self.pool)
        if self.lingering and job in self.lingering:
            self._wait_for_end(job)
        return stays

    def _work(self, job: J, pool: Any = None) -> bool:
        """Handle *job*; return whether another one of its connection may be expected.

        Args:
            pool: Where the greenlet has a place that it has to give back: it would keep that while it is parked.
        """
        job.begun = True
        running = self.running
        returned = False
        try:
            self._handle(job)
            returned = True
        finally:
            known = job in running
            if known:
                running.remove(job)
            elif job in self.set_aside:
                known = True
                self.set_aside.remove(job)
            # Else all were killed, and nobody waits for this one.
            if pool is not None:
                pool.discard(job.greenlet)
            if job.lingers:
                self._begin_lingering(job, wait=returned and known)
            self._on_free()
        # Where the connection has ended no other job of it will come.
        life = job.request.life
        return known and self.keep_greenlets and (life is None or not life.over)

    # -- handlers that wait for their browsers -----------------------------------------------------------------------

    def job_of(self, greenlet: object) -> J | None:
        """Return the job that *greenlet* handles in a place of the pool; ``None`` where it does not."""
        return next((job for job in self.running if job.greenlet is greenlet), None)

    @contextmanager
    def aside(self, job: J) -> Iterator[None]:
        """Inside, *job* has no place in the pool: others are handled while its browser does not read.

        At the end it has one again, if there is one. Where one job is to run at a time it keeps its place.
        """
        pool, greenlet = self.pool, job.greenlet
        size = self.limit if pool is None else getattr(pool, "size", None)
        # What an application's own kind of pool counts is its business.
        if size == 1 or len(self.set_aside) >= MAX_ASIDE or (pool is not None and not _is_in(greenlet, pool)):
            yield
            return
        self.running.discard(job)
        self.set_aside.add(job)
        if pool is not None:
            pool.discard(greenlet)
        self._on_free()
        try:
            yield
        finally:
            # Not waited for: it goes on beyond the limit, as it would have without the wait.
            if job in self.set_aside and not self.is_full():
                self.set_aside.discard(job)
                self.running.add(job)
                if pool is not None:
                    pool.add(greenlet)

    # -- what lingers ------------------------------------------------------------------------------------------------

    def _begin_lingering(self, job: J, *, wait: bool) -> None:
        if self._linger is None:
            return
        if wait and len(self.lingering) < MAX_LINGERING:
            self.lingering.add(job)
        else:
            self._linger(job, False)

    def _wait_for_end(self, job: J) -> None:
        assert self._linger is not None
        try:
            self._linger(job, True)
        finally:
            self.lingering.discard(job)

    def _end_lingering(self, job: J) -> None:
        try:
            self._wait_for_end(job)
        finally:
            self._on_end(job)

    def _lost(self, job: J) -> None:
        """The greenlet of *job* has ended, or there was none to be had: did it begin?"""
        if not job.begun and job in self.running:
            self.running.discard(job)
            self._refuse(job)
            job.drop()
            self._on_end(job)
            self._on_free()

    # -- the end -----------------------------------------------------------------------------------------------------

    def greenlets(self) -> list[Any]:
        """Return the greenlets that handle jobs now."""
        return [job.greenlet for job in (*self.running, *self.set_aside, *self.lingering)]

    def kill(self, jobs: list[J]) -> None:
        """Forget all and kill the greenlets of *jobs*. Does not wait: they may not die at once."""
        self.running.clear()
        self.set_aside.clear()
        self.lingering.clear()
        gevent.killall([job.greenlet for job in jobs if job.greenlet is not None], block=False)

    def refuse_rest(self, jobs: list[J]) -> None:
        """Answer those of the killed *jobs* that had not begun, and end what lingers. May block on a full pipe."""
        for job in jobs:
            if not job.begun:
                self._refuse(job)
                job.drop()
            elif job.lingers and self._linger is not None:
                self._linger(job, False)  # the greenlet that was to wait may have been killed before it began

    def stop(self) -> None:
        """Keep no greenlets: let those go that wait for further jobs. Blocks for a moment."""
        self.keep_greenlets = False
        self._runners.end_parked()

    def __repr__(self) -> str:
        aside, lingering = len(self.set_aside), len(self.lingering)
        return f"<RunningJobs: {len(self.running)} run, {aside} aside, {lingering} linger>"


def _is_in(greenlet: object, pool: Any) -> bool:
    return isinstance(pool, Pool) and greenlet in pool
