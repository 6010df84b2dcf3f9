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
import time
from collections.abc import Callable
from typing import Protocol

from gevent import socket
from gevent.event import Event

from ...errors import SendTimeout
from .answers import build_answer
from .entry import Entry
from .incoming import Incoming
from .outgoing import Outgoing
from .patience import Patience, Times

__all__ = ["BrowserConnection", "Owner", "Side"]

log = logging.getLogger("greentx.edge.front")


class Owner(Protocol):
    """Who knows the connections by their ids."""

    def register(self, connection: BrowserConnection) -> int:
        """Return its id from now on."""

    def unregister(self, connection: BrowserConnection) -> None:
        """It has gone."""


class Side(Protocol):
    """What the bytes of a connection mean; reads them in the connection's greenlet, and may block that."""

    @property
    def busy(self) -> bool:
        """True while its client waits for something: an answer, or the rest of one, or what a WebSocket brings."""

    @property
    def waiting(self) -> bool:
        """True while an answer is due to its client, also where that sends nothing more."""

    @property
    def timed(self) -> bool:
        """True while the deadline is for the rest of what has begun to come."""

    def feed(self, data: bytes) -> None:
        """Read the next bytes, never none. What comes behind the end of the connection is nobody's."""

    def eof(self) -> None:
        """The client sends nothing more; it may still read."""

    def wrote(self, data: bytes) -> None:
        """A handler writes this now. Must not block."""

    def expire(self) -> None:
        """The deadline has passed, and what waits is not being written. Must not block."""

    def close(self) -> None:
        """The connection has gone: give up what is not whole. Must not block."""


class BrowserConnection:
    """Reads one connection until its end.

    Args:
        sock: Belongs to it from here on.
        address: Of the client, as text.

    Attributes:
        conn_id: 0 before anything was handed to a handler.
        incoming: Its sides read by it, so that others have their turn.
        outgoing: For its sides, which may end it; handlers write by :meth:`write`.
        patience: For its sides.
        side: What reads its bytes; has to be set before :meth:`run`.
    """

    side: Side

    def __init__(self, sock: socket.socket, address: str, owner: Owner, times: Times) -> None:
        self.address = address
        self.conn_id = 0
        self.patience = Patience(times, time.monotonic())
        self.incoming = Incoming(sock)
        self.outgoing = Outgoing(sock, self._on_idle)
        self._sock = sock
        self._owner = owner
        # Who was sent the last request, or what came of it.
        self._told: Entry | None = None
        # An answer is whole, or what waited was written.
        self._moved = Event()
        self._is_closed_by_handler = False

    @property
    def deadline(self) -> float:
        """When :meth:`expire` is to be called, by ``time.monotonic()``."""
        return self.patience.deadline

    @property
    def busy(self) -> bool:
        """True while its client waits for something."""
        return self.side.busy

    # -- for the owner, in any greenlet ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write what a handler says; never blocks."""
        self.side.wrote(data)
        if not self.outgoing.write(data):
            log.warning("%r was ended: more messages wait for its client than may", self)
            self.abort()
        self.keep_alive()

    def close(self) -> None:
        """A handler says that all was written."""
        self._is_closed_by_handler = True
        self.end()

    def cancel(self) -> None:
        """A handler ends it at once."""
        self._is_closed_by_handler = True
        self.abort()

    def abort(self) -> None:
        """End it at once, and drop what waits."""
        self.outgoing.drop()
        # Its reader sees the end.
        with contextlib.suppress(OSError):  # it has gone
            self._sock.shutdown(socket.SHUT_RDWR)

    def keep_alive(self) -> None:
        """It is not idle; does not give a slow request more time."""
        if not self.outgoing.ending and not self.side.timed:
            self.patience.rest(time.monotonic())

    def expire(self) -> None:
        """The deadline has passed; never blocks."""
        outgoing = self.outgoing
        # A slow client may go on reading.
        if not outgoing.idle and self.patience.moves(outgoing.written, time.monotonic()):
            return
        if outgoing.ending:
            self.abort()
        else:
            self.side.expire()

    # -- for its sides -----------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Have an id from now on."""
        self.conn_id = self.conn_id or self._owner.register(self)

    def send(self, entry: Entry, message: bytes) -> bool:
        """Hand a request to a handler; blocks this greenlet while none has room for it.

        Returns:
            False where no handler came in time: the message is not sent.
        """
        self.patience.forget()
        try:
            entry.send(message, self.patience.times.no_handler)
        except SendTimeout:
            return False
        self._told = entry
        return True

    def refuse(self, status: int, reason: str, *, head_only: bool = False) -> None:
        """Answer for the front end, and end; the answers before it have to be out (:meth:`wait`)."""
        if not self.outgoing.ending:
            self.outgoing.write(build_answer(status, reason, timestamp=time.time(), head_only=head_only))
            self.end()

    def end(self) -> None:
        """Let what waits get out, and then end."""
        self.patience.rest(time.monotonic())
        self.outgoing.end()

    def moved(self) -> None:
        """Something has happened that :meth:`wait` may wait for."""
        self._moved.set()

    def wait(self, done: Callable[[], bool]) -> None:
        """Block this greenlet until *done*, or the end."""
        if not done():
            self.patience.rest(time.monotonic())
            while not done() and not self.outgoing.ending:
                self._moved.clear()
                self._moved.wait()

    # -- in the greenlet of run() ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Read until the end; blocks this greenlet."""
        try:
            self._read()
        except OSError:
            pass  # reset by the client
        finally:
            self.outgoing.drop()
            self.incoming.close()
            self._sock.close()
            self.side.close()
            self._owner.unregister(self)
            if self._told is not None and not self._is_closed_by_handler:
                self._told.notify(self._told.messages.disconnect(self.conn_id))

    def _read(self) -> None:
        outgoing = self.outgoing
        while True:
            data = self.incoming.receive()
            if not data:
                break
            # What comes behind the end is nobody's.
            if not outgoing.ending:
                self.side.feed(data)
        if not outgoing.ending:
            self.side.eof()
        # A handler that closes has to get all of it out. The deadline bounds it.
        self._finish(lambda: outgoing.over if outgoing.ending else outgoing.idle and not self.side.waiting)

    def _finish(self, done: Callable[[], bool]) -> None:
        """Block this greenlet until *done*, as long as handlers say more to a client that sends nothing more."""
        outgoing = self.outgoing
        self.patience.rest(time.monotonic())
        while not done() and not outgoing.over:
            # What waits for the client to read it is the deadline's matter.
            seconds = self.patience.times.half_close if outgoing.idle else None
            written = outgoing.written
            self._moved.clear()
            if not self._moved.wait(seconds) and outgoing.written == written:
                return

    def _on_idle(self) -> None:
        if self.outgoing.over:
            self.patience.linger(time.monotonic())
        self._moved.set()

    def __repr__(self) -> str:
        return f"<BrowserConnection {self.conn_id} of {self.address}>"
