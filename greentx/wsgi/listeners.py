"""What a WSGI server may be told to listen on, and the Transceiver that is made for it.

=============================  =============================================================================
*listener*                     front end
=============================  =============================================================================
``(host, port)``, ``':8000'``  a front end of our own on that address, over ``ipc://`` sockets: *front_end* says which
``('', port)``, a port         the same, on IPv6 and IPv4 (where there is no IPv6, on IPv4); as in gevent ``':8000'``
                               is IPv4 alone, and the ``REMOTE_ADDR`` of an IPv4 client begins with ``::ffff:``
a bound socket                 the same. The embedded front end listens on it; for a ``mongrel2`` it is closed to make
                               room, so connections that waited there are reset
``'unix:/run/app.sock'``       the embedded front end on a Unix socket, with ``,mode=660`` behind it for its file; the
                               same for a path, and for a bound Unix socket
``(sender, pull, pub)``        the Mongrel2 whose handler entry that is
``'mongrel2://sender@host'``   the same, as a URL: ``?pull=9999&pub=9998`` are ports of *host*, or endpoints; and
                               ``&control=ipc:///...`` is Mongrel2's control port
a ``Transceiver``              whatever it is connected to
a ``Node``                     that of the relay's API, next to other Nodes
=============================  =============================================================================

Mongrel2 listens on TCP only (probed): with ``front_end="mongrel2"`` a Unix socket is a ``ValueError``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

from gevent.baseserver import parse_address

from ..edge import Handler, Keeper
from ..edge.addresses import every_host, family, numeric_host
from ..edge.choice import choose, make_front_end
from ..edge.listen_address import ListenAddress
from ..errors import LocalProtocolError
from ..handler.pinger import PING_SECONDS
from ..handler.transceiver import Transceiver
from ..protocol.bounds import MAX_PENDING_BYTES, MAX_QUEUE_BYTES
from ..protocol.websocket.origins import Allowed
from ..relay import Node
from ..transport.endpoints import Address, bind_endpoint, connect_endpoint

__all__ = [
    "MAX_MESSAGE_SIZE",
    "SEND_TIMEOUT",
    "SETTINGS",
    "BoundAddress",
    "EntryAddress",
    "Listener",
    "Listens",
    "MongrelListener",
    "Options",
    "TcpListener",
    "TransceiverListener",
    "control_options",
    "make_listener",
    "parse_url",
]

log = logging.getLogger("greentx.wsgi")

#: The settings of our own front end, over those of :data:`greentx.edge.config.DEFAULT_SETTINGS`.
SETTINGS: Mapping[str, int | str] = {
    # Without it 16 messages may wait for a browser and it is not known how many do; with it Mongrel2 says what it
    # wrote, so that a greenlet that writes to a slow browser can be made to wait.
    "download.flow_control": 1,
    # A large body comes piece by piece, as the application reads it. It is not written to a disk first.
    "upload.stream": 1,
    # Larger ones are streamed, in pieces of this size, so it is also what an unread upload costs.
    "limits.content_length": 262144,
    # URLs with { } ^ are answered 400 otherwise; browsers send them as they are.
    "request.relaxed": 1,
    # A proxy in front of us knows better who the client is.
    "no_clobber_xff": 1,
}

#: The default limit of a WebSocket message, in bytes. gevent-websocket has no limit and simple-websocket none of its
#: own, so applications written for these rely on more than the 1 MiB of a Transceiver.
#: Mongrel2 has none either, but keeps a message in memory as we do, so there has to be one.
MAX_MESSAGE_SIZE = 16 * 1024 * 1024

#: Seconds over which a browser has to read, and that a handler waits for a front end that stands still. As nginx has
#: it: a client that pauses a download for longer asks for the rest of it again.
SEND_TIMEOUT = 60.0

# How long our own Mongrel2 may take to subscribe, once it has bound its sockets.
_READY_SECONDS = 5.0

# What a Transceiver is to know of its control socket.
_CONTROL_OPTIONS = frozenset(
    {"rep_port", "rep_ip", "control_allow", "curve_secret", "curve_allow", "max_connections", "allow_connections"}
)

_SSL_FILES = ("certfile", "keyfile")


class _Socket(Protocol):
    """A bound socket, the standard library's or gevent's."""

    def accept(self) -> Any: ...
    def getsockname(self) -> Any: ...


#: What may be listened on, for type checkers; the table is in the module. The tuple of three is a handler entry.
Listens = str | int | tuple[str, int] | tuple[str, int, int, int] | tuple[str, Address, Address] | _Socket | Transceiver

# Passed by those who call ssl.wrap_socket, and true of every listener.
_SSL_OF_COURSE = {"server_side": True, "do_handshake_on_connect": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a WSGI server says of the Transceiver that is made for it; what is not said here is as there.

    Attributes:
        max_message_size, max_queue_bytes, max_pending_bytes, upload_store, origins, shared: As for a Transceiver.
        ping_timeout: The same; with a front end of our own never more than half of its ``limits.min_ping``.
        control: What it is to know of its control socket: ``rep_port`` (9997), ``rep_ip``, ``control_allow``,
            ``curve_secret``, ``curve_allow``, ``max_connections``, ``allow_connections``. ``None``: there is none.
    """

    max_message_size: int | None = MAX_MESSAGE_SIZE
    max_queue_bytes: int = MAX_QUEUE_BYTES
    max_pending_bytes: int = MAX_PENDING_BYTES
    ping_timeout: float | None = PING_SECONDS
    upload_store: str | None = None
    origins: Allowed = None
    control: Mapping[str, Any] | None = None
    shared: bool = False

    def given(self) -> dict[str, Any]:
        """Return those that are not the defaults."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != getattr(type(self), name)}

    def make(self, sender: str, pull_addr: Address, pub_addr: Address, **more: Any) -> Transceiver:
        """Return a Transceiver with these options; *more* is of this server alone.

        Raises:
            LocalProtocolError: (a ``ValueError``) As Transceiver.
            ValueError: The same, or *control* has another option.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        control = values.pop("control")
        if control is None:
            values["rep_port"] = False
        else:
            unknown = sorted(set(control) - _CONTROL_OPTIONS)
            if unknown:
                raise ValueError(
                    f"control has no {', '.join(unknown)}: there are {', '.join(sorted(_CONTROL_OPTIONS))}"
                )
            values.update(control)
        return Transceiver(sender, pull_addr, pub_addr, **{**values, "send_timeout": SEND_TIMEOUT, **more})


class Listener:
    """Where requests come from, from :meth:`open` to :meth:`close`; may be opened again.

    Attributes:
        address: ``(host, port)`` for a TCP address, with the real port once bound; the path of a Unix socket; else a
            text that names it.
        family: ``socket.AF_INET``, ``AF_INET6`` or ``AF_UNIX``; ``None`` where the front end is somebody else's.
        ssl_enabled: Browsers talk TLS to our own front end.
        owned: The Transceiver is ours to stop.
    """

    address: Any = ""
    family: int | None = None
    ssl_enabled = False
    owned = True
    #: Other processes answer requests of the same browsers.
    multiprocess = False
    #: The front end is ours and ends with us: what it still holds then is not answered.
    owns_front_end = False
    #: Which one is ours, ``"mongrel2"`` or ``"edge"``; ``None``: it is somebody else's.
    front_end: str | None = None

    def bind(self) -> None:
        """Have the front end accept connections; nothing where it is somebody else's. Twice is once."""

    def open(self) -> Transceiver:
        """Return a running Transceiver."""
        raise NotImplementedError

    def close(self) -> None:
        """End the front end that :meth:`bind` began; its Transceiver has been stopped. Twice is once."""


class TcpListener(Listener):
    """A front end of our own, which is started again should it end by itself.

    Args:
        listener: What ``gevent.pywsgi`` accepts: an address, or a bound socket; and a path of a Unix socket.
        certfile, keyfile: PEM files, for TLS.
        settings: Mongrel2's settings by name, over :data:`SETTINGS`.
        options: Of the Transceiver.
        front_end: ``"mongrel2"``, ``"edge"``, or ``"auto"``: the first one where it is installed and can.

    Raises:
        ValueError: The address, a setting or an option is malformed, or a Unix socket for a ``mongrel2``.
        TypeError: It is something else.
        FrontEndNotFound: ``"auto"``, and there is none.

    Attributes:
        process: The front end.
    """

    owns_front_end = True

    def __init__(
        self,
        listener: Any,
        certfile: str | None = None,
        keyfile: str | None = None,
        settings: Mapping[str, int | str] | None = None,
        options: Options = Options(),
        front_end: str = "auto",
    ) -> None:
        self._options = options
        unix = _unix_text(listener)
        is_unix = unix is not None or getattr(listener, "family", None) == socket.AF_UNIX
        self.front_end = choose("edge" if is_unix and front_end == "auto" else front_end)
        if is_unix and self.front_end != "edge":
            raise _not_tcp(listener)
        self._socket: Any = None
        if hasattr(listener, "accept"):
            if hasattr(listener, "do_handshake"):
                raise TypeError(f"expected a regular socket, not {listener!r}: TLS is given by certfile and keyfile")
            self.family = int(listener.family)
            self.address = listener.getsockname()
            self._socket = listener
        else:
            if unix is None:
                self.family, self.address = parse_address(listener)
            else:
                # As a bound socket says it.
                self.family, self.address = int(socket.AF_UNIX), ListenAddress.parse(unix).path
        self.ssl_enabled = certfile is not None
        self._make = partial(
            make_front_end,
            self.front_end,
            # "*" is for OPTIONS, which asks about the server itself.
            {"/": Handler("greentx"), "*": Handler("greentx")},
            settings={**SETTINGS, **(settings or {})},
            certfile=certfile,
            keyfile=keyfile,
            # Mongrel2 has no such limit.
            **({"max_message_size": options.max_message_size} if self.front_end == "edge" else {}),
        )
        # What the embedded front end gets, in place of an address.
        self._handed = self._socket if self.front_end == "edge" and self._socket is not None else unix
        self.process = self._make(**self._place())
        self._keeper = Keeper(self.process)
        self._new()  # checked now, not when the server starts

    def _place(self) -> dict[str, Any]:
        if self._handed is not None:
            return {"listeners": [self._handed]}
        host, port = self.address[0] or "", self.address[1]
        # ":8000" is IPv4 alone, as in gevent.
        return {"bind_addr": every_host() if not host and self.family == socket.AF_INET6 else host, "port": port}

    def _new(self) -> Transceiver:
        (handler,) = self.process.handlers
        assert handler.send_spec is not None and handler.recv_spec is not None
        idle, timeout = self.process.idle_seconds, self._options.ping_timeout
        return self._options.make(
            handler.sender,
            handler.send_spec,
            handler.recv_spec,
            ping_timeout=timeout if idle is None or timeout is None else min(timeout, idle / 2),
            connect_timeout=_READY_SECONDS,
            server_control=self.process.control_spec,
        )

    def bind(self) -> None:
        """Start it. Raises what its ``start`` raises."""
        if self._socket is not None and self._handed is None:
            self._socket.close()
            self._socket = None
        # Where it runs, or is just being started again, this waits until it is ready.
        self.process.start()
        if self._handed is None:
            self._name_address()
        # Here, since a supervisor binds only: its workers are who opens.
        self._keeper.start()

    def _name_address(self) -> None:
        # As a bound socket says it.
        assert self.process.bind_addr is not None
        host = numeric_host(self.process.bind_addr)
        self.family = family(host)
        more = (self.address[2:] or (0, 0)) if self.family == socket.AF_INET6 else ()
        self.address = (host, self.process.port, *more)

    def open(self) -> Transceiver:
        self.bind()
        transceiver = self._new()
        transceiver.start()
        return transceiver

    def close(self) -> None:
        self._keeper.stop()
        # It has reported every answer as written, so nothing is lost; SIGTERM would cost half a second (probed).
        self.process.stop(0)
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        if self._handed is not None:
            # The next start binds the address itself, as gevent does.
            self._handed = f"unix:{self.address}" if self.family == socket.AF_UNIX else None
            self.process = self._make(**self._place())
            self._keeper = Keeper(self.process)


class MongrelListener(Listener):
    """A handler entry of somebody else's Mongrel2.

    Args:
        sender, pull_addr, pub_addr, server_control: As for :class:`~greentx.Transceiver`.
        options: Its others.
    """

    def __init__(
        self,
        sender: str,
        pull_addr: Address,
        pub_addr: Address,
        server_control: Address | None = None,
        options: Options = Options(),
    ) -> None:
        self._options = options
        self._server_control = server_control
        # Made to have it checked; one that was used cannot be told from one that was not.
        self._arguments = (sender, connect_endpoint(pull_addr), connect_endpoint(pub_addr))
        self._new()
        self.address = f"mongrel2://{sender}@{self._arguments[1]}"

    def _new(self) -> Transceiver:
        return self._options.make(*self._arguments, server_control=self._server_control)

    def open(self) -> Transceiver:
        """Return a Transceiver that connects. Does not wait for the server: containers start in any order."""
        transceiver = self._new()
        transceiver.start()
        return transceiver


class TransceiverListener(Listener):
    """A Transceiver or a Node of the application's. Where it does not run yet it is started, and stopped, by us."""

    def __init__(self, transceiver: Transceiver) -> None:
        self.transceiver = transceiver
        self.address = repr(transceiver)
        self.multiprocess = isinstance(transceiver, Node)

    def open(self) -> Transceiver:
        self.owned = not self.transceiver.started
        if self.owned:
            self.transceiver.start()
        return self.transceiver


def make_listener(
    listener: Listens,
    ssl_args: Mapping[str, Any],
    settings: Mapping[str, int | str] | None = None,
    options: Options = Options(),
    front_end: str = "auto",
) -> Listener:
    """Return the :class:`Listener` that *listener* means; the table is in the module.

    Args:
        ssl_args: What is left of the keyword arguments of a ``WSGIServer``.
        settings: Of our own front end.
        options: Of the Transceiver that is made; one that is given as the listener has its own.
        front_end: Which one of our own.

    Raises:
        ValueError: The listener or an argument cannot be served; the message names it.
        TypeError: It is not in the table.
    """
    if isinstance(listener, Transceiver):
        _refuse_options(ssl_args, settings, front_end, f"the front end of {listener!r}")
        for name in options.given():
            raise ValueError(f"{name} belongs to {listener!r}; say it there")
        return TransceiverListener(listener)
    if isinstance(listener, tuple) and len(listener) == 3:
        _refuse_options(ssl_args, settings, front_end, f"the Mongrel2 of {listener!r}")
        return MongrelListener(*listener, options=options)
    if isinstance(listener, str) and "://" in listener and not listener.startswith("unix:"):
        _refuse_options(ssl_args, settings, front_end, f"the Mongrel2 of {listener!r}")
        entry = parse_url(listener)
        return MongrelListener(entry.sender, entry.pull, entry.pub, server_control=entry.control, options=options)
    if options.shared:
        raise ValueError(f"shared: the front end of {listener!r} is ours, and no other process serves it")
    files = dict(ssl_args)
    for name, value in _SSL_OF_COURSE.items():
        if files.get(name) == value:
            del files[name]
    unknown = sorted(set(files) - set(_SSL_FILES))
    if unknown:
        raise ValueError(f"the front end does not take {', '.join(unknown)}: its TLS is given by certfile and keyfile")
    if files and files.get("certfile") is None:
        raise ValueError("TLS needs a certfile")
    return TcpListener(listener, settings=settings, options=options, front_end=front_end, **files)


def _not_tcp(listener: Any) -> ValueError:
    return ValueError(
        f"listener {listener!r} is not a TCP address, and Mongrel2 listens on no other: give one such as "
        "('127.0.0.1', 8000), and have the proxy in front connect to that, or front_end='edge'"
    )


def _unix_text(listener: Any) -> str | None:
    """Return a listener that is the path of a Unix socket as ``unix:/path``; ``None`` for any other."""
    if isinstance(listener, os.PathLike):
        return f"unix:{os.fsdecode(listener)}"
    if isinstance(listener, str) and (listener.startswith("unix:") or "/" in listener):
        return listener if listener.startswith("unix:") else f"unix:{listener}"
    return None


def control_options(
    address: str, networks: Sequence[str] = (), secret: str = "", keys: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return *control* of :class:`Options` out of texts, as options and environment variables have them.

    Args:
        address: ``HOST:PORT``, to bind; port 0 is any free one. Empty: there is no control socket.
        networks: ``control_allow``; none are the default's.
        secret, keys: ``curve_secret`` and ``curve_allow``.

    Raises:
        LocalProtocolError: (a ``ValueError``) The address is malformed, or missing where something else is there.
    """
    if not address:
        if networks or secret or keys:
            raise LocalProtocolError("there is no control socket to be protected: say HOST:PORT of one")
        return None
    host, _, port = address.rpartition(":")
    options: dict[str, Any] = {"rep_ip": host, "rep_port": int(port) if port.isascii() and port.isdecimal() else -1}
    bind_endpoint((host, options["rep_port"]))  # told now if malformed
    if networks:
        options["control_allow"] = tuple(networks)
    if secret:
        options["curve_secret"] = secret
    if keys:
        options["curve_allow"] = keys[0] if len(keys) == 1 else tuple(keys)
    return options


def _refuse_options(
    ssl_args: Mapping[str, Any], settings: Mapping[str, int | str] | None, front_end: str, owner: str
) -> None:
    if front_end != "auto":
        raise ValueError(f"front_end={front_end!r} is about one of our own; there is {owner}")
    if ssl_args:
        raise ValueError(f"{', '.join(sorted(ssl_args))}: TLS belongs to {owner}; configure it there")
    if settings:
        raise ValueError(f"mongrel2_settings belong to {owner}; configure it there")


class EntryAddress(NamedTuple):
    """A handler entry of a Mongrel2, and that server's control port where it is known; endpoints."""

    sender: str
    pull: str
    pub: str
    control: str | None = None

    def add_to(self, transceiver: Transceiver) -> None:
        """Have *transceiver* serve it, too. Raises as ``Transceiver.add_connection``."""
        transceiver.add_connection(self.sender, self.pull, self.pub, server_control=self.control)


def parse_url(url: str) -> EntryAddress:
    """Return what ``mongrel2://sender@host?pull=9999&pub=9998`` names; ``control=`` may follow.

    The ports are Mongrel2's usual ones where left out; in their place endpoints may stand.

    Raises:
        LocalProtocolError: (a ``ValueError``) It is anything else.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    with contextlib.suppress(ValueError):  # a port that is not a number
        if (
            parts.scheme == "mongrel2"
            and parts.username
            and parts.password is None
            and parts.path in ("", "/")
            and not parts.fragment
            and set(query) <= {"pull", "pub", "control"}
            and (parts.hostname or {"pull", "pub"} <= set(query))
            and parts.port is None
        ):
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            values = [
                query.get(name, [str(default)])[-1]
                for name, default in (("pull", Transceiver.PUSH_PORT), ("pub", Transceiver.SUB_PORT))
            ]
            values += query.get("control", [])[-1:]
            endpoints = [value if "://" in value else f"tcp://{host}:{value}" for value in values]
            return EntryAddress(parts.username, *endpoints)
    raise LocalProtocolError(f"listener {url!r} is not of the form mongrel2://sender@host?pull=9999&pub=9998")


class BoundAddress:
    """What a server has as its ``socket`` while it listens. The real one belongs to the front end.

    Attributes:
        family: As :attr:`Listener.family`.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.family = listener.family

    def getsockname(self) -> Any:
        """Return the address that browsers connect to."""
        return self._listener.address

    def fileno(self) -> int:
        """Return -1: the descriptor is in another process."""
        return -1

    def close(self) -> None:
        """Do nothing: the server's ``close()`` ends the front end, once running requests are done."""

    def __repr__(self) -> str:
        return f"<BoundAddress {self._listener.address!r}>"
