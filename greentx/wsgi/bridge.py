"""A socket for applications whose library speaks the WebSocket protocol itself, such as simple-websocket.

Such a library finds a socket in the environ, writes the 101 and the frames to it and reads the client's frames from it.
Mongrel2 has parsed these already, and between its messages bytes of our own have their place (pings, a close frame). So
the socket is one end of a pair, and at the other end

* the library's bytes are read as frames, which go out whole: a ping of ours cannot get into the middle of one;
* each message that comes from the client is made a frame again, masked (with zeros) as a client's have to be;
* the end, whatever it was, is a close frame with its code where there is one to be sent, and the end of the stream.

What the core does for such a WebSocket, and what it leaves to the library, is said in
:mod:`greentx.handler.websockets`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent import socket
from gevent.event import Event

from ..errors import ConnectionClosed, GreentxError, ProtocolError
from ..protocol.bounds import MESSAGE_BYTES
from ..protocol.websocket.frames import CloseCode, Frame, Opcode, parse_close, parse_flags
from ..protocol.websocket.library import Library, LibraryState, Switched, client_close, client_frame
from ..protocol.websocket.registry import OPEN, Entry
from .carried import Carried

if TYPE_CHECKING:
    from ..protocol.request import Request
    from .exchange import Exchange

__all__ = ["Bridge", "BridgeSocket"]

log = logging.getLogger("greentx.wsgi.websocket")

_READ_SIZE = 65536


class BridgeSocket:
    """``environ['werkzeug.socket']``: a ``gevent.socket.socket`` which there is as soon as it is used.

    :meth:`send` sends all, since those who use it do not look at what it returns.

    Args:
        open_bridge: Returns the bridge, the same one each time.
        on_use: Called before something is sent.
    """

    def __init__(self, open_bridge: Callable[[], Bridge], on_use: Callable[[], None]) -> None:
        self._open_bridge = open_bridge
        self._on_use = on_use

    def send(self, data: bytes, flags: int = 0) -> int:
        """Send *data*, all of it, and return its length. Blocks this greenlet."""
        self.sendall(data, flags)
        return len(data)

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send *data*. Blocks this greenlet."""
        theirs = self._open_bridge().theirs
        self._on_use()
        theirs.sendall(data, flags)

    def __getattr__(self, name: str) -> Any:
        # Not for Python's own protocols: copy and pickle ask an object for these before it has any attributes.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._open_bridge().theirs, name)

    def __copy__(self) -> BridgeSocket:
        """Return the same one: a connection is not copied, and middleware copies what is in an environ."""
        return self

    def __deepcopy__(self, memo: object) -> BridgeSocket:
        return self


class Bridge:
    """The pair of sockets of one connection, and the two greenlets at our end of it.

    Args:
        exchange: The request that asked for a WebSocket.
        on_switch: Called when the library has answered, with the length of the head and the status: ``b"101 ..."``.

    Attributes:
        theirs: The library's end.
        entry: What is known of the WebSocket, once the library has let the client in; ``None`` before.
    """

    def __init__(self, exchange: Exchange, on_switch: Callable[[int, bytes], None]) -> None:
        self._exchange = exchange
        self._on_switch = on_switch
        # Two descriptors, so that the library may select() or poll() on its end.
        self._ours, self.theirs = socket.socketpair()
        carrier = exchange.request.carrier
        self._carried = None if carrier is None else Carried(carrier, self.theirs)
        self.entry: Entry | None = None
        # Frames, and how many bytes of each were counted: 0 of control frames.
        self._incoming: deque[tuple[bytes, int]] = deque()
        self._share = exchange.connection.sessions.queued.share()
        self._work = Event()
        self._ended = False
        # Once the application has ended: what the client is told, where it left its socket open, and whether it was
        # killed.
        self._end: tuple[int | None, bool] = (None, False)
        # On a Node there are messages and no frames: the library has nothing to agree on.
        self._library = Library(plain=carrier is not None)
        # The library has answered, or never will.
        self._answered = Event()
        self._reader = gevent.spawn(self._read)
        self._writer = gevent.spawn(self._write)

    # -- from the library ------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Read until the library has closed its socket; return whether its application left the WebSocket open."""
        try:
            while data := self._ours.recv(_READ_SIZE):
                for written in self._library.read(data):
                    self._pass_on(written)
            self._library.end()
            if self._library.state is LibraryState.ANSWER:
                self._exchange.connection.close(self._exchange.request)
        except ProtocolError as error:
            log.warning("%r: the application's library broke the protocol: %s", self, error)
            if self.entry is None:
                self._hang_up()
            self.begin_close(CloseCode.INTERNAL_ERROR)
        except (ConnectionClosed, OSError) as error:
            log.debug("%r: %s", self, error)
        except GreentxError as error:
            log.warning("%r: %s", self, error)
            self.begin_close(CloseCode.INTERNAL_ERROR)
        finally:
            self._answered.set()
            self._stop_writing()
        # Known now that all has been read that the library wrote, a close frame among it.
        code, killed = self._end
        left_open = code is not None and self.entry is not None and self.entry.state == OPEN
        if self._carried is not None and self.entry is not None:
            self._carried.finish(killed=killed)
        self.begin_close(CloseCode.NORMAL_CLOSURE if code is None else code)
        return left_open

    def _pass_on(self, written: Switched | Frame | bytes) -> None:
        if isinstance(written, Frame):
            assert self.entry is not None
            self._send(self.entry, written)
        elif isinstance(written, Switched):
            self._switch(written.head)
            self._let_in(written)
        else:
            # The library does not let the client in, and says so itself.
            if not self._answered.is_set():
                self._switch(written)
            self._exchange.connection.answers.part(self._exchange.request, written)

    def _let_in(self, switched: Switched) -> None:
        connection, request, carried = self._exchange.connection, self._exchange.request, self._carried
        # From here on it is not an open HTTP request: answers to it would go into the frames.
        connection.answers.take_out(request)
        if carried is not None:
            carried.receives()
        self.entry = connection.sessions.accept_raw(
            request, switched.head, self._receive, subprotocol=switched.subprotocol
        )
        if carried is not None:
            carried.begin(self.entry, self._on_pong)

    def wait_for_entry(self) -> Entry | None:
        """Return :attr:`entry` when the library's answer was read; ``None`` where that lets nobody in. Blocks."""
        # Whoever waits is woken when it has been let in: nothing between the two lets another greenlet run.
        self._answered.wait()
        return self.entry

    def _send(self, entry: Entry, frame: Frame) -> None:
        sessions = self._exchange.connection.sessions
        # Closing is the core's: it has timeouts, and tells the registry.
        if frame.opcode == Opcode.CLOSE:
            code, reason = parse_close(frame.payload)
            sessions.close(entry, code if frame.payload else None, reason)
        elif self._carried is None:
            sessions.send_to(entry, frame.payload, frame.opcode, frame.rsvd)
        elif frame.opcode == Opcode.PING:
            self._carried.ping(entry, frame.payload)
        else:
            sessions.send_to(entry, frame.payload, frame.opcode)
            self._carried.answer()
            self._work.set()

    def _switch(self, data: bytes) -> None:
        self._answered.set()
        self._on_switch(len(data), data[len(b"HTTP/1.1 ") : data.index(b"\r\n")])

    def _hang_up(self) -> None:
        """Close without an answer, where the library wrote none that could be passed on."""
        if not self._answered.is_set():
            self._answered.set()
            self._on_switch(0, b"000 ")
        self._exchange.connection.close(self._exchange.request)

    # -- to the library --------------------------------------------------------------------------------------------

    def _receive(self, request: Request) -> None:
        """Accept a message, or the end; called by the core, never blocks."""
        if request.method == "WEBSOCKET_CLOSE":
            code = request.close_code
            assert code is not None
            if request.moved:
                # These come where it goes on: the library has seen nothing of them.
                self._drop_incoming()
            frame = client_close(code, request.close_reason)
            if frame:
                self._incoming.append((frame, 0))
            self._stop_writing()
            self._exchange.lose()
        elif not self._ended:
            opcode, rsvd = parse_flags(str(request.header("FLAGS")))
            # The library may read more slowly than its peer sends; nothing else stops that peer.
            size = len(request.body) + MESSAGE_BYTES
            why = self._share.add(size)
            if why:
                assert self.entry is not None
                self._exchange.connection.sessions.fail(self.entry, CloseCode.TRY_AGAIN_LATER, why)
                return
            self._incoming.append((client_frame(request.body, opcode, rsvd), size))
            self._work.set()

    def _stop_writing(self) -> None:
        self._ended = True
        self._work.set()

    def _on_pong(self, payload: bytes) -> None:
        """The client has answered a ping of the library's; on a Node, where pongs do not come as messages."""
        if not self._ended:
            self._incoming.append((client_frame(payload, Opcode.PONG), 0))
            self._work.set()

    def _write(self) -> None:
        try:
            while True:
                while self._incoming:
                    frame, size = self._incoming.popleft()
                    if size:
                        self._share.remove(size)
                        if self._carried is not None:
                            self._carried.give(len(frame))
                    self._ours.sendall(frame)
                if self._ended:
                    break
                self._work.clear()
                self._work.wait(None if self._carried is None else self._carried.settle())
            self._ours.shutdown(socket.SHUT_WR)
        except OSError as error:
            log.debug("%r: the application's library reads no more: %s", self, error)
            self._ended = True
            self._drop_incoming()

    def _drop_incoming(self) -> None:
        for _frame, size in self._incoming:
            self._share.remove(size)
        self._incoming.clear()

    # -- the end ---------------------------------------------------------------------------------------------------

    def begin_close(self, code: int) -> None:
        """Send a close frame where none was sent. Does not block."""
        if self.entry is not None:
            self._exchange.connection.sessions.close(self.entry, code)

    def finish(self, code: int, *, killed: bool = False) -> bool:
        """The application has ended: pass on what it wrote, close with *code*, let go of the sockets; twice is once.

        Blocks this greenlet while the client does not read.

        Args:
            killed: The application was. Where a Node leaves, another one's goes on with the WebSocket then.

        Returns:
            Whether the application left it open: nobody had closed it.
        """
        if self._ours.closed:
            return False
        self._end = (None if self.theirs.closed else code, killed)
        try:
            with contextlib.suppress(OSError):  # the library may have closed it
                self.theirs.shutdown(socket.SHUT_WR)
            self._reader.join()
        finally:
            # The writer may wait for a library that has returned and reads no more.
            gevent.killall([self._reader, self._writer])
            self._ours.close()
            self.theirs.close()
        return self._reader.value is True

    def __repr__(self) -> str:
        state = "no answer yet" if self.entry is None else self.entry.state
        return f"<Bridge of connection {self._exchange.request.conn_id}: {state}, {len(self._incoming)} messages wait>"
