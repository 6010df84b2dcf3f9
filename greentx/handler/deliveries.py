"""What is sent to connections by their ids: raw bytes, closes, frames, and what only the server itself understands.

A connection with an open HTTP request gets it as (a part of) its answer, in its turn; a WebSocket gets a close frame
before it is closed; others get it as it is. The methods belong to the hub's thread: call them by ``Answers.run``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext

from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.fields import batch_conn_ids, check_sender
from ..protocol.request import Request
from ..protocol.websocket.frames import Opcode, build_frame, parse_close
from .answers import HTTP, Answers
from .link import Link
from .shared import Shared
from .websockets import WebSockets

__all__ = ["Deliveries"]

log = logging.getLogger("greentx.connection")

# A plain number: a look into an enum class costs more than the comparison, for each message that is sent.
_CLOSE = int(Opcode.CLOSE)


class Deliveries:
    """Sends to many connections of one connection set.

    Args:
        shared: What all connection sets share.
        link: Where it goes.
        sessions: The WebSockets among the connections.
        answers: For connections with an open request.
    """

    def __init__(self, shared: Shared, link: Link, sessions: WebSockets, answers: Answers) -> None:
        self._registry = shared.registry
        self._link = link
        self._writer = link.writer
        self._sessions = sessions
        self._answers = answers

    def deliver(self, sender: str, conn_ids: list[str], data: bytes) -> None:
        """Send raw bytes to many connections, or close them (empty *data*); call it by ``Answers.run``."""
        heads = self._link.life.requests.heads
        # Most broadcasts go to connections without an open request: then nothing is looked up one by one.
        if not heads or heads.keys().isdisjoint(conn_ids):
            self._deliver_apart(sender, conn_ids, data)
        elif len(conn_ids) == 1:
            self._deliver_to(sender, conn_ids, data)
        else:
            # Not one after the other: who waits for the first would write to the last what is old by then, or to
            # strangers, where the server restarts meanwhile.
            with self._writer.together():
                self._deliver_to(sender, conn_ids, data)

    def _deliver_to(self, sender: str, conn_ids: list[str], data: bytes) -> None:
        life = self._link.life
        heads = life.requests.heads
        rest: list[str] = []
        for conn_id in conn_ids:
            request = heads.get(conn_id)
            # Ids are unique in one server only; several may be behind one Transceiver.
            if request is None or request.sender != sender:
                rest.append(conn_id)
            elif data:
                self._answers.answer(request, data, None, False)
            else:
                self._answers.close_here(request)
        # The server may have been found gone: the other numbers are strangers' then.
        if rest and self._link.life is life:
            self._deliver_apart(sender, rest, data)

    def _deliver_apart(self, sender: str, conn_ids: list[str], data: bytes) -> None:
        """To connections that have no open request."""
        if data:
            self._write_apart(sender, conn_ids, data)
        else:
            self._close_apart(sender, conn_ids)

    def _write_apart(self, sender: str, conn_ids: list[str], data: bytes) -> None:
        registry, sockets = self._registry, self._link.life.sockets
        # A chat's handler may deliver an HTTP answer to all whom it knows: WebSockets would break at the first byte.
        if data.startswith(HTTP):
            websockets = [conn_id for conn_id in conn_ids if (sender, conn_id) in registry]
            if websockets:
                log.warning(
                    "%s: HTTP for the WebSockets %s was not sent", self._link.sender, ", ".join(websockets[:10])
                )
                conn_ids = [conn_id for conn_id in conn_ids if conn_id not in websockets]
        entries = [registry.get((sender, conn_id)) for conn_id in conn_ids]
        carried = {entry.sid[1]: entry for entry in entries if entry is not None and entry.carrier is not None}
        if carried:
            conn_ids = [conn_id for conn_id in conn_ids if conn_id not in carried]
            for entry in carried.values():
                self._sessions.relayed.write(entry, data)
        # From now on their end is told: nobody else would say that a listener has gone.
        sockets.update((conn_id, None) for conn_id in conn_ids if (sender, conn_id) not in registry)
        if conn_ids:
            # Raw bytes may be a part of something: a browser that missed some could not read the rest.
            placed = self._writer.place_many(sender, [(data, conn_ids)], "close")
            for conn_id in placed.slow:
                self._link.browser_slow(conn_id, "what is delivered is not read")
            placed.wait()

    def _close_apart(self, sender: str, conn_ids: list[str]) -> None:
        plain: list[str] = []
        for conn_id in conn_ids:
            entry = self._registry.get((sender, conn_id))
            if entry is not None:
                self._sessions.close(entry)  # with a close frame: RFC 6455, section 7.1.1
            else:
                self._link.life.sockets.pop(conn_id, None)
                plain.append(conn_id)
        if plain:
            self._writer.close(sender, plain)

    def http(self, sender: str, conn_ids: list[str], reply: Callable[[Request], None]) -> None:
        """Have *reply* answer the open requests of many connections; call it by ``Answers.run``."""
        heads = self._link.life.requests.heads
        # One is answered as any other request is, which waits for its browser to read.
        with self._writer.together() if len(conn_ids) > 1 else nullcontext():
            for conn_id in conn_ids:
                request = heads.get(conn_id)
                if request is not None and request.sender == sender:
                    reply(request)

    def json(self, sender: str, conn_ids: list[str], body: bytes, reply: Callable[[Request], None]) -> None:
        """Send JSON to many connections, each in the way that its client reads; call it by ``Answers.run``.

        Args:
            reply: Answers an open HTTP request with it.
        """
        registry, heads = self._registry, self._link.life.requests.heads
        # Chats send to whoever is there, over whatever they came.
        websockets = [conn_id for conn_id in conn_ids if (sender, conn_id) in registry]
        others = [conn_id for conn_id in conn_ids if conn_id not in heads and (sender, conn_id) not in registry]
        # All of it before any wait: the numbers may be strangers' after that.
        with self._writer.together() if len(conn_ids) > 1 else nullcontext():
            self.http(sender, conn_ids, reply)
            if websockets:
                self.frame(sender, websockets, body, Opcode.TEXT, 0)
            if others:
                self.deliver(sender, others, body)

    def extended(self, sender: str, conn_ids: list[str], data: bytes, key: bytes, value: object) -> None:
        """Send an extended reply, *data*, which is a list of *key* and *value*; call it by ``Answers.run``."""
        writer = self._writer
        for conn_id in conn_ids:
            # It is a message of its own, which the server obeys as it comes: it would overtake what waits here.
            if not writer.wait_empty(conn_id):
                return  # the server has gone meanwhile, and what its numbers mean with it
        life = self._link.life
        for batch in batch_conn_ids(conn_ids):
            writer.control(sender, batch, data)
            if self._link.life is not life:
                return  # as above: the pipe was full, which is waited for, too
        for conn_id in conn_ids:
            request = life.requests.heads.get(conn_id)
            if key != b"ctl":
                # A module of the server's (such as sendfile) writes the rest of the answer, of which we see nothing:
                # later requests of the connection must not wait for it.
                if request is not None:
                    self._answers.release(request)
            elif isinstance(value, dict) and b"cancel" in value:
                self._cancelled(sender, conn_id)
            elif isinstance(value, dict) and isinstance(value.get(b"credits"), int):
                last = life.requests.last(conn_id)
                if last is not None:
                    last.granted += value[b"credits"]

    def _cancelled(self, sender: str, conn_id: str) -> None:
        """The server was told to end a connection at once, of which it gives no notice (probed)."""
        life = self._link.life
        # All that a notice would have brought about, but for DISCONNECT: the application knows.
        life.requests.remove(conn_id)
        life.requests.closed(conn_id)
        life.sockets.pop(conn_id, None)
        life.uploads.forget(conn_id)
        self._writer.forget(conn_id)
        self._sessions.cancelled((sender, conn_id))

    def reply_frame(self, request: Request, payload: bytes, opcode: int | None, rsvd: int) -> None:
        """Send one frame to the WebSocket of *request*, ``None`` is text; call it by ``Answers.run_for``."""
        sender, conn_id = request.sender, request.conn_id
        entry = self._registry.get((sender, conn_id))
        if entry is None or opcode is None or opcode == _CLOSE:
            self.frame(check_sender(sender, mongrel2=not self._link.stand_in), [conn_id], payload, opcode, rsvd)
        else:
            self._sessions.send_to(entry, payload, opcode, rsvd)

    def frame(self, sender: str, conn_ids: list[str], payload: bytes, opcode: int | None, rsvd: int) -> None:
        """Send one frame to many WebSockets, ``None`` is text; call it by ``Answers.run``."""
        registry = self._registry
        if opcode is None:
            opcode = Opcode.TEXT
        # A close frame begins a handshake, with a deadline for the peer's; it cannot just be sent.
        if opcode == Opcode.CLOSE:
            code, reason = _close_payload(payload)
            for conn_id in conn_ids:
                entry = registry.get((sender, conn_id))
                if entry is not None:
                    self._sessions.close(entry, code, reason)
            return
        entries = [entry for conn_id in conn_ids if (entry := registry.get((sender, conn_id))) is not None]
        if entries:
            self._sessions.send(entries, payload, opcode, rsvd)
        else:
            build_frame(payload, opcode, rsvd)  # which says whether it could be sent


def _close_payload(payload: bytes) -> tuple[int | None, str]:
    try:
        code, reason = parse_close(payload)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"not a close frame's payload: {error}") from error
    return (code, reason) if payload else (None, "")
