"""A child process whose output is read line by line, and which cannot outlive us."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Sequence

import gevent
from gevent import socket, subprocess

from ..transport import Supervised

__all__ = ["ChildProcess"]

# What runs between us and the program: it asks Linux for SIGKILL when its parent dies (prctl(2), PR_SET_PDEATHSIG = 1,
# which survives execve), looks whether that has happened already, undoes Python's ignoring of signals, and becomes
# the program. A preexec_fn would run Python in a fork of a process with threads, which may deadlock. Elsewhere there
# is no such signal: a program that is to end with us has to look for its parent itself.
_GUARD = """
import os, signal, sys
if sys.platform.startswith("linux"):
    import ctypes
    if ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0):
        sys.exit("the system does not tell when the parent process ends")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""

# The most that Linux grants without privileges: some 8000 lines may wait until our hub runs again.
_PIPE_SIZE = 1 << 20
_READ_SIZE = 1 << 16

# How long its last lines are waited for once it has ended. What it started may hold the pipe for as long as it likes.
_LAST_LINES_SECONDS = 0.5


class ChildProcess:
    """A process that was started by the constructor.

    It is killed when we die, in whatever way (Linux). It is in a session of its own: Ctrl-C reaches us and not it.

    gevent's own subprocess module starts it, patched or not: where anything in the program uses that, gevent reaps all
    children, and the standard library's would read every exit status as 0. So the hub has to be the main thread's.

    Its output, stdout and stderr joined, is read by a greenlet of the hub in which it was started, until a moment after
    its end: what it started in turn may go on, and is not heard any more. Waiting blocks only the calling greenlet,
    monkey-patched or not.

    Args:
        args: The program, with its absolute path, and its arguments.
        cwd: The folder it runs in.
        on_line: Called with each line of output, without its end.
        descriptors: Of ours that it has, too, by the same numbers.
        on_end: Called once, after the last line, when the process was reaped; not in a forked copy of us.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        cwd: str,
        on_line: Callable[[str], object],
        descriptors: Sequence[int] = (),
        on_end: Callable[[], object] | None = None,
    ) -> None:
        self._on_line = on_line
        self._on_end = on_end
        self._owner = os.getpid()
        output, theirs = os.pipe()
        # A user near the limit for pipes keeps the size of 64 KiB; only Linux lets it be changed.
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        os.set_blocking(output, False)
        try:
            self._popen = _start(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(self._owner), *args], cwd, theirs, descriptors
            )
        except BaseException:  # raised again: it did not start, so nobody else closes this
            os.close(output)
            raise
        # Where nobody read it, the pipe would fill, and the program stand still at its next line.
        self._rest = b""
        self._output: int | None = output
        self._reader = Supervised(f"output of {args[0]} ({self._popen.pid})", self._read)
        self._reader.start()
        self._ending = gevent.Greenlet(self._end)
        self._ending.name = f"end of {args[0]} ({self._popen.pid})"
        self._ending.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        pid: int = self._popen.pid
        return pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; ``None`` while it runs."""
        status: int | None = self._popen.poll()
        return status

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended and its last line was handed on; return whether that is so within *timeout* s."""
        self._ending.join(timeout)
        return bool(self._ending.dead)

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens where it has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End it at once and wait until it is gone."""
        self._popen.kill()
        self._ending.join()

    def kill_without_waiting(self) -> None:
        """End it at once, for when no greenlet can run any more."""
        self._popen.kill()

    def _read(self) -> None:
        while self._output is not None:
            socket.wait_read(self._output)
            if os.getpid() != self._owner:
                # A forked copy of us shares the pipe, and would read lines that are the parent's.
                self._close_output()
                return
            data = os.read(self._output, _READ_SIZE)
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._on_line(line.decode("utf-8", "replace"))
            self._reader.works()

    def _close_output(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            os.close(output)

    def _end(self) -> None:
        # In a copy of us that was forked before the end this never returns: the process is not a child of the copy.
        self._popen.wait()
        self._reader.join(_LAST_LINES_SECONDS)
        # Killed where the pipe does not end with the process.
        self._reader.kill()
        self._close_output()
        # Forked while the last lines were waited for, a copy gets here; the end is the parent's to tell.
        if os.getpid() != self._owner:
            return
        # Killed in the middle of a line, it leaves the beginning, which may say why.
        if self._rest:
            self._on_line(self._rest.decode("utf-8", "replace"))
        if self._on_end is not None:
            self._on_end()


def _start(args: Sequence[str], cwd: str, output: int, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Return the new process; where whoever waits for that is killed, so is the process. Closes *output*."""
    # It waits for the child to be another program. Killed in there, it would leave a process that nobody knows.
    starting = gevent.Greenlet(_popen, args, cwd, output, descriptors)
    starting.start()
    try:
        popen: subprocess.Popen[bytes] | OSError = starting.get()
    except BaseException:  # raised again
        starting.rawlink(_kill_what_started)
        raise
    if isinstance(popen, OSError):
        raise popen
    return popen


def _popen(args: Sequence[str], cwd: str, output: int, descriptors: Sequence[int]) -> subprocess.Popen[bytes] | OSError:
    """Return the new process, or why there is none: raised here, gevent would print it, whoever handles it."""
    try:
        return subprocess.Popen(
            args,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=tuple(descriptors),
            # Ctrl-C is for us to handle: it would end the front end before the requests in it.
            start_new_session=True,
        )
    except OSError as error:
        return error
    finally:
        # Here, as whoever started this may be gone before it has begun.
        os.close(output)


def _kill_what_started(starting: gevent.Greenlet[..., subprocess.Popen[bytes] | OSError]) -> None:
    if starting.successful() and not isinstance(starting.value, OSError):
        starting.value.kill()
