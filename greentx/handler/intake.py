"""What comes in: each message of the server's becomes a notice, a WebSocket's message, or an event for the application.

::

    message -+- another server's sender -> refused
             +- credits ---------> writer
             +- notice ----------> book-keeping of the life, DISCONNECT
             +- WebSocket -------> websockets
             +- upload begins ---> kept until it has ended
             +- breaks a rule ---> refusals
             +- anything else ---> inbox, or the taker: somebody who answers all of it elsewhere

One bad message ends that message, never the reader.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from random import random
from typing import Any

from ..errors import RemoteProtocolError
from ..protocol.bounds import TEXT_FACTOR, WIRE_FACTOR
from ..protocol.cache import SmallMap
from ..protocol.fields import CONTROL_ID, batch_conn_ids
from ..protocol.framing import FramingError, check_framing
from ..protocol.headers import without
from ..protocol.kinds import HTTP_FORGERIES, SOCKETS, Kind
from ..protocol.life import ENDED
from ..protocol.replies import KEEP_ALIVE, credits_body
from ..protocol.request import Request, parse_request
from .answers import Answers
from .foreign import Foreign
from .inbox import Inbox
from .life import ServerLife
from .link import Link
from .refusals import Refusals, disconnect_event
from .shared import Extension, Shared
from .uploads import DONE, DONE_BYTES, NAMES, START, START_BYTES, UploadInterrupted
from .websockets import WebSockets

__all__ = ["Intake"]

log = logging.getLogger("greentx.connection")

# A name of its own, since looking it up in the enum would cost more than the comparison, for each message.
_WEBSOCKET = Kind.WEBSOCKET.value

#: What Mongrel2 knows an opening handshake by: METHOD says it only where all of these were sent (probed).
_HANDSHAKE_HEADERS = ("host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version")

# What a credits notice is behind its connection's id, with its two headers in the order in which Mongrel2 writes them
# (probed); in any other order it is parsed as all messages are. Clients have no say over what stands between the path
# and the body. Answers have few sizes, mostly, so it is not always read anew.
_CREDITS_BODY = b'18:{"type":"credits"},'
_match_credits = re.compile(
    rb"@\* [0-9]+:"
    rb"(?:16:DOWNLOAD_CREDITS,[0-9]+:([0-9]{1,20}),6:METHOD,4:JSON,\}|"
    rb'\{"METHOD":"JSON","DOWNLOAD_CREDITS":"([0-9]{1,20})"\},)' + re.escape(_CREDITS_BODY)
).fullmatch
_known_credits: SmallMap[bytes, int] = SmallMap(1024)

# Of the requests that come alone to one of several processes, so many are followed by a notice more.
_NUDGES = 0.5

# No credits change nothing, the idle timer neither; for a connection that has gone they bring the notice (probed).
_ARE_THEY_THERE = credits_body(0)


class Intake:
    """What comes in by one connection set.

    Args:
        shared: What all connection sets share.
        link: Where it comes from.
        sessions: The WebSockets.
        answers: For what is answered without the application.
        connection: What the application gets with each event.

    Attributes:
        requests: How many messages were parsed.
        refusals: Ends the connections of clients that break the protocol or a bound.
        foreign: Refuses what comes with another server's sender.
        inbox: Where events wait for the application.
        taker: Where it is set, called with each HTTP request, piece of a body and message of a JSON or XML socket (and
            with opening handshakes where nobody receives WebSockets), and the server's own message, in the place of
            the inbox: none of it is open here. Must not block.
        raw_taker: Where it is set, called with each message first; True where it was dealt with. Must not block.
    """

    def __init__(self, shared: Shared, link: Link, sessions: WebSockets, answers: Answers, connection: Any) -> None:
        self.requests = 0
        self.inbox = shared.inbox
        self.taker: Callable[[Request, bytes], None] | None = None
        self.raw_taker: Callable[[bytes], bool] | None = None
        self._shared = shared
        self._extensions = shared.extensions
        self._link = link
        self._writer = link.writer
        self._sessions = sessions
        self._answers = answers
        self._connection = connection
        self.refusals = Refusals(link, sessions, answers, self.emit)
        self.foreign = Foreign(shared, link, answers)
        # The pieces of one body do, over the processes that share the entry.
        self._scatters = shared.options.shared
        self._senders = shared.senders.accepted(link.pub_endpoint)
        answers.tell(self._settled, self.emit)

    def start(self) -> None:
        """Connect; see :meth:`greentx.handler.link.Link.start`."""
        self._link.start(self, lambda: self.inbox.receivers_wait, _Leaving(self._extensions, self._connection))

    def take_private(self) -> Inbox:
        """Return an inbox for the events of this connection set alone; they no longer come out of the shared one."""
        shared = self._shared.inbox
        if self.inbox is shared:
            # What has come already came for whoever reads first; it moves along, in its order.
            self.inbox = Inbox(shared.limit, shared.byte_limit)
            self.inbox.ended = shared.ended or self._link.stopped
            shared.move(self._connection, self.inbox)
        return self.inbox

    # -- messages ----------------------------------------------------------------------------------------------------

    def message(self, message: bytes) -> None:
        """One message of the server's. Blocks this greenlet while the inbox is full."""
        if self.raw_taker is not None and self.raw_taker(message):
            self.requests += 1
            return
        flow_control = self._writer.flow.control
        if flow_control.on and message.endswith(_CREDITS_BODY):
            # Every second message is one: it takes this short way.
            fields = message.split(b" ", 2)
            written = _known_credits.get(fields[-1]) or _read_credits(fields[-1])
            if written is not None:
                conn_id = fields[1].decode("latin-1")
                # What Shared.wrote() does, without calling it.
                for extension in self._extensions:
                    extension.wrote(self._connection, conn_id, written)
                self._writer.credit(conn_id, written)
                return
        try:
            request = parse_request(message)
            if request.conn_id == CONTROL_ID:
                raise RemoteProtocolError(f"{request!r} is for a control socket: Mongrel2 could not be answered")
        except RemoteProtocolError as error:
            # Logged and counted, not raised: the next message is somebody else's.
            self.refusals.bad_messages += 1
            log.warning("%s: bad message number %d: %s", self._link.sender, self.refusals.bad_messages, error)
            return
        if request.sender not in self._senders and not self.foreign.admits(request):
            return
        self.requests += 1
        life = self._link.life
        inbox = self.inbox
        raw = request.raw
        marked = False
        # None of these names is plain.
        if not request.plain:
            # has(), below, without calling it.
            # Only the first message of a connection says it (probed), so it is looked for until it was found.
            # A stand-in repeats what its clients were told to send; it gives no credits.
            has_credits = not flow_control.announced and (b"DOWNLOAD_CREDITS" in raw or "DOWNLOAD_CREDITS" in raw)
            if has_credits and not self._link.stand_in:
                flow_control.announce(True)
            # A client may send these names, too; see greentx.handler.uploads.
            marked = START_BYTES in raw or DONE_BYTES in raw or START in raw or DONE in raw
        if request.method in HTTP_FORGERIES:
            if marked:
                if request.has("VERSION") and not request.has("FLAGS"):
                    # An HTTP request with a METHOD that a client made up: nobody gets its file.
                    life.uploads.refuse(request)
                # Of a WebSocket every frame repeats the handshake's headers (probed), so also of these.
                request.replace_headers(without(request.raw, NAMES))
            request.life = life
            head = len(message) - len(request.body)  # before it is inflated
            # Each word is believed only with what Mongrel2 writes next to it and no client can: names in upper case.
            if request.method != _WEBSOCKET or not (b"FLAGS" in raw or "FLAGS" in raw):
                self._on_special(request, request.encode() if marked else message)
            elif self._sessions.message(request):
                self.inbox.put(self._connection, request, head * WIRE_FACTOR + len(request.body) * TEXT_FACTOR)
        elif (
            not request.plain or b"content-length" in raw or "content-length" in raw or life.uploads.begun
        ) and not self._admit(request, marked):
            pass
        elif self.taker is not None:
            request.life = life
            # RFC 9112, section 9.6, as below.
            if not life.requests.is_closed(request.conn_id):
                # Where names of files were the client's, they have been removed.
                self.taker(request, request.encode() if marked else message)
        elif life.requests.add(request):
            if flow_control.shared:
                self._others_may_follow(request)
            # What put() does, without calling it.
            items = inbox.items
            size = len(message) * WIRE_FACTOR
            inbox.held = inbox.held + size if items else size
            items.append(((request.sender, request.conn_id), self._connection, request))
            if inbox.consumers_wait:
                inbox.wake()
            if life.requests.behind:
                why = life.requests.overfull(request)
                if why:
                    self.refusals.pipeline(request, why)
        else:
            # RFC 9112, section 9.6: what follows a request that says "close" is not processed.
            log.info("%s: connection %s sent more after its last request", self._link.sender, request.conn_id)
        # The receiver waits here, so the server keeps what comes: the application is the one that has to catch up.
        if len(inbox.items) >= inbox.limit or inbox.held >= inbox.byte_limit:
            inbox.wait_for_space()

    def accept(self, request: Request, size: int) -> None:
        """One message that came another way, as by a relay, and was looked at there. Never blocks.

        Args:
            size: Bytes of the message.
        """
        self.requests += 1
        life = self._link.life
        if not request.plain:
            if request.method in SOCKETS:
                request.life = life
                life.sockets[request.conn_id] = None
                self.emit(request)
                return
            if request.method == Kind.UPLOAD_STREAM:
                request.life = life
                self._on_piece(request, b"")
                return
            try:
                check_framing(request, apart=request.has(Kind.UPLOAD_STREAM) or request.has(START))
            except FramingError as error:
                self.refusals.framing(request, error)
                return
            # Where it was received the names were seen to be Mongrel2's.
            life.uploads.adopt(request)
        if life.requests.add(request):
            self.inbox.put(self._connection, request, size * WIRE_FACTOR)

    def emit(self, request: Request) -> None:
        """Give an event to the application; never blocks."""
        self.inbox.put(self._connection, request)

    def emit_websocket(self, request: Request) -> None:
        """As :meth:`emit`, for those of WebSockets."""
        receivers = self._shared.websocket_receivers
        # What a loop of greenlets would do with it, one switch later; from its beginning on, so nothing is overtaken.
        # Where this connection set has an inbox of its own, serve() does not read that one.
        if request.entry is not None and receivers and self.inbox is self._shared.inbox:
            receive = request.entry.on_event = receivers[-1](self._connection, request)
            if request.method != Kind.WEBSOCKET_CONNECT:
                receive(request)
        else:
            self.inbox.put(self._connection, request)

    def websocket_ended(self, request: Request) -> None:
        """A WebSocket has ended, as *request* says; whoever receives its events is told afterwards."""
        # Its number is another browser's next: nothing may be answered to it.
        request.life = ENDED
        for extension in self._extensions:
            extension.websocket_ended(self._connection, request)

    def _settled(self, request: Request) -> None:
        for extension in self._extensions:
            extension.settled(self._connection, request)

    def _others_may_follow(self, request: Request) -> None:
        """Several processes get the server's messages in turn, and this one got *request*."""
        self._writer.flow.control.renew(request.conn_id)
        # A request that comes alone brings as many notices each time (what was written, that the client has gone), and
        # where that many messages are a multiple of the processes, all such requests come to one of them. So now and
        # then there is one notice more. Under load nothing comes alone.
        if len(self._link.life.requests.heads) == 1 and random() < _NUDGES:
            self._writer.receipts.nudge()

    def _admit(self, request: Request, marked: bool = False) -> bool:
        """Check where the request ends, and look after stored uploads; False for what is not for the application."""
        uploads = self._link.life.uploads
        apart = not request.plain and (request.has(Kind.UPLOAD_STREAM) or (not request.body and request.has(START)))
        try:
            check_framing(request, apart=apart)
            if apart and self._scatters and request.has(Kind.UPLOAD_STREAM):
                self.refusals.streamed(request)
                return False
            return not (marked or uploads.begun) or uploads.admit(request)
        except FramingError as error:
            self.refusals.framing(request, error)
        except UploadInterrupted as error:
            # The client waits for an answer to the first one; behind a body whose end is in doubt the connection ends.
            log.warning("%s: %s", self._link.sender, error)
            self._answers.at_once(error.begun, 400)
        return False

    # -- what is not plain HTTP --------------------------------------------------------------------------------------

    def _on_special(self, request: Request, message: bytes) -> None:
        method = request.method
        if method == Kind.WEBSOCKET_HANDSHAKE and all(request.has(name) for name in _HANDSHAKE_HEADERS):
            if self._admit(request):
                self._on_handshake(request, message)
        elif method in (Kind.JSON, Kind.XML) and not request.has("VERSION"):
            if request.is_notice():
                self.notice(request)
            else:
                self._on_socket(request, message)
        elif method == Kind.UPLOAD_STREAM and not request.has("METHOD"):
            self._on_piece(request, message)
        else:
            # An HTTP request whose method is a word of ours: it must not look like an event to the application.
            log.warning(
                "%s: connection %s sent the METHOD %s over HTTP", self._link.sender, request.conn_id, request.method
            )
            self._answers.at_once(request, 501)

    def _on_handshake(self, request: Request, message: bytes) -> None:
        if self.taker is not None and not self._shared.websocket_receivers:
            # Whoever takes the requests has nobody for a WebSocket: it is refused as they are.
            self.taker(request, message)
            return
        # Held ones are open requests, too, so that any HTTP answer refuses them in its turn.
        if not self._shared.handshake_events:
            self._sessions.handshake(request)
        elif self._link.life.requests.add(request):
            self._sessions.hold(request)
            self.emit(request)

    def _on_piece(self, request: Request, message: bytes) -> None:
        """A further piece of a body that is streamed."""
        # Of a request that was refused, the rest comes as well.
        requests = self._link.life.requests
        if requests.is_closed(request.conn_id):
            return
        if self.taker is not None:
            self.taker(request, message)
            return
        last = requests.last(request.conn_id)
        if last is not None:
            last.granted = 0 if request.has("UPLOAD_STREAM_DONE") else last.granted - len(request.body)
        elif self._scatters:
            return  # of a request that another process has refused
        self.emit(request)

    def _on_socket(self, request: Request, message: bytes) -> None:
        """A message of a JSON or XML socket. Mongrel2 does not look into it (probed)."""
        life = self._link.life
        if life.requests.is_closed(request.conn_id):
            return  # sent before the client saw that
        # Decoded here, not when the application looks: an error there would end its loop for everybody.
        if request.method == Kind.JSON:
            try:
                request.decode_data()
            except RemoteProtocolError as error:
                self.refusals.socket(request, error)
                return
        if self.taker is not None:
            self.taker(request, message)
            return
        life.sockets[request.conn_id] = None
        self.emit(request)

    def notice(self, request: Request) -> None:
        """A notice of the server's: what it wrote, or that a connection has gone."""
        # Before anything else: what another process answers is open there, and here it is not.
        written = request.credits()
        if written is not None:
            self._shared.wrote(self._connection, request.conn_id, written)
            self._writer.credit(request.conn_id, written)
            return
        for extension in self._extensions:
            if extension.notice(self._connection, request):
                return
        if request.is_disconnect() and not self._writer.receipts.arrived(request.conn_id):
            self._on_disconnect(request)

    def _on_disconnect(self, request: Request) -> None:
        conn_id = request.conn_id
        life = self._link.life
        # First of all: greenlets that wait for this browser to read get ConnectionClosed.
        self._writer.forget(conn_id)
        life.uploads.forget(conn_id)
        was_websocket = self._sessions.gone(request)
        was_open = bool(life.requests.remove(conn_id))
        if was_websocket and not was_open:  # one that waits for the application's answer is a request, too
            return
        if conn_id in life.sockets:
            del life.sockets[conn_id]
        elif not was_open:
            return  # idle keep-alive, our own close, or the answer to something sent to a dead id
        self.emit(disconnect_event(request.sender, conn_id, request.raw))

    # -- the server comes and goes -----------------------------------------------------------------------------------

    def server_ready(self) -> None:
        """See :class:`greentx.handler.link.LinkUser`, as for the next two."""
        for extension in self._extensions:
            extension.ready(self._connection)

    def server_missing(self) -> None:
        for extension in self._extensions:
            extension.missing(self._connection)

    def server_lost(self, life: ServerLife) -> None:
        # No notice comes for these any more: the server that would send it has gone.
        senders = dict.fromkeys(life.sockets, self._link.sender)
        senders.update((conn_id, request.sender) for conn_id, request in life.requests.heads.items())
        for conn_id, sender in senders.items():
            self.emit(disconnect_event(sender, conn_id))
        life.uploads.lost()
        self._sessions.lost()
        for extension in self._extensions:
            extension.lost(self._connection)

    def browser_slow(self, conn_id: str, why: str) -> None:
        self.refusals.slow(conn_id, why)

    def keep_alive(self) -> None:
        """Ask the server about connections that have waited since the last call; called by the pinger.

        A control message resets Mongrel2's idle timer, which would end a long poll after 120 s without a notice, and
        for a connection that has gone already it brings the notice that was never sent (probed). Those whose body is
        to come from the browser are asked without that: the idle timer is what ends one that was half sent.
        """
        # Its clients would take the control message for an answer.
        if self._link.stand_in:
            return
        waiting, receiving = self._link.life.waiting_since_last_look(self._writer.flow.control.unconfirmed())
        for question, asked in ((KEEP_ALIVE, waiting), (_ARE_THEY_THERE, receiving)):
            for conn_ids in batch_conn_ids(asked):
                self._writer.control(self._link.sender, conn_ids, question)

    # -- the end -----------------------------------------------------------------------------------------------------

    def stop_receiving(self, timeout: float | None = None) -> None:
        """Hand on what has arrived and no more. Blocks until that was done, *timeout* seconds at the most."""
        self._link.stop_receiving(timeout)
        # Nobody will pull the end of these bodies here, and their clients wait.
        for request in self._link.life.uploads.end():
            self._answers.at_once(request, 503)

    def end_inbox(self) -> None:
        """Nothing more comes: whoever waits in ``Connection.recv`` gets ``None`` once it has read what is there."""
        if self.inbox is not self._shared.inbox:
            self.inbox.end()

    def stop(self, *, linger: float) -> None:
        """Send what waits, for *linger* seconds at the most, and close everything; safe to call twice."""
        self._sessions.stop()
        self._link.stop(linger=linger)


class _Leaving:
    """Has the extensions asked, as :class:`greentx.transport.incoming.Leaving` says."""

    def __init__(self, extensions: list[Extension], connection: Any) -> None:
        self._extensions = extensions
        self._connection = connection

    def before_leave(self, busy: bool) -> bool:
        again = False
        for extension in self._extensions:
            again |= extension.before_leave(self._connection, busy)
        return again

    def wait_for_end(self, descriptor: int) -> None:
        for extension in self._extensions:
            extension.wait_for_end(descriptor)

    def after_leave(self) -> None:
        for extension in self._extensions:
            extension.after_leave(self._connection)


def _read_credits(notice: bytes) -> int | None:
    """Return how many bytes were written, as a credits notice says; ``None`` where it is none in the usual form."""
    match = _match_credits(notice)
    if match is None:
        return None
    return _known_credits.keep(notice, int(match[1] or match[2]))
