"""What is kept in Redis of one life of a server, and how it is written. No I/O: commands and replies.

``PREFIX:SENDER:LIFE`` stands in front of each key; :mod:`greentx.backends.redis` lists them all.
"""

from __future__ import annotations

import json
import os
import socket
from binascii import hexlify
from collections.abc import Iterable, Iterator
from time import time
from typing import Any

from ..protocol.websocket.registry import Entry, Sid

__all__ = [
    "BEAT_KEYS",
    "LEASE",
    "LEAVE",
    "RELEASE",
    "Command",
    "Records",
    "group_range",
    "life_name",
    "lives_of",
    "process_name",
    "read_member",
    "read_record",
    "sid_of",
    "text_of",
]

#: A command to Redis.
Command = tuple[Any, ...]

#: Acquires the lease for a process, or renews it. Keys: the lease. Arguments: the process, milliseconds. Returns
#: whether it has it, and the token: a number that grows with each owner, by Redis' own clock, which survives FLUSHALL.
LEASE = """
local held = redis.call('GET', KEYS[1])
if held then
    local name, token = string.match(held, '^(%S+) (%d+)$')
    if name ~= ARGV[1] then return {0, token} end
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return {1, token}
end
local now = redis.call('TIME')
local token = string.format('%d%06d', now[1], now[2])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. token, 'PX', ARGV[2])
return {1, token}
"""

#: Gives the lease back. Keys: the lease. Arguments: the process.
RELEASE = """
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^(%S+) ') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

#: A process leaves; the last one removes all. Keys: nodes, its own presence, the list of lives, then all other keys of
#: the life. Arguments: the process, what the list has. Returns how many are left.
LEAVE = """
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
local left = redis.call('HLEN', KEYS[1])
if left == 0 then
    redis.call('SREM', KEYS[3], ARGV[2])
    for i = 4, #KEYS do redis.call('DEL', KEYS[i]) end
end
return left
"""

#: The keys of a life that live as long as any process says that it is there.
BEAT_KEYS = ("nodes", "sockets", "groups")


def process_name() -> str:
    """Return a name for this process that no other one has."""
    host = "".join(one if one.isalnum() or one in "-." else "-" for one in socket.gethostname()) or "host"
    return f"{host}-{os.getpid()}-{hexlify(os.urandom(4)).decode()}"


def life_name() -> str:
    """Return a name for a life of a server. The older one is the smaller one, as far as clocks agree."""
    return f"{int(time() * 1000):012x}-{hexlify(os.urandom(4)).decode()}"


def text_of(sid: Sid) -> str:
    """Return a sid as one text."""
    return f"{sid[0]} {sid[1]}"


def sid_of(text: str | bytes) -> Sid:
    """Return the sid of a text. Raises ``ValueError`` where it is none."""
    if isinstance(text, bytes):
        text = text.decode()
    sender, conn_id = text.split(" ")
    return sender, conn_id


def _group_bytes(group: str) -> bytes:
    # The byte 0 ends it, in any group's name.
    return group.encode(errors="surrogatepass").replace(b"\1", b"\1\2").replace(b"\0", b"\1\1") + b"\0"


def _member(group: str, sid: Sid) -> bytes:
    return _group_bytes(group) + text_of(sid).encode()


class Records:
    """The records of one life.

    Args:
        prefix: In front of all keys.
        sender: The handler entry's ``send_ident``.
        life: Its name.
        name: Of this process.
        presence: Seconds after which a process that says nothing is not there.
        keep: Seconds for which the records are kept when nobody is there.
    """

    def __init__(self, prefix: str, sender: str, life: str, name: str, *, presence: float, keep: float) -> None:
        self.life = life
        self.base = f"{prefix}:{sender}:{life}"
        self.leader_channel = f"{self.base}:leader"
        self._name = name
        self._lives = f"{prefix}:lives"
        self._listed = f"{sender}:{life}"
        self._presence = int(presence * 1000)
        self._keep = int(keep * 1000)

    def key(self, what: str) -> str:
        """Return a key of this life."""
        return f"{self.base}:{what}"

    # -- processes ----------------------------------------------------------------------------------------------------

    def here(self) -> Command:
        """This process is there; the reply is 1 where that was not known, as after a loss of all."""
        return ("HSET", self.key("nodes"), self._name, os.getpid())

    def beat(self) -> Iterator[Command]:
        """It still is, and so is what is known of the life."""
        yield ("SET", self.key(f"node:{self._name}"), 1, "PX", self._presence)
        yield ("SADD", self._lives, self._listed)
        yield ("PEXPIRE", self._lives, self._keep)
        for what in BEAT_KEYS:
            yield ("PEXPIRE", self.key(what), self._keep)

    def is_there(self, name: str) -> Command:
        """Ask for another one; the reply is 0 where it is not there."""
        return ("EXISTS", self.key(f"node:{name}"))

    def remove(self, name: str) -> Command:
        """Another process is known to have ended."""
        return ("HDEL", self.key("nodes"), name)

    def leave(self) -> Command:
        """This process ends, or its life does; the last one removes all."""
        names = [self.key("nodes"), self.key(f"node:{self._name}"), self._lives]
        names += [self.key(what) for what in (*BEAT_KEYS, "lease")]
        return ("EVAL", LEAVE, len(names), *names, self._name, self._listed)

    def lease(self, seconds: float) -> Command:
        """Acquire or renew the lease; the reply is whether this process has it, and the token."""
        return ("EVAL", LEASE, 1, self.key("lease"), self._name, int(seconds * 1000))

    def release(self) -> Command:
        """Give the lease back."""
        return ("EVAL", RELEASE, 1, self.key("lease"), self._name)

    # -- WebSockets ---------------------------------------------------------------------------------------------------

    def put(self, entries: Iterable[Entry]) -> Iterator[Command]:
        """This process has let some in, or took them over; in one command for all, and one for their groups."""
        records: list[str] = []
        members: list[Any] = []
        for entry in entries:
            records += text_of(entry.sid), json.dumps([self._name, entry.path, entry.subprotocol])
            for group in entry.groups:
                members += 0, _member(group, entry.sid)
        if records:
            yield ("HSET", self.key("sockets"), *records)
        if members:
            yield ("ZADD", self.key("groups"), *members)

    def drop(self, sid: Sid, groups: Iterable[str]) -> Iterator[Command]:
        """One has ended."""
        yield ("HDEL", self.key("sockets"), text_of(sid))
        for group in groups:
            yield self.leave_group(sid, group)

    def join(self, sid: Sid, group: str) -> Command:
        """One joins a group."""
        return ("ZADD", self.key("groups"), 0, _member(group, sid))

    def leave_group(self, sid: Sid, group: str) -> Command:
        """One leaves a group."""
        return ("ZREM", self.key("groups"), _member(group, sid))


def read_record(value: bytes) -> tuple[str, str, str | None]:
    """Return owner, path and subprotocol of a record. Raises ``ValueError`` where it is none."""
    owner, path, subprotocol = json.loads(value)
    if not (isinstance(owner, str) and isinstance(path, str) and isinstance(subprotocol, (str, type(None)))):
        raise ValueError(f"not a WebSocket's record: {value[:100]!r}")
    return owner, path, subprotocol


def read_member(value: bytes) -> tuple[str, Sid]:
    """Return group and sid of a member of ``groups``. Raises ``ValueError`` where it is none."""
    group, separator, sid = value.partition(b"\0")
    if not separator:
        raise ValueError(f"not a member of a group: {value[:100]!r}")
    text = group.replace(b"\1\1", b"\0").replace(b"\1\2", b"\1").decode(errors="surrogatepass")
    return text, sid_of(sid)


def group_range(group: str) -> tuple[bytes, bytes]:
    """Return between which members of ``groups`` those of one group are, for ZLEXCOUNT and ZRANGEBYLEX."""
    start = _group_bytes(group)
    return b"[" + start, b"(" + start[:-1] + b"\1"


def lives_of(prefix: str) -> str:
    """Return the key of the list of lives."""
    return f"{prefix}:lives"
