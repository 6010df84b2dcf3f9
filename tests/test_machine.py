"""One WebSocket without I/O: the table of states, row by row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentx.errors import LocalProtocolError
from greentx.protocol.bounds import Queued
from greentx.protocol.request import Request
from greentx.protocol.websocket.deflate import DeflateConfig, PerMessageDeflate, negotiate, offer
from greentx.protocol.websocket.frames import Opcode, build_close, build_flags, build_frame, parse_close
from greentx.protocol.websocket.handshake import Accepted, Handshake, Refused, accept_key, new_key, request_headers
from greentx.protocol.websocket.machine import (
    DELIVER,
    MAX_CLOSE_REASON,
    NOTHING,
    PING_PAYLOAD,
    Deadline,
    Machine,
    Step,
    allowed_bits,
    close_frame,
    pack,
)
from greentx.protocol.websocket.opening import MAX_EARLY, Opening
from greentx.protocol.websocket.registry import (
    CLOSED,
    CLOSING,
    CONNECTING,
    OPEN,
    Entry,
)

SID = ("test", "1")

PONG = Step(frame=build_frame(b"p", Opcode.PONG), if_read=True)


def message(payload: bytes = b"", opcode: int = Opcode.TEXT, rsvd: int = 0, **headers: Any) -> Request:
    """What Mongrel2 hands over for one message."""
    fields = {"METHOD": "WEBSOCKET", "PATH": "/", "FLAGS": build_flags(opcode, rsvd), **headers}
    return Request(*SID, "/", fields, payload)


def entry_in(state: str, *, raw_bits: int | None = None, deflate: PerMessageDeflate | None = None) -> Entry:
    """A WebSocket that has got so far by the machine's own steps."""
    entry = Entry(SID)
    entry.state = OPEN
    entry.deflate = deflate
    entry.raw_bits = raw_bits
    machine = Machine(max_size=None)
    if state == CLOSING:
        machine.close(entry, 4000, "ours")
    elif state == CLOSED:
        machine.end(entry, 4001, "over")
    return entry


def look(entry: Entry, what: str, machine: Machine | None = None) -> Step:
    """Let something happen to a WebSocket, by its name in the table."""
    machine = machine or Machine(max_size=100)
    messages = {
        "text": message(b"text"),
        "binary": message(b"\xff", Opcode.BINARY),
        "ping": message(b"p", Opcode.PING),
        "pong": message(b"p", Opcode.PONG),
        "our pong": message(PING_PAYLOAD + b"7", Opcode.PONG),
        "close frame": message(build_close(4002, "theirs"), Opcode.CLOSE),
        "empty close frame": message(b"", Opcode.CLOSE),
        "fault": message(b"\xff"),
        "too long": message(b"x" * 101),
        "half a close code": message(b"\x03", Opcode.CLOSE),
        "long control frame": message(b"x" * 126, Opcode.CLOSE),
        "no flags": Request(*SID, "/", {"METHOD": "WEBSOCKET"}, b""),
    }
    if what in messages:
        return machine.message(entry, messages[what])
    if what == "close":
        return machine.close(entry, 1001, "ours")
    if what == "fail":
        return machine.fail(entry, 1013, "too much")
    if what == "overdue":
        return machine.overdue(entry)
    if what == "gone":
        return Step(event=machine.gone(entry))
    assert what == "silence"
    entry.awaits_pong = True
    return machine.silent(entry)


#: State, what happens, what is to be done, the code and the reason that the application is told, the next state.
TABLE: list[tuple[str, str, Step, tuple[int, str] | None, str]] = [
    (OPEN, "text", DELIVER, None, OPEN),
    (OPEN, "binary", DELIVER, None, OPEN),
    (OPEN, "ping", PONG, None, OPEN),
    (OPEN, "pong", NOTHING, None, OPEN),
    (OPEN, "close frame", Step(frame=close_frame(4002), hang_up=True), (4002, "theirs"), CLOSED),
    (OPEN, "empty close frame", Step(frame=close_frame(None), hang_up=True), (1005, ""), CLOSED),
    (OPEN, "fault", Step(wait=Deadline.FAULT), None, OPEN),
    (OPEN, "too long", Step(wait=Deadline.FAULT), None, OPEN),
    (OPEN, "half a close code", Step(wait=Deadline.FAULT), None, OPEN),
    (OPEN, "long control frame", Step(wait=Deadline.FAULT), None, OPEN),
    (OPEN, "no flags", Step(wait=Deadline.FAULT), None, OPEN),
    (OPEN, "close", Step(wait=Deadline.CLOSE, frame=close_frame(1001, "ours")), None, CLOSING),
    (
        OPEN,
        "fail",
        Step(frame=close_frame(1013, "too much"), hang_up=True, failed=True),
        (1013, "too much"),
        CLOSED,
    ),
    (OPEN, "overdue", NOTHING, None, OPEN),
    (OPEN, "gone", NOTHING, (1006, ""), CLOSED),
    (OPEN, "silence", Step(frame=close_frame(1011, "ping timeout"), hang_up=True), (1006, "ping timeout"), CLOSED),
    (CLOSING, "text", NOTHING, None, CLOSING),
    (CLOSING, "binary", NOTHING, None, CLOSING),
    (CLOSING, "ping", NOTHING, None, CLOSING),
    (CLOSING, "pong", NOTHING, None, CLOSING),
    (CLOSING, "close frame", Step(hang_up=True), (4002, "theirs"), CLOSED),
    (CLOSING, "empty close frame", Step(hang_up=True), (1005, ""), CLOSED),
    (CLOSING, "half a close code", Step(wait=Deadline.FAULT), None, CLOSING),
    (CLOSING, "close", NOTHING, None, CLOSING),
    (CLOSING, "fail", Step(hang_up=True, failed=True), (1013, "too much"), CLOSED),
    (CLOSING, "overdue", Step(cut_off=True), (1006, ""), CLOSED),
    (CLOSING, "gone", NOTHING, (1006, ""), CLOSED),
    (CLOSING, "silence", NOTHING, None, CLOSING),
    *(
        (CLOSED, what, NOTHING, None, CLOSED)
        for what in (
            "text",
            "binary",
            "ping",
            "pong",
            "close frame",
            "empty close frame",
            "fault",
            "too long",
            "half a close code",
            "no flags",
            "close",
            "fail",
            "overdue",
            "gone",
            "silence",
        )
    ),
]


@pytest.mark.parametrize(("state", "what", "expected", "told", "after"), TABLE, ids=lambda one: str(one)[:20])
def test_each_row_of_the_table_of_states(
    state: str, what: str, expected: Step, told: tuple[int, str] | None, after: str
) -> None:
    """What is to be done, what the application is told, and the next state."""
    entry = entry_in(state)
    step = look(entry, what)
    assert step._replace(event=None) == expected
    assert (None if step.event is None else (step.event.close_code, step.event.close_reason)) == told
    assert entry.state == after
    if told is not None:
        assert entry.ending == told


@pytest.mark.parametrize(
    ("what", "expected", "after"),
    [
        ("text", DELIVER, OPEN),
        ("fault", DELIVER, OPEN),  # text that is not UTF-8 is for the library to refuse
        ("ping", DELIVER, OPEN),
        ("pong", DELIVER, OPEN),
        ("our pong", NOTHING, OPEN),
        ("close frame", Step(frame=close_frame(4002), hang_up=True), CLOSED),
        ("half a close code", Step(wait=Deadline.FAULT), OPEN),
        ("long control frame", Step(wait=Deadline.FAULT), OPEN),
        ("too long", Step(wait=Deadline.FAULT), OPEN),
        ("no flags", Step(wait=Deadline.FAULT), OPEN),
    ],
)
def test_of_a_raw_one_only_the_bounds_and_the_end_are_ours(what: str, expected: Step, after: str) -> None:
    """Its library gets the rest as it came."""
    entry = entry_in(OPEN, raw_bits=0)
    entry.awaits_pong = True
    step = look(entry, what)
    assert step._replace(event=None) == expected
    assert entry.state == after
    assert entry.awaits_pong is (what not in ("pong", "our pong"))


#: What extensions a library agreed on.
NONE, DEFLATE, UNKNOWN = 0, 4, 7

#: Opcode and reserved bits, and with which of these they are no fault.
FIRST_BYTES: list[tuple[int, int, set[int]]] = [
    (Opcode.TEXT, 0, {NONE, DEFLATE, UNKNOWN}),
    (Opcode.TEXT, 4, {DEFLATE, UNKNOWN}),
    (Opcode.BINARY, 2, {UNKNOWN}),
    (Opcode.BINARY, 5, {UNKNOWN}),
    (Opcode.PING, 0, {NONE, DEFLATE, UNKNOWN}),
    (Opcode.PING, 4, {UNKNOWN}),
    (Opcode.PONG, 1, {UNKNOWN}),
    (0, 0, set()),
    (3, 0, set()),
    (7, 7, set()),
    (11, 0, set()),
    (15, 4, set()),
]


@pytest.mark.parametrize("bits", [NONE, DEFLATE, UNKNOWN])
@pytest.mark.parametrize(("opcode", "rsvd", "allowed"), FIRST_BYTES)
def test_of_a_raw_one_opcodes_that_nobody_has_and_bits_that_were_not_agreed_on_are_a_fault(
    opcode: int, rsvd: int, allowed: set[int], bits: int
) -> None:
    """It is 1002, told as any other."""
    entry = entry_in(OPEN, raw_bits=bits)
    step = Machine(max_size=100).message(entry, message(b"x", opcode, rsvd))
    assert step == (DELIVER if bits in allowed else Step(wait=Deadline.FAULT))
    assert (entry.fault is None) is (bits in allowed)
    assert entry.fault is None or entry.fault[0] == 1002


@pytest.mark.parametrize(
    ("lines", "bits"),
    [
        (b"", NONE),
        (b"Sec-WebSocket-Extensions: \r\n", NONE),
        (b"Sec-WebSocket-Extensions: permessage-deflate\r\n", DEFLATE),
        (b"sec-websocket-extensions:Permessage-Deflate; client_max_window_bits=15\r\n", DEFLATE),
        (b"Sec-WebSocket-Extensions: x-own\r\n", UNKNOWN),
        (b'Sec-WebSocket-Extensions: x-own; a="b, permessage-deflate"\r\n', UNKNOWN),
        (b"Sec-WebSocket-Extensions: permessage-deflate, x-own; a=1\r\n", UNKNOWN),
        (b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Extensions: x-own\r\n", UNKNOWN),
        (b"Sec-WebSocket-Extensions: permessage-deflate; =\r\n", UNKNOWN),
        (b"no colon\r\n", UNKNOWN),
    ],
)
def test_what_a_library_agrees_on_says_what_the_reserved_bits_may_be(lines: bytes, bits: int) -> None:
    """Read off its 101, in whatever way that is written; one that cannot be read is for the client to judge."""
    assert allowed_bits(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n" + lines + b"\r\n") == bits


@pytest.mark.parametrize("what", ["text", "ping", "pong", "close frame", "too long"])
def test_a_raw_one_that_is_closed_stays_as_it_is(what: str) -> None:
    """Its library is told nothing more."""
    assert look(entry_in(CLOSED, raw_bits=0), what) == NOTHING


def test_a_raw_one_that_is_closing_gets_no_more_messages() -> None:
    """Our close frame is out."""
    entry = entry_in(CLOSING, raw_bits=0)
    assert look(entry, "text") == NOTHING
    assert look(entry, "close frame")._replace(event=None) == Step(hang_up=True)


def test_a_delivered_message_has_its_opcode_and_its_text() -> None:
    """Text was decoded to check it; the bytes are kept too."""
    request = message("grün".encode())
    assert Machine(max_size=None).message(entry_in(OPEN), request) is DELIVER
    assert (request.opcode, request.body, request.text) == (1, "grün".encode(), "grün")
    request = message(b"\xff", Opcode.BINARY)
    assert Machine(max_size=None).message(entry_in(OPEN), request) is DELIVER
    assert (request.opcode, request.body, request.text) == (2, b"\xff", None)


def test_a_compressed_message_is_inflated() -> None:
    """Its body is what the client meant."""
    ours, theirs = agreed(), agreed()
    data, is_compressed = theirs.encode(b"the same, the same, the same, the same")
    assert is_compressed
    request = message(data, Opcode.TEXT, 4)
    assert Machine(max_size=None).message(entry_in(OPEN, deflate=ours), request) is DELIVER
    assert request.text == "the same, the same, the same, the same"


def agreed() -> PerMessageDeflate:
    found = negotiate(offer(DeflateConfig()), DeflateConfig(threshold=0))
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("what", "code"),
    [("fault", 1007), ("too long", 1009), ("half a close code", 1002), ("no flags", 1002)],
)
@pytest.mark.parametrize("end", ["overdue", "gone"])
def test_a_fault_is_told_when_its_time_has_come_or_the_client_goes(what: str, code: int, end: str) -> None:
    """Until then the application may send, and nothing that the client sends counts."""
    entry = entry_in(OPEN)
    assert look(entry, what) == Step(wait=Deadline.FAULT)
    for more in ("text", "ping", "close frame", "fault"):
        assert look(entry, more) == NOTHING
    assert entry.state == OPEN
    assert entry.fault is not None
    reason = entry.fault[1]
    step = look(entry, end)
    assert step.event is not None
    assert (step.event.close_code, step.event.close_reason) == (code, reason)
    assert step.failed is (end == "overdue")
    assert step.frame == (close_frame(code, reason) if end == "overdue" else b"")
    assert entry.state == CLOSED
    assert look(entry, end)._replace(event=None) == NOTHING


def test_a_fault_after_our_close_brings_no_second_close_frame() -> None:
    """RFC 6455, section 5.5.1: nothing follows a close frame."""
    entry = entry_in(OPEN)
    look(entry, "fault")
    assert look(entry, "close").frame == close_frame(1001, "ours")
    step = look(entry, "overdue")
    assert step._replace(event=None) == Step(hang_up=True, failed=True)
    assert step.event is not None
    assert step.event.close_code == 1007


@pytest.mark.parametrize(("code", "reason"), [(1006, ""), (999, ""), (1000, "x" * 124), (None, "why")])
def test_a_close_that_may_not_travel_changes_nothing(code: int | None, reason: str) -> None:
    """The mistake raises in its caller."""
    entry = entry_in(OPEN)
    with pytest.raises(LocalProtocolError):
        Machine(max_size=None).close(entry, code, reason)
    assert entry.state == OPEN


def test_a_close_without_a_code_is_1005_here() -> None:
    """1005 itself never travels."""
    entry = entry_in(OPEN)
    assert Machine(max_size=None).close(entry, None, "").frame == close_frame(None)
    assert entry.ending[0] == 1005


def test_the_event_of_an_end_has_the_peers_headers_or_ours() -> None:
    """A close frame of the peer's repeats those of its handshake."""
    entry = entry_in(OPEN)
    frame = message(build_close(4002, "theirs"), Opcode.CLOSE, cookie="a=b")
    event = Machine(max_size=None).message(entry, frame).event
    assert event is not None
    assert (event.method, event.opcode, event.header("cookie")) == ("WEBSOCKET_CLOSE", 8, "a=b")
    assert parse_close(event.body) == (4002, "theirs")
    event = Machine(max_size=None).end(entry_in(OPEN), 1001, "bye")
    assert event is not None
    assert (event.method, event.header("FLAGS"), event.header("cookie")) == ("WEBSOCKET_CLOSE", "0x88", None)
    assert parse_close(event.body) == (1001, "bye")
    assert event.sid == SID


@pytest.mark.parametrize("code", [1005, 1006, 1015, 0])
def test_codes_that_never_travel_make_an_empty_close_frame(code: int) -> None:
    """They stand for no frame, or for one without a code."""
    assert close_frame(code, "reason") == close_frame(None) == build_frame(b"", Opcode.CLOSE)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_a_reason_of_our_own_is_cut_between_characters(reason: str) -> None:
    """What is sent is a beginning of it, as long as fits."""
    code, sent = parse_close(close_frame(1011, reason)[2:])
    assert code == 1011
    assert reason.startswith(sent)
    assert sent == reason or MAX_CLOSE_REASON - 4 < len(sent.encode()) <= MAX_CLOSE_REASON


INPUTS = sorted({row[1] for row in TABLE} | {"our pong"})


@given(st.lists(st.sampled_from(INPUTS), max_size=12))
def test_whatever_happens_there_is_one_event_and_one_close_frame(inputs: list[str]) -> None:
    """At most one of each, nothing after CLOSED, and a step says what the state then is."""
    entry = entry_in(OPEN)
    steps: list[Step] = []
    for what in inputs:
        was_closed = entry.state == CLOSED
        step = look(entry, what)
        assert not was_closed or step == NOTHING
        steps.append(step)
    events = [step for step in steps if step.event is not None]
    assert len(events) == (entry.state == CLOSED)
    assert sum(step.frame[:1] == b"\x88" for step in steps) <= 1
    assert not (entry.state == CLOSED and entry.fault)


# -- clients that are not in the registry ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shared", "request_", "expected"),
    [
        (False, message(b"x"), Step(frame=close_frame(1012), hang_up=True)),
        (False, message(b"p", Opcode.PING), Step(frame=close_frame(1012), hang_up=True)),
        (True, message(b"x"), Step(adopt=True)),
        (True, message(b"x", 3), Step(adopt=True)),
        (True, message(b"p", Opcode.PING), PONG),
        (True, message(b"p", Opcode.PING, 4), Step(adopt=True)),
        (True, message(b"p", Opcode.PONG), NOTHING),
        (True, message(build_close(1000), Opcode.CLOSE), Step(frame=close_frame(None), hang_up=True)),
        (True, Request(*SID, "/", {"FLAGS": "junk"}, b""), Step(frame=close_frame(None), hang_up=True)),
    ],
)
def test_what_a_stray_message_gets(shared: bool, request_: Request, expected: Step) -> None:
    """One alone closes it; several processes serve what they can, and open the rest."""
    assert Machine(max_size=None, shared=shared).stray(request_) == expected


def handshake_request(**headers: Any) -> Request:
    key = new_key()
    fields = {"METHOD": "WEBSOCKET_HANDSHAKE", "VERSION": "HTTP/1.1", "host": "here", **request_headers(key), **headers}
    return Request(*SID, "/", fields, accept_key(key))


def test_an_opening_keeps_a_bounded_number_of_early_messages() -> None:
    """What is on top is the client's fault."""
    opening = Opening(handshake_request())
    kept = [message(b"%d" % number) for number in range(MAX_EARLY)]
    queued = Queued()
    assert not any(opening.keep(one, 100, queued) for one in kept)
    assert opening.keep(message(b"one more"), 100, queued) == f"{MAX_EARLY} messages"
    assert opening.early == kept
    del opening
    assert queued.held == 0


@pytest.mark.parametrize(("body", "why"), [(b"x" * 101, "max_message_size"), (b"x" * 100, "max_queue_bytes")])
def test_an_opening_keeps_a_bounded_number_of_bytes(body: bytes, why: str) -> None:
    """The limit of a message holds before the 101, too, and all of them together have one."""
    opening = Opening(handshake_request())
    queued = Queued(per_connection=1000)
    assert not opening.keep(message(b"first"), 100, queued)
    assert why in opening.keep(message(body), 100, queued)


def test_an_opening_is_checked_and_becomes_the_connect() -> None:
    """The handshake itself is the event, without what Mongrel2 put into its body."""
    opening = Opening(handshake_request())
    assert isinstance(opening.check(Handshake()), Accepted)
    refused = opening.check(Handshake(origins=["https://ours.example"]))
    assert isinstance(refused, Refused)
    assert refused.status == 403
    entry = Entry(SID)
    event = opening.connected(entry)
    assert event is opening.request
    assert (event.method, event.body, event.entry) == ("WEBSOCKET_CONNECT", b"", entry)
    assert event.headers["METHOD"] == "WEBSOCKET_CONNECT"


@pytest.mark.parametrize(("key", "accepted"), [("dGhlIHNhbXBsZSBub25jZQ==", True), ("\xff", False), (None, False)])
def test_an_adopted_one_is_checked_by_the_headers_of_its_message(key: str | None, accepted: bool) -> None:
    """Mongrel2 computed the accept value for another process."""
    headers: dict[str, Any] = {"VERSION": "HTTP/1.1", "host": "here", **request_headers(new_key())}
    if key is None:
        del headers["sec-websocket-key"]
    else:
        headers["sec-websocket-key"] = key
    first = message(b"hello", **headers)
    opening = Opening.adopt(first)
    assert opening.adopted
    assert opening.early == [first]
    assert not opening.request.has("FLAGS")
    assert isinstance(opening.check(Handshake()), Accepted if accepted else Refused)


# -- rounds of pings ---------------------------------------------------------------------------------------------------


def never(conn_id: str) -> int | None:
    """The server does not tell how far clients have read."""


def batch(*states: str) -> list[Entry]:
    entries = []
    for number, state in enumerate(states):
        entry = Entry(("test", str(number)))
        entry.state = OPEN
        if state == "waiting":
            entry.awaits_pong = True
        elif state == "relayed":
            carrier: Any = object()
            entry.carrier = carrier
        else:
            entry.state = state
        entries.append(entry)
    return entries


def test_a_round_sorts_a_batch() -> None:
    """Only those that are OPEN, and whose protocol is run here."""
    entries = batch(OPEN, "waiting", CLOSING, CLOSED, CONNECTING, "relayed", OPEN)
    found = Machine(max_size=None).ping(entries, True, never)
    assert found == ([entries[0], entries[6]], [], [entries[1]])
    assert entries[0].awaits_pong
    assert not entries[5].awaits_pong


@pytest.mark.parametrize(("judge", "shared"), [(False, False), (True, True), (False, True)])
def test_nobody_is_silent_where_pongs_may_have_been_missed(judge: bool, shared: bool) -> None:
    """They are pinged again, to keep the connection busy."""
    entries = batch(OPEN, "waiting")
    found = Machine(max_size=None, shared=shared).ping(entries, judge, never)
    assert found == ([entries[0]], ["1"], [])


def test_a_client_that_goes_on_reading_is_not_silent() -> None:
    """It has not come to the ping yet. One that has read nothing since the last round is silent."""
    [entry] = batch("waiting")
    machine = Machine(max_size=None)
    for read in (100, 200, 300):
        assert machine.ping([entry], True, {"0": read}.get) == ([], ["0"], [])
    assert machine.ping([entry], True, lambda conn_id: 300) == ([], [], [entry])
    assert machine.ping([entry], True, never) == ([], [], [entry])


def test_a_silent_one_that_has_answered_meanwhile_is_not_ended() -> None:
    """Sending the round's pings may have taken some time."""
    entry = entry_in(OPEN)
    assert Machine(max_size=None).silent(entry) == NOTHING


def test_a_pong_is_given_to_whom_it_was_asked_for() -> None:
    """The step says so; without anybody it only says that the client lives."""
    entry = entry_in(OPEN)
    entry.on_pong = print
    entry.awaits_pong = True
    assert look(entry, "pong") == Step(pong=True)
    assert not entry.awaits_pong


# -- one message to many -----------------------------------------------------------------------------------------------


def test_a_broadcast_is_packed_once_for_all_that_are_alike() -> None:
    """One frame for the plain ones, one for each kind of compression, nothing for those that are not OPEN."""
    entries = batch(OPEN, OPEN, CLOSING, OPEN, CLOSED, OPEN)
    entries[1].deflate = agreed()
    entries[5].deflate = agreed()
    sender, frames = pack(entries, b"abc" * 100, Opcode.TEXT)
    assert sender == "test"
    assert [ids for _, ids in frames] == [["0", "3"], ["1", "5"]]
    assert frames[0][0] == build_frame(b"abc" * 100)
    assert frames[1][0][0] == 0xC1


@pytest.mark.parametrize(("opcode", "rsvd"), [(Opcode.PING, 0), (Opcode.TEXT, 4)])
def test_control_frames_and_frames_with_reserved_bits_are_not_compressed(opcode: int, rsvd: int) -> None:
    """The caller knows what it does."""
    entries = batch(OPEN)
    entries[0].deflate = agreed()
    assert pack(entries, b"x" * 100, opcode, rsvd) == ("test", [(build_frame(b"x" * 100, opcode, rsvd), ["0"])])


def test_a_broadcast_to_nobody_is_nothing() -> None:
    """Not even a sender is known."""
    assert pack([], b"x", Opcode.TEXT) == ("", [])
    assert pack(batch(CLOSED), b"x", Opcode.TEXT) == ("", [])


def test_a_broadcast_that_may_not_be_sent_raises() -> None:
    """Nothing was packed."""
    with pytest.raises(LocalProtocolError):
        pack(batch(OPEN), b"x" * 126, Opcode.PING)
