"""What the connection sets of one Transceiver share, and what else may work on their messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from ..protocol.bounds import MAX_PENDING_BYTES, MAX_QUEUE_BYTES, Queued
from ..protocol.flow import DEFAULT_BOUNDS, Bounds
from ..protocol.request import Request
from ..protocol.websocket.registry import Registry
from ..protocol.websocket.sharing import Broadcast
from ..transport import Context
from .inbox import Inbox
from .running import RunningJobs
from .senders import Senders
from .websockets import WebSocketOptions

if TYPE_CHECKING:
    from .connection import Connection
    from .sharing import SharedRegistry

__all__ = ["MAX_PENDING", "SEND_TIMEOUT", "Extension", "Shared"]

#: The defaults: events that may wait for the application, seconds on a full pipe.
MAX_PENDING = 10000
SEND_TIMEOUT = 30.0


class Extension:
    """Something that works on a Transceiver's messages next to the application, such as a relay. This one does nothing.

    It is in ``Shared.extensions`` and is called, never subclassed from what calls it. Its methods may be called in the
    hub, so they must not block, except for those that say so, and the last two.
    """

    def ready(self, connection: Connection) -> None:
        """The server of *connection* has subscribed: replies arrive."""

    def missing(self, connection: Connection) -> None:
        """The server of *connection* has been away for so long that a warning was logged; may be called again."""

    def lost(self, connection: Connection) -> None:
        """The server of *connection* has gone, with all its ids; its life is over."""

    def removed(self, connection: Connection) -> None:
        """The connection set was removed: nothing more comes from it. By default the same as :meth:`lost`."""
        self.lost(connection)

    def notice(self, connection: Connection, request: Request) -> bool:
        """The server sent a notice, but for :meth:`wrote`. Returns True where the connection set is not to see it."""
        return False

    def wrote(self, connection: Connection, conn_id: str, count: int) -> None:
        """The server says that it wrote *count* bytes to a browser connection; to nobody else it was told yet."""

    def settled(self, connection: Connection, request: Request) -> None:
        """Something was answered to *request*, or it was closed or handed on; it may be open all the same."""

    def websocket_ended(self, connection: Connection, event: Request) -> None:
        """A WebSocket has ended; *event* is the ``WEBSOCKET_CLOSE`` that the application gets."""

    def report(self) -> dict[str, Any]:
        """Return what it adds to ``Transceiver.status()``."""
        return {}

    def broadcast(self, broadcast: Broadcast) -> int:
        """Send a message to the WebSockets of other processes, too, as ``Transceiver.broadcast`` says.

        May block this greenlet. Returns how many it goes to, as far as that is known.

        Raises ``LocalProtocolError`` where it is too long.
        """
        return 0

    def before_leave(self, connection: Connection, busy: bool) -> bool:
        """The server is about to be told that *connection* pulls no more. Returns True to be asked again.

        May hold up this whole thread for milliseconds, as the next two.

        Args:
            busy: Something has come since the last time.
        """
        return False

    def wait_for_end(self, descriptor: int) -> None:
        """It was told, and ends the connection, whose *descriptor* is hung up then (POLLHUP)."""

    def after_leave(self, connection: Connection) -> None:
        """It was told, and may know by now."""

    def stop_intake(self, timeout: float) -> None:
        """The Transceiver stops: accept no more. Blocks for *timeout* seconds at the most."""

    def stop(self, linger: float) -> None:
        """The handlers have finished, their answers are out: send what waits, within *linger* seconds, and let go."""


class Shared:
    """What the connection sets of one Transceiver share.

    Attributes:
        context: The ZeroMQ context.
        registry: All live WebSockets.
        inbox: Where events wait for the application.
        senders: Which server each sender belongs to.
        options: What the application said about its WebSockets.
        queued: What waits in the queues of connections, and the bounds for it.
        send_timeout: Seconds that a sender waits on a full pipe, and over which it is judged whether a browser reads;
            ``None`` waits forever.
        bounds: What one browser that reads slowly may hold up.
        readers: The greenlets that read events, which must not wait for one browser.
        pools: The pools of handlers, in which those that wait for their browsers keep no place.
        extensions: What else works on the messages.
        websocket_receivers: The last one is called where a WebSocket begins, with its connection set and event; what it
            returns gets all that comes from it, past the inbox. Empty: the inbox gets it.
        handshake_events: The application answers the opening handshakes of WebSockets itself.
        upload_store: Where the files of stored uploads are; see :class:`greentx.handler.uploads.Uploads`.
    """

    def __init__(
        self,
        context: Context,
        *,
        registry: Registry | None = None,
        options: WebSocketOptions | None = None,
        max_pending: int = MAX_PENDING,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        send_timeout: float | None = SEND_TIMEOUT,
        bounds: Bounds = DEFAULT_BOUNDS,
        handshake_events: bool = False,
        upload_store: str | None = None,
        sharing: SharedRegistry | None = None,
    ) -> None:
        self.context = context
        # The Transceiver's, if it has one already: its WebSockets can be asked for before it starts and after it ends.
        self.registry = Registry() if registry is None else registry
        self.registry.watcher = sharing
        # One for all connection sets: an application that is behind with one server is behind with all.
        self.inbox = Inbox(max_pending, max_pending_bytes)
        self.senders = Senders()
        self.queued = Queued(max_queue_bytes, max_pending_bytes)
        self.options = WebSocketOptions() if options is None else options
        self.send_timeout = send_timeout
        self.bounds = bounds
        # Weak: a loop of the application's own ends with its greenlet, and tells nobody.
        self.readers: WeakSet[Any] = WeakSet()
        self.pools: list[RunningJobs[Any]] = []
        # Empty for nearly everybody: the path of a request asks only whether there is one.
        self.extensions: list[Extension] = [] if sharing is None else [sharing]
        self.websocket_receivers: list[Callable[[Connection, Request], Callable[[Request], None]]] = []
        self.handshake_events = handshake_events
        self.upload_store = upload_store

    def wrote(self, connection: Connection, conn_id: str, count: int) -> None:
        """Tell the extensions what a server wrote to a browser connection."""
        for extension in self.extensions:
            extension.wrote(connection, conn_id, count)

    @property
    def sharing(self) -> SharedRegistry | None:
        """Shares the registry with other processes; ``None``: nobody does."""
        return cast("SharedRegistry | None", self.registry.watcher)

    def for_browser(self) -> AbstractContextManager[object] | None:
        """Return what is entered while this greenlet waits for a browser to read; ``None`` where it must not wait."""
        current = self.context.caller()
        # One browser would hold up all the others.
        if current in self.readers:
            return None
        for pool in self.pools:
            job = pool.job_of(current)
            if job is not None:
                return pool.aside(job)
        return nullcontext()
