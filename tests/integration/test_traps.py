"""Every trap of Mongrel2's protocol has a test: here, or where the table says.

================================================  ====================================================================
trap                                              test
================================================  ====================================================================
one message per chunk or frame: dead at the 17th  test_a_burst_to_one_connection_arrives
 the same, streamed                               test_chunks_may_be_streamed
 the same, for a WebSocket                        test_many_small_messages_at_once_all_arrive
waiting for a notice that never comes             test_a_connection_that_ended_without_notice_is_found_out
 the same, for a WebSocket                        test_the_next_ping_finds_out_who_was_ended_without_a_notice
sending after the own close                       test_nothing_is_sent_behind_a_close
 a close cuts nothing off                         test_a_close_waits_for_a_slow_reader
repeated headers are lists, not str               test_odd_headers_arrive
TAB, control bytes, bad UTF-8 in JSON headers     test_odd_headers_arrive
replies do not arrive where recv_ident is set     test_replies_arrive_where_the_server_listens_to_a_name
a send_ident that cannot be parsed back           test_a_sender_that_mongrel2_cannot_parse_is_refused
more than 128 ids in one reply                    test_many_connections_are_answered_at_once
a second part is a garbage message                test_a_reply_is_one_part
LEN does not count the "X "                       test_a_request_that_waits_survives_the_idle_limits
the first replies after connecting are lost       test_the_first_reply_is_never_lost
two processes on one send_spec, frames scattered  test_a_message_of_a_client_that_another_process_let_in_is_delivered
a broadcast to dead ids: a storm of notices       test_a_storm_of_notices_is_absorbed
notices have neither PATH nor VERSION             test_a_notice_is_a_request_like_any_other
a notice that a client made up                    test_a_forged_disconnect_fools_nobody
ids kept over a restart of the server             test_an_answer_to_a_server_that_restarted_reaches_no_stranger
HTTP/1.0 and Connection: close need our close     test_the_connection_lasts_as_long_as_the_client_asked
a body on HEAD, 204, 304; no Content-Length       test_answers_without_a_body_have_none
pipelined requests answered out of order          test_answers_in_any_order_go_out_in_the_order_of_the_requests
a WebSocket refused without a close               test_a_refused_handshake_gets_its_status_and_the_end
UTF-8, opcode, RSV, code, size are not checked    test_a_fault_of_the_peer_fails_its_connection_with_the_right_code
frames before the 101                             test_frames_sent_before_the_101_are_answered_after_it
idle for 120 s: killed, whatever we write         test_a_request_that_waits_survives_the_idle_limits
 the same, for a WebSocket                        test_idle_connections_do_not_fall_to_the_servers_limit
more than 4096 bytes of headers: 400              test_large_cookies_pass
forged x-mongrel2-upload headers                  test_upload_headers_of_a_client_mean_nothing
flow control and more than 102400 bytes           test_five_megabytes_arrive
half-closing clients get no answer                test_a_client_that_goes_away_is_reported_once
the HTTP port is open before the ZeroMQ ports     test_a_handler_may_be_there_before_the_server
mongrel2 does not always exit with 0              test_any_exit_status_of_the_server_is_fine
one invalid reply stalls all others for 0.5 s     test_no_reply_of_ours_stalls_the_server
================================================  ====================================================================
"""

from __future__ import annotations

import os
import re
import statistics
import time
from pathlib import Path

import gevent
import pytest
import zmq.green as zmq
from http_rig import Browser, only_connection, routes, serving, transceiver, wait_until

from greentx import Transceiver
from greentx.edge import Handler
from greentx.errors import LocalProtocolError
from greentx.protocol.requests import build_request

ROOT = Path(__file__).parent.parent


def test_every_trap_has_its_test():
    """The table names tests that exist."""
    lines = [line for line in __doc__.splitlines() if "  test_" in line]
    named = {line.rsplit(None, 1)[1] for line in lines}
    assert len(lines) >= 30
    found = set()
    for path in ROOT.rglob("test_*.py"):
        found.update(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= found


def test_a_burst_to_one_connection_arrives(start_front_end):
    """Hundreds of small raw messages in one go, in their order, also from many greenlets to many connections."""
    server = start_front_end(routes())

    def handler(conn, req):
        conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
        for number in range(500):
            conn.reply(req, b"%04d" % number)

    expected = b"".join(b"%04d" % number for number in range(500))
    with transceiver(server) as trans, serving(trans, handler):
        browsers = [Browser(server) for _ in range(20)]
        for _ in range(3):
            for browser in browsers:
                browser.ask()
            for browser in browsers:
                assert browser.receive().body == expected
        for browser in browsers:
            browser.socket.close()


def test_nothing_is_sent_behind_a_close(start_front_end):
    """Whatever a handler does with a request whose connection it closed: Mongrel2 hears nothing of it."""
    server = start_front_end(routes())
    with transceiver(server) as trans, Browser(server) as browser:
        events = trans.recv(timeout=5)
        browser.ask("/", "Connection: close")
        _, conn, req = next(events)
        conn.reply_http(req, "last")
        sent = conn.status()["replies"]
        conn.reply(req, "more")
        conn.reply_http(req, "more")
        conn.close(req)
        assert browser.receive().body == b"last"
        assert browser.at_end()
        assert conn.status()["replies"] <= sent + 2  # the answer and the close, whenever they went out
        events.close()


def test_a_close_waits_for_a_slow_reader(start_front_end):
    """20 MB and the close behind them: the reader gets all of it."""
    server = start_front_end(routes())
    body = os.urandom(20 << 20)
    with transceiver(server) as trans, Browser(server, receive_buffer=65536) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, body)):
            browser.ask("/", "Connection: close")
            gevent.sleep(0.1)  # the bytes get to the other side, which tells nobody
            assert browser.receive().body == body
            assert browser.at_end()


@pytest.mark.parametrize("recv_ident", ["other-name", "http-rig"])
def test_replies_arrive_where_the_server_listens_to_a_name(start_front_end, recv_ident):
    """A reply begins with what the server subscribed to, be it a name of its own or the start of ours."""
    server = start_front_end(routes(recv_ident=recv_ident))
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, "heard")):
            assert browser.get().body == b"heard"


@pytest.mark.parametrize("sender", ["", "a_b", "a.b", "a b", "ä", "a\n", b"a_b"])
def test_a_sender_that_mongrel2_cannot_parse_is_refused(sender):
    """At once, with what is allowed, wherever a sender is named."""
    with pytest.raises(ValueError, match="letters, digits and '-'"):
        Transceiver(sender, ("127.0.0.1", 1), ("127.0.0.1", 2))
    with Transceiver("fine", ("127.0.0.1", 1), ("127.0.0.1", 2), rep_port=False) as trans:
        with pytest.raises(ValueError, match="letters, digits and '-'"):
            trans.add_connection(sender, ("127.0.0.1", 1), ("127.0.0.1", 2))
        with pytest.raises(LocalProtocolError):
            only_connection(trans).deliver(sender, ["1"], "x")
        assert list(trans.connections) == ["fine"]


def test_a_reply_is_one_part():
    """Of everything that a connection set sends, nothing has a second part."""
    context = zmq.Context()
    push, sub = context.socket(zmq.PUSH), context.socket(zmq.SUB)
    ports = [one.bind_to_random_port("tcp://127.0.0.1") for one in (push, sub)]
    sub.subscribe(b"")
    try:
        with Transceiver("u", ("127.0.0.1", ports[0]), ("127.0.0.1", ports[1]), rep_port=False) as trans:
            trans.wait_ready(5)
            events = trans.recv(timeout=5)
            push.send(build_request("u", 1, "/", {"METHOD": "GET", "VERSION": "HTTP/1.0"}))
            _, conn, req = next(events)
            conn.reply_http(req, "x" * 100000)
            conn.deliver("u", range(300), "data")
            conn.intake.keep_alive()
            with gevent.Timeout(5):
                parts = [sub.recv_multipart() for _ in range(5)]
            assert {len(one) for one in parts} == {1}
            assert [len(one[0].partition(b":")[2].partition(b",")[0].split()) for one in parts[2:]] == [128, 128, 44]
            events.close()
    finally:
        context.destroy(0)


def test_the_first_reply_is_never_lost(start_front_end):
    """A request that waits in the server is answered by each handler that starts, right after it connected."""
    server = start_front_end(routes())
    for number in range(25):
        # A request that is pushed to the handler before, since the server has not noticed its end yet, is lost with it.
        gevent.sleep(0.02)
        with Browser(server) as browser:
            browser.ask(f"/{number}")
            with transceiver(server, connect_timeout=None) as trans:
                with serving(trans, lambda conn, req: conn.reply_http(req, req.path)):
                    assert browser.receive().body == b"/%d" % number


def test_a_notice_is_a_request_like_any_other(start_front_end):
    """What an application may ask of a request it may ask of a DISCONNECT."""
    server = start_front_end(routes())
    with transceiver(server) as trans:
        events = trans.recv(timeout=5)
        with Browser(server) as browser:
            browser.ask()
            next(events)
        _, conn, req = next(events)
        assert req.method == "DISCONNECT"
        assert (req.path, req.query, req.data, req.should_close()) == ("@*", {}, {"type": "disconnect"}, False)
        assert req.headers.first("PATH") is None
        assert req.is_disconnect()
        conn.reply_http(req, "nobody is there")
        events.close()


def test_large_cookies_pass(start_front_end):
    """12 KB of them, with the buffer that our managed server asks for."""
    server = start_front_end(routes())
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.headers["cookie"])):
            cookie = "a=" + "x" * 12000
            assert browser.get("/", f"Cookie: {cookie}").body == cookie.encode()


def test_upload_headers_of_a_client_mean_nothing(start_front_end, tmp_path):
    """A request that says it is an upload is a request; the file that it names is not touched."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    server = start_front_end(routes())
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.body)):
            names = [f"X-Mongrel2-Upload-Start: {victim}", f"X-Mongrel2-Upload-Done: {victim}"]
            assert browser.get("/", *names, method="POST", body=b"body").body == b"body"
    assert victim.read_text() == "precious"


def test_a_handler_may_be_there_before_the_server(start_front_end):
    """It waits for the subscription, not for a port; requests that came in between are answered."""
    server = start_front_end(routes(), process=True)
    server.kill()
    with transceiver(server, connect_timeout=None) as trans:
        with serving(trans, lambda conn, req: conn.reply_http(req, "here")):
            assert not only_connection(trans).ready
            server.start()
            with Browser(server) as browser:
                assert browser.get().body == b"here"
            assert only_connection(trans).ready


def test_any_exit_status_of_the_server_is_fine(start_front_end):
    """With open connections it may abort: the handler goes on, and so does the next server."""
    server = start_front_end(routes(), process=True)
    with transceiver(server) as trans:
        with serving(trans, lambda conn, req: conn.reply_http(req, "again") if req.method == "GET" else None):
            browsers = [Browser(server) for _ in range(5)]
            for browser in browsers:
                assert browser.get().body == b"again"
            server.restart()
            for browser in browsers:
                browser.socket.close()
            with Browser(server) as browser:
                assert browser.get().body == b"again"


def test_no_reply_of_ours_stalls_the_server(start_front_end):
    """Requests of a client answer within milliseconds, whatever else is sent: closes, control messages, dead ids."""
    server = start_front_end({**routes(), "/other": Handler("other-1")})
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, "x")):
            browser.get()  # the first half second is the server's own
            conn = only_connection(trans)
            times = []
            for number in range(20):
                conn.deliver(conn.sender, [1000 + number, 2000], "nobody")
                conn.deliver_close(conn.sender, [3000])
                conn.intake.keep_alive()
                started = time.monotonic()
                assert browser.get().body == b"x"
                times.append(time.monotonic() - started)
            assert statistics.median(times) < 0.4
            wait_until(lambda: conn.status()["open_requests"] == 0)
