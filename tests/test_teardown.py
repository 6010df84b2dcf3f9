"""The hooks that take ZeroMQ away: what they install, and that they go with the last context."""

from __future__ import annotations

import _thread
import operator
import signal
import sys
import time

import gevent
import gevent.event
import pytest
import zmq

from greentx.transport import Context, teardown
from greentx.transport.descriptors import Descriptors


@pytest.fixture
def open_context():
    """A function that opens contexts; they are closed after the test."""
    made = []

    def make():
        made.append(Context("test", lambda: None))
        return made[-1]

    yield make
    for one in made:
        one.close(linger=0)


@pytest.fixture
def sigterm():
    """SIGTERM as it was, after the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_program_is_handled_from_the_first_context_to_the_last(open_context, number):
    """It ends the main greenlet as Ctrl-C does; without a context it is the system's again."""
    assert signal.getsignal(number) is signal.SIG_DFL
    first, second = open_context(), open_context()
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        handler(number, None)
    assert caught.value.code == 128 + number
    first.close()
    assert signal.getsignal(number) is handler
    second.close()
    assert signal.getsignal(number) is signal.SIG_DFL


def test_ctrl_c_ends_a_program_as_sigterm_does_and_is_still_a_keyboard_interrupt(open_context):
    """From the first context to the last, where Python's own handler is there; a second Ctrl-C is one, too."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    one = open_context()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 130
    one.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_a_socket_is_made_waits_until_it_can_be_closed(open_context, monkeypatch, number):
    """Else the context would wait forever for one that nobody knows."""
    context = open_context()
    made = []

    def make_slowly(self, make):
        made.append(make())
        signal.raise_signal(number)
        return made[0]

    monkeypatch.setattr(Descriptors, "make", make_slowly)
    with pytest.raises(SystemExit) as caught:
        context.socket(zmq.PULL)
    assert caught.value.code == 128 + number
    with gevent.Timeout(5):
        context.close(linger=0)
    assert made[0].closed
    assert context.terminated


def test_a_signal_waits_for_the_end_of_the_outermost_of_nested_uninterrupted_blocks(open_context):
    """The inner one ends nothing: what the outer one makes is not noted yet."""
    open_context()
    done = []

    def nested():
        with teardown.uninterrupted():
            with teardown.uninterrupted():
                signal.raise_signal(signal.SIGTERM)
            done.append("inner")
            signal.raise_signal(signal.SIGINT)
            done.append("outer")

    with pytest.raises(SystemExit) as caught:
        nested()
    assert caught.value.code == 128 + signal.SIGTERM
    assert done == ["inner", "outer"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["its sockets are closed", "its threads end"])
def test_a_signal_that_comes_while_the_last_context_closes_is_raised_when_it_is_closed(open_context, number, when):
    """It neither ends the program on the spot nor leaves a socket open."""
    context = open_context()
    socket = context.socket(zmq.PUSH)
    socket.connect("inproc://nobody")
    came = []

    def interrupt():
        came.append(not context.open)
        signal.raise_signal(number)

    if when == "its threads end":
        socket.send(b"this lingers", zmq.NOBLOCK)
        gevent.spawn(interrupt)
    else:
        context.names.close = interrupt
    with pytest.raises(SystemExit) as caught:
        context.close(linger=0.1)
    assert caught.value.code == 128 + number
    assert came == [True]
    assert socket.closed
    assert context.terminated
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_signal_that_comes_when_a_timeout_of_gevents_is_due_is_raised_after_it(open_context):
    """Else the timeout would be raised after the signal, in whatever is done at the end."""
    open_context()
    timer = gevent.get_hub().loop.timer(0.001)
    # In C, so that the signal is handled when the hub calls the next timer, the timeout's.
    timer.start(_thread.interrupt_main, signal.SIGTERM)
    timeout = gevent.Timeout.start_new(0.001)
    time.sleep(0.01)  # both are due
    with timer, timeout, pytest.raises(gevent.Timeout):
        gevent.sleep(5)
    with pytest.raises(SystemExit) as caught:
        gevent.sleep(5)
    assert caught.value.code == 128 + signal.SIGTERM
    gevent.sleep(0.01)


def test_a_signal_that_comes_while_a_timeout_of_gevents_starts_leaves_none_running(open_context):
    """Else that would strike later, whatever is done then: the end of the program, as a rule."""
    open_context()
    timeout = gevent.Timeout(1)

    class Timer:
        interrupt = staticmethod(_thread.interrupt_main)
        # In C, so that the signal is handled in gevent's function.
        active = property(operator.methodcaller("interrupt", signal.SIGTERM))
        pending = False
        started = False

        def start(self, *args, **options):
            self.started = True

    timer = timeout.timer = Timer()
    try:
        timeout.start()
    except SystemExit:
        pytest.fail("raised before gevent was done")
    assert timer.started
    with pytest.raises(SystemExit) as caught:
        gevent.sleep(5)
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_signal_that_comes_while_an_object_is_deleted_is_raised_after_it(open_context):
    """Python ignores what ``__del__`` raises."""
    open_context()

    class Deleted:
        def __del__(self):
            _thread.interrupt_main(signal.SIGTERM)

    Deleted()
    with pytest.raises(SystemExit) as caught:
        gevent.sleep(5)
    assert caught.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("how", ["own", "in C", "prompt"])
def test_ctrl_c_is_left_alone_where_it_means_something_else(open_context, monkeypatch, how):
    """A handler of the program's, in Python or in C; a prompt, which it must not end."""
    own = gevent.event.Event()
    watcher = None
    if how == "own":
        signal.signal(signal.SIGINT, lambda number, frame: own.set())
    elif how == "in C":
        watcher = gevent.signal_handler(signal.SIGINT, own.set)
    else:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    before = signal.getsignal(signal.SIGINT)
    try:
        one = open_context()
        assert signal.getsignal(signal.SIGINT) is before
        if how != "prompt":
            signal.raise_signal(signal.SIGINT)
            assert own.wait(5)
        one.close()
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        if watcher is not None:
            watcher.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_signal_that_is_ignored_stays_ignored(open_context):
    """nohup(1) says so that the end of a terminal does not end the program."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        open_context().close()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_applications_own_handler_stays(open_context, sigterm, when):
    """Installed before the first context or after it."""

    def own(*args):
        pass

    if when == "before":
        signal.signal(signal.SIGTERM, own)
    context = open_context()
    if when == "after":
        signal.signal(signal.SIGTERM, own)
    assert signal.getsignal(signal.SIGTERM) is own
    context.close()
    assert signal.getsignal(signal.SIGTERM) is own


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_of_gevents_stays(open_context, sigterm, when):
    """libev installs it in C, where Python does not see it."""
    came = gevent.event.Event()
    if when == "before":
        watcher = gevent.signal_handler(signal.SIGTERM, came.set)
    context = open_context()
    if when == "after":
        watcher = gevent.signal_handler(signal.SIGTERM, came.set)
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
        assert came.wait(5)
        came.clear()
        context.close()
    watcher.cancel()


def test_where_the_system_cannot_be_asked_pythons_answer_counts(open_context, monkeypatch):
    """A Python without ctypes, a libc without sigaction."""
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert teardown.handler_in_c(signal.SIGTERM) is None
    context = open_context()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    context.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_another_thread_installs_no_signal_handler():
    """Python has signals handled in the main thread only."""
    seen = []

    def run():
        context = Context("elsewhere", lambda: None)
        seen.append(signal.getsignal(signal.SIGTERM))
        context.close()
        gevent.get_hub().destroy(destroy_loop=True)

    gevent.get_hub().threadpool.spawn(run).get()
    assert seen == [signal.SIG_DFL]


def test_the_hub_is_hooked_from_its_first_context_to_its_last(open_context):
    """Its own method is there again afterwards."""
    hub = gevent.get_hub()
    assert "destroy" not in vars(hub)
    first, second = open_context(), open_context()
    first.close()
    assert "destroy" in vars(hub)
    second.close()
    assert "destroy" not in vars(hub)
    second.close()


def test_at_exit_all_contexts_of_the_hub_are_closed(open_context):
    """For programs that never leave their with block."""
    contexts = [open_context() for _ in range(3)]
    teardown.at_exit()
    assert not any(one.open for one in contexts)
    teardown.at_exit()


def test_one_teardown_that_fails_does_not_keep_the_others(caplog):
    """It is logged, with its traceback, and its context is closed too."""
    broken, whole = Context("broken", lambda: 1 / 0), Context("whole", lambda: None)
    teardown.at_exit()
    assert not broken.open
    assert not whole.open
    assert "ZeroDivisionError" in caplog.text
