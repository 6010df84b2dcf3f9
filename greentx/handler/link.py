"""The link to one handler entry of a server: the PULL and XPUB sockets, and whether the server is there.

Requests are pulled only while the server's subscription to our replies was seen, so that no reply is lost to a slow
joiner. The link is ready while both ways work: the subscription is there, and PULL is connected. When the server goes,
its life is over (:mod:`greentx.handler.life`), and a new one begins with whatever subscribes next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from gevent.event import Event

from ..errors import GreentxError
from ..protocol.flow import BURST, SHARED_BURST, Hearing
from ..protocol.request import Request
from ..transport import Receiver, SocketKind, Writer
from ..transport.incoming import Leaving
from ..transport.security import Dial
from .life import ServerLife
from .shared import Shared

__all__ = ["READY_WARNING_SECONDS", "Link", "LinkUser"]

log = logging.getLogger("greentx.connection")

#: Seconds after which a WARNING names a way that does not work; said again each minute.
READY_WARNING_SECONDS = 5.0

# After so many seconds without the server's subscription PULL is connected all the same, though not read. Mongrel2
# reads subscriptions in the task that also sends notices, and that task waits while there is nobody to send them to: a
# handler that left a reply to a dead browser behind, and went, would keep its successor out forever (probed).
_HOLD_SECONDS = 0.5

# How long the end of the intake may wait for a receipt: one comes within a millisecond, unless the server stands still.
_RECEIPT_SECONDS = 0.1


class LinkUser(Protocol):
    """What a link tells its user, in the hub or in the receiver's greenlet."""

    def message(self, message: bytes) -> None:
        """One message of the server's came. May block: the receiver then waits."""

    def server_ready(self) -> None:
        """The server has subscribed. Must not block, as the next two."""

    def server_missing(self) -> None:
        """It has been away for :data:`READY_WARNING_SECONDS`; said again each minute."""

    def server_lost(self, life: ServerLife) -> None:
        """It has gone; *life* is over, and the link's own is another one already."""

    def browser_slow(self, conn_id: str, why: str) -> None:
        """A browser does not read: end its connection. Must not block."""


class Link:
    """Two sockets to one handler entry.

    Args:
        shared: What all connection sets share.
        sender: The entry's ``send_ident``.
        pull_endpoint: Its ``send_spec``; ``None`` pulls from nowhere.
        pub_endpoint: Its ``recv_spec``.
        stand_in: The other side is not Mongrel2; see :class:`greentx.handler.connection.Connection`.
        forwarded: As for :class:`greentx.handler.life.ServerLife`.
        dial: How both sockets connect; ``None`` is in the clear.

    Attributes:
        life: The present life of the server, or the one to come.
        writer: The sending half.
        stopped: Nothing is sent any more.
    """

    def __init__(
        self,
        shared: Shared,
        sender: str,
        pull_endpoint: str | None,
        pub_endpoint: str,
        *,
        stand_in: bool,
        forwarded: Callable[[Request], None],
        dial: Dial | None = None,
    ) -> None:
        self.sender = sender
        self.pull_endpoint = pull_endpoint
        self.pub_endpoint = pub_endpoint
        self.stand_in = stand_in
        self.stopped = False
        self._shared = shared
        self._forwarded = forwarded
        self._user: LinkUser | None = None
        self._hold_timer: Any = None
        # Runs while the link is not ready.
        self._warning_timer: Any = None
        # The link is ready, or never will be: no wait for it is left.
        self._settled = Event()
        self._receiver: Receiver | None = None
        self._inbox_full: Callable[[], bool] = bool  # False, until start() says better
        self.life = self._new_life()
        shares = shared.options.shared
        self.writer = Writer(
            shared.context,
            on_ready=self.on_ready,
            on_lost=self.on_lost,
            send_timeout=shared.send_timeout,
            bounds=shared.bounds,
            on_slow=self.browser_slow,
            for_browser=shared.for_browser,
            others=lambda: shared.senders.several,
            # Notices come in by PULL, and to another process where several share one.
            receipts=None if shares or pull_endpoint is None else self._receipts_come,
            burst=SHARED_BURST if shares else BURST,
            hearing=Hearing.SOME if shares else Hearing.ALL,
            paced=not stand_in,
            dial=dial,
            name=f"writer of {sender}",
        )

    def _new_life(self) -> ServerLife:
        shared = self._shared
        return ServerLife(self._forwarded, shared.upload_store, shared.queued, shared=shared.options.shared)

    def start(self, user: LinkUser, inbox_full: Callable[[], bool], leaving: Leaving | None = None) -> None:
        """Connect. Does not wait: requests are pulled once the server has subscribed to the replies.

        Args:
            user: Told of what comes.
            inbox_full: Returns whether the receiver waits for the application, so that no receipts come in.
            leaving: Asked at the end of the intake.

        Raises ``TransportError`` when ZeroMQ does not accept the address.
        """
        self._user = user
        self._inbox_full = inbox_full
        # Made here and not before: it calls the user directly, on the path of each message.
        self._receiver = Receiver(
            self._shared.context,
            SocketKind.PULL,
            user.message,
            on_state=self._state_changed,
            leaving=leaving,
            security=self.writer.dial,
            name=f"receiver of {self.sender}",
        )
        self._await_server()
        self._state_changed()
        self.writer.connect(self.pub_endpoint)

    @property
    def subscribed(self) -> bool:
        """True while the server's subscription is there: replies arrive."""
        return bool(self.writer.ready.is_set())

    @property
    def ready(self) -> bool:
        """True while both ways work: replies arrive, and requests are pulled where any are to be."""
        return self.subscribed and (
            self.pull_endpoint is None or (self._receiver is not None and self._receiver.connected)
        )

    @property
    def why(self) -> str:
        """Why it is not ready, and what to look at; ``""`` where it is."""
        if self.ready:
            return ""
        pull, pub = self.pull_endpoint, self.pub_endpoint
        if not self.subscribed:
            why = self.writer.pipe.connecting.why or "connected, but it subscribes to nothing"
            what = f"no Mongrel2 has subscribed at {pub} ({why})"
            return f"{what}: is it running, and is this the recv_spec of its handler entry?"
        why = "" if self._receiver is None else self._receiver.why
        what = f"no requests can be pulled from {pull} ({why}), though the Mongrel2 at {pub} is there"
        return f"{what}: is this the send_spec of its handler entry?"

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block this greenlet until it is ready; False after *timeout* seconds, or when stopped."""
        self._settled.wait(timeout)
        return self.ready

    @property
    def is_mongrel2(self) -> bool:
        """The server has announced credits, which only Mongrel2 does. (Notices it has in common with a stand-in.)"""
        return self.writer.flow.control.announced

    def become_stand_in(self) -> None:
        """The other side asked for this connection set on the control socket, which no Mongrel2 does.

        One that is known to be a Mongrel2 stays one.
        """
        # A stand-in never gives credits, so whoever waits for some would wait forever.
        if not self.stand_in and not self.is_mongrel2:
            self.stand_in = True
            self.writer.stop_pacing()

    @property
    def drained_at(self) -> float:
        """``time.monotonic()`` when every message that had come was seen."""
        return float("-inf") if self._receiver is None else self._receiver.drained_at

    def caught_up(self) -> bool:
        """True when every message that has come by now was seen."""
        return self._receiver is not None and self._receiver.caught_up()

    def prove(self, text: str, timeout: float) -> None:
        """Send *text* to conn id -1, which no browser has, once the server has subscribed; for the control socket."""
        try:
            if self.writer.wait_ready(timeout) and not self.stopped:
                self.writer.prove(self.sender, text.encode())
        except GreentxError as error:
            log.warning("%s: the proof that replies arrive was not sent: %s", self.sender, error)

    # -- the server comes and goes -----------------------------------------------------------------------------------

    def _await_server(self) -> None:
        self._unwatch(self._hold_timer)
        # A new one each time: libev starts a timer that has run already with its repetition.
        self._hold_timer = self._shared.context.timer(_HOLD_SECONDS)
        self._hold_timer.start(self._hold)

    def _unwatch(self, timer: Any) -> None:
        if timer is not None:
            self._shared.context.unwatch(timer)

    def _state_changed(self) -> None:
        """One of the two ways may work now, or no longer; in the hub or the receiver's greenlet."""
        if self.stopped or not self._shared.context.open:
            return
        if self.ready:
            # Stopped, not closed: this runs in the hub, maybe inside of it.
            if self._warning_timer is not None:
                self._warning_timer.stop()
            self._settled.set()
        elif self._settled.is_set() or self._warning_timer is None:
            self._settled.clear()
            self._unwatch(self._warning_timer)
            context = self._shared.context
            self._warning_timer = context.timer(READY_WARNING_SECONDS, READY_WARNING_SECONDS * 12)
            self._warning_timer.start(self.warn_not_ready)

    def _hold(self) -> None:
        # Connected, so that the server gets rid of its notices, but nothing is read: replies would not arrive yet.
        # A stand-in has none that it would wait with, and each attempt costs a socket.
        if not self.stand_in and not self.subscribed and self.pull_endpoint is not None and self._receiver is not None:
            self._receiver.connect(self.pull_endpoint, hold=True)

    def warn_not_ready(self) -> None:
        """Name the way that does not work; in the hub."""
        if self.ready:
            return
        log.warning("%s: %s", self.sender, self.why)
        if self._user is not None and not self.subscribed:
            self._user.server_missing()

    def on_ready(self) -> None:
        """The writer says that the server has subscribed; in the hub."""
        log.info("%s: Mongrel2 at %s is there", self.sender, self.pub_endpoint)
        # Stopped, not closed: this runs in the hub, maybe inside of it.
        self._hold_timer.stop()
        if self.pull_endpoint is not None and self._receiver is not None:
            self._receiver.connect(self.pull_endpoint)
        self._state_changed()
        if self._user is not None:
            self._user.server_ready()

    def on_lost(self, *, gone: bool = True) -> None:
        """The writer says that the server has gone; in the hub.

        Args:
            gone: False where it is there, and all the same its life is over here.
        """
        if gone:
            log.warning("%s: Mongrel2 at %s has gone, and all its connections", self.sender, self.pub_endpoint)
        # What was pulled and not read yet belongs to the old life: its numbers mean other browsers in the next one.
        if self._receiver is not None and gone:
            self._receiver.drop()
        old, self.life = self.life, self._new_life()
        old.over = True
        # After the new life is there: what the user does now must not be written into the old one.
        if self._user is not None:
            self._user.server_lost(old)
        if not self.stopped and gone:
            self._await_server()
            self._state_changed()

    def begin_anew(self) -> None:
        """End the present life though its server is there, with all that waits to be sent; a new one begins at once.

        For what came another way, as through a relay, and belongs to somebody else from now on.
        """
        if self.stopped:
            return
        # What waits first: it must not go out in the new life.
        self.writer.begin_anew()
        self.on_lost(gone=False)
        if self.subscribed and self._user is not None:
            self._user.server_ready()

    def browser_slow(self, conn_id: str, why: str) -> None:
        """A browser does not read: have its connection ended, for *why*. Never blocks."""
        if self._user is not None:
            self._user.browser_slow(conn_id, why)

    def _receipts_come(self) -> bool:
        return not self._inbox_full()

    # -- the end -----------------------------------------------------------------------------------------------------

    def stop_receiving(self, timeout: float | None = None) -> None:
        """Hand on what has arrived and pull no more. Blocks until that was done, *timeout* seconds at the most."""
        # A receipt that comes after the receiver has gone would wait in the server, and keep its successor waiting.
        if not self.stopped:
            self.writer.receipts.end(_RECEIPT_SECONDS if timeout is None else min(timeout, _RECEIPT_SECONDS))
        if self._receiver is not None:
            self._receiver.stop(timeout)
            if not self.stopped:
                self.writer.hear(Hearing.NONE)

    def stop(self, *, linger: float) -> None:
        """Send what waits, for *linger* seconds at the most, and close the sockets; safe to call twice.

        Requests that are answered later are ignored: their life is over.
        """
        # Intake before output: what is answered meanwhile still goes out.
        if self._receiver is not None:
            self._receiver.stop(0)
        self.writer.stop(linger=linger)
        self.stopped = True
        # Only now: a server that went while its output was waited for has had us watch for the next one.
        self._unwatch(self._hold_timer)
        self._unwatch(self._warning_timer)
        self._hold_timer = self._warning_timer = None
        self._settled.set()
        self.life.over = True
        self.life = self._new_life()

    def __repr__(self) -> str:
        state = self.why or "ready"
        return f"<Link {self.sender} {self.pull_endpoint} {self.pub_endpoint}: {state}>"
