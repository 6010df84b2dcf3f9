"""What changes in the registry of a process, on its way to Redis and to the other processes on the handler entry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..protocol.websocket.registry import Entry, Sid
from .records import Command, Records, text_of
from .setting import Setting

if TYPE_CHECKING:
    from ..handler.connection import Connection

__all__ = ["CHUNK", "MAX_ENDS", "Changes"]

#: Of a list, so many are published, or read, together.
CHUNK = 500

#: Ends of others' WebSockets that are kept while nobody can be told.
MAX_ENDS = 10000


class _Change(Protocol):
    def commands(self, records: Records) -> Iterable[Command]:
        """Return what writes it."""

    def op(self) -> list[Any]:
        """Return what tells of it: a word and its arguments."""


class _Told(NamedTuple):
    told: list[Any]

    def commands(self, records: Records) -> Iterable[Command]:
        return ()

    def op(self) -> list[Any]:
        return self.told


class _Opened(NamedTuple):
    entry: Entry

    def commands(self, records: Records) -> Iterable[Command]:
        return records.put([self.entry])

    def op(self) -> list[Any]:
        return ["open", text_of(self.entry.sid), self.entry.path, self.entry.subprotocol]


class _Ended(NamedTuple):
    sid: Sid
    groups: tuple[str, ...]
    code: int
    reason: str

    def commands(self, records: Records) -> Iterable[Command]:
        return records.drop(self.sid, self.groups)

    def op(self) -> list[Any]:
        return ["end", text_of(self.sid), self.code, self.reason]


class _Moved(NamedTuple):
    word: str
    sid: Sid
    group: str

    def commands(self, records: Records) -> Iterable[Command]:
        return ((records.join if self.word == "join" else records.leave_group)(self.sid, self.group),)

    def op(self) -> list[Any]:
        return [self.word, text_of(self.sid), self.group]


class Changes:
    """Those of one connection set.

    Args:
        setting: Of the process.
        connection: The connection set.
        channel: Where other processes listen; ``""``: no other one pulls from the entry.

    Attributes:
        applying: What happens now was said by others, and need not be told to them.
        records: The life that they belong to; ``None``: nobody can be told now.
        life: The link's life that this is.
        claimed: What this process has said that it owns, and has not read yet in the order in which all read it.
    """

    def __init__(self, setting: Setting, connection: Connection, channel: str = "") -> None:
        self.applying = False
        self.records: Records | None = None
        self.life: object = None
        self.claimed: set[Sid] = set()
        self._setting = setting
        self._connection = connection
        self._channel = channel
        self._changes: list[_Change] = []
        self._ends: dict[str, tuple[int, str]] = {}
        self._saying: object = None

    # -- the registry says --------------------------------------------------------------------------------------------

    def _current(self) -> Records | None:
        # The ends of all that a server had are not told one by one.
        return None if self.applying or self.life is not self._connection.link.life else self.records

    def added(self, entry: Entry) -> None:
        """One was let in."""
        if self._current() is not None:
            if self._channel:
                self.claimed.add(entry.sid)
            self._change(_Opened(entry))

    def removed(self, entry: Entry) -> None:
        """One is about to be removed."""
        if self._current() is not None:
            self._change(_Ended(entry.sid, entry.groups, *entry.ending))
        elif self.applying or self.life is not self._connection.link.life:
            pass
        elif entry.sid in self._setting.registry.owners and len(self._ends) < MAX_ENDS:
            # Of more than these the others learn when they ping them.
            self._ends[text_of(entry.sid)] = entry.ending

    def joined(self, entry: Entry, group: str) -> None:
        """One joined a group."""
        if self._current() is not None:
            self._change(_Moved("join", entry.sid, group))

    def left(self, entry: Entry, group: str) -> None:
        """One left a group."""
        if self._current() is not None:
            self._change(_Moved("leave", entry.sid, group))

    def _change(self, change: _Change) -> None:
        # What it says is made with the next batch: of one that has just begun not all is known yet.
        self._changes.append(change)
        self._setting.redis.wake()

    # -- to the others ------------------------------------------------------------------------------------------------

    def tell(self, op: list[Any]) -> None:
        """Tell all others something with the next batch: a word and its arguments."""
        self._change(_Told(op))

    def publish(self, life: str, ops: list[list[Any]], then: Callable[[Any], None] | None = None) -> None:
        """Tell them at once, before what :meth:`tell` was given."""
        message = json.dumps({"n": self._setting.name, "l": life, "o": ops})
        self._setting.redis.send("PUBLISH", self._channel, message, then=then)

    def flush(self) -> None:
        """A batch is about to be sent."""
        changes, self._changes = self._changes, []
        records = self.records
        if records is None:
            return
        for change in changes:
            for command in change.commands(records):
                self._setting.redis.send(*command)
        if self._channel:
            for start in range(0, len(changes), CHUNK):
                self.publish(records.life, [change.op() for change in changes[start : start + CHUNK]])

    def say_all(self, owned: list[Entry], then: Callable[[], None]) -> None:
        """Say what this process owns, whatever was known of that, a part at a time; *then* is called behind the last.

        A second call takes the place of the first; where Redis goes meanwhile neither ends.
        """
        records, registry = self.records, self._setting.registry
        self._saying = parts = iter(range(0, max(len(owned), 1), CHUNK))

        def say(_reply: object = None) -> None:
            if self._saying is not parts or self.records is not records or records is None:
                return
            start = next(parts, None)
            if start is None:
                then()
                return
            # Those that ended meanwhile were told of.
            part = [one for one in owned[start : start + CHUNK] if registry.get(one.sid) is one]
            for command in records.put(part):
                self._setting.redis.send(*command)
            if self._channel:
                self.claimed.update(one.sid for one in part)
                sockets = [[text_of(one.sid), one.path, one.subprotocol, list(one.groups)] for one in part]
                self.publish(records.life, [["own", start == 0, start + CHUNK >= len(owned), sockets]])
            # Not all at once: a million of them would be more than may wait.
            self._setting.redis.send("PING", then=say)

        say()

    def tell_ends(self) -> None:
        """Tell of the ends that were seen while nobody could be told."""
        for text, (code, reason) in self._ends.items():
            self.tell(["end", text, code, reason])
        self._ends.clear()

    def pause(self) -> None:
        """Nobody can be told now: what is true by then is told anew."""
        self.records = None
        self.claimed.clear()
        self._changes.clear()

    def end(self) -> None:
        """The life is over."""
        self.pause()
        self.life = None
        self._ends.clear()
