"""What ``serve()`` works with: each event is given to a greenlet.

Requests, and the other events of plain connections, go through :mod:`greentx.handler.schedule`: those of one connection
in order, as the pool has room. Each WebSocket has a greenlet of its own, next to the pool, and its messages go there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import gevent
from gevent.pool import Pool

from ..errors import ConnectionClosed, GreentxError
from ..protocol.kinds import NO_ANSWER, SOCKETS, WEBSOCKETS, Kind
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.registry import Sid
from .connection import Connection
from .schedule import Job, Schedule
from .shared import Shared
from .websocket import WebSocket

__all__ = ["Dispatcher", "Handler", "WebSocketHandler"]

log = logging.getLogger("greentx.dispatcher")

Handler = Callable[[Connection, Request], object]
WebSocketHandler = Callable[[WebSocket], object]

# A name of its own, since looking it up in the enum would cost more than the comparison, for each event.
_DISCONNECT = Kind.DISCONNECT.value

_UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Content-Type": "text/plain",
}


class Dispatcher:
    """Hands events to handlers.

    Args:
        shared: The Transceiver's.
        handler, websocket, pool: As given to ``serve``.

    Raises:
        ValueError: *pool* is a number below 1: nothing would ever be handled.

    Attributes:
        requests: What is handled in the pool, and waits for it.
        news: Disconnects of clients whose request is being handled.
    """

    def __init__(
        self,
        shared: Shared,
        handler: Handler | None,
        websocket: WebSocketHandler | None,
        pool: int | Pool | None,
    ) -> None:
        self._handler = _refuse if handler is None else handler
        self._websockets = None if websocket is None else _WebSockets(shared, websocket)
        self._receivers = shared.websocket_receivers
        self._ended = False
        self._pools = shared.pools
        self._limit, self._byte_limit = shared.inbox.limit, shared.inbox.byte_limit
        self.requests: Schedule[Job] = Schedule(self._handle, self._unavailable)
        # News of the end of a request's client does not wait for the pool: were that full of handlers that wait for
        # just this news, it would never come. So that such handlers have a bound as well, there are as many places.
        self.news: Schedule[Job] = Schedule(self._handle, self._unavailable)
        if pool is None or isinstance(pool, int):
            size = float("inf") if pool is None else pool
            if size < 1:
                raise ValueError(f"pool is how many handlers may run at once, so at least 1; not {pool!r}")
            self.requests.jobs.use_pool(limit=size)
        else:
            size = float("inf") if pool.size is None else pool.size
            self.requests.jobs.use_pool(pool, launch=_spawner(self.requests, pool))
        self.news.jobs.use_pool(limit=size)
        self._pools += [self.requests.jobs, self.news.jobs]
        # Last: what raises before this leaves nothing behind.
        shared.inbox.dispatching.add(shared.context.caller())
        if self._websockets is not None:
            self._receivers.append(self._websockets.receive)

    def dispatch(self, connection: Connection, request: Request) -> None:
        """Hand one event on; blocks this greenlet only while as many wait for the pool as the inbox holds."""
        requests = self.requests
        # All handlers were killed; what was pulled before still gets an answer.
        if self._ended:
            self._unavailable(Job(connection, request, request.sid))
            return
        if self._websockets is not None and request.method in WEBSOCKETS:
            self._websockets.dispatch(connection, request)
            return
        # The tuple is request.sid, which costs more, for each request.
        job = Job(connection, request, (request.sender, request.conn_id))
        if request.method == _DISCONNECT:
            self._disconnect(job)
        else:
            requests.add(job)
        # Then the inbox fills, the receiver waits, and the server keeps the rest: memory stays bounded.
        if requests.waiting or requests.lines.behind:
            requests.wait_for_space(self._limit, self._byte_limit)

    def _disconnect(self, job: Job) -> None:
        """The client went away. What it had pipelined has nobody to answer to, and would only begin after its end."""
        first = self.requests.drop_behind(job.sid)
        # Its handler has not begun, if there is one: told in order it makes sense.
        if first is None or first in self.requests.waiting:
            self.requests.add(job)
        else:
            self.news.add(job)
            self.news.wait_for_space(self._limit, self._byte_limit)

    def _handle(self, job: Job) -> None:
        connection, request = job.connection, job.request
        try:
            self._handler(connection, request)
        except ConnectionClosed as error:
            if request.life is not None and request.life.over:
                log.debug("%s %s: the client went away: %s", request.method, request.path, error)
            else:
                # Of another connection: this client still waits for its answer.
                log.warning("the handler of %s %s failed: %s", request.method, request.path, error)
                _answer_failure(connection, request)
        except Exception:
            log.exception("the handler of %s %s failed", request.method, request.path)
            _answer_failure(connection, request)
        except BaseException:  # killed, or sys.exit(), and raised again: nobody else will answer
            self._unavailable(Job(connection, request, request.sid))
            # Where all are killed another process may go on with this.
            if request.receipt is not None and not self._ended:
                request.receipt.done()
            raise
        if request.receipt is not None:
            request.receipt.done()

    def _unavailable(self, job: Job) -> None:
        request = job.request
        if request.method in NO_ANSWER:
            return
        try:
            job.connection.answers.fail(request, HTTPStatus.SERVICE_UNAVAILABLE)
        except GreentxError as error:
            log.warning("%s %s could not be refused: %s", request.method, request.path, error)

    # -- the end ---------------------------------------------------------------------------------------------------

    def greenlets(self) -> list[Any]:
        """Return the greenlets that run handlers now."""
        sockets = [] if self._websockets is None else self._websockets.greenlets()
        return [*self.requests.jobs.greenlets(), *self.news.jobs.greenlets(), *sockets]

    def join(self) -> None:
        """Block until every event that was dispatched has been handled, but for what this greenlet itself handles."""
        current = gevent.getcurrent()
        while True:
            self.requests.join()
            self.news.join()
            sockets = [] if self._websockets is None else self._websockets.greenlets()
            others = [one for one in sockets if one is not current]
            gevent.joinall(others)
            # What ended last may have been waited for by another kind of handler, which went on to the next thing.
            if not others and self.requests.is_idle() and self.news.is_idle():
                return

    def stop(self) -> None:
        """Begin nothing more; handlers that run go on."""
        self._receive_no_more()
        self.requests.stop()
        self.news.stop()
        for jobs in (self.requests.jobs, self.news.jobs):
            if jobs in self._pools:
                self._pools.remove(jobs)

    def _receive_no_more(self) -> None:
        if self._websockets is not None and self._websockets.receive in self._receivers:
            self._receivers.remove(self._websockets.receive)

    def kill(self, timeout: float) -> int:
        """End all handlers but this greenlet within *timeout* seconds; clients that wait get a 503.

        Returns:
            How many there were, running or waiting.
        """
        self._ended = True
        self._receive_no_more()
        schedules = (self.requests, self.news)
        jobs = [(schedule, schedule.kill_begun()) for schedule in schedules]
        current = gevent.getcurrent()
        sockets = [] if self._websockets is None else self._websockets.greenlets()
        greenlets = [one for one in sockets if one is not current]
        gevent.killall(greenlets, block=False)
        greenlets += [job.greenlet for _, known in jobs for job in known if job.greenlet is not None]
        gevent.joinall(greenlets, timeout=timeout)  # killall() raises where one does not die in time
        for schedule, known in jobs:
            schedule.jobs.refuse_rest(known)
        if self._websockets is not None:
            self._websockets.end()
        return len(greenlets) + sum(job.greenlet is None for _, known in jobs for job in known)


class _Greenlet(gevent.Greenlet):
    """Runs ``work(socket)``, in 1 KB less than ``gevent.spawn(work, socket)``: most of them wait, for nearly ever.

    Args:
        running: Where it is until it has ended.
    """

    __slots__ = ("_running", "_socket", "_work")

    # Where it was spawned is the same place for all.
    spawning_stack_limit = 0

    def __init__(self, work: Callable[[WebSocket], None], socket: WebSocket, running: set[_Greenlet]) -> None:
        super().__init__()
        self._work = work
        self._socket = socket
        self._running = running
        running.add(self)

    def _run(self) -> None:  # as gevent's subclasses do it
        try:
            self._work(self._socket)
        finally:
            self._running.discard(self)


class _WebSockets:
    """The greenlets of WebSockets, one for each, and what leads their messages there."""

    def __init__(self, shared: Shared, handler: WebSocketHandler) -> None:
        self._shared = shared
        self._handler = handler
        self._sockets: dict[Sid, WebSocket] = {}
        self._running: set[_Greenlet] = set()
        # One object for all.
        self._work = self._run

    def receive(self, connection: Connection, request: Request) -> Callable[[Request], None]:
        """A WebSocket begins with *request*: return what gets all further events of it."""
        return self._open(connection, request).feed

    def dispatch(self, connection: Connection, request: Request) -> None:
        """Hand an event of a WebSocket on that came through the inbox; does not block."""
        sid = (request.sender, request.conn_id)
        entry = request.entry
        if entry is not None:
            self._sockets[sid] = self._open(connection, request)
            if request.method == Kind.WEBSOCKET_CONNECT:
                return
        socket = self._sockets.get(sid)
        # Let in before serve() was called: its first message begins the handler.
        if socket is None:
            entry = self._shared.registry.get(sid)
            if entry is None:
                return  # let in before serve() was called, and ended since
            request.entry = entry
            socket = self._sockets[sid] = self._open(connection, request)
        socket.feed(request)
        if request.method == Kind.WEBSOCKET_CLOSE:
            del self._sockets[sid]

    def _open(self, connection: Connection, request: Request) -> WebSocket:
        socket = WebSocket(connection, request.entry, request, self._shared.registry)
        _Greenlet(self._work, socket, self._running).start()
        return socket

    def _run(self, socket: WebSocket) -> None:
        code, killed = CloseCode.NORMAL_CLOSURE, False
        try:
            self._handler(socket)
        except ConnectionClosed as error:
            log.debug("%r: %s", socket, error)
        except Exception:
            log.exception("the handler of %r failed", socket)
            code = CloseCode.INTERNAL_ERROR
        except BaseException:  # killed, and raised again: the close frame says so
            code, killed = CloseCode.GOING_AWAY, True
            raise
        finally:
            # In any case, also where the handler was killed: nobody else would close it.
            try:
                socket.finish(code, killed=killed)
            except GreentxError as error:
                log.warning("%r could not be closed: %s", socket, error)

    def greenlets(self) -> list[Any]:
        """Return those that run."""
        # One that was killed before it began did not say so.
        return [one for one in self._running if not one.ready()]

    def end(self) -> None:
        """Wake all that wait for a WebSocket, others than its handler too: nobody brings them news of its end now."""
        for socket in self._sockets.values():
            socket.end()
        self._sockets.clear()


def _spawner(schedule: Schedule[Job], pool: Pool) -> Callable[[Job], object] | None:
    """Return how jobs begin in *pool*; ``None`` where any greenlet may have a place in it."""
    # A subclass may do more in spawn() than gevent does; what it has of its own is used.
    if type(pool) is Pool and pool.greenlet_class is gevent.Greenlet:
        return None
    return lambda job: schedule.jobs.spawn_by(pool.spawn, job)


def _answer_failure(connection: Connection, request: Request) -> None:
    if request.method in NO_ANSWER:
        return
    try:
        if connection.answers.started(request):
            # Half an answer went out: the end of the connection is the only way left to say that it failed.
            if not request.answered:
                connection.close(request)
        else:
            # It waits as any answer, so that handlers which fail at once do not fill the memory.
            headers = {"Content-Type": "text/plain"}
            connection.reply_http(request, "Internal Server Error\n", 500, headers=headers)
    except GreentxError as error:
        log.warning("%s %s: the failure could not be answered: %s", request.method, request.path, error)


def _refuse(connection: Connection, request: Request) -> None:
    """The handler where none was given: only WebSockets are served here.

    It runs in the pool as any other. An answer may have to wait for the server, and WebSockets must not wait for that.
    """
    try:
        if request.method in SOCKETS:
            connection.close(request)
        elif request.method not in NO_ANSWER:
            connection.reply_http(request, "only WebSockets are served here\n", 426, headers=_UPGRADE)
    except GreentxError as error:
        log.warning("%s %s could not be refused: %s", request.method, request.path, error)
