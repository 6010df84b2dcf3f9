"""What the embedded front end writes to a browser, and what waits."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent import socket

from greentx.edge.front.outgoing import MAX_BYTES, MAX_MESSAGES, Outgoing


@pytest.fixture
def pair() -> Any:
    """Two ends whose buffers are small."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    yield ends
    for end in ends:
        end.close()


def read_all(end: Any) -> bytes:
    return b"".join(iter(lambda: end.recv(65536), b""))


def later() -> None:
    """Let the loop begin its next turn: what is written in one counts as if it waited."""
    gevent.sleep(0.001)  # the shortest there is


def fill(outgoing: Outgoing) -> bytes:
    """Write so much that something waits."""
    filled = b""
    while outgoing.idle:
        filled += bytes(50_000)
        assert outgoing.write(bytes(50_000))
        later()
    return filled


def test_all_that_waits_gets_out_before_the_end(pair):
    """In the order of its writing; what is written behind the end is dropped."""
    outgoing = Outgoing(pair[0], lambda: None)
    pieces = [bytes([number]) * 100_000 for number in range(MAX_MESSAGES)]
    assert all(outgoing.write(piece) for piece in pieces)
    assert not outgoing.idle
    outgoing.end()
    assert outgoing.write(b"late")
    assert read_all(pair[1]) == b"".join(pieces)
    assert outgoing.over


@pytest.mark.parametrize("size", [1, 100_000])
def test_more_messages_than_may_wait_are_not_taken(pair, size):
    """Those that were written at once count, too, as in Mongrel2; what waits still gets out."""
    outgoing = Outgoing(pair[0], lambda: None)
    taken = 0
    while outgoing.write(bytes(size)):
        taken += 1
    assert taken == MAX_MESSAGES
    outgoing.end()
    assert len(read_all(pair[1])) == taken * size


def test_messages_that_come_one_after_the_other_do_not_count_together(pair):
    """A client that reads gets as many as there are."""
    outgoing = Outgoing(pair[0], lambda: None)
    for _ in range(2 * MAX_MESSAGES):
        assert outgoing.write(b"x")
        later()
        assert pair[1].recv(2) == b"x"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([MAX_BYTES], [True]),
        ([MAX_BYTES + 1], [False]),
        ([50_000, 50_000, 50_000], [True, True, False]),
        ([1] * 100, [True] * 100),
    ],
)
def test_with_flow_control_bytes_are_counted(pair, sizes, expected):
    """No messages; these come at once."""
    outgoing = Outgoing(pair[0], lambda: None, lambda size: None)
    assert [outgoing.write(bytes(size)) for size in sizes] == expected
    outgoing.drop()


def test_with_flow_control_it_is_told_what_the_kernel_took_once_for_each_message(pair):
    """Not what waits, nor what is the front end's own."""
    told: list[int] = []
    outgoing = Outgoing(pair[0], lambda: None, told.append)
    filled = len(fill(outgoing))
    assert sum(told) == filled - 50_000
    outgoing.add(b"own")
    assert outgoing.write(b"behind it")
    outgoing.end()
    assert len(read_all(pair[1])) == filled + len(b"own") + len(b"behind it")
    assert told == [50_000] * (filled // 50_000) + [9]


def test_with_flow_control_what_the_handler_was_told_of_does_not_count(pair):
    """It may send as much again as soon as it is told, be it in the same turn of the loop."""
    again: list[bool] = []

    def send_again(size: int) -> None:
        if len(again) < 5:
            again.append(outgoing.write(bytes(size)))

    outgoing = Outgoing(pair[0], lambda: None, send_again)
    reading = gevent.spawn(read_all, pair[1])
    assert outgoing.write(bytes(MAX_BYTES))
    with gevent.Timeout(10):
        while len(again) < 5:
            later()
    outgoing.end()
    assert again == [True] * 5
    assert len(reading.get(timeout=10)) == 6 * MAX_BYTES


def test_what_is_dropped_does_not_get_out(pair):
    """Nobody is left over that writes it."""
    said: list[bool] = []
    outgoing = Outgoing(pair[0], lambda: said.append(outgoing.over))
    outgoing.write(bytes(1_000_000))
    outgoing.drop()
    gevent.sleep(0)
    assert len(read_all(pair[1])) < 1_000_000
    assert outgoing.over
    assert said == [True]
