"""The access log of the embedded front end, and the answers that its lines are of."""

from __future__ import annotations

import re
import time

import pytest

from greentx.edge import EdgeProcess
from greentx.edge.front.access_log import AccessLog, format_line
from greentx.edge.front.events import Head
from greentx.edge.front.logged_turns import LoggedTurns
from greentx.errors import LocalProtocolError

WHEN = time.localtime(1_800_000_000)
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def head(target: bytes = b"/", *fields: tuple[bytes, bytes], method: bytes = b"GET") -> Head:
    return Head(method, target, b"HTTP/1.1", list(fields))


def line(of: Head | None, status: int = 200, size: int = 5, seconds: float | None = 0.25) -> str:
    """A line without its date, which depends on the zone of this machine."""
    text = format_line("::1", WHEN, of, status, size, seconds)
    found = re.fullmatch(r"(::1 - - )\[\d\d/Jan/2027:\d\d:\d\d:\d\d [+-]\d{4}\] (.*)", text)
    assert found is not None, text
    return found[2]


def test_a_line_has_the_combined_format_and_the_seconds():
    """What there is none of is a dash."""
    fields = (b"host", b"x"), (b"user-agent", b"curl/8"), (b"referer", b"http://x/")
    assert line(head(b"/a?b", *fields)) == '"GET /a?b HTTP/1.1" 200 5 "http://x/" "curl/8" 0.250000'
    assert line(head()) == '"GET / HTTP/1.1" 200 5 "-" "-" 0.250000'
    assert line(None, 0, 0, None) == '"-" - - "-" "-" -'


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        (b"\x1b[2J\r\n\0\x7f", r"\x1b[2J\x0d\x0a\x00\x7f"),
        (b'a" 200 "b', r"a\" 200 \"b"),
        (b"a\\", r"a\\"),
        ("é".encode(), r"\xc3\xa9"),
        (b"\x85\x9b", r"\x85\x9b"),
        (b"a" * 513, "a" * 512 + "..."),
    ],
)
def test_what_a_client_sends_cannot_break_a_line(sent, written):
    """Control characters, quotes and what is not ASCII are escaped; what is long is cut."""
    assert line(head(b"/", (b"user-agent", sent))) == f'"GET / HTTP/1.1" 200 5 "-" "{written}" 0.250000'


def test_a_log_that_cannot_be_written_is_told_of_once(caplog):
    """And again when it has worked meanwhile; nobody else hears of it."""
    room = [False, False, True, False]
    lines = []

    def write(text: str) -> None:
        if not room.pop(0):
            raise OSError("no space left")
        lines.append(text)

    log = AccessLog(write)
    while room:
        log.add("::1", None, 400, 1, None)
    assert [one.getMessage() for one in caplog.records] == [
        "lines of the access log are lost: OSError('no space left')"
    ] * 2
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("methods", "written", "whole", "at_the_end"),
    [
        ("GET", [PLAIN], [(200, 40)], []),
        ("GET", [PLAIN[:9], PLAIN[9:]], [(200, 40)], []),
        ("HEAD", [PLAIN[:-2]], [(200, 38)], []),
        ("GET GET", [PLAIN + PLAIN[:-1], b"k"], [(200, 40), (200, 40)], []),
        ("GET", [b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN], [(200, 65)], []),
        ("GET GET", [PLAIN], [(200, 40)], [(0, 0)]),
        ("GET", [b"HTTP/1.1 404 Not Found\r\n\r\n", b"until the end"], [], [(404, 39)]),
        ("GET", [PLAIN[:-1]], [], [(200, 39)]),
        ("GET", [b"not HTTP"], [], [(0, 8)]),
    ],
)
def test_each_request_has_one_line_with_the_status_and_size_of_its_answer(methods, written, whole, at_the_end):
    """When that is whole, or at the end of the connection."""
    lines: list[str] = []
    turns = LoggedTurns(AccessLog(lines.append), "::1")
    for method in methods.split():
        turns.asked(head(method=method.encode()))
    for piece in written:
        turns.wrote(piece)
    for expected in (whole, at_the_end):
        assert [tuple(one.split('"')[2].split()) for one in lines] == [
            (str(status or "-"), str(size or "-")) for status, size in expected
        ]
        lines.clear()
        turns.closed()


def test_a_request_that_no_handler_took_has_no_answer_of_one():
    """The front end's own has the line."""
    lines: list[str] = []
    turns = LoggedTurns(AccessLog(lines.append), "::1")
    turns.asked(head())
    assert turns.withdraw()
    turns.refused(head(), 503, 7)
    turns.closed()
    (one,) = lines
    assert one.endswith('"GET / HTTP/1.1" 503 7 "-" "-" -')


def test_another_process_cannot_call_what_writes_it():
    """So an EdgeProcess refuses it when it is made."""
    with pytest.raises(LocalProtocolError, match="access_log"):
        EdgeProcess(access_log=print)
