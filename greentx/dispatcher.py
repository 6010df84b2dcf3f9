"""Gives each event to a greenlet: a new one for a request, the WebSocket's own for its messages."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import gevent
from gevent.event import Event
from gevent.pool import Group, Pool

from .connection import Connection, Runtime
from .errors import ConnectionClosed, GreentxError
from .frames import CloseCode
from .registry import Entry, Sid
from .websocket import WebSocket
from .wire import Request

__all__ = ["Dispatcher", "Handler", "WebSocketHandler"]

log = logging.getLogger("greentx.dispatcher")

Handler = Callable[[Connection, Request], object]
WebSocketHandler = Callable[[WebSocket], object]

_WEBSOCKET_EVENTS = frozenset({"WEBSOCKET", "WEBSOCKET_CONNECT", "WEBSOCKET_CLOSE"})
_NO_ANSWER = frozenset({"JSON", "XML", "DISCONNECT"}) | _WEBSOCKET_EVENTS


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
        # Connections of which a request is being handled, with what waits behind it.
        self._busy: dict[Sid, deque[tuple[Connection, Request]]] = {}
        # Requests that found no free place in the pool.
        self._waiting: deque[tuple[Connection, Request]] = deque()
        self._limit = runtime.inbox.limit
        self._work = Event()
        self._space = Event()
        self._feeder = gevent.spawn(self._feed_pool)

    def dispatch(self, connection: Connection, request: Request) -> None:
        """Hand one event on; blocks this greenlet only while as many requests wait for the pool as the inbox holds."""
        if self._websocket is not None and request.method in _WEBSOCKET_EVENTS:
            self._dispatch_websocket(self._websocket, connection, request)
            return
        if self._handler is None:
            self._refuse(connection, request)
            return
        sid = (request.sender, request.conn_id)
        queue = self._busy.get(sid)
        if queue is not None:
            queue.append((connection, request))
            return
        self._busy[sid] = deque()
        if self._waiting or self.pool.full():
            self._wait_for_place(connection, request)
            while len(self._waiting) >= self._limit:
                self._space.clear()
                self._space.wait()
        else:
            self._spawn(connection, request)

    def _spawn(self, connection: Connection, request: Request) -> None:
        self._own.add(self.pool.spawn(self._handle, connection, request))

    def _wait_for_place(self, connection: Connection, request: Request) -> None:
        self._waiting.append((connection, request))
        self._work.set()

    def _feed_pool(self) -> None:
        while True:
            while self._waiting:
                self.pool.wait_available()
                self._spawn(*self._waiting.popleft())
                self._space.set()
            self._work.clear()
            self._work.wait()

    def _handle(self, connection: Connection, request: Request) -> None:
        assert self._handler is not None
        try:
            self._handler(connection, request)
        except ConnectionClosed as error:
            log.debug("%s %s: the client went away: %s", request.method, request.path, error)
        except Exception:
            log.exception("the handler of %s %s failed", request.method, request.path)
            self._answer_failure(connection, request)
        finally:
            sid = (request.sender, request.conn_id)
            queue = self._busy[sid]
            if queue:
                self._wait_for_place(*queue.popleft())
            else:
                del self._busy[sid]

    def _answer_failure(self, connection: Connection, request: Request) -> None:
        if request.method in _NO_ANSWER:
            return
        try:
            if connection.started(request):
                connection.close(request)
            else:
                connection.reply_http(request, "Internal Server Error\n", 500, headers={"Content-Type": "text/plain"})
        except GreentxError as error:
            log.warning("%s %s: the failure could not be answered: %s", request.method, request.path, error)

    def _refuse(self, connection: Connection, request: Request) -> None:
        """No handler for requests was given: only WebSockets are served here."""
        if request.method == "DISCONNECT":
            return
        if request.method in ("JSON", "XML"):
            connection.close(request)
        else:
            headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Content-Type": "text/plain"}
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
            return  # let in before serve() was called, and ended since
        socket._feed(request)
        if request.method == "WEBSOCKET_CLOSE":
            del self._sockets[sid]

    def _open(self, handler: WebSocketHandler, connection: Connection, request: Request, entry: Entry) -> None:
        runtime = self._runtime
        socket = WebSocket(connection, entry, request, runtime.registry, runtime.options.max_queue)
        self._sockets[entry.sid] = socket
        self._socket_greenlets.spawn(self._run_websocket, handler, socket)

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
        """Block until every request that was dispatched has been handled."""
        while self._waiting or self.greenlets():
            gevent.joinall(self.greenlets(), count=1)
            gevent.sleep(0)

    def stop(self) -> None:
        """End the dispatcher's own greenlet; handlers that still run are left to whoever stops the Transceiver."""
        self._feeder.kill()
