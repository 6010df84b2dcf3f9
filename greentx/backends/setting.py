"""What the parts of one process's share in a registry have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol.websocket.registry import Entry
from .client import RedisClient
from .records import Records

if TYPE_CHECKING:
    from ..handler.connection import Connection
    from ..protocol.websocket.registry import Registry

__all__ = ["Setting", "Times"]


@dataclass(frozen=True)
class Times:
    """Seconds; see :mod:`greentx.backends.redis` for what follows from them.

    Attributes:
        interval: Between two pings of a WebSocket.
        presence: After which a process that says nothing is not there, and another one may ping.
        beat: Between two times that it says so.
        keep: For which records are kept when nobody is there.
    """

    interval: float
    presence: float
    beat: float
    keep: float

    @classmethod
    def of(cls, interval: float | None) -> Times:
        """Return those for an interval of pings, ``None`` for no pings."""
        seconds = 30.0 if interval is None else interval
        # Whoever pings is followed within two intervals, and what a process let in is not without it for long.
        presence = min(max(1.25 * seconds, 1.0), 10.0)
        return cls(seconds, presence, presence / 6, max(2 * presence, 10.0))


@dataclass
class Setting:
    """What the parts of one connection set's share have in common.

    Attributes:
        redis: The way there.
        prefix: In front of all keys and channels.
        name: Of this process, as far as the others are concerned: one whose server went comes back with another name,
            since they go on with what it owned.
        registry: The WebSockets that it knows.
        times: How long things take.
    """

    redis: RedisClient
    prefix: str
    name: str
    registry: Registry
    times: Times

    def records(self, sender: str, life: str) -> Records:
        """Return what is kept of a life."""
        return Records(self.prefix, sender, life, self.name, presence=self.times.presence, keep=self.times.keep)

    def entries(self, connection: Connection) -> list[Entry]:
        """Return the WebSockets of a connection set that are known here."""
        return [entry for sender in list(connection.sessions.senders) for entry in self.registry.of_sender(sender)]
