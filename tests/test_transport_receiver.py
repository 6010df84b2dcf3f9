"""The receiving half: nothing is missed, nothing is lost with a connection, and waiting costs nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import time

import gevent
import pytest
import zmq
import zmq.green
from gevent import socket
from gevent.event import Event
from plain_server import until

from greentx.transport import Context, Receiver
from greentx.transport.receiver import BATCH


@pytest.fixture
def context():
    """An open context, closed after the test."""
    one = Context("test", lambda: None, linger=0.2)
    yield one
    one.close(linger=0)


class Pusher:
    """A bound PUSH socket of a context of its own."""

    def __init__(self, endpoint="tcp://127.0.0.1:*"):
        self.context = zmq.green.Context()
        self.socket = self.context.socket(zmq.PUSH)
        self.socket.bind(endpoint)
        self.endpoint = self.socket.last_endpoint.decode()

    def send(self, *messages):
        for message in messages:
            self.socket.send(message)

    def close(self, linger=0):
        self.socket.close(linger)
        self.context.term()


@pytest.fixture
def pusher():
    """One, closed after the test."""
    one = Pusher()
    yield one
    one.close()


@pytest.fixture
def receive(context):
    """A function that connects a receiver and returns it and what it received; it is stopped after the test."""
    receivers = []

    def connect(endpoint, on_message=None, **options):
        got = []
        receiver = Receiver(context, zmq.PULL, on_message or got.append, **options)
        receivers.append(receiver)
        receiver.connect(endpoint)
        return receiver, got

    yield connect
    for receiver in receivers:
        receiver.stop(1)


def numbered(first, last):
    return [b"%d" % number for number in range(first, last)]


def test_messages_are_handed_on_in_their_order(pusher, receive):
    """Thousands in one go, in batches."""
    receiver, got = receive(pusher.endpoint)
    pusher.send(*numbered(0, 5000))
    until(lambda: len(got) == 5000)
    assert got == numbered(0, 5000)
    assert repr(receiver) == f"<Receiver receiver {pusher.endpoint}: connected>"


def test_no_message_is_missed_however_they_fall(pusher, receive):
    """Single messages with tiny pauses, at the moment the receiver goes to sleep: 3000 times."""
    came = Event()
    _receiver, _ = receive(pusher.endpoint, lambda message: came.set())
    pauses = random.Random(1)
    for _ in range(3000):
        came.clear()
        pusher.send(b"x")
        assert came.wait(5)
        if pauses.random() < 0.3:
            gevent.sleep(pauses.random() / 5000)


def test_other_greenlets_run_between_batches(pusher, receive):
    """A flood does not keep the others waiting until it ends."""
    turns = []
    got = []

    def take(message):
        got.append(message)
        turns.append(turn[0])

    turn = [0]

    def count():
        while True:
            turn[0] += 1
            gevent.sleep(0)

    receive(pusher.endpoint, take)
    pusher.send(b"first")
    until(lambda: got)
    counting = gevent.spawn(count)
    pusher.send(*numbered(1, 10 * BATCH))
    time.sleep(0.1)  # they arrive while no greenlet runs
    until(lambda: len(got) == 10 * BATCH)
    counting.kill()
    assert max(turns.count(one) for one in set(turns)) <= BATCH


def cpu_of(seconds):
    """The CPU time that this process used within so many seconds of waiting, as a share."""
    before = time.process_time()
    gevent.sleep(seconds)
    return (time.process_time() - before) / seconds


def test_an_idle_receiver_costs_nothing(pusher, receive):
    """No polling, no busy loop: far below 1 % of a CPU."""
    _receiver, got = receive(pusher.endpoint)
    pusher.send(b"x")
    until(lambda: got)
    assert cpu_of(0.5) < 0.05


def test_a_receiver_that_waits_for_room_costs_nothing(pusher, receive):
    """While the message before is not taken the next ones knock at the descriptor: nobody looks."""
    room = Event()
    got = []

    def take(message):
        got.append(message)
        room.wait()

    receive(pusher.endpoint, take)
    pusher.send(b"1")
    until(lambda: got)
    pusher.send(*numbered(2, 10))
    gevent.sleep(0.05)  # the bytes get to the other side, which tells nobody
    assert cpu_of(0.5) < 0.05
    room.set()
    until(lambda: len(got) == 9)
    room.clear()
    pusher.send(b"10")  # and it listens again
    until(lambda: len(got) == 10)
    room.set()


def test_a_server_that_is_away_costs_little(receive):
    """It is tried again and again, with pauses."""
    gone = Pusher()
    _receiver, got = receive(gone.endpoint)
    gone.send(b"x")
    until(lambda: got)
    gone.close()
    gevent.sleep(0.05)  # the bytes get to the other side, which tells nobody
    assert cpu_of(0.5) < 0.1
    back = Pusher(gone.endpoint)
    back.send(b"y")
    until(lambda: len(got) == 2)
    back.close()


def test_what_had_arrived_is_received_when_the_connection_is_lost(receive):
    """The other side pushed and ended, and the receiver was busy: nothing that came is thrown away."""
    busy = Event()
    got = []

    def take(message):
        got.append(message)
        busy.wait()

    ending = Pusher()
    receive(ending.endpoint, take)
    ending.send(*numbered(0, 500))
    until(lambda: got)
    gevent.sleep(0.1)  # the bytes get to the other side, which tells nobody
    ending.close(linger=1000)
    gevent.sleep(0.1)  # the bytes get to the other side, which tells nobody
    busy.set()
    until(lambda: len(got) == 500)
    assert got == numbered(0, 500)


def test_greenlets_that_are_ready_do_not_keep_it_from_receiving(pusher, receive):
    """However many they are: it gets its turns between them, not behind all of them."""
    _receiver, got = receive(pusher.endpoint)
    pusher.send(b"first")
    until(lambda: got)
    seen = []

    def work():
        until_then = time.perf_counter() + 0.002
        while time.perf_counter() < until_then:
            pass
        seen.append(len(got))

    pusher.send(*numbered(0, 10 * BATCH))
    gevent.joinall([gevent.spawn(work) for _ in range(300)])
    assert seen[-1] > 5 * BATCH


def test_what_is_dropped_is_counted(pusher, receive, caplog):
    """Messages of a life of the server that is over; connecting anew brings the next ones."""
    busy = Event()
    got = []

    def take(message):
        got.append(message)
        busy.wait()

    receiver, _ = receive(pusher.endpoint, take)
    pusher.send(*numbered(0, 10))
    until(lambda: got)
    gevent.sleep(0.1)  # the bytes get to the other side, which tells nobody
    receiver.drop()
    assert "9 messages of a server that has gone were dropped" in caplog.text
    busy.set()
    assert not receiver.connected
    receiver.connect(pusher.endpoint)
    with gevent.Timeout(10):
        while len(got) < 2:
            pusher.send(b"next")  # again where it went to the socket that closes: PUSH cannot tell
            gevent.sleep(0.05)  # between two looks
    assert got[:2] == [b"0", b"next"]


def test_it_connects_anew_however_often_it_is_dropped(pusher, receive):
    """What the closed socket had bound inside ZeroMQ may still be there for a moment."""
    receiver, got = receive(pusher.endpoint)
    for number in range(100):
        until(lambda: receiver.connected)
        receiver.drop()
        receiver.connect(pusher.endpoint)
        until(lambda: receiver.connected)
        if number % 10 == 0:
            with gevent.Timeout(10):
                while not got or got[-1] != b"%d" % number:
                    pusher.send(b"%d" % number)  # again: what was pushed to the socket that is closing is lost
                    gevent.sleep(0.01)  # between two looks


def test_stopping_takes_what_has_arrived(pusher, receive):
    """And ends in bounded time, where somebody is slow."""
    got = []
    receiver, _ = receive(pusher.endpoint, got.append)
    pusher.send(b"0")
    until(lambda: got)
    pusher.send(*numbered(1, 300))
    time.sleep(0.1)  # it arrives while no greenlet runs
    receiver.stop(5)
    assert got == numbered(0, 300)
    receiver.stop()
    assert "stopped" in repr(receiver)


def test_stopping_takes_what_the_other_side_sends_until_it_knows(receive):
    """It is told by the end of the stream, which ZeroMQ would come to see when the connection is closed."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"
    with socket.socket() as listener, gevent.Timeout(5):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        receiver, got = receive(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        peer, _ = listener.accept()
    with peer, gevent.Timeout(5):
        peer.sendall(greeting)
        answer = b""
        while len(answer) < len(greeting):
            answer += peer.recv(len(greeting) - len(answer))
        peer.sendall(b"\x04" + bytes([len(ready)]) + ready + b"\x00\x05early")
        until(lambda: got)
        stopping = gevent.spawn(receiver.stop, 2)
        while peer.recv(1024):
            pass
        peer.sendall(b"\x00\x04late")
        peer.close()
        stopping.get()
    assert got == [b"early", b"late"]


def test_stopping_does_not_wait_longer_than_was_said(pusher, receive):
    """Whoever takes the messages may be stuck."""
    got = []

    def stick(message):
        got.append(message)
        Event().wait()

    receiver, _ = receive(pusher.endpoint, stick)
    pusher.send(b"1")
    until(lambda: got)
    started = time.monotonic()
    receiver.stop(0.1)
    assert time.monotonic() - started < 10


def test_a_name_is_resolved_again_for_each_connection(pusher, receive, resolver, caplog, monkeypatch):
    """One WARNING names it while nobody knows it, and nothing stays open; later it may mean another address."""
    monkeypatch.setattr("greentx.transport.receiver.RETRY_SECONDS", 0.01)
    port = pusher.endpoint.rpartition(":")[2]
    receiver, got = receive(f"tcp://server.test:{port}")
    until(lambda: resolver.asked.count("server.test") >= 3)
    assert not receiver.connected
    assert "'server.test'" in receiver.why
    assert caplog.text.count("'server.test' of tcp://server.test:") == 1
    resolver.known["server.test"] = "127.0.0.2"  # where nobody listens
    until(lambda: "nothing accepts connections there" in receiver.why)
    resolver.known["server.test"] = "127.0.0.1"
    until(lambda: receiver.connected)
    assert receiver.why == ""
    pusher.send(b"1")
    until(lambda: got)


def test_a_receiver_that_waits_for_a_name_ends_at_once(receive, resolver):
    """The resolver may need longer than anybody who stops it has."""
    resolver.answers.clear()
    receiver, _ = receive("tcp://slow.test:1")
    until(lambda: resolver.asked)
    started = time.monotonic()
    receiver.stop(30)
    assert time.monotonic() - started < 10


def test_a_lack_of_descriptors_in_zeromqs_own_thread_is_an_attempt_that_failed(receive, pusher):
    """It says only that it will try again: in an hour, if it were left to it (probed)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    receiver, got = receive("tcp://127.0.0.1:1")
    until(lambda: "nothing accepts" in receiver.why)
    taken = []
    try:
        receiver.connect(pusher.endpoint)
        # Our own sockets need some: so the last one is taken when they are there.
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        gevent.sleep(0.3)  # several attempts, of which nothing tells
        assert not receiver.connected
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: receiver.connected)
    pusher.send(b"1")
    until(lambda: got)


def test_it_knows_when_all_that_came_was_handed_on(pusher, receive):
    """Also right after something arrived that it was not told of yet."""
    receiver, got = receive(pusher.endpoint)
    pusher.send(b"1")
    until(lambda: got)
    gevent.sleep(0.01)  # the receiver comes round once more
    assert receiver.caught_up()
    pusher.send(b"2")
    time.sleep(0.05)  # the bytes get to the other side, which tells nobody
    assert not receiver.caught_up()
    until(receiver.caught_up)
    assert len(got) == 2


def test_subscriptions_hold_over_connections(context):
    """A SUB socket asks for the same topics after each connection."""
    got = []
    receiver = Receiver(context, zmq.SUB, got.append)
    receiver.subscribe(b"a")
    endpoint = receiver.bind("tcp://127.0.0.1:*")
    receiver.subscribe(b"b")
    publisher = zmq.green.Context()
    socket = publisher.socket(zmq.XPUB)
    socket.connect(endpoint)
    assert {socket.recv(), socket.recv()} == {b"\x01a", b"\x01b"}
    for message in (b"a1", b"c1", b"b1"):
        socket.send(message)
    until(lambda: len(got) == 2)
    assert got == [b"a1", b"b1"]
    receiver.stop(1)
    socket.close(0)
    publisher.term()


@pytest.fixture
def fail_to_receive(monkeypatch):
    """A function after which so many calls of a PULL socket's recv raise an error, where there is a message."""
    receive = zmq.Socket.recv
    errors = []

    def failing(socket, *arguments, **options):
        message = receive(socket, *arguments, **options)
        if errors and socket.getsockopt(zmq.TYPE) == zmq.PULL:
            raise errors.pop()
        return message

    monkeypatch.setattr(zmq.Socket, "recv", failing)
    monkeypatch.setattr("greentx.transport.receiver.RETRY_SECONDS", 0.001)
    return errors.extend


def type_name(error):
    return type(error).__name__


def receives_again(pusher, got):
    """Push until something of it comes: what was pushed to a socket that closes is lost, and PUSH cannot tell."""
    with gevent.Timeout(10):
        while not got:
            pusher.send(b"again")
            gevent.sleep(0.01)  # between two looks
    assert got[0] == b"again"


@pytest.mark.parametrize(
    "error", [zmq.ZMQError(zmq.EFAULT), OSError("of the system"), RuntimeError("of ours")], ids=repr
)
def test_a_reader_goes_on_after_an_error_of_its_socket(pusher, receive, fail_to_receive, caplog, error):
    """With a new one, after a pause that grows; the log says so."""
    fail_to_receive([error] * 3)
    receiver, got = receive(pusher.endpoint)
    receives_again(pusher, got)
    until(lambda: receiver.connected)
    assert caplog.text.count("receiver failed: ") == 3
    assert "it goes on in 0.0 s" in caplog.text


def test_a_reader_goes_on_when_there_are_descriptors_again(pusher, receive, context, monkeypatch, caplog):
    """It makes the attempt again, and is not connected until then."""
    monkeypatch.setattr("greentx.transport.receiver.RETRY_SECONDS", 0.001)
    make, left = context.socket, [3]

    def refuse(kind):
        left[0] -= 1
        if left[0] >= 0:
            raise zmq.ZMQError(errno.EMFILE)
        return make(kind)

    monkeypatch.setattr(context, "socket", refuse)
    receiver, got = receive(pusher.endpoint)
    assert not receiver.connected
    receives_again(pusher, got)
    assert "Too many open files" in caplog.text


def test_a_reader_that_is_stopped_while_it_pauses_ends_at_once(receive, context, monkeypatch):
    """Nobody waits for the end of the pause."""

    def refuse(kind):
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(context, "socket", refuse)
    receiver, _ = receive("ipc:///nowhere/at/all")
    gevent.sleep(0.02)  # until it waits in there, which nobody is told
    started = time.monotonic()
    receiver.stop(30)
    assert time.monotonic() - started < 10


def test_a_bound_reader_keeps_its_socket_after_an_error(context, monkeypatch):
    """Its address is known to others; stopped in the middle of errors it ends."""
    monkeypatch.setattr("greentx.transport.receiver.RETRY_SECONDS", 0.001)
    got, failing = [], [True]
    receive = zmq.Socket.recv

    def fail(socket, *arguments, **options):
        if failing[0] and socket.getsockopt(zmq.TYPE) == zmq.SUB:
            raise zmq.ZMQError(zmq.EFAULT)
        return receive(socket, *arguments, **options)

    monkeypatch.setattr(zmq.Socket, "recv", fail)
    receiver = Receiver(context, zmq.SUB, got.append)
    receiver.subscribe(b"")
    endpoint = receiver.bind("tcp://127.0.0.1:*")
    sending = context.socket(zmq.XPUB)
    context.connect(sending, endpoint)
    gevent.sleep(0.1)  # it fails for a while
    failing[0] = False
    until(lambda: sending.poll(0) and sending.recv() == b"\x01")
    sending.send(b"x")
    until(lambda: got)
    failing[0] = True
    sending.send(b"y")
    gevent.sleep(0.05)  # what must not happen has no event
    started = time.monotonic()
    receiver.stop(30)
    assert time.monotonic() - started < 10


def test_no_memory_for_a_message_loses_that_one_only(pusher, receive, fail_to_receive, caplog):
    """The socket is as good as before."""
    fail_to_receive([MemoryError()])
    _receiver, got = receive(pusher.endpoint)
    pusher.send(*numbered(0, 10))
    until(lambda: len(got) == 9)
    assert got == numbered(1, 10)
    assert "no memory for a message" in caplog.text


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), MemoryError(), gevent.Timeout(1), RecursionError()], ids=type_name
)
def test_whatever_a_message_raises_the_next_one_is_received(pusher, receive, caplog, error):
    """A Timeout too, that somebody has left running: only the end of the greenlet ends it."""
    got = []

    def handle(message):
        if message == b"bad":
            raise error
        got.append(message)

    receive(pusher.endpoint, handle)
    pusher.send(b"bad", b"good")
    until(lambda: got)
    assert "a message of 3 bytes was not handled" in caplog.text
    assert type_name(error) in caplog.text  # its traceback


def test_a_timeout_that_was_left_running_does_not_end_the_reader(pusher, receive, caplog):
    """It comes up while the reader sleeps; the socket is kept."""
    got = []

    def handle(message):
        got.append(message)
        gevent.Timeout.start_new(0.01)

    receiver, _ = receive(pusher.endpoint, handle)
    pusher.send(b"1")
    until(lambda: "left running" in caplog.text)
    pusher.send(b"2")
    until(lambda: len(got) == 2)
    assert receiver.connected
    until(lambda: caplog.text.count("left running") >= 2)
