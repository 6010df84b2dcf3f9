"""When an event of a WebSocket is handled that an application reads in a loop, or gets as a handler.

A loop that asks for the next one has handled the one before; a handler has when it returned, which the ``Dispatcher``
says. Where either is killed it was not: another Node's gets it once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from ..handler.inbox import Inbox
from ..handler.shared import Shared
from ..protocol.carrier import Receipt
from ..protocol.request import Request

__all__ = ["Receipts"]


class Receipts:
    """Of one Node.

    Args:
        shared: The Node's.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        # Of greenlets that read events, what each got last.
        self._last: WeakKeyDictionary[Any, Receipt] = WeakKeyDictionary()

    def attach(self, request: Request, inbox: Inbox, handled: Callable[[], object]) -> None:
        """Have *handled* called, in the hub's thread, when the event *request* is."""
        # Nobody is watched before there is something to know.
        if inbox.watch is None:
            inbox.watch_consumers(self._asked)
        request.receipt = _Receipt(handled)

    def _asked(self, request: Request | None) -> None:
        """A loop over events asks for the next one, and gets *request*, or has to wait."""
        who = self._shared.context.caller()
        last = self._last.pop(who, None)
        if last is not None:
            last.done()
        if request is not None and request.receipt is not None and who not in self._shared.inbox.dispatching:
            self._last[who] = request.receipt


class _Receipt(Receipt):
    def __init__(self, handled: Callable[[], object]) -> None:
        self._handled = handled

    def done(self) -> None:
        self._handled()
