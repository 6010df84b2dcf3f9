"""``greentx demo``: a chat on any machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import gevent
import gevent.subprocess
import pytest
from gevent.subprocess import PIPE

from greentx.cli import main

ROOT = Path(__file__).parents[1]


def page(url: str) -> bytes:
    """Return the page at *url*; until its front end is back it is asked for again."""
    with gevent.Timeout(20):
        while True:
            try:
                return bytes(gevent.get_hub().threadpool.apply(lambda: urllib.request.urlopen(url).read()))
            except OSError:
                gevent.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "kind", "number"),
    [
        ((), "embedded front end", signal.SIGINT),
        ((), "embedded front end", signal.SIGTERM),
        pytest.param(("--mongrel2",), "mongrel2", signal.SIGTERM, marks=pytest.mark.mongrel2),
    ],
)
def test_the_chat_says_what_to_try_and_its_front_end_is_started_again(options, kind, number):
    """Where somebody has killed it; both end at Ctrl-C, without a traceback."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with gevent.subprocess.Popen(
        [sys.executable, "-m", "greentx", "demo", *options], env=environ, stdout=PIPE, stderr=PIPE, text=True
    ) as chat:
        try:
            url, shown = chat.stdout.readline().strip().split(" ", 1)
            assert url.startswith("http://127.0.0.1:")
            assert shown == f"({kind})"
            tips = [chat.stdout.readline() for _ in range(3)]
            assert "Open it in two windows" in tips[0]
            assert "Ctrl-C ends both" in tips[2]
            before = page(url)
            assert b"<title>greentx chat</title>" in before
            pid = int(re.findall(r"kill -9 (\d+)", tips[1])[0])
            os.kill(pid, signal.SIGKILL)
            while "was started again" not in (line := chat.stderr.readline()):
                assert line
            assert page(url) == before
            chat.send_signal(number)
            said = chat.communicate(timeout=40)[1]
        finally:
            chat.kill()
    assert (chat.returncode, said) == (0, "")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--mongrel2"], 1, "greentx: there is no mongrel2 on the PATH; install it"),
        (["--host", "nowhere.invalid"], 1, "greentx: 'nowhere.invalid' is not an address to listen on"),
        (["--port", "65536"], 2, "greentx demo: argument --port: 65536 is not a port"),
    ],
)
def test_what_keeps_it_from_running_is_one_line(tmp_path, options, code, message):
    """Each names what is wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "greentx", "demo", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert done.stderr.startswith(message)


def test_its_help_has_an_example(capsys):
    """And says what it is."""
    with pytest.raises(SystemExit) as info:
        main(["demo", "--help"])
    assert info.value.code == 0
    said = capsys.readouterr().out
    assert "Run a chat" in said
    assert "greentx demo --port 8000" in said
