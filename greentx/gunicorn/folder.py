"""The private folder of a relay's process: all that the processes of one gunicorn share.

=============  =======================================================================================================
``nodes``      the socket that workers, which are Nodes, connect to
``arbiters``   a FIFO that each arbiter holds open for writing. The relay reads it: at its end all of them have gone,
               whatever way they went
``relay``      locked by the relay's process from before it runs to its end; a line each time that it was ready
``workers``    a byte for each worker that was ever made
``failed``     is there once a worker has failed to start, and has said why
``served``     is there once a worker has served
``claim``      when a worker ended last so that a new relay is started
``owner``      locked (shared) by all but the workers: a folder that nobody has is removed by the next program that
               makes one
=============  =======================================================================================================

The locks are those of flock(2): they belong to an open file, go with the last process that has it, and a program that
is started inherits them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import time
from collections.abc import Callable

from gevent import monkey

from ..edge.folder import Folder, hold

__all__ = ["RelayFolder"]

_NUMBER = struct.Struct("d")

_LOOK_SECONDS = 0.001

# Not gevent's: no hub is to run in the arbiter, where a configuration file has patched it.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")


class RelayFolder:
    """The folder at *path*, which exists.

    Attributes:
        path: As given.
        endpoint: Where the relay binds for its Nodes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.endpoint = f"ipc://{path}/nodes"
        self._owner = hold(path)

    @classmethod
    def make(cls, uid: int = -1, gid: int = -1) -> RelayFolder:
        """Make a new one, for this user only, or for the one that the workers will run as. Raises ``OSError``."""
        path = Folder().path
        os.mkdir(path, 0o700)
        folder = cls(path)
        try:
            os.mkfifo(f"{path}/arbiters", 0o600)
            for name in ("relay", "workers", "claim"):
                os.close(os.open(f"{path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if (uid, gid) != (-1, -1):
                for name in ("arbiters", "relay", "workers", "claim", "owner", ""):
                    os.chown(f"{path}/{name}", uid, gid)
        except BaseException:  # raised again: nothing is left
            folder.remove()
            raise
        return folder

    def close(self) -> None:
        """Let go of it; it stays."""
        os.close(self._owner)

    def remove(self) -> None:
        """Remove it, if it is there still, and let go of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    # -- arbiters --------------------------------------------------------------------------------------------------

    def join(self) -> int:
        """This process is an arbiter until the descriptor is closed that is returned. Raises ``OSError``."""
        reader = self.arbiters()  # else nobody reads, and it cannot be opened
        try:
            return os.open(f"{self.path}/arbiters", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(reader)

    def arbiters(self) -> int:
        """Return a descriptor that has an end, and nothing to read before, once there are no arbiters."""
        return os.open(f"{self.path}/arbiters", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def has_arbiters(self) -> bool:
        """Return whether any process is one."""
        try:
            reader = self.arbiters()
        except FileNotFoundError:
            return False  # the relay has removed the folder
        try:
            return os.read(reader, 1) != b""
        except BlockingIOError:
            return True
        finally:
            os.close(reader)

    # -- the relay -------------------------------------------------------------------------------------------------

    def lock_relay(self) -> int | None:
        """Return a descriptor that makes whoever has it the relay's process; ``None`` where there is one already."""
        lock = os.open(f"{self.path}/relay", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            while not _locked(lock, fcntl.LOCK_EX):
                if not _locked(lock, fcntl.LOCK_SH):
                    os.close(lock)
                    return None
                # Nobody has it but those that look, for a moment.
                _sleep(_LOOK_SECONDS)
        except BaseException:  # raised again
            os.close(lock)
            raise
        return lock

    def has_relay(self) -> bool:
        """Return whether the relay's process is there, be it that it just starts."""
        try:
            lock = os.open(f"{self.path}/relay", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False  # it has removed the folder
        try:
            return not _locked(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def was_ready(self) -> bool:
        """Return whether any relay was ever ready here."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(f"{self.path}/relay") > 0
        return True

    # -- workers ---------------------------------------------------------------------------------------------------

    def new_number(self) -> int:
        """Return the number of a worker that is about to be made; it grows by one."""
        with open(f"{self.path}/workers", "ab", buffering=0) as file:
            file.write(b"+")
            return file.tell()

    def newest_number(self) -> int:
        """Return the number that was given last."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(f"{self.path}/workers")
        return 0

    def is_first_to_fail(self) -> bool:
        """Return whether no worker before this one has failed to start, so that it is the one to say why."""
        try:
            os.close(os.open(f"{self.path}/failed", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError:
            return False
        return True

    def note_served(self) -> None:
        """A worker serves."""
        with contextlib.suppress(FileNotFoundError):  # the relay has removed the folder
            os.close(os.open(f"{self.path}/served", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def has_served(self) -> bool:
        """Return whether any worker ever did."""
        return os.path.exists(f"{self.path}/served")

    def made_lately(self, seconds: float) -> bool:
        """Return whether a worker was made in the last so many *seconds*."""
        with contextlib.suppress(FileNotFoundError):
            return time.time() - os.path.getmtime(f"{self.path}/workers") < seconds
        return False

    def claim(self, seconds: float) -> bool:
        """Return whether this worker is the one that ends for a new relay: nobody else was for so many *seconds*."""
        try:
            file = os.open(f"{self.path}/claim", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Of the machine: all processes have the same.
            now = time.monotonic()
            last = os.pread(file, _NUMBER.size, 0)
            if last and now - _NUMBER.unpack(last)[0] < seconds:
                return False
            os.pwrite(file, _NUMBER.pack(now), 0)
            return True
        finally:
            os.close(file)


def _locked(file: int, how: int) -> bool:
    """Lock *file* if that is possible at once; return whether it was."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
