"""The WSGI server on Nodes behind one relay: what holds in one process holds there, and survives restarts."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import gevent.selectors
import pytest
import simple_websocket
from clients_rig import SOCKETIO_CLIENTS, browsing, talking
from engineio.async_drivers.gevent import Thread
from gevent.event import Event
from http_rig import Browser, wait_until
from test_wsgi_applications import run_client, use
from test_wsgi_both import CASES
from websocket_peer import HEAD, Peer
from wsgi_applications import APPLICATIONS
from wsgi_nodes_rig import Api, NodeProcess, OneNode, node_processes, relaying, serving_at
from wsgi_rig import see, serving

from greentx.protocol.http1_parser import ResponseParser
from greentx.protocol.websocket.frames import Opcode

pytestmark = pytest.mark.mongrel2

SIMPLE = {"thread_class": Thread, "event_class": Event, "selector_class": gevent.selectors.DefaultSelector}

#: What says that there are several processes, which is true of a Node and of one process is not.
DIFFERENT = {"what PEP 3333 asks for"}


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, list[Any]]]:
    """What browsers saw of every case: of one process, and of a Node."""
    found: dict[str, dict[str, list[Any]]] = {}
    for kind, server_class in (("process", "greentx"), ("node", OneNode)):
        with serving(server_class, None) as server:
            found[kind] = {}
            for name, (application, requests) in CASES.items():
                server.application = application
                found[kind][name] = see(server, *requests)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_browser_sees_the_same_of_a_node(name: str, seen: dict[str, dict[str, list[Any]]]) -> None:
    """Status, headers, body, and whether the connection stays open."""
    expected = repr(seen["process"][name])
    if name in DIFFERENT:
        expected = expected.replace("'wsgi.multiprocess': False", "'wsgi.multiprocess': True")
        expected = re.sub(r"\('content-length', '\d+'\)", "", expected)
        assert re.sub(r"\('content-length', '\d+'\)", "", repr(seen["node"][name])) == expected
    else:
        assert repr(seen["node"][name]) == expected


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """A relay behind a mongrel2."""
    with relaying() as one:
        yield one


@pytest.mark.parametrize("name", APPLICATIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_application_works_on_a_node(name: str, api: Api) -> None:
    """Forms, uploads, cookies, streams, files; with flow control and streamed bodies."""
    make: Callable[[], Any] = APPLICATIONS[name]
    with serving_at(api, make()), Browser(api) as browser:
        use(browser)


def answering(text: bytes) -> Any:
    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text]

    return application


def test_the_access_log_and_trusted_proxies_work_on_a_node(api: Api) -> None:
    """As in one process: the client is whom the proxy names."""

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr((environ["REMOTE_ADDR"], environ["wsgi.multiprocess"])).encode()]

    log = io.StringIO()
    with serving_at(api, application, log=log, trusted_proxies="127.0.0.1"), Browser(api) as browser:
        assert browser.get("/a?b=c", "X-Forwarded-For: 1.2.3.4").body == b"('1.2.3.4', True)"
        wait_until(log.getvalue)
    assert re.fullmatch(r'1\.2\.3\.4 - - \[.*\] "GET /a\?b=c HTTP/1.1" 200 \d+ \d\.\d{6}\n', log.getvalue())


def test_a_stored_upload_is_read_and_deleted_on_a_node(tmp_path: Path) -> None:
    """Where relay, Node and Mongrel2 see one folder."""
    store = f"{tmp_path}/up.XXXXXX"
    settings: dict[str, int | str] = {"upload.stream": 0, "upload.temp_store": store}

    def application(environ: Any, start_response: Any) -> Any:
        length = len(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % length]

    with relaying(settings, upload_store=store) as api, serving_at(api, application, upload_store=store):
        with Browser(api) as browser:
            for size in (10, 3_000_000, 400_000):
                assert browser.get("/", method="POST", body=b"x" * size).body == b"%d" % size
        wait_until(lambda: not list(tmp_path.iterdir()))


def test_a_server_that_stops_leaves_the_relay_in_order(api: Api) -> None:
    """It answers what it has; what is new goes to others, also of the same connection."""
    begun, go = Event(), Event()

    def slow(environ: Any, start_response: Any) -> Any:
        begun.set()
        go.wait(20)
        return answering(b"first")(environ, start_response)

    with serving_at(api, slow) as first, Browser(api) as browser, Browser(api) as other:
        browser.ask("/")
        assert begun.wait(10)
        with serving_at(api, answering(b"second")):
            stopping = gevent.spawn(first.stop, 20)
            wait_until(lambda: any(session.leaving for session in api.relay.nodes))
            assert [other.get("/").body for _ in range(5)] == [b"second"] * 5
            go.set()
            assert browser.receive().body == b"first"
            stopping.join(10)
            assert stopping.successful()
            assert browser.get("/").body == b"second"


def test_a_server_that_stops_finishes_what_browsers_read_slowly(api: Api) -> None:
    """A large answer depends on notices, which still come by the relay."""
    body = b"0123456789abcdef" * (1 << 19)  # 8 MB, more than the buffers of the system
    with serving_at(api, answering(body)) as server, Browser(api, receive_buffer=65536) as browser:
        browser.ask("/")
        answer = ResponseParser("GET")
        answer.feed(browser.socket.recv(4096))
        stopping = gevent.spawn(server.stop, 30)
        wait_until(lambda: any(session.leaving for session in api.relay.nodes))
        while not answer.complete:
            gevent.sleep(0.001)  # a browser that reads slowly
            answer.feed(browser.socket.recv(65536))
        assert answer.body == body
        stopping.join(10)
        assert stopping.successful()


# -- WebSockets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def connect(api: Api) -> Iterator[Callable[..., Peer]]:
    """Makes a Peer; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(path: str = "/ws", **options: Any) -> Peer:
            peer = Peer(api.port, path, **options)
            stack.callback(peer.sock.close)
            return peer

        yield make


def test_the_object_of_the_environ_works_on_a_node(api: Api, connect: Callable[..., Peer]) -> None:
    """Messages of both kinds, close codes of both sides, and what is said of where it is."""
    seen: list[Any] = []

    def application(environ: Any, start_response: Any) -> Any:
        ws = environ["wsgi.websocket"]
        assert environ["greentx.state"] is ws.state and environ["greentx.adopted"] is ws.adopted is False
        ws.state["path"] = environ["PATH_INFO"]
        while (message := ws.receive()) is not None:
            if message == "close":
                ws.close(4001, b"go away")
                return []
            if message == "fail":
                raise ValueError("a failure of the application")
            ws.send(message)
        seen.append((ws.close_code, ws.close_reason, ws.moved, ws.redelivered, ws.state["path"]))
        return []

    with serving_at(api, application, error_log=None) as server:
        peer = connect()
        assert peer.head() == HEAD
        for message in ("long " * 60000, "gr\u00fc\u00dfe", b"\0\xff"):
            peer.send(message)
            assert peer.message() == message
        assert [client.ws.path for client in server.clients.values()] == ["/ws"]
        peer.close(4000, "bye")
        assert peer.closed() == (4000, "")
        wait_until(lambda: seen)
        assert seen == [(4000, "bye", False, False, "/ws")]
        peer = connect()
        peer.head()
        peer.send("close")
        assert peer.closed() == (4001, "go away")
        wait_until(lambda: not server.clients)


def test_a_failure_is_told_with_1011_on_a_node(
    api: Api, connect: Callable[..., Peer], greenlet_errors: list[Any]
) -> None:
    """As in one process; an application that returns has closed with 1000."""

    def application(environ: Any, start_response: Any) -> Any:
        if environ["wsgi.websocket"].receive() == "fail":
            raise ValueError("a failure of the application")
        return []

    with serving_at(api, application, error_log=None):
        for message, code in (("fail", 1011), ("return", 1000)):
            peer = connect()
            peer.head()
            peer.send(message)
            assert peer.closed() == (code, "")
    greenlet_errors.clear()


def test_a_node_may_refuse_a_websocket(api: Api, connect: Callable[..., Peer]) -> None:
    """With any answer, of the application's or of its library's."""

    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/library":
            environ["werkzeug.socket"].sendall(b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 2\r\n\r\nno")
            return []
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"no", b"thing"]

    with serving_at(api, application):
        peer = connect()
        assert peer.head().startswith(b"HTTP/1.1 404 Not Found\r\n") and peer.rest() == b"nothing"
        peer = connect("/library")
        assert peer.head().startswith(b"HTTP/1.1 418 ") and peer.rest() == b"no"


def library_echo(environ: Any, start_response: Any) -> Any:
    """Echoes by a library, which pings, and ends what does not answer before the next one."""
    assert "HTTP_SEC_WEBSOCKET_EXTENSIONS" not in environ
    ws = simple_websocket.Server(environ, subprotocols=["chat"], ping_interval=2, **SIMPLE)
    with contextlib.suppress(simple_websocket.ConnectionClosed):
        while True:
            ws.send(ws.receive())
    environ["ended"](ws.close_reason, ws.close_message)
    return []


def test_a_library_that_speaks_the_protocol_works_on_a_node(api: Api, connect: Callable[..., Peer]) -> None:
    """Its subprotocol is agreed on, its pings are answered by the client, and it hears of the end."""
    ended: list[Any] = []
    environ = {"ended": lambda *end: ended.append(end)}
    with serving_at(api, library_echo, environ=environ):
        peer = connect(headers="Sec-WebSocket-Protocol: other, chat\r\n")
        assert b"\r\nSec-WebSocket-Protocol: chat\r\n" in peer.head()
        # Without a pong the library would end it at the second ping.
        for _ in range(2):
            frame = peer.frame()
            assert frame.opcode == Opcode.PING
            peer.send(frame.payload, Opcode.PONG)
        for message in ("long " * 60000, "text", b"bytes"):
            peer.send(message)
            assert peer.message() == message
        peer.close(4000, "bye")
        wait_until(lambda: ended)
    assert ended == [(4000, "bye")]


@pytest.mark.parametrize(("count", "size", "every"), [(1000, 10, 0), (1000, 10, 2), (40, 60_000, 0), (12, 500_000, 0)])
def test_an_application_need_not_answer_what_its_library_reads(
    count: int, size: int, every: int, api: Api, connect: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets all, as fast as it reads: nothing waits for a silence."""
    monkeypatch.setattr("greentx.wsgi.inhand.SILENT_SECONDS", 3600.0)

    ended = Event()

    def application(environ: Any, start_response: Any) -> Any:
        ws = simple_websocket.Server(environ, max_message_size=1_000_000, **SIMPLE)
        got = 0
        with contextlib.suppress(simple_websocket.ConnectionClosed):
            while (message := ws.receive()) != "end":
                got += len(message) == size
                if every and got % every == 0:
                    ws.send(b"answer")
            ws.send(f"{got} messages")
            ws.receive()
        ended.set()
        return []

    with serving_at(api, application):
        peer = connect()
        peer.head()
        for _ in range(count):
            peer.send(b"x" * size)
        peer.send("end")
        while (message := peer.message()) == b"answer":
            pass
        assert message == f"{count} messages"
        peer.close(1000)
        assert ended.wait(10)
        # Else another test's Node is told of its end.
        wait_until(lambda: api.relay.status()["websockets"]["open"] == 0)


@pytest.mark.parametrize("by", ["object", "library"])
def test_a_websocket_goes_on_at_another_node_when_its_server_stops(
    by: str, api: Api, connect: Callable[..., Peer]
) -> None:
    """Behind the message that the application works on; nobody is closed, and the state is there."""
    begun, go = Event(), Event()
    seen: list[Any] = []

    def application(environ: Any, start_response: Any) -> Any:
        state, name, ws = environ["greentx.state"], environ["name"], environ["wsgi.websocket"]
        if by == "object":
            receive, send = ws.receive, ws.send
        else:
            library = simple_websocket.Server(environ, **SIMPLE)
            receive, send = library.receive, library.send
        with contextlib.suppress(simple_websocket.ConnectionClosed):
            while (message := receive()) is not None:
                if message == "slowly":
                    begun.set()
                    go.wait(20)
                state["count"] = state.get("count", 0) + 1
                send(f"{name} {environ['greentx.adopted']} {state['count']} {message}")
        seen.append((name, ws.adopted, ws.moved))
        return []

    with serving_at(api, application, environ={"name": "first"}) as first:
        peer = connect()
        peer.head()
        peer.send("one")
        assert peer.message() == "first False 1 one"
        peer.send("slowly")
        assert begun.wait(10)
        with serving_at(api, application, environ={"name": "second"}):
            stopping = gevent.spawn(first.stop, 20)
            wait_until(lambda: any(session.leaving for session in api.relay.nodes))
            peer.send("three")
            go.set()
            assert peer.message() == "first False 2 slowly"
            assert peer.message() == "second True 3 three"
            stopping.join(10)
            assert stopping.successful()
            assert seen == [("first", False, True)]
            peer.close(1000)
            assert peer.closed() == (1000, "")
            wait_until(lambda: len(seen) == 2)
    assert seen[1] == ("second", True, False)


def test_a_handler_that_is_killed_hands_its_websocket_on(api: Api, connect: Callable[..., Peer]) -> None:
    """The next application is given the message again, and told so."""

    def application(environ: Any, start_response: Any) -> Any:
        ws = environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            if environ["name"] == "first":
                begun.set()
                gevent.sleep(60)
            ws.send(f"{message} {ws.adopted} {ws.redelivered}")
        return []

    begun = Event()
    with serving_at(api, application, environ={"name": "first"}) as first:
        peer = connect()
        peer.head()
        peer.send("hello")
        assert begun.wait(10)
        with serving_at(api, application, environ={"name": "second"}):
            first.stop(0.2)
            assert peer.message() == "hello True True"
            peer.send("again")
            assert peer.message() == "again True False"


@pytest.mark.parametrize("used", ["object", "library", "nothing"])
def test_an_application_that_leaves_by_itself_is_not_begun_anew(
    used: str, api: Api, connect: Callable[..., Peer]
) -> None:
    """As in one process the client is told 1001, or 500 before it was let in; and the Node serves on."""
    began: list[bool] = []

    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == f"/by-itself/{used}":  # else the end of one from before comes
            began.append(environ["greentx.adopted"])
        if used == "object":
            environ["wsgi.websocket"].send("hello")
        elif used == "library":
            simple_websocket.Server(environ, **SIMPLE).send("hello")
        raise gevent.GreenletExit

    with serving_at(api, application):
        peer = connect(f"/by-itself/{used}")
        if used == "nothing":
            assert peer.head().startswith(b"HTTP/1.1 500 ")
        else:
            peer.head()
            assert peer.message() == "hello" and peer.closed() == (1001, "")
            peer.close(1001)
        wait_until(lambda: api.relay.status()["websockets"]["open"] == 0)
        assert began == [False] and not any(session.leaving for session in api.relay.nodes)


@pytest.mark.parametrize("by", ["object", "library"])
def test_groups_move_with_a_websocket_and_broadcasts_reach_all_nodes(
    by: str, api: Api, connect: Callable[..., Peer]
) -> None:
    """By a message, and by a POST that the other Node answers."""

    def application(environ: Any, start_response: Any) -> Any:
        member, broadcast, name = environ.get("greentx.websocket"), environ["greentx.broadcast"], environ["name"]
        if member is None:
            return answering(b"%d" % broadcast(f"posted at {name}", group="room"))(environ, start_response)
        if by == "object":
            receive, send = environ["wsgi.websocket"].receive, environ["wsgi.websocket"].send
        else:
            library = simple_websocket.Server(environ, **SIMPLE)
            receive, send = library.receive, library.send
        if environ["greentx.adopted"]:
            assert sorted(member.groups) == ["other", "room"]
            member.leave("other")
        else:
            member.join("room")
            member.join("other")
            send("joined")
        with contextlib.suppress(simple_websocket.ConnectionClosed):
            while receive() is not None:
                send(f"{name} {' '.join(member.groups)} {broadcast('to others', 'room', exclude=[member.sid])}")
        return []

    with serving_at(api, application, environ={"name": "first"}) as first:
        one, two = connect(), connect()
        for peer in (one, two):
            assert peer.head() == HEAD
            assert peer.message() == "joined"
        one.send("who")
        assert one.message() == "first room other 1"
        assert two.message() == "to others"
        with serving_at(api, application, environ={"name": "second"}):
            stopping = gevent.spawn(first.stop, 20)
            wait_until(lambda: len(api.relay.nodes) == 1)
            stopping.join(20)
            one.send("who")
            assert one.message() == "second room 1"
            assert two.message() == "to others"
            with Browser(api) as browser:
                assert browser.get("/", method="POST", body=b"").body == b"2"
            assert [one.message(), two.message()] == ["posted at second"] * 2
            for peer in (one, two):
                peer.close()
                assert peer.closed() == (1000, "")
            # Else another test's Node is told of their ends.
            wait_until(lambda: api.relay.status()["websockets"]["open"] == 0)


def test_a_handshake_that_is_being_decided_about_goes_to_another_node(api: Api, connect: Callable[..., Peer]) -> None:
    """Where its application is killed by the end of its server."""

    def application(environ: Any, start_response: Any) -> Any:
        if environ["name"] == "first":
            begun.set()
            gevent.sleep(60)
        environ["wsgi.websocket"].send(f"{environ['name']} {environ['greentx.adopted']}")
        return []

    begun = Event()
    with serving_at(api, application, environ={"name": "first"}) as first:
        peer = connect()
        assert begun.wait(10)
        with serving_at(api, application, environ={"name": "second"}):
            first.stop(0.2)
            assert peer.head() == HEAD
            assert peer.message() == "second False"
            assert peer.closed() == (1000, "")


def test_a_websocket_of_engine_io_is_told_to_begin_anew(api: Api, connect: Callable[..., Peer]) -> None:
    """Its session was in the memory of the process that ended: another one could not go on with it."""

    def application(environ: Any, start_response: Any) -> Any:
        ws = environ["wsgi.websocket"]
        ws.send(environ["name"])
        while ws.receive() is not None:
            pass
        return []

    with serving_at(api, application, environ={"name": "first"}) as first:
        peer = connect("/socket.io/?EIO=4&transport=websocket")
        peer.head()
        assert peer.message() == "first"
        with serving_at(api, application, environ={"name": "second"}):
            first.stop(10)
            assert peer.closed() == (1012, "")


NODES = ("node-a", "node-b", "node-c")


@pytest.fixture(scope="module")
def nodes(api: Api) -> Iterator[list[NodeProcess]]:
    """Three Nodes in processes of their own."""
    with node_processes(api, *NODES) as running:
        yield running
        for one in running:
            assert (one.end(), one.process.returncode) == ([], 0)


@pytest.mark.parametrize("name", ["flask-sock", "flask-sockets"])
def test_websockets_of_frameworks_work_on_a_node(name: str, api: Api, nodes: list[NodeProcess]) -> None:
    """With an independent client, which asks for compression."""
    printed = run_client(f"""
from websockets.sync.client import connect
with connect("ws://127.0.0.1:{api.port}/{name}/echo") as ws:
    for message in ("long " * 60000, "gr\u00fc\u00dfe", b"\\0\\xff"):
        ws.send(message)
        assert ws.recv(timeout=10) == message, message
    assert ws.ping().wait(10)
    print(ws.response.headers["Sec-WebSocket-Extensions"].partition(";")[0])
print(ws.close_code)
""")
    assert printed.split() == ["permessage-deflate", "1000"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transports", [["polling"], ["websocket"], ["polling", "websocket"]], ids="-".join)
def test_socketio_runs_unchanged_on_three_nodes(transports: list[str], api: Api, nodes: list[NodeProcess]) -> None:
    """Its sessions are in the memory of one process each; all requests of one go there."""
    printed = run_client(SOCKETIO_CLIENTS % {"port": api.port, "transports": transports}, timeout=100)
    assert printed.split() == list(NODES)


def all_have_left(talks: Iterable[Any], name: str) -> bool:
    """Whether the last answer of each WebSocket is another Node's."""
    return all(talk.answers[-1][0] != name for talk in talks)


@pytest.mark.timeout(180)
def test_a_rolling_restart_is_noticed_by_nobody() -> None:
    """Each message is answered once, in order, by whoever has the WebSocket, with the state as it was."""
    old, new = ("old-a", "old-b", "old-c"), ("new-a", "new-b", "new-c")
    with relaying() as api, contextlib.ExitStack() as stack:
        running = stack.enter_context(node_processes(api, *old))
        with browsing(api, 4) as answers, talking(api, 12, "/counting", "/flask-sock-counting/") as talks:
            assert {talk.answers[0][0] for talk in talks} == set(old)
            for name, one in zip(new, running, strict=True):
                stack.enter_context(node_processes(api, name))
                assert (one.end(), one.process.returncode) == ([], 0)
                wait_until(partial(all_have_left, talks, one.name), 30)
            count = len(answers)
            wait_until(lambda: len(answers) > count + 20, 30)
        status = api.relay.status()
    assert set(answers[count:]) <= set(new) and set(answers) >= set(old)
    assert (status["bad_gateway"], status["unavailable"], status["closed"]) == (0, 0, 0)
    for talk in talks:
        numbers = [str(number + 1) for number in range(len(talk.answers))]
        assert [answer[3] for answer in talk.answers] == numbers
        assert [answer[2] for answer in talk.answers] == numbers
        assert talk.answers[0][1] == "False"
        assert talk.answers[-1][0] in new and talk.answers[-1][1] == "True"


@pytest.mark.timeout(120)
def test_a_killed_node_is_noticed_by_no_websocket() -> None:
    """What it had in hand is given again elsewhere; the state is as it was written."""
    with relaying() as api, node_processes(api, "one", "two") as (one, _two):
        with talking(api, 8, "/counting", "/flask-sock-counting/") as talks:
            one.process.kill()
            wait_until(lambda: all(talk.answers[-1][0] == "two" for talk in talks), 30)
    for talk in talks:
        sent = [int(answer[3]) for answer in talk.answers]
        # A message in hand may have been answered, and be answered once more.
        assert sent == sorted(sent) and set(sent) == set(range(1, max(sent) + 1))
        counts = [int(answer[2]) for answer in talk.answers]
        assert counts == sorted(counts)
