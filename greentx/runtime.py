"""What the connection sets of one Transceiver share, and what else may work on their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .inbox import Inbox
from .registry import Registry
from .session import WebSocketOptions
from .transport import Context
from .wire import Request

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["MAX_PENDING", "SEND_TIMEOUT", "Attachment", "Runtime"]

#: What is taken where nothing else is said: events that may wait, seconds on a full pipe.
MAX_PENDING = 10000
SEND_TIMEOUT = 30.0


class Attachment:
    """Something that works on a Transceiver's messages beside the application, such as a relay. This one does nothing.

    It is in ``Runtime.attachments``; its methods may be called in the hub, so they do not block, but the last two.
    """

    def notice(self, connection: Connection, request: Request) -> bool:
        """The server sent a notice. Returns whether it is of no interest to the connection set."""
        return False

    def websocket_ended(self, connection: Connection, event: Request) -> None:
        """A WebSocket has ended; *event* is the ``WEBSOCKET_CLOSE`` that the application gets."""

    def lost(self, connection: Connection) -> None:
        """The server of *connection* has gone, with all its ids."""

    def stop_intake(self, timeout: float) -> None:
        """The Transceiver stops: take in no more. Blocks for *timeout* seconds at the most."""

    def stop(self, linger: float) -> None:
        """The handlers have finished, their answers are out: send what waits, within *linger* seconds, and let go."""


class Runtime:
    """What the connection sets of one Transceiver share.

    Attributes:
        context: The ZeroMQ context.
        registry: All live WebSockets.
        inbox: Where events wait for the application.
        options: What the application said about its WebSockets.
        send_timeout: Seconds that a sender waits on a full pipe; ``None`` for ever.
        attachments: What else works on the messages.
        handshake_events: The application answers the opening handshakes of WebSockets itself.
    """

    def __init__(
        self,
        context: Context,
        *,
        registry: Registry | None = None,
        options: WebSocketOptions | None = None,
        max_pending: int = MAX_PENDING,
        send_timeout: float | None = SEND_TIMEOUT,
        handshake_events: bool = False,
    ) -> None:
        self.context = context
        self.registry = Registry() if registry is None else registry
        self.inbox = Inbox(max_pending)
        self.options = WebSocketOptions() if options is None else options
        self.send_timeout = send_timeout
        self.attachments: list[Attachment] = []
        self.handshake_events = handshake_events
