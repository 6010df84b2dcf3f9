"""One connection set, with plain sockets in the place of Mongrel2."""

from __future__ import annotations

import inspect
import logging
from datetime import datetime, timezone

import gevent
import pytest
import zmq
from gevent.event import Event
from stand_in import HTTP, Server

from greentx import Connection, Request, Transceiver
from greentx.errors import ConnectionClosed, LocalProtocolError
from greentx.handler import link as link_module
from greentx.handler.clock import current_date
from greentx.protocol.http1 import TEXT_TYPE, build_response, format_date
from greentx.protocol.requests import build_disconnect_notice, build_request
from greentx.transport.teardown import guarded


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def trans(server):
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2) as trans:
        trans.wait_ready(5)
        yield trans


@pytest.fixture
def conn(trans):
    return trans.connections["u"]


def test_it_has_the_methods_of_mongrel2s_own_example():
    """Handlers port by changing an import: the names, and the order of what they take."""
    expected = {
        "send": ["sender", "conn_id", "msg"],
        "reply": ["req", "msg"],
        "reply_json": ["req", "data"],
        "reply_http": ["req", "body", "code", "status", "headers"],
        "reply_websocket": ["req", "body", "opcode", "rsvd"],
        "deliver": ["sender", "idents", "data"],
        "deliver_json": ["sender", "idents", "data"],
        "deliver_http": ["sender", "idents", "body", "code", "status", "headers"],
        "deliver_websocket": ["sender", "idents", "data", "opcode", "rsvd"],
        "close": ["req"],
        "deliver_close": ["sender", "idents"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(Connection, name)).parameters)[1:] == parameters
    for name in ("recv", "recv_json"):
        needed = [
            one
            for one in inspect.signature(getattr(Connection, name)).parameters.values()
            if one.default is inspect.Parameter.empty
        ]
        assert [one.name for one in needed] == ["self"]
    defaults = inspect.signature(Connection.reply_http).parameters
    assert (defaults["code"].default, defaults["status"].default, defaults["headers"].default) == (200, "OK", None)
    defaults = inspect.signature(Connection.reply_websocket).parameters
    assert (defaults["opcode"].default, defaults["rsvd"].default) == (1, 0)


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        (200, "OK", b"HTTP/1.1 200 OK"),
        (404, "OK", b"HTTP/1.1 404 Not Found"),
        (404, None, b"HTTP/1.1 404 Not Found"),
        (404, "Gone Fishing", b"HTTP/1.1 404 Gone Fishing"),
        (599, "OK", b"HTTP/1.1 599 "),
        (200, "", b"HTTP/1.1 200 "),
    ],
)
def test_the_default_status_is_the_standard_phrase(server, trans, code, status, line):
    """Beside another code than 200 "OK" would be nonsense."""
    events = trans.recv(timeout=5)
    server.request()
    _, conn, req = next(events)
    conn.reply_http(req, "", code, status)
    assert server.receive().body.partition(b"\r\n")[0] == line
    events.close()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"garbage",
        b"u 1 / 5:{},0:,",
        b"u x / 2:{},0:,",
        b"u 1 / 2:{},0:,",
        b"u 1 / 16:6:METHOD,4:JSON,}9:x,",
        b"\xff" * 1000,
    ],
)
def test_a_bad_message_ends_itself_only(server, trans, conn, caplog, message):
    """It is counted and logged at WARNING; the next one is served."""
    events = trans.recv(timeout=5)
    with caplog.at_level(logging.WARNING):
        server.push.send(message)
        server.request(path="/next")
        assert next(events)[2].path == "/next"
    assert conn.bad_messages == conn.status()["bad_messages"] == 1
    (record,) = [one for one in caplog.records if one.name == "greentx.connection"]
    assert record.levelno == logging.WARNING
    assert "bad message number 1" in record.getMessage()
    events.close()


def test_a_second_part_is_a_bad_message(server, trans, conn):
    """Mongrel2 never sends one; who does gets one message and one complaint."""
    events = trans.recv(timeout=5)
    server.push.send_multipart([build_request("u", 1, "/first", HTTP), b"second"])
    server.request(path="/next")
    assert [next(events)[2].path for _ in range(2)] == ["/first", "/next"]
    assert conn.bad_messages == 1
    events.close()


def test_notices_are_idempotent(server, trans, conn):
    """One DISCONNECT for however many notices, none for who had nothing open."""
    events = trans.recv(timeout=0.05)
    server.request(1)
    assert next(events)[2].method == "GET"
    for conn_id in (1, 1, 2, 1):
        server.push.send(build_disconnect_notice("u", conn_id))
    assert next(events)[2].method == "DISCONNECT"
    assert next(events) == (None, None, None)
    events.close()


def test_a_websocket_method_without_flags_is_no_frame(server, trans, caplog):
    """FLAGS is the server's word: a client cannot write it."""
    server.request(1, METHOD="WEBSOCKET", flags="0x81")
    assert server.receive().body.startswith(b"HTTP/1.1 501 ")
    assert server.receive().is_close


def test_a_handshake_lacks_nothing(server, trans):
    """What Mongrel2 would not have taken for one is somebody's forgery."""
    headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
    headers["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    server.request(1, body=b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", METHOD="WEBSOCKET_HANDSHAKE", **headers)
    assert server.receive().body.startswith(b"HTTP/1.1 501 ")
    server.request(2, body=b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", METHOD="WEBSOCKET_HANDSHAKE", host="x", **headers)
    while not (reply := server.receive()).body.startswith(b"HTTP/1.1 101 "):
        assert reply.is_close
    assert trans.websockets


def test_http_is_not_spoken_to_a_websocket(server, trans, caplog):
    """The loop that answers everything with reply_http gets a WARNING, the client no garbage; JSON goes as text."""
    events = trans.recv(timeout=5)
    headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13", "host": "x"}
    headers["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    server.request(2, body=b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", METHOD="WEBSOCKET_HANDSHAKE", **headers)
    _, conn, req = next(events)
    assert server.receive().body.startswith(b"HTTP/1.1 101 ")
    conn.reply_http(req, "hello")
    assert "as if it were HTTP" in caplog.text
    conn.reply_json(req, {"a": 1})
    conn.deliver_json("u", ["2"], [2])
    conn.send("u", 2, b"\x81\x01x")
    data = b""
    while len(data) < 10 + 5 + 3:
        data += server.receive().body
    assert data == b'\x81\x08{"a": 1}\x81\x03[2]\x81\x01x'
    events.close()


def test_a_request_of_the_callers_own_can_be_answered(server, conn):
    """One that no connection set took in: parsed from bytes that came some other way."""
    request = Request.parse(build_request("u", 5, "/", HTTP))
    conn.reply_http(request, "x")
    assert server.receive().conn_ids == ["5"]
    conn.close(request)
    assert server.receive().is_close


def test_a_forwarded_request_is_not_waited_for(server, trans, conn):
    """The next one of its connection is answered, though nobody here answered the first."""
    sent = []

    class Socket:
        def send(self, data: bytes) -> None:
            sent.append(data)

    events = trans.recv(timeout=5)
    server.request(1, "/first")
    server.request(1, "/second")
    first, second = next(events)[2], next(events)[2]
    conn.reply_http(second, "second")
    first.forward(Socket())
    assert Request.parse(sent[0]).path == "/first"
    assert server.receive().body.endswith(b"second")
    assert conn.status()["open_requests"] == 0
    events.close()


def test_a_message_that_is_not_sent_closes_the_connection(server, trans, conn, monkeypatch):
    """The client would take the next answer for the one that is missing."""
    events = trans.recv(timeout=5)
    server.request(1, "/first")
    server.request(1, "/second")
    first, second = next(events)[2], next(events)[2]

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("full")

    with monkeypatch.context() as patch:
        patch.setattr(conn.link.writer, "write", full)
        with pytest.raises(RuntimeError, match="full"):
            conn.reply_http(first, "lost")
    conn.reply_http(second, "nobody waits for it")
    reply = server.receive()
    assert (reply.conn_ids, reply.is_close) == (["1"], True)
    assert conn.status()["open_requests"] == 0
    events.close()


def wait_until(condition):
    """Let others run until *condition* holds."""
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)  # between two looks


def restart(server, conn):
    """To the connection set this is what a restart of the server is: its subscription goes, and another one comes."""
    server.sub.unsubscribe(b"")
    wait_until(lambda: not conn.ready)
    # What is pushed into a connection that is just being closed is lost.
    wait_until(lambda: not server.push.getsockopt(zmq.EVENTS) & zmq.POLLOUT)
    server.sub.subscribe(b"")
    assert conn.wait_ready(5)


@pytest.mark.parametrize("how", ["whole", "in parts"])
def test_an_answer_that_a_restart_breaks_off_leaves_the_browsers_of_the_new_server_alone(server, trans, conn, how):
    """Its greenlet hears of it when the next life has begun, in which the number is a stranger's."""
    events = trans.recv(timeout=5)
    server.request(1, "/old", DOWNLOAD_CREDITS="102400")
    old = next(events)[2]
    body = bytes(4_000_000)
    ended = []

    def answer():
        try:
            if how == "whole":
                conn.reply_http(old, body)
            else:
                conn.answers.part(old, b"HTTP/1.1 200 OK\r\nContent-Length: 4000001\r\n\r\n" + body)
        except ConnectionClosed as error:
            ended.append(error)

    answering = gevent.spawn(answer)
    wait_until(lambda: conn.link.writer.flow.waiting("1"))
    restart(server, conn)
    answering.join(5)
    assert len(ended) == 1
    # One that was answered in part is open still, so its end is told.
    assert how == "whole" or next(events)[2].method == "DISCONNECT"
    server.request(1, "/new")
    new = next(events)[2]
    assert (new.method, new.path) == ("GET", "/new")
    conn.reply_http(new, "new")
    wait_until(lambda: server.receive_for(1).endswith(b"new"))
    events.close()


def lose_the_server_while_writing(conn, monkeypatch):
    """Have the next thing that is written wait at a full pipe, as it were, until the server has gone."""
    writer = conn.link.writer

    def write(*_: object, **__: object) -> None:
        conn.link.on_lost()

    monkeypatch.setattr(writer, "write", write)
    monkeypatch.setattr(writer, "control", write)


@pytest.mark.parametrize("data", [b"data", b""])
def test_a_delivery_that_waits_during_a_restart_does_not_go_on_to_the_new_browsers(
    server, trans, conn, monkeypatch, data
):
    """The rest of its numbers are strangers' by then: nothing is sent to them, and their ends are nobody's news."""
    events = trans.recv(timeout=5)
    server.request(1)
    request = next(events)[2]
    sent = []
    lose_the_server_while_writing(conn, monkeypatch)
    monkeypatch.setattr(conn.link.writer, "write_many", lambda _sender, conn_ids, _data: sent.append(conn_ids))

    def close(_sender: str, conn_ids: list[str], **_: object) -> None:
        sent.append(conn_ids)
        conn.link.on_lost()

    monkeypatch.setattr(conn.link.writer, "close", close)
    life = conn.link.life
    conn.deliver("u", ["1", "2"], data)
    assert conn.link.life is not life and request.life is not conn.link.life
    assert sent == ([] if data else [["1"]])
    assert not conn.link.life.sockets
    events.close()


def test_an_extended_reply_that_waits_during_a_restart_cancels_no_new_browser(trans, conn, monkeypatch):
    """Whatever it did to the number is over with the server that it was sent to."""
    lose_the_server_while_writing(conn, monkeypatch)
    life = conn.link.life
    conn.deliver("u", ["X", "1"], b"26:3:ctl,16:6:cancel,4:true!}]")
    assert conn.link.life is not life
    assert not conn.link.life.requests.is_closed("1")


def test_answers_to_many_that_wait_during_a_restart_do_not_go_on_to_the_new_browsers(server, trans, conn, monkeypatch):
    """The second number is a new browser's by the time the first answer was written."""
    events = trans.recv(timeout=5)
    server.request(1)
    server.request(2)
    assert [next(events)[2].conn_id for _ in range(2)] == ["1", "2"]
    stranger = Request.parse(build_request("u", 2, "/", HTTP))
    written = []

    def write(_sender: str, conn_id: str, _data: bytes, **_: object) -> None:
        written.append(conn_id)
        if conn_id == "1":
            conn.link.on_lost()
            conn.link.life.requests.add(stranger)

    monkeypatch.setattr(conn.link.writer, "write", write)
    conn.deliver_http("u", ["1", "2"], "hello")
    assert written == ["1"]
    assert not stranger.answered
    events.close()


def test_a_server_that_goes_while_its_connection_set_is_removed_is_not_watched_for(server, monkeypatch):
    """The warning that nobody has subscribed would come again each minute, and nothing could end it."""
    monkeypatch.setattr(link_module, "READY_WARNING_SECONDS", 0.05)
    with Transceiver("u", *server.endpoints, rep_port=False, linger=5) as trans:
        trans.wait_ready(5)
        conn = trans.connections["u"]
        events = trans.recv(timeout=5)
        server.request(1, DOWNLOAD_CREDITS="102400")
        warned = Event()
        monkeypatch.setattr(conn.link, "warn_not_ready", warned.set)
        # It does not all go out before the browser has read some of it: that is what the end waits for.
        conn.answers.part(next(events)[2], b"HTTP/1.1 200 OK\r\n\r\n" + bytes(150_000))
        assert conn.link.writer.flow.waiting("1")
        removing = gevent.spawn(trans.remove_connection, "u")
        wait_until(lambda: "u" not in trans.connections)
        server.sub.unsubscribe(b"")
        removing.join(5)
        assert removing.dead and conn.link.stopped
        warned.clear()
        assert not warned.wait(0.2)  # what must not happen has no event
        events.close()


def test_one_slot_for_events_that_wait_is_enough(server):
    """Each event that is taken out lets the receiver go on to the next one."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2, max_pending=1) as trans:
        trans.wait_ready(5)
        for number in range(5):
            server.request(number)
        events = trans.recv(timeout=5)
        assert [getattr(next(events)[2], "conn_id", None) for _ in range(5)] == ["0", "1", "2", "3", "4"]
        events.close()


def test_ids_are_checked(conn):
    """Before anything is sent, with the one that is wrong."""
    for idents in (["1", "x"], [""], [None], [1.5], [-1]):
        with pytest.raises(LocalProtocolError, match="conn_id"):
            conn.deliver("u", idents, "x")


def test_a_websocket_close_payload_is_checked(conn):
    """deliver_websocket with opcode 8 begins a closing handshake, if it can."""
    with pytest.raises(LocalProtocolError, match="close frame"):
        conn.deliver_websocket("u", ["1"], b"\x03", 8)
    conn.deliver_websocket("u", ["1"], b"\x03\xe8bye", 8)
    conn.deliver_websocket("u", ["1"], b"", 8)


def test_it_shows_its_state(conn):
    """Name, endpoints, readiness, open requests."""
    assert repr(conn).startswith("<Connection u tcp://127.0.0.1:")
    assert repr(conn).endswith(": ready, 0 open>")


def test_it_stands_alone_as_in_mongrel2s_own_example(server):
    """Made without a Transceiver it connects, receives, answers, and is closed by its with block."""
    with Connection("u", *server.endpoints) as conn:
        server.request(7, "/alone")
        request = conn.recv(5)
        assert (request.path, request.conn_id) == ("/alone", "7")
        conn.reply_http(request, "hello")
        assert server.receive().body.endswith(b"\r\n\r\nhello")
        assert conn.recv(0.01) is None
    assert conn.recv(1) is None
    conn.shutdown()


def test_one_that_stands_alone_and_has_a_bad_address_leaves_nothing_open(server):
    """The error names the address; the leak check of the tests sees to the rest."""
    with pytest.raises(ValueError, match="nowhere"):
        Connection("u", "nowhere", server.endpoints[1])


def test_one_that_stands_alone_and_has_a_bad_upload_store_leaves_nothing_open(server):
    """The error names it, and no context was made that would fail at the end of the program."""
    before = list(guarded)
    with pytest.raises(LocalProtocolError, match="relative"):
        Connection("u", *server.endpoints, upload_store="relative")
    assert list(guarded) == before


def test_an_answer_that_ends_without_more_bytes_sends_none(server, trans, conn):
    """An empty message would close the connection; the next request of the client is answered as any other."""
    events = trans.recv()
    for number in range(2):
        server.request(1, path=f"/{number}")
        request = next(events)[2]
        conn.answers.part(request, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")
        conn.answers.part(request, b"%d" % number)
        conn.answers.part(request, b"", last=True)
    expected = b"".join(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(2))
    received = b""
    while len(received) < len(expected):
        body = server.receive_for(1)
        assert body
        received += body
    assert received == expected


def test_what_belongs_on_a_control_socket_is_no_request(server, trans, conn):
    """An answer to the id -1 would stall Mongrel2's replies."""
    server.request(-1, "/__add_connection__", METHOD="JSON")
    server.request(1, "/next")
    assert next(trans.recv())[2].path == "/next"
    assert conn.bad_messages == 1


def test_credits_of_a_shared_endpoint_are_not_waited_for(server):
    """Each process gets a part of them; what a connection asks anew for was preceded by what it has read."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2, shared=True) as trans:
        trans.wait_ready(5)
        events = trans.recv()
        for number in range(3):
            server.request(number, DOWNLOAD_CREDITS="102400")
            _sid, connection, request = next(events)
            connection.reply_http(request, "x" * 60000)
            assert server.receive_for(number).endswith(b"x")
            server.request(number)
            _sid, connection, request = next(events)
            connection.reply_http(request, "y" * 60000)
            assert server.receive_for(number).endswith(b"y")


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_request_of_a_connection_says_that_there_are_credits(server, shared):
    """Where the endpoint is shared, too: until that is known it is only guessed, and given up where none comes."""
    with Transceiver("u", *server.endpoints, rep_port=False, linger=0.2, shared=shared) as trans:
        trans.wait_ready(5)
        events = trans.recv()
        for headers, announced in (({}, False), ({"DOWNLOAD_CREDITS": "102400"}, True)):
            server.request(1, **headers)
            next(events)
            assert trans.connections["u"].link.writer.flow.control.announced is announced


@pytest.mark.parametrize("now", [1_700_000_000.25, 1_700_000_000.999, 1_700_000_001.0, 1_600_000_000.0])
def test_the_date_follows_the_clock_also_backwards(now, monkeypatch):
    """It is built once a second; a clock that was set back is believed, too."""
    monkeypatch.setattr("greentx.handler.clock.time", lambda: 1_700_000_000.5)
    assert current_date() == b"Tue, 14 Nov 2023 22:13:20 GMT"
    monkeypatch.setattr("greentx.handler.clock.time", lambda: now)
    assert current_date() == format_date(now).encode()


def test_a_plain_answer_is_what_the_builder_makes(server, trans, conn):
    """The short way of nearly all answers."""
    events = trans.recv()
    for body, headers in ((b"Hello", None), ("Hello", {"Content-Type": TEXT_TYPE})):
        server.request(1)
        conn.reply_http(next(events)[2], body)
        date = current_date()
        expected = [build_response(b"Hello", headers=headers, date=one) for one in (date, _clock_before(date))]
        assert server.receive_for(1) in expected


def _clock_before(date):
    stamp = datetime.strptime(date.decode(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=timezone.utc).timestamp()
    return format_date(stamp - 1).encode()


def test_the_end_of_whoever_got_no_http_is_reported(server, trans, conn):
    """More may have followed, so the handler hears that nobody reads it any more."""
    events = trans.recv(timeout=5)
    server.request(1)
    conn.reply(next(events)[2], b"\x00\x01 a protocol of the handler's own")
    assert server.receive_for(1)
    server.push.send(build_disconnect_notice("u", 1))
    end = next(events)[2]
    assert (end.method, end.conn_id) == ("DISCONNECT", "1")


def test_a_dropped_pipeline_is_not_accepted_again(server, trans, conn, monkeypatch):
    """What was under way of it still comes; the application hears of the end once."""
    monkeypatch.setattr("greentx.protocol.pipeline.MAX_PIPELINED", 5)
    for _ in range(20):
        server.request(1)
    server.request(2, "/other")
    seen = []
    for _sid, _conn, req in trans.recv(timeout=5):
        seen.append((req.method, req.conn_id))
        if req.conn_id == "2":
            break
    assert seen.count(("DISCONNECT", "1")) == 1
    assert seen.count(("GET", "1")) == 7  # the first one, those that may wait, and the one too many
