"""What is answered, in which order, and to whom it may go: the way from ``Connection`` to the writer.

Whether it is a request's turn is decided by :mod:`greentx.protocol.pipeline`; here that is carried out. Whatever is
answered to a request of another life of the server, or of a connection that has ended, goes nowhere.

Each method may be called from any greenlet, and from any native thread unless it says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from ..errors import ConnectionClosed, LocalProtocolError
from ..protocol.http1 import build_response
from ..protocol.http1_parser import ResponseParser
from ..protocol.kinds import WEBSOCKETS, Kind
from ..protocol.life import ENDED
from ..protocol.pipeline import OpenRequests
from ..protocol.replies import credits_body
from ..protocol.request import Request
from ..transport import native_thread_id
from .clock import current_date
from .link import Link
from .shared import Shared
from .websockets import WebSockets

__all__ = ["HTTP", "Answers"]

log = logging.getLogger("greentx.connection")

T = TypeVar("T")

#: What no frame of a server begins with: a reserved bit set, a control frame in pieces.
HTTP = b"HTTP/"
_SWITCHES = b"HTTP/1.1 101"


class Answers:
    """Answers of one connection set.

    Args:
        shared: What all connection sets share.
        link: Where they go.
        sessions: The WebSockets among the connections.

    Attributes:
        stale: How many answers were not sent because the server that asked has gone, or the connection set was removed.
        in_hub_thread: True in the thread whose greenlets may wait for something here; others :meth:`hand_over` their
            calls.
    """

    def __init__(self, shared: Shared, link: Link, sessions: WebSockets) -> None:
        self.stale = 0
        self._shared = shared
        self._context = shared.context
        self._extensions = shared.extensions
        self._link = link
        self._writer = link.writer
        self._sessions = sessions
        self._thread_id = shared.context.thread_id
        self.in_hub_thread = shared.context.in_hub_thread
        self._settled: Callable[[Request], None] = lambda request: None
        self._emit: Callable[[Request], None] = lambda request: None

    def tell(self, settled: Callable[[Request], None], emit: Callable[[Request], None]) -> None:
        """Say who hears of what was answered, and where events of a WebSocket go that was let in here."""
        self._settled = settled
        self._emit = emit

    # -- threads -----------------------------------------------------------------------------------------------------

    def hand_over(self, function: Callable[..., T], *arguments: object) -> T:
        """Call *function* in the hub's thread, for another one, which waits for it; returns and raises as it does."""
        return self._context.hand_over(function, *arguments)

    def run(self, function: Callable[..., object], *arguments: object) -> None:
        """Call *function* here, or in the hub's thread when this is another one; not at all after the end."""
        if native_thread_id() != self._thread_id or not self._context.open:
            self._context.hand_over(function, *arguments)
        elif self._link.stopped:
            # Not an error: handlers may finish after their connection set was removed.
            self.stale += 1
            log.warning("%s: the connection was removed; a reply was dropped", self._link.sender)
        else:
            function(*arguments)

    def run_for(self, request: Request, function: Callable[..., object], *arguments: object) -> None:
        """As :meth:`run`, where *request* is not from a life that has ended by the time of the call."""
        # What run() and is_ours() do, without calling them: each message of a WebSocket is answered this way.
        if native_thread_id() != self._thread_id or not self._context.open or self._link.stopped:
            self.run(self._run_for, request, function, *arguments)
        elif request.life is self._link.life or self.is_ours(request):
            function(*arguments)

    def _run_for(self, request: Request, function: Callable[..., object], *arguments: object) -> None:
        if self.is_ours(request):
            function(*arguments)

    # -- to one request ----------------------------------------------------------------------------------------------

    def answer(self, request: Request, data: bytes, complete: bool | None, close: bool) -> None:
        """Send *data* in answer to *request*, or keep it until it is its turn.

        Args:
            complete, close: As for :meth:`greentx.protocol.pipeline.OpenRequests.answer`.
        """
        if native_thread_id() != self._thread_id or not self._context.open:
            self._context.hand_over(self.answer, request, data, complete, close)
            return
        pending = self._link.life.requests
        # Nearly every answer: whole, of a request that nothing is pipelined behind. It needs one lookup.
        if complete and data and not close and pending.answer_whole(request):
            try:
                self._writer.write(request.sender, request.conn_id, data)
            except BaseException:  # killed while it waited for the pipe, too; raised again
                self._break_off(request, pending)
                raise
        elif self.is_ours(request):
            self._answer(request, data, complete, close)
        if self._extensions:
            self._settled(request)

    def _answer(self, request: Request, data: bytes, complete: bool | None, close: bool) -> None:
        if request.method in WEBSOCKETS:
            # A loop that answers everything with reply_http() must not write HTTP into an open WebSocket.
            if complete or data.startswith(HTTP):
                log.warning("%s: %s was answered as if it were HTTP; this was not sent", self._link.sender, request)
                return
            if request.carrier is not None:
                entry = self._shared.registry.get(request.sid)
                # Else it is another process's by now.
                if entry is not None and entry.carrier is request.carrier:
                    self._sessions.relayed.write(entry, data)
                return
        elif request.method == Kind.WEBSOCKET_HANDSHAKE and data.startswith(_SWITCHES):
            self._let_in(request, data)
            return
        life = self._link.life
        data, close = life.requests.answer(request, data, complete=complete, close=close)
        if life.requests.given_up:
            why, life.requests.given_up = life.requests.given_up, ""
            log.warning(
                "%s: answers of connection %s wait for another one's turn, closing it: %s",
                self._link.sender,
                request.conn_id,
                why,
            )
        if not close and not request.answered and request.conn_id not in life.requests.heads:
            # Not HTTP, or something else since: more may follow, so its end is of interest.
            life.sockets[request.conn_id] = None
        self._put(request, data, close)

    def part(self, request: Request, data: bytes, *, last: bool = False, close: bool = False) -> None:
        """Send a part of the answer to *request*, for a caller that frames its responses itself. Nothing is checked.

        Args:
            data: May be empty where *last* or *close* is all there is to say.
            last: The answer is complete with it; the next pipelined one may begin.
            close: The connection is closed behind it.

        Raises:
            ConnectionClosed: The browser went away while this greenlet waited for it to read.
            SendTimeout: As ``Connection.reply_http``.
        """
        self.answer(request, data, last, close)

    def at_once(self, request: Request, code: int) -> None:
        """Answer a request that the application does not get, and close its connection; never blocks."""
        requests = self._link.life.requests
        # Also of these the order counts: an answer before it may still be under way.
        if self._link.stopped or not requests.add(request):
            return
        answer = build_response(b"", code, date=current_date(), close=True)
        data, close = requests.answer(request, answer, complete=True, close=True)
        self._put(request, data, close, wait=False)

    def fail(self, request: Request, code: int) -> None:
        """Answer a request that nobody handles to its end, and close its connection; never blocks.

        Its handler is being ended, or has never begun: to wait for a full pipe would hold up the end of the program.
        Where the answer has begun, the end of the connection is the only way left to say that it failed.
        """
        if self._link.stopped or request.answered or not self.is_ours(request):
            return
        if request.carrier is not None and self._sessions.relayed.leaving:
            self._sessions.release(request)
            request.carrier.leave()  # another process may have a handler for it
            return
        requests = self._link.life.requests
        data = b""
        if not requests.started(request):
            data = build_response(
                f"{HTTPStatus(code).phrase}\n".encode(),
                code,
                headers={"Content-Type": "text/plain"},
                date=current_date(),
                head_only=request.method == "HEAD",
                close=True,
            )
        data, close = requests.answer(request, data, complete=bool(data) or None, close=True)
        if data or close:
            self._put(request, data, close, wait=False)
        if self._extensions:
            self._settled(request)

    def abandon(self, request: Request) -> None:
        """Nobody answers *request* to its end: close its connection behind what was written to it; never blocks."""
        if self._link.stopped or not self.is_ours(request):
            return
        self._break_off(request, self._link.life.requests)

    def close(self, request: Request) -> None:
        """Close the connection of *request* behind what was written to it."""
        self.run(self.close_here, request)

    def close_here(self, request: Request) -> None:
        """As :meth:`close`, for callers in the hub's thread."""
        if self.is_ours(request):
            self._close_ours(request)
        if self._extensions:
            self._settled(request)

    def _close_ours(self, request: Request) -> None:
        entry = self._shared.registry.get(request.sid)
        if entry is not None:
            # A WebSocket is not just cut off: RFC 6455, section 7.1.1.
            self._sessions.close(entry)
            return
        life = self._link.life
        _, close = life.requests.answer(request, b"", complete=None, close=True)
        if close:
            life.sockets.pop(request.conn_id, None)
            self._put(request, b"", True)

    def release(self, request: Request) -> None:
        """Somebody else answers *request*, or has: later ones of its connection do not wait for an answer from here."""
        if not self.in_hub_thread():
            self._context.hand_over(self.release, request)
            return
        # What waits behind it may be answered now.
        data, close = self._link.life.requests.release(request)
        if data or close:
            self._put(request, data, close)
        if self._extensions:
            self._settled(request)

    def grant(self, request: Request, count: int, *, wait: bool = True) -> None:
        """Let the server read *count* more bytes of the body of *request*, with ``upload.stream``.

        They come as events with the METHOD ``UPLOAD_STREAM``, which tell their offset by the header of that name, and
        the last one by ``UPLOAD_STREAM_DONE``.

        Args:
            wait: Block this greenlet while the pipe to the server is full.
        """
        self.run_for(request, self._grant, request, count, wait)

    def _grant(self, request: Request, count: int, wait: bool) -> None:
        self._writer.control(request.sender, [request.conn_id], credits_body(count), wait=wait)
        last = self._link.life.requests.last(request.conn_id)
        if last is not None:
            last.granted += count

    def started(self, request: Request) -> bool:
        """True when something was answered to *request* already, or nothing can be any more."""
        life = self._link.life
        return request.life is not life or life.requests.started(request)

    def is_ours(self, request: Request) -> bool:
        """False where *request* is from a life of the server, or of a connection, that has ended."""
        life = request.life
        # None: the caller parsed it from bytes of its own, and knows whom it answers.
        if life is None or life is self._link.life:
            return True
        # That a browser leaves before its answer is everyday; that a server does is worth a line.
        if life is not ENDED:
            self.stale += 1
            log.warning(
                "%s: the server restarted since %s %s came in, or the connection was removed; its answer was dropped",
                self._link.sender,
                request.method,
                request.path,
            )
        return False

    def take_out(self, request: Request) -> None:
        """*request* becomes a WebSocket. Raises ``ConnectionClosed`` where it has ended, or was answered."""
        requests = self._link.life.requests
        # A handshake behind another request never comes: Mongrel2 closes such connections itself (probed).
        if requests.heads.get(request.conn_id) is not request or requests.started(request):
            raise ConnectionClosed(1006, "the client has gone, or was answered already")
        requests.remove(request.conn_id)

    def _let_in(self, request: Request, data: bytes) -> None:
        """The application answers an opening handshake with a 101 of its own, behind which frames may follow."""
        parser = ResponseParser()
        # Half of it sent could not be taken back, if the rest turned out to be something else.
        if not parser.feed(data):
            raise LocalProtocolError("the 101 answer to a handshake is to be written whole, in one piece")
        # Who agrees on an extension reads and writes its frames: they are not ours to check.
        receive = self._emit if parser.headers.first("sec-websocket-extensions") else None
        self.take_out(request)
        self._sessions.accept_own(request, data, parser.headers.first("sec-websocket-protocol"), receive)

    def _put(self, request: Request, data: bytes, close: bool, *, wait: bool = True) -> None:
        """Hand *data*, in one piece, to the writer: two pieces could be overtaken while the first one waits."""
        writer = self._writer
        life = self._link.life
        if request.carrier is not None:
            # An opening handshake that another process has received: the answer goes back there.
            if close:
                life.requests.closed(request.conn_id)
                self._sessions.release(request)
            request.carrier.answer(data, close)
            return
        try:
            if data:
                writer.write(request.sender, request.conn_id, data, wait=wait)
                # It may have waited, and the server restarted meanwhile: the number is a stranger's then.
                if self._link.life is not life:
                    return
            if close:
                # What the client sent before it sees the close is still coming: it is not for the application.
                life.requests.closed(request.conn_id)
                self._sessions.release(request)
                writer.close(request.sender, [request.conn_id], wait=wait)
        except BaseException:  # also killed while it waited for the pipe; raised again
            self._break_off(request, life.requests)
            raise

    def _break_off(self, request: Request, requests: OpenRequests) -> None:
        """An answer is missing: the client would read the next one as it.

        Args:
            requests: Those of the life in which the answer began.
        """
        # The server has gone while it waited, and its clients with it: the number is a stranger's in the next life.
        if self._link.life.requests is not requests:
            return
        # wait=False below: the pipe may be what this answer was waiting for.
        requests.remove(request.conn_id)
        requests.closed(request.conn_id)
        request.life = ENDED
        self._writer.close(request.sender, [request.conn_id], wait=False)
