"""What Nodes say to a relay: reads it, has those called that hear it, and tells what means nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from ..errors import RemoteProtocolError
from ..protocol.fields import shown
from .messages import Hello, parse_hello, parts, split
from .refusals import Complaints
from .session import NodeSession

__all__ = ["Heard", "Upstream"]

log = logging.getLogger("greentx.relay")

#: What is called with a session, the words behind a message's kind, and its bytes.
Heard = Callable[[NodeSession, list[bytes], bytes], object]


class Upstream:
    """Reads what comes to the socket of one relay. All methods belong to the hub's thread.

    Args:
        find: Returns the session that a routing id is of, ``None`` where it is nobody's.
        hello: Called with a routing id that is nobody's, and what a Node says first.
        refuse: Tells whoever has a routing id that there is no session for it, and why.

    Attributes:
        endpoint: Of the socket, for the log.
        complaints: How many messages meant nothing.
    """

    def __init__(
        self,
        find: Callable[[bytes], NodeSession | None],
        hello: Callable[[bytes, Hello], object],
        refuse: Callable[[bytes, str], object],
    ) -> None:
        self.endpoint = ""
        self.complaints = Complaints()
        self._find = find
        self._hello = hello
        self._refuse = refuse
        self._calls: dict[bytes, Heard] = {}

    def on(self, kind: bytes, call: Heard) -> None:
        """Have ``call(session, words, payload)`` called, in the hub, with what Nodes say that begins with *kind*.

        What it raises, ``RemoteProtocolError`` above all, ends that message.
        """
        assert kind not in self._calls, kind
        self._calls[kind] = call

    def read(self, identity: bytes, message: bytes) -> None:
        """One message of whoever has this routing id."""
        session = self._find(identity)
        try:
            if session is None:
                self._read_stranger(identity, message)
                return
            found = parts(message)
            # What is read of one that is over was said before its end.
            if not session.over:
                session.heard = monotonic()
        except RemoteProtocolError as error:
            self._complain(identity, session, error)
            return
        bad: RemoteProtocolError | None = None
        for one in found:
            try:
                kind, words, payload = split(one)
                call = self._calls.get(kind)
                if call is None:
                    raise RemoteProtocolError(f"{shown(kind)} means nothing here")
                call(session, words, payload)
            except RemoteProtocolError as error:
                bad = bad or error
        # One for all that came together: each costs a line in the log.
        if bad is not None:
            self._complain(identity, session, bad)

    def _read_stranger(self, identity: bytes, message: bytes) -> None:
        if not message.startswith(b"batch "):
            kind, words, payload = split(message)
            if kind == b"hello":
                self._hello(identity, parse_hello(words, payload))
                return
        # It was let go of, and does not know.
        self._refuse(identity, "it was let go of")

    def _complain(self, identity: bytes, session: NodeSession | None, error: RemoteProtocolError) -> None:
        complaints = self.complaints
        complaints.count += 1
        # Its routing id has another end each time.
        name = shown(identity.rpartition(b".")[0] or identity) if session is None else session.name
        if session is not None or complaints.is_due(name, monotonic()):
            log.warning("%s: bad message number %d, of %s: %s", self.endpoint, complaints.count, name, error)
        if session is None:
            self._refuse(identity, str(error))
