"""The load of ``make soak`` for a few seconds, and what its slopes would find."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from websocket_rig import in_thread

CHAOS = Path(__file__).parents[1] / "chaos"


@pytest.mark.mongrel2
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["serve", "wsgi"])
def test_mixed_load_leaves_nothing_behind(mode: str, tmp_path: Path) -> None:
    """Neither memory nor descriptors nor greenlets; the plot is drawn."""
    plot = tmp_path / "soak.svg"
    command = [sys.executable, str(CHAOS / "soak.py"), "--seconds", "5", "--mode", mode, "--plot", str(plot)]
    done = in_thread(lambda: subprocess.run(command, capture_output=True, text=True, timeout=110))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT FLAT" not in done.stdout
    assert b"<svg" in plot.read_bytes()


@pytest.mark.parametrize(("by_sample", "flat"), [(0.0, True), (0.005, True), (0.5, False)])
def test_a_slope_is_told_from_a_peak(monkeypatch: pytest.MonkeyPatch, by_sample: float, flat: bool) -> None:
    """What grows by a little with each sample is found, a peak that passes is not."""
    monkeypatch.syspath_prepend(str(CHAOS))
    soak = importlib.import_module("soak")
    series = soak.Series("descriptors", 2.0)
    for number in range(200):
        series.times.append(float(number))
        series.values.append(20 + by_sample * number + (50 if number % 40 == 0 else 0))
    assert series.flat == flat
