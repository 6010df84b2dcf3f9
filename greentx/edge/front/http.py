"""The side of a connection that speaks HTTP/1.1: each request goes to the handler of its path, and answers are awaited.

A request without a body is handed on as soon as its head is whole. Where the bytes of a body go is decided by its head,
and is a :class:`.sinks.Sink`.
"""

from __future__ import annotations

import time

from ...protocol.websocket.handshake import accept_key
from .answers import CONTINUE
from .connection import BrowserConnection
from .entry import Entry
from .events import Body, End, Event, Head, Message, Refused, Upgraded
from .hosts import Hosts
from .limits import Limits
from .message_sockets import POLICY, asks_for_policy, is_ping
from .messages import Own
from .outgoing import MAX_BYTES
from .requests import RequestReader
from .sinks import Sink, WholeSink, sink_for
from .streams import Piece
from .turns import Turns
from .websocket import WebSocketSide

__all__ = ["HttpSide"]

# Requests of one connection that wait for their answers; then it is not read for a while. Mongrel2 has no such bound.
_MAX_WAITING = 64
# "A / HTTP/1.0" and its empty line.
_SHORTEST_REQUEST = 16
_END_OF_HEAD = b"\r\n\r\n"

# As Mongrel2 says it with flow control, in the first request of a connection.
_CREDITS: Own = ((b"DOWNLOAD_CREDITS", b"%d" % MAX_BYTES),)


class HttpSide:
    """Reads requests until the connection ends, or speaks frames.

    Attributes:
        speaks_messages: What came last is the message of a JSON or XML socket.
    """

    __slots__ = (
        "_begun",
        "_connection",
        "_entry",
        "_head",
        "_hosts",
        "_limits",
        "_own",
        "_pattern",
        "_peer",
        "_reader",
        "_sink",
        "_turns",
        "speaks_messages",
    )

    def __init__(self, connection: BrowserConnection, hosts: Hosts[Entry], limits: Limits) -> None:
        self._connection = connection
        self._hosts = hosts
        self._limits = limits
        self._reader = RequestReader(limits)
        self._turns = Turns()
        # Of the request that is being read; the others stay those of the last one.
        self._head: Head | None = None
        self._sink: Sink | None = None
        self._begun = False
        self._pattern = b""
        self._entry: Entry | None = None
        self.speaks_messages = False
        # Of every request, and of the first one.
        self._peer: Own = ()
        self._own: Own = _CREDITS if connection.outgoing.flow_control else ()

    def identify(self, fingerprint: bytes | None) -> None:
        """Tell handlers of the client's certificate, in all requests; to be called before any of them is read."""
        if fingerprint is not None:
            self._peer = ((b"PEER_CERT_SHA1", fingerprint),)
            self._own = (*self._own, *self._peer)

    @property
    def busy(self) -> bool:
        """True while an answer is due, or a request has begun, or a JSON or XML socket may get more."""
        return bool(self._turns) or not self._reader.idle or self.speaks_messages

    @property
    def waiting(self) -> bool:
        """True while an answer is due, or on its way."""
        return bool(self._turns) or not self._connection.outgoing.idle

    def wrote(self, data: bytes) -> None:
        """Follow an answer."""
        if self._turns.wrote(data):
            self._connection.moved()

    def feed(self, data: bytes) -> None:
        """Read requests and hand them on, so many as may wait for their answers."""
        reader, turns = self._reader, self._turns
        incoming, outgoing = self._connection.incoming, self._connection.outgoing
        was_idle = reader.idle
        # So many requests may end in it, the first of them with an end that has begun before.
        most = len(turns) + 1
        reader.hold = (
            most + len(data) // _SHORTEST_REQUEST >= _MAX_WAITING and most + data.count(_END_OF_HEAD) >= _MAX_WAITING
        )
        self._take(incoming.parsed(reader.feed, data))
        resumed = 0
        while reader.held and not outgoing.ending:
            resumed += 1
            incoming.give_way(resumed)
            self._wait_turns(_MAX_WAITING)
            if not outgoing.ending:
                self._take(reader.resume())
        if self._sink is not None and not outgoing.ending:
            self._sink.pause()
        if not outgoing.ending and self._connection.side is self:
            self._set_deadline(was_idle, len(data))
            self._wait_turns(_MAX_WAITING)

    def eof(self) -> None:
        """Refuse what is not whole."""
        self._take(self._reader.eof())

    def expire(self) -> None:
        """Answer 408 where a client has begun to ask; one that never asked is ended without a word."""
        connection = self._connection
        if self._due:
            # The answer must not be overtaken: look again.
            connection.patience.postpone(connection.patience.times.head)
        elif self._reader.idle:
            connection.abort()
        else:
            self._refuse(408, "the request did not come in time")

    def leave(self) -> None:
        """End the connection as soon as nothing is due."""
        if not self.busy:
            self._connection.end()

    def grant(self, count: int) -> None:
        """Hand on more of the body in hand."""
        if self._sink is not None:
            self._sink.grant(count)

    def drop(self) -> None:
        """Drop the body in hand."""
        if self._sink is not None:
            self._sink.drop()

    def close(self) -> None:
        """Drop the body in hand, and wait until nothing is left of it."""
        if self._sink is not None:
            self._sink.close()

    # -- for sinks: the request that is being read ---------------------------------------------------------------------

    def hand_over(self, body: bytes) -> None:
        """Hand it on with its whole body."""
        head, entry, connection = self._head, self._entry, self._connection
        assert head is not None and entry is not None
        self._head = self._sink = None
        self._begun = False
        if head.chunked:
            # As RFC 9112, section 7.1.3, has it: the body is not in chunks any more.
            head.headers = [field for field in head.headers if field[0] != b"transfer-encoding"]
            head.headers.append((b"content-length", b"%d" % len(body)))
        connection.register()
        address = connection.address.encode()
        message = entry.messages.request(connection.conn_id, head, self._pattern, address, body, self._own)
        self._own = self._peer
        self.speaks_messages = False
        self._turns.asked(head.method)
        if not connection.send(entry, message):
            # A handler that does not know of it may have answered.
            if self._turns.withdraw():
                self._refuse(503, "no handler is there", head_only=head.method == b"HEAD")
            else:
                connection.end()

    def announce(self, body: bytes, *, streamed: bool) -> bool:
        """Hand on its head, and what there is of its body; False where no handler is there: then it has failed."""
        head, entry, connection = self._head, self._entry, self._connection
        assert head is not None and entry is not None
        connection.register()
        build = entry.messages.stream if streamed else entry.messages.request
        address = connection.address.encode()
        message = build(connection.conn_id, head, self._pattern, address, body, self._own)
        self.speaks_messages = False
        self._turns.asked(head.method)
        return self._tell(message)

    def hand_piece(self, piece: Piece) -> bool:
        """Hand on more of its body; returns as :meth:`announce`."""
        head, entry = self._head, self._entry
        assert head is not None and entry is not None
        path = head.target.partition(b"?")[0]
        return self._tell(
            entry.messages.piece(self._connection.conn_id, path, piece.offset, piece.data, last=piece.last)
        )

    def conclude(self) -> bool:
        """Hand on its head again: the body is stored; returns as :meth:`announce`."""
        head, entry, connection = self._head, self._entry, self._connection
        assert head is not None and entry is not None
        address = connection.address.encode()
        message = entry.messages.request(connection.conn_id, head, self._pattern, address, b"", self._own)
        return self._tell(message)

    def fail(self, status: int, reason: str) -> None:
        """Answer this where no answer of a handler has begun, and end the connection."""
        self._refuse(status, reason)

    # ------------------------------------------------------------------------------------------------------------------

    def _tell(self, message: bytes) -> bool:
        assert self._entry is not None
        if self._connection.send(self._entry, message):
            return True
        self._refuse(503, "no handler is there")
        return False

    @property
    def _due(self) -> int:
        """How many answers are due before that to the request which is being read."""
        return max(0, len(self._turns) - (self._sink is not None and self._sink.announced))

    def _take(self, events: list[Event]) -> None:
        ended = 0
        for event in events:
            # The connection may have ended while the last event waited for a handler.
            if self._connection.outgoing.ending:
                return
            if isinstance(event, Head):
                if not self._begin(event):
                    return
            elif isinstance(event, Body):
                if self._sink is None:
                    self._sink = WholeSink(self, self._connection.keep)
                self._sink.add(event.data)
            elif isinstance(event, End):
                if self._sink is None:
                    self.hand_over(b"")
                else:
                    self._sink.end()
                    self._head = self._sink = None
                    self._begun = False
                    self._own = self._peer
                ended += 1
                self._connection.incoming.give_way(ended)
            elif isinstance(event, Message):
                self._take_message(event)
                ended += 1
                self._connection.incoming.give_way(ended)
            elif isinstance(event, Refused):
                self._refuse(event.status, event.reason, head_only=event.head_only)
            elif isinstance(event, Upgraded) and event.rest:
                self._connection.side.feed(event.rest)

    def _begin(self, head: Head) -> bool:
        hosts = self._hosts
        routes = hosts.find(head.headers) if hosts.named else hosts.default
        found = routes.match(head.target.partition(b"?")[0])
        if found is None:
            self._refuse(404, "nothing is served there", head_only=head.method == b"HEAD")
            return False
        self._head = head
        self._pattern, self._entry = found
        if head.upgrade:
            self._open_websocket(head, self._entry)
            return False
        if head.expect_continue:
            # Behind the answers before it.
            self._wait_turns(1)
            self._connection.outgoing.add(CONTINUE)
        if self._limits.uploads.largest:
            self._sink = sink_for(self, self._connection, head, self._limits)
        return True

    def _take_message(self, message: Message) -> None:
        """Hand on what a JSON or XML socket says."""
        connection = self._connection
        self._begun = False
        if asks_for_policy(message):
            self._wait_turns(1)
            connection.outgoing.add(POLICY)
            connection.end()
            return
        found = self._hosts.default.match(message.path)
        if found is None:
            self._refuse(404, "nothing is served there")
            return
        if is_ping(message):
            return
        pattern, entry = found
        connection.register()
        self.speaks_messages = True
        address = connection.address.encode()
        if not connection.send(entry, entry.messages.message(connection.conn_id, message, pattern, address)):
            self._refuse(503, "no handler is there")

    def _open_websocket(self, head: Head, entry: Entry) -> None:
        connection = self._connection
        keys = [value for name, value in head.headers if name == b"sec-websocket-key"]
        if len(keys) != 1 or not keys[0].isascii():
            self._refuse(400, "Sec-WebSocket-Key is not one value of base64")
            return
        # Frames would be counted as answers to what came before.
        self._wait_turns(1)
        if connection.outgoing.ending:
            return
        connection.register()
        address = connection.address.encode()
        accept = accept_key(keys[0].decode())
        own = (*_CREDITS, *self._peer) if connection.outgoing.flow_control else self._peer
        handshake = entry.messages.handshake(connection.conn_id, head, self._pattern, address, accept, own)
        if not connection.send(entry, handshake):
            self._refuse(503, "no handler is there")
            return
        messages = entry.messages.frames(connection.conn_id, head, self._pattern, address, own)
        connection.side = WebSocketSide(connection, entry, messages, self._limits.message_size)
        self._take(self._reader.upgrade())

    def _set_deadline(self, was_idle: bool, size: int) -> None:
        patience = self._connection.patience
        if self._reader.idle:
            patience.forget()
        elif was_idle or not self._begun:
            self._begun = True
            patience.begin(size, time.monotonic())
        else:
            patience.more(size, time.monotonic(), is_body=self._head is not None)

    def _refuse(self, status: int, reason: str, *, head_only: bool = False) -> None:
        """Answer behind the answers that are due before, and end."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.drop()
            # It is the last one that an answer is due to; there are not two to one request.
            if sink.announced and not self._turns.withdraw():
                self._connection.end()
                return
        head_only = head_only or (self._head is not None and self._head.method == b"HEAD")
        self._wait_turns(1)
        self._connection.refuse(status, reason, head_only=head_only)

    def _wait_turns(self, fewer: int) -> None:
        """Block this greenlet until *fewer* requests than that wait for their answers."""
        if len(self._turns) >= fewer:
            self._connection.wait(lambda: len(self._turns) < fewer)
