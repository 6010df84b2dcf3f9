"""The map of text that applications see of a request's headers."""

from __future__ import annotations

import copy
import json
import marshal
import pickle
import sys
from collections.abc import Callable
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest
import tnetstring
from hypothesis import given
from hypothesis import strategies as st

from greentx.protocol.framing import check_framing
from greentx.protocol.headers import Headers, LateHeaders, last_values, text_headers, text_lines
from greentx.protocol.packed import PackedHeaders
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request

RAW = {
    b"METHOD": b"GET",
    b"PATH": b"/a",
    b"QUERY": b"x=1&x=2&e=&p=a%20b+c",
    b"host": b"example.org",
    b"cookie": [b"a=b", b"c=\xff"],
    b"method": b"FORGED",
}


def as_text(value):
    return [one.decode("latin-1") for one in value] if isinstance(value, list) else value.decode("latin-1")


@pytest.fixture(params=["tnetstring", "json"])
def headers(request):
    """The same headers, as each of the two encodings decodes them."""
    raw = RAW if request.param == "tnetstring" else {as_text(name): as_text(value) for name, value in RAW.items()}
    return text_headers(raw)


def test_values_are_text_or_lists_of_text(headers):
    """Bytes become text as latin-1, which gives them back; repeated names have lists."""
    assert headers["host"] == "example.org"
    assert headers["cookie"] == ["a=b", "c=\xff"]
    assert headers["cookie"][1].encode("latin-1") == b"c=\xff"


def test_a_client_cannot_forge_what_the_server_set(headers):
    """The client's names are in lower case, the server's in upper case."""
    assert headers["METHOD"] == "GET"
    assert headers["method"] == "FORGED"


def test_the_query_is_there_as_dict_and_as_text(headers):
    """QUERY has the last value of each key, QUERY_STR what was sent, query every value."""
    assert headers["QUERY"] == {"x": "2", "e": "", "p": "a b c"}
    assert headers["QUERY_STR"] == "x=1&x=2&e=&p=a%20b+c"
    assert headers.query == {"x": ["1", "2"], "e": [""], "p": ["a b c"]}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({b"METHOD": b"GET", b"PATH": b"/"}, {"METHOD": "GET", "PATH": "/", "QUERY": {}, "QUERY_STR": ""}),
        ({b"PATH": b"/", b"QUERY": b""}, {"PATH": "/", "QUERY": {}, "QUERY_STR": ""}),
        ({b"QUERY": b"text=abc"}, {"QUERY": {"text": "abc"}, "QUERY_STR": "text=abc"}),
        ({b"PATH": b"/", b"QUERY": [b"a", b"b"]}, {"PATH": "/", "QUERY": {}, "QUERY_STR": ""}),
        ({b"METHOD": b"JSON"}, {"METHOD": "JSON"}),
        ({"METHOD": "JSON", "DOWNLOAD_CREDITS": "1"}, {"METHOD": "JSON", "DOWNLOAD_CREDITS": "1"}),
        ({}, {}),
    ],
)
def test_only_a_message_with_a_path_or_query_gets_the_query_names(raw, expected):
    """A notice has no PATH and stays as it is."""
    assert text_headers(raw) == expected


def test_the_query_of_a_notice_is_empty():
    """No QUERY_STR, no values."""
    assert text_headers({b"METHOD": b"JSON"}).query == {}
    assert Headers({"QUERY_STR": ["a=b"]}).query == {}


def test_the_first_value_of_a_name_is_found(headers):
    """One value, the first of several, or the default; a dict is no value."""
    assert headers.first("host") == "example.org"
    assert headers.first("cookie") == "a=b"
    assert headers.first("absent") is None
    assert headers.first("absent", "x") == "x"
    assert headers.first("QUERY", "x") == "x"
    assert Headers({"empty": []}).first("empty", "x") == "x"


def test_every_value_of_a_name_is_found(headers):
    """Always a list, and one of its own."""
    assert headers.get_all("host") == ["example.org"]
    assert headers.get_all("absent") == headers.get_all("QUERY") == []
    cookies = headers.get_all("cookie")
    cookies.append("changed")
    assert headers.get_all("cookie") == ["a=b", "c=\xff"]


def test_the_client_s_own_headers_are_listed_alone(headers):
    """One pair for each value, none that the server set."""
    assert sorted(headers.client()) == [
        ("cookie", "a=b"),
        ("cookie", "c=\xff"),
        ("host", "example.org"),
        ("method", "FORGED"),
    ]


def test_a_name_without_letters_counts_as_the_client_s():
    """No name of the server's is without letters; a dict under such a name is no value."""
    assert list(Headers({"1": "x", "2": {"a": "b"}}).client()) == [("1", "x")]


@pytest.mark.parametrize(("raw", "text"), [(1, "1"), (None, "None"), ({b"a": b"b"}, "{b'a': b'b'}")])
def test_what_is_no_string_appears_as_its_text(raw, text):
    """No Mongrel2 sends such a value, but a peer may."""
    assert text_headers({b"x": raw}) == {"x": text}
    assert text_headers({b"x": [raw]}) == {"x": [text]}
    assert text_headers({raw if not isinstance(raw, dict) else 0: b"x"})


def test_the_decoded_headers_are_not_changed():
    """The codec's map stays as the message had it."""
    raw = {b"PATH": b"/", b"cookie": [b"a", b"b"]}
    text_headers(raw)
    assert raw == {b"PATH": b"/", b"cookie": [b"a", b"b"]}


def test_one_value_and_several_are_read_alike() -> None:
    """As text, whatever the two encodings decode to, and what no Mongrel2 sends."""
    assert text_lines(None) == [] and text_lines([]) == []
    assert text_lines("a") == text_lines(b"a") == text_lines(["a"]) == text_lines([b"a"]) == ["a"]
    assert text_lines(["a", b"\xe9 ", 5]) == ["a", "\xe9 ", "5"]


QUERIES = st.text(st.sampled_from("ab=&%+;2\xe9\u20ac0F"), max_size=20) | st.text(max_size=20)


@given(QUERIES)
def test_a_query_is_read_as_the_standard_library_reads_it(query: str) -> None:
    """Escapes, blanks, empty names and values, pairs without a sign, keys that come again."""
    assert last_values(query) == dict(parse_qsl(query, keep_blank_values=True))


# -- headers that are made when they are read -------------------------------------------------------------------------

SENT = {"METHOD": "GET", "PATH": "/a", "QUERY": "x=1&y=a%20b&x=2", "VERSION": "HTTP/1.1", "host": "h", "x-odd": "\xff"}
NAMES = [*SENT, "QUERY_STR", "absent", "METH", "\u20ac", "", b"METHOD", 3, None]


def late(sent=None, protocol="tnetstring") -> Headers:
    """What an application gets of a request whose names came before."""
    message = build_request("s", 1, "/a", SENT if sent is None else sent, protocol=protocol)
    check_framing(parse_request(message), apart=False)
    headers = parse_request(message).headers
    assert isinstance(headers, LateHeaders) and type(headers) is not Headers
    return headers


def whole(sent=None) -> Headers:
    return text_headers(SENT if sent is None else sent)


def put(headers, name, value="new"):
    headers[name] = value


def delete(headers, name):
    del headers[name]


OTHER = {"METHOD": "GET", "host": "other"}

ACTIONS = {
    "[]": lambda headers, name: headers[name],
    "get": lambda headers, name: headers.get(name),
    "get, with a default": lambda headers, name: headers.get(name, "default"),
    "in": lambda headers, name: name in headers,
    "first": lambda headers, name: headers.first(name, "default"),
    "get_all": lambda headers, name: headers.get_all(name),
    "put": put,
    "put None": lambda headers, name: put(headers, name, None),
    "del": delete,
    "pop": lambda headers, name: headers.pop(name),
    "pop, with a default": lambda headers, name: headers.pop(name, 5),
    "setdefault": lambda headers, name: headers.setdefault(name, "default"),
    "update": lambda headers, name: headers.update({name: "new"}),
    "|=": lambda headers, name: headers.__ior__({name: "new"}),
    "|": lambda headers, name: headers | {name: "new"},
    "reversed |": lambda headers, name: {name: "old"} | headers,
    "dict": lambda headers, name: dict(headers),
    "**": lambda headers, name: {**headers},
    "as arguments": lambda headers, name: (lambda **all_of_them: all_of_them)(**headers),
    "into another": lambda headers, name: {}.update(headers),
    "list": lambda headers, name: list(headers),
    "reversed": lambda headers, name: list(reversed(headers)),
    "len": lambda headers, name: len(headers),
    "bool": lambda headers, name: bool(headers),
    "keys": lambda headers, name: list(headers.keys()),
    "values": lambda headers, name: list(headers.values()),
    "items": lambda headers, name: list(headers.items()),
    "client": lambda headers, name: list(headers.client()),
    "query": lambda headers, name: headers.query,
    "copy": lambda headers, name: headers.copy(),
    "copy.copy": lambda headers, name: copy.copy(headers),
    "deepcopy": lambda headers, name: copy.deepcopy(headers),
    "pickle": lambda headers, name: pickle.loads(pickle.dumps(headers)),
    "json": lambda headers, name: json.dumps({str(key): value for key, value in headers.items()}),
    "json itself": lambda headers, name: json.dumps(headers, skipkeys=True),
    "repr": lambda headers, name: repr(headers),
    "str": lambda headers, name: f"{headers} {headers!s}",
    "==": lambda headers, name: (headers == whole(), headers == {}, headers != whole(), headers != {}),
    "== to others of its kind": lambda headers, name: (headers == late(), headers != late(), late(OTHER) == headers),
    "reversed ==": lambda headers, name: (dict(whole()) == headers, dict(whole()) != headers),
    "popitem": lambda headers, name: headers.popitem(),
    "clear": lambda headers, name: headers.clear(),
    "fromkeys": lambda headers, name: list(headers.fromkeys(["a"]).items()),
    "format": lambda headers, name: "{METHOD} {host}".format_map(headers),
}


def result_of(action, headers, name):
    try:
        return ACTIONS[action](headers, name)
    except (KeyError, TypeError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
@pytest.mark.parametrize("action", ACTIONS)
def test_headers_that_are_made_late_do_what_a_whole_map_does(action: str, protocol: str) -> None:
    """Each way to use them gives the same, and leaves the same behind."""
    for name in NAMES:
        one, other = late(protocol=protocol), whole()
        if protocol == "json":
            assert list(one) == list(other)
            one = late(protocol=protocol)
        assert result_of(action, one, name) == result_of(action, other, name), name
        assert one == other and list(one) == list(other) and len(one) == len(other)


@given(
    st.dictionaries(st.sampled_from(["PATH", "QUERY", "x-odd", "b"]), st.text(st.characters(max_codepoint=255))),
    st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.sampled_from(NAMES)), max_size=6),
    st.sampled_from(["tnetstring", "json"]),
)
def test_headers_that_are_made_late_stay_a_whole_map_in_any_order_of_use(sent, actions, protocol) -> None:
    """What was read, set or taken out before makes no difference."""
    sent = {"METHOD": "GET", **sent, "host": "h"}
    one, other = late(sent, protocol), whole(sent)
    for action, name in actions:
        assert result_of(action, one, name) == result_of(action, other, name)
    assert one == other and list(one) == list(other)


def test_an_encoder_that_reads_past_the_methods_of_a_dict_fails_and_loses_nothing() -> None:
    """msgspec does so, in C: it raises where it would leave headers out, and takes them as a plain dict."""
    headers = late()
    with pytest.raises(TypeError):
        msgspec.json.encode(headers)
    assert json.loads(msgspec.json.encode(dict(headers))) == dict(whole())
    # By now all were read.
    assert json.loads(msgspec.json.encode(headers)) == dict(whole())


@pytest.mark.parametrize("value", [1, 2.5, None, True, {b"a": b"b"}])
def test_headers_that_are_no_text_are_made_late_as_at_once(value: object) -> None:
    """A peer may send what no Mongrel2 sends: each value is shown as its text."""
    for name in ("x-odd", "QUERY", "host"):
        raw = {b"METHOD": b"GET", b"PATH": b"/", name.encode(): value}
        for names in (["x-odd"], ["QUERY"], ["QUERY_STR", "host"]):
            headers = LateHeaders(raw, "GET")
            assert [headers.get(one) for one in names] == [text_headers(raw).get(one) for one in names]
            assert headers == text_headers(raw)


def test_the_method_of_an_event_is_the_one_in_its_headers() -> None:
    """Whatever was sent, before and after the headers were read."""
    for touched in (False, True):
        message = build_request("s", 1, "/a", SENT)
        check_framing(parse_request(message), apart=False)
        request = parse_request(message)
        assert not touched or request.headers["METHOD"] == "GET"
        request.become("WEBSOCKET_CONNECT")
        assert request.headers["METHOD"] == dict(request.headers)["METHOD"] == "WEBSOCKET_CONNECT"
        assert request.header("METHOD") == "GET"
        assert request.headers is request.headers


def test_a_name_that_is_a_number_is_not_taken_for_another() -> None:
    """Its text may be that of a name that is there, too: such headers are made at once, also when they come again."""
    for _ in range(2):
        request = Request("s", "1", "/", {b"METHOD": b"GET", b"host": b"h", 3: b"number"})
        check_framing(request, apart=False)
        parsed = parse_request(b"s 1 / %b0:," % tnetstring.dumps({**request.raw, b"3": b"text"}))
        assert parsed.headers == text_headers(parsed.raw) and not parsed.plain


def test_packed_headers_are_unpacked_once_for_all_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a WebSocket's handshake, which live as long as it: not for each name anew."""
    message = build_request("s", 1, "/a", SENT)
    check_framing(parse_request(message), apart=False)
    request = parse_request(message)
    assert request.plain
    request.replace_headers(PackedHeaders(request.raw))
    unpack, unpacked = marshal.loads, []
    monkeypatch.setattr(marshal, "loads", lambda data: unpacked.append(1) or unpack(data))
    headers = request.headers
    assert [headers.get(name) for name in ("host", "absent", "x-odd")] == ["h", None, "\xff"]
    assert headers == whole() and len(unpacked) == 1


# -- headers that several native threads read -------------------------------------------------------------------------


def in_a_thread(work: Callable[[], object]) -> Any:
    """What *work* returns in another native thread."""
    results: list[object] = []
    thread = Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(20)
    return results[0]


class Looked(dict[Any, Any]):
    """Decoded headers that call somebody each time that they are read."""

    called: Callable[[], object] | None = None

    def call(self) -> None:
        called, self.called = self.called, None
        if called:
            called()

    def items(self) -> Any:
        self.call()
        return super().items()

    def get(self, name: Any, default: Any = None) -> Any:
        self.call()
        return super().get(name, default)


def looked() -> tuple[Looked, LateHeaders]:
    raw = Looked({name.encode(): value.encode("latin-1") for name, value in SENT.items()})
    return raw, LateHeaders(raw, "GET")


READERS: dict[str, Callable[[Headers], object]] = {
    "get": lambda headers: headers.get("host"),
    "[]": lambda headers: headers["host"],
    "in": lambda headers: "x-odd" in headers,
    "query": lambda headers: (headers["QUERY_STR"], headers["QUERY"]),
    "set before": lambda headers: headers.get("new"),
    "absent": lambda headers: headers.get("absent", "default"),
    "len": len,
    "list": list,
    "dict": dict,
    "==": lambda headers: headers == {**whole(), "new": "value"},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("other", ["len", "get"])
def test_a_thread_finds_all_while_another_one_reads(reader: str, other: str) -> None:
    """All headers, or one, whatever the other one is at: nothing is missing, and the order is the one of arrival."""
    raw, headers = looked()
    headers["new"] = "value"
    expected = whole()
    expected["new"] = "value"
    found: list[object] = []
    raw.called = lambda: found.append(in_a_thread(lambda: READERS[reader](headers)))
    READERS[other](headers)
    assert found == [READERS[reader](expected)]
    assert headers == expected and list(headers) == list(expected)


def test_what_a_thread_sets_while_another_one_reads_stays() -> None:
    """It is not written over with what was sent."""
    for reader in ("get", "len"):
        raw, headers = looked()
        raw.called = lambda headers=headers: in_a_thread(lambda: headers.update(host="new"))
        READERS[reader](headers)
        assert headers["host"] == dict(headers)["host"] == "new"


def test_an_error_while_headers_are_read_loses_none() -> None:
    """As a timeout that is raised in between: they are read the next time."""
    raw, headers = looked()

    def fail() -> None:
        raise TimeoutError

    raw.called = fail
    with pytest.raises(TimeoutError):
        len(headers)
    assert headers.get("host") == "h" and headers == whole()


def test_threads_that_read_the_same_headers_all_find_all() -> None:
    """Many times over, with threads that take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            headers = looked()[1]
            headers["new"] = "value"
            found: list[object] = []
            work = [
                lambda headers=headers: len(dict(headers)),
                lambda headers=headers: [headers.get(name) for name in ("host", "new", "x-odd")],
            ]
            threads = [
                Thread(target=lambda one=one, found=found: found.append(one()), daemon=True) for one in (*work, *work)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert found.count(len(SENT) + 2) == 2 and found.count(["h", "value", "\xff"]) == 2
            assert list(headers) == [*whole(), "new"]
    finally:
        sys.setswitchinterval(interval)
