"""Which HTTP requests wait for an answer, and whose turn it is.

Mongrel2 forwards pipelined requests at once and writes answers in the order in which they come (probed), so a handler
that answers the second request first would hand the first client's page to the wrong request. For each connection the
oldest request that has no complete answer may be written to; answers to the later ones are kept until it is theirs.

An answer is complete when it was built whole, or, where the handler writes raw bytes, when the response that they make
up has ended. No I/O here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .errors import LocalProtocolError
from .http1_parser import ResponseTracker
from .wire import Request

__all__ = ["GONE", "MAX_PIPELINED", "OpenRequests"]

#: Requests that may wait behind another one of their connection. Clients that pipeline send a few; a client that never
#: reads must not fill the memory.
MAX_PIPELINED = 4096

#: Connections that were closed lately; ids are not used again within a life of the server (probed).
MAX_CLOSED = 1024


class _Waiting:
    """A request behind another one of its connection, and what was answered to it already."""

    __slots__ = ("closes", "complete", "pieces", "request", "turn")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.pieces: list[bytes] = []
        self.complete = False
        self.closes = False
        self.turn: Callable[[], None] | None = None


class OpenRequests:
    """The requests that one connection set took in, in one life of its server, and did not completely answer.

    Each request knows the one that it belongs to, and so which life of the server its connection id is from: an answer
    to an older one would reach a stranger.

    Args:
        forwarded: Called with a request that was handed on to be answered by somebody else.

    Attributes:
        heads: The request that may be written to, by ``conn_id``. Read by the callers on the path of every request.
        behind: The pipelined ones behind it, by ``conn_id``, in their order.
    """

    __slots__ = ("_closed", "_trackers", "behind", "forwarded", "heads")

    def __init__(self, forwarded: Callable[[Request], None] | None = None) -> None:
        self.forwarded = forwarded
        self._closed: dict[str, None] = {}
        self.heads: dict[str, Request] = {}
        self.behind: dict[str, deque[_Waiting]] = {}
        self._trackers: dict[str, ResponseTracker] = {}

    def __len__(self) -> int:
        return len(self.heads) + sum(len(waiting) for waiting in self.behind.values())

    def add(self, request: Request) -> bool:
        """A request came in.

        Returns:
            False where it may not be answered, since the one before it said that the connection ends with it
            (RFC 9112, section 9.6), or we closed it. It is then not among the open ones.
        """
        request._books = self
        conn_id = request.conn_id
        if self._closed and conn_id in self._closed:
            return False
        head = self.heads.setdefault(conn_id, request)
        if head is request:
            return True
        queue = self.behind.get(conn_id)
        # The second message of a body that the server stored is none that follows the first one.
        if (queue[-1].request if queue else head).should_close() and request.header("x-mongrel2-upload-done") is None:
            return False
        if queue is None:
            queue = self.behind[conn_id] = deque()
        request._pipelined = True
        queue.append(_Waiting(request))
        return True

    def closed(self, conn_id: str) -> None:
        """The connection is being closed by us.

        What the server read of it before it heard of that still comes, and may be anything: for a request whose end is
        in doubt, the rest of its body, made up by an attacker.
        """
        self._closed[conn_id] = None
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]

    def overfull(self, conn_id: str) -> bool:
        """True when more than :data:`MAX_PIPELINED` requests of a connection wait behind another."""
        queue = self.behind.get(conn_id)
        return queue is not None and len(queue) > MAX_PIPELINED

    def answer_whole(self, request: Request) -> bool:
        """The same as :meth:`answer` with ``complete``, for nearly every answer: nothing is pipelined.

        Returns:
            False, and nothing is changed, where it is not that simple.
        """
        conn_id = request.conn_id
        heads = self.heads
        if heads.get(conn_id) is not request:
            return False
        if (self.behind and conn_id in self.behind) or (self._trackers and conn_id in self._trackers):
            return False
        del heads[conn_id]
        request._answered = True
        return True

    def answer(
        self, request: Request, data: bytes, *, complete: bool | None, close: bool = False
    ) -> tuple[bytes, bool]:
        """The handler wrote *data* in answer to *request*.

        Args:
            data: Bytes for the browser; empty with *close* alone.
            complete: Whether this ends the answer; ``None`` for raw bytes, which are followed to find out.
            close: The connection is to be closed behind it.

        Returns:
            What may be written to the connection now, and whether to close it then.

        Raises:
            LocalProtocolError: The request was completely answered before. The client would take what comes now for the
                answer to its next request.
        """
        conn_id = request.conn_id
        if self.heads.get(conn_id) is not request:
            return self._answer_behind(conn_id, request, data, complete, close)
        if complete or (complete is None and self._follow(conn_id, request, data)):
            return self._next(conn_id, [data], close)
        if close:
            self.remove(conn_id)
        return data, close

    def _answer_behind(
        self, conn_id: str, request: Request, data: bytes, complete: bool | None, close: bool
    ) -> tuple[bytes, bool]:
        if request._answered and data:
            raise LocalProtocolError(
                f"{request.method} {request.path} of connection {conn_id} was answered already: "
                "what is sent now would be taken for the next answer"
            )
        for waiting in self.behind.get(conn_id, ()):
            if waiting.request is request:
                if data:
                    waiting.pieces.append(data)
                waiting.closes = waiting.closes or close
                if complete:
                    waiting.complete = request._answered = True
                return b"", False
        # Answered, handed on, or none of those that are kept here: a message of a JSON socket, a protocol of the
        # handler's own. It knows what it is doing.
        if close:
            self.remove(conn_id)
        return data, close

    def delegate(self, request: Request) -> Request:
        """Somebody else answers *request*, whose turn it is, and will say when that was done.

        Returns:
            What stands in its place until then: those behind it wait until that is passed to :meth:`release`. For the
            handler *request* has been answered.
        """
        stand_in = Request(request.sender, request.conn_id, request.path, request._raw, b"", request.method)
        stand_in._books = self
        self.heads[request.conn_id] = stand_in
        request._answered = True
        return stand_in

    def release(self, request: Request) -> tuple[bytes, bool]:
        """Somebody else answers *request*: those behind it do not wait for that. Returns as :meth:`answer`."""
        conn_id = request.conn_id
        if self.heads.get(conn_id) is request:
            return self._next(conn_id, [], False, answered=False)
        queue = self.behind.get(conn_id, deque())
        for waiting in queue:
            if waiting.request is request:
                queue.remove(waiting)
                break
        if not queue:
            self.behind.pop(conn_id, None)
        return b"", False

    def _next(self, conn_id: str, pieces: list[bytes], close: bool, *, answered: bool = True) -> tuple[bytes, bool]:
        """The head is done with: let the one behind it take its place, and write what is there for it."""
        request = self._settle(conn_id, answered)
        turn = None
        queue = self.behind.get(conn_id)
        while queue and not close:
            waiting = queue.popleft()
            request = self.heads[conn_id] = waiting.request
            pieces += waiting.pieces
            close = waiting.closes
            if not waiting.complete and not any(self._follow(conn_id, request, piece) for piece in waiting.pieces):
                turn = waiting.turn
                break
            self._settle(conn_id, True)
        if close:
            self.remove(conn_id)
            request._books = GONE
        elif queue is not None and not queue:
            del self.behind[conn_id]
        if turn is not None and not close:
            turn()
        return b"".join(pieces), close

    def _settle(self, conn_id: str, answered: bool) -> Request:
        request = self.heads.pop(conn_id)
        tracker = self._trackers.pop(conn_id, None)
        # Behind a 101, or behind what is no HTTP, more may follow that nobody here could judge.
        request._answered = answered and (tracker is None or not (tracker.opaque or tracker.status == 101))
        return request

    def _follow(self, conn_id: str, request: Request, data: bytes) -> bool:
        tracker = self._trackers.get(conn_id)
        if tracker is None:
            tracker = self._trackers[conn_id] = ResponseTracker(request.method)
        # What is no HTTP response has no end that could be waited for.
        return tracker.feed(data) or tracker.opaque

    def wait_turn(self, request: Request, turn: Callable[[], None]) -> bool:
        """Return whether it is *request*'s turn to be answered.

        If not, *turn* is called when it is; not at all where the connection ends before. It must not block.
        """
        for waiting in self.behind.get(request.conn_id, ()):
            if waiting.request is request:
                waiting.turn = turn
                return False
        return True

    def started(self, request: Request) -> bool:
        """True when something was answered to *request*, whole or in part, or nothing can be any more."""
        conn_id = request.conn_id
        if self.heads.get(conn_id) is request:
            return conn_id in self._trackers
        return not any(one.request is request and not one.pieces for one in self.behind.get(conn_id, ()))

    def remove(self, conn_id: str) -> list[Request]:
        """The connection has ended: forget its requests and return them, oldest first. Their answers go nowhere."""
        self._trackers.pop(conn_id, None)
        head = self.heads.pop(conn_id, None)
        requests = [] if head is None else [head]
        requests += [waiting.request for waiting in self.behind.pop(conn_id, ())]
        for request in requests:
            request._books = GONE
        return requests


#: What the requests of a connection that has ended belong to.
GONE = OpenRequests()
