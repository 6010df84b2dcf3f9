"""What Mongrel2's control port is asked, and what it answers: which connections it has.

A question is a tnetstring list of a command and its arguments, the answer a tnetstring dict: a table as ``headers`` and
``rows``, or ``code`` and ``error``. Of ``status net`` a row has the id (-1 before a handler heard of the connection),
the type, the bytes read and written; those of a message are counted when it was read or written whole (probed).

Source: Mongrel2's src/control.c and src/register.c; probed on 1.12.2.
"""

from __future__ import annotations

from typing import NamedTuple

import tnetstring

from ..errors import RemoteProtocolError

__all__ = ["STATUS_NET", "WEBSOCKET_TYPE", "NetRow", "parse_status_net"]

#: Asks for all connections.
STATUS_NET: bytes = tnetstring.dumps([b"status", {b"what": b"net"}])

#: The type of a connection from its opening handshake on; HTTP has 1, JSON and XML sockets 2 (probed).
WEBSOCKET_TYPE = 3

_COLUMNS = (b"id", b"type", b"bytes_read", b"bytes_written")


class NetRow(NamedTuple):
    """What the server knows of one connection."""

    kind: int
    bytes_read: int
    bytes_written: int


def parse_status_net(answer: bytes) -> dict[str, NetRow]:
    """Return the connections that handlers know, by their ids.

    Raises:
        RemoteProtocolError: It is not an answer to that question; the message has what the server said instead.
    """
    try:
        table = tnetstring.loads(answer)
        headers = table[b"headers"]
        columns = [headers.index(name) for name in _COLUMNS]
        rows = [[int(row[column]) for column in columns] for row in table[b"rows"]]
    # Anything may have answered, and what it said may be nested in any way.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise RemoteProtocolError(f"a control port does not answer so: {answer[:200]!r}") from error
    return {str(row[0]): NetRow(*row[1:]) for row in rows if row[0] >= 0}
