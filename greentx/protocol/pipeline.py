"""Which HTTP requests wait for an answer, and whose turn it is.

Mongrel2 forwards pipelined requests at once and writes answers in the order in which they come (probed), so a handler
that answers the second request first would hand the first client's page to the wrong request. For each connection the
oldest request that has no complete answer may be written to; answers to the later ones are kept until it is theirs.

An answer is complete when it was built whole, or, where the handler writes raw bytes, when the response that they make
up has ended. A request is in one of these states; nothing but the calls on the arrows leads from one to another::

    (came in) ── add(): none of its connection is open ─────────────────────────────> HEAD, may be written to
    (came in) ── add(): behind another one, which keeps the connection ─────────────> BEHIND, its answer is kept
    (came in) ── add(): behind one that ends the connection, or closed() was called ─> not admitted
    BEHIND ──── the one before it is complete ──────────────────────────────────────> HEAD; what is kept goes out
    HEAD ────── answer() completes it, release() ───────────────────────────────────> gone; the next one is HEAD
    HEAD ────── delegate() ─────────────────────────────────────────────────────────> a stand-in is HEAD until release()
    any ─────── the answer closes the connection, remove() ─────────────────────────> gone, as all behind it; life ENDED

The state is where a request stands, and nothing else: in ``heads``, in a queue of ``behind``, or in neither. No I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..errors import LocalProtocolError
from .bounds import Queued, Share, size_of
from .http1_parser import ResponseTracker
from .life import ENDED, Life
from .request import Request

__all__ = ["MAX_PIPELINED", "OpenRequests"]

#: Requests that may wait behind another one of their connection. Clients that pipeline send a few; a client that never
#: reads must not fill the memory.
MAX_PIPELINED = 4096

#: Connections that were closed lately; ids are not used again within a life of the server (probed).
MAX_CLOSED = 1024


class _Waiting:
    """A request behind another one of its connection, and what was answered to it already."""

    __slots__ = ("closes", "complete", "pieces", "request", "size", "turn")

    def __init__(self, request: Request) -> None:
        self.request = request
        # As it was counted.
        self.size = 0
        self.pieces: list[bytes] = []
        self.complete = False
        self.closes = False
        self.turn: Callable[[], None] | None = None


class _Behind(deque[_Waiting]):
    """The requests that wait behind another one of their connection, and the bytes of them."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share


class OpenRequests:
    """The requests that one connection set received in one life of its server, and did not completely answer.

    Args:
        life: The life, which each request then knows: an answer to one of another life would reach a stranger.
        queued: What bounds those that wait behind others.

    Attributes:
        heads: The request that may be written to, by ``conn_id``. Read by the callers on the path of every request.
        behind: The pipelined ones behind it, by ``conn_id``, in their order.
        given_up: Why a connection was closed last because too many bytes of answers waited for another one's turn.
    """

    __slots__ = ("_closed", "_queued", "_trackers", "behind", "given_up", "heads", "life")

    def __init__(self, life: Life | None = None, queued: Queued | None = None) -> None:
        self.life = Life() if life is None else life
        self._queued = Queued() if queued is None else queued
        # A dict as an ordered set: the oldest goes first.
        self._closed: dict[str, None] = {}
        self.given_up = ""
        self.heads: dict[str, Request] = {}
        self.behind: dict[str, _Behind] = {}
        self._trackers: dict[str, ResponseTracker] = {}

    def __len__(self) -> int:
        return len(self.heads) + sum(len(waiting) for waiting in self.behind.values())

    def add(self, request: Request) -> bool:
        """A request came in.

        Returns:
            False where it may not be answered, since the one before it said that the connection ends with it
            (RFC 9112, section 9.6), or we closed it. It is then not among the open ones.
        """
        request.life = self.life
        conn_id = request.conn_id
        # The emptiness first: it is the rule, and costs less than a lookup.
        if self._closed and conn_id in self._closed:
            return False
        # One lookup for both questions: is there a head, and make this one the head.
        head = self.heads.setdefault(conn_id, request)
        if head is request:
            return True
        queue = self.behind.get(conn_id)
        # The last one decides: what follows a client's "Connection: close", or our answer with one, is not a request
        # (RFC 9112, section 9.6).
        if (queue[-1].closes or queue[-1].request.should_close()) if queue else head.should_close():
            return False
        if queue is None:
            queue = self.behind[conn_id] = _Behind(self._queued.share())
        request.pipelined = True
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

    def is_closed(self, conn_id: str) -> bool:
        """True where :meth:`closed` was called for the connection, unless long ago."""
        return conn_id in self._closed

    def last(self, conn_id: str) -> Request | None:
        """Return the last request of the connection, whose body may still be coming; ``None`` without one."""
        queue = self.behind.get(conn_id)
        return queue[-1].request if queue else self.heads.get(conn_id)

    def overfull(self, request: Request) -> str:
        """Count *request*, which was added last, where it waits behind another one.

        Returns:
            ``""``; or why its connection is to be closed: more than :data:`MAX_PIPELINED` of them wait, or more bytes
            than :mod:`greentx.protocol.bounds` allows.
        """
        queue = self.behind.get(request.conn_id)
        if queue is None:
            return ""
        if len(queue) > MAX_PIPELINED:
            return f"{len(queue)} requests wait, limit {MAX_PIPELINED}"
        waiting = queue[-1]
        waiting.size = size_of(request)
        why = queue.share.add(waiting.size)
        if why:
            waiting.size = 0
        return why

    def answer_whole(self, request: Request) -> bool:
        """The same as :meth:`answer` with ``complete``, for nearly every answer: nothing is pipelined.

        Returns:
            False, and nothing is changed, where it is not that simple.
        """
        conn_id = request.conn_id
        heads = self.heads
        if heads.get(conn_id) is not request:
            return False
        # Something is kept behind it, or was written before: answer() has the whole story.
        if (self.behind and conn_id in self.behind) or (self._trackers and conn_id in self._trackers):
            return False
        del heads[conn_id]
        request.answered = True
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
            LocalProtocolError: The request was completely answered before. The client would read what comes now as the
                answer to its next request.
        """
        conn_id = request.conn_id
        if self.heads.get(conn_id) is not request:
            return self._answer_behind(conn_id, request, data, complete, close)
        # Raw bytes are followed only where nobody says whether they are the end: it costs a parser.
        if complete or (complete is None and self._follow(conn_id, request, data)):
            return self._next(conn_id, [data], close)
        if close:
            self.remove(conn_id)
        return data, close

    def _answer_behind(
        self, conn_id: str, request: Request, data: bytes, complete: bool | None, close: bool
    ) -> tuple[bytes, bool]:
        # Without data it is a late close, which harms nobody.
        if request.answered and data:
            raise LocalProtocolError(
                f"{request.method} {request.path} of connection {conn_id} was answered already: "
                "the client would read what is sent now as its next answer"
            )
        queue = self.behind.get(conn_id)
        for waiting in queue or ():
            if waiting.request is request:
                if data and queue is not None:
                    why = queue.share.add(len(data))
                    if why:
                        self.given_up = why
                        self.remove(conn_id)
                        return b"", True
                    waiting.size += len(data)
                    waiting.pieces.append(data)
                waiting.closes = waiting.closes or close
                if complete:
                    waiting.complete = request.answered = True
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
        stand_in = Request(request.sender, request.conn_id, request.path, request.raw, b"", request.method)
        stand_in.life = self.life
        self.heads[request.conn_id] = stand_in
        request.answered = True
        return stand_in

    def release(self, request: Request) -> tuple[bytes, bool]:
        """Somebody else answers *request*: those behind it do not wait for that. Returns as :meth:`answer`."""
        conn_id = request.conn_id
        if self.heads.get(conn_id) is request:
            return self._next(conn_id, [], False, answered=False)
        queue = self.behind.get(conn_id)
        if queue is None:
            return b"", False
        for waiting in queue:
            if waiting.request is request:
                queue.remove(waiting)
                queue.share.remove(waiting.size)
                break
        if not queue:
            del self.behind[conn_id]
        return b"", False

    def _next(self, conn_id: str, pieces: list[bytes], close: bool, *, answered: bool = True) -> tuple[bytes, bool]:
        """The head is done with: the one behind it becomes the head; return what was kept for it."""
        request = self._settle(conn_id, answered)
        turn = None
        # Several may be complete already: their answers go out together, in their order, up to one that closes.
        queue = self.behind.get(conn_id)
        while queue and not close:
            waiting = queue.popleft()
            queue.share.remove(waiting.size)
            request = self.heads[conn_id] = waiting.request
            pieces += waiting.pieces
            close = waiting.closes
            if not waiting.complete and not any(self._follow(conn_id, request, piece) for piece in waiting.pieces):
                turn = waiting.turn
                break
            self._settle(conn_id, True)
        if close:
            self.remove(conn_id)
            request.life = ENDED
        elif queue is not None and not queue:
            del self.behind[conn_id]
        # Last, with all state settled: it may call back in here.
        if turn is not None and not close:
            turn()
        return b"".join(pieces), close

    def _settle(self, conn_id: str, answered: bool) -> Request:
        request = self.heads.pop(conn_id)
        tracker = self._trackers.pop(conn_id, None)
        # Behind a 101, or behind what is not HTTP, more may follow that nobody here could judge.
        request.answered = answered and (tracker is None or not (tracker.opaque or tracker.status == 101))
        return request

    def _follow(self, conn_id: str, request: Request, data: bytes) -> bool:
        tracker = self._trackers.get(conn_id)
        if tracker is None:
            tracker = self._trackers[conn_id] = ResponseTracker(request.method)
        # What is not an HTTP response has no end that could be waited for.
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

    def begun(self, request: Request) -> bool:
        """True when the answer to *request* has begun here, and is not complete."""
        conn_id = request.conn_id
        if self.heads.get(conn_id) is request:
            return conn_id in self._trackers
        return any(one.request is request and one.pieces for one in self.behind.get(conn_id, ()))

    def remove(self, conn_id: str) -> list[Request]:
        """The connection has ended: forget its requests and return them, oldest first. Their answers go nowhere."""
        self._trackers.pop(conn_id, None)
        head = self.heads.pop(conn_id, None)
        requests = [] if head is None else [head]
        requests += [waiting.request for waiting in self.behind.pop(conn_id, ())]
        # Their handlers still run: what they send from now on is dropped by this, without a lookup.
        for request in requests:
            request.life = ENDED
        return requests
