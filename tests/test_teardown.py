"""The hooks that take ZeroMQ away: what they install, and that they go with the last context."""

from __future__ import annotations

import signal
import sys

import gevent
import gevent.event
import pytest

from greentx.transport import Context, teardown


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


def test_sigterm_is_handled_from_the_first_context_to_the_last(open_context):
    """It ends the main greenlet as Ctrl-C does; without a context it is the system's again."""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    first, second = open_context(), open_context()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        handler(signal.SIGTERM, None)
    assert caught.value.code == 143
    first.close()
    assert signal.getsignal(signal.SIGTERM) is handler
    second.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
    assert teardown._c_sigterm() is None
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
    teardown._at_exit()
    assert not any(one.open for one in contexts)
    teardown._at_exit()


def test_one_teardown_that_fails_does_not_keep_the_others(caplog):
    """It is logged, with its traceback, and its context is closed too."""
    broken, whole = Context("broken", lambda: 1 / 0), Context("whole", lambda: None)
    teardown._at_exit()
    assert not broken.open
    assert not whole.open
    assert "ZeroDivisionError" in caplog.text
