"""The scenarios of ``make chaos``, each for a few seconds, and what their count would find."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent.subprocess
import pytest

CHAOS = Path(__file__).parents[1] / "chaos"
SCENARIOS = (
    "steady",
    "kill-mongrel2",
    "kill-handler",
    "orphans",
    "kill-own-mongrel2",
    "stop-mongrel2",
    "stop-handler",
    "stopped-websockets",
    "waiting-answers",
    "no-descriptors",
    "no-memory",
    "disk-full",
    "vanishing-browsers",
    "never-reading",
    "blocked-hub",
    "forks",
    "harmless-signals",
    "ending-signals",
    "inflated-messages",
    "early-messages",
    "pipelined-bodies",
    "refused-commands",
    "proofs",
    "unread-messages",
    "idle-connections",
    "wrong-pull-address",
    "ending-workers",
    "hostile-clients",
)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program; greenlets go on meanwhile."""
    command = [sys.executable, str(CHAOS / "run.py"), *words]
    # gevent's: once it was used in this process it reaps the children of the other one, too.
    done: subprocess.CompletedProcess[str] = gevent.subprocess.run(command, capture_output=True, text=True, timeout=110)
    return done


@pytest.mark.mongrel2
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_swaps_no_answer_and_loses_none_without_a_reason(name: str) -> None:
    """Its line says ok; on a busy machine it takes its time."""
    done = run("--short", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(name)
    assert done.stdout.endswith(", ok\n")


def test_each_scenario_is_run_here() -> None:
    """And each has figures that the command line may change."""
    done = run("--list")
    assert tuple(line.split()[0] for line in done.stdout.splitlines()) == SCENARIOS
    assert all("=" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("words", [["no-such-fault"], ["steady", "no-such-figure=1"], ["requests=1"]])
def test_a_command_line_that_means_nothing_is_refused(words: list[str]) -> None:
    """With what there is instead."""
    done = run(*words)
    assert done.returncode == 2
    assert words[-1].partition("=")[0] in done.stderr


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that counts."""
    monkeypatch.syspath_prepend(str(CHAOS))
    return importlib.import_module("harness")


@pytest.mark.parametrize(
    ("got", "strangers", "wrong"),
    [
        (b"c2-1;c2-1;", 1, 0),
        (b"c1-7;c2-1;", 1, 0),
        (b"c1-6;c1-6;", 0, 1),
        (b"c1-7;c1-", 0, 1),
        (b"nothing of the kind", 0, 1),
    ],
)
def test_an_answer_that_is_not_right_is_a_strangers_or_wrong(
    harness: Any, got: bytes, strangers: int, wrong: int
) -> None:
    """Every byte of an answer belongs to one request."""
    tally = harness.Tally()
    tally.judge(1, harness.Request("c1-7", b"c1-7;c1-7;", b""), got)
    assert (len(tally.strangers), len(tally.wrong)) == (strangers, wrong)


@pytest.mark.parametrize(
    ("sent", "ended", "token", "explained"),
    [
        (9.0, 11.0, "c1-1", True),
        (11.0, 30.0, "c1-1", True),
        (5.0, 9.0, "c1-1", False),
        (21.0, 30.0, "c1-1", False),
        (11.0, 30.0, "u1-1", False),
    ],
)
def test_a_loss_is_explained_by_a_fault_that_it_was_under_way_in(
    harness: Any, sent: float, ended: float, token: str, explained: bool
) -> None:
    """Of the kind that the fault may lose."""
    tally = harness.Tally(excuses=[harness.Excuse(10.0, 20.0, "a fact", "cw")])
    tally.lost.append(harness.Lost(token, sent, ended, "no answer in time"))
    assert (not tally.unexplained(), tally.explained()) == (explained, {"a fact": 1} if explained else {})
