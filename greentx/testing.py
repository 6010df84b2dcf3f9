"""Fixtures for the tests of an application: ``pytest_plugins = "greentx.testing"`` in its ``conftest.py``.

A handler is tested through the wire, without a Mongrel2 and without fixed ports::

    def test_hello(transceiver, server):
        gevent.spawn(transceiver.serve, application)
        client = server.client("http")
        client.send("/")
        assert client.recv().body == b"hello"

``transceiver`` is running and connected to ``server``, a stand-in for Mongrel2; its end also ends ``serve`` and
``recv``. A test that asks for ``mongrel2`` too has a real one in front of the same ``transceiver``, at
``mongrel2.url``. Their arguments are the fixtures ``transceiver_options``, ``server_options`` and ``mongrel2_options``,
dicts which a ``conftest.py``, a module or a class may define anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from .edge import Handler, Mongrel2
from .errors import Mongrel2NotFound
from .handler.transceiver import Transceiver
from .standin.server import Server

__all__ = [
    "mongrel2",
    "mongrel2_options",
    "server",
    "server_options",
    "transceiver",
    "transceiver_options",
]

# Seconds for a connection within this machine to stand; met in milliseconds, unless the machine is very busy.
_READY_SECONDS = 10.0

_MONGREL2_SENDER = "mongrel2"


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
    """A real, started ``mongrel2`` in front of ``transceiver``, on a free port. It never skips silently.

    Where it is not installed the test fails, unless ``GREENTX_WITHOUT_MONGREL2=1`` says that this is meant.
    """
    # Another sender than the stand-in's: both are in front of one Transceiver, which tells servers apart by it.
    real = Mongrel2(**{"routes": {"/": Handler(_MONGREL2_SENDER)}, **mongrel2_options})
    try:
        real.start()
    # A skipped test is one that nobody misses: what is not installed has to be said to be missing on purpose.
    except Mongrel2NotFound as error:
        if os.environ.get("GREENTX_WITHOUT_MONGREL2") == "1":
            pytest.skip("no mongrel2, and GREENTX_WITHOUT_MONGREL2=1 is set")
        pytest.fail(f"{error} (or set GREENTX_WITHOUT_MONGREL2=1 to go without)", pytrace=False)
    try:
        for handler in real.handlers:
            assert handler.send_spec is not None and handler.recv_spec is not None
            # Known once it was started: endpoints that were left open are chosen then.
            transceiver.add_connection(handler.sender, handler.send_spec, handler.recv_spec)
        # Mongrel2 pushes from its start on, but hears replies only once its SUB is connected.
        transceiver.wait_ready(_READY_SECONDS)
        yield real
    finally:
        real.stop()
