"""What signals mean to a program while a command of greentx runs in it, and afterwards."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import signal, sys
from greentx.cli.signals import Signals
signals = Signals()
with signals.watched():
    signal.raise_signal(signal.SIGINT)
    signals.stop.wait(5)
    assert signals.stop.is_set() and not signals.hurry.is_set()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_signals_mean_afterwards_what_they_meant_before():
    """The loop's own handlers would leave the system's, which ends the program without a word."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
