"""HTTP behind both front ends: what comes in, what goes out, in which order, and when it ends."""

from __future__ import annotations

import logging
import os
import random

import gevent
import pytest
from front_ends import Differs, FrontEnd, StartFrontEnd
from gevent.pool import Pool
from http_rig import Browser, only_connection, routes, serving, transceiver, wait_until

from greentx.errors import LocalProtocolError
from greentx.protocol.http1 import LAST_CHUNK, build_chunk

MB = 1 << 20


@pytest.fixture(scope="module")
def servers(front_end: FrontEnd):
    """One for each encoding of headers. A Mongrel2 takes half a second before it hands on the first reply (probed)."""
    settings = {"limits.content_length": MB + 1}
    with (
        front_end.started(routes("tnetstring"), settings=settings) as tnetstring,
        front_end.started(routes("json"), settings=settings) as json,
    ):
        yield {"tnetstring": tnetstring, "json": json}


@pytest.fixture(params=["tnetstring", "json"])
def server(request: pytest.FixtureRequest, servers):
    return servers[request.param]


@pytest.fixture
def any_server(servers):
    """For what does not depend on the encoding of headers."""
    return servers["tnetstring"]


@pytest.fixture
def own_server(start_front_end: StartFrontEnd):
    """One that no other test has sent anything to."""
    return start_front_end(routes(), process=True)


# -- what comes in ---------------------------------------------------------------------------------------------------


def test_bodies_arrive_whole(server):
    """Empty, binary, and up to a megabyte, in both directions."""
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.body)):
            for size in (0, 1, 20000, MB):
                body = os.urandom(size)
                answer = browser.get("/", method="POST", body=body)
                assert answer.status == 200
                assert answer.headers["content-length"] == str(size)
                assert answer.body == body
            every = bytes(range(256)) * 3
            assert browser.get("/", method="POST", body=every).body == every


def test_odd_headers_arrive(server):
    """A TAB, invalid UTF-8, quotes, empty values, repeated and unknown names, a query."""
    seen = []

    def handler(conn, req):
        seen.append(req)
        conn.reply_http(req, "ok")

    with transceiver(server) as trans, Browser(server) as browser, serving(trans, handler):
        browser.send(
            "GET /a%20b?x=1&x=2&y= HTTP/1.1\r\nHost: localhost\r\nX-Tab: a\tb\r\n",
            b"X-Bytes: \xff\xfe\xc3\xa9\r\n",
            'X-Quote: "a\\b"\r\nX-Dup: one\r\nx-dup: two\r\nCookie: a=b\r\nCookie: c=d\r\nMETHOD: forged\r\n\r\n',
        )
        assert browser.receive().body == b"ok"
    (req,) = seen
    assert req.path == "/a%20b"
    assert req.method == "GET"
    assert req.headers["x-tab"] == "a\tb"
    assert req.headers["x-bytes"].encode("latin-1") == b"\xff\xfe\xc3\xa9"
    assert req.headers["x-quote"] == '"a\\b"'
    assert req.headers["x-dup"] == ["one", "two"]
    assert req.headers["cookie"] == ["a=b", "c=d"]
    assert req.headers["method"] == "forged"
    assert req.headers["METHOD"] == "GET"
    assert req.headers["QUERY_STR"] == "x=1&x=2&y="
    assert req.headers["QUERY"] == {"x": "2", "y": ""}
    assert req.query == {"x": ["1", "2"], "y": [""]}


def test_a_control_byte_in_a_header(front_end, server):
    """Mongrel2 hands it on, as it is; the edge refuses the request."""
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.headers["x-control"].encode())):
            answer = browser.get("/", "X-Control: a\x01b")
            assert answer.status == front_end.truth(Differs("Control characters in a field", mongrel2=200, edge=400))
            if answer.status == 200:
                assert answer.body == b"a\x01b"


def test_expect_continue_is_answered_by_the_server(server):
    """The client gets its 100 from the front end, then our answer."""
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.body)):
            browser.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            assert browser.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            browser.send("body")
            assert browser.receive().body == b"body"


@pytest.mark.parametrize("method", ["WEBSOCKET", "DISCONNECT", "JSON", "XML"])
def test_our_own_words_are_refused_as_methods(front_end, server, method, caplog):
    """A client that sends them over HTTP gets 501, by us or by the edge, and the application does not hear of it."""
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.method)):
            browser.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            browser.ask("/", method=method, body=b'{"type":"disconnect"}')
            assert browser.receive().body == b"GET"  # what was asked before keeps its turn
            answer = browser.receive()
            assert (answer.status, answer.headers["connection"]) == (501, "close")
            assert browser.at_end()
            with Browser(server) as other:
                assert other.get().body == b"GET"
    assert (f"sent the METHOD {method} over HTTP" in caplog.text) is not front_end.is_edge


@pytest.mark.parametrize("method", ["WEBSOCKET_CLOSE", "WEBSOCKET_CONNECT", "WEBSOCKET_HANDSHAKE"])
def test_methods_of_websockets_cannot_be_sent(front_end, any_server, method):
    """Mongrel2 knows no method with an underscore."""
    with transceiver(any_server) as trans, Browser(any_server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.method)):
            status = Differs("The protocol's own words as methods", mongrel2=400, edge=501)
            assert browser.get("/", method=method).status == front_end.truth(status)


# -- what goes out ---------------------------------------------------------------------------------------------------


def test_answers_without_a_body_have_none(any_server):
    """HEAD, 204 and 304: the next answer on the connection begins right behind the head."""

    def handler(conn, req):
        code = int(req.query.get("code", ["200"])[0])
        conn.reply_http(req, "" if code == 204 else "a body", code)

    with transceiver(any_server) as trans, Browser(any_server) as browser, serving(trans, handler):
        head = browser.get("/", method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "6")
        assert browser.get("/?code=204").status == 204
        assert browser.get("/?code=304").status == 304
        answer = browser.get("/?code=404")
        assert (answer.status, answer.reason, answer.body) == (404, "Not Found", b"a body")
        assert browser.get("/").body == b"a body"
        assert browser.buffer == b""


@pytest.mark.parametrize(
    ("version", "lines", "says", "closes"),
    [
        ("HTTP/1.1", [], None, False),
        ("HTTP/1.1", ["Connection: keep-alive"], None, False),
        ("HTTP/1.1", ["Connection: close"], "close", True),
        ("HTTP/1.1", ["Connection: Keep-Alive, CLOSE"], "close", True),
        ("HTTP/1.0", [], "close", True),
        ("HTTP/1.0", ["Connection: keep-alive"], "keep-alive", False),
    ],
)
def test_the_connection_lasts_as_long_as_the_client_asked(server, version, lines, says, closes):
    """It is said in the answer, and done."""
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, "x" * 5)):
            answer = browser.get("/", *lines, version=version)
            assert answer.headers.get("connection") == says
            if closes:
                assert browser.at_end()
            else:
                assert browser.get("/", *lines, version=version).body == b"xxxxx"


def test_the_handler_may_close(any_server):
    """With a Connection header of its own, in any form of headers, or by close()."""
    forms = [{"Connection": "close"}, [("connection", "close")], iter([(b"Connection", b"x, close")]), None]

    def handler(conn, req):
        headers = forms[int(req.query["form"][0])]
        conn.reply_http(req, "bye", headers=headers)
        if headers is None:
            conn.close(req)

    with transceiver(any_server) as trans, serving(trans, handler):
        for form in range(len(forms)):
            with Browser(any_server) as browser:
                assert browser.get(f"/?form={form}").body == b"bye"
                assert browser.at_end()


def test_str_and_bytes_are_taken(any_server):
    """str goes out as UTF-8; what is neither is refused, like CR and LF in a header, or a 101; nothing is sent then."""
    refused = []

    def handler(conn, req):
        for arguments in (
            {"body": 5},
            {"body": None},
            {"body": "\udc80"},
            {"body": "", "headers": {"X": "a\r\nb"}},
            {"body": "", "headers": {"X": "a\nb"}},
            {"body": "", "headers": {"X\r\n": "a"}},
            {"body": "", "status": "OK\r\nX: y"},
            {"body": "", "headers": {"Content-Length": "7"}},
            # Mongrel2 reads what follows as requests, in whatever protocol it is.
            {"body": "", "code": 101, "headers": {"Upgrade": "other", "Connection": "Upgrade"}},
        ):
            with pytest.raises(LocalProtocolError) as error:
                conn.reply_http(req, **arguments)
            refused.append(str(error.value))
        with pytest.raises(LocalProtocolError):
            conn.reply(req, 5)
        conn.reply_http(req, bytearray(b"bytes ") + "für str".encode(), headers={"X-Y": ["a", "b"]})
        with pytest.raises(LocalProtocolError, match="answered already"):
            conn.reply_http(req, "again")

    with transceiver(any_server) as trans, Browser(any_server) as browser, serving(trans, handler):
        answer = browser.get()
        assert answer.body.decode() == "bytes für str"
        assert answer.headers["x-y"] == ["a", "b"]
        assert browser.get().status == 200  # in step
    assert len(refused) == 18


def test_interim_answers_may_come_first(any_server):
    """103 Early Hints leaves the request open."""

    def handler(conn, req):
        conn.reply_http(req, "", 103, headers={"Link": "</style.css>"})
        conn.reply_http(req, "page")

    with transceiver(any_server) as trans, Browser(any_server) as browser, serving(trans, handler):
        browser.ask()
        assert browser.receive().body == b"page"
        assert browser.get().body == b"page"


def test_chunks_may_be_streamed(any_server):
    """A thousand small chunks: joined where they come fast, never a 17th message."""

    def handler(conn, req):
        conn.reply(req, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(1000):
            conn.reply(req, build_chunk(b"%d," % number))
        conn.reply(req, LAST_CHUNK)

    with transceiver(any_server) as trans, Browser(any_server) as browser, serving(trans, handler):
        for _ in range(2):
            assert browser.get().body == b"".join(b"%d," % number for number in range(1000))


def test_a_response_may_last_until_the_close(any_server):
    """Without a length the end is the connection's."""

    def handler(conn, req):
        conn.reply(req, b"HTTP/1.1 200 OK\r\n\r\n")
        conn.reply(req, b"some")
        conn.reply(req, b"")

    with transceiver(any_server) as trans, Browser(any_server) as browser, serving(trans, handler):
        assert browser.get().body == b"some"


@pytest.mark.parametrize("flow_control", [0, 1])
@pytest.mark.parametrize("slow", [False, True])
def test_five_megabytes_arrive(start_front_end, monkeypatch, flow_control, slow):
    """In one reply, to a fast reader and a slow one; with flow control never more than 102400 bytes outstanding."""
    server = start_front_end(routes(), settings={"download.flow_control": flow_control})
    body = os.urandom(5 * MB)
    with transceiver(server) as trans, Browser(server, receive_buffer=65536 if slow else None) as browser:
        outstanding: list[int] = []
        writer = only_connection(trans).link.writer
        send, credit = writer.pipe.send, writer.credit
        under_way = 0

        def counted_send(message, *arguments, **options):
            nonlocal under_way
            under_way += len(message.partition(b", ")[2])
            outstanding.append(under_way)
            return send(message, *arguments, **options)

        def counted_credit(conn_id, count):
            nonlocal under_way
            under_way -= count
            credit(conn_id, count)

        monkeypatch.setattr(writer.pipe, "send", counted_send)
        monkeypatch.setattr(writer, "credit", counted_credit)
        with serving(trans, lambda conn, req: conn.reply_http(req, body if req.path == "/big" else b"small")):
            for _ in range(2):  # keep-alive: the second request does not announce credits again
                browser.ask("/big")
                if slow:
                    wait_until(lambda: outstanding)
                    gevent.sleep(0.05)  # what must not happen has no event
                assert browser.receive().body == body
                assert browser.get("/small").body == b"small"
        if flow_control:
            assert max(outstanding) <= 102400
            assert len(outstanding) > 50


# -- order -----------------------------------------------------------------------------------------------------------


def pipelined(count: int) -> str:
    return "".join(f"GET /{number} HTTP/1.1\r\nHost: localhost\r\n\r\n" for number in range(count))


def test_a_thousand_pipelined_requests_are_answered_in_order(server):
    """By serve(), where each is handled when the one before it is done."""
    with transceiver(server) as trans, Browser(server) as browser:
        with serving(trans, lambda conn, req: conn.reply_http(req, req.path)):
            browser.send(pipelined(1000))
            assert [browser.receive().body for _ in range(1000)] == [b"/%d" % number for number in range(1000)]


def answer_in_pieces(conn, req):
    for piece in (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 5\r\n\r\n", b"%05d" % int(req.path[1:])):
        conn.reply(req, piece)
        gevent.sleep(0)


def answer_in_chunks(conn, req):
    conn.reply(req, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    gevent.sleep(0)
    conn.reply(req, build_chunk(b"%05d" % int(req.path[1:])))
    conn.reply(req, LAST_CHUNK)


def answer_whole(conn, req):
    conn.reply_http(req, b"%05d" % int(req.path[1:]))


def test_answers_in_any_order_go_out_in_the_order_of_the_requests(front_end, any_server):
    """A recv() loop has them answered at random by many greenlets: whole, in pieces, chunked."""
    count = front_end.truth(Differs("Many pipelined requests", mongrel2=1000, edge=60))
    rng = random.Random(7)
    with transceiver(any_server) as trans, Browser(any_server) as browser:
        pool = Pool()

        def receive():
            waiting = []
            for _sid, conn, req in trans.recv():
                waiting.append((conn, req))
                if len(waiting) == count:
                    rng.shuffle(waiting)
                    for item in waiting:
                        pool.spawn(rng.choice([answer_whole, answer_in_pieces, answer_in_chunks]), *item)
                    return

        receiver = gevent.spawn(receive)
        browser.send(pipelined(count))
        assert [browser.receive().body for _ in range(count)] == [b"%05d" % number for number in range(count)]
        receiver.get(timeout=5)
        pool.join(5, raise_error=True)
        assert len(only_connection(trans).link.life.requests) == 0


def test_an_answer_that_ends_the_connection_ends_the_pipeline(any_server):
    """What was asked behind it is not answered, and the answers to it go nowhere."""
    answered = []

    def receive(trans):
        waiting = []
        for _sid, conn, req in trans.recv():
            waiting.append(req)
            if len(waiting) == 3:
                for one in reversed(waiting):
                    conn.reply_http(one, one.path, headers={"Connection": "close"} if one.path == "/1" else None)
                    answered.append(one.path)
                return conn

    with transceiver(any_server) as trans, Browser(any_server) as browser:
        receiver = gevent.spawn(receive, trans)
        browser.send(pipelined(3))
        assert browser.receive().body == b"/0"
        assert browser.receive().body == b"/1"
        assert browser.at_end()
        assert answered == ["/2", "/1", "/0"]
        assert len(receiver.get().link.life.requests) == 0


def test_nothing_is_taken_behind_a_last_request(any_server):
    """A request behind one with "Connection: close" is not the application's."""
    seen = []

    def handler(conn, req):
        seen.append(req.path)
        gevent.sleep(0.05)  # the handler's work takes a while
        conn.reply_http(req, "last")

    with transceiver(any_server) as trans, Browser(any_server) as browser, serving(trans, handler):
        browser.send(
            "GET /first HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert browser.receive().body == b"last"
        assert browser.at_end()
    assert seen == ["/first"]


def test_a_client_that_pipelines_without_end_is_closed(own_server, monkeypatch, caplog):
    """Its memory has a bound; the application hears of the end."""
    monkeypatch.setattr("greentx.protocol.pipeline.MAX_PIPELINED", 50)
    events = []
    with transceiver(own_server) as trans, Browser(own_server) as browser:
        receiver = gevent.spawn(lambda: [events.append(req.method) for _, _, req in trans.recv()])
        browser.send(pipelined(60))
        assert browser.at_end()
        wait_until(lambda: "DISCONNECT" in events)
        assert events.count("DISCONNECT") == 1
        trans.stop()
        receiver.join(5)
    assert "pipelines too much" in caplog.text


# -- clients that go away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_client_that_goes_away_is_reported_once(server, how):
    """DISCONNECT, one for a connection with open requests; the answer that comes too late is passed over.

    A client that sends nothing more may still wait for its answer: the edge gives it a second, Mongrel2 none.
    """
    with transceiver(server) as trans:
        events = trans.recv(timeout=5)
        with Browser(server) as browser:
            browser.send(pipelined(3))
            requests = [next(events)[2] for _ in range(3)]
            if how == "reset":
                browser.socket.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if how == "half-close":
                browser.socket.shutdown(gevent.socket.SHUT_WR)
                assert browser.at_end()
        sid, conn, req = next(events)
        assert (req.method, req.is_disconnect(), sid) == ("DISCONNECT", True, requests[0].sid)
        sent = conn.status()["replies"]
        for one in [*requests, req]:
            conn.reply_http(one, "too late")
            conn.reply(one, b"too late")
            conn.close(one)
        assert conn.status()["replies"] == sent
        with Browser(server) as other:
            other.ask("/next")
            assert next(events)[2].path == "/next"  # and no second DISCONNECT in between
        assert next(events)[2].method == "DISCONNECT"
        events.close()


def test_an_idle_client_that_goes_away_is_not_reported(any_server):
    """Nothing was open: there is nothing to say."""
    with transceiver(any_server) as trans, serving(trans, lambda conn, req: conn.reply_http(req, req.method)):
        with Browser(any_server) as browser:
            assert browser.get().body == b"GET"
        with Browser(any_server) as browser:
            assert browser.get().body == b"GET"
            assert only_connection(trans).status()["open_requests"] == 0


def test_a_request_that_waits_survives_the_idle_limits(start_front_end):
    """Mongrel2 ends silent connections; the control messages of the pinger keep a long poll alive."""
    server = start_front_end(routes(), settings=IMPATIENT)
    with transceiver(server, ping_timeout=0.4) as trans, Browser(server) as browser, Browser(server) as silent:

        def handler(conn, req):
            if req.method == "GET":
                gevent.sleep(4)  # longer than a silent one lives
                conn.reply_http(req, "at last")

        with serving(trans, handler):
            browser.ask()
            assert browser.receive().body == b"at last"
            assert silent.at_end()  # it had no request open, so Mongrel2 ended it


def test_a_connection_that_ended_without_notice_is_found_out(start_front_end):
    """Mongrel2 tells nobody when it ends one by its limits: the control message brings the notice."""
    server = start_front_end(routes(), settings=IMPATIENT)
    with transceiver(server, ping_timeout=None) as trans, Browser(server) as browser:
        events = trans.recv(timeout=8)
        browser.ask()
        _, conn, req = next(events)
        assert browser.at_end()
        conn.intake.keep_alive()  # notes what is open
        conn.intake.keep_alive()  # asks about it
        gone = next(events)[2]
        assert (gone.method, gone.sid) == ("DISCONNECT", req.sid)
        assert conn.status()["open_requests"] == 0
        events.close()


#: Ends a connection whose client was silent for a second, at the next tick or the one after.
IMPATIENT = {
    "limits.min_ping": 1,
    "limits.min_read_rate": 100000,
    "limits.min_write_rate": 100000,
    "limits.kill_limit": 2,
    "limits.tick_timer": 1,
}


# -- to connections by their ids -------------------------------------------------------------------------------------


def test_many_connections_are_answered_at_once(any_server):
    """deliver, deliver_http and deliver_json in batches; ids as text, numbers, alone or in any iterable."""
    count = 150
    with transceiver(any_server) as trans:
        events = trans.recv(timeout=5)
        browsers = [Browser(any_server) for _ in range(count)]
        try:
            for deliver in ("http", "json", "raw"):
                for browser in browsers:
                    browser.ask()
                requests = [next(events)[2] for _ in range(count)]
                conn = only_connection(trans)
                ids = [req.conn_id for req in requests]
                if deliver == "http":
                    conn.deliver_http(any_server.handlers[0].sender, iter(ids), "all", headers=iter([("X", "y")]))
                elif deliver == "json":
                    conn.deliver_json(any_server.handlers[0].sender, map(int, ids), {"all": 1})
                else:
                    conn.deliver(any_server.handlers[0].sender, ids, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nall")
                for browser in browsers:
                    answer = browser.receive()
                    assert answer.body == (b'{"all": 1}' if deliver == "json" else b"all")
                    assert answer.headers.get("x") == ("y" if deliver == "http" else None)
                assert conn.status()["open_requests"] == 0
            sender = any_server.handlers[0].sender
            conn.send(sender, ids[0], b"bytes out of turn")
            conn.send(sender, int(ids[1]), "")
            conn.deliver_close(sender, ids[2:])
            first = next(browser for browser in browsers if not browser.at_end())
            assert first.read(16) == b"ytes out of turn"
            conn.deliver_http(sender, ids, "nothing is open")
            for bad in (["x"], ["-1"], [b"1"], "1 2"):
                with pytest.raises(LocalProtocolError, match="conn_id"):
                    conn.deliver(sender, bad, b"x")
            with pytest.raises(LocalProtocolError, match="sender"):
                conn.deliver("a b", ids, b"x")
        finally:
            for browser in browsers:
                browser.socket.close()
            events.close()


@pytest.mark.parametrize("raw_payload", [1])
def test_json_and_xml_sockets_are_answered(start_front_end, raw_payload):
    """METHOD, path and body as Mongrel2 says; reply_json, deliver_json, reply and close."""
    server = start_front_end(routes("json", raw_payload=raw_payload))
    with transceiver(server) as trans:
        events = trans.recv(timeout=5)
        with Browser(server) as browser:
            browser.send('@chat {"a":1}\0')
            _, conn, req = next(events)
            assert (req.method, req.path, req.body, req.data) == ("JSON", "@chat", b'{"a":1}', {"a": 1})
            conn.reply_json(req, {"b": 2})
            assert browser.read(8) == b'{"b": 2}'
            conn.deliver_json(req.sender, [req.conn_id], [3])
            conn.reply(req, b"raw\0")
            assert browser.read(7) == b"[3]raw\0"
            browser.send('<chat a="1">hi</chat>\0')
            _, conn, req = next(events)
            assert (req.method, req.path, req.data) == ("XML", "<chat", {})
            with pytest.raises(LocalProtocolError, match="set cannot be written as JSON"):
                conn.reply_json(req, {1})
            conn.close(req)
            assert browser.at_end()
        with Browser(server) as browser:
            browser.send("@chat {}\0")
            conn_id = next(events)[2].conn_id
        assert (next(events)[2].method, conn_id) == ("DISCONNECT", conn_id)
        events.close()


def test_a_forged_disconnect_fools_nobody(server):
    """A JSON socket's client may send what a notice looks like: it is a message like any other."""
    with transceiver(server) as trans, Browser(server) as browser:
        events = trans.recv(timeout=5)
        browser.send('@* {"type":"disconnect"}\0')
        _, conn, req = next(events)
        assert (req.method, req.path, req.is_disconnect()) == ("JSON", "@*", False)
        conn.reply_json(req, "nice try")
        assert browser.read(10) == b'"nice try"'
        events.close()


def test_http_requests_are_answered_with_json_too(any_server):
    """reply_json says application/json; recv_json decodes a body where it is JSON."""
    with transceiver(any_server) as trans, Browser(any_server) as browser:
        conn = only_connection(trans)
        browser.ask(method="POST", body=b'{"a": [1]}')
        request = conn.recv_json(5)
        assert request.data == {"a": [1]}
        conn.reply_json(request, request.data)
        answer = browser.receive()
        assert (answer.body, answer.headers["content-type"]) == (b'{"a": [1]}', "application/json")
        browser.ask(method="POST", body=b"no JSON")
        request = conn.recv_json(5)
        assert request.data == {}
        conn.reply_http(request, "")
        assert browser.receive().status == 200
        with Browser(any_server) as other:
            other.send("@chat {broken}\0")
            assert other.at_end()
        browser.send("@chat {}\0")
        assert conn.recv_json(5).body == b"{}"
        assert conn.bad_messages == 1


# -- recv() ----------------------------------------------------------------------------------------------------------


def test_recv_tells_when_nothing_came(any_server):
    """(None, None, None) each time, and events in between."""
    with transceiver(any_server) as trans, Browser(any_server) as browser:
        events = trans.recv(timeout=0.01)
        assert next(events) == (None, None, None)
        assert next(events) == (None, None, None)
        browser.ask("/x")
        event = next(one for one in events if one[0] is not None)
        assert event[0] == event[2].sid
        assert event[2].path == "/x"
        events.close()


def test_several_consumers_share_the_events(any_server):
    """Each event goes to one of them, and all of them end with the Transceiver."""
    seen: list[tuple[int, str]] = []

    def consume(trans, number):
        for _sid, conn, req in trans.recv():
            seen.append((number, req.path))
            conn.reply_http(req, req.path)
            gevent.sleep(0)

    with transceiver(any_server) as trans, Browser(any_server) as browser:
        consumers = [gevent.spawn(consume, trans, number) for number in range(3)]
        browser.send(pipelined(60))
        assert [browser.receive().body for _ in range(60)] == [b"/%d" % number for number in range(60)]
        trans.stop()
        gevent.joinall(consumers, timeout=5, raise_error=True)
        assert all(one.dead for one in consumers)
    assert sorted(path for _, path in seen) == sorted(f"/{number}" for number in range(60))
    assert len({number for number, _ in seen}) == 3


def test_one_connection_set_may_be_received_from_alone(any_server):
    """conn.recv() takes its events, those included that wait already; None after a while, and at the end."""
    with transceiver(any_server) as trans, Browser(any_server) as browser:
        conn = only_connection(trans)
        browser.ask("/before")
        wait_until(lambda: trans.status()["pending"])
        assert conn.recv(5).path == "/before"
        assert conn.recv(0.01) is None
        browser.ask("/after")
        request = conn.recv(5)
        assert request.path == "/after"
        waiting = gevent.spawn(conn.recv)
        gevent.sleep(0.01)  # until it waits in there, which nobody is told
        trans.stop()
        assert waiting.get(timeout=5) is None
        assert conn.recv() is None


# -- serve() ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [2, Pool(2), None], ids=["number", "Pool", "no limit"])
def test_the_pool_bounds_what_runs_at_once(any_server, pool):
    """As many handlers as it has places; all of them without."""
    running = peak = 0

    def handler(conn, req):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        gevent.sleep(0.02)  # the handler's work takes a while
        running -= 1
        conn.reply_http(req, "done")

    with transceiver(any_server) as trans, serving(trans, handler, pool=pool):
        browsers = [Browser(any_server) for _ in range(6)]
        for browser in browsers:
            browser.ask()
        for browser in browsers:
            assert browser.receive().body == b"done"
            browser.socket.close()
    assert peak == (6 if pool is None else 2)


def test_requests_of_one_connection_are_handled_one_after_the_other(any_server):
    """In their order, whatever each takes; another connection does not wait for them."""
    order: list[str] = []

    def handler(conn, req):
        order.append(f"begin {req.path}")
        gevent.sleep({"/0": 0.05, "/1": 0.0, "/2": 0.02}.get(req.path, 0))
        order.append(f"end {req.path}")
        conn.reply_http(req, req.path)

    with transceiver(any_server) as trans, serving(trans, handler):
        with Browser(any_server) as browser, Browser(any_server) as other:
            browser.send(pipelined(3))
            wait_until(lambda: order)
            assert other.get("/other").body == b"/other"
            assert [browser.receive().body for _ in range(3)] == [b"/0", b"/1", b"/2"]
    assert [one for one in order if "other" not in one] == [
        f"{what} /{number}" for number in range(3) for what in ("begin", "end")
    ]


def test_a_failure_is_answered_and_the_server_goes_on(any_server, caplog):
    """500 where nothing was sent, the close where something was, the traceback in the log."""

    def handler(conn, req):
        if req.path == "/begun":
            conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly a part")
        if req.path == "/answered":
            conn.reply_http(req, "answered")
        if req.path != "/fine":
            raise RuntimeError(f"what happened at {req.path}")
        conn.reply_http(req, "fine")

    with transceiver(any_server) as trans, serving(trans, handler), Browser(any_server) as browser:
        with caplog.at_level(logging.ERROR, "greentx"):
            answer = browser.get("/untouched")
            assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
            assert browser.get("/answered").body == b"answered"
            assert browser.get("/fine").body == b"fine"
            browser.ask("/begun")
            assert browser.read(10000).endswith(b"only a part")  # and the end
            with Browser(any_server) as other:
                assert other.get("/fine").body == b"fine"
    for path in ("/untouched", "/answered", "/begun"):
        assert f"RuntimeError: what happened at {path}" in caplog.text
    assert "Traceback" in caplog.text


def test_a_handler_need_not_answer(any_server):
    """Somebody else may, later; until then the request is open, and its end is told."""
    requests = []

    def handler(conn, req):
        requests.append((conn, req))

    with transceiver(any_server) as trans, serving(trans, handler):
        with Browser(any_server) as browser:
            browser.ask("/later")
            wait_until(lambda: requests)
            conn, req = requests[0]
            assert conn.status()["open_requests"] == 1
            conn.reply_http(req, "late")
            assert browser.receive().body == b"late"
            browser.ask("/never")
            wait_until(lambda: len(requests) == 2)
        wait_until(lambda: len(requests) == 3)
        assert requests[2][1].method == "DISCONNECT"
        assert requests[2][1].sid == req.sid


@pytest.mark.parametrize("pool", [1, 1000])
def test_a_disconnect_reaches_the_application_beside_the_handler_that_waits(any_server, pool):
    """A long poll learns that its client has gone, also where it fills the pool; what was pipelined is dropped."""
    gone = {}
    handled = []

    def handler(conn, req):
        handled.append((req.method, req.path))
        if req.method == "DISCONNECT":
            gone[req.sid].set()
            return
        gone[req.sid] = gevent.event.Event()
        assert gone[req.sid].wait(5)
        conn.reply_http(req, "into the void")

    with transceiver(any_server) as trans, serving(trans, handler, pool=pool):
        with Browser(any_server) as browser:
            browser.send(pipelined(3))
            wait_until(lambda: handled)
        wait_until(lambda: len(handled) == 2)
        gevent.sleep(0.02)  # what must not happen has no event
    assert handled == [("GET", "/0"), ("DISCONNECT", "@*")]


def test_a_disconnect_waits_for_the_request_that_it_ends(own_server):
    """Where that has found no place in the pool yet, the application hears of the request first."""
    handled = []
    go_on = gevent.event.Event()

    def handler(conn, req):
        handled.append((req.method, req.path))
        if req.path == "/blocks":
            assert go_on.wait(5)
            conn.reply_http(req, "")

    with transceiver(own_server) as trans, serving(trans, handler, pool=1), Browser(own_server) as blocking:
        blocking.ask("/blocks")
        wait_until(lambda: handled)
        with Browser(own_server) as browser:
            browser.ask("/short")
            wait_until(lambda: only_connection(trans).intake.requests == 2)
        gevent.sleep(0.05)  # what must not happen has no event
        go_on.set()
        wait_until(lambda: len(handled) == 3)
    assert handled == [("GET", "/blocks"), ("GET", "/short"), ("DISCONNECT", "@*")]


def test_handlers_that_are_killed_answer_503(own_server, caplog):
    """With a timeout for the end: neither the one that runs nor the ones that wait leave their client hanging."""
    with transceiver(own_server) as trans, Browser(own_server) as browser, Browser(own_server) as other:
        with serving(trans, lambda conn, req: gevent.sleep(60), pool=1):  # never ends by itself: it is ended
            browser.ask("/1")
            wait_until(lambda: only_connection(trans).intake.requests == 1)
            other.ask("/2")
            wait_until(lambda: only_connection(trans).intake.requests == 2)
            gevent.sleep(0.02)  # until it waits in there, which nobody is told
            trans.stop(0.05)
            assert (browser.receive().status, other.receive().status) == (503, 503)
    assert "2 requests had not been handled" in caplog.text


def test_handlers_of_a_serve_that_failed_end_with_the_transceiver(own_server):
    """Whatever ends serve(), no handler outlives the with block."""
    ended = []

    def handler(conn, req):
        try:
            gevent.sleep(60)  # never ends by itself: it is ended
        finally:
            ended.append(req.path)

    with Browser(own_server) as browser:
        with transceiver(own_server) as trans:
            greenlet = gevent.spawn(trans.serve, handler)
            browser.ask("/x")
            wait_until(lambda: only_connection(trans).intake.requests == 1)
            gevent.sleep(0.02)  # until it waits in there, which nobody is told
            greenlet.kill()
            assert not ended
        assert ended == ["/x"]
        assert browser.receive().status == 503


def test_running_handlers_finish_and_those_that_wait_too(own_server):
    """stop() without a timeout: all that came in is answered."""
    with transceiver(own_server) as trans:
        browsers = [Browser(own_server) for _ in range(5)]

        def handler(conn, req):
            gevent.sleep(0.02)  # the handler's work takes a while
            conn.reply_http(req, "done")

        greenlet = gevent.spawn(trans.serve, handler, pool=2)
        for browser in browsers:
            browser.ask()
        wait_until(lambda: only_connection(trans).intake.requests == 5)
        trans.stop()
        greenlet.get(timeout=5)
        for browser in browsers:
            assert browser.receive().body == b"done"
            browser.socket.close()


def test_a_handler_may_stop_the_transceiver(any_server):
    """It is not waited for by itself, and its own answer arrives."""
    with transceiver(any_server) as trans, Browser(any_server) as browser:

        def handler(conn, req):
            conn.reply_http(req, "bye")
            trans.stop()

        greenlet = gevent.spawn(trans.serve, handler)
        assert browser.get().body == b"bye"
        greenlet.get(timeout=5)


def test_without_a_handler_requests_are_refused(any_server):
    """Where only WebSockets are served, HTTP gets 426 and other sockets the close."""
    with transceiver(any_server) as trans, serving(trans, websocket=lambda ws: None):
        with Browser(any_server) as browser:
            answer = browser.get()
            assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
        with Browser(any_server) as browser:
            browser.ask("/unanswered")
            browser.receive()
        with Browser(any_server) as browser:
            browser.send("@chat {}\0")
            assert browser.at_end()


def test_answers_after_the_connection_was_removed_go_nowhere(any_server, caplog):
    """Neither an error nor a reply: they are counted and logged."""
    with transceiver(any_server) as trans, Browser(any_server) as browser:
        events = trans.recv(timeout=5)
        browser.ask()
        _, conn, req = next(events)
        trans.remove_connection(conn.sender)
        conn.reply_http(req, "too late")
        conn.deliver(req.sender, [req.conn_id], "too late")
        conn.close(req)
        assert conn.stale_replies == 3
        assert conn.recv(0.01) is None
        events.close()
    assert "the connection was removed" in caplog.text


def test_an_answer_to_a_server_that_restarted_reaches_no_stranger(own_server, caplog):
    """Ids begin at 1 again: what belongs to the old ones is dropped, and the application told."""
    with transceiver(own_server) as trans:
        events = trans.recv(timeout=8)
        with Browser(own_server) as browser, Browser(own_server) as chat:
            browser.ask("/old")
            _, conn, old = next(events)
            chat.send("@chat {}\0")
            _, _, message = next(events)
            own_server.kill()
            gone = {next(events)[2].sid for _ in range(2)}
            assert gone == {old.sid, message.sid}
        own_server.start()
        with Browser(own_server) as browser:
            browser.ask("/new")
            new = next(events)[2]
            assert new.conn_id == old.conn_id
            conn.reply_http(old, "for somebody else")
            conn.reply(old, "for somebody else")
            conn.reply_json(message, "for somebody else")
            conn.reply_websocket(old, "for somebody else")
            conn.close(old)
            conn.reply_http(new, "for you")
            assert browser.receive().body == b"for you"
        assert conn.stale_replies == 5
        events.close()
    assert "its answer was dropped" in caplog.text


def test_any_thread_may_answer(any_server):
    """A native thread hands its call over to the hub, and gets what it raised."""
    with transceiver(any_server) as trans, Browser(any_server) as browser:
        events = trans.recv(timeout=5)
        browser.ask()
        _, conn, req = next(events)
        pool = gevent.get_hub().threadpool

        def answer():
            with pytest.raises(LocalProtocolError):
                conn.reply_http(req, 5)
            conn.reply_http(req, "from a thread")
            with pytest.raises(LocalProtocolError, match="already"):
                conn.reply_http(req, "again")

        pool.apply(answer)
        assert browser.receive().body == b"from a thread"
        events.close()
