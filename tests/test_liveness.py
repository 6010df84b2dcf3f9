"""A clock that stands still while a server does: a table of signs of life, and what it then shows."""

from __future__ import annotations

import pytest

from greentx.protocol.liveness import ServerClock


@pytest.mark.parametrize(
    ("signs", "now", "shows", "stood"),
    [
        ([], 5.0, 5.0, 0.0),
        ([1.0], 1.5, 1.5, 0.0),
        ([1.0], 3.0, 2.0, 0.0),
        ([1.0, 2.0, 3.0], 3.5, 3.5, 0.0),
        ([1.0, 3.0], 3.0, 2.0, 1.0),
        ([1.0, 3.0], 3.5, 2.5, 1.0),
        ([1.0, 6.0, 11.0], 11.0, 3.0, 8.0),
        ([1.0, 1.0], 1.0, 1.0, 0.0),
    ],
)
def test_a_silence_counts_as_one_that_is_usual(signs: list[float], now: float, shows: float, stood: float) -> None:
    """With a step of a second: what is longer counts as that, also while it lasts."""
    clock = ServerClock(1.0)
    for sign in signs:
        clock.moves(sign)
    assert (clock.time(now), clock.stood) == (shows, stood)


def test_it_never_goes_back() -> None:
    """Whatever the signs are."""
    clock = ServerClock(1.0)
    shown = []
    for tenth in range(200):
        now = tenth / 10
        shown.append(clock.time(now))
        if tenth % 7 == 0 and not 50 < tenth < 120:
            clock.moves(now)
        shown.append(clock.time(now))
    assert shown == sorted(shown)
