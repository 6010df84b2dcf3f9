"""Greenlets that last: an error ends one attempt, and whoever asks is told while nothing works."""

from __future__ import annotations

import logging

import gevent
import pytest
import zmq
from gevent.event import Event
from plain_server import until

from greentx.errors import ForkError
from greentx.transport import Context, Supervised


class Work:
    """Raises what it is given, then waits until it is told to return.

    Attributes:
        errors: What is still to be raised, the last one first.
        begun: How often it was begun.
    """

    def __init__(self, *errors):
        self.errors = list(errors)
        self.begun = 0
        self.ended = Event()
        self.changes = []
        self.keeper = Supervised("work", self, on_change=self.changed, retry=0.001)

    def changed(self):
        self.changes.append(self.keeper.trouble)

    def __call__(self):
        self.begun += 1
        if self.errors:
            raise self.errors.pop()
        self.keeper.works()
        self.ended.wait()


@pytest.fixture
def start():
    """A function that starts a Supervised with a Work, which is killed after the test."""
    works = []

    def begin(*errors):
        work = Work(*errors)
        works.append(work)
        work.keeper.start()
        return work

    yield begin
    for work in works:
        work.keeper.kill()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), zmq.ZMQError(zmq.EFAULT), OSError(24, "Too many open files"), RecursionError("deep"), ValueError()],
    ids=repr,
)
def test_work_that_raises_is_begun_again(start, error, caplog):
    """The trouble is told when it begins and when it has ended; one failure is an ERROR."""
    work = start(error)
    until(lambda: work.begun == 2)
    assert work.changes == [f"work: {error!r}", ""]
    assert work.keeper.trouble == ""
    assert {record.levelno for record in caplog.records} == {logging.ERROR, logging.WARNING}


def test_work_that_goes_on_failing_is_critical(start, caplog):
    """From the third time in a row on, by name; and it is tried again all the same."""
    work = start(*[MemoryError()] * 4)
    until(lambda: work.keeper.failures == 3)
    assert work.keeper.trouble == "work: MemoryError()"
    assert "work does not work, it failed 3 times in a row: MemoryError()" in caplog.text
    until(lambda: not work.keeper.trouble)
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.ERROR, logging.ERROR, logging.CRITICAL, logging.CRITICAL, logging.WARNING]


def test_the_pause_grows(start, caplog):
    """So that what cannot be repaired costs little; the log says how long it is."""
    work = start(*[MemoryError()] * 6)
    until(lambda: work.begun == 7)
    pauses = [record.args[-1] for record in caplog.records if record.levelno >= logging.ERROR]
    assert pauses == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.008, 0.008])


def test_a_timeout_that_was_left_running_is_no_failure(start, caplog):
    """Also where it comes up in a pause."""
    work = start(gevent.Timeout(1))
    until(lambda: work.begun == 2)
    assert work.changes == []
    assert "a Timeout that was left running came up" in caplog.text


def test_no_memory_for_the_log_is_no_end(start, monkeypatch):
    """Going on matters more than the line."""

    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(logging.Logger, "log", fail)
    work = start(MemoryError())
    until(lambda: work.begun == 2)


@pytest.mark.parametrize("where", ["on_change", "on_failure"])
def test_what_is_told_may_fail_too(where, caplog):
    """It is logged."""

    def fail(*args):
        raise ZeroDivisionError

    work = Work(MemoryError())
    keeper = Supervised("other", work, **{where: fail}, retry=0.001)
    keeper.start()
    until(lambda: work.begun == 2)
    keeper.kill()
    assert "other: ZeroDivisionError()" in caplog.text


def test_one_that_is_told_to_end_makes_no_new_attempt(start):
    """It does not wait for the end of the pause."""
    work = Work(MemoryError())
    keeper = Supervised("slow", work, retry=60)
    keeper.start()
    until(lambda: keeper.failures)
    keeper.join(5)
    assert keeper.greenlet.dead
    assert work.begun == 1


def test_one_that_somebody_else_kills_says_so(start, caplog):
    """Nothing will start it again: CRITICAL, and the trouble stays."""
    work = start()
    until(lambda: work.begun)
    work.keeper.greenlet.kill()
    assert "GreenletExit" in work.keeper.trouble
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]


def test_a_forked_child_ends_what_is_its_parents(start):
    """It goes on in the parent."""
    work = start(ForkError("the parent's"))
    work.keeper.greenlet.join(5)
    assert work.begun == 1


def test_one_that_never_began_can_be_ended():
    """Nobody waits for it."""
    keeper = Supervised("idle", lambda: None)
    keeper.join(5)
    keeper.kill(5)


def test_what_the_hub_does_with_a_socket_may_fail(caplog, monkeypatch):
    """The descriptor tells of a change once: so the socket is looked at again, and not in every round of the loop."""
    monkeypatch.setattr("greentx.transport.context.LOOK_AGAIN_SECONDS", 0.01)
    context = Context("test", lambda: None, linger=0)
    got, errors = [], [MemoryError(), MemoryError()]

    def look():
        if errors:
            raise errors.pop()
        try:
            while True:
                got.append(pull.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass

    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    context.connect(push, context.bind(pull, "tcp://127.0.0.1:*"))
    context.watch(pull, look)
    push.send(b"1")
    until(lambda: got)
    push.send(b"2")
    until(lambda: len(got) == 2)
    context.close(linger=0)
    assert caplog.text.count("its socket is looked at again in 0.0 s") == 2
