"""Gives each event to a greenlet: a new one for a request, the WebSocket's own for its messages."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

import gevent
from gevent.event import Event
from gevent.pool import Group, Pool

from .connection import Connection
from .errors import ConnectionClosed, GreentxError
from .frames import CloseCode
from .pipeline import GONE
from .registry import Entry, Sid
from .runtime import Runtime
from .websocket import WebSocket
from .wire import Request

__all__ = ["Dispatcher", "Handler", "WebSocketHandler"]

log = logging.getLogger("greentx.dispatcher")

Handler = Callable[[Connection, Request], object]
WebSocketHandler = Callable[[WebSocket], object]

_WEBSOCKET_EVENTS = frozenset({"WEBSOCKET", "WEBSOCKET_CONNECT", "WEBSOCKET_CLOSE"})
_NO_ANSWER = frozenset({"JSON", "XML", "DISCONNECT", "UPLOAD_STREAM"}) | _WEBSOCKET_EVENTS


class _Line:
    """A connection of which a request is being handled or waits for the pool, and what waits behind that.

    Attributes:
        books: The life of the server that it belongs to: the next one gives the same number to somebody else.
    """

    __slots__ = ("books", "waiting")

    def __init__(self, books: object) -> None:
        self.books = books
        self.waiting: deque[tuple[Connection, Request]] = deque()


class Dispatcher:
    """What ``Transceiver.serve`` works with.

    Args:
        runtime: The Transceiver's.
        handler, websocket, pool: As given to ``serve``.
    """

    def __init__(
        self,
        runtime: Runtime,
        handler: Handler | None,
        websocket: WebSocketHandler | None,
        pool: int | Pool | None,
    ) -> None:
        self.pool = pool if isinstance(pool, Pool) else Pool(pool)
        self._runtime = runtime
        self._handler = handler
        self._websocket = websocket
        self._sockets: dict[Sid, WebSocket] = {}
        self._own: Group = Group()
        self._socket_greenlets = Group()
        self._busy: dict[Sid, _Line] = {}
        # The first requests of their connections that found no free place in the pool.
        self._waiting: deque[tuple[_Line, Connection, Request]] = deque()
        self._queued = 0  # In all these queues.
        self._ended = False
        self._limit = runtime.inbox.limit
        self._work = Event()
        self._space = Event()
        self._idle = Event()
        self._idle.set()
        self._feeder = gevent.spawn(self._feed_pool)

    def dispatch(self, connection: Connection, request: Request) -> None:
        """Hand one event on; blocks this greenlet only while as many requests wait for the pool as the inbox holds."""
        if self._ended:
            self._answer_failure(connection, request, HTTPStatus.SERVICE_UNAVAILABLE)
            return
        if self._websocket is not None and request.method in _WEBSOCKET_EVENTS:
            self._dispatch_websocket(self._websocket, connection, request)
            return
        if self._handler is None:
            self._refuse(connection, request)
            return
        sid = (request.sender, request.conn_id)
        line = self._busy.get(sid)
        if line is None or (request._books is not line.books and request._books is not GONE):
            line = self._busy[sid] = _Line(request._books)
            self._idle.clear()
            self._start(line, connection, request)
        elif request.method == "DISCONNECT":
            self._disconnect(line, connection, request)
        else:
            line.waiting.append((connection, request))
            self._queued += 1
        while self._queued >= self._limit:
            self._space.clear()
            self._space.wait()

    def _start(self, line: _Line, connection: Connection, request: Request) -> None:
        """Handle a request now, or as soon as the pool has a place for it; a full pool stops nothing else."""
        if self._waiting or self.pool.full():
            self._waiting.append((line, connection, request))
            self._queued += 1
            self._work.set()
        else:
            self._own.add(self.pool.spawn(self._handle, line, connection, request))

    def _disconnect(self, line: _Line, connection: Connection, request: Request) -> None:
        """The client went away while its request is handled: its handler may be waiting for just this news."""
        if any(one is line for one, _, _ in self._waiting):
            line.waiting.append((connection, request))
            self._queued += 1
            return
        # What it had pipelined behind that has nobody to answer to, and would begin after its end.
        self._taken(len(line.waiting))
        line.waiting.clear()
        # Beside the pool: were it full of those who wait for this news, it would never come.
        self._own.add(gevent.spawn(self._call, connection, request))

    def _taken(self, count: int) -> None:
        self._queued -= count
        self._space.set()

    def _feed_pool(self) -> None:
        while True:
            while self._waiting:
                self.pool.wait_available()
                first = self._waiting.popleft()
                self._taken(1)
                self._own.add(self.pool.spawn(self._handle, *first))
            self._work.clear()
            self._work.wait()

    def _handle(self, line: _Line, connection: Connection, request: Request) -> None:
        try:
            self._call(connection, request)
        finally:
            if line.waiting:
                self._taken(1)
                self._start(line, *line.waiting.popleft())
            elif self._busy.get(request.sid) is line:
                del self._busy[request.sid]
                if not self._busy:
                    self._idle.set()

    def _call(self, connection: Connection, request: Request) -> None:
        assert self._handler is not None
        try:
            self._handler(connection, request)
        except ConnectionClosed as error:
            log.debug("%s %s: the client went away: %s", request.method, request.path, error)
        except Exception:
            log.exception("the handler of %s %s failed", request.method, request.path)
            self._answer_failure(connection, request, HTTPStatus.INTERNAL_SERVER_ERROR)
        except BaseException:  # killed: nobody else will answer
            self._answer_failure(connection, request, HTTPStatus.SERVICE_UNAVAILABLE)
            raise

    def _answer_failure(self, connection: Connection, request: Request, status: HTTPStatus) -> None:
        if request.method in _NO_ANSWER:
            return
        try:
            if connection.started(request):
                if not request._answered:
                    connection.close(request)
            else:
                headers = {"Content-Type": "text/plain"}
                connection.reply_http(request, f"{status.phrase}\n", status.value, headers=headers)
        except GreentxError as error:
            log.warning("%s %s: the failure could not be answered: %s", request.method, request.path, error)

    def _refuse(self, connection: Connection, request: Request) -> None:
        """No handler for requests was given: only WebSockets are served here."""
        if request.method == "DISCONNECT":
            return
        if request.method in ("JSON", "XML"):
            connection.close(request)
        else:
            headers = {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
                "Content-Type": "text/plain",
            }
            connection.reply_http(request, "only WebSockets are served here\n", 426, headers=headers)

    # -- WebSockets ------------------------------------------------------------------------------------------------

    def _dispatch_websocket(self, handler: WebSocketHandler, connection: Connection, request: Request) -> None:
        sid = (request.sender, request.conn_id)
        entry = request._entry
        if entry is not None:
            self._open(handler, connection, request, entry)
            if request.method == "WEBSOCKET_CONNECT":
                return
        socket = self._sockets.get(sid)
        if socket is None:
            entry = self._runtime.registry.get(sid)
            if entry is None:
                return  # let in before serve() was called, and ended since
            socket = self._open(handler, connection, request, entry)
        socket._feed(request)
        if request.method == "WEBSOCKET_CLOSE":
            del self._sockets[sid]

    def _open(self, handler: WebSocketHandler, connection: Connection, request: Request, entry: Entry) -> WebSocket:
        runtime = self._runtime
        socket = WebSocket(connection, entry, request, runtime.registry, runtime.options.max_queue)
        self._sockets[entry.sid] = socket
        self._socket_greenlets.spawn(self._run_websocket, handler, socket)
        return socket

    def _run_websocket(self, handler: WebSocketHandler, socket: WebSocket) -> None:
        code = CloseCode.NORMAL_CLOSURE
        try:
            handler(socket)
        except ConnectionClosed as error:
            log.debug("%r: %s", socket, error)
        except Exception:
            log.exception("the handler of %r failed", socket)
            code = CloseCode.INTERNAL_ERROR
        except BaseException:
            code = CloseCode.GOING_AWAY
            raise
        finally:
            if not socket.closed:
                try:
                    socket._begin_close(code)
                except GreentxError as error:
                    log.warning("%r could not be closed: %s", socket, error)

    # -- the end ---------------------------------------------------------------------------------------------------

    def greenlets(self) -> list[gevent.Greenlet[..., object]]:
        """Return the greenlets that run handlers now."""
        return [*self._own.greenlets, *self._socket_greenlets.greenlets]

    def join(self) -> None:
        """Block until every request that was dispatched has been handled, but for what this greenlet itself handles."""
        current = gevent.getcurrent()
        if current not in self._own:
            self._idle.wait()
        while True:
            others = [one for one in self.greenlets() if one is not current]
            if others:
                gevent.joinall(others)
            elif self._waiting and not self.pool.full():
                gevent.sleep(0)  # the feeder is about to run
            else:
                return

    def stop(self) -> None:
        """Take no more requests out of the queue; handlers that run go on."""
        self._feeder.kill()

    def kill(self, timeout: float) -> int:
        """End all handlers but this greenlet within *timeout* seconds; clients that wait get a 503.

        Returns:
            How many there were, running or waiting.
        """
        self._ended = True
        self.stop()
        waiting = [(connection, request) for _, connection, request in self._waiting]
        for line in self._busy.values():
            waiting.extend(line.waiting)
            line.waiting.clear()
        self._waiting.clear()
        self._busy.clear()
        self._taken(self._queued)
        current = gevent.getcurrent()
        running = [one for one in self.greenlets() if one is not current]
        gevent.killall(running, block=False)
        gevent.joinall(running, timeout=timeout)  # killall() raises where one does not die in time
        for connection, request in waiting:
            self._answer_failure(connection, request, HTTPStatus.SERVICE_UNAVAILABLE)
        # Others than their handlers may wait for these, and nobody brings them the news of their end any more.
        for socket in self._sockets.values():
            socket._end()
        self._sockets.clear()
        self._idle.set()
        return len(running) + len(waiting)
