"""The connection sets as the control socket may see and change them.

Whoever may ask there may add a server, and end what he has added. These rules protect what others rely on:

* A set whose server is there is never replaced by one with other addresses, and is removed by whoever added it only:
  known by his CURVE key, else by his IP address. A server that was started again finds its set without a server, and
  replaces it. So does one whose set only answers, as a Node has made it by the word of its relay.
* What the application has added, its own set first of all, is the application's while its server is there.
* A proof is an invalid reply to Mongrel2, which then stands still for 0.5 s (probed). So proofs go only to sets that a
  :class:`~greentx.Server` has added, or that the application said is one; and what has announced credits, or was added
  as a Mongrel2, stays one whatever others say. That a set of the application's leads to a ``Server`` is believed of its
  own server only: known by the set's CURVE key, else by its host.
* How many sets there may be, and in which networks, is the application's to say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Protocol

import gevent

from ..errors import ControlError, LocalProtocolError
from ..protocol.fields import shown
from ..transport import Context
from ..transport.endpoints import bind_endpoint, connect_endpoint, endpoint_address
from ..transport.keys import KeyFile, Keys, public_key, public_keys
from ..transport.security import PRIVATE_NETWORKS, Access, Dial, Networks, make_dial
from .connection import Connection
from .control import Control
from .senders import is_at, is_one_server
from .sets import ConnectionSets

__all__ = ["ControlSocket", "RemoteSets"]

# How long a proof that was promised may wait for the server's subscription.
_PROOF_SECONDS = 10.0

# How many of them may wait at once, for one server and in all: each has a greenlet.
_MAX_PROOFS_EACH = 32
_MAX_PROOFS = 64

# Between two attempts to reach a server that was added here. It listens when it asks, so one that cannot be reached has
# gone, or was never there: at 0.1 s, the application's own, 100 of them took 0.7 of a core.
_RETRY_MAX_SECONDS = 2.0


class Owner(Protocol):
    """The Transceiver."""

    @property
    def sender(self) -> str: ...
    @property
    def dial(self) -> Dial: ...
    def add_connection(
        self,
        sender: str,
        push_addr: Any,
        sub_addr: Any,
        *,
        replace: bool,
        stand_in: bool,
        curve_server: bytes | None,
        retry_max: float,
    ) -> Connection: ...
    def remove_connection(self, sender: str) -> None: ...
    def status(self) -> dict[str, Any]: ...


class _Added:
    """One set that was added here."""

    __slots__ = ("asker", "connection", "mongrel2")

    def __init__(self, connection: Connection, asker: str, *, mongrel2: bool) -> None:
        self.connection = connection
        self.asker = asker
        self.mongrel2 = mongrel2


class RemoteSets:
    """Obeys the commands of one control socket. Its methods belong to the hub's thread.

    Args:
        owner: The Transceiver.
        sets: Its connection sets.
        networks: Where the servers that are added may be; ``None`` is anywhere.
    """

    def __init__(self, owner: Owner, sets: ConnectionSets, networks: Networks | None) -> None:
        self._owner = owner
        self._sets = sets
        self._networks = networks
        self._added: dict[str, _Added] = {}
        self._proofs: list[tuple[str, gevent.Greenlet[..., None]]] = []

    def add(self, asker: str, sender: str, push_addr: Any, sub_addr: Any, *, mongrel2: bool, key: bytes | None) -> None:
        """Pull from a server, and publish to it; the same again changes nothing.

        Args:
            asker: Who asks.
            push_addr, sub_addr: ``(ip, port)``.
            mongrel2: It is a Mongrel2, and not a :class:`~greentx.Server`.
            key: Its public key, as Z85, where it demands CURVE.

        Raises:
            ControlError: One of the rules is against it.
            LocalProtocolError: An address is malformed, or there are too many sets.
        """
        for host, _port in (push_addr, sub_addr):
            # A name could be looked up, but may mean another address a moment later.
            if self._networks is not None and host not in self._networks:
                raise ControlError(f"{shown(host)} is not an IP address in allow_connections= ({self._networks})")
        wanted = connect_endpoint(push_addr), connect_endpoint(sub_addr)
        server_key = None if key is None else public_key(key, '"curve"')
        # Told before the one that has the name is removed.
        make_dial(self._owner.dial.keys, server_key)
        old = self._sets.find(sender)
        # The same again changes nothing, whatever an old program says of a Mongrel2.
        mongrel2 = mongrel2 or (old is not None and _is_same(old, wanted, server_key) and self._is_mongrel2(old, asker))
        if not mongrel2:
            self._check_no_mongrel2(asker, sender, wanted[1])
            old = self._sets.find(sender)
        while old is not None and not _is_same(old, wanted, server_key):
            if old.link.subscribed and not _gives_way(old, wanted[1], server_key):
                raise ControlError(
                    f"sender {shown(sender)} is served by {old.pub_endpoint}, which is there: another server needs "
                    "another name, or that one removed first"
                )
            self._owner.remove_connection(sender)
            old = self._sets.find(sender)  # again: others may run while one is removed
        connection = self._owner.add_connection(
            sender,
            push_addr,
            sub_addr,
            replace=True,
            stand_in=not mongrel2,
            curve_server=server_key,
            retry_max=_RETRY_MAX_SECONDS,
        )
        # A set of the application's stays the application's, also where its server says that it is a Server.
        if old is None:
            if len(self._added) > len(self._sets):  # the application has removed some
                kept = {sender: one for sender, one in self._added.items() if self._entry(one.connection) is one}
                self._added = kept
            self._added[sender] = _Added(connection, asker, mongrel2=mongrel2)

    def remove(self, asker: str, sender: str) -> None:
        """Let go of a server.

        Raises:
            ControlError: It is there, and was added by somebody else, or by the application.
            KeyError: There is none of that name.
        """
        connection = self._sets.get(sender)
        added = self._entry(connection)
        if connection.link.subscribed:
            if added is None:
                raise ControlError(
                    f"the application serves {shown(sender)}, and its server is there: the application ends it"
                )
            if added.asker != asker:
                raise ControlError(
                    f"{shown(sender)} was added by {added.asker}, and its server is there: {asker} cannot end it"
                )
        self._added.pop(sender, None)
        self._owner.remove_connection(sender)

    def prove(self, sender: str, text: str) -> None:
        """Send *text* to conn id -1 over that sender's PUB, once its server has subscribed. Does not wait for that.

        Raises:
            ControlError: There is no :class:`~greentx.Server` of that name; or too many proofs are waiting.
        """
        connection = self._sets.find(sender)
        if connection is None:
            raise ControlError(f"no connection for sender {shown(sender)}; there are {sorted(self._sets.copy())}")
        if not connection.link.stand_in:
            raise ControlError(
                f"{shown(sender)} was not added by a Server, and a proof would stall a Mongrel2: if it is a Server, it "
                "asks to be added from its own host, or the application adds it with stand_in=True"
            )
        # It waits for the server's subscription, which the asker has to be answered before: in a greenlet.
        self._proofs = [one for one in self._proofs if not one[1].dead]
        waiting = sum(name == sender for name, _greenlet in self._proofs)
        if waiting >= _MAX_PROOFS_EACH or len(self._proofs) >= _MAX_PROOFS:
            raise ControlError(
                f"{waiting} proofs wait for {shown(sender)}, {len(self._proofs)} in all, limits {_MAX_PROOFS_EACH} and "
                f"{_MAX_PROOFS}: ask again later"
            )
        self._proofs.append((sender, gevent.spawn(connection.link.prove, text, _PROOF_SECONDS)))

    def status(self) -> dict[str, Any]:
        """Return what ``STATUS`` shows."""
        return self._owner.status()

    def stop(self) -> None:
        """Send no more proofs."""
        gevent.killall([greenlet for _sender, greenlet in self._proofs])

    def _entry(self, connection: Connection) -> _Added | None:
        """What is known of *connection*, if it was added here, and is still there."""
        added = self._added.get(connection.sender)
        # The application may have removed it, or put another one in its place.
        is_it = added is not None and added.connection is connection is self._sets.find(connection.sender)
        return added if is_it else None

    def _is_mongrel2(self, connection: Connection, asker: str) -> bool:
        """Whether its server is one, or *asker* is not who can say that it is none. May block, as :func:`is_at`."""
        link, added = connection.link, self._entry(connection)
        if added is not None:
            return added.mongrel2 or link.is_mongrel2
        return link.is_mongrel2 or not (link.stand_in or _speaks_for(asker, connection))

    def _check_no_mongrel2(self, asker: str, sender: str, pub_endpoint: str) -> None:
        """A Mongrel2 that is served under another name must not be taken for a Server."""
        for other in self._sets:
            if (
                other.sender != sender
                and _may_be_one(other.pub_endpoint, pub_endpoint)
                and self._is_mongrel2(other, asker)
            ):
                raise ControlError(
                    f"at {pub_endpoint} is the Mongrel2 of {other.sender!r}: to add an entry of it, say "
                    '"mongrel2": true in the body'
                )


def _speaks_for(asker: str, connection: Connection) -> bool:
    """Whether *asker* is the server of *connection*."""
    dial = connection.link.writer.dial
    key = None if dial is None else dial.server_key
    return (key is not None and asker == key.decode()) or is_at(asker, connection.pub_endpoint)


def _is_same(connection: Connection, endpoints: tuple[str, str], server_key: bytes | None) -> bool:
    return connection.pull_endpoint == endpoints[0] and _answers_at(connection, endpoints[1], server_key)


def _gives_way(connection: Connection, pub_endpoint: str, server_key: bytes | None) -> bool:
    return connection.gives_way and _answers_at(connection, pub_endpoint, server_key)


def _answers_at(connection: Connection, pub_endpoint: str, server_key: bytes | None) -> bool:
    known = connection.link.writer.dial
    key = None if known is None else known.server_key
    return connection.pub_endpoint == pub_endpoint and key == server_key


def _may_be_one(endpoint: str, other: str) -> bool:
    """Whether two endpoints may be one server's. May block, to look up a host's address."""
    if is_one_server(endpoint, other):
        return True
    # A server that listens on all interfaces has as many addresses as there are for loopback.
    if not endpoint.startswith("tcp:"):
        return False
    (host, port), (other_host, other_port) = endpoint_address(endpoint), endpoint_address(other)
    return port == other_port and _is_loopback(host) and _is_loopback(other_host)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ControlSocket:
    """The control socket of one Transceiver: what it is opened with in each run.

    Args:
        owner, sets: What the commands act on.
        host, port: Where it binds; port 0 is a free one.
        keys: Our own, of CURVE; ``None`` is in the clear.
        curve_allow, control_allow, allow_connections: As for a Transceiver.

    Attributes:
        port: As given; once it was opened, the real one.

    Raises:
        LocalProtocolError: An option is malformed.
    """

    def __init__(
        self,
        owner: Owner,
        sets: ConnectionSets,
        host: str,
        port: int,
        keys: Keys | None,
        *,
        curve_allow: KeyFile | Iterable[KeyFile] | None,
        control_allow: Any,
        allow_connections: Any,
    ) -> None:
        self.port = port
        self._endpoint = bind_endpoint((host, port))
        if (keys is None) is not (curve_allow is None):
            raise LocalProtocolError(
                "curve_secret and curve_allow go together: our own keys, and the public ones of those that the control "
                "socket answers (rep_port=False: no control socket)"
            )
        self._access = Access(
            f"control socket of {owner.sender}",
            networks=Networks(PRIVATE_NETWORKS if control_allow is None else control_allow, "control_allow"),
            keys=keys,
            allowed=frozenset() if curve_allow is None else public_keys(curve_allow),
        )
        self._networks = None if allow_connections is None else Networks(allow_connections, "allow_connections")
        self._owner = owner
        self._sets = sets

    def open(self, context: Context) -> Control:
        """Bind it for one run, and return what is to be started. Raises ``BindError``."""
        # Anew in each run: who has added what is forgotten with the sets.
        target = RemoteSets(self._owner, self._sets, self._networks)
        control = Control(context, self._endpoint, target, self._access)
        self.port = endpoint_address(control.endpoint)[1]
        return control
