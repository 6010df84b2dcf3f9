"""What a registry asks of its share in one connection set, whether or not other processes pull from the entry."""

from __future__ import annotations

from typing import Protocol

from .changes import Changes

__all__ = ["Share"]


class Share(Protocol):
    """One connection set's share in the registry. Nothing of it blocks."""

    @property
    def changes(self) -> Changes:
        """Told of what happens to the registry."""

    def begin(self) -> None:
        """Redis or the server came: begin if both are there."""

    def down(self) -> None:
        """Redis has gone."""

    def lost(self) -> None:
        """The server has gone, and its ids."""

    def leave(self) -> None:
        """This process, or the connection set, ends."""

    def tick(self, now: float) -> None:
        """Some time has passed."""

    def collect(self) -> None:
        """A batch is about to be sent."""

    def message(self, channel: str, data: bytes) -> None:
        """Something was published. Raises ``ValueError`` and the like where it means nothing."""

    def notice(self, conn_id: str) -> None:
        """The server gave notice of a connection that nobody can have."""
