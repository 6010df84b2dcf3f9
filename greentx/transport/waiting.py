"""The greenlets that wait while they write: for room in the pipe to the server, or for a browser to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from time import monotonic

import gevent
import zmq
from gevent.event import Event

from ..errors import ConnectionClosed, SendTimeout
from ..protocol.flow import OUTBOX_LIMIT, Outbox, Turn
from .context import Context

__all__ = ["Waiting"]

# How often a wait for a few milliseconds looks: nothing tells of an outbox that became empty.
_LOOK_SECONDS = 0.005


class Waiting:
    """Waits for one writer. Nothing is sent by a greenlet after it waited: what it wrote has its place already.

    Args:
        context: Whose end ends all waits.
        name: For errors.
        timeout: Seconds without progress before ``SendTimeout``; ``None`` waits forever.
        for_browser: Returns what is entered while this greenlet waits for a browser; ``None`` where it must not.

    Attributes:
        endpoint: The server's, for errors.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        timeout: float | None,
        for_browser: Callable[[], AbstractContextManager[object] | None],
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.endpoint = ""
        self._context = context
        self._for_browser = for_browser
        self._postponed = False
        # Only of connections that somebody waits for; all that wait for one share it.
        self._drained: dict[str, Event] = {}

    def possible(self) -> bool:
        """False in the hub, which must not block, and while waits are postponed: then callers return at once."""
        return not self._postponed and gevent.getcurrent() is not self._context.hub

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Callers inside return at once. Nothing may block inside: others would not wait either."""
        before, self._postponed = self._postponed, True
        try:
            yield
        finally:
            self._postponed = before

    def for_turn(self, turn: Turn, withdraw: Callable[[], bool]) -> None:
        """Block this greenlet until *turn* is done: sent, or dropped with the server.

        Args:
            withdraw: Takes what was written out of its place; returns False where that cannot be, so that it stays.
                Called when the time is over, and when this greenlet is killed.

        Raises:
            SendTimeout: The pipe stayed full for ``timeout`` seconds.
            SocketClosed: The context was closed meanwhile.
        """
        gone = Event()
        turn.wakers.append(gone.set)
        try:
            # The wait may end by its time in the same round in which the turn was done: then it was in time.
            in_time = gone.wait(self.timeout) or turn.done
        except BaseException:  # raised again
            # GreenletExit, or a Timeout of the caller's: it has not written, as far as it knows.
            if not turn.done:
                withdraw()
            raise
        # Before all else: in a closed context nothing was sent, whatever woke us.
        self._context.check()
        if not in_time:
            withdrawn = withdraw()
            raise SendTimeout(
                f"{self.name}: the pipe to {self.endpoint} stayed full for {self.timeout} s; is it stopped?",
                address=self.endpoint,
                errno=zmq.EAGAIN,
                queued=not withdrawn,
            )

    def for_outbox(self, conn_id: str, outbox: Outbox) -> bool:
        """Block this greenlet while more than :data:`~greentx.protocol.flow.OUTBOX_LIMIT` bytes wait in *outbox*.

        Returns:
            False, at once, where this greenlet must not wait for a browser.

        Raises:
            SendTimeout: Nothing left it for ``timeout`` seconds, and it is not the browser that can be blamed. What was
                written stays in its place: what others wrote behind it may refer to it, as deflated messages do.
            ConnectionClosed: The browser went away, read too slowly, or its connection is being closed.
        """
        waits = self._for_browser()
        if waits is None:
            return False
        with waits:
            self._for_room(conn_id, outbox)
        return True

    def _for_room(self, conn_id: str, outbox: Outbox) -> None:
        before, in_time = outbox.size, True
        # With flow control the browser is judged meanwhile, and ended; this is for a server that does not answer.
        seconds = self.timeout if self.timeout is None or not outbox.accounts.by_reports else 2 * self.timeout
        while True:
            # Before the wait, too: it may have been dropped while this greenlet waited for its turn, and nobody wakes
            # it then. First of all, since what was dropped is never sent, whether it was being closed or not.
            if outbox.dropped:
                raise ConnectionClosed(1006, outbox.dropped)
            if outbox.size <= OUTBOX_LIMIT:
                return
            if outbox.closing:
                raise ConnectionClosed(1006, "the connection is being closed")
            if not in_time and outbox.size >= before:
                raise SendTimeout(
                    f"connection {conn_id} read nothing for {seconds} s, {outbox.size} bytes wait for it",
                    address=self.endpoint,
                    queued=True,
                )
            # Any progress gives it more time: whether that is enough is judged elsewhere.
            before = outbox.size
            drained = self._drained.get(conn_id)
            if drained is None:
                drained = self._drained[conn_id] = Event()
            in_time = drained.wait(seconds)
            self._context.check()

    def until_empty(self, conn_id: str, waiting: Callable[[], int]) -> None:
        """Block this greenlet until nothing waits for one connection.

        Args:
            waiting: Returns how many bytes do.

        Raises:
            SendTimeout: Something did for ``timeout`` seconds.
        """
        deadline = inf if self.timeout is None else monotonic() + self.timeout
        while waiting() and self.possible():
            if monotonic() >= deadline:
                raise SendTimeout(
                    f"{waiting()} bytes waited for connection {conn_id} for {self.timeout} s", address=self.endpoint
                )
            gevent.sleep(_LOOK_SECONDS)

    def wake(self, conn_id: str) -> None:
        """Let those look again that wait for the outbox of a connection: it has room, is closing, or was dropped."""
        # Asked for each answer with a close; nearly never does anybody wait.
        if self._drained:
            drained = self._drained.pop(conn_id, None)
            if drained is not None:
                drained.set()

    def wake_all(self) -> None:
        """As :meth:`wake`, for all connections."""
        drained, self._drained = self._drained, {}
        for event in drained.values():
            event.set()
