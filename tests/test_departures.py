"""Which Node leaves when; no sockets, no clock."""

from __future__ import annotations

from greentx.relay.departures import GATHER_SECONDS, PACE_SECONDS, Departures


def departures(*there: str) -> Departures[str]:
    """Return them, with Nodes that are there."""
    made: Departures[str] = Departures()
    for who in there:
        made.came(who)
    return made


def test_one_that_is_replaced_waits_for_the_new_one():
    """It serves meanwhile."""
    made = departures("old")
    made.asks("old", -1.0, replaced=True)
    assert made.may_leave(0) == []
    made.came("new")
    assert made.may_leave(0) == ["old"]
    assert made.may_leave(0) == []


def test_one_that_nobody_replaces_leaves_at_once():
    """As after max_requests: the next one is started when it has gone."""
    made = departures("only")
    made.asks("only", 0.0, replaced=False)
    assert made.may_leave(0) == ["only"]


def test_old_ones_leave_one_by_one():
    """The next one when the one before has gone."""
    made = departures("a", "b", "c", "A", "B", "C")
    for who in "abc":
        made.asks(who, -1.0, replaced=True)
    order = []
    for _ in range(3):
        (who,) = made.may_leave(0)
        assert made.may_leave(0) == []
        made.leaves(who)
        assert made.may_leave(0) == []
        made.gone(who)
        order.append(who)
    assert order == ["a", "b", "c"]
    assert not made.waits_for_time


def test_a_long_request_of_one_does_not_hold_up_the_others():
    """After a second the next one may leave all the same."""
    made = departures("a", "b", "A", "B")
    made.asks("a", -1.0, replaced=True)
    made.asks("b", -1.0, replaced=True)
    assert made.may_leave(5.0) == ["a"]
    assert made.waits_for_time
    assert made.may_leave(5.0 + PACE_SECONDS / 2) == []
    assert made.may_leave(5.0 + PACE_SECONDS) == ["b"]


def test_those_that_are_told_to_go_together_are_waited_for():
    """The first one that asks finds others there, which ask a moment later."""
    made = departures("a", "b")
    made.asks("a", 5.0, replaced=True)
    assert made.may_leave(5.0) == []
    assert made.waits_for_time
    made.asks("b", 5.1, replaced=True)
    assert made.may_leave(5.0 + GATHER_SECONDS) == []
    made.came("A")
    assert made.may_leave(5.0 + GATHER_SECONDS) == ["a"]


def test_as_many_leave_as_new_ones_are_there():
    """Of three old ones the second one waits for the second new one."""
    made = departures("a", "b", "c")
    for who in "abc":
        made.asks(who, -1.0, replaced=True)
    for old, new in zip("abc", "ABC", strict=True):
        assert made.may_leave(0) == []
        made.came(new)
        assert made.may_leave(0) == [old]
        made.gone(old)


def test_the_next_wave_counts_anew():
    """The new ones of the first deploy are the old ones of the second."""
    made = departures("a")
    for old, new in (("a", "b"), ("b", "c"), ("c", "d")):
        made.asks(old, -1.0, replaced=True)
        assert made.may_leave(0) == []
        made.came(new)
        assert made.may_leave(0) == [old]
        made.gone(old)


def test_one_of_several_that_is_told_to_go_leaves():
    """As by SIGTTOU: others are there."""
    made = departures("a", "b", "c")
    made.asks("a", -1.0, replaced=True)
    assert made.may_leave(0) == ["a"]


def test_two_that_reach_their_limit_at_once_leave_in_turn():
    """Neither waits for anybody new."""
    made = departures("a", "b")
    made.asks("a", 0.0, replaced=False)
    made.asks("b", 0.0, replaced=False)
    assert made.may_leave(0) == ["a"]
    assert made.may_leave(0) == []
    made.gone("a")
    assert made.may_leave(0) == ["b"]


def test_one_that_needs_nobody_is_not_held_up_by_one_that_waits():
    """They are let go in the order in which they may."""
    made = departures("a", "b")
    made.asks("a", -1.0, replaced=True)
    made.asks("b", 0.0, replaced=False)
    assert made.may_leave(0) == ["b"]


def test_where_the_relay_ends_all_may_leave():
    """Nobody comes any more."""
    made = departures("a", "b")
    made.asks("a", -1.0, replaced=True)
    made.ending = True
    assert made.may_leave(0) == ["a"]
    made.asks("b", -1.0, replaced=True)
    assert made.may_leave(0) == ["b"]


def test_one_that_leaves_without_asking_is_reckoned_with():
    """Or that dies, or asks twice, or is not known."""
    made = departures("a", "b", "c", "C")
    made.asks("a", -1.0, replaced=True)
    made.asks("a", -1.0, replaced=True)
    made.leaves("b")
    assert made.may_leave(0) == ["a"]
    made.gone("a")
    made.gone("b")
    made.asks("stranger", 0.0, replaced=False)
    assert made.may_leave(0) == []
    made.asks("c", -1.0, replaced=True)
    made.gone("c")
    assert made.may_leave(0) == []
