"""The WebSocket protocol of a connection set, over a writer and timers that only note what they are told."""

from __future__ import annotations

import zlib
from typing import Any

import gevent
import pytest
from gevent.event import Event
from websockets_bench import SENDER, Bench, close_frame, handshake_request

from greentx.errors import ConnectionClosed, LocalProtocolError, SendTimeout
from greentx.handler import delays, openings
from greentx.handler.openings import MAX_DECISIONS
from greentx.protocol.request import Request
from greentx.protocol.websocket.deflate import DeflateConfig
from greentx.protocol.websocket.frames import CloseCode, FrameParser, Opcode, build_close, build_frame
from greentx.protocol.websocket.handshake import Accepted, Handshake, Refused, new_key, request_headers
from greentx.protocol.websocket.registry import CLOSED, CLOSING, OPEN, Entry


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a ``Bench`` whose clock is that of the deadlines."""

    def make_bench(**options: Any) -> Bench:
        bench = Bench(**options)
        monkeypatch.setattr(delays, "monotonic", lambda: bench.now)
        return bench

    return make_bench


@pytest.fixture
def bench(make: Any) -> Bench:
    """One with the default options."""
    one: Bench = make()
    return one


# -- the opening handshake -------------------------------------------------------------------------------------------


def test_a_good_handshake_is_answered_with_101_and_reported(bench: Bench) -> None:
    """The client is let in before the application hears of it."""
    bench.handshake()
    [answer] = bench.writer.to("1")
    assert answer is not None and answer.startswith(b"HTTP/1.1 101 ")
    assert bench.methods() == ["WEBSOCKET_CONNECT"]
    assert bench.events[0].body == b""
    assert (SENDER, "1") in bench.registry


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"sec_websocket_version": "8"}, b" 426 ", b"Sec-WebSocket-Version: 13"),
        ({"sec_websocket_version": ["13", "8"]}, b" 426 ", b"Sec-WebSocket-Version: 13"),
        ({"sec_websocket_key": "c2hvcnQ="}, b" 400 ", b"Connection: close"),
        ({"VERSION": "HTTP/1.0"}, b" 400 ", b"Connection: close"),
    ],
)
def test_a_bad_handshake_is_refused_and_the_connection_closed(
    bench: Bench, headers: dict[str, Any], status: bytes, field: bytes
) -> None:
    """Mongrel2 goes on with frames after any answer, so the connection has to end."""
    bench.handshake(**headers)
    answer, end = bench.writer.to("1")
    assert answer is not None and status in answer.splitlines()[0] and field in answer
    assert end is None
    assert bench.events == []
    assert len(bench.registry) == 0


def test_an_origin_that_is_not_let_in_gets_403(make: Any) -> None:
    """A page of somebody else cannot talk to us through its visitors."""
    bench = make(handshake=Handshake(origins=["https://ours.example"]))
    bench.handshake(origin="https://theirs.example")
    assert b" 403 " in bench.writer.to("1")[0]
    bench.handshake("2", origin="https://ours.example")
    assert bench.methods() == ["WEBSOCKET_CONNECT"]


def test_a_callable_may_refuse_with_any_answer(make: Any) -> None:
    """What ``on_handshake`` returns is what the client gets."""
    bench = make(on_handshake=lambda request: Refused(429, headers={"Retry-After": "5"}, body="later"))
    bench.handshake()
    gevent.sleep(0)
    answer, end = bench.writer.to("1")
    assert answer.startswith(b"HTTP/1.1 429 ") and b"Retry-After: 5" in answer and answer.endswith(b"later")
    assert end is None and bench.events == []


def test_the_callable_sees_only_handshakes_that_are_right_so_far(make: Any) -> None:
    """Version, key and origin are judged before the application is asked."""
    asked: list[Request] = []
    bench = make(on_handshake=asked.append, handshake=Handshake(origins=["https://ours.example"]))
    bench.handshake("1", sec_websocket_version="8")
    bench.handshake("2", origin="https://theirs.example")
    bench.handshake("3", origin="https://ours.example")
    gevent.sleep(0)
    assert [request.conn_id for request in asked] == ["3"]
    assert bench.methods() == ["WEBSOCKET_CONNECT"]


@pytest.mark.parametrize("answer", [True, 403, "no"])
def test_a_callable_that_returns_something_else_refuses_with_500(make: Any, answer: object) -> None:
    """A mistake of the application lets nobody in."""
    bench = make(on_handshake=lambda request: answer)
    bench.handshake()
    gevent.sleep(0)
    assert bench.writer.to("1")[0].startswith(b"HTTP/1.1 500 ")
    assert bench.events == []


def test_a_callable_that_raises_refuses_with_500(make: Any) -> None:
    """Nor does an exception in it."""
    bench = make(handshake=Handshake(origins=lambda origin: 1 / 0))
    bench.handshake()
    gevent.sleep(0)
    assert bench.writer.to("1")[0].startswith(b"HTTP/1.1 500 ")


def test_frames_before_the_101_are_delivered_after_it(make: Any) -> None:
    """Mongrel2 passes on what a hasty client sends while the application still decides."""
    decide = Event()
    bench = make(on_handshake=lambda request: decide.wait() and None)
    bench.handshake()
    gevent.sleep(0)
    bench.frame(b"one")
    bench.frame(b"two", Opcode.BINARY)
    bench.frame(b"p", Opcode.PING)
    assert bench.events == [] and bench.writer.sent == [] and bench.sessions.connecting == 1
    decide.set()
    gevent.sleep(0)
    assert bench.methods() == ["WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET"]
    assert [event.body for event in bench.events[1:]] == [b"one", b"two"]
    head, pong = bench.writer.to("1")
    assert head.startswith(b"HTTP/1.1 101 ") and pong == build_frame(b"p", Opcode.PONG)
    assert bench.sessions.connecting == 0


def test_a_decision_that_does_not_come_is_a_refusal(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets 503 and the end, after a time that can be set; what was decided too late has no effect."""
    decide = Event()
    bench = make(on_handshake=lambda request: decide.wait() and None, handshake_timeout=0.01)
    bench.handshake()
    with gevent.Timeout(5):
        while bench.sessions.connecting:
            gevent.sleep(0.001)
    answer, close = bench.writer.to("1")
    assert answer.startswith(b"HTTP/1.1 503 ") and close is None and bench.events == []
    assert "was not decided about within 0.01 s" in caplog.text
    decide.set()
    gevent.sleep(0.01)  # it goes on, and nothing comes of it
    assert len(bench.writer.to("1")) == 2 and bench.events == []


def test_a_flood_before_the_101_closes_the_connection(make: Any) -> None:
    """What is kept for a client that was not let in yet is bounded."""
    decide = Event()
    bench = make(on_handshake=lambda request: decide.wait() and None)
    bench.handshake()
    for _ in range(100):
        bench.frame(b"x")
    assert bench.writer.to("1") == [None]
    decide.set()
    gevent.sleep(0)
    assert bench.events == [] and bench.writer.to("1") == [None]


def blocked_bench(make: Any) -> tuple[Bench, Event, list[str]]:
    """One whose callable notes the ids that it is asked about, and decides about none before the event is set."""
    decide, asked = Event(), []

    def on_handshake(request: Request) -> None:
        asked.append(request.conn_id)
        decide.wait()

    return make(on_handshake=on_handshake), decide, asked


def test_callables_decide_about_a_bounded_number_of_handshakes_at_a_time(make: Any) -> None:
    """The others wait in the order in which they came, and all are let in."""
    bench, decide, asked = blocked_bench(make)
    conn_ids = [str(number) for number in range(MAX_DECISIONS + 50)]
    for conn_id in conn_ids:
        bench.handshake(conn_id)
    gevent.sleep(0)
    assert asked == conn_ids[:MAX_DECISIONS]
    assert bench.sessions.connecting == len(conn_ids)
    decide.set()
    gevent.sleep(0.01)  # what must not happen has no event
    assert asked == conn_ids
    assert [event.conn_id for event in bench.events] == conn_ids
    bench.handshake("later")
    gevent.sleep(0)
    assert asked[-1] == "later" and bench.sessions.connecting == 0


def test_handshakes_that_find_too_many_waiting_get_503(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that have gone do not count, and the application is not asked about them."""
    monkeypatch.setattr(openings, "MAX_DECISIONS", 2)
    monkeypatch.setattr(openings, "MAX_WAITING", 3)
    bench, decide, asked = blocked_bench(make)
    for conn_id in "12":
        bench.handshake(conn_id)
    gevent.sleep(0)
    for conn_id in "3456":
        bench.handshake(conn_id)
    answer, end = bench.writer.to("6")
    assert answer is not None and answer.startswith(b"HTTP/1.1 503 ") and end is None
    assert bench.notice("4")
    bench.handshake("7")
    decide.set()
    gevent.sleep(0.01)  # what must not happen has no event
    assert asked == ["1", "2", "3", "5", "7"]
    assert [event.conn_id for event in bench.events] == ["1", "2", "3", "5", "7"]


def test_a_callable_that_ends_its_greenlet_does_not_stop_the_others(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another greenlet goes on with what waits."""
    monkeypatch.setattr(openings, "MAX_DECISIONS", 1)

    def on_handshake(request: Request) -> None:
        if request.conn_id == "1":
            raise gevent.GreenletExit

    bench = make(on_handshake=on_handshake)
    for conn_id in "123":
        bench.handshake(conn_id)
    gevent.sleep(0.01)  # what must not happen has no event
    assert [event.conn_id for event in bench.events] == ["2", "3"]


def accept(bench: Bench, request: Request, how: str) -> list[Request]:
    """Let a held client in as applications do; return the list in which its events will be."""
    events: list[Request] = []
    head = b"HTTP/1.1 101 \r\n\r\n"
    if how == "accept":
        bench.sessions.accept(request, Accepted(head, None, None), lambda entry: events.append)
    elif how == "accept_raw":
        bench.sessions.accept_raw(request, head, events.append)
    else:
        bench.sessions.accept_own(request, head, None, events.append)
    return events


HOW = ["accept", "accept_raw", "accept_own"]


@pytest.mark.parametrize("how", HOW)
def test_a_held_client_is_let_in_with_what_it_sent_before(bench: Bench, how: str) -> None:
    """Its 101 first; then its events go to whom it was let in for."""
    request = handshake_request()
    bench.sessions.hold(request)
    bench.frame(b"early")
    assert bench.sessions.connecting == 1
    events = accept(bench, request, how)
    bench.frame(b"late")
    assert [event.body for event in events] == [b"early", b"late"]
    [head] = bench.writer.to("1")
    assert head is not None and head.startswith(b"HTTP/1.1 101 ")
    assert bench.events == [] and bench.sessions.connecting == 0


@pytest.mark.parametrize("how", HOW)
def test_a_held_client_that_is_let_in_after_the_end_began_gets_503(bench: Bench, how: str) -> None:
    """Nobody would say goodbye to it: the caller is told, and the browser has an answer."""
    request = handshake_request()
    bench.sessions.hold(request)
    bench.sessions.close_all(1001)
    with pytest.raises(ConnectionClosed) as info:
        accept(bench, request, how)
    assert info.value.code == 1001
    answer, end = bench.writer.to("1")
    assert answer is not None and answer.startswith(b"HTTP/1.1 503 ") and end is None
    assert len(bench.registry) == 0 and bench.events == []
    assert request.life is not None and request.life.over


@pytest.mark.parametrize("how", HOW)
def test_a_held_client_that_has_gone_is_not_let_in(bench: Bench, how: str) -> None:
    """Nor is one that was closed from here. Nothing is sent."""
    for number, end in enumerate([bench.notice, lambda conn_id: bench.sessions.release(handshake_request(conn_id))]):
        request = handshake_request(str(number))
        bench.sessions.hold(request)
        end(str(number))
        with pytest.raises(ConnectionClosed) as info:
            accept(bench, request, how)
        assert info.value.code == 1006
    assert bench.writer.sent == [] and len(bench.registry) == 0


@pytest.mark.parametrize("end", ["notice", "lost"])
def test_a_client_that_goes_while_the_callable_decides_is_never_reported(make: Any, end: str) -> None:
    """No connect, so no close either."""
    decide = Event()
    bench = make(on_handshake=lambda request: decide.wait() and None)
    bench.handshake()
    gevent.sleep(0)
    if end == "notice":
        assert bench.notice()
    else:
        bench.sessions.lost()
    decide.set()
    gevent.sleep(0)
    assert bench.events == [] and bench.writer.sent == [] and len(bench.registry) == 0


def test_a_server_found_gone_while_the_101_is_written_is_told_after_the_connect(bench: Bench) -> None:
    """The writer looks before it writes, and then all that this server had ends: first the beginning, then the end."""
    write = bench.writer.write

    def find_it_gone(*args: Any, **options: Any) -> None:
        bench.sessions.lost()
        write(*args, **options)

    bench.writer.write = find_it_gone  # type: ignore[method-assign]  # it happens inside of it
    bench.handshake()
    assert bench.methods() == ["WEBSOCKET_CONNECT", "WEBSOCKET_CLOSE"]
    assert len(bench.registry) == 0


def test_a_decision_about_an_older_client_does_not_let_in_the_next_one_of_that_number(make: Any) -> None:
    """A restarted server counts from 1 again, while the callable still thinks about the first client."""
    decisions = [Event(), Event()]
    waiting = iter(decisions)
    bench = make(on_handshake=lambda request: next(waiting).wait() and None)
    bench.handshake()
    gevent.sleep(0)
    bench.sessions.lost()
    bench.handshake()
    gevent.sleep(0)
    bench.frame(b"for the second")
    decisions[0].set()
    gevent.sleep(0)
    assert bench.events == []
    decisions[1].set()
    gevent.sleep(0)
    assert bench.methods() == ["WEBSOCKET_CONNECT", "WEBSOCKET"]


def test_a_number_given_away_again_ends_the_older_client_first(bench: Bench) -> None:
    """The server did not tell of its end; the application hears of both, in order."""
    bench.handshake()
    bench.handshake()
    assert bench.methods() == ["WEBSOCKET_CONNECT", "WEBSOCKET_CLOSE", "WEBSOCKET_CONNECT"]
    assert bench.ends() == [(1006, "")]
    assert len(bench.registry) == 1


# -- messages --------------------------------------------------------------------------------------------------------


def test_a_text_message_is_reported_with_its_text(bench: Bench) -> None:
    """Bytes in ``body``, and the text that was decoded to check them is kept."""
    bench.connect()
    bench.frame("grün".encode())
    [event] = bench.events
    assert (event.method, event.opcode, event.body, event.text) == ("WEBSOCKET", 1, "grün".encode(), "grün")


@pytest.mark.parametrize(
    ("payload", "opcode", "rsvd", "code"),
    [
        (b"\xff", Opcode.TEXT, 0, 1007),
        (b"\xed\xa0\x80", Opcode.TEXT, 0, 1007),
        (b"x", 3, 0, 1002),
        (b"x", 11, 0, 1002),
        (b"x", Opcode.TEXT, 4, 1002),
        (b"x", Opcode.BINARY, 1, 1002),
        (b"x", Opcode.PING, 2, 1002),
        (b"x", Opcode.CONT, 0, 1002),
        (b"\x03", Opcode.CLOSE, 0, 1002),
        (b"\x03\xe7", Opcode.CLOSE, 0, 1002),
        (b"\x03\xed", Opcode.CLOSE, 0, 1002),
        (b"\x03\xe8\xff", Opcode.CLOSE, 0, 1007),
        (b"x" * 101, Opcode.TEXT, 0, 1009),
        (b"x" * 126, Opcode.PONG, 0, 1002),
    ],
)
def test_a_fault_of_the_peer_fails_its_connection_with_the_right_code(
    make: Any, payload: bytes, opcode: int, rsvd: int, code: int
) -> None:
    """A close frame that says why, the end of the connection, and one event with that code."""
    bench = make(max_message_size=100)
    bench.connect()
    bench.frame(payload, opcode, rsvd)
    bench.wait(0.1)
    frame, end = bench.writer.to("1")
    [parsed] = FrameParser(require_mask=False).feed(frame)
    assert parsed.opcode == Opcode.CLOSE and int.from_bytes(parsed.payload[:2], "big") == code
    assert end is None
    assert [end_code for end_code, _ in bench.ends()] == [code]
    assert len(bench.registry) == 0


def test_what_came_before_a_fault_may_still_be_answered(bench: Bench) -> None:
    """The application's answer goes out before the close frame, though its greenlet ran only after the fault came."""
    [entry] = bench.connect()
    bench.frame(b"question")
    bench.frame(b"\xff")
    bench.frame(b"after the fault")
    bench.sessions.send([entry], b"answer", Opcode.TEXT)
    bench.wait(0.1)
    assert bench.writer.to("1")[0] == build_frame(b"answer")
    assert bench.methods() == ["WEBSOCKET", "WEBSOCKET_CLOSE"]


def test_a_client_that_goes_after_its_fault_is_reported_with_the_fault(bench: Bench) -> None:
    """The notice comes before the close frame is due: one event all the same."""
    bench.connect()
    bench.frame(b"\xff")
    assert bench.notice()
    bench.wait(1)
    assert [code for code, _ in bench.ends()] == [1007]


def test_a_bomb_stops_early(make: Any) -> None:
    """A megabyte of zeros in a kilobyte ends at the limit, with 1009."""
    bench = make(max_message_size=1000)
    bench.connect(deflate=DeflateConfig())
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    bench.frame(bomb, Opcode.BINARY, 4)
    bench.wait(0.1)
    assert [code for code, _ in bench.ends()] == [1009]


def test_pings_are_answered_and_not_reported(bench: Bench) -> None:
    """Keepalive is none of the application's business."""
    bench.connect()
    bench.frame(b"you there?", Opcode.PING)
    bench.frame(b"", Opcode.PONG)
    assert bench.writer.to("1") == [build_frame(b"you there?", Opcode.PONG)]
    assert bench.events == []


def test_pings_of_a_client_that_does_not_read_are_not_answered(bench: Bench) -> None:
    """A flood of pings fills no memory."""
    bench.connect()
    bench.writer.backlog = 1 << 20
    bench.frame(b"x", Opcode.PING)
    assert bench.writer.sent == []


def test_a_frame_of_an_unknown_client_closes_its_connection_once(bench: Bench) -> None:
    """A process before us let it in: it has to connect again. What else it had sent is ignored."""
    for _ in range(20):
        bench.frame(b"hello?")
    assert bench.writer.to("1") == [close_frame(1012), None]
    assert bench.events == []


# -- closing ---------------------------------------------------------------------------------------------------------


def test_the_peers_close_is_echoed_and_reported(bench: Bench) -> None:
    """Code and reason as it sent them; the code goes back; then the connection ends."""
    bench.connect()
    bench.frame(build_close(4001, "bye"), Opcode.CLOSE)
    assert bench.writer.to("1") == [close_frame(4001), None]
    assert bench.ends() == [(4001, "bye")]


def test_a_close_without_a_code_is_1005_and_echoed_empty(bench: Bench) -> None:
    """1005 itself never travels."""
    bench.connect()
    bench.frame(b"", Opcode.CLOSE)
    assert bench.writer.to("1") == [close_frame(None), None]
    assert bench.ends() == [(1005, "")]


def test_our_close_waits_for_the_peers(bench: Bench) -> None:
    """The connection ends, and is reported, when the peer has answered."""
    [entry] = bench.connect()
    bench.sessions.close(entry, 1000, "done")
    assert bench.writer.to("1") == [close_frame(1000, "done")]
    assert (entry.state, entry.ending, bench.events) == (CLOSING, (1000, "done"), [])
    bench.frame(b"still sent before it saw the close")
    bench.frame(b"p", Opcode.PING)
    bench.frame(build_close(1000), Opcode.CLOSE)
    assert bench.writer.to("1") == [close_frame(1000, "done"), None]
    assert bench.ends() == [(1000, "")]
    assert entry.state == CLOSED


def test_a_second_close_changes_nothing(bench: Bench) -> None:
    """Whoever closes first says why."""
    [entry] = bench.connect()
    bench.sessions.close(entry, 1001, "first")
    bench.sessions.close(entry, 1011, "second")
    assert bench.writer.to("1") == [close_frame(1001, "first")]


def test_a_close_that_may_not_travel_is_refused_and_changes_nothing(bench: Bench) -> None:
    """The mistake raises in its caller."""
    [entry] = bench.connect()
    with pytest.raises(LocalProtocolError):
        bench.sessions.close(entry, 1006)
    with pytest.raises(LocalProtocolError):
        bench.sessions.close(entry, 1000, "x" * 124)
    assert entry.state == OPEN and bench.writer.sent == []


def test_a_peer_that_does_not_answer_our_close_is_dropped(bench: Bench) -> None:
    """After ``close_timeout`` it is cut off, and reported with 1006."""
    [entry] = bench.connect()
    bench.sessions.close(entry)
    bench.wait(9.9)
    assert bench.events == [] and bench.writer.cancelled == []
    bench.wait(0.2)
    assert bench.ends() == [(1006, "")]
    assert bench.writer.cancelled == ["1"] and bench.writer.forgotten == ["1"]


def test_many_that_are_overdue_are_dropped_a_batch_at_a_time(bench: Bench) -> None:
    """The hub gets its turn in between; in the end all are gone."""
    entries = bench.connect(*map(str, range(1, 1001)))
    for entry in entries:
        bench.sessions.close(entry)
    bench.wait(10.1)
    assert 0 < len(bench.events) < 1000
    with gevent.Timeout(5):
        while len(bench.events) < 1000:
            gevent.sleep(0.001)
    assert len(bench.writer.cancelled) == 1000


def test_closes_go_by_their_own_time(bench: Bench) -> None:
    """Of many that are closing, those that are due are dropped and the others wait on."""
    first, second = bench.connect("1", "2")
    bench.sessions.close(first)
    bench.wait(5)
    bench.sessions.close(second)
    bench.wait(5.1)
    assert [event.conn_id for event in bench.events] == ["1"]
    bench.wait(5.1)
    assert [event.conn_id for event in bench.events] == ["1", "2"]
    assert not any(timer.callback for timer in bench.context.timers)


@pytest.mark.parametrize("how", ["peer's close", "fault", "refusal", "silence"])
def test_a_client_that_does_not_read_its_end_is_cut_off(bench: Bench, how: str) -> None:
    """The server would keep its connection forever, for what is queued before the close."""
    if how == "refusal":
        bench.handshake(sec_websocket_version="7")
    else:
        [entry] = bench.connect()
        if how == "peer's close":
            bench.frame(build_close(1000), Opcode.CLOSE)
        elif how == "fault":
            bench.frame(b"\xff")
            bench.wait(0.1)
        else:
            entry.awaits_pong = True
            bench.sessions.ping([entry], b"ping", SENDER)
    sent = len(bench.writer.sent)
    bench.frame(b"in flight")
    bench.wait(9)
    assert bench.writer.cancelled == []
    bench.wait(2)
    assert bench.writer.cancelled == ["1"]
    assert len(bench.writer.sent) == sent


def test_a_client_that_is_known_to_be_gone_is_not_cut_off(bench: Bench) -> None:
    """The notice tells that the server has forgotten it."""
    bench.connect()
    bench.frame(build_close(1000), Opcode.CLOSE)
    assert bench.notice()
    bench.wait(11)
    assert bench.writer.cancelled == []


def test_a_notice_ends_a_websocket_with_1006_once(bench: Bench) -> None:
    """However often it is told."""
    bench.connect()
    assert bench.notice()
    assert not bench.notice()
    assert bench.ends() == [(1006, "")]


def test_notices_of_strangers_are_not_ours(bench: Bench) -> None:
    """They may be about an HTTP request."""
    assert not bench.notice("77")


def test_a_lost_server_ends_all(bench: Bench) -> None:
    """Nothing is sent to anybody: the numbers will be others'."""
    bench.connect("1", "2", "3")
    bench.sessions.lost()
    assert bench.ends() == [(1006, "the server restarted")] * 3
    assert bench.writer.sent == [] and len(bench.registry) == 0


def ends_by(bench: Bench, entry: Entry, how: str) -> None:
    if how == "peer's close":
        bench.frame(build_close(1000), Opcode.CLOSE)
    elif how == "our close":
        bench.sessions.close(entry)
    elif how == "fault":
        bench.frame(b"\xff")
    elif how == "notice":
        bench.notice()
    elif how == "lost":
        bench.sessions.lost()
    elif how == "silence":
        entry.awaits_pong = True
        bench.sessions.ping([entry], b"ping", SENDER)
    elif how == "queue":
        bench.sessions.fail(entry, 1013, "queue")
    elif how == "all":
        bench.sessions.close_all(1001)
    else:
        bench.wait(30)


ENDS = ["peer's close", "our close", "fault", "notice", "lost", "silence", "queue", "all", "time"]


@pytest.mark.parametrize("third", ENDS)
@pytest.mark.parametrize("second", ENDS)
@pytest.mark.parametrize("first", ENDS)
def test_there_is_one_close_for_a_connect_whatever_happens(make: Any, first: str, second: str, third: str) -> None:
    """Every order of three ends, and time after them: one event, and an empty registry."""
    bench = make()
    [entry] = bench.connect()
    for how in (first, second, third, "time", "time"):
        ends_by(bench, entry, how)
    expected = 0 if {first, second, third} == {"time"} else 1
    assert len(bench.ends()) == expected
    assert len(bench.registry) == 1 - expected
    # 1012 answers a frame that a client sent after the server said that it had gone, which no server does.
    closes = [data for data in bench.writer.to("1") if data and data[0] == 0x88 and data != close_frame(1012)]
    assert len(closes) <= 1


def test_close_all_tells_everybody_and_lets_nobody_in_any_more(make: Any) -> None:
    """Close frames to 128 at a time, then the ends; those that are still being decided about get 503."""
    decide = Event()
    bench = make(on_handshake=lambda request: decide.wait() and None)
    bench.handshake("500")
    gevent.sleep(0)
    for number in range(1, 201):
        entry = Entry((SENDER, str(number)))
        entry.state = OPEN
        bench.registry.add(entry)
        bench.sessions.senders[SENDER] = SENDER
    bench.sessions.close_all(CloseCode.GOING_AWAY)
    assert bench.ends() == [(1001, "")] * 200
    assert [len(ids) for ids, data in bench.writer.sent if data == close_frame(1001)] == [128, 72]
    assert bench.writer.to("1") == [close_frame(1001), None]
    assert bench.writer.to("500")[0].startswith(b"HTTP/1.1 503 ")
    bench.handshake("501")
    assert bench.writer.to("501")[0].startswith(b"HTTP/1.1 503 ")
    decide.set()
    gevent.sleep(0)
    bench.sessions.stop()
    assert "WEBSOCKET_CONNECT" not in bench.methods() and all(timer.closed for timer in bench.context.timers)


def test_close_all_goes_on_when_one_batch_cannot_be_sent(bench: Bench) -> None:
    """A full pipe is logged; everybody is reported all the same."""
    bench.connect("1", "2")
    bench.writer.failure = SendTimeout("full")
    bench.sessions.close_all(1001)
    assert len(bench.ends()) == 2


# -- sending ---------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_after_our_close(bench: Bench) -> None:
    """RFC 6455, section 5.5.1: no data after a close frame."""
    [entry] = bench.connect()
    bench.sessions.close(entry)
    bench.writer.sent.clear()
    bench.sessions.send([entry], b"late", Opcode.TEXT)
    bench.sessions.ping([entry], b"ping", SENDER)
    assert bench.writer.sent == []


def test_a_broadcast_is_encoded_once_for_all_that_are_alike(bench: Bench) -> None:
    """One frame for the plain, one for the compressed, none for one that is closing."""
    plain = bench.connect("1", "2")
    packed = bench.connect("3", "4", deflate=DeflateConfig())
    [closing] = bench.connect("5")
    bench.sessions.close(closing)
    bench.writer.sent.clear()
    bench.sessions.send([*plain, *packed, closing], b"abc" * 200, Opcode.TEXT)
    assert [conn_ids for conn_ids, _ in bench.writer.sent] == [["1", "2"], ["3", "4"]]
    assert bench.writer.sent[0][1] == build_frame(b"abc" * 200)
    assert bench.writer.sent[1][1] is not None and bench.writer.sent[1][1][0] == 0xC1


def inflated(bench: Bench, conn_id: str = "1") -> list[bytes]:
    """What a client with context takeover makes of all that it was sent."""
    parser, inflate, found = FrameParser(require_mask=False), zlib.decompressobj(-15), []
    for data in bench.writer.to(conn_id):
        for frame in parser.feed(data or b""):
            found.append(inflate.decompress(frame.payload + b"\0\0\xff\xff") if frame.rsvd else frame.payload)
    return found


def test_single_messages_and_broadcasts_share_a_window(bench: Bench) -> None:
    """After a broadcast, which moved the peer's window without ours, single messages still inflate."""
    first, second = bench.connect("1", "2", deflate=DeflateConfig())
    messages = [b"%d and then some text that repeats itself, repeats itself. " % number * 8 for number in range(6)]
    for number, message in enumerate(messages):
        bench.sessions.send([first, second] if number % 3 == 1 else [first], message, Opcode.TEXT)
    assert inflated(bench) == messages


def test_a_message_taken_back_from_a_full_pipe_is_not_referred_to(bench: Bench) -> None:
    """What was sent behind it, by another greenlet, still inflates."""
    [entry] = bench.connect(deflate=DeflateConfig())
    text = b"the same words over and over, the same words over and over; " * 8
    bench.writer.pipe_full = True
    lost = entry.deflate.encode(text)  # type: ignore[union-attr]
    assert lost[1]
    bench.sessions.send([entry], text, Opcode.TEXT)
    bench.writer.failure = SendTimeout("full")
    with pytest.raises(SendTimeout):
        bench.sessions.send([entry], text, Opcode.TEXT)
    bench.writer.failure = None
    bench.writer.pipe_full = False
    bench.sessions.send([entry], text, Opcode.TEXT)
    assert inflated(bench) == [text, text]


def test_a_client_that_does_not_read_what_is_broadcast_is_ended(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """With 1013, and a WARNING that names the setting; the others get it."""
    entries = bench.connect("1", "2", "3")
    bench.writer.slow = ["2"]
    bench.sessions.send(entries, b"news", Opcode.TEXT)
    assert [(event.conn_id, event.close_code) for event in bench.events] == [("2", 1013)]
    assert bench.writer.to("3") == [build_frame(b"news")]
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "slow_timeout" in record.getMessage()


def test_a_broadcast_to_one_does_not_wait_for_it(bench: Bench) -> None:
    """It is ended as one of many would be."""
    entries = bench.connect("1")
    bench.writer.slow = ["1"]
    bench.sessions.broadcast(entries, b"news", Opcode.TEXT)
    assert [(event.conn_id, event.close_code) for event in bench.events] == [("1", 1013)]


def test_an_invalid_frame_raises_in_the_caller(bench: Bench) -> None:
    """Nothing was sent."""
    [entry] = bench.connect()
    with pytest.raises(LocalProtocolError):
        bench.sessions.send([entry], b"x" * 126, Opcode.PING)
    assert bench.writer.sent == []


# -- liveness --------------------------------------------------------------------------------------------------------


def test_a_client_that_answers_stays_and_one_that_does_not_is_ended(bench: Bench) -> None:
    """Close 1011 on the wire, 1006 for the application, once."""
    alive, dead = bench.connect("1", "2")
    bench.sessions.ping([alive, dead], b"ping", SENDER)
    assert bench.writer.sent == [(["1", "2"], b"ping")]
    bench.frame(b"", Opcode.PONG, conn_id="1")
    for _ in range(2):
        bench.sessions.ping([alive, dead], b"ping", SENDER)
        bench.frame(b"", Opcode.PONG, conn_id="1")
    assert bench.writer.to("2")[1:] == [close_frame(1011, "ping timeout"), None]
    assert bench.ends() == [(1006, "ping timeout")]
    assert list(bench.registry) == [alive.sid]


def test_a_ping_that_could_not_be_sent_is_not_held_against_anybody(bench: Bench) -> None:
    """The pipe was full: nobody was asked, so nobody failed to answer."""
    [entry] = bench.connect()
    bench.writer.failure = SendTimeout("full")
    with pytest.raises(SendTimeout):
        bench.sessions.ping([entry], b"ping", SENDER)
    bench.writer.failure = None
    bench.sessions.ping([entry], b"ping", SENDER)
    assert bench.events == [] and bench.writer.to("1") == [b"ping"]


def test_without_judging_all_are_pinged_again(bench: Bench) -> None:
    """The process was too busy to see pongs; connections have to be kept busy all the same."""
    [entry] = bench.connect()
    for _ in range(3):
        bench.sessions.ping([entry], b"ping", SENDER, judge=False)
    assert bench.writer.to("1") == [b"ping"] * 3 and bench.events == []


def test_a_client_that_goes_on_reading_has_not_come_to_the_ping_yet(bench: Bench) -> None:
    """With flow control progress is seen; without any, silence is silence."""
    [entry] = bench.connect()
    entry.awaits_pong = True
    for taken in (100, 200, 300):
        bench.writer.taken["1"] = taken
        bench.sessions.ping([entry], b"ping", SENDER)
        assert bench.events == []
    bench.sessions.ping([entry], b"ping", SENDER)
    assert bench.ends() == [(1006, "ping timeout")]


# -- several processes -----------------------------------------------------------------------------------------------


def shared_headers() -> dict[str, str]:
    return {"VERSION": "HTTP/1.1", "host": "here", **request_headers(new_key())}


def test_a_message_of_a_client_that_another_process_let_in_is_delivered(make: Any) -> None:
    """It is reported as connected, then its message; the 101 was the other's."""
    bench = make(shared=True)
    bench.frame(b"hello", **shared_headers())
    bench.frame(b"again", **shared_headers())
    assert bench.methods() == ["WEBSOCKET_CONNECT", "WEBSOCKET", "WEBSOCKET"]
    assert bench.events[0].header("FLAGS") is None
    assert bench.writer.sent == []
    bench.frame(build_close(1000), Opcode.CLOSE)
    assert bench.ends() == [(1000, "")]


def test_a_message_of_a_client_that_the_other_process_refuses_is_not_delivered(make: Any) -> None:
    """Mongrel2 hands over what was sent before the answer; the handshake is judged here, too."""
    bench = make(shared=True, handshake=Handshake(origins=["https://ours.example"]))
    bench.frame(b"evil", **{**shared_headers(), "origin": "https://theirs.example"})
    bench.frame(b"evil", **{**shared_headers(), "sec-websocket-key": "\xff"}, conn_id="2")
    assert bench.events == [] and bench.writer.to("1") == [None] and bench.writer.to("2") == [None]


def test_control_frames_are_served_by_the_process_that_gets_them(make: Any) -> None:
    """They need no entry; nor does a bad one make any."""
    bench = make(shared=True)
    bench.frame(b"p", Opcode.PING)
    bench.frame(b"p", Opcode.PONG)
    bench.sessions.message(Request(SENDER, "2", "/", {"METHOD": "WEBSOCKET", "FLAGS": "junk"}, b""))
    bench.frame(build_close(1000), Opcode.CLOSE)
    assert bench.writer.to("1") == [build_frame(b"p", Opcode.PONG), close_frame(None), None]
    assert bench.writer.to("2") == [close_frame(None), None]
    assert bench.events == [] and len(bench.registry) == 0


def test_pongs_that_scatter_end_nobody(make: Any) -> None:
    """Another process may have got the pong."""
    bench = make(shared=True)
    [entry] = bench.connect()
    for _ in range(3):
        bench.sessions.ping([entry], b"ping", SENDER)
    assert bench.events == [] and bench.writer.to("1") == [b"ping"] * 3


def test_a_closed_connection_raises_with_code_and_reason_of_its_end(bench: Bench) -> None:
    """The entry knows them from the moment on, before the event was looked at."""
    [entry] = bench.connect()
    bench.frame(build_close(4000, "why not"), Opcode.CLOSE)
    error = ConnectionClosed(*entry.ending)
    assert (error.code, error.reason) == (4000, "why not")
