"""A file whose bytes processes lock: what each says of itself for as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from enum import IntEnum

__all__ = ["Kind", "LockFile"]

_FLOCK = "hhqqi"  # struct flock of fcntl(2)
_SPAN = 2**40  # bytes, one for each worker that there will ever be
_NAME = "greentx-workers"


class Kind(IntEnum):
    """What a worker says by a lock."""

    SERVES = 0
    PULLS = 1
    STARTS = 2
    READY = 3
    PAUSES = 4
    STANDS = 5
    LEAVES = 6


class LockFile:
    """A file without a name, which the processes of one arbiter inherit from it.

    For each kind there is one byte a worker. A lock goes with its process, however that ends.

    Args:
        before: A process that may have such a file, which is to be used then.

    Attributes:
        descriptor: Of the file, whose content is somebody else's.
    """

    __slots__ = ("descriptor",)

    def __init__(self, before: int | None = None) -> None:
        found = None if before is None else self._of(before)
        # It has no name, so nothing is left behind.
        self.descriptor = os.memfd_create(_NAME) if found is None else found

    def close(self) -> None:
        """Let go of the file, and of this process's locks."""
        os.close(self.descriptor)

    def _of(self, process: int) -> int | None:
        """Open another process's file; ``None`` where there is none."""
        folder = f"/proc/{process}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{_NAME}"):
                    return os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
        return None

    def lock(self, kind: Kind, number: int = 0) -> None:
        """Lock the byte of worker *number*. Raises ``BlockingIOError`` where another process has it locked."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, kind * _SPAN + number)

    def unlock(self, kind: Kind, number: int) -> None:
        """Let go of it; nothing happens where it is not locked."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, kind * _SPAN + number)

    def others(self, kind: Kind) -> dict[int, int]:
        """Return the other workers that hold a lock of that kind: their numbers, and their processes."""
        found: dict[int, int] = {}
        first = kind * _SPAN
        spans = [(first, first + _SPAN)]
        while spans:
            begin, end = spans.pop()
            if begin == end:
                continue
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, begin, end - begin, 0)
            lock, _, start, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(self.descriptor, fcntl.F_GETLK, asked))
            if lock != fcntl.F_UNLCK:
                found[start - first] = pid
                # Not the lowest one: Linux names that of the process which was the first to lock anything.
                spans += [(begin, start), (start + 1, end)]
        return found
