"""The share of a connection set whose handler entry only this process pulls from: others count its WebSockets.

They are kept in Redis for as long as a life of the server lasts, and nobody else knows them.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from .changes import Changes
from .records import life_name
from .setting import Setting

if TYPE_CHECKING:
    from ..handler.connection import Connection

__all__ = ["Single"]


class Single:
    """See the module, and :class:`greentx.backends.share.Share` for the methods.

    Args:
        setting: Of the process.
        connection: The connection set.

    Attributes:
        changes: What happens to the registry here.
        channel: Nobody speaks to it.
    """

    channel = ""

    def __init__(self, setting: Setting, connection: Connection) -> None:
        self.changes = Changes(setting, connection)
        self._setting = setting
        self._connection = connection
        self._beat_at = 0.0

    def begin(self) -> None:
        """Name the life where it is a new one, and say all that is true now."""
        link = self._connection.link
        if not (self._setting.redis.up and link.subscribed):
            return
        changes = self.changes
        if changes.records is None or changes.life is not link.life:
            changes.life = link.life
            changes.records = self._setting.records(self._connection.sender, life_name())
        self._say_all()

    def _say_all(self) -> None:
        records = self.changes.records
        assert records is not None
        # What ended while Redis was away may still be there.
        for what in ("sockets", "groups"):
            self._setting.redis.send("DEL", records.key(what))
        self._beat_at = inf
        self.changes.say_all(self._setting.entries(self._connection), self._said_all)

    def _said_all(self) -> None:
        self._beat_at = 0.0

    def down(self) -> None:
        """Nothing: all is said again."""

    def lost(self) -> None:
        """Remove what was known."""
        records = self.changes.records
        self.changes.end()
        if records is not None:
            self._setting.redis.send(*records.leave())

    def leave(self) -> None:
        """As :meth:`lost`."""
        self.lost()

    def tick(self, now: float) -> None:
        """Say that this process is there."""
        records = self.changes.records
        if records is None or not self._setting.redis.up or now < self._beat_at:
            return
        self._beat_at = now + self._setting.times.beat
        self._setting.redis.send(*records.here(), then=self._was_here)
        for command in records.beat():
            self._setting.redis.send(*command)

    def _was_here(self, reply: object) -> None:
        # Somebody has removed everything.
        if reply == 1 and self.changes.records is not None:
            self._say_all()

    def collect(self) -> None:
        """Say what has changed."""
        self.changes.flush()

    def message(self, channel: str, data: bytes) -> None:
        """Nobody speaks to it."""

    def notice(self, conn_id: str) -> None:
        """Nobody asks for any."""
