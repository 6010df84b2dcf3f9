"""Whether the server is there, as its subscriptions tell, and who wants to know.

A PUB socket drops what nobody subscribed to: of 20 replies sent right after connecting, 13 were lost (probed). An XPUB
socket is told of the subscription; nothing is sent before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gevent.event import Event

from ..errors import LocalProtocolError
from ..protocol.flow import Heard, Listening
from .context import Context

__all__ = ["Presence"]

log = logging.getLogger("greentx.transport")


class Presence:
    """Follows one server's coming and going.

    Args:
        context: Whose hub tells of it.
        name: For the log.
        listening: Fed with its subscriptions.
        on_ready: Called in the hub, without arguments, when it has come.
        on_lost: Called when it has gone, in the hub, or by whoever looked.

    Attributes:
        endpoint: For the log.
        ready: Set while it is there.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        listening: Listening,
        *,
        on_ready: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.endpoint = ""
        self.ready = Event()
        self._context = context
        self._name = name
        self._listening = listening
        self._on_ready = on_ready
        self._on_lost = on_lost
        # It has come, which the hub is to say yet.
        self._coming = False
        # It is there, or never will be: no wait for it is left.
        self._settled = Event()

    def wait(self, timeout: float | None) -> bool:
        """Block this greenlet until it is there; False after *timeout* seconds, or when stopped."""
        self._settled.wait(timeout)
        return bool(self.ready.is_set())

    def feed(self, message: bytes) -> None:
        """One message of the server's: 1 or 0 and a topic."""
        try:
            heard = self._listening.feed(message)
        except LocalProtocolError as error:
            # Never ready then: Mongrel2 would drop each reply, with a stall of 0.5 s (probed).
            log.error("%s: the server at %s subscribed to %r. %s", self._name, self.endpoint, message[1:], error)
            return
        # In their order: where another server took over, the old life ends before the new one begins.
        for event in heard:
            if event is Heard.WENT:
                self._coming = False
                self.ready.clear()
                self._settled.clear()
                self._on_lost()
            else:
                # Whoever looked, the hub too, may have done so before it sends something, which is for the server that
                # has gone: the next one's life begins when it, and others that computed meanwhile, have done with it.
                self._coming = True
                self._context.hub.loop.run_callback(self._came_meanwhile)

    def _came_meanwhile(self) -> None:
        if self._coming:
            self._came()

    def _came(self) -> None:
        # Before the callback, which asks whether it is ready.
        self._coming = False
        self.ready.set()
        self._settled.set()
        self._on_ready()

    def stop(self) -> None:
        """It is not of interest any more: nobody waits for it."""
        self._coming = False
        # It never will be: those that wait for it find it not ready.
        self._settled.set()
        self.ready.clear()
        self._listening.clear()
