"""Who may be sent what now: tables over ``Flow``, ``Line``, the receipts' rules and subscriptions, without sockets."""

from __future__ import annotations

import pytest

from greentx.errors import LocalProtocolError
from greentx.protocol.flow import (
    BURST,
    EAGER,
    LARGE,
    NOBODY,
    NUMBERS,
    OUTBOX_LIMIT,
    QUEUED,
    READ_RATE,
    RECEIPT_TRIES,
    ROOM,
    SHARED_BURST,
    TIME,
    Bounds,
    Flow,
    Heard,
    Line,
    Listening,
    Outbox,
    Overdue,
    Pacer,
    ReceiptRules,
    first_number,
)

HEAD = b"uuid 1:1, "


def put(flow, data, conn_id="1"):
    """Write for one connection as the writer does where it may not go at once; return its place."""
    return flow.outbox(b"uuid", conn_id).put(data)


# -- the place in an outbox --------------------------------------------------------------------------------------------


def test_one_large_message_at_a_time_goes_without_an_outbox():
    """The next one goes when the browser should have read it; the outbox that it gets before knows of the first."""
    flow = Flow()
    pacer = flow.control.pacer
    assert not pacer.allows("1", LARGE)
    assert pacer.allows_large("1", LARGE, 5.0)
    assert not pacer.allows_large("1", LARGE, 5.0)
    assert pacer.allows_large("1", LARGE, 5.0 + LARGE / READ_RATE)
    for _ in range(QUEUED):
        put(flow, bytes(LARGE))
        flow.dequeue("1", 5.0)
    assert flow.waiting("1") == LARGE
    assert pacer.allows_large("2", LARGE, 5.0)
    assert not flow.forget("2")
    assert pacer.allows_large("2", LARGE, 5.0)
    assert flow.lose() == 1
    assert pacer.allows_large("2", LARGE, 5.0)


def test_a_broadcast_is_counted_for_each_as_a_message_of_its_own_is():
    """Up to the burst, whether all are alike or not; and not where something waits."""
    flow, one = Flow(), Flow()
    everybody = [str(number) for number in range(100)]
    for _ in range(EAGER - 1):
        assert flow.control.split(everybody, 1) == (everybody, [])
        assert one.control.allows("7", 1)
    assert flow.control.pacer.due == one.control.pacer.due
    for _ in range(BURST - EAGER + 1):
        assert flow.control.split(everybody, 1) == (everybody, [])
        assert one.control.allows("7", 1)
    assert flow.control.pacer.due and one.control.pacer.due
    assert flow.control.split(everybody, 1) == ([], everybody)
    assert not one.control.allows("7", 1)
    assert Flow().control.split([], 1) == ([], [])


def test_a_stand_in_for_mongrel2_is_sent_any_number_but_not_past_what_waits():
    """It has no limit; nothing is overtaken all the same."""
    flow = Flow(paced=False)
    put(flow, b"waits", "2")
    for _ in range(BURST + 1):
        assert flow.control.split(["1", "2", "3"], 1) == (["1", "3"], ["2"])


def test_what_was_read_is_not_remembered_for_good():
    """Of many connections that got one large message each those are forgotten that have read it."""
    pacer = Pacer(2)
    for number in range(5000):
        assert pacer.allows_large(str(number), LARGE, float(number))
    assert pacer.allows_large("0", LARGE, 5000.0)


def test_credits_say_what_may_go_also_of_a_large_message():
    """Where there are credits nothing is estimated; nor where the count of messages is used up."""
    flow = Flow()
    flow.control.announce(True)
    assert not flow.control.accounts.allows_large("1", LARGE, 5.0)
    pacer = Pacer(1)
    assert pacer.allows("1", 1)
    assert not pacer.allows_large("1", LARGE, 5.0)


@pytest.mark.parametrize(
    ("limit", "sent", "withdrawn", "left"),
    [
        (0, b"", [0], b"bbbcc"),
        (0, b"", [1], b"acc"),
        (0, b"", [2], b"abbb"),
        (0, b"", [1, 0], b"cc"),
        (0, b"", [0, 2, 1], b""),
        (1, b"a", [1], b"cc"),
        (1, b"a", [2], b"bbb"),
        (2, b"ab", [2], b"bb"),
        (4, b"abbb", [2], b""),
    ],
)
def test_what_was_not_sent_is_withdrawn_from_its_place_and_the_rest_keeps_its_own(limit, sent, withdrawn, left):
    """In any order; what is behind it does not move."""
    box = Outbox(b"head", Pacer())
    places = [box.put(data) for data in (b"a", b"bbb", b"cc")]
    if limit:
        assert box.dequeue(limit) == sent
    for number in withdrawn:
        assert box.withdraw(places[number])
    assert box.size == len(left)
    assert box.dequeue(100) == left
    assert box.idle


@pytest.mark.parametrize(("limit", "held"), [(0, [0, 1]), (1, [1]), (2, [1]), (3, []), (4, []), (5, [])])
def test_what_was_sent_in_part_stays(limit, held):
    """Its place cannot be given back: the rest has to follow."""
    box = Outbox(b"head", Pacer())
    places = [box.put(data) for data in (b"aa", b"bb")]
    if limit:
        box.dequeue(limit)
    assert [number for number, place in enumerate(places) if box.holds(place)] == held
    assert [number for number, place in enumerate(places) if box.withdraw(place)] == held


def test_places_are_not_used_again():
    """One that was sent long ago is not mistaken for what waits now."""
    box = Outbox(b"head", Pacer())
    first = box.put(b"a")
    box.dequeue(1)
    second = box.put(b"b")
    assert not box.withdraw(first)
    assert box.withdraw(second) and box.idle
    assert box.put(b"c") > second
    assert box.dequeue(1) == b"c"


# -- one connection ----------------------------------------------------------------------------------------------------


def test_the_seventeenth_message_waits():
    """After a burst nothing goes before a receipt; then all that waited does, as one message."""
    flow = Flow()
    assert [flow.control.allows("1", 1) for _ in range(17)] == [True] * BURST + [False] * (17 - BURST)
    assert flow.control.pacer.due
    for number in range(5):
        put(flow, b"%d" % number)
    assert flow.dequeue("1", 0.0) == [] and flow.waiting("1") == 5 and flow.waiting_ids() == ["1"]
    flow.control.pacer.receipt_asked()
    flow.control.pacer.receipt_came()
    assert flow.dequeue("1", 0.0) == [HEAD + b"01234"]
    assert not flow.outboxes and not flow.control.timed


@pytest.mark.parametrize(
    ("paced", "flow_control", "size", "allowed"),
    [
        (True, False, LARGE - 1, True),
        (True, False, LARGE, False),
        (False, False, 100 * LARGE, True),
        (True, True, LARGE, True),
        (True, True, ROOM, True),
        (True, True, ROOM + 1, False),
    ],
)
def test_a_first_message_goes_at_once_where_it_needs_no_account_of_an_outbox(paced, flow_control, size, allowed):
    """Large ones need one, unless the server tells what it wrote, or has no limits."""
    flow = Flow(paced=paced)
    flow.control.announce(flow_control)
    assert flow.control.allows("1", size) is allowed


def test_large_messages_wait_for_the_clock():
    """As many as a fair reader should not have read are under way; the outbox is known until it should have."""
    flow = Flow()
    for _ in range(QUEUED):
        put(flow, bytes(READ_RATE))
        assert len(flow.dequeue("1", 0.0)) == 1
    assert flow.control.timed and flow.outboxes
    put(flow, b"x")
    assert flow.dequeue("1", 0.5) == []
    assert flow.tick(0.5) == ["1"] and flow.control.timed
    assert flow.dequeue("1", 1.0) == [HEAD + b"x"]
    assert flow.tick(3.9) == [] and flow.control.timed and flow.outboxes
    assert flow.tick(4.0) == [] and not flow.control.timed and not flow.outboxes


def test_credits_let_as_much_go_as_the_server_wrote():
    """What is under way counts whether something waits for the connection or not."""
    flow = Flow()
    flow.control.announce(True)
    assert flow.control.allows("1", ROOM - 10)
    put(flow, b"x" * 30)
    assert flow.dequeue("1", 0.0) == [HEAD + b"x" * 10]
    assert flow.control.credit("2", 5) is None and flow.control.credit("1", 15) is flow.outboxes["1"]
    assert flow.dequeue("1", 0.0) == [HEAD + b"x" * 15]
    assert (flow.control.unconfirmed(), flow.control.confirmed("1"), flow.control.confirmed("2")) == (["1"], 15, None)
    flow.control.credit("1", ROOM - 10)
    assert flow.dequeue("1", 0.0) == [HEAD + b"x" * 5]
    flow.control.credit("1", 20)
    assert flow.dequeue("1", 0.0) == [] and not flow.outboxes and not flow.control.unconfirmed()


@pytest.mark.parametrize("reported", [0, 30])
@pytest.mark.parametrize("in_outbox", [False, True])
def test_what_was_counted_and_is_not_sent_may_be_spent_again(reported, in_outbox):
    """Whole: the account is as if it had never been written."""
    flow = Flow()
    flow.control.announce(True)
    assert flow.control.allows("1", 30)
    if in_outbox:
        put(flow, bytes(ROOM))
        flow.dequeue("1", 0.0)
        flow.control.credit("1", ROOM)
        flow.dequeue("1", 0.0)
        flow.control.credit("1", reported)
        assert flow.control.split(["1"], 50) == (["1"], [])
    else:
        assert flow.control.allows("1", 50)
        flow.control.credit("1", reported)
    flow.control.refund(["1", "gone"], 50)
    flow.control.credit("1", 30 - reported)
    flow.dequeue("1", 0.0)
    assert flow.control.unconfirmed() == []
    assert flow.control.allows("1", ROOM) and not flow.control.allows("1", 1)


def test_a_refund_without_credits_is_none():
    """The pacer's count is gone with the next receipt, and too high until then."""
    flow = Flow()
    assert flow.control.allows("1", 5)
    flow.control.refund(["1"], 5)
    assert [flow.control.allows("1", 1) for _ in range(BURST)] == [True] * (BURST - 1) + [False]


# -- many --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_control", [False, True])
def test_a_broadcast_overtakes_nothing(flow_control):
    """Those for whom something waits are not in it."""
    flow = Flow()
    flow.control.announce(flow_control)
    put(flow, b"waits", "2")
    assert flow.control.split(["1", "2", "3"], 7) == (["1", "3"], ["2"])
    assert flow.waiting("2") == 5


def broadcast(flow, data, now, policy="close"):
    """To one browser; returns whether it gets it, and whether it is to be ended."""
    put = flow.put_unthrottled(b"uuid", "1", data, now, policy)
    return put.place is not None, put.slow


def stuck(**bounds):
    """A flow whose browser was sent all that it may be sent, and has read nothing."""
    flow = Flow(bounds=Bounds(**bounds))
    flow.control.announce(True)
    assert flow.control.allows("1", ROOM)
    return flow


def test_a_burst_of_broadcasts_makes_nobody_slow():
    """However large: what counts is for how long much waits, and one that has read meanwhile begins anew."""
    flow = stuck(slow_timeout=5)
    assert broadcast(flow, bytes(400_000), 0.0) == (True, False)
    assert broadcast(flow, b"y", 0.0) == (True, False)
    assert [broadcast(flow, bytes(20_000), 4.9) for _ in range(30)] == [(True, False)] * 30
    while flow.waiting("1") > OUTBOX_LIMIT:
        flow.control.credit("1", ROOM)
        flow.dequeue("1", 4.9)
    assert [broadcast(flow, bytes(400_000), 9.0), broadcast(flow, b"y", 13.9)] == [(True, False)] * 2
    assert broadcast(flow, b"y", 14.1) == (False, True)
    flow.close(b"uuid", ["1"])
    assert broadcast(flow, b"late", 14.1) == (False, False)


def test_a_broadcast_beyond_all_bounds_makes_slow_at_once():
    """The memory is bounded, whatever the time."""
    flow = stuck(max_outbox=1_000_000)
    assert [broadcast(flow, bytes(400_000), 0.0) for _ in range(4)] == [(True, False)] * 3 + [(False, True)]


@pytest.mark.parametrize(("policy", "left"), [("drop-oldest", b"bcd"), ("drop-newest", b"abc")])
def test_a_policy_drops_broadcasts_and_nothing_else(policy, left):
    """What was written to that browser alone stays, in its place."""
    flow = stuck(slow_timeout=5)
    put(flow, b"own ", "1")
    for number, letter in enumerate(b"abc"):
        assert broadcast(flow, bytes([letter]) * 130_000, float(number), policy) == (True, False)
    assert broadcast(flow, b"d" * 1000, 9.0, policy) == (policy == "drop-oldest", False)
    put(flow, b"end", "1")
    sent = b""
    while flow.waiting("1"):
        flow.control.credit("1", ROOM)
        sent += b"".join(message.removeprefix(HEAD) for message in flow.dequeue("1", 9.0))
    assert sent.startswith(b"own ") and sent.endswith(b"end")
    pieces = {b"a": 130_000, b"b": 130_000, b"c": 130_000, b"d": 1000}
    assert sent[4:-3] == b"".join(bytes([letter]) * pieces[bytes([letter])] for letter in left)
    assert flow.outbox(b"uuid", "1").unthrottled == 0


def test_what_may_not_be_missing_is_put_however_slow_the_browser_is():
    """Pings and close frames."""
    flow = stuck(slow_timeout=0)
    broadcast(flow, bytes(2 * OUTBOX_LIMIT), 0.0)
    assert broadcast(flow, b"ping", 9.0, "") == (True, False)


def test_a_browser_that_reads_too_slowly_is_found_by_the_clock():
    """Some progress is not enough, but what may have been read of the message that is under way counts."""
    flow = stuck(min_rate=9_600)
    assert flow.too_slow(0.0, 30) == []
    put(flow, bytes(3 * ROOM), "1")
    flow.dequeue("1", 0.0)
    assert flow.too_slow(1.0, 30) == flow.too_slow(30.0, 30) == []
    assert flow.too_slow(31.0, 30) == ["1"]
    flow.control.credit("1", ROOM)
    flow.dequeue("1", 31.0)
    assert flow.too_slow(31.0, 30) == ["1"]  # with what it may have read since 196,608 of 288,000
    flow.control.credit("1", ROOM)
    flow.dequeue("1", 31.0)
    assert flow.too_slow(31.0, 30) == []
    assert flow.too_slow(60.9, 30) == []
    flow.judge_anew()
    assert flow.too_slow(61.1, 30) == flow.too_slow(91.0, 30) == []
    assert flow.too_slow(91.2, 30) == ["1"]
    flow.forget("1", "it did not read")
    assert flow.too_slow(200.0, 30) == []


@pytest.mark.parametrize("bounds", [{"min_rate": -1}, {"max_outbox": float("nan")}, {"slow_timeout": -0.1}])
def test_bounds_are_checked_where_they_are_written(bounds):
    """The error names what is wrong."""
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Bounds(**bounds)


# -- closing, forgetting, a life that is over --------------------------------------------------------------------------


def test_a_close_goes_behind_what_waits_and_is_sent_once():
    """What waits and the close come out together; a connection without an outbox is closed at once."""
    flow = Flow()
    put(flow, b"last")
    assert flow.close(b"uuid", ["1", "2"]) == (["2"], ["1"])
    assert flow.busy() == 1 and flow.outboxes["1"].closing
    assert flow.dequeue("1", 0.0) == [HEAD + b"last", HEAD]
    assert not flow.outboxes and flow.busy() == 0


def test_a_close_behind_what_was_withdrawn_is_sent_alone():
    """Nothing waits any more, but the server has to be told."""
    flow = Flow()
    place = put(flow, b"never")
    flow.close(b"uuid", ["1"])
    assert flow.outboxes["1"].withdraw(place)
    assert flow.dequeue("1", 0.0) == [HEAD]


def test_a_closed_connection_is_known_until_all_was_reported():
    """With credits: the server's reports are on their way still; it is closed once."""
    flow = Flow()
    flow.control.announce(True)
    assert flow.control.allows("1", 10)
    assert flow.close(b"uuid", ["1"]) == (["1"], [])
    assert flow.close(b"uuid", ["1"]) == ([], [])
    assert flow.control.unconfirmed() == ["1"] and not flow.busy()
    flow.control.credit("1", 10)
    assert flow.dequeue("1", 0.0) == [] and not flow.outboxes


def test_what_is_forgotten_says_so_to_those_that_hold_it():
    """Whoever waits for the outbox looks at it again."""
    flow = Flow()
    put(flow, b"x")
    outbox = flow.outboxes["1"]
    assert flow.forget("1") and outbox.dropped
    assert not flow.forget("1") and flow.dequeue("1", 0.0) == []


@pytest.mark.parametrize("flow_control", [False, True])
def test_with_a_life_of_the_server_all_is_over(flow_control):
    """What waits is counted and dropped, what was counted forgotten: the ids have a new meaning."""
    flow = Flow()
    flow.control.announce(flow_control)
    for _ in range(EAGER):
        assert flow.control.allows("2", 1)
    put(flow, bytes(2 * ROOM))
    outbox = flow.outboxes["1"]
    put(flow, b"y", "3")
    flow.dequeue("3", 0.0)
    life = flow.life
    assert flow.lose() == 1
    assert outbox.dropped and not flow.outboxes and not flow.control.unconfirmed() and not flow.control.on
    assert flow.life == life + 1 and not flow.control.pacer.due and not flow.control.timed
    assert all(flow.control.allows("2", 1) for _ in range(BURST))


def test_where_the_server_turns_out_to_be_a_stand_in_all_may_go():
    """What waits as well, large or not."""
    flow = Flow()
    for _ in range(BURST + 1):
        flow.control.allows("1", 1)
    put(flow, b"waits")
    flow.control.stop_pacing()
    assert not flow.control.paced and flow.dequeue("1", 0.0) == [HEAD + b"waits"]
    assert all(flow.control.allows("1", LARGE) for _ in range(20))


def test_where_there_is_no_pacing_any_more_nothing_is_overtaken():
    """A message to many goes behind what still waits for one of them."""
    flow = Flow()
    for _ in range(BURST + 1):
        flow.control.allows("1", 1)
    put(flow, b"waits")
    flow.control.stop_pacing()
    assert flow.control.split(["1", "2"], 5) == (["2"], ["1"])


def test_where_there_is_no_pacing_any_more_the_clock_holds_nothing_back():
    """As many large messages as wait."""
    flow = Flow()
    sent = []
    for _ in range(QUEUED + 3):
        put(flow, bytes(LARGE))
        sent += flow.dequeue("1", 0.0)
    assert flow.outboxes["1"].size
    flow.control.stop_pacing()
    while messages := flow.dequeue("1", 0.0):
        sent += messages
    assert sum(len(message) - len(HEAD) for message in sent) == (QUEUED + 3) * LARGE
    assert "1" not in flow.outboxes


# -- the line before a full pipe ---------------------------------------------------------------------------------------


def drain(line, outboxes):
    """Send all that is in a line; return it in order, as one text."""
    sent = []
    while (message := line.first(lambda conn_id: outboxes.pop(conn_id, []))) is not None:
        sent.append(message)
        line.sent()
    return b"".join(sent)


def test_a_line_keeps_the_order_of_the_calls():
    """An outbox has one turn, the first that it got; what it holds is decided when it comes."""
    line, outboxes = Line(), {"1": [b"B", b"close"], "2": []}
    turns = [line.append(b"a"), line.turn_of("1"), line.append(b"c"), line.turn_of("2")]
    assert line.turn_of("1") is turns[1] and line.has_turn("1") and not line.has_turn("3")
    outboxes["2"].append(b"D")
    assert drain(line, outboxes) == b"aBclosecD"
    assert all(turn.done for turn in turns) and not line.turns and not line.has_turn("1")


def test_a_turn_is_over_with_the_last_of_its_messages():
    """Whoever waits for it waits for room for all."""
    line, woken = Line(), []
    line.append(b"a")
    turn = line.turn_of("1")
    turn.wakers.append(lambda: woken.append(True))
    for message in (b"a", b"B", b"close"):
        assert not woken and line.first(lambda conn_id: [b"B", b"close"]) == message
        line.sent()
    assert woken == [True] and line.first(lambda conn_id: []) is None


def test_a_turn_of_an_outbox_that_may_not_send_is_skipped():
    """Those that wait for it wait for something else now."""
    line = Line()
    turn = line.turn_of("1")
    line.append(b"b")
    assert line.first(lambda conn_id: []) == b"b"
    assert turn.done


def test_a_message_can_be_withdrawn_from_the_line():
    """And is over with that; another time it is not there."""
    line = Line()
    turns = [line.append(b"%d" % number) for number in range(3)]
    line.remove(turns[1])
    assert turns[1].done
    with pytest.raises(ValueError, match="not in deque"):
        line.remove(turns[1])
    assert drain(line, {}) == b"02"


def test_a_line_that_is_cleared_tells_all_that_wait():
    """Messages are counted; what is in outboxes is counted there."""
    line = Line()
    turns = [line.append(b"a"), line.turn_of("1"), line.append(b"b")]
    assert line.clear() == 2
    assert all(turn.done for turn in turns) and not line.turns and not line.has_turn("1")


# -- receipts ----------------------------------------------------------------------------------------------------------


def rules(*, known=None, possible=True):
    """The rules of a writer whose server is known to give receipts, or not known yet."""
    one = ReceiptRules(Pacer(), possible=possible)
    if known:
        assert one.notice(one.ask())
    return one


def test_numbers_are_ours_and_not_a_browsers():
    """Each asks with numbers of its own, in the range that a server's counter does not reach."""
    assert all(NOBODY <= first_number() <= 2**31 - 1 - NUMBERS for _ in range(1000))
    one = rules()
    numbers = {int(one.ask()) for _ in range(2 * NUMBERS)}
    assert len(numbers) == NUMBERS and min(numbers) >= one.first and max(numbers) < one.first + NUMBERS


def test_a_notice_of_the_number_awaited_confirms_what_was_sent_before():
    """The server is known to give receipts from then on."""
    pacer = Pacer()
    one = ReceiptRules(pacer, possible=True)
    for _ in range(BURST):
        pacer.allows("1")
    number = one.ask()
    assert (one.known, one.awaited, pacer.due, pacer.allows("1")) == (None, number, False, False)
    assert one.notice(number)
    assert (one.known, one.awaited, pacer.allows("1")) == (True, "", True)
    assert not one.notice(number)


@pytest.mark.parametrize(
    ("conn_id", "others"),
    [("17", False), (str(NOBODY - 1), False), ("others", True), ("our last", False), ("our first", False)],
)
def test_other_notices_confirm_nothing(conn_id, others):
    """A browser's, another process's, an old one of ours."""
    one = rules(known=True)
    named = {
        "others": one.first + NUMBERS,
        "our last": one.first + NUMBERS - 1,
        "our first": one.first,
    }
    awaited = one.ask()
    assert not one.notice(str(named.get(conn_id, conn_id)))
    assert (one.awaited, one.others_seen) == (awaited, others)


@pytest.mark.parametrize(
    ("known", "possible", "can_come", "others_seen", "pipe_full", "verdicts", "known_after"),
    [
        (True, True, True, False, False, [Overdue.ASK_AGAIN] * 6, True),
        (None, True, True, False, False, [Overdue.ASK_AGAIN] * (RECEIPT_TRIES - 1) + [Overdue.NONE_COME], False),
        (None, True, True, False, True, [Overdue.WAIT] * 6, None),
        (True, True, False, False, False, [Overdue.UNSEEN], True),
        (True, True, False, True, True, [Overdue.UNSEEN], True),
        (True, True, True, True, False, [Overdue.OTHERS], False),
        (None, True, True, True, True, [Overdue.OTHERS], False),
    ],
)
def test_what_a_receipt_means_that_does_not_come(
    known, possible, can_come, others_seen, pipe_full, verdicts, known_after
):
    """It is asked for again, or something else takes the place of receipts."""
    one = rules(known=known, possible=possible)
    one.ask()
    one.others_seen = others_seen
    assert [one.overdue(can_come=can_come, pipe_full=pipe_full) for _ in verdicts] == verdicts
    assert one.known is known_after
    assert bool(one.awaited) is (verdicts[-1] in (Overdue.ASK_AGAIN, Overdue.WAIT))
    if known_after is False:
        assert one.ask() == TIME


def test_where_others_get_our_receipts_each_sends_less():
    """They count for themselves."""
    pacer = Pacer()
    one = ReceiptRules(pacer, possible=True)
    one.notice(str(one.first + NUMBERS))
    one.ask()
    one.notice(str(one.first + NUMBERS))
    assert one.overdue(can_come=True, pipe_full=False) is Overdue.OTHERS
    assert [pacer.allows("1") for _ in range(SHARED_BURST + 1)] == [True] * SHARED_BURST + [False]


def test_a_server_that_stood_still_is_known_by_an_old_receipt():
    """All that were asked for meanwhile are remembered."""
    one = rules()
    one.ask()
    for _ in range(RECEIPT_TRIES):
        one.overdue(can_come=True, pipe_full=False)
    assert one.known is False and len(one.missed) == RECEIPT_TRIES
    assert not one.notice(one.missed[0])
    assert one.known


def test_receipts_that_did_not_come_may_come_later():
    """Others got them, and have gone since: a number that is asked for beside all else shows it."""
    one = rules()
    assert one.probe() == ""  # not known yet: the next question will tell
    one.ask()
    one.others_seen = True
    assert one.overdue(can_come=True, pipe_full=False) is Overdue.OTHERS
    lost, number = one.probe(), one.probe()
    assert lost != number and one.ask() == TIME
    assert not one.notice(number) and one.known
    assert one.probe() == ""
    one.confirm()
    assert one.ask() not in ("", TIME, lost, number)
    for _ in range(3 * RECEIPT_TRIES):
        one.known = False
        one.probe()
    assert len(one.missed) <= RECEIPT_TRIES + 1
    one.end()
    assert one.probe() == "" == rules(possible=False).probe()


def test_after_the_end_time_takes_the_place_of_receipts():
    """None is asked for any more; what is awaited may come still."""
    one = rules(known=True)
    assert not one.end()
    assert one.ask() == TIME and not one.end()
    one = rules(known=True)
    number = one.ask()
    assert one.end() and one.awaited == number
    one.await_time()
    assert one.awaited == TIME
    one.confirm()
    assert one.awaited == ""
    assert rules(possible=False).ask() == TIME


def test_each_question_is_answered_or_just_over():
    """Its receipt covers it; one that could not be seen ends the waiting for it, and covers nothing."""
    one = rules(known=True)
    assert (one.questions, one.over, one.covered) == (1, 1, 1)
    one.ask()
    assert (one.questions, one.over, one.covered) == (2, 1, 1)
    assert one.ask_next() == 3
    assert one.overdue(can_come=True, pipe_full=False) is Overdue.ASK_AGAIN
    assert (one.questions, one.over) == (2, 1)
    assert one.notice(one.awaited)
    assert (one.questions, one.over, one.covered) == (2, 2, 2)
    one.ask()
    assert one.overdue(can_come=False, pipe_full=False) is Overdue.UNSEEN
    assert (one.questions, one.over, one.covered) == (3, 3, 2)
    one.ask()
    one.forget()
    assert (one.questions, one.over, one.covered) == (4, 3, 2)
    number = one.ask()
    assert one.notice(number)
    assert (one.questions, one.over, one.covered) == (5, 5, 5)


def test_the_next_question_is_due_at_once():
    """So that it is asked as soon as the one before it is answered."""
    pacer = Pacer()
    one = ReceiptRules(pacer, possible=True)
    one.ask()
    assert not pacer.due
    one.ask_next()
    assert pacer.due


@pytest.mark.parametrize(("possible", "known"), [(True, None), (False, False)])
def test_the_next_server_may_be_of_another_kind(possible, known):
    """Nothing of the last one's is awaited."""
    one = rules(possible=possible)
    one.ask()
    one.forget()
    assert (one.awaited, one.missed, one.known) == ("", [], known)


# -- what the server listens to ----------------------------------------------------------------------------------------

CAME, WENT = Heard.CAME, Heard.WENT


@pytest.mark.parametrize(
    ("messages", "heard"),
    [
        ([b"\x01"], [[CAME]]),
        ([b"\x01a", b"\x01b", b"\x00a", b"\x00b"], [[CAME], [], [], [WENT]]),
        ([b"\x01a", b"\x01a"], [[CAME], [WENT, CAME]]),
        ([b"\x01a", b"\x01b", b"\x01b", b"\x01a"], [[CAME], [], [WENT, CAME], []]),
        ([b"\x00a"], [[]]),
        ([b"\x01a", b"\x00b"], [[CAME], []]),
        ([b"what", b""], [[], []]),
    ],
)
def test_subscriptions_tell_when_the_server_comes_and_goes(messages, heard):
    """The same one again, without an end in between, is another server's."""
    listening = Listening(paced=True)
    assert [listening.feed(message) for message in messages] == heard
    events = [event for one in heard for event in one]
    assert bool(listening.topics) is (events.count(CAME) > events.count(WENT))


@pytest.mark.parametrize(
    ("topics", "sender", "prefix", "to_nobody"),
    [([b""], "uuid", b"uuid", b"greentx"), ([b"uu"], "uuid", b"uuid", b"uu"), ([b"y", b"x"], "uuid", b"x", b"x")],
)
def test_replies_begin_with_what_the_server_hears(topics, sender, prefix, to_nobody):
    """What is remembered of it goes with the server, in place."""
    listening = Listening(paced=True)
    prefixes = listening.prefixes
    for topic in topics:
        listening.feed(b"\x01" + topic)
    assert (listening.prefix(sender), prefixes) == (prefix, {sender: prefix})
    assert listening.prefix_to_nobody() == to_nobody
    listening.feed(b"\x01another")
    assert prefixes == {} and listening.prefixes is prefixes


def test_a_topic_that_no_reply_may_begin_with_is_refused():
    """And leaves all as it was; a stand-in's may have other characters."""
    listening = Listening(paced=True)
    with pytest.raises(LocalProtocolError):
        listening.feed(b"\x01a_b")
    with pytest.raises(LocalProtocolError):
        listening.prefix("a_b")
    assert not listening.topics
    listening.paced = False
    assert listening.feed(b"\x01a_b") == [CAME]
    assert listening.prefix("a_b") == b"a_b"
