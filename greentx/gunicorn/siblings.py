"""What gunicorn's workers know of each other."""

from __future__ import annotations

import os
import struct
from enum import Enum

from ..wsgi.standstill import Others
from .locks import Kind, LockFile
from .pausing import Pausing

__all__ = ["Siblings", "Successor"]

_NUMBER = struct.Struct("q")


class Successor(Enum):
    """What is known of the worker that takes the place of one that leaves."""

    NONE = "nobody has to be waited for: others are ready, or none starts"
    STARTS = "one starts, and no other is ready"
    EXPECTED = "the arbiter has numbered one, which is not there yet, or failed at once"


class Siblings:
    """The workers of one arbiter: which of them start, are ready, serve and pull.

    The arbiter knows how many there are and does not tell them. So they share a file: a worker locks one byte from its
    start until requests arrive, one from then on until it is to end, one while it serves, and one while it pulls. What
    is written into the file is the newest worker's number, and behind that a byte for each one that was there.

    Args:
        before: The arbiter that this one takes the place of (SIGUSR2): its workers are siblings, too.

    Attributes:
        pausing: How one that leaves has the others stand still.
    """

    def __init__(self, before: int | None = None) -> None:
        self._locks = LockFile(before)
        self._file = self._locks.descriptor
        self.pausing = Pausing(self._locks)

    def close(self) -> None:
        """Let go of the file, and of this process's locks."""
        self._locks.close()

    def next_number(self) -> int:
        """The arbiter is about to start a worker. Returns its number, which no other one has."""
        number = self._newest() + 1
        os.pwrite(self._file, _NUMBER.pack(number), 0)
        return number

    def _newest(self) -> int:
        (newest,) = _NUMBER.unpack(os.pread(self._file, _NUMBER.size, 0) or bytes(_NUMBER.size))
        return int(newest)

    def start(self, number: int) -> None:
        """This worker is there, and starts."""
        self.pausing.number = number
        self._locks.lock(Kind.STARTS, number)
        os.pwrite(self._file, b"1", _NUMBER.size + number)

    def join(self, number: int) -> None:
        """This worker serves, and is about to pull."""
        self._locks.lock(Kind.SERVES, number)
        self._locks.lock(Kind.PULLS, number)
        # It was not there when others were told.
        self.pausing.stand_still()

    def ready(self, number: int) -> None:
        """Requests arrive at this worker."""
        self._locks.lock(Kind.READY, number)
        self._locks.unlock(Kind.STARTS, number)

    def leave(self, number: int) -> None:
        """It serves no more, but pulls still, up to its end."""
        for kind in (Kind.SERVES, Kind.STARTS, Kind.READY):
            self._locks.unlock(kind, number)

    def may_leave(self) -> bool:
        """Return whether others are ready, none of which leaves of its own accord before this one has ended."""
        if not self._locks.others(Kind.READY):
            return False
        try:
            self._locks.lock(Kind.LEAVES)
        except BlockingIOError:
            return False
        return True

    def successor(self) -> Successor:
        """Return what is known of the worker that takes the place of this one."""
        if self._locks.others(Kind.READY):
            return Successor.NONE
        if os.pread(self._file, 1, _NUMBER.size + self._newest()) != b"1":
            return Successor.EXPECTED
        return Successor.STARTS if self.starting() else Successor.NONE

    def starting(self) -> bool:
        """Return whether others start."""
        return bool(self._locks.others(Kind.STARTS))

    def serve(self) -> bool:
        """Return whether others serve."""
        return bool(self._locks.others(Kind.SERVES))

    def pull(self) -> bool:
        """Return whether others pull."""
        return bool(self._locks.others(Kind.PULLS))

    def others(self, number: int, *, shared: bool) -> Others:
        """Return what worker *number* has to know of the others when it leaves.

        Args:
            shared: Other programs serve the same handler entry, too. Nothing is known of them.
        """
        return _Others(self, number, shared)


class _Others(Others):
    """What one of the workers has to know of the others when it leaves."""

    def __init__(self, siblings: Siblings, number: int, shared: bool) -> None:
        super().__init__(serve=shared)
        self._siblings = siblings
        self._number = number

    def serve(self) -> bool:
        return super().serve() or self._siblings.serve() or self._siblings.starting()

    def pause(self) -> int:
        return self._siblings.pausing.pause_others(self._number)

    def paused(self) -> bool:
        return self._siblings.pausing.paused()

    def resume(self) -> None:
        self._siblings.pausing.resume_others(self._number)
