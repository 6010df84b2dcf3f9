"""The access log of an embedded front end that serves."""

from __future__ import annotations

from http_rig import wait_until
from wire_rig import SENDER, RawBrowser, raw_handler

from greentx.edge import Edge, Handler

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def shown(line: str) -> str:
    """Its request line, status and size."""
    _, request, rest, *_ = line.split('"')
    return f"{request} {rest.strip()}"


def test_a_request_that_no_handler_takes_is_logged_with_the_front_ends_own_answer():
    """No seconds are said of it."""
    lines: list[str] = []
    with Edge({"/": Handler(SENDER)}, access_log=lines.append, no_handler_timeout=0.1) as edge:
        with RawBrowser(edge) as browser:
            browser.send(b"HEAD /nobody HTTP/1.1\r\nHost: h\r\n\r\n")
            browser.read_to_end()
    (line,) = lines
    assert shown(line) == f"HEAD /nobody HTTP/1.1 503 {len(browser.data)}"
    assert line.endswith(" -")


def test_what_is_answered_is_logged_whoever_answers():
    """A handler, the front end itself, or nobody; and handshakes."""
    lines: list[str] = []
    with (
        Edge({"/": Handler(SENDER)}, access_log=lines.append, half_close_timeout=0.1) as edge,
        raw_handler(edge) as handler,
    ):
        with RawBrowser(edge) as browser:
            browser.send(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
            handler.reply(handler.receive().conn_id, ANSWER)
            browser.read(ANSWER)
            assert shown(lines.pop()) == "GET /a HTTP/1.1 200 40"
            browser.send(b"\x1b[2J\r\n\r\n")
            browser.read_to_end()
            assert shown(lines.pop()) == f"- 400 {len(browser.data) - len(ANSWER)}"
        assert handler.receive().path == "@*"
        with RawBrowser(edge) as browser:
            browser.send(b"GET /gone HTTP/1.1\r\nHost: h\r\n\r\n")
            assert handler.receive().path == "/gone"
        wait_until(lambda: lines)
        assert shown(lines.pop()) == "GET /gone HTTP/1.1 - -"
        assert handler.receive().path == "@*"
        with RawBrowser(edge) as browser:
            browser.send(HANDSHAKE)
            handler.reply(handler.receive().conn_id, SWITCHED)
            browser.read(SWITCHED)
            assert shown(lines.pop()) == f"GET /ws HTTP/1.1 101 {len(SWITCHED)}"
    assert lines == []
