"""What may be sent to one connection, and what waits for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentx.protocol.flow import (
    BURST,
    EAGER,
    LARGE,
    QUEUED,
    READ_RATE,
    ROOM,
    SHARED_BURST,
    Ledger,
    Line,
    Outbox,
    Pacer,
)
from greentx.protocol.flow.scattered import Scattered


def test_a_ledger_allows_as_much_as_the_server_has_credits_for():
    """What is refused is not counted; each report makes room for as much."""
    ledger = Ledger()
    assert ledger.allows("1", ROOM - 5)
    assert not ledger.allows("1", 6)
    assert ledger.allows("1", 5) and ledger.allows("2", ROOM)
    assert not ledger.allows("1", 1)
    ledger.credit("1", 7)
    assert not ledger.allows("1", 8)
    assert ledger.allows("1", 7)


def test_a_connection_is_in_the_ledger_until_all_was_reported():
    """What is confirmed only grows meanwhile, also while more is sent."""
    ledger = Ledger()
    ledger.credit("1", 5)
    assert "1" not in ledger and ledger.confirmed("1") is None and ledger.unconfirmed("1") == 0
    ledger.allows("1", 100)
    assert "1" in ledger and list(ledger) == ["1"] and ledger.confirmed("1") == 0
    ledger.credit("1", 40)
    ledger.allows("1", 10)
    assert (ledger.confirmed("1"), ledger.unconfirmed("1")) == (40, 70)
    ledger.credit("1", 60)
    assert ledger.confirmed("1") == 100
    ledger.credit("1", 10)
    assert "1" not in ledger and ledger.confirmed("1") is None and ledger.unconfirmed("1") == 0


def test_a_connection_stays_in_the_ledger_while_something_waits_for_it():
    """Whether its browser reads is seen by what is confirmed, which may not begin anew."""
    busy = {"1"}
    ledger = Ledger(busy)
    for number in range(3):
        assert ledger.confirmed("1") == number * ROOM
        assert ledger.take("1", ROOM + 10, 0.0) == ROOM
        assert ledger.take("1", 10, 0.0) == 0
        ledger.credit("1", ROOM)
    busy.clear()
    assert ledger.drained("1", 0.0)
    assert "1" not in ledger and ledger.confirmed("1") is None


def test_reports_of_what_the_ledger_does_not_know_make_no_room():
    """They would add up to more than the server has."""
    ledger = Ledger({"1"})
    ledger.allows("1", 10)
    ledger.credit("1", 500)
    assert (ledger.unconfirmed("1"), ledger.take("1", 2 * ROOM, 0.0)) == (0, ROOM)


def test_who_is_closed_is_in_the_ledger_until_all_was_reported():
    """What is forgotten before is not reported any more."""
    ledger = Ledger()
    ledger.allows("1", 100)
    assert not ledger.closed("1")
    ledger.credit("1", 100)
    assert ledger.closed("1")
    ledger.allows("2", 5)
    ledger.forget("2")
    assert ledger.closed("2")
    ledger.allows("3", 5)
    ledger.clear()
    assert list(ledger) == []


def test_a_connection_may_have_a_burst_and_no_more():
    """The message after the burst is refused, again and again, and is not counted."""
    pacer = Pacer()
    assert [pacer.allows("1") for _ in range(BURST + 3)] == [True] * BURST + [False] * 3


def test_a_burst_stays_below_what_mongrel2_queues():
    """Mongrel2 holds 16; ours, one that closes and one of a ping must fit, whatever the receipt still covers."""
    assert BURST <= 12
    assert EAGER < BURST


def test_connections_do_not_use_up_each_others_burst():
    """Each is counted for itself."""
    pacer = Pacer()
    for _ in range(BURST + 1):
        pacer.allows("1")
    assert pacer.allows("2")


def test_a_receipt_is_due_before_the_burst_is_used_up():
    """Asked for at the sixth message, it may be there before the eleventh."""
    pacer = Pacer()
    seen = []
    for _ in range(BURST):
        pacer.allows("1")
        seen.append(pacer.due)
    assert seen == [False] * (EAGER - 1) + [True] * (BURST - EAGER + 1)


def test_what_was_sent_before_a_receipt_was_asked_for_counts_until_it_is_there():
    """Six before and four after are ten, until the receipt confirms the six."""
    pacer = Pacer()
    for _ in range(EAGER):
        pacer.allows("1")
    pacer.receipt_asked()
    assert not pacer.due
    assert [pacer.allows("1") for _ in range(BURST)] == [True] * (BURST - EAGER) + [False] * EAGER
    pacer.receipt_came()
    assert pacer.allows("1")


def test_a_pacer_that_forgets_knows_nobody():
    """A new server's ids mean other connections."""
    pacer = Pacer()
    for _ in range(BURST):
        pacer.allows("1")
    pacer.receipt_asked()
    pacer.allows("1")
    pacer.clear()
    assert not pacer.due
    assert all(pacer.allows("1") for _ in range(BURST))


def test_many_connections_make_a_receipt_due_too():
    """So that those written to once can be forgotten."""
    pacer = Pacer(keep=10)
    for number in range(12):
        assert not pacer.due
        assert pacer.allows(str(number))
    assert pacer.due


def test_split_keeps_back_who_is_busy_and_who_had_a_burst():
    """Nothing overtakes what waits, and those allowed are counted."""
    pacer = Pacer()
    for _ in range(BURST):
        pacer.allows("full")
    assert pacer.split(["a", "full", "busy", "b"], LARGE, {"busy": None}) == (["a", "b"], ["full", "busy"])
    for _ in range(BURST - 1):
        assert pacer.split(["a"], 1, ()) == (["a"], [])
    assert pacer.split(["a"], 1, ()) == ([], ["a"])


@pytest.mark.parametrize("allowed", [Pacer(), Ledger(), Scattered(())], ids=lambda accounts: type(accounts).__name__)
def test_split_counts_a_connection_as_often_as_it_is_named(allowed):
    """Each time is a message of its own to it, for which the server has a place in the queue, or credits."""
    size = ROOM // BURST
    went = [allowed.split(["a"] * 7, size, ()) for _ in range(4)]
    assert sum(len(now) for now, _ in went) == BURST
    assert all(len(now) + len(later) == 7 for now, later in went)
    assert allowed.split(["b"], size, ()) == (["b"], [])


def test_an_outbox_joins_what_was_put_in():
    """In order, as one message; a single part is not copied."""
    box = Outbox(b"head", Pacer())
    assert box.idle
    part = b"one"
    box.put(part)
    assert not box.idle
    assert box.dequeue(3) is part
    box.put(b"two")
    box.put(b"three")
    assert (box.size, box.dequeue(8), box.size) == (8, b"twothree", 0)
    assert box.idle


def test_an_outbox_that_is_to_close_its_connection_is_not_idle():
    """It has a message left to send."""
    box = Outbox(b"head", Pacer())
    box.closing = True
    assert not box.idle


def test_an_outbox_gives_no_more_than_may_go():
    """A part that is larger is cut, and the rest waits in its place."""
    box = Outbox(b"head", Pacer())
    box.put(b"0123456")
    box.put(b"789abcdef")
    box.put(b"g")
    assert box.dequeue(10) == b"0123456789"
    assert box.size == 7
    assert box.dequeue(4) == b"abcd"
    assert box.dequeue(10) == b"efg"
    assert (box.size, box.idle) == (0, True)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=20), st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_bytes_leave_an_outbox_as_they_came_whatever_the_credits(parts, grants):
    """Cut anywhere: nothing is lost, doubled or turned around, and no more is under way than may be."""
    ledger = Ledger({"1"})
    assert ledger.allows("1", ROOM - 25)
    box = Outbox(b"head", ledger)
    for part in parts:
        box.put(part)
    taken = b""
    under_way = 0
    for grant in grants:
        size = ledger.take("1", box.size, 0.0)
        piece = box.dequeue(size) if size else b""
        under_way += len(piece)
        assert under_way <= 25
        taken += piece
        written = min(grant, under_way)
        under_way -= written
        ledger.credit("1", written)
    assert b"".join(parts).startswith(taken)
    assert box.size == sum(map(len, parts)) - len(taken)


def test_large_messages_are_reckoned_to_be_read_one_after_the_other():
    """Small ones do not count; an idle browser begins anew."""
    pacer = Pacer()
    assert pacer.take("1", LARGE - 1, 0.0) == LARGE - 1
    assert pacer.drained("1", 0.0) and not pacer.timed
    for _ in range(QUEUED):
        assert pacer.take("1", READ_RATE, 10.0) == READ_RATE
    assert pacer.take("1", 1, 10.9) == 0 and pacer.timed
    assert pacer.take("1", 1, 11.0) == 1
    assert not pacer.drained("1", 13.9) and pacer.drained("1", 14.0)
    assert pacer.take("1", READ_RATE, 100.0) == READ_RATE
    assert not pacer.drained("1", 100.5) and pacer.drained("1", 101.0)


def test_who_is_closed_has_read_the_large_ones():
    """Nobody waits for it."""
    pacer = Pacer()
    pacer.take("1", READ_RATE, 0.0)
    assert not pacer.drained("1", 0.0)
    assert pacer.closed("1") and pacer.drained("1", 0.0)


def test_what_is_on_its_way_fits_into_mongrel2s_queue():
    """A burst of small messages, then as many large ones as may wait, and the empty one that closes."""
    assert BURST + QUEUED + 1 <= 16


def test_processes_that_share_a_connection_burst_less():
    """Three of them stay below what Mongrel2 queues."""
    pacer = Pacer(SHARED_BURST)
    assert [pacer.allows("1") for _ in range(SHARED_BURST + 2)] == [True] * SHARED_BURST + [False] * 2
    assert pacer.due
    assert 3 * SHARED_BURST <= 12


def test_a_turn_ends_where_its_outbox_raises():
    """Whoever waits for it goes on, and learns what became of its data."""

    def fail(conn_id):
        raise MemoryError

    line = Line()
    turn = line.turn_of("1")
    with pytest.raises(MemoryError):
        line.first(fail)
    assert turn.done and not line.turns and not line.has_turn("1")


def test_an_outbox_whose_oldest_is_dropped_again_and_again_does_not_grow():
    """Places stay what they were."""
    outbox = Outbox(b"", Pacer())
    for _ in range(1000):
        outbox.drop_oldest(20)
        place = outbox.put_unthrottled(bytes(10), 0.0)
    assert len(outbox._parts) == 3 and outbox.size == 30  # noqa: SLF001 - what grows is not seen outside
    assert outbox.holds(place) and outbox.withdraw(place) and outbox.size == 20
