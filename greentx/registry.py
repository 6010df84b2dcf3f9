"""The live WebSockets: who is connected, who answered the last ping, who is in which group.

One registry serves a whole Transceiver. It does no I/O and asks no clock; connection sets add and remove entries, the
pinger walks through them, applications join groups. Entries are kept in batches of at most 128, the most ids that one
message to Mongrel2 may have, so that a round of pings over a million of them is a walk over 7,813 lists that can be
interrupted after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deflate import PerMessageDeflate

__all__ = ["CLOSED", "CLOSING", "CONNECTING", "OPEN", "Batch", "Entry", "Registry", "Sid"]

BATCH_SIZE = 128

#: States of a WebSocket, RFC 6455's words.
CONNECTING, OPEN, CLOSING, CLOSED = "CONNECTING", "OPEN", "CLOSING", "CLOSED"

Sid = tuple[str, str]


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
    """One WebSocket.

    Attributes:
        sid: ``(sender, conn_id)``.
        path: What its opening handshake asked for.
        state: ``CONNECTING``, ``OPEN``, ``CLOSING`` (a close frame of ours is out) or ``CLOSED``.
        awaits_pong: A ping is out that was not answered yet.
        deadline: While CLOSING, the time after which the peer's close frame is not waited for any more.
        deflate: The negotiated compression, or ``None``.
        on_pong: Called with the payload of each pong, or ``None``.
        on_event: Called with each message and with the end; ``None`` where these go to the inbox. Must not block.
        raw: The application's own library reads and writes the frames; only their bounds and the end are ours.
        subprotocol: What the opening handshake agreed on, or ``None``.
        close_code, close_reason: While CLOSING, what we sent; when CLOSED, what the application is told.
    """

    __slots__ = (
        "_batch",
        "_groups",
        "awaits_pong",
        "close_code",
        "close_reason",
        "deadline",
        "deflate",
        "on_event",
        "on_pong",
        "path",
        "raw",
        "sid",
        "state",
        "subprotocol",
    )

    def __init__(self, sid: Sid, path: str = "/") -> None:
        self.sid = sid
        self.path = path
        self.state = CONNECTING
        self.awaits_pong = False
        self.deadline = 0.0
        self.deflate: PerMessageDeflate | None = None
        self.on_pong: Callable[[bytes], None] | None = None
        self.on_event: Callable[[Any], None] | None = None
        self.raw = False
        self.subprotocol: str | None = None
        self.close_code = 1005
        self.close_reason = ""
        self._batch: Batch | None = None
        self._groups: tuple[str, ...] = ()

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
    """

    def __init__(self) -> None:
        self._entries: dict[Sid, Entry] = {}
        self._batches: dict[str, list[Batch]] = {}
        self._open_batches: dict[str, list[Batch]] = {}
        self._groups: dict[str, dict[Sid, Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sid]:
        return iter(list(self._entries))

    def __contains__(self, sid: object) -> bool:
        return sid in self._entries

    def get(self, sid: Sid) -> Entry | None:
        """Return the entry of *sid*, or ``None`` when it is not connected."""
        return self._entries.get(sid)

    def add(self, entry: Entry) -> None:
        """Add a WebSocket. An entry of the same sid must have been removed before."""
        if entry.sid in self._entries:
            raise ValueError(f"{entry.sid} is in the registry already")
        self._entries[entry.sid] = entry
        sender = entry.sid[0]
        vacant = self._open_batches.setdefault(sender, [])
        if not vacant:
            batch = Batch()
            self._batches.setdefault(sender, []).append(batch)
            vacant.append(batch)
        batch = vacant[-1]
        batch.append(entry)
        entry._batch = batch
        if len(batch) == BATCH_SIZE:
            vacant.pop()

    def remove(self, sid: Sid) -> Entry | None:
        """Remove a WebSocket, from its groups too, and return its entry; ``None`` when it was not there."""
        entry = self._entries.pop(sid, None)
        if entry is None:
            return None
        entry.state = CLOSED
        for group in entry._groups:
            self._leave(entry, group)
        entry._groups = ()
        batch = entry._batch
        assert batch is not None
        entry._batch = None
        sender = sid[0]
        full = len(batch) == BATCH_SIZE
        batch.remove(entry)
        if not batch:
            _remove_identical(self._batches[sender], batch)
            _remove_identical(self._open_batches[sender], batch)
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
        if group not in entry._groups:
            entry._groups += (group,)
            self._groups.setdefault(group, {})[sid] = entry

    def leave(self, sid: Sid, group: str) -> None:
        """Take a WebSocket out of *group*. Nothing happens when it is not in it, or has gone."""
        entry = self._entries.get(sid)
        if entry is not None and group in entry._groups:
            entry._groups = tuple(one for one in entry._groups if one != group)
            self._leave(entry, group)

    def _leave(self, entry: Entry, group: str) -> None:
        members = self._groups[group]
        del members[entry.sid]
        if not members:
            del self._groups[group]

    def groups(self, sid: Sid) -> tuple[str, ...]:
        """Return the groups of one WebSocket, in the order in which it joined them; ``()`` when it has gone."""
        entry = self._entries.get(sid)
        return entry._groups if entry is not None else ()

    def members(self, group: str | None = None) -> list[Entry]:
        """Return the entries of *group*, or all of them for ``None``."""
        source = self._entries if group is None else self._groups.get(group, {})
        return list(source.values())

    def __repr__(self) -> str:
        return f"<Registry {len(self._entries)} WebSockets, {len(self._groups)} groups>"


def _remove_identical(batches: list[Batch], batch: Batch) -> None:
    # list.remove compares lists by what they hold, and several may be empty or equal.
    del batches[next(position for position, one in enumerate(batches) if one is batch)]
