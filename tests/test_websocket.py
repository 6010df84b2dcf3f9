"""The WebSocket object, over WebSockets whose writer only notes what it is told."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from websockets_bench import SENDER, Bench, close_frame, handshake_request

from greentx.errors import ConnectionClosed, LocalProtocolError, SendTimeout
from greentx.handler.websocket import WebSocket
from greentx.protocol.request import Request
from greentx.protocol.websocket.frames import FrameParser, Opcode, build_close, build_frame


class Connection:
    """What a WebSocket asks of its connection set."""

    def __init__(self, bench: Bench) -> None:
        self.sessions = bench.sessions
        self.link = self.answers = self
        self.writer = bench.writer

    def in_hub_thread(self) -> bool:
        return True

    def run(self, function: Any, *arguments: Any) -> None:
        function(*arguments)


class Ours:
    """A WebSocket, and the events of its sessions fed into it as the dispatcher does it."""

    def __init__(self, **options: Any) -> None:
        self.bench = Bench(**options)
        [self.entry] = self.bench.connect()
        self.request = handshake_request("1")
        self.sent = dict(self.request.raw)
        connection: Any = Connection(self.bench)
        self.ws = WebSocket(connection, self.entry, self.request, self.bench.registry)

    def feed(self) -> None:
        events, self.bench.events[:] = list(self.bench.events), []
        for event in events:
            self.ws.feed(event)

    def frame(self, payload: bytes, opcode: int = Opcode.TEXT) -> None:
        self.bench.frame(payload, opcode)
        self.feed()


@pytest.fixture
def ours() -> Ours:
    """One that is open."""
    return Ours()


def test_the_handshake_is_there_as_it_was(ours: Ours) -> None:
    """In few bytes, until the application asks for its headers, and then as often as it asks."""
    assert ours.ws.request is ours.request
    sent = Request(SENDER, "1", "/", ours.sent, ours.request.body)
    for _ in range(2):
        raw = ours.request.raw
        assert raw == ours.sent and dict(raw.items()) == ours.sent and len(raw) == len(ours.sent)
        assert (list(raw), list(raw.values())) == (list(ours.sent), list(ours.sent.values()))
        assert ours.request.header("host") == "here" and ours.request.has("PATH")
        assert not ours.request.has("nothing") and raw.get("nothing") is None
        assert ours.request.headers == sent.headers and ours.request.encode() == sent.encode()
    assert "PATH" in repr(raw)


def test_a_change_of_the_handshakes_headers_is_kept() -> None:
    """As ``on_handshake`` may make it."""
    bench = Bench()
    [entry] = bench.connect()
    request = handshake_request("1")
    request.headers["user"] = "me"
    connection: Any = Connection(bench)
    assert WebSocket(connection, entry, request, bench.registry).request.headers["user"] == "me"


def test_each_of_several_receivers_gets_a_message(ours: Ours) -> None:
    """What one was woken with that was killed goes to another one, or is the next that is received."""
    receiving = [gevent.spawn(ours.ws.receive) for _ in range(3)]
    gevent.sleep(0)
    receiving[0].kill(block=False)
    ours.frame(b"1")
    ours.frame(b"2")
    gevent.joinall(receiving, timeout=5)
    assert {one.value for one in receiving[1:]} == {"1", "2"}
    alone = gevent.spawn(ours.ws.receive)
    gevent.sleep(0)
    alone.kill(block=False)
    ours.frame(b"first")
    ours.frame(b"second")
    alone.join(1)
    assert (ours.ws.pending, ours.ws.receive(), ours.ws.receive()) == (2, "first", "second")
    assert ours.bench.queued.held == 0
    with pytest.raises(TimeoutError):
        ours.ws.receive(0.001)
    ours.frame(b"3")
    assert ours.ws.receive(0.001) == "3"


def test_who_asks_to_be_told_of_the_end_is_told(ours: Ours) -> None:
    """Also after it."""
    told: list[str] = []
    ours.ws.on_end(lambda: told.append("before"))
    ours.frame(build_close(1000), Opcode.CLOSE)
    ours.ws.on_end(lambda: told.append("after"))
    gevent.sleep(0.001)
    assert told == ["before", "after"]


def test_text_is_str_and_binary_is_bytes(ours: Ours) -> None:
    """In the order of their arrival."""
    ours.frame("grün".encode())
    ours.frame(b"\xff", Opcode.BINARY)
    assert [ours.ws.receive(), ours.ws.receive()] == ["grün", b"\xff"]


def test_receive_waits_and_gives_up_after_its_timeout(ours: Ours) -> None:
    """The message says how long it waited."""
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        ours.ws.receive(0.01)
    with pytest.raises(TimeoutError):
        ours.ws.receive(0)
    waiting = gevent.spawn(ours.ws.receive, 5)
    gevent.sleep(0)
    ours.frame(b"at last")
    assert waiting.get(timeout=5) == "at last"


def test_after_the_end_come_the_messages_then_none(ours: Ours) -> None:
    """What came before the end is not lost; iteration ends."""
    ours.frame(b"one")
    ours.frame(b"two")
    ours.frame(build_close(4000, "bye"), Opcode.CLOSE)
    assert list(ours.ws) == ["one", "two"]
    assert ours.ws.receive() is None and ours.ws.receive(0) is None


def test_code_and_reason_are_known_after_the_end_only(ours: Ours) -> None:
    """``closed`` comes first, when a close frame is out."""
    ws = ours.ws
    assert (ws.closed, ws.close_code, ws.close_reason) == (False, None, "")
    closing = gevent.spawn(ws.close, 4001, "ours")
    gevent.sleep(0)
    assert (ws.closed, ws.close_code, ws.close_reason) == (True, None, "")
    ours.frame(build_close(4002, "theirs"), Opcode.CLOSE)
    closing.get(timeout=5)
    assert (ws.closed, ws.close_code, ws.close_reason) == (True, 4002, "theirs")
    assert "CLOSED 4002" in repr(ws)


def test_send_makes_text_and_binary_frames(ours: Ours) -> None:
    """Of str and of anything that is bytes."""
    for message in ("grün", b"a", bytearray(b"b"), memoryview(b"c")):
        ours.ws.send(message)  # type: ignore[arg-type]
    text, *binary = ours.bench.writer.to("1")
    assert text == build_frame("grün".encode())
    assert binary == [build_frame(one, Opcode.BINARY) for one in (b"a", b"b", b"c")]


@pytest.mark.parametrize("message", [None, 1, ["x"]])
def test_send_refuses_what_is_no_message(ours: Ours, message: Any) -> None:
    """With the type's name."""
    with pytest.raises(TypeError, match=type(message).__name__):
        ours.ws.send(message)
    assert ours.bench.writer.sent == []


def test_send_refuses_text_that_is_none(ours: Ours) -> None:
    """A lone surrogate has no UTF-8."""
    with pytest.raises(LocalProtocolError, match="not text"):
        ours.ws.send("\ud800")


@pytest.mark.parametrize("how", ["peer", "notice", "ours", "fault"])
def test_send_after_the_end_raises_with_code_and_reason(ours: Ours, how: str) -> None:
    """From the moment of the end on, before the handler has heard of it."""
    if how == "peer":
        ours.bench.frame(build_close(4000, "bye"), Opcode.CLOSE)
        expected = (4000, "bye")
    elif how == "notice":
        ours.bench.notice()
        expected = (1006, "")
    elif how == "ours":
        ours.ws.begin_close(4003, "enough")
        expected = (4003, "enough")
    else:
        ours.bench.sessions.fail(ours.entry, 1009, "too much")
        expected = (1009, "too much")
    with pytest.raises(ConnectionClosed) as info:
        ours.ws.send("late")
    assert (info.value.code, info.value.reason) == expected
    with pytest.raises(ConnectionClosed):
        ours.ws.ping()


@pytest.mark.parametrize("ends", [True, False])
def test_a_send_that_was_blocked_when_the_end_came_raises_with_its_code(ours: Ours, ends: bool) -> None:
    """The writer knows only that it is over; where the protocol does not know either, that is what is raised."""

    def write(*arguments: Any, **options: Any) -> None:
        if ends:
            ours.bench.registry.remove(ours.ws.sid)
            ours.entry.ending = (4000, "bye")
        raise ConnectionClosed(1006, "gone")

    ours.bench.writer.write = write  # type: ignore[method-assign]
    with pytest.raises(ConnectionClosed) as info:
        ours.ws.send("x")
    assert (info.value.code, info.value.reason) == ((4000, "bye") if ends else (1006, "gone"))


def test_a_full_pipe_is_the_callers_to_know(ours: Ours) -> None:
    """``SendTimeout`` passes."""
    ours.bench.writer.failure = SendTimeout("full")
    with pytest.raises(SendTimeout):
        ours.ws.send("x")


def test_more_bytes_than_max_queue_bytes_end_it_with_1013_once() -> None:
    """What is there stays; what comes on top does not."""
    ours = Ours(max_queue_bytes=1000)
    for number in range(9):
        ours.bench.frame(b"%d" % number)
    ours.feed()
    ours.feed()
    # 1,000 bytes are allowed: each message costs its object and its place, too.
    assert list(ours.ws) == ["0", "1", "2", "3", "4"]
    assert ours.ws.close_code == 1013
    assert "max_queue_bytes is 1000" in ours.ws.close_reason
    assert ours.bench.writer.to("1") == [close_frame(1013, ours.ws.close_reason), None]
    assert ours.bench.sessions.failures == 1
    assert ours.bench.queued.held == 0


def test_close_waits_for_the_peer_and_a_second_one_too(ours: Ours) -> None:
    """From several greenlets, while another receives."""
    receiving = gevent.spawn(ours.ws.receive)
    closing = [gevent.spawn(ours.ws.close, 1001, "a"), gevent.spawn(ours.ws.close, 1002, "b")]
    gevent.sleep(0)
    assert ours.bench.writer.to("1") == [close_frame(1001, "a")]
    assert not any(one.ready() for one in closing)
    ours.frame(build_close(1001), Opcode.CLOSE)
    gevent.joinall([*closing, receiving], timeout=5, raise_error=True)
    assert receiving.value is None
    ours.ws.close()


def test_close_refuses_what_may_not_travel(ours: Ours) -> None:
    """It stays open."""
    for code, reason in ((1005, ""), (1006, ""), (999, ""), (1000, "x" * 124)):
        with pytest.raises(LocalProtocolError):
            ours.ws.close(code, reason)
    assert not ours.ws.closed


# -- pings -----------------------------------------------------------------------------------------------------------


def payloads(ours: Ours) -> list[bytes]:
    parser = FrameParser(require_mask=False)
    return [frame.payload for data in ours.bench.writer.to("1") for frame in parser.feed(data or b"")]


def may_be_sent_again(ours: Ours, payload: bytes) -> bool:
    """Whether no ping with this payload is waited for any more."""
    with pytest.raises(TimeoutError):
        ours.ws.ping(payload, timeout=0)
    return True


def test_ping_returns_the_seconds_to_its_pong(ours: Ours) -> None:
    """Only to the one with its payload."""
    pinging = gevent.spawn(ours.ws.ping)
    gevent.sleep(0)
    [payload] = payloads(ours)
    ours.frame(b"stranger", Opcode.PONG)
    time.sleep(0.01)  # the time itself is what is tested
    ours.frame(payload, Opcode.PONG)
    assert 0.01 <= pinging.get(timeout=5) < 5
    assert may_be_sent_again(ours, payload)


def test_a_pong_answers_the_pings_before_it_too(ours: Ours) -> None:
    """And not those behind it."""
    pinging = [gevent.spawn(ours.ws.ping, payload) for payload in (b"1", "2", b"3")]
    gevent.sleep(0)
    ours.frame(b"2", Opcode.PONG)
    ours.frame(b"2", Opcode.PONG)
    gevent.joinall(pinging[:2], timeout=5, raise_error=True)
    assert not pinging[2].ready()
    ours.frame(b"3", Opcode.PONG)
    pinging[2].get(timeout=5)


def test_a_ping_whose_connection_ends_raises(ours: Ours) -> None:
    """One that was answered just before does not."""
    answered = gevent.spawn(ours.ws.ping, b"1")

    def ping() -> ConnectionClosed:
        with pytest.raises(ConnectionClosed) as info:
            ours.ws.ping(b"2")
        return info.value

    unanswered = gevent.spawn(ping)
    gevent.sleep(0)
    ours.bench.frame(b"1", Opcode.PONG)
    ours.frame(build_close(4000, "bye"), Opcode.CLOSE)
    assert answered.get(timeout=5) > 0
    error = unanswered.get(timeout=5)
    assert (error.code, error.reason) == (4000, "bye")


def test_a_ping_may_give_up_and_leaves_others_timeouts_alone(ours: Ours) -> None:
    """``TimeoutError`` for its own, whatever somebody else's is for theirs."""
    with pytest.raises(TimeoutError):
        ours.ws.ping(timeout=0.01)
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.01):
            ours.ws.ping(timeout=5)
    assert all(may_be_sent_again(ours, payload) for payload in payloads(ours))


def test_a_ping_payload_is_short_and_not_under_way(ours: Ours) -> None:
    """Nothing is sent otherwise."""
    with pytest.raises(LocalProtocolError):
        ours.ws.ping(b"x" * 126)
    pinging = gevent.spawn(ours.ws.ping, b"same")
    gevent.sleep(0)
    with pytest.raises(LocalProtocolError, match="under way"):
        ours.ws.ping(b"same")
    pinging.kill()
    assert may_be_sent_again(ours, b"same")


# -- groups ----------------------------------------------------------------------------------------------------------


def test_join_and_leave_until_the_end(ours: Ours) -> None:
    """A closed one joins nothing, and does not remove another one that has its number by then."""
    registry = ours.bench.registry
    ours.ws.join("a")
    ours.ws.join("b")
    ours.ws.leave("a")
    ours.ws.leave("never joined")
    assert registry.groups(ours.ws.sid) == ("b",)
    ours.bench.frame(build_close(4000, "bye"), Opcode.CLOSE)
    assert registry.members("b") == []
    ours.bench.handshake()
    registry.join((SENDER, "1"), "b")
    with pytest.raises(ConnectionClosed) as info:
        ours.ws.join("b")
    assert info.value.code == 4000
    ours.ws.leave("b")
    assert len(registry.members("b")) == 1
