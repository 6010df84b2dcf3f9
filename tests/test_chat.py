"""The chat of ``greentx demo``, asked by a stand-in for Mongrel2: only the server says who somebody is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greentx import Server, Transceiver
from greentx.demo.chat import Chat

pytest_plugins = ["greentx.testing"]


class Page:
    """As much of a page as talks."""

    def __init__(self, server: Server) -> None:
        self.client = server.client("websocket")
        self.client.handshake("/chat")

    def send(self, **message: object) -> None:
        self.client.send(json.dumps(message))

    def event(self, kind: str) -> dict[str, Any]:
        """Return the next event of a kind."""
        while True:
            frame = self.client.recv(5000)
            assert frame is not None
            event: dict[str, Any] = json.loads(frame.payload)
            if event["type"] == kind:
                return event

    def join(self, name: str, token: str = "") -> dict[str, Any]:
        """Say a name; return who that is by the server's word."""
        self.send(type="name", value=name, token=token)
        return self.event("you")


@pytest.fixture
def page(transceiver: Transceiver, server: Server) -> Iterator[Callable[[], Page]]:
    """Opens the page once more."""
    chat = Chat(transceiver)
    gevent.spawn(transceiver.serve, chat.answer, websocket=chat.talk)
    pages: list[Page] = []

    def one() -> Page:
        pages.append(Page(server))
        return pages[-1]

    yield one
    for each in pages:
        each.client.disconnect()


@pytest.mark.parametrize("wanted", ["Ann", " ann ", "\u200bAnn", "\uff21nn", "A\u202enn"])
def test_the_name_of_another_is_not_given_twice(page: Callable[[], Page], wanted: str) -> None:
    """Nor one that looks the same; what somebody says has the id that the server gave."""
    ann, other = page(), page()
    first = ann.join("Ann")
    second = other.join(wanted)
    assert first["name"] == "Ann"
    assert second["name"].endswith("nn (2)")
    assert second["id"] != first["id"]
    other.send(type="say", value="I am Ann")
    said = ann.event("say")
    assert (said["id"], said["who"]) == (second["id"], second["name"])
    other.send(type="name", value="Ann")
    assert other.event("you")["name"] == "Ann (2)"
    assert [one["name"] for one in first["people"]] == ["Ann"]


@pytest.mark.parametrize("unseen", ["\u034f", "\ufe0f", "\u3164", "\u2800", "\u115f", "\U000e0100"])
@pytest.mark.parametrize("where", ["{}Ann", "A{}nn", "Ann{}", "Ann {}"])
def test_what_cannot_be_seen_makes_no_other_name(page: Callable[[], Page], unseen: str, where: str) -> None:
    """Nor does it make a name alone."""
    assert page().join("Ann")["name"] == "Ann"
    assert page().join(where.format(unseen))["name"].endswith("(2)")
    assert page().join(unseen * 3)["name"] == "somebody"


@pytest.mark.parametrize(
    "wanted", ["Ann (you)", "Ann (YOU)", "\uff08you\uff09", "Ann ( you )", "(y\ufe0fo\u200bu) Ann"]
)
def test_nobody_is_called_you(page: Callable[[], Page], wanted: str) -> None:
    """As the page says of the one who reads it; another name may be said then."""
    one = page()
    one.send(type="name", value=wanted, token="")
    assert "(you)" in one.event("error")["text"]
    assert one.join("Ann")["name"] == "Ann"
    one.send(type="name", value=wanted)
    one.event("error")
    assert page().join("Bob")["people"] == [{"id": 1, "name": "Ann"}, {"id": 2, "name": "Bob"}]


def test_who_said_something_keeps_the_name_while_it_can_be_read(page: Callable[[], Page]) -> None:
    """Also after leaving: the lines of two people would have one name."""
    ann, bob = page(), page()
    ann.join("Ann")
    bob.join("Bob")
    ann.send(type="say", value="hello")
    bob.event("say")
    ann.client.close()
    bob.event("leave")
    assert page().join("Ann")["name"] == "Ann (2)"


def test_after_a_reload_somebody_is_the_same_and_sees_what_was_said(page: Callable[[], Page]) -> None:
    """By a token that nobody else was told; also where the old page's WebSocket is still there."""
    ann, bob = page(), page()
    first = ann.join("Ann")
    bob.join("Bob")
    ann.send(type="say", value="one")
    said = bob.event("say")
    assert first["token"] not in json.dumps(said)
    again = page()
    second = again.join("whoever", first["token"])
    assert {name: second[name] for name in ("id", "name", "token")} == {
        name: first[name] for name in ("id", "name", "token")
    }
    assert second["history"] == [said]
    assert [one["name"] for one in second["people"]] == ["Ann", "Bob"]
    # Nobody left, as she is still here.
    ann.client.close()
    again.send(type="say", value="two")
    assert bob.event("say")["text"] == "two"
    again.client.close()
    assert bob.event("leave")["who"] == "Ann"
    assert page().join("Ann", first["token"])["id"] == first["id"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("hello", "that is not JSON"),
        ("[" * 100_000, "that is not JSON"),
        (b"\xff\x00", "that is not JSON"),
        ("[1]", "that is not a JSON object"),
        ('{"type": "say"}', "value and token have to be text"),
        ('{"type": "say", "value": {"split": 1}}', "value and token have to be text"),
        ('{"type": "name", "value": "Ann", "token": 5}', "value and token have to be text"),
        ('{"type": ["say"], "value": "x"}', "the type is name or say, not ['say']"),
        ('{"value": "x"}', "the type is name or say, not None"),
        ('{"type": "say", "value": "x"}', "say your name first"),
    ],
)
def test_a_message_of_another_shape_gets_an_error_and_the_websocket_stays(
    page: Callable[[], Page], message: str | bytes, said: str
) -> None:
    """What is sent next is understood."""
    ann = page()
    ann.client.send(message)
    assert ann.event("error")["text"] == said
    assert ann.join("Ann")["name"] == "Ann"
    ann.send(type="say", value="x" * 1001)
    assert ann.event("error")["text"] == "that has 1001 characters, 1000 are the most"
    ann.send(type="say", value="\ud800 ok")
    assert ann.event("say")["text"] == "\ud800 ok"
