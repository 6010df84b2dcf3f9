"""A REP socket that answers each request with what a function returns."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent
import zmq

from .context import Context

__all__ = ["Replier"]

log = logging.getLogger("greentx.transport")


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
        self._socket = context.socket(zmq.REP, green=True)
        self.endpoint = context.bind(self._socket, endpoint)
        self._greenlet = gevent.Greenlet(self._run)
        self._greenlet.name = name

    def start(self) -> None:
        """Start answering."""
        self._greenlet.start()

    def stop(self) -> None:
        """Stop answering and close the socket; safe to call twice, also while a request is being answered."""
        if gevent.getcurrent() is not self._greenlet:
            self._greenlet.kill()
        self._context.close_socket(self._socket)

    def _run(self) -> None:
        while not self._socket.closed:
            parts = self._socket.recv_multipart()
            if len(parts) == 1:
                answer = self._answer_one(parts[0])
            else:
                answer = b"ERROR a request is one message part, not %d" % len(parts)
            if self._socket.closed:
                return
            self._socket.send(answer)

    def _answer_one(self, request: bytes) -> bytes:
        try:
            return self._answer(request)
        except Exception as error:
            log.exception("%s: a request of %d bytes could not be answered", self.name, len(request))
            return f"ERROR {type(error).__name__}: {error}".encode()

    def __repr__(self) -> str:
        return f"<Replier {self.name} {self.endpoint}>"
