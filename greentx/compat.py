"""Stand-ins for other packages, for programs that import these by name. Nothing is registered until it is asked for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .wsgi import websocket
from .wsgi.upgrade import WebSocketError

__all__ = ["install_geventwebsocket"]

_PACKAGE = "geventwebsocket"

# What is registered may be told from the real package by this attribute.
_MARK = "__greentx__"


class ProtocolError(WebSocketError):
    """For ``except`` clauses only: a peer that breaks the protocol is closed, and ``receive()`` returns ``None``."""


class FrameTooLargeException(ProtocolError):
    """For ``except`` clauses only: a message that is too large ends its connection with 1009."""


#: Submodules and what is imported from them; "" is the package itself.
_NAMES: dict[str, dict[str, Any]] = {
    "": {
        name: getattr(websocket, name)
        for name in ("Resource", "WebSocketApplication", "WebSocketError", "WebSocketServer")
    },
    "exceptions": {
        "FrameTooLargeException": FrameTooLargeException,
        "ProtocolError": ProtocolError,
        "WebSocketError": WebSocketError,
    },
    "handler": {name: getattr(websocket, name) for name in ("Client", "WebSocketHandler")},
    "protocols": {},
    "protocols.base": {"BaseProtocol": websocket.Protocol},
    "resource": {name: getattr(websocket, name) for name in ("Resource", "WebSocketApplication")},
    "server": {"WebSocketServer": websocket.WebSocketServer},
    "websocket": {
        name: getattr(websocket, name)
        for name in ("MSG_ALREADY_CLOSED", "MSG_CLOSED", "MSG_SOCKET_DEAD", "Stream", "WebSocket", "WebSocketError")
    },
}


def install_geventwebsocket() -> None:
    """Register :mod:`greentx.wsgi.websocket` as the package ``geventwebsocket``, with its submodules; twice is once.

    Call it before anything imports that package, or looks whether it is there: ``engineio`` does so when its gevent
    mode is first used, and speaks to ``environ['wsgi.websocket']`` if it is. A real one that is installed is hidden.

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
        module.__dict__.update(names)
        modules[full_name] = module
    for full_name, module in modules.items():
        parent, _, name = full_name.rpartition(".")
        if parent:
            setattr(modules[parent], name, module)
    package = modules[_PACKAGE]
    setattr(package, _MARK, True)
    for name in (_PACKAGE, f"{_PACKAGE}.protocols"):
        modules[name].__path__ = []
    sys.modules.update(modules)
