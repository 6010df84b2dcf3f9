"""The relay's process, as the arbiter has it: started, found by the next arbiter, started again, ended.

It is not a child that anybody waits for: gunicorn's arbiter reaps all of its children, and after SIGUSR2 there are two
arbiters, of which the one that started it may be the first to go. So it is known by the lock that it holds, and it ends
when nobody is left who wants it; see :mod:`greentx.gunicorn.folder`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from gevent import monkey

from .folder import RelayFolder

__all__ = ["FOLDER_VARIABLE", "PROGRAM", "RelayProcess"]

#: Tells the next arbiter (SIGUSR2) of the folder, behind the process id of the one before.
FOLDER_VARIABLE = "_GREENTX_RELAY_FOLDER"

#: What runs a relay.
PROGRAM = (sys.executable, "-m", "greentx", "relay")

_LOOK_SECONDS = 0.02

# What this program is told by variables.
_OURS = ("GREENTX_", "_GREENTX_")

# Not gevent's, where a configuration file has patched the arbiter: no hub is to run in it, and gevent would have the
# children reaped that gunicorn waits for.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")
_posix_spawn: Callable[..., int] = monkey.get_original("os", "posix_spawn")


class RelayProcess:
    """The process that runs *program*, for this arbiter.

    Args:
        folder: Where it is, and finds what it shares with us. This arbiter is known there from now on.
        program: What runs it; the words of :meth:`start` follow.

    Attributes:
        folder: As given.
        words: Those that it was started with last, by this arbiter.
    """

    def __init__(self, folder: RelayFolder, program: Sequence[str] = PROGRAM) -> None:
        self.folder = folder
        self.words: list[str] | None = None
        self._program = list(program)
        self._pid: int | None = None
        self._joined: int | None = folder.join()

    @classmethod
    def of_arbiter_before(cls, environ: MutableMapping[str, str], **options: Any) -> RelayProcess | None:
        """Return that of the arbiter whose place we are about to take (SIGUSR2); ``None`` where there is none.

        *environ* is ours; what told us is removed from it.
        """
        # An application that runs a gunicorn of its own would hand it on to that.
        pid, _, path = environ.pop(FOLDER_VARIABLE, "").partition(":")
        if not path or pid != environ.get("GUNICORN_PID"):
            return None
        try:
            return cls(RelayFolder(path), **options)
        except OSError:
            return None  # it has ended meanwhile

    @property
    def left(self) -> bool:
        """Whether this process does not want it any more."""
        return self._joined is None

    def note_for_next(self, environ: dict[str, str]) -> None:
        """Write into *environ*, which the next arbiter is started with, where to find it."""
        environ[FOLDER_VARIABLE] = f"{os.getpid()}:{self.folder.path}"

    def start(self, words: Sequence[str], log_file: str | None = None) -> bool:
        """Start it, unless it runs; return whether it was started. Does not wait until it is ready.

        Args:
            words: Its arguments.
            log_file: Where its stderr goes, if not where ours does.

        Raises:
            OSError: It cannot be started.
        """
        lock = self.folder.lock_relay()
        if lock is None:
            return False
        try:
            # As its stdin, which ends when the last arbiter has gone.
            arbiters = self.folder.arbiters()
            try:
                os.set_inheritable(lock, True)
                actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, arbiters, 0)]
                if log_file is not None:
                    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                    actions += [(os.POSIX_SPAWN_OPEN, 2, log_file, flags, 0o644), (os.POSIX_SPAWN_DUP2, 2, 1)]
                command = [*self._program, *words, "--until-eof", "--notify-fd", str(lock)]
                command += ["--private-folder", self.folder.path]
                # What this program was told by variables is in the words, or was said otherwise elsewhere.
                environ = {name: one for name, one in os.environ.items() if not name.startswith(_OURS)}
                # A session of its own: Ctrl-C is for the arbiter, since the workers end first.
                self._pid = _posix_spawn(command[0], command, environ, file_actions=actions, setsid=True)
            finally:
                os.close(arbiters)
        finally:
            os.close(lock)
        self.words = list(words)
        return True

    def leave(self) -> None:
        """This arbiter is about to end, or this is a worker: the relay need not be there for us. Twice is once."""
        joined, self._joined = self._joined, None
        if joined is not None:
            os.close(joined)

    def end(self, seconds: float) -> None:
        """Leave; where no other arbiter is there, wait until it has ended, and kill it after *seconds*."""
        self.leave()
        if self.folder.has_arbiters():
            self.folder.close()
            return
        until = time.monotonic() + seconds
        while self.folder.has_relay() and time.monotonic() < until:
            _sleep(_LOOK_SECONDS)
        if self.folder.has_relay() and self._pid is not None:
            # It has the lock, so nobody else has its number, if it was ours.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self.folder.remove()
