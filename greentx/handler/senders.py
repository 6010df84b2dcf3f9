"""Which server each sender belongs to, as ids mean something in one server only.

A *sender* is the first word of a message, the ``send_ident`` of a handler entry: what a server says of itself.
WebSockets are known by sender and id, over all connection sets of a Transceiver, so two servers that say the same would
get each other's answers. The rule:

* The name of a connection set belongs to the server that the set is connected to.
* Any other sender belongs to the server that says it first, until no connection set is left to that server. It may
  differ from the name: Mongrel2's entry has another ``send_ident``, or a :class:`~greentx.Server` is where a Mongrel2
  was expected.
* Two connection sets are to one server where they publish to one address (the server's SUB), however it is written. So
  a ``Server`` that a Transceiver was connected to before, and that asks to be added under its own name, is one server:
  its PUSH hands messages to either set in turn.

What comes with a sender of another server is refused (:mod:`greentx.handler.foreign`). Two entries of
one Mongrel2 have two addresses: they need a ``send_ident`` each.
"""

from __future__ import annotations

from collections.abc import Mapping

import gevent
from gevent import socket

from ..errors import LocalProtocolError
from ..transport.endpoints import endpoint_address, is_this_machine

__all__ = ["Senders", "is_at", "is_one_server"]

# Names that one server may go by. A relay's has those of the servers behind it.
_MAX_HEARD = 64

# How many refusals are remembered: each has to be decided once, and may have to ask for an address.
_MAX_REFUSED = 1024

# How long that may take: the messages of one connection set wait for it.
_RESOLVE_SECONDS = 1.0


class Senders:
    """The senders of one Transceiver's connection sets, and the servers that they belong to."""

    def __init__(self) -> None:
        # By sender, the address of its server's SUB: what sets are called, and what else messages came with.
        self._named: dict[str, str] = {}
        self._heard: dict[str, str] = {}
        # What was decided, until a set comes or goes.
        self._accepted: dict[str, set[str]] = {}
        self._refused: dict[tuple[str, str], str] = {}

    @property
    def several(self) -> bool:
        """There is more than one connection set, so that none may hold up the others."""
        return len(self._named) > 1

    def accepted(self, endpoint: str) -> set[str]:
        """Return the senders known to belong to the server at *endpoint*: one set for good, kept up to date."""
        return self._accepted.setdefault(endpoint, set())

    def admit(self, sender: str, endpoint: str) -> str:
        """A message came with a sender that is not among the accepted ones: see whose it is.

        May look up a host's address, once, where two are written differently: that blocks for a second at the most.

        Returns:
            ``""`` where it belongs to the server at *endpoint*, else why not.
        """
        why = self._refused.get((sender, endpoint))
        if why is None:
            why = self._decide(sender, endpoint)
            if why:
                if len(self._refused) >= _MAX_REFUSED:
                    self._refused.clear()
                self._refused[sender, endpoint] = why
            else:
                self.accepted(endpoint).add(sender)
        return why

    def _decide(self, sender: str, endpoint: str) -> str:
        owner = self._named.get(sender) or self._heard.get(sender)
        if owner is None:
            if sum(one == endpoint for one in self._heard.values()) >= _MAX_HEARD:
                return f"its server has used {_MAX_HEARD} other names already"
            self._heard[sender] = endpoint
            return ""
        return "" if is_one_server(owner, endpoint) else f"it belongs to the server at {owner}"

    def heard_at(self, sender: str) -> str | None:
        """Return where the server is that says *sender*, while no set is called so; ``None`` for nowhere."""
        return self._heard.get(sender)

    def update(self, named: Mapping[str, str]) -> None:
        """A connection set came or went: decide anew.

        Args:
            named: The present ones' addresses, by their names.
        """
        self._named = dict(named)
        present = set(named.values())
        self._heard = {
            sender: endpoint for sender, endpoint in self._heard.items() if sender not in named and endpoint in present
        }
        # Emptied, and not replaced: each is somebody's.
        for accepted in self._accepted.values():
            accepted.clear()
        self._accepted = {endpoint: one for endpoint, one in self._accepted.items() if endpoint in present}
        self._refused.clear()


def is_one_server(one: str, other: str) -> bool:
    """Return whether two endpoints are one, written in two ways. May block, to look up a host's address."""
    if one == other:
        return True
    # Another port, or path: nearly all differ there, and sets are compared with all others.
    if one.rpartition(":")[2] != other.rpartition(":")[2]:
        return False
    try:
        (host, port), (other_host, other_port) = endpoint_address(one), endpoint_address(other)
    except LocalProtocolError:
        return False  # not TCP
    return port == other_port and not _addresses_of(host).isdisjoint(_addresses_of(other_host))


def is_at(address: str, endpoint: str) -> bool:
    """Return whether *address*, an IP, is the host's of *endpoint*. May block, to look up that host's address.

    All addresses of this machine are one host.
    """
    try:
        host, _port = endpoint_address(endpoint)
    except LocalProtocolError:
        return False  # not TCP
    found = _addresses_of(host)
    return address in found or (is_this_machine(address) and any(map(is_this_machine, found)))


def _addresses_of(host: str) -> set[str]:
    try:
        with gevent.Timeout(_RESOLVE_SECONDS, False):
            return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        pass  # nobody is known by that name: it is itself and no other
    return {host}
