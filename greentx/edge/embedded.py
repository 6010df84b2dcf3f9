"""The embedded front end in a process of our own, so that a busy application does not stop it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FrontEndNotFound, LocalProtocolError
from .config import Handler, checked_settings
from .embedded_output import EmbeddedOutput
from .front_end import FrontEndProcess, Place

__all__ = ["EdgeProcess", "check_installed"]

_CONFIGURATION = "config.json"

# The process finds modules where this one does, which may be told by paths relative to a folder that is not its own.
_BOOT = """
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    configuration = json.load(file)
sys.path[:] = configuration["path"]
from greentx.edge.front.program import main
sys.exit(main(configuration))
"""


class EdgeProcess(FrontEndProcess):
    """An :class:`~greentx.edge.Edge` in a process of our own, with the interface of :class:`~greentx.edge.Mongrel2`.

    It ends when we end, even if we are killed (start it from a thread that lives as long). What it logs goes to the
    loggers ``greentx.edge.front`` and below at its own levels; of its start, whose errors :meth:`start` raises, and of
    its end at DEBUG. Waiting blocks only the calling greenlet.

    Args:
        routes, bind_addr, port, transport, certfile, keyfile: As for :class:`~greentx.edge.Mongrel2`.
        settings: By Mongrel2's names, those that :class:`~greentx.edge.Edge` has.
        options: Its other arguments: ``no_handler_timeout``, ``max_connections`` and so on; no ``access_log``.

    Raises:
        LocalProtocolError: (a ``ValueError``) a value that it could not use; the message names it.
        TypeError: An option that it does not have.
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
        **options: Any,
    ) -> None:
        if keyfile is not None and certfile is None:
            raise LocalProtocolError(f"keyfile {keyfile!r} needs a certfile")
        if certfile is not None:
            # As Mongrel2 has it, the files are looked at when it starts.
            options["certfile"] = os.path.abspath(certfile)
            options["keyfile"] = os.path.abspath(keyfile or certfile)
        if options.get("access_log") is not None:
            raise LocalProtocolError("access_log is called by an Edge of this process: another one cannot")
        checked = checked_settings(settings, embedded=True)
        super().__init__(
            _Program(dict(settings or {}), options),
            checked,
            routes,
            bind_addr=bind_addr,
            port=port,
            transport=transport,
            tls=certfile is not None,
        )
        if _is_installed():
            # It is as strict, and the process would tell nobody before the start.
            from .front.front import Edge

            Edge(routes, settings=settings, **options)


def check_installed() -> None:
    """Raise ``FrontEndNotFound`` where there is not what the embedded front end needs."""
    if not _is_installed():
        raise FrontEndNotFound("the embedded front end needs httptools: pip install greentx[edge]")


def _is_installed() -> bool:
    return importlib.util.find_spec("httptools") is not None


class _Program:
    name = "the embedded front end"

    def __init__(self, settings: dict[str, int | str], options: dict[str, Any]) -> None:
        self.output = EmbeddedOutput()
        self._settings = settings
        self._options = options

    def command(self) -> list[str]:
        check_installed()
        # Isolated: variables, and files in its folder, change nothing.
        flags = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
        return [sys.executable, *flags, "-c", _BOOT, _CONFIGURATION]

    def write(self, place: Place) -> None:
        for name in ("certfile", "keyfile"):
            if name in self._options:
                # Opened, to fail here where it cannot be read.
                with open(self._options[name], "rb"):
                    pass
        handlers = list(dict.fromkeys(place.routes.values()))
        configuration = {
            # Where this package is comes last: it may be known by other means.
            "path": [os.path.abspath(entry) for entry in [*sys.path, f"{__file__}/../../.."]],
            "parent": os.getpid(),
            "log_level": logging.getLogger("greentx.edge.front").getEffectiveLevel(),
            "handlers": [dataclasses.asdict(handler) for handler in handlers],
            "routes": {path: handlers.index(handler) for path, handler in place.routes.items()},
            "bind_addr": place.host,
            "port": place.port,
            "settings": self._settings,
            "options": self._options,
        }
        with open(f"{place.folder}/{_CONFIGURATION}", "w", encoding="utf-8") as file:
            json.dump(configuration, file)

    def unbound(self, specs: Sequence[str]) -> list[str]:
        return [] if self.output.ready else list(specs)
