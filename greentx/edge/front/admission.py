"""Who may connect, without I/O: so many connections in all, and so many of one address."""

from __future__ import annotations

import ipaddress
from collections import Counter

__all__ = ["Admission"]

# What one client has of IPv6, at the least (RFC 6177).
_PREFIX_BYTES = 8


class Admission:
    """Counts the connections that are there.

    Args:
        most: In all.
        most_per_address: Of one client address; of IPv6, of one network of 64 bits, out of which a client has as many
            addresses as it likes. ``None`` is as many as there may be in all.
    """

    def __init__(self, most: int, most_per_address: int | None = None) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._count = 0
        self._by_address: Counter[str | bytes] = Counter()

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def enter(self, address: str | None) -> bool:
        """Count one more; False where it may not be, which then is not counted.

        Args:
            address: Of the client; ``None`` where no bound of one address holds.
        """
        if self._count >= self._most:
            return False
        if address is not None and self._most_per_address is not None:
            key = _key(address)
            # Not by [], which would keep the address of each that is turned away.
            if self._by_address.get(key, 0) >= self._most_per_address:
                return False
            self._by_address[key] += 1
        self._count += 1
        return True

    def leave(self, address: str | None) -> None:
        """One that was let in has gone."""
        self._count -= 1
        if address is not None and self._most_per_address is not None:
            key = _key(address)
            self._by_address[key] -= 1
            if not self._by_address[key]:
                del self._by_address[key]


def _key(address: str) -> str | bytes:
    if ":" not in address:
        return address
    # IPv4, on a socket for both.
    parsed = ipaddress.IPv6Address(address)
    return str(parsed.ipv4_mapped) if parsed.ipv4_mapped is not None else parsed.packed[:_PREFIX_BYTES]
