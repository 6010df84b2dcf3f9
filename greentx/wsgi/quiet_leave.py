"""The moment in which a process stops to pull requests: how it loses nothing.

When a connection has ended, Mongrel2's ZeroMQ notices it late: while it is busy it looks once in 1 to 2 ms (libzmq,
``max_command_delay``). A request that Mongrel2 hands to that connection meanwhile is lost. Nobody reports the loss, so
its browser waits. Under load this happens to some requests at each end of a process.

So the aim is that no request comes in that moment. Most requests follow an answer, so nothing is answered: the process
stops its whole thread. A request that does not follow an answer of its own can still come just then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent import monkey

from ..handler.shared import Extension

if TYPE_CHECKING:
    from ..handler.connection import Connection
    from ..protocol.request import Request

__all__ = ["QuietLeave"]

log = logging.getLogger("greentx.wsgi")

# The process leaves when no request has come for the quiet time. That begins with the first number, and grows up to the
# second while requests come slowly. After the last one the process leaves all the same.
_QUIET_SECONDS, _SLOW_QUIET_SECONDS, _MAX_QUIET_SECONDS = 0.003, 0.015, 0.3

# How long this thread goes on to stand still once Mongrel2 knows.
_AFTER_SECONDS = 0.003
_LOOK_SECONDS = 0.001

# How long Mongrel2 may need to see that a connection was shut down.
_END_MS = 50

# Not gevent's: this whole thread is to stand still.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")
_poll: Callable[[], Any] = monkey.get_original("select", "poll")


class QuietLeave(Extension):
    """Keeps requests away from this process in the moment in which Mongrel2 learns that it leaves.

    A notice that Mongrel2 is asked for shows that it has done what it had to do before.
    """

    def __init__(self) -> None:
        # When it began, when a request came last, and when the last notice that was asked for came.
        self._began: float | None = None
        self._came = 0.0
        self._answered: float | None = None
        self._quiet = _QUIET_SECONDS
        self._notices = 0
        self._requests = 0

    def notice(self, connection: Connection, request: Request) -> bool:
        if self._began is not None and request.conn_id == connection.link.writer.receipts.nudge_id:
            self._notices += 1
            self._answered = time.monotonic()
        return False

    def before_leave(self, connection: Connection, busy: bool) -> bool:
        # Nothing can be asked of a stand-in, nor of a server that has gone.
        if connection.link.stand_in or not connection.link.subscribed:
            return False
        now = time.monotonic()
        if self._began is None:
            self._began = self._came = now
            self._quiet = _QUIET_SECONDS
            self._requests = -1
        requests = connection.intake.requests - self._notices
        if requests != self._requests:
            if self._requests != -1:
                # A slow machine, or slow browsers, need a longer time.
                self._quiet = min(max(self._quiet, 2 * (now - self._came)), _SLOW_QUIET_SECONDS)
            self._came = now
            self._requests = requests
            self._answered = None
            self._ask(connection)
        elif self._answered is not None and now - self._answered >= self._quiet and not busy:
            return False
        if now - self._began > _MAX_QUIET_SECONDS:
            log.warning(
                "%s: after %s s this process leaves all the same, though requests go on to come: some may be lost",
                *(connection.link.sender, _MAX_QUIET_SECONDS),
            )
            return False
        _sleep(_LOOK_SECONDS)
        return True

    def _ask(self, connection: Connection) -> None:
        writer = connection.link.writer
        writer.receipts.nudge()
        # What waits for the hub would not leave before it runs again.
        if writer.pipe.batch:
            writer.pipe.send_batch()

    def wait_for_end(self, descriptor: int) -> None:
        poll = _poll()
        poll.register(descriptor, 0)  # POLLHUP is always reported
        poll.poll(_END_MS)

    def after_leave(self, connection: Connection) -> None:
        _sleep(_AFTER_SECONDS)
        self._began = None
