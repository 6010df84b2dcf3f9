"""Credits of which others get some: accounts and ``Flow`` without sockets."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from greentx.protocol.flow import CREDITS, ROOM, SHARED_BURST, UNHEARD_RATE, Flow, Hearing
from greentx.protocol.flow.scattered import MAX_SCATTERED, PIECE, PROBE_SECONDS, Account, Scattered


def flow(*, announced: bool = True) -> Flow:
    """Return one that hears some of the notices; it knows whether there are credits, or not yet."""
    one = Flow(SHARED_BURST, hearing=Hearing.SOME)
    if announced:
        one.control.announce(True)
    return one


def sizes(messages: list[bytes]) -> list[int]:
    """How many bytes each message brings to the browser."""
    return [len(message.partition(b", ")[2]) for message in messages]


def put(one: Flow, size: int, conn_id: str = "1") -> None:
    """Write so many bytes for a connection that may not be sent them at once."""
    one.outbox(b"uuid", conn_id).put(b"x" * size)


def test_a_credit_says_that_all_before_it_were_written():
    """Whoever got theirs; of two that are equal the first one is meant, at least."""
    account = Account()
    for size in (10, 20, 30, 20):
        assert account.spend(size)
    assert account.credit(5) == 0
    assert account.credit(20) == 30
    assert account.under_way == 50
    assert account.credit(20) == 50
    assert account.under_way == 0
    assert account.credit(20) == 0


def test_of_what_was_sent_before_only_the_bytes_are_known():
    """It counts as written as far as that was told, and whole with the first credit of what was sent since."""
    account = Account(100)
    account.sent(30)
    assert account.credit(40) == 40
    assert account.under_way == 90
    assert account.credit(30) == 90
    assert account.under_way == 0
    assert account.credit(40) == 0


def test_what_is_not_sent_after_all_is_taken_back():
    """The last one of that size."""
    account = Account()
    for size in (10, 20, 10):
        account.sent(size)
    account.refund(10)
    account.refund(99)
    assert account.under_way == 30
    assert account.credit(20) == 30


def test_a_window_is_not_used_up_but_by_probes():
    """These are small, differ, and come at longer and longer intervals; a credit of any of them opens the window."""
    account = Account()
    pieces = []
    while size := account.next_size(0.0):
        account.sent(size)
        pieces.append(size)
    assert sum(pieces) == ROOM
    assert len(set(pieces)) == len(pieces)
    assert max(pieces) <= PIECE
    assert account.next_size(PROBE_SECONDS / 2) == 0
    now, probes, pauses = 0.0, [], []
    last = now
    while now < 200:
        now += PROBE_SECONDS
        size = account.next_size(now)
        if size:
            account.sent(size)
            probes.append(size)
            pauses.append(now - last)
            last = now
    assert probes == list(range(1, len(probes) + 1))
    assert CREDITS - 100 < account.under_way <= CREDITS
    assert all(later > earlier - PROBE_SECONDS * 1.5 for earlier, later in pairwise(pauses))
    assert pauses[-1] > 100 * pauses[0]
    assert account.credit(probes[-2])
    assert account.under_way == probes[-1]
    assert account.next_size(now) == PIECE - 1


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_a_large_answer_arrives_whole_whoever_gets_the_credits(processes):
    """At no time more is under way than Mongrel2 bears; the browser reads a message now and then."""
    random.seed(processes)
    one = flow()
    left = 2_000_000
    put(one, left)
    queue: list[int] = []
    now = 0.0
    while left:
        now += PROBE_SECONDS
        for conn_id in one.tick(now) if one.control.timed else ():
            queue += sizes(one.dequeue(conn_id, now))
        if not queue:
            queue += sizes(one.dequeue("1", now))
        assert sum(queue) <= CREDITS
        for _ in range(random.randrange(4)):
            if queue:
                left -= queue[0]
                written = queue.pop(0)
                if not random.randrange(processes) and one.control.credit("1", written):
                    queue += sizes(one.dequeue("1", now))
        assert now < 120
    assert not one.outboxes


@pytest.mark.parametrize(("processes", "in_turn"), [(2, True), (8, True), (32, True), (2, False), (8, False)])
def test_the_more_processes_the_smaller_the_pieces_so_that_credits_come(processes, in_turn):
    """A large answer waits for the clock a few times at its begin, and hardly ever behind that."""
    random.seed(processes)
    one = flow()
    waits = []
    for _ in range(2):
        written = waited = 0
        put(one, 4_000_000)
        queue = sizes(one.dequeue("1", 0.0))
        now = 0.0
        while one.outboxes or queue:
            if not queue:
                waited += 1
                now += PROBE_SECONDS
                one.tick(now)
                queue = sizes(one.dequeue("1", now))
                continue
            size = queue.pop(0)
            written += 1
            if (written % processes if in_turn else random.randrange(processes)) == 0 and one.control.credit("1", size):
                queue += sizes(one.dequeue("1", now))
        one.control.renew("1")
        waits.append(waited)
    assert waits[1] < (5 if in_turn else 400), waits


def test_a_connection_that_asks_anew_has_read_what_it_was_sent():
    """Its credits may have gone to others, all of them."""
    one = flow()
    assert one.control.allows("1", ROOM)
    assert not one.control.allows("1", 1)
    one.control.renew("1")
    assert one.control.allows("1", ROOM)
    put(one, 10)
    one.control.renew("1")  # it pipelines: what waits is not overtaken
    assert not one.control.allows("1", 1)


def test_before_credits_were_seen_the_number_of_messages_counts_too():
    """The announcement may have gone to another process, or there is none."""
    one = flow(announced=False)
    assert [one.control.allows("1", 10) for _ in range(SHARED_BURST + 1)] == [True] * SHARED_BURST + [False]
    assert one.control.credit("2", 5) is None  # of what another process sent
    assert one.control.announced
    assert all(one.control.allows("1", 10) for _ in range(100))


def test_where_no_credits_come_at_all_there_are_none():
    """After a full window and a moment all goes out at the pace without flow control."""
    one = flow(announced=False)
    put(one, 2 * CREDITS)
    sent = 0
    now = 0.0
    while one.control.on:
        sent += sum(sizes(one.dequeue("1", now)))
        one.control.pacer.receipt_asked()
        one.control.pacer.receipt_came()
        now += 0.005
        one.tick(now)
        assert sent <= CREDITS
    assert 0.2 < now < 1
    assert sizes(one.dequeue("1", now)) == [2 * CREDITS - sent]


def test_what_is_said_to_nobody_is_reckoned():
    """A process that pulls no more hears of no credit: its last answers go out at the pace of a fast browser."""
    one = Flow()
    one.control.announce(True)
    assert one.control.allows("1", ROOM)
    put(one, 3 * CREDITS)
    assert one.dequeue("1", 0.0) == []
    one.control.hear(Hearing.NONE)
    sent, now = 0, 0.0
    while one.outboxes:
        now += 0.005
        for conn_id in one.tick(now):
            sent += sum(sizes(one.dequeue(conn_id, now)))
        assert sent <= UNHEARD_RATE * now + 2 * CREDITS
    assert sent == 3 * CREDITS


@pytest.mark.parametrize("hearing", [Hearing.ALL, Hearing.SOME])
def test_a_process_that_pulls_no_more_does_not_hear_again(hearing):
    """Whatever becomes of the others: what waits goes on by the clock, and is not waited for."""
    one = Flow()
    one.control.announce(True)
    put(one, 3 * CREDITS)
    assert one.control.allows("2", 10)
    one.control.hear(Hearing.NONE)
    one.control.hear(hearing)
    now = 0.0
    while one.outboxes:
        now += 0.005
        for conn_id in one.tick(now):
            one.dequeue(conn_id, now)
        assert now < 1
    assert not one.control.unconfirmed()


def test_processes_that_are_two_for_a_while_forget_nothing():
    """What is under way counts when another one comes, and what it was told of does not when it has gone."""
    one = Flow()
    one.control.announce(True)
    assert one.control.allows("1", ROOM)
    assert one.control.allows("2", ROOM - 20)
    put(one, 50, "2")
    one.control.hear(Hearing.SOME)
    assert not one.control.allows("1", 1)
    assert sizes(one.dequeue("2", 0.0)) == [20]
    one.control.credit("1", ROOM)
    assert one.control.allows("1", 1)
    one.control.hear(Hearing.ALL)
    assert one.control.allows("1", ROOM)
    assert not one.control.allows("1", 1)


def test_a_close_behind_scattered_credits_leaves_no_account():
    """Nobody may tell that it was written."""
    one = flow()
    put(one, 10)
    assert one.close(b"uuid", ["1"]) == ([], ["1"])
    assert len(one.dequeue("1", 0.0)) == 2
    assert one.control.allows("2", 10)
    assert one.close(b"uuid", ["2"]) == (["2"], [])
    assert not one.outboxes
    assert all(one.control.allows(conn_id, ROOM) for conn_id in ("1", "2"))


def test_the_oldest_accounts_are_forgotten():
    """What became of their connections may have been told to others only."""
    accounts = Scattered({"0"})
    for number in range(MAX_SCATTERED + 10):
        accounts.open(str(number))
    assert "0" in accounts  # something waits for it
    assert "1" not in accounts
    assert str(MAX_SCATTERED) in accounts


def test_a_stand_in_scatters_nothing():
    """It has no limits."""
    one = Flow(paced=False, hearing=Hearing.SOME)
    one.control.hear(Hearing.NONE)
    assert not one.control.shared
    assert all(one.control.allows("1", CREDITS) for _ in range(10))


def test_what_scattered_credits_left_open_counts_when_all_of_them_come_again():
    """What drained meanwhile is under way still, and the server bears one window, not two."""
    one = flow()
    put(one, ROOM + 10)
    sent = sizes(one.dequeue("1", 0.0))
    assert sum(sent) == ROOM
    one.control.hear(Hearing.ALL)
    one.control.credit("1", sent.pop(0))
    sent += sizes(one.dequeue("1", 0.0))
    assert one.waiting("1") == 0
    put(one, 2 * CREDITS)
    sent += sizes(one.dequeue("1", 0.0))
    assert ROOM / 2 < sum(sent) <= CREDITS
    while sent:
        one.control.credit("1", sent.pop(0))
        sent += sizes(one.dequeue("1", 0.0))
    assert not one.control.unconfirmed()
    assert not one.outboxes
    assert one.control.allows("1", ROOM)


def test_a_connection_that_drained_where_credits_scatter_is_not_waited_for():
    """Whoever is told of the rest: of it no report need come here."""
    for hearing in (Hearing.SOME, Hearing.NONE):
        one = Flow()
        one.control.announce(True)
        put(one, ROOM)
        assert sizes(one.dequeue("1", 0.0)) == [ROOM]
        assert one.control.unconfirmed() == ["1"]
        one.control.hear(hearing)
        assert one.control.unconfirmed() == []


def test_a_connection_that_drained_is_not_waited_for_where_there_are_no_credits():
    """Where the server did not announce any, nothing is reported, though nobody else is there to be told."""
    one = flow(announced=False)
    put(one, 10)
    one.control.hear(Hearing.ALL)
    assert sizes(one.dequeue("1", 0.0)) == [10]
    assert not one.outboxes
    assert not one.control.unconfirmed()


def test_a_close_is_not_repeated_nor_waited_for_where_credits_scatter():
    """The server was told; that it wrote all before the close may be told to others."""
    one = Flow()
    one.control.announce(True)
    assert one.control.allows("1", ROOM)
    assert one.close(b"uuid", ["1"]) == (["1"], [])
    one.control.hear(Hearing.SOME)
    assert one.close(b"uuid", ["1"]) == ([], [])
    assert one.control.timed
    one.tick(0.0)
    assert not one.outboxes
    assert not one.control.unconfirmed()


def test_a_close_is_known_until_all_was_reported_where_all_credits_come_again():
    """Mongrel2 carries it out no earlier, and needs somebody who pulls."""
    one = flow()
    put(one, ROOM + 10)
    sent = sizes(one.dequeue("1", 0.0))
    assert one.close(b"uuid", ["1"]) == ([], ["1"])
    one.control.hear(Hearing.ALL)
    one.control.credit("1", sent.pop(0))
    *rest, closed = sizes(one.dequeue("1", 0.0))
    assert (rest, closed) == ([10], 0)
    one.tick(1.0)
    assert one.close(b"uuid", ["1"]) == ([], [])
    assert one.control.unconfirmed() == ["1"]
    for size in (*sent, *rest):
        one.control.credit("1", size)
        assert one.dequeue("1", 1.0) == []
    assert not one.outboxes


def test_an_announced_server_is_not_taken_for_one_without_credits():
    """A window was full before a request said that there are credits, and the browser reads nothing."""
    one = flow(announced=False)
    put(one, 2 * CREDITS)
    assert sum(sizes(one.dequeue("1", 0.0))) < CREDITS
    one.control.announce(True)
    sent = 0
    for now in range(1, 100):
        for conn_id in one.tick(float(now)):
            sent += sum(sizes(one.dequeue(conn_id, float(now))))
    assert one.control.on
    assert sent < CREDITS


@pytest.mark.parametrize("announced", [False, True])
def test_nor_is_the_next_server_before_it_had_time_to_say_so(announced):
    """What begins the connections to it may be told to others: it is sent no more than it bears at most."""
    one = flow(announced=announced)
    one.lose()
    assert one.control.on
    assert not one.control.announced
    assert one.control.allows("1", 10)
    put(one, 3 * CREDITS)
    assert sum(sizes(one.dequeue("1", 0.0))) < CREDITS
