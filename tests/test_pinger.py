"""When pings go out, and when a missing pong counts, with connection sets that only note what they are told."""

from __future__ import annotations

import itertools
import time
from typing import Any

import gevent
import pytest

from greentx import Transceiver
from greentx.errors import ForkError, SendTimeout
from greentx.handler.pinger import Pinger
from greentx.protocol.flow import Pacer, ReceiptRules
from greentx.protocol.websocket.registry import OPEN, Entry, Registry

SENDER = "test"


class WebSockets:
    """Notes the pings."""

    def __init__(self, sender: str) -> None:
        self.senders = {sender: sender}
        self.pings: list[tuple[float, int, bool]] = []
        self.failure: Exception | None = None
        self.blocks = 0.0
        self.killed = 0

    def ping(
        self, entries: list[Entry], frame: bytes, sender: str, *, judge: bool = True, sending: object = None
    ) -> None:
        assert frame.startswith(b"\x89")
        assert len(entries) <= 128
        self.pings.append((time.monotonic(), len(entries), judge))
        if self.blocks:
            try:
                gevent.sleep(self.blocks)
            except gevent.GreenletExit:
                self.killed += 1
                raise
        if self.failure is not None:
            raise self.failure


class Receipts:
    """Those of a server that gives none, until a test says otherwise; *rules* are told what is answered."""

    def __init__(self) -> None:
        self.known: bool | None = False
        self.usable = True
        self.rules = ReceiptRules(Pacer(), possible=True)
        self.questions = 0

    def ask_behind(self) -> int:
        self.questions += 1
        if self.rules.awaited:
            return self.rules.ask_next()
        self.rules.ask()
        return self.rules.questions

    def probe(self) -> None:
        """Nothing comes of it."""

    def answer(self) -> None:
        """What was asked for is there."""
        if self.rules.awaited:
            self.rules.notice(self.rules.awaited)


class Connection:
    """A connection set, as the pinger sees it."""

    def __init__(self, sender: str = SENDER) -> None:
        self.ready = self.subscribed = True
        self.sessions = WebSockets(sender)
        self.link = self.intake = self.writer = self
        self.receipts = Receipts()
        self.drained_at = float("inf")
        self.caught = False
        self.kept_alive = 0
        self.orphans = self.progress = self.shares = None

    def caught_up(self) -> bool:
        return self.caught

    def keep_alive(self) -> None:
        self.kept_alive += 1


def filled(count: int, *senders: str) -> Registry:
    registry = Registry()
    for sender in senders or (SENDER,):
        for number in range(count):
            entry = Entry((sender, str(number)))
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
        Transceiver("u", None, "ipc:///nowhere", rep_port=False, ping_timeout=interval)


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


def test_a_server_that_went_during_a_round_is_not_asked() -> None:
    """Its receipts would be waited for by nobody but a timer."""
    connection = Connection()
    connection.receipts.known = True
    connection.subscribed = False
    run(Pinger(filled(1), lambda: [connection], 0.05), 0.2)
    assert connection.receipts.questions == 0
    connection.subscribed = True
    run(Pinger(filled(1), lambda: [connection], 0.05), 0.2)
    assert connection.receipts.questions > 0


def test_a_forked_child_pings_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The pinger ends when its context cannot be used any more; a round that was under way ends quietly."""
    connection = Connection()
    connection.sessions.failure = ForkError("the parent's")
    pinger = Pinger(filled(1), lambda: [connection], 0.05)
    pinger.start()
    try:
        until_pinged(connection, 1)
        connection.receipts.usable = False
        gevent.sleep(0.05)
        count, rounds = len(connection.sessions.pings), pinger.rounds
        gevent.sleep(0.2)
        assert (len(connection.sessions.pings), pinger.rounds) == (count, rounds)
    finally:
        pinger.stop()
    assert caplog.text == ""


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


def answering(connection: Connection) -> gevent.Greenlet[..., None]:
    """Answer every question soon, as a server that moves does."""

    def answer() -> None:
        while True:
            connection.receipts.answer()
            gevent.sleep(0.001)

    return gevent.spawn(answer)


def until_pinged(connection: Connection, times: int) -> None:
    with gevent.Timeout(20, AssertionError(f"{connection.sessions.pings}, not {times} times")):
        while len(connection.sessions.pings) < times:
            gevent.sleep(0.001)


def test_pongs_are_due_an_interval_after_the_ping_has_left_and_only_while_the_server_moves() -> None:
    """A receipt says that it has left; while none comes, nobody is pinged again, nor judged."""
    connection = Connection()
    connection.receipts.known = True
    pinger = Pinger(filled(1), lambda: [connection], 0.1)
    moving = answering(connection)
    pinger.start()
    try:
        until_pinged(connection, 3)
        moving.kill()
        for _ in range(3):
            count = len(connection.sessions.pings)
            gevent.sleep(0.5)  # five intervals, in which nothing is to happen (but for a ping that was due just then)
            assert len(connection.sessions.pings) <= count + 1
            answered_at = time.monotonic()
            moving = answering(connection)
            until_pinged(connection, count + 2)
            moving.kill()
            # Nearly an interval, for those who could not answer before: a quarter of it may have passed unseen.
            assert connection.sessions.pings[-1][0] - answered_at >= 0.07
        assert all(judge for _, _, judge in connection.sessions.pings)
    finally:
        moving.kill()
        pinger.stop()


def test_receipts_that_cannot_be_seen_make_nobody_silent() -> None:
    """The application does not read, so that no pong is seen either: pings go on, and nobody is judged."""
    connection = Connection()
    connection.receipts.known = True
    pinger = Pinger(filled(1), lambda: [connection], 0.1)
    pinger.start()
    try:
        with gevent.Timeout(20):
            while len(connection.sessions.pings) < 4:
                if connection.receipts.rules.awaited:
                    connection.receipts.rules.overdue(can_come=False, pipe_full=False)
                gevent.sleep(0.001)
        assert not any(judge for _, _, judge in connection.sessions.pings)
        moving = answering(connection)
        count = len(connection.sessions.pings)
        until_pinged(connection, count + 2)
        moving.kill()
        assert connection.sessions.pings[-1][2]
    finally:
        pinger.stop()


def test_a_server_that_gives_no_receipts_any_more_is_pinged_all_the_same() -> None:
    """What was waited for is not; new intervals begin."""
    connection = Connection()
    connection.receipts.known = True
    pinger = Pinger(filled(1), lambda: [connection], 0.05)
    pinger.start()
    try:
        until_pinged(connection, 1)
        connection.receipts.known = False
        until_pinged(connection, 4)
    finally:
        pinger.stop()


def test_a_ping_that_was_held_up_gives_its_answer_a_whole_interval() -> None:
    """A full pipe blocks the pinger; the time counts from when the ping was through."""
    connection = Connection()
    connection.sessions.blocks = 0.15
    run(Pinger(filled(1), lambda: [connection], 0.1), 0.6)
    moments = [moment for moment, _, _ in connection.sessions.pings]
    assert len(moments) >= 2
    assert all(later - earlier >= 0.25 for earlier, later in itertools.pairwise(moments))


def test_a_set_that_is_stuck_does_not_hold_up_the_others() -> None:
    """Each has a greenlet of its own, which ends with the pinger."""
    stuck, other = Connection("stuck"), Connection("other")
    stuck.sessions.blocks = 60
    run(Pinger(filled(1, "stuck", "other"), lambda: [stuck, other], 0.05), 0.5)
    assert len(stuck.sessions.pings) == 1 and stuck.sessions.killed == 1
    assert len(other.sessions.pings) >= 3 and other.kept_alive >= 3


def test_a_set_that_was_removed_while_it_was_stuck_is_left_alone() -> None:
    """Its greenlet ends, while the pinger goes on; a set that comes later is pinged."""
    stuck, later = Connection("stuck"), Connection("later")
    stuck.sessions.blocks = 60
    sets = [stuck]
    pinger = Pinger(filled(1, "stuck", "later"), lambda: sets, 0.05)
    pinger.start()
    try:
        with gevent.Timeout(5):
            while not stuck.sessions.pings:
                gevent.sleep(0.01)
            sets[:] = [later]
            while not (stuck.sessions.killed and later.sessions.pings):
                gevent.sleep(0.01)
    finally:
        pinger.stop()
    assert len(stuck.sessions.pings) == 1


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
