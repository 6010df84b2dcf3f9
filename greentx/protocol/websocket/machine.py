"""One WebSocket without I/O: messages, the application's wishes and passed deadlines in; frames and events out.

Mongrel2 joins fragments and unmasks; it checks nothing else and never sends a frame of its own (probed). What RFC 6455
asks of a server is decided here. A :class:`Step` says what is to be done; :mod:`greentx.handler.websockets` does it.

Theory of operation
===================

The states are RFC 6455's words. CONNECTING is an ``Opening``, the others are states of the registry's ``Entry``,
which is all that is kept of one WebSocket: this module has the rules and no memory, so that a million idle WebSockets
cost a million entries and nothing more.

==========  ==========================  ===============================================  ==========
State       What comes in               What is to be done                               Next state
==========  ==========================  ===============================================  ==========
CONNECTING  a message                   kept until the 101 is out, 64 of them            CONNECTING
            the 65th                    hang up                                          CLOSED
            accepted                    the 101, then what was kept is looked at         OPEN
            refused                     the answer, hang up                              CLOSED
OPEN        text or binary              an event, after inflating and checking           OPEN
            ping                        a pong, where the client reads                   OPEN
            pong                        the client lives                                 OPEN
            close frame                 WEBSOCKET_CLOSE, its code echoed, hang up        CLOSED
            a fault                     nothing of this client counts any more;          OPEN
                                        FAULT_DELAY later as ``fail``
            ``close``                   our close frame, wait ``close_timeout``          CLOSING
            ``fail``                    WEBSOCKET_CLOSE, our close frame, hang up        CLOSED
            no pong until the next      WEBSOCKET_CLOSE with 1006, our close frame       CLOSED
            ping                        (1011), hang up
CLOSING     text, binary, ping          nothing: our close frame is out                  CLOSING
            pong                        the client lives                                 CLOSING
            close frame                 WEBSOCKET_CLOSE, hang up                         CLOSED
            a fault, ``fail``           as when OPEN, without a second close frame       CLOSED
            ``close_timeout`` passed    WEBSOCKET_CLOSE with 1006, cut off               CLOSED
any         the client or the server    WEBSOCKET_CLOSE with 1006, or with the fault     CLOSED
            has gone
CLOSED      anything                    nothing                                          CLOSED
==========  ==========================  ===============================================  ==========

A fault is told FAULT_DELAY later, so that the application can still answer what came before it; until then the state
stays OPEN and ``entry.fault`` says that it happened. :meth:`Machine.end` is the only way into CLOSED, and makes the
event once.

*Raw* WebSockets belong to a library of the application's that reads and writes the frames itself. Their messages pass
unchecked but for their size, their opcode and the reserved bits, and the library answers the client's pings. Our own
pings and their pongs stay here, and close frames are looked at in both directions, so that liveness and the end are the
same for all.

Those with a *carrier* belong to another process, which runs this protocol: here they are sent to and never pinged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final, NamedTuple

from ...errors import RemoteProtocolError
from ..http1_parser import parse_head
from ..kinds import Kind
from ..request import Request
from .deflate import parse_extensions
from .frames import (
    MAX_CONTROL_PAYLOAD,
    CloseCode,
    Opcode,
    build_close,
    build_flags,
    build_frame,
    is_valid_close_code,
    parse_close,
    parse_flags,
    validate_message,
)
from .registry import CLOSED, CLOSING, OPEN, Entry, Sid

__all__ = [
    "DELIVER",
    "FAULT_DELAY",
    "MAX_CLOSE_REASON",
    "MAX_UNREAD",
    "NOTHING",
    "PING_PAYLOAD",
    "Deadline",
    "Machine",
    "PingRound",
    "Step",
    "allowed_bits",
    "close_frame",
    "close_of",
    "pack",
]

#: Bytes of UTF-8 that fit next to the code into a close frame (RFC 6455, section 5.5).
MAX_CLOSE_REASON: Final = MAX_CONTROL_PAYLOAD - 2

#: What the payloads of our own pings begin with: a raw WebSocket's library is not shown their pongs.
PING_PAYLOAD: Final = b"greentx "

#: Where so many bytes wait for a client its pings are not answered: it does not read.
MAX_UNREAD: Final = 65536

#: Seconds between a peer's fault and the end: what it sent before may still be answered meanwhile.
FAULT_DELAY: Final = 0.02

# Plain numbers: a look into an enum class costs more than the comparison, and these are on every message's path.
_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_CLOSE: Final = int(Opcode.CLOSE)
_PING: Final = int(Opcode.PING)
_PONG: Final = int(Opcode.PONG)
_NO_STATUS: Final = int(CloseCode.NO_STATUS_RECEIVED)
_ABNORMAL: Final = int(CloseCode.ABNORMAL_CLOSURE)

# Reserved bits: RSV1 says that a message is compressed (RFC 7692, section 6); an extension that is not known here may
# give any of them a meaning, in control frames as well.
_COMPRESSED: Final = 4
_ANY_BITS: Final = 7

# FLAGS of a close frame, for ends that came without one.
_CLOSE_FLAGS: Final = build_flags(Opcode.CLOSE)


class Deadline(Enum):
    """What a WebSocket waits for. When the time has passed, :meth:`Machine.overdue` is to be called with it."""

    FAULT = "FAULT"
    """:data:`FAULT_DELAY` after the peer's fault."""
    CLOSE = "CLOSE"
    """``close_timeout`` after our close frame."""


# A tuple, as it is made for each ping and compared by tests: cheaper than a frozen dataclass, and as unchangeable.
class Step(NamedTuple):
    """What is to be done, in the order of the attributes.

    Attributes:
        deliver: Give the message to the application.
        pong: Give the message's body to ``entry.on_pong``.
        event: The end: remove the entry from the registry and give this event to the application.
        wait: Call :meth:`Machine.overdue` when this deadline has passed.
        frame: Send this, ``b""`` for nothing. Must not wait for the client to read.
        if_read: Send the frame only where fewer than :data:`MAX_UNREAD` bytes wait for the client.
        hang_up: Have the server close the connection behind what waits for it.
        cut_off: Have the server end the connection at once.
        failed: The client broke the protocol or a bound: to be logged and counted.
        adopt: Another process got this client's handshake: open it here, too, by ``Opening.adopt``.
    """

    deliver: bool = False
    pong: bool = False
    event: Request | None = None
    wait: Deadline | None = None
    frame: bytes = b""
    if_read: bool = False
    hang_up: bool = False
    cut_off: bool = False
    failed: bool = False
    adopt: bool = False


#: Steps that are made once; compare these two with ``is``, as nearly all messages end in one of them.
NOTHING: Final = Step()
DELIVER: Final = Step(deliver=True)

_PONGED: Final = Step(pong=True)
_FAULTED: Final = Step(wait=Deadline.FAULT)
_ADOPT: Final = Step(adopt=True)


class PingRound(NamedTuple):
    """What :meth:`Machine.ping` says of one batch.

    Attributes:
        pinged: Those that are asked for a pong now.
        again: Ids of those that are sent another ping while the last one is still unanswered.
        silent: Those that should have answered, for :meth:`Machine.silent`.
    """

    pinged: list[Entry]
    again: list[str]
    silent: list[Entry]


class Machine:
    """The rules of the table above, for WebSockets that have been let in. Each method changes the entry it is given.

    Args:
        max_size: Bytes that a message may have, after inflating; ``None`` is unlimited.
        shared: Several processes share the endpoint, so that messages and pongs of one client scatter over them.

    Attributes:
        note: Where these processes tell each other: called with the sid of whoever sent a pong. ``None``: they do not,
            so that nobody is judged by a pong that did not come here.
    """

    __slots__ = ("max_size", "note", "shared")

    def __init__(self, *, max_size: int | None, shared: bool = False) -> None:
        self.max_size = max_size
        self.shared = shared
        self.note: Callable[[Sid], None] | None = None

    # -- what the client sends -----------------------------------------------------------------------------------------

    def message(self, entry: Entry, request: Request) -> Step:
        """Look at a message of one that is not CONNECTING: a frame, or what the server joined.

        Where it is to be delivered, *request* has then the inflated body, ``opcode`` and, for text, ``text``.
        """
        # What follows a fault may be the rest of it: after a stream that did not inflate nothing can be trusted.
        if entry.fault is not None:
            return NOTHING
        bits = entry.raw_bits
        if bits is not None:
            return self._raw_message(entry, request, bits)
        # A client's own header of that name is in lower case (probed), so this is the server's. One that is missing
        # is a fault as any other.
        try:
            opcode, rsvd = parse_flags(_flags(request))
            # After our close frame only the answer to it, and pongs, are of interest: nobody reads data any more, and
            # answering a ping would send a frame behind a close frame (RFC 6455, section 5.5.1).
            if entry.state != OPEN and (entry.state == CLOSED or opcode not in (_CLOSE, _PONG)):
                return NOTHING
            data, text = validate_message(opcode, rsvd, request.body, max_size=self.max_size, deflate=entry.deflate)
            # First what nearly all messages are.
            if opcode < _CLOSE:
                request.body = data
                request.opcode = opcode
                request.text = text
                return DELIVER
            if opcode == _CLOSE:
                return self._peer_closes(entry, request)
        except RemoteProtocolError as error:
            return self._fault(entry, error)
        # Any pong shows that the client lives, also one that nobody asked for (section 5.5.3).
        if opcode == _PONG:
            entry.awaits_pong = False
            if self.note is not None:
                self.note(entry.sid)
            return NOTHING if entry.on_pong is None else _PONGED
        return _pong(data)

    def _raw_message(self, entry: Entry, request: Request, bits: int) -> Step:
        body = request.body
        limit = self.max_size
        try:
            opcode, rsvd = parse_flags(_flags(request))
            # A close frame has no reserved bits in any extension.
            if opcode == _CLOSE:
                validate_message(opcode, rsvd, body, max_size=None)
                return self._peer_closes(entry, request)
            # What data means is the library's to judge. Opcodes that no extension has, and bits that nobody agreed on,
            # are a fault whoever reads the frames.
            if opcode not in (_TEXT, _BINARY) or rsvd & ~bits:
                validate_message(opcode, 0 if bits == _ANY_BITS else rsvd, body, max_size=None)
            if limit is not None and len(body) > limit:
                raise RemoteProtocolError(
                    f"message is {len(body)} bytes, limit {limit}", close_code=CloseCode.MESSAGE_TOO_BIG
                )
        except RemoteProtocolError as error:
            return self._fault(entry, error)
        # A library that is shown the answer to a ping that it did not send may take it for a fault.
        if opcode == _PONG:
            entry.awaits_pong = False
            if self.note is not None:
                self.note(entry.sid)
            if body.startswith(PING_PAYLOAD):
                return NOTHING
        if entry.state != OPEN:
            return NOTHING
        request.opcode = opcode
        return DELIVER

    def _peer_closes(self, entry: Entry, request: Request) -> Step:
        """Raises ``RemoteProtocolError`` where the close frame itself is a fault."""
        code, reason = parse_close(request.body)
        was_open = entry.state == OPEN
        event = self.end(entry, code, reason, request)
        if event is None:
            return NOTHING
        # The echo has the code alone (RFC 6455, section 5.5.1); after a close frame of ours nothing more is due.
        echo = close_frame(None if code == _NO_STATUS else code) if was_open else b""
        return Step(event=event, frame=echo, hang_up=True)

    def _fault(self, entry: Entry, error: RemoteProtocolError) -> Step:
        if entry.state == CLOSED:
            return NOTHING
        entry.fault = (error.close_code, str(error))
        return _FAULTED

    def stray(self, request: Request) -> Step:
        """Look at a message of a client that nobody here has let in, nor is about to."""
        if not self.shared:
            # A process that has gone let it in: the client has to connect again.
            return Step(frame=close_frame(CloseCode.SERVICE_RESTART), hang_up=True)
        try:
            opcode, rsvd = parse_flags(_flags(request))
        except RemoteProtocolError:
            # Not worth an entry that would only be failed.
            opcode, rsvd = _CLOSE, 0
        # Control frames need no entry, so they are served by whichever process gets them.
        if opcode == _PING and not rsvd:
            return _pong(request.body)
        if opcode == _CLOSE:
            return Step(frame=close_frame(None), hang_up=True)
        if opcode == _PONG:
            if self.note is not None:
                self.note(request.sid)
            return NOTHING
        return _ADOPT

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, entry: Entry, code: int, reason: str, frame: Request | None = None) -> Request | None:
        """Go to CLOSED and return the event; ``None`` where it was CLOSED already.

        Args:
            frame: The peer's close frame, where one came.
        """
        if entry.state == CLOSED:
            return None
        entry.state = CLOSED
        entry.fault = None
        entry.ending = (int(code), reason)
        if frame is not None:  # its headers are those of the handshake, which every frame repeats (probed)
            raw, body = frame.raw, frame.body
        else:
            raw = {"METHOD": Kind.WEBSOCKET_CLOSE.value, "PATH": entry.path, "FLAGS": _CLOSE_FLAGS}
            body = _close_payload(code, reason)
        sender, conn_id = entry.sid
        event = Request(sender, conn_id, entry.path, raw, body, Kind.WEBSOCKET_CLOSE.value)
        event.opcode = Opcode.CLOSE
        event.close_code, event.close_reason = entry.ending
        return event

    def close(self, entry: Entry, code: int | None, reason: str) -> Step:
        """The application closes: begin the closing handshake. Twice is once.

        Raises ``LocalProtocolError`` for a code or reason that may not travel.
        """
        # Built first, so that a mistake raises, and changes nothing, also where it is closed already.
        frame = build_frame(build_close(code, reason), Opcode.CLOSE)
        if entry.state != OPEN:
            return NOTHING
        entry.state = CLOSING
        entry.ending = (_NO_STATUS if code is None else int(code), reason)
        return Step(wait=Deadline.CLOSE, frame=frame)

    def fail(self, entry: Entry, code: int, reason: str) -> Step:
        """The peer broke the protocol, or a bound of ours: end it with a close frame that says so."""
        # Built before end() changes the state that it depends on.
        frame = close_frame(code, reason) if entry.state == OPEN else b""
        event = self.end(entry, code, reason)
        return NOTHING if event is None else Step(event=event, frame=frame, hang_up=True, failed=True)

    def overdue(self, entry: Entry) -> Step:
        """A deadline that a step named has passed."""
        # A fault comes first, also where the application has closed meanwhile: it says more than 1006.
        if entry.fault is not None:
            return self.fail(entry, *entry.fault)
        if entry.state != CLOSING:
            return NOTHING
        return Step(event=self.end(entry, _ABNORMAL, ""), cut_off=True)

    def gone(self, entry: Entry) -> Request | None:
        """The client has disconnected; return the event. A fault that was not told yet is told now."""
        code, reason = entry.fault or (_ABNORMAL, "")
        return self.end(entry, code, reason)

    # -- liveness --------------------------------------------------------------------------------------------------

    def ping(self, entries: Iterable[Entry], judge: bool, confirmed: Callable[[str], int | None]) -> PingRound:
        """Sort one batch for a round of pings. Those in ``pinged`` are expected to answer from now on.

        Args:
            judge: False where pongs may have come that were not seen yet: none of them then counts as silent.
            confirmed: Returns for a conn id a number that grows while that client goes on reading what it was sent;
                ``None`` where it has read all, or where that is not known. A client that reads, but has not come to
                the ping yet, lives.
        """
        # Where processes share the endpoint another one may have got the pong.
        judge = judge and (not self.shared or self.note is not None)
        pinged: list[Entry] = []
        again: list[str] = []
        silent: list[Entry] = []
        # Locals, and identity: a round over a million entries comes through here.
        is_open = OPEN
        for entry in entries:
            if entry.state is not is_open or entry.carrier is not None:
                continue
            if not entry.awaits_pong:
                entry.awaits_pong = True
                pinged.append(entry)
            elif not judge or _reads(entry, confirmed(entry.sid[1])):
                again.append(entry.sid[1])
            else:
                silent.append(entry)
        return PingRound(pinged, again, silent)

    def silent(self, entry: Entry) -> Step:
        """End one that did not answer its ping, unless it has answered, or ended, since :meth:`ping` said so."""
        if entry.state != OPEN or not entry.awaits_pong:
            return NOTHING
        # 1006 for the application, as no close frame came; the peer is told why, in case it still reads.
        event = self.end(entry, _ABNORMAL, "ping timeout")
        return Step(event=event, frame=close_frame(CloseCode.INTERNAL_ERROR, "ping timeout"), hang_up=True)


def _reads(entry: Entry, confirmed: int | None) -> bool:
    """Whether the client has read something since it was last found without a pong."""
    if confirmed is None:
        return False
    # Remembered at each look, as only what was read since the last one counts.
    before, entry.confirmed = entry.confirmed, confirmed
    return confirmed != before


def _flags(request: Request) -> Any:
    """Return the FLAGS of a message as they were sent: bytes, text, or what :func:`parse_flags` refuses."""
    flags = request.raw.get(b"FLAGS")
    return request.raw.get("FLAGS", "") if flags is None else flags


def _pong(payload: bytes) -> Step:
    # By position, which takes half the time: a client may send many of these.
    return Step(False, False, None, None, build_frame(payload, _PONG), True)


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Return a close frame of ours; without a code for ``None`` and for codes that never travel, such as 1006.

    A reason that is too long is cut, between two characters: it comes from our own text, not from a caller who could
    be told.
    """
    return build_frame(b"" if code is None else _close_payload(code, reason), Opcode.CLOSE)


def close_of(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a close frame; 1006 where it is none that may travel."""
    try:
        return parse_close(payload)
    except RemoteProtocolError:
        return _ABNORMAL, ""


def _close_payload(code: int, reason: str) -> bytes:
    if not is_valid_close_code(code):
        return b""
    return build_close(code, reason.encode()[:MAX_CLOSE_REASON].decode(errors="ignore"))


def allowed_bits(head: bytes) -> int:
    """Return the reserved bits that a 101 answer lets messages have, by the extensions that it agrees on.

    Args:
        head: The answer, as far as its empty line.
    """
    try:
        fields = parse_head(head)[3]
        extensions = parse_extensions(value for name, value in fields if name.lower() == "sec-websocket-extensions")
    except RemoteProtocolError:
        return _ANY_BITS  # it was written by the application, and is for its client to judge
    names = {name.lower() for name, _ in extensions}
    if names <= {"permessage-deflate"}:
        return _COMPRESSED if names else 0
    return _ANY_BITS


def pack(
    entries: Iterable[Entry], payload: bytes, opcode: int, rsvd: int = 0
) -> tuple[str, list[tuple[bytes, list[str]]]]:
    """Build what sends one message to many WebSockets of one sender: frames, each with the ids that are sent it.

    Text and binary messages (with *rsvd* 0) are compressed where that was agreed on, once for all with the same
    parameters. Those that are not OPEN are left out, as those that another process sends to.

    Returns:
        The sender (``""`` where nobody is OPEN), and the frames.

    Raises:
        LocalProtocolError: A frame that RFC 6455 does not allow.
    """
    entries = [entry for entry in entries if entry.state == OPEN and entry.carrier is None]
    # Nearly always all are alike, or nobody has asked for compression.
    may_deflate = opcode in (_TEXT, _BINARY) and not rsvd
    if entries and (not may_deflate or {entry.deflate for entry in entries} == {None}):
        return entries[0].sid[0], [(build_frame(payload, opcode, rsvd), [entry.sid[1] for entry in entries])]
    plain: list[str] = []
    compressed: dict[object, tuple[bytes, list[str]]] = {}
    sender = ""
    for entry in entries:
        sender, conn_id = entry.sid
        deflate = entry.deflate
        if deflate is None:
            plain.append(conn_id)
            continue
        key = deflate.broadcast_key
        known = compressed.get(key)
        if known is None:
            data, is_compressed = deflate.encode_alone(payload)
            known = compressed[key] = (build_frame(data, opcode, 4 if is_compressed else 0), [])
        known[1].append(conn_id)
        # RSV1 is set: the peer's window has moved without ours, so nothing may refer to what was sent before.
        if known[0][0] & 0x40:
            deflate.reset_encoder()
    # The frame for the plain ones is built only where there are any: it may be megabytes.
    frames = list(compressed.values())
    if plain:
        frames.insert(0, (build_frame(payload, opcode, rsvd), plain))
    return sender, frames
