"""One browser connection: a greenlet that reads it, what handlers write to it, and how it ends.

What its bytes mean is the matter of its side: HTTP at first (:mod:`.http`), and frames behind the opening handshake of
a WebSocket (:mod:`.websocket`). A side hands on to handlers through the connection, and may put another one in its
place.

What leads to its end::

    the client ends ──┬─ nothing waits for an answer ──────────────────────────────> a notice, closed
                      └─ it gets its answers, as long as they come ────────────────> a notice, closed
    a handler ends it ── all is written ── the client ends, or has its time ───────> closed
    a side refuses what came ── the answers before it, and then why ── as above ───> a notice, closed
    a deadline ────────────────────────────────────────────────────────────────────> a notice, closed

A notice goes to the entry of the last request, unless a handler has closed the connection itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Callable
from typing import Protocol

from gevent import socket
from gevent.event import Event
from gevent.monkey import get_original

from ...errors import ForkError, SendTimeout
from .answers import RETRY, build_answer
from .budget import Budget
from .entry import Entry
from .incoming import Incoming
from .outgoing import MAX_BYTES, MAX_MESSAGES, Outgoing
from .patience import Patience, Times
from .sockets import BrowserSocket

__all__ = ["BrowserConnection", "Owner", "Side"]

log = logging.getLogger("greentx.edge.front")

# While a connection is not read, between two looks at whether its client has ended.
_LOOK_SECONDS = 0.5
_poll = get_original("select", "poll")
_SENDS_NOTHING_MORE = getattr(select, "POLLRDHUP", 0)


class Owner(Protocol):
    """Who knows the connections by their ids."""

    def register(self, connection: BrowserConnection) -> int:
        """Return its id from now on."""

    def unregister(self, connection: BrowserConnection) -> None:
        """It has gone."""


class Side(Protocol):
    """What the bytes of a connection mean; reads them in the connection's greenlet, and may block that."""

    @property
    def speaks_messages(self) -> bool:
        """True where what a handler writes is for a JSON or XML socket."""

    @property
    def busy(self) -> bool:
        """True while its client waits for something: an answer, or the rest of one, or what a WebSocket brings."""

    @property
    def waiting(self) -> bool:
        """True while an answer is due to its client, also where that sends nothing more."""

    def feed(self, data: bytes) -> None:
        """Read the next bytes, never none. What comes behind the end of the connection is nobody's."""

    def eof(self) -> None:
        """The client sends nothing more; it may still read."""

    def wrote(self, data: bytes) -> None:
        """A handler writes this now. Must not block."""

    def expire(self) -> None:
        """The deadline has passed, and what waits is not being written. Must not block."""

    def leave(self) -> None:
        """The server stops: end the connection where nothing is due. Called again and again; must not block."""

    def grant(self, count: int) -> None:
        """A handler reads so many bytes more of a body. Must not block."""

    def drop(self) -> None:
        """The connection ends: give up what is not whole. Must not block."""

    def close(self) -> None:
        """The connection has gone: give up what is not whole, also if that was begun before. May block."""


class BrowserConnection:
    """Reads one connection until its end.

    Args:
        sock: Belongs to it from here on.
        address: Of the client, as text.
        budget: Of all connections.
        flow_control: As ``download.flow_control`` of Mongrel2: bytes that wait are bounded in place of messages, and
            handlers are told what was written.

    Attributes:
        conn_id: 0 before anything was handed to a handler.
        incoming: Its sides read by it, so that others have their turn.
        outgoing: For its sides, which may end it; handlers write by :meth:`write`.
        patience: For its sides.
        read: Bytes that have come from the client.
        side: What reads its bytes; has to be set before :meth:`run`.
    """

    side: Side

    def __init__(
        self,
        sock: BrowserSocket,
        address: str,
        owner: Owner,
        times: Times,
        budget: Budget,
        *,
        flow_control: bool = False,
    ) -> None:
        self.address = address
        self.conn_id = 0
        self.patience = Patience(times, time.monotonic())
        self.incoming = Incoming(sock)
        self.outgoing = Outgoing(sock, self._on_idle, self._on_written if flow_control else None)
        self.read = 0
        self._sock = sock
        self._owner = owner
        self._budget = budget
        self._kept = 0
        # Who was sent the last request, or what came of it.
        self._told: Entry | None = None
        # An answer is whole, or what waited was written.
        self._moved = Event()
        self._is_closed_by_handler = False
        self._sends_nothing_more = False

    @property
    def deadline(self) -> float:
        """When :meth:`expire` is to be called, by ``time.monotonic()``."""
        return self.patience.deadline

    # -- for the owner, in any greenlet ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write what a handler says; never blocks."""
        self.side.wrote(data)
        outgoing = self.outgoing
        if not outgoing.write(data):
            limit = f"{MAX_BYTES} bytes" if outgoing.flow_control else f"{MAX_MESSAGES} messages"
            log.warning("%r was ended: its handler has more than %s wait for it at once", self, limit)
            self.abort()

    def close(self) -> None:
        """A handler says that all was written."""
        self._is_closed_by_handler = True
        self.side.drop()
        self.end()

    def cancel(self) -> None:
        """A handler ends it at once."""
        self._is_closed_by_handler = True
        self.side.drop()
        self.abort()

    def abort(self) -> None:
        """End it at once, and drop what waits."""
        self.outgoing.drop()
        # Its reader sees the end.
        with contextlib.suppress(OSError):  # it has gone
            self._sock.shutdown(socket.SHUT_RDWR)

    def keep_alive(self) -> None:
        """A handler says that it is not silent; does not give a slow request more time."""
        self.patience.keep_alive(time.monotonic())

    def grant(self, count: int) -> None:
        """A handler reads so many bytes more of a body; never blocks."""
        self.side.grant(count)

    def expire(self) -> None:
        """The deadline has passed; never blocks."""
        if self.outgoing.ending:
            self.abort()
        else:
            self.side.expire()

    def leave(self) -> bool:
        """The server stops: end it where nothing is due; return whether all is written. Never blocks."""
        self.side.leave()
        return self.outgoing.over

    def look(self, now: float) -> None:
        """End it where it has been silent for too long; to be called every ``Silence.tick`` seconds. Never blocks."""
        outgoing = self.outgoing
        if self.patience.silent(self.read, outgoing.written, now, busy=self.side.busy or not outgoing.idle):
            log.debug("%r was silent for too long", self)
            self.abort()

    def forget(self) -> None:
        """Let go of it in a forked child, which has a copy; the parent goes on with it."""
        # Whatever wakes its greenlet there finds it over, with nobody to tell.
        self.side = _Gone()
        self._told = None
        self.incoming.forget()
        self.outgoing.forget()
        os.close(self._sock.detach())

    # -- for its sides -----------------------------------------------------------------------------------------------

    def keep(self, size: int) -> bool:
        """Count what is kept of what is not whole; False where all connections together would keep too much."""
        if size != self._kept:
            if not self._budget.change(self._kept, size):
                log.warning("%r is ended: all clients together send more at once than may be kept", self)
                return False
            self._kept = size
        return True

    def register(self) -> None:
        """Have an id from now on."""
        self.conn_id = self.conn_id or self._owner.register(self)

    def send(self, entry: Entry, message: bytes, *, patiently: bool = False) -> bool:
        """Hand a message to a handler; blocks this greenlet while none has room for it.

        A handler that is busy is waited for, as Mongrel2 does, as long as the client is there.

        Args:
            patiently: So is one that has to come first.

        Returns:
            False where that took too long, or too much waits already: the message is not sent.
        """
        self.patience.forget()
        # A handler may have answered before this greenlet goes on.
        before, self._told = self._told, entry
        if entry.offer(message):
            return True

        def goes_on(busy: bool) -> bool:
            return (busy or patiently) and not (self.outgoing.ending or _has_ended(self._sock))

        try:
            entry.send(message, self.patience.times.no_handler, goes_on)
        except SendTimeout:
            self._told = before
            return False
        return True

    def refuse(self, status: int, reason: str, *, head_only: bool = False) -> int:
        """Answer for the front end, and end; the answers before it have to be whole (:meth:`wait`).

        Returns:
            Bytes of the answer; 0 where the connection ends already.
        """
        if self.outgoing.ending:
            return 0
        headers = RETRY if status == 503 else None
        answer = build_answer(status, reason, timestamp=time.time(), head_only=head_only, headers=headers)
        self.outgoing.add(answer)
        self.end()
        return len(answer)

    def end(self) -> None:
        """Let what waits get out, and then end."""
        self.patience.forget()
        self.outgoing.end()

    def moved(self) -> None:
        """Something has happened that :meth:`wait` may wait for."""
        self._moved.set()

    def wait(self, done: Callable[[], bool]) -> None:
        """Block this greenlet until *done*, or the end; what comes from the client meanwhile is not read."""
        if not done():
            began = time.monotonic()
            deadline = self.patience.deadline
            self.patience.forget()
            self._wait(lambda: done() or self.outgoing.ending)
            if not self.outgoing.ending:
                self.patience.deadline = deadline
                self.patience.postpone(time.monotonic() - began)

    # -- in the greenlet of run() ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Read until the end; blocks this greenlet."""
        try:
            self._read()
        except (OSError, ForkError):
            pass  # reset by the client; or let go of by a forked child
        finally:
            self.outgoing.drop()
            self.incoming.close()
            self._sock.close()
            try:
                # Before the notice: of what was stored of a body nothing is left then.
                self.side.close()
            finally:
                self._gone()

    def _gone(self) -> None:
        self._owner.unregister(self)
        self.keep(0)
        if self._told is not None and not self._is_closed_by_handler:
            self._told.notify(self._told.messages.disconnect(self.conn_id))
        # What knows it, and is known by it: cycles, which stop the loop when they are collected, for 0.1 s where there
        # are thousands of connections.
        self.outgoing.let_go()
        del self.side

    def _read(self) -> None:
        outgoing = self.outgoing
        while True:
            data = self.incoming.receive()
            if not data:
                break
            self.read += len(data)
            # What comes behind the end is nobody's.
            if not outgoing.ending:
                self.side.feed(data)
        self._sends_nothing_more = True
        self.patience.forget()
        if not outgoing.ending:
            self.side.eof()
        # A handler that closes has to get all of it out.
        self._wait(lambda: outgoing.over if outgoing.ending else not self.side.waiting)

    def _wait(self, done: Callable[[], bool]) -> None:
        """Block this greenlet until *done*; a client that sends nothing more is waited for only while handlers go on.

        It may have gone, and what is written to it would tell: so where nothing is for ``half_close`` seconds, it has.
        """
        outgoing, moved = self.outgoing, self._moved
        while not done():
            self._sends_nothing_more = self._sends_nothing_more or _has_ended(self._sock)
            seconds: float | None = _LOOK_SECONDS
            if self._sends_nothing_more:
                # What waits for the client to read it ends with its silence.
                seconds = self.patience.times.half_close if outgoing.idle else None
            written = outgoing.written
            moved.clear()
            if moved.wait(seconds) or not self._sends_nothing_more:
                continue
            if outgoing.idle and outgoing.written == written:
                self.abort()

    def _on_idle(self) -> None:
        if self.outgoing.over:
            self.patience.linger(time.monotonic())
        self._moved.set()

    def _on_written(self, size: int) -> None:
        # Without an id it is not written to.
        if self._told is not None:
            self._told.notify(self._told.messages.credits(self.conn_id, size))

    def __repr__(self) -> str:
        return f"<BrowserConnection {self.conn_id} of {self.address}>"


def _has_ended(sock: BrowserSocket) -> bool:
    """Whether the client sends nothing more, which shows although not all was read that it has sent. Never blocks."""
    poll = _poll()
    poll.register(sock.fileno(), _SENDS_NOTHING_MORE)
    return bool(poll.poll(0))


class _Gone:
    """The side of a connection that is somebody else's."""

    speaks_messages = busy = waiting = False

    def feed(self, data: bytes) -> None: ...
    def eof(self) -> None: ...
    def wrote(self, data: bytes) -> None: ...
    def expire(self) -> None: ...
    def leave(self) -> None: ...
    def grant(self, count: int) -> None: ...
    def drop(self) -> None: ...
    def close(self) -> None: ...
