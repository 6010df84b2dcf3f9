"""What ``make install`` and ``make demo`` make environments with: it says its steps, and heals what broke off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "environment.py"

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "shop"
version = "1"
"""

# What pip calls; while there is a file "wait", it says so and waits for its end.
BACKEND = """
import os, pathlib, time, zipfile
def get_requires_for_build_editable(config_settings=None):
    return []
def build_editable(folder, config_settings=None, metadata_directory=None):
    if os.path.exists("wait"):
        pathlib.Path("waiting").touch()
        while os.path.exists("wait"):
            time.sleep(0.01)  # one look
    with zipfile.ZipFile(os.path.join(folder, "shop-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("shop.py", "")
        wheel.writestr("shop-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: shop\\nVersion: 1\\n")
        wheel.writestr("shop-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("shop-1.dist-info/RECORD", "")
    return "shop-1-py3-none-any.whl"
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "backend.py").write_text(BACKEND)
    return tmp_path


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Starts the script in the project, in a group of its own, as a shell does; all are ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def one() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, "env"],
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield one
    (project / "wait").unlink(missing_ok=True)
    for process in started:
        # Its pip may still be there.
        with process:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def wait_for(path: Path) -> None:
    until = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)  # one look


def said(process: subprocess.Popen[str]) -> list[str]:
    """Return what it printed, when it has ended well."""
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 0, printed
    return [line.partition(",")[0].partition(" after ")[0] for line in printed.splitlines()]


def begins_anew(process: subprocess.Popen[str]) -> bool:
    """Whether it makes the environment once more; the rest is not waited for."""
    assert process.stdout is not None
    return process.stdout.readline().startswith("making env")


MADE = ["making env", "pip installs greentx", "env is ready"]


def test_an_interrupted_installation_is_made_anew(start: Start, project: Path) -> None:
    """Ctrl-C reaches pip as well; nothing is taken for complete."""
    (project / "wait").touch()
    first = start()
    wait_for(project / "waiting")
    os.killpg(first.pid, signal.SIGINT)
    printed, _ = first.communicate(timeout=100)
    assert first.returncode == 1
    assert printed.splitlines()[-1] == "interrupted; the next attempt begins anew"
    assert "Traceback" not in printed.partition("pip installs greentx\n")[0]
    assert begins_anew(start())


def test_each_step_is_said_a_pip_whose_make_was_killed_is_waited_for_and_what_is_there_is_kept(
    start: Start, project: Path
) -> None:
    """Two at once in one folder would break it. It is kept until the project is another one."""
    (project / "wait").touch()
    first = start()
    wait_for(project / "waiting")
    first.kill()
    first.wait()
    second = start()
    assert second.stdout is not None
    assert second.stdout.readline() == "another installation into env goes on: waiting for its end\n"
    (project / "wait").unlink()
    assert said(second) == MADE
    assert subprocess.run([project / "env" / "bin" / "python", "-c", "import shop"]).returncode == 0
    assert said(start()) == []
    (project / "pyproject.toml").write_text(f"{PROJECT}\n# changed\n")
    assert begins_anew(start())
