"""The ZeroMQ context: it always goes away, in bounded time, and other threads reach it through the hub."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from types import SimpleNamespace

import gevent
import gevent.event
import pytest
import zmq

from greentx.errors import BindError, ForkError, TransportError
from greentx.transport import Context, SocketClosed
from greentx.transport.descriptors import Descriptors
from greentx.transport.teardown import guarded


@pytest.fixture
def context():
    """An open context, closed after the test."""
    one = Context("test", lambda: None, linger=0.2)
    yield one
    one.close(linger=0)


def in_native_thread(function, *args):
    """Run *function* in a thread of the system and return what came of it, while greenlets go on."""
    outcome = []

    def run():
        try:
            outcome.append((function(*args), None))
        except Exception as error:  # noqa: BLE001 - raised again below: the thread pool would print it
            outcome.append((None, error))

    gevent.get_hub().threadpool.spawn(run).get()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def test_closing_takes_sockets_watchers_and_the_context(context):
    """Nothing has to be closed one by one."""
    socket = context.socket(zmq.PULL)
    context.bind(socket, "tcp://127.0.0.1:*")
    context.watch(socket, lambda: None)
    context.timer(10).start(lambda: None)
    context.close()
    assert socket.closed
    assert not context.open
    assert context not in guarded
    context.close()
    with pytest.raises(SocketClosed, match="test is closed"):
        context.socket(zmq.PULL)


def test_an_address_in_use_is_named(context):
    """With the system's reason and number; the socket does not stay open."""
    bound = context.bind(context.socket(zmq.PULL), "tcp://127.0.0.1:*")
    with pytest.raises(BindError, match=bound) as caught:
        context.bind(context.socket(zmq.PULL), bound)
    assert (caught.value.address, caught.value.errno) == (bound, zmq.EADDRINUSE)
    assert repr(context) == "<Context of test: 1 sockets>"


def has_ipv6():
    """Whether this machine has IPv6."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


# A container may have none; nothing else is skipped for it.
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_bound_and_reached(context):
    """ZeroMQ's sockets know IPv4 only, unless they are told."""
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    endpoint = context.bind(pull, "tcp://[::1]:*")
    assert endpoint.startswith("tcp://[::1]:")
    context.connect(push, endpoint)
    push.send(b"x")
    assert pull.poll(5000) and pull.recv() == b"x"


def test_an_address_that_cannot_be_connected_to_is_named(context):
    """ZeroMQ takes names that do not resolve, but no nonsense."""
    with pytest.raises(TransportError, match="nonsense") as caught:
        context.connect(context.socket(zmq.PULL), "nonsense://1")
    assert caught.value.address == "nonsense://1"
    assert repr(context) == "<Context of test: 0 sockets>"


def unsent(context, seconds):
    """A socket with a message that nobody will take, kept for so long."""
    socket = context.socket(zmq.PUSH)
    context.connect(socket, "ipc:///nowhere/at/all")
    socket.send(b"x", zmq.NOBLOCK)
    socket.setsockopt(zmq.LINGER, int(seconds * 1000))
    return socket


def test_closing_waits_for_what_was_sent_and_blocks_its_greenlet_only(context):
    """Other greenlets run while it lingers, and it does not linger longer than was said."""
    unsent(context, 0.2)
    turns = []

    def turn():
        while True:
            turns.append(1)
            gevent.sleep(0.01)  # between two looks

    turning = gevent.spawn(turn)
    started = time.monotonic()
    context.close()
    took = time.monotonic() - started
    turning.kill()
    assert 0.19 <= took < 10
    assert len(turns) >= 5


def test_the_end_is_not_disturbed_by_what_strikes_its_greenlet(context):
    """Killed while it lingers, it lingers on, then dies: nothing is left half closed."""
    unsent(context, 0.2)
    closing = gevent.spawn(context.close)
    gevent.sleep(0.02)  # until it waits in there, which nobody is told
    closing.kill(block=False)
    gevent.sleep(0.02)  # until it waits in there, which nobody is told
    closing.kill(block=False)
    assert not closing.dead
    closing.join(5)
    assert isinstance(closing.value, gevent.GreenletExit)
    assert context.terminated


def test_closing_in_the_hub_waits_there(context):
    """Nobody else can wait for it; the wait is bounded all the same."""
    closed = gevent.event.Event()

    def close():
        context.close(linger=0)
        closed.set()

    gevent.get_hub().loop.run_callback(close)
    assert closed.wait(5)
    assert context.terminated


def test_the_end_comes_without_a_thread_too(context, monkeypatch):
    """An interpreter that is ending starts no threads any more."""

    def refuse(*args):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr("greentx.transport.context.start_native_thread", refuse)
    context.close()
    assert context.terminated


@pytest.mark.parametrize("number", range(3))
def test_another_thread_has_calls_made_in_the_hub(context, number):
    """It gets what the call returned, and the call runs in the hub's own thread, where it may block its greenlet."""

    def call(one, two):
        gevent.sleep(0.01)  # the handler's work takes a while
        assert context.in_hub_thread()
        return one + two

    def from_elsewhere():
        assert not context.in_hub_thread()
        return context.hand_over(call, number, 1)

    assert in_native_thread(from_elsewhere) == number + 1


def test_another_thread_gets_the_exception_of_its_call(context):
    """As if it had made the call itself."""
    with pytest.raises(ZeroDivisionError):
        in_native_thread(context.hand_over, divmod, 1, 0)


def test_another_thread_gets_an_error_after_the_end(context):
    """Not a wait forever."""
    context.close()
    with pytest.raises(SocketClosed):
        in_native_thread(context.hand_over, int)


def test_a_thread_that_waits_for_a_destroyed_hub_is_told(context, monkeypatch):
    """Its call was accepted and will never be made."""
    monkeypatch.setattr("greentx.transport.context.HUB_CHECK_SECONDS", 0.01)
    loop = SimpleNamespace(run_callback_threadsafe=lambda *args: None)
    with monkeypatch.context() as patch:
        patch.setattr(context, "hub", SimpleNamespace(dead=True, loop=loop))
        with pytest.raises(SocketClosed, match="its hub was destroyed"):
            in_native_thread(context.hand_over, int)


def test_a_context_goes_with_the_hub_of_its_thread():
    """Each thread has a hub of its own; destroying one closes what lives on it and nothing else."""
    ours = Context("ours", lambda: None)
    theirs = []

    def own_hub():
        theirs.append(Context("theirs", lambda: theirs[0].close()))
        theirs[0].bind(theirs[0].socket(zmq.PULL), "tcp://127.0.0.1:*")
        gevent.get_hub().destroy(destroy_loop=True)

    in_native_thread(own_hub)
    assert (theirs[0].open, theirs[0].terminated) == (False, True)
    assert ours.open
    ours.close()


def test_a_context_whose_owner_fails_to_end_is_closed_all_the_same(caplog):
    """The owner's error is logged with its traceback."""
    contexts = []

    def own_hub():
        contexts.append(Context("broken", lambda: 1 / 0))
        gevent.get_hub().destroy(destroy_loop=True)

    in_native_thread(own_hub)
    assert contexts[0].terminated
    assert "could not be torn down" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_forked_child_is_cut_off(context):
    """It gets an error that says what to do, closes nothing of the parent's, and the parent goes on."""
    socket = context.socket(zmq.PULL)
    endpoint = context.bind(socket, "tcp://127.0.0.1:*")
    calls = []
    context.watch(socket, lambda: calls.append(1))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with pytest.raises(ForkError, match="make a new one after the fork"):
                context.socket(zmq.PULL)
            context.close_socket(socket)
            context.close()
            context.close()  # twice is once
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    sending = context.socket(zmq.PUSH)
    context.connect(sending, endpoint)
    sending.send(b"x")
    gevent.sleep(0.05)  # the bytes get to the other side, which tells nobody
    assert calls
    assert socket.recv() == b"x"


def test_endpoints_inside_a_context_are_never_used_twice(context):
    """A closed socket's is bound for a moment longer; a receiver that got it again could not watch its connection."""
    assert len({context.new_inproc() for _ in range(1000)}) == 1000


def test_a_forked_child_keeps_what_has_the_number_of_an_ended_thread_s_descriptor():
    """A pipe to a new child, say: threads that have ended leave their numbers to whatever is opened next."""
    descriptors = Descriptors()
    epoll = descriptors.make(select.epoll)
    number = epoll.fileno()
    epoll.close()
    ends = os.pipe()
    try:
        os.dup2(ends[0], number)
        try:
            descriptors.note()
            descriptors.close_inherited()
            assert os.fstat(number).st_ino == os.fstat(ends[0]).st_ino
        finally:
            os.close(number)
    finally:
        for end in ends:
            if end != number:
                os.close(end)
