"""The talk of a server with one handler's control socket: join, leave, and prove that it worked.

Requests and answers are those of mongrel2-transceiver 0.3.0, so the handler may be one of the old package. Its control
socket takes Mongrel2's own request messages, with a connection id that no browser has:

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
import uuid
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from .endpoints import Address, connect_endpoint
from .errors import ConnectTimeout, ControlError
from .wire import CONTROL_ID, build_request

if TYPE_CHECKING:
    from .server import Server

__all__ = ["REP_PORT", "Connector", "Unanswered"]

#: Where a handler's control socket is, if nothing else was said.
REP_PORT = 9997

# A question that was lost with a handler that died is asked again after this, within the caller's timeout.
_ASK_SECONDS = 1.0

# Between two pings; a handler connects within milliseconds, and the proof is waited for, so this seldom passes.
_PING_SECONDS = 0.05

# mongrel2-transceiver 0.3.0 takes a handler that said nothing for this long over PUB as gone.
_QUIET_SECONDS = 0.1


class Unanswered(ControlError):
    """The handler did not answer in time.

    Attributes:
        asked: The question reached its machine, so that it may be obeyed later on; what did not reach it never will.
    """

    def __init__(self, message: str, *, asked: bool) -> None:
        super().__init__(message)
        self.asked = asked


class Connector:
    """Asks the control socket of one handler, on behalf of one server.

    Each question is a socket of its own, so a lost or late answer harms no other question. All methods block this
    greenlet only, and all timeouts are milliseconds.

    Args:
        addr: The control socket: ``"host"`` (port 9997), ``"host:port"``, ``(host, port)`` or an endpoint.
        server: The started server that the handler is to be connected to.
        timeout: For one answer where a method names no other.

    Raises:
        LocalProtocolError: (a ``ValueError``) *addr* is malformed.
    """

    def __init__(self, addr: Address, server: Server, *, timeout: int = 1000) -> None:
        self.endpoint = connect_endpoint(addr, REP_PORT)
        self.server = server
        self.timeout = timeout

    def ping(self, timeout: int | None = None) -> None:
        """Return when the handler said that it is there.

        Raises:
            ControlError: It did not, within *timeout*.
        """
        self._expect(b"PING", b"pong", self._seconds(timeout))

    def connect(self, timeout: int | None = None) -> None:
        """Have the handler pull from the server and publish to it. It begins to; :meth:`verify_connect` says it did.

        Raises:
            ControlError: No answer within *timeout*, or a refusal; the message has the handler's own words.
        """
        server = self.server
        body = json.dumps({"push": [server.ip, server.push_port], "sub": [server.ip, server.sub_port]}).encode()
        message = self._message("/__add_connection__", {"METHOD": "JSON"}, body)
        self._expect(message, b"received", self._seconds(timeout))

    def verify_connect(self, timeout: int = 5000) -> None:
        """Return when a fresh guid has come back over the server's SUB: replies of this handler arrive.

        What a handler publishes before its socket is connected is lost, so the guid is asked for until it comes.

        Raises:
            ConnectTimeout: It did not come within *timeout*. The message names the address and what went wrong last.
        """
        guid, message = self._proof_question()
        with self.server.expect_proof(guid) as proof:

            def proven(left: float) -> bool:
                self._expect(message, b"received", min(left, _ASK_SECONDS))
                return bool(proof.wait(min(left, _PING_SECONDS)))

            self._repeat(proven, "connected", timeout)

    def is_connected(self, timeout: int | None = None) -> bool:
        """Return whether a fresh guid came back over the server's SUB within *timeout*; False at once if refused.

        Of use where the handler was connected before. An old handler that was started since must not be asked.
        """
        guid, message = self._proof_question()
        seconds = self._seconds(timeout)
        deadline = monotonic() + seconds
        with self.server.expect_proof(guid) as proof:
            try:
                self._expect(message, b"received", seconds)
            except ControlError:
                return False
            return bool(proof.wait(max(0.0, deadline - monotonic())))

    def disconnect(self, timeout: int | None = None) -> None:
        """Have the handler let go of the server.

        Raises:
            ControlError: No answer within *timeout*, or a refusal.
        """
        message = self._message("/__remove_connection__", {"METHOD": "JSON"}, b"{}")
        self._expect(message, b"received", self._seconds(timeout))

    def verify_disconnect(self, timeout: int = 5000) -> None:
        """Return when the handler, asked after :meth:`disconnect`, has answered on REP and kept quiet on PUB.

        A handler answers its questions in their order, so this answer says that the one before is done with. Quiet
        means that for 100 ms no proof of a connection came over the server's SUB; the old package looks at that. No
        more can be asked without harm: an old handler dies of a ``/__ping__`` from a server that it does not know.

        Raises:
            ConnectTimeout: It did not answer within *timeout*, or proofs kept coming. The message names the address.
        """
        message = self._message("/__disconnect_ping__", {"METHOD": "MONGREL2"})

        def proven(left: float) -> bool:
            with self.server.expect_proof(None) as proof:
                self._expect(message, b"received", min(left, _ASK_SECONDS))
                return not proof.wait(_QUIET_SECONDS)

        self._repeat(proven, "disconnected", timeout)

    def status(self, timeout: int | None = None) -> dict[str, Any]:
        """Return what the handler tells of itself. Ask greentx handlers only: the old package does not know it.

        Raises:
            ControlError: No answer within *timeout*, or none that is a JSON object.
        """
        answer = self._ask(b"STATUS", self._seconds(timeout))
        try:
            value = json.loads(answer)
        except ValueError:
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
        guid = uuid.uuid4().hex
        return guid.encode(), self._message("/__ping__", {"METHOD": "MONGREL2", "QUERY": f"text={guid}"})

    def _ask(self, message: bytes, timeout: float) -> bytes:
        answer, asked = self.server.ask(self.endpoint, message, timeout)
        if answer is None:
            raise Unanswered(f"{self.endpoint} did not answer within {round(timeout * 1000)} ms", asked=asked)
        return answer

    def _expect(self, message: bytes, wanted: bytes, timeout: float) -> None:
        answer = self._ask(message, timeout)
        if answer.strip().lower() != wanted:
            raise ControlError(f"{self.endpoint} answered {answer[:200].decode('utf-8', 'replace')!r}")

    def _repeat(self, proven: Callable[[float], bool], wanted: str, timeout: int) -> None:
        """Call *proven* with the seconds left until it returns True; a question that failed is asked again."""
        deadline = monotonic() + timeout / 1000
        why = ""
        while (left := deadline - monotonic()) > 0:
            try:
                if proven(left):
                    return
                why = "no proof of it came"
            except ControlError as error:
                if left > _PING_SECONDS or not why:  # the last question may have had no time for an answer
                    why = str(error)
                gevent.sleep(min(left, _PING_SECONDS))
        raise ConnectTimeout(f"{self.endpoint} is not {wanted} after {timeout} ms: {why}", address=self.endpoint)

    def __repr__(self) -> str:
        return f"<Connector {self.endpoint} of {self.server.sender}>"
