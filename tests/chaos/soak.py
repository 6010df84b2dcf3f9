"""Minutes of everything at once: memory, descriptors and greenlets of the handler have to stay as they were.

``python tests/chaos/soak.py [--seconds 600] [--mode serve|recv|wsgi] [--plot FILE]``

The load is mixed: keep-alive and pipelined requests, large answers, uploads, WebSockets with and without compression,
slow readers, and browsers that come, ask and vanish. Every answer is checked, as by ``run.py``. Samples are taken all
the time; the first quarter is a warm-up. Of the rest the slope is estimated by the median of the slopes between all
pairs of samples (Theil and Sen), which single peaks do not move. Prints one line for each measure; the exit status is 1
where a slope is not flat or an answer was wrong. ``--plot`` draws the samples (matplotlib, in the extra ``bench``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gevent
from harness import Broken, Browser, RawClient, Rig
from vanishing import Leaver

from greentx import GreentxError
from greentx.handler.runners import PARK_SECONDS

MIB = 1024 * 1024
#: By how much each measure may grow from the end of the warm-up to the end of the run: what is left of a warm-up, and
#: of one sample's difference from the next.
MEASURES: dict[str, float] = {"memory": 4 * MIB, "descriptors": 2.0, "greenlets": 10.0}
WARM_UP = 0.25
SAMPLES = 200


@dataclass
class Series:
    """The samples of one measure."""

    name: str
    may_grow: float
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def growth(self) -> float:
        """Return by how much the measure grew after the warm-up, by its slope."""
        return self.slope() * (self.times[-1] - self._settled()[0][0])

    def slope(self) -> float:
        """Return the median of the slopes between all pairs of samples after the warm-up, by second."""
        times, values = self._settled()
        pairs = itertools.combinations(range(len(times)), 2)
        return statistics.median((values[two] - values[one]) / (times[two] - times[one]) for one, two in pairs)

    def _settled(self) -> tuple[list[float], list[float]]:
        first = int(len(self.times) * WARM_UP)
        if len(self.times) - first < 3:
            raise Broken(f"{len(self.times)} samples of {self.name} show no slope: run it for longer")
        return self.times[first:], self.values[first:]

    @property
    def flat(self) -> bool:
        """Whether it grew by no more than it may."""
        return self.growth() <= self.may_grow

    def shown(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{value / MIB:.1f} MiB" if self.name == "memory" else f"{value:.1f}"

    def __str__(self) -> str:
        first, last = self.values[int(len(self.values) * WARM_UP)], self.values[-1]
        return (
            f"{self.name:<12} {self.shown(first)} after the warm-up, {self.shown(last)} at the end, "
            f"slope {self.shown(self.slope() * 60)} a minute, grew by {self.shown(self.growth())}, "
            f"may by {self.shown(self.may_grow)}: {'flat' if self.flat else 'NOT FLAT'}"
        )


def load(rig: Rig) -> None:
    """Start the browsers."""
    rig.callers(4, pause=0.005)
    rig.callers(2, depth=4, size=3000, pause=0.01)
    rig.callers(1, size=200_000, pause=0.02)
    rig.callers(1, upload=50_000, pause=0.02)
    rig.callers(1, upload=300_000, pause=0.05)
    rig.talkers(3, pause=0.02)
    rig.talkers(3, pause=0.02, deflate=True, size=2000)


def read_slowly(rig: Rig) -> None:
    """Ask for much, and read it a little at a time, again and again."""
    while True:
        with contextlib.suppress(OSError), Browser(rig.front, timeout=5.0, receive_buffer=4096) as browser:
            browser.ask("/echo/slow?size=400000")
            for _ in range(20):
                browser.socket.recv(20_000)
                gevent.sleep(0.02)  # this is how slowly it reads


def come_and_close(rig: Rig) -> None:
    """WebSockets that are opened, say a word, and are closed."""
    while True:
        with contextlib.suppress(OSError, AssertionError), RawClient(rig.front.port) as client:
            client.send(b"hello")
            client.recv()
            client.send_close()
            client.recv_close()
        gevent.sleep(0.05)  # one comes after the other


def measure(rig: Rig) -> dict[str, float]:
    """Take one sample."""
    return {
        "memory": rig.handler.memory(),
        "descriptors": rig.handler.descriptors(),
        "greenlets": json.loads(rig.ask("/gauge"))["greenlets"],
    }


@contextlib.contextmanager
def disturbance(rig: Rig) -> Iterator[Leaver]:
    """Those whose answers nobody checks."""
    leaver = Leaver(rig)
    others = [leaver.run, leaver.run, lambda: read_slowly(rig), lambda: come_and_close(rig)]
    greenlets = [gevent.spawn(one) for one in others]
    try:
        yield leaver
        for one in greenlets:
            if one.exception is not None:
                raise Broken(f"a browser failed: {one.exception!r}")
    finally:
        gevent.killall(greenlets)


def soak(rig: Rig, seconds: float, found: list[Series]) -> str:
    """Load the handler for so long, and add the samples to *found*. Returns what became of the requests."""
    load(rig)
    rig.progress(50, timeout=30)
    began = time.monotonic()
    with disturbance(rig) as leaver:
        while (elapsed := time.monotonic() - began) < seconds:
            sample = measure(rig)
            for series in found:
                series.times.append(elapsed)
                series.values.append(sample[series.name])
            gevent.sleep(max(0.05, seconds / SAMPLES))  # between two samples
    rig.finish()
    rig.check()
    return f"{rig.tally}, {leaver.left} vanished"


def plot(path: str, title: str, found: list[Series]) -> None:
    """Draw the samples of each measure over time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(found), 1, figsize=(10, 2.6 * len(found)), sharex=True)
    figure.suptitle(title)
    for one, series in zip(axes, found, strict=True):
        unit = MIB if series.name == "memory" else 1
        one.plot(series.times, [value / unit for value in series.values])
        one.axvspan(0, series.times[int(len(series.times) * WARM_UP)], alpha=0.15)
        one.set(ylabel=f"{series.name}{', MiB' if unit == MIB else ''}", ylim=(0, None))
    axes[-1].set(xlabel="seconds")
    figure.tight_layout()
    figure.savefig(path)


def arguments() -> Any:
    """Read the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seconds", type=float, default=600.0, help="of load (%(default)g)")
    found.add_argument("--mode", choices=("serve", "recv", "wsgi"), default="serve", help="how the handler is written")
    found.add_argument("--plot", metavar="FILE", help="draw the samples, into .svg, .png or what matplotlib knows")
    options = found.parse_args()
    if not options.seconds >= 4:
        found.error("--seconds is at least 4: less shows no slope")
    if options.plot:
        try:
            importlib.metadata.version("matplotlib")
        except importlib.metadata.PackageNotFoundError:
            found.error("--plot needs matplotlib: pip install 'greentx[bench]'")
    return options


def main() -> int:
    """Run it; return the exit status."""
    options = arguments()
    # What mongrel2 writes about browsers that vanish is expected here.
    logging.getLogger("greentx").addHandler(logging.NullHandler())
    found = [Series(name, may_grow) for name, may_grow in MEASURES.items()]
    failed = ""
    try:
        # A short run, too, has to see the greenlets end that wait for more requests of those who have left.
        park_seconds = min(PARK_SECONDS, options.seconds / 40)
        with Rig(mode=options.mode, ping_timeout=1.0, patience=20.0, park_seconds=park_seconds) as rig:
            print(f"soak {soak(rig, options.seconds, found)}, {options.seconds:g} s", flush=True)
    except (Broken, GreentxError, OSError) as error:
        failed = str(error) or repr(error)
    if found[0].times and options.plot:
        plot(options.plot, f"{options.mode}, {options.seconds:g} s of mixed load", found)
    try:
        print(*found, sep="\n", flush=True)
        failed = failed or ", ".join(f"{series.name} grew" for series in found if not series.flat)
    except Broken as error:
        failed = failed or str(error)
    if failed:
        print(f"FAILED: {failed}", file=sys.stderr)
        for said in rig.last_words:
            print(f"    {said}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
