"""When a worker is made in the place of one that died."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from greentx.gunicorn.back_off import BackOff, Life, pause_after


@pytest.mark.parametrize(
    ("early", "workers", "seconds"),
    [
        (0, 1, 0.0),
        (1, 1, 0.0),
        (2, 1, 0.5),
        (3, 1, 1.0),
        (6, 1, 8.0),
        (7, 1, 15.0),
        (100_000, 1, 15.0),
        # All of them by one cause are one failure.
        (4, 4, 0.0),
        (5, 4, 0.5),
        (8, 4, 0.5),
        (9, 4, 1.0),
        # Where gunicorn's are told to be none.
        (2, 0, 0.5),
    ],
)
def test_each_round_of_early_deaths_doubles_the_pause(early: int, workers: int, seconds: float) -> None:
    """The first one is replaced at once."""
    assert pause_after(early, workers) == seconds


class Workers:
    """Some of one arbiter, one after the other."""

    def __init__(self) -> None:
        self.back_off = BackOff()
        self.cfg = SimpleNamespace(workers=1)
        self.last: Any = None
        self.life = Life()

    def make(self) -> float:
        """Make the next one; return how long it waits."""
        self.last = SimpleNamespace(pid="[booting]", cfg=self.cfg)
        self.life = Life()
        return self.back_off.on_new_worker(self.last, self.life)

    def die(self) -> None:
        """The last one has run, and has gone."""
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        self.last.pid = process.pid


@pytest.fixture
def workers() -> Workers:
    return Workers()


def test_those_that_are_there_do_not_count(workers: Workers) -> None:
    """Nor one that has no process yet."""
    assert [workers.make() for _ in range(5)] == [0.0] * 5
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        workers.last.pid = process.pid
        assert [workers.make(), workers.make()] == [0.0, 0.0]
    assert workers.back_off.early == 0


def test_early_deaths_are_counted_until_one_settles(workers: Workers) -> None:
    """Or until the settings are read again, by SIGHUP."""
    for pause in (0.0, 0.0, 0.5, 1.0):
        assert workers.make() == pause
        workers.die()
    assert workers.make() == 2.0
    workers.life.settle()
    workers.die()
    for pause in (0.0, 0.0, 0.5):
        assert workers.make() == pause
        workers.die()
    workers.cfg = SimpleNamespace(workers=1)
    for pause in (0.0, 0.0, 0.5):
        assert workers.make() == pause
        workers.die()
