"""The greenlets that wait while they write: for room in the pipe to the server, or for a browser to read.

Where this process has other servers, one that stands still must not hold them up. So what is written to a full pipe
waits there without its writer, up to :data:`~greentx.protocol.flow.UNWAITED` bytes. Beyond them the writer waits. But a
handler gives its place in the pool back meanwhile, and a greenlet that reads the events of all servers, or broadcasts
to all of them, waits only while the pipe moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import inf
from time import monotonic

import gevent
import zmq
from gevent.event import Event

from ..errors import ConnectionClosed, SendTimeout
from ..protocol.flow import OUTBOX_LIMIT, UNWAITED, Line, Outbox, Turn
from .context import Context

__all__ = ["STANDSTILL_SECONDS", "Waiting"]

#: A pipe that is full and accepts nothing for so long is one to a server that stands still.
STANDSTILL_SECONDS = 1.0

# How often a wait for a few milliseconds looks: nothing tells of an outbox that became empty.
_LOOK_SECONDS = 0.005


class Waiting:
    """Waits for one writer. Nothing is sent by a greenlet after it waited: what it wrote has its place already.

    Args:
        context: Whose end ends all waits.
        name: For errors.
        timeout: Seconds without progress before ``SendTimeout``; ``None`` waits forever.
        for_browser: Returns what is entered while this greenlet waits for a browser; ``None`` where it must not.
        others: Returns whether this process has other servers.

    Attributes:
        endpoint: The server's, for errors.
        unwaited: Bytes for which nobody waits; no more than so many since the line before the pipe was empty.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        timeout: float | None,
        for_browser: Callable[[], AbstractContextManager[object] | None],
        others: Callable[[], bool] = bool,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.endpoint = ""
        self.unwaited = 0
        self._others = others
        self._line: Line | None = None
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

    def watch(self, line: Line) -> None:
        """Say in which line it is waited."""
        self._line = line

    def for_turn(self, turn: Turn, withdraw: Callable[[], bool], size: int, *, to_all: bool = False) -> None:
        """Block this greenlet until *turn* is done: sent, or dropped with the server. With other servers it may go on.

        Args:
            withdraw: Takes what was written out of its place; returns False where that cannot be, so that it stays.
                Called when the time is over, and when this greenlet is killed.
            size: Bytes that were written.
            to_all: Other servers' clients wait for this greenlet, as they do where it reads the events of all.

        Raises:
            SendTimeout: The pipe stayed full for ``timeout`` seconds, or others wait and it did not move for
                :data:`STANDSTILL_SECONDS`.
            SocketClosed: The context was closed meanwhile.
        """
        if not self._others():
            self._wait_for_turn(turn, withdraw, to_all=False)
        elif self.unwaited + size <= UNWAITED:
            self.unwaited += size
        else:
            waits = self._for_browser()
            with nullcontext() if waits is None else waits:
                self._wait_for_turn(turn, withdraw, to_all=to_all or waits is None)

    def _wait_for_turn(self, turn: Turn, withdraw: Callable[[], bool], *, to_all: bool) -> None:
        gone = Event()
        turn.wakers.append(gone.set)
        began = monotonic()
        try:
            # The wait may end by its time in the same round in which the turn was done: then it was in time.
            in_time = self._wait_while_it_moves(gone, began) if to_all else gone.wait(self.timeout)
            in_time = in_time or turn.done
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
                f"{self.name}: the pipe to {self.endpoint} stayed full for {self._full_for(began):.3g} s; "
                "is it stopped?",
                address=self.endpoint,
                errno=zmq.EAGAIN,
                queued=not withdrawn,
            )

    def _wait_while_it_moves(self, gone: Event, began: float) -> bool:
        assert self._line is not None
        deadline = inf if self.timeout is None else began + self.timeout
        while (left := min(self._line.moved_at + STANDSTILL_SECONDS, deadline) - monotonic()) > 0:
            if gone.wait(left):
                return True
        return False

    def _full_for(self, began: float) -> float:
        moved_at = began if self._line is None else self._line.moved_at
        return monotonic() - min(began, moved_at)

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
