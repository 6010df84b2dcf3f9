"""Several Mongrel2 behind one Transceiver: they come and go, and one that stands still delays nobody else's clients."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from front_ends import ONE_FRONT_END, FrontEnd, StartFrontEnd
from http_rig import Browser, wait_until
from websocket_rig import RawClient

from greentx import Transceiver
from greentx.edge import Handler
from greentx.errors import ConnectTimeout, SendTimeout
from greentx.protocol.websocket.frames import Frame, Opcode
from greentx.wsgi import WSGIServer

#: Far below ``send_timeout``, for which whoever sends to a server that stands still would wait.
SOON = 10.0

#: Of numbers that no browser has.
NOBODY = 1_500_000_000


@pytest.fixture(scope="module")
def servers(front_end: FrontEnd) -> Iterator[list[Any]]:
    with front_end.started({"/": Handler("one")}) as one, front_end.started({"/": Handler("two")}) as two:
        yield [one, two]


def entry(server: Any) -> tuple[str, str, str]:
    """Return sender, send_spec and recv_spec of its first handler."""
    handler = server.handlers[0]
    assert handler.send_spec is not None and handler.recv_spec is not None
    return handler.sender, handler.send_spec, handler.recv_spec


@contextlib.contextmanager
def transceiver(servers: list[Any], **options: Any) -> Iterator[Transceiver]:
    """One for all *servers*, which have subscribed."""
    with Transceiver(*entry(servers[0]), **{"rep_port": False, "ping_timeout": None, **options}) as trans:
        for server in servers[1:]:
            trans.add_connection(*entry(server))
        trans.wait_ready(10)
        yield trans


@contextlib.contextmanager
def running(function: Callable[..., Any], *args: Any, **options: Any) -> Iterator[gevent.Greenlet[..., Any]]:
    """Run it in a greenlet, whose end is waited for behind the block."""
    greenlet = gevent.spawn(function, *args, **options)
    gevent.sleep(0)
    try:
        yield greenlet
        greenlet.get(timeout=SOON)
    finally:
        greenlet.kill()


@contextlib.contextmanager
def standing_still(server: Any) -> Iterator[None]:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        go_on(server)


def go_on(server: Any) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def pipe_full(trans: Transceiver, server: Any, *, beyond: bool = False) -> Iterator[None]:
    """Inside *server* stands still, and nothing more fits into the pipe to it; *beyond*: nor may more wait for it."""
    sender = entry(server)[0]
    conn = trans.connections[sender]

    def fill() -> None:
        for number in range(100_000):
            conn.send(sender, str(NOBODY + number), bytes(20_000))
            if conn.link.stopped or (conn.link.writer.pipe_full and not beyond):
                return

    with standing_still(server):
        filling = gevent.spawn(fill)
        try:
            wait_until(lambda: conn.link.writer.pipe_full, SOON)
            assert filling.ready() is not beyond
            yield
        finally:
            filling.kill()


def data_frame(client: RawClient) -> Frame:
    """Return the next frame that is not a ping; pings are answered."""
    while True:
        frame = client.recv()
        assert frame is not None
        if frame.opcode != Opcode.PING:
            return frame
        client.send(bytes(frame.payload), Opcode.PONG)


def answer_by_recv(trans: Transceiver) -> None:
    for _sid, conn, req in trans.recv():
        if req.method == "GET":
            conn.reply_http(req, conn.sender)


def answer_by_serve(trans: Transceiver) -> None:
    trans.serve(lambda conn, req: conn.reply_http(req, conn.sender), pool=4)


def answer_by_wsgi(trans: Transceiver) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["greentx.request"].sender.encode()]

    WSGIServer(trans, application, spawn=4, log=None).serve_forever()


LOOPS = {"recv": answer_by_recv, "serve": answer_by_serve, "wsgi": answer_by_wsgi}


@pytest.mark.parametrize(
    ("loop", "beyond"), [("recv", False), ("serve", False), ("wsgi", False), ("serve", True), ("wsgi", True)]
)
def test_a_server_that_stands_still_delays_no_answer_of_another_one(
    servers: list[Any], loop: str, beyond: bool
) -> None:
    """Its own requests are under way, more than the pool holds, and none of their answers can leave."""
    one, two = servers
    with contextlib.ExitStack() as stack, transceiver(servers) as trans:
        waiting = [stack.enter_context(Browser(one)) for _ in range(20)]
        other = stack.enter_context(Browser(two))
        for browser in waiting:
            browser.ask()
        # They have been pulled, and nobody has looked at them.
        wait_until(lambda: trans.pending == len(waiting), SOON)
        with pipe_full(trans, one, beyond=beyond), running(LOOPS[loop], trans) as answering:
            for _ in range(20):
                assert other.get().body == b"two"
            assert not answering.ready()
            go_on(one)
            for browser in waiting:
                assert browser.receive().body == b"one"
            trans.stop(timeout=SOON)


@pytest.mark.parametrize("beyond", [False, True])
def test_a_broadcast_reaches_the_websockets_of_other_servers_at_once(servers: list[Any], beyond: bool) -> None:
    """One stands still: whoever broadcasts goes on, and is told where no more may wait for it."""
    one, two = servers
    with transceiver(servers) as trans, running(trans.serve, websocket=lambda ws: list(ws)):
        with RawClient(one.port) as stuck, RawClient(two.port) as client:
            wait_until(lambda: len(trans.websockets) == 2)
            assert trans.broadcast("both") == 2
            assert data_frame(stuck).payload == data_frame(client).payload == b"both"
            with pipe_full(trans, one, beyond=beyond):
                began = time.monotonic()
                for number in range(20):
                    with contextlib.suppress(SendTimeout):
                        trans.broadcast(str(number))
                    assert data_frame(client).payload == b"%d" % number
                assert time.monotonic() - began < SOON
            trans.stop(timeout=SOON)


def test_a_reader_is_told_soon_that_no_more_may_wait_for_a_server_that_stands_still(servers: list[Any]) -> None:
    """The loop over recv() gets SendTimeout for that server's answer, and goes on with the other one's."""
    one, two = servers
    with transceiver(servers) as trans, Browser(one) as stuck, Browser(two) as other:
        stuck.ask()
        wait_until(lambda: trans.pending == 1, SOON)
        failed: list[str] = []

        def answer() -> None:
            for _sid, conn, req in trans.recv():
                try:
                    conn.reply_http(req, conn.sender if conn.sender == "two" else bytes(30_000))
                except SendTimeout as error:
                    failed.append(str(error))

        with pipe_full(trans, one, beyond=True), running(answer):
            assert other.get().body == b"two"
            assert len(failed) == 1 and failed[0].startswith("writer of one: the pipe to ipc://")
            trans.stop(timeout=0)


def test_pings_go_on_at_other_servers(servers: list[Any]) -> None:
    """One stands still, its pipe full: at the other one who answers stays, who does not is dropped."""
    one, two = servers
    ended: list[tuple[str, int]] = []

    def websocket(ws: Any) -> None:
        for _message in ws:
            pass
        ended.append((ws.request.sender, ws.close_code))

    with transceiver(servers, ping_timeout=0.2) as trans, running(trans.serve, websocket=websocket):
        with RawClient(one.port), RawClient(two.port) as live, RawClient(two.port):
            wait_until(lambda: len(trans.websockets) == 3, SOON)
            with pipe_full(trans, one):
                answering = gevent.spawn(data_frame, live)
                wait_until(lambda: ended, SOON)
                gevent.sleep(1)  # five rounds more, in which nobody else may be dropped
                assert [sender for sender, _code in ended] == ["two"] and len(trans.websockets) == 2
                trans.broadcast("still here")
                assert answering.get(timeout=SOON).payload == b"still here"
                trans.stop(timeout=0)


@pytest.mark.parametrize("beyond", [False, True])
def test_the_end_is_no_later_for_a_server_that_stands_still(servers: list[Any], beyond: bool) -> None:
    """The WebSockets of both are told; those of the other server get their close frames."""
    one, two = servers
    with contextlib.ExitStack() as stack, transceiver(servers) as trans:
        ended: list[tuple[str, int]] = []

        def websocket(ws: Any) -> None:
            for _message in ws:
                pass
            ended.append((ws.request.sender, ws.close_code))

        with running(trans.serve, websocket=websocket):
            stuck = [stack.enter_context(RawClient(one.port)) for _ in range(300)]
            live = [stack.enter_context(RawClient(two.port)) for _ in range(3)]
            wait_until(lambda: len(trans.websockets) == len(stuck) + len(live), SOON)
            with pipe_full(trans, one, beyond=beyond):
                began = time.monotonic()
                trans.stop(timeout=5)
                assert time.monotonic() - began < 5
            assert [client.recv_close() for client in live] == [1001] * len(live)
        assert sorted(ended) == [("one", 1001)] * len(stuck) + [("two", 1001)] * len(live)


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_set_that_is_removed_takes_its_websockets_along(servers: list[Any], stands_still: bool) -> None:
    """Each is reported with 1001, whether the close frames can leave or not; other servers' stay."""
    one, two = servers
    with contextlib.ExitStack() as stack, transceiver(servers) as trans:
        events: list[tuple[str, str]] = []

        def receive() -> None:
            for sid, conn, req in trans.recv():
                events.append((req.method, sid[0]))
                if req.method == "WEBSOCKET":
                    conn.reply_websocket(req, req.body)

        with running(receive):
            leaving = [stack.enter_context(RawClient(one.port)) for _ in range(300)]
            staying = stack.enter_context(RawClient(two.port))
            wait_until(lambda: len(trans.websockets) == len(leaving) + 1, SOON)
            with pipe_full(trans, one, beyond=True) if stands_still else contextlib.nullcontext():
                trans.remove_connection("one")
                assert sorted(trans.connections) == ["two"] and len(trans.websockets) == 1
                wait_until(lambda: events.count(("WEBSOCKET_CLOSE", "one")) == len(leaving), SOON)
                staying.send(b"still here")
                assert data_frame(staying).payload == b"still here"
            if not stands_still:
                assert [client.recv_close() for client in leaving] == [1001] * len(leaving)
            trans.stop(timeout=SOON)
        assert events.count(("WEBSOCKET_CLOSE", "one")) == len(leaving)
        assert events.count(("WEBSOCKET_CLOSE", "two")) == 1


def test_status_names_the_server_that_stands_still(servers: list[Any]) -> None:
    """The other one is as it was; when the server goes on nothing is said any more."""
    one, _two = servers
    with transceiver(servers) as trans:
        assert trans.status()["ready"]
        with pipe_full(trans, one):
            wait_until(lambda: trans.status()["why"], SOON)
            status = trans.status()
            why = {found["sender"]: found["why"] for found in status["connections"]}
            assert not status["ready"] and status["why"] == [why["one"]] and why["two"] == ""
            assert entry(one)[2] in why["one"] and "is it stopped?" in why["one"]
        wait_until(lambda: trans.status()["ready"], SOON)


def test_wait_ready_names_the_servers_that_are_away(servers: list[Any]) -> None:
    """Of several it says which, and those that are there are served meanwhile."""
    with transceiver(servers[:1]) as trans, Browser(servers[0]) as browser, running(answer_by_recv, trans):
        nobody = "ipc:///nowhere/greentx-test"
        trans.add_connection("three", f"{nobody}.send", f"{nobody}.recv")
        with pytest.raises(ConnectTimeout, match=f"no Mongrel2 has subscribed at {nobody}.recv") as caught:
            trans.wait_ready(0.2)
        assert caught.value.address == f"{nobody}.recv"
        assert browser.get().body == b"one"
        # Whoever waits goes on when it is removed.
        waiting = gevent.spawn(trans.wait_ready)
        gevent.sleep(0)
        trans.remove_connection("three")
        waiting.get(timeout=SOON)
        trans.stop(timeout=SOON)


@contextlib.contextmanager
def asking(server: Any, expected: bytes) -> Iterator[list[int]]:
    """A browser asks again and again; what it is answered is counted, and checked at the end of the block."""
    right = [0]
    ending: list[bool] = []

    def ask() -> None:
        with Browser(server) as browser:
            while not ending:
                assert browser.get().body == expected
                right[0] += 1

    with running(ask):
        wait_until(lambda: right[0], SOON)
        yield right
        ending.append(True)


def more_of(right: list[int]) -> None:
    """Wait until ten more answers have come."""
    wanted = right[0] + 10
    wait_until(lambda: right[0] >= wanted, SOON)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_comes_and_goes_under_load_and_the_others_do_not_notice(servers: list[Any], loop: str) -> None:
    """What its browser asks while it is away waits in the server, and is answered once it is back."""
    one, two = servers
    with transceiver([one]) as trans, running(LOOPS[loop], trans):
        with asking(one, b"one") as right, Browser(two) as browser:
            for _ in range(5):
                trans.add_connection(*entry(two))
                trans.wait_ready(10)
                assert browser.get().body == b"two"
                trans.remove_connection("two")
                browser.ask()
                more_of(right)
                trans.add_connection(*entry(two))
                assert browser.receive().body == b"two"
                trans.remove_connection("two")
            assert sorted(trans.connections) == ["one"] and trans.status()["ready"]
        trans.stop(timeout=SOON)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_is_killed_under_load_and_the_others_do_not_notice(
    servers: list[Any], start_front_end: StartFrontEnd, loop: str
) -> None:
    """STATUS names it; started again it is served."""
    one, two = servers[0], start_front_end({"/": Handler("killed")}, process=True)
    with transceiver([one, two]) as trans, running(LOOPS[loop], trans):
        with asking(one, b"one") as right:
            with Browser(two) as browser:
                assert browser.get().body == b"killed"
                two.kill()
                assert browser.at_end()
            wait_until(lambda: trans.status()["why"], SOON)
            assert [entry(two)[2] in why for why in trans.status()["why"]] == [True]
            more_of(right)
            two.start()
            trans.wait_ready(10)
            with Browser(two) as browser:
                assert browser.get().body == b"killed"
            assert trans.status()["ready"]
        trans.stop(timeout=SOON)


def test_the_websockets_of_a_killed_server_end_and_a_broadcast_reaches_all_others(
    servers: list[Any], start_front_end: StartFrontEnd
) -> None:
    """Each of three servers has some; of one of them they are reported with 1006."""
    killed = start_front_end({"/": Handler("killed")}, process=True)
    everybody = [*servers, killed]
    ended: list[tuple[str, int]] = []

    def websocket(ws: Any) -> None:
        for _message in ws:
            pass
        ended.append((ws.request.sender, ws.close_code))

    with contextlib.ExitStack() as stack, transceiver(everybody) as trans, running(trans.serve, websocket=websocket):
        clients = [(server, stack.enter_context(RawClient(server.port))) for server in everybody for _ in range(5)]
        wait_until(lambda: len(trans.websockets) == len(clients), SOON)
        assert trans.broadcast("all") == len(clients)
        assert {data_frame(client).payload for _, client in clients} == {b"all"}
        killed.kill()
        wait_until(lambda: len(ended) == 5, SOON)
        assert ended == [("killed", 1006)] * 5
        assert trans.broadcast("the others") == 10
        for server, client in clients:
            if server is not killed:
                assert data_frame(client).payload == b"the others"
        trans.stop(timeout=SOON)


@ONE_FRONT_END
def test_a_burst_of_one_server_does_not_starve_the_others(servers: list[Any]) -> None:
    """The inbox is full of its events, and its server has more of them: another one's come in their turn."""
    one, two = servers
    handled: list[str] = []

    def slowly(trans: Transceiver) -> None:
        for _sid, conn, req in trans.recv():
            gevent.sleep(0.002)  # an application that is behind
            handled.append(conn.sender)
            conn.reply_http(req, conn.sender)

    with contextlib.ExitStack() as stack, transceiver(servers, max_pending=100) as trans:
        burst = [stack.enter_context(Browser(one)) for _ in range(50)]
        other = stack.enter_context(Browser(two))
        for browser in burst:
            browser.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40)
        wait_until(lambda: trans.pending >= 100, SOON)
        with running(slowly, trans):
            assert other.get().body == b"two"
            # What was pending before it, and about as much again of each batch that came beside it.
            assert len(handled) < 1000
            for browser in burst:
                for _ in range(40):
                    assert browser.receive().body == b"one"
            trans.stop(timeout=SOON)
