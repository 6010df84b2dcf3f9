"""Several servers on one handler entry of a front end, told so by ``shared=True``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import subprocess
from http_rig import Browser
from websocket_peer import Peer

import greentx
from greentx import Transceiver
from greentx.wsgi import WSGIServer

FLOW_CONTROL = {"download.flow_control": 1}


def entry_of(front: Any) -> tuple[Any, ...]:
    """Return what a listener is made of."""
    (handler,) = front.handlers
    return handler.sender, handler.send_spec, handler.recv_spec


def sized(environ: Any, start_response: Any) -> list[bytes]:
    """Answer with as many bytes as are asked for."""
    environ["wsgi.input"].read()
    size = int(environ["PATH_INFO"][1:])
    start_response("200 OK", [("Content-Length", str(size))])
    return [b"x" * size]


@pytest.fixture
def serve() -> Iterator[Callable[..., WSGIServer]]:
    """Starts servers on the entry of a front; they are stopped after the test."""
    with ExitStack() as stack:

        def start(front: Any, **options: Any) -> WSGIServer:
            server = WSGIServer(entry_of(front), sized, log=None, shared=True, **options)
            server.start()
            stack.callback(server.stop, 0)
            assert server.transceiver is not None
            server.transceiver.wait_ready(10)
            return server

        yield start


def browse(front: Any, *sizes: int) -> None:
    """Ask for answers of these sizes over one connection, and read each to its end."""
    with Browser(front) as browser:
        for size in sizes:
            answer = browser.get(f"/{size}")
            assert (answer.status, len(answer.body)) == (200, size)


@pytest.mark.parametrize("settings", [FLOW_CONTROL, {}])
def test_two_wsgi_servers_answer_whatever_the_other_one_is_told(serve, start_front_end, caplog, settings):
    """Both know; each says once what cannot be."""
    front = start_front_end(settings=settings)
    with caplog.at_level(logging.WARNING):
        servers = [serve(front), serve(front)]
    warnings = [record.getMessage() for record in caplog.records if "share this handler entry" in record.getMessage()]
    assert len(warnings) == 2
    assert all("WebSockets need one process" in warning for warning in warnings)
    browsers = [gevent.spawn(browse, front, 20, 20_000, 102_401, 1_000_000, 20) for _ in range(4)]
    gevent.joinall(browsers, timeout=30, raise_error=True)
    assert all(one.ready() for one in browsers)
    assert all(server.transceiver.connections["greentx"].intake.requests for server in servers)


def test_pipelined_answers_of_one_message_each_arrive_whole(serve, start_front_end):
    """In whichever order; longer ones of two processes are mixed into each other, as README says."""
    front = start_front_end(settings=FLOW_CONTROL)
    for _ in range(2):
        serve(front)
    sizes = [5000 + number for number in range(8)]
    with Browser(front) as browser:
        for size in sizes:
            browser.ask(f"/{size}")
        answers = [browser.receive() for _ in sizes]
    assert [answer.status for answer in answers] == [200] * len(sizes)
    assert sorted(len(answer.body) for answer in answers) == sizes


def test_a_websocket_is_refused_and_the_log_says_why(serve, start_front_end, caplog):
    """Its messages would scatter."""
    front = start_front_end()
    serve(front)
    peer = Peer(front.port, "/1")
    assert peer.head().startswith(b"HTTP/1.1 503 ")
    assert b"WebSockets need one worker" in peer.rest()
    peer.sock.close()
    assert "a WebSocket at '/1' is refused: several processes share one handler entry" in caplog.text


def test_a_streamed_body_is_refused_and_the_log_says_what_to_set(serve, start_front_end, caplog):
    """Its pieces would scatter; what follows on other connections is answered."""
    front = start_front_end(settings={"upload.stream": 1, "limits.content_length": 20480})
    for _ in range(2):
        serve(front)
    for _ in range(3):
        with Browser(front) as browser:
            browser.ask("/1", method="POST", body=b"x" * 300_000)
            assert browser.receive().status == 413
    browse(front, 1, 2, 3)
    assert "Raise limits.content_length, or set upload.temp_store" in caplog.text


def test_two_transceivers_answer_whatever_the_other_one_is_told(start_front_end):
    """Below WSGI, too, and while one of them ends the other one goes on."""
    front = start_front_end(settings=FLOW_CONTROL)

    def handler(conn: Any, req: Any) -> None:
        conn.reply_http(req, b"x" * int(req.path[1:]))

    with ExitStack() as stack:
        transceivers = []
        for _ in range(2):
            sender, pull, pub = entry_of(front)
            trans = Transceiver(sender, pull, pub, rep_port=False, shared=True, linger=0.5)
            stack.enter_context(trans)
            transceivers.append((trans, gevent.spawn(trans.serve, handler)))
            trans.wait_ready(10)
        browse(front, 300_000, 20, 20_000, 300_000)
        transceivers[0][0].stop(5)
        browse(front, 300_000, 20, 20_000, 300_000)
        transceivers[1][0].stop(5)
        for _, greenlet in transceivers:
            greenlet.join(5)
            assert greenlet.dead


def test_a_server_that_stops_under_load_loses_nothing(serve, start_front_end):
    """What it has pulled it answers, and nothing is handed to it in the moment in which it leaves."""
    front = start_front_end(settings=FLOW_CONTROL)
    first, _ = serve(front), serve(front)
    over = False

    def ask_again() -> int:
        count = 0
        with Browser(front) as browser:
            while not over:
                assert len(browser.get("/500").body) == 500
                count += 1
        return count

    browsers = [gevent.spawn(ask_again) for _ in range(12)]
    for _ in range(3):
        seen = first.transceiver.connections["greentx"].intake
        while seen.requests < 200:
            gevent.sleep(0.005)
        first.stop(5)
        first = serve(front)
    over = True
    gevent.joinall(browsers, timeout=20, raise_error=True)
    assert all(one.get() for one in browsers)


def test_two_commands_serve_one_entry(start_front_end, tmp_path):
    """``greentx serve --shared``, twice."""
    front = start_front_end(settings=FLOW_CONTROL)
    sender, pull, pub = entry_of(front)
    (tmp_path / "sized.py").write_text(
        "def application(environ, start_response):\n"
        "    size = int(environ['PATH_INFO'][1:])\n"
        "    start_response('200 OK', [('Content-Length', str(size))])\n"
        "    return [b'x' * size]\n"
    )
    url = f"mongrel2://{sender}@?pull={pull}&pub={pub}"
    command = [sys.executable, "-m", "greentx", "serve", "sized", "--connect", url, "--shared"]
    environ = {**os.environ, "PYTHONPATH": str(Path(greentx.__file__).parent.parent)}
    with ExitStack() as stack:
        commands = []
        for _ in range(2):
            one = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True)
            stack.callback(one.stderr.close)
            stack.callback(one.wait)
            stack.callback(one.kill)
            commands.append(one)
        for one in commands:
            said = ""
            while "serving " not in said:
                line = one.stderr.readline()
                assert line, said
                said += line
            assert "WebSockets need one process" in said
        browsers = [gevent.spawn(browse, front, 20, 20_000, 400_000, 20, 400_000) for _ in range(4)]
        gevent.joinall(browsers, timeout=20, raise_error=True)
        assert all(one.ready() for one in browsers)
        for one in commands:
            one.terminate()
            assert one.wait(10) == 0


def test_only_an_entry_of_another_front_end_is_shared():
    """A Transceiver has its own word for it, and nobody else serves a front end of our own."""
    with pytest.raises(ValueError, match=r"shared: the front end of .* is ours"):
        WSGIServer(("127.0.0.1", 0), sized, shared=True)
    trans = Transceiver("a", "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", rep_port=False)
    with pytest.raises(ValueError, match="shared belongs to"):
        WSGIServer(trans, sized, shared=True)
