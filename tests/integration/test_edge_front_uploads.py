"""Large bodies at the embedded front end: stored in files, and streamed by credits."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from http_rig import wait_until
from wire_rig import SENDER, Message, RawBrowser, RawHandler, raw_handler

from greentx.edge import Edge, Handler, Mongrel2
from greentx.protocol.replies import build_extended_reply

START, DONE = "x-mongrel2-upload-start", "x-mongrel2-upload-done"
LIMIT = 16384
LARGE = os.urandom(LIMIT * 5)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SIZES = {"limits.content_length": LIMIT, "limits.buffer_size": LIMIT}
STREAM: dict[str, int | str] = {**SIZES, "upload.stream": 1}
CHUNKED = b"POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def head(length: int, *fields: bytes, path: bytes = b"/up") -> bytes:
    return b"\r\n".join([b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d" % (path, length), *fields, b"", b""])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.contextmanager
def at(settings: dict[str, int | str], **options: Any) -> Iterator[tuple[Edge, RawHandler]]:
    """An embedded front end, and a handler that says what it is told."""
    # Answers that no test waits for would keep each one for a second.
    options = {"half_close_timeout": 0.1, **options}
    with Edge({"/": Handler(SENDER)}, settings=settings, **options) as edge, raw_handler(edge) as handler:
        yield edge, handler


def grant(handler: RawHandler, conn_id: int, count: int) -> None:
    handler.send(build_extended_reply(SENDER, [conn_id], "ctl", {b"credits": count}))


def test_the_bound_of_bodies_may_be_less_than_that_of_heads():
    """With which uploads to Mongrel2 would hang."""
    with at({"limits.content_length": 10}) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(10, b"A: " + b"a" * 30_000) + b"0123456789")
        message = handler.receive()
        assert message.body == b"0123456789"
        handler.reply(message.conn_id, ANSWER)
        browser.read(ANSWER)
        browser.send(head(11))
        browser.read_to_end()
        assert browser.statuses == [200, 413]


class Store:
    """Where files of a test are stored."""

    def __init__(self, folder: Path) -> None:
        self.settings: dict[str, int | str] = {**SIZES, "upload.temp_store": f"{folder}/up.XXXXXX"}
        self._folder = folder

    def files(self) -> list[Path]:
        return sorted(self._folder.glob("up.*"))

    def empty(self) -> None:
        """Wait until no file is left."""
        wait_until(lambda: not self.files())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


# -- stored ------------------------------------------------------------------------------------------------------------


def begun(handler: RawHandler, store: Store) -> tuple[Message, Path]:
    """The first message of a stored body, and its file."""
    message = handler.receive()
    (file,) = store.files()
    assert message.headers[START] == str(file)
    assert DONE not in message.headers
    assert message.body == b""
    return message, file


def ended(handler: RawHandler, message: Message) -> None:
    """The last message of the body that *message* began."""
    last = handler.receive()
    assert last.headers == {**message.headers, DONE: message.headers[START]}
    assert (last.conn_id, last.body) == (message.conn_id, b"")


@pytest.mark.parametrize("mode", ["0600", "0640"])
def test_a_large_body_is_stored_and_told_of_twice(store, mode):
    """At once, and when it is whole; the file belongs to its handler then, and the connection goes on."""
    with (
        at({**store.settings, "upload.temp_store_mode": mode}) as (edge, handler),
        RawBrowser(edge) as browser,
    ):
        browser.send(head(len(LARGE), b"X-A: b"))
        message, file = begun(handler, store)
        assert (message.headers["x-a"], message.headers["content-length"]) == ("b", str(len(LARGE)))
        assert stat.S_IMODE(file.stat().st_mode) == int(mode, 8)
        browser.send(LARGE)
        ended(handler, message)
        assert file.read_bytes() == LARGE
        handler.reply(message.conn_id, ANSWER)
        browser.read(ANSWER)
        browser.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        assert str(handler.receive()) == "GET /next"
    assert file.read_bytes() == LARGE


def test_a_body_of_the_limit_is_not_stored(store):
    """It is one byte too small."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(LIMIT) + LARGE[:LIMIT])
        assert handler.receive().body == LARGE[:LIMIT]
        browser.send(head(LIMIT + 1) + LARGE[: LIMIT + 1])
        message, file = begun(handler, store)
        ended(handler, message)
        assert file.read_bytes() == LARGE[: LIMIT + 1]


def test_a_chunked_body_is_stored_once_it_is_too_large_to_be_kept(store):
    """Without its chunks; a small one comes in its message."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(CHUNKED + chunk(b"small") + LAST_CHUNK)
        message = handler.receive()
        assert (message.body, message.headers["content-length"]) == (b"small", "5")
        assert START not in message.headers
        browser.send(CHUNKED + chunk(LARGE[:LIMIT]))
        assert not store.files()
        browser.send(chunk(LARGE[LIMIT:30_000]))
        message, file = begun(handler, store)
        assert message.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in message.headers
        browser.send(chunk(LARGE[30_000:]) + LAST_CHUNK)
        ended(handler, message)
        assert file.read_bytes() == LARGE


def test_what_follows_a_stored_body_is_the_next_request(store):
    """Mongrel2 appends it to the file."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE + b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        message, file = begun(handler, store)
        ended(handler, message)
        assert str(handler.receive()) == "GET /next"
        assert file.read_bytes() == LARGE


@pytest.mark.parametrize("settings", [{}, {"upload.temp_store": "up.XXXXXX"}, {"upload.stream": 1}])
def test_names_of_files_that_a_client_makes_up_reach_no_handler(settings):
    """Whether bodies are stored or not."""
    fields = b"X-Mongrel2-Upload-Start: /etc/passwd", b"x-mongrel2-upload-done: /etc/passwd"
    with at({**SIZES, **settings}) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(2, *fields, b"X-Other: y") + b"ab")
        assert str(handler.receive()) == "POST /up 'ab' content-length=2 x-other=y"


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_goes_leaves_no_file(store, reset):
    """Its handler is told so."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE[:LIMIT])
        message, _ = begun(handler, store)
        if reset:
            browser.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a RST
        browser.sock.close()
        assert str(handler.receive()) == 'JSON @* \'{"type":"disconnect"}\''
        store.empty()
        assert message.conn_id == 1


def test_a_handler_that_closes_has_the_file_deleted(store):
    """It gets no further message."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE[:LIMIT])
        message, _ = begun(handler, store)
        handler.reply(message.conn_id, ANSWER)
        handler.reply(message.conn_id, b"")
        assert browser.read_to_end() == ANSWER
        store.empty()
        browser.send(LARGE[LIMIT:])
        with RawBrowser(edge) as other:
            other.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
            assert str(handler.receive()) == "GET /next"


def test_an_answer_may_come_before_the_body_is_whole(store):
    """It is read to its end nevertheless."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)))
        message, _ = begun(handler, store)
        handler.reply(message.conn_id, ANSWER)
        browser.read(ANSWER)
        browser.send(LARGE + b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        ended(handler, message)
        assert str(handler.receive()) == "GET /next"


@pytest.mark.parametrize(
    ("rest", "status"), [(b"zz\r\n", 400), (chunk(LARGE[:LIMIT]) * 3, 413)], ids=["malformed", "too large"]
)
def test_a_body_that_turns_out_to_be_wrong_leaves_no_file(store, rest, status):
    """Its client is answered, and its handler told as of any end."""
    with at(store.settings, max_upload=LIMIT * 3) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(CHUNKED + chunk(LARGE[: LIMIT + 1]))
        begun(handler, store)
        browser.send(rest)
        browser.read_to_end()
        assert browser.statuses == [status]
        store.empty()
        browser.sock.close()
        assert handler.receive().path == "@*"


def test_no_second_answer_follows_one_that_has_begun(store):
    """The connection only ends where its body turns out to be wrong."""
    for answer in (ANSWER, ANSWER[:-1]):
        with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
            browser.send(CHUNKED + chunk(LARGE[: LIMIT + 1]))
            message, _ = begun(handler, store)
            handler.reply(message.conn_id, answer)
            browser.read(answer)
            browser.send(b"zz\r\n")
            assert browser.read_to_end() == answer
            store.empty()


def test_a_body_over_the_bound_is_refused_before_it_comes(store):
    """No handler is told of it."""
    with at(store.settings, max_upload=LIMIT * 2) as (edge, handler):
        with RawBrowser(edge) as browser:
            browser.send(head(LIMIT * 2 + 1))
            browser.read_to_end()
            assert browser.statuses == [413]
        with RawBrowser(edge) as browser:
            browser.send(head(LIMIT * 2) + LARGE[: LIMIT * 2])
            message, _ = begun(handler, store)
            ended(handler, message)


def test_a_full_disk_is_answered_507(store, monkeypatch, caplog):
    """The file is gone, and its handler told as of any end."""
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) >= LIMIT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)))
        begun(handler, store)
        monkeypatch.setattr(os, "write", full)
        browser.send(LARGE)
        browser.read_to_end()
        assert browser.statuses == [507]
        store.empty()
        browser.sock.close()
        assert handler.receive().path == "@*"
    assert "No space left" in caplog.text


def test_a_folder_that_is_not_there_is_answered_500(tmp_path, caplog):
    """The log names it."""
    with at({**SIZES, "upload.temp_store": f"{tmp_path}/gone/up.XXXXXX"}) as (edge, _), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)))
        browser.read_to_end()
        assert browser.statuses == [500]
    assert f"{tmp_path}/gone/up.XXXXXX: No such file" in caplog.text


def test_a_disk_that_hangs_keeps_only_its_own_connection(store, monkeypatch):
    """Others are served meanwhile."""
    write = os.write
    goes_on = threading.Event()

    def slow(descriptor: int, data: Any) -> int:
        if len(data) >= LIMIT:
            assert goes_on.wait(30)
        return write(descriptor, data)

    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser, RawBrowser(edge) as other:
        browser.send(head(len(LARGE)))
        message, file = begun(handler, store)
        monkeypatch.setattr(os, "write", slow)
        try:
            browser.send(LARGE)
            other.send(b"GET /other HTTP/1.1\r\nHost: h\r\n\r\n")
            assert str(handler.receive()) == "GET /other"
        finally:
            goes_on.set()
        ended(handler, message)
        assert file.read_bytes() == LARGE


def test_a_client_that_does_not_go_on_is_answered_408(store):
    """As with any body; the file is gone."""
    with at(store.settings, request_timeout=0.5) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE[:LIMIT])
        begun(handler, store)
        browser.read_to_end()
        assert browser.statuses == [408]
        store.empty()


def test_a_stored_body_without_a_handler_is_answered_503(store):
    """Nothing is left of it."""
    settings = store.settings
    with Edge({"/": Handler(SENDER)}, settings=settings, no_handler_timeout=0.2) as edge, RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)))
        browser.read_to_end()
        assert browser.statuses == [503]
        store.empty()


def test_a_front_end_that_stops_leaves_no_part_of_a_body(store):
    """Nobody else would delete it."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE[:LIMIT])
        begun(handler, store)
        edge.stop(0)
        assert not store.files()


def test_a_stop_that_is_cut_short_leaves_no_part_of_a_body(store):
    """It waits for the body, and whoever cannot wait longer ends it."""
    with at(store.settings) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE[:LIMIT])
        begun(handler, store)
        stopping = gevent.spawn(edge.stop, 60.0)
        gevent.sleep(0)
        assert not stopping.ready()
        stopping.kill()
        assert not store.files()


# -- streamed ----------------------------------------------------------------------------------------------------------


def pieces(handler: RawHandler, first: Message) -> Iterator[Message]:
    """What follows *first*, checked, up to the end of the body."""
    offset = len(first.body)
    while True:
        message = handler.receive()
        assert (message.conn_id, message.path) == (first.conn_id, first.path)
        assert message.headers.pop("UPLOAD_STREAM") == str(offset)
        offset += len(message.body)
        last = message.headers.pop("UPLOAD_STREAM_DONE", None)
        assert not message.headers
        assert last in (None, "1")
        yield message
        if last:
            return


def test_a_large_body_is_streamed_as_far_as_it_is_granted():
    """Two of them, on one connection: each begins without credits."""
    with at(STREAM) as (edge, handler), RawBrowser(edge) as browser:
        for path in (b"/1?q", b"/2"):
            browser.send(head(len(LARGE), path=path) + LARGE)
            first = handler.receive()
            assert first.headers["UPLOAD_STREAM"] == "0"
            assert "UPLOAD_STREAM_DONE" not in first.headers
            assert first.headers["content-length"] == str(len(LARGE))
            body = first.body
            assert len(body) <= LIMIT
            rest = pieces(handler, first)
            grant(handler, first.conn_id, 1000)
            while len(body) < len(first.body) + 1000:
                body += next(rest).body
            assert len(body) == len(first.body) + 1000
            grant(handler, first.conn_id, 10_000_000)
            for piece in rest:
                body += piece.body
            assert body == LARGE
            handler.reply(first.conn_id, ANSWER)
            browser.read(ANSWER)
            browser.data = b""


def test_a_chunked_body_is_streamed_whatever_its_size():
    """Its client need not end it before its handler hears of it."""
    with at(STREAM) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(CHUNKED)
        first = handler.receive()
        assert (first.headers["UPLOAD_STREAM"], first.body) == ("0", b"")
        rest = pieces(handler, first)
        grant(handler, first.conn_id, 1)
        for data in (b"hello", b"again"):
            browser.send(chunk(data))
            assert next(rest).body == data
            grant(handler, first.conn_id, 5)
        browser.send(LAST_CHUNK)
        assert [piece.body for piece in rest] == [b""]


def test_a_client_is_not_read_while_nothing_is_granted():
    """It cannot send more than fits between the two."""
    size = 50_000_000
    with at(STREAM) as (edge, handler), RawBrowser(edge) as browser:
        sender = gevent.spawn(browser.send, head(size) + bytes(size))
        first = handler.receive()
        grant(handler, first.conn_id, 1)
        rest = pieces(handler, first)
        assert len(next(rest).body) == 1
        assert not sender.ready()
        grant(handler, first.conn_id, size)
        assert len(first.body) + 1 + sum(len(piece.body) for piece in rest) == size
        sender.get()


def test_a_client_that_goes_while_it_waits_for_credits_is_told_of():
    """Mongrel2 notices it only when it reads again."""
    with at(STREAM, half_close_timeout=0.1) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE[:-1])
        handler.receive()
        browser.sock.close()
        assert handler.receive().path == "@*"


def test_a_client_that_sends_nothing_more_is_read_to_its_end():
    """As long as its handler goes on."""
    with at(STREAM, half_close_timeout=10.0) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE)
        browser.sock.shutdown(1)
        first = handler.receive()
        grant(handler, first.conn_id, len(LARGE))
        assert first.body + b"".join(piece.body for piece in pieces(handler, first)) == LARGE
        handler.reply(first.conn_id, ANSWER)
        assert browser.read_to_end() == ANSWER


def test_a_handler_may_refuse_a_body_that_waits_for_credits():
    """The connection ends with its answer, and no more is told."""
    with at(STREAM) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(head(len(LARGE)) + LARGE)
        first = handler.receive()
        handler.reply(first.conn_id, ANSWER)
        handler.reply(first.conn_id, b"")
        assert browser.read_to_end() == ANSWER
        with RawBrowser(edge) as other:
            other.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
            assert str(handler.receive()) == "GET /next"


def test_a_streamed_body_that_turns_out_to_be_wrong_is_answered():
    """Too large, or no chunks; a handler is told that its client has gone."""
    for rest, status in ((b"zz\r\n", 400), (chunk(bytes(11)), 413)):
        with at(STREAM, max_upload=LIMIT) as (edge, handler), RawBrowser(edge) as browser:
            browser.send(CHUNKED + chunk(bytes(LIMIT - 10)))
            first = handler.receive()
            grant(handler, first.conn_id, 10_000_000)
            while len(first.body) < LIMIT - 10:
                first.body += handler.receive().body
            browser.send(rest)
            browser.read_to_end()
            assert browser.statuses == [status]
            browser.sock.close()
            assert handler.receive().path == "@*"


# -- next to Mongrel2 --------------------------------------------------------------------------------------------------

CHUNKS = CHUNKED.replace(b"Chunked", b"chunked")


def tell_stored(handler: RawHandler, browser: RawBrowser) -> Iterator[Message]:
    """What a handler is told of two stored bodies."""
    browser.send(head(len(LARGE), b"A: b", path=b"/up?q"))
    yield handler.receive()
    browser.send(LARGE)
    yield handler.receive()
    browser.send(CHUNKS + chunk(LARGE[: LIMIT + 1]) + LAST_CHUNK)
    yield handler.receive()
    yield handler.receive()


def tell_streamed(handler: RawHandler, browser: RawBrowser) -> Iterator[Message]:
    """What it is told of two streamed ones; the second is chunked."""
    browser.send(head(len(LARGE), b"A: b", path=b"/up?q"))
    first = handler.receive()
    yield first
    grant(handler, first.conn_id, 5)
    browser.send(LARGE)
    yield handler.receive()
    grant(handler, first.conn_id, len(LARGE))
    while "UPLOAD_STREAM_DONE" not in (message := handler.receive()).headers:
        pass
    # How it is cut depends on how it comes.
    message.headers["UPLOAD_STREAM"] = str(int(message.headers["UPLOAD_STREAM"]) + len(message.body))
    message.body = message.body[-1:]
    yield message
    browser.send(CHUNKS)
    yield handler.receive()
    grant(handler, first.conn_id, 2)
    browser.send(chunk(b"hello"))
    yield handler.receive()
    grant(handler, first.conn_id, 4)
    browser.send(LAST_CHUNK)
    yield handler.receive()


@pytest.mark.mongrel2
@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize("tell", [tell_stored, tell_streamed])
def test_handlers_are_told_what_mongrel2_tells_them(tell, protocol, tmp_path):
    """But for the names of files."""
    told = []
    # Which has a field of its own in the first message.
    settings: dict[str, int | str] = {**SIZES, "upload.temp_store": f"{tmp_path}/XXXXXX", "download.flow_control": 1}
    if tell is tell_streamed:
        settings["upload.stream"] = 1  # which counts before the other one
    entries = {"/": Handler(SENDER, protocol=protocol)}
    for server in (Edge(entries, settings=settings, half_close_timeout=0.1), Mongrel2(entries, settings=settings)):
        server.start()
        try:
            with raw_handler(server) as handler, RawBrowser(server) as browser:
                told.append([_without_name(message) for message in tell(handler, browser)])
        finally:
            server.stop(0)  # a regular stop lasts half a second
    ours, theirs = told
    assert ours == theirs


def _without_name(message: Message) -> tuple[dict[str, Any], int, str, bytes]:
    headers = {name: "a file" if name in (START, DONE) else value for name, value in message.headers.items()}
    return headers, message.conn_id, message.path, message.body
