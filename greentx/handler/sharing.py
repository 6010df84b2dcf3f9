"""What a Transceiver asks of a registry that it shares with other processes, on this host and others.

There are two kinds of others. On another Mongrel2, or another handler entry, they have WebSockets of their own: a
broadcast has to reach those, and counts include them. On *one* entry (``shared=True``) Mongrel2 hands out messages in
turn, so that each process gets some of every WebSocket's: there each knows all WebSockets, one process at a time pings
them, and all tell it of the pongs that came to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..protocol.websocket.sharing import Broadcast, Watcher
from .shared import Extension, Shared

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Proofs", "SharedEntry", "SharedRegistry"]


class Proofs(Protocol):
    """What shows that a server has received what it was sent, and that what it sent before was seen here.

    The receipts of a writer are such (:class:`greentx.transport.receipts.Receipts`).
    """

    @property
    def known(self) -> bool | None:
        """They do come; ``False``: the clock has to do."""

    @property
    def rules(self) -> Any:
        """Counts questions: ``questions`` were asked, ``over`` is the last that is, ``covered`` the last answered."""

    def ask_behind(self) -> int:
        """Ask behind all that was sent so far; return which question that is. Never blocks."""

    def probe(self) -> None:
        """See whether they come by now, where they did not."""


class SharedEntry(ABC):
    """One handler entry that several processes pull from, as one of them sees it."""

    @property
    @abstractmethod
    def pings(self) -> bool:
        """Its WebSockets are pinged by this process now."""

    @property
    @abstractmethod
    def judges(self) -> bool:
        """All pongs are known here, so that who did not send one may be ended."""

    @property
    @abstractmethod
    def proofs(self) -> Proofs:
        """Of this server, and of what all processes have seen."""


class SharedRegistry(Extension, Watcher, ABC):
    """What the ``registry=`` of a Transceiver is."""

    @abstractmethod
    def open(self, shared: Shared, deliver: Callable[[Broadcast], object], interval: float | None) -> None:
        """The Transceiver starts. Never blocks, whether or not whoever keeps the registry is there.

        Args:
            shared: What its connection sets share.
            deliver: Sends a broadcast of another process to the WebSockets that this one let in; may block.
            interval: Seconds between two pings of a WebSocket; ``None``: nobody is pinged.
        """

    @abstractmethod
    def entry(self, connection: Connection) -> SharedEntry | None:
        """A connection set is made: return what is shared of its entry, ``None`` where no other process pulls."""

    @abstractmethod
    def broadcast(self, broadcast: Broadcast) -> int:
        """As of any extension; never blocks, and returns 0: how many it goes to is not known."""

    @property
    @abstractmethod
    def trouble(self) -> str:
        """Why it is not shared at present; ``""`` where it is."""
