"""Clients that mean harm, in a process of their own, in front of the embedded front end: honest ones hardly notice."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gevent
import gevent.subprocess
from harness import Broken, Rig, Run, memory_of, scenario

MIB = 1024 * 1024
#: How many of each kind there are next to silent ones: most of what they send costs more to read than to send.
HOSTILE = {
    "random_bytes": 3,
    "random_frames": 3,
    "reset": 5,
    "pings": 1,
    "small_frames": 1,
    "fragments": 1,
    "large_frames": 2,
    "bad_frames": 5,
    "large_head": 2,
    "many_fields": 2,
    "chunks": 1,
    "extensions": 2,
    "pipelined": 1,
    "never_reads": 20,
    "half_close": 5,
    "comes_and_goes": 5,
}
#: What is left of a warm-up, and of one sample's difference from the next.
MAY_GROW = 6 * MIB


# Of the short form only what holds up others for good is looked for: its machine is busy with other tests.
@scenario(seconds=4.0, connections=100, most_ms=10_000.0)
def hostile_clients(run: Run, *, seconds: float = 60.0, connections: int = 2000, most_ms: float = 50.0) -> None:
    """The front end lives, its memory stays as it was, and 99 of 100 honest requests are answered in time."""
    with run.rig(front="edge", ping_timeout=20.0) as rig:
        before = _descriptors(rig)
        rig.callers(4, pause=0.05)
        rig.callers(2, upload=20_000, pause=0.1)
        rig.talkers(4)
        rig.progress(50, timeout=30)
        since = len(rig.tally.latencies)
        memory = _attack(run, rig, seconds, connections)
        late = rig.tally.percentile(0.99, since=since) * 1000
        rig.progress(50, timeout=30)
        rig.finish()
        rig.check()
        rig.until(lambda: _descriptors(rig) <= before + 2, "the connections of hostile clients to be closed", 60)
        quarter = len(memory) // 4
        first, last = (statistics.median(part) for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
        run.note(f"p99 {late:.0f} ms, memory {first / MIB:.1f} to {last / MIB:.1f} MiB")
        if late > most_ms:
            raise Broken(f"99 of 100 honest requests took up to {late:.0f} ms, limit {most_ms:g} ms")
        if last - first > MAY_GROW:
            raise Broken(f"memory grew by {(last - first) / MIB:.1f} MiB")


def _attack(run: Run, rig: Rig, seconds: float, connections: int) -> list[int]:
    """Run the hostile clients for so long; return how much memory the front end had meanwhile."""
    numbers = {**HOSTILE, "slow_head": connections // 10, "slow_body": connections // 20}
    numbers["never_speaks"] = connections - sum(numbers.values())
    words = [f"{kind}={number}" for kind, number in numbers.items() if number > 0]
    program = str(Path(__file__).with_name("hostile_clients.py"))
    process = gevent.subprocess.Popen(
        [sys.executable, program, str(rig.server.port), str(seconds), *words], stdout=subprocess.PIPE, text=True
    )
    memory: list[int] = []
    pid = rig.server.pid
    try:
        deadline = time.monotonic() + 2 * seconds + 60
        while process.poll() is None:
            if rig.server.pid != pid:
                raise Broken("the front end has died")
            if time.monotonic() > deadline:
                raise Broken("the hostile clients do not end")
            memory.append(memory_of(pid))
            gevent.sleep(max(0.1, seconds / 200))  # from one sample to the next
        counts = json.loads(process.stdout.read().splitlines()[-1])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    done = sum(sum(of_kind.values()) for of_kind in counts.values() if isinstance(of_kind, dict))
    if not done:
        raise Broken(f"the hostile clients did nothing: {counts}")
    run.note(f"{done} hostile deeds")
    return memory


def _descriptors(rig: Rig) -> int:
    return len(os.listdir(f"/proc/{rig.server.pid}/fd"))
