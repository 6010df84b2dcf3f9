"""The map of text that applications see of a request's headers."""

from __future__ import annotations

import pytest

from greentx.protocol.headers import Headers, text_headers, text_lines

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
