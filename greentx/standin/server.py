"""A stand-in for Mongrel2: the server side of the wire, for tests, load generators and chains of handlers.

A server binds PUSH and SUB as Mongrel2 does, and asks handlers, through their control sockets, to connect to both. What
it pushes are the requests of its Clients, each a pretend browser with a connection id of its own. One greenlet drains
SUB and gives each reply to the Clients that it is for. A handler counts as connected once that was proven both ways: a
guid came back over SUB, and a PULL socket arrived at PUSH.

:class:`Server` is the surface; the work is done by its parts: :mod:`~greentx.standin.sockets` (what is open),
:mod:`~greentx.standin.handlers` (which are connected), :mod:`~greentx.standin.questions` (asking, and proofs),
:mod:`~greentx.standin.router` (which Client a reply is for).
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, overload

from ..errors import LocalProtocolError, TransportError
from ..protocol.fields import check_sender
from ..protocol.request import Request
from ..transport.endpoints import Address, bind_endpoint, default_address
from ..transport.keys import KeyFile, load_keys, public_keys
from ..transport.security import Access, Dial, make_dial
from .client import Client, HTTPClient, Mongrel2Client, WebSocketClient, client_class
from .connector import Connector
from .handlers import Handlers
from .questions import Questions
from .router import Router
from .sockets import Sockets

__all__ = ["Server"]

# What can be bound, and not connected to.
_EVERY_INTERFACE = frozenset({"*", "0.0.0.0", "::", "[::]"})


class Server:
    """A server that handlers are told to connect to.

    Used with ``with``, or by :meth:`start` and :meth:`stop`. Its methods belong to one thread (that of the hub it was
    started in), any greenlet of which may call them; they block their greenlet only.

    Args:
        sender: What requests begin with, Mongrel2's ``send_ident``, though any text without a space will do here;
            ``None`` makes a UUID.
        connect: Control sockets of the handlers that :meth:`client` connects: one address or several, each ``"host"``
            (port 9997), ``"host:port"``, ``(host, port)`` or an endpoint.
        ip: What to bind and what handlers are told to connect to; ``None`` is the first IPv4 address of ``eth0``, else
            of the default route's interface.
        push_port, sub_port: ``None`` is 9999 and 9998, 0 any free one; once started the attributes have the real ones.
        log_level: Lowers the level of the logger ``greentx`` where it is above this one; the default leaves the
            logging of the application as it is.
        encoding: Of the headers: ``"tnetstring"`` or ``"json"``; Mongrel2's setting ``protocol`` of a handler.
        connect_timeout: Milliseconds for one handler to be connected, verified.
        curve_secret: A file of our own CURVE keys, ``NAME.key_secret``, as ``greentx keys`` makes it. With it PUSH and
            SUB are encrypted, and handlers (of greentx) are told the key.
        curve_server: The public key of the handlers, which their control sockets demand CURVE with; a file or bytes
            (Z85). One that has another is connected by :meth:`connect`.
        curve_allow: Public keys of those that may pull and answer: a folder of ``*.key`` files, a file, several, or
            bytes. ``None`` is *curve_server* alone.

    Raises:
        LocalProtocolError: (a ``ValueError``) The sender could not be answered, or an address or key is malformed.
        TransportError: CURVE is wanted, and this libzmq was built without it.

    Attributes:
        router: The Clients by connection id, and whom a reply is for; for :class:`~greentx.Client`.
        questions: Asks control sockets, for :class:`~greentx.Connector`.
        dial: How control sockets are asked, likewise.
    """

    PUSH_PORT = 9999
    SUB_PORT = 9998

    def __init__(
        self,
        sender: str | None = None,
        connect: Address | Iterable[Address] | None = None,
        ip: str | None = None,
        push_port: int | None = None,
        sub_port: int | None = None,
        log_level: int = logging.ERROR,
        *,
        encoding: str = "tnetstring",
        connect_timeout: int = 5000,
        curve_secret: str | os.PathLike[str] | None = None,
        curve_server: KeyFile | None = None,
        curve_allow: KeyFile | Iterable[KeyFile] | None = None,
    ) -> None:
        if encoding not in ("tnetstring", "json"):
            raise LocalProtocolError(f"encoding is 'tnetstring' or 'json', not {encoding!r}")
        # What is bound is also what handlers are told, and no handler can connect to "everywhere".
        if ip in _EVERY_INTERFACE:
            raise LocalProtocolError(f"ip {ip!r} is not an address that a handler could connect to: give one, or None")
        # True is an int, and would be a millisecond.
        if not isinstance(connect_timeout, int) or isinstance(connect_timeout, bool) or connect_timeout < 1:
            raise LocalProtocolError(f"connect_timeout is a positive number of milliseconds, not {connect_timeout!r}")
        # Kept apart from the attributes, which have the real ports once started: a second start() asks for 0 again.
        self._asked = (
            ip,
            self.PUSH_PORT if push_port is None else push_port,
            self.SUB_PORT if sub_port is None else sub_port,
        )
        for port in self._asked[1:]:
            # Told now if malformed, not when starting.
            bind_endpoint((ip or "127.0.0.1", port))
        # Mongrel2's rule for senders is not ours: handlers of the old package are asked by UUIDs and by other names.
        self.sender = check_sender(str(uuid.uuid4()) if sender is None else sender, mongrel2=False)
        self.ip, self.push_port, self.sub_port = ip or "", self._asked[1], self._asked[2]
        self.encoding = encoding
        self.connect_timeout = connect_timeout
        self.dial = make_dial(None if curve_secret is None else load_keys(curve_secret), curve_server)
        self._access = _access(self.sender, self.dial, curve_allow)
        self._sockets: Sockets | None = None
        # The parts reach the sockets through _running(), so that each use after a stop or a fork is an error of ours.
        self.questions = Questions(self._running)
        self.router = Router(self.sender, encoding, on_proof=self.questions.proof_came, check=self._running)
        wanted = [Connector(addr, self) for addr in _listed(connect)]
        self._handlers = Handlers(self.sender, wanted, lambda: self._running().pusher)
        # mongrel2-transceiver's argument. It may only make more visible: raising a level is the application's decision.
        logger = logging.getLogger("greentx")
        if log_level < logging.WARNING and not logger.isEnabledFor(log_level):
            logger.setLevel(log_level)

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """True from :meth:`start` to :meth:`stop`."""
        return self._sockets is not None

    @property
    def push_addr(self) -> tuple[str, int]:
        """``(ip, push_port)``: where handlers pull from."""
        return self.ip, self.push_port

    @property
    def sub_addr(self) -> tuple[str, int]:
        """``(ip, sub_port)``: where handlers publish to."""
        return self.ip, self.sub_port

    @property
    def handlers(self) -> tuple[str, ...]:
        """Endpoints of the control sockets of the connected handlers."""
        return self._handlers.connected

    @property
    def peers(self) -> int:
        """How many PULL sockets are connected now, be they of connected handlers or of others; 0 when not started."""
        return 0 if self._sockets is None else self._sockets.pusher.peers

    @property
    def unclaimed(self) -> int:
        """How many replies were for no Client."""
        return self.router.unclaimed

    @property
    def bad_replies(self) -> int:
        """How many replies Mongrel2 would have refused (its rule for senders apart, where ours does not keep to it)."""
        return self.router.bad_replies

    def start(self) -> None:
        """Bind both sockets; does nothing on a started server. No handler is told yet: see :meth:`client`.

        Raises:
            BindError: An address is in use or not ours; the message names it. Nothing is left open.
            TransportError: ``ip`` is ``None`` and this machine has no such address.
        """
        if self._sockets is not None:
            return
        ip, push_port, sub_port = self._asked
        self.ip = ip or default_address()
        sockets = Sockets(
            f"Server {self.sender}",
            self.ip,
            push_port,
            sub_port,
            on_reply=self.router.route,
            on_teardown=self.stop,
            access=self._access,
        )
        self._sockets = sockets
        # The real ones, which handlers are told.
        self.push_port, self.sub_port = sockets.ports
        self.router.start(sockets.pusher.post)

    def stop(self) -> None:
        """Tell every handler to let go, then close the sockets; safe to call twice, and at the same time.

        Handlers are told at the same time and have 2 s for it, so dead ones cost that at the most; what went wrong is
        logged. Clients are closed, their connections without a notice, as when Mongrel2 ends.
        """
        sockets = self._sockets
        if sockets is None:
            return
        # In a forked child the handlers are the parent's to tell; in the hub nobody can wait for an answer.
        if sockets.forked or sockets.in_hub:
            self._close()
            return
        # The second of two that stop it at once waits for the first, and then finds it stopped.
        sockets.context.check_thread()
        with sockets.leaving:
            if self._sockets is not sockets:
                return
            try:
                if self._handlers.any_told:
                    self._handlers.leave()
            finally:
                self._close()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # -- handlers ----------------------------------------------------------------------------------------------------

    def connect(self, addr: Address, timeout: int | None = None, *, curve_server: KeyFile | None = None) -> bool:
        """Connect one more handler; when this returns (True), the connection works in both directions.

        One that is connected already proves it again; where it does not, it is connected anew, as it was started again.

        Args:
            addr: The handler's control socket, as for :class:`~greentx.Connector`.
            timeout: Milliseconds; ``None`` is ``connect_timeout``.
            curve_server: Its public key; ``None`` is the one that this server was given. It has to be in *curve_allow*.

        Raises:
            ControlError: The handler did not answer in time, or refused.
            ConnectTimeout: It answered, but did not connect in time; a connected handler by another name does not
                connect twice. Other handlers are as they were.

        A handler that was told too late is told to let go again, as soon as it answers.
        """
        connector = Connector(addr, self, curve_server=curve_server)
        self._running()
        self._handlers.connect(connector, self.connect_timeout if timeout is None else timeout)
        return True

    def disconnect(self, addr: Address, timeout: int | None = None) -> bool:
        """Have one handler let go; when this returns (True), no further request goes to it. :meth:`client` leaves it.

        One of ``connect`` that could not be connected is given up the same way; nothing is asked of it.

        Raises:
            LocalProtocolError: It is not connected, nor to be connected.
            ControlError, ConnectTimeout: It did not confirm within *timeout* milliseconds. It counts as gone all the
                same; if it lives, it still gets its share of the requests.
        """
        connector = Connector(addr, self)
        self._running()
        self._handlers.disconnect(connector, self.connect_timeout if timeout is None else timeout)
        return True

    # -- clients -----------------------------------------------------------------------------------------------------

    @overload
    def client(self, protocol: Literal["mongrel2"] = ...) -> Mongrel2Client: ...
    @overload
    def client(self, protocol: Literal["http"]) -> HTTPClient: ...
    @overload
    def client(self, protocol: Literal["websocket"]) -> WebSocketClient: ...

    def client(self, protocol: str = "mongrel2") -> Client:
        """Return a new pretend browser, after connecting those handlers of ``connect`` that are not connected yet.

        The handlers are connected at the same time, so many need no longer than one.

        Args:
            protocol: How answers are read: ``"mongrel2"`` as they are, ``"http"``, ``"websocket"``.

        Raises:
            ControlError, ConnectTimeout: As for :meth:`connect`; the handlers that it does not name are connected. The
                next call tries the missing ones again.
        """
        # A wrong protocol, or a server that is not started, is said before any handler is told.
        kind = client_class(protocol)
        self._running()
        self._handlers.connect_wanted(self.connect_timeout)
        return kind(self)

    @property
    def clients(self) -> int:
        """How many Clients are open."""
        return len(self.router.clients)

    # -- messages ----------------------------------------------------------------------------------------------------

    def send(self, msg: bytes | Request, timeout: int | None = 1000) -> None:
        """Push one request message, to one of the connected handlers, in turn; blocks while none has room for it.

        Args:
            msg: As :func:`greentx.protocol.requests.build_request` builds it, or a ``Request``.
            timeout: Milliseconds; ``None`` waits forever.

        Raises:
            LocalProtocolError: *msg* is neither.
            SendTimeout: No handler is connected, or all have their fill; the message says which. It was not sent.
        """
        message = msg.encode(self.encoding) if isinstance(msg, Request) else msg
        # Text would be encoded by ZeroMQ's binding as it likes.
        if not isinstance(message, (bytes, bytearray, memoryview)):
            raise LocalProtocolError(f"a message is bytes or a Request, not {type(message).__name__}")
        self._running().pusher.send(message, None if timeout is None else timeout / 1000)

    def recv(self, timeout: int | None = 1000) -> bytes | None:
        """Return the next reply message that was for no Client, ``None`` when *timeout* milliseconds brought none.

        A thousand are kept; then the oldest goes.
        """
        return self.router.next_unclaimed(None if timeout is None else timeout / 1000)

    def post(self, message: bytes) -> None:
        """Push one request message without waiting: where no handler has room for it now, it goes when one has."""
        self._running().pusher.post(message)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _running(self) -> Sockets:
        if self._sockets is None:
            raise TransportError(f"Server {self.sender} is not started: use it in a with block, or call start()")
        # In a forked child and in other threads an error of ours; ZeroMQ itself would abort the process.
        self._sockets.context.check_thread()
        return self._sockets

    def _close(self) -> None:
        # Not started any more before anything is closed: a reply that comes in between finds nobody.
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        # Clients first: greenlets that wait for a reply must not wait for the sockets to close.
        self._handlers.end()
        self.router.end()
        sockets.close()

    def __repr__(self) -> str:
        where = f"{self.ip} push={self.push_port} sub={self.sub_port}" if self.started else "not started"
        return f"<Server {self.sender} {where}: {len(self.handlers)} handlers, {self.clients} clients>"


def _access(sender: str, dial: Dial, curve_allow: KeyFile | Iterable[KeyFile] | None) -> Access | None:
    if dial.keys is None:
        if curve_allow is not None:
            raise LocalProtocolError("curve_allow needs curve_secret=, a file of our own keys")
        return None
    if curve_allow is None and dial.server_key is None:
        raise LocalProtocolError("curve_secret needs curve_server=, the handlers' public key, or curve_allow=, several")
    allowed = dial.server_key if curve_allow is None else curve_allow
    assert allowed is not None
    return Access(f"Server {sender}", keys=dial.keys, allowed=public_keys(allowed))


def _listed(connect: Address | Iterable[Address] | None) -> list[Address]:
    if connect is None:
        return []
    if isinstance(connect, str):
        return [connect]
    if isinstance(connect, bytes) or not isinstance(connect, Iterable):
        raise LocalProtocolError(
            f"connect is one address or several, not {connect!r}: write 'host:port' or (host, port)"
        )
    addresses: list[Any] = list(connect)
    # ("host", 9997) is one address, ("host", "other:9997") two.
    if len(addresses) == 2 and isinstance(addresses[1], int):
        return [(addresses[0], addresses[1])]
    if len(addresses) == 2 and isinstance(addresses[1], str) and addresses[1].isdecimal():
        raise LocalProtocolError(f"port {addresses[1]!r} of connect is text: write ({addresses[0]!r}, {addresses[1]})")
    return addresses
