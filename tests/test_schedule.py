"""The order of jobs, by tables without greenlets; then which greenlet handles which, and how all of it ends."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool

from greentx.handler import runners, running
from greentx.handler.jobs import Job, Lines
from greentx.handler.schedule import Schedule
from greentx.protocol.life import ENDED, Life
from greentx.protocol.request import Request

FIRST, SECOND = Life(), Life()


class Stored:
    """In the place of a stored upload."""

    path = ""
    deleted = 0

    def delete(self) -> None:
        self.deleted += 1

    def open(self) -> Any: ...

    def give_away(self) -> None: ...


def job(name: str, life: Life | None = FIRST, *, stored: Stored | None = None) -> Job:
    """A job; the first letter of its name is its connection."""
    request = Request("u", name[0], f"/{name}", {"METHOD": "GET"})
    request.life = life
    request.stored = stored
    no_connection: Any = None
    return Job(no_connection, request, request.sid)


def name_of(one: Job | None) -> str:
    return "" if one is None else one.request.path[1:]


def wait_until(condition) -> None:
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


# -- the order, without greenlets --------------------------------------------------------------------------------------

#: Steps on Lines, and what each returns: a name alone is added ("first" or ""), "-a1" ends a1 (what is next), "!a" has
#: the client of "a" gone (what is handled), "?a" asks for the last one. A capital letter is the next life.
STEPS = [
    ("a1=first -a1=", 0),
    ("a1=first a2= a3= -a1=a2 -a2=a3 -a3= a4=first", 0),
    ("a1=first b1=first a2= -b1= -a1=a2", 0),
    ("a1=first a2= ?a=a2 -a1=a2 ?a=a2 -a2= ?a=", 0),
    ("a1=first a2= a3= !a=a1 -a1=", 2),
    ("!a= a1=first !a=a1 -a1=", 0),
    ("a1=first A1=first -a1= A2= -A1=A2 -A2=", 0),
    ("a1=first a2= A1=first A2= -A1=A2 -a1=a2 -a2= -A2=", 0),
    ("a1=first A1=first !a=A1 -A1= -a1=", 0),
    ("a1=first -b1= -a2= a3= -a1=a3", 0),
]


@pytest.mark.parametrize(("steps", "dropped"), STEPS)
def test_lines(steps: str, dropped: int) -> None:
    """One after the other within a connection and a life; nothing holds up the others."""
    lines: Lines[Job] = Lines()
    known: dict[str, Job] = {}
    uploads: list[Stored] = []

    def get(name: str) -> Job:
        if name not in known:
            uploads.append(Stored())
            known[name] = job(name.lower(), SECOND if name[0].isupper() else FIRST, stored=uploads[-1])
        return known[name]

    def named(one: Job | None) -> str:
        return next((name for name, each in known.items() if each is one), "")

    for step in steps.split():
        action, _, expected = step.partition("=")
        if action[0] == "-":
            ended = get(action[1:])
            assert named(lines.finish(ended)) == expected
            assert ended not in lines
        elif action[0] == "!":
            assert named(lines.drop_behind(("u", action[1]))) == expected
        elif action[0] == "?":
            assert named(lines.last(("u", action[1]))) == expected
        else:
            assert lines.add(get(action)) == (expected == "first")
            assert get(action) in lines
        assert lines.behind == len(list(lines)) - len(lines)
    assert sum(one.deleted for one in uploads) == dropped


def test_what_ends_a_connection_joins_its_line() -> None:
    """Its life is over already, whichever that was."""
    lines: Lines[Job] = Lines()
    assert lines.add(job("a1"))
    assert not lines.add(job("a2", ENDED))
    assert len(lines) == 1 and lines.behind == 1


def test_what_is_moot_is_dropped_when_its_turn_comes() -> None:
    """An answer to it would go nowhere."""

    class Moot(Job):
        moot = True  # type: ignore[assignment]  # a property elsewhere

    lines: Lines[Job] = Lines()
    stored = Stored()
    first, last = job("a1"), job("a3")
    middle = job("a2", stored=stored)
    for one in (first, Moot(middle.connection, middle.request, middle.sid), last):
        lines.add(one)
    assert lines.finish(first) is last and lines.behind == 0 and stored.deleted == 1


# -- with greenlets ----------------------------------------------------------------------------------------------------


class Handling:
    """Handlers that wait until they are let go, by name; and what became of the jobs."""

    def __init__(self, **options: Any) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.refused: list[str] = []
        self.greenlets: list[Any] = []
        self.go: dict[str, Event] = {}
        self.lingered: list[tuple[str, bool]] = []
        self.schedule: Schedule[Job] = Schedule(self.handle, self.refuse, self.linger)
        self.schedule.jobs.use_pool(**options)

    def handle(self, one: Job) -> None:
        name = name_of(one)
        self.begun.append(name)
        self.greenlets.append(gevent.getcurrent())
        self.go.setdefault(name, Event()).wait()
        self.ended.append(name)

    def refuse(self, one: Job) -> None:
        self.refused.append(name_of(one))

    def linger(self, one: Job, wait: bool) -> None:
        self.lingered.append((name_of(one), wait))
        if wait:
            self.go.setdefault(f"{name_of(one)} lingers", Event()).wait()

    def add(self, *names: str) -> list[Job]:
        jobs = [job(name) for name in names]
        for one in jobs:
            self.schedule.add(one)
        return jobs

    def let_go(self, *names: str) -> None:
        for name in names:
            self.go.setdefault(name, Event()).set()

    def check(self, begun: str, waiting: int, queued: int) -> None:
        wait_until(lambda: self.begun == begun.split())
        gevent.sleep(0)
        assert self.begun == begun.split()
        assert (len(self.schedule.waiting), self.schedule.queued) == (waiting, queued)

    def finish(self, *names: str) -> None:
        self.let_go(*names)
        with gevent.Timeout(5):
            self.schedule.join()
        self.schedule.stop()
        assert not self.schedule.lines and not self.schedule.queued and not self.schedule.jobs.running


POOLS: dict[str, Any] = {
    "limit": lambda: {"limit": 2},
    "pool": lambda: {"pool": Pool(2)},
}


@pytest.mark.parametrize("kind", POOLS)
def test_connections_take_turns_in_front_of_the_pool(kind: str) -> None:
    """What is behind another one of its connection does not wait there."""
    handling = Handling(**POOLS[kind]())
    handling.add("a1", "a2", "b1", "c1", "d1")
    handling.check("a1 b1", waiting=2, queued=3)
    handling.let_go("a1")
    handling.check("a1 b1 c1", waiting=2, queued=2)
    handling.let_go("b1", "c1")
    handling.check("a1 b1 c1 d1 a2", waiting=0, queued=0)
    handling.finish("d1", "a2")
    assert sorted(handling.ended) == ["a1", "a2", "b1", "c1", "d1"]


def test_others_may_use_the_pool() -> None:
    """When they leave it, what waits goes on."""
    pool = Pool(1)
    go = Event()
    pool.spawn(go.wait)
    handling = Handling(pool=pool)
    handling.add("a1")
    gevent.sleep(0.01)  # what must not happen has no event
    handling.check("", waiting=1, queued=1)
    go.set()
    handling.check("a1", waiting=0, queued=0)
    assert pool.full()
    handling.finish("a1")
    assert pool.free_count() == 1


def test_a_connection_keeps_its_greenlet_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get one of their own; one that waits for a job holds no request and keeps no place in a pool."""
    monkeypatch.setattr(runners, "PARK_SECONDS", 0.02)
    pool = Pool(5)
    handling = Handling(pool=pool)
    handling.let_go("a1", "a2", "a3", "b1")
    for name in ("a1", "a2", "b1"):
        handling.add(name)
        wait_until(lambda: len(handling.ended) == len(handling.begun) and not handling.schedule.lines)
    first, second, other = handling.greenlets
    assert first is second and first is not other
    assert pool.free_count() == 5 and not first.dead
    wait_until(lambda: first.dead and other.dead)
    handling.add("a3")
    handling.finish()
    assert handling.greenlets[3] is not first


def test_a_client_that_has_gone_needs_no_greenlet() -> None:
    """Its number is not used again in this life."""
    handling = Handling()
    (one,) = handling.add("a1")
    handling.check("a1", waiting=0, queued=0)
    one.request.life = ENDED
    handling.let_go("a1")
    wait_until(lambda: handling.greenlets[0].dead)
    handling.finish()


@pytest.mark.parametrize("when", ["before its first job", "between two jobs"])
def test_a_job_whose_greenlet_is_killed_before_it_begins_is_refused(when: str) -> None:
    """It is not begun anew in another greenlet: whoever killed that meant the job."""
    handling = Handling(limit=1)
    handling.let_go("a1")
    if when == "between two jobs":
        handling.add("a1")
        wait_until(lambda: handling.ended and not handling.schedule.lines)
        handling.greenlets[0].kill(block=False)
    one, _ = handling.add("a2", "b1")
    one.greenlet.kill(block=False)
    wait_until(lambda: handling.refused)
    handling.check("a1 b1" if when == "between two jobs" else "b1", waiting=0, queued=0)
    handling.finish("b1")
    assert handling.refused == ["a2"]


def test_a_job_that_is_killed_is_over() -> None:
    """The next one of its connection does not die with it."""
    handling = Handling()
    one, _ = handling.add("a1", "a2")
    handling.check("a1", waiting=0, queued=1)
    one.greenlet.kill()
    handling.check("a1 a2", waiting=0, queued=0)
    handling.finish("a2")
    assert handling.ended == ["a2"] and handling.refused == []


@pytest.mark.parametrize("spawn", [None, gevent.spawn, gevent.spawn_raw], ids=["own", "spawn", "spawn_raw"])
def test_a_kill_refuses_what_has_not_begun(spawn: Any) -> None:
    """In whatever greenlets: what has begun answers for itself."""
    handling = Handling(limit=2)
    if spawn is not None:
        handling.schedule.jobs.use_pool(limit=2, launch=lambda one: handling.schedule.jobs.spawn_by(spawn, one))
    handling.add("a1", "a2", "b1", "c1")
    handling.check("a1 b1", waiting=1, queued=2)
    stored = Stored()
    late = job("d1", stored=stored)
    handling.schedule.add(late)
    assert handling.schedule.kill(1) == 5
    wait_until(lambda: all(one.dead for one in handling.greenlets))
    assert sorted(handling.refused) == ["a2", "c1", "d1"] and handling.ended == []
    assert stored.deleted == 1
    handling.finish()


def test_what_is_killed_between_its_place_and_its_beginning_is_refused() -> None:
    """No line of its greenlet ran, so that could not answer."""
    handling = Handling()
    handling.add("a1")
    assert handling.schedule.kill(1) == 1
    assert handling.refused == ["a1"] and handling.begun == []
    handling.finish()


def test_a_handler_does_not_wait_for_itself() -> None:
    """Nor for what can only begin after it; others' ends it waits for."""
    handling = Handling(limit=2)
    seen: list[Any] = []

    def joining(one: Job) -> None:
        if name_of(one) == "a1":
            handling.schedule.join()
            seen.append(list(handling.ended))
            seen.append(handling.schedule.kill(1))
        else:
            handling.handle(one)

    handling.schedule = Schedule(joining, handling.refuse)
    handling.schedule.jobs.use_pool(limit=2)
    handling.add("a1", "a2", "b1")
    handling.check("b1", waiting=0, queued=1)
    handling.let_go("b1")
    wait_until(lambda: len(seen) == 2)
    assert seen == [["b1"], 1] and handling.refused == ["a2"]
    handling.schedule.stop()


def test_nothing_begins_while_it_is_paused() -> None:
    """What runs goes on; the rest begins in its order."""
    handling = Handling()
    handling.add("a1")
    handling.check("a1", waiting=0, queued=0)
    handling.schedule.pause()
    handling.add("a2", "b1", "c1")
    handling.let_go("a1")
    wait_until(lambda: handling.ended)
    handling.check("a1", waiting=3, queued=3)
    handling.schedule.resume()
    handling.check("a1 b1 c1 a2", waiting=0, queued=0)
    handling.finish("a2", "b1", "c1")


def test_a_client_that_leaves_takes_its_jobs_along() -> None:
    """At once, with their stored uploads, wherever they wait; and from the middle of the queue."""
    handling = Handling(limit=1)
    uploads = [Stored() for _ in range(3)]
    handling.add("a1")
    behind, waiting, also = job("a2", stored=uploads[0]), job("b1", stored=uploads[1]), job("b2", stored=uploads[2])
    for one in (behind, waiting, also):
        handling.schedule.add(one)
    handling.add("c1")
    handling.check("a1", waiting=2, queued=4)
    first = handling.schedule.drop_behind(("u", "a"))
    assert name_of(first) == "a1" and uploads[0].deleted == 1
    assert handling.schedule.drop_behind(("u", "b")) is waiting and waiting in handling.schedule.waiting
    handling.schedule.drop(waiting)
    assert [one.deleted for one in uploads] == [1, 1, 1]
    handling.let_go("a1")
    handling.check("a1 c1", waiting=0, queued=0)
    handling.finish("c1")


def test_who_waits_for_space_is_told() -> None:
    """When jobs begin, end, or are dropped."""
    handling = Handling(limit=1)
    handling.add("a1", "a2", "b1")
    waiter = gevent.spawn(handling.schedule.wait_for_space, 1, 1 << 30)
    handling.check("a1", waiting=1, queued=2)
    handling.let_go("a1")
    gevent.sleep(0.01)  # what must not happen has no event
    assert not waiter.dead
    handling.let_go("b1")
    waiter.get(timeout=5)
    handling.finish("a2")


def test_what_lingers_keeps_its_line_and_no_place() -> None:
    """Others go on; the next one of its connection waits for the end."""
    handling = Handling(limit=1)
    one, _, _ = handling.add("a1", "a2", "b1")
    one.lingers = True
    handling.let_go("a1")
    handling.check("a1 b1", waiting=0, queued=1)
    assert handling.lingered == [("a1", True)]
    handling.let_go("a1 lingers")
    handling.check("a1 b1", waiting=1, queued=1)
    handling.finish("b1", "a2")
    assert handling.begun == ["a1", "b1", "a2"]


def test_greenlets_that_linger_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it what lingers is ended at once, as it is where the schedule is killed."""
    monkeypatch.setattr(running, "MAX_LINGERING", 1)
    handling = Handling()
    for one in handling.add("a1", "b1", "c1"):
        one.lingers = True
    handling.let_go("a1", "b1")
    wait_until(lambda: len(handling.lingered) == 2)
    assert handling.lingered == [("a1", True), ("b1", False)]
    assert handling.schedule.kill(1) == 2
    assert ("c1", False) in handling.lingered
    handling.finish()


def test_a_way_to_spawn_that_fails_loses_nobody(greenlet_errors: list[Any]) -> None:
    """It is the application's; the job is refused, and the next one tried."""

    def fails(one: Job) -> None:
        raise RuntimeError("of this test")

    handling = Handling()
    handling.schedule.jobs.use_pool(launch=fails)
    handling.add("a1", "a2", "b1")
    assert [str(error) for _, error in greenlet_errors] == ["of this test"] * 3
    greenlet_errors.clear()
    assert handling.refused == ["a1", "a2", "b1"]
    handling.finish()


class Waiters(Handling):
    """Handlers that wait for their browsers until "<name> reads" is let go, and then as all do."""

    def handle(self, one: Job) -> None:
        jobs = self.schedule.jobs
        assert jobs.job_of(gevent.getcurrent()) is one
        with jobs.aside(one):
            self.go.setdefault(f"{name_of(one)} reads", Event()).wait()
        super().handle(one)


@pytest.mark.parametrize("pool", [False, True])
def test_who_waits_for_its_browser_has_no_place_in_the_pool(pool: bool) -> None:
    """Others are handled meanwhile; when it reads again it goes on, in a place where there is one."""
    handling = Waiters(**({"pool": Pool(2)} if pool else {"limit": 2}))
    jobs = handling.schedule.jobs
    handling.add("a1", "b1", "c1", "d1")
    wait_until(lambda: len(jobs.set_aside) == 4)
    assert not handling.schedule.waiting and not jobs.running and len(jobs.greenlets()) == 4
    handling.let_go("a1 reads", "b1 reads", "c1 reads")
    wait_until(lambda: len(handling.begun) == 3)
    assert len(jobs.running) == 2 and len(jobs.set_aside) == 2
    assert jobs.is_full()
    handling.add("e1")
    assert handling.schedule.queued == 1
    handling.let_go("a1", "b1", "c1", "d1 reads", "d1", "e1 reads", "e1")
    wait_until(lambda: len(handling.ended) == 5)
    assert handling.schedule.is_idle() and not jobs.set_aside and not jobs.running
    assert jobs.pool is None or jobs.pool.free_count() == 2
    handling.schedule.stop()


@pytest.mark.parametrize("options", [{"limit": 1}, {"pool": Pool(1)}])
def test_where_one_is_to_run_at_a_time_it_keeps_its_place_while_it_waits(options: dict[str, Any]) -> None:
    """The application may count on that."""
    handling = Waiters(**options)
    handling.add("a1", "b1")
    wait_until(lambda: "a1 reads" in handling.go)
    assert handling.schedule.queued == 1
    handling.let_go("a1 reads", "a1", "b1 reads", "b1")
    wait_until(lambda: handling.ended == ["a1", "b1"])
    handling.schedule.stop()


def test_who_waits_for_its_browser_is_killed_like_the_others() -> None:
    """It is not forgotten, and not counted twice."""
    handling = Waiters(limit=2)
    handling.add("a1", "b1", "c1")
    wait_until(lambda: len(handling.schedule.jobs.set_aside) == 3)
    assert handling.schedule.kill(5) == 3
    assert not handling.schedule.jobs.set_aside and not handling.schedule.jobs.running


def test_its_state_is_told() -> None:
    """For logs."""
    handling = Handling(limit=1)
    handling.add("a1", "b1")
    assert repr(handling.schedule) == "<Schedule: 2 connections, <RunningJobs: 1 run, 0 aside, 0 linger>, 1 wait>"
    handling.finish("a1", "b1")
