"""What all clients of the embedded front end together may send at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from gevent import select
from http_rig import SENDER, Browser, serving, transceiver
from websocket_peer import MASK, Peer

from greentx.edge import Edge, Handler

SIZE = 200_000
# One may keep so much, and two may not.
MOST = 150_000


@contextlib.contextmanager
def served(**options: object) -> Iterator[Edge]:
    edge = Edge({"/": Handler(SENDER)}, max_kept=MOST, **options)  # type: ignore[arg-type]  # each test names its own
    with edge, transceiver(edge) as trans:
        with serving(
            trans,
            lambda conn, req: conn.reply_http(req, str(len(req.body))),
            websocket=lambda ws: [ws.send(str(len(message))) for message in ws],
        ):
            yield edge


@pytest.mark.parametrize("store", [False, True], ids=["inline", "stored"])
def test_a_body_that_is_too_much_for_all_is_answered_503(tmp_path, store):
    """The others become whole, small ones pass, and there is room again when one has gone."""
    settings = {"upload.temp_store": f"{tmp_path}/up.XXXXXX"} if store else {}
    with served(settings=settings) as edge, Browser(edge) as one, Browser(edge) as two:
        for browser in (one, two):
            browser.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            browser.send(b"%x\r\n" % SIZE + b"x" * (SIZE - 1))
        (refused,), _, _ = select.select([one.socket, two.socket], [], [], 10)
        other = two if refused is one.socket else one
        assert (one if other is two else two).receive("POST").status == 503
        with Browser(edge) as small:
            small.ask("/", method="POST", body=b"x" * 1000)
            assert small.receive("POST").body == b"1000"
        other.send(b"x\r\n0\r\n\r\n")
        assert other.receive("POST").body == b"%d" % SIZE
        with Browser(edge) as third:
            third.ask("/", method="POST", body=b"x" * SIZE)
            assert third.receive("POST").body == b"%d" % SIZE


def test_a_message_that_is_too_much_for_all_ends_its_websocket():
    """With 1013: it may try again later."""
    with served() as edge:
        peers = [Peer(edge.port) for _ in range(2)]
        for peer in peers:
            assert peer.head().startswith(b"HTTP/1.1 101 ")
            peer.sock.sendall(b"\x82\xff" + SIZE.to_bytes(8, "big") + MASK + b"x" * (SIZE - 1))
        (refused,), _, _ = select.select([peer.sock for peer in peers], [], [], 10)
        (other,) = [peer for peer in peers if peer.sock is not refused]
        (ended,) = [peer for peer in peers if peer.sock is refused]
        assert ended.closed()[0] == 1013
        other.sock.sendall(b"x")
        assert other.message() == str(SIZE)
        for peer in peers:
            peer.sock.close()
