"""How a worker that leaves has the others stand still for a moment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from gevent import monkey

from .locks import Kind, LockFile

__all__ = ["Pausing"]

# So long a worker stands still at the most while another one leaves, whatever happens, and how often it looks.
_MAX_STANDSTILL_SECONDS = 0.6
_LOOK_SECONDS = 0.001

# Not gevent's: the whole process is to stand still.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")


class Pausing:
    """One worker's part in it: it pauses the others, and stands still for them.

    Args:
        locks: Of all workers.

    Attributes:
        number: This worker's, once it has started.
    """

    def __init__(self, locks: LockFile) -> None:
        self.number: int | None = None
        self._locks = locks
        self._stands = False

    def pause_others(self, number: int) -> int:
        """Worker *number* leaves: have all others that pull stand still. Returns how many there are."""
        self._locks.lock(Kind.PAUSES, number)
        # It answers nothing meanwhile, as one of them.
        self._stand(number)
        self.paused()
        return len(self._locks.others(Kind.PULLS))

    def paused(self) -> bool:
        """Return whether all others that pull stand still; those that do not are told again."""
        left = self._locks.others(Kind.PULLS).items() - self._locks.others(Kind.STANDS).items()
        for _, pid in left:
            # By default it is ignored, so that it harms nobody who is not there yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGURG)
        return not left

    def resume_others(self, number: int) -> None:
        """It has left: they go on."""
        self._locks.unlock(Kind.PAUSES, number)
        self._stands = False
        # One that has begun meanwhile, as when all of them end, could not stop us before.
        self.stand_still()

    def stand_still(self) -> None:
        """Block this process while another one wants it; one that leaves itself stands still already."""
        number = self.number
        if self._stands or number is None:
            return
        until = time.monotonic() + _MAX_STANDSTILL_SECONDS
        while self._locks.others(Kind.PAUSES) and time.monotonic() < until:
            if not self._stands:
                self._stand(number)
            _sleep(_LOOK_SECONDS)
        self._locks.unlock(Kind.STANDS, number)
        self._stands = False

    def _stand(self, number: int) -> None:
        # Before the lock: the next signal may come as soon as that is there.
        self._stands = True
        self._locks.lock(Kind.STANDS, number)
