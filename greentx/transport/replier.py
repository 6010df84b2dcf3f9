"""A REP socket that answers each request with what a function returns."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import gevent
import zmq
from gevent.event import Event

from .context import MAX_MESSAGE_SIZE, Context
from .security import Access
from .supervised import Supervised

__all__ = ["Replier"]

log = logging.getLogger("greentx.transport")

# A killed greenlet may be busy answering, in code that does not let go of it.
_KILL_SECONDS = 0.5

# Requests of one asker that wait.
_MAX_ASKED = 16

# What ZAP calls those that have no key.
_ANONYMOUS = "anonymous"

# After an error of the socket's, which would else come again at once.
_RETRY_SECONDS = 0.1


class Replier:
    """Binds a REP socket and serves it from a greenlet of its own, one request after the other.

    Args:
        context: Owner of the socket.
        endpoint: Where to bind.
        answer: Called with the bytes of a request and who asks (an IP address, or a CURVE key where one is demanded;
            "" where ZeroMQ does not know), returns the bytes of the answer. It may block. A REP socket that does not
            answer is stuck for everybody, so whatever it raises is logged and answered ``ERROR <why>``.
        access: Who may ask; by default whoever can connect.
        max_message: Bytes of a request; who sends a larger one is disconnected, and not answered.
        name: For the greenlet and the logs.

    Raises:
        BindError: The address cannot be bound.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        answer: Callable[[bytes, str], bytes],
        *,
        access: Access | None = None,
        max_message: int = MAX_MESSAGE_SIZE,
        name: str = "replier",
    ) -> None:
        self.name = name
        self._context = context
        self._answer = answer
        self._socket = context.socket(zmq.REP, max_message=max_message)
        # Of each asker, which waits for its answer before it asks again: more than one would only fill the memory.
        self._socket.setsockopt(zmq.RCVHWM, _MAX_ASKED)
        if access is not None:
            access.apply(context, self._socket)
        self.endpoint = context.bind(self._socket, endpoint)
        self._changed = Event()
        self._has_message = context.message_check(self._socket)
        self._watcher = context.watch(self._socket, self._on_change)
        self._keeper = Supervised(name, self._run, on_failure=self._answer_what_failed, retry=_RETRY_SECONDS)

    @property
    def trouble(self) -> str:
        """Why nothing is answered at present; ``""`` where it is."""
        return self._keeper.trouble

    def start(self) -> None:
        """Start answering."""
        self._keeper.start()

    def stop(self) -> None:
        """Stop answering and close the socket; safe to call twice, also while a request is being answered."""
        # A request may ask for the end of its own server: that greenlet ends with its answer.
        self._keeper.kill(_KILL_SECONDS)
        self._context.unwatch(self._watcher)
        self._context.close_socket(self._socket)

    def _on_change(self) -> None:
        # Asking re-arms the descriptor, which would otherwise wake the hub again and again during a long answer.
        if self._has_message():
            self._changed.set()

    def _run(self) -> None:
        while self._context.open and not self._socket.closed:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._keeper.works()
                self._changed.clear()
                # Nothing runs between EAGAIN and here, so no change is missed.
                self._changed.wait()
                continue
            # REP has to answer each request, or it is stuck: also what no peer of ours sends.
            if len(parts) == 1:
                answer = self._answer_one(parts[0].bytes, _asker(parts[0]))
            else:
                answer = b"ERROR a request is one message part, not %d" % len(parts)
            # The answer may have needed a while, and a request may have been to stop.
            if not self._context.open or self._socket.closed:
                return
            self._socket.send(answer, zmq.NOBLOCK)  # REP drops what its peer has no room for

    def _answer_what_failed(self, error: BaseException) -> None:
        # What was lost has an answer all the same: a REP socket that owes one receives nothing more. One that owes none
        # refuses it.
        if self._context.open and not self._socket.closed:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send(b"ERROR the request could not be received", zmq.NOBLOCK)

    def _answer_one(self, request: bytes, asker: str) -> bytes:
        try:
            return self._answer(request, asker)
        except (Exception, gevent.Timeout) as error:
            log.exception("%s: a request of %d bytes could not be answered", self.name, len(request))
            return f"ERROR {type(error).__name__}: {error}".encode()

    def __repr__(self) -> str:
        return f"<Replier {self.name} {self.endpoint}>"


def _asker(frame: zmq.Frame) -> str:
    """Return whose message it is: its CURVE key, as ZAP's answer named it, else its IP address."""
    for name in ("User-Id", "Peer-Address"):
        with contextlib.suppress(zmq.ZMQError):  # ZeroMQ does not know it, as with another transport
            known = str(frame.get(name))
            if known and known != _ANONYMOUS:
                return known
    return ""
