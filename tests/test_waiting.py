"""Who waits for a pipe that is full, and for how long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest

from greentx.errors import SendTimeout
from greentx.protocol.flow import UNWAITED, Line, Turn
from greentx.transport import Context
from greentx.transport.waiting import STANDSTILL_SECONDS, Waiting

LONG = 60.0


class Bench:
    """A pipe that is full, of one of several servers.

    Attributes:
        aside: How often a place in a pool was given back.
    """

    def __init__(self, context: Context, who: str = "anybody", *, others: bool = True, timeout: float = LONG) -> None:
        self.aside = 0
        self.line = Line()
        self.line.moved_at = monotonic()
        self._who = who
        self.waiting = Waiting(context, "writer", timeout, self._for_browser, lambda: others)
        self.waiting.watch(self.line)

    def _for_browser(self) -> Any:
        return None if self._who == "reader" else self._set_aside()

    @contextlib.contextmanager
    def _set_aside(self) -> Iterator[None]:
        self.aside += 1
        yield

    def write(self, size: int, *, to_all: bool = False) -> gevent.Greenlet[..., str]:
        """Write so many bytes, which have to wait; return the writer, whose value is its error."""
        self.turn = Turn("", b"message")

        def write() -> str:
            try:
                self.waiting.for_turn(self.turn, lambda: True, size, to_all=to_all)
            except SendTimeout as error:
                return str(error)
            return ""

        writer = gevent.spawn(write)
        gevent.sleep(0)
        return writer


@pytest.fixture
def context() -> Iterator[Context]:
    one = Context("test", lambda: None)
    yield one
    one.close(linger=0)


@pytest.mark.parametrize("who", ["reader", "handler"])
def test_nobody_waits_for_the_first_bytes_to_one_of_several_servers(context: Context, who: str) -> None:
    """Beyond them whoever wrote waits."""
    bench = Bench(context, who)
    assert bench.write(UNWAITED // 2).ready() and bench.write(UNWAITED // 2).ready()
    writer = bench.write(1)
    assert not writer.ready()
    bench.turn.end()
    assert writer.get(timeout=5) == ""
    # It may be the same again once the line before the pipe was empty.
    bench.waiting.unwaited = 0
    assert bench.write(UNWAITED).ready()


def test_the_only_server_is_waited_for(context: Context) -> None:
    """Also for the first byte: there is nobody else who could be held up."""
    bench = Bench(context, others=False)
    writer = bench.write(1)
    assert not writer.ready() and bench.aside == 0
    bench.turn.end()
    assert writer.get(timeout=5) == ""


def test_a_handler_waits_aside_and_for_as_long_as_ever(context: Context) -> None:
    """Its place in the pool is another's meanwhile."""
    bench = Bench(context, "handler", timeout=2.5 * STANDSTILL_SECONDS)
    began = monotonic()
    writer = bench.write(UNWAITED + 1)
    assert writer.get(timeout=LONG)
    assert bench.aside == 1 and monotonic() - began > 2 * STANDSTILL_SECONDS


@pytest.mark.parametrize(("who", "to_all"), [("reader", False), ("handler", True)])
def test_those_for_whom_others_wait_give_up_on_a_pipe_that_does_not_move(
    context: Context, who: str, to_all: bool
) -> None:
    """A reader of all servers' events, and a broadcast: while it moves they wait, then hardly more than a second."""
    bench = Bench(context, who)
    writer = bench.write(UNWAITED + 1, to_all=to_all)
    for _ in range(6):
        gevent.sleep(STANDSTILL_SECONDS / 4)  # longer in all than a pipe may stand still
        assert not writer.ready()
        bench.line.moved_at = monotonic()
    assert "stayed full" in writer.get(timeout=LONG / 2)
    # The next ones need not wait to find that out.
    took = []
    for _ in range(3):
        began = monotonic()
        assert bench.write(UNWAITED + 1, to_all=to_all).get(timeout=LONG / 2)
        took.append(monotonic() - began)
    assert min(took) < STANDSTILL_SECONDS
