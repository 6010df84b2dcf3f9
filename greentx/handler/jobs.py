"""Jobs, and the order of those of one browser connection: whose turn it is. No I/O, and no greenlets, here.

Each connection that has something to be handled has a line of jobs. The first of a line is handled, or waits for the
pool (:mod:`greentx.handler.schedule`); the others wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..protocol.life import ENDED, Life
from ..protocol.request import Request
from ..protocol.websocket.registry import Sid

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["J", "Job", "Lines"]


class Job:
    """One event of a browser connection, to be handled in a greenlet.

    Args:
        connection: The connection set that it came over.
        request: The event.
        sid: ``(sender, conn_id)``: the browser connection.

    Attributes:
        life: The life of the server that it came in; ``request.life`` changes when the connection ends.
        greenlet: The greenlet that handles it; ``None`` before.
        begun: A greenlet has begun to handle it. Before that, nobody but the schedule could answer it.
        lingers: It was handled, but something of it has yet to end before the next job of its connection begins.
    """

    # In the class: most jobs are never asked, and each is made on the path of a request.
    begun = False
    lingers = False
    greenlet: Any = None

    def __init__(self, connection: Connection, request: Request, sid: Sid) -> None:
        self.connection = connection
        self.request = request
        self.sid = sid
        self.life: Life | None = request.life

    @property
    def moot(self) -> bool:
        """True where nobody waits for it, so that it need not be handled when its turn comes."""
        return False

    def drop(self) -> None:
        """It will not be handled: let go of what it holds. Never blocks; twice is once."""
        # A stored upload goes at once. Whoever else still holds the request, for its own reasons, must not keep a file
        # that a client had us store: clients that leave could fill the disk.
        if self.request.stored is not None:
            self.request.stored.delete()


J = TypeVar("J", bound=Job)


class Lines(Generic[J]):
    """The lines of all connections.

    Attributes:
        lines: By connection; each has one job at least. The schedule adds and deletes those with one job itself.
        behind: How many jobs wait for another one of their connection.
    """

    def __init__(self) -> None:
        self.lines: dict[Sid, list[J]] = {}
        self.behind = 0
        # Lines whose server restarted while their first job ran, by that. Their numbers mean other connections now.
        self._outlived: dict[J, list[J]] = {}

    def add(self, job: J) -> bool:
        """Put *job* at the end of its line; return whether it is the first one."""
        line = self.lines.get(job.sid)
        if line is not None:
            # The end of a connection belongs to the line that there is: what ended it also ended its life.
            if job.life is line[0].life or job.life is ENDED:
                line.append(job)
                self.behind += 1
                return False
            # The server restarted and gave the number to another browser, which must not wait for the old handler.
            self._outlived[line[0]] = line
        self.lines[job.sid] = [job]
        return True

    def finish(self, job: J) -> J | None:
        """The first job of a line has ended: return the one behind it. What is moot by now is dropped on the way."""
        line = self.lines.get(job.sid)
        outlived = line is None or line[0] is not job
        if outlived:
            line = self._outlived.pop(job, None)
            if line is None:
                return None  # all were forgotten meanwhile
        assert line is not None
        # A list, not a deque: most have one job, and a list costs a tenth of the memory.
        del line[0]
        while line:
            self.behind -= 1  # the one behind is the first one now
            if not line[0].moot:
                if outlived:
                    self._outlived[line[0]] = line
                return line[0]
            line.pop(0).drop()
        if not outlived:
            del self.lines[job.sid]
        return None

    def drop_behind(self, sid: Sid) -> J | None:
        """The client has gone: what waits behind its first job is dropped. Returns that job, ``None`` without one."""
        line = self.lines.get(sid)
        if line is None:
            return None
        self.behind -= len(line) - 1
        while len(line) > 1:
            line.pop().drop()
        return line[0]

    def last(self, sid: Sid) -> J | None:
        """Return the job of a connection that came last, if any is left."""
        line = self.lines.get(sid)
        return None if line is None else line[-1]

    def clear(self) -> None:
        """Forget all."""
        self.lines.clear()
        self._outlived.clear()
        self.behind = 0

    def __len__(self) -> int:
        return len(self.lines) + len(self._outlived)

    def __iter__(self) -> Iterator[J]:
        """Yield all jobs that have not ended: the first ones of all lines, then those behind them."""
        lines = [*self.lines.values(), *self._outlived.values()]
        yield from [line[0] for line in lines]
        for line in lines:
            yield from line[1:]

    def __contains__(self, job: J) -> bool:
        return job in self.lines.get(job.sid, ()) or job in self._outlived
