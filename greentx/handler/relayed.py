"""WebSockets that another process let in, and whose protocol it runs: here are their messages and their ends."""

from __future__ import annotations

from collections.abc import Callable

from ..protocol.kinds import Kind
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.registry import OPEN, RELAYED, Registry, Sid
from .established import Established

__all__ = ["Relayed"]


class Relayed:
    """Those of one connection set.

    Args:
        established: All that were let in.
        registry: Where they are kept.
        emit: As for :class:`greentx.handler.websockets.WebSockets`.
    """

    def __init__(self, established: Established, registry: Registry, emit: Callable[[Request], None]) -> None:
        self._established = established
        self._registry = registry
        self._emit = emit

    def message(self, request: Request) -> None:
        """An event of one of them. Never blocks."""
        entry = self._registry.get(request.sid)
        # A second connect: the number is another client's by now, and the news of the first one's end was lost.
        if entry is not None and request.method == Kind.WEBSOCKET_CONNECT:
            self._established.end(entry, CloseCode.ABNORMAL_CLOSURE, "")
            entry = None
        # Without a connect it was let in before this process came: the application hears of it from here on.
        if entry is None:
            entry = self._established.enter(request)
            entry.mode = RELAYED
            request.entry = entry
        if entry.state == OPEN:  # else closed from here: nobody reads what comes before its end
            (entry.on_event or self._emit)(request)

    def ended(self, sid: Sid, code: int, reason: str) -> None:
        """That process says that one has ended."""
        entry = self._registry.get(sid)
        if entry is not None and entry.mode == RELAYED:
            self._established.end(entry, code, reason)

    def end_all(self, code: int, reason: str) -> None:
        """Report the end of all of them; nothing is sent."""
        for entry in self._established.entries():
            if entry.mode == RELAYED:
                self._established.end(entry, code, reason)
