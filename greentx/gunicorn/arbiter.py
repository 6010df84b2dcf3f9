"""What gunicorn's arbiter does for the relay: starts it, tells it when nothing is to go on, ends it."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from .folder import RelayFolder
from .plan import Plan
from .relay_process import PROGRAM, RelayProcess

__all__ = ["Arbiter"]

# gunicorn has waited for the workers by then.
_END_SECONDS = 10.0

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Arbiter:
    """This process, as far as the relay is concerned; made before the first worker.

    Args:
        plan: What the relay is told first.
        cfg: gunicorn's settings.

    Attributes:
        folder: What the processes share.
        told_to_end: In the process of a worker: it was told so before it had handlers of its own for signals.
    """

    def __init__(self, plan: Plan, cfg: Any, program: Sequence[str] = PROGRAM) -> None:
        self._pid = os.getpid()
        self._relay = RelayProcess.of_arbiter_before(os.environ, program=program) or RelayProcess(
            RelayFolder.make(*_owner(cfg)), program
        )
        self.folder = self._relay.folder
        self._warned = False
        self.told_to_end = False
        atexit.register(self._end)
        for number in _ENDING:
            self._watch(number)

    def make_worker(self, plan: Plan, cfg: Any, log: Any) -> int:
        """A worker is about to be made: see that a relay is there, and return the worker's number."""
        # It is started with what these say, and there is no other way to tell it something.
        self._relay.note_for_next(cfg.env_orig)
        if self._relay.left:
            return 0  # gunicorn ends, and has not looked at its signal yet
        words = self._words(plan, cfg)
        if self._relay.start(words, _log_file(cfg)):
            log.info("greentx: the relay is started")
        elif self._relay.words not in (None, words) and not self._warned:
            self._warned = True
            log.warning("greentx: the relay goes on with its old settings until gunicorn ends")
        return self.folder.new_number()

    def in_worker(self) -> None:
        """This is the process of a worker: the relay is to end with the arbiter all the same."""
        self._relay.leave()

    def _words(self, plan: Plan, cfg: Any) -> list[str]:
        level = cfg.loglevel.lower()
        words = [*plan.words, "--listen", self.folder.endpoint]
        words += ["--log-level", "error" if level == "critical" else level]
        words += ["--graceful-timeout", str(plan.seconds_to_end(cfg))]
        uid, gid = _owner(cfg)
        return words if uid == -1 else [*words, "--uid", str(uid), "--gid", str(gid)]

    def _watch(self, number: int) -> None:
        before = signal.getsignal(number)

        def leave(number: int, frame: FrameType | None) -> None:
            if os.getpid() != self._pid:
                # In a worker that was forked a moment ago. gunicorn's own handler would keep it for its arbiter.
                self.told_to_end = True
                return
            # Before the workers are told: with them gone the relay would wait for the next ones.
            self._relay.leave()
            if callable(before):
                before(number, frame)

        signal.signal(number, leave)

    def _end(self) -> None:
        # Workers inherit this, too.
        if os.getpid() == self._pid:
            self._relay.end(_END_SECONDS)


def _owner(cfg: Any) -> tuple[int, int]:
    """Return whom the workers run as, where that is somebody else."""
    return (-1, -1) if (cfg.uid, cfg.gid) == (os.geteuid(), os.getegid()) else (cfg.uid, cfg.gid)


def _log_file(cfg: Any) -> str | None:
    return None if cfg.errorlog in (None, "", "-") else str(cfg.errorlog)
