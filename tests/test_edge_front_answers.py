"""What the embedded front end answers by itself."""

from __future__ import annotations

import pytest

from greentx.edge.front.answers import CONTINUE, build_answer
from greentx.errors import LocalProtocolError
from greentx.protocol.http1_parser import ResponseParser

STATUSES = (400, 404, 408, 413, 414, 417, 431, 500, 501, 503, 505)


def parsed(data, method="GET"):
    """The answer as a client reads it, whole and with nothing behind it."""
    parser = ResponseParser(method)
    assert parser.feed(data) and parser.trailing == b""
    return parser


@pytest.mark.parametrize("status", STATUSES)
def test_an_answer_is_a_line_of_text_and_ends_the_connection(status):
    """That says the status in words."""
    answer = parsed(build_answer(status, "the <b>reason</b>", timestamp=784111777.5))
    assert (answer.status, answer.version) == (status, "HTTP/1.1")
    assert answer.headers == {
        "content-type": "text/plain; charset=utf-8",
        "date": "Sun, 06 Nov 1994 08:49:37 GMT",
        "content-length": str(len(answer.body)),
        "connection": "close",
    }
    assert answer.body.decode() == f"{status} {answer.reason}: the <b>reason</b>\n"


def test_an_answer_needs_neither_a_reason_nor_a_date():
    """Nor other fields, but may have them."""
    answer = parsed(build_answer(503, headers={"Retry-After": "5"}))
    assert answer.body == b"503 Service Unavailable\n"
    assert "date" not in answer.headers and answer.headers["retry-after"] == "5"


def test_the_answer_to_head_has_no_body():
    """But says how long that of a GET is."""
    with_body, without = build_answer(404), build_answer(404, head_only=True)
    assert with_body == without + b"404 Not Found\n"
    assert parsed(without, "HEAD").headers == parsed(with_body).headers


def test_a_field_that_cannot_be_sent_is_told():
    """It could end the head."""
    with pytest.raises(LocalProtocolError):
        build_answer(503, headers={"Retry-After": "5\r\n\r\n"})


def test_a_client_that_waits_is_told_to_go_on():
    """By a head alone."""
    parser = ResponseParser()
    assert not parser.feed(CONTINUE) and parser.status == 0
    assert parser.feed(build_answer(400))
