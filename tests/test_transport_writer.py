"""The sending half: ready means ready, nothing is lost without a word, no connection gets too many messages."""

from __future__ import annotations

import itertools
import logging
import time

import gevent
import pytest
import zmq
from plain_server import PlainServer, until

from greentx.errors import ConnectionClosed, GreentxError, LocalProtocolError, SendTimeout
from greentx.protocol.flow import (
    BURST,
    EAGER,
    LARGE,
    NOBODY,
    OUTBOX_LIMIT,
    QUEUED,
    RECEIPT_TRIES,
    ROOM,
    Bounds,
    Flow,
    Hearing,
)
from greentx.transport import Context, SocketClosed, Writer
from greentx.transport import pipe as pipe_module
from greentx.transport import receipts as receipts_module
from greentx.transport import writer as writer_module
from greentx.transport.laggards import Laggards
from greentx.transport.waiting import Waiting


@pytest.fixture
def context():
    """An open context, closed after the test."""
    one = Context("test", lambda: None, linger=0.2)
    yield one
    one.close(linger=0)


@pytest.fixture
def write_to(context):
    """A function that connects a writer to a server and waits until it is ready."""

    class Notified:
        def __init__(self, server, *, receipts=True, can_come=lambda: True, **options):
            self.events = []
            self.writer = Writer(
                context,
                on_ready=lambda: self.events.append("ready"),
                on_lost=lambda: self.events.append("lost"),
                receipts=can_come if receipts else None,
                **options,
            )
            self.writer.connect(server.sub_endpoint if isinstance(server, PlainServer) else server)
            if isinstance(server, PlainServer):
                server.greenlets.append(gevent.spawn(self._pull, server))

        def _pull(self, server):
            pull = server.context.socket(zmq.PULL)  # in the place of a receiver
            pull.connect(server.push_endpoint)
            while True:
                self.writer.receipts.arrived(pull.recv().split()[1].decode())

    made = []

    def connect(server, *, ready=True, **options):
        one = Notified(server, **options)
        made.append(one)
        if ready:
            assert one.writer.wait_ready(5)
        return one

    yield connect
    for one in made:
        one.writer.stop()


@pytest.fixture
def server():
    """A plain server, closed after the test; the writers have to be ended before."""
    with PlainServer() as one:
        yield one


def test_it_is_ready_when_the_subscription_was_seen(context, write_to):
    """Not a moment before, and who waits is told."""
    one = write_to("ipc:///nowhere/at/all", ready=False)
    assert not one.writer.wait_ready(0.05)
    assert "waiting for the server" in repr(one.writer)
    one.writer.stop()
    assert not one.writer.wait_ready(5)  # at once: it never will be


def test_what_is_written_right_after_ready_arrives(server, write_to):
    """The first one too."""
    one = write_to(server)
    one.writer.write("uuid", "1", b"hello")
    until(lambda: server.replies)
    assert server.replies == [b"uuid 1:1, hello"]
    assert one.writer.messages_sent == 1
    assert one.events == ["ready"]


@pytest.mark.parametrize(
    ("ident", "sender", "prefix"),
    [(b"", "uuid", b"uuid"), (b"uu", "uuid", b"uuid"), (b"other", "uuid", b"other")],
)
def test_replies_begin_with_what_the_server_listens_to(write_to, ident, sender, prefix):
    """Its own name where it has one: it would not hear others."""
    with PlainServer(ident) as server:
        one = write_to(server)
        one.writer.write(sender, "1", b"x")
        one.writer.write_many(sender, ["1", "2"], b"y")
        one.writer.control(sender, ["1"], b"z")
        one.writer.close(sender, ["1"])
        until(lambda: len(server.replies) == 4)
        assert [reply.split()[0] for reply in server.replies] == [prefix] * 4
        one.writer.stop()


def test_a_server_that_listens_to_what_cannot_be_said_is_an_error(write_to, caplog):
    """Mongrel2 would refuse each reply that begins with it: never ready."""
    with PlainServer(b"a_b") as server:
        one = write_to(server, ready=False)
        until(lambda: "a_b" in caplog.text)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert not one.writer.ready.is_set()
        one.writer.stop()


def test_replies_to_nobody_are_dropped_with_one_warning(server, write_to, caplog):
    """The number is told when the server comes: a log line each would be a flood."""
    one = write_to("ipc:///nowhere/at/all", ready=False)
    for number in range(30):
        one.writer.write("uuid", "1", b"%d" % number)
    one.writer.write_many("uuid", ["1", "2"], b"x")
    one.writer.close("uuid", ["3"])
    assert one.writer.messages_dropped == 32
    assert len(caplog.records) == 1
    assert "ipc:///nowhere/at/all" in caplog.text
    assert not one.writer.flow.outboxes  # nothing of it may come out later


def test_replies_of_a_closed_writer_are_dropped(server, write_to):
    """A connection set that was removed may still be answered: that is no error."""
    one = write_to(server)
    one.writer.stop()
    for _ in range(30):
        one.writer.write("uuid", "1", b"late")
    assert one.writer.messages_dropped == 30
    assert not one.writer.flow.outboxes


def test_a_closed_context_is_an_error(server, write_to, context):
    """Nothing can be sent any more."""
    one = write_to(server)
    context.close()
    with pytest.raises(SocketClosed):
        one.writer.write("uuid", "1", b"late")


def test_a_sender_that_mongrel2_cannot_parse_is_refused(server, write_to):
    """Each such reply would stall its handler for half a second."""
    with pytest.raises(LocalProtocolError):
        write_to(server).writer.write("a_b", "1", b"x")


@pytest.mark.parametrize("how", ["one greenlet", "many greenlets", "many connections"])
def test_many_small_messages_stay_few(server, write_to, how):
    """Whoever writes: at most a burst goes out before a receipt, the rest is joined, in order."""
    one = write_to(server)
    if how == "many connections":
        for number in range(300):
            one.writer.write_many("uuid", ["1", "2", "3"], b"%3d," % number)
    elif how == "one greenlet":
        for number in range(300):
            one.writer.write("uuid", "1", b"%3d," % number)
    else:
        gevent.joinall([gevent.spawn(one.writer.write, "uuid", "1", b"%3d," % number) for number in range(300)])
    expected = b"".join(b"%3d," % number for number in range(300))
    until(lambda: server.bodies() == expected)
    assert len([reply for reply in server.replies if b":1, " in reply]) < 60
    if how == "many connections":
        until(lambda: server.bodies(b"3") == expected)


def test_a_server_that_stands_still_gets_no_more_than_a_burst(write_to, monkeypatch):
    """However long it takes: without a receipt nothing more is sent to that connection."""
    monkeypatch.setattr(receipts_module, "RECEIPT_SECONDS", 0.02)
    with PlainServer() as server:
        one = write_to(server)
        for _ in range(EAGER):
            one.writer.write("uuid", "1", b".")
        until(lambda: one.writer.receipts.known)
        server.receipts = False
        before = len(server.replies)
        for _ in range(40):
            one.writer.write("uuid", "1", b".")
            gevent.sleep(0.005)  # between two looks
        assert len(server.replies) - before <= BURST
        assert server.asked >= 3  # it is asked again
        server.receipts = True
        until(lambda: server.bodies() == b"." * (EAGER + 40))
        one.writer.stop()


@pytest.mark.parametrize("receipts", [True, False])
def test_a_server_without_receipts_is_paced_by_time(write_to, monkeypatch, receipts, caplog):
    """One that does not give them, or whose receipts another process would get."""
    monkeypatch.setattr(receipts_module, "RECEIPT_SECONDS", 0.02)
    caplog.set_level(logging.INFO)
    with PlainServer(receipts=False) as server:
        one = write_to(server, receipts=receipts)
        started = time.monotonic()
        for _ in range(200):
            one.writer.write("uuid", "1", b".")
            gevent.sleep(0.001)  # between two looks
        until(lambda: server.bodies() == b"." * 200)
        assert len(server.replies) <= BURST * (2 + (time.monotonic() - started) / receipts_module.FLUSH_SECONDS)
        assert server.asked == (RECEIPT_TRIES if receipts else 0)
        assert ("gives no receipts" in caplog.text) is receipts
        one.writer.stop()


def test_a_server_that_stood_still_when_it_was_first_asked_is_known_later(write_to, monkeypatch):
    """It was taken for one without receipts, until they came all the same."""
    monkeypatch.setattr(receipts_module, "RECEIPT_SECONDS", 0.02)
    with PlainServer(receipts=False) as server:
        one = write_to(server)
        for _ in range(EAGER):
            one.writer.write("uuid", "1", b".")
        until(lambda: one.writer.receipts.known is False)
        assert len(one.writer.receipts.rules.missed) == RECEIPT_TRIES
        assert not one.writer.receipts.arrived(one.writer.receipts.rules.missed[0])
        assert one.writer.receipts.known
        server.receipts = True
        for _ in range(3 * BURST):
            one.writer.write("uuid", "1", b".")
        until(lambda: server.bodies() == b"." * (EAGER + 3 * BURST))
        one.writer.stop()


def test_receipts_of_others_are_none(server, write_to):
    """An old one, another process's, a browser's number."""
    one = write_to(server)
    assert not one.writer.receipts.arrived(str(NOBODY))
    assert not one.writer.receipts.arrived("1")


def test_handlers_that_get_each_others_receipts_do_not_wait_for_their_own(write_to, monkeypatch, caplog):
    """Where several pull from one endpoint the server hands its notices out in turns."""
    monkeypatch.setattr(receipts_module, "RECEIPT_SECONDS", 0.05)
    caplog.set_level(logging.INFO)
    with PlainServer() as server:
        one = write_to(server)
        for _ in range(EAGER):
            one.writer.write("uuid", "1", b".")
        until(lambda: one.writer.receipts.known and not one.writer.receipts.awaited)
        server.receipts = False
        others = NOBODY + (one.writer.receipts.rules.first - NOBODY + 5000) % 140_000_000
        for _ in range(100):
            one.writer.write("uuid", "1", b".")
            one.writer.receipts.arrived(str(others))
        until(lambda: server.bodies() == b"." * (100 + EAGER))
        said = [record for record in caplog.records if "others pull from the same endpoint" in record.getMessage()]
        assert [record.levelno for record in said] == [logging.WARNING]
        one.writer.stop()


def test_receipts_come_again_when_the_others_have_gone(write_to, monkeypatch, caplog):
    """A process that ends and its successor are two for a moment: one number that comes back tells, and only once."""
    monkeypatch.setattr(receipts_module, "RECEIPT_SECONDS", 0.05)
    with PlainServer() as server:
        one = write_to(server)
        receipts = one.writer.receipts
        for _ in range(2):
            receipts.ask_behind()
            until(lambda: receipts.known and not receipts.awaited)
            server.receipts = False
            receipts.ask_behind()
            receipts.arrived(str(NOBODY + (receipts.rules.first - NOBODY + 5000) % 140_000_000))
            until(lambda: receipts.known is False)
            receipts.probe()
            server.receipts = True
            assert receipts.known is False
            receipts.probe()
            until(lambda: receipts.known)
        assert caplog.text.count("others pull from the same endpoint") == 1
        one.writer.stop()


def test_a_close_goes_behind_what_waits(server, write_to):
    """And what is written after it is not sent."""
    one = write_to(server)
    for number in range(50):
        one.writer.write("uuid", "1", b"%2d," % number)
    one.writer.close("uuid", ["1"])
    one.writer.write("uuid", "1", b"late")
    until(lambda: server.replies and server.replies[-1] == b"uuid 1:1, ")
    assert server.bodies() == b"".join(b"%2d," % number for number in range(50))


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_closed_connection_is_known_until_the_server_told_what_it_wrote(server, write_to, size):
    """Its notices come the way of requests, which is not given up before; it is closed once."""
    one = write_to(server)
    one.writer.flow.control.announce(True)
    one.writer.write("uuid", "1", bytes(size), wait=False)
    one.writer.close("uuid", ["1"])
    told = 0
    while told < size:
        until(lambda so_far=told: len(server.bodies()) > so_far)
        assert one.writer.flow.control.unconfirmed() == ["1"]
        one.writer.close("uuid", ["1"])
        count = len(server.bodies()) - told
        one.writer.credit("1", count)
        told += count
    until(lambda: not one.writer.flow.control.unconfirmed())
    until(lambda: server.replies[-1] == b"uuid 1:1, ")
    assert server.replies.count(b"uuid 1:1, ") == 1
    assert server.bodies() == bytes(size)


@pytest.mark.parametrize("hearing", [Hearing.SOME, Hearing.NONE])
def test_a_closed_connection_is_not_waited_for_where_others_may_be_told_what_was_written(server, write_to, hearing):
    """Nothing else might ever tell that it is over."""
    one = write_to(server)
    one.writer.flow.control.announce(True)
    one.writer.write("uuid", "1", b"x")
    one.writer.close("uuid", ["1"])
    one.writer.hear(hearing)
    until(lambda: not one.writer.flow.control.unconfirmed())
    until(lambda: server.replies == [b"uuid 1:1, x", b"uuid 1:1, "])


def test_with_flow_control_what_fits_goes_out_at_once_and_the_rest_when_credits_come(server, write_to):
    """Also where both parts are of one browser, and where many are sent the same."""
    one = write_to(server)
    one.writer.flow.control.announce(True)
    for _ in range(2 * BURST):
        one.writer.write("uuid", "1", b".")
    flow = one.writer.flow
    assert not flow.outboxes and flow.control.unconfirmed() == ["1"] and flow.control.confirmed("1") == 0
    one.writer.credit("1", 5)
    one.writer.write("uuid", "1", bytes(ROOM))
    assert one.writer.flow.control.confirmed("1") == 5 and one.writer.flow.waiting("1") == 2 * BURST - 5
    one.writer.write_many("uuid", ["1", "2"], b"!")
    until(lambda: server.bodies(b"2") == b"!")
    until(lambda: len(server.bodies(b"1")) == ROOM + 5)
    one.writer.credit("1", 2 * BURST)
    until(lambda: server.bodies(b"1") == b"." * 2 * BURST + bytes(ROOM) + b"!")
    assert sorted(one.writer.flow.control.unconfirmed()) == ["1", "2"]
    one.writer.forget("2")
    one.writer.credit("1", ROOM + 1 - 5)
    assert not one.writer.flow.control.unconfirmed() and not one.writer.flow.outboxes


def test_who_writes_to_a_connection_that_takes_nothing_waits_and_others_do_not(write_to, monkeypatch):
    """Bounded by the outbox, then by time; the browser's end wakes it."""
    with PlainServer() as server:
        one = write_to(server, send_timeout=0.2)
        for _ in range(EAGER):
            one.writer.write("uuid", "1", b".")
        until(lambda: one.writer.receipts.known)
        server.receipts = False
        piece = bytes(writer_module.OUTBOX_LIMIT // 4)
        started = time.monotonic()

        def write_much():
            for _ in range(200):  # joined, they are large messages, of which a burst may be on its way
                one.writer.write("uuid", "1", piece)

        with pytest.raises(SendTimeout, match=r"connection 1 read nothing for 0\.2 s"):
            write_much()
        assert 0.19 <= time.monotonic() - started < 10
        one.writer.write("uuid", "2", b"at once")
        until(lambda: server.bodies(b"2") == b"at once")
        gevent.spawn_later(0.02, one.writer.forget, "1")
        with pytest.raises(ConnectionClosed):
            one.writer.write("uuid", "1", piece)
        one.writer.stop()


def test_large_messages_go_at_the_pace_of_a_browser_that_reads_fairly(server, write_to, monkeypatch):
    """However fast the receipts come: what the server took in is not read yet. What follows waits its turn behind."""
    one = write_to(server)
    one.writer.write("uuid", "1", b"first")
    until(lambda: server.bodies() == b"first")
    # One of them a second: long enough for a busy machine to send what may be on its way.
    piece = bytes(LARGE)
    monkeypatch.setattr("greentx.protocol.flow.large.READ_RATE", LARGE)
    others = []
    gevent.get_hub().loop.run_callback(others.append, "ran")
    started = time.monotonic()
    for _ in range(QUEUED):
        one.writer.write("uuid", "1", piece)
    assert not others  # nobody waits for what may be on its way
    one.writer.write("uuid", "1", b"last", wait=False)
    one.writer.write("uuid", "2", b"other")
    until(lambda: server.bodies(b"2") == b"other")
    assert not server.bodies(b"1").endswith(b"last") or time.monotonic() - started >= 1
    until(lambda: server.bodies(b"1") == b"first" + piece * QUEUED + b"last")
    assert time.monotonic() - started >= 1
    until(lambda: not one.writer.flow.outboxes, 20)


def test_a_signal_in_the_middle_of_a_batch_neither_repeats_nor_forgets(server, write_to):
    """What was sent is not sent again, and what was not goes out with the next turn of the hub."""
    one = write_to(server)
    one.writer.write("uuid", "9", b"x")  # the first one of a round may go at once
    send, sent = one.writer.pipe.send_now, []

    def interrupted(message, flags):
        sent.append(message)
        send(message, flags)
        if len(sent) == 3:
            raise KeyboardInterrupt

    one.writer.pipe.send_now = interrupted
    for number in range(5):
        one.writer.pipe.batch.append(b"uuid 1:%d, x" % number)
    with pytest.raises(KeyboardInterrupt):
        one.writer.pipe.send_batch()
    until(lambda: len(server.replies) == 6)
    assert server.replies[1:] == [b"uuid 1:%d, x" % number for number in range(5)]


def test_who_computes_between_two_answers_does_not_hold_up_the_first(server, write_to):
    """A message is kept for others for a moment only, though the hub does not run."""
    one = write_to(server)
    for number in range(3):
        one.writer.write("uuid", str(number), b"x")
    time.sleep(0.01)  # the time itself is what is tested
    one.writer.write("uuid", "3", b"x")
    assert not one.writer.pipe.batch


def send_round(one, number, count):
    """Send *count* messages in one round of the hub; return whether the first one was kept for the others."""
    one.writer.write("uuid", f"{number}0", b"x")
    kept = bool(one.writer.pipe.batch)
    for index in range(1, count):
        one.writer.write("uuid", f"{number}{index}", b"x")
    gevent.sleep(0)
    gevent.sleep(0)
    assert not one.writer.pipe.batch
    return kept


def test_behind_a_round_that_computed_the_first_answer_goes_at_once(server, write_to, monkeypatch):
    """For a while: who computed once does so again, in the same round as quick ones."""
    monkeypatch.setattr(pipe_module, "CALM_SECONDS", 60.0)
    one = write_to(server)
    one.writer.write("uuid", "1", b"x")
    time.sleep(0.01)  # the time itself is what is tested
    gevent.sleep(0)
    for number in range(50):
        assert not send_round(one, number, 3)


def test_behind_an_answer_that_was_alone_in_its_round_the_first_one_goes_at_once(server, write_to, monkeypatch):
    """Where few are asked for, waiting for others gains nothing."""
    monkeypatch.setattr(pipe_module, "CALM_SECONDS", 0.0)
    one = write_to(server)
    for number in range(50):
        assert not send_round(one, number, 1)


def test_an_answer_that_took_long_goes_at_once(server, write_to):
    """Whoever computed before it may compute again before the next one."""
    one = write_to(server)
    for number in range(3):
        one.writer.write("uuid", str(number), b"x")
        gevent.sleep(0)  # rounds that are short, mostly
        time.sleep(0.01)  # the time itself is what is tested
        one.writer.write("uuid", str(number), b"y")
        assert not one.writer.pipe.batch
        gevent.sleep(0)


def test_what_is_sent_in_one_round_of_the_hub_goes_to_zeromq_at_its_end(server, write_to, monkeypatch):
    """One wake-up of ZeroMQ's thread for all of them; in order. So it is where the round before had several."""
    monkeypatch.setattr(pipe_module, "CALM_SECONDS", 0.0)  # the machine may be busy
    one = write_to(server)
    numbers = itertools.count(1)
    until(lambda: send_round(one, next(numbers), 2))
    last = next(numbers) - 1
    until(lambda: b"uuid %d:%d0, x" % (len(f"{last}0"), last) in server.replies)
    until(lambda: server.replies[-1] == b"uuid %d:%d1, x" % (len(f"{last}1"), last))


def fill(writer, size=20_000):
    """Write to many connections until the pipe is full; return the greenlet that waits for room, or why it did not."""
    sent = []

    def write():
        try:
            for number in range(20_000):
                writer.write("uuid", str(number), b"%6d" % number + bytes(size))
                sent.append(number)
        except GreentxError as error:
            return error

    filling = gevent.spawn(write)
    until(lambda: writer.pipe_full)
    gevent.sleep(0.2)  # what must not happen has no event
    return filling, sent


def test_a_full_pipe_blocks_who_sends_and_nothing_is_lost(context, write_to):
    """Several greenlets at once; when the server goes on all arrives once, in order for each."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        filling, sent = fill(one.writer)
        assert not filling.dead
        others = [gevent.spawn(one.writer.write, "uuid", str(100_000 + number), b"other") for number in range(20)]
        gevent.sleep(0.1)  # what must not happen has no event
        assert not any(other.dead for other in others)
        before = time.process_time()
        gevent.sleep(0.3)  # the processor time of this while is what is measured
        assert time.process_time() - before < 0.1  # nobody polls busily
        filling.kill()
        server.read()
        gevent.joinall(others, timeout=20, raise_error=True)
        until(lambda: len(server.replies) >= len(sent) + 20, 20)
        gevent.sleep(0.05)  # what must not happen has no event
        ids = [int(reply.split(b":")[1].split(b",")[0]) for reply in server.replies]
        assert sorted(ids) == sorted([*sent, *range(100_000, 100_020)])
        assert [one_id for one_id in ids if one_id < 100_000] == sent
        one.writer.stop()


def test_a_full_pipe_ends_in_an_error_and_the_message_is_not_sent(context, write_to):
    """After send_timeout, with the address; those behind it go on."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=0.2)
        filling, _ = fill(one.writer)
        started = time.monotonic()
        with pytest.raises(SendTimeout, match=server.sub_endpoint):
            one.writer.write("uuid", "777777", b"never")
        assert 0.15 < time.monotonic() - started < 10
        filling.join(5)
        assert isinstance(filling.value, SendTimeout)
        one.writer.write("uuid", "888888", b"in time", wait=False)
        server.read()
        until(lambda: any(b"in time" in reply for reply in server.replies), 20)
        assert not any(b"never" in reply for reply in server.replies)
        one.writer.stop()


def test_a_sender_that_is_killed_while_it_waits_sends_nothing(context, write_to):
    """Its message is taken out of the queue."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        filling, _ = fill(one.writer)
        killed = gevent.spawn(one.writer.write, "uuid", "777777", b"never")
        gevent.sleep(0.05)  # until it waits in there, which nobody is told
        killed.kill()
        filling.kill()
        one.writer.write("uuid", "888888", b"last", wait=False)
        server.read()
        until(lambda: any(b"last" in reply for reply in server.replies), 20)
        assert not any(b"never" in reply for reply in server.replies)
        one.writer.stop()


def test_who_is_killed_at_a_full_pipe_leaves_its_window_as_it_is(context, write_to):
    """With flow control what it wrote is counted, so it goes out."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        one.writer.flow.control.announce(True)
        filling, sent = fill(one.writer)
        filling.kill()
        server.read()
        until(lambda: not one.writer.pipe_full, 20)
        for number in sent:
            one.writer.credit(str(number), ROOM)
        for conn_id in one.writer.flow.control.unconfirmed():
            one.writer.write("uuid", conn_id, b"more", wait=False)
            until(lambda conn_id=conn_id: server.bodies(conn_id.encode()).endswith(b"more"), 20)
            one.writer.credit(conn_id, len(server.bodies(conn_id.encode())))
        assert not one.writer.flow.control.unconfirmed()
        one.writer.stop()


def test_a_broadcast_that_is_killed_at_a_full_pipe_leaves_its_windows_as_they_are(context, write_to):
    """What was counted goes out; while the pipe is full nothing is."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        one.writer.flow.control.announce(True)
        filling, _ = fill(one.writer)
        filling.kill()
        many = gevent.spawn(one.writer.write_many, "uuid", ["777777", "888888"], b"x" * 100)
        gevent.sleep(0.05)  # what must not happen has no event
        assert not many.dead
        many.kill()
        assert not {"777777", "888888"} & set(one.writer.flow.control.unconfirmed())
        server.read()
        until(lambda: not one.writer.pipe_full, 20)
        placed = one.writer.place_many("uuid", [(b"x" * 100, ["777777", "888888"])])
        assert placed.reached == 2 and not placed.places
        until(lambda: any(b"777777 888888" in reply for reply in server.replies), 20)
        one.writer.stop()


def test_who_waits_behind_a_message_that_is_taken_back_goes_on(context, write_to):
    """It waited for that one to be sent."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        one.writer.flow.control.announce(True)
        filling, _ = fill(one.writer)
        behind = gevent.spawn(one.writer.write, "uuid", "777777", b"behind")
        gevent.sleep(0.05)  # what must not happen has no event
        assert not behind.dead
        filling.kill()
        server.read()
        behind.join(20)
        assert behind.successful()
        until(lambda: server.bodies(b"777777") == b"behind", 20)
        one.writer.stop()


def test_what_waited_for_a_server_that_has_gone_does_not_reach_the_next(write_to, caplog):
    """Its connection numbers mean other browsers: blocked, joined, or written while it is away."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        filling, _ = fill(one.writer)
        for _ in range(BURST + 5):
            one.writer.write("uuid", "1", b"old", wait=False)
        endpoints = server.push_endpoint, server.sub_endpoint
    until(lambda: "lost" in one.events)
    filling.kill()
    for _ in range(BURST + 5):
        one.writer.write("uuid", "1", b"between")
    with PlainServer(endpoints=endpoints) as server:
        until(lambda: one.events[-1] == "ready")
        one.writer.write("uuid", "1", b"new")
        until(lambda: server.replies)
        gevent.sleep(0.3)  # what must not happen has no event
        assert server.replies == [b"uuid 1:1, new"]
        assert "replies were dropped" in caplog.text
        one.writer.stop()


def test_stopping_sends_what_waits(write_to):
    """The receiver may have ended before: then time counts, not receipts."""
    with PlainServer() as server:
        one = write_to(server)
        server.receipts = False
        for number in range(100):
            one.writer.write("uuid", "1", b"%2d," % number)
        one.writer.close("uuid", ["1"])
        one.writer.stop(linger=1)
        until(lambda: server.replies[-1] == b"uuid 1:1, ")
        assert server.bodies() == b"".join(b"%2d," % number for number in range(100))
        one.writer.stop()


def test_stopping_is_bounded_where_the_server_stands_still(write_to, context, caplog):
    """With a WARNING that says how much was lost; who waits is woken."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        filling, _ = fill(one.writer)
        started = time.monotonic()
        one.writer.stop(linger=0.1)
        context.close(linger=0.1)
        assert time.monotonic() - started < 10
        assert f"replies that {server.sub_endpoint} did not accept" in caplog.text
        filling.join(5)
        assert filling.dead


def test_a_callback_of_the_hub_never_blocks(write_to):
    """Where nobody can wait a message goes behind those that wait."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        filling, _ = fill(one.writer)
        gevent.get_hub().loop.run_callback(one.writer.write, "uuid", "888888", b"from the hub")
        gevent.sleep(0.01)  # until the hub has called it
        filling.kill()
        server.read()
        until(lambda: any(b"from the hub" in reply for reply in server.replies), 20)
        one.writer.stop()


def error_of(function, *arguments):
    """Call a function, and return the error that it raised."""
    try:
        function(*arguments)
    except GreentxError as error:
        return error


@pytest.mark.parametrize("gone", ["browser", "server"])
def test_who_waits_at_a_full_pipe_with_a_large_message_hears_of_the_end(write_to, gone):
    """It waits for the pipe first, and then for the browser, which may have gone by then."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        filling, _ = fill(one.writer)
        writing = gevent.spawn(error_of, one.writer.write, "uuid", "777777", bytes(2 * OUTBOX_LIMIT))
        until(lambda: one.writer.flow.waiting("777777"))
        filling.kill()
        if gone == "browser":
            one.writer.forget("777777")
            server.read()
        else:
            server.close()
        error = writing.get(timeout=5)
        # ZeroMQ may have room for it in the moment in which the server goes.
        assert isinstance(error, ConnectionClosed) or (gone == "server" and error is None)
        one.writer.stop()


SMALL, LARGE_PIECE = b"small", bytes(30_000)
PIECES = [(b"a" + LARGE_PIECE, SMALL, b"c" + LARGE_PIECE), (b"a", b"b" + LARGE_PIECE, b"c"), (b"a", b"b", b"c")]


@pytest.mark.parametrize("flow_control", [False, True])
@pytest.mark.parametrize("pieces", PIECES, ids=["large, small, large", "small, large, small", "small"])
def test_what_is_written_at_a_full_pipe_keeps_the_order_of_the_calls(write_to, flow_control, pieces):
    """Whatever each of them waits for; the close that is written last goes last."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        one.writer.flow.control.announce(flow_control)
        filling, _ = fill(one.writer)
        writing = []
        for piece in pieces:
            writing.append(gevent.spawn(one.writer.write, "uuid", "777777", piece))
            gevent.sleep(0.01)  # what must not happen has no event
        assert not any(greenlet.dead for greenlet in writing)
        one.writer.close("uuid", ["777777"], wait=False)
        one.writer.write("uuid", "777777", b"late", wait=False)
        filling.kill()
        server.read()
        gevent.joinall(writing, timeout=20, raise_error=True)
        until(lambda: b"uuid 6:777777, " in server.replies, 20)
        until(lambda: not one.writer.pipe_full, 20)
        replies = [reply for reply in server.replies if reply.startswith(b"uuid 6:777777, ")]
        assert server.bodies(b"777777").removesuffix(b"late") == b"".join(pieces)
        data = [reply for reply in replies if not reply.endswith(b"late")]
        assert data.index(b"uuid 6:777777, ") == len(data) - 1
        one.writer.stop()


@pytest.mark.parametrize("flow_control", [False, True])
@pytest.mark.parametrize("size", [10, 30_000, 200_000])
@pytest.mark.parametrize("end", ["killed", "timed out"])
def test_what_is_withdrawn_from_a_full_pipe_is_not_sent_and_the_rest_is(write_to, flow_control, size, end):
    """The error says so; those before and behind keep their places, and the account is as it was."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        one.writer.flow.control.announce(flow_control)
        filling, _ = fill(one.writer)
        one.writer.write("uuid", "777777", b"before", wait=False)
        if end == "timed out":
            one.writer.waiting.timeout = 0.1
        never = b"never" + bytes(size)
        writing = [gevent.spawn(error_of, one.writer.write, "uuid", conn_id, never) for conn_id in ("777777", "888888")]
        gevent.sleep(0.01)  # until it waits in there, which nobody is told
        one.writer.write("uuid", "777777", b"behind", wait=False)
        if end == "killed":
            gevent.killall(writing)
        gevent.joinall(writing, timeout=5)
        if end == "timed out":
            assert [greenlet.value.queued for greenlet in writing] == [False, False]
        filling.kill()
        server.read()
        until(lambda: server.bodies(b"777777") == b"beforebehind", 20)
        assert not any(b"never" in reply for reply in server.replies)
        if flow_control:
            assert "888888" not in one.writer.flow.control.unconfirmed()
            one.writer.credit("777777", len(b"beforebehind"))
            assert "777777" not in one.writer.flow.control.unconfirmed()
        one.writer.stop()


def test_who_waits_for_a_browser_is_told_that_what_it_wrote_keeps_its_place(write_to):
    """Others may have written behind it what refers to it."""
    with PlainServer(receipts=False) as server:
        one = write_to(server, send_timeout=0.1)
        one.writer.flow.control.announce(True)
        one.writer.write("uuid", "1", bytes(ROOM))
        with pytest.raises(SendTimeout) as caught:
            one.writer.write("uuid", "1", bytes(writer_module.OUTBOX_LIMIT) + b"!")
        assert caught.value.queued
        assert one.writer.flow.waiting("1") == writer_module.OUTBOX_LIMIT + 1
        one.writer.stop()


def restart(server):
    """End a server and start the next one at its endpoints, while no greenlet runs; return that one."""
    endpoints = server.push_endpoint, server.sub_endpoint
    gevent.killall(server.greenlets)
    server.context.destroy(0)
    new = PlainServer(endpoints=endpoints, reads=False)
    for _ in range(40):
        time.sleep(0.02)  # between two looks
        new.sub.getsockopt(zmq.EVENTS)  # a socket that nobody asks does not send its subscription
    return new


@pytest.mark.parametrize("flow_control", [False, True])
def test_what_was_written_in_one_life_of_the_server_is_not_sent_in_the_next(write_to, flow_control):
    """Though the writers that waited run only when the next one is there: pages, broadcasts, closes."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        one.writer.flow.control.announce(flow_control)
        filling, _ = fill(one.writer)
        many = [str(number) for number in range(1000, 1400)]
        writing = [
            gevent.spawn(one.writer.write, "uuid", "1", b"old" + LARGE_PIECE),
            gevent.spawn(one.writer.write, "uuid", "2", b"old"),
            gevent.spawn(one.writer.write_many, "uuid", many, b"old"),
            gevent.spawn(one.writer.close, "uuid", many),
        ]
        gevent.sleep(0.05)  # until it waits in there, which nobody is told
        filling.kill()
        assert not any(greenlet.dead for greenlet in writing)
        dropped = one.writer.messages_dropped
        with restart(server) as new:
            gevent.joinall(writing, timeout=5, raise_error=True)
            assert one.events == ["ready", "lost", "ready"]
            assert one.writer.messages_dropped > dropped
            one.writer.write("uuid", "1", b"new")
            new.read()
            until(lambda: new.bodies() == b"new")
            gevent.sleep(0.2)  # what must not happen has no event
            assert new.replies == [b"uuid 1:1, new"]
            one.writer.stop()


@pytest.mark.parametrize("flow_control", [False, True])
def test_a_broadcast_at_a_full_pipe_ends_in_an_error_and_is_not_sent(write_to, flow_control):
    """In none of its messages, nor to those for whom something waited."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        one.writer.flow.control.announce(flow_control)
        filling, _ = fill(one.writer)
        one.writer.write("uuid", "1001", LARGE_PIECE + bytes(ROOM), wait=False)
        one.writer.waiting.timeout = 0.1
        with pytest.raises(SendTimeout) as caught:
            one.writer.write_many("uuid", [str(number) for number in range(1000, 1400)], b"never")
        assert not caught.value.queued
        assert one.writer.flow.waiting("1001") == len(LARGE_PIECE) + ROOM
        filling.kill()
        server.read()
        until(lambda: not one.writer.pipe_full, 20)
        one.writer.write("uuid", "999999", b"last")
        until(lambda: server.bodies(b"999999") == b"last", 20)
        assert not any(b"never" in reply for reply in server.replies)
        one.writer.stop()


@pytest.mark.parametrize("flow_control", [False, True])
def test_a_broadcast_of_which_some_was_sent_keeps_its_place(server, write_to, flow_control):
    """Though its greenlet is killed: it reaches all or none."""
    one = write_to(server)
    one.writer.flow.control.announce(flow_control)
    send, left = one.writer.pipe.send_now, [10]

    def send_some(message, flags):
        left[0] -= 1
        if left[0] < 0:
            raise zmq.Again
        send(message, flags)

    one.writer.pipe.send_now = send_some
    many = [str(number) for number in range(20_000)]
    writing = gevent.spawn(one.writer.write_many, "uuid", many, b"all")
    gevent.sleep(0)
    assert one.writer.pipe_full and not writing.dead
    writing.kill()
    until(lambda: sum(len(reply.split(b":")[1].split()) - 1 for reply in server.replies) == len(many))


def test_a_callback_that_must_not_block_has_its_place_too(write_to):
    """It goes on at once, behind what others wrote."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        filling, _ = fill(one.writer)
        writing = gevent.spawn(one.writer.write, "uuid", "777777", b"first" + LARGE_PIECE)
        gevent.sleep(0.01)  # until it waits in there, which nobody is told
        gevent.get_hub().loop.run_callback(one.writer.write, "uuid", "777777", b"second")
        gevent.get_hub().loop.run_callback(one.writer.write_many, "uuid", ["777777", "888888"], b"third")
        gevent.sleep(0.01)  # until the hub has called both
        filling.kill()
        server.read()
        until(lambda: server.bodies(b"777777").endswith(b"third"), 20)
        assert server.bodies(b"777777") == b"first" + LARGE_PIECE + b"secondthird"
        until(lambda: server.bodies(b"888888") == b"third")
        writing.join(5)
        one.writer.stop()


def test_what_waits_to_be_empty_says_whether_the_server_is_the_same_still(write_to):
    """What was to follow would else go to another browser."""
    with PlainServer(reads=False) as server:
        one = write_to(server, send_timeout=None)
        assert one.writer.wait_empty("1")
        filling, _ = fill(one.writer)
        one.writer.write("uuid", "1", LARGE_PIECE, wait=False)
        empty = gevent.spawn(one.writer.wait_empty, "1")
        gevent.sleep(0.02)  # until it waits in there, which nobody is told
        filling.kill()
        with restart(server):
            empty.join(5)
            assert empty.value is False
            one.writer.stop()


@pytest.mark.parametrize("flow_control", [False, True])
@pytest.mark.parametrize("how", ["small", "large", "many", "close", "control"])
def test_who_computes_while_the_server_restarts_writes_to_nobody(write_to, how, flow_control):
    """Nothing had a chance to hear of it: what is written then is for the browsers of the server that has gone."""
    with PlainServer() as server:
        one = write_to(server)
        one.writer.flow.control.announce(flow_control)
        one.writer.write("uuid", "1", b"before")
        until(lambda: server.replies)
        many = [str(number) for number in range(400)]
        with restart(server) as new:
            for _ in range(3):
                if how == "small":
                    one.writer.write("uuid", "1", b"old")
                elif how == "large":
                    one.writer.write("uuid", "1", b"old" + bytes(200_000), wait=False)
                    one.writer.close("uuid", ["1"])
                elif how == "many":
                    one.writer.write_many("uuid", many, b"old")
                elif how == "close":
                    one.writer.close("uuid", many)
                else:
                    one.writer.control("uuid", ["1"], b"old")
            new.read()
            until(lambda: one.events == ["ready", "lost", "ready"])
            one.writer.write("uuid", "1", b"new")
            until(lambda: new.replies)
            gevent.sleep(0.1)  # what must not happen has no event
            assert new.replies == [b"uuid 1:1, new"]
            one.writer.stop()


def stick(one, size=2 * OUTBOX_LIMIT):
    """Have a greenlet wait for a browser that reads nothing."""
    one.writer.flow.control.announce(True)
    one.writer.write("uuid", "1", bytes(ROOM))
    writing = gevent.spawn(error_of, one.writer.write, "uuid", "1", bytes(size))
    until(lambda: one.writer.flow.waiting("1"))
    return writing


def test_who_waits_for_a_browser_that_reads_too_slowly_is_told_that_it_was_ended(server, write_to):
    """It is ended for the rate; one for which nothing waits is not."""
    ended = []
    # Long enough that a busy machine looks at it in time.
    one = write_to(server, send_timeout=1.0, on_slow=lambda conn_id, why: ended.append((conn_id, why)))
    writing = stick(one)
    one.writer.write("uuid", "2", bytes(ROOM))
    until(lambda: ended)
    (conn_id, why), *_ = ended
    assert conn_id == "1" and "min_rate" in why and "send_timeout" in why
    assert not writing.dead
    one.writer.forget(conn_id, why)
    error = writing.get(timeout=5)
    assert isinstance(error, ConnectionClosed) and "min_rate" in str(error)
    assert not [conn_id for conn_id, _ in ended if conn_id != "1"]


def test_a_browser_that_reads_fast_enough_is_not_ended(server, write_to):
    """Though it takes longer than send_timeout in all."""
    ended = []
    one = write_to(server, send_timeout=0.3, on_slow=lambda *slow: ended.append(slow))
    writing = stick(one, size=10 * ROOM)
    while one.writer.flow.waiting("1"):
        one.writer.credit("1", ROOM)
        gevent.sleep(0.1)  # that is how fast it reads
    assert writing.get(timeout=5) is None
    assert ended == []


def test_nobody_is_ended_where_the_server_stands_still(write_to):
    """The browser cannot help it. The wait has an end all the same, and what was written keeps its place."""
    ended = []
    with PlainServer(receipts=False) as server:
        one = write_to(server, send_timeout=0.2, on_slow=lambda *slow: ended.append(slow))
        error = stick(one).get(timeout=5)
        assert isinstance(error, SendTimeout) and error.queued
        assert server.asked and ended == []
        one.writer.stop()


def test_nobody_is_ended_while_notices_are_not_read(server, write_to):
    """The application does not read events: what browsers read is in notices that wait behind those."""
    ended = []
    reads = [False]
    one = write_to(server, send_timeout=0.1, can_come=lambda: reads[0], on_slow=lambda *slow: ended.append(slow))
    writing = stick(one)
    assert isinstance(writing.get(timeout=5), SendTimeout)
    assert ended == []
    reads[0] = True
    until(lambda: ended)


def test_a_receipt_that_is_late_begins_the_browsers_time_anew(context):
    """The server stood still for longer than send_timeout: nobody is ended for that, but whoever is slow later is."""
    asked, ended = [], []
    flow = Flow()
    flow.control.announce(True)
    flow.outbox(b"uuid", "1").put(bytes(2 * ROOM))
    laggards = Laggards(
        context,
        flow,
        Waiting(context, "writer", 0.3, lambda: None),
        ask=lambda: asked.append(1),
        is_fair=lambda: True,
        on_slow=lambda *slow: ended.append(slow),
    )
    laggards.watch()
    gevent.sleep(0.5)
    laggards.confirmed()
    assert (len(asked), ended) == (1, [])
    for _ in range(200):
        gevent.sleep(0.01)
        laggards.confirmed()
        if ended:
            break
    assert [conn_id for conn_id, _ in ended] == ["1"]
    laggards.stop()


@pytest.mark.parametrize("wait", [False, True])
def test_who_must_not_wait_for_a_browser_has_a_bound(server, write_to, wait):
    """What is written beyond it ends the connection, and nobody waits."""
    ended = []
    bounds = Bounds(max_outbox=1_000_000)
    one = write_to(server, bounds=bounds, for_browser=lambda: None, on_slow=lambda *slow: ended.append(slow))
    one.writer.flow.control.announce(True)
    one.writer.write("uuid", "1", bytes(2_000_000), wait=wait)  # one large answer makes nobody slow
    assert ended == []
    one.writer.write("uuid", "1", b"more", wait=wait)
    [(conn_id, why)] = ended
    assert conn_id == "1" and "max_outbox" in why
