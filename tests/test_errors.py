"""The errors as those see them who wrote their handlers for other packages."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from free_ports import Server
from gevent import socket

from greentx import Transceiver
from greentx.errors import BindError, TransportError
from greentx.wsgi import WSGIServer

LOCAL = "127.0.0.1"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda port: WSGIServer((LOCAL, port), log=None), marks=pytest.mark.mongrel2, id="WSGIServer"),
        pytest.param(lambda port: Transceiver("a", (LOCAL, 1), (LOCAL, 2), rep_port=port), id="Transceiver"),
        pytest.param(lambda port: Server(ip=LOCAL, push_port=port), id="Server"),
    ],
)
def test_a_port_in_use_is_an_oserror(make: Callable[[int], Any]) -> None:
    """With its errno, as sockets raise it; it still says which address it is."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)) as caught:
            make(port).start()
    assert caught.value.errno == errno.EADDRINUSE
    assert isinstance(caught.value, BindError) and str(port) in str(caught.value.address)


def test_its_text_is_the_message() -> None:
    """No number in front, as an OSError of two arguments has it."""
    error = BindError("x:1 cannot be bound: in use", address="x:1", errno=errno.EADDRINUSE)
    assert (str(error), error.args) == ("x:1 cannot be bound: in use", ("x:1 cannot be bound: in use",))
    assert (error.address, error.errno) == ("x:1", errno.EADDRINUSE)
    assert isinstance(error, TransportError) and BindError("x").errno is None
