"""Handler processes that share their WebSockets by a Redis, behind a real mongrel2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from front_ends import started
from redis_hosts import Client, Process, crowd, processes, wait_for
from redis_rig import RedisServer, redis_server

from greentx.edge import Handler, Mongrel2

pytestmark = [pytest.mark.mongrel2, pytest.mark.timeout(120)]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with redis_server() as server:
        yield server


@pytest.fixture
def mongrel2() -> Iterator[Mongrel2]:
    """One with one handler entry."""
    with started(Mongrel2({"/": Handler("rig")})) as server:
        yield server


def leader(*processes: Process) -> Process:
    """Return the one that pings; blocks until there is one."""
    wait_for(lambda: any(one.said("this process pings") for one in processes))
    return next(one for one in processes if one.said("this process pings"))


def ended(clients: list[Client]) -> int:
    return sum(client.ended is not None for client in clients)


def pinged_again(clients: list[Client], rounds: int = 2) -> bool:
    """Wait until each of these was pinged so many times more."""
    before = [client.pings for client in clients]
    wait_for(lambda: all(one.pings >= count + rounds for one, count in zip(clients, before, strict=True)), 30, "pings")
    return True


def closes(*processes: Process) -> Counter[str]:
    """How often the end of each WebSocket was an event, over all processes."""
    return Counter(
        one["conn_id"] for process in processes for one in process.events if one["event"] == "WEBSOCKET_CLOSE"
    )


@pytest.fixture
def two(redis: RedisServer, mongrel2: Mongrel2) -> Iterator[tuple[Process, Process]]:
    """Two processes on one entry, which know each other."""
    with processes(redis.url, (mongrel2, "shared"), (mongrel2, "shared")) as (first, second):
        wait_for(lambda: first.joined(1) or second.joined(1))
        yield first, second


def test_nobody_who_answers_is_dropped_and_everybody_who_does_not_is_also_when_one_of_two_is_killed(two, mongrel2):
    """Half-way the one that pings is killed, and more clients fall silent."""
    with crowd(mongrel2, 200, silent=20) as clients:
        pings = leader(*two)
        other = two[1] if pings is two[0] else two[0]
        wait_for(lambda: ended(clients[:20]) == 20, 30, "the end of the silent")
        assert ended(clients[20:]) == 0
        wait_for(lambda: [one.ask("len") for one in two] == [180, 180])
        for client in clients[20:40]:
            client.answers = False
        pings.kill()
        wait_for(lambda: ended(clients[:40]) == 40, 30, "the end of those that fell silent")
        assert pinged_again(clients[40:])
        assert ended(clients[40:]) == 0
        assert other.ask("len") == other.ask("count") == 160
        # Each end was an event once, in whichever process owned it then.
        assert set(closes(*two).values()) == {1} and len(closes(*two)) == 40


def test_a_process_that_stops_in_order_leaves_its_websockets_to_the_other_one(two, mongrel2):
    """None is closed, and broadcasts reach all; the last process closes them."""
    with crowd(mongrel2, 20) as clients:
        wait_for(lambda: [one.ask("len") for one in two] == [20, 20])
        two[0].stop()
        texts: list[str] = []

        def reaches_all() -> bool:
            # Each time another text, as each reaches those that the process has by then.
            texts.append(f"after {len(texts)}")
            return bool(two[1].ask("broadcast", texts[-1]) == 20)

        wait_for(reaches_all)
        wait_for(lambda: all(one.texts[texts[-1].encode()] == 1 for one in clients))
        assert all(one.texts[text.encode()] <= 1 for one in clients for text in texts)
        assert ended(clients) == 0 and not closes(*two)
        two[1].stop()
        wait_for(lambda: ended(clients) == 20)
        assert {one.code for one in clients} == {1001}


def test_each_message_is_an_event_in_whichever_process_gets_it_and_begins_and_ends_are_events_once(two, mongrel2):
    """Mongrel2 hands out messages in turn: both processes answer the messages of each WebSocket."""
    with crowd(mongrel2, 10) as clients:
        for client in clients:
            for number in range(10):
                client.send(b"%d" % number)
        expected = Counter({b"%d" % number: 1 for number in range(10)})
        wait_for(lambda: all(client.texts == expected for client in clients))
        begins = Counter(one["conn_id"] for process in two for one in process.events if "CONNECT" in one["event"])
        assert len(begins) == 10 and set(begins.values()) == {1}
    wait_for(lambda: len(closes(*two)) == 10)
    wait_for(lambda: [one.ask("len") for one in two] == [0, 0])
    assert set(closes(*two).values()) == {1}


def test_redis_that_is_killed_and_comes_back_is_told_what_is_true_by_then(two, mongrel2, redis):
    """Meanwhile nobody is dropped; one warning says so; who came and went meanwhile is known to all."""
    with crowd(mongrel2, 40) as clients, ExitStack() as later:
        wait_for(lambda: [one.ask("count") for one in two] == [40, 40])
        redis.kill()
        wait_for(lambda: all(one.said("is away") for one in two))
        for client in clients[:10]:
            client.close()
        more = later.enter_context(crowd(mongrel2, 10))
        assert pinged_again(clients[10:])
        assert ended(clients[10:] + more) == 0
        redis.start()
        wait_for(lambda: [one.ask("count") for one in two if one.said("is back")] == [40, 40], 30, "the recovery")
        wait_for(lambda: [one.ask("len") for one in two] == [40, 40], 30, "the recovery")
        assert pinged_again(clients[10:] + more)
        assert ended(clients[10:] + more) == 0
        assert [one.said("is away") for one in two] == [1, 1]
        # And judged again.
        clients[10].answers = False
        wait_for(lambda: clients[10].ended)


def test_a_redis_that_stands_still_drops_nobody(two, mongrel2, redis):
    """Longer than any key lives, and longer than two intervals."""
    with crowd(mongrel2, 40) as clients:
        wait_for(lambda: [one.ask("count") for one in two] == [40, 40])
        redis.pause()
        try:
            wait_for(lambda: all(one.said("is away") for one in two))
            assert pinged_again(clients)
        finally:
            redis.resume()
        wait_for(lambda: all(one.said("is back") for one in two))
        assert pinged_again(clients, 3)
        assert ended(clients) == 0
        wait_for(lambda: [one.ask("len") for one in two] == [40, 40])
        clients[0].answers = False
        wait_for(lambda: clients[0].ended, 30)
        assert ended(clients) == 1


def test_a_redis_that_was_emptied_knows_all_again(two, mongrel2, redis):
    """No connection breaks by that, so each process has to see it."""
    with crowd(mongrel2, 40) as clients:
        wait_for(lambda: [one.ask("len") for one in two] == [40, 40])
        two[0].ask("join all", "room")
        wait_for(lambda: [one.ask("count", "room") for one in two] == [40, 40])
        redis.ask("FLUSHALL")
        wait_for(lambda: [one.ask("count") for one in two] == [40, 40])
        wait_for(lambda: [one.ask("count", "room") for one in two] == [40, 40])
        assert pinged_again(clients, 3)
        assert ended(clients) == 0
        clients[0].answers = False
        wait_for(lambda: clients[0].ended, 30)


def test_a_process_that_stands_still_is_not_waited_for_and_nobody_is_dropped_for_it(two, mongrel2):
    """Mongrel2 goes on to give it its share of pongs, which nobody sees."""
    with crowd(mongrel2, 20) as clients:
        wait_for(lambda: [one.ask("len") for one in two] == [20, 20])
        pings = leader(*two)
        still = two[1] if pings is two[0] else two[0]
        still.pause()
        try:
            wait_for(lambda: pings.said("nobody is judged"), 30, "the warning")
            assert pinged_again(clients, 4)
        finally:
            still.resume()
        wait_for(lambda: pings.said("judged by their pongs again"), 30, "the recovery")
        assert pinged_again(clients, 2)
        assert ended(clients) == 0
        clients[0].answers = False
        wait_for(lambda: clients[0].ended, 30)


def test_a_mongrel2_that_restarts_is_a_new_life_for_all(two, mongrel2, redis):
    """Nobody of the old one is known, in any process or in Redis, and those of the new one are."""
    with crowd(mongrel2, 20):
        wait_for(lambda: [one.ask("count") for one in two] == [20, 20])
        old = {key.split(":")[2] for key in redis.names() if key.endswith(":sockets")}
        mongrel2.stop(0)
        wait_for(lambda: [one.ask("len") for one in two] == [0, 0])
    wait_for(lambda: set(closes(*two).values()) == {1} and len(closes(*two)) == 20)
    mongrel2.start()
    wait_for(lambda: all(one.said("joined") >= 2 for one in two))
    with crowd(mongrel2, 10) as clients:
        wait_for(lambda: [one.ask("count") for one in two] == [10, 10])
        wait_for(lambda: [one.ask("len") for one in two] == [10, 10])
        new = {key.split(":")[2] for key in redis.names() if key.endswith(":sockets")}
        assert len(new) == 1 and not new & old
        assert pinged_again(clients)
        assert ended(clients) == 0


def broadcast_over_two_hosts(url: str, count: int) -> None:
    """Two mongrel2 of the same ``send_ident``, each with a process; half of the clients at each."""
    with ExitStack() as stack:
        settings: Any = {"superpoll.max_fd": 10240}
        servers = [stack.enter_context(started(Mongrel2({"/": Handler("rig")}, settings=settings))) for _ in range(2)]
        hosts = stack.enter_context(processes(url, *((one, "single") for one in servers), interval=30.0))
        crowds = [stack.enter_context(crowd(one, count // 2)) for one in servers]
        everybody = crowds[0] + crowds[1]
        wait_for(lambda: [one.ask("count") for one in hosts] == [count, count])
        hosts[0].ask("join all", "room")
        assert hosts[0].ask("broadcast", "one") == count // 2
        assert hosts[1].ask("broadcast", "two") == count // 2
        hosts[1].ask("broadcast", "three", "room")
        wait_for(lambda: all(one.texts[b"one"] and one.texts[b"two"] for one in everybody), 40, "the broadcast")
        wait_for(lambda: all(one.texts[b"three"] for one in crowds[0]), 40, "the broadcast to a group")
        gevent.sleep(0.5)  # what came twice would come now
        assert all(one.texts == {b"one": 1, b"two": 1, b"three": 1} for one in crowds[0])
        assert all(one.texts == {b"one": 1, b"two": 1} for one in crowds[1])


def test_a_broadcast_reaches_each_recipient_on_two_hosts_once(redis):
    """Whoever sends it."""
    broadcast_over_two_hosts(redis.url, 2000)


def test_two_hosts_with_the_same_sender_are_not_taken_for_one_entry(redis):
    """Each process finds out who is connected to the same mongrel2."""
    with ExitStack() as stack:
        servers = [stack.enter_context(started(Mongrel2({"/": Handler("rig")}))) for _ in range(2)]
        places = [(one, "shared") for one in servers for _ in range(2)]
        hosts = stack.enter_context(processes(redis.url, *places))
        crowds = [stack.enter_context(crowd(one, 10)) for one in servers]
        wait_for(lambda: [one.ask("len") for one in hosts] == [10] * 4)
        wait_for(lambda: [one.ask("count") for one in hosts] == [20] * 4)
        hosts[0].ask("broadcast", "all")
        wait_for(lambda: all(one.texts[b"all"] for one in crowds[0] + crowds[1]))
        assert pinged_again(crowds[0] + crowds[1])
        assert {one.texts[b"all"] for one in crowds[0] + crowds[1]} == {1}
