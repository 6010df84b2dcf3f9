"""gunicorn with our worker class, behind a real mongrel2: a relay, and workers that are its Nodes."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from itertools import pairwise

import gevent
import pytest
from gevent import socket
from gunicorn_rig import Gunicorn, url_of
from http_rig import Browser
from websocket_peer import HEAD, Peer
from workers_rig import APP, all_of, load, none_runs, relay_of, runs, wait_until, words_of, workers_of

from greentx import Connector

pytestmark = pytest.mark.mongrel2

FLOW_CONTROL = {"download.flow_control": 1}


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., Gunicorn]]:
    """Starts gunicorn in a folder with an application; it is ended after the test."""
    (tmp_path / "gunicorn_app.py").write_text(APP)
    with ExitStack() as stack:

        def start(url: str | None, *arguments: str) -> Gunicorn:
            gunicorn = Gunicorn(tmp_path, url, *arguments)
            stack.callback(gunicorn.close)
            stack.callback(lambda: sys.stdout.write("".join(gunicorn.lines)))  # shown where the test fails
            return gunicorn

        yield start


def serving(run, mongrel2, workers: int = 1, *options: str) -> Gunicorn:
    """Run gunicorn with so many workers, all of which serve by then."""
    gunicorn = run(url_of(mongrel2), "-w", str(workers), *options)
    for _ in range(workers):
        gunicorn.wait_for("greentx .* serves")
    return gunicorn


def ended(gunicorn: Gunicorn, number: int = signal.SIGTERM) -> str:
    """End it, see that nothing of it is left, and return all that it said."""
    processes = all_of(gunicorn.process.pid)
    gunicorn.process.send_signal(number)
    assert gunicorn.finish() == 0, "".join(gunicorn.lines)
    wait_until(partial(none_runs, processes))
    return "".join(gunicorn.lines)


def ask(port: int, path: str = "/") -> bytes:
    """Ask for a page over a new connection and return the whole answer."""
    with socket.create_connection(("127.0.0.1", port), 40) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: me\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def pid_of(answer: bytes) -> int:
    """Return which worker has answered."""
    return int(answer.split()[-1])


def open_websocket(mongrel2) -> Peer:
    """Return the peer of a new one, which echoes."""
    peer = Peer(mongrel2.port)
    assert peer.head() == HEAD
    peer.sock.settimeout(40)
    return peer


def say(peer: Peer, message: str) -> str | bytes:
    """Return what is answered to *message*."""
    peer.send(message)
    return peer.message()


def test_it_serves_logs_and_quits_gracefully(run, start_mongrel2):
    """gunicorn's own access log; SIGTERM lets what runs finish and tells the WebSockets."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(
        run, mongrel2, 1, "--access-logfile", "-", "--access-logformat", '%(m)s %(U)s %(s)s "%(a)s" %({x-many}o)s'
    )
    assert ask(mongrel2.port).startswith(b"HTTP/1.1 200 OK\r\n")
    assert ask(mongrel2.port, "/fails").startswith(b"HTTP/1.1 500 ")
    peer = open_websocket(mongrel2)
    assert say(peer, "x") == "x"
    slow = gevent.spawn(ask, mongrel2.port, "/slow")
    gunicorn.wait_for("slow has begun")
    gunicorn.process.send_signal(signal.SIGTERM)
    assert peer.closed() == (1001, "")
    peer.close(1001)
    assert slow.get(timeout=20).startswith(b"HTTP/1.1 200 OK\r\n")
    assert gunicorn.finish() == 0
    peer.sock.close()
    said = "".join(gunicorn.lines)
    assert re.search(r'^GET / 200 "me" False$', said, re.MULTILINE)
    assert re.search(r'^GET /slow 200 "me" False$', said, re.MULTILINE)
    assert re.search(r'^GET /ws 101 "-" -$', said, re.MULTILINE)
    assert "RuntimeError: a fault of the application" in said


def see_first_worker_replaced(run, mongrel2):
    """Its first worker ends by itself before it serves, and the next one serves."""
    gunicorn = run(url_of(mongrel2))
    first = gunicorn.wait_for(r"Booting worker with pid: (\d+)").group(1)
    gunicorn.wait_for(rf"Worker exiting \(pid: {first}\)")
    second = gunicorn.wait_for(r"Booting worker with pid: (\d+)").group(1)
    gunicorn.wait_for("greentx .* serves")
    assert pid_of(ask(mongrel2.port)) == int(second)
    assert "Traceback" not in ended(gunicorn)


def test_a_worker_that_is_told_to_quit_while_it_imports_is_replaced(run, start_mongrel2, tmp_path):
    """It ends as any other, so that gunicorn goes on with the next one."""
    once = """
import pathlib, signal
if not pathlib.Path("told").exists():
    pathlib.Path("told").touch()
    os.kill(os.getpid(), signal.SIGTERM)
"""
    (tmp_path / "gunicorn_app.py").write_text(
        APP.replace("\n", f"\n{once}\n", 1).replace("import pathlib", "import os, pathlib")
    )
    see_first_worker_replaced(run, start_mongrel2())


def test_a_worker_that_is_told_to_quit_as_soon_as_it_is_forked_is_replaced(run, start_mongrel2, tmp_path):
    """It handles no signals yet, and ends as any other all the same: nobody tells it twice."""
    (tmp_path / "gunicorn.conf.py").write_text("""
import os, pathlib, signal

def post_fork(server, worker):
    if not pathlib.Path("told").exists():
        pathlib.Path("told").touch()
        os.kill(os.getpid(), signal.SIGTERM)
""")
    see_first_worker_replaced(run, start_mongrel2())


def test_it_quits_at_once(run, start_mongrel2):
    """SIGQUIT does not wait for what runs."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, 1, "--graceful-timeout", "50")
    peer = open_websocket(mongrel2)
    with gevent.Timeout(30):
        gunicorn.process.send_signal(signal.SIGQUIT)
        assert peer.closed() == (1001, "")
        assert gunicorn.finish() == 0
    peer.sock.close()


def test_workers_are_replaced(run, start_mongrel2):
    """After max_requests, and on SIGHUP, another process serves; the relay is the same."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, 1, "--max-requests", "2")
    relay = relay_of(gunicorn.process.pid)
    first = [pid_of(ask(mongrel2.port)) for _ in range(2)]
    assert first[0] == first[1]
    gunicorn.wait_for(rf"Worker exiting \(pid: {first[0]}\)")
    second = pid_of(ask(mongrel2.port))  # it waits in the relay until there is one
    assert second != first[0]
    gunicorn.process.send_signal(signal.SIGHUP)
    gunicorn.wait_for(rf"Worker exiting \(pid: {second}\)")
    third = pid_of(ask(mongrel2.port))
    assert third not in (first[0], second)
    assert relay_of(gunicorn.process.pid) == relay
    ended(gunicorn)


def test_several_workers_carry_websockets(run, start_mongrel2, tmp_path):
    """Each is one worker's; the address may stand in the configuration file."""
    mongrel2 = start_mongrel2()
    config = tmp_path / "settings.py"
    config.write_text(f"raw_env = ['GREENTX_CONNECT={url_of(mongrel2)}']\nworkers = 3\n")
    gunicorn = run(None, "--config", str(config))
    for _ in range(3):
        gunicorn.wait_for("greentx .* serves")
    assert b"X-Many: True" in ask(mongrel2.port)
    peers = [open_websocket(mongrel2) for _ in range(9)]
    pids = [say(peer, "pid") for peer in peers]
    assert set(pids) == {str(pid) for pid in workers_of(gunicorn.process.pid)}
    for number in range(5):
        assert [say(peer, f"{number}") for peer in peers] == [f"{number}"] * 9
    assert [say(peer, "pid") for peer in peers] == pids
    gunicorn.process.send_signal(signal.SIGTERM)
    for peer in peers:
        assert peer.closed() == (1001, "")
        peer.sock.close()
    assert gunicorn.finish() == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_a_websocket_outlives_its_worker(run, start_mongrel2, workers):
    """SIGHUP: it goes on in a new one; so it does after kill -9."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, workers)
    peer = open_websocket(mongrel2)
    first = int(say(peer, "pid"))
    gunicorn.process.send_signal(signal.SIGHUP)
    for _ in range(workers):
        gunicorn.wait_for("Worker exiting")
    second = int(say(peer, "pid"))
    assert second != first
    os.kill(second, signal.SIGKILL)
    third = int(say(peer, "pid"))
    assert third not in (first, second)
    peer.sock.close()
    ended(gunicorn)


def test_workers_may_be_added_and_removed(run, start_mongrel2):
    """SIGTTIN and SIGTTOU: WebSockets stay open."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2)
    peer = open_websocket(mongrel2)
    first = say(peer, "pid")
    gunicorn.process.send_signal(signal.SIGTTIN)
    gunicorn.wait_for("greentx .* serves")
    assert say(peer, "pid") == first
    gunicorn.process.send_signal(signal.SIGTTOU)
    gunicorn.wait_for("Worker exiting")
    assert say(peer, "pid") != first
    peer.sock.close()
    ended(gunicorn)


def test_the_largest_message_can_be_said(run, start_mongrel2):
    """In the environment, as the address."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, 1, "--env", "GREENTX_MAX_MESSAGE_SIZE=2000000")
    peer = open_websocket(mongrel2)
    assert say(peer, "x" * 2000000) == "x" * 2000000
    peer.send("x" * 2000001)
    assert peer.closed()[0] == 1009
    peer.sock.close()
    ended(gunicorn)


def test_the_control_socket_is_closed_unless_it_is_asked_for(run, start_mongrel2):
    """By an address in the environment; it is the relay's, whatever the number of workers is, and says its port."""
    closed = serving(run, start_mongrel2())
    assert "control socket" not in ended(closed)
    opened = run(url_of(start_mongrel2()), "-w", "2", "--env", "GREENTX_CONTROL=127.0.0.1:0")
    port = int(opened.wait_for(r"control socket on port (\d+)").group(1))
    assert Connector(("127.0.0.1", port)).ping(5000)
    opened.wait_for("greentx .* serves")
    ended(opened)


def test_the_origins_can_be_said(run, start_mongrel2):
    """In the environment, too; a page of another site gets 403."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, 1, "--env", "GREENTX_ORIGINS=same, https://ours.example")
    for origin, status in (("http://localhost", b"101"), ("https://ours.example", b"101"), ("http://evil", b"403")):
        peer = Peer(mongrel2.port, "/ws", headers=f"Origin: {origin}\r\n")
        assert peer.head().startswith(b"HTTP/1.1 " + status)
        peer.sock.close()
    ended(gunicorn)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "GREENTX_CONNECT is not set"),
        ("tcp://x", "listener 'tcp://x' is not of the form mongrel2://"),
    ],
)
def test_without_an_address_gunicorn_ends(run, url, said):
    """It says why, in a line, and does not start workers for ever."""
    gunicorn = run(url)
    assert gunicorn.finish() == 3
    output = "".join(gunicorn.lines)
    assert said in output
    assert "Traceback" not in output


def test_a_relay_that_cannot_start_ends_gunicorn(run, start_mongrel2):
    """Its own line says why; exit code 3, as for all that cannot be."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        control = f"127.0.0.1:{other.getsockname()[1]}"
        gunicorn = run(url_of(start_mongrel2()), "-w", "3", "--env", f"GREENTX_CONTROL={control}")
        assert gunicorn.finish() == 3
    said = "".join(gunicorn.lines)
    assert f"cannot bind tcp://{control}: Address already in use" in said
    assert "the relay could not be started" in said
    assert "Traceback" not in said


def test_an_application_that_cannot_be_imported_ends_gunicorn(run, start_mongrel2, tmp_path):
    """With one traceback, though there are three workers."""
    (tmp_path / "gunicorn_app.py").write_text("raise RuntimeError('a slip')\n")
    gunicorn = run(url_of(start_mongrel2()), "-w", "3")
    arbiter = gunicorn.process.pid
    assert gunicorn.finish() == 3
    said = "".join(gunicorn.lines)
    assert said.count("RuntimeError: a slip") == 1
    assert not all_of(arbiter) - {arbiter}


@pytest.mark.parametrize("settings", [FLOW_CONTROL, {}])
def test_large_answers_of_three_workers_arrive_whole(run, start_mongrel2, settings):
    """Beyond the 102400 bytes that Mongrel2 takes without a credit, which the relay hands on."""
    mongrel2 = start_mongrel2(settings=settings)
    gunicorn = serving(run, mongrel2, 3)

    def browse() -> None:
        with Browser(mongrel2, timeout=40) as browser:
            for size in (102400, 102401, 500_000, 3_000_000, 20):
                assert len(browser.get(f"/size/{size}").body) == size

    browsers = [gevent.spawn(browse) for _ in range(4)]
    gevent.joinall(browsers, timeout=50, raise_error=True)
    assert all(one.ready() for one in browsers)
    ended(gunicorn)


def test_a_streamed_upload_to_several_workers_arrives(run, start_mongrel2):
    """All its pieces go to one of them."""
    mongrel2 = start_mongrel2(settings={**FLOW_CONTROL, "upload.stream": 1})
    gunicorn = serving(run, mongrel2, 3)
    for _ in range(4):
        with Browser(mongrel2, timeout=40) as browser:
            answer = browser.get("/upload", method="POST", body=b"x" * 1_500_000)
            assert (answer.status, answer.body) == (200, b"1500000")
    ended(gunicorn)


def test_a_stored_upload_is_deleted(run, start_mongrel2, tmp_path):
    """By the worker that answered."""
    store = f"{tmp_path}/up.XXXXXX"
    mongrel2 = start_mongrel2(settings={**FLOW_CONTROL, "upload.temp_store": store})
    (tmp_path / "gunicorn.conf.py").write_text(f"greentx_upload_store = {store!r}\n")
    gunicorn = serving(run, mongrel2, 2)
    for _ in range(4):
        with Browser(mongrel2, timeout=40) as browser:
            answer = browser.get("/upload", method="POST", body=b"x" * 1_500_000)
            assert (answer.status, answer.body) == (200, b"1500000")
    ended(gunicorn)
    assert not list(tmp_path.glob("up.*"))


@pytest.mark.parametrize("workers", [1, 3])
def test_no_request_fails_while_workers_are_replaced(run, start_mongrel2, workers):
    """SIGHUP under load, twice."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = serving(run, mongrel2, workers)
    with load(mongrel2) as browsers:
        for _ in range(2):
            browsers.more()
            old = workers_of(gunicorn.process.pid)
            gunicorn.process.send_signal(signal.SIGHUP)
            wait_until(partial(none_runs, old), 50)
        browsers.more()
    assert len(browsers.pids) >= 3
    ended(gunicorn)


def test_no_request_fails_where_workers_end_by_themselves(run, start_mongrel2):
    """``max_requests`` under load: two that reach it at once are replaced one after the other."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = serving(run, mongrel2, 2, "--max-requests", "50")
    with load(mongrel2) as browsers:
        wait_until(lambda: len(browsers.pids) >= 6, 50)
        browsers.more()
    ended(gunicorn)


def test_no_get_fails_where_a_worker_is_killed(run, start_mongrel2):
    """kill -9 under load: another worker answers."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = serving(run, mongrel2, 3)
    with load(mongrel2) as browsers:
        for _ in range(3):
            browsers.more()
            os.kill(workers_of(gunicorn.process.pid)[0], signal.SIGKILL)
            gunicorn.wait_for("greentx .* serves")
        browsers.more()
    ended(gunicorn)


@pytest.mark.parametrize("code", [3, 4])
def test_a_request_that_ends_its_worker_ends_no_other(run, start_mongrel2, code):
    """Though to gunicorn these codes say that no worker can start, and that it is to end."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, 1)
    ask(mongrel2.port, f"/exit/{code}")
    gunicorn.wait_for("greentx .* serves")
    assert ask(mongrel2.port).startswith(b"HTTP/1.1 200 OK")
    ended(gunicorn)


def test_an_application_that_cannot_be_imported_any_more_ends_nothing(run, start_mongrel2, tmp_path):
    """The old workers serve for as long as they may; once it is mended new ones do."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, 2, "--graceful-timeout", "15")
    application = tmp_path / "gunicorn_app.py"
    application.write_text("raise ValueError('while importing')\n")
    gunicorn.process.send_signal(signal.SIGHUP)
    for _ in range(2):
        gunicorn.wait_for("the new worker cannot import the application: while importing")
    assert ask(mongrel2.port).startswith(b"HTTP/1.1 200 OK")
    application.write_text(APP)
    gunicorn.process.send_signal(signal.SIGHUP)
    for _ in range(2):
        gunicorn.wait_for("greentx .* serves")
    assert ask(mongrel2.port).startswith(b"HTTP/1.1 200 OK")
    ended(gunicorn)


def test_a_worker_that_blocks_is_replaced(run, start_mongrel2):
    """gunicorn has not heard of it for its timeout; others answer meanwhile."""
    mongrel2 = start_mongrel2()
    gunicorn = serving(run, mongrel2, 2, "--timeout", "2")
    spins = gevent.spawn(ask, mongrel2.port, "/spin")
    gunicorn.wait_for("spins")
    blocked = gunicorn.wait_for(r"WORKER TIMEOUT \(pid:(\d+)\)").group(1)
    gunicorn.wait_for("greentx .* serves")
    for _ in range(6):
        assert pid_of(ask(mongrel2.port)) != int(blocked)
    spins.kill()
    ended(gunicorn)


def test_a_relay_that_is_killed_is_started_again(run, start_mongrel2):
    """One worker ends for it, so that the arbiter starts the next one, and the relay; the others serve that one."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = serving(run, mongrel2, 3)
    arbiter = gunicorn.process.pid
    says = re.compile(r"\[([\d-]+ [\d:]+) [^]]*\] \[(\d+)\] .* the relay has gone; this worker ends")
    for _ in range(2):
        workers = set(workers_of(arbiter))
        first = relay_of(arbiter)
        peer = open_websocket(mongrel2)
        spoken = len(gunicorn.lines)
        os.kill(first, signal.SIGKILL)
        gunicorn.wait_for(says.pattern)
        gunicorn.wait_for("greentx .* serves")
        served: set[int] = set()
        with gevent.Timeout(50):
            while len(served) < 3 or not served <= set(workers_of(arbiter)):
                answer = ask(mongrel2.port)
                assert answer.startswith(b"HTTP/1.1 200 ")
                served = {*(served & set(workers_of(arbiter))), pid_of(answer)}
        assert relay_of(arbiter) != first
        # What the relay had is lost: the next one does not know the WebSocket, which is told so when it speaks.
        peer.send("x")
        assert peer.closed()[0] in (1001, 1002, 1011, 1012, 1013)
        peer.sock.close()
        # Only those that said so; more than one only where the next relay was not there 5 s later.
        ends = [found for line in gunicorn.lines[spoken:] if (found := says.match(line))]
        assert workers - served == {int(found[2]) for found in ends}
        times = [datetime.fromisoformat(found[1]) for found in ends]
        assert all((after - before).total_seconds() >= 4 for before, after in pairwise(times))
    peer = open_websocket(mongrel2)
    assert say(peer, "x") == "x"
    peer.sock.close()
    ended(gunicorn)


def folders() -> set[str]:
    """Return those of ours."""
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("greentx-")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_nothing_is_left_of_it(run, start_mongrel2, number):
    """No process, no folder, no socket."""
    mongrel2 = start_mongrel2()
    before = folders()
    gunicorn = serving(run, mongrel2, 3)
    assert len(folders()) == len(before) + 1
    ended(gunicorn, number)
    assert folders() == before


def test_nothing_is_left_of_it_after_ctrl_c(run, start_mongrel2):
    """A terminal tells all of its processes; the relay ends last."""
    gunicorn = serving(run, start_mongrel2(), 3)
    arbiter = gunicorn.process.pid
    processes = all_of(arbiter)
    for pid in [arbiter, *workers_of(arbiter)]:
        os.kill(pid, signal.SIGINT)
    assert gunicorn.finish() == 0
    wait_until(partial(none_runs, processes))
    assert "Traceback" not in "".join(gunicorn.lines)


def test_nothing_is_left_of_it_after_its_arbiter_was_killed(run, start_mongrel2):
    """The workers see it, and so does the relay."""
    gunicorn = serving(run, start_mongrel2(), 2)
    processes = all_of(gunicorn.process.pid)
    gunicorn.process.kill()
    gunicorn.process.wait()
    wait_until(partial(none_runs, processes))


def test_an_arbiter_that_takes_anothers_place_uses_its_relay(run, start_mongrel2):
    """SIGUSR2 under load: no request fails, and a WebSocket outlives the change."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = serving(run, mongrel2, 2)
    arbiter = gunicorn.process.pid
    relay = relay_of(arbiter)
    peer = open_websocket(mongrel2)
    first = say(peer, "pid")
    with load(mongrel2, browsers=4) as browsers:
        browsers.more()
        gunicorn.process.send_signal(signal.SIGUSR2)
        new = int(gunicorn.wait_for(r"\[(\d+)\] \[INFO\] Starting gunicorn").group(1))
        try:
            for _ in range(2):
                gunicorn.wait_for("greentx .* serves")
            browsers.more()
            os.kill(arbiter, signal.SIGTERM)
            gunicorn.wait_for(r"Shutting down: Master")
            wait_until(lambda: not runs(arbiter))
            browsers.more()
            assert runs(relay)
            assert say(peer, "pid") not in (first, "")
            browsers.end()
        finally:
            os.kill(new, signal.SIGTERM)
    assert peer.closed() == (1001, "")
    peer.sock.close()
    gunicorn.finish()
    wait_until(lambda: not runs(new) and not runs(relay))


def test_workers_may_serve_a_relay_elsewhere(run, start_mongrel2):
    """Then gunicorn starts none."""
    mongrel2 = start_mongrel2()
    first = serving(run, mongrel2, 1)
    relay = relay_of(first.process.pid)
    (endpoint,) = (word for word in words_of(relay) if word.startswith("ipc://"))
    second = run(None, "-w", "2", "--env", f"GREENTX_RELAY={endpoint}")
    for _ in range(2):
        second.wait_for("greentx .* serves the relay at ipc://")
    assert not [pid for pid in all_of(second.process.pid) if "relay" in words_of(pid)]
    pids = {pid_of(ask(mongrel2.port)) for _ in range(9)}
    assert pids == {*workers_of(first.process.pid), *workers_of(second.process.pid)}
    ended(second)
    assert pid_of(ask(mongrel2.port)) in workers_of(first.process.pid)
    ended(first)


def test_gunicorns_own_port_refuses(run, start_mongrel2):
    """Nobody would serve what it accepted; also after the workers were replaced."""
    mongrel2 = start_mongrel2()
    gunicorn = run(url_of(mongrel2))
    port = int(gunicorn.wait_for(r"Listening at: http://127.0.0.1:(\d+)").group(1))
    gunicorn.wait_for("greentx .* serves")
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
        gunicorn.process.send_signal(signal.SIGHUP)
        gunicorn.wait_for("greentx .* serves")
    ended(gunicorn)


def test_settings_of_the_configuration_file_count(run, start_mongrel2, tmp_path):
    """Under their names in gunicorn's own file; the environment comes behind it, --env in front of it."""
    mongrel2 = start_mongrel2()
    (tmp_path / "gunicorn.conf.py").write_text(
        f"greentx_connect = [{url_of(mongrel2)!r}]\n"
        "greentx_max_message_size = 1000\n"
        "greentx_origins = ['same', 'https://ours.example']\n"
        "greentx_control = '127.0.0.1:0'\n"
        "greentx_max_queue_bytes = 1_000_000\n"
        "greentx_max_pending_bytes = '2000000'\n"
        "greentx_ping_timeout = 2.5\n"
        f"greentx_upload_store = {str(tmp_path / 'up.XXXXXX')!r}\n"
    )
    gunicorn = run("mongrel2://other@127.0.0.1", "--env", "GREENTX_MAX_MESSAGE_SIZE=2000")
    gunicorn.wait_for(r"control socket on port \d+")
    gunicorn.wait_for("greentx .* serves")
    for origin, status in (("https://ours.example", b"101"), ("http://evil", b"403")):
        peer = Peer(mongrel2.port, "/ws", headers=f"Origin: {origin}\r\n")
        assert peer.head().startswith(b"HTTP/1.1 " + status)
        if status == b"101":
            peer.send("x" * 2000)
            assert peer.message() == "x" * 2000
            peer.send("x" * 2001)
            assert peer.closed()[0] == 1009
        peer.sock.close()
    ended(gunicorn)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "greentx_upload_stroe = '/x/upXXXXXX'",
            "greentx_upload_stroe is not a setting: did you mean greentx_upload_store?",
        ),
        (
            "greentx_ping_timeout = 'often'",
            "greentx_ping_timeout is 'often': use a number of seconds; 0 sends no pings",
        ),
        (
            "greentx_max_queue_bytes = 0",
            "greentx_max_queue_bytes is 0: use a whole number of bytes, 1 or more",
        ),
        (
            "greentx_mongrel2_settings = {}",
            "greentx_mongrel2_settings is {}: workers of gunicorn start no mongrel2",
        ),
        ("greentx_upload_store = 'up'", "upload_store 'up' is not an absolute path"),
        ("raw_env = ['GREENTX_ORIGIN=same']", "GREENTX_ORIGIN is not a setting: did you mean GREENTX_ORIGINS?"),
    ],
)
def test_a_setting_that_cannot_be_ends_gunicorn_and_is_named(run, tmp_path, line, said):
    """In one line, and no worker is started again and again."""
    (tmp_path / "gunicorn.conf.py").write_text(line + "\n")
    gunicorn = run("mongrel2://a@127.0.0.1")
    assert gunicorn.finish() == 3
    output = "".join(gunicorn.lines)
    assert said in output
    assert "Traceback" not in output
