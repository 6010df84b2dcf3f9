"""Which answers open a session of Engine.IO."""

from __future__ import annotations

import gzip
import zlib

import pytest

from greentx.wsgi.sessions import claim_opened, is_of_a_session, opened_session, opens_session

OPEN = b'0{"sid":"lv_VI97HAXpY6yYWAAAC","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000}'
SID = "lv_VI97HAXpY6yYWAAAC"


@pytest.mark.parametrize(
    ("query", "opens", "is_one"),
    [
        ("EIO=4&transport=polling", True, True),
        ("EIO=4&transport=polling&t=OLPdBnB", True, True),
        ("transport=polling&EIO=3&j=0", True, True),
        ("EIO=4", True, True),
        ("EIO=4&transport=polling&sid=abc", False, True),
        ("EIO=4&transport=polling&sid=", False, True),
        ("EIO=4&transport=websocket", False, True),
        ("EIO=4&transport=websocket&sid=abc", False, True),
        ("transport=polling", False, False),
        ("xEIO=4&transport=polling", False, False),
        ("", False, False),
    ],
)
def test_the_query_says_what_is_asked_for(query, opens, is_one):
    """A session over polling is opened by a request without an id."""
    assert opens_session(query) is opens
    assert is_of_a_session(query) is is_one


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        pytest.param(OPEN, "", id="plain"),
        pytest.param(OPEN + b"\x1e40{}" * 1000, "", id="with more behind it"),
        pytest.param(b'0{"sid": "%b"}' % SID.encode(), "", id="with blanks"),
        pytest.param(b"97:" + OPEN + b"2:40", "", id="version 3"),
        pytest.param(b"\x00\x09\x07\xff" + OPEN, "", id="version 3 in bytes"),
        pytest.param(b'___eio[0]("' + OPEN.replace(b'"', b'\\"') + b'");', "", id="JSONP"),
        pytest.param(gzip.compress(OPEN + b"\x1e" + bytes(2000)), "gzip", id="gzip"),
        pytest.param(zlib.compress(OPEN + b"\x1e" + bytes(2000)), "deflate", id="deflate"),
        pytest.param(gzip.compress(OPEN + bytes(1 << 20))[:300], "gzip", id="the first block of a stream"),
    ],
)
def test_the_id_is_in_the_answer(body, coding):
    """However it is wrapped."""
    assert opened_session(body, coding) == SID


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"", ""),
        (b"Not an accepted origin.", ""),
        (b'{"message":"nothing"}', ""),
        (b'0{"sid":"%b"}' % (b"x" * 300), ""),
        (b'0{"sid":"not an id"}', ""),
        (b'you said "sid":"victim"', ""),
        (b'you said 0{"sid":"victim"}', ""),
        (b'0{"message":"","sid":"victim"}', ""),
        (bytes(2000) + OPEN, ""),
        (OPEN, "gzip"),
        (b"", "gzip"),
        (gzip.compress(bytes(1 << 26)), "gzip"),
    ],
    ids=range(12),
)
def test_other_answers_open_none(body, coding):
    """Errors, other JSON, what is not compressed as it says, and what would take much to look into."""
    assert opened_session(body, coding) is None


@pytest.mark.parametrize(
    ("headers", "body", "claims"),
    [
        ([(b"Content-Type", b"text/plain")], OPEN, [("sid", SID)]),
        ([(b"content-encoding", b"gzip")], gzip.compress(OPEN), [("sid", SID)]),
        ([], b"Not an accepted origin.", []),
    ],
    ids=["plain", "gzip", "an error"],
)
def test_what_an_answer_opens_is_claimed(headers, body, claims):
    """By the header that says how it is compressed."""
    seen = []
    claim_opened(lambda name, value: seen.append((name, value)), headers, body)
    assert seen == claims
