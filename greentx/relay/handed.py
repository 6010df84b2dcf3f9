"""What a relay gave a Node to answer, for one of the Node's connection sets.

A connection id means the same here as at the API only if both talk of the same life of the server. Each request says by
a word in which life the API received it. Where our own connection to the server broke, requests wait until the relay
has said which word is valid now: it need not be the server that has gone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from ..handler.connection import Connection
from ..protocol.bounds import size_of
from ..protocol.request import Request
from .messages import MAX_HELD
from .reports import Reports, Work

__all__ = ["HandedOn"]

log = logging.getLogger("greentx.relay")


class HandedOn:
    """What was given for one connection set.

    Args:
        connection: The connection set that answers.
        reports: For what becomes of it.
        tell: Sends one message to the relay.
        ask: Asks the relay which lives are valid; :meth:`confirm` is to follow.

    Attributes:
        connection: As given.
        word: What the relay calls the present life of the server.
        stale: How many requests came too late, out of an older life of the server.
        held: What waits for the server, or for the relay's answer: its number, it, and its size.
    """

    def __init__(
        self,
        connection: Connection,
        reports: Reports,
        tell: Callable[[bytes], object],
        ask: Callable[[], None],
    ) -> None:
        self.word = ""
        self.stale = 0
        self.held: deque[tuple[int, Request, int]] = deque()
        self.connection = connection
        self._share = connection.sessions.queued.share()
        self._reports = reports
        self._tell = tell
        self._ask = ask
        # The word is known to be valid since our own connection to the server was made.
        self._sure = False
        self._works: dict[str, list[Work]] = {}
        self._sent = reports.sent_of(connection)
        # What was counted, and may be asked about again, one by one, where there was no room for it.
        self._counted: list[bytes] = []

    @property
    def working(self) -> int:
        """How many requests are open here."""
        return sum(map(len, self._works.values()))

    # -- what comes --------------------------------------------------------------------------------------------------

    def accept(self, number: int, request: Request, word: str, size: int) -> None:
        """One request, or what belongs to one; it waits until it is sure that its connection id means the same here.

        Args:
            number: What the relay calls it, 0 for what no answer is due to.
            word: For the life of the server that it came in.
            size: Bytes of its message.
        """
        if word != self.word:
            # The API knows that already: that server has gone, or our word for it is older than this.
            self.stale += 1
            log.warning(
                "%s: %s %s was dropped: its server has gone", self.connection.sender, request.method, request.path
            )
            if number:
                self._tell(b"back %d" % number)
        # Nothing overtakes what is held: two requests of one connection may be among them.
        elif self._sure and not self.held:
            self._open(number, request, size)
        # A bound, since the server may stay away.
        elif len(self.held) >= MAX_HELD or self._share.add(size_of(request)):
            if number:
                self._tell(b"back %d" % number)
        else:
            self.held.append((number, request, size))

    def _open(self, number: int, request: Request, size: int) -> None:
        if number:
            self._works.setdefault(request.conn_id, []).append(Work(number, request))
        self.connection.intake.accept(request, size)

    # -- the server --------------------------------------------------------------------------------------------------

    def server_ready(self) -> None:
        """Our own connection to the server is there."""
        self._ask()

    def told(self, word: str, *, answers: bool) -> None:
        """The relay says what the present life is called.

        Args:
            answers: It answers the question that was asked last, so that it is valid now.
        """
        if word != self.word:
            # What waits is of the life before.
            self._unsure()
            self.word = word
            for _, request, _ in self.held:
                self._share.remove(size_of(request))
                self.stale += 1
            self.held.clear()
            if self.connection.link.subscribed and not answers:
                self._ask()
        link = self.connection.link
        if answers and link.subscribed:
            link.writer.pipe.check()  # the server's end may be known to ZeroMQ and not to us
            if link.subscribed and not self._sure:
                self._sure = True
                self._tell(b"ready " + word.encode())
            self._go_on()

    def _go_on(self) -> None:
        while self.held and self._sure:
            number, request, size = self.held.popleft()
            self._share.remove(size_of(request))
            self._open(number, request, size)

    def _unsure(self) -> None:
        if self._sure:
            self._sure = False
            self._tell(b"unready " + self.word.encode())

    def server_lost(self) -> None:
        """Our own connection to the server broke: what is open here is nobody's any more."""
        self._unsure()
        lost = [b"%d" % work.number for works in self._works.values() for work in works]
        back = [b"%d" % number for number, _, _ in self.held if number]
        self.forget()
        if lost:
            self._tell(b"lost " + b" ".join(lost))
        if back:
            self._tell(b"back " + b" ".join(back))

    def forget(self) -> None:
        """Nothing is open here any more, and nobody is told."""
        self._works.clear()
        for _, request, _ in self.held:
            self._share.remove(size_of(request))
        self.held.clear()

    def session_over(self) -> None:
        """What was given belongs to others by now."""
        self.word = ""
        self._sure = False
        self.forget()

    # -- what becomes of it ------------------------------------------------------------------------------------------

    def connection_ended(self, conn_id: str) -> None:
        """The browser has gone, as the relay knows."""
        self._works.pop(conn_id, None)
        self._sent.pop(conn_id, None)

    def settled(self, request: Request) -> None:
        """Something was answered: see what is not open any more."""
        conn_id = request.conn_id
        works = self._works.get(conn_id)
        if works is not None:
            self._finish(conn_id, works)

    def _finish(self, conn_id: str, works: list[Work]) -> None:
        head = self.connection.link.life.requests.heads.get(conn_id)
        while works and works[0].request is not head:
            work = works.pop(0)
            self._reports.finished(self.connection, conn_id, work)
        if not works:
            del self._works[conn_id]

    def sweep(self) -> None:
        """See to requests that ended otherwise than by an answer."""
        for conn_id, works in list(self._works.items()):
            self._finish(conn_id, works)

    def begins(self, messages: Sequence[bytes]) -> list[bytes]:
        """Return the numbers of the open requests whose answers begin with *messages*, which are about to go out.

        Behind each number is how many bytes of its answer are among them. Those of all answers are counted.
        """
        begun: list[tuple[Work, str]] = []
        works_of, sent = self._works, self._sent
        if not works_of and not sent:
            return []
        counted = self._counted
        if len(messages) > 1 or not any(messages[0] is one for one in counted):
            self._counted, counted = list(messages), []
        for message in messages:
            # SENDER SP LENGTH ":" ids "," SP body
            colon = message.find(b":", message.find(b" "))
            end = message.find(b",", colon)
            ids = message[colon + 1 : end].decode("latin-1")
            size = 0 if counted else len(message) - end - 2
            # Nearly all: one whose whole answer is among them, as it is known to be complete.
            if ids in sent and ids not in works_of:
                sent[ids] += size
                continue
            conn_ids = ids.split(" ")
            # Nothing of an answer: it is for the server.
            if conn_ids[0] == "X":
                continue
            for conn_id in conn_ids:
                works = works_of.get(conn_id)
                if works is not None:
                    # Those that end with it are known to be complete before they leave.
                    self._finish(conn_id, works)
                    sent[conn_id] = sent.get(conn_id, 0) + size
                    if works and not works[0].begun:
                        works[0].begun = True
                        begun.append((works[0], conn_id))
                elif conn_id in sent:
                    sent[conn_id] += size
        return [b"%d %d" % (work.number, sent[conn_id]) for work, conn_id in begun]
