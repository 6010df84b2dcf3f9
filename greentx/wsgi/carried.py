"""What the bridge of a WebSocket library does on a Node, where another process runs the protocol.

Messages come and go by the request's carrier (:class:`greentx.protocol.carrier.Carrier`), which is told when the
library's application is done with each; that is judged as :mod:`greentx.wsgi.inhand` says.
"""

from __future__ import annotations

import contextlib
import fcntl
import termios
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..protocol.carrier import Carrier
from ..protocol.websocket.registry import OPEN, Entry
from .inhand import InHand

__all__ = ["Carried"]

# What FIONREAD gives for nothing: an int.
_NONE_UNREAD = bytes(4)


class Carried:
    """One WebSocket of a library on a Node.

    Args:
        carrier: Its carrier.
        socket: The library's end, of which is asked what it has not read.
    """

    __slots__ = ("_carrier", "_in_hand", "_socket")

    def __init__(self, carrier: Carrier, socket: Any) -> None:
        self._carrier = carrier
        self._socket = socket
        self._in_hand = InHand()

    def receives(self) -> None:
        """Before the client is let in: what is handled is told from here."""
        self._carrier.receives = True

    def begin(self, entry: Entry, on_pong: Callable[[bytes], None]) -> None:
        """It was let in, as *entry*; pongs do not come as messages."""
        entry.on_pong = on_pong
        self._carrier.ask()

    def ping(self, entry: Entry, payload: bytes) -> None:
        """The library pings."""
        if entry.state == OPEN:
            self._carrier.ping(payload)

    def give(self, size: int) -> None:
        """The library is given a message, a frame of so many bytes."""
        self._carrier.give()
        self._in_hand.give(monotonic(), size)

    def answer(self) -> None:
        """The library has written a message."""
        self._in_hand.answer(monotonic())

    def settle(self) -> float | None:
        """Say what the application is done with; return in how many seconds to look again, ``None`` for not at all.

        Where the Node leaves the WebSocket may be let go in here, which is its end.
        """
        if self._in_hand.drop():
            self._carrier.ask(len(self._in_hand))
        seconds = self._in_hand.wait(monotonic(), self._unread())
        if seconds == 0.0:
            self._in_hand.clear()
            self._carrier.ask()
            return None
        return seconds

    def _unread(self) -> bool:
        # ValueError: the library has closed it.
        with contextlib.suppress(OSError, ValueError):
            return fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, _NONE_UNREAD) != _NONE_UNREAD
        return False

    def finish(self, *, killed: bool) -> None:
        """The application has ended; *killed*: where this Node leaves, another one's goes on."""
        self._carrier.finish(killed)
