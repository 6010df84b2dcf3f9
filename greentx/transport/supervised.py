"""Greenlets that last as long as what they work for: an error ends one attempt, never the greenlet."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import gevent
from gevent.event import Event

from ..errors import ForkError

__all__ = ["Supervised"]

log = logging.getLogger("greentx.transport")

#: Seconds before the first new attempt; doubled with each failure in a row, up to 2**3 times as long.
RETRY_SECONDS = 1.0
_MAX_DOUBLINGS = 3

# So that work that raises nothing else does not keep the hub.
_TIMEOUT_SECONDS = 0.001

# One failure may be an accident, such as one large message; after so many in a row it is said that nothing works.
_CRITICAL_FAILURES = 3


class Supervised:
    """A greenlet that does *work*, and begins it again after a pause where it raised.

    Nothing is caught inside the loop of *work* for this: what it does for each message costs the same.

    Args:
        name: For the greenlet, and for the log.
        work: Called in the greenlet; it goes on for as long as it is wanted, calls :meth:`works` when it got something
            done, and ends the greenlet by returning.
        on_change: Called without arguments in the greenlet when :attr:`trouble` begins or ends. Must not block.
        on_failure: Called with what *work* raised, before the pause. Must not block.
        retry: Seconds before the first new attempt.

    Attributes:
        name: As given.
        failures: How often *work* raised, in a row.
        stopping: Set once it was told to end.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        on_change: Callable[[], None] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
        retry: float = RETRY_SECONDS,
    ) -> None:
        self.name = name
        self.failures = 0
        self.stopping = Event()
        self._work = work
        self._on_change = on_change
        self._on_failure = on_failure
        self._retry = retry
        self._started = False
        # The error itself, since a text might find no memory.
        self._error: BaseException | None = None
        self.greenlet: gevent.Greenlet[..., None] = gevent.Greenlet(self._run)
        self.greenlet.name = name

    @property
    def trouble(self) -> str:
        """Why it does not work at present; ``""`` while it does."""
        return "" if self._error is None else f"{self.name}: {self._error!r}"

    @property
    def current(self) -> bool:
        """True where it is the greenlet that asks."""
        return gevent.getcurrent() is self.greenlet

    def start(self) -> None:
        """Begin; does nothing the second time."""
        if not self._started:
            self._started = True
            self.greenlet.start()

    def works(self) -> None:
        """Called by *work*: it got something done. Cheap, though a loop may ask for :attr:`failures` first."""
        if self._error is not None:
            self.failures = 0
            self._error = None
            self._say(logging.WARNING, "%s works again", self.name)
            self._tell(self._on_change)

    def join(self, timeout: float | None = None) -> None:
        """No new attempt is made from now on; wait for the present one to end, for *timeout* seconds at the most.

        Not where it waits for itself, nor where it never began.
        """
        self.stopping.set()
        if self._started and not self.current:
            self.greenlet.join(timeout)

    def kill(self, timeout: float | None = None, *, block: bool = True) -> None:
        """End it, and wait for that for *timeout* seconds at the most; not where it ends itself."""
        self.stopping.set()
        if not self.current:
            self.greenlet.kill(block=block, timeout=timeout)

    def _run(self) -> None:
        pause = 0.0
        try:
            while True:
                # The pause too: a Timeout that the work left running comes up wherever this greenlet waits.
                try:
                    if pause:
                        seconds, pause = pause, 0.0
                        if self.stopping.wait(seconds):
                            return
                    self._work()
                    return
                except ForkError as error:
                    # What it works for is the parent's, which has a greenlet of its own for it.
                    self._say(logging.WARNING, "%s ends: %s", self.name, error)
                    return
                except gevent.Timeout as error:
                    # Nobody waits for it any more, and nothing is wrong with the work.
                    pause = _TIMEOUT_SECONDS
                    self._say(logging.ERROR, "%s: a Timeout that was left running came up", self.name, exc_info=error)
                except Exception as error:  # noqa: BLE001 - it is logged, and the greenlet goes on
                    pause = self._failed(error)
        except BaseException as error:  # raised again
            if not self.stopping.is_set():
                self._error = error.with_traceback(None)
                self._say(logging.CRITICAL, "%s was ended by %r and does not go on", self.name, error)
                self._tell(self._on_change)
            raise

    def _failed(self, error: BaseException) -> float:
        pause: float = self._retry * 2 ** min(self.failures, _MAX_DOUBLINGS)
        self.failures += 1
        is_news, self._error = self._error is None, error
        level = logging.ERROR if self.failures < _CRITICAL_FAILURES else logging.CRITICAL
        what = "failed" if level == logging.ERROR else f"does not work, it failed {self.failures} times in a row"
        self._say(level, "%s %s: %r; it goes on in %.1f s", self.name, what, error, pause, exc_info=error)
        # It would keep alive all that the frames held.
        error.__traceback__ = None
        on_failure = self._on_failure
        if on_failure is not None:
            self._tell(lambda: on_failure(error))
        if is_news:
            self._tell(self._on_change)
        return pause

    def _say(self, level: int, text: str, *arguments: object, exc_info: BaseException | None = None) -> None:
        # Where there is no memory for a line in the log, going on matters more.
        with contextlib.suppress(Exception):
            log.log(level, text, *arguments, exc_info=exc_info)

    def _tell(self, call: Callable[[], object] | None) -> None:
        if call is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - it is logged, and the greenlet goes on
                self._say(logging.ERROR, "%s: %r", self.name, error, exc_info=error)

    def __repr__(self) -> str:
        return f"<Supervised {self.name}: {self.trouble or 'works'}>"
