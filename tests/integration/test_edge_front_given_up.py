"""Connections of the embedded front end that nobody goes on with end, and what they held is free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from http_rig import wait_until
from websocket_peer import HEAD, KEY, MASK
from wire_rig import SENDER, RawBrowser, raw_handler

from greentx.edge import Edge, Handler
from greentx.edge.front.admission import Admission
from greentx.edge.front.browsers import Browsers
from greentx.edge.front.budget import Budget
from greentx.edge.front.hosts import Hosts
from greentx.edge.front.limits import Limits
from greentx.edge.front.patience import Times
from greentx.edge.front.replies import Replies
from greentx.protocol.websocket.frames import Opcode, build_frame

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n" % KEY.encode()
)


@contextlib.contextmanager
def websocket_without_handler(edge: Edge) -> Iterator[RawBrowser]:
    """One whose handler has gone, and that has sent messages since."""
    with RawBrowser(edge) as browser:
        with raw_handler(edge) as handler:
            browser.send(UPGRADE)
            handler.reply(handler.request().conn_id, HEAD)
            browser.read(HEAD)
        # The front end may not have seen yet that the handler has gone, and then the first one is lost.
        for _ in range(4):
            browser.send(build_frame(b"hi", Opcode.TEXT, mask=MASK))
            gevent.sleep(0.05)
        yield browser


def test_a_websocket_whose_client_has_gone_does_not_wait_for_a_handler():
    """Not for longer than a request does: its place is free then."""
    with Edge({"/": Handler(SENDER)}, no_handler_timeout=0.1) as edge:
        with websocket_without_handler(edge):
            pass
        wait_until(lambda: not edge.connections)


def test_a_websocket_whose_client_is_there_waits_for_a_handler():
    """For longer than a request does."""
    with Edge({"/": Handler(SENDER)}, no_handler_timeout=0.1) as edge, websocket_without_handler(edge):
        gevent.sleep(0.5)  # it would have been given up
        with raw_handler(edge) as handler:
            assert handler.request().body == b"hi"


def test_a_silent_websocket_that_waits_for_a_handler_ends():
    """As one that waits for nothing."""
    silence = {"limits.min_ping": 1, "limits.kill_limit": 0, "limits.tick_timer": 1}
    with Edge({"/": Handler(SENDER)}, no_handler_timeout=0.1, settings=silence) as edge:
        with websocket_without_handler(edge) as browser:
            browser.read_to_end()
            wait_until(lambda: not edge.connections)


def test_a_client_that_asks_for_the_end_holds_up_no_stop():
    """Also where its handler does not close the connection."""
    with Edge({"/": Handler(SENDER)}) as edge, raw_handler(edge) as handler, RawBrowser(edge) as browser:
        browser.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        handler.reply(handler.request().conn_id, ANSWER)
        browser.read(ANSWER)
        with gevent.Timeout(30):
            edge.stop(60)
        assert browser.read_to_end() == ANSWER


def test_a_client_that_asked_for_the_end_gets_no_second_answer():
    """It may wait for the end for longer than a request may take."""
    with Edge({"/": Handler(SENDER)}, request_timeout=0.1) as edge, raw_handler(edge) as handler:
        with RawBrowser(edge) as browser:
            browser.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            conn_id = handler.request().conn_id
            handler.reply(conn_id, ANSWER)
            browser.read(ANSWER)
            gevent.sleep(0.6)  # it would have been told 408
            handler.reply(conn_id, b"")
            assert browser.read_to_end() == ANSWER


@pytest.mark.parametrize("said", [ANSWER, ANSWER[:-1]], ids=["whole", "begun"])
def test_a_request_without_a_handler_gets_no_second_answer(said):
    """A handler of another route may have given it one."""
    routes = {"/": Handler(SENDER), "/nobody": Handler("nobody-1")}
    with Edge(routes, no_handler_timeout=1) as edge, raw_handler(edge) as handler, RawBrowser(edge) as browser:
        browser.send(GET)
        conn_id = handler.request().conn_id
        handler.reply(conn_id, ANSWER)
        browser.read(ANSWER)
        browser.send(GET.replace(b"/", b"/nobody", 1))
        gevent.sleep(0.2)  # it waits
        handler.reply(conn_id, said)
        assert browser.read_to_end() == ANSWER + said


def test_what_is_refused_of_a_head_request_has_no_body():
    """Whatever refuses it, and whenever."""
    with Edge({"/": Handler(SENDER)}, request_timeout=0.1) as edge, RawBrowser(edge) as browser:
        browser.send(b"HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na")
        answer = browser.read_to_end()
        assert answer.startswith(b"HTTP/1.1 408 ") and answer.endswith(b"\r\n\r\n")


def test_a_client_that_comes_in_the_turn_of_the_stop_is_not_served():
    """Nobody would end it but the time that clients have to go."""
    browsers = Browsers(Admission(1), Replies(), Limits(), Times(linger=60), Budget(0))
    hosts: Hosts[Any] = Hosts({"/": None})
    ours, client = socket.socketpair()
    with client:
        browsers.accept(ours, "192.0.2.1", hosts)
        with gevent.Timeout(20):
            browsers.end(0)
            assert client.recv(1) == b""


def test_a_listener_that_somebody_else_has_shut_down_waits_and_says_so(caplog):
    """It would ask for the next connection without a pause."""
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        given.listen()
        with Edge({"/": Handler(SENDER)}, listeners=[given]):
            given.shutdown(socket.SHUT_RDWR)
            wait_until(lambda: "accepts nothing for now" in caplog.text)
