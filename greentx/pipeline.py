"""Which HTTP requests wait for an answer, and whose turn it is.

Mongrel2 forwards pipelined requests at once and writes answers in the order in which they come (probed), so a handler
that answers the second request first would hand the first client's page to the wrong request. For each connection the
oldest request that has no complete answer may be written to; answers to the later ones are kept until it is theirs.

An answer is complete when it was built whole, or, where the handler writes raw bytes, when the response that they make
up has ended. No I/O here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .http1_parser import ResponseTracker
from .wire import Request

__all__ = ["CLOSE", "OpenRequests"]

#: Stands in a list of things to write for "close the connection".
CLOSE = b""


class _Waiting:
    """A request behind another one of its connection, and what was answered to it already."""

    __slots__ = ("complete", "pieces", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.pieces: list[bytes] = []
        self.complete = False


class OpenRequests:
    """The requests of one connection set that were taken in and not completely answered.

    Attributes:
        heads: The request that may be written to, by ``conn_id``. Read by the callers on the path of every request.
        behind: The pipelined ones behind it, by ``conn_id``, in their order.
    """

    __slots__ = ("_trackers", "behind", "heads")

    def __init__(self) -> None:
        self.heads: dict[str, Request] = {}
        self.behind: dict[str, deque[_Waiting]] = {}
        self._trackers: dict[str, ResponseTracker] = {}

    def __len__(self) -> int:
        return len(self.heads) + sum(len(waiting) for waiting in self.behind.values())

    def add(self, request: Request) -> None:
        """A request came in."""
        conn_id = request.conn_id
        if conn_id not in self.heads:
            self.heads[conn_id] = request
        else:
            self.behind.setdefault(conn_id, deque()).append(_Waiting(request))

    def complete(self, conn_id: str) -> None:
        """The oldest request of a connection was answered whole, and nothing is behind it."""
        del self.heads[conn_id]
        if self._trackers:
            self._trackers.pop(conn_id, None)

    def answer(self, request: Request, data: bytes, *, complete: bool | None) -> list[bytes]:
        """The handler wrote *data* in answer to *request*.

        Args:
            data: Bytes for the browser, or :data:`CLOSE`.
            complete: Whether this ends the answer; ``None`` for raw bytes, which are followed to find out.

        Returns:
            What may be written to the connection now, in order; :data:`CLOSE` among it means to close it there.
        """
        conn_id = request.conn_id
        if self.heads.get(conn_id) is not request:
            return self._answer_behind(conn_id, request, data, complete)
        ready = [data]
        if data == CLOSE:
            self.remove(conn_id)
        elif complete or (complete is None and self._follow(conn_id, request, data)):
            del self.heads[conn_id]
            self._trackers.pop(conn_id, None)
            if conn_id in self.behind:
                self._advance(conn_id, ready)
        return ready

    def _answer_behind(self, conn_id: str, request: Request, data: bytes, complete: bool | None) -> list[bytes]:
        for waiting in self.behind.get(conn_id, ()):
            if waiting.request is request:
                waiting.pieces.append(data)
                waiting.complete = waiting.complete or bool(complete)
                return []
        # Answered already, or never tracked: the handler knows better what it is doing.
        return [data]

    def _advance(self, conn_id: str, ready: list[bytes]) -> None:
        """The head was answered: write what is there for the requests behind it."""
        queue = self.behind[conn_id]
        while queue:
            waiting = queue.popleft()
            request = waiting.request
            for piece in waiting.pieces:
                ready.append(piece)
                if piece == CLOSE:
                    self.remove(conn_id)
                    return
                if not waiting.complete:
                    waiting.complete = self._follow(conn_id, request, piece)
            if not waiting.complete:
                self.heads[conn_id] = request
                break
            self._trackers.pop(conn_id, None)
        if not queue:
            del self.behind[conn_id]

    def _follow(self, conn_id: str, request: Request, data: bytes) -> bool:
        tracker = self._trackers.get(conn_id)
        if tracker is None:
            tracker = self._trackers[conn_id] = ResponseTracker(request.method)
        # What is no HTTP response has no end that could be waited for.
        return tracker.feed(data) or tracker.opaque

    def started(self, request: Request) -> bool:
        """True when something was answered to *request*, whole or in part."""
        conn_id = request.conn_id
        if self.heads.get(conn_id) is request:
            return conn_id in self._trackers
        return not any(one.request is request and not one.pieces for one in self.behind.get(conn_id, ()))

    def remove(self, conn_id: str) -> list[Request]:
        """The connection has ended: forget its requests and return them, oldest first."""
        self._trackers.pop(conn_id, None)
        head = self.heads.pop(conn_id, None)
        behind: Iterable[_Waiting] = self.behind.pop(conn_id, ())
        return ([head] if head is not None else []) + [waiting.request for waiting in behind]

    def clear(self) -> list[Request]:
        """The server has gone: forget all requests and return the oldest one of each connection."""
        heads = list(self.heads.values())
        self.heads.clear()
        self.behind.clear()
        self._trackers.clear()
        return heads
