"""A front end in a process of our own, whichever program it is: addressed, started, watched, logged and ended."""

from __future__ import annotations

import atexit
import dataclasses
import os
import signal
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

from gevent.lock import RLock

from ..errors import BindError, ConnectTimeout, ForkError, LocalProtocolError, ThreadError
from ..transport import native_thread_id
from ..transport.endpoints import bind_endpoint, connect_endpoint
from ..transport.idle import IdleLimit
from . import addresses
from .addresses import Addresses
from .config import SERVER_UUID, Handler, idle_seconds
from .folder import Folder
from .output import Output, Phase
from .process import ChildProcess

__all__ = ["FrontEndProcess", "Place", "Program"]

# How often a port that was free a moment ago may turn out to be in use before we give up. Nothing reserves one until
# the program binds it.
_ATTEMPTS = 10

# Between two looks whether the program is ready.
_POLL_INTERVAL = 0.005

# Of the time that the process has to end, for what it does without waiting for clients any more.
_HURRY_SECONDS = 2.0

T = TypeVar("T", bound="FrontEndProcess")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a program is to serve.

    Attributes:
        folder: That it is started in; its configuration goes there. It is there.
        routes: Handlers by path, with their endpoints.
        host: The numeric address to listen on; ``None``: only where the program was told by other means.
        port: Next to it.
    """

    folder: str
    routes: Mapping[str, Handler]
    host: str | None
    port: int


class Program(Protocol):
    """What one kind of front end is.

    Attributes:
        name: For messages.
        output: What reads its lines.
        descriptors: Of ours that it gets.
        files: Paths of Unix sockets that it listens on, and removes when it is not killed.
    """

    @property
    def name(self) -> str: ...
    @property
    def output(self) -> Output: ...
    @property
    def descriptors(self) -> Sequence[int]: ...
    @property
    def files(self) -> Sequence[str]: ...

    def command(self) -> list[str]:
        """Return the program, with its absolute path, and its arguments. Raises ``FrontEndNotFound``."""

    def write(self, place: Place) -> None:
        """Write its configuration, over what an earlier start left. Raises ``OSError``."""

    def unbound(self, specs: Sequence[str]) -> list[str]:
        """Return which endpoints of *specs* it has not bound yet; none: it is ready, on its port too."""


class FrontEndProcess:
    """A front end in a process of our own, from :meth:`start` to :meth:`stop`; a context manager, too.

    It ends when we end, even if we are killed (see :class:`~greentx.edge.process.ChildProcess`; start it from a thread
    that lives as long). Waiting blocks only the calling greenlet. Of greenlets that start or end it at the same time
    each waits for the one before.

    Args:
        program: Which one it is.
        settings: All that it is started with.
        routes, bind_addr, port, transport: As for :class:`~greentx.edge.Mongrel2`.
        tls: Its port talks TLS.

    Raises:
        LocalProtocolError: (a ``ValueError``) a value that cannot be used; the message names it.

    Attributes:
        bind_addr: As given.
        settings: As given.
        idle_seconds: After how many seconds it ends a connection that is silent; ``None``: never. A Transceiver keeps
            alive what waits, with a ``ping_timeout`` of at most half of them.
        output: What it wrote.
    """

    def __init__(
        self,
        program: Program,
        settings: Mapping[str, int | str],
        routes: Mapping[str, Handler] | None,
        *,
        bind_addr: str | None,
        port: int,
        transport: str,
        tls: bool,
    ) -> None:
        # A copy: what is served must not change with the caller's dict.
        routes = dict({"/": Handler(SERVER_UUID)} if routes is None else routes)
        if not routes:
            raise LocalProtocolError("routes is empty: a server without a handler cannot answer")
        # Mongrel2's rules for routes; it would start, and answer 404 to everything.
        for path in routes:
            if path != "*" and not path.startswith(("/", "@", "<")):
                raise LocalProtocolError(f"route {path!r} is unknown: it begins with '/', '@' or '<', or is '*'")
        if transport not in ("ipc", "tcp"):
            raise LocalProtocolError(f"transport {transport!r} is unknown: write 'ipc' or 'tcp'")
        self.bind_addr = bind_addr
        self.settings = dict(settings)
        self.idle_seconds = idle_seconds(self.settings)
        self.output = program.output
        self._program = program
        self._idle_limit = IdleLimit(self.idle_seconds)
        self._tls = tls
        self._folder = Folder()
        self._addresses = Addresses(
            routes, bind_addr=bind_addr, port=port, transport=transport, folder=self._folder.path
        )
        # Those that are known by now: a Transceiver may be started first.
        self._idle_limit.holds_at(self._sub_endpoints)
        self._process: ChildProcess | None = None
        self._changing = RLock()
        # The process that started it. A forked child of ours has these objects too, and must not end what is not its.
        self._owner: int | None = None
        self._thread_id = 0

    def __repr__(self) -> str:
        state = f"pid={self.pid}" if self.started else "stopped"
        return f"<{type(self).__name__} {self.url} {state} handlers={len(self.handlers)}>"

    def __enter__(self: T) -> T:  # noqa: PYI019 - typing.Self came with Python 3.11
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def routes(self) -> dict[str, Handler]:
        """The handlers by path, with their endpoints; ``None`` in them where those are not known yet."""
        return self._addresses.routes

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, each once, in the order of their first routes; endpoints as in :attr:`routes`.

        A Transceiver for one is ``Transceiver(handler.sender, handler.send_spec, handler.recv_spec)``, of a handler
        from here and not of the ``Handler`` that was given, whose endpoints stay ``None``: with ``None`` for both, a
        Transceiver has no connection set, and waits to be told of servers.
        """
        return self._addresses.handlers

    @property
    def port(self) -> int:
        """The port it listens on; 0 while none was chosen."""
        return self._addresses.port

    @property
    def url(self) -> str:
        """What to type into a browser on this machine; it ends with ``/``."""
        return f"http{'s' if self._tls else ''}://{self._addresses.host_and_port}/"

    @property
    def _sub_endpoints(self) -> list[str]:
        return [connect_endpoint(handler.recv_spec) for handler in self.handlers if handler.recv_spec is not None]

    @property
    def control_spec(self) -> str | None:
        """The endpoint of its control port, a REP socket; ``None``: it has none."""
        return None

    @property
    def folder(self) -> str:
        """The folder that it runs in, which is there from a start to the stop; known before."""
        return self._folder.path

    @property
    def pid(self) -> int | None:
        """The id of the process of the last start; ``None`` before the first."""
        return None if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status of the process of the last start, negative for a signal; ``None`` while it runs."""
        return None if self._process is None else self._process.returncode

    @property
    def started(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    def start(self, timeout: float = 5.0) -> None:
        """Start it and return when the port accepts and the ZeroMQ endpoints are bound. Nothing happens if it runs.

        The endpoints and the port stay the same over every later start.

        Raises:
            BindError: An address is in use, not of this machine, or not permitted; the message names it.
            ConnectTimeout: It was not ready after *timeout* seconds.
            FrontEndNotFound: There is no such program on this machine; the message says what to install.
            FrontEndError: It ended for another reason; the message has what it said.
            OSError: A file of the certificate cannot be read.

            After each of them, nothing runs and the temporary folder is gone.
        """
        self._check_owner()
        with self._changing:
            if not self.started:
                self._start(timeout)

    def _start(self, timeout: float) -> None:
        # Found before anything is made, as its absence is the most frequent failure.
        command = self._program.command()
        deadline = time.monotonic() + timeout
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                chosen = self._addresses.choose()
                self._idle_limit.holds_at(self._sub_endpoints)
                try:
                    self._start_once(command, deadline=deadline, timeout=timeout)
                # Lost the race for an address that we chose ourselves: then another one will do.
                except BindError as error:
                    if error.address not in chosen or attempt == _ATTEMPTS:
                        raise
                    self._end(0)
                else:
                    break
        # A kill of this greenlet, too, must leave nothing behind.
        except BaseException:  # raised again
            self.stop(0)
            raise
        self._addresses.settled = True
        self.output.phase = Phase.RUNNING

    def wait(self, timeout: float | None = None) -> bool:
        """Block this greenlet until the process has ended; False where it has not, after *timeout* seconds."""
        self._check_thread()
        return self._process is None or self._process.wait(timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """End it and remove its folder. After *timeout* seconds of SIGTERM it gets SIGKILL, and shortly before a second
        SIGTERM.

        It may be started again. In a forked child nothing happens: the process belongs to the parent.
        """
        # Silently, as `with` blocks and fixtures end in forked children as well.
        if self._owner is not None and self._owner != os.getpid():
            return
        self._check_thread()
        with self._changing:
            try:
                self._end(timeout)
            finally:
                self._folder.remove()
                # Those outside of the folder: a process that was killed does not remove them.
                for spec in self._addresses.specs:
                    addresses.remove_socket(spec)
                if self._process is not None:
                    for path in self._program.files:
                        # Another process may listen there by now.
                        if not addresses.accepts(f"ipc://{path}"):
                            addresses.remove_socket(f"ipc://{path}")
                atexit.unregister(self._at_exit)
                self._owner = None

    def kill(self) -> None:
        """End it with SIGKILL and return when it is gone. What it leaves in its folder stays for the next start."""
        self._check_owner()
        with self._changing:
            self._end(0)

    def restart(self, timeout: float = 5.0) -> None:
        """End it and start it on the same port and endpoints; *timeout* and errors are those of :meth:`start`."""
        self._check_owner()
        with self._changing:
            self._end(timeout)
            self.start(timeout)

    def _check_owner(self) -> None:
        if self._owner is not None and self._owner != os.getpid():
            raise ForkError(f"{self!r} belongs to process {self._owner}; a forked child makes one of its own")
        self._check_thread()

    def _check_thread(self) -> None:
        # Its output is read, and its end awaited, by greenlets of that thread.
        if self.started and self._thread_id != native_thread_id():
            raise ThreadError(f"{self!r} belongs to the native thread that started it: call it there")

    def _end(self, timeout: float) -> None:
        self.output.phase = Phase.ENDING
        process = self._process
        if process is None:
            return
        # SIGKILL in any case, also where we are killed while we wait; it does nothing to a process that has ended.
        try:
            if timeout > 0 and process.returncode is None:
                process.send_signal(signal.SIGTERM)
                hurry = min(timeout / 2, _HURRY_SECONDS)
                if not process.wait(timeout - hurry):
                    # The embedded one then waits for no client, but deletes what it has stored of bodies.
                    process.send_signal(signal.SIGTERM)
                    process.wait(hurry)
        finally:
            process.kill()

    def _at_exit(self) -> None:
        # The program ends without stop(). The process would die with us; the folder would stay until the next start.
        if self._owner == os.getpid() and self._process is not None:
            self._process.kill_without_waiting()
            self._folder.remove()

    def _start_once(self, command: list[str], *, deadline: float, timeout: float) -> None:
        self._owner, self._thread_id = os.getpid(), native_thread_id()
        self.output.begin()
        specs = [bind_endpoint(spec) for spec in self._addresses.specs]
        # ZeroMQ would replace the file of an ipc socket that is in use, and Mongrel2 go on trying forever, for SUB
        # sockets without a word (probed).
        for spec in specs:
            addresses.check_free(spec)
        if self._folder.make():
            atexit.register(self._at_exit)
        host = None if self.bind_addr is None else addresses.numeric_host(self.bind_addr)
        self._program.write(Place(folder=self._folder.path, routes=self.routes, host=host, port=self.port))
        process = self._process = ChildProcess(
            command,
            cwd=self._folder.path,
            on_line=self.output.line,
            descriptors=self._program.descriptors,
            on_end=lambda: self.output.ended(self.pid, self.returncode),
        )
        while True:
            if process.returncode is not None:
                # Until its last line was read, which says why.
                process.wait()
                raise self.output.start_failure(self._addresses.http, self.returncode)
            refused = self.output.refused_spec()
            if refused is not None:
                raise BindError(
                    f"{refused} cannot be bound by {self._program.name}: it is in use or not ours", address=refused
                )
            specs = self._program.unbound(specs)
            if not specs:
                return
            if time.monotonic() >= deadline:
                raise ConnectTimeout(
                    f"{self._program.name} did not bind {', '.join(specs)} within {timeout:g} s{self.output.said()}",
                    address=specs[0],
                )
            process.wait(_POLL_INTERVAL)
