"""The talk of a server with one handler's control socket: join, leave, and prove that it worked.

Requests and answers are those of mongrel2-transceiver 0.3.0, so the handler may be one of the old package. Its control
socket reads Mongrel2's own request messages, with a connection id that no browser has:

========================== ============ =================================== ==========================================
path                       METHOD       carries                             answer
========================== ============ =================================== ==========================================
(the text ``PING``)                                                         ``PONG``
``/__add_connection__``    ``JSON``     body ``{"push": [ip, port], "sub":  ``RECEIVED``
                                        [ip, port]}``
``/__remove_connection__`` ``JSON``     body ``{}``                         ``RECEIVED``
``/__ping__``              ``MONGREL2`` QUERY ``text=...``                  ``RECEIVED``, and the text as a reply to
                                                                            connection id -1 over PUB
``/__disconnect_ping__``   ``MONGREL2``                                     ``RECEIVED``, and nothing over PUB
========================== ============ =================================== ==========================================
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

import gevent
from gevent.event import Event

from ..errors import ConnectTimeout, ControlError, LocalProtocolError
from ..protocol.fields import CONTROL_ID
from ..protocol.requests import build_request
from ..transport import Context
from ..transport.asking import ask
from ..transport.endpoints import Address, connect_endpoint
from ..transport.keys import KeyFile, load_keys
from ..transport.names import UnknownHost
from ..transport.security import Dial, make_dial
from .questions import Questions

__all__ = ["REP_PORT", "Connector", "Unanswered"]

log = logging.getLogger("greentx.connector")

#: Where a handler's control socket is, if nothing else was said.
REP_PORT = 9997

# A question that was lost with a handler that died is asked again after this, within the caller's timeout.
_ASK_SECONDS = 1.0

# Between two pings; a handler connects within milliseconds, and the proof is waited for, so this seldom passes.
_PING_SECONDS = 0.05

# To mongrel2-transceiver 0.3.0 a handler that said nothing for this long over PUB is gone.
_QUIET_SECONDS = 0.1


class Unanswered(ControlError):
    """The handler did not answer in time.

    Attributes:
        asked: The question reached its machine, so that it may be obeyed later on; what did not reach it never will.
    """

    def __init__(self, message: str, *, asked: bool) -> None:
        super().__init__(message)
        self.asked = asked


class Host(Protocol):
    """What a Connector needs of the :class:`~greentx.Server` that handlers are told to connect to."""

    @property
    def sender(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def push_port(self) -> int: ...
    @property
    def sub_port(self) -> int: ...
    @property
    def questions(self) -> Questions: ...
    @property
    def dial(self) -> Dial: ...


class Connector:
    """Asks the control socket of one handler, on behalf of one server.

    Each question is a socket of its own, so a lost or late answer harms no other question. All methods block this
    greenlet only, and all timeouts are milliseconds. In a ``with`` block what it opened for itself goes with the block;
    without one, with each question.

    Args:
        addr: The control socket: ``"host"`` (port 9997), ``"host:port"``, ``(host, port)`` or an endpoint.
        server: The started server that the handler is to be connected to; ``None`` where only :meth:`ping` and
            :meth:`status` are asked.
        timeout: For one answer where a method names no other.
        curve_server: The public key of the handler, where its control socket demands CURVE: a file or bytes (Z85).
            ``None`` is the server's.
        curve_secret: A file of our own keys; ``None`` is the server's.

    Raises:
        LocalProtocolError: (a ``ValueError``) *addr* or a key is malformed; later on, a method needs a server.
    """

    def __init__(
        self,
        addr: Address,
        server: Host | None = None,
        *,
        timeout: int = 1000,
        curve_server: KeyFile | None = None,
        curve_secret: str | os.PathLike[str] | None = None,
    ) -> None:
        self.endpoint = connect_endpoint(addr, REP_PORT)
        self.timeout = timeout
        self._server = server
        known = Dial() if server is None else server.dial
        keys = known.keys if curve_secret is None else load_keys(curve_secret)
        self._dial = make_dial(keys, known.server_key if curve_server is None else curve_server)
        self._context: Context | None = None

    @property
    def server(self) -> Host:
        """The server. Raises ``LocalProtocolError`` where none was given."""
        if self._server is None:
            raise LocalProtocolError(f"{self!r} has no server that {self.endpoint} could connect to: give it one")
        return self._server

    def __enter__(self) -> Connector:
        # With a server its context is used, whose end also ends the waiting.
        if self._server is None and self._context is None:
            self._context = self._new_context()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def ping(self, timeout: int | None = None) -> bool:
        """Return whether the handler said within *timeout* that it is there."""
        try:
            self._expect(b"PING", b"pong", self._seconds(timeout))
        except ControlError as error:
            log.debug("no handler at %s: %s", self.endpoint, error)
            return False
        return True

    def connect(self, timeout: int | None = None) -> bool:
        """Have the handler pull from the server and publish to it. It begins to; :meth:`verify_connect` says it did.

        Returns True.

        Raises:
            ControlError: No answer within *timeout*, or a refusal; the message has the handler's own words.
        """
        server = self.server
        # Lists of address and port, as mongrel2-transceiver 0.3.0 reads them: endpoints it would not understand.
        body: dict[str, Any] = {"push": [server.ip, server.push_port], "sub": [server.ip, server.sub_port]}
        if server.dial.keys is not None:
            body["curve"] = server.dial.keys.public.decode()
        message = self._message("/__add_connection__", {"METHOD": "JSON"}, json.dumps(body).encode())
        self._expect(message, b"received", self._seconds(timeout))
        return True

    def verify_connect(self, timeout: int = 5000) -> bool:
        """Return True when a fresh guid has come back over the server's SUB: replies of this handler arrive.

        What a handler publishes before its socket is connected is lost, so the guid is asked for until it comes.

        Raises:
            ConnectTimeout: It did not come within *timeout*. The message names the address and what went wrong last.
        """
        guid, message = self._proof_question()
        # Expected before it is asked for: the proof may come before the answer.
        with self.server.questions.expect_proof(guid) as proof:

            def proven(left: float) -> bool:
                # In slices of the timeout, so that a question lost with a dying handler is asked again.
                self._expect(message, b"received", min(left, _ASK_SECONDS))
                return bool(proof.wait(min(left, _PING_SECONDS)))

            self._repeat(proven, "connected", timeout)
        return True

    def is_connected(self, timeout: int | None = None) -> bool:
        """Return whether a fresh guid came back over the server's SUB within *timeout*; False at once if refused.

        For a handler that was connected before. An old handler that was started since must not be asked.
        """
        guid, message = self._proof_question()
        seconds = self._seconds(timeout)
        deadline = monotonic() + seconds
        with self.server.questions.expect_proof(guid) as proof:
            try:
                self._expect(message, b"received", seconds)
            # A refusal settles it: a handler that knows the server would not refuse.
            except ControlError:
                return False
            return bool(proof.wait(max(0.0, deadline - monotonic())))

    def disconnect(self, timeout: int | None = None) -> bool:
        """Have the handler let go of the server. Returns True.

        Raises:
            ControlError: No answer within *timeout*, or a refusal.
        """
        message = self._message("/__remove_connection__", {"METHOD": "JSON"}, b"{}")
        self._expect(message, b"received", self._seconds(timeout))
        return True

    def verify_disconnect(self, timeout: int = 5000) -> bool:
        """Return True when the handler, asked after :meth:`disconnect`, has answered on REP and kept quiet on PUB.

        A handler answers its questions in their order, so this answer says that the one before is done with. Quiet
        means that for 100 ms no proof of a connection came over the server's SUB; the old package looks at that. No
        more can be asked without harm: an old handler dies of a ``/__ping__`` from a server that it does not know.

        Raises:
            ConnectTimeout: It did not answer within *timeout*, or proofs kept coming. The message names the address.
        """
        message = self._message("/__disconnect_ping__", {"METHOD": "MONGREL2"})

        def proven(left: float) -> bool:
            # Any proof, as a handler that ignored the command goes on with whichever it was asked for before.
            with self.server.questions.expect_proof(None) as proof:
                self._expect(message, b"received", min(left, _ASK_SECONDS))
                return not proof.wait(_QUIET_SECONDS)

        self._repeat(proven, "disconnected", timeout)
        return True

    def status(self, timeout: int | None = None) -> dict[str, Any]:
        """Return what the handler tells of itself. Ask greentx handlers only: the old package does not know it.

        Raises:
            ControlError: No answer within *timeout*, or one that is not a JSON object.
        """
        answer = self._ask(b"STATUS", self._seconds(timeout))
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            # Not JSON, or JSON of a hostile depth; numbers of thousands of digits are a ValueError.
            value = None
        if not isinstance(value, dict):
            raise ControlError(f"{self.endpoint} answered {answer[:100]!r} to STATUS")
        return value

    def _seconds(self, timeout: int | None) -> float:
        return (self.timeout if timeout is None else timeout) / 1000

    def _message(self, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        return build_request(self.server.sender, CONTROL_ID, path, headers, body, protocol=self.server.encoding)

    def _proof_question(self) -> tuple[bytes, bytes]:
        """Return a fresh guid, and the message that asks for it over PUB."""
        # Fresh each time: an answer to an earlier question proves nothing about now.
        guid = uuid.uuid4().hex
        return guid.encode(), self._message("/__ping__", {"METHOD": "MONGREL2", "QUERY": f"text={guid}"})

    def _new_context(self) -> Context:
        return Context(f"Connector {self.endpoint}", self._close)

    def _close(self) -> None:
        # Out of the attribute first: closing may call back, through the context's teardown.
        context, self._context = self._context, None
        if context is not None:
            context.close(linger=0)

    def _ask_server(self, message: bytes, timeout: float) -> tuple[bytes | None, bool]:
        if self._server is not None:
            return self._server.questions.ask(self.endpoint, message, timeout, self._dial)
        if self._context is not None:
            return ask(self._context, self.endpoint, message, timeout, Event(), self._dial)
        # Without a block, one for each question: it is slow, and nothing is left open.
        context = self._new_context()
        try:
            return ask(context, self.endpoint, message, timeout, Event(), self._dial)
        finally:
            context.close(linger=0)

    def _ask(self, message: bytes, timeout: float) -> bytes:
        try:
            answer, asked = self._ask_server(message, timeout)
        except UnknownHost as error:  # as for a handler that is not there
            raise Unanswered(str(error), asked=False) from error
        # A class of its own: after silence the handler may still obey.
        if answer is None:
            why = "" if asked else ": is it there, and does it answer this address and this key?"
            raise Unanswered(f"{self.endpoint} did not answer within {round(timeout * 1000)} ms{why}", asked=asked)
        return answer

    def _expect(self, message: bytes, wanted: bytes, timeout: float) -> None:
        answer = self._ask(message, timeout)
        # Upper or lower case is not part of the contract, nor is the end of a line.
        if answer.strip().lower() != wanted:
            raise ControlError(f"{self.endpoint} answered {answer[:200].decode('utf-8', 'replace')!r}")

    def _repeat(self, proven: Callable[[float], bool], wanted: str, timeout: int) -> None:
        """Call *proven* with the seconds left until it returns True; a question that failed is asked again."""
        # A handler that connects, or is busy, fails the first questions: errors end nothing before the time is up.
        deadline = monotonic() + timeout / 1000
        why = ""
        while (left := deadline - monotonic()) > 0:
            try:
                if proven(left):
                    return
                why = "no proof of it came"
            except ControlError as error:
                # The last question may have had no time for an answer.
                if left > _PING_SECONDS or not why:
                    why = str(error)
                gevent.sleep(min(left, _PING_SECONDS))
        raise ConnectTimeout(f"{self.endpoint} is not {wanted} after {timeout} ms: {why}", address=self.endpoint)

    def __repr__(self) -> str:
        of = "" if self._server is None else f" of {self._server.sender}"
        return f"<Connector {self.endpoint}{of}>"
