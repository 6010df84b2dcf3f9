"""One connection of one Node, as its relay knows it; what becomes of it is in :mod:`greentx.relay.nodes`."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any

from .forwarded import Forwarded
from .messages import MAX_SERVERS, Hello
from .window import Lane

__all__ = ["WRITE_SECONDS", "LastAnswers", "NodeSession"]

#: A Node says that an answer is done once ZeroMQ has it, whose thread needs a moment to write it. Where the Node ends
#: within that moment, it may not have been written.
WRITE_SECONDS = 0.02


class LastAnswers:
    """The answers that a Node said to be done, and that may not have been written. No I/O.

    Attributes:
        items: When it said so (``time.monotonic()``), the last number given then, and the request; in order.
    """

    __slots__ = ("_asked", "_before", "items")

    def __init__(self) -> None:
        self.items: deque[tuple[float, int, Forwarded]] = deque()
        # What the Node's clock showed when it last told us, and how many items came before that.
        self._asked = 0
        self._before = 0

    def forget(self, heard: float) -> None:
        """What was done some time before the Node was last heard has been written.

        Not by the time that it is here: a Node may be dead for long before its end is noticed.
        """
        items = self.items
        while items and items[0][0] < heard - WRITE_SECONDS:
            items.popleft()
            self._before = max(self._before - 1, 0)

    def clock(self, asked: int) -> None:
        """The Node's clock shows *asked* (milliseconds): what it said before it told us last has been written.

        By this it is known also where this process stood still, and reads only now what was said over seconds.
        """
        if asked < self._asked + WRITE_SECONDS * 1000:
            return
        for _ in range(self._before):
            self.items.popleft()
        self._asked, self._before = asked, len(self.items)


class NodeSession:
    """One connection of one Node.

    Attributes:
        identity: Its routing id: what it is called in messages.
        name: The Node's.
        what: What it says that it is.
        capacity: How many requests it may be given at once, compared to others.
        open: The requests that it has, by number.
        websockets: How many WebSockets it has.
        leaving: It gets nothing new.
        over: It has ended, here.
        ready: The words of the servers' lives that it can answer in; see :meth:`is_ready`.
        cut: Those of servers that it does not reach, though it says that it does, and until when it did
            (:mod:`greentx.relay.ways`).
        lane: What waits for it, and what it was sent.
        written: Its last answers.
        ended: When it did.
        sure: All that it said before its end has come.
        finished: It has said that it goes, and that nothing of it is under way.
        heard: When it last said something (``time.monotonic()``) before its end.
        leased: When it was last sent a lease.
        chosen: When it was last given a new connection: a number that only grows.
    """

    __slots__ = (
        "capacity",
        "chosen",
        "cut",
        "ended",
        "finished",
        "heard",
        "identity",
        "lane",
        "leased",
        "leaving",
        "name",
        "open",
        "over",
        "ready",
        "sure",
        "websockets",
        "what",
        "written",
    )

    def __init__(self, identity: bytes, hello: Hello, now: float) -> None:
        self.identity = identity
        self.name = hello.name
        self.what = hello.what
        self.capacity = hello.capacity
        self.open: dict[int, Forwarded] = {}
        self.websockets = 0
        self.leaving = False
        self.over = False
        self.ready: dict[str, None] = {}
        self.cut: dict[str, float] = {}
        self.lane: Lane[Forwarded] = Lane()
        self.written = LastAnswers()
        self.ended = inf
        self.sure = True
        self.finished = False
        self.heard = now
        self.leased = now
        self.chosen = 0

    @property
    def word(self) -> str:
        """What it is called, other than any other session."""
        return self.identity.decode("latin-1")

    def is_ready(self, word: str) -> None:
        """It can answer in the life of a server. What it said of the oldest of too many is forgotten."""
        self.ready[word] = None
        if len(self.ready) > MAX_SERVERS:
            del self.ready[next(iter(self.ready))]

    def serves(self, word: str) -> bool:
        """Whether what comes may be given to it, that has to be answered in that life of a server."""
        return not self.over and not self.leaving and word in self.ready

    def status(self, now: float) -> dict[str, Any]:
        """Return what ``STATUS`` shows."""
        return {
            "name": self.name,
            "session": self.word,
            "what": self.what,
            "capacity": self.capacity,
            "open": len(self.open),
            "websockets": self.websockets,
            "queued_bytes": self.lane.queued,
            "unreceived": self.lane.unreceived,
            "ready": bool(self.ready),
            "cut_off": len(self.cut),
            "leaving": self.leaving,
            "last_heard_s": round(now - self.heard, 3),
        }

    def __repr__(self) -> str:
        state = "over" if self.over else "leaving" if self.leaving else "there"
        return f"<NodeSession {self.word}: {state}, {len(self.open)} open>"
