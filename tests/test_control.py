"""What the control socket makes of each message, without a socket."""

from __future__ import annotations

import gc
import json
import tracemalloc

import pytest
import zmq.green as zmq

from greentx import Transceiver
from greentx.handler.control import (
    ADD_CONNECTION,
    DISCONNECT_PING,
    MAX_CONTROL_MESSAGE,
    PING,
    REMOVE_CONNECTION,
    Commands,
)
from greentx.protocol.requests import build_request


class Target:
    """Writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def add(self, asker, sender, push, sub, *, mongrel2, key):
        self.calls.append(("add", asker, sender, push, sub, mongrel2, key))

    def remove(self, asker, sender):
        raise KeyError(f"no connection for sender {sender[:9]!r}")

    def prove(self, sender, text):
        self.calls.append(("prove", sender, text))

    def status(self):
        return {"version": "x"}


@pytest.fixture
def target():
    return Target()


@pytest.fixture
def commands(target):
    return Commands(target)


def command(path: str, method: str = "JSON", body: object = None, conn_id: str = "-1", **headers: str) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return build_request("s", conn_id, path, {"METHOD": method, **headers}, data)


ADDRESSES = {"push": ["h", 1], "sub": ["h", "2"]}


@pytest.mark.parametrize(
    ("message", "answer", "call"),
    [
        (b"ping", b"PONG", None),
        (b"Status", b'{"version": "x"}', None),
        (command(ADD_CONNECTION, body=ADDRESSES), b"RECEIVED", ("add", "who", "s", ("h", 1), ("h", 2), False, None)),
        (
            command(ADD_CONNECTION, body={**ADDRESSES, "mongrel2": True}),
            b"RECEIVED",
            ("add", "who", "s", ("h", 1), ("h", 2), True, None),
        ),
        (command(ADD_CONNECTION, body={**ADDRESSES, "mongrel2": 1}), b'ERROR "mongrel2" is true or false, not 1', None),
        (
            command(ADD_CONNECTION, body={**ADDRESSES, "curve": "k"}),
            b"RECEIVED",
            ("add", "who", "s", ("h", 1), ("h", 2), False, b"k"),
        ),
        (
            command(ADD_CONNECTION, body={**ADDRESSES, "curve": 1}),
            b'ERROR "curve" is a public key, as text; not 1',
            None,
        ),
        (command(PING, "MONGREL2", QUERY="text=g"), b"RECEIVED", ("prove", "s", "g")),
        (command(DISCONNECT_PING, "MONGREL2"), b"RECEIVED", None),
        (command(REMOVE_CONNECTION, body={}), b"ERROR no connection for sender 's'", None),
    ],
    ids=[
        "ping",
        "status",
        "add",
        "add a mongrel2",
        "add what",
        "add with a key",
        "add with what key",
        "prove",
        "disconnect ping",
        "remove",
    ],
)
def test_each_request_has_its_answer(commands, target, message, answer, call):
    """And does what it says, once."""
    assert commands.answer(message, "who") == answer
    assert target.calls == ([] if call is None else [call])


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (command("/"), "no command '/': there are PING, STATUS, /__add_connection__"),
        (command(ADD_CONNECTION, "POST", ADDRESSES), "METHOD JSON and conn_id -1, not 'POST' and -1"),
        (command(ADD_CONNECTION, body=ADDRESSES, conn_id="1"), "not 'JSON' and 1"),
        (command(ADD_CONNECTION, body={"push": ["h", 1]}), "no 'sub'"),
        (command(ADD_CONNECTION, body={**ADDRESSES, "sub": ["h", "²"]}), "'sub' is [ip, port]"),
        (command(ADD_CONNECTION, body={**ADDRESSES, "sub": ["h", "9" * 5000]}), "'sub' is [ip, port]"),
        (b's -1 /__add_connection__ 17:{"METHOD":"JSON"},200000:' + b"[" * 200_000 + b",", "is not JSON"),
        (b's -1 /__add_connection__ 17:{"METHOD":"JSON"},5000:' + b"9" * 5000 + b",", "is not JSON"),
        (b"s -1 / 200000:" + b"[" * 200_000 + b",0:,", "are not JSON"),
        (command(PING, "MONGREL2"), "QUERY text=<guid>"),
        (command(PING, "MONGREL2", QUERY="x=1"), "QUERY text=<guid>"),
        (command(REMOVE_CONNECTION, "MONGREL2"), "METHOD JSON"),
        (b"", "no 'sender conn_id path '"),
        (b"PING PING", "no 'sender conn_id path '"),
    ],
)
def test_what_cannot_be_obeyed_is_an_error(commands, target, message, why):
    """ERROR, with what was wrong; nothing is done."""
    answer = commands.answer(message, "who").decode()
    assert answer.startswith("ERROR ")
    assert why in answer
    assert target.calls == []


REFUSED = [
    b"x" * 60_000,
    b"s -1 / 5:" + b"9" * 60_000,
    b"s -1 " + b"/" * 60_000 + b" 13:6:METHOD,1:X,}0:,",
    b"s" * 60_000 + b" -1 /__remove_connection__ 16:6:METHOD,4:JSON,}2:{},",
    command(ADD_CONNECTION, body={"push": ["h", "9" * 50_000], "sub": ["h", 1]}),
    command(ADD_CONNECTION, body={**ADDRESSES, "mongrel2": ["x" * 50_000]}),
    command(PING, "M" * 50_000),
    command(PING, "MONGREL2", QUERY="text=" + "x" * 50_000),
    command(PING, "MONGREL2", QUERY="&".join(["a=b"] * 10_000)),
]


@pytest.mark.parametrize("message", REFUSED, ids=range(len(REFUSED)))
def test_a_refused_message_is_not_kept_and_shown_in_part(commands, message):
    """Its error leaves no reference cycle, which would hold the message, and its answer is short."""
    commands.answer(message, "who")
    gc.collect()
    gc.disable()
    try:
        answer = commands.answer(message, "who")
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert answer.startswith(b"ERROR ")
    assert len(answer) < 1000


def test_thousands_of_refused_messages_need_no_memory():
    """A flood of them through the socket leaves the process as it was; more than 64 KiB end their own connection."""
    context = zmq.Context()
    with Transceiver("u", ("127.0.0.1", 1), ("127.0.0.1", 2), rep_port=0, rep_ip="127.0.0.1", linger=0.1) as trans:
        endpoint = f"tcp://127.0.0.1:{trans.rep_port}"

        def ask(message: bytes, timeout: int) -> bytes | None:
            with context.socket(zmq.REQ) as socket:
                socket.linger = 0
                socket.connect(endpoint)
                socket.send(message)
                return socket.recv() if socket.poll(timeout) else None

        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(50):
                for message in REFUSED:
                    answer = ask(message, 5000)
                    assert answer is not None and answer.startswith(b"ERROR ")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            gc.enable()
        assert peak < 5e6, f"{50 * len(REFUSED)} refused messages of 60 KB held {peak / 1e6:.1f} MB"
        assert ask(b"x" * MAX_CONTROL_MESSAGE, 5000) is not None
        assert ask(b"x" * (MAX_CONTROL_MESSAGE + 1), 300) is None
        assert ask(b"PING", 5000) == b"PONG"
    context.destroy(0)
