"""What a pretend browser makes of bytes: HTTP responses in the order of the requests, and WebSocket messages."""

import pytest

from greentx.errors import RemoteProtocolError
from greentx.protocol.websocket.frames import Frame, Opcode, build_frame
from greentx.standin.reading import HTTPReader, HTTPResponse, WebSocketReader

ONE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
TWO = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nthe rest"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
MESSAGES = build_frame(b"a", Opcode.TEXT) + build_frame(b"b", Opcode.BINARY)


def agree(status, headers):
    return "chat", None


@pytest.mark.parametrize("cut", range(len(ONE + TWO)))
def test_responses_are_read_in_their_order_wherever_they_are_cut(cut):
    """Each is there once it is whole."""
    reader = HTTPReader()
    for method in ("GET", "GET"):
        reader.expect(method)
    data = ONE + TWO
    found = [*reader.feed(data[:cut]), *reader.feed(data[cut:])]
    assert [(one.status, one.body) for one in found] == [(200, b"one"), (404, b"two")]
    assert list(reader.end()) == []


def test_a_request_that_was_not_sent_gets_no_response():
    """The answer is read as that to the next one; withdrawing it again does nothing."""
    reader = HTTPReader()
    not_sent = reader.expect("HEAD")
    reader.expect("GET")
    reader.withdraw(not_sent)
    reader.withdraw(not_sent)
    assert [one.body for one in reader.feed(ONE)] == [b"one"]


def test_bytes_that_no_request_asked_for_are_an_error():
    """Behind the response that one did ask for."""
    reader = HTTPReader()
    reader.expect("GET")
    found: list[HTTPResponse] = []
    with pytest.raises(RemoteProtocolError, match="no request asked for"):
        found.extend(reader.feed(ONE + TWO))
    assert [one.body for one in found] == [b"one"]


def test_the_end_of_the_connection_completes_a_body_without_a_length():
    """And only that."""
    reader = HTTPReader()
    reader.expect("GET")
    assert list(reader.feed(UNTIL_CLOSE)) == []
    assert [one.body for one in reader.end()] == [b"the rest"]


@pytest.mark.parametrize("begun", [b"", ONE[:-1]], ids=["nothing", "a part"])
def test_an_end_before_a_response_was_whole_is_an_error(begun):
    """After it nothing is expected any more."""
    reader = HTTPReader()
    reader.expect("GET")
    assert list(reader.feed(begun)) == []
    with pytest.raises(RemoteProtocolError):
        list(reader.end())
    assert list(reader.end()) == []


@pytest.mark.parametrize("cut", range(len(SWITCHING + MESSAGES)))
def test_messages_are_read_behind_the_answer_wherever_they_are_cut(cut):
    """Also where they came with it; what was agreed on is known by then."""
    reader = WebSocketReader(agree)
    data = SWITCHING + MESSAGES
    answer, *messages = [*reader.feed(data[:cut]), *reader.feed(data[cut:])]
    assert isinstance(answer, HTTPResponse) and answer is reader.response
    assert (answer.status, reader.subprotocol, reader.deflate) == (101, "chat", None)
    assert [(one.opcode, one.payload) for one in messages if isinstance(one, Frame)] == [
        (Opcode.TEXT, b"a"),
        (Opcode.BINARY, b"b"),
    ]
    assert list(reader.end()) == []


def test_a_refusal_is_an_answer_and_opens_nothing():
    """Without a length, too, once the connection has ended."""
    reader = WebSocketReader(agree)
    assert list(reader.feed(UNTIL_CLOSE)) == []
    [answer] = reader.end()
    assert (answer.status, answer.body, reader.response, reader.subprotocol) == (200, b"the rest", answer, None)


def test_a_message_before_a_fault_is_read():
    """The fault comes behind it: a frame that is masked, as no server's is."""
    reader = WebSocketReader(agree)
    found: list[HTTPResponse | Frame] = []
    with pytest.raises(RemoteProtocolError, match="masked"):
        found.extend(reader.feed(SWITCHING + MESSAGES + b"\x81\x81maskx"))
    assert [one.payload for one in found if isinstance(one, Frame)] == [b"a", b"b"]


def test_nothing_comes_behind_an_answer_that_refuses_a_handshake():
    """It is read once."""
    reader = WebSocketReader(lambda status, headers: (None, None))
    assert [one.status for one in reader.feed(TWO) if isinstance(one, HTTPResponse)] == [404]
    with pytest.raises(RemoteProtocolError, match="3 bytes came behind the answer 404"):
        list(reader.feed(b"two"))
