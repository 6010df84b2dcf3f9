"""The parts of the WSGI server that need no front end: environ, bodies, stored uploads, pieces of responses, logs."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import gevent
import pytest

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.wire import Request, build_request, parse_request
from greentx.wsgi.accesslog import NoLog, format_line, make_log
from greentx.wsgi.environ import FramingError, add_request
from greentx.wsgi.exchange import Exchange
from greentx.wsgi.input import WINDOW, StreamedBody, open_stored, open_streamed
from greentx.wsgi.listeners import MongrelListener, TcpListener, TransceiverListener, make_listener
from greentx.wsgi.response import JOIN_BYTES, FileWrapper, PieceWriter, build_head, encode_headers, parse_status
from greentx.wsgi.uploads import UploadStore

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
    add_request(environ, request, body_apart=request.header("UPLOAD_STREAM") is not None)
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


@pytest.mark.parametrize(
    ("headers", "body", "stream", "why"),
    [
        ({"transfer-encoding": "chunked", "content-length": "5"}, b"hello", None, "beside Content-Length"),
        ({"transfer-encoding": "chunked", "content-length": "5"}, b"", "0", "beside Content-Length"),
        ({"transfer-encoding": "chunked"}, b"", None, "cannot be read"),
        ({"transfer-encoding": "Chunked"}, b"", "0", "cannot be read"),
        ({"transfer-encoding": "gzip, chunked"}, b"", "0", "cannot be read"),
        ({"content-length": "5"}, b"", None, "Content-Length '5' of a body of 0"),
        ({"content-length": "x"}, b"", None, "Content-Length 'x'"),
        ({"content-length": "-1"}, b"", None, "Content-Length '-1'"),
        ({"content-length": "\xb2"}, b"", None, "Content-Length"),
        ({"content-length": ["5", "6"]}, b"hello", None, "5 and 6"),
        ({}, b"hello", None, "without Content-Length"),
    ],
)
def test_a_body_whose_end_is_in_doubt_is_refused(
    headers: dict[str, Any], body: bytes, stream: str | None, why: str
) -> None:
    """Mongrel2 takes what it does not understand for the next request."""
    server = {} if stream is None else {"UPLOAD_STREAM": stream}
    with pytest.raises(FramingError, match=why):
        environ_of(request(headers=headers, body=body, **server))


def test_a_length_said_twice_alike_is_one() -> None:
    """RFC 9112, section 6.3."""
    assert environ_of(request(headers={"content-length": ["5", "5"]}, body=b"hello"))["CONTENT_LENGTH"] == "5"


def test_what_clients_make_up_is_not_remembered_without_end() -> None:
    """Names and hosts are caches with bounds."""
    from greentx.wsgi import environ as module

    for number in range(module._MAX_KEYS + 10):
        environ = environ_of(request(headers={f"x-{number}": "1", "host": f"h{number}"}))
        assert environ[f"HTTP_X_{number}"] == "1" and environ["SERVER_NAME"] == f"h{number}"
    assert len(module._keys) <= module._MAX_KEYS and len(module._hosts) <= module._MAX_KEYS


# -- bodies ------------------------------------------------------------------------------------------------------------


class Wire:
    """In the place of a Connection: notes what is sent and granted."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bool, bool]] = []
        self.granted: list[int] = []
        self.closed = 0

    def reply_part(self, req: Request, data: bytes, *, last: bool = False, close: bool = False) -> None:
        self.sent.append((data, last, close))

    def grant(self, req: Request, count: int) -> None:
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


def test_a_stored_body_ends_at_its_length(tmp_path: Path) -> None:
    """Mongrel2 appends what a client pipelined behind it."""
    path = tmp_path / "upload"
    path.write_bytes(b"one\ntwo\nGET / HTTP/1.1")
    with open_stored(str(path), 8) as body:
        assert body.read(2) == b"on"
        assert list(body) == [b"e\n", b"two\n"]
        assert body.read() == b""
    with open_stored(str(path), 8) as body:
        assert body.read() == b"one\ntwo\n"
    with open_stored(str(path), None) as body:
        assert len(body.read()) == 22
    with open_stored(str(path), 100) as body:
        assert len(body.read(200)) == 22


def test_a_stored_body_is_no_link(tmp_path: Path) -> None:
    """Nobody else's file is read by its name."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="link"):
        open_stored(str(tmp_path / "link"), 8)


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


# -- stored uploads ----------------------------------------------------------------------------------------------------

STORE = "/var/spool/up.XXXXXX"
FILE = "/var/spool/up.aZ09bY"


@pytest.mark.parametrize("template", ["up.XXXXXX", "/var/spool/up", "/var/spool/up.XXXXX", ""])
def test_a_store_has_an_absolute_template(template: str) -> None:
    """As mkstemp(3) wants it."""
    with pytest.raises(LocalProtocolError, match="XXXXXX"):
        UploadStore(template)


@pytest.mark.parametrize(
    ("headers", "body", "found"),
    [
        ({"content-length": "9", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"transfer-encoding": "chunked", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": "9", "x-mongrel2-upload-start": FILE, "x-mongrel2-upload-done": FILE}, b"", FILE),
        ({"content-length": "9", "x-mongrel2-upload-start": FILE}, b"123456789", None),
        ({"content-length": "0", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": " +09x", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": ["9", "0"], "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": "2147483647", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": "2147483648", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "4294967297", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "9" * 5000, "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": ["0", "9"], "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "-9", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "abc", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "0x9", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "0", "transfer-encoding": "chunked", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": ["chunked", "x"], "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"transfer-encoding": ["x", "chunked"], "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": "Chunked", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": "chunked ", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": "x", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": "/etc/passwd"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": "/var/spool/up.aZ09bY/../x"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": "/var/spool/up.aZ09b/"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": FILE + "\n"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": [FILE, FILE]}, b"", None),
        ({"content-length": "9"}, b"", None),
    ],
)
def test_an_upload_is_known_by_a_body_that_did_not_come(
    headers: dict[str, Any], body: bytes, found: str | None
) -> None:
    """And by a name of the own store."""
    assert UploadStore(STORE).start_of(request(headers=headers, body=body)) == found


def test_the_end_of_an_upload_names_the_same_file() -> None:
    """Both headers do."""
    store = UploadStore(STORE)
    both = {"x-mongrel2-upload-start": FILE, "x-mongrel2-upload-done": FILE}
    assert store.is_done(request(headers=both), FILE)
    assert not store.is_done(request(headers=both, body=b"x"), FILE)
    assert not store.is_done(request(headers=both), FILE[:-1] + "x")
    assert not store.is_done(request(headers={"x-mongrel2-upload-start": FILE}), FILE)
    assert store.start_of(request(headers={"content-length": "9", **both}, UPLOAD_STREAM="0")) is None


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
    pieces = PieceWriter(exchange)
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
    pieces = PieceWriter(exchange)
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
    assert not found.mongrel2.started


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        (("abc", ("10.0.0.1", 9), ("10.0.0.1", 8)), "mongrel2://abc@tcp://10.0.0.1:9"),
        ("mongrel2://abc@web", "mongrel2://abc@tcp://web:9999"),
        ("mongrel2://abc@web?pull=19&pub=18", "mongrel2://abc@tcp://web:19"),
        ("mongrel2://abc@[::1]?pull=19", "mongrel2://abc@tcp://[::1]:19"),
        ("mongrel2://abc@?pull=ipc:///run/a&pub=ipc:///run/b", "mongrel2://abc@ipc:///run/a"),
    ],
)
def test_a_mongrel2_of_somebody_else_is_named(listener: Any, address: str) -> None:
    """By a triple, or by a URL."""
    found = make_listener(listener, {})
    assert isinstance(found, MongrelListener) and found.address == address and found.family is None


def test_a_transceiver_is_a_listener() -> None:
    """It need not run yet."""
    from greentx import Transceiver

    assert isinstance(make_listener(Transceiver("abc", ("h", 1), ("h", 2)), {}), TransceiverListener)


@pytest.mark.parametrize(
    ("listener", "ssl", "error", "why"),
    [
        ("mongrel2://web", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@web:80", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@web/x", {}, ValueError, "mongrel2://sender@host"),
        ("mongrel2://abc@web?push=1", {}, ValueError, "mongrel2://sender@host"),
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


def test_the_state_of_an_exchange_is_told() -> None:
    """For logs."""
    exchange, _ = exchange_of()
    assert "open" in repr(exchange)
    exchange.lose()
    assert "client gone" in repr(exchange)
