"""WebSockets whose protocol another process runs, over a carrier that only notes what it is told."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from websockets_bench import SENDER, Bench, close_frame, handshake_request

from greentx.errors import ConnectionClosed, LocalProtocolError
from greentx.handler.relayed import MOVED
from greentx.handler.websocket import WebSocket
from greentx.protocol.request import Request
from greentx.protocol.websocket.frames import Opcode, build_flags, build_frame
from greentx.protocol.websocket.handshake import Handshake
from greentx.protocol.websocket.registry import CLOSED, CLOSING


class Carrier:
    """Notes what it is told; what was given may be redelivered."""

    def __init__(self, *, decided: bool = True) -> None:
        self.told: list[Any] = []
        self.adopted = False
        self.groups = ("there",)
        self.moved = False
        self.receives = False
        self.state = b'{"n":1}'
        self.redelivered = False
        self.decided = decided

    def accept(self, head: bytes, subprotocol: str | None, *, own: bool) -> str | None:
        self.told.append(("accept", head.startswith(b"HTTP/1.1 101 "), subprotocol, own))
        return "agreed" if self.decided else subprotocol

    def answer(self, data: bytes, close: bool) -> None:
        self.told.append(("answer", data[:13], close))

    def give(self) -> bool:
        self.told.append("give")
        return self.redelivered

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: self.told.append((name, *arguments, *named.values()))


def held_request(carrier: Any, **headers: Any) -> Request:
    """A handshake that another process has received; *carrier* stands in for what carries to that."""
    request = handshake_request("1", **headers)
    request.carrier = carrier
    return request


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


class Carried:
    """One that began, with a WebSocket that gets its events."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.carrier = Carrier()
        request = held_request(self.carrier)
        self.bench.sessions.relayed.open(request, "chat")
        [self.connect] = self.bench.events
        self.entry = self.connect.entry
        connection: Any = Connection(self.bench)
        self.ws = WebSocket(connection, self.entry, request, self.bench.registry)
        self.entry.on_event = self.ws.feed

    @property
    def told(self) -> list[Any]:
        told, self.carrier.told = self.carrier.told, []
        return told

    def message(self, text: str) -> None:
        headers = {"METHOD": "WEBSOCKET", "FLAGS": build_flags(Opcode.TEXT)}
        request = Request(SENDER, "1", "/", headers, text.encode())
        request.text = text
        self.bench.sessions.relayed.message(self.entry, request)


@pytest.fixture
def carried() -> Carried:
    """One that is open."""
    return Carried()


def test_it_begins_as_it_is_there(carried: Carried) -> None:
    """With its subprotocol, its groups and its state; nothing is sent, and of the groups nothing is told."""
    ws = carried.ws
    assert (carried.connect.method, ws.subprotocol, ws.closed, ws.adopted, ws.moved) == (
        "WEBSOCKET_CONNECT",
        "chat",
        False,
        False,
        False,
    )
    assert carried.bench.registry.groups((SENDER, "1")) == ("there",)
    assert dict(ws.state) == {"n": 1} and carried.carrier.receives
    assert carried.told == [] and carried.bench.writer.sent == []


def test_all_that_it_sends_is_carried(carried: Carried) -> None:
    """Nothing goes to the server from here; what cannot be sent is refused here."""
    ws, sessions = carried.ws, carried.bench.sessions
    ws.send("text")
    ws.send(b"bytes")
    sessions.send([carried.entry, carried.entry], b"x", Opcode.TEXT)
    pinging = gevent.spawn(ws.ping, b"ping")
    gevent.sleep(0)
    carried.entry.on_pong(b"ping")
    assert pinging.get(timeout=5) < 5
    ws.join("group")
    ws.leave("group")
    ws.leave("group")
    ws.state["n"] = 2
    assert carried.told == [
        ("send", b"text", Opcode.TEXT, 0),
        ("send", b"bytes", Opcode.BINARY, 0),
        ("send", b"x", Opcode.TEXT, 0),
        ("send", b"x", Opcode.TEXT, 0),
        ("ping", b"ping"),
        ("group", "group", True),
        ("group", "group", False),
        ("write_state", b'{"n":2}'),
    ]
    with pytest.raises(LocalProtocolError):
        sessions.send_to(carried.entry, b"x" * 126, Opcode.PING)
    with pytest.raises(LocalProtocolError):
        ws.ping(b"x" * 126)
    with pytest.raises(LocalProtocolError):
        ws.begin_close(1005)
    assert (carried.told, carried.bench.writer.sent) == ([], [])


def test_a_message_is_handled_when_the_next_one_is_asked_for(carried: Carried) -> None:
    """And says whether it may have been handled elsewhere."""
    carried.carrier.redelivered = True
    carried.message("one")
    carried.message("two")
    assert (carried.ws.receive(), carried.ws.redelivered) == ("one", True)
    carried.carrier.redelivered = False
    assert (carried.ws.receive(), carried.ws.redelivered) == ("two", False)
    waiting = gevent.spawn(carried.ws.receive)
    gevent.sleep(0)
    carried.message("three")
    assert waiting.get(timeout=5) == "three"
    assert carried.told == [("ask",), "give", ("ask",), "give", ("ask",), "give"]


def test_where_it_moves_the_application_sees_no_message_more(carried: Carried) -> None:
    """What waits here, and what a receiver was just woken with, comes there."""
    waiting = gevent.spawn(carried.ws.receive)
    gevent.sleep(0)
    carried.message("woken with")
    carried.message("waiting")
    carried.carrier.moved = True
    carried.bench.sessions.relayed.moved(carried.entry)
    assert waiting.get(timeout=5) is None and carried.ws.receive() is None
    ws = carried.ws
    assert (ws.closed, ws.moved, ws.close_code, ws.close_reason) == (True, True, 1012, MOVED)
    with pytest.raises(ConnectionClosed, match=MOVED):
        ws.send("late")
    assert carried.bench.queued.held == 0 and len(carried.bench.registry) == 0 and carried.bench.writer.sent == []


def test_its_end_there_is_its_end_here(carried: Carried) -> None:
    """Messages before it are still received."""
    carried.message("last")
    carried.bench.sessions.relayed.ended(carried.entry, 4000, "bye")
    assert list(carried.ws) == ["last"]
    assert (carried.ws.close_code, carried.ws.close_reason, carried.ws.moved) == (4000, "bye", False)


def test_to_close_waits_for_the_end_there(carried: Carried) -> None:
    """Messages that come meanwhile are nobody's."""
    closing = gevent.spawn(carried.ws.close, 4001, "enough")
    gevent.sleep(0)
    assert carried.told == [("close", 4001, "enough")] and carried.entry.state == CLOSING
    carried.message("late")
    carried.bench.sessions.relayed.ended(carried.entry, 4001, "enough")
    closing.join(5)
    assert closing.dead and carried.ws.receive() is None and carried.entry.state == CLOSED
    assert carried.bench.writer.sent == []


@pytest.mark.parametrize("killed", [False, True])
def test_the_end_of_its_handler_is_told(carried: Carried, killed: bool) -> None:
    """Before it is closed, which nobody does to one that has moved with it."""
    if killed:
        carried.bench.sessions.relayed.moved(carried.entry)
    carried.ws.finish(1000, killed=killed)
    assert carried.told == [("finish", killed), *([] if killed else [("close", 1000, "")])]


def test_a_bound_that_is_reached_here_ends_it_there(carried: Carried) -> None:
    """It is over here at once."""
    carried.bench.sessions.fail(carried.entry, 1013, "too much")
    assert carried.told == [("fail", 1013, "too much")]
    assert (carried.ws.close_code, carried.ws.close_reason) == (1013, "too much")


def test_frames_that_the_application_built_are_carried_as_messages(carried: Carried) -> None:
    """Whole ones; of others the other process could make nothing."""
    write = carried.bench.sessions.relayed.write
    write(carried.entry, build_frame(b"a", Opcode.TEXT) + build_frame(b"b", Opcode.PING) + close_frame(4000, "bye"))
    assert carried.told == [("send", b"a", Opcode.TEXT, 0), ("send", b"b", Opcode.PING, 0), ("close", 4000, "bye")]
    for wrong in (
        b"hello",
        build_frame(b"text", Opcode.TEXT)[:-1],
        build_frame(b"a", Opcode.TEXT, fin=False) + build_frame(b"b", 0),
        build_frame(b"x", Opcode.TEXT, mask=b"abcd"),
        build_frame(b"x", Opcode.TEXT) + b"\x83\x00",
    ):
        with pytest.raises(LocalProtocolError):
            write(carried.entry, wrong)
    assert carried.told == []


def test_what_the_server_does_here_does_not_concern_it(carried: Carried) -> None:
    """Its end, its restart, pings: all of that is seen where the protocol is run."""
    carried.bench.sessions.lost()
    assert not carried.bench.notice("1")
    found = carried.bench.sessions.ping([carried.entry], b"ping", SENDER)
    assert found == 0 and not carried.ws.closed and carried.bench.writer.sent == []
    assert SENDER in carried.bench.sessions.senders


def test_a_broadcast_here_leaves_it_out(carried: Carried) -> None:
    """The other process reaches it."""
    carried.bench.sessions.broadcast([carried.entry], b"x", Opcode.TEXT)
    assert (carried.told, carried.bench.writer.sent) == ([], [])


def test_all_are_let_go_where_all_are_closed(carried: Carried) -> None:
    """No close frame is sent: they go on elsewhere."""
    assert not carried.bench.sessions.relayed.leaving
    carried.bench.sessions.close_all(1001)
    assert carried.told == [("leave",)] and not carried.ws.closed and carried.bench.writer.sent == []
    assert carried.bench.sessions.relayed.leaving


# -- opening handshakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decided", [False, True])
def test_what_is_accepted_here_is_let_in_there(decided: bool) -> None:
    """With what was agreed on; where that was done before, with what it was then."""
    bench = Bench(handshake=Handshake(subprotocols=("chat",)))
    carrier = Carrier(decided=decided)
    bench.sessions.handshake(held_request(carrier, sec_websocket_protocol="chat"))
    [event] = bench.events
    assert carrier.told == [("accept", True, "chat", False)] and bench.writer.sent == []
    assert (event.method, event.entry.subprotocol) == ("WEBSOCKET_CONNECT", "agreed" if decided else "chat")
    assert event.entry.deflate is None and event.entry.groups == ("there",)


def test_what_is_refused_here_is_answered_there() -> None:
    """Nothing is hung up from here."""
    bench = Bench(handshake=Handshake(origins=["https://example.org"]))
    carrier = Carrier()
    bench.sessions.handshake(held_request(carrier, origin="https://example.com"))
    assert carrier.told == [("answer", b"HTTP/1.1 403 ", True)]
    assert bench.writer.sent == [] and bench.events == []


def test_one_that_is_undecided_at_the_end_is_let_go() -> None:
    """Another process may let it in."""
    bench = Bench()
    bench.sessions.close_all(1001)
    carrier = Carrier()
    bench.sessions.handshake(held_request(carrier))
    assert carrier.told == [("leave",)] and bench.writer.sent == []


@pytest.mark.parametrize("how", ["accept", "accept_raw", "accept_own"])
def test_a_held_one_is_let_in_there(how: str) -> None:
    """Its frames are read and written there, also where the application wrote the 101."""
    bench = Bench()
    carrier = Carrier(decided=False)
    request = held_request(carrier)
    bench.sessions.hold(request)
    answer: Any = bench.sessions.check(request)
    got: list[Request] = []
    if how == "accept":
        bench.sessions.accept(request, answer, lambda entry: got.append)
    elif how == "accept_raw":
        bench.sessions.accept_raw(request, answer.head, got.append)
    else:
        bench.sessions.accept_own(request, answer.head, "mine", got.append)
    entry = bench.registry.get((SENDER, "1"))
    assert entry is not None
    used: Any = entry.carrier
    assert used is carrier
    assert carrier.told == [("accept", True, "mine" if how == "accept_own" else None, how != "accept")]
    assert entry.raw_bits is None and bench.writer.sent == []
    bench.sessions.relayed.message(entry, Request(SENDER, "1", "/", {"METHOD": "WEBSOCKET"}, b"x"))
    assert [one.body for one in got] == [b"x"]
