"""Host names become numeric addresses here, before ZeroMQ gets them.

ZeroMQ resolves a name in its one I/O thread: while that waits for an answer, every socket of the context stands still
(probed). gevent's resolver keeps waiting only the greenlet that asks.
"""

from __future__ import annotations

import ipaddress
import re

import gevent
from gevent import socket
from gevent.event import Event

from ..errors import TransportError

__all__ = ["Names", "UnknownHost", "host_name"]

# What ZeroMQ binds before it connects ("source;") is an address or an interface of this machine, never looked up.
_TCP = re.compile(r"(tcp://(?:[^;]*;)?)([^\[\]:;]+)(:[0-9]+)")


class UnknownHost(TransportError):
    """A host name could not be resolved, for now. The message has the name and the endpoint."""


def host_name(endpoint: str) -> str | None:
    """Return the name that has to be resolved before *endpoint* can be connected to; ``None`` for an address."""
    match = _TCP.fullmatch(endpoint)
    if match is None:
        return None
    try:
        ipaddress.ip_address(match[2])
    except ValueError:
        return match[2]
    return None


class Names:
    """Resolves the names of one context's endpoints. Greenlets that ask for the same name share one answer."""

    def __init__(self) -> None:
        self._asked: dict[str, gevent.Greenlet[[str], str | OSError]] = {}

    def resolve(self, endpoint: str, *, timeout: float | None = None, unless: Event | None = None) -> str:
        """Return *endpoint* with a numeric address, IPv4 where the name has one; asked anew each time.

        Blocks this greenlet, and nothing else, where there is a name.

        Args:
            timeout: Seconds to wait for the answer; ``None``: for as long as the system's resolver does.
            unless: The wait ends when this is set.

        Raises:
            UnknownHost: There is no such name at present, or no answer in time.
        """
        name = host_name(endpoint)
        if name is None:
            return endpoint
        asked = self._asked.get(name)
        if asked is None or asked.dead:
            # A greenlet of its own: the resolver goes on where the one that asks is killed, or waits no longer.
            asked = self._asked[name] = gevent.spawn(_look_up, name)
        gevent.wait((asked,) if unless is None else (asked, unless), timeout, count=1)
        answer = asked.value if asked.dead else None
        if asked.dead and self._asked.get(name) is asked:
            del self._asked[name]
        if not isinstance(answer, str):
            why = answer.strerror or answer if isinstance(answer, OSError) else "no answer yet"
            errno = answer.errno if isinstance(answer, OSError) else None
            raise UnknownHost(f"the name {name!r} of {endpoint} is not resolved: {why}", address=endpoint, errno=errno)
        match = _TCP.fullmatch(endpoint)
        assert match is not None
        return f"{match[1]}{f'[{answer}]' if ':' in answer else answer}{match[3]}"

    def close(self) -> None:
        """Nobody waits for an answer any more. Does not block."""
        gevent.killall(list(self._asked.values()), block=False)
        self._asked.clear()


def _look_up(name: str) -> str | OSError:
    # Returned, and not raised: several may wait for it, and the hub would print it.
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError as error:  # a label that is empty, or longer than 63 characters
        return OSError(0, str(error))
    # IPv4 first, as ZeroMQ itself asks for by default.
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
