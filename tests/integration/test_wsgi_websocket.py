"""WebSockets of WSGI applications behind a real mongrel2: both contracts, real frameworks, independent clients."""

from __future__ import annotations

import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import flask
import flask_sock
import gevent
import gevent.selectors
import pytest
import simple_websocket
from engineio.async_drivers.gevent import Thread
from gevent import subprocess
from gevent.event import Event
from gevent.queue import Queue
from http_rig import Browser, wait_until
from websocket_peer import HEAD, MASK, Peer

from greentx import Transceiver
from greentx.edge import Mongrel2
from greentx.errors import RemoteProtocolError
from greentx.protocol.websocket.frames import Frame, FrameParser, Opcode, build_close, build_frame
from greentx.protocol.websocket.masking import apply_mask
from greentx.wsgi import WSGIServer
from greentx.wsgi.listeners import SETTINGS
from greentx.wsgi.websocket import (
    MSG_ALREADY_CLOSED,
    MSG_CLOSED,
    MSG_SOCKET_DEAD,
    Resource,
    WebSocketApplication,
    WebSocketError,
    WebSocketServer,
)

pytestmark = pytest.mark.mongrel2

SIMPLE = {
    "thread_class": Thread,
    "event_class": Event,
    "selector_class": gevent.selectors.DefaultSelector,
}


@pytest.fixture(scope="module")
def front() -> Iterator[Mongrel2]:
    """One front end for all tests: it takes longer to start than most of them."""
    with Mongrel2(settings=SETTINGS) as mongrel2:
        yield mongrel2


@pytest.fixture
def serve(front) -> Iterator[Callable[..., WSGIServer]]:
    """Starts a server for an application; it is stopped after the test."""
    with ExitStack() as stack:

        def start(application, cls=WSGIServer, listener=None, **options):
            (handler,) = front.handlers
            listener = listener or (handler.sender, handler.send_spec, handler.recv_spec)
            server = cls(listener, application, log=None, **options)
            server.start()
            stack.callback(server.stop, 0)
            server.transceiver.wait_ready(10)
            return server

        yield start


@pytest.fixture
def connect(front) -> Iterator[Callable[..., Peer]]:
    """Makes a Peer; they are closed after the test."""
    with ExitStack() as stack:

        def make(server, *args, **options) -> Peer:
            peer = Peer(server if isinstance(server, int) else server.server_port or front.port, *args, **options)
            stack.callback(peer.sock.close)
            return peer

        yield make


def run_client(script: str) -> str:
    """Run a client's *script* in another Python, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stderr
    return done.stdout


def echo(environ, start_response):
    """Send every message back; what is said about the response goes nowhere."""
    ws = environ["wsgi.websocket"]
    while (message := ws.receive()) is not None:
        ws.send(message)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"nobody reads this"]


# -- environ['wsgi.websocket'] -----------------------------------------------------------------------------------------


def test_messages_keep_their_kind(serve, connect):
    """Text comes as str, binary as bytearray; they go out as what they are, or as *binary* says."""
    seen = Queue()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        for _ in range(2):
            seen.put(ws.receive())
        ws.send("text")
        ws.send(bytearray(b"\x00\xff"))
        ws.send("as bytes", binary=True)
        ws.send(b"as text", binary=False)
        ws.send_frame("are you there?", ws.OPCODE_PING)
        return []

    peer = connect(serve(application, listener=("127.0.0.1", 0)))  # with a front end of its own, for once
    assert peer.head() == HEAD
    peer.send("grüße")
    peer.send(b"\x00\xff")
    assert [(type(one), one) for one in (seen.get(), seen.get())] == [
        (str, "grüße"),
        (bytearray, bytearray(b"\x00\xff")),
    ]
    assert [peer.frame() for _ in range(5)] == [
        Frame(b"text", Opcode.TEXT, 0, True),
        Frame(b"\x00\xff", Opcode.BINARY, 0, True),
        Frame(b"as bytes", Opcode.BINARY, 0, True),
        Frame(b"as text", Opcode.TEXT, 0, True),
        Frame(b"are you there?", Opcode.PING, 0, True),
    ]
    assert peer.closed() == (1000, "")
    peer.close()
    assert peer.rest() == b""


@pytest.mark.parametrize("own", [True, False])
def test_messages_may_be_as_large_as_applications_expect(serve, connect, own):
    """Megabytes, whoever's the front end is; the server may say another limit, or none."""
    listener = ("127.0.0.1", 0) if own else None
    sizes: dict[int | str | None, int] = {"default": 10_000_000, 1000: 1000, None: 17_000_000}
    for limit, size in sizes.items():
        server = serve(echo, listener=listener, **({} if limit == "default" else {"max_message_size": limit}))
        peer = connect(server)
        assert peer.head() == HEAD
        peer.send(b"x" * size)
        assert peer.message() == b"x" * size
        if limit == 1000:
            peer.send(b"x" * 1001)
            assert peer.closed()[0] == 1009
        server.stop(0)


@pytest.mark.parametrize("own", [True, False])
def test_only_pages_of_the_origins_that_were_named_get_in(front, serve, own):
    """Others get 403 and the end, and the application is not asked; both contracts are the same here."""
    asked = []

    def application(environ, start_response):
        asked.append(environ.get("HTTP_ORIGIN"))
        return echo(environ, start_response)

    listener = ("127.0.0.1", 0) if own else None
    for origins in ("same", ["same", "https://ours.example", None]):
        server = serve(application, listener=listener, origins=origins)
        port = server.server_port or front.port
        here = [f"http://localhost:{port}"]
        for origin in (
            *here,
            "https://ours.example",
            "https://evil.example",
            f"https://localhost:{port}",
            "null",
            None,
        ):
            asked.clear()
            lines = "" if origin is None else f"Origin: {origin}\r\n"
            peer = Peer(port, headers=lines, host=f"localhost:{port}")
            head = peer.head()
            if origin in here or (origins != "same" and origin in ("https://ours.example", None)):
                assert head == HEAD
                peer.send("hello")
                assert peer.message() == "hello" and asked == [origin]
            else:
                assert head.startswith(b"HTTP/1.1 403 ")
                peer.rest()
                assert not asked
            peer.sock.close()
        server.stop(0)


@pytest.mark.parametrize("limit", [1000, None])
def test_a_transceiver_has_its_own_limit(limit):
    """A second one beside it would be of no effect."""
    transceiver = Transceiver("abc", ("127.0.0.1", 1), ("127.0.0.1", 2), rep_port=False)
    with pytest.raises(ValueError, match="max_message_size belongs to"):
        WSGIServer(transceiver, echo, max_message_size=limit)
    with pytest.raises(ValueError, match="origins belongs to"):
        WSGIServer(transceiver, echo, origins="same")


def test_what_the_object_knows(serve, connect):
    """Its attributes are those that applications of gevent-websocket read; the environ says it was a GET."""
    seen = Queue()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        seen.put((ws.path, ws.version, ws.origin, ws.protocol))
        seen.put((ws.environ is environ, ws.handler.environ is environ, ws.stream.handler is ws.handler))
        seen.put((environ["REQUEST_METHOD"], environ["wsgi.websocket_version"], environ["HTTP_UPGRADE"]))
        seen.put((environ["wsgi.input"].read(), environ["wsgi.input_terminated"], ws.closed))
        ws.logger.debug("%r", ws)
        seen.put(next(iter(ws.handler.server.clients.values())).ws is ws)
        ws.receive()
        return []

    server = serve(application)
    peer = connect(server, "/a%20b?c=d", headers="Origin: https://example.org\r\nSec-WebSocket-Protocol: one, two\r\n")
    peer.head()
    assert [seen.get() for _ in range(5)] == [
        ("/a b", "13", "https://example.org", "one, two"),
        (True, True, True),
        ("GET", "13", "websocket"),
        (b"", False, False),
        True,
    ]
    peer.close()
    assert peer.closed() == (1000, "")
    while server.clients or server.upgrades:
        gevent.sleep(0.001)


def test_after_the_peers_close_none_comes_once_then_the_error(serve, connect):
    """What came before is received first; sending fails at once, with the texts that people compare."""
    seen = Queue()
    go_on = Event()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        ws.send("hello")
        go_on.wait()
        for call in (ws.receive, ws.receive, ws.receive, lambda: ws.send("x"), lambda: ws.send_frame("x", 1)):
            try:
                seen.put((call(), ws.closed))
            except WebSocketError as error:
                seen.put(str(error))
        ws.close()
        seen.put(environ["greentx.disconnected"].wait(10))
        return []

    peer = connect(serve(application))
    peer.head()
    peer.send("last words")
    peer.close(4000)
    assert peer.message() == "hello"
    assert peer.closed() == (4000, "")
    go_on.set()
    assert [seen.get(timeout=10) for _ in range(6)] == [
        ("last words", True),
        (None, True),
        MSG_ALREADY_CLOSED,
        MSG_SOCKET_DEAD,
        MSG_ALREADY_CLOSED,
        True,
    ]


def test_what_was_not_read_keeps_it_from_looking_closed(serve, connect):
    """Loops of the form `while not ws.closed` receive every message that came."""
    seen = Queue()
    go_on = Event()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        while not ws.closed:
            go_on.wait()
            seen.put(ws.receive())
        seen.put("closed")
        return []

    peer = connect(serve(application))
    peer.head()
    peer.send("one")
    peer.send("two")
    peer.close()
    peer.closed()
    go_on.set()
    assert [seen.get(timeout=10) for _ in range(3)] == ["one", "two", "closed"]


def test_the_application_closes_with_a_code(serve, connect):
    """close() does not wait; then nothing can be sent or received, and closing again is nothing."""
    seen = Queue()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        ws.close(4001, b"go away")
        ws.close(1000)
        for call in (ws.receive, lambda: ws.send("x")):
            with pytest.raises(WebSocketError) as caught:
                call()
            seen.put(str(caught.value))
        return []

    peer = connect(serve(application))
    peer.head()
    assert peer.closed() == (4001, "go away")
    assert [seen.get(timeout=10), seen.get(timeout=10)] == [MSG_ALREADY_CLOSED, MSG_SOCKET_DEAD]


def test_in_one_process_nothing_moves_and_there_is_a_state(serve, connect):
    """What is said of WebSockets on Nodes is there, so that a program runs in both."""
    seen = Queue()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        state = environ["greentx.state"]
        state["count"] = 1
        state.update(tuple=(1, 2))
        for value in (object(), "x" * 70000):
            with pytest.raises(ValueError, match="state"):
                state["bad"] = value
        ws.receive()
        seen.put((environ["greentx.adopted"], ws.adopted, ws.moved, ws.redelivered, dict(ws.state)))
        return []

    peer = connect(serve(application))
    peer.send("hello")
    assert seen.get(timeout=10) == (False, False, False, False, {"count": 1, "tuple": [1, 2]})


def in_groups(environ, start_response):
    """An application whose WebSockets hear each other by groups, and what is posted, with either contract."""
    broadcast = environ["greentx.broadcast"]
    if environ["REQUEST_METHOD"] == "POST":
        reached = broadcast(environ["wsgi.input"].read().decode(), group=environ["QUERY_STRING"] or None)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(reached).encode()]
    if environ["QUERY_STRING"] == "library":
        library = simple_websocket.Server(environ, **SIMPLE)
        receive, send = library.receive, library.send
    else:
        receive, send = environ["wsgi.websocket"].receive, environ["wsgi.websocket"].send
    member = environ["greentx.websocket"]
    assert member.groups == ()
    with suppress(simple_websocket.ConnectionClosed):
        while (message := receive()) is not None:
            order, _, rest = message.partition(" ")
            if order == "join":
                member.join(rest)
                member.join(rest)
                send(f"in {' '.join(member.groups)}")
            elif order == "leave":
                member.leave(rest)
                member.leave(rest)
                send(f"in {' '.join(member.groups)}")
            else:
                send(f"reached {broadcast(rest, group=order, exclude=[member.sid])}")
    return []


def asked(peer, text: str) -> object:
    """Return the answer to a message."""
    peer.send(text)
    return peer.message()


@pytest.mark.parametrize("by", ["object", "library"])
def test_an_application_has_groups_and_broadcasts(by, serve, connect, front):
    """A WebSocket joins and leaves groups and tells all others in one; a POST tells them, too, or all."""
    server = serve(in_groups)
    first, second, third = peers = [connect(server, f"/ws?{by}") for _ in range(3)]
    for peer in peers:
        assert peer.head() == HEAD
    assert [asked(first, "join a"), asked(second, "join a"), asked(third, "join b")] == ["in a", "in a", "in b"]
    assert asked(first, "join b") == "in a b"
    assert asked(first, "a hello a") == "reached 1"
    assert second.message() == "hello a"
    assert asked(first, "b hello b") == "reached 1"
    assert third.message() == "hello b"
    assert asked(first, "leave a") == "in b"
    assert asked(second, "a is anybody there?") == "reached 0"
    with Browser(front) as browser:
        assert browser.get("/?b", method="POST", body=b"to b").body == b"2"
        assert [first.message(), third.message()] == ["to b", "to b"]
        assert browser.get("/", method="POST", body=b"to all").body == b"3"
    assert [peer.message() for peer in peers] == ["to all"] * 3


@pytest.mark.parametrize("by", ["object", "library"])
def test_one_that_has_ended_joins_no_group(by, serve, connect):
    """Its number may be another client's by then; the error is the one that its contract has for an end."""
    seen = Queue()

    def application(environ, start_response):
        member = environ["greentx.websocket"]
        if by == "object":
            environ["wsgi.websocket"].send("hello")
        else:
            simple_websocket.Server(environ, **SIMPLE).send("hello")
        member.join("a")
        environ["greentx.disconnected"].wait(10)
        member.leave("a")
        seen.put(member.groups)
        try:
            member.join("b")
        except OSError as error:
            seen.put(type(error))
        return []

    server = serve(application)
    peer = connect(server)
    assert peer.head() == HEAD
    assert peer.message() == "hello"
    peer.sock.close()
    error = WebSocketError if by == "object" else ConnectionResetError
    assert [seen.get(timeout=10), seen.get(timeout=10)] == [(), error]


def test_joining_a_group_lets_the_client_in(serve, connect):
    """As the first use of the object does; what is looked at only does not."""

    def application(environ, start_response):
        member = environ["greentx.websocket"]
        assert member.groups == () and member.sid == environ["greentx.request"].sid
        if environ["PATH_INFO"] == "/no":
            start_response("403 Forbidden", [])
            return [b"no"]
        member.join("a")
        assert environ["greentx.broadcast"]("welcome", group="a") == 1
        return []

    server = serve(application)
    peer = connect(server)
    assert peer.head() == HEAD
    assert peer.message() == "welcome"
    assert peer.closed() == (1000, "")
    assert connect(server, "/no").head().startswith(b"HTTP/1.1 403 ")


def test_a_plain_request_is_no_member_of_a_group(serve, front):
    """Only a WebSocket has what groups are joined by."""

    def application(environ, start_response):
        start_response("200 OK", [])
        return [repr("greentx.websocket" in environ).encode()]

    serve(application)
    with Browser(front) as browser:
        assert browser.get("/").body == b"False"


def test_a_library_may_look_at_its_socket_where_the_object_is_used(serve, connect):
    """The WebSocket is closed as any other, and joins groups."""

    def application(environ, start_response):
        environ["werkzeug.socket"].fileno()
        environ["greentx.websocket"].join("a")
        assert environ["greentx.websocket"].groups == ("a",)
        environ["wsgi.websocket"].send("hello")
        return []

    peer = connect(serve(application))
    assert peer.head() == HEAD
    assert peer.message() == "hello"
    assert peer.closed() == (1000, "")


def test_only_messages_can_be_sent(serve, connect):
    """Neither objects nor frames that RFC 6455 does not know."""
    seen = Queue()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        for call in (lambda: ws.send(5), lambda: ws.send(None), lambda: ws.send_frame(b"", 3), lambda: ws.close(5)):
            try:
                call()
            except (TypeError, ValueError) as error:
                seen.put(type(error).__mro__[1])
        return []

    peer = connect(serve(application))
    peer.head()
    peer.closed()
    assert len([seen.get(timeout=10) for _ in range(4)]) == 4


@pytest.mark.parametrize("status", ["404 Not Found", "401 Unauthorized", "302 Found"])
def test_an_ordinary_answer_is_sent_and_the_connection_closed(serve, connect, status):
    """An application that does not take the WebSocket says why, in HTTP."""

    def application(environ, start_response):
        assert "wsgi.websocket" in environ
        start_response(status, [("Content-Type", "text/plain")])
        return [b"no ", b"WebSocket ", b"here"]

    peer = connect(serve(application))
    head = peer.head()
    assert head.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert b"Connection: close\r\n" in head
    assert peer.rest() == b"no WebSocket here"


def test_what_was_answered_is_no_websocket(serve, connect):
    """Behind an answer in HTTP the WebSocket is dead, and cannot be closed a second time."""
    seen = Queue()

    def application(environ, start_response):
        write = start_response("403 Forbidden", [])
        write(b"no")
        ws = environ["wsgi.websocket"]
        ws.close()
        try:
            ws.receive()
        except WebSocketError as error:
            seen.put(str(error))
        try:
            environ["werkzeug.socket"].recv(1)
        except ConnectionResetError:
            seen.put("reset")
        return []

    peer = connect(serve(application))
    assert peer.head().startswith(b"HTTP/1.1 403 ")
    assert b"no" in peer.rest()
    assert (seen.get(), seen.get()) == (MSG_ALREADY_CLOSED, "reset")


def test_one_that_is_neither_taken_nor_answered_is_closed(serve, connect):
    """As with gevent-websocket, an application that returns has had its WebSocket."""
    peer = connect(serve(lambda environ, start_response: []))
    assert peer.head() == HEAD
    assert peer.closed() == (1000, "")


def test_generators_work(serve, connect):
    """The body of one runs when the server iterates; what it yields goes nowhere."""

    def application(environ, start_response):
        start_response("200 OK", [])
        ws = environ["wsgi.websocket"]
        ws.send("from a generator")
        yield b"lost"
        ws.send("again")
        yield b"lost, too"

    peer = connect(serve(application))
    assert peer.head() == HEAD
    assert (peer.message(), peer.message()) == ("from a generator", "again")
    assert peer.closed() == (1000, "")


@pytest.mark.parametrize("by", ["object", "library"])
@pytest.mark.parametrize("leaves", ["with a close frame", "without"])
def test_a_generator_gets_to_its_own_end_though_its_websocket_has_ended(serve, connect, by, leaves):
    """In its loop and behind it; the end of its client is no error. Nor does the length of an answer end it."""
    done = Event()

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "0")])
        receive = simple_websocket.Server(environ, **SIMPLE).receive if by == "library" else object_receive(environ)
        try:
            while receive() is not None:
                yield b""
        except simple_websocket.ConnectionClosed:
            yield b""
        environ["greentx.disconnected"].wait()
        yield b""
        yield b"lost"
        done.set()

    def object_receive(environ):
        environ["wsgi.websocket"].send("open")
        return environ["wsgi.websocket"].receive

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    peer.head()
    peer.send("a message")
    if leaves == "without":
        peer.sock.close()
    else:
        peer.close()
        assert peer.closed()[0] == 1000
    assert done.wait(10)
    server.join()
    assert server.loop.errors == []


@pytest.mark.parametrize("opened", ["before", "while it is iterated over"])
def test_a_generator_without_a_pause_hears_that_its_websocket_has_ended(serve, connect, opened):
    """It stops nobody: the hub runs between its blocks."""
    done = Event()

    def application(environ, start_response):
        if opened == "before":
            environ["wsgi.websocket"].send("open")
        return blocks(environ)

    def blocks(environ):
        environ["wsgi.websocket"].send("open")
        while not environ["greentx.disconnected"].is_set():
            yield b""
        done.set()

    peer = connect(serve(application))
    peer.head()
    assert peer.message() == "open"
    peer.sock.close()
    assert done.wait(10)


def test_a_failure_before_the_101_is_a_500_page(serve, connect):
    """The log has it, the client has no details."""

    def application(environ, start_response):
        raise RuntimeError("a fault of the application")

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    assert peer.head().startswith(b"HTTP/1.1 500 ")
    assert b"fault" not in peer.rest()
    assert [str(one) for one in server.loop.errors] == ["a fault of the application"]


@pytest.mark.parametrize("by", ["start_response", "object", "library"])
def test_a_101_of_the_application_is_for_a_websocket_alone(serve, connect, by):
    """Before one is used it is an error that says what to use: no bytes of another protocol can follow."""

    def application(environ, start_response):
        if by == "object":
            environ["wsgi.websocket"].send("open")
        elif by == "library":
            environ["werkzeug.socket"].sendall(HEAD + build_frame(b"open"))
        start_response("101 Switching Protocols", [("Upgrade", "websocket"), ("Connection", "Upgrade")])
        return [b"lost"]

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    if by == "start_response":
        assert peer.head().startswith(b"HTTP/1.1 500 ")
        (error,) = server.loop.errors
        assert isinstance(error, ValueError) and "environ['wsgi.websocket']" in str(error)
    else:
        peer.head()
        assert peer.message() == "open" and peer.closed() == (1000, "")
        server.join()
        assert server.loop.errors == []


def raises(error: BaseException) -> Callable[..., list[bytes]]:
    def end(ws, start_response):
        raise error

    return end


def returns(status: str) -> Callable[..., list[bytes]]:
    def end(ws, start_response):
        start_response(status, [], None)
        return [b"x"]

    return end


def fails_late(ws, start_response):
    yield b""
    raise RuntimeError("a generator")


def closes(code: int, error: BaseException | None = None) -> Callable[..., list[bytes]]:
    def end(ws, start_response):
        ws.close(code, b"mine")
        if error is not None:
            raise error
        return []

    return end


class Result(list[bytes]):
    """What an application may return."""

    def close(self) -> None:
        raise RuntimeError("close() of the result")


#: How it ends, the code that the client is told, what is logged. WebSocketError and ConnectionError are somebody
#: else's: the application's own WebSocket is open.
ENDS = {
    "it returns": (lambda ws, start_response: [], 1000, None),
    "it answers 200": (returns("200 OK"), 1000, None),
    "a framework answers 500": (returns("500 Internal Server Error"), 1011, None),
    "a framework answers 404": (returns("404 Not Found"), 1011, None),
    "an exception": (raises(RuntimeError("a fault")), 1011, "a fault"),
    "an exception of a generator": (fails_late, 1011, "a generator"),
    "an exception of close()": (lambda ws, start_response: Result(), 1011, "close() of the result"),
    "another client's end": (raises(WebSocketError("of another client")), 1011, "of another client"),
    "a database's end": (raises(ConnectionResetError(104, "a database")), 1011, "[Errno 104] a database"),
    "a broken pipe": (raises(BrokenPipeError(32, "a helper")), 1011, "[Errno 32] a helper"),
    "a timeout": (raises(gevent.Timeout(5)), 1011, "5 seconds"),
    "it closes": (closes(4000), 4000, None),
    "it closes and fails": (closes(4000, RuntimeError("late")), 4000, "late"),
    "it closes and uses it": (closes(4000, WebSocketError(MSG_ALREADY_CLOSED)), 4000, None),
    "it closes, and a database ends": (closes(4000, ConnectionResetError(104, "a db")), 4000, "[Errno 104] a db"),
}


@pytest.mark.parametrize("end", ENDS)
def test_how_an_application_ends_is_what_the_client_is_told(serve, connect, end):
    """What it raises while its WebSocket is open is 1011 and logged once; what says that it has ended is neither."""
    act, code, logged = ENDS[end]

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        ws.send("open")
        return act(ws, start_response)

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    peer.head()
    assert peer.message() == "open"
    assert peer.closed()[0] == code
    peer.close(code)
    assert peer.rest() == b""
    server.join()
    assert [str(one) for one in server.loop.errors] == ([] if logged is None else [logged])
    assert not server.upgrades and not server.clients


@pytest.mark.parametrize(
    ("error", "code", "logged"),
    [
        (None, 1000, []),
        (RuntimeError("a fault"), 1011, ["a fault"]),
        (ConnectionResetError(104, "a database"), 1011, ["[Errno 104] a database"]),
        (StopIteration(), 1000, []),
    ],
)
def test_a_raw_socket_that_is_left_open_is_closed_by_how_the_application_ended(serve, connect, error, code, logged):
    """As the object is; StopIteration is how applications leave gunicorn."""

    def application(environ, start_response):
        environ["werkzeug.socket"].sendall(HEAD + build_frame(b"open"))
        if error is not None:
            raise error
        return []

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    peer.head()
    assert peer.message() == "open"
    assert peer.closed()[0] == code
    server.join()
    assert [str(one) for one in server.loop.errors] == logged


def test_what_a_library_raises_for_the_end_is_for_its_application_to_catch(serve, connect):
    """As flask-sock does. It is an error like any other: ours cannot know which libraries there are."""

    def application(environ, start_response):
        simple_websocket.Server(environ, **SIMPLE).receive()

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    peer.head()
    peer.close(1001)
    assert peer.closed()[0] == 1001
    server.join()
    (error,) = server.loop.errors
    assert isinstance(error, simple_websocket.ConnectionClosed)


def test_a_raw_socket_that_was_closed_may_be_left_by_any_error_of_a_connection(serve, connect):
    """The library's close frame is what the client gets, also where the server has not read it yet."""

    def application(environ, start_response):
        environ["werkzeug.socket"].sendall(HEAD + build_frame(b"\x0f\xa0", Opcode.CLOSE))
        raise ConnectionError

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    peer.head()
    assert peer.closed() == (4000, "")
    server.join()
    assert server.loop.errors == []


@pytest.mark.parametrize("path", ["/object", "/flask-sock"])
def test_a_flask_route_that_raises_ends_with_1011_and_one_traceback(serve, connect, caplog, path):
    """Flask catches it, logs it, and answers 500 to nobody."""
    app = flask.Flask(__name__)
    app.config["SOCK_SERVER_OPTIONS"] = SIMPLE
    sock = flask_sock.Sock(app)

    @app.route("/object", websocket=True)
    def route():
        flask.request.environ["wsgi.websocket"].send("open")
        raise RuntimeError("a fault")

    @sock.route("/flask-sock")
    def raw_route(ws):
        ws.send("open")
        raise RuntimeError("a fault")

    server = serve(app)
    server.loop = Quiet()
    peer = connect(server, path)
    peer.head()
    assert peer.message() == "open"
    assert peer.closed()[0] == 1011
    server.join()
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info] == [("a fault",)]
    assert server.loop.errors == []


class Quiet:
    """In the place of a server's loop: keeps the errors that it is told of."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._loop = gevent.get_hub().loop

    def handle_error(self, context, kind, value, tb) -> None:
        self.errors.append(value)

    def __getattr__(self, name):
        return getattr(self._loop, name)


def test_sending_to_one_that_went_is_no_failure(serve, connect):
    """A WebSocketError that leaves the application says that the client has gone, and is not logged as a fault."""
    sent = Event()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        try:
            while True:
                ws.send("x")
                gevent.sleep(0.001)  # the pace of the messages
        finally:
            sent.set()

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    peer.head()
    peer.sock.close()
    assert sent.wait(10)
    while server.upgrades:
        gevent.sleep(0.001)
    assert server.loop.errors == []


def test_a_handshake_that_no_application_may_accept(serve, connect):
    """Another version is answered 426; a server that cannot serve WebSockets says so with a 503."""
    server = serve(echo)
    peer = connect(server, version=12)
    assert peer.head().startswith(b"HTTP/1.1 426 ")
    assert b"13" in peer.rest()
    server.websockets_refused = lambda: "several workers share one endpoint"
    peer = connect(server)
    assert peer.head().startswith(b"HTTP/1.1 503 ")
    assert peer.rest() == b"several workers share one endpoint\n"


def test_the_end_of_the_server_is_told(serve, connect):
    """stop() sends close frames first, then handlers end as of themselves."""
    server = serve(echo)
    peer = connect(server)
    peer.head()
    peer.send("x")
    assert peer.message() == "x"
    server.goodbye_code = 1012
    stopping = gevent.spawn(server.stop, 10)
    assert peer.closed() == (1012, "")
    peer.close(1012)
    assert peer.rest() == b""
    stopping.join()
    assert server.closed and not server.upgrades


def test_handlers_that_do_not_end_are_killed(serve, connect):
    """The client gets its close frame all the same, and is cut off."""
    taken = Event()

    def application(environ, start_response):
        environ["wsgi.websocket"].send("x")
        taken.set()
        Event().wait()

    server = serve(application)
    peer = connect(server)
    peer.head()
    assert taken.wait(10)
    server.stop(0.05)
    assert peer.message() == "x"
    assert peer.closed() == (1001, "")
    assert peer.rest() == b""


# -- names of gevent-websocket -----------------------------------------------------------------------------------------


def test_resources_and_applications(serve, connect):
    """A Resource picks by path and kind; an application hears of its opening, its messages and its end."""
    said = Queue()

    class Chat(WebSocketApplication):
        def on_open(self):
            said.put("open")
            assert self.protocol.handler is self.ws.handler
            assert self.protocol.server is server

        def on_message(self, message):
            if message == "stop":
                self.ws.close(4000)
            else:
                for client in self.ws.handler.server.clients.values():
                    client.ws.send(message)

        def on_close(self, reason):
            said.put(reason)

        @classmethod
        def protocol_name(cls):
            return "chat.v1"

    def page(environ, start_response):
        start_response("200 OK", [])
        return [b"a page"]

    server = serve(Resource([("^/chat", Chat), ("^/echo", WebSocketApplication), ("^/page", page)]), WebSocketServer)
    offer = "Sec-WebSocket-Protocol: old, chat.v1\r\n"
    one, two = connect(server, "/chat", headers=offer), connect(server, "/chat")
    assert b"Sec-WebSocket-Protocol: chat.v1\r\n" in one.head()
    assert two.head() == HEAD
    assert (said.get(), said.get()) == ("open", "open")
    one.send("hello")
    assert (one.message(), two.message()) == ("hello", "hello")
    one.send("stop")
    assert one.closed() == (4000, "")
    two.sock.close()
    assert (said.get(timeout=10), said.get(timeout=10)) == (MSG_CLOSED, MSG_CLOSED)

    peer = connect(server, "/echo")
    assert peer.head() == HEAD
    peer.send(b"binary")
    assert peer.message() == b"binary"
    peer = connect(server, "/page")
    assert peer.head().startswith(b"HTTP/1.1 200 ")
    peer = connect(server, "/nowhere")
    assert peer.head().startswith(b"HTTP/1.1 404 ")
    assert peer.rest() == b"Not Found"


def test_a_hook_takes_requests_before(serve, connect):
    """Where pre_start_hook returns something true, the application sees a request without a WebSocket."""

    def application(environ, start_response):
        start_response("200 OK", [])
        return [str("wsgi.websocket" in environ or "werkzeug.socket" in environ).encode()]

    def hook(handler):
        return handler.environ["PATH_INFO"] == "/plain"

    server = serve(application, WebSocketServer, pre_start_hook=hook, debug=True)
    assert server.debug
    for path, body in (("/plain", b"False"), ("/ws", b"True")):
        peer = connect(server, path)
        assert peer.head().startswith(b"HTTP/1.1 200 ")
        assert peer.rest() == body


# -- a socket ----------------------------------------------------------------------------------------------------------


ENDINGS = {
    "an ordinary response": lambda start_response: start_response("200 OK", []) and [b"x"],
    "nothing": lambda start_response: [],
    "None": lambda start_response: None,
}


def stop_iteration(start_response):
    raise StopIteration


def connection_error(start_response):
    raise ConnectionError


ENDINGS.update({"StopIteration": stop_iteration, "ConnectionError": connection_error})


@pytest.mark.parametrize("ending", ENDINGS)
def test_however_the_application_leaves_nothing_more_is_sent(serve, connect, ending):
    """What simple-websocket's users return or raise, behind a socket that was used, reaches neither client nor log."""

    def application(environ, start_response):
        ws = simple_websocket.Server(environ, **SIMPLE)
        ws.send(ws.receive())
        ws.close(4002, "enough")
        return ENDINGS[ending](start_response)

    server = serve(application)
    server.loop = Quiet()
    peer = connect(server)
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in peer.head().replace(b"sec", b"Sec")
    peer.send("x")
    assert peer.message() == "x"
    assert peer.closed() == (4002, "enough")
    peer.close(4002)
    assert peer.rest() == b""
    while server.upgrades:
        gevent.sleep(0.001)
    assert server.loop.errors == []


def test_flask_sock(serve, front):
    """With an independent client: text, binary, 300 KB either way, compressed, a ping, an orderly end."""
    app = flask.Flask(__name__)
    app.config["SOCK_SERVER_OPTIONS"] = {**SIMPLE, "ping_interval": 20}
    sock = flask_sock.Sock(app)

    @sock.route("/echo/<name>")
    def echo_route(ws, name):
        ws.send(name)
        while True:
            ws.send(ws.receive())

    @app.route("/")
    def index():
        return "index"

    serve(app)
    port = front.port
    printed = run_client(f"""
import urllib.request
from websockets.sync.client import connect
with connect("ws://127.0.0.1:{port}/echo/me") as ws:
    assert ws.recv() == "me"
    assert [one.name for one in ws.protocol.extensions] == ["permessage-deflate"]
    for message in ("grüße", b"\\0\\xff", "long " * 60000, b"x", ""):
        ws.send(message)
        assert ws.recv(timeout=10) == message, message
    assert ws.ping().wait(10)
    ws.close(4000, "bye")
    print(ws.close_code, ws.close_reason)
try:
    connect("ws://127.0.0.1:{port}/nowhere")
except Exception as error:
    print(error)
print(urllib.request.urlopen("http://127.0.0.1:{port}/").read().decode())
""")
    assert printed.splitlines() == ["4000 ", "server rejected WebSocket connection: HTTP 404", "index"]


def test_flask_with_wsgi_websocket(serve, front):
    """The same client and a Flask route that takes the object out of the environ."""
    app = flask.Flask(__name__)

    @app.route("/echo", websocket=True)
    def echo_route():
        ws = flask.request.environ.get("wsgi.websocket")
        if ws is None:
            flask.abort(400)
        while (message := ws.receive()) is not None:
            ws.send(message)
        return "unread"

    serve(app)
    port = front.port
    printed = run_client(f"""
from websockets.sync.client import connect
with connect("ws://127.0.0.1:{port}/echo") as ws:
    for message in ("grüße", b"\\0\\xff", "long " * 60000, ""):
        ws.send(message)
        assert ws.recv(timeout=10) == message, message
    assert ws.ping().wait(10)
print(ws.close_code)
""")
    assert printed == "1000\n"


def test_frames_pass_whole(serve, connect):
    """However the library cuts its bytes, the client gets frames; a ping of ours never falls into one."""
    peer = connect(serve(raw_unmasking))
    assert peer.head() == HEAD
    for size in (0, 1, 125, 126, 65535, 65536, 200000):
        peer.send(b"x" * size)
        assert peer.frame() == Frame(b"x" * size, Opcode.BINARY, 0, True)
    peer.send(b"you", Opcode.PING)
    assert peer.frame() == Frame(b"you", Opcode.PING, 0, True)


def raw_unmasking(environ, start_response):
    """A library that reads the client's frames and sends them back in small pieces."""
    sock = environ["werkzeug.socket"]
    sock.sendall(HEAD)
    parser = FrameParser(require_mask=True)
    while data := sock.recv(65536):
        for frame in parser.feed(data):
            answer = build_frame(frame.payload, frame.opcode)
            for start in range(0, len(answer), 10007):
                sock.sendall(answer[start : start + 10007])
    sock.close()


def test_fragments_are_joined(serve, connect):
    """A library may send fragments, with a control frame in between."""

    def application(environ, start_response):
        sock = environ["werkzeug.socket"]
        sock.send(HEAD + build_frame(b"a", Opcode.TEXT, 4, fin=False) + build_frame(b"?", Opcode.PING))
        sock.send(build_frame(b"b", Opcode.CONT, fin=False) + build_frame(b"c", Opcode.CONT))

    peer = connect(serve(application))
    peer.head()
    assert peer.frame() == Frame(b"?", Opcode.PING, 0, True)
    assert peer.frame() == Frame(b"abc", Opcode.TEXT, 4, True)
    assert peer.closed() == (1000, "")


def both_ways() -> flask.Flask:
    """An application that echoes at /object, by the object of the environ, and at /flask-sock, by a library."""
    app = flask.Flask(__name__)
    app.config["SOCK_SERVER_OPTIONS"] = SIMPLE
    sock = flask_sock.Sock(app)

    @app.route("/object", websocket=True)
    def route():
        ws = flask.request.environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            ws.send(message)
        return ""

    @sock.route("/flask-sock")
    def raw_route(ws):
        while True:
            ws.send(ws.receive())

    return app


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n"

#: A peer's fault that Mongrel2 passes on: payload, opcode, reserved bits, whether permessage-deflate was agreed on;
#: and the code that it is told.
FAULTS = {
    "opcode 3": (b"x", 3, 0, False, 1002),
    "opcode 7": (b"x", 7, 0, False, 1002),
    "opcode 11": (b"x", 11, 0, False, 1002),
    "opcode 15": (b"", 15, 0, False, 1002),
    "opcode 3, deflate": (b"x", 3, 0, True, 1002),
    "opcode 11, deflate": (b"x", 11, 0, True, 1002),
    "RSV1 on text": (b"x", Opcode.TEXT, 4, False, 1002),
    "RSV2 on text": (b"x", Opcode.TEXT, 2, False, 1002),
    "RSV3 on binary": (b"x", Opcode.BINARY, 1, False, 1002),
    "RSV2 on text, deflate": (b"x", Opcode.TEXT, 2, True, 1002),
    "RSV1 on a ping": (b"x", Opcode.PING, 4, False, 1002),
    "RSV1 on a ping, deflate": (b"x", Opcode.PING, 4, True, 1002),
    "RSV3 on a pong": (b"x", Opcode.PONG, 1, False, 1002),
    "RSV1 on a close frame": (b"\x03\xe8", Opcode.CLOSE, 4, False, 1002),
    "text that is not UTF-8": (b"\xff\xfe", Opcode.TEXT, 0, False, 1007),
    "compressed text that is not UTF-8": (deflated(b"\xff\xfe"), Opcode.TEXT, 4, True, 1007),
    "what does not inflate": (b"\xff\xff\xff\xff", Opcode.TEXT, 4, True, 1007),
    "half a close code": (b"\x03", Opcode.CLOSE, 0, False, 1002),
    "a close code that may not be sent": (b"\x03\xed", Opcode.CLOSE, 0, False, 1002),
    "a close reason that is not UTF-8": (b"\x03\xe8\xff", Opcode.CLOSE, 0, False, 1007),
    "too large a message": (b"x" * 1001, Opcode.BINARY, 0, False, 1009),
}


@pytest.mark.parametrize("path", ["/object", "/flask-sock"])
def test_a_peer_that_breaks_the_protocol_is_told_so_by_the_code_whoever_reads_its_frames(serve, connect, caplog, path):
    """Three such frames in a row are one fault; nothing is logged but a bound of ours, whose setting is named."""
    server = serve(both_ways(), max_message_size=1000)
    server.loop = Quiet()
    for name, (payload, opcode, rsvd, deflate, code) in FAULTS.items():
        peer = connect(server, path, headers=DEFLATE if deflate else "")
        assert (b"permessage-deflate" in peer.head()) is deflate
        peer.send("ok")
        assert peer.frame().opcode == Opcode.TEXT, name  # which a library may compress
        head = bytes([0x80 | rsvd << 4 | opcode])
        size = len(payload)
        head += bytes([0x80 | size]) if size < 126 else bytes([0xFE, size >> 8, size & 0xFF])
        peer.sock.sendall(3 * (head + MASK + apply_mask(payload, MASK)))
        assert peer.closed()[0] == code, name
        peer.close(code)
        assert peer.rest() == b"", name
    server.join()
    assert server.loop.errors == []
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) == 1 and "failed with 1009" in loud[0] and "max_message_size" in loud[0], loud


#: Frames that Mongrel2 itself ends the connection for, without a close frame.
REFUSED = {
    "a continuation of nothing": bytes([0x80, 0x80]) + MASK,
    "a message inside another": bytes([0x01, 0x80]) + MASK + bytes([0x81, 0x80]) + MASK,
    "a fragmented ping": bytes([0x09, 0x80]) + MASK,
    "a long ping": bytes([0x89, 0xFE, 0, 126]) + MASK + bytes(126),
    "no mask": b"\x81\x02hi",
}


@pytest.mark.parametrize("path", ["/object", "/flask-sock"])
def test_what_mongrel2_ends_a_peer_for_ends_the_application_without_an_error(serve, connect, caplog, path):
    """The code is 1006, as no close frame came; a client's fault is no ERROR of the front end's log."""
    app = both_ways()
    codes = Queue()

    def application(environ, start_response):
        try:
            return app(environ, start_response)
        finally:
            codes.put(environ["wsgi.websocket"].close_code)

    server = serve(application)
    server.loop = Quiet()
    for name, data in REFUSED.items():
        peer = connect(server, path)
        peer.head()
        peer.send("ok")
        assert peer.message() == "ok", name
        peer.sock.sendall(data)
        assert peer.rest() == b"", name
        assert codes.get(timeout=10) == (1006 if path == "/object" else None), name
    server.join()
    assert server.loop.errors == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_object_knows_how_it_was_closed(serve, connect):
    """close_code and close_reason are None and "" before the end, and while a close frame of ours is not answered."""
    seen = Queue()

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        seen.put((ws.close_code, ws.close_reason))
        if environ["PATH_INFO"] == "/ours":
            ws.close(4001, b"enough")
            seen.put((ws.close_code, ws.close_reason))
            environ["greentx.disconnected"].wait(10)
        else:
            while ws.receive() is not None:
                pass
        seen.put((ws.close_code, ws.close_reason))
        return []

    server = serve(application)
    for code, reason, told in ((4000, "bye", (4000, "bye")), (None, "", (1005, ""))):
        peer = connect(server)
        peer.head()
        peer.send(build_close(code, reason), Opcode.CLOSE)
        assert [seen.get(timeout=10) for _ in range(2)] == [(None, ""), told]
    peer = connect(server)
    peer.head()
    peer.sock.close()
    assert [seen.get(timeout=10) for _ in range(2)] == [(None, ""), (1006, "")]
    peer = connect(server, "/ours")
    peer.head()
    assert peer.closed() == (4001, "enough")
    peer.close(4001)
    assert [seen.get(timeout=10) for _ in range(3)] == [(None, ""), (None, ""), (4001, "")]


def test_what_programs_of_gevent_websocket_call_for_control_frames_works(serve, connect):
    """The server answers control frames by itself; a program that calls these methods sends the same frames."""

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        ws.handle_ping(None, b"you")
        ws.handle_pong(None, b"you")
        with pytest.raises(RemoteProtocolError, match="half a close code"):
            ws.handle_close(None, b"\x03")
        ws.handle_close(None, b"" if environ["PATH_INFO"] == "/empty" else build_close(4000, "bye"))
        return []

    server = serve(application)
    for path, told in (("/empty", (1000, "")), ("/", (4000, "bye"))):
        peer = connect(server, path)
        peer.head()
        assert peer.frame() == Frame(b"you", Opcode.PONG, 0, True)
        assert peer.closed() == told


BURST = 50_000


@pytest.mark.parametrize("by", ["object", "library"])
def test_a_burst_of_small_messages_waits_for_a_handler_that_computes(serve, connect, by):
    """50,000 of them are far below the bound in bytes; gevent-websocket leaves them in the socket."""
    go = Event()
    total = Queue()

    def application(environ, start_response):
        # Of a library's own thread the socket would be read, whatever the handler does.
        receive = raw_receive(environ) if by == "library" else environ["wsgi.websocket"].receive
        number = 0
        while receive() not in ("last", b"last"):
            number += 1
            go.wait()  # it computes until all have come
        total.put(number)
        return []

    def raw_receive(environ):
        sock = environ["werkzeug.socket"]
        sock.sendall(HEAD)
        parser = FrameParser(require_mask=True)
        frames = (frame.payload for data in iter(lambda: sock.recv(4096), b"") for frame in parser.feed(data))
        return lambda: next(frames)

    server = serve(application)
    peer = connect(server)
    peer.head()
    one = build_frame(b"a message", mask=MASK)
    peer.sock.sendall(one * BURST)
    peer.send("last")
    if by == "object":
        peer.send("answered by the core", Opcode.PING)
        while peer.frame().opcode != Opcode.PONG:
            pass
    else:

        def waiting():
            return int(re.search("([0-9]+) messages wait", repr(server.upgrades))[1])

        wait_until(lambda: waiting() > BURST * 9 // 10, 30)  # the others are in the socket
    go.set()
    assert total.get(timeout=30) == BURST
    assert peer.closed()[0] == 1000


@pytest.mark.parametrize(
    ("written", "code"),
    [
        pytest.param(HEAD, 1000, id="nothing more"),
        pytest.param(HEAD + build_frame(b"x", Opcode.TEXT, mask=b"abcd"), 1011, id="a masked frame"),
        pytest.param(HEAD + b"\x83\x00", 1011, id="a reserved opcode"),
        pytest.param(HEAD + build_frame(b"\x00", Opcode.CLOSE), 1011, id="a broken close frame"),
    ],
)
def test_the_client_hears_of_the_librarys_end(serve, connect, written, code):
    """A socket that is closed without a close frame, and a library that breaks the protocol."""

    def application(environ, start_response):
        environ["werkzeug.socket"].sendall(written)

    peer = connect(serve(application))
    assert peer.head() == HEAD
    assert peer.closed() == (code, "")


def test_a_library_may_refuse(serve, connect):
    """An answer other than a 101 is passed on as it is, and the connection closed."""

    def application(environ, start_response):
        sock = environ["werkzeug.socket"]
        sock.send(b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 100000\r\n\r\n")
        sock.sendall(b"x" * 100000)
        return []

    server = serve(application)
    peer = connect(server)
    assert peer.head().startswith(b"HTTP/1.1 418 ")
    assert len(peer.rest()) == 100000


@pytest.mark.parametrize("written", [b"no answer at all", b"x" * 70000, b"a head of no answer\r\n\r\n"])
def test_what_is_no_answer_closes(serve, connect, written):
    """Bytes that are no head are not passed on."""

    def application(environ, start_response):
        environ["werkzeug.socket"].sendall(written)
        return []

    peer = connect(serve(application))
    assert peer.rest() == b""


@pytest.mark.parametrize("used", [True, False])
def test_one_that_has_ended_is_not_waited_for_however_late_something_is_written(serve, connect, used):
    """A greenlet of the application outlives it: what it writes fails, and the end of the server does not wait."""
    go = Event()
    late = Queue()

    def write_late(sock):
        go.wait(10)
        try:
            sock.sendall(b"too late")
        except OSError as error:
            late.put(error)

    def application(environ, start_response):
        sock = environ["werkzeug.socket"]
        if used:
            sock.sendall(b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n")
        else:
            assert sock.fileno() >= 0  # looked at, and not used
            start_response("418 Teapot", [("Content-Length", "0")])
        gevent.spawn(write_late, sock)
        return []

    server = serve(application)
    peer = connect(server)
    assert peer.head().startswith(b"HTTP/1.1 418 ")
    assert peer.rest() == b""
    server.join()
    assert not server.upgrades
    go.set()
    assert isinstance(late.get(timeout=10), OSError)
    assert not server.upgrades


def test_a_library_hears_of_the_end(serve, connect):
    """The peer's close frame comes with its code; one that vanished is the end of the stream; our own end is 1001."""
    seen = Queue()

    def application(environ, start_response):
        ws = simple_websocket.Server(environ, **SIMPLE)
        try:
            while True:
                ws.receive()
        except simple_websocket.ConnectionClosed as error:
            seen.put((int(error.reason), error.message))
        seen.put(environ["greentx.disconnected"].is_set())

    server = serve(application)
    peer = connect(server)
    peer.head()
    peer.close(4000, "bye")
    assert (seen.get(timeout=10), seen.get(timeout=10)) == ((4000, "bye"), True)
    assert peer.closed() == (4000, "")
    assert peer.rest() == b""
    peer = connect(server)
    peer.head()
    peer.sock.close()
    assert (seen.get(timeout=10), seen.get(timeout=10)) == ((1005, None), True)
    peer = connect(server)
    peer.head()
    stopping = gevent.spawn(server.stop, 10)
    assert peer.closed() == (1001, "")
    peer.close(1001)
    assert seen.get(timeout=10) == (1001, "")
    stopping.join()


def test_liveness_is_ours_for_both(start_mongrel2, serve, connect):
    """Peers are pinged by the core, whose pongs no library sees, and a silent one is ended."""
    seen = Queue()

    def application(environ, start_response):
        ws = simple_websocket.Server(environ, **SIMPLE)
        try:
            while True:
                seen.put(ws.receive())
        except simple_websocket.ConnectionClosed as error:
            seen.put(int(error.reason))

    mongrel2 = start_mongrel2()
    handler = mongrel2.handlers[0]
    options = {"rep_port": False, "ping_timeout": 0.05, "connect_timeout": 10}
    with Transceiver(handler.sender, handler.send_spec, handler.recv_spec, **options) as trans:
        server = serve(application, listener=trans)
        assert trans.handshake_events
        peer = connect(mongrel2.port)
        peer.head()
        for _ in range(3):
            ping = peer.frame()
            assert ping.opcode == Opcode.PING
            peer.send(ping.payload, Opcode.PONG)
        peer.send("still here")
        assert seen.get(timeout=10) == "still here"
        assert len(trans.websockets) == 1
        assert seen.get(timeout=10) == 1005
        assert len(trans.websockets) == 0
        server.stop()
        assert not trans.handshake_events


@pytest.mark.parametrize("bound", ["max_queue_bytes", "max_pending_bytes"])
@pytest.mark.parametrize("by", ["object", "library"])
def test_an_application_that_does_not_read_is_ended_and_a_warning_names_the_setting(
    start_mongrel2, serve, connect, caplog, bound, by
):
    """No more bytes wait for it than the setting says: then it is closed with 1013."""
    done = Event()

    def application(environ, start_response):
        if by == "object":
            environ["wsgi.websocket"].send("open")
        else:
            environ["werkzeug.socket"].send(HEAD + build_frame(b"open"))
        done.wait()

    mongrel2 = start_mongrel2()
    handler = mongrel2.handlers[0]
    with Transceiver(handler.sender, handler.send_spec, handler.recv_spec, rep_port=False, **{bound: 250_000}) as trans:
        server = serve(application, listener=trans)
        peer = connect(mongrel2.port)
        peer.head()
        for _ in range(20):
            peer.send(b"x" * 100000)
        assert peer.closed()[0] == 1013
        done.set()
        server.stop()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "failed with 1013" in line and f"{bound} is 250000" in line


# -- python-socketio ---------------------------------------------------------------------------------------------------

SOCKETIO_SERVER = """
import sys
if sys.argv[1] == "compat":
    from greentx.compat import install_geventwebsocket
    install_geventwebsocket()
import socketio
from greentx.wsgi import WSGIServer
sio = socketio.Server(async_mode="gevent")
@sio.event
def shout(sid, data):
    sio.emit("shouted", data.upper(), to=sid)
    return len(data)
server = WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(sio), log=None)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""

SOCKETIO_CLIENT = """
import socketio, sys, threading
for transports in (["polling"], ["websocket"], ["polling", "websocket"]):
    heard = threading.Event()
    sio = socketio.Client(reconnection=False)
    sio.on("shouted", lambda data: (print(data), heard.set()))
    sio.connect(f"http://127.0.0.1:{sys.argv[1]}", transports=transports)
    assert sio.call("shout", "hello", timeout=10) == 5
    assert heard.wait(10)
    print(sio.transport())
    sio.disconnect()
"""


@pytest.mark.parametrize("way", ["compat", "socket"])
def test_python_socketio(way):
    """In gevent mode, with and without the stand-in for gevent-websocket; polling, websocket, and the upgrade."""
    command = [sys.executable, "-c", SOCKETIO_SERVER, way]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip()
        assert port, server.stderr.read()
        command = [sys.executable, "-c", SOCKETIO_CLIENT, port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.split() == ["HELLO", "polling", "HELLO", "websocket", "HELLO", "websocket"]
    finally:
        server.terminate()
        errors = server.communicate(timeout=20)[1]
    assert "Traceback" not in errors, errors
