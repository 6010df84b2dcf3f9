"""What a registry is told to, where several processes share it; see :mod:`greentx.handler.sharing`. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from .registry import Entry, Sid

__all__ = ["Broadcast", "Watcher"]


@dataclass(frozen=True)
class Broadcast:
    """One message to many.

    Attributes:
        payload, opcode: As they travel, without compression.
        group: Whom it is for; ``None`` for all.
        exclude: Who does not get it.
    """

    payload: bytes
    opcode: int
    group: str | None = None
    exclude: Collection[Sid] = ()


class Watcher(ABC):
    """Tells other processes of the changes of a registry. The first four never block, and are called in the hub."""

    @abstractmethod
    def entry_added(self, entry: Entry) -> None:
        """It was added."""

    @abstractmethod
    def entry_removed(self, entry: Entry) -> None:
        """It is about to be removed, and still in its groups."""

    @abstractmethod
    def entry_joined(self, entry: Entry, group: str) -> None:
        """It is in *group* now."""

    @abstractmethod
    def entry_left(self, entry: Entry, group: str) -> None:
        """It is not in *group* any more."""

    @abstractmethod
    def count(self, group: str | None) -> int:
        """See ``Registry.count_everywhere``."""

    @abstractmethod
    def members(self, group: str | None) -> list[Sid]:
        """See ``Registry.members_everywhere``."""
