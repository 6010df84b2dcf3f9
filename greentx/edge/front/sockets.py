"""What a browser connection calls of its socket: of gevent's, or of one that speaks TLS."""

from __future__ import annotations

from typing import Protocol

__all__ = ["BrowserSocket"]


class BrowserSocket(Protocol):
    """A connected socket. One greenlet reads, and another one writes."""

    def fileno(self) -> int:
        """Return its descriptor."""

    def recv(self, size: int, /) -> bytes:
        """Return the next bytes, ``b""`` at the end; blocks this greenlet."""

    def send(self, data: bytes | memoryview, flags: int = 0, timeout: float | None = None, /) -> int:
        """Send as much as goes at once, and return how much that is; without a *timeout* this blocks the greenlet."""

    def shutdown(self, how: int, /) -> None:
        """End one half of it, or both."""

    def close(self) -> None:
        """Close it."""

    def detach(self) -> int:
        """Return its descriptor, which belongs to the caller from now on; it is closed to all others."""
