"""Tests of greentx.http1_parser: responses read whole, cut anywhere, followed, and refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentx.errors import RemoteProtocolError
from greentx.protocol.http1 import LAST_CHUNK, build_chunk, build_head, build_response
from greentx.protocol.http1_parser import ResponseParser, ResponseTracker, parse_head

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """A response and what reading it gives."""

    name: str
    data: bytes
    body: bytes = b""
    status: int = 200
    reason: str = "OK"
    version: str = "HTTP/1.1"
    method: str = "GET"
    headers: dict[str, str | list[str]] | None = None
    trailers: dict[str, str | list[str]] = field(default_factory=dict)
    until_close: bool = False


VALID = [
    Case("length", OK + b"Content-Length: 2\r\n\r\nhi", b"hi", headers={"content-length": "2"}),
    Case("length 0", OK + b"Content-Length: 0\r\n\r\n"),
    Case("length twice", OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    Case("length as a list", OK + b"content-length: 2 ,2\r\n\r\nhi", b"hi"),
    Case("head-like body", OK + b"Content-Length: 8\r\n\r\n\r\n\r\n\r\n\r\n", b"\r\n\r\n\r\n\r\n"),
    Case("until close", OK + b"A: 1\r\n\r\nhi\r\n\r\n", b"hi\r\n\r\n", headers={"a": "1"}, until_close=True),
    Case("until close, nothing", OK + b"\r\n", headers={}, until_close=True),
    Case("HEAD", OK + b"Content-Length: 7\r\n\r\n", method="HEAD", headers={"content-length": "7"}),
    Case("HEAD, chunked", OK + b"Transfer-Encoding: chunked\r\n\r\n", method="HEAD"),
    Case("HEAD, no length", OK + b"\r\n", method="HEAD"),
    Case("204", b"HTTP/1.1 204 No Content\r\n\r\n", status=204, reason="No Content"),
    Case("204 with a length", b"HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\n", status=204, reason=""),
    Case("304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", status=304, reason="Not Modified"),
    Case(
        "101",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        status=101,
        reason="Switching Protocols",
        headers={"upgrade": "websocket"},
    ),
    Case(
        "interim answers",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: x\r\n\r\n"
        + OK
        + b"Content-Length: 2\r\n\r\nhi",
        b"hi",
        headers={"content-length": "2"},
    ),
    Case("no reason", b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", status=404, reason=""),
    Case("odd code", b"HTTP/1.1 999 \t\xe9 x\r\nContent-Length: 0\r\n\r\n", status=999, reason="\t\xe9 x"),
    Case("HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\nhi", b"hi", version="HTTP/1.0", until_close=True),
    Case(
        "repeated names",
        OK + b"A: 1\r\nB: x\r\na: 2\r\nA: 3\r\nContent-Length: 0\r\n\r\n",
        headers={"a": ["1", "2", "3"], "b": "x", "content-length": "0"},
    ),
    Case(
        "values",
        OK + b"A:\r\nB: \t \r\nC:x:y\r\nD: \t\xe9 \xff\t\r\nContent-Length: 0\r\n\r\n",
        headers={"a": "", "b": "", "c": "x:y", "d": "\xe9 \xff", "content-length": "0"},
    ),
    Case(
        "folded value",
        OK + b"A: x\r\n  y\r\n\t\r\n z \r\nB:\r\n c\r\nContent-Length: 0\r\n\r\n",
        headers={"a": "x y z", "b": "c", "content-length": "0"},
    ),
    Case(
        "folded coding",
        OK + b"Transfer-Encoding:\r\n \r\n\tchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"hi",
        headers={"transfer-encoding": "chunked"},
    ),
    Case("folded length", OK + b"Content-Length:\n 2\r\n\r\nhi", b"hi", headers={"content-length": "2"}),
    Case(
        "bare LF", b"HTTP/1.1 200 OK\nA: 1\nContent-Length: 2\n\nhi", b"hi", headers={"a": "1", "content-length": "2"}
    ),
    Case("chunked", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", b"hi", headers={"transfer-encoding": "chunked"}),
    Case("chunked, empty", CHUNKED + b"0\r\n\r\n"),
    Case("chunked, any case", OK + b"transfer-encoding: \tCHUNKED \r\n\r\n1\r\nx\r\n0\r\n\r\n", b"x"),
    Case("chunks", CHUNKED + b"2\r\nhi\r\n001\r\n\n\r\nA\r\n0123456789\r\n00\r\n\r\n", b"hi\n0123456789"),
    Case("chunk like an end", CHUNKED + b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n"),
    Case("chunk extensions", CHUNKED + b'2;a=b;c="d e"\r\nhi\r\n1 \t; x\r\n!\r\n0;last\r\n\r\n', b"hi!"),
    Case(
        "trailers",
        CHUNKED + b"2\r\nhi\r\n0\r\nA: 1\r\nb: 2\r\nA: 3\r\n x\r\n\r\n",
        b"hi",
        headers={"transfer-encoding": "chunked"},
        trailers={"a": ["1", "3 x"], "b": "2"},
    ),
]

# What was read, a part of the message, and whether the tracker, which looks at less, refuses it as well.
INVALID = [
    (b"<html>", "does not begin an HTTP/1 response, at byte 0", True),
    (b"\r\n" + OK, "does not begin an HTTP/1 response", True),
    (b"\x81\x02hi", "does not begin an HTTP/1 response", True),
    (b"http/1.1 200 OK\r\n\r\n", "does not begin an HTTP/1 response", True),
    (b"HTTP/2 200 OK\r\n\r\n", "does not begin an HTTP/1 response", True),
    (b"HTTP/1.1 100 \r\n\r\nx", "b'x' does not begin an HTTP/1 response, at byte 17", True),
    (b"HTTP/1.x 200 OK\r\n\r\n", "line 1 of the head: .* is not an HTTP/1 status line", True),
    (b"HTTP/1.1 099 OK\r\n\r\n", "status line", True),
    (b"HTTP/1.1 20 OK\r\n\r\n", "status line", True),
    (b"HTTP/1.1 2000 OK\r\n\r\n", "status line", True),
    (b"HTTP/1.1  200 OK\r\n\r\n", "status line", True),
    (b"HTTP/1.1 200 O\0K\r\n\r\n", "status line", False),
    (b"HTTP/1.1 200 O\rK\r\n\r\n", "status line", False),
    (OK + b"A 1\r\n\r\n", "line 2 of the head: b'A 1' is not a header field", False),
    (OK + b"A: 1\r\nB : 2\r\n\r\n", "line 3 of the head", False),
    (OK + b": 1\r\n\r\n", "line 2 of the head", False),
    (OK + b"A: \0\r\n\r\n", "line 2 of the head", False),
    (OK + b"A: x\ry\r\n\r\n", "line 2 of the head", False),
    (OK + b"A: 1\r\n \0\r\n\r\n", "line 3 of the head", False),
    (OK + b" A: 1\r\n\r\n", "line 2 of the head", False),
    (OK + b"\xe9: 1\r\n\r\n", "line 2 of the head", False),
    (OK + b"Content-Length: x\r\n\r\n", r"Content-Length \['x'\] is not one number", True),
    (OK + b"Content-Length:\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: -1\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: +1\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: 1_0\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: 1,\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: " + b"1" * 20 + b"\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: 1, 2\r\n\r\n", "is not one number", True),
    (OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "both Transfer-Encoding and", True),
    (OK + b"Transfer-Encoding: gzip\r\n\r\n", r"Transfer-Encoding \['gzip'\] is not 'chunked'", True),
    (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "is not 'chunked'", True),
    (OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "is not 'chunked'", True),
    (OK + b"Transfer-Encoding:\r\n\r\n", "is not 'chunked'", True),
    (CHUNKED + b"x\r\n", r"b'x\\r\\n' is not a chunk size line, at byte 47", True),
    (CHUNKED + b"1\r\na\r\nxyz\n", r"b'xyz\\n' is not a chunk size line, at byte 53", True),
    (CHUNKED + b"\r\n", "is not a chunk size line", True),
    (CHUNKED + b"-1\r\n", "is not a chunk size line", True),
    (CHUNKED + b"0x1\r\n", "is not a chunk size line", True),
    (CHUNKED + b" 1\r\n", "is not a chunk size line", True),
    (CHUNKED + b"1 2\r\n", "is not a chunk size line", True),
    (CHUNKED + b"1\n", "is not a chunk size line", True),
    (CHUNKED + b"1;a\0\r\n", "is not a chunk size line", True),
    (CHUNKED + b"1;a\rb\r\n", "is not a chunk size line", True),
    (CHUNKED + b"1" * 16 + b"\r\n", "is not a chunk size line", True),
    (CHUNKED + b"2\r\nhii\r\n", "no CRLF after the chunk, at byte 52", True),
    (CHUNKED + b"2\r\nhi\n", "no CRLF after the chunk", True),
    (CHUNKED + b"2\r\nhi\rx", "no CRLF after the chunk, at byte 53", True),
    (CHUNKED + b"2\r\nhi0\r\n\r\n", "no CRLF after the chunk", True),
    (CHUNKED + b"0\r\nx\r\n\r\n", "line 1 of the trailer part: b'x' is not a header field", False),
    (CHUNKED + b"0\r\nA: 1\r\nx\r\n\r\n", "line 2 of the trailer part: b'x'", False),
    (CHUNKED + b"0\r\n A: 1\r\n\r\n", "line 1 of the trailer part", False),
]


def feed_in_pieces(reader: ResponseParser | ResponseTracker, data: bytes, cuts: list[int]) -> None:
    """Feed *data*, cut at the given places."""
    start = 0
    for end in [*sorted(cuts), len(data)]:
        reader.feed(data[start:end])
        start = end


def cuts_of(data: bytes) -> list[list[int]]:
    """Whole, in two at every byte, and byte by byte."""
    return [[], *([at] for at in range(1, len(data))), list(range(1, len(data)))]


def check(parser: ResponseParser, case: Case) -> None:
    """Compare what a parser holds with what the case expects."""
    assert parser.complete
    assert (parser.version, parser.status, parser.reason) == (case.version, case.status, case.reason)
    assert parser.body == case.body
    assert parser.trailers == case.trailers
    if case.headers is not None:
        assert parser.headers == case.headers


parametrize_valid = pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
parametrize_sized = pytest.mark.parametrize(
    "case", [case for case in VALID if not case.until_close], ids=lambda case: case.name
)


@parametrize_valid
def test_a_response_is_read_however_it_is_cut(case: Case) -> None:
    """Cut at every byte the result is the same, and only the last byte, or the close, completes it."""
    for cuts in cuts_of(case.data):
        parser = ResponseParser(case.method)
        feed_in_pieces(parser, case.data[:-1], [cut for cut in cuts if cut < len(case.data) - 1])
        assert not parser.complete
        assert parser.feed(case.data[-1:]) is not case.until_close
        assert parser.until_close is case.until_close
        parser.close()
        parser.close()
        assert parser.trailing == b""
        check(parser, case)


@parametrize_sized
def test_what_follows_a_response_is_kept_apart(case: Case) -> None:
    """Bytes of the next response, in the same piece or later, are in trailing and nowhere else."""
    for cuts in cuts_of(case.data + OK):
        parser = ResponseParser(case.method)
        feed_in_pieces(parser, case.data + OK, cuts)
        assert parser.feed(b"more")
        parser.close()
        check(parser, case)
        assert parser.trailing == OK + b"more"


@parametrize_valid
def test_a_tracker_finds_the_end_however_it_is_cut(case: Case) -> None:
    """Cut at every byte the tracker is done with the last byte and counts what comes after it."""
    for cuts in cuts_of(case.data):
        tracker = ResponseTracker(case.method)
        feed_in_pieces(tracker, case.data[:-1], [cut for cut in cuts if cut < len(case.data) - 1])
        assert not tracker.complete
        assert tracker.feed(case.data[-1:]) is not case.until_close
        assert tracker.complete is not case.until_close
        assert tracker.until_close is case.until_close
        assert not tracker.opaque
        assert tracker.status == case.status
        assert tracker.excess == 0
        tracker.feed(b"12")
        tracker.feed(b"345")
        assert tracker.excess == (0 if case.until_close else 5)
    whole = ResponseTracker(case.method)
    whole.feed(case.data + b"12345")
    assert whole.excess == (0 if case.until_close else 5)


@parametrize_sized
def test_a_connection_that_ends_too_early_is_an_error(case: Case) -> None:
    """At every byte before the last the parser says where the connection ended, and stays failed."""
    for end in range(len(case.data)):
        parser = ResponseParser(case.method)
        parser.feed(case.data[:end])
        with pytest.raises(RemoteProtocolError, match=f"the connection ended .*, at byte {end}$") as first:
            parser.close()
        assert not parser.complete
        with pytest.raises(RemoteProtocolError) as second:
            parser.close()
        assert str(second.value) == str(first.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the connection ended in the head, at byte 0"),
        (OK + b"Content-Length: 5\r\n\r\nhi", "in the body, 3 bytes before its end, at byte 40"),
        (CHUNKED, "in a chunk size, at byte 47"),
        (CHUNKED + b"5\r\nhi", "in a chunk, 3 bytes before its end, at byte 52"),
        (CHUNKED + b"2\r\nhi", "after a chunk, 2 bytes before its end, at byte 52"),
        (CHUNKED + b"0\r\n", "in the trailers, at byte 50"),
    ],
)
def test_the_place_where_a_connection_ended_is_named(data: bytes, message: str) -> None:
    """The message says what was being read and how much is missing."""
    parser = ResponseParser()
    parser.feed(data)
    with pytest.raises(RemoteProtocolError, match=message):
        parser.close()


def test_what_was_read_before_an_early_end_stays_readable() -> None:
    """Half a body is there for who wants it."""
    parser = ResponseParser()
    parser.feed(OK + b"Content-Length: 5\r\n\r\nhi")
    assert parser.body == b"hi"
    parser.feed(b"!")
    with pytest.raises(RemoteProtocolError):
        parser.close()
    assert (parser.status, parser.body, parser.complete) == (200, b"hi!", False)


@pytest.mark.parametrize(("data", "message", "tracked"), INVALID)
def test_a_malformed_response_is_refused_however_it_is_cut(data: bytes, message: str, tracked: bool) -> None:
    """The error says what and where, the parser stays failed, and the tracker turns opaque without raising."""
    for cuts in cuts_of(data):
        parser = ResponseParser()
        with pytest.raises(RemoteProtocolError, match=message) as first:
            feed_in_pieces(parser, data, cuts)
        assert not parser.complete
        for call in (lambda: parser.feed(b"x"), parser.close):  # noqa: B023 - called in this round
            with pytest.raises(RemoteProtocolError) as again:
                call()
            assert str(again.value) == str(first.value)
        tracker = ResponseTracker()
        feed_in_pieces(tracker, data, cuts)
        assert tracker.opaque is tracked
        if tracked:
            assert not tracker.feed(OK)
            assert not tracker.complete


def test_a_tracker_knows_the_start_of_a_response_from_other_data() -> None:
    """What could still become a response is not opaque; the first byte that could not makes it so."""
    tracker = ResponseTracker()
    for byte in b"HTTP/1.":
        assert not tracker.feed(bytes([byte]))
        assert not tracker.opaque
    other = ResponseTracker()
    other.feed(b"HTTP/")
    other.feed(b"3")
    assert other.opaque


@pytest.mark.parametrize("off", [-1, 1])
def test_a_length_that_is_off_by_one_is_noticed(off: int) -> None:
    """One too long stays incomplete, one too short leaves a byte over; a chunk's is an error at its end."""
    parser = ResponseParser()
    parser.feed(OK + b"Content-Length: %d\r\n\r\nhello" % (5 + off))
    assert (parser.complete, parser.trailing) == ((True, b"o") if off < 0 else (False, b""))
    tracker = ResponseTracker()
    tracker.feed(OK + b"Content-Length: %d\r\n\r\nhello" % (5 + off))
    assert (tracker.complete, tracker.excess) == ((True, 1) if off < 0 else (False, 0))
    with pytest.raises(RemoteProtocolError, match="no CRLF after the chunk"):
        ResponseParser().feed(CHUNKED + b"%x\r\nhello\r\n0\r\n\r\n" % (5 + off))


@pytest.mark.parametrize(
    ("before", "part", "what"),
    [
        (b"", OK + b"A: " + b"x" * 40 + b"\r\n\r\n", "the head"),
        (b"HTTP/1.1 100 \r\n\r\n", OK + b"A: " + b"x" * 40 + b"\r\n\r\n", "the head"),
        (CHUNKED, b"1;" + b"x" * 60 + b"\r\n", "the chunk size line"),
        (CHUNKED + b"0\r\n", b"A: " + b"x" * 60 + b"\r\n\r\n", "the trailer part"),
    ],
)
def test_a_part_may_be_as_long_as_the_limit_and_no_longer(before: bytes, part: bytes, what: str) -> None:
    """At the limit it is read, one byte over it is refused, in one piece and in many, also before its end came."""
    # The line end before a trailer part counts with it.
    limit = len(part) + (what == "the trailer part")
    for data in (before + part, before + part[:-1] + b"x" * 100):
        for cuts in cuts_of(data):
            with pytest.raises(RemoteProtocolError, match=f"{what} is over {limit - 1} bytes"):
                feed_in_pieces(ResponseParser(max_head=limit - 1), data, cuts)
    for cuts in cuts_of(before + part):
        parser = ResponseParser(max_head=max(limit, len(CHUNKED)))
        feed_in_pieces(parser, before + part, cuts)
        tracker = ResponseTracker(max_head=max(limit, len(CHUNKED)))
        feed_in_pieces(tracker, before + part, cuts)
        assert not tracker.opaque


@pytest.mark.timeout(10)
@pytest.mark.parametrize("filler", [b" ", b"\t", b"a", b"\n ", b";", b" ;"])
def test_a_long_bad_line_costs_no_more_than_its_length(filler: bytes) -> None:
    """No pattern goes back and forth over 60000 bytes that match up to the last."""
    filler *= 60000 // len(filler)
    for data in (
        b"HTTP/1.1 200 " + filler + b"\0\r\n\r\n",
        OK + b"A:" + filler + b"\0\r\n\r\n",
        OK + b"A: 1\r\n " + filler + b"\0\r\n\r\n",
        OK + b"Content-Length" + filler + b"\0\r\n\r\n",
        CHUNKED + b"1" + filler + b"\0\r\n",
        CHUNKED + b"1;" + filler + b"\0\r\n",
    ):
        with pytest.raises(RemoteProtocolError):
            ResponseParser().feed(data)
        ResponseTracker().feed(data)


def test_a_head_that_comes_in_single_bytes_is_read_in_linear_time() -> None:
    """60000 single bytes of one head are no burden."""
    parser = ResponseParser()
    tracker = ResponseTracker()
    data = OK + b"A: " + b"x" * 60000 + b"\r\nContent-Length: 0\r\n\r\n"
    for at in range(len(data)):
        parser.feed(data[at : at + 1])
        tracker.feed(data[at : at + 1])
    assert parser.complete
    assert tracker.complete


def test_empty_pieces_change_nothing() -> None:
    """Feeding nothing is allowed at any time, before, within and after a response."""
    parser = ResponseParser()
    assert not parser.feed(b"")
    parser.feed(OK + b"Content-Length: 1\r\n\r\n")
    assert not parser.feed(b"")
    assert parser.feed(b"x")
    assert parser.feed(b"")
    assert parser.trailing == b""


def test_the_defaults_are_those_before_a_head() -> None:
    """Nothing was read, so nothing is claimed."""
    parser = ResponseParser()
    assert (parser.version, parser.status, parser.reason, parser.body) == ("", 0, "", b"")
    assert parser.headers == parser.trailers == {}
    assert not parser.until_close
    tracker = ResponseTracker()
    assert (tracker.status, tracker.excess) == (0, 0)
    assert not tracker.opaque


def test_an_interim_answer_leaves_no_trace_in_the_parser() -> None:
    """Until the final head comes the status is 0; the tracker, which has less to tell, shows the last one."""
    parser = ResponseParser()
    tracker = ResponseTracker()
    for reader in (parser, tracker):
        assert not reader.feed(b"HTTP/1.1 100 Continue\r\nA: 1\r\n\r\n")
    assert (parser.status, parser.headers) == (0, {})
    assert tracker.status == 100


def test_a_repr_shows_the_state() -> None:
    """State and status are visible at a glance."""
    parser = ResponseParser()
    tracker = ResponseTracker()
    for reader in (parser, tracker):
        reader.feed(OK + b"Content-Length: 1\r\n\r\n")
    assert repr(parser) == "<ResponseParser LENGTH status=200>"
    assert repr(tracker) == "<ResponseTracker LENGTH status=200>"


HEADS = [
    (b"HTTP/1.1 200 OK\r\n\r\n", ("HTTP/1.1", 200, "OK", [])),
    (b"HTTP/1.1 200 OK\r\n", ("HTTP/1.1", 200, "OK", [])),
    (b"HTTP/1.1 200 OK", ("HTTP/1.1", 200, "OK", [])),
    (b"HTTP/1.0 404\r\nA: 1\r\n\r\n", ("HTTP/1.0", 404, "", [("A", "1")])),
    (b"HTTP/1.0 404\r\nA: 1\r\n", ("HTTP/1.0", 404, "", [("A", "1")])),
    (b"HTTP/1.0 404\r\nA: 1", ("HTTP/1.0", 404, "", [("A", "1")])),
    (b"HTTP/1.1 200 \nA: 1\nb:2\nA: 3\n\n", ("HTTP/1.1", 200, "", [("A", "1"), ("b", "2"), ("A", "3")])),
]


@pytest.mark.parametrize(("data", "expected"), HEADS)
def test_a_head_is_parsed_with_and_without_its_empty_line(
    data: bytes, expected: tuple[str, int, str, list[tuple[str, str]]]
) -> None:
    """Names keep their case, fields their order."""
    assert parse_head(data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1 of the head: b'' is not an HTTP/1 status line"),
        (b"\r\n\r\n", "status line"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "status line"),
        (OK + b"\r\nbody", "b'body' follows the empty line of the head"),
        (OK + b"A: 1\r\n\r", "line 3 of the head: b'' is not a header field"),
        (b"x" * 1000, f"line 1 of the head: b'{'x' * 198}\\.\\.\\. is not"),
    ],
)
def test_a_head_that_is_none_is_refused(data: bytes, message: str) -> None:
    """The line at fault is named, and a long one is cut."""
    with pytest.raises(RemoteProtocolError, match=message):
        parse_head(data)


tokens = st.text("!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz", min_size=1, max_size=12)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=30).map(
    lambda text: text.strip(" ")
)
pairs = st.lists(st.tuples(tokens.map("X-".__add__), values), max_size=6)
places = st.lists(st.integers(0, 400), max_size=6)


@given(code=st.integers(100, 999), reason=values, fields=pairs, version=st.sampled_from(["HTTP/1.1", "HTTP/1.0"]))
def test_a_head_that_was_built_is_parsed_back(
    code: int, reason: str, fields: list[tuple[str, str]], version: str
) -> None:
    """Version, code, phrase and fields make the round trip."""
    assert parse_head(build_head(code, reason, fields, version=version)) == (version, code, reason, fields)


@given(
    body=st.binary(max_size=200),
    code=st.integers(200, 999),
    fields=pairs,
    cuts=places,
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    close=st.booleans(),
)
def test_a_response_that_was_built_is_read_back(
    body: bytes, code: int, fields: list[tuple[str, str]], cuts: list[int], method: str, close: bool
) -> None:
    """Whatever the pieces, body and fields make the round trip and nothing is left over."""
    data = build_response(body, code, None, fields, head_only=method == "HEAD", close=close)
    parser = ResponseParser(method)
    tracker = ResponseTracker(method)
    for reader in (parser, tracker):
        feed_in_pieces(reader, data, [min(cut, len(data)) for cut in cuts])
        assert reader.complete
        assert reader.status == code
    assert parser.body == (b"" if method == "HEAD" or code in (204, 304) else body)
    assert (parser.trailing, tracker.excess) == (b"", 0)
    for name, value in fields:
        assert value in parser.headers.get_all(name.lower())


@given(pieces=st.lists(st.binary(min_size=1, max_size=60), max_size=6), cuts=places, trailers=pairs)
def test_chunks_that_were_built_are_read_back(
    pieces: list[bytes], cuts: list[int], trailers: list[tuple[str, str]]
) -> None:
    """Whatever the pieces, the chunks make the round trip, with trailers and without."""
    end = b"0\r\n" + build_head(200, "", trailers).split(b"\r\n", 1)[1] if trailers else LAST_CHUNK
    data = CHUNKED + b"".join(map(build_chunk, pieces)) + end
    parser = ResponseParser()
    tracker = ResponseTracker()
    for reader in (parser, tracker):
        feed_in_pieces(reader, data, [min(cut, len(data)) for cut in cuts])
        assert reader.complete
    assert parser.body == b"".join(pieces)
    assert sum(len(parser.trailers.get_all(name)) for name in parser.trailers) == len(trailers)


def outcome(data: bytes, method: str, cuts: list[int]) -> tuple[object, ...]:
    """All that a parser tells after *data*, however it ended."""
    parser = ResponseParser(method)
    error = ""
    try:
        feed_in_pieces(parser, data, cuts)
    except RemoteProtocolError as caught:
        error = str(caught)
    return (error, repr(parser), parser.headers, parser.body, parser.trailers, parser.trailing)


@given(
    case=st.sampled_from(VALID),
    edits=st.lists(
        st.tuples(
            st.integers(0, 150),
            st.integers(0, 3),
            st.sampled_from([b"", b"\r\n", b"\n", b"\0", b" ", b"0", b":", b"HTTP/1.1 "]),
        ),
        max_size=3,
    ),
    cuts=places,
)
def test_where_a_response_is_cut_never_changes_what_is_read(
    case: Case, edits: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    """For damaged responses too the outcome is the same whole and cut, and the tracker follows the parser."""
    data = case.data
    for at, removed, inserted in edits:
        data = data[:at] + inserted + data[at + removed :]
    cuts = [min(cut, len(data)) for cut in cuts]
    # The place where a response stops being one is only as exact as the pieces; all else has to agree.
    whole = outcome(data, case.method, [])
    cut = outcome(data, case.method, cuts)
    assert cut[1:] == whole[1:]
    assert bool(cut[0]) is bool(whole[0])
    tracker = ResponseTracker(case.method)
    feed_in_pieces(tracker, data, cuts)
    if "COMPLETE" in str(whole[1]) and b"\n " not in data and b"\n\t" not in data:
        assert tracker.complete
        assert tracker.excess == len(whole[5])  # type: ignore[arg-type]


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_no_bytes_raise_anything_else(first: bytes, second: bytes) -> None:
    """Any bytes, after a good beginning too, are read, refused or followed."""
    for begin in (b"", b"HTTP/1.1 200 ", OK, CHUNKED):
        outcome(begin + first + second, "GET", [len(begin) + len(first)])
        tracker = ResponseTracker()
        tracker.feed(begin + first)
        tracker.feed(second)
