"""How much is read of one browser connection at once."""

from __future__ import annotations

import gevent
import pytest
from gevent import socket

from greentx.edge.front.incoming import Incoming, next_size

QUICK, SLOW = 0.0001, 0.002


@pytest.mark.parametrize(
    ("size", "received", "seconds", "expected"),
    [
        (8192, 8192, QUICK, 16384),
        (8192, 8191, QUICK, 8192),
        (65536, 65536, QUICK, 65536),
        (8192, 8192, SLOW, 4096),
        (8192, 100, SLOW, 4096),
        (512, 512, SLOW, 512),
    ],
)
def test_less_is_read_at_once_of_what_takes_long_and_more_of_what_does_not(
    size: int, received: int, seconds: float, expected: int
) -> None:
    """Within bounds; a large body is read in large pieces."""
    assert next_size(size, received, seconds) == expected


def test_a_client_that_is_always_ahead_does_not_hold_up_others() -> None:
    """Between two calls that find something others go on, and likewise where one gives way."""
    ours, theirs = socket.socketpair()
    incoming = Incoming(ours)
    others = 0

    def count() -> None:
        nonlocal others
        while True:
            gevent.sleep(0)  # in each turn of the loop
            others += 1

    counting = gevent.spawn(count)
    try:
        theirs.sendall(bytes(4096))
        incoming.size = 512
        with gevent.Timeout(10):
            for _ in range(8):
                before = others
                assert incoming.receive() == bytes(512)
                assert others > before
            before = others
            incoming.give_way()
            assert others > before
            theirs.close()
            assert incoming.receive() == b""
    finally:
        counting.kill()
        incoming.close()
        ours.close()
        theirs.close()
