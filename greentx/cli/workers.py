"""``greentx serve --workers N``: gunicorn keeps the processes. Imported only where that is wanted."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gevent import monkey
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError, HaltServer
from gunicorn.glogging import Logger

from ..gunicorn.plan import Plan
from . import site
from .arguments import Failure, errors_as_one_line
from .loading import load_application
from .logs import FORMAT, keep_logging
from .options import read_env_file

__all__ = ["serve_by_workers"]

_DEFAULT_POOL = 1000

# What the relay is told, where it was said; a front end's options among them.
_OF_RELAY = (
    *("bind", "front_end", "certfile", "keyfile", "set", "connect", "upload_store", "origins", "retry"),
    *("max_message_size", "max_queue_bytes", "max_pending_bytes", "ping_timeout", "control", "control_allow"),
    *("curve_secret", "curve_allow"),
)

# As WSGIServer writes it, which is gevent's.
_ACCESS_FORMAT = '%(h)s - - %(t)s "%(r)s" %(s)s %(B)s %(L)s'


def serve_by_workers(arguments: argparse.Namespace, variables: Iterable[str]) -> int:
    """Serve until a signal; return the exit code.

    Args:
        arguments: Those of ``greentx serve``, checked.
        variables: Which of the environment come from the file of ``--env-file``.
    """
    with errors_as_one_line():
        site.check(arguments)
        application = _Application(arguments, variables)
    arbiter = os.getpid()
    try:
        application.run()
    except AppImportError as error:  # with --preload
        if isinstance(error.__cause__, Failure):
            raise error.__cause__ from None
        raise
    except SystemExit as error:
        # Workers are copies of this process, and end through here: their codes are for gunicorn.
        if os.getpid() != arbiter:
            raise
        return _exit_code(int(error.code or 0))
    except HaltServer as error:
        # A second worker failed while gunicorn ended for the first one: it does not expect that, and stops in the
        # middle of its end. The first one's reason counts.
        first = error
        while isinstance(first.__context__, HaltServer):
            first = first.__context__
        if arguments.pid:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(arguments.pid)
        return _exit_code(first.exit_status)
    return 0


def _exit_code(code: int) -> int:
    """Return ours for gunicorn's word for two things, of which the user was told."""
    return {Arbiter.APP_LOAD_ERROR: 2, Arbiter.WORKER_BOOT_ERROR: 1}.get(code, code)


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        serves=arguments.app,
        words=tuple(_words(arguments)),
        # The control socket is the relay's.
        node={**site.node_bounds(arguments), "rep_port": False},
        server={"trusted_proxies": site.proxies(arguments)},
        graceful_timeout=arguments.graceful_timeout,
    )


def _words(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"--serves={arguments.app}"
    for name in _OF_RELAY:
        value = getattr(arguments, name)
        if name == "retry" and value:
            value = ",".join(value)
        for one in value if isinstance(value, list) else [value]:
            if one is None or one == "":
                continue
            text = "=".join(map(str, one)) if isinstance(one, tuple) else str(one)
            yield f"--{name.replace('_', '-')}={text}"


class _Application(BaseApplication):
    """What gunicorn runs.

    Attributes:
        plan: For the workers.
    """

    def __init__(self, arguments: argparse.Namespace, variables: Iterable[str]) -> None:
        self.plan = _plan(arguments)
        self._arguments = arguments
        self._variables = frozenset(variables)
        super().__init__()

    def load_config(self) -> None:
        arguments = self._arguments
        settings = {
            "worker_class": "greentx.gunicorn.Worker",
            "workers": arguments.workers,
            "worker_connections": arguments.pool or _DEFAULT_POOL,
            "max_requests": arguments.max_requests or 0,
            "max_requests_jitter": arguments.max_requests_jitter or 0,
            "timeout": 30 if arguments.worker_timeout is None else arguments.worker_timeout,
            # A whole number there; the workers have the other one.
            "graceful_timeout": math.ceil(arguments.graceful_timeout) + 1,
            "preload_app": arguments.preload,
            "pidfile": arguments.pid,
            "accesslog": arguments.access_log,
            "access_log_format": _ACCESS_FORMAT,
            "loglevel": arguments.log_level,
            "logger_class": _Logger,
            "proc_name": arguments.app,
            # It needs one, also for SIGUSR2; the workers refuse what comes there.
            "bind": "127.0.0.1:0",
            # A file in the home folder, which nobody has asked for (from gunicorn 24 on).
            "control_socket_disable": True,
        }
        for name, value in settings.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Callable[..., Any]:
        """Import the application: in a worker, or with ``--preload`` in the arbiter."""
        arguments = self._arguments
        if not monkey.is_module_patched("socket"):
            # In the arbiter: it goes on to wait for its children, and for signals, without a hub.
            monkey.patch_all(os=False, signal=False, subprocess=False)
        if arguments.env_file is not None:
            # As it is now: SIGHUP reads it again.
            found = read_env_file(arguments.env_file)
            ours = self._variables
            os.environ.update({name: value for name, value in found.items() if name in ours or name not in os.environ})
        try:
            return load_application(arguments.app, arguments.app_dir)
        except Failure as failure:
            # gunicorn prints that, and nothing else.
            raise AppImportError(f"greentx: {failure}") from failure
        finally:
            keep_logging()


class _Logger(Logger):
    """Writes what gunicorn says as the other lines of this command, to stderr."""

    error_fmt = FORMAT
    access_fmt = "%(message)s"
    datefmt = None

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.access_log.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)

    def info(self, msg: Any, *args: Any, **options: Any) -> None:
        # Nobody can connect there.
        if not str(msg).startswith("Listening at"):
            super().info(msg, *args, **options)
