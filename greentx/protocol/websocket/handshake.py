"""The opening handshake (RFC 6455, section 4) as far as Mongrel2 leaves it to its handler, and as a client sees it.

Mongrel2 recognises the request (``Upgrade``, ``Connection``, ``Host``, a key, a version), computes the accept value and
hands both over with METHOD ``WEBSOCKET_HANDSHAKE``. It checks neither the version's number, the key's length, HTTP/1.0
nor the origin, and whatever the handler answers, the connection speaks frames from then on (probed). So a refusal has
to be followed by an empty message, which closes the connection; :class:`Refused` says so to the client.
"""

from __future__ import annotations

import hashlib
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ...errors import LocalProtocolError, RemoteProtocolError
from ..fields import shown
from ..headers import text_lines
from ..http1 import (
    TEXT_TYPE,
    HeaderFields,
    HeaderValue,
    build_head,
    build_response,
    connection_options,
    with_content_type,
)
from .deflate import DeflateConfig, PerMessageDeflate, accept, negotiate, offer, parse_extensions
from .origins import Allowed, Origins

__all__ = [
    "Accepted",
    "Handshake",
    "HeaderMap",
    "Refused",
    "accept_key",
    "check_answer",
    "new_key",
    "request_headers",
]

HeaderMap: TypeAlias = "Mapping[str, object]"
"""Headers as Mongrel2 hands them over: the client's names in lower case, values ``str`` or ``list[str]``; the server's
own names in upper case."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_VERSION: Final = "13"
# RFC 9110, section 5.6.2.
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# One object for all that do not say otherwise: it is frozen.
_DEFLATE: Final = DeflateConfig()

# What the handshake itself writes, and what would give a 101 answer a body.
_RESERVED: Final = frozenset(
    {
        "connection",
        "content-length",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The handshake succeeded.

    Attributes:
        head: The whole 101 answer, to be sent before any frame.
        subprotocol: What was agreed on, ``None`` for none.
        deflate: The compression of this connection, ``None`` for none.
    """

    head: bytes
    subprotocol: str | None
    deflate: PerMessageDeflate | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The handshake is answered with something else than 101, and the connection is closed.

    Attributes:
        status: 200-599.
        reason: The phrase after it, ``None`` for the standard one.
        headers: More fields for the answer: a mapping or pairs.
        body: Text goes out as UTF-8, as ``text/plain`` unless *headers* has a Content-Type.

    Raises:
        LocalProtocolError: The status is not a final one, or the rest cannot be sent (CR or LF in a value, a
            Content-Length that is wrong); here, not when it is sent.
    """

    status: int
    reason: str | None = None
    headers: HeaderFields = ()
    body: str | bytes = b""

    def __post_init__(self) -> None:
        # 1xx are not the end of an answer, and a 101 would let the client in.
        if not 200 <= self.status <= 599:
            raise LocalProtocolError(f"status is {self.status!r}: a handshake is refused with 200 to 599")
        # Frozen, but for this: an iterator could be read only once. A mistake is then found where it was made, not when
        # a client is waiting for the answer.
        object.__setattr__(self, "headers", _pairs(self.headers))
        self.build()

    def build(self, *, date: bytes | None = None) -> bytes:
        """The whole answer, with ``Content-Length`` and ``Connection: close``; an empty message has to follow it.

        Args:
            date: The value of a ``Date`` field, already encoded; ``None`` adds none.
        """
        fields = _pairs(self.headers)
        body = self.body
        if isinstance(body, str):
            try:
                body = body.encode()
            except UnicodeEncodeError as error:
                raise LocalProtocolError(f"body of the refusal is not text: {error}") from error
            if body:
                fields = _pairs(with_content_type(fields, TEXT_TYPE))
        return build_response(body, self.status, self.reason, fields, date=date, close=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """What a server demands and offers; one object serves all connections.

    Attributes:
        origins: Which pages may open a WebSocket: a list of origins, ``"same"``, or a callable, as
            :class:`~greentx.protocol.websocket.origins.Origins` has them; ``None`` lets in any.
        subprotocols: In order of preference; the first that the client offers too is chosen, none if there is none. Or
            a callable that gets what was offered, in the client's order, and the headers, and returns one of those or
            ``None``.
        headers: More fields for the 101 answer: a mapping or pairs; or a callable that gets the request's headers and
            returns such.
        deflate: What is wanted of permessage-deflate, ``None`` to decline it.

    Raises:
        LocalProtocolError: Origins that no browser sends, a plain str for *subprotocols*, a subprotocol that is not a
            token, or headers that cannot be sent or that the handshake writes itself.
    """

    origins: Allowed = None
    subprotocols: Sequence[str] | Callable[[list[str], HeaderMap], str | None] = ()
    headers: HeaderFields | Callable[[HeaderMap], HeaderFields] = ()
    deflate: DeflateConfig | None = _DEFLATE
    _origins: Origins = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_origins", Origins(self.origins))
        # A str is a collection of str as well: "chat" would offer c, h, a and t.
        if isinstance(self.subprotocols, str):
            raise LocalProtocolError(f"subprotocols is a str, {self.subprotocols!r}: give a list of them")
        if not callable(self.subprotocols):
            _check_subprotocols(self.subprotocols)
        # What a callable returns is checked for each handshake instead.
        if not callable(self.headers):
            fields = _extra_fields(self.headers)
            object.__setattr__(self, "headers", fields)
            build_head(101, None, fields)

    def check(self, headers: HeaderMap, body: bytes) -> Accepted | Refused:
        """Answer one request with METHOD ``WEBSOCKET_HANDSHAKE``.

        Args:
            headers: All of the request's.
            body: What Mongrel2 computed as the accept value. It has to fit the key: what does not come from Mongrel2's
                own handshake is refused.

        Returns:
            :class:`Accepted`, or :class:`Refused` with 426 for a version other than 13, 403 for an origin that is not
            let in, and 400 for HTTP/1.0, without ``upgrade`` in ``Connection``, and for everything malformed.

        Raises:
            LocalProtocolError: A callable gave a subprotocol that was not offered, or headers that cannot be sent.
            Exception: Whatever a callable raises.

        Source: RFC 6455, sections 4.2 and 4.4; RFC 9110, section 15.5.22, for the ``Upgrade`` field of a 426.
        """
        # Mongrel2's own names are in upper case, which no client can send (manual, rule 5). HTTP/1.0 has no Upgrade.
        if headers.get("VERSION", "HTTP/1.1") != "HTTP/1.1":
            return _bad_request("a WebSocket needs HTTP/1.1")
        # Mongrel2 looks for "upgrade" anywhere in the value, as in "no-upgrade" (probed).
        if "upgrade" not in connection_options(_values(headers, "connection")):
            return _bad_request("a handshake says 'Connection: Upgrade'")
        if _values(headers, "sec-websocket-version") != [_VERSION]:
            return Refused(
                426,
                headers={"Sec-WebSocket-Version": _VERSION, "Upgrade": "websocket", "Connection": "Upgrade"},
                body=f"only version {_VERSION} of the WebSocket protocol is spoken here\n",
            )
        # After the version, which is what decides whether a key means anything.
        keys = _values(headers, "sec-websocket-key")
        if len(keys) != 1 or not _is_key(keys[0]):
            return _bad_request("Sec-WebSocket-Key must be given once: 16 bytes in base64")
        # Mongrel2 has computed it. An HTTP request with that word as its method has not come this way.
        if body != accept_key(keys[0]):
            return _bad_request("the accept value does not belong to the key")
        # Before extensions and subprotocols: a stranger's page is not told what is wrong with its offers.
        if not self._origins.let_in(_values(headers, "origin"), headers):
            return Refused(403, body="this origin is not let in\n")
        try:
            offered = _parse_subprotocols(_values(headers, "sec-websocket-protocol"))
            deflate, answer = self._negotiate(_values(headers, "sec-websocket-extensions"))
        except RemoteProtocolError as error:
            return _bad_request(str(error))
        # None of those offered: the handshake succeeds all the same, and the client decides (RFC 6455, section 4.2.2).
        subprotocol = self._choose(offered, headers)
        fields: list[tuple[str | bytes, HeaderValue]] = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", body),
        ]
        if subprotocol is not None:
            fields.append(("Sec-WebSocket-Protocol", subprotocol))
        if deflate is not None:
            fields.append(("Sec-WebSocket-Extensions", answer))
        more = _extra_fields(self.headers(headers)) if callable(self.headers) else _pairs(self.headers)
        return Accepted(build_head(101, None, [*fields, *more]), subprotocol, deflate)

    def _negotiate(self, values: list[str]) -> tuple[PerMessageDeflate | None, str]:
        if self.deflate is not None:
            return negotiate(values, self.deflate) or (None, "")
        # Malformed is malformed, whether or not we want any.
        parse_extensions(values)
        return None, ""

    def _choose(self, offered: list[str], headers: HeaderMap) -> str | None:
        if not callable(self.subprotocols):
            return next((name for name in self.subprotocols if name in offered), None)
        # A client fails the connection when it gets one that it has not offered (section 4.1): better here than there.
        chosen = self.subprotocols(offered, headers)
        if chosen is not None and chosen not in offered:
            raise LocalProtocolError(f"subprotocol {chosen!r} was chosen, the client offered {offered}")
        return chosen


def accept_key(key: str) -> bytes:
    """The value of ``Sec-WebSocket-Accept`` that belongs to *key*, 28 bytes (RFC 6455, section 4.2.2).

    Raises:
        LocalProtocolError: The key is not ASCII, so it is not base64.
    """
    # SHA-1 is the RFC's, and not for secrecy; said so, since FIPS builds of OpenSSL refuse it otherwise.
    try:
        return b64encode(hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest())
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"key {key!r} is not base64: {error.reason}") from error


def new_key() -> str:
    """A fresh random ``Sec-WebSocket-Key`` (RFC 6455, section 4.1)."""
    return b64encode(os.urandom(16)).decode()


def request_headers(
    key: str,
    *,
    subprotocols: Sequence[str] = (),
    deflate: DeflateConfig | None = None,
    origin: str | None = None,
) -> dict[str, str]:
    """The headers of a client's opening handshake, names in lower case; ``host`` is the caller's to add.

    Args:
        key: From :func:`new_key`; :func:`check_answer` wants it again.
        subprotocols: In order of preference.
        deflate: What to ask for, ``None`` for no compression.
        origin: What a browser would send; ``None`` leaves it out, as programs do.

    Raises:
        LocalProtocolError: A plain str for *subprotocols*, or one that is not a token.
    """
    # Lower case, as Mongrel2 hands them on; HTTP does not care.
    headers = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": key,
        "sec-websocket-version": _VERSION,
    }
    if origin is not None:
        headers["origin"] = origin
    if subprotocols:
        _check_subprotocols(subprotocols)
        headers["sec-websocket-protocol"] = ", ".join(subprotocols)
    if deflate is not None:
        headers["sec-websocket-extensions"] = offer(deflate)
    return headers


def check_answer(
    status: int,
    headers: HeaderMap,
    key: str,
    *,
    subprotocols: Sequence[str] = (),
    deflate: DeflateConfig | None = None,
) -> tuple[str | None, PerMessageDeflate | None]:
    """Check the server's answer to :func:`request_headers` of the same arguments.

    Args:
        status: Of the answer.
        headers: Of the answer, names in lower case.

    Returns:
        The subprotocol and the compression that were agreed on, ``None`` for none.

    Raises:
        RemoteProtocolError: The answer is not 101 (``status`` is then the server's), lacks a header, has the wrong
            accept value, or names a subprotocol or an extension that was not offered.

    Source: RFC 6455, section 4.1.
    """
    # In the order of section 4.1. Any other status is an answer too, which the caller may follow or show.
    if status != 101:
        raise RemoteProtocolError(f"the server answered {status}, not 101", status=status)
    if [value.lower() for value in _values(headers, "upgrade")] != ["websocket"]:
        raise RemoteProtocolError("the answer has no 'Upgrade: websocket'")
    if "upgrade" not in connection_options(_values(headers, "connection")):
        raise RemoteProtocolError("the answer has no 'Connection: Upgrade'")
    # It shows that the other side has read this handshake, and is not a cache or a server that echoes headers.
    accepted = _values(headers, "sec-websocket-accept")
    if accepted != [accept_key(key).decode()]:
        raise RemoteProtocolError(f"the answer's Sec-WebSocket-Accept {shown(accepted)} does not belong to our key")
    chosen = _values(headers, "sec-websocket-protocol")
    if len(chosen) > 1 or not set(chosen) <= set(subprotocols):
        raise RemoteProtocolError(
            f"the server chose the subprotocol {shown(chosen)}, offered were {list(subprotocols)}"
        )
    # An extension changes what frames mean: one that was not asked for cannot be ignored.
    extensions = _values(headers, "sec-websocket-extensions")
    if deflate is None:
        if parse_extensions(extensions):
            raise RemoteProtocolError(f"the server chose the extensions {shown(extensions)}, none was offered")
        return next(iter(chosen), None), None
    return next(iter(chosen), None), accept(extensions, deflate)


def _values(headers: HeaderMap, name: str) -> list[str]:
    """All values of one name, without the white space around them."""
    return [one.strip(" \t") for one in text_lines(headers.get(name))]


def _is_key(key: str) -> bool:
    """Whether *key* is 16 bytes in base64, without anything around it."""
    # validate=True, or characters outside the alphabet would be skipped silently.
    try:
        return len(b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def _bad_request(why: str) -> Refused:
    return Refused(400, body=f"{why}\n")


def _parse_subprotocols(values: Iterable[str]) -> list[str]:
    """What the client offers, in its order, over all its headers."""
    names = [part.strip(" \t") for value in values for part in value.split(",")]
    # Empty elements of a list are allowed (RFC 9110, section 5.6.1).
    names = [name for name in names if name]
    for name in names:
        if not _TOKEN.fullmatch(name):
            raise RemoteProtocolError(f"Sec-WebSocket-Protocol holds {shown(name)}, which is not a token")
    return names


def _check_subprotocols(subprotocols: Sequence[str]) -> None:
    if isinstance(subprotocols, str):
        raise LocalProtocolError(f"subprotocols is a str, {subprotocols!r}: give a list of them")
    for name in subprotocols:
        if not _TOKEN.fullmatch(name):
            raise LocalProtocolError(f"subprotocol {name!r} is not a token (RFC 9110, section 5.6.2)")


def _pairs(fields: HeaderFields) -> tuple[tuple[str | bytes, HeaderValue], ...]:
    return tuple(fields.items() if isinstance(fields, Mapping) else fields)


def _lower(name: str | bytes) -> str:
    return (name if isinstance(name, str) else name.decode("latin-1")).lower()


def _extra_fields(fields: HeaderFields) -> tuple[tuple[str | bytes, HeaderValue], ...]:
    """Fields that an application adds to a 101 answer."""
    # Twice the same field is what proxies disagree about, and which of the two a client reads is a guess.
    pairs = _pairs(fields)
    for name, _ in pairs:
        if _lower(name) in _RESERVED:
            raise LocalProtocolError(f"header {name!r} is written by the handshake itself: leave it out")
    return pairs
