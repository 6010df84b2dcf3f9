"""Groups and broadcasts of WSGI applications: ``environ['greentx.websocket']`` and ``environ['greentx.broadcast']``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..protocol.websocket.registry import Sid
    from .intake import Intake
    from .upgrade import Upgrade

__all__ = ["Broadcasting", "Member", "broadcasting"]

#: ``broadcast(message, group=None, exclude=())``, which returns how many it reaches.
Broadcasting = Callable[..., int]


class Member:
    """``environ['greentx.websocket']``: this WebSocket among the others, whichever contract the application uses.

    Attributes:
        sid: ``(sender, conn_id)``, for the ``exclude`` of a broadcast.
    """

    __slots__ = ("_upgrade", "sid")

    def __init__(self, upgrade: Upgrade, sid: Sid) -> None:
        self._upgrade = upgrade
        self.sid = sid

    @property
    def groups(self) -> tuple[str, ...]:
        """Those that it is in. On a Node those of the former Node's application are among them; none after the end."""
        entry = self._upgrade.entry
        if entry is not None:
            return entry.groups
        carrier = self._upgrade.carrier
        return () if carrier is None else tuple(carrier.groups)

    def join(self, group: str) -> None:
        """Join a group, for broadcasts to it; twice is once. Where that was not done before, it lets the client in.

        Blocks this greenlet while what a library wrote to let the client in has not gone out.

        Raises:
            OSError: It has ended, or was answered with HTTP: ``WebSocketError``, or ``ConnectionResetError`` where a
                library has its socket.
        """
        entry, registry = self._upgrade.let_in(), self._upgrade.registry
        if registry is not None:
            registry.join(entry.sid, group)

    def leave(self, group: str) -> None:
        """Leave a group; nothing happens where it is not in it, or has ended. Lets in and blocks as :meth:`join`."""
        with contextlib.suppress(OSError):
            entry, registry = self._upgrade.let_in(), self._upgrade.registry
            if registry is not None:
                registry.leave(entry.sid, group)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sid[0]} {self.sid[1]}: {', '.join(self.groups) or 'no groups'}>"


def broadcasting(intake: Intake) -> Broadcasting:
    """Return ``environ['greentx.broadcast']`` of a server."""

    # A function and no method: middleware copies environs, deeply as well, and a function is not copied.
    def broadcast(message: str | bytes, group: str | None = None, exclude: Iterable[Sid] = ()) -> int:
        """Send one message to all live WebSockets, or to those of *group*: as ``Transceiver.broadcast``.

        On a Node, or a worker, to those of all. While the server does not run there are none.
        """
        transceiver = intake.transceiver
        return 0 if transceiver is None else transceiver.broadcast(message, group, exclude)

    return broadcast
