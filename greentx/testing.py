"""Fixtures for the tests of an application: ``pytest_plugins = "greentx.testing"`` in its ``conftest.py``.

A handler is tested through the wire, without a Mongrel2 and without fixed ports::

    def test_hello(transceiver, server):
        gevent.spawn(transceiver.serve, application)
        client = server.client("http")
        client.send("/")
        assert client.recv().body == b"hello"

``transceiver`` is running and connected to ``server``, a stand-in for Mongrel2; its end also ends ``serve`` and
``recv``. A test that asks for ``mongrel2`` too has a real one in front of the same ``transceiver``, at
``mongrel2.url``; one that asks for ``edge`` has the embedded front end there, at ``edge.url``, which is part of the
same process and needs nothing but the extra ``edge``. Their arguments are the fixtures ``transceiver_options``,
``server_options``, ``mongrel2_options`` and ``edge_options``, dicts which a ``conftest.py``, a module or a class may
define anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .edge import Handler, Mongrel2
from .errors import Mongrel2NotFound
from .handler.transceiver import Transceiver
from .standin.server import Server

if TYPE_CHECKING:
    from .edge import Edge

__all__ = [
    "edge",
    "edge_options",
    "mongrel2",
    "mongrel2_options",
    "server",
    "server_options",
    "transceiver",
    "transceiver_options",
]

# Seconds for a connection within this machine to stand; met in milliseconds, unless the machine is very busy.
_READY_SECONDS = 10.0

# Other senders than the stand-in's: all are in front of one Transceiver, which tells servers apart by them.
_MONGREL2_SENDER = "mongrel2"
_EDGE_SENDER = "edge"


@pytest.fixture
def server_options() -> dict[str, Any]:
    """Keyword arguments for :class:`~greentx.Server`; none by default."""
    return {}


@pytest.fixture
def transceiver_options() -> dict[str, Any]:
    """Keyword arguments for :class:`~greentx.Transceiver`; none by default."""
    return {}


@pytest.fixture
def mongrel2_options() -> dict[str, Any]:
    """Keyword arguments for :class:`~greentx.edge.Mongrel2`; none by default.

    Of its ``routes``, each handler entry is connected to the Transceiver; the default is one entry for ``/``.
    """
    return {}


@pytest.fixture
def server(server_options: dict[str, Any]) -> Iterator[Server]:
    """A started :class:`~greentx.Server` on free ports of 127.0.0.1, stopped after the test."""
    # 127.0.0.1 and not the default route's interface: tests run on machines without a network, and in parallel.
    with Server(**{"ip": "127.0.0.1", "push_port": 0, "sub_port": 0, **server_options}) as one:
        yield one


@pytest.fixture
def transceiver(server: Server, transceiver_options: dict[str, Any]) -> Iterator[Transceiver]:
    """A running :class:`~greentx.Transceiver` that serves ``server``; its control socket is on a free local port."""
    # Its own options go last, so that a test may replace each of ours.
    with Transceiver(
        server.sender,
        (server.ip, server.push_port),
        (server.ip, server.sub_port),
        **{"rep_port": 0, "rep_ip": "127.0.0.1", "connect_timeout": _READY_SECONDS, **transceiver_options},
    ) as one:
        yield one


@pytest.fixture
def mongrel2(transceiver: Transceiver, mongrel2_options: dict[str, Any]) -> Iterator[Mongrel2]:
    """A real, started ``mongrel2`` in front of ``transceiver``, on a free port.

    It never skips silently, and nothing else takes its place: where it is not installed the test fails, unless
    ``GREENTX_WITHOUT_MONGREL2=1`` says that this is meant.
    """
    real = Mongrel2(**{"routes": {"/": Handler(_MONGREL2_SENDER)}, **mongrel2_options})
    try:
        real.start()
    # A skipped test is one that nobody misses: what is not installed has to be said to be missing on purpose.
    except Mongrel2NotFound as error:
        if os.environ.get("GREENTX_WITHOUT_MONGREL2") == "1":
            pytest.skip("no mongrel2, and GREENTX_WITHOUT_MONGREL2=1 is set")
        pytest.fail(f"{error} (or set GREENTX_WITHOUT_MONGREL2=1 to go without)", pytrace=False)
    try:
        _serve(transceiver, real.handlers)
        yield real
    finally:
        real.stop()


@pytest.fixture
def edge_options() -> dict[str, Any]:
    """Keyword arguments for :class:`~greentx.edge.Edge`; none by default. ``routes`` as for ``mongrel2_options``."""
    return {}


@pytest.fixture
def edge(transceiver: Transceiver, edge_options: dict[str, Any]) -> Iterator[Edge]:
    """A started :class:`~greentx.edge.Edge` in front of ``transceiver``, on a free port.

    Where httptools is not installed the test fails, with what to install.
    """
    # Not at the top: what it is made of comes with an extra.
    from .edge import Edge

    with Edge(**{"routes": {"/": Handler(_EDGE_SENDER)}, **edge_options}) as front_end:
        try:
            _serve(transceiver, front_end.handlers)
            yield front_end
        finally:
            front_end.stop(0)


def _serve(transceiver: Transceiver, handlers: tuple[Handler, ...]) -> None:
    for handler in handlers:
        # Known once it was started: endpoints that were left open are chosen then.
        assert handler.send_spec is not None and handler.recv_spec is not None
        transceiver.add_connection(handler.sender, handler.send_spec, handler.recv_spec)
    # A server pushes from its start on, but hears replies only once its SUB is connected.
    transceiver.wait_ready(_READY_SECONDS)
