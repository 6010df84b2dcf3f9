"""The side of a connection that speaks frames: whole messages go to handlers, and what breaks the rules ends it."""

from __future__ import annotations

import logging

import gevent

from ...errors import RemoteProtocolError
from ...protocol.websocket.frames import CloseCode, FrameParser, MessageAssembler, Opcode, build_close, build_frame
from .connection import BrowserConnection
from .entry import Entry
from .messages import FrameMessages
from .text import TextCheck
from .turns import Turns

__all__ = ["WebSocketSide"]

log = logging.getLogger("greentx.edge.front")

# Behind the last good frame of a WebSocket that is failed: between looks at whether more was written, and how many.
_SETTLE_SECONDS = 0.1
_SETTLE_LOOKS = 5


class WebSocketSide:
    """Reads frames until the connection ends.

    Args:
        entry: Who gets the messages.
        answer: Follows the answer to the handshake; ``None``: nobody does.
        messages: Builds them.
        max_size: Bytes of a message, and so of a frame; ``None`` is no limit. What is compressed, and cannot be made
            smaller, may be a little larger.
    """

    __slots__ = (
        "_accepted",
        "_answer",
        "_assembler",
        "_closing",
        "_connection",
        "_entry",
        "_messages",
        "_parser",
        "_text",
    )

    speaks_messages = False

    def __init__(
        self,
        connection: BrowserConnection,
        entry: Entry,
        messages: FrameMessages,
        max_size: int | None,
        answer: Turns | None = None,
    ) -> None:
        self._connection = connection
        self._entry = entry
        self._answer = answer
        self._messages = messages
        if max_size is not None:
            # Five bytes for each block of up to 64 KiB (RFC 1951, section 3.2.4); some write smaller ones.
            max_size += max_size // 1024 + 64
        self._parser = FrameParser(require_mask=True, max_size=max_size)
        self._assembler = MessageAssembler(max_size=max_size)
        self._text = TextCheck()
        # Whether a handler has let it in, and its client understands a close frame; `None` before it has answered.
        self._accepted: bool | None = None
        # It has sent one.
        self._closing = False

    @property
    def busy(self) -> bool:
        """True: it waits for messages."""
        return True

    @property
    def waiting(self) -> bool:
        """True where the client waits for the other half of its closing handshake; any other one has gone."""
        return self._closing

    def wrote(self, data: bytes) -> None:
        """See whether it was let in."""
        if self._accepted is None:
            self._accepted = data.startswith(b"HTTP/1.1 101")
            if self._answer is not None:
                self._answer.wrote(data)
            self._connection.moved()

    def feed(self, data: bytes) -> None:
        """Hand on the messages that are whole."""
        parser, text, connection = self._parser, self._text, self._connection
        incoming, outgoing = connection.incoming, connection.outgoing
        try:
            for number, frame in enumerate(incoming.parsed(parser.feed, data), 1):
                if not frame.fin or text.seen:
                    text.frame(frame)
                message = self._assembler.add(frame)
                if message is not None:
                    self._closing = self._closing or message.opcode == Opcode.CLOSE
                    if not connection.send(self._entry, self._messages.build(message), patiently=True):
                        log.warning("%r ends: no handler had room for a message of it, which is lost", connection)
                        self._end(CloseCode.TRY_AGAIN_LATER, "handlers are busy")
                incoming.give_way(number)
                # Meanwhile it may have ended.
                if outgoing.ending:
                    return
            parser.check()
            if not connection.keep(parser.kept + self._assembler.kept):
                self._end(CloseCode.TRY_AGAIN_LATER, "too much is sent at once")
                return
            if text.concerns(parser.begun):
                part = parser.beginning(text.seen)
                if part is not None:
                    text.part(part)
        except RemoteProtocolError as error:
            log.debug("%r: %s", connection, error)
            self._fail(error)

    def eof(self) -> None:
        """The client has gone."""

    def expire(self) -> None:
        """It is silent."""
        self._connection.abort()

    def leave(self) -> None:
        """Say that the server goes."""
        self._end(CloseCode.GOING_AWAY, "the server stops")

    def grant(self, count: int) -> None:
        """Frames are handed on as they come."""

    def drop(self) -> None:
        """Forget the message that is not whole: while the connection waits for its client, others need the room."""
        self._parser = FrameParser(require_mask=True)
        self._assembler = MessageAssembler()
        self._connection.keep(0)

    def close(self) -> None:
        """Nothing is kept elsewhere."""
        if self._answer is not None:
            self._answer.closed()

    def _fail(self, error: RemoteProtocolError) -> None:
        connection = self._connection
        connection.wait(lambda: self._accepted is not None)
        self._settle()
        self._end(error.close_code, str(error))

    def _end(self, code: int, reason: str) -> None:
        connection = self._connection
        if not connection.outgoing.ending:
            if self._accepted:
                connection.outgoing.add(build_frame(build_close(code, reason), Opcode.CLOSE))
            self.drop()
            connection.end()

    def _settle(self) -> None:
        """Block this greenlet for a moment, in which handlers answer what came before the end; nobody tells of it."""
        outgoing = self._connection.outgoing
        for _ in range(_SETTLE_LOOKS):
            written = outgoing.written
            gevent.sleep(_SETTLE_SECONDS)
            if outgoing.ending or (outgoing.idle and outgoing.written == written):
                break
