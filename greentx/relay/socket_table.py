"""The API's WebSockets: which Node has which, and what goes to it.

The protocol is run here, by the Transceiver's own connection sets; a Node's application has what is behind it::

    browser --frames--> Transceiver --messages--> Backlog --> its Node --handled--> forgotten

==========  ================================================================  =========================================
state       meaning                                                           goes on
==========  ================================================================  =========================================
held        its opening handshake waits for an application's answer           accepted: open. Refused, or it went: over
open        its messages go to its Node, or wait for one                      it ended: ended
ended       its end, or messages before it, are left to be handled            they are, or its server has gone: over
==========  ================================================================  =========================================

In each state it has a Node, or waits for one. When its Node lets it go, or is gone, the next one gets all that was not
handled (:mod:`greentx.relay.socket_backlog`). One that is open and being closed, from here or by its last application,
waits for its end first, of which the next one is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from sys import getsizeof

from ..handler.connection import Connection
from ..protocol.bounds import MESSAGE_BYTES
from ..protocol.kinds import Kind
from ..protocol.request import Request
from ..protocol.websocket.frames import CloseCode, Opcode
from ..protocol.websocket.registry import OPEN as REGISTERED_OPEN
from ..protocol.websocket.registry import Entry, Sid
from .claiming import Claiming
from .nodes import Nodes, NodeSession
from .socket_backlog import Backlog
from .socket_messages import (
    DONE,
    END,
    MESSAGE,
    MOVE,
    OPEN,
    REDELIVERED,
    STATE,
    Opened,
    parse_done,
    parse_number,
    parse_numbers,
    parse_state,
)
from .sticky import Sticky

__all__ = ["Socket", "SocketTable"]

# WebSockets that have ended wait for a Node to be told of it, where no more wait than these.
_MAX_WAITING = 10_000


class Socket:
    """One WebSocket.

    Attributes:
        number: What it is called in messages.
        connection: The connection set that it came by.
        sid: ``(sender, conn_id)``.
        request: The message of its opening handshake.
        held: The handshake itself, while it waits for an answer.
        entry: The registry's, while it is open.
        ending: Its close code, once it has ended.
        session: Of the Node that has it.
        adopted: A Node has had it.
        state: What the application keeps of it, JSON or empty.
        backlog: Its messages.
        share: What counts them.
        life: Of its server.
        left: Bytes that its Node has sent, and has not been told to have left.
        waits: How often it began to wait for a Node.
    """

    __slots__ = (
        "adopted",
        "backlog",
        "connection",
        "ending",
        "entry",
        "held",
        "left",
        "life",
        "number",
        "request",
        "session",
        "share",
        "sid",
        "state",
        "waits",
    )

    def __init__(self, number: int, connection: Connection, sid: Sid, request: bytes) -> None:
        self.number = number
        self.connection = connection
        self.sid = sid
        self.request = request
        self.held: Request | None = None
        self.entry: Entry | None = None
        self.ending: int | None = None
        self.session: NodeSession | None = None
        self.adopted = False
        self.state = b""
        self.backlog = Backlog()
        self.share = connection.sessions.queued.share()
        self.life = connection.link.life
        self.left = 0
        self.waits = 0


class SocketTable:
    """All WebSockets of one relay.

    All methods belong to the hub's thread, and none blocks.

    Args:
        nodes: The Nodes.
        sticky: Whose browser connections are whose.
        claiming: Which Nodes have which sessions of applications.

    Attributes:
        adopted: How many have gone on at another Node.
        redelivered: How many messages were given to a Node again.
        by_sid: Those that have not ended.
        waiting: Those that wait for a Node, by number.
        held_waits: Called with one whose handshake is held when it begins to wait; it must not block.
    """

    def __init__(self, nodes: Nodes, sticky: Sticky, claiming: Claiming) -> None:
        self.adopted = 0
        self.redelivered = 0
        self.by_sid: dict[Sid, Socket] = {}
        self.waiting: dict[int, Socket] = {}
        self.held_waits: Callable[[Socket], object] = lambda socket: None
        self._nodes = nodes
        self._sticky = sticky
        self._claiming = claiming
        self._numbers = count(1)
        self._sockets: dict[int, Socket] = {}
        self._of: dict[NodeSession, dict[int, Socket]] = {}
        # Those of which something is due to their Node, which has no room.
        self._behind: dict[NodeSession, dict[int, Socket]] = {}
        for kind, call in ((STATE, self._on_state), (DONE, self._on_done), (MOVE, self._on_move)):
            nodes.on(kind, call)
        nodes.came.append(self._on_room)
        nodes.room.append(self._on_room)
        nodes.gone.append(self._on_gone)

    def __len__(self) -> int:
        return len(self._sockets)

    def __iter__(self) -> Iterator[Socket]:
        # A copy: what walks over it may end some.
        return iter(list(self._sockets.values()))

    def find(self, session: NodeSession, number: int) -> Socket | None:
        """Return the one that a Node means; ``None`` where it has not got it any more, and does not know yet."""
        socket = self._sockets.get(number)
        return socket if socket is not None and socket.session is session else None

    def add(self, connection: Connection, sid: Sid, handshake: bytes) -> Socket:
        """One begins, which no Node has yet.

        Args:
            handshake: The message of its opening handshake.
        """
        socket = Socket(next(self._numbers), connection, sid, handshake)
        self._sockets[socket.number] = self.by_sid[sid] = socket
        return socket

    # -- to a Node ---------------------------------------------------------------------------------------------------

    def place(self, socket: Socket, request: Request) -> None:
        """Give one that begins with *request* to the Node that has claimed its session, or to any."""
        self._claiming.when_claimed(request, partial(self._give_first, socket))

    def _give_first(self, socket: Socket, session: NodeSession | None) -> None:
        # It may have ended while a claim was waited for.
        if self._sockets.get(socket.number) is socket and socket.session is None:
            self.give(socket, session)

    def give(self, socket: Socket, session: NodeSession | None = None) -> None:
        """Have a Node go on with one, that of *session* where that is given; while no Node is there it waits.

        One that is being closed waits for its end: to an application it would look as if it were open.
        """
        if socket.entry is not None and socket.entry.state != REGISTERED_OPEN:
            self.waiting.pop(socket.number, None)
            return
        connection, conn_id = socket.connection, socket.sid[1]
        session = session or self._sticky.owner(connection, conn_id)
        if session is None or session.leaving:
            session = self._choose()
        if session is None:
            self._wait(socket)
            return
        self.waiting.pop(socket.number, None)
        # All that is of interest of this connection comes here from now on, and not to its Node by what it is bound to.
        self._sticky.forget(connection, conn_id)
        socket.session = session
        socket.left = 0
        session.websockets += 1
        self._of.setdefault(session, {})[socket.number] = socket
        entry = socket.entry
        opened = Opened(
            server=connection.sender,
            decided=socket.held is None,
            adopted=socket.adopted,
            subprotocol=None if entry is None else entry.subprotocol,
            groups=() if entry is None else entry.groups,
            done=socket.backlog.handled,
            state=socket.state,
            request=socket.request,
        )
        self._nodes.send(session, b"%b %d" % (OPEN, socket.number), opened.build())
        if socket.adopted:
            self.adopted += 1
        self._push(socket)

    def _wait(self, socket: Socket) -> None:
        if socket.number in self.waiting:
            return
        self.waiting[socket.number] = socket
        socket.waits += 1
        if socket.held is not None:
            self.held_waits(socket)

    def _choose(self) -> NodeSession | None:
        """Return the session with the fewest WebSockets for its capacity, then with the fewest requests."""
        # The other way round than for a request: all that a Node loses go on at once, and what HTTP it has to do in
        # this moment says nothing of the hours to come.
        there = [one for one in self._nodes if not one.leaving and not one.lane.full]
        if not there:
            return None
        return min(there, key=lambda one: (one.websockets / one.capacity, len(one.open) / one.capacity))

    # -- what comes from the browser ---------------------------------------------------------------------------------

    def feed(self, socket: Socket, request: Request) -> None:
        """An event of one has come."""
        if request.method == Kind.WEBSOCKET_CLOSE:
            self.ended(socket, request.close_code or CloseCode.ABNORMAL_CLOSURE, request.close_reason)
            return
        payload = request.body
        why = socket.share.add(getsizeof(payload) + MESSAGE_BYTES)
        if why:
            if socket.entry is not None:
                socket.connection.sessions.fail(socket.entry, CloseCode.TRY_AGAIN_LATER, why)
            return
        socket.backlog.add(request.opcode or 0, payload)
        self._push(socket)

    def _push(self, socket: Socket) -> None:
        """Give the Node what it has room for; one that leaves gets nothing more, but the end."""
        session = socket.session
        # Where that Node has let it go meanwhile, the end is another one's. Else its application waits for it: it may
        # have asked for it.
        if session is None or (session.leaving and socket.ending is None):
            return
        # It stays where it can be given to another Node still. More than so much waiting for a Node ends its session.
        if session.lane.full:
            self._behind.setdefault(session, {})[socket.number] = socket
            return
        # The end of one is not held up by the window: what is sent after it goes nowhere, and nobody would say so.
        for number, flags, payload in socket.backlog.due(all_of_them=socket.ending is not None):
            if socket.ending is not None and flags & 15 == Opcode.CLOSE:
                self._nodes.send(session, b"%b %d %d %d" % (END, socket.number, number, socket.ending), payload)
                continue
            if flags & REDELIVERED:
                self.redelivered += 1
            self._nodes.send(session, b"%b %d %d %d" % (MESSAGE, socket.number, number, flags), payload)

    def ended(self, socket: Socket, code: int, reason: str) -> None:
        """One has ended; an application is told behind all messages. Twice is once."""
        if socket.ending is not None or self._sockets.get(socket.number) is not socket:
            return
        was_held = socket.held is not None
        socket.ending = int(code)
        socket.entry = socket.held = None
        if self.by_sid.get(socket.sid) is socket:
            del self.by_sid[socket.sid]
        if was_held:
            if socket.session is not None:
                self._nodes.send(socket.session, b"%b %d 0 %d" % (END, socket.number, code), reason.encode())
            self.forget(socket)
            return
        nobody_knows = socket.session is None and not socket.adopted and not socket.backlog
        socket.backlog.add(Opcode.CLOSE, reason.encode())
        if nobody_knows or (socket.session is None and len(self.waiting) > _MAX_WAITING):
            self.forget(socket)
        elif socket.session is None and socket.number not in self.waiting:
            self.give(socket)
        else:
            self._push(socket)

    def forget(self, socket: Socket) -> None:
        """Nothing is left to do for one."""
        self._take_back(socket)
        self._sockets.pop(socket.number, None)
        self.waiting.pop(socket.number, None)
        if self.by_sid.get(socket.sid) is socket:
            del self.by_sid[socket.sid]

    def _take_back(self, socket: Socket) -> None:
        session, socket.session = socket.session, None
        if session is not None:
            session.websockets -= 1
            for sockets in (self._of, self._behind):
                sockets.get(session, {}).pop(socket.number, None)

    # -- what Nodes say ----------------------------------------------------------------------------------------------

    def _on_done(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        for number, done in parse_done(words):
            socket = self.find(session, number)
            if socket is None:
                continue
            self._confirm(socket, done)
            if socket.ending is not None and not socket.backlog:
                self.forget(socket)
            else:
                self._push(socket)

    @staticmethod
    def _confirm(socket: Socket, done: int) -> None:
        for flags, payload in socket.backlog.confirm(done):
            if flags & 15 != Opcode.CLOSE:
                socket.share.remove(getsizeof(payload) + MESSAGE_BYTES)

    def _on_move(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        number, done, seen = parse_numbers(words, 3)
        socket = self.find(session, number)
        if socket is None:
            return
        self._confirm(socket, done)
        socket.backlog.let_go(seen)
        self._take_back(socket)
        self._go_on(socket)

    def _go_on(self, socket: Socket) -> None:
        """Its Node has not got it any more: another one is to go on with it."""
        is_over = socket.life is not socket.connection.link.life
        if socket.ending is not None and (is_over or not socket.backlog):
            self.forget(socket)
            return
        socket.adopted = socket.held is None
        self.give(socket)

    def _on_state(self, session: NodeSession, words: list[bytes], payload: bytes) -> None:
        socket = self.find(session, parse_number(words))
        if socket is not None:
            socket.state = parse_state(payload)

    def _on_room(self, session: NodeSession) -> None:
        """Somebody may have room again for those that wait."""
        behind = self._behind.get(session)
        while behind and not session.lane.full:
            self._push(behind.pop(next(iter(behind))))
        while self.waiting:
            socket = next(iter(self.waiting.values()))
            self.give(socket)
            if socket.number in self.waiting:
                return

    def _on_gone(self, session: NodeSession) -> None:
        # No need to wait for its lease to run out: all that it sends to a WebSocket came by the session that is over.
        self._behind.pop(session, None)
        for socket in self._of.pop(session, {}).values():
            socket.session = None
            socket.backlog.lost()
            self._go_on(socket)
