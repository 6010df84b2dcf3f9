"""Bodies that the front end stores in files (``upload.temp_store``), as the upload example takes them, or not."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from front_ends import StartFrontEnd
from gevent.event import Event
from http_rig import Browser, routes, wait_until
from ported_rig import RUNNERS, served, standalone, transceiver
from websocket_peer import HEAD, Peer

from greentx import Connection, Request
from greentx.protocol.http1 import LAST_CHUNK, build_chunk
from greentx.wsgi import WSGIServer

START, DONE = "x-mongrel2-upload-start", "x-mongrel2-upload-done"
LIMIT = 65536
LARGE = os.urandom(LIMIT * 10)
OTHER = os.urandom(LIMIT * 3)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Store:
    """Where the front end puts the files of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = f"{folder}/up.XXXXXX"

    def files(self) -> list[str]:
        return sorted(str(path) for path in self.folder.glob("up.*"))

    def empty(self) -> None:
        """Wait until no file is left."""
        wait_until(lambda: not self.files())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(params=["tnetstring", "json"])
def server(request: pytest.FixtureRequest, start_front_end: StartFrontEnd, store: Store) -> Any:
    """A front end that stores bodies of more than 65536 bytes."""
    settings = {"upload.temp_store": store.template, "limits.content_length": LIMIT}
    return start_front_end(routes(request.param), settings=settings)


@pytest.fixture(params=list(RUNNERS))
def run(request: pytest.FixtureRequest) -> Any:
    """Each way to run a handler."""
    return RUNNERS[request.param]


class Seen:
    """What is to be said about a request, noted while the handler has it, without keeping it."""

    def __init__(self, req: Request) -> None:
        self.method = req.method
        self.path = req.path
        self.start = req.headers.get(START)
        self.done = req.headers.get(DONE)
        self.names = set(req.headers)
        self.body = req.body
        self.existed = os.path.exists(self.done) if isinstance(self.done, str) else None
        self.stored: bytes | None = None
        if self.existed:
            with open(str(self.done), "rb") as file:
                self.stored = file.read()
        self.read = req.body_file.read()


class Application:
    """Notes each event, and answers with the digest of its body; *slow* requests wait for ``go_on``."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.ends: list[str] = []
        self.go_on = Event()

    def __call__(self, conn: Connection, req: Request) -> None:
        if req.is_disconnect():
            self.ends.append(req.method)
        else:
            self.seen.append(Seen(req))
            if req.path == "/slow":
                gevent.spawn(self.answer_later, conn, req)
            else:
                conn.reply_http(req, digest(self.seen[-1].read))

    def answer_later(self, conn: Connection, req: Request) -> None:
        self.go_on.wait()
        conn.reply_http(req, "slow")


def test_the_upload_example_gets_one_request_with_the_name_of_a_file(server, store, run):
    """It comes at the end of the body, says twice where that is, and the file goes with the request."""
    application = Application()
    with run(server, application), Browser(server) as browser:
        assert browser.get("/up", method="POST", body=LARGE).body == digest(LARGE).encode()
        (seen,) = application.seen
        assert (seen.method, seen.path) == ("POST", "/up")
        assert seen.start == seen.done
        assert seen.done is not None and seen.done.startswith(store.template[:-6])
        assert seen.stored == LARGE
        assert seen.read == LARGE
        assert browser.get().body == digest(b"").encode()  # a loop keeps its last request until the next one
        store.empty()
        assert not application.ends


def test_an_ordinary_body_is_read_as_a_file_too(server, run):
    """``body_file`` has what ``body`` has, and no file is named."""
    application = Application()
    with run(server, application), Browser(server) as browser:
        for body in (b"", b"small", b"\x00\xff" * 30_000):
            assert browser.get(method="POST", body=body).body == digest(body).encode()
        assert browser.get().body == digest(b"").encode()
    assert [one.read for one in application.seen] == [one.body for one in application.seen]
    assert [one.body for one in application.seen] == [b"", b"small", b"\x00\xff" * 30_000, b""]
    assert all(one.start is None and one.done is None for one in application.seen)


@pytest.mark.parametrize("body", [b"a\nb\nc\n" * 20_000, b"a\nb\nc\n"])
def test_a_body_file_is_a_binary_file(server, body):
    """Stored or not: it is read in parts, by lines, by iteration, and into a buffer."""
    got: list[Any] = []

    def handle(conn: Connection, req: Request) -> None:
        if not req.is_disconnect():
            file = req.body_file
            assert file is req.body_file
            assert file.readable()
            buffer = bytearray(2)
            got.extend([file.read(1), file.readline(), file.readinto(buffer), bytes(buffer), next(iter(file))])
            got.append(file.read())
            got.append(file.read())
            conn.reply_http(req, "done")

    with standalone(server, handle), Browser(server) as browser:
        assert browser.get(method="POST", body=body).body == b"done"
    assert got == [b"a", b"\n", 2, b"b\n", b"c\n", body[6:], b""]


def test_two_uploads_of_one_connection_are_two_requests(server, store, run):
    """Each with a file of its own, on a connection that stays open; between ordinary requests."""
    application = Application()
    with run(server, application), Browser(server) as browser:
        bodies = [b"", LARGE, OTHER, b"small", LARGE, b""]
        for body in bodies:
            assert browser.get(method="POST", body=body).body == digest(body).encode()
        assert [one.read for one in application.seen] == bodies
        names = [one.done for one in application.seen if one.done]
        assert len(names) == 3 and len(set(names)) == 3
        store.empty()
        assert not application.ends


def test_an_upload_behind_a_slow_answer_is_answered_in_its_turn(server, store, run):
    """It was pipelined; it is handed out before the first answer is there, and answered behind it."""
    application = Application()
    with run(server, application), Browser(server) as browser:
        head = f"POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE)}\r\n\r\n"
        browser.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n", head, LARGE)
        wait_until(lambda: len(application.seen) == 2)
        application.go_on.set()
        assert browser.receive().body == b"slow"
        assert browser.receive("POST").body == digest(LARGE).encode()
        assert browser.get(method="POST", body=OTHER).body == digest(OTHER).encode()
        assert [one.path for one in application.seen] == ["/slow", "/up", "/"]
        assert browser.get().body == digest(b"").encode()
        store.empty()


def test_what_follows_an_upload_is_not_read_as_its_body(server, store, run):
    """Mongrel2 appends a pipelined request to the file; ``body_file`` ends where the body does."""
    application = Application()
    with run(server, application), Browser(server) as browser:
        head = f"POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE)}\r\n\r\n"
        browser.send(head, LARGE, "GET /behind HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert browser.receive("POST").body == digest(LARGE).encode()
        assert application.seen[0].read == LARGE
        with Browser(server) as other:
            assert other.get().body == digest(b"").encode()
    store.empty()


def test_a_chunked_upload_is_stored_decoded(server, store, run):
    """It has no length in front; the file has the body without the framing of chunks."""
    application = Application()
    with run(server, application), Browser(server) as browser:
        browser.send("POST /up HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(OTHER), 50_000):
            browser.send(build_chunk(OTHER[start : start + 50_000]))
        browser.send(LAST_CHUNK)
        assert browser.receive("POST").body == digest(OTHER).encode()
        assert application.seen[0].stored == OTHER
        with Browser(server) as other:
            assert other.get().body == digest(b"").encode()
        store.empty()


def test_an_upload_that_is_closed_behind_its_answer_leaves_nothing(server, store, run):
    """HTTP/1.0 and Connection: close end the connection when the answer is out."""
    application = Application()
    with run(server, application):
        for lines, version in ((["Connection: close"], "HTTP/1.1"), ([], "HTTP/1.0")):
            with Browser(server) as browser:
                browser.ask("/up", *lines, method="POST", body=LARGE, version=version)
                assert browser.receive("POST").body == digest(LARGE).encode()
                assert browser.at_end()
        with Browser(server) as browser:
            assert browser.get().body == digest(b"").encode()
        store.empty()
    assert [one.read for one in application.seen] == [LARGE, LARGE, b""]


def test_a_client_that_leaves_in_the_middle_of_its_upload_was_never_there(server, store, run):
    """There is no event for it, and no file of it stays."""
    application = Application()
    with run(server, application):
        with Browser(server) as browser:
            head = "POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
            browser.send(head, bytes(2_000_000))
            wait_until(store.files)
        store.empty()
        with Browser(server) as browser:
            assert browser.get("/after").body == digest(b"").encode()
        assert [one.path for one in application.seen] == ["/after"]
        assert not application.ends


def test_a_server_that_is_killed_in_the_middle_of_an_upload_leaves_no_file(start_front_end, store, run):
    """It cannot delete it any more, and no request has it."""
    settings: dict[str, int | str] = {"upload.temp_store": store.template, "limits.content_length": LIMIT}
    server = start_front_end(routes(), settings=settings, process=True)
    with run(server, Application()):
        with Browser(server) as browser:
            assert browser.get().body == digest(b"").encode()
            head = "POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
            browser.send(head, bytes(2_000_000))
            wait_until(store.files)
            with Browser(server) as other:
                # Behind the first message of the upload.
                assert other.get().body == digest(b"").encode()
            server.kill()
            store.empty()


def test_a_client_that_leaves_before_its_upload_is_answered_is_reported(server, store, run):
    """As for any open request there is one DISCONNECT; the file goes with the request."""
    application = Application()
    with run(server, application):
        with Browser(server) as browser:
            browser.ask("/slow", method="POST", body=LARGE)
            wait_until(lambda: application.seen)
        wait_until(lambda: application.ends)
        assert store.files()
        application.go_on.set()
        with Browser(server) as browser:
            assert browser.get().body == digest(b"").encode()
        store.empty()
        assert application.ends == ["DISCONNECT"]
        assert application.seen[0].read == LARGE


def test_a_file_lasts_as_long_as_its_request_is_held(server, store):
    """Whoever keeps the request may read it after the answer; the file goes with the last reference to it."""
    kept: list[Request] = []

    def handle(conn: Connection, req: Request) -> None:
        if not req.is_disconnect():
            kept.append(req)
            conn.reply_http(req, "kept")

    with standalone(server, handle), Browser(server) as browser:
        assert browser.get(method="POST", body=LARGE).body == b"kept"
        assert browser.get().body == b"kept"
        with open(kept[0].headers[DONE], "rb") as file:
            assert file.read() == LARGE
        assert kept[0].body_file.read() == LARGE
        kept.clear()
        gc.collect()
        store.empty()


@pytest.mark.parametrize("way", ["recv in a thread", "serve", "serve in a thread", "WSGI"])
def test_the_file_of_the_last_request_goes_though_nothing_follows(start_front_end, store, way):
    """Greenlets that wait for the next request hold none: a disk that is nearly full gets its room back."""
    front = start_front_end(routes(), settings={"upload.temp_store": store.template, "limits.content_length": LIMIT})

    def handle(conn: Connection, req: Request) -> None:
        conn.reply_http(req, digest(req.body_file.read()))

    gc.disable()
    try:
        with LAST_REQUEST[way](front, handle), Browser(front) as browser:
            assert browser.get(method="POST", body=LARGE).body == digest(LARGE).encode()
            store.empty()
    finally:
        gc.enable()


@contextlib.contextmanager
def received_in_a_thread(server: Any, handle: Any) -> Iterator[None]:
    with transceiver(server) as trans:

        def loop() -> None:
            for item in trans.recv():
                handle(*item[1:])
                del item

        with thread_of(loop):
            yield
            trans.stop(5)


@contextlib.contextmanager
def served_in_a_thread(server: Any, handle: Any) -> Iterator[None]:
    with transceiver(server) as trans, thread_of(lambda: trans.serve(handle)):
        yield
        trans.stop(5)


@contextlib.contextmanager
def thread_of(call: Callable[[], None]) -> Iterator[None]:
    """Make *call* in a native thread, and see it return."""
    thread = gevent.get_hub().threadpool.spawn(call)
    yield
    thread.get(timeout=10)


@contextlib.contextmanager
def served_by_wsgi(server: Any, handle: Any) -> Iterator[None]:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [digest(environ["wsgi.input"].read()).encode()]

    handler = server.handlers[0]
    wsgi = WSGIServer((handler.sender, handler.send_spec, handler.recv_spec), application, log=None)
    wsgi.start()
    try:
        yield
    finally:
        wsgi.stop(5)


LAST_REQUEST: dict[str, Callable[..., contextlib.AbstractContextManager[Any]]] = {
    "recv in a thread": received_in_a_thread,
    "serve": served,
    "serve in a thread": served_in_a_thread,
    "WSGI": served_by_wsgi,
}


def test_a_handler_that_moves_the_file_keeps_it(server, store, tmp_path):
    """Nothing is said about a file that is no longer there."""

    def handle(conn: Connection, req: Request) -> None:
        if DONE in req.headers:
            os.rename(req.headers[DONE], tmp_path / "mine")
        if not req.is_disconnect():
            conn.reply_http(req, "moved")

    with standalone(server, handle), Browser(server) as browser:
        assert browser.get(method="POST", body=LARGE).body == b"moved"
        assert browser.get().body == b"moved"
    assert (tmp_path / "mine").read_bytes() == LARGE
    store.empty()


@pytest.mark.parametrize("body", [None, b"", b"small"])
def test_names_of_files_that_a_client_made_up_are_not_seen(server, store, run, body):
    """They are not among the headers, and what they name is neither read nor deleted: not in the store either."""
    secret, inside = store.folder / "secret", store.folder / "up.abcdef"
    for path in (secret, inside):
        path.write_bytes(b"precious")
    application = Application()
    sets = [
        [f"{name}: {path}" for name in names]
        for path in (secret, inside)
        for names in ((START, DONE), (START,), (DONE,), ("X-Mongrel2-Upload-Start", "X-Mongrel2-Upload-Done"))
    ]
    method = "GET" if body is None else "POST"
    with run(server, application), Browser(server) as browser:
        for lines in sets:
            answer = browser.get("/", *lines, "X-Other: kept", method=method, body=body)
            assert answer.body == digest(body or b"").encode()
    assert len(application.seen) == len(sets)
    for seen in application.seen:
        assert not {START, DONE} & seen.names
        assert "x-other" in seen.names
        assert seen.read == seen.body == (body or b"")
    assert [path.read_bytes() for path in (secret, inside)] == [b"precious"] * 2


def test_names_of_files_in_a_websocket_s_handshake_are_not_seen(server, store):
    """Nor with its messages, with which Mongrel2 repeats the headers of the handshake, nor with its end."""
    secret = store.folder / "secret"
    secret.write_bytes(b"precious")
    seen: list[tuple[str, set[str]]] = []

    def handle(conn: Connection, req: Request) -> None:
        seen.append((req.method, {START, DONE} & set(req.headers)))
        if req.method == "WEBSOCKET_HANDSHAKE":
            conn.reply(req, HEAD)
        elif req.method == "WEBSOCKET":
            conn.reply_websocket(req, req.body)

    with standalone(server, handle):
        peer = Peer(server.port, headers=f"{START}: {secret}\r\n{DONE}: {secret}\r\n")
        assert peer.head() == HEAD
        peer.send("text")
        assert peer.frame().payload == b"text"
        peer.close()
        peer.rest()
        peer.sock.close()
        wait_until(lambda: len(seen) == 3)
    assert seen == [(method, set()) for method in ("WEBSOCKET_HANDSHAKE", "WEBSOCKET", "WEBSOCKET_CLOSE")]
    assert secret.read_bytes() == b"precious"


def test_names_that_a_client_puts_beside_a_real_upload_are_not_believed(server, store, run):
    """The application sees Mongrel2's own name, or nothing of the request; the client's file stays as it was."""
    secret, inside = store.folder / "secret", store.folder / "up.abcdef"
    for path in (secret, inside):
        path.write_bytes(b"precious")
    application = Application()
    with run(server, application):
        for path in (secret, inside):
            for lines in ([f"{START}: {path}"], [f"{DONE}: {path}"], [f"{START}: {path}", f"{DONE}: {path}"]):
                with Browser(server) as browser:
                    answer = browser.get("/up", *lines, method="POST", body=LARGE)
                    assert answer.status in (200, 400)
                    if answer.status == 200:
                        assert answer.body == digest(LARGE).encode()
        with Browser(server) as browser:
            assert browser.get().body == digest(b"").encode()
        for seen in application.seen[:-1]:
            assert (seen.stored, seen.read) == (LARGE, LARGE)
            assert seen.start == seen.done
        wait_until(lambda: store.files() == [str(inside)])
    assert [path.read_bytes() for path in (secret, inside)] == [b"precious"] * 2
