"""Whose turn it is to be answered, and what may be written when."""

from __future__ import annotations

import pytest

from greentx.errors import LocalProtocolError
from greentx.protocol.bounds import Queued
from greentx.protocol.life import ENDED, Life
from greentx.protocol.pipeline import MAX_PIPELINED, OpenRequests
from greentx.protocol.request import Request

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%b"


def request(conn_id: str = "1", path: str = "/", method: str = "GET", **headers: str) -> Request:
    return Request("U", conn_id, path, {"METHOD": method, "VERSION": "HTTP/1.1", **headers})


def opened(*requests: Request, **options: object) -> OpenRequests:
    """Books that took these requests in."""
    books = OpenRequests(**options)
    for one in requests:
        assert books.add(one)
    return books


def test_the_only_request_may_be_answered_at_once():
    """Its bytes come back to be written, and it is no longer open."""
    one = request()
    books = opened(one)
    assert len(books) == 1
    assert books.answer(one, b"answer", complete=True) == (b"answer", False)
    assert len(books) == 0
    assert one.answered


def test_the_short_way_does_the_same():
    """answer_whole is answer for the request that nothing is pipelined behind."""
    one = request()
    books = opened(one)
    assert books.answer_whole(one)
    assert len(books) == 0
    assert one.answered
    assert not books.answer_whole(one)


def test_the_short_way_refuses_what_is_not_simple():
    """Behind another, with another behind it, or begun in pieces: answer has to see to that."""
    first, second, third = request(), request(), request("2")
    books = opened(first, second, third)
    assert not books.answer_whole(first)
    assert not books.answer_whole(second)
    books.answer(third, WHOLE[:10], complete=None)
    assert not books.answer_whole(third)
    assert len(books) == 3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_pipelined_requests_are_written_in_their_order(order):
    """Whatever the order of the answers, the bytes come out in that of the requests."""
    requests = [request(path=f"/{number}") for number in range(3)]
    books = opened(*requests)
    written = b""
    for number in order:
        data, close = books.answer(requests[number], b"%d" % number, complete=True)
        written += data
        assert not close
    assert written == b"012"
    assert len(books) == 0
    assert not books.behind
    assert all(one.answered for one in requests)


def test_connections_do_not_wait_for_each_other():
    """The order is that of one connection."""
    one, other = request("1"), request("2")
    books = opened(one, other)
    assert books.answer(other, b"b", complete=True) == (b"b", False)
    assert books.answer(one, b"a", complete=True) == (b"a", False)


def test_raw_bytes_are_followed_to_the_end_of_the_response():
    """A response written in pieces lets the next one begin after its last byte only."""
    first, second = request(), request()
    books = opened(first, second)
    assert books.answer(second, b"second", complete=True) == (b"", False)
    data = WHOLE % b"ok"
    for position in range(len(data) - 1):
        assert books.answer(first, data[position : position + 1], complete=None)[0] == data[position : position + 1]
    assert books.answer(first, data[-1:], complete=None) == (b"ksecond", False)
    assert len(books) == 0


def test_raw_bytes_of_a_later_request_are_followed_when_it_is_its_turn():
    """Pieces kept for a later request are written together, and the rest as it comes."""
    first, second, third = request(), request(), request()
    books = opened(first, second, third)
    assert books.answer(second, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", complete=None) == (b"", False)
    assert books.answer(second, b"ab", complete=None) == (b"", False)
    assert books.answer(third, b"third", complete=True) == (b"", False)
    assert books.answer(first, b"first", complete=True)[0].endswith(b"\r\n\r\nab")
    assert books.heads["1"] is second
    assert books.answer(second, b"cd", complete=None) == (b"cdthird", False)
    assert len(books) == 0


def test_a_whole_raw_response_for_a_later_request_is_complete():
    """What was kept is followed when it is written, so that the third request has its turn at once."""
    first, second, third = request(), request(), request()
    books = opened(first, second, third)
    books.answer(second, WHOLE % b"22", complete=None)
    books.answer(third, WHOLE % b"33", complete=None)
    assert books.answer(first, WHOLE % b"11", complete=None) == (WHOLE % b"11" + WHOLE % b"22" + WHOLE % b"33", False)
    assert third.answered


def test_an_interim_response_ends_nothing():
    """After a 1xx the request stays open."""
    one = request()
    books = opened(one)
    books.answer(one, b"HTTP/1.1 103 Early Hints\r\n\r\n", complete=None)
    assert books.heads["1"] is one
    assert books.started(one)


def test_a_response_until_close_ends_with_the_close():
    """Without a length the next request waits, in vain, since the close ends the connection."""
    first, second = request(), request()
    books = opened(first, second)
    assert books.answer(first, b"HTTP/1.1 200 OK\r\n\r\nwhatever", complete=None)[0]
    assert books.answer(second, b"never", complete=True) == (b"", False)
    assert books.answer(first, b"", complete=None, close=True) == (b"", True)
    assert len(books) == 0
    assert second.life is ENDED


@pytest.mark.parametrize("data", [b"no HTTP at all", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"])
def test_what_is_no_http_may_go_on(data):
    """After a 101, or with a protocol of the handler's own, more bytes may follow."""
    one = request()
    books = opened(one)
    assert books.answer(one, data, complete=None) == (data, False)
    assert len(books) == 0
    assert books.answer(one, b"more", complete=None) == (b"more", False)


def test_a_101_may_be_kept_for_a_later_request():
    """What follows it goes through as soon as it was written."""
    first, second = request(), request()
    books = opened(first, second)
    books.answer(second, b"HTTP/1.1 101 Switching Protocols\r\n\r\n", complete=None)
    books.answer(first, b"first", complete=True)
    assert books.answer(second, b"more", complete=None) == (b"more", False)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_method_says_where_a_response_ends(method):
    """The answer to HEAD ends with its head, whatever its Content-Length says."""
    first, second = request(method=method), request()
    books = opened(first, second)
    books.answer(second, b"second", complete=True)
    data, _ = books.answer(first, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", complete=None)
    assert data.endswith(b"second") is (method == "HEAD")


@pytest.mark.parametrize("whole", [True, None])
def test_a_second_answer_is_refused(whole):
    """The client would take it for the answer to its next request."""
    one = request(path="/twice")
    books = opened(one)
    books.answer(one, WHOLE % b"ok", complete=whole)
    with pytest.raises(LocalProtocolError, match="GET /twice of connection 1 was answered already"):
        books.answer(one, b"again", complete=True)


def test_a_second_answer_to_a_later_request_is_refused():
    """Also while the first one waits for its turn."""
    first, second = request(), request()
    books = opened(first, second)
    books.answer(second, b"once", complete=True)
    with pytest.raises(LocalProtocolError, match="already"):
        books.answer(second, b"twice", complete=True)
    assert books.answer(first, b"first", complete=True) == (b"firstonce", False)


def test_a_close_with_the_answer_ends_the_connection_behind_it():
    """What was pipelined behind is forgotten, and knows it."""
    first, second, third = request(), request(), request()
    books = opened(first, second, third)
    books.answer(second, b"second", complete=True, close=True)
    assert books.answer(first, b"first", complete=True) == (b"firstsecond", True)
    assert len(books) == 0
    assert second.life is third.life is ENDED


def test_a_close_of_a_later_request_waits_for_its_turn():
    """Also one without any answer, and one in the middle of an answer."""
    for pieces in ([], [b"HTTP/1.1 200 OK\r\n\r\nuntil close"]):
        first, second = request(), request()
        books = opened(first, second)
        for piece in pieces:
            books.answer(second, piece, complete=None)
        assert books.answer(second, b"", complete=None, close=True) == (b"", False)
        assert books.answer(first, b"first", complete=True) == (b"first" + b"".join(pieces), True)
        assert len(books) == 0


def test_a_close_after_the_answer_ends_the_connection_at_once():
    """Later requests are not waited for: who closes means it."""
    first, second = request(), request()
    books = opened(first, second)
    books.answer(first, b"first", complete=True)
    assert books.answer(first, b"", complete=None, close=True) == (b"", True)
    assert len(books) == 0
    assert second.life is ENDED


def test_an_answer_that_closes_makes_the_rest_go_nowhere():
    """A second close, or whatever else is said to that request, knows that its connection is gone."""
    one = request()
    books = opened(one)
    assert books.answer(one, b"last", complete=True, close=True) == (b"last", True)
    assert one.life is ENDED


def test_a_request_that_was_never_taken_in_passes_through():
    """A handler answers what it got some other way; it knows what it is doing."""
    books = opened()
    assert books.answer(request("9"), b"data", complete=True) == (b"data", False)


@pytest.mark.parametrize("pipelined", [False, True])
def test_nothing_is_taken_in_behind_a_last_request(pipelined):
    """A client that said "close" may not ask for more (RFC 9112, section 9.6)."""
    requests = [request(connection="close")]
    if pipelined:
        requests.insert(0, request())
    books = opened(*requests)
    late = request()
    assert not books.add(late)
    assert len(books) == len(requests)
    assert books.add(request("2"))


def test_a_pipeline_has_a_bound():
    """It is told when more wait than any honest client would send."""
    books = opened(*[request() for _ in range(MAX_PIPELINED + 1)])
    assert not books.overfull(request())
    assert not books.overfull(request("2"))
    books.add(request())
    assert "limit 4096" in books.overfull(request())


def pipelined(books: OpenRequests, size: int, conn_id: str = "1") -> tuple[Request, str]:
    """Add a request with a body of *size* bytes; return it, and what overfull() says of it."""
    one = request(conn_id, method="POST")
    one.body = bytes(size)
    assert books.add(one)
    return one, books.overfull(one)


def test_a_pipeline_has_a_bound_in_bytes():
    """Counted are those behind the first one, until their turn comes; whatever ends them, nothing stays counted."""
    queued = Queued(per_connection=10_000, in_all=15_000)
    books = OpenRequests(None, queued)
    assert [pipelined(books, 20_000)[1], pipelined(books, 20_000)[1]] == ["", ""]  # the first of a queue has room
    assert "max_queue_bytes is 10000" in pipelined(books, 1)[1]
    books.remove("1")
    assert queued.held == 0
    for conn_id in "23":
        one, _ = pipelined(books, 0, conn_id)
        assert not pipelined(books, 6000, conn_id)[1]
    assert "max_pending_bytes is 15000" in pipelined(books, 500, "3")[1]
    assert books.answer(one, b"answer", complete=True) == (b"answer", False)
    assert 6000 < queued.held < 8000
    del books, one
    assert queued.held == 0


def test_answers_out_of_turn_have_a_bound_in_bytes():
    """They wait for the first one's; beyond the bound the connection is given up, and nothing stays counted."""
    queued = Queued(per_connection=10_000, in_all=15_000)
    books = OpenRequests(None, queued)
    pipelined(books, 0)
    second, third = pipelined(books, 0)[0], pipelined(books, 0)[0]
    assert books.answer(second, bytes(6000), complete=True) == (b"", False)
    assert not books.given_up
    assert books.answer(third, bytes(6000), complete=True) == (b"", True)
    assert "max_queue_bytes is 10000" in books.given_up
    assert not books.heads
    assert queued.held == 0


def test_what_was_begun_can_be_told():
    """Before the first byte a failure can still be answered, later it can only be closed."""
    first, second, stranger = request(), request(), request()
    books = opened(first, second)
    assert not books.started(first)
    assert not books.started(second)
    assert books.started(stranger)
    books.answer(first, b"HTTP/1.1 200 OK\r\n", complete=None)
    books.answer(second, b"HTTP/1.1 200 OK\r\n", complete=None)
    assert books.started(first)
    assert books.started(second)
    books.remove("1")
    assert books.started(first)


def test_the_end_of_a_connection_returns_what_was_open():
    """Oldest first, and nothing for a connection that is not known."""
    first, second = request(), request()
    books = opened(first, second)
    books.answer(first, b"HTTP/1.1 200 OK\r\n", complete=None)
    assert books.remove("1") == [first, second]
    assert books.remove("1") == []
    assert first.life is second.life is ENDED
    # The number is new to the books.
    fresh = request()
    books.add(fresh)
    assert not books.started(fresh)


def test_a_forwarded_request_is_waited_for_no_more():
    """Somebody else answers it: the next one has its turn, the one after that its answer kept."""
    first, second, third = request(), request(), request()
    books = opened(first, second, third)
    books.answer(second, b"second", complete=True)
    assert books.release(first) == (b"second", False)
    assert not first.answered
    assert books.heads["1"] is third
    assert books.release(first) == (b"", False)
    assert books.release(third) == (b"", False)
    assert len(books) == 0


def test_a_later_request_may_be_forwarded():
    """It leaves the queue, wherever it was in it."""
    first, second, third = request(), request(), request()
    books = opened(first, second, third)
    books.release(third)
    assert len(books) == 2
    books.release(second)
    assert not books.behind
    assert books.answer(first, b"first", complete=True) == (b"first", False)


def test_forwarding_tells_the_books():
    """Request.forward sends first, then lets go."""
    done: list[object] = []

    class Socket:
        def send(self, data: bytes) -> None:
            done.append(data)

    one, unknown = request(), request()
    opened(one, life=Life(done.append))
    one.forward(Socket())
    assert done == [one.encode(), one]
    unknown.forward(Socket())
    opened(unknown)
    unknown.forward(Socket())
    assert len(done) == 4


def test_another_may_answer_in_its_place():
    """Those behind it wait until the other one has; for the handler it has been answered."""
    first, second = request(), request()
    books = opened(first, second)
    stand_in = books.delegate(first)
    assert first.answered
    assert books.started(first)
    assert books.answer(second, b"second", complete=True) == (b"", False)
    with pytest.raises(LocalProtocolError):
        books.answer(first, b"first", complete=True)
    assert books.release(stand_in) == (b"second", False)


def test_a_turn_may_be_waited_for():
    """The callable is called when the request is the head, once, after the books are in order."""
    first, second, third = request(), request(), request()
    books = opened(first, second, third)
    turns: list[tuple[str, Request]] = []
    assert books.wait_turn(first, lambda: None)
    assert not books.wait_turn(second, lambda: turns.append(("second", books.heads["1"])))
    assert not books.wait_turn(third, lambda: turns.append(("third", books.heads["1"])))
    books.answer(first, b"first", complete=True)
    assert turns == [("second", second)]
    books.release(second)
    assert turns == [("second", second), ("third", third)]
    assert books.wait_turn(third, lambda: None)


def test_a_turn_does_not_come_where_the_connection_ends():
    """Neither with a close nor with the end of the connection."""
    turns: list[int] = []
    first, second = request(), request()
    books = opened(first, second)
    books.wait_turn(second, lambda: turns.append(1))
    books.answer(second, b"", complete=None, close=True)
    assert books.answer(first, b"first", complete=True) == (b"first", True)
    assert not turns
