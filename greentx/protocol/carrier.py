"""What stands for the process that runs a WebSocket's protocol, where that is another one. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Carrier", "Receipt"]


class Receipt(Protocol):
    """Goes with an event of a WebSocket that no WebSocket object receives."""

    def done(self) -> None:
        """The event is handled; in the hub's thread. Twice is once."""


class Carrier(Protocol):
    """Carries what an application does with one WebSocket to the process that runs its protocol.

    It is the ``carrier`` of the registry's entry, and, until the application has let the client in, of its handshake's
    request. Methods may be called from any greenlet; unless they say otherwise they never block, and from another
    native thread than the hub's they wait for that.

    Messages come here in order. One is *given* when the application has received it, and *handled* when it asks for the
    next one: until then it comes once more, at another process, should this one end.

    Attributes:
        adopted: Another process's application had this WebSocket before.
        groups: Those that it is in as it begins here.
        moved: It has gone on to another process, or waits for one.
        receives: The application receives by :meth:`ask` and :meth:`give`; else each event has a receipt.
        state: The application's, as JSON, as the former process left it; empty where there is none.
    """

    adopted: bool
    groups: Sequence[str]
    moved: bool
    receives: bool
    state: bytes

    # -- the opening handshake -----------------------------------------------------------------------------------------

    def accept(self, head: bytes, subprotocol: str | None, *, own: bool) -> str | None:
        """Let the client in, with *subprotocol* and the further fields of *head*, a whole 101 answer.

        Args:
            own: The application wrote the head itself: then it must not agree on an extension, of whose frames nothing
                is seen here. Otherwise those that it names are left to the process that runs the protocol.

        Returns:
            The subprotocol; where the client was let in before, the one that was agreed on then: nothing is sent.

        Raises:
            LocalProtocolError: As *own* says.
        """

    def answer(self, data: bytes, close: bool) -> None:
        """Answer something else: *data* is (a part of) an HTTP response, *close* says that it is all.

        One that was let in already is closed instead (1008).
        """

    # -- what the application sends ------------------------------------------------------------------------------------

    def send(self, payload: bytes, opcode: int, rsvd: int) -> None:
        """Send a frame. Blocks this greenlet while the peer does not read.

        Raises:
            SendTimeout: No progress for ``send_timeout`` seconds; the message keeps its place (``queued``).
            ConnectionClosed: It ended while this greenlet was blocked.
        """

    def ping(self, payload: bytes) -> None:
        """Send a ping."""

    def close(self, code: int | None, reason: str) -> None:
        """Begin the closing handshake; the end comes as an event."""

    def fail(self, code: int, reason: str) -> None:
        """End it, since a bound was reached here."""

    def group(self, name: str, joined: bool) -> None:
        """It joined a group, or left one."""

    def write_state(self, state: bytes) -> None:
        """Keep *state*, JSON, for the next process."""

    # -- what it receives ----------------------------------------------------------------------------------------------

    def ask(self, in_hand: int = 0) -> None:
        """The application asks for the next message: what it was given before is handled.

        Args:
            in_hand: But for so many, the newest ones.
        """

    def give(self) -> bool:
        """The application is given the next message. Returns whether it may have been given it elsewhere before."""

    def finish(self, killed: bool) -> None:
        """The application's handler has ended: all is handled.

        Args:
            killed: It was ended. Where this process leaves, another one goes on.
        """

    def leave(self) -> None:
        """This process ends: let the WebSocket go, between two messages. Its end here comes as an event."""
