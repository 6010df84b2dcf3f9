"""What is given to which Node: each message once, in order, but those in the hands of a Node that was killed."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentx.errors import RemoteProtocolError
from greentx.relay.socket_backlog import WINDOW_BYTES, WINDOW_MESSAGES, Backlog
from greentx.relay.socket_hand import Hand, Place
from greentx.relay.socket_messages import REDELIVERED

M = REDELIVERED


def filled(count: int) -> Backlog:
    """A backlog to which so many messages came."""
    backlog = Backlog()
    for number in range(1, count + 1):
        backlog.add(1, b"%d" % number)
    return backlog


def numbers(due: list[tuple[int, int, bytes]]) -> list[int]:
    """The numbers of what is due; those that are redelivered are negative."""
    assert all(payload == b"%d" % number for number, _, payload in due)
    return [-number if flags & M else number for number, flags, _ in due]


@pytest.mark.parametrize(
    ("what", "then"),
    [
        ([], [1, 2, 3]),
        (["lost"], [1, 2, 3]),
        (["due", "lost"], [-1, -2, -3]),
        (["due", "go 0"], [1, 2, 3]),
        (["due", "go 2"], [-1, -2, 3]),
        (["due", "done 2", "go 2"], [3]),
        (["due", "done 1", "go 2"], [-2, 3]),
        (["due", "done 1", "lost"], [-2, -3]),
        (["due", "done 3", "lost"], []),
        (["due", "go 2", "lost"], [-1, -2, 3]),
        (["due", "lost", "go 0"], [-1, -2, -3]),
        (["due", "done 1", "lost", "due", "done 2", "go 2"], [-3]),
        (["due", "done 1", "done 1", "lost", "lost"], [-2, -3]),
    ],
)
def test_what_is_due_after(what: list[str], then: list[int]) -> None:
    """What a Node lets go is given to the next one as if it had never been there, but for what was seen."""
    backlog = filled(3)
    for one in what:
        word, _, number = one.partition(" ")
        if word == "due":
            backlog.due()
        elif word == "lost":
            backlog.lost()
        elif word == "go":
            backlog.let_go(int(number))
        else:
            backlog.confirm(int(number))
    assert numbers(backlog.due()) == then
    assert backlog.due() == []


def test_what_comes_later_is_not_redelivered() -> None:
    """Only what the lost Node was given may have been seen."""
    backlog = filled(1)
    backlog.due()
    backlog.add(1, b"2")
    backlog.lost()
    assert numbers(backlog.due()) == [-1, 2]


def test_a_node_has_no_more_than_its_window() -> None:
    """By number and by bytes; what it handles makes room."""
    backlog = filled(WINDOW_MESSAGES + 3)
    assert len(backlog.due()) == WINDOW_MESSAGES
    assert backlog.due() == []
    assert backlog.confirm(2) == [(1, b"1"), (1, b"2")]
    assert numbers(backlog.due()) == [WINDOW_MESSAGES + 1, WINDOW_MESSAGES + 2]
    assert len(backlog.due(all_of_them=True)) == 1
    large = Backlog()
    for _ in range(3):
        large.add(1, b"x" * WINDOW_BYTES)
    assert [number for number, _, _ in large.due()] == [1, 2]
    large.confirm(1)
    assert [number for number, _, _ in large.due()] == [3]
    large.lost()
    assert [number for number, _, _ in large.due()] == [2, 3]


def test_a_node_cannot_handle_what_it_was_not_given() -> None:
    """Nothing is forgotten for it."""
    backlog = filled(2)
    for wrong in (backlog.confirm, backlog.let_go):
        with pytest.raises(RemoteProtocolError):
            wrong(1)
    assert len(backlog) == 2 and "last 2" in repr(backlog)
    assert numbers(backlog.due()) == [1, 2]


# -- a Node's hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "goes"),
    [
        ("", True),
        ("m", True),
        ("mg", False),
        ("mgh", True),
        ("mmgh", True),
        ("mmghg", False),
    ],
)
def test_it_is_let_go_between_two_messages(steps: str, goes: bool) -> None:
    """At once where nothing is in hand, else when that is handled."""
    hand = Hand(5, Place.HERE)
    for step in steps:
        if step == "m":
            assert hand.arrive(hand.came + 1, False)
        elif step == "g":
            assert not hand.give()
        else:
            assert hand.handle(hand.given)
    assert hand.leave() is goes
    assert hand.place is (Place.HERE if goes else Place.LEAVING)
    if not goes:
        assert hand.handle(hand.given) and hand.may_go()
        assert not hand.handle(hand.given)


def test_a_handshake_is_let_go_at_any_time() -> None:
    """Another Node may decide about it."""
    assert Hand(0, Place.HELD).leave()
    gone = Hand(0, Place.GONE)
    assert not gone.leave() and "GONE" in repr(gone)


@pytest.mark.parametrize("leaves", [False, True])
def test_the_end_is_handled_with_the_message_before_it(leaves: bool) -> None:
    """It is not given; a Node that leaves does not let go of what has ended here."""
    idle = Hand(3, Place.HERE)
    assert idle.end(4) and idle.is_done and idle.handle(4) and not idle.handle(4)
    busy = Hand(0, Place.HERE)
    for number in (1, 2):
        assert busy.arrive(number, False)
    busy.give()
    if leaves:
        assert not busy.leave()
    assert not busy.end(4) and busy.end(3)
    assert busy.place is Place.HERE and not busy.is_done
    assert busy.handle(busy.given) and (busy.handled, busy.is_done) == (1, False)
    for _ in range(2):
        busy.give()
    assert busy.given == 2
    assert busy.handle(busy.given) and (busy.handled, busy.is_done) == (3, True)


def test_what_is_not_the_next_message_does_not_arrive() -> None:
    """A gap, or a message that came already, is a mistake of the sender."""
    hand = Hand(2, Place.HERE)
    assert [hand.arrive(number, False) for number in (2, 4, 3, 3, 4)] == [False, False, True, False, True]


# -- together ----------------------------------------------------------------------------------------------------------


class Chain:
    """An API's backlog, one Node after the other, and what is on its way between them."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.came = 0
        self.down: deque[tuple[int, int]] = deque()
        self.up: deque[tuple[str, int, int]] = deque()
        self.hand = Hand(0, Place.HERE)
        self.leaving = False
        # What applications were given: the number, whether it was said to be redelivered.
        self.given: list[tuple[int, bool]] = []
        # Numbers that a Node had as it was killed.
        self.in_dead_hands: set[int] = set()

    def push(self) -> None:
        if not self.leaving:
            self.down.extend((number, flags) for number, flags, _ in self.backlog.due())

    def message(self) -> None:
        self.came += 1
        self.backlog.add(1, b"")
        self.push()

    def arrive(self) -> None:
        if self.down:
            number, flags = self.down.popleft()
            if self.hand.place is not Place.GONE:
                assert self.hand.arrive(number, bool(flags & M))

    def ask(self) -> None:
        hand = self.hand
        if hand.place is Place.GONE:
            return
        if hand.handle(hand.given):
            self.up.append(("done", hand.given, 0))
        if hand.place is Place.LEAVING and hand.may_go():
            self.move()
        elif hand.given < hand.came:
            redelivered = hand.give()
            self.given.append((hand.given, redelivered))

    def move(self) -> None:
        self.up.append(("move", self.hand.handled, self.hand.given))
        self.hand.place = Place.GONE

    def leave(self) -> None:
        if self.hand.place is Place.HERE:
            self.leaving = True
            if self.hand.leave():
                self.move()

    def answer(self) -> None:
        if not self.up:
            return
        kind, number, seen = self.up.popleft()
        self.backlog.confirm(number)
        if kind == "move":
            self.backlog.let_go(seen)
            self.next_node()
        self.push()

    def kill(self) -> None:
        self.in_dead_hands.update(range(self.backlog.handled + 1, self.came + 1))
        self.up.clear()
        self.backlog.lost()
        self.next_node()
        self.push()

    def next_node(self) -> None:
        self.leaving = False
        self.down.clear()
        self.hand = Hand(self.backlog.handled, Place.HERE)

    def finish(self) -> None:
        for _ in range(10 * self.came + 10):
            self.arrive()
            self.ask()
            self.answer()


ORDERLY = ["message", "arrive", "ask", "leave", "answer"]


def run(steps: list[str]) -> Chain:
    chain = Chain()
    for step in steps:
        getattr(chain, step)()
    chain.finish()
    return chain


@given(st.lists(st.sampled_from(ORDERLY), max_size=80))
def test_in_order_nothing_is_lost_doubled_or_redelivered(steps: list[str]) -> None:
    """Whatever the order in which messages come, are handled, and Nodes leave."""
    chain = run(steps)
    assert chain.given == [(number, False) for number in range(1, chain.came + 1)]


@given(st.lists(st.sampled_from([*ORDERLY, "kill"]), max_size=80))
def test_only_what_a_killed_node_had_comes_again_and_is_marked(steps: list[str]) -> None:
    """Nothing is lost; what comes twice says so the second time, and was in dead hands."""
    chain = run(steps)
    first = dict.fromkeys(number for number, _ in chain.given)
    assert list(first) == list(range(1, chain.came + 1))
    seen: set[int] = set()
    for number, redelivered in chain.given:
        if number in seen:
            assert redelivered and number in chain.in_dead_hands
        if redelivered:
            assert number in chain.in_dead_hands
        seen.add(number)
