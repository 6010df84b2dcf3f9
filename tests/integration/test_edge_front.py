"""The embedded front end with a real Transceiver behind it, and beside the real Mongrel2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.event
import pytest
import zmq.green as zmq
from gevent import select, socket
from http_rig import SENDER, Browser, serving, transceiver, wait_until

from greentx.edge import Edge, Handler
from greentx.errors import LocalProtocolError
from greentx.protocol.replies import build_extended_reply, build_reply

# Those of Mongrel2; it looks only once in ten seconds otherwise.
QUICK_END = {"limits.min_ping": 1, "limits.tick_timer": 1}


@contextlib.contextmanager
def served(handler: Any, edge: Edge | None = None, **options: Any) -> Iterator[Edge]:
    """Serve *handler* behind an Edge."""
    with edge or Edge({"/": Handler(SENDER)}) as front, transceiver(front) as trans, serving(trans, handler, **options):
        yield front


@contextlib.contextmanager
def publisher_to(edge: Edge) -> Iterator[Any]:
    """A socket of a handler that says what it should not."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.linger = 0
        publisher.connect(str(edge.handlers[0].recv_spec))
        assert publisher.recv() == b"\x01"
        yield publisher


def echo(conn: Any, req: Any) -> None:
    conn.reply_http(req, f"{req.method} {req.path} ".encode() + req.body)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_requests_are_answered_one_after_the_other_on_one_connection(protocol):
    """With and without a body, and HEAD without one in its answer."""
    with served(echo, Edge({"/": Handler(SENDER, protocol=protocol)})) as edge, Browser(edge) as browser:
        assert browser.get("/a?b").body == b"GET /a "
        assert browser.get("/p", method="POST", body=b"x\0y").body == b"POST /p x\0y"
        head = browser.get("/h", method="HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "8")
        assert browser.get("/z").body == b"GET /z "


def test_chunks_are_undone():
    """A handler gets the body whole."""
    with served(echo) as edge, Browser(edge) as browser:
        browser.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert browser.receive().body == b"POST / abcde"


def test_pipelined_requests_are_answered_in_their_order():
    """Also where the first one takes longest."""

    def slow_first(conn: Any, req: Any) -> None:
        if req.path == "/0":
            gevent.sleep(0.2)
        echo(conn, req)

    with served(slow_first) as edge, Browser(edge) as browser:
        for number in range(40):
            browser.ask(f"/{number}")
        assert [browser.receive().body for _ in range(40)] == [b"GET /%d " % number for number in range(40)]


def test_a_connection_ends_where_the_client_asked_for_it():
    """By HTTP/1.0 and by a field."""
    with served(echo) as edge:
        for version, field in (("HTTP/1.0", "X: y"), ("HTTP/1.1", "Connection: close")):
            with Browser(edge) as browser:
                assert browser.get("/", field, version=version).body == b"GET / "
                assert browser.at_end()


def test_what_is_refused_is_answered_behind_the_answers_before_it():
    """The running answer is not cut off."""

    def slow(conn: Any, req: Any) -> None:
        gevent.sleep(0.2)
        echo(conn, req)

    with served(slow) as edge, Browser(edge) as browser:
        browser.ask("/")
        browser.send("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")
        assert browser.receive().body == b"GET / "
        assert browser.receive().status == 400
        assert browser.at_end()


def test_a_path_without_a_route_is_answered_404():
    """And the connection ends."""
    with served(echo, Edge({"/only": Handler(SENDER)})) as edge, Browser(edge) as browser:
        assert browser.get("/only").status == 200
        assert browser.get("/other").status == 404
        assert browser.at_end()


def test_a_client_that_closes_its_sending_half_is_answered():
    """Mongrel2 takes it for one that has gone."""

    def slow(conn: Any, req: Any) -> None:
        gevent.sleep(0.2)
        conn.reply_http(req, bytes(3_000_000))

    with served(slow) as edge, Browser(edge) as browser:
        browser.ask("/")
        browser.socket.shutdown(1)
        assert len(browser.receive().body) == 3_000_000
        assert browser.at_end()


def test_a_client_waits_for_100_continue():
    """The body comes behind it."""
    with served(echo) as edge, Browser(edge) as browser:
        browser.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
        assert browser.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        browser.send("ab")
        assert browser.receive().body == b"POST / ab"


def test_a_large_answer_reaches_a_slow_client_whole():
    """The close behind it does not cut it off."""

    def large(conn: Any, req: Any) -> None:
        conn.reply_http(req, bytes(20_000_000))

    with served(large) as edge, Browser(edge, receive_buffer=4096) as browser:
        browser.ask("/", "Connection: close")
        gevent.sleep(0.3)  # it does not read meanwhile
        assert len(browser.receive().body) == 20_000_000
        assert browser.at_end()


def test_requests_wait_for_a_handler():
    """None is lost while handlers are replaced."""
    with Edge({"/": Handler(SENDER)}) as edge, contextlib.ExitStack() as stack:
        browsers = [stack.enter_context(Browser(edge)) for _ in range(20)]
        for browser in browsers:
            browser.ask("/first")
        for path in ("/first", "/second"):
            with transceiver(edge) as trans, serving(trans, echo):
                for browser in browsers:
                    if path != "/first":
                        browser.ask(path)
                    assert browser.receive().body == f"GET {path} ".encode()


def test_where_no_handler_comes_the_answer_is_503():
    """In place of a request that waits for ever; a handler never sees it."""
    seen = []

    def note(conn: Any, req: Any) -> None:
        seen.append(req.path)
        echo(conn, req)

    with Edge({"/": Handler(SENDER)}, no_handler_timeout=0.1) as edge:
        with Browser(edge) as browser:
            assert browser.get("/lost").status == 503
            assert browser.at_end()
        with transceiver(edge) as trans, serving(trans, note), Browser(edge) as browser:
            assert browser.get("/found").status == 200
    assert seen == ["/found"]


def test_a_handler_is_told_of_a_client_that_has_gone():
    """While it waits for its answer; an answer to it brings the notice again, and does no harm."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=0.0) as edge, transceiver(edge) as trans:
        with Browser(edge) as browser:
            browser.ask("/")
            _, conn, req = next(trans.recv())
        for sid, _, event in trans.recv(timeout=10):
            assert event is not None
            assert (sid, event.method) == (req.sid, "DISCONNECT")
            break
        conn.deliver(req.sender, [req.conn_id], b"to nobody")
        with serving(trans, echo), Browser(edge) as browser:
            assert browser.get("/").status == 200


def test_a_reply_that_is_invalid_is_logged_and_holds_up_nobody(caplog):
    """Mongrel2 says nothing, and stalls for half a second."""
    with served(echo) as edge, publisher_to(edge) as publisher, Browser(edge) as browser:
        for message in (b"", b"junk", b"x 1:a, b", b"x 2:1 2, b", b"x 9:X 1, b"):
            publisher.send(message)
        wait_until(lambda: caplog.text.count("is invalid") == 5)
        assert browser.get("/").status == 200


SLOW = {
    "half a head": b"GET / HTTP/1.1\r\nHost: x\r\nX-",
    "half a line": b"GET",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_request_that_does_not_go_on_is_answered_408(sent):
    """And ends, also where it follows one that was answered."""
    with served(echo, Edge({"/": Handler(SENDER)}, request_timeout=0.3)) as edge, Browser(edge) as browser:
        assert browser.get("/").status == 200
        browser.send(sent)
        assert browser.receive().status == 408
        assert browser.at_end()
        wait_until(lambda: not edge.connections)


def test_a_head_gets_no_more_time_by_its_bytes():
    """However steadily they come."""
    with served(echo, Edge({"/": Handler(SENDER)}, request_timeout=0.5)) as edge, Browser(edge) as browser:
        browser.send("GET / HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                browser.send("X: y\r\n")
                if select.select([browser.socket], [], [], 0.05)[0]:
                    break
        assert browser.receive().status == 408


def test_a_silent_connection_ends():
    """After ``limits.min_ping`` seconds; one that is answered slowly does not."""

    def slow(conn: Any, req: Any) -> None:
        gevent.sleep(0.3)
        echo(conn, req)

    with served(slow, Edge({"/": Handler(SENDER)}, settings=QUICK_END)) as edge, Browser(edge) as browser:
        assert browser.get("/").status == 200
        assert browser.at_end()


def test_too_many_connections_are_answered_503():
    """In all, and of one address; those that are there are served, and places become free."""
    routes = {"/": Handler(SENDER)}
    for front in (Edge(routes, max_connections=2), Edge(routes, max_per_address=2)):
        with served(echo, front) as edge:
            with Browser(edge) as first, Browser(edge) as second:
                assert first.get("/").status == second.get("/").status == 200
                with Browser(edge) as third:
                    assert third.receive().status == 503
                    assert third.at_end()
                assert first.get("/").status == 200
            wait_until(lambda: not edge.connections)
            with Browser(edge) as browser:
                assert browser.get("/").status == 200


def test_an_answer_that_is_due_gets_out_before_the_end():
    """A stop waits for it, and accepts nobody meanwhile."""
    began = gevent.event.Event()

    def slow(conn: Any, req: Any) -> None:
        began.set()
        gevent.sleep(0.3)
        echo(conn, req)

    edge = Edge({"/": Handler(SENDER)})
    with served(slow, edge), Browser(edge) as browser, Browser(edge) as idle:
        browser.ask("/")
        assert began.wait(10)
        stopping = gevent.spawn(edge.stop)
        assert browser.receive().body == b"GET / "
        assert browser.at_end()
        assert idle.at_end()
        stopping.get(timeout=10)
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", edge.port))


def test_a_client_that_reads_nothing_is_ended_once_too_much_waits(caplog):
    """Others are served meanwhile."""
    with served(echo) as edge, Browser(edge, receive_buffer=4096) as stuck, Browser(edge) as browser:
        stuck.ask("/")
        assert stuck.receive().status == 200
        with publisher_to(edge) as publisher:
            for _ in range(30):
                publisher.send(SENDER.encode() + b" 1:1, " + bytes(1_000_000))
            wait_until(lambda: "messages wait for it at once" in caplog.text)
            assert browser.get("/").status == 200
        wait_until(lambda: edge.connections == 1)


def test_settings_that_mean_nothing_here_are_refused():
    """Nobody believes that they were in force."""
    with pytest.raises(LocalProtocolError, match="means nothing"):
        Edge(settings={"zeromq.threads": 2})


def test_what_extended_replies_ask_for_is_done():
    """A connection is kept alive, or ended at once; of an id that nobody has the handler is told."""
    with Edge({"/": Handler(SENDER)}, settings=QUICK_END) as edge, publisher_to(edge) as publisher:
        with zmq.Context() as context, context.socket(zmq.PULL) as pull, Browser(edge) as browser:
            pull.connect(str(edge.handlers[0].send_spec))
            browser.ask("/")
            assert pull.poll(10_000)
            assert pull.recv().startswith(f"{SENDER} 1 / ".encode())
            for _ in range(8):
                publisher.send(build_extended_reply(SENDER, [1], "ctl", {b"keep-alive": b""}))
                gevent.sleep(0.25)  # it is the time that counts here
            assert edge.connections == 1
            publisher.send(build_extended_reply(SENDER, [1], "ctl", {b"cancel": b""}))
            assert browser.at_end()
            for message in (
                build_extended_reply(SENDER, [7], "ctl", {b"keep-alive": b""}),
                build_reply(SENDER, 8, b""),
            ):
                publisher.send(message)
            assert pull.poll(10_000)
            assert [pull.recv().split(b" ", 3)[1:3] for _ in range(2)] == [[b"7", b"@*"], [b"8", b"@*"]]
