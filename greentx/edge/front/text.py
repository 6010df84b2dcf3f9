"""Whether the text of a WebSocket message that is not whole can still become UTF-8, without I/O.

A handler looks at whole messages. One of which half has come may never be whole, and RFC 6455, section 8.1, has its
connection failed as soon as its bytes cannot be UTF-8.
"""

from __future__ import annotations

import codecs

from ...errors import RemoteProtocolError
from ...protocol.websocket.frames import CloseCode, Frame, Opcode

__all__ = ["TextCheck"]

_Decoder = codecs.getincrementaldecoder("utf-8")
_CONT, _TEXT, _CLOSE = int(Opcode.CONT), int(Opcode.TEXT), int(Opcode.CLOSE)
_INVALID_DATA = int(CloseCode.INVALID_DATA)


class TextCheck:
    """Looks at the text of one WebSocket; each byte once, and only at messages that come in several pieces.

    Attributes:
        seen: Bytes that :meth:`part` has looked at of the frame that is not whole.
    """

    __slots__ = ("_decoder", "seen")

    def __init__(self) -> None:
        # Of the message in hand, where it is text as it stands.
        self._decoder: codecs.IncrementalDecoder | None = None
        self.seen = 0

    def concerns(self, first: int | None) -> bool:
        """Whether :meth:`part` has to look at a frame with this first byte."""
        # FIN may be set; a reserved bit means that it is compressed, and no text as it stands.
        kind = None if first is None else first & 0x7F
        return kind == _TEXT or (kind == _CONT and self._decoder is not None)

    def frame(self, frame: Frame) -> None:
        """Look at a frame that is whole.

        Raises:
            RemoteProtocolError: With 1007: its text cannot become UTF-8.
        """
        if frame.opcode >= _CLOSE:
            return
        # Whether the end of a message is right is the handler's to say.
        if not frame.fin:
            self._begin(frame)
            self._look(frame.payload[self.seen :])
        self.seen = 0

    def part(self, frame: Frame) -> None:
        """Look at the next part of a frame that is not whole, behind the :attr:`seen` bytes before it.

        Raises:
            RemoteProtocolError: As :meth:`frame`.
        """
        if not self.seen:
            self._begin(frame)
        self.seen += len(frame.payload)
        self._look(frame.payload)

    def _begin(self, frame: Frame) -> None:
        if frame.opcode != _CONT and not self.seen:
            self._decoder = _Decoder() if frame.opcode == _TEXT and not frame.rsvd else None

    def _look(self, data: bytes) -> None:
        if self._decoder is not None:
            try:
                self._decoder.decode(data)
            except UnicodeDecodeError as error:
                raise RemoteProtocolError(f"text is not UTF-8: {error.reason}", close_code=_INVALID_DATA) from None
