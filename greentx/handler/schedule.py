"""When each request is handled: in the order of its connection, as the pool has room.

``Transceiver.serve`` and the WSGI server both stand on this. Of the jobs of a connection the first is handled, the
others wait for it (:mod:`greentx.handler.jobs`). A first one that finds the pool full waits in one queue with those of
other connections, so a connection that pipelines goes to the end of that after each of its requests. The stages of a
job, of which these are the first half (the second one is :mod:`greentx.handler.running`)::

    behind ---> waiting ---> placed ---> begun ---> lingering ---> ended
      |            |           |
      +------------+           +--> refused: its greenlet was killed before it began
      +--> dropped: its client left, which needs no answer
      +--> refused: all were killed

    behind      another job of its connection comes first
    waiting     first of its line; the pool is full, or the schedule is paused
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic

import gevent
from gevent.event import Event

from ..protocol.bounds import size_of
from ..protocol.websocket.registry import Sid
from .jobs import J, Job, Lines
from .running import RunningJobs

__all__ = ["Job", "Schedule"]


class Schedule(Generic[J]):
    """Has jobs handled in greenlets.

    Args:
        handle, refuse, linger: As for :class:`greentx.handler.running.RunningJobs`.

    Attributes:
        lines: All jobs that have not ended, by connection.
        jobs: Those that were begun, and the pool.
        waiting: Those that are first of their connection and wait for the pool, in order. Only read it.
        held: How many bytes these take.
    """

    def __init__(
        self,
        handle: Callable[[J], object],
        refuse: Callable[[J], object],
        linger: Callable[[J, bool], object] | None = None,
    ) -> None:
        self.lines: Lines[J] = Lines()
        self.jobs: RunningJobs[J] = RunningJobs(handle, refuse, linger, self._feed, self._end)
        # A dict, since one whose client leaves may be anywhere; an ordered one, since the next one is at the front,
        # where a plain dict searches among those that were deleted. With the bytes that each takes.
        self.waiting: OrderedDict[J, int] = OrderedDict()
        self.held = 0
        self._paused = False
        self._feeder: gevent.Greenlet[..., None] | None = None
        # Made when somebody waits for a change, which is hardly ever before the end.
        self._changed: Event | None = None

    # -- in ----------------------------------------------------------------------------------------------------------

    def add(self, job: J) -> None:
        """Handle *job* when its turn comes. Does not block."""
        lines = self.lines.lines
        if job.sid not in lines:
            lines[job.sid] = [job]  # what Lines.add() does for nearly all, without calling it
            self._begin(job)
        elif self.lines.add(job):
            self._begin(job)

    @property
    def queued(self) -> int:
        """How many jobs wait, behind others of their connection or for the pool."""
        return self.lines.behind + len(self.waiting)

    def wait_for_space(self, limit: int, byte_limit: int) -> None:
        """Block this greenlet while *limit* jobs or more are :attr:`queued`, or *byte_limit* bytes or more held."""
        while self.queued >= limit or self.held >= byte_limit:
            self._wait()

    def _begin(self, job: J) -> None:
        jobs = self.jobs
        pool = jobs.pool
        # As jobs.is_full(), without calling it.
        if self.waiting or self._paused or len(jobs.running) >= jobs.limit or (pool is not None and pool.full()):
            self.waiting[job] = size = size_of(job.request)
            self.held += size
            self._watch_pool()
        else:
            jobs.begin(job)

    def _end(self, job: J) -> None:
        """A job has ended: the next one of its connection may begin."""
        lines = self.lines.lines
        line = lines.get(job.sid)
        if line is not None and len(line) == 1 and line[0] is job:
            del lines[job.sid]  # what Lines.finish() does for nearly all
        else:
            following = self.lines.finish(job)
            if following is not None:
                self._begin(following)
        # As tell(), without calling it.
        if self._changed is not None:
            self._changed.set()

    # -- the queue in front of the pool ------------------------------------------------------------------------------

    def pause(self) -> None:
        """Begin nothing more, until :meth:`resume`; what has begun goes on."""
        self._paused = True
        self.jobs.keep_greenlets = False
        self.tell()

    def resume(self) -> None:
        """Go on, with those first that came meanwhile."""
        self._paused = False
        self.jobs.keep_greenlets = True
        self._feed()

    def _feed(self) -> None:
        if not self.waiting:
            return
        while self.waiting and not self._paused and not self.jobs.is_full():
            job, size = self.waiting.popitem(last=False)
            self.held -= size
            # Nobody waits for it any more, which may be the effect of a long queue.
            if job.moot:
                job.drop()
                self._end(job)
            else:
                self.jobs.begin(job)
        self.tell()
        self._watch_pool()

    def _watch_pool(self) -> None:
        # The end of a job of ours feeds the pool by itself. Others' greenlets, in a pool that was given to us, do not.
        if self.jobs.pool is None or not self.waiting or self._paused:
            return
        if self._feeder is None or self._feeder.dead:
            self._feeder = gevent.spawn(self._feed_pool)

    def _feed_pool(self) -> None:
        while self.waiting and not self._paused and self.jobs.pool is not None:
            self.jobs.pool.wait_available()
            self._feed()

    # -- clients that leave ------------------------------------------------------------------------------------------

    def drop_behind(self, sid: Sid) -> J | None:
        """The client has gone: what waits behind its first job is dropped. Returns that job, ``None`` without one."""
        first = self.lines.drop_behind(sid)
        self.tell()
        return first

    def drop(self, job: J) -> None:
        """Drop a job that waits for the pool."""
        self.held -= self.waiting.pop(job)
        job.drop()
        self._end(job)

    # -- the end -----------------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """True where nothing is handled, now or later, apart from what the calling greenlet handles itself.

        What waits behind that, or for its place in the pool, cannot begin while it waits for others.
        """
        current = gevent.getcurrent()
        greenlets = self.jobs.greenlets()
        # Ends at the first one, mostly: this is asked again with each job that ends.
        if any(greenlet is not current for greenlet in greenlets):
            return False
        return not self.waiting or self._paused or (bool(greenlets) and self.jobs.is_full())

    def tell(self) -> None:
        """Wake those who wait for a change; never blocks."""
        if self._changed is not None:
            self._changed.set()

    def watch(self) -> Event:
        """Return an event that is set with each change. Clear it, look at what is waited for, then wait."""
        if self._changed is None:
            self._changed = Event()
        return self._changed

    def _wait(self) -> None:
        changed = self.watch()
        changed.clear()
        changed.wait()

    def join(self) -> None:
        """Block this greenlet until :meth:`is_idle`."""
        while not self.is_idle():
            self._wait()

    def stop(self) -> None:
        """:meth:`pause`, and let the greenlets go that wait for further jobs. Blocks for a moment."""
        self.pause()
        if self._feeder is not None:
            self._feeder.kill()
            self._feeder = None
        self.jobs.stop()

    def kill(self, timeout: float) -> int:
        """End all jobs but the one of this greenlet within *timeout* seconds; those that have not begun are refused.

        Returns:
            How many there were.
        """
        jobs = self.kill_begun()
        # A greenlet of gevent.spawn_raw() cannot be waited for.
        gevent.joinall([job.greenlet for job in jobs if hasattr(job.greenlet, "rawlink")], timeout=timeout)
        self.jobs.refuse_rest(jobs)
        return len(jobs)

    def kill_begun(self) -> list[J]:
        """Forget all jobs and kill their greenlets, but for this greenlet's own; return them. Does not wait.

        The caller waits for the greenlets, which may not die at once, then calls ``jobs.refuse_rest`` with the result.
        """
        current = gevent.getcurrent()
        # The caller's own goes on: it is what ends the others.
        jobs = [job for job in self.lines if job.greenlet is not current]
        self.lines.clear()
        self.waiting.clear()
        self.held = 0
        self.jobs.kill(jobs)
        self.tell()
        return jobs

    def __repr__(self) -> str:
        return f"<Schedule: {len(self.lines)} connections, {self.jobs!r}, {self.queued} wait>"
