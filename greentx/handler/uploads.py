"""Bodies that Mongrel2 writes into files (``upload.temp_store``), as one request each, at its end.

Such a request comes twice: at its start with ``x-mongrel2-upload-start: NAME``, after its last byte with
``x-mongrel2-upload-done: NAME`` next to it, without a body both times; in between nothing else comes from its
connection (probed). The application gets the second one, whose :attr:`greentx.Request.body_file` reads the file.

The names are in lower case, so that clients can send them as well, and Mongrel2 passes these on (probed). What cannot
be forged is that Mongrel2 saw a body announced and passed none on: it puts its own name in the place of the client's
then. Only then is a name believed; from any other request both names are removed.

The file belongs to the request: it is deleted when nobody holds the request any more, or earlier by
:meth:`StoredBody.delete`. Where the client leaves before the end Mongrel2 deletes it itself (probed); where Mongrel2
is killed before the end, :meth:`Uploads.lost` does.
"""

from __future__ import annotations

import io
import logging
import os
import re
import weakref
from collections.abc import Iterator
from typing import Any

from ..errors import LocalProtocolError
from ..protocol.headers import text_lines, without
from ..protocol.request import Request

__all__ = [
    "DONE",
    "DONE_BYTES",
    "NAMES",
    "START",
    "START_BYTES",
    "StoredBody",
    "UploadInterrupted",
    "Uploads",
    "check_store",
]

log = logging.getLogger("greentx.uploads")

START = "x-mongrel2-upload-start"
DONE = "x-mongrel2-upload-done"

#: Both names; a message with one of them is what :meth:`Uploads.admit` has to see.
NAMES = frozenset({START, DONE})

#: The same names as keys of headers in tnetstring.
START_BYTES, DONE_BYTES = START.encode(), DONE.encode()

# What Mongrel2 reads as a length above 0: strtol(3) reads it, of all that begins with a number, and what does not fit
# an int announces no body (probed). To believe more would have clients name files; to believe less would leave files
# behind.
_LENGTH = re.compile(r"[ \t\v\f]*\+?0*([1-9][0-9]{0,9})(?![0-9])")
_MAX_LENGTH = 2**31 - 1

# mkstemp(3) fills in letters and digits.
_FILLED_IN = re.compile(r"[A-Za-z0-9]{6}", re.ASCII)

_BUFFER_SIZE = 65536


class Uploads:
    """The stored bodies that one connection set waits for.

    Args:
        store: The server's ``upload.temp_store``, as this process sees it: an absolute path that ends in ``XXXXXX``.
            Files are then looked for in its folder only, whatever folder the server names (it may run in a chroot).
            ``None`` uses the server's names as they are.
        shared: Start and end may come to two processes.

    Raises:
        LocalProtocolError: (a ``ValueError``) *store* is not such a path.

    Attributes:
        begun: The bodies that are still to come: their first messages and the names of their files, by ``conn_id``.
    """

    def __init__(self, store: str | None = None, *, shared: bool = False) -> None:
        check_store(store)
        self._shared = shared
        self._folder, self._prefix = ("", "") if store is None else os.path.split(store[:-6])
        self.begun: dict[str, tuple[Request, str]] = {}

    def admit(self, request: Request) -> bool:
        """Return whether *request* is one for the application; False for the start of a body that is still to come.

        Raises:
            UploadInterrupted: It followed such a start, and is not its end.
        """
        # Between start and end Mongrel2 sends nothing else of that connection, so whatever comes next settles it.
        begun = self.begun.pop(request.conn_id, None)
        if begun is not None:
            if request.body or request.header(START) != begun[1] or request.header(DONE) != begun[1]:
                raise UploadInterrupted(begun[0], request)
            self.adopt(request)
            return True
        name = self._begins(request)
        # Made up by the client, or of an upload that is not stored: the application must not see names of files.
        if name is None:
            request.replace_headers(without(request.raw, NAMES))
            return True
        if self._shared:
            # The start is left to whoever gets the end: no client can know the name before that (probed), so one that
            # comes twice is Mongrel2's.
            if request.header(DONE) != name:
                return False
            self.adopt(request)
            return True
        self.begun[request.conn_id] = request, name
        return False

    def adopt(self, request: Request) -> None:
        """Let *request*, which is known to be the end of a stored body, have its file; for others nothing is done."""
        name = request.header(DONE)
        # Both names, and equal: so Mongrel2 writes them at the end of a stored body (probed), and only then.
        if isinstance(name, str) and request.header(START) == name:
            length = _first(request, "content-length")
            found = None if length is None else _LENGTH.match(length)
            request.stored = StoredBody(self._path(name), None if found is None else int(found[1]))

    def refuse(self, request: Request) -> None:
        """Nobody gets *request*, which was not admitted: delete its file, where Mongrel2 has stored all of it."""
        self.begun.pop(request.conn_id, None)
        if self._begins(request) is not None:
            # Mongrel2's name, which no client knows before the end (probed): so a name that comes twice is not forged.
            self.adopt(request)
            if request.stored is not None:
                request.stored.delete()

    def forget(self, conn_id: str) -> None:
        """The connection has ended: Mongrel2 deletes what it stored of an unfinished body."""
        self.begun.pop(conn_id, None)

    def lost(self) -> None:
        """The server has died: delete what it stored of unfinished bodies, of which no other process knows."""
        while self.begun:
            _delete(self._path(self.begun.popitem()[1][1]))

    def end(self) -> Iterator[Request]:
        """Forget all; yield the requests whose bodies had not ended."""
        while self.begun:
            yield self.begun.popitem()[1][0]

    def _path(self, name: str) -> str:
        # Only the last part of the server's name: it may run in a chroot, and no name may lead out of the folder.
        return os.path.join(self._folder, os.path.basename(name)) if self._folder else name

    def _begins(self, request: Request) -> str | None:
        """Return the name of the file that the body of *request* is being written to; ``None`` where there is none."""
        if request.body or request.header("UPLOAD_STREAM") is not None or not _announces_body(request):
            return None
        # A list would be two headers of a client's; a name that mkstemp(3) did not finish was not made by Mongrel2.
        name = request.header(START)
        if not isinstance(name, str) or not _FILLED_IN.fullmatch(name[-6:]):
            return None
        if self._folder and os.path.basename(name)[:-6] != self._prefix:
            log.warning("%r is stored in %r, which upload_store does not name: not believed", request, name)
            return None
        return name


class UploadInterrupted(Exception):
    """A connection began a stored body, and something else followed.

    Attributes:
        begun: The request whose body it was.
        request: What followed.
    """

    def __init__(self, begun: Request, request: Request) -> None:
        super().__init__(f"{request!r} is not the end of the upload that {begun!r} began")
        self.begun = begun
        self.request = request


class StoredBody:
    """The file of a stored body; deleted with this object at the latest.

    Attributes:
        path: Where it is.
        length: The announced length; ``None`` for a chunked body.
    """

    __slots__ = ("__weakref__", "_finalizer", "length", "path")

    def __init__(self, path: str, length: int | None) -> None:
        self.path = path
        self.length = length
        # Not __del__: this also runs at the end of the program, and can be called off.
        self._finalizer = weakref.finalize(self, _delete, path)

    def open(self) -> io.BufferedReader:
        """Open the file for reading, as far as it is this request's.

        Raises:
            OSError: It cannot be opened: where the server runs on another host, in a chroot, or with a relative
                ``upload.temp_store``, say ``upload_store=``.
        """
        return io.BufferedReader(_File(self.path, self.length), _BUFFER_SIZE)

    def delete(self) -> None:
        """Delete the file now; what was opened can still be read. Safe to call twice."""
        # A finalizer runs once, so neither a second call nor the end of this object deletes another's new file.
        self._finalizer()

    def give_away(self) -> None:
        """Another program was given the request, and the file with it: it deletes it."""
        self._finalizer.detach()


class _File(io.RawIOBase):
    """What is read of the file.

    Mongrel2 appends the bytes of a pipelined next request to it (probed), so it is not read beyond its length.
    """

    def __init__(self, path: str, length: int | None) -> None:
        super().__init__()
        # Set before the attempt, for close(): there is nothing to close where it fails.
        self._file = -1
        # No link is followed: others may write into the folder of a temp_store.
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        # Never beyond what is there: a file that was cut ends early, and does not block or fail.
        size = os.fstat(self._file).st_size
        self._left = size if length is None else min(size, length)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read from the file; blocks as files do."""
        view = memoryview(buffer)[: self._left]
        count = os.readv(self._file, [view]) if view else 0
        self._left -= count
        return count

    def readall(self) -> bytes:
        """Read what is left, at once; the default does so in pieces of 8 KiB."""
        data = bytearray(self._left)
        del data[self.readinto(data) :]
        return bytes(data)

    def close(self) -> None:
        # Python closes what could not be opened, too.
        if not self.closed and self._file >= 0:
            os.close(self._file)
        super().close()


def check_store(store: str | None) -> str | None:
    """Return *store* if it is a setting that :class:`Uploads` can use; raise ``LocalProtocolError`` else."""
    if store is not None and not (os.path.isabs(store) and store.endswith("XXXXXX")):
        raise LocalProtocolError(f"upload_store {store!r} is not an absolute path that ends in XXXXXX")
    return store


def _delete(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        # The application moved it, or never saw it: it is on another host.
        pass
    except OSError as error:
        log.warning("the stored body %s could not be deleted: %s", path, error)


def _announces_body(request: Request) -> bool:
    """True where Mongrel2 waits for a body: it looks at the first of several headers, and at the length before all."""
    # In any other spelling than "chunked" Mongrel2 does not know the coding, and reads no body.
    length = _first(request, "content-length")
    if length is None:
        return _first(request, "transfer-encoding") == "chunked"
    found = _LENGTH.match(length)
    return found is not None and int(found[1]) <= _MAX_LENGTH


def _first(request: Request, name: str) -> str | None:
    return next(iter(text_lines(request.header(name))), None)
