"""Starts a front end of our own again, should it end by itself."""

from __future__ import annotations

import logging
import time
from types import TracebackType

import gevent

from ..errors import GreentxError
from ..transport import Supervised
from .front_end import FrontEndProcess

__all__ = ["Keeper"]

log = logging.getLogger("greentx.edge")

# Between two attempts to start it again: the first one, and at the most.
_RESTART_SECONDS = 0.1
_MAX_RESTART_SECONDS = 1.0


class Keeper:
    """Keeps *process* running from :meth:`start` to :meth:`stop`; a context manager, too.

    Whoever is connected finds it on the same port and under the same endpoints. A WARNING tells of each restart, an
    ERROR of an attempt that failed; it goes on. Stop it before the server, which it would start again.
    """

    def __init__(self, process: FrontEndProcess) -> None:
        self._process = process
        self._watcher: Supervised | None = None

    def __enter__(self) -> Keeper:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Watch it; it was started before. Twice is once."""
        if self._watcher is None:
            self._watcher = Supervised(f"watcher of {self._process!r}", self._keep_running)
            self._watcher.start()

    def stop(self) -> None:
        """Let it be; blocks for a moment. Twice is once."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher = None

    def _keep_running(self) -> None:
        delay = _RESTART_SECONDS
        while True:
            began = time.monotonic()
            self._process.wait()
            if time.monotonic() - began > _MAX_RESTART_SECONDS:
                delay = _RESTART_SECONDS
            gevent.sleep(delay)
            delay = min(2 * delay, _MAX_RESTART_SECONDS)
            try:
                self._process.start()
            except (GreentxError, OSError) as error:
                log.error("the front end at %s cannot be started again: %s", self._process.url, error)
            else:
                log.warning("the front end at %s was started again", self._process.url)
                if self._watcher is not None:
                    self._watcher.works()
