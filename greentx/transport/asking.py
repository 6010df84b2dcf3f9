"""Questions to a control socket."""

from __future__ import annotations

from time import monotonic

import gevent
import zmq
from gevent.event import Event

from .context import Context
from .names import UnknownHost
from .security import Dial

__all__ = ["ask"]

# The answer to STATUS grows with the connection sets, by some hundred bytes each.
_MAX_ANSWER = 16 * 1024 * 1024

# Between two attempts to resolve a name: a handler that is about to start may get its name only then.
_RESOLVE_SECONDS = 0.1


def ask(
    context: Context, endpoint: str, message: bytes, timeout: float, ended: Event, dial: Dial | None = None
) -> tuple[bytes | None, bool]:
    """Ask the REP socket at *endpoint*.

    Each question has a REQ socket of its own: one that waits for an answer that was lost could never ask again. Blocks
    this greenlet.

    Args:
        ended: Set when *context* is closed, so that nobody waits on.
        dial: How to connect; by default in the clear.

    Returns:
        The answer, ``None`` when there was none within *timeout* seconds; and whether the question went out. One that
        did not never will; one that did may be obeyed later on.

    Raises:
        UnknownHost: The name in the endpoint was not resolved within *timeout* seconds.
        SocketClosed: The context was closed meanwhile.
    """
    deadline = monotonic() + timeout
    endpoint = _resolve(context, endpoint, deadline, ended)
    socket = context.socket(zmq.REQ, max_message=_MAX_ANSWER)
    # Nothing is queued for a peer that is not there yet: a question that timed out must not be obeyed later.
    socket.setsockopt(zmq.IMMEDIATE, 1)
    if dial is not None:
        dial.apply(context, socket)
    # Non-blocking calls under a watcher, and no green socket: it has to stop waiting when `ended` is set, too.
    answers: list[bytes] = []
    answered = Event()
    asked = False

    def check() -> None:
        nonlocal asked
        # REQ reads one answer to a question. Whatever else woke the descriptor has to be asked for, or it stays silent.
        if answers:
            socket.getsockopt(zmq.EVENTS)
            return
        try:
            if not asked:
                socket.send(message, zmq.NOBLOCK)
                asked = True
            answers.append(b"".join(socket.recv_multipart(zmq.NOBLOCK)))
        except zmq.Again:
            return
        answered.set()

    context.connect(socket, endpoint)
    watcher = context.watch(socket, check)
    try:
        check()
        # One of the two; both at once is an answer that came in time.
        gevent.wait((answered, ended), max(0.0, deadline - monotonic()), count=1)
        context.check()
    finally:
        context.unwatch(watcher)
        context.close_socket(socket, linger=0)
    return (answers[0] if answers else None), asked


def _resolve(context: Context, endpoint: str, deadline: float, ended: Event) -> str:
    while True:
        try:
            return context.names.resolve(endpoint, timeout=max(0.0, deadline - monotonic()), unless=ended)
        except UnknownHost:
            left = deadline - monotonic()
            if left <= 0 or ended.wait(min(left, _RESOLVE_SECONDS)):
                raise
