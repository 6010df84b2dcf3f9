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
import re
from collections.abc import Callable, Iterable, Mapping
from time import time
from types import TracebackType
from typing import Any, TypeVar

from .clock import clock, current_date
from .endpoints import Address, connect_endpoint
from .errors import ConnectionClosed, GreentxError, LocalProtocolError, RemoteProtocolError
from .frames import CloseCode, Opcode, build_frame, parse_close
from .handshake import Accepted, Handshake, Refused
from .http1 import HeaderFields, build_response, connection_options
from .inbox import Inbox
from .pinger import PING_SECONDS, Pinger
from .pipeline import GONE, OpenRequests
from .registry import Entry
from .runtime import Runtime
from .session import Sessions, WebSocketOptions
from .transport import BURST, SHARED_BURST, Context, Receiver, SocketKind, Writer, native_thread_id
from .websocket import WebSocket
from .wire import CONTROL_ID, KEEP_ALIVE, Request, batch_conn_ids, check_sender, credits_body, parse_request

__all__ = ["Connection"]

log = logging.getLogger("greentx.connection")

T = TypeVar("T")

#: METHODs that only Mongrel2 and greentx make up. As the method of an HTTP request they are somebody's forgery.
_RESERVED = frozenset(
    {
        "JSON",
        "XML",
        "WEBSOCKET_HANDSHAKE",
        "WEBSOCKET",
        "WEBSOCKET_CONNECT",
        "WEBSOCKET_CLOSE",
        "DISCONNECT",
        "UPLOAD_STREAM",
    }
)

#: What Mongrel2 knows an opening handshake by: METHOD says it only where all of these were sent (probed).
_HANDSHAKE_HEADERS = ("host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version")

_WEBSOCKET = frozenset({"WEBSOCKET", "WEBSOCKET_CONNECT", "WEBSOCKET_CLOSE"})

# What a credits notice is behind its connection's id, with its two headers in the order in which Mongrel2 writes them
# (probed); in any other order it is parsed as all messages are. Clients have no say over what stands between the path
# and the body. Answers have few sizes, mostly, so it is not always read anew.
_CREDITS_BODY = b'18:{"type":"credits"},'
_match_credits = re.compile(
    rb"@\* [0-9]+:"
    rb"(?:16:DOWNLOAD_CREDITS,[0-9]+:([0-9]{1,20}),6:METHOD,4:JSON,\}|"
    rb'\{"METHOD":"JSON","DOWNLOAD_CREDITS":"([0-9]{1,20})"\},)' + re.escape(_CREDITS_BODY)
).fullmatch
_known_credits: dict[bytes, int] = {}
_MAX_KNOWN_CREDITS = 1024

_JSON_TYPE = {"Content-Type": "application/json"}

# After so many seconds without the server's subscription PULL is connected all the same, though not read. Mongrel2
# reads subscriptions in the task that also sends notices, and that task waits while there is nobody to send them to: a
# handler that left a reply to a dead browser behind, and went, would keep its successor out for ever (probed).
_HOLD_SECONDS = 0.5

# How long the end of the intake may wait for a receipt: one comes within a millisecond, unless the server stands still.
_RECEIPT_SECONDS = 0.1

#: Seconds after which a WARNING names a server that has not shown itself.
READY_WARNING_SECONDS = 5.0


class Connection:
    """The way to one Mongrel2 handler entry and back; made by a ``Transceiver``, which hands it out as ``conn``.

    It also stands alone, as the class of the same name in Mongrel2's own Python example does: made without a *runtime*
    it connects at once, pings its WebSockets every 30 s, yields what comes by :meth:`recv`, and goes with its ``with``
    block, by :meth:`shutdown`, or with the program, whatever way that ends.

    Args:
        sender: The entry's ``send_ident``; letters, digits and ``-``.
        pull_addr: The entry's ``send_spec``, where the server pushes requests: ``(host, port)`` or an endpoint.
            ``None`` pulls from nowhere: its requests come another way.
        pub_addr: The entry's ``recv_spec``, where the server subscribes to replies.
        runtime: What it shares with the Transceiver's other connection sets; ``None`` has it stand alone.

    Raises:
        LocalProtocolError: (a ``ValueError``) The sender could not be answered, or an address is malformed.

    Attributes:
        sender: As given.
        bad_messages: How many messages could not be parsed.
        stale_replies: How many answers were not sent because the server that asked has gone.
    """

    _sessions_class = Sessions

    def __init__(
        self, sender: str, pull_addr: Address | None, pub_addr: Address, *, runtime: Runtime | None = None
    ) -> None:
        self.sender = check_sender(sender)
        self.pull_endpoint = None if pull_addr is None else connect_endpoint(pull_addr)
        self.pub_endpoint = connect_endpoint(pub_addr)
        self.bad_messages = 0
        self.stale_replies = 0
        self.requests = 0
        self._warned_of_credits = False
        self._pinger: Pinger | None = None
        stands_alone = runtime is None
        if runtime is None:
            runtime = Runtime(Context(f"Connection {self.sender}", self.shutdown))
            self._pinger = Pinger(runtime.registry, lambda: [self], PING_SECONDS)
        self._runtime = runtime
        self._context = runtime.context
        self._inbox = runtime.inbox
        self._private_inbox = False
        self._stopped = False
        self._thread_id = self._context.thread_id
        # A new one for each life of the server. Ids begin at 1 again in each, so that an answer to a request of an
        # older one would reach a stranger.
        self._open = OpenRequests(self.release)
        self._sockets: dict[str, None] = {}
        self._probed: dict[str, Request | None] = {}
        self._ready_timer: Any = None
        self._hold_timer: Any = None
        self._writer = Writer(
            self._context,
            on_ready=self._on_ready,
            on_lost=self._on_lost,
            send_timeout=runtime.send_timeout,
            # Notices come in by PULL, and to another process where several share one. None come while the receiver
            # waits for the application to take something.
            receipts=None
            if runtime.options.shared or self.pull_endpoint is None
            else lambda: not self._inbox.receivers_wait,
            burst=SHARED_BURST if runtime.options.shared else BURST,
            name=f"writer of {self.sender}",
        )
        self._receiver = Receiver(
            self._context,
            SocketKind.PULL,
            self._on_message,
            name=f"receiver of {self.sender}",
        )
        self.sessions = self._sessions_class(
            self._context,
            self._writer,
            runtime.registry,
            runtime.options,
            self._emit_websocket,
            name=f"sender {self.sender}",
        )
        if stands_alone:
            try:
                self.start()
            except BaseException:
                self.shutdown()
                raise

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
        self._watch_readiness()
        self._writer.connect(self.pub_endpoint)
        if self._pinger is not None:
            self._pinger.start()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End one that stands alone: its WebSockets get close 1001, what was sent goes out, everything is closed.

        Blocks this greenlet within the linger of a second; safe to call twice. ``recv`` then returns ``None``.
        """
        context = self._context
        try:
            if context.open:
                if self._pinger is not None:
                    self._pinger.stop()
                self.sessions.close_all(CloseCode.GOING_AWAY)
                self.stop_intake(context.linger)
                self._runtime.inbox.end()
                self.end_inbox()
                self.stop(linger=context.linger)
        finally:
            context.close()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block this greenlet until the server has subscribed; False after *timeout* seconds."""
        return self._writer.wait_ready(timeout)

    def stop_intake(self, timeout: float | None = None) -> None:
        """Take what has arrived and no more. Blocks until it was handed on, *timeout* seconds at the most."""
        if not self._stopped:
            self._writer.receipts.end(_RECEIPT_SECONDS if timeout is None else min(timeout, _RECEIPT_SECONDS))
        self._receiver.stop(timeout)

    def stop(self, *, linger: float) -> None:
        """Send what waits, for *linger* seconds at the most, and close the sockets; safe to call twice.

        Requests that are answered later are passed over.
        """
        if self._ready_timer is not None:
            self._context.unwatch(self._ready_timer)
            self._context.unwatch(self._hold_timer)
            self._ready_timer = self._hold_timer = None
        self._receiver.stop(0)
        self.sessions.stop()
        self._writer.stop(linger=linger)
        self._stopped = True
        self._open = OpenRequests()

    def _watch_readiness(self) -> None:
        if self._ready_timer is not None:
            self._context.unwatch(self._ready_timer)
            self._context.unwatch(self._hold_timer)
        # New ones each time: libev starts a timer that has run already with its repetition.
        self._ready_timer = self._context.timer(READY_WARNING_SECONDS, READY_WARNING_SECONDS * 12)
        self._ready_timer.start(self._warn_not_ready)
        self._hold_timer = self._context.timer(_HOLD_SECONDS)
        self._hold_timer.start(self._hold)

    def _hold(self) -> None:
        if not self.ready and self.pull_endpoint is not None:
            self._receiver.connect(self.pull_endpoint, hold=True)

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
            self._hold_timer.stop()
        if self.pull_endpoint is not None:
            self._receiver.connect(self.pull_endpoint)

    def _on_lost(self) -> None:
        log.warning("%s: Mongrel2 at %s has gone, and all its connections", self.sender, self.pub_endpoint)
        self._receiver.drop()
        self._probed.clear()
        old, self._open = self._open, OpenRequests(self.release)
        senders = dict.fromkeys(self._sockets, self.sender)
        senders.update((conn_id, request.sender) for conn_id, request in old.heads.items())
        self._sockets.clear()
        for conn_id, sender in senders.items():
            self._emit_disconnect(sender, conn_id)
        self.sessions.lost()
        for attachment in self._runtime.attachments:
            attachment.lost(self)
        if self._ready_timer is not None:
            self._watch_readiness()

    # -- what comes in ---------------------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        writer = self._writer
        if writer.flow_control and message.endswith(_CREDITS_BODY) and not self._runtime.attachments:
            # Every second message is one: it takes this short way.
            fields = message.split(b" ", 2)
            written = _known_credits.get(fields[-1]) or _read_credits(fields[-1])
            if written is not None:
                writer.credit(fields[1].decode("latin-1"), written)
                return
        try:
            request = parse_request(message)
            if request.conn_id == CONTROL_ID:
                raise RemoteProtocolError(f"{request!r} is for a control socket: Mongrel2 could not be answered")
        except RemoteProtocolError as error:
            self.bad_messages += 1
            log.warning("%s: bad message number %d: %s", self.sender, self.bad_messages, error)
            return
        self.requests += 1
        pending = self._open
        if not writer.flow_control and (b"DOWNLOAD_CREDITS" in request._raw or "DOWNLOAD_CREDITS" in request._raw):
            self._begin_flow_control()
        inbox = self._inbox
        if request.method in _RESERVED:
            request._books = pending
            self._on_reserved(request)
        elif pending.add(request):
            inbox.items.append((self, request))
            if inbox.consumers_wait:
                inbox.wake()
            if pending.behind and pending.overfull(request.conn_id):
                self._drop_pipeline(request)
        else:
            log.info("%s: connection %s sent more after its last request", self.sender, request.conn_id)
        if len(inbox.items) >= inbox.limit:
            inbox.wait_for_space()

    def _begin_flow_control(self) -> None:
        """The server says what it writes (``download.flow_control``)."""
        if not self._runtime.options.shared:
            self._writer.flow_control = True
        elif not self._warned_of_credits:
            # Each process would wait for credits that the others get.
            self._warned_of_credits = True
            log.error(
                "%s: Mongrel2 has download.flow_control on, whose credits scatter over the processes that share this "
                "endpoint; switch it off, or give each process an endpoint of its own. Messages go out without it, and "
                "one above 102400 bytes ends its connection",
                self.sender,
            )

    def _on_reserved(self, request: Request) -> None:
        method = request.method
        if method == "WEBSOCKET" and request.header("FLAGS") is not None:
            self.sessions.message(request)
        elif method == "WEBSOCKET_HANDSHAKE" and all(request.header(name) is not None for name in _HANDSHAKE_HEADERS):
            if not self._runtime.handshake_events:
                self.sessions.handshake(request)
            elif self._open.add(request):
                self.sessions.hold(request)
                self._emit(request)
        elif method in ("JSON", "XML") and request.header("VERSION") is None:
            if request.is_notice():
                self._on_notice(request)
            else:
                self._sockets[request.conn_id] = None
                self._emit(request)
        elif method == "UPLOAD_STREAM" and request.header("METHOD") is None:
            self._emit(request)
        else:
            self._refuse(request)

    def _emit(self, request: Request) -> None:
        self._inbox.put(self, request)

    def _emit_websocket(self, request: Request) -> None:
        if request.method == "WEBSOCKET_CLOSE":
            request._books = GONE
            for attachment in self._runtime.attachments:
                attachment.websocket_ended(self, request)
        self._inbox.put(self, request)

    def _emit_disconnect(self, sender: str, conn_id: str) -> None:
        request = Request(sender, conn_id, "@*", {"METHOD": "JSON"}, b'{"type":"disconnect"}', "DISCONNECT")
        request._books = GONE
        self._emit(request)

    def _refuse(self, request: Request) -> None:
        """An HTTP request whose method is one of our own words: it must not look like an event to the application."""
        log.warning("%s: connection %s sent the METHOD %s over HTTP", self.sender, request.conn_id, request.method)
        if self._open.add(request):
            answer = build_response(b"", 501, date=current_date(), close=True)
            data, close = self._open.answer(request, answer, complete=True, close=True)
            self._put(request, data, close, wait=False)

    def _drop_pipeline(self, request: Request) -> None:
        """A client sends requests without end and does not wait for the answers."""
        conn_id = request.conn_id
        log.warning("%s: connection %s has too many requests open, closing it", self.sender, conn_id)
        self._open.remove(conn_id)
        self._writer.close(request.sender, [conn_id], wait=False)
        self._emit_disconnect(request.sender, conn_id)

    def _on_notice(self, request: Request) -> None:
        for attachment in self._runtime.attachments:
            if attachment.notice(self, request):
                return
        written = request.credits()
        if written is not None:
            self._writer.credit(request.conn_id, written)
        elif request.is_disconnect():
            conn_id = request.conn_id
            if self._writer.receipts.arrived(conn_id):
                return
            self._writer.forget(conn_id)
            was_websocket = self.sessions.gone(request)
            was_open = bool(self._open.remove(conn_id))
            if was_websocket and not was_open:  # one that waits for the application's answer is a request, too
                return
            if conn_id in self._sockets:
                del self._sockets[conn_id]
            elif not was_open:
                return  # idle keep-alive, our own close, or the answer to something sent to a dead id
            self._emit_disconnect(request.sender, conn_id)

    def recv(self, timeout: float | None = None) -> Request | None:
        """Return the next event of this connection set; ``None`` after *timeout* seconds, or when it was stopped.

        From the first call on its events come here and no longer out of ``Transceiver.recv``. Blocks this greenlet.
        """
        if not self._private_inbox:
            shared, self._inbox = self._inbox, Inbox(self._inbox.limit)
            self._private_inbox = True
            self._inbox.ended = shared.ended or self._stopped
            shared.move(self, self._inbox)
        inbox = self._inbox
        if not inbox.wait(timeout) or not inbox.items:
            return None
        request = inbox.items.popleft()[1]
        if inbox.receivers_wait:
            inbox.taken()
        return request

    def recv_json(self, timeout: float | None = None) -> Request | None:
        """As :meth:`recv`, and ``request.data`` is the decoded body, also that of an HTTP request.

        A JSON socket's message whose body is no JSON is counted, logged and passed over; an HTTP request without JSON
        is handed out with ``data == {}``, since its client waits for an answer.
        """
        while True:
            request = self.recv(timeout)
            if request is None:
                return None
            try:
                if request.method not in _RESERVED:
                    request._data = request.json()
                _ = request.data
            except RemoteProtocolError as error:
                if request.method not in _RESERVED:
                    return request
                self.bad_messages += 1
                log.warning("%s: %s", self.sender, error)
            else:
                return request

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
        status: str | None = "OK",
        headers: HeaderFields | None = None,
    ) -> None:
        """Answer an HTTP request, whole.

        ``Content-Length`` and ``Date`` are added. HEAD, 204 and 304 go out without the body; the connection is closed
        behind the answer where the client, HTTP/1.0 or *headers* ask for it. Answers to pipelined requests are put in
        the order of the requests. A request whose client or server has gone is passed over, as is a WebSocket's message
        (which takes :meth:`reply_websocket`).

        Args:
            req: As it came out of ``recv``.
            body: ``str`` goes out as UTF-8.
            code, status: The status. ``None``, or the default beside another code than 200, is the standard phrase.
                After an interim code (1xx) the request stays open.
            headers: A mapping of names to a value or a list of them, or pairs.

        Raises:
            LocalProtocolError: Something that may not be sent, such as a CR or LF in a header; or *req* was answered
                before. Nothing was sent.
            SendTimeout: The pipe to the server stayed full for ``send_timeout`` seconds, which this greenlet waited;
                the connection is closed.
        """
        close, keep_alive = req._persistence or req.persistence()
        if body.__class__ is not bytes:
            body = body.encode() if body.__class__ is str and body.isascii() else _as_bytes(body)
        if code == 200 and status == "OK" and not headers and not close and not keep_alive and req.method != "HEAD":
            # What build_response() would build, for nearly all.
            now = time()
            if not clock.since <= now < clock.until:
                clock.tick(now)
            data = b"%b%d\r\n\r\n%b" % (clock.plain_start, len(body), body)
            self._answer(req, data, True, False)
            return
        if headers and not close:
            if not isinstance(headers, Mapping):
                headers = list(headers)
            if _asks_to_close(headers):
                close, keep_alive = True, False
        data = build_response(
            body,
            code,
            None if status == "OK" else status,
            headers,
            date=current_date(),
            head_only=req.method == "HEAD",
            close=close,
            keep_alive=keep_alive,
        )
        if code >= 200:
            self._answer(req, data, True, close)
        else:
            self._answer(req, data, None, False)

    def reply(self, req: Request, msg: str | bytes) -> None:
        """Send raw bytes in answer to *req*: a whole HTTP response or a part of it, frames, whatever the client takes.

        Where requests are pipelined the bytes are followed to see where the response ends, so that the next one does
        not run into it. An empty *msg* closes the connection, as :meth:`close` does. Raises as :meth:`reply_http`.
        """
        data = _as_bytes(msg)
        if data:
            self._answer(req, data, None, False)
        else:
            self.close(req)

    def reply_part(self, req: Request, data: bytes, *, last: bool = False, close: bool = False) -> None:
        """Send a part of the answer to *req*, for a caller that frames its responses itself. Nothing is checked.

        Args:
            data: May be empty where *last* or *close* is all there is to say.
            last: The answer is complete with it; the next pipelined one may begin.
            close: The connection is closed behind it.

        Raises:
            ConnectionClosed: The browser went away while this greenlet waited for it to read.
            SendTimeout: As :meth:`reply_http`.
        """
        self._answer(req, data, last, close)

    def grant(self, req: Request, count: int) -> None:
        """Let the server read *count* more bytes of the body of *req*, with ``upload.stream``.

        They come as events with the METHOD ``UPLOAD_STREAM``, which tell their offset by the header of that name, and
        the last one by ``UPLOAD_STREAM_DONE``.
        """
        self._run(self._writer.control, req.sender, [req.conn_id], credits_body(count))

    def reply_json(self, req: Request, data: Any) -> None:
        """Send *data* as JSON: to a JSON or XML socket as it is, to an HTTP request as ``application/json``.

        A WebSocket gets it as a text message. JSON sockets get no terminator, as with Mongrel2's own example: with
        ``raw_payload=0`` the server frames them. Raises ``LocalProtocolError`` for what JSON cannot express.
        """
        body = _as_json(data)
        if req.method in ("JSON", "XML"):
            self._answer(req, body, None, False)
        elif req.method in _RESERVED:
            self.reply_websocket(req, body)
        else:
            self.reply_http(req, body, headers=_JSON_TYPE)

    def reply_websocket(self, req: Request, body: str | bytes, opcode: int = Opcode.TEXT, rsvd: int = 0) -> None:
        """Send one frame to the WebSocket of *req*; compressed where that was agreed on and *rsvd* is 0.

        A close frame (opcode 8, *body* its payload) begins the closing handshake. One that has gone is passed over.
        """
        if self._is_ours(req):
            self.deliver_websocket(req.sender, [req.conn_id], body, opcode, rsvd)

    def close(self, req: Request) -> None:
        """Close the browser's connection behind what was written to it; a WebSocket gets a close frame (1000) first."""
        self._run(self._close, req)

    @property
    def websocket_options(self) -> WebSocketOptions:
        """What the Transceiver was told about its WebSockets."""
        return self._runtime.options

    def check_handshake(self, req: Request, handshake: Handshake | None = None) -> Accepted | Refused:
        """Say what a WebSocket's opening handshake (METHOD ``WEBSOCKET_HANDSHAKE``) deserves; nothing is sent.

        Args:
            handshake: What is demanded and offered; ``None`` is what the Transceiver was given. Its ``on_handshake`` is
                asked in any case, so this may block as that does.
        """
        return self.sessions.check(req, handshake)

    def accept_websocket(self, req: Request, answer: Accepted | None = None) -> WebSocket:
        """Send the 101 answer to an opening handshake and return the WebSocket; its events no longer go to ``recv``.

        With ``handshake_events`` only. Whoever is not let in is answered as any other request is, with
        :meth:`reply_http` and the like, behind which the connection is closed. Call it in the hub's thread.

        Args:
            answer: From :meth:`check_handshake`; ``None`` asks that.

        Raises:
            RemoteProtocolError: The handshake must be refused; nothing was sent.
            ConnectionClosed: The client has gone, or was answered already.
        """
        if answer is None:
            checked = self.check_handshake(req)
            if isinstance(checked, Refused):
                raise RemoteProtocolError(f"the handshake of {req!r} is to be refused", status=checked.status)
            answer = checked
        self._take_out(req)
        sockets: list[WebSocket] = []

        def receiver(entry: Entry) -> Callable[[Request], None]:
            sockets.append(WebSocket(self, entry, req, self._runtime.registry, self._runtime.options.max_queue))
            return sockets[0]._feed

        self.sessions.accept(req, answer, receiver)
        return sockets[0]

    def accept_raw_websocket(self, req: Request, head: bytes, receive: Callable[[Request], None]) -> Entry:
        """Let a client in with the 101 answer *head* of another library, which reads and writes the frames itself.

        *receive* is called with each message as it came (``FLAGS`` and body), and at the end with ``WEBSOCKET_CLOSE``;
        it must not block. See :mod:`greentx.session` for what is still looked after here. With ``handshake_events``
        only; raises ``ConnectionClosed`` as :meth:`accept_websocket` does.
        """
        self._take_out(req)
        return self.sessions.accept_raw(req, head, receive)

    def _take_out(self, request: Request) -> None:
        if self._open.heads.get(request.conn_id) is not request or self._open.started(request):
            raise ConnectionClosed(1006, "the client has gone, or was answered already")
        self._open.remove(request.conn_id)

    # -- to connections by their ids -------------------------------------------------------------------------------

    def send(self, sender: str, conn_id: str | int | Iterable[str | int], msg: str | bytes) -> None:
        """Send raw bytes to one connection, or to several; an empty *msg* closes them. The same as :meth:`deliver`."""
        self.deliver(sender, conn_id, msg)

    def deliver(self, sender: str, idents: str | int | Iterable[str | int], data: str | bytes) -> None:
        """Send the same raw bytes to many connections, 128 ids a message; empty *data* closes them.

        For a connection with an open HTTP request they are (a part of) its answer, as with :meth:`reply`.

        Raises:
            LocalProtocolError: An id is no decimal number, or *sender* cannot be parsed by Mongrel2.
            SendTimeout: As :meth:`reply_http`.
        """
        self._run(self._deliver, check_sender(sender), _checked_ids(idents), _as_bytes(data))

    def deliver_json(self, sender: str, idents: str | int | Iterable[str | int], data: Any) -> None:
        """As :meth:`reply_json`, to many connections, each in the way that it takes it."""
        body = _as_json(data)
        registry, heads = self._runtime.registry, self._open.heads
        conn_ids = _checked_ids(idents)
        websockets = [conn_id for conn_id in conn_ids if (sender, conn_id) in registry]
        others = [conn_id for conn_id in conn_ids if conn_id not in heads and (sender, conn_id) not in registry]
        self.deliver_http(sender, conn_ids, body, headers=_JSON_TYPE)
        if websockets:
            self.deliver_websocket(sender, websockets, body)
        if others:
            self.deliver(sender, others, body)

    def deliver_http(
        self,
        sender: str,
        idents: str | int | Iterable[str | int],
        body: str | bytes,
        code: int = 200,
        status: str | None = "OK",
        headers: HeaderFields | None = None,
    ) -> None:
        """Answer the open HTTP requests of many connections as :meth:`reply_http` would; others are passed over."""
        if headers is not None and not isinstance(headers, Mapping):
            headers = list(headers)
        for conn_id in _checked_ids(idents):
            request = self._open.heads.get(conn_id)
            if request is not None and request.sender == sender:
                self.reply_http(request, body, code, status, headers)

    def deliver_websocket(
        self,
        sender: str,
        idents: str | int | Iterable[str | int],
        data: str | bytes,
        opcode: int = Opcode.TEXT,
        rsvd: int = 0,
    ) -> None:
        """Send the same frame to many WebSockets, encoded once; ids without a live WebSocket are passed over.

        Raises:
            LocalProtocolError: A frame that RFC 6455 does not allow.
            SendTimeout: As :meth:`reply_http`.
        """
        self._run(self._deliver_frame, check_sender(sender), _checked_ids(idents), _as_bytes(data), opcode, rsvd)

    def deliver_close(self, sender: str, idents: str | int | Iterable[str | int]) -> None:
        """Close many connections behind what was written to them."""
        self.deliver(sender, idents, b"")

    # -- the way out -----------------------------------------------------------------------------------------------

    def _run(self, function: Any, *arguments: Any) -> None:
        """Call *function* here, or in the hub's thread when this is another one."""
        if native_thread_id() != self._thread_id or not self._context.open:
            self._context.hand_over(function, *arguments)
        elif self._stopped:
            self._refuse_to_send()
        else:
            function(*arguments)

    def in_hub_thread(self) -> bool:
        """True in the thread whose greenlets may wait for something here; others :meth:`hand_over` their calls."""
        return native_thread_id() == self._thread_id

    def hand_over(self, function: Callable[..., T], *arguments: object) -> T:
        """Call *function* in the hub's thread, for another one, which waits for it; returns and raises as it does."""
        return self._context.hand_over(function, *arguments)

    def _answer(self, request: Request, data: bytes, complete: bool | None, close: bool) -> None:
        if native_thread_id() != self._thread_id or not self._context.open:
            self._context.hand_over(self._answer, request, data, complete, close)
            return
        pending = self._open
        if complete and data and not close and pending.answer_whole(request):
            try:
                self._writer.write(request.sender, request.conn_id, data)
            except BaseException:  # killed while it waited for the pipe, too; raised again
                self._break_off(request)
                raise
            return
        if not self._is_ours(request):
            return
        if complete and request.method in _WEBSOCKET:
            log.warning("%s: %s was answered as if it were HTTP; this was not sent", self.sender, request)
            return
        data, close = pending.answer(request, data, complete=complete, close=close)
        self._put(request, data, close)

    def _put(self, request: Request, data: bytes, close: bool, *, wait: bool = True) -> None:
        """Hand *data*, in one piece, to the writer: two pieces could be overtaken while the first one waits."""
        writer = self._writer
        try:
            if data:
                writer.write(request.sender, request.conn_id, data, wait=wait)
            if close:
                self._open.closed(request.conn_id)
                self.sessions.release(request.sid)
                writer.close(request.sender, [request.conn_id], wait=wait)
        except BaseException:
            self._break_off(request)
            raise

    def _break_off(self, request: Request) -> None:
        """An answer is missing: the client would take the next one for it."""
        self._open.remove(request.conn_id)
        self._open.closed(request.conn_id)
        request._books = GONE
        self._writer.close(request.sender, [request.conn_id], wait=False)

    def _is_ours(self, request: Request) -> bool:
        """False where *request* is from a life of the server, or of a connection, that has ended."""
        books = request._books
        if books is None or books is self._open:
            return True
        if books is not GONE:
            self.stale_replies += 1
            log.warning(
                "%s: the server restarted since %s %s came in, or the connection was removed; its answer was dropped",
                self.sender,
                request.method,
                request.path,
            )
        return False

    def _close(self, request: Request) -> None:
        if not self._is_ours(request):
            return
        entry = self._runtime.registry.get(request.sid)
        if entry is not None:
            self.sessions.close(entry)
            return
        _, close = self._open.answer(request, b"", complete=None, close=True)
        if close:
            self._sockets.pop(request.conn_id, None)
            self._put(request, b"", True)

    def release(self, request: Request) -> None:
        """Somebody else answers *request*, or has: later ones of its connection do not wait for an answer from here."""
        if native_thread_id() != self._thread_id:
            self._context.hand_over(self.release, request)
            return
        data, close = self._open.release(request)
        if data or close:
            self._put(request, data, close)

    def _refuse_to_send(self) -> None:
        self.stale_replies += 1
        log.warning("%s: the connection was removed; a reply was dropped", self.sender)

    def _deliver(self, sender: str, conn_ids: list[str], data: bytes) -> None:
        heads = self._open.heads
        rest: list[str] = conn_ids
        if heads and not heads.keys().isdisjoint(conn_ids):
            rest = []
            for conn_id in conn_ids:
                request = heads.get(conn_id)
                if request is None or request.sender != sender:
                    rest.append(conn_id)
                elif data:
                    self._answer(request, data, None, False)
                else:
                    self._close(request)
        if data:
            if rest:
                self._writer.write_many(sender, rest, data)
            return
        plain: list[str] = []
        for conn_id in rest:
            entry = self._runtime.registry.get((sender, conn_id))
            if entry is not None:
                self.sessions.close(entry)
            else:
                self._sockets.pop(conn_id, None)
                plain.append(conn_id)
        if plain:
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
        if entries:
            self.sessions.send(entries, payload, opcode, rsvd)
        else:
            build_frame(payload, opcode, rsvd)  # which says whether it could be sent

    def started(self, request: Request) -> bool:
        """True when something was answered to *request* already, or nothing can be any more."""
        return request._books is not self._open or self._open.started(request)

    def prove(self, text: str, timeout: float) -> None:
        """Send *text* to conn id -1, which no browser has, once the server has subscribed; for the control socket."""
        try:
            if self.wait_ready(timeout) and not self._stopped:
                self._writer.prove(self.sender, text.encode())
        except GreentxError as error:
            log.warning("%s: the proof that replies arrive was not sent: %s", self.sender, error)

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
    def unconfirmed(self) -> int:
        """To how many browsers bytes are on their way, where the server reports that (``download.flow_control``)."""
        return len(self._writer.unconfirmed())

    @property
    def flow_control(self) -> bool:
        """The server reports what it wrote, and large answers wait for that."""
        return self._writer.flow_control

    def confirmed(self, req: Request) -> int | None:
        """Return a number that grows while the browser of *req* takes what it was sent, ``None`` when it has."""
        return self._writer.confirmed(req.conn_id)

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


def _read_credits(notice: bytes) -> int | None:
    """Return how many bytes were written, as a credits notice says; ``None`` where it is none in the usual form."""
    match = _match_credits(notice)
    if match is None:
        return None
    if len(_known_credits) >= _MAX_KNOWN_CREDITS:
        _known_credits.clear()
    written = _known_credits[notice] = int(match[1] or match[2])
    return written


def _checked_ids(idents: str | int | Iterable[str | int]) -> list[str]:
    if isinstance(idents, (str, int)):
        idents = (idents,)
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


def _as_bytes(data: object) -> bytes:
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise LocalProtocolError(f"text that is no UTF-8 cannot be sent: {error}") from error
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise LocalProtocolError(f"what is sent is str or bytes, not {type(data).__name__}")


def _as_json(data: object) -> bytes:
    try:
        return json.dumps(data).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"{type(data).__name__} cannot be written as JSON: {error}") from error


def _asks_to_close(headers: HeaderFields) -> bool:
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if name in ("Connection", b"Connection") or (len(name) == 10 and name.lower() in ("connection", b"connection")):
            values = value if isinstance(value, (list, tuple)) else [value]
            texts = [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in values]
            return "close" in connection_options(texts)
    return False
