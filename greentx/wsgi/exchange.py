"""One request and the way its answer goes: what a handler of the WSGI server has in the place of a socket."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING

from gevent.event import Event

from ..errors import ConnectionClosed

if TYPE_CHECKING:
    from ..connection import Connection
    from ..registry import Sid
    from ..wire import Request

__all__ = ["Exchange"]


class Exchange:
    """One request of one browser.

    Attributes:
        connection: The connection set that it came over.
        request: As Mongrel2 sent it.
        sid: ``(sender, conn_id)``: the browser connection.
        disconnected: Set when the client has gone.
        ended: The answer is complete, or the connection was closed.
        greenlet: What runs the handler; ``None`` while the request waits.
        upload: The file that the body was stored in, if it was; see :mod:`greentx.wsgi.uploads`.
        held: It is still being written there.
    """

    __slots__ = (
        "_arrived",
        "_granted",
        "_more",
        "connection",
        "disconnected",
        "ended",
        "greenlet",
        "held",
        "request",
        "sid",
        "upload",
    )

    def __init__(self, connection: Connection, request: Request, sid: Sid) -> None:
        self.connection = connection
        self.request = request
        self.sid = sid
        self.disconnected = Event()
        self.ended = False
        self.greenlet: object = None
        self._arrived: deque[Request] | None = None
        self._more: Event | None = None
        self._granted = False
        self.upload: str | None = None
        self.held = False

    # -- the answer ------------------------------------------------------------------------------------------------

    def send(self, data: bytes, *, last: bool = False, close: bool = False) -> None:
        """Send bytes of the answer. Blocks this greenlet while too many wait for this browser, or for the server.

        Args:
            last: The answer is complete with them.
            close: The connection ends behind them.

        Raises:
            ConnectionResetError: The client has gone.
            RuntimeError: The answer was complete already.
            GreentxError: As ``Connection.reply_part``.
        """
        self.check()
        if self.ended:
            raise RuntimeError("the answer to this request is complete: nothing more can be sent")
        if last or close:
            self.ended = True
        try:
            self.connection.reply_part(self.request, data, last=last, close=close)
        except ConnectionClosed as error:
            self.lose()
            raise ConnectionResetError(errno.ECONNRESET, "the client went away") from error

    def close(self) -> None:
        """Have the browser's connection closed behind what was sent; nothing where it has ended."""
        if not self.disconnected.is_set():
            self.ended = True
            self.connection.close(self.request)

    def check(self) -> None:
        """Raise ``ConnectionResetError`` if the client has gone."""
        if self.disconnected.is_set():
            raise ConnectionResetError(errno.ECONNRESET, "the client went away")

    # -- the body --------------------------------------------------------------------------------------------------

    def feed(self, piece: Request) -> None:
        """A piece of a streamed body came."""
        if self._arrived is None:
            self._arrived = deque()
        self._arrived.append(piece)
        if self._more is not None:
            self._more.set()

    def next_piece(self) -> Request:
        """Return the next piece of a streamed body; blocks this greenlet until it has come.

        Raises:
            ConnectionResetError: The client went away before.
        """
        while not self._arrived:
            self.check()
            if self._more is None:
                self._more = Event()
            self._more.clear()
            self._more.wait()
        return self._arrived.popleft()

    @property
    def streams(self) -> bool:
        """The body comes as a stream, and the answer is not complete."""
        return self._granted and not self.ended

    def grant(self, count: int) -> None:
        """Let Mongrel2 read *count* more bytes of the body."""
        self._granted = True
        self.connection.grant(self.request, count)

    # -- its end ---------------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """The client has gone; never blocks."""
        self.disconnected.set()
        if self._more is not None:
            self._more.set()

    def __repr__(self) -> str:
        state = "client gone" if self.disconnected.is_set() else "ended" if self.ended else "open"
        return f"<Exchange {self.request!r}: {state}>"
