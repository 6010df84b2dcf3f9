"""python-socketio and flask-sock, unchanged, on the three workers of ``greentx serve`` and of gunicorn."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clients_rig import SOCKETIO_CLIENTS, browsing, talking
from front_ends import FrontEnd
from gunicorn_rig import Gunicorn, url_of
from http_rig import Browser
from spoken_program import SpokenProgram
from test_wsgi_applications import run_client
from websocket_peer import HEAD, Peer
from workers_rig import all_of, none_runs, wait_until, workers_of

import greentx

pytestmark = pytest.mark.timeout(180)

FOLDER = Path(__file__).parent
APP = "wsgi_node:libraries()"


def by_greentx(front_end: FrontEnd, folder: Path, stack: ExitStack) -> SimpleNamespace:
    """``greentx serve --workers 3``."""
    environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent)}
    options = ["--bind", "127.0.0.1:0", "--workers", "3", "--app-dir", str(FOLDER)]
    options += ["--front-end", front_end.name]
    program = SpokenProgram([sys.executable, "-m", "greentx", "serve", APP, *options], folder, environ)
    stack.callback(program.close)
    port = program.wait_for(r"serving wsgi_node.* on http://127.0.0.1:(\d+)/").group(1)
    return SimpleNamespace(program=program, port=int(port))


def by_gunicorn(front_end: FrontEnd, folder: Path, stack: ExitStack) -> SimpleNamespace:
    """``gunicorn -w 3``, behind a front end that was there before."""
    front = stack.enter_context(front_end.started())
    program = Gunicorn(folder, url_of(front), "-w", "3", app=APP)
    stack.callback(program.close)
    return SimpleNamespace(program=program, port=front.port)


# Each behind another front end: a combination takes half a minute.
SITES = (
    pytest.param((by_greentx, "edge"), id="greentx-edge"),
    pytest.param((by_gunicorn, "mongrel2"), id="gunicorn-mongrel2", marks=pytest.mark.mongrel2),
)


@pytest.fixture(scope="module", params=SITES)
def site(request: Any, tmp_path_factory: Any) -> Iterator[SimpleNamespace]:
    """One of both, with three workers that serve: its ``program``, and the ``port`` of its front end."""
    with ExitStack() as stack:
        serve, front_end = request.param
        made = serve(FrontEnd(front_end), tmp_path_factory.mktemp("site"), stack)
        stack.callback(lambda: sys.stdout.write("".join(made.program.lines)))  # shown where it fails
        for _ in range(3):
            made.program.wait_for("greentx .* serves")
        yield made
        processes = all_of(made.program.process.pid)
        made.program.process.terminate()
        assert made.program.finish() == 0
        wait_until(partial(none_runs, processes))
        assert "Traceback" not in "".join(made.program.lines)


@pytest.mark.parametrize("transports", [["polling"], ["websocket"], ["polling", "websocket"]], ids="-".join)
def test_socketio_runs_unchanged(transports: list[str], site: SimpleNamespace) -> None:
    """All requests of one session go to the worker that has it; each worker has some sessions."""
    printed = run_client(SOCKETIO_CLIENTS % {"port": site.port, "transports": transports}, timeout=100)
    assert {int(pid) for pid in printed.split()} == set(workers_of(site.program.process.pid))


def test_a_broadcast_of_one_worker_reaches_the_clients_of_all(site: SimpleNamespace) -> None:
    """By a message of a WebSocket, with either contract, and by a POST."""
    workers = {str(pid) for pid in workers_of(site.program.process.pid)}
    with ExitStack() as stack:
        peers = []
        for number in range(12):
            peers.append(Peer(site.port, ("/hearing/", "/flask-sock-hearing/")[number % 2]))
            stack.callback(peers[-1].sock.close)
        names = []
        for peer in peers:
            assert peer.head() == HEAD
            names.append(str(peer.message()))
        assert set(names) == workers
        for number in (0, 1):
            peers[number].send("hello")
            assert [peer.message() for peer in peers] == [f"{names[number]} hello"] * 12
        with Browser(site) as browser:
            worker, reached = browser.get("/hearing/", method="POST", body=b"posted").body.decode().split()
        assert worker in workers and reached == "12"
        assert [peer.message() for peer in peers] == ["posted"] * 12


def test_flask_sock_outlives_a_rolling_restart(site: SimpleNamespace) -> None:
    """Each message is answered once and in order, before and behind it; no request of browsers fails."""
    arbiter = site.program.process.pid
    old = workers_of(arbiter)
    with browsing(site, 2) as answers, talking(site, 12, "/flask-sock-counting/") as talks:
        assert {int(talk.answers[0][0]) for talk in talks} == set(old)
        site.program.process.send_signal(signal.SIGHUP)
        wait_until(partial(none_runs, old), 50)
        wait_until(lambda: len(workers_of(arbiter)) == 3)
        new = set(workers_of(arbiter))
        wait_until(lambda: {int(pid) for pid in answers[-20:]} <= new)
        wait_until(lambda: all(int(talk.answers[-1][0]) in new for talk in talks))
    for talk in talks:
        numbers = [str(number + 1) for number in range(len(talk.answers))]
        assert [answer[3] for answer in talk.answers] == numbers
        assert [answer[2] for answer in talk.answers] == numbers
        assert (talk.answers[0][1], talk.answers[-1][1]) == ("False", "True")
