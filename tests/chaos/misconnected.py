"""A handler that is connected to a half of its server: it must not say that it is ready."""

from __future__ import annotations

import socket

import gevent
from harness import ReadyWatch, Run, scenario


@scenario(seconds=4.0)
def wrong_pull_address(run: Run, *, seconds: float = 10.0) -> None:
    """Nobody is where it pulls from, while the way back is right: requests wait, and STATUS says so."""
    with socket.socket() as nobody:
        # Bound, so that nobody else gets it; not listening, so that a connection is refused.
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with run.rig(pull=f"tcp://127.0.0.1:{port}", patience=seconds) as rig:
            rig.until(lambda: rig.status() is not None, "an answer to STATUS")
            with rig.fault("nobody pulled them"):
                rig.callers(2, count=1)
                with ReadyWatch(rig):
                    gevent.sleep(seconds)  # so long nothing may be called ready
                rig.finish()
