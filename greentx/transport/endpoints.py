"""Addresses in, ZeroMQ endpoint strings out; and this machine's own addresses.

An address is ``(host, port)``, an endpoint such as ``tcp://host:port`` or ``ipc://path``, or text: ``host:port``.
Everything is checked here, so that a slip is told by its value and not by an errno from ZeroMQ later on. Names are not
looked up: ZeroMQ does that when it connects.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, NoReturn

import netifaces

from ..errors import LocalProtocolError, TransportError

__all__ = [
    "Address",
    "bind_endpoint",
    "connect_endpoint",
    "default_address",
    "endpoint_address",
    "interface_address",
    "is_ipv6",
    "is_this_machine",
]

#: What the functions of this module that make endpoints accept.
Address = str | tuple[str, int]

# Lower case only, as ZeroMQ compares it.
_SCHEME = re.compile(r"([a-z]+)://(.*)", re.DOTALL)
# Handed to ZeroMQ as they are; whether it was built with them is its own to say.
_OTHER_SCHEMES = frozenset({"epgm", "norm", "pgm", "tipc", "vmci", "ws", "wss"})
# Underscores are not allowed in host names by RFC 1123, but Docker Compose makes names with them.
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?", re.ASCII)
# ASCII: int() would accept the digits of any script.
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
# sizeof(sockaddr_un.sun_path) on Linux less the final NUL; ZeroMQ reports a longer path as ENAMETOOLONG.
_MAX_IPC_PATH = 107


def connect_endpoint(addr: Address, default_port: int | None = None) -> str:
    """Return the endpoint string to connect to.

    Args:
        addr: ``(host, port)``; ``"host:port"``; ``"host"`` where there is a *default_port*; or an endpoint. An IPv6
            address may stand in brackets, and has to where a port follows it. ``source;destination`` is allowed in a
            ``tcp://`` endpoint, as ZeroMQ has it.
        default_port: Used where *addr* names no port.

    Raises:
        LocalProtocolError: (a ``ValueError``) *addr* is not one of these, its port is not 1 to 65535, its host is
            ``*``, or it is ``inproc://``, which joins sockets of one context only.
    """
    return _endpoint(addr, default_port, bind=False)


def bind_endpoint(addr: Address, default_port: int | None = None) -> str:
    """Return the endpoint string to bind; as :func:`connect_endpoint`, but host ``*`` (every interface) and port 0 too.

    Port 0 becomes ``*``: the system picks a free one, which :func:`endpoint_address` reads off ``LAST_ENDPOINT``.
    """
    return _endpoint(addr, default_port, bind=True)


def endpoint_address(endpoint: str | bytes) -> tuple[str, int]:
    """Return ``(host, port)`` of a ``tcp://`` endpoint, such as ``LAST_ENDPOINT`` gives after a bind.

    IPv6 comes without brackets; an IPv4 address that a dual-stack socket reports as ``::ffff:127.0.0.1`` as IPv4.

    Raises:
        LocalProtocolError: *endpoint* is not ``tcp://`` or has no port number.
    """
    text = endpoint.rstrip(b"\0").decode("latin-1") if isinstance(endpoint, bytes) else endpoint
    scheme, rest = _split_scheme(text)
    if scheme != "tcp":
        raise LocalProtocolError(f"endpoint {text!r} has no host and port: only tcp:// has")
    host, port = _split_port(rest, text)
    if port is None:
        raise LocalProtocolError(f"endpoint {text!r} has no port: write tcp://host:port")
    # A dual-stack socket reports IPv4 peers and addresses in IPv6 form; callers compare with what they configured.
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        mapped = None
    return (host if mapped is None else str(mapped)), _number(port, text, bind=False)


def interface_address(name: str) -> str:
    """Return the first IPv4 address of the network interface *name*, such as ``eth0``.

    Raises:
        LocalProtocolError: There is no such interface, or it has no IPv4 address. The message lists the interfaces.
    """
    found = _interfaces()
    if found.get(name):
        return found[name][0]
    why = "has no IPv4 address" if name in found else "does not exist"
    raise LocalProtocolError(f"interface {name!r} {why}; there are: {_listed(found)}")


def default_address(preferred: str = "eth0") -> str:
    """Return the IPv4 address that other machines most likely reach this one by.

    That is the first one of the interface *preferred*, else of the interface that the default route leads over.

    Raises:
        TransportError: Neither has one. The message lists the interfaces found.
    """
    found = _interfaces()
    # The default route and not the first interface: on a machine with containers that one may be a bridge.
    gateways: Any = netifaces.gateways()  # typed as a union of all that it may hold
    route = gateways.get("default", {}).get(netifaces.AF_INET)
    for name in (preferred, route[1] if route else ""):
        if found.get(name):
            return found[name][0]
    raise TransportError(
        f"no IPv4 address on {preferred!r} and none on a default route; there are: {_listed(found)}; name one with ip="
    )


def is_this_machine(address: str) -> bool:
    """Return whether an IPv4 address, as text, is one of this machine's."""
    return address == "127.0.0.1" or any(address in found for found in _interfaces().values())


def _interfaces() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in netifaces.interfaces():
        try:
            addresses = netifaces.ifaddresses(name)
        except ValueError:
            continue  # it went away since it was listed
        found[name] = [one["addr"] for one in addresses.get(netifaces.AF_INET, ()) if "addr" in one]
    return found


# For messages: what there is, so that nobody has to look it up.
def _listed(found: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} ({' '.join(found[name]) or 'no IPv4'})" for name in sorted(found)) or "none"


def _endpoint(addr: Address, default_port: int | None, *, bind: bool) -> str:
    if isinstance(addr, (tuple, list)):
        # A list too: addresses come from JSON, as on the control socket.
        if len(addr) != 2 or not isinstance(addr[0], str):
            _refuse(addr)
        return _tcp(_unbracketed(addr[0]), addr[1], addr, bind=bind)
    if not isinstance(addr, str):
        _refuse(addr)
    if "://" not in addr:
        host, text = _split_port(addr, addr)
        port = default_port if text is None else _number(text, addr, bind=bind)
        if port is None:
            raise LocalProtocolError(f"address {addr!r} has no port: write 'host:port' or (host, port)")
        return _tcp(host, port, addr, bind=bind)
    scheme, rest = _split_scheme(addr)
    if scheme == "tcp":
        # "source:port;host:port": ZeroMQ binds the local end before it connects (zmq_tcp(7)).
        source, semicolon, rest = rest.rpartition(";")
        host, text = _split_port(rest, addr)
        if text is None:
            raise LocalProtocolError(f"address {addr!r} has no port: write 'tcp://host:port'")
        if semicolon and (bind or not source):
            raise LocalProtocolError(f"address {addr!r} has a ';': that is 'source:port;host:port', to connect only")
        endpoint = _tcp(host, _number(text, addr, bind=bind), addr, bind=bind)
        return f"tcp://{source}{semicolon}{endpoint.removeprefix('tcp://')}"
    if scheme == "ipc":
        # "*" has ZeroMQ make up a path, which nobody could connect to by that name.
        if not rest or (rest == "*" and not bind) or "\0" in rest:
            raise LocalProtocolError(f"address {addr!r} names no file: write 'ipc:///path/to/socket'")
        if len(rest.encode()) > _MAX_IPC_PATH:
            raise LocalProtocolError(
                f"the path of {addr!r} has {len(rest.encode())} bytes, limit {_MAX_IPC_PATH}: use a shorter one"
            )
    return addr


def _split_scheme(addr: str) -> tuple[str, str]:
    match = _SCHEME.fullmatch(addr)
    scheme = match[1] if match else ""
    if not match or scheme not in ("ipc", "tcp", *_OTHER_SCHEMES):
        if scheme == "inproc":
            raise LocalProtocolError(
                f"address {addr!r} cannot be reached: inproc:// joins sockets of one context, and each transceiver and "
                "server has its own; use ipc:// or tcp://"
            )
        raise LocalProtocolError(
            f"address {addr!r} has no transport that ZeroMQ knows: write 'tcp://...' or 'ipc://...'"
        )
    return scheme, match[2]


def _split_port(text: str, addr: Address) -> tuple[str, str | None]:
    # "host", "host:port", "[v6]", "[v6]:port" or a bare IPv6 address, which has more than one colon and no port.
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            _refuse(addr)
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        if not is_ipv6(text):
            _refuse(addr)
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _unbracketed(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _number(text: str, addr: Address, *, bind: bool) -> int:
    if text == "*" and bind:
        return 0
    if not _PORT.fullmatch(text):
        raise LocalProtocolError(f"port {text!r} of address {addr!r} is not a number: give one from 1 to 65535")
    return _check_port(int(text), addr, bind=bind)


def _check_port(port: object, addr: Address, *, bind: bool) -> int:
    lowest = 0 if bind else 1
    # True is an int, and would be port 1.
    if not isinstance(port, int) or isinstance(port, bool) or not lowest <= port <= 65535:
        raise LocalProtocolError(
            f"port {port!r} of address {addr!r} is not a port: give a number from {lowest} to 65535"
        )
    return port


def _tcp(host: str, port: object, addr: Address, *, bind: bool) -> str:
    number = _check_port(port, addr, bind=bind)
    if not host:
        raise LocalProtocolError(f"address {addr!r} has no host: write {'*' if bind else '127.0.0.1'!r} or an address")
    if host == "*":
        if not bind:
            raise LocalProtocolError(f"address {addr!r} is for binding: name the host to connect to")
    elif is_ipv6(host):
        # Brackets keep its colons apart from the port's.
        host = f"[{host}]"
    elif not _NAME.fullmatch(host):
        raise LocalProtocolError(f"host {host!r} of address {addr!r} is neither a host name nor an IP address")
    return f"tcp://{host}:{number or '*'}"


def is_ipv6(host: str) -> bool:
    """Whether *host* is an IPv6 address, with or without the name of a zone."""
    try:
        zone = ipaddress.IPv6Address(host).scope_id
    except ValueError:
        return False
    # Python takes anything for a zone: brackets and a second address, too, which libzmq would read as such.
    return zone is None or _ZONE.fullmatch(zone) is not None


def _refuse(addr: object) -> NoReturn:
    raise LocalProtocolError(f"{addr!r} is not an address: write (host, port), 'tcp://host:port' or 'ipc://path'")
