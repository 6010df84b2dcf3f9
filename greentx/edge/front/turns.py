"""Which requests of a browser connection wait for the end of their answers, without I/O."""

from __future__ import annotations

from collections import deque

from ...protocol.http1_parser import ResponseTracker

__all__ = ["Turns"]


class Turns:
    """Follows what handlers write, since nothing else tells whether an answer is whole.

    An answer that only the end of the connection ends is never whole, nor is one that is not HTTP.
    """

    __slots__ = ("_trackers",)

    def __init__(self) -> None:
        self._trackers: deque[ResponseTracker] = deque()

    def __len__(self) -> int:
        """How many requests wait for the end of their answers."""
        return len(self._trackers)

    def asked(self, method: bytes) -> None:
        """A request was handed to a handler."""
        self._trackers.append(ResponseTracker(method.decode()))

    def withdraw(self) -> None:
        """The last request was not handed on after all."""
        self._trackers.pop()

    def wrote(self, data: bytes) -> bool:
        """A handler has written so much more; return whether an answer is whole by it."""
        trackers = self._trackers
        before = len(trackers)
        while trackers and trackers[0].feed(data):
            excess = trackers.popleft().excess
            if not excess:
                break
            data = data[len(data) - excess :]
        return len(trackers) < before
