"""What the core offers to the WSGI server."""

from __future__ import annotations

import pytest

from greentx.handler.intake import _known_credits, _read_credits
from greentx.protocol.life import ENDED
from greentx.protocol.pipeline import MAX_CLOSED, OpenRequests
from greentx.protocol.request import Request, parse_request


@pytest.mark.parametrize(
    "message",
    [
        b"abc 1 /up 25:13:UPLOAD_STREAM,5:16328,}3:xyz,",
        b'abc 1 /up 25:{"UPLOAD_STREAM":"16328"},3:xyz,',
    ],
)
def test_a_piece_of_a_streamed_body_is_known_by_its_one_header(message: bytes) -> None:
    """Mongrel2 sends further pieces without METHOD and PATH (probed)."""
    request = parse_request(message)
    assert (request.method, request.path, request.body) == ("UPLOAD_STREAM", "/up", b"xyz")
    assert request.header("UPLOAD_STREAM") == "16328"
    assert request.header("METHOD") is None
    assert parse_request(request.encode()).method == "UPLOAD_STREAM"


def test_an_answer_may_be_completed_without_a_further_byte() -> None:
    """The next pipelined request then gets its turn."""
    books = OpenRequests()
    first, second = (Request("abc", "1", path, {"METHOD": "GET", "VERSION": "HTTP/1.1"}) for path in ("/1", "/2"))
    books.add(first)
    books.add(second)
    assert books.answer(first, b"part", complete=False) == (b"part", False)
    assert books.answer(second, b"whole", complete=True) == (b"", False)
    assert books.answer(first, b"", complete=True) == (b"whole", False)


@pytest.mark.parametrize(
    ("notice", "written"),
    [
        (b'@* 43:16:DOWNLOAD_CREDITS,4:1041,6:METHOD,4:JSON,}18:{"type":"credits"},', 1041),
        (b'@* 43:{"METHOD":"JSON","DOWNLOAD_CREDITS":"1042"},18:{"type":"credits"},', 1042),
        (b'@* 67:4:PATH,2:@*,16:DOWNLOAD_CREDITS,4:1041,6:METHOD,4:JSON,}18:{"type":"credits"},', None),
        (b'/x 43:16:DOWNLOAD_CREDITS,4:1041,6:METHOD,4:JSON,}18:{"type":"credits"},', None),
    ],
)
def test_credits_are_read_without_parsing_only_where_the_server_alone_can_have_written_them(
    notice: bytes, written: int | None
) -> None:
    """The client of a JSON socket has a say over path and body, but brings more headers."""
    assert _read_credits(notice) == written
    assert _known_credits.get(notice) == written


def test_what_comes_behind_our_own_close_is_no_request() -> None:
    """Mongrel2 sends it on until it has heard of the close; it may be the rest of a body, made up by an attacker."""
    books = OpenRequests()
    requests = [Request("abc", "1", path, {"METHOD": "GET", "VERSION": "HTTP/1.1"}) for path in ("/1", "/2", "/3")]
    other = Request("abc", "2", "/", {"METHOD": "GET", "VERSION": "HTTP/1.1"})
    assert books.add(requests[0]) and books.add(requests[1])
    assert books.answer(requests[0], b"400", complete=True, close=True) == (b"400", True)
    books.closed("1")
    assert requests[1].life is ENDED
    assert not books.add(requests[2]) and books.add(other)
    for number in range(MAX_CLOSED):
        books.closed(str(number + 10))
    assert books.add(requests[2])  # forgotten, long after it can have come
