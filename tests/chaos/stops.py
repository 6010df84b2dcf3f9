"""SIGSTOP and SIGCONT: a process that does nothing for a while has lost nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import gevent
import gevent.subprocess
from harness import CHAOS, Broken, Rig, Run, scenario


@scenario(stops=1, stopped=2.0)
def stop_mongrel2(run: Run, *, stops: int = 5, stopped: float = 5.0, mode: str = "serve") -> None:
    """Whatever was under way is answered when it goes on; WebSockets that are pinged meanwhile stay."""
    with run.rig(mode=mode, ping_timeout=1.0, patience=stopped + 10) as rig:
        rig.callers(8)
        rig.callers(4, depth=4, size=3000)
        rig.callers(2, size=200_000)
        rig.talkers(8)
        for _ in range(stops):
            rig.progress(200)
            rig.stop_server()
            gevent.sleep(stopped)  # it is the length of the stop that is tested
            rig.continue_server()
        rig.progress(200)
        rig.finish()
        rig.check()


@scenario(stops=1, stopped=2.0)
def stop_handler(run: Run, *, stops: int = 5, stopped: float = 5.0, mode: str = "serve") -> None:
    """Its requests wait for it."""
    with run.rig(mode=mode, ping_timeout=1.0, patience=stopped + 10) as rig:
        rig.callers(8)
        rig.callers(4, depth=4, size=3000)
        rig.talkers(8)
        for _ in range(stops):
            rig.progress(200)
            rig.handler.signal(signal.SIGSTOP)
            gevent.sleep(stopped)  # as above
            rig.handler.signal(signal.SIGCONT)
        rig.progress(200)
        rig.finish()
        rig.check()


@scenario(websockets=50, seconds=9.0, stops=1, stopped=3.0, pause=1.0)
def stopped_websockets(
    run: Run,
    *,
    websockets: int = 1000,
    seconds: float = 600.0,
    stops: int = 3,
    stopped: float = 5.0,
    ping_timeout: float = 1.0,
    pause: float = 5.0,
) -> None:
    """None of so many WebSockets is dropped by the stops, though each stop is longer than the time for a pong.

    Each says something every *pause* seconds. On a machine that is so busy that the browsers themselves are late by
    more than *ping_timeout* some are dropped rightly; the line says by how much they were.
    """
    with run.rig(ping_timeout=ping_timeout) as rig:
        program = CHAOS.parent / "integration" / "browsers.py"
        command = [sys.executable, str(program), str(rig.server.port), *map(str, (websockets, seconds, pause))]
        browsers = gevent.subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            reading = gevent.spawn(browsers.communicate)
            # One that is lost meanwhile is the browsers' to report.
            with contextlib.suppress(Broken):
                rig.until(lambda: browsers.poll() is not None or _open(rig) == websockets, "all WebSockets", 60)
            for _ in range(stops):
                # The last stop leaves time for what has piled up.
                if reading.join(max(0.0, seconds / (stops + 1) - stopped)) or browsers.poll() is not None:
                    break
                rig.stop_server()
                gevent.sleep(stopped)  # it is the length of the stop that is tested
                rig.continue_server()
            output, errors = reading.get(timeout=seconds + 60)
        finally:
            browsers.kill()
            browsers.wait()
        if browsers.returncode:
            raise Broken(f"the browsers failed: {errors[-500:]}")
        found = json.loads(output)
        rig.tally.right = found["echoes"]
        rig.tally.sent = found["echoes"] + found["lost"]
        run.note(f"{found['opened']} WebSockets, {found['pings']} pings, browsers late by {found['late']} s at most")
        if found["lost"]:
            raise Broken(f"{found['lost']} of {websockets} WebSockets were lost: {found['why']}")
        rig.check()


def _open(rig: Rig) -> int:
    status = rig.status()
    return int(status["websockets"]) if status is not None else 0
