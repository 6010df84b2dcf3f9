"""One connection set: the PULL and XPUB sockets of one Mongrel2 handler entry, and the API to answer through them.

The path of a request: the receiver's greenlet hands each message to :meth:`Connection._on_message`, which parses it and
sends it one of three ways: WebSocket traffic to :mod:`greentx.session`, the server's notices to the book-keeping here,
everything else to the inbox, where ``Transceiver.recv`` or ``serve`` takes it. The path of an answer: ``reply_http``
builds the bytes, :mod:`greentx.pipeline` says whether it is this request's turn, the writer sends or joins them.

The API carries the names of the class of the same name in Mongrel2's own Python example, and takes ``str`` (as UTF-8)
or bytes. Each method may be called from any greenlet, and from any native thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable
from time import time
from typing import Any

from .endpoints import Address, connect_endpoint
from .errors import LocalProtocolError, RemoteProtocolError
from .frames import Opcode, parse_close
from .http1 import HeaderFields, build_response, connection_options, format_date
from .inbox import Inbox
from .pipeline import CLOSE, OpenRequests
from .registry import Entry, Registry
from .session import Sessions, WebSocketOptions
from .transport import Context, Receiver, SocketKind, Writer
from .wire import KEEP_ALIVE, Request, batch_conn_ids, check_sender, parse_request

__all__ = ["Connection", "Runtime"]

log = logging.getLogger("greentx.connection")

#: METHODs that only Mongrel2 and greentx make up. As the method of an HTTP request they are somebody's forgery.
_RESERVED = frozenset({"WEBSOCKET", "WEBSOCKET_CONNECT", "WEBSOCKET_CLOSE", "DISCONNECT"})

#: Seconds after which a WARNING names a server that has not shown itself.
READY_WARNING_SECONDS = 5.0


class Runtime:
    """What the connection sets of one Transceiver share.

    Attributes:
        context: The ZeroMQ context.
        registry: All live WebSockets.
        inbox: Where events wait for the application.
        options: What the application said about its WebSockets.
        send_timeout: Seconds that a sender waits on a full pipe; ``None`` for ever.
    """

    def __init__(
        self,
        context: Context,
        *,
        registry: Registry,
        options: WebSocketOptions,
        max_pending: int,
        send_timeout: float | None,
    ) -> None:
        self.context = context
        self.registry = registry
        self.inbox = Inbox(max_pending)
        self.options = options
        self.send_timeout = send_timeout


class Connection:
    """The way to one Mongrel2 handler entry and back; made by a ``Transceiver``, which hands it out as ``conn``.

    Args:
        runtime: What it shares with the Transceiver's other connection sets.
        sender: The entry's ``send_ident``; letters, digits and ``-``.
        pull_addr: The entry's ``send_spec``, where the server pushes requests: ``(host, port)`` or an endpoint.
        pub_addr: The entry's ``recv_spec``, where the server subscribes to replies.

    Raises:
        LocalProtocolError: (a ``ValueError``) The sender could not be answered, or an address is malformed.

    Attributes:
        sender: As given.
        bad_messages: How many messages could not be parsed.
        stale_replies: How many answers were not sent because the server that asked has gone.
    """

    def __init__(self, runtime: Runtime, sender: str, pull_addr: Address, pub_addr: Address) -> None:
        self.sender = check_sender(sender)
        self.pull_endpoint = connect_endpoint(pull_addr)
        self.pub_endpoint = connect_endpoint(pub_addr)
        self.bad_messages = 0
        self.stale_replies = 0
        self.requests = 0
        self._runtime = runtime
        self._context = runtime.context
        self._inbox = runtime.inbox
        self._private_inbox = False
        # Counts the lives of the server. Ids begin at 1 again in each, so an answer to an older one must not go out.
        self._epoch = 0
        self._open = OpenRequests()
        self._sockets: dict[str, None] = {}
        self._probed: dict[str, Request | None] = {}
        self._ready_timer: Any = None
        self._writer = Writer(
            self._context,
            on_ready=self._on_ready,
            on_lost=self._on_lost,
            send_timeout=runtime.send_timeout,
            name=f"writer of {self.sender}",
        )
        self._receiver = Receiver(
            self._context,
            SocketKind.PULL,
            self._on_message,
            name=f"receiver of {self.sender}",
        )
        self.sessions = Sessions(
            self._context, self._writer, runtime.registry, runtime.options, self._emit, name=f"sender {self.sender}"
        )

    def __repr__(self) -> str:
        state = "ready" if self.ready else "waiting for the server"
        return f"<Connection {self.sender} {self.pull_endpoint} {self.pub_endpoint}: {state}, {len(self._open)} open>"

    # -- life ------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """True while the server's subscription is there: replies arrive, and requests are taken."""
        return bool(self._writer.ready.is_set())

    def start(self) -> None:
        """Connect. Does not wait: requests are pulled once the server has subscribed to the replies.

        Raises ``TransportError`` when ZeroMQ does not take the address.
        """
        self._ready_timer = self._context.timer(READY_WARNING_SECONDS, READY_WARNING_SECONDS * 12)
        self._ready_timer.start(self._warn_not_ready)
        self._writer.connect(self.pub_endpoint)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block this greenlet until the server has subscribed; False after *timeout* seconds."""
        return bool(self._writer.ready.wait(timeout))

    def stop_intake(self, timeout: float | None = None) -> None:
        """Take what has arrived and no more. Blocks until it was handed on, *timeout* seconds at the most."""
        self._receiver.stop(timeout)

    def stop(self, *, linger: float) -> None:
        """Send what waits, for *linger* seconds at the most, and close the sockets; safe to call twice."""
        if self._ready_timer is not None:
            self._context.unwatch(self._ready_timer)
            self._ready_timer = None
        self._receiver.stop(0)
        self.sessions.stop()
        self._writer.stop(linger=linger)

    def _warn_not_ready(self) -> None:
        if not self.ready:
            log.warning(
                "%s: no Mongrel2 has subscribed at %s (requests come from %s); serving begins when it does",
                self.sender,
                self.pub_endpoint,
                self.pull_endpoint,
            )

    def _on_ready(self) -> None:
        log.info("%s: Mongrel2 at %s is there", self.sender, self.pub_endpoint)
        if self._ready_timer is not None:
            self._ready_timer.stop()
        self._receiver.connect(self.pull_endpoint)

    def _on_lost(self) -> None:
        log.warning("%s: Mongrel2 at %s has gone, and all its connections", self.sender, self.pub_endpoint)
        self._epoch += 1
        self._receiver.drop()
        self._probed.clear()
        for request in self._open.clear():
            self._emit(self._disconnect_of(request.sender, request.conn_id))
        for conn_id in list(self._sockets):
            self._emit(self._disconnect_of(self.sender, conn_id))
        self._sockets.clear()
        self.sessions.lost()
        if self._ready_timer is not None:
            self._ready_timer.again(self._warn_not_ready)

    # -- what comes in ---------------------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        try:
            request = parse_request(message)
        except RemoteProtocolError as error:
            self.bad_messages += 1
            log.warning("%s: bad message number %d: %s", self.sender, self.bad_messages, error)
            return
        request._epoch = self._epoch
        self.requests += 1
        method = request.method
        raw = request._raw
        if b"DOWNLOAD_CREDITS" in raw or "DOWNLOAD_CREDITS" in raw:
            self._writer.flow_control = True
        if method == "WEBSOCKET_HANDSHAKE":
            self.sessions.handshake(request)
        elif method in _RESERVED:
            if method == "WEBSOCKET" and request.header("FLAGS") is not None:
                self.sessions.message(request)
            else:
                self._refuse(request)
        elif method == "JSON" or method == "XML":
            if request.is_notice():
                self._on_notice(request)
            else:
                self._sockets[request.conn_id] = None
                self._emit(request)
        else:
            self._open.add(request)
            self._emit(request)
        inbox = self._inbox
        if len(inbox.items) >= inbox.limit:
            inbox.wait_for_space()

    def _emit(self, request: Request) -> None:
        self._inbox.put(self, request)

    def _refuse(self, request: Request) -> None:
        """An HTTP request whose method is one of our own words: it must not look like an event to the application."""
        log.warning("%s: connection %s sent the METHOD %s over HTTP", self.sender, request.conn_id, request.method)
        self._writer.write(request.sender, request.conn_id, build_response(b"", 501, close=True), wait=False)
        self._writer.close(request.sender, [request.conn_id], wait=False)

    def _on_notice(self, request: Request) -> None:
        written = request.credits()
        if written is not None:
            self._writer.credit(request.conn_id, written)
        elif request.is_disconnect():
            conn_id = request.conn_id
            self._writer.forget(conn_id)
            if self.sessions.gone(request):
                return
            was_open = self._open.remove(conn_id)
            if conn_id in self._sockets:
                del self._sockets[conn_id]
            elif not was_open:
                return  # idle keep-alive, our own close, or the answer to something sent to a dead id
            request.method = "DISCONNECT"
            self._emit(request)

    def _disconnect_of(self, sender: str, conn_id: str) -> Request:
        body = b'{"type":"disconnect"}'
        request = Request(sender, conn_id, "@*", {"METHOD": "JSON"}, body, "DISCONNECT")
        request._epoch = self._epoch
        return request

    def recv(self, timeout: float | None = None) -> Request | None:
        """Return the next event of this connection set; ``None`` after *timeout* seconds, or when it was stopped.

        From the first call on its events come here and no longer out of ``Transceiver.recv``. Blocks this greenlet.
        """
        if not self._private_inbox:
            shared, self._inbox = self._inbox, Inbox(self._inbox.limit)
            self._private_inbox = True
            for connection, request in list(shared.items):
                if connection is self:
                    shared.items.remove((connection, request))
                    self._inbox.put(self, request)
            self._inbox.ended = shared.ended
        inbox = self._inbox
        if not inbox.items and (inbox.ended or not inbox.wait(timeout) or not inbox.items):
            return None
        request = inbox.items.popleft()[1]
        if inbox.receivers_wait:
            inbox.taken()
        return request

    def recv_json(self, timeout: float | None = None) -> Request | None:
        """As :meth:`recv`, for messages of JSON sockets; ``request.data`` is the decoded body.

        A message whose body is no JSON is counted, logged and passed over.
        """
        while True:
            request = self.recv(timeout)
            try:
                if request is not None:
                    _ = request.data
                return request
            except RemoteProtocolError as error:
                self.bad_messages += 1
                log.warning("%s: %s", self.sender, error)

    def end_inbox(self) -> None:
        """Nothing more comes: who waits in :meth:`recv` gets ``None`` once it has taken what is there."""
        if self._private_inbox:
            self._inbox.end()

    # -- answers to one request ------------------------------------------------------------------------------------

    def reply_http(
        self,
        req: Request,
        body: str | bytes,
        code: int = 200,
        status: str | None = None,
        headers: HeaderFields | None = None,
    ) -> None:
        """Answer an HTTP request, whole.

        ``Content-Length`` and ``Date`` are added. HEAD, 204 and 304 go out without the body; the connection is closed
        behind the answer where the client, HTTP/1.0 or *headers* ask for it. Answers to pipelined requests are put in
        the order of the requests. A request whose client has gone is passed over.

        Args:
            req: As it came out of ``recv``.
            body: ``str`` goes out as UTF-8.
            code, status: The status; ``None`` is the standard phrase.
            headers: A mapping of names to a value or a list of them, or pairs.

        Raises:
            LocalProtocolError: Something that may not be sent, such as a CR or LF in a header. Nothing was sent.
            SendTimeout: The pipe to the server stayed full for ``send_timeout`` seconds, which this greenlet waited.
        """
        close = req.should_close()
        if headers:
            close = close or _asks_to_close(headers)
        keep_alive = not close and req.header("VERSION") == "HTTP/1.0"
        data = build_response(
            body.encode() if isinstance(body, str) else bytes(body),
            code,
            status,
            headers,
            date=_date(),
            head_only=req.method == "HEAD",
            close=close,
            keep_alive=keep_alive,
        )
        self._answer(req, data, True, close)

    def reply(self, req: Request, msg: str | bytes) -> None:
        """Send raw bytes in answer to *req*: a whole HTTP response or a part of it, frames, whatever the client takes.

        Where requests are pipelined the bytes are followed to see where the response ends, so that the next one does
        not run into it. An empty *msg* closes the connection, as :meth:`close` does. Raises as :meth:`reply_http`.
        """
        data = msg.encode() if isinstance(msg, str) else bytes(msg)
        if not data:
            self.close(req)
        else:
            self._answer(req, data, None, False)

    def reply_json(self, req: Request, data: Any) -> None:
        """Send *data* as JSON: to a JSON or XML socket as it is, to an HTTP request as ``application/json``.

        JSON sockets get no terminator, as with Mongrel2's own example: with ``raw_payload=0`` the server frames them.
        """
        self._write_json(req, req.sender, [req.conn_id], data)

    def reply_websocket(self, req: Request, body: str | bytes, opcode: int = Opcode.TEXT, rsvd: int = 0) -> None:
        """Send one frame to the WebSocket of *req*; compressed where that was agreed on and *rsvd* is 0.

        A close frame (opcode 8, *body* its payload) begins the closing handshake. One that has gone is passed over.
        """
        self.deliver_websocket(req.sender, [req.conn_id], body, opcode, rsvd)

    def close(self, req: Request) -> None:
        """Close the browser's connection behind what was written to it; a WebSocket gets a close frame (1000) first."""
        self._run(self._close, req)

    # -- to connections by their ids -------------------------------------------------------------------------------

    def send(self, sender: str, conn_id: str | int | Iterable[str | int], msg: str | bytes) -> None:
        """Send raw bytes to one connection, or to several; an empty *msg* closes them. The same as :meth:`deliver`."""
        self.deliver(sender, [conn_id] if isinstance(conn_id, (str, int)) else conn_id, msg)

    def deliver(self, sender: str, idents: Iterable[str | int], data: str | bytes) -> None:
        """Send the same raw bytes to many connections, 128 ids a message; empty *data* closes them.

        For a connection with an open HTTP request they are (a part of) its answer, as with :meth:`reply`.

        Raises:
            LocalProtocolError: An id is no decimal number, or *sender* cannot be parsed by Mongrel2.
            SendTimeout: As :meth:`reply_http`.
        """
        raw = data.encode() if isinstance(data, str) else bytes(data)
        self._run(self._deliver, check_sender(sender), _checked_ids(idents), raw, None)

    def deliver_json(self, sender: str, idents: Iterable[str | int], data: Any) -> None:
        """As :meth:`reply_json`, to many connections."""
        for conn_ids in batch_conn_ids(idents):
            self._write_json(None, sender, conn_ids, data)

    def deliver_http(
        self,
        sender: str,
        idents: Iterable[str | int],
        body: str | bytes,
        code: int = 200,
        status: str | None = None,
        headers: HeaderFields | None = None,
    ) -> None:
        """Answer the open HTTP requests of many connections as :meth:`reply_http` would; others are passed over."""
        for conn_id in _checked_ids(idents):
            request = self._open.heads.get(conn_id)
            if request is not None:
                self.reply_http(request, body, code, status, headers)

    def deliver_websocket(
        self, sender: str, idents: Iterable[str | int], data: str | bytes, opcode: int = Opcode.TEXT, rsvd: int = 0
    ) -> None:
        """Send the same frame to many WebSockets, encoded once; ids without a live WebSocket are passed over.

        Raises:
            LocalProtocolError: A frame that RFC 6455 does not allow.
            SendTimeout: As :meth:`reply_http`.
        """
        payload = data.encode() if isinstance(data, str) else bytes(data)
        self._run(self._deliver_frame, check_sender(sender), _checked_ids(idents), payload, opcode, rsvd)

    def deliver_close(self, sender: str, idents: Iterable[str | int]) -> None:
        """Close many connections behind what was written to them."""
        self.deliver(sender, idents, CLOSE)

    # -- the way out -----------------------------------------------------------------------------------------------

    def _run(self, function: Any, *arguments: Any) -> None:
        """Call *function* here, or in the hub's thread when this is another one."""
        if self._context.open and self._context.in_hub_thread():
            function(*arguments)
        else:
            self._context.hand_over(function, *arguments)

    def _answer(self, request: Request, data: bytes, complete: bool | None, close: bool) -> None:
        context = self._context
        if not context.open or not context.in_hub_thread():
            context.hand_over(self._answer, request, data, complete, close)
            return
        if request._epoch != self._epoch:
            self._stale(request)
            return
        conn_id = request.conn_id
        pending = self._open
        writer = self._writer
        if complete and not pending.behind and pending.heads.get(conn_id) is request:
            # Nearly every answer: whole, and nothing pipelined anywhere.
            pending.complete(conn_id)
            writer.write(request.sender, conn_id, data)
            if close:
                writer.close(request.sender, [conn_id])
            return
        ready = pending.answer(request, data, complete=complete)
        if close:
            ready += pending.answer(request, CLOSE, complete=True)
        for piece in ready:
            if piece == CLOSE:
                writer.close(request.sender, [conn_id])
            else:
                writer.write(request.sender, conn_id, piece)

    def _close(self, request: Request) -> None:
        if request._epoch != self._epoch:
            self._stale(request)
            return
        entry = self._runtime.registry.get(request.sid)
        if entry is not None:
            self._close_websocket(entry)
            return
        for piece in self._open.answer(request, CLOSE, complete=True):
            if piece == CLOSE:
                self._sockets.pop(request.conn_id, None)
                self._writer.close(request.sender, [request.conn_id])

    def _close_websocket(self, entry: Entry) -> None:
        self.sessions.close(entry)

    def _stale(self, request: Request) -> None:
        self.stale_replies += 1
        log.warning(
            "%s: the server restarted since %s %s came in, its answer was dropped",
            self.sender,
            request.method,
            request.path,
        )

    def _deliver(self, sender: str, conn_ids: list[str], data: bytes, complete: bool | None) -> None:
        heads = self._open.heads
        rest: Collection[str] = conn_ids
        if heads and not heads.keys().isdisjoint(conn_ids):
            rest = []
            for conn_id in conn_ids:
                request = heads.get(conn_id)
                if request is None:
                    rest.append(conn_id)
                elif data == CLOSE:
                    self._close(request)
                else:
                    self._answer(request, data, complete, False)
        if not rest:
            return
        if data != CLOSE:
            self._writer.write_many(sender, list(rest), data)
            return
        plain: list[str] = []
        for conn_id in rest:
            entry = self._runtime.registry.get((sender, conn_id))
            if entry is not None:
                self._close_websocket(entry)
            else:
                self._sockets.pop(conn_id, None)
                plain.append(conn_id)
        self._writer.close(sender, plain)

    def _deliver_frame(self, sender: str, conn_ids: list[str], payload: bytes, opcode: int, rsvd: int) -> None:
        registry = self._runtime.registry
        if opcode == Opcode.CLOSE:
            code, reason = _close_payload(payload)
            for conn_id in conn_ids:
                entry = registry.get((sender, conn_id))
                if entry is not None:
                    self.sessions.close(entry, code, reason)
            return
        entries = [entry for conn_id in conn_ids if (entry := registry.get((sender, conn_id))) is not None]
        self.sessions.send(entries, payload, opcode, rsvd)

    def _write_json(self, request: Request | None, sender: str, conn_ids: list[str], data: Any) -> None:
        try:
            body = json.dumps(data)
        except (TypeError, ValueError) as error:
            raise LocalProtocolError(f"{type(data).__name__} cannot be written as JSON: {error}") from error
        for conn_id in conn_ids:
            head = request if request is not None else self._open.heads.get(conn_id)
            if head is not None and head.method not in ("JSON", "XML"):
                self.reply_http(head, body, headers={"Content-Type": "application/json"})
            else:
                self.deliver(sender, [conn_id], body)

    def started(self, request: Request) -> bool:
        """True when something was answered to *request* already, or nothing can be any more."""
        return request._epoch != self._epoch or self._open.started(request)

    def prove(self, text: str, timeout: float) -> None:
        """Send *text* to conn id -1, which no browser has, once the server has subscribed; for the control socket."""
        if self.wait_ready(timeout):
            self._writer.write(self.sender, "-1", text.encode())

    # -- liveness --------------------------------------------------------------------------------------------------

    def keep_alive(self) -> None:
        """Ask the server about connections that have waited since the last call; called by the pinger.

        A control message resets Mongrel2's idle timer, which would end a long poll after 120 s without a notice, and
        for a connection that has gone already it brings the notice that was never sent (probed).
        """
        waiting: dict[str, Request | None] = dict(self._open.heads)
        waiting.update(dict.fromkeys(self._sockets))
        waiting.update(dict.fromkeys(self._writer.unconfirmed()))
        old = [conn_id for conn_id, what in waiting.items() if self._probed.get(conn_id, self) is what]
        self._probed = waiting
        for conn_ids in batch_conn_ids(old):
            self._writer.control(self.sender, conn_ids, KEEP_ALIVE)

    @property
    def drained_at(self) -> float:
        """``time.monotonic()`` when every message that had come was seen."""
        return self._receiver.drained_at

    def caught_up(self) -> bool:
        """True when every message that has come by now was seen."""
        return self._receiver.caught_up()

    def status(self) -> dict[str, Any]:
        """Return counts and states, as the control socket's ``STATUS`` shows them."""
        return {
            "sender": self.sender,
            "pull": self.pull_endpoint,
            "pub": self.pub_endpoint,
            "ready": self.ready,
            "requests": self.requests,
            "open_requests": len(self._open),
            "bad_messages": self.bad_messages,
            "replies": self._writer.messages_sent,
            "dropped_replies": self._writer.messages_dropped + self.stale_replies,
        }


def _checked_ids(idents: Iterable[str | int]) -> list[str]:
    conn_ids = [ident if isinstance(ident, str) else str(ident) for ident in idents]
    for conn_id in conn_ids:
        if not (conn_id.isascii() and conn_id.isdecimal()):
            raise LocalProtocolError(f"conn_id {conn_id!r} is no decimal number")
    return conn_ids


def _close_payload(payload: bytes) -> tuple[int | None, str]:
    try:
        code, reason = parse_close(payload)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"not a close frame's payload: {error}") from error
    return (code, reason) if payload else (None, "")


def _asks_to_close(headers: HeaderFields) -> bool:
    pairs = headers.items() if hasattr(headers, "items") else headers
    for name, value in pairs:
        if (name if isinstance(name, str) else name.decode("latin-1")).lower() == "connection":
            values = value if isinstance(value, (list, tuple)) else [value]
            texts = [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in values]
            return "close" in connection_options(texts)
    return False


_date_second = 0
_date_value = b""


def _date() -> bytes:
    """The value of a Date header for now, built once a second."""
    global _date_second, _date_value
    now = int(time())
    if now != _date_second:
        _date_value = format_date(now).encode()
        _date_second = now
    return _date_value
