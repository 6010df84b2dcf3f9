"""How the API gets to know that an answer has arrived at the server, whoever of two processes sent it.

The server gives notice of a connection that is not there, behind everything that it received before (probed). So
whoever sent the answer sends something to such a connection behind it, and the notice comes to the API.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..handler.connection import Connection
from ..protocol.fields import encode_sender
from ..protocol.flow import NOBODY, NUMBERS, first_number
from ..transport import Context
from .nodes import NodeSession

__all__ = ["Proofs"]

# How long the notice of the server that an answer has arrived is waited for. A missing one counts 2, each that comes
# takes 1 off, and at the limit none are asked for.
PROOF_SECONDS = 0.25
MAX_UNPROVED = 8

_DIGITS = len(str(NOBODY))


class _Proof:
    """What waits for the server to say that it has received something."""

    __slots__ = ("connection", "missing", "then", "timer")

    def __init__(
        self, connection: Connection, then: Callable[[], None], missing: Callable[[], None], timer: Any
    ) -> None:
        self.connection = connection
        self.then = then
        self.missing = missing
        self.timer = timer


class Proofs:
    """The proofs that one relay has asked for.

    Args:
        context: Owner of the timers.
        ask_node: Sends one message to a session's Node.

    Attributes:
        unproved: How many proofs of a connection set's server did not come lately, as counted above.
    """

    def __init__(self, context: Context, ask_node: Callable[[NodeSession, bytes], object]) -> None:
        self.unproved: dict[Connection, int] = {}
        self._context = context
        self._ask_node = ask_node
        self._first = first_number()
        self._asked = 0
        self._waiting: dict[str, _Proof] = {}

    def __len__(self) -> int:
        """How many are waited for."""
        return len(self._waiting)

    def ask(
        self,
        connection: Connection,
        then: Callable[[], None],
        session: NodeSession | None = None,
        *,
        missing: Callable[[], None] | None = None,
    ) -> None:
        """Call *then* once the server has received what we, or a Node, sent so far.

        Where it does not say so, *missing* is called, by default *then*: later, or at once where it is not asked.
        """
        missing = missing or then
        # Numbers are used again after a thousand: a notice that comes so late has been given up long before.
        self._asked += 1
        number = str(self._first + self._asked % NUMBERS)
        writer = connection.link.writer
        if (
            writer.receipts.known is False
            or self.unproved.get(connection, 0) >= MAX_UNPROVED
            or number in self._waiting
        ):
            # Better out of order now and then than each request waiting for a notice that never comes.
            missing()
            return
        timer = self._context.timer(PROOF_SECONDS)
        self._waiting[number] = _Proof(connection, then, missing, timer)
        timer.start(self._end, number, False)
        # Whoever sent the answer has to send this: two processes' messages are not in any order.
        if session is not None and not session.over:
            self._ask_node(session, b"prove %b %b" % (encode_sender(connection.sender), number.encode()))
        else:
            writer.send_to_nobody(number)

    def _end(self, number: str, is_proved: bool) -> None:
        proof = self._waiting.pop(number, None)
        if proof is None:
            return
        self._context.unwatch(proof.timer)
        score = self.unproved.get(proof.connection, 0) + (-1 if is_proved else 2)
        if score > 0:
            self.unproved[proof.connection] = score
        else:
            self.unproved.pop(proof.connection, None)
        (proof.then if is_proved else proof.missing)()

    def arrived(self, connection: Connection, conn_id: str) -> bool:
        """The server gave notice of a connection. Returns whether it was a proof."""
        if len(conn_id) != _DIGITS or not 0 <= int(conn_id) - self._first < NUMBERS:
            return False
        if conn_id not in self._waiting:  # it comes late, but it comes
            self.unproved.pop(connection, None)
        self._end(conn_id, True)
        return True

    def forget(self, connection: Connection) -> None:
        """Nothing more comes from the server of *connection*: what waits for it goes on."""
        for number, proof in list(self._waiting.items()):
            if proof.connection is connection:
                self._end(number, False)
        self.unproved.pop(connection, None)

    def stop(self) -> None:
        """Wait for nothing any more."""
        waiting, self._waiting = self._waiting, {}
        for proof in waiting.values():
            self._context.unwatch(proof.timer)
        # After all timers: what goes on may ask again.
        for proof in waiting.values():
            proof.missing()
        self.unproved.clear()
