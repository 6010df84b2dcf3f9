"""What is skipped for want of a program is counted, and in CI it is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import needs
import pytest

ROOT = Path(__file__).parents[1]


def report(nodeid: str, reason: object) -> pytest.TestReport:
    """Return the report of a test that was skipped."""
    longrepr = ("x.py", 1, reason) if isinstance(reason, str) else reason
    return pytest.TestReport(nodeid, ("x.py", 1, ""), {}, "skipped", longrepr, "setup")  # type: ignore[arg-type]


def test_the_last_lines_say_how_many_tests_of_which_files():
    """Of each program; what was skipped for another reason is not counted."""
    reports = [
        report("tests/test_a.py::one", "Skipped: for want of mongrel2"),
        report("tests/sub/test_b.py::one[x]", needs.skipped("mongrel2")),
        report("tests/sub/test_b.py::two", needs.skipped("mongrel2")),
        report("tests/test_a.py::two", needs.skipped("wrk")),
        report("tests/test_a.py::three", "this machine has no IPv6"),
        report("tests/test_a.py::four", None),
    ]
    assert list(needs.summary(reports)) == [
        "not run for want of mongrel2: 3 tests of 2 files:",
        "  test_a.py 1, test_b.py 2",
        "not run for want of wrk: 1 test of 1 files:",
        "  test_a.py 1",
    ]
    assert list(needs.summary([])) == []


def test_long_lists_have_several_lines():
    """None is wider than a terminal."""
    reports = [report(f"tests/test_with_a_long_name_{number:02}.py::one", needs.skipped("x")) for number in range(40)]
    _, *lines = needs.summary(reports)
    assert len(lines) > 5
    assert max(map(len, lines)) <= 120
    assert "".join(lines).count("test_with_a_long_name") == 40


@pytest.mark.parametrize(("ci", "meant", "skips"), [("", "", True), ("true", "", False), ("true", "1", True)])
def test_only_ci_insists(monkeypatch, ci, meant, skips):
    """Unless a variable says that it is meant."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("GREENTX_WITHOUT_X", meant)
    with pytest.raises(pytest.skip.Exception if skips else pytest.fail.Exception) as info:
        needs.go_without("x", "x-core", "GREENTX_WITHOUT_X")
    assert "for want of x" in str(info.value) if skips else "apt-get install x-core" in str(info.value)


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_machine_without_mongrel2_skips_what_is_marked_and_what_meets_none(tmp_path, ci):
    """Fixtures that start one need no mark; in CI both fail."""
    for name in ("conftest.py", "needs.py", "front_ends.py"):
        (tmp_path / name).symlink_to(ROOT / "tests" / name)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.mongrel2\ndef test_marked(): pass\n"
        "def test_met(start_mongrel2): start_mongrel2()\n"
        "def test_other(): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tmp_path / "test_it.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(tmp_path), "CI": ci, "GREENTX_WITHOUT_MONGREL2": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    *_, first, second, last = done.stdout.splitlines()
    if ci:
        assert done.returncode == 1
        assert "1 failed, 1 passed, 1 error" in last
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert first == "not run for want of mongrel2: 2 tests of 1 files:"
        assert second == "  test_it.py 2"
        assert "1 passed, 2 skipped" in last
