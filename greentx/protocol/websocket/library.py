"""The peer of a library that speaks the WebSocket protocol itself, such as simple-websocket.

Such a library writes the answer to the opening handshake and frames, and reads the frames of a client. Here Mongrel2
has parsed these, and between its messages bytes of our own have their place; behind a relay there are no frames at all,
only messages. So what the library writes is read here, and what it is to read is made here:

========  ==============================================  ==================================================
State     What the library writes                         What comes of it
========  ==============================================  ==================================================
HEAD      the head of a 101                               :class:`Switched`; FRAMES
          the head of another answer, as far as it came   bytes, to be passed on; ANSWER
          a head that is none, or longer than 64 KiB      an error; FAILED
FRAMES    frames                                          a ``Frame`` for each whole message or control frame
          what RFC 6455 does not let a server send        an error, behind the frames before it; FAILED
ANSWER    anything                                        bytes, to be passed on
FAILED    anything                                        the same error
========  ==============================================  ==================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ...errors import RemoteProtocolError
from ..fields import shown
from ..http1_parser import parse_head
from .frames import (
    MAX_CONTROL_PAYLOAD,
    CloseCode,
    Frame,
    FrameParser,
    MessageAssembler,
    Opcode,
    build_close,
    build_frame,
    is_valid_close_code,
    parse_close,
    validate_message,
)

__all__ = ["MAX_ANSWER_HEAD", "Library", "LibraryState", "Switched", "client_close", "client_frame"]

#: The longest head of an answer that a library may write, in bytes.
MAX_ANSWER_HEAD: Final = 65536

_SWITCHED: Final = b"HTTP/1.1 101 "
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] [1-5][0-9]{2}[ \r]")
_HEAD_END: Final = b"\r\n\r\n"
# A client masks (RFC 6455, section 5.1); a mask of zeros changes nothing, and costs no pass over the payload.
_MASK: Final = b"\0\0\0\0"
_MAX_REASON: Final = MAX_CONTROL_PAYLOAD - 2


class LibraryState(Enum):
    """See the module."""

    HEAD = "head"
    FRAMES = "frames"
    ANSWER = "answer"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Switched:
    """The library lets the client in.

    Attributes:
        head: Its whole answer, with the empty line.
        subprotocol: What that agrees on, ``None`` for none.
    """

    head: bytes
    subprotocol: str | None


class Library:
    """Reads what a library writes, however its bytes are cut.

    Args:
        plain: The library was offered no extension, so its messages are whole and plain: one with reserved bits, an
            extension in its 101, or text that is not UTF-8, is an error. Else messages pass as they are.

    Attributes:
        state: See the module.
    """

    __slots__ = ("_assembler", "_error", "_head", "_parser", "_plain", "state")

    def __init__(self, *, plain: bool = False) -> None:
        self.state = LibraryState.HEAD
        self._plain = plain
        self._head = b""
        # Servers do not mask (RFC 6455, section 5.1), and the library is one.
        self._parser = FrameParser(require_mask=False)
        self._assembler = MessageAssembler()
        self._error = ""

    def read(self, data: bytes) -> Iterator[Switched | Frame | bytes]:
        """Read the next bytes that the library wrote; see the module for what is yielded.

        Raises:
            RemoteProtocolError: Behind what was right before it. A close frame with a payload that is not one is an
                error as well, so ``parse_close`` can be called with each.
        """
        if self.state is LibraryState.FAILED:
            raise RemoteProtocolError(self._error)
        try:
            if self.state is LibraryState.HEAD:
                self._head += data
                switched, data = self._read_head()
                if switched is not None:
                    yield switched
            if self.state is LibraryState.FRAMES:
                yield from self._messages(data)
            elif self.state is LibraryState.ANSWER and data:
                yield data
        except RemoteProtocolError as error:
            self.state = LibraryState.FAILED
            self._error = str(error)
            self._head = b""
            raise

    def end(self) -> None:
        """The library has closed its socket. Raises ``RemoteProtocolError`` where it wrote a part of a head only."""
        if self._head:
            raise RemoteProtocolError(f"{len(self._head)} bytes are not an answer")

    def _read_head(self) -> tuple[Switched | None, bytes]:
        """Find the end of the head; return what is behind that of a 101, or all of another answer."""
        end = self._head.find(_HEAD_END) + len(_HEAD_END)
        if end < len(_HEAD_END):
            # A library that goes on without an end of its head would fill the memory.
            if len(self._head) > MAX_ANSWER_HEAD:
                raise RemoteProtocolError(
                    f"the answer's head is longer than {len(self._head)} bytes, limit {MAX_ANSWER_HEAD}"
                )
            return None, b""
        data, self._head = self._head, b""
        if not _STATUS_LINE.match(data):
            raise RemoteProtocolError(f"{shown(data)} is not an answer")
        if not data.startswith(_SWITCHED):
            self.state = LibraryState.ANSWER
            return None, data
        self.state = LibraryState.FRAMES
        return self._switched(data[:end]), data[end:]

    def _switched(self, head: bytes) -> Switched:
        try:
            fields = parse_head(head)[3]
        except RemoteProtocolError:
            if self._plain:
                raise
            # It was written by the application, and is for its client to judge.
            return Switched(head, None)
        values = {name.lower(): value for name, value in fields}
        if self._plain and values.get("sec-websocket-extensions"):
            raise RemoteProtocolError(
                f"the answer agrees on the extension {shown(values['sec-websocket-extensions'])}, none was offered"
            )
        return Switched(head, values.get("sec-websocket-protocol"))

    def _messages(self, data: bytes) -> Iterator[Frame]:
        for frame in self._parser.feed(data):
            message = self._assembler.add(frame)
            if message is None:
                continue
            if message.opcode == Opcode.CLOSE:
                parse_close(message.payload)
            elif self._plain:
                validate_message(message.opcode, message.rsvd, message.payload, max_size=None)
            yield message
        self._parser.check()


def client_frame(payload: bytes, opcode: int, rsvd: int = 0) -> bytes:
    """Return a message, a ping or a pong of the client as the library reads it: one frame, masked with zeros.

    Raises:
        LocalProtocolError: As ``build_frame``.
    """
    return build_frame(payload, opcode, rsvd, mask=_MASK)


def client_close(code: int, reason: str = "") -> bytes:
    """Return what the library reads of an end with that code; ``b""`` where no close frame came.

    1005 is a close frame without a code; 1006 and the like are never on the wire (RFC 6455, section 7.4.1), so only the
    stream ends then. A reason that is too long is cut between two characters.
    """
    if code == CloseCode.NO_STATUS_RECEIVED:
        return client_frame(b"", Opcode.CLOSE)
    if not is_valid_close_code(code):
        return b""
    text = reason.encode(errors="replace")[:_MAX_REASON].decode(errors="ignore")
    return client_frame(build_close(code, text), Opcode.CLOSE)
