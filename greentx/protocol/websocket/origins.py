"""Which web pages may open a WebSocket: RFC 6455, section 10.2, and origins as RFC 6454 compares them.

A browser sends the cookies of a site with each WebSocket to it, whatever page opens it, and says in ``Origin`` which
page that is. A page cannot change this header, nor add any to the handshake; another program can send what it likes,
so that this guards the users of browsers, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

from ...errors import LocalProtocolError

__all__ = ["SAME", "Allowed", "Origins", "parse_origins"]

Allowed: TypeAlias = "Collection[str | None] | Callable[[str | None], bool] | str | None"
"""What ``origins=`` may be; see :class:`Origins`."""

#: Pages of the host that the WebSocket is opened to.
SAME: Final = "same"

_WITHOUT: Final = "none"
_OPAQUE: Final = "null"
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# RFC 6454, section 6.2. No path, and no slash at the end: browsers send none.
_parse = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]*)(?::([0-9]{1,5}))?", re.ASCII).fullmatch


class Origins:
    """Decides about values of ``Origin``.

    Args:
        allowed: A list of origins, ``"https://example.org:8443"``: scheme, host and port have to be the same, where the
            case of letters does not count, nor whether the scheme's own port is written. Among them may be ``"same"``,
            for pages of the host and port that the request names as ``Host``, over the same scheme; ``None``, for
            clients without the header, which are not browsers; ``"null"``, for pages without an origin of their own,
            as sandboxed ones. ``"same"`` alone is the list with that in it. Or a callable that gets the value, or
            ``None``. ``None`` in the place of all that lets in any origin.

    Raises:
        LocalProtocolError: Another str than ``"same"``; a value that no browser sends.
    """

    __slots__ = ("_callable", "_listed", "any")

    def __init__(self, allowed: Allowed) -> None:
        self.any = allowed is None
        self._callable = allowed if callable(allowed) else None
        self._listed: frozenset[str | None] = frozenset()
        if allowed is None or callable(allowed):
            return
        if isinstance(allowed, str):
            # A str is a collection of str as well, and would let in its letters.
            if allowed != SAME:
                raise LocalProtocolError(f"origins is a str, {allowed!r}: give a list of them, or 'same'")
            allowed = [allowed]
        self._listed = frozenset(map(_checked, allowed))

    def let_in(self, values: list[str], headers: Mapping[str, object]) -> bool:
        """Return whether a handshake is let in.

        Args:
            values: Those of its ``Origin``; none without the header.
            headers: All of them, as Mongrel2 hands them over.
        """
        # Any origin: right for servers that do not rely on cookies.
        if self.any:
            return True
        # No browser sends two, and which of them counts would be a guess.
        if len(values) > 1:
            return False
        origin = values[0] if values else None
        if self._callable is not None:
            return bool(self._callable(origin))
        if origin is None or origin == _OPAQUE:
            return origin in self._listed
        found = _normal(origin)
        return found is not None and (found in self._listed or (SAME in self._listed and found == _own(headers)))


def parse_origins(text: str) -> list[str | None]:
    """Read a list as options and variables have it: origins, ``same``, ``none``, with blanks or commas between them.

    Raises ``LocalProtocolError`` (a ``ValueError``) as :class:`Origins`, and for an empty list.
    """
    origins = [None if one == _WITHOUT else one for one in text.replace(",", " ").split()]
    if not origins:
        raise LocalProtocolError("no origin is given: write same, none, or https://example.org, with commas in between")
    Origins(origins)
    return origins


def _checked(origin: str | None) -> str | None:
    if origin is None or origin in (SAME, _OPAQUE):
        return origin
    found = _normal(origin) if isinstance(origin, str) else None
    if found is None:
        raise LocalProtocolError(
            f"origin {origin!r} is not what a browser sends: write 'https://example.org', with its port if it has one, "
            "without a path, or 'same'"
        )
    return found


def _normal(origin: str) -> str | None:
    """Return an origin in the one form that is compared; ``None`` where it is none."""
    parts = _parse(origin.lower())
    if parts is None:
        return None
    scheme, host, port = parts.groups()
    port = port or _DEFAULT_PORTS.get(scheme)
    return f"{scheme}://{host}" if port is None else f"{scheme}://{host}:{int(port)}"


def _own(headers: Mapping[str, object]) -> str | None:
    """Return the origin of the server itself, as this client knows it; ``None`` where it does not say."""
    host = headers.get("host")
    # A proxy that ends TLS in front of Mongrel2 says so here. To forge it helps nobody: a page cannot.
    scheme = headers.get("x-forwarded-proto") or headers.get("URL_SCHEME") or "http"
    if not isinstance(host, str) or not host.strip() or not isinstance(scheme, str):
        return None
    return _normal(f"{scheme.strip()}://{host.strip()}")
