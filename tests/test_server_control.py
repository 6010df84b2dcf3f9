"""What Mongrel2's control port answers: tables of (bytes, connections)."""

from __future__ import annotations

import pytest
import tnetstring

from greentx.errors import RemoteProtocolError
from greentx.protocol.server_control import STATUS_NET, WEBSOCKET_TYPE, NetRow, parse_status_net

#: As Mongrel2 1.12.2 wrote it: two WebSockets, an HTTP request, a connection that no handler has heard of.
HEADERS = [b"id", b"fd", b"type", b"last_ping", b"last_read", b"last_write", b"bytes_read", b"bytes_written"]
ROWS = [
    [1, 19, 3, 0, 0, 0, 159, 136],
    [2, 20, 3, 0, 0, 0, 148, 129],
    [3, 21, 1, 0, 0, 0, 28, 0],
    [-1, 22, 0, 0, 0, 0, 0, 0],
]


def test_the_question_is_what_mongrel2_reads() -> None:
    """A command and its arguments."""
    assert STATUS_NET == b"26:6:status,13:4:what,3:net,}]"


def test_connections_are_told_by_their_ids() -> None:
    """Those that no handler has heard of have none."""
    rows = parse_status_net(tnetstring.dumps({b"headers": HEADERS, b"rows": ROWS}))
    assert rows == {
        "1": NetRow(WEBSOCKET_TYPE, 159, 136),
        "2": NetRow(WEBSOCKET_TYPE, 148, 129),
        "3": NetRow(1, 28, 0),
    }


def test_columns_are_found_by_their_names() -> None:
    """In any order, among any others."""
    table = {b"headers": HEADERS[::-1], b"rows": [row[::-1] for row in ROWS]}
    assert parse_status_net(tnetstring.dumps(table))["2"] == NetRow(WEBSOCKET_TYPE, 148, 129)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"PONG",
        b"5:hello,",
        b"0:]",
        b"0:}",
        tnetstring.dumps({b"code": b"INVALID_DATA", b"error": b"Invalid data"}),
        tnetstring.dumps({b"headers": HEADERS}),
        tnetstring.dumps({b"headers": HEADERS[:3], b"rows": ROWS}),
        tnetstring.dumps({b"headers": HEADERS, b"rows": [[1]]}),
        tnetstring.dumps({b"headers": HEADERS, b"rows": [1]}),
        tnetstring.dumps({b"headers": HEADERS, b"rows": 1}),
        tnetstring.dumps({b"headers": 1, b"rows": ROWS}),
        tnetstring.dumps({b"headers": HEADERS, b"rows": [[b"x"] * 8]}),
        tnetstring.dumps({b"headers": HEADERS, b"rows": [[None] * 8]}),
        tnetstring.dumps({b"headers": HEADERS, b"rows": [[float("inf")] * 8]}),
        b"99999999999999999999:x,",
        b"\xff" * 10_000,
    ],
)
def test_anything_else_is_no_answer(answer: bytes) -> None:
    """The message has what was said instead, cut."""
    with pytest.raises(RemoteProtocolError, match="control port") as caught:
        parse_status_net(answer)
    assert len(str(caught.value)) < 1000
