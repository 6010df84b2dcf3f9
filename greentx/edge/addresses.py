"""Where a ``mongrel2`` of our own listens: its port and the endpoints of its handlers, chosen once and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import os
from collections.abc import Mapping

from gevent import socket

from ..errors import BindError, LocalProtocolError
from ..transport.endpoints import bind_endpoint, endpoint_address, interface_address
from .config import Handler

__all__ = [
    "Addresses",
    "accepts",
    "check_free",
    "every_host",
    "family",
    "free_port",
    "numeric_host",
    "remove_socket",
    "tcp_address",
]


# What listens everywhere is reached on this machine by the loopback address.
_REACHED_AT = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Addresses:
    """The addresses of one server.

    Those that the caller left open are chosen anew at each attempt to start, since another process may have got them in
    between; once a start succeeded they are known to others, and stay.

    Args:
        routes: Paths and their handlers.
        bind_addr: The address to listen on, or a name for one; ``""`` is every IPv4 address; ``None`` is none.
        port: 0 for a free one.
        transport: ``"ipc"`` or ``"tcp"``: how endpoints are made up for handlers that have none.
        folder: Where ``ipc`` sockets go.

    Raises:
        LocalProtocolError: (a ``ValueError``) *port* is not a port; two handlers have an endpoint in common.

    Attributes:
        port: 0 while none was chosen.
        settled: A start succeeded; set by the owner.
    """

    def __init__(
        self, routes: Mapping[str, Handler], *, bind_addr: str | None, port: int, transport: str, folder: str
    ) -> None:
        # Refuses what is not a port.
        bind_endpoint(("*", port))
        self.port = port
        self.settled = False
        self._bind_addr = bind_addr
        self._wanted_port = port
        self._transport = transport
        self._routes = routes
        # By the handler as the caller gave it: equal entries are one entry, whatever number of routes leads to it.
        self._made_up = {
            handler: _with_ipc_specs(handler, f"ipc://{folder}/{number}") if transport == "ipc" else handler
            for number, handler in enumerate(dict.fromkeys(routes.values()))
        }
        # Found out here, as Mongrel2 would start and never bind the second one.
        specs = self.specs
        if len(specs) != len(set(specs)):
            raise LocalProtocolError(f"two handlers have an endpoint in common, which one of them can bind: {specs}")

    @property
    def routes(self) -> dict[str, Handler]:
        """The handlers by path, with their endpoints; ``None`` in them where those are not known yet."""
        return {path: self._made_up[handler] for path, handler in self._routes.items()}

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, each once, in the order of their first routes."""
        return tuple(self._made_up.values())

    @property
    def specs(self) -> list[str]:
        """The endpoints of the handlers, as far as they are known."""
        return [spec for handler in self.handlers for spec in (handler.send_spec, handler.recv_spec) if spec]

    @property
    def http(self) -> str:
        """``host:port``, for messages."""
        return f"{_bracketed(self._bind_addr or '')}:{self.port}"

    @property
    def host_and_port(self) -> str:
        """``host:port`` of a URL that works on this machine."""
        host = self._bind_addr or ""
        host = _REACHED_AT.get(host, host)
        return f"{_bracketed(host)}:{self.port}"

    def choose(self) -> set[str]:
        """Pick the addresses that are ours to pick, until a start succeeded; return those picked now.

        Raises:
            BindError: The address to listen on is not of this machine.
        """
        if self.settled:
            return set()
        # Returned, so that the caller knows which losses of a race are worth another attempt.
        chosen = set()
        if self._bind_addr is not None and self._wanted_port == 0:
            self.port = free_port(numeric_host(self._bind_addr))
            chosen.add(self.http)
        if self._transport == "tcp":
            for handler in self._made_up:
                specs = [
                    spec or f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
                    for spec in (handler.send_spec, handler.recv_spec)
                ]
                self._made_up[handler] = dataclasses.replace(handler, send_spec=specs[0], recv_spec=specs[1])
                chosen.update(set(specs) - {handler.send_spec, handler.recv_spec})
        return chosen


def _with_ipc_specs(handler: Handler, stem: str) -> Handler:
    return dataclasses.replace(
        handler,
        send_spec=handler.send_spec or f"{stem}.send",
        recv_spec=handler.recv_spec or f"{stem}.recv",
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def numeric_host(name: str) -> str:
    """Return the numeric address that *name* means, ``""`` being every IPv4 address. Raises ``BindError``."""
    # IPv4 first: Mongrel2 binds one address, and "localhost" means 127.0.0.1 to most.
    try:
        found = socket.getaddrinfo(name or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BindError(
            f"{name!r} is not an address to listen on: {error.strerror}", address=name, errno=error.errno
        ) from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def every_host() -> str:
    """Return the address whose listener every client of this machine reaches: ``"::"``, which takes IPv4 as well.

    ``"0.0.0.0"`` where there is no IPv6, or where the kernel keeps IPv4 out of ``"::"``.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        # Mongrel2 leaves it as the kernel has it (net.ipv6.bindv6only; probed).
        if not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            sock.bind(("::1", 0))
            return "::"
    return "0.0.0.0"


def free_port(host: str) -> int:
    """Return a port of *host*, a numeric address, that is free now. Raises ``BindError`` where *host* is not ours."""
    with socket.socket(family(host), socket.SOCK_STREAM) as sock:
        # It is free again when this returns: nothing else can be handed to a process that binds by itself.
        try:
            sock.bind((host, 0))
        except OSError as error:
            raise BindError(f"{host} cannot be bound: {error.strerror}", address=host, errno=error.errno) from error
        return int(sock.getsockname()[1])


def family(host: str) -> int:
    """Return the address family of a numeric address."""
    return int(socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET)


def tcp_address(spec: str) -> tuple[str, int]:
    """Return the numeric host and the port that a ``tcp://`` endpoint to bind means."""
    host, port = endpoint_address(spec)
    if host == "*":
        return "0.0.0.0", port
    # ZeroMQ also reads the name of an interface there.
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return interface_address(host), port
    return host, port


def check_free(spec: str) -> None:
    """Raise ``BindError`` if *spec* cannot be bound. Mongrel2 would go on trying, for SUB sockets without a word."""
    if spec.startswith("ipc://"):
        # ZeroMQ replaces the file of a socket that is in use, and its owner would hear nothing any more.
        if accepts(spec):
            raise BindError(
                f"{spec} cannot be bound: {os.strerror(errno.EADDRINUSE)}", address=spec, errno=errno.EADDRINUSE
            )
        return
    host, port = tcp_address(spec)
    with socket.socket(family(host), socket.SOCK_STREAM) as sock:
        # As ZeroMQ does: connections that linger from the last life do not keep it from binding.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise BindError(f"{spec} cannot be bound: {error.strerror}", address=spec, errno=error.errno) from error


def accepts(spec: str) -> bool:
    """Return whether something listens on *spec*."""
    if spec.startswith("ipc://"):
        path = spec.removeprefix("ipc://")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            return bool(sock.connect_ex(f"\0{path[1:]}" if path.startswith("@") else path) == 0)
    host, port = tcp_address(spec)
    local = _REACHED_AT.get(host, host)
    with socket.socket(family(local), socket.SOCK_STREAM) as sock:
        # A connect to a port where nobody listens, out of that very port, succeeds with itself.
        sock.bind((local, 0))
        return bool(sock.getsockname()[1] != port and sock.connect_ex((local, port)) == 0)


def remove_socket(spec: str | None) -> None:
    """Remove the file that a killed process left of an ``ipc://`` endpoint; other endpoints leave none."""
    # Abstract ones, "ipc://@name", have no file.
    if spec is not None and spec.startswith("ipc:///"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spec.removeprefix("ipc://"))
