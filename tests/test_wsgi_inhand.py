"""When messages count as handled that a WebSocket library was given."""

from __future__ import annotations

import pytest

from greentx.relay.socket_backlog import WINDOW_BYTES, WINDOW_MESSAGES
from greentx.wsgi.inhand import ANSWERED_SECONDS, MAX_IN_HAND, MAX_IN_HAND_BYTES, SILENT_SECONDS, InHand

G, A = "give", "answer"

#: What happens at which time; then, at another time, how long nothing is decided.
CASES = [
    pytest.param([], 0.0, False, None, id="nothing was given"),
    pytest.param([(A, 0.0)], 5.0, False, None, id="what it writes by itself is no answer"),
    pytest.param([(G, 1.0)], 1.0, False, SILENT_SECONDS, id="given a moment ago"),
    pytest.param([(G, 1.0)], 1.0 + SILENT_SECONDS, False, 0.0, id="it does not answer"),
    pytest.param([(G, 1.0)], 9.0, True, SILENT_SECONDS, id="it has not read it"),
    pytest.param([(G, 1.0), (A, 1.5)], 1.5, False, ANSWERED_SECONDS, id="answered: there may be more of it"),
    pytest.param([(G, 1.0), (A, 1.5)], 1.5 + ANSWERED_SECONDS, False, 0.0, id="answered"),
    pytest.param([(G, 1.0), (G, 1.0), (A, 1.5)], 1.6, False, SILENT_SECONDS - 0.1, id="one of two is answered"),
    pytest.param([(G, 1.0), (G, 1.0), (A, 1.5), (A, 1.5)], 1.6, False, 0.0, id="both are answered"),
    pytest.param([(A, 0.5), (G, 1.0)], 1.1, False, SILENT_SECONDS - 0.1, id="what it wrote before is no answer"),
]


@pytest.mark.parametrize(("happened", "now", "unread", "expected"), CASES)
def test_what_is_in_hand_is_judged_by_what_can_be_seen(happened, now, unread, expected):
    """By answers, by silence, by what was read, and by how many there are."""
    in_hand = InHand()
    for what, when in happened:
        getattr(in_hand, what)(when, *([10] if what == G else []))
    found = in_hand.wait(now, unread)
    assert found == (None if expected is None else pytest.approx(expected))


def test_what_is_handled_is_not_in_hand():
    """It begins anew."""
    in_hand = InHand()
    in_hand.give(1.0, 10)
    in_hand.answer(1.0)
    assert len(in_hand) == 1
    in_hand.clear()
    assert len(in_hand) == 0 and in_hand.wait(9.0, False) is None
    in_hand.give(2.0, 10)
    assert in_hand.wait(2.0, False) == SILENT_SECONDS


@pytest.mark.parametrize(
    ("sizes", "left"),
    [
        ([10] * MAX_IN_HAND, MAX_IN_HAND),
        ([10] * (MAX_IN_HAND + 5), MAX_IN_HAND),
        ([MAX_IN_HAND_BYTES // 2] * 2, 2),
        ([MAX_IN_HAND_BYTES // 2] * 3, 2),
        ([60_000] * 4, 1),
        ([10, 10 * MAX_IN_HAND_BYTES], 1),
        ([10 * MAX_IN_HAND_BYTES, 10], 1),
    ],
)
def test_of_too_many_the_oldest_are_handled(sizes, left):
    """In messages and in bytes; the newest stays in hand."""
    in_hand = InHand()
    for size in sizes:
        in_hand.give(1.0, size)
    assert in_hand.drop() is (left < len(sizes))
    assert len(in_hand) == left and not in_hand.drop()


def test_the_bounds_are_far_below_what_a_node_is_given():
    """Else an application that does not answer would get no more than that each second."""
    assert MAX_IN_HAND * 2 <= WINDOW_MESSAGES and MAX_IN_HAND_BYTES * 2 <= WINDOW_BYTES


def test_an_answer_to_what_was_dropped_is_none_to_the_others():
    """They are answered in order."""
    in_hand = InHand()
    for _ in range(MAX_IN_HAND + 3):
        in_hand.give(1.0, 10)
    in_hand.drop()
    for _ in range(MAX_IN_HAND):
        in_hand.answer(1.0)
    assert in_hand.wait(1.5, False) == 0.5
    for _ in range(3):
        in_hand.answer(1.0)
    assert in_hand.wait(1.5, False) == 0.0
