"""No fault at all: what must hold when nothing goes wrong, at the counts that README speaks of."""

from __future__ import annotations

from harness import Broken, Run, scenario


@scenario(requests=4000, connections=64)
def steady(run: Run, *, requests: int = 100_000, connections: int = 256, mode: str = "serve") -> None:
    """Each of so many requests over so many connections gets the right answer, whatever its size."""
    with run.rig(mode=mode, patience=60.0) as rig:
        share, more = divmod(requests, connections)
        for number in range(connections):
            size = (0, 0, 0, 2000, 20_000)[number % 5]
            rig.callers(1, count=share + (number < more), size=size, depth=1 + 3 * (number % 8 == 0))
        rig.join(600)
        rig.check()
        if rig.tally.right != requests:
            raise Broken(f"{rig.tally.right} of {requests} were right")
        run.note(f"p50 {rig.tally.percentile(0.5) * 1000:.1f} ms, p99 {rig.tally.percentile(0.99) * 1000:.1f} ms")
