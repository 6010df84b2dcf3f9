"""A request that a relay has been given to forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent.event import Event

from ..handler.connection import Connection
from ..handler.life import ServerLife
from ..protocol.request import Request

if TYPE_CHECKING:
    from .nodes import NodeSession
    from .sticky import Bound

__all__ = ["Forwarded"]


class Forwarded:
    """One request, until it is known to be answered.

    Attributes:
        connection: The connection set that it came by.
        life: The life of its server.
        request: As it came; where an application forwarded it, what stands in its place among the open requests.
        message: What a Node is sent; ``b""`` once it is not sent to another one.
        delegated: An application forwarded it, so that it is open here, too.
        safe: It may be given to another Node after one had it.
        number: What it is called at its session.
        session: Whose Node has it; ``None`` while it waits.
        bound: Its browser connection; ``None`` while it waits for the first Node.
        received: The Node has it.
        begun: The Node may have sent something in answer.
        tries: How many Nodes it was given to.
        refused: Its turn comes, and then it is answered with this status.
        deadline: When it has waited for too long (``time.monotonic()``).
        redelivered: A Node may have seen it before.
        waiter: Set once it need not wait any more, where a greenlet waits for that.
    """

    __slots__ = (
        "begun",
        "bound",
        "connection",
        "deadline",
        "delegated",
        "life",
        "message",
        "number",
        "received",
        "redelivered",
        "refused",
        "request",
        "safe",
        "session",
        "tries",
        "waiter",
    )

    def __init__(
        self, connection: Connection, request: Request, message: bytes, *, safe: bool, delegated: bool = False
    ) -> None:
        self.connection = connection
        self.life: ServerLife = connection.link.life
        self.request = request
        self.message = message
        self.safe = safe
        self.delegated = delegated
        self.number = 0
        self.session: NodeSession | None = None
        self.bound: Bound | None = None
        self.received = False
        self.begun = False
        self.tries = 0
        self.refused = 0
        self.deadline = 0.0
        self.redelivered = False
        self.waiter: Event | None = None

    @property
    def over(self) -> bool:
        """Its server, or its browser, has gone: nobody waits for the answer."""
        return self.connection.link.life is not self.life or self.request.life is not self.life

    def __repr__(self) -> str:
        return f"<Forwarded {self.number} {self.request!r}>"
