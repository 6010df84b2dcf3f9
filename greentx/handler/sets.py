"""The connection sets of one Transceiver, by their senders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import monotonic

import gevent

from ..errors import ConnectTimeout, LocalProtocolError
from ..protocol.fields import shown
from ..transport.endpoints import Address
from ..transport.security import Dial
from .connection import Connection
from .senders import is_one_server
from .shared import Shared

__all__ = ["MAX_CONNECTIONS", "ConnectionSets", "side_by_side"]

#: How many there may be, where nothing else is said: each costs about four descriptors, and some memory.
MAX_CONNECTIONS = 100

# How long what has a bound of its own may take beyond it.
_GRACE_SECONDS = 0.1


class ConnectionSets:
    """Adds and removes them while others run. Its methods belong to the hub's thread.

    Args:
        sender: The Transceiver's own, for the log.
        limit: How many there may be at once.
        dial: How the Transceiver's own connects.
    """

    def __init__(self, sender: str, limit: int = MAX_CONNECTIONS, dial: Dial | None = None) -> None:
        self.sender = sender
        self.dial = Dial() if dial is None else dial
        self._limit = limit
        self._by_sender: dict[str, Connection] = {}

    def __iter__(self) -> Iterator[Connection]:
        """The present ones; others may come and go meanwhile."""
        # A copy: whoever iterates may block, and others add and remove meanwhile.
        return iter(list(self._by_sender.values()))

    def __len__(self) -> int:
        return len(self._by_sender)

    def copy(self) -> dict[str, Connection]:
        """Return them by their senders."""
        return dict(self._by_sender)

    def clear(self) -> None:
        """Forget them; they were stopped."""
        self._by_sender.clear()

    def find(self, sender: str) -> Connection | None:
        """Return one, or ``None``."""
        return self._by_sender.get(sender)

    def get(self, sender: str) -> Connection:
        """Return one. Raises ``KeyError`` where there is none."""
        try:
            return self._by_sender[sender]
        except KeyError:
            raise KeyError(f"no connection for sender {shown(sender)}; there are {sorted(self._by_sender)}") from None

    def wait_ready(self, timeout: float | None, check: Callable[[], object]) -> None:
        """Block this greenlet until both ways of each work; see ``Transceiver.wait_ready``.

        Args:
            check: Raises where they end meanwhile.
        """
        missing: list[Connection] = []
        # Asked again after each: others may be added, or lose their server, meanwhile.
        with gevent.Timeout(timeout, False):
            while True:
                check()
                missing = [connection for connection in self if not connection.ready]
                if not missing:
                    return
                missing[0].wait_ready()
        addresses = ", ".join(str(one.pull_endpoint if one.link.subscribed else one.pub_endpoint) for one in missing)
        why = "; ".join(one.link.why for one in missing)
        raise ConnectTimeout(f"not ready within {timeout} s: {why}", address=addresses)

    def add(
        self,
        shared: Shared,
        sender: str,
        push_addr: Address | None,
        sub_addr: Address,
        *,
        replace: bool,
        stand_in: bool,
        server_control: Address | None,
        remove: Callable[[str], None],
        dial: Dial | None = None,
    ) -> Connection:
        """Make and start one; see ``Transceiver.add_connection``.

        Args:
            remove: Removes the one that is in the way, with *replace*.
            dial: How its sockets connect.
        """
        if sender not in self._by_sender and len(self._by_sender) >= self._limit:
            raise LocalProtocolError(
                f"{shown(sender)} would be connection set {len(self._by_sender) + 1}, limit {self._limit}: remove "
                "another one, or set max_connections="
            )
        connection = Connection(
            sender, push_addr, sub_addr, shared=shared, stand_in=stand_in, server_control=server_control, dial=dial
        )
        while (old := self._by_sender.get(sender)) is not None:  # again: others may run while one is removed
            # A server that asks again, as after a lost answer, gets what it has: nothing of it is interrupted.
            if replace and (old.pull_endpoint, old.pub_endpoint) == (connection.pull_endpoint, connection.pub_endpoint):
                connection.intake.stop(linger=0)
                if stand_in:
                    old.link.become_stand_in()
                return old
            if not replace:
                connection.intake.stop(linger=0)
                raise LocalProtocolError(
                    f"sender {sender!r} is in use for {old.pull_endpoint}: remove that connection first"
                )
            remove(sender)
        try:
            self._check_unheard(shared, connection)
            if stand_in:
                for other in self:
                    if is_one_server(other.pub_endpoint, connection.pub_endpoint):
                        other.link.become_stand_in()  # its server listens there, under another name
            # Before it is started: its first message may be there at once, and is looked up by its sender.
            self._by_sender[sender] = connection
            self._tell_senders(shared)
            connection.intake.start()
        except BaseException:  # raised again: whatever it was, nothing half-started is left behind
            if self._by_sender.get(sender) is connection:
                del self._by_sender[sender]
                self._tell_senders(shared)
            connection.intake.stop(linger=0)
            raise
        return connection

    def _check_unheard(self, shared: Shared, connection: Connection) -> None:
        """Raise ``LocalProtocolError`` where another server that is there goes by the name of *connection*."""
        heard_at = shared.senders.heard_at(connection.sender)
        if heard_at is None or is_one_server(heard_at, connection.pub_endpoint):
            return
        for other in self:
            if other.link.subscribed and other.pub_endpoint == heard_at:
                raise LocalProtocolError(
                    f"sender {connection.sender!r} is what the messages of connection set {other.sender!r} come with, "
                    f"from the server at {heard_at}: give this one a send_ident of its own"
                )

    def _tell_senders(self, shared: Shared) -> None:
        shared.senders.update({one.sender: one.pub_endpoint for one in self._by_sender.values()})

    def remove(self, shared: Shared, sender: str, code: int, linger: float) -> Connection:
        """Stop one and return it; see ``Transceiver.remove_connection``."""
        connection = self.get(sender)
        # First: from now on the name is free, and nobody finds the one that ends.
        del self._by_sender[sender]
        until = monotonic() + linger
        try:
            self.say_goodbye([connection], code, until)
            connection.intake.end_inbox()
            connection.intake.stop(linger=max(0.0, until - monotonic()))
        finally:
            # Until here its messages were its own, unless a new one has the name by now.
            self._tell_senders(shared)
        return connection

    def say_goodbye(self, connections: Iterable[Connection], code: int, until: float) -> None:
        """Close WebSockets with *code*, hand on what has arrived, pull no more; until that time."""

        def goodbye(connection: Connection) -> None:
            connection.sessions.close_all(code)
            connection.intake.stop_receiving(max(0.0, until - monotonic()))
            connection.sessions.elsewhere.let_go(code)

        side_by_side([partial(goodbye, one) for one in connections], until)


def side_by_side(calls: Sequence[Callable[[], object]], until: float) -> None:
    """Make all calls in a greenlet each, until that time."""
    greenlets = [gevent.spawn(call) for call in calls]
    try:
        gevent.joinall(greenlets, timeout=max(0.0, until - monotonic()) + _GRACE_SECONDS)
    finally:
        # Not killall(timeout=...), which raises where one does not die in time.
        gevent.killall(greenlets, block=False)
        gevent.joinall(greenlets, timeout=_GRACE_SECONDS)
