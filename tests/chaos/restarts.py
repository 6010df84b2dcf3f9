"""A restart of mongrel2 while answers wait to be sent: connection ids begin at 1 again, and belong to strangers."""

from __future__ import annotations

import contextlib
import signal

import gevent
from harness import SERVER_DIED, Broken, Rig, Run, scenario


@scenario(restarts=1)
def waiting_answers(
    run: Run, *, restarts: int = 50, size: int = 300_000, browsers: int = 40, mode: str = "serve"
) -> None:
    """Large answers wait for a full pipe, or for browsers, when their server dies; without and with flow control.

    Not for the mode ``recv``, whose loop answers one request after the other.
    """
    for flow_control in (0, 1):
        with run.rig(mode=mode, settings={"download.flow_control": flow_control}, patience=20.0) as rig:
            for _ in range(restarts):
                flood = gevent.spawn(_flood, rig)
                rig.until(lambda: _under_way(rig) == 1, "the flood to be under way")
                rig.callers(browsers, size=size, query="&held=1&wait=0.2", count=1)
                rig.talkers(2, size=20_000)
                rig.until(lambda: _under_way(rig) == 1 + browsers, f"{browsers} requests that are under way")
                # Released only now: nobody reads, so the answers wait, behind what fills the pipe.
                rig.stop_server()
                rig.handler.signal(signal.SIGUSR2)
                gevent.sleep(0.7)  # until they wait
                with rig.fault(SERVER_DIED):
                    rig.server.kill()
                    rig.server.start()
                # The new ones get the numbers of the old ones, and ask at once.
                rig.callers(browsers, count=3, size=100)
                rig.progress(browsers * 3)
                rig.finish()
                flood.join()
            rig.check(ended=(1006,))


def _flood(rig: Rig) -> None:
    # More than the pipe's 1000 messages and what the system buffers. It gets no answer: its server dies.
    with contextlib.suppress(Broken):
        rig.ask("/flood?count=5000&held=1")


def _under_way(rig: Rig) -> int:
    status = rig.status()
    return sum(one["open_requests"] for one in status["connections"]) if status is not None else 0
