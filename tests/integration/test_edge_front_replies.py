"""What handlers may say to the embedded front end, and what it makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import zmq.green as zmq
from http_rig import wait_until
from wire_rig import SENDER, RawBrowser, RawHandler, raw_handler

from greentx.edge import Edge, Handler

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
S = SENDER.encode()
DISCONNECT = b'{"type":"disconnect"}'


@pytest.fixture
def edge() -> Iterator[Edge]:
    """One for each test: what one of them is told of late would come to the next."""
    with Edge({"/": Handler(SENDER)}, half_close_timeout=0) as one:
        yield one


@contextlib.contextmanager
def asked(edge: Edge, handler: RawHandler) -> Iterator[tuple[RawBrowser, int]]:
    """A browser that waits for its answer, and its id."""
    with RawBrowser(edge) as browser:
        browser.send(GET)
        yield browser, handler.request().conn_id


def said(ids: str, body: bytes = b"hello") -> bytes:
    return b"%b %d:%b, %b" % (S, len(ids), ids.encode(), body)


def is_served(browser: RawBrowser, handler: RawHandler, conn_id: int) -> None:
    """The connection is there, and nothing else came for it."""
    handler.reply(conn_id, b"served")
    assert browser.read(b"served") == b"served"


def test_a_reply_may_be_for_many_and_those_that_have_gone_are_told_of_once_each(edge):
    """As often as they stand there; those that are there get it as often."""
    with raw_handler(edge) as handler, asked(edge, handler) as (first, one), asked(edge, handler) as (second, two):
        handler.send(said(f"{one} 900001 {two} {one} 900002 900001"))
        assert first.read(b"hello", 2) == b"hellohello"
        assert second.read(b"hello") == b"hello"
        notices = [handler.receive() for _ in range(3)]
        assert [notice.conn_id for notice in notices] == [900001, 900002, 900001]
        assert {notice.body for notice in notices} == {DISCONNECT}


@pytest.mark.parametrize("turns", [1, 2**8, 2**31])
def test_an_id_is_taken_modulo_two_to_the_32nd(edge, turns):
    """As Mongrel2 does it; zeros in front change nothing."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        handler.send(said("0" * 5000 + str(conn_id + turns * 2**32)))
        browser.read(b"hello")
        handler.send(said(str(900003 + turns * 2**32)))
        assert handler.receive().conn_id == 900003


@pytest.mark.parametrize("far", [2**64, 2**100 * 2**32, 10**5000], ids=["65 bits", "133 bits", "5000 digits"])
def test_an_id_that_64_bits_cannot_hold_is_nobodys(edge, far):
    """And no stranger's, whatever its last bits are."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        handler.send(said(_decimal(far, conn_id)))
        assert handler.receive().conn_id == 2**32 - 1
        is_served(browser, handler, conn_id)


def _decimal(far: int, near: int) -> str:
    """Their sum; Python refuses to write so many digits at once."""
    high, low = divmod(far + near, 10**4000)
    return f"{high}{low:04000}" if high else str(low)


def test_as_many_ids_as_mongrel2_allows_are_served_and_one_more_is_none(edge, caplog):
    """The whole message is dropped, and the log says why."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        gone = [str(one) for one in range(900100, 900228)]
        handler.send(said(" ".join([str(conn_id), *gone[1:]]), b"x"))
        assert browser.read(b"x") == b"x"
        assert [handler.receive().conn_id for _ in range(127)] == [int(one) for one in gone[1:]]
        handler.send(said(" ".join([str(conn_id), *gone]), b"y"))
        wait_until(lambda: "129 ids, limit 128" in caplog.text)
        handler.reply(conn_id, b"served")
        assert browser.read(b"served") == b"xserved"


def test_the_number_of_ids_can_be_set(caplog):
    """By Mongrel2's name."""
    settings = {"limits.handler_targets": 2}
    with Edge({"/": Handler(SENDER)}, settings=settings, half_close_timeout=0) as edge:
        with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
            handler.send(said(f"{conn_id} {conn_id} {conn_id}"))
            wait_until(lambda: "3 ids, limit 2" in caplog.text)
            handler.send(said(f"{conn_id} {conn_id}"))
            assert browser.read(b"hello", 2) == b"hellohello"


INVALID = {
    "nothing": b"",
    "no ids": S + b" 0:, hello",
    "a letter": said("1a"),
    "a length that is too long": S + b" 9:1, hello",
    "no blank behind the comma": S + b" 1:1,hello",
    "two blanks between ids": said("1  2"),
    "a sender that Mongrel2 cannot read": b"a_b 1:1, hello",
    "no tnetstring": said("X 1", b"hello"),
    "a tnetstring that goes on": said("X 1", b"27:3:ctl,17:10:keep-alive,0:,}]x"),
    "no list": said("X 1", b"3:ctl,"),
    "a list of three": said("X 1", b"15:3:ctl,3:ctl,0:,]"),
}


@pytest.mark.parametrize("message", INVALID.values(), ids=INVALID)
def test_an_invalid_reply_is_logged_and_holds_up_nobody(edge, message, caplog):
    """Mongrel2 stalls for half a second, or says nothing."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        handler.send(message)
        is_served(browser, handler, conn_id)
        assert [record.levelname for record in caplog.records if "is invalid" in record.getMessage()] == ["ERROR"]


def test_the_parts_of_a_message_are_messages(edge, caplog):
    """As Mongrel2 reads them."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        handler.publisher.send_multipart([said(str(conn_id), b"one"), b"two", said(str(conn_id), b"three")])
        assert browser.read(b"three") == b"onethree"
        assert caplog.text.count("is invalid") == 1


ENDS = {
    "ctl without a dict": b"12:3:ctl,3:now,]",
    "a module that is not there": b"15:8:sendfile,1:/,]",
    "cancel": b"22:3:ctl,12:6:cancel,0:,}]",
    "cancel and keep-alive": b"39:3:ctl,29:10:keep-alive,0:,6:cancel,0:,}]",
}


@pytest.mark.parametrize("body", ENDS.values(), ids=ENDS)
def test_some_extended_replies_end_the_connection_at_once_and_without_a_notice(edge, body, caplog):
    """As in Mongrel2; what is not known is logged, too."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        handler.send(said(f"X {conn_id}", body))
        assert browser.read_to_end() == b""
        # The next message is of somebody else.
        with asked(edge, handler) as (other, other_id):
            is_served(other, handler, other_id)
        assert ("ends connections" in caplog.text) == (b"cancel" not in body)


STAYS = {
    "keep-alive": b"27:3:ctl,17:10:keep-alive,0:,}]",
    "a word that is not known": b"20:3:ctl,10:4:what,0:,}]",
    "keep-alive and another": b"37:3:ctl,27:4:what,0:,10:keep-alive,0:,}]",
    "nothing": b"9:3:ctl,0:}]",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_other_extended_replies_leave_the_connection_and_ask_whether_it_is_there(edge, body):
    """Of an id that has gone they bring the notice."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        handler.send(said(f"X {conn_id} 900004", body))
        assert handler.receive().conn_id == 900004
        is_served(browser, handler, conn_id)


def test_of_a_cancelled_id_that_has_gone_nobody_is_told(edge):
    """As in Mongrel2."""
    with raw_handler(edge) as handler:
        handler.send(said("X 900005", ENDS["cancel"]))
        handler.send(said("900006", b""))
        assert handler.receive().conn_id == 900006


def test_what_was_written_gets_out_before_a_close_and_what_follows_it_does_not(edge):
    """Nor is the handler told of a connection that it has closed, but for what it says to it afterwards."""
    with raw_handler(edge) as handler, asked(edge, handler) as (browser, conn_id):
        handler.reply(conn_id, bytes(5_000_000))
        handler.reply(conn_id, b"")
        handler.reply(conn_id, b"late")
        assert len(browser.read_to_end()) == 5_000_000
        browser.sock.close()
        wait_until(lambda: not edge.connections)
        handler.reply(conn_id, b"later")
        assert handler.receive().body == DISCONNECT


@contextlib.contextmanager
def handler_of(entry: Handler, topic: bytes) -> Iterator[tuple[Any, Any]]:
    """PULL and XPUB, which has seen that the front end subscribed to *topic*."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.XPUB) as publisher:
        pull.linger = publisher.linger = 0
        pull.connect(str(entry.send_spec))
        publisher.connect(str(entry.recv_spec))
        assert publisher.recv() == b"\x01" + topic
        yield pull, publisher


def test_any_handler_may_reply_to_any_connection_and_each_entry_has_its_own_ident():
    """What does not begin with it is not heard; who asked about one that has gone is told, not who had it."""
    with (
        Edge({"/": Handler("a-1"), "/b": Handler("b-1", recv_ident="topic")}, half_close_timeout=0) as edge,
        RawBrowser(edge) as browser,
    ):
        first, second = edge.handlers
        with handler_of(first, b"") as (pull, _), handler_of(second, b"topic") as (other_pull, other):
            browser.send(GET)
            assert pull.poll(10_000)
            assert pull.recv().startswith(b"a-1 1 / ")
            other.send(b"b-1 1:1, not heard")
            other.send(b"topic 1:1, heard")
            assert browser.read(b"heard") == b"heard"
            other.send(b"topic-2 1:9, x")
            assert other_pull.poll(10_000)
            assert other_pull.recv().startswith(b"b-1 9 @* ")
