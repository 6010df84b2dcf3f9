"""What a leader asks of the processes that pull from its handler entry, as tables of calls."""

from __future__ import annotations

import pytest

from greentx.backends.census import Census, Pace

PACE = Pace(spacing=1.0, patience=4.0, retry=0.5)


class Bench:
    """A census of some processes, whose echoes go where the test wants them."""

    def __init__(self, *members: str) -> None:
        self.members = list(members)
        self.sent: list[str] = []
        self.census = Census(range(100, 120), send_echo=self.sent.append, members=lambda: self.members, pace=PACE)

    def begin(self, now: float = 0.0) -> list[str]:
        """Ask, and return the echoes that were sent."""
        self.sent.clear()
        self.census.ask_behind()
        self.census.tick(now)
        return self.sent[:]

    def answer(self, numbers: list[str]) -> None:
        """Let all come back, to the processes in turn."""
        for position, number in enumerate(numbers):
            self.census.echo(number, self.members[position % len(self.members)])


@pytest.mark.parametrize("members", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_it_ends_when_all_echoes_are_back_and_each_process_had_one(members: list[str]) -> None:
    """There are enough for each to have two, and for one that is not known."""
    bench = Bench(*members)
    numbers = bench.begin()
    assert len(numbers) == len(set(numbers)) == 2 * (len(members) + 1)
    bench.answer(numbers[:-1])
    assert (bench.census.known, bench.census.over) == (None, 0)
    bench.answer(numbers[-1:])
    assert (bench.census.known, bench.census.over, bench.census.covered) == (True, 1, 1)


def test_a_process_without_an_echo_is_waited_for_until_it_has_gone() -> None:
    """Its pongs would not be known."""
    bench = Bench("a", "b")
    for number in bench.begin():
        bench.census.echo(number, "a")
    assert bench.census.known is None and "b" in bench.census.waits_for
    bench.members.remove("b")
    bench.census.look()
    assert bench.census.known is True


def test_a_missing_echo_is_not_made_up_for_but_all_are_sent_anew() -> None:
    """An old one of the same census does not count then."""
    bench = Bench("a")
    first = bench.begin()
    bench.answer(first[1:])
    assert "1 echoes are missing" in bench.census.waits_for
    bench.sent.clear()
    assert bench.census.tick(0.4) is False and not bench.sent
    assert bench.census.tick(0.5) is False and len(bench.sent) == len(first) and not set(first) & set(bench.sent)
    bench.answer(first[:1])
    assert bench.census.known is None
    bench.answer(bench.sent)
    assert bench.census.known is True and bench.census.questions == 1


def test_it_is_unknown_after_its_patience_once_and_known_again_when_it_ends() -> None:
    """Nobody is judged in between."""
    bench = Bench("a")
    bench.begin()
    assert [bench.census.tick(now) for now in (1.0, 3.9, 4.0, 4.1, 9.0)] == [False, False, True, False, False]
    assert bench.census.known is False
    bench.answer(bench.sent[-4:])
    assert bench.census.known is True


def test_two_are_some_time_apart_and_one_behind_the_other_ends_first() -> None:
    """What asks is told which question will be behind all that was sent until then."""
    bench = Bench("a")
    assert bench.census.ask_behind() == 1
    bench.census.tick(0.0)
    assert bench.census.ask_behind() == 2
    bench.answer(bench.sent)
    assert bench.census.over == 1
    bench.census.tick(0.9)
    assert bench.census.questions == 1
    bench.census.tick(1.0)
    assert bench.census.questions == 2
    bench.answer(bench.sent[4:])
    assert bench.census.over == 2
    bench.census.tick(5.0)
    assert bench.census.questions == 2


def test_what_is_forgotten_is_over_and_not_answered() -> None:
    """Another process asks now."""
    bench = Bench("a")
    numbers = bench.begin()
    bench.census.forget()
    bench.answer(numbers)
    assert (bench.census.known, bench.census.over, bench.census.covered) == (None, 1, 0)
    assert bench.census.is_ours(numbers[0]) and not bench.census.is_ours("99")
    bench.census.tick(9.0)
    assert bench.census.questions == 1
