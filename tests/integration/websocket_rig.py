"""A front end with a Transceiver behind it, and clients that do what no library does."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import tnetstring
import zmq.green as zmq
from front_ends import FrontEnd
from gevent import socket

from greentx import Transceiver
from greentx.edge import Handler
from greentx.protocol.websocket.frames import CloseCode, Frame, FrameParser, Opcode, build_close, build_frame
from greentx.protocol.websocket.handshake import accept_key, new_key, request_headers

MASK = b"\x01\x02\x03\x04"


class Rig:
    """What a test of WebSockets needs.

    Attributes:
        mongrel2: The server, or the embedded front end in its place.
        trans: The Transceiver behind it, whose ``serve`` runs.
        sockets: Every WebSocket that the handler got, in order.
    """

    def __init__(self, mongrel2: Any, trans: Transceiver) -> None:
        self.mongrel2 = mongrel2
        self.trans = trans
        self.sockets: list[Any] = []

    @property
    def url(self) -> str:
        return self.mongrel2.url.replace("http", "ws")

    def raw(self, **options: Any) -> RawClient:
        """A connected client; close it, or use it as a context manager."""
        return RawClient(self.mongrel2.port, **options)


_front_end = FrontEnd("mongrel2")
_shared: list[Any] = []


@contextlib.contextmanager
def sharing(front_end: FrontEnd) -> Iterator[None]:
    """One server of this kind for all rigs that want nothing special, and what the others have of their own.

    Half a second passes before a new Mongrel2 takes its first request.
    """
    global _front_end
    before, _front_end = _front_end, front_end
    with front_end.started({"/": Handler("rig")}) as server:
        _shared.append(server)
        try:
            yield
        finally:
            _shared.clear()
            _front_end = before


@contextlib.contextmanager
def rig(
    websocket: Callable[[Any], object] | None = None,
    handler: Callable[[Any, Any], object] | None = None,
    *,
    settings: dict[str, int | str] | None = None,
    routes: dict[str, Handler] | None = None,
    mongrel2: Any = None,
    **options: Any,
) -> Iterator[Rig]:
    """Run both, or a handler behind a *mongrel2* that runs already; *websocket* echoes by default."""
    with contextlib.ExitStack() as stack:
        if mongrel2 is not None:
            pass
        elif _shared and settings is None and routes is None:
            mongrel2 = _shared[0]
        else:
            mongrel2 = stack.enter_context(_front_end.started(routes or {"/": Handler("rig")}, settings=settings))
        entry = mongrel2.handlers[0]
        options = {"rep_port": False, "ping_timeout": None, **options}
        with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, **options) as trans:
            trans.wait_ready(10)
            one = Rig(mongrel2, trans)

            def serve_one(ws: Any) -> None:
                one.sockets.append(ws)
                (websocket or echo)(ws)

            serving = gevent.spawn(trans.serve, handler, websocket=serve_one)
            try:
                yield one
            finally:
                trans.stop(timeout=0)
                serving.join(5)


def echo(ws: Any) -> None:
    """Send back what comes."""
    for message in ws:
        ws.send(message)


def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run what blocks, such as another library's client, in a native thread, while greenlets go on."""
    return gevent.get_hub().threadpool.spawn(function, *args).get()


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Let greenlets run until *condition* holds."""
    with gevent.Timeout(seconds, AssertionError(f"it did not happen within {seconds} s")):
        while not condition():
            gevent.sleep(0.002)


def ask(one: Rig, *commands: list[Any]) -> list[Any]:
    """Send commands to Mongrel2's control port; return its answers."""
    context = zmq.Context()
    try:
        request = context.socket(zmq.REQ)
        request.linger = 0
        request.connect(one.mongrel2.control_spec)
        answers = []
        for command in commands:
            request.send(tnetstring.dumps(command))
            answers.append(tnetstring.loads(request.recv()))
        return answers
    finally:
        context.destroy(0)


def server_connections(one: Rig) -> list[Any]:
    """What Mongrel2 says about its connections."""
    return list(ask(one, [b"status", {b"what": b"net"}])[0][b"rows"])


def kill(one: Rig, numbers: list[int]) -> None:
    """Have Mongrel2 end connections without telling."""
    ask(one, *([b"kill", {b"id": number}] for number in numbers))


class RawClient:
    """A WebSocket client on a plain socket, which sends any bytes.

    Args:
        port: Of the server.
        host: Of it.
        upgrade: False leaves the handshake to the test.
        receive_buffer: Bytes of the system's buffer, for clients that are slow; ``None`` is the system's choice.
        headers: More of them for the handshake.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        upgrade: bool = True,
        receive_buffer: int | None = None,
        headers: dict[str, str] | None = None,
        path: str = "/",
        early: bytes = b"",
    ) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        # The handler may be a process that is just starting, on a busy machine.
        self.sock.settimeout(20)
        self.sock.connect((host, port))
        self.parser = FrameParser(require_mask=False)
        self.frames: list[Frame] = []
        self.ended = False
        self.answer = b""
        if upgrade:
            self.key = new_key()
            try:
                self.request(path, {**request_headers(self.key), **(headers or {})}, early)
                self.answer = self.read_head()
            except BaseException:
                self.sock.close()
                raise

    def request(self, path: str, headers: dict[str, str], early: bytes = b"") -> None:
        lines = [f"GET {path} HTTP/1.1", "host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + early)

    def read_head(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.sock.recv(65536)
            if not part:
                self.ended = True
                return data
            data += part
        head, _, rest = data.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 101 "):
            assert b"Sec-WebSocket-Accept: " + accept_key(self.key) in head
            self.frames += self.parser.feed(rest)
            return head
        while part := self.sock.recv(65536):
            rest += part
        self.ended = True
        return head + b"\r\n\r\n" + rest

    def send(self, payload: bytes, opcode: int = Opcode.TEXT, rsvd: int = 0, *, fin: bool = True) -> None:
        self.sock.sendall(build_frame(payload, opcode, rsvd, fin=fin, mask=MASK))

    def send_raw(self, opcode: int, payload: bytes = b"", rsvd: int = 0) -> None:
        """A frame that nobody should send: any opcode."""
        frame = bytearray(build_frame(payload, Opcode.TEXT, rsvd, mask=MASK))
        frame[0] = frame[0] & 0xF0 | opcode
        self.sock.sendall(bytes(frame))

    def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        self.send(build_close(code, reason), Opcode.CLOSE)

    def recv(self) -> Frame | None:
        """The next frame; ``None`` at the end of the connection."""
        while not self.frames:
            if self.ended:
                return None
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if data:
                self.frames += self.parser.feed(data)
            else:
                self.ended = True
        return self.frames.pop(0)

    def recv_close(self) -> int | None:
        """Read up to the close frame and the end behind it; return the code, ``None`` where there was no frame."""
        code = None
        while (frame := self.recv()) is not None:
            if frame.opcode == Opcode.CLOSE:
                code = int.from_bytes(frame.payload[:2], "big") or int(CloseCode.NO_STATUS_RECEIVED)
        return code

    def reset(self) -> None:
        """End the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
