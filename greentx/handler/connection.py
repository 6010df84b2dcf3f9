"""The API to answer through: what an application gets as ``conn`` with each event.

It carries the names of the class of the same name in Mongrel2's own Python example, and accepts ``str`` (as UTF-8) or
bytes. Each method may be called from any greenlet, and from any native thread.

The path of a request: :mod:`greentx.handler.link` receives it, :mod:`greentx.handler.intake` makes an event of it, the
inbox keeps it for ``recv()``. The path of an answer: this class builds the bytes, :mod:`greentx.handler.answers` says
whether it is this request's turn, the link's writer sends or joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from time import time
from types import TracebackType
from typing import Any

import gevent

from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.fields import check_sender
from ..protocol.http1 import (
    TEXT_TYPE,
    HeaderFields,
    build_response,
    has_no_body,
    with_content_type,
)
from ..protocol.kinds import HTTP_FORGERIES, SOCKETS
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode, Opcode
from ..protocol.websocket.handshake import Accepted, Refused
from ..protocol.websocket.registry import Entry
from ..transport import Context
from ..transport.endpoints import Address, connect_endpoint
from ..transport.security import Dial
from .answers import Answers
from .arguments import as_bytes, as_json, asks_to_close, checked_ids, extended_body
from .clock import clock, current_date
from .deliveries import Deliveries
from .intake import Intake
from .link import Link
from .orphans import Orphans, ServerControl
from .pinger import PING_SECONDS, Pinger
from .progress import Progress
from .shared import Shared
from .sharing import SharedEntry
from .standstill import standstill
from .uploads import check_store
from .websocket import WebSocket
from .websockets import WebSockets

__all__ = ["Connection"]

# RFC 8259, section 11: no charset parameter is defined, JSON is UTF-8.
_JSON_TYPE = {"Content-Type": "application/json"}


class Connection(AbstractContextManager["Connection"]):
    """The way to one Mongrel2 handler entry and back; made by a ``Transceiver``, which hands it out as ``conn``.

    It also stands alone, as the class of the same name in Mongrel2's own Python example does: made without *shared* it
    connects at once, pings its WebSockets every 30 s, returns what comes by :meth:`recv`, and goes with its ``with``
    block, by :meth:`shutdown`, or with the program, whatever way that ends.

    Args:
        sender: The entry's ``send_ident``; letters, digits and ``-``.
        pull_addr: The entry's ``send_spec``, where the server pushes requests: ``(host, port)`` or an endpoint.
            ``None`` pulls from nowhere: its requests come another way.
        pub_addr: The entry's ``recv_spec``, where the server subscribes to replies.
        shared: What it shares with the Transceiver's other connection sets; ``None`` has it stand alone.
        stand_in: The other side is a :class:`~greentx.Server`, or one of mongrel2-transceiver's: it may have any name
            without a space, and gets each answer as a message of its own, at once, and nothing else.
        handshake_events: Standing alone: the application answers the opening handshakes of WebSockets itself, as with
            Mongrel2's own class; see :meth:`reply`. False has them answered here, as a ``Transceiver`` does.
        upload_store: Standing alone: as for a ``Transceiver``.
        server_control: As for a ``Transceiver``.
        dial: Not for applications: how it connects; see :meth:`greentx.Transceiver.add_connection`.

    Raises:
        LocalProtocolError: (a ``ValueError``) The sender could not be answered, or an address is malformed.

    Attributes:
        sender: As given.
        link: The sockets, and whether the server is there.
        orphans: Looks for WebSockets that a former handler let in; ``None`` where the control port is not known.
        progress: Says which silent WebSockets are sending; ``None`` likewise.
        shares: What other processes on the same handler entry tell, where they do; else ``None``.
        gives_way: It only answers what comes another way: its server may have it replaced by one that pulls, too. Not
            for applications.
        intake, answers, deliveries, sessions: What handles messages, answers and WebSockets; not for applications.
    """

    def __init__(
        self,
        sender: str,
        pull_addr: Address | None,
        pub_addr: Address,
        *,
        shared: Shared | None = None,
        stand_in: bool = False,
        handshake_events: bool = True,
        upload_store: str | None = None,
        server_control: Address | None = None,
        dial: Dial | None = None,
    ) -> None:
        self.sender = check_sender(sender, mongrel2=not stand_in)
        self.pull_endpoint = None if pull_addr is None else connect_endpoint(pull_addr)
        self.pub_endpoint = connect_endpoint(pub_addr)
        control_endpoint = None if server_control is None else connect_endpoint(server_control)
        # As all arguments: before a context is made, which would stay open.
        check_store(upload_store)
        self.gives_way = False
        self._pinger: Pinger | None = None
        stands_alone = shared is None
        if shared is None:
            # A context of its own, not the process's: it goes with this connection set, whatever else uses ZeroMQ.
            shared = Shared(
                Context(f"Connection {self.sender}", self.shutdown),
                handshake_events=handshake_events,
                upload_store=upload_store,
            )
            self._pinger = Pinger(shared.registry, lambda: [self], PING_SECONDS)
        self._shared = shared
        # From the sockets up: each part is given those below it, and none above.
        self.link = Link(
            shared,
            self.sender,
            self.pull_endpoint,
            self.pub_endpoint,
            stand_in=stand_in,
            # The parts below are made one after the other, and some call back: so by name, when it happens.
            forwarded=lambda request: self.answers.release(request),
            dial=dial,
        )
        self.sessions = WebSockets(
            shared.context,
            self.link.writer,
            shared.registry,
            shared.options,
            shared.queued,
            lambda request: self.intake.emit_websocket(request),
            ended=lambda request: self.intake.websocket_ended(request),
            name=f"sender {self.sender}",
        )
        self.orphans: Orphans | None = None
        self.progress: Progress | None = None
        # Of processes that share an endpoint one knows what another one does not.
        if control_endpoint is not None and not shared.options.shared:
            control = ServerControl(shared.context, control_endpoint)
            self.progress = Progress(self.link, control)
            self.orphans = Orphans(self.link, shared.registry, self.sessions.senders, control)
        self.answers = Answers(shared, self.link, self.sessions)
        self.deliveries = Deliveries(shared, self.link, self.sessions, self.answers)
        self.intake = Intake(shared, self.link, self.sessions, self.answers, self)
        self.shares: SharedEntry | None = None if shared.sharing is None else shared.sharing.entry(self)
        # A Transceiver starts it itself, once it is found by its sender.
        if stands_alone:
            try:
                self.intake.start()
                assert self._pinger is not None
                self._pinger.start()
            except BaseException:  # raised again: whatever it was, nothing half-started is left behind
                self.shutdown()
                raise

    def __repr__(self) -> str:
        state = "ready" if self.ready else "waiting for the server"
        is_open = len(self.link.life.requests)
        return f"<Connection {self.sender} {self.pull_endpoint} {self.pub_endpoint}: {state}, {is_open} open>"

    @property
    def ready(self) -> bool:
        """True while both ways work: replies arrive, since the server has subscribed, and requests are pulled."""
        return self.link.ready

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block this greenlet until both ways work; False after *timeout* seconds."""
        if not self._shared.context.in_hub_thread():
            return self._shared.context.hand_over(self.wait_ready, timeout)
        return self.link.wait_ready(timeout)

    @property
    def bad_messages(self) -> int:
        """How many messages could not be parsed, or were not what they have to be."""
        return self.intake.refusals.bad_messages

    @property
    def stale_replies(self) -> int:
        """How many answers were not sent because the server that asked has gone."""
        return self.answers.stale

    def status(self) -> dict[str, Any]:
        """Return counts and states, as the control socket's ``STATUS`` shows them."""
        # Names and meanings are what monitoring reads: they are added to, not changed.
        writer = self.link.writer
        return {
            "sender": self.sender,
            "pull": self.pull_endpoint,
            "pub": self.pub_endpoint,
            "ready": self.ready,
            "why": self.link.why or standstill(self.link),
            "requests": self.intake.requests,
            "open_requests": len(self.link.life.requests),
            "bad_messages": self.bad_messages,
            "foreign_messages": self.intake.foreign.count,
            "replies": writer.messages_sent,
            "dropped_replies": writer.messages_dropped + self.stale_replies,
        }

    # -- standing alone ----------------------------------------------------------------------------------------------

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End one that stands alone: its WebSockets get close 1001, what was sent goes out, everything is closed.

        Blocks this greenlet within the linger of a second; safe to call twice. ``recv`` then returns ``None``.
        """
        context = self._shared.context
        if context.open and not context.in_hub_thread():
            context.hand_over(self.shutdown)
            return
        try:
            if context.open:
                if self._pinger is not None:
                    self._pinger.stop()
                # Goodbyes first: closing the intake may take all the time that there is.
                self.sessions.close_all(CloseCode.GOING_AWAY)
                self.intake.stop_receiving(context.linger)
                self._shared.inbox.end()
                self.intake.end_inbox()
                self.intake.stop(linger=context.linger)
        finally:
            context.close()

    def recv(self, timeout: float | None = None) -> Request | None:
        """Return the next event of this connection set; ``None`` after *timeout* seconds, or when it was stopped.

        From the first call on its events come here and no longer out of ``Transceiver.recv``. Those of WebSockets that
        began before, with a handler of ``Transceiver.serve``, stay with that. Blocks this greenlet.
        """
        # Events wake greenlets of their own hub only: another native thread has one of these wait for it.
        if not self._shared.context.in_hub_thread():
            return self._shared.context.hand_over(self.recv, timeout)
        # Mongrel2's own class has no Transceiver: whoever calls this wants this entry's events, not all.
        inbox = self.intake.take_private()
        self._shared.readers.add(gevent.getcurrent())
        return inbox.pop()[2] if inbox.wait(timeout) and inbox.items else None

    def recv_json(self, timeout: float | None = None) -> Request | None:
        """As :meth:`recv`, and ``request.data`` is the decoded body, also that of an HTTP request.

        An HTTP request without JSON is handed out with ``data == {}``, since its client waits for an answer.
        """
        request = self.recv(timeout)
        if request is not None and request.method not in HTTP_FORGERIES:
            # Mongrel2's class raises here; one client's request must not end the loop of all.
            with suppress(RemoteProtocolError):
                request.decode_data()
        return request

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
        the order of the requests. A request whose client or server has gone is ignored, as is a WebSocket's message
        (which needs :meth:`reply_websocket`).

        Args:
            req: As it came out of ``recv``.
            body: ``str`` goes out as UTF-8, with ``Content-Type: text/plain; charset=utf-8`` unless *headers* have one.
            code, status: The status. ``None``, or the default with another code than 200, is the standard phrase.
                After an interim code (1xx) the request stays open; 101 is for opening handshakes only.
            headers: A mapping of names to a value or a list of them, or pairs.

        Raises:
            LocalProtocolError: Something that may not be sent, such as a CR or LF in a header; or *req* was answered
                before. Nothing was sent.
            SendTimeout: The pipe to the server stayed full for ``send_timeout`` seconds, which this greenlet waited;
                the connection is closed.
        """
        close, keep_alive = req.known_persistence or req.persistence()
        # Browsers guess the charset of what has no type; bytes are the caller's business.
        text = False
        if body.__class__ is not bytes:
            text = isinstance(body, str)
            # isascii() is a flag of the string: encoding cannot fail then, and needs no try.
            body = body.encode() if body.__class__ is str and body.isascii() else as_bytes(body)
        if code == 200 and status == "OK" and not headers and not close and not keep_alive and req.method != "HEAD":
            # What build_response() would build, for nearly all: it costs as much as the rest of the answer.
            now = time()
            if not clock.since <= now < clock.until:
                clock.tick(now)
            data = b"%b%d\r\n\r\n%b" % (clock.text_start if text else clock.plain_start, len(body), body)
            self.answers.answer(req, data, True, False)
            return
        if headers and not close:
            # An iterator can be read once, and is read again when it is encoded.
            if not isinstance(headers, Mapping):
                headers = list(headers)
            # Mongrel2 closes nothing by itself, whatever the headers say (probed).
            if asks_to_close(headers):
                close, keep_alive = True, False
        if text and not has_no_body(code):
            headers = with_content_type(headers, TEXT_TYPE)
        data = build_response(
            body,
            code,
            # Next to another code than 200 the default "OK" would be nonsense.
            None if status == "OK" else status,
            headers,
            date=current_date(),
            head_only=req.method == "HEAD",
            close=close,
            keep_alive=keep_alive,
        )
        # An interim answer (1xx) is followed by the real one: RFC 9110, section 15.2.
        if code >= 200:
            self.answers.answer(req, data, True, close)
        elif code == 101 and req.method != "WEBSOCKET_HANDSHAKE":
            raise LocalProtocolError("101 answers a WEBSOCKET_HANDSHAKE only: a server reads what follows as requests")
        else:
            self.answers.answer(req, data, None, False)

    def reply(self, req: Request, msg: str | bytes) -> None:
        """Send raw bytes in answer to *req*: a whole HTTP response or a part of it, frames, whatever the client takes.

        Where requests are pipelined the bytes are followed to see where the response ends, so that the next one does
        not run into it. An empty *msg* closes the connection, as :meth:`close` does. Raises as :meth:`reply_http`.
        """
        data = as_bytes(msg)
        # To Mongrel2 an empty message is a close (probed), so it cannot be sent as nothing.
        if data:
            self.answers.answer(req, data, None, False)
        else:
            self.close(req)

    def grant(self, req: Request, count: int) -> None:
        """Let the server read *count* more bytes of the body of *req*, with ``upload.stream``.

        They come as events with the METHOD ``UPLOAD_STREAM``, which tell their offset by the header of that name, and
        the last one by ``UPLOAD_STREAM_DONE``.
        """
        self.answers.grant(req, count)

    def reply_json(self, req: Request, data: Any) -> None:
        """Send *data* as JSON: to a JSON or XML socket as it is, to an HTTP request as ``application/json``.

        A WebSocket gets it as a text message. JSON sockets get no terminator, as with Mongrel2's own example: with
        ``raw_payload=0`` the server frames them. Raises ``LocalProtocolError`` for what JSON cannot express.
        """
        body = as_json(data)
        # What came as JSON is answered as JSON, in the way that its client reads.
        if req.method in SOCKETS:
            self.answers.answer(req, body, None, False)
        elif req.method in HTTP_FORGERIES:
            self.reply_websocket(req, body)
        else:
            self.reply_http(req, body, headers=_JSON_TYPE)

    def reply_websocket(self, req: Request, body: str | bytes, opcode: int | None = Opcode.TEXT, rsvd: int = 0) -> None:
        """Send one frame to the WebSocket of *req*; compressed where that was agreed on and *rsvd* is 0.

        A close frame (opcode 8, *body* its payload) begins the closing handshake. One that has gone is ignored. An
        *opcode* of ``None``, as ``req.opcode`` is where *req* is not a message, sends text.
        """
        payload = body if body.__class__ is bytes else as_bytes(body)
        self.answers.run_for(req, self.deliveries.reply_frame, req, payload, opcode, rsvd)

    def close(self, req: Request) -> None:
        """Close the browser's connection behind what was written to it; a WebSocket gets a close frame (1000) first."""
        self.answers.close(req)

    def accept_websocket(self, req: Request, answer: Accepted | None = None) -> WebSocket:
        """Send the 101 answer to an opening handshake and return the WebSocket; its events no longer go to ``recv``.

        With ``handshake_events`` only. To refuse, answer as any other request is answered, with :meth:`reply_http` and
        the like, behind which the connection is closed. Call it in the hub's thread.

        Args:
            answer: From ``conn.sessions.check``; ``None`` asks that.

        Raises:
            RemoteProtocolError: The handshake must be refused; nothing was sent.
            ConnectionClosed: The client has gone, or was answered already.
        """
        if answer is None:
            checked = self.sessions.check(req)
            if isinstance(checked, Refused):
                raise RemoteProtocolError(f"the handshake of {req!r} is to be refused", status=checked.status)
            answer = checked
        # From here on it is a WebSocket's, not a request that waits for an answer.
        self.answers.take_out(req)
        sockets: list[WebSocket] = []

        # The WebSocket has to be there before the first message is handed on, which may have come before the 101.
        def receiver(entry: Entry) -> Callable[[Request], None]:
            sockets.append(WebSocket(self, entry, req, self._shared.registry))
            return sockets[0].feed

        self.sessions.accept(req, answer, receiver)
        return sockets[0]

    # -- to connections by their ids -------------------------------------------------------------------------------

    def send(self, sender: str, conn_id: str | int | Iterable[str | int], msg: str | bytes) -> None:
        """Send raw bytes to one connection, or to several; an empty *msg* closes them. The same as :meth:`deliver`."""
        self.deliver(sender, conn_id, msg)

    def deliver(self, sender: str, idents: str | int | Iterable[str | int], data: str | bytes) -> None:
        """Send the same raw bytes to many connections, 128 ids a message; empty *data* closes them.

        For a connection with an open HTTP request they are (a part of) its answer, as with :meth:`reply`. A browser
        that gets more after its answer, such as a listener of a stream, is reported with ``DISCONNECT`` when it goes.

        An ``"X"`` in front of the ids makes it an extended reply, which Mongrel2 consumes itself: *data* is then a
        tnetstring list of a key (``ctl``, or the name of a loaded request module) and a value.

        Raises:
            LocalProtocolError: An id is not a decimal number, *sender* cannot be parsed by Mongrel2, or *data* is not
                the body of an extended reply.
            SendTimeout: As :meth:`reply_http`.
        """
        if not isinstance(idents, (str, int)):
            idents = list(idents)
            # As Mongrel2's own class writes it: the ids are joined, so that the message says "X 1 2".
            if idents[:1] == ["X"]:
                key, value = extended_body(as_bytes(data))
                conn_ids = checked_ids(idents[1:])
                self.answers.run(self.deliveries.extended, _check(self, sender), conn_ids, as_bytes(data), key, value)
                return
        self.answers.run(self.deliveries.deliver, _check(self, sender), checked_ids(idents), as_bytes(data))

    def reply_xrep(self, req: Request, data: bytes) -> None:
        """Send an extended reply about the connection of *req*: :meth:`deliver` with ``"X"``."""
        key, value = extended_body(data)
        sender, conn_ids = _check(self, req.sender), checked_ids(req.conn_id)
        self.answers.run_for(req, self.deliveries.extended, sender, conn_ids, data, key, value)

    def deliver_json(self, sender: str, idents: str | int | Iterable[str | int], data: Any) -> None:
        """As :meth:`reply_json`, to many connections, each in the way that it takes it."""
        body = as_json(data)

        def reply(req: Request) -> None:
            self.reply_http(req, body, headers=_JSON_TYPE)

        self.answers.run(self.deliveries.json, _check(self, sender), checked_ids(idents), body, reply)

    def deliver_http(
        self,
        sender: str,
        idents: str | int | Iterable[str | int],
        body: str | bytes,
        code: int = 200,
        status: str | None = "OK",
        headers: HeaderFields | None = None,
    ) -> None:
        """Answer the open HTTP requests of many connections as :meth:`reply_http` would; others are ignored."""
        if headers is not None and not isinstance(headers, Mapping):
            headers = list(headers)

        # Heads and closing differ from request to request, so it is not one message for all.
        def reply(req: Request) -> None:
            self.reply_http(req, body, code, status, headers)

        self.answers.run(self.deliveries.http, sender, checked_ids(idents), reply)

    def deliver_websocket(
        self,
        sender: str,
        idents: str | int | Iterable[str | int],
        data: str | bytes,
        opcode: int | None = Opcode.TEXT,
        rsvd: int = 0,
    ) -> None:
        """Send the same frame to many WebSockets, encoded once; ids without a live WebSocket are ignored.

        An *opcode* of ``None`` is text, as in :meth:`reply_websocket`.

        Raises:
            LocalProtocolError: A frame that RFC 6455 does not allow.
            SendTimeout: As :meth:`reply_http`.
        """
        self.answers.run(self.deliveries.frame, _check(self, sender), checked_ids(idents), as_bytes(data), opcode, rsvd)

    def deliver_close(self, sender: str, idents: str | int | Iterable[str | int]) -> None:
        """Close many connections behind what was written to them."""
        self.deliver(sender, idents, b"")


def _check(conn: Connection, sender: str) -> str:
    # An invalid reply would stall Mongrel2's replies to all for 0.5 s (probed), so it raises here, in the caller.
    return check_sender(sender, mongrel2=not conn.link.stand_in)
