"""The loop of a relay that hands on all that comes, for an API that decides nothing itself.

Nearly all of it never gets to the loop: a connection set's intake gives each request to the relay as it was received,
in the receiver's greenlet. What comes out of ``recv()`` all the same is what came before the loop began, and what is
not forwarded as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import gevent
from gevent.pool import Group

from ..errors import GreentxError, SendTimeout
from ..handler.connection import Connection
from ..handler.shared import Shared
from ..handler.transceiver import Transceiver
from ..protocol.kinds import ENDS, WEBSOCKETS
from ..protocol.request import Request
from .forwarding import Forwarding
from .plain import Plain
from .servers import Servers
from .sockets import Sockets

__all__ = ["Serving"]

log = logging.getLogger("greentx.relay")


class Serving:
    """Hands on all that comes to a Transceiver. All methods belong to the hub's thread.

    Args:
        transceiver: Where it comes from.
        shared: What its connection sets share.
        servers: Are told of credits first.
        forwarding: Gets requests, as they came.
        sockets: Gets what WebSockets bring.
        forward: Forwards an event that came out of ``recv()``; may block.
    """

    def __init__(
        self,
        transceiver: Transceiver,
        shared: Shared,
        servers: Servers,
        forwarding: Forwarding,
        sockets: Sockets,
        *,
        forward: Callable[[Request], object],
    ) -> None:
        self._transceiver = transceiver
        self._shared = shared
        self._servers = servers
        self._forwarding = forwarding
        self._receive = sockets.receive
        self._forward = forward
        self._stopped = False
        self._loops = Group()
        # Events that wait for a Node which has room.
        self._waiting = Group()

    def run(self) -> None:
        """Block this greenlet until the Transceiver stops, or :meth:`stop`."""
        for connection in self._transceiver.connections.values():
            self._connect(connection)
        receivers = self._shared.websocket_receivers
        receivers.append(self._receive)
        # In a greenlet of its own, which stop() can end without harm to the caller's.
        loop = self._loops.spawn(self._read)
        try:
            loop.get()
        finally:
            loop.kill()
            receivers.remove(self._receive)
            # Else what comes is answered 503: see stop().
            if not self._stopped:
                for connection in self._transceiver.connections.values():
                    _disconnect(connection)

    def ready(self, connection: Connection) -> None:
        """The server of *connection* is there: where a loop runs, what it sends is handed on, too."""
        if self._receive in self._shared.websocket_receivers:
            self._connect(connection)

    def stop(self) -> None:
        """End the loops; what comes is answered 503 from now on, until somebody else reads it."""
        self._stopped = True
        if self._loops:
            for greenlet in list(self._loops):
                # One that stops the relay itself leaves its loop behind that.
                if greenlet is not gevent.getcurrent():
                    greenlet.kill()
            for connection in self._transceiver.connections.values():
                connection.intake.raw_taker = partial(self._give_way, connection)
        self._waiting.kill()

    def _read(self) -> None:
        for _sid, connection, request in self._transceiver.recv():
            if request.method in WEBSOCKETS:
                self._forward_or_refuse(connection, request)
            elif request.method not in ENDS:
                self._waiting.spawn(self._forward_or_refuse, connection, request)
            del request  # this frame must not hold it until the next one comes
            if self._stopped:
                break

    def _forward_or_refuse(self, connection: Connection, request: Request) -> None:
        try:
            self._forward(request)
        except SendTimeout:
            connection.answers.fail(request, 503)
        except GreentxError as error:
            log.warning("%s %s could not be forwarded: %s", request.method, request.path, error)

    def _connect(self, connection: Connection) -> None:
        """Have the intake of *connection* give what it receives to the relay."""
        connection.intake.taker = partial(self._hand_on, connection)
        connection.intake.raw_taker = Plain(connection, self._forwarding).take

    def _hand_on(self, connection: Connection, request: Request, message: bytes) -> None:
        self._servers.check_credits(connection)
        self._forwarding.take(connection, request, message)

    def _give_way(self, connection: Connection, message: bytes) -> bool:
        # Somebody else has begun to read what comes.
        if self._shared.readers:
            _disconnect(connection)
        return False


def _disconnect(connection: Connection) -> None:
    connection.intake.taker = connection.intake.raw_taker = None
