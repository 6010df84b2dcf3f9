"""The temporary folder of a front end."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import tempfile

import pytest

from greentx.edge.folder import Folder, remove_abandoned

MAKER = """
import os, signal
from greentx.edge.folder import Folder
folder = Folder()
folder.make()
open(folder.path + "/pid", "w").close()
print(folder.path, flush=True)
"""


@pytest.fixture
def parent(monkeypatch):
    """A folder of the test's own, in which folders are made."""
    with tempfile.TemporaryDirectory(prefix="f-") as path:
        monkeypatch.setattr(tempfile, "tempdir", path)
        yield path


def make_elsewhere(parent, ending):
    """Have another process make a folder, and end so; return the folder."""
    process = subprocess.run(
        [sys.executable, "-c", MAKER + ending],
        env={**os.environ, "TMPDIR": parent},
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    return process.stdout.strip()


def test_it_is_made_once_for_this_user_alone_and_removed(parent):
    """And may be made again, under the same name."""
    folder = Folder()
    assert not os.path.exists(folder.path) and os.path.dirname(folder.path) == parent
    for _ in range(2):
        assert folder.make()
        assert not folder.make()
        assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700
        folder.remove()
        assert os.listdir(parent) == []
    folder.remove()


def test_what_a_killed_process_left_goes_when_the_next_one_is_made(parent):
    """With all that is in it."""
    left = make_elsewhere(parent, "os.kill(os.getpid(), signal.SIGKILL)")
    assert os.path.exists(f"{left}/pid")
    folder = Folder()
    folder.make()
    assert os.listdir(parent) == [os.path.basename(folder.path)]
    folder.remove()


def test_the_folder_of_a_process_that_lives_stays(parent):
    """Of this one, and of another one."""
    mine = Folder()
    mine.make()
    with subprocess.Popen(
        [sys.executable, "-c", MAKER + "input()"],
        env={**os.environ, "TMPDIR": parent},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        theirs = process.stdout.readline().strip()
        remove_abandoned(parent)
        assert sorted(os.listdir(parent)) == sorted(os.path.basename(one) for one in (mine.path, theirs))
        process.stdin.close()
        process.wait(30)
    remove_abandoned(parent)
    assert os.listdir(parent) == [os.path.basename(mine.path)]
    mine.remove()


def test_a_folder_that_was_made_again_meanwhile_stays(parent, monkeypatch):
    """Who sweeps may have opened the lock of the one before, of the same name."""
    folder = Folder()
    folder.make()
    flock = fcntl.flock

    def after_all_was_made_anew(number, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        folder.remove()
        folder.make()
        flock(number, operation)

    monkeypatch.setattr(fcntl, "flock", after_all_was_made_anew)
    remove_abandoned(parent)
    assert os.path.isdir(folder.path)
    folder.remove()


def test_what_is_not_known_to_be_ours_stays(parent):
    """Another name; no lock, as while one is being made; a lock that is a link; a file."""
    for name in ("greentx-0123456789ab", "greentx-0123456789ac", "greentx-other", "other"):
        os.mkdir(f"{parent}/{name}")
    for name in ("greentx-other", "other"):
        open(f"{parent}/{name}/owner", "w").close()
    os.symlink("/etc/passwd", f"{parent}/greentx-0123456789ac/owner")
    open(f"{parent}/greentx-0123456789ad", "w").close()
    os.symlink(f"{parent}/other", f"{parent}/greentx-0123456789ae")
    before = sorted(os.listdir(parent))
    remove_abandoned(parent)
    remove_abandoned(f"{parent}/missing")
    assert sorted(os.listdir(parent)) == before
    assert os.listdir(f"{parent}/other") == ["owner"]
