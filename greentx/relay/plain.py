"""Forwards the requests that nearly all are, without decoding their headers.

A GET, HEAD or OPTIONS without a body, in the encoding in which Mongrel2 writes its own headers first: METHOD is found
where no client can have written it, behind an address whose characters cannot be mistaken for anything else. All else
is parsed, and looked at, as ever. What is wrong with the client's own headers is found by the Node, which answers 400.
"""

from __future__ import annotations

import re

from ..handler.connection import Connection
from .forwarded import Forwarded
from .forwarding import Forwarding

__all__ = ["Plain"]

# The order is a fact of Mongrel2's (probed); a message in which it is another one is parsed.
_START = (
    rb"%b ([0-9]{1,20}) /[^ ]* [0-9]+:11:REMOTE_ADDR,[0-9]+:[0-9a-fA-F.:]+,6:METHOD,"
    rb"(?:3:GET|4:HEAD|7:OPTIONS),10:URL_SCHEME,"
)
_NO_BODY = b"}0:,"

# With one of these, anywhere, somebody has to look: a body may follow, or Mongrel2 says something by it.
_WORDS = (
    b"content-length",
    b"transfer-encoding",
    b"UPLOAD_STREAM",
    b"x-mongrel2-upload",
    b"DOWNLOAD_CREDITS",
)

# The connection may end behind the answer, where it is of HTTP/1.0 ...
_PERSISTENT = b",7:VERSION,8:HTTP/1.1,"
# ... or where the client asks for that ("Connection: close", however that is written); most say the opposite, which is
# found faster than it is missed. A client that has both makes us remember its connection for longer, and nothing else.
_KEPT = b",10:connection,10:keep-alive,"
_CLOSING = (b"lose", b"LOSE")


class Plain:
    """What comes by one connection set.

    Args:
        connection: The connection set.
        forwarding: Gives requests to Nodes.
    """

    def __init__(self, connection: Connection, forwarding: Forwarding) -> None:
        self._connection = connection
        self._forwarding = forwarding
        self._match = re.compile(_START % re.escape(connection.sender.encode("latin-1"))).match
        self._safe = all(forwarding.is_safe(method) for method in ("GET", "HEAD", "OPTIONS"))

    def take(self, message: bytes) -> bool:
        """Forward one message; False where it has to be parsed."""
        if not self._safe or not message.endswith(_NO_BODY):
            return False
        found = self._match(message)
        if found is None:
            return False
        for word in _WORDS:
            if word in message:
                return False
        if _PERSISTENT not in message or (_KEPT not in message and (_CLOSING[0] in message or _CLOSING[1] in message)):
            return False
        conn_id = found[1].decode()
        connection = self._connection
        # RFC 9112, section 9.6: what follows our close is not processed.
        if not connection.link.life.requests.is_closed(conn_id):
            self._forwarding.submit(Forwarded(connection, conn_id, message, safe=True))
        return True
