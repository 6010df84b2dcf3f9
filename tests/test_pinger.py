"""When pings go out, and when a missing pong counts, with connection sets that only note what they are told."""

from __future__ import annotations

import itertools
import time
from typing import Any

import gevent
import pytest

from greentx.errors import SendTimeout
from greentx.pinger import Pinger
from greentx.registry import OPEN, Entry, Registry

SENDER = "test"


class Sessions:
    """Notes the pings."""

    def __init__(self) -> None:
        self.senders = {SENDER: SENDER}
        self.pings: list[tuple[float, int, bool]] = []
        self.failure: Exception | None = None
        self.blocks = 0.0

    def ping(self, entries: list[Entry], frame: bytes, sender: str, *, judge: bool = True) -> None:
        assert frame.startswith(b"\x89")
        assert len(entries) <= 128
        self.pings.append((time.monotonic(), len(entries), judge))
        if self.blocks:
            gevent.sleep(self.blocks)
        if self.failure is not None:
            raise self.failure


class Connection:
    """A connection set, as the pinger sees it."""

    def __init__(self) -> None:
        self.ready = True
        self.sessions = Sessions()
        self.drained_at = float("inf")
        self.caught = False
        self.kept_alive = 0

    def caught_up(self) -> bool:
        return self.caught

    def keep_alive(self) -> None:
        self.kept_alive += 1


def filled(count: int) -> Registry:
    registry = Registry()
    for number in range(count):
        entry = Entry((SENDER, str(number)))
        entry.state = OPEN
        registry.add(entry)
    return registry


def run(pinger: Pinger, seconds: float) -> None:
    pinger.start()
    try:
        gevent.sleep(seconds)
    finally:
        pinger.stop()
    pinger.stop()


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_an_interval_that_is_none_is_refused(interval: float) -> None:
    """The message names the option."""
    with pytest.raises(ValueError, match="ping_timeout"):
        Pinger(Registry(), list, interval)


def test_everybody_is_pinged_once_an_interval_and_the_pings_are_spread() -> None:
    """Sixteen batches, over the whole of the interval, not in one burst."""
    connection = Connection()
    pinger = Pinger(filled(2048), lambda: [connection], 0.4)
    started = time.monotonic()
    run(pinger, 0.44)
    first_round = [moment - started for moment, count, _ in connection.sessions.pings if count == 128][:16]
    assert len(first_round) == 16
    quarters = [sum(quarter * 0.1 <= moment < quarter * 0.1 + 0.1 for moment in first_round) for quarter in range(4)]
    assert max(quarters) <= 9
    assert all(judge for _, _, judge in connection.sessions.pings)


def test_a_set_without_a_server_is_left_alone() -> None:
    """Nobody is there to ask, nor to be judged."""
    connection = Connection()
    connection.ready = False
    run(Pinger(filled(1), lambda: [connection], 0.05), 0.2)
    assert connection.sessions.pings == [] and connection.kept_alive == 0


def test_nobody_is_judged_by_what_was_not_seen() -> None:
    """While the receiver is behind, pings wait an interval more, and then go out without judging."""
    connection = Connection()
    connection.drained_at = float("-inf")
    run(Pinger(filled(1), lambda: [connection], 0.1), 0.35)
    assert connection.sessions.pings
    assert not any(judge for _, _, judge in connection.sessions.pings)
    connection.sessions.pings.clear()
    connection.caught = True
    run(Pinger(filled(1), lambda: [connection], 0.1), 0.35)
    assert len(connection.sessions.pings) >= 2
    assert all(judge for _, _, judge in connection.sessions.pings)


def test_a_ping_that_was_held_up_gives_its_answer_a_whole_interval() -> None:
    """A full pipe blocks the pinger; the time counts from when the ping was through."""
    connection = Connection()
    connection.sessions.blocks = 0.15
    run(Pinger(filled(1), lambda: [connection], 0.1), 0.6)
    moments = [moment for moment, _, _ in connection.sessions.pings]
    assert len(moments) >= 2
    assert all(later - earlier >= 0.25 for earlier, later in itertools.pairwise(moments))


@pytest.mark.parametrize("failure", [SendTimeout("full"), RuntimeError("a bug")])
def test_a_round_that_fails_does_not_end_the_pinger(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next one comes."""
    connection = Connection()
    connection.sessions.failure = failure
    run(Pinger(filled(1), lambda: [connection], 0.05), 0.3)
    assert len(connection.sessions.pings) >= 2
    assert "round of pings" in caplog.text


def test_waiting_requests_are_kept_alive_once_an_interval() -> None:
    """They have no pongs; the set sends control messages for them."""
    connection = Connection()
    pinger: Any = Pinger(Registry(), lambda: [connection], 0.05)
    run(pinger, 0.18)
    assert 2 <= connection.kept_alive <= 4
    assert connection.kept_alive == pinger.rounds
    assert f"{pinger.rounds} rounds" in repr(pinger)
