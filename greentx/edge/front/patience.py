"""How long a browser connection may take, and how long it may be silent, without a clock of its own.

Two things end one. A deadline, where something has to come soon: the rest of a request, or the end of a client that was
told the end. And silence, judged as Mongrel2 does it: at each look a connection gets a point for each limit that it
passes, and ends with more points than ``limits.kill_limit`` (src/register.c, Register_cleanout; probed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import LocalProtocolError

__all__ = ["Patience", "Silence", "Times"]


@dataclass(frozen=True)
class Silence:
    """Mongrel2's limits on silent connections. What a handler writes is no sign of life of the client's.

    Attributes:
        min_ping: Seconds in which nothing is read, and no handler keeps the connection alive.
        min_read_rate: Bytes read so far, divided by the seconds since the last of them, and one.
        min_write_rate: The same for bytes written.
        kill_limit: So many of these may be passed. A limit of 0 never is.
        tick: Seconds between two looks.
    """

    min_ping: int = 120
    min_read_rate: int = 1000
    min_write_rate: int = 10000
    kill_limit: int = 2
    tick: int = 10

    @classmethod
    def of(cls, settings: Mapping[str, int | str]) -> Silence:
        """Return what settings of Mongrel2 say: all of ``limits.min_ping`` and so on.

        Raises:
            LocalProtocolError: One of them is not a whole number.
        """
        names = {name: name for name in ("min_ping", "min_read_rate", "min_write_rate", "kill_limit")}
        names["tick"] = "tick_timer"
        for setting in names.values():
            value = settings[f"limits.{setting}"]
            if not str(value).isdecimal():
                raise LocalProtocolError(f"setting limits.{setting} is {value!r}, which is not a whole number")
        return cls(**{name: int(settings[f"limits.{setting}"]) for name, setting in names.items()})

    @property
    def kills(self) -> bool:
        """Whether any connection can have as many points as it takes."""
        return (self.min_ping > 0) + (self.min_read_rate > 0) + (self.min_write_rate > 0) > self.kill_limit


@dataclass(frozen=True)
class Times:
    """Seconds that things may take.

    Attributes:
        no_handler: A request waits so long for a handler to be there; then the answer is 503.
        head: For a head, from its first byte on, and between two pieces of a body; then the answer is 408.
        half_close: A client that has said that it sends nothing more waits so long for the next byte of its answer.
        linger: A client that was told the end has so long to end, too.
        min_rate: Bytes a second of a body, behind its first ``head`` seconds.
        silence: When a connection is silent for too long.
    """

    no_handler: float = 30.0
    head: float = 30.0
    half_close: float = 1.0
    linger: float = 2.0
    min_rate: int = 300
    silence: Silence = Silence()


class Patience:
    """The deadline of one connection, and its silence.

    Args:
        now: As in all methods, what ``time.monotonic()`` says.

    Attributes:
        deadline: When something has to be done about it.
        times: As given.
    """

    __slots__ = ("_heard", "_read", "_read_at", "_since", "_size", "_written", "_written_at", "deadline", "times")

    def __init__(self, times: Times, now: float) -> None:
        self.times = times
        self.deadline = now + times.head
        # When the first byte of the request in hand came, and how many have.
        self._since = now
        self._size = 0
        # As the last look has found it. When a handler kept it alive, or the last bytes came.
        self._read = self._written = 0
        self._read_at = self._written_at = self._heard = now

    def begin(self, size: int, now: float) -> None:
        """The first bytes of a request have come."""
        self._since = now
        self._size = size
        self.deadline = now + self.times.head

    def more(self, size: int, now: float, *, is_body: bool) -> None:
        """So many more bytes of it have come; a head gets no more time by them."""
        self._size += size
        if is_body:
            self.deadline = min(now, self._since + self._size / self.times.min_rate) + self.times.head

    def forget(self) -> None:
        """Nothing has to happen soon."""
        self.deadline = math.inf

    def postpone(self, seconds: float) -> None:
        """The client could do nothing for so long."""
        self._since += seconds
        self.deadline += seconds

    def linger(self, now: float) -> None:
        """The client was told the end."""
        self.deadline = now + self.times.linger

    def keep_alive(self, now: float) -> None:
        """A handler says that the client is there."""
        self._heard = now

    def silent(self, read: int, written: int, now: float, *, busy: bool) -> bool:
        """Look at the connection; return whether it has been silent for too long.

        Mongrel2 leaves one alone for hours that has read much, since it counts all bytes that there ever were. Here
        that is so only while it is *busy*.

        Args:
            read: Bytes that have come from the client so far.
            written: Bytes that were written to it so far.
            busy: It waits for something, or is read from.
        """
        # The time of a look is near enough, and costs nothing in between.
        if read != self._read:
            self._read, self._read_at = read, now
            self._heard = now
        if written != self._written:
            self._written, self._written_at = written, now
        silence = self.times.silence
        is_quiet = 0 < silence.min_ping < now - self._heard
        if not busy:
            return is_quiet and silence.kills
        reads_little = read / (now - self._read_at + 1) < silence.min_read_rate
        is_written_little = written / (now - self._written_at + 1) < silence.min_write_rate
        return is_quiet + reads_little + is_written_little > silence.kill_limit
