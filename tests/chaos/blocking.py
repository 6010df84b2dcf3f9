"""An application that blocks the hub: everything waits, nothing is lost."""

from __future__ import annotations

from harness import Run, scenario


@scenario(times=1, seconds=2.5)
def blocked_hub(run: Run, *, times: int = 5, seconds: float = 5.0, mode: str = "serve") -> None:
    """No request is lost, and no WebSocket is ended for pongs that lay unread meanwhile."""
    with run.rig(mode=mode, ping_timeout=1.0, patience=seconds + 10) as rig:
        rig.callers(8)
        rig.callers(2, depth=4, size=3000)
        rig.callers(2, upload=50_000)
        rig.talkers(8)
        for _ in range(times):
            rig.progress(100)
            rig.ask(f"/block?seconds={seconds}")
        rig.progress(100)
        rig.finish()
        rig.check()
