"""What the front end listens on: sockets for TCP, Unix sockets, and those that it is given."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import gevent
from gevent import socket

from ...errors import BindError, LocalProtocolError
from ..addresses import family, numeric_host
from ..listen_address import ListenAddress

__all__ = ["Listener", "Listens", "open_listeners", "read_listeners"]

log = logging.getLogger("greentx.edge.front")

_BACKLOG = 1024
_READ = 1
# Connections that are accepted in a row, before others have their turn.
_IN_A_ROW = 64
# Between two tries where nothing can be accepted. Meanwhile they wait in the backlog.
_PAUSE_SECONDS = 0.25
# Of one connection, which has gone before it was accepted, or may not come in: accept(2).
_OF_ONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        getattr(errno, "ENONET", errno.EPROTO),
    }
)


class _Socket(Protocol):
    """A socket that is bound, the standard library's or gevent's; it stays the caller's."""

    def fileno(self) -> int: ...
    def accept(self) -> Any: ...


#: What may be listened on: a text as :meth:`.ListenAddress.parse` reads it, a descriptor, or a socket.
Listens = str | int | _Socket


class Listener:
    """One of them, open.

    Attributes:
        address: With the port that it got.
        is_unix: Who connects is on this machine, and has no address.
        port: Of TCP, 0 for others.
    """

    def __init__(self, sock: socket.socket, address: ListenAddress) -> None:
        self.address = address
        self.is_unix = sock.family == socket.AF_UNIX
        self.port = 0 if self.is_unix else int(sock.getsockname()[1])
        self._sock = sock
        self._is_closed = False
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._watcher: Any = None
        self._file = None if address.path is None else _identity(address.path)

    def start(self, serve: Callable[[Listener, socket.socket, str], None]) -> None:
        """Accept connections; *serve* is called with each, and the client's address. It must not block."""
        self._greenlet = gevent.spawn(self._accept_all, serve)

    def close(self) -> None:
        """Accept none any more. Does not block."""
        self._is_closed = True
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self._sock.close()
        path = self.address.path
        # Another process may have put its own there.
        if path is not None and self._file is not None and _identity(path) == self._file:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def forget(self) -> None:
        """Let go of it in a forked child, which has a copy; the parent goes on with it."""
        if self._watcher is not None:
            self._watcher.stop()
        os.close(self._sock.detach())

    def _accept_all(self, serve: Callable[[Listener, socket.socket, str], None]) -> None:
        sock = self._sock
        hub = gevent.get_hub()
        self._watcher = hub.loop.io(sock.fileno(), _READ)
        is_stuck = False
        try:
            while True:
                hub.wait(self._watcher)
                for _ in range(_IN_A_ROW):
                    try:
                        client, peer = sock.accept()
                    except BlockingIOError:
                        break
                    except OSError as error:
                        # The loop may have told of a client in the turn in which it was closed.
                        if self._is_closed:
                            return
                        if error.errno in _OF_ONE:
                            continue
                        # No descriptors, no memory; or whoever shares the socket has shut it down.
                        if not is_stuck:
                            log.error("%s accepts nothing for now: %s", self, error.strerror)
                        is_stuck = True
                        gevent.sleep(_PAUSE_SECONDS)
                        break
                    is_stuck = False
                    client.settimeout(None)
                    serve(self, client, "127.0.0.1" if self.is_unix else str(peer[0]).partition("%")[0])
        finally:
            self._watcher.close()

    def __repr__(self) -> str:
        return f"<Listener {self.address}>"

    def __str__(self) -> str:
        return str(self.address)


def read_listeners(listeners: Iterable[Listens]) -> list[ListenAddress]:
    """Return them as addresses, without opening any.

    Raises:
        LocalProtocolError: One is none.
    """
    addresses = []
    for one in listeners:
        if isinstance(one, str):
            addresses.append(ListenAddress.parse(one))
        elif isinstance(one, int) and not isinstance(one, bool):
            addresses.append(ListenAddress.parse(f"fd://{one}"))
        elif hasattr(one, "fileno") and hasattr(one, "accept"):
            if one.fileno() < 0:
                raise LocalProtocolError(f"{one!r} cannot be listened on: it is closed")
            addresses.append(ListenAddress(descriptor=one.fileno()))
        else:
            raise LocalProtocolError(
                f"{one!r} cannot be listened on: give an address as text, a descriptor, or a socket"
            )
    return addresses


def open_listeners(addresses: Sequence[ListenAddress]) -> list[Listener]:
    """Open all of them, or none.

    Raises:
        BindError: One is in use, not of this machine, or not permitted; the message names it.
    """
    opened: list[Listener] = []
    try:
        for address in addresses:
            opened.append(_open(address))
    except BaseException:  # raised again
        for one in opened:
            one.close()
        raise
    return opened


def _open(address: ListenAddress) -> Listener:
    try:
        if address.path is not None:
            sock = _bind_unix(address.path, address.mode)
        elif address.descriptor is not None:
            sock = _adopt(address.descriptor)
        else:
            sock, address = _bind_tcp(address)
    except OSError as error:
        raise BindError(
            f"{address} cannot be bound: {error.strerror}", address=str(address), errno=error.errno
        ) from error
    # A connection may have gone by the time that it is accepted.
    sock.settimeout(0.0)
    return Listener(sock, address)


def _bind_tcp(address: ListenAddress) -> tuple[socket.socket, ListenAddress]:
    host = numeric_host(address.host or "")
    sock = socket.socket(family(host), socket.SOCK_STREAM)
    try:
        # Connections that linger from the last life do not keep it from binding.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            # Not as the kernel has it: IPv4 is meant, too.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, address.port))
        sock.listen(_BACKLOG)
    except BaseException:  # raised again
        sock.close()
        raise
    return sock, dataclasses.replace(address, port=sock.getsockname()[1])


def _bind_unix(path: str, mode: int | None) -> socket.socket:
    name = f"\0{path[1:]}" if path.startswith("@") else path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_over(path):
                raise
            os.unlink(path)
            sock.bind(name)
        # Before anybody can connect.
        if mode is not None:
            os.chmod(path, mode)
        sock.listen(_BACKLOG)
    except BaseException:  # raised again
        sock.close()
        raise
    return sock


def _is_left_over(path: str) -> bool:
    """Whether *path* is the file of a Unix socket that nobody listens on, as a process leaves it that is killed."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # Never blocks: a process may listen, and accept nothing.
        sock.settimeout(0.0)
        return bool(sock.connect_ex(path) == errno.ECONNREFUSED)


def _adopt(descriptor: int) -> socket.socket:
    # A copy: the given one stays open, and may be started with again.
    copied = os.dup(descriptor)
    try:
        sock = socket.socket(fileno=copied)
    except BaseException:  # raised again
        os.close(copied)
        raise
    try:
        if sock.type != socket.SOCK_STREAM:
            raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(_BACKLOG)
    except BaseException:  # raised again
        sock.close()
        raise
    return sock


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells the file at *path* from others; ``None`` where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
