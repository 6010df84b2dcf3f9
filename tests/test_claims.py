"""Which Node has which session of an application's."""

from __future__ import annotations

import pytest

from greentx.errors import LocalProtocolError, RemoteProtocolError
from greentx.relay.claims import CLAIM_BYTES, MAX_KEY, Claims, OwnClaims, StickyNames, make_key, parse_key

KEYS = [
    pytest.param("sid", "AbC_-12", b"sid=AbC_-12", id="as Engine.IO makes them"),
    pytest.param("sid", "a b&c=d", b"sid=a%20b%26c%3Dd", id="what a query would encode"),
    pytest.param("sid", b"\xff\n", b"sid=%FF%0A", id="bytes"),
    pytest.param("user id", "\u00e9", b"user%20id=%C3%A9", id="text"),
]


@pytest.mark.parametrize(("name", "value", "key"), KEYS)
def test_a_key_is_one_word(name, value, key):
    """And comes through the wire as it was."""
    assert make_key(name, value) == key
    assert parse_key(key) == key


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("sid", ""), ("sid", "x" * MAX_KEY), ("sid", "\n" * 400)])
def test_what_names_no_session_is_refused(name, value):
    """Empty, or too long."""
    with pytest.raises(LocalProtocolError):
        make_key(name, value)


@pytest.mark.parametrize(
    "word", [b"", b"sid", b"sid=", b"=x", b"sid=a=b", b"sid=a b", b"sid=\xff", b"a=" + b"x" * MAX_KEY]
)
def test_a_word_that_is_no_key_is_refused(word):
    """Whatever a Node sends."""
    with pytest.raises(RemoteProtocolError, match="claims no session"):
        parse_key(word)


QUERIES = [
    pytest.param(b"EIO=4&transport=polling&t=O1&sid=AbC", [b"sid=AbC"], id="Engine.IO's"),
    pytest.param(b"sid=AbC", [b"sid=AbC"], id="alone"),
    pytest.param(b"sid=A&sid=B", [b"sid=A"], id="the first of several counts"),
    pytest.param(b"sid=a%20b", [b"sid=a%20b"], id="percent-encoded"),
    pytest.param(b"sid=a+b", [b"sid=a%20b"], id="another spelling of the same"),
    pytest.param(b"sid=%41", [b"sid=A"], id="encoded without need"),
    pytest.param(b"sid=%zz", [b"sid=%25zz"], id="encoded badly"),
    pytest.param(b"room=r&sid=s", [b"sid=s", b"room=r"], id="several names, in our order"),
    pytest.param(b"", [], id="empty"),
    pytest.param(b"xsid=1&side=2&t=sid=3", [], id="names that only look like it"),
    pytest.param(b"sid=", [], id="no value"),
    pytest.param(b"sid=" + b"x" * MAX_KEY, [], id="too long"),
    pytest.param(b"sid=" + b"\n" * 400, [], id="too long once it is encoded"),
    pytest.param(b"&&sid=a&&", [b"sid=a"], id="empty pairs"),
    pytest.param(b"sid=\xff", [b"sid=%FF"], id="bytes that no query has"),
]


@pytest.mark.parametrize(("query", "keys"), QUERIES)
def test_a_query_says_which_session_it_belongs_to(query, keys):
    """By the names that the relay was told, and no other."""
    names = StickyNames(["sid", "room"])
    assert names.keys_of(query) == keys
    assert [parse_key(key) for key in keys] == keys
    assert all(names.has(key) for key in keys) and not names.has(b"side=1")
    for known in (names, StickyNames(["sid"])):
        assert known.occur_in(b"3 /x %b," % query) or not known.keys_of(query)


def test_a_relay_may_know_no_names():
    """Then no query says anything."""
    assert StickyNames(["sid"]) and not StickyNames()
    assert StickyNames().keys_of(b"sid=1") == []
    assert not StickyNames().occur_in(b"sid=1") and not StickyNames(["sid"]).occur_in(b"id=1")


@pytest.mark.parametrize("names", ["sid", [""], ["x" * MAX_KEY]])
def test_names_that_no_query_has_are_refused(names):
    """A str is not a list of names."""
    with pytest.raises(LocalProtocolError):
        StickyNames(names)


def test_a_session_belongs_to_the_node_that_claimed_it():
    """Until another one claims it, or that one has gone."""
    claims: Claims[str] = Claims()
    claims.add(b"sid=1", "one")
    claims.add(b"sid=2", "one")
    claims.add(b"sid=3", "two")
    assert [claims.owner(b"sid=%d" % number) for number in range(5)] == [None, "one", "one", "two", None]
    claims.add(b"sid=2", "two")
    assert claims.owner(b"sid=2") == "two" and len(claims) == 3
    claims.forget("one")
    assert claims.owner(b"sid=1") is None and claims.owner(b"sid=2") == "two"
    claims.forget("two")
    claims.forget("nobody")
    assert len(claims) == 0
    claims.add(b"sid=1", "one")
    assert claims.owner(b"sid=1") == "one"


def test_a_node_keeps_so_many_claims_and_no_more():
    """What was used longest ago goes first; other Nodes lose nothing."""
    claims: Claims[str] = Claims(max_claims=3)
    claims.add(b"sid=other", "two")
    for number in range(3):
        claims.add(b"sid=%d" % number, "one")
    assert claims.owner(b"sid=0") == "one"
    claims.add(b"sid=3", "one")
    claims.add(b"sid=3", "one")
    assert [claims.owner(b"sid=%d" % number) for number in range(4)] == ["one", None, "one", "one"]
    assert claims.owner(b"sid=other") == "two"
    assert claims.dropped == 1


def test_the_bytes_of_a_nodes_claims_are_bounded():
    """Counted with what each of them costs next to its key."""
    claims: Claims[str] = Claims(max_bytes=4 * (CLAIM_BYTES + 10))
    for number in range(100):
        claims.add(b"sid=%06d" % number, "one")
    assert len(claims) == 4 and claims.dropped == 96
    claims.add(b"sid=" + b"x" * 500, "one")
    assert len(claims) == 2
    claims.forget("one")
    assert len(claims) == 0


def test_a_node_tells_its_claims_again():
    """In messages of a bounded size, and no more than a relay keeps."""
    own = OwnClaims(max_claims=1200)
    for number in range(1300):
        own.add(b"sid=%d" % number)
    own.add(b"sid=100")
    heads = list(own.heads())
    assert len(own) == 1200 and [head.count(b" ") for head in heads] == [500, 500, 200]
    keys = [key for head in heads for key in head.split(b" ")[1:]]
    assert keys == [b"sid=%d" % number for number in range(101, 1300)] + [b"sid=100"]
    assert {head.split(b" ")[0] for head in heads} == {b"claims"}


def test_the_bytes_of_what_a_node_tells_again_are_bounded():
    """As at the relay."""
    own = OwnClaims(max_bytes=4 * (CLAIM_BYTES + 10))
    for number in range(100):
        own.add(b"sid=%06d" % number)
    assert len(own) == 4
    assert list(OwnClaims().heads()) == []
