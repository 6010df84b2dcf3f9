"""What a relay gives to a Node: requests, events, notices. Each is read here, and handed on by its server's life."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import RemoteProtocolError
from ..handler.transceiver import Transceiver
from ..protocol.fields import encode_sender
from ..protocol.kinds import Kind
from ..protocol.request import parse_request
from .handed import HandedOn
from .link import Link
from .messages import REDELIVERED, check_number, number, parse_wrote

__all__ = ["Downstream"]


class Downstream:
    """Hears all of it on the Node's link.

    Args:
        transceiver: The Node's.
        link: To the relay.
        of_word: What is handed on for the present lives of servers, by the words that the relay has for them; may
            change.
    """

    def __init__(self, transceiver: Transceiver, link: Link, of_word: Mapping[bytes, HandedOn]) -> None:
        self._transceiver = transceiver
        self._link = link
        self._of_word = of_word
        self._shared = transceiver.shared()
        link.on(b"request", self._on_request)
        link.on(b"event", self._on_event)
        link.on(b"notice", self._on_notice)
        link.on(b"wrote", self._on_wrote)
        link.on(b"prove", self._on_prove)

    def _on_request(self, words: list[bytes], payload: bytes) -> None:
        if len(words) < 2:
            raise RemoteProtocolError(f"a request has a number and a word, not {len(words)} words")
        asked = number(words[0])
        try:
            request = parse_request(payload)
        except RemoteProtocolError:
            self._link.tell(b"back %d" % asked)
            raise
        request.redelivered = REDELIVERED in words[2:]
        handed = self._of_word.get(words[1])
        if handed is None:
            self._link.tell(b"back %d" % asked)
        else:
            handed.accept(asked, request, words[1].decode("latin-1"), len(payload))

    def _on_event(self, words: list[bytes], payload: bytes) -> None:
        """What no answer is due to."""
        request = parse_request(payload)
        # Here and not later: what is wrong ends this message, whatever else waits with it.
        if request.method == Kind.JSON:
            request.decode_data()
        handed = self._of_word.get(b"".join(words[:1]))
        if handed is not None:
            handed.accept(0, request, words[0].decode("latin-1"), len(payload))

    def _on_notice(self, words: list[bytes], payload: bytes) -> None:
        request = parse_request(payload)
        handed = self._of_word.get(b"".join(words[:1]))
        if handed is not None and request.is_notice():
            handed.connection.intake.notice(request)

    def _on_wrote(self, words: list[bytes], payload: bytes) -> None:
        server, counts = parse_wrote(words)
        handed = self._of_word.get(server)
        if handed is not None:
            connection = handed.connection
            for id_number, count in counts:
                conn_id = str(id_number)
                self._shared.wrote(connection, conn_id, count)
                connection.link.writer.credit(conn_id, count)

    def _on_prove(self, words: list[bytes], payload: bytes) -> None:
        if len(words) != 2:
            raise RemoteProtocolError(f"a sender and a number are to be proved, not {len(words)} words")
        asked = check_number(words[1].decode("latin-1"))
        # Behind whatever we have answered: the server reads one connection's messages in their order.
        for sender, connection in self._transceiver.connections.items():
            if encode_sender(sender) == words[0]:
                connection.link.writer.send_to_nobody(asked)
