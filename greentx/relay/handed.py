"""What a relay has handed on to a Node, for one of the Node's connection sets.

A connection id means the same here as at the API only if both talk of the same life of the server. Each request says by
a word in which life the API received it; what comes with a word of an older life waits until the API has said which one
is valid, and is dropped if its is not.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ..handler.connection import Connection
from ..protocol.bounds import size_of
from ..protocol.kinds import FRAMES, SOCKETS
from ..protocol.request import Request
from .messages import MAX_HELD

__all__ = ["HandedOn"]

log = logging.getLogger("greentx.relay")

# Lives of servers that are over, as a Node remembers them: its queue does not go further back.
_MAX_OLD_LIVES = 64


class HandedOn:
    """What was handed on for one connection set.

    Args:
        connection: The connection set that answers.
        ask: Asks the relay which lives are valid; :meth:`confirm` is to follow.
        taken: Called with the id and the token of each HTTP request that is open here from now on.

    Attributes:
        stale: How many requests came too late, out of an older life of the server.
        working: The tokens of the open requests, by ``conn_id``.
        held: What waits for the server, or for the relay's answer.
    """

    def __init__(self, connection: Connection, ask: Callable[[], None], taken: Callable[[str], None]) -> None:
        self.stale = 0
        # One for a connection: the API hands on the next one only when the one before was answered.
        self.working: dict[str, str] = {}
        self.held: deque[tuple[Request, str, str]] = deque()
        self._connection = connection
        self._share = connection.sessions.queued.share()
        self._ask = ask
        self._taken = taken
        # Words for the server's life that came up since our own connection to it was made, and earlier ones.
        self._lives: set[str] = set()
        self._old_lives: deque[str] = deque(maxlen=_MAX_OLD_LIVES)

    def accept(self, request: Request, life: str, token: str) -> None:
        """One request, once it is sure that its connection id means what it meant at the API."""
        connection = self._connection
        if life and life not in self._lives:
            connection.link.writer.pipe.check()  # the server's end may be known to ZeroMQ and not to us
            if life not in self._old_lives:
                self._lives.add(life)
        # Nothing overtakes what is held: two requests of one connection may be among them.
        if connection.link.subscribed and not self.held and life not in self._old_lives:
            self._open(request, token)
        # A bound, since the server may stay away; its browsers are gone with it.
        elif len(self.held) >= MAX_HELD or self._share.add(size_of(request)):
            self._drop(request)
        else:
            self.held.append((request, life, token))
            self.go_on()

    def go_on(self) -> None:
        """See to what was held: the server is there, or the relay has answered."""
        while self.held and self._connection.link.subscribed:
            request, life, token = self.held[0]
            # Our own connection broke, which need not mean that the server restarted: the API knows.
            if life in self._old_lives:
                self._ask()
                return
            self.held.popleft()
            self._share.remove(size_of(request))
            self._open(request, token)

    def confirm(self, life: str) -> None:
        """The API says what the server's present life is called; what is of an older one is a stranger's by now."""
        if life in self._old_lives:
            self._old_lives.remove(life)
        self._lives.add(life)
        held = [item for item in self.held if item[1] not in self._old_lives]
        for request, old_life, _ in self.held:
            if old_life in self._old_lives:
                self._share.remove(size_of(request))
                self._drop(request)
        self.held = deque(held)
        self.go_on()

    def lost(self) -> None:
        """The server has gone: its words so far are those of an old life."""
        # The API sees the end of the server itself, and forgets their tokens.
        self.working.clear()
        self._old_lives.extend(self._lives)
        self._lives.clear()

    def settled(self, request: Request) -> str | None:
        """Something was answered: return the token of what is not open here any more, if that is so."""
        conn_id = request.conn_id
        if conn_id in self.working and conn_id not in self._connection.link.life.requests.heads:
            return self.working.pop(conn_id)
        return None

    def _drop(self, request: Request) -> None:
        self.stale += 1
        log.warning("%s: %s %s was dropped: its server has gone", self._connection.sender, request.method, request.path)

    def _open(self, request: Request, token: str) -> None:
        if request.method in FRAMES:
            self._websocket(request)
            return
        # No answer is due to a message of a JSON or XML socket, so there is nothing to report.
        if token and request.method not in SOCKETS:
            self.working[request.conn_id] = token
            self._taken(token)
        self._connection.intake.accept(request)

    def _websocket(self, request: Request) -> None:
        """An event of a WebSocket that the API let in, checked and inflated."""
        request.life = self._connection.link.life
        self._connection.sessions.relayed.message(request)
