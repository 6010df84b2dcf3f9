"""One message to many WebSockets, over all connection sets of a Transceiver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import SendTimeout
from ..protocol.websocket.registry import Entry, Registry
from ..protocol.websocket.sharing import Broadcast
from ..transport import Placed
from .connection import Connection

__all__ = ["deliver", "place_broadcast", "wait_for_all"]


def place_broadcast(registry: Registry, connections: Iterable[Connection], broadcast: Broadcast) -> list[Placed]:
    """Give a message its places with all that are to get it, without waiting; the results are to be waited for.

    It is encoded once and goes out to 128 of them in a message. Left out are those whose protocol another process runs,
    and those that another process let in, which delivers to them itself.

    Raises:
        LocalProtocolError: The frame is not one.
    """
    group, excluded, owners = broadcast.group, broadcast.exclude, registry.owners
    by_sender: dict[str, list[Entry]] = {}
    # Each server's go out through its own writer, in messages of 128 ids.
    if group is None and not excluded and not owners:
        by_sender = {sender: registry.of_sender(sender) for sender in registry.senders()}
    else:
        for entry in registry.members(group):
            if entry.sid not in excluded and entry.sid not in owners:
                by_sender.setdefault(entry.sid[0], []).append(entry)
    placed: list[Placed] = []
    # To all before any wait: a server whose pipe is full holds up no other, and two broadcasts keep their order.
    for sender, entries in by_sender.items():
        for connection in connections:
            if sender in connection.sessions.senders:
                placed.append(connection.sessions.broadcast(entries, broadcast.payload, broadcast.opcode))
                break
    return placed


def wait_for_all(placed: Sequence[Placed]) -> int:
    """Block this greenlet while a pipe is full; return how many it goes to.

    Raises:
        SendTimeout: A pipe stayed full; others may have got the message. All were waited for.
    """
    failed: SendTimeout | None = None
    for one in placed:
        try:
            one.wait(to_all=len(placed) > 1)
        except SendTimeout as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return sum(one.reached for one in placed)


def deliver(registry: Registry, connections: Iterable[Connection], broadcast: Broadcast) -> int:
    """Send it to those that this process let in, or took over; blocks, returns and raises as both of these."""
    return wait_for_all(place_broadcast(registry, connections, broadcast))
