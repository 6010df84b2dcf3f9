"""What a server has written of the answers on one browser connection, where it tells that. No I/O.

With ``download.flow_control`` Mongrel2 tells by credits how many bytes it wrote to a connection; a Node tells how many
an answer has. Answers leave in the order of their requests, so the two sums say which answers were written, whatever
became of the Node: also where the last that it said was lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from .forwarded import Forwarded

__all__ = ["MAX_UNWRITTEN", "SURELY_WRITTEN", "Unwritten", "Verdict", "Written"]

#: The system accepts so many bytes at once for a browser that has read what it was sent before (it has room for ten
#: segments at least). Of a longer message some may be written, and the server does not tell before it wrote all.
SURELY_WRITTEN = 16384

#: Bytes of requests that are kept until their answers are written; beyond it those of the oldest count as written.
MAX_UNWRITTEN = 16 * 1024 * 1024

# What a request costs next to its message.
_REQUEST_BYTES = 1024


class Verdict(Enum):
    """What becomes of a connection whose Node has gone."""

    #: All that was said to be answered is written, and nothing else is open.
    ANSWERED = "answered"
    #: Nothing of the first answer that is missing was written.
    UNANSWERED = "unanswered"
    #: Something of it may have been written: nobody can end it.
    CUT = "cut"


class Written:
    """The answers on one browser connection.

    Attributes:
        answers: Those that a Node said were complete, and that are not written: each request, where its answer begins
            and where it ends, in bytes since the connection is known.
    """

    __slots__ = ("_idle", "_told", "_written", "answers")

    def __init__(self) -> None:
        self.answers: tuple[tuple[Forwarded, int, int], ...] = ()
        # Bytes of all complete answers, and what the server wrote.
        self._told = 0
        self._written = 0
        # How many they were when the browser had read all, as nothing was open.
        self._idle = 0

    def credit(self, count: int) -> list[Forwarded]:
        """The server wrote *count* bytes. Returns the requests whose answers are written by that."""
        self._written += count
        answers = self.answers
        # Nearly always one.
        if len(answers) == 1 and answers[0][2] <= self._written:
            self.answers = ()
            return [answers[0][0]]
        return self._pop() if answers else []

    def done(self, entry: Forwarded, size: int) -> list[Forwarded]:
        """The answer to the first open request is complete; it has *size* bytes. Returns as :meth:`credit`."""
        begin, self._told = self._told, self._told + size
        self.answers += ((entry, begin, self._told),)
        return self._pop() if self.answers[0][2] <= self._written else []

    def told(self, size: int) -> None:
        """As :meth:`done` and then :meth:`untold`, where nothing is complete and not known to be written."""
        self._told += size
        self._written = self._told

    def _pop(self) -> list[Forwarded]:
        answers = self.answers
        # Nearly always all, as there is one.
        count = 0
        while count < len(answers) and answers[count][2] <= self._written:
            count += 1
        found = [entry for entry, _, _ in answers[:count]]
        self.answers = answers[count:]
        return found

    def untold(self) -> list[Forwarded]:
        """The server does not tell, or need not: all is taken for written. Returns what was not known to be."""
        found = [entry for entry, _, _ in self.answers]
        self.answers = ()
        self._written = self._told
        return found

    def take_back(self) -> list[Forwarded]:
        """Nothing of what is not written will be: return its requests, in order; they are open again."""
        if self.answers:
            self._told = self.answers[0][1]
        found = [entry for entry, _, _ in self.answers]
        self.answers = ()
        return found

    def sync(self) -> None:
        """Nothing is open: what was written until now belongs to no answer that comes."""
        if not self.answers:
            self._written = self._idle = self._told

    def judge(self, first: Forwarded | None) -> Verdict:
        """Say what the Node's end means, once all is known that the server wrote.

        Args:
            first: The first request that the Node did not say to be answered.
        """
        if self.answers:
            _, begin, end = self.answers[0]
        elif first is not None:
            begin, end = self._told, self._told + first.size
        else:
            return Verdict.ANSWERED
        # What is before it counts, too, where it was pipelined: the browser need not have read that.
        if self._written > begin or (end > begin and end - self._idle > SURELY_WRITTEN):
            return Verdict.CUT
        return Verdict.UNANSWERED


class Unwritten:
    """Keeps requests that are done, until their answers are written.

    Args:
        limit: Bytes that are kept.
    """

    def __init__(self, limit: int = MAX_UNWRITTEN) -> None:
        self._limit = limit
        self._bytes = 0
        self._sizes: dict[Forwarded, int] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Forwarded]:
        """All of them; a copy."""
        return iter(list(self._sizes))

    def add(self, entry: Forwarded) -> Forwarded | None:
        """Keep one. Returns the oldest, where that is too much: it is not kept any more."""
        self._sizes[entry] = size = len(entry.message) + _REQUEST_BYTES
        self._bytes += size
        if self._bytes <= self._limit:
            return None
        oldest = next(iter(self._sizes))
        self.remove(oldest)
        return oldest

    def remove(self, entry: Forwarded) -> None:
        """It is written, or nobody waits for it any more."""
        self._bytes -= self._sizes.pop(entry, 0)
