"""The browser connections of one start: let in, looked at for their deadlines, and ended."""

from __future__ import annotations

import contextlib
import logging
import ssl
import time

import gevent
from gevent import socket
from gevent.pool import Group

from .access_log import AccessLog
from .admission import Admission
from .answers import RETRY, build_answer
from .budget import Budget
from .connection import BrowserConnection
from .entry import Entry
from .hosts import Hosts
from .http import HttpSide
from .limits import Limits
from .patience import Times
from .replies import Replies
from .sockets import BrowserSocket
from .tls import TlsSocket

__all__ = ["Browsers"]

log = logging.getLogger("greentx.edge.front")

# Between two looks at the deadlines.
_TICK_SECONDS = 0.25
# Between two looks whether all that is due was written.
_LEAVE_SECONDS = 0.01
# Clients that are told at once that they are too many; those beyond them learn it by the end of their connection.
_MAX_TURNED_AWAY = 64
# Between two lines of the log about them.
_SAID_SECONDS = 10.0


class Browsers:
    """Those that are there, one greenlet each.

    Args:
        admission: Counts them.
        replies: Knows them by their ids.
        budget: Of what they keep.
        tls: What they have to speak.
        flow_control: As for :class:`~.connection.BrowserConnection`.
        access_log: Of their requests.
    """

    def __init__(
        self,
        admission: Admission,
        replies: Replies,
        limits: Limits,
        times: Times,
        budget: Budget,
        tls: ssl.SSLContext | None = None,
        *,
        flow_control: bool = False,
        access_log: AccessLog | None = None,
    ) -> None:
        self._admission = admission
        self._replies = replies
        self._limits = limits
        self._times = times
        self._budget = budget
        self._tls = tls
        self._flow_control = flow_control
        self._access_log = access_log
        self._connections: set[BrowserConnection] = set()
        self._greenlets = Group()
        self._refused = 0
        self._refused_said = -_SAID_SECONDS
        self._turned_away = 0
        self._is_over = False
        self._ticker = gevent.spawn(self._tick)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._connections)

    def accept(self, sock: socket.socket, address: str, hosts: Hosts[Entry], *, is_unix: bool = False) -> None:
        """Serve one more, or turn it away. Does not block.

        Args:
            is_unix: By a Unix socket. All of them come from one proxy, so no bound of one address holds.
        """
        self._greenlets.spawn(self._admit, sock, address, hosts, is_unix)

    def end(self, timeout: float) -> None:
        """Wait for the answers that are due, for *timeout* seconds at the most, and end all. Blocks this greenlet.

        Where it is killed while it waits it ends all then: what was stored of bodies would stay.
        """
        deadline = time.monotonic() + timeout
        try:
            # Each is told, whatever the others say.
            while any([not one.leave() for one in list(self._connections)]):  # noqa: C419
                if time.monotonic() >= deadline:
                    break
                gevent.sleep(_LEAVE_SECONDS)
        finally:
            self._is_over = True
            for connection in list(self._connections):
                connection.abort()
            self._greenlets.join(self._times.linger)
            self._greenlets.kill(timeout=self._times.linger)
            self._ticker.kill()

    def forget(self) -> None:
        """Let go of all in a forked child, which has copies; the parent goes on with them."""
        for connection in self._connections:
            connection.forget()
        self._connections.clear()

    def _admit(self, sock: socket.socket, address: str, hosts: Hosts[Entry], is_unix: bool) -> None:
        # It was accepted in the last turn.
        if self._is_over:
            sock.close()
            return
        # Not in accept(): the loop may know already of others that have gone, and they make room.
        counted = None if is_unix else address
        if not self._admission.enter(counted):
            self._refuse(sock, address)
            return
        try:
            self._serve(sock, address, hosts, is_unix)
        finally:
            self._admission.leave(counted)

    def _serve(self, sock: socket.socket, address: str, hosts: Hosts[Entry], is_unix: bool) -> None:
        if not is_unix:
            with contextlib.suppress(OSError):  # it has gone
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream: BrowserSocket = sock if self._tls is None else TlsSocket(sock, self._tls, address)
        connection = BrowserConnection(
            stream, address, self._replies, self._times, self._budget, flow_control=self._flow_control
        )
        connection.side = side = HttpSide(connection, hosts, self._limits, self._access_log)
        if isinstance(stream, TlsSocket):
            stream.on_ready = side.identify
        self._connections.add(connection)
        try:
            connection.run()
        finally:
            self._connections.discard(connection)

    def _refuse(self, sock: socket.socket, address: str) -> None:
        self._refused += 1
        now = time.monotonic()
        if now >= self._refused_said + _SAID_SECONDS:
            log.warning(
                "%d connections were refused, the last one of %s: there are %d",
                self._refused,
                address,
                len(self._admission),
            )
            self._refused_said = now
            self._refused = 0
        with contextlib.suppress(OSError), sock:
            if self._tls is None and self._turned_away < _MAX_TURNED_AWAY:
                self._turned_away += 1
                try:
                    self._turn_away(sock)
                finally:
                    self._turned_away -= 1

    def _turn_away(self, sock: socket.socket) -> None:
        answer = build_answer(503, "there are too many connections", timestamp=time.time(), headers=RETRY)
        sock.send(answer, 0, 0.0)
        sock.shutdown(socket.SHUT_WR)
        # What was not read would make a reset of the end, and the client might not see the answer.
        with gevent.Timeout(self._times.linger, False):
            while sock.recv(8192):
                pass

    def _tick(self) -> None:
        seconds = max(_TICK_SECONDS, self._times.silence.tick)
        next_look = time.monotonic() + seconds
        while True:
            gevent.sleep(_TICK_SECONDS)
            now = time.monotonic()
            for connection in [one for one in self._connections if one.deadline < now]:
                connection.expire()
            if now >= next_look and self._times.silence.kills:
                next_look = now + seconds
                for connection in list(self._connections):
                    connection.look(now)
