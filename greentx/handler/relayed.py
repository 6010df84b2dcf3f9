"""WebSockets whose protocol another process runs: here are their messages and their ends.

What is done with one goes to its carrier (:class:`greentx.protocol.carrier.Carrier`).
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.kinds import Kind
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode, FrameParser, Opcode, build_head, parse_close
from ..protocol.websocket.registry import OPEN, Entry
from .established import Established

__all__ = ["MOVED", "Relayed"]

#: What the application is told of one that goes on in another process.
MOVED = "moved to another process"


class Relayed:
    """Those of one connection set.

    Args:
        established: All that were let in.
        emit: As for :class:`greentx.handler.websockets.WebSockets`.

    Attributes:
        leaving: This process ends: what it lets go, other processes go on with. Else they would be given it again here.
    """

    def __init__(self, established: Established, emit: Callable[[Request], None]) -> None:
        self._established = established
        self._emit = emit
        self.leaving = False

    def open(self, request: Request, subprotocol: str | None) -> None:
        """One begins here that was let in there; never blocks.

        Args:
            request: Its opening handshake, with its ``carrier``; it becomes the event.
        """
        self._established.begins(request.sid)
        entry = self._established.enter(request)
        entry.subprotocol = subprotocol
        request.become(Kind.WEBSOCKET_CONNECT.value)
        request.entry = entry
        self._emit(request)

    def message(self, entry: Entry, request: Request) -> None:
        """A message of one of them; never blocks."""
        if entry.state == OPEN:  # else closed from here: nobody reads what comes before its end
            (entry.on_event or self._emit)(request)

    def write(self, entry: Entry, data: bytes) -> None:
        """The application sends frames that it has built itself.

        Raises:
            LocalProtocolError: These are not whole messages, of which the other process could make frames.
        """
        parser = FrameParser(require_mask=False)
        try:
            frames = parser.feed(data)
            parser.check()
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"not the frames of a server: {error}") from error
        size = sum(len(build_head(len(frame.payload), frame.opcode)) + len(frame.payload) for frame in frames)
        if size != len(data) or not all(frame.fin for frame in frames):
            raise LocalProtocolError("a part of a message cannot be sent through a relay: send it whole")
        for frame in frames:
            if entry.carrier is None or entry.state != OPEN:
                return
            if frame.opcode == Opcode.CLOSE:
                entry.carrier.close(*parse_close(frame.payload))
            else:
                entry.carrier.send(frame.payload, frame.opcode, frame.rsvd)

    def ended(self, entry: Entry, code: int, reason: str) -> None:
        """One has ended there."""
        self._established.end(entry, code, reason)

    def moved(self, entry: Entry) -> None:
        """One goes on in another process; nothing is sent."""
        self._established.end(entry, CloseCode.SERVICE_RESTART, MOVED, moved=True)

    def leave(self) -> None:
        """Let all of them go, each between two of its messages."""
        self.leaving = True
        for entry in self._established.entries():
            if entry.carrier is not None:
                entry.carrier.leave()
