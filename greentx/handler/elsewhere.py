"""WebSockets that another process on the same handler entry let in, where the processes tell each other of theirs.

Mongrel2 hands the messages of one WebSocket to all processes of the entry in turn. So each process has an entry for
each, and reads, answers and ends it as its own; what differs is what the application hears:

* ``WEBSOCKET_CONNECT`` only in the process that let it in;
* each message in whichever process gets it; a handler of ``serve(websocket=...)`` is called there with the first one;
* ``WEBSOCKET_CLOSE`` in the process that let it in, or took it over from one that ended; and whoever has a handler for
  it sees the end.

A message may be here before the news that its WebSocket was let in: it waits for :data:`NEWS_SECONDS`, then it counts
as one of this process's own.
"""

from __future__ import annotations

from collections.abc import Callable

from ..protocol.kinds import Kind
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.machine import Machine
from ..protocol.websocket.opening import Opening
from ..protocol.websocket.registry import OPEN, Entry, Registry, Sid
from ..transport import Context
from .delays import DelayQueue
from .established import Established
from .openings import News, Openings

__all__ = ["NEWS_SECONDS", "Elsewhere"]

#: How long a message waits for the news of its WebSocket.
NEWS_SECONDS = 1.0


class Elsewhere(News):
    """Those of one connection set.

    Args:
        context: For the timer.
        established, openings, machine, registry: Of the connection set.
        emit: Called with each message of those that no handler is called for here; must not block.

    """

    def __init__(
        self,
        context: Context,
        established: Established,
        openings: Openings,
        machine: Machine,
        registry: Registry,
        emit: Callable[[Request], None],
    ) -> None:
        self._others_go_on: Callable[[], bool] = bool  # False, until begin() says better
        self._awaits_news: Callable[[], bool] = bool
        self._hands_over = False
        self._leave: Callable[[], None] = lambda: None
        self._established = established
        self._openings = openings
        self._machine = machine
        self._registry = registry
        self._emit = emit
        tick = NEWS_SECONDS / 8
        self._unknown: DelayQueue[Opening] = DelayQueue(context, NEWS_SECONDS, tick, self._no_news)
        # How those ended that nobody has told of yet; most of them were no WebSockets.
        self._ends: dict[Sid, tuple[int, str]] = {}
        self._forgetting: DelayQueue[Sid] = DelayQueue(context, NEWS_SECONDS, tick, self._forget_ends)

    def begin(
        self,
        *,
        note: Callable[[Sid], None],
        awaits_news: Callable[[], bool],
        others_go_on: Callable[[], bool],
        leave: Callable[[], None],
    ) -> None:
        """Others tell us of theirs from now on.

        Args:
            note: Called with the sid of whoever sent a pong.
            awaits_news: Returns whether they may be about to tell of one.
            others_go_on: Returns whether they go on with all when this process ends.
            leave: Tells them that it does.
        """
        self._machine.note = note
        self._awaits_news = awaits_news
        self._others_go_on = others_go_on
        self._leave = leave
        self._established.elsewhere = self.event
        self._openings.news = self

    # -- what the others say -----------------------------------------------------------------------------------------

    def known(self, sid: Sid, path: str, subprotocol: str | None, owner: str) -> Entry | None:
        """Process *owner* has let it in. Returns its entry; ``None`` where it is known to have ended."""
        entry = self._registry.get(sid)
        if entry is None:
            # One that was closed here before the news is not over for the others.
            if sid not in self._ends and self._established.is_over(sid):
                return None
            entry = self._established.enter_elsewhere(sid, path, owner)
            entry.subprotocol = subprotocol
        else:
            self.belongs_to(entry, owner)
        return entry

    def catch_up(self, entry: Entry) -> None:
        """Look at what came here of one before the news of it, if anything: that is news for the others."""
        sid = entry.sid
        if self._unknown.discard(sid):
            opening = self._openings.told(sid)
            if opening is not None:
                self._established.replay(entry, opening.early)
        if self._forgetting.discard(sid):
            self._established.end(entry, *self._ends.pop(sid))

    def ended_before_news(self, sid: Sid, code: int, reason: str) -> None:
        """A connection has ended that nobody has told of: a WebSocket, or anything else. Its owner is told in time."""
        if sid not in self._registry and self._awaits_news():
            self._ends[sid] = (code, reason)
            self._forgetting.add(sid, sid)

    def gone_before_news(self, sid: Sid) -> bool:
        """The server's notice of such an end. Returns whether something waits for news, which is kept until then."""
        self.ended_before_news(sid, CloseCode.ABNORMAL_CLOSURE, "")
        return sid in self._unknown

    def _forget_ends(self, sids: list[Sid]) -> None:
        for sid in sids:
            self._ends.pop(sid, None)

    def belongs_to(self, entry: Entry, owner: str) -> None:
        """It is another process's from now on; ``""``: it is ours."""
        if owner:
            self._registry.owners[entry.sid] = owner
            if entry.on_event is None:
                entry.on_event = self.event
        else:
            self._registry.owners.pop(entry.sid, None)

    def ended(self, sid: Sid, code: int, reason: str) -> None:
        """Another process has ended it, or saw its end."""
        # What it sent before may still come here, and must not look as if it were a new one.
        self._established.ended_elsewhere(sid)
        self.forget(sid, code, reason)

    def forget(self, sid: Sid, code: int, reason: str) -> None:
        """It is not there, as far as others know."""
        entry = self._registry.get(sid)
        if entry is not None:
            self._established.end(entry, code, reason)

    # -- the end -----------------------------------------------------------------------------------------------------

    def hand_over(self) -> bool:
        """This process is about to end. Returns whether others go on with all, so that nobody is to be closed."""
        self._hands_over = self._others_go_on()
        return self._hands_over

    def let_go(self, code: int, reason: str = "") -> None:
        """Nothing is received any more: where others go on with all, tell handlers here, and nobody else."""
        if not self._hands_over:
            return
        self._leave()
        # Handshakes of this process's own are refused, as at any end.
        self._openings.forget_adopted()
        self._openings.refuse_all()
        for entry in self._established.entries():
            # No event but for handlers: that of the end comes in the process that it happens in.
            self.belongs_to(entry, "another process")
            self._established.end(entry, code, reason)

    # -- what comes in -----------------------------------------------------------------------------------------------

    def event(self, request: Request) -> None:
        """A message of one without a handler here, or its end."""
        if request.method != Kind.WEBSOCKET_CLOSE:
            entry = self._registry.get(request.sid)
            if entry is None or entry.state != OPEN:
                return
            # serve() may have a handler called with it; then that is who gets what follows.
            request.entry = entry
        self._emit(request)

    def wait_for_news(self, opening: Opening) -> bool:
        """See :class:`greentx.handler.openings.News`, as for :meth:`ended_before_news`."""
        if not self._awaits_news():
            return False
        self._unknown.add(opening.request.sid, opening)
        return True

    def _no_news(self, openings: list[Opening]) -> None:
        for opening in openings:
            self._openings.decide(opening)
            entry = self._registry.get(opening.request.sid)
            if entry is not None:
                self.catch_up(entry)

    def stop(self) -> None:
        """Let go of the timers."""
        self._unknown.stop()
        self._forgetting.stop()
        self._ends.clear()
