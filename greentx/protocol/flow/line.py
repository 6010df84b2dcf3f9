"""The line before a full pipe: what waits for room, in the order of the calls that wrote it.

A turn in it is a message, or a connection whose outbox may send when the turn comes: what is joined and what is cut is
decided then, so that until then each piece of it can be withdrawn. A connection has one turn of that kind at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

__all__ = ["Line", "Turn"]


class Turn:
    """A place in the line.

    Attributes:
        conn_id: Whose outbox may send when it comes; ``""`` where it is a message's.
        message: The message.
        done: Nothing waits in it any more: sent, withdrawn, or dropped.
        wakers: Called without arguments once it is done; they must not block.
    """

    __slots__ = ("conn_id", "done", "message", "wakers")

    def __init__(self, conn_id: str, message: bytes | None) -> None:
        self.conn_id = conn_id
        self.message = message
        self.done = False
        self.wakers: list[Callable[[], object]] = []

    def end(self) -> None:
        """It is done: say so to all that wait."""
        self.done = True
        # After it is done: those that wake ask for that.
        for wake in self.wakers:
            wake()


class Line:
    """What waits for room in one pipe.

    Attributes:
        turns: All turns, the first one in front. The pipe is full as long as there are any. Only the methods change it.
        moved_at: A clock's seconds, when the pipe was last seen to accept a message, or to be full; its owner says so.
    """

    __slots__ = ("_of_connections", "moved_at", "turns")

    def __init__(self) -> None:
        self.moved_at = float("-inf")
        self.turns: deque[Turn] = deque()
        self._of_connections: dict[str, Turn] = {}

    def append(self, message: bytes) -> Turn:
        """Put a message at the end."""
        turn = Turn("", message)
        self.turns.append(turn)
        return turn

    def turn_of(self, conn_id: str) -> Turn:
        """Return the turn of a connection's outbox: the one that it has, else a new one at the end."""
        turn = self._of_connections.get(conn_id)
        if turn is None:
            turn = self._of_connections[conn_id] = Turn(conn_id, None)
            self.turns.append(turn)
        return turn

    def has_turn(self, conn_id: str) -> bool:
        """Return whether a connection's outbox has a turn. As long as it has, the outbox may not be forgotten.

        What is written next would else be a message at the end, and what is written after that, in a new outbox, would
        go out before it, in the old turn.
        """
        return conn_id in self._of_connections

    def first(self, dequeue: Callable[[str], Sequence[bytes]]) -> bytes | None:
        """Return the message that is to be sent next; ``None`` when nothing waits any more.

        Args:
            dequeue: Returns the messages that may go now out of a connection's outbox, which are removed from there.
        """
        turns = self.turns
        while turns:
            turn = turns[0]
            if turn.message is not None:
                return turn.message
            # Over before its outbox is asked: what is written to it from now on gets another turn, behind this one.
            turns.popleft()
            del self._of_connections[turn.conn_id]
            try:
                messages = dequeue(turn.conn_id)
            except BaseException:  # raised again: no memory to join what waits; nobody is to wait for a lost turn
                turn.end()
                raise
            # It may not send now, by its pace or its credits, or has nothing left: the pipe is not what it waits for.
            if not messages:
                turn.end()
                continue
            # Callers that wait for the turn go on when the last of it was sent.
            turn.conn_id, turn.message = "", messages[-1]
            turns.appendleft(turn)
            turns.extendleft(Turn("", message) for message in reversed(messages[:-1]))
        return None

    def sent(self) -> None:
        """What :meth:`first` returned was sent."""
        self.turns.popleft().end()

    def remove(self, turn: Turn) -> None:
        """Withdraw a message. Raises ``ValueError`` where it is not in the line."""
        self.turns.remove(turn)
        turn.end()

    def clear(self) -> int:
        """Drop all; return how many messages were dropped, those in outboxes not counted."""
        # Empty before anybody is told: those that write then find no line.
        turns = [*self.turns]
        self.turns.clear()
        self._of_connections.clear()
        for turn in turns:
            turn.end()
        # A message has no more than one turn, an outbox is counted by who owns it.
        return sum(turn.message is not None for turn in turns)
