"""A Node's connection to its relay.

::

    connecting --hello--> greeted --welcome--> session --the connection ends, or "over"--> connecting

A session has what it was given, and its own answers: with its end, that is somebody else's.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent.event import Event

from ..errors import RemoteProtocolError
from ..protocol.fields import shown
from ..transport import Context, Receiver, SocketKind
from ..transport.security import Dial
from .lease import Lease
from .messages import Hello, Welcome, build_hello, join, number, numbers, parse_welcome, parts, split

__all__ = ["ALONE_WARNING_SECONDS", "Link"]

log = logging.getLogger("greentx.relay")

#: Seconds after which a WARNING says that the relay is not there; said again each minute.
ALONE_WARNING_SECONDS = 5.0

# What the relay does not count: it is no part of what a session is sent.
_UNCOUNTED = frozenset({b"welcome", b"lease", b"clock", b"over"})

# How often the relay's clock is asked for, and what waits for room is tried again.
_CLOCK_SECONDS = 0.25
_RETRY_SECONDS = 0.01

# Bytes that may wait for room in the connection to the relay; with more the session ends.
_MAX_WAITING = 64 * 1024 * 1024

Downstream = Callable[[list[bytes], bytes], object]


class Link:
    """One session after the other.

    All methods belong to the hub's thread.

    Args:
        context: Owner of the socket.
        hello: What the Node says of itself.
        endpoint: The relay's.
        dial: How to connect to it.

    Attributes:
        welcome: Called with what the relay says when a session has begun; they must not block.
        over: Called, without arguments, when it is over; likewise.
        counted: Called for each message of a session, before anything is done with it.
        in_session: A session has begun and is not over.
        endpoint: As given.
        bad_messages: How many messages meant nothing.
    """

    def __init__(self, context: Context, hello: Hello, endpoint: str, dial: Dial) -> None:
        self.welcome: list[Callable[[Welcome], object]] = []
        self.over: list[Callable[[], object]] = []
        self.counted: Callable[[], object] = lambda: None
        self.in_session = False
        self.endpoint = endpoint
        self.bad_messages = 0
        self._hello = hello
        self._context = context
        self._outbox = _Outbox(context, lambda message: self._dealer.send(message))
        self._state = _State(fenced=not endpoint.startswith("ipc:"))
        self._left = Event()
        self._downstream: dict[bytes, Downstream] = {
            b"welcome": self._on_welcome,
            b"lease": lambda words, payload: self._state.lease.renewed(_one(words)),
            b"clock": self._on_clock,
            b"over": lambda words, payload: self._let_go("the relay says that the session is over", logging.INFO),
            b"left": lambda words, payload: self._left.set(),
        }
        self._dealer = Receiver(
            context,
            SocketKind.DEALER,
            self._on_message,
            on_state=self._state_changed,
            linger=context.linger,
            security=dial,
            opening=self._open,
            name=f"relay of {hello.name}",
        )
        self._clock: Any = context.timer(_CLOCK_SECONDS, _CLOCK_SECONDS)
        # Runs while there is no session.
        self._warning: Any = context.timer(ALONE_WARNING_SECONDS, ALONE_WARNING_SECONDS * 12)

    def start(self) -> None:
        """Connect, now and whenever the connection is lost; does not wait."""
        self._dealer.connect(self.endpoint)
        self._clock.start(self._ask_for_clock)
        self._warning.start(self._warn)

    def on(self, kind: bytes, call: Downstream) -> None:
        """Have ``call(words, payload)`` called with what the relay says that begins with *kind*; it must not block.

        What it raises, ``RemoteProtocolError`` above all, ends that message.
        """
        assert kind not in self._downstream, kind
        self._downstream[kind] = call

    def tell(self, head: bytes, payload: bytes = b"") -> None:
        """Send one message to the relay, behind all that were told before, at the end of this round of the hub.

        Never blocks. Outside of a session it is dropped.

        Args:
            head: Its kind and words.
        """
        if self.in_session and not self._outbox.put(b"%b\n%b" % (head, payload)):
            self._let_go(f"more than {_MAX_WAITING} bytes wait for the relay")

    def flush(self) -> bool:
        """Send what was told now. Returns whether all of it went; else it waits for room."""
        return self._outbox.flush()

    def may_answer(self) -> bool:
        """Whether answers of this session may go out now: nobody else can have been given what it has."""
        state = self._state
        if not self.in_session:
            return False
        if not state.fenced or state.lease.holds(monotonic()):
            return True
        # The hub may not have run for a while: then the latest lease has come and was not seen.
        if not state.feeding:
            self._dealer.look()
        return self.in_session and state.lease.holds(monotonic())

    def leave(self, timeout: float) -> None:
        """Have the relay give us nothing new, and block until all that it gave us has come; *timeout* at the most."""
        self._left.clear()
        if self.in_session:
            self.tell(b"leave")
            self._left.wait(timeout)

    def stop(self, timeout: float) -> None:
        """End the session, behind what was told; what was answered has left. Safe to call twice."""
        self.tell(b"bye")
        self.flush()
        for timer in (self._clock, self._warning):
            self._context.unwatch(timer)
        self._outbox.stop()
        # First: that its connection ends is no news.
        self._end("")
        self._dealer.stop(timeout)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[bytes, bytes]:
        """A connection is about to be made."""
        self._state.asked = monotonic()
        self._state.lease = Lease()
        # Another one each time: what the relay still has of the last session is not sent into this one.
        return f"{self._hello.name}.{uuid.uuid4().hex[:12]}".encode("latin-1"), build_hello(self._hello)

    def _on_welcome(self, words: list[bytes], payload: bytes) -> None:
        welcome = parse_welcome(words, payload)
        if self.in_session or self._dealer.lost:
            return
        self.in_session = True
        self._warning.stop()
        self._state.lease.compared(self._state.asked, welcome.at)
        self._ask_for_clock()
        for call in self.welcome:
            call(welcome)

    def _state_changed(self) -> None:
        if self.in_session and self._dealer.lost:
            self._end(f"the connection to the relay at {self.endpoint} has ended")

    def _let_go(self, why: str, level: int = logging.WARNING) -> None:
        self._end(why, level)
        self._dealer.drop()
        self._dealer.connect(self.endpoint)

    def _end(self, why: str, level: int = logging.WARNING) -> None:
        if not self.in_session:
            return
        # First: nothing is told any more.
        self.in_session = False
        self._outbox.clear()
        self._left.set()
        if why:
            self._warning.again(self._warn, update=True)
            log.log(level, "%s: %s", self._hello.name, why)
        for call in self.over:
            call()

    # -- messages ----------------------------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        self._state.feeding = True
        try:
            for one in parts(message):
                try:
                    self._on_one(one)
                except RemoteProtocolError as error:
                    self._bad(error)
        except RemoteProtocolError as error:
            self._bad(error)
        finally:
            self._state.feeding = False

    def _on_one(self, message: bytes) -> None:
        kind, words, payload = split(message)
        call = self._downstream.get(kind)
        if kind not in _UNCOUNTED:
            if not self.in_session:
                return  # of one that is over
            self.counted()
        if call is None:
            raise RemoteProtocolError(f"{shown(kind)} means nothing here")
        call(words, payload)

    def _bad(self, error: RemoteProtocolError) -> None:
        self.bad_messages += 1
        log.warning("%s: bad message number %d: %s", self._hello.name, self.bad_messages, error)

    def _warn(self) -> None:
        if not self.in_session:
            log.warning("%s: %s", self._hello.name, self.why)

    def _ask_for_clock(self) -> None:
        if self.in_session:
            self.tell(b"clock %d" % int(monotonic() * 1000))

    def _on_clock(self, words: list[bytes], payload: bytes) -> None:
        asked, at = _two(words)
        self._state.lease.compared(asked / 1000, at)

    @property
    def why(self) -> str:
        """Why there is no session, and what to look at; ``""`` where there is one."""
        if self.in_session:
            return ""
        why = self._dealer.why or "connected, but it does not say welcome"
        return f"no relay at {self.endpoint} ({why}): is the API running, and is this its relay's node_endpoint?"

    def __repr__(self) -> str:
        return f"<Link {self.endpoint}: {self.why or 'in session'}>"


class _State:
    """Of one session.

    Attributes:
        fenced: Answers need a lease.
        asked: When the hello was made.
        feeding: A message is being dealt with.
    """

    __slots__ = ("asked", "feeding", "fenced", "lease")

    def __init__(self, *, fenced: bool) -> None:
        self.fenced = fenced
        self.asked = 0.0
        self.feeding = False
        self.lease = Lease()


class _Outbox:
    """What is to be sent to the relay, all that one round of the hub has for it in one message.

    Args:
        context: Owner of the timer.
        send: Sends one message; returns whether there was room for it.
    """

    def __init__(self, context: Context, send: Callable[[bytes], bool]) -> None:
        self._messages: list[bytes] = []
        self._bytes = 0
        self._send = send
        self._scheduled = False
        self._context = context
        # While there is no room.
        self._timer: Any = context.timer(_RETRY_SECONDS, _RETRY_SECONDS)

    def put(self, message: bytes) -> bool:
        """Return whether that is within the bound."""
        self._messages.append(message)
        self._bytes += len(message)
        if not self._scheduled:
            self._scheduled = True
            self._context.hub.loop.run_callback(self._end_round)
        return self._bytes <= _MAX_WAITING

    def _end_round(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> bool:
        if not self._messages:
            return True
        if not self._context.open:
            return False
        if self._send(join(self._messages)):
            self.clear()
            return True
        if not self._timer.active:
            # Not start(): it goes on with what was left of the timer's last run.
            self._timer.again(self.flush, update=True)
        return False

    def clear(self) -> None:
        self._messages.clear()
        self._bytes = 0
        self._timer.stop()

    def stop(self) -> None:
        self.clear()
        self._context.unwatch(self._timer)


def _one(words: list[bytes]) -> int:
    if len(words) != 1:
        raise RemoteProtocolError(f"one number is expected, not {len(words)} words")
    return number(words[0])


def _two(words: list[bytes]) -> tuple[int, int]:
    if len(words) != 2:
        raise RemoteProtocolError(f"two numbers are expected, not {len(words)} words")
    first, second = numbers(words)
    return first, second
