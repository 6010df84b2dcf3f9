"""SIGTERM, SIGHUP and SIGINT: what they do before the hub runs, and as events afterwards."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import gevent
from gevent.event import Event

__all__ = ["Ended", "Signals", "ending_at_once"]

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ended(SystemExit):
    """A signal came inside of :func:`ending_at_once`."""


class Signals:
    """The signals as events, inside of :meth:`watched`.

    Attributes:
        stop: Set by the first one, or by what else ends the program.
        hurry: Set by the second one.
    """

    def __init__(self) -> None:
        self.stop = Event()
        self.hurry = Event()

    def received(self) -> None:
        """Count a signal: the first one asks for an orderly end, the second one for a quick one."""
        (self.hurry if self.stop.is_set() else self.stop).set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Signals are counted, whenever the hub runs; afterwards they do what they did before."""
        before = {number: signal.getsignal(number) for number in _not_ignored()}
        watchers = [gevent.signal_handler(number, self.received) for number in before]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            for number, handler in before.items():
                # The loop leaves the system's own, which ends the program, and Python knows nothing of that.
                if handler is not None:
                    signal.signal(number, handler)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """A signal ends the program on the spot, with 0: for the time in which a program imports, and no hub runs."""
    for number in _not_ignored():
        signal.signal(number, _end)
    yield


def _end(number: int, frame: object) -> None:
    raise Ended(0)


def _not_ignored() -> list[int]:
    # What is ignored stays so: nohup(1) says that a terminal that closes does not end the program.
    return [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
