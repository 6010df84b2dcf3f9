"""Pretend browsers: what handlers get of them, and what they make of the answers."""

from __future__ import annotations

import contextlib

import gevent
import pytest
from free_ports import Server
from plain_handler import PlainHandler

from greentx.errors import (
    ConnectionClosed,
    ConnectTimeout,
    LocalProtocolError,
    RemoteProtocolError,
    SendTimeout,
)
from greentx.protocol.replies import build_extended_reply, build_reply, parse_reply
from greentx.protocol.websocket.deflate import DeflateConfig
from greentx.protocol.websocket.frames import Frame, Opcode, build_close, build_frame, parse_flags
from greentx.protocol.websocket.handshake import Accepted, Handshake
from greentx.standin.headers import build_headers

CLOSE = b""


@contextlib.contextmanager
def pair(answer, protocol="http", **options):
    """A handler that answers so, and a client of a server that it is connected to."""
    with PlainHandler(answer) as handler, Server("S", ip="127.0.0.1", connect=handler.addr, **options) as server:
        client = server.client(protocol)
        yield handler, client


def wait_until(fact, timeout=5.0):
    """Return once *fact* is true."""
    with gevent.Timeout(timeout):
        while not fact():
            gevent.sleep(0.002)


# -- what a handler gets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        (("/", None, b"", None), "/", {"METHOD": "GET", "URI": "/", "PATH": "/", "VERSION": "HTTP/1.1"}),
        (("/a?x=1&y", None, b"", None), "/a", {"QUERY": "x=1&y", "URI": "/a?x=1&y", "PATH": "/a"}),
        (("/a?", None, b"", None), "/a", {"QUERY": "", "URI": "/a?"}),
        (("/a?q#top", None, b"", None), "/a", {"FRAGMENT": "top", "URI": "/a?q", "QUERY": "q"}),
        (("/", None, b"body", None), "/", {"METHOD": "POST", "content-length": "4"}),
        (("/", None, b"", "PUT"), "/", {"METHOD": "PUT", "content-length": "0"}),
        (("/", {"Content-Length": "9"}, b"body", None), "/", {"content-length": "9"}),
        (("/", {"X-Some": "A", "Cookie": ["a", "b"]}, b"", None), "/", {"x-some": "A", "cookie": ["a", "b"]}),
        (("/", {"Method": "FORGED", "DNT": "1"}, b"", None), "/", {"METHOD": "GET", "method": "FORGED", "dnt": "1"}),
        (("/", {"METHOD": "JSON", "REMOTE_ADDR": "10.0.0.1"}, b"", None), "/", {"METHOD": "JSON"}),
        (("/", {"VERSION": "HTTP/1.0", "host": "a.b"}, b"", None), "/", {"VERSION": "HTTP/1.0", "host": "a.b"}),
    ],
)
def test_a_request_has_the_headers_that_mongrel2_makes(arguments, path, expected):
    """Its own names in upper case, the browser's in lower case."""
    target, headers = build_headers(*arguments)
    assert target == path
    assert {name: headers[name] for name in expected} == expected
    assert {"PATTERN", "URL_SCHEME", "REMOTE_ADDR", "x-forwarded-for", "host"} <= headers.keys()
    assert ("QUERY" in headers) == ("?" in arguments[0])
    assert ("FRAGMENT" in headers) == ("#" in arguments[0])


def test_a_header_can_be_left_out():
    """None takes away what would be there."""
    _, headers = build_headers("/", {"host": None, "REMOTE_ADDR": None, "x": None}, b"", None)
    assert not {"host", "REMOTE_ADDR", "x"} & headers.keys()


@pytest.mark.parametrize(
    ("path", "headers", "why"),
    [(None, None, "a path is str, not NoneType"), ("/", [("a", "b")], "headers are a mapping .*, not list")],
)
@pytest.mark.parametrize("protocol", ["http", "mongrel2", "websocket"])
def test_what_is_no_request_is_refused(protocol, path, headers, why):
    """By its name, and before anything is sent."""
    with Server(ip="127.0.0.1") as server:
        client = server.client(protocol)
        with pytest.raises(LocalProtocolError, match=why):
            getattr(client, "handshake" if protocol == "websocket" else "send")(path, headers)


@pytest.mark.parametrize("encoding", ["tnetstring", "json"])
@pytest.mark.parametrize("protocol", ["mongrel2", "http"])
def test_a_handler_gets_the_request(protocol, encoding):
    """In either encoding, with its odd bytes."""
    with pair(lambda request: None, protocol, encoding=encoding) as (handler, client):
        client.send("/p%20q?x=1", {"X": "\xff\t"}, b"\0\xff", method="PUT")
        wait_until(lambda: handler.requests)
        request = handler.requests[0]
        assert (request.sender, request.conn_id, request.path) == ("S", client.conn_id, "/p%20q")
        assert (request.method, request.body, request.query) == ("PUT", b"\0\xff", {"x": ["1"]})
        assert request.headers["x"] == "\xff\t"
        assert not request.should_close()


def test_a_disconnect_is_a_notice_to_the_handler():
    """Only where it has heard of the connection, and once."""
    with pair(lambda request: None, "mongrel2") as (handler, client):
        silent = client.server.client()
        silent.disconnect()
        client.send("/")
        client.disconnect()
        client.disconnect()
        assert client.closed
        wait_until(lambda: len(handler.requests) == 2)
        assert handler.requests[1].is_disconnect()
        assert handler.requests[1].conn_id == client.conn_id
        with pytest.raises(ConnectionClosed):
            client.send("/")
        with pytest.raises(ConnectionClosed):
            client.recv()
        assert client.server.clients == 0
        assert "closed" in repr(client)


def test_a_disconnect_that_nobody_takes_times_out():
    """The client is closed all the same; a block ends without complaint."""
    with Server("S", ip="127.0.0.1") as server:
        with PlainHandler(lambda request: None) as handler:
            server.connect(handler.addr)
            one, two = server.client(), server.client()
            with two:
                one.send("/")
                two.send("/")
                server.disconnect(handler.addr)
        assert two.closed
        with pytest.raises(SendTimeout):
            one.disconnect(timeout=30)
        assert one.closed


def test_who_receives_hears_at_once_of_a_disconnect_by_another():
    """And does not wait for the rest of its time."""
    with pair(lambda request: None) as (_, client):
        client.send("/")

        def receive():
            with pytest.raises(ConnectionClosed):
                client.recv(60_000)

        receiving = gevent.spawn(receive)
        gevent.sleep(0)  # it waits
        client.disconnect()
        receiving.get(timeout=20)


def test_the_end_of_a_block_is_a_disconnect():
    """The browser goes with its block."""
    with pair(lambda request: None, "mongrel2") as (handler, client):
        with client:
            client.send("/")
        assert client.closed
        wait_until(lambda: len(handler.requests) == 2)
        assert handler.requests[1].is_disconnect()


def test_a_request_that_nobody_took_was_not_sent():
    """The client can go on, and knows what it waits for."""
    with PlainHandler(lambda request: b"HTTP/1.1 204 OK\r\n\r\n") as handler, Server("S", ip="127.0.0.1") as server:
        client = server.client("http")
        for method in ("HEAD", "GET"):
            with pytest.raises(SendTimeout):
                client.send("/", method=method, timeout=20)
        server.connect(handler.addr)
        client.send("/")
        assert client.recv().status == 204
        assert client.recv(timeout=10) is None


def send_in_vain(client, path):
    """It finds no room for 50 ms."""
    with pytest.raises(SendTimeout):
        client.send(path, timeout=50)


def test_a_request_that_times_out_leaves_the_waiting_ones_in_their_order():
    """A HEAD behind it is still known as one when its answer comes, which has no body."""
    answers = {"HEAD": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"}
    answers["GET"] = answers["HEAD"] + b"got"
    with PlainHandler(lambda request: answers[request.method]) as handler, Server("S", ip="127.0.0.1") as server:
        client = server.client("http")
        timing_out = gevent.spawn(send_in_vain, client, "/a")
        sending = [gevent.spawn(client.send, path, method=method) for path, method in (("/b", "HEAD"), ("/c", "GET"))]
        timing_out.get(timeout=5)
        server.connect(handler.addr)
        gevent.joinall(sending, timeout=5, raise_error=True)
        assert [client.recv().body for _ in range(2)] == [b"", b"got"]
        assert [request.path for request in handler.requests] == ["/b", "/c"]


def test_a_request_that_times_out_says_so_where_a_bad_reply_came_meanwhile():
    """The reply has ended the connection, and nothing is left to take back."""
    with Server("S", ip="127.0.0.1") as server:
        client = server.client("http")
        sending = gevent.spawn(send_in_vain, client, "/")
        gevent.idle()  # runs what is ready: the request waits for room from here on
        client.deliver(parse_reply(build_reply("S", client.conn_id, b"not HTTP at all")))
        sending.get(timeout=5)
        with pytest.raises(RemoteProtocolError, match="does not begin an HTTP/1 response"):
            client.recv()


# -- mongrel2 --------------------------------------------------------------------------------------------------------


def test_replies_come_as_they_are():
    """The closing one too, then the connection has ended."""
    with pair(lambda request: [b"one", b"two", CLOSE], "mongrel2") as (_, client):
        client.send("/")
        assert [client.recv().body for _ in range(2)] == [b"one", b"two"]
        closing = client.recv()
        assert closing.is_close
        assert client.closed
        with pytest.raises(ConnectionClosed):
            client.recv()


def test_recv_returns_none_when_nothing_came():
    """After its timeout, and not much before."""
    with pair(lambda request: None, "mongrel2") as (_, client):
        client.send("/")
        assert client.recv(timeout=0) is None
        with gevent.Timeout(5):
            assert client.recv(timeout=30) is None


@pytest.mark.parametrize(
    ("key", "value", "kills"),
    [
        ("ctl", {b"keep-alive": b""}, False),
        ("ctl", {b"credits": 100}, False),
        ("ctl", {b"cancel": b""}, True),
        ("unknown", b"x", True),
    ],
)
def test_an_extended_reply_comes_as_it_is(key, value, kills):
    """Those that make Mongrel2 end the connection end it."""
    with pair(lambda request: None, "mongrel2") as (handler, client):
        handler.publish_raw("S", build_extended_reply("S", client.conn_id, key, value))
        assert client.recv().extended == (key.encode(), value)
        assert client.closed is kills


# -- http ------------------------------------------------------------------------------------------------------------

RESPONSES = [
    ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], "GET", 200, "OK", b"ok", False),
    ([b"HTTP/1.1 200 OK\r\nContent-", b"Length: 2\r\n\r", b"\no", b"k"], "GET", 200, "OK", b"ok", False),
    (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"0\r\n\r\n"],
        "GET",
        200,
        "OK",
        b"ok",
        False,
    ),
    ([b"HTTP/1.1 200 OK\r\n\r\n", b"until ", b"close", CLOSE], "GET", 200, "OK", b"until close", True),
    ([b"HTTP/1.1 204 No Content\r\n\r\n"], "GET", 204, "No Content", b"", False),
    ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"], "HEAD", 200, "OK", b"", False),
    ([b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n", CLOSE], "GET", 404, "Not Found", b"", True),
    ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], "PUT", 200, "OK", b"", False),
]


@pytest.mark.parametrize(("bodies", "method", "status", "reason", "body", "closes"), RESPONSES)
def test_a_response_is_read_however_it_is_framed(bodies, method, status, reason, body, closes):
    """By length, in chunks, until the connection closes, or without a body; cut anywhere."""
    with pair(lambda request: bodies) as (_, client):
        client.send("/", method=method)
        response = client.recv()
        assert (response.status, response.reason, response.body) == (status, reason, body)
        assert repr(response) == f"<HTTPResponse {status} {reason} body={len(body)} bytes>"
        if closes:
            wait_until(lambda: client.closed)
            with pytest.raises(ConnectionClosed):
                client.recv()
        else:
            assert not client.closed
            assert client.recv(timeout=1) is None


def test_a_response_has_headers_trailers_and_json():
    """Names in lower case, repeated ones as lists."""
    answer = (
        b'HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"a":1}\r\n0\r\n'
        b"X-Sum: 5\r\n\r\n"
    )
    with pair(lambda request: answer) as (_, client):
        client.send("/")
        response = client.recv()
        assert response.headers["set-cookie"] == ["a", "b"]
        assert response.trailers == {"x-sum": "5"}
        assert response.json() == {"a": 1}
        assert response.version == "HTTP/1.1"


def test_pipelined_responses_are_told_apart():
    """Several in one message, and one in several; HEAD is remembered."""
    with pair(lambda request: None) as (handler, client):
        for method in ("GET", "HEAD", "GET"):
            client.send("/", method=method)
        handler.publish("S", client.conn_id, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noneHTTP/1.1 200 OK\r\nConte")
        assert client.recv().body == b"one"
        assert client.recv(timeout=10) is None
        handler.publish("S", client.conn_id, b"nt-Length: 3\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nth")
        assert client.recv().body == b""
        handler.publish("S", client.conn_id, b"ree")
        assert client.recv().body == b"three"


@pytest.mark.parametrize(
    ("bodies", "why"),
    [
        ([b"not HTTP at all"], "does not begin an HTTP/1 response"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", CLOSE], "7 bytes before its end"),
        ([b"HTTP/1.1 200 OK\r\nConte", CLOSE], "ended in the head"),
        ([CLOSE], "without a response"),
        ([b"HTTP/1.1 204 OK\r\n\r\n", b"surplus"], "no request asked for"),
    ],
)
def test_what_is_no_response_raises(bodies, why):
    """Once; the connection is then of no more use, and the handler is told."""
    with pair(lambda request: bodies) as (_, client):
        client.send("/")
        if len(bodies) == 2 and b"204" in bodies[0]:
            assert client.recv().status == 204
        with pytest.raises(RemoteProtocolError, match=why):
            client.recv()
        assert client.closed
        with pytest.raises(ConnectionClosed):
            client.recv()


def test_a_handler_hears_of_a_client_that_gave_up():
    """As of a browser that closes on what it does not understand."""
    with pair(lambda request: b"garbage") as (handler, client):
        client.send("/")
        wait_until(lambda: len(handler.requests) == 2)
        assert handler.requests[1].is_disconnect()


def test_http_ignores_control_replies_but_for_those_that_kill():
    """keep-alive is for the server, cancel ends the connection in mid-response."""
    with pair(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n12") as (handler, client):
        client.send("/")
        handler.publish_raw("S", build_extended_reply("S", client.conn_id, "ctl", {b"keep-alive": b""}))
        assert client.recv(timeout=30) is None
        handler.publish_raw("S", build_extended_reply("S", client.conn_id, "ctl", {b"cancel": b""}))
        with pytest.raises(RemoteProtocolError, match="2 bytes before its end"):
            client.recv()


# -- websocket -------------------------------------------------------------------------------------------------------


class Echo:
    """Accepts handshakes with *handshake*, then answers messages as told, by default with themselves."""

    def __init__(self, handshake=None, answer=None):
        self.handshake = handshake or Handshake()
        self.answer = answer or self.echo
        self.deflate = None

    def __call__(self, request):
        if request.method == "WEBSOCKET_HANDSHAKE":
            answer = self.handshake.check(request.headers, request.body)
            if isinstance(answer, Accepted):
                self.deflate = answer.deflate
                return answer.head
            return [answer.build(), CLOSE]
        opcode, rsvd = parse_flags(request.headers["FLAGS"])
        return self.answer(request, opcode, rsvd)

    def echo(self, request, opcode, rsvd):
        if opcode == Opcode.PING:
            return build_frame(request.body, Opcode.PONG)
        if opcode == Opcode.PONG:
            return None
        if opcode == Opcode.CLOSE:
            return [build_frame(request.body, Opcode.CLOSE), CLOSE]
        return build_frame(request.body, opcode, rsvd)


def websockets(**options):
    """A handler that echoes, and a websocket client."""
    return pair(Echo(**options), "websocket")


def test_a_websocket_says_what_mongrel2_would_say():
    """The handshake's headers come with each frame; the payload is unmasked, FLAGS has FIN and opcode."""
    with websockets() as (handler, client):
        answer = client.handshake("/chat?room=1", {"Cookie": "a=b"}, origin="http://here")
        assert (answer.status, client.subprotocol, client.deflate) == (101, None, None)
        client.send("h\xe9llo")
        assert client.recv() == Frame("h\xe9llo".encode(), Opcode.TEXT)
        client.send(b"\0\xff" * 40_000)
        assert client.recv() == Frame(b"\0\xff" * 40_000, Opcode.BINARY)
        handshake, text, binary = handler.requests
        assert handshake.method == "WEBSOCKET_HANDSHAKE"
        assert len(handshake.body) == 28
        for frame, flags, body in ((text, "0x81", "h\xe9llo".encode()), (binary, "0x82", b"\0\xff" * 40_000)):
            assert (frame.method, frame.path, frame.body) == ("WEBSOCKET", "/chat", body)
            assert frame.headers == {**handshake.headers, "METHOD": "WEBSOCKET", "FLAGS": flags}
        assert text.headers["cookie"] == "a=b"
        assert text.headers["origin"] == "http://here"
        assert text.headers["QUERY"] == {"room": "1"}


def test_subprotocol_and_compression_are_agreed_on():
    """Compressed messages travel with RSV1, both ways."""
    handshake = Handshake(subprotocols=("two",), deflate=DeflateConfig())
    with websockets(handshake=handshake) as (handler, client):
        client.handshake("/", subprotocols=["one", "two"], deflate=True)
        assert client.subprotocol == "two"
        assert client.deflate is not None
        client.send("again and again " * 100)
        wait_until(lambda: len(handler.requests) == 2)
        assert handler.requests[1].headers["FLAGS"] == "0xC1"
        assert len(handler.requests[1].body) < 200
        client.send("short")
        wait_until(lambda: len(handler.requests) == 3)
        assert handler.requests[2].headers["FLAGS"] == "0x81"


class Inflating(Echo):
    """Answers each message with its text, inflated, as a handler does."""

    def __init__(self):
        super().__init__(Handshake(deflate=DeflateConfig(threshold=0)))

    def echo(self, request, opcode, rsvd):
        return build_frame(self.deflate.decode(request.body, None) if rsvd else request.body, opcode)


@contextlib.contextmanager
def disconnected_websocket():
    """A client with compression whose handler has let go; the handler's address."""
    with PlainHandler(Inflating()) as handler, Server("S", ip="127.0.0.1", connect=handler.addr) as server:
        client = server.client("websocket")
        client.handshake("/", deflate=DeflateConfig(threshold=0))
        assert client.deflate.encodes_with_context
        client.send("first things first")
        assert client.recv().payload == b"first things first"
        server.disconnect(handler.addr)
        yield client, handler.addr


def times_out(client, text):
    """Send *text*, which nobody has room for."""
    with pytest.raises(SendTimeout):
        client.send(text, timeout=30)


def test_after_a_message_that_timed_out_the_next_ones_arrive_as_they_were():
    """What was compressed and not sent is no part of what the next message refers to."""
    with disconnected_websocket() as (client, addr):
        times_out(client, "a message that nobody will ever see")
        client.server.connect(addr)
        for text in ("a message that everybody will see", "a message that nobody will ever see"):
            client.send(text)
            assert client.recv().payload == text.encode()


def test_messages_behind_one_that_timed_out_arrive_as_they_were():
    """They were compressed while it was still to be sent."""
    with disconnected_websocket() as (client, addr):
        lost = gevent.spawn(times_out, client, "a message that nobody will ever see")
        gevent.sleep(0)
        kept = gevent.spawn(client.send, "a message that everybody will see", timeout=5000)
        lost.get()
        client.server.connect(addr)
        kept.get()
        assert client.recv().payload == b"a message that everybody will see"


def test_a_compressed_greeting_right_behind_the_answer_is_read():
    """What was agreed on counts from the first byte after the head."""
    echo = Echo(Handshake(deflate=DeflateConfig()))
    text = b"welcome " * 100

    def answer(request):
        head = echo(request)
        payload, compressed = echo.deflate.encode(text)
        assert compressed
        return head + build_frame(payload, Opcode.TEXT, 4)

    with pair(answer, "websocket") as (_, client):
        client.handshake("/", deflate=True)
        assert client.recv() == Frame(text, Opcode.TEXT)


def test_frames_cut_anywhere_are_joined():
    """One frame in many replies, many frames in one, fragments as one message."""
    frames = build_frame(b"a") + build_frame(b"b", fin=False) + build_frame(b"p", Opcode.PONG) + build_frame(b"c", 0)

    def answer(request, opcode, rsvd):
        return [frames[at : at + 1] for at in range(len(frames))]

    with websockets(answer=answer) as (_, client):
        client.handshake("/")
        client.send("go")
        received = [client.recv() for _ in range(3)]
        assert received == [Frame(b"a"), Frame(b"p", Opcode.PONG), Frame(b"bc")]


def test_pings_of_the_handler_are_answered():
    """At once, and not shown; unless the test wants to see them."""
    with websockets() as (handler, client):
        client.handshake("/")
        handler.publish("S", client.conn_id, build_frame(b"1", Opcode.PING) + build_frame(b"shown"))
        assert client.recv().payload == b"shown"
        wait_until(lambda: len(handler.requests) == 2)
        assert (handler.requests[1].headers["FLAGS"], handler.requests[1].body) == ("0x8A", b"1")
        client.auto_pong = False
        handler.publish("S", client.conn_id, build_frame(b"2", Opcode.PING))
        assert client.recv() == Frame(b"2", Opcode.PING)
        assert client.pings == 2
        assert len(handler.requests) == 2


def test_a_ping_brings_a_pong():
    """It is received like a message."""
    with websockets() as (handler, client):
        client.handshake("/")
        client.ping(b"x")
        assert client.recv() == Frame(b"x", Opcode.PONG)
        assert handler.requests[1].headers["FLAGS"] == "0x89"


def test_close_shakes_hands():
    """The handler answers the close frame and closes; both are seen."""
    with websockets() as (handler, client):
        client.handshake("/")
        assert client.close(4001, "done")
        assert (client.closed, client.close_code, client.close_reason) == (True, 4001, "done")
        assert client.recv() == Frame(build_close(4001, "done"), Opcode.CLOSE)
        with pytest.raises(ConnectionClosed) as raised:
            client.recv()
        assert (raised.value.code, raised.value.reason) == (4001, "done")
        assert handler.requests[1].headers["FLAGS"] == "0x88"
        assert client.close()
        assert len(handler.requests) == 2
        with pytest.raises(ConnectionClosed):
            client.send("x")


def test_close_is_bounded_where_the_handler_does_not_close():
    """It returns False, nothing more can be sent, and disconnect ends it."""
    with websockets(answer=lambda request, opcode, rsvd: None) as (handler, client):
        client.handshake("/")
        assert not client.close(timeout=50)
        assert not client.closed
        with pytest.raises(ConnectionClosed):
            client.send("x")
        client.disconnect()
        wait_until(lambda: len(handler.requests) == 3)
        assert handler.requests[2].is_disconnect()


def test_a_close_of_the_handler_is_answered():
    """With its own code, as browsers do, and once."""
    with websockets(answer=lambda request, opcode, rsvd: None) as (handler, client):
        client.handshake("/")
        handler.publish("S", client.conn_id, build_frame(build_close(1001, "bye"), Opcode.CLOSE))
        assert client.recv() == Frame(build_close(1001, "bye"), Opcode.CLOSE)
        wait_until(lambda: len(handler.requests) == 2)
        assert (handler.requests[1].headers["FLAGS"], handler.requests[1].body) == ("0x88", build_close(1001, "bye"))
        assert (client.closed, client.close_code, client.close_reason) == (False, 1001, "bye")
        handler.publish("S", client.conn_id, CLOSE)
        with pytest.raises(ConnectionClosed) as raised:
            client.recv()
        assert raised.value.code == 1001
        assert len(handler.requests) == 2


def test_a_vanished_browser_is_a_notice():
    """No close frame, just the server's word."""
    with websockets() as (handler, client):
        client.handshake("/")
        client.disconnect()
        wait_until(lambda: len(handler.requests) == 2)
        assert handler.requests[1].is_disconnect()


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"sec-websocket-version": "8"}, 426), ({"sec-websocket-key": "short"}, 400), ({"Origin": "http://evil"}, 403)],
)
def test_a_refusal_raises_with_its_status(headers, status):
    """The whole answer is there to look at."""
    with websockets(handshake=Handshake(origins=("http://good", None))) as (_, client):
        with pytest.raises(RemoteProtocolError, match=f"answered the handshake with {status}") as raised:
            client.handshake("/", headers)
        assert raised.value.status == client.response.status == status
        assert client.response.body


def test_a_refusal_that_ends_with_the_connection_is_read():
    """It has no length."""
    with pair(lambda request: [b"HTTP/1.1 403 No\r\n\r\nnot you", CLOSE], "websocket") as (_, client):
        with pytest.raises(RemoteProtocolError, match="403"):
            client.handshake("/")
        assert client.response.body == b"not you"
        assert client.closed


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda request: None, ConnectTimeout),
        (lambda request: CLOSE, ConnectionClosed),
        (lambda request: [b"HTTP/1.1 101 X\r\nUpg", CLOSE], ConnectionClosed),
        (lambda request: b"garbage", RemoteProtocolError),
        (lambda request: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", RemoteProtocolError),
    ],
)
def test_a_handshake_without_a_good_answer_raises(answer, error):
    """Too late, none, half of one, or a wrong one."""
    with pair(answer, "websocket") as (_, client), pytest.raises(error):
        client.handshake("/", timeout=100 if error is ConnectTimeout else 5000)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (build_frame(b"x", mask=b"abcd"), 1002),
        (b"\x83\0", 1002),
        (build_frame(b"\xff"), 1007),
        (build_frame(b"x", rsvd=4), 1002),
        (build_frame(b"x", 0), 1002),
        (b"\x88\x01x", 1002),
    ],
)
def test_what_no_browser_would_take_raises(data, code):
    """With the code that it would close with; the handler is told that the browser has gone."""
    with websockets(answer=lambda request, opcode, rsvd: data) as (handler, client):
        client.handshake("/")
        client.send("go")
        with pytest.raises(RemoteProtocolError) as raised:
            client.recv()
        assert raised.value.close_code == code
        assert client.closed
        wait_until(lambda: len(handler.requests) == 3)
        assert handler.requests[2].is_disconnect()


def test_good_frames_before_a_bad_one_are_received():
    """The error comes in its turn."""
    with websockets(answer=lambda request, opcode, rsvd: build_frame(b"good") + b"\x83\0") as (_, client):
        client.handshake("/")
        client.send("go")
        assert client.recv() == Frame(b"good")
        with pytest.raises(RemoteProtocolError, match="reserved opcode"):
            client.recv()


def test_a_websocket_needs_its_handshake_first():
    """And only one."""
    with websockets() as (handler, client):
        for use in (lambda: client.send("x"), client.ping, client.close):
            with pytest.raises(LocalProtocolError, match="call handshake"):
                use()
        handler.publish("S", client.conn_id, build_frame(b"unasked"))
        with pytest.raises(RemoteProtocolError, match="before a handshake"):
            client.recv()
        other = client.server.client("websocket")
        other.handshake("/")
        with pytest.raises(LocalProtocolError, match="make another client"):
            other.handshake("/")


def test_control_replies_do_not_disturb_a_websocket():
    """keep-alive passes by, cancel ends it."""
    with websockets() as (handler, client):
        client.handshake("/")
        handler.publish_raw("S", build_extended_reply("S", client.conn_id, "ctl", {b"keep-alive": b""}))
        client.send("x")
        assert client.recv() == Frame(b"x")
        handler.publish_raw("S", build_extended_reply("S", client.conn_id, "ctl", {b"cancel": b""}))
        with pytest.raises(ConnectionClosed) as raised:
            client.recv()
        assert raised.value.code == 1006


def test_two_thousand_websockets_are_pinged_and_broadcast_to():
    """Each answers each ping and gets each broadcast, in replies to 128 of them."""
    with websockets() as (handler, first):
        clients = [first, *(first.server.client("websocket") for _ in range(1999))]
        for one in clients:
            one.handshake("/", timeout=20_000)
        conn_ids = [one.conn_id for one in clients]
        for number in range(3):
            for start in range(0, len(conn_ids), 128):
                handler.publish("S", conn_ids[start : start + 128], build_frame(b"%d" % number, Opcode.PING))
        wait_until(lambda: len(handler.requests) == 4 * len(clients), 20)
        for start in range(0, len(conn_ids), 128):
            handler.publish("S", conn_ids[start : start + 128], build_frame(b"to all"))
        for one in clients:
            assert one.recv(timeout=20_000) == Frame(b"to all")
            assert one.pings == 3
        pongs = {(request.conn_id, request.body) for request in handler.requests[len(clients) :]}
        assert len(pongs) == 3 * len(clients)
