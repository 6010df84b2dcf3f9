"""Ends the connections of clients that break the protocol, or a bound of ours.

Nothing here blocks: it runs in the receiver's greenlet or in the hub, where one client must not hold up the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import RemoteProtocolError
from ..protocol.framing import FramingError
from ..protocol.kinds import Kind
from ..protocol.life import ENDED
from ..protocol.replies import CANCEL, credits_body
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode
from .answers import Answers
from .link import Link
from .websockets import WebSockets

__all__ = ["Refusals", "disconnect_event"]

log = logging.getLogger("greentx.connection")

# More than is left of most bodies, and far from where Mongrel2's sum of credits overflows.
_MAX_GRANT = 1 << 30

# Of a disconnect notice.
_NOTICE_HEADERS = {b"METHOD": b"JSON"}


def disconnect_event(sender: str, conn_id: str, raw: Mapping[Any, Any] = _NOTICE_HEADERS) -> Request:
    """Return what tells the application that a client has gone; *raw* are the headers of the server's notice."""
    event = Request(sender, conn_id, "@*", raw, b'{"type":"disconnect"}', Kind.DISCONNECT.value)
    event.life = ENDED
    return event


class Refusals:
    """What one connection set does not put up with.

    Args:
        link: Where messages come from.
        sessions: The WebSockets.
        answers: For the refusals of requests.
        emit: Called with each event for the application. Must not block.

    Attributes:
        bad_messages: How many messages could not be parsed, or were not what they have to be.
    """

    def __init__(self, link: Link, sessions: WebSockets, answers: Answers, emit: Callable[[Request], None]) -> None:
        self.bad_messages = 0
        self._link = link
        self._writer = link.writer
        self._sessions = sessions
        self._answers = answers
        self._emit = emit

    def framing(self, request: Request, error: FramingError) -> None:
        """Answer 400 and close: what this connection sends from here on may be made up."""
        life, conn_id = self._link.life, request.conn_id
        if not life.requests.is_closed(conn_id):
            self.bad_messages += 1
            log.warning("%s: bad message number %d, answered 400: %s", self._link.sender, self.bad_messages, error)
        life.uploads.refuse(request)
        self._answers.at_once(request, 400)
        if request.has(Kind.UPLOAD_STREAM):
            self._grant_all(request)

    def streamed(self, request: Request) -> None:
        """Answer 413, as Mongrel2 does where it streams nothing: the rest of the body comes to other processes."""
        log.warning(
            "%s: %s of connection %s is answered 413: Mongrel2 streams its body (upload.stream) in pieces, which "
            "scatter over the processes that share this handler entry. Raise limits.content_length, or set "
            "upload.temp_store in the place of upload.stream",
            self._link.sender,
            request.method,
            request.conn_id,
        )
        self._answers.at_once(request, 413)
        self._grant_all(request)

    def _grant_all(self, request: Request) -> None:
        # Mongrel2 keeps a connection whose upload is not granted, closed or not (probed).
        self._writer.control(request.sender, [request.conn_id], credits_body(_MAX_GRANT), wait=False)

    def socket(self, request: Request, error: RemoteProtocolError) -> None:
        """Close a JSON or XML socket whose client sends something else; the application hears of it if it knew it."""
        conn_id = request.conn_id
        self.bad_messages += 1
        log.warning(
            "%s: bad message number %d, connection %s is closed: %s",
            self._link.sender,
            self.bad_messages,
            conn_id,
            error,
        )
        life = self._link.life
        life.requests.closed(conn_id)
        self._writer.close(request.sender, [conn_id], wait=False)
        if conn_id in life.sockets:
            del life.sockets[conn_id]
            self._emit(disconnect_event(request.sender, conn_id))

    def pipeline(self, request: Request, why: str) -> None:
        """Close the connection of a client that sends requests without end and does not wait for the answers."""
        conn_id = request.conn_id
        log.warning("%s: connection %s pipelines too much, closing it: %s", self._link.sender, conn_id, why)
        requests = self._link.life.requests
        requests.remove(conn_id)
        requests.closed(conn_id)  # what is still under way of it is not accepted again
        self._writer.close(request.sender, [conn_id], wait=False)
        self._emit(disconnect_event(request.sender, conn_id))

    def slow(self, conn_id: str, why: str) -> None:
        """End the connection of a browser that does not read."""
        link, life = self._link, self._link.life
        log.warning("%s: connection %s is ended: %s", link.sender, conn_id, why)
        # Its events first: whoever waits for it to read wakes when it is forgotten, and asks what became of it.
        self._sessions.end(conn_id, CloseCode.TRY_AGAIN_LATER, why)
        was_open = bool(life.requests.remove(conn_id))
        life.requests.closed(conn_id)
        life.uploads.forget(conn_id)
        if conn_id in life.sockets or was_open:
            life.sockets.pop(conn_id, None)
            self._emit(disconnect_event(link.sender, conn_id))
        self._writer.forget(conn_id, why)
        # At once: behind what it has to read it would never end. There is no notice of it (probed).
        if self._writer.flow.control.paced:
            self._writer.control(link.sender, [conn_id], CANCEL, wait=False)
