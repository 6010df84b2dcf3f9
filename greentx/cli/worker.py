"""The process that runs the application: loads it, serves it, and ends when it is told to, or when a file changes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Callable
from typing import IO, Any, Protocol

import gevent

from .arguments import Failure, errors_as_one_line
from .loading import MISSING, file_state, files_of, load_application, source_files
from .logs import keep_logging, open_access_log
from .signals import Ended, Signals, ending_at_once

__all__ = ["EXIT_RELOAD", "Site", "Worker"]

log = logging.getLogger("greentx.cli")

#: How the process that runs the application says that it wants to be started again: by a code that is hardly an
#: application's own.
EXIT_RELOAD = 213

# How often the files are looked at: by their dates, since notifications are the system's own, and some file systems
# (mounted from a host, say) send none.
_WATCH_SECONDS = 0.25


class Site(Protocol):
    """Where an application is served."""

    def make(self, application: Callable[..., Any], access_log: IO[str] | None) -> Any:
        """Return a ``WSGIServer`` that was not started. Raises ``ValueError`` for a wrong argument."""

    def start(self, server: Any) -> None:
        """Start it; it is stopped again where that fails."""

    def where(self, server: Any) -> str:
        """Return where it serves, for the log."""


class Worker:
    """Runs the application.

    Args:
        arguments: Those of ``greentx serve`` or ``greentx node``.
        site: Where it is served.
        watches: Whether it ends when a file has changed, since another process starts the next one then.
    """

    def __init__(self, arguments: argparse.Namespace, site: Site, *, watches: bool = False) -> None:
        self.arguments = arguments
        self.site = site
        self.signals = Signals()
        self.reload = False
        self._watches = watches
        self._watcher: Any = None
        self._also_watched: frozenset[str] = frozenset()
        # Settings were read just now; modules are looked at once they are imported.
        self._settings = frozenset(filter(None, [arguments.env_file]))
        self._seen: dict[str, tuple[int, int]] = {path: file_state(path) for path in self._settings}
        self._started = time.time_ns()

    def run(self, wrong: Failure | None = None) -> int:
        """Serve until a signal, or a change; return the exit code.

        Args:
            wrong: What is wrong with the arguments, so that only a change is waited for.
        """
        # From before the import on: a file may change while it is read.
        if self._watches:
            from ..transport import Supervised  # not before the program was patched

            self._watcher = Supervised("watcher of source files", self._watch)
            self._watcher.start()
        try:
            # No hub runs while a module is imported, so that nothing else would hear a signal then.
            with ending_at_once():
                application = self._load(wrong)
            with self.signals.watched():
                if application is None:
                    self.signals.stop.wait()
                else:
                    self._serve(application)
        finally:
            if self._watcher is not None:
                self._watcher.kill()
        return EXIT_RELOAD if self.reload else 0

    def _load(self, wrong: Failure | None) -> Callable[..., Any] | None:
        """Return the application; ``None`` where it failed to load, and a change of a file is waited for."""
        try:
            try:
                if wrong is not None:
                    raise wrong
                return load_application(self.arguments.app, self.arguments.app_dir)
            finally:
                keep_logging()  # before a failure is logged
        except Failure as failure:
            if not self._watches:
                raise
            # Files that are not there, or not modules yet, are in no list of modules: they are named by the error.
            if failure.__cause__ is not None:
                self._watch_also(files_of(failure.__cause__))
            log.error("%s; waiting for a change", failure)
        except Ended:
            raise
        # Whatever the application raises at its import is its developer's to fix while we wait: sys.exit(), too.
        except (Exception, SystemExit) as error:
            if not self._watches:
                raise
            self._watch_also(files_of(error))
            log.exception("%s could not be imported; waiting for a change", self.arguments.app)
        return None

    def _serve(self, application: Callable[..., Any]) -> None:
        from ..protocol.websocket.frames import CloseCode

        arguments = self.arguments
        with contextlib.ExitStack() as stack:
            with errors_as_one_line():
                access_log = stack.enter_context(open_access_log(arguments.access_log))
                server = self.site.make(application, access_log)
                self.site.start(server)
            log.info("serving %s %s", arguments.app, self.site.where(server))
            if server.transceiver.rep_port is not None:
                log.info("control socket on port %d", server.transceiver.rep_port)
            try:
                self.signals.stop.wait()
            finally:
                if self.reload:
                    server.goodbye_code = CloseCode.SERVICE_RESTART
                self._end(server)

    def _end(self, server: Any) -> None:
        log.info("ending")
        # In a greenlet, so that a second signal can cut it short.
        ending = gevent.spawn(server.stop, self.arguments.graceful_timeout)
        gevent.wait([ending, self.signals.hurry], count=1)
        if not ending.dead:
            server.kill(0)
        ending.get()

    # -- files ---------------------------------------------------------------------------------------------------

    def _watch_also(self, paths: frozenset[str]) -> None:
        # What is not there may come with an old date, moved from elsewhere.
        self._seen.update((path, MISSING) for path in paths if file_state(path) == MISSING)
        self._also_watched = paths

    def _watch(self) -> None:
        """Have the worker end when the file of a module was changed, be it before it was looked at first."""
        seen = self._seen
        while True:
            for path in source_files() | self._settings | self._also_watched:
                state = file_state(path)
                # A module that was imported just now has no earlier state to compare: its date says whether it changed
                # since the start. A date in the future is a wrong clock, and would end us again and again.
                is_new = path not in seen and self._started <= state[0] <= time.time_ns()
                if is_new or seen.setdefault(path, state) != state:
                    log.info("%s has changed", path)
                    self.reload = True
                    self.signals.stop.set()
                    return
            gevent.sleep(_WATCH_SECONDS)
