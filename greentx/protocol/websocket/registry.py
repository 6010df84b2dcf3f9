"""The live WebSockets: what is known of each, and the groups that they are in.

One registry serves a whole Transceiver. It does no I/O and asks no clock; connection sets add and remove entries, the
pinger walks through them, applications join groups. Entries are kept in batches of at most 128, the most ids that one
message to Mongrel2 may have, so that a round of pings over a million of them is a walk over 7,813 lists that can be
interrupted after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..carrier import Carrier
from ..fields import MAX_CONN_IDS

if TYPE_CHECKING:
    from .deflate import PerMessageDeflate
    from .sharing import Watcher

__all__ = [
    "CLOSED",
    "CLOSING",
    "CONNECTING",
    "OPEN",
    "Batch",
    "Entry",
    "Registry",
    "Sid",
]

#: A round of pings is sent to a batch by one message.
BATCH_SIZE = MAX_CONN_IDS

#: States of a WebSocket, RFC 6455's words.
CONNECTING, OPEN, CLOSING, CLOSED = "CONNECTING", "OPEN", "CLOSING", "CLOSED"

Sid = tuple[str, str]

# One for all that are open.
_NO_STATUS = (1005, "")


class Batch(list["Entry"]):
    """At most 128 entries of one sender.

    Attributes:
        due: When they are to be pinged next, on the pinger's clock; ``None`` before the pinger saw the batch.
    """

    __slots__ = ("due",)

    def __init__(self) -> None:
        super().__init__()
        self.due: float | None = None


class Entry:
    """One WebSocket that was let in: all that is kept of it between two messages.

    :mod:`greentx.protocol.websocket.machine` has the rules by which it changes.

    Attributes:
        sid: ``(sender, conn_id)``.
        path: What its opening handshake asked for.
        state: ``CONNECTING``, ``OPEN``, ``CLOSING`` (a close frame of ours is out) or ``CLOSED``.
        awaits_pong: A ping that was sent has not been answered yet.
        fault: The close code and the text of what the peer did wrong, until the connection is ended for it.
        confirmed: How far the peer had read what it was sent when it was last found without a pong.
        deflate: The negotiated compression, or ``None``.
        on_pong: Called with the payload of each pong, or ``None``.
        on_event: Called with each message and with the end; ``None`` where these go to the inbox. Must not block.
        raw_bits: Where the application's own library reads and writes the frames, the reserved bits that its messages
            may have, as in ``parse_flags()``: only their first byte, their bounds and the end are ours then. ``None``
            where the frames are ours.
        carrier: Where another process runs the protocol, what stands for that: here messages are sent and received.
            ``None`` where this one does.
        subprotocol: What the opening handshake agreed on, or ``None``.
        ending: Close code and reason: while CLOSING, what we sent; when CLOSED, what the application is told.
        batch, groups: Where the registry has it; to be changed by the registry alone.
    """

    __slots__ = (
        "awaits_pong",
        "batch",
        "carrier",
        "confirmed",
        "deflate",
        "ending",
        "fault",
        "groups",
        "on_event",
        "on_pong",
        "path",
        "raw_bits",
        "sid",
        "state",
        "subprotocol",
    )

    # Slots, and nothing made per entry but the sid: the constants below are shared by all, so that an idle WebSocket
    # costs 323 bytes with its place in the registry (benchmarks/bench_registry.py).
    def __init__(self, sid: Sid, path: str = "/") -> None:
        self.sid = sid
        self.path = path
        self.state = CONNECTING
        self.awaits_pong = False
        self.fault: tuple[int, str] | None = None
        self.confirmed: int | None = None
        self.deflate: PerMessageDeflate | None = None
        self.on_pong: Callable[[bytes], None] | None = None
        self.on_event: Callable[[Any], None] | None = None
        self.raw_bits: int | None = None
        self.carrier: Carrier | None = None
        self.subprotocol: str | None = None
        self.ending = _NO_STATUS
        self.batch: Batch | None = None
        self.groups: tuple[str, ...] = ()

    @property
    def sender(self) -> str:
        """The server it is connected to."""
        return self.sid[0]

    @property
    def conn_id(self) -> str:
        """The server's number for it."""
        return self.sid[1]

    def __repr__(self) -> str:
        return f"<Entry {self.sid[0]} {self.sid[1]} {self.path} {self.state}>"


class Registry:
    """All live WebSockets of one process, by ``(sender, conn_id)``.

    ``len(registry)`` counts them, iteration yields their sids, ``sid in registry`` asks for one.

    Attributes:
        get: ``get(sid)`` returns the entry of *sid*, or ``None`` when it is not connected.
        owners: Of those that another process let in, or took over from one that ended: which one. Empty where no
            registry is shared.
        watcher: Told of each change, and knows of the WebSockets of other processes; ``None`` for nobody.
    """

    def __init__(self) -> None:
        # All, by sid; the same by sender in batches; those batches of a sender that are not full; members by group.
        self._entries: dict[Sid, Entry] = {}
        # The dict's own, without a call in between: each message is looked up.
        self.get: Callable[[Sid], Entry | None] = self._entries.get
        self._batches: dict[str, list[Batch]] = {}
        self._open_batches: dict[str, list[Batch]] = {}
        self._groups: dict[str, dict[Sid, Entry]] = {}
        # Apart from the entries, since nearly nobody shares: a million of them would pay for it.
        self.owners: dict[Sid, str] = {}
        self.watcher: Watcher | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sid]:
        # A copy: what walks over it may close connections.
        return iter(list(self._entries))

    def __contains__(self, sid: object) -> bool:
        return sid in self._entries

    def add(self, entry: Entry) -> None:
        """Add a WebSocket. An entry of the same sid must have been removed before."""
        # The older one would go on in its batch and its groups, unknown to anybody.
        if entry.sid in self._entries:
            raise ValueError(f"{entry.sid} is in the registry already")
        self._entries[entry.sid] = entry
        sender = entry.sid[0]
        # Gaps are filled first, or batches of one would pile up, each a message of its own in every round of pings.
        vacant = self._open_batches.setdefault(sender, [])
        if not vacant:
            batch = Batch()
            self._batches.setdefault(sender, []).append(batch)
            vacant.append(batch)
        batch = vacant[-1]
        batch.append(entry)
        entry.batch = batch
        if len(batch) == BATCH_SIZE:
            vacant.pop()
        if self.watcher is not None:
            self.watcher.entry_added(entry)

    def remove(self, sid: Sid) -> Entry | None:
        """Remove a WebSocket, from its groups too, and return its entry; ``None`` when it was not there."""
        entry = self._entries.pop(sid, None)
        if entry is None:
            return None
        entry.state = CLOSED
        if self.watcher is not None:
            self.watcher.entry_removed(entry)
        if self.owners:
            self.owners.pop(sid, None)
        for group in entry.groups:
            self._leave(entry, group)
        entry.groups = ()
        batch = entry.batch
        assert batch is not None
        entry.batch = None
        sender = sid[0]
        # The batch is searched, 128 at the most: a place remembered in each entry would cost every one memory.
        full = len(batch) == BATCH_SIZE
        batch.remove(entry)
        if not batch:
            _remove_identical(self._batches[sender], batch)
            _remove_identical(self._open_batches[sender], batch)
            # Nothing is kept of a sender without connections: names come from outside.
            if not self._batches[sender]:
                del self._batches[sender], self._open_batches[sender]
        elif full:
            self._open_batches[sender].append(batch)
        return entry

    def batches(self, sender: str) -> list[Batch]:
        """Return the entries of one sender in lists of at most 128.

        The outer list is the caller's; the inner ones are the registry's own and change when connections come and go,
        so a caller that lets other greenlets run in between copies the one it works on.
        """
        return list(self._batches.get(sender, ()))

    # Lists, not iterators: connections come and go while a caller waits between two of them.
    def senders(self) -> list[str]:
        """Return the senders that have live WebSockets."""
        return list(self._batches)

    def of_sender(self, sender: str) -> list[Entry]:
        """Return all entries of one sender."""
        return [entry for batch in self._batches.get(sender, ()) for entry in batch]

    # -- groups ----------------------------------------------------------------------------------------------------

    def join(self, sid: Sid, group: str) -> None:
        """Put a live WebSocket into *group*; twice is once. Raises ``KeyError`` when it is not connected."""
        entry = self._entries[sid]
        # A tuple, since most are in no group, or one: the empty tuple is shared, an empty set would be 216 bytes.
        if group not in entry.groups:
            entry.groups += (group,)
            self._groups.setdefault(group, {})[sid] = entry
            if entry.carrier is not None:
                entry.carrier.group(group, True)
            if self.watcher is not None:
                self.watcher.entry_joined(entry, group)

    def leave(self, sid: Sid, group: str) -> None:
        """Remove a WebSocket from *group*. Nothing happens when it is not in it, or has gone."""
        entry = self._entries.get(sid)
        if entry is not None and group in entry.groups:
            entry.groups = tuple(one for one in entry.groups if one != group)
            self._leave(entry, group)
            if entry.carrier is not None:
                entry.carrier.group(group, False)
            if self.watcher is not None:
                self.watcher.entry_left(entry, group)

    def _leave(self, entry: Entry, group: str) -> None:
        # An empty group is forgotten: applications make one for each chat room that ever was.
        members = self._groups[group]
        del members[entry.sid]
        if not members:
            del self._groups[group]

    def groups(self, sid: Sid) -> tuple[str, ...]:
        """Return the groups of one WebSocket, in the order in which it joined them; ``()`` when it has gone."""
        entry = self._entries.get(sid)
        return entry.groups if entry is not None else ()

    def members(self, group: str | None = None) -> list[Entry]:
        """Return the entries of *group*, or all of them for ``None``."""
        source = self._entries if group is None else self._groups.get(group, {})
        return list(source.values())

    # -- those of all processes ------------------------------------------------------------------------------------

    def count_everywhere(self, group: str | None = None) -> int:
        """Return how many WebSockets there are, or are in *group*, over all processes that share the registry.

        With a registry of its own a process knows all that there are. Else this blocks the greenlet until the answer is
        there; raises ``TransportError`` where there is none within some seconds.
        """
        return len(self.members(group)) if self.watcher is None else self.watcher.count(group)

    def members_everywhere(self, group: str | None = None) -> list[Sid]:
        """Return the sids of them; as :meth:`count_everywhere`."""
        return [entry.sid for entry in self.members(group)] if self.watcher is None else self.watcher.members(group)

    def __repr__(self) -> str:
        return f"<Registry {len(self._entries)} WebSockets, {len(self._groups)} groups>"


def _remove_identical(batches: list[Batch], batch: Batch) -> None:
    # list.remove compares lists by what they hold, and several may be empty or equal.
    del batches[next(position for position, one in enumerate(batches) if one is batch)]
