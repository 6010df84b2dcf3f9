"""The handler side as a whole: connection sets, pinger and control socket under one roof.

A Transceiver enters with its sockets up and leaves with everything gone, whatever way it leaves: see
:mod:`greentx.transport.teardown`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from gevent.pool import Pool

from ..errors import TransportError
from ..protocol.bounds import MAX_PENDING_BYTES, MAX_QUEUE_BYTES
from ..protocol.fields import check_sender
from ..protocol.flow import DEFAULT_BOUNDS, Bounds
from ..protocol.http1 import HeaderFields
from ..protocol.request import Request
from ..protocol.websocket.deflate import DeflateConfig
from ..protocol.websocket.frames import CloseCode, Opcode
from ..protocol.websocket.handshake import Handshake, HeaderMap, Refused
from ..protocol.websocket.origins import Allowed
from ..protocol.websocket.registry import Registry, Sid
from ..protocol.websocket.sharing import Broadcast
from ..transport import Context
from ..transport.context import MAX_MESSAGE_SIZE
from ..transport.endpoints import Address, connect_endpoint
from ..transport.keys import KeyFile, load_keys
from ..transport.security import Dial, make_dial
from ..version import __version__
from .broadcasts import deliver, place_broadcast, wait_for_all
from .connection import Connection
from .dispatcher import Dispatcher, Handler, WebSocketHandler
from .ending import Ending, Worker
from .pinger import PING_SECONDS, Pinger, warn_of_idle_limit
from .remote import ControlSocket
from .sets import MAX_CONNECTIONS, ConnectionSets
from .shared import MAX_PENDING, SEND_TIMEOUT, Shared
from .sharing import SharedRegistry
from .uploads import check_store
from .websocket import encode_message
from .websockets import WebSocketOptions

__all__ = ["SHARED_WARNING", "Transceiver", "Worker"]

log = logging.getLogger("greentx.transceiver")

#: What is asked of permessage-deflate where nothing else is said.
DEFAULT_COMPRESSION = DeflateConfig()

#: What ``recv()`` yields, and what it yields with a timeout.
Event = tuple[Sid, Connection, Request]
Item = Event | tuple[None, None, None]

#: Said at the start where several processes share an entry.
SHARED_WARNING = (
    "%s: several processes share this handler entry: WebSockets need one process, and answers to pipelined requests "
    "may be out of order or mixed into each other, as Mongrel2 hands messages out in turn"
)


class Transceiver:
    """Receives what Mongrel2 hands out and sends the answers.

    Args:
        sender: The handler entry's ``send_ident``; letters, digits and ``-``.
        pull_addr: Its ``send_spec``, from which requests are pulled: ``(host, port)`` or any ZeroMQ endpoint. ``None``:
            its requests come another way.
        pub_addr: Its ``recv_spec``, to which replies are published. ``None``: there is no connection set until one is
            added.
        rep_port: Where the control socket binds: ``None`` is 9997, 0 a free port (read it here), ``False`` no socket.
            Whoever it answers may add servers.
        ping_timeout: Seconds between two pings of a WebSocket, and how long its pong may take once the ping has left,
            while the server does not stand still; ``None`` pings nobody. At most half of Mongrel2's
            ``limits.min_ping``, or that ends what waits: of a server of this process (``edge.Mongrel2``) that is known,
            and a warning says so.
        log_level: Lowers the level of the logger ``greentx`` where it is above this one; the default leaves the
            logging of the application as it is.
        rep_ip: The address that the control socket binds.
        connect_timeout: Seconds that entering waits for the server; ``None`` does not wait.
        send_timeout: Seconds that whoever sends waits on a full pipe, and over which *min_rate* is judged; ``None``
            waits forever. With several connection sets nobody waits for the first 16 MiB, and readers of :meth:`recv`
            and broadcasts wait beyond them only while the server still receives something, for a second without that.
        min_rate: Bytes a second that a browser has to read while something waits for it, or its connection is ended.
            Only known with ``download.flow_control``, by whole messages of up to 102400 bytes; one that reads nothing
            at all for ``send_timeout`` is ended in any case.
        max_outbox: Bytes that may wait for one browser where the writer does not wait for it: in the greenlet that
            runs :meth:`recv`, in deliveries and broadcasts. One that has more is ended.
        slow_timeout: Seconds for which more than 262144 bytes of broadcasts may wait for one WebSocket.
        slow_policy: What is done then: ``"close"`` ends it (1013), ``"drop-oldest"`` drops the oldest of them,
            ``"drop-newest"`` those that come.
        linger: Seconds that leaving may take to get out what was sent.
        max_pending: Events that may wait for the application before the server has to keep them.
        origins: Which pages may open a WebSocket; others get 403. A list of origins (``"https://example.org"``), where
            ``"same"`` stands for the host that is asked and ``None`` for clients that are not browsers; ``"same"``
            alone; or a callable that gets the value of ``Origin``. ``None`` lets in any page of the web.
        subprotocols, response_headers: For the opening handshake, as in
            ``greentx.protocol.websocket.handshake.Handshake``.
        on_handshake: Called with each handshake's ``Request``; may block; returns ``None`` or a ``Refused``.
        handshake_timeout: Seconds that *on_handshake* and other callables for the handshake may take, in which the
            client waits; then it gets 503. ``None`` waits forever.
        compression: What is wanted of permessage-deflate; ``None`` declines it.
        max_message_size: Bytes of a WebSocket message, inflated; larger ones end their connection (1009).
        max_queue_bytes: Bytes that may wait for one connection, as they are in memory: messages for a WebSocket's
            handler (then it is ended with 1013) or for its 101, pipelined requests (then the connection is closed).
        max_pending_bytes: The same for all connections; and, on its own, of the events that ``max_pending`` bounds the
            number of. See :mod:`greentx.protocol.bounds`.
        max_wire_size: Bytes of a ZeroMQ message from a server. A larger one ends the connection to the server, with all
            its WebSockets, so that any client could cause that where less is allowed than Mongrel2 sends.
        close_timeout: Seconds that a peer has to answer our close frame.
        shared: Several processes pull from one endpoint, and Mongrel2 hands its messages out in turn, notices too. So
            nothing waits for a notice that another process may get: what one browser is sent is paced by time and,
            with ``download.flow_control``, by those credits that do come here (:mod:`greentx.protocol.flow`). The
            messages of a WebSocket scatter: no compression, and messages of connections that another process let in
            are accepted. Answers to pipelined requests may be out of order, and mixed into each other, byte for byte,
            where they go out in several messages. A warning says so at the start. A body that Mongrel2 streams
            (``upload.stream``) is answered 413; one that it stores (``upload.temp_store``) is not, but all processes
            have to see the file.
        registry: Shares groups, counts and broadcasts with other processes, and with *shared* the WebSockets, too: a
            ``greentx.backends.redis.RedisRegistry``. Then each process knows all WebSockets of the entry, one pings
            them for all, and a process that ends leaves its own to the others.
        handshake_events: ``recv()`` yields opening handshakes of WebSockets, too (METHOD ``WEBSOCKET_HANDSHAKE``), and
            the application answers each: ``conn.accept_websocket(req)`` lets it in, any HTTP answer does not. May be
            changed later, for handshakes to come.
        upload_store: The server's ``upload.temp_store`` as this process sees it, an absolute path that ends in
            ``XXXXXX``; needed where the server names files otherwise (in a chroot, by relative paths).
        server_control: The server's control port, an endpoint such as ``ipc:///var/run/mongrel2/control``. With it the
            WebSockets that a handler let in which was killed are told within two ``ping_timeout`` to connect again
            (1012), and one that is sending a message in fragments is not taken for silent; see
            :mod:`greentx.handler.orphans` and :mod:`greentx.handler.progress`. Not with *shared*.
        control_allow: Networks that the control socket answers, such as ``["10.0.0.0/8"]``; ``None`` is loopback,
            private and link-local addresses. A refused peer hears nothing; a line in the log names it.
        max_connections: How many connection sets there may be, the first one included.
        allow_connections: Networks that servers added by the control socket may be in; ``None`` is anywhere. With it
            they have to give IP addresses, no names.
        curve_secret: A file of our own CURVE keys, ``NAME.key_secret``, as ``greentx keys`` makes it. With it the
            control socket is encrypted, and answers those in *curve_allow* only.
        curve_allow: Public keys of those that the control socket answers: a folder of ``*.key`` files, one such file,
            several, or keys as bytes (Z85). Read here, not again later.
        curve_server: The public key of the server at *pull_addr* and *pub_addr*, where that is a
            :class:`~greentx.Server` with CURVE; a file or bytes.

    Raises:
        LocalProtocolError: (a ``ValueError``) A sender that Mongrel2 could not parse back, a malformed address, network
            or key.
        TransportError: CURVE is wanted, and this libzmq was built without it.

    Attributes:
        pull_addr, pub_addr: As given.
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
        pull_addr: Address | None,
        pub_addr: Address | None,
        rep_port: int | None = None,
        ping_timeout: float | None = PING_SECONDS,
        log_level: int = logging.ERROR,
        *,
        rep_ip: str = "*",
        connect_timeout: float | None = None,
        send_timeout: float | None = SEND_TIMEOUT,
        min_rate: float = DEFAULT_BOUNDS.min_rate,
        max_outbox: int = DEFAULT_BOUNDS.max_outbox,
        slow_timeout: float = DEFAULT_BOUNDS.slow_timeout,
        slow_policy: str = "close",
        linger: float = 1.0,
        max_pending: int = MAX_PENDING,
        origins: Allowed = None,
        subprotocols: Iterable[str] | Callable[[list[str], HeaderMap], str | None] = (),
        response_headers: HeaderFields | Callable[[HeaderMap], HeaderFields] = (),
        on_handshake: Callable[[Request], Refused | None] | None = None,
        handshake_timeout: float | None = 10.0,
        compression: DeflateConfig | None = DEFAULT_COMPRESSION,
        max_message_size: int | None = 1024 * 1024,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        max_wire_size: int = MAX_MESSAGE_SIZE,
        close_timeout: float = 10.0,
        shared: bool = False,
        registry: SharedRegistry | None = None,
        handshake_events: bool = False,
        upload_store: str | None = None,
        server_control: Address | None = None,
        control_allow: Any = None,
        max_connections: int = MAX_CONNECTIONS,
        allow_connections: Any = None,
        curve_secret: str | os.PathLike[str] | None = None,
        curve_allow: KeyFile | Iterable[KeyFile] | None = None,
        curve_server: KeyFile | None = None,
    ) -> None:
        # All arguments are checked here, where they were written, and not when the sockets open.
        self.sender = check_sender(sender)
        self.pull_addr, self.pub_addr = pull_addr, pub_addr
        self.ping_timeout = ping_timeout
        self.connect_timeout = connect_timeout
        self.linger = linger
        if pull_addr is not None:
            connect_endpoint(pull_addr)  # told now if malformed, not when starting
        if pub_addr is not None:
            connect_endpoint(pub_addr)
        if server_control is not None:
            connect_endpoint(server_control)
        self._server_control = server_control
        keys = None if curve_secret is None else load_keys(curve_secret)
        self._sets = ConnectionSets(self.sender, max_connections, make_dial(keys, curve_server))
        self._control: ControlSocket | None = None
        # False, not None, says "no control socket": None is the original's default, its well-known port.
        if rep_port is not False:
            self._control = ControlSocket(
                self,
                self._sets,
                rep_ip,
                self.REP_PORT if rep_port is None else rep_port,
                keys,
                curve_allow=curve_allow,
                control_allow=control_allow,
                allow_connections=allow_connections,
            )
        # Also for NaN, which compares to nothing.
        if ping_timeout is not None and not ping_timeout > 0:
            raise ValueError(f"ping_timeout is a number of seconds above 0, or None; not {ping_timeout!r}")
        for name, value in (
            ("max_pending", max_pending),
            ("max_queue_bytes", max_queue_bytes),
            ("max_pending_bytes", max_pending_bytes),
            ("max_wire_size", max_wire_size),
            ("max_connections", max_connections),
        ):
            if value < 1:
                raise ValueError(f"{name} is at least 1, not {value!r}")
        self._max_wire_size = max_wire_size
        bounds = Bounds(min_rate=min_rate, max_outbox=max_outbox, slow_timeout=slow_timeout)
        # It outlives a run: groups can be looked at before the start and after the end, where it is empty.
        self._registry = Registry()
        # Each run has a context, an inbox and extensions of its own; what was said here holds for all of them.
        self._new_shared = partial(
            Shared,
            registry=self._registry,
            options=WebSocketOptions(
                handshake=Handshake(
                    origins=origins,
                    subprotocols=subprotocols if callable(subprotocols) else tuple(subprotocols),
                    headers=response_headers,
                    # Compressed messages refer to earlier ones, which another process may have got.
                    deflate=None if shared else compression,
                ),
                on_handshake=on_handshake,
                handshake_timeout=handshake_timeout,
                max_message_size=max_message_size,
                close_timeout=close_timeout,
                shared=shared,
                slow_policy=slow_policy,
            ),
            max_pending=max_pending,
            max_pending_bytes=max_pending_bytes,
            max_queue_bytes=max_queue_bytes,
            send_timeout=send_timeout,
            bounds=bounds,
            upload_store=check_store(upload_store),
            sharing=registry,
        )
        self._handshake_events = handshake_events
        self._shared: Shared | None = None
        self._ending: Ending | None = None
        # Never raised: the default must not silence what an application has asked to see.
        logger = logging.getLogger("greentx")
        if log_level < logging.WARNING and not logger.isEnabledFor(log_level):
            logger.setLevel(log_level)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the sockets; what ``with`` does on entering. Does not wait for the server, but for ``connect_timeout``.

        Raises:
            BindError: The control port is in use; the message says so.
            ConnectTimeout: No server within ``connect_timeout``. Nothing is left open.
            RuntimeError: It is started already.
        """
        if self._shared is not None:
            raise RuntimeError(f"{self!r} is started already")

        def ended() -> None:
            # It may be started again then; whoever asks meanwhile is told that it is not running.
            self._sets.clear()
            self._registry.watcher = None
            self._shared = None

        # From here on whatever ends the process ends this: see greentx.transport.teardown.
        context = Context(
            f"Transceiver {self.sender}",
            lambda: self.__exit__(None, None, None),
            linger=self.linger,
            max_message=self._max_wire_size,
        )
        try:
            self._shared = self._new_shared(context, handshake_events=self._handshake_events)
            sharing = self._shared.sharing
            if sharing is not None:
                # Before any connection set, which asks it.
                sharing.open(self._shared, partial(deliver, self._registry, self._sets), self.ping_timeout)
            if self._shared.options.handshake.origins is None:
                log.debug("%s: origins is not set: a WebSocket may be opened by pages of any site", self.sender)
            sources: list[Any] = []
            self._ending = Ending(self._shared, self._sets, sources, self.linger, ended)
            # Bound before anything connects: a port in use is found out without having disturbed a server.
            control = None
            if self._control is not None:
                control = self._control.open(context)
                sources.append(control)
            if self.pub_addr is not None:
                self.add_connection(
                    self.sender,
                    self.pull_addr,
                    self.pub_addr,
                    server_control=self._server_control,
                    curve_server=self.dial.server_key,
                )
            if self.ping_timeout is not None:
                # The sets are asked for each round: they come and go.
                pinger = Pinger(self._registry, lambda: list(self._sets), self.ping_timeout)
                # First to stop: a ping sent now would be answered to nobody.
                sources.insert(0, pinger)
                pinger.start()
            # Last: its first command may be there at once, and finds everything in place.
            if control is not None:
                control.start()
            if self._shared.options.shared and sharing is None:
                log.warning(SHARED_WARNING, self.sender)
            if self.connect_timeout is not None:
                self.wait_ready(self.connect_timeout)
        except BaseException:  # raised again
            # Also for Ctrl-C and a killed greenlet, which wait_ready() lets through: nothing is left open.
            self.__exit__(None, None, None)
            context.close(linger=0)
            raise

    def __enter__(self) -> Transceiver:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave at once: within ``linger`` + 1 s, whatever handlers are doing."""
        if self._shared is not None and self._ending is not None:
            self._ending.leave()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block this greenlet until both ways of every connection set work: replies arrive, requests are pulled.

        Raises:
            ConnectTimeout: One did not within *timeout* seconds; it names the address, and says what to look at.
            TransportError: The Transceiver is not running, or was stopped meanwhile.
        """
        context = self.shared().context
        if not context.in_hub_thread():
            context.hand_over(self.wait_ready, timeout)
            return
        self._sets.wait_ready(timeout, self.shared)

    def stop(self, timeout: float | None = None) -> None:
        """End gracefully: WebSockets get close 1001, intake ends, running handlers finish, the context goes.

        ``recv()`` and ``serve()`` return. Blocks until all is done; twice is once, and a second caller waits for the
        first. Callers that must not block return at once: the hub, and a handler that a stop in progress waits for.
        :mod:`greentx.handler.ending` has the order in which things end.

        Args:
            timeout: Seconds for the handlers to finish, then they are killed; ``None`` waits for them. Of several
                callers the shortest timeout wins.
        """
        if self._shared is not None and self._ending is not None:
            self._ending.stop(timeout)

    # -- connection sets -------------------------------------------------------------------------------------------

    def add_connection(
        self,
        sender: str,
        push_addr: Address | None,
        sub_addr: Address,
        *,
        replace: bool = False,
        stand_in: bool = False,
        server_control: Address | None = None,
        curve_server: KeyFile | None = None,
        retry_max: float | None = None,
    ) -> Connection:
        """Serve another Mongrel2 handler entry too, from now on.

        Args:
            sender: Its ``send_ident``.
            push_addr: Where that server pushes requests from (its ``send_spec``); ``None``: its requests come through
                a relay.
            sub_addr: Where it subscribes to replies (its ``recv_spec``).
            replace: End a connection set that has the same sender first; one with the same addresses too is kept.
            stand_in: The other side is a :class:`~greentx.Server`, or one of mongrel2-transceiver's, as for all that
                ask on the control socket: any sender without a space will do, and what is sent there is neither joined
                nor held back, nor is anything else sent.
            server_control: That server's control port, as for the Transceiver's own.
            curve_server: Its public key, where it is a :class:`~greentx.Server` with CURVE; ours are *curve_secret*.
            retry_max: Up to so many seconds pass between two attempts to reach it, doubled each time; ``None``: always
                0.1 s. For many servers that may be away, as each attempt costs.

        Raises:
            LocalProtocolError: (a ``ValueError``) The sender is in use already, also where the messages of another
                server that is there come with it; it is malformed, as an address or a key may be; there are
                ``max_connections`` already.
            TransportError: The Transceiver is not running.
        """
        shared = self.shared()
        if not shared.context.in_hub_thread():
            # Sockets and timers belong to the hub's thread.
            again = partial(
                self.add_connection,
                replace=replace,
                stand_in=stand_in,
                server_control=server_control,
                curve_server=curve_server,
                retry_max=retry_max,
            )
            return shared.context.hand_over(again, sender, push_addr, sub_addr)
        connection = self._sets.add(
            shared,
            sender,
            push_addr,
            sub_addr,
            replace=replace,
            stand_in=stand_in,
            server_control=server_control,
            remove=self.remove_connection,
            dial=make_dial(self.dial.keys, curve_server, retry_max=retry_max),
        )
        warn_of_idle_limit(sender, connection.pub_endpoint, self.ping_timeout)
        return connection

    def remove_connection(self, sender: str) -> None:
        """Serve that sender no more: its WebSockets get close 1001, what has arrived is still handed on.

        Requests of it that are answered later are not sent. What the server pushes in this very moment is lost: ZeroMQ
        has no way to give it back. Raises ``KeyError`` when there is no such sender.
        """
        shared = self.shared()
        if not shared.context.in_hub_thread():
            shared.context.hand_over(self.remove_connection, sender)
            return
        # Others may add the same sender again from now on, though this one takes its time to end.
        connection = self._sets.remove(shared, sender, CloseCode.GOING_AWAY, self.linger)
        for extension in shared.extensions[:]:
            extension.removed(connection)

    @property
    def conn(self) -> Connection:
        """The connection set of the Transceiver's own sender.

        Raises:
            TransportError: The Transceiver is not running.
            KeyError: That connection set was removed.
        """
        self.shared()
        return self._sets.get(self.sender)

    @property
    def connections(self) -> dict[str, Connection]:
        """The present connection sets by sender; a copy."""
        return self._sets.copy()

    @property
    def dial(self) -> Dial:
        """How its own connection set connects; for extensions."""
        return self._sets.dial

    def shared(self) -> Shared:
        """Return what the connection sets share, for extensions. Raises ``TransportError`` when it is not running."""
        if self._shared is None or self._ending is None or self._ending.stopping:
            raise TransportError(f"Transceiver {self.sender} is not running: use it in a 'with' block, or start() it")
        self._shared.context.check()
        return self._shared

    @property
    def handshake_events(self) -> bool:
        """Whether the application answers opening handshakes itself."""
        return self._handshake_events

    @handshake_events.setter
    def handshake_events(self, wanted: bool) -> None:
        self._handshake_events = wanted
        if self._shared is not None:
            self._shared.handshake_events = wanted

    @property
    def rep_port(self) -> int | None:
        """The port of the control socket, the real one where 0 was given; ``None`` without a control socket."""
        return None if self._control is None else self._control.port

    @property
    def started(self) -> bool:
        """True between entering and leaving."""
        return self._shared is not None and self._ending is not None and not self._ending.stopping

    # -- events ----------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:
        # Only with a timeout may nothing have come, which a program has to ask for then.
        @overload
        def recv(self, timeout: None = None) -> Iterator[Event]: ...
        @overload
        def recv(self, timeout: float | None) -> Iterator[Item]: ...

    def recv(self, timeout: float | None = None) -> Iterator[Item]:
        """Yield ``(sid, conn, req)`` for each event, of all connection sets, until :meth:`stop`.

        ``sid`` is ``(req.sender, req.conn_id)``; answer with ``conn.reply_http(req, ...)`` and the like. WebSocket
        handshakes are accepted, pings answered and the server's own messages consumed inside, so ``req.method`` is what
        a client asked with (``GET``, ``JSON``, ...), or ``WEBSOCKET_CONNECT``, ``WEBSOCKET``, ``WEBSOCKET_CLOSE``, or
        ``DISCONNECT`` for a client that went away while its request was open.

        Blocks this greenlet, or native thread: an application that blocks may run it in a thread of its own, while the
        thread that the Transceiver was started in lets greenlets run. Several may each run a ``recv()``; an event goes
        to one of them.

        Args:
            timeout: Yield ``(None, None, None)`` each time nothing came for so many seconds.
        """
        shared = self.shared()
        inbox = shared.inbox
        items = inbox.items
        context = shared.context
        ending = self._ending
        assert ending is not None
        consumer = ending.consume()
        try:
            if not context.in_hub_thread():
                yield from inbox.events_for_thread(context, timeout)
                return
            while True:
                while items:
                    if context.forked:
                        context.check()  # a forked child leaves with an error, not with its parent's events
                    # Not by names of this frame, which would hold the event until the next one comes. And without a
                    # call where nobody has to know, as for nearly every event.
                    yield inbox.pop() if inbox.by_pop else items.popleft()
                # Behind what is still there: an end does not lose what came before it.
                if inbox.ended:
                    if inbox.drained():
                        return
                    continue
                in_time = inbox.wait(timeout)
                if context.forked:
                    context.check()
                if not in_time:
                    yield None, None, None
        finally:
            ending.consumed(consumer)

    def serve(
        self,
        handler: Handler | None = None,
        *,
        websocket: WebSocketHandler | None = None,
        pool: int | Pool | None = 1000,
    ) -> None:
        """Call handlers in greenlets until :meth:`stop`. Blocks this greenlet, or native thread.

        The greenlets are those of the thread that the Transceiver was started in.

        Each request that is being handled has a greenlet to itself, which handles the next one of its browser
        connection afterwards: what is left in ``gevent.local`` is still there then, as with ``gevent.pywsgi``. Requests
        of one browser connection are handled one after the other, in order. A handler that raises is logged
        with its traceback; where nothing was answered yet the client gets a 500.

        Args:
            handler: ``handler(conn, req)`` for each event that :meth:`recv` would yield. With *websocket* it gets no
                WebSocket events; without it they are its own.
            websocket: ``websocket(ws)`` for each :class:`~greentx.WebSocket`. When it returns, the WebSocket is closed
                (1000); when it raises, too (1011). Of several calls that run, the last one gets each new WebSocket.
            pool: How many *handler* greenlets at once: a number, a ``gevent.pool.Pool``, ``None`` for no limit.
        """
        if handler is None and websocket is None:
            raise ValueError("serve() needs a handler, a websocket handler, or both")
        shared = self.shared()
        if not shared.context.in_hub_thread():
            shared.context.hand_over(partial(self.serve, handler, websocket=websocket, pool=pool))
            return
        # One for each call. Several loops share the events, but a new WebSocket goes to the one that began last.
        dispatcher = Dispatcher(shared, handler, websocket, pool)
        self.attach(dispatcher)
        try:
            # A recv() loop like any other, so the end treats it as one.
            for _sid, connection, request in self.recv():
                dispatcher.dispatch(connection, request)
                del request  # this frame must not hold it, with its stored body, until the next one comes
            dispatcher.join()
            self.detach(dispatcher)
        finally:
            dispatcher.stop()  # after an exception its handlers go on, until the Transceiver ends them

    def attach(self, worker: Worker) -> None:
        """Have the end wait for *worker*, which takes events out of :meth:`recv`, as it waits for :meth:`serve`."""
        self.shared()
        assert self._ending is not None
        self._ending.workers.append(worker)

    def detach(self, worker: Worker) -> None:
        """The end need not wait for *worker* any more; safe to call twice."""
        if self._ending is not None and worker in self._ending.workers:
            self._ending.workers.remove(worker)

    # -- WebSockets ------------------------------------------------------------------------------------------------

    @property
    def websockets(self) -> Registry:
        """The live WebSockets: ``len()``, iteration over sids, ``join(sid, group)``, ``leave(sid, group)``."""
        return self._registry

    def broadcast(self, message: str | bytes, group: str | None = None, exclude: Iterable[Sid] = ()) -> int:
        """Send one message to all live WebSockets, or to those of *group*, over all connection sets.

        With *registry* to those of all processes that share it: each sends it to the ones that it let in.

        It is encoded once and goes out to 128 of them in a message; for those that agreed on compression it is
        compressed once for all with the same parameters. Blocks this greenlet while a pipe is full.

        Args:
            message: ``str`` goes out as text, bytes as binary.
            exclude: Sids that do not get it.

        Returns:
            How many it goes to: those that are open, without those that *slow_policy* has miss it. Those of other
            processes do not count.

        Raises:
            SendTimeout: A pipe stayed full; all others have got the message.
            TransportError: On a Node: its relay is away, or went away meanwhile.
            TypeError, LocalProtocolError: As ``WebSocket.send``; or *exclude* holds something else than sids.
        """
        if self._shared is None:
            self.shared()  # says why not; while it stops there is nobody left to reach, which is not an error
        if self._shared is not None:
            context = self._shared.context
            if context.forked:
                context.check()
            if context.open and not context.in_hub_thread():
                return context.hand_over(self.broadcast, message, group, exclude)
        # Encoded once, whoever it goes to.
        payload, opcode = encode_message(message)
        # Once, also where it is an iterator; and a mistake in it is found before anything was sent.
        excluded = frozenset(exclude)
        if any(not isinstance(sid, tuple) for sid in excluded):
            raise TypeError(f"exclude holds sids, which are (sender, conn_id) each; not {exclude!r}")
        broadcast = Broadcast(payload, opcode, group, excluded)
        placed = place_broadcast(self._registry, self._sets, broadcast)
        extensions = [] if self._shared is None else self._shared.extensions[:]
        reached = sum(extension.broadcast(broadcast) for extension in extensions)
        return reached + wait_for_all(placed)

    @property
    def pending(self) -> int:
        """How many events wait for who runs :meth:`recv`, or :meth:`serve`."""
        return len(self._shared.inbox) if self._shared is not None else 0

    # -- what others ask -------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the control socket's ``STATUS`` answers: version, pid, counts, each connection set.

        ``ready`` is true while all works; ``why`` lists what does not, and what to look at.
        """
        connections = [connection.status() for connection in self._sets]
        why = [text for text in (one["why"] for one in connections) if text]
        if self._ending is not None:
            why += [source.trouble for source in self._ending.sources if source.trouble]
        if self._shared is not None and self._shared.sharing is not None and self._shared.sharing.trouble:
            why.append(self._shared.sharing.trouble)
        added: dict[str, Any] = {}
        for extension in () if self._shared is None else self._shared.extensions:
            added |= extension.report()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "sender": self.sender,
            "ready": self.started and not why,
            "why": why,
            "websockets": len(self._registry),
            "pending": self.pending,
            "connections": connections,
            **added,
        }

    def __repr__(self) -> str:
        state = "running" if self.started else "stopped"
        return f"<Transceiver {self.sender}: {state}, {len(self._sets)} connections, {len(self._registry)} WebSockets>"
