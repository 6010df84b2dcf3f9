"""kill -9, of either side, under load."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import gevent
from harness import HANDLER_DIED, SERVER_DIED, Broken, RawClient, ReadyWatch, Rig, Run, pid_of_mongrel2, scenario

from greentx.protocol.websocket.frames import Opcode

#: By which codes WebSockets may end where their server has died, or their handler.
SERVER_GONE = (1006,)
HANDLER_GONE = (1006, 1012)


@scenario(kills=2, flow_control=1)
def kill_mongrel2(run: Run, *, kills: int = 20, flow_control: int = 0, mode: str = "serve") -> None:
    """Killed again and again: answered at once when it is back, and nobody gets what was meant for another life."""
    with run.rig(mode=mode, settings={"download.flow_control": flow_control}) as rig:
        rig.callers(8)
        rig.callers(4, depth=4, size=3000)
        rig.callers(4, size=200_000)
        rig.callers(2, upload=50_000)
        rig.talkers(4)
        rig.talkers(2, deflate=True, size=2000)
        with ReadyWatch(rig):
            for _ in range(kills):
                rig.progress(200)
                gevent.sleep(random.random() * 0.2)  # at any moment
                rig.restart_server()
            rig.progress(200)
        rig.finish()
        rig.check(ended=SERVER_GONE)


@scenario(kills=1)
def kill_handler(run: Run, *, kills: int = 10, mode: str = "serve") -> None:
    """Killed again and again: what comes later is answered by the next one, also on connections that were open."""
    # A request that was lost is never answered: the browser gives up after this.
    with run.rig(mode=mode, patience=4.0) as rig:
        rig.callers(8, pause=0.005)
        rig.callers(2, depth=4, size=3000, pause=0.005)
        rig.callers(2, upload=50_000, pause=0.005)
        rig.talkers(4)
        for _ in range(kills):
            rig.progress(100, timeout=10)
            with rig.fault(HANDLER_DIED):
                rig.handler.kill()
                # What mongrel2 wrote to the connection before it saw its end.
                gevent.sleep(0.05)
            rig.start_handler()
        began = time.monotonic()
        rig.progress(100, timeout=10)
        run.note(f"answered again {time.monotonic() - began:.1f} s after the next one was there")
        rig.finish()
        rig.check(ended=HANDLER_GONE)


@scenario(kills=1)
def orphans(run: Run, *, kills: int = 5, listeners: int = 20, ping_timeout: float = 1.0) -> None:
    """WebSockets that only listen hear of the end of their handler by the next one, within two of its pings."""
    with run.rig(ping_timeout=ping_timeout, asks_server=True) as rig:
        rig.callers(4, pause=0.01)
        longest = 0.0
        for _ in range(kills):
            listening = [gevent.spawn(_listen, rig) for _ in range(listeners)]
            rig.until(lambda: (rig.status() or {}).get("websockets") == listeners, "WebSockets")
            with rig.fault(HANDLER_DIED):
                rig.handler.kill()
                gevent.sleep(0.05)  # as above
            rig.start_handler()
            began = time.monotonic()
            gevent.joinall(listening, timeout=2 * ping_timeout + 5)
            longest = max(longest, time.monotonic() - began)
            codes = Counter(one.value if one.ready() else "nothing heard" for one in listening)
            gevent.killall(listening)
            if set(codes) != {1012}:
                raise Broken(f"WebSockets of a killed handler got {dict(codes)} instead of 1012")
            rig.progress(50)
        rig.finish()
        run.note(f"all heard of it within {longest:.1f} s")
        rig.check()
        if longest > 2 * ping_timeout + 1:
            raise Broken(f"they heard of it after {longest:.1f} s, with pings of {ping_timeout:g} s")


def _listen(rig: Rig) -> int | None:
    """Answer pings and say nothing; return the code of the close frame, ``None`` where there was none."""
    with RawClient(rig.server.port) as client:
        client.sock.settimeout(None)
        while (frame := client.recv()) is not None:
            if frame.opcode == Opcode.PING:
                client.send(bytes(frame.payload), Opcode.PONG)
            elif frame.opcode == Opcode.CLOSE:
                return int.from_bytes(frame.payload[:2], "big")
    return None


@scenario(kills=2)
def kill_own_mongrel2(run: Run, *, kills: int = 10, most_seconds: float = 2.0) -> None:
    """A WSGI server starts its own again, at once also when it is killed again and again."""
    with run.rig(mode="own") as rig:
        rig.callers(4)
        rig.callers(1, upload=50_000)
        longest = 0.0
        for _ in range(kills):
            rig.progress(100)
            with rig.fault(SERVER_DIED):
                began = time.monotonic()
                os.kill(pid_of_mongrel2(rig.handler.pid), signal.SIGKILL)
                # What the browsers ask of the next one may take a moment to go out.
                gevent.sleep(0.1)
            rig.progress(1, timeout=30)
            longest = max(longest, time.monotonic() - began)
        rig.progress(100)
        rig.finish()
        run.note(f"away for {longest:.1f} s at most")
        rig.check()
        if longest > most_seconds:
            raise Broken(f"it was away for {longest:.1f} s")
