"""The chain "API -> Node": one transceiver takes requests in, others answer them directly.

::

    browser -> Mongrel2 -- PUSH --> PULL  API: Transceiver + Relay
                  ^                          |  PUSH (bind)   requests, to one Node each
                  |                          |  XPUB (bind)   notices and topics, to all; receipts come back
                  |                          v
                  +-- SUB <-- XPUB -- Node: PULL, XSUB (connect)

The API decides (who asks, may they, which kind of work it is), a :class:`Node` works and answers. What is guaranteed:

* A request goes to one Node. It is open there as if Mongrel2 had sent it, and no longer here: here it counts as
  answered. Later requests of the same browser connection, answered here or handed on, wait until Mongrel2 has the
  answer, so that pipelined ones stay in order. It says so by a notice of a connection that is not there, to which
  whoever answered sends something behind it; where none comes, time has to do. (Left open: a request that comes when
  the answer before it is on its way already, though its client did not wait for that.)
* The end of a connection reaches the Node: each notice of the server is published to all Nodes, and each acts on those
  that it knows. A Node that works on a request when its connection ends sees ``DISCONNECT``.
* A Node that ends, or is cut off, while it works: the browsers that wait for it are disconnected, and can try again.
  What lay in its queue, not taken yet, is lost, as with any handler of Mongrel2: those browsers wait in vain.
* An answer never reaches a stranger: connection ids begin at 1 again when Mongrel2 restarts, so each request carries a
  word for the server's present life. A Node whose own connection to Mongrel2 broke asks the API which word is valid.
  (Left open: a request that the API hands on after Mongrel2 died and before it saw that.)
* The API may restart: Nodes connect again by themselves, and go on with what they have.

WebSockets stay the API's: it shakes hands, validates, pings and closes. Events that it hands on are not sticky, each
goes to the next Node. A Node has the WebSockets in its registry whose messages it has seen, to answer and to broadcast
to; all Nodes hear of their end. An answer from a Node is not compressed.

On the wire: PUSH carries Mongrel2's own request messages, so any Mongrel2 handler can pull them (then with
``receipts=False``), with one header more, ``RELAY``: the life, the request's token or nothing, the address of the
server's SUB socket. Headers in upper case are the server's and the API's: Mongrel2 lower-cases what a client sends.
XPUB carries ``N`` and a request message (a notice, or the end of a WebSocket); ``T``, a topic as a netstring and a
message; ``@name`` and JSON, to one Node: the valid lives, or ``prove``, a sender and the number that its server is to
give notice of. A Node sends ``+name tokens`` (taken), ``-name tokens`` (answered) and ``?name number`` (which lives are
valid?).
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group

from .connection import Connection
from .endpoints import Address, bind_endpoint, connect_endpoint
from .errors import GreentxError, LocalProtocolError, RemoteProtocolError, TransportError
from .frames import Opcode, parse_flags
from .headers import SERVER_NAMES
from .pipeline import OpenRequests
from .registry import OPEN, Entry, Sid
from .runtime import Attachment, Runtime
from .session import Sessions
from .transceiver import Transceiver
from .transport import NOBODY, NUMBERS, Publisher, Receiver, SocketKind, first_number, native_thread_id
from .transport.server_side import Pusher
from .wire import Request, build_request, check_sender, parse_request

__all__ = ["Node", "Relay"]

log = logging.getLogger("greentx.relay")

#: The header that a relay adds. A Node takes it off again.
HEADER = "RELAY"

#: A Node keeps so many requests while its own connection to Mongrel2 is broken, and messages of topics to be handled.
MAX_HELD = 1000

# Names that a client cannot send, since Mongrel2 lower-cases its letters.
_ANNOTATION = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)

# What Mongrel2 says of a request, and what we make of it, is not the API's to change.
_TAKEN_NAMES = SERVER_NAMES | {"QUERY_STR", HEADER}

_SOCKET_METHODS = frozenset({"JSON", "XML"})
_WEBSOCKET_METHODS = frozenset({"WEBSOCKET", "WEBSOCKET_CONNECT"})
_ENDS = frozenset({"DISCONNECT", "WEBSOCKET_CLOSE"})

# While an answer waits to be written its receipt waits too, so long at a time.
_RECEIPT_SECONDS = 0.002

# Between an answer of ours and the next request of that connection for a Node, where requests are pipelined.
_TURN_SECONDS = 0.005

# How long the notice of the server that an answer has arrived is waited for. A missing one counts 2, each that comes
# takes 1 off, and at the limit none are asked for.
_PROOF_SECONDS = 0.25
_MAX_UNPROVED = 8
_PROOF_DIGITS = len(str(NOBODY))

# Lives of servers that are over, as a Node remembers them: its queue does not go further back.
_MAX_OLD_LIVES = 64


class _Forwarded:
    """A request that a Node answers."""

    __slots__ = ("connection", "node", "stand_in")

    def __init__(self, connection: Connection, stand_in: Request) -> None:
        self.connection = connection
        self.stand_in = stand_in
        self.node: str | None = None


class _Proof:
    """What waits for the server to say that it has taken something in."""

    __slots__ = ("connection", "then", "timer")

    def __init__(self, connection: Connection, then: Callable[[], None], timer: Any) -> None:
        self.connection = connection
        self.then = then
        self.timer = timer


class Relay(Attachment):
    """Hands requests of a running Transceiver on to Nodes, and publishes to them.

    It ends with its Transceiver, or by :meth:`close`; also a context manager. Its methods may be called from any
    greenlet and any native thread.

    Args:
        transceiver: The API's, started.
        push_addr: Where to bind PUSH: ``(host, port)`` or an endpoint; port 0 is any free one.
        pub_addr: Where to bind XPUB, likewise.
        send_timeout: Seconds that :meth:`forward` waits while no Node takes a request; ``None`` waits for ever.
        receipts: False where handlers pull that are no Nodes of greentx. Nothing is then known of what became of a
            request: pipelined ones may be answered out of order, and a handler that dies is not noticed.

    Raises:
        TransportError: The Transceiver is not running.
        BindError: An address cannot be bound; the message names it. Nothing is left open.

    Attributes:
        push_endpoint, pub_endpoint: Where it was bound, with the real ports; for :class:`Node` to connect to.
        forwarded: How many requests and events were handed on.
        lost_requests: How many connections were closed because the Node that worked for them went away.
    """

    def __init__(
        self,
        transceiver: Transceiver,
        push_addr: Address,
        pub_addr: Address,
        *,
        send_timeout: float | None = 30.0,
        receipts: bool = True,
    ) -> None:
        push_endpoint, pub_endpoint = bind_endpoint(push_addr), bind_endpoint(pub_addr)
        runtime = transceiver._running()
        self._id = uuid.uuid4().hex[:12]
        self._transceiver = transceiver
        self._runtime = runtime
        self._context = runtime.context
        self._send_timeout = send_timeout
        self._receipts = receipts
        self.forwarded = 0
        self.lost_requests = 0
        self._numbers = count(1)
        self._open: dict[str, _Forwarded] = {}
        self._tokens: dict[Sid, str] = {}
        self._lives: dict[Connection, tuple[OpenRequests, str]] = {}
        self._nodes: set[str] = set()
        self._topics: set[bytes] = set()
        self._later = Group()
        self._first_proof = first_number()
        self._asked = 0
        self._proofs: dict[str, _Proof] = {}
        self._unproved: dict[Connection, int] = {}
        self._pusher: Pusher | None = Pusher(self._context, push_endpoint)
        try:
            self._publisher = Publisher(self._context, pub_endpoint, self._on_upstream)
        except BaseException:
            self._pusher.close()
            raise
        self.push_endpoint = self._pusher.endpoint
        self.pub_endpoint = self._publisher.endpoint
        runtime.attachments.append(self)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._pusher is None else f"{len(self._nodes)} nodes, {len(self._open)} open"
        return f"<Relay {self.push_endpoint} {self.pub_endpoint}: {state}, {self.forwarded} forwarded>"

    @property
    def nodes(self) -> frozenset[str]:
        """The names of the Nodes that are connected."""
        return frozenset(self._nodes)

    @property
    def topics(self) -> frozenset[str]:
        """The topics that somebody is subscribed to."""
        return frozenset(topic.decode(errors="backslashreplace") for topic in self._topics)

    @property
    def open(self) -> int:
        """How many requests were handed on and not answered yet, as far as is known."""
        return len(self._open)

    # -- what goes out ---------------------------------------------------------------------------------------------

    def forward(self, req: Request, headers: Mapping[str, str | list[str]] | None = None) -> None:
        """Hand *req* on to a Node, which answers it.

        For this process it has then been answered. Where it came while an earlier request of its connection was open,
        it is handed on as soon as the answer to that has arrived, and this returns at once. ``DISCONNECT`` and
        ``WEBSOCKET_CLOSE`` are passed over: each Node is told of ends anyway. So is a request whose connection has
        ended.

        Blocks this greenlet while no Node has room for it.

        Args:
            req: As it came out of ``recv()``.
            headers: Added for the Node. Names are upper case, as the server's own: Mongrel2 lower-cases the names that
                a client sends, so none of these can be forged. The names of Mongrel2 itself are refused.

        Raises:
            SendTimeout: No Node took it within ``send_timeout``. It is still open here, so answer it (503).
            LocalProtocolError: A name that will not do; or *req* was answered, or handed on, before.
            TransportError: The relay is closed.
        """
        if native_thread_id() != self._context.thread_id:
            self._context.hand_over(self.forward, req, headers)
            return
        pusher = self._running()
        extra = _checked_annotation(headers)
        if req.method in _ENDS:
            return
        connection = self._connection_of(req)
        if not connection._is_ours(req):
            return
        books = connection._open
        if req.method in _SOCKET_METHODS or req.method in _WEBSOCKET_METHODS:
            pusher.send(self._message(connection, req, "", extra), self._send_timeout)
            self.forwarded += 1
            return
        if req._answered:
            raise LocalProtocolError(f"{req.method} {req.path} of connection {req.conn_id} was answered already")
        if not books.wait_turn(req, lambda: self._forward_soon(connection, req, extra)):
            return
        if req._pipelined:
            self._forward_soon(connection, req, extra)
        else:
            self._forward_now(connection, req, extra)

    def publish(self, topic: str | bytes, message: str | bytes) -> None:
        """Send *message* to every Node that is subscribed to exactly *topic*; str goes out as UTF-8.

        Never blocks: who is not there, or has 100,000 messages waiting, does not get it.

        Raises:
            TransportError: The relay is closed.
        """
        if native_thread_id() != self._context.thread_id:
            self._context.hand_over(self.publish, topic, message)
            return
        self._running()
        self._publisher.send(_topic(topic) + (message.encode() if isinstance(message, str) else bytes(message)))

    def close(self) -> None:
        """Let go of the Nodes; what they work on now they still answer. Safe to call twice."""
        self.stop(self._context.linger)

    def _running(self) -> Pusher:
        if self._pusher is None:
            raise TransportError(f"the relay at {self.push_endpoint} is closed")
        return self._pusher

    def _connection_of(self, request: Request) -> Connection:
        connections = self._transceiver.connections
        connection = connections.get(request.sender)
        if connection is None:
            for one in connections.values():
                if request._books is one._open:
                    return one
            raise LocalProtocolError(f"no connection for sender {request.sender!r}; there are {sorted(connections)}")
        return connection

    def _message(self, connection: Connection, request: Request, token: str, extra: Mapping[str, Any]) -> bytes:
        raw = request._raw if request._headers is None else request._headers
        headers = {**raw, **extra, HEADER: f"{self._life(connection)} {token} {connection.pub_endpoint}"}
        if request.method in _WEBSOCKET_METHODS:
            # What a plain handler would get: a whole message, unmasked and inflated.
            opcode = Opcode.TEXT if request.opcode is None else request.opcode
            headers |= {"METHOD": request.method, "FLAGS": f"0x{0x80 | opcode:X}"}
        if connection._writer.flow_control:
            headers.setdefault("DOWNLOAD_CREDITS", "102400")
        return build_request(request.sender, request.conn_id, request.path, headers, request.body)

    def _forward_now(
        self, connection: Connection, request: Request, extra: Mapping[str, Any], stand_in: Request | None = None
    ) -> None:
        token = f"{self._id}.{next(self._numbers)}" if self._receipts else ""
        self._running().send(self._message(connection, request, token, extra), self._send_timeout)
        self.forwarded += 1
        books = connection._open
        if books.heads.get(request.conn_id) is not (stand_in or request):
            return  # not one of the open ones, or its connection ended while this greenlet waited
        if stand_in is None:
            stand_in = books.delegate(request)
        if token:
            self._open[token] = _Forwarded(connection, stand_in)
            self._tokens[request.sid] = token
        else:
            connection.release(stand_in)

    def _forward_soon(self, connection: Connection, request: Request, extra: Mapping[str, Any]) -> None:
        """It is this pipelined request's turn; for this process it has been answered. May be called in the hub."""
        stand_in = connection._open.delegate(request)
        self._later.spawn(self._forward_later, connection, request, extra, stand_in)

    def _forward_later(
        self, connection: Connection, request: Request, extra: Mapping[str, Any], stand_in: Request
    ) -> None:
        is_done = False
        try:
            # Two processes in turn write to one connection, of which neither knows what the other wrote, and Mongrel2
            # kills it at the 17th message in its queue: give it time. And what is before has to have arrived.
            gevent.sleep(_TURN_SECONDS)
            while connection._writer.waiting(request.conn_id):
                gevent.sleep(_RECEIPT_SECONDS)
            arrived = Event()
            self._prove(connection, request.sender, arrived.set)
            arrived.wait()
            if connection._is_ours(stand_in):
                self._forward_now(connection, request, extra, stand_in)
            is_done = True
        except GreentxError as error:
            log.warning("%s %s could not be handed on, closing its connection: %s", request.method, request.path, error)
        finally:
            if not is_done:  # also where the relay is closed meanwhile
                connection.close(stand_in)

    def _life(self, connection: Connection) -> str:
        known = self._lives.get(connection)
        if known is None or known[0] is not connection._open:
            known = self._lives[connection] = (connection._open, f"{self._id}.{next(self._numbers)}")
        return known[1]

    # -- what Nodes say --------------------------------------------------------------------------------------------

    def _on_upstream(self, message: bytes) -> None:
        kind, text = message[:1], message[1:]
        if kind in (b"\x00", b"\x01"):
            self._on_subscription(kind == b"\x01", text)
            return
        words = text.decode("latin-1").split(" ")
        if kind == b"?":
            self._tell(words[0], words[-1])
        elif kind == b"+":
            for token in words[1:]:
                taken = self._open.get(token)
                if taken is not None:
                    taken.node = words[0]
        elif kind == b"-":
            self._answered(words[0], words[1:])
        else:
            log.warning("a subscriber at %s sent %r, which means nothing here", self.pub_endpoint, message[:60])

    def _on_subscription(self, begins: bool, topic: bytes) -> None:
        if topic[:1] == b"@":
            name = topic[1:-1].decode("latin-1")
            if begins:
                self._nodes.add(name)
                self._tell(name, "")
            else:
                self._nodes.discard(name)
                self._on_node_gone(name)
        elif topic[:1] == b"T":
            name_bytes = topic[topic.find(b":") + 1 : -1]
            (self._topics.add if begins else self._topics.discard)(name_bytes)

    def _tell(self, name: str, number: str) -> None:
        lives = {connection.sender: self._life(connection) for connection in self._transceiver.connections.values()}
        told = {"relay": self._id, "lives": lives, "number": number}
        self._publisher.send(_own_topic(name) + json.dumps(told).encode())

    def _answered(self, node: str, tokens: list[str]) -> None:
        """A Node answered requests: the next ones of their connections may be, once these answers have arrived."""
        awaited: dict[tuple[Connection, str], list[Request]] = {}
        for token in tokens:
            one = self._open.pop(token, None)
            if one is not None:
                self._tokens.pop(one.stand_in.sid, None)
                if one.stand_in.conn_id in one.connection._open.behind:
                    awaited.setdefault((one.connection, one.stand_in.sender), []).append(one.stand_in)
                else:
                    self._release(one.connection, [one.stand_in])
        for (connection, sender), stand_ins in awaited.items():
            self._prove(connection, sender, partial(self._release, connection, stand_ins), node)

    def _release(self, connection: Connection, stand_ins: list[Request]) -> None:
        for stand_in in stand_ins:
            if stand_in._books is connection._open:
                connection.release(stand_in)

    # -- what the server has taken in ------------------------------------------------------------------------------

    def _prove(self, connection: Connection, sender: str, then: Callable[[], None], node: str = "") -> None:
        """Call *then* once the server has taken in what we, or a Node, sent so far; later where it does not say so."""
        self._asked += 1
        number = str(self._first_proof + self._asked % NUMBERS)
        if (
            connection._writer.receipts.known is False
            or self._unproved.get(connection, 0) >= _MAX_UNPROVED
            or number in self._proofs
        ):
            then()
            return
        timer = self._context.timer(_PROOF_SECONDS)
        self._proofs[number] = _Proof(connection, then, timer)
        timer.start(self._end_proof, number, False)
        if node:
            self._publisher.send(_own_topic(node) + json.dumps({"prove": [sender, number]}).encode())
        else:
            connection._writer.send_to_nobody(number)

    def _end_proof(self, number: str, is_proved: bool) -> None:
        proof = self._proofs.pop(number, None)
        if proof is None:
            return
        self._context.unwatch(proof.timer)
        score = self._unproved.get(proof.connection, 0) + (-1 if is_proved else 2)
        if score > 0:
            self._unproved[proof.connection] = score
        else:
            self._unproved.pop(proof.connection, None)
        proof.then()

    def _is_proof(self, conn_id: str) -> bool:
        return len(conn_id) == _PROOF_DIGITS and 0 <= int(conn_id) - self._first_proof < NUMBERS

    def _on_node_gone(self, name: str) -> None:
        waiting = [(token, one) for token, one in self._open.items() if one.node == name]
        if waiting:
            log.warning("node %s went away, the %d connections that waited for it are closed", name, len(waiting))
        for token, one in waiting:
            del self._open[token]
            self._tokens.pop(one.stand_in.sid, None)
            self.lost_requests += 1
            one.connection.close(one.stand_in)

    # -- what the Transceiver says ---------------------------------------------------------------------------------

    def notice(self, connection: Connection, request: Request) -> bool:
        """Publish it: the request that it is about may be a Node's."""
        if request.is_disconnect():
            if self._is_proof(request.conn_id):
                if request.conn_id not in self._proofs:  # it comes late, but it comes
                    self._unproved.pop(connection, None)
                self._end_proof(request.conn_id, True)
                return True
            token = self._tokens.pop(request.sid, None)
            if token is not None:
                del self._open[token]
        if self._nodes:
            self._publisher.send(b"N" + request.encode())
        return False

    def websocket_ended(self, connection: Connection, event: Request) -> None:
        """Publish it: a Node may have the WebSocket in its registry."""
        if self._nodes:
            body = json.dumps({"code": event.close_code, "reason": event.close_reason}).encode()
            headers = {"METHOD": "WEBSOCKET_CLOSE"}
            self._publisher.send(b"N" + build_request(event.sender, event.conn_id, event.path, headers, body))

    def lost(self, connection: Connection) -> None:
        """Forget what was handed on: the Nodes see the end of the server themselves."""
        for token, one in list(self._open.items()):
            if one.connection is connection:
                del self._open[token]
                self._tokens.pop(one.stand_in.sid, None)
        for number, proof in list(self._proofs.items()):
            if proof.connection is connection:
                self._end_proof(number, False)
        self._unproved.pop(connection, None)

    def stop(self, linger: float) -> None:
        """Close the sockets; what Nodes work on they still answer."""
        pusher, self._pusher = self._pusher, None
        if pusher is None:
            return
        if self in self._runtime.attachments:
            self._runtime.attachments.remove(self)
        proofs, self._proofs = self._proofs, {}
        for proof in proofs.values():
            self._context.unwatch(proof.timer)
        try:
            self._later.kill()
            for proof in proofs.values():
                proof.then()
            for one in self._open.values():
                if one.stand_in._books is one.connection._open:
                    one.connection.release(one.stand_in)
        finally:
            self._open.clear()
            self._tokens.clear()
            self._lives.clear()
            self._nodes.clear()
            self._unproved.clear()
            pusher.close(linger=linger)
            self._publisher.close(linger=linger)


class Node(Transceiver):
    """A transceiver that pulls requests from a :class:`Relay` and answers Mongrel2 directly.

    ``recv()``, ``serve()`` and all else are a Transceiver's. What the control socket adds is pulled from as ever.

    Args:
        sender: The ``send_ident`` of the Mongrel2 handler entry behind the API.
        pull_addr: The relay's ``push_endpoint``.
        sub_addr: The relay's ``pub_endpoint``.
        pub_addr: The entry's ``recv_spec``, to which answers are published. Requests of other servers of the API are
            answered where the API itself would answer them.
        rep_port, ping_timeout, log_level: As for a Transceiver.
        name: What the relay knows it by, other than all its other Nodes; letters, digits and ``-``. By default random.
        options: As for a Transceiver.

    Raises:
        LocalProtocolError: (a ``ValueError``) A malformed sender, name or address.
    """

    def __init__(
        self,
        sender: str,
        pull_addr: Address,
        sub_addr: Address,
        pub_addr: Address,
        rep_port: int | None = None,
        ping_timeout: float | None = 30,
        log_level: int = logging.ERROR,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(sender, pull_addr, pub_addr, rep_port, ping_timeout, log_level, **options)
        self.name = check_sender(f"node-{uuid.uuid4().hex[:12]}" if name is None else name)
        self._pull_endpoint, self._sub_endpoint = connect_endpoint(pull_addr), connect_endpoint(sub_addr)
        self._first = (None, connect_endpoint(pub_addr))
        self._link: _Link | None = None
        self._subscribers: dict[bytes, list[Callable[[str, bytes], object]]] = {}

    def start(self) -> None:
        """Open the sockets, as a Transceiver does. Does not wait for the relay."""
        super().start()
        try:
            runtime = self._running()
            self._link = _Link(self, runtime, self._pull_endpoint, self._sub_endpoint)
            runtime.attachments.append(self._link)
            for topic in self._subscribers:
                self._link.subscribe(topic)
            self._link.start()
        except BaseException:
            self._teardown()
            raise

    def subscribe(self, topic: str | bytes, handler: Callable[[str, bytes], object]) -> None:
        """Call ``handler(topic, message)`` with each message that the relay publishes to exactly *topic*, from now on.

        *message* is bytes. One after the other, in a greenlet of its own; 1,000 may wait, who does not keep up loses
        some. What a handler raises is logged.
        """
        name = topic.encode() if isinstance(topic, str) else bytes(topic)
        handlers = self._subscribers.setdefault(name, [])
        handlers.append(handler)
        if len(handlers) == 1 and self._link is not None and self.started:
            self._link.subscribe(name)

    def status(self) -> dict[str, Any]:
        """Return what a Transceiver does, and ``node``: its name, the link to the relay."""
        return {**super().status(), "node": None if self._link is None else self._link.status()}

    def _make_connection(
        self, runtime: Runtime, sender: str, push_addr: Address | None, sub_addr: Address
    ) -> Connection:
        return _NodeConnection(self, runtime, sender, push_addr, sub_addr)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, node {self.name}>"


class _RelayedEntry(Entry):
    """A WebSocket whose protocol the API runs."""

    __slots__ = ()


class _NodeSessions(Sessions):
    """Leaves alone what the API looks after."""

    def ping(self, entries: Any, frame: bytes, sender: str, **options: Any) -> int:
        ours = [entry for entry in entries if not isinstance(entry, _RelayedEntry)]
        return super().ping(ours, frame, sender, **options) if ours else 0

    def close_all(self, code: int, reason: str = "") -> None:
        self.forget_relayed(code, reason)
        super().close_all(code, reason)

    def forget_relayed(self, code: int, reason: str) -> None:
        """Report the end of all that the API looks after; nothing is sent."""
        for entry in self._entries():
            if isinstance(entry, _RelayedEntry):
                self._finish(entry, code, reason)

    def take_relayed(self, request: Request) -> None:
        """An event of a WebSocket that the API let in."""
        entry = self._registry.get(request.sid)
        if entry is not None and request.method == "WEBSOCKET_CONNECT":
            self._finish(entry, 1006, "")
            entry = None
        if entry is None:
            entry = _RelayedEntry(request.sid, request.path)
            entry.state = OPEN
            self.senders.setdefault(request.sender, request.sender)
            self._registry.add(entry)
            request._entry = entry
        if entry.state != OPEN:
            return  # closed from here: nobody reads what comes before the API says so
        if request.method == "WEBSOCKET":
            flags = request.header("FLAGS")
            request.opcode = parse_flags(flags if isinstance(flags, str) else "")[0]
            if request.opcode == Opcode.TEXT:
                request._text = request.body.decode(errors="replace")
        self._emit(request)

    def relayed_ended(self, sid: Sid, code: int, reason: str) -> None:
        """The API says that a WebSocket has ended."""
        entry = self._registry.get(sid)
        if isinstance(entry, _RelayedEntry):
            self._finish(entry, code, reason)


class _NodeConnection(Connection):
    """A connection set that also takes what a relay hands on, and says when it was answered."""

    _sessions_class = _NodeSessions
    sessions: _NodeSessions

    def __init__(self, node: Node, runtime: Runtime, sender: str, pull_addr: Address | None, pub_addr: Address) -> None:
        super().__init__(sender, pull_addr, pub_addr, runtime=runtime)
        self._node = node
        self.stale_requests = 0
        # Words for the server's life that came up since our own connection to it was made, and earlier ones.
        self._lives: set[str] = set()
        self._old_lives: deque[str] = deque(maxlen=_MAX_OLD_LIVES)
        self._held: deque[tuple[Request, str, str]] = deque()
        self._working: dict[str, str] = {}

    # -- what comes in ---------------------------------------------------------------------------------------------

    def take_relayed(self, request: Request, life: str, token: str) -> None:
        """Take what a relay handed on, once it is sure that its connection id means what it meant there."""
        if life and life not in self._lives:
            self._writer.look()  # the server's end may be known to ZeroMQ and not to us
            if life not in self._old_lives:
                self._lives.add(life)
        if not self.ready or self._held or life in self._old_lives:
            if len(self._held) >= MAX_HELD:
                self._drop(request)
                return
            self._held.append((request, life, token))
            self._take_held()
        else:
            self._take(request, token)

    def _take_held(self) -> None:
        while self._held and self.ready:
            request, life, token = self._held[0]
            if life in self._old_lives:
                if self._node._link is not None:
                    self._node._link.ask()
                return
            self._held.popleft()
            self._take(request, token)

    def confirm(self, life: str) -> None:
        """The API says what the server's present life is called; what is of an older one is a stranger's by now."""
        if life in self._old_lives:
            self._old_lives.remove(life)
        self._lives.add(life)
        held = [item for item in self._held if item[1] not in self._old_lives]
        for request, old_life, _ in self._held:
            if old_life in self._old_lives:
                self._drop(request)
        self._held = deque(held)
        self._take_held()

    def _drop(self, request: Request) -> None:
        self.stale_requests += 1
        log.warning("%s: %s %s was dropped: its server has gone", self.sender, request.method, request.path)

    def _take(self, request: Request, token: str) -> None:
        self.requests += 1
        method = request.method
        if request.header("DOWNLOAD_CREDITS") is not None:
            self._writer.flow_control = True
        if method in _WEBSOCKET_METHODS:
            request._books = self._open
            self.sessions.take_relayed(request)
        elif method in _SOCKET_METHODS:
            request._books = self._open
            self._sockets[request.conn_id] = None
            self._emit(request)
        else:
            if token:
                self._working[request.conn_id] = token
                self._link_receipt(b"+", request.conn_id, token)
            if self._open.add(request):
                self._emit(request)

    def _on_notice(self, request: Request) -> None:
        if request.is_disconnect():
            self._working.pop(request.conn_id, None)  # the API knows already
        super()._on_notice(request)

    def _on_ready(self) -> None:
        super()._on_ready()
        self._take_held()
        if self._node._link is not None:
            self._node._link.connection_ready(self)

    def _on_lost(self) -> None:
        self._working.clear()
        self._old_lives.extend(self._lives)
        self._lives.clear()
        super()._on_lost()

    def _warn_not_ready(self) -> None:
        super()._warn_not_ready()
        if not self.ready and self._node._link is not None:
            self._node._link.connection_missing(self)

    # -- what goes out ---------------------------------------------------------------------------------------------

    def _answer(self, request: Request, data: bytes, complete: bool | None, close: bool) -> None:
        super()._answer(request, data, complete, close)
        self._report(request)

    def _close(self, request: Request) -> None:
        super()._close(request)
        self._report(request)

    def release(self, request: Request) -> None:
        super().release(request)
        self._report(request)

    def _report(self, request: Request) -> None:
        """Let the relay know once nothing of a connection is open here any more."""
        conn_id = request.conn_id
        if conn_id in self._working and conn_id not in self._open.heads and native_thread_id() == self._thread_id:
            self._link_receipt(b"-", conn_id, self._working.pop(conn_id))

    def _link_receipt(self, kind: bytes, conn_id: str, token: str) -> None:
        if self._node._link is not None:
            self._node._link.receipt(kind, self, conn_id, token)

    def status(self) -> dict[str, Any]:
        """As a Connection's, with ``stale_requests``: how many came too late, out of an older life of the server."""
        return {**super().status(), "stale_requests": self.stale_requests}


class _Link(Attachment):
    """A Node's two sockets to its relay."""

    def __init__(self, node: Node, runtime: Runtime, pull_endpoint: str, sub_endpoint: str) -> None:
        self.bad_messages = 0
        self._node = node
        self._context = runtime.context
        self._runtime = runtime
        self._pull_endpoint, self._sub_endpoint = pull_endpoint, sub_endpoint
        self._pull = Receiver(self._context, SocketKind.PULL, self._on_request, name=f"relay of {node.name}")
        self._sub = Receiver(
            self._context,
            SocketKind.XSUB,
            self._on_published,
            linger=runtime.context.linger,
            name=f"subscriber {node.name}",
        )
        self._relay = ""
        self._asked = 0
        self._own: set[str] = set()
        self._taken: list[str] = []
        self._done: list[tuple[Connection, str, str]] = []
        self._flush_timer: Any = self._context.timer(_RECEIPT_SECONDS)
        self._flush_scheduled = False
        self._published: deque[tuple[bytes, bytes]] = deque()
        self._arrived = Event()
        self._group = Group()

    def start(self) -> None:
        """Connect to the relay; requests are pulled once Mongrel2 has subscribed to the answers."""
        self._sub.subscribe(b"N")
        self._sub.subscribe(_own_topic(self._node.name))
        self._sub.connect(self._sub_endpoint)
        self._group.spawn(self._hand_out)
        first = self._node._connections.get(self._node.sender)
        if first is not None and first.ready:
            self._pull.connect(self._pull_endpoint)

    def subscribe(self, topic: bytes) -> None:
        self._sub.subscribe(_topic(topic))

    def connection_ready(self, connection: Connection) -> None:
        if connection.sender == self._node.sender:
            self._pull.connect(self._pull_endpoint)

    def connection_missing(self, connection: Connection) -> None:
        """The server of a connection set has been away for some time; in the hub."""
        if connection.sender == self._node.sender:
            # Other Nodes may be able to answer what would come here.
            self._pull.drop()
        elif connection.sender in self._own:
            self._own.discard(connection.sender)
            self._group.spawn(self._let_go, connection)

    def _let_go(self, connection: Connection) -> None:
        if self._node._connections.get(connection.sender) is connection:
            self._node.remove_connection(connection.sender)

    # -- requests --------------------------------------------------------------------------------------------------

    def _on_request(self, message: bytes) -> None:
        try:
            request = parse_request(message)
        except RemoteProtocolError as error:
            self._bad(str(error))
            return
        mark = request.header(HEADER)
        words = mark.split(" ", 2) if isinstance(mark, str) else []
        life, token, endpoint = words if len(words) == 3 else ("", "", "")
        ours = (HEADER, HEADER.encode())
        request._raw = {name: value for name, value in request._raw.items() if name not in ours}
        request._shared = None
        connection = self._node._connections.get(request.sender) or self._reach(request.sender, endpoint)
        if connection is None:
            return
        assert isinstance(connection, _NodeConnection)
        connection.take_relayed(request, life, token)
        inbox = connection._inbox
        if len(inbox.items) >= inbox.limit:
            inbox.wait_for_space()

    def _reach(self, sender: str, endpoint: str) -> Connection | None:
        """Connect to a server that only the API has heard of, such as one that a test attached to it."""
        try:
            if not endpoint:
                raise LocalProtocolError("it does not say where its server subscribes")
            connection = self._node.add_connection(sender, None, endpoint)
        except GreentxError as error:
            self._bad(f"a request of sender {sender!r} cannot be answered: {error}")
            return None
        self._own.add(sender)
        return connection

    def _bad(self, why: str) -> None:
        self.bad_messages += 1
        log.warning("%s: bad message number %d: %s", self._node.name, self.bad_messages, why)

    # -- receipts --------------------------------------------------------------------------------------------------

    def receipt(self, kind: bytes, connection: Connection, conn_id: str, token: str) -> None:
        """Say that a request was taken (``+``), or answered (``-``); many go in one message."""
        if kind == b"+":
            self._taken.append(token)
        else:
            self._done.append((connection, conn_id, token))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._context.hub.loop.run_callback(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if not self._context.open:
            return
        name = self._node.name.encode()
        if self._taken:
            self._sub.send(b"+%b %b" % (name, " ".join(self._taken).encode()))
            self._taken.clear()
        waiting = [item for item in self._done if item[0]._writer.waiting(item[1])]
        done = [item[2] for item in self._done if item not in waiting]
        if done:
            self._sub.send(b"-%b %b" % (name, " ".join(done).encode()))
        self._done = waiting
        if waiting and not self._flush_scheduled:
            self._flush_scheduled = True
            self._flush_timer.start(self._flush)

    def ask(self) -> None:
        """Ask the relay which lives of the servers are the present ones."""
        self._asked += 1
        self._sub.send(b"?%b %d" % (self._node.name.encode(), self._asked))

    # -- what is published -----------------------------------------------------------------------------------------

    def _on_published(self, message: bytes) -> None:
        kind = message[:1]
        try:
            if kind == b"N":
                self._on_notice(parse_request(message[1:]))
            elif kind == b"@":
                self._on_told(json.loads(message.partition(b" ")[2]))
            elif kind == b"T":
                size, _, rest = message[1:].partition(b":")
                length = int(size)
                if len(self._published) >= MAX_HELD:
                    self._bad(f"{MAX_HELD} published messages wait to be handled, this one is dropped")
                    return
                self._published.append((rest[:length], rest[length + 1 :]))
                self._arrived.set()
        except (RemoteProtocolError, ValueError, KeyError) as error:
            self._bad(f"published: {error}")

    def _on_notice(self, request: Request) -> None:
        connection = self._node._connections.get(request.sender)
        if not isinstance(connection, _NodeConnection):
            return
        if request.method == "WEBSOCKET_CLOSE":
            ended = request.json()
            connection.sessions.relayed_ended(request.sid, int(ended["code"]), str(ended["reason"]))
        elif request.is_notice():
            connection._on_notice(request)

    def _on_told(self, told: Any) -> None:
        if "prove" in told:
            sender, number = told["prove"]
            asked = self._node._connections.get(sender)
            if asked is not None:
                asked._writer.send_to_nobody(str(int(number)))
            return
        relay = str(told["relay"])
        connections = [one for one in self._node._connections.values() if isinstance(one, _NodeConnection)]
        if self._relay not in ("", relay):
            log.info("%s: the relay was started anew", self._node.name)
            for connection in connections:
                connection.sessions.forget_relayed(1006, "the API restarted")
        self._relay = relay
        if told["number"] == str(self._asked):
            for connection in connections:
                life = told["lives"].get(connection.sender)
                if isinstance(life, str):
                    connection.confirm(life)

    def _hand_out(self) -> None:
        """Call the subscribers."""
        while True:
            while self._published:
                topic, message = self._published.popleft()
                for handler in list(self._node._subscribers.get(topic, ())):
                    try:
                        handler(topic.decode(errors="backslashreplace"), message)
                    except Exception:
                        log.exception("%s: a subscriber to %r failed", self._node.name, topic)
            self._arrived.clear()
            self._arrived.wait()

    # -- the end ---------------------------------------------------------------------------------------------------

    def stop_intake(self, timeout: float) -> None:
        """Take what has arrived, and no more."""
        self._pull.stop(timeout)

    def stop(self, linger: float) -> None:
        """Say what was answered, and let go of the relay."""
        if self not in self._runtime.attachments:
            return
        self._runtime.attachments.remove(self)
        self._flush()
        self._group.kill()
        self._context.unwatch(self._flush_timer)
        self._sub.stop(linger)

    def status(self) -> dict[str, Any]:
        return {
            "name": self._node.name,
            "pull": self._pull_endpoint,
            "sub": self._sub_endpoint,
            "connected": self._pull.connected,
            "bad_messages": self.bad_messages,
        }


def _topic(topic: str | bytes) -> bytes:
    name = topic.encode() if isinstance(topic, str) else bytes(topic)
    return b"T%d:%b," % (len(name), name)


def _own_topic(name: str) -> bytes:
    return b"@%b " % name.encode("latin-1")


def _checked_annotation(headers: Mapping[str, Any] | None) -> Mapping[str, Any]:
    for name in headers or ():
        if not isinstance(name, str) or not _ANNOTATION.fullmatch(name):
            raise LocalProtocolError(f"header {name!r} could be a client's: annotate with upper case, as 'USER_ID'")
        if name in _TAKEN_NAMES:
            raise LocalProtocolError(f"header {name!r} is Mongrel2's, or the relay's: take another name")
    return headers or {}
