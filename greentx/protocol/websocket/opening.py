"""A WebSocket whose opening handshake has come, and has not been answered yet."""

from __future__ import annotations

from typing import Final

from ..bounds import Queued, Share, size_of
from ..headers import text_headers
from ..kinds import Kind
from ..request import Request
from .handshake import Accepted, Handshake, Refused, accept_key
from .registry import Entry

__all__ = ["MAX_EARLY", "Opening"]

#: Messages of one client that are kept while its handshake is being decided about.
MAX_EARLY: Final = 64


class Opening:
    """A WebSocket in the state CONNECTING.

    Args:
        request: Its opening handshake.
        adopted: Another process that shares the endpoint got the handshake and answers it; a message came here.
        held: The application decides, without being asked from here.

    Attributes:
        early: What the client sent before its 101. Mongrel2 passes it on (probed).
    """

    __slots__ = ("_share", "adopted", "early", "held", "request")

    def __init__(self, request: Request, *, adopted: bool = False, held: bool = False) -> None:
        # The request itself is kept, not what was read of it: it becomes the event in the end.
        self.request = request
        self.adopted = adopted
        self.held = held
        self.early: list[Request] = []
        # Given back with the opening, whatever becomes of it.
        self._share: Share | None = None

    @classmethod
    def adopt(cls, message: Request) -> Opening:
        """Return the opening of a client whose handshake another process got, from one of its messages.

        Every message repeats the headers of the handshake (probed), so it can be judged here, too: the other process
        may be about to refuse it.
        """
        # FLAGS would make a message of it again.
        raw = {name: value for name, value in message.raw.items() if name not in ("FLAGS", b"FLAGS")}
        sender, conn_id = message.sender, message.conn_id
        opening = cls(Request(sender, conn_id, message.path, raw, b"", Kind.WEBSOCKET_CONNECT.value), adopted=True)
        opening.early.append(message)
        return opening

    def keep(self, message: Request, max_size: int | None, queued: Queued) -> str:
        """Keep a message for after the 101.

        Args:
            max_size: The bytes that it may have; it is inflated later.
            queued: What bounds all that waits.

        Returns:
            ``""``; or why the client is to be hung up on, since it has sent too much.
        """
        # Mongrel2 does not hold frames back until the 101 is out, so somebody has to bound them.
        if len(self.early) >= MAX_EARLY:
            return f"{MAX_EARLY} messages"
        if max_size is not None and len(message.body) > max_size:
            return f"a message of {len(message.body)} bytes, max_message_size is {max_size}"
        if self._share is None:
            self._share = queued.share()
        why = self._share.add(size_of(message))
        if not why:
            self.early.append(message)
        return why

    def check(self, handshake: Handshake) -> Accepted | Refused:
        """Return what *handshake* answers to this one. Calls, and raises, what the application's callables do."""
        request = self.request
        accept = request.body
        if self.adopted:
            # Mongrel2 computes the accept value only for the process that gets the handshake.
            key = request.header("sec-websocket-key")
            accept = accept_key(key) if isinstance(key, str) and key.isascii() else b""
        # Not the request's own, which would be kept with it.
        return handshake.check(text_headers(request.raw), accept)

    def connected(self, entry: Entry) -> Request:
        """Return the event ``WEBSOCKET_CONNECT``, which the handshake itself becomes."""
        request = self.request
        request.become(Kind.WEBSOCKET_CONNECT.value)
        request.body = b""
        request.entry = entry
        # One text for both: the request may live as long as the WebSocket.
        request.sender, request.conn_id = entry.sid
        request.path = entry.path
        return request
