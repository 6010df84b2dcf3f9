"""Every exception that greentx raises on purpose, under one root.

What a caller can do about an error decides its class: fix the argument (:class:`LocalProtocolError`), drop the message
that a peer sent (:class:`RemoteProtocolError`), look at the network (:class:`TransportError`), stop writing to a
connection that has gone (:class:`ConnectionClosed`), look at the other side's control socket (:class:`ControlError`).
"""

from __future__ import annotations

__all__ = [
    "BindError",
    "ConnectTimeout",
    "ConnectionClosed",
    "ControlError",
    "ForkError",
    "FrontEndError",
    "FrontEndNotFound",
    "GreentxError",
    "LocalProtocolError",
    "Mongrel2Error",
    "Mongrel2NotFound",
    "ProtocolError",
    "RemoteProtocolError",
    "SendTimeout",
    "ThreadError",
    "TransportError",
]


class GreentxError(Exception):
    """The root of all errors raised by greentx."""


class ProtocolError(GreentxError):
    """Bytes that the protocol does not allow, ours or the peer's."""


# A ValueError too: wrong arguments are that everywhere in Python, and callers of gevent's servers catch it.
class LocalProtocolError(ProtocolError, ValueError):
    """The caller asked for a message that the other side would refuse. Nothing was sent.

    Mongrel2 answers one invalid reply by delaying every following reply of that handler for 0.5 s (probed), so such a
    message is refused where it is built.
    """


class RemoteProtocolError(ProtocolError):
    """The peer sent something malformed. That message is over; the socket it came from stays usable.

    Attributes:
        status: The HTTP status that answers it best, where an answer is possible.
        close_code: The RFC 6455 close code (section 7.4.1) that answers it, where the peer is a WebSocket.
    """

    def __init__(self, message: str, *, status: int = 400, close_code: int = 1002) -> None:
        super().__init__(message)
        # Hints only: what read the message does not know whether an answer is possible, nor which kind of peer it is.
        self.status = status
        self.close_code = close_code


class TransportError(GreentxError):
    """A ZeroMQ socket could not do what was asked of it.

    Attributes:
        address: The endpoint it happened on, ``None`` where no single one is to blame.
        errno: The number ZeroMQ or the system gave, ``None`` where there is none.
    """

    def __init__(self, message: str, *, address: str | None = None, errno: int | None = None) -> None:
        # Converted from ZeroMQ's own error in transport/ only, so that nothing above has to import zmq to catch it.
        super().__init__(message)
        self.address = address
        self.errno = errno


class BindError(TransportError, OSError):
    """An address could not be bound: in use, not ours, or not permitted. The message names it.

    An ``OSError`` too, as gevent's servers raise: a program that asks for ``errno.EADDRINUSE`` finds it.
    """


# The two timeouts are Python's TimeoutError as well, and not gevent.Timeout: that one belongs to whoever started it.
class ConnectTimeout(TransportError, TimeoutError):
    """The other side did not show itself in time. Nothing was left open."""


class SendTimeout(TransportError, TimeoutError):
    """What was written made no progress for ``send_timeout`` seconds.

    Attributes:
        queued: False where the pipe to the server stayed full: the message was not sent, not even in part, and will not
            be. True where it keeps its place, so that it may still go out: a part of it is on its way, or it waits for
            a browser that reads nothing.
    """

    def __init__(
        self, message: str, *, address: str | None = None, errno: int | None = None, queued: bool = False
    ) -> None:
        super().__init__(message, address=address, errno=errno)
        # Said by the error, since only the call that waited knows whether its place could be given back.
        self.queued = queued


class ForkError(TransportError):
    """A forked child touched its parent's sockets. The child has to build objects of its own."""


class ThreadError(TransportError):
    """Called in another native thread than the one that it was started in, to which its greenlets belong."""


class ConnectionClosed(GreentxError):
    """The WebSocket has ended; nothing can be sent to it any more.

    Attributes:
        code: The close code that the application sees; 1006 where no close frame came (RFC 6455, section 7.1.5).
        reason: The text next to it, ``""`` where there is none.
    """

    def __init__(self, code: int = 1006, reason: str = "") -> None:
        # 1006 and not 1005: the application has to tell a close frame without a code from no close frame at all.
        super().__init__(f"the connection is closed ({code}{': ' + reason if reason else ''})")
        self.code = code
        self.reason = reason


class ControlError(GreentxError):
    """The other side's control socket did not answer, or answered ``ERROR ...``. The message names its address."""


# Not a TransportError: no socket of ours is to blame, and trying again does not help.
class FrontEndError(GreentxError):
    """A front end of our own refused to start. The message has what it said."""


class FrontEndNotFound(FrontEndError):
    """This machine does not have what a front end of our own is made of. The message says what to install."""


class Mongrel2Error(FrontEndError):
    """Our own ``mongrel2`` process refused to start. The message has what it said."""


class Mongrel2NotFound(Mongrel2Error, FrontEndNotFound):
    """There is no ``mongrel2`` on this machine. The message says what to install."""
