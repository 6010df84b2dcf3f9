"""WebSockets that a handler let in which is no more: nobody knows them here, and they only listen.

Mongrel2 keeps a browser's connection when the handler is killed, or its link to the handler breaks, and tells nobody.
One that sends something is told by 1012 to connect again (:meth:`greentx.protocol.websocket.machine.Machine.stray`);
one that only listens would wait forever. So where the server's control port is known, it is asked which WebSockets
there are, in each life of the server, and those that are not known here are pinged: their pongs are something sent.

The server does not say whose they are. A WebSocket of another handler's answers to that one, which a pong that nobody
asked for does not hurt (RFC 6455, section 5.5.3). One whose 101 was not written yet gets no ping: it would read it as
the answer to its handshake.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from math import inf
from time import monotonic

from gevent.event import Event

from ..errors import GreentxError, TransportError
from ..protocol.server_control import STATUS_NET, WEBSOCKET_TYPE, NetRow, parse_status_net
from ..protocol.websocket.frames import Opcode, build_frame
from ..protocol.websocket.machine import PING_PAYLOAD
from ..protocol.websocket.registry import Registry
from ..transport import Context
from ..transport.asking import ask
from .link import Link

__all__ = ["Orphans", "ServerControl"]

log = logging.getLogger("greentx.session")

# How long the control port may take to answer.
_ANSWER_SECONDS = 2.0

# One that did not is not asked for so long: whoever asks waits for it.
_RETRY_SECONDS = 2.0

# So often a life of a server is looked at, an interval of the pinger's apart: a pong may be lost with whoever was told.
_LOOKS = 2

_PING = build_frame(PING_PAYLOAD, Opcode.PING)


class ServerControl:
    """Asks a Mongrel2's control port.

    Args:
        context: Owner of the sockets.
        endpoint: Of the control port.
    """

    def __init__(self, context: Context, endpoint: str) -> None:
        self.endpoint = endpoint
        self._context = context
        self._retry_at = -inf

    def connections(self) -> dict[str, NetRow]:
        """Return what the server knows of its connections, by their ids. Blocks this greenlet for 2 s at the most.

        Raises:
            TransportError: It did not answer, now or a moment ago.
            RemoteProtocolError: Its answer means nothing.
        """
        if monotonic() < self._retry_at:
            raise TransportError(f"the control port {self.endpoint} did not answer just now")
        answer, _asked = ask(self._context, self.endpoint, STATUS_NET, _ANSWER_SECONDS, Event())
        if answer is None:
            self._retry_at = monotonic() + _RETRY_SECONDS
            raise TransportError(f"the control port {self.endpoint} did not answer within {_ANSWER_SECONDS:g} s")
        return parse_status_net(answer)


class Orphans:
    """Those of one connection set.

    Args:
        link: To the server.
        registry: The WebSockets that are known; what a client whose 101 was written is not in was let in elsewhere.
        senders: What the server says of itself, as far as WebSockets came with it.
        control: The server's control port.

    Attributes:
        pinged: How many unknown WebSockets were pinged so far.
    """

    def __init__(self, link: Link, registry: Registry, senders: Collection[str], control: ServerControl) -> None:
        self.pinged = 0
        self._link = link
        self._registry = registry
        self._senders = senders
        self._control = control
        self._life = link.life
        self._looks_left = _LOOKS
        self._warned = False

    def look(self) -> None:
        """Look for unknown ones, if that was not done in this life of the server; called by the pinger.

        Blocks this greenlet until the control port has answered, and while the pipe to the server is full.
        """
        link = self._link
        life = link.life
        if life is not self._life:
            self._life, self._looks_left, self._warned = life, _LOOKS, False
        if not self._looks_left or link.stand_in:
            return
        try:
            rows = self._control.connections()
            # The ids are of another life, if it restarted meanwhile.
            if link.life is not life or not link.ready:
                return
            # Known ones last: who was let in while the answer came is known by now.
            unknown = [
                conn_id
                for conn_id, row in rows.items()
                if row.kind == WEBSOCKET_TYPE and row.bytes_written and not self._known(conn_id)
            ]
            self._looks_left -= 1
            if unknown:
                log.info("%s: %d WebSockets that nobody here let in are pinged", link.sender, len(unknown))
                self.pinged += len(unknown)
                link.writer.write_many(link.sender, unknown, _PING)
        except GreentxError as error:
            # Tried again with the next interval.
            if not self._warned:
                self._warned = True
                log.warning("%s: WebSockets that nobody here let in cannot be looked for: %s", link.sender, error)

    def _known(self, conn_id: str) -> bool:
        return any((sender, conn_id) in self._registry for sender in self._senders)
