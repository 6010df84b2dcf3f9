"""The control socket: how another process asks this one to add or remove a connection set, to prove one, to report.

Requests and answers are those of mongrel2-transceiver 0.3.0, so that either side may be the old package. They are
commands on this socket only; a web request to the same path is an ordinary request. Whom the socket answers at all is
said by its :class:`~greentx.transport.security.Access`; what of the connection sets may be changed that way, by
:mod:`greentx.handler.remote`.

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

A server that asks to be added counts as a stand-in for Mongrel2: a :class:`~greentx.Server`, or one of that package's.
A program that adds a real Mongrel2 says ``"mongrel2": true`` in the body, since that queues 16 messages for a browser
and no more, and has its own rule for senders. A server with CURVE adds ``"curve"``, its public key as Z85.

:class:`Commands` decides what a message means and what is answered, without a socket; :class:`Control` is the socket.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol
from urllib.parse import parse_qs

from ..errors import BindError, ControlError, GreentxError
from ..protocol.fields import CONTROL_ID, MAX_SHOWN, shown
from ..protocol.kinds import Kind
from ..protocol.request import Request, parse_request
from ..transport import Context, Replier
from ..transport.security import Access

__all__ = [
    "ADD_CONNECTION",
    "DISCONNECT_PING",
    "MAX_CONTROL_MESSAGE",
    "PING",
    "REMOVE_CONNECTION",
    "Commands",
    "Control",
]

log = logging.getLogger("greentx.control")

ADD_CONNECTION = "/__add_connection__"
REMOVE_CONNECTION = "/__remove_connection__"
PING = "/__ping__"
DISCONNECT_PING = "/__disconnect_ping__"

RECEIVED = b"RECEIVED"

#: Bytes of a message to the control socket; who sends more is disconnected. Commands have some hundred.
MAX_CONTROL_MESSAGE = 65536

#: Which METHOD each command comes with: the ones that mongrel2-transceiver 0.3.0 sends.
_METHODS = {
    ADD_CONNECTION: Kind.JSON,
    REMOVE_CONNECTION: Kind.JSON,
    PING: Kind.MONGREL2,
    DISCONNECT_PING: Kind.MONGREL2,
}

# Of a QUERY, which has one of them.
_MAX_FIELDS = 16

# A port has five digits; int() of thousands of them would raise what is not ours.
_MAX_PORT_DIGITS = 5


class Controlled(Protocol):
    """What the commands act on; :class:`greentx.handler.remote.RemoteSets`."""

    def add(
        self, asker: str, sender: str, push_addr: Any, sub_addr: Any, *, mongrel2: bool, key: bytes | None
    ) -> None: ...
    def remove(self, asker: str, sender: str) -> None: ...
    def prove(self, sender: str, text: str) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def stop(self) -> None: ...


class Control:
    """Answers commands on a REP socket, in a greenlet of its own.

    Args:
        context: Owner of the socket.
        endpoint: Where to bind it.
        target: What the commands act on.
        access: Who may ask.

    Raises:
        BindError: The address is in use, or not ours; the message says which option chooses another one.
    """

    def __init__(self, context: Context, endpoint: str, target: Controlled, access: Access) -> None:
        self._target = target
        # It asks in a greenlet of its own, one message at a time: a command may block, while its server waits for it.
        try:
            self._replier = Replier(
                context,
                endpoint,
                Commands(target).answer,
                access=access,
                max_message=MAX_CONTROL_MESSAGE,
                name="control",
            )
        except BindError as error:
            raise BindError(
                f"{error}; this is the control socket: choose another port by rep_port= (0: a free one, False: no "
                "control socket), or another address by rep_ip=",
                address=error.address,
                errno=error.errno,
            ) from error
        self.endpoint = self._replier.endpoint

    @property
    def trouble(self) -> str:
        """Why commands are not answered at present; ``""`` where they are."""
        return self._replier.trouble

    def start(self) -> None:
        """Start answering."""
        self._replier.start()

    def stop(self) -> None:
        """Stop answering and close the socket; safe to call twice."""
        self._replier.stop()
        self._target.stop()


class Commands:
    """What is answered to each message, and what it makes the target do.

    Args:
        target: What the commands act on.
    """

    def __init__(self, target: Controlled) -> None:
        self._target = target

    def answer(self, message: bytes, asker: str) -> bytes:
        """Obey one message and return the answer to it; ``ERROR <why>`` for whatever cannot be obeyed.

        Args:
            asker: Who asks: a CURVE key, or an IP address.
        """
        # The two words are not request messages, so that a person can ask with any REQ socket.
        word = message.strip().upper()
        if word == b"PING":
            return b"PONG"
        if word == b"STATUS":
            return json.dumps(self._target.status()).encode()
        try:
            self._obey(parse_request(message), asker)
        except (GreentxError, ValueError, KeyError) as error:
            # The text of a KeyError has quotes around it. Text, and not the error: its traceback leads to this frame,
            # and a frame that leads back would be freed, with the message, only when Python looks for cycles.
            why = str(error.args[0] if isinstance(error, KeyError) else error)
            log.warning("command refused: %s", why)
            # The message may quote what came, which need not be valid text.
            return f"ERROR {why}".encode(errors="backslashreplace")
        return RECEIVED

    def _obey(self, request: Request, asker: str) -> None:
        path, sender = request.path, request.sender
        method = _METHODS.get(path)
        if method is None:
            raise ControlError(f"no command {shown(path)}: there are PING, STATUS, {', '.join(_METHODS)}")
        # No browser has this conn_id, so a web request that was sent on to this socket by mistake is not obeyed.
        if (request.method, request.conn_id) != (method, CONTROL_ID):
            raise ControlError(
                f"{path} comes with METHOD {method} and conn_id {CONTROL_ID}, "
                f"not {shown(request.method)} and {request.conn_id}"
            )
        if path == ADD_CONNECTION:
            push, sub = _addresses(request)
            self._target.add(asker, sender, push, sub, mongrel2=_is_mongrel2(request), key=_key(request))
        elif path == REMOVE_CONNECTION:
            self._target.remove(asker, sender)
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
        # Text too: mongrel2-transceiver sends what its own caller gave it.
        if isinstance(port, str) and port.isdecimal() and len(port) <= _MAX_PORT_DIGITS:
            port = int(port)
        # True would do as the port 1.
        if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
            raise ControlError(f"{name!r} is [ip, port], not {shown(address)}")
        found.append((host, port))
    return found[0], found[1]


def _is_mongrel2(request: Request) -> bool:
    """Whether the addresses are a Mongrel2's, which never adds itself: the program that adds it has to say so."""
    value = request.data.get("mongrel2", False)
    if not isinstance(value, bool):
        raise ControlError(f'"mongrel2" is true or false, not {shown(value)}')
    return value


def _key(request: Request) -> bytes | None:
    """The server's public key, where its sockets demand CURVE."""
    value = request.data.get("curve")
    if value is not None and not isinstance(value, str):
        raise ControlError(f'"curve" is a public key, as text; not {shown(value)}')
    return None if value is None else value.encode()


def _text(request: Request) -> str:
    query = request.header("QUERY")
    # The last one counts, as with the old package, whose QUERY is a dict. Thousands of fields would take milliseconds.
    values = parse_qs(query, max_num_fields=_MAX_FIELDS).get("text") if isinstance(query, str) else None
    if not values:
        raise ControlError(f"{request.path} needs QUERY text=<guid>")
    if len(values[-1]) > MAX_SHOWN:
        raise ControlError(f"the text to send back is {len(values[-1])} characters, limit {MAX_SHOWN}")
    return values[-1]
