"""What one peer can make the handler keep in memory, seen from outside: sent, and then the most that was held.

Each scenario prints by how many MiB the handler grew for half a second and longer. What is held for less is on its way
through ZeroMQ, which bounds messages and not their bytes: how much that is depends on who gets the processor. Meanwhile
others are answered.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator

import gevent
import zmq.green as zmq
from harness import SENDER, Broken, Browser, RawClient, Rig, Run, scenario

from greentx.protocol.requests import build_request
from greentx.protocol.websocket.deflate import DeflateConfig, accept, offer
from greentx.protocol.websocket.frames import Opcode, build_frame
from greentx.protocol.websocket.handshake import new_key, request_headers

MIB = 1024 * 1024


class _Growth:
    """The most memory that a handler held for `seconds` while the block ran, above what it had before."""

    def __init__(self, rig: Rig, seconds: float = 0.5) -> None:
        self._rig = rig
        self._before = rig.handler.memory()
        self._seconds = seconds
        self._fewest = 10  # looks: on a busy machine they are far between, and two may meet two peaks
        self._looks: deque[tuple[float, int]] = deque()
        self.bytes = 0

    def watch(self) -> None:
        while True:
            now = time.monotonic()
            self._looks.append((now, self._rig.handler.memory() - self._before))
            if now - self._looks[0][0] >= self._seconds and len(self._looks) >= self._fewest:
                self.bytes = max(self.bytes, min(grown for _, grown in self._looks))
                self._looks.popleft()
            gevent.sleep(0.01)  # between two looks


@contextlib.contextmanager
def _bounded(run: Run, rig: Rig, what: str, most_mib: int) -> Iterator[None]:
    rig.callers(4, pause=0.01)
    rig.progress(50)
    growth = _Growth(rig)
    watching = gevent.spawn(growth.watch)
    try:
        yield
    finally:
        watching.kill()
    if watching.exception is not None or rig.handler.status is not None:
        raise Broken(f"the handler ended with {rig.handler.status}")
    rig.progress(50)
    rig.finish()
    run.note(f"{what}: +{growth.bytes / MIB:.0f} MiB")
    if growth.bytes > most_mib * MIB:
        raise Broken(f"{growth.bytes / MIB:.0f} MiB were held, the bound is {most_mib}")
    rig.check()


@scenario(seconds=2.0)
def inflated_messages(run: Run, *, messages: int = 480, seconds: float = 5.0, most_mib: int = 64) -> None:
    """Deflated messages wait for a slow application as what they are in memory, and not as what they were sent as."""
    with run.rig() as rig, _bounded(run, rig, f"{messages} messages of 1 MiB, deflated", most_mib):
        config = DeflateConfig()
        headers = {"Sec-WebSocket-Extensions": offer(config)}
        with RawClient(rig.server.port, headers=headers, path="/slow") as client:
            deflate = accept(client.answer.partition(b"Extensions: ")[2].partition(b"\r\n")[0].decode(), config)
            assert deflate is not None
            with contextlib.suppress(OSError):  # it may be ended for what it sends
                for _ in range(messages):
                    client.send(deflate.encode(bytes(MIB - 1))[0], Opcode.BINARY, 4)
            gevent.sleep(seconds)  # so long the application gets nowhere


@scenario(messages=20, seconds=1.5)
def early_messages(
    run: Run, *, messages: int = 100, size: int = 11 * MIB, seconds: float = 4.0, most_mib: int = 128
) -> None:
    """What a browser sends before it was let in is bounded by the size of a message, too."""
    with run.rig(handshake_seconds=seconds) as rig, _bounded(run, rig, f"{messages} of {size / MIB:.0f} MiB", most_mib):
        frame = build_frame(bytes(size), Opcode.BINARY, mask=bytes(4))
        with RawClient(rig.server.port, upgrade=False) as client:
            client.request("/", request_headers(new_key()))
            with contextlib.suppress(OSError):  # it may be ended for what it sends
                for _ in range(messages):
                    client.sock.sendall(frame)
            gevent.sleep(seconds)  # until it has been let in


@scenario(posts=300, seconds=1.5)
def pipelined_bodies(
    run: Run, *, posts: int = 900, size: int = MIB - 1024, seconds: float = 5.0, most_mib: int = 128
) -> None:
    """Requests that wait for the one before them on their connection are bounded in bytes."""
    with run.rig() as rig, _bounded(run, rig, f"{posts} bodies of {size / MIB:.0f} MiB", most_mib):
        with Browser(rig.server, timeout=seconds) as browser:
            browser.ask(f"/echo/first?wait={seconds}")
            head = f"POST /echo/more HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
            with contextlib.suppress(OSError):  # it may be ended for what it sends
                for _ in range(posts):
                    browser.send(head, bytes(size))
            gevent.sleep(seconds)  # so long the first of them takes


@scenario(commands=200)
def refused_commands(run: Run, *, commands: int = 5000, size: int = 60 * 1024, most_mib: int = 32) -> None:
    """Commands that the control socket refuses leave nothing behind, nor do those that it does not even read."""
    messages = [_junk(size)] * commands + [_junk(10 * MIB)] * 5
    with run.rig() as rig, _bounded(run, rig, f"{commands} commands of {size // 1024} KiB", most_mib):
        for answer in _commanded(rig, messages):
            if answer is not None and (not answer.startswith(b"ERROR") or len(answer) > 512):
                raise Broken(f"a command that means nothing was answered with {len(answer)} bytes {answer[:100]!r}")


@scenario(pings=20)
def proofs(run: Run, *, pings: int = 200, most_seconds: float = 0.5) -> None:
    """Proofs that anybody asks for on the control socket do not hold up what browsers get."""
    with run.rig() as rig:
        rig.callers(4, pause=0.01)
        rig.progress(50)
        since = len(rig.tally.latencies)
        headers = {"METHOD": "MONGREL2", "QUERY": "text=proof"}
        messages = [build_request(SENDER, "-1", "/__ping__", headers) for _ in range(pings)]
        for _answer in _commanded(rig, messages):
            pass
        rig.progress(100, timeout=pings + 20)
        rig.finish()
        slowest = rig.tally.percentile(1.0, since=since)
        run.note(f"{pings} proofs, the slowest answer took {slowest:.2f} s")
        rig.check()
        if slowest > most_seconds:
            raise Broken(f"proofs held up an answer for {slowest:.2f} s")


def _junk(size: int) -> bytes:
    body = b'{"push": "' + bytes(size) + b'"}'
    return build_request("x", "-1", "/__add_connection__", {"METHOD": "JSON"}, body)


def _commanded(rig: Rig, messages: Iterable[bytes]) -> Iterator[bytes | None]:
    """Send each to the control socket, and yield its answer; ``None`` where none came, as for one that is too large."""
    context = zmq.Context()
    try:
        for message in messages:
            request = context.socket(zmq.REQ)
            request.linger = 0
            request.connect(f"tcp://127.0.0.1:{rig.handler.port}")
            request.send(message)
            answer: bytes | None = None
            with gevent.Timeout(0.5, False):
                answer = request.recv()
            request.close()
            yield answer
    finally:
        context.destroy(0)


@scenario(messages=200, seconds=1.0)
def unread_messages(
    run: Run, *, messages: int = 2000, size: int = MIB // 4, seconds: float = 5.0, most_mib: int = 64
) -> None:
    """What is broadcast waits in bounded amounts for a browser that does not read."""
    settings: dict[str, int | str] = {"download.flow_control": 1}
    with run.rig(settings=settings) as rig, _bounded(run, rig, f"{messages} of {size // 1024} KiB", most_mib):
        with RawClient(rig.server.port, receive_buffer=4096):
            rig.until(lambda: (rig.status() or {}).get("websockets") == 1, "a WebSocket")
            for _ in range(messages):
                rig.ask(f"/broadcast?size={size}")
            gevent.sleep(seconds)  # it goes on not reading


def _is_served(rig: Rig) -> bool:
    try:
        rig.ask("/nothing")
    except Broken:
        return False
    return True


@scenario(places=64, idle=100, min_ping=2, seconds=20.0)
def idle_connections(
    run: Run, *, places: int = 10240, idle: int = 10240, min_ping: int = 120, seconds: float = 200.0
) -> None:
    """More idle and half-sent connections than the front end of a WSGI server accepts: it serves again."""
    settings: dict[str, int | str] = {
        "superpoll.max_fd": places,
        "limits.min_ping": min_ping,
        "limits.tick_timer": min(10, max(1, min_ping // 2)),
    }
    with run.rig(mode="own", settings=settings) as rig:
        rig.callers(1, count=10)
        rig.join(10)
        with contextlib.ExitStack() as stack:
            for number in range(idle):
                with contextlib.suppress(OSError):
                    browser = stack.enter_context(Browser(rig.front, timeout=0.05))
                    if number % 2:
                        browser.send("GET / HTTP/1.1\r\nHo")
            began = time.monotonic()
            # While all places are taken it is refused, and so not one of those that are counted.
            rig.until(lambda: _is_served(rig), "an answer", timeout=seconds)
            run.note(f"served again after {time.monotonic() - began:.1f} s")
            rig.callers(4, count=5)
            rig.progress(20)
        rig.finish()
        rig.check()
