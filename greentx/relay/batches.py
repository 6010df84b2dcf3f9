"""What goes out to Nodes, in batches: each message of its own would cost ZeroMQ and the system as much as many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..transport import Context, PeerGone, Router
from .messages import build_wrote, join
from .session import NodeSession

__all__ = ["Batches"]

# Messages that go together, and bytes of one that does not.
_BATCH_MESSAGES = 64
_BATCH_BYTES = 16384
# Browser connections of one server, whose bytes are told together.
_BATCH_WRITTEN = 1024
_RETRY_SECONDS = 0.01


class Batches:
    """Sends each Node what one round of the hub has for it in one message.

    Args:
        context: Owner of the timer.
        router: Sends.
        gone: Called with a session that is not connected any more.
    """

    def __init__(self, context: Context, router: Router, gone: Callable[[NodeSession], object]) -> None:
        self._context = context
        self._router = router
        self._gone = gone
        self._pending: dict[NodeSession, list[bytes]] = {}
        # Bytes that servers wrote to browser connections, by the words for their lives: most rounds have many.
        self._written: dict[NodeSession, dict[str, dict[str, int]]] = {}
        self._scheduled = False
        # While ZeroMQ has no room for one.
        self._timer: Any = context.timer(_RETRY_SECONDS, _RETRY_SECONDS)

    def add(self, session: NodeSession, message: bytes) -> None:
        """Send a message, behind those before it."""
        pending = self._pending.get(session)
        if pending is None:
            self._pending[session] = [message]
            if not self._scheduled:
                self._schedule()
        else:
            pending.append(message)
            # Copied once more for the batch: not so many bytes of it.
            if len(pending) >= _BATCH_MESSAGES or len(message) >= _BATCH_BYTES:
                self._send(session)

    def wrote(self, session: NodeSession, server: str, conn_id: str, count: int) -> None:
        """Say that a server wrote so many bytes, in one message with what else it wrote in this round."""
        of_servers = self._written.get(session)
        if of_servers is None:
            of_servers = self._written[session] = {}
            if session not in self._pending:
                self._pending[session] = []
                if not self._scheduled:
                    self._schedule()
        counts = of_servers.get(server)
        if counts is None:
            counts = of_servers[server] = {}
        counts[conn_id] = counts.get(conn_id, 0) + count
        if len(counts) >= _BATCH_WRITTEN:
            self._send(session)

    def _schedule(self) -> None:
        self._scheduled = True
        self._context.hub.loop.run_callback(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._timer.stop()
        for session in list(self._pending):
            self._send(session)

    def _send(self, session: NodeSession) -> None:
        if not self._context.open:
            return
        messages = self._pending.pop(session)
        written = self._written.pop(session, None)
        if written is not None:
            # In front: what it is for was answered before all that is sent now.
            messages[:0] = [build_wrote(server, counts) for server, counts in written.items()]
        large = len(messages[-1]) >= _BATCH_BYTES
        batches = [messages[:-1], messages[-1:]] if large else [messages]
        for index, batch in enumerate(batches):
            try:
                if not batch or self._router.send(session.identity, join(batch)):
                    continue
            except PeerGone:
                self._gone(session)
                return
            self._pending[session] = [message for left in batches[index:] for message in left]
            self._timer.again(self._flush, update=True)
            return

    def stop(self) -> None:
        """Send what there is."""
        self._flush()
        self._pending.clear()
        self._written.clear()
        self._context.unwatch(self._timer)
