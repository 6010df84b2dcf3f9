"""What decides in a relay, without sockets: windows, leases, who has which browser connection, and what is said."""

from __future__ import annotations

import tracemalloc
from typing import Any, cast

import pytest

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.relay.lease import Lease
from greentx.relay.messages import (
    LEASE_SECONDS,
    MAX_BATCH,
    MAX_CAPACITY,
    MAX_SERVERS,
    Hello,
    Server,
    Welcome,
    build_hello,
    build_servers,
    build_welcome,
    build_wrote,
    check_annotation,
    check_number,
    join,
    number,
    numbers,
    parse_hello,
    parse_published,
    parse_servers,
    parse_welcome,
    parse_wrote,
    parts,
    split,
    topic_of,
)
from greentx.relay.reach import reachable
from greentx.relay.session import NodeSession
from greentx.relay.sticky import Sticky
from greentx.relay.window import MAX_QUEUED, WINDOW_BYTES, WINDOW_MESSAGES, Lane

# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"lease 1\n", (b"lease", [b"1"], b"")),
        (b"request 17 r.1 redelivered\nU 1 / ...\n\n", (b"request", [b"17", b"r.1", b"redelivered"], b"U 1 / ...\n\n")),
        (b"left\n", (b"left", [], b"")),
        (b"x  y\n", (b"x", [b"", b"y"], b"")),
    ],
)
def test_a_message_is_a_kind_words_and_bytes(message, expected):
    """The first newline ends the words."""
    assert split(message) == expected


def test_what_a_server_wrote_goes_for_many_connections_in_one_message():
    """By the word for its life."""
    kind, words, _ = split(build_wrote("r.1", {"7": 120, "1234567890": 0}))
    server, counts = parse_wrote(words)
    assert (kind, server, list(counts)) == (b"wrote", b"r.1", [(7, 120), (1234567890, 0)])


@pytest.mark.parametrize("words", [[], [b"r.1", b"7"], [b"r.1", b"7", b"x"], [b"r.1", b"-7", b"1"]])
def test_what_does_not_say_what_a_server_wrote_is_refused(words):
    """Neither half a pair, nor what is no number."""
    with pytest.raises(RemoteProtocolError):
        parse_wrote(words)


@pytest.mark.parametrize("message", [b"", b"\n", b"lease 1", b" \n", b" lease\n", b"x" * 2_000_000 + b"\n"])
def test_what_is_no_message_is_refused(message):
    """Without an end of its words within a bound, or without a kind."""
    with pytest.raises(RemoteProtocolError, match="no kind of message"):
        split(message)


@pytest.mark.parametrize(
    "messages", [[b"a 1\nx"], [b"a 1\nx", b"b\n"], [b"\n\n", b"batch 1\n", b"c 1\n" + b"y" * 3000]]
)
def test_messages_go_together_and_come_apart(messages):
    """One alone goes as it is."""
    joined = join(messages)
    assert list(parts(joined)) == messages
    assert (joined == messages[0]) is (len(messages) == 1)


@pytest.mark.parametrize("message", [b"batch 1\n", b"batch 3\nab", b"batch 1 x\nab", b"batch -1 3\nab", b"batch 1\nab"])
def test_a_batch_whose_lengths_are_wrong_is_refused(message):
    """As a whole: where one of its messages ends is not known."""
    with pytest.raises(RemoteProtocolError):
        parts(message)


def test_a_batch_has_a_bound():
    """Each of its messages costs time, however small it is."""
    assert len(parts(join([b""] * MAX_BATCH))) == MAX_BATCH
    for more in (b"batch " + b" ".join([b"0"] * (MAX_BATCH + 1)) + b"\n", b"batch" + b" " * (MAX_BATCH + 1) + b"\n"):
        with pytest.raises(RemoteProtocolError, match=f"{MAX_BATCH + 1} messages, limit {MAX_BATCH}"):
            parts(more)


def test_of_too_many_servers_what_a_node_said_of_the_oldest_is_forgotten():
    """As it says it again where it means it."""
    session = NodeSession(b"n", Hello("n", 1), 0.0)
    for one in range(MAX_SERVERS + 2):
        session.is_ready(f"r.{one}")
    assert list(session.ready) == [f"r.{one}" for one in range(2, MAX_SERVERS + 2)]


@pytest.mark.parametrize("word", [b"", b"x", b"-1", b"1 ", b"1_0", b"9" * 5000, b"\xb2"])
def test_what_is_no_number_is_refused(word):
    """Alone, and among others."""
    with pytest.raises(RemoteProtocolError, match="is not a number"):
        number(word)
    with pytest.raises(RemoteProtocolError, match="is not a number"):
        numbers([b"1", word])


def test_numbers_are_read():
    """In their order."""
    assert numbers([b"1", b"02", b"300"]) == [1, 2, 300]
    assert numbers([]) == []


def test_a_hello_is_read_back():
    """All that a Node says of itself."""
    hello = Hello("node-1", 17, "a \N{SNOWMAN}")
    kind, words, payload = split(build_hello(hello))
    assert (kind, parse_hello(words, payload)) == (b"hello", hello)


@pytest.mark.parametrize(
    ("words", "payload"),
    [
        ([b"2"], b'{"name": "n", "capacity": 1, "what": ""}'),
        ([], b'{"name": "n", "capacity": 1, "what": ""}'),
        ([b"1"], b""),
        ([b"1"], b"[" * 100_000),
        ([b"1"], b"[]"),
        ([b"1"], b'{"name": "n", "capacity": 0, "what": ""}'),
        ([b"1"], b'{"name": "n", "capacity": %d, "what": ""}' % (MAX_CAPACITY + 1)),
        ([b"1"], b'{"name": "n", "capacity": 1e999, "what": ""}'),
        ([b"1"], b'{"name": "n x", "capacity": 1, "what": ""}'),
        ([b"1"], b'{"name": 1, "capacity": 1, "what": ""}'),
        ([b"1"], b'{"name": "n", "capacity": 1}'),
    ],
)
def test_a_hello_of_another_kind_is_refused(words, payload):
    """A Node of another version, above all."""
    with pytest.raises(RemoteProtocolError):
        parse_hello(words, payload)


SERVERS = [
    Server("front", "r.1", "tcp://127.0.0.1:9998"),
    Server("test one/2", "r.2", "ipc:///tmp/x", stand_in=True, credits=True, key="k" * 40),
]


def test_a_welcome_is_read_back():
    """With all its servers; also one of a relay that publishes nothing."""
    for topics in ("tcp://127.0.0.1:9995", ""):
        welcome = Welcome("r", 123456, topics, SERVERS[:1])
        kind, words, payload = split(b"\n".join(build_welcome(welcome)))
        assert (kind, parse_welcome(words, payload)) == (b"welcome", welcome)


@pytest.mark.parametrize("payload", [b"", b"{}", b"1", b"[1]", b"[{}]", b'[{"sender": "a"}]', b"[" * 100_000])
def test_servers_that_are_none_are_refused(payload):
    """Whatever it is instead."""
    with pytest.raises(RemoteProtocolError):
        parse_servers(payload)


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "a b"},
        {"sender": "a\nb"},
        {"sender": "\ud800"},
        {"word": ""},
        {"word": "a b"},
        {"word": "r.\N{SNOWMAN}"},
        {"word": "r.\n1"},
        {"endpoint": "tcp://\ud800:1"},
        {"stand_in": 1},
        {"key": None},
        {"key": "\N{SNOWMAN}"},
    ],
)
def test_a_server_with_one_wrong_field_is_refused(change):
    """Its word is one of a message's."""
    good = Server("a", "r.1", "tcp://127.0.0.1:1")
    assert parse_servers(build_servers([good])) == [good]
    bad = good._replace(**cast(Any, change))
    with pytest.raises((RemoteProtocolError, LocalProtocolError)):
        parse_servers(build_servers([bad]))


@pytest.mark.parametrize(
    "words",
    [
        [],
        [b"r", b"1"],
        [b"r", b"x", b"-"],
        [b"r", b"1", b"-", b"more"],
        [b"\xff", b"1", b"-"],
        [b"r", b"1", b"\xff"],
        [b"r", b"1", b"tcp://*:1"],
        [b"r", b"1", b"nonsense://x"],
    ],
)
def test_a_welcome_with_other_words_is_refused(words):
    """Three are expected, the last one an endpoint."""
    with pytest.raises(RemoteProtocolError):
        parse_welcome(words, b"[]")


@pytest.mark.parametrize(
    "message", [b"", b"T", b"T:", b"Tx:t,", b"T-1:t,", b"T5:t,", b"T1:t;", b"T" + b"9" * 5000 + b":t,"]
)
def test_what_was_published_without_a_topic_is_refused(message):
    """The others are read back."""
    assert parse_published(topic_of("a:,") + b"message") == (b"a:,", b"message")
    with pytest.raises(RemoteProtocolError):
        parse_published(message)


@pytest.mark.parametrize("text", ["", "x", "-1", "1 2", "9" * 5000])
def test_only_numbers_of_connections_can_be_proved(text):
    """They go to the server as they are."""
    assert check_number("2000000001") == "2000000001"
    with pytest.raises(RemoteProtocolError):
        check_number(text)


def test_annotations_are_in_upper_case():
    """So that no client can send them; without any there is nothing to look at."""
    assert check_annotation(None) == {}
    assert check_annotation({"USER_ID": "1"}) == {"USER_ID": "1"}
    with pytest.raises(LocalProtocolError):
        check_annotation({"user_id": "1"})


# -- windows -----------------------------------------------------------------------------------------------------------


def lane() -> Lane[str]:
    """A new one."""
    return Lane()


def test_a_lane_is_full_by_number_or_by_bytes():
    """Until the Node has accepted some."""
    by_number, by_bytes = lane(), lane()
    for _ in range(WINDOW_MESSAGES):
        assert not by_number.full
        by_number.sent(1, None)
    by_bytes.sent(WINDOW_BYTES, None)
    for one in (by_number, by_bytes):
        assert one.full and one.next() is None
        one.acknowledge(1, 0)
        assert one.full
        one.acknowledge(1, 1)
        assert not one.full


def test_what_waits_goes_in_its_order_as_there_is_room():
    """And its bytes are counted while it waits."""
    one = lane()
    one.sent(WINDOW_BYTES, "first")
    assert one.put(b"ab", "second") and one.put(b"c", None)
    assert one.queued > 3 and one.next() is None
    assert one.acknowledge(1, 1) == ["first"]
    waiting = one.next()
    assert waiting is not None and (waiting.message, waiting.item) == (b"ab", "second")
    one.went()
    waiting = one.next()
    assert waiting is not None and (waiting.message, waiting.item) == (b"c", None)
    one.went()
    assert (one.queued, one.next(), one.unreceived) == (0, None, 2)
    assert one.acknowledge(3, 3) == ["second"]


def test_more_than_the_bound_is_told():
    """It waits all the same: whoever put it there decides."""
    one = lane()
    assert one.put(bytes(MAX_QUEUED // 2), None)
    assert not one.put(bytes(MAX_QUEUED // 2), None)


def test_numbers_that_a_node_makes_up_do_no_harm():
    """It has not received what it was not sent; what it said before stays said."""
    one = lane()
    one.sent(10, "a")
    assert one.acknowledge(100, 100) == ["a"]
    assert one.acknowledge(0, 0) == []
    one.sent(10, "b")
    assert (one.unreceived, one.acknowledge(1, 1)) == (1, [])
    assert one.acknowledge(2, 2) == ["b"]


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_lease_counts_from_when_it_was_sent():
    """As the relay's clock says, and not from when it was seen."""
    lease = Lease()
    assert not lease.holds(100.0)
    lease.compared(100.0, 5000)
    assert lease.holds(100.0 + LEASE_SECONDS - 0.01) and not lease.holds(100.0 + LEASE_SECONDS)
    lease.renewed(5500)
    assert lease.holds(100.5 + LEASE_SECONDS - 0.01) and not lease.holds(100.5 + LEASE_SECONDS)
    lease.renewed(5200)  # an older one, seen later
    assert lease.holds(100.5 + LEASE_SECONDS - 0.01)


def test_a_lease_without_a_comparison_says_nothing():
    """The relay's clock may show anything."""
    lease = Lease()
    lease.renewed(10_000_000)
    assert not lease.holds(0.0)


def test_the_question_that_was_answered_fastest_compares_best():
    """A slow one shortens no lease; old ones are forgotten, as clocks drift."""
    lease = Lease()
    lease.compared(100.0, 8000)  # read 3 s after it was asked for, as far as can be known
    assert not lease.holds(101.5)
    lease.compared(103.0, 8000)
    assert lease.holds(103.0 + LEASE_SECONDS - 0.01)
    for second in range(20):
        lease.compared(110.0 + second, 16_000 + 1000 * second)
    assert lease.holds(129.0 + LEASE_SECONDS - 0.01) and not lease.holds(129.0 + LEASE_SECONDS)


# -- who has which -----------------------------------------------------------------------------------------------------


class Session:
    """As far as the table asks."""

    def __init__(self) -> None:
        self.over = False


def session() -> Any:
    """A new one."""
    return Session()


def test_a_browser_connection_belongs_to_whoever_it_was_bound_to():
    """Until it is forgotten, bound anew, or that session is over."""
    sticky, one, other = Sticky(), session(), session()
    assert sticky.owner("set", "1") is None
    sticky.bind("set", "1", one)
    assert (sticky.owner("set", "1"), sticky.owner("set", "2"), sticky.owner("another", "1")) == (one, None, None)
    sticky.bind("set", "1", other)
    assert (sticky.owner("set", "1"), len(sticky)) == (other, 1)
    other.over = True
    assert sticky.owner("set", "1") is None
    assert sticky.forget("set", "1") is not None and sticky.forget("set", "1") is None
    sticky.bind("set", "1", one)
    sticky.bind("another", "1", one)
    sticky.forget_all("set")
    assert (sticky.owner("set", "1"), sticky.owner("another", "1")) == (None, one)
    sticky.clear()
    assert len(sticky) == 0


def test_a_browser_connection_of_which_nothing_is_open_takes_little():
    """A full table has a million of them."""
    sticky, session, server = Sticky(), NodeSession(b"n", Hello("n", 1), 0.0), object()
    entry = cast(Any, object())
    sticky.bind(server, "0", session)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 2000):
            bound = sticky.bind(server, str(number), session)
            bound.open += (entry,)
            bound.open = bound.open[1:]
            bound.written.done(entry, 0)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken / 2000 < 350


def test_the_table_has_a_bound_and_forgets_the_oldest_that_is_idle():
    """Never one for which something is open, while there is another."""
    sticky, one = Sticky(limit=3), session()
    sticky.bind("set", "busy", one).open += (cast(Any, "request"),)
    for conn_id in ("1", "2", "3"):
        sticky.bind("set", conn_id, one)
    assert [sticky.owner("set", conn_id) for conn_id in ("busy", "1", "2", "3")] == [one, None, one, one]


# -- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "relay", "expected"),
    [
        ("tcp://127.0.0.1:9998", "tcp://127.0.0.1:9996", "tcp://127.0.0.1:9998"),
        ("tcp://127.0.0.1:9998", "tcp://10.0.0.1:9996", "tcp://10.0.0.1:9998"),
        ("tcp://localhost:9998", "tcp://api:9996", "tcp://api:9998"),
        ("tcp://0.0.0.0:9995", "tcp://127.0.0.1:9996", "tcp://127.0.0.1:9995"),
        ("tcp://[::]:9995", "tcp://[fe80::1]:9996", "tcp://[fe80::1]:9995"),
        ("tcp://10.0.0.2:9998", "tcp://10.0.0.1:9996", "tcp://10.0.0.2:9998"),
        ("tcp://mongrel2:9998", "tcp://api:9996", "tcp://mongrel2:9998"),
        ("ipc:///tmp/x", "tcp://api:9996", "ipc:///tmp/x"),
        ("tcp://127.0.0.1:9998", "ipc:///tmp/relay", "tcp://127.0.0.1:9998"),
    ],
)
def test_what_is_on_the_relays_host_is_reached_there(endpoint, relay, expected):
    """Everything else as the relay names it."""
    assert reachable(endpoint, relay) == expected
