"""What gunicorn's workers know of each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable

from gevent import monkey

from ..wsgi.standstill import Others

__all__ = ["Siblings"]

# So long a worker stands still at the most while another one leaves, whatever happens, and how often it looks.
_MAX_STANDSTILL_SECONDS = 0.6
_LOOK_SECONDS = 0.001

# Not gevent's: the whole process is to stand still.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")


class Siblings:
    """The workers of one arbiter, who know of each other by a file that all have inherited from it.

    The arbiter knows how many there are and does not tell them. A worker locks one byte from its start until requests
    arrive, one from then on until it is to end, one while it serves, one while it pulls, one while all others are to
    stand still, and one while it stands still itself; a lock goes with its process, however that ends. What is written
    into the file is the newest worker's number, and behind that a byte for each one that was there.

    Args:
        before: The arbiter that this one takes the place of (SIGUSR2): its workers are siblings, too.
    """

    _FLOCK = "hhqqi"  # struct flock of fcntl(2)
    _SPAN = 2**40  # bytes, one for each worker that there will ever be
    _SERVES, _PULLS, _STARTS, _READY, _PAUSES, _STANDS, _LEAVES = range(0, 7 * _SPAN, _SPAN)
    _NUMBER = struct.Struct("q")

    _NAME = "greentx-workers"

    def __init__(self, before: int | None = None) -> None:
        found = None if before is None else self._of(before)
        # It has no name, so nothing is left behind.
        self._file = os.memfd_create(self._NAME) if found is None else found
        # This worker's, once it has started.
        self._number: int | None = None
        self._stands = False

    def close(self) -> None:
        """Let go of the file, and of this process's locks."""
        os.close(self._file)

    def _of(self, arbiter: int) -> int | None:
        """Open another arbiter's file; ``None`` where there is none."""
        folder = f"/proc/{arbiter}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{self._NAME}"):
                    return os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
        return None

    def next_number(self) -> int:
        """The arbiter is about to start a worker. Returns its number, which no other one has."""
        number = self._newest() + 1
        os.pwrite(self._file, self._NUMBER.pack(number), 0)
        return number

    def _newest(self) -> int:
        (newest,) = self._NUMBER.unpack(os.pread(self._file, self._NUMBER.size, 0) or bytes(self._NUMBER.size))
        return int(newest)

    def start(self, number: int) -> None:
        """This worker is there, and starts."""
        self._number = number
        self._lock(self._STARTS + number)
        os.pwrite(self._file, b"1", self._NUMBER.size + number)

    def join(self, number: int) -> None:
        """This worker serves, and is about to pull."""
        self._lock(self._SERVES + number)
        self._lock(self._PULLS + number)
        # It was not there when others were told.
        self.stand_still()

    def ready(self, number: int) -> None:
        """Requests arrive at this worker."""
        self._lock(self._READY + number)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._STARTS + number)

    def leave(self, number: int) -> None:
        """It serves no more, but pulls still, up to its end."""
        for begin in (self._SERVES, self._STARTS, self._READY):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, begin + number)

    def may_leave(self) -> bool:
        """Return whether others are ready, none of which leaves of its own accord before this one has ended."""
        if not self._locked(self._READY):
            return False
        try:
            self._lock(self._LEAVES)
        except BlockingIOError:
            return False
        return True

    def successor_starts(self) -> bool | None:
        """Return whether no other is ready, and one starts; ``None`` where there will be one, or it failed at once."""
        if self._locked(self._READY):
            return False
        if os.pread(self._file, 1, self._NUMBER.size + self._newest()) != b"1":
            return None
        return self.starting()

    def starting(self) -> bool:
        """Return whether others start."""
        return bool(self._locked(self._STARTS))

    def serve(self) -> bool:
        """Return whether others serve."""
        return bool(self._locked(self._SERVES))

    def pull(self) -> bool:
        """Return whether others pull."""
        return bool(self._locked(self._PULLS))

    def others(self, number: int, *, shared: bool) -> Others:
        """Return what worker *number* has to know of the others when it leaves.

        Args:
            shared: Other programs serve the same handler entry, too. Nothing is known of them.
        """
        return _Others(self, number, shared)

    def pause_others(self, number: int) -> int:
        """Worker *number* leaves: have all others that pull stand still. Returns how many there are."""
        self._lock(self._PAUSES + number)
        # It answers nothing meanwhile, as one of them.
        self._stand(number)
        self.paused()
        return len(self._locked(self._PULLS))

    def paused(self) -> bool:
        """Return whether all others that pull stand still; those that do not are told again."""
        left = self._locked(self._PULLS).items() - self._locked(self._STANDS).items()
        for _, pid in left:
            # By default it is ignored, so that it harms nobody who is not there yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGURG)
        return not left

    def resume_others(self, number: int) -> None:
        """It has left: they go on."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._PAUSES + number)
        self._stands = False
        # One that has begun meanwhile, as when all of them end, could not stop us before.
        self.stand_still()

    def stand_still(self) -> None:
        """Block this process while another one wants it; one that leaves itself stands still already."""
        number = self._number
        if self._stands or number is None:
            return
        until = time.monotonic() + _MAX_STANDSTILL_SECONDS
        while self._locked(self._PAUSES) and time.monotonic() < until:
            if not self._stands:
                self._stand(number)
            _sleep(_LOOK_SECONDS)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._STANDS + number)
        self._stands = False

    def _stand(self, number: int) -> None:
        # Before the lock: the next signal may come as soon as that is there.
        self._stands = True
        self._lock(self._STANDS + number)

    def _lock(self, byte: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)

    def _locked(self, kind: int) -> dict[int, int]:
        """Return the other workers that hold a lock of that kind: their numbers, and their processes."""
        found: dict[int, int] = {}
        spans = [(kind, kind + self._SPAN)]
        while spans:
            begin, end = spans.pop()
            if begin == end:
                continue
            asked = struct.pack(self._FLOCK, fcntl.F_WRLCK, os.SEEK_SET, begin, end - begin, 0)
            lock, _, start, _, pid = struct.unpack(self._FLOCK, fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
            if lock != fcntl.F_UNLCK:
                found[start - kind] = pid
                # Not the lowest one: Linux names that of the process which was the first to lock anything.
                spans += [(begin, start), (start + 1, end)]
        return found


class _Others(Others):
    """What one of the workers has to know of the others when it leaves."""

    def __init__(self, siblings: Siblings, number: int, shared: bool) -> None:
        super().__init__(serve=shared)
        self._siblings = siblings
        self._number = number

    def serve(self) -> bool:
        return super().serve() or self._siblings.serve() or self._siblings.starting()

    def pause(self) -> int:
        return self._siblings.pause_others(self._number)

    def paused(self) -> bool:
        return self._siblings.paused()

    def resume(self) -> None:
        self._siblings.resume_others(self._number)
