"""What waits at a Node for room in the connection to its relay: it goes in turn, and is bounded."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest
from relay_chain import wait_until

from greentx.relay.messages import parts
from greentx.relay.outbox import MAX_WAITING, Outbox
from greentx.transport import Context

LARGE = bytes(10 * 1024 * 1024)


class Way:
    """An outbox, and what got out of it."""

    def __init__(self, context: Context) -> None:
        self.open = True
        self.sent: list[bytes] = []
        self.outbox = Outbox(context, self.take)

    def take(self, message: bytes) -> bool:
        if self.open:
            self.sent.extend(one.partition(b"\n")[0] for one in parts(message))
        return self.open


@pytest.fixture
def way() -> Iterator[Way]:
    """Such a way, which is open."""
    context = Context("test", lambda: None, linger=0.2)
    found = Way(context)
    yield found
    found.outbox.stop()
    context.close(linger=0)


def test_what_one_round_puts_goes_together(way: Way) -> None:
    """In its order."""
    way.outbox.put(b"1\n")
    assert way.outbox.offer(b"2", b"x", wait=True) and way.outbox.send(b"3", b"", 0)
    assert way.sent == []
    wait_until(lambda: way.sent == [b"1", b"2", b"3"])


def test_what_has_no_room_waits_in_turn(way: Way) -> None:
    """A small one does not overtake a large one; what is told does not wait."""
    way.open = False
    assert way.outbox.send(b"1", LARGE, None)
    waiting = [gevent.spawn(way.outbox.send, name, data, None) for name, data in ((b"2", LARGE), (b"3", b""))]
    gevent.sleep(0)
    assert not way.outbox.offer(b"4", b"", wait=True)
    assert way.outbox.put(b"5\n") and way.outbox.offer(b"6", LARGE, wait=False)
    assert not any(one.ready() for one in waiting)
    way.open = True
    wait_until(lambda: way.sent == [b"1", b"5", b"6", b"2", b"3"])
    assert [one.get(timeout=5) for one in waiting] == [True, True]


def test_one_of_any_size_goes_where_nothing_else_does(way: Way) -> None:
    """It does not count as what was told."""
    huge = bytes(MAX_WAITING + 1)
    for wait in (True, False):
        assert way.outbox.offer(b"1", huge, wait=wait)
        assert way.outbox.put(b"2\n")
        assert not way.outbox.offer(b"3", b"", wait=wait)
        assert way.outbox.flush()
    assert way.sent == [b"1", b"2"] * 2


def test_what_is_told_is_bounded(way: Way) -> None:
    """Nobody waits for it."""
    way.open = False
    assert way.outbox.put(bytes(MAX_WAITING))
    assert not way.outbox.put(b"x")


def test_who_waits_gives_up_where_nothing_goes(way: Way) -> None:
    """Or is killed; those behind it have their turn."""
    way.open = False
    assert way.outbox.send(b"1", LARGE, None)
    killed = gevent.spawn(way.outbox.send, b"2", LARGE, None)
    gevent.sleep(0)
    assert not way.outbox.send(b"3", LARGE, 0.01)
    last = gevent.spawn(way.outbox.send, b"4", b"", None)
    gevent.sleep(0)
    killed.kill()
    assert last.get(timeout=5)
    way.open = True
    wait_until(lambda: way.sent == [b"1", b"4"])


def test_who_is_killed_when_its_turn_has_come_holds_up_nobody(way: Way) -> None:
    """The room that it was to have is the next one's."""
    way.open = False
    assert way.outbox.send(b"1", LARGE, None)
    first = gevent.spawn(way.outbox.send, b"2", LARGE, None)
    second = gevent.spawn(way.outbox.send, b"3", LARGE, None)
    gevent.sleep(0)
    way.open = True
    assert way.outbox.flush()
    first.kill(block=False)
    assert second.get(timeout=5)
    wait_until(lambda: way.sent[-1] == b"3")


def test_the_end_of_the_session_lets_all_go(way: Way) -> None:
    """Nothing of it goes out in the next one."""
    way.open = False
    assert way.outbox.send(b"1", LARGE, None)
    waiting = gevent.spawn(way.outbox.send, b"2", LARGE, None)
    gevent.sleep(0)
    way.outbox.over()
    assert waiting.get(timeout=5)
    way.open = True
    assert way.outbox.send(b"3", b"", None)
    wait_until(lambda: way.sent == [b"3"])
