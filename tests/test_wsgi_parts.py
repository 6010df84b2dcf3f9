"""The parts of the WSGI server that need no front end: environ, bodies, pieces of responses, logs."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import sys
from typing import Any

import gevent
import pytest

from greentx import Connector, Transceiver
from greentx.errors import RemoteProtocolError
from greentx.protocol.framing import FramingError
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request
from greentx.wsgi import WSGIServer
from greentx.wsgi.accesslog import NoLog, format_line, make_log
from greentx.wsgi.bridge import BridgeSocket
from greentx.wsgi.environ import KNOWN_HOSTS, KNOWN_KEYS, add_request
from greentx.wsgi.exchange import Exchange
from greentx.wsgi.input import WINDOW, StreamedBody, open_streamed
from greentx.wsgi.listeners import MongrelListener, TcpListener, TransceiverListener, make_listener, parse_url
from greentx.wsgi.response import JOIN_BYTES, Body, FileWrapper, build_head, encode_headers, parse_status

NOBODY = ("127.0.0.1", 1)
SERVER_HEADERS = {
    "METHOD": "GET",
    "PATH": "/",
    "URI": "/",
    "VERSION": "HTTP/1.1",
    "URL_SCHEME": "http",
    "REMOTE_ADDR": "10.0.0.1",
    "PATTERN": "/",
}


def request(
    path: str = "/", headers: dict[str, Any] | None = None, body: bytes = b"", *, binary: bool = True, **server: str
) -> Request:
    """A request as the codec gives it: text from JSON, bytes from tnetstrings."""
    raw: dict[Any, Any] = {**SERVER_HEADERS, "PATH": path, "URI": path, **server, **(headers or {})}
    if binary:
        raw = {
            name.encode("latin-1"): [one.encode("latin-1") for one in value]
            if isinstance(value, list)
            else value.encode("latin-1")
            for name, value in raw.items()
        }
    return Request("abc", "1", path, raw, body)


def environ_of(request: Request, mount: str = "") -> dict[str, Any]:
    environ: dict[str, Any] = {
        "wsgi.url_scheme": "configured",
        "SERVER_NAME": "me",
        "SERVER_PORT": "1",
        "SCRIPT_NAME": mount,
    }
    add_request(environ, request)
    return environ


# -- environ -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", "PATH_INFO": "/"}),
        ({"METHOD": "PUT", "VERSION": "HTTP/1.0"}, {"REQUEST_METHOD": "PUT", "SERVER_PROTOCOL": "HTTP/1.0"}),
        ({"QUERY": "a=%20b"}, {"QUERY_STRING": "a=%20b"}),
        ({"URI": "/x%20y?z"}, {"RAW_URI": "/x%20y?z", "REQUEST_URI": "/x%20y?z"}),
        ({"path": "/a%20b/caf%C3%A9"}, {"PATH_INFO": "/a b/caf\xc3\xa9", "SCRIPT_NAME": ""}),
        ({"REMOTE_ADDR": "::1"}, {"REMOTE_ADDR": "::1"}),
        ({"URL_SCHEME": "https"}, {"wsgi.url_scheme": "https"}),
        ({"headers": {"host": "example.org"}}, {"SERVER_NAME": "example.org", "SERVER_PORT": "80"}),
        (
            {"headers": {"host": "example.org"}, "URL_SCHEME": "https"},
            {"SERVER_NAME": "example.org", "SERVER_PORT": "443"},
        ),
        ({"headers": {"host": "example.org:8000"}}, {"SERVER_NAME": "example.org", "SERVER_PORT": "8000"}),
        ({"headers": {"host": "[::1]:8000"}}, {"SERVER_NAME": "::1", "SERVER_PORT": "8000", "HTTP_HOST": "[::1]:8000"}),
        ({"headers": {"host": "[::1]"}}, {"SERVER_NAME": "::1", "SERVER_PORT": "80"}),
        ({"headers": {"host": "bad:port"}}, {"SERVER_NAME": "bad:port", "SERVER_PORT": "80"}),
        ({}, {"SERVER_NAME": "me", "SERVER_PORT": "1"}),
        ({"headers": {"content-type": "a/b", "x-a": "1"}}, {"CONTENT_TYPE": "a/b", "HTTP_X_A": "1"}),
        ({"headers": {"x-a": ["1", "2 "]}}, {"HTTP_X_A": "1,2"}),
        ({"headers": {"cookie": ["a=1", "b=2"]}}, {"HTTP_COOKIE": "a=1; b=2"}),
        ({"headers": {"cookie2": ["a=1", "b=2"]}}, {"HTTP_COOKIE2": "a=1; b=2"}),
        ({"headers": {"content-type": ["a/b", "c/d"]}}, {"CONTENT_TYPE": "a/b"}),
        ({"headers": {"x-a": " \xe9 \t"}}, {"HTTP_X_A": " \xe9"}),
        ({"headers": {"x-a": "1 ", "x-b": "2\t", "x-c": ""}}, {"HTTP_X_A": "1", "HTTP_X_B": "2", "HTTP_X_C": ""}),
        ({"headers": {"method": "FORGED", "uri": "/f"}}, {"REQUEST_METHOD": "GET", "RAW_URI": "/", "HTTP_URI": "/f"}),
        ({"headers": {"123": "x"}}, {"HTTP_123": "x"}),
    ],
)
def test_the_environ_has_what_the_request_says(asked: dict[str, Any], expected: dict[str, Any], binary: bool) -> None:
    """Both header encodings give the same strings."""
    environ = environ_of(request(binary=binary, **asked))
    assert {key: environ.get(key) for key in expected} == expected


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("method", ["GET", None])
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("x-a", "v \t", {"HTTP_X_A": "v"}),
        ("x-a", ["v ", "w\xe9"], {"HTTP_X_A": "v,w\xe9"}),
        ("x_a", "v", {}),
        ("x_a", ["v", "w"], {}),
        ("PATTERN", ["v", "w"], {}),
    ],
)
def test_each_header_has_its_key_however_often_it_comes(
    binary: bool, method: str | None, name: str, value: Any, expected: dict[str, str]
) -> None:
    """Known names and new ones, one value or several, also without the METHOD that Mongrel2 always writes."""

    def encoded(one: Any) -> Any:
        if isinstance(one, list):
            return [encoded(part) for part in one]
        return one.encode("latin-1") if binary else one

    sent = {"URL_SCHEME": "http", "host": "h", name: value}
    if method is not None:
        sent["METHOD"] = method
    raw = {encoded(one): encoded(sent[one]) for one in sent}
    KNOWN_KEYS.clear()
    for _ in range(2):
        environ = environ_of(Request("s", "1", "/", raw, b"", "GET"))
        assert {key: one for key, one in environ.items() if key.startswith("HTTP_X")} == expected
        assert "" not in environ and environ["HTTP_HOST"] == "h"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("first", ["PATH", "METHOD", "host"])
def test_the_environ_is_the_same_whatever_came_before_and_in_any_order(first: str, turned: bool) -> None:
    """Relays and stand-ins write headers in orders of their own; what came before is not decoded again."""
    for number in range(5):
        uri = f"/p?number={number}"
        names = {**SERVER_HEADERS, "QUERY": f"number={number}", "URI": uri, "PATH": "/p", "host": "h:1", "x-a": "1"}
        order = [first, *(name for name in names if name != first)]
        if turned:
            order.reverse()
        for body in (b"", b"x"):
            headers = {name: names[name] for name in order} | ({"content-length": "1"} if body else {})
            parsed = environ_of(parse_request(build_request("abc", "1", "/p", headers, body)))
            fresh = environ_of(Request("abc", "1", "/p", headers, body))
            assert parsed.pop("greentx.request") and fresh.pop("greentx.request")
            assert parsed == fresh
            parsed["HTTP_X_A"] = "the application's own"


def test_headers_that_could_be_mistaken_are_left_out() -> None:
    """A name with an underscore, one of the server's in any case, those that announce stored bodies."""
    headers = {"x_a": "1", "x-mongrel2-upload-start": "/etc/passwd", "x-mongrel2-upload-done": "/etc/passwd"}
    environ = environ_of(request(headers=headers, PATTERN="/(.*)", FLAGS="0x81"))
    assert not [key for key in environ if "UPLOAD" in key or key in ("HTTP_X_A", "HTTP_PATTERN", "FLAGS", "PATTERN")]


@pytest.mark.parametrize(
    ("path", "mount", "script_name", "path_info"),
    [
        ("/app/page", "/app", "/app", "/page"),
        ("/app", "/app", "/app", ""),
        ("/apple", "/app", "", "/apple"),
        ("/other", "/app", "", "/other"),
        ("/a%20b/c", "/a b", "/a b", "/c"),
        ("/app", "", "", "/app"),
    ],
)
def test_an_application_may_be_mounted_at_a_path(path: str, mount: str, script_name: str, path_info: str) -> None:
    """SCRIPT_NAME and PATH_INFO together are the path."""
    environ = environ_of(request(path), mount)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def test_a_body_that_nothing_announces_is_refused() -> None:
    """Mongrel2 sends no such request; the other doubts are settled before the WSGI server hears of a request."""
    with pytest.raises(FramingError, match="5 bytes without Content-Length"):
        environ_of(request(body=b"hello"))


def test_a_length_said_twice_alike_is_one() -> None:
    """RFC 9112, section 6.3."""
    assert environ_of(request(headers={"content-length": ["5", "5"]}, body=b"hello"))["CONTENT_LENGTH"] == "5"


def test_what_clients_make_up_is_not_remembered_without_end() -> None:
    """Names and hosts are caches with bounds, in number and in size."""
    for number in range(1034):
        environ = environ_of(request(headers={f"x-{number}": "1", "host": f"h{number}"}))
        assert environ[f"HTTP_X_{number}"] == "1" and environ["SERVER_NAME"] == f"h{number}"
    assert len(KNOWN_KEYS) <= 1024 and len(KNOWN_HOSTS) <= 1024
    name, host = "x-" + "a" * 1000, "h" * 1000
    environ = environ_of(request(headers={name: "1", "host": host}))
    assert environ["HTTP_X_" + "A" * 1000] == "1" and environ["SERVER_NAME"] == host
    assert name.encode() not in KNOWN_KEYS and host not in KNOWN_HOSTS


def test_names_that_clients_make_up_do_not_keep_others_out() -> None:
    """What comes again is remembered, however many came before."""
    for number in range(2000):
        environ_of(request(headers={f"x-junk-{number}": "1"}))
    environ_of(request(headers={"x-useful": "1"}))
    assert KNOWN_KEYS[b"x-useful"] == "HTTP_X_USEFUL"


# -- bodies ------------------------------------------------------------------------------------------------------------


class Wire:
    """In the place of a Connection: notes what is sent and granted."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bool, bool]] = []
        self.granted: list[int] = []
        self.closed = 0
        self.answers = self

    def part(self, req: Request, data: bytes, *, last: bool = False, close: bool = False) -> None:
        self.sent.append((data, last, close))

    def grant(self, req: Request, count: int, *, wait: bool = True) -> None:
        self.granted.append(count)

    def close(self, req: Request) -> None:
        self.closed += 1


def exchange_of(body: bytes = b"") -> tuple[Exchange, Wire]:
    wire: Any = Wire()
    one = request(body=body)
    return Exchange(wire, one, one.sid), wire


def piece(offset: int, body: bytes, *, done: bool = False) -> Request:
    headers = {"UPLOAD_STREAM": str(offset)}
    if done:
        headers["UPLOAD_STREAM_DONE"] = "1"
    return Request("abc", "1", "/", headers, body, "UPLOAD_STREAM")


def test_a_streamed_body_is_granted_as_it_is_read() -> None:
    """Never more than a window ahead of the application."""
    exchange, wire = exchange_of(b"begin")
    body = open_streamed(exchange, 5 + 3 * WINDOW)
    assert body.read(5) == b"begin"
    assert wire.granted == [] or sum(wire.granted) <= 5 + WINDOW
    for number in range(3):
        exchange.feed(piece(5 + number * WINDOW, b"x" * WINDOW, done=number == 2))
        assert len(body.read(WINDOW)) == WINDOW
        assert sum(wire.granted) <= 5 + (number + 1) * WINDOW + WINDOW
    assert body.read(10) == b""


def test_a_streamed_body_is_read_whole_and_by_lines() -> None:
    """As any file."""
    exchange, _ = exchange_of(b"on")
    exchange.feed(piece(2, b"e\ntwo"))
    exchange.feed(piece(7, b"\n"))
    exchange.feed(piece(8, b"", done=True))
    assert open_streamed(exchange, None).readlines() == [b"one\n", b"two\n"]
    exchange, _ = exchange_of()
    exchange.feed(piece(0, b"all", done=True))
    assert open_streamed(exchange, 3).read() == b"all"


def test_a_streamed_body_with_a_gap_is_refused() -> None:
    """A piece that another process pulled, for instance."""
    exchange, _ = exchange_of(b"on")
    exchange.feed(piece(3, b"late"))
    with pytest.raises(RemoteProtocolError, match="at 3 came, 2 bytes are here"):
        open_streamed(exchange, 100).read()


def test_reading_a_streamed_body_waits_for_it() -> None:
    """The greenlet, not the hub."""
    exchange, _ = exchange_of()
    reader = gevent.spawn(open_streamed(exchange, 4).read)
    gevent.sleep(0)
    assert not reader.dead
    exchange.feed(piece(0, b"late", done=True))
    assert reader.get(timeout=5) == b"late"


def test_reading_fails_when_the_client_has_gone() -> None:
    """Both for who waits and for who comes later."""
    exchange, wire = exchange_of()
    body = open_streamed(exchange, 4)
    reader = gevent.spawn(pytest.raises, ConnectionResetError, body.read)
    gevent.sleep(0)
    exchange.lose()
    reader.get(timeout=5)
    with pytest.raises(ConnectionResetError):
        body.read(1)
    with pytest.raises(ConnectionResetError):
        exchange.send(b"x")
    exchange.close()
    assert wire.sent == [] and wire.closed == 0


def test_an_unread_body_is_dropped_within_bounds() -> None:
    """Of bytes, of time, and of time in which nothing comes."""
    exchange, _ = exchange_of(b"12345")
    exchange.feed(piece(5, b"67890", done=True))
    StreamedBody(exchange, 10).discard(100, 5, 5)
    assert not exchange.streams
    for limit, seconds, idle in [(0, 5, 5), (100, 0, 5), (100, 5, 0.01), (100, 0.01, 5)]:
        exchange, _ = exchange_of(b"12345")
        with gevent.Timeout(2):
            StreamedBody(exchange, 1000).discard(limit, seconds, idle)
        assert exchange.streams


def streaming(*pieces: Request) -> tuple[Exchange, Wire]:
    """An exchange whose body streams, and what came of it."""
    wire: Any = Wire()
    one = request(UPLOAD_STREAM="0")
    exchange = Exchange(wire, one, one.sid)
    for one in pieces:
        exchange.feed(one)
    return exchange, wire


def test_the_end_of_an_answer_waits_for_the_end_of_the_body() -> None:
    """What there is of it goes out before; a client may read nothing until it has sent all."""
    exchange, wire = streaming(piece(0, b"x" * 400), piece(400, b"x" * 600, done=True))
    exchange.send(b"answer", last=True)
    assert wire.sent == [(b"answer", False, False)] and exchange.ended and exchange.lingers
    exchange.linger()
    assert wire.sent[1:] == [(b"", True, False)] and not exchange.lingers
    exchange.let_go()
    assert len(wire.sent) == 2 and sum(wire.granted) == WINDOW


@pytest.mark.parametrize("how", ["close", "send"])
def test_a_body_that_does_not_end_is_granted_behind_the_close(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mongrel2 would keep the connection for ever else, as its upload waits for that."""
    monkeypatch.setattr("greentx.wsgi.exchange.LINGER_IDLE_SECONDS", 0.01)
    exchange, wire = streaming(piece(0, b"x" * 400))
    if how == "close":
        exchange.close()
    else:
        exchange.send(b"", last=True, close=True)
    assert wire.sent == [] and wire.closed == 0 and exchange.lingers
    with gevent.Timeout(2):
        exchange.linger()
    assert wire.sent == [(b"", True, True)]
    assert len(wire.granted) == 2 and wire.granted[-1] > 1000
    assert not exchange.streams


def test_a_body_that_is_granted_to_its_end_is_granted_no_more() -> None:
    """Of one whose length is known, what is left."""
    exchange, wire = streaming()
    StreamedBody(exchange, 10 * WINDOW)
    exchange.close()
    exchange.let_go()
    assert wire.granted == [10 * WINDOW + 1]


def test_nothing_is_granted_to_a_client_that_has_gone() -> None:
    """Nor closed."""
    exchange, wire = streaming()
    exchange.send(b"answer", last=True)
    gevent.spawn_later(0.01, exchange.lose)
    with gevent.Timeout(2):
        exchange.linger()
    assert wire.sent == [(b"answer", False, False)] and wire.granted == [WINDOW]


# -- responses ---------------------------------------------------------------------------------------------------------


def test_headers_are_checked_and_encoded() -> None:
    """Those that matter to the server are told by their lower-case names."""
    encoded, special = encode_headers([("X-A", "\xe9"), ("CONTENT-length", "5"), ("Date", "now")])
    assert encoded == [(b"X-A", b"\xe9"), (b"CONTENT-length", b"5"), (b"Date", b"now")]
    assert special == {"content-length": "5", "date": "now"}
    assert build_head(b"200 OK", encoded[:1]) == b"HTTP/1.1 200 OK\r\nX-A: \xe9\r\n\r\n"


class Unhashable(str):
    """A native string all the same."""

    def __hash__(self) -> int:
        raise TypeError("unhashable")

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        return b"its own way"


def test_what_is_like_a_tuple_or_a_string_is_one() -> None:
    """And leaves nothing behind for those that are."""
    text = Unhashable("a/b")
    for value, sent in (("a/b", b"a/b"), (text, b"its own way"), ("a/b", b"a/b")):
        forms: list[Any] = [("Date", value), ["Date", value], iter(("Date", value))]
        for header in forms:
            assert encode_headers([header]) == ([(b"Date", sent)], {"date": value})
    assert parse_status(Unhashable("200 OK")) == (b"its own way", 200)
    assert parse_status("200 OK") == (b"200 OK", 200)
    odd: Any = [(b"A", bytearray(b"1")), [b"B", b"2"]]
    assert build_head(b"200 OK", odd) == b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (("X-A", "a\rb"), ValueError),
        (("X-A", "a\nb"), ValueError),
        (("X\r", "a"), ValueError),
        (("X\nY", "a"), ValueError),
        (("X-A", b"a"), UnicodeError),
        ((b"X-A", "a"), UnicodeError),
        (("X-A", "\u20ac"), UnicodeError),
        (("X-\u20ac", "a"), UnicodeError),
        (("X-A", 5), UnicodeError),
        (("X-A",), ValueError),
        (("X-A", "a", "b"), ValueError),
        (["X-A", "a\nb"], ValueError),
    ],
)
def test_a_header_that_may_not_be_sent_is_refused(header: Any, error: type[Exception]) -> None:
    """Also a second time, when its name was seen before."""
    for _ in range(2):
        with pytest.raises(error):
            encode_headers([("Content-Type", "a/b"), header])


def test_small_pieces_are_joined() -> None:
    """The first one goes out at once, others when the hub runs or enough are together."""
    exchange, wire = exchange_of()
    pieces = Body(exchange)
    for number in range(100):
        pieces.put(b"%02d" % number)
    gevent.sleep(0)
    pieces.put(b"x" * JOIN_BYTES)
    pieces.end(b"tail")
    data = b"".join(data for data, _, _ in wire.sent)
    assert data == b"".join(b"%02d" % number for number in range(100)) + b"x" * JOIN_BYTES + b"tail"
    assert wire.sent[0] == (b"00", False, False) and len(wire.sent) < 20
    assert wire.sent[-1] == (b"tail", True, False)


def test_nothing_more_is_sent_to_a_client_that_has_gone() -> None:
    """The application is told so at its next piece."""
    exchange, wire = exchange_of()
    pieces = Body(exchange)
    pieces.put(b"first")
    exchange.lose()
    with pytest.raises(ConnectionResetError):
        pieces.put(b"second")
    gevent.sleep(0)
    assert len(wire.sent) == 1


def test_a_complete_answer_is_complete() -> None:
    """A handler that goes on does not write into the next answer."""
    exchange, _ = exchange_of()
    exchange.send(b"all", last=True)
    assert exchange.ended and "ended" in repr(exchange)
    with pytest.raises(RuntimeError, match="complete"):
        exchange.send(b"more")


def test_a_file_is_wrapped() -> None:
    """In larger pieces than the application suggests; its file is closed with it, where it can be."""
    file = io.BytesIO(b"x" * (JOIN_BYTES + 5))
    wrapper = FileWrapper(file, 10)
    assert [len(data) for data in wrapper] == [JOIN_BYTES, 5]
    wrapper.close()
    assert file.closed

    class Endless:
        def read(self, size: int) -> bytes:
            return b""

    assert list(FileWrapper(Endless())) == [] and not hasattr(FileWrapper(Endless()), "close")


# -- logs --------------------------------------------------------------------------------------------------------------


def test_a_log_is_what_it_is_given() -> None:
    """stderr, nothing, a writer, a logger."""
    assert make_log("default") is sys.stderr
    nothing = make_log(None)
    assert isinstance(nothing, NoLog)
    nothing.write("x")
    nothing.writelines(["x"])
    nothing.flush()
    file = io.StringIO()
    assert make_log(file) is file
    logger = make_log(logging.getLogger("test.wsgi"), logging.ERROR)
    logger.write("a line\n")
    assert logger.name == "test.wsgi"


def test_a_line_has_hyphens_for_what_is_not_known() -> None:
    """As gevent's."""
    line = format_line("", "GET / HTTP/1.1", "200 OK", 0, None)
    assert line.startswith("- - - [") and line.endswith('] "GET / HTTP/1.1" 200 - -')
    assert format_line("::1", "", "404", 5, 0.25).endswith('"" 404 5 0.250000')


# -- listeners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listener", "host", "port"),
    [
        (("127.0.0.1", 8000), "127.0.0.1", 8000),
        (":8000", "", 8000),
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        (8000, "", 8000),
        ("[::1]:8000", "::1", 8000),
    ],
)
def test_a_tcp_address_is_what_gevent_takes(listener: Any, host: str, port: int) -> None:
    """Nothing is started yet."""
    found = make_listener(listener, {})
    assert isinstance(found, TcpListener) and found.owned
    assert (found.address[0], found.address[1]) == (host, port)
    assert not found.process.started


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        (("abc", ("10.0.0.1", 9), ("10.0.0.1", 8)), "mongrel2://abc@tcp://10.0.0.1:9"),
        ("mongrel2://abc@web", "mongrel2://abc@tcp://web:9999"),
        ("mongrel2://abc@web?pull=19&pub=18", "mongrel2://abc@tcp://web:19"),
        ("mongrel2://abc@[::1]?pull=19", "mongrel2://abc@tcp://[::1]:19"),
        ("mongrel2://abc@?pull=ipc:///run/a&pub=ipc:///run/b", "mongrel2://abc@ipc:///run/a"),
        ("mongrel2://abc@?pull=ipc:///run/a&pub=ipc:///run/b&control=ipc:///run/c", "mongrel2://abc@ipc:///run/a"),
    ],
)
def test_a_mongrel2_of_somebody_else_is_named(listener: Any, address: str) -> None:
    """By a triple, or by a URL."""
    found = make_listener(listener, {})
    assert isinstance(found, MongrelListener) and found.address == address and found.family is None


def test_a_transceiver_is_a_listener() -> None:
    """It need not run yet."""
    assert isinstance(make_listener(Transceiver("abc", ("h", 1), ("h", 2)), {}), TransceiverListener)


@pytest.mark.parametrize(
    ("listener", "ssl", "error", "why"),
    [
        ("mongrel2://web", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@web:80", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@web/x", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@web?push=1", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@?pull=ipc:///a&control=ipc:///b", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@web?control=x", {}, ValueError, "port 'x'"),
        ("mongrel2://a_b@web", {}, ValueError, "letters, digits"),
        ("http://abc@web", {}, ValueError, "mongrel2://sender@host"),
        ("127.0.0.1:x", {}, ValueError, "127.0.0.1:x"),
        (None, {}, TypeError, "NoneType"),
        (("abc", ("h", 1), ("h", 2)), {"certfile": "x"}, ValueError, "certfile: TLS belongs to"),
        ("mongrel2://abc@web", {"keyfile": "x"}, ValueError, "keyfile: TLS belongs to"),
        (8000, {"ssl_context": object()}, ValueError, "does not take ssl_context"),
        (8000, {"keyfile": "x"}, ValueError, "certfile"),
        (8000, {"handle": print}, ValueError, "handle"),
    ],
)
def test_a_listener_that_cannot_be_served_is_refused(
    listener: Any, ssl: dict[str, Any], error: type[Exception], why: str
) -> None:
    """The message names what is wrong."""
    with pytest.raises(error, match=why):
        make_listener(listener, ssl)


def test_the_control_socket_is_closed_unless_it_is_asked_for() -> None:
    """An option opens it, for whoever may ask; one that there is not, or that is somebody else's, is refused."""
    for control, ports in ((None, [None]), ({"rep_port": 0, "rep_ip": "127.0.0.1", "control_allow": "127.0.0.1"}, [])):
        server = WSGIServer(("abc", NOBODY, NOBODY), control=control, log=None)
        server.start()
        transceiver = server.transceiver
        assert transceiver is not None
        assert ports == [transceiver.rep_port] or Connector(("127.0.0.1", transceiver.rep_port or 0)).ping(5000)
        server.stop()
    for listener in (("abc", NOBODY, NOBODY), ("127.0.0.1", 0)):
        with pytest.raises(ValueError, match=r"control has no port: there are allow_connections, control_allow, .*"):
            WSGIServer(listener, control={"port": 1})
    with pytest.raises(ValueError, match="control belongs to <Transceiver abc"):
        WSGIServer(Transceiver("abc", NOBODY, NOBODY), control={})


def test_the_state_of_an_exchange_is_told() -> None:
    """For logs."""
    exchange, _ = exchange_of()
    assert "open" in repr(exchange)
    exchange.lose()
    assert "client gone" in repr(exchange)


# -- a socket for WebSocket libraries ----------------------------------------------------------------------------------


def test_a_bridge_socket_is_copied_by_reference_and_not_pickled() -> None:
    """Middleware copies what is in an environ; there is one connection all the same."""

    def unused() -> Any:
        raise AssertionError("a copy opens nothing")

    one = BridgeSocket(unused, unused)
    assert copy.copy(one) is copy.deepcopy({"werkzeug.socket": one})["werkzeug.socket"] is one
    assert not hasattr(one, "__array__")
    with pytest.raises((TypeError, AttributeError)):
        pickle.dumps(one)


@pytest.mark.parametrize(
    ("query", "control"),
    [("", None), ("?control=ipc:///run/control", "ipc:///run/control"), ("?pull=19&control=20", "tcp://web:20")],
)
def test_a_url_may_name_the_server_s_control_port(query, control):
    """As an endpoint, or a port of the host."""
    entry = parse_url(f"mongrel2://abc@web{query}")
    assert (entry.sender, entry.pub, entry.control) == ("abc", "tcp://web:9998", control)
