"""One handler entry of the front end: PUSH and SUB, both bound, and what its messages look like."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable

from ...errors import SendTimeout
from ...transport import Context
from ...transport.endpoints import bind_endpoint
from ...transport.pusher import Pusher
from ...transport.receiver import bind_subscriber
from ..config import Handler
from .messages import MessageBuilder

__all__ = ["Entry"]

log = logging.getLogger("greentx.edge.front")

# Each is of a connection that has gone, and about a hundred bytes.
_MAX_WAITING_NOTICES = 100_000

# Of what no handler has room for, or none is there for: each connection waits with one message at the most.
_MAX_WAITING_BYTES = 64 * 1024 * 1024

# Seconds for the receiver to finish the message in hand.
_STOP_SECONDS = 0.5


@dataclasses.dataclass
class _Waiting:
    """Bytes of the messages that wait for a handler."""

    size: int = 0


class Entry:
    """Where requests go, and replies come from.

    Attributes:
        handler: As configured, with the endpoints that were bound.
        messages: Builds what is sent here.
        raw: What its handlers write to JSON and XML sockets goes out as it is; else in base64.
    """

    def __init__(
        self,
        context: Context,
        handler: Handler,
        on_reply: Callable[[Entry, bytes], None],
        scheme: bytes,
        *,
        believes: bool,
    ) -> None:
        """Bind both.

        Args:
            on_reply: Called with each message that a handler sends, in a greenlet of this entry. Must not block.
            scheme: That browsers speak.
            believes: What they say of who they are; see :class:`~.messages.MessageBuilder`.

        Raises:
            BindError: An address is in use, or not ours.
        """
        self.messages = MessageBuilder(handler.sender, handler.protocol, scheme, believes=believes)
        self.raw = handler.raw_payload == 1
        # Shared with what believing() returns.
        self._waiting = _Waiting()
        self._pusher = Pusher(context, bind_endpoint(handler.send_spec or ("127.0.0.1", 0)))
        self._receiver, recv_spec = bind_subscriber(
            context,
            bind_endpoint(handler.recv_spec or ("127.0.0.1", 0)),
            lambda message: on_reply(self, message),
            topic=handler.recv_ident.encode(),
        )
        self.handler = dataclasses.replace(handler, send_spec=self._pusher.endpoint, recv_spec=recv_spec)

    def believing(self) -> Entry:
        """Return the same one, for clients that are believed what they say of who they are."""
        entry = copy.copy(self)
        entry.messages = self.messages.believing()
        return entry

    @property
    def handlers(self) -> int:
        """How many handlers are connected now."""
        return self._pusher.peers

    def offer(self, message: bytes) -> bool:
        """Hand on a message if a handler has room for it now; never blocks. Returns whether it was."""
        return self._pusher.offer(message)

    def send(self, message: bytes, seconds: float, goes_on: Callable[[bool], bool]) -> None:
        """Hand on a message that none had room for; blocks this greenlet until one has.

        Args:
            goes_on: Asked after *seconds*, again and again, whether the message waits on; with True where handlers are
                there, which are busy then. Must not block.

        Raises:
            SendTimeout: It does not, or more waits already than may. The message will not be sent.
        """
        waiting, size = self._waiting, len(message)
        if waiting.size + size > _MAX_WAITING_BYTES:
            raise SendTimeout(f"{waiting.size} bytes wait for handlers at {self.handler.send_spec}, which is the most")
        waiting.size += size
        try:
            self._send_later(message, seconds, goes_on)
        finally:
            waiting.size -= size

    def _send_later(self, message: bytes, seconds: float, goes_on: Callable[[bool], bool]) -> None:
        while True:
            try:
                self._pusher.send(message, seconds)
            except SendTimeout:
                if not goes_on(self._pusher.peers > 0):
                    raise
                if self._pusher.offer(message):
                    return
            else:
                return

    def notify(self, notice: bytes) -> None:
        """Hand on a notice, now or as soon as a handler has room for it. Never blocks."""
        if self._pusher.waiting >= _MAX_WAITING_NOTICES:
            log.error("%s: %d messages wait for a handler; a notice was dropped", self, self._pusher.waiting)
            return
        self._pusher.post(notice)

    def close(self) -> None:
        """Close both; what no handler had room for is dropped. Blocks for 0.5 s at the most."""
        self._receiver.stop(timeout=_STOP_SECONDS)
        self._pusher.close()

    def __repr__(self) -> str:
        return f"<Entry {self.handler.sender} {self.handler.send_spec}: {self.handlers} handlers>"
