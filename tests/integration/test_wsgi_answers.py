"""Answers of WSGI applications that go wrong, or on for too long, behind a real Mongrel2."""

from __future__ import annotations

import errno
import itertools
import re
import sys
import time
from collections import UserList, deque
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from front_ends import FrontEnd
from gevent.event import Event
from http_rig import Browser, wait_until
from wsgi_rig import AGAIN, Server, ask, see, serving, talk

from greentx.errors import RemoteProtocolError

TEXT = [("Content-Type", "text/plain")]
App = Callable[[Any, Any], Any]


@pytest.fixture(scope="module")
def running(front_end: FrontEnd) -> Iterator[Server]:
    """One server for all, since a Mongrel2 answers its first request half a second after its start."""
    with serving(front_end.name, None) as server:
        server.application = answering([b"hello"])
        see(server, ask())
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The server, with empty logs, and without greenlets kept from the requests of another test."""
    for log in (running.log, running.errors):
        log.seek(0)
        log.truncate()
    yield running
    running.server.intake.schedule.jobs.stop()
    running.server.start_accepting()


def answering(result: Any, status: Any = "200 OK", headers: Any = TEXT) -> App:
    def application(environ: Any, start_response: Any) -> Any:
        start_response(status, headers)
        return result() if callable(result) else result

    return application


class Blocks:
    """A result that counts what it was asked for, and tells when it is closed."""

    def __init__(self, block: bytes = b"x" * 100, count: float = float("inf"), pause: bool = False) -> None:
        self.block = block
        self.count = count
        self.pause = pause
        self.given = 0
        self.closed = Event()

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> bytes:
        if self.given >= self.count:
            raise StopIteration
        self.given += 1
        if self.pause:
            gevent.sleep(0.001)
        return self.block

    def close(self) -> None:
        assert not self.closed.is_set()
        self.closed.set()


# -- no more than can be sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [[], [("Content-Length", "5")], [("Content-Length", "100000")]])
def test_of_a_result_without_end_a_head_request_reads_one_block(server: Server, lines: list[Any]) -> None:
    """It is closed then, and the client may ask again."""
    results: list[Blocks] = []

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", lines)
        results.append(Blocks())
        return results[-1]

    server.application = application
    answers = see(server, ask(method="HEAD"), ask(method="HEAD"))
    assert [one[0] for one in answers[:2]] == [200, 200] and answers[2] == "open"
    assert [one.given for one in results] == [1, 1] and all(one.closed.is_set() for one in results)
    assert server.errors.getvalue() == ""


@pytest.mark.parametrize(("length", "most"), [("0", 1), ("5", 1), ("100", 2), ("250", 3)])
def test_of_a_result_beyond_its_length_no_more_is_read_and_one_line_is_logged(
    server: Server, length: str, most: int
) -> None:
    """Whether a block is cut, or comes too late as a whole."""
    result = Blocks()
    server.application = answering(result, headers=[("Content-Length", length)])
    answers = see(server, ask())
    assert (answers[0][0], len(answers[0][3]), answers[1]) == (200, int(length), "open")
    assert result.given == most and result.closed.is_set()
    assert server.errors.getvalue().count("longer than its Content-Length") == 1


@pytest.mark.parametrize("first", [b"", b"x"])
@pytest.mark.parametrize("way", ["yield", "write"])
def test_empty_blocks_without_a_pause_stop_nobody_and_end_with_their_client(
    server: Server, first: bytes, way: str
) -> None:
    """Nothing of them is sent, which would find out that the client has gone, and let the others run."""
    begun, ended = Event(), Event()

    def blocks(write: Any) -> Any:
        until = time.monotonic() + 20
        try:
            for block in itertools.chain([first], itertools.repeat(b"")):
                begun.set()
                assert time.monotonic() < until, "nobody was asked whether the client is there"
                if way == "yield":
                    yield block
                else:
                    write(block)
        finally:
            ended.set()

    server.application = lambda environ, start_response: blocks(start_response("200 OK", TEXT))
    with Browser(server) as browser, Browser(server) as other:
        browser.send(ask()[1])
        assert begun.wait(10)
        other.send(ask(AGAIN)[1])
        assert other.receive().body == b"again" and not ended.is_set()
    assert ended.wait(30)
    wait_until(lambda: server.log.getvalue().count(" 200 ") + server.log.getvalue().count(" 000 ") == 2)
    assert server.errors.getvalue() == ""


class Rows:
    """Has a length, and gives each block once, as a cursor of a database does."""

    def __init__(self) -> None:
        self.rows = [b"one ", b"two ", b"three"]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        while self.rows:
            yield self.rows.pop(0)


class Cursor(Rows):
    """The same, and is its own iterator."""

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> bytes:
        if not self.rows:
            raise StopIteration
        return self.rows.pop(0)


LENGTH, CODING = ("content-length", "13"), ("transfer-encoding", "chunked")


@pytest.mark.parametrize(
    ("result", "framing"),
    [
        (Cursor, CODING),
        (Rows, CODING),
        (lambda: dict.fromkeys(Rows()).keys(), CODING),
        (lambda: UserList(Rows()), LENGTH),
        (lambda: deque(Rows()), LENGTH),
        (lambda: tuple(Rows()), LENGTH),
    ],
)
def test_of_a_result_with_a_length_no_block_is_lost(server: Server, result: Any, framing: tuple[str, str]) -> None:
    """Its bytes are counted beforehand only of a sequence, which gives the same blocks again."""
    server.application = answering(result)
    ((status, _reason, headers, body), still) = see(server, ask())
    assert (status, body, still) == (200, b"one two three", "open")
    assert framing in headers


def test_a_generator_whose_length_is_right_gets_to_its_own_end(server: Server) -> None:
    """What it does behind its last block is done."""
    done = []

    def blocks() -> Any:
        yield b"hello"
        done.append(True)

    server.application = answering(blocks, headers=[("Content-Length", "5")])
    assert see(server, ask())[0][3] == b"hello" and done == [True]
    assert server.errors.getvalue() == ""


@pytest.mark.parametrize(
    ("method", "status", "headers"),
    [
        ("GET", "204 No Content", []),
        ("GET", "304 Not Modified", []),
        ("HEAD", "304 Not Modified", [("Content-Length", "5")]),
        ("GET", "200 OK", [("Content-Length", "0")]),
    ],
)
def test_an_answer_without_a_body_waits_for_no_block_but_the_first(
    server: Server, method: str, status: str, headers: Any
) -> None:
    """One that says nothing, and would never end."""
    result = Blocks(b"", pause=True)
    server.application = answering(result, status, headers)
    answers = see(server, ask(method=method))
    assert f"{answers[0][0]} {answers[0][1]}" == status and answers[1] == "open"
    assert result.given == 1 and result.closed.is_set()


def test_empty_blocks_behind_the_last_byte_are_not_waited_for(server: Server) -> None:
    """Nothing of the body is left to be sent."""

    def blocks() -> Any:
        yield b"hello"
        while True:
            yield b""

    server.application = answering(blocks, headers=[("Content-Length", "5")])
    answers = see(server, ask())
    assert answers[0][3] == b"hello" and answers[1] == "open"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("lines", [[], [("Content-Length", "5")]])
def test_write_fails_once_the_client_has_gone(server: Server, method: str, lines: list[Any]) -> None:
    """Also where nothing of it would have been sent; the application that never pauses holds up nobody."""
    events: list[Any] = []
    begun = Event()

    def application(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", lines)
        try:
            while True:
                write(b"x" * 1000)
                begun.set()
        except ConnectionResetError:
            events.append("gone")
            raise

    server.application = application
    with Browser(server) as browser:
        browser.ask(method=method)
        assert browser.read(12) == b"HTTP/1.1 200"
        begun.wait(5)
        assert not events
    wait_until(lambda: events)
    wait_until(lambda: server.log.getvalue())
    cut = lines and method == "GET"
    assert server.errors.getvalue().count("longer than its Content-Length") == (1 if cut else 0)
    assert f'"{method} / HTTP/1.1" 200 ' in server.log.getvalue()


@pytest.mark.parametrize("block", [b"", b"x" * 1000])
def test_a_result_is_closed_once_the_client_has_gone(server: Server, block: bytes) -> None:
    """Whether it has begun to answer, or has nothing to say yet; the log says what the client got."""
    result = Blocks(block, pause=True)
    server.application = answering(result)
    with Browser(server) as browser:
        browser.ask()
        wait_until(lambda: result.given > 3)
    assert result.closed.wait(5)
    wait_until(lambda: server.log.getvalue())
    assert f'" {200 if block else "000 -"}' in server.log.getvalue()
    assert server.errors.getvalue() == ""


# -- what fails before anything was sent -------------------------------------------------------------------------------


class Raises:
    """A result that raises where it is told to."""

    def __init__(self, error: BaseException, where: str) -> None:
        self.error = error
        self.where = where

    def __iter__(self) -> Any:
        if self.where == "iter":
            raise self.error
        return self

    def __next__(self) -> bytes:
        if self.where == "next":
            raise self.error
        raise StopIteration

    def close(self) -> None:
        if self.where == "close":
            raise self.error


def no_start(environ: Any, start_response: Any) -> Any:
    return []


def raising(error: Exception) -> App:
    def application(environ: Any, start_response: Any) -> Any:
        raise error

    return application


def half_an_array() -> Any:
    from array import array

    return array("H", [1, 2])


BACKEND_ERRORS = [
    ConnectionResetError(errno.ECONNRESET, "of a database"),
    BrokenPipeError(errno.EPIPE, "of a database"),
    ConnectionAbortedError(errno.ECONNABORTED, "of a database"),
    ConnectionRefusedError(errno.ECONNREFUSED, "of a database"),
    ConnectionResetError("without a number"),
    TimeoutError(errno.ETIMEDOUT, "of a database"),
    OSError(errno.EBADF, "of a database"),
    RemoteProtocolError("of a server that was asked for something"),
]

FAILING: dict[str, App] = {
    "text": answering(["text"]),
    "text behind bytes": answering([b"bytes", "text"]),
    "text in a generator": answering(lambda: iter(["text"])),
    "a number": answering([5]),
    "None": answering([None]),
    "a list": answering([[b"x"]]),
    "bytes in the place of a list": answering(b"bytes"),
    "text in the place of a list": answering("text"),
    "a dict": answering({"key": b"value"}),
    "numbers of two bytes": answering([half_an_array()]),
    "numbers of two bytes in a generator": answering(lambda: iter([half_an_array()])),
    "no result": answering(None),
    "a number in the place of a list": answering(5),
    "a function in the place of a list": answering(lambda: answering),
    "no start_response()": no_start,
    "no start_response(), None": lambda environ, start_response: None,
    "no start_response(), an empty block": lambda environ, start_response: [b""],
    "no start_response(), a block": lambda environ, start_response: [b"x"],
    "no start_response(), a generator": lambda environ, start_response: iter([]),
    "start_response() without headers": lambda environ, start_response: start_response("200 OK"),
    "start_response() with too much": lambda environ, start_response: start_response("200 OK", [], None, 5),
    "start_response() twice": lambda environ, start_response: [start_response("200 OK", []) for _ in range(2)],
    "headers None": answering([b"x"], headers=None),
    "headers of three": answering([b"x"], headers=[("X-A", "1", "2")]),
    "headers of one": answering([b"x"], headers=["X-A: 1"]),
    "no callable": lambda environ: [],  # type: ignore[dict-item, misc]  # to be refused
    "iter() that fails": answering(lambda: Raises(ValueError("no"), "iter")),
    "a first block that fails": answering(lambda: Raises(ValueError("no"), "next")),
    **{f"{error!r} of a backend": raising(error) for error in BACKEND_ERRORS},
    **{f"{error!r} in a block": answering(lambda error=error: Raises(error, "next")) for error in BACKEND_ERRORS},
}


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_before_anything_was_sent_is_answered_500(
    server: Server, name: str, greenlet_errors: list[Any]
) -> None:
    """Never by an empty reply; with a traceback, and the access log says so."""
    server.application = FAILING[name]
    answer = talk(server.port, ask()[1])
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n") and answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n\r\nInternal Server Error")
    assert re.findall(r'" (\d+) (\d+) ', server.log.getvalue()) == [("500", str(len(answer)))]
    assert len(greenlet_errors) == 1
    greenlet_errors.clear()


STATUSES = [
    "OK",
    "",
    " 200 OK",
    "99 Low",
    "2000 High",
    "20 OK",
    "+20 OK",
    "2_0 OK",
    "0200 OK",
    "200OK",
    "\u0662\u0660\u0660 OK",
    "200 OK\r\nX-A: b",
    "200 OK\x00",
    "200 O\x1bK",
    "100 Continue",
    "101 Switching Protocols",
    "103 Early Hints",
    200,
    b"200 OK",
    None,
]

HEADERS: list[Any] = [
    ("Transfer-Encoding ", "chunked"),
    (" Transfer-Encoding", "chunked"),
    ("Transfer-Encoding\t", "chunked"),
    ("Transfer-Encoding", "chunked"),
    ("Content-Length ", "3"),
    ("X: y", "z"),
    ("X:", "z"),
    ("", "z"),
    (" ", "z"),
    ("X\x00", "z"),
    ("X\x7f", "z"),
    ("X\xe9", "z"),
    ("X(Y)", "z"),
    ("X\r\nY", "z"),
    ("X\n", "z"),
    ("X", "a\r\nY: b"),
    ("X", "a\n"),
    ("X", "a\r"),
    ("X", "a\x00"),
    ("X", "a\x0bb"),
    ("X", "a\x1bb"),
    ("X", "a\x7f"),
    ("X", "\u20ac"),
    ("X", b"a"),
    (b"X", "a"),
    ("X", None),
    ("X", 5),
    ("Content-Length", "5 "),
    ("Content-Length", " 5"),
    ("Content-Length", "+5"),
    ("Content-Length", "-5"),
    ("Content-Length", "5, 5"),
    ("Content-Length", "0x5"),
    ("Content-Length", ""),
    ("Content-Length", "\xb2"),
    ("Content-Length", "9" * 5000),
]

TWO_IN_ONE: dict[str, tuple[Any, list[Any]]] = {
    **{f"status {status!r}": (status, []) for status in STATUSES},
    **{f"header {ascii(header)[:60]}": ("200 OK", [header]) for header in HEADERS},
    "two lengths": ("200 OK", [("Content-Length", "5"), ("Content-Length", "6")]),
    "two lengths in two spellings": ("200 OK", [("Content-Length", "5"), ("content-length", "05")]),
    "a length and a coding": ("200 OK", [("Content-Length", "5"), ("transfer-encoding", "chunked")]),
    "a length in 204": ("204 No Content", [("Content-Length", "5")]),
}


@pytest.mark.parametrize("name", TWO_IN_ONE)
def test_a_head_that_could_be_read_as_more_than_one_message_is_not_sent(
    server: Server, name: str, greenlet_errors: list[Any]
) -> None:
    """It is the application's mistake, which hears of it in start_response()."""
    status, headers = TWO_IN_ONE[name]
    raised: list[Any] = []

    def application(environ: Any, start_response: Any) -> Any:
        try:
            start_response(status, [("X-First", "1"), *headers])
        except (ValueError, AssertionError) as error:
            raised.append(error)
            raise
        return [b"hello"]

    server.application = application
    answer = talk(server.port, ask()[1])
    assert answer.startswith(b"HTTP/1.1 500 ") and answer.count(b"HTTP/1.1") == 1 and b"X-First" not in answer
    assert len(raised) == 1
    greenlet_errors.clear()


def test_what_only_looks_odd_in_a_head_is_sent(server: Server) -> None:
    """A length that is said twice alike is sent once; a 304 has the length that a 200 would have."""
    odd = [("!#$%&'*+-.^_`|~09aZ", "a\tb \xe9"), ("X-Empty", ""), ("Content-Length", "5"), ("content-length", "5")]
    server.application = answering([b"hello"], "299", odd)
    first = talk(server.port, ask("/", "Connection: close")[1])
    assert first.startswith(b"HTTP/1.1 299 \r\n!#$%&'*+-.^_`|~09aZ: a\tb \xe9\r\nX-Empty: \r\n")
    assert first.lower().count(b"content-length") == 1
    server.application = answering([], "304 Not Modified", [("Content-Length", "5")])
    answers = see(server, ask(), ask(method="HEAD"))
    assert answers == [(304, "Not Modified", [("content-length", "5"), ("date", "now")], b"")] * 2 + ["open"]


def test_a_header_of_a_hook_is_checked_as_well(server: Server, greenlet_errors: list[Any]) -> None:
    """What ``finalize_headers`` adds does not pass ``start_response()``."""
    from greentx.wsgi import WSGIHandler

    class Adding(WSGIHandler):
        def finalize_headers(self) -> None:
            super().finalize_headers()
            self.response_headers.append((b"X-A", b"b\r\nX-B: c"))

    server.application = answering([b"hello"])
    server.server.handler_class = Adding
    try:
        answer = talk(server.port, ask()[1])
    finally:
        del server.server.handler_class
    assert answer.startswith(b"HTTP/1.1 500 ") and b"X-B" not in answer
    greenlet_errors.clear()


# -- what fails later --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ["list", "generator", "length", "write"])
def test_a_close_that_fails_behind_the_whole_answer_takes_nothing_from_it(
    server: Server, result: str, greenlet_errors: list[Any]
) -> None:
    """The client has all of it, and may ask for more; the error is logged."""

    class Closing:
        def __init__(self) -> None:
            self.blocks = iter([] if result == "write" else [b"hel", b"lo"])

        def __iter__(self) -> Any:
            return self.blocks

        def close(self) -> None:
            raise ConnectionResetError(errno.ECONNRESET, "of a database")

    class ClosingList(list[bytes]):
        def close(self) -> None:
            raise ConnectionResetError(errno.ECONNRESET, "of a database")

    def application(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", [("Content-Length", "5")] if result == "length" else TEXT)
        if result == "write":
            write(b"hello")
        return ClosingList([b"hello"]) if result == "list" else Closing()

    server.application = application
    answers = see(server, ask(), ask())
    assert [one[3] for one in answers[:2]] == [b"hello", b"hello"] and answers[2] == "open"
    assert len(re.findall(r'" 200 \d+ ', server.log.getvalue())) == 3
    assert len(greenlet_errors) == 2
    greenlet_errors.clear()


def test_a_close_that_fails_before_anything_was_sent_is_answered_500(
    server: Server, greenlet_errors: list[Any]
) -> None:
    """As whatever failed before it."""
    server.application = lambda environ, start_response: Raises(ValueError("no"), "close")
    assert talk(server.port, ask()[1]).startswith(b"HTTP/1.1 500 ")
    greenlet_errors.clear()


@pytest.mark.parametrize("error", [BACKEND_ERRORS[0], ValueError("no"), RemoteProtocolError("no")])
@pytest.mark.parametrize("how", ["generator", "write", "length"])
def test_what_fails_in_the_middle_of_an_answer_ends_the_connection_and_is_logged(
    server: Server, error: Exception, how: str, greenlet_errors: list[Any]
) -> None:
    """What was written goes out; the client sees that the rest is missing, and the log has the status that it got."""

    def blocks() -> Any:
        yield b"one "
        yield b"two"
        raise error

    def application(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", [("Content-Length", "50")] if how == "length" else TEXT)
        if how == "write":
            for block in blocks():
                write(block)
        return blocks()

    server.application = application
    answer = talk(server.port, ask()[1])
    assert answer.startswith(b"HTTP/1.1 200 ") and b"two" in answer and not answer.endswith(b"0\r\n\r\n")
    assert re.findall(r'" (\d+) (\d+) ', server.log.getvalue()) == [("200", str(len(answer)))]
    assert len(greenlet_errors) == 1
    greenlet_errors.clear()


def test_an_error_after_the_client_has_gone_is_not_reported_as_an_answer(server: Server) -> None:
    """The client got nothing; that a peer has gone is no news."""
    begun = Event()

    def application(environ: Any, start_response: Any) -> Any:
        begun.set()
        assert environ["greentx.disconnected"].wait(5)
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    server.application = application
    with Browser(server) as browser:
        browser.ask()
        begun.wait(5)
    wait_until(lambda: server.log.getvalue())
    assert '"GET / HTTP/1.1" 000 - ' in server.log.getvalue()
    assert server.errors.getvalue() == ""


@pytest.mark.parametrize("value", ["close", "Close", "x, close", "keep-alive, close"])
def test_an_application_may_close_the_connection(server: Server, value: str) -> None:
    """In any spelling, and among other options, which are words of their own."""
    server.application = answering([b"hello"], headers=[("Connection", value), ("Connection", "x-other")])
    assert talk(server.port, ask()[1]).endswith(b"\r\n\r\nhello")
    server.application = answering([b"hello"], headers=[("Connection", "not-closed")])
    assert see(server, ask())[1] == "open"


def test_what_would_be_untrue_about_the_connection_is_not_said(server: Server) -> None:
    """Where it ends with the answer there is no ``keep-alive``."""
    server.application = answering([b"hello"], headers=[("Connection", "Keep-Alive")])
    for request in (ask("/", "Connection: close"), ask(version="HTTP/1.0")):
        answer = talk(server.port, request[1]).lower()
        assert b"connection: close" in answer and b"keep-alive" not in answer


def test_a_second_start_may_say_another_length(server: Server) -> None:
    """What the first one said is forgotten."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "5")])
        try:
            raise KeyError("late")
        except KeyError:
            start_response("503 Sorry", [("Content-Length", "3")], sys.exc_info())
        return [b"sorry"[:3]]

    server.application = application
    assert see(server, ask())[0][2:] == ([("content-length", "3"), ("date", "now")], b"sor")


# -- the last answer before a stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("kind", ["list", "generator"])
def test_the_last_answer_before_a_stop_says_that_the_connection_ends(
    front_end: FrontEnd, version: str, kind: str
) -> None:
    """On each connection; the client does not send its next request into a server that has gone."""
    waiting = 0
    go = Event()

    def application(environ: Any, start_response: Any) -> Any:
        nonlocal waiting
        start_response("200 OK", TEXT)
        waiting += 1
        go.wait(5)
        return [b"hello"] if kind == "list" else iter([b"hello"])

    with serving(front_end.name, application) as server:
        with Browser(server) as one, Browser(server) as two:
            for browser in (one, two):
                browser.ask("/", "Connection: keep-alive", version=version)
            if version == "HTTP/1.1":
                two.ask("/behind", version=version)
            wait_until(lambda: waiting == 2)
            server.server.close()
            go.set()
            first = one.receive()
            assert first.body == b"hello" and first.headers.first("connection") == "close" and one.at_end()
            second = two.receive()
            if version == "HTTP/1.1":
                # The one in front of the last one does not say so.
                assert second.body == b"hello" and second.headers.first("connection") is None
                second = two.receive()
            assert second.headers.first("connection") == "close" and two.at_end()
            server.server.stop(5)
