"""Bodies that Mongrel2 writes into files (``upload.temp_store``).

Such a request comes twice: at its start with ``x-mongrel2-upload-start: NAME``, after its last byte with
``x-mongrel2-upload-done: NAME`` beside it, without a body both times. The names are in lower case, so that clients can
send them as well, and Mongrel2 passes these on (probed). What cannot be forged is that Mongrel2 saw a body announced
and passed none on: it puts its own name in the place of the client's then. Only then is a name looked at, and it has to
be one that Mongrel2 can have made up in this store.
"""

from __future__ import annotations

import contextlib
import os
import re

from ..errors import LocalProtocolError
from ..wire import Request

__all__ = ["UploadStore"]

_START = "x-mongrel2-upload-start"
_DONE = "x-mongrel2-upload-done"

# What Mongrel2 takes for a length above 0: strtol(3) reads it, of all that begins with a number, and what is no int is
# no body (probed). To believe more would have clients name files; to believe less would leave files behind.
_LENGTH = re.compile(r"[ \t\v\f]*\+?0*([1-9][0-9]{0,9})(?![0-9])")
_MAX_LENGTH = 2**31 - 1


class UploadStore:
    """The files of one ``upload.temp_store`` setting.

    Args:
        template: The setting: an absolute path that ends in ``XXXXXX``.

    Raises:
        LocalProtocolError: (a ``ValueError``) It is none.
    """

    def __init__(self, template: str) -> None:
        if not os.path.isabs(template) or not template.endswith("XXXXXX"):
            raise LocalProtocolError(f"upload_store {template!r} is no absolute path that ends in XXXXXX")
        # mkstemp(3) fills in letters and digits.
        self._matches = re.compile(re.escape(template[:-6]) + "[A-Za-z0-9]{6}", re.ASCII).fullmatch

    def start_of(self, request: Request) -> str | None:
        """Return the file that the body of *request* is being written to; ``None`` where it has none to come."""
        if request.body or request.header("UPLOAD_STREAM") is not None:
            return None
        if not _announces_body(request):
            return None
        name = request.header(_START)
        return name if isinstance(name, str) and self._matches(name) else None

    def is_done(self, request: Request, name: str) -> bool:
        """True where *request* says that the file which its connection began with *name* is complete."""
        return not request.body and request.header(_START) == name and request.header(_DONE) == name

    def delete(self, name: str) -> None:
        """Remove a file; it may have gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _announces_body(request: Request) -> bool:
    """True where Mongrel2 waits for a body: it looks at the first of several headers, and at the length before all."""
    length = _first(request, "content-length")
    if length is None:
        return _first(request, "transfer-encoding") == "chunked"
    found = _LENGTH.match(length)
    return found is not None and int(found[1]) <= _MAX_LENGTH


def _first(request: Request, name: str) -> str | None:
    value = request.header(name)
    return value[0] if isinstance(value, list) else value
