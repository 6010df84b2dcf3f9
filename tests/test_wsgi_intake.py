"""What comes in for a WSGI server, and its end, with a stand-in for Mongrel2: no front end is needed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from stand_in import Server

from greentx import Transceiver
from greentx.protocol.requests import build_credits_notice, build_disconnect_notice
from greentx.wsgi import WSGIServer
from greentx.wsgi.intake import KNOWN_ADDRESSES

TEXT = [("Content-Type", "text/plain")]


@pytest.fixture
def front() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def wait_until(condition: Any) -> None:
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


class Application:
    """Waits until it may go on; notes what it was called with."""

    def __init__(self) -> None:
        self.go = Event()
        self.begun: list[str] = []

    def __call__(self, environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        self.begun.append(path)
        self.go.wait(10)
        start_response("200 OK", TEXT)
        return [path.encode()]


def serving(front: Server, application: Any, **options: Any) -> tuple[WSGIServer, Transceiver]:
    server = WSGIServer(("u", front.endpoints[0], front.endpoints[1]), application, log=None, **options)
    server.start()
    assert server.transceiver is not None
    server.transceiver.wait_ready(5)
    return server, server.transceiver


def upload(front: Server, conn_id: int, path: Path) -> None:
    """A body that Mongrel2 has stored in a file: the same request twice."""
    path.write_bytes(b"x" * 1000)
    headers: dict[str, Any] = {"METHOD": "POST", "content-length": "1000", "x-mongrel2-upload-start": str(path)}
    front.request(conn_id, "/upload", **headers)
    headers["x-mongrel2-upload-done"] = str(path)
    front.request(conn_id, "/upload", **headers)


def test_addresses_of_any_size_fill_no_memory(front: Server) -> None:
    """Whoever stands in for Mongrel2 may name anything as one; the application is shown it all the same."""
    found: list[str] = []

    def application(environ: Any, start_response: Any) -> Any:
        found.append(environ["REMOTE_ADDR"])
        start_response("200 OK", TEXT)
        return []

    server, _ = serving(front, application)
    addresses = ["10.0.0.1", "1" * 5000]
    for number, address in enumerate(addresses):
        front.request(number, REMOTE_ADDR=address, host="a")
    wait_until(lambda: len(found) == 2)
    server.stop(5)
    assert found == addresses
    assert [address.encode() in KNOWN_ADDRESSES for address in addresses] == [True, False]


@pytest.mark.parametrize("where", ["behind", "waiting"])
def test_a_stored_upload_goes_with_its_client(front: Server, tmp_path: Path, where: str) -> None:
    """At once, while another request runs: clients that leave could fill the disk."""
    application = Application()
    server, transceiver = serving(front, application, spawn=1)
    file = tmp_path / "up.abcdef"
    number = 1 if where == "behind" else 2
    front.request(1, "/first")
    wait_until(lambda: application.begun)
    upload(front, number, file)
    wait_until(lambda: transceiver.connections["u"].intake.requests == 3)
    wait_until(lambda: not transceiver.pending)
    assert file.exists()
    front.push.send(build_disconnect_notice("u", number))
    wait_until(lambda: not file.exists())
    assert application.begun == ["/first"]
    application.go.set()
    server.stop(5)
    assert application.begun == ["/first"]


def test_a_killed_server_refuses_what_has_not_begun(front: Server) -> None:
    """Behind another request, or in front of the pool; what runs fails."""
    application = Application()
    server, transceiver = serving(front, application, spawn=1)
    front.request(1, "/first")
    wait_until(lambda: application.begun)
    front.request(2, "/waits")
    wait_until(lambda: transceiver.connections["u"].intake.requests == 2)
    server.stop(0)
    answers: dict[str, bytes] = {}
    while len(answers) < 2:
        reply = front.receive()
        if reply.body.startswith(b"HTTP/1.1 "):
            answers[reply.conn_ids[0]] = reply.body[9:12]
    assert answers == {"1": b"500", "2": b"503"} and application.begun == ["/first"]


def test_a_transceiver_that_a_handler_stops_does_not_wait_for_that_handler(
    front: Server, greenlet_errors: list[Any]
) -> None:
    """It waits for the others, whose answers go out; its own would come too late."""
    pull_addr, pub_addr = front.endpoints
    with Transceiver("u", pull_addr, pub_addr, rep_port=False) as transceiver:
        done: list[float] = []

        def application(environ: Any, start_response: Any) -> Any:
            if environ["PATH_INFO"] == "/stop":
                began = time.monotonic()
                transceiver.stop(5)
                done.append(time.monotonic() - began)
            else:
                gevent.sleep(0.1)  # the handler's work takes a while
            start_response("200 OK", TEXT)
            return [b"done"]

        server = WSGIServer(transceiver, application, log=None)
        server.start()
        transceiver.wait_ready(5)
        front.request(1, "/other")
        front.request(2, "/stop")
        assert front.receive_for(1).endswith(b"done")
        wait_until(lambda: done)
        assert 0.05 < done[0] < 2
        server.stop(1)
        assert [str(error) for _, error in greenlet_errors] == ["Transceiver u is closed"]
        greenlet_errors.clear()


def test_the_end_does_not_wait_where_nothing_is_under_way(front: Server) -> None:
    """It is told of each change, and looks no more often."""
    application = Application()
    server, _ = serving(front, application)
    front.request(1, "/first")
    wait_until(lambda: application.begun)
    ending = gevent.spawn(server.stop, 20)
    gevent.sleep(0.05)  # what must not happen has no event
    assert not ending.dead
    began = time.monotonic()
    application.go.set()
    assert front.receive_for(1).endswith(b"/first")
    ending.get(timeout=5)
    assert time.monotonic() - began < 1
    assert server.closed and server.transceiver is None


@pytest.mark.parametrize(("size", "status"), [(1_000, b"200"), (150_000, b"503")])
def test_the_last_to_leave_begins_no_answer_that_it_could_not_finish(
    front: Server, monkeypatch: pytest.MonkeyPatch, size: int, status: bytes
) -> None:
    """Behind its last look at credits; it takes it that answers are as large as they were, though none is under way."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [bytes(size)]

    server, transceiver = serving(front, application)
    connection = transceiver.connections["u"]
    control = connection.link.writer.flow.control
    front.request(1, DOWNLOAD_CREDITS="102400")
    got = 0
    while got < size:
        written = len(front.receive().body)
        got += written
        front.push.send(build_credits_notice("u", 1, written))
    wait_until(lambda: not control.unconfirmed())
    stop_receiving = connection.intake.stop_receiving

    def one_comes_last(timeout: float | None = None) -> None:
        monkeypatch.undo()
        before = connection.intake.requests
        front.request(2)
        wait_until(lambda: connection.intake.requests > before)
        stop_receiving(timeout)

    monkeypatch.setattr(connection.intake, "stop_receiving", one_comes_last)
    server.stop(5)
    assert front.receive_for(2)[9:12] == status


def test_what_is_killed_is_told_also_where_it_had_not_begun(front: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Each request by its method and path."""
    application = Application()
    server, _ = serving(front, application, spawn=1)
    front.request(1, "/first")
    front.request(2, "/second")
    wait_until(lambda: application.begun and len(server.intake.schedule.lines) == 2)
    server.stop(0.05)
    assert "are killed (2): GET '/first' (from ), GET '/second' (from , had not begun)" in caplog.text


def test_an_end_may_be_shortened(front: Server) -> None:
    """By a second call, whatever the first one waits for."""
    application = Application()
    server, _ = serving(front, application)
    front.request(1, "/first")
    wait_until(lambda: application.begun)
    first = gevent.spawn(server.stop, 60)
    gevent.sleep(0.01)  # until it waits in there, which nobody is told
    with gevent.Timeout(5):
        server.stop(0.1)
        first.get()
    assert server.closed and front.receive_for(1).startswith(b"HTTP/1.1 500 ")
