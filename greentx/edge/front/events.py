"""What the bytes of a browser connection mean, one after the other: what :class:`RequestReader` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["DONE", "START", "Body", "End", "Event", "Head", "Message", "Refused", "Upgraded"]

#: The fields that name the file of a stored body to handlers: in its first message, and in its last one both.
START, DONE = b"x-mongrel2-upload-start", b"x-mongrel2-upload-done"

# Not frozen: one that is takes five times as long to make, and these are made for each request.


@dataclass(slots=True)
class Head:
    """A request's first line and fields, read and checked. :class:`Body` and :class:`End` follow.

    Attributes:
        method: A token, as it was written; never a word of Mongrel2's own (``JSON``).
        target: ``/path?query``, nothing decoded, or ``*`` of OPTIONS. The absolute form was made this one, and its host
            the value of ``host``.
        version: ``HTTP/1.1`` or ``HTTP/1.0``. A later 1.x is 1.1 (RFC 9110, section 2.5).
        headers: Names in lower case, values without blanks around them, in their order; repeated names stay apart.
            :data:`START` and :data:`DONE` are left out: clients that send them make them up.
        keep_alive: Whether another request may follow. Where not, no byte behind this request is read.
        upgrade: It asks for a WebSocket, as Mongrel2 understands it. The reader waits for
            :meth:`RequestReader.upgrade` or :meth:`RequestReader.resume`.
        expect_continue: The client waits for ``100 Continue`` before it sends the body.
        content_length: What is announced; ``None`` where nothing is.
        chunked: The length of the body is not known before its end.
        plain: No name of *headers* is repeated, and none is ``x-forwarded-for``.
    """

    method: bytes
    target: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool = True
    upgrade: bool = False
    expect_continue: bool = False
    content_length: int | None = None
    chunked: bool = False
    plain: bool = False


@dataclass(slots=True)
class Body:
    """A piece of the request's body, never empty; chunks are undone."""

    data: bytes


@dataclass(slots=True)
class End:
    """The request is whole."""


@dataclass(slots=True)
class Message:
    """A whole message of a JSON or XML socket, which came in the place of a request.

    Attributes:
        method: ``JSON`` or ``XML``.
        path: With the ``@`` or ``<`` that it begins with.
        body: From ``{`` to ``}``, or from ``<`` to ``>``; not looked into.
    """

    method: bytes
    path: bytes
    body: bytes


@dataclass(slots=True)
class Refused:
    """Answer this and close: nothing more is read. The request that began, if one did, has no :class:`End`.

    Attributes:
        status: Of the answer.
        reason: A sentence without anything that the client sent.
        head_only: It was a HEAD request, as far as can be told.
    """

    status: int
    reason: str
    head_only: bool = False


@dataclass(slots=True)
class Upgraded:
    """HTTP has ended; *rest* came behind the head, and belongs to the other protocol."""

    rest: bytes


Event: TypeAlias = "Head | Body | End | Message | Refused | Upgraded"
