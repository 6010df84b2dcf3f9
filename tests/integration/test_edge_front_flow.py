"""Flow control of the embedded front end: what handlers are told of bytes, and what ends a connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from websocket_peer import HEAD, MASK, Peer
from wire_rig import SENDER, RawBrowser, RawHandler, raw_handler

from greentx.edge import Edge, Handler
from greentx.protocol.websocket.frames import Opcode, build_frame

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
ALL = 102400
NOBODY = 900001


@pytest.fixture(params=["tnetstring", "json"])
def edge(request: pytest.FixtureRequest) -> Iterator[Edge]:
    """With flow control."""
    routes = {"/": Handler(SENDER, protocol=request.param)}
    with Edge(routes, settings={"download.flow_control": 1}, half_close_timeout=0) as one:
        yield one


def credit(handler: RawHandler) -> int:
    """The bytes that the next message tells of, which is a notice."""
    notice = handler.receive()
    assert (notice.path, notice.body) == ("@*", b'{"type":"credits"}')
    assert set(notice.headers) == {"METHOD", "DOWNLOAD_CREDITS"}
    return int(notice.headers["DOWNLOAD_CREDITS"])


def test_the_first_request_of_a_connection_says_how_much_may_wait(edge):
    """Later ones do not."""
    with raw_handler(edge) as handler, RawBrowser(edge) as browser:
        for expected in (str(ALL), None, None):
            browser.send(GET)
            assert handler.request().headers.get("DOWNLOAD_CREDITS") == expected


def test_the_handshake_of_a_websocket_and_each_frame_say_it(edge):
    """As Mongrel2 repeats all fields of the handshake; also where another request was there before."""
    with raw_handler(edge) as handler:
        peer: Any = Peer(edge.port)
        assert handler.receive().headers["DOWNLOAD_CREDITS"] == str(ALL)
        peer.sock.sendall(build_frame(b"a", Opcode.TEXT, mask=MASK) * 2)
        assert [handler.receive().headers["DOWNLOAD_CREDITS"] for _ in range(2)] == [str(ALL)] * 2
        peer.sock.close()


def test_each_message_that_was_written_is_told_of_by_its_size(edge):
    """Also one that goes to several ids, for each of them; and what is the front end's own is not told of."""
    with raw_handler(edge) as handler, RawBrowser(edge) as first, RawBrowser(edge) as second:
        first.send(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        first.read(b"100 Continue")
        first.send(b"x")
        one = handler.request().conn_id
        second.send(GET)
        two = handler.request().conn_id
        for size in (1, 40, ALL):
            handler.reply(one, bytes(size))
            assert credit(handler) == size
        ids = f"{one} {two} {one}".encode()
        handler.send(b"%b %d:%b, abc" % (SENDER.encode(), len(ids), ids))
        assert [credit(handler) for _ in range(3)] == [3, 3, 3]


def fill(handler: RawHandler, conn_id: int) -> int:
    """Send whole windows to a client that does not read, until one is not written; return the bytes of those before."""
    for number in range(400):
        handler.reply(conn_id, bytes(ALL))
        came: list[int] = []
        # Twice: credits come within a turn of the loop.
        for _ in range(2):
            handler.reply(NOBODY, b"?")
            while not came or came[-1] != NOBODY:
                came.append(handler.receive().conn_id)
            came.pop()
        if not came:
            return number * ALL
    raise AssertionError("the kernel took it all")


def test_a_client_that_does_not_read_gives_no_credits_until_it_does(edge):
    """All that was sent is told of in the end."""
    with raw_handler(edge) as handler, RawBrowser(edge, receive_buffer=4096) as browser:
        browser.send(GET)
        left = fill(handler, handler.request().conn_id) + ALL
        while left:
            left -= len(browser.sock.recv(1 << 20))
        assert credit(handler) == ALL


def test_one_message_of_more_bytes_than_may_wait_ends_the_connection(edge, caplog):
    """Nothing of it is sent; the handler is told, which Mongrel2 leaves out."""
    with raw_handler(edge) as handler, RawBrowser(edge) as browser:
        browser.send(GET)
        handler.reply(handler.request().conn_id, bytes(ALL + 1))
        assert browser.read_to_end() == b""
        assert handler.receive().body == b'{"type":"disconnect"}'
        assert "102400 bytes wait" in caplog.text


def test_what_is_sent_to_a_client_that_does_not_read_without_its_credits_ends_the_connection(edge):
    """However little it is."""
    with raw_handler(edge) as handler, RawBrowser(edge, receive_buffer=4096) as browser:
        browser.send(GET)
        conn_id = handler.request().conn_id
        fill(handler, conn_id)
        handler.reply(conn_id, b"x")
        # Should the kernel have had room after all, credits come first.
        while handler.receive().body != b'{"type":"disconnect"}':
            handler.reply(conn_id, bytes(ALL))


def test_a_close_is_carried_out_while_no_handler_takes_the_credits(edge):
    """Mongrel2 keeps the connection until one does."""
    with raw_handler(edge) as handler, RawBrowser(edge) as browser, RawBrowser(edge) as other:
        browser.send(GET)
        conn_id = handler.request().conn_id
        other.send(GET)
        other_id = handler.request().conn_id
        handler.pull.close(0)
        for _ in range(3):
            handler.reply(conn_id, b"abc")
        handler.reply(conn_id, b"")
        assert browser.read_to_end() == b"abcabcabc"
        handler.reply(other_id, b"served")
        other.read(b"served")


def test_a_websocket_that_is_let_in_is_counted_from_its_first_byte(edge):
    """The answer to its handshake is a message like any other."""
    with raw_handler(edge) as handler:
        peer = Peer(edge.port)
        conn_id = handler.request().conn_id
        handler.reply(conn_id, HEAD)
        assert credit(handler) == len(HEAD)
        handler.reply(conn_id, build_frame(b"x" * 1000, Opcode.BINARY))
        assert credit(handler) == 1004
        assert peer.head() == HEAD
        assert peer.message() == b"x" * 1000
        peer.sock.close()
