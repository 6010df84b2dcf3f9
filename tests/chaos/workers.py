"""gunicorn's workers, Nodes of the relay that it starts, which end and are replaced under load."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gunicorn_rig import Gunicorn, url_of
from harness import CHAOS, Broken, Rig, Run, scenario

_READY = "greentx .* serves"

# Nobody pulls while gunicorn restarts, which took 13 s on a busy machine: what waits for that long is not lost.
_PATIENCE = 60.0


class _Workers(Rig):
    """A rig whose handlers are gunicorn's workers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mode="gunicorn", patience=_PATIENCE, **options)

    def start_handler(self) -> None:
        """None: see :meth:`gunicorn`."""

    def status(self, timeout: float = 1.0) -> dict[str, Any] | None:
        """They have no control socket."""
        return None

    @contextmanager
    def gunicorn(self, workers: int, *options: str) -> Iterator[Gunicorn]:
        """Run gunicorn while the block runs; at its beginning all workers serve."""
        with TemporaryDirectory() as folder:
            started = Gunicorn(
                Path(folder),
                url_of(self.server),
                *("-w", str(workers), "--pythonpath", str(CHAOS), *options),
                app="chaos_handler:make_application(None)",
            )
            try:
                for _ in range(workers):
                    started.wait_for(_READY)
                yield started
            finally:
                started.close()


@scenario(rounds=1, workers=2)
def ending_workers(
    run: Run,
    *,
    rounds: int = 10,
    workers: int = 3,
    browsers: int = 24,
    size: int = 0,
    flow_control: int = 1,
    how: str = "HUP",
) -> None:
    """Replaced by SIGHUP, by ``max_requests``, or with all of gunicorn by SIGTERM: no request is lost.

    *how* is ``HUP``, ``MAX`` or ``TERM``; with ``MAX`` there are so many rounds of 2,000 requests for each worker.
    """
    rig = _Workers(settings={"download.flow_control": flow_control})
    run.rigs.append(rig)
    options = ["--max-requests", "2000", "--max-requests-jitter", "200"] if how == "MAX" else []
    slowest = 0.0
    with rig:
        rig.callers(browsers, size=size)
        if how == "TERM":
            for _ in range(rounds):
                with rig.gunicorn(workers) as gunicorn:
                    rig.progress(500)
                    began = time.monotonic()
                    gunicorn.process.terminate()
                    if gunicorn.finish() != 0:
                        raise Broken("gunicorn failed: " + "".join(gunicorn.lines[-5:]))
                    slowest = max(slowest, time.monotonic() - began)
        with rig.gunicorn(workers, *options) as gunicorn:
            for _ in range(0 if how == "TERM" else rounds):
                rig.progress(500)
                began = time.monotonic()
                if how == "HUP":
                    gunicorn.process.send_signal(signal.SIGHUP)
                for _ in range(workers):
                    gunicorn.wait_for("Worker exiting")
                slowest = max(slowest, time.monotonic() - began)
            rig.progress(200)
            rig.finish()
            gave_up = sum("this process leaves all the same" in line for line in gunicorn.lines)
        if gave_up:
            run.note(f"{gave_up} could not wait until nothing came")
        run.note(f"{rounds * workers} workers ended, {slowest:.1f} s at the most for a round")
        # The relay finishes large answers, and refuses what comes meanwhile.
        rig.check(refused=(503,) if how == "TERM" and size and flow_control else ())
