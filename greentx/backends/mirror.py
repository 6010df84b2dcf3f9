"""What the processes on one handler entry know of each other's WebSockets.

Each has an entry for each WebSocket, with the name of its owner, which is the process that let it in, or took it over.
Who owns what changes in one order for all: that in which Redis publishes it. So a process also reads what it published
itself, and what is delivered by owners, as broadcasts are, is delivered once, whatever becomes of a process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.registry import Entry, Sid
from .changes import CHUNK, Changes
from .records import Records, read_member, read_record, sid_of, text_of
from .setting import Setting

if TYPE_CHECKING:
    from ..handler.connection import Connection

__all__ = ["Mirror"]

_GONE = (int(CloseCode.ABNORMAL_CLOSURE), "")


class Mirror:
    """Those of one handler entry.

    Args:
        setting: Of the process.
        connection: The connection set.
        changes: What happens to the registry.
    """

    def __init__(self, setting: Setting, connection: Connection, changes: Changes) -> None:
        self._changes = changes
        self._setting = setting
        self._connection = connection
        # While the records are read: what was published meanwhile is newer than what they say.
        self._records: Records | None = None
        self._ended: set[Sid] = set()
        self._left: set[tuple[Sid, str]] = set()
        self._opened: set[Sid] = set()
        # By process that publishes all that it owns: what has come of that so far.
        self._lists: dict[str, set[Sid]] = {}

    def owned(self) -> list[Entry]:
        """Return those that this process owns."""
        owners = self._setting.registry.owners
        return [entry for entry in self._setting.entries(self._connection) if entry.sid not in owners]

    def owners(self) -> set[str]:
        """Return the names of the other owners."""
        owners = self._setting.registry.owners
        return {owners[entry.sid] for entry in self._setting.entries(self._connection) if entry.sid in owners}

    # -- what is published --------------------------------------------------------------------------------------------

    def opened(self, owner: str, text: str, path: str, subprotocol: str | None, groups: list[str]) -> None:
        """*owner* has let one in, took it over, or says that it has it."""
        sid = sid_of(text)
        if owner == self._setting.name:
            self._changes.claimed.discard(sid)
            entry = self._setting.registry.get(sid)
            if entry is not None:
                self._connection.sessions.elsewhere.belongs_to(entry, "")
            return
        self._ended.discard(sid)
        self._opened.add(sid)
        if owner in self._lists:
            self._lists[owner].add(sid)
        self._know(sid, path, subprotocol, owner, groups)

    def _know(self, sid: Sid, path: str, subprotocol: str | None, owner: str, groups: list[str]) -> None:
        self._changes.applying = True
        try:
            entry = self._connection.sessions.elsewhere.known(sid, path, subprotocol, owner)
            if entry is not None:
                for group in groups:
                    self._setting.registry.join(sid, group)
        finally:
            self._changes.applying = False
        if entry is not None:
            self._connection.sessions.elsewhere.catch_up(entry)

    def ended(self, text: str, code: int, reason: str) -> None:
        """A process has ended one, or saw its end."""
        sid = sid_of(text)
        self._ended.add(sid)
        self._changes.applying = True
        try:
            self._connection.sessions.elsewhere.ended(sid, code, reason)
        finally:
            self._changes.applying = False

    def joined(self, text: str, group: str, *, joins: bool) -> None:
        """One joined a group, or left it."""
        sid = sid_of(text)
        self._changes.applying = True
        try:
            if not joins:
                self._left.add((sid, group))
                self._setting.registry.leave(sid, group)
            elif sid in self._setting.registry:
                self._left.discard((sid, group))
                self._setting.registry.join(sid, group)
        finally:
            self._changes.applying = False

    def listed(self, owner: str, first: bool, last: bool, sockets: list[list[Any]]) -> None:
        """A part of all that *owner* owns; what it owned and does not list has ended."""
        if owner == self._setting.name:
            for one in sockets:
                self.opened(owner, *one)
            return
        if first:
            self._lists[owner] = set()
        for one in sockets:
            self.opened(owner, *one)
        listed = self._lists.pop(owner, None) if last else None
        if listed is not None:
            for entry in self._setting.entries(self._connection):
                if self._setting.registry.owners.get(entry.sid) == owner and entry.sid not in listed:
                    self._forget(entry)

    def taken(self, owner: str, by: str) -> bool:
        """What *owner* had belongs to process *by* now; returns whether that is something, and to this process."""
        own, owners = self._setting.name, self._setting.registry.owners
        # What this process claims behind that is its own for all.
        claimed = self._changes.claimed if owner == own else ()
        entries = [
            one
            for one in self._setting.entries(self._connection)
            if owners.get(one.sid, own) == owner and one.sid not in claimed
        ]
        for entry in entries:
            self._connection.sessions.elsewhere.belongs_to(entry, "" if by == own else by)
        return by == own and bool(entries)

    # -- what is kept in Redis ----------------------------------------------------------------------------------------

    def load(self, records: Records, done: Callable[[set[str]], None]) -> None:
        """Read the records, in parts; what is published meanwhile counts. *done* gets the names of all processes."""
        self._records = records
        self._ended.clear()
        self._left.clear()
        self._opened.clear()
        self._lists.clear()
        found: set[Sid] = set()
        redis = self._setting.redis

        def nodes(reply: Any) -> None:
            if self._records is records:
                names = {one.decode() for one in reply}
                redis.send("HSCAN", records.key("sockets"), 0, "COUNT", CHUNK, then=lambda one: sockets(one, names))

        def sockets(reply: Any, names: set[str]) -> None:
            if self._records is not records:
                return
            cursor, pairs = reply
            for text, value in zip(pairs[::2], pairs[1::2], strict=True):
                found.add(self._record(records, text, value))
            if int(cursor):
                key = records.key("sockets")
                redis.send("HSCAN", key, int(cursor), "COUNT", CHUNK, then=lambda one: sockets(one, names))
            else:
                redis.send("ZSCAN", records.key("groups"), 0, "COUNT", CHUNK, then=lambda one: groups(one, names))

        def groups(reply: Any, names: set[str]) -> None:
            if self._records is not records:
                return
            cursor, pairs = reply
            for member in pairs[::2]:
                group, sid = read_member(member)
                if sid not in self._setting.registry:
                    if sid not in found:
                        redis.send(*records.leave_group(sid, group))
                elif (sid, group) not in self._left:
                    self.joined(text_of(sid), group, joins=True)
            if int(cursor):
                key = records.key("groups")
                redis.send("ZSCAN", key, int(cursor), "COUNT", CHUNK, then=lambda one: groups(one, names))
            else:
                self._records = None
                self._forget_absent(names, found)
                done(names)

        redis.send("HKEYS", records.key("nodes"), then=nodes)

    def _record(self, records: Records, text: bytes, value: bytes) -> Sid:
        sid = sid_of(text)
        owner, path, subprotocol = read_record(value)
        if owner == self._setting.name:
            # It ended while nobody could be told.
            if sid not in self._setting.registry:
                for command in records.drop(sid, ()):
                    self._setting.redis.send(*command)
        elif sid not in self._ended and sid not in self._opened:
            self._know(sid, path, subprotocol, owner, [])
        return sid

    def _forget_absent(self, names: set[str], found: set[Sid]) -> None:
        """Who says that it is there has said what it owns before that."""
        owners = self._setting.registry.owners
        for entry in self._setting.entries(self._connection):
            if owners.get(entry.sid) in names and entry.sid not in found and entry.sid not in self._opened:
                self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self._changes.applying = True
        try:
            self._connection.sessions.elsewhere.forget(entry.sid, *_GONE)
        finally:
            self._changes.applying = False

    def stop(self) -> None:
        """Nothing is read any more."""
        self._records = None
        self._lists.clear()
