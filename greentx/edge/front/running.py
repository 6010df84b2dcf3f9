"""What is open from one start of the front end to its stop: entries for handlers, listeners, and browsers."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Mapping, Sequence

import gevent
from gevent import socket

from ...transport import Context
from ..config import Handler
from ..listen_address import ListenAddress
from .access_log import AccessLog
from .admission import Admission
from .browsers import Browsers
from .budget import Budget
from .entry import Entry
from .hosts import Hosts
from .limits import Limits
from .listeners import Listener, open_listeners
from .patience import Times
from .replies import Replies

__all__ = ["Configuration", "Running"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """What one start is told.

    Attributes:
        routes: Handlers by route, of the default host.
        hosts: The same of other hosts, by name.
        listeners: Where to listen.
        limits, times: As there.
        admission: Bounds on connections, in all and of one address.
        max_kept: Bytes of what is not whole, of all of them.
        max_ids: Of one reply.
        flow_control: ``download.flow_control``.
        believes: ``no_clobber_xff``.
        tls: What browsers have to speak.
        access_log: Called with its lines; ``None`` for none.
    """

    routes: Mapping[str, Handler]
    hosts: Mapping[str, Mapping[str, Handler]]
    listeners: Sequence[ListenAddress]
    limits: Limits
    times: Times
    admission: tuple[int, int | None]
    max_kept: int
    max_ids: int
    flow_control: bool
    believes: bool
    tls: ssl.SSLContext | None
    access_log: Callable[[str], object] | None = None

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """Each once, in the order of their first routes."""
        of_hosts = [handler for routes in self.hosts.values() for handler in routes.values()]
        return tuple(dict.fromkeys([*self.routes.values(), *of_hosts]))


class Running:
    """All of it, open.

    Attributes:
        browsers: That are connected.
        entries: By the handlers as they are configured.
        listeners: In their order.

    Raises:
        BindError: An address cannot be bound. Nothing is left open.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._context = Context("Edge", lambda: self.close(0), linger=0, on_fork=self._forget)
        self.entries: dict[Handler, Entry] = {}
        self.listeners: list[Listener] = []
        replies = Replies(configuration.max_ids)
        self.browsers = Browsers(
            Admission(*configuration.admission),
            replies,
            configuration.limits,
            configuration.times,
            Budget(configuration.max_kept),
            configuration.tls,
            flow_control=configuration.flow_control,
            access_log=None if configuration.access_log is None else AccessLog(configuration.access_log),
        )
        try:
            self._open(configuration, replies)
        except BaseException:  # raised again
            self.close(0)
            raise

    def _forget(self) -> None:
        for listener in self.listeners:
            listener.forget()
        self.browsers.forget()

    def _open(self, configuration: Configuration, replies: Replies) -> None:
        scheme = b"http" if configuration.tls is None else b"https"
        for handler in configuration.handlers:
            self.entries[handler] = Entry(
                self._context, handler, replies.reply, scheme, believes=configuration.believes
            )
        hosts = _hosts(configuration, self.entries)
        # Who can open a Unix socket is let in by the mode of its file: a proxy, which knows who its client is.
        unix_hosts = _hosts(configuration, {handler: entry.believing() for handler, entry in self.entries.items()})
        self.listeners = open_listeners(configuration.listeners)

        def accept(listener: Listener, sock: socket.socket, address: str) -> None:
            is_unix = listener.is_unix
            self.browsers.accept(sock, address, unix_hosts if is_unix else hosts, is_unix=is_unix)

        for listener in self.listeners:
            listener.start(accept)

    def settled(self, configuration: Configuration) -> Configuration:
        """Return it with the endpoints and ports that were found."""

        def of(routes: Mapping[str, Handler]) -> dict[str, Handler]:
            return {path: self.entries[handler].handler for path, handler in routes.items()}

        return dataclasses.replace(
            configuration,
            routes=of(configuration.routes),
            hosts={name: of(routes) for name, routes in configuration.hosts.items()},
            listeners=[one.address for one in self.listeners],
        )

    @property
    def forked(self) -> bool:
        """True in a forked child: it is the parent's."""
        return self._context.forked

    def check(self) -> None:
        """Raise ``ForkError`` in a forked child, ``ThreadError`` in another native thread than the one it is of."""
        self._context.check_thread()

    def close(self, timeout: float) -> None:
        """Accept nothing more, wait for answers that are due for *timeout* seconds at the most, and close all."""
        try:
            # To a forked child nothing belongs of it: the connections are the parent's.
            if self._context.forked:
                return
            for listener in self.listeners:
                listener.close()
            # In a program's last moments the hub itself closes, which can wait for nothing.
            if gevent.getcurrent() is not self._context.hub:
                try:
                    self.browsers.end(timeout)
                finally:
                    for entry in self.entries.values():
                        entry.close()
        finally:
            self._context.close(linger=0)


def _hosts(configuration: Configuration, entries: Mapping[Handler, Entry]) -> Hosts[Entry]:
    def of(routes: Mapping[str, Handler]) -> dict[str, Entry]:
        return {path: entries[handler] for path, handler in routes.items()}

    return Hosts(of(configuration.routes), {name: of(routes) for name, routes in configuration.hosts.items()})
