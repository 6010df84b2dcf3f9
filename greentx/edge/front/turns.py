"""Which requests of a browser connection wait for the end of their answers, without I/O."""

from __future__ import annotations

import re
from collections import deque

from ...protocol.http1_parser import ResponseTracker
from .events import Head

__all__ = ["Turns"]

# Of an answer that nearly all are like: whose status has a body, and with a length.
_PLAIN_STATUS = re.compile(rb"HTTP/1\.[01] (?:20[0-3]|[45][0-9][0-9]) ")
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,15})\r\n")


class Turns:
    """Follows what handlers write, since nothing else tells whether an answer is whole.

    An answer that only the end of the connection ends is never whole, nor is one that is not HTTP.
    """

    __slots__ = ("_methods", "_tracker")

    def __init__(self) -> None:
        self._methods: deque[bytes] = deque()
        # Of the first of them, once a part of its answer was written.
        self._tracker: ResponseTracker | None = None

    def __len__(self) -> int:
        """How many requests wait for the end of their answers."""
        return len(self._methods)

    def asked(self, head: Head) -> None:
        """A request was handed to a handler."""
        self._methods.append(head.method)

    def upgraded(self, head: Head) -> Turns | None:
        """An opening handshake was handed to a handler; return who follows what is written from then on."""
        return None

    def refused(self, head: Head | None, status: int, size: int) -> None:
        """A request got an answer of so many bytes that is no handler's; *head* is ``None`` where it was not read."""

    def closed(self) -> None:
        """The connection has ended."""

    def withdraw(self) -> bool:
        """Give up the answer to the last request; False where some of it was written, or all: there is no other one."""
        methods = self._methods
        if not methods or (len(methods) == 1 and self._tracker is not None):
            return False
        methods.pop()
        return True

    def wrote(self, data: bytes) -> bool:
        """A handler has written so much more; return whether an answer is whole by it."""
        methods = self._methods
        if self._tracker is None and methods and methods[0] != b"HEAD" and _is_whole(data):
            methods.popleft()
            return True
        before = len(methods)
        while methods:
            tracker = self._tracker
            if tracker is None:
                tracker = self._tracker = ResponseTracker(methods[0].decode())
            if not tracker.feed(data):
                break
            methods.popleft()
            self._tracker = None
            if not tracker.excess:
                break
            data = data[len(data) - tracker.excess :]
        return len(methods) < before


def _is_whole(data: bytes) -> bool:
    """Tell, cheaply, whether *data* is one answer, no more and no less; False where that takes a closer look."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or _PLAIN_STATUS.match(data) is None:
        return False
    head = data[: end + 2].lower()
    found = _LENGTH.search(head)
    return (
        found is not None
        and len(data) - end - 4 == int(found[1])
        and head.count(b"content-length") == 1
        and b"transfer-encoding" not in head
    )
