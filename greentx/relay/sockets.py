"""A relay's WebSockets: the API runs their protocol, applications on Nodes have what is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..handler.connection import Connection
from ..handler.shared import Extension, Shared
from ..handler.transceiver import Transceiver
from ..protocol.carrier import Receipt
from ..protocol.kinds import Kind
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.registry import Entry
from .claiming import Claiming
from .nodes import Nodes
from .socket_openings import SocketOpenings, handshake_of
from .socket_sends import SocketSends
from .socket_table import Socket, SocketTable
from .sticky import Sticky

__all__ = ["Sockets"]


class Sockets(Extension):
    """All of one relay.

    All methods belong to the hub's thread, and none blocks.

    Args:
        transceiver: The API's.
        shared: Its.
        nodes: The Nodes.
        sticky: Whose browser connections are whose.
        claiming: Which Nodes have which sessions of applications.
        send_timeout: Seconds that a held handshake waits for a Node; ``None``: as long as its client.
    """

    def __init__(
        self,
        transceiver: Transceiver,
        shared: Shared,
        nodes: Nodes,
        sticky: Sticky,
        claiming: Claiming,
        send_timeout: float | None,
    ) -> None:
        self._shared = shared
        self._table = SocketTable(nodes, sticky, claiming)
        self._openings = SocketOpenings(nodes, self._table, send_timeout)
        self._sends = SocketSends(transceiver, shared, nodes, self._table)

    # -- where one begins --------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, request: Request) -> Callable[[Request], None]:
        """One begins, and all that comes of it goes straight to a Node: return what gets it."""
        return partial(self._table.feed, self._begin(connection, request, request.entry, {}))

    def forward(self, connection: Connection, request: Request, extra: Mapping[str, Any]) -> None:
        """An event of one, or an opening handshake, that the application hands on.

        Of one whose beginning was not handed on this is the beginning.
        """
        if request.method == Kind.WEBSOCKET_HANDSHAKE:
            self._openings.hold(connection, request, extra)
            return
        socket = self._table.by_sid.get(request.sid)
        if socket is None:
            entry = request.entry or self._shared.registry.get(request.sid)
            # Nobody here would see the end of one that has ended.
            if entry is None:
                return
            socket = self._begin(connection, request, entry, extra)
        if request.method != Kind.WEBSOCKET_CONNECT:
            self._table.feed(socket, request)

    def _begin(self, connection: Connection, request: Request, entry: Entry, extra: Mapping[str, Any]) -> Socket:
        socket = self._table.add(connection, request.sid, handshake_of(request, extra))
        socket.entry = entry
        self._table.place(socket, request)
        return socket

    # -- where one ends ----------------------------------------------------------------------------------------------

    def ended(self, request: Request) -> None:
        """The application hands on the end of one."""
        socket = self._table.by_sid.get(request.sid)
        if socket is not None:
            self._table.feed(socket, request)

    def websocket_ended(self, connection: Connection, event: Request) -> None:
        """The end is told behind all that came before: where the application hands that on, when it drops *event*."""
        socket = self._table.by_sid.get(event.sid)
        if socket is not None:
            code = event.close_code or CloseCode.ABNORMAL_CLOSURE
            event.receipt = _Last(partial(self._end_soon, socket, code, event.close_reason))

    def _end_soon(self, socket: Socket, code: int, reason: str) -> None:
        # In the hub: another native thread may be the last to have the event.
        if self._shared.context.open:
            self._shared.context.hub.loop.run_callback_threadsafe(self._table.ended, socket, code, reason)

    def client_gone(self, request: Request) -> None:
        """The server's notice: a client whose handshake is held may have gone."""
        socket = self._table.by_sid.get(request.sid)
        if socket is not None and socket.held is not None:
            self._table.ended(socket, CloseCode.ABNORMAL_CLOSURE, "")

    def lost(self, connection: Connection) -> None:
        """The server has gone: of the open ones the end was told."""
        for socket in self._table:
            if socket.connection is connection:
                if socket.held is not None:
                    self._table.ended(socket, CloseCode.ABNORMAL_CLOSURE, "the server restarted")
                elif socket.ending is not None and socket.session is None:
                    self._table.forget(socket)

    def refuse_held(self) -> None:
        """The Transceiver stops, and lets nobody in any more: answer 503 to those that wait for an application."""
        for socket in self._table:
            if socket.held is not None:
                socket.connection.answers.fail(socket.held, 503)
                self._table.ended(socket, CloseCode.GOING_AWAY, "")

    def stop_intake(self, timeout: float) -> None:
        """Nobody is let in any more."""
        self.refuse_held()

    def stop(self, linger: float) -> None:
        """End what has not ended; safe to call twice."""
        if self not in self._shared.extensions:
            return
        self._shared.extensions.remove(self)
        self._openings.stop()
        self._sends.stop()
        self.refuse_held()
        for socket in self._table:
            if socket.entry is not None:
                socket.connection.sessions.close(socket.entry, CloseCode.GOING_AWAY)
            self._table.ended(socket, CloseCode.GOING_AWAY, "")
            self._table.forget(socket)

    def status(self) -> dict[str, int]:
        """Return what ``STATUS`` shows."""
        table = self._table
        return {
            "open": len(table.by_sid),
            "waiting": len(table.waiting),
            "adopted": table.adopted,
            "redelivered": table.redelivered,
        }


class _Last(Receipt):
    """Calls something, at the latest when nobody has the event that it is kept with any more."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def done(self) -> None:
        self._call()

    def __del__(self) -> None:
        self._call()
