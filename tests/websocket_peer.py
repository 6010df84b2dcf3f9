"""A WebSocket client of a few lines, on a plain socket, that can also do what it should not."""

from __future__ import annotations

from gevent import socket

from greentx.protocol.websocket.frames import Frame, FrameParser, Opcode, build_close, build_frame, parse_close
from greentx.protocol.websocket.handshake import accept_key

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
MASK = b"abcd"
HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + accept_key(KEY) + b"\r\n\r\n"
)


class Peer:
    """One connection; the opening handshake is sent at once, the answer is for :meth:`head` to read."""

    def __init__(
        self, port: int, path: str = "/ws", *, version: int = 13, headers: str = "", host: str = "localhost"
    ) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self.sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: {version}\r\n{headers}\r\n".encode()
        )
        self.parser = FrameParser(require_mask=False)
        self.frames: list[Frame] = []

    def head(self) -> bytes:
        """Return the answer's head, up to the empty line."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            assert byte, data
            data += byte
        return data

    def rest(self) -> bytes:
        """Return what comes until the server closes."""
        return b"".join(iter(lambda: self.sock.recv(4096), b""))

    def send(self, payload: bytes | str, opcode: int | None = None, rsvd: int = 0) -> None:
        """Send one frame: text for str, binary for bytes, where no opcode is given."""
        if opcode is None:
            opcode = Opcode.TEXT if isinstance(payload, str) else Opcode.BINARY
        data = payload.encode() if isinstance(payload, str) else payload
        self.sock.sendall(build_frame(data, opcode, rsvd, mask=MASK))

    def frame(self) -> Frame:
        """Return the next frame."""
        while not self.frames:
            data = self.sock.recv(65536)
            assert data, "the server closed"
            self.frames += self.parser.feed(data)
        return self.frames.pop(0)

    def message(self) -> str | bytes:
        """Return the next message, answering pings on the way."""
        while (frame := self.frame()).opcode == Opcode.PING:
            self.send(frame.payload, Opcode.PONG)
        assert frame.opcode in (Opcode.TEXT, Opcode.BINARY), frame
        return frame.payload.decode() if frame.opcode == Opcode.TEXT else frame.payload

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame."""
        self.send(build_close(code, reason), Opcode.CLOSE)

    def closed(self) -> tuple[int, str]:
        """Read up to the server's close frame, answer it, and return its code and reason."""
        while (frame := self.frame()).opcode != Opcode.CLOSE:
            pass
        return parse_close(frame.payload)
