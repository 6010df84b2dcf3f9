"""What a WSGI server may be told to listen on, and the Transceiver that comes of it.

=============================  =============================================================================
*listener*                     front end
=============================  =============================================================================
``(host, port)``, ``':8000'``  a ``mongrel2`` of our own on that address, over ``ipc://`` sockets
a bound socket                 the same, on the address of the socket, which is closed to make room
``(sender, pull, pub)``        the Mongrel2 whose handler entry that is
``'mongrel2://sender@host'``   the same, as a URL: ``?pull=9999&pub=9998`` are ports of *host*, or endpoints
a ``Transceiver``              whatever it is connected to
=============================  =============================================================================
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gevent
from gevent.baseserver import parse_address

from ..edge import Handler, Mongrel2
from ..endpoints import Address, connect_endpoint
from ..errors import GreentxError, LocalProtocolError
from ..transceiver import Transceiver

__all__ = [
    "MAX_MESSAGE_SIZE",
    "SETTINGS",
    "BoundAddress",
    "Listener",
    "MongrelListener",
    "TcpListener",
    "TransceiverListener",
    "make_listener",
    "parse_url",
]

log = logging.getLogger("greentx.wsgi")

#: The settings of our own Mongrel2, over those of :data:`greentx.edge.config.DEFAULT_SETTINGS`.
SETTINGS: Mapping[str, int | str] = {
    # Without it 16 messages may wait for a browser and it is not known how many do; with it Mongrel2 says what it
    # wrote, so that whoever writes to a slow browser can be held up.
    "download.flow_control": 1,
    # A large body comes piece by piece, as the application reads it. It is not written to a disk first.
    "upload.stream": 1,
    # Larger ones are streamed, in pieces of this size, so it is also what an unread upload costs.
    "limits.content_length": 262144,
    # Header blocks that arrive in more than five pieces are answered 400 otherwise.
    "limits.client_read_retries": 100,
    # URLs with { } ^ are answered 400 otherwise; browsers send them as they are.
    "request.relaxed": 1,
    # A proxy in front of us knows better who the client is.
    "no_clobber_xff": 1,
}

#: Bytes of a WebSocket message that applications get, where nobody says another number. gevent-websocket has no limit
#: and simple-websocket none of its own, so what comes from there relies on more than the 1 MiB of a Transceiver.
#: Mongrel2 has none either, but keeps a message in memory as we do, so there has to be one.
MAX_MESSAGE_SIZE = 16 * 1024 * 1024

# Between two attempts to start it again, should it end by itself: the first one, and at the most.
_RESTART_SECONDS = 0.1
_MAX_RESTART_SECONDS = 10.0

# How long our own Mongrel2 may take to subscribe, once it has bound its sockets.
_READY_SECONDS = 5.0

_SSL_FILES = ("certfile", "keyfile")
# Passed by those who call ssl.wrap_socket, and true of every listener.
_SSL_OF_COURSE = {"server_side": True, "do_handshake_on_connect": True}


class Listener:
    """Where requests come from, from :meth:`open` to :meth:`close`; may be opened again.

    Attributes:
        address: ``(host, port)`` for a TCP address, with the real port once bound; else a text that names it.
        family: ``socket.AF_INET`` or ``AF_INET6``; ``None`` where there is no TCP address.
        ssl_enabled: Browsers talk TLS to our own front end.
        owned: The Transceiver is ours to stop.
    """

    address: Any = ""
    family: int | None = None
    ssl_enabled = False
    owned = True
    #: The front end goes with us: what it still holds then is answered by nobody.
    goes_with_us = False

    def bind(self) -> None:
        """Have the front end accept connections; nothing where it is somebody else's. Twice is once."""

    def open(self) -> Transceiver:
        """Return a running Transceiver."""
        raise NotImplementedError

    def close(self) -> None:
        """End the front end that :meth:`bind` began; its Transceiver has been stopped. Twice is once."""


class TcpListener(Listener):
    """A ``mongrel2`` of our own, which is started again should it end by itself.

    Args:
        listener: What ``gevent.pywsgi`` takes: an address, or a bound socket.
        certfile, keyfile: PEM files, for TLS.
        settings: Mongrel2's settings by name, over :data:`SETTINGS`.
        max_message_size: As for :class:`~greentx.Transceiver`.

    Raises:
        ValueError: The address or a setting is malformed.
        TypeError: It is none of these.
    """

    goes_with_us = True

    def __init__(
        self,
        listener: Any,
        certfile: str | None = None,
        keyfile: str | None = None,
        settings: Mapping[str, int | str] | None = None,
        max_message_size: int | None = MAX_MESSAGE_SIZE,
    ) -> None:
        self._max_message_size = max_message_size
        self._socket: Any = None
        self._keeper: gevent.Greenlet[..., None] | None = None
        if hasattr(listener, "accept"):
            if hasattr(listener, "do_handshake"):
                raise TypeError(f"expected a regular socket, not {listener!r}: TLS is given by certfile and keyfile")
            self.family = int(listener.family)
            if self.family not in (socket.AF_INET, socket.AF_INET6):
                raise ValueError(f"{listener!r}: Mongrel2 listens on TCP addresses only")
            self.address = listener.getsockname()
            self._socket = listener
        else:
            self.family, self.address = parse_address(listener)
        self.ssl_enabled = certfile is not None
        host, port = self.address[0], self.address[1]
        self.mongrel2 = Mongrel2(
            {"/": Handler("greentx")},
            bind_addr=host,
            port=port,
            settings={**SETTINGS, **(settings or {})},
            certfile=certfile,
            keyfile=keyfile,
        )

    def bind(self) -> None:
        """Start it. Raises what ``Mongrel2.start`` raises."""
        if self.mongrel2.started:
            return
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.mongrel2.start()
        self.address = (self.address[0], self.mongrel2.port, *self.address[2:])

    def open(self) -> Transceiver:
        self.bind()
        (handler,) = self.mongrel2.handlers
        assert handler.send_spec is not None and handler.recv_spec is not None
        transceiver = Transceiver(
            handler.sender,
            handler.send_spec,
            handler.recv_spec,
            rep_port=False,
            connect_timeout=_READY_SECONDS,
            # A client that pauses a download has not gone.
            send_timeout=None,
            max_message_size=self._max_message_size,
        )
        transceiver.start()
        self._keeper = gevent.spawn(self._keep_running)
        return transceiver

    def _keep_running(self) -> None:
        """Start it again where it ended by itself; the Transceiver finds it under the same endpoints."""
        delay = _RESTART_SECONDS
        while True:
            began = time.monotonic()
            self.mongrel2.wait()
            if time.monotonic() - began > _MAX_RESTART_SECONDS:
                delay = _RESTART_SECONDS
            gevent.sleep(delay)
            delay = min(2 * delay, _MAX_RESTART_SECONDS)
            try:
                self.mongrel2.start()
            except (GreentxError, OSError) as error:
                log.error("the front end at %s cannot be started again: %s", self.address, error)
            else:
                log.warning("the front end at %s was started again", self.address)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper = None
        # It has said of every answer that it wrote it; asked politely it would take half a second to end.
        self.mongrel2.stop(0)


class MongrelListener(Listener):
    """A handler entry of somebody else's Mongrel2.

    Args:
        sender, pull_addr, pub_addr, max_message_size: As for :class:`~greentx.Transceiver`.
    """

    def __init__(
        self, sender: str, pull_addr: Address, pub_addr: Address, max_message_size: int | None = MAX_MESSAGE_SIZE
    ) -> None:
        self._max_message_size = max_message_size
        # Made to have it checked; one that was used cannot be told from one that was not.
        self._arguments = (sender, connect_endpoint(pull_addr), connect_endpoint(pub_addr))
        self._new()
        self.address = f"mongrel2://{sender}@{self._arguments[1]}"

    def _new(self) -> Transceiver:
        return Transceiver(*self._arguments, rep_port=False, send_timeout=None, max_message_size=self._max_message_size)

    def open(self) -> Transceiver:
        """Return a Transceiver that connects. Does not wait for the server: containers start in any order."""
        transceiver = self._new()
        transceiver.start()
        return transceiver


class TransceiverListener(Listener):
    """A Transceiver of the application's. Where it does not run yet it is started, and then stopped, by us."""

    def __init__(self, transceiver: Transceiver) -> None:
        self.transceiver = transceiver
        self.address = repr(transceiver)

    def open(self) -> Transceiver:
        self.owned = not self.transceiver.started
        if self.owned:
            self.transceiver.start()
        return self.transceiver


def make_listener(
    listener: Any,
    ssl_args: Mapping[str, Any],
    settings: Mapping[str, int | str] | None = None,
    max_message_size: int | None = MAX_MESSAGE_SIZE,
) -> Listener:
    """Return the :class:`Listener` that *listener* means; the table is in the module.

    Args:
        ssl_args: What is left of the keyword arguments of a ``WSGIServer``.
        settings: Of our own Mongrel2.
        max_message_size: Bytes of a WebSocket message; ``None`` is no limit. A Transceiver has its own.

    Raises:
        ValueError: The listener or an argument cannot be served; the message names it.
        TypeError: It is none of what is in the table.
    """
    if isinstance(listener, Transceiver):
        _refuse_options(ssl_args, settings, f"the front end of {listener!r}")
        if max_message_size != MAX_MESSAGE_SIZE:
            raise ValueError(f"max_message_size belongs to {listener!r}; say it there")
        return TransceiverListener(listener)
    if isinstance(listener, tuple) and len(listener) == 3:
        _refuse_options(ssl_args, settings, f"the Mongrel2 of {listener!r}")
        return MongrelListener(*listener, max_message_size=max_message_size)
    if isinstance(listener, str) and "://" in listener:
        _refuse_options(ssl_args, settings, f"the Mongrel2 of {listener!r}")
        return MongrelListener(*parse_url(listener), max_message_size=max_message_size)
    files = dict(ssl_args)
    for name, value in _SSL_OF_COURSE.items():
        if files.get(name) == value:
            del files[name]
    unknown = sorted(set(files) - set(_SSL_FILES))
    if unknown:
        raise ValueError(f"Mongrel2 does not take {', '.join(unknown)}: its TLS is given by certfile and keyfile")
    if files and files.get("certfile") is None:
        raise ValueError("TLS needs a certfile")
    return TcpListener(listener, settings=settings, max_message_size=max_message_size, **files)


def _refuse_options(ssl_args: Mapping[str, Any], settings: Mapping[str, int | str] | None, owner: str) -> None:
    if ssl_args:
        raise ValueError(f"{', '.join(sorted(ssl_args))}: TLS belongs to {owner}; configure it there")
    if settings:
        raise ValueError(f"mongrel2_settings belong to {owner}; configure it there")


def parse_url(url: str) -> tuple[str, str, str]:
    """Return the sender and the two endpoints of ``mongrel2://sender@host?pull=9999&pub=9998``.

    The ports are Mongrel2's usual ones where left out; in their place endpoints may stand.

    Raises:
        LocalProtocolError: (a ``ValueError``) It is anything else.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    with contextlib.suppress(ValueError):  # a port that is no number
        if (
            parts.scheme == "mongrel2"
            and parts.username
            and parts.password is None
            and parts.path in ("", "/")
            and not parts.fragment
            and set(query) <= {"pull", "pub"}
            and (parts.hostname or len(query) == 2)
            and parts.port is None
        ):
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            values = [
                query.get(name, [str(default)])[-1]
                for name, default in (("pull", Transceiver.PUSH_PORT), ("pub", Transceiver.SUB_PORT))
            ]
            pull, pub = (value if "://" in value else f"tcp://{host}:{value}" for value in values)
            return parts.username, pull, pub
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
