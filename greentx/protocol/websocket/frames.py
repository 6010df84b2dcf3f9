"""WebSocket frames and messages (RFC 6455): bytes to objects and back, and the rules that they have to keep.

Two kinds of callers meet here. A handler behind Mongrel2 receives whole, unmasked messages of which nothing was
checked: :func:`parse_flags` and :func:`validate_message` are for it, :func:`build_frame` writes its answers. Whoever
sits at the other end of such a connection (a pretend browser, a bridge, an embedded front end) reads raw bytes:
:class:`FrameParser` turns them into frames, :class:`MessageAssembler` joins the fragments, and what comes out is the
very shape in which Mongrel2 hands a message over, so that :func:`validate_message` ends both paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ...errors import LocalProtocolError, RemoteProtocolError
from ..fields import shown
from .deflate import PerMessageDeflate
from .masking import apply_mask

__all__ = [
    "MAX_CONTROL_PAYLOAD",
    "CloseCode",
    "Frame",
    "FrameParser",
    "MessageAssembler",
    "Opcode",
    "build_close",
    "build_flags",
    "build_frame",
    "build_head",
    "is_valid_close_code",
    "parse_close",
    "parse_flags",
    "validate_message",
]

#: Bytes that a close, ping or pong frame may carry (RFC 6455, section 5.5).
MAX_CONTROL_PAYLOAD: Final = 125


class Opcode(IntEnum):
    """What a frame is (RFC 6455, section 5.2); 3-7 and 11-15 are reserved and never accepted."""

    CONT = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Why a connection ended (RFC 6455, section 7.4.1, and IANA's registry).

    1005, 1006 and 1015 exist for the application alone and never travel in a frame.
    """

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


# Plain ints, since that is what comes in.
_OPCODES: Final = frozenset(int(opcode) for opcode in Opcode)
_NOT_SENT: Final = frozenset({1004, 1005, 1006})  # 1004 is reserved without a meaning

# Plain numbers: a look into an enum class costs more than the comparison itself, and these are on every message's path.
_CONT: Final = int(Opcode.CONT)
_TEXT: Final = int(Opcode.TEXT)
_CLOSE: Final = int(Opcode.CLOSE)
_RSV1: Final = 4
_FEW_FRAGMENTS: Final = 1024
_SMALL_FRAGMENT: Final = 32
_INVALID_DATA: Final = int(CloseCode.INVALID_DATA)
_TOO_BIG: Final = int(CloseCode.MESSAGE_TOO_BIG)

# A frame as handlers mostly send them (final, unmasked, no RSV bits, under 126 bytes) is one lookup and one join: its
# head has only 6 * 126 values.
_SHORT_HEADS: Final[dict[int, tuple[bytes, ...]]] = {
    opcode: tuple(bytes((0x80 | opcode, length)) for length in range(126)) for opcode in _OPCODES
}

# FLAGS has 128 values, so it is looked up, not parsed. Mongrel2 writes "0x%X" and JSON or tnetstring decides between
# str and bytes; lower-case digits come from other writers of its format.
_FLAGS: Final[dict[str | bytes, tuple[int, int]]] = {
    form: (first & 0x0F, first >> 4 & 7)
    for first in range(0x80, 0x100)
    for text in (f"0x{first:X}", f"0x{first:x}")
    for form in (text, text.encode())
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, or one whole message where fragments have been joined.

    Attributes:
        payload: Unmasked; compressed where ``rsvd & 4`` and permessage-deflate was negotiated.
        opcode: One of :class:`Opcode`, as a plain int.
        rsvd: The three reserved bits as a number: RSV1 is 4, RSV2 is 2, RSV3 is 1.
        fin: False for every fragment of a message but its last.
    """

    payload: bytes
    opcode: int = Opcode.TEXT
    rsvd: int = 0
    fin: bool = True


def build_frame(
    payload: bytes, opcode: int = Opcode.TEXT, rsvd: int = 0, *, fin: bool = True, mask: bytes | None = None
) -> bytes:
    """Build one frame.

    Layout: FIN, RSV1-3 and opcode in the first byte; MASK bit and length in the second, the length going on in two
    bytes from 126 and in eight from 65536 (network order); the masking key, if any; the payload.

    Args:
        payload: Any bytes-like object of single bytes. Whether text is UTF-8 is the caller's to know.
        opcode: One of :class:`Opcode`.
        rsvd: The reserved bits as a number from 0 to 7, RSV1 = 4, as in the Python example that comes with Mongrel2.
        fin: False for all fragments but the last.
        mask: The four bytes that a client has to mask with; ``None`` for a server, which must not mask (section 5.1).

    Raises:
        LocalProtocolError: The opcode is reserved, *rsvd* or *mask* is out of range, or a control frame is longer than
            125 bytes or a fragment.

    Source: RFC 6455, sections 5.2 and 5.5.
    """
    head = build_head(len(payload), opcode, rsvd, fin=fin, masked=mask is not None)
    if mask is None:
        return head + payload
    if len(mask) != 4:
        raise LocalProtocolError(f"mask is {len(mask)} bytes, a masking key has 4")
    return b"".join((head, mask, apply_mask(payload, mask)))


def build_head(length: int, opcode: int, rsvd: int = 0, *, fin: bool = True, masked: bool = False) -> bytes:
    """Build what a frame begins with, for a payload of *length* bytes: all of :func:`build_frame` in front of the mask.

    Raises:
        LocalProtocolError: As :func:`build_frame`.
    """
    # Nearly all frames; a reserved opcode is not among the heads, and goes on to be refused below.
    if length < 126 and fin and not rsvd and not masked:
        heads = _SHORT_HEADS.get(opcode)
        if heads is not None:
            return heads[length]
    if opcode not in _OPCODES:
        raise LocalProtocolError(f"opcode is {opcode!r}: RFC 6455 has 0, 1, 2, 8, 9 and 10")
    if not 0 <= rsvd <= 7:
        raise LocalProtocolError(f"rsvd is {rsvd!r}: the three reserved bits make a number from 0 to 7")
    # Checked here and not left to the peer: Mongrel2 passes on whatever it is given (probed).
    if opcode >= _CLOSE:
        if length > MAX_CONTROL_PAYLOAD:
            raise LocalProtocolError(f"control payload is {length} bytes, limit {MAX_CONTROL_PAYLOAD}")
        if not fin:
            raise LocalProtocolError("a control frame cannot be a fragment: leave fin true")
    # Each length has one form, the shortest (section 5.2).
    first = fin << 7 | rsvd << 4 | opcode
    bit = masked << 7
    if length < 126:
        return bytes((first, bit | length))
    if length < 0x10000:
        return bytes((first, bit | 126, length >> 8, length & 0xFF))
    return bytes((first, bit | 127)) + length.to_bytes(8, "big")


class FrameParser:
    """Bytes in, frames out, however the bytes are cut.

    It keeps the rules that belong to one frame: known opcodes, shortest form of the length, masking, control frames
    whole and short. What belongs to a message (order of fragments, reserved bits, UTF-8) is for
    :class:`MessageAssembler` and :func:`validate_message`.

    Attributes:
        error: What ended the stream, ``None`` as long as it can go on.
    """

    __slots__ = ("_buffer", "_max_size", "_require_mask", "error")

    def __init__(self, *, require_mask: bool | None, max_size: int | None = None) -> None:
        """Start at the first byte after the opening handshake.

        Args:
            require_mask: True in the server's role, False in the client's; ``None`` accepts both.
            max_size: The longest payload of one frame in bytes as they travel, before inflating. A longer one is
                refused as soon as its head was read. ``None`` is unlimited.
        """
        self._buffer = bytearray()
        self._require_mask = require_mask
        self._max_size = max_size
        self.error: RemoteProtocolError | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """Read the next bytes and return the frames that they complete, in order.

        A fault never hides the good frames before it: where both are in *data* the frames are returned and ``error``
        is set; this and every later call without such frames raises it. Nothing is read after a fault.

        Raises:
            RemoteProtocolError: With ``close_code`` 1002, or 1009 for a frame above *max_size*.
        """
        self.check()
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        used = 0
        try:
            # A view, so that what lies behind the first frame is not copied for each; it is released before the
            # buffer changes its size, which a bytearray refuses otherwise.
            with memoryview(buffer) as view:
                while len(view) - used >= 2:
                    start, end = self._measure(view, used)
                    if end > len(view):
                        break
                    payload = bytes(view[start:end])
                    first = view[used]
                    if view[used + 1] & 0x80:
                        payload = apply_mask(payload, bytes(view[start - 4 : start]))
                    frames.append(Frame(payload, first & 0x0F, first >> 4 & 7, first >= 0x80))
                    used = end
        except RemoteProtocolError as error:
            # After a fault the place where the next frame begins is not known (section 7.1.7).
            self.error = RemoteProtocolError(str(error), close_code=error.close_code)
            buffer.clear()
            if not frames:
                raise
        else:
            del buffer[:used]
        return frames

    @property
    def kept(self) -> int:
        """Bytes of the frame that is not whole."""
        return len(self._buffer)

    @property
    def begun(self) -> int | None:
        """The first byte of the frame that is not whole, where one has begun."""
        return self._buffer[0] if self._buffer else None

    def beginning(self, start: int = 0) -> Frame | None:
        """Return the frame that is not whole, its payload from byte *start* on; ``None`` where no more is there.

        It will come again from :meth:`feed`, whole.
        """
        with memoryview(self._buffer) as view:
            if len(view) < 2:
                return None
            first, second = view[0], view[1]
            at, _ = self._measure(view, 0)
            if len(view) <= at + start:
                return None
            payload = bytes(view[at + start :])
            if second & 0x80:
                turn = start % 4
                mask = bytes(view[at - 4 : at])
                payload = apply_mask(payload, mask[turn:] + mask[:turn])
        return Frame(payload, first & 0x0F, first >> 4 & 7, first >= 0x80)

    def check(self) -> None:
        """Raise ``error`` where there is one."""
        # A new exception each time: the one that was raised knows the frames that know this object, a reference cycle.
        if self.error is not None:
            raise RemoteProtocolError(str(self.error), close_code=self.error.close_code)

    def _measure(self, view: memoryview, used: int) -> tuple[int, int]:
        """Check the head at *used*; return where its payload starts and ends, past the view while bytes are missing."""
        # Judged by the head alone: a fault is found before the payload that it announces has come.
        first, second = view[used], view[used + 1]
        opcode = first & 0x0F
        length = second & 0x7F
        if opcode not in _OPCODES:
            raise RemoteProtocolError(f"frame has the reserved opcode {opcode}")
        if opcode >= _CLOSE:
            if length > MAX_CONTROL_PAYLOAD:
                raise RemoteProtocolError(f"control frame is longer than {MAX_CONTROL_PAYLOAD} bytes")
            if first < 0x80:
                raise RemoteProtocolError("control frame is a fragment")
        masked = second >= 0x80
        if self._require_mask is not None and masked is not self._require_mask:
            raise RemoteProtocolError("frame is masked" if masked else "frame is not masked")
        start = used + 2
        if length >= 126:
            extra = 2 if length == 126 else 8
            start += extra
            if start > len(view):
                return start, start
            # Several forms of one length would let two readers of one stream disagree (section 5.2).
            length = int.from_bytes(view[start - extra : start], "big")
            if length < (126 if extra == 2 else 0x10000):
                raise RemoteProtocolError(f"length {length} is not in its shortest form")
            if length >= 1 << 63:
                raise RemoteProtocolError("the most significant bit of a 64-bit length must be 0")
        # Before any of the payload has come, so that an announced terabyte is not waited for.
        if self._max_size is not None and length > self._max_size:
            raise RemoteProtocolError(f"frame is {length} bytes, limit {self._max_size}", close_code=_TOO_BIG)
        start += 4 if masked else 0
        return start, start + length


class MessageAssembler:
    """Joins fragments into messages, as Mongrel2 does for its handlers; control frames pass at once."""

    __slots__ = ("_first", "_max_parts", "_max_size", "_parts", "_size")

    def __init__(self, *, max_size: int | None = None) -> None:
        """Start between two messages.

        Args:
            max_size: The most bytes of all fragments of one message together, as they travel. There may be 1024 of
                them, or one for each 32 bytes of *max_size*: empty ones take memory, too. ``None`` is unlimited.
        """
        self._max_size = max_size
        self._max_parts = math.inf if max_size is None else max(_FEW_FRAGMENTS, max_size // _SMALL_FRAGMENT)
        self._first: Frame | None = None
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def kept(self) -> int:
        """Bytes of the message that is not whole."""
        return self._size

    def add(self, frame: Frame) -> Frame | None:
        """Add the next frame.

        Returns:
            A whole message with the opcode and the reserved bits of its first fragment, a control frame as it came,
            or ``None`` while more fragments have to come.

        Raises:
            RemoteProtocolError: 1002 for a continuation without a beginning, a new message inside a fragmented one, or
                reserved bits on a continuation (RFC 7692, section 6.1); 1009 above *max_size*.
        """
        # Control frames may stand between the fragments of a message (section 5.4).
        first = self._first
        if frame.opcode >= _CLOSE:
            return frame
        # Which message a fragment belongs to is said by its place alone: there is one at a time.
        if frame.opcode == _CONT:
            if first is None:
                raise RemoteProtocolError("continuation of nothing")
            if frame.rsvd:
                raise RemoteProtocolError("reserved bits are set on a continuation")
        elif first is not None:
            raise RemoteProtocolError("a new message begins inside a fragmented one")
        else:
            first = self._first = frame
        # Counted before it is kept: many small fragments do not get around the limit.
        self._size += len(frame.payload)
        if self._max_size is not None and self._size > self._max_size:
            raise RemoteProtocolError(
                f"message is at least {self._size} bytes, limit {self._max_size}", close_code=_TOO_BIG
            )
        self._parts.append(frame.payload)
        if not frame.fin:
            if len(self._parts) > self._max_parts:
                raise RemoteProtocolError(f"message is in over {self._max_parts} fragments", close_code=_TOO_BIG)
            return None
        message = Frame(b"".join(self._parts), first.opcode, first.rsvd, True)
        self._first = None
        self._parts.clear()
        self._size = 0
        return message


def parse_flags(flags: str | bytes) -> tuple[int, int]:
    """Opcode and reserved bits (RSV1 = 4) out of Mongrel2's FLAGS header.

    Args:
        flags: ``0x`` and the first byte of the frame in hexadecimal with FIN set, e.g. ``"0x81"``.

    Raises:
        RemoteProtocolError: It is anything else. An opcode out of range is not judged here.

    Source: probed; Mongrel2 writes the header once a message is complete and forces FIN on.
    """
    # A TypeError is a header that came several times, which is a list.
    try:
        return _FLAGS[flags]
    except (KeyError, TypeError):
        raise RemoteProtocolError(f"FLAGS is {shown(flags)}: expected 0x80 to 0xFF") from None


def build_flags(opcode: int, rsvd: int = 0) -> str:
    """The FLAGS header with which Mongrel2 hands over a message: the reverse of :func:`parse_flags`.

    Raises:
        LocalProtocolError: *opcode* is not within 0-15 or *rsvd* not within 0-7. Reserved opcodes are let through, as
            Mongrel2 does it.
    """
    # Reserved ones pass, so that tests can send what a handler has to refuse.
    if not (0 <= opcode <= 15 and 0 <= rsvd <= 7):
        raise LocalProtocolError(f"opcode {opcode!r} and rsvd {rsvd!r} do not fit into the first byte of a frame")
    return f"0x{0x80 | rsvd << 4 | opcode:X}"


def is_valid_close_code(code: int) -> bool:
    """Whether *code* may travel in a close frame: 1000-1014 but 1004-1006, and 3000-4999 (RFC 6455, section 7.4)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in _NOT_SENT)


def build_close(code: int | None = CloseCode.NORMAL_CLOSURE, reason: str = "") -> bytes:
    """Build the payload of a close frame: the code in two bytes, then the reason as UTF-8.

    Args:
        code: ``None`` for an empty payload, which the peer's application sees as 1005.
        reason: At most 123 bytes of UTF-8. It is never cut: half a reason may be half a character.

    Raises:
        LocalProtocolError: The code may not travel, the reason is too long or is not text, or there is a reason
            without a code.

    Source: RFC 6455, section 5.5.1.
    """
    # The reason follows the code in the payload, so there is no place for one alone.
    if code is None:
        if reason:
            raise LocalProtocolError("a close reason needs a close code before it")
        return b""
    if not is_valid_close_code(code):
        raise LocalProtocolError(f"close code {code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999")
    try:
        # Lone surrogates have no UTF-8.
        payload = code.to_bytes(2, "big") + reason.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"close reason is not text: {error}") from error
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise LocalProtocolError(f"close reason is {len(payload) - 2} bytes as UTF-8, limit {MAX_CONTROL_PAYLOAD - 2}")
    return payload


def parse_close(payload: bytes) -> tuple[int, str]:
    """Code and reason out of the payload of a close frame; ``(1005, "")`` where it is empty.

    Raises:
        RemoteProtocolError: 1002 for a single byte or a code that may not travel, 1007 for a reason that is not UTF-8.

    Source: RFC 6455, sections 5.5.1, 7.1.5 and 8.1.
    """
    # No code is not an error: the peer only says that it has finished (section 7.1.5).
    if not payload:
        return int(CloseCode.NO_STATUS_RECEIVED), ""
    if len(payload) == 1:
        raise RemoteProtocolError("close frame has one byte: half a close code")
    # A code that stands for "no frame came" must not come in a frame: it could not be told from that.
    code = int.from_bytes(payload[:2], "big")
    if not is_valid_close_code(code):
        raise RemoteProtocolError(f"close frame has the code {code}, which may not be sent")
    try:
        return code, str(payload[2:], "utf-8")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(
            f"close reason is not UTF-8: {error.reason} at byte {error.start}", close_code=_INVALID_DATA
        ) from error


def validate_message(
    opcode: int, rsvd: int, payload: bytes, *, max_size: int | None, deflate: PerMessageDeflate | None = None
) -> tuple[bytes, str | None]:
    """Check a whole message as Mongrel2 hands it over (joined, unmasked, otherwise unchecked), inflating it if need be.

    Text is decoded here, once: the first item has it as bytes, the second as str. A close frame
    is checked as a frame; its payload is for :func:`parse_close`.

    Args:
        opcode, rsvd: As :func:`parse_flags` gives them.
        payload: The body of the request.
        max_size: The most bytes of a data message, counted after inflating, which stops there. ``None`` is unlimited.
        deflate: What was negotiated on this connection; its inflating side moves on, so call this once per message and
            in order. ``None``: no extension, no reserved bit may be set.

    Returns:
        ``(data, text)``: the payload, inflated; and, for opcode 1 only, the same as str, else ``None``.

    Raises:
        RemoteProtocolError: ``close_code`` is the one to close with: 1002 for a reserved opcode, a stray continuation,
            a reserved bit that nobody negotiated or a control frame above 125 bytes; 1007 for text that is not UTF-8
            or data that does not inflate; 1009 above *max_size*.

    Source: RFC 6455, sections 5.2, 5.5 and 8.1; RFC 7692, sections 6 and 7.2.2.
    """
    # Nothing was checked before: Mongrel2 only joins and unmasks (probed).
    if opcode >= _CLOSE:
        if opcode not in _OPCODES:
            raise RemoteProtocolError(f"message has the reserved opcode {opcode}")
        if rsvd:
            raise RemoteProtocolError(f"control frame has reserved bits set ({rsvd})")
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise RemoteProtocolError(f"control payload is {len(payload)} bytes, limit {MAX_CONTROL_PAYLOAD}")
        return payload, None
    # 0 is a continuation of nothing: the server has joined those that continue something.
    if not 0 < opcode < 3:
        raise RemoteProtocolError(f"message has the opcode {opcode}, neither text nor binary")
    # RSV1 says that this message is compressed, and means nothing else with permessage-deflate (RFC 7692, section 6).
    if rsvd:
        if deflate is None or rsvd != _RSV1:
            raise RemoteProtocolError(f"message has reserved bits set ({rsvd}) that were not negotiated")
        payload = deflate.decode(payload, max_size)
    elif max_size is not None and len(payload) > max_size:
        raise RemoteProtocolError(f"message is {len(payload)} bytes, limit {max_size}", close_code=_TOO_BIG)
    # Decoding is the check: there is nothing in the library that only looks, and the application wants the text.
    if opcode != _TEXT:
        return payload, None
    try:
        return payload, payload.decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(
            f"text message is not UTF-8: {error.reason} at byte {error.start}", close_code=_INVALID_DATA
        ) from error
