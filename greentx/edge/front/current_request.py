"""The request of a connection that is being read, on its way to its handler, and the answers that are due before it.

A connection has one of these for all its requests: an object for each would cost more than what it does.
"""

from __future__ import annotations

from ...protocol.websocket.handshake import accept_key
from .access_log import AccessLog
from .connection import BrowserConnection
from .entry import Entry
from .events import Head
from .logged_turns import LoggedTurns
from .messages import Own
from .outgoing import MAX_BYTES
from .sinks import Sink
from .streams import Piece
from .turns import Turns
from .websocket import WebSocketSide

__all__ = ["CurrentRequest"]

# As Mongrel2 says it with flow control, in the first request of a connection.
_CREDITS: Own = ((b"DOWNLOAD_CREDITS", b"%d" % MAX_BYTES),)


class CurrentRequest:
    """Hands on one request after the other. Its methods block the connection's greenlet, if they do not say otherwise.

    Attributes:
        head: ``None`` between two requests.
        sink: Where its body goes; ``None`` where it has none so far.
        turns: Whose answers are due.
    """

    __slots__ = ("_connection", "_entry", "_own", "_pattern", "_peer", "head", "sink", "turns")

    def __init__(self, connection: BrowserConnection, access_log: AccessLog | None = None) -> None:
        self.head: Head | None = None
        self.sink: Sink | None = None
        self.turns = Turns() if access_log is None else LoggedTurns(access_log, connection.address)
        self._connection = connection
        # Those of the last request stay.
        self._pattern = b""
        self._entry: Entry | None = None
        # Of every request, and of the first one.
        self._peer: Own = ()
        self._own: Own = _CREDITS if connection.outgoing.flow_control else ()

    def identify(self, fingerprint: bytes) -> None:
        """Tell handlers of the client's certificate, in all requests. Does not block."""
        self._peer = ((b"PEER_CERT_SHA1", fingerprint),)
        self._own = (*self._own, *self._peer)

    @property
    def due(self) -> int:
        """How many answers are due before its own."""
        return max(0, len(self.turns) - (self.sink is not None and self.sink.announced))

    def wait_turns(self, fewer: int) -> None:
        """Wait until *fewer* requests than that wait for their answers, or the connection ends."""
        if len(self.turns) >= fewer:
            self._connection.wait(lambda: len(self.turns) < fewer)

    def begin(self, head: Head, pattern: bytes, entry: Entry) -> None:
        """The next one has begun; it goes to *entry*, by the route *pattern*. Does not block."""
        self.head = head
        self._pattern = pattern
        self._entry = entry

    def end(self) -> None:
        """It is whole."""
        if self.sink is None:
            self.hand_over(b"")
        else:
            self.sink.end()
            self.head = self.sink = None
            self._own = self._peer

    def hand_over(self, body: bytes) -> None:
        """Hand it on with its whole body."""
        head, entry, connection = self.head, self._entry, self._connection
        assert head is not None and entry is not None
        self.head = self.sink = None
        if head.chunked:
            # As RFC 9112, section 7.1.3, has it: the body is not in chunks any more.
            head.headers = [field for field in head.headers if field[0] != b"transfer-encoding"]
            head.headers.append((b"content-length", b"%d" % len(body)))
        connection.register()
        address = connection.address.encode()
        message = entry.messages.request(connection.conn_id, head, self._pattern, address, body, self._own)
        self._own = self._peer
        self.turns.asked(head)
        if not connection.send(entry, message):
            # A handler that does not know of it may have answered.
            if self.turns.withdraw():
                self.head = head
                self.fail(503, "no handler is there")
            else:
                connection.end()

    def announce(self, body: bytes, *, streamed: bool) -> bool:
        """Hand on its head, and what there is of its body; False where no handler is there: then it has failed."""
        head, entry, connection = self.head, self._entry, self._connection
        assert head is not None and entry is not None
        connection.register()
        build = entry.messages.stream if streamed else entry.messages.request
        address = connection.address.encode()
        message = build(connection.conn_id, head, self._pattern, address, body, self._own)
        self.turns.asked(head)
        return self._tell(message)

    def hand_piece(self, piece: Piece) -> bool:
        """Hand on more of its body; returns as :meth:`announce`."""
        head, entry = self.head, self._entry
        assert head is not None and entry is not None
        path = head.target.partition(b"?")[0]
        return self._tell(
            entry.messages.piece(self._connection.conn_id, path, piece.offset, piece.data, last=piece.last)
        )

    def conclude(self) -> bool:
        """Hand on its head again: the body is stored; returns as :meth:`announce`."""
        head, entry, connection = self.head, self._entry, self._connection
        assert head is not None and entry is not None
        address = connection.address.encode()
        message = entry.messages.request(connection.conn_id, head, self._pattern, address, b"", self._own)
        return self._tell(message)

    def open_websocket(self, max_size: int | None) -> bool:
        """Hand on an opening handshake, and have the connection speak frames; False where it was refused, or ends.

        Args:
            max_size: As of a :class:`.WebSocketSide`.
        """
        head, entry, connection = self.head, self._entry, self._connection
        assert head is not None and entry is not None
        keys = [value for name, value in head.headers if name == b"sec-websocket-key"]
        if len(keys) != 1 or not keys[0].isascii():
            self.fail(400, "Sec-WebSocket-Key is not one value of base64")
            return False
        # Frames would be counted as answers to what came before.
        self.wait_turns(1)
        if connection.outgoing.ending:
            return False
        connection.register()
        address = connection.address.encode()
        accept = accept_key(keys[0].decode())
        own = (*_CREDITS, *self._peer) if connection.outgoing.flow_control else self._peer
        handshake = entry.messages.handshake(connection.conn_id, head, self._pattern, address, accept, own)
        if not connection.send(entry, handshake):
            self.fail(503, "no handler is there")
            return False
        messages = entry.messages.frames(connection.conn_id, head, self._pattern, address, own)
        connection.side = WebSocketSide(connection, entry, messages, max_size, self.turns.upgraded(head))
        return True

    def fail(self, status: int, reason: str, *, head_only: bool = False) -> None:
        """Answer this behind the answers that are due, where no answer of a handler has begun, and end the connection.

        Does not block where none is :attr:`due`.

        Args:
            head_only: The answer is to HEAD, which is known of a request that has begun.
        """
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.drop()
            # It is the last one that an answer is due to; there are not two to one request.
            if sink.announced and not self.turns.withdraw():
                self._connection.end()
                return
        head_only = head_only or (self.head is not None and self.head.method == b"HEAD")
        self.wait_turns(1)
        if size := self._connection.refuse(status, reason, head_only=head_only):
            self.turns.refused(self.head, status, size)

    def _tell(self, message: bytes) -> bool:
        assert self._entry is not None
        if self._connection.send(self._entry, message):
            return True
        self.fail(503, "no handler is there")
        return False
