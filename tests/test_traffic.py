"""What the benchmarks send: each request different, the same in each run, and written as Mongrel2 writes it."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest
import tnetstring
import zmq

import greentx
from greentx import Request
from greentx.edge import Handler, Mongrel2

BENCHMARKS = Path(greentx.__file__).parents[1] / "benchmarks"
OWN = ["REMOTE_ADDR", "METHOD", "URL_SCHEME", "PATTERN", "QUERY", "URI", "VERSION", "PATH"]


@pytest.fixture(scope="module")
def traffic():
    """The module, which the programs beside it import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import _traffic
    return _traffic


def raw_headers(message):
    """Return the headers of a message by name, in the order in which they were written."""
    rest = message.split(b" ", 3)[3]
    size, _, data = rest.partition(b":")
    if data[int(size) : int(size) + 1] == b",":
        found = json.loads(data[: int(size)])
    else:
        found = {}
        data = data[: int(size)]
        while data:
            name, data = tnetstring.pop(data)
            value, data = tnetstring.pop(data)
            found[name.decode()] = [one.decode() for one in value] if isinstance(value, list) else value.decode()
    return found


def test_each_request_is_different(traffic):
    """Path, query, cookie, user agent and request id; one in eight with a body, one in eight with a repeated header."""
    found = traffic.requests()
    assert len(found) >= 16384
    parts = [one.target.partition("?") for one in found]
    headers = [one.headers() for one in found]
    assert len({path for path, _, _ in parts}) == len({query for _, _, query in parts}) == len(found)
    for name in ("cookie", "user-agent", "x-request-id"):
        assert len({str(one[name]) for one in headers}) == len(found), name
    bodies = [one.body for one in found if one.body]
    assert len(bodies) == len(found) / 8
    assert max(map(len, bodies)) > 100 * min(map(len, bodies))
    assert sum(list in map(type, one.values()) for one in headers) == len(found) / 8


def test_each_run_has_the_same_requests(traffic):
    """They are made from a seed, and another seed makes others."""
    assert traffic.requests(count=50) == traffic.requests(count=60)[:50]
    assert traffic.requests(count=50) != traffic.requests(count=50, seed=1)


def test_same_traffic_is_one_request_from_many_connections(traffic):
    """As often as there are connections, so that no client pipelines."""
    found = [Request.parse(one) for one in traffic.messages("same", "test", 10)]
    assert [one.conn_id for one in found] == [str(number) for number in range(1, 11)]
    assert len({(one.path, str(dict(one.headers))) for one in found}) == 1


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_a_message_says_what_the_text_says(traffic, protocol):
    """Whoever measures with messages and whoever measures with HTTP measures the same."""
    for one in traffic.requests(count=64):
        head, _, body = one.raw().partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        parsed = Request.parse(one.message("test", 7, protocol))
        assert line == f"{parsed.method} {parsed.headers['URI']} HTTP/1.1"
        assert (parsed.conn_id, parsed.body) == ("7", body)
        assert parsed.header("content-length") == (str(len(body)) if body else None)
        for name, _, value in (field.partition(": ") for field in lines):
            if name.lower() != "x-forwarded-for":
                assert value in parsed.headers.get_all(name.lower())


@pytest.mark.mongrel2
@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_a_message_is_what_mongrel2_makes_of_the_text(traffic, protocol):
    """But for the order of the client's headers, and for the addresses of clients, which all are here."""
    context = zmq.Context()
    try:
        with Mongrel2({"/": Handler("test", protocol=protocol)}) as mongrel2:
            pull = context.socket(zmq.PULL)
            pull.linger, pull.rcvtimeo = 0, 20000
            pull.connect(str(mongrel2.handlers[0].send_spec))
            with socket.create_connection(("127.0.0.1", mongrel2.port), 20) as browser:
                for one in traffic.requests(count=64):
                    browser.sendall(one.raw())
                    theirs = pull.recv()
                    ours = dataclasses.replace(one, address="127.0.0.1").message("test", 1, protocol)
                    found, expected = raw_headers(theirs), raw_headers(ours)
                    assert found == expected
                    assert [name for name in found if name in OWN] == [name for name in expected if name in OWN]
                    assert theirs.split(b" ")[:3] == ours.split(b" ")[:3]
                    assert Request.parse(theirs).body == one.body
    finally:
        context.destroy(0)


def test_the_server_s_own_headers_are_first(traffic):
    """In Mongrel2's order, in front of what the client sent."""
    (message,) = traffic.messages("varied", "test", 1, count=1)
    assert list(raw_headers(message))[: len(OWN)] == OWN


def test_requests_are_written_to_a_file_for_other_programs(traffic, tmp_path):
    """Each behind its length, so that a body can be anything."""
    found = traffic.requests(count=20)
    traffic.write_raw(tmp_path / "requests", found)
    data = (tmp_path / "requests").read_bytes()
    for one in found:
        size, _, data = data.partition(b"\n")
        assert data[: int(size)] == one.raw()
        data = data[int(size) :]
    assert data == b""


def test_a_handshake_has_nothing_that_a_handshake_makes_itself(traffic):
    """Nor what belongs to a body."""
    for one in traffic.requests(count=64):
        headers = one.handshake_headers()
        assert {"cookie", "user-agent"} <= headers.keys()
        assert not {"host", "connection", "upgrade", "content-length", "content-type"} & headers.keys()


@pytest.mark.parametrize("size", [16, 100, 5000])
def test_texts_differ_and_have_about_the_size(traffic, size):
    """Exactly the size where that is asked for; with the same traffic it is one."""
    found = traffic.texts("varied", size, 200)
    assert len(set(found)) == 200
    assert {len(one) for one in traffic.texts("varied", size, 200, exact=True)} == {size}
    assert size // 2 <= min(map(len, found)) < max(map(len, found)) <= size + size // 2
    assert [len(one) for one in traffic.texts("same", size, 200)] == [size]
    assert all(one.isascii() for one in found)
