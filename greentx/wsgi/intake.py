"""What comes in for a WSGI server: each event of its Transceiver becomes an exchange, a piece of one, or its end.

::

    event -+- HTTP request, handshake --> Exchange --> schedule --> WSGIServer.do_handle
           +- UPLOAD_STREAM ------------> the last exchange of its connection
           +- DISCONNECT ---------------> exchanges of its connection
           +- anything else ------------> closed: a WSGI application has no use for it

It is also the Transceiver's worker for the server: what has to be waited for, and killed, before the sockets go.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import get_hub

from ..errors import GreentxError
from ..handler.schedule import Schedule
from ..protocol.cache import SmallMap
from ..protocol.framing import FramingError
from ..protocol.kinds import NO_ANSWER, Kind
from ..protocol.proxies import TrustedProxies
from ..relay import Node
from ..transport import Supervised
from .exchange import Exchange

if TYPE_CHECKING:
    from ..handler.connection import Connection
    from ..handler.transceiver import Transceiver
    from ..protocol.request import Request
    from ..protocol.websocket.registry import Sid

__all__ = ["KNOWN_ADDRESSES", "MAX_WAITING", "Intake"]

log = logging.getLogger("greentx.wsgi")

#: Connections that may wait for a place in the pool; requests of more are answered 503.
MAX_WAITING = 10000

# How many requests a log line names, and how much of their paths.
_MAX_SHOWN = 10
_MAX_PATH = 200

# Browsers' addresses, as handlers are given them: those of few proxies, or of very many browsers.
_MAX_ADDRESS_SIZE = 64
KNOWN_ADDRESSES: SmallMap[Any, tuple[str, int]] = SmallMap(1024)


class Intake:
    """Reads the events of a Transceiver for a server.

    Args:
        answer: Has an exchange answered, in its greenlet.
        on_end: Called when the Transceiver was stopped by its owner.
        proxies: Which proxies are trusted; ``None``: none, and their headers are not read.

    Attributes:
        schedule: When each exchange is handled.
        transceiver: Where events come from at present, else ``None``.
        node: The same, where it is a Node of a relay.
        closed_to: Returns whether a request is refused since the server is closing; ``None`` while it is not. Set by
            :meth:`close_to`.
    """

    def __init__(
        self,
        answer: Callable[[Exchange], object],
        on_end: Callable[[], object],
        proxies: TrustedProxies | None = None,
    ) -> None:
        self.schedule: Schedule[Exchange] = Schedule(answer, self.refuse, _end_body)
        # Until start_accepting(), requests wait.
        self.schedule.pause()
        self.transceiver: Transceiver | None = None
        self.node: Node | None = None
        self.closed_to: Callable[[Request], bool] | None = None
        self._on_end = on_end
        # Called for each request.
        self._address_of = _address_of if proxies is None else partial(_address_behind, proxies)
        # Where it has to be known that handlers of ours wait for their browsers.
        self._pools: list[Any] = []
        self._reader: Supervised | None = None
        # What the Transceiver did before us, to be given back to its owner.
        self._handshake_events = False

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self, transceiver: Transceiver) -> None:
        """Read the events of *transceiver*, whose end waits for what came of them."""
        # Before the first event is read: the Transceiver may be stopped at any time.
        transceiver.attach(self)
        self.transceiver = transceiver
        self.node = transceiver if isinstance(transceiver, Node) else None
        self._pools = transceiver.shared().pools
        self._pools.append(self.schedule.jobs)
        self._handshake_events = transceiver.handshake_events
        # Whether a client is let in is the application's decision; see greentx.wsgi.upgrade.
        transceiver.handshake_events = True
        self._reader = Supervised("reader of the WSGI server", partial(self._read, transceiver))
        self._reader.start()

    def close_to(self, refused: Callable[[Request], bool], *, front_end_ends: bool) -> None:
        """Answer 503 to what comes from now on, where *refused* says so.

        Args:
            front_end_ends: What is being answered is the last that its connection gets, and says so.
        """
        self.closed_to = refused
        if front_end_ends:
            for line in self.schedule.lines.lines.values():
                line[-1].is_last = True

    def give_back(self) -> None:
        """Have the Transceiver, which is somebody else's, answer opening handshakes as before."""
        if self.transceiver is not None:
            self.transceiver.handshake_events = self._handshake_events

    def stop_reading(self) -> None:
        """Read no more. Blocks for a moment."""
        if self._reader is not None:
            self._reader.kill()

    def end(self) -> None:
        """All exchanges have ended, and the Transceiver was stopped or detached from. Blocks for a moment."""
        self.schedule.stop()
        if self.schedule.jobs in self._pools:
            self._pools.remove(self.schedule.jobs)
        self.transceiver = self.node = self._reader = self.closed_to = None

    def handed_over(self, call: Callable[[], object]) -> bool:
        """Where this is not the native thread in which it was started, have that one make *call*, and return True."""
        transceiver = self.transceiver
        if transceiver is None or not transceiver.started:
            return False
        context = transceiver.shared().context
        if context.in_hub_thread():
            return False
        context.hand_over(call)
        return True

    # -- events ----------------------------------------------------------------------------------------------------

    def _read(self, transceiver: Transceiver) -> None:
        # Begun again after an error, it may find the end: of a Transceiver that is somebody else's.
        for sid, connection, request in transceiver.recv() if transceiver.started else ():
            try:
                if request.method in NO_ANSWER:
                    self._event(sid, connection, request)
                else:
                    self._request(sid, connection, request)
            except GreentxError as error:
                log.warning("%r: %s", request, error)
            except Exception:  # noqa: BLE001 - one request ends, not the server
                get_hub().loop.handle_error((request, self), *sys.exc_info())
            del request  # this frame must not hold it, with its stored body, until the next one comes
        # Where we are the owner, it was us, and this is nothing new.
        self._on_end()

    def _request(self, sid: Sid, connection: Connection, request: Request) -> None:
        exchange = Exchange(connection, request, sid)
        life = request.life
        if life is not None and life.over:
            exchange.drop()  # its connection, or its server, has gone meanwhile
            return
        schedule = self.schedule
        if (self.closed_to is not None and self.closed_to(request)) or (
            # Only connections count, not what each has pipelined: one client could have others refused otherwise.
            schedule.waiting and (len(schedule.waiting) >= MAX_WAITING or self._is_full(connection))
        ):
            self.refuse(exchange)
            # Its stored body is not needed any more.
            exchange.drop()
            return
        try:
            exchange.address = self._address_of(request)
        except FramingError as error:
            log.warning("%r is answered 400: %s", request, error)
            self.refuse(exchange, HTTPStatus.BAD_REQUEST)
            exchange.drop()
            return
        schedule.add(exchange)

    def _is_full(self, connection: Connection) -> bool:
        limit = connection.intake.inbox.byte_limit
        if self.schedule.held < limit:
            return False
        log.warning("%d bytes of requests wait for the pool, max_pending_bytes is %d: 503", self.schedule.held, limit)
        return True

    def _event(self, sid: Sid, connection: Connection, request: Request) -> None:
        method = request.method
        if method == Kind.UPLOAD_STREAM:
            exchange = self.schedule.lines.last(sid)
            if exchange is not None:
                exchange.feed(request)
                # The last piece may be all that the end of the server waits for.
                if not exchange.receiving:
                    self.schedule.tell()
        elif method == Kind.DISCONNECT:
            self._client_gone(sid)
        elif method == Kind.WEBSOCKET_CONNECT:
            connection.close(request)  # the Transceiver let it in before the server was started
        elif method == Kind.JSON or method == Kind.XML:
            connection.close(request)  # a socket of Mongrel2's own, not HTTP

    def _client_gone(self, sid: Sid) -> None:
        """The handler of its request is told; what is behind that, or waits for the pool, is not handled."""
        first = self.schedule.drop_behind(sid)
        if first is not None:
            first.lose()
            if first in self.schedule.waiting:
                self.schedule.drop(first)

    def refuse(self, exchange: Exchange, code: int = HTTPStatus.SERVICE_UNAVAILABLE) -> None:
        """Answer it here, by default with 503: the server is full or stopping. Never blocks."""
        try:
            if not exchange.ended and not exchange.disconnected.is_set():
                exchange.connection.answers.fail(exchange.request, code)
                # Mongrel2 keeps a connection whose upload is not granted, closed or not (probed).
                exchange.grant_rest()
        except GreentxError as error:
            log.warning("%r could not be refused: %s", exchange, error)

    # -- what the Transceiver asks of its workers ------------------------------------------------------------------

    def greenlets(self) -> list[Any]:
        """Return the greenlets that handle requests now."""
        return self.schedule.jobs.greenlets()

    def join(self) -> None:
        """Block until every request that came has been handled, but for what this greenlet handles."""
        self.schedule.join()

    def kill(self, timeout: float) -> int:
        """End all handlers but this greenlet within *timeout* seconds; requests that wait get a 503.

        Whose requests they were is logged.

        Returns:
            How many there were, running or waiting.
        """
        current = gevent.getcurrent()
        left = [exchange for exchange in self.schedule.lines if exchange.greenlet is not current]
        if left:
            shown = ", ".join(_shown(exchange) for exchange in left[:_MAX_SHOWN])
            more = f" and {len(left) - _MAX_SHOWN} more" if len(left) > _MAX_SHOWN else ""
            log.warning("requests that have not ended are killed (%d): %s%s", len(left), shown, more)
        return self.schedule.kill(timeout)

    def __repr__(self) -> str:
        return f"<Intake of {self.transceiver!r}: {self.schedule!r}>"


def _end_body(exchange: Exchange, wait: bool) -> None:
    """End an answer whose request's body has not ended: read that to its end first, or close behind the answer."""
    try:
        if wait:
            exchange.linger()
        else:
            exchange.let_go()
    except GreentxError as error:
        log.warning("%r could not be ended: %s", exchange, error)


def _address_behind(proxies: TrustedProxies, request: Request) -> tuple[str, int]:
    proxies.apply(request)
    return _address_of(request)


def _shown(exchange: Exchange) -> str:
    """Return whose request it is, for a log."""
    request = exchange.request
    method = "WebSocket" if request.method == Kind.WEBSOCKET_HANDSHAKE else request.method
    state = "" if exchange.begun else ", had not begun"
    return f"{method} {request.path[:_MAX_PATH]!r} (from {exchange.address[0]}{state})"


def _address_of(request: Request) -> tuple[str, int]:
    """Return what handlers are given as the browser's address; Mongrel2 does not tell its port."""
    raw = request.raw
    host = raw.get(b"REMOTE_ADDR") or raw.get("REMOTE_ADDR")
    try:
        address = KNOWN_ADDRESSES.get(host)
    except TypeError:  # not text, which no Mongrel2 sends
        return "", 0
    if address is None:
        text = request.header("REMOTE_ADDR")
        address = text if isinstance(text, str) else "", 0
        if len(address[0]) <= _MAX_ADDRESS_SIZE:
            KNOWN_ADDRESSES.keep(host, address)
    return address
