"""What a browser gets of the raw replies of a handler, and of which ends the handler is told: one table for both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from front_ends import FrontEnd
from wire_rig import SENDER, RawBrowser, RawHandler, raw_handler

from greentx.edge import Handler

ASK = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
U = SENDER.encode()
# An id that nobody has.
NOBODY = b"999999"


def to(ids: bytes, body: bytes) -> bytes:
    """A reply whose length is right; ``ID`` is the browser's id."""
    return b"%b LEN:%b, %b" % (U, ids, body)


class Row(NamedTuple):
    """What a handler says, and what comes of it.

    Attributes:
        says: Its replies.
        gets: Bytes of the browser.
        ends: Whether its connection is ended by them.
        told: How often the handler is told of an id that nobody has.
    """

    says: list[bytes]
    gets: bytes = b""
    ends: bool = False
    told: int = 0


KEEP_ALIVE = b"27:3:ctl,17:10:keep-alive,0:,}]"
CANCEL = b"22:3:ctl,12:6:cancel,0:,}]"

ROWS: dict[str, Row] = {
    "bytes, as they are": Row([to(b"ID", b"\0any\xff")], b"\0any\xff"),
    "one after the other": Row([to(b"ID", b"a"), to(b"ID", b"b")], b"ab"),
    "any sender": Row([b"xyz-123 LEN:ID, a"], b"a"),
    "a blank behind the ids": Row([to(b"ID ", b"a")], b"a"),
    "an id twice": Row([to(b"ID ID", b"a")], b"aa"),
    "an id that nobody has, next to one": Row([to(b"%b ID" % NOBODY, b"a")], b"a", told=1),
    "an empty reply to nobody": Row([to(NOBODY, b"")], told=1),
    "an empty reply": Row([to(b"ID", b"a"), to(b"ID", b"")], b"a", ends=True),
    "128 ids": Row([to(b" ".join([b"ID", *[NOBODY] * 127]), b"a")], b"a", told=127),
    "keep-alive": Row([to(b"X ID", KEEP_ALIVE)]),
    "keep-alive to nobody": Row([to(b"X %b" % NOBODY, KEEP_ALIVE)], told=1),
    "a word that nobody knows": Row([to(b"X ID", b"20:3:ctl,10:4:what,0:,}]")]),
    "cancel": Row([to(b"X ID", CANCEL)], ends=True),
    "cancel of nobody": Row([to(b"X %b" % NOBODY, CANCEL)]),
    "ctl without a dict": Row([to(b"X ID", b"12:3:ctl,3:now,]")], ends=True),
    "a module that is not there": Row([to(b"X ID", b"15:8:sendfile,1:/,]")], ends=True),
    # Each of these stalls all replies of a Mongrel2's handler for half a second: not all that there are.
    "no length": Row([U + b" ID, a"]),
    "129 ids": Row([to(b" ".join([b"ID"] * 129), b"a")]),
}


@pytest.fixture(scope="module")
def server(front_end: FrontEnd) -> Iterator[Any]:
    """One for all rows."""
    with front_end.started({"/": Handler(SENDER)}) as one:
        yield one


@pytest.fixture(scope="module")
def handler(server: Any) -> Iterator[RawHandler]:
    """One for all rows."""
    with raw_handler(server) as one:
        yield one


def filled(template: bytes, conn_id: int) -> bytes:
    """Return a reply with the browser's id, and the length of its ids."""
    said = template.replace(b"ID", b"%d" % conn_id)
    head, found, rest = said.partition(b" LEN:")
    return b"%b %d:%b" % (head, len(rest.partition(b",")[0]), rest) if found else said


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_comes_of_replies(server: Any, handler: RawHandler, row: Row) -> None:
    """All that the browser gets, all notices, and that others are served afterwards."""
    with RawBrowser(server) as browser, RawBrowser(server) as other:
        browser.send(ASK)
        conn_id = handler.request().conn_id
        other.send(ASK)
        others_id = handler.request().conn_id
        for template in row.says:
            handler.send(filled(template, conn_id))
        if row.ends:
            assert browser.read_to_end() == row.gets
        else:
            # Behind all of them.
            handler.reply(conn_id, b"END")
            assert browser.read(b"END") == row.gets + b"END"
        handler.reply(others_id, b"served")
        other.read(b"served")
        for _ in range(row.told):
            notice = handler.receive()
            assert (notice.conn_id, notice.path) == (int(NOBODY), "@*")
            assert notice.headers == {"METHOD": "JSON"} and notice.body == b'{"type":"disconnect"}'
        # Nothing else was told.
        with RawBrowser(server) as last:
            last.send(ASK)
            message = handler.receive()
            assert message.path == "/"
            handler.reply(message.conn_id, b"served")
            last.read(b"served")
            handler.reply(message.conn_id, b"")
            last.read_to_end()
        # Of what a handler ends it is not told.
        for number, one in ((others_id, other), *([] if row.ends else [(conn_id, browser)])):
            handler.reply(number, b"")
            one.read_to_end()
