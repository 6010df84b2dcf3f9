"""Which silent WebSockets are sending something: what the server says it has read, twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from greentx.errors import TransportError
from greentx.handler.progress import Progress
from greentx.protocol.server_control import WEBSOCKET_TYPE, NetRow


class Control:
    """Says what a test has written into *read*."""

    def __init__(self) -> None:
        self.read: dict[str, int] | None = {}
        self.asked = 0

    def connections(self) -> dict[str, NetRow]:
        self.asked += 1
        if self.read is None:
            raise TransportError("it did not answer")
        return {conn_id: NetRow(WEBSOCKET_TYPE, count, 1) for conn_id, count in self.read.items()}


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def link() -> Any:
    return SimpleNamespace(life=object(), sender="u")


@pytest.fixture
def progress(link: Any, control: Control) -> Progress:
    return Progress(link, control)  # type: ignore[arg-type]  # a stand-in


def test_who_has_sent_more_since_it_was_noted_is_sending(progress: Progress, control: Control) -> None:
    """Each by its own count; whoever was not noted is not known to be."""
    control.read = {"1": 100, "2": 200, "3": 300, "4": 400}
    progress.note(["1", "2"])
    progress.note(["3"])
    control.read = {"1": 101, "2": 200, "3": 300, "4": 500}
    assert progress.sending(["1", "2", "4"]) == ["1"]
    control.read["3"] = 301
    assert progress.sending(["3"]) == ["3"]
    assert progress.sending(["1", "2", "3"]) == []
    control.read["2"] = 201
    assert progress.sending(["1", "2", "3"]) == ["2"]


def test_who_has_gone_is_not_sending(progress: Progress, control: Control) -> None:
    """And nothing is kept of it: the number may be another one's."""
    control.read = {"1": 100, "2": 1}
    progress.note(["1"])
    control.read = {"2": 1}
    assert progress.sending(["1"]) == []
    control.read = {"1": 200}
    assert progress.sending(["1"]) == []


def test_nothing_is_known_over_a_restart_or_without_an_answer(progress: Progress, control: Control, link: Any) -> None:
    """The numbers are others'; a control port that is silent spares nobody."""
    control.read = {"1": 100}
    progress.note(["1"])
    link.life = object()
    control.read = {"1": 200}
    assert progress.sending(["1"]) == []
    control.read = None
    progress.note(["1"])
    assert progress.sending(["1"]) == []
    control.read = {"1": 300}
    assert progress.sending(["1"]) == ["1"]


def test_one_answer_serves_all_batches_of_a_round(progress: Progress, link: Any, control: Control) -> None:
    """It has all connections, and with 100,000 of them 10 MB; a restart makes it worthless."""
    control.read = {str(number): 1 for number in range(100)}
    for number in range(100):
        progress.note([str(number)], max_age=60)
    assert control.asked == 1
    link.life = object()
    progress.note(["1"], max_age=60)
    assert control.asked == 2


def test_an_answer_is_not_older_than_it_may_be(progress: Progress, control: Control) -> None:
    """Then the server is asked again."""
    control.read = {"1": 100}
    progress.note(["1"])
    control.read = {"1": 101}
    assert progress.sending(["1"], max_age=60) == []
    with gevent.Timeout(5):
        while not progress.sending(["1"], max_age=0.01):
            gevent.sleep(0.005)
    assert control.asked == 2
