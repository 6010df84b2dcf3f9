"""What an application keeps of one WebSocket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greentx.errors import LocalProtocolError
from greentx.handler.state import MAX_STATE, State


def test_it_is_a_dict_of_json() -> None:
    """Values are as JSON has them, whatever they were set with."""
    state = State()
    state["list"] = (1, "zwei", None)
    state.update({"a": 1}, b=2.5)
    state.setdefault("c", {"d": True})
    assert dict(state) == {"list": [1, "zwei", None], "a": 1, "b": 2.5, "c": {"d": True}}
    assert state.pop("a") == 1 and "a" not in state and len(state) == 3
    assert state == {"list": [1, "zwei", None], "b": 2.5, "c": {"d": True}} and repr(state) == repr(dict(state))
    with pytest.raises(KeyError):
        del state["a"]
    with pytest.raises(KeyError):
        state["a"]
    state.clear()
    assert not state


def test_each_change_is_written_once() -> None:
    """As a whole; what changes nothing is not written."""
    written: list[Any] = []
    state = State(b'{"before":1}', lambda text: written.append(json.loads(text)))
    assert state["before"] == 1
    state["a"] = 2
    state.update(b=3, c=4)
    del state["before"]
    state.update()
    state.clear()
    state.clear()
    assert written == [{"before": 1, "a": 2}, {"before": 1, "a": 2, "b": 3, "c": 4}, {"a": 2, "b": 3, "c": 4}, {}]


@pytest.mark.parametrize(
    "value",
    [object(), b"bytes", {1, 2}, float("nan"), float("inf"), {"a": object()}, "x" * MAX_STATE, "\ud800" * MAX_STATE],
    ids=["object", "bytes", "set", "nan", "inf", "inside", "long", "long in JSON"],
)
def test_what_is_not_json_or_too_much_changes_nothing(value: Any) -> None:
    """It raises where it is set, and nothing is written."""
    written: list[bytes] = []
    state = State(b'{"a":1}', written.append)
    with pytest.raises(LocalProtocolError, match="WebSocket's state"):
        state["b"] = value
    with pytest.raises(LocalProtocolError, match="WebSocket's state"):
        state.update({"a": 2, "b": value})
    assert (dict(state), written) == ({"a": 1}, [])


def test_keys_are_text() -> None:
    """As JSON has them; a number would come back as another key."""
    state: Any = State()
    with pytest.raises(LocalProtocolError, match="int"):
        state[1] = 2
    with pytest.raises(LocalProtocolError, match="int"):
        state.update({1: 2})
    assert not state


def test_the_limit_itself_is_allowed() -> None:
    """64 KiB of JSON, with all that is not the value."""
    state = State()
    state["a"] = "x" * (MAX_STATE - len('{"a":""}'))
    with pytest.raises(LocalProtocolError, match=f"{MAX_STATE + 1} bytes of JSON, limit {MAX_STATE}"):
        state["a"] += "x"


def test_a_cycle_raises() -> None:
    """It has no JSON."""
    value: list[Any] = []
    value.append(value)
    state = State()
    with pytest.raises(LocalProtocolError):
        state["a"] = value
    assert not state
