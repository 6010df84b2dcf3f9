"""The embedded front end itself: what listens, who is connected, and what handlers say to them."""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from gevent.lock import RLock

from ...errors import LocalProtocolError
from ...protocol.fields import MAX_CONN_IDS
from ...transport.endpoints import bind_endpoint
from ..config import DEFAULT_SETTINGS, SERVER_UUID, Handler, checked_settings
from ..listen_address import ListenAddress
from .hosts import Hosts
from .limits import Limits
from .listeners import Listens, read_listeners
from .patience import Silence, Times
from .running import Configuration, Running
from .tls import TlsFiles

__all__ = ["Edge"]

# The settings of Mongrel2 that mean something here.
_SETTINGS = frozenset(
    {
        "download.flow_control",
        "limits.buffer_size",
        "limits.content_length",
        "limits.handler_targets",
        "limits.header_count",
        "limits.kill_limit",
        "limits.min_ping",
        "limits.min_read_rate",
        "limits.min_write_rate",
        "limits.tick_timer",
        "no_clobber_xff",
        "request.relaxed",
        "ssl.ca_chain",
        "ssl.verify_optional",
        "ssl.verify_required",
        "upload.stream",
        "upload.temp_store",
        "upload.temp_store_mode",
    }
)


class Edge:
    """An HTTP server in this process that speaks Mongrel2's protocol to handlers; a context manager, too.

    To a handler it is a Mongrel2. It is stricter towards browsers, answers 503 itself where no handler is there, and
    sends its notices also where Mongrel2 leaves one out, when it ends a connection by itself.

    Args:
        routes: Paths and the handlers that answer them; ``None`` is ``"/"`` and a handler whose sender is ``greentx``.
            Several routes may lead to one handler. A handler without endpoints gets free ports of 127.0.0.1. Routes of
            JSON sockets begin with ``@``, those of XML sockets with ``<``.
        hosts: The same for hosts of their own, by name; *routes* is of all others, see :class:`~.hosts.Hosts`.
        bind_addr: The address to listen on, or a name for one; ``""`` is every IPv4 address, ``"::"`` every one of
            IPv4 and IPv6 (clients of IPv4 then have addresses as ``::ffff:192.0.2.1``, as with Mongrel2). ``None`` is
            127.0.0.1, and none at all where there are *listeners*.
        port: 0 chooses a free one at the first start, and then keeps it.
        listeners: Where to listen next to that: texts as ``"[::1]:8000"``, ``":8000"``, ``"unix:/run/app.sock"`` (with
            ``,mode=660`` behind it, what its file may; else what the umask leaves), ``"fd://3"``; descriptors; and
            sockets, which are bound, and stay yours. A file that nobody listens on is replaced, and removed at the
            stop. Clients of a Unix socket are proxies: their ``X-Forwarded-For`` is handed on as with
            ``no_clobber_xff``, and ``REMOTE_ADDR`` is 127.0.0.1.
        settings: By Mongrel2's names: bytes of a head (``limits.buffer_size``) and of a body
            (``limits.content_length``), header fields (``limits.header_count``), ids of a reply
            (``limits.handler_targets``); when silent connections end (``limits.min_ping`` and so on, of which all count
            that :class:`~.patience.Silence` has); ``download.flow_control``; what becomes of larger bodies
            (``upload.stream``, ``upload.temp_store``, ``upload.temp_store_mode``); braces in paths
            (``request.relaxed``) and what clients say that they are (``no_clobber_xff``); and certificates of clients,
            see :class:`~.tls.TlsFiles` (``ssl.ca_chain`` and so on).
        certfile: A PEM file with a certificate (chain): TLS 1.2 and 1.3 is spoken then, and nothing else. It is read at
            each start.
        keyfile: A PEM file with its key; ``None`` where *certfile* holds it.
        ssl_context: In place of both, used as it is.
        no_handler_timeout: Seconds that a request waits for a handler to be there; then the answer is 503.
        request_timeout: Seconds that a client has for the head of a request, and for the next piece of its body; then
            the answer is 408.
        half_close_timeout: Seconds that a client waits for the next byte of its answer once it has said that it sends
            nothing more. That may also mean that it has gone: so long the notice is late where an answer is due.
        max_connections: In all; one more is answered 503.
        max_per_address: Of one client address, or network of 64 bits of IPv6; ``None`` is as many as there may be in
            all.
        max_upload: Bytes of a body that is stored or streamed; beyond it the answer is 413. ``None`` is 2 GiB less one
            byte, since Mongrel2 and handlers know no larger ones.
        max_message_size: Bytes of a WebSocket message as it travels; a larger one ends its WebSocket (1009). Handlers
            have limits of their own, a Transceiver 1 MiB by default. ``None`` sets no limit, as in Mongrel2.
        max_kept: Bytes of bodies and messages that are not whole, of all connections together, beyond the first 64 KiB
            of each. The one that would be beyond it ends, with 503 or 1013.
        access_log: Called with a line for each request, without its end (:mod:`~.access_log` has the format): a
            logger's ``info``, or what appends to a file; must not block for long. ``None`` writes none.

    Raises:
        LocalProtocolError: (a ``ValueError``) a value that cannot be used; the message names it.
    """

    def __init__(
        self,
        routes: Mapping[str, Handler] | None = None,
        *,
        hosts: Mapping[str, Mapping[str, Handler]] | None = None,
        bind_addr: str | None = None,
        port: int = 0,
        listeners: Sequence[Listens] = (),
        settings: Mapping[str, int | str] | None = None,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        no_handler_timeout: float = 30.0,
        request_timeout: float = 30.0,
        half_close_timeout: float = 1.0,
        max_connections: int = 10_000,
        max_per_address: int | None = None,
        max_upload: int | None = None,
        max_message_size: int | None = 16 * 1024 * 1024,
        max_kept: int = 256 * 1024 * 1024,
        access_log: Callable[[str], object] | None = None,
    ) -> None:
        handlers = dict({"/": Handler(SERVER_UUID)} if routes is None else routes)
        if not handlers:
            raise LocalProtocolError("routes is empty: a server without a handler cannot answer")
        of_hosts = {name: dict(routes) for name, routes in (hosts or {}).items()}
        Hosts(handlers, of_hosts)
        # It knows what was meant by a name that is mistyped.
        checked = checked_settings(settings, embedded=True)
        # Those that every server is started with say how Mongrel2 works, and what holds here in any case.
        for name in (settings or {}).keys() - _SETTINGS - DEFAULT_SETTINGS.keys():
            raise LocalProtocolError(f"setting {name!r} means nothing to the embedded front end")
        if checked["ssl_ciphers"] != DEFAULT_SETTINGS["ssl_ciphers"]:
            # Ignored it would leave a server with other ciphers than it was told to have.
            raise LocalProtocolError(
                "setting 'ssl_ciphers' has names of Mongrel2's library: give an ssl_context that has its ciphers set"
            )
        self._tls = TlsFiles(certfile, keyfile, ssl_context, checked)
        # Held, so that the descriptors of those that are sockets stay theirs.
        self._given = tuple(listeners)
        self._configuration = Configuration(
            routes=handlers,
            hosts=of_hosts,
            listeners=_addresses(bind_addr, port, self._given),
            limits=Limits.of(checked, max_upload=max_upload, message_size=max_message_size),
            times=Times(
                no_handler=no_handler_timeout,
                head=request_timeout,
                half_close=half_close_timeout,
                silence=Silence.of(checked),
            ),
            admission=(max_connections, max_per_address),
            max_kept=max_kept,
            max_ids=_number(checked, "limits.handler_targets", MAX_CONN_IDS),
            flow_control=_number(checked, "download.flow_control", 0) != 0,
            believes=_number(checked, "no_clobber_xff", 0) != 0,
            tls=None,
            access_log=access_log,
        )
        self._running: Running | None = None
        self._changing = RLock()

    def __repr__(self) -> str:
        state = "stopped" if self._running is None else f"{len(self._running.browsers)} connections"
        return f"<Edge {self.url} {state}>"

    def __enter__(self) -> Edge:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def routes(self) -> dict[str, Handler]:
        """The handlers by path, with their endpoints; ``None`` in them where those are not known yet."""
        return dict(self._configuration.routes)

    @property
    def hosts(self) -> dict[str, dict[str, Handler]]:
        """The same of the hosts that have routes of their own, by name."""
        return {name: dict(routes) for name, routes in self._configuration.hosts.items()}

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, each once, in the order of their first routes; endpoints as in :attr:`routes`."""
        return self._configuration.handlers

    @property
    def url(self) -> str:
        """What to type into a browser on this machine, for the first one of TCP, and with ``/`` at its end; where there
        is none, its first address.
        """
        for one in self._configuration.listeners:
            if one.host is not None:
                host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(one.host, one.host)
                shown = f"[{host}]" if ":" in host else host
                return f"{'https' if self._tls else 'http'}://{shown}:{one.port}/"
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, as texts like those of *listeners*; with port 0 where none was chosen yet."""
        return tuple(str(one) for one in self._configuration.listeners)

    @property
    def port(self) -> int:
        """Of its first address of TCP; 0 while none was chosen, and where there is none."""
        if self._running is not None:
            return next((one.port for one in self._running.listeners if one.port), 0)
        return next((one.port for one in self._configuration.listeners if one.host is not None), 0)

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return self._running is not None

    @property
    def max_connections(self) -> int:
        """As given."""
        return self._configuration.admission[0]

    @property
    def connections(self) -> int:
        """How many browser connections there are."""
        return 0 if self._running is None else len(self._running.browsers)

    def start(self) -> None:
        """Listen, and bind the endpoints; port and endpoints stay the same over every later start.

        Raises:
            BindError: An address is in use, not of this machine, or not permitted; the message names it. Nothing is
                left open.
            OSError: A file of TLS cannot be read.
            LocalProtocolError: One of them is not what it should be.
            ForkError, ThreadError: It is started in the parent process, or in another native thread.
        """
        with self._changing:
            if self._running is not None:
                self._running.check()
                return
            running = Running(dataclasses.replace(self._configuration, tls=self._tls.load()))
            self._configuration = running.settled(self._configuration)
            self._running = running

    def stop(self, timeout: float = 5.0) -> None:
        """Accept nothing more, wait for answers that are due for *timeout* seconds at the most, and close everything.

        WebSockets get close 1001. In a forked child nothing happens to its parent's. It may be started again.

        Raises:
            ThreadError: It was started in another native thread: stop it there.
        """
        with self._changing:
            running = self._running
            if running is None:
                return
            if not running.forked:
                running.check()
            self._running = None
            running.close(timeout)


def _addresses(bind_addr: str | None, port: int, listeners: Sequence[Listens]) -> list[ListenAddress]:
    addresses = read_listeners(listeners)
    if bind_addr is None and addresses:
        if port:
            raise LocalProtocolError(f"port {port} belongs to a bind_addr: give one, or add it to listeners")
        return addresses
    # Refuses what is not a port.
    bind_endpoint(("*", port))
    return [ListenAddress(host="127.0.0.1" if bind_addr is None else bind_addr, port=port), *addresses]


def _number(settings: Mapping[str, int | str], name: str, default: int) -> int:
    value = str(settings.get(name, default))
    if not value.isdecimal():
        raise LocalProtocolError(f"setting {name} is {value!r}, which is not a whole number")
    return int(value)
