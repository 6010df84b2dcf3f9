"""What handlers say to browser connections: whom a reply is for, and what it asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ...errors import RemoteProtocolError
from ...protocol.fields import MAX_CONN_IDS
from ...protocol.replies import parse_plain_reply, parse_reply
from .connection import BrowserConnection
from .entry import Entry
from .message_sockets import in_base64

__all__ = ["Replies"]

log = logging.getLogger("greentx.edge.front")

# Mongrel2's ids are 32-bit numbers; larger ones are taken modulo 2**32, and those that 64 bits cannot hold are the
# last one, which nobody has (probed).
_ID_MASK = 0xFFFFFFFF
_LARGEST = 2**64 - 1
_MAX_DIGITS = len(str(_LARGEST))

# What may be asked for by `ctl`. Mongrel2 ignores other words, and so do we.
_CANCEL, _KEEP_ALIVE, _CREDITS = b"cancel", b"keep-alive", b"credits"


class Replies:
    """The connections that handlers know, by their ids, and replies to them.

    Any entry's handlers may reply to any connection, as in Mongrel2. Of an id that nobody has the entry is told that
    the reply came by, once for each time that it stands there.

    Args:
        max_ids: Of one reply; ``limits.handler_targets``.
    """

    def __init__(self, max_ids: int = MAX_CONN_IDS) -> None:
        self._max_ids = max_ids
        self._connections: dict[int, BrowserConnection] = {}
        self._last_id = 0

    def register(self, connection: BrowserConnection) -> int:
        """Return its id from now on: the next one that is free, neither 0 nor the last one."""
        while True:
            self._last_id = (self._last_id + 1) % _ID_MASK
            # A connection without an id has 0.
            if self._last_id and self._last_id not in self._connections:
                self._connections[self._last_id] = connection
                return self._last_id

    def unregister(self, connection: BrowserConnection) -> None:
        """It has gone."""
        self._connections.pop(connection.conn_id, None)

    def reply(self, entry: Entry, message: bytes) -> None:
        """Do what a handler's message asks for; never blocks.

        One that is invalid is logged, and dropped. Mongrel2 would stall all replies of the handler for half a second.
        """
        plain = parse_plain_reply(message)
        if plain is not None:
            conn_id, body = plain
            self._deliver(entry, conn_id & _ID_MASK, body, body if entry.raw else in_base64(body))
            return
        try:
            reply = parse_reply(message, max_ids=self._max_ids)
        except RemoteProtocolError as error:
            log.error("a reply of a handler to %s is invalid, and was dropped: %s", entry.handler.recv_spec, error)
            return
        if reply.extended is not None:
            self._extended(entry, reply.conn_ids, *reply.extended)
            return
        body = reply.body
        encoded = body if entry.raw else in_base64(body)
        for text in reply.conn_ids:
            self._deliver(entry, _number(text), body, encoded)

    def _deliver(self, entry: Entry, conn_id: int, body: bytes, encoded: bytes) -> None:
        connection = self._connections.get(conn_id)
        if connection is None:
            entry.notify(entry.messages.disconnect(conn_id))
            return
        data = encoded if connection.side.speaks_messages else body
        if data:
            connection.write(data)
        else:
            connection.close()

    def _extended(self, entry: Entry, conn_ids: Iterable[str], key: bytes, value: object) -> None:
        words = value if key == b"ctl" and isinstance(value, dict) else None
        if words is None:
            # As in Mongrel2, which does not say so.
            log.error(
                "an extended reply of a handler to %s ends connections: it has %r, and what is known here is 'ctl' with"
                " a dict",
                entry.handler.recv_spec,
                key[:80],
            )
        for text in conn_ids:
            conn_id = _number(text)
            connection = self._connections.get(conn_id)
            if connection is None:
                if words is None or _CANCEL not in words:
                    entry.notify(entry.messages.disconnect(conn_id))
            elif words is None or _CANCEL in words:
                connection.cancel()
            else:
                if _KEEP_ALIVE in words:
                    connection.keep_alive()
                count = words.get(_CREDITS)
                if isinstance(count, int):
                    connection.grant(count)


def _number(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        text = text.lstrip("0")[: _MAX_DIGITS + 1] or "0"
    return min(int(text), _LARGEST) & _ID_MASK
