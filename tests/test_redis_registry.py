"""A registry in a real Redis, with processes and a mongrel2 that are played by the test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.os
import pytest
from redis_rig import RedisServer, redis_server

from greentx import Transceiver
from greentx.backends import client as client_module
from greentx.backends import redis as redis_module
from greentx.backends.client import RedisClient
from greentx.backends.member import Stage
from greentx.backends.records import group_range, read_member, read_record, sid_of, text_of
from greentx.backends.redis import RedisRegistry
from greentx.errors import LocalProtocolError, TransportError
from greentx.protocol.websocket.registry import OPEN, Entry, Registry, Sid
from greentx.protocol.websocket.sharing import Broadcast

SENDER = "entry"
INTERVAL = 0.8


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Let others run until *condition* holds."""
    with gevent.Timeout(seconds, AssertionError(f"it did not happen within {seconds} s")):
        while not condition():
            gevent.sleep(0.005)


class Mongrel2:
    """One that gives notice of numbers that nobody has, to the processes in turn."""

    def __init__(self) -> None:
        self.pulling: list[Process] = []
        self._turn = 0
        self.deaf: set[Process] = set()

    def nudge(self, number: str) -> None:
        """An empty message to *number*."""
        self._turn += 1
        one = self.pulling[self._turn % len(self.pulling)]
        if one not in self.deaf:
            gevent.spawn_raw(one.sharing.notice, one.connection, SimpleNamespace(conn_id=number))


class Elsewhere:
    """What a connection set does with the WebSockets of other processes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.told: dict[str, Callable[..., Any]] = {}
        self.over: list[tuple[Sid, int, str]] = []

    def begin(self, **told: Callable[..., Any]) -> None:
        self.told = told

    def known(self, sid: Sid, path: str, subprotocol: str | None, owner: str) -> Entry:
        entry = self._registry.get(sid)
        if entry is None:
            entry = Entry(sid, path)
            entry.state = OPEN
            entry.subprotocol = subprotocol
            self._registry.owners[sid] = owner
            self._registry.add(entry)
        else:
            self.belongs_to(entry, owner)
        return entry

    def catch_up(self, entry: Entry) -> None:
        """Nothing comes before the news here."""

    def belongs_to(self, entry: Entry, owner: str) -> None:
        if owner:
            self._registry.owners[entry.sid] = owner
        else:
            self._registry.owners.pop(entry.sid, None)

    def ended(self, sid: Sid, code: int, reason: str) -> None:
        self.over.append((sid, code, reason))
        self.forget(sid, code, reason)

    def forget(self, sid: Sid, code: int, reason: str) -> None:
        self._registry.remove(sid)


class Process:
    """One process with one connection set.

    Attributes:
        got: The broadcasts that it was to deliver.
    """

    def __init__(self, url: str, server: Mongrel2, *, shared: bool = True) -> None:
        self.server = server
        self.registry = Registry()
        self.elsewhere = Elsewhere(self.registry)
        self.got: list[Broadcast] = []
        receipts = SimpleNamespace(nudge=server.nudge, known=False)
        link: Any = SimpleNamespace(life=object(), subscribed=True, writer=SimpleNamespace(receipts=receipts))
        sessions = SimpleNamespace(senders={SENDER: SENDER}, elsewhere=self.elsewhere)
        self.connection: Any = SimpleNamespace(sender=SENDER, link=link, sessions=sessions)
        # A namespace has no hash, and is a key here.
        self.connection = _Hashed(self.connection)
        self.sharing = RedisRegistry(url, key_prefix="test", timeout=1.0)
        context = SimpleNamespace(in_hub_thread=lambda: True, forked=False)
        options = SimpleNamespace(shared=shared)
        whole: Any = SimpleNamespace(registry=self.registry, options=options, context=context)
        self.sharing.open(whole, self.got.append, INTERVAL)
        self.registry.watcher = self.sharing
        server.pulling.append(self)
        self.member: Any = self.sharing.entry(self.connection)
        self.sharing.ready(self.connection)

    def let_in(self, conn_id: str, path: str = "/", groups: tuple[str, ...] = ()) -> Entry:
        """A WebSocket begins here."""
        entry = Entry((SENDER, conn_id), path)
        entry.state = OPEN
        self.registry.add(entry)
        for group in groups:
            self.registry.join(entry.sid, group)
        return entry

    def end(self, conn_id: str, code: int = 1000) -> None:
        """One ends here."""
        entry = self.registry.get((SENDER, conn_id))
        assert entry is not None
        entry.ending = (code, "bye")
        self.registry.remove(entry.sid)

    def known(self) -> dict[str, str]:
        """Return the owners of all that are known, by number; ``""`` is this process."""
        return {conn_id: self.registry.owners.get((sender, conn_id), "") for sender, conn_id in self.registry}

    def restarted(self) -> None:
        """Its server went, and another one is there."""
        self.connection.link.life = object()
        for sid in self.registry:
            self.registry.remove(sid)
        self.sharing.lost(self.connection)
        self.sharing.ready(self.connection)

    def census(self) -> bool:
        """Have the leader ask, as the pinger would; returns False, to be asked for again."""
        self.member.watch.census.ask_behind()
        return False

    def die(self) -> None:
        """As by ``kill -9``: nothing is said."""
        self.server.pulling.remove(self)
        assert self.sharing.client is not None
        self.sharing.client.up = False
        self.sharing.stop(0)

    def stop(self) -> None:
        """In order."""
        if self in self.server.pulling:
            self.server.pulling.remove(self)
        self.sharing.stop(1)


class _Hashed:
    def __init__(self, fields: Any) -> None:
        self.__dict__.update(vars(fields))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with redis_server() as server:
        yield server


@pytest.fixture
def start(redis: RedisServer) -> Iterator[Callable[..., Process]]:
    """Starts processes, which are stopped after the test."""
    with ExitStack() as stack:

        def start(server: Mongrel2, **options: Any) -> Process:
            process = Process(redis.url, server, **options)
            stack.callback(process.stop)
            return process

        yield start


def joined(*processes: Process) -> bool:
    """Whether they are in one life, and know each other."""
    return (
        all(
            one.member.stage is Stage.JOINED and len(one.member.watch.members) == len(processes) - 1
            for one in processes
        )
        and len({one.member.changes.records.life for one in processes}) == 1
    )


def leader(*processes: Process) -> Process:
    """Return the one that holds the lease; blocks until there is one."""
    wait_until(lambda: any(one.member.watch.leads for one in processes))
    (found,) = (one for one in processes if one.member.watch.leads)
    return found


# -- which life -------------------------------------------------------------------------------------------------------


def test_processes_that_start_at_once_agree_on_a_life(start):
    """Whichever asks first."""
    server = Mongrel2()
    processes = [start(server) for _ in range(4)]
    wait_until(lambda: joined(*processes))
    leader(*processes)


def test_a_process_that_comes_later_knows_all(start):
    """Paths, subprotocols and groups, too; and what happens from then on."""
    server = Mongrel2()
    first = start(server)
    wait_until(lambda: joined(first))
    for number in range(1200):
        first.let_in(str(number), f"/{number}", groups=("all", "even") if number % 2 == 0 else ("all",))
    first.registry.get((SENDER, "7")).subprotocol = "chat"
    second = start(server)
    wait_until(lambda: joined(first, second) and len(second.registry) == 1200)
    assert set(second.known().values()) == {first.sharing.name}
    assert second.registry.get((SENDER, "1199")).path == "/1199"
    assert second.registry.get((SENDER, "7")).subprotocol == "chat"
    first.let_in("8000").subprotocol = "set behind"
    wait_until(lambda: "8000" in second.known())
    assert second.registry.get((SENDER, "8000")).subprotocol == "set behind"
    first.end("8000")
    wait_until(lambda: len(second.registry.members("even")) == 600)
    second.registry.join((SENDER, "1"), "even")
    first.registry.leave((SENDER, "2"), "all")
    second.end("0", 4000)
    second.let_in("2000")
    wait_until(lambda: "2000" in first.known())
    assert first.elsewhere.over == [((SENDER, "0"), 4000, "bye")]
    wait_until(lambda: second.elsewhere.over == [((SENDER, "8000"), 1000, "bye")])
    assert first.known()["2000"] == second.sharing.name and second.known()["2000"] == ""
    assert first.registry.groups((SENDER, "1")) == ("all", "even")
    wait_until(lambda: second.registry.groups((SENDER, "2")) == ("even",))
    wait_until(lambda: first.registry.count_everywhere() == second.registry.count_everywhere("even") + 600 == 1200)
    assert second.registry.members_everywhere("none") == []


def test_processes_of_two_servers_with_one_name_do_not_mix(start):
    """Only counts, and broadcasts, have both."""
    servers = Mongrel2(), Mongrel2()
    here = [start(servers[0]) for _ in range(2)]
    there = [start(servers[1]) for _ in range(2)]
    wait_until(lambda: joined(*here) and joined(*there))
    here[0].let_in("1")
    there[0].let_in("1")
    wait_until(lambda: here[1].known() and there[1].known())
    assert here[1].known() == {"1": here[0].sharing.name} and there[1].known() == {"1": there[0].sharing.name}
    assert here[0].registry.count_everywhere() == 2


def test_two_that_did_not_find_each_other_become_one_life_by_an_echo(start):
    """None of what either let in is lost by that."""
    server = Mongrel2()
    first = start(server)
    wait_until(lambda: joined(first))
    server.deaf.add(first)
    second = start(server)
    server.deaf.add(second)
    wait_until(lambda: second.member.stage is Stage.JOINED)
    assert second.member.changes.records.life != first.member.changes.records.life
    first.let_in("1")
    second.let_in("2")
    server.deaf.clear()
    wait_until(lambda: first.census() or second.census() or joined(first, second))
    wait_until(lambda: first.known().keys() == second.known().keys() == {"1", "2"})
    assert first.known()["2"] == second.sharing.name and second.known()["1"] == first.sharing.name


def test_a_server_that_restarts_is_a_new_life_and_the_last_one_deletes_the_old_one(start, redis):
    """Both find the new one by themselves."""
    server = Mongrel2()
    processes = [start(server) for _ in range(2)]
    wait_until(lambda: joined(*processes))
    old = processes[0].member.changes.records.life
    processes[0].let_in("1", groups=("room",))
    wait_until(lambda: processes[1].known())
    for process in processes:
        process.restarted()
    wait_until(lambda: joined(*processes))
    assert processes[0].member.changes.records.life != old
    wait_until(lambda: not any(old in name for name in redis.names()))
    assert not processes[0].known() and not processes[1].known()


def test_what_a_process_owned_whose_link_broke_goes_on(start):
    """It comes back to the same life, as the server is the same; and whoever pings then owns it."""
    server = Mongrel2()
    processes = [start(server) for _ in range(2)]
    wait_until(lambda: joined(*processes))
    processes[0].let_in("1")
    wait_until(lambda: processes[1].known())
    life = processes[0].member.changes.records.life
    processes[0].restarted()
    wait_until(lambda: joined(*processes) and sorted(one.known().get("1") == "" for one in processes) == [False, True])
    assert processes[0].member.changes.records.life == life


# -- who is there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["die", "stop"])
@pytest.mark.parametrize("leads", [True, False])
def test_what_a_process_owned_is_taken_over_when_it_ends(start, end, leads):
    """Whoever it was, and however it ended; another one pings then."""
    server = Mongrel2()
    processes = [start(server) for _ in range(3)]
    wait_until(lambda: joined(*processes))
    for number, process in enumerate(processes):
        process.let_in(str(number))
    wait_until(lambda: all(len(one.known()) == 3 for one in processes))
    pings = leader(*processes)
    ends = pings if leads else next(one for one in processes if one is not pings)
    rest = [one for one in processes if one is not ends]
    getattr(ends, end)()
    left = str(processes.index(ends))
    wait_until(lambda: sorted(one.known()[left] == "" for one in rest) == [False, True])
    wait_until(lambda: all(len(one.member.watch.members) == 1 for one in rest))
    leader(*rest)
    assert all(len(one.known()) == 3 for one in rest)


def test_all_agree_who_owns_what_a_process_let_in_while_it_was_held_for_dead(start):
    """Either of the two, whichever came first; one of them does, and nothing is ended for it."""
    server = Mongrel2()
    processes = [start(server) for _ in range(2)]
    wait_until(lambda: joined(*processes))
    pings = leader(*processes)
    other = next(one for one in processes if one is not pings)
    other.let_in("1")
    wait_until(lambda: pings.known())
    pings.member.watch.gone(other.sharing.name, told_all=False)
    for number in range(2, 1002):
        other.let_in(str(number))
    wait_until(lambda: len(pings.known()) == 1001 and pings.known()["1"] == "" and joined(*processes))
    gevent.sleep(INTERVAL)  # no event will do: nothing is to change any more
    mine, theirs = pings.known(), other.known()
    assert len(mine) == len(theirs) == 1001
    assert all((mine[one] == "") is (theirs[one] == pings.sharing.name) for one in mine)
    assert all((theirs[one] == "") is (mine[one] == other.sharing.name) for one in mine)


def test_every_key_expires_and_the_last_process_deletes_all(start, redis):
    """Nothing stays of a prefix that nobody uses."""
    processes = [start(Mongrel2()), start(Mongrel2(), shared=False)]
    wait_until(lambda: joined(processes[0]) and processes[1].sharing.client.up)
    for process in processes:
        process.let_in("1", groups=("room",))
    wait_until(lambda: processes[0].registry.count_everywhere("room") == 2)
    leader(processes[0])
    names = redis.names()
    assert {name.split(":")[-1] for name in names if "node:" not in name} == {
        *("lives", "nodes", "sockets", "groups", "lease")
    }
    wait_until(lambda: all(0 < redis.ask("PTTL", name) <= 10_000 for name in names & redis.names()))
    for process in processes:
        process.stop()
    assert redis.names() == set()


# -- pongs ------------------------------------------------------------------------------------------------------------


def test_a_thousand_pongs_take_less_than_three_round_trips(start, redis):
    """They are told when the leader asks, or when there are many."""
    server = Mongrel2()
    processes = [start(server) for _ in range(2)]
    wait_until(lambda: joined(*processes))
    for number in range(10_000):
        processes[0].let_in(str(number))
    wait_until(lambda: len(processes[1].known()) == 10_000)
    # Both share this test's thread, which was busy for longer than the lease lasts.
    gevent.sleep(INTERVAL)
    pings = leader(*processes)
    other = next(one for one in processes if one is not pings)
    entries = pings.registry.members()
    for entry in entries:
        entry.awaits_pong = True
    sids, before = list(other.registry), other.sharing.client.round_trips
    for start_ in range(0, 10_000, 500):
        for sid in sids[start_ : start_ + 500]:
            other.elsewhere.told["note"](sid)
        gevent.sleep(0.01)  # as they come over some time
    pings.census()
    wait_until(lambda: not any(entry.awaits_pong for entry in entries))
    # With those for the beats of this time.
    assert other.sharing.client.round_trips - before <= 3 * 10


def test_pongs_are_judged_when_each_process_has_told_and_not_while_one_is_deaf(start, caplog):
    """As one that stands still, or that has no Redis: its pongs are lost."""
    server = Mongrel2()
    processes = [start(server) for _ in range(2)]
    wait_until(lambda: joined(*processes))
    pings = leader(*processes)
    other = next(one for one in processes if one is not pings)
    wait_until(lambda: pings.census() or pings.member.judges)
    assert pings.member.pings and not other.member.pings
    entry = pings.let_in("1")
    server.deaf.add(other)
    wait_until(lambda: pings.census() or not pings.member.judges)
    entry.awaits_pong = True
    assert "nobody is judged by missing pongs for now" in caplog.text
    server.deaf.clear()
    wait_until(lambda: pings.member.judges)
    assert not entry.awaits_pong


# -- broadcasts -------------------------------------------------------------------------------------------------------


def test_a_broadcast_comes_to_each_other_process_once(start):
    """As it was: payload, opcode, group, and who is left out."""
    processes = [start(Mongrel2()), start(Mongrel2()), start(Mongrel2(), shared=False)]
    wait_until(lambda: all(one.sharing.client.up for one in processes))
    sent = [
        Broadcast(b"\x00\n\xff{}", 2, "a \x00 group", frozenset({(SENDER, "1"), ("other", "2")})),
        Broadcast("Zürich".encode(), 1, None, frozenset()),
        Broadcast(b"", 1, "", frozenset()),
    ]
    for one in sent:
        processes[0].sharing.broadcast(one)
    wait_until(lambda: len(processes[1].got) == len(processes[2].got) == 3)
    assert processes[1].got == processes[2].got == sent and processes[0].got == []


def test_a_broadcast_that_is_too_long_is_refused(start):
    """It would wait forever."""
    process = start(Mongrel2())
    wait_until(lambda: process.sharing.client.up)
    with pytest.raises(LocalProtocolError, match="limit 4194304"):
        process.sharing.broadcast(Broadcast(b"x" * redis_module.MAX_KEPT_BYTES, 1))
    process.sharing.broadcast(Broadcast(b"x" * (redis_module.MAX_KEPT_BYTES - 200), 1))
    assert process.sharing.client.ask("PING") == b"PONG"


def test_broadcasts_wait_for_redis_a_little_and_old_ones_are_dropped(start, redis, monkeypatch, caplog):
    """None comes twice, though nobody knows what became of those that were under way."""
    processes = [start(Mongrel2()) for _ in range(2)]
    wait_until(lambda: all(one.sharing.client.up for one in processes))
    redis.kill()
    wait_until(lambda: not any(one.sharing.client.up for one in processes))
    processes[0].sharing.broadcast(Broadcast(b"too old", 1))
    monkeypatch.setattr(redis_module, "KEEP_SECONDS", 0.5)
    gevent.sleep(0.6)  # no event will do: it is to become too old
    monkeypatch.setattr(redis_module, "KEEP_SECONDS", 60.0)
    processes[0].sharing.broadcast(Broadcast(b"dropped", 1))
    monkeypatch.setattr(redis_module, "MAX_KEPT_BYTES", 200)
    processes[0].sharing.broadcast(Broadcast(b"kept", 1))
    processes[0].sharing.broadcast(Broadcast(b"kept, too", 1))
    redis.start()
    wait_until(lambda: all(one.sharing.client.up for one in processes))
    processes[0].sharing.broadcast(Broadcast(b"new", 1))
    wait_until(lambda: processes[1].got and processes[1].got[-1].payload == b"new")
    assert b"too old" not in [one.payload for one in processes[1].got]
    assert len({one.payload for one in processes[1].got}) == len(processes[1].got)
    assert "2 broadcasts did not reach other processes: Redis was away" in caplog.text


# -- Redis comes and goes ---------------------------------------------------------------------------------------------


def test_while_redis_is_away_the_process_goes_on_and_one_warning_says_so(start, redis, caplog):
    """Who asks for what only Redis knows is told; when it is back, it is told what is true by then."""
    process = start(Mongrel2(), shared=False)
    process.let_in("1", groups=("room",))
    wait_until(lambda: process.registry.watcher.trouble == "" and process.registry.count_everywhere("room") == 1)
    redis.kill()
    wait_until(lambda: process.sharing.trouble)
    with pytest.raises(TransportError, match="is away"):
        process.registry.count_everywhere()
    process.end("1")
    process.let_in("2", groups=("room",))
    gevent.sleep(1.0)  # no event will do: it is to try several times
    redis.start()
    wait_until(lambda: not process.sharing.trouble)
    wait_until(lambda: process.registry.members_everywhere("room") == [(SENDER, "2")])
    assert process.registry.members_everywhere() == [(SENDER, "2")]
    assert caplog.text.count("is away") == 1


def test_a_redis_that_does_not_answer_is_away_and_the_hub_goes_on(start, redis):
    """Though nothing is monkey-patched."""
    process = start(Mongrel2())
    wait_until(lambda: process.member.stage is Stage.JOINED)
    redis.pause()
    try:
        latest, longest = time.monotonic(), 0.0
        while process.sharing.client.up:
            gevent.sleep(0.005)
            now = time.monotonic()
            latest, longest = now, max(longest, now - latest)
        assert longest < 0.9  # the timeout is 1 s
        assert process.member.stage is Stage.AWAY and process.member.pings and not process.member.judges
    finally:
        redis.resume()
    wait_until(lambda: process.member.stage is Stage.JOINED)


def test_a_redis_that_is_not_there_at_first_is_waited_for(redis):
    """The process serves meanwhile."""
    redis.kill()
    process = Process(redis.url, Mongrel2())
    try:
        process.let_in("1")
        assert process.member.stage is Stage.AWAY and process.member.pings
        redis.start()
        wait_until(lambda: process.member.stage is Stage.JOINED)
        wait_until(lambda: process.registry.count_everywhere() == 1)
    finally:
        process.stop()


def test_a_redis_that_was_emptied_is_told_all_again(start, redis):
    """By each process what it owns; none of it is ended for that."""
    server = Mongrel2()
    processes = [start(server) for _ in range(2)]
    wait_until(lambda: joined(*processes))
    for number, process in enumerate(processes):
        process.let_in(str(number), groups=("room",))
    wait_until(lambda: all(len(one.known()) == 2 for one in processes))
    redis.ask("FLUSHALL")
    wait_until(lambda: processes[0].registry.count_everywhere("room") == 2)
    third = start(server)
    wait_until(lambda: joined(*processes, third) and len(third.known()) == 2)
    assert all(len(one.known()) == 2 for one in processes)
    leader(*processes, third)


def test_more_than_may_wait_is_dropped_and_all_is_told_anew(start, redis, monkeypatch):
    """It counts as if Redis had been away."""
    process = start(Mongrel2())
    wait_until(lambda: process.member.stage is Stage.JOINED)
    monkeypatch.setattr(client_module, "MAX_QUEUED_BYTES", 20_000)
    for number in range(1000):
        process.let_in(str(number))
    assert process.registry.watcher is process.sharing
    wait_until(lambda: not process.sharing.client.up)
    monkeypatch.setattr(client_module, "MAX_QUEUED_BYTES", 16_000_000)
    wait_until(lambda: process.member.stage is Stage.JOINED)
    wait_until(lambda: process.registry.count_everywhere() == 1000)


def test_a_forked_child_leaves_the_connection_to_its_parent(start, redis, caplog):
    """Though it goes on to run greenlets; two on one connection would read each other's answers."""
    process = start(Mongrel2())
    wait_until(lambda: process.member.stage is Stage.JOINED)
    trips = process.sharing.client.round_trips
    child = os.fork()
    if child == 0:
        try:
            gevent.sleep(0.5)
            os._exit(process.sharing.client.up or process.sharing.client.round_trips > trips + 1)
        finally:
            os._exit(9)
    assert gevent.os.waitpid(child, 0)[1] == 0
    for number in range(20):
        process.let_in(str(number))
        assert process.registry.count_everywhere() == number + 1
    assert "away" not in caplog.text and process.sharing.client.up


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"[]", b'{"n": 1}', b'{"n": "x", "l": "LIFE", "o": []}', b'{"n": "x", "l": 1, "o": [[[]]]}'),
        b'{"n": "x", "l": "LIFE", "o": [["open", 1]]}',
        b'{"n": "x", "l": "LIFE", "o": [["own", true, true, [["sid", "/", null, []]]]]}',
    ],
)
def test_what_means_nothing_is_ignored_and_named(start, redis, caplog, data):
    """By whoever it was published; the process goes on."""
    process = start(Mongrel2())
    wait_until(lambda: process.member.stage is Stage.JOINED)
    life = process.member.changes.records.life
    for channel in ("test:all", f"test:{SENDER}", f"test:{SENDER}:{life}:leader"):
        redis.ask("PUBLISH", channel, data.replace(b"LIFE", life.encode()))
    wait_until(lambda: "ignored what means nothing here" in caplog.text)
    process.let_in("1")
    wait_until(lambda: process.registry.count_everywhere() == 1)
    assert process.sharing.client.up


# -- what is said wrongly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("http://localhost", {}, "redis://"),
        ("rediss://localhost", {}, "monkey-patched"),
        ("redis://localhost", {"key_prefix": ""}, "key_prefix"),
        ("redis://localhost", {"key_prefix": "a b"}, "key_prefix"),
        ("redis://localhost", {"timeout": 0}, "timeout"),
    ],
)
def test_a_mistake_is_told_where_it_was_made(url, options, match):
    """Not when Redis is first needed."""
    with pytest.raises(ValueError, match=match):
        RedisRegistry(url, **options)


def test_a_registry_belongs_to_one_transceiver_that_runs(redis):
    """The next one may have it afterwards."""
    registry = RedisRegistry(redis.url)
    assert registry.trouble == "" and "not running" in repr(registry)
    with pytest.raises(TransportError, match="not running"):
        registry.count(None)
    options: dict[str, Any] = {"rep_port": False, "registry": registry, "linger": 0.1}
    for _ in range(2):
        with Transceiver("a", None, "ipc:///nowhere", **options) as trans:
            wait_until(lambda: registry.client is not None and registry.client.up)
            assert trans.websockets.count_everywhere() == 0
            with pytest.raises(TransportError, match="make one for each"):
                Transceiver("b", None, "ipc:///nowhere", **options).start()
            assert registry.client is not None and registry.client.up
        assert trans.websockets.count_everywhere() == 0


def test_a_password_is_not_shown():
    """Logs and errors name the host."""
    client = RedisClient("redis://user:secret@redis.example:7000/1", 1.0)
    assert "redis.example:7000" in repr(client) and "secret" not in repr(client)
    with pytest.raises(TransportError, match=r"redis\.example:7000 is away"):
        client.ask("PING")


def test_a_command_that_is_refused_counts_as_away_and_is_named(redis, caplog):
    """As where a user may not use it."""
    client = RedisClient(redis.url, 1.0)
    client.start([])
    try:
        wait_until(lambda: client.up)
        with pytest.raises(TransportError):
            client.ask("NONSENSE")
        wait_until(lambda: "NONSENSE was refused" in caplog.text)
        wait_until(lambda: client.up)
        assert client.ask("PING") == b"PONG"
    finally:
        client.stop(1)


# -- records ----------------------------------------------------------------------------------------------------------

GROUPS = ["", "room", "a b", "\0", "\1", "\1\1", "\0\0", "\1\2", "ü", "\udc80", "room\0", "room\1", "roo"]


def test_any_name_of_a_group_can_be_told_from_any_other(redis, start):
    """Each is found alone."""
    process = start(Mongrel2(), shared=False)
    wait_until(lambda: process.sharing.client.up)
    for number, group in enumerate(GROUPS):
        process.let_in(str(number), groups=(group,))
    wait_until(lambda: process.registry.count_everywhere() == len(GROUPS))
    for number, group in enumerate(GROUPS):
        assert process.registry.members_everywhere(group) == [(SENDER, str(number))]
        assert process.registry.count_everywhere(group) == 1
        start_, end = group_range(group)
        assert start_[1:] < end[1:]


@pytest.mark.parametrize("text", ["", "one", "a b c"])
def test_a_text_that_is_no_sid_is_refused(text):
    """Redis may have anything."""
    with pytest.raises(ValueError):
        sid_of(text)
    with pytest.raises(ValueError):
        read_member(b"group\0" + text.encode())
    assert sid_of(text_of(("a", "1")).encode()) == ("a", "1")


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'["a", "b"]', b'["a", 1, null]', b"[1, 2, 3]", b"\xff"])
def test_a_record_that_is_none_is_refused(value):
    """As above."""
    with pytest.raises(ValueError):
        read_record(value)
