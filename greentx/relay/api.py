"""The API's side: requests forwarded to Nodes. What is guaranteed is in :mod:`greentx.relay`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from time import monotonic
from types import TracebackType
from typing import Any

import gevent

from ..errors import LocalProtocolError, TransportError
from ..handler.connection import Connection
from ..handler.shared import Extension
from ..handler.transceiver import Transceiver
from ..protocol.kinds import ENDS, NO_ANSWER, WEBSOCKETS, Kind
from ..protocol.request import Request
from ..transport.endpoints import Address, bind_endpoint
from ..transport.keys import KeyFile, load_keys, public_keys
from ..transport.security import Access
from .claims import StickyNames
from .forwarding import Forwarding
from .leaving import Leaving
from .messages import check_annotation, topic_of
from .nodes import Nodes
from .plain_sockets import PlainSockets
from .proofs import Proofs
from .servers import Servers, Words
from .serving import Serving
from .sockets import Sockets
from .sticky import Sticky
from .turns import Turns, message_of
from .ways import Ways

__all__ = ["Relay"]

log = logging.getLogger("greentx.relay")

# How often the end looks whether all is answered.
_LOOK_SECONDS = 0.002


class Relay(Extension):
    """Forwards requests of a running Transceiver to Nodes, and publishes to them.

    It ends with its Transceiver, or by :meth:`close`; also a context manager. Its methods may be called from any
    greenlet and any native thread.

    Args:
        transceiver: The API's, started.
        push_addr: Where to bind PUSH, for handlers that are not Nodes: ``(host, port)`` or an endpoint; port 0 is any
            free one. They get Mongrel2's own messages of servers that no Node can answer, as while no Node is there or
            reaches them, and what becomes of those is not known. ``None``: there are none.
        pub_addr: Where to bind XPUB, for topics, likewise. ``None``: there are none.
        node_addr: Where to bind ROUTER, for Nodes. By default a free port on the host of *push_addr*, of *pub_addr*, or
            of this machine alone.
        send_timeout: Seconds that a request waits while nobody has room for it; ``None`` waits forever.
        sticky: Names of query parameters. A Node may claim a session by such a name and a value
            (:meth:`Node.claim <greentx.relay.Node.claim>`), and gets all requests with these from then on. One with an
            unknown value, of a name that is claimed by, waits 50 ms for a claim. Engine.IO's ``sid`` is claimed by
            Nodes with a WSGI server, by themselves.
        retry: Methods of which a request may be given to another Node when the one that had it has gone.
        curve_secret: A file of our own CURVE keys, ``NAME.key_secret``, as ``greentx keys`` makes it. With it all
            sockets are encrypted, and serve those with a key in *curve_allow* only.
        curve_allow: Public keys of the Nodes: a folder of ``*.key`` files, one such file, several, or bytes (Z85).

    Raises:
        TransportError: The Transceiver is not running; CURVE is wanted, and this libzmq was built without it.
        LocalProtocolError: (a ``ValueError``) An address, a key or another option is malformed.
        BindError: An address cannot be bound; the message names it. Nothing is left open.

    Attributes:
        nodes: The Nodes that are there.
        sticky: Which Node each browser connection belongs to.
        words: What the present lives of servers are called.
        leaving: Which Node leaves when.
        forwarding, proofs, servers: What it works with; not for applications.
    """

    def __init__(
        self,
        transceiver: Transceiver,
        push_addr: Address | None = None,
        pub_addr: Address | None = None,
        *,
        node_addr: Address | None = None,
        send_timeout: float | None = 30.0,
        retry: Collection[str] = ("GET", "HEAD", "OPTIONS"),
        sticky: Iterable[str] = ("sid",),
        curve_secret: str | os.PathLike[str] | None = None,
        curve_allow: KeyFile | Iterable[KeyFile] | None = None,
    ) -> None:
        # Checked before anything is opened: of several sockets some would be left.
        push_endpoint, pub_endpoint = _bind(push_addr), _bind(pub_addr)
        node_endpoint = _node_endpoint(push_endpoint or pub_endpoint) if node_addr is None else bind_endpoint(node_addr)
        _check_options(send_timeout, retry)
        names = StickyNames(sticky)
        access = _access(transceiver.sender, curve_secret, curve_allow)
        shared = transceiver.shared()
        self.words = Words()
        self._transceiver = transceiver
        self._shared = shared
        self._closed = False
        self.sticky = Sticky()
        context = shared.context
        self._plain = PlainSockets(context, push_endpoint, pub_endpoint, access)
        try:
            self.nodes = Nodes(context, node_endpoint, lambda at: self.servers.welcome(at, self.pub_endpoint), access)
        except BaseException:  # raised again: a kill, too, must not leave the other sockets
            self._plain.close(0)
            raise
        self.servers = Servers(transceiver, self.nodes, self.words)
        self.proofs = Proofs(context, self.nodes.send)
        self.forwarding = Forwarding(
            context,
            self.nodes,
            self.sticky,
            word=self.words.of,
            push=None if self._plain.pusher is None else self._plain.pusher.offer,
            retry=retry,
            send_timeout=send_timeout,
            answered=lambda session, entries: self._turns.answered(session, entries),
            proofs=self.proofs,
            sessions=names,
        )
        self._turns = Turns(self.forwarding, self.nodes, self.proofs, send_timeout, check=self._check)
        self._ways = Ways(
            context,
            self.nodes,
            self.sticky,
            connections=transceiver.connections.values,
            word=self.words.of,
            close=self.forwarding.close_connection,
        )
        self.forwarding.progress.parted = self._ways.parted
        self.leaving = Leaving(context, self.nodes)
        self.sockets = Sockets(transceiver, shared, self.nodes, self.sticky, self.forwarding.claiming, send_timeout)
        self._serving = Serving(transceiver, shared, self.servers, self.forwarding, self.sockets, forward=self.forward)
        # Known to the Transceiver only from here on: what it calls needs all of the above.
        shared.extensions += [self, self.sockets]
        self._drain = _Drain(self.forwarding)
        transceiver.attach(self._drain)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.nodes)} nodes, {self.forwarding.open} open"
        return f"<Relay {self.node_endpoint}: {state}, {self.forwarding.counts.forwarded} forwarded>"

    @property
    def node_endpoint(self) -> str:
        """Where Nodes connect to, with the real port."""
        return self.nodes.endpoint

    @property
    def push_endpoint(self) -> str | None:
        """Where plain handlers pull; ``None`` for nowhere."""
        return self._plain.push_endpoint

    @property
    def pub_endpoint(self) -> str | None:
        """Where topics are subscribed to; ``None`` for nowhere."""
        return self._plain.pub_endpoint

    @property
    def topics(self) -> frozenset[str]:
        """The topics that somebody is subscribed to."""
        return frozenset(topic.decode(errors="backslashreplace") for topic in self._plain.topics)

    @property
    def open(self) -> int:
        """How many requests Nodes have, and have not answered yet."""
        return self.forwarding.open

    # -- what goes out ---------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Forward all that comes, unchanged, until the Transceiver stops, or the relay is closed.

        Blocks this greenlet, or native thread. Nothing of it comes out of ``recv()`` or ``serve()`` of the Transceiver
        then. A request for which nobody has room within ``send_timeout`` is answered 503; each one at once where the
        relay was closed, until somebody else reads what comes to the Transceiver.

        Raises:
            TransportError: The relay is closed.
        """
        context = self._shared.context
        if not context.in_hub_thread():
            context.hand_over(self.serve)
            return
        self._check()
        self._serving.run()

    def forward(self, req: Request, headers: Mapping[str, str | list[str]] | None = None) -> None:
        """Forward *req* to a Node, which answers it.

        For this process it has then been answered. Where it came while an earlier request of its connection was open,
        it is forwarded as soon as the answer to that has arrived, and this returns at once. ``DISCONNECT`` is ignored:
        a Node is told of ends anyway. So is a request whose connection has ended.

        Of a WebSocket forward each event: the first one gives it to a Node, where the application has it. An opening
        handshake (with ``handshake_events``) is answered by a Node's application.

        Blocks this greenlet while no Node has room for it.

        Args:
            req: As it came out of ``recv()``.
            headers: Added for the Node. Names are upper case, as the server's own: Mongrel2 lower-cases the names that
                a client sends, so none of these can be forged. The names of Mongrel2 itself are refused.

        Raises:
            SendTimeout: No Node had room for it within ``send_timeout``. It is still open here, so answer it (503).
            LocalProtocolError: A name that will not do; or *req* was answered, in part or whole, or forwarded before.
            TransportError: The relay is closed.
        """
        if not self._shared.context.in_hub_thread():
            self._shared.context.hand_over(self.forward, req, headers)
            return
        self._check()
        extra = check_annotation(headers)
        if req.method == Kind.WEBSOCKET_CLOSE:
            self.sockets.ended(req)
            return
        # A loop that forwards everything forwards these as well; their Node has them from notice() already.
        if req.method in ENDS:
            return
        connection = self._connection_of(req)
        if not connection.answers.is_ours(req):
            return
        if req.method in WEBSOCKETS or req.method == Kind.WEBSOCKET_HANDSHAKE:
            self.sockets.forward(connection, req, extra)
            return
        self.servers.check_credits(connection)
        # No answer is due to these, so there is nothing to wait for, and no order to keep.
        if req.method in NO_ANSWER:
            self.forwarding.events.send(connection, req, message_of(req, extra))
            return
        # Two answers to one request would be read as the answers to two.
        if req.answered:
            raise LocalProtocolError(f"{req.method} {req.path} of connection {req.conn_id} was answered already")
        requests = connection.link.life.requests
        if requests.begun(req):
            raise LocalProtocolError(
                f"the answer to {req.method} {req.path} of connection {req.conn_id} has begun here, and a Node would "
                "begin it again: end it here, or forward a request before anything is sent"
            )
        if not requests.wait_turn(req, lambda: self._turns.forward(connection, req, extra)):
            return
        # Its turn has come, but what was written before it may be under way still, from here or from a Node.
        if req.pipelined:
            self._turns.forward(connection, req, extra)
        else:
            self._turns.forward_now(connection, req, extra)

    def publish(self, topic: str | bytes, message: str | bytes) -> None:
        """Send *message* to every Node that is subscribed to exactly *topic*; str goes out as UTF-8.

        Never blocks: who is not there, or has 100,000 messages waiting, does not get it.

        Raises:
            TransportError: The relay is closed, or has no *pub_addr*.
        """
        if not self._shared.context.in_hub_thread():
            self._shared.context.hand_over(self.publish, topic, message)
            return
        self._check()
        self._plain.publish(topic_of(topic) + (message.encode() if isinstance(message, str) else bytes(message)))

    def close(self) -> None:
        """Let go of the Nodes: the connections of what they have are closed. Safe to call twice."""
        self._drain.kill(0)
        self._transceiver.detach(self._drain)
        self.stop(self._shared.context.linger)

    def _check(self) -> None:
        if self._closed or self.forwarding.ended:
            raise TransportError(f"the relay at {self.node_endpoint} is closed")

    def _connection_of(self, request: Request) -> Connection:
        connections = self._transceiver.connections
        connection = connections.get(request.sender)
        if connection is None:
            # Its server names it otherwise than its handler entry; then the life says which connection set it is.
            for one in connections.values():
                if request.life is one.link.life:
                    return one
            raise LocalProtocolError(f"no connection for sender {request.sender!r}; there are {sorted(connections)}")
        return connection

    # -- what the Transceiver says ---------------------------------------------------------------------------------

    def ready(self, connection: Connection) -> None:
        """A server is there: Nodes connect to it, too."""
        self._serving.ready(connection)
        self.servers.tell()

    def notice(self, connection: Connection, request: Request) -> bool:
        """Send it to the Node that it concerns."""
        is_end = request.is_disconnect()
        # Not the connection set's own receipt, for which it would be taken.
        if is_end and (self.proofs.arrived(connection, request.conn_id) or self._ways.arrived(request.conn_id)):
            return True
        # Nor a Node's.
        session = self.servers.receipt_of(request.conn_id) if is_end else None
        if session is not None:
            self.nodes.send(session, b"notice " + self.words.of(connection).encode(), request.encode())
            return True
        if self.sticky.owner(connection, request.conn_id) is not None:
            self.forwarding.notice(connection, request.conn_id, request.encode())
        if is_end:
            self.sockets.client_gone(request)
            self.forwarding.connection_ended(connection, request.conn_id)
        return False

    def wrote(self, connection: Connection, conn_id: str, count: int) -> None:
        """Tell the Node that it concerns, and see which answers are written by it."""
        self.forwarding.wrote(connection, conn_id, count)

    def lost(self, connection: Connection) -> None:
        """Forget what was forwarded: nobody waits for the answers."""
        self.forwarding.lost(connection)
        self._ways.lost(connection)
        self.proofs.forget(connection)
        self.servers.lost(connection)

    def stop(self, linger: float) -> None:
        """Close the sockets."""
        # First: whoever calls forward() from now on gets a clear error.
        if self._closed:
            return
        self._closed = True
        if self in self._shared.extensions:
            self._shared.extensions.remove(self)
        try:
            self._serving.stop()
            self.leaving.stop()
            self._turns.stop()
            self._ways.stop()
            # It has those go on that wait for a proof: their turns come now.
            self.proofs.stop()
            self.sockets.stop(linger)
        finally:
            self.nodes.close(linger=linger)
            self._plain.close(linger)

    def report(self) -> dict[str, Any]:
        """Add :meth:`status` to the Transceiver's."""
        return {"relay": self.status()}

    def status(self) -> dict[str, Any]:
        """Return counts, and what is known of each Node, as ``STATUS`` shows it under ``relay``."""
        now = monotonic()
        return {
            "endpoint": self.node_endpoint,
            "push": self.push_endpoint,
            "pub": self.pub_endpoint,
            **self.forwarding.status(),
            "connections": len(self.sticky),
            "websockets": self.sockets.status(),
            "bad_messages": self.nodes.complaints.count,
            "nodes": [session.status(now) for session in self.nodes],
        }


class _Drain:
    """What the end of the Transceiver waits for: the answers of Nodes."""

    def __init__(self, forwarding: Forwarding) -> None:
        self._forwarding = forwarding

    def join(self) -> None:
        """Block until nothing is open or waits."""
        while self._forwarding.open or self._forwarding.waiting:
            gevent.sleep(_LOOK_SECONDS)

    def kill(self, timeout: float) -> int:
        """Answer all that is left, or close its connection; return how many there were."""
        left = self._forwarding.open + self._forwarding.waiting
        self._forwarding.stop()
        return left

    def greenlets(self) -> tuple[object, ...]:
        return ()


def _bind(addr: Address | None) -> str | None:
    return None if addr is None else bind_endpoint(addr)


def _check_options(send_timeout: float | None, retry: Collection[str]) -> None:
    # Also for a nan, which compares to nothing.
    if send_timeout is not None and not (isinstance(send_timeout, (int, float)) and send_timeout >= 0):
        raise LocalProtocolError(f"send_timeout is seconds, 0 or more, or None, not {send_timeout!r}")
    # A str is a collection of str as well: "GET" would be G, E and T.
    if isinstance(retry, str):
        raise LocalProtocolError(f"retry is a str, {retry!r}: give a list of methods")


def _node_endpoint(other: str | None) -> str:
    """Return where Nodes connect to, where that is not said: a free port next to *other*."""
    if other is not None and other.startswith("tcp:"):
        return other.rpartition(":")[0] + ":*"
    return bind_endpoint(("127.0.0.1", 0))


def _access(
    sender: str, curve_secret: str | os.PathLike[str] | None, curve_allow: KeyFile | Iterable[KeyFile] | None
) -> Access | None:
    if (curve_secret is None) is not (curve_allow is None):
        raise LocalProtocolError("curve_secret and curve_allow go together: our own keys, and the Nodes' public ones")
    if curve_secret is None or curve_allow is None:
        return None
    return Access(f"relay of {sender}", keys=load_keys(curve_secret), allowed=public_keys(curve_allow))
