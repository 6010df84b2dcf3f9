"""The temporary folder that a front end runs in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import sys
import tempfile

__all__ = ["Folder", "hold", "remove_abandoned"]

# sun_path holds 107 bytes on Linux, 103 on macOS; the rest is for "/12345.send".
_MAX_PATH = 95 if sys.platform.startswith("linux") else 91

# Locked for as long as the process that made the folder lives, or one that it forked, whatever way they end.
_LOCK = "owner"

_is_name_of_ours = re.compile(r"greentx-[0-9a-f]{12}").fullmatch


class Folder:
    """One folder, under a name that nobody has.

    A process that is killed cannot remove what it made: the next one that makes a folder in the same place does.

    Attributes:
        path: Absolute, and short enough for the sockets in it; known before it is made.
    """

    def __init__(self) -> None:
        self.path = _new_path()
        self._lock: int | None = None

    def make(self) -> bool:
        """Make it, for this user only, and return whether it was not there before. Raises ``OSError``."""
        if os.path.isdir(self.path):
            return False
        # Here, since nothing else of ours is sure to run again on this machine.
        remove_abandoned(os.path.dirname(self.path))
        os.mkdir(self.path, 0o700)
        # Under its name it is never seen without the lock.
        making = f"{self.path}/{_LOCK}.new"
        self._release()
        self._lock = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(making, f"{self.path}/{_LOCK}")
        return True

    def remove(self) -> None:
        """Remove it with all that is in it, if it is there."""
        # The lock last: without it another process may remove the folder at the same time.
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def hold(path: str) -> int:
    """Keep the folder at *path* from being removed as abandoned, next to others that do; return a descriptor to close.

    For folders that several programs share, under a name like ours. Raises ``OSError``.
    """
    lock = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:  # raised again: a signal may strike while it waits
        os.close(lock)
        raise
    return lock


def _new_path() -> str:
    name = f"greentx-{secrets.token_hex(6)}"
    for parent in (tempfile.gettempdir(), "/tmp"):
        path = os.path.join(os.path.abspath(parent), name)
        if len(os.fsencode(path)) <= _MAX_PATH:
            return path
    raise AssertionError("/tmp is short enough")


def remove_abandoned(parent: str) -> None:
    """Remove the folders in *parent* that processes of this user made, and did not live to remove."""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if _is_name_of_ours(entry.name)]
    except OSError:
        # It may be entered, but not listed.
        return
    for name in names:
        folder = f"{parent}/{name}"
        try:
            if os.lstat(folder).st_uid != os.getuid():
                continue
            number = os.open(f"{folder}/{_LOCK}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            # It has just gone, or is just being made.
            continue
        try:
            # It is locked, or has gone.
            with contextlib.suppress(OSError):
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The folder may have been removed, and made again by the same process.
                if os.path.samestat(os.fstat(number), os.stat(f"{folder}/{_LOCK}")):
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(number)
