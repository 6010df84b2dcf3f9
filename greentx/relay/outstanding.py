"""What a relay has handed on and does not know to be answered."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from ..handler.connection import Connection
from ..handler.life import ServerLife
from ..protocol.request import Request
from ..protocol.websocket.registry import Sid

__all__ = ["Forwarded", "Outstanding", "Words"]


class Forwarded:
    """A request that a Node answers.

    Attributes:
        connection: The connection set that it came by.
        stand_in: What stands in its place there, so that those behind it wait.
        node: Which Node has received it, once that was said.
    """

    __slots__ = ("connection", "node", "stand_in")

    def __init__(self, connection: Connection, stand_in: Request) -> None:
        self.connection = connection
        self.stand_in = stand_in
        self.node: str | None = None


class Outstanding:
    """Forwarded requests by their tokens."""

    def __init__(self) -> None:
        # Nodes report by token; notices tell of a connection. One request of a connection is out at a time.
        self._by_token: dict[str, Forwarded] = {}
        self._tokens: dict[Sid, str] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def __iter__(self) -> Iterator[Forwarded]:
        # A copy: releasing one may end others.
        return iter(list(self._by_token.values()))

    def add(self, token: str, connection: Connection, stand_in: Request) -> None:
        """A request was handed on."""
        self._by_token[token] = Forwarded(connection, stand_in)
        self._tokens[stand_in.sid] = token

    def received(self, token: str, node: str) -> None:
        """A Node says that it has it."""
        one = self._by_token.get(token)
        # Unknown where its connection ended meanwhile.
        if one is not None:
            one.node = node

    def pop(self, token: str) -> Forwarded | None:
        """It was answered, or is given up; ``None`` where it is not known."""
        one = self._by_token.pop(token, None)
        if one is not None:
            self._tokens.pop(one.stand_in.sid, None)
        return one

    def connection_ended(self, sid: Sid) -> None:
        """The browser has gone: nobody waits for the answer."""
        token = self._tokens.pop(sid, None)
        if token is not None:
            del self._by_token[token]

    def pop_of(self, *, node: str | None = None, connection: Connection | None = None) -> list[Forwarded]:
        """Give up all that one Node has, or all of one connection set, and return them."""
        tokens = [
            token
            for token, one in self._by_token.items()
            if (one.connection is connection if connection is not None else one.node == node)
        ]
        return [one for one in map(self.pop, tokens) if one is not None]

    def clear(self) -> None:
        """Give up all."""
        self._by_token.clear()
        self._tokens.clear()


class Words:
    """Makes words that no other relay makes: tokens, and names of lives.

    Args:
        relay: The relay's own.
    """

    def __init__(self, relay: str) -> None:
        self.relay = relay
        self._numbers = count(1)

    def new(self) -> str:
        """Return another one."""
        return f"{self.relay}.{next(self._numbers)}"

    def of(self, life: ServerLife) -> str:
        """Return what a life of a server is called."""
        # Made when it is first needed: most lives of most servers are never talked of.
        if not life.word:
            life.word = self.new()
        return life.word
