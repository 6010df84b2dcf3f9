"""A handler that forked dies; its children live on and hold what they inherited."""

from __future__ import annotations

import contextlib
import os
import signal

import gevent
from harness import HANDLER_DIED, Run, scenario


@scenario(kills=1)
def forks(run: Run, *, kills: int = 5, children: int = 2, mode: str = "serve") -> None:
    """Nothing goes to a child: its parent goes on being served, and after the parent the successor is."""
    pids: list[int] = []
    try:
        with run.rig(mode=mode, patience=5.0) as rig:
            rig.callers(8, pause=0.005)
            rig.talkers(4)
            for _ in range(kills):
                rig.progress(50)
                pids += [int(rig.ask("/fork?seconds=300")) for _ in range(children)]
                rig.progress(50)
                with rig.fault(HANDLER_DIED):
                    rig.handler.kill()
                    # What mongrel2 wrote to the connection before it saw its end.
                    gevent.sleep(0.05)
                rig.start_handler()
            rig.progress(100)
            rig.finish()
            rig.check(ended=(1006, 1012))
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
