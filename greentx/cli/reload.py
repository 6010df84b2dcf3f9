"""``greentx serve --reload``: owns the front end, and starts the application anew when a source file has changed."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

import gevent

from ..handler.pinger import PING_SECONDS
from . import front_end, site
from .arguments import errors_as_one_line
from .signals import Signals
from .worker import EXIT_RELOAD

__all__ = ["supervise"]

log = logging.getLogger("greentx.cli")

# What a process that was told to end gets beyond its --graceful-timeout, for its own clean-up.
_KILL_SECONDS = 5.0

# The same after a second signal.
_HURRY_SECONDS = 2.0


def supervise(arguments: argparse.Namespace) -> int:
    """Own the front end and run workers, one after the other, until a signal; return the exit code.

    Args:
        arguments: Those of ``greentx serve``. ``argv`` in them: as they were written. A worker reads these itself, and
            the environment, so that no option has to be handed on.
    """
    from ..wsgi.listeners import Options, TcpListener

    signals = Signals()
    # The front end stays over all workers, so that requests wait in it while one is replaced.
    urls = arguments.connect
    listener: TcpListener | None = None
    with signals.watched():
        if not urls:
            with errors_as_one_line():
                settings = front_end.settings(arguments)
                which = arguments.front_end
                # Of the worker's options it knows how large a message may be.
                options = Options(**site.bounds(arguments))
                listener = TcpListener(
                    arguments.bind, settings=settings, options=options, front_end=which, **front_end.tls(arguments)
                )
                listener.bind()
            (handler,) = listener.process.handlers
            url = f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"
            control = listener.process.control_spec
            urls = [url if control is None else f"{url}&control={control}"]
            log.info("listening on %s", front_end.shown(listener))
        try:
            # A new interpreter and not a fork: modules that were imported cannot be forgotten reliably.
            words = [word for url in urls for word in ("--entry", url)]
            if listener is not None:
                words += _pings(arguments, listener.process.idle_seconds)
            command = [sys.executable, "-m", "greentx", *_with_options(arguments.argv, words)]
            code = EXIT_RELOAD
            while code == EXIT_RELOAD and not signals.stop.is_set():
                code = _run_worker(command, arguments, signals)
            return code
        finally:
            if listener is not None:
                listener.close()


def _with_options(argv: list[str], options: list[str]) -> list[str]:
    """Return *argv* with more options, which count more than those before them; behind ``--`` they would be none."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [*argv[:end], *options, *argv[end:]]


def _pings(arguments: argparse.Namespace, idle_seconds: int | None) -> list[str]:
    """Return what has a worker ping in time for a front end that ends what is silent for *idle_seconds*."""
    wanted = PING_SECONDS if arguments.ping_timeout is None else arguments.ping_timeout
    if idle_seconds is None or wanted <= idle_seconds / 2:
        return []
    return ["--ping-timeout", str(idle_seconds / 2)]


def _run_worker(command: list[str], arguments: argparse.Namespace, signals: Signals) -> int:
    """Start a worker and wait for its end, passing signals on; return its exit code."""
    from ..edge.process import ChildProcess

    worker = ChildProcess(command, cwd=os.getcwd(), on_line=_pass_on)
    try:
        ended = gevent.spawn(worker.wait)
        gevent.wait([ended, signals.stop], count=1)
        if not ended.dead:
            worker.send_signal(signal.SIGTERM)
            gevent.wait([ended, signals.hurry], count=1, timeout=arguments.graceful_timeout + _KILL_SECONDS)
        if not ended.dead and signals.hurry.is_set():
            worker.send_signal(signal.SIGTERM)  # it kills its requests then, and says which
            ended.join(_HURRY_SECONDS)
        if not ended.dead:
            log.warning("the process of the application (%d) has not ended and is killed", worker.pid)
        ended.kill()
    finally:
        worker.kill()
    code = worker.returncode
    assert code is not None
    if signals.stop.is_set():
        return 0
    # Negative for a signal, which cannot be an exit code.
    return code if code >= 0 else 1


def _pass_on(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the worker's own output
