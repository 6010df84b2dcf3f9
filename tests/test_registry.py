"""The live WebSockets: which are there, in which batch, in which group."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentx.protocol.websocket import sharing
from greentx.protocol.websocket.registry import BATCH_SIZE, CLOSED, CONNECTING, Entry, Registry


def filled(count: int, sender: str = "U") -> Registry:
    registry = Registry()
    for number in range(count):
        registry.add(Entry((sender, str(number))))
    return registry


def test_a_registry_knows_who_is_there():
    """len, iteration, in and get."""
    registry = filled(3)
    assert len(registry) == 3
    assert list(registry) == [("U", "0"), ("U", "1"), ("U", "2")]
    assert ("U", "1") in registry
    assert ("V", "1") not in registry
    assert registry.get(("U", "1")).sid == ("U", "1")
    assert registry.get(("U", "9")) is None
    assert repr(registry) == "<Registry 3 WebSockets, 0 groups>"


def test_iteration_bears_changes():
    """Whoever walks over the sids may close connections on the way."""
    registry = filled(5)
    for sid in registry:
        registry.remove(sid)
    assert len(registry) == 0


def test_an_entry_shows_itself():
    """Its names, its path and its state."""
    entry = Entry(("U", "7"), "/chat")
    assert (entry.sender, entry.conn_id, entry.path, entry.state) == ("U", "7", "/chat", CONNECTING)
    assert repr(entry) == "<Entry U 7 /chat CONNECTING>"


def test_a_sid_is_added_once():
    """Two live WebSockets of one number cannot be."""
    registry = filled(1)
    with pytest.raises(ValueError, match="in the registry already"):
        registry.add(Entry(("U", "0")))


def test_removing_is_once():
    """The entry comes back, CLOSED; then there is none."""
    registry = filled(1)
    entry = registry.remove(("U", "0"))
    assert entry.state == CLOSED
    assert registry.remove(("U", "0")) is None
    assert registry.senders() == []
    assert registry.batches("U") == []


def test_batches_have_at_most_128():
    """What goes into one message stands in one list."""
    registry = filled(300)
    assert [len(batch) for batch in registry.batches("U")] == [128, 128, 44]
    assert [entry.conn_id for entry in registry.of_sender("U")] == [str(number) for number in range(300)]


def test_a_gap_in_a_full_batch_is_filled():
    """Connections come and go without batches of one piling up."""
    registry = filled(2 * BATCH_SIZE)
    registry.remove(("U", "5"))
    registry.add(Entry(("U", "new")))
    assert [len(batch) for batch in registry.batches("U")] == [128, 128]


def test_an_emptied_batch_goes_away():
    """The last one too, and with it the sender."""
    registry = filled(BATCH_SIZE + 1)
    registry.remove(("U", str(BATCH_SIZE)))
    assert [len(batch) for batch in registry.batches("U")] == [128]
    for number in range(BATCH_SIZE):
        registry.remove(("U", str(number)))
    assert registry.senders() == []


def test_senders_are_apart():
    """A restart of one server leaves the other's connections alone."""
    registry = filled(2)
    registry.add(Entry(("V", "0")))
    assert sorted(registry.senders()) == ["U", "V"]
    assert [entry.sid for entry in registry.of_sender("V")] == [("V", "0")]
    assert registry.of_sender("W") == []


def test_groups_have_members():
    """join and leave, twice as well as once."""
    registry = filled(3)
    for _ in range(2):
        registry.join(("U", "0"), "a")
        registry.join(("U", "1"), "a")
        registry.join(("U", "0"), "b")
    assert registry.groups(("U", "0")) == ("a", "b")
    assert [entry.conn_id for entry in registry.members("a")] == ["0", "1"]
    assert len(registry.members()) == 3
    assert repr(registry) == "<Registry 3 WebSockets, 2 groups>"
    for _ in range(2):
        registry.leave(("U", "0"), "a")
    assert [entry.conn_id for entry in registry.members("a")] == ["1"]
    registry.leave(("U", "1"), "a")
    assert registry.members("a") == []
    assert registry.groups(("U", "0")) == ("b",)


def test_the_end_leaves_all_groups():
    """One that has gone is not broadcast to."""
    registry = filled(2)
    registry.join(("U", "0"), "a")
    registry.join(("U", "1"), "a")
    registry.join(("U", "0"), "b")
    registry.remove(("U", "0"))
    assert [entry.conn_id for entry in registry.members("a")] == ["1"]
    assert registry.members("b") == []
    assert registry.groups(("U", "0")) == ()
    registry.leave(("U", "0"), "a")


def test_one_that_is_not_there_joins_nothing():
    """A KeyError names the sid."""
    with pytest.raises(KeyError, match="9"):
        filled(1).join(("U", "9"), "a")


@given(st.lists(st.tuples(st.sampled_from("UV"), st.integers(0, 300), st.booleans()), max_size=600), st.integers())
def test_batches_hold_exactly_the_live_ones(steps, seed):
    """Whatever comes and goes, each live entry stands in one batch of its sender."""
    registry = Registry()
    live: dict[tuple[str, str], Entry] = {}
    for sender in "UV":  # enough for full batches
        for number in random.Random(seed).sample(range(301), 200):
            live[sender, str(number)] = Entry((sender, str(number)))
            registry.add(live[sender, str(number)])
    for sender, number, add in steps:
        sid = (sender, str(number))
        if add and sid not in live:
            live[sid] = Entry(sid)
            registry.add(live[sid])
        elif not add:
            assert registry.remove(sid) is live.pop(sid, None)
    found = [entry for sender in registry.senders() for batch in registry.batches(sender) for entry in batch]
    assert len(found) == len(live) == len(registry)
    assert {entry.sid for entry in found} == set(live)
    for sender in registry.senders():
        sizes = [len(batch) for batch in registry.batches(sender)]
        assert all(1 <= size <= BATCH_SIZE for size in sizes)


class Watcher(sharing.Watcher):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def entry_added(self, entry: Entry) -> None:
        self.told.append(("added", entry.conn_id))

    def entry_removed(self, entry: Entry) -> None:
        self.told.append(("removed", entry.conn_id, entry.groups))

    def entry_joined(self, entry: Entry, group: str) -> None:
        self.told.append(("joined", entry.conn_id, group))

    def entry_left(self, entry: Entry, group: str) -> None:
        self.told.append(("left", entry.conn_id, group))

    def count(self, group: str | None) -> int:
        return 7

    def members(self, group: str | None) -> list[tuple[str, str]]:
        return [("elsewhere", "1")]


def test_a_watcher_is_told_of_each_change_once():
    """Of what changes nothing it is not told; of an end while the groups are known."""
    registry = Registry()
    watcher = registry.watcher = Watcher()
    entry = Entry(("a", "1"))
    registry.add(entry)
    for _ in range(2):
        registry.join(entry.sid, "room")
        registry.join(entry.sid, "hall")
    for _ in range(2):
        registry.leave(entry.sid, "hall")
    registry.owners[entry.sid] = "another"
    for _ in range(2):
        registry.remove(entry.sid)
    assert watcher.told == [
        ("added", "1"),
        ("joined", "1", "room"),
        ("joined", "1", "hall"),
        ("left", "1", "hall"),
        ("removed", "1", ("room",)),
    ]
    assert registry.owners == {}


def test_without_a_watcher_everywhere_is_here():
    """With one it is asked."""
    registry = Registry()
    for number in range(3):
        registry.add(Entry(("a", str(number))))
    registry.join(("a", "1"), "room")
    assert registry.count_everywhere() == 3 and registry.count_everywhere("room") == 1
    assert registry.members_everywhere("room") == [("a", "1")] and len(registry.members_everywhere()) == 3
    registry.watcher = Watcher()
    assert registry.count_everywhere("room") == 7 and registry.members_everywhere() == [("elsewhere", "1")]
