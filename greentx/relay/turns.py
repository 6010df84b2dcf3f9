"""Requests that an application forwards one by one, while it answers others of the same browser connection itself.

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

from ..errors import GreentxError, SendTimeout
from ..handler.connection import Connection
from ..protocol.request import Request
from ..protocol.requests import build_request
from ..transport import SocketClosed
from .forwarded import Forwarded
from .forwarding import Forwarding
from .nodes import Nodes, NodeSession
from .proofs import Proofs

__all__ = ["Turns", "message_of"]

log = logging.getLogger("greentx.relay")

# Between an answer of ours and the next request of that connection for a Node, where requests are pipelined.
_TURN_SECONDS = 0.005

# While an answer of ours waits to be written, the request behind it waits, too: so long at a time.
_LOOK_SECONDS = 0.002


class Turns:
    """Forwards them, and has the next one wait for the answer.

    Args:
        forwarding: Gives a request to a Node.
        nodes: The Nodes, for an error.
        proofs: Tell when an answer has arrived.
        send_timeout: Seconds that a request waits for a Node which has room; ``None`` waits forever.
        check: Raises where the relay is closed.
    """

    def __init__(
        self,
        forwarding: Forwarding,
        nodes: Nodes,
        proofs: Proofs,
        send_timeout: float | None,
        *,
        check: Callable[[], object],
    ) -> None:
        self._forwarding = forwarding
        self._nodes = nodes
        self._proofs = proofs
        self._send_timeout = send_timeout
        self._check = check
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

    def forward_now(
        self, connection: Connection, request: Request, extra: Mapping[str, Any], stand_in: Request | None = None
    ) -> None:
        """Give a request to a Node. Blocks this greenlet while none has room.

        Args:
            extra: Headers that are added.
            stand_in: What stands in its place among the open requests already.

        Raises:
            SendTimeout: None had within ``send_timeout``.
            TransportError: The relay was closed meanwhile.
        """
        forwarding = self._forwarding
        entry = Forwarded(
            connection,
            request.conn_id,
            message_of(request, extra),
            safe=forwarding.is_safe(request.method),
            request=stand_in or request,
            delegated=True,
        )
        if forwarding.claiming.hold(entry):
            entry.waiter = Event()
            entry.waiter.wait()
            entry.waiter = None
            # Its browser, or its server, has gone meanwhile.
            if entry.over:
                return
        if not forwarding.hand(entry):
            entry.waiter = Event()
            forwarding.queue.put(entry)
            try:
                entry.waiter.wait(self._send_timeout)
            finally:
                timed_out = forwarding.queue.withdraw(entry)
            if timed_out:
                endpoint = self._nodes.endpoint
                raise SendTimeout(
                    f"no Node had room for the request within {self._send_timeout} s: "
                    f"{len(self._nodes)} are connected to {endpoint}",
                    address=endpoint,
                )
            self._check()
        requests = connection.link.life.requests
        if stand_in is None and requests.heads.get(request.conn_id) is request:
            entry.request = requests.delegate(request)
            entry.request.stored = request.stored

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
                self.forward_now(connection, request, extra, stand_in)
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


def message_of(request: Request, extra: Mapping[str, Any]) -> bytes:
    """Return what a Node is sent for *request*, with some headers more."""
    if not extra:
        return request.encode()
    headers = {**request.sent_headers, **extra}
    return build_request(request.sender, request.conn_id, request.path, headers, request.body)
