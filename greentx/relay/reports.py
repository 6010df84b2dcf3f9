"""What a Node tells its relay of the requests that it was given: received, begun, done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.pool import Group

from ..handler.connection import Connection
from ..handler.inbox import Inbox
from ..protocol.request import Request
from ..transport import Context

__all__ = ["Reports", "Work"]

# While an answer waits to be written it is not done: it is looked at again so often.
_DONE_SECONDS = 0.002

# Those that ended otherwise than by an answer, such as with a browser that did not read, are looked for so often.
_SWEEP_SECONDS = 1.0


class Work:
    """A request that a Node has.

    Attributes:
        number: What the relay calls it.
        request: As the application has it.
        begun: The relay knows that something of its answer may have gone out.
    """

    __slots__ = ("begun", "number", "request")

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.request = request
        self.begun = False


class Reports:
    """The reports of one session; many go in one message.

    Args:
        context: Owner of the timers.
        inbox: Where requests wait for the application: while it is full the relay keeps what comes.
        tell: Sends one message to the relay.
        sweep: Called now and then, to look for what ended in another way.
    """

    def __init__(
        self, context: Context, inbox: Inbox, tell: Callable[[bytes], object], sweep: Callable[[], object]
    ) -> None:
        self._context = context
        self._inbox = inbox
        self._tell = tell
        self._received = 0
        self._accepted = 0
        self._scheduled = False
        self._stopped = False
        # With the bytes of their connection sets' answers; see sent_of().
        self._finished: list[tuple[Connection, str, Work, dict[str, int]]] = []
        self._sent: dict[Connection, dict[str, int]] = {}
        self._timer: Any = context.timer(_DONE_SECONDS, _DONE_SECONDS)
        self._sweeper: Any = context.timer(_SWEEP_SECONDS, _SWEEP_SECONDS)
        self._sweeper.start(sweep)
        self._group = Group()

    def begin(self) -> None:
        """A session begins: nothing was received in it."""
        self._received = self._accepted = 0
        self._finished.clear()
        for sent in self._sent.values():
            sent.clear()

    def sent_of(self, connection: Connection) -> dict[str, int]:
        """Return how many bytes of answers that are not done have gone out to browser connections, for the counting."""
        return self._sent.setdefault(connection, {})

    def removed(self, connection: Connection) -> None:
        """Nothing more goes out to it."""
        self._sent.pop(connection, None)

    def received(self) -> None:
        """One message was received."""
        self._received += 1
        # Behind all that comes in this round of the hub, and before the application runs: what it may have seen is
        # never taken for something that was not received.
        if not self._scheduled:
            self._scheduled = True
            self._context.hub.loop.run_callback(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._stopped or not self._context.open:
            return
        inbox = self._inbox
        if len(inbox.items) < inbox.limit and inbox.held < inbox.byte_limit:
            self._accepted = self._received
        elif not self._group:
            self._group.spawn(self._wait_for_room)
        self._tell(b"received %d %d" % (self._received, self._accepted))

    def _wait_for_room(self) -> None:
        self._inbox.wait_for_space()
        # Once this greenlet has ended: it may be full again.
        self._scheduled = True
        self._context.hub.loop.run_callback(self._flush)

    def finished(self, connection: Connection, conn_id: str, work: Work) -> None:
        """A request was answered, as far as the application is concerned."""
        # One message for all that this round of the hub answers.
        if not self._finished:
            self._context.hub.loop.run_callback(self._look)
        sent = self._sent.get(connection)
        if sent is None:
            sent = self.sent_of(connection)
        self._finished.append((connection, conn_id, work, sent))
        sent.setdefault(conn_id, 0)

    def leaving(self, connection: Connection, messages: int) -> None:
        """Something of one connection set's goes out: say what is done with it, and what has begun.

        Args:
            messages: How many go.
        """
        if self._finished:
            pipe = connection.link.writer.pipe
            is_all = not pipe.line.turns and len(pipe.batch) == messages
            self._report(connection if is_all else None)
            begun = []
            for one, conn_id, work, sent in self._finished:
                if one is connection and not work.begun:
                    work.begun = True
                    begun.append(b"%d %d" % (work.number, sent.get(conn_id, 0)))
            if begun:
                self._tell(b"begun " + b" ".join(begun))

    def _look(self) -> None:
        """Report what has left."""
        if self._stopped or not self._context.open:
            return
        self._report(None)
        if not self._finished:
            self._timer.stop()
        elif not self._timer.active:
            # Not start(): it goes on with what was left of the timer's last run.
            self._timer.again(self._look, update=True)

    def _report(self, leaving: Connection | None) -> None:
        """Say what is done, where all that waits of *leaving* counts as having left."""
        waiting: list[tuple[Connection, str, Work, dict[str, int]]] = []
        done: list[bytes] = []
        before: Connection | None = None
        busy = False
        for item in self._finished:
            connection, conn_id, work, sent = item
            # Nearly always all are of one.
            if connection is not before:
                before, writer = connection, connection.link.writer
                busy = connection is not leaving and bool(writer.pipe.batch or writer.pipe.line.turns)
            if busy or writer.flow.waiting(conn_id):
                waiting.append(item)
            else:
                # Of several of one connection the first one counts for all: the sums matter.
                done.append(b"%d %d" % (work.number, sent.pop(conn_id, 0)))
        self._finished = waiting
        if done:
            self._tell(b"done " + b" ".join(done))

    def stop(self) -> None:
        """Say what there is to say, for the last time."""
        if self._stopped:
            return
        # What did not leave by now never will.
        self._look()
        self._stopped = True
        for timer in (self._timer, self._sweeper):
            self._context.unwatch(timer)
        self._group.kill(block=False)
