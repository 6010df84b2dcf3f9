"""One set of cases, run against gevent.pywsgi and ours: a browser sees no difference."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any
from wsgiref.validate import validator

import pytest
from front_ends import FrontEnd
from wsgi_rig import KINDS, ask, see, serving

App = Callable[[Any, Any], Any]
TEXT = [("Content-Type", "text/plain")]


class Closing:
    """A result that says in *events* what happened to it."""

    def __init__(self, blocks: list[bytes | Exception], events: list[str]) -> None:
        self.blocks = iter(blocks)
        self.events = events

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        block = next(self.blocks)
        if isinstance(block, Exception):
            raise block
        return block

    def close(self) -> None:
        self.events.append("closed")


def answering(result: Any, status: str = "200 OK", headers: Any = TEXT) -> App:
    """An application that always answers that; a callable *result* is called for each request."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response(status, list(headers))
        return result() if callable(result) else result

    return application


def generator(*blocks: bytes) -> App:
    return answering(lambda: (block for block in blocks))


def writing(*blocks: bytes, then: Any = ()) -> App:
    def application(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        for block in blocks:
            write(block)
        return then

    return application


def with_body(read: Callable[[Any], Any]) -> App:
    """An application that answers with what *read* does with ``wsgi.input``."""

    def application(environ: Any, start_response: Any) -> Any:
        found = repr(read(environ["wsgi.input"])).encode()
        start_response("200 OK", TEXT)
        return [found]

    return application


def restarting(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("X-First", "1")])
    try:
        raise KeyError("late")
    except KeyError:
        start_response("503 Sorry", [("X-Second", "2")], sys.exc_info())
    return [b"sorry"]


def environ_part(*keys: str) -> App:
    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [repr({key: environ.get(key) for key in keys}).encode()]

    return application


def told(environ: Any, start_response: Any) -> Any:
    write = start_response("304 Not Modified", [])
    try:
        write(b"x")
    except AssertionError as error:
        start_response("200 OK", TEXT, sys.exc_info())
        return [str(error).encode()]
    return []


HTTP10 = {"version": "HTTP/1.0"}
UPLOAD = b"first line\nsecond line\nthird"
POST = ask("/form", "Content-Type: text/x-lines", method="POST", body=UPLOAD)
CHUNKED = ask(
    "/form", "Transfer-Encoding: chunked", method="POST", body=b"6\r\nfirst \r\n5\r\nline\n\r\n4\r\nlast\r\n0\r\n\r\n"
)

CASES: dict[str, tuple[App, list[tuple[str, bytes]]]] = {
    "one block": (answering([b"hello"]), [ask()]),
    "several blocks": (answering([b"one ", b"", b"two"]), [ask()]),
    "a tuple": (answering((b"one ", b"two")), [ask()]),
    "the text of an error": (told, [ask()]),
    "the server itself": (environ_part("REQUEST_METHOD", "PATH_INFO"), [ask("*", method="OPTIONS")]),
    "cookies of both names": (
        environ_part("HTTP_COOKIE", "HTTP_COOKIE2"),
        [ask("/", "Cookie: a=1", "Cookie2: b=2", "Cookie2: c=3", "Cookie: d=4")],
    ),
    "a head of 50 KB": (environ_part("HTTP_X_A"), [ask("/", *(f"X-A: {'a' * 12500}" for _ in range(4)))]),
    "90 headers": (environ_part("HTTP_X89"), [ask("/", *(f"X{number}: {number}" for number in range(90)))]),
    "no block": (answering([]), [ask()]),
    "bytes of no block": (answering([b""]), [ask()]),
    "a generator": (generator(b"one ", b"", b"two"), [ask()]),
    "an empty generator": (generator(), [ask()]),
    "a generator with a length": (
        answering(lambda: iter([b"one ", b"two"]), headers=[("Content-Length", "7")]),
        [ask()],
    ),
    "a generator for HTTP/1.0": (generator(b"one ", b"two"), [ask(**HTTP10)]),
    "a large generator": (answering(lambda: (b"%06d\n" % number for number in range(20000))), [ask()]),
    "write()": (writing(b"one ", b"", b"two"), [ask()]),
    "write() and blocks": (writing(b"one ", then=[b"two"]), [ask()]),
    "an unusual status": (answering([b"x"], "299 Rather Strange"), [ask()]),
    "a status without words": (answering([b"x"], "200 "), [ask()]),
    "headers repeated": (answering([b"x"], headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]), [ask()]),
    "a header in latin-1": (answering([b"x"], headers=[("X-Name", "caf\xe9")]), [ask()]),
    "a date of its own": (answering([b"x"], headers=[("Date", "Thu, 01 Jan 1970 00:00:00 GMT")]), [ask()]),
    "the application closes": (answering([b"x"], headers=[("Connection", "close")]), [ask()]),
    "204": (answering([], "204 No Content", []), [ask()]),
    "304": (answering([], "304 Not Modified", []), [ask()]),
    "HEAD with a length": (answering([], headers=[("Content-Length", "5")]), [ask(method="HEAD")]),
    "two requests": (answering([b"hello"]), [ask("/1"), ask("/2")]),
    "the client closes": (answering([b"hello"]), [ask("/", "Connection: close")]),
    "HTTP/1.0": (answering([b"hello"]), [ask(**HTTP10)]),
    "HTTP/1.0 that stays": (answering([b"hello"]), [ask("/", "Connection: keep-alive", **HTTP10)]),
    "an error before all": (lambda environ, start_response: 1 // 0, [ask()]),
    "an error after start_response()": (answering(lambda: 1 // 0), [ask()]),
    "an error in the first block": (answering(lambda: Closing([ValueError("no")], [])), [ask()]),
    "a carriage return in a header": (answering([b"x"], headers=[("X-Bad", "a\r\nSet-Cookie: b")]), [ask()]),
    "a line feed in a name": (answering([b"x"], headers=[("X-Bad\n", "a")]), [ask()]),
    "a line feed in the status": (answering([b"x"], "200 OK\nX-Bad: a"), [ask()]),
    "a header as bytes": (answering([b"x"], headers=[("X-Bad", b"a")]), [ask()]),
    "a header name as bytes": (answering([b"x"], headers=[(b"X-Bad", "a")]), [ask()]),
    "a header beyond latin-1": (answering([b"x"], headers=[("X-Bad", "\u20ac")]), [ask()]),
    "a status as bytes": (answering([b"x"], b"200 OK"), [ask()]),
    "a body in 204": (answering([b"x"], "204 No Content", []), [ask()]),
    "start_response() again": (restarting, [ask()]),
    "no start_response()": (lambda environ, start_response: [b"x"], [ask()]),
    "read all": (with_body(lambda body: body.read()), [POST]),
    "read a negative size": (with_body(lambda body: body.read(-1)), [POST]),
    "read None": (with_body(lambda body: body.read(None)), [POST]),
    "read in pieces": (with_body(lambda body: [body.read(5) for _ in range(8)]), [POST]),
    "read nothing": (with_body(lambda body: body.read(0)), [POST]),
    "readline": (with_body(lambda body: [body.readline() for _ in range(4)]), [POST]),
    "readline with a size": (with_body(lambda body: [body.readline(8), body.readline(8), body.readline(-1)]), [POST]),
    "readlines": (with_body(lambda body: body.readlines()), [POST]),
    "iteration": (with_body(list), [POST]),
    "mixed": (with_body(lambda body: [body.read(3), body.readline(), body.read()]), [POST]),
    "a body that nobody reads": (answering([b"hello"]), [POST, ask("/next")]),
    "a body that is read in part": (with_body(lambda body: body.read(3)), [POST, ask("/next")]),
    "a request without a body": (with_body(lambda body: body.read()), [ask()]),
    "a large body": (
        with_body(lambda body: len(body.read())),
        [ask(method="POST", body=b"x" * 3_000_000), ask(method="POST", body=b"y" * 400_000)],
    ),
    "a large body that nobody reads": (
        answering([b"hello"]),
        [ask(method="POST", body=b"x" * 3_000_000), ask("/next")],
    ),
    "a large body by lines": (
        with_body(lambda body: sum(len(line) for line in body)),
        [ask(method="POST", body=b"0123456789\n" * 100_000), ask("/next")],
    ),
    "a chunked body": (with_body(lambda body: body.read()), [CHUNKED]),
    "a chunked body by lines": (with_body(list), [CHUNKED, ask("/next")]),
    "a chunked body that nobody reads": (answering([b"hello"]), [CHUNKED, ask("/next")]),
    "100-continue": (with_body(lambda body: body.read()), [ask("/", "Expect: 100-continue", method="POST", body=b"x")]),
    "an escaped path": (
        environ_part("PATH_INFO", "QUERY_STRING", "SCRIPT_NAME"),
        [ask("/a%20b%2fc/caf%c3%a9?q=%20x&y"), ask("/?"), ask("//double/./dots/../"), ask("/a;b=c")],
    ),
    "the request line": (
        environ_part("REQUEST_METHOD", "SERVER_PROTOCOL", "REMOTE_ADDR"),
        [ask(), ask(method="DELETE"), ask(method="PROPFIND"), ask("/", "Connection: keep-alive", **HTTP10)],
    ),
    "headers of the client": (
        environ_part("HTTP_X_A", "HTTP_COOKIE", "HTTP_X_B", "HTTP_HOST", "HTTP_ACCEPT", "HTTP_CONTENT_TYPE"),
        [ask("/", "X-A: 1", "x-a: 2", "Cookie: a=1", "Cookie: b=2", "X_B: forged", "Accept:  text/*  ")],
    ),
    "headers of a body": (environ_part("CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_CONTENT_LENGTH"), [POST, ask()]),
    "headers that look like the server's": (
        environ_part("HTTP_METHOD", "HTTP_URI", "HTTP_REMOTE_ADDR", "REMOTE_ADDR", "REQUEST_METHOD", "HTTP_FLAGS"),
        [ask("/", "METHOD: FORGED", "URI: /forged", "REMOTE-ADDR: 1.2.3.4", "FLAGS: 0x81", "UPLOAD-STREAM: 0")],
    ),
    "what PEP 3333 asks for": (
        environ_part(
            "wsgi.version",
            "wsgi.url_scheme",
            "wsgi.multithread",
            "wsgi.multiprocess",
            "wsgi.run_once",
            "wsgi.input_terminated",
            "GATEWAY_INTERFACE",
        ),
        [ask()],
    ),
}


@functools.cache
def seen_at(kind: str) -> dict[str, list[Any]]:
    """What browsers saw of every case."""
    found: dict[str, list[Any]] = {}
    with serving(kind, None) as server:
        for name, (application, requests) in CASES.items():
            server.application = application
            found[name] = see(server, *requests)
    return found


@pytest.fixture(scope="module")
def seen(front_end: FrontEnd) -> dict[str, dict[str, list[Any]]]:
    """The same by server: gevent's and ours."""
    return {"gevent": seen_at("gevent"), "greentx": seen_at(front_end.name)}


@pytest.mark.parametrize("name", CASES)
def test_a_browser_sees_the_same(name: str, seen: dict[str, dict[str, list[Any]]]) -> None:
    """Status, headers, body, and whether the connection stays open."""
    assert seen["greentx"][name] == seen["gevent"][name]


@pytest.mark.parametrize("kind", KINDS)
def test_pipelined_requests_are_answered_in_order(kind: str) -> None:
    """One at a time, and those behind a body, too."""
    requests = [ask(f"/{number}") for number in range(20)]
    requests.insert(7, POST)

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [environ["PATH_INFO"].encode()] if environ["PATH_INFO"] < "/5" else iter([environ["PATH_INFO"].encode()])

    with serving(kind, application) as server:
        *answers, end = see(server, *requests, pipelined=True)
    paths = [f"/{number}".encode() for number in range(20)]
    paths.insert(7, b"/form")
    assert [answer[3] for answer in answers] == paths
    assert end == "open"


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_closed_whatever_happens(kind: str, greenlet_errors: list[Any]) -> None:
    """Once, also where it failed."""
    blocks: list[Any]
    with serving(kind, None) as server:
        for blocks, status in (
            ([b"x"], 200),
            ([], 200),
            ([ValueError("no")], 500),
            ([b"x", ValueError("no")], None),
        ):
            events: list[str] = []
            server.application = answering(Closing(blocks, events))
            answer = see(server, ask())[0]
            assert events == ["closed"]
            if status is None:
                assert "ended" in answer or "closed" in answer
            else:
                assert answer[0] == status
    greenlet_errors.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_after_the_headers_raises_in_start_response(kind: str, greenlet_errors: list[Any]) -> None:
    """PEP 3333: with exc_info, once they were sent, the exception is raised again."""
    raised = []

    def application(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        write(b"begun")
        try:
            raise KeyError("late")
        except KeyError:
            try:
                start_response("500 Oh", [], sys.exc_info())
            except KeyError as error:
                raised.append(error)
        return [b" and done"]

    with serving(kind, application) as server:
        assert see(server, ask())[0][3] == b"begun and done"
    assert len(raised) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_wsgiref_validates_it(kind: str) -> None:
    """What the server does to the application, and the application to the server."""

    def application(environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"]
        data = body.read(3) + body.readline() + b"".join(body.readlines()) + b"".join(body)
        environ["wsgi.errors"].write("a line\n")
        environ["wsgi.errors"].flush()
        start_response("200 OK", TEXT)
        return [b"%d" % len(data)]

    with serving(kind, validator(application)) as server:
        # Its own server-side check wants str and a list, as start_response() gets them.
        seen = see(server, POST, ask(), ask(method="HEAD"))
    assert [answer[0] for answer in seen[:3]] == [200, 200, 200], server.errors.getvalue()
    assert server.errors.getvalue().count("a line\n") == 3


def test_the_access_log_is_the_same(front_end: FrontEnd) -> None:
    """Line for line, but for times; the length counts the head."""
    cases = [
        (answering([b"hello"]), ask("/a%20b?c=d")),
        (generator(b"one ", b"two"), ask("/gen")),
        (answering([], "204 No Content", []), ask("/none", "Connection: keep-alive", **HTTP10, method="DELETE")),
    ]
    lines: dict[str, list[str]] = {}
    for kind in ("gevent", front_end.name):
        with serving(kind, None) as server:
            for application, request in cases:
                server.application = application
                see(server, request)
            lines[kind] = [
                re.sub(r"\[[-0-9: ]+\]", "[now]", re.sub(r" \d+\.\d{6}$", " taken", line))
                for line in server.log.getvalue().splitlines()
            ]
    assert lines[front_end.name] == lines["gevent"]
    assert lines["gevent"][0] == '127.0.0.1 - - [now] "GET /a%20b?c=d HTTP/1.1" 200 106 taken'


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("kind", KINDS)
def test_logs_may_be_loggers_writers_or_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """As the ``log`` and ``error_log`` of gevent.pywsgi."""
    import logging

    writer = _Writer()
    caplog.set_level(logging.DEBUG, logger="test.errors")

    def application(environ: Any, start_response: Any) -> Any:
        environ["wsgi.errors"].write("trouble\n")
        start_response("200 OK", TEXT)
        return [b""]

    with serving(kind, application, log=writer, error_log=logging.getLogger("test.errors")) as server:
        see(server, ask())
    assert '"GET / HTTP/1.1" 200' in writer.lines[0] and writer.lines[0].endswith("\n")
    assert ("test.errors", logging.ERROR, "trouble") in caplog.record_tuples
    with serving(kind, application, log=logging.getLogger("test.errors"), error_log=None) as server:
        see(server, ask())
    assert any(level == logging.INFO and "GET / HTTP/1.1" in text for _, level, text in caplog.record_tuples)
    with serving(kind, application, log=None, error_log=None) as server:
        assert see(server, ask())[0][0] == 200
