"""The control socket: how another process asks this one to add or remove a connection set, to prove one, to report.

Requests and answers are those of mongrel2-transceiver 0.3.0, so that either side may be the old package. They are
commands on this socket only; a web request to the same path is an ordinary request.

=============================================  ==================================================================
request                                        answer
=============================================  ==================================================================
``PING``, in any case                          ``PONG``
``STATUS``, in any case                        JSON: version, pid, counts, each connection set
request message, path ``/__add_connection__``  ``RECEIVED``; that sender's PUSH is pulled, its SUB published to
request message, ``/__remove_connection__``    ``RECEIVED``; they are no more
request message, ``/__ping__``                 ``RECEIVED``; the text of its QUERY goes to conn id -1 over that PUB
request message, ``/__disconnect_ping__``      ``RECEIVED``, and nothing over the PUB
anything else, or what fails                   ``ERROR <why>``
=============================================  ==================================================================

The first two messages have METHOD ``JSON``, the last two ``MONGREL2``; the conn id is -1.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol
from urllib.parse import parse_qs

from .errors import ControlError, GreentxError
from .transport import Context, Replier
from .wire import CONTROL_ID, Request, parse_request

__all__ = ["ADD_CONNECTION", "DISCONNECT_PING", "PING", "REMOVE_CONNECTION", "Control"]

log = logging.getLogger("greentx.control")

ADD_CONNECTION = "/__add_connection__"
REMOVE_CONNECTION = "/__remove_connection__"
PING = "/__ping__"
DISCONNECT_PING = "/__disconnect_ping__"

RECEIVED = b"RECEIVED"

#: Which METHOD each command comes with.
_METHODS = {ADD_CONNECTION: "JSON", REMOVE_CONNECTION: "JSON", PING: "MONGREL2", DISCONNECT_PING: "MONGREL2"}


class Controlled(Protocol):
    """What the commands act on; a Transceiver."""

    def add_connection(self, sender: str, push_addr: Any, sub_addr: Any, *, replace: bool = False) -> object: ...
    def remove_connection(self, sender: str) -> object: ...
    def prove(self, sender: str, text: str) -> None: ...
    def status(self) -> dict[str, Any]: ...


class Control:
    """Answers commands on a REP socket, in a greenlet of its own.

    Args:
        context: Owner of the socket.
        endpoint: Where to bind it.
        target: What the commands act on.

    Raises:
        BindError: The address is in use, or not ours.
    """

    def __init__(self, context: Context, endpoint: str, target: Controlled) -> None:
        self._target = target
        self._replier = Replier(context, endpoint, self._answer, name="control")
        self.endpoint = self._replier.endpoint

    def start(self) -> None:
        """Start answering."""
        self._replier.start()

    def stop(self) -> None:
        """Stop answering and close the socket; safe to call twice."""
        self._replier.stop()

    def _answer(self, message: bytes) -> bytes:
        word = message.strip().upper()
        if word == b"PING":
            return b"PONG"
        if word == b"STATUS":
            return json.dumps(self._target.status()).encode()
        try:
            self._obey(parse_request(message))
        except (GreentxError, ValueError, KeyError) as error:
            why = error.args[0] if isinstance(error, KeyError) else error  # str() of a KeyError has quotes around it
            log.warning("command refused: %s", why)
            return f"ERROR {why}".encode(errors="backslashreplace")
        return RECEIVED

    def _obey(self, request: Request) -> None:
        path, sender = request.path, request.sender
        method = _METHODS.get(path)
        if method is None:
            raise ControlError(f"no command {path!r}: there are PING, STATUS, {', '.join(_METHODS)}")
        if (request.method, request.conn_id) != (method, CONTROL_ID):
            raise ControlError(
                f"{path} comes with METHOD {method} and conn_id {CONTROL_ID}, "
                f"not {request.method!r} and {request.conn_id}"
            )
        if path == ADD_CONNECTION:
            push, sub = _addresses(request)
            # A server that was started again asks again, maybe with new ports: the newest word counts.
            self._target.add_connection(sender, push, sub, replace=True)
        elif path == REMOVE_CONNECTION:
            self._target.remove_connection(sender)
        elif path == PING:
            self._target.prove(sender, _text(request))


def _addresses(request: Request) -> tuple[tuple[str, int], tuple[str, int]]:
    data = request.data
    found = []
    for name in ("push", "sub"):
        address = data.get(name) if isinstance(data, dict) else None
        if not (isinstance(address, list) and len(address) == 2):
            raise ControlError(f'{request.path} needs a body {{"push": [ip, port], "sub": [ip, port]}}: no {name!r}')
        host, port = address
        if isinstance(port, str) and port.isdecimal():
            port = int(port)
        if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
            raise ControlError(f"{name!r} is [ip, port], not {address!r}")
        found.append((host, port))
    return found[0], found[1]


def _text(request: Request) -> str:
    query = request.header("QUERY")
    values = parse_qs(query).get("text") if isinstance(query, str) else None
    if not values:
        raise ControlError(f"{request.path} needs QUERY text=<guid>")
    return values[-1]
