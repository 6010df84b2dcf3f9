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
from .listen_address import ListenAddress

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
        routes, port, transport, certfile, keyfile: As for :class:`~greentx.edge.Mongrel2`.
        bind_addr: The same; ``None`` is 127.0.0.1, and none at all where there are *listeners*.
        listeners: Where to listen next to that, as for :class:`~greentx.edge.Edge`. Ports are given, since this process
            is not told which one is free. Descriptors and sockets are yours, and stay open for as long as it may be
            started again.
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
        bind_addr: str | None = None,
        port: int = 0,
        listeners: Sequence[Any] = (),
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
        if bind_addr is None and not listeners:
            bind_addr = "127.0.0.1"
        self._given = tuple(listeners)
        for one in self._given:
            address = _read(one)
            if address.host is not None and not address.port:
                raise LocalProtocolError(
                    f"listener {one!r} has no port of its own: give one, or a bind_addr with port 0"
                )
        super().__init__(
            _Program(dict(settings or {}), options, self._given),
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

            Edge(routes, bind_addr=bind_addr, port=port, listeners=self._given, settings=settings, **options)

    @property
    def url(self) -> str:
        """What to type into a browser on this machine; where there is no port, its first listener."""
        return str(_read(self._given[0])) if self.bind_addr is None else super().url


def check_installed() -> None:
    """Raise ``FrontEndNotFound`` where there is not what the embedded front end needs."""
    if not _is_installed():
        raise FrontEndNotFound("the embedded front end needs httptools: pip install greentx[edge]")


def _is_installed() -> bool:
    return importlib.util.find_spec("httptools") is not None


class _Program:
    name = "the embedded front end"

    def __init__(self, settings: dict[str, int | str], options: dict[str, Any], listeners: Sequence[Any]) -> None:
        self.output = EmbeddedOutput()
        self._settings = settings
        self._options = options
        # Held, so that the descriptors of those that are sockets stay theirs.
        self._listeners = listeners

    @property
    def descriptors(self) -> list[int]:
        read = [_read(one) for one in self._listeners]
        return [address.descriptor for address in read if address.descriptor is not None]

    @property
    def files(self) -> list[str]:
        read = [ListenAddress.parse(one) for one in self._listeners if isinstance(one, str)]
        return [address.path for address in read if address.path is not None and not address.path.startswith("@")]

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
        self.output.place = None if place.host is None else str(ListenAddress(host=place.host, port=place.port))
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
            "listeners": [_as_text(_read(one)) for one in self._listeners],
            "settings": self._settings,
            "options": self._options,
        }
        with open(f"{place.folder}/{_CONFIGURATION}", "w", encoding="utf-8") as file:
            json.dump(configuration, file)

    def unbound(self, specs: Sequence[str]) -> list[str]:
        return [] if self.output.ready else list(specs)


def _read(listener: Any) -> ListenAddress:
    """Return where *listener* is, a text, a descriptor or a socket that is open."""
    if isinstance(listener, str):
        return ListenAddress.parse(listener)
    descriptor = listener if isinstance(listener, int) else listener.fileno()
    if descriptor < 0:
        raise LocalProtocolError(f"{listener!r} cannot be listened on: it is closed")
    return ListenAddress(descriptor=descriptor)


def _as_text(address: ListenAddress) -> str:
    # Paths are absolute in there: the process is in another folder.
    return str(address) if address.mode is None else f"{address},mode={address.mode:o}"
