"""Signals at random moments: those that mean nothing, and those that end the handler."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterable
from functools import partial

import gevent
from harness import HANDLER_DIED, Broken, Run, Talker, scenario

#: Caught by the handler's program, or ignored by the system: each interrupts system calls.
HARMLESS = (signal.SIGUSR1, signal.SIGWINCH, signal.SIGCONT, signal.SIGURG)


@scenario(seconds=2.0)
def harmless_signals(run: Run, *, seconds: float = 20.0, mode: str = "serve") -> None:
    """Nothing is lost."""
    with run.rig(mode=mode, ping_timeout=1.0) as rig:
        rig.callers(8)
        rig.callers(2, depth=4, size=3000)
        rig.talkers(4)
        rig.progress(50)
        until = time.monotonic() + seconds
        count = 0
        while time.monotonic() < until:
            rig.handler.signal(random.choice(HARMLESS))
            count += 1
            gevent.sleep(random.random() * 0.02)  # at any moment
        rig.progress(50)
        rig.finish()
        run.note(f"{count} signals")
        rig.check()


@scenario(rounds=1)
def ending_signals(
    run: Run, *, rounds: int = 5, linger: float = 1.0, mode: str = "serve", signals: str = "TERM,INT,HUP"
) -> None:
    """The handler ends within its linger and a second more; its WebSockets get 1001, and the next one goes on."""
    with run.rig(mode=mode, linger=linger, patience=5.0) as rig:
        rig.callers(8, pause=0.005)
        rig.callers(2, depth=4, size=3000, pause=0.005)
        longest = 0.0
        for number in [signal.Signals[f"SIG{name}"] for name in signals.split(",")] * rounds:
            talkers = rig.talkers(6)
            rig.until(partial(_all_opened, talkers), "WebSockets")
            rig.progress(50)
            gevent.sleep(random.random() * 0.1)  # at any moment
            before = rig.tally.ended.copy()
            for one in talkers:
                one.end_with_connection()
            with rig.fault(HANDLER_DIED):
                began = time.monotonic()
                rig.handler.signal(number)
                # No less, as a busy machine takes its time to end a process.
                if rig.handler.wait(linger + 5) is None:
                    raise Broken(f"it did not end within {linger + 5:g} s of {number.name}")
                took = time.monotonic() - began
                longest = max(longest, took)
                if took > linger + 1:
                    run.note(f"{number.name} took {took:.1f} s")
                # What mongrel2 wrote to the connection before it saw its end.
                gevent.sleep(0.05)
            rig.until(partial(_all_finished, talkers), "the end of the WebSockets")
            ended = rig.tally.ended - before
            if set(ended) != {1001}:
                raise Broken(f"{number.name} ended WebSockets with {dict(ended)} instead of 1001")
            rig.handler.kill()
            rig.start_handler()
            rig.progress(50)
        rig.finish()
        run.note(f"ended within {longest:.1f} s")
        rig.check(refused=(503,), ended=(1001,))


def _all_opened(talkers: Iterable[Talker]) -> bool:
    return all(one.opened for one in talkers)


def _all_finished(talkers: Iterable[Talker]) -> bool:
    return all(one.finished for one in talkers)
