"""The handler side as a whole, behind both front ends: readiness, running, connection sets, stopping, idleness."""

from __future__ import annotations

import gc
import logging
import os
import signal
import statistics
import threading
import time

import gevent
import pytest
import zmq
from gevent import socket
from gevent.event import Event
from plain_server import PlainServer, until

from greentx import Transceiver
from greentx.edge import Handler
from greentx.errors import BindError, ConnectTimeout, LocalProtocolError, SendTimeout, TransportError
from greentx.handler import link as connection_module
from greentx.protocol.requests import build_request
from greentx.transport.teardown import guarded

NOWHERE = ("ipc:///nowhere/push", "ipc:///nowhere/sub")


@pytest.fixture(scope="module")
def front(front_end):
    """One for the module: a Mongrel2 takes its first request half a second after its start."""
    entries = {"/": Handler("one"), "/two/": Handler("two"), "/named/": Handler("three", recv_ident="other")}
    with front_end.started(entries) as server:
        yield server


def entry(server, sender="one"):
    """The arguments that serve one of its handler entries."""
    handler = next(one for one in server.handlers if one.sender == sender)
    return handler.sender, handler.send_spec, handler.recv_spec


def transceiver(server, sender="one", **options):
    """One for one of its handler entries."""
    return Transceiver(*entry(server, sender), **{"rep_port": False, **options})


class Browser:
    """One connection to the server."""

    def __init__(self, server):
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.buffer = b""

    def ask(self, path="/"):
        self.sock.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())

    def answer(self):
        """The body of one answer that has a Content-Length; ``None`` at the end of the connection."""
        if not self._fill(lambda: b"\r\n\r\n" in self.buffer):
            return None
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        self._fill(lambda: len(self.buffer) >= length)
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return body

    def _fill(self, enough):
        while not enough():
            part = self.sock.recv(1 << 20)
            if not part:
                return False
            self.buffer += part
        return True

    def get(self, path="/"):
        self.ask(path)
        return self.answer()

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def echo(conn, req):
    conn.reply_http(req, req.path)


@pytest.fixture
def serving():
    """A function that runs ``serve(echo)`` of a started Transceiver in a greenlet, which has to end with it."""
    greenlets = []

    def serve(trans, handler=echo, **options):
        greenlets.append(gevent.spawn(trans.serve, handler, **options))
        return greenlets[-1]

    yield serve
    gevent.joinall(greenlets, timeout=5)


# -- readiness -------------------------------------------------------------------------------------------------------


def test_the_first_reply_after_a_start_is_never_lost(front, serving):
    """Fifty starts, each with a request that waits in the server already."""
    with Browser(front) as browser:
        for number in range(50):
            browser.ask(f"/{number}")
            with transceiver(front) as trans:
                serving(trans)
                assert browser.answer() == b"/%d" % number
                trans.stop()
            gevent.sleep(0.02)  # until the server has seen it, it would push to nobody


def test_requests_that_waited_for_a_handler_are_answered(front, serving):
    """The server keeps them until somebody pulls."""
    browsers = [Browser(front) for _ in range(20)]
    for number, browser in enumerate(browsers):
        browser.ask(f"/{number}")
    gevent.sleep(0.1)  # the bytes get to the other side, which tells nobody
    with transceiver(front) as trans:
        serving(trans)
        for number, browser in enumerate(browsers):
            assert browser.answer() == b"/%d" % number
            browser.close()
        trans.stop()


def test_nothing_is_pulled_before_the_subscription_was_seen():
    """Not even a connection is made: who is not connected takes no request that could not be answered."""
    with PlainServer() as server:
        trans = Transceiver("plain", server.push_endpoint, "ipc:///nowhere/sub", rep_port=False)
        with trans:
            gevent.sleep(0.2)  # what must not happen has no event
            assert not server.push.poll(0, zmq.POLLOUT)  # it would have room once a peer is connected
            assert not trans.connections["plain"].ready


def test_a_server_that_listens_to_its_own_name_is_answered(front, serving):
    """The request's sender is not what replies must begin with, where recv_ident is set."""
    with transceiver(front, "three") as trans, Browser(front) as browser:
        serving(trans)
        assert browser.get("/named/1") == b"/named/1"
        trans.stop()


def test_a_name_that_cannot_be_answered_is_an_error_in_the_log(caplog):
    """Mongrel2 would refuse each reply: nothing is pulled."""
    with PlainServer(b"a_b") as server:
        trans = Transceiver("plain", server.push_endpoint, server.sub_endpoint, rep_port=False, connect_timeout=0.1)
        with pytest.raises(ConnectTimeout):
            trans.start()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "a_b" in caplog.text


def test_no_server_within_connect_timeout_is_an_error_that_names_the_address():
    """After that time, and nothing is left open, of which the fixtures make sure."""
    before = set(os.listdir("/proc/self/task"))
    trans = Transceiver("one", *NOWHERE, rep_port=0, connect_timeout=0.1)
    started = time.monotonic()
    with pytest.raises(ConnectTimeout, match="ipc:///nowhere/sub") as caught:
        trans.start()
    assert 0.1 <= time.monotonic() - started < 10
    assert caught.value.address == "ipc:///nowhere/sub"
    assert not trans.started
    until(lambda: set(os.listdir("/proc/self/task")) <= before)
    assert not guarded


def test_a_server_that_takes_its_time_is_named_in_a_warning_and_served_when_it_comes(tmp_path, monkeypatch, caplog):
    """In whatever order containers start; after it was lost the WARNING comes again."""
    monkeypatch.setattr(connection_module, "READY_WARNING_SECONDS", 0.1)
    endpoints = f"ipc://{tmp_path}/push", f"ipc://{tmp_path}/sub"
    with Transceiver("plain", *endpoints, rep_port=False) as trans:
        until(lambda: "no Mongrel2 has subscribed" in caplog.text)
        assert endpoints[1] in caplog.text
        for _ in range(2):
            with PlainServer(endpoints=endpoints) as server:
                trans.wait_ready(5)
                server.push.send(build_request("plain", 1, "/", {"METHOD": "GET", "VERSION": "HTTP/1.1"}))
                _sid, conn, req = next(trans.recv(timeout=5))
                conn.reply_http(req, "served")
                until(lambda server=server: server.bodies().endswith(b"served"))
            caplog.clear()
            until(lambda: "no Mongrel2 has subscribed" in caplog.text)


def test_the_warning_comes_after_five_seconds():
    """As long as containers take to start."""
    assert connection_module.READY_WARNING_SECONDS == 5


def test_waiting_for_the_server_ends_with_the_transceiver():
    """Stopped by another greenlet, while it waits in start() or in wait_ready()."""
    trans = Transceiver("one", *NOWHERE, rep_port=False, connect_timeout=30)
    gevent.spawn_later(0.05, trans.stop)
    started = time.monotonic()
    with pytest.raises(TransportError, match="is not running"):
        trans.start()
    assert time.monotonic() - started < 10
    trans.connect_timeout = None
    trans.start()
    gevent.spawn_later(0.05, trans.stop)
    with pytest.raises(TransportError, match="is not running"):
        trans.wait_ready(30)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", ["", "a_b", "a.b", "a b", "ü", "a\n"])
def test_a_sender_that_mongrel2_could_not_parse_back_is_refused_at_once(sender):
    """Each reply would be dropped, and stall its handler."""
    with pytest.raises(ValueError, match="sender"):
        Transceiver(sender, *NOWHERE)


@pytest.mark.parametrize(
    "options",
    [{"ping_timeout": 0}, {"ping_timeout": -1}, {"max_pending": 0}, {"max_queue_bytes": 0}],
)
def test_numbers_that_make_no_sense_are_refused_at_once(options):
    """With the name of the option."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Transceiver("one", *NOWHERE, **options)


@pytest.mark.parametrize(("origins", "lines"), [(None, 1), ("same", 0), ([], 0)])
def test_that_any_page_is_let_in_is_said_once_to_those_who_debug(origins, lines, caplog):
    """Where origins is not set, in one line for each start."""
    with caplog.at_level(logging.DEBUG, "greentx"), Transceiver("abc", *NOWHERE, rep_port=False, origins=origins):
        pass
    assert [record.levelname for record in caplog.records if "origins is not set" in record.message] == [
        "DEBUG"
    ] * lines


def test_a_control_port_in_use_is_an_error_that_names_it():
    """Nothing is left open, and the Transceiver can be started once the port is free."""
    with Transceiver("one", *NOWHERE, rep_port=0) as first:
        second = Transceiver("two", *NOWHERE, rep_port=first.rep_port)
        with pytest.raises(BindError, match=str(first.rep_port)):
            second.start()
        assert not second.started
        assert len(guarded) == 1
    with second:
        assert second.started


def test_a_sender_used_twice_is_refused_at_once(front, serving):
    """The first goes on as if nothing had happened."""
    with transceiver(front) as trans, Browser(front) as browser:
        serving(trans)
        with pytest.raises(ValueError, match="remove that connection first"):
            trans.add_connection(*entry(front))
        with pytest.raises(LocalProtocolError):
            trans.add_connection("a_b", *NOWHERE)
        assert browser.get() == b"/"
        trans.stop()


def test_it_does_nothing_while_it_does_not_run():
    """Before, after: an error that says so."""
    trans = Transceiver("one", *NOWHERE, rep_port=False)
    for _ in range(2):
        for call in (lambda: next(trans.recv()), trans.wait_ready, lambda: trans.add_connection("two", *NOWHERE)):
            with pytest.raises(TransportError, match="is not running"):
                call()
        trans.stop()
        with trans:
            with pytest.raises(RuntimeError, match="started already"):
                trans.start()


# -- connection sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_what_processes_that_share_an_entry_cannot_keep_is_said_at_the_start(shared, caplog):
    """Nobody sees what another one answers, so pipelined answers meet; WebSockets need one process."""
    with Transceiver("one", *NOWHERE, rep_port=False, shared=shared):
        said = [record.getMessage() for record in caplog.records if "pipelined" in record.getMessage()]
    assert len(said) == shared
    assert all("one: " in text and "WebSockets need one process" in text for text in said)
    assert all("may be out of order or mixed into each other" in text for text in said)


def test_two_connection_sets_are_served_at_once(front, serving):
    """By one loop, each answered on its own socket."""
    with transceiver(front) as trans, Browser(front) as one, Browser(front) as two:
        trans.add_connection(*entry(front, "two"))
        serving(trans)
        for number in range(20):
            assert one.get(f"/{number}") == b"/%d" % number
            assert two.get(f"/two/{number}") == b"/two/%d" % number
        assert sorted(trans.connections) == ["one", "two"]
        trans.stop()


def test_connection_sets_come_and_go_under_load(front, serving):
    """Thirty times, while another one answers without a break, and their own requests wait for the next time."""
    with transceiver(front, send_timeout=5) as trans, Browser(front) as one, Browser(front) as two:
        serving(trans)
        answered = []
        ending = Event()

        def load():
            while not ending.is_set():
                assert one.get("/x") == b"/x"
                answered.append(1)

        loading = gevent.spawn(load)
        for number in range(30):
            two.ask(f"/two/{number}")
            trans.add_connection(*entry(front, "two"))
            before = len(answered)
            assert two.answer() == b"/two/%d" % number
            until(lambda before=before: len(answered) > before)
            trans.remove_connection("two")
            gevent.sleep(0.02)  # until the server has seen it, it would push to nobody
        with pytest.raises(KeyError, match="two"):
            trans.remove_connection("two")
        ending.set()
        loading.join(5)
        assert loading.successful()
        trans.stop()


def test_another_thread_may_add_remove_reply_and_stop(front):
    """All is handed over to the hub's thread; a native thread blocks meanwhile, greenlets do not."""
    results = []
    with transceiver(front) as trans, Browser(front) as browser:
        events = trans.recv(timeout=5)
        browser.ask("/two/x")
        thread_is_done = gevent.get_hub().loop.async_()
        woken = Event()
        thread_is_done.start(woken.set)

        def in_thread():
            trans.add_connection(*entry(front, "two"))
            until_here.wait(5)
            conn, req = results[0]
            conn.reply_http(req, b"from a thread")
            trans.remove_connection("two")
            results.append(trans.connections)
            trans.stop()
            thread_is_done.send()

        until_here = threading.Event()
        thread = threading.Thread(target=in_thread)
        thread.start()
        _sid, conn, req = next(events)
        results.append((conn, req))
        until_here.set()
        assert browser.answer() == b"from a thread"
        assert list(events) == []
        assert woken.wait(5)
        thread.join(5)
        thread_is_done.close()
    assert list(results[1]) == ["one"]


def test_many_threads_reply_at_once(front):
    """Each answers its own request; none is lost or mixed up."""
    browsers = [Browser(front) for _ in range(8)]
    pool = gevent.get_hub().threadpool
    with transceiver(front) as trans:
        for number, browser in enumerate(browsers):
            browser.ask(f"/{number}")
        events = trans.recv()
        calls = []
        for _ in browsers:
            _sid, conn, req = next(events)
            calls.append(pool.spawn(conn.reply_http, req, req.path))
        gevent.joinall(calls, timeout=5)
        for number, browser in enumerate(browsers):
            assert browser.answer() == b"/%d" % number
            browser.close()


# -- many small replies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["one greenlet", "many greenlets", "flow control"])
def test_a_thousand_small_pieces_reach_one_connection(front, start_front_end, how):
    """Mongrel2 would end a connection for which 17 messages wait."""
    server = start_front_end(settings={"download.flow_control": 1}) if how == "flow control" else front
    pieces = [b"%4d;" % number for number in range(1000)]
    sender = "greentx" if how == "flow control" else "one"
    with transceiver(server, sender) as trans, Browser(server) as browser:
        browser.ask()
        _sid, conn, req = next(trans.recv())
        conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        if how == "many greenlets":
            gevent.joinall([gevent.spawn(conn.reply, req, piece) for piece in pieces], raise_error=True)
        else:
            for piece in pieces:
                conn.reply(req, piece)
        assert browser.answer() == b"".join(pieces)


def test_a_steady_stream_survives_a_server_that_stands_still(front):
    """Stopped for a moment, as on a busy machine, it finds no more messages than it can queue."""
    with transceiver(front) as trans, Browser(front) as browser:
        browser.ask()
        _sid, conn, req = next(trans.recv())
        conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
        # One that stood still before its first receipt, for a second, would be held for one that gives none.
        conn.link.writer.receipts.ask_behind()
        until(lambda: conn.link.writer.receipts.known)
        os.kill(front.pid, signal.SIGSTOP)
        try:
            for _ in range(200):
                conn.reply(req, b"0123456789")
                gevent.sleep(0.002)  # the pace of the parts
        finally:
            os.kill(front.pid, signal.SIGCONT)
        assert browser.answer() == b"0123456789" * 200


def test_a_reader_that_is_stuck_delays_nobody_else(front, serving):
    """Megabytes wait for one, the others are answered at once."""

    def handler(conn, req):
        conn.reply_http(req, bytes(20_000_000) if req.path == "/large" else req.path)

    with transceiver(front) as trans, Browser(front) as stuck, Browser(front) as browser:
        serving(trans, handler)
        stuck.ask("/large")
        gevent.sleep(0.1)  # the bytes get to the other side, which tells nobody
        started = time.monotonic()
        for _ in range(50):
            assert browser.get("/small") == b"/small"
        assert time.monotonic() - started < 10
        trans.stop()


# -- back-pressure ---------------------------------------------------------------------------------------------------


def test_a_stopped_server_blocks_who_sends_then_all_arrives(start_front_end, serving):
    """SIGSTOP: senders wait, the rest of the program goes on; SIGCONT: everything arrives, once."""
    server = start_front_end({"/": Handler("one")}, process=True)
    size = 50_000
    browsers = [Browser(server) for _ in range(100)]
    with transceiver(server, send_timeout=None) as trans:
        requests = {}
        events = trans.recv()
        for number, browser in enumerate(browsers):
            browser.ask(f"/{number}")
        for _ in browsers:
            _sid, conn, req = next(events)
            requests[req.path] = req
        os.kill(server.pid, signal.SIGSTOP)
        try:

            def send(req):
                conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (20 * size))
                for _ in range(20):
                    conn.reply(req, req.path.encode().ljust(size))

            senders = [gevent.spawn(send, req) for req in requests.values()]
            gevent.sleep(0.3)  # what must not happen has no event
            assert not all(sender.dead for sender in senders)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        readers = [gevent.spawn(browser.answer) for browser in browsers]
        gevent.joinall(senders + readers, timeout=30, raise_error=True)
        for number, reader in enumerate(readers):
            assert reader.value == (b"/%d" % number).ljust(size) * 20
    for browser in browsers:
        browser.close()


def test_a_sender_gives_up_after_send_timeout(start_front_end):
    """The message is not sent, the error names the address, and the server is served when it goes on."""
    server = start_front_end({"/": Handler("one")}, process=True)
    with transceiver(server, send_timeout=0.2, linger=0.2) as trans, Browser(server) as browser:
        browser.ask("/1")
        events = trans.recv()
        _sid, conn, req = next(events)
        os.kill(server.pid, signal.SIGSTOP)
        try:

            def send_much():
                for number in range(1000, 100_000):
                    conn.deliver("one", [number], bytes(30_000))

            with pytest.raises(SendTimeout) as caught:
                send_much()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert caught.value.address == entry(server)[2]
        until(lambda: not conn.link.writer.pipe_full)  # the server has gone on
        conn.reply_http(req, "late")
        assert browser.answer() == b"late"


# -- idleness --------------------------------------------------------------------------------------------------------


def cpu_of(seconds):
    before = time.process_time()
    gevent.sleep(seconds)
    return (time.process_time() - before) / seconds


def test_an_idle_transceiver_costs_nothing(front, serving):
    """0 % of a CPU, with a server and without one."""
    with transceiver(front, rep_port=0) as trans, Browser(front) as browser:
        serving(trans)
        assert browser.get() == b"/"
        assert cpu_of(1.0) < 0.1
        trans.stop()
    with Transceiver("one", *NOWHERE, rep_port=0):
        assert cpu_of(0.5) < 0.1


def test_a_full_inbox_costs_nothing_and_loses_nothing(front):
    """The receiver waits, the server keeps the rest; a consumer that comes back gets it all."""
    with transceiver(front, max_pending=5) as trans, Browser(front) as browser:
        browser.sock.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        conn = trans.connections["one"]
        until(lambda: conn.status()["requests"] >= 5)
        assert cpu_of(0.5) < 0.1
        events = trans.recv(timeout=5)
        for _ in range(200):
            _sid, conn, req = next(events)
            conn.reply_http(req, "y")
        for _ in range(200):
            assert browser.answer() == b"y"


def test_no_message_is_missed_between_sends(front, serving):
    """Two thousand requests, one after the other: each is a message in and one out, at changing moments."""
    with transceiver(front) as trans, Browser(front) as browser:
        serving(trans)
        for number in range(2000):
            assert browser.get("/p") == b"/p"
            if number % 7 == 0:
                gevent.sleep(number % 13 / 20_000)
        trans.stop()


# -- coming and going ------------------------------------------------------------------------------------------------


def test_hundreds_of_with_blocks_leave_nothing_behind(front):
    """No descriptor, thread or greenlet, and none takes long."""
    times = []

    def come_and_go():
        started = time.perf_counter()
        with transceiver(front, rep_port=0) as trans:
            trans.wait_ready(5)
        times.append(time.perf_counter() - started)

    come_and_go()
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    greenlets = sum(isinstance(one, gevent.Greenlet) for one in gc.get_objects())
    for _ in range(300):
        come_and_go()
    gc.collect()
    until(lambda: len(os.listdir("/proc/self/task")) <= threads)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert sum(isinstance(one, gevent.Greenlet) for one in gc.get_objects()) <= greenlets
    assert not guarded
    logging.getLogger("greentx.tests").warning("a with block: %.1f ms in the median", statistics.median(times) * 1000)
    assert statistics.median(times) < 0.5


def test_a_connection_set_that_cannot_start_leaves_nothing_behind(monkeypatch):
    """Whatever the error was; the same sender may be tried again."""
    with PlainServer() as server, Transceiver("one", *NOWHERE, rep_port=False, linger=0) as trans:
        endpoints = server.push_endpoint, server.sub_endpoint

        def fail(self, endpoint):
            raise MemoryError("of this test")

        with monkeypatch.context() as patch:
            patch.setattr("greentx.transport.Writer.connect", fail)
            with pytest.raises(MemoryError):
                trans.add_connection("two", *endpoints)
        assert list(trans.connections) == ["one"]
        connection = trans.add_connection("two", *endpoints)
        assert connection.wait_ready(5)
