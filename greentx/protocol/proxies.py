"""What proxies in front of Mongrel2 say about a client, and which of them is believed.

Mongrel2 says itself, in ``REMOTE_ADDR`` and ``URL_SCHEME``, who has connected to it and how. Where that is a proxy, the
client is somebody else, whom the proxy names in headers: ``X-Forwarded-For``, to which each proxy adds whom it got the
request from, and ``X-Forwarded-Proto`` or the like. Anybody can send these, so they count only where a proxy that is
known has connected.

Mongrel2 has a part in it: it writes an ``X-Forwarded-For`` of its own with the address that ``REMOTE_ADDR`` has, in the
place of all that came, unless it has the setting ``no_clobber_xff=1``; with that it passes on what came, and adds
nothing (probed). Without the setting ``REMOTE_ADDR`` is therefore the proxy's address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from ..errors import LocalProtocolError
from .cache import SmallMap
from .framing import FramingError
from .headers import text_lines, text_value
from .request import Request

__all__ = ["SECURE_SCHEME_HEADERS", "TrustedProxies"]

#: Headers and the value with which they say that the client came by https; gunicorn's ``secure_scheme_headers``.
SECURE_SCHEME_HEADERS: Mapping[str, str] = {
    "X-FORWARDED-PROTOCOL": "ssl",
    "X-FORWARDED-PROTO": "https",
    "X-FORWARDED-SSL": "on",
}

_ANY = "*"
# A longer text is not an address, and not remembered.
_MAX_ADDRESS_SIZE = 64

# Longer headers are not remembered either; three or four addresses are shorter.
_MAX_SAID_SIZE = 128

# More proxies do not stand one behind the other. A client can write thousands of entries, each of which takes time.
_MAX_ENTRIES = 32

# Digits are checked by ip_address(), which would let an IPv6 address have a scope id behind a "%": any text at all.
_V6 = "([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)"
_PORT = "(?::[0-9]{1,5})?"
_match_address = re.compile(rf"\[{_V6}\]{_PORT}|([0-9.]+){_PORT}|{_V6}").fullmatch


class TrustedProxies:
    """Knows proxies by their addresses, and has the requests that come through them say who the client is.

    The client is the last address in ``X-Forwarded-For`` that is not one of the proxies: what stands in front of it may
    be made up by the client. An entry that is not an address ends the list, of which no more than the last 32 are
    read. Where all are proxies it is the first address, and nobody where the first entry is not one. The scheme is
    ``https`` where one of the scheme headers has exactly its value, ``http`` where it has another one, and what
    Mongrel2 says without any of them.

    Args:
        addresses: Addresses and networks, as ``"10.0.0.0/8"``, in a list, or in a text with commas or blanks in
            between. ``"*"`` stands for all: for servers that nobody but proxies can reach.
        secure_scheme_headers: Names of headers, in any case, and the value of each that means ``https``.

    Raises:
        LocalProtocolError: (a ``ValueError``) One is not an address or a network; a network has bits beyond its mask.
    """

    def __init__(
        self, addresses: str | Iterable[str], secure_scheme_headers: Mapping[str, str] = SECURE_SCHEME_HEADERS
    ) -> None:
        texts = addresses.replace(",", " ").split() if isinstance(addresses, str) else list(addresses)
        self._any = _ANY in texts
        self._networks = [_network(text) for text in texts if text != _ANY]
        self._scheme_headers = {name.lower(): value for name, value in secure_scheme_headers.items()}
        # By address as it was written: there are few proxies, and each request asks for one.
        self._known: SmallMap[bytes | str, bool] = SmallMap(1024)
        # What they say, in the two encodings; and what of Mongrel2's own headers is to change, by what was said: it
        # comes with each request of the same client.
        self._text_names = ("REMOTE_ADDR", "URL_SCHEME", "x-forwarded-for", *self._scheme_headers)
        self._names = tuple(name.encode("latin-1") for name in self._text_names)
        self._changes: SmallMap[tuple[Any, ...], dict[Any, Any]] = SmallMap(1024)

    def apply(self, request: Request) -> None:
        """Where a proxy sent *request*, put the client's address and scheme into ``REMOTE_ADDR`` and ``URL_SCHEME``.

        Raises:
            FramingError: Two of its headers do not agree on the scheme.
        """
        raw: Any = request.raw
        is_bytes = b"METHOD" in raw
        names = self._names if is_bytes else self._text_names
        peer = raw.get(names[0])
        if not isinstance(peer, (bytes, str)) or not self._trusts(peer):
            return
        said = tuple(map(raw.get, names))
        try:
            changes = self._changes.get(said)
        except TypeError:  # a list: one name has several lines
            changes = None
        if changes is None:
            changes = self._read(names, said)
        if changes:
            request.replace_headers({**raw, **changes})

    def _trusts(self, peer: bytes | str) -> bool:
        if self._any:
            return True
        known = self._known.get(peer)
        if known is None:
            address = _address(text_value(peer))
            known = address is not None and any(address in network for network in self._networks)
            if len(peer) <= _MAX_ADDRESS_SIZE:
                self._known.keep(peer, known)
        return known

    def _read(self, names: tuple[Any, ...], said: tuple[Any, ...]) -> dict[Any, Any]:
        """Return what changes by what was *said* under these *names*, in their encoding, and remember it."""
        lines = [[line.strip(" \t") for line in text_lines(value)] for value in said]
        changes = {}
        for name, old, found in zip(names, said, (self._client(lines[2]), self._scheme(lines[3:])), strict=False):
            if found is not None:
                new = found.encode("latin-1") if isinstance(name, bytes) else found
                if new != old:
                    changes[name] = new
        if all(one is None or (isinstance(one, (bytes, str)) and len(one) <= _MAX_SAID_SIZE) for one in said):
            self._changes.keep(said, changes)
        return changes

    def _client(self, values: list[str]) -> str | None:
        """Return whom *values* of ``X-Forwarded-For`` name as the client; ``None`` where they name nobody."""
        entries = ",".join(values)
        if self._any:
            first = _address(entries.partition(",")[0])
            return None if first is None else str(first)
        client = None
        # From the end: the last one is what our own proxy has seen.
        for entry in reversed(entries.rsplit(",", _MAX_ENTRIES)[-_MAX_ENTRIES:]):
            address = _address(entry)
            if address is None:
                break
            client = str(address)
            if not self._trusts(client):
                break
        return client

    def _scheme(self, values: list[list[str]]) -> str | None:
        found = None
        for (name, secure), lines in zip(self._scheme_headers.items(), values, strict=True):
            for value in lines:
                scheme = "https" if value == secure else "http"
                if found not in (None, scheme):
                    raise FramingError(f"{name} {value[:40]!r} says {scheme}, another header says {found}")
                found = scheme
        return found

    def __repr__(self) -> str:
        shown = [_ANY] if self._any else [str(network) for network in self._networks]
        return f"<TrustedProxies {', '.join(shown) or 'none'}>"


def _network(text: object) -> IPv4Network | IPv6Network:
    try:
        # As text: a number would be read as an address, too.
        return ip_network(str(text).strip())
    except ValueError as error:
        raise LocalProtocolError(
            f"trusted proxy {text!r} is not an address or a network, such as 10.0.0.0/8, nor '*': {error}"
        ) from error


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an entry of ``X-Forwarded-For``, which may have a port; ``None`` where it is not an address."""
    found = _match_address(text.strip(" \t"))
    try:
        address = None if found is None else ip_address(found[found.lastindex or 0])
    except ValueError:
        return None
    # What a socket for both families calls a client of IPv4.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
