"""What a browser makes of the bytes that a handler sends: HTTP responses, and WebSocket messages. No I/O."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..errors import RemoteProtocolError
from ..protocol.headers import Headers
from ..protocol.http1_parser import ResponseParser
from ..protocol.websocket.deflate import PerMessageDeflate
from ..protocol.websocket.frames import Frame, FrameParser, MessageAssembler, validate_message

__all__ = ["HTTPReader", "HTTPResponse", "WebSocketReader"]


class HTTPResponse:
    """One HTTP response, whole.

    Attributes:
        status: The code.
        reason: The phrase, ``""`` where there is none.
        headers: Names in lower case; a repeated name has the list of its values.
        body: Without the framing of chunks.
        trailers: The fields after a chunked body.
        version: ``"HTTP/1.1"``.
    """

    __slots__ = ("body", "headers", "reason", "status", "trailers", "version")

    def __init__(self, parser: ResponseParser) -> None:
        self.status = parser.status
        self.reason = parser.reason
        self.headers: Headers = parser.headers
        self.body = parser.body
        self.trailers: Headers = parser.trailers
        self.version = parser.version

    def json(self) -> Any:
        """Return the decoded body. Raises ``ValueError`` where it is not JSON."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<HTTPResponse {self.status} {self.reason} body={len(self.body)} bytes>"


class HTTPReader:
    """Reads the responses to pipelined requests; they come in the order of these.

    After a ``RemoteProtocolError`` nobody knows where the next response begins: nothing is expected any more.
    """

    __slots__ = ("_begun", "_parsers")

    def __init__(self) -> None:
        # One for each request that waits for its response, as its method decides how that ends.
        self._parsers: deque[ResponseParser] = deque()
        # The first of them, once it was given something to read.
        self._begun: ResponseParser | None = None

    def expect(self, method: str) -> ResponseParser:
        """A request with this method goes out. Returns what :meth:`withdraw` is told where it did not."""
        parser = ResponseParser(method)
        self._parsers.append(parser)
        return parser

    def withdraw(self, parser: ResponseParser) -> None:
        """That request was not sent."""
        # Not there any more where a reply came meanwhile that nobody could read: that emptied the line.
        with suppress(ValueError):
            self._parsers.remove(parser)

    def feed(self, data: bytes) -> Iterator[HTTPResponse]:
        """Read what came; yield each response that is whole now.

        Raises:
            RemoteProtocolError: It is something else than HTTP/1.1; or no request asked for it.
        """
        try:
            while data:
                # A browser would show it as the answer to its next request.
                if not self._parsers:
                    raise RemoteProtocolError(f"{len(data)} bytes came that no request asked for: {data[:40]!r}")
                parser = self._begun = self._parsers[0]
                if not parser.feed(data):
                    return
                data = parser.trailing
                yield self._complete(parser)
        except RemoteProtocolError:
            self._expect_nothing()
            raise

    def end(self) -> Iterator[HTTPResponse]:
        """The connection has ended; yield the response that this completes.

        Raises:
            RemoteProtocolError: A request waits for a response that was not whole, or had not begun.
        """
        if not self._parsers:
            return
        try:
            parser = self._parsers[0]
            if parser is not self._begun:
                raise RemoteProtocolError("the handler closed the connection without a response")
            # For a body without a length the end of the connection is its end (RFC 9112, section 6.3).
            parser.close()
            yield self._complete(parser)
        except RemoteProtocolError:
            self._expect_nothing()
            raise

    def _complete(self, parser: ResponseParser) -> HTTPResponse:
        self._begun = None
        self._parsers.popleft()
        return HTTPResponse(parser)

    def _expect_nothing(self) -> None:
        self._parsers.clear()
        self._begun = None


class WebSocketReader:
    """Reads the answer to a handshake, and then messages.

    Args:
        check: Given the status and the headers of a 101; returns what was agreed on, the subprotocol and the
            compression, and raises ``RemoteProtocolError`` for what was not offered.

    Attributes:
        response: The answer; ``None`` before it was whole.
        subprotocol, deflate: What was agreed on; ``None`` for none.
    """

    __slots__ = ("_answer", "_assembler", "_check", "_frames", "deflate", "response", "subprotocol")

    def __init__(self, check: Callable[[int, Headers], tuple[str | None, PerMessageDeflate | None]]) -> None:
        self.response: HTTPResponse | None = None
        self.subprotocol: str | None = None
        self.deflate: PerMessageDeflate | None = None
        self._check = check
        # Until it was a 101: a load generator has ten thousand of these.
        self._answer: ResponseParser | None = ResponseParser()
        # A server's frames are not masked (RFC 6455, section 5.1).
        self._frames = FrameParser(require_mask=False)
        self._assembler = MessageAssembler()

    def feed(self, data: bytes) -> Iterator[HTTPResponse | Frame]:
        """Read what came; yield the answer, then each message that is whole now: joined, and inflated.

        Raises:
            RemoteProtocolError: No browser would accept it. What was good before it has been yielded.
        """
        answer = self._answer
        if answer is not None:
            if self.response is not None:
                raise RemoteProtocolError(
                    f"{len(data)} bytes came behind the answer {self.response.status} to a handshake, which ends it"
                )
            if not answer.feed(data):
                return
            data = answer.trailing
            yield self._read_answer(answer)
            if self._answer is not None:
                return
        for frame in self._frames.feed(data):
            message = self._assembler.add(frame)
            if message is not None:
                payload, _ = validate_message(
                    message.opcode, message.rsvd, message.payload, max_size=None, deflate=self.deflate
                )
                yield Frame(payload, message.opcode)
        # Behind the good ones.
        self._frames.check()

    def end(self) -> Iterator[HTTPResponse]:
        """The connection has ended; yield the answer that this completes."""
        if self._answer is not None and self._answer.until_close:
            self._answer.close()
            yield self._read_answer(self._answer)

    def _read_answer(self, answer: ResponseParser) -> HTTPResponse:
        # Before anything behind it is read: the handler may have written frames right after its 101.
        response = self.response = HTTPResponse(answer)
        if response.status == 101:
            self.subprotocol, self.deflate = self._check(response.status, response.headers)
            self._answer = None
        return response
