"""Requests that may be read in two ways: 400 and the end, before any handler sees them, whoever is in front."""

from __future__ import annotations

import contextlib
import logging

import gevent
import pytest
from http_rig import SENDER, Browser, routes, serving, transceiver, wait_until

from greentx.edge import Handler
from greentx.wsgi import WSGIServer

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
assert len(SMUGGLED) == 35 == 0x23

IN_DOUBT = {
    "two lengths": b"Content-Length: 35\r\nContent-Length: 36\r\n",
    "two lengths, the first one 0": b"Content-Length: 0\r\nContent-Length: 35\r\n",
    "hexadecimal": b"Content-Length: 0x23\r\n",
    "negative": b"Content-Length: -1\r\n",
    "beyond 32 bits": b"Content-Length: 4294967331\r\n",
    "beyond 31 bits": b"Content-Length: 2147483683\r\n",
    "4300 digits": b"Content-Length: " + b"1" * 4300 + b"\r\n",
    "5000 zeros": b"Content-Length: " + b"0" * 5000 + b"35\r\n",
    "a sign": b"Content-Length: +35\r\n",
    "a list": b"Content-Length: 35, 35\r\n",
    "empty": b"Content-Length:\r\n",
    "a word": b"Content-Length: abc\r\n",
    "a coding, too": b"Content-Length: 35\r\nTransfer-Encoding: chunked\r\n",
    "an unknown coding": b"Transfer-Encoding: Chunked\r\n",
    "a line end in a name": b"foo\r\nContent-Length: 35\r\n",
    "a CR in a name": b"foo\rContent-Length: 35\r\n",
    "a control byte in a name": b"x\x01y: 1\r\nContent-Length: 35\r\n",
    "a forged upload": b"Content-Length: 4294967331\r\nX-Mongrel2-Upload-Start: /tmp/a.abcdef\r\n",
    "a forged upload's end": b"Content-Length: 0x23\r\nX-Mongrel2-Upload-Start: /tmp/a.abcdef\r\n"
    b"X-Mongrel2-Upload-Done: /tmp/a.abcdef\r\n",
}

# Sizes that are in order, but for what is served: the edge says so, and Mongrel2 hands them on.
TOO_LARGE = {"beyond 32 bits", "beyond 31 bits", "a forged upload"}


def everything(browser: Browser) -> bytes:
    """All that comes, to the end of the connection."""
    data = browser.buffer
    with contextlib.suppress(ConnectionResetError):
        while piece := browser.socket.recv(65536):
            data += piece
    return data


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_no_handler_sees_a_request_whose_end_is_in_doubt(front_end, start_front_end, protocol, caplog):
    """Nor what a client smuggled in behind it: one answer comes, 400, and the connection ends."""
    server = start_front_end(routes(protocol))
    seen = []

    def handler(conn, req):
        seen.append((req.method, req.path))
        conn.reply_http(req, "right")

    with transceiver(server) as trans, serving(trans, handler):
        for name, lines in IN_DOUBT.items():
            for request in (b"POST", b"GET"):
                with Browser(server) as browser:
                    browser.send(b"%b /doubt HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (request, lines, SMUGGLED))
                    answer = everything(browser)
                status = 413 if front_end.is_edge and name in TOO_LARGE else 400
                assert answer.startswith(b"HTTP/1.1 %d " % status) and answer.count(b"HTTP/1.1") == 1, name
        with Browser(server) as browser:
            assert browser.get("/right").status == 200
    assert ("GET", "/right") in seen
    assert not [one for one in seen if one[1] in ("/doubt", "/smuggled")]
    assert not [record for record in caplog.records if record.exc_info]


def test_what_comes_behind_a_refused_request_is_refused_in_its_turn(start_front_end):
    """Also where an earlier request of the connection is still open: its answer goes out first."""
    server = start_front_end(routes())
    asked, seen = [], []

    def handler(conn, req):
        asked.append((conn, req))
        seen.append(req.path)

    with transceiver(server) as trans, serving(trans, handler):
        for lines in (b"Content-Length: 0x23\r\n", b"Transfer-Encoding: Chunked\r\n", b"foo\r\nContent-Length: 35\r\n"):
            with Browser(server) as browser:
                browser.ask("/first")
                wait_until(lambda: asked)
                browser.send(b"POST /doubt HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (lines, SMUGGLED * 3))
                # A request of somebody else, behind them: all of theirs have come when it has.
                with Browser(server) as other:
                    other.ask("/other")
                    wait_until(lambda: len(asked) == 2)
                for conn, req in asked:
                    conn.reply_http(req, "first")
                asked.clear()
                answer = everything(browser)
                assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP/1.1 400 ") == 1
                assert answer.count(b"HTTP/1.1") == 2
    assert seen == ["/first", "/other"] * 3


@pytest.mark.parametrize("setting", ["upload.temp_store", "upload.stream"])
def test_an_upload_with_two_ends_is_refused_at_its_start(start_front_end, tmp_path, setting):
    """Of a body that is stored, or streamed, too; what Mongrel2 had stored of it is deleted."""
    value = str(tmp_path / "up.XXXXXX") if setting == "upload.temp_store" else 1
    server = start_front_end(routes(), settings={setting: value, "limits.content_length": 16384})
    seen = []

    def handler(conn, req):
        seen.append(req)
        conn.reply_http(req, "right")

    with transceiver(server) as trans, serving(trans, handler):
        for lines in (
            b"Content-Length: 300000\r\nTransfer-Encoding: chunked\r\n",
            b"Content-Length: 300000\r\nContent-Length: 5\r\n",
            b"Content-Length: +300000\r\n",
        ):
            for sent in (300_000, 30_000):
                with Browser(server) as browser:
                    browser.send(b"POST /doubt HTTP/1.1\r\nHost: x\r\n%b\r\n" % lines)
                    # It may be closed in the middle.
                    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                        browser.send(bytes(sent))
                    assert browser.receive().status == 400
        with Browser(server) as browser:
            assert browser.get("/right").status == 200
    assert [req.path for req in seen] == ["/right"]
    wait_until(lambda: not list(tmp_path.iterdir()))


HANDSHAKE = (
    b"GET /doubt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)


@pytest.mark.parametrize("kind", ["handler", "wsgi"])
def test_a_handshake_whose_end_is_in_doubt_is_refused(start_front_end, kind, caplog):
    """400, for handlers and WSGI alike, without a traceback; one that says that it has no body is let in."""
    server = start_front_end({"/": Handler(SENDER)})
    seen = []

    def application(environ, start_response):
        seen.append(environ["PATH_INFO"])
        environ["wsgi.websocket"].receive()
        return []

    stream, gevent.get_hub().exception_stream = gevent.get_hub().exception_stream, None
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, gevent.get_hub(), "exception_stream", stream)
        if kind == "wsgi":
            one = server.handlers[0]
            url = f"mongrel2://{one.sender}@?pull={one.send_spec}&pub={one.recv_spec}"
            wsgi = WSGIServer(url, application, log=None)
            wsgi.start()
            stack.callback(wsgi.stop, 1)
            assert wsgi.transceiver is not None
            wsgi.transceiver.wait_ready(5)
        else:
            trans = stack.enter_context(transceiver(server))
            stack.enter_context(serving(trans, websocket=lambda ws: seen.extend([ws.path, ws.receive()])))
        for lines in (
            b"Content-Length: abc\r\n",
            b"a\x02: b\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
        ):
            with Browser(server) as browser:
                browser.send(HANDSHAKE % lines)
                answer = everything(browser)
            assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1, lines
        assert not seen
        with Browser(server) as browser:
            browser.send(HANDSHAKE % b"Content-Length: 0\r\n")
            assert browser.receive().status == 101
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.WARNING]


@pytest.mark.parametrize("settings", ["stored", "not stored"])
def test_forged_upload_headers_bring_no_request_in_behind_the_last_one(start_front_end, tmp_path, settings, caplog):
    """Behind ``Connection: close`` nothing is processed, whatever names of files a client makes up."""
    store = {"upload.temp_store": str(tmp_path / "up.XXXXXX"), "limits.content_length": 16384}
    server = start_front_end(routes(), settings=store if settings == "stored" else {})
    asked = []
    name = f"{tmp_path}/up.abcdef".encode()
    start, done = b"X-Mongrel2-Upload-Start: %b\r\n" % name, b"X-Mongrel2-Upload-Done: %b\r\n" % name

    def handler(conn, req):
        # Mongrel2 itself ends some of these connections.
        if req.method != "DISCONNECT":
            asked.append((conn, req))

    with transceiver(server) as trans, serving(trans, handler):
        for lines in (start, done, start + done, start * 2):
            for length, body in ((0, b""), (5, b"hello"), (0x1000005, b"hello"), (4294967301, b"hello")):
                if length == 0x1000005 and settings == "not stored":
                    continue  # Mongrel2 itself answers that 413, at once
                with Browser(server) as browser:
                    browser.ask("/last", "Connection: close")
                    wait_until(lambda: asked)
                    browser.send(b"POST /behind HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (lines, length))
                    browser.send(body)
                    with Browser(server) as other:
                        other.ask("/other")
                        wait_until(lambda: len(asked) >= 2)
                    assert [req.path for _, req in asked] == ["/last", "/other"]
                    for conn, req in asked:
                        conn.reply_http(req, "right")
                    asked.clear()
                    answer = everything(browser)
                    assert answer.count(b"HTTP/1.1 200 ") <= 1 and b"HTTP/1.1 200 " not in answer[12:]
    assert not [record for record in caplog.records if record.exc_info]
