"""Real applications behind both front ends: what people bring along works."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from front_ends import FrontEnd, StartFrontEnd
from gevent import subprocess
from gunicorn_rig import Gunicorn, url_of
from http_rig import Browser
from wsgi_applications import APPLICATIONS, DIGEST, FILE, pages
from wsgi_rig import serving, talk

from greentx.wsgi import WSGIServer
from greentx.wsgi.listeners import SETTINGS

BOUNDARY = "----boundary"


def cookies_of(answer: Any) -> str:
    return "; ".join(value.partition(";")[0] for value in answer.headers.get_all("set-cookie"))


def use(browser: Browser, prefix: str = "") -> None:
    """GET, form, upload, cookies, redirect, error, streaming, a file; all over one connection."""
    assert browser.get(f"{prefix}/get?name=w%C3%B6rld").body.decode() == "hello w\xf6rld"
    form = "Content-Type: application/x-www-form-urlencoded"
    assert browser.get(f"{prefix}/form", form, method="POST", body=b"b=2&a=1%202").body == b"a=1 2&b=2"
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body += FILE + f"\r\n--{BOUNDARY}--\r\n".encode()
    multipart = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
    for _ in range(2):
        assert browser.get(f"{prefix}/upload", multipart, method="POST", body=body).body == DIGEST.encode()
    answer = browser.get(f"{prefix}/cookies")
    assert answer.body == b"nothing" and sorted(cookies_of(answer).split("; ")) == ["other=2", "seen=1"]
    assert browser.get(f"{prefix}/cookies", f"Cookie: {cookies_of(answer)}").body == b"1"
    answer = browser.get(f"{prefix}/redirect")
    assert answer.status in (302, 303) and str(answer.headers["location"]).endswith("/get?name=again")
    answer = browser.get(f"{prefix}/error")
    assert answer.status == 500 and b"a failure of the application" not in answer.body
    assert browser.get(f"{prefix}/missing").status == 404
    answer = browser.get(f"{prefix}/stream")
    assert answer.body == b"".join(pages()) and answer.headers.get("transfer-encoding") == "chunked"
    assert browser.get(f"{prefix}/file").body == FILE
    answer = browser.get(f"{prefix}/file", method="HEAD")
    assert answer.body == b"" and answer.status in (200, 404, 405)
    assert browser.get(f"{prefix}/get?name=end").body == b"hello end"


@pytest.mark.parametrize("name", APPLICATIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_application_works(front_end: FrontEnd, name: str) -> None:
    """With a front end of its own."""
    make: Callable[[], Any] = APPLICATIONS[name]
    with serving(front_end.name, make()) as server, Browser(server) as browser:
        use(browser)


@pytest.fixture(scope="module", params=[1, 3])
def workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, front_end: FrontEnd
) -> Iterator[Any]:
    """A front end with the settings of our own one, and gunicorn with so many workers.

    For several of them bodies are stored: they cannot be streamed to several.
    """
    folder = tmp_path_factory.mktemp("workers")
    settings = dict(SETTINGS)
    if request.param > 1:
        settings |= {"upload.stream": 0, "upload.temp_store": f"{folder}/up.XXXXXX"}
    with front_end.started(settings=settings) as front, gunicorn(folder, front, request.param):
        yield front


@contextlib.contextmanager
def gunicorn(folder: Path, front: Any, count: int) -> Iterator[None]:
    """Run gunicorn with all applications."""
    running = Gunicorn(folder, url_of(front), "-w", str(count), app="wsgi_applications:all_of_them()")
    try:
        for _ in range(count):
            running.wait_for("greentx .* serves")
        yield
        running.process.terminate()
        assert running.finish() == 0
    finally:
        running.close()


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_works_in_gunicorns_workers(name: str, workers: Any) -> None:
    """Whichever of them gets a request, and the notices that belong to it."""
    with Browser(workers) as browser:
        use(browser, f"/{name}")


@pytest.mark.parametrize("workers", [1], indirect=True)
@pytest.mark.parametrize("name", ["flask-sock", "flask-sockets"])
def test_websockets_of_an_application_work_in_one_worker(name: str, workers: Any) -> None:
    """With an independent client, whose library writes and reads frames by itself."""
    printed = run_client(f"""
from websockets.sync.client import connect
with connect("ws://127.0.0.1:{workers.port}/{name}/echo") as ws:
    for message in ("gr\u00fc\u00dfe", b"\\0\\xff", "long " * 60000):
        ws.send(message)
        assert ws.recv(timeout=10) == message, message
    assert ws.ping().wait(10)
print(ws.close_code)
""")
    assert printed == "1000\n"


@pytest.mark.parametrize("workers", [1], indirect=True)
def test_socketio_works_in_one_worker(workers: Any) -> None:
    """Polling, websocket, and the upgrade from one to the other."""
    printed = run_client(f"""
import socketio, threading
for transports in (["polling"], ["websocket"], ["polling", "websocket"]):
    heard = threading.Event()
    sio = socketio.Client(reconnection=False)
    sio.on("shouted", lambda data: (print(data), heard.set()))
    sio.connect("http://127.0.0.1:{workers.port}", transports=transports, socketio_path="socketio/socket.io")
    assert sio.call("shout", "hello", timeout=10) == 5
    assert heard.wait(10)
    print(sio.transport())
    sio.disconnect()
""")
    assert printed.split() == ["HELLO", "polling", "HELLO", "websocket", "HELLO", "websocket"]


def run_client(script: str, timeout: float = 40) -> str:
    """Run a client's *script* in another Python, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_urls_of_careless_clients_are_served(front_end: FrontEnd) -> None:
    """As gevent does: characters that belong percent-encoded, and are sent as they are."""
    with gevent.Timeout(30), serving(front_end.name, lambda environ, start: [start("200 OK", []), b""][1:]) as server:
        with Browser(server, timeout=5.0) as browser:
            for character in "{}^!$&'()*+,-./:;=@_~":
                for url in (f"/a{character}b", f"/a?{character}=b"):
                    assert browser.get(url).status == 200, url


def test_forged_upload_headers_delete_nothing(
    front_end: FrontEnd, start_front_end: StartFrontEnd, tmp_path: Path
) -> None:
    """Where Mongrel2 waits for no body the names are the client's; where it does, its file goes whatever the length."""
    store = f"{tmp_path}/up.XXXXXX"
    front = start_front_end(settings={"upload.temp_store": store, "limits.content_length": 65536})
    (handler,) = front.handlers
    mine = tmp_path / "up.aaaaaa"
    mine.write_bytes(b"of somebody else")
    server = WSGIServer(
        (handler.sender, handler.send_spec, handler.recv_spec), None, log=None, error_log=None, upload_store=store
    )
    names = f"x-mongrel2-upload-start: {mine}\r\nx-mongrel2-upload-done: {mine}\r\n"
    with gevent.Timeout(30), server:
        server.start()
        assert server.transceiver is not None
        server.transceiver.wait_ready(10)
        lengths = [f"Content-Length: {number}" for number in ("x", "-1", "2147483648", "4294967297")]
        for said in ("Transfer-Encoding: x", *lengths):
            request = f"POST / HTTP/1.1\r\nHost: localhost\r\n{names}{said}\r\n\r\n"
            answer = talk(front.port, (request + request).encode())
            # The edge says of a number that it is too large.
            assert answer.startswith(b"HTTP/1.1 400 ") or (front_end.is_edge and answer.startswith(b"HTTP/1.1 413 "))
            assert mine.exists(), said
        for said in ("+70000", "70000x"):
            request = f"POST / HTTP/1.1\r\nHost: localhost\r\n{names}Content-Length: {said}\r\n\r\n"
            assert talk(front.port, request.encode() + b"x" * 70000).startswith(b"HTTP/1.1 400 "), said
            while len(list(tmp_path.iterdir())) > 1:
                gevent.sleep(0.005)
    assert list(tmp_path.iterdir()) == [mine]
