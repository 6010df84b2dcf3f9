"""The short form of ``make fuzz``: every parser of a peer's bytes, with inputs that are the same each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from fuzz import search
from fuzz_growth import check_memory, check_time, growths, run
from fuzz_targets import CORPUS, TARGETS, Target

PROGRAM = Path(__file__).with_name("fuzz.py")


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    """Each of them."""
    return TARGETS[request.param]


def test_the_seeds_and_former_findings_are_read(target):
    """Or refused, by an error of ours."""
    former = [path.read_bytes() for path in sorted((CORPUS / target.name).glob("*"))]
    for data in [*target.seeds(), *former]:
        run(target, data)


def test_what_a_peer_may_send_raises_errors_of_ours_only(target):
    """A hundred changes of the seeds, the same ones in each run."""
    search(target, lambda data: run(target, data), examples=100)


def test_memory_grows_with_the_input_only(target):
    """No more than the stated times its size, and nothing is left to the search for cycles."""
    for way, piece in growths(target, Random(1), 4):
        data = target.grow[way](piece, 4096)
        assert check_memory(target, data) == "", (way, piece)


def test_time_grows_with_the_input_only(target):
    """Not with its square."""
    for way, piece in growths(target, Random(2), 1):
        assert check_time(target, way, piece)[0] == "", (way, piece)


class SquareParser:
    """A parser that has what is looked for: it takes the square of time, much memory, and raises what is not ours.

    Its time is that of a clock of its own: a busy machine's caches disturb the real one.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, data: bytes) -> None:
        if b"\xfe" in data:
            raise KeyError(data)
        self.seconds += len(data) ** 2 / 1e9
        bytes(20 * len(data))

    def process_time(self) -> float:
        """Return the seconds that it has taken."""
        return self.seconds


def test_a_parser_with_faults_is_found(monkeypatch):
    """By each of the three searches: the others would say nothing, found they nothing."""
    parser = SquareParser()
    monkeypatch.setattr("fuzz_growth.time", parser)
    bad = Target("bad", parser, lambda: [b"seed \xfd"], {"raw": lambda piece, size: b"x" * size})
    assert "of memory" in check_memory(bad, b"x" * 20_000)
    assert "bytes take" in check_time(bad, "raw", b"x", [16384])[0]
    with pytest.raises(KeyError):
        search(bad, lambda data: run(bad, data), examples=2000)


def test_the_program_finds_nothing_in_a_second_and_replays(tmp_path):
    """With hypothesis; its exit status says so, and a file runs again by its name."""
    arguments = ["--seconds=1", "--engine=hypothesis", "--seed=1", f"--findings={tmp_path}", "--target=replies"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no findings"), done.stdout + done.stderr
    finding = tmp_path / "replies-1"
    finding.write_bytes(b"U 1:1, body")
    assert subprocess.run([sys.executable, PROGRAM, "--replay", finding], timeout=50, check=False).returncode == 0
