"""How much may be under way to one browser's connection: what Mongrel2 bears, and what we keep below it.

Source: Mongrel2 1.12.2, probed; see :mod:`greentx.protocol.flow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "BURST",
    "CREDITS",
    "DEFAULT_BOUNDS",
    "EAGER",
    "KEEP",
    "LARGE",
    "NOBODY",
    "NUMBERS",
    "OUTBOX_LIMIT",
    "QUEUED",
    "READ_RATE",
    "RECEIPT_TRIES",
    "RESERVE",
    "ROOM",
    "SHARED_BURST",
    "SLOW_POLICIES",
    "UNHEARD_RATE",
    "UNWAITED",
    "Bounds",
]

#: Messages to one connection that no receipt covers, at most.
BURST = 10

#: The same where other processes write to the same connection, and count for themselves.
SHARED_BURST = 4

#: As many of them make a receipt due, so that it is there before the burst is used up.
EAGER = 6

#: As many connections written to make a receipt due, so that they can be forgotten.
KEEP = 4096

#: Bytes that may be under way to one connection with ``download.flow_control``; one more kills it (probed).
CREDITS = 102400

#: What is kept of them for probes, where credits go to other processes: 89 probes, of 1 byte, 2 bytes, and so on. One
#: that is alone may be one of two at any time, as when it is replaced.
RESERVE = 4096

#: What is used of them.
ROOM = CREDITS - RESERVE

#: A message is large from so many bytes on.
LARGE = 16384

#: Bytes a second that a browser is held to read, where the server does not tell what it wrote.
READ_RATE = 16 * 1024 * 1024

#: The same with ``download.flow_control``, where a process does not hear any more what it tells: less may be queued.
UNHEARD_RATE = 2 * 1024 * 1024

#: Large messages that by this estimate may wait for a browser in the server. Ten small ones may be on their way, too.
QUEUED = 4

#: Bytes waiting for one connection above which callers that write to it wait.
OUTBOX_LIMIT = 262144

#: Bytes that may wait for one server whose pipe is full before its writers wait, where one process has several servers.
UNWAITED = 16 * 1024 * 1024

#: Receipts are notices about connections with numbers from here to 2**31 - 1, which a server's counter, at one for each
#: browser from 1 on, does not reach. Greater ones come back negative (probed).
NOBODY = 2_000_000_000

#: Each one that asks for receipts has so many numbers of its own, so that it knows its receipts from other processes'.
NUMBERS = 1000

#: A server that did not give its first receipt after so many questions is held for one that does not know them.
RECEIPT_TRIES = 4


#: What may be done where a browser did not read what was broadcast for too long: end it, drop the oldest or the newest.
SLOW_POLICIES: Final = ("close", "drop-oldest", "drop-newest")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one browser that reads slowly, or not at all, may hold up.

    Attributes:
        min_rate: Bytes a second that it has to read while some wait for it, over ``send_timeout`` seconds. Only known
            with ``download.flow_control``, and for whole messages of at most :data:`CREDITS` bytes.
        max_outbox: Bytes that may wait for it where the caller does not wait; one that has more is ended by the next.
        slow_timeout: Seconds for which more than :data:`OUTBOX_LIMIT` bytes of broadcasts may wait for it.

    Raises:
        ValueError: One of them is out of range.
    """

    min_rate: float = 4096.0
    max_outbox: int = 16 * 1024 * 1024
    slow_timeout: float = 5.0

    def __post_init__(self) -> None:
        for name in ("min_rate", "max_outbox", "slow_timeout"):
            value = getattr(self, name)
            if not value >= 0:  # also for NaN, which compares to nothing
                raise ValueError(f"{name} is a number from 0 on, not {value!r}")


#: Those where nothing else is said.
DEFAULT_BOUNDS: Final = Bounds()
