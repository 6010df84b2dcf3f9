"""One browser connection: a greenlet that reads it, and hands its requests to handlers.

What leads to its end::

    the client ends ──┬─ nothing waits for an answer ──────────────────────────────> a notice, closed
                      └─ it gets its answers, as long as they come ────────────────> a notice, closed
    a handler ends it ── all is written ── the client ends, or has its time ───────> closed
    a request is refused ── the answers before it, and then why ── as above ───────> a notice, closed
    a deadline ────────────────────────────────────────────────────────────────────> a notice, closed

A notice goes to the entry of the last request, unless a handler has closed the connection itself.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import gevent
from gevent import socket
from gevent.event import Event

from ...errors import RemoteProtocolError, SendTimeout
from ...protocol.websocket.frames import FrameParser, MessageAssembler, Opcode, build_close, build_frame
from ...protocol.websocket.handshake import accept_key
from .answers import CONTINUE, build_answer
from .entry import Entry
from .events import Body, End, Head, Refused, Upgraded
from .events import Event as ReaderEvent
from .incoming import Incoming, next_size
from .limits import Limits
from .messages import FrameMessages
from .outgoing import Outgoing
from .patience import Patience, Times
from .requests import RequestReader
from .routes import Routes
from .text import TextCheck
from .turns import Turns

__all__ = ["BrowserConnection", "Owner"]

log = logging.getLogger("greentx.edge.front")

T = TypeVar("T")

# Requests, or frames, of one connection that are handed on in a row.
_IN_A_ROW = 8
# Bytes that may have thousands of pieces, so that the time which they take is looked at.
_MANY_BYTES = 1024
# Requests of one connection that wait for their answers; then it is not read for a while.
_MAX_WAITING = 64
# Behind the last good frame of a WebSocket that is failed: between looks at whether more was written, and how many.
_SETTLE_SECONDS = 0.1
_SETTLE_LOOKS = 5


class Owner(Protocol):
    """Who knows the connections by their ids."""

    def register(self, connection: BrowserConnection) -> int:
        """Return its id from now on."""

    def unregister(self, connection: BrowserConnection) -> None:
        """It has gone."""


class BrowserConnection:
    """Reads one connection until its end.

    Args:
        sock: Belongs to it from here on.
        address: Of the client, as text.

    Attributes:
        conn_id: 0 before anything was handed to a handler.
    """

    def __init__(
        self, sock: socket.socket, address: str, owner: Owner, routes: Routes[Entry], limits: Limits, times: Times
    ) -> None:
        self.address = address
        self.conn_id = 0
        self._sock = sock
        self._owner = owner
        self._routes = routes
        self._limits = limits
        self._patience = Patience(times, time.monotonic())
        self._reader = RequestReader(limits)
        # An answer is whole, or what waited was written.
        self._moved = Event()
        self._incoming = Incoming(sock)
        self._outgoing = Outgoing(sock, self._on_idle)
        self._turns = Turns()
        self._request = _Request()
        self._websocket: _WebSocket | None = None
        self._is_closed_by_handler = False

    @property
    def deadline(self) -> float:
        """When :meth:`expire` is to be called, by ``time.monotonic()``."""
        return self._patience.deadline

    @property
    def busy(self) -> bool:
        """True while a client waits for something: an answer, or the rest of one, or what a WebSocket brings."""
        return bool(self._turns) or self._websocket is not None or not self._reader.idle

    def run(self) -> None:
        """Read until the end; blocks this greenlet."""
        try:
            self._read()
        except OSError:
            pass  # reset by the client
        finally:
            self._outgoing.drop()
            self._incoming.close()
            self._sock.close()
            self._owner.unregister(self)
            entry = self._request.told
            if entry is not None and not self._is_closed_by_handler:
                entry.notify(entry.messages.disconnect(self.conn_id))

    def write(self, data: bytes) -> None:
        """Write what a handler says; never blocks."""
        if self._turns:
            if self._turns.wrote(data):
                self._moved.set()
        elif self._websocket is not None and not self._websocket.accepted:
            self._websocket.accepted = data.startswith(b"HTTP/1.1 101")
        if not self._outgoing.write(data):
            log.warning("%r was ended: more messages wait for its client than may", self)
            self.abort()
        self.keep_alive()

    def close(self) -> None:
        """A handler says that all was written."""
        self._is_closed_by_handler = True
        self._end()

    def cancel(self) -> None:
        """A handler ends it at once."""
        self._is_closed_by_handler = True
        self.abort()

    def abort(self) -> None:
        """End it at once, and drop what waits."""
        self._outgoing.drop()
        self._wake()

    def keep_alive(self) -> None:
        """It is not idle; does not give a slow request more time."""
        if not self._outgoing.ending and (self._turns or self._websocket is not None):
            self._patience.rest(time.monotonic())

    def expire(self) -> None:
        """The deadline has passed; never blocks."""
        outgoing = self._outgoing
        # A slow client may go on reading.
        if not outgoing.idle and self._patience.moves(outgoing.written, time.monotonic()):
            return
        if outgoing.ending or self._turns or self._websocket is not None or self._reader.idle:
            self.abort()
        else:
            outgoing.write(build_answer(408, "the request did not come in time", timestamp=time.time()))
            self._end()

    def _end(self) -> None:
        self._patience.rest(time.monotonic())
        self._outgoing.end()

    def _on_idle(self) -> None:
        if self._outgoing.over:
            self._patience.linger(time.monotonic())
        self._moved.set()

    def _wake(self) -> None:
        # Its reader sees the end.
        with contextlib.suppress(OSError):  # it has gone
            self._sock.shutdown(socket.SHUT_RDWR)

    # -- reading, in the greenlet of run() ---------------------------------------------------------------------------

    def _read(self) -> None:
        outgoing = self._outgoing
        while True:
            self._await_turns(_MAX_WAITING)
            data = self._incoming.receive()
            if not data:
                if not outgoing.ending:
                    self._take(self._reader.eof())
                # A handler that closes has to get all of it out. The deadline bounds it.
                self._await(lambda: outgoing.over if outgoing.ending else outgoing.idle and not self._turns)
                return
            # What comes behind the end is nobody's.
            if outgoing.ending:
                continue
            was_idle = self._reader.idle
            if self._websocket is not None:
                self._take_frames(data)
            else:
                self._take(self._parsed(self._reader.feed, data))
            if not outgoing.ending:
                self._set_deadline(was_idle, len(data))

    def _parsed(self, feed: Callable[[bytes], list[T]], data: bytes) -> list[T]:
        """Return what *feed* makes of *data*; where that takes long, less is read at once from then on."""
        size = len(data)
        if size < _MANY_BYTES:
            return feed(data)
        began = time.monotonic()
        made = feed(data)
        incoming = self._incoming
        incoming.size = next_size(incoming.size, size, time.monotonic() - began)
        return made

    def _set_deadline(self, was_idle: bool, size: int) -> None:
        now = time.monotonic()
        request, patience = self._request, self._patience
        if self._turns or self._websocket is not None or self._reader.idle:
            patience.rest(now)
        elif was_idle or not request.begun:
            request.begun = True
            patience.begin(size, now)
        else:
            patience.more(size, now, is_body=request.head is not None)

    def _take(self, events: list[ReaderEvent]) -> None:
        request = self._request
        ended = 0
        for event in events:
            # The connection may have ended while the last event waited for a handler.
            if self._outgoing.ending:
                return
            if isinstance(event, Head):
                if not self._begin(event):
                    return
            elif isinstance(event, Body):
                request.pieces.append(event.data)
            elif isinstance(event, End):
                self._hand_over()
                ended += 1
                if not ended % _IN_A_ROW:
                    self._incoming.give_way()
                    self._await_turns(_MAX_WAITING)
            elif isinstance(event, Refused):
                self._refuse(event.status, event.reason, head_only=event.head_only)
            elif isinstance(event, Upgraded) and event.rest:
                self._take_frames(event.rest)

    def _begin(self, head: Head) -> bool:
        request = self._request
        found = self._routes.match(head.target.partition(b"?")[0])
        if found is None:
            self._refuse(404, "nothing is served there", head_only=head.method == b"HEAD")
            return False
        request.head = head
        request.pattern, request.entry = found
        if head.upgrade:
            self._open_websocket(head)
        # One that waits behind another answer sends its body when it gets tired of waiting (RFC 9110, section 10.1.1).
        elif head.expect_continue and not self._turns:
            self._outgoing.write(CONTINUE)
        return True

    def _hand_over(self) -> None:
        request = self._request
        head, entry = request.head, request.entry
        assert head is not None and entry is not None
        body = b"".join(request.pieces)
        request.pieces.clear()
        request.head = None
        request.begun = False
        if head.chunked:
            # As RFC 9112, section 7.1.3, has it: the body is not in chunks any more.
            head.headers = [field for field in head.headers if field[0] != b"transfer-encoding"]
            head.headers.append((b"content-length", b"%d" % len(body)))
        self.conn_id = self.conn_id or self._owner.register(self)
        message = entry.messages.request(self.conn_id, head, request.pattern, self.address.encode(), body)
        self._turns.asked(head.method)
        if not self._send(entry, message):
            self._turns.withdraw()
            self._refuse(503, "no handler is there", head_only=head.method == b"HEAD")

    def _open_websocket(self, head: Head) -> None:
        request = self._request
        entry = request.entry
        assert entry is not None
        key = dict(head.headers)[b"sec-websocket-key"]
        if not key.isascii():
            self._refuse(400, "Sec-WebSocket-Key is not base64")
            return
        self.conn_id = self.conn_id or self._owner.register(self)
        address = self.address.encode()
        accept = accept_key(key.decode("latin-1"))
        builder = entry.messages
        if not self._send(entry, builder.handshake(self.conn_id, head, request.pattern, address, accept)):
            self._refuse(503, "no handler is there")
            return
        self._websocket = _WebSocket(
            builder.frames(self.conn_id, head, request.pattern, address), self._limits.content_length
        )
        self._take(self._reader.upgrade())

    def _take_frames(self, data: bytes) -> None:
        websocket, entry = self._websocket, self._request.entry
        assert websocket is not None and entry is not None
        parser, text = websocket.parser, websocket.text
        try:
            for number, frame in enumerate(self._parsed(parser.feed, data), 1):
                if not frame.fin or text.seen:
                    text.frame(frame)
                message = websocket.assembler.add(frame)
                if message is not None:
                    entry.send(websocket.messages.build(message), None)
                if not number % _IN_A_ROW:
                    self._incoming.give_way()
                    if self._outgoing.ending:
                        return
            parser.check()
            if text.concerns(parser.begun):
                part = parser.beginning(text.seen)
                if part is not None:
                    text.part(part)
        except RemoteProtocolError as error:
            log.debug("%r: %s", self, error)
            self._settle()
            if not self._outgoing.ending:
                if websocket.accepted:
                    self._outgoing.write(build_frame(build_close(error.close_code, str(error)), Opcode.CLOSE))
                self._end()

    def _settle(self) -> None:
        """Block this greenlet for a moment, in which handlers answer what came before the end; nobody tells of it."""
        outgoing = self._outgoing
        self._patience.rest(time.monotonic())
        for _ in range(_SETTLE_LOOKS):
            written = outgoing.written
            gevent.sleep(_SETTLE_SECONDS)
            if outgoing.ending or (outgoing.idle and outgoing.written == written):
                break

    def _send(self, entry: Entry, message: bytes) -> bool:
        self._patience.forget()
        try:
            entry.send(message, self._patience.times.no_handler)
        except SendTimeout:
            return False
        self._request.told = entry
        return True

    def _refuse(self, status: int, reason: str, *, head_only: bool = False) -> None:
        """Answer behind the answers that are due before, and end."""
        self._await_turns(1)
        if not self._outgoing.ending:
            self._outgoing.write(build_answer(status, reason, timestamp=time.time(), head_only=head_only))
            self._end()

    def _await_turns(self, fewer: int) -> None:
        """Block this greenlet until *fewer* requests than that wait for their answers."""
        if len(self._turns) >= fewer:
            self._patience.rest(time.monotonic())
            while len(self._turns) >= fewer and not self._outgoing.ending:
                self._moved.clear()
                self._moved.wait()

    def _await(self, done: Callable[[], bool]) -> None:
        """Block this greenlet until *done*, as long as handlers say more to a client that sends nothing more."""
        outgoing = self._outgoing
        self._patience.rest(time.monotonic())
        while not done() and not outgoing.over:
            # What waits for the client to read it is the deadline's matter.
            patience = self._patience.times.half_close if outgoing.idle else None
            written = outgoing.written
            self._moved.clear()
            if not self._moved.wait(patience) and outgoing.written == written:
                return

    def __repr__(self) -> str:
        return f"<BrowserConnection {self.conn_id} of {self.address}>"


class _Request:
    """The request that is being read; *pattern* and *entry* stay those of the last one."""

    __slots__ = ("begun", "entry", "head", "pattern", "pieces", "told")

    def __init__(self) -> None:
        self.head: Head | None = None
        self.pieces: list[bytes] = []
        self.pattern = b""
        self.entry: Entry | None = None
        # Who was sent the last one, or what came of it.
        self.told: Entry | None = None
        # Its first bytes came, and it is not whole.
        self.begun = False


class _WebSocket:
    """What a connection needs once it speaks frames."""

    __slots__ = ("accepted", "assembler", "messages", "parser", "text")

    def __init__(self, messages: FrameMessages, max_size: int) -> None:
        self.messages = messages
        self.parser = FrameParser(require_mask=True, max_size=max_size)
        self.assembler = MessageAssembler(max_size=max_size)
        self.text = TextCheck()
        # A handler has let it in: its client understands a close frame.
        self.accepted = False
