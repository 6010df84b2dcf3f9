"""Who is alive and who is not: pings, silence, busy processes and servers that go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import zmq.green as zmq
from front_ends import ONE_FRONT_END, ONLY_MONGREL2, FrontEnd
from websocket_rig import echo, kill, rig, sharing, until

from greentx import Transceiver
from greentx.edge import Handler
from greentx.protocol.websocket.frames import Opcode


@pytest.fixture(scope="module", autouse=True)
def one_server(front_end: FrontEnd) -> Iterator[None]:
    """For all tests that do not ask for settings."""
    with sharing(front_end):
        yield


def answer_pings(raw: Any) -> None:
    """Read for ever, answering pings as a browser does."""
    while (frame := raw.recv()) is not None:
        if frame.opcode == Opcode.PING:
            raw.send(frame.payload, Opcode.PONG)


def test_who_is_silent_is_ended_and_who_answers_stays() -> None:
    """1011 and its reason on the wire, one close event with 1006."""
    ends = []

    def handler(ws: Any) -> None:
        echo(ws)
        ends.append((ws.path, ws.close_code, ws.close_reason))

    with rig(handler, ping_timeout=0.3) as one:
        alive, silent = one.raw(path="/alive"), one.raw(path="/silent")
        answering = gevent.spawn(answer_pings, alive)
        close = None
        while (frame := silent.recv()) is not None:
            close = frame
        assert close is not None
        assert (close.opcode, close.payload) == (Opcode.CLOSE, (1011).to_bytes(2, "big") + b"ping timeout")
        until(lambda: ends)
        gevent.sleep(1)  # what must not happen has no event
        assert ends == [("/silent", 1006, "ping timeout")]
        assert not answering.dead
        answering.kill()
        alive.close()
        silent.close()


@ONE_FRONT_END
def test_a_process_that_was_busy_drops_nobody() -> None:
    """The hub is blocked for several intervals; the pongs had come meanwhile, and are looked at first."""
    with rig(ping_timeout=0.4) as one:
        process = subprocess.Popen([sys.executable, "-c", BROWSERS.replace("PORT", str(one.mongrel2.port))])
        try:
            until(lambda: len(one.trans.websockets) == 20)
            for _ in range(3):
                gevent.sleep(0.5)  # the time itself is what is tested
                time.sleep(1.0)  # blocks the hub: that is what is tested
            gevent.sleep(1.0)  # the time itself is what is tested
            assert len(one.trans.websockets) == 20
        finally:
            process.kill()
            process.wait()


# Twenty browsers in a process of their own, which goes on while this one is blocked: they answer pings.
BROWSERS = """
import base64, os, select, socket, sys
socks = []
for _ in range(20):
    sock = socket.create_connection(("127.0.0.1", PORT))
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall((
        "GET / HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
        "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: " + key + "\\r\\n\\r\\n").encode())
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n"):
        head += sock.recv(1)
    socks.append(sock)
while True:
    for sock in select.select(socks, [], [])[0]:
        head = sock.recv(2, socket.MSG_WAITALL)
        if len(head) < 2 or head[0] != 0x89:
            sys.exit(f"unexpected {head}")
        data = sock.recv(head[1], socket.MSG_WAITALL)
        sock.sendall(bytes((0x8A, 0x80 | len(data), 0, 0, 0, 0)) + data)
"""


def test_idle_connections_do_not_fall_to_the_servers_limit() -> None:
    """With a limit of a second Mongrel2 ends who is silent; pings, and the pongs to them, keep both busy."""
    settings = {
        "limits.min_ping": 1,
        "limits.min_read_rate": 1000,
        "limits.min_write_rate": 1000,
        "limits.tick_timer": 1,
    }
    with rig(settings=settings, ping_timeout=0.3) as one, one.raw() as raw:
        answering = gevent.spawn(answer_pings, raw)
        gevent.sleep(4)  # the time itself is what is tested
        assert not answering.dead and len(one.trans.websockets) == 1
        answering.kill()
    with rig(settings=settings, ping_timeout=None) as one, one.raw() as raw:
        answering = gevent.spawn(answer_pings, raw)
        answering.join(8)
        assert answering.dead  # the limits are the ones that matter


@ONLY_MONGREL2
def test_the_next_ping_finds_out_who_was_ended_without_a_notice() -> None:
    """The server killed it and told nobody."""
    with rig(ping_timeout=0.2) as one, one.raw() as raw:
        until(lambda: one.sockets)
        kill(one, [int(one.sockets[0].sid[1])])
        assert raw.recv() is None or raw.recv() is None
        until(lambda: one.sockets[0].close_code)
        assert one.sockets[0].close_code == 1006 and len(one.trans.websockets) == 0


def test_a_server_that_restarts_ends_all_and_new_clients_are_others() -> None:
    """Ids begin at 1 again; what was sent to the old ones reaches no stranger."""
    with rig(settings={"limits.tick_timer": 5}) as one:
        old = [one.raw() for _ in range(3)]
        until(lambda: len(one.sockets) == 3)
        one.mongrel2.kill()
        until(lambda: all(ws.close_code == 1006 for ws in one.sockets))
        assert len(one.trans.websockets) == 0
        for ws in one.sockets:
            assert ws.receive() is None
        for raw in old:
            raw.close()
        one.mongrel2.start()
        one.trans.wait_ready(10)
        with one.raw() as raw:
            raw.send(b"new")
            assert raw.recv().payload == b"new"
            assert one.sockets[3].sid == one.sockets[0].sid
            one.sockets[0].leave("room")
            one.sockets[0].close()
            raw.send(b"still here")
            assert raw.recv().payload == b"still here"


def test_a_reader_that_is_slow_but_goes_on_is_not_taken_for_dead() -> None:
    """Its pong comes late, behind megabytes; with flow control its progress is seen."""
    total = 64 << 20

    def handler(ws: Any) -> None:
        ws.send(b"s" * total)
        echo(ws)

    settings = {"download.flow_control": 1}
    with rig(handler, settings=settings, ping_timeout=0.6) as one, one.raw(receive_buffer=65536) as raw:
        got = 0
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline and got < total:
            got += len(raw.sock.recv(65536))
            gevent.sleep(0.01)  # reads slowly
        assert got < total
        assert len(one.trans.websockets) == 1


def test_a_handler_that_left_replies_to_the_dead_behind_does_not_lock_its_successor_out(front_end: FrontEnd) -> None:
    """Mongrel2 wants to send the notice before it reads the successor's connection: somebody has to be there for it."""
    with front_end.started({"/": Handler("rig")}) as server:
        entry = server.handlers[0]
        context = zmq.Context()
        try:
            reply = context.socket(zmq.XPUB)
            reply.connect(entry.recv_spec)
            assert reply.recv() == b"\x01"
            reply.send(b"rig 5:12345, to somebody who has gone")
            gevent.sleep(0.1)  # the bytes get to the other side, which tells nobody
        finally:
            context.destroy(1000)
        with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False) as trans:
            trans.wait_ready(5)


@ONE_FRONT_END
@pytest.mark.parametrize("flow_control", [0, 1])
def test_a_server_that_stands_still_drops_nobody_and_the_silent_are_ended_all_the_same(flow_control: int) -> None:
    """Three times it is stopped for several intervals, in which no pong can come; before and after, pongs count."""
    with rig(ping_timeout=1.0, settings={"download.flow_control": flow_control}) as one:
        process = subprocess.Popen([sys.executable, "-c", BROWSERS.replace("PORT", str(one.mongrel2.port))])
        try:
            until(lambda: len(one.trans.websockets) == 20)
            pid = one.mongrel2.pid
            assert pid is not None
            for _ in range(3):
                gevent.sleep(0.7)  # somewhere between two pings and their pongs
                os.kill(pid, signal.SIGSTOP)
                try:
                    gevent.sleep(3.5)  # the time itself is what is tested
                finally:
                    os.kill(pid, signal.SIGCONT)
            with one.raw(path="/silent") as silent:
                started = time.monotonic()
                assert silent.recv_close() == 1011
                assert time.monotonic() - started < 10
            assert len(one.trans.websockets) == 20
        finally:
            process.kill()
            process.wait()


@ONLY_MONGREL2
def test_a_peer_in_the_middle_of_a_fragmented_message_is_alive(front_end: FrontEnd) -> None:
    """It comes to its pongs only behind the message; the server says how much it has read. One that stops is ended."""
    with front_end.started({"/": Handler("rig")}) as server:
        with rig(ping_timeout=0.5, mongrel2=server, server_control=server.control_spec) as one, one.raw() as raw:
            began = time.monotonic()
            raw.send(b"0", Opcode.TEXT, fin=False)
            while time.monotonic() - began < 4:
                gevent.sleep(0.1)  # slowly, which is what is tested
                raw.send(b"1", Opcode.CONT, fin=False)
            raw.send(b"2", Opcode.CONT)
            frame = raw.recv()
            while frame is not None and frame.opcode == Opcode.PING:
                frame = raw.recv()
            assert frame is not None and frame.opcode == Opcode.TEXT
            assert frame.payload.startswith(b"011") and frame.payload.endswith(b"12")
            # From now on it sends nothing, nor a pong.
            assert raw.recv_close() == 1011
