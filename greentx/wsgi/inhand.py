"""When messages count as handled that a WebSocket library was given on a Node. No I/O, no clock.

An application that receives from ``environ['wsgi.websocket']`` says by its next ``receive()`` that it is done with what
it got before. A library that reads from a socket (``environ['werkzeug.socket']``) reads ahead, and does not say when
its application is done. So it is judged by what can be seen:

* where the application has answered each message, it is done :data:`ANSWERED_SECONDS` later: an answer may be several
  messages;
* else when the library has read all that it was given, and neither got nor wrote anything for :data:`SILENT_SECONDS`;
* and where more than :data:`MAX_IN_HAND` are in hand, the application does not answer each, and is not waited for.

What is in hand comes again at another Node, should this one die. A Node that leaves in order lets the WebSocket go when
nothing is in hand.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ANSWERED_SECONDS", "MAX_IN_HAND", "SILENT_SECONDS", "InHand"]

ANSWERED_SECONDS: Final = 0.02
SILENT_SECONDS: Final = 1.0
MAX_IN_HAND: Final = 64


class InHand:
    """What the library of one WebSocket has been given, and is not known to be done with.

    Times are seconds of one clock that does not go back.
    """

    __slots__ = ("_answers", "_given", "_since")

    def __init__(self) -> None:
        self._given = 0
        self._answers = 0
        self._since = 0.0

    def __len__(self) -> int:
        return self._given

    def give(self, now: float) -> None:
        """The library was given a message."""
        self._given += 1
        self._since = now

    def answer(self, now: float) -> None:
        """The library wrote a message."""
        if self._given:
            self._answers += 1
            self._since = now

    def wait(self, now: float, unread: bool) -> float | None:
        """Return for how many seconds nothing is decided, 0.0 where all is handled now, ``None`` with nothing in hand.

        Args:
            unread: The library has not read all that it was given.
        """
        if not self._given:
            return None
        if self._given > MAX_IN_HAND:
            return 0.0
        if unread:
            return SILENT_SECONDS
        is_answered = self._answers >= self._given
        return max(0.0, self._since + (ANSWERED_SECONDS if is_answered else SILENT_SECONDS) - now)

    def clear(self) -> None:
        """All is handled."""
        self._given = self._answers = 0
