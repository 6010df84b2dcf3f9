"""Extended replies of a handler, as the sendfile example of Mongrel2's own Python library sends them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import tnetstring
from http_rig import Browser
from ported_rig import both_protocols, standalone
from stand_in import Server as StandIn

from greentx import Connection, Request
from greentx.errors import LocalProtocolError

CTL_KEEP_ALIVE = tnetstring.dumps([b"ctl", {b"keep-alive": b""}])
CTL_CANCEL = tnetstring.dumps([b"ctl", {b"cancel": b""}])


@pytest.fixture(scope="module")
def servers(front_end) -> Iterator[dict[str, Any]]:
    with both_protocols(front_end) as running:
        yield running


@pytest.fixture(params=["tnetstring", "json"])
def server(request: pytest.FixtureRequest, servers: dict[str, Any]) -> Any:
    return servers[request.param]


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """What shows each message as it was sent."""
    one = StandIn()
    yield one
    one.close()


def extend(way: str, conn: Connection, req: Request, data: bytes) -> None:
    """Send an extended reply, by the method that the example uses or by the one that is made for it."""
    if way == "deliver":
        conn.deliver(req.sender, ["X", req.conn_id], data)
    else:
        conn.reply_xrep(req, data)


def half(control: bytes, way: str) -> Any:
    """A handler that writes a head and the first half of a body, then an extended reply, then the rest."""

    def handle(conn: Connection, req: Request) -> None:
        if req.is_disconnect():
            return
        conn.reply(req, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        extend(way, conn, req, control)
        if control == CTL_KEEP_ALIVE:
            conn.reply(req, "then.")
            if req.should_close():
                conn.reply(req, "")

    return handle


@pytest.mark.parametrize("way", ["deliver", "reply_xrep"])
def test_an_extended_reply_in_the_middle_of_an_answer_harms_nothing(server, way):
    """The sendfile example's way: a head, something that the server's own module reads, and a close where it is due."""
    with standalone(server, half(CTL_KEEP_ALIVE, way)):
        with Browser(server) as browser:
            for _ in range(5):
                assert browser.get().body == b"firstthen."
            assert browser.get(version="HTTP/1.0").body == b"firstthen."
            assert browser.at_end()
        with Browser(server) as browser:
            assert browser.get("/", "Connection: close").body == b"firstthen."
            assert browser.at_end()


@pytest.mark.parametrize("way", ["deliver", "reply_xrep"])
def test_an_extended_reply_that_cancels_ends_the_connection(server, way):
    """At once, whatever is missing of the answer; the handler goes on with others."""
    with standalone(server, half(CTL_CANCEL, way)):
        for _ in range(3):
            with Browser(server) as browser:
                browser.ask()
                assert len(browser.read(1000)) < 1000


@pytest.mark.parametrize("way", ["deliver", "reply_xrep"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        tnetstring.dumps([b"ctl"]),
        tnetstring.dumps([b"ctl", {}, {}]),
        tnetstring.dumps({b"ctl": {}}),
        tnetstring.dumps(b"ctl"),
        tnetstring.dumps([1, {}]),
        CTL_KEEP_ALIVE + b"x",
        CTL_KEEP_ALIVE[:-1],
        json.dumps(["ctl", {"keep-alive": ""}]).encode(),
    ],
)
def test_an_extended_reply_that_mongrel2_could_not_read_is_refused(stand_in, way, data):
    """It is a tnetstring, a list of a key and a value; of anything else nothing is sent."""
    with Connection("u", *stand_in.endpoints) as conn:
        stand_in.request(1)
        req = conn.recv(5)
        with pytest.raises(LocalProtocolError):
            extend(way, conn, req, data)
        conn.reply_http(req, b"the first that is sent")
        reply = stand_in.receive()
        assert reply.extended is None
        assert reply.body.endswith(b"the first that is sent")


@pytest.mark.parametrize("way", ["deliver", "reply_xrep"])
def test_an_extended_reply_is_one_message_of_the_right_form(stand_in, way):
    """``X`` and the ids are counted together, and the data follows as it is, also for a module that we do not know."""
    with Connection("u", *stand_in.endpoints) as conn:
        for number, path in ((7, b"/one.txt"), (8, b"/two.txt")):
            stand_in.request(number)
            data = tnetstring.dumps([b"sendfile", path])
            extend(way, conn, conn.recv(5), data)
            reply = stand_in.receive()
            assert (reply.conn_ids, reply.extended) == ([str(number)], (b"sendfile", path))
            assert reply.encode() == b"u 3:X %d, %s" % (number, data)


def test_an_extended_reply_may_go_to_many(stand_in):
    """Numbers and text name them, behind the X."""
    with Connection("u", *stand_in.endpoints) as conn:
        assert conn.wait_ready(5)
        conn.deliver("u", ["X", 7, "8"], CTL_KEEP_ALIVE)
        assert stand_in.receive().encode() == b"u 5:X 7 8, " + CTL_KEEP_ALIVE


@pytest.mark.parametrize("way", ["deliver", "reply_xrep"])
def test_what_the_sendfile_module_writes_completes_the_answer(stand_in, way):
    """The handler never sees those bytes, so the next request of that connection is answered all the same."""
    with Connection("u", *stand_in.endpoints) as conn:
        for path in ("/one", "/two", "/three"):
            stand_in.request(1, path)
            req = conn.recv(5)
            assert req.path == path
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
            conn.reply(req, head)
            assert stand_in.receive().body == head
            extend(way, conn, req, tnetstring.dumps([b"sendfile", path.encode()]))
            assert stand_in.receive().extended == (b"sendfile", path.encode())
