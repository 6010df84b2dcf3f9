"""Large bodies: what the settings say of them, and the file that one is stored in (``upload.temp_store``).

A disk may take its time, and other connections must not wait for it, so all that touches a file is done by threads of
the hub's pool; the greenlet of the one connection waits for them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gevent import get_hub
from gevent.event import Event

from ...errors import LocalProtocolError

__all__ = ["LARGEST", "UploadFile", "UploadSettings"]

T = TypeVar("T")

log = logging.getLogger("greentx.edge.front")

#: Bytes of the largest body. Mongrel2 reads a length as an int, and so do handlers: a larger one is none (probed).
LARGEST = 2**31 - 1

# As mkstemp(3) has it.
_FILLED_IN = string.ascii_letters + string.digits
_ATTEMPTS = 100
_random = random.SystemRandom()
# What strtoul(3) reads.
_MODE = re.compile(r"0x(?P<hex>[0-9a-fA-F]{1,4})|0(?P<octal>[0-7]{1,5})|(?P<decimal>[1-9][0-9]{0,4})")
# One hop to a thread for so many bytes.
_WRITE_SIZE = 65536


@dataclass(frozen=True)
class UploadSettings:
    """What becomes of bodies over ``limits.content_length``; with neither the answer is 413.

    Attributes:
        store: ``upload.temp_store``: where they are stored, a path that ends in ``XXXXXX``; ``None`` for nowhere.
        mode: ``upload.temp_store_mode``: of the files.
        stream: ``upload.stream``: they go to handlers in pieces, chunked ones of any size; not stored then.
    """

    store: str | None = None
    mode: int = 0o600
    stream: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, int | str]) -> UploadSettings:
        """Return what these settings of Mongrel2 say; others are ignored.

        Raises:
            LocalProtocolError: A value means nothing.
        """
        store = settings.get("upload.temp_store")
        if store is not None and not (isinstance(store, str) and store.endswith("XXXXXX") and store.isprintable()):
            raise LocalProtocolError(f"setting upload.temp_store is {store!r}: it has to be a path that ends in XXXXXX")
        mode = settings.get("upload.temp_store_mode", "0600")
        found = _MODE.fullmatch(str(mode))
        if found is None:
            raise LocalProtocolError(f"setting upload.temp_store_mode is {mode!r}: write it in octal, as '0600'")
        bits = int(found["hex"] or "0", 16) or int(found["octal"] or "0", 8) or int(found["decimal"] or 0)
        if not 0 < bits <= 0o777:
            raise LocalProtocolError(f"setting upload.temp_store_mode is {mode!r}, which is not a mode of files")
        stream = settings.get("upload.stream", 0)
        if str(stream) not in ("0", "1"):
            raise LocalProtocolError(f"setting upload.stream is {stream!r}: write 1 or 0")
        return cls(store, bits, str(stream) == "1")

    @property
    def largest(self) -> int:
        """Bytes of the largest body; 0 where those over ``limits.content_length`` are refused."""
        return LARGEST if self.stream or self.store is not None else 0


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
