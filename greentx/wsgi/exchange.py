"""One request and the way its answer goes: what a handler of the WSGI server has in the place of a socket."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from ..errors import ConnectionClosed, RemoteProtocolError
from ..handler.schedule import Job
from .input import StreamedBody

if TYPE_CHECKING:
    from ..handler.connection import Connection
    from ..protocol.request import Request
    from ..protocol.websocket.registry import Sid

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


class Exchange(Job):
    """One request of one browser.

    Attributes:
        address: ``(host, 0)`` of the browser.
        disconnected: Set when the client has gone.
        ended: The answer is complete, or the connection was closed.
        lingers: That, but its end waits for :meth:`linger`, since the body has not ended yet.
        streams: The body comes as a stream, of which not all was read.
        body: What reads that, once somebody does.
        is_last: The front end ends behind this answer: it says ``Connection: close``.
    """

    ended = False
    lingers = False
    streams = False
    is_last = False
    body: StreamedBody | None = None
    address: Any = ("", 0)
    _arrived: deque[Request] | None = None
    _more: Event | None = None
    _closes = False
    _arrived_all = False

    def __init__(self, connection: Connection, request: Request, sid: Sid) -> None:
        # As Job does, without calling it: there is one for each request.
        self.connection = connection
        self.request = request
        self.sid = sid
        self.life = request.life
        self.disconnected = Event()
        # The first question costs nothing, and answers for nearly all.
        if not request.plain and request.has("UPLOAD_STREAM"):
            self.streams = True

    @property
    def moot(self) -> bool:
        """True where its connection has ended, or its server: no answer arrives."""
        life = self.request.life
        return life is not None and life.over

    @property
    def receiving(self) -> bool:
        """True while more of the body is to come from the server."""
        return self.streams and not self._arrived_all

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
            GreentxError: As ``conn.answers.part``.
        """
        self.check()
        if self.ended:
            raise RuntimeError("the answer to this request is complete: nothing more can be sent")
        if last or close:
            self.ended = True
            # The end has to wait for the body: to close, or to let the next request begin, in front of unread bytes
            # would lose the answer. What there is of it goes out.
            if self.streams:
                self.lingers = True
                self._closes = close
                last = close = False
                if not data:
                    return
        try:
            self.connection.answers.part(self.request, data, last=last, close=close)
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
            GreentxError: As ``conn.answers.part``.
        """
        body = self.body or StreamedBody(self, None)
        try:
            body.discard(LINGER_BYTES, LINGER_SECONDS, LINGER_IDLE_SECONDS)
            # What follows cannot be told from the rest of this body.
        except (ConnectionResetError, RemoteProtocolError):
            self._closes = True
        finally:
            self.let_go()

    def let_go(self) -> None:
        """End the answer now; where more of the body is to come the connection is closed behind it. Twice is once.

        Raises:
            GreentxError: As ``conn.answers.part``.
        """
        if not self.lingers:
            return
        self.lingers = False
        if not self.disconnected.is_set():
            try:
                self.connection.answers.part(self.request, b"", last=True, close=self._closes or self.streams)
            finally:
                self.grant_rest()

    def check(self) -> None:
        """Raise ``ConnectionResetError`` if the client has gone."""
        if self.disconnected.is_set():
            raise ConnectionResetError(errno.ECONNRESET, "the client went away")

    def pause(self) -> None:
        """In the place of sending, where there is nothing to send: let other greenlets run, and :meth:`check`.

        Without it an application that goes on without a pause would stop them, and never hear that its client has gone.
        """
        gevent.sleep(0)
        self.check()

    # -- the body --------------------------------------------------------------------------------------------------

    def feed(self, piece: Request) -> None:
        """A piece of a streamed body came."""
        if self._arrived is None:
            self._arrived = deque()
        self._arrived.append(piece)
        self._arrived_all = piece.has("UPLOAD_STREAM_DONE")
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
            # Made when somebody waits: most requests have no streamed body.
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

        A connection whose upload waits to be granted more would stay there forever, closed or not (probed).
        """
        if self.streams:
            self.streams = False
            left = None if self.body is None else self.body.left
            count = _MAX_GRANT if left is None else min(left + 1, _MAX_GRANT)
            self.connection.answers.grant(self.request, count, wait=False)

    # -- its end ---------------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """The client has gone; never blocks."""
        self.disconnected.set()
        if self._more is not None:
            self._more.set()

    def drop(self) -> None:
        self.lose()
        super().drop()

    def __repr__(self) -> str:
        state = "client gone" if self.disconnected.is_set() else "ended" if self.ended else "open"
        return f"<Exchange {self.request!r}: {state}>"
