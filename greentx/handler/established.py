"""WebSockets from their 101 on: carries out what :mod:`greentx.protocol.websocket.machine` says.

State changes come first and sending second, so that a full pipe cannot leave them half done. The end of a WebSocket,
whatever it was, goes through one method, which reports it once.

A closed connection is not forgotten at once. The server sends what is queued for it first, forever where the client
does not read, and frames that the client sent before it knew are still coming in. So for ``close_timeout`` seconds its
frames are ignored, and at the end the server is told to cut it off, which an id that has gone does not mind (probed).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ..protocol.fields import batch_conn_ids
from ..protocol.replies import CANCEL
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode
from ..protocol.websocket.machine import FAULT_DELAY, MAX_UNREAD, NOTHING, Deadline, Machine, Step
from ..protocol.websocket.registry import OPEN, Entry, Registry, Sid
from ..transport import Context, Writer
from .delays import DelayQueue

__all__ = ["Established"]

log = logging.getLogger("greentx.session")

# Close codes for bounds of ours, and which setting that is where the reason does not say so.
_BOUNDS: dict[int | None, str] = {CloseCode.MESSAGE_TOO_BIG: " (max_message_size)", CloseCode.TRY_AGAIN_LATER: ""}

# How many paths are kept once for all entries that have them.
_MAX_PATHS = 1024


class Established:
    """The WebSockets of one connection set that were let in, and what is left to do for those that have ended.

    Args:
        context: For the timers.
        writer: Where frames go.
        registry: Where live WebSockets are kept, shared by all connection sets.
        machine: The rules.
        emit, ended: As for :class:`greentx.handler.websockets.WebSockets`.
        close_timeout: Seconds that a client may take to answer our close frame, and to read what is queued before it.
        name: For logs.

    Attributes:
        failures: How many connections were ended for what their peers did.
        senders: The senders of WebSockets seen so far.
        elsewhere: What is called with the events of those that another process let in; see
            :mod:`greentx.handler.elsewhere`.
    """

    def __init__(
        self,
        context: Context,
        writer: Writer,
        registry: Registry,
        machine: Machine,
        emit: Callable[[Request], None],
        *,
        ended: Callable[[Request], None],
        close_timeout: float,
        name: str,
    ) -> None:
        self.name = name
        self.failures = 0
        self.senders: dict[str, str] = {}
        self._writer = writer
        self._registry = registry
        self._machine = machine
        self.elsewhere: Callable[[Request], None] = emit
        self._emit = emit
        self._ended = ended
        self._paths: dict[str, str] = {}
        self._lives_over = 0
        # An eighth of the time is little enough to be late by.
        tick = max(close_timeout / 8, 0.01)
        self._deadlines = {
            Deadline.FAULT: DelayQueue(context, FAULT_DELAY, FAULT_DELAY, self._overdue),
            Deadline.CLOSE: DelayQueue(context, close_timeout, tick, self._overdue),
        }
        # Ids only: the entries have gone, and their events were told.
        self._closed: DelayQueue[Sid] = DelayQueue(context, close_timeout, tick, self._should_have_gone)
        # The same for what another process has closed, which sees to it that they go.
        self._closed_elsewhere: DelayQueue[Sid] = DelayQueue(context, close_timeout, tick, lambda sids: None)

    # -- one of them -------------------------------------------------------------------------------------------------

    def enter(self, request: Request) -> Entry:
        """Add the WebSocket of *request* to the registry, OPEN, and return its entry."""
        entry = self._new(request.sid, request.path)
        self._registry.add(entry)
        carrier = request.carrier
        if carrier is not None:
            for group in carrier.groups:
                self._registry.join(entry.sid, group)
            entry.carrier = carrier  # last: of those groups it need not be told
        return entry

    def enter_elsewhere(self, sid: Sid, path: str, owner: str) -> Entry:
        """Add a WebSocket that process *owner* let in, OPEN, and return its entry."""
        entry = self._new(sid, path)
        self._registry.owners[entry.sid] = owner
        entry.on_event = self.elsewhere
        self._registry.add(entry)
        return entry

    def _new(self, sid: Sid, path: str) -> Entry:
        sender, conn_id = sid
        # Of a million WebSockets nearly all have the same few of these: each is kept once.
        sender = self.senders.setdefault(sender, sender)
        paths = self._paths
        path = paths.setdefault(path, path) if len(paths) < _MAX_PATHS else paths.get(path, path)
        entry = Entry((sender, conn_id), path)
        entry.state = OPEN
        return entry

    def replay(self, entry: Entry, messages: Iterable[Request]) -> None:
        """Look at what came before the 101."""
        for request in messages:
            self.carry_out(entry, self._machine.message(entry, request), request)

    def carry_out(self, entry: Entry, step: Step, request: Request | None = None) -> None:
        """Do what *step* says; *request* is the message that it is about."""
        if step is NOTHING:
            return
        # Those with a receiver of their own were let in by the application, or have a handler of serve(); the events of
        # the others go to the inbox.
        if request is not None:
            if step.deliver:
                (entry.on_event or self._emit)(request)
            elif step.pong and entry.on_pong is not None:
                entry.on_pong(request.body)
        # The end is told before anything is sent: what is sent then finds the entry CLOSED.
        event = step.event
        if event is not None:
            if step.failed:
                self.failures += 1
                # Only those for a bound of ours are something to change here: the setting that each names.
                log.log(
                    logging.WARNING if event.close_code in _BOUNDS else logging.INFO,
                    "%s: WebSocket %s failed with %s: %s%s",
                    self.name,
                    entry.conn_id,
                    event.close_code,
                    event.close_reason,
                    _BOUNDS.get(event.close_code, ""),
                )
            elif step.cut_off:
                log.info("%s: WebSocket %s did not answer our close frame", self.name, entry.conn_id)
            self.report_end(entry, event)
        if step.wait is not None:
            self._deadlines[step.wait].add(entry.sid, entry)
        self.answer(entry.sid, step)

    def answer(self, sid: Sid, step: Step) -> None:
        """Send what *step* says to a connection, which need not be an entry. Never blocks."""
        # With wait=False: this may be the receiver's greenlet or the hub, and one client must not hold up the others.
        frame = step.frame
        lives = self._lives_over
        if frame and not (step.if_read and self._writer.flow.waiting(sid[1]) >= MAX_UNREAD):
            self._writer.write(sid[0], sid[1], frame, wait=False)
        if step.hang_up and self._lives_over == lives:
            self.hang_up(sid)

    def end(self, entry: Entry, code: int, reason: str, *, moved: bool = False) -> None:
        """End one without sending anything; *moved*: it goes on in another process."""
        event = self._machine.end(entry, code, reason)
        if event is not None:
            event.moved = moved
            self.report_end(entry, event)

    def report_end(self, entry: Entry, event: Request) -> None:
        """Forget one that is CLOSED, and give the application *event*, in which the machine says so."""
        is_ours = entry.sid not in self._registry.owners
        self._registry.remove(entry.sid)
        for deadline in self._deadlines.values():
            deadline.discard(entry.sid)
        receive = entry.on_event or self._emit
        # Who receives has the entry, too: in a circle, what still waits there would be kept, and counted, for long.
        entry.on_event = entry.on_pong = None
        self._ended(event)
        # Its end is an event in the process that let it in, or where it has a handler.
        if is_ours or receive != self.elsewhere:
            receive(event)

    def hang_up(self, sid: Sid) -> None:
        """Have the server close a connection behind what waits for it, and see to it that it does."""
        lives = self._lives_over
        self._writer.close(sid[0], [sid[1]], wait=False)
        # The server closes behind what it has queued, and never where the client does not read it (probed). Where it
        # has gone, the number will be another's.
        if self._lives_over == lives:
            self.expect_end(sid)

    # -- connections that are over -----------------------------------------------------------------------------------

    def expect_end(self, sid: Sid) -> None:
        """The server was told to close this connection: ignore its frames, and cut it off if it does not go."""
        self._closed.add(sid, sid)

    def is_over(self, sid: Sid) -> bool:
        """True for a connection that was closed from here, or elsewhere: its client has not seen that yet."""
        return sid in self._closed or sid in self._closed_elsewhere

    def ended_elsewhere(self, sid: Sid) -> None:
        """Another process has ended it: ignore what it sent before it saw that."""
        self._closed_elsewhere.add(sid, sid)

    def has_gone(self, sid: Sid) -> bool:
        """The connection is not there any more; returns whether its end was expected."""
        return self._closed.discard(sid)

    def begins(self, sid: Sid) -> None:
        """The server gave this number to a new client: one that had it before ended without our being told."""
        stale = self._registry.get(sid)
        if stale is not None:
            self.end(stale, CloseCode.ABNORMAL_CLOSURE, "")
        self._closed.discard(sid)
        self._closed_elsewhere.discard(sid)

    # -- all of them -------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Return all live ones."""
        return [entry for sender in self.senders for entry in self._registry.of_sender(sender)]

    def lost(self) -> None:
        """The server has gone, and all its connections with it. Nothing is sent: the numbers will be others'."""
        self._lives_over += 1
        self._closed.clear()
        self._closed_elsewhere.clear()
        # Those of a sender, not all of the registry: other connection sets have their own servers.
        for entry in self.entries():
            # Of those of another process that one has a connection of its own to the server, and will say.
            if entry.carrier is None:
                self.end(entry, CloseCode.ABNORMAL_CLOSURE, "the server restarted")
        # They may be another server's when this one is back.
        for sender in list(self.senders):
            if not self._registry.batches(sender):
                del self.senders[sender]

    def stop(self) -> None:
        """Let go of the timers."""
        for deadline in self._deadlines.values():
            deadline.stop()
        self._closed.stop()
        self._closed_elsewhere.stop()

    # -- deadlines, in the hub ---------------------------------------------------------------------------------------

    def _overdue(self, entries: list[Entry]) -> None:
        cut_off: list[Sid] = []
        # The machine is asked again: the peer may have answered, or the application closed, since the deadline was set.
        for entry in entries:
            step = self._machine.overdue(entry)
            self.carry_out(entry, step)
            if step.cut_off:
                cut_off.append(entry.sid)
        self._cut_off(cut_off)

    def _should_have_gone(self, sids: list[Sid]) -> None:
        if self._writer.flow.control.paced:  # a stand-in for Mongrel2 has closed them when it was told to
            self._cut_off(sids)

    def _cut_off(self, sids: list[Sid]) -> None:
        # What waits for them here would go out behind the end, to nobody, or to the next client of that number.
        by_sender: dict[str, list[str]] = {}
        for sender, conn_id in sids:
            self._writer.forget(conn_id)
            by_sender.setdefault(sender, []).append(conn_id)
        for sender, conn_ids in by_sender.items():
            for batch in batch_conn_ids(conn_ids):
                if self._writer.flow.control.paced:
                    self._writer.control(sender, batch, CANCEL)
                else:  # a stand-in holds nothing back, and may not know extended replies
                    self._writer.close(sender, batch, wait=False)

    def __repr__(self) -> str:
        return f"<Established {self.name}: {len(self._closed)} closed lately, {self.failures} failed>"
