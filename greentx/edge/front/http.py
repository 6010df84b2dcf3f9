"""The side of a connection that speaks HTTP/1.1: each request goes to the handler of its path, and answers are awaited.

A request without a body is handed on as soon as its head is whole. Where the bytes of a body go is decided by its head,
and is a :class:`.sinks.Sink`.
"""

from __future__ import annotations

import time

from .access_log import AccessLog
from .answers import CONTINUE
from .connection import BrowserConnection
from .current_request import CurrentRequest
from .entry import Entry
from .events import Body, End, Event, Head, Message, Refused, Upgraded
from .hosts import Hosts
from .limits import Limits
from .message_sockets import POLICY, asks_for_policy, is_ping
from .requests import RequestReader
from .sinks import WholeSink, sink_for

__all__ = ["HttpSide"]

# Requests of one connection that wait for their answers; then it is not read for a while. Mongrel2 has no such bound.
_MAX_WAITING = 64
# "A / HTTP/1.0" and its empty line.
_SHORTEST_REQUEST = 16
_END_OF_HEAD = b"\r\n\r\n"


class HttpSide:
    """Reads requests until the connection ends, or speaks frames.

    Attributes:
        speaks_messages: What came last is the message of a JSON or XML socket.
    """

    __slots__ = ("_begun", "_connection", "_hosts", "_limits", "_reader", "_request", "_turns", "speaks_messages")

    def __init__(
        self, connection: BrowserConnection, hosts: Hosts[Entry], limits: Limits, access_log: AccessLog | None = None
    ) -> None:
        self._connection = connection
        self._hosts = hosts
        self._limits = limits
        self._reader = RequestReader(limits)
        self._request = CurrentRequest(connection, access_log)
        self._turns = self._request.turns
        # Whether the time for what is being read runs.
        self._begun = False
        self.speaks_messages = False

    def identify(self, fingerprint: bytes | None) -> None:
        """Tell handlers of the client's certificate, in all requests; to be called before any of them is read."""
        if fingerprint is not None:
            self._request.identify(fingerprint)

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
        reader, request = self._reader, self._request
        incoming, outgoing = self._connection.incoming, self._connection.outgoing
        was_idle = reader.idle
        # So many requests may end in it, the first of them with an end that has begun before.
        most = len(self._turns) + 1
        reader.hold = (
            most + len(data) // _SHORTEST_REQUEST >= _MAX_WAITING and most + data.count(_END_OF_HEAD) >= _MAX_WAITING
        )
        self._take(incoming.parsed(reader.feed, data))
        resumed = 0
        while reader.held and not outgoing.ending:
            resumed += 1
            incoming.give_way(resumed)
            request.wait_turns(_MAX_WAITING)
            if not outgoing.ending:
                self._take(reader.resume())
        if request.sink is not None and not outgoing.ending:
            request.sink.pause()
        if not outgoing.ending and self._connection.side is self:
            self._set_deadline(was_idle, len(data))
            request.wait_turns(_MAX_WAITING)

    def eof(self) -> None:
        """Refuse what is not whole."""
        self._take(self._reader.eof())

    def expire(self) -> None:
        """Answer 408 where a client has begun to ask; one that never asked is ended without a word."""
        connection = self._connection
        if self._request.due:
            # The answer must not be overtaken: look again.
            connection.patience.postpone(connection.patience.times.head)
        elif self._reader.idle:
            connection.abort()
        else:
            self._request.fail(408, "the request did not come in time")

    def leave(self) -> None:
        """End the connection as soon as nothing is due."""
        if not self.busy:
            self._connection.end()

    def grant(self, count: int) -> None:
        """Hand on more of the body in hand."""
        if self._request.sink is not None:
            self._request.sink.grant(count)

    def drop(self) -> None:
        """Drop the body in hand."""
        if self._request.sink is not None:
            self._request.sink.drop()

    def close(self) -> None:
        """Drop the body in hand, and wait until nothing is left of it."""
        if self._request.sink is not None:
            self._request.sink.close()
        self._turns.closed()

    def _take(self, events: list[Event]) -> None:
        request = self._request
        ended = 0
        for event in events:
            # The connection may have ended while the last event waited for a handler.
            if self._connection.outgoing.ending:
                return
            if isinstance(event, Head):
                if not self._begin(event):
                    return
            elif isinstance(event, Body):
                if request.sink is None:
                    request.sink = WholeSink(request, self._connection.keep)
                request.sink.add(event.data)
            elif isinstance(event, End):
                self._begun = self.speaks_messages = False
                request.end()
                ended += 1
                self._connection.incoming.give_way(ended)
            elif isinstance(event, Message):
                self._take_message(event)
                ended += 1
                self._connection.incoming.give_way(ended)
            elif isinstance(event, Refused):
                request.fail(event.status, event.reason, head_only=event.head_only)
            elif isinstance(event, Upgraded) and event.rest:
                self._connection.side.feed(event.rest)

    def _begin(self, head: Head) -> bool:
        hosts, request = self._hosts, self._request
        routes = hosts.find(head.headers) if hosts.named else hosts.default
        found = routes.match(head.target.partition(b"?")[0])
        if found is None:
            request.head = head
            request.fail(404, "nothing is served there")
            return False
        request.begin(head, *found)
        if head.upgrade:
            if request.open_websocket(self._limits.message_size):
                self._take(self._reader.upgrade())
            return False
        if head.expect_continue:
            # Behind the answers before it.
            request.wait_turns(1)
            self._connection.outgoing.add(CONTINUE)
        if self._limits.uploads.largest:
            request.sink = sink_for(request, self._connection, head, self._limits)
            if request.sink is not None:
                # It may be answered before its end.
                self.speaks_messages = False
        return True

    def _take_message(self, message: Message) -> None:
        """Hand on what a JSON or XML socket says."""
        connection, request = self._connection, self._request
        self._begun = False
        if asks_for_policy(message):
            request.wait_turns(1)
            connection.outgoing.add(POLICY)
            connection.end()
            return
        found = self._hosts.default.match(message.path)
        if found is None:
            request.fail(404, "nothing is served there")
            return
        if is_ping(message):
            return
        pattern, entry = found
        connection.register()
        self.speaks_messages = True
        address = connection.address.encode()
        if not connection.send(entry, entry.messages.message(connection.conn_id, message, pattern, address)):
            request.fail(503, "no handler is there")

    def _set_deadline(self, was_idle: bool, size: int) -> None:
        patience = self._connection.patience
        if self._reader.idle:
            patience.forget()
        elif was_idle or not self._begun:
            self._begun = True
            patience.begin(size, time.monotonic())
        else:
            patience.more(size, time.monotonic(), is_body=self._request.head is not None)
