"""WebSockets that only listen, and whose handler was killed: its successor ends them, with a real mongrel2."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from front_ends import started
from websocket_rig import RawClient, ask, server_connections, until

from greentx import Transceiver
from greentx.edge import Handler, Mongrel2
from greentx.protocol.websocket.frames import Opcode

pytestmark = pytest.mark.mongrel2

#: A handler that lets everybody in, and says so.
HANDLER = """
from greentx import Transceiver
with Transceiver(*{arguments!r}, rep_port=False) as trans:
    for sid, conn, req in trans.recv():
        if req.method == "WEBSOCKET_CONNECT":
            print(sid[1], flush=True)
"""


@pytest.fixture
def mongrel2() -> Iterator[Mongrel2]:
    """With two entries, of two handlers."""
    with started(Mongrel2({"/": Handler("rig"), "/other/": Handler("other")})) as one:
        yield one


def arguments(mongrel2: Mongrel2, number: int = 0) -> tuple[str, str, str]:
    entry = mongrel2.handlers[number]
    assert entry.send_spec is not None and entry.recv_spec is not None
    return entry.sender, entry.send_spec, entry.recv_spec


@contextlib.contextmanager
def listeners(mongrel2: Mongrel2, count: int) -> Iterator[list[RawClient]]:
    """Browsers that only listen, let in by a handler that was killed since."""
    clients: list[RawClient] = []
    with subprocess.Popen(
        [sys.executable, "-c", HANDLER.format(arguments=arguments(mongrel2))], stdout=subprocess.PIPE
    ) as process:
        try:
            clients += [RawClient(mongrel2.port) for _ in range(count)]
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in clients] == [b"%d\n" % (one + 1) for one in range(count)]
        finally:
            process.send_signal(signal.SIGKILL)
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def listen(client: RawClient, ends: list[int | None]) -> None:
    """Answer pings, as browsers do by themselves, until the end; note the code."""
    code = None
    while (frame := client.recv()) is not None:
        if frame.opcode == Opcode.PING:
            client.send(frame.payload, Opcode.PONG)
        elif frame.opcode == Opcode.CLOSE:
            code = int.from_bytes(frame.payload[:2], "big")
    ends.append(code)


@contextlib.contextmanager
def serving(trans: Transceiver) -> Iterator[list[Any]]:
    """The events of a Transceiver, which is stopped in the end."""
    events: list[Any] = []

    def receive() -> None:
        for _sid, _conn, req in trans.recv():
            events.append(req)

    with trans:
        receiving = gevent.spawn(receive)
        trans.wait_ready(10)
        yield events
        trans.stop(timeout=1)
        receiving.get(timeout=5)


def test_the_successor_of_a_killed_handler_ends_those_that_only_listen(mongrel2: Mongrel2) -> None:
    """They are told to connect again; its own WebSockets stay, and so do another handler's, also in a handshake."""
    ends: list[int | None] = []
    other = Transceiver(*arguments(mongrel2, 1), rep_port=False, ping_timeout=None, handshake_events=True)
    with serving(other) as others, listeners(mongrel2, 5) as clients:
        with RawClient(mongrel2.port, path="/other/", upgrade=False) as theirs:
            # It is let in only when all is over: until then a ping would break its handshake.
            theirs.key = "dGhlIHNhbXBsZSBub25jZQ=="
            theirs.request("/other/", {**HANDSHAKE, "Sec-WebSocket-Key": theirs.key})
            until(lambda: others)
            options: dict[str, Any] = {"rep_port": False, "ping_timeout": 0.3}
            with serving(Transceiver(*arguments(mongrel2), **options, server_control=mongrel2.control_spec)) as events:
                mine = RawClient(mongrel2.port)
                mine_ends: list[int | None] = []
                staying = gevent.spawn(listen, mine, mine_ends)
                listening = [gevent.spawn(listen, client, ends) for client in clients]
                gevent.joinall(listening, timeout=20)
                assert ends == [1012] * 5
                assert [event.method for event in events] == ["WEBSOCKET_CONNECT"]
                assert not mine_ends
                ws = other.conn.accept_websocket(others[0])
                assert theirs.read_head().startswith(b"HTTP/1.1 101 ") and theirs.frames == []
                theirs.send(b"hello")
                assert ws.receive() == "hello"
            staying.get(timeout=10)
            assert mine_ends == [1001]
            mine.close()


HANDSHAKE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}


def test_without_the_control_port_they_are_told_when_they_say_something(mongrel2: Mongrel2) -> None:
    """As README says."""
    ends: list[int | None] = []
    with (
        listeners(mongrel2, 2) as clients,
        serving(Transceiver(*arguments(mongrel2), rep_port=False, ping_timeout=0.1)),
    ):
        listening = [gevent.spawn(listen, client, ends) for client in clients]
        gevent.sleep(1)  # what does not happen has no event
        assert ends == []
        for client in clients:
            client.send(b"is anybody there?")
        gevent.joinall(listening, timeout=20)
        assert ends == [1012] * 2


def test_a_control_port_that_does_not_answer_is_named_once_and_asked_again(
    mongrel2: Mongrel2, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    """Nothing else is held up; what is not there yet may come."""
    path = tmp_path / "control"
    with listeners(mongrel2, 1) as clients:
        trans = Transceiver(*arguments(mongrel2), rep_port=False, ping_timeout=0.2, server_control=f"ipc://{path}")
        with serving(trans):
            ends: list[int | None] = []
            listening = gevent.spawn(listen, clients[0], ends)
            until(lambda: "cannot be looked for" in caplog.text)
            assert str(path) in caplog.text
            path.symlink_to(mongrel2.control_spec.removeprefix("ipc://"))
            listening.join(20)
            assert ends == [1012]
    assert caplog.text.count("cannot be looked for") == 1


def test_what_the_control_port_says_of_a_connection(mongrel2: Mongrel2) -> None:
    """Its type tells a WebSocket from the handshake on, and nothing is written to it before the 101."""
    other = Transceiver(*arguments(mongrel2, 1), rep_port=False, ping_timeout=None, handshake_events=True)

    class Asked:
        pass

    asked: Any = Asked()
    asked.mongrel2 = mongrel2
    with serving(other) as events, RawClient(mongrel2.port, upgrade=False) as client:
        client.key = "dGhlIHNhbXBsZSBub25jZQ=="
        client.request("/other/", {**HANDSHAKE, "Sec-WebSocket-Key": client.key})
        until(lambda: events)
        ((conn_id, _fd, kind, *_times, _read, written),) = server_connections(asked)
        assert (str(conn_id), kind, written) == (events[0].conn_id, 3, 0)
        other.conn.accept_websocket(events[0])
        client.read_head()
        ((_conn_id, _fd, kind, *_times, _read, written),) = server_connections(asked)
        assert (kind, written > 0) == (3, True)
        assert b"error" in ask(asked, [b"nonsense", {}])[0]
