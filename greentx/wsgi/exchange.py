"""One request and the way its answer goes: what a handler of the WSGI server has in the place of a socket."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING

from gevent.event import Event

from ..errors import ConnectionClosed, RemoteProtocolError
from .input import StreamedBody

if TYPE_CHECKING:
    from ..connection import Connection
    from ..registry import Sid
    from ..wire import Request

__all__ = ["LINGER_BYTES", "LINGER_IDLE_SECONDS", "LINGER_SECONDS", "Exchange"]

#: How much of a body that the application did not read is received behind the answer, and dropped. A client that reads
#: nothing before it has sent all would not see its answer otherwise: the reset of a connection that is closed in front
#: of unread bytes overtakes what was written to it.
LINGER_BYTES = 1 << 30

#: For how long that goes on, and how long for while nothing comes.
LINGER_SECONDS = 60.0
LINGER_IDLE_SECONDS = 5.0

# Mongrel2 counts in an int.
_MAX_GRANT = 1 << 30


class Exchange:
    """One request of one browser.

    Attributes:
        connection: The connection set that it came over.
        request: As Mongrel2 sent it.
        sid: ``(sender, conn_id)``: the browser connection.
        disconnected: Set when the client has gone.
        ended: The answer is complete, or the connection was closed.
        lingers: That, but its end waits for :meth:`linger`, since the body has not ended yet.
        streams: More of the body is to come, as a stream.
        body: What reads that, once somebody does.
        greenlet: What runs the handler; ``None`` while the request waits.
        upload: The file that the body was stored in, if it was; see :mod:`greentx.wsgi.uploads`.
        held: It is still being written there.
    """

    ended = False
    lingers = False
    streams = False
    body: StreamedBody | None = None
    greenlet: object = None
    upload: str | None = None
    held = False
    _arrived: deque[Request] | None = None
    _more: Event | None = None
    _closes = False

    def __init__(self, connection: Connection, request: Request, sid: Sid) -> None:
        self.connection = connection
        self.request = request
        self.sid = sid
        self.disconnected = Event()
        if b"UPLOAD_STREAM" in request._raw or "UPLOAD_STREAM" in request._raw:
            self.streams = True

    # -- the answer ------------------------------------------------------------------------------------------------

    def send(self, data: bytes, *, last: bool = False, close: bool = False) -> None:
        """Send bytes of the answer. Blocks this greenlet while too many wait for this browser, or for the server.

        With the last ones, where more of the body is to come, the end of the answer waits for :meth:`linger`.

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
            if self.streams:
                self.lingers = True
                self._closes = close
                last = close = False
                if not data:
                    return
        try:
            self.connection.reply_part(self.request, data, last=last, close=close)
        except ConnectionClosed as error:
            self.lose()
            raise ConnectionResetError(errno.ECONNRESET, "the client went away") from error

    def close(self) -> None:
        """Have the browser's connection closed behind what was sent; nothing where it has ended."""
        if not self.disconnected.is_set():
            self.ended = True
            if self.streams:
                self.lingers = self._closes = True
            else:
                self.connection.close(self.request)

    def linger(self) -> None:
        """Receive what is left of the body and drop it, within bounds, then :meth:`let_go`. Blocks this greenlet.

        Raises:
            GreentxError: As ``Connection.reply_part``.
        """
        body = self.body or StreamedBody(self, None)
        try:
            body.discard(LINGER_BYTES, LINGER_SECONDS, LINGER_IDLE_SECONDS)
        except (ConnectionResetError, RemoteProtocolError):
            self._closes = True
        finally:
            self.let_go()

    def let_go(self) -> None:
        """End the answer now; where more of the body is to come the connection is closed behind it. Twice is once.

        Raises:
            GreentxError: As ``Connection.reply_part``.
        """
        if not self.lingers:
            return
        self.lingers = False
        if not self.disconnected.is_set():
            try:
                self.connection.reply_part(self.request, b"", last=True, close=self._closes or self.streams)
            finally:
                self.grant_rest()

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

    def next_piece(self, timeout: float | None = None) -> Request:
        """Return the next piece of a streamed body; blocks this greenlet until it has come.

        Raises:
            ConnectionResetError: The client went away before.
            TimeoutError: Nothing came for *timeout* seconds.
        """
        while not self._arrived:
            self.check()
            if self._more is None:
                self._more = Event()
            self._more.clear()
            if not self._more.wait(timeout):
                raise TimeoutError(errno.ETIMEDOUT, f"nothing more of the body came for {timeout} s")
        return self._arrived.popleft()

    def grant(self, count: int) -> None:
        """Let Mongrel2 read *count* more bytes of the body."""
        self.connection.grant(self.request, count)

    def grant_rest(self) -> None:
        """Let Mongrel2 read all that is left of the body; nobody here does.

        A connection whose upload waits to be granted more would stay there for ever, closed or not (probed).
        """
        if self.streams:
            self.streams = False
            left = None if self.body is None else self.body.left
            self.grant(_MAX_GRANT if left is None else min(left + 1, _MAX_GRANT))

    # -- its end ---------------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """The client has gone; never blocks."""
        self.disconnected.set()
        if self._more is not None:
            self._more.set()

    def __repr__(self) -> str:
        state = "client gone" if self.disconnected.is_set() else "ended" if self.ended else "open"
        return f"<Exchange {self.request!r}: {state}>"
