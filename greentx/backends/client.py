"""One process's way to Redis: commands in batches, channels, and a new attempt where it went.

redis-py does the protocol; its connections get sockets of gevent's, so that this works without monkey patching, too.
There are two connections, each read by one greenlet: one for commands, one for what is published. They come and go
together, so that whoever is told ``hooks.up`` has missed nothing since then.

Nothing waits for Redis here but :meth:`RedisClient.ask`: commands are queued, and what has come together within
:data:`BATCH_SECONDS` goes out in one round trip. While Redis is away nothing is queued: who is told that it is back
sends what is true by then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from random import random
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakSet

import gevent
import redis
from gevent import socket
from gevent.event import AsyncResult, Event
from gevent.monkey import is_module_patched
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.retry import Retry

from ..errors import TransportError

__all__ = ["BATCH_SECONDS", "MAX_QUEUED_BYTES", "Hooks", "RedisClient"]

log = logging.getLogger("greentx.redis")

#: What is queued within so many seconds goes out together.
BATCH_SECONDS = 0.01

#: Bytes of commands that may wait. With more, Redis counts as away, and what is true then is sent when it is back.
MAX_QUEUED_BYTES = 16 * 1024 * 1024

# Of one batch: so that replies are read before either side's buffers are full.
_BATCH_BYTES = 256 * 1024
_BATCH_COMMANDS = 5000

# Between two attempts to connect; doubled each time, with some chance, so that not all come back at once.
_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 2.0

_COMMAND_BYTES = 64

Command = Sequence[Any]
Then = Callable[[Any], None]


class _GreenConnection(Connection):
    green: Any = None

    def _connect(self) -> Any:
        sock = self.green = socket.create_connection((self.host, self.port), self.socket_connect_timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(self.socket_timeout)
        return sock


class _GreenUnixConnection(UnixDomainSocketConnection):
    green: Any = None

    def _connect(self) -> Any:
        sock = self.green = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.socket_connect_timeout)
            sock.connect(self.path)
            sock.settimeout(self.socket_timeout)
        except BaseException:  # raised again
            sock.close()
            raise
        return sock


class Hooks(NamedTuple):
    """What a :class:`RedisClient` calls. None of these may block.

    Attributes:
        up: Called when commands can be sent and all channels are subscribed to.
        down: Called when Redis has gone.
        message: Called with the channel and the data of what was published.
        collect: Called before each batch: may add commands to it.
    """

    up: Callable[[], None] = lambda: None
    down: Callable[[], None] = lambda: None
    message: Callable[[bytes, bytes], None] = lambda channel, data: None
    collect: Callable[[], None] = lambda: None


class RedisClient:
    """Sends commands to one Redis, and receives what is published on some channels.

    Args:
        url: ``redis://[[user]:password@]host[:port][/database]`` or ``unix:///path``; ``rediss://`` (TLS) in programs
            that are monkey-patched.
        timeout: Seconds in which Redis has to answer, or it counts as away.

    Attributes:
        hooks: What it calls; may be changed before :meth:`start`.
        up: Redis is there.
        why: Why not, in words.
        round_trips: How many batches were sent and answered.

    Raises:
        ValueError: The URL is none of these.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.hooks = Hooks()
        self.up = False
        self.why = "not connected yet"
        self.round_trips = 0
        self._url = _Url(url)
        self._timeout = timeout
        self._channels: dict[str, None] = {}
        # What is to be changed of them with the next batch.
        self._subscriptions: list[tuple[str, str]] = []
        self._queue: list[tuple[Command, Then | None]] = []
        self._queued_bytes = 0
        self._wake = Event()
        self._commands: Any = None
        self._subscriber: Any = None
        self._greenlet: gevent.Greenlet[..., None] | None = None
        # Of a forked child there is another one.
        self._pid = os.getpid()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self, channels: Sequence[str]) -> None:
        """Connect, now and whenever Redis went, and subscribe to *channels*. Does not block."""
        self._channels = dict.fromkeys(channels)
        self._greenlet = gevent.spawn(self._run)
        _cut_off_when_forked(self)

    def cut_off(self) -> None:
        """This is a forked child: let go of its copies of the parent's sockets."""
        self.up, self.why = False, "the connection is the parent process's"
        for connection in (self._commands, self._subscriber):
            sock = getattr(connection, "green", None)
            if sock is not None:
                sock.close()

    def stop(self, timeout: float) -> None:
        """Send what is queued, for *timeout* seconds at the most, and disconnect."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is None:
            return
        blocks = gevent.getcurrent() is not gevent.get_hub()
        if blocks:
            with gevent.Timeout(timeout, False):
                while self.up and (self._queue or self._wake.is_set()):
                    gevent.sleep(BATCH_SECONDS / 2)
        greenlet.kill(block=blocks)

    def _run(self) -> None:
        pause = _RETRY_SECONDS
        warned = False
        while os.getpid() == self._pid:
            try:
                self._connected(warned)
            except Exception as error:
                if os.getpid() != self._pid:
                    return
                if not isinstance(error, (redis.RedisError, OSError, TransportError)):
                    log.exception("what came from Redis could not be handled")
                was_up = self.up
                self._go_down(f"{type(error).__name__}: {error}")
                if was_up or not warned:
                    # Once, however long it is away.
                    warned = True
                    pause = _RETRY_SECONDS
                    log.warning(
                        "Redis at %s is away (%s): this process goes on by itself, and nobody is dropped for it",
                        self._url.shown,
                        self.why,
                    )
            gevent.sleep(pause * (0.5 + random()))
            pause = min(2 * pause, _MAX_RETRY_SECONDS)

    def _go_down(self, why: str) -> None:
        self.why = why
        queue, self._queue = self._queue, []
        self._queued_bytes = 0
        if self.up:
            self.up = False
            self.hooks.down()
        _tell_waiting(queue, TransportError(why))

    def _connected(self, warned: bool) -> None:
        commands = self._commands = self._url.connect(self._timeout, self._timeout)
        reader: gevent.Greenlet[..., None] | None = None
        try:
            commands.connect()
            # What is published may be silent for long: whether it is there is found out by asking.
            subscriber = self._url.connect(self._timeout, None)
            self._subscriber = subscriber
            try:
                with gevent.Timeout(self._timeout, redis.TimeoutError(f"no answer for {self._timeout:g} s")):
                    subscriber.connect()
                    # More may be added meanwhile, and are subscribed to by the first batch.
                    self._subscriptions.clear()
                    channels = list(self._channels)
                    for channel in channels:
                        subscriber.send_command("SUBSCRIBE", channel)
                    # Between the answers there may be messages, of which nobody needs to know yet.
                    answers = iter(subscriber.read_response, None)
                    for _ in channels:
                        next(answer for answer in answers if answer[0] == b"subscribe")
                published = _Published(subscriber, self._timeout)
                reader = gevent.spawn(published.read, self.hooks.message, self._wake)
                self.up, self.why = True, ""
                if warned:
                    log.info("Redis at %s is back", self._url.shown)
                self.hooks.up()
                while True:
                    self._wake.wait(published.pause)
                    published.check()
                    if self._wake.is_set():
                        gevent.sleep(BATCH_SECONDS)
                        self._wake.clear()
                        while self._subscriptions:
                            subscriber.send_command(*self._subscriptions.pop(0), check_health=False)
                        self._flush(commands)
            finally:
                self._subscriber = None
                if reader is not None:
                    reader.kill()
                subscriber.disconnect()
        finally:
            self._commands = None
            commands.disconnect()

    def _flush(self, connection: Any) -> None:
        self.hooks.collect()
        while self._queue:
            count = size = 0
            for command, _ in self._queue[:_BATCH_COMMANDS]:
                size += _size(command)
                count += 1
                if size >= _BATCH_BYTES:
                    break
            batch = self._queue[:count]
            del self._queue[:count]
            self._queued_bytes -= size
            try:
                replies = _exchange(connection, [command for command, _ in batch])
            except BaseException as error:  # raised again
                _tell_waiting(batch, error)
                raise
            self.round_trips += 1
            for (command, then), reply in zip(batch, replies, strict=True):
                if then is not None:
                    then(reply)
                if isinstance(reply, redis.ResponseError):
                    raise TransportError(f"{command[0]} was refused: {reply}")

    # -- what is sent -------------------------------------------------------------------------------------------------

    def send(self, *command: Any, then: Then | None = None) -> None:
        """Send a command with the next batch, where Redis is there. Never blocks.

        Args:
            then: Called with the reply.
        """
        if not self.up:
            return
        self._queue.append((command, then))
        self._queued_bytes += _size(command)
        self._wake.set()
        if self._queued_bytes > MAX_QUEUED_BYTES:
            # As if it were away: it does not keep up, and what is true later is less than all that happened.
            self._queue.clear()
            self._queued_bytes = 0
            self._queue.append((("PING",), self._overflow))

    def _overflow(self, _reply: object) -> None:
        raise TransportError(f"more than {MAX_QUEUED_BYTES} bytes waited for it")

    def wake(self) -> None:
        """Have ``hooks.collect`` called, and a batch sent."""
        self._wake.set()

    def ask(self, *command: Any) -> Any:
        """Send a command and return the reply. Blocks this greenlet.

        Raises:
            TransportError: Redis is away, or has not answered within the timeout.
        """
        if not self.up:
            raise TransportError(f"Redis at {self._url.shown} is away: {self.why}")
        # So that the answer knows what was changed just before.
        self.hooks.collect()
        answer: AsyncResult[Any] = AsyncResult()
        self.send(*command, then=answer.set)
        answer.wait(self._timeout + BATCH_SECONDS)
        if not answer.ready():
            raise TransportError(f"Redis at {self._url.shown} has not answered within {self._timeout:g} s")
        reply = answer.get()
        if isinstance(reply, Exception):
            raise TransportError(str(reply)) from reply
        return reply

    def subscribe(self, channel: str) -> None:
        """Receive what is published on *channel*, too; also after a new connection."""
        if channel not in self._channels:
            self._channels[channel] = None
            self._change("SUBSCRIBE", channel)

    def unsubscribe(self, channel: str) -> None:
        """Receive it no more."""
        if channel in self._channels:
            del self._channels[channel]
            self._change("UNSUBSCRIBE", channel)

    def _change(self, command: str, channel: str) -> None:
        # By the greenlet that has the connection: the caller may be the hub, which must not wait for a socket.
        self._subscriptions.append((command, channel))
        self._wake.set()

    def __repr__(self) -> str:
        return f"<RedisClient {self._url.shown}: {'up' if self.up else self.why}, {len(self._queue)} commands wait>"


class _Url:
    """Where Redis is."""

    def __init__(self, url: str) -> None:
        self._options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py has no types here
        kind = self._options.pop("connection_class", Connection)
        self._kind: Any = {Connection: _GreenConnection, UnixDomainSocketConnection: _GreenUnixConnection}.get(kind)
        if kind is SSLConnection:
            # gevent has contexts of its own for TLS, and redis-py makes the standard library's.
            if not (is_module_patched("ssl") and is_module_patched("socket")):
                raise ValueError("rediss:// needs a program that is monkey-patched; else let a proxy add TLS")
            self._kind = SSLConnection
        # Without a password.
        where = self._options.get("path") or f"{self._options.get('host', 'localhost')}"
        self.shown = where if "path" in self._options else f"{where}:{self._options.get('port', 6379)}"

    def connect(self, connect_timeout: float, timeout: float | None) -> Any:
        """Return a connection that is not connected yet."""
        options = {
            **self._options,
            "socket_connect_timeout": connect_timeout,
            "socket_timeout": timeout,
            # What is published is read as other replies are.
            "protocol": 2,
            "client_name": "greentx",
            # redis-py's own would sleep, with the whole thread.
            "retry": Retry(NoBackoff(), 0),
        }
        return self._kind(**options)


class _Published:
    """Reads what is published.

    Attributes:
        pause: Seconds between two calls of :meth:`check`.
    """

    def __init__(self, connection: Any, timeout: float) -> None:
        self.pause = timeout / 2
        self._connection = connection
        self._timeout = timeout
        self._heard = self._asked = monotonic()
        self._ended: Exception | None = None

    def read(self, on_message: Callable[[bytes, bytes], None], wake: Event) -> None:
        """Hand on each message until the connection ends."""
        try:
            while True:
                message = self._connection.read_response()
                self._heard = monotonic()
                if message[0] == b"message":
                    on_message(message[1], message[2])
        except (redis.RedisError, OSError) as error:
            self._ended = error
            wake.set()
        except Exception as error:
            log.exception("what was published could not be handled")
            self._ended = TransportError(str(error))
            wake.set()

    def check(self) -> None:
        """Raise what ended it, or ``redis.TimeoutError`` where Redis does not answer there."""
        if self._ended is not None:
            raise self._ended
        now = monotonic()
        if self._asked > self._heard and now - self._asked > self._timeout:
            raise redis.TimeoutError(f"no answer for {self._timeout:g} s on the connection for channels")
        if now - max(self._heard, self._asked) >= self.pause:
            self._asked = now
            self._connection.send_command("PING", check_health=False)


# Of the process: a hook of os cannot be taken back.
_clients: WeakSet[RedisClient] = WeakSet()
_hooked: list[bool] = []


def _cut_off_when_forked(client: RedisClient) -> None:
    _clients.add(client)
    if not _hooked:
        _hooked.append(True)
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for client in list(_clients):
        client.cut_off()


def _exchange(connection: Any, commands: list[Command]) -> list[Any]:
    """Send commands and return the replies; an error is the reply of its command."""
    connection.send_packed_command(connection.pack_commands(commands), False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except redis.ResponseError as error:
            replies.append(error)
    return replies


def _tell_waiting(commands: list[tuple[Command, Then | None]], error: BaseException) -> None:
    """Tell those who wait for a reply that there will be none."""
    for _, then in commands:
        answer = getattr(then, "__self__", None)
        if isinstance(answer, AsyncResult):
            answer.set(TransportError(f"Redis is away: {error}"))


def _size(command: Command) -> int:
    return _COMMAND_BYTES + sum(len(one) if isinstance(one, (bytes, str)) else 8 for one in command)
