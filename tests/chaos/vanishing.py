"""Browsers that half-close, reset, send a part, or never read: nobody else notices."""

from __future__ import annotations

import contextlib
import random
import socket as native
import struct

import gevent
from gevent import socket
from harness import Broken, Browser, RawClient, Rig, Run, scenario


@scenario(seconds=2.0)
def vanishing_browsers(run: Run, *, seconds: float = 20.0, vanishers: int = 20, mode: str = "serve") -> None:
    """They leave at any moment and in any way; what the others get is right, and the handler forgets those who left."""
    # Of a WebSocket that is reset while its 101 is written Mongrel2 may say nothing: then the pings find it out.
    with run.rig(mode=mode, settings={"limits.content_length": 1024 * 1024}, ping_timeout=1.0) as rig:
        rig.callers(6)
        rig.callers(2, depth=4, size=3000)
        rig.callers(2, upload=50_000)
        rig.talkers(4)
        rig.progress(50)
        leaver = Leaver(rig)
        leaving = [gevent.spawn(leaver.run) for _ in range(vanishers)]
        gevent.sleep(seconds)  # so long they come and go
        gevent.killall(leaving)
        # With their tracebacks, and so their connections.
        leaving.clear()
        rig.progress(50)
        rig.finish()
        run.note(f"{leaver.left} vanished")
        rig.check()
        rig.until(lambda: _open_requests(rig) == 0, "the requests of those who left to be forgotten")
        rig.until(lambda: (rig.status() or {}).get("websockets") == 0, "their WebSockets to be forgotten")


class Leaver:
    """A browser that comes again and again, and vanishes each time at some moment and in some way.

    Attributes:
        left: How often it did.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.left = 0

    def run(self) -> None:
        """Do so until it is killed."""
        ways = (_half_close, _reset_waiting, _reset_in_an_answer, _part_of_a_body, _part_of_a_head, _reset_websocket)
        while True:
            with contextlib.suppress(OSError, AssertionError):
                random.choice(ways)(self._rig)
                self.left += 1
            gevent.sleep(random.random() * 0.05)  # they come one after the other


def _half_close(rig: Rig) -> None:
    with Browser(rig.server, timeout=5.0) as browser:
        browser.ask(f"/echo/half?wait={random.random() * 0.1}")
        browser.socket.shutdown(native.SHUT_WR)
        # The answer is lost (probed): Mongrel2 takes a half-closed connection for one that has ended.
        while browser.socket.recv(65536):
            pass


def _reset_waiting(rig: Rig) -> None:
    with Browser(rig.server) as browser:
        browser.ask("/echo/waiting?wait=0.2")
        gevent.sleep(random.random() * 0.2)  # at any moment
        _reset(browser.socket)


def _reset_in_an_answer(rig: Rig) -> None:
    with Browser(rig.server, receive_buffer=4096) as browser:
        browser.ask("/echo/large?size=500000")
        browser.socket.recv(1000)
        _reset(browser.socket)


def _part_of_a_body(rig: Rig) -> None:
    with Browser(rig.server) as browser:
        browser.send("POST /echo/part HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", b"x" * 50_000)
        _reset(browser.socket)


def _part_of_a_head(rig: Rig) -> None:
    with Browser(rig.server) as browser:
        browser.send("GET /echo/part HTTP/1.1\r\nHo")
        _reset(browser.socket)


def _reset_websocket(rig: Rig) -> None:
    client = RawClient(rig.server.port)
    client.send(b"vanishing")
    client.reset()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _open_requests(rig: Rig) -> int:
    status = rig.status()
    return sum(one["open_requests"] for one in status["connections"]) if status is not None else -1


# Of the short form only what holds up others for good is looked for: its machine is busy with other tests.
@scenario(requests=120, flow_control="1", most_ms=300.0)
def never_reading(
    run: Run,
    *,
    requests: int = 2000,
    readers: int = 10,
    size: int = 5_000_000,
    pool: int = 10,
    most_ms: float = 50.0,
    flow_control: str = "0,1",
) -> None:
    """Browsers that ask for much and never read delay nobody: the others' 99th percentile hardly moves."""
    slow = []
    for mode in ("recv", "serve", "wsgi"):
        for setting in flow_control.split(","):
            settings: dict[str, int | str] = {"download.flow_control": int(setting)}
            with run.rig(mode=mode, pool=pool, settings=settings, patience=20.0) as rig:
                rig.callers(1, count=20)
                rig.join(30)
                alone = _p99(rig, requests)
                with contextlib.ExitStack() as stack:
                    for _ in range(readers):
                        browser = stack.enter_context(Browser(rig.server, receive_buffer=4096))
                        browser.ask(f"/echo/never?size={size}")
                    gevent.sleep(1.0)  # until what the system's buffers hold has gone out, which is work
                    beside = _p99(rig, requests)
                more = (beside - alone) * 1000
                case = f"{mode}{' with flow control' if int(setting) else ''}"
                run.note(f"{case} +{more:.0f} ms")
                if more > most_ms:
                    slow.append(case)
                else:
                    rig.check()
    if slow:
        raise Broken(f"{readers} browsers that never read delay others by over {most_ms:g} ms: {', '.join(slow)}")


def _p99(rig: Rig, requests: int) -> float:
    # The best of some: what else a busy machine does is not looked for.
    found = []
    for _ in range(3):
        since = len(rig.tally.latencies)
        rig.callers(4, count=requests // 4, pause=0.002)
        try:
            rig.join(10 + requests * 0.02)
        except Broken:
            return float("inf")  # they are not answered at all
        found.append(rig.tally.percentile(0.99, since=since))
    return min(found)
