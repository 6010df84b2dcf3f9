"""The end of a Transceiver: in which order things stop, and how long each may take.

In order, with the connection sets side by side in each step, so that one server that stands still does not use up the
time of all:

1. The pinger and the control socket stop.
2. WebSockets get close 1001; what has arrived is handed on, and no more is pulled. Extensions stop their intake.
3. Handlers finish, for as long as the callers of ``stop()`` give them; then they are killed, and clients get 503.
4. What was answered goes out, within ``linger`` seconds; extensions let go.
5. Sockets and context are closed.

A sudden end (leaving ``with``, a signal, a destroyed hub) is the same with no time for the handlers: events that wait
are dropped, other than those that say that something has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event

from ..protocol.kinds import ENDS
from ..protocol.websocket.frames import CloseCode
from .sets import ConnectionSets, side_by_side
from .shared import Shared

__all__ = ["Ending", "Worker"]

log = logging.getLogger("greentx.transceiver")

# How long a sudden end waits for handlers that are being killed.
_KILL_SECONDS = 0.5

# How often the end looks whether a greenlet that it waits for is still there.
_DEAD_CHECK_SECONDS = 0.1


class Worker(Protocol):
    """What handles events in greenlets of its own, and has to be waited for."""

    def join(self) -> object:
        """Block until every event that it received has been handled."""

    def kill(self, timeout: float) -> int:
        """End all handlers within *timeout* seconds; return how many there were."""

    def greenlets(self) -> Collection[object]:
        """Return the greenlets that handle events now: they would wait for themselves in ``stop()``."""


class _Stoppable(Protocol):
    @property
    def trouble(self) -> str: ...

    def stop(self) -> object: ...


class Ending:
    """Ends one run of a Transceiver, once, whoever asks for it.

    Args:
        shared: What its connection sets share.
        sets: The connection sets.
        sources: What stops first: the pinger, the control socket. May be added to.
        linger: Seconds that leaving may take to get out what was sent.
        on_end: Called when all is closed.

    Attributes:
        stopping: It has begun.
        workers: What has to be waited for, and killed in the end.
        sources: As given.
    """

    def __init__(
        self,
        shared: Shared,
        sets: ConnectionSets,
        sources: list[_Stoppable],
        linger: float,
        on_end: Callable[[], None],
    ) -> None:
        self.stopping = False
        self.workers: list[Worker] = []
        self._shared = shared
        self._sets = sets
        self.sources = sources
        self._linger = linger
        self._on_end = on_end
        self._done = Event()
        self._consumers: list[tuple[Any, Event]] = []
        self._greenlet: Any = None  # the one that carries it out
        self._deadline = inf
        self._handler_timeout: gevent.Timeout | None = None

    # -- who takes part ----------------------------------------------------------------------------------------------

    def consume(self) -> tuple[Any, Event]:
        """This greenlet runs a ``recv()`` loop, which the end waits for until :meth:`consumed`."""
        consumer = (gevent.getcurrent(), Event())
        self._consumers.append(consumer)
        self._shared.readers.add(consumer[0])
        return consumer

    def consumed(self, consumer: tuple[Any, Event]) -> None:
        """That loop was left."""
        context = self._shared.context
        if context.open and not context.in_hub_thread():
            context.hand_over(self.consumed, consumer)  # an Event belongs to its hub's thread
            return
        self._consumers.remove(consumer)
        self._shared.readers.discard(consumer[0])
        consumer[1].set()

    # -- who asks for it ---------------------------------------------------------------------------------------------

    def stop(self, timeout: float | None) -> None:
        """See ``Transceiver.stop``."""
        self._ask(partial(self.stop, timeout), timeout, None)

    def leave(self) -> None:
        """End at once: within ``linger`` + 1 s, whatever handlers are doing."""
        self._ask(self.leave, 0, self._linger + 1)

    def _ask(self, again: Callable[[], None], seconds: float | None, patience: float | None) -> None:
        """Carry out the end, or wait for it.

        Args:
            again: Asks for the same, where this greenlet or thread cannot.
            seconds: What handlers have left.
            patience: How long an end that is in progress is waited for; ``None`` waits for all of it.
        """
        context = self._shared.context
        current = gevent.getcurrent()
        # Sockets and greenlets belong to the hub's thread; a signal or another thread's exit may come in any other.
        if context.open and not context.in_hub_thread():
            if self._is_waited_for(current):
                context.hub.loop.run_callback_threadsafe(gevent.spawn, again)
            else:
                context.hand_over(again)
        elif current is context.hub:  # it cannot wait; a generator that held the ``with`` is collected there, too
            gevent.spawn(again)
        else:
            self._shorten_deadline(seconds)
            if not self.stopping:
                self._carry_out()
            elif not self._is_waited_for(current):
                # A caller that the end waits for must not wait for the end.
                self._done.wait(patience)

    def _shorten_deadline(self, timeout: float | None) -> None:
        """Handlers have so many seconds left at the most, also where somebody waits for them already."""
        # The shortest wins: a Ctrl-C during a patient stop() is not to be waited out.
        if timeout is None or monotonic() + timeout >= self._deadline:
            return
        self._deadline = monotonic() + timeout
        if self._handler_timeout is not None:
            gevent.get_hub().loop.run_callback(self._wake, self._handler_timeout)

    def _wake(self, timeout: gevent.Timeout) -> None:
        # It may have finished between the call and this callback: then the timeout is another one's.
        if timeout is self._handler_timeout and self._greenlet is not None:
            self._greenlet.throw(timeout)

    def _is_waited_for(self, greenlet: object) -> bool:
        # A handler that calls stop() is waited for by it, so it would wait for itself.
        return (
            greenlet is self._greenlet
            or any(greenlet is consumer for consumer, _ in self._consumers)
            or any(greenlet in worker.greenlets() for worker in self.workers)
        )

    # -- the order ---------------------------------------------------------------------------------------------------

    @property
    def _deadline_passed(self) -> bool:
        return monotonic() >= self._deadline

    def _carry_out(self) -> None:
        context = self._shared.context
        self.stopping = True
        self._greenlet = gevent.getcurrent()
        until = monotonic() + self._linger
        try:
            if context.open:
                self._end_intake(until)
                self._finish_handlers()
                # Handlers may have taken long; what they answered last has the whole linger.
                if not self._deadline_passed:
                    until = monotonic() + self._linger
                self._let_go(until)
        except BaseException:  # raised again: only the bound of the steps below changes
            until = 0.0  # struck by a second Ctrl-C, killed: then without ceremony
            raise
        finally:
            # Each step in its own finally: a second signal in the middle must not leave a socket open.
            try:
                if context.open:
                    for connection in self._sets:
                        connection.intake.stop(linger=0)
            finally:
                self._on_end()
                try:
                    context.close(linger=max(0.0, until - monotonic()))
                finally:
                    self._greenlet = None
                    self._done.set()

    def _end_intake(self, until: float) -> None:
        inbox = self._shared.inbox
        if self._deadline_passed:
            # Nobody is to begin anything now; ends are still told to whoever listens.
            ends = [item for item in inbox.items if item[2].method in ENDS]
            inbox.items.clear()
            inbox.items.extend(ends)
            inbox.end()
        # No more pings, commands or proofs: they would begin what is about to end.
        for source in self.sources:
            source.stop()
        self._sets.say_goodbye(self._sets, CloseCode.GOING_AWAY, until)
        # A copy: an extension may take itself out of the list.
        for extension in self._shared.extensions[:]:
            extension.stop_intake(max(0.0, until - monotonic()))
        # Only now: what has arrived until here is still for the application.
        inbox.end()
        for connection in self._sets:
            connection.intake.end_inbox()

    def _let_go(self, until: float) -> None:
        stops = [partial(one.intake.stop, linger=max(0.0, until - monotonic())) for one in self._sets]
        side_by_side(stops, until)
        for extension in self._shared.extensions[:]:
            extension.stop(max(0.0, until - monotonic()))

    def _finish_handlers(self) -> None:
        """Wait for whoever works on a request, but the caller itself; kill what is left at the deadline."""
        try:
            # Again each time that somebody shortened the deadline, which ends one round of waiting.
            while not self._deadline_passed and not self._handlers_finish():
                pass
        finally:
            left = sum(worker.kill(_KILL_SECONDS) for worker in self.workers[:])
            self.workers.clear()
            if left:
                log.warning("%s: %d requests had not been handled, their handlers were killed", self._sets.sender, left)

    def _handlers_finish(self) -> bool:
        """Wait for handlers until the deadline, or until that was moved; True when they have finished."""
        current = gevent.getcurrent()
        timeout = gevent.Timeout(None if self._deadline == inf else self._deadline - monotonic())
        try:
            with timeout:
                self._handler_timeout = timeout
                for greenlet, finished in list(self._consumers):
                    # One that was dropped in the middle of its loop never finishes.
                    while greenlet is not current and not greenlet.dead and not finished.wait(_DEAD_CHECK_SECONDS):
                        pass
                for worker in list(self.workers):
                    worker.join()
                return True
        except gevent.Timeout as error:
            # Somebody else's, around the call of stop(), is theirs to handle.
            if error is not timeout:
                raise
            return False
        finally:
            self._handler_timeout = None
