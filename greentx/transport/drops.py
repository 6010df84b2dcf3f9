"""Replies that nobody got: how many, and what the log says of them."""

from __future__ import annotations

import logging

__all__ = ["Drops"]

log = logging.getLogger("greentx.transport")


class Drops:
    """Counts replies that were dropped, and says so in the log without flooding it.

    Attributes:
        count: How many in all.
        endpoint: Where the server should be.
        stopped: Nothing is sent any more.
    """

    def __init__(self, name: str) -> None:
        self.count = 0
        self.endpoint = ""
        self.stopped = False
        self._name = name
        # Since the log was told last: a line for each would be a flood.
        self._unsaid = 0

    def one(self, message: bytes) -> None:
        """*message* was dropped. The first one is logged, the number when the server is back."""
        self.count += 1
        self._unsaid += 1
        if self._unsaid == 1:
            why = "closed" if self.stopped else f"no server at {self.endpoint}"
            log.warning("%s: %s, a reply of %d bytes was dropped", self._name, why, len(message))

    def many(self, count: int, why: str) -> None:
        """*count* were dropped at once, which *why* says."""
        self.count += count
        if count:
            log.warning("%s: %s", self._name, why)

    def over(self) -> None:
        """From now on none are dropped."""
        if self._unsaid:
            log.warning("%s: %d replies were dropped while it was away", self._name, self._unsaid)
            self._unsaid = 0
