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
from ..transport.monitor import ContactState
from ..transport.security import Dial
from .lease import Lease
from .messages import Hello, Welcome, build_hello, number, numbers, parse_welcome, parts, split
from .outbox import MAX_WAITING, Outbox
from .refusals import Refused, reason_of

__all__ = ["ALONE_WARNING_SECONDS", "Link"]

log = logging.getLogger("greentx.relay")

#: Seconds after which a WARNING says that the relay is not there; said again each minute.
ALONE_WARNING_SECONDS = 5.0

# What the relay does not count among what a session is sent.
_UNCOUNTED = frozenset({b"welcome", b"lease", b"clock", b"over", b"wrote"})

# How often the relay's clock is asked for.
_CLOCK_SECONDS = 0.25

# Of a handshake that failed ZeroMQ tells no more here.
_WITHOUT_KEYS = (
    "is this its relay's node_endpoint? Where the relay has curve_secret=, a Node needs curve_relay=, the relay's "
    "public key, and a curve_secret= of its own, whose public key is in the relay's curve_allow="
)
_WITH_KEYS = (
    "is curve_relay= the public key of the relay's curve_secret=, and is that of the Node's curve_secret= in the "
    "relay's curve_allow=? Where the relay has no curve_secret=, a Node must not have curve_relay="
)

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
        self._outbox = Outbox(context, lambda message: self._dealer.send(message))
        self._state = _State(fenced=not endpoint.startswith("ipc:"), has_key=dial.server_key is not None)
        self._refused = Refused(context, lambda: self._dealer.connect(endpoint))
        self._downstream: dict[bytes, Downstream] = {
            b"welcome": self._on_welcome,
            b"lease": lambda words, payload: self._state.lease.renewed(_one(words)),
            b"clock": self._on_clock,
            b"over": self._on_over,
            b"left": lambda words, payload: self._state.left.set(),
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
            self._let_go(f"more than {MAX_WAITING} bytes wait for the relay")

    def offer(self, head: bytes, payload: bytes, *, wait: bool = True) -> bool:
        """As :meth:`tell`, but for what an application may send any amount of: it never ends the session.

        Never blocks. Returns whether there was room for it: else nothing was sent.

        Args:
            wait: Whoever offers it can call :meth:`send` then; else there is room for more.
        """
        return not self.in_session or self._outbox.offer(head, payload, wait=wait)

    def send(self, head: bytes, payload: bytes, seconds: float | None) -> bool:
        """As :meth:`offer`, in turn: blocks this greenlet until there is room, or the session is over.

        Returns whether that came to be, before nothing went to the relay for so many *seconds*; ``None`` waits on.
        """
        return not self.in_session or self._outbox.send(head, payload, seconds)

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
        self._state.left.clear()
        if self.in_session:
            self.tell(b"leave")
            self._state.left.wait(timeout)

    def stop(self, timeout: float) -> None:
        """End the session, behind what was told; what was answered has left. Safe to call twice."""
        self.tell(b"bye")
        self.flush()
        for timer in (self._clock, self._warning):
            self._context.unwatch(timer)
        self._outbox.stop()
        self._refused.stop()
        # First: nobody has to be told that its connection ends.
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
        if self.in_session or self._dealer.lost:
            return
        try:
            welcome = parse_welcome(words, payload)
        except RemoteProtocolError as error:
            # Another one may be there next time; until then there is nothing to be had by this connection.
            self._refuse(f"its welcome means nothing here: {error}".encode(errors="backslashreplace"))
            raise
        self.in_session = True
        self._refused.let_in()
        self._warning.stop()
        self._state.lease.compared(self._state.asked, welcome.at)
        self._ask_for_clock()
        for call in self.welcome:
            call(welcome)

    def _state_changed(self) -> None:
        if self.in_session and self._dealer.lost:
            self._end(f"the connection to the relay at {self.endpoint} has ended")

    def _on_over(self, words: list[bytes], payload: bytes) -> None:
        if self.in_session:
            # Without a reason it ends.
            why = f"the relay says that the session is over: {reason_of(payload) or 'it ends'}"
            self._let_go(why, logging.WARNING if payload else logging.INFO)
            return
        if self._refuse(payload):
            self._warn()

    def _refuse(self, why: bytes) -> bool:
        """No session comes of this connection. Returns whether it was not known why."""
        # Not at once again: nothing has changed by then, and the next attempt would end in the same way.
        self._dealer.drop()
        return self._refused.refused(why)

    def _let_go(self, why: str, level: int = logging.WARNING) -> None:
        self._end(why, level)
        self._dealer.drop()
        self._dealer.connect(self.endpoint)

    def _end(self, why: str, level: int = logging.WARNING) -> None:
        if not self.in_session:
            return
        # First: nothing is told any more.
        self.in_session = False
        self._outbox.over()
        self._state.left.set()
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
        if self._refused.why:
            return f"the relay at {self.endpoint} does not let this Node in: {self._refused.why}"
        why = self._dealer.why or "connected, but it does not say welcome"
        if why == ContactState.FOREIGN.value:
            return f"no relay at {self.endpoint} (the handshake failed): {self._state.keys}"
        return f"no relay at {self.endpoint} ({why}): is the API running, and is this its relay's node_endpoint?"

    def __repr__(self) -> str:
        return f"<Link {self.endpoint}: {self.why or 'in session'}>"


class _State:
    """Of one session.

    Attributes:
        fenced: Answers need a lease.
        asked: When the hello was made.
        feeding: A message is being dealt with.
        keys: What to look at where the handshake failed.
        left: The relay has said that nothing new comes.
    """

    __slots__ = ("asked", "feeding", "fenced", "keys", "lease", "left")

    def __init__(self, *, fenced: bool, has_key: bool) -> None:
        self.fenced = fenced
        self.keys = _WITH_KEYS if has_key else _WITHOUT_KEYS
        self.asked = 0.0
        self.feeding = False
        self.lease = Lease()
        self.left = Event()


def _one(words: list[bytes]) -> int:
    if len(words) != 1:
        raise RemoteProtocolError(f"one number is expected, not {len(words)} words")
    return number(words[0])


def _two(words: list[bytes]) -> tuple[int, int]:
    if len(words) != 2:
        raise RemoteProtocolError(f"two numbers are expected, not {len(words)} words")
    first, second = numbers(words)
    return first, second
