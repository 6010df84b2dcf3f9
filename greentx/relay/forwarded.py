"""A request that a relay has been given to forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gevent.event import Event

from ..handler.connection import Connection
from ..handler.life import ServerLife
from ..protocol.life import ENDED
from ..protocol.request import Request, StoredFile, parse_request

if TYPE_CHECKING:
    from .nodes import NodeSession
    from .sticky import Bound

__all__ = ["Forwarded"]


class Forwarded:
    """One request, until it is known to be answered.

    Attributes:
        connection: The connection set that it came by.
        life: The life of its server.
        conn_id: Of its browser connection.
        message: What a Node is sent; ``b""`` once it is not sent to another one.
        delegated: An application forwarded it, so that it is open here, too.
        safe: It may be given to another Node after one had it.
        number: What it is called at its session.
        session: Whose Node has it; ``None`` while it waits.
        bound: Its browser connection; ``None`` while it waits for the first Node.
        received: The Node has it.
        begun: The Node may have sent something in answer.
        size: How many bytes of the answer the Node said that it sends.
        tries: How many Nodes it was given to.
        deaths: How many of these had it when they went.
        refused: Its turn comes, and then it is answered with this status.
        deadline: When it has waited for too long (``time.monotonic()``).
        keys: Of the sessions of applications that it may belong to; ``None`` before they were looked for.
        redelivered: A Node may have seen it before.
        waiter: Set once it need not wait any more, where a greenlet waits for that.
    """

    __slots__ = (
        "_ended",
        "_request",
        "begun",
        "bound",
        "conn_id",
        "connection",
        "deadline",
        "deaths",
        "delegated",
        "keys",
        "life",
        "message",
        "number",
        "received",
        "redelivered",
        "refused",
        "safe",
        "session",
        "size",
        "tries",
        "waiter",
    )

    def __init__(
        self,
        connection: Connection,
        conn_id: str,
        message: bytes,
        *,
        safe: bool,
        request: Request | None = None,
        delegated: bool = False,
    ) -> None:
        self.connection = connection
        self.life: ServerLife = connection.link.life
        self.conn_id = conn_id
        self._request = request
        self._ended = False
        self.message = message
        self.safe = safe
        self.delegated = delegated
        self.number = 0
        self.session: NodeSession | None = None
        self.bound: Bound | None = None
        self.received = False
        self.begun = False
        self.size = 0
        self.tries = 0
        self.deaths = 0
        self.refused = 0
        self.deadline = 0.0
        self.keys: Sequence[bytes] | None = None
        self.redelivered = False
        self.waiter: Event | None = None

    @property
    def request(self) -> Request:
        """As it came; where an application forwarded it, what stands in its place among the open requests."""
        # Most are never asked for it: what a Node is sent is the message.
        request = self._request
        if request is None:
            request = self._request = parse_request(self.message)
            request.life = ENDED if self._ended else self.life
        return request

    @request.setter
    def request(self, request: Request) -> None:
        self._request = request

    @property
    def decoded(self) -> bool:
        """Whether :attr:`request` is there; else it is made of the message when it is first asked for."""
        return self._request is not None

    @property
    def stored(self) -> StoredFile | None:
        """The file of its body, where it is stored in one."""
        return None if self._request is None else self._request.stored

    @property
    def tells(self) -> bool:
        """Its server tells us all that it writes."""
        control = self.connection.link.writer.flow.control
        return control.announced and not control.shared

    @property
    def over(self) -> bool:
        """Its server, or its browser, has gone, or its connection is being closed: nobody waits for the answer."""
        request = self._request
        return (
            self._ended
            or self.connection.link.life is not self.life
            or (request is not None and request.life is not self.life)
            or (not self.delegated and self.life.requests.is_closed(self.conn_id))
        )

    def seen(self) -> None:
        """Its Node has it: where it is not safe it goes to no other one from now on."""
        self.received = True
        if not self.safe:
            self.message = b""

    def end(self) -> None:
        """Its browser has gone."""
        self._ended = True
        if self._request is not None:
            self._request.life = ENDED

    def __repr__(self) -> str:
        return f"<Forwarded {self.number} of connection {self.conn_id}>"
