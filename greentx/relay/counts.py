"""What became of the requests of a relay, in numbers."""

from __future__ import annotations

__all__ = ["Counts"]


class Counts:
    """What became of requests, for ``STATUS``.

    Attributes:
        forwarded: Requests and events that were sent to a Node or a plain handler.
        retried: Requests that were given to another Node after one had been sent them.
        bad_gateway: Answered 502: their Node has gone, and what it did is not known.
        unavailable: Answered 503: nobody had room.
        closed: Connections that were closed in the middle of an answer.
        stale: Answers that Nodes reported, and nobody waited for any more.
    """

    __slots__ = ("bad_gateway", "closed", "forwarded", "retried", "stale", "unavailable")

    def __init__(self) -> None:
        self.forwarded = 0
        self.retried = 0
        self.bad_gateway = 0
        self.unavailable = 0
        self.closed = 0
        self.stale = 0

    def status(self) -> dict[str, int]:
        """Return them by their names."""
        return {name: getattr(self, name) for name in self.__slots__}
