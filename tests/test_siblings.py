"""What gunicorn's workers know of each other, with processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from greentx.gunicorn.siblings import Siblings

WORKER = """
import signal, sys
from greentx.gunicorn.siblings import Siblings
siblings = Siblings(int(sys.argv[1]))
number = int(sys.argv[2])
siblings.start(number)
if sys.argv[3] == "listens":
    signal.signal(signal.SIGURG, lambda *_: siblings.pausing.stand_still())
siblings.join(number)
siblings.ready(number)
print("ready", flush=True)
for line in sys.stdin:
    print("goes on", flush=True)
"""


@pytest.fixture
def siblings() -> Iterator[Siblings]:
    """Those of this process, which is worker 10."""
    own = Siblings()
    own.start(10)
    yield own
    own.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts worker *number*, which pulls by then; *listens* is false where it is deaf to signals."""
    with ExitStack() as stack:

        def start(number: int, listens: bool = True) -> subprocess.Popen[str]:
            how = "listens" if listens else "deaf"
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(os.getpid()), str(number), how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


def until_paused(siblings: Siblings, seconds: float) -> bool:
    """Wait until all others stand still; False where they do not within *seconds*."""
    end = time.monotonic() + seconds
    while not siblings.pausing.paused():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def test_all_are_found_in_whatever_order_they_started(siblings, start):
    """Linux does not name the locks of several processes in the order of their places."""
    for number in (3, 1, 4, 2):
        start(number)
    assert siblings.pausing.pause_others(10) == 4
    siblings.pausing.resume_others(10)


def test_one_that_leaves_knows_when_all_others_stand_still(siblings, start):
    """They go on when it has left."""
    others = [start(number) for number in (2, 1)]
    siblings.pausing.pause_others(10)
    assert until_paused(siblings, 10.0)
    siblings.pausing.resume_others(10)
    for other in others:
        other.stdin.write("go on\n")
        other.stdin.flush()
        assert other.stdout.readline() == "goes on\n"


def test_one_that_does_not_stand_still_is_known(siblings, start):
    """It is told again and again, and may be busy with something that no signal ends."""
    start(1)
    start(2, listens=False)
    siblings.pausing.pause_others(10)
    assert not until_paused(siblings, 0.1)
    siblings.pausing.resume_others(10)
