"""Checks what programs put in the place of our own classes, when a server is made, not at the first request."""

from __future__ import annotations

import functools
from typing import Any

# By its name here: programs may have put ours in its place in that module.
from gevent.pywsgi import WSGIHandler as GeventHandler

from .handler import WSGIHandler

__all__ = ["check_handler_class"]


def check_handler_class(handler_class: Any) -> None:
    """See whether *handler_class* can answer our requests.

    Args:
        handler_class: A class, or a callable that makes its objects.

    Raises:
        TypeError: It is a class of another server, such as gevent's or gevent-websocket's, which reads its requests
            from a socket; or it cannot be called. The message says what to use instead.
    """
    made = handler_class
    while isinstance(made, functools.partial):
        made = made.func
    if not callable(made):
        raise TypeError(
            f"handler_class {handler_class!r} cannot be called: give a subclass of greentx.wsgi.WSGIHandler"
        )
    if not isinstance(made, type):
        return
    # A class that has both among its bases reads from a socket, too, or not, by the order of the bases.
    foreign = issubclass(made, GeventHandler)
    if issubclass(made, WSGIHandler) and not foreign:
        return
    name = f"{made.__module__}.{made.__qualname__}"
    if any(base.__module__.split(".", 1)[0] == "geventwebsocket" for base in made.__mro__):
        raise TypeError(
            f"handler_class {name} reads from a socket, and there is none here: leave it out, as this server offers "
            "WebSockets by itself, or use greentx.wsgi.websocket.WebSocketHandler"
        )
    raise TypeError(
        f"handler_class {name} reads from a socket, and there is none here: derive it from greentx.wsgi.WSGIHandler"
        if foreign
        else f"handler_class {name} is not a subclass of greentx.wsgi.WSGIHandler"
    )
