"""A real ``mongrel2`` that this process owns: configured, started, watched, logged and ended.

It runs in the foreground out of a temporary folder, as the same user and without a chroot, root included. Facts about
Mongrel2 that are marked "probed" were seen on Debian's 1.12.2.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import errno
import ipaddress
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from types import TracebackType

from gevent import socket

from ..endpoints import bind_endpoint, endpoint_address, interface_address
from ..errors import (
    BindError,
    ConnectTimeout,
    ForkError,
    LocalProtocolError,
    Mongrel2Error,
    Mongrel2NotFound,
)
from .config import SERVER_UUID, Handler, checked_settings, write_database
from .folder import Folder
from .process import ChildProcess

__all__ = ["Mongrel2"]

logger = logging.getLogger(__name__)

_LINE = re.compile(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT \[(\w+)\] \((.*?)\) (.*)")
_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
# Logged as errors in the course of any day: the first start in a folder; a browser that opened a connection ahead
# and did not use it, or went away while it was written to, or while it uploaded.
_ORDINARY = (
    "Failed to open PID file",
    "No handler to notify",
    "Write error when sending all",
    "Error delivering to MSG listener",
    "Closed while reading from IOBuf",
    "Failed to upload file",
)
_BIND_FAILED = "announce on TCP port"
_SPEC_BIND_FAILED = "Failed to bind send socket trying again for: "
# Mongrel2 without the right to a port asks this helper, then gives up.
_NOT_PERMITTED = "authbind"

# How often a port that was free a moment ago may turn out taken before we give up.
_ATTEMPTS = 10
_DATABASE = "config.sqlite"
_POLL_INTERVAL = 0.005


class Mongrel2:
    """A ``mongrel2`` process of our own, from :meth:`start` to :meth:`stop`; a context manager, too.

    It ends when we end, even if we are killed (see :class:`~greentx.edge.process.ChildProcess`; start it from a thread
    that lives as long). Its log lines go to the logger ``greentx.edge.mongrel2`` at their own levels; those of its
    start, whose errors :meth:`start` raises, and of its shutdown, full of errors by nature, at DEBUG. Waiting blocks
    only the calling greenlet.

    Args:
        routes: Paths (``"/"``, ``"@chat"``, ``"<chat"``) and the handlers that answer them; ``None`` is ``"/"`` and a
            handler whose sender is ``greentx``.
        bind_addr: The address to listen on, or a name for one; ``""`` is every IPv4 address.
        port: 0 takes a free one at the first start, and then keeps it.
        settings: Mongrel2's settings by name, over :data:`greentx.edge.config.DEFAULT_SETTINGS`.
        transport: How endpoints are made up for handlers that have none: ``"ipc"`` gives sockets in the temporary
            folder, known at once; ``"tcp"`` free ports of 127.0.0.1, known after the first start.
        certfile: A PEM file with a certificate (chain): the port then talks TLS.
        keyfile: A PEM file with its key; ``None`` where *certfile* holds it.

    Raises:
        LocalProtocolError: (a ``ValueError``) a value that Mongrel2 could not use; the message names it.
    """

    def __init__(
        self,
        routes: Mapping[str, Handler] | None = None,
        *,
        bind_addr: str = "127.0.0.1",
        port: int = 0,
        settings: Mapping[str, int | str] | None = None,
        transport: str = "ipc",
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
    ) -> None:
        self._routes = dict({"/": Handler(SERVER_UUID)} if routes is None else routes)
        if not self._routes:
            raise LocalProtocolError("routes is empty: a server without a handler cannot answer")
        for path in self._routes:
            if not path.startswith(("/", "@", "<")):
                raise LocalProtocolError(f"route {path!r} is unknown: it begins with '/', '@' or '<'")
        if transport not in ("ipc", "tcp"):
            raise LocalProtocolError(f"transport {transport!r} is unknown: write 'ipc' or 'tcp'")
        if keyfile is not None and certfile is None:
            raise LocalProtocolError(f"keyfile {keyfile!r} needs a certfile")
        self.bind_addr = bind_addr
        self.settings = checked_settings(settings)
        self._transport = transport
        bind_endpoint(("*", port))  # refuses what is no port
        self._wanted_port = port
        self._port = port
        self._certificate = None if certfile is None else (os.fspath(certfile), os.fspath(keyfile or certfile))
        self._own_folder = Folder()
        self._folder = self._own_folder.path
        self._made_up = {
            handler: self._with_ipc_specs(handler, number)
            for number, handler in enumerate(dict.fromkeys(self._routes.values()))
        }
        specs = [spec for handler in self._made_up for spec in (handler.send_spec, handler.recv_spec) if spec]
        if len(specs) != len(set(specs)):
            raise LocalProtocolError(f"two handlers have an endpoint in common, which one of them can bind: {specs}")
        self._process: ChildProcess | None = None
        self._owner: int | None = None
        self._ending = False
        self._ready = False
        # Once it ran, its addresses are known to others and stay.
        self._settled = False
        self._lines: collections.deque[str] = collections.deque(maxlen=100)

    def __repr__(self) -> str:
        state = f"pid={self.pid}" if self.started else "stopped"
        return f"<{type(self).__name__} {self.url} {state} handlers={len(self.handlers)}>"

    def __enter__(self) -> Mongrel2:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def routes(self) -> dict[str, Handler]:
        """The handlers by path, with their endpoints; ``None`` in them where those are not known yet."""
        return {path: self._made_up[handler] for path, handler in self._routes.items()}

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, each once, in the order of their first routes; endpoints as in :attr:`routes`."""
        return tuple(self._made_up.values())

    @property
    def port(self) -> int:
        """The port it listens on; 0 while none was chosen."""
        return self._port

    @property
    def url(self) -> str:
        """What to type into a browser on this machine; it ends with ``/``."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind_addr, self.bind_addr)
        return f"http{'s' if self._certificate else ''}://{f'[{host}]' if ':' in host else host}:{self._port}/"

    @property
    def control_spec(self) -> str:
        """The endpoint of its control port, a REP socket."""
        return f"ipc://{self._folder}/control"

    @property
    def pid(self) -> int | None:
        """The id of the process of the last start; ``None`` before the first."""
        return None if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status of the process of the last start, negative for a signal; ``None`` while it runs.

        1.12.2 often ends with -6 (SIGABRT) when it is told to stop while connections are open (probed); that is no
        error of ours.
        """
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
            Mongrel2NotFound: There is no ``mongrel2``; the message says what to install.
            Mongrel2Error: It ended for another reason; the message has what it said.
            OSError: A file of the certificate cannot be read.

            After each of them, nothing runs and the temporary folder is gone.
        """
        self._check_owner()
        if self.started:
            return
        program = _program()
        deadline = time.monotonic() + timeout
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                chosen = self._choose_addresses()
                try:
                    self._start_once(program, deadline=deadline, timeout=timeout)
                except BindError as error:
                    if error.address not in chosen or attempt == _ATTEMPTS:
                        raise
                    self._end(0)
                else:
                    break
        except BaseException:
            self.stop(0)
            raise
        self._settled = self._ready = True

    def wait(self, timeout: float | None = None) -> bool:
        """Block this greenlet until the process has ended; False where it has not, after *timeout* seconds."""
        return self._process is None or self._process.wait(timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """End it and remove its folder. After *timeout* seconds of SIGTERM it gets SIGKILL.

        It may be started again. In a forked child nothing happens: the process belongs to the parent.
        """
        if self._owner is not None and self._owner != os.getpid():
            return
        try:
            self._end(timeout)
        finally:
            self._own_folder.remove()
            for handler in self.handlers:
                _remove_socket(handler.send_spec)
                _remove_socket(handler.recv_spec)
            atexit.unregister(self._at_exit)
            self._owner = None

    def kill(self) -> None:
        """End it with SIGKILL and return when it is gone. What it leaves in its folder stays for the next start."""
        self._check_owner()
        self._end(0)

    def restart(self, timeout: float = 5.0) -> None:
        """End it and start it on the same port and endpoints; *timeout* and errors are those of :meth:`start`."""
        self._check_owner()
        self._end(timeout)
        self.start(timeout)

    def _check_owner(self) -> None:
        if self._owner is not None and self._owner != os.getpid():
            raise ForkError(f"{self!r} belongs to process {self._owner}; a forked child makes one of its own")

    def _end(self, timeout: float) -> None:
        self._ending = True
        process = self._process
        if process is None:
            return
        try:
            if timeout > 0 and process.returncode is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout)
        finally:
            process.kill()

    def _at_exit(self) -> None:
        # The program ends without stop(). The process would die with us; the folder would stay until the next start.
        if self._owner == os.getpid() and self._process is not None:
            self._process.kill_without_waiting()
            self._own_folder.remove()

    def _with_ipc_specs(self, handler: Handler, number: int) -> Handler:
        if self._transport != "ipc":
            return handler
        return dataclasses.replace(
            handler,
            send_spec=handler.send_spec or f"ipc://{self._folder}/{number}.send",
            recv_spec=handler.recv_spec or f"ipc://{self._folder}/{number}.recv",
        )

    def _choose_addresses(self) -> set[str]:
        """Pick the ports that are ours to pick, until a start succeeded; return the addresses picked."""
        if self._settled:
            return set()
        chosen = set()
        if self._wanted_port == 0:
            self._port = _free_port(self._numeric_host())
            chosen.add(self._http_address())
        if self._transport == "tcp":
            for handler in self._made_up:
                specs = [
                    spec or f"tcp://127.0.0.1:{_free_port('127.0.0.1')}"
                    for spec in (handler.send_spec, handler.recv_spec)
                ]
                self._made_up[handler] = dataclasses.replace(handler, send_spec=specs[0], recv_spec=specs[1])
                chosen.update(set(specs) - {handler.send_spec, handler.recv_spec})
        return chosen

    def _start_once(self, program: str, *, deadline: float, timeout: float) -> None:
        self._owner = os.getpid()
        self._ending = self._ready = False
        self._lines.clear()
        specs = [
            bind_endpoint(spec) for handler in self.handlers for spec in (handler.send_spec, handler.recv_spec) if spec
        ]
        for spec in specs:
            _check_free(spec)
        self._write_folder()
        process = self._process = ChildProcess(
            [program, _DATABASE, SERVER_UUID], cwd=self._folder, on_line=self._log, on_end=self._log_end
        )
        # It listens on its port before it binds the first endpoint, and ends where it cannot: so the endpoints are the
        # sign for both. Trying the port as well would put a failed TLS handshake into its log.
        while True:
            if process.returncode is not None:
                process.wait()
                raise self._start_failure()
            for line in self._lines:
                if _SPEC_BIND_FAILED in line:
                    spec = line.rpartition(_SPEC_BIND_FAILED)[2]
                    raise BindError(f"{spec} cannot be bound by mongrel2: it is in use or not ours", address=spec)
            specs = [spec for spec in specs if not _accepts(spec)]
            if not specs:
                return
            if time.monotonic() >= deadline:
                raise ConnectTimeout(
                    f"mongrel2 did not bind {', '.join(specs)} within {timeout:g} s{self._said()}", address=specs[0]
                )
            process.wait(_POLL_INTERVAL)

    def _write_folder(self) -> None:
        if self._own_folder.make():
            atexit.register(self._at_exit)
        # A PID that is some other process by now would keep Mongrel2 from starting.
        for leftover in ("pid", "control", f"{SERVER_UUID}.crt", f"{SERVER_UUID}.key"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._folder}/{leftover}")
        if self._certificate is not None:
            for path, suffix in zip(self._certificate, ("crt", "key"), strict=True):
                with open(path, "rb"):
                    os.symlink(os.path.abspath(path), f"{self._folder}/{SERVER_UUID}.{suffix}")
        write_database(
            f"{self._folder}/{_DATABASE}",
            self.routes,
            host=self._numeric_host(),
            port=self._port,
            folder=self._folder,
            settings=self.settings,
            tls=self._certificate is not None,
        )

    def _numeric_host(self) -> str:
        # IPv4 first: Mongrel2 binds one address, and "localhost" means 127.0.0.1 to most.
        try:
            found = socket.getaddrinfo(self.bind_addr or "0.0.0.0", None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise BindError(
                f"{self.bind_addr!r} is no address to listen on: {error}", address=self.bind_addr, errno=error.errno
            ) from error
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])

    def _http_address(self) -> str:
        return f"{f'[{self.bind_addr}]' if ':' in self.bind_addr else self.bind_addr}:{self._port}"

    def _start_failure(self) -> Exception:
        text = "\n".join(self._lines)
        if _BIND_FAILED not in text:
            return Mongrel2Error(f"mongrel2 ended with status {self.returncode} while it started{self._said()}")
        for code in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            if os.strerror(code) in text:
                reason = os.strerror(code)
                break
        else:
            code, reason = errno.EACCES, "a port below 1024 needs root, CAP_NET_BIND_SERVICE or authbind"
            if _NOT_PERMITTED not in text:
                return BindError(f"{self._http_address()} cannot be bound{self._said()}", address=self._http_address())
        return BindError(f"{self._http_address()} cannot be bound: {reason}", address=self._http_address(), errno=code)

    def _said(self) -> str:
        """Its last errors, as the end of a message; those of any day would mislead."""
        found = [match for match in map(_LINE.fullmatch, self._lines) if match]
        errors = [match[3] for match in found if match[1] != "INFO" and not match[3].startswith(_ORDINARY)]
        return f"; it said: {'; '.join(errors[-5:])}" if errors else ""

    def _log(self, line: str) -> None:
        if not line:
            return
        self._lines.append(line)
        match = _LINE.fullmatch(line)
        if match is None:
            # Not of its log: an assertion of a library, or an error of the loader.
            level, text, place = logging.WARNING, line, ""
        else:
            level, text = _LEVELS.get(match[1], logging.WARNING), match[3]
            place = match[2].removesuffix(": errno: None")
            if text.startswith(_ORDINARY):
                level = logging.DEBUG
        if self._ending or not self._ready:
            level = logging.DEBUG
        logger.log(level, "%s%s", text, f" ({place})" if place else "")

    def _log_end(self) -> None:
        if self._ready and not self._ending:
            logger.error("mongrel2 (pid %s) ended by itself with status %s%s", self.pid, self.returncode, self._said())


def _program() -> str:
    path = shutil.which("mongrel2")
    if path is None:
        raise Mongrel2NotFound(
            "there is no mongrel2 on the PATH; install it (Debian, Ubuntu: apt-get install mongrel2-core; "
            "elsewhere see https://mongrel2.org)"
        )
    return os.path.abspath(path)


def _free_port(host: str) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError as error:
            raise BindError(f"{host} cannot be bound: {error.strerror}", address=host, errno=error.errno) from error
        return int(sock.getsockname()[1])


def _family(host: str) -> int:
    return int(socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET)


def _tcp_address(spec: str) -> tuple[str, int]:
    """Return the numeric host and the port that a ``tcp://`` endpoint to bind means."""
    host, port = endpoint_address(spec)
    if host == "*":
        return "0.0.0.0", port
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return interface_address(host), port
    return host, port


def _check_free(spec: str) -> None:
    """Raise ``BindError`` if *spec* cannot be bound. Mongrel2 would go on trying, for SUB sockets without a word."""
    if spec.startswith("ipc://"):
        # ZeroMQ takes over the file of a socket that is in use.
        if _accepts(spec):
            raise BindError(
                f"{spec} cannot be bound: {os.strerror(errno.EADDRINUSE)}", address=spec, errno=errno.EADDRINUSE
            )
        return
    host, port = _tcp_address(spec)
    with socket.socket(_family(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise BindError(f"{spec} cannot be bound: {error.strerror}", address=spec, errno=error.errno) from error


def _accepts(spec: str) -> bool:
    """Return whether something listens on *spec*."""
    if spec.startswith("ipc://"):
        path = spec.removeprefix("ipc://")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            return bool(sock.connect_ex(f"\0{path[1:]}" if path.startswith("@") else path) == 0)
    host, port = _tcp_address(spec)
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    with socket.socket(_family(local), socket.SOCK_STREAM) as sock:
        # A connect to a port where nobody listens, out of that very port, succeeds with itself.
        sock.bind((local, 0))
        return bool(sock.getsockname()[1] != port and sock.connect_ex((local, port)) == 0)


def _remove_socket(spec: str | None) -> None:
    if spec is not None and spec.startswith("ipc:///"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spec.removeprefix("ipc://"))
