"""The messages of one WebSocket that no application has handled yet: what is given to which Node. No I/O.

Theory of operation
===================

Messages have numbers, from 1 on, in the order in which they came. Four marks say how far they have got::

    1 ... handled ... seen ... sent ... last
          |           |        |        +-- came
          |           |        +----------- given to the present Node
          |           +-------------------- may have been given to an application, by this Node or an earlier one
          +-------------------------------- an application asked for the one behind it, or its handler returned

What is handled is forgotten. What is not is given to the next Node when this one lets go, or is gone: what is not above
*seen* is marked as redelivered, since somebody may have begun with it.

===================  ===============================================================================================
What happens         What it means
===================  ===============================================================================================
a message comes      *last* grows
there is room        *sent* grows: a Node has at most :data:`WINDOW_MESSAGES` and :data:`WINDOW_BYTES`, or two messages,
                     that it has not handled, so that a Node which is slow with one WebSocket does not hold much of it
the Node handles     *handled* grows; what was before is forgotten
the Node lets go     it says how far its application has seen: *seen*. All others go on as if they had never been there
the Node is gone     all that was sent may have been seen; *sent* falls back to *handled*
===================  ===============================================================================================

The end of the WebSocket is the last message: an application that was not told of it, because its Node went in that
moment, could not tell others.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..errors import RemoteProtocolError
from .socket_messages import REDELIVERED

__all__ = ["WINDOW_BYTES", "WINDOW_MESSAGES", "Backlog"]

#: What a Node may have of one WebSocket without having handled it.
WINDOW_MESSAGES: Final = 64
WINDOW_BYTES: Final = 256 * 1024


class Backlog:
    """The messages of one WebSocket.

    Attributes:
        handled: Up to which message all are handled.
    """

    __slots__ = ("_messages", "_seen", "_sent", "_sent_bytes", "handled")

    def __init__(self) -> None:
        self.handled = 0
        # Those that are not handled: the first one's number is handled + 1.
        self._messages: deque[tuple[int, bytes]] = deque()
        self._sent = 0
        self._sent_bytes = 0
        self._seen = 0

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, flags: int, payload: bytes) -> None:
        """A message has come."""
        self._messages.append((flags, payload))

    def due(self, *, all_of_them: bool = False) -> list[tuple[int, int, bytes]]:
        """Return what the present Node is to be given now: numbers, flags and payloads; it counts as sent.

        Args:
            all_of_them: Whatever the window is: nothing more comes.
        """
        messages = self._messages
        found: list[tuple[int, int, bytes]] = []
        count = self._sent - self.handled
        # Two go whatever their size: of a library's application it is known by the second that it has taken the first.
        while count < len(messages) and (
            all_of_them or count < 2 or (count < WINDOW_MESSAGES and self._sent_bytes < WINDOW_BYTES)
        ):
            flags, payload = messages[count]
            count += 1
            self._sent += 1
            self._sent_bytes += len(payload)
            found.append((self._sent, flags | REDELIVERED if self._sent <= self._seen else flags, payload))
        return found

    def confirm(self, number: int) -> list[tuple[int, bytes]]:
        """All up to *number* are handled: forget them, and return their flags and payloads.

        Raises:
            RemoteProtocolError: The Node was not given that one.
        """
        if number > self._sent:
            raise RemoteProtocolError(f"message {number} is handled, and {self._sent} were sent")
        found: list[tuple[int, bytes]] = []
        while self.handled < number:
            message = self._messages.popleft()
            self.handled += 1
            self._sent_bytes -= len(message[1])
            found.append(message)
        return found

    def let_go(self, seen: int) -> None:
        """The Node lets go, in order: its application was given messages up to *seen*.

        Raises:
            RemoteProtocolError: It was not given that one.
        """
        if seen > self._sent:
            raise RemoteProtocolError(f"message {seen} was seen, and {self._sent} were sent")
        self._seen = max(self._seen, seen)
        self._take_back()

    def lost(self) -> None:
        """The Node is gone, and with it what its application may have begun with."""
        self._seen = max(self._seen, self._sent)
        self._take_back()

    def _take_back(self) -> None:
        self._sent = self.handled
        self._sent_bytes = 0

    def __repr__(self) -> str:
        last = self.handled + len(self._messages)
        return f"<Backlog handled {self.handled}, seen {self._seen}, sent {self._sent}, last {last}>"
