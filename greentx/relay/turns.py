"""Requests that an API forwards one by one, while it answers others of the same browser connection itself.

Neither process knows what the other one wrote: the next one is forwarded, or answered, once the answer before it has
arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group

from ..errors import GreentxError
from ..handler.connection import Connection
from ..protocol.request import Request
from ..transport import SocketClosed
from .forwarded import Forwarded
from .nodes import NodeSession
from .proofs import Proofs

__all__ = ["Turns"]

log = logging.getLogger("greentx.relay")

# Between an answer of ours and the next request of that connection for a Node, where requests are pipelined.
_TURN_SECONDS = 0.005

# While an answer of ours waits to be written, the request behind it waits, too: so long at a time.
_LOOK_SECONDS = 0.002


class Turns:
    """Waits for answers to arrive.

    Args:
        proofs: Tell when they have.
        forward_now: Forwards a request, headers that are added, and what stands in its place here. May block.
    """

    def __init__(
        self, proofs: Proofs, forward_now: Callable[[Connection, Request, Mapping[str, Any], Request | None], object]
    ) -> None:
        self._proofs = proofs
        self._forward_now = forward_now
        self._later = Group()
        self._stopped = False
        # Those of which no greenlet has seen to the end.
        self._unfinished: dict[int, tuple[Connection, Request]] = {}

    def stop(self) -> None:
        """Wait for nothing any more: the connections of what waits are closed, and of what has its turn later."""
        self._stopped = True
        self._later.kill()
        # One that is killed before it begins runs nothing at its end.
        unfinished, self._unfinished = self._unfinished, {}
        for connection, stand_in in unfinished.values():
            self._close(connection, stand_in)

    def forward(self, connection: Connection, request: Request, extra: Mapping[str, Any]) -> None:
        """It is this pipelined request's turn; for this process it has been answered. May be called in the hub."""
        # At once: what comes behind it meanwhile has to wait for this one, and not for the one before.
        stand_in = connection.link.life.requests.delegate(request)
        stand_in.stored = request.stored
        if self._stopped:
            # Not at once: the answer before it is about to be written.
            gevent.get_hub().loop.run_callback(self._close, connection, stand_in)
            return
        self._unfinished[id(stand_in)] = connection, stand_in
        self._later.spawn(self._forward, connection, request, extra, stand_in)

    def _forward(self, connection: Connection, request: Request, extra: Mapping[str, Any], stand_in: Request) -> None:
        is_done = False
        try:
            # Two processes in turn write to one connection, of which neither knows what the other wrote, and Mongrel2
            # kills it at the 17th message in its queue: give it time. And what is before has to have arrived.
            gevent.sleep(_TURN_SECONDS)
            while connection.link.writer.flow.waiting(request.conn_id):
                gevent.sleep(_LOOK_SECONDS)
            arrived = Event()
            self._proofs.ask(connection, arrived.set)
            arrived.wait()
            if connection.answers.is_ours(stand_in):
                self._forward_now(connection, request, extra, stand_in)
            is_done = True
        except GreentxError as error:
            log.warning("%s %s could not be forwarded, closing its connection: %s", request.method, request.path, error)
        finally:
            # Also where the relay is closed meanwhile: the browser can try again, waiting would help nobody.
            if self._unfinished.pop(id(stand_in), None) is not None and not is_done:
                self._close(connection, stand_in)

    @staticmethod
    def _close(connection: Connection, stand_in: Request) -> None:
        with suppress(SocketClosed):  # then all connections end
            connection.close(stand_in)

    def answered(self, session: NodeSession, entries: list[Forwarded]) -> None:
        """A Node answered requests: the next ones of their connections may be, once these answers have arrived."""
        # One proof for many answers of one server: each costs the server a notice.
        awaited: dict[Connection, list[Request]] = {}
        for entry in entries:
            # Nothing is pipelined behind nearly all of them: then it does not matter when the answer arrives.
            if entry.conn_id in entry.life.requests.behind:
                awaited.setdefault(entry.connection, []).append(entry.request)
            else:
                self._release(entry.connection, [entry.request])
        for connection, requests in awaited.items():
            self._proofs.ask(connection, partial(self._release, connection, requests), session)

    def _release(self, connection: Connection, requests: list[Request]) -> None:
        for request in requests:
            # The server may have restarted while the proof was waited for.
            if request.life is connection.link.life:
                connection.answers.release(request)
