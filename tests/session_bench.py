"""``Sessions`` over a writer and timers that only note what they are told, so that interleavings are exact."""

from __future__ import annotations

from typing import Any

from greentx.frames import Opcode, build_close, build_flags, build_frame
from greentx.handshake import accept_key, new_key, request_headers
from greentx.registry import Entry, Registry
from greentx.session import Sessions, WebSocketOptions
from greentx.wire import CANCEL, Request

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
    """What Sessions asks of a context: timers."""

    open = True

    def timer(self, seconds: float, repeat: float = 0.0) -> Timer:
        return Timer(seconds)

    def unwatch(self, timer: Timer) -> None:
        timer.stop()
        timer.closed = True


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
        self.failure: Exception | None = None

    def write(self, sender: str, conn_id: str, data: bytes, *, wait: bool = True) -> None:
        self.write_many(sender, [conn_id], data)

    def write_many(self, sender: str, conn_ids: list[str], data: bytes) -> list[str]:
        assert sender == SENDER
        if self.failure is not None:
            raise self.failure
        self.sent.append((list(conn_ids), data))
        return [one for one in conn_ids if one in self.slow]

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
    """Sessions with all around it, and words for what clients do."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.writer = Writer()
        self.registry = Registry()
        self.events: list[Request] = []
        self.options = WebSocketOptions(**options)
        self.sessions = Sessions(
            Context(),  # type: ignore[arg-type]
            self.writer,  # type: ignore[arg-type]
            self.registry,
            self.options,
            self.events.append,
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
        self.sessions.message(Request(SENDER, conn_id, "/", headers, payload))

    def notice(self, conn_id: str = "1") -> bool:
        return self.sessions.gone(Request(SENDER, conn_id, "@*", {"METHOD": "JSON"}, b'{"type":"disconnect"}'))

    def wait(self, seconds: float) -> None:
        """Let time pass, and let what is due then happen."""
        self.now += seconds
        for timer in (self.sessions._fault_timer, self.sessions._timer):
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
