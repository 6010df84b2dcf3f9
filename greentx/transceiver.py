"""The handler side as a whole: connection sets, pinger and control socket under one roof.

A Transceiver enters with its sockets up and leaves with everything gone, whatever way it leaves: see
:mod:`greentx.transport.teardown`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

import gevent
from gevent.event import Event
from gevent.pool import Pool

from .connection import Connection
from .control import Control
from .deflate import DeflateConfig
from .dispatcher import Dispatcher, Handler, WebSocketHandler
from .endpoints import Address, bind_endpoint, connect_endpoint, endpoint_address
from .errors import ConnectTimeout, ControlError, GreentxError, LocalProtocolError, TransportError
from .frames import CloseCode, Opcode
from .handshake import Handshake, HeaderMap, Refused
from .http1 import HeaderFields
from .pinger import PING_SECONDS, Pinger
from .registry import Registry, Sid
from .runtime import MAX_PENDING, SEND_TIMEOUT, Runtime
from .session import WebSocketOptions
from .transport import Context
from .version import __version__
from .websocket import encode_message
from .wire import Request, check_sender

__all__ = ["Transceiver", "Worker"]

log = logging.getLogger("greentx.transceiver")

# How long a proof that the control socket promised may wait for the server's subscription.
_PROOF_SECONDS = 10.0

# How long a sudden end waits for handlers that are being killed.
_KILL_SECONDS = 0.5

# How long what has a bound of its own may take beyond it.
_GRACE_SECONDS = 0.1

# How often the end looks whether a greenlet that it waits for is still there.
_DEAD_CHECK_SECONDS = 0.1

# Events that stay true while everything ends.
_ENDS = frozenset({"WEBSOCKET_CLOSE", "DISCONNECT"})

#: What is asked of permessage-deflate where nothing else is said.
DEFAULT_COMPRESSION = DeflateConfig()

#: What ``recv()`` yields.
Item = tuple[Sid, Connection, Request] | tuple[None, None, None]


class Worker(Protocol):
    """What handles events in greenlets of its own, and has to be waited for."""

    def join(self) -> object:
        """Block until every event that was taken has been handled."""

    def kill(self, timeout: float) -> int:
        """End all handlers within *timeout* seconds; return how many there were."""


class Transceiver:
    """Receives what Mongrel2 hands out and sends the answers.

    Args:
        sender: The handler entry's ``send_ident``; letters, digits and ``-``.
        pull_addr: Its ``send_spec``, from which requests are pulled: ``(host, port)`` or any ZeroMQ endpoint.
        pub_addr: Its ``recv_spec``, to which replies are published.
        rep_port: Where the control socket binds: ``None`` is 9997, 0 a free port (read it here), ``False`` no socket.
        ping_timeout: Seconds between two pings of a WebSocket, and how long its pong may take; ``None`` pings nobody.
        log_level: Lowers the level of the logger ``greentx`` where it is above this one; the default leaves the
            logging of the application as it is.
        rep_ip: The address that the control socket binds.
        connect_timeout: Seconds that entering waits for the server; ``None`` does not wait.
        send_timeout: Seconds that whoever sends waits on a full pipe or an unread browser; ``None`` for ever.
        linger: Seconds that leaving may take to get out what was sent.
        max_pending: Events that may wait for the application before the server has to keep them.
        origins, subprotocols, response_headers: For the opening handshake, as in ``greentx.handshake.Handshake``.
        on_handshake: Called with each handshake's ``Request``; may block; returns ``None`` or a ``Refused``.
        compression: What is wanted of permessage-deflate; ``None`` declines it.
        max_message_size: Bytes of a WebSocket message, inflated; larger ones end their connection (1009).
        max_queue: Messages that may wait for one WebSocket's handler before it is ended (1013).
        close_timeout: Seconds that a peer has to answer our close frame.
        shared: Several processes pull from one endpoint, so that the messages of a WebSocket scatter over them: no
            compression, and messages of connections that another process let in are taken.
        handshake_events: ``recv()`` yields opening handshakes of WebSockets, too (METHOD ``WEBSOCKET_HANDSHAKE``), and
            the application answers each: ``conn.accept_websocket(req)`` lets it in, any HTTP answer does not. May be
            changed later, for handshakes to come.

    Raises:
        LocalProtocolError: (a ``ValueError``) A sender that Mongrel2 could not parse back, a malformed address.
    """

    PUSH_PORT = 9999
    SUB_PORT = 9998
    REP_PORT = 9997

    OP_TEXT = Opcode.TEXT
    OP_BINARY = Opcode.BINARY
    OP_CLOSE = Opcode.CLOSE
    OP_PING = Opcode.PING
    OP_PONG = Opcode.PONG

    def __init__(
        self,
        sender: str,
        pull_addr: Address,
        pub_addr: Address,
        rep_port: int | None = None,
        ping_timeout: float | None = PING_SECONDS,
        log_level: int = logging.ERROR,
        *,
        rep_ip: str = "*",
        connect_timeout: float | None = None,
        send_timeout: float | None = SEND_TIMEOUT,
        linger: float = 1.0,
        max_pending: int = MAX_PENDING,
        origins: Collection[str | None] | Callable[[str | None], bool] | None = None,
        subprotocols: Iterable[str] | Callable[[list[str], HeaderMap], str | None] = (),
        response_headers: HeaderFields | Callable[[HeaderMap], HeaderFields] = (),
        on_handshake: Callable[[Request], Refused | None] | None = None,
        compression: DeflateConfig | None = DEFAULT_COMPRESSION,
        max_message_size: int | None = 1024 * 1024,
        max_queue: int = 256,
        close_timeout: float = 10.0,
        shared: bool = False,
        handshake_events: bool = False,
    ) -> None:
        self.sender = check_sender(sender)
        self.ping_timeout = ping_timeout
        self.connect_timeout = connect_timeout
        self.linger = linger
        self._first: tuple[str | None, str] = (connect_endpoint(pull_addr), connect_endpoint(pub_addr))
        self._rep_endpoint: str | None = None
        if rep_port is not False:
            self._rep_endpoint = bind_endpoint((rep_ip, self.REP_PORT if rep_port is None else rep_port))
        self._rep_port = None if rep_port is False else self.REP_PORT if rep_port is None else rep_port
        if ping_timeout is not None and not ping_timeout > 0:
            raise ValueError(f"ping_timeout is a number of seconds above 0, or None; not {ping_timeout!r}")
        if max_pending < 1 or max_queue < 1:
            raise ValueError(f"max_pending ({max_pending!r}) and max_queue ({max_queue!r}) are at least 1")
        self._options = WebSocketOptions(
            handshake=Handshake(
                origins=origins,
                subprotocols=subprotocols if callable(subprotocols) else tuple(subprotocols),
                headers=response_headers,
                deflate=None if shared else compression,
            ),
            on_handshake=on_handshake,
            max_message_size=max_message_size,
            max_queue=max_queue,
            close_timeout=close_timeout,
            shared=shared,
        )
        self._handshake_events = handshake_events
        self._send_timeout = send_timeout
        self._max_pending = max_pending
        self._runtime: Runtime | None = None
        self._registry = Registry()
        self._connections: dict[str, Connection] = {}
        self._pinger: Pinger | None = None
        self._control: Control | None = None
        self._stopping = False
        self._stopped = Event()
        self._consumers: list[tuple[Any, Event]] = []
        self._proofs: list[gevent.Greenlet[..., None]] = []
        self._dispatchers: list[Worker] = []
        self._ending: Any = None
        self._deadline = inf
        self._patience: gevent.Timeout | None = None
        logger = logging.getLogger("greentx")
        if log_level < logging.WARNING and not logger.isEnabledFor(log_level):
            logger.setLevel(log_level)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the sockets; what ``with`` does on entering. Does not wait for the server, but for ``connect_timeout``.

        Raises:
            BindError: The control port is in use.
            ConnectTimeout: No server within ``connect_timeout``. Nothing is left open.
            RuntimeError: It is started already.
        """
        if self._runtime is not None:
            raise RuntimeError(f"{self!r} is started already")
        self._stopping = False
        self._stopped.clear()
        self._deadline = inf
        context = Context(f"Transceiver {self.sender}", self._teardown, linger=self.linger)
        try:
            self._runtime = Runtime(
                context,
                registry=self._registry,
                options=self._options,
                max_pending=self._max_pending,
                send_timeout=self._send_timeout,
                handshake_events=self._handshake_events,
            )
            if self._rep_endpoint is not None:
                self._control = Control(context, self._rep_endpoint, self)
                self._rep_port = endpoint_address(self._control.endpoint)[1]
            self.add_connection(self.sender, *self._first)
            if self.ping_timeout is not None:
                self._pinger = Pinger(self._registry, self._connections.values, self.ping_timeout)
                self._pinger.start()
            if self._control is not None:
                self._control.start()
            if self.connect_timeout is not None:
                self.wait_ready(self.connect_timeout)
        except BaseException:
            self._teardown()
            context.close(linger=0)
            raise

    def __enter__(self) -> Transceiver:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._teardown()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block this greenlet until every connection set's server has subscribed, so that replies arrive.

        Raises:
            ConnectTimeout: One did not within *timeout* seconds; it names the address.
            TransportError: The Transceiver is not running, or was stopped meanwhile.
        """
        missing: list[Connection] = []
        with gevent.Timeout(timeout, False):
            while True:
                self._running()
                missing = [connection for connection in self._connections.values() if not connection.ready]
                if not missing:
                    return
                missing[0].wait_ready()
        addresses = ", ".join(connection.pub_endpoint for connection in missing)
        raise ConnectTimeout(f"no Mongrel2 subscribed at {addresses} within {timeout} s", address=addresses)

    def stop(self, timeout: float | None = None) -> None:
        """End gracefully: WebSockets get close 1001, intake ends, running handlers finish, the context goes.

        ``recv()`` and ``serve()`` return. Blocks until all is done; twice is once, and a second caller waits for the
        first. Who could not wait does not: the hub, and a handler while somebody else stops, who waits for it.

        Args:
            timeout: Seconds for the handlers to finish, then they are killed; ``None`` waits for them. Of several
                callers the most impatient decides.
        """
        runtime = self._runtime
        if runtime is None:
            return
        context = runtime.context
        current = gevent.getcurrent()
        if context.open and not context.in_hub_thread():
            context.hand_over(self.stop, timeout)
        elif current is context.hub:
            gevent.spawn(self.stop, timeout)
        else:
            self._hasten(timeout)
            if not self._stopping:
                self._end(runtime)
            elif not self._is_waited_for(current):
                self._stopped.wait()

    def _teardown(self) -> None:
        """Leave at once: within ``linger`` + 1 s, whatever handlers are doing."""
        runtime = self._runtime
        if runtime is None:
            return
        context = runtime.context
        if context.open and not context.in_hub_thread():
            context.hand_over(self._teardown)
        elif gevent.getcurrent() is context.hub:  # a generator that held the ``with`` was collected there
            gevent.spawn(self._teardown)
        else:
            self._hasten(0)
            if not self._stopping:
                self._end(runtime)
            elif not self._is_waited_for(gevent.getcurrent()):
                self._stopped.wait(self.linger + 1)

    def _hasten(self, timeout: float | None) -> None:
        """Handlers have so many seconds left at the most, also where somebody waits for them already."""
        if timeout is None or monotonic() + timeout >= self._deadline:
            return
        self._deadline = monotonic() + timeout
        if self._patience is not None:
            gevent.get_hub().loop.run_callback(self._wake_ending, self._patience)

    def _wake_ending(self, patience: gevent.Timeout) -> None:
        if patience is self._patience and self._ending is not None:
            self._ending.throw(patience)

    def _is_waited_for(self, greenlet: object) -> bool:
        return (
            greenlet is self._ending
            or any(greenlet is consumer for consumer, _ in self._consumers)
            or any(isinstance(one, Dispatcher) and greenlet in one.greenlets() for one in self._dispatchers)
        )

    def _end(self, runtime: Runtime) -> None:
        context = runtime.context
        self._stopping = True
        self._ending = gevent.getcurrent()
        connections = list(self._connections.values())
        until = monotonic() + self.linger
        try:
            if context.open:
                self._end_intake(runtime, connections, until)
                self._finish_handlers()
                if not self._sudden:
                    until = monotonic() + self.linger
                self._at_once([partial(one.stop, linger=max(0.0, until - monotonic())) for one in connections], until)
                for attachment in runtime.attachments[:]:
                    attachment.stop(max(0.0, until - monotonic()))
        except BaseException:
            until = 0.0  # struck by a second Ctrl-C, killed: then without ceremony
            raise
        finally:
            try:
                if context.open:
                    for connection in connections:
                        connection.stop(linger=0)
            finally:
                self._connections.clear()
                self._pinger = self._control = self._runtime = None
                try:
                    context.close(linger=max(0.0, until - monotonic()))
                finally:
                    self._ending = None
                    self._stopped.set()

    def _end_intake(self, runtime: Runtime, connections: list[Connection], until: float) -> None:
        inbox = runtime.inbox
        if self._sudden:
            # Nobody is to begin anything now; ends are still told to who listens.
            ends = [item for item in inbox.items if item[1].method in _ENDS]
            inbox.items.clear()
            inbox.items.extend(ends)
            inbox.end()
        if self._pinger is not None:
            self._pinger.stop()
        if self._control is not None:
            self._control.stop()
        gevent.killall(self._proofs)
        # Side by side, so that one server that is stopped does not use up the time of all.
        self._at_once([partial(self._say_farewell, one, until) for one in connections], until)
        for attachment in runtime.attachments[:]:
            attachment.stop_intake(max(0.0, until - monotonic()))
        inbox.end()
        for connection in connections:
            connection.end_inbox()

    def _say_farewell(self, connection: Connection, until: float) -> None:
        connection.sessions.close_all(CloseCode.GOING_AWAY)
        connection.stop_intake(max(0.0, until - monotonic()))

    def _at_once(self, calls: list[Callable[[], object]], until: float) -> None:
        """Make all calls in a greenlet each, until that time."""
        greenlets = [gevent.spawn(call) for call in calls]
        try:
            gevent.joinall(greenlets, timeout=max(0.0, until - monotonic()) + _GRACE_SECONDS)
        finally:
            gevent.killall(greenlets, block=False)
            gevent.joinall(greenlets, timeout=_GRACE_SECONDS)

    @property
    def _sudden(self) -> bool:
        """True when handlers have no time left."""
        return monotonic() >= self._deadline

    def _finish_handlers(self) -> None:
        """Wait for whoever works on a request, but the caller itself; kill what is left at the deadline."""
        try:
            while not self._sudden and not self._handlers_finish():
                pass
        finally:
            left = sum(dispatcher.kill(_KILL_SECONDS) for dispatcher in self._dispatchers[:])
            self._dispatchers.clear()
            if left:
                log.warning("%s: %d requests had not been handled, their handlers were killed", self.sender, left)

    def _handlers_finish(self) -> bool:
        """Wait for handlers until the deadline, or until that was moved; True when they have finished."""
        current = gevent.getcurrent()
        patience = gevent.Timeout(None if self._deadline == inf else self._deadline - monotonic())
        try:
            with patience:
                self._patience = patience
                for greenlet, finished in list(self._consumers):
                    # One that was dropped in the middle of its loop never finishes.
                    while greenlet is not current and not greenlet.dead and not finished.wait(_DEAD_CHECK_SECONDS):
                        pass
                for dispatcher in list(self._dispatchers):
                    dispatcher.join()
                return True
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            return False
        finally:
            self._patience = None

    # -- connection sets -------------------------------------------------------------------------------------------

    def add_connection(
        self, sender: str, push_addr: Address | None, sub_addr: Address, *, replace: bool = False
    ) -> Connection:
        """Serve another Mongrel2 handler entry too, from now on.

        Args:
            sender: Its ``send_ident``.
            push_addr: Where that server pushes requests from (its ``send_spec``); ``None``: its requests come through
                a relay.
            sub_addr: Where it subscribes to replies (its ``recv_spec``).
            replace: End a connection set that has the same sender first; one with the same addresses too is kept.

        Raises:
            LocalProtocolError: (a ``ValueError``) The sender is in use already, or is malformed, as an address may be.
            TransportError: The Transceiver is not running.
        """
        runtime = self._running()
        if not runtime.context.in_hub_thread():
            return runtime.context.hand_over(self._add_connection, sender, push_addr, sub_addr, replace)
        return self._add_connection(sender, push_addr, sub_addr, replace)

    def _add_connection(self, sender: str, push_addr: Address | None, sub_addr: Address, replace: bool) -> Connection:
        runtime = self._running()
        connection = self._make_connection(runtime, sender, push_addr, sub_addr)
        while (old := self._connections.get(sender)) is not None:  # again: others may run while one is removed
            if replace and (old.pull_endpoint, old.pub_endpoint) == (connection.pull_endpoint, connection.pub_endpoint):
                connection.stop(linger=0)
                return old
            if not replace:
                connection.stop(linger=0)
                raise LocalProtocolError(
                    f"sender {sender!r} is in use for {old.pull_endpoint}: remove that connection first"
                )
            self.remove_connection(sender)
        self._connections[sender] = connection
        try:
            connection.start()
        except GreentxError:
            del self._connections[sender]
            connection.stop(linger=0)
            raise
        return connection

    def _make_connection(
        self, runtime: Runtime, sender: str, push_addr: Address | None, sub_addr: Address
    ) -> Connection:
        return Connection(sender, push_addr, sub_addr, runtime=runtime)

    def remove_connection(self, sender: str) -> None:
        """Serve that sender no more: its WebSockets get close 1001, what has arrived is still handed on.

        Requests of it that are answered later are not sent. What the server pushes in this very moment is lost: ZeroMQ
        has no way to give it back. Raises ``KeyError`` when there is no such sender.
        """
        runtime = self._running()
        if not runtime.context.in_hub_thread():
            runtime.context.hand_over(self.remove_connection, sender)
            return
        try:
            connection = self._connections.pop(sender)
        except KeyError:
            raise KeyError(f"no connection for sender {sender!r}; there are {sorted(self._connections)}") from None
        until = monotonic() + self.linger
        self._at_once([partial(self._say_farewell, connection, until)], until)
        connection.end_inbox()
        connection.stop(linger=max(0.0, until - monotonic()))

    @property
    def connections(self) -> dict[str, Connection]:
        """The present connection sets by sender; a copy."""
        return dict(self._connections)

    def prove(self, sender: str, text: str) -> None:
        """Send *text* to conn id -1 over that sender's PUB, once its server has subscribed; for the control socket."""
        connection = self._connections.get(sender)
        if connection is None:
            raise ControlError(f"no connection for sender {sender!r}; there are {sorted(self._connections)}")
        proof = gevent.spawn(connection.prove, text, _PROOF_SECONDS)
        self._proofs = [one for one in self._proofs if not one.dead]
        self._proofs.append(proof)

    def _running(self) -> Runtime:
        if self._runtime is None or self._stopping:
            raise TransportError(f"Transceiver {self.sender} is not running: use it in a 'with' block, or start() it")
        self._runtime.context.check()
        return self._runtime

    @property
    def handshake_events(self) -> bool:
        """Whether the application answers opening handshakes itself."""
        return self._handshake_events

    @handshake_events.setter
    def handshake_events(self, wanted: bool) -> None:
        self._handshake_events = wanted
        if self._runtime is not None:
            self._runtime.handshake_events = wanted

    @property
    def rep_port(self) -> int | None:
        """The port of the control socket, the real one where 0 was given; ``None`` without a control socket."""
        return self._rep_port

    @property
    def started(self) -> bool:
        """True between entering and leaving."""
        return self._runtime is not None and not self._stopping

    # -- events ----------------------------------------------------------------------------------------------------

    def recv(self, timeout: float | None = None) -> Iterator[Item]:
        """Yield ``(sid, conn, req)`` for each event, of all connection sets, until :meth:`stop`.

        ``sid`` is ``(req.sender, req.conn_id)``; answer with ``conn.reply_http(req, ...)`` and the like. WebSocket
        handshakes are accepted, pings answered and the server's own messages consumed inside, so ``req.method`` is what
        a client asked with (``GET``, ``JSON``, ...), or ``WEBSOCKET_CONNECT``, ``WEBSOCKET``, ``WEBSOCKET_CLOSE``, or
        ``DISCONNECT`` for a client that went away while its request was open.

        Blocks this greenlet. Several greenlets may each run a ``recv()``; an event goes to one of them.

        Args:
            timeout: Yield ``(None, None, None)`` each time nothing came for so many seconds.
        """
        runtime = self._running()
        inbox = runtime.inbox
        items = inbox.items
        context = runtime.context
        done = (gevent.getcurrent(), Event())
        self._consumers.append(done)
        try:
            while True:
                while items:
                    if context.cut_off:
                        context.check()  # a forked child leaves with an error, not with its parent's events
                    connection, request = items.popleft()
                    if inbox.receivers_wait:
                        inbox.taken()
                    yield (request.sender, request.conn_id), connection, request
                if inbox.ended:
                    return
                in_time = inbox.wait(timeout)
                if context.cut_off:
                    context.check()
                if not in_time:
                    yield None, None, None
        finally:
            self._consumers.remove(done)
            done[1].set()

    def serve(
        self,
        handler: Handler | None = None,
        *,
        websocket: WebSocketHandler | None = None,
        pool: int | Pool | None = 1000,
    ) -> None:
        """Call handlers in greenlets of their own until :meth:`stop`. Blocks this greenlet.

        Requests of one browser connection are handled one after the other, in order. A handler that raises is logged
        with its traceback; where nothing was answered yet the client gets a 500.

        Args:
            handler: ``handler(conn, req)`` for each event that :meth:`recv` would yield. With *websocket* it gets no
                WebSocket events; without it they are its own.
            websocket: ``websocket(ws)`` for each :class:`~greentx.websocket.WebSocket`. When it returns the WebSocket
                is closed (1000), when it raises too (1011).
            pool: How many *handler* greenlets at once: a number, a ``gevent.pool.Pool``, ``None`` for no limit.
        """
        if handler is None and websocket is None:
            raise ValueError("serve() needs a handler, a websocket handler, or both")
        runtime = self._running()
        dispatcher = Dispatcher(runtime, handler, websocket, pool)
        self._dispatchers.append(dispatcher)
        try:
            for _sid, connection, request in self.recv():
                assert connection is not None and request is not None
                dispatcher.dispatch(connection, request)
            dispatcher.join()
            if dispatcher in self._dispatchers:
                self._dispatchers.remove(dispatcher)
        finally:
            dispatcher.stop()  # after an exception its handlers go on, until the Transceiver ends them

    def attach(self, worker: Worker) -> None:
        """Have the end wait for *worker*, which takes events out of :meth:`recv`, as it waits for :meth:`serve`."""
        self._running()
        self._dispatchers.append(worker)

    def detach(self, worker: Worker) -> None:
        """The end need not wait for *worker* any more; safe to call twice."""
        if worker in self._dispatchers:
            self._dispatchers.remove(worker)

    # -- WebSockets ------------------------------------------------------------------------------------------------

    @property
    def websockets(self) -> Registry:
        """The live WebSockets: ``len()``, iteration over sids, ``join(sid, group)``, ``leave(sid, group)``."""
        return self._registry

    def broadcast(self, message: str | bytes, group: str | None = None, exclude: Iterable[Sid] = ()) -> int:
        """Send one message to all live WebSockets, or to those of *group*, over all connection sets.

        It is encoded once and goes out to 128 of them in a message; for those that agreed on compression it is
        compressed once for all with the same parameters. Blocks this greenlet while a pipe is full.

        Args:
            message: ``str`` goes out as text, bytes as binary.
            exclude: Sids that do not get it.

        Returns:
            How many it went to.

        Raises:
            SendTimeout: A pipe stayed full; others may have got the message.
            TypeError, LocalProtocolError: As ``WebSocket.send``; or *exclude* holds something else than sids.
        """
        if self._runtime is None:
            self._running()  # says why not; while stopping nobody is left to reach, which is no error
        if self._runtime is not None and self._runtime.context.cut_off:
            self._runtime.context.check()
        payload, opcode = encode_message(message)
        excluded = frozenset(exclude)
        if any(not isinstance(sid, tuple) for sid in excluded):
            raise TypeError(f"exclude holds sids, which are (sender, conn_id) each; not {exclude!r}")
        by_sender: dict[str, list[Any]] = {}
        for entry in self._registry.members(group):
            if not excluded or entry.sid not in excluded:
                by_sender.setdefault(entry.sid[0], []).append(entry)
        reached = 0
        for sender, entries in by_sender.items():
            for connection in list(self._connections.values()):
                if sender in connection.sessions.senders:
                    connection._run(connection.sessions.broadcast, entries, payload, opcode)
                    reached += len(entries)
                    break
        return reached

    @property
    def pending(self) -> int:
        """How many events wait for who runs :meth:`recv`, or :meth:`serve`."""
        return len(self._runtime.inbox) if self._runtime is not None else 0

    # -- what others ask -------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the control socket's ``STATUS`` answers: version, pid, counts, each connection set."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "sender": self.sender,
            "websockets": len(self._registry),
            "pending": self.pending,
            "connections": [connection.status() for connection in self._connections.values()],
        }

    def __repr__(self) -> str:
        state = "running" if self.started else "stopped"
        return (
            f"<Transceiver {self.sender}: {state}, {len(self._connections)} connections, "
            f"{len(self._registry)} WebSockets>"
        )
