"""Bodies that Mongrel2 writes into files (``upload.temp_store``).

Such a request comes twice: at its start with ``x-mongrel2-upload-start: NAME``, after its last byte with
``x-mongrel2-upload-done: NAME`` beside it, without a body both times. The names are in lower case, so that clients can
send them as well, and Mongrel2 passes these on (probed). What cannot be forged is that a body was announced and none
came: only then is a name looked at, and it has to be one that Mongrel2 can have made up in this store.
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
        length = request.header("content-length")
        if request.header("transfer-encoding") is None and (length is None or set(length) <= {"0"}):
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
