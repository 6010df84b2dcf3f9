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

# Seconds for the receiver to finish the message in hand.
_STOP_SECONDS = 0.5


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

    def send(self, message: bytes, timeout: float | None) -> None:
        """Hand on a message; blocks this greenlet while no handler has room for it.

        Raises:
            SendTimeout: No handler was connected for *timeout* seconds. The message will not be sent.
        """
        while not self._pusher.offer(message):
            try:
                self._pusher.send(message, timeout)
            except SendTimeout:
                # One that is busy is waited for, as Mongrel2 does.
                if not self._pusher.peers:
                    raise
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
