"""The life of a WSGI server, its hooks, and what only ours does."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool
from http_rig import Browser, StartMongrel2, wait_until
from wsgi_rig import KINDS, SERVERS, Server, ask, see, serving, talk

import greentx
from greentx.edge import Handler
from greentx.errors import BindError, Mongrel2NotFound
from greentx.wsgi import WSGIHandler, WSGIServer
from greentx.wsgi import exchange as exchange_module
from greentx.wsgi.listeners import TcpListener

TEXT = [("Content-Type", "text/plain")]
LOCAL = ("127.0.0.1", 0)


def hello(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    return [b"hello"]


def body_of(port: int, path: str = "/") -> bytes:
    with Browser(Server(port=port)) as browser:
        return browser.get(path).body


class Stuck:
    """An application that waits in ``/wait`` until *go* is set."""

    def __init__(self) -> None:
        self.go = Event()
        self.running = 0
        self.done = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/wait":
            self.running += 1
            self.go.wait(20)
            self.done += 1
        return hello(environ, start_response)


# -- its life, as gevent's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_may_be_started_and_stopped_again_and_again(kind: str) -> None:
    """Twice is once; after an end it begins anew, on the same port."""
    server = SERVERS[kind](LOCAL, hello, log=None)
    assert (server.started, server.closed, hasattr(server, "socket")) == (False, True, False)
    server.start()
    port = server.server_port
    assert (server.started, server.closed, server.server_host) == (True, False, "127.0.0.1")
    assert server.address == ("127.0.0.1", port) == server.socket.getsockname() and server.family == socket.AF_INET
    server.start()
    assert server.server_port == port and body_of(port) == b"hello"
    server.stop()
    server.stop()
    assert (server.started, server.closed, hasattr(server, "socket")) == (False, True, False)
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    server.start()
    assert server.server_port == port and body_of(port) == b"hello"
    server.close()
    server.stop()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["stop", "close", "_stop_event.set"])
def test_serve_forever_returns_when_the_server_is_stopped(kind: str, end: str) -> None:
    """By whatever means; some frameworks set its event themselves."""
    server = SERVERS[kind](LOCAL, hello, log=None)
    greenlet = gevent.spawn(server.serve_forever, stop_timeout=1)
    wait_until(lambda: server.started)
    assert not greenlet.dead
    target: Any = server
    for name in end.split("."):
        target = getattr(target, name)
    target()
    greenlet.get(timeout=5)
    assert server.closed


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_stops_the_server_at_its_end(kind: str) -> None:
    """But does not start it."""
    with SERVERS[kind](LOCAL, hello, log=None) as server:
        assert not server.started
        server.init_socket()
        assert not server.started and not server.closed and server.server_port
        server.start()
    assert not server.started and server.closed


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_the_address_of_a_bound_socket(kind: str) -> None:
    """As systemd and supervisors hand them over."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    server = SERVERS[kind](listener, hello, log=None)
    server.start()
    try:
        assert server.server_port == port and body_of(port) == b"hello"
    finally:
        server.stop()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spawn",
    ["default", 3, Pool, gevent.spawn_raw, gevent.spawn],
    ids=["default", "3", "pool", "spawn_raw", "spawn"],
)
def test_handlers_run_the_way_they_were_told(kind: str, spawn: Any) -> None:
    """All ways that gevent knows and that may block."""
    spawn = spawn(3) if spawn is Pool else spawn
    with serving(kind, hello, spawn=spawn) as server:
        assert see(server, ask(), ask())[-1] == "open"
        pool = server.server.pool
        assert (pool is not None) == (spawn == 3 or isinstance(spawn, Pool))
        if pool is not None and kind == "greentx":
            wait_until(lambda: pool.free_count() == pool.size == 3)


@pytest.mark.parametrize("kind", KINDS)
def test_do_handle_may_be_assigned_before_it_serves(kind: str) -> None:
    """On one server, without a subclass."""
    seen: list[str] = []
    server = SERVERS[kind](LOCAL, hello, log=None)
    do_handle = server.do_handle

    def noted(*args: Any) -> None:
        seen.append(args[1][0])
        do_handle(*args)

    server.do_handle = noted
    server.start()
    try:
        assert body_of(server.server_port) == b"hello"
        assert seen == ["127.0.0.1"]
    finally:
        server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_the_application_may_be_replaced_while_it_runs(kind: str) -> None:
    """From the next request on."""
    server = SERVERS[kind](LOCAL, hello, log=None)
    server.start()
    try:
        with Browser(Server(port=server.server_port)) as browser:
            assert browser.get().body == b"hello"

            def other(environ: Any, start_response: Any) -> Any:
                start_response("200 OK", TEXT)
                return [b"other"]

            server.application = other
            assert browser.get().body == b"other"
    finally:
        server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_the_environ_may_be_configured(kind: str) -> None:
    """By the constructor, a subclass, and a class of one's own."""

    class Environ(dict):  # type: ignore[type-arg]
        pass

    found: list[Any] = []

    def application(environ: Any, start_response: Any) -> Any:
        found.append(environ)
        return hello(environ, start_response)

    def get_environ(server: Any) -> Any:
        return server.environ_class(server.environ, added="later")

    base: Any = SERVERS[kind]
    own = {
        "environ_class": Environ,
        "base_env": {**base.base_env, "wsgi.multiprocess": True},
        "get_environ": get_environ,
    }
    with serving(type("Custom", (base,), own), application, environ={"mine": "1", "wsgi.multithread": True}) as server:
        see(server, ask())
    assert type(found[0]) is Environ and (found[0]["mine"], found[0]["added"]) == ("1", "later")
    assert found[0]["wsgi.multithread"] is True and found[0]["wsgi.multiprocess"] is True
    assert server.server.max_accept == 1


def custom_handler(base: Any, calls: list[Any]) -> Any:
    """A handler class that overrides what people override."""

    class Custom(base):  # type: ignore[misc]  # mypy knows no base that is a value: the test chooses gevent's or ours
        def get_environ(self) -> Any:
            environ = super().get_environ()
            environ["custom"] = self.headers.get("X-Custom")
            calls.append(("get_environ", self.command, self.path, self.request_version, self.requestline))
            return environ

        def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
            return super().start_response(status, [*headers, ("X-Started", "1")], exc_info)

        def finalize_headers(self) -> None:
            super().finalize_headers()
            self.response_headers.append((b"X-Final", b"1"))

        def run_application(self) -> None:
            calls.append(("run", self.environ["custom"], self.application is not None, self.client_address[0]))
            super().run_application()

        def log_request(self) -> None:
            calls.append(
                ("log", self.status, self.code, self.headers_sent, self.response_length > 50, self.time_finish > 0)
            )
            super().log_request()

        def format_request(self) -> str:
            return f"custom {super().format_request()}"

        def handle_error(self, kind: Any, value: Any, tb: Any) -> None:
            calls.append(("error", kind, str(value)))

    return Custom


@pytest.mark.parametrize("kind", KINDS)
def test_the_hooks_of_a_handler_are_called(kind: str) -> None:
    """With the same attributes to look at."""
    calls: list[Any] = []
    base = SERVERS[kind].handler_class
    with serving(kind, hello, handler_class=custom_handler(base, calls)) as server:
        with Browser(server) as browser:
            answer = browser.get("/page?a=b", "X-Custom: yes")
        lines = server.log.getvalue()
    assert (answer.headers["x-started"], answer.headers["x-final"], answer.body) == ("1", "1", b"hello")
    assert calls == [
        ("get_environ", "GET", "/page?a=b", "HTTP/1.1", "GET /page?a=b HTTP/1.1"),
        ("run", "yes", True, "127.0.0.1"),
        ("log", b"200 OK", 200, True, True, True),
    ]
    assert lines.startswith("custom 127.0.0.1 - - [") and '"GET /page?a=b HTTP/1.1" 200' in lines


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_reaches_the_hook(kind: str) -> None:
    """Which may answer itself, or leave it."""
    calls: list[Any] = []

    def failing(environ: Any, start_response: Any) -> Any:
        raise KeyError("no")

    with serving(kind, failing, handler_class=custom_handler(SERVERS[kind].handler_class, calls)) as server:
        with Browser(server) as browser:
            browser.ask("/", "Connection: close")
            assert browser.at_end()
    assert ("error", KeyError, "'no'") in calls


# -- requests in their place -------------------------------------------------------------------------------------------


def test_requests_wait_while_the_pool_is_full() -> None:
    """Those of others, and those of the same connection; the pool tells how many places are free."""
    application = Stuck()
    with serving("greentx", application, spawn=1) as server:
        with Browser(server) as one, Browser(server) as other:
            one.ask("/wait")
            wait_until(lambda: application.running)
            assert server.server.full() and server.server.pool.free_count() == 0
            other.ask("/next")
            one.ask("/after")
            gevent.sleep(0.05)  # what must not happen has no event
            application.go.set()
            assert [one.receive().status, other.receive().status, one.receive().status] == [200, 200, 200]
        wait_until(lambda: server.server.pool.free_count() == 1)


def test_an_upload_that_nobody_reads_holds_no_place_in_the_pool() -> None:
    """Others are answered while its client does not send the rest."""
    with serving("greentx", hello, spawn=1) as server, Browser(server) as idle, Browser(server) as other:
        idle.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\nbegin")
        assert idle.receive().body == b"hello"
        assert other.get().body == b"hello"
        wait_until(lambda: server.server.pool.free_count() == 1)
        assert len(server.server.intake.schedule.lines) == 1
        server.server.stop(0)
        assert idle.at_end()


def test_spawn_none_handles_one_after_the_other() -> None:
    """In one greenlet, which may block."""
    application = Stuck()
    with serving("greentx", application, spawn=None) as server:
        with Browser(server) as one, Browser(server) as other:
            one.ask("/wait", method="POST", body=b"x" * 400_000)
            wait_until(lambda: application.running)
            other.ask("/next")
            gevent.sleep(0.05)  # what must not happen has no event
            application.go.set()
            assert [one.receive().status, other.receive().status] == [200, 200]


def test_accepting_may_be_interrupted() -> None:
    """Requests that come meanwhile wait."""
    with serving("greentx", hello) as server, Browser(server) as browser:
        assert browser.get().body == b"hello"
        server.server.stop_accepting()
        browser.ask()
        with gevent.Timeout(0.1, False):
            browser.receive()
            pytest.fail("it was handled")
        server.server.start_accepting()
        assert browser.receive().body == b"hello"


def test_close_lets_running_requests_finish() -> None:
    """And answers new ones with 503; then the port is free."""
    application = Stuck()
    server = WSGIServer(LOCAL, application, log=None)
    server.start()
    with Browser(Server(port=server.server_port)) as one, Browser(Server(port=server.server_port)) as other:
        one.ask("/wait")
        assert other.get("/first").status == 200
        wait_until(lambda: application.running)
        server.close()
        assert not server.started and not server.closed
        assert other.get("/late").status == 503
        application.go.set()
        assert one.receive().body == b"hello"
    server.stop(5)
    assert server.closed and application.done == 1


@pytest.mark.parametrize("spawn", ["default", 5, None])
def test_stop_kills_what_does_not_end(spawn: Any) -> None:
    """After its timeout."""
    application = Stuck()
    server = WSGIServer(LOCAL, application, log=None, spawn=spawn)
    server.start()
    with Browser(Server(port=server.server_port)) as browser:
        browser.ask("/wait")
        wait_until(lambda: application.running)
        began = time.monotonic()
        server.stop(0.1)
        assert time.monotonic() - began < 5
        assert server.closed and application.done == 0


def test_a_handler_may_stop_its_server() -> None:
    """Its own answer still goes out."""
    server = WSGIServer(LOCAL, None, log=None)

    def stopping(environ: Any, start_response: Any) -> Any:
        server.stop()
        return hello(environ, start_response)

    server.application = stopping
    server.start()
    assert body_of(server.server_port) == b"hello"
    wait_until(lambda: server.closed)


def test_a_front_end_that_died_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    """On the same port, for the same application."""
    server = WSGIServer(LOCAL, hello, log=None)
    server.start()
    try:
        port, pid = server.server_port, server.listener.process.pid
        assert body_of(port) == b"hello"
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "was started again" in caplog.text)
        assert body_of(port) == b"hello"
        assert server.started and server.listener.process.pid != pid
    finally:
        server.stop()


def test_a_front_end_that_dies_again_and_again_is_soon_back(caplog: pytest.LogCaptureFixture) -> None:
    """It is away for little more than a second, however often it died before."""
    server = WSGIServer(LOCAL, hello, log=None)
    server.start()
    try:
        for times in range(1, 8):
            os.kill(server.listener.process.pid, signal.SIGKILL)
            # The seventh took 6.4 s, where the wait was doubled each time.
            wait_until(lambda times=times: caplog.text.count("was started again") == times)
        assert body_of(server.server_port) == b"hello"
    finally:
        server.stop()


def test_a_server_stops_in_time_though_a_browser_does_not_read(start_mongrel2: StartMongrel2) -> None:
    """Also behind a front end that goes on, where the next process would serve what is still to come."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return (bytes(50_000) for _ in range(1000))

    for settings in ({}, {"download.flow_control": 1}):
        mongrel2 = start_mongrel2(settings=settings)
        (handler,) = mongrel2.handlers
        server = WSGIServer((handler.sender, handler.send_spec, handler.recv_spec), application, log=None)
        server.start()
        assert server.transceiver is not None
        server.transceiver.wait_ready(5)
        try:
            with Browser(mongrel2, receive_buffer=4096) as browser:
                browser.ask()
                assert browser.read(12) == b"HTTP/1.1 200"
                began = time.monotonic()
                server.stop(1)
                # What was given, the linger of 1 s, and 1 s more; it was 6 s and more.
                assert time.monotonic() - began < 4
        finally:
            server.stop(0)


def test_a_front_end_that_only_listens_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    """As that of a supervisor, whose workers serve: on the same endpoints, and watched once, however often bound."""
    listener = TcpListener(LOCAL)
    listener.bind()
    listener.bind()
    try:
        mongrel2, port = listener.process, listener.address[1]
        pid = mongrel2.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "was started again" in caplog.text)
        assert mongrel2.started and mongrel2.pid != pid and mongrel2.port == port
        # Whoever binds in between does not have to wait for that, and watches it no second time.
        assert mongrel2.pid is not None
        os.kill(mongrel2.pid, signal.SIGKILL)
        wait_until(lambda: not mongrel2.started)
        listener.bind()
        assert mongrel2.started and mongrel2.port == port
    finally:
        listener.close()
    assert not listener.process.started


# -- where it listens --------------------------------------------------------------------------------------------------


def test_an_address_in_use_is_named() -> None:
    """And nothing is left behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = WSGIServer(("127.0.0.1", port), hello)
        with pytest.raises(BindError, match=f"127.0.0.1:{port}.*in use") as caught:
            server.start()
        assert caught.value.errno == errno.EADDRINUSE
        assert not server.started and server.closed


def test_a_missing_mongrel2_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is not part of the package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Mongrel2NotFound, match="apt-get install mongrel2-core"):
        WSGIServer(LOCAL, hello, front_end="mongrel2").start()


@pytest.mark.parametrize("how", ["triple", "url", "transceiver", "running transceiver"])
def test_it_serves_behind_somebody_elses_mongrel2(how: str, start_mongrel2: StartMongrel2) -> None:
    """By each way to name it; started again, too."""
    front = start_mongrel2({"/": Handler("wsgi-test")})
    handler = front.handlers[0]
    listener: Any = (handler.sender, handler.send_spec, handler.recv_spec)
    transceiver = greentx.Transceiver(*listener, rep_port=False)
    if how == "url":
        listener = f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"
    elif how != "triple":
        listener = transceiver
    if how == "running transceiver":
        transceiver.start()
    server = WSGIServer(listener, hello, log=None)
    for _ in range(2):
        server.start()
        # What is pushed to the PULL socket of before, while Mongrel2 does not know yet that it closed, is lost.
        server.transceiver.wait_ready(10)
        assert body_of(front.port) == b"hello"
        assert server.server_port is None and server.server_host is None
        server.stop()
    assert transceiver.started == (how == "running transceiver")
    if transceiver.started:
        transceiver.stop()


@pytest.mark.parametrize("what", ["answer", "body"])
def test_what_runs_at_the_end_is_answered_whole(what: str, start_mongrel2: StartMongrel2) -> None:
    """Behind a Mongrel2 that goes on, which says by the way of requests what it wrote and what more came of a body."""
    settings: dict[str, int | str] = {"download.flow_control": 1, "upload.stream": 1, "limits.content_length": 262144}
    front = start_mongrel2({"/": Handler("wsgi-test")}, settings=settings)
    handler = front.handlers[0]
    go, running = Event(), Event()

    def application(environ: Any, start_response: Any) -> Any:
        running.set()
        go.wait(10)
        start_response("200 OK", TEXT)
        if environ["REQUEST_METHOD"] == "POST":
            return [b"%d" % len(environ["wsgi.input"].read())]
        return (bytes(50_000) for _ in range(40))

    server = WSGIServer((handler.sender, handler.send_spec, handler.recv_spec), application, log=None)
    server.start()
    server.transceiver.wait_ready(10)
    with Browser(front) as browser:
        if what == "answer":
            browser.ask("/", "Connection: close")
        else:
            browser.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n", bytes(1_000_000))
        assert running.wait(5)
        ending = gevent.spawn(server.stop, 8)
        gevent.sleep(0.1)  # until it waits in there, which nobody is told
        go.set()
        if what == "answer":
            assert len(browser.receive().body) == 2_000_000
            assert browser.at_end()
        else:
            browser.send(bytes(2_000_000))
            assert browser.receive().body == b"3000000"
        ending.get(timeout=5)


def test_a_browser_that_takes_nothing_does_not_keep_a_server(start_mongrel2: StartMongrel2) -> None:
    """Nor does an answer without an end: it ends within the time it was given."""
    front = start_mongrel2({"/": Handler("wsgi-test")}, settings={"download.flow_control": 1})
    handler = front.handlers[0]

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        while True:
            yield bytes(50_000)
            gevent.sleep(0.001)  # each part in a message of its own

    server = WSGIServer((handler.sender, handler.send_spec, handler.recv_spec), application, log=None)
    server.start()
    server.transceiver.wait_ready(10)
    with Browser(front, receive_buffer=4096) as stuck, Browser(front) as reader:
        stuck.ask()
        reader.ask()
        assert len(reader.read(5_000_000)) == 5_000_000
        ending = gevent.spawn(server.stop, 1)
        with gevent.Timeout(15):
            while reader.socket.recv(65536):
                pass
            ending.get()


def test_a_transceiver_that_stops_takes_its_server_along(start_mongrel2: StartMongrel2) -> None:
    """After the requests that run."""
    front = start_mongrel2({"/": Handler("wsgi-test")})
    handler = front.handlers[0]
    application = Stuck()
    with greentx.Transceiver(handler.sender, handler.send_spec, handler.recv_spec, rep_port=False) as transceiver:
        server = WSGIServer(transceiver, application, log=None)
        server.start()
        with Browser(front) as browser:
            browser.ask("/wait")
            wait_until(lambda: application.running)
            gevent.spawn_later(0.05, application.go.set)
            transceiver.stop(5)
            assert browser.receive().body == b"hello"
        wait_until(lambda: not server.started)
        server.stop()


def test_tls_is_the_front_ends() -> None:
    """With the names of gevent's arguments; the environ says so."""
    import ssl

    pem = str(Path(__file__).parent.parent / "data" / "localhost.pem")

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [environ["wsgi.url_scheme"].encode()]

    server = WSGIServer(LOCAL, application, log=None, certfile=pem, keyfile=pem)
    assert server.ssl_enabled
    server.start()
    try:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def fetch() -> bytes:
            import http.client

            connection = http.client.HTTPSConnection("127.0.0.1", server.server_port, timeout=10, context=context)
            connection.request("GET", "/")
            try:
                return connection.getresponse().read()
            finally:
                connection.close()

        assert gevent.get_hub().threadpool.apply(fetch) == b"https"
    finally:
        server.stop()


# -- what only ours does -----------------------------------------------------------------------------------------------


def case_head(server: Server) -> None:
    """No body goes out on HEAD, with the length that GET would have."""
    server.application = hello
    assert see(server, ask(method="HEAD"), ask(method="HEAD"))[0][2:] == (
        [("content-length", "5"), ("content-type", "text/plain"), ("date", "now")],
        b"",
    )


def case_head_of_a_generator(server: Server) -> None:
    """Nor its chunks."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return iter([b"one ", b"two"])

    server.application = application
    assert [part if isinstance(part, str) else part[3] for part in see(server, ask(method="HEAD"))] == [b"", "open"]


def case_too_long(server: Server) -> None:
    """A body is cut at its Content-Length: the rest would be the next answer."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "3")])
        return [b"hello"] if environ["PATH_INFO"] == "/list" else iter([b"he", b"llo"])

    server.application = application
    answers = see(server, ask("/list"), ask("/iterator"))
    assert [answers[0][3], answers[1][3], answers[2]] == [b"hel", b"hel", "open"]
    assert server.errors.getvalue().count("longer than its Content-Length") == 2


def case_too_short(server: Server) -> None:
    """A body that ends before its Content-Length ends the connection."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "50")])
        return [b"hello"]

    server.application = application
    assert talk(server.port, ask()[1]).endswith(b"\r\n\r\nhello")
    assert "45 bytes of the body are missing" in server.errors.getvalue()


def case_http10(server: Server) -> None:
    """A body without a length ends with the connection, also where HTTP/1.0 asked to keep it."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return iter([b"one ", b"two"])

    server.application = application
    answer = talk(server.port, ask("/", "Connection: keep-alive", version="HTTP/1.0")[1])
    assert answer.endswith(b"\r\n\r\none two") and b"Connection: close\r\n" in answer


def case_smuggling(server: Server) -> None:
    """Two ideas of where a body ends: 400, and the connection is closed."""
    server.application = hello
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    for lines in (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(smuggled),
        b"Transfer-Encoding: Chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Content-Length: nine\r\n",
    ):
        answer = talk(server.port, b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (lines, smuggled))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n") and answer.count(b"HTTP/1.1") == 1
    assert "POST" not in server.log.getvalue() and "smuggled" not in server.log.getvalue()


def case_failure_after_output(server: Server) -> None:
    """What was written goes out, then the connection ends."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "50")])

        def blocks() -> Any:
            yield b"one "
            yield b"two"
            raise RuntimeError("secret")

        return blocks()

    server.application = application
    assert talk(server.port, ask()[1]).endswith(b"\r\n\r\none two")


def case_no_details(server: Server) -> None:
    """The 500 page tells nothing."""

    def application(environ: Any, start_response: Any) -> Any:
        raise RuntimeError("secret")

    server.application = application
    answer = talk(server.port, ask()[1])
    assert answer.startswith(b"HTTP/1.1 500 ") and answer.endswith(b"\r\n\r\nInternal Server Error")


def case_a_block_of_text(server: Server) -> None:
    """Where nothing was sent yet the answer is a 500, however the application hands it over."""

    def application(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        path = environ["PATH_INFO"]
        if path == "/write":
            write("text")
        text: Any = "text" * 50000 if path == "/large" else "text"
        return iter([text]) if path == "/iterator" else [text, text] if path == "/two" else [text]

    server.application = application
    for path in ("/list", "/two", "/large", "/iterator", "/write"):
        answer = talk(server.port, ask(path)[1])
        assert answer.startswith(b"HTTP/1.1 500 ") and answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"\r\n\r\nInternal Server Error")
    assert re.findall(r'"GET /(\w+) HTTP/1.1" (\d+)', server.log.getvalue()) == [
        (name, "500") for name in ("list", "two", "large", "iterator", "write")
    ]


def case_write_after_a_block_of_text(server: Server) -> None:
    """An application that learns of its mistake may go on, or begin anew: nothing of the first attempt is left."""

    def application(environ: Any, start_response: Any) -> Any:
        length = [("Content-Length", "5")] if environ["PATH_INFO"] == "/length" else []
        write = start_response("200 OK", length)
        try:
            write("text")
        except TypeError:
            if environ["PATH_INFO"] == "/anew":
                start_response("503 Sorry", [("Content-Length", "5")], sys.exc_info())
        write(bytearray(b"he"))
        return iter([memoryview(b"llo")])

    server.application = application
    answers = see(server, ask("/chunked"), ask("/length"), ask("/anew"))
    assert answers == [
        (200, "OK", [("date", "now"), ("transfer-encoding", "chunked")], b"hello"),
        (200, "OK", [("content-length", "5"), ("date", "now")], b"hello"),
        (503, "Sorry", [("content-length", "5"), ("date", "now")], b"hello"),
        "open",
    ]


def case_finalize_headers_that_fails(server: Server) -> None:
    """A hook that raises is answered 500 like the application; one that fails once leaves the framing as it was."""
    failing = [True]

    class Failing(WSGIHandler):
        def finalize_headers(self) -> None:
            super().finalize_headers()
            if failing and self.command == "GET":
                failing.pop()
                raise KeyError("of the hook")

    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/list":
            return hello(environ, start_response)
        write = start_response("200 OK", TEXT)
        try:
            write(b"lost")
        except KeyError:
            start_response("503 Sorry", [("Content-Length", "5")], sys.exc_info())
        return iter([b"hello"])

    server.application = application
    server.server.handler_class = Failing
    try:
        assert talk(server.port, ask("/list")[1]).startswith(b"HTTP/1.1 500 ")
        failing.append(True)
        answer = see(server, ask("/iterator"))
        assert answer == [(503, "Sorry", [("content-length", "5"), ("date", "now")], b"hello"), "open"]
    finally:
        del server.server.handler_class


def case_transfer_encoding_of_the_application(server: Server) -> None:
    """PEP 3333 forbids it."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Transfer-Encoding", "chunked")])
        return [b"0\r\n\r\n"]

    server.application = application
    assert talk(server.port, ask()[1]).startswith(b"HTTP/1.1 500 ")


def case_file_wrapper(server: Server) -> None:
    """``wsgi.file_wrapper`` streams a file, and closes it."""
    files: list[Any] = []

    def application(environ: Any, start_response: Any) -> Any:
        files.append(io.BytesIO(bytes(1_000_000)))
        start_response("200 OK", [("Content-Length", "1000000")])
        return environ["wsgi.file_wrapper"](files[-1])

    server.application = application
    assert see(server, ask())[0][3] == bytes(1_000_000)
    assert files[0].closed


def case_environ(server: Server) -> None:
    """What is greentx's own in the environ."""
    found: dict[str, Any] = {}

    def application(environ: Any, start_response: Any) -> Any:
        found.update(environ)
        return hello(environ, start_response)

    server.application = application
    with Browser(server) as browser:
        browser.get("/a?b")
    assert found["SERVER_SOFTWARE"] == "greentx/" + ".".join(greentx.__version__.split(".")[:2])
    assert (found["SERVER_NAME"], found["SERVER_PORT"]) == ("localhost", "80")
    assert (found["RAW_URI"], found["REQUEST_URI"], found["REMOTE_PORT"]) == ("/a?b", "/a?b", "")
    assert found["greentx.request"].path == "/a" and not found["greentx.disconnected"].is_set()
    assert found["wsgi.input_terminated"] is True and "HTTP_X_FORWARDED_FOR" not in found


def case_client_leaves(server: Server) -> None:
    """``wsgi.input`` raises, ``greentx.disconnected`` is set, the generator is closed; no error is logged."""
    begun: list[str] = []
    events: list[str] = []

    def application(environ: Any, start_response: Any) -> Any:
        begun.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/read":
            try:
                environ["wsgi.input"].read()
            except ConnectionResetError:
                events.append("read")
                raise
        if environ["PATH_INFO"] == "/wait":
            assert environ["greentx.disconnected"].wait(5)
            events.append("disconnected")
        start_response("200 OK", TEXT)

        def endless() -> Any:
            try:
                while True:
                    yield b"" if environ["PATH_INFO"] == "/empty" else b"x" * 1000
                    gevent.sleep(0.001)  # each part in a message of its own
            finally:
                events.append("closed")

        return endless()

    server.application = application
    for request in (
        b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nbegin",
        ask("/wait")[1],
        ask("/endless")[1],
        ask("/empty")[1],
    ):
        before = len(events)
        asked = len(begun) + 1
        with Browser(server) as browser:
            browser.send(request)
            wait_until(lambda asked=asked: len(begun) == asked)
        wait_until(lambda before=before: len(events) > before)
    wait_until(lambda: len(events) == 5)
    assert events == ["read", "disconnected", "closed", "closed", "closed"]
    assert server.errors.getvalue() == ""


def case_streaming(server: Server) -> None:
    """A block arrives before the next one is asked for."""
    go = Event()

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "6")])
        yield b"one"
        yield b"two" if go.wait(5) else b"late"

    server.application = application
    with Browser(server) as browser:
        browser.ask()
        head = browser.read(1)
        while not head.endswith(b"\r\n\r\n"):
            head += browser.read(1)
        assert browser.read(3) == b"one"
        go.set()
        assert browser.read(3) == b"two"


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def case_slow_reader(server: Server) -> None:
    """It holds up its own application, which is asked for no more than it takes, and nobody else."""
    blocks = 0

    def application(environ: Any, start_response: Any) -> Any:
        nonlocal blocks
        if environ["PATH_INFO"] != "/large":
            yield from hello(environ, start_response)
            return
        start_response("200 OK", [("Content-Length", str(16384 * 65536))])
        for _ in range(16384):
            blocks += 1
            yield b"x" * 65536

    server.application = application
    see(server, ask())
    before = _resident()
    with Browser(server, receive_buffer=65536) as slow:
        slow.ask("/large")
        read = 0
        for _ in range(10):
            read += len(slow.socket.recv(10000))
            began = time.monotonic()
            assert see(server, ask())[-1] == "open"
            assert time.monotonic() - began < 5
        assert blocks * 65536 < read + 8_000_000  # what sockets hold, and the outbox
        assert _resident() - before < 20_000_000
    ended = blocks
    gevent.sleep(0.05)  # what must not happen has no event
    assert blocks <= ended + 5


def case_large_upload(server: Server) -> None:
    """It comes as it is read: the memory of the server does not grow with it."""
    peak = 0

    def application(environ: Any, start_response: Any) -> Any:
        nonlocal peak
        size = 0
        while data := environ["wsgi.input"].read(65536):
            size += len(data)
            if size % (65536 * 64) == 0:
                peak = max(peak, _resident())
        start_response("200 OK", TEXT)
        return [b"%d" % size]

    server.application = application
    before = _resident()
    with Browser(server) as browser:
        browser.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(100):
            browser.send(bytes(1_000_000))
        assert browser.receive().body == b"100000000"
        assert browser.get(method="POST", body=b"next").body == b"4"
    assert peak - before < 20_000_000


def case_unread_upload(server: Server) -> None:
    """A client that sends all before it reads sees its answer, and may go on."""
    server.application = hello
    with Browser(server) as browser:
        browser.ask("/", method="POST", body=bytes(40_000_000))
        assert browser.receive().body == b"hello"
        assert browser.get(method="POST", body=b"next").body == b"hello"
        browser.ask("/", "Connection: close", method="POST", body=bytes(20_000_000))
        assert browser.receive().body == b"hello"
        assert browser.at_end()


def _held_by(server: Server) -> int:
    """How many sockets the server's Mongrel2 has."""
    folder = Path(f"/proc/{server.server.listener.process.pid}/fd")
    return sum(1 for entry in folder.iterdir() if "socket" in _link(entry))


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:
        return ""


def case_broken_uploads(server: Server) -> None:
    """However an answer ends in front of the end of an upload, Mongrel2 does not keep the connection."""

    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/raise":
            raise ValueError("of this test")
        if environ["PATH_INFO"] == "/part":
            environ["wsgi.input"].read(1000)
        start_response("200 OK", TEXT)
        return _failing() if environ["PATH_INFO"] == "/late" else [b"hello"]

    def _failing() -> Any:
        yield b"begin"
        raise ValueError("of this test")

    server.application = application
    see(server, ask("/"))
    before = _held_by(server)
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n%b\r\n"
    stream, gevent.get_hub().exception_stream = gevent.get_hub().exception_stream, None
    idle, exchange_module.LINGER_IDLE_SECONDS = exchange_module.LINGER_IDLE_SECONDS, 0.3
    try:
        for path in (b"/raise", b"/part", b"/late", b"/none"):
            for sent in (10_000, 500_000, 3_000_000):
                with Browser(server) as browser:
                    browser.send(head % (path, b"Connection: close\r\n"), bytes(sent))
                    code = b"500" if path == b"/raise" else b"200"
                    assert browser.read(12) == b"HTTP/1.1 " + code
                    if sent != 500_000:  # it waits for the end; else it goes away
                        while browser.socket.recv(65536):
                            pass
        with Browser(server) as browser:
            both = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\nTransfer-Encoding: chunked\r\n\r\n"
            browser.send(both, b"x" * 3_000_000)
            assert browser.receive().status == 400
        wait_until(lambda: _held_by(server) <= before)
    finally:
        gevent.get_hub().exception_stream = stream
        exchange_module.LINGER_IDLE_SECONDS = idle


ONLY_OURS: list[Callable[[Server], None]] = [
    case_head,
    case_head_of_a_generator,
    case_too_long,
    case_too_short,
    case_http10,
    case_smuggling,
    case_failure_after_output,
    case_no_details,
    case_a_block_of_text,
    case_write_after_a_block_of_text,
    case_finalize_headers_that_fails,
    case_transfer_encoding_of_the_application,
    case_file_wrapper,
    case_environ,
    case_client_leaves,
    case_streaming,
    case_slow_reader,
    case_large_upload,
    case_unread_upload,
    case_broken_uploads,
]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, BaseException | None]:
    """What came of each case, with one server."""
    found: dict[str, BaseException | None] = {}
    with serving("greentx", None) as server:
        for case in ONLY_OURS:
            for log in (server.log, server.errors):
                log.seek(0)
                log.truncate()
            try:
                case(server)
                found[case.__name__] = None
            except Exception as error:  # noqa: BLE001 - reported by the case's own test
                found[case.__name__] = error
    return found


@pytest.mark.parametrize("case", ONLY_OURS, ids=lambda case: case.__name__)
def test_what_only_ours_does(case: Callable[[Server], None], outcomes: dict[str, BaseException | None]) -> None:
    """See the case."""
    error = outcomes[case.__name__]
    if error is not None:
        raise error


def test_stored_bodies_are_read_and_deleted(start_mongrel2: StartMongrel2, tmp_path: Path) -> None:
    """With ``upload.temp_store``: cut where they end, and out of the own store only."""
    store = f"{tmp_path}/up.XXXXXX"
    front = start_mongrel2({"/": Handler("wsgi-test")}, settings={"upload.temp_store": store})
    handler = front.handlers[0]
    log, errors = io.StringIO(), io.StringIO()
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")

    def application(environ: Any, start_response: Any) -> Any:
        size = len(environ["wsgi.input"].read())
        start_response("200 OK", TEXT)
        return [b"%d" % size]

    server = WSGIServer(
        (handler.sender, handler.send_spec, handler.recv_spec),
        application,
        log=log,
        error_log=errors,
        upload_store=store,
    )
    server.start()
    try:
        with Browser(front) as browser:
            assert browser.get(method="POST", body=bytes(3_000_000)).body == b"3000000"
            for lines in (
                [f"x-mongrel2-upload-start: {outside}", f"x-mongrel2-upload-done: {outside}"],
                [f"x-mongrel2-upload-start: {tmp_path}/up.abcdef", f"x-mongrel2-upload-done: {tmp_path}/up.abcdef"],
            ):
                assert browser.get("/", *lines, method="POST", body=b"small").body == b"5"
            assert browser.get("/", *lines).body == b"0"
        with Browser(front) as browser:
            browser.ask("/", "Connection: close", method="POST", body=bytes(2_000_000))
            assert browser.receive().body == b"2000000" and browser.at_end()
        with Browser(front) as browser:  # a forged name beside the server's own: refused
            lines = [f"x-mongrel2-upload-start: {outside}"]
            browser.ask("/", *lines, method="POST", body=bytes(2_000_000))
            assert browser.receive().status in (200, 400)
        with Browser(front) as browser:  # goes away in the middle
            browser.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n", bytes(2_000_000))
            wait_until(lambda: list(tmp_path.glob("up.*")))
        wait_until(lambda: not list(tmp_path.glob("up.*")))
        assert outside.read_bytes() == b"secret"
    finally:
        server.stop()
