"""The sockets of a started stand-in: PUSH for requests, SUB for replies, and the context that owns both."""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.event import Event
from gevent.lock import RLock

from ..errors import ForkError
from ..transport import Context, Receiver
from ..transport.endpoints import bind_endpoint, endpoint_address
from ..transport.pusher import Pusher
from ..transport.receiver import bind_subscriber
from ..transport.security import Access

__all__ = ["Sockets"]

# Seconds for the receiver to finish the message in hand. What comes after that has nobody to go to.
_STOP_SECONDS = 0.5


class Sockets:
    """What a server has open from one start to its stop.

    Attributes:
        context: Owns the other two.
        pusher: Sends requests.
        receiver: Reads replies.
        ended: Set once all of them are closed: greenlets that wait for an answer give up.
        leaving: Held by the greenlet that stops the server, so that a second one waits for the first.
    """

    def __init__(
        self,
        name: str,
        ip: str,
        push_port: int,
        sub_port: int,
        *,
        on_reply: Callable[[bytes], None],
        on_teardown: Callable[[], None],
        access: Access | None = None,
    ) -> None:
        """Bind both.

        Args:
            name: For the logs and errors.
            ip: What to bind.
            push_port, sub_port: 0 is any free one.
            on_reply: Called in the receiver's greenlet with each message that came over SUB.
            on_teardown: As for :class:`~greentx.transport.Context`.
            access: Who may connect to them; by default whoever can.

        Raises:
            BindError: An address is in use, or not ours. Nothing is left open.
        """
        # Made here and not by the caller: a bind that fails must not leave its context behind.
        self.context = Context(name, on_teardown)
        try:
            self.pusher = Pusher(self.context, bind_endpoint((ip, push_port)), access)
            self.receiver: Receiver
            self.receiver, self._sub_endpoint = bind_subscriber(
                self.context, bind_endpoint((ip, sub_port)), on_reply, access
            )
        except BaseException:  # raised again: a kill, too, must not leave the context
            self.context.close(linger=0)
            raise
        # Of this start, not of the server: a question asked before a stop must not wait on after the next start.
        self.ended = Event()
        self.leaving = RLock()

    @property
    def ports(self) -> tuple[int, int]:
        """The ports of PUSH and SUB, as bound."""
        # As ZeroMQ tells them, since 0 became some port.
        return endpoint_address(self.pusher.endpoint)[1], endpoint_address(self._sub_endpoint)[1]

    @property
    def forked(self) -> bool:
        """True in a forked child: the sockets are the parent's."""
        # Asked of the context, which knows its process and its thread.
        try:
            self.context.check()
        except ForkError:
            return True
        return False

    @property
    def in_hub(self) -> bool:
        """True where the caller runs in the hub, which can wait for nothing."""
        return gevent.getcurrent() is self.context.hub

    def close(self) -> None:
        """Close all; what was not sent is dropped. Blocks for 0.5 s at the most, in the hub not at all."""
        try:
            # A forked child must not touch them: ZeroMQ's threads did not come along, and would be waited for.
            if not self.forked:
                # The receiver's greenlet cannot run while the hub waits for it.
                if not self.in_hub:
                    self.receiver.stop(timeout=_STOP_SECONDS)
                self.pusher.close()
        finally:
            self.context.close(linger=0)
            self.ended.set()
