"""A stand-in for Mongrel2: the server side of the wire, for tests, load generators and chains of handlers.

A server binds PUSH and SUB as Mongrel2 does, and asks handlers, through their control sockets, to connect to both. What
it pushes are the requests of its Clients, each a pretend browser with a connection id of its own. One greenlet drains
SUB and gives each reply to the Clients that it is for. A handler is called connected once that was proven both ways: a
guid came back over SUB, and a PULL socket arrived at PUSH.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count
from time import monotonic
from types import TracebackType
from typing import Any, Literal, overload

import gevent
from gevent.event import Event
from gevent.lock import RLock

from .client import Client, HTTPClient, Mongrel2Client, WebSocketClient
from .connector import Connector, Unanswered
from .endpoints import Address, bind_endpoint, default_address, endpoint_address
from .errors import (
    ConnectTimeout,
    ControlError,
    ForkError,
    GreentxError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
)
from .transport import Context, Receiver
from .transport.outbox import NOBODY
from .transport.server_side import Pusher, ask, bind_subscriber
from .wire import CONTROL_ID, Request, build_disconnect_notice, check_sender, parse_reply

__all__ = ["Server"]

log = logging.getLogger("greentx.server")

#: Replies to nobody that ``recv`` has not fetched; above this the oldest goes.
_MAX_UNCLAIMED = 1000

# Leaving must not take long where handlers are dead: both the asking and the proof have to fit.
_LEAVE_SECONDS = 2.0

# How long to try to take back what a handler was told and may still obey.
_TAKE_BACK_SECONDS = 30.0

# A handler that let go of the server closes its PULL socket; how long to wait for that to be seen.
_GONE_SECONDS = 0.5

# What can be bound, and not connected to.
_EVERY_INTERFACE = frozenset({"*", "0.0.0.0", "::", "[::]"})

_KINDS: dict[str, type[Client]] = {"mongrel2": Mongrel2Client, "http": HTTPClient, "websocket": WebSocketClient}


class Server:
    """A server that handlers are told to connect to.

    Used with ``with``, or by :meth:`start` and :meth:`stop`. Its methods belong to one thread (that of the hub it was
    started in), any greenlet of which may call them; they block their greenlet only.

    Args:
        sender: What requests begin with, Mongrel2's ``send_ident``; ``None`` makes a UUID.
        connect: Control sockets of the handlers that :meth:`client` connects: one address or several, each ``"host"``
            (port 9997), ``"host:port"``, ``(host, port)`` or an endpoint.
        ip: What to bind and what handlers are told to connect to; ``None`` takes the first IPv4 address of ``eth0``,
            else of the default route's interface.
        push_port, sub_port: ``None`` or 0 for any free one; once started the attributes have the real ones.
        log_level: Lowers the level of the logger ``greentx`` where it is above this one; the default leaves the
            logging of the application as it is.
        encoding: Of the headers: ``"tnetstring"`` or ``"json"``; Mongrel2's setting ``protocol`` of a handler.
        connect_timeout: Milliseconds for one handler to be connected, verified.

    Raises:
        LocalProtocolError: (a ``ValueError``) The sender could not be answered, or an address is malformed.

    Attributes:
        handlers: Endpoints of the control sockets of the connected handlers.
        unclaimed: How many replies were for no Client.
        bad_replies: How many replies Mongrel2 would have refused.
    """

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
    ) -> None:
        if encoding not in ("tnetstring", "json"):
            raise LocalProtocolError(f"encoding is 'tnetstring' or 'json', not {encoding!r}")
        if ip in _EVERY_INTERFACE:
            raise LocalProtocolError(f"ip {ip!r} is no address that a handler could connect to: give one, or None")
        if not isinstance(connect_timeout, int) or isinstance(connect_timeout, bool) or connect_timeout < 1:
            raise LocalProtocolError(f"connect_timeout is a positive number of milliseconds, not {connect_timeout!r}")
        self._asked = (ip, push_port or 0, sub_port or 0)
        for port in self._asked[1:]:
            bind_endpoint((ip or "127.0.0.1", port))  # told now if malformed, not when starting
        self.sender = check_sender(str(uuid.uuid4()) if sender is None else sender)
        self.ip, self.push_port, self.sub_port = ip or "", self._asked[1], self._asked[2]
        self.encoding = encoding
        self.connect_timeout = connect_timeout
        self.handlers: tuple[str, ...] = ()
        self.unclaimed = 0
        self.bad_replies = 0
        self._wanted = {connector.endpoint: connector for connector in (Connector(a, self) for a in _listed(connect))}
        self._connecting = RLock()
        self._taking_back: dict[str, gevent.Greenlet] = {}  # from handlers that were told, and perhaps connected
        self._joined = 0  # how many PULL sockets have to have come; each handler that proved SUB brings one more
        self._clients: dict[str, Client] = {}
        self._conn_ids = count(1)
        self._last_conn_id = 0
        self._replies: deque[bytes] = deque(maxlen=_MAX_UNCLAIMED)
        self._replied = Event()
        self._proofs: dict[bytes | None, list[Event]] = {}
        self._sockets: _Sockets | None = None
        logger = logging.getLogger("greentx")
        if log_level < logging.WARNING and not logger.isEnabledFor(log_level):
            logger.setLevel(log_level)

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """True from :meth:`start` to :meth:`stop`."""
        return self._sockets is not None

    def start(self) -> None:
        """Bind both sockets; does nothing on a started server. No handler is told yet: see :meth:`client`.

        Raises:
            BindError: An address is in use or not ours; the message names it. Nothing is left open.
            TransportError: ``ip`` is ``None`` and this machine has no address to take.
        """
        if self._sockets is not None:
            return
        ip, push_port, sub_port = self._asked
        self.ip = ip or default_address()
        context = Context(f"Server {self.sender}", self._teardown)
        try:
            pusher = Pusher(context, bind_endpoint((self.ip, push_port)))
            receiver, sub_endpoint = bind_subscriber(context, bind_endpoint((self.ip, sub_port)), self._on_reply)
        except BaseException:
            context.close(linger=0)
            raise
        self._sockets = _Sockets(context, pusher, receiver)
        self.push_port = endpoint_address(pusher.endpoint)[1]
        self.sub_port = endpoint_address(sub_endpoint)[1]

    def stop(self) -> None:
        """Tell every handler to let go, then close the sockets; safe to call twice, and at the same time.

        Handlers are told side by side and have 2 s for it, so dead ones cost that at the most; what went wrong is
        logged. Clients are closed, their connections without a notice, as when Mongrel2 ends.
        """
        sockets = self._sockets
        if sockets is None:
            return
        if sockets.forked:  # whoever was stopping it did so in the parent
            self._close()
            return
        with sockets.leaving:
            if self._sockets is not sockets:
                return
            try:
                if self.handlers or self._taking_back:
                    self._leave(sockets)
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

    def connect(self, addr: Address, timeout: int | None = None) -> None:
        """Connect one more handler; when this returns, the connection works in both directions.

        One that is connected already proves it again; where it does not, it is connected anew, as it was started again.

        Args:
            addr: The handler's control socket, as for :class:`~greentx.Connector`.
            timeout: Milliseconds; ``None`` is ``connect_timeout``.

        Raises:
            ControlError: The handler did not answer in time, or refused.
            ConnectTimeout: It answered, but did not connect in time; a connected handler by another name does not
                connect twice. Other handlers are as they were.

        A handler that was told too late is told to let go again, as soon as it answers.
        """
        connector = Connector(addr, self)
        sockets = self._running()
        milliseconds = self.connect_timeout if timeout is None else timeout
        deadline = monotonic() + milliseconds / 1000
        with self._connecting:
            if connector.endpoint in self.handlers:
                # Without any PULL socket it is known to have gone; to ask would harm an old handler in its place.
                if sockets.pusher.peers and connector.is_connected(milliseconds):
                    return
                self.handlers = tuple(one for one in self.handlers if one != connector.endpoint)
            self._connect_all([connector], max(1, round((deadline - monotonic()) * 1000)))

    def disconnect(self, addr: Address, timeout: int | None = None) -> None:
        """Have one handler let go; when this returns, no further request goes to it. :meth:`client` leaves it alone.

        One of ``connect`` that could not be connected is given up the same way; nothing is asked of it.

        Raises:
            LocalProtocolError: It is not connected, nor to be connected.
            ControlError, ConnectTimeout: It did not confirm within *timeout* milliseconds. It counts as gone all the
                same; if it lives, it still gets its share of the requests.
        """
        connector = Connector(addr, self)
        sockets = self._running()
        with self._connecting:
            wanted = self._wanted.pop(connector.endpoint, None)
            if connector.endpoint not in self.handlers:
                if wanted is not None:
                    return
                raise LocalProtocolError(f"{connector.endpoint} is not connected; connected are {list(self.handlers)}")
            self.handlers = tuple(one for one in self.handlers if one != connector.endpoint)
            pusher = sockets.pusher
            before = pusher.peers
            milliseconds = self.connect_timeout if timeout is None else timeout
            deadline = monotonic() + milliseconds / 1000
            connector.disconnect(milliseconds)
            connector.verify_disconnect(max(1, round((deadline - monotonic()) * 1000)))
            if not pusher.wait_departure(before, _GONE_SECONDS):
                log.warning("%s let go of %s, but no PULL socket left", connector.endpoint, pusher.endpoint)

    def _connect_all(self, connectors: Iterable[Connector], timeout: int | None) -> None:
        milliseconds = self.connect_timeout if timeout is None else timeout
        with self._connecting:
            missing = [one for one in connectors if one.endpoint not in self.handlers]
            self._joined = self._running().pusher.arrivals
            greenlets = [gevent.spawn(self._connect_one, one, milliseconds) for one in missing]
            try:
                gevent.joinall(greenlets)
            finally:
                gevent.killall(greenlets)
            errors = [one.value for one in greenlets if isinstance(one.value, GreentxError)]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ControlError(f"{len(errors)} of {len(missing)} handlers: " + "; ".join(map(str, errors)))

    def _connect_one(self, connector: Connector, milliseconds: int) -> GreentxError | None:
        deadline = monotonic() + milliseconds / 1000
        taking_back = self._taking_back.pop(connector.endpoint, None)
        try:
            if taking_back is not None:  # what it was told before has to be done with
                taking_back.kill()
                _let_go(connector, milliseconds)
            connector.connect(max(1, round((deadline - monotonic()) * 1000)))
        except GreentxError as error:
            if isinstance(error, Unanswered) and (error.asked or taking_back is not None):
                self._take_back(connector)
            return error
        try:
            connector.verify_connect(max(1, round((deadline - monotonic()) * 1000)))
            if not self._await_pull(deadline):
                pusher = self._running().pusher
                why = f"{connector.endpoint} did not pull from {pusher.endpoint} after {milliseconds} ms"
                if self.handlers and pusher.peers:
                    # To take it back would disconnect the other one, which it most likely is.
                    return ConnectTimeout(
                        f"{why}: it seems to be a connected handler by another name; there are {list(self.handlers)}",
                        address=connector.endpoint,
                    )
                raise ConnectTimeout(why, address=connector.endpoint)
        except GreentxError as error:
            self._take_back(connector).join(_GONE_SECONDS)
            if connector.endpoint in self._taking_back:
                log.warning("%s may go on to connect: it does not answer", connector.endpoint)
            return error
        self.handlers += (connector.endpoint,)
        return None

    def _await_pull(self, deadline: float) -> bool:
        """Wait for the PULL socket of a handler that proved itself on SUB. Whose one is cannot be told: they count."""
        pusher = self._running().pusher
        self._joined += 1
        if pusher.wait_peers(lambda: pusher.arrivals >= self._joined, max(0.0, deadline - monotonic())):
            return True
        self._joined -= 1
        return False

    def _take_back(self, connector: Connector) -> gevent.Greenlet:
        """A handler that was told to connect, and did not prove it, must not get requests later on.

        It is asked once and may answer late, so the greenlet that this returns waits for it; so does leaving.
        """

        def take_back() -> None:
            try:
                _let_go(connector, round(_TAKE_BACK_SECONDS * 1000))
            except GreentxError as error:
                log.warning("%s may go on to connect: %s", connector.endpoint, error)
            self._taking_back.pop(connector.endpoint, None)

        greenlet = self._taking_back[connector.endpoint] = gevent.spawn(take_back)
        return greenlet

    def _leave(self, sockets: _Sockets) -> None:
        pusher = sockets.pusher
        before = pusher.peers
        deadline = monotonic() + _LEAVE_SECONDS

        def leave(connector: Connector) -> bool:
            try:
                connector.disconnect(round(_LEAVE_SECONDS * 1000))
            except GreentxError as error:
                log.warning("%s was not told that %s ends: %s", connector.endpoint, self.sender, error)
                return False
            return True

        greenlets = [gevent.spawn(leave, Connector(one, self)) for one in self.handlers]
        try:
            gevent.joinall(greenlets)
            gevent.joinall(list(self._taking_back.values()), timeout=max(0.0, deadline - monotonic()))
            for endpoint in self._taking_back:
                log.warning("%s was not told that %s ends: it may go on to connect", endpoint, self.sender)
        finally:
            gevent.killall(greenlets)
        told = sum(one.value is True for one in greenlets)
        left = max(0.0, min(_GONE_SECONDS, deadline - monotonic()))
        if told and not pusher.wait_peers(lambda: pusher.peers <= max(0, before - told), left):
            log.warning("%s ends with %d PULL sockets connected", self.sender, pusher.peers)

    # -- clients -----------------------------------------------------------------------------------------------------

    @overload
    def client(self, protocol: Literal["mongrel2"] = ...) -> Mongrel2Client: ...
    @overload
    def client(self, protocol: Literal["http"]) -> HTTPClient: ...
    @overload
    def client(self, protocol: Literal["websocket"]) -> WebSocketClient: ...

    def client(self, protocol: str = "mongrel2") -> Client:
        """Return a new pretend browser, after connecting those handlers of ``connect`` that are not connected yet.

        The handlers are connected side by side, so many take no longer than one.

        Args:
            protocol: How answers are read: ``"mongrel2"`` as they are, ``"http"``, ``"websocket"``.

        Raises:
            ControlError, ConnectTimeout: As for :meth:`connect`; the handlers that it does not name are connected. The
                next call tries the missing ones again.
        """
        kind = _KINDS.get(protocol)
        if kind is None:
            raise LocalProtocolError(f"protocol is one of {', '.join(map(repr, _KINDS))}, not {protocol!r}")
        self._running()
        if not self._wanted.keys() <= set(self.handlers):
            self._connect_all(list(self._wanted.values()), None)
        self._last_conn_id = next(self._conn_ids)
        client = kind(self, str(self._last_conn_id))
        self._clients[client.conn_id] = client
        return client

    @property
    def clients(self) -> int:
        """How many Clients are open."""
        return len(self._clients)

    # -- messages ----------------------------------------------------------------------------------------------------

    def send(self, msg: bytes | Request, timeout: int | None = 1000) -> None:
        """Push one request message, to one of the connected handlers, in turn; blocks while none takes it.

        Args:
            msg: As :func:`greentx.wire.build_request` builds it, or a ``Request``.
            timeout: Milliseconds; ``None`` waits for ever.

        Raises:
            LocalProtocolError: *msg* is neither.
            SendTimeout: No handler is connected, or all have their fill; the message says which. It was not sent.
        """
        message = msg.encode(self.encoding) if isinstance(msg, Request) else msg
        if not isinstance(message, (bytes, bytearray, memoryview)):
            raise LocalProtocolError(f"a message is bytes or a Request, not {type(message).__name__}")
        self._running().pusher.send(message, None if timeout is None else timeout / 1000)

    def recv(self, timeout: int | None = 1000) -> bytes | None:
        """Return the next reply message that was for no Client, ``None`` when *timeout* milliseconds brought none.

        A thousand are kept; then the oldest goes.
        """
        deadline = None if timeout is None else monotonic() + timeout / 1000
        while not self._replies:
            self._running()
            self._replied.clear()
            if not self._replied.wait(None if deadline is None else max(0.0, deadline - monotonic())):
                return None
        return self._replies.popleft()

    def post(self, message: bytes) -> None:
        """Push one request message without waiting: where no handler takes it now, it goes when one does."""
        self._running().pusher.post(message)

    def ask(self, endpoint: str, message: bytes, timeout: float) -> tuple[bytes | None, bool]:
        """Ask the control socket at *endpoint*, for *timeout* seconds; a Connector's way.

        Returns:
            The answer, ``None`` without one; and whether the question went out.
        """
        sockets = self._running()
        return ask(sockets.context, endpoint, message, timeout, sockets.ended)

    @contextlib.contextmanager
    def expect_proof(self, guid: bytes | None) -> Iterator[Event]:
        """Within the block, yield an Event that is set when *guid* comes over SUB; ``None``: when any proof comes."""
        proof = Event()
        self._proofs.setdefault(guid, []).append(proof)
        try:
            yield proof
        finally:
            waiting = self._proofs[guid]
            waiting.remove(proof)
            if not waiting:
                del self._proofs[guid]

    def release(self, client: Client) -> None:
        """Forget a Client that has closed; a late reply to it is answered by a notice, as Mongrel2 does."""
        self._clients.pop(client.conn_id, None)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _running(self) -> _Sockets:
        if self._sockets is None:
            raise TransportError(f"Server {self.sender} is not started: use it in a with block, or call start()")
        self._sockets.context.check()
        return self._sockets

    def _on_reply(self, message: bytes) -> None:
        try:
            response = parse_reply(message)
        except RemoteProtocolError as error:
            self.bad_replies += 1
            log.warning("Mongrel2 would refuse this reply and stall its handler for 0.5 s: %s", error)
            return
        nobody = False
        for conn_id in response.conn_ids:
            client = self._clients.get(conn_id)
            if client is not None:
                client.deliver(response)
            elif conn_id == CONTROL_ID:
                for proof in (*self._proofs.get(response.body, ()), *self._proofs.get(None, ())):
                    proof.set()
            elif not response.body and int(conn_id) >= NOBODY:  # asks for the notice, as a receipt
                self._notify(conn_id)
            else:
                nobody = True
                self._reject(conn_id)
        if nobody:
            self._replies.append(message)
            self._replied.set()

    def _reject(self, conn_id: str) -> None:
        self.unclaimed += 1
        log.debug("reply to connection %s, which nobody has", conn_id)
        if int(conn_id) <= self._last_conn_id:  # a Client had it; other numbers are those of messages that send() took
            self._notify(conn_id)

    def _notify(self, conn_id: str) -> None:
        if self._sockets is not None:  # what comes while we stop is read, but nobody hears an answer
            self.post(build_disconnect_notice(self.sender, conn_id, protocol=self.encoding))

    def _close(self) -> None:
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        self.handlers = ()
        gevent.killall(list(self._taking_back.values()), block=False)
        self._taking_back.clear()
        for client in list(self._clients.values()):
            client.server_gone()
        self._clients.clear()
        self._replied.set()
        sockets.close()

    def _teardown(self) -> None:
        # In the hub nobody can wait for a handler's answer.
        if self._sockets is not None and gevent.getcurrent() is not self._sockets.context.hub:
            self.stop()
        self._close()

    def __repr__(self) -> str:
        where = f"{self.ip} push={self.push_port} sub={self.sub_port}" if self.started else "not started"
        return f"<Server {self.sender} {where}: {len(self.handlers)} handlers, {len(self._clients)} clients>"


class _Sockets:
    """What a started server has open."""

    def __init__(self, context: Context, pusher: Pusher, receiver: Receiver) -> None:
        self.context = context
        self.pusher = pusher
        self.receiver = receiver
        self.ended = Event()
        self.leaving = RLock()

    @property
    def forked(self) -> bool:
        """True in a forked child, where they are the parent's."""
        try:
            self.context.check()
        except ForkError:
            return True
        return False

    def close(self) -> None:
        try:
            if not self.forked:
                if gevent.getcurrent() is not self.context.hub:
                    self.receiver.stop(timeout=0.5)
                self.pusher.close()
        finally:
            self.context.close(linger=0)
            self.ended.set()


def _let_go(connector: Connector, milliseconds: int) -> None:
    """Have a handler let go that perhaps never connected. Raises :class:`Unanswered`."""
    try:
        connector.disconnect(milliseconds)
    except Unanswered:
        raise
    except ControlError as error:
        log.debug("%s had not connected: %s", connector.endpoint, error)


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
