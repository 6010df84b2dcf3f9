"""WebSockets that another process on the handler entry let in, with a writer and timers that only note what is done."""

from __future__ import annotations

from typing import Any

import pytest
from websockets_bench import SENDER, Bench

from greentx.handler import delays
from greentx.handler.elsewhere import NEWS_SECONDS
from greentx.protocol.request import Request
from greentx.protocol.websocket.frames import Opcode, build_close, build_frame
from greentx.protocol.websocket.handshake import new_key, request_headers
from greentx.protocol.websocket.machine import close_frame
from greentx.protocol.websocket.registry import Entry, Sid

HEADERS: dict[str, Any] = {"VERSION": "HTTP/1.1", "host": "here", **request_headers(new_key())}


class Shared(Bench):
    """A bench whose WebSockets are shared.

    Attributes:
        pongs: Whose pongs the others are told of.
        joined: Others tell of theirs.
        alone: No other process goes on.
        left: How often the others were told that this process ends.
    """

    def __init__(self) -> None:
        super().__init__(shared=True)
        self.pongs: list[Sid] = []
        self.joined = True
        self.alone = False
        self.left = 0
        self.sessions.elsewhere.begin(
            note=self.pongs.append,
            awaits_news=lambda: self.joined,
            others_go_on=lambda: not self.alone,
            leave=self.leave,
        )

    def leave(self) -> None:
        self.left += 1

    def news(self, conn_id: str = "1", owner: str = "other") -> Entry | None:
        """The other process says that it let one in."""
        entry = self.sessions.elsewhere.known((SENDER, conn_id), "/", "chat", owner)
        if entry is not None:
            self.sessions.elsewhere.catch_up(entry)
        return entry


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Shared:
    """One whose clock is that of the deadlines."""
    bench = Shared()
    monkeypatch.setattr(delays, "monotonic", lambda: bench.now)
    return bench


def test_messages_are_events_here_and_begin_and_end_are_not(bench: Shared) -> None:
    """Those are events in the other process."""
    entry = bench.news()
    assert entry is not None and entry.subprotocol == "chat" and bench.methods() == []
    bench.frame(b"one")
    bench.frame(b"two")
    assert bench.methods() == ["WEBSOCKET", "WEBSOCKET"]
    bench.frame(build_close(1000), Opcode.CLOSE)
    assert bench.methods() == ["WEBSOCKET", "WEBSOCKET"] and len(bench.registry) == 0
    assert bench.writer.to("1") == [build_frame(build_close(1000), Opcode.CLOSE), None]


def test_whoever_takes_one_over_gets_its_end(bench: Shared) -> None:
    """And whose was taken over does not."""
    taken, lost = bench.news("1"), bench.connect("2")[0]
    assert taken is not None
    bench.sessions.elsewhere.belongs_to(taken, "")
    bench.sessions.elsewhere.belongs_to(lost, "other")
    bench.events.clear()
    bench.frame(b"to whoever gets it", conn_id="2")
    for conn_id in ("1", "2"):
        bench.frame(build_close(4000), Opcode.CLOSE, conn_id=conn_id)
    assert [(one.method, one.conn_id) for one in bench.events] == [("WEBSOCKET", "2"), ("WEBSOCKET_CLOSE", "1")]
    assert bench.registry.owners == {}


def test_a_handler_here_sees_the_end(bench: Shared) -> None:
    """Whoever owns it: its loop has to end."""
    entry = bench.news()
    assert entry is not None
    heard: list[Request] = []
    entry.on_event = heard.append
    bench.sessions.elsewhere.ended(entry.sid, 1001, "away")
    assert [(one.method, one.close_code) for one in heard] == [("WEBSOCKET_CLOSE", 1001)] and bench.events == []
    assert bench.writer.sent == []


def test_a_message_waits_for_the_news_of_its_websocket(bench: Shared) -> None:
    """It is not taken for a new one."""
    bench.frame(b"early", **HEADERS)
    bench.frame(b"too", **HEADERS)
    assert bench.events == [] and len(bench.registry) == 0
    bench.news()
    assert [(one.method, one.body) for one in bench.events] == [("WEBSOCKET", b"early"), ("WEBSOCKET", b"too")]
    assert bench.registry.owners == {(SENDER, "1"): "other"}


@pytest.mark.parametrize("joined", [True, False])
def test_without_news_it_is_one_of_our_own(bench: Shared, joined: bool) -> None:
    """After a second, or at once where nobody could tell."""
    bench.joined = joined
    bench.frame(b"early", **HEADERS)
    if joined:
        assert bench.events == []
        bench.wait(NEWS_SECONDS)
    assert bench.methods() == ["WEBSOCKET_CONNECT", "WEBSOCKET"]
    assert bench.registry.owners == {} and len(bench.registry) == 1


def test_an_end_before_the_news_is_not_lost(bench: Shared) -> None:
    """The other process would keep it, as nothing more is heard of it."""
    bench.notice("1")
    bench.frame(build_close(4000, "why"), Opcode.CLOSE, conn_id="2")
    bench.frame(b"\0", Opcode.CLOSE, conn_id="3")
    ended: list[tuple[int, str]] = []
    for conn_id in ("1", "2", "3"):
        entry = bench.news(conn_id)
        assert entry is not None
        ended.append(entry.ending)
    assert ended == [(1006, ""), (4000, "why"), (1006, "")]
    assert len(bench.registry) == 0 and bench.events == []
    assert bench.writer.to("2") == [close_frame(None), None]


@pytest.mark.parametrize("news", [True, False])
def test_a_message_and_an_end_before_the_news_are_both_told_in_their_order(bench: Shared, news: bool) -> None:
    """By whoever is known to have let it in then."""
    bench.frame(b"early", **HEADERS)
    assert bench.notice("1") is True
    if news:
        bench.news()
        assert bench.methods() == ["WEBSOCKET"]
    else:
        bench.wait(NEWS_SECONDS)
        assert bench.methods() == ["WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET_CLOSE"]
    assert len(bench.registry) == 0


def test_what_comes_after_an_end_elsewhere_is_ignored(bench: Shared) -> None:
    """It was sent before the client saw that; late news make no new one of it either."""
    bench.news()
    bench.sessions.elsewhere.ended((SENDER, "1"), 1000, "")
    bench.frame(b"late", **HEADERS)
    assert bench.news() is None
    assert bench.events == [] and bench.writer.sent == [] and len(bench.registry) == 0


def test_pongs_are_told_also_of_those_that_are_not_known_yet(bench: Shared) -> None:
    """The one that pings may know them."""
    entry = bench.news()
    assert entry is not None
    entry.awaits_pong = True
    bench.frame(b"p", Opcode.PONG)
    bench.frame(b"p", Opcode.PONG, conn_id="2")
    assert bench.pongs == [(SENDER, "1"), (SENDER, "2")] and not entry.awaits_pong


def test_silence_is_judged_where_pongs_are_told(bench: Shared) -> None:
    """By who pings; the end is an event in the process that owns it."""
    entry = bench.news()
    assert entry is not None
    bench.sessions.ping([entry], b"ping", SENDER)
    assert bench.sessions.ping([entry], b"ping", SENDER) == 1
    assert bench.events == [] and len(bench.registry) == 0
    assert bench.writer.to("1")[-1] is None


def test_a_process_that_ends_closes_nobody_where_others_go_on(bench: Shared) -> None:
    """Its own handshakes, which nobody else could answer, are refused; others' are left alone."""
    bench.news("1")
    [own] = bench.connect("2")
    heard: list[Request] = []
    own.on_event = heard.append
    bench.events.clear()
    bench.frame(b"early", conn_id="3", **HEADERS)
    bench.writer.sent.clear()
    bench.sessions.close_all(1001)
    assert bench.left == 0 and len(bench.registry) == 2
    bench.sessions.elsewhere.let_go(1001)
    assert bench.left == 1 and len(bench.registry) == 0 and bench.writer.sent == []
    assert [one.close_code for one in heard] == [1001] and bench.events == []


def test_the_last_process_closes_all(bench: Shared) -> None:
    """Also those that others let in."""
    bench.alone = True
    bench.news("1")
    bench.connect("2")
    bench.writer.sent.clear()
    bench.sessions.close_all(1001)
    bench.sessions.elsewhere.let_go(1001)
    assert bench.left == 0 and bench.writer.to("1") == bench.writer.to("2") == [close_frame(1001), None]
