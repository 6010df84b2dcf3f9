"""What the core offers to the WSGI server."""

from __future__ import annotations

import pytest

from greentx.pipeline import OpenRequests
from greentx.wire import Request, parse_request


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
