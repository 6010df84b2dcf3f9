"""Whom a reply is for: the Clients of a server by connection id, and the replies that no Client has a claim to."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from gevent.event import Event

from ..errors import RemoteProtocolError
from ..protocol.fields import CONN_ID, CONTROL_ID, is_mongrel2_sender
from ..protocol.flow import NOBODY
from ..protocol.replies import Response, parse_reply
from ..protocol.requests import build_disconnect_notice

__all__ = ["Browser", "Router"]

log = logging.getLogger("greentx.server")

#: Replies to nobody that ``recv`` has not fetched; above this the oldest goes.
MAX_UNCLAIMED = 1000


class Browser(Protocol):
    """A Client, as its server sees it."""

    conn_id: str

    def deliver(self, response: Response) -> None:
        """Accept one reply. It neither blocks nor raises."""

    def server_gone(self) -> None:
        """The server has stopped."""


class Router:
    """Gives each reply to the Clients that it is for, and answers for the connections that nobody has.

    Args:
        sender: The server's, which decides whether replies have to keep to Mongrel2's rule for senders.
        encoding: Of the notices that are sent: ``"tnetstring"`` or ``"json"``.
        on_proof: Called with the body of each reply to the control socket's connection id.
        check: See below.

    Attributes:
        check: Called before anything that needs the sockets, or waits; raises ``TransportError`` where the server has
            stopped, in a forked child and in another native thread.
        clients: The open Clients, by connection id.
        unclaimed: How many replies were for no Client.
        bad_replies: How many replies Mongrel2 would have refused.
    """

    def __init__(
        self, sender: str, encoding: str, *, on_proof: Callable[[bytes], None], check: Callable[[], object]
    ) -> None:
        self.sender = sender
        self.encoding = encoding
        self.clients: dict[str, Browser] = {}
        self.unclaimed = 0
        self.bad_replies = 0
        self._on_proof = on_proof
        self.check = check
        self._like_mongrel2 = is_mongrel2_sender(sender)
        self._post: Callable[[bytes], None] | None = None
        self._last_conn_id = 0
        # Bounded, since most programs never look at them.
        self._replies: deque[bytes] = deque(maxlen=MAX_UNCLAIMED)
        self._replied = Event()

    def start(self, post: Callable[[bytes], None]) -> None:
        """The server has started; *post* pushes a notice without blocking."""
        self._post = post

    def end(self) -> None:
        """The server has stopped: tell all Clients, wake greenlets that wait for a reply, answer nothing more."""
        self._post = None
        # A copy: a Client that ends releases itself.
        for client in list(self.clients.values()):
            client.server_gone()
        self.clients.clear()
        self._replied.set()

    def admit(self, client: Browser) -> str:
        """Return the number of a new Client, which gets the replies to it from now on.

        Raises:
            TransportError: The server is not started.
        """
        self.check()
        # Never used twice, as in a life of Mongrel2: a late reply must not reach a stranger.
        self._last_conn_id += 1
        conn_id = str(self._last_conn_id)
        self.clients[conn_id] = client
        return conn_id

    def release(self, client: Browser) -> None:
        """Forget a Client that has closed; a late reply to it is answered by a notice, as Mongrel2 does."""
        self.clients.pop(client.conn_id, None)

    def route(self, message: bytes) -> None:
        """Hand on one reply as it came over SUB. Neither blocks nor raises, whatever the handler wrote."""
        try:
            response = parse_reply(message, mongrel2=self._like_mongrel2)
        except RemoteProtocolError as error:
            # Loud, and not an error that ends anything: what works here has to work behind the real one.
            self.bad_replies += 1
            log.warning("Mongrel2 would refuse this reply and stall its handler for 0.5 s: %s", error)
            return
        nobody = False
        for conn_id in response.conn_ids:
            client = self.clients.get(conn_id)
            # Clients first: nearly every reply is for one.
            if client is not None:
                client.deliver(response)
            elif conn_id == CONTROL_ID:
                self._on_proof(response.body)
            elif not response.body and _number(conn_id) >= NOBODY:
                # Asks for the notice, as a receipt.
                self._notify(conn_id)
            else:
                nobody = True
                self._reject(conn_id)
        # Once for a message, however many of its ids nobody has; raw messages of the program's own come back this way.
        if nobody:
            self._replies.append(message)
            self._replied.set()

    def next_unclaimed(self, timeout: float | None) -> bytes | None:
        """Return the next reply that was for no Client; ``None`` when *timeout* seconds brought none.

        Raises:
            TransportError: The server is not started, or stopped meanwhile.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while not self._replies:
            self.check()
            self._replied.clear()
            if not self._replied.wait(None if deadline is None else max(0.0, deadline - monotonic())):
                return None
        return self._replies.popleft()

    def _reject(self, conn_id: str) -> None:
        self.unclaimed += 1
        log.debug("reply to connection %s, which nobody has", conn_id)
        # A Client had it. Any other number belongs to a message that the program built itself and gave to send().
        if 0 <= _number(conn_id) <= self._last_conn_id:
            self._notify(conn_id)

    def _notify(self, conn_id: str) -> None:
        # Replies that come while we stop are read, but nobody hears an answer.
        if self._post is not None:
            self._post(build_disconnect_notice(self.sender, conn_id, protocol=self.encoding))


def _number(conn_id: str) -> int:
    """Return the number; -1 where it has more digits than any id: a notice could not name it, nor int() read it."""
    return int(conn_id) if CONN_ID.fullmatch(conn_id) else -1
