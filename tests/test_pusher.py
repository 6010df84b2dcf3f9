"""The PUSH socket of the stand-in: when a message was sent, and when it was not."""

from __future__ import annotations

import time

import gevent
import pytest
import zmq

from greentx.errors import SendTimeout
from greentx.transport import Context
from greentx.transport.pusher import Pusher


@pytest.fixture
def pusher():
    """A bound one."""
    context = Context("test", lambda: context.close(linger=0))
    one = Pusher(context, "tcp://127.0.0.1:*")
    yield one
    one.close()
    context.close(linger=0)


@pytest.fixture
def pull():
    """A PULL socket that is not connected yet."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.linger = 0
        socket.rcvtimeo = 5000
        yield socket


def test_a_message_that_nobody_has_room_for_is_not_sent(pusher, pull):
    """Also later on: the next one is what arrives."""
    with pytest.raises(SendTimeout, match="no handler is connected"):
        pusher.send(b"one", 0.02)
    assert pusher.waiting == 0
    pull.connect(pusher.endpoint)
    pusher.send(b"two", 5)
    assert (pull.recv(), pusher.messages_sent) == (b"two", 1)


def test_room_and_timeout_at_once_are_a_message_that_was_sent(pusher, pull):
    """Both fall due while the hub does something else; it looks for room first, then at the timeout."""
    sending = gevent.spawn(pusher.send, b"one", 0.15)
    gevent.sleep(0)
    pull.connect(pusher.endpoint)
    # Blocks the hub, on purpose: until then ZeroMQ's own thread has connected, and both timers are over.
    time.sleep(0.3)
    sending.get(timeout=5)
    assert (pull.recv(), pusher.messages_sent, pusher.waiting) == (b"one", 1, 0)


def test_closing_ends_the_wait(pusher):
    """Whoever waits for room does not wait for the timeout."""
    sending = gevent.spawn(pusher.send, b"one", 5)
    gevent.sleep(0)
    pusher.close()
    with gevent.Timeout(1):
        sending.join()


def test_the_timer_stops_when_what_waited_was_withdrawn(pusher):
    """Nothing is looked for any more."""
    with pytest.raises(SendTimeout):
        pusher.send(b"one", 0.02)
    assert pusher._poll_timer.active  # noqa: SLF001 - it has no effect that is seen
    gevent.sleep(0.25)
    assert not pusher._poll_timer.active  # noqa: SLF001 - it has no effect that is seen
