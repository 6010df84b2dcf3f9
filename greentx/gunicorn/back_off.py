"""How soon a worker is made in the place of one that died: at once, and ever later where they die again and again.

gunicorn makes the next one at once, always: an application that dies while it is imported would use up the machine.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

__all__ = ["SETTLED_SECONDS", "BackOff", "Life", "pause_after"]

#: A worker that has served for so long has not died early.
SETTLED_SECONDS = 5.0

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0

# Beyond it the pause is the longest anyway.
_MOST_DOUBLINGS = 10


def pause_after(early: int, workers: int) -> float:
    """Return how many seconds a worker waits before it imports the application.

    Args:
        early: How many of those before it died early, in a row.
        workers: How many there are to be: that each of them dies once, by one cause, is one failure.
    """
    rounds = (early - 1) // max(1, workers)
    if rounds < 1:
        return 0.0
    return float(min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(rounds - 1, _MOST_DOUBLINGS)))


class Life:
    """Whether one worker has settled: its process says it, and the arbiter reads it. Made before the process."""

    def __init__(self) -> None:
        # Shared with the process that is forked.
        self._shared = mmap.mmap(-1, 1)

    @property
    def settled(self) -> bool:
        return self._shared[0] == 1

    def settle(self) -> None:
        """It has served for a while, or ends as it was told to: what comes then is not an early death."""
        self._shared[0] = 1


class BackOff:
    """What this arbiter knows of its workers.

    Attributes:
        early: How many died early, in a row.
    """

    def __init__(self) -> None:
        self.early = 0
        self._cfg: Any = None
        self._alive: list[tuple[Any, Life]] = []

    def on_new_worker(self, worker: Any, life: Life) -> float:
        """A worker is about to be made: return how many seconds it is to wait.

        Args:
            worker: gunicorn's; its ``pid`` is a number as soon as it has a process.
            life: Its own.
        """
        alive: list[tuple[Any, Life]] = []
        for one, its in self._alive:
            if _is_there(one.pid):
                alive.append((one, its))
            else:
                self.early = 0 if its.settled else self.early + 1
        self._alive = [*alive, (worker, life)]
        if worker.cfg is not self._cfg:
            # SIGHUP: whoever sent it has changed something.
            self._cfg = worker.cfg
            self.early = 0
        return pause_after(self.early, worker.cfg.workers)


def _is_there(pid: Any) -> bool:
    if not isinstance(pid, int):
        return True  # gunicorn has not forked yet
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs as somebody else
    return True
