"""gunicorn with our worker class, behind a real mongrel2."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket
from gunicorn_rig import Gunicorn, url_of
from http_rig import Browser
from websocket_peer import HEAD, Peer

from greentx import Connector
from greentx.errors import RemoteProtocolError
from greentx.protocol.http1_parser import ResponseParser

pytestmark = pytest.mark.mongrel2

APP = """
import os, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/ws":
        ws = environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            ws.send(message)
        return []
    if path == "/slow":
        print("slow has begun", flush=True)
        time.sleep(0.4)  # the handler's work takes a while
    if path == "/upload":
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", "7")])
        return [b"%07d" % len(body)]
    if path.startswith("/size/"):
        size = int(path.split("/")[2])
        start_response("200 OK", [("Content-Length", str(size)), ("X-Pid", str(os.getpid()))])
        return [b"x" * size]
    if path == "/fails":
        raise RuntimeError("a fault of the application")
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Many", str(environ["wsgi.multiprocess"]))])
    return [b"pid %d" % os.getpid()]
"""


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., Gunicorn]]:
    """Starts gunicorn in a folder with an application; it is ended after the test."""
    (tmp_path / "gunicorn_app.py").write_text(APP)
    with ExitStack() as stack:

        def start(url: str | None, *arguments: str) -> Gunicorn:
            gunicorn = Gunicorn(tmp_path, url, *arguments)
            stack.callback(gunicorn.close)
            return gunicorn

        yield start


def ask(port: int, path: str = "/") -> bytes:
    """Ask for a page over a new connection and return the whole answer."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: me\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_it_serves_logs_and_quits_gracefully(run, start_mongrel2):
    """gunicorn's own access log; SIGTERM lets what runs finish and tells the WebSockets."""
    mongrel2 = start_mongrel2()
    gunicorn = run(
        url_of(mongrel2), "--access-logfile", "-", "--access-logformat", '%(m)s %(U)s %(s)s "%(a)s" %({x-many}o)s'
    )
    gunicorn.wait_for("greentx .* serves mongrel2://")
    assert ask(mongrel2.port).startswith(b"HTTP/1.1 200 OK\r\n")
    assert ask(mongrel2.port, "/fails").startswith(b"HTTP/1.1 500 ")
    peer = Peer(mongrel2.port)
    assert peer.head() == HEAD
    peer.send("x")
    assert peer.message() == "x"
    slow = gevent.spawn(ask, mongrel2.port, "/slow")
    gunicorn.wait_for("slow has begun")
    gunicorn.process.send_signal(signal.SIGTERM)
    assert peer.closed() == (1001, "")
    peer.close(1001)
    assert slow.get(timeout=10).startswith(b"HTTP/1.1 200 OK\r\n")
    assert gunicorn.finish() == 0
    peer.sock.close()
    said = "".join(gunicorn.lines)
    assert re.search(r'^GET / 200 "me" False$', said, re.MULTILINE)
    assert re.search(r'^GET /slow 200 "me" False$', said, re.MULTILINE)
    assert re.search(r'^GET /ws 101 "-" -$', said, re.MULTILINE)
    assert "RuntimeError: a fault of the application" in said


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
    mongrel2 = start_mongrel2()
    gunicorn = run(url_of(mongrel2))
    first = gunicorn.wait_for(r"Booting worker with pid: (\d+)").group(1)
    gunicorn.wait_for(rf"Worker exiting \(pid: {first}\)")
    second = gunicorn.wait_for(r"Booting worker with pid: (\d+)").group(1)
    gunicorn.wait_for("greentx .* serves")
    assert ask(mongrel2.port).endswith(f"pid {second}".encode())
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0
    assert "Traceback" not in "".join(gunicorn.lines)


def with_a_websocket(run, start_mongrel2, *options):
    """Run gunicorn behind a mongrel2; return it and the peer of a WebSocket."""
    mongrel2 = start_mongrel2()
    gunicorn = run(url_of(mongrel2), *options)
    gunicorn.wait_for("greentx .* serves")
    peer = Peer(mongrel2.port)
    assert peer.head() == HEAD
    return gunicorn, peer


def test_it_quits_at_once(run, start_mongrel2):
    """SIGQUIT does not wait for what runs."""
    gunicorn, peer = with_a_websocket(run, start_mongrel2, "--graceful-timeout", "15")
    with gevent.Timeout(10):
        gunicorn.process.send_signal(signal.SIGQUIT)
        assert peer.closed() == (1001, "")
        assert gunicorn.finish() == 0
    peer.sock.close()


def test_workers_are_replaced(run, start_mongrel2):
    """After max_requests, and on SIGHUP, another process serves."""
    mongrel2 = start_mongrel2()
    gunicorn = run(url_of(mongrel2), "--max-requests", "2")
    gunicorn.wait_for("greentx .* serves")
    first = [ask(mongrel2.port).split()[-1] for _ in range(2)]
    assert first[0] == first[1]
    gunicorn.wait_for("greentx .* serves")
    second = ask(mongrel2.port).split()[-1]
    assert second != first[0]
    gunicorn.process.send_signal(signal.SIGHUP)
    for _ in range(2):  # in whichever order
        gunicorn.wait_for(rf"greentx .* serves|Worker exiting \(pid: {second.decode()}\)")
    third = ask(mongrel2.port).split()[-1]
    assert third not in (first[0], second)
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


def test_several_workers_refuse_websockets(run, start_mongrel2, tmp_path):
    """Over one handler entry their messages would scatter; the address may stand in the configuration file."""
    mongrel2 = start_mongrel2()
    config = tmp_path / "settings.py"
    config.write_text(f"raw_env = ['GREENTX_CONNECT={url_of(mongrel2)}']\nworkers = 2\n")
    gunicorn = run(None, "--config", str(config))
    gunicorn.wait_for("greentx .* serves")
    gunicorn.wait_for("greentx .* serves")
    pids = set()
    with gevent.Timeout(20):
        while len(pids) < 2:
            answer = ask(mongrel2.port)
            assert b"X-Many: True" in answer
            pids.add(answer.split()[-1])
    peer = Peer(mongrel2.port)
    assert peer.head().startswith(b"HTTP/1.1 503 ")
    assert b"several processes share one handler entry of Mongrel2" in peer.rest()
    peer.sock.close()
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0
    # Requests are served, and what cannot be kept is said once, by the first worker, and where it happens.
    said = "".join(gunicorn.lines)
    assert said.count("2 workers share one handler entry of Mongrel2: WebSockets need one worker") == 1
    assert said.count("answers to pipelined requests may be out of order or mixed into each other") == 1
    assert "[WARNING] a WebSocket at '/ws' is refused: several processes share one handler entry" in said


def test_workers_that_were_added_count(run, start_mongrel2):
    """gunicorn was told of one, and then of more, by a signal; when they have gone WebSockets are served again."""
    mongrel2 = start_mongrel2()

    def asks_for_websocket() -> bytes:
        peer = Peer(mongrel2.port)
        head = peer.head()
        peer.sock.close()
        return head

    gunicorn = run(url_of(mongrel2))
    gunicorn.wait_for("greentx .* serves")
    assert asks_for_websocket() == HEAD
    gunicorn.process.send_signal(signal.SIGTTIN)
    gunicorn.wait_for("greentx .* serves")
    for _ in range(2):  # whichever it gets to
        assert asks_for_websocket().startswith(b"HTTP/1.1 503 ")
    gunicorn.process.send_signal(signal.SIGTTOU)
    gunicorn.wait_for("Worker exiting")
    assert asks_for_websocket() == HEAD
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


def test_the_largest_message_can_be_said(run, start_mongrel2):
    """In the environment, as the address."""
    gunicorn, peer = with_a_websocket(run, start_mongrel2, "--env", "GREENTX_MAX_MESSAGE_SIZE=2000000")
    peer.send("x" * 2000000)
    assert peer.message() == "x" * 2000000
    peer.send("x" * 2000001)
    assert peer.closed()[0] == 1009
    peer.sock.close()
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


def test_the_control_socket_is_closed_unless_it_is_asked_for(run, start_mongrel2):
    """By an address in the environment; it says its port."""
    closed = run(url_of(start_mongrel2()))
    closed.wait_for("serves mongrel2://")
    closed.process.terminate()
    assert closed.finish() == 0
    assert "control socket" not in "".join(closed.lines)
    opened = run(url_of(start_mongrel2()), "--env", "GREENTX_CONTROL=127.0.0.1:0")
    port = int(opened.wait_for(r"control socket on port (\d+)").group(1))
    assert Connector(("127.0.0.1", port)).ping(5000)
    opened.process.terminate()
    assert opened.finish() == 0


def test_the_origins_can_be_said(run, start_mongrel2):
    """In the environment, too; a page of another site gets 403."""
    mongrel2 = start_mongrel2()
    gunicorn = run(url_of(mongrel2), "--env", "GREENTX_ORIGINS=same, https://ours.example")
    gunicorn.wait_for("greentx .* serves")
    for origin, status in (("http://localhost", b"101"), ("https://ours.example", b"101"), ("http://evil", b"403")):
        peer = Peer(mongrel2.port, "/ws", headers=f"Origin: {origin}\r\n")
        assert peer.head().startswith(b"HTTP/1.1 " + status)
        peer.sock.close()
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [(None, "GREENTX_CONNECT is not set"), ("tcp://x", "listener 'tcp://x' is not of the form mongrel2://")],
)
def test_without_an_address_gunicorn_ends(run, url, said):
    """It says why, in a line, and does not start workers for ever."""
    gunicorn = run(url)
    assert gunicorn.finish() == 3
    output = "".join(gunicorn.lines)
    assert said in output
    assert "Traceback" not in output


FLOW_CONTROL = {"download.flow_control": 1}


def several(run, mongrel2, count: int, *options: str) -> Gunicorn:
    """Run gunicorn with so many workers, all of which serve by then."""
    gunicorn = run(url_of(mongrel2), "-w", str(count), *options)
    for _ in range(count):
        gunicorn.wait_for("greentx .* serves")
    return gunicorn


def ended(gunicorn: Gunicorn, within: float = 5.0) -> str:
    """End it, and return all that it said."""
    began = time.monotonic()
    gunicorn.process.terminate()
    assert gunicorn.finish() == 0
    assert time.monotonic() - began < within
    return "".join(gunicorn.lines)


def all_of(*greenlets: gevent.Greenlet) -> list[Any]:
    """Wait for greenlets; an error of one is an error of the test."""
    gevent.joinall(greenlets, timeout=40, raise_error=True)
    return [one.get(block=False) for one in greenlets]


@pytest.mark.parametrize("settings", [FLOW_CONTROL, {}])
def test_answers_of_two_workers_on_kept_connections_do_not_stall(run, start_mongrel2, settings):
    """1,000 of 20 KB over 4 connections: nobody waits for a notice that the other worker got."""
    mongrel2 = start_mongrel2(settings=settings)
    gunicorn = several(run, mongrel2, 2)

    def browse() -> list[float]:
        seconds = []
        with Browser(mongrel2, timeout=30) as browser:
            for _ in range(250):
                began = time.perf_counter()
                assert len(browser.get("/size/20000").body) == 20000
                seconds.append(time.perf_counter() - began)
        return seconds

    with Browser(mongrel2) as browser:
        browser.get("/")  # the first answer of a mongrel2 takes half a second
    percentiles, longest = [], []
    # Machines are busy: the best of some.
    while not percentiles or ((min(percentiles) >= 0.02 or min(longest) >= 0.25) and len(percentiles) < 5):
        seconds = sorted(one for browser in all_of(*(gevent.spawn(browse) for _ in range(4))) for one in browser)
        percentiles.append(seconds[990])
        longest.append(seconds[-1])
    # A wait for what another one got was half a second, or for good, at every tenth answer.
    assert min(longest) < 0.25
    assert min(percentiles) < 0.02
    ended(gunicorn)


@pytest.mark.parametrize("settings", [FLOW_CONTROL, {}])
def test_large_answers_of_three_workers_arrive_whole(run, start_mongrel2, settings):
    """Beyond the 102400 bytes that Mongrel2 takes without a credit, which another worker may get."""
    mongrel2 = start_mongrel2(settings=settings)
    gunicorn = several(run, mongrel2, 3)

    def browse() -> None:
        with Browser(mongrel2, timeout=20) as browser:
            for size in (102400, 102401, 500_000, 3_000_000, 20):
                assert len(browser.get(f"/size/{size}").body) == size

    all_of(*(gevent.spawn(browse) for _ in range(4)))
    ended(gunicorn)


def test_a_slow_browser_gets_all_from_three_workers(run, start_mongrel2):
    """With flow control: those credits that a worker sees tell how far the browser is; others' requests go on."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = several(run, mongrel2, 3)
    size = 4_000_000

    def read_slowly() -> None:
        with Browser(mongrel2, timeout=20, receive_buffer=16384) as browser:
            browser.ask(f"/size/{size}")
            received = 0
            while received < size:
                data = browser.socket.recv(65536)
                assert data, f"ended after {received} bytes"
                received += len(data)
                gevent.sleep(len(data) / 4_000_000)  # it reads 4 MB a second

    slow = [gevent.spawn(read_slowly) for _ in range(3)]
    with Browser(mongrel2) as browser:
        while not all(one.ready() for one in slow):
            assert browser.get("/").status == 200
    all_of(*slow)
    ended(gunicorn)


def test_requests_that_come_one_after_another_are_spread(run, start_mongrel2):
    """Each brings two notices, which Mongrel2 hands out in turn as well: all would come to one of three workers."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = several(run, mongrel2, 3)
    pids = [ask(mongrel2.port).split()[-1] for _ in range(40)]
    assert len(set(pids)) == 3
    ended(gunicorn)


def test_three_idle_workers_end_at_once(run, start_mongrel2):
    """They wait for no credit that another one got."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    took: list[float] = []
    # It is 0.03 to 0.1 s. What follows is Python's own end, and gunicorn's, which looks for it each 0.1 s. Where the
    # machine is busy: the best of some.
    while not took or (min(took) >= 0.5 and len(took) < 5):
        gunicorn = several(run, mongrel2, 3)
        for _ in range(12):
            ask(mongrel2.port)
        began = time.monotonic()
        gunicorn.process.terminate()
        for _ in range(3):
            gunicorn.wait_for("Worker exiting")
        took.append(time.monotonic() - began)
        assert gunicorn.finish() == 0
    assert min(took) < 0.5, took


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost_while_workers_are_replaced(run, start_mongrel2, workers):
    """Under load, on SIGHUP: each is answered by whoever pulled it, and the last to leave waits for the next."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = several(run, mongrel2, workers)
    over = False
    answered = 0

    def browse(number: int) -> None:
        nonlocal answered
        with Browser(mongrel2, timeout=10) as browser:
            count = 0
            while not over:
                count += 1
                assert browser.get(f"/size/{number * 1000 + count % 1000}").status == 200, (number, count)
                answered += 1

    browsers = [gevent.spawn(browse, number) for number in range(1, 17)]
    for _ in range(2):
        wanted = answered + 100
        while answered < wanted and not any(one.ready() for one in browsers):
            gevent.sleep(0.005)
        gunicorn.process.send_signal(signal.SIGHUP)
        for _ in range(workers):
            gunicorn.wait_for("Worker exiting")
    over = True
    all_of(*browsers)
    ended(gunicorn)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_large_answer_is_cut_off_where_all_of_gunicorn_ends(run, start_mongrel2, workers):
    """Under load, on SIGTERM: the last to leave goes on to pull the credits, and refuses what comes meanwhile."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    over = False
    whole = 0
    cut_off: list[int] = []

    def browse() -> None:
        nonlocal whole
        while not over:
            with Browser(mongrel2, timeout=30) as browser:
                closes = False
                while not over and not closes:
                    browser.ask("/size/200000")
                    answer = ResponseParser()
                    try:
                        browser.receive(parser=answer)
                    except RemoteProtocolError:
                        cut_off.append(len(answer.body))
                        return
                    whole += answer.status == 200
                    closes = answer.status == 503
                    assert not closes or answer.headers.first("connection") == "close"

    browsers = [gevent.spawn(browse) for _ in range(8)]
    for _ in range(3):
        gunicorn = several(run, mongrel2, workers)
        wanted = whole + 50
        while whole < wanted and not cut_off:
            gevent.sleep(0.005)
        ended(gunicorn)
        assert not cut_off
    # What nobody has pulled is answered by the next one.
    gunicorn = several(run, mongrel2, workers)
    over = True
    all_of(*browsers)
    assert not cut_off
    ended(gunicorn)


def test_two_gunicorns_that_are_told_share_one_entry(run, start_mongrel2, tmp_path):
    """One worker each: neither waits for what the other one hears, and both refuse WebSockets."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    (tmp_path / "gunicorn.conf.py").write_text("greentx_shared = True\n")
    both = [several(run, mongrel2, 1), several(run, mongrel2, 1)]
    for _ in range(8):  # both have heard by then that there are credits
        ask(mongrel2.port)
    pids = set()
    # Longer than the second after which a worker that believes to be alone relies on them.
    until = time.monotonic() + 2.0
    with Browser(mongrel2) as browser:
        while time.monotonic() < until:
            answer = browser.get("/size/20000")
            assert (answer.status, len(answer.body)) == (200, 20000)
            pids.add(answer.headers["x-pid"])
        assert len(browser.get("/size/400000").body) == 400_000
    assert len(pids) == 2
    assert b"X-Many: True" in ask(mongrel2.port)
    for _ in range(2):  # whichever it gets to
        peer = Peer(mongrel2.port)
        assert peer.head().startswith(b"HTTP/1.1 503 ")
        peer.sock.close()
    for gunicorn in both:
        said = ended(gunicorn)
        assert said.count("gunicorn and other programs share one handler entry of Mongrel2") == 1


def test_a_worker_that_shares_its_entry_leaves_at_max_requests(run, start_mongrel2):
    """It waits for no sibling: who else pulls is not its gunicorn's."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = several(run, mongrel2, 1, "--max-requests", "3", "--env", "GREENTX_SHARED=yes")
    for _ in range(3):
        ask(mongrel2.port)
    with gevent.Timeout(10):
        gunicorn.wait_for("greentx .* serves")
    ended(gunicorn)


def test_a_kept_connection_gets_large_answers_of_the_next_worker(run, start_mongrel2):
    """Mongrel2 says once for each connection that it gives credits, and said so to the worker before."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    gunicorn = several(run, mongrel2, 1)
    with Browser(mongrel2) as browser:
        pid = int(browser.get("/").body.split()[-1])
        os.kill(pid, signal.SIGKILL)
        gunicorn.wait_for("greentx .* serves")
        assert len(browser.get("/size/400000").body) == 400_000
    ended(gunicorn)


def test_an_arbiter_that_takes_anothers_place_knows_its_workers(run, start_mongrel2):
    """SIGUSR2: while both are there WebSockets are refused, and large answers arrive; none is lost at the change."""
    mongrel2 = start_mongrel2(settings=FLOW_CONTROL)
    old = several(run, mongrel2, 1)
    arbiter = old.process.pid
    old.process.send_signal(signal.SIGUSR2)
    new = int(old.wait_for(r"\[(\d+)\] \[INFO\] Starting gunicorn").group(1))
    try:
        old.wait_for("greentx .* serves")
        for _ in range(2):
            with Browser(mongrel2) as browser:
                for size in (300_000, 20, 300_000):
                    assert len(browser.get(f"/size/{size}").body) == size
        peer = Peer(mongrel2.port)
        assert peer.head().startswith(b"HTTP/1.1 503 ")
        peer.sock.close()
        os.kill(arbiter, signal.SIGTERM)
        old.wait_for(r"Shutting down: Master")
        peer = Peer(mongrel2.port)
        assert peer.head() == HEAD
        peer.sock.close()
    finally:
        os.kill(new, signal.SIGTERM)
    assert old.finish() == 0


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


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"upload.stream": 1}, 413, "Raise limits.content_length, or set upload.temp_store"),
        ({"upload.temp_store": "STORE"}, 200, ""),
    ],
)
def test_an_upload_to_several_workers_arrives_or_is_refused(run, start_mongrel2, tmp_path, settings, status, said):
    """The pieces of a streamed body would scatter; of a stored one whoever hears of the end has it all."""
    store = f"{tmp_path}/up.XXXXXX"
    settings = {name: store if value == "STORE" else value for name, value in settings.items()}
    mongrel2 = start_mongrel2(settings={**FLOW_CONTROL, **settings})
    (tmp_path / "gunicorn.conf.py").write_text(f"greentx_upload_store = {store!r}\n")
    gunicorn = several(run, mongrel2, 3)
    for _ in range(4):
        with Browser(mongrel2) as browser:
            browser.ask("/upload", method="POST", body=b"x" * 1_500_000)
            answer = browser.receive()
            assert answer.status == status
            assert status != 200 or answer.body == b"1500000"
    assert said in ended(gunicorn)
    assert not list(tmp_path.glob("up.*"))


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
    gunicorn.wait_for("greentx .* serves")
    gunicorn.wait_for(r"control socket on port \d+")
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
