"""When messages count as handled that a WebSocket library was given on a Node. No I/O, no clock.

An application that receives from ``environ['wsgi.websocket']`` says by its next ``receive()`` that it is done with what
it got before. A library that reads from a socket (``environ['werkzeug.socket']``) reads ahead, and does not say when
its application is done. So it is judged by what can be seen:

* where the application has answered each message, it is done :data:`ANSWERED_SECONDS` later: an answer may be several
  messages;
* else when the library has read all that it was given, and neither got nor wrote anything for :data:`SILENT_SECONDS`;
* and of more than :data:`MAX_IN_HAND` messages, or :data:`MAX_IN_HAND_BYTES`, the oldest are taken as handled, for
  applications that do not answer each. That is far less than a Node is given before it has handled some, so that they
  get what comes as fast as they read it.

What is in hand comes again at another Node, should this one die; what was taken as handled does not. A Node that leaves
in order lets the WebSocket go when nothing is in hand.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["ANSWERED_SECONDS", "MAX_IN_HAND", "MAX_IN_HAND_BYTES", "SILENT_SECONDS", "InHand"]

ANSWERED_SECONDS: Final = 0.02
SILENT_SECONDS: Final = 1.0
MAX_IN_HAND: Final = 16
MAX_IN_HAND_BYTES: Final = 64 * 1024


class InHand:
    """What the library of one WebSocket has been given, and is not known to be done with.

    Times are seconds of one clock that does not go back.
    """

    __slots__ = ("_answers", "_bytes", "_since", "_sizes")

    def __init__(self) -> None:
        # Of those in hand, the oldest first.
        self._sizes: deque[int] = deque()
        self._bytes = 0
        # Negative while some are to come of messages that were dropped.
        self._answers = 0
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._sizes)

    def give(self, now: float, size: int) -> None:
        """The library was given a message of so many bytes."""
        self._sizes.append(size)
        self._bytes += size
        self._since = now

    def drop(self) -> bool:
        """Take the oldest as handled where there are too many. Returns whether there were; the newest stays."""
        sizes = self._sizes
        before = len(sizes)
        while len(sizes) > MAX_IN_HAND or (len(sizes) > 1 and self._bytes > MAX_IN_HAND_BYTES):
            self._bytes -= sizes.popleft()
            self._answers -= 1
        return len(sizes) < before

    def answer(self, now: float) -> None:
        """The library wrote a message."""
        if self._sizes:
            self._answers += 1
            self._since = now

    def wait(self, now: float, unread: bool) -> float | None:
        """Return for how many seconds nothing is decided, 0.0 where all is handled now, ``None`` with nothing in hand.

        Args:
            unread: The library has not read all that it was given.
        """
        if not self._sizes:
            return None
        if unread:
            return SILENT_SECONDS
        is_answered = self._answers >= len(self._sizes)
        return max(0.0, self._since + (ANSWERED_SECONDS if is_answered else SILENT_SECONDS) - now)

    def clear(self) -> None:
        """All is handled."""
        self._sizes.clear()
        self._bytes = self._answers = 0
