"""One WebSocket at a Node: what its application does with it goes to the relay, what comes from there to it.

What is in the application's hands, and when it may be let go, is decided in :mod:`greentx.relay.socket_hand`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from ..errors import ConnectionClosed, LocalProtocolError
from ..handler.connection import Connection
from ..protocol.carrier import Carrier
from ..protocol.http1_parser import parse_head
from ..protocol.request import Request, parse_request
from ..protocol.requests import build_disconnect_notice
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.registry import CLOSED, OPEN, Entry
from .socket_hand import Hand, Place
from .socket_messages import (
    ACCEPT,
    ANSWER,
    CLOSE,
    FAIL,
    JOIN,
    LEAVE,
    MOVE,
    PING,
    SEND,
    STATE,
    Opened,
    build_accept,
)
from .socket_reports import SocketReports
from .socket_window import SendWindow

__all__ = ["NodeSocket"]

log = logging.getLogger("greentx.relay")

# An answer to a handshake that is not a 101.
_MAX_ANSWER = 1024 * 1024

# What the answer to a handshake has from the API, or from Mongrel2.
_OF_THE_API = frozenset(
    {"connection", "sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-protocol", "upgrade"}
)


class NodeSocket(Carrier):
    """One WebSocket at this Node: see :class:`greentx.protocol.carrier.Carrier`.

    Attributes:
        number: What it is called in messages.
        connection: The connection set that it would have come by.
        request: Its opening handshake.
        hand: What the application has.
        subprotocol: What was agreed on before it came here.
        early: Calls for what came before the application let it in; ``None`` after that.
        window: What it has sent.
    """

    __slots__ = (
        "_answer",
        "_entry",
        "_reports",
        "adopted",
        "connection",
        "early",
        "groups",
        "hand",
        "moved",
        "number",
        "receives",
        "request",
        "state",
        "subprotocol",
        "window",
    )

    def __init__(
        self, reports: SocketReports, number: int, opened: Opened, connection: Connection, request: Request
    ) -> None:
        self._reports = reports
        self.number = number
        self.connection = connection
        self.request = request
        self.hand = Hand(opened.done, Place.HERE if opened.decided else Place.HELD)
        self.subprotocol = opened.subprotocol
        self.adopted = opened.adopted
        self.groups: Sequence[str] = opened.groups
        self.moved = False
        self.receives = False
        self.state = opened.state
        self.early: list[Callable[[], object]] | None = []
        self.window = SendWindow(reports.shared, request.conn_id, reports.endpoint)
        self._answer = b""
        self._entry: Entry | None = None

    @property
    def entry(self) -> Entry | None:
        """The registry's; ``None`` before the application has let it in, and after its end."""
        entry = self._entry
        if entry is None:
            entry = self._reports.shared.registry.get(self.request.sid)
            if entry is None or entry.carrier is not self:
                return None
            self._entry = entry
        return entry if entry.state != CLOSED else None

    # -- the opening handshake ---------------------------------------------------------------------------------------

    def accept(self, head: bytes, subprotocol: str | None, *, own: bool) -> str | None:
        if self.hand.place is Place.HELD:
            fields = parse_head(head)[3]
            if own and any(name.lower() == "sec-websocket-extensions" for name, _ in fields):
                raise LocalProtocolError(
                    "the application agrees on an extension, but the relay's API reads and writes the frames: "
                    "leave Sec-WebSocket-Extensions out of the 101"
                )
            more = [(name, value) for name, value in fields if name.lower() not in _OF_THE_API]
            self.hand.place = Place.HERE
            self._tell(ACCEPT, build_accept(subprotocol, more))
        elif self.hand.place is not Place.HERE:
            raise ConnectionClosed(CloseCode.ABNORMAL_CLOSURE, "the client has gone, or another Node decides")
        else:
            subprotocol = self.subprotocol
        # Its entry is there in a moment.
        self._reports.soon(self._replay)
        return subprotocol

    def _replay(self) -> None:
        early, self.early = self.early, None
        for call in early or ():
            call()

    def answer(self, data: bytes, close: bool) -> None:
        self._answer += data
        if len(self._answer) > _MAX_ANSWER:
            log.warning("the answer to the handshake for %s is larger than %d bytes", self.request.path, _MAX_ANSWER)
            self._answer, close = b"", True
        if close and self.hand.place in (Place.HELD, Place.HERE):
            self._tell(ANSWER, self._answer)
            self._answer = b""
            if self.hand.place is Place.HELD:
                self.forget()
            elif self.early is not None:
                self._replay()  # for nobody: it is handled

    # -- what the application sends ----------------------------------------------------------------------------------

    def send(self, payload: bytes, opcode: int, rsvd: int) -> None:
        if self.hand.place is Place.GONE:
            return
        why = self._reports.send(b"%b %d %d" % (SEND, self.number, opcode | rsvd << 4), payload)
        why = why or self.window.sent(len(payload))
        if why and self.entry is not None:
            self.connection.sessions.fail(self.entry, CloseCode.TRY_AGAIN_LATER, why)
        elif self.window.closed:
            raise ConnectionClosed(CloseCode.ABNORMAL_CLOSURE, "it has ended")

    def ping(self, payload: bytes) -> None:
        self._tell(PING, payload)

    def close(self, code: int | None, reason: str) -> None:
        self._reports.tell(b"%b %d %d" % (CLOSE, self.number, code or 0), reason.encode())

    def fail(self, code: int, reason: str) -> None:
        if self.hand.place is not Place.GONE:
            self._reports.tell(b"%b %d %d" % (FAIL, self.number, code), reason.encode())
            self.forget()

    def group(self, name: str, joined: bool) -> None:
        self._tell(JOIN if joined else LEAVE, name.encode(errors="surrogatepass"))

    def write_state(self, state: bytes) -> None:
        self.state = state
        self._tell(STATE, state)

    def _tell(self, kind: bytes, payload: bytes) -> None:
        if self.hand.place is not Place.GONE or kind is ANSWER:
            self._reports.tell(b"%b %d" % (kind, self.number), payload)

    # -- what it receives --------------------------------------------------------------------------------------------

    def deliver(self, request: Request) -> None:
        """Give a message to whoever receives."""
        entry = self.entry
        if entry is None or entry.state != OPEN:
            self.handle(self.hand.came)  # closed from here: nobody reads it
            return
        if not self.receives:
            # Whoever gets the event has it in hand until it is handled.
            self.hand.give()
            handled = partial(self.handle, self.hand.given)
            self._reports.receipts.attach(request, self.connection.intake.inbox, handled)
        self.connection.sessions.relayed.message(entry, request)

    def ask(self, in_hand: int = 0) -> None:
        self.handle(self.hand.given - in_hand)

    def give(self) -> bool:
        return self.hand.give()

    def handle(self, number: int) -> None:
        """Messages up to this one are handled; in the hub's thread."""
        hand = self.hand
        if hand.handle(number) and hand.place is not Place.GONE:
            self._reports.handled(self)
            if hand.is_done:
                self._remove()
            if hand.place is Place.LEAVING and hand.may_go():
                self.move()

    def finish(self, killed: bool) -> None:
        if self.hand.place is Place.GONE:
            return
        # Else it would begin anew here, as often as its handler ends in that way.
        if killed and self.connection.sessions.relayed.leaving:
            self.move()
        else:
            self.handle(self.hand.came)

    def leave(self) -> None:
        self._reports.leave()
        if self.hand.leave():
            self.move()

    def move(self) -> None:
        """Let it go."""
        hand = self.hand
        if hand.place is Place.GONE:
            return
        self._reports.tell(b"%b %d %d %d" % (MOVE, self.number, hand.handled, hand.given))
        self.gone()

    def forget(self) -> None:
        """Nothing more is told of it, or comes."""
        self.hand.place = Place.GONE
        self._remove()
        self.window.close()

    def _remove(self) -> None:
        if self._reports.sockets.get(self.number) is self:
            del self._reports.sockets[self.number]

    def end(self, code: int, reason: str) -> None:
        """It has ended; what came before may still be handled here."""
        if self.early is not None and self.hand.ended and self.hand.place is Place.HERE:
            # Let in elsewhere, or just now: the application is told behind what came early, once it has accepted.
            self.early.append(partial(self.end, code, reason))
            return
        self.window.close()
        entry = self.entry
        if entry is not None:
            self.connection.sessions.relayed.ended(entry, code, reason)
        elif self.early is not None:
            self.end_handshake()
            self.handle(self.hand.came)  # nobody receives what came before
        if self.hand.is_done:
            self.handle(self.hand.came)

    def end_handshake(self) -> None:
        """Its client has gone, or is another Node's."""
        request = self.request
        # As from its server, to whom the application's answer would go otherwise.
        self.connection.intake.notice(parse_request(build_disconnect_notice(request.sender, request.conn_id)))

    def gone(self) -> None:
        """It is another Node's, or nobody's."""
        entry = self.entry
        was_held = self.hand.place is Place.HELD or (entry is None and self.early is not None)
        self.forget()
        # Also where its end has come, with something in hand: the next one is given both.
        self.moved = self._entry is not None
        if entry is not None:
            self.connection.sessions.relayed.moved(entry)
        elif was_held:
            self.end_handshake()

    def __repr__(self) -> str:
        return f"<NodeSocket {self.number} {self.request.path}: {self.hand!r}>"
