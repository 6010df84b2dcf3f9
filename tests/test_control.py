"""What the control socket makes of each message, without a socket."""

from __future__ import annotations

import json

import pytest

from greentx.control import ADD_CONNECTION, DISCONNECT_PING, PING, REMOVE_CONNECTION, Control
from greentx.wire import build_request


class Target:
    """Writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def add_connection(self, sender, push, sub, *, replace=False):
        self.calls.append(("add", sender, push, sub, replace))

    def remove_connection(self, sender):
        raise KeyError(f"no connection for sender {sender!r}")

    def prove(self, sender, text):
        self.calls.append(("prove", sender, text))

    def status(self):
        return {"version": "x"}


@pytest.fixture
def control():
    control = Control.__new__(Control)  # without the socket
    control._target = Target()
    return control


def command(path: str, method: str = "JSON", body: object = None, conn_id: str = "-1", **headers: str) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return build_request("s", conn_id, path, {"METHOD": method, **headers}, data)


ADDRESSES = {"push": ["h", 1], "sub": ["h", "2"]}


@pytest.mark.parametrize(
    ("message", "answer", "call"),
    [
        (b"ping", b"PONG", None),
        (b"Status", b'{"version": "x"}', None),
        (command(ADD_CONNECTION, body=ADDRESSES), b"RECEIVED", ("add", "s", ("h", 1), ("h", 2), True)),
        (command(PING, "MONGREL2", QUERY="text=g"), b"RECEIVED", ("prove", "s", "g")),
        (command(DISCONNECT_PING, "MONGREL2"), b"RECEIVED", None),
        (command(REMOVE_CONNECTION, body={}), b"ERROR no connection for sender 's'", None),
    ],
    ids=["ping", "status", "add", "prove", "disconnect ping", "remove"],
)
def test_each_request_has_its_answer(control, message, answer, call):
    """And does what it says, once."""
    assert control._answer(message) == answer
    assert control._target.calls == ([] if call is None else [call])


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (command("/"), "no command '/': there are PING, STATUS, /__add_connection__"),
        (command(ADD_CONNECTION, "POST", ADDRESSES), "METHOD JSON and conn_id -1, not 'POST' and -1"),
        (command(ADD_CONNECTION, body=ADDRESSES, conn_id="1"), "not 'JSON' and 1"),
        (command(ADD_CONNECTION, body={"push": ["h", 1]}), "no 'sub'"),
        (command(ADD_CONNECTION, body={**ADDRESSES, "sub": ["h", "²"]}), "'sub' is [ip, port]"),
        (command(PING, "MONGREL2"), "QUERY text=<guid>"),
        (command(PING, "MONGREL2", QUERY="x=1"), "QUERY text=<guid>"),
        (command(REMOVE_CONNECTION, "MONGREL2"), "METHOD JSON"),
        (b"", "no 'sender conn_id path '"),
        (b"PING PING", "no 'sender conn_id path '"),
    ],
)
def test_what_cannot_be_obeyed_is_an_error(control, message, why):
    """ERROR, with what was wrong; nothing is done."""
    answer = control._answer(message).decode()
    assert answer.startswith("ERROR ")
    assert why in answer
    assert control._target.calls == []
