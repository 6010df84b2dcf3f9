"""serve(): which greenlet gets what, and what a full pool holds up."""

from __future__ import annotations

import contextlib

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool
from stand_in import Server

from greentx import Transceiver
from greentx.errors import ConnectionClosed, LocalProtocolError, SendTimeout
from greentx.handler import transceiver as transceiver_module
from greentx.handler.connection import Connection
from greentx.handler.dispatcher import Dispatcher
from greentx.handler.schedule import Job
from greentx.protocol.request import Request
from greentx.protocol.requests import build_disconnect_notice
from greentx.protocol.websocket.frames import Opcode, build_close, build_frame


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@contextlib.contextmanager
def serving(server, handler=None, *, max_pending=100, **options):
    """A Transceiver that serves in a greenlet; yields it and its dispatcher."""
    made = []

    class Noted(Dispatcher):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transceiver_module, "Dispatcher", Noted)
        with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2, max_pending=max_pending) as trans:
            trans.wait_ready(5)
            greenlet = gevent.spawn(trans.serve, handler, **options)
            wait_until(lambda: made)
            yield trans, made[0]
            trans.stop(2)
            greenlet.get(timeout=5)


def wait_until(condition) -> None:
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


def echo(ws):
    for message in ws:
        ws.send(message)


def test_a_full_pool_does_not_stop_websockets(server):
    """Requests wait for their place, messages do not."""
    go_on = Event()

    def handler(conn, req):
        assert go_on.wait(5)
        conn.reply_http(req, "done")

    with serving(server, handler, websocket=echo, pool=1) as (_trans, dispatcher):
        for number in range(20):
            server.request(100 + number)
        wait_until(lambda: len(dispatcher.requests.waiting) == 19)
        server.open_websocket(1)
        assert server.receive_for(1).startswith(b"HTTP/1.1 101 ")
        server.frame(1, b"hi")
        assert server.receive_for(1) == b"\x81\x02hi"
        go_on.set()
        assert server.receive_for(119).endswith(b"done")


def test_what_waits_has_a_bound(server):
    """Then the inbox fills, then the receiver waits, and the server keeps the rest; all is answered in the end."""
    go_on = Event()
    handled = []

    def handler(conn, req):
        assert go_on.wait(5)
        handled.append(req.conn_id)
        conn.reply_http(req, "")

    with serving(server, handler, pool=1, max_pending=5) as (trans, dispatcher):
        for number in range(50):
            server.request(number)
        conn = trans.connections["u"]
        wait_until(lambda: dispatcher.requests.queued >= 5 and trans.status()["pending"])
        gevent.sleep(0.02)  # what must not happen has no event
        assert conn.intake.requests < 20
        go_on.set()
        wait_until(lambda: len(handled) == 50)
    assert handled == [str(number) for number in range(50)]


def test_what_one_connection_pipelines_counts_too(server):
    """One client cannot fill the memory from behind its first request."""
    go_on = Event()
    handled = []

    def handler(conn, req):
        assert go_on.wait(5)
        handled.append(req.path)
        conn.reply_http(req, "")

    with serving(server, handler, max_pending=5) as (trans, dispatcher):
        for number in range(50):
            server.request(1, f"/{number}")
        wait_until(lambda: dispatcher.requests.queued >= 5)
        gevent.sleep(0.02)  # what must not happen has no event
        assert trans.connections["u"].intake.requests < 20
        go_on.set()
        wait_until(lambda: len(handled) == 50)
    assert handled == [f"/{number}" for number in range(50)]


def test_requests_that_wait_take_turns(server):
    """A connection that pipelines goes to the end of the queue after each."""
    handled = []
    all_in = Event()

    def handler(conn, req):
        handled.append(f"{req.conn_id}{req.path}")
        all_in.wait(5)
        conn.reply_http(req, "")

    with serving(server, handler, pool=1) as (trans, _):
        for conn_id in (1, 2):
            for number in range(3):
                server.request(conn_id, f"/{number}")
        wait_until(lambda: trans.connections["u"].intake.requests == 6)
        all_in.set()
        wait_until(lambda: len(handled) == 6)
    assert handled == ["1/0", "2/0", "1/1", "2/1", "1/2", "2/2"]


def test_a_disconnect_is_beside_the_pool(server):
    """It reaches the application though the handler that fills the pool waits for just that."""
    seen = []
    gone = Event()

    def handler(conn, req):
        seen.append(req.method)
        if req.method == "DISCONNECT":
            gone.set()
        else:
            assert gone.wait(5)

    with serving(server, handler, pool=1) as (_, dispatcher):
        server.request(1)
        wait_until(lambda: seen)
        server.push.send(build_disconnect_notice("u", 1))
        wait_until(lambda: len(seen) == 2)
        wait_until(lambda: not dispatcher.greenlets())
        assert not dispatcher.requests.lines
    assert seen == ["GET", "DISCONNECT"]


def test_a_websocket_that_was_there_before_is_served(server):
    """Let in while recv() was used, or nothing: its next message begins its handler."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        trans.wait_ready(5)
        server.open_websocket(1)
        assert next(trans.recv(timeout=5))[2].method == "WEBSOCKET_CONNECT"
        server.open_websocket(2)
        wait_until(lambda: len(trans.websockets) == 2)
        greenlet = gevent.spawn(trans.serve, websocket=echo)
        for conn_id in (1, 2):
            server.frame(conn_id, b"hi")
        data = dict.fromkeys(("1", "2"), b"")
        while not all(one.endswith(b"\x81\x02hi") for one in data.values()):
            reply = server.receive()
            for conn_id in set(reply.conn_ids) & data.keys():
                data[conn_id] += reply.body
        trans.stop(2)
        greenlet.get(timeout=5)


def test_an_opcode_of_none_is_text(server):
    """As the opcode of a request that is not a message, so that a handler may hand it on without a question."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        trans.wait_ready(5)
        server.open_websocket(1)
        _, conn, req = next(trans.recv())
        assert req.opcode is None
        conn.reply_websocket(req, "one", req.opcode)
        conn.deliver_websocket("u", [1], "two", req.opcode)
        data = b""
        while not data.endswith(b"\x81\x03one\x81\x03two"):
            data += server.receive().body


def test_a_websocket_that_was_there_before_may_end(server):
    """Its end is nobody's business any more."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        trans.wait_ready(5)
        server.open_websocket(1)
        assert next(trans.recv(timeout=5))[2].method == "WEBSOCKET_CONNECT"
        handled = []
        greenlet = gevent.spawn(trans.serve, websocket=handled.append)
        server.push.send(build_disconnect_notice("u", 1))
        wait_until(lambda: not trans.websockets)
        trans.stop(2)
        greenlet.get(timeout=5)
        assert not handled


def test_a_closed_connection_is_no_failure(server, caplog):
    """ConnectionClosed ends a handler without a traceback, whoever's connection it was."""
    from greentx.errors import ConnectionClosed

    def handler(conn, req):
        raise ConnectionClosed(1006, "gone")

    def ws_handler(ws):
        raise ConnectionClosed(1006, "gone")

    with serving(server, handler, websocket=ws_handler) as (_, dispatcher):
        server.request(1)
        server.open_websocket(2)
        while server.receive_for(2) != b"\x88\x02\x03\xe8":
            pass
        wait_until(lambda: not dispatcher.greenlets())
    assert "Traceback" not in caplog.text


def test_a_client_gets_its_answer_though_another_ones_connection_is_closed(server, caplog):
    """Where nothing was sent it is a 500, and a line in the log names the request; half an answer ends there."""
    from greentx.errors import ConnectionClosed

    def handler(conn, req):
        if req.path == "/half":
            conn.reply(req, "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")
        raise ConnectionClosed(1006, "connection 99 is closed")

    with serving(server, handler):
        server.request(1)
        assert server.receive_for(1).startswith(b"HTTP/1.1 500 ")
        server.request(2, "/half")
        assert server.receive_for(2).endswith(b"half")
        assert server.receive_for(2) == b""
    assert "the handler of GET / failed" in caplog.text


def test_nothing_to_serve_is_an_error(server):
    """serve() without any handler says so."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        with pytest.raises(ValueError, match="needs a handler"):
            trans.serve()


def test_what_comes_after_the_kill_is_refused(server):
    """A dispatcher that ended answers 503."""
    with serving(server, lambda conn, req: conn.reply_http(req, "x")) as (_, dispatcher):
        server.request(1)
        assert server.receive_for(1).endswith(b"x")
        assert dispatcher.kill(1) == 0
        server.request(1)
        assert server.receive_for(1).startswith(b"HTTP/1.1 503 ")


def test_a_sudden_end_wakes_all_who_wait_for_a_websocket(server):
    """Also greenlets that are not its handler's."""
    waiting = []

    def handler(ws):
        waiting.append(gevent.spawn(ws.receive))
        ws.on_end(lambda: waiting.append("told"))
        waiting[0].join()

    with serving(server, websocket=handler) as (trans, _):
        server.open_websocket(1)
        wait_until(lambda: waiting)
        trans.stop(0)
    assert waiting[0].get(timeout=5) is None
    wait_until(lambda: waiting[1:] == ["told"])


def test_a_sudden_end_wakes_all_who_wait_for_a_websocket_that_was_there_before(server):
    """Its events come through the inbox, which nobody reads any more."""
    waiting, got = [], []

    def handler(ws):
        waiting.append(gevent.spawn(lambda: got.extend(ws.receive() for _ in range(2))))
        waiting[0].join()

    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        trans.wait_ready(5)
        server.open_websocket(1)
        assert next(trans.recv(timeout=5))[2].method == "WEBSOCKET_CONNECT"
        greenlet = gevent.spawn(trans.serve, websocket=handler)
        server.frame(1, b"hi")
        wait_until(lambda: waiting)
        trans.stop(0)
        greenlet.get(timeout=5)
    waiting[0].get(timeout=5)
    assert got == ["hi", None]


def test_other_threads_may_wait_for_a_websocket(server):
    """Receive, ping and close block the thread that calls, not the hub's."""
    sockets = []

    def handler(ws):
        sockets.append(ws)
        while not ws.closed:
            gevent.sleep(0.001)

    with serving(server, websocket=handler):
        server.open_websocket(1)
        wait_until(lambda: sockets)
        server.receive_for(1)
        pool = gevent.get_hub().threadpool
        receiving, pinging = pool.spawn(sockets[0].receive), pool.spawn(sockets[0].ping, b"there?")
        assert server.receive_for(1) == build_frame(b"there?", Opcode.PING)
        server.frame(1, b"hello")
        server.frame(1, b"there?", flags="0x8A")
        assert receiving.get(timeout=5) == "hello"
        assert pinging.get(timeout=5) > 0
        closing = pool.spawn(sockets[0].close, 4000, "bye")
        assert server.receive_for(1) == build_frame(build_close(4000, "bye"), Opcode.CLOSE)
        server.frame(1, build_close(4000, ""), flags="0x88")
        closing.get(timeout=5)
        assert sockets[0].close_code == 4000


def test_a_websocket_of_a_removed_connection_says_that_it_is_closed(server):
    """To who sends, pings or joins."""
    sockets = []
    with serving(server, websocket=lambda ws: sockets.append(ws) or ws.receive()) as (trans, _):
        server.open_websocket(1)
        wait_until(lambda: sockets)
        trans.remove_connection("u")
        for call in (lambda: sockets[0].send("x"), sockets[0].ping, lambda: sockets[0].join("group")):
            with pytest.raises(ConnectionClosed):
                call()


@pytest.mark.parametrize("message", [3, [1, 2], None])
def test_a_broadcast_takes_what_send_takes(server, message):
    """A number is no message, nor is one sid a list of sids."""
    with serving(server, websocket=echo) as (trans, _):
        with pytest.raises(TypeError, match="str or bytes"):
            trans.broadcast(message)
        with pytest.raises(LocalProtocolError):
            trans.broadcast("\ud800")
        with pytest.raises(TypeError, match="sids"):
            trans.broadcast("x", exclude=("u", "1"))


def test_a_handler_of_an_older_life_holds_up_nobody(server):
    """After a restart the server gives the same numbers to other browsers, whose requests do not wait for it."""
    go_on = Event()

    def handler(conn, req):
        if req.path == "/old":
            conn.reply_http(req, "answered")
            go_on.wait(5)
        else:
            conn.reply_http(req, "new")

    with serving(server, handler) as (trans, dispatcher):
        server.request(1, "/old")
        assert server.receive().body.endswith(b"answered")
        trans.connections["u"].link.on_lost()
        trans.connections["u"].link.on_ready()
        wait_until(lambda: trans.connections["u"].link.caught_up())
        gevent.sleep(0.05)  # the end of the old pipe has to reach the server, or the request goes into it
        server.request(1, "/new")
        assert server.receive().body.endswith(b"new")
        go_on.set()
        wait_until(lambda: not dispatcher.requests.lines and not dispatcher.greenlets())


class Stored:
    """In the place of a stored upload."""

    def __init__(self) -> None:
        self.deleted = 0

    def delete(self) -> None:
        self.deleted += 1


def test_an_upload_behind_another_request_goes_with_its_client(server):
    """At once: what a client stores and leaves behind could fill the disk."""
    go_on = Event()
    seen = []

    def handler(conn, req):
        seen.append(req.method)
        if req.method == "GET":
            assert go_on.wait(5)

    with serving(server, handler) as (trans, dispatcher):
        server.request(1)
        wait_until(lambda: seen)
        stored = Stored()
        upload = Request("u", "1", "/up", {"METHOD": "POST", "VERSION": "HTTP/1.1"})
        upload.stored = stored
        upload.life = trans.connections["u"].link.life
        dispatcher.dispatch(trans.connections["u"], upload)
        assert dispatcher.requests.queued == 1
        server.push.send(build_disconnect_notice("u", 1))
        wait_until(lambda: seen == ["GET", "DISCONNECT"])
        assert stored.deleted == 1 and dispatcher.requests.queued == 0
        go_on.set()
    assert seen == ["GET", "DISCONNECT"]


def test_disconnects_have_a_bound_of_their_own(server):
    """As many handlers of them run as the pool has places: clients that come and go make no more greenlets."""
    go_on = Event()
    begun = []

    def handler(conn, req):
        if req.method == "DISCONNECT":
            begun.append(req.conn_id)
            assert go_on.wait(5)

    with serving(server, handler, pool=2) as (trans, dispatcher):
        conn = trans.connections["u"]
        for number in range(5):
            conn_id = str(number)
            request = Request("u", conn_id, "/", {"METHOD": "GET", "VERSION": "HTTP/1.1"})
            running = Job(conn, request, request.sid)
            dispatcher.requests.lines.add(running)  # it is being handled, for all that the dispatcher knows
            dispatcher.dispatch(conn, Request("u", conn_id, "@*", {"METHOD": "JSON"}, b"", "DISCONNECT"))
            dispatcher.requests.lines.finish(running)
        wait_until(lambda: len(begun) == 2)
        gevent.sleep(0.01)  # what must not happen has no event
        assert begun == ["0", "1"] and dispatcher.news.queued == 3
        go_on.set()
        wait_until(lambda: len(begun) == 5)


def test_a_request_that_cannot_be_refused_stops_nothing(server, monkeypatch):
    """Where only WebSockets are served, and the pipe to the server is full: they go on, and can be closed."""
    full = Event()
    refusing = []

    def reply_http(conn, req, *arguments, **options):
        refusing.append(req.path)
        full.wait(5)
        raise SendTimeout("the pipe stayed full", address="here")

    monkeypatch.setattr(Connection, "reply_http", reply_http)
    sockets = []

    def handler(ws):
        sockets.append(ws)
        echo(ws)

    with serving(server, websocket=handler):
        server.open_websocket(1)
        assert server.receive_for(1).startswith(b"HTTP/1.1 101 ")
        server.request(2, "/page")
        wait_until(lambda: refusing)
        server.frame(1, b"hi")
        assert server.receive_for(1) == b"\x81\x02hi"
        full.set()
        gevent.sleep(0.01)  # the refused one goes on, which nobody is told
        closing = gevent.spawn(sockets[0].close)
        assert server.receive_for(1) == build_frame(build_close(1000, ""), Opcode.CLOSE)
        server.frame(1, build_close(1000, ""), flags="0x88")
        closing.get(timeout=5)
    assert refusing == ["/page"]


@pytest.mark.parametrize("pool", [0, -1])
def test_a_pool_without_a_place_is_an_error(server, pool):
    """Nothing would ever be handled."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        with pytest.raises(ValueError, match="at least 1"):
            trans.serve(echo, pool=pool)


def test_new_websockets_go_to_the_serve_that_began_last(server):
    """While it runs; those that it has stay with its handler afterwards."""

    def answering(name):
        def handler(ws):
            for message in ws:
                ws.send(f"{name} {message}")

        return handler

    def ask(conn_id):
        server.frame(conn_id, b"?")
        while not (answer := server.receive_for(conn_id)).endswith(b" ?"):
            pass
        return answer[2:]

    with serving(server, websocket=answering("first")) as (trans, _):
        last = gevent.spawn(trans.serve, websocket=answering("last"))
        wait_until(lambda: len(trans.shared().websocket_receivers) == 2)
        for conn_id in (1, 2):
            server.open_websocket(conn_id)
            assert ask(conn_id) == b"last ?"
        last.kill(timeout=5)
        server.open_websocket(3)
        assert ask(3) == b"first ?"
        assert ask(1) == b"last ?"


def test_a_serve_that_did_not_begin_gets_no_websockets(server):
    """They go to who does receive."""
    called = []
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        trans.wait_ready(5)
        with pytest.raises(ValueError, match="at least 1"):
            trans.serve(websocket=called.append, pool=0)
        server.open_websocket(1)
        assert next(trans.recv(timeout=5))[2].method == "WEBSOCKET_CONNECT"
        assert not called


def test_a_connection_set_that_is_read_by_itself_keeps_its_websockets(server):
    """They come out of Connection.recv(), as its requests do; those that began before stay with serve()."""
    served = []

    def handler(ws):
        served.append(ws.sid[1])
        echo(ws)

    with serving(server, websocket=handler) as (trans, _):
        server.open_websocket(1)
        wait_until(lambda: served)
        conn = trans.connections["u"]
        assert conn.recv(0) is None
        server.open_websocket(2)
        server.frame(2, b"two")
        server.frame(1, b"one")
        got = [conn.recv(5) for _ in range(2)]
        assert [(one.method, one.conn_id) for one in got] == [("WEBSOCKET_CONNECT", "2"), ("WEBSOCKET", "2")]
        while server.receive_for(1) != build_frame(b"one", Opcode.TEXT):
            pass
        assert served == ["1"]


def test_handlers_run_in_the_greenlets_of_a_pool_that_has_its_own(server):
    """One whose greenlet class is another one; those of other pools only take a place."""

    class Own(gevent.Greenlet):
        pass

    seen = []

    def handler(conn, req):
        seen.append(type(gevent.getcurrent()))
        conn.reply_http(req, "x")

    for pool in (Pool(1, Own), Pool(1)):
        with serving(server, handler, pool=pool):
            server.request(1)
            assert server.receive_for(1).endswith(b"x")
            wait_until(lambda pool=pool: pool.free_count() == 1)
    assert seen == [Own, gevent.Greenlet]
