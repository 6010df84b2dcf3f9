"""What the embedded front end decides without I/O: messages and turns."""

from __future__ import annotations

import subprocess
import sys

import pytest

from greentx.edge.front.events import Head
from greentx.edge.front.messages import MessageBuilder
from greentx.edge.front.turns import Turns
from greentx.protocol.request import Request
from greentx.protocol.websocket.frames import Frame, Opcode


def head(target: bytes = b"/a?b", *headers: tuple[bytes, bytes], method: bytes = b"GET") -> Head:
    return Head(method, target, b"HTTP/1.1", list(headers))


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_a_handler_reads_what_the_client_sent(protocol):
    """All lines of a repeated name, quotes and bytes that are not ASCII; not who the client says that it is."""
    fields = [(b"m", b"%d" % number) for number in range(7)]
    odd = (b"x", b'a\t"\\\xff')
    message = MessageBuilder("s-1", protocol).request(
        7, head(b"/a?b", *fields, odd, (b"x-forwarded-for", b"evil"), (b"m", b"7")), b"/", b"::1", b"body\0"
    )
    request = Request.parse(message)
    assert (request.sender, request.conn_id, request.path, request.body) == ("s-1", "7", "/a", b"body\0")
    assert request.header("m") == [str(number) for number in range(8)]
    assert request.header("x-forwarded-for") == request.header("REMOTE_ADDR") == "::1"
    assert request.header("QUERY") == "b"
    assert "x" in request.headers


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize(
    ("said", "heard"),
    [((), None), ((b"",), ""), ((b"1.2.3.4",), "1.2.3.4"), ((b"1.2.3.4", b"::2"), ["1.2.3.4", "::2"])],
)
def test_a_proxy_in_front_may_say_who_the_client_is(protocol, said, heard):
    """With ``no_clobber_xff``, as Mongrel2 has it: what came is handed on, and nothing is added (probed)."""
    fields = [(b"x-forwarded-for", value) for value in said]
    made = MessageBuilder("s", protocol, believes=True).request(1, head(b"/", *fields), b"/", b"127.0.0.1", b"")
    request = Request.parse(made)
    assert request.headers.get("x-forwarded-for") == heard
    assert request.header("REMOTE_ADDR") == "127.0.0.1"


def test_a_client_cannot_name_what_the_server_says():
    """Names in lower case are its own, whatever they look like."""
    message = MessageBuilder("s", "tnetstring").request(
        1, head(b"/", (b"method", b"JSON"), (b"flags", b"0x81"), (b"path", b"@*")), b"/", b"127.0.0.1", b""
    )
    request = Request.parse(message)
    assert (request.method, request.path, request.has("FLAGS"), request.is_notice()) == ("GET", "/", False, False)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_the_flags_of_a_frame_stand_where_they_belong(protocol):
    """Also where the client has sent the same text."""
    trap = [(b"a", b"0x00"), (b"flags", b"0x00"), (b"z", b'FLAGS":"0x00')]
    made = MessageBuilder("s", protocol).frames(1, head(b"/0x00?0x00", *trap), b"/0x00", b"127.0.0.1")
    request = Request.parse(made.build(Frame(b"hi", Opcode.TEXT, 4)))
    assert (request.header("FLAGS"), request.header("flags"), request.header("a")) == ("0xC1", "0x00", "0x00")
    assert (request.path, request.header("z"), request.body) == ("/0x00", 'FLAGS":"0x00', b"hi")


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("methods", "written", "left"),
    [
        (["GET"], [PLAIN], 0),
        (["GET"], [PLAIN[:-1]], 1),
        (["HEAD"], [PLAIN[:-2]], 0),
        (["GET"], [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"], 0),
        (["GET"], [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"], 1),
        (["GET", "GET"], [PLAIN[:-1], b"k" + PLAIN], 0),
        (["GET", "GET"], [PLAIN], 1),
        (["GET", "GET", "GET"], [PLAIN * 2 + PLAIN[:9], PLAIN[9:]], 0),
        (["HEAD", "GET"], [PLAIN[:-2], PLAIN], 0),
        (["GET"], [b"HTTP/1.1 100 Continue\r\n\r\n"], 1),
        (["GET"], [b"HTTP/1.1 200 OK\r\n\r\nuntil the end"], 1),
        (["GET"], [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", b"0\r\n\r\n"], 0),
        (["GET"], [b"not HTTP"], 1),
    ],
)
def test_it_is_known_how_many_answers_are_due(methods, written, left):
    """However they are cut."""
    turns = Turns()
    for method in methods:
        turns.asked(Head(method.encode(), b"/", b"HTTP/1.1", []))
    moved = sum([turns.wrote(piece) for piece in written])
    assert len(turns) == left
    assert bool(moved) == (left < len(methods))


def test_without_its_extra_the_front_end_says_what_to_install():
    """And nothing else of the folder needs it."""
    program = (
        "import sys; sys.modules['httptools'] = None\n"
        "from greentx.edge import Mongrel2\n"
        "try:\n    from greentx.edge import Edge\n"
        "except ImportError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install greentx[edge]" in said.stdout
