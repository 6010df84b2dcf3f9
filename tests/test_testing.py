"""The fixtures for the tests of applications, used as such a test uses them."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import gevent
import pytest

import greentx
from greentx import Transceiver
from greentx.edge import Handler
from greentx.protocol.websocket.frames import Frame, Opcode

pytest_plugins = ("greentx.testing", "pytester")


def application(conn, req):
    """Answer with the path."""
    conn.reply_http(req, f"you asked for {req.path}")


def echo(ws):
    """Answer messages with themselves."""
    for message in ws:
        ws.send(message)


def test_a_handler_is_tested_without_mongrel2(transceiver, server):
    """As the module's docstring shows it."""
    gevent.spawn(transceiver.serve, application)
    client = server.client("http")
    client.send("/some")
    response = client.recv()
    assert (response.status, response.body) == (200, b"you asked for /some")


def test_a_websocket_handler_is_tested_without_mongrel2(transceiver, server):
    """The client speaks WebSocket."""
    gevent.spawn(transceiver.serve, websocket=echo)
    with server.client("websocket") as client:
        client.handshake("/")
        client.send("hello")
        assert client.recv() == Frame(b"hello", Opcode.TEXT)


def test_events_are_received_in_the_test_itself(transceiver, server):
    """No greenlet is needed for recv."""
    client = server.client("http")
    client.send("/a?x=1")
    for sid, conn, req in transceiver.recv(timeout=5):
        assert sid == (server.sender, client.conn_id)
        conn.reply_json(req, req.query) if req.method == "JSON" else conn.reply_http(req, str(req.query))
        break
    assert client.recv().body == b"{'x': ['1']}"


@pytest.mark.mongrel2
def test_the_same_handler_is_tested_behind_mongrel2(transceiver, server, mongrel2):
    """Both fronts at once."""
    gevent.spawn(transceiver.serve, application)
    body = gevent.get_hub().threadpool.apply(lambda: urllib.request.urlopen(mongrel2.url + "real").read())
    assert body == b"you asked for /real"
    client = server.client("http")
    client.send("/pretended")
    assert client.recv().body == b"you asked for /pretended"


def test_the_same_handler_is_tested_behind_the_embedded_front_end(transceiver, server, edge):
    """Nothing else has to be installed for it."""
    gevent.spawn(transceiver.serve, application)
    body = gevent.get_hub().threadpool.apply(lambda: urllib.request.urlopen(edge.url + "real").read())
    assert body == b"you asked for /real"
    client = server.client("http")
    client.send("/pretended")
    assert client.recv().body == b"you asked for /pretended"


class TestOptions:
    """The arguments of the fixtures, for the tests of one class."""

    @pytest.fixture
    def server_options(self):
        """JSON headers, and a name."""
        return {"sender": "my-server", "encoding": "json"}

    @pytest.fixture
    def transceiver_options(self):
        """A subprotocol."""
        return {"subprotocols": ["chat"], "ping_timeout": 5}

    @pytest.fixture
    def mongrel2_options(self):
        """Two routes, two entries."""
        return {"routes": {"/": Handler("one"), "/two": Handler("two", protocol="json")}}

    @pytest.fixture
    def edge_options(self):
        """One route, one entry."""
        return {"routes": {"/one": Handler("three", protocol="json")}}

    def test_options_reach_their_objects(self, transceiver, server):
        """They are keyword arguments."""
        assert isinstance(transceiver, Transceiver)
        assert (server.sender, server.encoding, transceiver.sender) == ("my-server", "json", "my-server")
        gevent.spawn(transceiver.serve, websocket=echo)
        client = server.client("websocket")
        client.handshake("/", subprotocols=["chat"])
        assert client.subprotocol == "chat"

    def test_the_embedded_front_end_has_its_routes(self, transceiver, edge):
        """They lead to the one transceiver."""
        gevent.spawn(transceiver.serve, application)
        body = gevent.get_hub().threadpool.apply(lambda: urllib.request.urlopen(edge.url + "one").read())
        assert body == b"you asked for /one"
        assert [handler.sender for handler in edge.handlers] == ["three"]

    @pytest.mark.mongrel2
    def test_every_entry_of_mongrel2_is_served(self, transceiver, mongrel2):
        """Its routes lead to the one transceiver."""
        gevent.spawn(transceiver.serve, application)
        for path in ("/", "/two"):
            url = mongrel2.url.rstrip("/") + path
            body = gevent.get_hub().threadpool.apply(lambda url=url: urllib.request.urlopen(url).read())
            assert body == f"you asked for {path}".encode()


def test_a_missing_mongrel2_fails_unless_that_is_meant(pytester, monkeypatch):
    """No test is skipped silently."""
    pytester.makeconftest('pytest_plugins = "greentx.testing"')
    pytester.makepyfile("def test_it(mongrel2): pass")
    monkeypatch.setenv("PYTHONPATH", str(Path(greentx.__file__).parents[1]))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("GREENTX_WITHOUT_MONGREL2", raising=False)
    failed = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    failed.assert_outcomes(errors=1)
    failed.stdout.fnmatch_lines(["*mongrel2*GREENTX_WITHOUT_MONGREL2=1*"])
    monkeypatch.setenv("GREENTX_WITHOUT_MONGREL2", "1")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(skipped=1)
