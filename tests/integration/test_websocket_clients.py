"""WebSockets through both front ends: the ``websockets`` package as client, raw sockets for what it would not send."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import websockets.sync.client
from front_ends import ONLY_MONGREL2, Differs, FrontEnd
from gevent import socket
from gevent.event import Event
from websocket_rig import MASK, echo, in_thread, kill, rig, server_connections, sharing, until
from websockets.exceptions import ConnectionClosed as PeerClosed
from websockets.exceptions import InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from greentx import Transceiver
from greentx.edge import Handler
from greentx.errors import ConnectionClosed
from greentx.protocol.websocket.deflate import DeflateConfig
from greentx.protocol.websocket.frames import Opcode, build_frame
from greentx.protocol.websocket.handshake import Refused, new_key, request_headers
from greentx.transport.writer import OUTBOX_LIMIT


@pytest.fixture(scope="module", autouse=True)
def one_server(front_end: FrontEnd) -> Iterator[None]:
    """For all tests that do not ask for settings."""
    with sharing(front_end):
        yield


def client(url: str, **options: Any) -> Any:
    """A blocking client, which belongs into a native thread."""
    return websockets.sync.client.connect(url, ping_interval=None, open_timeout=10, close_timeout=5, **options)


# -- opening ---------------------------------------------------------------------------------------------------------


def test_a_client_talks_and_leaves() -> None:
    """Text, binary, empty and large messages come back; the close handshake is clean on both sides."""
    messages = ["hello", b"\x00\xff", "", b"", "grün " * 50000, bytes(range(256)) * 2000]

    def talk(url: str) -> tuple[list[Any], int, str]:
        with client(url, compression=None, max_size=None) as ws:
            got = []
            for message in messages:
                ws.send(message)
                got.append(ws.recv(10))
            ws.close(4321, "thank you")
            return got, ws.close_code, ws.close_reason

    with rig() as one:
        got, code, _ = in_thread(talk, one.url)
        assert got == messages
        assert code == 4321
        until(lambda: one.sockets[0].close_code)
        assert (one.sockets[0].close_code, one.sockets[0].close_reason) == (4321, "thank you")
        assert len(one.trans.websockets) == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-websocket-version": "8"}, b"426"),
        ({"sec-websocket-key": "dG9vIHNob3J0"}, b"400"),
        ({"origin": "https://evil.example"}, b"403"),
        ({"x-refuse": "1"}, b"418"),
    ],
)
def test_a_refused_handshake_gets_its_status_and_the_end(headers: dict[str, str], status: bytes) -> None:
    """Version, key, origin, and the application's own reasons."""

    def judge(request: Any) -> Refused | None:
        return Refused(418, headers={"X-Why": "teapot"}) if request.header("x-refuse") else None

    with rig(origins=["https://good.example", None], on_handshake=judge) as one:
        with one.raw(headers=headers) as raw:
            assert raw.answer.split()[1] == status
            assert raw.ended
            if status == b"426":
                assert b"\r\nSec-WebSocket-Version: 13\r\n" in raw.answer
        assert one.sockets == []


def test_subprotocols_and_headers_are_agreed_on() -> None:
    """The server's preference decides; more headers are in the answer."""

    def talk(url: str) -> tuple[Any, Any]:
        with client(url, subprotocols=["a", "b"]) as ws:
            return ws.subprotocol, ws.response.headers["X-Node"]

    with rig(subprotocols=["c", "b", "a"], response_headers={"X-Node": "7"}) as one:
        assert in_thread(talk, one.url) == ("b", "7")
        assert one.sockets[0].subprotocol == "b"


def test_a_library_sees_a_refusal() -> None:
    """``websockets`` raises with our status."""

    def talk(url: str) -> int:
        try:
            client(url)
        except InvalidStatus as error:
            return error.response.status_code
        return 0

    with rig(origins=lambda origin: False) as one:
        assert in_thread(talk, one.url) == 403


def test_frames_sent_before_the_101_are_answered_after_it() -> None:
    """Also when the application takes its time to let the client in."""

    def slowly(request: Any) -> None:
        gevent.sleep(0.1)  # the handler's work takes a while

    early = build_frame(b"one", mask=MASK) + build_frame(b"two", mask=MASK)
    with rig(on_handshake=slowly) as one, one.raw(early=early) as raw:
        assert raw.answer.startswith(b"HTTP/1.1 101 ")
        assert [raw.recv().payload, raw.recv().payload] == [b"one", b"two"]


def test_recv_yields_connect_messages_and_close(front_end: FrontEnd) -> None:
    """The loop, without serve(): one close for a connect, and answers by ``reply_websocket``."""
    seen = []
    with front_end.started({"/": Handler("loop")}) as server:
        entry = server.handlers[0]
        with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False) as trans:

            def loop() -> None:
                for _sid, conn, req in trans.recv():
                    seen.append((req.method, req.body, req.opcode, req.close_code))
                    if req.method == "WEBSOCKET":
                        conn.reply_websocket(req, req.body, req.opcode)

            looping = gevent.spawn(loop)

            def talk(url: str) -> Any:
                with client(url) as ws:
                    ws.send("x")
                    return ws.recv(10)

            assert in_thread(talk, server.url.replace("http", "ws")) == "x"
            until(lambda: len(seen) == 3)
            trans.stop()
            looping.join(5)
    assert seen == [
        ("WEBSOCKET_CONNECT", b"", None, None),
        ("WEBSOCKET", b"x", 1, None),
        ("WEBSOCKET_CLOSE", b"\x03\xe8", 8, 1000),
    ]


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "payload", "rsvd", "code"),
    [
        (Opcode.TEXT, b"\xc3\x28", 0, 1007),
        (Opcode.BINARY, b"x" * 70001, 0, 1009),
        (3, b"", 0, 1002),
        (0xB, b"", 0, 1002),
        (Opcode.TEXT, b"x", 4, 1002),
        (Opcode.TEXT, b"x", 2, 1002),
        (Opcode.CLOSE, b"\x03", 0, 1002),
        (Opcode.CLOSE, b"\x03\xee", 0, 1002),
        (Opcode.CLOSE, b"\x03\xe8\xff\xff", 0, 1007),
    ],
)
def test_a_fault_is_answered_by_its_close_code_and_what_came_before_by_an_answer(
    front_end: FrontEnd, opcode: int, payload: bytes, rsvd: int, code: int
) -> None:
    """Mongrel2 checks none of this; the edge ends the connection itself where an opcode means nothing."""
    with rig(max_message_size=70000) as one, one.raw() as raw:
        raw.send(b"before")
        raw.send_raw(opcode, payload, rsvd)
        frame = raw.recv()
        assert frame is not None and frame.payload == b"before"
        assert raw.recv_close() == code
        told = front_end.truth(Differs("Frames that break the rules", code, 1006)) if opcode in (3, 0xB) else code
        until(lambda: one.sockets[0].close_code == told)


@pytest.mark.parametrize("how", ["unmasked", "stray continuation", "close, then TCP", "FIN", "RST"])
def test_whatever_ends_a_connection_the_handler_ends_once(how: str) -> None:
    """Framing errors that the front end punishes itself, and clients that vanish."""
    ended = []

    def handler(ws: Any) -> None:
        echo(ws)
        ended.append(ws.close_code)

    with rig(handler) as one:
        raw = one.raw()
        raw.send(b"x")
        assert raw.recv() is not None
        if how == "unmasked":
            raw.sock.sendall(build_frame(b"bare"))
        elif how == "stray continuation":
            raw.send_raw(0, b"more")
        elif how == "close, then TCP":
            raw.send_close(1000)
            assert raw.recv_close() == 1000
        elif how == "RST":
            raw.reset()
        if how != "RST":
            raw.close()
        until(lambda: ended)
        gevent.sleep(0.05)  # what must not happen has no event
        assert ended == [1000 if how.startswith("close") else 1006]
        assert len(one.trans.websockets) == 0


def test_a_bomb_is_stopped_with_1009() -> None:
    """A client that inflates to more than is allowed."""

    def talk(url: str) -> int:
        with client(url) as ws:
            ws.send(b"\0" * (8 << 20))
            try:
                ws.recv(10)
            except PeerClosed as error:
                return error.rcvd.code if error.rcvd else 0
        return 0

    with rig() as one:
        assert in_thread(talk, one.url) == 1009


def test_more_than_max_queue_bytes_end_the_connection_with_1013(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that does not receive holds up to them; what it got is still there afterwards."""
    go_on = Event()
    got = []

    def handler(ws: Any) -> None:
        go_on.wait()
        got.extend(ws)

    with rig(handler, max_queue_bytes=1000) as one, one.raw() as raw:
        for _ in range(50):
            raw.send(b"x")
        assert raw.recv_close() == 1013
        go_on.set()
        until(lambda: len(got) == 5)
        assert one.sockets[0].close_code == 1013
    [record] = [record for record in caplog.records if "1013" in record.getMessage()]
    assert record.levelname == "WARNING" and "max_queue_bytes is 1000" in record.getMessage()


# -- closing ---------------------------------------------------------------------------------------------------------


def test_close_from_another_greenlet_ends_the_handler_that_receives() -> None:
    """The close handshake runs to its end, and both greenlets go on."""
    with rig() as one:
        results = []

        def talk(url: str) -> tuple[int, str]:
            with client(url) as ws:
                try:
                    ws.recv(10)
                except PeerClosed as error:
                    return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (0, "")
            return 0, ""

        talking = gevent.get_hub().threadpool.spawn(talk, one.url)
        until(lambda: one.sockets)
        ws = one.sockets[0]
        closing = [gevent.spawn(ws.close, 4000, "enough"), gevent.spawn(ws.close)]
        results = talking.get()
        gevent.joinall(closing, timeout=5, raise_error=True)
        assert results == (4000, "enough")
        assert ws.closed and ws.close_code == 4000
        assert ws.receive() is None and list(ws) == []
        with pytest.raises(ConnectionClosed) as info:
            ws.send("late")
        assert (info.value.code, info.value.reason) == (4000, "enough")
        with pytest.raises(ConnectionClosed):
            ws.ping()
        with pytest.raises(ConnectionClosed):
            ws.join("room")
        ws.leave("room")
        ws.close()


def test_a_peer_that_does_not_answer_our_close_is_dropped_after_close_timeout() -> None:
    """Its TCP connection ends, too."""
    with rig(lambda ws: ws.close(1001), close_timeout=0.2) as one, one.raw() as raw:
        started = time.monotonic()
        assert raw.recv_close() == 1001
        assert 0.15 < time.monotonic() - started < 8
        until(lambda: one.sockets[0].close_code)
        assert one.sockets[0].close_code == 1006


@ONLY_MONGREL2
def test_a_client_that_reads_nothing_is_cut_off_all_the_same() -> None:
    """Mongrel2 would wait for ever to write what is queued before the close."""

    def handler(ws: Any) -> None:
        ws.send(b"x" * (30 << 20))
        ws.close()

    with rig(handler, close_timeout=0.3) as one, one.raw(receive_buffer=4096) as raw:
        until(lambda: one.sockets and one.sockets[0].close_code)
        until(lambda: not server_connections(one))
        assert raw.recv() is None


def test_when_the_handler_returns_or_raises_the_client_is_told() -> None:
    """1000 for a return, 1011 for an exception."""

    def handler(ws: Any) -> None:
        if ws.receive() == "raise":
            raise RuntimeError("as the test wants")

    def talk(url: str, word: str) -> int:
        with client(url) as ws:
            ws.send(word)
            try:
                ws.recv(10)
            except PeerClosed as error:
                return error.rcvd.code if error.rcvd else 0
        return 0

    with rig(handler) as one:
        assert in_thread(talk, one.url, "return") == 1000
        assert in_thread(talk, one.url, "raise") == 1011


def test_leaving_says_1001_to_everybody() -> None:
    """Also to those who are in the middle of something."""
    with rig() as one:
        clients = [one.raw() for _ in range(3)]
        until(lambda: len(one.sockets) == 3)
        one.trans.stop(timeout=1)
        assert [raw.recv_close() for raw in clients] == [1001] * 3
        assert [ws.close_code for ws in one.sockets] == [1001] * 3
        for raw in clients:
            raw.close()


# -- compression -----------------------------------------------------------------------------------------------------

TEXT = "what is said again and again, again and again, and somewhat longer than the threshold. " * 5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DeflateConfig(), ClientPerMessageDeflateFactory()),
        (
            DeflateConfig(threshold=0),
            ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9),
        ),
        (DeflateConfig(), ClientPerMessageDeflateFactory(server_no_context_takeover=True)),
        (DeflateConfig(), ClientPerMessageDeflateFactory(client_no_context_takeover=True)),
        (
            DeflateConfig(server_no_context_takeover=True, client_no_context_takeover=True),
            ClientPerMessageDeflateFactory(client_max_window_bits=True),
        ),
        (None, ClientPerMessageDeflateFactory()),
    ],
)
def test_compression_as_negotiated(ours: DeflateConfig | None, theirs: Any) -> None:
    """Echoes of messages that resemble each other, with every kind of agreement."""

    def talk(url: str) -> tuple[list[Any], str]:
        with client(url, compression=None, extensions=[theirs], max_size=None) as ws:
            got = []
            for number in range(6):
                ws.send(f"{number} {TEXT * (number + 1)}")
                got.append(ws.recv(10))
            return got, ws.response.headers.get("Sec-WebSocket-Extensions", "")

    with rig(compression=ours) as one:
        got, agreed = in_thread(talk, one.url)
        assert got == [f"{number} {TEXT * (number + 1)}" for number in range(6)]
        assert agreed.startswith("permessage-deflate") == (ours is not None)


def test_a_window_of_8_bits_is_declined() -> None:
    """zlib cannot compress with it, so the connection goes without."""
    with rig() as one:
        offer = {"sec-websocket-extensions": "permessage-deflate; server_max_window_bits=8"}
        with one.raw(headers=offer) as raw:
            assert b"permessage-deflate" not in raw.answer
            raw.send(TEXT.encode())
            frame = raw.recv()
            assert frame is not None and frame.rsvd == 0 and frame.payload == TEXT.encode()


def test_shared_turns_compression_off() -> None:
    """Its state cannot be shared by processes."""
    with rig(shared=True) as one:
        with one.raw(headers={"sec-websocket-extensions": "permessage-deflate"}) as raw:
            assert b"permessage-deflate" not in raw.answer


def test_broadcasts_reach_all_kinds_of_clients_and_single_messages_follow() -> None:
    """Compressed and not, before and after messages of their own."""
    ready = Event()
    rounds = 4

    def talk(url: str, compression: str | None) -> list[Any]:
        with client(url, compression=compression) as ws:
            got = []
            for number in range(rounds):
                ws.send(f"{number} mine {TEXT}")
                got += [ws.recv(10), ws.recv(10)]
            return got

    def handler(ws: Any) -> None:
        ws.join("room")
        if len(one.sockets) == 4:
            ready.set()
        ready.wait()
        for message in ws:
            ws.send(message)
            waiting.append(ws)
            if len(waiting) == 4:
                waiting.clear()
                one.trans.broadcast(f"to all {TEXT}", group="room")

    waiting: list[Any] = []
    with rig(handler) as one:
        pool = gevent.get_hub().threadpool
        talking = [pool.spawn(talk, one.url, kind) for kind in ("deflate", None, "deflate", None)]
        expected = [text for n in range(rounds) for text in (f"{n} mine {TEXT}", f"to all {TEXT}")]
        assert [one.get() for one in talking] == [expected] * 4


# -- groups ----------------------------------------------------------------------------------------------------------


def test_a_broadcast_goes_to_its_group_and_passes_over_who_is_excluded() -> None:
    """Members only; a client that has gone is in no group any more."""

    def handler(ws: Any) -> None:
        ws.join(ws.path.strip("/"))
        echo(ws)

    with rig(handler) as one:
        red = [one.raw(path="/red") for _ in range(3)]
        blue = one.raw(path="/blue")
        until(lambda: len(one.sockets) == 4)
        registry = one.trans.websockets
        until(lambda: len(registry.members("red")) == 3 and len(registry.members("blue")) == 1)
        first = registry.members("red")[0].sid
        assert one.trans.broadcast("reds but one", group="red", exclude=[first]) == 2
        assert one.trans.broadcast(b"all") == 4
        assert one.trans.broadcast("nobody", group="green") == 0
        heard = sorted([red_one.recv().payload for red_one in red])
        assert heard == [b"all", b"reds but one", b"reds but one"]
        assert blue.recv().payload == b"all"
        for raw in red:
            raw.close()
        until(lambda: not registry.members("red"))
        assert one.trans.broadcast("x", group="red") == 0
        registry.join(registry.members("blue")[0].sid, "late")
        assert one.trans.broadcast("x", group="late") == 1
        registry.leave(registry.members("blue")[0].sid, "late")
        assert one.trans.broadcast("x", group="late") == 0
        blue.close()


@ONLY_MONGREL2
def test_a_storm_of_notices_is_absorbed() -> None:
    """After 200 connections were ended without a word, a broadcast finds out; nothing else is disturbed."""
    ends: list[Any] = []

    def handler(ws: Any) -> None:
        echo(ws)
        ends.append(ws.close_code)

    with rig(handler) as one:
        clients = [one.raw() for _ in range(200)]
        until(lambda: len(one.trans.websockets) == 200)
        survivor = one.raw()
        until(lambda: len(one.trans.websockets) == 201)
        kill(one, [int(ws.sid[1]) for ws in one.sockets[:200]])
        for raw in clients:
            assert raw.recv() is None
            raw.close()
        assert len(one.trans.websockets) == 201  # nobody told
        for _ in range(3):
            one.trans.broadcast("are you there?")
        until(lambda: len(one.trans.websockets) == 1)
        until(lambda: len(ends) == 200)
        assert set(ends) == {1006}
        survivor.send(b"still here")
        assert [survivor.recv().payload for _ in range(4)][-1] == b"still here"
        survivor.close()


# -- flow ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_control", [0, 1])
def test_many_small_messages_at_once_all_arrive(flow_control: int) -> None:
    """Sixteen queued messages kill a connection; 2000 in a loop do not."""
    count = 2000

    def handler(ws: Any) -> None:
        for number in range(count):
            ws.send(b"%d" % number)
        ws.receive()

    with rig(handler, settings={"download.flow_control": flow_control}) as one, one.raw() as raw:
        assert [raw.recv().payload for _ in range(count)] == [b"%d" % number for number in range(count)]


def test_a_message_above_the_credits_goes_in_pieces() -> None:
    """With flow control one message of more than 102400 bytes would kill the connection."""
    message = bytes(range(256)) * 8192

    with rig(lambda ws: (ws.send(message), ws.receive()), settings={"download.flow_control": 1}) as one:
        with one.raw() as raw:
            frame = raw.recv()
            assert frame is not None and frame.payload == message


def test_a_reader_that_stops_blocks_only_its_sender_and_goes_on_later() -> None:
    """Others are served meanwhile, and a broadcast to slow and fast readers gets to the fast ones at once."""
    sent = []
    chunk = b"y" * 60000
    count = 200

    def handler(ws: Any) -> None:
        if ws.path == "/slow":
            for number in range(count):
                ws.send(chunk)
                sent.append(number)
            ws.receive()
        else:
            echo(ws)

    with rig(handler, settings={"download.flow_control": 1}) as one, one.raw(path="/fast") as fast:
        with one.raw(path="/slow", receive_buffer=16384) as slow:
            quiet_since = [time.monotonic(), -1]

            def stalled() -> bool:
                if len(sent) != quiet_since[1]:
                    quiet_since[:] = [time.monotonic(), len(sent)]
                return bool(sent) and time.monotonic() - quiet_since[0] > 0.3

            until(stalled)
            assert len(sent) < count
            fast.send(b"hello")
            assert fast.recv().payload == b"hello"
            one.trans.broadcast("news")
            assert fast.recv().payload == b"news"
            got = 0
            news = 0
            while got < count or not news:
                frame = slow.recv()
                assert frame is not None
                if frame.payload == b"news":
                    news += 1
                else:
                    assert frame.payload == chunk
                    got += 1
            assert len(sent) == count


def test_a_sender_that_waits_for_its_reader_is_told_of_the_end() -> None:
    """``ConnectionClosed`` instead of a wait for ever."""
    failed = []

    def handler(ws: Any) -> None:
        try:
            while True:
                ws.send(b"z" * 100000)
        except ConnectionClosed as error:
            failed.append((error.code, error.reason))
            raise

    with rig(handler, settings={"download.flow_control": 1}) as one:
        raw = one.raw(receive_buffer=16384)
        # It waits from the limit on, and until half of that is left: the system may take some more meanwhile.
        writer = one.trans.connections["rig"].link.writer
        until(lambda: one.sockets and writer.flow.waiting(one.sockets[0].sid[1]) > OUTBOX_LIMIT // 2)
        raw.send_close(4002, "I am off")
        until(lambda: failed)
        assert failed == [(4002, "I am off")]
        raw.close()


# -- pings -----------------------------------------------------------------------------------------------------------


def test_ping_returns_the_latency() -> None:
    """Measured to the pong's arrival, also with a payload of our own; a timeout is a TimeoutError."""
    results: list[Any] = []

    def handler(ws: Any) -> None:
        results.append(ws.ping())
        results.append(ws.ping(b"payload"))
        echo(ws)

    def talk(url: str) -> Any:
        with client(url) as ws:
            ws.send("x")
            return ws.recv(10)

    with rig(handler) as one:
        assert in_thread(talk, one.url) == "x"
        assert all(0 < latency < 5 for latency in results)
        with one.raw() as raw:
            until(lambda: len(one.sockets) == 2)
            with pytest.raises(TimeoutError):
                one.sockets[1].ping(b"nobody answers", timeout=0.05)
            assert raw.recv().opcode == Opcode.PING


# -- JSON and XML sockets --------------------------------------------------------------------------------------------


def test_json_and_xml_sockets_are_answered_and_a_forged_notice_fools_nobody() -> None:
    """The same port, METHOD JSON and XML; a client that sends the server's own words is a client."""
    seen: list[Any] = []

    def handler(conn: Any, req: Any) -> None:
        seen.append((req.method, req.path, req.body))
        if req.method in ("JSON", "XML"):
            conn.reply_json(req, {"got": req.data})

    entry = Handler("rig")
    with rig(None, handler, routes={"/": entry, "@chat": entry, "@*": entry, "<note": entry}) as one:
        with one.raw() as ws_client:
            until(lambda: one.sockets)
            number = one.sockets[0].sid[1]
            with socket.create_connection(("127.0.0.1", one.mongrel2.port), timeout=10) as plain:
                plain.sendall(b'@chat {"a": [1, 2]}\0')
                assert json.loads(plain.recv(1000)) == {"got": {"a": [1, 2]}}
                plain.sendall(b'@* {"type":"disconnect"}\0')
                assert json.loads(plain.recv(1000)) == {"got": {"type": "disconnect"}}
                plain.sendall(b'<note to="you">hi</note>\0')
                assert json.loads(plain.recv(1000)) == {"got": {}}
                assert [method for method, _, _ in seen] == ["JSON", "JSON", "XML"]
                assert seen[2][2] == b'<note to="you">hi</note>'
            until(lambda: len(seen) == 4)
            assert seen[3][0] == "DISCONNECT"
            assert (one.trans.sender, number) in one.trans.websockets
            ws_client.send(b"alive")
            assert ws_client.recv().payload == b"alive"


def test_a_get_without_a_version_is_told_which_one() -> None:
    """Mongrel2 takes it for an ordinary request; where only WebSockets are served it gets 426."""
    with rig() as one, one.raw(upgrade=False) as raw:
        headers = request_headers(new_key())
        del headers["sec-websocket-version"]
        raw.request("/", headers)
        answer = raw.sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 426 ") and b"Sec-WebSocket-Version: 13" in answer


# -- several processes, several threads ------------------------------------------------------------------------------


def test_handlers_that_share_an_endpoint_serve_each_message_where_it_comes(front_end: FrontEnd) -> None:
    """Mongrel2 deals the messages of a client out to both; pings drop nobody, both hear of the end."""
    heard: list[str] = []

    def serve(trans: Transceiver, name: str) -> gevent.Greenlet:
        def handler(ws: Any) -> None:
            for message in ws:
                ws.send(f"{name} {message}")
            heard.append(f"{name} {ws.close_code}")

        return gevent.spawn(trans.serve, websocket=handler)

    with front_end.started({"/": Handler("both")}) as server:
        entry = server.handlers[0]
        where = (entry.sender, entry.send_spec, entry.recv_spec)
        with (
            Transceiver(*where, rep_port=False, shared=True, ping_timeout=0.2) as a,
            Transceiver(*where, rep_port=False, shared=True, ping_timeout=0.2) as b,
        ):
            a.wait_ready(10)
            b.wait_ready(10)
            serving = [serve(a, "a"), serve(b, "b")]

            def talk(url: str) -> list[Any]:
                got: list[Any] = []
                with client(url) as ws:
                    # Which of the two gets a message is up to ZeroMQ: until each of them had one, slowly.
                    while len(got) < 10 or len({text[0] for text in got}) < 2:
                        ws.send(str(len(got)))
                        got.append(ws.recv(10))
                        time.sleep(0.1)
                return got

            got = in_thread(talk, server.url.replace("http", "ws"))
            assert [text[2:] for text in got] == [str(number) for number in range(len(got))]
            # One got the close frame; the other's next ping finds out.
            until(lambda: len(heard) == 2)
            assert len(a.websockets) == len(b.websockets) == 0
            a.stop(0)
            b.stop(0)
            gevent.joinall(serving, timeout=5)


def test_a_native_thread_may_send_and_broadcast() -> None:
    """The calls are handed to the hub; errors come back."""
    with rig() as one, one.raw() as raw:
        until(lambda: one.sockets)
        ws = one.sockets[0]

        def work() -> str:
            ws.send("from a thread")
            one.trans.broadcast("to all")
            ws.begin_close(4000)
            try:
                ws.send("late")
            except ConnectionClosed as error:
                return str(error.code)
            return ""

        assert in_thread(work) == "4000"
        assert [raw.recv().payload for _ in range(2)] == [b"from a thread", b"to all"]
