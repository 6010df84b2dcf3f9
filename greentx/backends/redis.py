"""A registry of WebSockets that processes and hosts share by a Redis; needs the extra ``redis``.

::

    from greentx import Transceiver
    from greentx.backends.redis import RedisRegistry

    with Transceiver("chat", (ip, 9999), (ip, 9998), registry=RedisRegistry("redis://10.0.0.5/0")) as trans:
        ...

Each Transceiver that shares it has a Mongrel2 handler entry to itself, or several pull from one (``shared=True``).
Nothing on the path of a message waits for Redis: what changed is told within some 10 ms, all of it in one round trip.

Keys and channels
=================

``PREFIX`` is the *key_prefix*, ``SENDER`` the handler entry's ``send_ident``, ``LIFE`` names one life of a server,
``NAME`` a process. Nothing but these is written; a prefix is one application's.

===============================  ==========  ====================================================================
key                              kind        what it has
===============================  ==========  ====================================================================
``PREFIX:lives``                 set         ``SENDER:LIFE`` of each life
``PREFIX:SENDER:LIFE:nodes``     hash        the processes in it, with their pids
``PREFIX:SENDER:LIFE:node:NAME`` string      that this process is there
``PREFIX:SENDER:LIFE:sockets``   hash        by ``SENDER CONN_ID``: owner, path, subprotocol (JSON)
``PREFIX:SENDER:LIFE:groups``    sorted set  ``GROUP``, a byte 0, ``SENDER CONN_ID``; all with the score 0
``PREFIX:SENDER:LIFE:lease``     string      ``NAME TOKEN`` of the process that pings; ``shared=True`` only
===============================  ==========  ====================================================================

=================================  ==============================================================================
channel                            what is published
=================================  ==============================================================================
``PREFIX:all``                     broadcasts
``PREFIX:SENDER``                  between processes on one entry: what began, ended, joined, left; who is there
``PREFIX:SENDER:LIFE:leader``      to the one that pings: whose pongs came, what was answered
=================================  ==============================================================================

Every key expires. With pings of ``ping_timeout`` seconds, a process is there for ``1.25 * ping_timeout`` seconds after
it last said so, 10 s at the most and 1 s at the least (*presence*; it says so six times in that time), and so long the
lease is held. All other keys are kept for twice that time, 10 s at the least, after the last process said that it is
there; the last one that leaves in order deletes them.

What holds
==========

* A *life* is the time from one start of a Mongrel2 to its end, as its connection ids mean nothing in the next.
  Processes on one entry find out by themselves that they are connected to the same Mongrel2
  (:mod:`greentx.backends.member`), also where two of the same ``send_ident`` share a Redis. A process whose server went
  leaves the life, and the last one deletes what was known of it.
* A broadcast is published once and delivered by each process to the WebSockets that it *owns*: that it let in, or took
  over from a process that ended. Ownership changes in the order in which Redis publishes, so that each gets it once.
* One process pings all WebSockets of an entry; it ends those that do not answer, once all others have told which pongs
  came to them (:mod:`greentx.backends.watch`). When it dies, another one follows within two intervals. Nobody is judged
  by a pong that may have gone where it is not told of: to a process that died, that does not reach Redis, or that does
  not share the registry.
* A process that dies is missed after its presence has expired; until then broadcasts miss what it owned. One that stops
  in order leaves its WebSockets to the others, open; the last one closes them.
* While Redis is away each process pings all that it knows and judges nobody, broadcasts to its own, and joins groups as
  ever. One warning says so. Broadcasts to others wait for :data:`KEEP_SECONDS` and in :data:`MAX_KEPT_BYTES`; what is
  above that is dropped, and counted in a warning. When Redis is back each process says what is true then: nothing of
  what Redis had before is needed, nor believed.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from ..errors import GreentxError, LocalProtocolError, TransportError
from ..handler.shared import Shared
from ..handler.sharing import SharedEntry, SharedRegistry
from ..protocol.flow.limits import NOBODY
from ..protocol.request import Request
from ..protocol.websocket.registry import Entry, Sid
from ..protocol.websocket.sharing import Broadcast
from .client import Hooks, RedisClient
from .member import Member
from .records import group_range, lives_of, process_name, read_member, sid_of
from .setting import Setting, Times
from .share import Share
from .single import Single

if TYPE_CHECKING:
    from ..handler.connection import Connection

__all__ = ["KEEP_SECONDS", "MAX_KEPT_BYTES", "RedisRegistry"]

log = logging.getLogger("greentx.redis")

#: How long a broadcast waits for Redis, and how many bytes of them may.
KEEP_SECONDS = 5.0
MAX_KEPT_BYTES = 4 * 1024 * 1024

#: Bytes of others' broadcasts that may wait for this process to deliver them.
MAX_UNDELIVERED_BYTES = 16 * 1024 * 1024

# The longest time between two looks at what is due.
_TICK_SECONDS = 0.25

_NUMBER_DIGITS = len(str(NOBODY))


class RedisRegistry(SharedRegistry):
    """What the ``registry=`` of a :class:`~greentx.Transceiver` is; one for each.

    Args:
        url: ``redis://[[user]:password@]host[:port][/database]`` or ``unix:///path``; ``rediss://`` (TLS) in programs
            that are monkey-patched. See redis-py for what may stand behind a ``?``.
        key_prefix: In front of all keys and channels: what has the same one is shared.
        timeout: Seconds in which Redis has to answer, or it counts as away.

    Raises:
        ValueError: The URL is none of these, or the prefix is empty or has a space.

    Attributes:
        client: The way to Redis; ``None`` while the Transceiver does not run.
        name: Of this process.
    """

    def __init__(self, url: str, *, key_prefix: str = "greentx", timeout: float = 2.0) -> None:
        if not key_prefix or any(one.isspace() for one in key_prefix):
            raise ValueError(f"key_prefix is a text without spaces, not {key_prefix!r}")
        if not timeout > 0:
            raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
        self._new_client = partial(RedisClient, url, timeout)
        self._new_client()  # a mistake in the URL is told here
        self._prefix = key_prefix
        self.client: RedisClient | None = None
        self.name = ""
        self._setting: Setting | None = None
        self._shared: Shared | None = None
        self._shares: dict[Connection, Share] = {}
        self._broadcasts: _Broadcasts | None = None
        self._ticking: gevent.Greenlet[..., None] | None = None

    # -- the Transceiver's life ---------------------------------------------------------------------------------------

    def open(self, shared: Shared, deliver: Callable[[Broadcast], object], interval: float | None) -> None:
        """See :class:`greentx.handler.sharing.SharedRegistry`, as for the other methods."""
        if self.client is not None:
            raise TransportError(f"{self!r} belongs to a Transceiver that runs: make one for each")
        # Made here and not before: a process that forks has none of its parent's.
        self.name = process_name()
        self._shared = shared
        client = self.client = self._new_client()
        self._setting = Setting(client, self._prefix, self.name, shared.registry, Times.of(interval))
        self._broadcasts = _Broadcasts(client, f"{self._prefix}:all", self.name, deliver)
        client.hooks = Hooks(
            up=self._up,
            down=lambda: self._each(lambda one: one.down()),
            message=self._message,
            collect=lambda: self._each(lambda one: one.collect()),
        )
        client.start([self._broadcasts.channel])
        self._broadcasts.start()
        self._ticking = gevent.spawn(self._tick)

    def entry(self, connection: Connection) -> SharedEntry | None:
        """A connection set is made."""
        assert self._setting is not None and self._shared is not None and self.client is not None
        # Its name may change.
        setting = replace(self._setting)
        if not self._shared.options.shared:
            self._shares[connection] = Single(setting, connection)
            return None
        member = Member(setting, connection)
        self._shares[connection] = member
        self.client.subscribe(member.channel)
        return member

    def stop(self, linger: float) -> None:
        """All was said; let go."""
        client, self.client = self.client, None
        if client is None:
            return
        self._each(lambda one: one.leave())
        self._shares.clear()
        assert self._broadcasts is not None and self._ticking is not None
        self._broadcasts.stop()
        self._ticking.kill()
        client.stop(linger)

    def _each(self, call: Callable[[Share], None]) -> None:
        for share in list(self._shares.values()):
            call(share)

    def _up(self) -> None:
        self._each(lambda one: one.begin())
        assert self._broadcasts is not None
        self._broadcasts.send_kept()

    def _tick(self) -> None:
        assert self._setting is not None
        pause = min(_TICK_SECONDS, self._setting.times.interval / 8)
        while True:
            gevent.sleep(pause)
            if self._shared is None or self._shared.context.forked:
                return  # a forked child: all of this is its parent's
            now = monotonic()
            try:
                self._each(lambda one, now=now: one.tick(now))  # type: ignore[misc]  # bound, as it is called at once
            except GreentxError as error:
                log.warning("what is due was not done: %s", error)

    def _message(self, channel: bytes, data: bytes) -> None:
        name = channel.decode()
        try:
            assert self._broadcasts is not None
            if name == self._broadcasts.channel:
                self._broadcasts.came(data)
                return
            self._each(lambda one: one.message(name, data))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            log.warning("%s: ignored what means nothing here: %.200r: %r", name, data, error)

    @property
    def trouble(self) -> str:
        """Why nothing is shared at present."""
        if self.client is None or self.client.up:
            return ""
        return f"Redis is away ({self.client.why}): nothing is shared with other processes"

    # -- the connection sets ------------------------------------------------------------------------------------------

    def ready(self, connection: Connection) -> None:
        """The server came."""
        if connection in self._shares:
            self._shares[connection].begin()

    def lost(self, connection: Connection) -> None:
        """The server went."""
        if connection in self._shares:
            self._shares[connection].lost()

    def removed(self, connection: Connection) -> None:
        """The connection set was removed."""
        share = self._shares.pop(connection, None)
        if share is not None:
            share.leave()

    def notice(self, connection: Connection, request: Request) -> bool:
        """Look for echoes."""
        conn_id = request.conn_id
        if len(conn_id) == _NUMBER_DIGITS and int(conn_id) >= NOBODY and connection in self._shares:
            self._shares[connection].notice(conn_id)
        return False

    # -- the WebSockets -----------------------------------------------------------------------------------------------

    def _share_of(self, entry: Entry) -> Share | None:
        for connection, share in self._shares.items():
            if entry.sid[0] in connection.sessions.senders:
                return share
        return None

    def entry_added(self, entry: Entry) -> None:
        """See :class:`greentx.protocol.websocket.sharing.Watcher`, as for those below."""
        share = self._share_of(entry)
        if share is not None:
            share.changes.added(entry)

    def entry_removed(self, entry: Entry) -> None:
        """It is about to be removed."""
        share = self._share_of(entry)
        if share is not None:
            share.changes.removed(entry)

    def entry_joined(self, entry: Entry, group: str) -> None:
        """It joined a group."""
        share = self._share_of(entry)
        if share is not None:
            share.changes.joined(entry, group)

    def entry_left(self, entry: Entry, group: str) -> None:
        """It left a group."""
        share = self._share_of(entry)
        if share is not None:
            share.changes.left(entry, group)

    def broadcast(self, broadcast: Broadcast) -> int:
        """Publish it. Raises ``LocalProtocolError`` where it is too long."""
        if self._broadcasts is not None:
            self._broadcasts.send(broadcast)
        return 0

    # -- all over -----------------------------------------------------------------------------------------------------

    def _ask(self, *command: Any) -> Any:
        if self.client is None or self._shared is None:
            raise TransportError("the Transceiver of this registry is not running")
        context = self._shared.context
        if not context.in_hub_thread():
            return context.hand_over(self.client.ask, *command)
        return self.client.ask(*command)

    def _lives(self) -> Iterator[str]:
        for life in self._ask("SMEMBERS", lives_of(self._prefix)):
            yield f"{self._prefix}:{life.decode()}"

    def count(self, group: str | None) -> int:
        """How many there are in all lives."""
        if group is None:
            return sum(self._ask("HLEN", f"{life}:sockets") for life in self._lives())
        return sum(self._ask("ZLEXCOUNT", f"{life}:groups", *group_range(group)) for life in self._lives())

    def members(self, group: str | None) -> list[Sid]:
        """Who they are."""
        found: list[Sid] = []
        for life in self._lives():
            if group is None:
                found += [sid_of(text) for text in self._ask("HKEYS", f"{life}:sockets")]
            else:
                members = self._ask("ZRANGEBYLEX", f"{life}:groups", *group_range(group))
                found += [read_member(member)[1] for member in members]
        return found

    def __repr__(self) -> str:
        return f"<RedisRegistry {self._prefix}: {self.client or 'not running'}>"


class _Broadcasts:
    """Those of this process on their way out, and those of others on their way in.

    Args:
        client: The way to Redis.
        channel: Where they are published.
        name: Of this process.
        deliver: Sends one to the WebSockets that this process owns.
    """

    def __init__(self, client: RedisClient, channel: str, name: str, deliver: Callable[[Broadcast], object]) -> None:
        self.channel = channel
        self._client = client
        self._name = name
        self._deliver = deliver
        # Not answered for yet, the oldest first: with their numbers, times and bytes.
        self._kept: deque[tuple[int, float, bytes]] = deque()
        self._kept_bytes = 0
        self._number = 0
        self._dropped = 0
        # The last number of each process: what was published twice, as nobody knew whether it had been, comes once.
        self._seen: dict[str, int] = {}
        self._came: deque[tuple[int, Broadcast]] = deque()
        self._came_bytes = 0
        self._lost = 0
        self._wake = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> None:
        """Deliver what comes."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """No more is delivered."""
        if self._greenlet is not None:
            self._greenlet.kill()

    # -- out ----------------------------------------------------------------------------------------------------------

    def send(self, broadcast: Broadcast) -> None:
        """Publish one, now or when Redis is back. Raises ``LocalProtocolError`` where it is too long for that."""
        self._number += 1
        head = {
            "n": self._name,
            "i": self._number,
            "c": int(broadcast.opcode),
            "g": broadcast.group,
            "x": [list(sid) for sid in broadcast.exclude],
        }
        message = json.dumps(head).encode() + b"\n" + broadcast.payload
        # More could not wait for Redis, which would count as away then, for good.
        if len(message) > MAX_KEPT_BYTES:
            raise LocalProtocolError(
                f"a broadcast that other processes share is {len(message)} bytes, limit {MAX_KEPT_BYTES}"
            )
        self._kept.append((self._number, monotonic(), message))
        self._kept_bytes += len(message)
        while self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            self._drop()
        self._publish(self._number, message)

    def _drop(self) -> None:
        self._kept_bytes -= len(self._kept.popleft()[2])
        if not self._client.up:
            self._dropped += 1

    def _publish(self, number: int, message: bytes) -> None:
        self._client.send("PUBLISH", self.channel, message, then=lambda _: self._answered(number))

    def _answered(self, number: int) -> None:
        while self._kept and self._kept[0][0] <= number:
            self._kept_bytes -= len(self._kept.popleft()[2])

    def send_kept(self) -> None:
        """Redis is back: publish what is not too old."""
        oldest = monotonic() - KEEP_SECONDS
        while self._kept and self._kept[0][1] < oldest:
            self._kept_bytes -= len(self._kept.popleft()[2])
            self._dropped += 1
        if self._dropped:
            log.warning("%d broadcasts did not reach other processes: Redis was away", self._dropped)
            self._dropped = 0
        for number, _, message in list(self._kept):
            self._publish(number, message)

    # -- in -----------------------------------------------------------------------------------------------------------

    def came(self, data: bytes) -> None:
        """One was published. Raises ``ValueError`` and the like where it means nothing."""
        head, _, payload = data.partition(b"\n")
        fields = json.loads(head)
        name, number = fields["n"], int(fields["i"])
        if name == self._name or number <= self._seen.get(name, 0):
            return
        # Of more processes than ever were the oldest are forgotten.
        self._seen[name] = max(number, self._seen.pop(name, 0))
        if len(self._seen) > 1000:
            del self._seen[next(iter(self._seen))]
        group = fields["g"]
        exclude = frozenset((str(sender), str(conn_id)) for sender, conn_id in fields["x"])
        if self._came_bytes + len(data) > MAX_UNDELIVERED_BYTES:
            self._lost += 1
            return
        self._came.append((len(data), Broadcast(payload, int(fields["c"]), group, exclude)))
        self._came_bytes += len(data)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._came:
                size, broadcast = self._came[0]
                try:
                    self._deliver(broadcast)
                except GreentxError as error:
                    log.warning("a broadcast of another process was not delivered to all: %s", error)
                self._came.popleft()
                self._came_bytes -= size
            if self._lost:
                log.warning("%d broadcasts of other processes were dropped: a server does not take them", self._lost)
                self._lost = 0
