"""``WebSockets`` over a writer and timers that only note what they are told, so that interleavings are exact."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from greentx.handler.websockets import WebSocketOptions, WebSockets
from greentx.protocol.bounds import MAX_QUEUE_BYTES, Queued
from greentx.protocol.replies import CANCEL
from greentx.protocol.request import Request
from greentx.protocol.websocket.frames import Opcode, build_close, build_flags, build_frame
from greentx.protocol.websocket.handshake import accept_key, new_key, request_headers
from greentx.protocol.websocket.registry import Entry, Registry

SENDER = "test"


class Timer:
    """A timer that goes off when the test says so."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.callback: Any = None
        self.closed = False

    def start(self, callback: Any) -> None:
        self.callback = callback

    again = start

    def stop(self) -> None:
        self.callback = None


class Context:
    """What WebSockets ask of a context: timers."""

    open = True

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def timer(self, seconds: float, repeat: float = 0.0) -> Timer:
        self.timers.append(Timer(seconds))
        return self.timers[-1]

    def unwatch(self, timer: Timer) -> None:
        timer.stop()
        timer.closed = True


class Placed:
    """What was written, which nobody waits for here."""

    def __init__(self, slow: list[str]) -> None:
        self.slow = slow

    def wait(self) -> None:
        pass


class Writer:
    """Keeps what was written, by connection; the end of a connection is ``None``."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[str], bytes | None]] = []
        self.cancelled: list[str] = []
        self.forgotten: list[str] = []
        self.slow: list[str] = []
        self.backlog = 0
        self.taken: dict[str, int] = {}
        self.pipe_full = False
        accounts = SimpleNamespace(paced=True, confirmed=self.confirmed)
        self.flow = SimpleNamespace(control=accounts, waiting=self.waiting)
        self.failure: Exception | None = None

    def write(self, sender: str, conn_id: str, data: bytes, *, head: bytes = b"", wait: bool = True) -> None:
        data = head + data
        self.write_many(sender, [conn_id], data)

    def write_many(self, sender: str, conn_ids: list[str], data: bytes) -> list[str]:
        assert sender == SENDER
        if self.failure is not None:
            raise self.failure
        self.sent.append((list(conn_ids), data))
        return [one for one in conn_ids if one in self.slow]

    def place_many(self, sender: str, frames: list[tuple[bytes, list[str]]], policy: str = "") -> Placed:
        return Placed([one for data, conn_ids in frames for one in self.write_many(sender, conn_ids, data)])

    def close(self, sender: str, conn_ids: list[str], *, wait: bool = True) -> None:
        self.sent.append((list(conn_ids), None))

    def control(self, sender: str, conn_ids: list[str], body: bytes) -> None:
        assert body == CANCEL
        assert len(conn_ids) <= 128
        self.cancelled += conn_ids

    def forget(self, conn_id: str) -> None:
        self.forgotten.append(conn_id)

    def waiting(self, conn_id: str) -> int:
        return self.backlog

    def confirmed(self, conn_id: str) -> int | None:
        return self.taken.get(conn_id)

    def to(self, conn_id: str) -> list[bytes | None]:
        return [data for conn_ids, data in self.sent if conn_id in conn_ids]


class Bench:
    """WebSockets with all around them, and words for what clients do."""

    def __init__(self, max_queue_bytes: int = MAX_QUEUE_BYTES, **options: Any) -> None:
        self.now = 1000.0
        self.writer = Writer()
        self.registry = Registry()
        self.events: list[Request] = []
        self.queued = Queued(max_queue_bytes)
        self.options = WebSocketOptions(**options)
        self.context = Context()
        self.sessions = WebSockets(
            self.context,  # type: ignore[arg-type]  # a stand-in
            self.writer,  # type: ignore[arg-type]  # a stand-in
            self.registry,
            self.options,
            self.queued,
            self.events.append,
            ended=lambda event: None,
            name="test",
        )

    def handshake(self, conn_id: str = "1", **headers: Any) -> None:
        self.sessions.handshake(handshake_request(conn_id, **headers))

    def connect(self, *conn_ids: str, **headers: Any) -> list[Entry]:
        for conn_id in conn_ids or ("1",):
            self.handshake(conn_id, **headers)
        entries = [self.registry.get((SENDER, conn_id)) for conn_id in conn_ids or ("1",)]
        self.events.clear()
        self.writer.sent.clear()
        return [entry for entry in entries if entry is not None]

    def frame(self, payload: bytes, opcode: int = Opcode.TEXT, rsvd: int = 0, conn_id: str = "1", **more: str) -> None:
        headers = {"METHOD": "WEBSOCKET", "PATH": "/", "FLAGS": build_flags(opcode, rsvd), **more}
        request = Request(SENDER, conn_id, "/", headers, payload)
        if self.sessions.message(request):
            self.events.append(request)

    def notice(self, conn_id: str = "1") -> bool:
        return self.sessions.gone(Request(SENDER, conn_id, "@*", {"METHOD": "JSON"}, b'{"type":"disconnect"}'))

    def wait(self, seconds: float) -> None:
        """Let time pass, and let what is due then happen."""
        self.now += seconds
        for timer in self.context.timers:
            if timer.callback is not None:
                timer.callback()

    def ends(self) -> list[tuple[int | None, str]]:
        return [(one.close_code, one.close_reason) for one in self.events if one.method == "WEBSOCKET_CLOSE"]

    def methods(self) -> list[str]:
        return [event.method for event in self.events]


def handshake_request(conn_id: str = "1", **headers: Any) -> Request:
    key = new_key()
    deflate = headers.pop("deflate", None)
    fields: dict[str, Any] = {"METHOD": "WEBSOCKET_HANDSHAKE", "VERSION": "HTTP/1.1", "PATH": "/", "host": "here"}
    fields.update(request_headers(key, deflate=deflate))
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    return Request(SENDER, conn_id, "/", fields, accept_key(key))


def close_frame(code: int | None, reason: str = "") -> bytes:
    return build_frame(build_close(code, reason), Opcode.CLOSE)
