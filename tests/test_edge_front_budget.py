"""What all connections of the embedded front end may keep together, without sockets."""

from __future__ import annotations

from greentx.edge.front.budget import FREE_BYTES, Budget


def test_the_first_bytes_of_each_are_free():
    """Ordinary requests pass, however much others keep."""
    budget = Budget(0)
    assert all(budget.change(0, FREE_BYTES) for _ in range(1000))
    assert budget.used == 0


def test_what_is_beyond_them_is_counted_for_all_together():
    """And given back where less is kept."""
    budget = Budget(100)
    assert budget.change(0, FREE_BYTES + 60)
    assert budget.change(0, FREE_BYTES + 40)
    assert not budget.change(0, FREE_BYTES + 1)
    assert budget.used == 100
    assert budget.change(FREE_BYTES + 60, 0)
    assert budget.change(FREE_BYTES + 40, FREE_BYTES + 100)
    assert budget.used == 100


def test_who_is_refused_keeps_what_it_had():
    """It is counted until it is given back."""
    budget = Budget(100)
    assert budget.change(0, FREE_BYTES + 90)
    assert not budget.change(FREE_BYTES + 90, FREE_BYTES + 101)
    assert budget.used == 90


def test_to_keep_less_is_never_too_much():
    """Where the bound is passed already, as by a message that came as a whole."""
    budget = Budget(100)
    assert budget.change(0, FREE_BYTES + 100)
    assert budget.change(FREE_BYTES + 100, FREE_BYTES + 99)
    assert budget.used == 99
