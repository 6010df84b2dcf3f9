"""The file that a large body is stored in (``upload.temp_store``).

A disk may take its time, and other connections must not wait for it, so all that touches a file is done by threads of
the hub's pool; the greenlet of the one connection waits for them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import string
from collections.abc import Callable
from typing import TypeVar

from gevent import get_hub
from gevent.event import Event

__all__ = ["UploadFile"]

T = TypeVar("T")

log = logging.getLogger("greentx.edge.front")

# As mkstemp(3) has it.
_FILLED_IN = string.ascii_letters + string.digits
_ATTEMPTS = 100
_random = random.SystemRandom()
# One hop to a thread for so many bytes.
_WRITE_SIZE = 65536


class UploadFile:
    """The file of one body; its methods block the greenlet that calls them, and only that one.

    Args:
        template: Of its name.
        mode: Of the file.

    Raises:
        OSError: It cannot be made.

    Attributes:
        name: As handlers are told it.
    """

    __slots__ = ("_descriptor", "_pieces", "_removed", "_running", "_size", "name")

    def __init__(self, template: str, mode: int) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._removed: Event | None = None
        # What a thread does with the descriptor, which nobody may close meanwhile: a greenlet that is killed leaves it.
        self._running = making = get_hub().threadpool.spawn(_try, _make, template, mode)
        try:
            made = making.get()
        except BaseException:  # raised again
            made = making.get()
            if not isinstance(made, OSError):
                self._descriptor, self.name = made
                self.remove()
            raise
        if isinstance(made, OSError):
            raise made
        self._descriptor, self.name = made

    def write(self, data: bytes) -> None:
        """Add to it.

        Raises:
            OSError: Nothing more can be written, as on a full disk.
        """
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= _WRITE_SIZE:
            self._flush()

    def finish(self) -> None:
        """Write what waits, and close it: from now on it is theirs who are told of it.

        Raises:
            OSError: As :meth:`write`.
        """
        self._flush()
        self._close()

    def remove(self) -> None:
        """Delete it, and close it where it is open. May be called twice; either call ends when it is gone."""
        if self._removed is not None:
            self._removed.wait()
            return
        self._removed = Event()
        try:
            # At once, whatever a write waits for.
            get_hub().threadpool.apply(_unlink, (self.name,))
            self._running.wait()
            self._close()
        finally:
            self._removed.set()

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if data and self._removed is None:
            self._run(_write, self._descriptor, data)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._run(os.close, descriptor)

    def _run(self, function: Callable[..., None], *arguments: object) -> None:
        self._running = running = get_hub().threadpool.spawn(_try, function, *arguments)
        error = running.get()
        if error is not None:
            raise error


# -- in threads ------------------------------------------------------------------------------------------------------


def _try(function: Callable[..., T], *arguments: object) -> T | OSError:
    # An error that leaves a thread of the pool is also printed there.
    try:
        return function(*arguments)
    except OSError as error:
        return error


def _make(template: str, mode: int) -> tuple[int, str]:
    for _ in range(_ATTEMPTS):
        name = template[:-6] + "".join(_random.choices(_FILLED_IN, k=6))
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # What it may be read by does not depend on the umask, as with Mongrel2.
                os.fchmod(descriptor, mode)
            except BaseException:  # raised again
                os.close(descriptor)
                _unlink(name)
                raise
            return descriptor, name
    raise FileExistsError(errno.EEXIST, "all names that were tried are in use", template)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _unlink(name: str) -> None:
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass  # moved by somebody
    except OSError as error:
        log.warning("the part %s of an upload could not be deleted: %s", name, error)
