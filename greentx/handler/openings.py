"""Opening handshakes: WebSockets in the state CONNECTING.

A handshake is answered at once, unless that asks a callable of the application, which may block: then a greenlet
decides, of which there are :data:`MAX_DECISIONS` at a time; further handshakes wait in the order in which they came,
:data:`MAX_WAITING` of them, and what comes on top gets 503. Both bounds are far above what a healthy application needs:
they keep a flood of clients from filling the memory while a callable hangs.

An application may answer handshakes itself (``handshake_events``): :meth:`Openings.hold` keeps what the client sends
meanwhile, :meth:`Openings.let_in` lets it in.

A handshake that another process has received (``request.carrier``) is decided about here all the same; the answer goes
back there.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import gevent
from gevent.pool import Group

from ..errors import ConnectionClosed
from ..protocol.bounds import Queued
from ..protocol.life import ENDED
from ..protocol.request import Request
from ..protocol.websocket.deflate import PerMessageDeflate
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.handshake import Accepted, Handshake, Refused
from ..protocol.websocket.machine import Machine, close_of
from ..protocol.websocket.opening import Opening
from ..protocol.websocket.registry import Entry, Sid
from ..transport import Writer
from .established import Established

__all__ = ["MAX_DECISIONS", "MAX_WAITING", "News", "Openings"]

log = logging.getLogger("greentx.session")

#: Handshakes that callables of the application decide about at a time.
MAX_DECISIONS = 1000

#: Handshakes that wait for that.
MAX_WAITING = 10000

# How long a callable of the application may take to die.
_KILL_SECONDS = 0.5

_GOING_AWAY = Refused(503, body="the server is going away\n")
_BUSY = Refused(503, body="too many handshakes wait to be decided about\n")
_TOO_LATE = Refused(503, body="the server has not decided about this handshake in time\n")
_FAILED = Refused(500, body="the server failed\n")


class News:
    """What other processes on the handler entry tell of WebSockets that they let in. Nothing, in this one."""

    def wait_for_news(self, opening: Opening) -> bool:
        """Whether one may be about to be told of; then ``Openings.told`` is called, or ``Openings.decide``."""
        return False

    def ended_before_news(self, sid: Sid, code: int, reason: str) -> None:
        """Such a one has sent a close frame, which is answered."""


class Openings:
    """Answers the opening handshakes of one connection set.

    Args:
        established: Those that were let in.
        machine: The rules.
        writer: Where answers go.
        handshake: What is accepted.
        on_handshake: Called with each handshake that is right so far; returns a ``Refused`` to refuse it. May block.
        may_block: Deciding calls something of the application's.
        timeout: Seconds that it may take; ``None`` sets no limit.
        queued: What bounds the messages that come before a 101.
        emit: As for :class:`greentx.handler.websockets.WebSockets`.

    Attributes:
        news: Who knows of WebSockets that other processes let in.
    """

    def __init__(
        self,
        established: Established,
        machine: Machine,
        writer: Writer,
        *,
        handshake: Handshake,
        on_handshake: Callable[[Request], Refused | None] | None,
        may_block: bool,
        timeout: float | None,
        queued: Queued,
        emit: Callable[[Request], None],
    ) -> None:
        self._queued = queued
        self._established = established
        self._machine = machine
        self._writer = writer
        self._handshake = handshake
        self._on_handshake = on_handshake
        self._may_block = may_block
        self._timeout = timeout
        self._emit = emit
        # By id, and compared by identity: a server that has restarted gives the same number to another client, while
        # a callable still thinks about the first one.
        self._connecting: dict[Sid, Opening] = {}
        # Those that wait for a greenlet, and the greenlets.
        self._waiting: OrderedDict[Sid, Opening] = OrderedDict()
        self._deciding = Group()
        # Not the size of the group, which a greenlet leaves some time after its end.
        self._running = 0
        self._stopping = False
        self.news = News()

    def __len__(self) -> int:
        return len(self._connecting)

    def __repr__(self) -> str:
        return f"<Openings: {len(self._connecting)} connecting, {self._running} being decided about>"

    # -- answered here -----------------------------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """Answer a handshake, now or when a callable of the application has decided about it."""
        self._established.begins(request.sid)
        self._open(Opening(request))

    def message(self, request: Request) -> None:
        """A message of a client that is not in the registry."""
        sid = request.sid
        opening = self._connecting.get(sid)
        if opening is not None:
            why = opening.keep(request, self._machine.max_size, self._queued)
            if why:
                self.forget(sid)
                log.warning("%s: connection %s sent too much before its 101: %s", self._established.name, sid[1], why)
                self._established.hang_up(sid)
        elif not self._established.is_over(sid):
            step = self._machine.stray(request)
            if step.adopt:
                opening = Opening.adopt(request)
                if self.news.wait_for_news(opening):
                    self._connecting[sid] = opening
                else:
                    self._open(opening)
                return
            if step.hang_up:
                self.news.ended_before_news(sid, *close_of(request.body))
                log.info("%s: frame of unknown WebSocket %s, closing it", self._established.name, sid[1])
            self._established.answer(sid, step)

    def told(self, sid: Sid) -> Opening | None:
        """Another process has let it in: return what came here of it meanwhile, if anything."""
        opening = self._connecting.get(sid)
        if opening is None or not opening.adopted:
            return None
        self.forget(sid)
        return opening

    def forget_adopted(self) -> None:
        """What another process has let in, or refuses, is its own to answer."""
        for sid in [sid for sid, opening in self._connecting.items() if opening.adopted]:
            self.forget(sid)

    def decide(self, opening: Opening) -> None:
        """Nobody told of it: judge it here, unless it has gone."""
        if self._connecting.get(opening.request.sid) is opening:
            self._open(opening)

    def _open(self, opening: Opening) -> None:
        sid = opening.request.sid
        self._connecting[sid] = opening
        if self._stopping or not self._may_block:
            self._decide(opening)
        elif len(self._waiting) >= MAX_WAITING:
            self._finish(opening, _BUSY)
        else:
            # One with the same id has gone. Behind all others, where an OrderedDict would keep the old place.
            self._waiting.pop(sid, None)
            self._waiting[sid] = opening
            self._begin_to_decide()

    def _begin_to_decide(self) -> None:
        if self._waiting and self._running < MAX_DECISIONS:
            self._running += 1
            self._deciding.spawn(self._decide_waiting)

    def _decide_waiting(self) -> None:
        try:
            while self._waiting:
                self._decide(self._waiting.popitem(last=False)[1])
        finally:
            # Where a callable has ended this greenlet, another one goes on with the others.
            self._running -= 1
            self._begin_to_decide()

    def _decide(self, opening: Opening) -> None:
        request = opening.request
        try:
            answer = self._judge(opening, self._handshake)
        except Exception:
            log.exception(
                "%s: the handshake of connection %s for %s failed",
                self._established.name,
                request.conn_id,
                request.path,
            )
            answer = _FAILED
        self._finish(opening, answer)

    def _finish(self, opening: Opening, answer: Accepted | Refused) -> None:
        request = opening.request
        sid = request.sid
        if self._connecting.get(sid) is not opening:
            return  # the client, or the server, has gone in the meantime
        del self._connecting[sid]
        if isinstance(answer, Refused):
            self._refuse(opening, answer)
            return
        carrier = request.carrier
        entry = self._established.enter(request)
        if carrier is None:
            entry.deflate = answer.deflate
            entry.subprotocol = answer.subprotocol
        else:
            entry.subprotocol = carrier.accept(answer.head, answer.subprotocol, own=False)
        event = opening.connected(entry)
        # Told first: the writer may find that the server has gone, which is the end of this one, too. Nothing of the
        # application's runs before the 101 is written.
        self._emit(event)
        if carrier is None and not opening.adopted:
            self._writer.write(sid[0], sid[1], answer.head, wait=False)
        self._established.replay(entry, opening.early)

    def _judge(self, opening: Opening, handshake: Handshake) -> Accepted | Refused:
        if self._stopping:
            return _GOING_AWAY
        if not self._may_block:
            return opening.check(handshake)
        with gevent.Timeout(self._timeout, False):
            return self._ask(opening, handshake)
        request = opening.request
        log.error(
            "%s: the handshake of connection %s for %s was not decided about within %g s, it is refused",
            self._established.name,
            request.conn_id,
            request.path,
            self._timeout,
        )
        return _TOO_LATE

    def _ask(self, opening: Opening, handshake: Handshake) -> Accepted | Refused:
        answer = opening.check(handshake)
        if isinstance(answer, Refused) or self._on_handshake is None:
            return answer
        # Asked last, and only about what would be accepted, so that it need not know the RFC.
        refused = self._on_handshake(opening.request)
        if refused is not None and not isinstance(refused, Refused):
            raise TypeError(f"on_handshake returned {refused!r}: it returns None, or a Refused")
        return refused or answer

    def _refuse(self, opening: Opening, answer: Refused) -> None:
        sender, conn_id = sid = opening.request.sid
        log.info("%s: handshake of connection %s refused with %d", self._established.name, conn_id, answer.status)
        carrier = opening.request.carrier
        if carrier is not None:
            if self._stopping:
                carrier.leave()  # another process may let it in
            else:
                carrier.answer(answer.build(), True)
            return
        if not opening.adopted:
            self._writer.write(sender, conn_id, answer.build(), wait=False)
        # Mongrel2 goes on with frames behind any answer (probed): the connection has to end.
        self._established.hang_up(sid)

    # -- answered by the application ---------------------------------------------------------------------------------

    def hold(self, request: Request) -> None:
        """Keep what this client sends until :meth:`let_in` or :meth:`forget`."""
        self._established.begins(request.sid)
        self._connecting[request.sid] = Opening(request, held=True)

    def check(self, request: Request, handshake: Handshake | None) -> Accepted | Refused:
        """Say what is to be answered to a held handshake; see :meth:`greentx.handler.websockets.WebSockets.check`."""
        return self._judge(Opening(request, held=True), handshake or self._handshake)

    def let_in(
        self,
        request: Request,
        head: bytes,
        receiver: Callable[[Entry], Callable[[Request], None]] | None,
        *,
        subprotocol: str | None = None,
        deflate: PerMessageDeflate | None = None,
        raw_bits: int | None = None,
        own: bool = True,
    ) -> Entry:
        """Let a held client in: send *head*; its messages and its end go to what *receiver* returns. Never blocks.

        Args:
            raw_bits: As for an ``Entry``.
            own: The application wrote *head* itself.

        Raises:
            ConnectionClosed: The client has gone, or was answered otherwise; or the server stops, and the client has
                been answered with 503.
            LocalProtocolError: As ``Carrier.accept``.
        """
        sid = request.sid
        opening = self._connecting.get(sid)
        if opening is None or opening.request is not request:
            raise ConnectionClosed(CloseCode.ABNORMAL_CLOSURE, "the client has gone, or was answered already")
        del self._connecting[sid]
        if self._stopping:
            # close_all() has run, so nobody would say goodbye to it. Its request was taken from those that get a 503
            # in the end, so that is answered here; and the application's own answer, if any, is then ignored.
            request.life = ENDED
            self._refuse(opening, _GOING_AWAY)
            raise ConnectionClosed(CloseCode.GOING_AWAY, "the server is going away")
        carrier = request.carrier
        if carrier is not None:
            # First, as it may raise. Who runs the protocol checks and compresses: nothing is raw here.
            subprotocol = carrier.accept(head, subprotocol, own=own)
        entry = self._established.enter(request)
        entry.subprotocol = subprotocol
        if carrier is None:
            entry.deflate = deflate
            entry.raw_bits = raw_bits
        entry.on_event = None if receiver is None else receiver(entry)
        if carrier is None:
            self._writer.write(sid[0], sid[1], head, wait=False)
        self._established.replay(entry, opening.early)
        return entry

    # -- the end -----------------------------------------------------------------------------------------------------

    def forget(self, sid: Sid) -> bool:
        """The connection is not there any more, or was answered otherwise; returns whether it was known."""
        self._waiting.pop(sid, None)
        return self._connecting.pop(sid, None) is not None

    def lost(self) -> None:
        """The server has gone, and all its connections with it."""
        self._waiting.clear()
        self._connecting.clear()

    def refuse_all(self) -> None:
        """Answer 503 to what is undecided, and to what comes from now on. Held ones are the application's to answer."""
        self._stopping = True
        self._waiting.clear()
        self._deciding.kill(block=False)
        # Killed without waiting: a callable that hangs must not hold up the end, and its answer has no effect any more.
        for opening in list(self._connecting.values()):
            if not opening.held:
                self._decide(opening)

    def stop(self) -> None:
        """End the greenlets; blocks while the application's callables die, for half a second at the most."""
        self._deciding.kill(timeout=_KILL_SECONDS)
