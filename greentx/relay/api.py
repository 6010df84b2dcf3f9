"""The API's side: requests handed on to Nodes. What is guaranteed is in :mod:`greentx.relay`."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group

from ..errors import GreentxError, LocalProtocolError, TransportError
from ..handler.connection import Connection
from ..handler.shared import Extension
from ..handler.transceiver import Transceiver
from ..protocol.kinds import ENDS, FRAMES, SOCKETS, Kind
from ..protocol.request import Request
from ..protocol.requests import build_request
from ..protocol.websocket.frames import Opcode
from ..transport import Publisher
from ..transport.endpoints import Address, bind_endpoint
from ..transport.keys import KeyFile, load_keys, public_keys
from ..transport.pusher import Pusher
from ..transport.security import Access
from .audience import Audience
from .messages import (
    HEADER,
    RECEIPT_SECONDS,
    STAND_IN,
    check_annotation,
    own_topic,
    topic_of,
)
from .outstanding import Outstanding, Words
from .proofs import Proofs

__all__ = ["Relay"]

log = logging.getLogger("greentx.relay")


# Between an answer of ours and the next request of that connection for a Node, where requests are pipelined.
_TURN_SECONDS = 0.005


class Relay(Extension):
    """Hands requests of a running Transceiver on to Nodes, and publishes to them.

    It ends with its Transceiver, or by :meth:`close`; also a context manager. Its methods may be called from any
    greenlet and any native thread.

    Args:
        transceiver: The API's, started.
        push_addr: Where to bind PUSH: ``(host, port)`` or an endpoint; port 0 is any free one.
        pub_addr: Where to bind XPUB, likewise.
        send_timeout: Seconds that :meth:`forward` waits while no Node takes a request; ``None`` waits forever.
        receipts: False where handlers pull that are not Nodes of greentx. Nothing is then known of what became of a
            request: answers to pipelined ones may be out of order or mixed into each other, and a handler that dies is
            not noticed.
        curve_secret: A file of our own CURVE keys, ``NAME.key_secret``, as ``greentx keys`` makes it. With it both
            sockets are encrypted, and serve Nodes with a key in *curve_allow* only.
        curve_allow: Public keys of the Nodes: a folder of ``*.key`` files, one such file, several, or bytes (Z85).

    Raises:
        TransportError: The Transceiver is not running; CURVE is wanted, and this libzmq was built without it.
        LocalProtocolError: (a ``ValueError``) An address or a key is malformed.
        BindError: An address cannot be bound; the message names it. Nothing is left open.

    Attributes:
        push_endpoint, pub_endpoint: Where it was bound, with the real ports; for :class:`Node` to connect to.
        forwarded: How many requests and events were handed on.
        lost_requests: How many connections were closed because the Node that worked for them went away.
        pusher, publisher, outstanding, proofs: What it works with; not for applications.
    """

    def __init__(
        self,
        transceiver: Transceiver,
        push_addr: Address,
        pub_addr: Address,
        *,
        send_timeout: float | None = 30.0,
        receipts: bool = True,
        curve_secret: str | os.PathLike[str] | None = None,
        curve_allow: KeyFile | Iterable[KeyFile] | None = None,
    ) -> None:
        # Checked before anything is opened: of two sockets one would be left.
        push_endpoint, pub_endpoint = bind_endpoint(push_addr), bind_endpoint(pub_addr)
        access = _access(transceiver.sender, curve_secret, curve_allow)
        shared = transceiver.shared()
        # Random: after a restart of the API its Nodes must not take the new one's words for the old one's.
        self._words = Words(uuid.uuid4().hex[:12])
        self._transceiver = transceiver
        self._shared = shared
        self._send_timeout = send_timeout
        self._receipts = receipts
        self.forwarded = 0
        self.lost_requests = 0
        self.outstanding = Outstanding()
        self._audience = Audience()
        self._later = Group()
        self.pusher: Pusher | None = Pusher(self._shared.context, push_endpoint, access)
        try:
            self.publisher = Publisher(self._shared.context, pub_endpoint, self._on_upstream, access)
        except BaseException:  # raised again: a kill, too, must not leave the first socket
            self.pusher.close()
            raise
        # Known to the Transceiver only from here on: what it calls needs all of the above.
        self.proofs = Proofs(self._shared.context, self.publisher.send)
        self.push_endpoint = self.pusher.endpoint
        self.pub_endpoint = self.publisher.endpoint
        shared.extensions.append(self)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.pusher is None else f"{len(self._audience.nodes)} nodes, {len(self.outstanding)} open"
        return f"<Relay {self.push_endpoint} {self.pub_endpoint}: {state}, {self.forwarded} forwarded>"

    @property
    def nodes(self) -> frozenset[str]:
        """The names of the Nodes that are connected."""
        return frozenset(self._audience.nodes)

    @property
    def topics(self) -> frozenset[str]:
        """The topics that somebody is subscribed to."""
        return frozenset(topic.decode(errors="backslashreplace") for topic in self._audience.topics)

    @property
    def open(self) -> int:
        """How many requests were handed on and not answered yet, as far as is known."""
        return len(self.outstanding)

    # -- what goes out ---------------------------------------------------------------------------------------------

    def forward(self, req: Request, headers: Mapping[str, str | list[str]] | None = None) -> None:
        """Hand *req* on to a Node, which answers it.

        For this process it has then been answered. Where it came while an earlier request of its connection was open,
        it is handed on as soon as the answer to that has arrived, and this returns at once. ``DISCONNECT`` and
        ``WEBSOCKET_CLOSE`` are ignored: each Node is told of ends anyway. So is a request whose connection has ended.

        Blocks this greenlet while no Node has room for it.

        Args:
            req: As it came out of ``recv()``.
            headers: Added for the Node. Names are upper case, as the server's own: Mongrel2 lower-cases the names that
                a client sends, so none of these can be forged. The names of Mongrel2 itself are refused.

        Raises:
            SendTimeout: No Node had room for it within ``send_timeout``. It is still open here, so answer it (503).
            LocalProtocolError: A name that will not do; or *req* was answered, or handed on, before.
            TransportError: The relay is closed.
        """
        if not self._shared.context.in_hub_thread():
            self._shared.context.hand_over(self.forward, req, headers)
            return
        pusher = self._running()
        extra = check_annotation(headers)
        # A loop that hands everything on hands on these as well; each Node has them from notice() already.
        if req.method in ENDS:
            return
        connection = self._connection_of(req)
        if not connection.answers.is_ours(req):
            return
        requests = connection.link.life.requests
        # No answer is due to these, so there is nothing to wait for, and no order to keep.
        if req.method in SOCKETS or req.method in FRAMES:
            pusher.send(self.message_of(connection, req, "", extra), self._send_timeout)
            self.forwarded += 1
            return
        # Two answers to one request would be read as the answers to two.
        if req.answered:
            raise LocalProtocolError(f"{req.method} {req.path} of connection {req.conn_id} was answered already")
        if not requests.wait_turn(req, lambda: self._forward_soon(connection, req, extra)):
            return
        # Its turn has come, but what was written before it may be under way still, from here or from another Node.
        if req.pipelined:
            self._forward_soon(connection, req, extra)
        else:
            self._forward_now(connection, req, extra)

    def publish(self, topic: str | bytes, message: str | bytes) -> None:
        """Send *message* to every Node that is subscribed to exactly *topic*; str goes out as UTF-8.

        Never blocks: who is not there, or has 100,000 messages waiting, does not get it.

        Raises:
            TransportError: The relay is closed.
        """
        if not self._shared.context.in_hub_thread():
            self._shared.context.hand_over(self.publish, topic, message)
            return
        self._running()
        self.publisher.send(topic_of(topic) + (message.encode() if isinstance(message, str) else bytes(message)))

    def close(self) -> None:
        """Let go of the Nodes; what they work on now they still answer. Safe to call twice."""
        self.stop(self._shared.context.linger)

    def _running(self) -> Pusher:
        if self.pusher is None:
            raise TransportError(f"the relay at {self.push_endpoint} is closed")
        return self.pusher

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

    def message_of(self, connection: Connection, request: Request, token: str, extra: Mapping[str, Any]) -> bytes:
        """Return what a Node is sent for *request*."""
        mark = f"{self._words.of(connection.link.life)} {token} {connection.pub_endpoint}"
        if connection.link.stand_in:
            # Only these demand a key, which the Node cannot know otherwise.
            dial = connection.link.writer.dial
            key = "" if dial is None or dial.server_key is None else f" {dial.server_key.decode()}"
            mark = f"{mark} {STAND_IN}{key}"
        headers = {**request.sent_headers, **extra, HEADER: mark}
        if request.method in FRAMES:
            # What a plain handler would get: a whole message, unmasked and inflated.
            opcode = Opcode.TEXT if request.opcode is None else request.opcode
            headers |= {"METHOD": request.method, "FLAGS": f"0x{0x80 | opcode:X}"}
        # Mongrel2 says it in a connection's first request only (probed), which another Node may have got.
        if connection.link.writer.flow.control.on:
            headers.setdefault("DOWNLOAD_CREDITS", "102400")
        return build_request(request.sender, request.conn_id, request.path, headers, request.body)

    def _forward_now(
        self, connection: Connection, request: Request, extra: Mapping[str, Any], stand_in: Request | None = None
    ) -> None:
        token = self._words.new() if self._receipts else ""
        self._running().send(self.message_of(connection, request, token, extra), self._send_timeout)
        self.forwarded += 1
        # The Node deletes the file, when it has answered.
        if request.stored is not None:
            request.stored.give_away()
        requests = connection.link.life.requests
        if requests.heads.get(request.conn_id) is not (stand_in or request):
            return  # not one of the open ones, or its connection ended while this greenlet waited
        if stand_in is None:
            stand_in = requests.delegate(request)
        if token:
            self.outstanding.add(token, connection, stand_in)
        else:
            connection.answers.release(stand_in)

    def _forward_soon(self, connection: Connection, request: Request, extra: Mapping[str, Any]) -> None:
        """It is this pipelined request's turn; for this process it has been answered. May be called in the hub."""
        # At once: what comes behind it meanwhile has to wait for this one, and not for the one before.
        stand_in = connection.link.life.requests.delegate(request)
        self._later.spawn(self._forward_later, connection, request, extra, stand_in)

    def _forward_later(
        self, connection: Connection, request: Request, extra: Mapping[str, Any], stand_in: Request
    ) -> None:
        is_done = False
        try:
            # Two processes in turn write to one connection, of which neither knows what the other wrote, and Mongrel2
            # kills it at the 17th message in its queue: give it time. And what is before has to have arrived.
            gevent.sleep(_TURN_SECONDS)
            while connection.link.writer.flow.waiting(request.conn_id):
                gevent.sleep(RECEIPT_SECONDS)
            arrived = Event()
            self.proofs.ask(connection, request.sender, arrived.set)
            arrived.wait()
            if connection.answers.is_ours(stand_in):
                self._forward_now(connection, request, extra, stand_in)
            is_done = True
        except GreentxError as error:
            log.warning("%s %s could not be handed on, closing its connection: %s", request.method, request.path, error)
        finally:
            # Also where the relay is closed meanwhile: the browser can try again, waiting would help nobody.
            if not is_done:
                connection.close(stand_in)

    # -- what Nodes say --------------------------------------------------------------------------------------------

    def _on_upstream(self, message: bytes) -> None:
        kind, text = message[:1], message[1:]
        # XPUB says so with these two bytes when a subscription comes or goes; nothing that Nodes send begins so.
        if kind in (b"\x00", b"\x01"):
            name = self._audience.subscription(text, begins=kind == b"\x01")
            if name in self._audience.nodes:
                self._tell(name, "")
            elif name:
                self._on_node_gone(name)
            return
        words = text.decode("latin-1").split(" ")
        if kind == b"?":
            self._tell(words[0], words[-1])
        elif kind == b"+":
            for token in words[1:]:
                self.outstanding.received(token, words[0])
        elif kind == b"-":
            self._answered(words[0], words[1:])
        else:
            log.warning("a subscriber at %s sent %r, which means nothing here", self.pub_endpoint, message[:60])

    def _tell(self, name: str, number: str) -> None:
        lives = {
            connection.sender: self._words.of(connection.link.life)
            for connection in self._transceiver.connections.values()
        }
        # The number is the question's, so that an answer to an older one is not taken for this one's.
        told = {"relay": self._words.relay, "lives": lives, "number": number}
        self.publisher.send(own_topic(name) + json.dumps(told).encode())

    def _answered(self, node: str, tokens: list[str]) -> None:
        """A Node answered requests: the next ones of their connections may be, once these answers have arrived."""
        # One proof for many answers of one server: each costs the server a notice.
        awaited: dict[tuple[Connection, str], list[Request]] = {}
        for token in tokens:
            one = self.outstanding.pop(token)
            if one is not None:
                # Nothing is pipelined behind nearly all of them: then it does not matter when the answer arrives.
                if one.stand_in.conn_id in one.connection.link.life.requests.behind:
                    awaited.setdefault((one.connection, one.stand_in.sender), []).append(one.stand_in)
                else:
                    self._release(one.connection, [one.stand_in])
        for (connection, sender), stand_ins in awaited.items():
            self.proofs.ask(connection, sender, partial(self._release, connection, stand_ins), node)

    def _release(self, connection: Connection, stand_ins: list[Request]) -> None:
        for stand_in in stand_ins:
            # The server may have restarted while the proof was waited for.
            if stand_in.life is connection.link.life:
                connection.answers.release(stand_in)

    def _on_node_gone(self, name: str) -> None:
        # Which of them it answered before it went is not known, so none may be handed to another Node.
        waiting = self.outstanding.pop_of(node=name)
        if waiting:
            log.warning("node %s went away, the %d connections that waited for it are closed", name, len(waiting))
        for one in waiting:
            self.lost_requests += 1
            one.connection.answers.close(one.stand_in)

    # -- what the Transceiver says ---------------------------------------------------------------------------------

    def notice(self, connection: Connection, request: Request) -> bool:
        """Publish it: the request that it is about may be a Node's."""
        if request.is_disconnect():
            # Not the connection set's own receipt, for which it would be taken.
            if self.proofs.arrived(connection, request.conn_id):
                return True
            self.outstanding.connection_ended(request.sid)
        if self._audience.nodes:
            self.publisher.send(b"N" + request.encode())
        return False

    def websocket_ended(self, connection: Connection, event: Request) -> None:
        """Publish it: a Node may have the WebSocket in its registry."""
        if self._audience.nodes:
            body = json.dumps({"code": event.close_code, "reason": event.close_reason}).encode()
            headers = {"METHOD": Kind.WEBSOCKET_CLOSE.value}
            self.publisher.send(b"N" + build_request(event.sender, event.conn_id, event.path, headers, body))

    def lost(self, connection: Connection) -> None:
        """Forget what was handed on: the Nodes see the end of the server themselves."""
        self.outstanding.pop_of(connection=connection)
        self.proofs.forget(connection)

    def stop(self, linger: float) -> None:
        """Close the sockets; what Nodes work on they still answer."""
        # First: whoever calls forward() from now on gets a clear error.
        pusher, self.pusher = self.pusher, None
        if pusher is None:
            return
        if self in self._shared.extensions:
            self._shared.extensions.remove(self)
        try:
            self._later.kill()
            self.proofs.stop()
            # Nobody will say here that they were answered; those behind them go on without.
            for one in self.outstanding:
                if one.stand_in.life is one.connection.link.life:
                    one.connection.answers.release(one.stand_in)
        finally:
            self.outstanding.clear()
            self._audience = Audience()
            pusher.close(linger=linger)
            self.publisher.close(linger=linger)


def _access(
    sender: str, curve_secret: str | os.PathLike[str] | None, curve_allow: KeyFile | Iterable[KeyFile] | None
) -> Access | None:
    if (curve_secret is None) is not (curve_allow is None):
        raise LocalProtocolError("curve_secret and curve_allow go together: our own keys, and the Nodes' public ones")
    if curve_secret is None or curve_allow is None:
        return None
    return Access(f"relay of {sender}", keys=load_keys(curve_secret), allowed=public_keys(curve_allow))
