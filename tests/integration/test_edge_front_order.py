"""What the embedded front end says itself comes behind the answers that are due; and clients that send nothing more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import select, socket
from http_rig import SENDER as HTTP_SENDER
from http_rig import Browser, serving, transceiver, wait_until
from websocket_peer import HEAD, KEY, MASK
from wire_rig import SENDER, RawBrowser, RawHandler, raw_handler

from greentx.edge import Edge, Handler
from greentx.protocol.websocket.frames import Opcode, build_close, build_frame

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234"
REST = b"56789"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n" % KEY.encode()
)
DISCONNECT = b'{"type":"disconnect"}'


@contextlib.contextmanager
def running_answer(**options: Any) -> Iterator[tuple[Edge, RawHandler, RawBrowser, int]]:
    """Half of an answer has come."""
    options = {"half_close_timeout": 0, **options}
    with Edge({"/": Handler(SENDER)}, **options) as edge, raw_handler(edge) as handler, RawBrowser(edge) as browser:
        browser.send(GET)
        conn_id = handler.request().conn_id
        handler.reply(conn_id, LONG)
        browser.read(LONG)
        yield edge, handler, browser, conn_id


def has_more(browser: RawBrowser) -> bool:
    """Whether something has come that was not read; does not wait."""
    return bool(select.select([browser.sock], [], [], 0)[0])


REFUSED = {
    "a bad request": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a target that nobody serves": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 404),
    "a body that is too large": (b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n", 413),
    "an expectation": (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n", 417),
    "a handshake with a body": (UPGRADE.replace(b"GET", b"PUT"), 400),
    "two keys": (UPGRADE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: x\r\n\r\n"), 400),
}


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_comes_behind_the_rest_of_the_answer_that_runs(sent, status):
    """Mongrel2 cuts the answer off."""
    with running_answer() as (edge, handler, browser, conn_id):
        browser.send(sent)
        with RawBrowser(edge) as other:
            other.send(GET)
            handler.reply(handler.request().conn_id, LONG + REST)
            other.read(REST)
        assert not has_more(browser)
        handler.reply(conn_id, REST)
        assert browser.read_to_end().startswith(LONG + REST + b"HTTP/1.1 %d " % status)


def test_a_request_that_is_not_whole_in_time_is_refused_behind_the_answer_that_runs():
    """It may take longer than that, since the answer does."""
    with running_answer(request_timeout=0.1) as (_, handler, browser, conn_id):
        browser.send(b"GET / HT")
        gevent.sleep(0.6)  # it would have been refused
        assert not has_more(browser)
        handler.reply(conn_id, REST)
        assert browser.read_to_end().startswith(LONG + REST + b"HTTP/1.1 408 ")


def test_where_no_handler_comes_503_is_behind_the_answer_of_another_one():
    """Of the route before."""
    routes = {"/": Handler(HTTP_SENDER), "/nobody": Handler("nobody-1")}
    with Edge(routes, no_handler_timeout=0.1) as edge, Browser(edge) as browser, transceiver(edge) as trans:
        browser.ask("/")
        for _, conn, req in trans.recv(timeout=10):
            assert conn is not None and req is not None
            browser.ask("/nobody")
            gevent.sleep(0.3)  # it would have been answered
            conn.reply_http(req, "first")
            break
        assert browser.receive().body == b"first"
        assert browser.receive().status == 503
        assert browser.at_end()


def test_100_continue_comes_behind_the_answer_that_runs():
    """It belongs to the next request."""
    with running_answer() as (_, handler, browser, conn_id):
        browser.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        handler.reply(conn_id, REST)
        assert browser.read(b"\r\n\r\n", 2) == LONG + REST + b"HTTP/1.1 100 Continue\r\n\r\n"
        browser.send(b"x")
        assert handler.request().body == b"x"


def test_a_handshake_waits_for_the_answer_that_runs():
    """Its frames, too; and whatever is written then is no answer of HTTP's."""
    with running_answer() as (edge, handler, browser, conn_id):
        browser.send(UPGRADE + build_frame(b"early", Opcode.TEXT, mask=MASK))
        with RawBrowser(edge) as other:
            other.send(GET)
            assert handler.receive().conn_id != conn_id
        handler.reply(conn_id, REST)
        told = [one for one in (handler.receive() for _ in range(3)) if one.conn_id == conn_id]
        assert [one.headers["METHOD"] for one in told] == ["WEBSOCKET_HANDSHAKE", "WEBSOCKET"]
        handler.reply(conn_id, HEAD + build_frame(b"hi", Opcode.TEXT))
        assert browser.read(b"hi") == LONG + REST + HEAD + build_frame(b"hi", Opcode.TEXT)


def test_requests_of_one_connection_are_handed_on_at_once_up_to_a_bound():
    """Others follow as answers come; the client's end is seen meanwhile."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=0.1) as edge, raw_handler(edge) as handler:
        with RawBrowser(edge) as browser:
            browser.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(200)))
            got = [handler.request() for _ in range(64)]
            assert [one.path for one in got] == [f"/{number}" for number in range(64)]
            assert not handler.pull.poll(200)
            conn_id = got[0].conn_id
            for _ in range(3):
                handler.reply(conn_id, b"HTTP/1.1 204 No Content\r\n\r\n")
            assert [handler.request().path for _ in range(3)] == ["/64", "/65", "/66"]
            assert not handler.pull.poll(200)
        assert handler.receive().body == DISCONNECT


def test_a_client_that_sends_nothing_more_gets_all_its_answers():
    """Those that are due, as long as each byte comes in time; then the connection ends, and the handler is told."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=5) as edge, raw_handler(edge) as handler:
        with RawBrowser(edge) as browser:
            browser.send(GET * 2)
            browser.sock.shutdown(socket.SHUT_WR)
            conn_id = handler.request().conn_id
            assert handler.request().conn_id == conn_id
            for piece in (LONG, REST, LONG, REST):
                handler.reply(conn_id, piece)
                gevent.sleep(0.05)  # they come one by one
            assert browser.read_to_end() == (LONG + REST) * 2
            assert handler.receive().body == DISCONNECT


def test_a_client_that_has_gone_while_its_request_waits_is_told_of_soon():
    """It cannot be told from one that only sends nothing more, so not at once."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=0.2) as edge, raw_handler(edge) as handler:
        with RawBrowser(edge) as browser:
            browser.send(GET)
            conn_id = handler.request().conn_id
        notice = handler.receive()
        assert (notice.conn_id, notice.body) == (conn_id, DISCONNECT)


def test_of_a_client_that_waits_for_nothing_the_end_is_told_at_once():
    """However long others would be waited for."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=1000) as edge, raw_handler(edge) as handler:
        for sent in (GET, UPGRADE):
            with RawBrowser(edge) as browser:
                browser.send(sent)
                conn_id = handler.request().conn_id
                handler.reply(conn_id, HEAD if sent == UPGRADE else LONG + REST)
                browser.read(b"\r\n\r\n")
            assert handler.receive().body == DISCONNECT


def test_a_websocket_that_closes_and_sends_nothing_more_gets_the_close_of_the_other_side():
    """The closing handshake is whole."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=5) as edge, raw_handler(edge) as handler:
        with RawBrowser(edge) as browser:
            browser.send(UPGRADE + build_frame(build_close(1000), Opcode.CLOSE, mask=MASK))
            browser.sock.shutdown(socket.SHUT_WR)
            conn_id = handler.request().conn_id
            assert handler.request().headers["FLAGS"] == "0x88"
            handler.reply(conn_id, HEAD)
            handler.reply(conn_id, build_frame(build_close(1000), Opcode.CLOSE))
            handler.reply(conn_id, b"")
            assert browser.read_to_end() == HEAD + build_frame(build_close(1000), Opcode.CLOSE)


@pytest.mark.parametrize("extra", [b"\r\n", b"\r\n\r\n"])
def test_empty_lines_behind_a_body_are_ignored(extra):
    """Mongrel2 answers 400, and cuts off the answer that runs."""
    with running_answer() as (_, handler, browser, conn_id):
        browser.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx" + extra)
        assert handler.request().body == b"x"
        handler.reply(conn_id, REST + LONG + REST)
        assert browser.read(REST, 2) == (LONG + REST) * 2
        browser.send(extra + GET)
        assert handler.request().conn_id == conn_id


def test_a_burst_of_messages_ends_a_connection_as_in_mongrel2(caplog):
    """However fast its client reads; sixteen do not."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=0) as edge, raw_handler(edge) as handler:
        for count in (16, 40):
            with RawBrowser(edge) as browser:
                browser.send(GET)
                ids = b"%d" % handler.request().conn_id
                # One after the other would be a burst only where they come together.
                many = b" ".join([ids] * count)
                handler.send(b"%b %d:%b, x" % (SENDER.encode(), len(many), many))
                if count == 16:
                    assert browser.read(b"x", 16) == b"x" * 16
                else:
                    browser.read_to_end()
                    wait_until(lambda: "more than 17 messages" in caplog.text)


# Those of Mongrel2. All three limits are passed by a connection of which nothing is heard for a second.
QUICK = {"limits.min_ping": 1, "limits.tick_timer": 1}


def test_silent_connections_end_and_handlers_are_told():
    """Those that wait for a long time, too; Mongrel2 does not tell. What a handler writes does not keep them alive."""
    with Edge({"/": Handler(SENDER)}, settings=QUICK) as edge, raw_handler(edge) as handler:
        with RawBrowser(edge) as first, RawBrowser(edge) as second:
            ids = []
            for browser, sent in ((first, GET), (second, UPGRADE)):
                browser.send(sent)
                ids.append(handler.request().conn_id)
            handler.reply(ids[1], HEAD)

            def write() -> None:
                while True:
                    for conn_id in ids:
                        handler.reply(conn_id, b"\x89\x00")
                    gevent.sleep(0.1)  # much more often than it would have to be

            writing = gevent.spawn(write)
            first.read_to_end()
            second.read_to_end()
            writing.kill()
        told = {notice.conn_id for notice in (handler.receive() for _ in range(2)) if notice.body == DISCONNECT}
        assert told == set(ids)


def test_what_a_transceiver_looks_after_lives():
    """WebSockets that answer pings, and requests that wait, while one that is silent comes to its end."""
    settings = {"limits.min_ping": 2, "limits.tick_timer": 1}
    with Edge({"/": Handler(HTTP_SENDER)}, settings=settings) as edge, transceiver(edge, ping_timeout=0.5) as trans:
        came = gevent.event.Event()
        go_on = gevent.event.Event()

        def wait(conn: Any, req: Any) -> None:
            came.set()
            if req.path == "/wait":
                assert go_on.wait(30)
            conn.reply_http(req, "answered")

        def echo(ws: Any) -> None:
            while (message := ws.receive()) is not None:
                ws.send(message)

        with serving(trans, wait, websocket=echo), contextlib.ExitStack() as stack:
            poll, peer, silent = (stack.enter_context(Browser(edge, timeout=30)) for _ in range(3))
            poll.ask("/wait")
            assert came.wait(10)
            peer.send(UPGRADE)
            assert peer.receive().status == 101
            pongs = gevent.spawn(_answer_pings, peer)
            assert silent.get("/").body == b"answered"
            # It has asked last.
            assert silent.at_end()
            peer.send(build_frame(b"there", Opcode.TEXT, mask=MASK))
            assert pongs.get(timeout=10) == b"there"
            go_on.set()
            assert poll.receive().body == b"answered"


def _answer_pings(browser: Browser) -> bytes:
    """Return the first message that is text."""
    while True:
        head = browser.read(2)
        payload = browser.read(head[1])
        if head[0] == 0x81:
            return payload
        browser.send(build_frame(payload, Opcode.PONG, mask=MASK))
