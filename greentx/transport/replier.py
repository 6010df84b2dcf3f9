"""A REP socket that answers each request with what a function returns."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent
import zmq
from gevent.event import Event

from .context import Context

__all__ = ["Replier"]

log = logging.getLogger("greentx.transport")

# A killed greenlet may be busy answering, in code that does not let go of it.
_KILL_SECONDS = 0.5


class Replier:
    """Binds a REP socket and serves it from a greenlet of its own, one request after the other.

    Args:
        context: Owner of the socket.
        endpoint: Where to bind.
        answer: Called with the bytes of a request, returns those of the answer. It may block. A REP socket that does
            not answer is stuck for everybody, so whatever it raises is logged and answered ``ERROR <why>``.
        name: For the greenlet and the logs.

    Raises:
        BindError: The address cannot be bound.
    """

    def __init__(
        self, context: Context, endpoint: str, answer: Callable[[bytes], bytes], *, name: str = "replier"
    ) -> None:
        self.name = name
        self._context = context
        self._answer = answer
        self._socket = context.socket(zmq.REP)
        self.endpoint = context.bind(self._socket, endpoint)
        self._changed = Event()
        self._watcher = context.watch(self._socket, self._on_change)
        self._greenlet = gevent.Greenlet(self._run)
        self._greenlet.name = name

    def start(self) -> None:
        """Start answering."""
        self._greenlet.start()

    def stop(self) -> None:
        """Stop answering and close the socket; safe to call twice, also while a request is being answered."""
        if gevent.getcurrent() is not self._greenlet:
            self._greenlet.kill(timeout=_KILL_SECONDS)
        self._context.unwatch(self._watcher)
        self._context.close_socket(self._socket)

    def _on_change(self) -> None:
        # Asking re-arms the descriptor, which would otherwise wake the hub again and again during a long answer.
        if self._context.has_message(self._socket):
            self._changed.set()

    def _run(self) -> None:
        while self._context.open and not self._socket.closed:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._changed.clear()
                self._changed.wait()
                continue
            if len(parts) == 1:
                answer = self._answer_one(parts[0])
            else:
                answer = b"ERROR a request is one message part, not %d" % len(parts)
            if not self._context.open or self._socket.closed:
                return
            self._socket.send(answer, zmq.NOBLOCK)  # REP drops what its peer, or its peer's pipe, does not take

    def _answer_one(self, request: bytes) -> bytes:
        try:
            return self._answer(request)
        except Exception as error:
            log.exception("%s: a request of %d bytes could not be answered", self.name, len(request))
            return f"ERROR {type(error).__name__}: {error}".encode()

    def __repr__(self) -> str:
        return f"<Replier {self.name} {self.endpoint}>"
