"""The command ``greentx``: arguments turned into one call.

``greentx serve MODULE:APP`` serves a WSGI application. This is the only place in the package that monkey-patches:
before the application is imported, in the process that runs it.

With ``--reload`` there are two processes. The first one owns the front end (with ``--bind``), so that requests wait in
it while the second one, which runs the application, is replaced. That one watches the files of the modules that it has
imported, and ends with :data:`EXIT_RELOAD` when one of them changes.

Exit codes: 0 for an end that was asked for (SIGTERM, Ctrl-C), 1 for what kept it from serving, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import gevent
from gevent import monkey
from gevent.event import Event

from .errors import GreentxError
from .version import __version__

__all__ = ["EXIT_RELOAD", "main"]

log = logging.getLogger("greentx.cli")

#: How the process that runs the application says that it wants to be started again.
EXIT_RELOAD = 3

_LEVELS = ("debug", "info", "warning", "error")

# How often the files are looked at.
_WATCH_SECONDS = 0.25

# What a process that was told to end may take beyond its --graceful-timeout.
_KILL_SECONDS = 5.0


class _Failure(Exception):
    """Ends the program with one line on stderr, and this exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (default: the program's arguments) and return its exit code.

    Raises ``SystemExit`` for arguments that cannot be parsed, and after ``--help`` and ``--version``.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.function(arguments))
    except _Failure as failure:
        print(f"greentx: {failure}", file=sys.stderr)  # noqa: T201 - what the user is told
        return failure.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="greentx", description="Serve applications behind Mongrel2.")
    parser.add_argument("--version", action="version", version=f"greentx {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser("serve", help="serve a WSGI application", description=_serve.__doc__)
    serve.set_defaults(function=_serve)
    serve.add_argument("app", metavar="MODULE:APP", help="where the application is: a module and a name in it")
    front = serve.add_mutually_exclusive_group(required=True)
    front.add_argument(
        "--connect",
        metavar="URL",
        action="append",
        help="a handler entry of a Mongrel2: mongrel2://SENDER@HOST?pull=9999&pub=9998; may be repeated",
    )
    front.add_argument(
        "--bind", metavar="HOST:PORT", type=_address, help="the address that a mongrel2 of our own listens on"
    )
    serve.add_argument("--pool", metavar="N", type=_count, help="how many requests at once; others wait (no limit)")
    serve.add_argument(
        "--access-log", metavar="FILE", nargs="?", const="-", help="log requests to FILE, or to stderr (not at all)"
    )
    serve.add_argument(
        "--max-message-size",
        metavar="BYTES",
        type=_size,
        help="the largest message that a WebSocket may bring; 0 is no limit (16 MiB)",
    )
    serve.add_argument("--reload", action="store_true", help="start anew when a source file changes; for development")
    serve.add_argument("--log-level", choices=_LEVELS, default="info", help="what is logged to stderr (%(default)s)")
    serve.add_argument(
        "--graceful-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=30.0,
        help="what requests may take when the server ends, by SIGTERM or Ctrl-C (%(default)g)",
    )
    # For the process that --reload starts.
    serve.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    return parser


def _count(text: str) -> int:
    return _number(text, 1)


def _size(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= least:
            return number
    raise argparse.ArgumentTypeError(f"{text} is no number from {least} on")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"{text} is no number of seconds")


def _address(text: str) -> str:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is no HOST:PORT; what --connect takes is a URL")
    return text


def _serve(arguments: argparse.Namespace) -> int:
    """Serve a WSGI application, monkey-patched by gevent, until SIGTERM or Ctrl-C. A second one ends it at once."""
    _split_name(arguments.app)  # no change of a file would mend it
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    with _signals() as signals:
        if arguments.reload:
            return _supervise(arguments, signals)
        monkey.patch_all()
        return _Worker(arguments, signals).run()


@contextlib.contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Errors of what we were told to use, as against those of the application, need no traceback."""
    try:
        yield
    except (GreentxError, OSError, ValueError) as error:
        raise _Failure(str(error), 2 if isinstance(error, ValueError) else 1) from error


class _Signals:
    """SIGTERM and SIGINT as events.

    Attributes:
        stop: Set by the first one, or by whoever else wants the end.
        hurry: Set by the second one.
    """

    def __init__(self) -> None:
        self.stop = Event()
        self.hurry = Event()

    def received(self) -> None:
        """Take a signal."""
        (self.hurry if self.stop.is_set() else self.stop).set()


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    watchers = [gevent.signal_handler(number, signals.received) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield signals
    finally:
        for watcher in watchers:
            watcher.cancel()


# -- the process that runs the application -----------------------------------------------------------------------------


class _Worker:
    """Runs the application."""

    def __init__(self, arguments: argparse.Namespace, signals: _Signals) -> None:
        self.arguments = arguments
        self.signals = signals
        self.reload = False
        self._watcher: Any = None
        self._also_watched: frozenset[str] = frozenset()
        self._seen: dict[str, tuple[int, int]] = {}
        self._started = time.time_ns()

    def run(self) -> int:
        """Serve until a signal, or a change; return the exit code."""
        if self.arguments.watch:
            self._watcher = gevent.spawn(self._watch)
        try:
            application = self._load()
            if application is not None:
                self._serve(application)
        finally:
            if self._watcher is not None:
                self._watcher.kill()
        return EXIT_RELOAD if self.reload else 0

    def _load(self) -> Callable[..., Any] | None:
        """Return the application; ``None`` where its failure was waited for to be mended."""
        try:
            return load_application(self.arguments.app)
        except _Failure as failure:
            if not self.arguments.watch:
                raise
            if failure.__cause__ is not None:
                self._watch_also(_files_of(failure.__cause__))
            log.error("%s; waiting for a change", failure)
        except Exception as error:
            if not self.arguments.watch:
                raise
            self._watch_also(_files_of(error))
            log.exception("%s could not be imported; waiting for a change", self.arguments.app)
        self.signals.stop.wait()
        return None

    def _serve(self, application: Callable[..., Any]) -> None:
        from .frames import CloseCode

        arguments = self.arguments
        with contextlib.ExitStack() as stack:
            with _told_in_a_line():
                access_log = stack.enter_context(_open_log(arguments.access_log))
                server = _make_server(arguments, application, access_log)
                _start(server, arguments)
            log.info("serving %s %s", arguments.app, _where(server))
            try:
                self.signals.stop.wait()
            finally:
                if self.reload:
                    server.goodbye_code = CloseCode.SERVICE_RESTART
                self._end(server)

    def _end(self, server: Any) -> None:
        log.info("ending")
        ending = gevent.spawn(server.stop, self.arguments.graceful_timeout)
        gevent.wait([ending, self.signals.hurry], count=1)
        if not ending.dead:
            server.kill(0)
        ending.get()

    # -- files ---------------------------------------------------------------------------------------------------

    def _watch_also(self, paths: frozenset[str]) -> None:
        # What is not there may come with an old date, moved from elsewhere.
        self._seen.update((path, _MISSING) for path in paths if not os.path.exists(path))
        self._also_watched = paths

    def _watch(self) -> None:
        """Have the worker end when the file of a module was changed, be it before it was looked at first."""
        seen = self._seen
        while True:
            for path in _source_files() | self._also_watched:
                state = _state(path)
                is_new = path not in seen and self._started <= state[0] <= time.time_ns()
                if is_new or seen.setdefault(path, state) != state:
                    log.info("%s has changed", path)
                    self.reload = True
                    self.signals.stop.set()
                    return
            gevent.sleep(_WATCH_SECONDS)


def _source_files() -> frozenset[str]:
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return frozenset(file for file in files if isinstance(file, str))


def _files_of(error: BaseException) -> frozenset[str]:
    """Return the files that an import failed in: the modules are not there, or no more; and those that it lacks."""
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    if isinstance(error, ModuleNotFoundError) and error.name:
        parent, _, name = error.name.rpartition(".")
        folders = getattr(sys.modules.get(parent), "__path__", ()) if parent else sys.path
        for folder in folders:
            # A folder without __init__.py is a package, too.
            path = os.path.join(folder or os.getcwd(), name)
            files.update((path, f"{path}.py", os.path.join(path, "__init__.py")))
    return frozenset(files)


_MISSING = (0, 0)


def _state(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return _MISSING
    return (status.st_mtime_ns, status.st_size)


def load_application(name: str) -> Callable[..., Any]:
    """Return what ``MODULE:APP`` names; the folder we are in is searched first, as with ``python -m``.

    Raises:
        _Failure: There is no such module, or nothing of that name in it that could be called.
        Exception: What the module raises.
    """
    module_name, attribute = _split_name(name)
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = f"; write {_meant(module_name)}:{attribute}" if module_name.endswith(".py") else ""
        raise _Failure(f"there is no module {error.name!r}, in {folder} or elsewhere{hint}", 2) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _Failure(f"module {module_name!r} has no {attribute!r}", 2) from None
    if not callable(found):
        raise _Failure(f"{name} is a {type(found).__name__}, which cannot be called", 2)
    application: Callable[..., Any] = found
    return application


def _split_name(name: str) -> tuple[str, str]:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise _Failure(f"{name!r} is not of the form MODULE:APP", 2)
    if "/" in module_name or module_name.startswith("."):
        raise _Failure(f"{module_name!r} is not the name of a module; write {_meant(module_name)}:{attribute}", 2)
    return module_name, attribute


def _meant(path: str) -> str:
    """Return the name of the module that *path* leads to, for those who take one for the other."""
    path = os.path.normpath(path.removesuffix(".py"))
    if path.startswith(("/", "../")):
        path = os.path.basename(path)  # in the folder where it is
    return path.lstrip(".").replace("/", ".") or "MODULE"


@contextlib.contextmanager
def _open_log(name: str | None) -> Iterator[IO[str] | None]:
    if name is None or name == "-":
        yield None if name is None else sys.stderr
        return
    with open(name, "a", buffering=1, encoding="utf-8") as file:
        yield file


def _make_server(arguments: argparse.Namespace, application: Any, access_log: IO[str] | None) -> Any:
    from .wsgi import WSGIServer
    from .wsgi.listeners import parse_url

    for url in arguments.connect or ():
        parse_url(url)
    options: dict[str, Any] = {"spawn": "default" if arguments.pool is None else arguments.pool}
    if arguments.max_message_size is not None:
        options["max_message_size"] = arguments.max_message_size or None
    listener = arguments.connect[0] if arguments.connect else arguments.bind
    return WSGIServer(listener, application, log=access_log, error_log=sys.stderr, **options)


def _start(server: Any, arguments: argparse.Namespace) -> None:
    from .wsgi.listeners import parse_url

    server.start()
    try:
        for url in (arguments.connect or ())[1:]:
            server.transceiver.add_connection(*parse_url(url))
    except BaseException:
        server.stop(0)
        raise


def _where(server: Any) -> str:
    address = server.address
    if not isinstance(address, tuple):
        return "over " + ", ".join(connection.pull_endpoint for connection in server.transceiver.connections.values())
    host, port = address[0], address[1]
    return f"on http://{f'[{host}]' if ':' in host else host}:{port}/"


# -- the process that starts it anew -----------------------------------------------------------------------------------


def _supervise(arguments: argparse.Namespace, signals: _Signals) -> int:
    """Own the front end and run workers, one after the other, until a signal; return the exit code."""
    from .wsgi.listeners import TcpListener

    urls = arguments.connect
    listener: TcpListener | None = None
    if arguments.bind:
        with _told_in_a_line():
            listener = TcpListener(arguments.bind)
            listener.bind()
        (handler,) = listener.mongrel2.handlers
        urls = [f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"]
        log.info("listening on %s", listener.mongrel2.url)
    try:
        command = [sys.executable, "-m", "greentx", "serve", arguments.app, "--watch", *_worker_options(arguments)]
        for url in urls:
            command += ["--connect", url]
        code = EXIT_RELOAD
        while code == EXIT_RELOAD and not signals.stop.is_set():
            code = _run_worker(command, arguments, signals)
        return code
    finally:
        if listener is not None:
            listener.close()


def _worker_options(arguments: argparse.Namespace) -> list[str]:
    options = ["--log-level", arguments.log_level, "--graceful-timeout", str(arguments.graceful_timeout)]
    if arguments.pool is not None:
        options += ["--pool", str(arguments.pool)]
    if arguments.max_message_size is not None:
        options += ["--max-message-size", str(arguments.max_message_size)]
    if arguments.access_log is not None:
        options += ["--access-log", arguments.access_log]
    return options


def _run_worker(command: list[str], arguments: argparse.Namespace, signals: _Signals) -> int:
    """Start a worker and wait for its end, passing signals on; return its exit code."""
    from .edge.process import ChildProcess

    worker = ChildProcess(command, cwd=os.getcwd(), on_line=_pass_on)
    try:
        ended = gevent.spawn(worker.wait)
        gevent.wait([ended, signals.stop], count=1)
        if not ended.dead:
            worker.send_signal(signal.SIGTERM)
            gevent.wait([ended, signals.hurry], count=1, timeout=arguments.graceful_timeout + _KILL_SECONDS)
        ended.kill()
    finally:
        worker.kill()
    code = worker.returncode
    assert code is not None
    if signals.stop.is_set():
        return 0
    return code if code >= 0 else 1


def _pass_on(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the worker's own output
