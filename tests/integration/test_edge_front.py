"""The embedded front end with a real Transceiver behind it, and beside the real Mongrel2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from http_rig import SENDER, Browser, serving, transceiver

from greentx.edge import Edge, Handler


@contextlib.contextmanager
def served(handler: Any, edge: Edge | None = None, **options: Any) -> Iterator[Edge]:
    """Serve *handler* behind an Edge."""
    with edge or Edge({"/": Handler(SENDER)}) as front, transceiver(front) as trans, serving(trans, handler, **options):
        yield front


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
        for options in ({"version": "HTTP/1.0"}, {"lines": ["Connection: close"]}):
            with Browser(edge) as browser:
                assert browser.get("/", *options.pop("lines", []), **options).body == b"GET / "
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
