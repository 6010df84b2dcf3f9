"""What a Node tells its relay of the requests that it was handed: received, answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..handler.connection import Connection
from ..transport import Context
from .messages import RECEIPT_SECONDS

__all__ = ["Reports"]

# While the relay is away, or has no room, what it is to be told is tried again so often.
_RETRY_SECONDS = 0.1


class Reports:
    """Many go in one message, before the hub sleeps; an answer is reported once nothing of it waits on our side.

    Args:
        context: Owner of the timer.
        name: Of the Node.
        send: Sends one message to the relay; returns whether there was room for it.
    """

    def __init__(self, context: Context, name: str, send: Callable[[bytes], bool]) -> None:
        self._context = context
        self._name = name.encode()
        self._send = send
        self._received: list[str] = []
        self._answered: list[tuple[Connection, str, str]] = []
        # Only where something waits for a browser, or for the relay: nothing tells of either.
        self._look: Any = context.timer(RECEIPT_SECONDS, RECEIPT_SECONDS)
        self._retry: Any = context.timer(_RETRY_SECONDS, _RETRY_SECONDS)
        self._scheduled = False
        self._stopped = False

    def received(self, token: str) -> None:
        """A request is open here."""
        self._received.append(token)
        self._schedule()

    def answered(self, connection: Connection, conn_id: str, token: str) -> None:
        """It was answered."""
        self._answered.append((connection, conn_id, token))
        self._schedule()

    def _schedule(self) -> None:
        # One message for all that this round of the loop answers.
        if not self._scheduled:
            self._scheduled = True
            self._context.hub.loop.run_callback(self.flush)

    def flush(self) -> None:
        """Send what there is to say; what cannot be sent now is tried again."""
        self._scheduled = False
        if self._stopped or not self._context.open:
            return
        for timer in (self._look, self._retry):
            timer.stop()
        # Before the answers: a token that was answered is forgotten at the other end.
        if not self._flush_received() or not self._flush_answered():
            # Not start(), here and below: it goes on with what was left of the timer's last run.
            self._retry.again(self.flush, update=True)
        elif self._answered:
            self._look.again(self.flush, update=True)

    def _flush_received(self) -> bool:
        if self._received:
            if not self._tell(b"+", self._received):
                return False
            self._received.clear()
        return True

    def _flush_answered(self) -> bool:
        # What waits in our outbox has not been sent: the next answer, from another Node, would overtake it.
        waiting: list[tuple[Connection, str, str]] = []
        done: list[str] = []
        for item in self._answered:
            connection, conn_id, token = item
            if connection.link.writer.flow.waiting(conn_id):
                waiting.append(item)
            else:
                done.append(token)
        if done and not self._tell(b"-", done):
            return False
        self._answered = waiting
        return True

    def _tell(self, kind: bytes, tokens: list[str]) -> bool:
        return self._send(b"%b%b %b" % (kind, self._name, " ".join(tokens).encode()))

    def stop(self) -> None:
        """Send what there is to say, for the last time."""
        self.flush()
        self._stopped = True
        for timer in (self._look, self._retry):
            self._context.unwatch(timer)
