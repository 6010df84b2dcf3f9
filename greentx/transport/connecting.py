"""A socket that stays connected to one endpoint, whose name may mean another address each time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import zmq
from gevent.event import Event

from ..errors import TransportError
from .context import Context
from .monitor import Contact
from .names import host_name
from .supervised import Supervised

__all__ = ["Connecting"]

log = logging.getLogger("greentx.transport")

#: Between two questions what a name means, while nobody is there: ZeroMQ itself tries ten times in that time.
RESOLVE_SECONDS = 1.0


class Connecting:
    """Connects *socket*. ZeroMQ connects again by itself, to the address that it has.

    So where the endpoint has a host name, that is resolved in a greenlet of its own, again whenever the connection was
    lost or refused, and the socket is connected to what it means then.

    Args:
        context: Owner of the socket.
        socket: Neither bound nor connected.
        on_look: Called in the hub when it may have changed state; see :meth:`Context.watch`.
    """

    def __init__(self, context: Context, socket: zmq.Socket[bytes], on_look: Callable[[], None]) -> None:
        self._context = context
        self._on_look = on_look
        self._watcher: Any = None
        self._socket = socket
        self._contact: Contact | None = None
        self._endpoint = ""
        # What ZeroMQ connects to; "" before the name was resolved.
        self._numeric = ""
        self._unresolved = ""
        self._changed = Event()
        self._keeper: Supervised | None = None

    @property
    def why(self) -> str:
        """Why there is no connection; ``""`` where there is one."""
        if self._keeper is not None and self._keeper.trouble:
            return self._keeper.trouble
        if self._contact is None or self._contact.connected:
            return ""
        return self._unresolved or self._contact.state.value

    def start(self, endpoint: str) -> None:
        """Connect. Does not block. Raises ``TransportError`` for a bad endpoint."""
        self._endpoint = endpoint
        self._contact = Contact(self._context, self._socket, self._changed.set)
        name = host_name(endpoint)
        if name is None:
            self._context.connect(self._socket, endpoint)
        else:
            self._keeper = Supervised(f"connection to {name}", self._follow)
            self._keeper.start()
        self._watcher = self._context.watch(self._socket, self._on_look)

    def stop(self) -> None:
        """Follow and watch it no more; the socket stays connected. Does not block."""
        if self._watcher is not None:
            self._context.unwatch(self._watcher)
        if self._keeper is not None:
            self._keeper.kill(block=False)
        if self._contact is not None:
            self._contact.close()

    def _follow(self) -> None:
        assert self._contact is not None
        assert self._keeper is not None
        while self._context.open:
            self._changed.clear()
            connected = self._contact.connected
            if not connected:
                self._connect()
            self._keeper.works()
            # Not at once again, however often ZeroMQ tries meanwhile.
            if not connected and self._keeper.stopping.wait(RESOLVE_SECONDS):
                return
            if self._contact.connected or (self._numeric and not self._contact.over):
                self._changed.wait()

    def _connect(self) -> None:
        try:
            numeric = self._context.names.resolve(self._endpoint)
        except TransportError as error:
            # Once, and not with each attempt; who waits for the connection says it again.
            if self._unresolved != str(error):
                self._unresolved = str(error)
                log.warning("%s; it is tried again", error)
            return
        self._unresolved = ""
        # Meanwhile it may have come back under the old address, or have been closed.
        if numeric == self._numeric or self._socket.closed or not self._context.open:
            return
        if self._contact is not None and self._contact.connected:
            return
        if self._numeric:
            log.info("%s is now %s", self._endpoint, numeric)
            with contextlib.suppress(zmq.ZMQError):  # that it was never connected to
                self._socket.disconnect(self._numeric)
        self._context.connect(self._socket, numeric)
        self._numeric = numeric
