"""What waits for the application, and who waits for it."""

from __future__ import annotations

import time

import gevent
import pytest

from greentx.handler.inbox import Inbox
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request


def wait_until(condition) -> None:
    """Let others run until *condition* holds."""
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


def request(number: int) -> Request:
    """The one of the connection with this number."""
    return parse_request(build_request("u", number, "/", {"METHOD": "GET"}))


def test_events_come_out_in_their_order():
    """First in, first out, with the connection set they came by."""
    inbox = Inbox(10)
    for number in range(3):
        inbox.put("conn", request(number))
    assert [inbox.items.popleft()[:2] for _ in range(len(inbox))] == [(("u", number), "conn") for number in "012"]


def test_what_is_there_is_not_waited_for():
    """wait() returns at once."""
    inbox = Inbox(10)
    inbox.put("conn", request(1))
    assert inbox.wait(None)


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_nothing_came(timeout):
    """After the timeout wait() says so, and nobody is left in the queue of those who wait."""
    inbox = Inbox(10)
    started = time.monotonic()
    assert not inbox.wait(timeout)
    assert time.monotonic() - started >= timeout
    assert not inbox.consumers_wait


def test_one_event_wakes_one_consumer():
    """The others sleep on: a hundred of them would cost a hundred switches for each event."""
    inbox = Inbox(10)
    woken: list[int] = []
    consumers = [gevent.spawn(lambda number=number: inbox.wait(None) and woken.append(number)) for number in range(3)]
    wait_until(lambda: len(inbox.consumers_wait) == 3)
    inbox.put("conn", request(1))
    gevent.joinall(consumers, count=1)
    assert woken == [0]
    assert len(inbox.consumers_wait) == 2
    inbox.end()
    gevent.joinall(consumers, raise_error=True)
    assert sorted(woken) == [0, 1, 2]


def test_a_consumer_that_found_nothing_left_waits_for_the_rest_of_its_time():
    """Others that take everything do not keep it from its timeout."""
    inbox = Inbox(10)
    consumer = gevent.spawn(inbox.wait, 0.05)
    started = time.monotonic()
    while not consumer.dead:
        inbox.put("conn", request(1))
        if inbox.items:
            inbox.items.popleft()
        gevent.sleep(0.002)  # between two looks
        assert time.monotonic() - started < 10
    assert consumer.value is False
    assert time.monotonic() - started >= 0.05


def test_a_killed_consumer_passes_its_news_on():
    """An event whose consumer is killed before it took it wakes another one."""
    inbox = Inbox(10)
    first, second = gevent.spawn(inbox.wait, None), gevent.spawn(inbox.wait, None)
    wait_until(lambda: len(inbox.consumers_wait) == 2)
    first.kill(block=False)  # strikes at the hub's next turn, before the news can
    inbox.put("conn", request(1))
    second.join(2)
    assert second.value is True
    assert not inbox.consumers_wait


def test_a_killed_consumer_leaves_the_queue():
    """Nobody wakes a dead one."""
    inbox = Inbox(10)
    consumer = gevent.spawn(inbox.wait, None)
    wait_until(lambda: inbox.consumers_wait)
    consumer.kill()
    assert not inbox.consumers_wait


def test_a_full_inbox_holds_receivers_up_until_half_of_it_is_free():
    """They go on together, not one event at a time."""
    inbox = Inbox(4)
    for number in range(4):
        inbox.put("conn", request(number))
    receiver = gevent.spawn(inbox.wait_for_space)
    wait_until(lambda: inbox.receivers_wait)
    inbox.items.popleft()
    inbox.fetched()
    gevent.sleep(0)
    assert inbox.receivers_wait
    inbox.items.popleft()
    inbox.fetched()
    receiver.join(2)
    assert receiver.dead
    assert not inbox.receivers_wait


def test_a_receiver_goes_on_when_the_only_event_that_there_is_space_for_was_taken_out():
    """It is told behind the taking: before it the inbox would be full still, and no further event would come."""
    inbox = Inbox(1)
    inbox.put("conn", request(1))
    receiver = gevent.spawn(inbox.wait_for_space)
    wait_until(lambda: inbox.receivers_wait)
    assert inbox.pop()[:2] == (("u", "1"), "conn")
    receiver.join(2)
    assert receiver.dead
    assert not inbox.receivers_wait


def test_the_end_lets_everybody_go():
    """Consumers who wait, receivers who wait, and those who come later."""
    inbox = Inbox(1)
    inbox.put("conn", request(1))
    receiver = gevent.spawn(inbox.wait_for_space)
    wait_until(lambda: inbox.receivers_wait)
    inbox.items.clear()
    consumer = gevent.spawn(inbox.wait, None)
    wait_until(lambda: inbox.consumers_wait)
    inbox.end()
    gevent.joinall([receiver, consumer], timeout=2, raise_error=True)
    assert consumer.value is True
    assert inbox.wait(None)
    assert inbox.ended


def test_the_events_of_one_connection_may_be_moved():
    """Their order stays, and receivers that waited for the space may go on."""
    shared, private = Inbox(4), Inbox(4)
    for number in range(2):
        shared.put("mine", request(number))
        shared.put("other", request(number))
    receiver = gevent.spawn(shared.wait_for_space)
    wait_until(lambda: shared.receivers_wait)
    shared.move("mine", private)
    receiver.join(2)
    assert receiver.dead
    assert [item[:2] for item in shared.items] == [(("u", "0"), "other"), (("u", "1"), "other")]
    assert [item[:2] for item in private.items] == [(("u", "0"), "mine"), (("u", "1"), "mine")]
    shared.move("mine", private)
    assert len(private) == 2


def test_a_consumer_at_the_end_has_handled_what_it_got_last():
    """Whoever watches is told, and may have put in what comes of it."""
    inbox = Inbox(10)
    asked: list[object] = []
    assert not inbox.drained()
    inbox.end()
    assert inbox.drained()

    def watch(event: object) -> None:
        asked.append(event)
        if len(asked) == 1:
            inbox.put("conn", request(1))

    inbox.watch_consumers(watch)
    assert not inbox.drained() and not inbox.drained() and asked == [None]
    inbox.items.clear()
    assert inbox.drained()
