"""Stand-ins for other packages, for programs that import these by name. Nothing is registered until it is asked for."""

from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .wsgi import websocket
from .wsgi.offered import WebSocketError

__all__ = ["install_geventwebsocket"]

_PACKAGE = "geventwebsocket"

# What is registered may be told from the real package by this attribute.
_MARK = "__greentx__"

# Of the release whose names these are; programs compare it, and print it.
_VERSION = (0, 10, 1, "final", 0)


class ProtocolError(WebSocketError):
    """For ``except`` clauses only: a peer that breaks the protocol is closed, and ``receive()`` returns ``None``."""


class FrameTooLargeException(ProtocolError):
    """For ``except`` clauses only: a message that is too large ends its connection with 1009."""


def _get_version(version: tuple[int, int, int, str, int] | None = None) -> str:
    """Return a version as text, ``"0.10.1"``; ``None`` is the one of the package whose names these are."""
    parts = _VERSION if version is None else version
    if len(parts) != 5 or parts[3] not in ("alpha", "beta", "rc", "final"):
        raise ValueError(
            f"{version!r} is not a version: give three numbers, 'alpha', 'beta', 'rc' or 'final', and a number"
        )
    text = ".".join(str(number) for number in parts[: 3 if parts[2] else 2])
    return text if parts[3] == "final" else f"{text}{'rc' if parts[3] == 'rc' else parts[3][0]}{parts[4]}"


def _create_logger(name: str, debug: bool = False, layout: str | None = None) -> logging.Logger:
    """Return the logger *name*; with *debug* it writes all to stderr, as *layout* says."""
    logger = logging.getLogger(name)
    if debug:
        logger.setLevel(logging.DEBUG)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(layout))
        logger.handlers = [handler]
    return logger


def _worker(name: str) -> Any:
    """The attributes of ``geventwebsocket.gunicorn.workers``: its worker is ours."""
    if name != "GeventWebSocketWorker":
        raise AttributeError(f"module 'geventwebsocket.gunicorn.workers' has no attribute {name!r}")
    # Not before somebody wants it: gunicorn need not be installed.
    from .gunicorn import Worker

    return Worker


#: Submodules and what is imported from them; "" is the package itself.
_NAMES: dict[str, dict[str, Any]] = {
    "": {
        "VERSION": _VERSION,
        "__version__": _get_version(),
        "get_version": _get_version,
        **{
            name: getattr(websocket, name)
            for name in ("Resource", "WebSocketApplication", "WebSocketError", "WebSocketServer")
        },
    },
    "exceptions": {
        "FrameTooLargeException": FrameTooLargeException,
        "ProtocolError": ProtocolError,
        "WebSocketError": WebSocketError,
    },
    "gunicorn": {},
    "gunicorn.workers": {"__getattr__": _worker},
    "handler": {name: getattr(websocket, name) for name in ("Client", "Stream", "WebSocket", "WebSocketHandler")},
    "logging": {"create_logger": _create_logger},
    "protocols": {},
    "protocols.base": {"BaseProtocol": websocket.Protocol},
    "resource": {name: getattr(websocket, name) for name in ("Resource", "WebSocketApplication")},
    "server": {name: getattr(websocket, name) for name in ("WebSocketHandler", "WebSocketServer")},
    "utils": {"get_version": _get_version},
    "websocket": {
        "FrameTooLargeException": FrameTooLargeException,
        "ProtocolError": ProtocolError,
        **{
            name: getattr(websocket, name)
            for name in (
                "MSG_ALREADY_CLOSED",
                "MSG_CLOSED",
                "MSG_SOCKET_DEAD",
                "Stream",
                "WebSocket",
                "WebSocketError",
            )
        },
    },
}

# Those that have submodules.
_PACKAGES = ("", "gunicorn", "protocols")


def install_geventwebsocket() -> None:
    """Register :mod:`greentx.wsgi.websocket` as the package ``geventwebsocket``, with its submodules; twice is once.

    Call it before anything imports that package, or looks whether it is there: ``engineio`` does so when its gevent
    mode is first used, and speaks to ``environ['wsgi.websocket']`` if it is. A real one that is installed is hidden.

    The worker class for gunicorn is :class:`greentx.gunicorn.Worker`, under the name that it has there: call this in
    gunicorn's configuration file. What is missing is ``protocols.wamp``, for a protocol that nobody speaks any more,
    and what reads frames: ``Header``, ``utf8validator``.

    Raises:
        RuntimeError: The real package was imported already; its classes belong to another server.
    """
    present = sys.modules.get(_PACKAGE)
    if present is not None:
        if not hasattr(present, _MARK):
            raise RuntimeError(f"{_PACKAGE} was imported already, from {getattr(present, '__file__', None)}")
        return
    modules: dict[str, ModuleType] = {}
    for submodule, names in _NAMES.items():
        full_name = f"{_PACKAGE}.{submodule}" if submodule else _PACKAGE
        module = ModuleType(full_name, "The names of gevent-websocket, for greentx.wsgi.")
        # Programs print where the package is: here. Those that only look whether it is there find a spec.
        module.__file__ = __file__
        module.__spec__ = ModuleSpec(full_name, None, origin=__file__, is_package=submodule in _PACKAGES)
        module.__dict__.update(names)
        modules[full_name] = module
    # `import a.b` finds "a.b" in sys.modules, but what it binds is "a", in which the program then looks for "b".
    for full_name, module in modules.items():
        parent, _, name = full_name.rpartition(".")
        if parent:
            setattr(modules[parent], name, module)
    package = modules[_PACKAGE]
    setattr(package, _MARK, True)
    for name in _PACKAGES:
        # What has a __path__ is a package: an import of something that is missing says so in the usual way.
        modules[f"{_PACKAGE}.{name}".rstrip(".")].__path__ = []
    sys.modules.update(modules)
