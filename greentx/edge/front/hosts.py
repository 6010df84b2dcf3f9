"""Which host a request is for: Mongrel2's hosts, without I/O.

A name means itself and all below it: ``example.com`` is ``www.example.com``, too, and the longest name decides. Names
are compared without the port, in any case. A request of an unknown host, or of none, goes to the default host; one for
a host that has no route for its path is answered 404.

Mongrel2 compares the characters only, as they are: there ``example.com`` is ``myexample.com``, too, a stranger's name;
while ``EXAMPLE.COM``, and ``example.com.`` with its dot, are unknown (probed). Here a dot has to stand in front, and
case and final dot make no difference (RFC 9110, section 4.2.3).

Source: src/server.c, Server_match_backend; probed on 1.12.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

from ...errors import LocalProtocolError
from .routes import Routes

__all__ = ["Hosts"]

T = TypeVar("T")

# Of a name of DNS; a longer one is not known here (RFC 1035, section 2.3.4).
_MAX_NAME = 253
_NAME = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


class Hosts(Generic[T]):
    """The routes of all hosts of a server.

    Args:
        default: Of requests for none of the others, and of JSON and XML sockets, which name no host.
        hosts: The routes of the others, by name.

    Attributes:
        default: As given.
        named: Whether there are others.

    Raises:
        LocalProtocolError: A name is not one of a host, or is there twice; a host has no routes, or wrong ones.
    """

    def __init__(self, default: Mapping[str, T], hosts: Mapping[str, Mapping[str, T]] | None = None) -> None:
        self.default = Routes(default)
        self._by_name: dict[bytes, Routes[T]] = {}
        for name, routes in (hosts or {}).items():
            if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
                meant = name.removeprefix("*.")
                hint = f"; write {meant!r}, which means all below it, too" if meant != name else ""
                raise LocalProtocolError(f"host {name!r} is not a name in ASCII without a port{hint}")
            if not routes:
                raise LocalProtocolError(f"host {name!r} has no routes: it could only answer 404")
            key = name.lower().encode()
            if key in self._by_name:
                raise LocalProtocolError(f"host {name!r} is there twice: case makes no difference")
            self._by_name[key] = Routes(routes)
        self.named = bool(self._by_name)

    def find(self, headers: list[tuple[bytes, bytes]]) -> Routes[T]:
        """Return the routes of the host that a request is for, by its header fields, whose names are in lower case."""
        for name, value in headers:
            if name == b"host":
                return self._of(value)
        return self.default

    def _of(self, value: bytes) -> Routes[T]:
        host = value.lower()
        if host.startswith(b"["):
            return self._by_name.get(host[: host.find(b"]") + 1], self.default)
        host = host.partition(b":")[0].removesuffix(b".")
        if len(host) > _MAX_NAME:
            return self.default
        while host:
            found = self._by_name.get(host)
            if found is not None:
                return found
            host = host.partition(b".")[2]
        return self.default
