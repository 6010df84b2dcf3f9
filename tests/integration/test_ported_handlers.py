"""Handlers written for Mongrel2's own Python library, ported by an import: http, chat, xml, mp3stream.

Each handler here does in a few lines what the example of that name relies on.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from http_rig import Browser, wait_until
from ported_rig import JSONSocket, both_protocols, standalone

from greentx import Connection, Request


@pytest.fixture(scope="module")
def servers(front_end) -> Iterator[dict[str, Any]]:
    with both_protocols(front_end) as running:
        yield running


@pytest.fixture(params=["tnetstring", "json"])
def server(request: pytest.FixtureRequest, servers: dict[str, Any]) -> Any:
    return servers[request.param]


# -- http ------------------------------------------------------------------------------------------------------------


def show(conn: Connection, req: Request) -> None:
    """Answer with all that is known about the request."""
    if req.is_disconnect():
        return
    known = [req.sender, req.conn_id, req.path, json.dumps(req.headers), req.body.decode("latin-1")]
    conn.reply_http(req, json.dumps(known))


def test_the_http_example_shows_each_request(server):
    """Sender, connection, path, headers and body are what the client and the configuration say."""
    with standalone(server, show), Browser(server) as browser:
        numbers = set()
        for path in ("/", "/some/page"):
            answer = browser.get(
                f"{path}?a=b", "X-Thing: some", "X-Twice: 1", "X-Twice: 2", method="POST", body=b"b\xff"
            )
            assert answer.status == 200
            sender, conn_id, shown_path, headers, body = json.loads(answer.body)
            assert (sender, shown_path, body) == (server.handlers[0].sender, path, "b\xff")
            headers = json.loads(headers)
            assert headers["METHOD"] == "POST"
            assert headers["PATH"] == path
            assert headers["x-thing"] == "some"
            assert headers["x-twice"] == ["1", "2"]
            numbers.add(int(conn_id))
        assert len(numbers) == 1


def test_the_http_example_goes_on_when_a_client_leaves_without_its_answer(server):
    """It is told by an event with is_disconnect(), which it skips."""
    gone = []

    def handle(conn: Connection, req: Request) -> None:
        if req.is_disconnect():
            gone.append(req.conn_id)
        elif req.path == "/slow":
            waiting.append(req.conn_id)
        else:
            show(conn, req)

    waiting: list[str] = []
    with standalone(server, handle):
        with Browser(server) as browser:
            browser.ask("/slow")
            wait_until(lambda: waiting)
        wait_until(lambda: gone)
        with Browser(server) as browser:
            assert browser.get().status == 200
        assert gone == waiting


def test_a_loop_ends_when_its_connection_does(server):
    """Leaving the with block lets recv() return None, as often as it is called, and so does shutdown()."""
    entry = server.handlers[0]
    with Connection(entry.sender, entry.send_spec, entry.recv_spec) as conn:
        waiting = gevent.spawn(conn.recv)
        gevent.sleep(0)
    assert waiting.get(timeout=5) is None
    assert conn.recv() is None
    conn = Connection(entry.sender, entry.send_spec, entry.recv_spec)
    waiting = gevent.spawn(conn.recv_json)
    gevent.sleep(0)
    conn.shutdown()
    assert waiting.get(timeout=5) is None
    assert conn.recv_json() is None


# -- bodies that are text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "options", "content_type"),
    [
        ("plain", {}, "text/plain; charset=utf-8"),
        ("grüße, 世界", {}, "text/plain; charset=utf-8"),
        ("", {}, "text/plain; charset=utf-8"),
        ("gone", {"code": 404, "status": "Not Found"}, "text/plain; charset=utf-8"),
        ("more", {"headers": {"X-Other": "1"}}, "text/plain; charset=utf-8"),
        ("more", {"headers": [("X-Other", "1")]}, "text/plain; charset=utf-8"),
        (b"bytes", {}, None),
        (b"bytes", {"headers": {"X-Other": "1"}}, None),
        (b"", {"code": 404}, None),
        (bytearray(b"bytes"), {}, None),
        ("<p>", {"headers": {"Content-Type": "text/html"}}, "text/html"),
        ("<p>", {"headers": {"content-type": "text/html"}}, "text/html"),
        ("<p>", {"headers": {"CONTENT-TYPE": b"text/html"}}, "text/html"),
        ("<p>", {"headers": [(b"cOnTeNt-tYpE", b"text/html")]}, "text/html"),
        ("<p>", {"headers": [(b"Content-Type", "text/html"), ("X-Other", "1")]}, "text/html"),
        (b"<p>", {"headers": {"Content-type": "text/html"}}, "text/html"),
        ("", {"code": 204}, None),
        ("not sent", {"code": 204}, None),
        ("not sent", {"code": 304}, None),
        ("", {"code": 304, "headers": {"ETag": '"1"'}}, None),
    ],
)
def test_text_says_that_it_is_text(servers, body, options, content_type):
    """A body that is str has a Content-Type, unless the caller gave one; bytes, 204 and 304 have none."""
    server = servers["tnetstring"]
    with standalone(server, lambda conn, req: conn.reply_http(req, body, **options)), Browser(server) as browser:
        answer = browser.get()
        assert answer.status == options.get("code", 200)
        assert answer.headers.get("content-type") == content_type
        sent = body.encode() if isinstance(body, str) else bytes(body)
        assert answer.body == (b"" if answer.status in (204, 304) else sent)
        assert browser.get("/again").status == answer.status


# -- chat ------------------------------------------------------------------------------------------------------------


class Room:
    """Everybody who joined hears what is said; *events* are what came out of ``recv_json``."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.events: list[tuple[str, Any]] = []

    def __call__(self, conn: Connection, req: Request) -> None:
        data = req.data
        self.events.append((req.conn_id, data))
        kind = data["type"]
        if kind == "join":
            conn.deliver_json(req.sender, self.users.keys(), data)
            self.users[req.conn_id] = data["user"]
            conn.reply_json(req, {"type": "here", "users": sorted(self.users.values())})
        elif kind == "disconnect":
            user = self.users.pop(req.conn_id, None)
            conn.deliver_json(req.sender, self.users.keys(), {"type": "left", "user": user})
        elif kind == "msg":
            conn.deliver_json(req.sender, self.users.keys(), data)

    def leavings(self, conn_id: str) -> int:
        """How often one client was said to have gone."""
        return self.events.count((conn_id, {"type": "disconnect"}))


def join(client: JSONSocket, user: str, users: list[str]) -> None:
    """Join, and hear who is there."""
    client.say({"type": "join", "user": user})
    assert client.hear() == {"type": "here", "users": users}


def test_the_chat_example_joins_talks_and_notices_who_leaves(server):
    """JSON goes to all who joined; a client that leaves is an event whose data says so."""
    room = Room()
    with standalone(server, room, receive="recv_json"), JSONSocket(server) as ann:
        join(ann, "ann", ["ann"])
        with JSONSocket(server) as ben:
            join(ben, "ben", ["ann", "ben"])
            assert ann.hear() == {"type": "join", "user": "ben"}
            for number in range(40):
                ben.say({"type": "msg", "user": "ben", "msg": f"grüße {number}"})
            for client in (ann, ben):
                heard = [client.hear() for _ in range(40)]
                assert [one["msg"] for one in heard] == [f"grüße {number}" for number in range(40)]
        assert ann.hear() == {"type": "left", "user": "ben"}
        assert room.events[-1][1] == {"type": "disconnect"}
        assert list(room.users.values()) == ["ann"]


@pytest.mark.parametrize(
    "bad",
    [b"{nojson}", b'{"type": }', b'{"type":"\xff\xfe"}', b'{"type":"join"} {}', b"{" + b'"a":[' * 2000 + b"}"],
    ids=["words", "no-value", "no-utf8", "two-values", "unfinished"],
)
@pytest.mark.parametrize("known", [False, True])
def test_the_chat_example_survives_a_client_that_sends_no_json(server, caplog, bad, known):
    """That client's socket is closed, and it is reported once if it was known; the others chat on."""
    room = Room()
    with standalone(server, room, receive="recv_json") as conn, JSONSocket(server) as ann, JSONSocket(server) as eve:
        join(ann, "ann", ["ann"])
        eve_id = None
        if known:
            join(eve, "eve", ["ann", "eve"])
            eve_id = room.events[-1][0]
            assert ann.hear() == {"type": "join", "user": "eve"}
        before = len(room.events)
        with caplog.at_level(logging.WARNING, "greentx"):
            eve.say_raw(bad)
            assert eve.at_end()
        if known:
            assert ann.hear() == {"type": "left", "user": "eve"}
        for number in range(5):
            ann.say({"type": "msg", "msg": number})
            assert ann.hear() == {"type": "msg", "msg": number}
        assert conn.bad_messages == 1
        assert conn.status()["bad_messages"] == 1
        assert [one.levelno for one in caplog.records if one.name.startswith("greentx")] == [logging.WARNING]
        expected = [(eve_id, {"type": "disconnect"})] if known else []
        ann_id = room.events[0][0]
        assert room.events[before:] == [*expected, *((ann_id, {"type": "msg", "msg": number}) for number in range(5))]
        with JSONSocket(server) as late:
            join(late, "late", ["ann", "late"])


# -- xml -------------------------------------------------------------------------------------------------------------


def test_the_xml_example_gets_the_whole_text(server):
    """METHOD is XML, the path is the first tag's beginning, and the body is everything up to the NUL."""
    seen = []

    def handle(conn: Connection, req: Request) -> None:
        if not req.is_disconnect():
            seen.append((req.headers["METHOD"], req.path, req.headers["PATH"], req.body))
            conn.reply(req, "<seen/>")

    text = '<chat to="all"><b>grüße</b> &amp; more</chat>'.encode()
    with standalone(server, handle), Browser(server) as browser:
        for count in (1, 2):
            browser.send(text, b"\0")
            assert browser.read(7) == b"<seen/>"
            assert seen == [("XML", "<chat", "<chat", text)] * count


# -- mp3stream ---------------------------------------------------------------------------------------------------------


class Radio:
    """Answers listeners with a head, and remembers them until they leave."""

    HEADERS = {"icy-metaint": 8192, "icy-name": "greentx radio"}  # noqa: RUF012 - as in a handler: nobody changes it

    def __init__(self) -> None:
        self.listeners: list[str] = []
        self.left: list[str] = []

    def __call__(self, conn: Connection, req: Request) -> None:
        if req.is_disconnect():
            self.left.append(req.conn_id)
            if req.conn_id in self.listeners:
                self.listeners.remove(req.conn_id)
        else:
            conn.reply_http(req, "", headers=self.HEADERS)
            self.listeners.append(req.conn_id)


def listen(server: Any) -> Browser:
    """Ask for the stream and read the head in front of it."""
    browser = Browser(server)
    browser.ask("/stream")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = browser.read(1)
        assert byte, head
        head += byte
    assert b"\r\nicy-metaint: 8192\r\n" in head
    return browser


def test_the_mp3stream_example_forgets_a_listener_that_leaves(server):
    """Its request was answered long ago, but it was delivered to since: its end is one event."""
    radio = Radio()
    with standalone(server, radio) as conn, contextlib.ExitStack() as stack:
        browsers = [stack.enter_context(listen(server)) for _ in range(3)]
        wait_until(lambda: len(radio.listeners) == 3)
        first, second, third = radio.listeners
        for number in range(5):
            chunk = bytes([number]) * 8192
            conn.deliver(server.handlers[0].sender, radio.listeners, chunk)
            assert [browser.read(8192) for browser in browsers] == [chunk] * 3
        browsers[1].socket.close()
        wait_until(lambda: radio.left)
        assert (radio.left, radio.listeners) == ([second], [first, third])
        conn.deliver(server.handlers[0].sender, radio.listeners, b"x" * 8192)
        assert [browsers[number].read(8192) for number in (0, 2)] == [b"x" * 8192] * 2
        browsers[0].socket.close()
        browsers[2].socket.close()
        wait_until(lambda: not radio.listeners)
        assert sorted(radio.left, key=int) == sorted([first, second, third], key=int)


def test_the_mp3stream_example_is_told_of_listeners_that_leave_while_it_streams(servers):
    """Whenever they leave, the streamer ends with nobody to deliver to, and the last chunk was whole for who stayed."""
    server = servers["tnetstring"]
    radio = Radio()
    with standalone(server, radio) as conn, contextlib.ExitStack() as stack:
        streaming = True

        def stream() -> None:
            while streaming:
                if radio.listeners:
                    conn.deliver(server.handlers[0].sender, list(radio.listeners), b"y" * 100)
                gevent.sleep(0.002)  # the pace of the radio

        streamer = gevent.spawn(stream)
        browsers = [stack.enter_context(listen(server)) for _ in range(10)]
        wait_until(lambda: len(radio.listeners) == 10)
        everybody = set(radio.listeners)
        for browser in browsers[:9]:
            assert browser.read(100) == b"y" * 100
            browser.socket.close()
        wait_until(lambda: len(radio.listeners) == 1)
        assert browsers[9].read(5000) == b"y" * 5000
        assert set(radio.left) == everybody - set(radio.listeners)
        browsers[9].socket.close()
        wait_until(lambda: not radio.listeners)
        streaming = False
        streamer.get(timeout=5)
