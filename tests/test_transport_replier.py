"""The answering half of the control socket: it goes on answering, whatever one request does."""

from __future__ import annotations

import gevent
import pytest
import zmq
import zmq.green

from greentx.transport import Context, Replier


@pytest.fixture
def ask():
    """A function that asks a replier, and returns its answer; the replier raises what a request names."""
    context = Context("test", lambda: None, linger=0.2)
    raised = {b"timeout": gevent.Timeout(1), b"error": ZeroDivisionError("oh")}

    def answer(request, asker):
        assert asker == "127.0.0.1"
        if request in raised:
            raise raised[request]
        return request.upper()

    replier = Replier(context, "tcp://127.0.0.1:*", answer)
    replier.start()
    asking = zmq.green.Context()

    def one(request, *more):
        with asking.socket(zmq.REQ) as socket, gevent.Timeout(5):
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(replier.endpoint)
            socket.send_multipart([request, *more])
            return socket.recv()

    yield one
    replier.stop()
    context.close(linger=0)
    asking.term()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ((b"error",), b"ERROR ZeroDivisionError: oh"),
        ((b"timeout",), b"ERROR Timeout: 1 second"),
        ((b"two", b"parts"), b"ERROR a request is one message part, not 2"),
    ],
)
def test_a_request_that_fails_is_answered_and_so_is_the_next(ask, request_, answer):
    """A Timeout too, that something left running."""
    assert ask(*request_) == answer
    assert ask(b"ping") == b"PING"


@pytest.mark.parametrize("error", [MemoryError(), zmq.ZMQError(zmq.EFAULT)], ids=lambda error: type(error).__name__)
def test_a_request_that_cannot_be_received_is_answered_all_the_same(ask, monkeypatch, error):
    """Else the socket would owe an answer for good, and be stuck for everybody."""
    receive, errors = zmq.Socket.recv, [error]

    def failing(socket, *arguments, **options):
        message = receive(socket, *arguments, **options)
        if errors and socket.getsockopt(zmq.TYPE) == zmq.REP:
            raise errors.pop()
        return message

    monkeypatch.setattr(zmq.Socket, "recv", failing)
    assert ask(b"ping") == b"ERROR the request could not be received"
    assert ask(b"ping") == b"PING"
