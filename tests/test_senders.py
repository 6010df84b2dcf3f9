"""Which server a sender belongs to: a table of what was said, by whom."""

from __future__ import annotations

import pytest

from greentx.handler.senders import Senders, is_one_server

ONE, TWO = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"


@pytest.fixture
def senders() -> Senders:
    """Of two sets, "one" and "two", to a server each."""
    senders = Senders()
    senders.update({"one": ONE, "two": TWO})
    return senders


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ONE, ONE, True),
        (ONE, TWO, False),
        ("tcp://localhost:1", ONE, True),
        ("tcp://LOCALHOST:1", "tcp://localhost:1", True),
        ("tcp://127.0.0.2:1", ONE, False),
        ("tcp://[::ffff:127.0.0.1]:1", ONE, True),
        ("tcp://nobody.invalid:1", ONE, False),
        ("ipc:///a", "ipc:///a", True),
        ("ipc:///a", "ipc:///b", False),
        ("ipc:///a", ONE, False),
    ],
)
def test_an_address_may_be_written_in_several_ways(one: str, other: str, same: bool) -> None:
    """By name or number; the port always tells, and nothing is known of a host that has no address."""
    assert is_one_server(one, other) is is_one_server(other, one) is same


def test_the_name_of_a_set_is_its_server_s(senders: Senders) -> None:
    """Another one that says it is told whose it is."""
    assert senders.admit("one", ONE) == ""
    assert ONE in senders.admit("one", TWO)
    assert senders.accepted(ONE) == {"one"}
    assert senders.accepted(TWO) == set()


def test_any_other_sender_is_his_who_says_it_first(senders: Senders) -> None:
    """As long as there is a set to that server, also one that is called otherwise."""
    assert senders.admit("u", TWO) == ""
    assert TWO in senders.admit("u", ONE)
    assert senders.heard_at("u") == TWO
    senders.update({"one": ONE, "new": TWO})
    assert TWO in senders.admit("u", ONE)
    assert senders.admit("u", TWO) == ""
    senders.update({"one": ONE})
    assert senders.heard_at("u") is None
    assert senders.admit("u", ONE) == ""


def test_a_set_that_is_called_so_has_the_sender_from_then_on(senders: Senders) -> None:
    """What was accepted before, by whomever, is decided anew; the set of the accepted ones stays the same object."""
    accepted = senders.accepted(ONE)
    assert senders.admit("u", ONE) == ""
    assert accepted == {"u"}
    senders.update({"one": ONE, "u": TWO})
    assert accepted == set()
    assert TWO in senders.admit("u", ONE)
    assert senders.admit("u", TWO) == ""
    assert senders.accepted(ONE) is accepted


def test_two_sets_to_one_server_share_its_senders(senders: Senders) -> None:
    """Under any address."""
    senders.update({"one": ONE, "again": "tcp://localhost:1"})
    for name in ("one", "again", "u"):
        assert senders.admit(name, ONE) == senders.admit(name, "tcp://localhost:1") == ""


def test_a_server_has_not_any_number_of_names(senders: Senders) -> None:
    """They come from outside; those of other servers are not affected."""
    refused = [number for number in range(70) if senders.admit(f"u{number}", ONE)]
    assert refused == list(range(64, 70))
    assert senders.admit("u64", TWO) == ""
    for number in range(5000):
        assert senders.admit(f"v{number}", ONE)
