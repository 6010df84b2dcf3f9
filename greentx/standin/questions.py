"""Questions that a server asks handlers on their control sockets, and the proofs that come back over SUB."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from gevent.event import Event

from ..transport.asking import ask
from ..transport.security import Dial
from .sockets import Sockets

__all__ = ["Questions"]


class Questions:
    """What the Connectors of one server share.

    Args:
        running: Returns the sockets of the started server, or raises ``TransportError``.
    """

    def __init__(self, running: Callable[[], Sockets]) -> None:
        self._running = running
        self._expected: dict[bytes | None, list[Event]] = {}

    def ask(self, endpoint: str, message: bytes, timeout: float, dial: Dial | None = None) -> tuple[bytes | None, bool]:
        """Ask the control socket at *endpoint*; blocks this greenlet for *timeout* seconds at the most.

        Returns:
            The answer, ``None`` without one; and whether the question went out.

        Raises:
            TransportError: The server is not started, or stopped meanwhile.
            UnknownHost: (a ``TransportError``) The name in the endpoint was not resolved in time.
        """
        # Of the running server, and its `ended`: stopping it must not wait for answers of dead handlers.
        sockets = self._running()
        return ask(sockets.context, endpoint, message, timeout, sockets.ended, dial)

    @contextlib.contextmanager
    def expect_proof(self, guid: bytes | None) -> Iterator[Event]:
        """Within the block, yield an Event that is set when *guid* comes over SUB; ``None``: when any proof comes."""
        proof = Event()
        # A list: two Connectors may wait for "any proof" at the same time.
        self._expected.setdefault(guid, []).append(proof)
        try:
            yield proof
        finally:
            # Emptied lists go, or each guid of a long life would leave one.
            waiting = self._expected[guid]
            waiting.remove(proof)
            if not waiting:
                del self._expected[guid]

    def proof_came(self, guid: bytes) -> None:
        """Wake the greenlets that expect *guid*, and those that expect any proof. Unknown ones are ignored."""
        # Both kinds: one greenlet may wait for its own guid while another one waits for silence.
        for proof in (*self._expected.get(guid, ()), *self._expected.get(None, ())):
            proof.set()
