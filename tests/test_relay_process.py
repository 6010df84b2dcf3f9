"""The relay's process as gunicorn's arbiter has it, with a program of a few lines in the relay's place."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from greentx.gunicorn.folder import RelayFolder
from greentx.gunicorn.relay_process import FOLDER_VARIABLE, RelayProcess

# Ends with its stdin as the relay does; "stays" does not, and "fails" is not ready before its end.
PROGRAM = """
import json, os, shutil, sys, time
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
log = os.environ["TEST_LOG"]
def say(word):
    with open(log, "a") as file:
        file.write(f"{word} {os.getpid()}\\n")
say("started")
if "fails" in words:
    sys.exit(1)
with open(log + ".words", "w") as file:
    json.dump([words, dict(os.environ), os.getsid(0)], file)
os.write(int(option("--notify-fd")), b"ready\\n")
print("hello", file=sys.stderr, flush=True)
def wait_for_end():
    while True:
        try:
            if not os.read(0, 1):
                return
        except BlockingIOError:
            time.sleep(0.005)
wait_for_end()
say("ended")
if "stays" in words:
    time.sleep(60)
shutil.rmtree(option("--private-folder"))
"""


class Rig:
    """A folder, and what the programs in it have said."""

    def __init__(self, log: Path) -> None:
        self.folder = RelayFolder.make()
        self.log = log

    def relay(self, folder: RelayFolder | None = None) -> RelayProcess:
        return RelayProcess(folder or self.folder, [sys.executable, "-c", PROGRAM])

    def said(self, word: str) -> list[int]:
        """Return the processes that said *word*."""
        lines = self.log.read_text() if self.log.exists() else ""
        return [int(pid) for pid in re.findall(rf"^{word} (\d+)$", lines, re.MULTILINE)]


@pytest.fixture
def rig(tmp_path, monkeypatch) -> Iterator[Rig]:
    """One whose programs are killed, and reaped, after the test."""
    monkeypatch.setenv("TEST_LOG", str(tmp_path / "log"))
    rig = Rig(tmp_path / "log")
    yield rig
    for pid in rig.said("started"):
        reap(pid)


def reap(pid: int) -> None:
    """Kill it, if it runs, and reap it, if it is a child of ours."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def wait_until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        gevent.sleep(0.005)


def test_the_folder_is_private_and_its_path_short(rig):
    """Whoever can enter it can answer for the application."""
    assert stat.S_IMODE(os.stat(rig.folder.path).st_mode) == 0o700
    assert rig.folder.endpoint == f"ipc://{rig.folder.path}/nodes"
    assert len(rig.folder.path) < 100
    rig.folder.remove()
    assert not os.path.exists(rig.folder.path)


def test_it_is_ready_and_ends_with_its_arbiter(rig):
    """The arbiter waits for it; nothing is left."""
    relay = rig.relay()
    assert not rig.folder.has_relay()
    assert not rig.folder.was_ready()
    assert relay.start(["--some", "words"])
    assert rig.folder.has_relay()
    wait_until(rig.folder.was_ready)
    relay.end(20)
    assert rig.said("ended") == rig.said("started")
    assert not rig.folder.has_relay()
    assert not os.path.exists(rig.folder.path)


def test_it_gets_its_words_a_session_and_none_of_our_variables(rig, monkeypatch):
    """Ctrl-C is not for it; what variables say is in the words already."""
    monkeypatch.setenv("GREENTX_CONNECT", "mongrel2://other@host")
    monkeypatch.setenv(FOLDER_VARIABLE, "1:/nowhere")
    relay = rig.relay()
    relay.start(["--some", "words"])
    wait_until(rig.folder.was_ready)
    words, environ, session = json.loads(Path(f"{rig.log}.words").read_text())
    assert words[:3] == ["--some", "words", "--until-eof"]
    assert not [name for name in environ if "GREENTX" in name]
    assert session == rig.said("started")[0]
    relay.end(20)


def test_its_words_go_to_the_log_file(rig, tmp_path):
    """Where gunicorn writes its own to a file."""
    relay = rig.relay()
    relay.start([], str(tmp_path / "error.log"))
    wait_until(lambda: (tmp_path / "error.log").read_text() == "hello\n")
    relay.end(20)


def test_it_is_started_once(rig):
    """Each new worker asks for it."""
    relay = rig.relay()
    assert relay.start([])
    assert not relay.start([])
    wait_until(rig.folder.was_ready)
    assert not relay.start([])
    relay.end(20)
    assert len(rig.said("started")) == 1


def test_one_that_died_is_started_again(rig):
    """In the same folder, where the workers look for it."""
    relay = rig.relay()
    relay.start([])
    wait_until(rig.folder.was_ready)
    reap(rig.said("started")[0])
    assert not rig.folder.has_relay()
    assert relay.start([])
    wait_until(lambda: len(rig.said("started")) == 2)
    assert rig.folder.has_relay()
    relay.end(20)
    assert rig.said("ended") == rig.said("started")[1:]


def test_one_that_fails_was_not_ready(rig):
    """So a worker can tell a wrong setting from a death."""
    relay = rig.relay()
    relay.start(["fails"])
    wait_until(lambda: not rig.folder.has_relay())
    assert not rig.folder.was_ready()
    relay.end(20)
    assert not os.path.exists(rig.folder.path)


def test_one_that_does_not_end_is_killed(rig):
    """After the seconds that it was given."""
    relay = rig.relay()
    relay.start(["stays"])
    wait_until(rig.folder.was_ready)
    relay.end(0.1)
    wait_until(lambda: not os.path.exists(rig.folder.path))
    (pid,) = rig.said("started")
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)


def test_it_ends_with_an_arbiter_that_is_killed(rig):
    """Whatever way that goes, and removes the folder by itself; a worker that left it does not keep it."""
    code = (
        "import os, sys, time\n"
        "from greentx.gunicorn.folder import RelayFolder\n"
        "from greentx.gunicorn.relay_process import RelayProcess\n"
        "relay = RelayProcess(RelayFolder(sys.argv[1]), [sys.executable, '-c', sys.argv[2]])\n"
        "relay.start([])\n"
        "if os.fork() == 0:\n"
        "    relay.leave()\n"
        "    time.sleep(60)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    arbiter = subprocess.Popen(
        [sys.executable, "-c", code, rig.folder.path, PROGRAM], stdout=subprocess.PIPE, start_new_session=True
    )
    assert arbiter.stdout is not None
    arbiter.stdout.readline()
    wait_until(rig.folder.was_ready)
    arbiter.kill()
    arbiter.wait()
    wait_until(lambda: rig.said("ended"))
    wait_until(lambda: not os.path.exists(rig.folder.path))
    os.killpg(arbiter.pid, signal.SIGKILL)  # the worker
    arbiter.stdout.close()
    rig.folder.close()


def test_it_stays_for_the_next_arbiter(rig):
    """SIGUSR2: the second one finds it by a variable, and the first one leaves without it."""
    first = rig.relay()
    first.start([])
    wait_until(rig.folder.was_ready)
    environ = {"GUNICORN_PID": str(os.getpid())}
    first.note_for_next(environ)
    second = RelayProcess.of_arbiter_before(environ, program=[sys.executable, "-c", PROGRAM])
    assert second is not None
    assert set(environ) == {"GUNICORN_PID"}
    assert not second.start([])
    first.end(20)
    assert rig.folder.has_relay()
    second.end(20)
    assert rig.said("ended") == rig.said("started")
    assert not os.path.exists(rig.folder.path)


@pytest.mark.parametrize("environ", [{}, {FOLDER_VARIABLE: "1:/tmp"}, {FOLDER_VARIABLE: "5:/tmp", "GUNICORN_PID": "6"}])
def test_a_variable_that_came_another_way_is_ignored(environ):
    """A gunicorn that an application of another one starts has a relay of its own."""
    assert RelayProcess.of_arbiter_before(dict(environ)) is None


def test_a_folder_that_has_gone_is_not_found():
    """It had ended by then."""
    environ = {FOLDER_VARIABLE: "5:/nonexistent/folder", "GUNICORN_PID": "5"}
    assert RelayProcess.of_arbiter_before(environ) is None


def test_workers_are_numbered(rig):
    """By all arbiters together."""
    assert rig.folder.newest_number() == 0
    other = RelayFolder(rig.folder.path)
    assert [rig.folder.new_number(), other.new_number(), rig.folder.new_number()] == [1, 2, 3]
    assert other.newest_number() == 3
    other.close()
    rig.folder.remove()
    assert rig.folder.newest_number() == 0


def test_one_worker_ends_for_a_new_relay(rig):
    """The others wait, and may try it only after a while, so that a relay that fails is not started over and over."""
    other = RelayFolder(rig.folder.path)
    assert rig.folder.claim(60)
    assert not other.claim(60)
    assert not rig.folder.claim(60)
    assert other.claim(0)
    assert not rig.folder.claim(60)
    other.close()
    rig.folder.remove()
    assert not rig.folder.claim(0)


def test_looking_does_not_keep_a_relay_from_starting(rig):
    """Workers look at the lock at any time."""
    relay = rig.relay()
    code = (
        "import sys\n"
        "from greentx.gunicorn.folder import RelayFolder\n"
        "folder = RelayFolder(sys.argv[1])\n"
        "print('looks', flush=True)\n"
        "while True: folder.has_relay()\n"
    )
    looking = subprocess.Popen([sys.executable, "-c", code, rig.folder.path], stdout=subprocess.PIPE)
    assert looking.stdout is not None
    looking.stdout.readline()
    for _ in range(50):
        lock = rig.folder.lock_relay()
        assert lock is not None
        os.close(lock)
    assert relay.start([])
    looking.kill()
    looking.wait()
    looking.stdout.close()
    wait_until(rig.folder.was_ready)
    relay.end(20)
