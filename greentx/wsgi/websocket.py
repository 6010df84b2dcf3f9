"""WebSockets for WSGI applications, under the names of the package gevent-websocket.

``WSGIServer`` offers each application both ways to a WebSocket by itself (see :mod:`greentx.wsgi.upgrade`); what is
here is for programs that name a server, a handler or an application class. ``greentx.compat.install_geventwebsocket``
makes it importable as ``geventwebsocket``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .exchange import Exchange
from .handler import WSGIHandler
from .offered import MSG_ALREADY_CLOSED, MSG_CLOSED, MSG_SOCKET_DEAD, Client, Stream, WebSocket, WebSocketError
from .server import WSGIServer

__all__ = [
    "MSG_ALREADY_CLOSED",
    "MSG_CLOSED",
    "MSG_SOCKET_DEAD",
    "Client",
    "Protocol",
    "Resource",
    "Stream",
    "WebSocket",
    "WebSocketApplication",
    "WebSocketError",
    "WebSocketHandler",
    "WebSocketServer",
]


class WebSocketHandler(WSGIHandler):
    """The handler of a :class:`WebSocketServer`. Any ``WSGIHandler`` offers WebSockets; this one has hooks as well.

    Raises:
        TypeError: It is used by gevent's own server, whose sockets it cannot read.
    """

    #: Versions of the protocol that are accepted.
    SUPPORTED_VERSIONS = ("13",)

    def __init__(self, sock: Exchange, address: Any, server: WSGIServer, rfile: Any = None) -> None:
        if not isinstance(sock, Exchange):
            raise TypeError(
                f"greentx's WebSocketHandler cannot work for {type(server).__module__}.{type(server).__name__}: use "
                "greentx.wsgi.WSGIServer, which offers WebSockets without a handler_class"
            )
        super().__init__(sock, address, server, rfile)

    def run_application(self) -> None:
        """Call the application, after the server's ``pre_start_hook``: what that handles is not offered a WebSocket."""
        hook = self.server.pre_start_hook
        # gevent-websocket calls it for every request, not for WebSockets alone.
        if hook is not None and hook(self) and self.upgrade is not None:
            self.upgrade.withdraw()
        super().run_application()

    @property
    def websocket(self) -> WebSocket | None:
        """What the application is offered; ``None`` where nobody asked for a WebSocket."""
        return None if self.upgrade is None else self.upgrade.websocket

    @property
    def active_client(self) -> Client:
        """This connection's entry in ``server.clients``; ``KeyError`` where it is not a WebSocket."""
        return self.server.clients[self.socket.request.sid]

    @property
    def logger(self) -> Any:
        """The server's logger."""
        return self.server.logger


class WebSocketServer(WSGIServer):
    """A ``WSGIServer`` with the arguments of gevent-websocket's.

    Args:
        debug: Kept as an attribute; what is logged is up to :mod:`logging` (``greentx.wsgi``).
        pre_start_hook: Called with the handler before each request; where it returns something true, no WebSocket is
            offered.

    Attributes:
        clients: A :class:`Client` for each WebSocket that was let in, by ``(sender, conn_id)``.
    """

    handler_class = WebSocketHandler

    def __init__(
        self,
        *args: Any,
        debug: bool = False,
        pre_start_hook: Callable[[WSGIHandler], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.debug = debug
        self.pre_start_hook = pre_start_hook


class Protocol:
    """What stands between a :class:`WebSocketApplication` and its messages; this one passes all on.

    Attributes:
        app: The application.
    """

    #: The name of the subprotocol, ``""`` for none.
    PROTOCOL_NAME = ""

    def __init__(self, app: WebSocketApplication) -> None:
        self.app = app

    def on_open(self) -> None:
        """The WebSocket is open."""
        self.app.on_open()

    def on_message(self, message: str | bytearray) -> None:
        """A message came."""
        self.app.on_message(message)

    def on_close(self, reason: str | None = None) -> None:
        """The WebSocket has ended."""
        self.app.on_close(reason)

    @property
    def handler(self) -> WSGIHandler:
        """The request's handler."""
        return self.app.ws.handler

    @property
    def server(self) -> WSGIServer:
        """The server."""
        return self.handler.server


class WebSocketApplication:
    """One for each WebSocket of a :class:`Resource`; override what is called.

    Attributes:
        ws: The :class:`WebSocket`.
        protocol: An object of :attr:`protocol_class`.
    """

    protocol_class: type[Protocol] = Protocol

    def __init__(self, ws: WebSocket) -> None:
        self.ws = ws
        self.protocol = self.protocol_class(self)

    def handle(self) -> None:
        """Serve the WebSocket until it ends; :meth:`on_close` is called once, whatever ended it."""
        self.protocol.on_open()
        try:
            while (message := self._receive()) is not None:
                self.protocol.on_message(message)
        finally:
            self.protocol.on_close(MSG_CLOSED)

    def _receive(self) -> str | bytearray | None:
        try:
            return self.ws.receive()
        except WebSocketError:  # on_message() closed it
            return None

    def on_open(self, *args: Any, **kwargs: Any) -> None:
        """Called when the WebSocket is open."""

    def on_message(self, message: str | bytearray, *args: Any, **kwargs: Any) -> None:
        """Called with each message; this one sends it back."""
        self.ws.send(message, **kwargs)

    def on_close(self, *args: Any, **kwargs: Any) -> None:
        """Called with a text when the WebSocket has ended."""

    @classmethod
    def protocol_name(cls) -> str:
        """Return the subprotocol that is spoken, ``""`` for none."""
        return cls.protocol_class.PROTOCOL_NAME


class Resource:
    """A WSGI application that picks another one by the path.

    Args:
        apps: Pairs (or a dict) of a regular expression, matched from the start of ``PATH_INFO``, and a subclass of
            :class:`WebSocketApplication` or a WSGI application. The first that matches is used: for a WebSocket a
            WebSocket application, or else a WSGI one.
    """

    def __init__(self, apps: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None) -> None:
        # A view of the dict: applications that are added later count.
        self.apps: Any = apps.items() if isinstance(apps, Mapping) else list(apps or ())

    def _is_websocket_app(self, app: Any) -> bool:
        return isinstance(app, type) and issubclass(app, WebSocketApplication)

    def _app_by_path(self, environ_path: str, is_websocket_request: bool) -> Any:
        for path, app in self.apps:
            # match(), not search(): from the start of the path, as gevent-websocket does.
            if re.match(path, environ_path) and self._is_websocket_app(app) == is_websocket_request:
                return app
        return None

    def app_protocol(self, path: str) -> str:
        """Return the subprotocol of the WebSocket application at *path*, ``""`` for none."""
        app = self._app_by_path(path, True)
        return str(app.protocol_name()) if hasattr(app, "protocol_name") else ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Run the application at the request's path; 404 where there is none."""
        path = environ["PATH_INFO"]
        if "wsgi.websocket" in environ:
            app = self._app_by_path(path, True)
            # No WebSocket application there: the WSGI one may answer the handshake with a page.
            if app is not None:
                app(environ["wsgi.websocket"]).handle()
                return []
        app = self._app_by_path(path, False)
        if app is None:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"Not Found"]
        result: Iterable[bytes] = app(environ, start_response)
        return result
