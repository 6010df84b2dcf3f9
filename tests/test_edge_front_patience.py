"""How long a connection of the embedded front end may take, and how long it may be silent."""

from __future__ import annotations

import math

import pytest

from greentx.edge.config import DEFAULT_SETTINGS
from greentx.edge.front.patience import Patience, Silence, Times
from greentx.errors import LocalProtocolError


def test_a_deadline_moves_with_a_body_and_not_with_a_head():
    """And by no more than the time for one piece, nor past what the slowest rate allows."""
    patience = Patience(Times(head=10, min_rate=10), 0)
    assert patience.deadline == 10
    patience.begin(5, 5)
    patience.more(100, 14, is_body=False)
    assert patience.deadline == 15
    patience.more(1000, 14, is_body=True)
    assert patience.deadline == 24
    patience.more(1, 200, is_body=True)
    assert patience.deadline == pytest.approx(5 + 1106 / 10 + 10)
    patience.forget()
    assert patience.deadline == math.inf
    patience.linger(7)
    assert patience.deadline == 9


def test_a_client_has_as_much_time_after_a_wait_as_before_it():
    """It could do nothing meanwhile."""
    patience = Patience(Times(head=10, min_rate=10), 0)
    patience.begin(100, 0)
    patience.postpone(50)
    assert patience.deadline == 60
    patience.more(100, 200, is_body=True)
    assert patience.deadline == 50 + 200 / 10 + 10


RULES = Silence(min_ping=120, min_read_rate=1000, min_write_rate=10000, kill_limit=2)


@pytest.mark.parametrize(
    ("silence", "read", "written", "seconds", "expected"),
    [
        (RULES, 300, 300, 121, True),
        (RULES, 300, 300, 120, False),
        # The rates are those of all bytes that there ever were.
        (RULES, 300, 1_220_001, 121, False),
        (RULES, 300, 1_219_999, 121, True),
        (RULES, 122_001, 300, 121, False),
        (RULES, 122_001, 300, 122, True),
        # What is switched off gives no point.
        (Silence(0, 1000, 10000, 2), 300, 300, 10_000, False),
        (Silence(120, 0, 10000, 2), 300, 300, 10_000, False),
        (Silence(120, 0, 0, 0), 10**9, 10**9, 121, True),
        (Silence(0, 1000, 0, 0), 300, 10**9, 1, True),
        (Silence(120, 1000, 10000, 1), 300, 10**9, 121, True),
        (Silence(120, 1000, 10000, 3), 0, 0, 10_000, False),
    ],
)
def test_a_connection_is_silent_by_the_points_that_mongrel2_gives(silence, read, written, seconds, expected):
    """While something is under way on it; its last bytes came at 1000."""
    patience = Patience(Times(silence=silence), 0)
    assert not patience.silent(read, written, 1000, busy=True) or not silence.min_ping
    assert patience.silent(read, written, 1000 + seconds, busy=True) is expected


@pytest.mark.parametrize(("seconds", "expected"), [(120, False), (121, True)])
def test_a_connection_on_which_nothing_is_under_way_ends_however_much_it_has_read(seconds, expected):
    """Mongrel2 would leave it its place for a day."""
    patience = Patience(Times(silence=RULES), 0)
    assert not patience.silent(300, 10**9, 1000, busy=False)
    assert patience.silent(300, 10**9, 1000 + seconds, busy=False) is expected


def test_without_min_ping_nothing_ends_that_is_at_rest():
    """Nor where more limits would have to be passed than there are."""
    for silence in (Silence(min_ping=0), Silence(min_read_rate=0), Silence(kill_limit=3)):
        patience = Patience(Times(silence=silence), 0)
        assert not silence.kills
        assert not patience.silent(1, 1, 10**6, busy=False)


def test_what_a_handler_writes_is_no_sign_of_life_and_a_keep_alive_is():
    """As in Mongrel2: a client that reads, and says nothing, may have gone."""
    patience = Patience(Times(silence=RULES), 0)
    assert not patience.silent(300, 100, 10, busy=True)
    assert not patience.silent(300, 200, 100, busy=True)
    assert patience.silent(300, 300, 131, busy=True)
    patience.keep_alive(131)
    assert not patience.silent(300, 400, 250, busy=True)
    assert patience.silent(300, 500, 252, busy=True)
    assert not patience.silent(301, 500, 252, busy=True)


def test_the_default_settings_are_those_of_mongrel2():
    """A front end without settings of its own ends what Mongrel2 ends."""
    assert Silence.of(DEFAULT_SETTINGS) == Silence()


@pytest.mark.parametrize("value", ["often", -1, ""])
def test_a_setting_that_is_not_a_number_is_told(value):
    """By its name."""
    with pytest.raises(LocalProtocolError, match=r"limits\.tick_timer"):
        Silence.of({**DEFAULT_SETTINGS, "limits.tick_timer": value})
