"""What goes out to Nodes: messages in batches, and leases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from ..transport import Context, PeerGone, Router
from .messages import LEASE_SECONDS, build_wrote, join
from .session import NodeSession

__all__ = ["Batches", "Leases", "milliseconds"]

# Messages that go together, and bytes of one that does not.
_BATCH_MESSAGES = 64
_BATCH_BYTES = 16384
# Browser connections of one server, whose bytes are told together.
_BATCH_WRITTEN = 1024
_RETRY_SECONDS = 0.01

# Leases, and looks at who is there.
_LEASE_INTERVAL = 0.25

# ZeroMQ tells of the end of a connection first, and forgets the peer within some milliseconds then.
_LOOK_SECONDS = 0.01

# By then everything that a Node said before its end has been read here.
_LAST_WORDS_SECONDS = 0.05

# For what differs between two clocks within a second, and timers that are late.
_FENCE_MARGIN = 0.1

# A Node asks for the clock more often than this.
_SILENT_SECONDS = 0.75


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
        of_servers = self._written.setdefault(session, {})
        counts = of_servers.setdefault(server, {})
        counts[conn_id] = counts.get(conn_id, 0) + count
        if session not in self._pending:
            self._pending[session] = []
            if not self._scheduled:
                self._schedule()
        elif len(counts) >= _BATCH_WRITTEN:
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


class Leases:
    """Says to each Node that it may answer, and finds those that cannot be reached.

    Args:
        context: Owner of the timers.
        router: Sends.
        sessions: Returns those that are there.
        gone: Called with a session that is not connected any more.
    """

    def __init__(
        self,
        context: Context,
        router: Router,
        sessions: Callable[[], Iterable[NodeSession]],
        gone: Callable[[NodeSession], object],
    ) -> None:
        self._context = context
        self._router = router
        self._sessions = sessions
        self._gone = gone
        # The end of a connection is the end of a process there: nobody can answer after it.
        self._fences = not router.endpoint.startswith("ipc:")
        self._timer: Any = context.timer(_LEASE_INTERVAL, _LEASE_INTERVAL)
        self._timer.start(self.send)

    def send(self) -> None:
        """Send one to each."""
        now = monotonic()
        message = b"lease %d\n" % milliseconds(now)
        for session in self._sessions():
            session.written.forget(now)
            try:
                if self._router.send(session.identity, message):
                    session.leased = now
            except PeerGone:
                self._gone(session)

    def look_soon(self) -> None:
        """Some connection has ended: whose is found out by sending to all."""
        self.send()
        timer = self._context.timer(_LOOK_SECONDS)
        timer.start(self._look_again, timer)

    def _look_again(self, timer: Any) -> None:
        self._context.unwatch(timer)
        self.send()

    def seconds_left(self, session: NodeSession) -> float:
        """Return how long a session that has ended may answer still."""
        if not self._fences:
            return _LAST_WORDS_SECONDS
        if session.ended - session.heard > _SILENT_SECONDS:
            session.sure = False
        return max(session.leased + LEASE_SECONDS + _FENCE_MARGIN - session.ended, _LAST_WORDS_SECONDS)

    def stop(self) -> None:
        """Send no more."""
        self._context.unwatch(self._timer)


def milliseconds(now: float) -> int:
    """Return a time of ``time.monotonic()`` as it is told."""
    return int(now * 1000)
